"""Families against each other: how a score weighs what a family explains against noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.problem import LossGradient
from sklearn_implicitreg.regression.equations import Equations, Targets
from sklearn_implicitreg.regression.fit import judged_solution
from sklearn_implicitreg.regression.shape import resolved
from sklearn_implicitreg.regression.solve import Solution, decompose
from sklearn_implicitreg.regression.spread import Spread, parts_of_noise
from sklearn_implicitreg.regression.system import Array, System, explained

_BLOCKS = 20  # of rows: the covariance of the row gradients is read off their spread
_SMALLEST = 1e-140
_ODDS = 1 / 99  # noise is that of one row in a hundred left out
_COST = 10.0  # noise costs at most so many times what a family leaves, for each coefficient
_EXACT = 1e-10  # what is left of an exact family: the floor of the cost
_TIE = 10 * _EXACT  # scores that differ by less are of families that explain the same


@dataclass(frozen=True)
class Candidate:
    """A family at a problem, and the noise of the rows that fell inside its columns."""

    equations: Equations
    solution: Solution
    noise: tuple[Array, ...]  # what every block of rows adds to it, of each endpoint

    @property
    def n_terms(self) -> int:
        """Number of coefficients."""
        return self.solution.n_terms

    @property
    def r2(self) -> float:
        """R2, 0 where there is no gradient."""
        return self.solution.r2 if self.is_signal else 0.0

    @property
    def total(self) -> float:
        """Noise of all blocks and endpoints."""
        return float(sum(part.sum() for part in self.noise))

    @property
    def is_signal(self) -> bool:
        """Whether the target is above rounding."""
        return self.solution.norm > self.equations.rounding

    def cost(self, unexplained: float) -> float:
        """What the noise costs, where the best of the families leaves so much unexplained."""
        return tied(self.total, self.solution, unexplained) if self.is_signal else 0.0

    def level(self, unexplained: float) -> float:
        """The cost as a share of the noise."""
        return self.cost(unexplained) / self.total if self.total > 0 else 0.0


@dataclass(frozen=True)
class Comparison:
    """Scores of families, the errors of their differences to the best, and the one to take."""

    scores: Array
    errors: Array
    best: int
    smallest: int


def unexplained(solution: Solution) -> float:
    """Share of the target that a family leaves, for each equation that was free to differ."""
    d, k = solution.n_equations, solution.n_terms
    return solution.shortfall * d / (d - k) if k < d else np.inf


def tied(noise: float, solution: Solution, left: float) -> float:
    """Cost of noise in a score: tied to what is left unexplained, for it has no scale of its own.

    Of as many coefficients as equations, which explain everything, it costs all.
    """
    k = solution.n_terms
    return noise if k >= solution.n_equations else min(noise, _COST * k * max(left, _EXACT))


def completed_r2(
    equations: Equations,
    others: Sequence[LossGradient],
    coef: Array,
    *,
    positive: bool,
    retrained: bool = False,
) -> tuple[float, float]:
    """Score of coefficients on the fit's rows and others together, and ``unrest`` of all these.

    A model that was retrained on the fit's rows is at rest on those alone: the others only show
    what the noise of rows costs.
    """
    # The noise of leaving the other rows out is scaled to that of one row in a hundred, so that
    # scores of different numbers of folds compare.
    coef = equations.with_slopes(coef)
    equations = equations.counted
    whole = equations.completed(others).in_range()
    own = equations.in_range() if retrained else whole
    completed, unrest = judged_solution(whole, positive), whole.judged.gradient.unrest
    best = judged_solution(own, positive) if retrained else completed
    if best.norm <= own.rounding:
        return 0.0, unrest
    shrink = (_ODDS * equations.judged.gradient.weight / others[0].weight) ** 0.5
    upper = own.without_nuisance(own.judged.system)
    away = (coef / whole.units)[whole.family] - completed.coef
    away *= np.broadcast_to(whole.units / own.units, coef.shape)[own.family]
    lost = explained(upper, best.coef) - explained(upper, best.coef + shrink * away)
    return best.r2 - tied(lost, best, unexplained(best)), unrest


def compared(targets: Targets, penalties: Sequence[Penalty], positive: bool) -> list[Candidate]:
    """Every family with the noise ``(1/99) tr(P S) / (n |g|^2)`` that a row in a hundred adds."""
    found = [resolved(targets, penalty, positive) for penalty in penalties]
    seen = targets.observed([own.tangent for own in found], _BLOCKS)
    return [
        _candidate(own.equations(targets, equations), spreads, positive)
        for own, (equations, spreads) in zip(found, seen, strict=True)
    ]


def ranked(candidates: Sequence[Candidate]) -> Comparison:
    """Scores ``R2 - min(noise, 10 k max(rho, 1e-10))``, rho the smallest of all families."""
    left = min(unexplained(own.solution) for own in candidates)
    scores = np.array([own.r2 - own.cost(left) for own in candidates])
    best = int(np.argmax(scores))
    errors = np.array([_error_of_difference(own, candidates[best], left) for own in candidates])
    rounding = max(
        (own.equations.rounding / own.solution.norm) ** 2 if own.is_signal else 0.0
        for own in candidates
    )
    sizes = np.array([own.n_terms for own in candidates])
    smallest = smallest_within(scores, errors + max(_TIE, rounding), sizes)
    return Comparison(scores, errors, best, smallest)


def smallest_within(scores: Array, margins: Array, sizes: Array) -> int:
    """Index of the best among the smallest families whose scores are within their margins."""
    within = scores >= np.nanmax(scores) - margins
    smallest = within & (sizes == sizes[within].min())
    return int(np.nanargmax(np.where(smallest, scores, -np.inf)))


def errors_of_differences(cv_results: Mapping[str, Any]) -> Array:
    """Standard errors over the folds of a search, of every mean score less the best."""
    scores = np.asarray(cv_results["mean_test_score"], dtype=float)
    folds = [
        np.asarray(values, dtype=float)
        for key, values in cv_results.items()
        if key.startswith("split") and key.endswith("_test_score")
    ]
    if len(folds) < 2:
        return np.zeros(len(scores))
    best = int(np.nanargmax(scores))
    errors: Array = np.std([own - own[best] for own in folds], axis=0, ddof=1) / len(folds) ** 0.5
    return errors


def _error_of_difference(own: Candidate, best: Candidate, left: float) -> float:
    """Standard error of a difference of scores over the blocks of rows."""
    levels, variance = (own.level(left), best.level(left)), 0.0
    for part, other in zip(own.noise, best.noise, strict=True):
        if len(part) > 1:
            difference = levels[0] * part - levels[1] * other
            variance += len(part) * float(np.var(difference, ddof=1))
    return float(variance**0.5)


def _candidate(whole: Equations, spreads: Sequence[Spread], positive: bool) -> Candidate:
    equations = whole.counted
    solution = judged_solution(equations, positive)
    if solution.norm <= equations.rounding:
        return Candidate(whole, solution, tuple(np.zeros(len(s)) for s in spreads))
    system = equations.system if equations.mean is None else equations.mean.system
    noise = _noise(system, spreads, equations.eps)
    if equations.nuisance:  # what lies along it is projected out of the columns
        along = _noise(system, spreads, equations.eps, equations.nuisance)
        noise = [own - other for own, other in zip(noise, along, strict=True)]
    shares = [_ODDS * own / solution.norm / solution.norm for own in noise]
    if not np.isfinite([own.sum() for own in shares]).all() or solution.norm < _SMALLEST:
        raise ValueError(
            "Expected gradients whose squares are in the range of float64 to compare families, got "
            f"a norm of {solution.norm:.3g}; compare them for targets in other units, or fit one "
            "family by ImplicitRegularizationEstimator."
        )
    return Candidate(whole, solution, tuple(shares))


def _noise(
    system: System, spreads: Sequence[Spread], eps: float, only: Sequence[str] = ()
) -> list[Array]:
    """What blocks of rows add to the noise inside the columns, or inside some of them."""
    columns = [i for i, name in enumerate(system.term_names) if not only or name in only]
    found = decompose(system.r_factor[:, [*columns, -1]], eps=eps).whitener
    whitener = np.zeros((system.n_terms, found.shape[1]))
    whitener[columns] = found
    # Of several endpoints, whose noises are independent, they add up.
    return [parts_of_noise(spread, whitener) for spread in spreads]
