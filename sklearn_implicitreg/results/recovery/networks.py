"""The arms of a network: L + R and L alone minimized from the same starts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.utils import check_random_state
from torch import nn

from sklearn_implicitreg.penalties.fitted import named_tensors
from sklearn_implicitreg.problem import Problem, flat, shaped
from sklearn_implicitreg.problem.parameters import (
    FLAG,
    FOLDER,
    NOTHING,
    Allowed,
    choice,
    function,
    instance,
    integer,
    number,
)
from sklearn_implicitreg.problem.workers import Shared, in_workers
from sklearn_implicitreg.progress import progress
from sklearn_implicitreg.regression.solve import norm_of as norm
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.quadratic_form import PenaltyValue
from sklearn_implicitreg.results.recovery import minimize
from sklearn_implicitreg.results.recovery.cache import Manifest, kept, manifest
from sklearn_implicitreg.results.recovery.certificates import (
    Certificate,
    certificate,
    check_bounded,
    near_start,
)
from sklearn_implicitreg.results.recovery.comparison import Arm, Recovery
from sklearn_implicitreg.results.recovery.labels import names_of, weight_index
from sklearn_implicitreg.results.recovery.matching import Hidden, hidden_layers, matched
from sklearn_implicitreg.results.recovery.minimize import Run, minimized
from sklearn_implicitreg.results.recovery.objective import Objective

_LOWER = 1e-9  # of L + R: a difference that is no rounding
BACK = 1e-3  # of the standard deviation of the outputs
_ARM = choice("recovered", "ablated")
_JOBS = integer(-(2**31))
ALLOWED = {
    "start": NOTHING | choice("perturbed", "trained", "fresh"),
    "noise": number(above=0),
    "n_draws": integer(1),
    "arms": Allowed(
        lambda arms: (
            isinstance(arms, list | tuple)
            and 0 < len(arms) <= 2
            and all(map(_ARM.holds, arms))
            and len(set(arms)) == len(arms)
        ),
        ("a tuple of 'recovered', 'ablated' or both",),
    ),
    "force": FLAG,
    "mode": choice("auto", "trainer"),
    "train": NOTHING | function("(model, penalty, seed) -> module", 3),
    "initial": NOTHING | instance("a torch module", nn.Module),
    "cache": NOTHING | FOLDER,
    "n_jobs": NOTHING | Allowed(lambda n: n != 0 and _JOBS.holds(n), ("an integer other than 0",)),
}


@dataclass(frozen=True)
class Plan:
    """How the arms are trained."""

    start: str
    noise: float
    n_draws: int
    arms: tuple[str, ...]
    random_state: Any = None
    n_jobs: int | None = None
    verbose: int = 0
    mode: str = "auto"
    train: Any = None
    initial: Any = None
    force: bool = False
    cache: Any = None

    @property
    def seeds(self) -> list[int]:
        """One seed for each draw; the user's generator stays where it was."""
        given = 0 if self.random_state is None else copy.deepcopy(self.random_state)
        n = 1 if self.start == "trained" else self.n_draws
        return [int(s) for s in check_random_state(given).randint(2**31 - 1, size=n)]

    @property
    def orders(self) -> list[int]:
        """Seeds of a training: the estimator's own, and those that follow."""
        given = self.random_state
        if isinstance(given, int | np.integer) or given is None:
            return [(int(given or 0) + k) % 2**32 for k in range(self.n_draws)]
        return self.seeds

    @property
    def words(self) -> str:
        """The start in words."""
        if self.initial is not None:
            return "given"
        more = f" by {100 * self.noise:g} %" if self.start == "perturbed" else ""
        return f"{self.start}{more}"


def minimized_arms(objective: Objective, plan: Plan, remarks: Sequence[str]) -> Recovery:
    """Both arms from every start, compared with the model."""
    scale = objective.scale()
    certified = certificate(objective, objective.theta, scale, plan.seeds[0])
    remarks = (*remarks, *near_start(objective, certified, plan.force))
    check_bounded(objective, certified.direction)
    layers = hidden_layers(objective, plan.seeds[0])
    penalties = {"recovered": objective.penalty, "ablated": None}
    starts = [start_of(objective, plan, seed) for seed in plan.seeds]
    tasks = [(arm, draw) for arm in plan.arms for draw in range(len(starts))]
    known = manifest(plan.cache, objective, budget=minimize.BUDGET, scale=scale)
    outcomes = in_workers(
        _kept_run,
        Shared(plan.cache, known, objective.scope, penalties, scale),
        {f"{arm}-{draw + 1}": (f"{arm}-{draw + 1}", arm, starts[draw]) for arm, draw in tasks},
        plan.n_jobs,
    )
    ends = list(progress(outcomes, "Training again", len(tasks), plan.verbose))
    compare = Comparison(objective, layers)
    rows, arms = [], []
    for (arm, draw), run in zip(tasks, ends, strict=True):
        there = weights_at(objective, run.theta)
        arms.append(compare.arm(there))
        rows.append(
            {"arm": arm, "draw": draw}
            | compare.row(starts[draw], there, arms[-1])
            | {"gradient": run.gradient}
            | {"evaluations": run.n_evaluations, "stopped": run.stopped}
        )
    runs = pd.DataFrame(rows)
    chosen = {arm: arms[_median(runs[runs["arm"] == arm])] for arm in plan.arms}
    return Recovery(
        model=compare.arm(weights_at(objective, objective.theta)),
        recovered=chosen.get("recovered"),
        ablated=chosen.get("ablated"),
        index=weight_index(objective.problem, objective.params),
        notes=(*remarks, *_notes(runs, certified, layers, objective)),
        method="minimized",
        is_minimizer=certified.is_minimizer,
        smallest_eigenvalue=certified.lowest,
        runs=runs,
        gradient=certified.gradient,
        facts=tuple(_facts(runs, certified, plan)),
    )


def _kept_run(
    cache: Any,
    known: Manifest,
    problem: Problem,
    penalties: Mapping[str, PenaltyValue | None],
    scale: float,
    name: str,
    arm: str,
    start: Array,
) -> Run:
    run = functools.partial(_run, problem, penalties[arm], start, scale)
    return kept(cache, name, known, start, Run, run)


def _run(problem: Problem, penalty: PenaltyValue | None, start: Array, scale: float) -> Run:
    """One run, on a module of its own, into which no other thread puts its weights."""
    return minimized(Objective(problem.at({}), penalty), start, scale)


def start_of(objective: Objective, plan: Plan, seed: int) -> Array:
    """Weights that a draw begins at."""
    if plan.initial is not None:
        named = named_tensors(
            plan.initial, {n: tuple(t.shape) for n, t in objective.params.items()}
        )
        return flat({name: named[name].detach().double().cpu() for name in objective.params})
    if plan.start == "trained":
        return objective.theta
    if plan.start == "fresh":
        return flat(objective.problem.fresh(seed))
    rng = np.random.default_rng(seed)
    # Every tensor by its own size: biases are much smaller than weights.
    sizes = [np.full(t.numel(), float(t.square().mean().sqrt())) for t in objective.params.values()]
    noise = rng.standard_normal(len(objective.theta))
    start: Array = objective.theta + plan.noise * np.concatenate(sizes) * noise
    return start


class Weights(NamedTuple):
    """Weights with what L + R and the rows say about them."""

    theta: Array
    loss: float
    value: float  # L + R
    gradient: float  # norm, of L + R
    outputs: Array


def weights_at(objective: Objective, theta: Array) -> Weights:
    """Loss, penalty and outputs at some weights."""
    value, slope = objective.gradient(theta)
    outputs = objective.problem.outputs(shaped(objective.params, theta))[0]
    return Weights(theta, objective.loss(theta), value, norm(slope), outputs)


class Comparison:
    """What weights are compared with: those of the model, and its outputs on the rows."""

    def __init__(self, objective: Objective, layers: list[Hidden]):
        self._objective, self._layers, self._model = objective, layers, objective.theta
        params = shaped(objective.params, self._model)
        self._outputs, self._weights = objective.problem.outputs(params)
        mean = np.average(self._outputs, axis=0, weights=self._weights)
        self._spread = self._rms(self._outputs - mean)

    def _rms(self, away: Array) -> float:
        return float(np.sqrt(np.average((away**2).sum(axis=1), weights=self._weights)))

    def distance(self, theta: Array) -> float:
        """Relative distance of the weights."""
        model = self._model
        return norm(theta - model) / norm(model) if norm(model) else float("nan")

    def function_between(self, one: Weights, other: Weights) -> float:
        """Difference of outputs, relative to the spread of the model's."""
        return self._rms(one.outputs - other.outputs) / (self._spread or 1.0)

    def arm(self, there: Weights) -> Arm:
        """Weights beside the model's."""
        sizes = norm(there.theta) * norm(self._model)
        return Arm(
            coef=there.theta,
            loss=there.loss,
            penalty=there.value - there.loss,
            distance=self.distance(there.theta),
            cosine=float(there.theta @ self._model) / sizes if sizes else float("nan"),
            prediction=self._rms(there.outputs - self._outputs),
        )

    def row(self, start: Array, there: Weights, own: Arm) -> dict[str, Any]:
        """Numbers of one run."""
        near = matched(self._objective, self._layers, there.theta) if self._layers else None
        function = own.prediction / (self._spread or 1.0)
        return {
            "start": self.distance(start),
            "distance": own.distance,
            "matched": float("nan") if near is None else self.distance(near),
            "function": function,
            "loss": own.loss,
            "penalty": own.penalty,
            "objective": there.value,
            "gradient": there.gradient,
            "back": function <= BACK,
        }


def _median(runs: pd.DataFrame) -> int:
    order = runs["function"].sort_values(kind="stable").index
    return int(order[(len(order) - 1) // 2])


def _facts(runs: pd.DataFrame, certified: Certificate, plan: Plan) -> Iterator[tuple[str, str]]:
    for arm, own in runs.groupby("arm", sort=False):
        name = "Back" if arm == "recovered" else "Back without R"
        yield name, f"{own['back'].sum()} of {len(own)}"
    yield "Start", plan.words
    yield "Budget", f"{minimize.BUDGET} gradients"
    yield "Smallest eigenvalue", f"{certified.lowest:.3g}"


def _notes(
    runs: pd.DataFrame, certified: Certificate, layers: list[Hidden], objective: Objective
) -> Iterator[str]:
    yield from _verdict(runs)
    yield from certified.sentences()
    yield from _ends(runs, objective.value(objective.theta))
    words = {"budget": "Stopped by the budget", "no progress": "Stopped without progress"}
    for how, own in names_of(runs).groupby(runs["stopped"], sort=False):
        if how in words:
            yield f"{words[how]}, before the gradient was zero: {', '.join(own)}."
    if not layers:
        yield (
            "Hidden units could not be matched: no two layers of weights whose units can be "
            "permuted without a change of the outputs and of R."
        )
    if objective.by_differences:
        yield "Second derivatives by differences of gradients."


def _ends(runs: pd.DataFrame, value: float) -> Iterator[str]:
    """Runs below the model's L + R, and those that show no minimum of L alone nearby."""
    below = runs["objective"] < value - _LOWER * max(1.0, abs(value))
    lower = runs[(runs["arm"] == "recovered") & below & ~runs["back"]]
    if len(lower):
        yield (
            f"Ended elsewhere at a lower L + R than the model's ({value:.4g}): "
            f"{', '.join(names_of(lower))} (lowest {lower['objective'].min():.4g}). The model is "
            "not where L + R is smallest."
        )
    without = runs[runs["arm"] == "ablated"]
    left = without[(without["stopped"] != "stationary") | (without["distance"] > 1)]
    if len(left):
        far = dict.fromkeys(f"{d(left['distance']):.2g}" for d in (min, max))
        yield (
            f"L alone has no minimum near the model: {', '.join(names_of(left))} ended by the "
            f"budget or far away (at {' to '.join(far)} times the size of the weights), so that "
            "their place depends on the budget."
        )


def _verdict(runs: pd.DataFrame) -> Iterator[str]:
    found = runs[runs["arm"] == "recovered"]
    if len(found):
        worst = found["function"].max()
        yield (
            f"The function is back in {found['back'].sum()} of {len(found)}: outputs differ by at "
            f"most {BACK:g} of their standard deviation (largest: {worst:.2g})."
        )
        far = found["matched"].fillna(found["distance"])
        if (found["back"] & (far > BACK)).any():
            yield (
                "The weights say nothing here: they differ while the function is the same. Read "
                "the functions."
            )
    without = runs[runs["arm"] == "ablated"]
    if len(without) and without["back"].all():
        yield "Without R the function is back as well: these runs do not show that R makes it."
