"""The quadratic penalty that a spectral filter implies on a linear model."""

from __future__ import annotations

import numpy.typing as npt

from sklearn_implicitreg.theory.checks import as_matrix
from sklearn_implicitreg.theory.filtering import filtered
from sklearn_implicitreg.theory.quadratic import ImplicitPenalty
from sklearn_implicitreg.theory.spectral import SpectralFilter
from sklearn_implicitreg.theory.spectrum import column_notes, decompose

__all__ = ["implicit_penalty"]


def implicit_penalty(
    X: npt.ArrayLike,
    filter: SpectralFilter,
    *,
    y: npt.ArrayLike | None = None,
    start: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
) -> ImplicitPenalty:
    """The one quadratic penalty whose minimizer beside L is what a spectral filter gives.

    With ``X'X/n = V S V'`` a filter f gives ``theta = V f(S) S^-1 V' X'y/n``. For every y this
    minimizes ``L + theta' Lambda theta`` with ``L = (1/n) |y - X theta|^2`` and
    ``Lambda = V diag(s (1 - f) / f) V'``.

    Parameters
    ----------
    X : array-like of shape (n, p)
        Design, taken as it is: center X and y to leave an intercept free.
    filter : SpectralFilter
        Such as ``gradient_descent(lr, n_steps)``.
    y : array-like of shape (n,), optional
        Target; needed for conjugate gradients.
    start : array-like of shape (p,), optional
        Where the procedure begins; by default at zero.
    sample_weight : array-like of shape (n,), optional
        Weights of the rows; L is divided by their sum.

    Returns
    -------
    penalty : ImplicitPenalty
        With the matrix, its eigenvalues, and the weights for any y.

    Raises
    ------
    ValueError
        If ``f <= 0`` in some direction, where the weights are stationary but not a minimum;
        or if the filter needs y and it is not given.

    Warns
    -----
    IndefinitePenaltyWarning
        If ``f > 1`` in some direction, where the penalty is negative; ``L + R`` is still convex.
    StepSizeWarning
        If the step size is so large that the iteration diverges.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_implicitreg.theory import gradient_descent, implicit_penalty
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(50, 3)), rng.normal(size=50)
    >>> penalty = implicit_penalty(X, gradient_descent(lr=0.1, n_steps=7), y=y)
    >>> theta = np.zeros(3)
    >>> for _ in range(7):
    ...     theta -= 0.1 * 2 * X.T @ (X @ theta - y) / 50
    >>> bool(np.allclose(penalty.theta(), theta, rtol=1e-12))
    True
    >>> slope = 2 * X.T @ (X @ theta - y) / 50 + penalty.gradient(theta)
    >>> bool(np.all(np.abs(slope) < 1e-14))
    True
    """
    X = as_matrix("X", X)
    spectrum = decompose(X, sample_weight)
    return filtered(spectrum, filter, y, start, column_notes(X))
