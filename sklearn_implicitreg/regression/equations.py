"""Equations ``-grad L = sum_k coef_k grad R_k`` at one place or several, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NoReturn, Protocol

import numpy as np
import pandas as pd
from scipy.linalg import qr

from sklearn_implicitreg.penalties import FittedPenalty, Penalty
from sklearn_implicitreg.penalties.shape import Shape
from sklearn_implicitreg.problem import LossGradient, Problem, Sampling
from sklearn_implicitreg.problem.conventions import Convention
from sklearn_implicitreg.regression.constancy import Constancy, constancy
from sklearn_implicitreg.regression.place import Inequalities, Place
from sklearn_implicitreg.regression.solve import Solution, norm_of
from sklearn_implicitreg.regression.spread import Spread, share_of_pairs
from sklearn_implicitreg.regression.system import (
    Array,
    Rows,
    System,
    explained,
    r_factor,
)

_SLACK = 3.0  # root mean square residuals of the equations that an inequality may miss by
_DEPENDENT = 1e-13  # share of a nuisance column outside the others that is rounding

Cluster = Literal["tensor", "endpoint", "window"]  # what standard errors take for independent
# What a model's convention divides by, the convention, whether each output has a parameter.
Units = tuple[float | None, Convention | None, bool]


class Targets(Protocol):
    """What all families share: the problems, and the gradient or deviation at every place."""

    @property
    def problem(self) -> Problem:
        """The trained model of the first place."""
        ...

    def equations(self, penalty: Penalty) -> Equations:
        """Equations of a penalty."""
        ...

    def observed(self, penalties: Sequence[Penalty], n_blocks: int) -> list[Observed]:
        """Equations of several penalties, and their products with blocks of rows."""
        ...

    def completing(self, other: Problem) -> Sequence[LossGradient]:
        """Gradients at every place over further rows, which complete those of the fit."""
        ...

    def units(self, equations: Equations) -> Units:
        """What the model's convention divides by, the convention, whether for each output."""
        ...

    def header(self, equations: Equations, result: Any) -> list[tuple[str, str]]:
        """What the summary reports of model, loss and data."""
        ...

    def notes(self, equations: Equations, result: Any) -> list[str]:
        """What the reader of the result should know."""
        ...


@dataclass(frozen=True, eq=False)
class Equations:
    """Equations of a family at some places, which share their coefficients."""

    places: tuple[Place, ...]
    targets: Targets
    cluster: Cluster = "tensor"
    sampling: Sampling = "data sets"
    mean: Place | None = None
    shares: tuple[float, ...] = ()
    nuisance: tuple[str, ...] = ()  # columns beside the family, which no verdict is about
    noisy: bool = False
    objection: str = ""
    evidence: str = ""
    agreement: str = ""
    paired: System | None = None  # differences of pairs, which R-squared is about where they are
    step_rounding: float = 0.0  # norm over all windows of what rounding did to the steps
    shapes: tuple[Shape, ...] = ()  # parameters of the penalty that were found
    tangent: Equations | None = None  # the same with a column for each of them, its slope
    slopes: tuple[str, ...] = ()  # of a tangent: which columns these are

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.places[0].system.term_names

    @property
    def family(self) -> list[int]:
        """Which columns are of the family."""
        return [i for i, name in enumerate(self.term_names) if name not in self.nuisance]

    @property
    def counted(self) -> Equations:
        """The equations in which shapes count as coefficients: the tangent, or these."""
        if self.tangent is None:
            return self
        return replace(
            self.tangent,
            objection=self.objection,
            evidence=self.evidence,
            agreement=self.agreement,
        )

    def with_slopes(self, coef: Array) -> Array:
        """Coefficients of the terms among those of the tangent: its slopes have zero."""
        found = np.zeros(len(self.counted.term_names))
        found[[self.counted.term_names.index(name) for name in self.term_names]] = coef
        return found

    @property
    def judged(self) -> Place:
        """The place that R-squared and scores are about: the mean over windows, or the only one."""
        return self.places[0] if self.mean is None else self.mean

    @property
    def units(self) -> Array | float:
        """What takes coefficients of the multiplied columns and target back, (k,)."""
        powers = self.judged.powers
        if powers is None:
            return 1.0
        with np.errstate(over="ignore"):  # coefficients that are out of range raise an error
            units: Array = powers[:-1] / powers[-1]
        return units

    def in_range(self) -> Equations:
        """These equations, multiplied by powers of two where squares would be out of range."""
        powers = self.system.powers()
        if powers is None:
            return self
        places = tuple(replace(place, powers=powers) for place in self.places)
        mean = self.mean and replace(self.mean, powers=powers)
        paired = self.paired and self.paired.scaled(powers)
        return replace(self, places=places, mean=mean, paired=paired)

    def reaching(self, names: Sequence[str]) -> list[int]:
        """The columns that can differ from zero at some tensors."""
        every = self.places if self.mean is None else (*self.places, self.mean)
        return sorted(set().union(*[place.design.reaching(names) for place in every]))

    def on(self, names: Sequence[str], columns: list[int]) -> Equations:
        """The equations of some tensors in the columns that reach them, from the R factors."""
        left = {self.term_names[j] for j in columns}
        return replace(
            self,
            places=tuple(place.on(names, columns) for place in self.places),
            mean=self.mean and self.mean.on(names, columns),
            nuisance=tuple(name for name in self.nuisance if name in left),
            shapes=(),  # of all tensors
            tangent=None,
        )

    @cached_property
    def rounding(self) -> float:
        """Norm below which the target is zero to rounding."""
        if self.mean is not None:
            return self.mean.rounding
        return norm_of(np.array([place.rounding for place in self.places]))

    @cached_property
    def variation(self) -> Constancy | None:
        """Test of one coefficient for all places; of endpoints, in the units of their models."""
        if len(self.places) < 2:
            return None
        systems = [place.system for place in self.places]
        size = self.rounding
        if self.cluster == "endpoint":
            factors = [place.per_row for place in self.places]
            systems = [
                own if factor == 1 else own.scaled(np.append(np.full(own.n_terms, factor), 1.0))
                for own, factor in zip(systems, factors, strict=True)
            ]
        elif self.mean is not None:
            powers = self.judged.powers
            steps = self.step_rounding * (1.0 if powers is None else float(powers[-1]))
            size = norm_of(np.array([steps, *[place.rounding for place in self.places]]))
        return constancy(systems, self.family, size)

    @cached_property
    def eps(self) -> float:
        """Rounding unit of the numbers that the columns were built with."""
        return max([place.problem.eps for place in self.places])

    @cached_property
    def system(self) -> System:
        """R factors of all equations, one per cluster."""
        systems = [place.system for place in self.places]
        system = systems[0]
        if self.cluster != "tensor":
            labels = [f"{self.cluster} {i}" for i in range(len(systems))]
            readable = all(own.rows is not None for own in systems)
            system = replace(
                system,
                labels=tuple(labels),
                r_factors=tuple(own.merged for own in systems),
                counts=tuple(own.n_equations for own in systems),
                rows=self._rows if readable else None,
                supports=None,
            )
        # R2 of a mean over fewer equations than coefficients tests nothing either.
        for own in (system,) if self.mean is None else (system, self.mean.system):
            if own.n_equations < own.n_terms:
                self._raise_of_count(own)
        return system

    @property
    def in_r2(self) -> System:
        """R factors of the equations that R-squared is of: of the mean over windows, or of all."""
        return self.system if self.mean is None else self.mean.system

    def tested(self, solution: Solution) -> Inequalities:
        """The inequalities of all places at the shared coefficients, to within residuals."""
        slack, powers = _SLACK * solution.residual / solution.n_equations**0.5, self.judged.powers
        slack, coef = slack / (1.0 if powers is None else powers[-1]), solution.coef * self.units
        n, violated, is_tested = 0, 0, True
        for place in self.places:
            own = place.inequalities(coef, slack)
            n += own.n
            violated += own.n_violated or 0
            is_tested = is_tested and own.n_violated is not None
        return Inequalities(n, violated if is_tested else None)

    def scale_invariant(self) -> tuple[tuple[str, ...], bool]:
        """Tensors whose scale no place sees, and whether they dominate everywhere."""
        found = [place.scale_invariant() for place in self.places]
        names = tuple(name for name in found[0][0] if all(name in own for own, _ in found))
        return names, all(dominates for _, dominates in found)

    def without_nuisance(self, system: System) -> Array:
        """R factor of the family's columns and the target, the nuisance columns projected out."""
        kept = self.family
        if not self.nuisance:
            return system.r_factor
        first = [i for i in range(system.n_terms) if i not in kept]
        left = _beyond(system.r_factor, first, [*kept, system.n_terms])
        return r_factor(left[:, :-1], left[:, -1])

    def signal(self, coef: Array | None = None) -> tuple[float, float]:
        r"""Squared norm of the mean target, free of noise by products of windows, and as it is."""
        # sum s_u s_v <t_u, t_v> / sum s_u s_v over pairs of different windows, with the shares s in
        # the steps: their noise is independent. Of a target, what coefficients leave of it.
        whole = self._size(self.judged.system, coef)
        if len(self.places) < 2:
            return whole, whole
        sizes = [self._size(place.system, coef) for place in self.places]
        pairs = share_of_pairs([p.system for p in self.places], self.shares, self.judged.system)
        signal = float((whole - np.square(self.shares) @ sizes) / pairs) if pairs else whole
        return signal, whole

    def noise_share(self, alone: Sequence[Solution] = ()) -> float:
        """Share of noise in the mean target's squared norm, from how the windows differ.

        Where their own solutions, ``alone``, leave less than that, they differ in coefficients.
        """
        if not self.noisy or self.paired is not None:
            return 0.0
        signal, whole = self.signal()
        if not whole:
            return 0.0
        share = 1.0 - signal / whole
        spare = [own.n_equations - own.n_terms for own in alone]
        if alone and min(spare) > 0:
            left = [own.rss * own.n_equations / n for own, n in zip(alone, spare, strict=True)]
            share = min(share, float(np.square(self.shares) @ left) / whole)
        return float(np.clip(share, 0.0, 1.0))

    def r2(self, coef: Array) -> float:
        """Uncentered R2 of given coefficients; 0 where the targets are zero."""
        ready = self.in_range()
        if norm_of(ready.system.r_factor[:, -1]) <= ready.rounding:
            return 0.0
        return explained(ready.system.r_factor, coef / ready.units)

    def completed(self, others: Sequence[LossGradient]) -> Equations:
        """The same columns against the gradients over these rows and others together."""
        pairs = zip(self.places, others, strict=True)
        places = [replace(p, gradient=p.gradient.completed(o), given=None) for p, o in pairs]
        mean = self.mean
        if mean is not None:
            gradient = LossGradient.mean([p.gradient for p in places], self.shares)
            mean = replace(mean, gradient=gradient, given=None)
        return replace(self, places=tuple(places), mean=mean)

    def penalty(self, solution: Solution) -> FittedPenalty | None:
        """The penalty with its coefficients, for the tensors in scope; zero without a gradient."""
        first = self.places[0]
        if not first.design.leaves:
            return None  # given equations have no weights
        signal = solution.norm > self.rounding
        coef = solution.coef * self.units if signal else np.zeros(solution.n_terms)
        start, leaves = 0, []
        for leaf, n in first.design.leaves:
            leaves.append((leaf, tuple(coef[start : start + n].tolist())))
            start += n
        return FittedPenalty.of(tuple(leaves), first.problem)

    def frame(self) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
        """Design, target and cluster of every equation, as one table of rows."""
        parts = []
        for i, place in enumerate(self.places):
            for (tensor,), index, design, target in place.system.single("for a table of them"):
                labels: list[Any] = [[tensor] * len(index), place.problem.labels(tensor, index)]
                names = ["tensor", "coordinate"]
                if self.cluster != "tensor":
                    labels, names = [[i] * len(index), *labels], [self.cluster, *names]
                at = pd.MultiIndex.from_arrays(labels, names=names)
                data = pd.DataFrame(design, index=at, columns=list(self.term_names))
                parts.append((data, pd.Series(target, index=at, name="target")))
        data, target = (pd.concat(column) for column in zip(*parts, strict=True))
        clusters = data.index.get_level_values(0)
        return data, target, pd.Series(clusters, index=data.index, name=self.cluster)

    def _size(self, system: System, coef: Array | None) -> float:
        """Squared norm of what is left of the target, without its part along the nuisance."""
        k = system.n_terms
        upper = system.merged[:, -k - 1 :]  # instruments stand before the columns
        target = upper[:, k] if coef is None else upper[:, k] - upper[:, :k] @ coef
        if not self.nuisance:
            return float(target @ target)
        columns = [i for i in range(k) if i not in self.family]
        left = _beyond(np.column_stack([upper, target]), columns, [k + 1])
        return float(np.square(left).sum())

    def _rows(self, labels: Sequence[str]) -> Iterator[Rows]:
        """The equations of some places, each with the label of its cluster."""
        for i, place in enumerate(self.places):
            cluster = f"{self.cluster} {i}"
            if cluster in labels:
                for label, index, design, target in place.system.single("of all places"):
                    yield (cluster, *label), index, design, target

    def _raise_of_count(self, system: System) -> NoReturn:
        """ValueError on fewer equations than coefficients, with what kinks imply."""
        m, k = system.n_equations, system.n_terms
        n_dropped = 0 if m else sum(place.n_dropped for place in self.places)
        if n_dropped:
            bounds: dict[str, float] = {}
            for place in self.places:
                for term, bound in place.kink_bounds().items():
                    bounds[term] = max(bounds.get(term, 0.0), bound)
            shown = ", ".join(f"{term} >= {bound:.6g}" for term, bound in bounds.items())
            raise ValueError(
                f"Expected parameters away from kinks and bounds, got all {n_dropped} at one, "
                "where they give inequalities and no equation: "
                + (f"all that is known is {shown}" if shown else "no coefficient is known")
                + "; fit a model of less regularization."
            )
        absent = sorted(frozenset.intersection(*[p.gradient.absent for p in self.places]))
        if absent and not m:
            raise ValueError(
                f"Expected parameters that training acted on, got {', '.join(absent)}, which no "
                "gradient reaches: they give no equation; select others by params=."
            )
        raise ValueError(
            f"Expected at least as many equations as coefficients, got {m} equations for the "
            f"{k} coefficients {list(system.term_names)}; take fewer terms, or widen params=."
        )


def _beyond(upper: Array, first: list[int], rest: list[int]) -> Array:
    """Columns of a R factor without their part in the span of the first ones."""
    # The first ones may be zero or dependent, and then span fewer directions than they are.
    norms = np.linalg.norm(upper[:, first], axis=0)
    q, r, _ = qr(upper[:, first] / np.where(norms > 0, norms, 1.0), pivoting=True)
    rank = int((np.abs(np.diagonal(r)) > _DEPENDENT).sum())
    left: Array = (q.T @ upper[:, rest])[rank:]
    return left


# Equations of a family, and the spread of row gradients at each of its endpoints.
Observed = tuple[Equations, list[Spread]]
