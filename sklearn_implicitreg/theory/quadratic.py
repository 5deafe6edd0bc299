"""A quadratic penalty with what made it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sklearn_implicitreg.theory.checks import as_vector
from sklearn_implicitreg.theory.spectral import SpectralFilter
from sklearn_implicitreg.theory.spectrum import Spectrum

__all__ = ["ImplicitPenalty"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ImplicitPenalty:
    """A penalty ``R = (theta - start)' Lambda (theta - start)`` that a procedure implies.

    The weights that the procedure gives minimize ``L + R``, for every y (conjugate gradients: for
    the given y). ``Lambda`` is ``V diag(eigenvalues) V'`` on the space of the eigenvectors V and
    ``null_eigenvalue`` times the identity beside it.

    Attributes
    ----------
    filter : SpectralFilter
        The procedure.
    eigenvalues : ndarray of shape (r,)
        Penalty along each eigenvector, by decreasing eigenvalue of ``X'X/n``; in the units of L.
    eigenvectors : ndarray of shape (p, r)
        Orthonormal basis of the row space of X, of dimension r.
    null_eigenvalue : float
        Penalty on the null space of X, ``1 / f'(0)``; 0 where there is none.
    constraint : ndarray of shape (p, q)
        Orthonormal directions in which the weights are held at the start: ``constraint' (theta -
        start) = 0``. Empty but for principal components.
    start : ndarray of shape (p,)
        Where the procedure begins.
    notes : tuple of str
        What to know: columns that are constant, a null space, an indefinite ``Lambda``.
    gain : ndarray of shape (r,)
        ``f / s``, share of the gradient at the start that the weights move by.
    spectrum : Spectrum
        The decomposed data.
    y : ndarray of shape (n,), optional
        Target that was given.

    See Also
    --------
    implicit_penalty : Makes it from data and a filter.
    kernel_penalty : Makes it from a kernel matrix and a filter.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_implicitreg.theory import implicit_penalty, ridge
    >>> X, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([1.0, 1.0])
    >>> penalty = implicit_penalty(X, ridge(0.5), y=y)
    >>> penalty.matrix.round(12)
    array([[0.5, 0. ],
           [0. , 0.5]])
    >>> theta = penalty.theta()
    >>> theta.round(4), round(penalty.value(theta), 4)
    (array([0.5, 0.4]), 0.205)
    """

    filter: SpectralFilter
    eigenvalues: Array
    eigenvectors: Array
    null_eigenvalue: float
    constraint: Array
    start: Array
    notes: tuple[str, ...]
    gain: Array = field(repr=False)
    spectrum: Spectrum = field(repr=False)
    y: Array | None = field(default=None, repr=False)

    @property
    def matrix(self) -> Array:
        """The matrix Lambda.

        Returns
        -------
        matrix : ndarray of shape (p, p)
            Symmetric, in the units of L.
        """
        p, rank = self.eigenvectors.shape
        matrix = (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T
        if rank < p:
            beside = np.eye(p) - self.eigenvectors @ self.eigenvectors.T
            matrix += self.null_eigenvalue * beside
        return np.asarray((matrix + matrix.T) / 2)

    def theta(self, y: npt.ArrayLike | None = None) -> Array:
        """Weights that the procedure gives.

        Parameters
        ----------
        y : array-like of shape (n,), optional
            Target; by default the one given with X.

        Returns
        -------
        theta : ndarray of shape (p,)
            They minimize ``L + R``, under the constraint where there is one.

        Raises
        ------
        ValueError
            If there is no y, or another one than the filter was made for.
        """
        target = self.y if y is None else as_vector("y", y, self.spectrum.data.shape[1])
        if target is None:
            raise ValueError("Expected y, here or in implicit_penalty(X, filter, y=y), got none.")
        if self.filter.needs_y and not (self.y is not None and np.array_equal(target, self.y)):
            raise ValueError(
                f"Expected the y that {self.filter.name} was asked for, got another: this filter "
                "depends on y. Call implicit_penalty again with the new one."
            )
        return self.start + self.eigenvectors @ (
            self.gain * self.spectrum.gradient(target, self.start)
        )

    def value(self, theta: npt.ArrayLike) -> float:
        """Value of R.

        Parameters
        ----------
        theta : array-like of shape (p,)
            Weights.

        Returns
        -------
        value : float
            ``(theta - start)' Lambda (theta - start)``.
        """
        moved = as_vector("theta", theta, len(self.start)) - self.start
        along = self.eigenvectors.T @ moved
        beside = moved - self.eigenvectors @ along
        return float(along @ (self.eigenvalues * along) + self.null_eigenvalue * beside @ beside)

    def gradient(self, theta: npt.ArrayLike) -> Array:
        """Gradient of R.

        Parameters
        ----------
        theta : array-like of shape (p,)
            Weights.

        Returns
        -------
        gradient : ndarray of shape (p,)
            ``2 Lambda (theta - start)``.
        """
        moved = as_vector("theta", theta, len(self.start)) - self.start
        along = self.eigenvectors.T @ moved
        beside = moved - self.eigenvectors @ along
        return np.asarray(
            2 * (self.eigenvectors @ (self.eigenvalues * along) + self.null_eigenvalue * beside)
        )
