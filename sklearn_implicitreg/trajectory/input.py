"""The trajectory that is given, or the one that a probe makes, and its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.trajectory.design import recorded_part
from sklearn_implicitreg.trajectory.probes import Probe
from sklearn_implicitreg.trajectory.ranks import over_ranks
from sklearn_implicitreg.trajectory.reduced import targets_from_r_factors
from sklearn_implicitreg.trajectory.references import (
    Applied,
    Batch,
    as_reference,
    check_others,
    warn_of_loss,
)
from sklearn_implicitreg.trajectory.targets import TrajectoryTargets, targets_from_weights
from sklearn_implicitreg.trajectory.trajectory import Trajectory, on_device_of, with_names_of
from sklearn_implicitreg.trajectory.window import Step
from sklearn_implicitreg.trajectory.written import as_read


def trajectory_targets(
    model: Any,
    data: Data,
    options: Options,
    trajectory: Any,
    reference: Any,
    window: Any,
    verbose: int = 0,
) -> TrajectoryTargets:
    """Targets of a trajectory, or of the one that a probe makes."""
    if trajectory is None:
        raise ValueError(
            "mode='trajectory' needs `trajectory=`; record one with `record(model, optimizer)`."
        )
    named, held = as_reference(reference, window), _held(trajectory)
    steps: Sequence[Step] = getattr(held, "steps", ())  # none of a probe
    norms = getattr(held, "settings", {}).get("norms_in_training")
    size = _batch_size(steps)
    options = replace(options, trained_batch_size=size, norms_in_training=norms)
    own = isinstance(named, Batch) and all(step.seen for step in steps)
    if own or isinstance(named, Applied):
        options = replace(options, n_passes=1)  # the rows of these data are not compared with
    problem = adapt(model, data, options)
    trajectory = trajectory_of(model, data, problem, trajectory)
    if trajectory.settings.get("follows") == "mean loss":  # whatever the model was trained on
        problem = replace(problem, trained_factor=1.0, trained_sum=False)
    problem = in_groups_of(recorded_part(problem, trajectory.names), trajectory)
    reduced = trajectory.r_factors is not None
    if not reduced:
        trajectory = as_read(problem, trajectory, named)
    check_others(problem, trajectory, named, () if reduced else trajectory.windows(window))
    if reduced:  # of a loss as it was while recording
        return targets_from_r_factors(problem, trajectory, named, window)
    warn_of_loss(problem, named)
    return targets_from_weights(problem, trajectory, named, window, verbose)


def _held(trajectory: Any) -> Any:
    """The trajectory of a recorder; anything else as it is."""
    for own in ("trajectory", "trajectory_"):
        trajectory = getattr(trajectory, own, trajectory)
    return trajectory


def _batch_size(steps: Sequence[Step]) -> int | None:
    """Rows of the largest batch of a recorded trajectory, if known."""
    sizes = [n for step in steps for n in [n for n, _ in step.parts] or [step.batch_size] if n]
    return max(sizes, default=None)


def trajectory_of(model: Any, data: Data, problem: Problem, trajectory: Any) -> Trajectory:
    """The trajectory of a model, or the one that a probe makes."""
    trajectory = _held(trajectory)
    if not isinstance(trajectory, Trajectory):
        if not isinstance(trajectory, Probe):
            raise TypeError(
                "Expected trajectory to be a Trajectory, such as the `trajectory` of a recorder, "
                f"or a probe, such as ContinueTraining(...), got {trajectory!r}."
            )
        if problem.ranks is not None:
            problem.ranks.disagree(
                "a recorded trajectory", f"a probe, {trajectory!r}, which trains in one process"
            )
        trajectory = trajectory.run(model, data, problem.whole())
    found: Trajectory = trajectory
    known = {*problem.params, *problem.left_out}
    if known.isdisjoint(found.names) and found.r_factors is None and problem.has_paths:
        found = with_names_of(found, problem.whole().params)
    recorded_part(problem, found.names)  # raises for one of another model
    if problem.ranks is None:
        _check_shapes(problem, found)
    return over_ranks(on_device_of(found, problem.params), problem)


def _check_shapes(problem: Problem, trajectory: Trajectory) -> None:
    """Raise ValueError where tensors of the same names were recorded in other shapes."""
    # A forward pass at recorded weights would run all the same.
    recorded = trajectory.marks[0].weights
    for name in recorded.keys() & problem.params.keys():
        own, other = tuple(problem.params[name].shape), tuple(recorded[name].shape)
        if own != other:
            raise ValueError(
                f"Expected a trajectory of this model, got one with {name} of shape {other} where "
                f"the model has {own}; give the model that was recorded."
            )


def in_groups_of(problem: Problem, trajectory: Trajectory) -> Problem:
    """The problem with the parameter groups that were recorded, where it knows none."""
    if problem.param_groups is not None or not trajectory.param_groups:
        return problem
    return replace(problem, param_groups=trajectory.param_groups)
