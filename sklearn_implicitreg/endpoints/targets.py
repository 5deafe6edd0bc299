"""What every family at some endpoints shares, and equations that were given as arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from sklearn_implicitreg.endpoints.kept import KeptGradient
from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.held import shared
from sklearn_implicitreg.problem import BlockGradient, LossGradient, Problem, Sampling
from sklearn_implicitreg.problem.parameters import listed
from sklearn_implicitreg.progress import progress
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.regression.equations import Cluster, Equations, Observed, Units
from sklearn_implicitreg.regression.fit import Result
from sklearn_implicitreg.regression.place import Inequalities, Place
from sklearn_implicitreg.regression.spread import Spread, observed

Source = TypeVar("Source")
_CONDITION_NOTE = 30.0  # above it a statistician would ask which terms are told apart
AT_REST = 0.3  # at the end of a training at most .1, on other rows about 1
_VIF_NOTE = 10.0  # the same, by the usual rule
_ROUNDING = 1e-9  # of total weights
_MUCH_NOISE = 0.1  # in the gradient, above which no family is supported


@dataclass(frozen=True)
class EndpointTargets:
    """One gradient of the loss for each trained model."""

    place: ClassVar[str] = "endpoint"

    problems: tuple[Problem, ...]  # with parameters of the same names and shapes
    verbose: int = 0
    sampling: Sampling = "data sets"  # how the rows of the endpoints are related
    row_blocks: int = 0  # whose spread is kept with the one place, for errors over rows
    cache: Any = None  # folder in which the gradients are kept

    @property
    def problem(self) -> Problem:
        """The first trained model."""
        return self.problems[0]

    @cached_property
    def gradients(self) -> tuple[LossGradient, ...]:
        """Gradients of the mean losses, in one pass over the rows of each."""
        if len(self.problems) == 1:
            return (self._sources[0].gradient(),)
        return tuple(source.gradient() for source in self._progress(self._sources))

    @cached_property
    def _sources(self) -> Sequence[Problem | KeptGradient]:
        """What gives the gradients: the problems, or a folder of each."""
        if self.cache is None:
            return self.problems
        if any(problem.ranks is not None for problem in self.problems):
            raise ValueError(
                f"Expected cache=None with a model on several ranks, got {self.cache!r}: their "
                "gradients are not kept."
            )
        if len(self.problems) == 1:
            return (KeptGradient.of(self.cache, self.problem),)
        numbered = enumerate(self.problems)
        return tuple(KeptGradient.of(Path(self.cache, f"endpoint-{i}"), p) for i, p in numbered)

    @property
    def n_passes(self) -> int:
        """Readings of rows that differ at each."""
        return max(problem.n_passes for problem in self.problems)

    def _progress(self, sources: Sequence[Source]) -> Iterator[Source]:
        return progress(sources, "gradients", len(sources), self.verbose)

    def equations(self, penalty: Penalty) -> Equations:
        """Equations of a penalty; those of a single endpoint are clustered by tensor."""
        if self.row_blocks:
            return self.observed([penalty], self.row_blocks)[0][0]
        pairs = zip(shared(penalty, self.problems), self.problems, strict=True)
        designs = [Design.at(own, problem) for own, problem in pairs]
        return self._equations_at(designs, self.gradients)

    def observed(self, penalties: Sequence[Penalty], n_blocks: int) -> list[Observed]:
        """Equations of several penalties from one pass over the rows, with their noise."""
        designs, spreads, gradients = [], [], []
        n_blocks = max(n_blocks, self.row_blocks)
        held = zip(*[shared(penalty, self.problems) for penalty in penalties], strict=True)
        places = zip(self.problems, self._progress(self._sources), held, strict=True)
        for problem, source, own_families in places:
            designs.append([Design.at(penalty, problem) for penalty in own_families])
            if self.row_blocks:
                _check_rows(problem, penalties)
            blocks, seen = observed(source.blocks(n_blocks), problem, designs[-1])
            gradients.append(source.over_passes(LossGradient.from_blocks(blocks)))
            spreads.append(seen)
        if min(gradient.n_rows for gradient in gradients) < 2:
            raise ValueError(
                "Expected at least 2 rows, whose gradients give the noise of their mean, got "
                "n_samples = 1."
            )
        families = zip(zip(*designs, strict=True), zip(*spreads, strict=True), strict=True)
        return [
            (self._equations_at(own, gradients, seen if self.row_blocks else ()), list(seen))
            for own, seen in families
        ]

    def _equations_at(
        self,
        designs: Sequence[Design],
        gradients: Sequence[LossGradient],
        spreads: Sequence[Spread] = (),
    ) -> Equations:
        places = tuple(map(Place, self.problems, designs, gradients))
        if spreads:
            places = (replace(places[0], spread=spreads[0]),)
        cluster: Cluster = "endpoint" if len(places) > 1 else "tensor"
        return Equations(places, self, cluster, self.sampling)

    def completing(self, other: Problem) -> tuple[LossGradient]:
        """Gradient over further rows, which complete those of the one endpoint."""
        return (other.numbered_like(self.problem).gradient(),)

    def header(self, equations: Equations, result: Result) -> list[tuple[str, str]]:
        """Model, loss, rows and size of the gradient."""
        header = places_header(self.problems, [p.gradient for p in equations.places], self.place)
        if self.n_passes > 1:
            header.append(("Noise share", f"{result.noise_share:.3g}"))
        if result.same is not None:
            header.append(("Same in all endpoints", f"{result.same:.4f}"))
        return header

    def notes(self, equations: Equations, result: Result) -> list[str]:
        """Notes of the models, and what the fit says about its columns."""
        notes = places_notes(self.problems, [place.gradient for place in equations.places])
        known = equations.places[0].design.known_terms
        if known:
            notes.append(f"Known, and moved to the side of the loss: {', '.join(known)}.")
        notes += _inequality_notes(result.tested)
        if self.n_passes > 1:
            notes.append(_readings_note(self.n_passes, result.noise_share))
        if result.scale_invariant:
            notes.append(
                f"A normalization follows {', '.join(result.scale_invariant)}, so that their scale "
                "does not change the loss: an endpoint shows no L2 there."
            )
        solution = result.solution
        assert solution is not None
        condition, vif = solution.condition_number, float(solution.vif.max())
        if np.isfinite(condition) and (condition > _CONDITION_NOTE or vif > _VIF_NOTE):
            notes.append(
                f"The columns are close to dependent (condition number {condition:.3g}, largest "
                f"VIF {vif:.3g}): single coefficients are uncertain; test them together "
                "(wald_test)."
            )
        return notes

    def units(self, equations: Equations) -> Units:
        """How the models state a penalty."""
        return shared_units(self.problems, [place.gradient for place in equations.places])


class _Rowless(Problem):
    """A trained model without its data."""

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        raise ValueError("Expected no look at the rows.")


def _check_rows(problem: Problem, penalties: Sequence[Penalty]) -> None:
    """Raise ValueError where the errors over rows would miss some of their noise."""
    if problem.n_passes > 1:
        raise ValueError(
            f"Expected n_passes=1 for errors over rows, got {problem.n_passes}: rows that differ "
            "at each reading show the noise of the readings too; leave n_passes at 'auto'."
        )
    bare = _Rowless(**{field.name: getattr(problem, field.name) for field in fields(Problem)})
    for penalty in penalties:
        try:
            Design.at(penalty, bare)
        except Exception as error:
            raise ValueError(
                f"Expected a family of the weights alone for errors over rows, got {penalty!r}, "
                "whose columns are as noisy as the gradient; use covariance='auto'."
            ) from error


def shared_units(problems: Sequence[Problem], gradients: Sequence[LossGradient]) -> Units:
    """What the convention divides by, the convention (None where they differ), the outputs."""
    first, pairs = problems[0], zip(problems, gradients, strict=True)
    sizes = [problem.n_effective or gradient.weight for problem, gradient in pairs]
    size = sizes[0] if np.allclose(sizes, sizes[0], rtol=_ROUNDING, atol=0.0) else None
    same = all(problem.convention == first.convention for problem in problems)
    return size, first.convention if same else None, first.groups is not None


def places_header(
    problems: Sequence[Problem], gradients: Sequence[LossGradient], place: str
) -> list[tuple[str, str]]:
    """Header lines about models, losses, rows and gradients at some places."""
    models = " or ".join(dict.fromkeys(p.model_name for p in problems))
    losses = " or ".join(dict.fromkeys(p.loss_name for p in problems))
    rows, weights = [g.n_rows for g in gradients], [g.weight for g in gradients]
    norms = [p.over_shards(g.norm()) for p, g in zip(problems, gradients, strict=True)]
    size = math.hypot(*itertools.chain.from_iterable(norms)) / len(gradients) ** 0.5
    several = len(problems) > 1
    if several:
        models = f"{len(problems)} {place}s of {models}"
    return [
        ("Model", models),
        ("Loss", losses),
        ("Rows of each" if several else "Rows", f"{_range(rows)} (weight {_range(weights)})"),
        ("|grad L|, r.m.s." if several else "|grad L|", f"{size:.4g}"),
    ]


def places_notes(problems: Sequence[Problem], gradients: Sequence[LossGradient]) -> list[str]:
    """Notes of the problems, each once, and what gives no equations."""
    notes = list(dict.fromkeys(note for problem in problems for note in problem.notes))
    unrest = max(gradient.unrest for gradient in gradients)
    if unrest > AT_REST:
        notes.append(
            f"The gradient in the unpenalized intercept is {unrest:.2g} of its standard error over "
            "rows and not zero: these are other rows or sample weights than those of the training, "
            "the model's weights were changed, its training had not ended, or the intercept was "
            "penalized too (params='all')."
        )
    if problems[0].left_out:
        notes.append(f"Parameters without equations: {listed(problems[0].left_out)}.")
    counts = {n: sum(n in g.absent for g in gradients) for n in problems[0].params}
    everywhere = [name for name, n in counts.items() if n == len(gradients)]
    some = [name for name, n in counts.items() if 0 < n < len(gradients)]
    if everywhere:
        notes.append(
            f"Parameters without equations, for no gradient reaches them: {listed(everywhere)}."
        )
    if some:
        notes.append(
            "Parameters without equations at the endpoints where no gradient reaches them: "
            f"{listed(some)}."
        )
    return notes


def _inequality_notes(tested: Inequalities | None) -> list[str]:
    if tested is None or not tested.n:
        return []
    end = "all their inequalities hold"
    if tested.n_violated is None:
        end = "their inequalities were not tested"
    elif tested.n_violated:
        holds = "does" if tested.n_violated == 1 else "do"
        end = f"{tested.n_violated} of their inequalities {holds} not hold"
    what = "1 coordinate" if tested.n == 1 else f"{tested.n} coordinates"
    end = (
        end.replace("all their inequalities hold", "its inequality holds") if tested.n == 1 else end
    )
    gives = "gives" if tested.n == 1 else "give"
    return [f"{what} at a kink of the penalty or a bound {gives} no equation; {end}."]


def _readings_note(n_passes: int, share: float) -> str:
    note = f"The gradient is the mean over {n_passes} readings of rows that differ at each"
    if not _MUCH_NOISE < share < 1:
        return f"{note}."
    # What is no noise stays when more readings are taken.
    needed = math.ceil(n_passes * share / (1 - share) / (_MUCH_NOISE / 2))
    return f"{note}; with n_passes={needed} about {_MUCH_NOISE / 2:.2g} of it would be noise."


def _range(numbers: Sequence[float]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
