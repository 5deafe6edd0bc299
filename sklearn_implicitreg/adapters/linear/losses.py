"""The losses of a linear predictor: one table, looked up by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp, xlogy

Array = NDArray[np.float64]
Values = tuple[Any, ...]  # the fields of RowLosses, without kinks where there are none

# Distance to a kink, relative to the numbers compared, that counts as lying on it.
KINK_TOL = 1e-8

_RANGES: dict[str, Callable[[Array], NDArray[np.bool_]]] = {
    "y >= 0": lambda y: y >= 0,
    "y > 0": lambda y: y > 0,
    "0 <= y <= 1": lambda y: (y >= 0) & (y <= 1),
}


@dataclass(frozen=True)
class RowLosses:
    """Losses of rows, elementwise, and what is known of their derivatives."""

    value: Array  # (n, 1) for a loss that couples the K columns
    derivative: Array  # with respect to eta; at a kink one of the subgradients
    size: Array  # of the summands of the derivative: eps times this is its rounding error
    kink: NDArray[np.bool_]  # where the loss has no derivative


@dataclass(frozen=True)
class Loss:
    """A loss as a function of the predictor ``eta`` and the target ``y`` of one shape."""

    rows: Callable[..., Values]  # of (eta, y, size of the summands of eta), elementwise
    words: str
    whole: bool = False  # a squared error without its 1/2
    torch: str | None = None  # torch's name of the loss, where it differs by averaging outputs
    low: float = -1.0  # target of a classifier for the other classes; 1 for the row's own
    curvature: float | None = None  # second derivative, where it is constant
    kinked: bool = False  # whether it takes a kink_tol
    valid: str | None = None  # range of the targets
    parameters: tuple[str, ...] = ()  # attributes of a model that have its parameters
    values: Mapping[str, Any] = field(default_factory=dict)  # of the parameters

    def __call__(
        self, eta: Array, y: Array, eta_size: Array | None = None, **values: Any
    ) -> RowLosses:
        """Losses of rows in float64; ``eta_size`` is by default ``|eta|``."""
        size = np.abs(eta) if eta_size is None else eta_size
        found = self.rows(eta, y, size, **{**self.values, **values})
        value, slope, scale = (np.asarray(part, dtype=np.float64) for part in found[:3])
        kink = found[3] if len(found) > 3 else np.zeros(slope.shape, dtype=bool)
        return RowLosses(value, slope, scale, kink)

    def of(self, **values: Any) -> Loss:
        """The same loss with values of its parameters."""
        return replace(self, values={**self.values, **values})

    def described(self, how: str = "mean over rows") -> str:
        """The loss in words."""
        return f"{self.words}, {how}" + ", no 1/2" * self.whole

    def check_range(self, y: Array) -> None:
        """Raise ValueError if the loss is not defined for some targets."""
        if self.valid is not None and not np.all(_RANGES[self.valid](y)):
            raise ValueError(
                f"Expected {self.valid} for the {self.words}, got values from {y.min():g} to "
                f"{y.max():g}: some value(s) of y are out of the valid range of the loss; give "
                "the y of the training."
            )


def _squared_error(eta: Array, y: Array, size: Array) -> Values:
    """``(eta - y)^2``."""
    r = eta - y
    return r * r, 2 * r, 2 * (size + np.abs(y))


def _epsilon_insensitive(
    eta: Array, y: Array, size: Array, *, epsilon: float = 0.1, kink_tol: float = KINK_TOL
) -> Values:
    """``max(0, |eta - y| - epsilon)``."""
    r = eta - y
    outside = np.abs(r) - epsilon
    near = np.abs(outside) <= kink_tol * (np.abs(eta) + np.abs(y) + epsilon)
    return np.maximum(outside, 0.0), np.sign(r) * (outside > 0), np.ones_like(r), near


def _pinball(
    eta: Array, y: Array, size: Array, *, quantile: float = 0.5, kink_tol: float = KINK_TOL
) -> Values:
    """``max((quantile - 1) r, quantile r)`` of ``r = y - eta``."""
    r = y - eta
    near = np.abs(r) <= kink_tol * (np.abs(eta) + np.abs(y))
    slope = np.where(r > 0, -quantile, 1.0 - quantile)
    return -slope * r, slope, np.ones_like(r), near


def _squared_epsilon_insensitive(
    eta: Array, y: Array, size: Array, *, epsilon: float = 0.1
) -> Values:
    """``max(0, |eta - y| - epsilon)^2``."""
    r = eta - y
    outside = np.maximum(np.abs(r) - epsilon, 0.0)
    scale = 2 * (size + np.abs(y) + epsilon) * (outside > 0)
    return outside**2, 2 * np.sign(r) * outside, scale


def _huber(eta: Array, y: Array, size: Array, *, epsilon: float = 1.0) -> Values:
    """``r^2 / 2``, beyond epsilon ``epsilon |r| - epsilon^2 / 2``, as SGD and torch have it."""
    r = eta - y
    inside = np.minimum(np.abs(r), epsilon)
    scale = np.where(np.abs(r) < epsilon, size + np.abs(y), epsilon)
    return inside * (np.abs(r) - inside / 2), np.clip(r, -epsilon, epsilon), scale


def _scaled_huber(eta: Array, y: Array, size: Array, *, epsilon: float, scale: float) -> Values:
    """``s + s H(r / s)``, H twice Huber's loss, at the fitted scale s (Huber 1981, 7.7)."""
    z, target = eta / scale, y / scale
    value, slope, part = _huber(z, target, np.abs(z), epsilon=epsilon)
    bound = 2 * np.minimum((size + np.abs(y)) / scale, np.maximum(part, epsilon))
    return scale * (1 + 2 * value), 2 * slope, bound


def _hinge(eta: Array, y: Array, size: Array, *, kink_tol: float = KINK_TOL) -> Values:
    """``max(0, 1 - y eta)`` of targets -1 and +1."""
    z = 1.0 - y * eta
    near = np.abs(z) <= kink_tol * (1.0 + np.abs(eta))
    return np.maximum(z, 0.0), np.where(z > 0, -y, 0.0), np.ones_like(z), near


def _perceptron(eta: Array, y: Array, size: Array, *, kink_tol: float = KINK_TOL) -> Values:
    """``max(0, -y eta)``; the kink at zero has no scale but that of the summands of eta."""
    z = -y * eta
    near = np.abs(eta) <= kink_tol * size
    return np.maximum(z, 0.0), np.where(z > 0, -y, 0.0), np.ones_like(z), near


def _squared_hinge(eta: Array, y: Array, size: Array) -> Values:
    """``max(0, 1 - y eta)^2``."""
    z = np.maximum(1 - y * eta, 0.0)
    return z * z, -2 * y * z, 2 * (1 + size) * (z > 0)


def _modified_huber(eta: Array, y: Array, size: Array) -> Values:
    """Squared hinge loss that goes on as ``-4 y eta`` below the margin -1 (Zhang 2004)."""
    value, slope, scale, *_ = _squared_hinge(eta, y, size)
    z = y * eta
    far = z < -1
    return np.where(far, -4 * z, value), np.where(far, -4 * y, slope), np.where(far, 4.0, scale)


def _log_loss(eta: Array, y: Array, size: Array) -> Values:
    """``log(1 + exp(eta)) - y eta`` of targets in [0, 1]."""
    up, down = expit(eta), expit(-eta)
    value = np.logaddexp(0.0, np.where(y > 0.5, -eta, eta)) + np.where(y > 0.5, 1 - y, -y) * eta
    # Not p - y: 1 - p loses all its digits where the model is sure.
    slope = (1 - y) * up - y * down
    return value, slope, (1 - y) * up + y * down + up * down * size


def _multinomial(eta: Array, y: Array, size: Array) -> Values:
    """Cross-entropy of a softmax over the columns, y one-hot."""
    top = np.max(eta, axis=1, keepdims=True)
    log_p = eta - top - logsumexp(eta - top, axis=1, keepdims=True)
    p = np.exp(log_p)
    # Not p - 1 in the column of the class: it loses all its digits where the model is sure.
    others = np.sum(p * (1 - y), axis=1, keepdims=True)
    value = -np.sum(np.where(y > 0, y * log_p, 0.0), axis=1, keepdims=True)
    slope = np.where(y == 1, -others, p - y)
    spread = p * (1 - p) * size + p * ((p * size).sum(axis=1, keepdims=True) - p * size)
    return value, slope, p + y + spread


def _poisson(eta: Array, y: Array, size: Array) -> Values:
    """``y log(y / m) - y + m`` of the mean ``m = exp(eta)``."""
    mean = np.exp(eta)
    value = xlogy(y, y) - y * eta - y + mean
    return value, mean - y, mean * (1 + size) + np.abs(y)


def _gamma(eta: Array, y: Array, size: Array) -> Values:
    """``log(m / y) + y / m - 1`` of the mean ``m = exp(eta)``."""
    ratio = y * np.exp(-eta)
    return eta - np.log(y) + ratio - 1, 1 - ratio, 1 + ratio * (1 + size)


def _tweedie(eta: Array, y: Array, size: Array, *, power: float, log: bool) -> Values:
    """Half Tweedie deviance (Jorgensen 1987), ``(m - y) m^-power dm/deta`` by the chain rule."""
    mean = np.exp(eta) if log else eta
    chain = mean if log else np.ones_like(mean)
    error = mean * size if log else size
    factor = (2.0 if power == 0 else 1.0) * chain * mean ** (-float(power))
    bound = np.abs(factor) * (np.abs(mean) + np.abs(y) + error)
    return _half_deviance(mean, y, power), factor * (mean - y), bound


def _half_deviance(mean: Array, y: Array, power: float) -> Array:
    """Half Tweedie deviance; the whole squared error at power 0."""
    if power == 0:
        return np.asarray((y - mean) ** 2)
    if power == 1:
        return np.asarray(xlogy(y, y / mean) - y + mean)
    if power == 2:
        return np.asarray(np.log(mean / y) + y / mean - 1)
    start = np.maximum(y, 0.0) ** (2 - power) / ((1 - power) * (2 - power))
    return np.asarray(
        start - y * mean ** (1 - power) / (1 - power) + mean ** (2 - power) / (2 - power)
    )


_SIZED = ("epsilon",)
LOSSES: dict[str, Loss] = {
    "squared_error": Loss(_squared_error, "squared error", whole=True, curvature=2.0, torch="mse"),
    "absolute_error": Loss(
        _epsilon_insensitive, "absolute error", torch="mae", kinked=True, values={"epsilon": 0.0}
    ),
    "huber": Loss(_huber, "Huber loss", parameters=_SIZED),
    "epsilon_insensitive": Loss(
        _epsilon_insensitive, "epsilon-insensitive loss", kinked=True, parameters=_SIZED
    ),
    "squared_epsilon_insensitive": Loss(
        _squared_epsilon_insensitive, "squared epsilon-insensitive loss", parameters=_SIZED
    ),
    "pinball": Loss(_pinball, "pinball loss", kinked=True, parameters=("quantile",)),
    "hinge": Loss(_hinge, "hinge loss", kinked=True),
    "squared_hinge": Loss(_squared_hinge, "squared hinge loss"),
    "modified_huber": Loss(_modified_huber, "modified Huber loss"),
    "perceptron": Loss(_perceptron, "perceptron loss", kinked=True),
    "log_loss": Loss(_log_loss, "log loss", low=0.0, valid="0 <= y <= 1"),
    "cross_entropy": Loss(_multinomial, "cross-entropy", low=0.0),
    "poisson": Loss(_poisson, "half Poisson deviance, log link", valid="y >= 0"),
    "gamma": Loss(_gamma, "half gamma deviance, log link", valid="y > 0"),
}


def loss_of(name: str, model: Any = None) -> Loss:
    """Loss by name, its parameters those of a model, where it has them."""
    if name not in LOSSES:
        raise ValueError(f"Expected a loss among {sorted(LOSSES)}, got {name!r}.")
    loss = LOSSES[name]
    found = [parameter for parameter in loss.parameters if hasattr(model, parameter)]
    return loss.of(**{parameter: float(getattr(model, parameter)) for parameter in found})


def scaled_huber(epsilon: float, scale: float) -> Loss:
    """Huber's loss with the fitted scale, as HuberRegressor minimizes it."""
    values = {"epsilon": epsilon, "scale": scale}
    return Loss(_scaled_huber, "Huber loss times the fitted scale", values=values)


def tweedie(power: float, link: str = "log") -> Loss:
    """Half Tweedie deviance of a mean given by its link; squared error at power 0."""
    squared = power == 0
    if squared and link == "identity":
        return replace(LOSSES["squared_error"], words="squared error, identity link")
    words = "squared error" if squared else f"half Tweedie deviance of power {power:g}"
    return Loss(
        _tweedie,
        f"{words}, {link} link",
        squared,
        values={"power": power, "log": link == "log"},
        valid=None if power <= 0 else "y >= 0" if power < 2 else "y > 0",
    )
