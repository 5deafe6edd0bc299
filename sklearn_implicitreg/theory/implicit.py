"""The quadratic penalty that a spectral filter implies on a linear model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.linalg import null_space

from sklearn_implicitreg.exceptions import (
    IndefinitePenaltyWarning,
    StepSizeWarning,
    warn_user,
)
from sklearn_implicitreg.problem.parameters import checked, instance
from sklearn_implicitreg.theory.inputs import (
    Spectrum,
    as_matrix,
    as_vector,
    column_notes,
    decompose,
)
from sklearn_implicitreg.theory.spectral import SpectralFilter

Array = npt.NDArray[np.float64]
FILTER = instance("a filter such as gradient_descent(lr, n_steps)", SpectralFilter)
_ROUNDING = 1e-12  # of 1 - f, where f = 1 is meant
_ARRIVED = 1e-9  # of 1 - f of conjugate gradients, which gather rounding on the way


@dataclass(frozen=True, eq=False)
class ImplicitPenalty:
    """A penalty ``R = (theta - start)' Lambda (theta - start)`` that a procedure implies.

    The weights that the procedure gives minimize ``L + R``, for every y (conjugate gradients: for
    the given y). ``Lambda`` is ``V diag(eigenvalues) V'`` on the space of the eigenvectors V and
    ``null_eigenvalue`` times the identity on its orthogonal complement.

    Attributes
    ----------
    filter : SpectralFilter
        The procedure.
    eigenvalues, eigenvectors : ndarray of shape (r,) and (p, r)
        Penalty along a basis of the row space of X, by decreasing eigenvalue of ``X'X/n``.
    null_eigenvalue : float
        Penalty on the null space of X, ``1 / f'(0)``; 0 where there is none.
    constraint, start : ndarray of shape (p, q) and (p,)
        Orthonormal directions in which the weights are held at the start; the start.
    notes : tuple of str
        On constant columns, a null space, an indefinite ``Lambda``.
    gain, spectrum, y : ndarray of shape (r,), Spectrum, ndarray of shape (n,)
        ``f / s``, share of the gradient that the weights move by; decomposed data; given target.

    See Also
    --------
    implicit_penalty, kernel_penalty : Make it from data or a kernel matrix.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import implicit_penalty, ridge
    >>> X, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([1.0, 1.0])
    >>> penalty = implicit_penalty(X, ridge(0.5), y=y)
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
        """The symmetric matrix Lambda of shape (p, p), in the units of L."""
        p, rank = self.eigenvectors.shape
        matrix = (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T
        if rank < p:
            rest = np.eye(p) - self.eigenvectors @ self.eigenvectors.T
            matrix += self.null_eigenvalue * rest
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
            They minimize ``L + R``, under the constraint if there is one.

        Raises
        ------
        ValueError
            If there is no y, or the filter was made for another y.
        """
        target = self.y if y is None else as_vector("y", y, self.spectrum.data.shape[1])
        if target is None:
            raise ValueError("Expected y, here or in implicit_penalty(X, filter, y=y), got none.")
        if self.filter.needs_y and not (self.y is not None and np.array_equal(target, self.y)):
            raise ValueError(
                f"Expected the y that {self.filter.name} was made for, got another: this filter "
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
        along, rest = self._parts(theta)
        return float(along @ (self.eigenvalues * along) + self.null_eigenvalue * rest @ rest)

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
        along, rest = self._parts(theta)
        penalized = self.eigenvectors @ (self.eigenvalues * along) + self.null_eigenvalue * rest
        return np.asarray(2 * penalized)

    def _parts(self, theta: npt.ArrayLike) -> tuple[Array, Array]:
        """Distance from the start: along the eigenvectors, and what is orthogonal to them."""
        moved = as_vector("theta", theta, len(self.start)) - self.start
        along = self.eigenvectors.T @ moved
        return along, moved - self.eigenvectors @ along


@checked(filter=FILTER)
def implicit_penalty(
    X: npt.ArrayLike,
    filter: SpectralFilter,
    *,
    y: npt.ArrayLike | None = None,
    start: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
) -> ImplicitPenalty:
    """The one quadratic penalty that, added to L, makes a filter's weights the minimizer.

    With ``X'X/n = V S V'``, ``theta = V f(S) S^-1 V' X'y/n`` minimizes for every y ``L + theta'
    Lambda theta`` with ``L = (1/n) |y - X theta|^2`` and ``Lambda = V diag(s (1 - f) / f) V'``.

    Parameters
    ----------
    X : array-like of shape (n, p)
        Design, taken as it is: center X and y to leave an intercept free.
    filter : SpectralFilter
        Such as ``gradient_descent(lr, n_steps)``.
    y, start : array-like of shape (n,) and (p,), optional
        Target, for conjugate gradients; where the procedure begins, by default at zero.
    sample_weight : array-like of shape (n,), optional
        Weights of the rows; L is divided by their sum.

    Returns
    -------
    penalty : ImplicitPenalty
        With the matrix, its eigenvalues, and the weights for any y.

    Raises
    ------
    ValueError
        If ``f <= 0`` in some direction (no minimum), or the filter needs y and there is none.

    Warns
    -----
    IndefinitePenaltyWarning
        If ``f > 1`` in some direction, where the penalty is negative; ``L + R`` is still convex.
    StepSizeWarning
        If the step size is so large that the iteration diverges.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import gradient_descent, implicit_penalty
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(50, 3)), rng.normal(size=50)
    >>> penalty = implicit_penalty(X, gradient_descent(lr=0.1, n_steps=7), y=y)
    >>> theta = penalty.theta()
    >>> slope = 2 * X.T @ (X @ theta - y) / 50 + penalty.gradient(theta)
    >>> bool(np.all(np.abs(slope) < 1e-14))
    True
    """
    X = as_matrix("X", X)
    spectrum = decompose(X, sample_weight)
    return filtered(spectrum, filter, y, start, column_notes(X))


def filtered(
    spectrum: Spectrum,
    filter: SpectralFilter,
    y: npt.ArrayLike | None,
    start: npt.ArrayLike | None,
    notes: list[str],
) -> ImplicitPenalty:
    """The penalty of a filter on decomposed data."""
    p, rank = spectrum.vectors.shape
    notes = list(notes)
    begin = np.zeros(p) if start is None else as_vector("start", start, p)
    target = None if y is None else as_vector("y", y, spectrum.data.shape[1])
    s = np.append(spectrum.s, 0.0) if rank < p else spectrum.s
    if filter.needs_y:
        if target is None:
            raise ValueError(f"Expected y for {filter.name}, whose filter depends on it, got none.")
        towards = spectrum.gradient(target, begin)
        residual, gain = filter.response(s, np.append(towards, np.zeros(s.size - rank)))
        notes.append(f"The penalty of {filter.name} holds for this y only.")
        if np.max(np.abs(residual[:rank])) < _ARRIVED:
            notes.append("It has reached least squares, and its penalty is zero to rounding.")
    else:
        residual, gain = filter.response(s)
    constraint, penalty = np.empty((p, 0)), np.zeros(s.size)
    if filter.drops:
        constraint = null_space(spectrum.vectors[:, gain[:rank] > 0].T)
        notes.append(f"The weights are held at the start in {constraint.shape[1]} directions.")
    else:
        check_gain(filter, s, residual, gain)
        notes += _indefinite(filter, residual)
        penalty = residual / gain
        if rank < p:
            notes.append(
                f"The data have rank {rank} of {p}: the eigenvectors span their row space. Outside "
                f"it the weights stay at the start, and the penalty is 1/f'(0) = {penalty[-1]:.4g}."
            )
    return ImplicitPenalty(
        filter,
        penalty[:rank] * spectrum.scale,
        spectrum.vectors,
        float(penalty[-1]) if rank < p else 0.0,
        constraint,
        begin,
        tuple(notes),
        gain[:rank],
        spectrum,
        target,
    )


def check_gain(filter: SpectralFilter, s: Array, residual: Array, gain: Array) -> None:
    """Raise ValueError if f is not positive and finite; warn of steps that diverge."""
    bad = np.flatnonzero(~(gain > 0) | ~np.isfinite(residual))
    diverges = float(s[0]) >= filter.limit
    large = f"its steps diverge where s >= {filter.limit:.4g}, and the largest s is {s[0]:.4g}"
    if bad.size:
        shown = ", ".join(f"{i} (s = {s[i]:.4g}, f = {s[i] * gain[i]:.4g})" for i in bad[:5])
        more = f" and {bad.size - 5} more" * (bad.size > 5)
        raise ValueError(
            f"Expected 0 < f < inf, got under {filter.name} in the directions {shown}{more}: the "
            "weights are a stationary point of L + R there, not a minimum. Take another number of "
            f"steps, or a smaller step size{'; ' + large if diverges else ''}."
        )
    if diverges:
        warn_user(f"{filter.name}: {large}.", StepSizeWarning)


def _indefinite(filter: SpectralFilter, residual: Array) -> list[str]:
    over = np.flatnonzero(residual < -_ROUNDING)
    if not over.size:
        return []
    note = (
        f"Lambda indefinite, L + R still convex: under {filter.name} f reaches "
        f"{1 - float(np.min(residual)):.4g} > 1, in {over.size} directions."
    )
    warn_user(note, IndefinitePenaltyWarning)
    return [note]
