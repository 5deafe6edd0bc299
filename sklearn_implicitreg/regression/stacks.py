"""Equations at several places, endpoints or windows, which share their coefficients."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.problem import LossGradient, Problem, Sampling
from sklearn_implicitreg.progress import progress
from sklearn_implicitreg.regression.equations import Equations, Inequalities, check_count, explained
from sklearn_implicitreg.regression.solve import Solution
from sklearn_implicitreg.regression.system import Array, GradientSystem, merge

__all__ = ["EndpointTargets", "StackedEquations"]


@dataclass(frozen=True)
class StackedEquations:
    """Equations of a family at several places; a place is a cluster.

    Every place keeps its own columns and its own gradient.

    Parameters
    ----------
    parts : tuple of Equations
        One for each place, all of the same terms.
    sampling : {"data sets", "resamples", "one data set"}
        Whether the places are independent, draws from the same rows, or on the same rows.
    """

    place: ClassVar[str] = "endpoint"

    parts: tuple[Equations, ...]
    sampling: Sampling = field(default="data sets", kw_only=True)

    @property
    def problem(self) -> Problem:
        """The trained model of the first place."""
        return self.parts[0].problem

    @cached_property
    def system(self) -> GradientSystem:
        """R factors of the equations, one per place.

        Raises
        ------
        ValueError
            If all places together give fewer equations than coefficients.
        """
        systems = [part.reduced for part in self.parts]
        again = all(system.hc3_meat is not None for system in systems)
        system = replace(
            systems[0],
            labels=tuple(f"{self.place} {i}" for i in range(len(systems))),
            r_factors=tuple(merge(system.r_factors) for system in systems),
            counts=tuple(system.n_equations for system in systems),
            hc3_meat=self._meat if again else None,
        )
        check_count(system, self.parts)
        return system

    def tested(self, solution: Solution) -> Inequalities | None:
        """The inequalities of all places at the shared coefficients, to within its residuals."""
        tested = [part.tested(solution) for part in self.parts]
        known = [own for own in tested if own is not None]
        if len(known) < len(tested):
            return None
        return Inequalities(sum(own.n for own in known), sum(own.n_violated for own in known))

    def scale_invariant(self) -> tuple[tuple[str, ...], bool]:
        """Tensors whose scale no place sees, and whether they dominate everywhere."""
        found = [part.scale_invariant() for part in self.parts]
        names = tuple(name for name in found[0][0] if all(name in own for own, _ in found))
        return names, all(dominates for _, dominates in found)

    @property
    def rounding(self) -> float:
        """Norm below which the targets are zero to rounding."""
        return float(np.sqrt(sum(part.rounding**2 for part in self.parts)))

    def r2(self, coef: Array) -> float:
        """Uncentered R2 of given coefficients; 0 where the targets are zero."""
        if float(np.linalg.norm(self.system.r_factor[:, -1])) <= self.rounding:
            return 0.0
        return explained(self.system.r_factor, coef)

    def frame(self) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
        """Design, target and place of every equation, as one table of rows."""
        keys = range(len(self.parts))
        designs, targets, _ = zip(*(part.frame() for part in self.parts), strict=True)
        data = pd.concat(designs, keys=keys, names=[self.place])
        target = pd.concat(targets, keys=keys, names=[self.place])
        places = data.index.get_level_values(self.place)
        return data, target, pd.Series(places, index=data.index, name=self.place)

    def _meat(self, whitener: Array, coef: Array) -> Array:
        """Second pass over the rows of all places."""
        total = np.zeros((whitener.shape[1], whitener.shape[1]))
        for part in self.parts:
            meat = part.reduced.hc3_meat
            assert meat is not None
            total += meat(whitener, coef)
        return total


@dataclass(frozen=True)
class EndpointTargets:
    """What every family at some endpoints shares: one gradient of the loss for each.

    Parameters
    ----------
    problems : tuple of Problem
        The trained models, with parameters of the same names and shapes.
    verbose : int
        Whether to show how many gradients were taken.
    sampling : {"data sets", "resamples", "one data set"}
        What the endpoints are of, as in :class:`StackedEquations`.
    """

    place: ClassVar[str] = StackedEquations.place

    problems: tuple[Problem, ...]
    verbose: int = 0
    sampling: Sampling = "data sets"

    @property
    def problem(self) -> Problem:
        """The first trained model."""
        return self.problems[0]

    @cached_property
    def gradients(self) -> tuple[LossGradient, ...]:
        """Gradients of the mean losses, in one pass over the rows of each."""
        steps = progress(self.problems, "gradients", len(self.problems), self.verbose)
        return tuple(problem.gradient() for problem in steps)

    def equations(self, penalty: Penalty) -> Equations | StackedEquations:
        """Equations of a penalty; those of a single endpoint are clustered by tensor."""
        stack = self.stacked(penalty)
        return stack if len(stack.parts) > 1 else stack.parts[0]

    def stacked(self, penalty: Penalty) -> StackedEquations:
        """Equations of a penalty, clustered by endpoint also where there is only one."""
        pairs = zip(self.problems, self.gradients, strict=True)
        parts = tuple(Equations.of(p, penalty, g) for p, g in pairs)
        return StackedEquations(parts, sampling=self.sampling)
