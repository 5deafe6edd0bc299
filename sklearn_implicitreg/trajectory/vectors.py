"""Named tensors as one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sklearn_implicitreg.problem import Params

__all__ = ["flat", "minus", "moved", "norm", "shaped", "squared_mean", "weighted_sum"]


def moved(params: Params, along: Params, step: float) -> Params:
    """``params + step * along``, in float64."""
    return {name: t.double() + step * along[name] for name, t in params.items()}


def minus(a: Params, b: Params) -> Params:
    """Difference."""
    return {name: t - b[name] for name, t in a.items()}


def weighted_sum(parts: Sequence[Params], weights: Sequence[float]) -> Params:
    """Sum of several, each times its weight, for the tensors of the first."""
    pairs = list(zip(weights, parts, strict=True))
    return {
        name: sum((weight * part[name] for weight, part in pairs), torch.zeros_like(first))
        for name, first in parts[0].items()
    }


def norm(params: Params) -> float:
    """Euclidean norm over all tensors."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in params.values()))


def flat(params: Params) -> Tensor:
    """One vector of all entries."""
    return torch.cat([t.reshape(-1) for t in params.values()])


def shaped(vector: Tensor, like: Params) -> Params:
    """The tensors that a vector holds."""
    parts = torch.split(vector, [t.numel() for t in like.values()])
    return {
        name: part.reshape(t.shape) for (name, t), part in zip(like.items(), parts, strict=True)
    }


def squared_mean(vectors: Tensor) -> tuple[float, float]:
    """Squared norm of the mean of n vectors, (n, p), by their products, and as it is."""
    # Products of different vectors are free of noise that is independent from one to the next.
    n = len(vectors)
    whole = float(vectors.mean(0).square().sum())
    if n < 2:
        return whole, whole
    own = float(vectors.square().sum())
    return (n * n * whole - own) / (n * (n - 1)), whole
