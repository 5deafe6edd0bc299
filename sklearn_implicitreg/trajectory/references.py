"""What a trajectory is compared with: the mean gradient that a window would have had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.vectors import moved, weighted_sum
from sklearn_implicitreg.trajectory.window import Window, check_count


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
        if self.sub_window is not None:
            check_count("sub_window", self.sub_window)
        if self.n_nodes not in (1, 2):
            raise ValueError(f"Expected n_nodes 1 or 2, got {self.n_nodes!r}.")

    def mean_gradient(self, problem: Problem, window: Window) -> LossGradient:
        """One pass (two with two nodes) over the rows that the window used."""
        exact = self.sub_window is not None
        size = window.n_steps if self.sub_window is None else self.sub_window
        parts = list(sub_windows(window, size))
        gradients = [
            _at(problem, part, node, exact=exact)
            if exact or self.weighted
            else problem.at(node).gradient()
            for part in parts
            for node in self._nodes(part)
        ]
        return _mean(gradients, [part for part in parts for _ in range(self.n_nodes)])

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
        check_count("n_draws", self.n_draws)

    def mean_gradient(self, problem: Problem, window: Window) -> LossGradient:
        """One pass over each batch."""
        parts = list(sub_windows(window, 1))
        gradients = [
            at_mean(replace(problem, draw=self.n_draws * part.start.step + k), part, exact=True)
            for part in parts
            for k in range(self.n_draws)
        ]
        return _mean(gradients, [part for part in parts for _ in range(self.n_draws)])


@dataclass(frozen=True)
class Applied:
    """Gradient that the optimizer was given: shows what the optimizer itself adds."""

    def mean_gradient(self, problem: Problem, window: Window) -> LossGradient:
        """Read off the recorded sums, without a pass over data."""
        mean = window.mean_gradient("consumed", problem)
        value = {name: mean[name] for name in problem.params if name in mean}
        size = float(sum(float(g.square().sum()) for g in value.values())) ** 0.5
        return LossGradient(value, float("nan"), 1.0, 1, size, 0)


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
        check_count("n_substeps", self.n_substeps)

    def mean_gradient(self, problem: Problem, window: Window) -> LossGradient:
        """Displacement of the flow over its time."""
        rates = [step.lr for step in window.steps]
        time = float(window.scales(problem) @ rates)  # of the flow of L
        n = self.n_substeps * window.n_steps
        start = {name: t.double() for name, t in window.start.weights.items()}
        end, first = {**window.mean("visited"), **start}, None
        for _ in range(n):
            end, slope = runge_kutta(problem, end, time / n)
            first = first or slope
        assert first is not None
        value = {name: (start[name] - end[name]) / time for name in problem.params}
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
        if max(rates) > min(rates):
            continue  # the sum of the steps does not show it
        mean = part.mean("applied")
        for name, old in part.start.weights.items():
            step = old.double() - part.stop.weights[name].double()
            away = step - rates[0] * part.n_steps * mean[name]
            if float(away.norm()) > 1e-3 * float(step.norm()):
                return f"steps of {name!r} other than lr={rates[0]:.4g} times the applied gradient"
    return ""


def check_others(problem: Problem, trajectory: Trajectory, reference: Reference) -> None:
    """Raise ValueError where the loss reads what changed while recording and was not kept."""
    lost = [name for name, began in trajectory.others.items() if began is None]
    if not lost or isinstance(reference, Applied):
        return
    reads = getattr(problem, "reads", None)
    read = [name for name in lost if reads is None or reads(name)]
    if read:
        raise ValueError(
            f"Expected a trajectory that knows all that the loss depends on, got one in which "
            f"{', '.join(read)} changed while recording and was not recorded (it is larger than "
            "memory_limit, or its shape changed); give its optimizer to record(model, "
            "[optimizers]) or a larger memory_limit, or use reference='applied'."
        )


def as_reference(reference: Any, window: int | str | None = "epoch") -> Reference:
    """Reference that a name or an instance stands for, in windows of a kind."""
    named = {"gradient": Gradient, "batch": Batch, "flow": Flow, "applied": Applied}
    if isinstance(reference, str):
        if reference not in named:
            raise ValueError(f"Expected reference among {list(named)}, got {reference!r}.")
        if reference == "gradient":
            return Gradient(weighted=window == "epoch")
        made: Reference = named[reference]()
        return made
    if not hasattr(reference, "mean_gradient"):
        raise ValueError(
            f"Expected reference among {list(named)} or an instance such as "
            f"Gradient(sub_window=5), got {reference!r}."
        )
    given: Reference = reference
    return given


def at_mean(problem: Problem, window: Window, exact: bool = False) -> LossGradient:
    """Gradient at the window's mean iterate, rows weighted as they were used."""
    return _at(problem, window, window.mean("visited"), exact=exact)


def _at(problem: Problem, window: Window, params: Params, *, exact: bool) -> LossGradient:
    """Gradient at some weights, rows weighted as the window used them."""
    there = problem.at(params)
    n_rows = there.n_rows
    weights = None if n_rows is None else window.row_weights(n_rows, problem.masses)
    if weights is None:
        if exact:
            raise ValueError(
                "reference='batch' and sub-windows need the rows of every batch; name them with "
                "recorder.batch(rows) while recording, and give the data set they count in."
            )
        return there.gradient()
    used = np.flatnonzero(weights)
    if len(used) == n_rows and np.ptp(weights) <= 1e-12 * weights.max():
        return there.gradient()
    return there.take(used, weights[used]).gradient()


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
        yield Window(marks[step], marks[stop], inside, steps, window.others)


def mean_over(values: Sequence[Params], parts: Sequence[Window]) -> Params:
    """Mean of one value for each window, by the steps of each tensor."""
    if not any(step.still for part in parts for step in part.steps):
        total = sum(part.n_steps for part in parts)
        return weighted_sum(values, [part.n_steps / total for part in parts])
    found: Params = {}
    for name in dict.fromkeys(name for value in values for name in value):
        held = [i for i, value in enumerate(values) if name in value]
        counts = [parts[i].count(name) for i in held]
        if n := sum(counts):
            own = [{name: values[i][name]} for i in held]
            found |= weighted_sum(own, [count / n for count in counts])
    return found


def _mean(gradients: list[LossGradient], parts: list[Window]) -> LossGradient:
    total = sum(part.n_steps for part in parts)
    shares = [part.n_steps / total for part in parts]
    pairs = list(zip(shares, gradients, strict=True))
    return LossGradient(
        mean_over([g.value for g in gradients], parts),
        sum(s * g.loss for s, g in pairs),
        sum(g.weight for g in gradients),
        sum(g.n_rows for g in gradients),
        sum(s * g.scale for s, g in pairs),
        sum(g.n_kinks for g in gradients),
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
