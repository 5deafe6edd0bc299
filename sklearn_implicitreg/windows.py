"""Equations of a recorded path: one block for each window of steps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor

from sklearn_implicitreg.assembly import Equations
from sklearn_implicitreg.exceptions import PathNoiseWarning
from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.penalties.columns import Columns
from sklearn_implicitreg.penalties.gradients import BatchGradientNorm
from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.progress import progress
from sklearn_implicitreg.stacks import StackedEquations
from sklearn_implicitreg.system import Array
from sklearn_implicitreg.trajectory.minibatches import mean_column, minibatch_column, named_batches
from sklearn_implicitreg.trajectory.path import Trajectory, Window
from sklearn_implicitreg.trajectory.references import Gradient, Reference
from sklearn_implicitreg.trajectory.vectors import squared_mean

__all__ = ["NUISANCE", "MeanColumns", "PathEquations", "PathTargets", "deviation"]

NUISANCE = "minibatch"


@dataclass
class MeanColumns:
    """Columns of a family averaged over the steps of a window.

    Parameters
    ----------
    term_names : tuple of str
    leaves : list of (Leaf, int)
        As of :class:`Columns`; the nuisance column is none of them.
    params : dict of str to Tensor
        Weights at the first step.
    designs, knowns, masks : dict of str to Tensor
        Mean columns of shape (numel, k), mean gradient of the known penalties, and where all
        terms are differentiable at every step, by tensor.
    """

    term_names: tuple[str, ...]
    leaves: list[tuple[Leaf, int]]
    params: Params
    designs: Params
    knowns: Params
    masks: Params
    known_terms: tuple[str, ...] = ()
    closed_form: bool = False

    @classmethod
    def over(cls, penalty: Penalty, problem: Problem, window: Window) -> MeanColumns:
        """Mean over the marks at which a step of the window began."""
        n = len(window.inside)
        designs: Params = {}
        knowns: Params = {}
        masks: Params = {}
        first: Columns | None = None
        for mark in window.inside:
            columns = Columns(penalty, _there(penalty, problem, mark.weights))
            first = first or columns
            for name in problem.params:
                _add(designs, name, columns.design(name) / n)
                known = columns.known(name)
                if known is not None:
                    _add(knowns, name, known / n)
                smooth = columns.smooth(name)
                masks[name] = masks[name] & smooth if name in masks else smooth
        if first is None:
            raise ValueError("Expected at least one mark in every window, got none.")
        own = (designs, knowns, masks, first.known_terms)
        return cls(first.term_names, first.leaves, first.params, *own)

    @classmethod
    def mean(cls, parts: list[MeanColumns], shares: list[float]) -> MeanColumns:
        """Mean over windows."""
        designs: Params = {}
        knowns: Params = {}
        masks: Params = {}
        for part, share in zip(parts, shares, strict=True):
            for name in part.designs:
                _add(designs, name, share * part.designs[name])
                if name in part.knowns:
                    _add(knowns, name, share * part.knowns[name])
                mask = part.masks[name]
                masks[name] = masks[name] & mask if name in masks else mask
        first = parts[0]
        own = (designs, knowns, masks, first.known_terms)
        return cls(first.term_names, first.leaves, first.params, *own)

    def joined(self, name: str, column: Params) -> MeanColumns:
        """The same with one more column."""
        designs = {
            tensor: torch.cat([design, column[tensor].reshape(-1, 1)], dim=1)
            for tensor, design in self.designs.items()
        }
        return replace(self, term_names=(*self.term_names, name), designs=designs)

    def design(self, name: str, tensor: Tensor | None = None) -> Tensor:
        """Mean gradients of the terms with respect to one tensor, of shape (numel, k)."""
        return self.designs[name]

    def known(self, name: str, tensor: Tensor | None = None) -> Tensor | None:
        """Mean gradient of the penalties with known coefficients."""
        return self.knowns.get(name)

    def smooth(self, name: str) -> Tensor:
        """Coordinates at which all terms are differentiable at every step."""
        return self.masks[name]


def _there(penalty: Penalty, problem: Problem, weights: Params) -> Problem:
    """The problem at other weights; only its parameters, where no penalty looks at the model."""
    leaves = penalty.leaves(problem.params, problem)
    if any(getattr(leaf.penalty, "gradient", None) is None for leaf in leaves):
        return problem.at(weights)
    own = {name: weights[name].to(tensor.device) for name, tensor in problem.params.items()}
    return replace(problem, params=own)


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
        several = any(stretch.n_steps > 1 for stretch in windows)  # batches in a window
        warn_of_single_steps(whole, windows, reference)
        deviations, nuisances, notes = [], [], []
        for stretch in progress(windows, "windows", len(windows), verbose):
            gradient = reference.mean_gradient(whole, stretch)
            deviations.append(deviation(problem, stretch, gradient))
            if several and _has_nuisance(reference, window):
                column = minibatch_column(whole, stretch, reference, gradient)
                nuisances.append(column or {})
        if any(not column for column in nuisances):
            nuisances = []
            notes.append(
                "The column 'minibatch' is left out: not even the sizes of the batches are known; "
                "name them with path.batch(rows) while recording."
            )
        elif nuisances and any(named_batches(part, whole) is None for part in windows):
            nuisances = [mean_column(nuisances)] * len(windows)
            notes.append(
                "The column 'minibatch' is the mean over the path for random batches of the sizes "
                "used; name the rows with path.batch(rows) while recording to have their own."
            )
        if any(len(w.inside) < w.n_steps for w in windows):
            notes.append("Columns are means over marks, not over every step.")
        settings = {**path.settings, "optimizer": path.optimizer}
        found = (tuple(deviations), tuple(nuisances), settings, tuple(notes))
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
        """Equations of a penalty along the path."""
        parts = []
        leaves = penalty.leaves(self.problem.params, self.problem)
        # The family's own column of mini-batching takes the place of the nuisance.
        own = any(isinstance(leaf.penalty, BatchGradientNorm) for leaf in leaves)
        for i, (stretch, deviation) in enumerate(zip(self.windows, self.deviations, strict=True)):
            batches = tuple(step.rows for step in stretch.steps if step.rows is not None)
            there = replace(self.problem, batches=batches or None)
            columns = MeanColumns.over(penalty, there, stretch)
            if self.nuisances and not own:
                columns = columns.joined(NUISANCE, self.nuisances[i])
            parts.append(Equations(self.problem, columns, deviation))
        return PathEquations(tuple(parts), self)

    def mean_deviation(self, whole: Problem | None = None) -> LossGradient:
        """Mean over the windows, each by its steps; with ``whole`` against other rows."""
        deviations = self.deviations
        if whole is not None:
            deviations = tuple(
                deviation(self.problem, w, self.reference.mean_gradient(whole, w))
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
class PathEquations(StackedEquations):
    """Equations of a family in all windows of a path; a window is a cluster.

    Parameters
    ----------
    parts : tuple of Equations
        One for each window.
    targets : PathTargets
    """

    place: ClassVar[str] = PathTargets.place

    targets: PathTargets

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows of the path."""
        return self.targets.windows

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

    def signal(self) -> tuple[float, float]:
        """Squared norm of the mean target, free of noise by products of windows, and as it is.

        The direction of the mean nuisance column is left out of both.
        """
        targets = torch.stack(
            [torch.cat([block.target for block in part.rows()]) for part in self.parts]
        )
        if NUISANCE in self.system.term_names:
            place = self.system.term_names.index(NUISANCE)
            along = torch.cat([block.design[:, place] for block in self.mean.rows()])
            along = along / along.norm()
            targets = targets - torch.outer(targets @ along, along)
        return squared_mean(targets)


def _has_nuisance(reference: Reference, window: int | str | None) -> TypeGuard[Gradient]:
    """Whether the noise of mini-batches leaves a penalty of its own in the windows."""
    return window == "epoch" and isinstance(reference, Gradient) and reference.sub_window != 1


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


def deviation(problem: Problem, window: Window, gradient: LossGradient) -> LossGradient:
    """Reference less applied gradient: minus the target of the window's equations."""
    applied = window.mean("applied")
    value = {
        name: gradient.value[name] - applied[name].to(gradient.value[name].device)
        for name in problem.params
    }
    return replace(gradient, value=value)


def _add(total: Params, name: str, part: Tensor) -> None:
    if name in total:
        total[name] += part
    else:
        total[name] = part.clone()
