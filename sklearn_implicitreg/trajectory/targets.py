"""What every family along a trajectory shares: one deviation for each window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import ClassVar

import numpy as np

from sklearn_implicitreg.exceptions import PathNoiseWarning, warn_user
from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.gradients import BatchGradientNorm, GradientNorm
from sklearn_implicitreg.problem import LossGradient, Params, Problem, Sampling
from sklearn_implicitreg.progress import progress
from sklearn_implicitreg.regression.equations import Equations, Observed, Place, Units
from sklearn_implicitreg.regression.fit import Result
from sklearn_implicitreg.regression.solve import decompose
from sklearn_implicitreg.regression.spread import observed
from sklearn_implicitreg.trajectory.design import deviation, mean_of, recorded_part, window_design
from sklearn_implicitreg.trajectory.expectations import minibatch_note, step_kinks, step_notes
from sklearn_implicitreg.trajectory.minibatch import (
    NUISANCE,
    gradient_and_column,
    has_nuisance,
    mean_column,
    named_batches,
)
from sklearn_implicitreg.trajectory.references import (
    Flow,
    Gradient,
    Reference,
    check_flow,
    mean_over,
)
from sklearn_implicitreg.trajectory.smoothness import Kinks
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.window import Window

# Places of a penalty, with the mean over them.
Places = Callable[["TrajectoryTargets", Penalty], tuple[tuple[Place, ...], Place]]


@dataclass(frozen=True, eq=False)
class TrajectoryTargets:
    """One deviation of a trajectory from its reference for each window."""

    place: ClassVar[str] = "window"
    sampling: ClassVar[Sampling] = "data sets"

    problem: Problem
    reference: Reference
    windows: tuple[Window, ...]
    deviations: Callable[[Problem | None], Sequence[LossGradient]]
    places: Places
    with_nuisance: bool
    trajectory: Trajectory
    remarks: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problem at the mean iterate of every window."""
        return tuple(self.problem.at(window.mean("visited")) for window in self.windows)

    @cached_property
    def gradients(self) -> Sequence[LossGradient]:
        """The deviations, which stand where the gradients of endpoints do."""
        return self.deviations(None)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of every window in the steps."""
        total = sum(w.n_steps for w in self.windows)
        return tuple(w.n_steps / total for w in self.windows)

    def equations(self, penalty: Penalty) -> Equations:
        """Equations of a penalty along the trajectory; a window is a cluster."""
        places, mean = self.places(self, penalty)
        equations = Equations(
            places,
            self,
            "window",
            mean=mean,
            shares=self.shares,
            nuisance=NUISANCE if self.adds_nuisance(penalty) else None,
            noisy=self._noisy,
        )
        if self._of_step_size(equations) and not self.kinks.smooth:
            return replace(equations, objection=self.kinks.note)
        return equations

    def observed(self, penalties: Sequence[Penalty], n_blocks: int) -> list[Observed]:
        """Equations of several penalties, with the noise at the mean iterate of the windows."""
        found = [self.equations(penalty) for penalty in penalties]
        first, last = self.windows[0], self.windows[-1]
        visited = Window(first.start, last.stop, (), (), first.others).mean("visited")
        designs = [equations.judged.design for equations in found]
        blocks, seen = observed(self.problem.at(visited).blocks(n_blocks), self.problem, designs)
        for _ in blocks:
            pass
        return [(equations, [spread]) for equations, spread in zip(found, seen, strict=True)]

    def adds_nuisance(self, penalty: Penalty) -> bool:
        """Whether the column of mini-batching is added: a family's own takes its place."""
        leaves = penalty.leaves(self.problem.params, self.problem)
        return self.with_nuisance and not any(
            isinstance(leaf.penalty, BatchGradientNorm) for leaf in leaves
        )

    def completing(self, other: Problem) -> LossGradient:
        """Mean deviation against further rows, whose labels are numbered as in these."""
        numbered = other.numbered_like(self.problem)
        whole = recorded_part(numbered, self.trajectory.names).whole()
        own = self.problem
        whole = replace(whole, trained_factor=own.trained_factor, trained_sum=own.trained_sum)
        return self.mean_deviation(self.deviations(whole))

    def mean_deviation(self, deviations: Sequence[LossGradient]) -> LossGradient:
        """Mean over the windows, each by its steps."""
        value = mean_over([part.value for part in deviations], self.windows)
        return replace(deviations[0], value=value)

    @cached_property
    def kinks(self) -> Kinks:
        """Whether the loss is smooth on the scale of a step."""
        return step_kinks(self.problem, self.windows)

    def units(self, equations: Equations) -> Units:
        """As at an endpoint; a trajectory is recorded in units of L."""
        return 1.0, self.problem.convention, False

    def header(self, equations: Equations, result: Result) -> list[tuple[str, str]]:
        """Model, loss, steps, size of the mean deviation and its noise."""
        n_steps = sum(window.n_steps for window in self.windows)
        solution, _ = result.regression()
        header = [
            ("Model", self.problem.model_name),
            ("Loss", self.problem.loss_name),
            ("Trajectory", f"{n_steps} steps in {len(self.windows)} windows"),
            ("|mean deviation|", f"{solution.tss**0.5:.4g}"),
            ("Noise share", f"{result.noise_share:.3g}"),
        ]
        if result.signal_share is not None:
            header.append(("R2, noise removed", f"{result.signal_share:.4f}"))
        return header

    def notes(self, equations: Equations, result: Result) -> list[str]:
        """Notes of model and recording, theory, rounding, and where columns were taken."""
        notes = [*self.problem.notes, *self.remarks]
        if equations.nuisance is not None:
            size = getattr(self.reference, "sub_window", None)
            notes.append(minibatch_note(self.problem, self.windows, self.trajectory, size))
        if self._of_step_size(equations):
            notes += step_notes(self.problem, self.windows, self.kinks)
        notes += self._rounding(equations)
        if equations.system.instrumented:
            notes.append(
                "Coefficients by instrumental variables: the columns are random draws and the "
                "trajectory remembers its own, so columns of other draws at each window's start "
                "stand in for them in the products with the target."
            )
        elif any(len(w.inside) < w.n_steps for w in self.windows):
            notes.append(
                "Columns are means over the mean iterates between marks, not over every step."
            )
        if self.problem.left_out:
            notes.append(f"Parameters without equations: {', '.join(self.problem.left_out)}.")
        known = equations.judged.design.known_terms
        if known:
            notes.append(f"Known, and moved to the side of the loss: {', '.join(known)}.")
        return notes

    def _of_step_size(self, equations: Equations) -> bool:
        """Whether a step-size penalty is compared with the gradient flow."""
        leaves = equations.judged.design.leaves
        return isinstance(self.reference, Flow) and any(
            isinstance(leaf.penalty, GradientNorm) for leaf, _ in leaves
        )

    @property
    def _noisy(self) -> bool:
        """Whether chance makes the windows differ; not where steps on all rows meet the flow."""
        n_rows = self.problem.n_rows or np.inf
        steps = [step for window in self.windows for step in window.steps]
        flow = isinstance(self.reference, Flow)
        return not flow or min(step.batch_size or 0 for step in steps) < n_rows

    def _rounding(self, equations: Equations) -> list[str]:
        """What rounding of the recorded steps moves each coefficient by, at most, if known."""
        sizes = [w.rounding / w.scales(self.problem).min() for w in self.windows]
        size = np.linalg.norm(sizes)
        spectrum = decompose(equations.system.r_factor, eps=equations.eps)
        bounds = size * np.linalg.norm(spectrum.whitener, axis=1)
        if not np.isfinite(bounds).all():
            return []
        named = zip(equations.term_names, bounds, strict=True)
        shown = ", ".join(f"{bound:.2g} ({name})" for name, bound in named)
        return [f"Rounding of the recorded steps moves the coefficients by at most {shown}."]


def targets_from_weights(
    problem: Problem,
    trajectory: Trajectory,
    reference: Reference,
    window: int | str | None,
    verbose: int = 0,
) -> TrajectoryTargets:
    """Deviations of a trajectory from a reference, in one pass over the rows per window."""
    whole = problem.whole()  # the reference moves all trained tensors
    made = trajectory.windows(window)
    windows = tuple(w for w in made if any(w.count(name) for name in problem.params))
    check_flow(reference, trajectory, windows)
    warn_of_single_steps(whole, windows, reference)
    found, nuisances = [], []
    for part in progress(windows, "windows", len(windows), verbose):
        if has_nuisance(reference, window, windows):
            gradient, column = gradient_and_column(whole, part, reference)
            nuisances.append(column)
        else:
            gradient = reference.mean_gradient(whole, part)
        found.append(deviation(problem, part, gradient))
    columns, remarks = _shared(nuisances, windows, whole)

    def deviations(other: Problem | None) -> Sequence[LossGradient]:
        if other is None:
            return found
        return [deviation(problem, w, reference.mean_gradient(other, w)) for w in windows]

    def places(targets: TrajectoryTargets, penalty: Penalty) -> tuple[tuple[Place, ...], Place]:
        own = []
        for i, (part, away) in enumerate(zip(windows, found, strict=True)):
            batches = tuple(step.rows for step in part.steps if step.rows is not None)
            design = window_design(penalty, replace(problem, batches=batches or None), part)
            if targets.adds_nuisance(penalty):
                design = design.joined(NUISANCE, columns[i])
            own.append(Place(_of_tensors(problem, away.value), design, away))
        designs = [place.design for place in own]
        mean = mean_of(zip(designs, _shares(windows, problem.params, targets.shares), strict=True))
        away = targets.mean_deviation(found)
        return tuple(own), Place(_of_tensors(problem, away.value), mean, away)

    remarks += _left_out(trajectory, windows)
    own = (deviations, places, bool(columns), trajectory, remarks)
    return TrajectoryTargets(problem, reference, windows, *own)


def _shares(
    windows: Sequence[Window], names: Collection[str], even: Sequence[float]
) -> Sequence[float | Callable[[str], float]]:
    """Share of every window in the steps, or in those of each tensor where these differ."""
    if not any(step.still for window in windows for step in window.steps):
        return even
    whole = Counter[str]()
    for window in windows:
        whole.update({name: window.count(name) for name in names})
    return [partial(_share, window, whole) for window in windows]


def _share(window: Window, whole: Counter[str], name: str) -> float:
    return window.count(name) / max(1, whole[name])


def _of_tensors(problem: Problem, names: Collection[str]) -> Problem:
    """The problem with equations of some tensors: in a window, those that made a step there."""
    if len(names) == len(problem.params):
        return problem
    return replace(problem, params={n: t for n, t in problem.params.items() if n in names})


def _shared(
    nuisances: Sequence[Params | None], windows: Sequence[Window], whole: Problem
) -> tuple[tuple[Params, ...], tuple[str, ...]]:
    """The columns of mini-batching as the windows have them, and remarks on them."""
    known = tuple(column for column in nuisances if column is not None)
    if len(known) < len(nuisances):
        return (), (
            "The column 'minibatch' is left out: not even the sizes of the batches are known "
            f"({_unknown(windows, whole)}).",
        )
    if known and any(named_batches(part, whole) is None for part in windows):
        return (mean_column(known),) * len(windows), (
            "The column 'minibatch' is the mean over the trajectory for random batches of the "
            f"sizes used ({_unknown(windows, whole)}).",
        )
    return known, ()


def _left_out(trajectory: Trajectory, windows: Sequence[Window]) -> tuple[str, ...]:
    before = windows[0].start.step - trajectory.marks[0].step
    after = trajectory.marks[-1].step - windows[-1].stop.step
    cut = f"The first {before} steps are left out: they are no whole epoch."
    rest = f"The last {after} steps are left out: they fill no window."
    return tuple(note for note, n in ((cut, before), (rest, after)) if n)


def _unknown(windows: Sequence[Window], whole: Problem) -> str:
    steps = [step for window in windows for step in window.steps]
    last = max((int(step.rows.max()) for step in steps if step.rows is not None), default=-1)
    if last >= (whole.n_rows or 0):
        return (
            f"recorder.batch(rows) counted to {last}, the data have {whole.n_rows or 0} rows; give "
            "the data set that it counted in"
        )
    missing = sum(step.rows is None for step in steps)
    return (
        f"{missing} of {len(steps)} batches were not named; name the rows with "
        "recorder.batch(rows) while recording"
    )


def warn_of_single_steps(whole: Problem, windows: tuple[Window, ...], reference: Reference) -> None:
    """Warn where mini-batch steps are compared with the gradient on all rows."""
    if not isinstance(reference, Gradient) or reference.sub_window is not None:
        return  # their rows are those of the steps
    n_rows = whole.n_rows or 0
    for window in windows:
        weights = window.row_weights(n_rows)
        unused = 1 - sum(step.batch_size or n_rows for step in window.steps) / max(n_rows, 1)
        if weights is not None:
            unused = float((weights == 0).mean())
        if unused > 0.1:
            warn_user(
                "The windows do not use all rows: within a shuffled epoch the batches left over "
                "pull against those used, which looks like a ridge that is not there. Use "
                "window='epoch', or reference='batch'.",
                PathNoiseWarning,
            )
            return
