"""Families and links of statsmodels' GLM as losses of the linear predictor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from sklearn_implicitreg.adapters.linear import deviances, losses
from sklearn_implicitreg.adapters.linear.losses import (
    Array,
    RowLoss,
    RowLosses,
    rows_of,
    size_of,
)

__all__ = ["check_range", "deviance_of", "with_offset", "words_of"]

# In closed form, without the cancellation of a mean close to its bound.
_CLOSED_FORM: dict[tuple[str, str], RowLoss] = {
    ("Gaussian", "Identity"): losses.squared_error,
    ("Binomial", "Logit"): deviances.log_loss,
    ("Poisson", "Log"): deviances.poisson,
    ("Gamma", "Log"): deviances.gamma,
}
_RANGES: dict[str, tuple[str, Callable[[Array], NDArray[np.bool_]]]] = {
    "Binomial": ("0 <= y <= 1", lambda y: (y >= 0) & (y <= 1)),
    "Gamma": ("y > 0", lambda y: y > 0),
    "InverseGaussian": ("y > 0", lambda y: y > 0),
    "NegativeBinomial": ("y >= 0", lambda y: y >= 0),
    "Poisson": ("y >= 0", lambda y: y >= 0),
    "Tweedie": ("y >= 0", lambda y: y >= 0),
}


def deviance_of(family: Any) -> RowLoss:
    """Half the unit deviance of a family with its link; the whole one for the Gaussian.

    Parameters
    ----------
    family : statsmodels.genmod.families.Family
        With its link.

    Returns
    -------
    RowLoss
        By the chain rule, ``(mu - y) / V(mu) * dmu/deta``, where there is no closed form.

    Examples
    --------
    >>> from statsmodels.genmod.families import Poisson
    >>> deviance_of(Poisson())(np.zeros((1, 1)), np.full((1, 1), 3.0), None).derivative
    array([[-2.]])
    """
    name, link = type(family).__name__, family.link
    known = _CLOSED_FORM.get((name, type(link).__name__))
    if known is not None:
        return known
    factor = 2.0 if name == "Gaussian" else 1.0

    def chained(eta: Array, y: Array, eta_size: Array | None) -> RowLosses:
        mean, chain = link.inverse(eta), link.inverse_deriv(eta)
        slope = factor * chain / family.variance(mean)
        size = np.abs(mean) + np.abs(y) + np.abs(chain) * size_of(eta, eta_size)
        value = factor / 2 * _unit_deviance(family, y, mean)
        return rows_of(value, slope * (mean - y), np.abs(slope) * size)

    return chained


def _unit_deviance(family: Any, y: Array, mean: Array) -> Array:
    """Deviance of a row of weight 1; a Binomial of statsmodels keeps the trials of its rows."""
    if type(family).__name__ == "Binomial":
        return 2 * np.asarray(xlogy(y, y / mean) + xlogy(1 - y, (1 - y) / (1 - mean)))
    return np.asarray(family.resid_dev(y, mean)) ** 2


def with_offset(row_loss: RowLoss, y: Array, offset: Array) -> tuple[RowLoss, Array]:
    """Loss of predictors to which an offset of their row is added, and its targets.

    Parameters
    ----------
    row_loss : RowLoss
        Loss of the whole predictor.
    y : ndarray of shape (n, 1)
        Targets.
    offset : ndarray of shape (n,)
        Offsets.

    Returns
    -------
    row_loss : RowLoss
        The same loss, where there is no offset.
    y : ndarray of shape (n, 1)
        Its targets: the positions of the rows where there is an offset.

    Examples
    --------
    >>> loss, place = with_offset(losses.squared_error, np.ones((1, 1)), np.array([2.0]))
    >>> loss(np.zeros((1, 1)), place, None).derivative
    array([[2.]])
    """
    if not np.any(offset):
        return row_loss, y

    def moved(eta: Array, place: Array, eta_size: Array | None) -> RowLosses:
        rows = place[:, 0].astype(np.intp)
        shift = offset[rows][:, None]
        return row_loss(eta + shift, y[rows], size_of(eta, eta_size) + np.abs(shift))

    return moved, np.arange(float(len(y)))[:, None]


def words_of(family: Any) -> str:
    """The loss in words.

    Parameters
    ----------
    family : statsmodels.genmod.families.Family
        With its link.

    Returns
    -------
    str

    Examples
    --------
    >>> from statsmodels.genmod.families import Gamma, Gaussian
    >>> words_of(Gaussian()), words_of(Gamma())
    ('squared error, no 1/2, Identity link', 'half Gamma deviance, InversePower link')
    """
    name, link = type(family).__name__, type(family.link).__name__
    loss = "squared error, no 1/2" if name == "Gaussian" else f"half {name} deviance"
    return f"{loss}, {link} link"


def check_range(y: Array, family: Any) -> None:
    """Refuse targets that the deviance is not defined for.

    Parameters
    ----------
    y : ndarray
        Targets.
    family : statsmodels.genmod.families.Family
        Of the model.

    Raises
    ------
    ValueError
        With the smallest and the largest target.
    """
    name = type(family).__name__
    if name in _RANGES and not np.all(_RANGES[name][1](y)):
        raise ValueError(
            f"Expected {_RANGES[name][0]} for the {name} family, got values from "
            f"{y.min():g} to {y.max():g}; give the y of the training."
        )
