"""The trajectory that is given, or the one that a probe makes, and its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.trajectory.design import recorded_part
from sklearn_implicitreg.trajectory.reduced import targets_from_r_factors
from sklearn_implicitreg.trajectory.references import (
    Applied,
    Batch,
    as_reference,
    check_others,
)
from sklearn_implicitreg.trajectory.targets import TrajectoryTargets, targets_from_weights
from sklearn_implicitreg.trajectory.trajectory import Trajectory, on_device_of
from sklearn_implicitreg.trajectory.window import Step


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
    named = as_reference(reference, window)
    steps = _steps(trajectory)
    options = replace(options, trained_batch_size=_batch_size(steps))
    own = isinstance(named, Batch) and all(step.seen for step in steps)
    if own or isinstance(named, Applied):
        options = replace(options, n_passes=1)  # the rows of these data are not compared with
    problem = adapt(model, data, options)
    trajectory = trajectory_of(model, data, problem, trajectory)
    if trajectory.settings.get("follows") == "mean loss":  # whatever the model was trained on
        problem = replace(problem, trained_factor=1.0, trained_sum=False)
    problem = recorded_part(problem, trajectory.names)
    check_others(problem, trajectory, named)
    if trajectory.r_factors is not None:
        return targets_from_r_factors(problem, trajectory, named, window)
    return targets_from_weights(problem, trajectory, named, window, verbose)


def _steps(trajectory: Any) -> Sequence[Step]:
    """Steps of a trajectory or of what recorded one; none of a probe."""
    for own in ("trajectory", "trajectory_"):
        trajectory = getattr(trajectory, own, trajectory)
    found: Sequence[Step] = getattr(trajectory, "steps", ())
    return found


def _batch_size(steps: Sequence[Step]) -> int | None:
    """Rows of the largest batch of a recorded trajectory, if known."""
    sizes = [n for step in steps for n in [n for n, _ in step.parts] or [step.batch_size] if n]
    return max(sizes, default=None)


def trajectory_of(model: Any, data: Data, problem: Problem, trajectory: Any) -> Trajectory:
    """The trajectory of a model, or the one that a probe makes."""
    for own in ("trajectory", "trajectory_"):  # of a recorder
        trajectory = getattr(trajectory, own, trajectory)
    if not isinstance(trajectory, Trajectory):
        if isinstance(trajectory, type) or not hasattr(trajectory, "run"):
            raise TypeError(
                "Expected trajectory to be a Trajectory, such as the `trajectory` of a recorder, "
                f"or a probe, such as ContinueTraining(...), got {trajectory!r}."
            )
        trajectory = trajectory.run(model, data, problem.whole())
    found: Trajectory = trajectory
    recorded_part(problem, found.names)  # raises for one of another model
    return on_device_of(found, problem.params)
