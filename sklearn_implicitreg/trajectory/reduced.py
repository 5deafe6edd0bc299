"""Targets of a trajectory that holds R factors instead of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.regression.place import Place
from sklearn_implicitreg.regression.shards import Reduced, merged_over
from sklearn_implicitreg.regression.system import Array, System, merge, r_factor
from sklearn_implicitreg.trajectory.design import at_weights
from sklearn_implicitreg.trajectory.minibatch import NUISANCE, has_nuisance
from sklearn_implicitreg.trajectory.r_factors import Block, RFactors, place_of, signature
from sklearn_implicitreg.trajectory.references import Reference
from sklearn_implicitreg.trajectory.targets import TrajectoryTargets, warn_of_single_steps
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.window import Window

_AGAIN = "record without families= to keep the weights"
_ROWLESS = f"a trajectory that holds only R factors; {_AGAIN}"


def targets_from_r_factors(
    problem: Problem, trajectory: Trajectory, reference: Reference, window: int | str | None
) -> TrajectoryTargets:
    """Targets whose windows are the blocks that were reduced while recording."""
    held = trajectory.r_factors
    assert held is not None
    windows = tuple(trajectory.windows(window))
    _check_problem(problem, held)
    _check_windows(trajectory, windows, held, reference, window)
    warn_of_single_steps(problem, windows, reference)
    wanted = has_nuisance(reference, window, windows, problem.n_rows)
    found = all(block.nuisance for block in held.blocks)
    remarks = [f"The trajectory holds {held}, and no weights."]
    if wanted and not found:
        remarks.append(
            "The column 'minibatch' is left out: the rows of the batches are not known; name "
            "them with recorder.batch(rows) while recording."
        )
    marks = trajectory.marks
    whole = Window(marks[0], marks[-1], marks[:1], trajectory.steps, trajectory.others)

    def deviations(other: Problem | None) -> Sequence[LossGradient]:
        what = (
            "for a family that is solved as a whole"
            if other is None
            else "to complete by other rows"
        )
        raise ValueError(f"Expected a trajectory with weights {what}, got {_ROWLESS}.")

    def places(targets: TrajectoryTargets, penalty: Penalty) -> tuple[tuple[Place, ...], Place]:
        chosen = _chosen(penalty, problem, whole.stop.weights, held, targets)
        mean = _mean_design(chosen, problem, held, whole.n_steps)
        own = [
            Place(problem, mean, _gradient({}, block, held), _system(chosen, block, problem))
            for block in held.blocks
        ]
        value = {
            name: held.deviation[name].to(tensor.device) / whole.n_steps
            for name, tensor in problem.params.items()
        }
        reached = {cell.tensor for block in held.blocks for cell in block.cells}
        absent = frozenset(problem.params.keys() - reached)
        gradient = replace(_gradient(value, held.blocks[0], held), absent=absent)
        return tuple(own), Place(problem, mean, gradient)

    own = (deviations, places, wanted and found, trajectory, tuple(remarks))
    return TrajectoryTargets(problem, reference, windows, *own)


@dataclass(frozen=True)
class _Chosen:
    """Where the columns of a family are among those that were recorded."""

    family: Design  # of the family at the last weights, for its names
    term_names: tuple[str, ...]
    free: list[int]
    known: Array  # known coefficients of all recorded columns
    seen: list[int]  # columns that must be differentiable where there are equations


def _chosen(
    penalty: Penalty, problem: Problem, weights: Params, held: RFactors, targets: TrajectoryTargets
) -> _Chosen:
    """Find a family's columns by their gradients at the last weights of the trajectory."""
    family = Design.at(penalty, at_weights(penalty, problem, weights))
    names, free, seen = family.term_names, [], []
    known = np.zeros(len(held.term_names))
    for leaf in penalty.leaves(problem.params, problem):
        for own in signature(leaf, problem, weights):
            place = place_of(own, held.signatures, problem)
            if place is None:
                shown = [name for name in dict.fromkeys(held.term_names) if name != NUISANCE]
                raise ValueError(
                    f"Expected terms among those recorded, {shown}, got {leaf.penalty!r}; give it "
                    f"in families= while recording, or {_AGAIN}."
                )
            seen.append(place)
            if leaf.coef is None:
                free.append(place)
            else:
                known[place] += leaf.coef
    if targets.adds_nuisance(penalty):
        names = (*names, NUISANCE)
        free.append(held.term_names.index(NUISANCE))
    return _Chosen(family, names, free, known, [*free, *seen])


def _system(chosen: _Chosen, block: Block, problem: Problem) -> System:
    """R factors of the family's columns in one window, one for each tensor."""
    k, ranks = len(chosen.term_names), problem.ranks
    tensors: dict[str, list[Array]] = {}
    counts: dict[str, int] = {}
    for cell in block.cells:
        if cell.n and all(cell.smooth[place] for place in chosen.seen):
            # What is known is moved to the side of the loss.
            target = cell.r_factor[:, -1] - cell.r_factor[:, :-1] @ chosen.known
            upper = r_factor(cell.r_factor[:, chosen.free], target)
            tensors.setdefault(cell.tensor, []).append(upper)
            counts[cell.tensor] = counts.get(cell.tensor, 0) + cell.n
    nothing = np.zeros((k + 1, k + 1))

    def reduced() -> list[Reduced]:
        names = [*tensors] if ranks is None or not ranks.sharded else [*problem.params]
        return [(merge(tensors.get(n, [nothing])), counts.get(n, 0)) for n in names]

    if ranks is not None and ranks.sharded:
        every = merged_over(ranks, [k + 1] * len(problem.params), reduced)
        found = dict(zip(problem.params, every, strict=True))
    else:
        found = dict(zip(tensors, reduced(), strict=True))
    found = {name: own for name, own in found.items() if own[1]} or {"none": (nothing, 0)}
    merged, numbers = zip(*found.values(), strict=True)
    return System(chosen.term_names, tuple(found), merged, numbers, missing=_ROWLESS)


def _mean_design(chosen: _Chosen, problem: Problem, held: RFactors, n_steps: int) -> Design:
    """Columns of the mean over the trajectory, whose sums were recorded."""
    designs: Params = {}
    knowns: Params = {}
    masks: Params = {}
    for name, tensor in problem.params.items():
        design = held.design[name].to(tensor.device) / n_steps
        designs[name] = design[:, chosen.free]
        if chosen.family.known_terms:
            knowns[name] = design @ torch.as_tensor(chosen.known).to(design)
        masks[name] = held.smooth[name].to(tensor.device)[:, chosen.seen].all(dim=1)
    family = chosen.family
    own = (chosen.term_names, family.leaves, family.known_terms, problem.params)
    return Design(*own, designs=designs, knowns=knowns, masks=masks)


def _gradient(value: Params, block: Block, held: RFactors) -> LossGradient:
    n_rows = held.n_rows or 1
    return LossGradient(value, float("nan"), 1.0, n_rows, block.scale, block.n_kinks)


def _check_problem(problem: Problem, held: RFactors) -> None:
    if tuple(problem.params) != held.tensors:
        raise ValueError(
            f"Expected the tensors that were recorded, {list(held.tensors)}, got "
            f"{list(problem.params)}; give params= as to record(...), or {_AGAIN}."
        )
    if held.reference == "applied":
        return
    if problem.n_rows != held.n_rows:
        raise ValueError(
            f"Expected the {held.n_rows} rows that were recorded, got {problem.n_rows}: a "
            f"trajectory that holds only R factors has no folds of rows; {_AGAIN}."
        )
    if problem.loss_name != held.loss:
        raise ValueError(
            f"Expected the loss that was recorded, {held.loss}, got {problem.loss_name}; {_AGAIN}."
        )


def _check_windows(
    trajectory: Trajectory,
    windows: tuple[Window, ...],
    held: RFactors,
    reference: Reference,
    window: int | str | None,
) -> None:
    if len(windows) != len(held.blocks) or any(len(w.inside) != 1 for w in windows):
        raise ValueError(
            f"Expected windows that are the {len(held.blocks)} blocks between the marks, got "
            f"window={window!r}, which makes {len(windows)}; use window=None, or {_AGAIN}."
        )
    kinds = sorted({block.reference for block in held.blocks} - {repr(reference)})
    if kinds:
        epochs = all("weighted=True" in block.reference for block in held.blocks)
        hint = "use window='epoch'" if epochs and window != "epoch" else "use what was recorded"
        raise ValueError(
            f"Expected the reference that was recorded, {kinds[0]}, got {reference!r} with "
            f"window={window!r}; {hint}, or {_AGAIN}."
        )
