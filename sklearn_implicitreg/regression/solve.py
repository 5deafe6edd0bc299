"""Coefficients from a R factor: least squares, also non-negative, with what it can tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import lstsq, svd
from scipy.optimize import nnls

from sklearn_implicitreg.regression.system import Array, System

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Solution:
    """Least-squares answer to ``target ~ design @ coef`` and how well it is determined."""

    coef: Array  # (k,)
    norm: float  # of the target
    r2: float  # uncentered; 0 for a zero target
    shortfall: float  # rss/tss without the rounding of 1 - r2; 1 for a zero target
    cosine: Array  # (k,) of the angle between each column and the target
    rank: int
    condition_number: float  # of the columns scaled to unit norm
    vif: Array  # (k,) uncentered; inf for columns that take part in a dependence
    reach: Array  # (k,): how far a change of the target by a norm of one moves each coefficient
    dependent: tuple[int, ...]  # columns that do; a zero column is one alone
    active: np.ndarray[tuple[int], np.dtype[np.bool_]]  # False: held at zero
    n_equations: int
    eps: float  # rounding unit of the numbers that the columns were built with
    n_shapes: int = 0  # parameters of the columns that were found beside the coefficients

    @property
    def tss(self) -> float:
        """Squared norm of the target; inf where that is out of range."""
        return self.norm * self.norm

    @property
    def rss(self) -> float:
        """Residual sum of squares."""
        return self.shortfall * self.tss

    @property
    def residual(self) -> float:
        """Norm of the residual."""
        return float(self.norm * self.shortfall**0.5)

    @cached_property
    def n_terms(self) -> int:
        """Number of columns, k."""
        return len(self.coef)

    @cached_property
    def n_used(self) -> int:
        """Independent columns that the answer uses: their rank, or those above zero."""
        return min(self.rank, int(np.count_nonzero(self.active)) + self.n_shapes)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of columns scaled to unit norm, cut off at their numerical rank."""

    left: Array  # (k + 1, rank)
    values: Array  # (k,), largest first
    right: Array  # (k, k); columns from ``rank`` on span the null space
    rank: int
    norms: Array  # (k,), what the columns were divided by

    @cached_property
    def whitener(self) -> Array:
        """Matrix of shape (k, rank) that makes the columns orthonormal."""
        whitener: Array = (
            self.right[:, : self.rank] / self.values[: self.rank] / self.norms[:, None]
        )
        return whitener

    @cached_property
    def reach(self) -> Array:
        """Norms (k,) of the rows of the whitener."""
        rows = self.right[:, : self.rank] / self.values[: self.rank]
        reach: Array = np.linalg.norm(rows, axis=1) / self.norms
        return reach

    def dependent(self, eps: float = _EPS) -> tuple[int, ...]:
        """Columns that are not orthogonal to the null space."""
        share = np.linalg.norm(self.right[:, self.rank :], axis=1)
        return tuple(np.flatnonzero(share > np.sqrt(eps)).tolist())


def decompose(r_factor: Array, *, eps: float = _EPS, norms: Array | None = None) -> Spectrum:
    """Singular value decomposition of the columns of a R factor, scaled to unit norm."""
    columns = r_factor[:, :-1]
    if norms is None:
        norms = _column_norms(columns)
    left, values, right = svd(columns / norms, full_matrices=False)
    # Without the number of equations: in float32 it would take the bound above one.
    tolerance = 10 * len(norms) * max(eps, _EPS)
    # Against one, the norm of a column, where the largest value is smaller (a cluster was left
    # out): what remains of a column is then judged by what the column was.
    rank = int(np.sum(values > tolerance * max(values[0], 1.0)))
    return Spectrum(left[:, :rank], values, right.T, rank, norms)


def _column_norms(columns: Array) -> Array:
    """Euclidean norms of columns, safe against over- and underflow; 1 for a zero column."""
    largest = np.abs(columns).max(axis=0, initial=0.0)
    largest[largest < np.finfo(np.float64).tiny] = 1.0
    norms: Array = largest * np.linalg.norm(columns / largest, axis=0)
    norms[norms < np.finfo(np.float64).tiny] = 1.0
    return norms


def solve(
    r_factor: Array, n_equations: int, *, positive: bool = False, eps: float = _EPS
) -> Solution:
    """Least-squares coefficients from a R factor."""
    # Columns are scaled to unit norm, which changes no unique answer but makes it accurate. Of many
    # answers it is the shortest in this scaling, so that the units of the terms do not matter.
    spectrum = decompose(r_factor, eps=eps)
    k = len(spectrum.norms)
    target = r_factor[:, -1]
    size = norm_of(target)
    unit = target / size if size else target
    scaled = r_factor[:, :-1] / spectrum.norms
    weights = _minimum_norm(spectrum, unit)
    active = np.ones(k, dtype=np.bool_)
    if positive:
        weights = _nonnegative(scaled, unit, eps)
        active = weights > 0
    # Relative to the target, so that squares of very small gradients do not underflow.
    error = float(np.linalg.norm(unit - scaled @ weights))
    # A zero answer explains nothing, whatever the rounding of the norms says.
    shortfall = min(error**2, 1.0) if size and weights.any() else 1.0
    dependent = spectrum.dependent(max(eps, _EPS))
    return Solution(
        coef=_unscaled(weights, size, spectrum.norms),
        norm=size,
        r2=1.0 - shortfall,
        shortfall=shortfall,
        cosine=np.clip(scaled.T @ unit, -1.0, 1.0),
        rank=spectrum.rank,
        condition_number=_condition(spectrum),
        vif=_inflation(spectrum, dependent),
        reach=spectrum.reach,
        dependent=dependent,
        active=active,
        n_equations=n_equations,
        eps=eps,
    )


def solve_system(system: System, *, positive: bool = False, eps: float = _EPS) -> Solution:
    """Coefficients of a system, part by part where its parts share no cluster."""
    if system.supports is None:
        return solve(system.r_factor, system.n_equations, positive=positive, eps=eps)
    k, parts = system.n_terms, []
    coef, cosine, vif, active = np.zeros(k), np.zeros(k), np.full(k, np.inf), np.ones(k, bool)
    reach, largest, smallest = np.zeros(k), 0.0, np.inf
    for columns, part in system.components:
        found = solve(part.r_factor, part.n_equations, positive=positive, eps=eps)
        values = decompose(part.r_factor, eps=eps).values
        largest, smallest = max(largest, values[0]), min(smallest, values[-1])
        coef[columns], vif[columns], active[columns] = found.coef, found.vif, found.active
        cosine[columns], reach[columns] = found.cosine * found.norm, found.reach
        parts.append((columns, found))
    # A sum of squares that are not negative: no digit is lost.
    tss = system.out_of_reach**2 + sum(found.tss for _, found in parts)
    rss = system.out_of_reach**2 + sum(found.rss for _, found in parts)
    rank = sum(found.rank for _, found in parts)
    shortfall = min(rss / tss, 1.0) if tss and coef.any() else 1.0
    return Solution(
        coef=coef,
        norm=tss**0.5,
        r2=1.0 - shortfall,
        shortfall=shortfall,
        cosine=cosine / tss**0.5 if tss else cosine,
        rank=rank,
        condition_number=float(largest / smallest) if rank == k else float("inf"),
        vif=vif,
        reach=reach,
        dependent=tuple(sorted(columns[i] for columns, found in parts for i in found.dependent)),
        active=active,
        n_equations=system.n_equations,
        eps=eps,
    )


def solve_with_free(system: System, free: Sequence[str], eps: float) -> Solution:
    """Non-negative coefficients of all columns but some, which have any sign."""
    upper, names = system.r_factor, system.term_names
    terms = [i for i, name in enumerate(names) if name not in free]
    others = [i for i, name in enumerate(names) if name in free]
    beyond = lstsq(upper[:, others], upper[:, [*terms, -1]])[0]
    left = upper[:, [*terms, -1]] - upper[:, others] @ beyond
    active = solve(left, system.n_equations, positive=True, eps=eps).active
    used = sorted([*(terms[i] for i in np.flatnonzero(active)), *others])
    own = solve(upper[:, [*used, -1]], system.n_equations, eps=eps)
    coef, in_use = np.zeros(system.n_terms), np.zeros(system.n_terms, dtype=np.bool_)
    coef[used], in_use[used] = own.coef, True
    whole = solve(upper, system.n_equations, eps=eps)
    return replace(whole, coef=coef, active=in_use, r2=own.r2, shortfall=own.shortfall)


def norm_of(vector: Array) -> float:
    """Euclidean norm without over- or underflow of the squares."""
    largest = float(np.abs(vector).max(initial=0.0))
    return largest * float(np.linalg.norm(vector / largest)) if largest else 0.0


def _minimum_norm(spectrum: Spectrum, target: Array) -> Array:
    """Weights of the scaled columns: least squares, the shortest where there are several."""
    rank = spectrum.rank
    weights: Array = spectrum.right[:, :rank] @ (
        (spectrum.left.T @ target) / spectrum.values[:rank]
    )
    return weights


def _nonnegative(scaled: Array, target: Array, eps: float) -> Array:
    """Non-negative weights of the scaled columns, refined on the columns that are used."""
    weights: Array = nnls(scaled, target)[0]
    used = weights > 0
    if used.any():
        # The routine stops within its own tolerance: the columns it picked are solved exactly.
        picked = np.column_stack([scaled[:, used], target])
        refined = _minimum_norm(decompose(picked, eps=eps, norms=np.ones(used.sum())), target)
        if (refined > 0).all():
            weights[used] = refined
    return weights


def _unscaled(weights: Array, size: float, norms: Array) -> Array:
    """Coefficients of the columns as they were given."""
    coef: Array = weights * (size / norms)
    return coef


def _condition(spectrum: Spectrum) -> float:
    """Largest over smallest singular value, inf when the rank is not full."""
    if spectrum.rank < len(spectrum.values):
        return float("inf")
    return float(spectrum.values[0] / spectrum.values[-1])


def _inflation(spectrum: Spectrum, dependent: tuple[int, ...]) -> Array:
    """Squared norms of the rows of the inverse of the scaled columns (their own norms are 1)."""
    rows = spectrum.right[:, : spectrum.rank] / spectrum.values[: spectrum.rank]
    vif: Array = np.square(rows).sum(axis=1)
    vif[list(dependent)] = np.inf
    return vif
