"""Equations of a recorded path: one block for each window of steps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.assembly import Equations, RowBlock
from sklearn_implicitreg.exceptions import PathNoiseWarning
from sklearn_implicitreg.instruments import InstrumentedEquations
from sklearn_implicitreg.mean_columns import MeanColumns, add_to
from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.gradients import BatchGradientNorm
from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.system import Array, GradientSystem, merge
from sklearn_implicitreg.trajectory.path import Trajectory, Window
from sklearn_implicitreg.trajectory.references import Gradient, Reference, at_mean, sub_windows

__all__ = ["NUISANCE", "PathEquations", "PathTargets"]

NUISANCE = "minibatch"


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
    ) -> PathTargets:
        """Deviations of a path from a reference, in one pass over the rows per window."""
        whole = problem.whole()  # the reference moves all trained tensors
        windows = tuple(path.windows(window))
        warn_of_single_steps(whole, windows, reference)
        deviations, nuisances, notes = [], [], []
        for stretch in windows:
            gradient = reference.mean_gradient(whole, stretch)
            deviations.append(_deviation(problem, stretch, gradient))
            if _has_nuisance(reference, window):
                column = minibatch_column(whole, stretch, reference, gradient)
                nuisances.append(column or {})
        if any(not column for column in nuisances):
            nuisances = []
            notes.append(
                "The column 'minibatch' is left out: the batches are not known; name them with "
                "path.batch(rows) while recording."
            )
        settings = {**path.settings, "optimizer": path.optimizer}
        found = (tuple(deviations), tuple(nuisances), settings, tuple(notes))
        return cls(problem, reference, windows, *found)

    def equations(self, penalty: Penalty) -> PathEquations:
        """Equations of a penalty along the path."""
        parts: list[Equations] = []
        leaves = penalty.leaves(self.problem.params, self.problem)
        # The family's own column of mini-batching takes the place of the nuisance.
        own = any(isinstance(leaf.penalty, BatchGradientNorm) for leaf in leaves)
        for i, (stretch, deviation) in enumerate(zip(self.windows, self.deviations, strict=True)):
            batches = tuple(step.rows for step in stretch.steps if step.rows is not None)
            there = replace(self.problem, batches=batches or None)
            columns = MeanColumns.over(penalty, there, stretch)
            if self.nuisances and not own:
                columns = columns.joined(NUISANCE, self.nuisances[i])
            kind = InstrumentedEquations if columns.instruments else Equations
            parts.append(kind(self.problem, columns, deviation))
        return PathEquations(self, tuple(parts))

    def mean_deviation(self, whole: Problem | None = None) -> LossGradient:
        """Mean over the windows, each by its steps; with ``whole`` against other rows."""
        deviations = self.deviations
        if whole is not None:
            deviations = tuple(
                _deviation(self.problem, w, self.reference.mean_gradient(whole, w))
                for w in self.windows
            )
        value = {
            name: sum(
                (s * g.value[name] for s, g in zip(self.shares, deviations, strict=True)),
                torch.zeros_like(deviations[0].value[name]),
            )
            for name in self.problem.params
        }
        return replace(deviations[0], value=value)

    def mean_visited(self) -> Params:
        """Mean iterate of all windows."""
        means = [window.mean("visited") for window in self.windows]
        return {
            name: torch.stack([s * m[name] for s, m in zip(self.shares, means, strict=True)]).sum(0)
            for name in means[0]
        }

    @property
    def shares(self) -> list[float]:
        """Share of every window in the steps."""
        total = sum(w.n_steps for w in self.windows)
        return [w.n_steps / total for w in self.windows]


@dataclass(frozen=True)
class PathEquations:
    """Equations of a family in all windows of a path; a window is a cluster.

    Parameters
    ----------
    targets : PathTargets
    parts : tuple of Equations
        One for each window.
    """

    targets: PathTargets
    parts: tuple[Equations, ...]

    @property
    def problem(self) -> Problem:
        """The trained model."""
        return self.targets.problem

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows of the path."""
        return self.targets.windows

    @cached_property
    def system(self) -> GradientSystem:
        """Triangles of the equations, one per window."""
        systems = [part.system for part in self.parts]
        return replace(
            systems[0],
            labels=tuple(f"window {i}" for i in range(len(systems))),
            triangles=tuple(merge(system.triangles) for system in systems),
            counts=tuple(system.n_equations for system in systems),
            hc3_meat=None if systems[0].hc3_meat is None else self._meat,
        )

    @cached_property
    def mean(self) -> Equations:
        """Equations of the mean over the windows, each by its number of steps."""
        columns = [part.columns for part in self.parts if isinstance(part.columns, MeanColumns)]
        mean = MeanColumns.mean(columns, self.targets.shares)
        return Equations(self.problem, mean, self.targets.mean_deviation())

    def completing(self, other: Problem) -> LossGradient:
        """Mean deviation against further rows, whose labels are numbered as in these."""
        return self.targets.mean_deviation(other.numbered_like(self.problem).whole())

    def completed_r2(
        self, other: LossGradient, coef: Array, *, positive: bool, eps: float
    ) -> float:
        """R2 of coefficients on the mean over the windows, over these rows and others."""
        return self.mean.completed_r2(other, coef, positive=positive, eps=eps)

    def signal(self, coef: Array | None = None) -> tuple[float, float]:
        """Squared norm of the mean target, free of noise by products of windows, and as it is.

        With coefficients of what they leave of it. The direction of the mean nuisance column is
        left out.
        """
        targets = torch.stack(
            [torch.cat([_left(block, coef) for block in part.rows()]) for part in self.parts]
        )
        if NUISANCE in self.system.term_names:
            place = self.system.term_names.index(NUISANCE)
            along = torch.cat([block.design[:, place] for block in self.mean.rows()])
            along = along / along.norm()
            targets = targets - torch.outer(targets @ along, along)
        n = len(targets)
        whole = float(targets.mean(0).square().sum())
        if n < 2:
            return whole, whole
        own = float(targets.square().sum())
        return (n * n * whole - own) / (n * (n - 1)), whole

    @property
    def rounding(self) -> float:
        """Norm below which the targets are zero to rounding."""
        return float(np.sqrt(sum(part.rounding**2 for part in self.parts)))

    def _meat(self, whitener: Array, coef: Array) -> Array:
        total = np.zeros((whitener.shape[1], whitener.shape[1]))
        for part in self.parts:
            meat = part.system.hc3_meat
            assert meat is not None
            total += meat(whitener, coef)
        return total


def _left(block: RowBlock, coef: Array | None) -> Tensor:
    """Targets of a block less what the coefficients explain."""
    if coef is None:
        return block.target
    return block.target - block.design @ torch.as_tensor(coef).to(block.design)


def _has_nuisance(reference: Reference, window: int | str | None) -> TypeGuard[Gradient]:
    """Whether the noise of mini-batches leaves a penalty of its own in the windows."""
    return window == "epoch" and isinstance(reference, Gradient) and reference.sub_window != 1


def minibatch_column(
    whole: Problem, window: Window, reference: Gradient, gradient: LossGradient
) -> Params | None:
    """Gradient of ``mean_k |g_k - g|^2`` over the batches of a window, at its mean iterate.

    Summed over a shuffled epoch, SGD with step size lr follows ``L`` plus ``lr / 4`` of it.
    With sub-windows it is taken within each. None where the rows of the batches are not known.
    """
    if reference.sub_window is None:
        return _spread(whole, window, gradient)
    total: Params = {}
    for part in sub_windows(window, reference.sub_window):
        column = _spread(whole, part, at_mean(whole, part, exact=True))
        if column is None:
            return None
        for name, tensor in column.items():
            add_to(total, name, tensor * (part.n_steps / window.n_steps))
    return total


def _spread(whole: Problem, window: Window, gradient: LossGradient) -> Params | None:
    batches = [step.rows for step in window.steps if step.rows is not None]
    n_rows = whole.n_rows or 0
    if len(batches) < window.n_steps or any(rows.max() >= n_rows for rows in batches):
        return None
    return whole.at(window.mean("visited")).spread_gradient(batches, gradient.value)


def warn_of_single_steps(whole: Problem, windows: tuple[Window, ...], reference: Reference) -> None:
    """Warn where mini-batch steps are compared with the gradient on all rows."""
    if not isinstance(reference, Gradient) or reference.sub_window is not None:
        return  # their rows are those of the steps
    n_rows = whole.n_rows or 0
    for window in windows:
        weights = window.row_weights(n_rows)
        if weights is not None and (weights == 0).mean() > 0.1:
            warnings.warn(
                "The windows do not use all rows: within a shuffled epoch the batches left over "
                "pull against those used, which looks like a ridge that is not there. Use "
                "window='epoch', or reference='batch'.",
                PathNoiseWarning,
                stacklevel=2,
            )
            return


def _deviation(problem: Problem, window: Window, gradient: LossGradient) -> LossGradient:
    """Reference less applied gradient: minus the target of the window's equations."""
    applied = window.mean("applied")
    value = {
        name: gradient.value[name] - applied[name].to(gradient.value[name].device)
        for name in problem.params
    }
    return replace(gradient, value=value)
