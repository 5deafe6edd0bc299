"""The estimator: from a trained model and its data to the coefficients of its penalty."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.assembly import Equations, explained
from sklearn_implicitreg.exceptions import CollinearTermsWarning
from sklearn_implicitreg.facts import Facts, precomputed_facts
from sklearn_implicitreg.inference import Verdict, infer, judge
from sklearn_implicitreg.parameters import check_parameters, penalty_of
from sklearn_implicitreg.paths import PathFit, path_targets
from sklearn_implicitreg.penalties import FittedPenalty, Penalty, as_penalty
from sklearn_implicitreg.precomputed import GivenEquations
from sklearn_implicitreg.results import FittedResult, Result, without_numbers
from sklearn_implicitreg.sharing import PRECOMPUTED, AboutModel
from sklearn_implicitreg.solve import Solution, solve
from sklearn_implicitreg.system import GradientSystem
from sklearn_implicitreg.windows import PathEquations

__all__ = ["ImplicitRegularizationEstimator"]

_EPS = float(np.finfo(np.float64).eps)


class ImplicitRegularizationEstimator(FittedResult, AboutModel):
    """Coefficients of the penalty that a trained model behaves as if it had been trained with.

    Training ends where ``grad L + sum_k coef_k grad R_k = 0``: L is the mean data term, R_k the
    penalties of a family. The coefficients are the least-squares solution of these equations,
    one per trained parameter.

    Parameters
    ----------
    model : nn.Module, skorch net, scikit-learn estimator or "precomputed"
        The trained model; it is shared, never changed or copied. A fitted ``Pipeline``,
        ``TransformedTargetRegressor``, search or ``FrozenEstimator`` is looked into. An
        unfitted estimator is a template: ``fit`` clones and trains it. With
        ``"precomputed"`` X is the design and y the target of the regression.
    family : str, Penalty, list of these, or dict of str to callable, default="l2"
        The penalties: a name of :data:`sklearn_implicitreg.penalties.FAMILIES`, names joined
        by ``+``, or functions of the dict of parameters.
    mode : {"endpoint", "trajectory"}, default="endpoint"
        How equations are made: at the trained weights, or from the steps of a recorded path.
    trajectory : Trajectory or probe, default=None
        What :func:`sklearn_implicitreg.trajectory.record` recorded, or a probe that makes a path
        from the trained model. X and y are the rows that the reference is taken on.
    reference : {"gradient", "batch", "flow", "applied"} or instance, default="gradient"
        What the path is compared with: the gradient on all rows, on the same batch without what
        was added, the gradient flow, or what the optimizer was given.
    window : None, int or "epoch", default=None
        Steps in one block of equations; None takes the stretch between two marks.
    loss : "auto", str, nn loss or callable(output, target), default="auto"
        The data term; known for scikit-learn and skorch models, needed for a bare module.
    params : {"auto", "all", "weights"}, str or callable(name, tensor) -> bool, default="auto"
        The tensors that give equations and are covered by the penalty: by default what the
        model's own penalty covers, else the weight matrices; a string is a regular expression.
    group_by : {None, "layer", "param_group"}, dict or callable(name, tensor), default=None
        One coefficient per group of tensors.
    known : dict of str to float or None, default=None
        Penalties with known coefficients, such as ``{"weight_decay": 1e-4}``.
    positive : bool, default=False
        Keep the coefficients at or above zero.
    covariance : {"auto", "ols", "nonrobust", "hc3", "cluster"}, default="auto"
        Of the coefficients, over equations: delete-one-tensor jackknife where there are at
        least four tensors, else hc3.
    confidence_level : float, default=0.95
        Of ``conf_int_``.
    module_mode : {"auto", "eval", "train"}, default="auto"
        State of a module's copy: "auto" is eval, with BatchNorm by batch statistics.
    batch_size : "auto" or int, default="auto"
        Rows in a pass; with BatchNorm the size of the training batches.
    device : "auto", str or torch.device, default="auto"
        Where gradients are computed; the model's own device by default.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Of the gradient's arithmetic; the model's own by default. Sums are always float64.
    random_state : int, RandomState instance or None, default=None
        Of the masks where ``module_mode="train"``.

    Attributes
    ----------
    coef_ : ndarray of shape (k,)
        One per term, in units of ``L / R_k``; NaN where there is no gradient to explain.
    term_names_ : list of str
        Names of the terms, ``"l2[fc1]"`` for a grouped one.
    std_err_, pvalues_ : ndarray of shape (k,)
        Standard errors and two-sided p-values, over equations.
    conf_int_ : ndarray of shape (k, 2)
        Confidence intervals.
    r2_ : float
        Uncentered share of the gradient that the penalty explains. After a fit on a part of
        the training rows it is low even for the true family: a model is stationary on all of
        them (see :meth:`score`).
    cosine_ : ndarray of shape (k,)
        Cosine of each term's gradient with minus the loss gradient.
    condition_number_ : float
        Of the columns, scaled to unit norm.
    vif_ : ndarray of shape (k,)
        Uncentered variance inflation factors.
    n_equations_ : int
        Rows of the regression.
    aic_, bic_ : float
        Information criteria of the regression, with its equations as the sample; they compare
        families at the same equations. Minus infinity where no residual is left.
    verdict_ : str
        "no signal", "not identifiable", "supported", "partial" or "out of family"; the reason
        stands in :meth:`summary`.
    penalty_ : FittedPenalty
        The penalty as a function of a module or dict of parameters.
    model_ : object
        The trained model that was analyzed.
    n_features_in_ : int
        Number of features of two-dimensional X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where X has them.

    See Also
    --------
    ImplicitRegularizationCV : Chooses among families in one gradient pass.
    equations : The regression as a DataFrame.

    References
    ----------
    Rudoler, Tan, Hooker, Kording (2026), Estimating Implicit Regularization in Deep Learning,
    Equation 3.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
    >>> X, y = load_diabetes(return_X_y=True)
    >>> ridge = Ridge(alpha=3.0).fit(X, y)
    >>> est = ImplicitRegularizationEstimator(ridge, family="l2").fit(X, y)
    >>> round(est.in_model_units()["alpha"], 8), est.verdict_
    (3.0, 'supported')
    """

    _equations: Equations | PathEquations | GivenEquations

    def __init__(  # noqa: PLR0913
        self,
        model: Any,
        *,
        family: Any = "l2",
        mode: str = "endpoint",
        trajectory: Any = None,
        reference: Any = "gradient",
        window: int | str | None = None,
        loss: Any = "auto",
        params: Any = "auto",
        group_by: Any = None,
        known: Mapping[str, float] | None = None,
        positive: bool = False,
        covariance: str = "auto",
        confidence_level: float = 0.95,
        module_mode: str = "auto",
        batch_size: Any = "auto",
        device: Any = "auto",
        dtype: Any = "auto",
        random_state: Any = None,
    ):
        self.model = model
        self.family = family
        self.mode = mode
        self.trajectory = trajectory
        self.reference = reference
        self.window = window
        self.loss = loss
        self.params = params
        self.group_by = group_by
        self.known = known
        self.positive = positive
        self.covariance = covariance
        self.confidence_level = confidence_level
        self.module_mode = module_mode
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Estimate the coefficients at the trained weights.

        Parameters
        ----------
        X : array-like, sparse matrix, DataFrame, tensor, dict of arrays, Dataset or DataLoader
            The rows that the model was trained on.
        y : array-like of shape (n,) or (n, outputs), default=None
            Targets; None with a Dataset or DataLoader.
        sample_weight : array-like of shape (n,), default=None
            The weights that the model was trained with.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            For data that do not fit the model or the loss, unknown names, or more
            coefficients than equations.
        """
        check_parameters(self)
        penalty = as_penalty(self.family)
        if isinstance(self.model, str) and self.model == PRECOMPUTED:
            return self._fit_precomputed(X, y, sample_weight)
        self.model_ = self._train(X, y, sample_weight)
        self._check_features(X, reset=True)
        if self.mode == "trajectory":
            return self._fit_path(Data(X, y, sample_weight), penalty)
        problem = adapt(self.model_, Data(X, y, sample_weight), self._options())
        full = penalty_of(penalty, problem.groups, self.group_by, self.known)
        return self._fit_equations(Equations.of(problem, full, problem.gradient()))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Share of the gradient that the coefficients explain once these rows are added.

        A trained model is stationary on its *whole* training set, never on a part of it. So
        the rows complete those of ``fit``: the uncentered R2 is that against the gradient of
        both together, with the noise of having left these rows out scaled to that of one row
        in a hundred. Give disjoint parts of the training set, or all of it again. A search
        over families with ``cv=KFold(20, shuffle=True)`` selects by it.

        Parameters
        ----------
        X, y, sample_weight
            As in ``fit``; for ``model="precomputed"`` equations, whose plain R2 is returned.

        Returns
        -------
        r2 : float
            At most 1; 0 where the gradient is zero.

        Raises
        ------
        ValueError
            If the gradient of the fitted rows was lost (it is not pickled).
        """
        check_is_fitted(self, "coef_")
        coef = np.nan_to_num(self.coef_)
        if isinstance(self.model, str):
            self._check_features(X, reset=False)
            given = GivenEquations.of(X, y, sample_weight, len(coef))
            return explained(given.system.triangle, coef)
        fitted: Equations | PathEquations | None = getattr(self, "_equations", None)
        if fitted is None:
            raise ValueError(
                "score needs the gradient of the fitted rows, which is not pickled; fit again."
            )
        self._check_features(X, reset=False)
        options = self._options(completing=True)
        other = fitted.completing(adapt(self.model_, Data(X, y, sample_weight), options))
        return fitted.completed_r2(other, coef, positive=self.positive, eps=fitted.problem.eps)

    def _options(self, completing: bool = False) -> Options:
        return Options(
            self.loss,
            self.params,
            self.module_mode,
            self.batch_size,
            self.device,
            self.dtype,
            self.random_state,
            completing,
        )

    def _solved(self, system: GradientSystem, eps: float) -> Solution:
        solution = solve(system.triangle, system.n_equations, positive=self.positive, eps=eps)
        if solution.rank < system.n_terms and solution.tss > 0:
            names = [system.term_names[i] for i in solution.dependent]
            warnings.warn(
                f"The gradients of {names} are zero or linearly dependent over these equations: "
                "the coefficients are the minimum-norm answer of many. Drop terms.",
                CollinearTermsWarning,
                stacklevel=4,
            )
        return solution

    def _fit_on(self, equations: Equations | PathEquations) -> Any:
        """Solve equations that were made before."""
        if isinstance(equations, PathEquations):
            return self._fit_windows(equations)
        return self._fit_equations(equations)

    def _fit_equations(self, equations: Equations) -> Any:
        """Solve the equations of a trained model."""
        self._equations = equations
        system = equations.system
        solution = self._solved(system, equations.problem.eps)
        invariant, dominates = equations.scale_invariant()
        tested = equations.tested(solution)
        verdict = judge(
            solution,
            system.term_names,
            rounding=equations.rounding,
            n_violated=tested.n_violated if tested else 0,
            scale_invariant=invariant,
            scale_invariant_dominates=dominates,
            n_kinks=equations.gradient.n_kinks,
        )
        facts = Facts.of(equations, solution, invariant, tested)
        penalty = fitted_penalty(equations, solution)
        return self._finish(system, solution, verdict, facts, penalty)

    def _fit_path(self, data: Data, penalty: Penalty) -> Any:
        """Solve the equations of a path."""
        targets = path_targets(
            self.model_, data, self._options(), self.trajectory, self.reference, self.window
        )
        full = penalty_of(penalty, targets.problem.groups, self.group_by, self.known)
        return self._fit_windows(targets.equations(full))

    def _fit_windows(self, equations: PathEquations) -> Any:
        """Solve the equations of all windows of a path."""
        self._equations = equations
        system = equations.system
        stacked = self._solved(system, equations.problem.eps)
        level = float(self.confidence_level)
        fit = PathFit(equations, stacked, level, self.positive)
        inference = infer(system, stacked, covariance=self.covariance, confidence_level=level)
        self.coef_path_, self.coef_path_conf_int_ = fit.coef_path()
        penalty_ = fitted_penalty(equations.mean, stacked)
        self._publish(
            Result(
                system.term_names,
                fit.solution,
                inference,
                fit.verdict(inference),
                fit.facts(),
                penalty_,
            )
        )
        return self

    def _fit_precomputed(self, X: Any, y: Any, sample_weight: Any) -> Any:
        """Solve equations that were given as arrays."""
        self._equations = GivenEquations.of(X, y, sample_weight)
        system = self._equations.system
        self.model_ = PRECOMPUTED
        self._check_features(X, reset=True)
        solution = self._solved(system, _EPS)
        verdict = judge(solution, system.term_names, rounding=0.0)
        return self._finish(system, solution, verdict, precomputed_facts(), None)

    def _finish(
        self,
        system: GradientSystem,
        solution: Solution,
        verdict: Verdict,
        facts: Facts,
        penalty: FittedPenalty | None,
    ) -> Any:
        """Add standard errors, and set the public attributes."""
        inference = infer(
            system,
            solution,
            covariance=self.covariance,
            confidence_level=float(self.confidence_level),
        )
        if solution.tss**0.5 <= verdict.details["rounding"]:
            solution, inference = without_numbers(solution, inference)
        self._publish(Result(system.term_names, solution, inference, verdict, facts, penalty))
        return self

    def __getstate__(self) -> dict[str, Any]:
        """All but the equations, which hold the data and the gradient."""
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_equations", None)
        return state


def fitted_penalty(equations: Equations, solution: Solution) -> FittedPenalty:
    """The penalty with its coefficients, for the tensors in scope; zero without a gradient."""
    signal = solution.tss**0.5 > equations.rounding
    coef = solution.coef if signal else np.zeros(solution.n_terms)
    start = 0
    leaves = []
    for leaf, n in equations.columns.leaves:
        leaves.append((leaf, tuple(coef[start : start + n].tolist())))
        start += n
    return FittedPenalty(tuple(leaves), tuple(equations.problem.params))
