"""Blocks of single equations as tensors, reduced to R factors on the device where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_implicitreg.regression.chunks import Chunks
from sklearn_implicitreg.regression.system import Array, Rows, merge, r_factor, summed_r_factor

# Where in the tensor they start, which they are (None: all from there) and, in rotated bases, how
# many columns these have; columns, target and instruments of some equations.
Block = tuple[tuple[int, Tensor | None, int | None], Tensor, Tensor, Tensor | None, Tensor | None]

_BATCHED = 256  # rows of a block, up to which cuBLAS decomposes many together


def as_rows(name: str, block: Block) -> Rows:
    """Some equations of a tensor as arrays."""
    (start, kept, width), design, target, *_ = block
    places = np.arange(len(target)) if kept is None else kept.cpu().numpy()
    places = start + places if width is None else _rotated(places, width)
    return (name,), places, design.cpu().numpy(), target.cpu().numpy()


def _rotated(places: npt.NDArray[np.int64], width: int) -> npt.NDArray[Any]:
    """Rows and columns of places in rotated bases, which are no weights."""
    found = np.empty(len(places), dtype=[("row", np.int64), ("column", np.int64)])
    found["row"], found["column"] = np.divmod(places, width)
    return found


def streamed_r_factor(blocks: Chunks[Block], device: torch.device) -> tuple[Array, int]:
    """R factor of a large tensor's equations and their number, on the device where they are."""
    if device.type == "cpu":
        return summed_r_factor(blocks.then(_side_by_side))
    factors, n = [], 0
    for _, design, target, *_ in blocks:
        factors.append(device_r_factor(design, target))
        n += len(target)
    return merge(factors), n


def device_r_factor(design: Tensor, target: Tensor) -> Array:
    """R factor of equations, reduced on the device where they are."""
    if target.device.type == "cpu":
        return r_factor(design.numpy(), target.numpy())
    both = torch.cat([design, target[:, None]], dim=1)
    width = both.shape[1]
    while len(both) > 2 * _BATCHED >= 4 * width:  # a device decomposes many small blocks at once
        filled = torch.nn.functional.pad(both, (0, 0, 0, -len(both) % _BATCHED))
        both = torch.linalg.qr(filled.reshape(-1, _BATCHED, width), mode="r").R.reshape(-1, width)
    upper = torch.linalg.qr(both, mode="r").R.cpu().numpy()
    padded = np.zeros((width, width))
    padded[: len(upper)] = upper
    return padded


def _side_by_side(block: Block) -> Array:
    """Columns and target of some equations as the rows of one array."""
    _, design, target, _, room = block
    both: Array = (torch.cat([design.T, target[None]]) if room is None else room).numpy()
    return both
