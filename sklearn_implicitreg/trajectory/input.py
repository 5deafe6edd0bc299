"""The trajectory that is given, or the one that a probe makes, and its targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.trajectory.design import recorded_part
from sklearn_implicitreg.trajectory.probes import Probe
from sklearn_implicitreg.trajectory.reduced import targets_from_r_factors
from sklearn_implicitreg.trajectory.references import as_reference, check_others, warn_of_loss
from sklearn_implicitreg.trajectory.targets import TrajectoryTargets, targets_from_weights
from sklearn_implicitreg.trajectory.trajectory import Trajectory, on_device_of
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
    held = getattr(trajectory, "trajectory", trajectory)  # of a recorder
    norms = getattr(held, "settings", {}).get("norms_in_training")
    options = replace(options, trained_batch_size=_batch_size(trajectory), norms_in_training=norms)
    problem = adapt(model, data, options)
    trajectory = trajectory_of(model, data, problem, trajectory)
    if trajectory.settings.get("follows") == "mean loss":  # whatever the model was trained on
        problem = replace(problem, trained_factor=1.0, trained_sum=False)
    problem = recorded_part(problem, trajectory.names)
    named = as_reference(reference, window)
    reduced = trajectory.r_factors is not None
    if not reduced:
        trajectory = as_read(problem, trajectory, named)
    check_others(problem, trajectory, named, () if reduced else trajectory.windows(window))
    if reduced:  # of a loss as it was while recording
        return targets_from_r_factors(problem, trajectory, named, window)
    warn_of_loss(problem, named)
    return targets_from_weights(problem, trajectory, named, window, verbose)


def _batch_size(trajectory: Any) -> int | None:
    """Rows of the largest batch of a recorded trajectory, if known."""
    held = getattr(trajectory, "trajectory", trajectory)
    steps = getattr(held, "steps", ())
    sizes = [n for step in steps for n in [n for n, _ in step.parts] or [step.batch_size] if n]
    return max(sizes, default=None)


def trajectory_of(model: Any, data: Data, problem: Problem, trajectory: Any) -> Trajectory:
    """The trajectory of a model, or the one that a probe makes."""
    for own in ("trajectory", "trajectory_"):  # of a recorder
        trajectory = getattr(trajectory, own, trajectory)
    if not isinstance(trajectory, Trajectory):
        if not isinstance(trajectory, Probe):
            raise TypeError(
                "Expected trajectory to be a Trajectory, such as the `trajectory` of a recorder, "
                f"or a probe, such as ContinueTraining(...), got {trajectory!r}."
            )
        trajectory = trajectory.run(model, data, problem.whole())
    found: Trajectory = trajectory
    recorded_part(problem, found.names)  # raises for one of another model
    return on_device_of(found, problem.params)
