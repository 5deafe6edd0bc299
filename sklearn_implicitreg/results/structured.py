"""Fits of structured families, which are solved as a whole and have no columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from sklearn_implicitreg.penalties import Structured, StructuredSolution
from sklearn_implicitreg.problem import LossGradient, Problem, flat
from sklearn_implicitreg.regression.solve import Solution
from sklearn_implicitreg.regression.stacks import EndpointTargets
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.regression.verdict import Verdict, cause_at, judge
from sklearn_implicitreg.results.fit_description import Facts
from sklearn_implicitreg.results.summary import Summary
from sklearn_implicitreg.trajectory.equations import PathTargets

__all__ = ["StructuredResult", "fit_structured", "flattened"]

_SHOWN = 10  # coefficients in a table for people


@dataclass(frozen=True)
class StructuredResult:
    """What the fit of a structured family found."""

    family: str
    solution: StructuredSolution
    r2: float
    cosine: float
    verdict: Verdict
    facts: Facts
    solver: Structured

    def r2_at(self, targets: EndpointTargets) -> float:
        """Plain R2 of the penalty at other endpoints; 0 where their gradients are zero.

        Raises
        ------
        ValueError
            If every endpoint has a penalty of its own, or one depends on other parameters.
        """
        penalty = self.solution.penalty
        shapes = {name: tuple(t.shape) for name, t in targets.problem.params.items()}
        if shapes != dict(penalty.shapes):
            raise ValueError(
                f"Expected endpoints with the parameters {dict(penalty.shapes)}, got {shapes}."
            )
        thetas, minus = flattened(targets.problems, targets.gradients)
        size = float(np.linalg.norm(minus))
        if size <= _rounding(targets):
            return 0.0
        fitted = self.solver.gradients_at(self.solution, thetas, targets.problems)
        return 1.0 - (float(np.linalg.norm(minus - fitted)) / size) ** 2

    def summary(self) -> Summary:
        """Table of the first coefficients, and what the whole penalty is like."""
        found = self.solution
        k = len(found.coef)
        header = [
            *self.facts.header,
            ("Family", self.family),
            ("Equations", str(found.n_equations)),
            ("Unknowns", str(found.n_unknowns)),
            ("Determined", str(found.rank)),
            ("R2 (uncentered)", f"{self.r2:.4f}"),
            ("Cosine", f"{self.cosine:.4f}"),
            ("Verdict", self.verdict.label),
        ]
        table = self._frame(min(k, _SHOWN)).set_index("term")
        table.index.name = None
        if found.conf_int is None:
            table = table[["coef"]]
        notes = _sentences([self.verdict.sentence])
        if k > _SHOWN:
            notes.append(f"The first {_SHOWN} of {k} coefficients; to_frame() has all.")
        if not np.isnan(found.coef).all():  # else there was no gradient to explain
            notes += [self._size(), *_sentences(found.notes)]
        notes += self.facts.notes
        return Summary("Implicit regularization", header, table, notes)

    def frame(self) -> pd.DataFrame:
        """One row per coefficient: term, coef, ci_low, ci_high."""
        return self._frame(len(self.solution.coef))

    def content(self) -> dict[str, Any]:
        """Fit and verdict, all but the coefficients, for programs."""
        found = self.solution
        return {
            "family": self.family,
            "r2": self.r2,
            "cosine": self.cosine,
            "n_equations": found.n_equations,
            "n_unknowns": found.n_unknowns,
            "rank": found.rank,
            "verdict": self.verdict.label,
            "reason": self.verdict.sentence,
            "facts": dict(self.facts.header),
            "notes": [*_sentences(found.notes), *self.facts.notes],
        }

    def _frame(self, n: int) -> pd.DataFrame:
        found = self.solution
        bounds = np.full((n, 2), np.nan) if found.conf_int is None else found.conf_int[:n]
        return pd.DataFrame(
            {
                "term": list(found.term_names[:n]),
                "coef": found.coef[:n],
                "ci_low": bounds[:, 0],
                "ci_high": bounds[:, 1],
            }
        )

    def _size(self) -> str:
        """Sentence on the eigenvalues of the penalty."""
        matrix = self.solution.penalty.coefficients
        if not np.isfinite(matrix).all():
            return "The penalty is not finite."
        values = np.linalg.eigvalsh(matrix) if matrix.ndim == 2 else matrix
        return (
            f"R = theta' Q theta with eigenvalues of Q from {values.min():.4g} to "
            f"{values.max():.4g}, mean {values.mean():.4g}."
        )


def fit_structured(
    family: Structured, targets: EndpointTargets | PathTargets, confidence_level: float = 0.95
) -> StructuredResult:
    """Fit of a structured family at endpoints, or at the mean iterates of windows.

    The mean over a window of the gradient of a quadratic penalty is that at the mean iterate.

    Raises
    ------
    ValueError
        If a parameter is at a bound, where there is no equation.
    """
    problems, gradients = targets.problems, targets.gradients
    at_bound = sorted({n for p in problems for n, free in p.free.items() if not bool(free.all())})
    if at_bound:
        raise ValueError(
            f"Expected parameters away from bounds for {family!r}, got some at a bound in "
            f"{at_bound}: they give inequalities; fit a family with terms."
        )
    thetas, minus = flattened(problems, gradients)
    sampling = targets.sampling if isinstance(targets, EndpointTargets) else "data sets"
    found = family.solve(
        thetas, minus, problems, confidence_level=confidence_level, sampling=sampling
    )
    size, fit = float(np.linalg.norm(minus)), float(np.linalg.norm(found.fitted))
    away = float(np.linalg.norm(minus - found.fitted))
    rounding = _rounding(targets)
    signal = size > rounding
    shortfall = (away / size) ** 2 if signal else 1.0
    cosine = float((minus * found.fitted).sum()) / (size * fit) if signal and fit else 0.0
    cause = cause_at(has_paths=problems[0].has_paths)
    n_kinks = sum(g.n_kinks for g in gradients)
    verdict = _judged(found, size, shortfall, rounding, n_kinks, cause)
    if not signal:
        nothing = replace(found.penalty, coefficients=np.zeros_like(found.penalty.coefficients))
        blank = np.full(len(found.coef), np.nan)
        bounds = None if found.conf_int is None else np.column_stack([blank, blank])
        found = replace(found, coef=blank, conf_int=bounds, penalty=nothing, notes=())
    slim = replace(found, fitted=found.fitted[:, :0])  # p x M numbers are not kept
    facts = Facts.at(problems, gradients, targets.place)
    own = clone(family)  # as it was, whatever becomes of the user's
    return StructuredResult(repr(family), slim, 1 - shortfall, cosine, verdict, facts, own)


def _rounding(targets: EndpointTargets | PathTargets) -> float:
    """Norm below which all gradients together are zero to rounding."""
    pairs = zip(targets.problems, targets.gradients, strict=True)
    return float(np.linalg.norm([gradient.rounding(problem.eps) for problem, gradient in pairs]))


def _sentences(notes: Sequence[str]) -> list[str]:
    return [note[0].upper() + note[1:].removesuffix(".") + "." for note in notes]


def flattened(
    problems: Sequence[Problem], gradients: Sequence[LossGradient]
) -> tuple[Array, Array]:
    """Parameters in scope and minus the gradients, a column (p,) for each place."""
    columns = []
    for tensors in ([p.params for p in problems], [g.value for g in gradients]):
        pairs = zip(tensors, problems, strict=True)
        columns.append(np.stack([flat({n: own[n] for n in p.params}) for own, p in pairs], axis=1))
    return columns[0], -columns[1]


def _judged(
    found: StructuredSolution,
    size: float,
    shortfall: float,
    rounding: float,
    n_kinks: int,
    cause: str,
) -> Verdict:
    """The verdict of a regression, but whether the unknowns are identified by their rank."""
    k = found.n_unknowns
    stand_in = Solution(
        coef=np.zeros(k),
        rss=shortfall * size**2,
        tss=size**2,
        r2=1 - shortfall,
        shortfall=shortfall,
        cosine=np.zeros(k),
        rank=found.rank,
        condition_number=1.0,
        vif=np.ones(k),
        dependent=(),
        active=np.ones(k, dtype=bool),
        n_equations=found.n_equations,
        eps=float(np.finfo(np.float64).eps),
    )
    verdict = judge(stand_in, (), rounding=rounding, n_kinks=n_kinks, cause=cause)
    if size > rounding and np.isinf(found.coef).all():
        return replace(
            verdict,
            label="out of family",
            sentence="no finite member of the family is better than no penalty: it does not lead "
            "to these weights.",
        )
    if verdict.label != "not identifiable":
        return verdict
    shown = [*found.dependent[:_SHOWN], *(["..."] if len(found.dependent) > _SHOWN else [])]
    which = f"; not determined: {', '.join(shown)}" if shown else ""
    return replace(
        verdict,
        sentence=f"{found.n_equations} equations determine {found.rank} of {k} unknowns{which}.",
        details=verdict.details | {"columns": found.dependent},
    )
