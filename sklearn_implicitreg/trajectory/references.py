"""What a trajectory is compared with: the mean gradient that a window would have had."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from sklearn_implicitreg.exceptions import ModelStateWarning, warn_user
from sklearn_implicitreg.problem import Indices, LossGradient, Params, Problem, zeros_of
from sklearn_implicitreg.problem.parameters import FLAG, NOTHING, check, choice, having, integer
from sklearn_implicitreg.trajectory.batches import batch_of
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.vectors import moved, norm_over, weighted_sum
from sklearn_implicitreg.trajectory.window import Window

_UNNAMED = (
    "reference='batch' and sub-windows need the rows of every batch; name them with "
    "recorder.batch(rows) while recording, and give the data set they count in, or give "
    "recorder.batch((inputs, targets)) the batch itself in a recording with every=1."
)


def _unknown(problem: Problem, window: Window) -> ValueError:
    """Error of a window whose batches are not known, or are of a larger data set."""
    rows = [step.rows for step in window.counted]
    if any(own is None for own in rows):
        return ValueError(_UNNAMED)
    last = max(own.max() for own in rows if own is not None)
    return ValueError(
        f"Expected the data set that the batches count in, got X with {problem.n_rows} rows and "
        f"batches that name rows up to {last}; give the rows of training in their order."
    )


class Reference(Protocol):
    """A reference has one duty: the mean gradient over the steps of a window."""

    def mean_gradient(self, problem: Problem, window: Window) -> LossGradient:
        """Mean over the steps of the window, at the tensors in scope."""


@dataclass(frozen=True)
class Gradient:
    """Gradient on all rows, at the mean iterate of the window.

    Over an epoch the mini-batch noise cancels, to second order in the step size.

    Parameters
    ----------
    sub_window : int or None, default=None
        Steps that share one mean iterate and their own rows; None takes the whole window.
    weighted : bool, default=True
        Whether rows count as often as the window used them, where that is known. By the name
        "gradient" they do in windows of epochs, and count equally in others.
    n_nodes : {1, 2}, default=1
        The mean iterate, or two places beside it for windows in which the weights move far.

    Raises
    ------
    ValueError
        If ``n_nodes`` is neither 1 nor 2.

    References
    ----------
    Rudoler, Tan, Hooker, Kording (2026), Equation 4, for single steps.
    """

    sub_window: int | None = None
    weighted: bool = True
    n_nodes: int = 1

    def __post_init__(self) -> None:
        allowed = {"sub_window": NOTHING | integer(1), "weighted": FLAG, "n_nodes": integer(1, 2)}
        check("Gradient", vars(self), allowed)

    def mean_gradient(self, problem: Problem, window: Window) -> LossGradient:
        """One pass (two with two nodes) over the rows that the window used."""
        if self.sub_window is None:
            return by_steps(problem, window, self._measured)
        parts = list(sub_windows(window, self.sub_window))
        means = [by_steps(problem, part, self._measured) for part in parts]
        return _mean(problem, means, parts)

    def _measured(self, problem: Problem, window: Window) -> LossGradient:
        """Gradient at the nodes of one window."""
        exact = self.sub_window is not None
        gradients = [
            _at(problem, window, node, exact=exact)
            if exact or self.weighted
            else scaled(problem.at(node).gradient(), window.loss_factor(problem))
            for node in self._nodes(window)
        ]
        return _mean(problem, gradients, [window])

    def _nodes(self, window: Window) -> list[Params]:
        """Weights at which the gradient stands for that of all steps."""
        mean = window.mean("visited")
        if self.n_nodes == 1:
            return [mean]
        # Standard deviation of T even steps, over their length.
        away = ((window.n_steps**2 - 1) / 12) ** 0.5 / window.n_steps
        start, stop = window.start.weights, window.stop.weights
        drift = {name: stop[name].double() - t.double() for name, t in start.items()}
        own = {name: mean[name] for name in drift}
        return [{**mean, **moved(own, drift, sign * away)} for sign in (-1, 1)]


@dataclass(frozen=True)
class Batch:
    """Gradient of the same mini-batch, recomputed at every step.

    Exact for whatever was added to the loss of a batch, and blind to what mini-batching does.

    Parameters
    ----------
    n_draws : int, default=1
        Passes that are averaged, for modules with random masks.
    """

    n_draws: int = 1

    def __post_init__(self) -> None:
        check("Batch", vars(self), {"n_draws": integer(1)})

    def mean_gradient(self, problem: Problem, window: Window) -> LossGradient:
        """One pass over each batch."""
        parts = list(sub_windows(window, 1))
        gradients = [
            by_steps(replace(problem, draw=self.n_draws * part.start.step + k), part, _of_step)
            for part in parts
            for k in range(self.n_draws)
        ]
        return _mean(problem, gradients, parts)


@dataclass(frozen=True)
class Applied:
    """Gradient that the optimizer was given: shows what the optimizer itself adds."""

    def mean_gradient(self, problem: Problem, window: Window) -> LossGradient:
        """Read off the recorded sums, without a pass over data."""
        mean = window.mean_gradient("consumed", problem)
        value = {name: mean[name] for name in problem.params}
        return LossGradient(value, float("nan"), 1.0, 1, norm_over(problem, value), 0)


@dataclass(frozen=True)
class Flow:
    """Gradient flow of the loss over the same time, by the classical Runge-Kutta method.

    Parameters
    ----------
    n_substeps : int, default=10
        Runge-Kutta steps for each step of the trajectory.

    Raises
    ------
    ValueError
        If ``n_substeps`` is no integer >= 1, or the trajectory not of SGD without momentum.

    References
    ----------
    Barrett and Dherin (2021), Implicit Gradient Regularization.
    """

    n_substeps: int = 10

    def __post_init__(self) -> None:
        check("Flow", vars(self), {"n_substeps": integer(1)})

    def mean_gradient(self, problem: Problem, window: Window) -> LossGradient:
        """Displacement of the flow over its time."""
        start = {name: t.double() for name, t in window.start.weights.items()}
        end, first, unit = dict(start), None, 0.0
        for part in window.parts() if window.skipping or window.others else (window,):
            if window.others:
                end |= {name: t for name, t in part.mean("visited").items() if name not in start}
            moving, scales = moved_by(problem, part), part.scales(problem)
            rates = [step.lr for step in part.steps]
            factors = [step.loss_factor(problem) for step in part.steps]
            time = float(scales * factors @ rates)  # of the flow of L
            n = self.n_substeps * part.n_steps
            unit += float(scales @ rates)
            for _ in range(n if moving.params else 0):
                end, slope = runge_kutta(moving, end, time / n)
                first = first or slope
        if first is None:
            return _nothing(problem)
        value = {name: (start[name] - end[name]) / unit for name in problem.params}
        return LossGradient(value, first.loss, first.weight, first.n_rows, first.scale, 0)


def check_flow(reference: Reference, trajectory: Trajectory, windows: Sequence[Window]) -> None:
    """Raise ValueError where an optimizer other than plain descent is compared with the flow."""
    if not isinstance(reference, Flow):
        return
    optimizer, momentum = trajectory.optimizer, trajectory.settings.get("momentum", 0.0)
    if optimizer not in ("SGD", "gradient descent"):
        found = optimizer
    elif momentum:
        found = f"{optimizer} with momentum={momentum:g}"
    else:
        found = next(filter(None, map(_not_descent, windows)), "")
    if found:
        raise ValueError(
            "Expected SGD without momentum and with one step size for reference='flow', whose "
            f"time is the sum of the step sizes, got {found}; use reference='gradient' or 'batch'."
        )


def _not_descent(window: Window) -> str:
    """Steps that are not the applied gradient times one step size; empty where all are."""
    for part in window.parts():
        rates = [step.lr for step in part.steps]
        mixed = [name for name in part.skipping if 0 < part.n_updates(name) < part.n_steps]
        if mixed:
            return f"marks between which only some of the steps updated {min(mixed)!r}"
        if max(rates) > min(rates):
            continue  # the sum of the steps does not show it
        mean = part.mean("applied")
        still = part.absent(mean)
        for name, old in part.start.weights.items():
            if name in still:
                continue
            step = old.double() - part.stop.weights[name].double()
            away = step - rates[0] * part.n_steps * mean[name]
            # A gradient that is zero to rounding moves a tensor by less than its own rounding.
            rounding = part.n_steps * torch.finfo(old.dtype).eps * float(old.double().norm())
            if float(away.norm()) > 1e-3 * float(step.norm()) + rounding:
                return f"steps of {name!r} other than lr={rates[0]:.4g} times the applied gradient"
    return ""


def check_others(
    problem: Problem, trajectory: Trajectory, reference: Reference, windows: Sequence[Window]
) -> None:
    """Raise ValueError where the loss reads what moved and has no value for a window."""
    if isinstance(reference, Applied):
        return
    norms = trajectory.settings.get("norms_in_training", {})
    mixed = [name for name, training in norms.items() if training is None]
    if mixed:
        raise ValueError(
            "Expected normalizations that are in training state in all recorded steps, or at rest "
            f"in all, got others: {', '.join(mixed)}; record the steps before and after the change "
            "apart, or use reference='applied'."
        )
    if not trajectory.others:
        return
    lost = [name for name, began in trajectory.others.items() if began is None]
    read = read_by(problem, lost)
    if read:
        raise ValueError(
            f"Expected a trajectory that knows all that the loss depends on, got one in which "
            f"{', '.join(read)} changed while recording and was not recorded (it is larger than "
            "memory_limit, was added or got another shape or type, changed between the batches of "
            "one step, or is a whole number that changed between two marks); give its optimizer to "
            "record(model, [optimizers]), a larger memory_limit or every=1, or use "
            "reference='applied'."
        )
    changing = set[str]()
    for window in windows:
        for part in _averaged(window, reference):
            changing.update(*(own.changing() for _, _, own in part.groups(problem.params)))
    read = read_by(problem, sorted(changing))
    if read:
        raise ValueError(
            "Expected whole numbers that the loss depends on to stay the same in a window, got one "
            f"in which {', '.join(read)} changes, whose mean is another function's; record with "
            "every=1 and use window=None or reference='batch', or use reference='applied'."
        )


def warn_of_loss(problem: Problem, reference: Reference) -> None:
    """Warn where the loss reads what may have moved, at values that the marks do not hold."""
    found = getattr(problem, "moved_with_loss", None)
    names = [] if found is None or isinstance(reference, Applied) else found()
    if names:
        warn_user(
            f"The loss reads {', '.join(names)}, as it is now: a trajectory holds the model's own "
            "tensors. If it moved while recording, let the model hold it and return what the loss "
            "needs, or use reference='applied'; if a parameter stood still, freeze it by "
            "requires_grad_(False).",
            ModelStateWarning,
        )


def _averaged(window: Window, reference: Reference) -> Iterator[Window]:
    """Steps of a window that the reference evaluates at one mean."""
    if isinstance(reference, Flow):
        return window.parts()
    size = 1 if isinstance(reference, Batch) else getattr(reference, "sub_window", None)
    return iter([window]) if size is None else sub_windows(window, size)


def read_by(problem: Problem, names: Sequence[str]) -> list[str]:
    """Those of the names that the loss depends on; all where that cannot be found out."""
    reads = getattr(problem, "reads", None)
    if reads is None or not names:
        return list(names)
    if not reads(names):
        return []
    return [name for name in names if len(names) == 1 or reads([name])] or list(names)


_NAMED: dict[str, type] = {"gradient": Gradient, "batch": Batch, "flow": Flow, "applied": Applied}
REFERENCE = choice(*_NAMED) | having("an instance such as Gradient(sub_window=5)", "mean_gradient")


def as_reference(reference: Any, window: int | str | None = "epoch") -> Reference:
    """Reference that a name or an instance stands for, in windows of a kind."""
    if isinstance(reference, str):
        if reference == "gradient":
            return Gradient(weighted=window == "epoch")
        made: Reference = _NAMED[reference]()
        return made
    given: Reference = reference
    return given


def moved_by(problem: Problem, window: Window) -> Problem:
    """The problem of the tensors that the steps of a window moved; others stay where they are."""
    still = window.absent([*problem.params, *problem.left_out])
    if not still:
        return problem
    params = {name: t for name, t in problem.params.items() if name not in still}
    left_out = tuple(name for name in problem.left_out if name not in still)
    return replace(problem, params=params, left_out=left_out)


def by_steps(
    problem: Problem, window: Window, measured: Callable[[Problem, Window], LossGradient]
) -> LossGradient:
    """Mean gradient over a window, of each tensor over the steps that updated it."""
    if not window.skipping.intersection(problem.params):
        return measured(problem, window)
    found = _nothing(problem)
    for names, share, own in window.groups(problem.params):
        part = measured(moved_by(problem, own), own)
        value = {name: part.value[name] * share for name in names}
        scale = max(part.scale, found.scale)
        found = replace(part, value={**found.value, **value}, scale=scale)
    return found


def _nothing(problem: Problem) -> LossGradient:
    """Gradient of steps that moved nothing."""
    return LossGradient(zeros_of(problem.params), float("nan"), 1.0, 1, 0.0, 0)


def at_mean(problem: Problem, window: Window, exact: bool = False) -> LossGradient:
    """Gradient at the window's mean iterate, rows weighted as they were used."""
    return _at(problem, window, window.mean("visited"), exact=exact)


def _at(problem: Problem, window: Window, params: Params, *, exact: bool) -> LossGradient:
    """Gradient at some weights, rows weighted as the window used them."""
    there = problem.at(params)
    n_rows = there.n_rows
    weights = None if n_rows is None else window.row_weights(problem)
    if weights is None and exact:
        alone = _batches(problem, window)
        parts = [_of_batch(problem, own, params) for own, _ in alone]
        return LossGradient.mean(parts, [share for _, share in alone])
    factor = window.loss_factor(problem)
    if weights is None:
        return scaled(there.gradient(), factor)
    used = _in_order(window)
    if used is None:
        used = np.flatnonzero(weights)
    else:  # what depends on which rows are together, and in which order, is as it was
        weights = weights / np.maximum(1, np.bincount(used, minlength=len(weights)))
    every = len(used) == n_rows and np.ptp(weights) <= 1e-12 * weights.max()
    if every and (not problem.batch_normalized or bool((np.diff(used) > 0).all())):
        return scaled(there.gradient(), factor)
    found = scaled(there.take(used, weights[used]).gradient(), factor)
    # Shares of rows add up to one; what completes the gradient counts by the rows' own weights.
    masses = problem.masses
    return replace(found, weight=float(len(weights) if masses is None else masses.sum()))


def _in_order(window: Window) -> Indices | None:
    """Rows of the one batch of a window, as they came; None where it has several."""
    (step, *others) = window.counted
    return step.rows if not others and len(step.parts) < 2 else None


def _of_step(problem: Problem, window: Window) -> LossGradient:
    """Gradient that a step was made on; of accumulated ones each is of its own batch."""
    if len(window.steps[0].parts) < 2:
        return at_mean(problem, window, exact=True)
    # Not all rows at once: a normalization has the statistics of each batch.
    alone = _batches(problem, window)
    return LossGradient.mean(at_batches(problem, window, alone), [share for _, share in alone])


def _batches(problem: Problem, window: Window) -> list[tuple[Window, float]]:
    """The window with each batch alone, and its share in the mean; ValueError if unknown."""
    alone = window.batches(problem)
    if alone is None:
        raise _unknown(problem, window)
    return alone


def at_batches(
    problem: Problem, window: Window, alone: Sequence[tuple[Window, float]]
) -> list[LossGradient]:
    """Gradient of each batch of a window alone, at the mean iterate of the window."""
    mean = window.mean("visited")
    return [_of_batch(problem, own, mean) for own, _ in alone]


def _of_batch(problem: Problem, window: Window, params: Params) -> LossGradient:
    """Gradient of the one batch of a window, at some weights."""
    seen = window.steps[0].seen
    if seen:
        return problem.at(params).seeing(batch_of(seen[0])).gradient()
    return _at(problem, window, params, exact=True)


def scaled(gradient: LossGradient, factor: float) -> LossGradient:
    """Gradient of a multiple of the loss."""
    return gradient if factor == 1 else LossGradient.mean([gradient], [factor])


def sub_windows(window: Window, size: int) -> Iterator[Window]:
    """Consecutive parts of a window, which must begin at marks."""
    marks = {mark.step: mark for mark in (*window.inside, window.stop)}
    begin, end = window.start.step, window.stop.step
    for step in range(begin, end, size):
        stop = min(step + size, end)
        if step not in marks or stop not in marks:
            raise ValueError(
                f"reference='batch' and sub-windows of {size} steps need a mark every {size} "
                "steps; record with a smaller `every`."
            )
        inside = tuple(mark for mark in window.inside if step <= mark.step < stop)
        steps = window.steps[step - begin : stop - begin]
        part = replace(window, start=marks[step], stop=marks[stop], inside=inside, steps=steps)
        if part.n_steps:
            yield part


def _mean(problem: Problem, gradients: list[LossGradient], parts: list[Window]) -> LossGradient:
    """Mean of the gradients of parts with rows of their own, of each part as many in a row."""
    n = len(gradients) // len(parts)
    total = sum(n * part.n_steps for part in parts)
    shares = [part.n_steps / total for part in parts for _ in range(n)]
    return replace(
        LossGradient.mean(gradients, shares),
        n_rows=problem.n_rows or gradients[0].n_rows,
        n_kinks=max(sum(g.n_kinks for g in gradients[i::n]) for i in range(n)),
    )


def runge_kutta(problem: Any, at: Params, h: float) -> tuple[Params, LossGradient]:
    """One classical step of ``d theta / d t = -grad L``."""

    def after(slope: Params, time: float) -> Params:
        return {n: t - time * slope[n] if n in slope else t for n, t in at.items()}

    first = problem.at(at).gradient()
    slopes = [first.value]
    for part in (0.5, 0.5, 1.0):
        slopes.append(problem.at(after(slopes[-1], part * h)).gradient().value)
    return after(weighted_sum(slopes, (1, 2, 2, 1)), h / 6), first
