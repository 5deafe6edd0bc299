"""Families and links of statsmodels' GLM as losses of the linear predictor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import xlogy

from sklearn_implicitreg.adapters.linear.losses import LOSSES, Array, Loss, Values

# In closed form, without the cancellation of a mean close to its bound.
_CLOSED_FORM = {
    ("Gaussian", "Identity"): "squared_error",
    ("Binomial", "Logit"): "log_loss",
    ("Poisson", "Log"): "poisson",
    ("Gamma", "Log"): "gamma",
}
_RANGES = {
    "Binomial": "0 <= y <= 1",
    "Gamma": "y > 0",
    "InverseGaussian": "y > 0",
    "NegativeBinomial": "y >= 0",
    "Poisson": "y >= 0",
    "Tweedie": "y >= 0",
}


def deviance_of(family: Any) -> Loss:
    """Half the unit deviance of a family with its link; the whole one for the Gaussian."""
    name, link = type(family).__name__, family.link
    gaussian = name == "Gaussian"
    words = "squared error" if gaussian else f"half {name} deviance"
    words = f"{words}, {type(link).__name__} link"
    known = _CLOSED_FORM.get((name, type(link).__name__))
    if known is not None:
        return replace(LOSSES[known], words=words)
    factor = 2.0 if gaussian else 1.0

    def chained(eta: Array, y: Array, size: Array) -> Values:
        mean, chain = link.inverse(eta), link.inverse_deriv(eta)
        slope = factor * chain / family.variance(mean)  # (mu - y) / V(mu) * dmu/deta
        bound = np.abs(slope) * (np.abs(mean) + np.abs(y) + np.abs(chain) * size)
        return factor / 2 * _unit_deviance(family, y, mean), slope * (mean - y), bound

    return Loss(chained, words, gaussian, valid=_RANGES.get(name))


def _unit_deviance(family: Any, y: Array, mean: Array) -> Array:
    """Deviance of a row of weight 1; a Binomial of statsmodels keeps the trials of its rows."""
    if type(family).__name__ == "Binomial":
        return 2 * np.asarray(xlogy(y, y / mean) + xlogy(1 - y, (1 - y) / (1 - mean)))
    return np.asarray(family.resid_dev(y, mean)) ** 2


def with_offset(loss: Loss, y: Array, offset: Array) -> tuple[Loss, Array]:
    """Loss of predictors to which an offset of their row is added, and its targets.

    The targets are the positions of the rows where there is an offset, which is looked up there.
    """
    loss.check_range(y)
    if not np.any(offset):
        return loss, y

    def moved(eta: Array, place: Array, size: Array) -> Values:
        rows = place[:, 0].astype(np.intp)
        shift = offset[rows][:, None]
        found = loss(eta + shift, y[rows], size + np.abs(shift))
        return found.value, found.derivative, found.size, found.kink

    return replace(loss, rows=moved, values={}, valid=None), np.arange(float(len(y)))[:, None]
