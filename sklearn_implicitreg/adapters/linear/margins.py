"""Losses of margins as functions of a linear predictor, in NumPy.

The functions take and answer the same as those of `linear_losses`; targets are -1 and +1.
"""

from __future__ import annotations

import numpy as np

from sklearn_implicitreg.adapters.linear.losses import (
    KINK_TOL,
    Array,
    RowLosses,
    rows_of,
    size_of,
)

__all__ = ["hinge", "modified_huber", "perceptron", "squared_hinge"]


def hinge(
    eta: Array,
    y: Array,
    eta_size: Array | None = None,
    *,
    threshold: float = 1.0,
    kink_tol: float = KINK_TOL,
) -> RowLosses:
    """Hinge loss ``max(0, threshold - y eta)`` of targets -1 and +1.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Decision value and target, -1 or +1.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.
    threshold : float
        Margin at which the loss ends; 0 is the perceptron's.
    kink_tol : float
        Distance to the kink, relative to ``threshold + |eta|``, that counts as lying on it.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> rows = hinge(np.array([0.5, 1.0]), np.array([1.0, 1.0]))
    >>> rows.value.tolist(), rows.kink.tolist()
    ([0.5, 0.0], [False, True])
    """
    z = threshold - y * eta
    near = np.abs(z) <= kink_tol * (threshold + np.abs(eta))
    return rows_of(np.maximum(z, 0.0), np.where(z > 0, -y, 0.0), np.ones_like(z), near)


def perceptron(
    eta: Array, y: Array, eta_size: Array | None = None, *, kink_tol: float = KINK_TOL
) -> RowLosses:
    """Loss of the perceptron, ``max(0, -y eta)``, of targets -1 and +1.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Decision value and target, -1 or +1.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``; what is below ``kink_tol`` of it lies on the kink.
    kink_tol : float
        Distance to the kink, relative to ``eta_size``, that counts as lying on it.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> perceptron(np.array([-2.0]), np.array([1.0])).value.tolist()
    [2.0]
    """
    rows = hinge(eta, y, eta_size, threshold=0.0, kink_tol=kink_tol)
    near = np.abs(eta) <= kink_tol * size_of(eta, eta_size)
    return rows_of(rows.value, rows.derivative, rows.size, near)


def squared_hinge(eta: Array, y: Array, eta_size: Array | None = None) -> RowLosses:
    """Squared hinge loss ``max(0, 1 - y eta)^2`` of targets -1 and +1.

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Decision value and target, -1 or +1.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> squared_hinge(np.array([-1.0]), np.array([1.0])).derivative.tolist()
    [-4.0]
    """
    z = np.maximum(1 - y * eta, 0.0)
    return rows_of(z * z, -2 * y * z, 2 * (1 + size_of(eta, eta_size)) * (z > 0))


def modified_huber(eta: Array, y: Array, eta_size: Array | None = None) -> RowLosses:
    """Squared hinge loss that goes on as ``-4 y eta`` below the margin -1 (Zhang 2004).

    Parameters
    ----------
    eta, y : ndarray of shape (n,) or (n, K)
        Decision value and target, -1 or +1.
    eta_size : ndarray shaped like eta, optional
        Size of the summands of ``eta``.

    Returns
    -------
    RowLosses
        Elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> modified_huber(np.array([-3.0, 0.0]), np.array([1.0, 1.0])).value.tolist()
    [12.0, 1.0]
    """
    z = y * eta
    square = squared_hinge(eta, y, eta_size)
    far = z < -1
    return rows_of(
        np.where(far, -4 * z, square.value),
        np.where(far, -4 * y, square.derivative),
        np.where(far, 4.0, square.size),
    )
