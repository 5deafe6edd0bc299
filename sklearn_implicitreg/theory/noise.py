"""Penalties that noise on the inputs of a linear model adds in expectation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sklearn_implicitreg.problem.parameters import checked, number
from sklearn_implicitreg.theory.inputs import as_matrix, weighted_rows


@checked(rate=number(least=0, below=1))
def input_dropout(
    X: npt.ArrayLike, rate: float, *, sample_weight: npt.ArrayLike | None = None
) -> npt.NDArray[np.float64]:
    """Diagonal penalty of dropout on the inputs of a linear model.

    Over masks that drop an entry with probability q and divide the others by ``1 - q``, the mean
    of L is ``L + sum_j q/(1-q) mean(x_j^2) theta_j^2``.

    Parameters
    ----------
    X : array-like of shape (n, p)
        Design.
    rate : float
        Probability q of an entry to be dropped, as of :class:`torch.nn.Dropout`.
    sample_weight : array-like of shape (n,), optional
        Weights of the rows, by which the mean is taken.

    Returns
    -------
    penalty : ndarray of shape (p,)
        Diagonal of Lambda, in the units of L.

    Raises
    ------
    ValueError
        If the rate is not at least 0 and below 1.

    References
    ----------
    Wager, Wang and Liang (2013), *Dropout training as adaptive regularization*, NeurIPS.

    Examples
    --------
    >>> input_dropout([[1.0, 2.0], [1.0, 0.0]], 0.3).round(4)
    array([0.4286, 0.8571])
    """
    rows, _ = weighted_rows(as_matrix("X", X), sample_weight)
    return np.asarray(rate / (1 - rate) * np.sum(rows**2, axis=0))


@checked(sigma=number(least=0))
def input_noise(sigma: float) -> float:
    """Coefficient of ``|theta|^2`` that Gaussian noise on the inputs of a linear model adds.

    Over noise on each entry, fresh each time, the mean of L is ``L + sigma^2 |theta|^2``.

    Parameters
    ----------
    sigma : float
        Standard deviation.

    Returns
    -------
    coef : float
        ``sigma^2``, coefficient of the family ``l2``.

    Raises
    ------
    ValueError
        If sigma is negative.

    References
    ----------
    Bishop (1995), *Training with noise is equivalent to Tikhonov regularization*.

    Examples
    --------
    >>> input_noise(0.5)
    0.25
    """
    return float(sigma**2)
