"""Steps of a trajectory, and windows of them that are one block of equations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_implicitreg.problem import Indices, Params, Problem
from sklearn_implicitreg.problem.vectors import wide
from sklearn_implicitreg.trajectory.batches import batch_of
from sklearn_implicitreg.trajectory.marks import Mark

_STACKED = 2**17  # numbers of one tensor's iterates at a time: they stay in the cache


@dataclass(frozen=True)
class Step:
    """What is known of one step, apart from the weights.

    Parameters
    ----------
    lr : float
        Step size of the first parameter group.
    rows : array of int or None, default=None
        Rows of the batch, where they were named.
    batch_size : int or None, default=None
    rounding : float, default=nan
        Norm of the rounding in the applied gradient; see :meth:`Trajectory.rounding`.
    skipped : frozenset of str, default=frozenset()
        Tensors that the step did not update: frozen, or without a gradient.
    parts : tuple of (int or None, float or None), default=()
        Number of rows of every batch whose gradients were accumulated, and the factor of its loss
        in their sum; none where the step was on the loss of one batch. A factor None is 1 over
        the number of batches, or 1 where the loss is a sum over rows.
    seen : tuple of Mark, default=()
        The batches by their tensors, where they are not all rows of the data set.
    """

    lr: float
    rows: Indices | None = None
    batch_size: int | None = None
    rounding: float = float("nan")
    skipped: frozenset[str] = frozenset()
    parts: tuple[tuple[int | None, float | None], ...] = ()
    seen: tuple[Any, ...] = ()

    def factors(self, problem: Problem) -> npt.NDArray[np.float64]:
        """Factor of the loss of every batch in the gradient of the step."""
        usual = 1.0 if problem.trained_sum else 1 / max(1, len(self.parts))
        given = [usual if own is None else own for _, own in self.parts]
        return np.array(given or [1.0])

    def used(self, problem: Problem) -> list[tuple[Indices, float, float]] | None:
        """Rows and mass of every batch, and the share of its mean loss in that of the step."""
        if self.rows is None or self.rows.max() >= (problem.n_rows or 0):
            return None
        masses = problem.masses
        ends = np.cumsum([size or 0 for size, _ in self.parts], dtype=np.int64)
        batches = np.split(self.rows, ends[:-1])
        sizes = [float(len(b) if masses is None else masses[b].sum()) for b in batches]
        return list(zip(batches, sizes, self._shares(problem, sizes), strict=True))

    def alone(self, problem: Problem) -> list[tuple[Step, float]] | None:
        """Each batch as a step of its own, and the share of its mean loss in that of the step."""
        one = replace(self, rows=None, parts=(), seen=())
        if self.seen:
            shares: Sequence[float] = self.factors(problem).tolist()
            if problem.trained_sum:
                shares = self._shares(problem, self.masses_seen(problem))
            counts = [size for size, _ in self.parts] or [self.batch_size]
            known = zip(self.seen, counts, shares, strict=True)
            return [(replace(one, seen=(b,), batch_size=n), share) for b, n, share in known]
        used = self.used(problem)
        if used is None:
            return None
        return [(replace(one, rows=r, batch_size=len(r)), share) for r, _, share in used]

    def masses_seen(self, problem: Problem) -> list[float]:
        """Mass of every batch that is known by its tensors."""
        found = [problem.seeing(batch_of(batch)) for batch in self.seen]
        masses = [own.masses for own in found]
        sizes = [own.n_rows or 0 for own in found]
        pairs = zip(masses, sizes, strict=True)
        return [float(n if mass is None else mass.sum()) for mass, n in pairs]

    def _shares(self, problem: Problem, sizes: Sequence[float]) -> list[float]:
        """Share of the mean loss of every batch in that of the step."""
        if not min(sizes) > 0:
            raise ValueError(
                "Expected batches whose rows count in the loss, got one in which all are "
                "ignored or of weight zero."
            )
        shares = self.factors(problem)
        if problem.trained_sum:  # each loss is its mean times its mass; together one mean
            shares = shares * sizes / (shares @ sizes)
        found: list[float] = shares.tolist()
        return found

    def merged(self, problem: Problem) -> bool:
        """Whether the step is one on the mean loss over all rows of its batches."""
        if len(self.parts) < 2 and self.loss_factor(problem) == 1:
            return True
        used = None if problem.batch_normalized else self.used(problem)
        if used is None:
            return False
        densities = np.array([share / size for _, size, share in used])
        even = 1 / sum(size for _, size, _ in used)
        return bool(np.allclose(densities, even, rtol=1e-12, atol=0))

    def loss_factor(self, problem: Problem) -> float:
        """What the shares of the batches sum to: 1 unless losses were not divided."""
        total = 1.0 if problem.trained_sum else float(self.factors(problem).sum())
        return 1.0 if abs(total - 1) < 1e-12 else total  # six times 1/6 is not 1


@dataclass(frozen=True)
class Window:
    """Steps between two marks as one block of equations."""

    start: Mark
    stop: Mark
    inside: tuple[Mark, ...]  # marks at which a step of the window began
    steps: tuple[Step, ...]
    # What no recorded optimizer moved: values before the first change, None where not kept.
    others: Mapping[str, Tensor | None] = field(default_factory=dict)
    # Only the steps that updated this tensor count; None: all. What a tensor has in a window are
    # sums over its own steps, divided by the number of all steps.
    of: str | None = None

    @property
    def n_steps(self) -> int:
        """Number of steps that count, T."""
        return self.stop.step - self.start.step if self.of is None else len(self.counted)

    @property
    def counted(self) -> tuple[Step, ...]:
        """The steps that count."""
        if self.of is None:
            return self.steps
        return tuple(step for step in self.steps if self.of not in step.skipped)

    @cached_property
    def skipping(self) -> frozenset[str]:
        """Tensors that some step did not update."""
        return frozenset().union(*{step.skipped for step in self.steps})

    def n_updates(self, name: str) -> int:
        """Number of the steps that count and updated a tensor."""
        if name not in self.skipping:
            return self.n_steps
        return sum(name not in step.skipped for step in self.counted)

    def absent(self, names: Iterable[str]) -> frozenset[str]:
        """Tensors that no step that counts updated."""
        return frozenset(n for n in self.skipping.intersection(names) if not self.n_updates(n))

    def groups(self, names: Iterable[str]) -> list[tuple[list[str], float, Window]]:
        """Tensors that the same steps updated, the share of these steps, and the window of them."""
        found: dict[tuple[bool, ...], list[str]] = {}
        for name in names:
            mixed = name in self.skipping
            key = tuple(name not in step.skipped for step in self.steps) if mixed else ()
            found.setdefault(key, []).append(name)
        parts = {key: replace(self, of=own[0] if key else None) for key, own in found.items()}
        return [
            (own, parts[key].n_steps / self.n_steps, parts[key])
            for key, own in found.items()
            if parts[key].n_steps
        ]

    def mean_gradient(self, what: str, problem: Problem) -> Params:
        """Mean over the steps of "applied" or "consumed", in units of the mean loss L."""
        scales = self.scales(problem)
        if np.ptp(scales) <= 1e-12 * scales[0]:
            return {name: t.div_(scales[0]) for name, t in self.mean(what).items()}
        total: Params = {}
        for part in self.parts():
            own, scales = scales[: part.n_steps], scales[part.n_steps :]
            if np.ptp(own) > 1e-12 * own[0]:
                raise ValueError(
                    "Expected batches of one size between two marks with a loss of reduction="
                    "'sum'; record with every=1, or drop the last batch of an epoch."
                )
            for name, tensor in part.mean(what).items():
                share = tensor * (part.n_steps / self.n_steps / own[0])
                total[name] = total[name] + share if name in total else share
        return total

    def scales(self, problem: Problem) -> npt.NDArray[np.float64]:
        """What each step was trained on over the mean loss L, of shape (T,)."""
        scales = np.full(self.n_steps, problem.trained_factor)
        if not problem.trained_sum:
            return scales
        masses = problem.masses
        if masses is not None and np.ptp(masses) == 0:
            scales, masses = scales * masses[0], None
        sizes = [_mass(step, problem, masses) for step in self.counted]
        if not all(sizes):
            what = "rows of every batch" if masses is not None else "size of every batch"
            raise ValueError(
                f"Expected the {what} with a loss of reduction='sum', got steps without; name "
                "them with recorder.batch(rows) while recording."
            )
        return np.asarray(scales * sizes)

    def mean(self, what: str) -> Params:
        """Mean over the steps of "applied", "consumed" or "visited"."""
        if what == "visited" and self.skipping:
            return self._position()
        first, last = (self._sums(what, mark) for mark in (self.start, self.stop))
        if not last:
            raise ValueError(
                "reference='applied' needs the gradients that the optimizer was given, which this "
                "trajectory does not hold; record with gradients=True (default with every=1 only)."
            )
        return {name: (last[name] - t).div_(self.n_steps) for name, t in first.items()}

    def changing(self) -> set[str]:
        """Whole numbers of the model that moved between its steps: a mean of them is none."""
        held = [name for name, began in self.others.items() if began is not None]
        whole = [name for name in held if squares_of(name) in self.others]
        if not whole or self.n_steps < 2:
            return set()
        mean = self.mean("visited")
        found = set()
        for name in whole:
            own, square = mean[name], mean[squares_of(name)]
            apart = (square - own.square()) > 1e-9 * square
            if bool((apart | (own != own.round())).any()):
                found.add(name)
        return found

    def _sums(self, what: str, mark: Mark) -> Params:
        """Sums at a mark, also of what moves without the recorded optimizers."""
        return with_others(mark, self.others) if what == "visited" else getattr(mark, what)

    def _position(self) -> Params:
        """Mean weights over the steps that count, also of tensors that they did not update."""
        ends = (*self.inside, self.stop)
        if len(ends) > 2:
            total: Params = {}
            for part in self.parts():
                for name, tensor in part.mean("visited").items():
                    share = tensor * (part.n_steps / self.n_steps)
                    total[name] = total[name] + share if name in total else share
            return total
        own = replace(self, of=None)
        found: Params = {}
        first, last = (self._sums("visited", mark) for mark in (self.start, self.stop))
        for name, before in first.items():
            # Between two marks a tensor that is updated stands where its own steps found it.
            n = own.n_updates(name)
            if n:
                found[name] = (last[name] - before).div_(n)
            else:  # decay may move it
                rest, end = self.start.weights[name].double(), self.stop.weights[name].double()
                n = len(self.steps)
                found[name] = rest + (end - rest) * ((n - 1) / (2 * n))
        return found

    def parts(self) -> Iterator[Window]:
        """The steps between any two marks."""
        ends = (*self.inside, self.stop)
        for mark, after in zip(ends[:-1], ends[1:], strict=True):
            first, last = mark.step - self.start.step, after.step - self.start.step
            steps = self.steps[first:last]
            part = replace(self, start=mark, stop=after, inside=(mark,), steps=steps)
            if part.n_steps:
                yield part

    def stacks(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterates of one tensor in stacks, and the share of the steps that each stands for."""
        ends = (*self.inside, self.stop)
        size = max(1, _STACKED // max(1, self.start.tensor("visited", name).numel()))
        for i in range(0, len(ends) - 1, size):
            part = ends[i : i + size + 1]
            visited = torch.stack([mark.tensor("visited", name) for mark in part])
            counts = visited.new_tensor(self._counts(name, part))
            stack = visited.diff(dim=0)
            if name in self.skipping:
                stack, counts = stack[counts > 0], counts[counts > 0]
            if len(counts):
                stack.div_(counts.reshape(-1, *[1] * (visited.ndim - 1)))
                yield stack, counts / self.n_steps

    def _counts(self, name: str, marks: Sequence[Mark]) -> list[int]:
        """How many steps between any two marks updated a tensor."""
        steps = [mark.step - self.start.step for mark in marks]
        pairs = list(zip(steps[:-1], steps[1:], strict=True))
        if name not in self.skipping:
            return [last - first for first, last in pairs]
        updated = [name not in step.skipped for step in self.steps]
        return [sum(updated[first:last]) for first, last in pairs]

    def batches_of_penalty(self, problem: Problem) -> tuple[Indices, ...] | None:
        """Rows that penalties on batches take for those of a step; None where they are no mean."""
        known = [(step, step.rows) for step in self.counted if step.rows is not None]
        rows = tuple(own for _, own in known)
        return rows or None if all(step.merged(problem) for step, _ in known) else None

    def merged(self, problem: Problem) -> bool:
        """Whether every step is one on the mean loss over all rows of its batches."""
        return all(step.merged(problem) for step in self.counted)

    def batches(self, problem: Problem) -> list[tuple[Window, float]] | None:
        """The window with each batch alone, and its share in the mean; None if unknown."""
        found = []
        for step in self.counted:
            alone = step.alone(problem)
            if alone is None:
                return None
            found += [(replace(self, steps=(own,)), share / self.n_steps) for own, share in alone]
        return found

    def row_weights(self, problem: Problem) -> npt.NDArray[np.float64] | None:
        """``omega_i``: mean of 1 / batch size over the steps, 0 without row i; None if unknown."""
        # With masses of the rows it is one over the mass of the batch: what the loss multiplies
        # by the mass of the row.
        weights = np.zeros(problem.n_rows or 0)
        for step in self.counted:
            used = step.used(problem)
            if used is None:
                return None
            for rows, mass, share in used:
                np.add.at(weights, rows, share / (mass * self.n_steps))
        return weights

    def loss_factor(self, problem: Problem) -> float:
        """Loss of a step over a mean over rows, on average: 1 unless losses were not divided."""
        return float(np.mean([step.loss_factor(problem) for step in self.counted]))

    @property
    def rounding(self) -> float:
        """Norm of the rounding in the mean applied gradient, at most; nan where unknown."""
        return float(np.mean([step.rounding for step in self.steps]))


def with_others(mark: Mark, others: Mapping[str, Tensor | None]) -> Params:
    """Sums of what the steps visited, also of what had not moved yet at a mark."""
    if not others:
        return mark.visited
    sums = {name: t for name, t in mark.visited.items() if others.get(name, t) is not None}
    begun = {name: t for name, t in others.items() if t is not None and name not in sums}
    return {**sums, **{name: wide(t) * mark.step for name, t in begun.items()}}


def squares_of(name: str) -> str:
    """Name that the squares of what moves besides have among the sums, where it is whole."""
    return f"{name} squared"


def on_device(
    others: Mapping[str, Tensor | None], device: torch.device
) -> dict[str, Tensor | None]:
    """What moves besides, on a device."""
    return {name: None if t is None else t.to(device) for name, t in others.items()}


def _mass(step: Step, problem: Problem, masses: npt.NDArray[np.float64] | None) -> float | None:
    """Mass of the rows of a step, each as often as its loss counts."""
    sizes: list[float | None] = [size for size, _ in step.parts] or [step.batch_size]
    if masses is not None and step.seen:
        sizes = [*step.masses_seen(problem)]
    elif masses is not None:
        sizes = [size for _, size, _ in step.used(problem) or []]
    if not sizes or None in sizes:
        return None
    return float(step.factors(problem) @ np.array(sizes, dtype=np.float64))
