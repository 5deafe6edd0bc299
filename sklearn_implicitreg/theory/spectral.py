"""Spectral filters, and what each procedure leaves and takes of an eigenvalue.

For weights ``theta = V f(S) S^-1 V' X'y/n`` a response is the pair of ``1 - f`` and ``f / s``. Both
are regular at ``s = 0``, where they are 1 and the slope of f, and both are computed without
cancellation: the penalty is their ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular, svdvals
from scipy.special import exprel

from sklearn_implicitreg.problem.parameters import FLAG, check, function
from sklearn_implicitreg.theory.inputs import check_eigenvalues, check_steps

Array = npt.NDArray[np.float64]
Response = tuple[Array, Array]


@dataclass(frozen=True)
class SpectralFilter:
    """A function f of the eigenvalues s of ``X'X/n``, with ``theta = V f(S) S^-1 V' X'y/n``.

    From another start, ``theta = theta_0 + V f(S) S^-1 V' (X'y/n - X'X/n theta_0)``.

    Attributes
    ----------
    name : str
        The procedure with its arguments.
    response : callable
        Takes ``s``, with ``needs_y`` also ``V' X'y/n``; returns ``1 - f`` and ``f / s``.
    limit : float
        Eigenvalue from which on the procedure diverges.
    needs_y, drops : bool
        Whether f depends on y; whether ``f = 0`` holds the weights at the start.

    See Also
    --------
    implicit_penalty : The quadratic penalty that a filter implies for given data.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import gradient_descent
    >>> halved = gradient_descent(lr=0.1, n_steps=5)
    >>> halved.values([0.0, 1.0, 4.0]).round(4), halved.slope_at_zero
    (array([0.    , 0.6723, 0.9997]), 1.0)
    """

    name: str
    response: Callable[..., Response] = field(repr=False)
    limit: float = math.inf
    needs_y: bool = False
    drops: bool = False

    def __post_init__(self) -> None:
        allowed = {"response": function("(s)"), "needs_y": FLAG, "drops": FLAG}
        check("SpectralFilter", vars(self), allowed)

    def values(self, s: npt.ArrayLike) -> Array:
        """The share f(s) of the least-squares solution that is taken.

        Parameters
        ----------
        s : array-like of shape (p,)
            Eigenvalues of ``X'X/n``.

        Returns
        -------
        values : ndarray of shape (p,)
            ``f(s)``; above 1 where momentum overshoots.
        """
        s, (_, gain) = self._at(s)
        return np.multiply(s, gain, out=np.zeros_like(s), where=s > 0)

    def complement(self, s: npt.ArrayLike) -> Array:
        """What is left, ``1 - f(s)``, without cancellation.

        Parameters
        ----------
        s : array-like of shape (p,)
            Eigenvalues of ``X'X/n``.

        Returns
        -------
        complement : ndarray of shape (p,)
            ``1 - f(s)``.
        """
        return self._at(s)[1][0]

    def penalty(self, s: npt.ArrayLike) -> Array:
        """Eigenvalues ``s (1 - f) / f`` of the implied penalty; ``1 / f'(0)`` at zero.

        Parameters
        ----------
        s : array-like of shape (p,)
            Eigenvalues of ``X'X/n``.

        Returns
        -------
        eigenvalues : ndarray of shape (p,)
            In the units of L.

        Raises
        ------
        ValueError
            If ``f <= 0`` somewhere.
        """
        s, (residual, gain) = self._at(s)
        if not np.all(gain > 0):
            raise ValueError(
                f"Expected f > 0, got f <= 0 at s = {s[~(gain > 0)].tolist()} under {self.name}: "
                "no finite penalty is minimized there."
            )
        return residual / gain

    @property
    def slope_at_zero(self) -> float:
        """The derivative f'(0), one over the penalty in the null space of X."""
        return float(self._at([0.0])[1][1][0])

    def _at(self, s: npt.ArrayLike) -> tuple[Array, Response]:
        s = np.atleast_1d(check_eigenvalues(s))
        if self.needs_y:
            raise ValueError(
                f"Expected a filter of the eigenvalues alone, got {self.name}, which depends on "
                "y; use implicit_penalty(X, filter, y=y)."
            )
        return s, self.response(s)


def descent(s: npt.ArrayLike, lr: float | None, n_steps: npt.ArrayLike) -> Response:
    """``1 - f`` and ``f / s`` of gradient descent or of the flow, arguments checked."""
    s, steps = check_eigenvalues(s), check_steps(n_steps)
    if lr is None:
        x = 2 * s * steps
        return np.exp(-x), 2 * steps * exprel(-x)
    h = 2 * lr * s
    residual, ratio = repeated(h, 1 - h, steps)
    return residual, 2 * lr * ratio


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


@np.errstate(over="ignore", invalid="ignore")  # the caller raises for a run that diverges
def averaged(
    s: Array, lr: float, n_steps: int, momentum: float, nesterov: bool, share: float | None
) -> Response:
    """Of a mean, of which each iterate replaces a share; None for the plain mean."""
    residual, gain = np.ones_like(s), np.zeros_like(s)
    for k, (left, taken) in enumerate(iterates(s, lr, n_steps, momentum, nesterov), 1):
        new, old = (1 / k, (k - 1) / k) if share is None else (share, 1 - share)
        residual = old * residual + new * left
        gain = old * gain + new * taken
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
    above: list[float] = []
    while True:
        image = _orthogonal(sigma * right[-1], left)
        diagonal.append(float(np.linalg.norm(image)))
        left.append(image / diagonal[-1])
        image = _orthogonal(sigma * left[-1], right)
        length = float(np.linalg.norm(image))
        if len(diagonal) == k or length <= 100 * np.finfo(float).eps * max(diagonal):
            break
        above.append(length)
        right.append(image / length)
    return np.stack(right), np.diag(diagonal) + np.diag(above, 1)


def _orthogonal(vector: Array, basis: list[Array]) -> Array:
    if basis:
        stacked = np.stack(basis)
        for _ in range(2):  # the second subtraction removes what the first one rounded off
            vector = vector - stacked.T @ (stacked @ vector)
    return vector
