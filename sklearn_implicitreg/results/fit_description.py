"""What a fit reports about its model besides the coefficients, in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sklearn_implicitreg.penalties.shape import Shape
from sklearn_implicitreg.problem.conventions import Convention
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.fit import Result
from sklearn_implicitreg.regression.restrictions import denominator, wald
from sklearn_implicitreg.results.summary import Summary, coefficient_frame, coefficient_table


@dataclass(frozen=True)
class Description:
    """Header lines and notes of the summary, and what conversions need."""

    header: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    n_effective: float | None  # None: endpoints of different numbers of rows
    convention: Convention | None
    per_output: bool
    known: tuple[str, ...] = ()

    @classmethod
    def of(cls, equations: Equations, result: Result) -> Description:
        """Of equations and what their fit found."""
        targets = equations.targets
        return cls(
            tuple(targets.header(equations, result)),
            (*targets.notes(equations, result), *(n for s in result.shapes for n in s.notes)),
            *targets.units(equations),
            equations.places[0].design.known_terms,
        )

    def summary(self, result: Result) -> Summary:
        """Table for people."""
        solution, inference = result.regression()
        verdict = result.verdict
        shapes = [(f"{shape.name} (fit)", _in_words(shape)) for shape in result.shapes]
        header = [*self.header, *_regression_header(result), *shapes, ("Verdict", verdict.label)]
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
            "shapes": {s.name: [s.value, *s.conf_int] for s in result.shapes},
            "facts": dict(self.header),
            "notes": list(self.notes),
        }

    def check_all_unknown(self) -> None:
        """Raise ValueError if a part of the penalty was known, and is in no coefficient."""
        if self.known:
            raise ValueError(
                f"Expected a family without known penalties, got {list(self.known)}: the other "
                "coefficients alone are not the whole penalty. Fit without `known`, or add the two "
                "up."
            )

    def in_model_units(self, coef: Mapping[str, float]) -> dict[str, Any]:
        """Coefficients as the model's own parameters; ValueError if it has none for a term."""
        assert self.convention is not None
        if self.convention.per_row and self.n_effective is None:
            raise ValueError(
                "Expected endpoints of one number of rows, got several: the model's parameter for "
                "one coefficient depends on it; read coef_ instead."
            )
        groups: dict[str, dict[str, float]] = {}
        for name, value in coef.items():
            term, _, group = name.partition("[")
            groups.setdefault(group.removesuffix("]"), {})[term] = value
        stated = {g: self.convention.parameters(c, self.n_effective) for g, c in groups.items()}
        if list(stated) == [""]:
            return dict(stated[""])
        if self.per_output:
            keys = next(iter(stated.values()))
            return {key: np.array([params[key] for params in stated.values()]) for key in keys}
        pairs = ((f"{key}[{g}]", params[key]) for g, params in stated.items() for key in params)
        return dict(pairs)


def _in_words(shape: Shape) -> str:
    """Value and interval of a shape."""
    low, high = shape.conf_int
    interval = "no interval" if np.isnan(low) else f"[{low:.4g}, {high:.4g}]"
    return f"{shape.value:.4g} {interval}"


def _regression_header(result: Result) -> list[tuple[str, str]]:
    solution, inference = result.regression()
    m, k, kept, exact = solution.n_equations, solution.n_used, result.family, inference.exact
    below = denominator(len(kept), inference)
    name = f"F({len(kept)}, {below:g})" if below > 0 else "F"
    test, criteria = ["none"] * 2, ["exact fit"] * 3
    if inference.df > 0 and exact:
        test = ["exact fit"] * 2  # rounding errors are nothing to compare with
    if inference.df > 0 and not exact:
        family = np.eye(solution.n_terms)[kept]
        statistic, p_value = wald(family, solution.coef[kept], inference)
        test = [f"{statistic:.4g}", f"{p_value:.3g}"]
    if not exact:
        numbers = (inference.log_likelihood, inference.aic, inference.bic)
        criteria = [f"{value:.2f}" for value in numbers]
    return [
        ("Equations", str(m)),
        ("Df residuals", str(m - k)),
        ("R2 (uncentered)", f"{solution.r2:.4f}"),
        *zip((name, "Prob (F)"), test, strict=True),
        ("Covariance", inference.covariance),
        *zip(("Log-likelihood", "AIC", "BIC"), criteria, strict=True),
        ("Condition number", f"{solution.condition_number:.3g}"),
    ]
