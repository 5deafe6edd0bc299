"""Fits of structured families, which are solved as a whole and have no columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from sklearn_implicitreg.endpoints.targets import (
    EndpointTargets,
    places_header,
    places_notes,
    shared_units,
)
from sklearn_implicitreg.penalties import Structured, StructuredSolution
from sklearn_implicitreg.problem import LossGradient, Problem, flat
from sklearn_implicitreg.regression.fit import Result
from sklearn_implicitreg.regression.solve import norm_of
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.regression.verdict import Measures, Verdict, cause_at, judge
from sklearn_implicitreg.results.fit_description import Description
from sklearn_implicitreg.results.summary import Summary
from sklearn_implicitreg.trajectory.targets import TrajectoryTargets

Targets = EndpointTargets | TrajectoryTargets

_SHOWN = 10  # coefficients in a table for people


@dataclass(frozen=True)
class StructuredDescription(Description):
    """Description of a family that is solved as a whole."""

    def summary(self, result: Result) -> Summary:
        """Table of the first coefficients, and what the whole penalty is like."""
        (family, found), k = result.solved_as_whole(), len(result.coef)
        header = [
            *self.header,
            ("Family", repr(family)),
            ("Equations", str(result.n_equations)),
            ("Unknowns", str(found.n_unknowns)),
            ("Determined", str(found.rank)),
            ("R2 (uncentered)", f"{result.r2:.4f}"),
            *([] if found.held_out is None else [("R2 left out", f"{found.held_out[0]:.4f}")]),
            ("Cosine", f"{result.cosine[0]:.4f}"),
            ("Verdict", result.verdict.label),
        ]
        table = _table(result, _SHOWN).set_index("term").rename_axis(None)
        if result.conf_int is None:
            table = table[["coef"]]
        notes = _sentences([result.verdict.sentence])
        if k > _SHOWN:
            notes.append(f"The first {_SHOWN} of {k} coefficients; to_frame() has all.")
        if not np.isnan(result.coef).all():  # else there was no gradient to explain
            notes += [result.penalty.words(), *_sentences(found.notes)]
        notes += self.notes
        return Summary("Implicit regularization", header, table, notes)

    def frame(self, result: Result) -> pd.DataFrame:
        """One row per coefficient: term, coef, ci_low, ci_high."""
        return _table(result, len(result.coef))

    def content(self, result: Result) -> dict[str, Any]:
        """Fit and verdict, all but the coefficients, for programs."""
        family, found = result.solved_as_whole()
        return {
            "family": repr(family),
            "r2": result.r2,
            "cosine": float(result.cosine[0]),
            "r2_left_out": None if found.held_out is None else found.held_out[0],
            "n_equations": result.n_equations,
            "n_unknowns": found.n_unknowns,
            "rank": found.rank,
            "verdict": result.verdict.label,
            "reason": result.verdict.sentence,
            "facts": dict(self.header),
            "notes": [*_sentences(found.notes), *self.notes],
        }


def _table(result: Result, n: int) -> pd.DataFrame:
    frame = pd.DataFrame({"term": list(result.term_names[:n]), "coef": result.coef[:n]})
    frame[["ci_low", "ci_high"]] = np.nan if result.conf_int is None else result.conf_int[:n]
    return frame


def fit_structured(
    family: Structured, targets: Targets, confidence_level: float
) -> tuple[Result, StructuredDescription]:
    """Fit of a structured family at endpoints, or at the mean iterates of windows."""
    # The mean over a window of the gradient of a quadratic penalty is that at the mean iterate.
    gradients, problems = targets.gradients, _acted_on(targets, family)
    at_bound = sorted({n for p in problems for n, free in p.free.items() if not bool(free.all())})
    if at_bound:
        raise ValueError(
            f"Expected parameters away from bounds for {family!r}, got some at a bound in "
            f"{at_bound}: they give inequalities; fit a family with terms."
        )
    thetas, minus = _flattened(problems, gradients)
    sampling = targets.sampling
    found = family.solve(
        thetas, minus, problems, confidence_level=confidence_level, sampling=sampling
    )
    size, fit = norm_of(minus), norm_of(found.fitted)
    signal = size > _rounding(targets)
    shortfall, cosine = 1.0, 0.0
    if signal:
        shortfall = (norm_of(minus - found.fitted) / size) ** 2
        cosine = float((minus / size * (found.fitted / fit)).sum()) if fit else 0.0
    verdict = _judged(found, targets, size, shortfall)
    if not signal:
        blank = np.full(len(found.coef), np.nan)
        bounds = None if found.conf_int is None else np.column_stack([blank, blank])
        nothing = found.penalty.nothing()
        found = replace(found, coef=blank, conf_int=bounds, penalty=nothing, notes=())
    slim = replace(found, fitted=found.fitted[:, :0])  # p x M numbers are not kept
    result = Result(
        term_names=found.term_names,
        coef=found.coef,
        conf_int=found.conf_int,
        r2=1 - shortfall,
        cosine=np.array([cosine]),
        n_equations=found.n_equations,
        verdict=verdict,
        penalty=found.penalty,
        whole=(clone(family), slim),  # as it was, whatever becomes of the user's
    )
    description = StructuredDescription(
        tuple(places_header(problems, gradients, targets.place)),
        tuple(places_notes(targets.problems, gradients)),
        *shared_units(problems, gradients),
    )
    return result, description


def r2_at(result: Result, targets: EndpointTargets) -> float:
    """Plain R2 of the penalty at other endpoints; 0 where their gradients are zero."""
    family, found = result.solved_as_whole()
    problems = _acted_on(targets, family)
    shapes = {name: tuple(t.shape) for name, t in problems[0].params.items()}
    if shapes != dict(result.penalty.shapes):
        raise ValueError(
            f"Expected endpoints with the parameters {dict(result.penalty.shapes)}, got {shapes}."
        )
    thetas, minus = _flattened(problems, targets.gradients)
    size = norm_of(minus)
    if size <= _rounding(targets):
        return 0.0
    fitted = family.gradients_at(found, thetas, problems)
    return 1.0 - (norm_of(minus - fitted) / size) ** 2


def _rounding(targets: Targets) -> float:
    """Norm below which all gradients together are zero to rounding."""
    pairs = zip(targets.problems, targets.gradients, strict=True)
    return norm_of(np.array([gradient.rounding(problem.eps) for problem, gradient in pairs]))


def _sentences(notes: Sequence[str]) -> list[str]:
    return [note[0].upper() + note[1:].removesuffix(".") + "." for note in notes]


def _acted_on(targets: Targets, family: Any) -> tuple[Problem, ...]:
    """The problems of the tensors that training acted on, which must be the same everywhere."""
    if targets.problem.in_shards:
        raise ValueError(
            f"Expected the whole tensors of a model for {family!r}, got one that is sharded over "
            "ranks; load its full state dict into a module of one process and fit that."
        )
    if not family.at_mean and targets.place == "window":
        raise ValueError(
            f"Expected mode='endpoint' for {family!r}, got a trajectory: the mean of its gradient "
            "over a window is not that at mean weights; fit a family with terms, such as Spline()."
        )
    everywhere = frozenset.union(*[gradient.absent for gradient in targets.gradients])
    if any(gradient.absent != everywhere for gradient in targets.gradients):
        raise ValueError(
            f"Expected for {family!r}, which is solved as a whole, parameters that training acted "
            f"on at every {targets.place}, got {', '.join(sorted(everywhere))} without a gradient "
            "at some; leave them out by params=."
        )
    if not everywhere:
        return targets.problems
    named = [n for n in targets.problem.params if n not in everywhere]
    if not named:
        raise ValueError(
            f"Expected parameters that training acted on, got {', '.join(sorted(everywhere))}, "
            "which no gradient reaches: they give no equation; select others by params=."
        )
    return tuple(replace(p, params={n: p.params[n] for n in named}) for p in targets.problems)


def _flattened(
    problems: Sequence[Problem], gradients: Sequence[LossGradient]
) -> tuple[Array, Array]:
    """Parameters in scope and minus the gradients, a column (p,) for each place."""
    thetas, slopes = [], []
    for problem, gradient in zip(problems, gradients, strict=True):
        thetas.append(flat(problem.params))
        slopes.append(flat({name: gradient.value[name] for name in problem.params}))
    return np.stack(thetas, axis=1), -np.stack(slopes, axis=1)


def _judged(found: StructuredSolution, targets: Targets, size: float, shortfall: float) -> Verdict:
    """The verdict of a regression, but whether the unknowns are identified by their rank."""
    rounding, n_kinks = _rounding(targets), sum(g.n_kinks for g in targets.gradients)
    cause = cause_at(has_paths=targets.problem.is_net)
    if size > rounding and np.isinf(found.coef).all():
        return Verdict(
            "out of family",
            "no finite member of the family is better than no penalty: it does not lead to these "
            "weights.",
        )
    k = found.n_unknowns
    shown = [*found.dependent[:_SHOWN], *(["..."] if len(found.dependent) > _SHOWN else [])]
    which = f"; not determined: {', '.join(shown)}" if shown else ""
    text = f"{found.n_equations} equations determine {found.rank} of {k} unknowns{which}."
    n = found.n_equations
    if found.held_out is not None:  # a network can explain any equations that it has seen
        k, n, shortfall = 1, found.held_out[1], 1 - found.held_out[0]
    fit = (size, 1 - shortfall, shortfall)
    measures = Measures(n, k, min(k, found.rank), *fit, undetermined=text)
    return judge(measures, rounding=rounding, n_kinks=n_kinks, cause=cause)
