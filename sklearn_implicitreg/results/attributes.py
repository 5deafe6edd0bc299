"""What a fit found: its public attributes, and the methods that show and convert them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.adapters import Data
from sklearn_implicitreg.penalties import FittedPenalty, StructuredPenalty
from sklearn_implicitreg.regression.fit import Result
from sklearn_implicitreg.regression.restrictions import WaldTest, wald_test
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.explicit import explicit_estimator
from sklearn_implicitreg.results.fit_description import Facts, in_model_units
from sklearn_implicitreg.results.influence import influence
from sklearn_implicitreg.results.recovery import Recovery, recover
from sklearn_implicitreg.results.summary import Summary

__all__ = ["FittedResult"]


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
    aic_: float | None
    bic_: float | None
    _result: Result
    _facts: Facts

    def _publish(self, result: Result, facts: Facts) -> None:
        """Set the public attributes; None where the family has no columns."""
        for name in ("coef_path_", "coef_path_conf_int_", "_equations"):
            vars(self).pop(name, None)  # of an earlier fit
        self._result, self._facts = result, facts
        solution, inference = result.solution, result.inference
        self.term_names_ = result.term_names
        self.coef_ = result.coef
        self.conf_int_ = result.conf_int
        self.r2_ = result.r2
        self.cosine_ = result.cosine
        self.n_equations_ = result.n_equations
        self.verdict_ = result.verdict.label
        self.penalty_ = result.penalty
        self.std_err_ = getattr(inference, "std_err", None)
        self.pvalues_ = getattr(inference, "pvalues", None)
        self.aic_ = getattr(inference, "aic", None)
        self.bic_ = getattr(inference, "bic", None)
        self.condition_number_ = getattr(solution, "condition_number", None)
        self.vif_ = getattr(solution, "vif", None)
        if result.path is not None:
            self.coef_path_, self.coef_path_conf_int_ = result.path, result.bands

    def _coefficients(self) -> dict[str, float]:
        """Coefficient of every term of the family."""
        check_is_fitted(self, "coef_")
        self._result.regression()
        return {self.term_names_[i]: float(self.coef_[i]) for i in self._result.family}

    def summary(self) -> Summary:
        """Table of the fit for people: text when printed, HTML in notebooks, LaTeX on request.

        Returns
        -------
        summary : Summary
        """
        check_is_fitted(self, "coef_")
        return self._facts.summary(self._result)

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
        check_is_fitted(self, "coef_")
        solution, inference = self._result.regression()
        return wald_test(self._result.term_names, solution.coef, inference, restrictions, value)

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
        check_is_fitted(self, "coef_")
        solution, inference = self._result.regression()
        if inference.exact:
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
        return influence(equations.system, solution, top)

    def to_frame(self) -> pd.DataFrame:
        """Tidy table of the coefficients for programs.

        Returns
        -------
        frame : DataFrame
            One row per term: term, group, coef, std_err, ci_low, ci_high, statistic, p_value,
            cosine, vif. Of a structured family: term, coef, ci_low, ci_high.
        """
        check_is_fitted(self, "coef_")
        return self._facts.frame(self._result)

    def to_json(self) -> str:
        """Coefficients, fit and verdict as JSON text; NaN and infinite numbers are null.

        Returns
        -------
        text : str
        """
        check_is_fitted(self, "coef_")
        content = self._facts.content(self._result)
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
        return in_model_units(self._coefficients(), self._facts)

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
        stated = self._coefficients()
        model = self.model_[0] if isinstance(self.model_, list) else self.model_
        return explicit_estimator(model, stated, self._facts, self._result.penalty)

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
        return recover(source.model_, stated, self._facts, self.penalty_, data, options)


def _json_ready(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Row with null for numbers that JSON does not have."""
    return {
        str(key): None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in row.items()
    }
