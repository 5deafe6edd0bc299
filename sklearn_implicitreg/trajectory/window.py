"""Steps of a trajectory, and windows of them that are one block of equations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_implicitreg.problem import Indices, Params, Problem
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
    still : tuple of str, default=()
        Recorded tensors that the step was none of, as their optimizer did not step.
    """

    lr: float
    rows: Indices | None = None
    batch_size: int | None = None
    rounding: float = float("nan")
    still: tuple[str, ...] = ()


@dataclass(frozen=True)
class Window:
    """Steps between two marks as one block of equations."""

    start: Mark
    stop: Mark
    inside: tuple[Mark, ...]  # marks at which a step of the window began
    steps: tuple[Step, ...]
    # What no recorded optimizer moved: values before the first change, None where not kept.
    others: Mapping[str, Tensor | None] = field(default_factory=dict)

    @property
    def n_steps(self) -> int:
        """Number of steps, T."""
        return self.stop.step - self.start.step

    @cached_property
    def _still(self) -> Counter[str]:
        return Counter(chain.from_iterable(step.still for step in self.steps))

    def count(self, name: str) -> int:
        """Number of the steps that were steps of a tensor."""
        return self.n_steps - self._still[name]

    def mean_gradient(self, what: str, problem: Problem) -> Params:
        """Mean over the steps of "applied" or "consumed", in units of the mean loss L."""
        scales = self.scales(problem)
        if np.ptp(scales) <= 1e-12 * scales[0]:
            return {name: t.div_(scales[0]) for name, t in self.mean(what).items()}
        total: Params = {}
        for part in self.parts():
            first = part.start.step - self.start.step
            own = scales[first : first + part.n_steps]
            if np.ptp(own) > 1e-12 * own[0]:
                raise ValueError(
                    "Expected batches of one size between two marks with a loss of reduction="
                    "'sum'; record with every=1, or drop the last batch of an epoch."
                )
            for name, tensor in part.mean(what).items():
                share = tensor * (part.count(name) / self.count(name) / own[0])
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
        sizes = [_mass(step, masses) for step in self.steps]
        if not all(sizes):
            what = "rows of every batch" if masses is not None else "size of every batch"
            raise ValueError(
                f"Expected the {what} with a loss of reduction='sum', got steps without; name "
                "them with recorder.batch(rows) while recording."
            )
        return np.asarray(scales * sizes)

    def mean(self, what: str) -> Params:
        """Mean of "visited" over the steps, or of "applied" or "consumed" over a tensor's own."""
        first, last = getattr(self.start, what), getattr(self.stop, what)
        if what == "visited":
            first, last = (with_others(mark, self.others) for mark in (self.start, self.stop))
            counts = {name: self.count(name) for name in first}
            moved = {name: (last[name] - first[name]).div_(n) for name, n in counts.items() if n}
            still = counts.keys() - moved.keys()
            return moved | {name: self.start.tensor("weights", name).double() for name in still}
        if not last:
            raise ValueError(
                "reference='applied' needs the gradients that the optimizer was given, which this "
                "trajectory does not hold; record with gradients=True (default with every=1 only)."
            )
        counts = {name: self.count(name) for name in last}
        return {name: (last[name] - first[name]).div_(n) for name, n in counts.items() if n}

    def parts(self) -> Iterator[Window]:
        """The steps between any two marks."""
        ends = (*self.inside, self.stop)
        return (self._between(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True))

    def _between(self, start: Mark, stop: Mark) -> Window:
        first, last = start.step - self.start.step, stop.step - self.start.step
        return Window(start, stop, (start,), self.steps[first:last], self.others)

    def share_of(self, part: Window) -> Callable[[str], float]:
        """Share of a part of the window in the steps of a tensor."""
        return lambda name: part.count(name) / max(1, self.count(name))

    def stacks(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterates of one tensor in stacks, and the share of the steps that each stands for."""
        ends = (*self.inside, self.stop)
        size = max(1, _STACKED // max(1, self.start.tensor("visited", name).numel()))
        still = self._still[name]
        if still == self.n_steps:
            stays = self.start.tensor("weights", name).double()[None]
            yield stays, torch.ones(1).to(stays)
            return
        for i in range(0, len(ends) - 1, size):
            part = ends[i : i + size + 1]
            visited = torch.stack([mark.tensor("visited", name) for mark in part])
            counts = visited.new_tensor([mark.step for mark in part]).diff()
            if still:
                own = zip(part[:-1], part[1:], strict=True)
                counts = visited.new_tensor([self._between(a, b).count(name) for a, b in own])
            made = visited.diff(dim=0)
            if still:
                made, counts = made[counts > 0], counts[counts > 0]
                if not len(counts):
                    continue
            made = made.div_(counts.reshape(-1, *[1] * (visited.ndim - 1)))
            yield made, counts / (self.n_steps - still)

    def row_weights(
        self, n_rows: int, masses: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.float64] | None:
        """``omega_i``: mean of 1 / batch size over the steps, 0 without row i; None if unknown."""
        # With masses of the rows it is one over the mass of the batch: what the loss multiplies
        # by the mass of the row.
        weights = np.zeros(n_rows)
        for step in self.steps:
            if step.rows is None or step.rows.max() >= n_rows:
                return None
            size = len(step.rows) if masses is None else masses[step.rows].sum()
            if not size > 0:
                raise ValueError(
                    "Expected batches whose rows count in the loss, got one in which all are "
                    "ignored or of weight zero."
                )
            np.add.at(weights, step.rows, 1.0 / (size * self.n_steps))
        return weights

    @property
    def rounding(self) -> float:
        """Norm of the rounding in the mean applied gradient, at most; nan where unknown."""
        return float(np.mean([step.rounding for step in self.steps]))


def with_others(mark: Mark, others: Mapping[str, Tensor | None]) -> Params:
    """Sums of what the steps visited, also of what had not moved yet at a mark."""
    sums = mark.visited
    begun = {name: t for name, t in others.items() if t is not None and name not in sums}
    return {**sums, **{name: t.double() * mark.step for name, t in begun.items()}}


def check_count(name: str, value: Any) -> None:
    """Raise ValueError for a number, such as of steps, that is not an integer above zero."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"Expected {name} to be an integer >= 1, got {value!r}.")


def _mass(step: Step, masses: npt.NDArray[np.float64] | None) -> float | None:
    if masses is None:
        return step.batch_size
    if step.rows is None or step.rows.max() >= len(masses):
        return None
    return float(masses[step.rows].sum())
