"""Losses of residuals as functions of a linear predictor, in NumPy.

Every function takes the predictor ``eta`` and the target ``y`` of one shape, ``(n,)`` or
``(n, K)``, and answers elementwise. ``eta_size`` is the size of the summands that made ``eta``
(default ``|eta|``); from it follows how far the derivative is from rounding error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "KINK_TOL",
    "Array",
    "RowLoss",
    "RowLosses",
    "absolute",
    "epsilon_insensitive",
    "huber",
    "rows_of",
    "scaled_huber",
    "size_of",
    "squared_epsilon_insensitive",
    "squared_error",
]

Array = NDArray[np.float64]

# Distance to a kink, relative to the numbers compared, that counts as lying on it.
KINK_TOL = 1e-8


@dataclass(frozen=True)
class RowLosses:
    """Losses of rows and what an adapter needs to know of them.

    Attributes
    ----------
    value : ndarray of shape (n,) or (n, K)
        Loss, elementwise; (n, 1) for a loss that couples the K columns.
    derivative : ndarray shaped like eta
        Derivative with respect to ``eta``.
    size : ndarray shaped like eta
        Size of the summands of ``derivative``: machine epsilon times this is its rounding error.
    kink : ndarray of bool, shaped like eta
        Where the loss has no derivative; one of the subgradients stands in ``derivative``.
    """

    value: Array
    derivative: Array
    size: Array
    kink: NDArray[np.bool_]


RowLoss = Callable[[Array, Array, Array | None], RowLosses]


def rows_of(value: Any, derivative: Any, size: Any, kink: Any = None) -> RowLosses:
    """Losses of rows from arrays of any float type.

    Parameters
    ----------
    value, derivative, size : array-like
        As in `RowLosses`.
    kink : array-like of bool, optional
        As in `RowLosses`; none by default.

    Returns
    -------
    RowLosses
        In float64.

    Examples
    --------
    >>> rows_of([1.0], [2.0], [2.0]).kink.tolist()
    [False]
    """
    slope = np.asarray(derivative, dtype=np.float64)
    at_kink = np.zeros(slope.shape, dtype=bool) if kink is None else np.asarray(kink)
    return RowLosses(
        np.asarray(value, dtype=np.float64), slope, np.asarray(size, dtype=np.float64), at_kink
    )


def _size(eta: Array, y: Array, eta_size: Array | None) -> Array:
    """Size of the summands of ``eta - y``."""
    return np.asarray((np.abs(eta) if eta_size is None else eta_size) + np.abs(y))


def size_of(eta: Array, eta_size: Array | None) -> Array:
    """Size of the summands of ``eta``: as given, or ``|eta|``.

    Parameters
    ----------
    eta : ndarray
        Predictor.
    eta_size : ndarray shaped like eta, or None
        Size, if known.

    Returns
    -------
    ndarray shaped like eta

    Examples
    --------
    >>> import numpy as np
    >>> size_of(np.array([-2.0]), None).tolist()
    [2.0]
    """
    return np.abs(eta) if eta_size is None else eta_size


def squared_error(eta: Array, y: Array, eta_size: Array | None = None) -> RowLosses:
    """Squared error without its 1/2: ``(eta - y)^2``.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Predictor and target.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.

    Returns
    -------
    RowLosses
        Elementwise; several outputs are for the caller to sum.

    Examples
    --------
    >>> import numpy as np
    >>> float(squared_error(np.array([3.0]), np.array([1.0])).derivative[0])
    4.0
    """
    r = eta - y
    return rows_of(r * r, 2 * r, 2 * _size(eta, y, eta_size))


def absolute(
    eta: Array, y: Array, eta_size: Array | None = None, *, kink_tol: float = KINK_TOL
) -> RowLosses:
    """Absolute error ``|eta - y|``, with a kink at 0.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Predictor and target.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.
    kink_tol : float
        Distance to the kink, relative to ``|eta| + |y|``, that counts as lying on it.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> rows = absolute(np.array([3.0, 1.0]), np.array([1.0, 1.0]))
    >>> rows.derivative.tolist(), rows.kink.tolist()
    ([1.0, 0.0], [False, True])
    """
    return epsilon_insensitive(eta, y, eta_size, epsilon=0.0, kink_tol=kink_tol)


def epsilon_insensitive(
    eta: Array,
    y: Array,
    eta_size: Array | None = None,
    *,
    epsilon: float,
    kink_tol: float = KINK_TOL,
) -> RowLosses:
    """Loss of support vector regression, ``max(0, |eta - y| - epsilon)``.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Predictor and target.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.
    epsilon : float
        Half-width of the tube without loss.
    kink_tol : float
        Distance to a kink, relative to ``|eta| + |y|``, that counts as lying on it.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> epsilon_insensitive(np.array([3.0]), np.array([1.0]), epsilon=0.5).value.tolist()
    [1.5]
    """
    r = eta - y
    outside = np.abs(r) - epsilon
    near = np.abs(outside) <= kink_tol * (np.abs(eta) + np.abs(y) + epsilon)
    slope = np.sign(r) * (outside > 0)
    return rows_of(np.maximum(outside, 0.0), slope, np.ones_like(r), near)


def squared_epsilon_insensitive(
    eta: Array, y: Array, eta_size: Array | None = None, *, epsilon: float
) -> RowLosses:
    """Smooth loss of support vector regression, ``max(0, |eta - y| - epsilon)^2``.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Predictor and target.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.
    epsilon : float
        Half-width of the tube without loss.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> squared_epsilon_insensitive(np.array([3.0]), np.array([1.0]), epsilon=0.5).value.tolist()
    [2.25]
    """
    r = eta - y
    outside = np.maximum(np.abs(r) - epsilon, 0.0)
    return rows_of(
        outside**2,
        2 * np.sign(r) * outside,
        2 * (_size(eta, y, eta_size) + epsilon) * (outside > 0),
    )


def huber(
    eta: Array, y: Array, eta_size: Array | None = None, *, epsilon: float = 1.0
) -> RowLosses:
    """Huber's loss as SGD and torch have it: ``r^2 / 2``, or ``epsilon |r| - epsilon^2 / 2``.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Predictor and target.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.
    epsilon : float
        Residual at which the loss turns linear.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> huber(np.array([3.0]), np.array([1.0]), epsilon=0.5).value.tolist()
    [0.875]
    """
    r = eta - y
    inside = np.minimum(np.abs(r), epsilon)
    slope = np.clip(r, -epsilon, epsilon)
    size = np.where(np.abs(r) < epsilon, _size(eta, y, eta_size), epsilon)
    return rows_of(inside * (np.abs(r) - inside / 2), slope, size)


def scaled_huber(
    eta: Array, y: Array, eta_size: Array | None = None, *, epsilon: float, scale: float
) -> RowLosses:
    """Huber's concomitant loss ``s + s H(r / s)`` at the fitted scale s (Huber 1981, 7.7).

    ``H(z)`` is ``z^2`` for ``|z| < epsilon`` and ``2 epsilon |z| - epsilon^2`` beyond, as
    `sklearn.linear_model.HuberRegressor` has it.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Predictor and target.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.
    epsilon : float
        Scaled residual at which the loss turns linear.
    scale : float
        The model's ``scale_``.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> scaled_huber(np.array([3.0]), np.array([1.0]), epsilon=9.0, scale=2.0).value.tolist()
    [4.0]
    """
    part = huber(eta / scale, y / scale, None, epsilon=epsilon)
    size = 2 * np.minimum(_size(eta, y, eta_size) / scale, np.maximum(part.size, epsilon))
    return rows_of(scale * (1 + 2 * part.value), 2 * part.derivative, size)
