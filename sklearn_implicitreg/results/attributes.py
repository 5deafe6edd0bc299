"""What a fit found: its public attributes, and the methods that show and convert them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.adapters import Data
from sklearn_implicitreg.penalties import FittedPenalty, StructuredPenalty
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.fit import Result, Settings
from sklearn_implicitreg.regression.restrictions import WaldTest, wald_test
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.fit_description import Description
from sklearn_implicitreg.results.influence import influence
from sklearn_implicitreg.results.layers import table_of_layers
from sklearn_implicitreg.results.next_steps import NextSteps, section_of, steps_for
from sklearn_implicitreg.results.situation import Situation
from sklearn_implicitreg.results.summary import Summary

if TYPE_CHECKING:
    from sklearn_implicitreg.results.recovery import Recovery


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
    # The rows of fit, as its caller writes them, and what they are.
    _given: tuple[str, str] = ("X, y", "arrays")
    _result: Result
    _description: Description
    _steps: NextSteps

    def _publish(self, result: Result, description: Description) -> None:
        """Set the public attributes; None where the family has no columns."""
        for name in ("coef_path_", "coef_path_conf_int_", "_equations", "_steps"):
            vars(self).pop(name, None)  # of an earlier fit
        self._result, self._description = result, description
        solution, inference = result.solution, result.inference
        self.term_names_ = result.term_names
        self.n_terms_ = len(result.family) or len(result.coef)
        self.coef_ = result.coef
        self.conf_int_ = result.conf_int
        self.r2_ = result.r2
        self.cosine_ = result.cosine
        self.n_equations_ = result.n_equations
        self.verdict_ = result.verdict.label
        self.penalty_ = result.penalty
        for name in ("std_err", "pvalues", "aic", "bic"):
            setattr(self, f"{name}_", getattr(inference, name, None))
        for name in ("condition_number", "vif"):
            setattr(self, f"{name}_", getattr(solution, name, None))
        if result.path is not None:
            self.coef_path_, self.coef_path_conf_int_ = result.path, result.bands

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())  # type: ignore[call-overload]
        if "_result" in state:  # the steps look at equations, which are not pickled
            state["_steps"] = self.next_steps()
        return state

    @property
    def _source(self) -> Any:
        """The estimator that was fitted: of a search the best."""
        return getattr(self, "best_estimator_", self)

    def _fitted(self) -> Result:
        check_is_fitted(self, "coef_")
        return self._result

    def _coefficients(self) -> dict[str, float]:
        result = self._fitted()
        result.regression()
        assert result.stated is not None
        return {self.term_names_[i]: float(result.stated[i]) for i in result.family}

    def _first_model(self) -> Any:
        return self.model_[0] if isinstance(self.model_, list) else self.model_

    def summary(self) -> Summary:
        """Table of the fit for people: text when printed, HTML in notebooks, LaTeX on request.

        Returns
        -------
        summary : Summary
        """
        result = self._fitted()
        steps = self.next_steps()
        meaning = f"What {steps.verdict!r} means: {section_of(steps.verdict)}."
        return replace(
            self._description.summary(result),
            last=f"Next: {steps[0].title} (est.next_steps()). {meaning}",
        )

    def next_steps(self) -> NextSteps:
        """What this verdict on this model calls for, as code that runs.

        Returns
        -------
        steps : NextSteps
            At most three, the best first, each with title, why, code and cost; text when printed,
            HTML in notebooks. The code calls the fitted estimator ``est`` and its rows X and y.
        """
        result = self._fitted()
        source = self._source
        kept = getattr(source, "_equations", None)
        if kept is None and "_steps" in vars(self):  # of an unpickled fit
            return self._steps
        return steps_for(Situation(source, result, kept, source is not self, *self._given))

    def wald_test(self, restrictions: Any, value: Any = None) -> WaldTest:
        """Test linear restrictions on the coefficients, by the covariance of the fit.

        Parameters
        ----------
        restrictions : str, list of str or array-like of shape (q, k)
            Equations in the names of the terms, such as ``"l2[fc1] = l2[fc2]"`` or ``"l2, l1"``
            (both zero), separated by commas; or a matrix with one restriction in each row.
        value : array-like of shape (q,), default=None
            What the rows of the matrix equal; zero by default.

        Returns
        -------
        test : WaldTest
            F statistic and p-value of all restrictions together.

        Raises
        ------
        ValueError
            If a restriction is not linear, or follows from others, or has no standard error.
        """
        solution, inference = self._fitted().regression()
        return wald_test(self._result.term_names, solution.coef, inference, restrictions, value)

    def influence(self, top: int | None = None) -> pd.DataFrame:
        """Leverage, residual and Cook's distance of single equations.

        Parameters
        ----------
        top : int, default=None
            Number of equations to return, those with the largest Cook's distance.

        Returns
        -------
        frame : DataFrame
            ``hat_diag``, ``resid``, ``standard_resid``, ``student_resid`` (by the variance
            without the equation), ``cooks_d``, ``dffits`` and ``dfb_<term>``, as in statsmodels.

        Raises
        ------
        ValueError
            If there is no gradient to explain, the fit is exact, or was unpickled.
        """
        solution, inference = self._fitted().regression()
        if inference.exact:
            raise ValueError(
                "Expected a residual to see influence in, got an exact fit: what is left of every "
                "equation is rounding."
            )
        equations, _ = self._kept("influence")
        return influence(equations.system, solution, equations.places[0].problem, top)

    def by_layer(self) -> pd.DataFrame:
        """Table of the layers: what the equations of each alone say.

        From the pass over the data that was made; nothing is evaluated again. A layer is the module
        that owns some tensors, whatever ``group_by`` is. Draw it by
        ``CoefficientDisplay.from_frame(est.by_layer())``.

        Returns
        -------
        frame : DataFrame
            One row per layer: ``coef``, ``ci_low`` and ``ci_high`` (of several terms ``coef[l2]``
            and so on), ``r2`` and ``verdict`` of the layer's own fit, ``share`` of the squared
            gradient that is in the layer, and ``n_equations``. NaN where these are fewer than
            coefficients.

        Raises
        ------
        ValueError
            If the family is solved as a whole, the equations were given as arrays, or the
            estimator was unpickled.
        """
        self._fitted().regression()
        return table_of_layers(*self._kept("by_layer"))

    def _kept(self, what: str) -> tuple[Equations, Settings]:
        """Equations of the fit and how they were solved."""
        source = self._source
        equations = getattr(source, "_equations", None)
        if equations is None:
            raise ValueError(
                f"{what} needs the equations of the fit, which are not pickled; fit again."
            )
        return equations, source._settings

    def to_frame(self) -> pd.DataFrame:
        """Tidy table of the coefficients for programs.

        Returns
        -------
        frame : DataFrame
            One row per term: term, group, coef, std_err, ci_low, ci_high, statistic, p_value,
            cosine, vif. Of a structured family: term, coef, ci_low, ci_high.
        """
        result = self._fitted()
        return self._description.frame(result)

    def to_json(self) -> str:
        """Coefficients, fit and verdict as JSON text; NaN and infinite numbers are null.

        Returns
        -------
        text : str
        """
        check_is_fitted(self, "coef_")
        terms = [_json_ready(row) for row in self.to_frame().to_dict(orient="records")]
        content = _json_ready(self._description.content(self._result))
        return json.dumps({"terms": terms} | content, indent=2, allow_nan=False)

    def in_model_units(self) -> dict[str, Any]:
        """Coefficients as the model's own parameters, such as ``{"alpha": 3.0}``.

        A coefficient is zero here if leaving it out costs nothing above rounding, in an explained
        fit nothing above what the solver left of the gradient; the others are those without it.

        Returns
        -------
        params : dict of str to float, str or ndarray
            Parameters of the model, with those that state the kind of the penalty (``l1_ratio``,
            ``penalty``, a ``solver`` that has it): what its ``set_params`` takes. In the names of
            the model inside where it is in a pipeline, a search or another container, of ``Ridge``
            for ``RidgeCV`` and the like, of torch for a net (``weight_decay``), and of
            ``fit_regularized`` for statsmodels; :meth:`explicit_estimator` puts them in their
            place. An array with one parameter per output; ``"weight_decay[fc1]"`` of a grouped
            family.

        Raises
        ------
        ValueError
            If the model has no parameter for a term, or none for a negative coefficient: an
            inverse (``C``), or a share of both terms (``l1_ratio``).

        Notes
        -----
        The numbers are those of the fit, whatever ``verdict_`` is: read it first. Where the
        gradient is zero to rounding the penalty is zero, ``alpha=0`` or ``C=inf``.
        """
        from sklearn_implicitreg.results.explicit import model_units  # a light import stays so

        coefficients = self._coefficients()
        return model_units(self._first_model(), coefficients, self._description)

    def explicit_estimator(self) -> Any:
        """Unfitted estimator that states the penalty openly, such as ``Ridge(alpha=3.0)``.

        Returns
        -------
        estimator : object
            A scikit-learn or skorch estimator: the container with the model inside replaced; of a
            search, its best estimator, and ``Ridge`` instead of ``RidgeCV``.

        Raises
        ------
        ValueError
            If the model has no parameter for a term, or a coefficient is negative.
        TypeError
            For a bare module, whose training loop takes ``penalty_``, and for results of
            statsmodels, whose ``fit_regularized`` takes :meth:`in_model_units`.
        """
        from sklearn_implicitreg.results.explicit import explicit_estimator

        stated = self._coefficients()
        penalty = self._result.penalty
        return explicit_estimator(self._first_model(), stated, self._description, penalty)

    def plot(self, ax: Any = None) -> Any:
        """The picture that shows this fit best; :mod:`sklearn_implicitreg.inspection` has all.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            A new figure if None.

        Returns
        -------
        display : object
            Of a search ``FamilyComparisonDisplay``, of a trajectory or a list of endpoints
            ``CoefficientPathDisplay``, of a quadratic family ``SpectrumDisplay``, of groups
            ``CoefficientDisplay``, of one endpoint ``PenaltyShapeDisplay``, or
            ``GradientMatchDisplay`` where the penalty is no function of the single weight.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        from sklearn_implicitreg.inspection.chosen import chosen_display  # a light import stays so

        check_is_fitted(self, "coef_")
        return chosen_display(self).from_estimator(self, ax=ax)

    def recover(self, X: Any = None, y: Any = None, sample_weight: Any = None) -> Recovery:
        """Train on loss and estimated penalty, and compare with the model.

        In closed form for a linear model with squared error and a quadratic penalty, where the
        result also says whether the weights *minimize* L + R; otherwise
        :meth:`explicit_estimator` is trained. An arm without the penalty is there to compare.

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
            If neither form states the penalty, or for given equations or ``known`` parts.
        """
        from sklearn_implicitreg.results.recovery import recover

        self._fitted()
        source = self._source
        if isinstance(source.model_, list):
            raise ValueError(
                f"Expected a fit of one model to recover, got {len(source.model_)}; fit one "
                "of them, and recover it."
            )
        stated = self._coefficients() if isinstance(self.penalty_, FittedPenalty) else {}
        X, y = source._rows(X, y)
        data = Data(X, y, sample_weight)
        return recover(
            source.model_, stated, self._description, self.penalty_, data, source._options()
        )


def _json_ready(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(key): None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in row.items()
    }
