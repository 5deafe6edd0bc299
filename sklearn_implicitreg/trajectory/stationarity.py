"""Whether trained weights are an endpoint: what the steps of a trajectory beside them add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from sklearn_implicitreg.problem import LossGradient, Params
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.place import Place
from sklearn_implicitreg.trajectory.design import deviation, recorded_part
from sklearn_implicitreg.trajectory.marks import Mark
from sklearn_implicitreg.trajectory.references import Gradient, check_others
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.window import Window

_DIFFERENT = 0.01  # share of the endpoint's squared target, as for a supported family
_WINDOWS = 10  # nearest to the weights: the trajectory may have come from far


def with_evidence(equations: Equations, trajectory: Trajectory | None) -> Equations:
    """The equations with what a trajectory has against an endpoint, or for it."""
    # An endpoint takes the applied gradient as zero: its target is -grad L. The trajectory measured
    # it: what its steps added is a - grad L at the mean iterates. Where the weights are stationary
    # both are the gradient of the same penalty.
    if trajectory is None or equations.cluster != "tensor":
        return equations  # several endpoints have no trajectory in common
    _check_weights(equations, trajectory)
    size = float(np.linalg.norm(equations.system.r_factor[:, -1]))
    if size <= equations.rounding:
        return equations
    place = equations.judged
    problem = recorded_part(place.problem, trajectory.names)
    windows = _beside(trajectory, problem.params)
    check_others(problem, trajectory, Gradient(), windows)
    whole, reference = problem.whole(), Gradient()
    parts = [deviation(problem, w, reference.mean_gradient(whole, w)) for w in windows]
    # What only some of the steps updated says nothing of the mean over all of them.
    some = frozenset().union(*[window.skipping for window in windows])
    names = [name for name in place.names if name in problem.params and name not in some]
    if not names:
        return equations
    added = torch.stack([_vector(part, place, names) for part in parts])
    target_there = _vector(place.gradient, place, names)
    if len(names) < len(place.names):
        size = float(target_there.norm())
    signal, raw = _squared_mean(added - target_there)
    share, noise = max(0.0, signal) / size**2, (raw - signal) / size**2
    n_steps = sum(window.n_steps for window in windows)
    target = "-grad L" + " less what is known" * bool(place.design.known_terms)
    measured = f"noise {noise:.2g}" if len(windows) > 1 else "one window: its noise is not known"
    steps = f"the penalty gradient that the {n_steps} steps next to these weights added"
    if share <= _DIFFERENT + noise:
        return replace(
            equations,
            agreement=f"The trajectory confirms it: {steps} differs from {target} by {share:.2g} "
            f"of its squared norm ({measured}).",
        )
    norm = float(added.mean(0).norm())
    evidence = (
        f"{target} has norm {size:.4g} and {steps} has norm {norm:.4g}; they differ by {share:.3g} "
        f"of the squared norm of the first, more than {_DIFFERENT + noise:.2g} ({measured}): "
        f"{target} holds noise, or the training had not ended."
    )
    return replace(equations, evidence=evidence)


def _check_weights(equations: Equations, trajectory: Trajectory) -> None:
    """Raise ValueError where the weights of a trajectory are not all here."""
    if trajectory.r_factors is not None:
        raise ValueError(
            "Expected a trajectory with weights beside an endpoint, got one that holds only R "
            "factors; record without families= to keep the weights, or use mode='trajectory'."
        )
    if equations.judged.problem.in_shards:
        raise ValueError(
            "Expected trajectory=None beside an endpoint of a module in shards, got a recorded "
            "trajectory; use mode='trajectory'."
        )


def _beside(trajectory: Trajectory, params: Params) -> list[Window]:
    """The windows that end at the weights, or that begin there; epochs where they are marked."""
    marks = trajectory.marks
    epochs = marks[-1].epoch > marks[0].epoch
    windows = trajectory.windows("epoch" if epochs else None)
    order = (marks[-1], marks[0], *reversed(marks[1:-1]))
    here = next((mark.step for mark in order if _is_at(mark, params)), None)
    if here is None:
        raise ValueError(
            "Expected a trajectory through the trained weights, got one with none of its marks "
            "there; give the model as it was when the trajectory was recorded, or trajectory=None."
        )
    before = [window for window in windows if window.stop.step <= here]
    after = [window for window in windows if window.start.step >= here]
    return before[-_WINDOWS:] or after[:_WINDOWS] or windows[-1:]


def _is_at(mark: Mark, params: Params) -> bool:
    weights = mark.weights
    return all(torch.equal(weights[n].double(), t.double()) for n, t in params.items())


def _vector(gradient: LossGradient, place: Place, names: Sequence[str]) -> torch.Tensor:
    parts = []
    for name in names:
        slope, known = gradient.value[name].reshape(-1), place.design.known(name)
        slope, dropped = slope if known is None else slope + known, place.dropped(name)
        frame = place.design.frame(name)
        if frame is not None:
            slope = frame.rotated(slope).reshape(-1)
        parts.append((slope if dropped is None else slope[~dropped]).cpu())
    return torch.cat(parts)


def _squared_mean(vectors: torch.Tensor) -> tuple[float, float]:
    """Squared norm of the mean of n vectors, (n, p), by their products, and as it is."""
    # Products of different vectors are free of noise that is independent from one to the next.
    n = len(vectors)
    whole = float(vectors.mean(0).square().sum())
    own = float(vectors.square().sum())
    return (n * n * whole - own) / (n * (n - 1)) if n > 1 else whole, whole
