"""One number for a spectral filter: degrees of freedom, and ridge coefficients like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from sklearn_implicitreg.problem.parameters import checked
from sklearn_implicitreg.theory.implicit import FILTER, ImplicitPenalty, check_gain
from sklearn_implicitreg.theory.inputs import as_matrix, as_vector, decompose
from sklearn_implicitreg.theory.spectral import SpectralFilter

Array = npt.NDArray[np.float64]


@checked(filter=FILTER)
def degrees_of_freedom(
    X: npt.ArrayLike, filter: SpectralFilter, *, sample_weight: npt.ArrayLike | None = None
) -> float:
    """Effective degrees of freedom of a filter: the trace of the map from y to the fit.

    Parameters
    ----------
    X : array-like of shape (n, p)
        Design.
    filter : SpectralFilter
        Procedure, linear in y: not conjugate gradients.
    sample_weight : array-like of shape (n,), optional
        Weights of the rows.

    Returns
    -------
    df : float
        Sum of f over the eigenvalues of ``X'X/n``.

    Raises
    ------
    ValueError
        If the filter depends on y, or ``f <= 0`` in some direction.

    Warns
    -----
    StepSizeWarning
        If the step size is so large that the iteration diverges.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import degrees_of_freedom, ridge
    >>> round(degrees_of_freedom(np.diag([1.0, 2.0]), ridge(0.5)), 12)
    1.3
    """
    _, taken, _ = _shares(X, filter, sample_weight)
    return float(np.sum(taken))


@checked(filter=FILTER)
def equivalent_ridge(
    X: npt.ArrayLike, filter: SpectralFilter, *, sample_weight: npt.ArrayLike | None = None
) -> float:
    """The ridge coefficient with as many effective degrees of freedom as a filter.

    Parameters
    ----------
    X : array-like of shape (n, p)
        Design.
    filter : SpectralFilter
        Procedure, linear in y.
    sample_weight : array-like of shape (n,), optional
        Weights of the rows.

    Returns
    -------
    coef : float
        Root of ``sum s / (s + coef) = sum f``; scikit-learn's alpha is n times it.

    Raises
    ------
    ValueError
        If the filter depends on y, ``f <= 0`` somewhere, or takes more than least squares.

    Warns
    -----
    StepSizeWarning
        If the step size is so large that the iteration diverges.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import equivalent_ridge, gradient_flow, ridge
    >>> X = np.diag([1.0, 2.0])
    >>> [round(equivalent_ridge(X, f), 4) for f in (ridge(0.5), gradient_flow(1.0))]
    [0.5, 0.2067]
    """
    s, shares, rest = _shares(X, filter, sample_weight)
    taken, left = float(np.sum(shares)), float(np.sum(rest))
    if not (taken > 0 and left >= 0):
        raise ValueError(
            f"Expected between 0 and {s.size} degrees of freedom, got {taken:.6g} under "
            f"{filter.name}: no ridge has as many."
        )
    if left == 0:
        return 0.0

    def _excess(log_coef: float) -> float:
        """Log odds of ridge less those of the filter: exact at both ends."""
        coef = np.exp(log_coef)
        odds = np.sum(s / (s + coef)) / np.sum(coef / (s + coef))
        return float(np.log(odds) - np.log(taken / left))

    # Were all eigenvalues the same, the root would be s left/taken: it lies between the extremes.
    ends = np.log(s[-1] * left / taken) - 1e-9, np.log(s[0] * left / taken) + 1e-9
    return float(np.exp(brentq(_excess, *ends, xtol=1e-15, rtol=4 * np.finfo(float).eps)))


def _shares(
    X: npt.ArrayLike, filter: SpectralFilter, sample_weight: npt.ArrayLike | None
) -> tuple[Array, Array, Array]:
    s = decompose(as_matrix("X", X), sample_weight).s
    taken, left = filter.values(s), filter.complement(s)
    if not filter.drops:
        check_gain(filter, s, left, taken / s)
    return s, taken, left


def scalar_equivalent(
    theta: npt.ArrayLike, Lambda: Any, *, start: npt.ArrayLike | None = None
) -> float:
    """The coefficient of ``|theta|^2`` that a regression on it finds for a quadratic penalty.

    It is ``theta' Lambda theta / |theta|^2``: the multiple of ``theta`` nearest to
    ``Lambda theta``, as the family ``l2`` finds it at the minimizer of ``L + theta' Lambda theta``.

    Parameters
    ----------
    theta : array-like of shape (p,)
        Weights.
    Lambda : array-like of shape (p, p), ImplicitPenalty, or fitted penalty with ``matrix_``
        Penalty.
    start : array-like of shape (p,), optional
        Point that the penalty is measured from; by default that of the penalty, or zero.

    Returns
    -------
    coef : float
        In the units of L.

    Raises
    ------
    ValueError
        If the weights are at the start, or the shapes do not match.

    Examples
    --------
    >>> scalar_equivalent([1.0, 1.0], [[1.0, 0.0], [0.0, 3.0]])
    2.0
    """
    implied = Lambda if isinstance(Lambda, ImplicitPenalty) else None
    moved = as_vector("theta", theta, len(implied.start) if implied else np.size(theta))
    if start is None:
        start = implied.start if implied else np.zeros_like(moved)
    moved = moved - as_vector("start", start, moved.size)
    length = float(moved @ moved)
    if not length > 0:
        raise ValueError("Expected weights away from the start, got the start itself.")
    if implied:
        return implied.value(implied.start + moved) / length
    matrix = as_matrix("Lambda", getattr(Lambda, "matrix_", Lambda))
    if matrix.shape != (moved.size, moved.size):
        raise ValueError(
            f"Expected Lambda of shape {(moved.size, moved.size)} for these weights, got one of "
            f"shape {matrix.shape}."
        )
    return float(moved @ matrix @ moved) / length
