"""What every family along a trajectory shares: one deviation for each window."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from sklearn_implicitreg.exceptions import PathNoiseWarning, warn_user
from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.gradients import BatchGradientNorm, GradientNorm
from sklearn_implicitreg.penalties.held import shared
from sklearn_implicitreg.problem import LossGradient, Params, Problem, Sampling
from sklearn_implicitreg.problem.parameters import listed
from sklearn_implicitreg.progress import progress
from sklearn_implicitreg.regression.equations import Equations, Observed, Units
from sklearn_implicitreg.regression.fit import Result
from sklearn_implicitreg.regression.place import Place
from sklearn_implicitreg.regression.solve import decompose
from sklearn_implicitreg.regression.spread import observed
from sklearn_implicitreg.trajectory.design import deviation, mean_of, recorded_part, window_design
from sklearn_implicitreg.trajectory.expectations import minibatch_note, step_kinks, step_notes
from sklearn_implicitreg.trajectory.factors import check_factors
from sklearn_implicitreg.trajectory.minibatch import (
    NUISANCE,
    gradient_and_column,
    has_nuisance,
    mean_columns,
    named_batches,
)
from sklearn_implicitreg.trajectory.references import Applied, Flow, Gradient, Reference, check_flow
from sklearn_implicitreg.trajectory.smoothness import Kinks
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.vectors import norm_over
from sklearn_implicitreg.trajectory.window import Window

_ROUNDING = 1e-9  # of a sum of factors

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
    def step_counts(self) -> tuple[int, ...]:
        """Steps of every window."""
        return tuple(map(operator.attrgetter("n_steps"), self.windows))

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of every window in the steps."""
        counts = self.step_counts
        return tuple(n / sum(counts) for n in counts)

    def equations(self, penalty: Penalty) -> Equations:
        """Equations of a penalty along the trajectory; a window is a cluster."""
        (penalty,) = shared(penalty, [self.problem])  # windows have the same knots
        places, mean = self.places(self, penalty)
        equations = Equations(
            places,
            self,
            "window",
            mean=mean,
            shares=self.shares,
            nuisance=(NUISANCE,) if self.adds_nuisance(penalty) else (),
            noisy=self._noisy,
            step_rounding=float(np.nan_to_num(self._step_rounding)),
        )
        if self._of_step_size(equations) and not self.kinks.smooth:
            return replace(equations, objection=self.kinks.note)
        return equations

    def observed(self, penalties: Sequence[Penalty], n_blocks: int) -> list[Observed]:
        """Equations of several penalties, with the noise at the mean iterate of the windows."""
        found = [self.equations(penalty) for penalty in penalties]
        first, last = self.windows[0], self.windows[-1]
        steps = tuple(step for window in self.windows for step in window.steps)
        inside = tuple(mark for window in self.windows for mark in window.inside)
        visited = Window(first.start, last.stop, inside, steps, first.others).mean("visited")
        if isinstance(self.reference, Applied):
            return [(equations, []) for equations in found]  # no rows, and no noise of rows
        designs = [equations.judged.design for equations in found]
        blocks, seen = observed(self.problem.at(visited).blocks(n_blocks), self.problem, designs)
        for _ in blocks:
            pass
        # The rows' gradients are of L, the targets of what the steps were made on.
        factor = self.loss_factor
        spreads = [[(weight, factor * own) for weight, own in spread] for spread in seen]
        return [(equations, [spread]) for equations, spread in zip(found, spreads, strict=True)]

    @cached_property
    def loss_factor(self) -> float:
        """Mean multiple of L that the steps were made on: 1 unless losses were not divided."""
        if isinstance(self.reference, Applied):
            return 1.0
        pairs = zip(self.shares, self.windows, strict=True)
        return sum(share * window.loss_factor(self.problem) for share, window in pairs)

    def adds_nuisance(self, penalty: Penalty) -> bool:
        """Whether the column of mini-batching is added: a family's own takes its place."""
        leaves = penalty.leaves(self.problem.params, self.problem)
        return self.with_nuisance and not any(
            isinstance(leaf.penalty, BatchGradientNorm) for leaf in leaves
        )

    def completing(self, other: Problem) -> Sequence[LossGradient]:
        """Deviations from further rows, whose labels are numbered as in these."""
        numbered = other.numbered_like(self.problem)
        whole = recorded_part(numbered, self.trajectory.names).whole()
        own = self.problem
        whole = replace(whole, trained_factor=own.trained_factor, trained_sum=own.trained_sum)
        return self.deviations(whole)

    @cached_property
    def kinks(self) -> Kinks:
        """Whether the loss is smooth on the scale of a step."""
        return step_kinks(self.problem, self.windows)

    def units(self, equations: Equations) -> Units:
        """As at an endpoint; a trajectory is recorded in units of L."""
        return self.problem.n_effective or 1.0, self.problem.convention, False

    def header(self, equations: Equations, result: Result) -> list[tuple[str, str]]:
        """Model, loss, steps, size of the mean deviation and its noise."""
        n_steps = sum(self.step_counts)
        solution, _ = result.regression()
        header = [
            ("Model", self.problem.model_name),
            ("Loss", self.problem.loss_name),
            ("Trajectory", f"{n_steps} steps in {len(self.windows)} windows"),
            ("|mean deviation|", f"{solution.norm:.4g}"),
            ("Noise share", f"{result.noise_share:.3g}"),
        ]
        if result.same is not None:
            header.append(("Same in all windows", f"{result.same:.4f}"))
        if result.signal_share is not None:
            header.append(("R2, noise removed", f"{result.signal_share:.4f}"))
        return header

    def notes(self, equations: Equations, result: Result) -> list[str]:
        """Notes of model and recording, theory, rounding, and where columns were taken."""
        notes = [*self.problem.notes, *self.remarks]
        if NUISANCE in equations.nuisance:
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
            notes.append(f"Parameters without equations: {listed(self.problem.left_out)}.")
        notes += self._updates()
        known = equations.judged.design.known_terms
        if known:
            notes.append(f"Known, and moved to the side of the loss: {', '.join(known)}.")
        if abs(self.loss_factor - 1.0) > _ROUNDING:
            notes.append(
                f"The steps were made on {self.loss_factor:.4g} times L (losses of accumulated "
                "batches that were not divided, or a loss that counts its labels otherwise): "
                "the coefficients are those beside this multiple of L, as the optimizer's decay is."
            )
        return notes

    def _updates(self) -> list[str]:
        """Tensors in scope that no step or only some steps updated."""
        n = sum(self.step_counts)
        skipping = frozenset().union(*[window.skipping for window in self.windows])
        names = [name for name in self.problem.params if name in skipping]
        counts = {name: sum(w.n_updates(name) for w in self.windows) for name in names}
        never = listed([name for name, count in counts.items() if not count])
        some = listed([f"{name} ({count})" for name, count in counts.items() if count])
        notes = []
        if never:
            notes.append(
                f"Parameters without equations, for no step updated them (frozen, or no gradient "
                f"reached them): {never}."
            )
        if some:
            notes.append(
                f"Some of the {n} steps did not update these parameters (frozen, or no gradient "
                f"reached them), and only the others give their equations: {some}."
            )
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

    @cached_property
    def _step_rounding(self) -> float:
        """Norm of what rounding did to the recorded steps of all windows; nan if unknown."""
        sizes = [w.rounding / w.scales(self.problem).min() for w in self.windows]
        return float(np.linalg.norm(sizes))

    def _rounding(self, equations: Equations) -> list[str]:
        """What rounding of the recorded steps moves each coefficient by, at most, if known."""
        size = self._step_rounding
        spectrum = decompose(equations.system.r_factor, eps=equations.eps)
        bounds = size * spectrum.reach
        if not np.isfinite(bounds).all():
            return []
        named = zip(equations.term_names, bounds, strict=True)
        largest = sorted(named, key=lambda pair: -pair[1])
        shown = listed([f"{bound:.2g} ({name})" for name, bound in largest])
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
    windows = tuple(trajectory.windows(window))
    check_flow(reference, trajectory, windows)
    if not isinstance(reference, Applied):
        check_factors(whole, windows)
    noisy = reference if has_nuisance(reference, window, windows, whole.n_rows) else None
    found, nuisances = [], []
    for i, part in enumerate(progress(windows, "windows", len(windows), verbose)):
        own = whole.read_again(i)  # windows with noise of their own show how much there is
        if noisy is not None:
            gradient, column = gradient_and_column(own, part, noisy)
            nuisances.append(column)
        else:
            gradient = reference.mean_gradient(own, part)
        found.append(deviation(problem, part, gradient))
    warn_of_single_steps(whole, windows, reference, found)
    columns, remarks = _shared(nuisances, windows, whole)

    def deviations(other: Problem | None) -> Sequence[LossGradient]:
        if other is None:
            return found
        pairs = zip(windows, map(other.read_again, range(len(windows))), strict=True)
        return [deviation(problem, w, reference.mean_gradient(own, w)) for w, own in pairs]

    def places(targets: TrajectoryTargets, penalty: Penalty) -> tuple[tuple[Place, ...], Place]:
        own = []
        for i, (part, away) in enumerate(zip(windows, found, strict=True)):
            design = window_design(penalty, problem, part)
            if targets.adds_nuisance(penalty):
                design = design.joined(NUISANCE, columns[i])
            own.append(Place(problem, design, away))
        mean = mean_of(zip([place.design for place in own], targets.shares, strict=True))
        return tuple(own), Place(problem, mean, LossGradient.mean(found, targets.shares))

    remarks += (*_left_out(trajectory, windows), *_readings(problem))
    settled = (deviations, places, bool(columns), trajectory, remarks)
    return TrajectoryTargets(problem, reference, windows, *settled)


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
        return mean_columns(known, windows), (
            "The column 'minibatch' is the mean over the trajectory for random batches of the "
            f"sizes used ({_unknown(windows, whole)}).",
        )
    return known, ()


def _readings(problem: Problem) -> tuple[str, ...]:
    if problem.n_passes == 1:
        return ()
    return (
        f"The reference is the mean over {problem.n_passes} readings of rows that differ at each, "
        "in every window others.",
    )


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


def warn_of_single_steps(
    whole: Problem,
    windows: tuple[Window, ...],
    reference: Reference,
    found: Sequence[LossGradient] = (),
) -> None:
    """Warn where mini-batch steps are compared with the gradient on all rows."""
    if not isinstance(reference, Gradient) or reference.sub_window is not None:
        return  # their rows are those of the steps
    shares = [_share_of_rows(whole.n_rows or 0, window) for window in windows]
    known = [share for share in shares if share is not None]
    epochs = all(window.stop.epoch > window.start.epoch for window in windows)
    unknown = len(known) < len(shares) and len(found) > 1 and not epochs
    if min(known, default=1.0) < 0.9:
        what = "do not use all rows"
    elif unknown and _scattered(whole, windows, found):
        what = "differ as steps on a part of the rows do (their batches were not named)"
    else:
        return
    warn_user(
        f"The windows {what}: within a shuffled epoch the batches that they leave out bias the "
        "estimate towards a decay that does not exist. Use window='epoch', or reference='batch'.",
        PathNoiseWarning,
    )


def _share_of_rows(n_rows: int, window: Window) -> float | None:
    """Share of the rows that the steps of a window used; None where it is not known."""
    rows = [step.rows for step in window.steps if step.rows is not None]
    if len(rows) == window.n_steps and max(int(own.max()) for own in rows) < n_rows:
        return len(np.unique(np.concatenate(rows))) / n_rows
    sizes = [step.batch_size for step in window.steps if step.batch_size]
    return sum(sizes) / max(n_rows, 1) if len(sizes) == window.n_steps else None


def _scattered(whole: Problem, windows: Sequence[Window], found: Sequence[LossGradient]) -> bool:
    """Whether deviations turn from window to window: those of steps on all rows hardly do."""
    sizes = [norm_over(whole, own.value) for own in found]
    names = found[0].value
    means = (window.mean("applied") for window in windows)
    applied = [norm_over(whole, {n: mean[n] for n in names if n in mean}) for mean in means]
    if np.linalg.norm(sizes) <= 1e-2 * np.linalg.norm(applied):
        return False  # such as rounding; batches leave more
    values = [own.value for own in found]
    along = sum(
        float((before[name] * after[name]).sum())
        for before, after in zip(values[:-1], values[1:], strict=True)
        for name in before
    )
    return sum(whole.over_shards(along)) < 0.5 * float(np.dot(sizes[:-1], sizes[1:]))
