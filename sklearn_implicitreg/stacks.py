"""Equations at several places, endpoints or windows, which share their coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd

from sklearn_implicitreg.assembly import Equations, explained
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.system import Array, GradientSystem, merge

__all__ = ["StackedEquations"]


@dataclass(frozen=True)
class StackedEquations:
    """Equations of a family at several places; a place is a cluster.

    Every place keeps its own columns and its own gradient.

    Parameters
    ----------
    parts : tuple of Equations
        One for each place, all of the same terms.
    """

    place: ClassVar[str] = "endpoint"

    parts: tuple[Equations, ...]

    @property
    def problem(self) -> Problem:
        """The trained model of the first place."""
        return self.parts[0].problem

    @property
    def eps(self) -> float:
        """Rounding unit of the coarsest arithmetic among the places."""
        return max(part.problem.eps for part in self.parts)

    @cached_property
    def system(self) -> GradientSystem:
        """Triangles of the equations, one per place."""
        systems = [part.system for part in self.parts]
        return GradientSystem(
            systems[0].term_names,
            tuple(f"{self.place} {i}" for i in range(len(systems))),
            tuple(merge(system.triangles) for system in systems),
            tuple(system.n_equations for system in systems),
            self._meat,
        )

    @property
    def rounding(self) -> float:
        """Norm below which the targets are zero to rounding."""
        return float(np.sqrt(sum(part.rounding**2 for part in self.parts)))

    def r2(self, coef: Array) -> float:
        """Uncentered R2 of given coefficients; 0 where the targets are zero."""
        if float(np.linalg.norm(self.system.triangle[:, -1])) <= self.rounding:
            return 0.0
        return explained(self.system.triangle, coef)

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
            meat = part.system.hc3_meat
            assert meat is not None
            total += meat(whitener, coef)
        return total
