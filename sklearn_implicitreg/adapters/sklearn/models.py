"""Fitted scikit-learn models: what each of them minimizes, one row of a table for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from sklearn_implicitreg.adapters.linear.fitted import check_trained, fitted_problem
from sklearn_implicitreg.adapters.linear.given import adapt_given
from sklearn_implicitreg.adapters.linear.losses import (
    KINK_TOL,
    LOSSES,
    Loss,
    loss_of,
    scaled_huber,
    tweedie,
)
from sklearn_implicitreg.adapters.linear.problems import LinearProblem
from sklearn_implicitreg.adapters.linear.rows import (
    class_weights,
    classification_rows,
    one_hot,
    output_names,
    regression_rows,
    row_class_weights,
)
from sklearn_implicitreg.adapters.linear.streams import streamed
from sklearn_implicitreg.adapters.registry import Data, Handler, Options
from sklearn_implicitreg.adapters.sklearn import checks
from sklearn_implicitreg.adapters.sklearn.containers import CONTAINERS, adapt_container
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.problem.conventions import CONVENTIONS, Convention


@dataclass(frozen=True)
class _Estimator:
    """What a class of models minimizes."""

    convention: Convention | None
    loss: Loss | Callable[[Any], Loss] = LOSSES["squared_error"]
    kind: Callable[..., Problem] | None = None  # what makes the problem; `_regressor` by default
    check: Callable[[Any], None] | None = None  # raises ValueError for what has no one objective
    bias: bool = False  # whether liblinear penalizes the intercept
    per_output: bool = False  # whether alpha may have one value for each output
    halved: bool = False  # the convention is of half the squared error

    def loss_of(self, model: Any) -> Loss:
        """Loss of a fitted model."""
        return self.loss if isinstance(self.loss, Loss) else self.loss(model)

    def known_of(self, model: Any, loss: Loss) -> dict[str, Any]:
        """What is known of the model's problem besides its rows and loss."""
        known: dict[str, Any] = {"convention": self.convention}
        if self.halved and loss.whole and self.convention is not None:
            l2, l1 = self.convention.l2, self.convention.l1
            known["convention"] = replace(self.convention, l2=l2 and 2 * l2, l1=l1 and 2 * l1)
        if self.bias and getattr(model, "solver", "liblinear") == "liblinear":
            known["liblinear"] = float(model.intercept_scaling)
        if self.per_output:
            alpha = getattr(model, "alpha_", getattr(model, "alpha", 0.0))  # alpha_: of RidgeCV
            known["per_output"] = np.ndim(model.coef_) == 2 and np.size(alpha) > 1
        return known


def _regressor(row: _Estimator, model: Any, data: Data, options: Options) -> LinearProblem:
    """Losses of numbers, outputs summed."""
    loss = row.loss_of(model)
    known = row.known_of(model, loss) | {"output_names": output_names(data.y)}
    return fitted_problem(model, regression_rows(model, data), loss, options, **known)


def _ridge_classifier(row: _Estimator, model: Any, data: Data, options: Options) -> LinearProblem:
    """Squared errors against targets -1 and +1."""
    if np.ndim(data.y) == 2 and np.shape(data.y)[1] > 1:
        X, y, weight = regression_rows(model, data)
        target, labels = np.asarray(np.sign(y - 0.5)), y
    else:
        X, codes, labels, weight = classification_rows(model, data)
        target = one_hot(codes, len(model.classes_), low=-1.0)
    rows = (X, target, weight * row_class_weights(model, labels))
    loss = replace(row.loss_of(model), words="squared error against targets -1 and +1")
    known = row.known_of(model, loss)
    if output_names(data.y):
        known["output_names"] = output_names(data.y)
    return fitted_problem(model, rows, loss, options, **known)


def _logistic(row: _Estimator, model: Any, data: Data, options: Options) -> LinearProblem:
    """Log loss: binary, or multinomial for three classes and more."""
    X, codes, labels, weight = classification_rows(model, data)
    weights, loss = class_weights(model, labels, weight), row.loss_of(model)
    rows = (X, one_hot(codes, len(model.classes_)), weight * weights[codes])
    known = row.known_of(model, loss) | {"notes": _balanced_note(model)}
    return fitted_problem(model, rows, loss, options, how="mean over rows", **known)


def _one_vs_rest(
    row: _Estimator, model: Any, data: Data, options: Options, balances_weights: bool = False
) -> LinearProblem:
    """A binary problem for each class; the weight of a class is that of its own rows there."""
    X, codes, labels, weight = classification_rows(model, data)
    weights = class_weights(model, labels, weight if balances_weights else None)
    loss, n_classes = row.loss_of(model), len(model.classes_)
    known = row.known_of(model, loss) | {"notes": _balanced_note(model), "how": "mean over rows"}
    if n_classes > 2:
        known["how"] = f"{n_classes} one-vs-rest problems summed, mean over rows"
        own = codes[:, None] == np.arange(n_classes)
        known["loss_weight"] = weight[:, None] * np.where(own, weights, 1.0)
    rows = (X, one_hot(codes, n_classes, low=loss.low), weight * weights[codes])
    return fitted_problem(model, rows, loss, options, **known)


def _balanced_note(model: Any) -> tuple[str, ...]:
    """What a reader should know of balanced class weights."""
    if model.class_weight != "balanced":
        return ()
    return ("class_weight='balanced' was computed from the rows given.",)


def _sgd(row: _Estimator, model: Any, data: Data, options: Options) -> Problem:
    """Stochastic gradient descent: mean over all rows, also those of weight 0."""
    kind = _one_vs_rest if hasattr(model, "classes_") else _regressor
    problem = kind(row, model, data, options)
    # The penalty's strength is against the sum over rows divided by their number.
    n_rows, total = len(problem.weight), float(problem.weight.sum())
    if total == n_rows or problem.convention is None:
        return problem
    convention = replace(problem.convention, per_row=True)
    return replace(problem, convention=convention, n_effective=total / n_rows)


def _own_loss(row: _Estimator, model: Any, data: Data, options: Options) -> Problem:
    """The model's own loss, unless another one is given."""
    check_trained(model)
    if options.loss != "auto":
        return adapt_given(model, data, options)
    if row.check is not None:
        row.check(model)
    return (row.kind or _regressor)(row, model, data, options)


def _named(model: Any) -> Loss:
    """Loss that the model names; what is nearer to a kink than its solver's tolerance is on it."""
    loss = loss_of(model.loss, model)
    near = max(KINK_TOL, float(model.tol or 0.0))
    return loss.of(kink_tol=near) if loss.kinked else loss


def _logistic_loss(model: Any) -> Loss:
    """Loss of a LogisticRegression."""
    if len(model.classes_) <= 2:
        return LOSSES["log_loss"]
    words = f"cross-entropy of {len(model.classes_)} classes"
    return replace(LOSSES["cross_entropy"], words=words)


def _tweedie(model: Any) -> Loss:
    """Deviance of a TweedieRegressor."""
    power = float(model.power)
    link = ("identity" if power <= 0 else "log") if model.link == "auto" else model.link
    return tweedie(power, link)


def _mlp(model: Any, data: Data, options: Options) -> Problem:
    """Multi-layer perceptrons, by way of torch."""
    module = import_module("sklearn_implicitreg.adapters.sklearn.mlp")
    problem: Problem = module.adapt_mlp(model, data, options)
    return problem


_LINEAR_PROGRAM = 1e-7  # tolerance of HiGHS, by which rows are on the kink
_SGD = _Estimator(CONVENTIONS["SGDClassifier"], _named, _sgd, checks.all_rows, halved=True)
_GLM = partial(_Estimator, CONVENTIONS["TweedieRegressor"], halved=True)
_ESTIMATORS: dict[tuple[str, ...], _Estimator] = {
    ("LinearRegression",): _Estimator(None),
    ("Ridge", "RidgeCV"): _Estimator(CONVENTIONS["Ridge"], per_output=True),
    ("RidgeClassifier", "RidgeClassifierCV"): _Estimator(
        CONVENTIONS["Ridge"], kind=_ridge_classifier
    ),
    ("BayesianRidge",): _Estimator(replace(CONVENTIONS["Ridge"], parameter="lambda_/alpha_")),
    ("Lasso", "LassoCV"): _Estimator(CONVENTIONS["Lasso"]),
    ("ElasticNet", "ElasticNetCV"): _Estimator(CONVENTIONS["ElasticNet"]),
    ("MultiTaskLasso", "MultiTaskLassoCV"): _Estimator(CONVENTIONS["MultiTaskLasso"]),
    ("MultiTaskElasticNet", "MultiTaskElasticNetCV"): _Estimator(
        CONVENTIONS["MultiTaskElasticNet"]
    ),
    ("LassoLars", "LassoLarsCV", "LassoLarsIC"): _Estimator(
        CONVENTIONS["Lasso"], check=checks.no_jitter
    ),
    ("LogisticRegression", "LogisticRegressionCV"): _Estimator(
        CONVENTIONS["LogisticRegression"], _logistic_loss, _logistic, checks.logistic, bias=True
    ),
    ("SGDRegressor", "SGDClassifier"): _SGD,
    ("LinearSVC",): _Estimator(
        CONVENTIONS["LinearSVC"],
        _named,
        partial(_one_vs_rest, balances_weights=True),
        checks.one_vs_rest,
        bias=True,
    ),
    ("LinearSVR",): _Estimator(CONVENTIONS["LinearSVR"], _named, bias=True),
    ("PoissonRegressor",): _GLM(LOSSES["poisson"]),
    ("GammaRegressor",): _GLM(LOSSES["gamma"]),
    ("TweedieRegressor",): _GLM(_tweedie),
    ("HuberRegressor",): _Estimator(
        CONVENTIONS["HuberRegressor"], lambda fit: scaled_huber(fit.epsilon, float(fit.scale_))
    ),
    ("QuantileRegressor",): _Estimator(
        CONVENTIONS["QuantileRegressor"],
        lambda fit: loss_of("pinball", fit).of(kink_tol=_LINEAR_PROGRAM),
    ),
}

# By class name, along the model's MRO.
HANDLERS: dict[str, Handler] = {
    **{n: streamed(partial(_own_loss, row)) for names, row in _ESTIMATORS.items() for n in names},
    **dict.fromkeys(["MLPRegressor", "MLPClassifier"], _mlp),
    **dict.fromkeys(CONTAINERS, adapt_container),
}
