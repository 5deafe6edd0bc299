"""Whether one coefficient serves all windows, or all endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.linalg import lstsq, qr

from sklearn_implicitreg.regression.system import Array, System, merge

_LEVEL = 0.05
_LOST = 0.0025  # of what the own coefficients explain: a change of 5 % root mean square
_SINGLE = 4.0  # F over the equations is divided by it where tensors give no replicates
_RANK = 1e-10
_MOST = 1000  # coefficients of places in one solve; beyond it tensors are no replicates


@dataclass(frozen=True)
class Constancy:
    """The coefficients of single places against one for all, by two F tests."""

    same: float  # share that one coefficient explains of what each place's own explain
    equations: tuple[float, float]  # F and p, residuals of the equations as noise
    tensors: tuple[float, float]  # F and p, tensors as replicates
    df: tuple[int, int]  # of the first F
    change: float  # squared size of the variation, a place, without noise
    left: float  # squared size of what the own coefficients leave, a place
    above_rounding: bool

    def in_words(self) -> str:
        """The tests and the share that one coefficient explains."""
        (first, p_first), (second, p_second), (df, rest) = self.equations, self.tensors, self.df
        return (
            f"F({df}, {rest}) = {first:.3g}, p = {p_first:.2g}, with tensors as replicates F = "
            f"{second:.3g}, p = {p_second:.2g}; one explains {self.same:.4f} of what their own do"
        )

    @property
    def differs(self) -> bool:
        """Whether the coefficients change by more than noise, rounding and 5 %."""
        rejected = self.equations[1] < _LEVEL and self.tensors[1] < _LEVEL
        return rejected and self.above_rounding and 1.0 - self.same > _LOST


@dataclass(frozen=True)
class _Place:
    """R factors of one place by tensor, the nuisance column projected out."""

    tensors: dict[str, Array]
    whole: Array  # R factor of all tensors
    coef: Array  # its own
    residual: float  # sum of squares


def constancy(
    systems: Sequence[System], family: Sequence[int], rounding: float
) -> Constancy | None:
    """Test one coefficient for all places; None where there is nothing to test.

    ``family`` are the columns of the family, the others are nuisance columns, each place with its
    own coefficient; ``rounding`` is the norm below which a variation is rounding.
    """
    k = len(family)
    spare = [own.n_equations - own.n_terms for own in systems]
    if len(systems) < 2 or min(spare) < 1 or any(own.instrumented for own in systems):
        return None
    # Columns of unit norm over all places: products of scales would overflow.
    scale = _scale([own.merged[:, family] for own in systems])
    places = [_place(own, family, scale) for own in systems]
    # The coefficients of a place are about differences to the shared ones, which cancel exactly.
    together = merge([place.whole for place in places])
    shared = lstsq(together[:, :k], together[:, k], cond=_RANK)[0]
    variation = np.array([np.sum(np.square(p.whole[:, :k] @ (p.coef - shared))) for p in places])
    explained = sum(float(np.sum(np.square(p.whole[:, :k] @ p.coef))) for p in places)
    between, df = float(variation.sum()), (len(places) - 1) * k
    if explained == 0:
        return None
    noise = sum(p.residual for p in places) / sum(spare)
    by_equations = _f_test(between / df, noise, df, sum(spare))
    by_tensors = _tensor_test(places, k)
    if by_tensors is None:
        statistic = by_equations[0] / _SINGLE
        by_tensors = statistic, float(special.fdtrc(df, sum(spare), statistic))
    mean_square = max(noise, between / df / by_tensors[0] if by_tensors[0] > 0 else np.inf)
    beyond = between - df * mean_square
    return Constancy(
        same=1.0 - max(0.0, beyond / explained),
        equations=by_equations,
        tensors=by_tensors,
        df=(df, sum(spare)),
        change=max(0.0, beyond) / len(places),
        left=sum(p.residual for p in places) / len(places),
        above_rounding=between**0.5 > rounding,
    )


def _scale(columns: Sequence[Array]) -> Array:
    """Norms of columns over all places; 1 for a zero column."""
    norms: Array = np.linalg.norm(np.concatenate(columns), axis=0)
    norms[norms == 0] = 1.0
    return norms


def _place(system: System, family: Sequence[int], scale: Array) -> _Place:
    """Columns of the family and target of a place, with its own nuisance coefficient."""
    kept = [*family, system.n_terms]
    others = [i for i in range(system.n_terms) if i not in family]
    whole = system.merged
    away = np.zeros((len(others), len(kept)))
    if others:
        away = lstsq(whole[:, others], whole[:, kept])[0]
    tensors = {}
    for label, upper in zip(system.labels, system.full_r_factors, strict=True):
        own = upper[:, kept] - upper[:, others] @ away
        own[:, :-1] /= scale
        tensors[label] = qr(own, mode="r", check_finite=False)[0][: len(kept)]
    merged = merge(tensors.values())
    coef = lstsq(merged[:, :-1], merged[:, -1], cond=_RANK)[0]
    residual = float(np.sum(np.square(merged[:, -1] - merged[:, :-1] @ coef)))
    return _Place(tensors, merged, coef, residual)


def _tensor_test(places: Sequence[_Place], k: int) -> tuple[float, float] | None:
    """F and p of coefficients by place beside those by tensor, against both together."""
    # Model 0: t_wg = D_wg a_g, of tensor g at place w. Model 1 adds D_wg b_w. Model 2: D_wg c_wg.
    n = len(places)
    if n * k > _MOST:
        return None
    gram, slope = np.zeros((n * k, n * k)), np.zeros(n * k)
    within, df = 0.0, 0
    for label in {name: None for place in places for name in place.tensors}:
        # Rows in the span of a place's own columns: model 2 explains the target there.
        parts = [_spanned(place.tensors.get(label), k) for place in places]
        rows = np.concatenate(parts)
        basis = _basis(rows[:, :k])
        start, along = 0, np.zeros((basis.shape[1], n * k))
        for w, part in enumerate(parts):
            own, stop = slice(w * k, (w + 1) * k), start + len(part)
            along[:, own] = basis[start:stop].T @ part[:, :k]
            gram[own, own] += part[:, :k].T @ part[:, :k]
            slope[own] += part[:, :k].T @ part[:, k]
            start = stop
        away = basis.T @ rows[:, k]
        gram -= along.T @ along
        slope -= along.T @ away
        within += float(np.square(rows[:, k] - basis @ away).sum())
        df += len(rows) - basis.shape[1]
    coef, _, rank, _ = lstsq(gram, slope, cond=_RANK)
    between = float(coef @ slope)
    rest, df_rest = max(0.0, within - between), df - rank
    if df_rest < 1 or rank < 1:
        return None
    return _f_test(between / rank, rest / df_rest, rank, df_rest)


def _spanned(upper: Array | None, k: int) -> Array:
    """Equations of a tensor in the span of its columns; none where it gives none."""
    if upper is None:
        return np.zeros((0, k + 1))
    spanned: Array = _basis(upper[:, :k]).T @ upper
    return spanned


def _basis(columns: Array) -> Array:
    """Orthonormal basis of columns."""
    left, values, _ = np.linalg.svd(columns, full_matrices=False)
    kept: Array = left[:, values > _RANK * values.max(initial=np.finfo(float).tiny)]
    return kept


def _f_test(between: float, noise: float, df: int, df_noise: int) -> tuple[float, float]:
    statistic = between / noise if noise > 0 else (np.inf if between > 0 else 0.0)
    return float(statistic), float(special.fdtrc(df, df_noise, statistic))
