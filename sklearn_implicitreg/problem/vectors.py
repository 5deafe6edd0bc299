"""Named tensors, and all of them as one vector of NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Params", "flat", "shaped"]

Params = dict[str, Tensor]


def flat(params: Params) -> npt.NDArray[np.float64]:
    """Tensors as one float64 vector."""
    return np.concatenate([t.detach().cpu().double().reshape(-1).numpy() for t in params.values()])


def shaped(params: Params, theta: npt.NDArray[np.float64]) -> Params:
    """Float64 tensors from one vector, named and shaped like the parameters."""
    parts = np.split(theta, np.cumsum([t.numel() for t in params.values()])[:-1])
    pairs = zip(params.items(), parts, strict=True)
    return {name: torch.from_numpy(part.copy()).reshape(t.shape) for (name, t), part in pairs}
