"""State of a model that a forward pass reads and then writes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sklearn_implicitreg.problem import Params, Problem
from sklearn_implicitreg.problem.vectors import wide
from sklearn_implicitreg.trajectory.marks import Mark
from sklearn_implicitreg.trajectory.references import Applied, Batch, Reference
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.vectors import minus, norm_over
from sklearn_implicitreg.trajectory.window import Window, squares_of, with_others

_EXPLAINED = 1e-7  # of the gradient that was given, by that of the batch
_BETTER = 0.5  # what is left of the difference to it


def as_read(problem: Problem, trajectory: Trajectory, reference: Reference) -> Trajectory:
    """The trajectory with what each forward pass read, where it wrote to it afterwards."""
    # What moves is recorded at the gradient, when a queue holds the rows of its own batch already.
    # Which value a step read is seen from the gradient that it was given.
    names = [n for n, t in trajectory.others.items() if t is not None and _is_value(n, trajectory)]
    known = trajectory.every_step and trajectory.has_gradients
    if not names or not known or isinstance(reference, Applied):
        return trajectory
    windows = trajectory.windows(None)
    first = set[str]()
    for k in {len(windows) // 2, len(windows) - 1} - {0}:
        step = windows[k].steps[0]
        if step.seen or (step.rows is not None and step.rows.max() < (problem.n_rows or 0)):
            first.update(_read_first(problem, windows[k - 1], windows[k], names))
    return _shifted(trajectory, first) if first else trajectory


def _is_value(name: str, trajectory: Trajectory) -> bool:
    return not any(squares_of(other) == name for other in trajectory.others)


def _read_first(problem: Problem, before: Window, step: Window, names: Sequence[str]) -> list[str]:
    """Names of which the gradient of a step tells that it read the value before."""
    given = Applied().mean_gradient(problem, step).value

    def away(own: Sequence[str]) -> float:
        found = Batch().mean_gradient(problem, _with_values(step, before, own)).value
        return norm_over(problem, minus(given, found))

    now = away([])
    if now <= _EXPLAINED * norm_over(problem, given) or away(names) == now:
        return []
    return [name for name in names if away([name]) < _BETTER * now]


def _with_values(step: Window, before: Window, names: Sequence[str]) -> Window:
    """A step with the values of the one before it."""
    if not names:
        return step
    old, start = before.mean("visited"), with_others(step.start, step.others)
    moved = {name: start[name] + old[name] for name in names}
    return replace(step, stop=_with_visited(step.stop, with_others(step.stop, step.others) | moved))


def _shifted(trajectory: Trajectory, names: set[str]) -> Trajectory:
    """Every step with the value of some names at the one before; the first with that before it."""
    if trajectory.marks[0].step:  # what the step before had is not known
        return replace(trajectory, others=trajectory.others | dict.fromkeys(names))
    began = {
        name: wide(t) for name, t in trajectory.others.items() if name in names and t is not None
    }
    marks, last = [trajectory.marks[0]], with_others(trajectory.marks[0], trajectory.others)
    for mark in trajectory.marks[1:]:
        here = with_others(mark, trajectory.others)
        marks.append(_with_visited(mark, here | {n: last[n] + t for n, t in began.items()}))
        last = here
    return replace(trajectory, marks=tuple(marks))


def _with_visited(mark: Mark, visited: Params) -> Mark:
    return Mark(
        mark.step, mark.epoch, mark.weights, mark.applied, mark.consumed, visited, mark.scale
    )
