"""What filters do to an eigenvalue: the share that is left, and the share taken per eigenvalue.

For weights ``theta = V f(S) S^-1 V' X'y/n`` a response is the pair of ``1 - f`` and ``f / s``. Both
are regular at ``s = 0``, where they are 1 and the slope of f, and both are computed without
cancellation: the penalty is their ratio.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import exprel

__all__ = ["exponential", "repeated"]

Array = npt.NDArray[np.float64]


def exponential(s: npt.ArrayLike, time: npt.ArrayLike) -> tuple[Array, Array]:
    """``exp(-2 s time)`` and ``(1 - exp(-2 s time)) / s``, the second without cancellation."""
    x = 2 * np.asarray(s, dtype=float) * time
    return np.exp(-x), 2 * np.asarray(time) * exprel(-x)


def repeated(u: Array, v: Array, n_steps: npt.ArrayLike) -> tuple[Array, Array]:
    """``v^t`` and ``(1 - v^t) / u`` for ``v = 1 - u`` given both, without cancellation.

    A step that takes the share ``u`` of what is left, t times; ``u > 1`` goes past the goal.
    """
    steps = np.asarray(n_steps, dtype=float)
    if np.any(v < 0) and np.any(steps != np.round(steps)):
        raise ValueError(
            f"Expected a whole number of steps where 2 lr s > 1, got {steps}; take "
            "lr <= 1 / (2 max(s)), or the gradient flow."
        )
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # log1p of u near zero, log of v elsewhere: each where its argument is known best.
        x = -steps * np.where(u < 0.5, np.log1p(-np.minimum(u, 0.5)), np.log(np.abs(v)))
        sign = np.where((v < 0) & (steps % 2 == 1), -1.0, 1.0)
        residual = sign * np.exp(-x)
        gone = np.where(sign > 0, -np.expm1(-x), 1 - residual)
        ratio = np.where(u > 0, gone / u, steps)
    return residual, ratio
