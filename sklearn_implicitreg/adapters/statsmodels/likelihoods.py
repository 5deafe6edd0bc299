"""Losses of statsmodels' models besides GLM: choices, counts, robust and quantile regression."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import digamma, gammaln, log_ndtr, xlogy

from sklearn_implicitreg.adapters.linear.losses import LOSSES, Array, Loss, Values

# statsmodels ends where coefficients move by 1e-6, and counts residuals as 1e-6 at least.
_ON_QUANTILE = 1e-5
_SMALLEST_RESIDUAL = 2e-6


def _probit(eta: Array, y: Array, size: Array) -> Values:
    """``-log Phi((2 y - 1) eta)``, also of fractions, as statsmodels has it."""
    sign = 2 * y - 1
    z = sign * eta
    log_p = log_ndtr(z)
    ratio = np.exp(-z * z / 2 - log_p) / np.sqrt(2 * np.pi)
    slope = -sign * ratio
    bound = np.abs(slope) * (1 + z * z) + sign * sign * ratio * np.abs(z + ratio) * size
    return -log_p, slope, bound


def _with_base(eta: Array, y: Array, size: Array) -> Values:
    """Cross-entropy of a softmax over the columns and a first class whose predictor is 0."""
    zero, first = np.zeros((len(eta), 1)), 1 - y.sum(axis=1, keepdims=True)
    wide = (np.hstack(pair) for pair in ((zero, eta), (first, y), (zero, size)))
    found = LOSSES["cross_entropy"](*wide)
    return found.value, found.derivative[:, 1:], found.size[:, 1:]


def _negative_binomial(
    eta: Array, y: Array, size: Array, *, dispersion: float, power: float
) -> Values:
    """Counts of mean ``m = exp(eta)`` and variance ``m + dispersion m^power``."""
    mean = np.exp(eta)
    a = mean ** (2 - power) / dispersion
    odds = np.log1p(mean / a)
    value = gammaln(a) + gammaln(y + 1) - gammaln(a + y) + a * odds
    value -= xlogy(y, mean / (a + mean))
    share = a / (a + mean)
    slope, bound = (mean - y) * share, (mean * (1 + size) + y) * share
    if power != 2:  # a depends on the mean
        left = (mean - y) / (a + mean)
        slope = slope - (2 - power) * a * (digamma(a + y) - digamma(a) - odds + left)
        parts = np.abs(digamma(a + y)) + np.abs(digamma(a)) + odds + np.abs(left)
        bound = bound + abs(2 - power) * a * parts * (1 + size)
    return value, slope, bound


def _generalized_poisson(
    eta: Array, y: Array, size: Array, *, dispersion: float, power: float
) -> Values:
    """Counts of mean ``m = exp(eta)`` and variance ``m (1 + dispersion m^(power - 1))^2``."""
    mean = np.exp(eta)
    extra = dispersion * mean ** (power - 1)
    a, b = 1 + extra, mean + extra * y
    da, db = (power - 1) * extra, mean + (power - 1) * extra * y  # derivatives in eta
    value = gammaln(y + 1) - eta - (y - 1) * np.log(b) + y * np.log(a) + b / a
    parts = (np.ones_like(mean), (y - 1) * db / b, -y * da / a, -db / a, b * da / a**2)
    bound = np.sum(np.abs(parts), axis=0) * (1 + size)
    return value, -np.sum(parts, axis=0), bound


def _quantile(eta: Array, y: Array, size: Array, *, quantile: float) -> Values:
    """``r (q - [r < 0])`` of the residual r."""
    r = y - eta
    below = r < 0
    near = np.abs(r) <= _ON_QUANTILE * (np.abs(eta) + np.abs(y)) + _SMALLEST_RESIDUAL
    return r * (quantile - below), below - quantile, np.ones_like(r), near


def _of_norm(norm: Any, scale: float) -> Any:
    """``rho(r / s)`` of a norm at a scale; a jump of its derivative is a kink."""

    def rows(eta: Array, y: Array, size: Array) -> Values:
        z = (y - eta) / scale
        # Some norms work in the array that they are given.
        psi, weight = np.asarray(norm.psi(z.copy())), np.asarray(norm.weights(z.copy()))
        moved = np.asarray(norm.psi(z * (1 + 1e-8))) - np.asarray(norm.psi(z * (1 - 1e-8)))
        bound = np.abs(psi) / scale + np.abs(weight) * (size + np.abs(y)) / scale**2
        jumps = np.abs(moved) > 1e-4 * np.abs(z)
        return np.asarray(norm.rho(z.copy())), -psi / scale, bound, jumps

    return rows


def robust(results: Any) -> Loss:
    """Loss of RLM at the scale that was fitted, the mean of its deviance."""
    norm, scale = results.model.M, float(results.scale)
    if not scale > 0:
        raise ValueError(
            f"Expected a scale above zero of the residuals, got {scale:g}: the model fits most "
            "rows exactly, and its loss has no derivative there."
        )
    return Loss(_of_norm(norm, scale), f"{type(norm).__name__} norm of residuals over the scale")


def quantile(results: Any) -> Loss:
    """Loss of QuantReg, which has a kink at every row that the fit goes through."""
    q = float(results.q)
    return Loss(_quantile, f"quantile loss at {q:g}", kinked=True, values={"quantile": q})


def multinomial(results: Any) -> Loss:
    """Loss of MNLogit, whose first class has no coefficients."""
    return Loss(_with_base, f"cross-entropy of {results.model.J} classes")


def binary_or_count(results: Any) -> Loss:
    """Minus the log-likelihood of a discrete model of one predictor, its dispersion held."""
    model = results.model
    name = type(model).__name__
    if name == "Probit":
        return Loss(_probit, "negative log-likelihood, probit link", valid="0 <= y <= 1")
    if name in ("Logit", "Poisson"):
        return LOSSES["log_loss" if name == "Logit" else "poisson"]
    if name == "NegativeBinomial":
        rows, power = _negative_binomial, 1.0 if model.loglike_method == "nb1" else 2.0
    elif name == "NegativeBinomialP":
        rows, power = _negative_binomial, float(model.parameterization)
    else:
        rows, power = _generalized_poisson, float(model.parameterization) + 1
    kind = "generalized Poisson" if rows is _generalized_poisson else "negative binomial"
    dispersion = dispersion_of(results)  # 1 for the geometric distribution, which has none
    values = {"dispersion": 1.0 if dispersion is None else dispersion, "power": power}
    words = f"negative log-likelihood, {kind} of power {power:g}, log link"
    return Loss(rows, words, values=values, valid="y >= 0")


def dispersion_of(results: Any) -> float | None:
    """The parameter behind the coefficients, where a discrete model has one."""
    return float(np.asarray(results.params)[-1]) if results.model.k_extra else None
