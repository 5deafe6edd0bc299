"""Equations at one place: an endpoint, a window, or R factors alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.penalties.frames import Frame
from sklearn_implicitreg.problem import LossGradient, Problem
from sklearn_implicitreg.regression.blocks import Block, as_rows, device_r_factor, streamed_r_factor
from sklearn_implicitreg.regression.chunks import Chunks, chained, mapped
from sklearn_implicitreg.regression.design import Design, Piece
from sklearn_implicitreg.regression.shards import Reduced, merged_over, rows_over
from sklearn_implicitreg.regression.spread import Spread
from sklearn_implicitreg.regression.system import Array, Rows, System

_COSINE_OF_INVARIANCE = 1e-3  # BatchNorm's own eps leaves 5e-6, in layers of small weights 2e-4
_NUDGE = 1e-100  # towards which side of a kink: no float64 column changes by it elsewhere
_TOUCH = 1e-8  # the same of singular values, relative to the largest weight
_SMALL = 2**14  # numbers of one tensor's columns that are kept for a second pass
_APART = "some that other ranks have; they are read in fit alone"
_NO_INSTRUMENTS = (
    "a family with random draws along a trajectory, whose coefficients come from instruments: "
    "least squares on its noisy columns is biased; use ImplicitRegularizationEstimator.fit"
)


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
    spread: Spread | None = None  # over blocks of rows, where their noise is asked for

    @cached_property
    def system(self) -> System:
        """R factors of the equations, one per tensor, however few equations there are."""
        return self._system if self.powers is None else self._system.scaled(self.powers)

    @cached_property
    def _system(self) -> System:
        before = self.made if self.given is None else self.given
        if before is not None:
            return before
        names, ranks = self.names, self.problem.ranks

        def reduced() -> list[Reduced]:
            return [self._reduced(name) for name in names]

        if ranks is not None and ranks.sharded:
            every = merged_over(ranks, [1 + len(self.design.support(n)) for n in names], reduced)
        else:
            every = reduced()
        labels, r_factors, counts, supports = [], [], [], []
        for name, (upper, n) in zip(names, every, strict=True):
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

    def _reduced(self, name: str) -> Reduced:
        """R factor of one tensor's equations, and their number."""
        blocks = self._blocks(name)
        if not isinstance(blocks, list):
            return streamed_r_factor(blocks, self.gradient.value[name].device)
        (_, design, target, instruments, _), *_ = blocks
        both = design if instruments is None else torch.cat([instruments, design], dim=1)
        return device_r_factor(both, target), len(target)

    def on(self, names: Sequence[str], columns: list[int]) -> Place:
        """The same place at some tensors alone, in the columns that reach them."""
        params = {name: self.problem.params[name] for name in names}
        system = self._system.on(names, columns)
        if self.problem.is_apart:
            system = replace(system, rows=None, missing=_APART)
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
        n = sum(math.prod(self.problem.shapes[name]) for name in self.names)
        return n - self.system.n_equations

    def target(self, name: str) -> Tensor:
        """Minus the gradient of the loss and of the penalties with known coefficients."""
        return self._target(name, self.design.known(name))

    def _target(self, name: str, known: Tensor | None) -> Tensor:
        slope = self.gradient.value[name].reshape(-1)
        return -slope if known is None else -(slope + known)

    def inequalities(self, coef: Array, slack: float = 0.0) -> Inequalities:
        """Test the coordinates that give no equation: no descent of ``L + sum coef R`` there."""
        # At a kink the slope against the gradient of the rest must not be negative, at a bound the
        # slope away from it. What misses by less than the slack counts as held.
        dropped_here = self.n_dropped
        if not dropped_here:
            return Inequalities(0, 0)
        if not self.design.closed_form or self.problem.is_apart:
            return Inequalities(dropped_here, None)
        violated = 0
        sizes = [float(g.abs().max()) for g in self.gradient.value.values() if g.numel()]
        scale = max(self.problem.over_shards(max(sizes, default=0.0)))
        for name in self.names:
            dropped = self.dropped(name)
            if dropped is None:
                continue
            dropped, side, target, slope = self._beside(name, dropped)
            bound = slope @ torch.as_tensor(coef, dtype=slope.dtype, device=slope.device)
            descent = (target - bound) * side.sign()
            violated += int((dropped & (descent > slack + 1e-6 * scale)).sum())
        return Inequalities(dropped_here, sum(self.problem.over_shards(violated)))

    def kink_bounds(self) -> dict[str, float]:
        """What the coordinates at a kink imply alone: a term's coefficient is at least this."""
        at_bound = any(not bool(free.all()) for free in self.problem.free.values())
        if at_bound or not self.design.closed_form:
            return {}
        found: dict[str, dict[str, float]] = {name: {} for name in self.names}
        for name in self.names:
            dropped = self.dropped(name)
            if dropped is None:
                continue
            dropped, _, target, slope = self._beside(name, dropped)
            target, slope = target[dropped], slope[dropped]
            for j in torch.nonzero((slope.abs() > _NUDGE**0.5).any(0)).reshape(-1).tolist():
                ratio = torch.where(target == 0, 0.0, target / slope[:, j]).max()
                found[name][self.design.term_names[j]] = float(ratio)
        every, bounds = self.problem.over_shards(found), dict[str, float]()
        for name in self.names:
            steep = {term for own in every for term in own[name]}
            if len(steep) == 1:
                (term,) = steep
                bounds[term] = max(
                    bounds.get(term, 0.0), *[own[name].get(term, 0.0) for own in every]
                )
        return bounds

    def scale_invariant(self) -> tuple[tuple[str, ...], bool]:
        """Tensors whose units the loss does not see the scale of, and whether they dominate."""
        if not self.problem.batch_normalized or self.problem.is_apart:
            return (), False
        found, sizes = dict[str, bool](), dict[str, float]()
        for name in self.names:
            tensor = self.problem.params[name]
            pieces = self.design.pieces(name)
            sizes[name] = sum(float(piece.columns.square().sum()) for piece in pieces)
            if tensor.ndim < 2:
                found[name] = not tensor.numel()
                continue
            weight = tensor.double().flatten(1)
            slope = self.gradient.value[name].flatten(1)
            radial = (weight * slope).sum(1).abs()
            limit = _COSINE_OF_INVARIANCE * weight.norm(dim=1) * slope.norm(dim=1)
            found[name] = bool((radial <= limit).all())
        every = self.problem.over_shards((found, sizes))
        names = tuple(name for name in self.names if all(own[name] for own, _ in every))
        inside = sum(own[name] for _, own in every for name in names)
        return names, inside > 0.5 * sum(sum(own.values()) for _, own in every)

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
        start, columns, known, smooth, instruments, room, frame = piece
        stop, free = start + len(columns), self.problem.free.get(name)
        slope = self.gradient.value[name]
        if frame is not None:
            _check_bounds(name, free)
            slope = frame.rotated(slope)
        slope = slope.reshape(-1)[start:stop]
        width = None if frame is None else frame.mask.shape[1]
        out = None if room is None else room[-1]
        target = torch.neg(slope if known is None else slope + known, out=out)
        if free is not None:
            own = free.reshape(-1)[start:stop]
            smooth = own if smooth is None else smooth & own
        if smooth is None or bool(smooth.all()):
            return (start, None, width), columns, target, instruments, room
        index = torch.nonzero(smooth).reshape(-1)
        instruments = None if instruments is None else instruments[index]
        return (start, index, width), columns[index], target[index], instruments, None

    def _rows(self, labels: Sequence[str]) -> Iterable[Rows]:
        """The equations of some tensors as arrays."""
        ranks = self.problem.ranks
        if ranks is not None and ranks.sharded:
            if self.problem.is_apart:
                raise ValueError(f"Expected single equations, got {_APART}.")
            return rows_over(ranks, labels, self._rows_here)
        parts = [mapped(partial(as_rows, name), self._blocks(name)) for name in labels]
        return chained(parts)

    def _rows_here(self, name: str) -> tuple[int, list[Rows]]:
        """Entries of a tensor on this rank, and their equations."""
        parts = list(mapped(partial(as_rows, name), self._blocks(name)))
        return self.problem.params[name].numel(), parts

    @cached_property
    def _kept(self) -> dict[str, list[Block]]:
        return {}

    def dropped(self, name: str) -> Tensor | None:
        """Mask of the coordinates, in a frame, at a kink or a bound; None where there are none."""
        smooth, free = self.design.smooth(name), self.problem.free.get(name)
        if free is not None:
            free = free.reshape(-1)
            smooth = free if smooth is None else smooth & free
        return None if smooth is None or bool(smooth.all()) else ~smooth

    def _beside(self, name: str, dropped: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is tested, direction of descent, target and columns a touch along it from kinks."""
        frame = self.design.frame(name)
        if frame is not None:
            return self._beside_block(name, frame)
        target = self.target(name)
        free = self.problem.free.get(name)
        ones = torch.ones_like(target)
        side = target if free is None else torch.where(free.reshape(-1), target, ones)
        size = side.abs().max()
        nudge = torch.where(dropped, side / torch.where(size == 0, 1.0, size), 0.0) * _NUDGE
        columns, known = self.design.beside(name, nudge.reshape(self.problem.params[name].shape))
        return dropped, side, self._target(name, known), columns

    def _beside_block(self, name: str, frame: Frame) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same in the singular bases of the target's block at a kink, for its diagonal."""
        # Along one pair of the target's singular vectors after the other L + R must not descend:
        # for a nuclear norm this says that the block has a spectral norm of at most coef.
        rows, columns = frame.block()
        inside = torch.meshgrid(rows, columns, indexing="ij")
        left, sizes, right = torch.linalg.svd(frame.rotated(self.target(name))[inside])
        turned, k = Frame(frame.left.clone(), frame.right.clone(), frame.mask), len(sizes)
        turned.left[:, rows] @= left
        turned.right[:, columns] @= right.T
        tested = torch.zeros_like(frame.mask)
        tested[rows[:k], columns[:k]] = True
        tensor = self.design.weights(name)
        size = _TOUCH * tensor.abs().max().clamp(min=_NUDGE)
        kept = torch.where(frame.mask, turned.rotated(tensor), 0.0)
        beside = turned.restored(kept + size * tested).reshape(tensor.shape)
        found, known = self.design.beside(name, beside - tensor)
        slopes = [turned.rotated(own).reshape(-1) for own in found.T]
        target = turned.rotated(self._target(name, known)).reshape(-1)
        return tested.reshape(-1), target, target, torch.stack(slopes, dim=1)


def _check_bounds(name: str, free: Tensor | None) -> None:
    """Raise ValueError for coordinates at a bound, which are none in rotated bases."""
    if free is not None and not bool(free.all()):
        raise ValueError(
            f"Expected no weight at a bound where singular values are zero, got some in {name!r}; "
            "fit a penalty without a kink, or a model without positive=True."
        )
