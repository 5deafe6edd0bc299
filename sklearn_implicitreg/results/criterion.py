"""Families against each other, from one pass over the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.regression.equations import Equations, Targets
from sklearn_implicitreg.regression.fit import judged_solution
from sklearn_implicitreg.regression.solve import decompose
from sklearn_implicitreg.regression.spread import Spread, noise_of_mean
from sklearn_implicitreg.regression.system import System

_BLOCKS = 20  # of rows: the covariance of the row gradients is read off their spread
_SMALLEST = 1e-140
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
    solution = judged_solution(equations, positive)
    if solution.norm <= equations.rounding:
        return Candidate(equations, 0.0, 0.0, solution.n_terms)
    system = equations.system if equations.mean is None else equations.mean.system
    noise = _noise(system, spreads, equations.eps)
    if equations.nuisance is not None:  # what lies along it is projected out of the columns
        noise -= _noise(system, spreads, equations.eps, equations.nuisance)
    share = noise / solution.norm / solution.norm
    if not np.isfinite(share) or solution.norm < _SMALLEST:
        raise ValueError(
            "Expected gradients whose squares are in the range of float64 to compare families, got "
            f"a norm of {solution.norm:.3g}; compare them for targets in other units, or fit one "
            "family by ImplicitRegularizationEstimator."
        )
    score = solution.r2 - _ODDS * share
    return Candidate(equations, score, solution.r2, solution.n_terms)


def _noise(system: System, spreads: Sequence[Spread], eps: float, only: str | None = None) -> float:
    """Variance of the mean gradients inside the columns, or inside one of them."""
    columns = [i for i, name in enumerate(system.term_names) if only in (None, name)]
    found = decompose(system.r_factor[:, [*columns, -1]], eps=eps).whitener
    whitener = np.zeros((system.n_terms, found.shape[1]))
    whitener[columns] = found
    # Of several endpoints, whose noises are independent, they add up.
    return sum(noise_of_mean(spread, whitener) for spread in spreads)
