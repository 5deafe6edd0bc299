"""Equations ``-grad L = sum_k coef_k grad R_k`` at one place or several, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sklearn_implicitreg.penalties import FittedPenalty, Penalty
from sklearn_implicitreg.problem import LossGradient, Problem, Sampling
from sklearn_implicitreg.problem.conventions import Convention
from sklearn_implicitreg.regression.blocks import Block, as_rows, device_r_factor, streamed_r_factor
from sklearn_implicitreg.regression.chunks import Chunks, chained, mapped
from sklearn_implicitreg.regression.constancy import Constancy, constancy
from sklearn_implicitreg.regression.design import Design, Piece
from sklearn_implicitreg.regression.solve import Solution, norm_of
from sklearn_implicitreg.regression.spread import Spread, share_of_pairs
from sklearn_implicitreg.regression.system import (
    Array,
    Rows,
    System,
    explained,
    r_factor,
)

_EPS = float(np.finfo(np.float64).eps)
_COSINE_OF_INVARIANCE = 1e-3  # BatchNorm's own eps leaves 5e-6, in layers of small weights 2e-4
_SLACK = 3.0  # root mean square residuals of the equations that an inequality may miss by
_NUDGE = 1e-100  # towards which side of a kink: no float64 column changes by it elsewhere
_SMALL = 2**14  # numbers of one tensor's columns that are kept for a second pass
_NO_INSTRUMENTS = (
    "a family with random draws along a trajectory, whose coefficients come from instruments: "
    "least squares on its noisy columns is biased; use ImplicitRegularizationEstimator.fit"
)


Cluster = Literal["tensor", "endpoint", "window"]  # what standard errors take for independent
# What a model's convention divides by, the convention, whether each output has a parameter.
Units = tuple[float | None, Convention | None, bool]


class Inequalities(NamedTuple):
    """Coordinates at a kink or a bound, which give inequalities instead of equations."""

    n: int
    n_violated: int | None  # None: not tested


@dataclass(frozen=True, eq=False)
class Place:
    """Equations at one place: an endpoint, a window, or R factors alone."""

    problem: Problem
    design: Design
    gradient: LossGradient
    given: System | None = None
    powers: Array | None = None  # of two, (k + 1,), that multiply columns and target
    made: System | None = None  # the R factors, where they were made before

    @cached_property
    def system(self) -> System:
        """R factors of the equations, one per tensor, however few equations there are."""
        return self._system if self.powers is None else self._system.scaled(self.powers)

    @cached_property
    def _system(self) -> System:
        before = self.made if self.given is None else self.given
        if before is not None:
            return before
        labels, r_factors, counts, supports = [], [], [], []
        for name in self.names:
            blocks = self._blocks(name)
            if isinstance(blocks, list):
                (_, design, target, instruments, _), *_ = blocks
                both = design if instruments is None else torch.cat([instruments, design], dim=1)
                upper, n = device_r_factor(both, target), len(target)
            else:
                upper, n = streamed_r_factor(blocks, self.gradient.value[name].device)
            if n:
                labels.append(name)
                r_factors.append(upper)
                counts.append(n)
                supports.append(self.design.support(name))
        k = len(self.design.term_names)
        instrumented = bool(self.design.instruments)
        if not labels:
            labels, counts, supports = ["none"], [0], [tuple(range(k))]
            r_factors = [np.zeros((k * (1 + instrumented) + 1,) * 2)]
        return System(
            self.design.term_names,
            tuple(labels),
            tuple(r_factors),
            tuple(counts),
            None if instrumented else self._rows,
            _NO_INSTRUMENTS,
            instrumented,
            None if set(map(len, supports)) == {k} else tuple(supports),
        )

    def on(self, names: Sequence[str], columns: list[int]) -> Place:
        """The same place at some tensors alone, in the columns that reach them."""
        params = {name: self.problem.params[name] for name in names}
        system = self._system.on(names, columns)
        return Place(
            replace(self.problem, params=params),
            self.design.on(names, columns),
            self.gradient,
            None if self.given is None else system,
            made=system,
        )

    @property
    def names(self) -> list[str]:
        """Tensors in scope that training acted on; the others give no equations."""
        return [name for name in self.problem.params if name not in self.gradient.absent]

    @property
    def rounding(self) -> float:
        """Norm below which the target is zero to rounding."""
        size = self.gradient.rounding(self.problem.eps)
        return size if self.powers is None else size * float(self.powers[-1])

    @property
    def per_row(self) -> float:
        """What a parameter of the model's convention is multiplied by to be a coefficient."""
        convention = self.problem.convention
        if convention is None or not convention.per_row:
            return 1.0
        return 1.0 / (self.problem.n_effective or self.gradient.weight)

    @property
    def n_dropped(self) -> int:
        """Coordinates in scope that give no equation."""
        if self.given is not None:
            return 0
        n = sum(self.problem.params[name].numel() for name in self.names)
        return n - self.system.n_equations

    def target(self, name: str, tensor: Tensor | None = None) -> Tensor:
        """Minus the gradient of the loss and of the penalties with known coefficients."""
        slope = self.gradient.value[name].reshape(-1)
        known = self.design.known(name, tensor)
        return -slope if known is None else -(slope + known)

    def inequalities(self, coef: Array, slack: float = 0.0) -> Inequalities:
        """Test the coordinates that give no equation: no descent of ``L + sum coef R`` there."""
        # At a kink the slope against the gradient of the rest must not be negative, at a bound the
        # slope away from it. What misses by less than the slack counts as held.
        dropped_here = self.n_dropped
        if not dropped_here:
            return Inequalities(0, 0)
        if not self.design.closed_form:
            return Inequalities(dropped_here, None)
        violated = 0
        scale = max(float(g.abs().max()) for g in self.gradient.value.values() if g.numel())
        for name in self.names:
            dropped = self.dropped(name)
            if dropped is None:
                continue
            side, beside, slope = self._beside(name, dropped)
            bound = slope @ torch.as_tensor(coef, dtype=slope.dtype, device=slope.device)
            descent = (self.target(name, beside) - bound) * side.sign()
            violated += int((dropped & (descent > slack + 1e-6 * scale)).sum())
        return Inequalities(dropped_here, violated)

    def kink_bounds(self) -> dict[str, float]:
        """What the coordinates at a kink imply alone: a term's coefficient is at least this."""
        bounds: dict[str, float] = {}
        at_bound = any(not bool(free.all()) for free in self.problem.free.values())
        if at_bound or not self.design.closed_form:
            return bounds
        for name in self.names:
            dropped = self.dropped(name)
            if dropped is None:
                continue
            _, beside, slope = self._beside(name, dropped)
            steep = torch.nonzero((slope[dropped].abs() > _NUDGE**0.5).any(0)).reshape(-1)
            if len(steep) == 1:
                term = self.design.term_names[int(steep)]
                target, own = self.target(name, beside)[dropped], slope[dropped, int(steep)]
                ratio = torch.where(target == 0, 0.0, target / own).max()
                bounds[term] = max(bounds.get(term, 0.0), float(ratio))
        return bounds

    def scale_invariant(self) -> tuple[tuple[str, ...], bool]:
        """Tensors whose units the loss does not see the scale of, and whether they dominate."""
        if not self.problem.batch_normalized:
            return (), False
        found, inside, total = [], 0.0, 0.0
        for name in self.names:
            tensor = self.problem.params[name]
            size = sum(float(piece.columns.square().sum()) for piece in self.design.pieces(name))
            total += size
            if tensor.ndim < 2:
                continue
            weight = tensor.double().flatten(1)
            slope = self.gradient.value[name].flatten(1)
            radial = (weight * slope).sum(1).abs()
            limit = _COSINE_OF_INVARIANCE * weight.norm(dim=1) * slope.norm(dim=1)
            if bool((radial <= limit).all()):
                found.append(name)
                inside += size
        return tuple(found), inside > 0.5 * total

    def _blocks(self, name: str) -> list[Block] | Chunks[Block]:
        """Equations of one tensor, those of a small one kept for the second pass."""
        if name in self._kept:
            return self._kept[name]
        pieces = self.design.pieces(name)
        if isinstance(pieces, list):
            blocks = [self._block(name, piece) for piece in pieces]
            if blocks[0][1].numel() <= _SMALL:
                self._kept[name] = blocks
            return blocks
        return pieces.then(lambda piece: self._block(name, piece))

    def _block(self, name: str, piece: Piece) -> Block:
        """Equations of a piece of a tensor: those at no kink and no bound."""
        start, columns, known, smooth, instruments, room = piece
        stop, free = start + len(columns), self.problem.free.get(name)
        slope = self.gradient.value[name].reshape(-1)[start:stop]
        out = None if room is None else room[-1]
        target = torch.neg(slope if known is None else slope + known, out=out)
        if free is not None:
            own = free.reshape(-1)[start:stop]
            smooth = own if smooth is None else smooth & own
        if smooth is None or bool(smooth.all()):
            return (start, None), columns, target, instruments, room
        index = torch.nonzero(smooth).reshape(-1)
        instruments = None if instruments is None else instruments[index]
        return (start, index), columns[index], target[index], instruments, None

    def _rows(self, labels: Sequence[str]) -> Iterable[Rows]:
        """The equations of some tensors as arrays."""
        parts = [mapped(partial(as_rows, name), self._blocks(name)) for name in labels]
        return chained(parts)

    @cached_property
    def _kept(self) -> dict[str, list[Block]]:
        return {}

    def dropped(self, name: str) -> Tensor | None:
        """Mask of the coordinates at a kink or a bound; None where there are none."""
        smooth, free = self.design.smooth(name), self.problem.free.get(name)
        if free is not None:
            free = free.reshape(-1)
            smooth = free if smooth is None else smooth & free
        return None if smooth is None or bool(smooth.all()) else ~smooth

    def _beside(self, name: str, dropped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Direction of descent, the tensor a touch along it from its kinks, its columns."""
        tensor, target = self.design.weights(name), self.target(name)
        free = self.problem.free.get(name)
        ones = torch.ones_like(target)
        side = target if free is None else torch.where(free.reshape(-1), target, ones)
        size = side.abs().max()
        nudge = torch.where(dropped, side / torch.where(size == 0, 1.0, size), 0.0) * _NUDGE
        beside = tensor + nudge.reshape(tensor.shape)
        return side, beside, self.design.columns(name, beside)


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
    nuisance: str | None = None
    noisy: bool = False
    objection: str = ""
    evidence: str = ""
    agreement: str = ""
    step_rounding: float = 0.0  # norm over all windows of what rounding did to the steps

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.places[0].system.term_names

    @property
    def family(self) -> list[int]:
        """Which columns are of the family."""
        return [i for i, name in enumerate(self.term_names) if name != self.nuisance]

    @property
    def judged(self) -> Place:
        """The place that R-squared and scores are about: the mean over windows, or the only one."""
        return self.places[0] if self.mean is None else self.mean

    @property
    def units(self) -> Array | float:
        """What takes coefficients of the multiplied columns and target back, (k,)."""
        powers = self.judged.powers
        return 1.0 if powers is None else powers[:-1] / powers[-1]

    def in_range(self) -> Equations:
        """These equations, multiplied by powers of two where squares would be out of range."""
        powers = self.system.powers()
        if powers is None:
            return self
        places = tuple(replace(place, powers=powers) for place in self.places)
        mean = self.mean and replace(self.mean, powers=powers)
        return replace(self, places=places, mean=mean)

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
            nuisance=self.nuisance if self.nuisance in left else None,
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
        """R factor of the family's columns and the target, the nuisance column projected out."""
        kept = self.family
        if self.nuisance is None:
            return system.r_factor
        first = [i for i in range(system.n_terms) if i not in kept]
        turned = system.r_factor[:, [*first, *kept, system.n_terms]]
        return r_factor(turned[:, :-1], turned[:, -1])[len(first) :, len(first) :]

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
        if not self.noisy:
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
        if norm_of(self.system.r_factor[:, -1]) <= self.rounding:
            return 0.0
        return explained(self.system.r_factor, coef)

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
        size = float(target @ target)
        if self.nuisance is None:
            return size
        column = upper[:, system.term_names.index(self.nuisance)]
        length = float(column @ column)
        return size - float(column @ target) ** 2 / length if length else size

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


# Equations of a family, and the spread of row gradients at each of its endpoints.
Observed = tuple[Equations, list[Spread]]
