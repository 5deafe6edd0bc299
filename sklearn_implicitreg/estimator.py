"""The estimator: from a trained model and its data to the coefficients of its penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sklearn_implicitreg.adapters import Data, adapt
from sklearn_implicitreg.base import (
    PRECOMPUTED,
    AboutModel,
    check_cache,
    check_precomputed,
    check_structured,
)
from sklearn_implicitreg.endpoints.endpoint import Endpoint, endpoint_targets, holds_endpoints
from sklearn_implicitreg.endpoints.precomputed import given_equations
from sklearn_implicitreg.endpoints.targets import EndpointTargets
from sklearn_implicitreg.penalties import Fixed, Penalty, Structured, as_penalty, penalty_with_terms
from sklearn_implicitreg.penalties.spectra import shared_decompositions
from sklearn_implicitreg.problem import Problem, on_all_ranks
from sklearn_implicitreg.problem.frozen import is_trained
from sklearn_implicitreg.problem.parameters import (
    FLAG,
    FOLDER,
    GROUPS,
    NOTHING,
    RANDOM_STATE,
    SCOPE,
    Allowed,
    choice,
    function,
    instance,
    integer,
    number,
)
from sklearn_implicitreg.problem.row_models import memory_in_words
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.fit import Settings, fit
from sklearn_implicitreg.regression.inference import COVARIANCES, OVER_ROWS
from sklearn_implicitreg.regression.shape import resolved
from sklearn_implicitreg.results.attributes import FittedResult
from sklearn_implicitreg.results.criterion import completed_r2
from sklearn_implicitreg.results.fit_description import Description
from sklearn_implicitreg.results.folds import warn_of_order, warn_of_score
from sklearn_implicitreg.results.structured import fit_structured, r2_at
from sklearn_implicitreg.trajectory.input import in_groups_of, trajectory_of, trajectory_targets
from sklearn_implicitreg.trajectory.probes import Probe
from sklearn_implicitreg.trajectory.references import REFERENCE
from sklearn_implicitreg.trajectory.stationarity import with_evidence
from sklearn_implicitreg.trajectory.targets import TrajectoryTargets
from sklearn_implicitreg.trajectory.trajectory import WINDOW

KNOWN = Allowed(
    lambda known: (
        isinstance(known, Mapping)
        and all(isinstance(name, str) and number().holds(coef) for name, coef in known.items())
    ),
    ("a dict of family name to finite coefficient, such as {'weight_decay': 1e-4}",),
)


def _is_device(device: Any) -> bool:
    try:
        return isinstance(device, str | torch.device) and torch.device(device) is not None
    except RuntimeError:
        return False


def _is_path(given: Any) -> bool:
    names = ("windows", "trajectory", "trajectory_")
    held = not isinstance(given, type) and any(hasattr(given, name) for name in names)
    return held or isinstance(given, Probe)


def in_words(X: Any, y: Any, sample_weight: Any) -> tuple[str, str]:
    """The rows that fit was given as its caller writes them, and what they are."""
    named = {"X": X, "y": y, "sample_weight": sample_weight}
    given = [name for name, rows in named.items() if rows is not None]
    if given[2:]:
        given[2] = "sample_weight=sample_weight"
    tensors = isinstance(X, torch.Tensor) and isinstance(y, torch.Tensor)
    loader = getattr(X, "batch_sampler", None) is not None
    return ", ".join(given), "loader" if loader else "tensors" if tensors else "arrays"


_ROW_BLOCKS = 500  # single rows of as many, else random blocks: standard errors to 3 %
DEVICE = Allowed(_is_device, ("a device of torch, such as 'cpu' or 'cuda:0'",))


class ImplicitRegularizationEstimator(FittedResult, AboutModel):
    """Coefficients of the penalty that a trained model behaves as if it had been trained with.

    Training ends where ``grad L + sum_k coef_k grad R_k = 0``: L is the mean data term, R_k the
    penalties of a family. The coefficients are the least-squares solution of these equations.

    Parameters
    ----------
    model : nn.Module, skorch net, scikit-learn estimator, "precomputed" or None
        The trained model, also in a fitted ``Pipeline``, search or ``FrozenEstimator``; shared and
        never changed. An unfitted estimator is a template, cloned and trained. With
        ``"precomputed"`` X and y are the regression; None for a list of :class:`Endpoint` as X.
    family : str, Penalty, Structured, list, or dict of str to callable, default="l2"
        Names of :data:`sklearn_implicitreg.penalties.FAMILIES` (also "ridge", "lasso", "dropout")
        joined by ``+``, functions of the parameters, or one of
        :data:`sklearn_implicitreg.penalties.STRUCTURED`.
    mode : {"endpoint", "trajectory"}, default="endpoint"
        How equations are made: at the trained weights, or from the steps of a trajectory.
    trajectory : Trajectory or probe, default=None
        Of :func:`sklearn_implicitreg.trajectory.record`, or a probe that makes one from the model.
        With ``mode="endpoint"`` it is evidence of whether the weights are stationary.
    reference : {"gradient", "batch", "flow", "applied"} or instance, default="gradient"
        What the trajectory is compared with: the gradient on all rows, on the same batch without
        what was added, the gradient flow, or what the optimizer was given.
    window : None, int or "epoch", default=None
        Steps in one block of equations; None takes the stretch between two marks. "epoch" saves
        time: a family on data takes a pass for each window.
    loss : "auto", None, str, nn loss or callable(output, target), default="auto"
        The data term; known (also as None) for scikit-learn and skorch models and for modules that
        return their loss where labels are given, as Hugging Face's do; else a bare module needs it.
    params : {"auto", "all", "weights", "decay"}, str or callable(name, tensor) -> bool, \
            default="auto"
        The tensors that give equations and are covered by the penalty: by default what the
        model's own penalty covers, else the weight matrices. "weights" are tensors of two or more
        axes, "decay" those outside normalization layers, embeddings among them; another string is
        a regular expression.
    group_by : {None, "layer", "block", "type", "param_group"}, dict or callable(name, tensor), \
            default=None
        One coefficient per group of tensors, as by ``Penalty.per``.
    known : dict of str to float or None, default=None
        Penalties with known coefficients, such as ``{"weight_decay": 1e-4}``.
    positive : bool, default=False
        Keep the coefficients at or above zero.
    covariance : {"auto", "ols", "nonrobust", "hc3", "cluster", "sandwich", "bootstrap"}, \
            default="auto"
        Of the coefficients, over equations. "auto" is the delete-one-tensor jackknife of at
        least four tensors, else hc3; of several endpoints see :class:`Endpoint`. "sandwich" and
        "bootstrap" are over rows at fixed weights, for weights that did not see these rows: would
        other rows say the same?
    confidence_level : float, default=0.95
        Of ``conf_int_``.
    module_mode : {"auto", "eval", "train"}, default="auto"
        State of a module's copy: "auto" is eval, with BatchNorm by batch statistics and
        InstanceNorm by those of each instance, but for layers that were trained at rest: those of a
        recording, or those in evaluation state in a model in training state.
    batch_size : "auto" or int, default="auto"
        Rows in a pass; with BatchNorm the size of the training batches.
    n_passes : "auto" or int, default="auto"
        Readings of a Dataset or loader whose rows differ each time, as augmentation makes them.
        The gradient is their mean, and their spread is noise in the standard errors and the
        verdict. "auto" is one reading, with a warning where rows differ.
    device, dtype : "auto", str or torch.device; "auto", str or torch.dtype, default="auto"
        Where and how gradients are computed (float32 or float64); by default as the model. Sums
        are always float64: a model on a device without it (MPS) is analyzed on the CPU.
    random_state : int, RandomState instance or None, default=None
        Of the masks where ``module_mode="train"``, of the readings of ``n_passes``, and of the
        bootstrap over rows.
    cache : str, path or None, default=None
        Folder that keeps the loss gradient, with ``mode="endpoint"`` only: the next fit of the
        same model on the same rows, of any family, reads it, and a fit that was killed goes on
        where it was. It needs the package safetensors.
    verbose : int, default=0
        Print progress bars over windows of a trajectory and over endpoints if above 0.

    Attributes
    ----------
    coef_ : ndarray of shape (k,)
        One per term, in units of ``L / R_k``; NaN where there is no gradient to explain.
    term_names_ : list of str
        Names of the terms, ``"l2[fc1]"`` for a grouped one.
    n_terms_ : int
        Number of coefficients of the family, without the column of mini-batching, and of shapes.
    std_err_, pvalues_ : ndarray of shape (k,)
        Standard errors and two-sided p-values, over equations unless ``covariance`` is over rows;
        None for a structured family.
    conf_int_ : ndarray of shape (k, 2)
        Confidence intervals; None where a structured family has none.
    r2_ : float
        Uncentered share of the gradient that the penalty explains; see :meth:`score`.
    cosine_ : ndarray of shape (k,)
        Of each term's (a structured family's: the fitted) gradient with minus that of the loss.
    condition_number_, vif_ : float, ndarray of shape (k,)
        Of the columns scaled to unit norm, and uncentered variance inflation factors, or None.
    shapes_ : DataFrame
        Value, standard error and interval of every parameter of the family that was ``"fit"``;
        NaN where there is none, as :meth:`summary` explains. Only there if one was.
    n_equations_ : int
        Rows of the regression.
    aic_, bic_ : float
        Information criteria over equations; minus infinity without residual, or None.
    verdict_ : str
        "no signal", "not identifiable", "not stationary", "supported", "partial" or "out of
        family"; the reason stands in :meth:`summary`.
    coef_path_, coef_path_conf_int_ : ndarray of shape (W, k) and (W, k, 2)
        Of every window or endpoint alone, with intervals; NaN where equations are too few.
    penalty_ : FittedPenalty or StructuredPenalty
        The penalty as a function of a module or dict of parameters.
    model_ : object
        The trained model that was analyzed; a list of them for a list of endpoints.
    n_features_in_, feature_names_in_ : int, ndarray of shape (`n_features_in_`,)
        Number of features of two-dimensional X, and their names where X has them.

    See Also
    --------
    ImplicitRegularizationCV : Chooses among families in one gradient pass.
    endpoints, equations : Retrains an estimator; the regression as a DataFrame.

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

    _allowed: ClassVar = {
        "mode": choice("endpoint", "trajectory"),
        "trajectory": NOTHING
        | Allowed(_is_path, ("a Trajectory, a recorder", "a probe such as ContinueTraining(...)")),
        "reference": REFERENCE,
        "window": WINDOW,
        "loss": NOTHING
        | instance("a name", str)
        | instance("an nn loss", nn.Module)
        | function("(output, target)"),
        "params": SCOPE,
        "group_by": NOTHING | GROUPS,
        "known": NOTHING | KNOWN,
        "positive": FLAG,
        "covariance": choice(*COVARIANCES, *OVER_ROWS),
        "confidence_level": number(above=0, below=1),
        "module_mode": choice("auto", "eval", "train"),
        "batch_size": choice("auto") | integer(1),
        "n_passes": choice("auto") | integer(1),
        "device": choice("auto") | DEVICE,
        "dtype": choice("auto", "float32", "float64") | choice(torch.float32, torch.float64),
        "random_state": RANDOM_STATE,
        "cache": NOTHING | FOLDER,
        "verbose": integer(0) | FLAG,
    }
    _equations: Equations
    _settings: Settings
    _fitted_rows: tuple[Any, Any, Any] = (None, None, None)

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
        n_passes: Any = "auto",
        device: Any = "auto",
        dtype: Any = "auto",
        random_state: Any = None,
        cache: Any = None,
        verbose: int = 0,
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
        self.n_passes = n_passes
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.cache = cache
        self.verbose = verbose

    @on_all_ranks
    @memory_in_words()
    @shared_decompositions()
    def fit(self, X: Any = None, y: Any = None, sample_weight: Any = None) -> Any:
        """Estimate the coefficients at the trained weights.

        Parameters
        ----------
        X : array-like, sparse matrix, DataFrame, tensor, dict, Dataset or DataLoader, default=None
            The rows that the model was trained on; or a list of :class:`Endpoint`, without y.
            None for results of statsmodels, which hold their rows.
        y, sample_weight : array-like of shape (n,) or, of y, (n, outputs), default=None
            Targets (None with a Dataset or DataLoader) and weights of the training.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            For data that do not fit, unknown names, more coefficients than equations, or a cache
            of another gradient.
        MemoryError
            If not even one row fits into the memory, or rows that must pass together do not.
        """
        self.check_parameters()
        self._given = in_words(X, y, sample_weight)
        X, y = self._rows(X, y)
        if isinstance(self.model, str) and self.model == PRECOMPUTED:
            check_precomputed(self)
            equations = given_equations(X, y, sample_weight)
            self.model_ = PRECOMPUTED
            self._check_features(X, reset=True)
            return self._fit_on(equations)
        family = as_penalty(self.family)
        if isinstance(family, Structured):
            check_structured(self, family)
            targets = self._targets(X, y, sample_weight)
            result, description = fit_structured(family, targets, float(self.confidence_level))
            self._publish(result, self._with_unused(description))
            return self
        targets = self._targets(X, y, sample_weight)
        self._fitted_rows = X, y, sample_weight
        return self._fit_to(targets, family)

    @on_all_ranks
    @memory_in_words()
    def score(self, X: Any = None, y: Any = None, sample_weight: Any = None) -> float:
        """Share of the gradient that the coefficients explain once these rows are added.

        A trained model is stationary on its *whole* training set only, so the rows complete those
        of ``fit``: R2 is against the gradient of both, less ``min(N, 10 k max(rho, 1e-10))``. N is
        the R2 that the rows left out cost, scaled to one row in a hundred; rho = (1 - R2) d / (d -
        k) is what k coefficients leave of d equations. Give disjoint parts of the training set, or
        all of it again. A template was trained on the rows of ``fit`` alone: R2 is theirs, and the
        others give N.

        Parameters
        ----------
        X, y, sample_weight
            As in ``fit``; equations and a list of :class:`Endpoint` give the plain R2.

        Returns
        -------
        score : float
            At most 1; 0 where the gradient is zero.

        Raises
        ------
        ValueError
            If the estimator was unpickled, or a fit that needs endpoints gets other data.

        Warns
        -----
        SelectionWarning
            Once a process, where scores cannot tell families apart: below 0; fitted and scored
            rows that are not those of the training; targets outside those of the fitted rows.
        """
        check_is_fitted(self, "coef_")
        X, y = self._rows(X, y)
        coef = np.nan_to_num(self.coef_)
        if isinstance(self.model, str):
            self._check_features(X, reset=False)
            return given_equations(X, y, sample_weight, len(coef)).r2(coef)
        family = as_penalty(self.family)
        structured = isinstance(family, Structured)
        if holds_endpoints(X):
            targets = self._endpoint_targets(X, y, sample_weight, reset=False)
            if structured:
                return r2_at(self._result, targets)
            return targets.equations(self._penalty(targets.problem, self._found())).r2(coef)
        if structured:
            raise ValueError(
                f"Expected a list of Endpoint to score {family!r}, got other data: a "
                "family that is solved as a whole has no columns to keep from fit."
            )
        if isinstance(self.model_, list):
            raise ValueError(
                "Expected a list of Endpoint to score a fit of endpoints, got other data; there "
                "is no one training set that they would complete."
            )
        fitted: Equations | None = getattr(self, "_equations", None)
        if fitted is None:
            raise ValueError(
                "score needs the gradient of the fitted rows, which is not pickled; fit again."
            )
        self._check_features(X, reset=False)
        options = self._options(completing=True)
        others = fitted.targets.completing(adapt(self.model_, Data(X, y, sample_weight), options))
        retrained = not is_trained(self.model)
        found, unrest = completed_r2(
            fitted, others, coef, positive=self.positive, retrained=retrained
        )
        warn_of_order(self._fitted_rows[1], y)
        warn_of_score(found, 0.0 if retrained else unrest)
        return found

    def _targets(self, X: Any, y: Any, sample_weight: Any) -> EndpointTargets | TrajectoryTargets:
        """What the equations of every family have in common; trains a template."""
        self._evidence = None
        check_cache(self)
        if holds_endpoints(X):
            return self._endpoint_targets(X, y, sample_weight, reset=True)
        model = self._train(X, y, sample_weight)
        self._check_features(X, reset=True)
        self.model_ = model
        data, options = Data(X, y, sample_weight), self._options()
        if self.mode == "trajectory":
            if self._row_blocks():
                raise ValueError(
                    f"Expected mode='endpoint' with covariance={self.covariance!r}, got "
                    "mode='trajectory': the weights of a trajectory have seen its rows; use "
                    "covariance='auto', which is over windows."
                )
            given = (self.trajectory, self.reference, self.window)
            return trajectory_targets(self.model_, data, options, *given, verbose=self.verbose)
        problem = adapt(self.model_, data, options)
        if self.trajectory is not None:
            self._evidence = trajectory_of(self.model_, data, problem, self.trajectory)
            problem = in_groups_of(problem, self._evidence)
        return EndpointTargets((problem,), row_blocks=self._row_blocks(), cache=self.cache)

    def _row_blocks(self) -> int:
        """Blocks of rows whose spread a covariance over rows needs."""
        return _ROW_BLOCKS if self.covariance in OVER_ROWS else 0

    def _endpoint_targets(
        self, group: Sequence[Endpoint], y: Any, sample_weight: Any, reset: bool
    ) -> EndpointTargets:
        wrong = ""
        if y is not None or sample_weight is not None:
            wrong = "y=None and sample_weight=None with a list of Endpoint, which bring their own."
        elif self.mode == "trajectory":
            wrong = (
                "mode='endpoint' with a list of Endpoint, got mode='trajectory'; fit each "
                "trajectory alone."
            )
        elif reset and self.trajectory is not None:
            wrong = (
                "trajectory=None with a list of Endpoint, which have no trajectory in common; fit "
                "an endpoint alone with its trajectory."
            )
        elif len(group) > 1 and self._row_blocks():
            wrong = (
                f"one model with covariance={self.covariance!r}, got {len(group)} endpoints: each "
                "was trained on its rows; use covariance='auto', or fit each on rows that it did "
                "not see."
            )
        if wrong:
            raise ValueError(f"Expected {wrong}")
        self._check_features(group[0].X, reset=reset)
        if reset:
            self.model_ = [endpoint.model for endpoint in group]
        targets = endpoint_targets(group, self._options(), self.verbose)
        return replace(targets, row_blocks=self._row_blocks(), cache=self.cache if reset else None)

    def _penalty(self, problem: Problem, penalty: Penalty) -> Penalty:
        """The penalty in the groups asked for, or in the model's own, with the known part."""
        groups = problem.groups if self.group_by is None else self.group_by
        if groups is not None:
            penalty = penalty.per(groups)
        for name, coef in (self.known or {}).items():
            penalty = penalty + Fixed(penalty_with_terms(name), float(coef))
        return penalty

    def _found(self) -> Penalty:
        """The family of the fit, with the shapes that were found."""
        family = penalty_with_terms(self.family)
        values = [shape.value for shape in self._fitted().shapes]
        found: Penalty = family.with_shapes(dict(zip(family.unknown_shapes(), values, strict=True)))
        return found

    def _fit_to(self, targets: EndpointTargets | TrajectoryTargets, family: Penalty) -> Any:
        penalty = self._penalty(targets.problem, family)
        return self._fit_on(resolved(targets, penalty, self.positive).equations(targets))

    def _fit_on(self, equations: Equations) -> Any:
        evidence = getattr(self, "_evidence", None)
        if evidence is not None:
            equations = with_evidence(equations, evidence)
        level = float(self.confidence_level)
        settings = Settings(self.positive, self.covariance, level, self.random_state)
        result = fit(equations, settings)
        self._publish(result, self._with_unused(Description.of(equations, result)))
        self._equations, self._settings = equations, settings
        return self

    def _with_unused(self, description: Description) -> Description:
        """The description with a note on parameters of a trajectory that an endpoint leaves."""
        unused = [] if self.reference == "gradient" else ["reference="]
        unused += [] if self.window is None else ["window="]
        given = [] if self.trajectory is None else ["trajectory= is evidence only"]
        given += [f"{' and '.join(unused)} {'are' if unused[1:] else 'is'} not used"] * bool(unused)
        if self.mode != "endpoint" or not given:
            return description
        note = f"With mode='endpoint' {', '.join(given)}; mode='trajectory' reads the steps."
        return replace(description, notes=(*description.notes, note))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        lost = ("_equations", "_evidence", "_fitted_rows")
        return {key: value for key, value in state.items() if key not in lost}
