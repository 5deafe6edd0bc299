"""Whether steps on accumulated gradients were made with the factors that were named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sklearn_implicitreg.problem import Params, Problem
from sklearn_implicitreg.trajectory.references import at_batches
from sklearn_implicitreg.trajectory.vectors import minus, norm_over, weighted_sum
from sklearn_implicitreg.trajectory.window import Step, Window

_PARTS = 6  # stretches between marks that are looked at, at most
_BETTER = 3.0  # times smaller is what other factors leave than those that were named
_SEEN = 0.3  # of the change of the steps: what the right factors leave at most


def check_factors(problem: Problem, windows: Sequence[Window]) -> None:
    """Raise ValueError where the steps fit other factors of the batches' losses far better."""
    # What the loss does not explain hardly changes from one stretch to another, however large it
    # is; what the noise of batches adds does. So changes are compared.
    parts = _chosen(windows)
    counts = sorted({max(1, len(step.parts)) for part in parts for step in part.steps})
    some = frozenset().union(*[part.skipping for part in parts])
    names = [name for name in problem.params if name not in some]  # the mean over all steps
    found = [_left(problem, part, counts, names) for part in parts] if names else []
    if not found or any(left is None for left in found):
        return
    changes = {name: _change(problem, [f[name] for f in found if f]) for name in found[0] or {}}
    claimed, size = changes.pop("named"), changes.pop("applied")
    best = min(changes, key=lambda name: changes[name])
    if claimed > 1e-6 * size and changes[best] < min(claimed / _BETTER, _SEEN * size):
        steps = (step for window in windows for step in window.steps)
        step = next(step for step in steps if len(step.parts) > 1)
        own = ", ".join(f"{factor:.4g}" for factor in step.factors(problem))
        raise ValueError(
            f"Expected steps on the gradients of {len(step.parts)} batches whose losses were "
            f"multiplied by {own}, got steps on {best}; give recorder.batch(rows, "
            "accumulate=True, weight=...) the factor of each batch while recording."
        )


def _left(
    problem: Problem, part: Window, counts: Sequence[int], names: Sequence[str]
) -> dict[str, Params] | None:
    """What was applied in a stretch, and what several factors of the batches leave of it."""
    alone = part.batches(problem)
    if alone is None:
        return None
    gradients = [own.value for own in at_batches(problem, part, alone)]
    mean = part.mean_gradient("applied", problem)
    applied = {name: mean[name] for name in names}
    sizes = [own.steps[0].batch_size or 0 for own, _ in alone]
    left = {"applied": applied}
    for name, factors in _alternatives(problem, part.steps, sizes, counts).items():
        shares = [share * factor for (_, share), factor in zip(alone, factors, strict=True)]
        left[name] = minus(applied, weighted_sum(gradients, shares))
    return left


def _alternatives(
    problem: Problem, steps: Sequence[Step], sizes: Sequence[int], counts: Sequence[int]
) -> dict[str, list[float]]:
    """Factors of all batches, over those that were named."""
    found: dict[str, list[float]] = {}
    first = 0
    for step in steps:
        named = step.factors(problem)
        m = len(named)
        own = np.array(sizes[first : first + m], dtype=np.float64)
        last = np.arange(m) == m - 1
        kinds = {
            "named": named,
            "undivided losses (weight=1)": np.ones(m),
            "losses divided by the number of batches": np.ones(m) / m,
            "losses weighted by their rows (weight=rows of the batch / rows of the step)": (
                own / own.sum()
            ),
            "the last batch alone (the gradients of the others were zeroed)": last * named,
            "the undivided loss of the last batch alone": last,
            **{f"losses divided by {n} (weight=1/{n})": np.ones(m) / n for n in counts if n > 1},
        }
        for name, factors in kinds.items():
            found.setdefault(name, []).extend((factors / named).tolist())
        first += m
    return found


def _chosen(windows: Sequence[Window]) -> list[Window]:
    """Stretches between marks: two of the first make, and one of each other."""
    if not any(len(step.parts) > 1 for window in windows for step in window.steps):
        return []
    kinds: dict[tuple[Any, ...], int] = {}
    chosen = []
    for part in (part for window in windows for part in window.parts()):
        kind = tuple(step.parts or ((step.batch_size, None),) for step in part.steps)
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] <= 1 + (len(kinds) == 1):
            chosen.append(part)
        if len(chosen) == _PARTS:
            break
    return chosen


def _change(problem: Problem, values: Sequence[Params]) -> float:
    """Size of the changes from one to the next; of a single one its own."""
    if len(values) == 1:
        return norm_over(problem, values[0])
    pairs = zip(values[:-1], values[1:], strict=True)
    return float(
        np.hypot.reduce([norm_over(problem, minus(after, before)) for before, after in pairs])
    )
