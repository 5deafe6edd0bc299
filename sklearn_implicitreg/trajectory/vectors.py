"""Arithmetic on named tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sklearn_implicitreg.problem import Params, Problem, norm_of


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
    return norm_of({name: t.double() for name, t in params.items()})


def norm_over(problem: Problem, params: Params) -> float:
    """The same over the parts of tensors that all ranks have."""
    return float(np.hypot.reduce(problem.over_shards(norm(params))))
