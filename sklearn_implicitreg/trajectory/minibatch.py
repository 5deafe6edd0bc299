"""The penalty that mini-batching leaves in a window of steps, as a column of its equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from sklearn_implicitreg.problem import Indices, LossGradient, Params, Problem, times, zeros_of
from sklearn_implicitreg.trajectory.references import (
    Gradient,
    Reference,
    at_mean,
    by_steps,
    scaled,
    sub_windows,
)
from sklearn_implicitreg.trajectory.vectors import minus, weighted_sum
from sklearn_implicitreg.trajectory.window import Step, Window

NUISANCE = "minibatch"
_PARTS = 50  # of the rows, where the batches are not known


def has_nuisance(
    reference: Reference,
    window: int | str | None,
    windows: Sequence[Window],
    n_rows: int | None,
) -> TypeGuard[Gradient]:
    """Whether the noise of mini-batches leaves a penalty of its own in the windows."""
    several = any(stretch.n_steps > 1 for stretch in windows)
    own = isinstance(reference, Gradient) and reference.sub_window != 1
    if window != "epoch" or not own or not several:
        return False
    return not all(_is_full(step, n_rows) for stretch in windows for step in stretch.steps)


def _is_full(step: Step, n_rows: int | None) -> bool:
    """Whether the one batch of a step is all rows, so that the column would be rounding."""
    if n_rows is None or len(step.parts) > 1:
        return False
    if step.rows is None:
        return step.batch_size == n_rows
    return len(step.rows) == n_rows and np.array_equal(np.unique(step.rows), np.arange(n_rows))


def gradient_and_column(
    whole: Problem, window: Window, reference: Gradient
) -> tuple[LossGradient, Params | None]:
    """Mean gradient of a window, and its column of mini-batching."""
    # In one pass where both are at the mean iterate, with the rows of the window's batches.
    if not window.skipping:
        return _gradient_and_column(whole, window, reference)
    columns: list[Params | None] = []

    def measured(problem: Problem, own: Window) -> LossGradient:
        gradient, column = _gradient_and_column(problem, own, reference)
        columns.append(column)
        return gradient

    gradient = by_steps(whole, window, measured)
    total = zeros_of(whole.params)
    for (names, share, _), column in zip(window.groups(whole.params), columns, strict=True):
        if column is None:
            return gradient, None
        total |= {name: column[name] * share for name in names}
    return gradient, total


def _gradient_and_column(
    whole: Problem, window: Window, reference: Gradient
) -> tuple[LossGradient, Params | None]:
    """Both over the steps of a window that count."""
    batches = named_batches(window, whole)
    plain = reference.sub_window is None and reference.weighted and reference.n_nodes == 1
    if plain and batches is not None and window.merged(whole):
        there = whole.at(window.mean("visited"))
        found = there.mean_and_spread(batches, window.stop.scale)
        if found is not None:
            return found
    gradient = reference.mean_gradient(whole, window)
    return gradient, _column(whole, window, reference, gradient)


def _column(
    whole: Problem, window: Window, reference: Gradient, gradient: LossGradient
) -> Params | None:
    """Gradient of ``mean_k |g_k - g|^2`` over the batches of a window, at its mean iterate."""
    # Of a step that multiplies each entry by a scale P: (g_k - g)' P (g_k - g), P held fixed.
    scale = window.stop.scale
    if reference.sub_window is None:
        return _spread(whole, window, gradient, scale)
    total: Params = {}
    for part in sub_windows(window, reference.sub_window):
        column = _spread(whole, part, at_mean(whole, part, exact=True), scale)
        if column is None:
            return None
        for name, tensor in column.items():
            own = tensor * (part.n_steps / window.n_steps)
            total[name] = total[name] + own if name in total else own
    return total


def _spread(whole: Problem, window: Window, gradient: LossGradient, scale: Params) -> Params | None:
    there = whole.at(window.mean("visited"))
    batches = named_batches(window, whole)
    if batches is not None:
        if window.merged(whole):
            return there.spread_gradient(batches, gradient.value, scale)
        return _accumulated_spread(whole, window, gradient, scale)
    sizes = np.array([step.batch_size or 0 for step in window.counted], dtype=np.float64)
    n_rows = whole.n_rows or 0
    if sizes.min() < 1 or sizes.max() > n_rows:
        return None
    # In expectation over partitions the spread is that of the rows times the mean of
    # (n - B) / ((n - 1) B); many small parts tell it with less noise than a few batches.
    order = np.random.default_rng(window.start.step).permutation(n_rows)
    parts = np.array_split(order, min(n_rows, _PARTS))
    own = np.array([len(part) for part in parts])
    noise = np.mean([_noise(step, whole) for step in window.counted])
    factor = float(noise / np.mean(n_rows / own - 1))
    # The parts are of L itself, and ``gradient`` is of what the steps were made on.
    center = scaled(gradient, 1 / window.loss_factor(whole)).value
    spread = there.spread_gradient(parts, center, scale)
    return {name: factor * column for name, column in spread.items()}


def _noise(step: Step, whole: Problem) -> float:
    """Mean square of a step's noise over that of the rows, times n - 1: n / B - 1 of one batch."""
    sizes = np.array([size for size, _ in step.parts] or [step.batch_size], dtype=np.float64)
    shares = step.factors(whole)
    if whole.trained_sum:
        shares = shares * sizes / (shares @ sizes)
    return float((whole.n_rows or 0) * (shares**2 / sizes).sum() - shares.sum() ** 2)


def _accumulated_spread(
    whole: Problem, window: Window, gradient: LossGradient, scale: Params
) -> Params:
    """The same of steps that are no mean over the rows of their batches."""
    there = whole.at(window.mean("visited"))
    total = zeros_of(gradient.value)
    for step in window.counted:
        used = step.used(whole) or []
        alone = [(there.take(rows, np.ones(len(rows))), share) for rows, _, share in used]
        own = weighted_sum([p.gradient().value for p, _ in alone], [share for _, share in alone])
        away = times(minus(own, gradient.value), scale)
        for part, share in alone:
            for name, product in part.hvp(away).items():
                total[name] += product * (2 * share / window.n_steps)
    return total


def mean_columns(columns: Sequence[Params], windows: Sequence[Window]) -> tuple[Params, ...]:
    """Mean over windows: the noise of random batches in a column would shrink its coefficient."""
    mean = weighted_sum(columns, [1 / len(columns)] * len(columns))
    if not any(window.skipping for window in windows):
        return (mean,) * len(windows)
    # As each window has it: its own share of the steps times the mean over these.
    found: list[Params] = [{} for _ in windows]
    for name, tensor in mean.items():
        shares = [window.n_updates(name) / window.n_steps for window in windows]
        total = sum(shares) or 1.0
        for own, share in zip(found, shares, strict=True):
            own[name] = tensor * (share * len(windows) / total)
    return tuple(found)


def named_batches(window: Window, whole: Problem) -> list[Indices] | None:
    """Rows of the batches of all steps; None where some are not known among these rows."""
    batches = [step.rows for step in window.counted if step.rows is not None]
    n_rows = whole.n_rows or 0
    known = len(batches) == window.n_steps and all(rows.max() < n_rows for rows in batches)
    return batches if known else None
