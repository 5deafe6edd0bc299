"""Penalties ``theta' Q theta`` with unknown Q: full symmetric or diagonal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Real

import numpy as np

from sklearn_implicitreg.penalties.structured import (
    Array,
    ScalarNames,
    Structured,
    StructuredPenalty,
    StructuredSolution,
    TriangleNames,
    checked_endpoints,
    unexplained,
)
from sklearn_implicitreg.penalties.symmetric import SymmetricFit, solve_symmetric
from sklearn_implicitreg.problem import Problem, Sampling

__all__ = ["Diagonal", "Quadratic"]

_EPS = float(np.finfo(np.float64).eps)
_UNSHRUNK = 1e-8  # share of the way to the multiple that is not worth a note


class Diagonal(Structured):
    """``R = sum_j q_j theta_j^2``: one coefficient per parameter, in closed form.

    One endpoint gives ``q_j = -grad_j / (2 theta_j)``, several the least-squares value per
    coordinate. A coordinate that is zero at every endpoint has no equation: its coefficient
    is 0 and the summary lists it as not determined.

    Examples
    --------
    >>> import numpy as np
    >>> thetas = np.array([[1.0], [2.0], [0.0]])
    >>> found = Diagonal().solve(thetas, 2 * np.array([[3.0], [1.0], [9.0]]) * thetas)
    >>> found.coef.tolist(), found.dependent
    ([3.0, 1.0, 0.0], ('diagonal[theta[2]]',))
    """

    def solve(
        self,
        thetas: Array,
        targets: Array,
        problems: Sequence[Problem] | None = None,
        *,
        confidence_level: float = 0.95,
        sampling: Sampling = "data sets",
    ) -> StructuredSolution:
        """Least squares, coordinate by coordinate.

        Parameters
        ----------
        thetas : ndarray of shape (p, M)
            Parameters in scope of each endpoint.
        targets : ndarray of shape (p, M)
            Minus the gradients of the mean loss there.
        problems : sequence of M Problem, optional
            For the names of the parameters.
        confidence_level, sampling
            Not used: the family has no intervals.

        Returns
        -------
        StructuredSolution

        Raises
        ------
        ValueError
            If the arrays are not finite or do not have the same shape.
        """
        thetas, targets, shapes = checked_endpoints(thetas, targets, problems)
        names = ScalarNames(shapes, "diagonal[{}]")
        largest = np.abs(thetas).max(axis=1)
        used = largest > 0
        unit = thetas / np.where(used, largest, 1.0)[:, None]
        coef = np.zeros(len(thetas))
        squares = 2 * largest[used] * np.square(unit[used]).sum(axis=1)
        coef[used] = (unit[used] * targets[used]).sum(axis=1) / squares
        penalty = StructuredPenalty(coef, shapes)
        fitted = penalty.gradient(thetas)
        zero = tuple(names[int(j)] for j in np.flatnonzero(~used))
        notes = [f"{unexplained(targets, fitted):.2g} of the squared gradient is left over"]
        if zero:
            notes.append(
                f"{len(zero)} parameters are zero at every endpoint: they have no equation"
            )
        return StructuredSolution(
            coef=coef,
            term_names=names,
            fitted=fitted,
            rank=int(used.sum()),
            n_unknowns=len(coef),
            n_equations=int(thetas.size),
            conf_int=None,
            dependent=zero,
            notes=tuple(notes),
            penalty=penalty,
        )


class Quadratic(Structured):
    """``R = theta' Q theta`` with a full symmetric Q, from one or many endpoints.

    ``coef_`` is the upper triangular matrix row by row; the matrix is ``penalty_.matrix_``. As many
    independent endpoints as parameters determine it; with m fewer the equations determine
    ``m p - m (m - 1) / 2`` of the ``p (p + 1) / 2`` numbers, and the answer is the one of
    minimum Frobenius norm.

    Parameters
    ----------
    psd : bool, default=False
        Minimize over positive semi-definite matrices. What the endpoints leave open is then
        the smallest that keeps it semi-definite.
    shrinkage : {None, "identity"} or float, default=None
        ``"identity"`` shrinks towards the best multiple of the identity, each entry by how
        well the endpoints determine it against the spread of what is left over: for endpoints
        that differ by resampling one data set, of whose n rows at most n/p count as independent.
        Endpoints that one matrix fits exactly are not shrunk. It helps a matrix that is near
        such a multiple, and can cost one that is far from it. A float between 0 and 1 is the
        weight of that multiple. With ``psd`` the multiple is not negative.
    normalize : bool, default=False
        Divide the equations of each endpoint by the norm of its parameters: for endpoints of
        different size whose matrices differ somewhat, so that all count alike.

    See Also
    --------
    sklearn_implicitreg.penalties.symmetric.solve_symmetric : The formulas.

    Examples
    --------
    >>> import numpy as np
    >>> Q = np.array([[2.0, 1.0], [1.0, 3.0]])
    >>> thetas = np.array([[1.0, 0.0], [1.0, 1.0]])
    >>> found = Quadratic().solve(thetas, 2 * Q @ thetas)
    >>> found.penalty.matrix_.round(12).tolist(), list(found.term_names)[1], found.rank
    ([[2.0, 1.0], [1.0, 3.0]], 'q[theta[0],theta[1]]', 3)
    """

    def __init__(
        self,
        psd: bool = False,
        shrinkage: str | float | None = None,
        normalize: bool = False,
    ):
        self.psd = psd
        self.shrinkage = shrinkage
        self.normalize = normalize

    def solve(
        self,
        thetas: Array,
        targets: Array,
        problems: Sequence[Problem] | None = None,
        *,
        confidence_level: float = 0.95,
        sampling: Sampling = "data sets",
    ) -> StructuredSolution:
        """Least squares over symmetric matrices.

        Parameters
        ----------
        thetas : ndarray of shape (p, M)
            Parameters in scope of each endpoint.
        targets : ndarray of shape (p, M)
            Minus the gradients of the mean loss there.
        problems : sequence of M Problem, optional
            For the names of the parameters and the rounding unit of the gradients.
        confidence_level, sampling
            Not used: the family has no intervals.

        Returns
        -------
        StructuredSolution

        Raises
        ------
        ValueError
            If the arrays are not finite or do not have the same shape, or ``shrinkage`` is
            not one of its values.
        """
        self._check()
        thetas, targets, shapes = checked_endpoints(thetas, targets, problems)
        fit = self._fit(thetas, targets / 2, problems or ())
        p = len(thetas)
        penalty = StructuredPenalty(fit.matrix, shapes)
        fitted = penalty.gradient(thetas)
        names = TriangleNames(ScalarNames(shapes))
        open_part = f"q on the {p - fit.n_independent} directions that no endpoint has"
        return StructuredSolution(
            coef=fit.matrix[np.triu_indices(p)],
            term_names=names,
            fitted=fitted,
            rank=fit.rank,
            n_unknowns=len(names),
            n_equations=int(thetas.size),
            conf_int=None,
            dependent=(open_part,) if fit.n_independent < p else (),
            notes=self._notes(fit, p, thetas.shape[1], unexplained(targets, fitted)),
            penalty=penalty,
        )

    def _fit(self, thetas: Array, rhs: Array, problems: Sequence[Problem]) -> SymmetricFit:
        """The matrix, the endpoints as they are or of norm one."""
        if self.normalize:
            norms = np.linalg.norm(thetas, axis=0)
            norms[norms == 0] = 1.0
            thetas, rhs = thetas / norms, rhs / norms
        pull = float(self.shrinkage) if isinstance(self.shrinkage, Real) else self.shrinkage
        eps = max((problem.eps for problem in problems), default=_EPS)
        n_rows = None
        if pull == "identity":
            n_rows = max((problem.n_rows or 0 for problem in problems), default=0) or None
        return solve_symmetric(thetas, rhs, psd=self.psd, shrinkage=pull, eps=eps, n_rows=n_rows)

    def _check(self) -> None:
        """Raise ValueError if shrinkage is not one of its values."""
        value = self.shrinkage
        if value is None or value == "identity":
            return
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ValueError(
                "Expected shrinkage None, 'identity' or a weight from 0 to 1, got "
                f"{self.shrinkage!r}."
            )

    def _notes(self, fit: SymmetricFit, p: int, n_endpoints: int, share: float) -> tuple[str, ...]:
        """Notes of the summary."""
        m = fit.n_independent
        notes = [
            f"{m} independent endpoints determine {fit.rank} of {p * (p + 1) // 2} numbers "
            "(m p - m (m - 1) / 2)"
        ]
        if m < p:
            notes.append(
                f"not identifiable below {p} independent endpoints: where they leave it open the "
                f"matrix is {self._where_open(fit)}"
            )
        if n_endpoints > 1:
            notes.append(
                f"one matrix for all endpoints: Theta' B is symmetric up to {fit.asymmetry:.1e} "
                f"of its norm, and {share:.1e} of the squared gradient is left over"
            )
        part = "the determined part of the matrix" if m < p else "the matrix"
        off = "for gradients off by rounding and three times what is left over"
        if fit.error_bound < 1:
            notes.append(f"relative error of {part} up to {fit.error_bound:.1e}, {off}")
        else:
            notes.append(f"no digit of {part} is guaranteed, {off}: the endpoints are too alike")
        return (*notes, *self._option_notes(fit))

    def _where_open(self, fit: SymmetricFit) -> str:
        """The matrix where no endpoint determines it."""
        if self.shrinkage == "identity" and (fit.strength > 0 or not self.psd):
            return f"drawn to {fit.multiple:.6g} times the identity"
        least = "the smallest semi-definite one" if self.psd else "the smallest one"
        return f"{least}, before it is shrunk" if isinstance(self.shrinkage, Real) else least

    def _option_notes(self, fit: SymmetricFit) -> Iterator[str]:
        """Notes on shrinkage and on the semi-definite cone."""
        towards = f"towards {fit.multiple:.6g} times the identity"
        before = "the bound is that of the matrix before"
        if self.shrinkage == "identity" and fit.pull > _UNSHRUNK:
            yield (
                f"shrunk {towards} with strength {fit.strength:.3g}, the entry that is known least "
                f"by {fit.pull:.2g} of the way, the endpoints counted as {fit.n_counted:.3g} "
                f"independent ones; {before}"
            )
        elif self.shrinkage == "identity":
            yield (
                f"not shrunk where it is determined (strength {fit.strength:.3g}): next to nothing "
                "is left over"
            )
        elif self.shrinkage is not None:
            yield f"shrunk {towards} with weight {float(self.shrinkage):g}; {before}"
        if self.psd:
            when = ", before it is shrunk" if isinstance(self.shrinkage, Real) else ""
            yield (
                f"least squares over positive semi-definite matrices{when}, relative distance from "
                f"the minimum up to {fit.distance:.1e}"
            )
