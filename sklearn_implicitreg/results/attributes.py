"""What a fit found: its public attributes, and the methods that show and convert them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.adapters import Data
from sklearn_implicitreg.penalties import FittedPenalty, StructuredPenalty
from sklearn_implicitreg.problem.parameters import SEED, check, integer
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.fit import Result, Settings
from sklearn_implicitreg.regression.restrictions import WaldTest, wald_test
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.attribution import table_of_shares
from sklearn_implicitreg.results.fit_description import Description
from sklearn_implicitreg.results.held_out import r2_of_left_out
from sklearn_implicitreg.results.identifiability import Identifiability, identifiability_of
from sklearn_implicitreg.results.influence import influence
from sklearn_implicitreg.results.layers import table_of_layers
from sklearn_implicitreg.results.next_steps import NextSteps, section_of, steps_for
from sklearn_implicitreg.results.situation import Situation
from sklearn_implicitreg.results.summary import Summary, json_ready
from sklearn_implicitreg.theory import smallest_detectable

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
    shapes_: pd.DataFrame
    aic_: float | None
    bic_: float | None
    # The rows of fit, as its caller writes them, and what they are.
    _given: tuple[str, str] = ("X, y", "arrays")
    _result: Result
    _description: Description
    _steps: NextSteps

    def _publish(self, result: Result, description: Description) -> None:
        """Set the public attributes; None where the family has no columns."""
        for name in ("coef_path_", "coef_path_conf_int_", "shapes_", "_equations", "_steps"):
            vars(self).pop(name, None)  # of an earlier fit
        self._result, self._description = result, description
        solution, inference = result.solution, result.inference
        self.term_names_ = result.term_names
        self.n_terms_ = (len(result.family) or len(result.coef)) + len(result.shapes)
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
        if result.shapes:
            rows = [(s.value, s.std_err, *s.conf_int) for s in result.shapes]
            names = [shape.name for shape in result.shapes]
            self.shapes_ = pd.DataFrame(rows, names, ["value", "std_err", "ci_low", "ci_high"])

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

    def attribution(self) -> pd.DataFrame:
        """Share of R2 of each term, averaged over the orders in which the terms can enter.

        What collinear terms explain together is shared between them: the shares describe the
        fit, they do not say what caused it. By least squares, whatever ``positive`` is.

        Returns
        -------
        frame : DataFrame
            One row per term: ``share``, whose sum is R2; ``alone``, R2 of the term without the
            others; ``last``, what R2 loses without the term.

        Raises
        ------
        ValueError
            If there are more than 12 terms, the family is solved as a whole, or the estimator was
            unpickled.

        See Also
        --------
        sklearn_implicitreg.identifiability : Which terms can be told apart.

        References
        ----------
        Lindeman, Merenda, Gold (1980), Introduction to Bivariate and Multivariate Analysis, 119.

        Examples
        --------
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import Ridge
        >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
        >>> X, y = load_diabetes(return_X_y=True)
        >>> est = ImplicitRegularizationEstimator(Ridge().fit(X, y), family="l2+l1").fit(X, y)
        >>> est.attribution().round(3).loc["l2"].to_dict()
        {'share': 0.677, 'alone': 1.0, 'last': 0.354}
        """
        self._fitted().regression()
        equations, _ = self._kept("attribution")
        return table_of_shares(equations)

    def identifiability(self) -> Identifiability:
        """Which terms of the family the equations of this fit can tell apart.

        Returns
        -------
        found : Identifiability
            Cosines, dependences in words, groups and advice; ``print`` it.

        Raises
        ------
        ValueError
            If the family is solved as a whole, or the estimator was unpickled.

        See Also
        --------
        sklearn_implicitreg.identifiability : The same for several families.
        """
        self._fitted().regression()
        equations, _ = self._kept("identifiability")
        source = self._source
        family = source._found()
        penalty = source._penalty(equations.places[0].problem, family)
        return identifiability_of(equations, {repr(family): penalty})

    def held_out_r2(self, n_splits: int = 5, random_state: int = 0) -> float:
        """R2 of equations that the coefficients were not chosen by, for families of many terms.

        The equations (one per weight) are divided into parts at random; each part is predicted by
        least squares on the others, non-negative where ``positive`` is set. ``score`` is about rows
        instead. Equations of one tensor are not independent, as rows of data are; what is left over
        of a true family is.

        Parameters
        ----------
        n_splits : int, default=5
            Number of parts.
        random_state : int, default=0
            Seed of the division.

        Returns
        -------
        r2 : float
            Uncentered, below 0 for coefficients that fit noise.

        Raises
        ------
        ValueError
            If there are fewer than two equations in a part, the family is solved as a whole, the
            recording was reduced, or the estimator was unpickled.

        Examples
        --------
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import Ridge
        >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
        >>> X, y = load_diabetes(return_X_y=True)
        >>> est = ImplicitRegularizationEstimator(Ridge().fit(X, y), family="power").fit(X, y)
        >>> est.held_out_r2() < est.r2_
        True
        """
        given = {"n_splits": n_splits, "random_state": random_state}
        check("held_out_r2", given, {"n_splits": integer(2), "random_state": SEED})
        self._fitted().regression()
        equations, settings = self._kept("held_out_r2")
        seed = int(random_state)
        return r2_of_left_out(equations, int(n_splits), seed, settings.positive)

    def smallest_detectable(self, alpha: float = 0.05, power: float = 0.8) -> Array:
        """Smallest coefficients that this model and these rows could show.

        What a two-sided t test by the standard errors of the fit finds with probability ``power``,
        and never less than what stands out from the rounding of the gradient, which is all that is
        known where the gradient is zero.

        Parameters
        ----------
        alpha : float, default=0.05
            Level of the test.
        power : float, default=0.8
            Probability to reject zero, above alpha.

        Returns
        -------
        coef : ndarray of shape (k,)
            In the units of ``coef_``; NaN where a coefficient has no standard error.

        Raises
        ------
        ValueError
            If the power is not above alpha, the family is solved as a whole, or the estimator was
            unpickled.

        See Also
        --------
        sklearn_implicitreg.theory.smallest_detectable : The same for given standard errors.
        """
        solution, inference = self._fitted().regression()
        equations, _ = self._kept("smallest_detectable")
        df = inference.df if inference.df > 0 else np.inf
        seen = smallest_detectable(inference.std_err, df=df, alpha=alpha, power=power)
        rounding = np.linalg.norm([place.rounding for place in equations.places])
        floor = np.where(np.isfinite(solution.vif), rounding * solution.reach, np.nan)
        # Without a gradient there are neither coefficients nor standard errors.
        return np.where(np.isnan(solution.coef), floor, np.maximum(seen, floor))

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
            Of a search also ``family``, the name of the one that was taken, and ``families``, the
            table of all.
        """
        check_is_fitted(self, "coef_")
        return json.dumps(json_ready(self._content()), indent=2, allow_nan=False)

    def _content(self) -> dict[str, Any]:
        """What is written as JSON."""
        terms = self.to_frame().to_dict(orient="records")
        return {"terms": terms} | self._description.content(self._result)

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
        gradient is zero to rounding the penalty is zero, ``alpha=0`` or ``C=inf``; also where the
        verdict is "no signal" on what a solver left, and that is a negative coefficient.
        """
        from sklearn_implicitreg.results.explicit import model_units  # a light import stays so

        coefficients = self._coefficients()
        return model_units(self.model_, coefficients, self._description)

    def explicit_estimator(self) -> Any:
        """Unfitted estimator that states the penalty openly, such as ``Ridge(alpha=3.0)``.

        Returns
        -------
        estimator : object
            A scikit-learn or skorch estimator: the container with the model inside replaced; of a
            search its best estimator, of a classifier with a threshold the one inside, and
            ``Ridge`` instead of ``RidgeCV``.

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

    def recover(  # noqa: PLR0913
        self,
        X: Any = None,
        y: Any = None,
        sample_weight: Any = None,
        *,
        start: str | None = None,
        noise: float = 0.1,
        n_draws: int = 3,
        arms: Sequence[str] = ("recovered", "ablated"),
        force: bool = False,
        n_jobs: int | None = None,
        mode: str = "auto",
        train: Any = None,
        initial: Any = None,
        cache: Any = None,
    ) -> Recovery:
        """Train on loss and estimated penalty, and compare with the model.

        In closed form for a linear model with squared error and a quadratic penalty, where the
        result also says whether the weights *minimize* L + R. For a network L + R is minimized in
        float64 on a copy, by L-BFGS and a trust region with products of the Hessian, from several
        starts. Otherwise :meth:`explicit_estimator` is trained. An arm without the penalty, from
        the same starts and with the same budget, is there to compare.

        Parameters
        ----------
        X, y, sample_weight
            The rows that the model was trained on, as in ``fit``.
        start : {"perturbed", "trained", "fresh"}, default=None
            Where both arms of a network begin: near the model, at it, or where its layers begin.
            None is "perturbed", in ``mode="trainer"`` "fresh". The estimator's ``random_state``
            gives the starts; None gives the same ones each time.
        noise : float, default=0.1
            Size of the perturbation relative to the weights of each tensor.
        n_draws : int, default=3
            Number of starts of a network; at the trained weights there is one.
        arms : sequence of {"recovered", "ablated"}, default=("recovered", "ablated")
            Which arms of a network are trained.
        force : bool, default=False
            Whether a penalty is tried that the verdict calls wrong, or that of early stopping for
            a network that moved far from its start.
        n_jobs : int or None, default=None
            Number of runs of a network at the same time; None means 1.
        mode : {"auto", "trainer"}, default="auto"
            "trainer" trains a network as the model was: all arms from the same start and in the
            same order, other orders, and a start nudged by 1e-7 as the floor of chaos.
        train : callable(model, penalty, seed) -> module, default=None
            Trains a copy of the model on mean loss plus ``penalty(model)``, which is zero without
            R, in the order of the seed: ``random_state`` (None: 0) and, for other orders, the
            integers after it. None is for a skorch net: a clone of it, without weight decay and
            dropout, with the penalty in its loss.
        initial : torch.nn.Module, default=None
            The model before its training, where all arms begin, instead of ``start``.
        cache : str or path, default=None
            Folder where every finished run of a network is kept. After an interruption the same
            call goes on with the runs that are missing, to the same bits. A file of other weights,
            rows, penalties or settings, or a damaged one, is written again. What ``train`` does is
            compared by its source alone.

        Returns
        -------
        recovery : Recovery
            Weights, loss and predictions of the model and of both arms; of a network its
            ``runs`` as well.

        Raises
        ------
        ValueError, TypeError
            If neither form states the penalty, or for given equations or ``known`` parts; if the
            verdict is "out of family" or "not constant" and ``force`` is False, or a penalty that
            rewards large weights leaves L + R without a lower bound; if ``train`` returns anything
            but a trained module of the model's architecture.
        """
        given = dict(locals())
        # Loaded when used: they import more of scikit-learn than all else together.
        from sklearn_implicitreg.results.recovery import recover
        from sklearn_implicitreg.results.recovery.networks import ALLOWED, Plan

        self._fitted()
        check("recover", given, ALLOWED)
        if train is not None and mode != "trainer":
            raise ValueError("Expected mode='trainer' with train=, got mode='auto'.")
        source = self._source
        if isinstance(source.model_, list):
            raise ValueError(
                f"Expected a fit of one model to recover, got {len(source.model_)}; fit one "
                "of them, and recover it."
            )
        remarks = self._remarks(force)
        stated = self._coefficients() if isinstance(self.penalty_, FittedPenalty) else {}
        X, y = source._rows(X, y)
        # A copy: the user's generator stays where it was.
        options = replace(source._options(), random_state=copy.deepcopy(source.random_state))
        seed, verbose = copy.deepcopy(source.random_state), source.verbose
        start = start or ("fresh" if mode == "trainer" else "perturbed")
        how = (seed, n_jobs, verbose, mode, train, initial, force, cache)
        plan = Plan(start, noise, n_draws, tuple(arms), *how)
        data = Data(X, y, sample_weight)
        return recover(
            source.model_, stated, self._description, self.penalty_, data, options, plan, remarks
        )

    def _remarks(self, force: bool) -> tuple[str, ...]:
        """A note on a penalty that the verdict calls wrong; ValueError unless it is forced."""
        if self.verdict_ not in ("out of family", "not constant"):
            return ()
        if not force:
            raise ValueError(
                f"Expected a penalty that holds, got one with the verdict {self.verdict_!r} "
                f"(R2 {self.r2_:.3g}): training with it does not test it. Fit another family, or "
                "give force=True."
            )
        return (f"Trained with force=True: the verdict of the fit is {self.verdict_!r}.",)
