"""Log losses and deviances as functions of a linear predictor, in NumPy.

The functions take and answer the same as those of `linear_losses`.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logsumexp, xlogy

from sklearn_implicitreg.adapters.linear.losses import Array, RowLosses, rows_of, size_of

__all__ = ["gamma", "log_loss", "multinomial", "poisson", "tweedie"]


def log_loss(eta: Array, y: Array, eta_size: Array | None = None) -> RowLosses:
    """Binary log loss ``log(1 + exp(eta)) - y eta`` of targets 0 and 1.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Log-odds and target in [0, 1].
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> log_loss(np.zeros(1), np.ones(1)).derivative.tolist()
    [-0.5]
    """
    up, down = expit(eta), expit(-eta)
    value = np.logaddexp(0.0, np.where(y > 0.5, -eta, eta)) + np.where(y > 0.5, 1 - y, -y) * eta
    # Not p - y: 1 - p loses all its digits where the model is sure.
    slope = (1 - y) * up - y * down
    return rows_of(value, slope, (1 - y) * up + y * down + up * down * size_of(eta, eta_size))


def multinomial(eta: Array, y: Array, eta_size: Array | None = None) -> RowLosses:
    """Cross-entropy of a softmax over K columns.

    Parameters
    ----------
    eta : ndarray of shape (n, K)
        Logits.
    y : ndarray of shape (n, K)
        One-hot target.
    eta_size : ndarray of shape (n, K), optional
        Size of the summands of ``eta``.

    Returns
    -------
    RowLosses
        ``value`` has shape (n, 1).

    Examples
    --------
    >>> import numpy as np
    >>> multinomial(np.zeros((1, 2)), np.array([[1.0, 0.0]])).derivative.tolist()
    [[-0.5, 0.5]]
    """
    top = np.max(eta, axis=1, keepdims=True)
    log_p = eta - top - logsumexp(eta - top, axis=1, keepdims=True)
    p = np.exp(log_p)
    # Not p - 1 in the column of the class: it loses all its digits where the model is sure.
    others = np.sum(p * (1 - y), axis=1, keepdims=True)
    value = -np.sum(np.where(y > 0, y * log_p, 0.0), axis=1, keepdims=True)
    slope = np.where(y == 1, -others, p - y)
    sizes = size_of(eta, eta_size)
    spread = p * (1 - p) * sizes + p * ((p * sizes).sum(axis=1, keepdims=True) - p * sizes)
    return rows_of(value, slope, p + y + spread)


def poisson(eta: Array, y: Array, eta_size: Array | None = None) -> RowLosses:
    """Half Poisson deviance ``y log(y / m) - y + m`` of the mean ``m = exp(eta)``.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Log of the mean, and counts.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> poisson(np.zeros(1), np.array([3.0])).derivative.tolist()
    [-2.0]
    """
    mean = np.exp(eta)
    value = xlogy(y, y) - y * eta - y + mean
    return rows_of(value, mean - y, mean * (1 + size_of(eta, eta_size)) + np.abs(y))


def gamma(eta: Array, y: Array, eta_size: Array | None = None) -> RowLosses:
    """Half gamma deviance ``log(m / y) + y / m - 1`` of the mean ``m = exp(eta)``.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Log of the mean, and positive targets.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> gamma(np.zeros(1), np.array([3.0])).derivative.tolist()
    [-2.0]
    """
    ratio = y * np.exp(-eta)
    size = 1 + ratio * (1 + size_of(eta, eta_size))
    return rows_of(eta - np.log(y) + ratio - 1, 1 - ratio, size)


def tweedie(
    eta: Array,
    y: Array,
    eta_size: Array | None = None,
    *,
    power: float,
    link: str = "log",
) -> RowLosses:
    """Half Tweedie deviance of a mean given by its link; squared error at power 0.

    Jorgensen (1987). At power 0 the 1/2 of the squared error is left out, as everywhere.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Predictor and target.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.
    power : float
        Power of the variance function: 0 normal, 1 Poisson, 2 gamma, 3 inverse Gaussian.
    link : {"log", "identity"}
        Whether ``eta`` is the log of the mean or the mean.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> tweedie(np.zeros(1), np.array([3.0]), power=1.5).derivative.tolist()
    [-2.0]
    """
    log = link == "log"
    mean = np.exp(eta) if log else eta
    chain = mean if log else np.ones_like(mean)  # d mean / d eta
    error = mean * size_of(eta, eta_size) if log else size_of(eta, eta_size)
    slope_scale = (2.0 if power == 0 else 1.0) * chain * mean ** (-float(power))
    size = np.abs(slope_scale) * (np.abs(mean) + np.abs(y) + error)
    return rows_of(_half_deviance(mean, y, power), slope_scale * (mean - y), size)


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
