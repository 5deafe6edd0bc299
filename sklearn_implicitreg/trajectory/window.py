"""Steps of a trajectory, and windows of them that are one block of equations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
    parts : tuple of (int or None, float or None), default=()
        Number of rows of every batch whose gradients were accumulated, and the factor of its loss
        in their sum; none where the step was on the loss of one batch. A factor None is 1 over
        the number of batches, or 1 where the loss is a sum over rows.
    """

    lr: float
    rows: Indices | None = None
    batch_size: int | None = None
    rounding: float = float("nan")
    parts: tuple[tuple[int | None, float | None], ...] = ()

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
        if not min(sizes) > 0:
            raise ValueError(
                "Expected batches whose rows count in the loss, got one in which all are "
                "ignored or of weight zero."
            )
        shares = self.factors(problem)
        if problem.trained_sum:  # each loss is its mean times its mass; together one mean
            shares = shares * sizes / (shares @ sizes)
        return list(zip(batches, sizes, shares.tolist(), strict=True))

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
        return 1.0 if problem.trained_sum else float(self.factors(problem).sum())


@dataclass(frozen=True)
class Window:
    """Steps between two marks as one block of equations."""

    start: Mark
    stop: Mark
    inside: tuple[Mark, ...]  # marks at which a step of the window began
    steps: tuple[Step, ...]

    @property
    def n_steps(self) -> int:
        """Number of steps, T."""
        return self.stop.step - self.start.step

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
        sizes = [_mass(step, problem, masses) for step in self.steps]
        if not all(sizes):
            what = "rows of every batch" if masses is not None else "size of every batch"
            raise ValueError(
                f"Expected the {what} with a loss of reduction='sum', got steps without; name "
                "them with recorder.batch(rows) while recording."
            )
        return np.asarray(scales * sizes)

    def mean(self, what: str) -> Params:
        """Mean over the steps of "applied", "consumed" or "visited"."""
        first, last = getattr(self.start, what), getattr(self.stop, what)
        if not last:
            raise ValueError(
                "reference='applied' needs the gradients that the optimizer was given, which this "
                "trajectory does not hold; record with gradients=True (default with every=1 only)."
            )
        return {name: (last[name] - first[name]).div_(self.n_steps) for name in last}

    def parts(self) -> Iterator[Window]:
        """The steps between any two marks."""
        ends = (*self.inside, self.stop)
        for mark, after in zip(ends[:-1], ends[1:], strict=True):
            first, last = mark.step - self.start.step, after.step - self.start.step
            yield Window(mark, after, (mark,), self.steps[first:last])

    def iterates(self) -> Iterator[tuple[Params, int]]:
        """Mean weights between any two marks, and for how many steps they stand."""
        # A column that is linear in the weights is as exact there as with a mark at every step.
        return ((part.mean("visited"), part.n_steps) for part in self.parts())

    def stacks(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterates of one tensor in stacks, and the share of the steps that each stands for."""
        ends = (*self.inside, self.stop)
        size = max(1, _STACKED // max(1, self.start.tensor("visited", name).numel()))
        for i in range(0, len(ends) - 1, size):
            part = ends[i : i + size + 1]
            visited = torch.stack([mark.tensor("visited", name) for mark in part])
            counts = visited.new_tensor([mark.step for mark in part]).diff()
            stack = visited.diff(dim=0).div_(counts.reshape(-1, *[1] * (visited.ndim - 1)))
            yield stack, counts / self.n_steps

    def batches(self, problem: Problem) -> list[tuple[Window, float]] | None:
        """The window with each batch alone, and its share in the mean; None if unknown."""
        found = []
        for step in self.steps:
            used = step.used(problem)
            if used is None:
                return None
            for rows, _, share in used:
                alone = replace(step, rows=rows, batch_size=len(rows), parts=())
                found.append((replace(self, steps=(alone,)), share / len(self.steps)))
        return found

    def row_weights(self, problem: Problem) -> npt.NDArray[np.float64] | None:
        """``omega_i``: mean of 1 / batch size over the steps, 0 without row i; None if unknown."""
        # With masses of the rows it is one over the mass of the batch: what the loss multiplies
        # by the mass of the row.
        weights = np.zeros(problem.n_rows or 0)
        for step in self.steps:
            used = step.used(problem)
            if used is None:
                return None
            for rows, mass, share in used:
                np.add.at(weights, rows, share / (mass * len(self.steps)))
        return weights

    def loss_factor(self, problem: Problem) -> float:
        """Loss of a step over a mean over rows, on average: 1 unless losses were not divided."""
        return float(np.mean([step.loss_factor(problem) for step in self.steps]))

    @property
    def rounding(self) -> float:
        """Norm of the rounding in the mean applied gradient, at most; nan where unknown."""
        return float(np.mean([step.rounding for step in self.steps]))


def check_count(name: str, value: Any) -> None:
    """Raise ValueError for a number, such as of steps, that is not an integer above zero."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"Expected {name} to be an integer >= 1, got {value!r}.")


def _mass(step: Step, problem: Problem, masses: npt.NDArray[np.float64] | None) -> float | None:
    """Mass of the rows of a step, each as often as its loss counts."""
    sizes: list[float | None] = [size for size, _ in step.parts] or [step.batch_size]
    if masses is not None:
        sizes = [size for _, size, _ in step.used(problem) or []]
    if not sizes or None in sizes:
        return None
    return float(step.factors(problem) @ np.array(sizes, dtype=np.float64))
