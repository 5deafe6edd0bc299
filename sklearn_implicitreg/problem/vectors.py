"""Named tensors, and all of them as one vector of NumPy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_PIECE = 2**18

Params = dict[str, Tensor]


def flat(params: Params) -> npt.NDArray[np.float64]:
    """Tensors as one float64 vector."""
    return np.concatenate([t.detach().cpu().double().reshape(-1).numpy() for t in params.values()])


def shaped(params: Params, theta: npt.NDArray[np.float64]) -> Params:
    """Float64 tensors from one vector, named and shaped like the parameters."""
    parts = np.split(theta, np.cumsum([t.numel() for t in params.values()])[:-1])
    pairs = zip(params.items(), parts, strict=True)
    return {name: torch.from_numpy(part.copy()).reshape(t.shape) for (name, t), part in pairs}


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float64; on the CPU where its device has none, as MPS."""
    try:
        return tensor.double()
    except TypeError:
        return tensor.cpu().double()


def wide_zeros(like: Tensor) -> Tensor:
    """Float64 zeros, shaped like a tensor; on the CPU where its device has none, as MPS."""
    kind: dict[str, Any] = {"dtype": torch.float64, "memory_format": torch.contiguous_format}
    try:
        return torch.zeros_like(like, **kind)
    except TypeError:
        return torch.zeros_like(like, device="cpu", **kind)


def zeros_of(params: Params) -> Params:
    """Float64 zeros, named and shaped like the parameters."""
    return {name: wide_zeros(t) for name, t in params.items()}


def add_to(total: Tensor, part: Tensor, factor: float = 1.0) -> None:
    """Add to a float64 tensor in place; in pieces, for torch casts all of a mixed sum at once."""
    if total.numel() <= _PIECE or total.device.type != "cpu":
        total.add_(part, alpha=factor)
        return
    for into, piece in zip(_pieces(total), _pieces(part), strict=True):
        into.add_(piece, alpha=factor)


def accumulate(total: Params, sums: Params) -> None:
    """Add tensors to float64 totals in place; the first ones are copied."""
    for name, tensor in sums.items():
        if name in total:
            add_to(total[name], tensor)
        else:
            total[name] = tensor.to(torch.float64, copy=True)


def times(vector: Params, scale: Params | None) -> Params:
    """A vector with each entry times its scale, zero where a tensor has none; {} or None: one."""
    if not scale:
        return vector
    return {
        name: t * scale[name].to(t) if name in scale else torch.zeros_like(t)
        for name, t in vector.items()
    }


def norm_of(params: Params) -> float:
    """Euclidean norm over all tensors, without copies of them."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in params.values():
        own = groups.setdefault((tensor.device, tensor.dtype), [])
        own += _pieces(tensor.detach())
    return math.hypot(*itertools.chain(*map(_norms, groups.values())))


def _norms(pieces: list[Tensor]) -> list[float]:
    """Euclidean norms, which a device is waited for once; of squares in range."""
    found = torch.stack([torch.linalg.vector_norm(piece) for piece in pieces]).tolist()
    return [_norm(*pair) for pair in zip(pieces, found, strict=True)]


def _norm(piece: Tensor, found: float) -> float:
    """The norm that was found, or that of a piece whose squares are out of range."""
    limit = torch.finfo(piece.dtype).tiny ** 0.5
    if 1e4 * limit < found < float("inf") or not piece.numel():
        return found
    largest = float(piece.abs().max())
    if not 0 < largest < float("inf"):
        return largest
    return largest * float(torch.linalg.vector_norm(wide(piece) / largest))


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views that stay in the cache of a processor when they are cast."""
    flat = tensor.reshape(-1)
    pieces: tuple[Tensor, ...] = flat.split(_PIECE) if tensor.device.type == "cpu" else (flat,)
    return pieces
