"""Equations of a path that holds R factors in the place of weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.regression.design import Columns
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.system import Array, GradientSystem, merge, r_factor
from sklearn_implicitreg.trajectory.equations import (
    PathEquations,
    PathTargets,
    warn_of_single_steps,
)
from sklearn_implicitreg.trajectory.minibatch import NUISANCE, has_nuisance
from sklearn_implicitreg.trajectory.r_factors import Block, RFactors, place_of, signature
from sklearn_implicitreg.trajectory.references import Reference
from sklearn_implicitreg.trajectory.stretches import MeanColumns, there
from sklearn_implicitreg.trajectory.trajectory import Trajectory, Window

__all__ = ["RecordedTargets", "targets_of"]

_AGAIN = "record without families= to keep the weights"


@dataclass
class RecordedColumns:
    """Columns of a family among those that were recorded, of which there are no rows.

    Parameters
    ----------
    term_names, leaves, params, known_terms
        As of :class:`MeanColumns`.
    free : list of int
        Where the columns are among the recorded ones.
    known_at : list of (float, int)
        Known coefficients, and where their columns are.
    """

    term_names: tuple[str, ...]
    leaves: list[tuple[Leaf, int]]
    params: Params
    known_terms: tuple[str, ...]
    free: list[int]
    known_at: list[tuple[float, int]]
    closed_form: bool = False

    @property
    def seen(self) -> list[int]:
        """Columns that must be differentiable where there are equations."""
        return [*self.free, *(place for _, place in self.known_at)]

    def design(self, name: str, tensor: Tensor | None = None) -> Tensor:
        """Refuse."""
        raise _no_weights("to read single equations")

    def known(self, name: str, tensor: Tensor | None = None) -> Tensor | None:
        """Refuse."""
        raise _no_weights("to read single equations")

    def smooth(self, name: str) -> Tensor:
        """Refuse."""
        raise _no_weights("to read single equations")


@dataclass(frozen=True)
class RecordedEquations(Equations):
    """Equations of one window, of which only the R factors of its block are left."""

    columns: RecordedColumns
    block: Block

    @cached_property
    def reduced(self) -> GradientSystem:
        """R factors of the family's columns, one for each tensor."""
        tensors: dict[str, list[Array]] = {}
        counts: dict[str, int] = {}
        own = self.columns
        for cell in self.block.cells:
            if all(cell.smooth[place] for place in own.seen):
                target = cell.r_factor[:, -1].copy()
                for coef, place in own.known_at:  # moved to the side of the loss
                    target -= coef * cell.r_factor[:, place]
                upper = r_factor(cell.r_factor[:, own.free], target)
                tensors.setdefault(cell.tensor, []).append(upper)
                counts[cell.tensor] = counts.get(cell.tensor, 0) + cell.n
        if not tensors:
            k = len(own.term_names)
            tensors, counts = {"none": [np.zeros((k + 1, k + 1))]}, {"none": 0}
        r_factors = tuple(merge(parts) for parts in tensors.values())
        return GradientSystem(own.term_names, tuple(tensors), r_factors, tuple(counts.values()))


@dataclass(frozen=True, kw_only=True)
class RecordedTargets(PathTargets):
    """Targets of a path of R factors, whose windows are the blocks that were reduced.

    Parameters
    ----------
    r_factors : R factors
    whole : Window
        From the start of the path to its end.
    with_nuisance : bool
        Whether the windows have the column of mini-batching.
    """

    r_factors: RFactors
    whole: Window
    with_nuisance: bool

    @classmethod
    def of(
        cls,
        problem: Problem,
        path: Trajectory,
        reference: Reference,
        window: int | str | None,
        verbose: int = 0,
    ) -> RecordedTargets:
        """Check that the path answers what is asked.

        Raises
        ------
        ValueError
            For other tensors, rows, reference or windows than were recorded.
        """
        held = path.r_factors
        assert held is not None
        windows = tuple(path.windows(window))
        _check_problem(problem, held)
        _check_windows(path, windows, held, reference, window)
        warn_of_single_steps(problem, windows, reference)
        wanted = has_nuisance(reference, window, windows)
        found = all(block.nuisance for block in held.blocks)
        settings = {**path.settings, "optimizer": path.optimizer}
        notes = [f"The path holds {held}, and no weights."]
        if wanted and not found:
            notes.append(
                "The column 'minibatch' is left out: the rows of the batches are not known; name "
                "them with path.batch(rows) while recording."
            )
        whole = Window(path.marks[0], path.marks[-1], path.marks[:1], path.steps)
        return cls(
            problem=problem,
            reference=reference,
            windows=windows,
            deviations=(),
            nuisances=(),
            settings=settings,
            notes=tuple(notes),
            r_factors=held,
            whole=whole,
            with_nuisance=wanted and found,
        )

    def equations(self, penalty: Penalty) -> PathEquations:
        """Equations of a penalty, from the columns that were recorded.

        Raises
        ------
        ValueError
            For a penalty that was not.
        """
        chosen, away = self._chosen(penalty), self.mean_deviation()
        parts = tuple(
            RecordedEquations(self.problem, chosen, _gradient({}, block, away.n_rows), block)
            for block in self.r_factors.blocks
        )
        mean = Equations(self.problem, self._mean_columns(chosen), away)
        return PathEquations(parts, self, mean)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Refuse: the iterates are not there."""
        raise _no_weights("for a family that is solved as a whole")

    @property
    def gradients(self) -> tuple[LossGradient, ...]:
        """Refuse: the deviations of single windows are not there."""
        raise _no_weights("for a family that is solved as a whole")

    def mean_deviation(self, whole: Problem | None = None) -> LossGradient:
        """Mean over the path; against other rows it is not known."""
        if whole is not None:
            raise ValueError(
                "Expected a path with weights to complete by other rows, got one that holds only "
                f"R factors, which have no folds of rows; {_AGAIN}."
            )
        first, n = self.r_factors.blocks[0], self.whole.n_steps
        value = {
            name: self.r_factors.deviation[name].to(tensor.device) / n
            for name, tensor in self.problem.params.items()
        }
        return _gradient(value, first, self.r_factors.n_rows or 1)

    def mean_visited(self) -> Params:
        """Mean iterate of the path."""
        return self.whole.mean("visited")

    def _chosen(self, penalty: Penalty) -> RecordedColumns:
        """Find a family's columns by their gradients at the last weights of the path."""
        weights = self.whole.stop.weights
        full = Columns(penalty, there(penalty, self.problem, weights))
        free: list[int] = []
        known: list[tuple[float, int]] = []
        for leaf in penalty.leaves(self.problem.params, self.problem):
            for own in signature(leaf, self.problem, weights):
                place = place_of(own, self.r_factors.signatures)
                if place is None:
                    raise ValueError(
                        f"Expected terms among those recorded, {self._shown}, got {leaf.penalty!r}"
                        f"; give it in families= while recording, or {_AGAIN}."
                    )
                if leaf.coef is None:
                    free.append(place)
                else:
                    known.append((leaf.coef, place))
        names, leaves = full.term_names, full.leaves
        if self.with_nuisance and not self.has_own_nuisance(penalty):
            names = (*names, NUISANCE)
            free.append(self.r_factors.term_names.index(NUISANCE))
        return RecordedColumns(names, leaves, self.problem.params, full.known_terms, free, known)

    @property
    def _shown(self) -> list[str]:
        return [name for name in dict.fromkeys(self.r_factors.term_names) if name != NUISANCE]

    def _mean_columns(self, chosen: RecordedColumns) -> MeanColumns:
        held, n = self.r_factors, self.whole.n_steps
        designs: Params = {}
        knowns: Params = {}
        masks: Params = {}
        for name, tensor in self.problem.params.items():
            design = held.design[name].to(tensor.device)
            designs[name] = design[:, chosen.free] / n
            if chosen.known_at:
                terms = [coef / n * design[:, place] for coef, place in chosen.known_at]
                knowns[name] = torch.stack(terms).sum(dim=0)
            masks[name] = held.smooth[name].to(tensor.device)[:, chosen.seen].all(dim=1)
        return MeanColumns(
            chosen.term_names,
            chosen.leaves,
            self.problem.params,
            designs,
            knowns,
            masks,
            chosen.known_terms,
        )


def targets_of(
    problem: Problem,
    path: Trajectory,
    reference: Reference,
    window: int | str | None,
    verbose: int = 0,
) -> PathTargets:
    """Targets of a path with weights, or with R factors in their place."""
    kind = PathTargets if path.r_factors is None else RecordedTargets
    return kind.of(problem, path, reference, window, verbose)


def _gradient(value: Params, block: Block, n_rows: int) -> LossGradient:
    """Deviation of a path or of one of its windows."""
    return LossGradient(value, float("nan"), 1.0, n_rows, block.scale, block.n_kinks)


def _no_weights(what: str) -> ValueError:
    return ValueError(
        f"Expected a path with weights {what}, got one that holds only R factors; {_AGAIN}."
    )


def _check_problem(problem: Problem, held: RFactors) -> None:
    """Refuse another scope, loss or number of rows."""
    if tuple(problem.params) != held.tensors:
        raise ValueError(
            f"Expected the tensors that were recorded, {list(held.tensors)}, got "
            f"{list(problem.params)}; give params= as to record(...), or {_AGAIN}."
        )
    if held.reference == "applied":
        return
    if problem.n_rows != held.n_rows:
        raise ValueError(
            f"Expected the {held.n_rows} rows that were recorded, got {problem.n_rows}: a path "
            f"that holds only R factors has no folds of rows; {_AGAIN}."
        )
    if problem.loss_name != held.loss:
        raise ValueError(
            f"Expected the loss that was recorded, {held.loss}, got {problem.loss_name}; {_AGAIN}."
        )


def _check_windows(
    path: Trajectory,
    windows: tuple[Window, ...],
    held: RFactors,
    reference: Reference,
    window: int | str | None,
) -> None:
    """Refuse another reference, and windows that are not the blocks."""
    if len(windows) != len(held.blocks) or any(len(w.inside) != 1 for w in windows):
        raise ValueError(
            f"Expected windows that are the {len(held.blocks)} blocks between the marks, since "
            f"the path holds only R factors, got window={window!r}, which makes {len(windows)} "
            f"of {len(path.marks)} marks; use window=None, or {_AGAIN}."
        )
    kinds = sorted({block.reference for block in held.blocks} - {repr(reference)})
    if kinds:
        epochs = all("weighted=True" in block.reference for block in held.blocks)
        hint = "use window='epoch'" if epochs and window != "epoch" else "use what was recorded"
        raise ValueError(
            f"Expected the reference that was recorded, {kinds[0]}, got {reference!r} with "
            f"window={window!r}; {hint}, or {_AGAIN}."
        )
