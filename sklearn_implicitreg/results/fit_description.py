"""What a fit reports about its model besides the coefficients, in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sklearn_implicitreg.problem.conventions import Convention
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.fit import Result
from sklearn_implicitreg.regression.restrictions import wald
from sklearn_implicitreg.results.summary import Summary, coefficient_frame, coefficient_table

__all__ = ["Facts", "in_model_units"]


@dataclass(frozen=True)
class Facts:
    """Header lines and notes of the summary, and what conversions need."""

    header: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    n_effective: float | None  # None: endpoints of different numbers of rows
    convention: Convention | None
    per_output: bool
    known: tuple[str, ...] = ()

    @classmethod
    def of(cls, equations: Equations, result: Result) -> Facts:
        """Facts of equations and what their fit found."""
        targets = equations.targets
        return cls(
            tuple(targets.header(equations, result)),
            tuple(targets.notes(equations, result)),
            *targets.units(equations),
            equations.judged.design.known_terms,
        )

    def summary(self, result: Result) -> Summary:
        """Table for people."""
        solution, inference = result.regression()
        verdict = result.verdict
        header = [*self.header, *_regression_header(result), ("Verdict", verdict.label)]
        notes = [
            verdict.sentence[0].upper() + verdict.sentence[1:],
            f"Standard errors: {inference.description}.",
            *self.notes,
        ]
        table = coefficient_table(result.term_names, solution, inference)
        return Summary("Implicit regularization", header, table, notes)

    def frame(self, result: Result) -> pd.DataFrame:
        """Tidy table for programs."""
        return coefficient_frame(result.term_names, *result.regression())

    def content(self, result: Result) -> dict[str, Any]:
        """Fit and verdict, all but the coefficients, for programs."""
        solution, inference = result.regression()
        return {
            "r2": solution.r2,
            "n_equations": solution.n_equations,
            "condition_number": solution.condition_number,
            "df_resid": solution.n_equations - solution.n_used,
            "log_likelihood": inference.log_likelihood,
            "aic": inference.aic,
            "bic": inference.bic,
            "verdict": result.verdict.label,
            "reason": result.verdict.sentence,
            "covariance": inference.covariance,
            "facts": dict(self.header),
            "notes": list(self.notes),
        }

    def in_convention(self, convention: Convention) -> Facts:
        """The same facts for a model that states penalties in another way."""
        return replace(self, convention=convention)


def _regression_header(result: Result) -> list[tuple[str, str]]:
    """What statistical tables report of a regression as a whole."""
    solution, inference = result.regression()
    m, k, kept = solution.n_equations, solution.n_used, result.family
    family = np.eye(solution.n_terms)[kept]
    statistic, p_value = wald(family, solution.coef[kept], inference)
    exact = inference.exact
    if exact:
        statistic, p_value = np.inf, 0.0  # not what rounding errors are compared with
    criteria = {
        "Log-likelihood": inference.log_likelihood,
        "AIC": inference.aic,
        "BIC": inference.bic,
    }
    return [
        ("Equations", str(m)),
        ("Df residuals", str(m - k)),
        ("R2 (uncentered)", f"{solution.r2:.4f}"),
        (f"F({len(kept)}, {inference.df:g})", f"{statistic:.4g}"),
        ("Prob (F)", f"{p_value:.3g}"),
        ("Covariance", inference.covariance),
        *((name, "exact fit" if exact else f"{value:.2f}") for name, value in criteria.items()),
        ("Condition number", f"{solution.condition_number:.3g}"),
    ]


def in_model_units(coef: Mapping[str, float], facts: Facts) -> dict[str, Any]:
    """Coefficients as the model's own parameters.

    Raises
    ------
    ValueError
        If the model has no parameter for a penalty or for a term, or endpoints of different
        numbers of rows would need different ones.
    """
    if facts.convention is None:
        raise ValueError(
            "The model has no parameter for a penalty; read coef_ instead. Beside a loss that is "
            "summed over a batch, weight_decay is 2 * coef_ of l2 times the size of the batch."
        )
    if facts.convention.per_row and facts.n_effective is None:
        raise ValueError(
            "Expected endpoints of one number of rows, got several: the model's parameter for "
            "one coefficient depends on it; read coef_ instead."
        )
    groups: dict[str, dict[str, float]] = {}
    for name, value in coef.items():
        term, _, group = name.partition("[")
        groups.setdefault(group.removesuffix("]"), {})[term] = value
    stated = {g: facts.convention.parameters(c, facts.n_effective) for g, c in groups.items()}
    if list(stated) == [""]:
        return dict(stated[""])
    if facts.per_output:
        keys = next(iter(stated.values()))
        return {key: np.array([params[key] for params in stated.values()]) for key in keys}
    return {
        f"{key}[{group}]": value
        for group, params in stated.items()
        for key, value in params.items()
    }
