"""What filters do to an eigenvalue: the share that is left, and the share taken per eigenvalue.

For weights ``theta = V f(S) S^-1 V' X'y/n`` a response is the pair of ``1 - f`` and ``f / s``. Both
are regular at ``s = 0``, where they are 1 and the slope of f, and both are computed without
cancellation: the penalty is their ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular, svdvals
from scipy.special import exprel

from sklearn_implicitreg.theory.checks import check_positive, check_steps

__all__ = [
    "averaged",
    "boosted",
    "descent",
    "exponential",
    "kept",
    "krylov",
    "repeated",
    "shrunk",
    "smoothed",
    "solved",
    "stepped",
]

Array = npt.NDArray[np.float64]
Response = tuple[Array, Array]
_divergent = np.errstate(over="ignore", invalid="ignore")  # such a run is refused by its caller


def descent(s: npt.ArrayLike, lr: float | None, n_steps: npt.ArrayLike) -> Response:
    """``1 - f`` and ``f / s`` of gradient descent or of the flow, arguments checked."""
    s = np.asarray(s, dtype=float)
    steps = np.asarray(n_steps, dtype=float)
    if not np.all(s >= 0):
        raise ValueError(f"Expected eigenvalues s >= 0, got {float(np.min(s))!r}.")
    check_steps(n_steps)
    if lr is None:
        return exponential(s, steps)
    check_positive("lr", lr)
    h = 2 * lr * s
    residual, ratio = repeated(h, 1 - h, steps)
    return residual, 2 * lr * ratio


def exponential(s: npt.ArrayLike, time: npt.ArrayLike) -> Response:
    """``exp(-2 s time)`` and ``(1 - exp(-2 s time)) / s``, the second without cancellation."""
    x = 2 * np.asarray(s, dtype=float) * time
    return np.exp(-x), 2 * np.asarray(time) * exprel(-x)


def repeated(u: Array, v: Array, n_steps: npt.ArrayLike) -> Response:
    """``v^t`` and ``(1 - v^t) / u`` for ``v = 1 - u``, given both, without cancellation."""
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


def shrunk(s: Array, coef: float) -> Response:
    """Of ridge: ``coef / (s + coef)`` and ``1 / (s + coef)``."""
    return coef / (s + coef), 1 / (s + coef)


def iterates(
    s: Array, lr: float, n_steps: int, momentum: float, nesterov: bool
) -> Iterator[Response]:
    """Responses after each step of torch's SGD, whose velocity begins as the first gradient."""
    h = 2 * lr * s
    residual, gain, velocity = np.ones_like(s), np.zeros_like(s), np.zeros_like(s)
    for _ in range(n_steps):
        velocity = momentum * velocity + residual
        step = residual + momentum * velocity if nesterov else velocity
        gain = gain + 2 * lr * step
        residual = residual - h * step
        yield residual, gain


@_divergent
def stepped(s: Array, lr: float, n_steps: int, momentum: float, nesterov: bool) -> Response:
    """Of the last iterate."""
    *_, last = iterates(s, lr, n_steps, momentum, nesterov)
    return last


@_divergent
def averaged(s: Array, lr: float, n_steps: int, momentum: float, nesterov: bool) -> Response:
    """Of the mean of the iterates 1 to n_steps."""
    residual, gain = np.zeros_like(s), np.zeros_like(s)
    for left, taken in iterates(s, lr, n_steps, momentum, nesterov):
        residual += left
        gain += taken
    return residual / n_steps, gain / n_steps


@_divergent
def smoothed(
    s: Array, lr: float, n_steps: int, momentum: float, nesterov: bool, decay: float
) -> Response:
    """Of the moving average ``decay * average + (1 - decay) * iterate`` begun at the start."""
    residual, gain = np.ones_like(s), np.zeros_like(s)
    for left, taken in iterates(s, lr, n_steps, momentum, nesterov):
        residual = decay * residual + (1 - decay) * left
        gain = decay * gain + (1 - decay) * taken
    return residual, gain


def solved(s: Array) -> Response:
    """Of least squares of minimum norm, which does not move in the null space."""
    found = s > 0
    return np.where(found, 0.0, 1.0), np.divide(1.0, s, out=np.full_like(s, np.inf), where=found)


def boosted(s: Array, rate: float, n_steps: int, base: Callable[[Array], Response]) -> Response:
    """Of n_steps learners, of each of which the share ``rate`` is taken."""
    left, gain = base(s)
    taken = rate * np.multiply(s, gain, out=np.zeros_like(s), where=s > 0)
    residual, ratio = repeated(taken, np.where(s > 0, 1 - rate + rate * left, 1.0), n_steps)
    return residual, rate * gain * ratio


def kept(s: Array, k: int) -> Response:
    """Of the k largest eigenvalues alone: nothing is left of them, nothing taken of others."""
    order = np.argsort(-s, kind="stable")
    if k > s.size or not s[order[k - 1]] > 0:
        raise ValueError(
            f"Expected k <= {int(np.sum(s > 0))}, the number of components that X has, got {k}."
        )
    if k < s.size and s[order[k - 1]] - s[order[k]] <= 1e-12 * s[order[0]]:
        raise ValueError(
            f"Expected eigenvalues {k - 1} and {k} of X'X/n to differ, got {s[order[k]]:.6g} "
            "twice: which direction is kept is not determined. Take another k."
        )
    keeps = np.zeros(s.size, dtype=bool)
    keeps[order[:k]] = True
    return np.where(keeps, 0.0, 1.0), np.divide(1.0, s, out=np.zeros_like(s), where=keeps)


def krylov(s: Array, b: Array, k: int) -> Response:
    """Of k steps of conjugate gradients towards b: their weights over b."""
    if not np.any(b):
        raise ValueError("Expected y that X can explain, got X'y = 0: there is no first step.")
    basis, bidiagonal = _bidiagonalized(np.sqrt(s), b, k)
    first = np.append(np.linalg.norm(b), np.zeros(len(bidiagonal) - 1))
    half = solve_triangular(bidiagonal, first, trans="T")
    weights = basis.T @ solve_triangular(bidiagonal, half)
    residual, gain = np.ones_like(s), np.zeros_like(s)
    for ritz in svdvals(bidiagonal) ** 2:
        gain = gain + residual / ritz
        residual = residual * (1 - s / ritz)
    # Where b is near zero, weights over b is rounding over rounding: there the polynomial
    # prod_j (1 - s / ritz_j) holds, which in turn is steep near the large Ritz values.
    seen = np.abs(b) > 1e-8 * np.max(np.abs(b))
    gain[seen] = weights[seen] / b[seen]
    residual[seen] = 1 - s[seen] * gain[seen]
    return residual, gain


def _bidiagonalized(sigma: Array, b: Array, k: int) -> tuple[Array, Array]:
    """Krylov basis of ``diag(sigma)`` from b, and the bidiagonal matrix on it."""
    # Fully reorthogonalized; smaller than k where the Krylov space is exhausted, and b reached.
    right = [b / np.linalg.norm(b)]
    left: list[Array] = []
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        image = _orthogonal(sigma * right[-1], left)
        diagonal.append(float(np.linalg.norm(image)))
        left.append(image / diagonal[-1])
        image = _orthogonal(sigma * left[-1], right)
        length = float(np.linalg.norm(image))
        if len(diagonal) == k or length <= 100 * np.finfo(float).eps * max(diagonal):
            break
        beside.append(length)
        right.append(image / length)
    return np.stack(right), np.diag(diagonal) + np.diag(beside, 1)


def _orthogonal(vector: Array, basis: list[Array]) -> Array:
    """The part of a vector beside a basis; twice, for what the first subtraction rounds off."""
    if basis:
        stacked = np.stack(basis)
        for _ in range(2):
            vector = vector - stacked.T @ (stacked @ vector)
    return vector
