"""Families against each other, from one pass over the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.problem import BlockGradient, LossGradient, Problem
from sklearn_implicitreg.progress import progress
from sklearn_implicitreg.regression.design import Columns
from sklearn_implicitreg.regression.equations import DesignColumns, Equations
from sklearn_implicitreg.regression.solve import decompose, solve
from sklearn_implicitreg.regression.stacks import EndpointTargets, StackedEquations
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.trajectory.equations import PathTargets

__all__ = ["Candidate", "compared", "compared_on_path"]

_BLOCKS = 20  # of rows: the covariance of the row gradients is read off their spread
_ODDS = 1 / 99  # one row in a hundred left out


@dataclass(frozen=True)
class Candidate:
    """A family at a problem: ``score`` is R2 less the share of it that noise would give."""

    equations: Equations | StackedEquations
    score: float
    r2: float
    n_terms: int


def compared(
    targets: EndpointTargets, penalties: Sequence[Penalty], positive: bool
) -> list[Candidate]:
    """Every family by ``R2 - (1/99) tr(P S) / (n |g|^2)``, the expected completed score.

    Of several endpoints the noise of each is independent of the others'.

    Raises
    ------
    ValueError
        If there is only one row, or a family has more coefficients than equations.
    """
    found = []
    steps = progress(targets.problems, "gradients", len(targets.problems), targets.verbose)
    for problem in steps:
        spreads = [_Spread(Columns(penalty, problem), problem) for penalty in penalties]
        gradient = LossGradient.from_blocks(_seen(problem.blocks(_BLOCKS), spreads))
        if gradient.n_rows < 2:
            raise ValueError(
                "Expected at least 2 rows, whose gradients tell the noise of their mean, got "
                "n_samples = 1."
            )
        found.append([(Equations(problem, own.columns, gradient), own) for own in spreads])
    candidates = []
    for family in zip(*found, strict=True):
        parts, noises = zip(*family, strict=True)
        stacked = StackedEquations(parts, sampling=targets.sampling)
        own = stacked if len(parts) > 1 else parts[0]
        candidates.append(Candidate(own, *_score(own, noises, positive)))
    return candidates


def compared_on_path(
    targets: PathTargets, penalties: Sequence[Penalty], positive: bool
) -> list[Candidate]:
    """The same for the mean over the windows of a path.

    The spread of the row gradients is taken at the mean iterate of the path.
    """
    equations = [targets.equations(penalty) for penalty in penalties]
    spreads = [_Spread(own.mean.columns, targets.problem) for own in equations]
    for _ in _seen(targets.problem.at(targets.mean_visited()).blocks(_BLOCKS), spreads):
        pass
    return [
        Candidate(own, *_score(own.mean, [spread], positive))
        for own, spread in zip(equations, spreads, strict=True)
    ]


@dataclass
class _Spread:
    """Columns of a family, and their products with the gradient of every block of rows."""

    columns: DesignColumns
    problem: Problem
    weights: list[float] = field(default_factory=list)
    products: list[Array] = field(default_factory=list)

    def see(self, block: BlockGradient) -> None:
        """Remember the k numbers of a block."""
        total = torch.zeros(len(self.columns.term_names), dtype=torch.float64)
        for name, sums in block.sums.items():
            kept = self.columns.smooth(name)
            free = self.problem.free.get(name)
            if free is not None:
                kept = kept & free.reshape(-1)
            slope = torch.where(kept, sums.reshape(-1), 0.0)
            total += (self.columns.design(name).T @ slope).cpu()
        self.weights.append(block.weight)
        self.products.append(total.numpy() / block.weight)

    def noise(self, whitener: Array) -> float:
        """``tr(P S) / n``: variance of the mean gradient inside the family's columns."""
        weights, products = np.array(self.weights), np.array(self.products)
        if len(weights) < 2:
            return 0.0
        center = weights @ products / weights.sum()
        deviations = (products - center) @ whitener
        trace = float(weights @ np.square(deviations).sum(axis=1)) / (len(weights) - 1)
        return trace / float(weights.sum())


def _seen(blocks: Iterator[BlockGradient], spreads: list[_Spread]) -> Iterator[BlockGradient]:
    for block in blocks:
        for spread in spreads:
            spread.see(block)
        yield block


def _score(
    equations: Equations | StackedEquations, spreads: Sequence[_Spread], positive: bool
) -> tuple[float, float, int]:
    """Criterion, R2 and number of terms."""
    system = equations.system
    eps = max(part.problem.eps for part in equations.parts)
    solution = solve(system.r_factor, system.n_equations, positive=positive, eps=eps)
    if solution.tss**0.5 <= equations.rounding:
        return 0.0, 0.0, system.n_terms
    whitener = decompose(system.r_factor, eps=eps).whitener
    noise = sum(spread.noise(whitener) for spread in spreads)
    return solution.r2 - _ODDS * noise / solution.tss, solution.r2, system.n_terms
