"""Penalties ``theta' Q theta`` with unknown Q: full symmetric or diagonal."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import ClassVar

import numpy as np

from sklearn_implicitreg.penalties.structured import (
    Endpoints,
    Structured,
    StructuredPenalty,
    StructuredSolution,
    TriangleNames,
)
from sklearn_implicitreg.penalties.symmetric import SymmetricFit, solve_symmetric
from sklearn_implicitreg.problem.parameters import FLAG, NOTHING, choice, number

_EPS = float(np.finfo(np.float64).eps)
_UNSHRUNK = 1e-8  # share of the way to the multiple that is not worth a note


class Diagonal(Structured):
    """``R = sum_j q_j theta_j^2``: one coefficient per parameter, in closed form.

    One endpoint gives ``q_j = -grad_j / (2 theta_j)``, several the least-squares value. One that
    is zero at every endpoint has no equation: its coefficient is 0, not determined.

    Parameters
    ----------
    psd : bool, default=False
        Keep the coefficients at or above zero.

    Examples
    --------
    >>> thetas = np.array([[1.0], [2.0], [0.0]])
    >>> found = Diagonal().solve(thetas, 2 * np.array([[3.0], [1.0], [9.0]]) * thetas)
    >>> found.coef.tolist(), found.dependent
    ([3.0, 1.0, 0.0], ('diagonal[theta[2]]',))
    """

    _allowed: ClassVar = {"psd": FLAG}

    def __init__(self, psd: bool = False):
        self.psd = psd

    def _solve(self, endpoints: Endpoints) -> StructuredSolution:
        thetas, targets = endpoints.thetas, endpoints.targets
        largest = np.abs(thetas).max(axis=1)
        used = largest > 0
        unit = thetas / np.where(used, largest, 1.0)[:, None]
        coef = np.zeros(len(thetas))
        squares = 2 * largest[used] * np.square(unit[used]).sum(axis=1)
        coef[used] = (unit[used] * targets[used]).sum(axis=1) / squares
        n_below = int((coef < 0).sum())
        if self.psd:  # each entry has equations of its own: zero is the best that is left
            coef = np.maximum(coef, 0.0)
        penalty = StructuredPenalty(coef, endpoints.shapes)
        fitted = penalty.gradient(thetas)
        names = endpoints.names("diagonal[{}]")
        zero = tuple(names[int(j)] for j in np.flatnonzero(~used))
        notes = [f"{endpoints.unexplained(fitted):.2g} of the squared gradient is left over"]
        if zero:
            notes.append(
                f"{len(zero)} parameters are zero at every endpoint: they have no equation"
            )
        if self.psd and n_below:
            notes.append(f"{n_below} coefficients are held at 0, which would be negative")
        rank = int(used.sum())
        return StructuredSolution(
            penalty, coef, names, fitted, rank, thetas.size, tuple(notes), dependent=zero
        )


class Quadratic(Structured):
    """``R = theta' Q theta`` with a full symmetric Q, from one or many endpoints.

    ``coef_`` is the upper triangle of ``penalty_.matrix_`` row by row. With m < p independent
    endpoints they determine ``m p - m (m - 1) / 2`` numbers; the answer has minimum Frobenius norm.

    Parameters
    ----------
    psd : bool, default=False
        Minimize over positive semi-definite matrices, of which the smallest is taken.
    shrinkage : {None, "identity"} or float, default=None
        ``"identity"`` shrinks towards the best multiple of the identity (with ``psd`` one that is
        not negative), each entry by how well the endpoints determine it against the spread of
        what is left over, for resamples of one data set; a float from 0 to 1 is its weight.
    normalize : bool, default=False
        Divide each endpoint's equations by the norm of its parameters, so that all count alike.

    See Also
    --------
    sklearn_implicitreg.penalties.symmetric.solve_symmetric : The formulas.

    Examples
    --------
    >>> Q = np.array([[2.0, 1.0], [1.0, 3.0]])
    >>> thetas = np.array([[1.0, 0.0], [1.0, 1.0]])
    >>> found = Quadratic().solve(thetas, 2 * Q @ thetas)
    >>> found.penalty.matrix_.round(12).tolist(), list(found.term_names)[1], found.rank
    ([[2.0, 1.0], [1.0, 3.0]], 'q[theta[0],theta[1]]', 3)
    """

    _allowed: ClassVar = {
        "psd": FLAG,
        "shrinkage": NOTHING | choice("identity") | number(least=0, most=1),
        "normalize": FLAG,
    }

    def __init__(
        self, psd: bool = False, shrinkage: str | float | None = None, normalize: bool = False
    ):
        self.psd = psd
        self.shrinkage = shrinkage
        self.normalize = normalize

    def _solve(self, endpoints: Endpoints) -> StructuredSolution:
        thetas = endpoints.thetas
        fit = self._fit(endpoints)
        p = len(thetas)
        penalty = StructuredPenalty(fit.matrix, endpoints.shapes)
        fitted = penalty.gradient(thetas)
        open_part = f"q on the {p - fit.n_independent} directions that no endpoint has"
        return StructuredSolution(
            penalty,
            coef=fit.matrix[np.triu_indices(p)],
            term_names=TriangleNames(endpoints.names()),
            fitted=fitted,
            rank=fit.rank,
            n_equations=thetas.size,
            notes=tuple(self._notes(fit, thetas.shape, endpoints.unexplained(fitted))),
            dependent=(open_part,) if fit.n_independent < p else (),
        )

    def _fit(self, endpoints: Endpoints) -> SymmetricFit:
        norms = np.ones(endpoints.thetas.shape[1])
        if self.normalize:
            norms = np.linalg.norm(endpoints.thetas, axis=0)
            norms[norms == 0] = 1.0
        problems = endpoints.problems
        counts = [problem.n_rows or 0 for problem in problems if self.shrinkage == "identity"]
        return solve_symmetric(
            endpoints.thetas / norms,
            endpoints.targets / 2 / norms,
            psd=self.psd,
            shrinkage=float(self.shrinkage) if isinstance(self.shrinkage, Real) else self.shrinkage,
            eps=max((problem.eps for problem in problems), default=_EPS),
            n_rows=max(counts, default=0) or None,
        )

    def _notes(self, fit: SymmetricFit, shape: tuple[int, ...], share: float) -> Iterator[str]:
        m, (p, n_endpoints) = fit.n_independent, shape
        yield (
            f"{m} independent endpoints determine {fit.rank} of {p * (p + 1) // 2} numbers "
            "(m p - m (m - 1) / 2)"
        )
        if m < p:
            yield (
                f"not identifiable below {p} independent endpoints: where they leave it open the "
                f"matrix is {self._where_open(fit)}"
            )
        if n_endpoints > 1:
            yield (
                f"one matrix for all endpoints: Theta' B is symmetric up to {fit.asymmetry:.1e} "
                f"of its norm, and {share:.1e} of the squared gradient is left over"
            )
        part = "the determined part of the matrix" if m < p else "the matrix"
        off = "for gradients off by rounding and three times what is left over"
        if fit.error_bound < 1:
            yield f"relative error of {part} up to {fit.error_bound:.1e}, {off}"
        else:
            yield f"no digit of {part} is guaranteed, {off}: the endpoints are too alike"
        if self.shrinkage is not None:
            yield self._shrinkage_note(fit)
        if self.psd:
            when = ", before it is shrunk" if isinstance(self.shrinkage, Real) else ""
            yield (
                f"least squares over positive semi-definite matrices{when}, relative distance from "
                f"the minimum up to {fit.distance:.1e}"
            )

    def _where_open(self, fit: SymmetricFit) -> str:
        if self.shrinkage == "identity" and (fit.strength > 0 or not self.psd):
            return f"drawn to {fit.multiple:.6g} times the identity"
        least = "the smallest semi-definite one" if self.psd else "the smallest one"
        return f"{least}, before it is shrunk" if isinstance(self.shrinkage, Real) else least

    def _shrinkage_note(self, fit: SymmetricFit) -> str:
        towards = f"shrunk towards {fit.multiple:.6g} times the identity"
        before = "the bound is that of the matrix before"
        if isinstance(self.shrinkage, Real):
            return f"{towards} with weight {float(self.shrinkage):g}; {before}"
        if fit.pull > _UNSHRUNK:
            return (
                f"{towards} with strength {fit.strength:.3g}, the entry that is known least "
                f"by {fit.pull:.2g} of the way, the endpoints counted as {fit.n_counted:.3g} "
                f"independent ones; {before}"
            )
        return (
            f"not shrunk where it is determined (strength {fit.strength:.3g}): next to nothing is "
            "left over"
        )
