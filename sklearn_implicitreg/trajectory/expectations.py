"""What theory expects of coefficients that the step size or mini-batches explain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.trajectory.smoothness import Kinks, find_kinks
from sklearn_implicitreg.trajectory.step_size import finite_step_factor, minibatch_factor
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.window import Window

_SCALED = ("Adam", "AdamW", "RMSprop")  # whose step is the gradient's, entries times a scale


def step_kinks(problem: Problem, windows: Sequence[Window]) -> Kinks:
    """Whether the loss is smooth on the scale of a step."""
    return find_kinks(problem, _step_size(problem, windows))


def step_notes(problem: Problem, windows: Sequence[Window], kinks: Kinks) -> list[str]:
    """The coefficient that theory expects of the step-size penalty."""
    if not kinks.smooth or max(kinks.distances) <= 0:
        return []
    if any(window.loss_factor(problem) != 1 for window in windows):
        return []  # the steps were on a multiple of L
    lr = _step_size(problem, windows)
    factor = finite_step_factor(problem, lr)
    expected = (
        f"gradient_norm: theory expects lr/4 = {lr / 4:.4g}, at this step size "
        f"{factor.expected_coefficient:.4g}."
    )
    return [expected, factor.note] if factor.note else [expected]


def minibatch_note(
    problem: Problem, windows: Sequence[Window], trajectory: Trajectory, sub_window: int | None
) -> str:
    """The coefficient that theory expects of the column of mini-batching."""
    settings, momentum, undamped = trajectory.settings, 0.0, 1.0
    scaled = trajectory.optimizer in _SCALED and all(w.stop.scale for w in windows)
    if scaled and "betas" in settings:  # the first moment is a mean: momentum, dampened
        momentum = float(settings["betas"][0])
        undamped = 1 - momentum
    elif scaled or trajectory.optimizer in ("SGD", "gradient descent"):
        momentum = float(settings.get("momentum", 0.0))
        undamped = 1 - float(settings.get("dampening", 0.0)) * (momentum > 0)
    else:
        several = "+" in trajectory.optimizer
        kind = "several optimizers" if several else "a preconditioned optimizer"
        return f"minibatch: no theory for {kind}."
    # What momentum multiplies lr / 4 by, mean over the windows of several steps.
    lengths = [min(sub_window or np.inf, w.n_steps) for w in windows if w.n_steps > 1]
    nesterov = bool(settings.get("nesterov"))
    factors = [minibatch_factor(momentum, int(n), nesterov=nesterov) for n in lengths]
    kappa = float(np.average(factors, weights=lengths) * undamped)
    lr = _step_size(problem, windows)
    return f"minibatch: theory expects lr/4 times {kappa:.3g} = {lr / 4 * kappa:.4g}."


def _step_size(problem: Problem, windows: Sequence[Window]) -> float:
    """Mean step size along L: larger than the optimizer's where a step's loss is."""
    rates = [w.scales(problem) * [step.lr for step in w.steps] for w in windows]
    return float(np.concatenate(rates).mean())
