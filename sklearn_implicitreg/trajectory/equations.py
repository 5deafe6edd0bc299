"""Equations of a recorded path: one block for each window of steps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from sklearn_implicitreg.exceptions import PathNoiseWarning
from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.gradients import BatchGradientNorm
from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.progress import progress
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.stacks import StackedEquations
from sklearn_implicitreg.regression.system import Array, GradientSystem, merge
from sklearn_implicitreg.trajectory.instruments import InstrumentedEquations
from sklearn_implicitreg.trajectory.minibatch import (
    NUISANCE,
    has_nuisance,
    mean_column,
    minibatch_column,
    named_batches,
)
from sklearn_implicitreg.trajectory.references import Gradient, Reference, check_flow
from sklearn_implicitreg.trajectory.stretches import MeanColumns, deviation
from sklearn_implicitreg.trajectory.trajectory import Trajectory, Window
from sklearn_implicitreg.trajectory.vectors import weighted_sum

__all__ = ["NUISANCE", "PathEquations", "PathTargets"]


@dataclass(frozen=True)
class PathTargets:
    """What every family along a path shares: one deviation of the path for each window.

    Parameters
    ----------
    problem : Problem
        The trained model, whose tensors in scope give the equations.
    reference : Reference
    windows : tuple of Window
    deviations : tuple of LossGradient
        Reference less applied gradient, mean over the steps of the window.
    nuisances : tuple of (dict of str to Tensor)
        The column of mini-batching, one per window; empty where it is left out.
    settings : dict
        Of the optimizer, and its name under "optimizer".
    notes : tuple of str
        What the reader of the result should know.
    """

    place: ClassVar[str] = "window"

    problem: Problem
    reference: Reference
    windows: tuple[Window, ...]
    deviations: tuple[LossGradient, ...]
    nuisances: tuple[Params, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        problem: Problem,
        path: Trajectory,
        reference: Reference,
        window: int | str | None,
        verbose: int = 0,
    ) -> PathTargets:
        """Deviations of a path from a reference, in one pass over the rows per window."""
        whole = problem.whole()  # the reference moves all trained tensors
        windows = tuple(path.windows(window))
        check_flow(reference, path.optimizer, path.settings, windows)
        warn_of_single_steps(whole, windows, reference)
        deviations, nuisances = [], []
        for stretch in progress(windows, "windows", len(windows), verbose):
            gradient = reference.mean_gradient(whole, stretch)
            deviations.append(deviation(problem, stretch, gradient))
            if has_nuisance(reference, window, windows):
                nuisances.append(minibatch_column(whole, stretch, reference, gradient))
        columns, notes = _shared(nuisances, windows, whole)
        notes += _left_out(path, windows)
        settings = {**path.settings, "optimizer": path.optimizer}
        found = (tuple(deviations), columns, settings, notes)
        return cls(problem, reference, windows, *found)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problem at the mean iterate of every window."""
        return tuple(self.problem.at(window.mean("visited")) for window in self.windows)

    @property
    def gradients(self) -> tuple[LossGradient, ...]:
        """The deviations, which take the place of the gradients of endpoints."""
        return self.deviations

    def equations(self, penalty: Penalty) -> PathEquations:
        """Equations of a penalty along the path.

        The family's own column of mini-batching takes the place of the nuisance.
        """
        means: list[MeanColumns] = []
        parts: list[Equations] = []
        with_nuisance = bool(self.nuisances) and not self.has_own_nuisance(penalty)
        for i, (stretch, away) in enumerate(zip(self.windows, self.deviations, strict=True)):
            batches = tuple(step.rows for step in stretch.steps if step.rows is not None)
            there = replace(self.problem, batches=batches or None)
            columns = MeanColumns.over(penalty, there, stretch)
            if with_nuisance:
                columns = columns.joined(NUISANCE, self.nuisances[i])
            means.append(columns)
            kind = InstrumentedEquations if columns.instruments else Equations
            parts.append(kind(self.problem, columns, away))
        mean = MeanColumns.mean(means, self.shares)
        total = Equations(self.problem, mean, self.mean_deviation())
        return PathEquations(tuple(parts), self, total)

    def has_own_nuisance(self, penalty: Penalty) -> bool:
        """Whether a family has a column of mini-batching itself."""
        leaves = penalty.leaves(self.problem.params, self.problem)
        return any(isinstance(leaf.penalty, BatchGradientNorm) for leaf in leaves)

    def mean_deviation(self, whole: Problem | None = None) -> LossGradient:
        """Mean over the windows, each by its steps; with ``whole`` against other rows."""
        deviations = self.deviations
        if whole is not None:
            own = self.problem
            whole = replace(whole, trained_factor=own.trained_factor, trained_sum=own.trained_sum)
            deviations = tuple(
                deviation(self.problem, w, self.reference.mean_gradient(whole, w))
                for w in self.windows
            )
        value = weighted_sum([part.value for part in deviations], self.shares)
        return replace(deviations[0], value=value)

    def mean_visited(self) -> Params:
        """Mean iterate of all windows."""
        return weighted_sum([window.mean("visited") for window in self.windows], self.shares)

    @property
    def shares(self) -> list[float]:
        """Share of every window in the steps."""
        total = sum(w.n_steps for w in self.windows)
        return [w.n_steps / total for w in self.windows]


@dataclass(frozen=True)
class PathEquations(StackedEquations):
    """Equations of a family in all windows of a path; a window is a cluster.

    Parameters
    ----------
    parts : tuple of Equations
        One for each window.
    targets : PathTargets
    mean : Equations
        Of the mean over the windows, each by its number of steps.
    """

    place: ClassVar[str] = PathTargets.place

    targets: PathTargets
    mean: Equations

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows of the path."""
        return self.targets.windows

    def completing(self, other: Problem) -> LossGradient:
        """Mean deviation against further rows, whose labels are numbered as in these."""
        return self.targets.mean_deviation(other.numbered_like(self.problem).whole())

    def completed_r2(
        self, other: LossGradient, coef: Array, *, positive: bool, eps: float
    ) -> float:
        """R2 of coefficients on the mean over the windows, over these rows and others."""
        return self.mean.completed_r2(other, coef, positive=positive, eps=eps)

    def signal(self, coef: Array | None = None) -> tuple[float, float]:
        r"""Squared norm of the mean target, free of noise by products of windows, and as it is.

        ``sum s_u s_v <t_u, t_v> / sum s_u s_v`` over the pairs of different windows, with the
        shares s in the steps; with coefficients of what they leave of the targets. The direction
        of the nuisance column is left out: of the mean that of its mean, of each window that of
        its own.
        """
        whole = _size(self.mean.system, coef)
        if len(self.parts) < 2:
            return whole, whole
        shares = np.square(self.targets.shares)
        sizes = [_size(part.reduced, coef) for part in self.parts]
        return float((whole - shares @ sizes) / (1 - shares.sum())), whole


def _shared(
    nuisances: Sequence[Params | None], windows: Sequence[Window], whole: Problem
) -> tuple[tuple[Params, ...], tuple[str, ...]]:
    """The columns of mini-batching as the windows have them, and what is said of them."""
    known = tuple(column for column in nuisances if column is not None)
    if len(known) < len(nuisances):
        return (), (
            "The column 'minibatch' is left out: not even the sizes of the batches are known "
            f"({_unknown(windows, whole)}).",
        )
    if known and any(named_batches(part, whole) is None for part in windows):
        return (mean_column(known),) * len(windows), (
            "The column 'minibatch' is the mean over the path for random batches of the sizes "
            f"used ({_unknown(windows, whole)}).",
        )
    return known, ()


def _left_out(path: Trajectory, windows: Sequence[Window]) -> tuple[str, ...]:
    """Steps at the ends of a path that no window holds."""
    before = windows[0].start.step - path.marks[0].step
    after = path.marks[-1].step - windows[-1].stop.step
    cut = f"The first {before} steps are left out: they are no whole epoch."
    rest = f"The last {after} steps are left out: they fill no window."
    return tuple(note for note, n in ((cut, before), (rest, after)) if n)


def _unknown(windows: Sequence[Window], whole: Problem) -> str:
    """Why the rows of the batches do not tell."""
    steps = [step for window in windows for step in window.steps]
    last = max((int(step.rows.max()) for step in steps if step.rows is not None), default=-1)
    if last >= (whole.n_rows or 0):
        return (
            f"path.batch(rows) counted to {last}, the data have {whole.n_rows or 0} rows; give "
            "the data set that it counted in"
        )
    missing = sum(step.rows is None for step in steps)
    return (
        f"{missing} of {len(steps)} batches were not named; name the rows with path.batch(rows) "
        "while recording"
    )


def _size(system: GradientSystem, coef: Array | None) -> float:
    """Squared norm of what is left of the target, without its part along the nuisance column."""
    k = system.n_terms
    upper = merge(system.r_factors)[:, -k - 1 :]  # instruments stand before the columns
    target = upper[:, k] if coef is None else upper[:, k] - upper[:, :k] @ coef
    size = float(target @ target)
    if NUISANCE not in system.term_names:
        return size
    column = upper[:, system.term_names.index(NUISANCE)]
    length = float(column @ column)
    return size - float(column @ target) ** 2 / length if length else size


def warn_of_single_steps(whole: Problem, windows: tuple[Window, ...], reference: Reference) -> None:
    """Warn where mini-batch steps are compared with the gradient on all rows."""
    if not isinstance(reference, Gradient) or reference.sub_window is not None:
        return  # their rows are those of the steps
    n_rows = whole.n_rows or 0
    for window in windows:
        weights = window.row_weights(n_rows)
        unused = 1 - sum(step.batch_size or n_rows for step in window.steps) / max(n_rows, 1)
        if weights is not None:
            unused = float((weights == 0).mean())
        if unused > 0.1:
            warnings.warn(
                "The windows do not use all rows: within a shuffled epoch the batches left over "
                "pull against those used, which looks like a ridge that is not there. Use "
                "window='epoch', or reference='batch'.",
                PathNoiseWarning,
                stacklevel=2,
            )
            return
