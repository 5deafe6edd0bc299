"""What a spectral filter is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["SpectralFilter"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SpectralFilter:
    """A function f of the eigenvalues s of ``X'X/n``, with ``theta = V f(S) S^-1 V' X'y/n``.

    From another start, ``theta = theta_0 + V f(S) S^-1 V' (X'y/n - X'X/n theta_0)``. Filters are
    made by the functions of this module.

    Attributes
    ----------
    name : str
        The procedure with its arguments.
    response : callable
        Takes ``s``, for a filter that depends on the data also ``V' X'y/n``, and returns ``1 - f``
        and ``f / s``, each without cancellation.
    limit : float
        Eigenvalue from which on the procedure diverges.
    needs_y : bool
        Whether f depends on y; the procedure is then not linear in y.
    drops : bool
        Whether ``f = 0`` means a direction in which the weights are held at the start.

    See Also
    --------
    implicit_penalty : The quadratic penalty that a filter implies for given data.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import gradient_descent
    >>> halved = gradient_descent(lr=0.1, n_steps=5)
    >>> halved.values([0.0, 1.0, 4.0]).round(4), halved.slope_at_zero
    (array([0.    , 0.6723, 0.9997]), 1.0)
    """

    name: str
    response: Callable[..., tuple[Array, Array]] = field(repr=False)
    limit: float = math.inf
    needs_y: bool = False
    drops: bool = False

    def values(self, s: npt.ArrayLike) -> Array:
        """The share f(s) of the least-squares solution that is taken.

        Parameters
        ----------
        s : array-like of shape (p,)
            Eigenvalues of ``X'X/n``.

        Returns
        -------
        values : ndarray of shape (p,)
            ``f(s)``; above 1 where momentum overshoots.
        """
        s, (_, gain) = self._at(s)
        return np.multiply(s, gain, out=np.zeros_like(s), where=s > 0)

    def complement(self, s: npt.ArrayLike) -> Array:
        """What is left, ``1 - f(s)``, without cancellation.

        Parameters
        ----------
        s : array-like of shape (p,)
            Eigenvalues of ``X'X/n``.

        Returns
        -------
        complement : ndarray of shape (p,)
            ``1 - f(s)``.
        """
        return self._at(s)[1][0]

    def penalty(self, s: npt.ArrayLike) -> Array:
        """Eigenvalues ``s (1 - f) / f`` of the implied penalty; ``1 / f'(0)`` at zero.

        For a loss of curvature ``2 s`` along a path, it is the strength of the penalty
        ``lambda |theta - theta_0|^2`` that the procedure stands for there.

        Parameters
        ----------
        s : array-like of shape (p,)
            Eigenvalues of ``X'X/n``.

        Returns
        -------
        eigenvalues : ndarray of shape (p,)
            In the units of L.

        Raises
        ------
        ValueError
            If ``f <= 0`` somewhere.
        """
        s, (residual, gain) = self._at(s)
        if not np.all(gain > 0):
            raise ValueError(
                f"Expected f > 0, got f <= 0 at s = {s[~(gain > 0)].tolist()} under {self.name}: "
                "no finite penalty is minimized there."
            )
        return residual / gain

    @property
    def slope_at_zero(self) -> float:
        """The derivative f'(0).

        Returns
        -------
        slope : float
            One over the penalty in the null space of X.
        """
        return float(self._at([0.0])[1][1][0])

    def _at(self, s: npt.ArrayLike) -> tuple[Array, tuple[Array, Array]]:
        """Checked eigenvalues and the response to them."""
        s = np.atleast_1d(np.asarray(s, dtype=float))
        if self.needs_y:
            raise ValueError(
                f"Expected a filter of the eigenvalues alone, got {self.name}, which depends on "
                "y; ask implicit_penalty(X, filter, y=y)."
            )
        if not np.all(s >= 0):
            raise ValueError(f"Expected eigenvalues s >= 0, got {float(np.min(s))!r}.")
        return s, self.response(s)
