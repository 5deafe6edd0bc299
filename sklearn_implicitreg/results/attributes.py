"""What a fit found: its public attributes, and the methods that show and convert them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.adapters import Data
from sklearn_implicitreg.penalties import FittedPenalty, StructuredPenalty
from sklearn_implicitreg.regression.inference import Inference, Verdict
from sklearn_implicitreg.regression.restrictions import WaldTest, wald, wald_test
from sklearn_implicitreg.regression.solve import Solution
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.explicit import explicit_estimator
from sklearn_implicitreg.results.fit_description import Facts, in_model_units
from sklearn_implicitreg.results.influence import influence
from sklearn_implicitreg.results.recovery import Recovery, recover
from sklearn_implicitreg.results.structured import StructuredResult
from sklearn_implicitreg.results.summary import Summary, coefficient_frame, coefficient_table
from sklearn_implicitreg.trajectory.equations import NUISANCE

__all__ = ["FittedResult", "Result", "without_numbers"]


@dataclass(frozen=True)
class Result:
    """What a fit found; all that the report needs, without data or weights."""

    term_names: tuple[str, ...]
    solution: Solution
    inference: Inference
    verdict: Verdict
    facts: Facts
    penalty: FittedPenalty | None  # None where equations were given as such
    path: tuple[Array, Array] | None = None  # coefficients of every window or endpoint, and bands


class FittedResult:
    """Attributes of a :class:`Result` and the methods that show it."""

    model_: Any
    term_names_: Sequence[str]
    std_err_: Array | None
    conf_int_: Array | None
    pvalues_: Array | None
    vif_: Array | None
    condition_number_: float | None
    penalty_: FittedPenalty | StructuredPenalty | None
    _result: Result | StructuredResult

    def _publish(self, result: Result | StructuredResult) -> None:
        """Set the public attributes."""
        for name in ("coef_path_", "coef_path_conf_int_", "_equations"):
            vars(self).pop(name, None)  # of an earlier fit
        self._result = result
        if isinstance(result, StructuredResult):
            self._publish_structured(result)
            return
        solution, inference = result.solution, result.inference
        self.term_names_ = list(result.term_names)
        self.coef_ = solution.coef
        self.std_err_ = inference.std_err
        self.conf_int_ = inference.conf_int
        self.pvalues_ = inference.pvalues
        self.r2_ = solution.r2
        self.cosine_ = solution.cosine
        self.condition_number_ = solution.condition_number
        self.vif_ = solution.vif
        self.n_equations_ = solution.n_equations
        self.aic_: float | None = inference.aic
        self.bic_: float | None = inference.bic
        self.verdict_ = result.verdict.label
        self.penalty_ = result.penalty
        if result.path is not None:
            self.coef_path_, self.coef_path_conf_int_ = result.path

    def _publish_structured(self, result: StructuredResult) -> None:
        """Attributes of a family without columns; None for what speaks of columns."""
        found = result.solution
        self.term_names_ = found.term_names
        self.coef_ = found.coef
        self.conf_int_ = found.conf_int
        self.std_err_ = self.pvalues_ = self.vif_ = self.condition_number_ = None
        self.aic_ = self.bic_ = None
        self.r2_ = result.r2
        self.cosine_ = np.array([result.cosine])
        self.n_equations_ = found.n_equations
        self.verdict_ = result.verdict.label
        self.penalty_ = found.penalty

    def _structured_result(self) -> StructuredResult | None:
        """What the fit of a structured family found; None for another."""
        check_is_fitted(self, "coef_")
        return self._result if isinstance(self._result, StructuredResult) else None

    def _fitted_result(self) -> Result:
        """What the fit of a family of terms found."""
        check_is_fitted(self, "coef_")
        if isinstance(self._result, StructuredResult):
            raise ValueError(
                f"Expected the fit of a family of terms, got {self._result.family}, which is "
                "solved as a whole; read coef_, penalty_ and summary()."
            )
        return self._result

    def _coefficients(self) -> dict[str, float]:
        """Coefficient of every term of the family."""
        result = self._fitted_result()
        named = zip(result.term_names, result.solution.coef.tolist(), strict=True)
        return {name: coef for name, coef in named if name != NUISANCE}

    def summary(self) -> Summary:
        """Table of the fit for people: text when printed, HTML in notebooks, LaTeX on request.

        Returns
        -------
        summary : Summary
        """
        structured = self._structured_result()
        if structured is not None:
            return structured.summary()
        result = self._fitted_result()
        facts, verdict = result.facts, result.verdict
        header = [*facts.header, *_regression_header(result), ("Verdict", verdict.label)]
        table = coefficient_table(result.term_names, result.solution, result.inference)
        notes = [
            verdict.sentence[0].upper() + verdict.sentence[1:],
            f"Standard errors: {result.inference.description}.",
            *facts.notes,
        ]
        return Summary("Implicit regularization", header, table, notes)

    def wald_test(self, restrictions: Any, value: Any = None) -> WaldTest:
        """Test linear restrictions on the coefficients, by the covariance of the fit.

        Parameters
        ----------
        restrictions : str, list of str or array-like of shape (q, k)
            Equations in the names of the terms, such as ``"l2[fc1] = l2[fc2]"`` or
            ``["l2 = 0", "l1 = 2*l21"]``; without ``=`` what is to be zero. Commas separate
            several. Or a matrix with one restriction in each row.
        value : array-like of shape (q,), default=None
            What the rows of the matrix equal; zero by default.

        Returns
        -------
        test : WaldTest
            F statistic and p-value of all restrictions together.

        Raises
        ------
        ValueError
            If a restriction is not understood, not linear or follows from others, or names a
            coefficient without a standard error.
        """
        result = self._fitted_result()
        names, coef = result.term_names, result.solution.coef
        return wald_test(names, coef, result.inference, restrictions, value)

    def influence(self, top: int | None = None) -> pd.DataFrame:
        """Leverage, residual and Cook's distance of single equations.

        Parameters
        ----------
        top : int, default=None
            Return only so many equations, those with the largest Cook's distance, without holding
            a table of all of them.

        Returns
        -------
        frame : DataFrame
            One row per equation: ``hat_diag``, ``resid``, ``standard_resid``,
            ``student_resid`` (by the variance without the equation), ``cooks_d``, ``dffits``
            and ``dfb_<term>``, as in statsmodels.

        Raises
        ------
        ValueError
            If there is no gradient to explain, the fit is exact, or the equations were lost
            (they are not pickled).
        """
        result = self._fitted_result()
        if result.inference.exact:
            raise ValueError(
                "Expected a residual to see influence in, got an exact fit: what is left of every "
                "equation is rounding."
            )
        source = getattr(self, "best_estimator_", self)
        equations = getattr(source, "_equations", None)
        if equations is None:
            raise ValueError(
                "influence needs the equations of the fit, which are not pickled; fit again."
            )
        return influence(equations, result.solution, top)

    def to_frame(self) -> pd.DataFrame:
        """Tidy table of the coefficients for programs.

        Returns
        -------
        frame : DataFrame
            One row per term: term, group, coef, std_err, ci_low, ci_high, statistic, p_value,
            cosine, vif. Of a structured family: term, coef, ci_low, ci_high.
        """
        structured = self._structured_result()
        if structured is not None:
            return structured.frame()
        result = self._fitted_result()
        return coefficient_frame(result.term_names, result.solution, result.inference)

    def to_json(self) -> str:
        """Coefficients, fit and verdict as JSON text; NaN and infinite numbers are null.

        Returns
        -------
        text : str
        """
        structured = self._structured_result()
        content = _content(self._fitted_result()) if structured is None else structured.content()
        terms = [_json_ready(row) for row in self.to_frame().to_dict(orient="records")]
        return json.dumps({"terms": terms} | _json_ready(content), indent=2, allow_nan=False)

    def in_model_units(self) -> dict[str, Any]:
        """Coefficients as the model's own parameters, such as ``{"alpha": 3.0}``.

        Returns
        -------
        params : dict of str to float or ndarray
            An array where the model has one parameter per output; ``"weight_decay[fc1]"``
            where the family is grouped. NaN where there is no gradient to explain.

        Raises
        ------
        ValueError
            If the model has no parameter for a term.
        """
        return in_model_units(self._coefficients(), self._fitted_result().facts)

    def explicit_estimator(self) -> Any:
        """Unfitted estimator that states the penalty openly, such as ``Ridge(alpha=3.0)``.

        Returns
        -------
        estimator : object
            A scikit-learn or skorch estimator.

        Raises
        ------
        ValueError
            If the model has no parameter for a term, a coefficient is negative or NaN, or a
            part of the penalty was ``known``.
        TypeError
            For a bare module: add ``penalty_`` to its training loop.
        """
        result = self._fitted_result()
        model = self.model_[0] if isinstance(self.model_, list) else self.model_
        return explicit_estimator(model, self._coefficients(), result.facts, result.penalty)

    def recover(self, X: Any, y: Any = None, sample_weight: Any = None) -> Recovery:
        """Train on loss and estimated penalty, and compare with the model.

        In closed form for a linear model with squared error and a quadratic penalty: equal
        weights then follow from the equations; that they *minimize* L + R is checked and said.
        Otherwise :meth:`explicit_estimator` is trained. An arm without the penalty stands beside.

        Parameters
        ----------
        X, y, sample_weight
            The rows that the model was trained on, as in ``fit``.

        Returns
        -------
        recovery : Recovery
            Weights, loss and predictions of the model and of both arms.

        Raises
        ------
        ValueError, TypeError
            If there is neither a closed form nor an estimator that states the penalty: add
            ``penalty_`` to a training loop. For given equations, and where a part of the penalty
            was ``known``.
        """
        check_is_fitted(self, "coef_")
        source: Any = getattr(self, "best_estimator_", self)
        if isinstance(source.model_, list):
            raise ValueError(
                f"Expected a fit of one model to recover, got {len(source.model_)}; fit one "
                "of them, and recover it."
            )
        stated = self._coefficients() if isinstance(self.penalty_, FittedPenalty) else {}
        data, options = Data(X, y, sample_weight), source._options()
        return recover(source.model_, stated, self._result.facts, self.penalty_, data, options)


def _content(result: Result) -> dict[str, Any]:
    """Fit and verdict, all but the coefficients, for programs."""
    return {
        "r2": result.solution.r2,
        "n_equations": result.solution.n_equations,
        "condition_number": result.solution.condition_number,
        "df_resid": result.solution.n_equations - result.solution.n_used,
        "log_likelihood": result.inference.log_likelihood,
        "aic": result.inference.aic,
        "bic": result.inference.bic,
        "verdict": result.verdict.label,
        "reason": result.verdict.sentence,
        "covariance": result.inference.covariance,
        "facts": dict(result.facts.header),
        "notes": list(result.facts.notes),
    }


def _regression_header(result: Result) -> list[tuple[str, str]]:
    """What statistical tables say of a regression as a whole."""
    solution, inference = result.solution, result.inference
    m, k = solution.n_equations, solution.n_used
    kept = [i for i, name in enumerate(result.term_names) if name != NUISANCE]
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


def without_numbers(solution: Solution, inference: Inference) -> tuple[Solution, Inference]:
    """NaN for all coefficients: rounding errors divided by weights are none."""
    k = solution.n_terms
    blank = np.full(k, np.nan)
    return (
        replace(solution, coef=blank, r2=0.0, shortfall=1.0),
        replace(
            inference,
            cov=np.full((k, k), np.nan),
            std_err=blank,
            tvalues=blank,
            pvalues=blank,
            conf_int=np.full((k, 2), np.nan),
            log_likelihood=np.nan,
            aic=np.nan,
            bic=np.nan,
        ),
    )


def _json_ready(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Row with null for numbers that JSON does not have."""
    return {
        str(key): None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in row.items()
    }
