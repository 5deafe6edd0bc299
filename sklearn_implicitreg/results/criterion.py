"""Families against each other, from one pass over the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.regression.equations import Equations, Targets
from sklearn_implicitreg.regression.solve import decompose, solve
from sklearn_implicitreg.regression.spread import Spread, noise_of_mean

_BLOCKS = 20  # of rows: the covariance of the row gradients is read off their spread
_ODDS = 1 / 99  # one row in a hundred left out


@dataclass(frozen=True)
class Candidate:
    """A family at a problem: ``score`` is R2 less the share of it that noise would give."""

    equations: Equations
    score: float
    r2: float
    n_terms: int


def compared(targets: Targets, penalties: Sequence[Penalty], positive: bool) -> list[Candidate]:
    """Every family by ``R2 - (1/99) tr(P S) / (n |g|^2)``, the expected completed score."""
    seen = targets.observed(penalties, _BLOCKS)
    return [_candidate(equations, spreads, positive) for equations, spreads in seen]


def _candidate(equations: Equations, spreads: Sequence[Spread], positive: bool) -> Candidate:
    system, eps = equations.judged_system, equations.eps
    solution = solve(system.r_factor, system.n_equations, positive=positive, eps=eps)
    if solution.tss**0.5 <= equations.rounding:
        return Candidate(equations, 0.0, 0.0, system.n_terms)
    whitener = decompose(system.r_factor, eps=eps).whitener
    # Of several endpoints, whose noises are independent, they add up.
    noise = sum(noise_of_mean(spread, whitener) for spread in spreads)
    score = solution.r2 - _ODDS * noise / solution.tss
    return Candidate(equations, score, solution.r2, system.n_terms)
