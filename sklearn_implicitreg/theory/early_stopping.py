"""The penalty of early-stopped gradient descent, as a function of the number of steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import exprel

from sklearn_implicitreg.problem.parameters import NOTHING, checked, number
from sklearn_implicitreg.theory.spectral import descent

Array = npt.NDArray[np.float64]
_LR = NOTHING | number(above=0)


@checked(lr=_LR)
def early_stopping_eigenvalues(s: npt.ArrayLike, lr: float | None, n_steps: npt.ArrayLike) -> Array:
    """Eigenvalues of the quadratic penalty that gradient descent from zero leaves.

    After t steps on ``L = (1/n) |y - X theta|^2`` the weights minimize ``L + theta' Lambda_t
    theta``, with the eigenvectors of ``X'X/n`` and eigenvalues ``s / ((1 - 2 lr s)^-t - 1)``; in
    the limit of small steps, with ``time = lr t``, ``s / (exp(2 s time) - 1)``.

    Parameters
    ----------
    s : array-like of shape (p,)
        Eigenvalues of ``X'X/n``, not negative. Zero gives the limit ``1 / (2 lr t)``.
    lr : float or None
        Step size that multiplies the gradient of L, as torch's; ``None`` for the gradient flow.
    n_steps : array-like
        Number of steps t > 0, or the flow time ``lr * t``; broadcast against ``s``.

    Returns
    -------
    eigenvalues : ndarray
        In the units of L. Zero where they fall below the smallest number.

    Raises
    ------
    ValueError
        If an argument is out of range, or ``2 lr s > 1`` and the steps are not whole.

    See Also
    --------
    early_stopping_slopes : Their derivative in the logarithm of the number of steps.

    References
    ----------
    Ali, Kolter and Tibshirani (2019), AISTATS; their step size, on half of L, is ``2 lr``.

    Examples
    --------
    >>> early_stopping_eigenvalues([0.0, 1.0, 4.0], 0.1, 5).round(6)
    array([1.      , 0.487387, 0.00128 ])
    >>> early_stopping_eigenvalues([0.0, 1.0, 4.0], None, 0.5).round(6)
    array([1.      , 0.581977, 0.074629])
    """
    residual, gain = descent(s, lr, n_steps)
    return np.asarray(residual / gain)


@checked(lr=_LR)
def early_stopping_slopes(s: npt.ArrayLike, lr: float | None, n_steps: npt.ArrayLike) -> Array:
    """Derivative of the eigenvalues of early stopping in the logarithm of the steps.

    With ``x = -t log(1 - 2 lr s)``, in the limit of small steps ``x = 2 s time``, it is
    ``d lambda / d log t = -lambda x / (1 - exp(-x))``.

    Parameters
    ----------
    s : array-like of shape (p,)
        Eigenvalues of ``X'X/n``, not negative.
    lr : float or None
        Step size that multiplies the gradient of L; ``None`` for the gradient flow.
    n_steps : array-like
        Number of steps t, any positive number; with ``lr=None`` the flow time ``lr * t``.

    Returns
    -------
    slopes : ndarray
        Not positive: more steps, less penalty.

    Raises
    ------
    ValueError
        As for :func:`early_stopping_eigenvalues`, and if ``2 lr s > 1``: no derivative.

    See Also
    --------
    early_stopping_eigenvalues : The eigenvalues.

    Examples
    --------
    >>> early_stopping_slopes([0.0, 1.0], 0.1, 5).round(6)
    array([-1.      , -0.808821])
    """
    eigenvalues = early_stopping_eigenvalues(s, lr, n_steps)
    s = np.asarray(s, dtype=float)
    h = 2 * s * (1.0 if lr is None else lr)
    if lr is not None and np.any(h > 1):
        raise ValueError(
            f"Expected 2 lr s <= 1, got {float(np.max(h)):.4g}; take lr <= 1 / (2 max(s)), or "
            "lr=None for the gradient flow."
        )
    with np.errstate(divide="ignore"):
        exponent = np.asarray(n_steps, dtype=float) * (h if lr is None else -np.log1p(-h))
    # Where the eigenvalue is zero the exponent may be infinite.
    factor = np.where(eigenvalues > 0, 1 / exprel(-np.minimum(exponent, 1e3)), 0.0)
    return np.asarray(-eigenvalues * factor)
