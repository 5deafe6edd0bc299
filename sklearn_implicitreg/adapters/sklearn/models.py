"""Fitted scikit-learn models: what each of them minimizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.adapters import Data, Options
from sklearn_implicitreg.adapters.linear import deviances, losses, margins
from sklearn_implicitreg.adapters.linear.adapter import LinearFit, linear_problem
from sklearn_implicitreg.adapters.linear.losses import Array, RowLoss
from sklearn_implicitreg.adapters.linear.streams import streamed
from sklearn_implicitreg.adapters.sklearn.any import adapt_any_linear
from sklearn_implicitreg.adapters.sklearn.containers import CONTAINERS
from sklearn_implicitreg.adapters.sklearn.rows import (
    Codes,
    class_weights,
    classification_rows,
    one_hot,
    regression_rows,
    row_class_weights,
)
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.problem.conventions import CONVENTIONS, Convention

__all__ = ["HANDLERS", "adapt_any_linear"]

Handler = Callable[[Any, Data, Options], Problem]

_SQUARED = "squared error, {}mean over rows, no 1/2"
_MARGIN_LOSSES: dict[str, tuple[RowLoss, str]] = {
    "hinge": (margins.hinge, "hinge loss"),
    "squared_hinge": (margins.squared_hinge, "squared hinge loss"),
    "log_loss": (deviances.log_loss, "log loss"),
    "modified_huber": (margins.modified_huber, "modified Huber loss"),
    "perceptron": (margins.perceptron, "perceptron loss"),
}
_KINKED = ("hinge", "perceptron", "epsilon_insensitive")


def _ridge(model: Any, data: Data, options: Options) -> Problem:
    """Sum of squared errors, outputs summed, with one alpha or one for each output."""
    X, y, weight = regression_rows(model, data)
    alpha = getattr(model, "alpha_", getattr(model, "alpha", 0.0))  # alpha_: chosen by RidgeCV
    fit = LinearFit(
        model=model,
        X=X,
        y=y,
        weight=weight,
        row_loss=losses.squared_error,
        loss_name=_squared_name(y),
        convention=CONVENTIONS["Ridge"],
        per_output=np.ndim(model.coef_) == 2 and np.size(alpha) > 1,
    )
    return linear_problem(fit, options)


def _squared_name(y: Array) -> str:
    """The squared error in words."""
    return _SQUARED.format("outputs summed, " if y.shape[1] > 1 else "")


def _ridge_classifier(model: Any, data: Data, options: Options) -> Problem:
    """Squared errors against targets -1 and +1."""
    if np.ndim(data.y) == 2 and np.shape(data.y)[1] > 1:
        X, y, weight = regression_rows(model, data)
        target, labels = np.asarray(np.sign(y - 0.5)), y
    else:
        X, codes, labels, weight = classification_rows(model, data)
        target = one_hot(codes, len(model.classes_), low=-1.0)
    if model.class_weight:
        weight = weight * row_class_weights(model, labels)
    fit = LinearFit(
        model=model,
        X=X,
        y=target,
        weight=weight,
        row_loss=losses.squared_error,
        loss_name=_squared_name(target) + ", against targets -1 and +1",
        convention=CONVENTIONS["Ridge"],
    )
    return linear_problem(fit, options)


def _squared(convention: Convention | None, model: Any, data: Data, options: Options) -> Problem:
    """Squared errors, outputs summed, with a penalty shared by the outputs."""
    X, y, weight = regression_rows(model, data)
    fit = LinearFit(
        model=model,
        X=X,
        y=y,
        weight=weight,
        row_loss=losses.squared_error,
        loss_name=_squared_name(y),
        convention=convention,
    )
    return linear_problem(fit, options)


def _lars(model: Any, data: Data, options: Options) -> Problem:
    """The lasso by least angles."""
    if getattr(model, "jitter", None) is not None:
        raise ValueError(
            "Expected LassoLars with jitter=None, got jitter: it was trained on a perturbed y "
            "that is not kept. Train it without."
        )
    return _squared(CONVENTIONS["Lasso"], model, data, options)


def _logistic(model: Any, data: Data, options: Options) -> Problem:
    """Log loss: binary, or multinomial for three classes and more."""
    X, codes, labels, weight = classification_rows(model, data)
    n_classes = len(model.classes_)
    _check_logistic(model, n_classes)
    balanced = class_weights(model, labels, weight)
    one_problem = model.coef_.shape[0] == 1
    fit = LinearFit(
        model=model,
        X=X,
        y=one_hot(codes, n_classes),
        weight=weight * balanced[codes],
        row_loss=deviances.log_loss if one_problem else deviances.multinomial,
        loss_name="log loss" if one_problem else f"cross-entropy of {n_classes} classes",
        convention=CONVENTIONS["LogisticRegression"],
        liblinear=float(model.intercept_scaling) if model.solver == "liblinear" else None,
        notes=_balanced_note(model),
    )
    return linear_problem(fit, options)


def _check_logistic(model: Any, n_classes: int) -> None:
    """Refuse logistic models that were trained as something else than one objective."""
    if getattr(model, "refit", True) is False:
        raise ValueError(
            "Expected LogisticRegressionCV with refit=True, got refit=False: its coefficients "
            "are means over the folds and minimize no one objective. Fit it with refit=True."
        )
    scheme = getattr(model, "multi_class", "auto")
    one_vs_rest = n_classes > 2 and (scheme == "ovr" or model.solver == "liblinear")
    if one_vs_rest or (n_classes == 2 and scheme == "multinomial"):
        raise ValueError(
            f"Expected a binary or multinomial LogisticRegression, got multi_class={scheme!r} "
            f"with {n_classes} classes. Wrap a binary one in OneVsRestClassifier and analyze "
            "each of its estimators_."
        )


def _balanced_note(model: Any) -> tuple[str, ...]:
    """What a reader should know of balanced class weights."""
    if model.class_weight != "balanced":
        return ()
    return ("class_weight='balanced' was computed from the rows given.",)


def _linear_svc(model: Any, data: Data, options: Options) -> Problem:
    """Hinge losses of liblinear, one problem per class, the intercept penalized."""
    if model.multi_class != "ovr" and len(model.classes_) >= 2:
        raise ValueError(
            f"Expected LinearSVC(multi_class='ovr'), got {model.multi_class!r}, whose loss "
            "couples the classes in another way. Train it with multi_class='ovr'."
        )
    X, codes, labels, weight = classification_rows(model, data)
    weights = class_weights(model, labels, weight)
    fit = LinearFit(
        model=model,
        X=X,
        y=one_hot(codes, len(model.classes_), low=-1.0),
        weight=weight * weights[codes],
        row_loss=_with_kink_tol(model),
        loss_name=_one_vs_rest_name(_MARGIN_LOSSES[model.loss][1], len(model.classes_)),
        convention=CONVENTIONS["LinearSVC"],
        loss_weight=_one_vs_rest_weights(codes, weights, weight),
        liblinear=float(model.intercept_scaling),
        notes=_balanced_note(model),
    )
    return linear_problem(fit, options)


def _one_vs_rest_weights(codes: Codes, weights: Array, sample_weight: Array) -> Array:
    """Weights of the binary problems: that of the class for its rows, 1 for the rest."""
    if len(weights) == 2:
        return np.asarray((sample_weight * weights[codes])[:, None])
    own = codes[:, None] == np.arange(len(weights))
    return np.asarray(sample_weight[:, None] * np.where(own, weights, 1.0))


def _one_vs_rest_name(name: str, n_classes: int) -> str:
    """A binary loss in words."""
    return name if n_classes == 2 else f"{name}, {n_classes} one-vs-rest problems summed"


def _with_kink_tol(model: Any) -> RowLoss:
    """Loss of a model; what is nearer to a kink than the solver's tolerance lies on it."""
    found = _MARGIN_LOSSES[model.loss] if model.loss in _MARGIN_LOSSES else _residual_loss(model)
    loss: Any = found[0]
    if model.loss in _KINKED:
        loss = partial(loss, kink_tol=max(losses.KINK_TOL, float(model.tol or 0.0)))
    result: RowLoss = loss
    return result


def _residual_loss(model: Any) -> tuple[RowLoss, str]:
    """Loss of a residual and its name, of SGD models and LinearSVR."""
    known: dict[str, tuple[RowLoss, str]] = {
        "squared_error": (losses.squared_error, "squared error, no 1/2"),
        "huber": (partial(losses.huber, epsilon=model.epsilon), "Huber loss"),
        "epsilon_insensitive": (
            partial(losses.epsilon_insensitive, epsilon=model.epsilon),
            "epsilon-insensitive loss",
        ),
        "squared_epsilon_insensitive": (
            partial(losses.squared_epsilon_insensitive, epsilon=model.epsilon),
            "squared epsilon-insensitive loss",
        ),
    }
    return known[model.loss]


def _linear_svr(model: Any, data: Data, options: Options) -> Problem:
    """Epsilon-insensitive losses of liblinear, the intercept penalized."""
    X, y, weight = regression_rows(model, data)
    fit = LinearFit(
        model=model,
        X=X,
        y=y,
        weight=weight,
        row_loss=_with_kink_tol(model),
        loss_name=_residual_loss(model)[1],
        convention=CONVENTIONS["LinearSVR"],
        liblinear=float(model.intercept_scaling),
    )
    return linear_problem(fit, options)


def _sgd(model: Any, data: Data, options: Options) -> Problem:
    """Stochastic gradient descent: mean over all rows, also those of weight 0."""
    if model.early_stopping:
        raise ValueError(
            f"Expected {type(model).__name__} with early_stopping=False, got True: the rows that "
            "it held out cannot be told from outside. Train it with early_stopping=False, on the "
            "rows that it is to learn from."
        )
    classifier = hasattr(model, "classes_")
    fit = _sgd_classifier(model, data) if classifier else _sgd_regressor(model, data)
    # The penalty's strength is against the sum over rows divided by their number.
    convention = CONVENTIONS["SGDRegressor" if model.loss == "squared_error" else "SGDClassifier"]
    n_rows, total = len(fit.weight), float(fit.weight.sum())
    if total != n_rows:
        fit = replace(fit, n_effective=total / n_rows)
        convention = replace(convention, per_row=True)
    return linear_problem(replace(fit, convention=convention), options)


def _sgd_regressor(model: Any, data: Data) -> LinearFit:
    """Rows of a regressor trained by SGD."""
    X, y, weight = regression_rows(model, data)
    return LinearFit(
        model=model,
        X=X,
        y=y,
        weight=weight,
        row_loss=_with_kink_tol(model),
        loss_name=_residual_loss(model)[1],
    )


def _sgd_classifier(model: Any, data: Data) -> LinearFit:
    """Rows of a classifier trained by SGD, one problem per class."""
    X, codes, labels, weight = classification_rows(model, data)
    weights = class_weights(model, labels, None)
    low = 0.0 if model.loss == "log_loss" else -1.0
    margin = model.loss in _MARGIN_LOSSES
    name = _MARGIN_LOSSES[model.loss][1] if margin else _residual_loss(model)[1]
    return LinearFit(
        model=model,
        X=X,
        y=one_hot(codes, len(model.classes_), low=low),
        weight=weight * weights[codes],
        row_loss=_with_kink_tol(model),
        loss_name=_one_vs_rest_name(name, len(model.classes_)),
        loss_weight=_one_vs_rest_weights(codes, weights, weight),
        notes=_balanced_note(model),
    )


def _glm(model: Any, data: Data, options: Options) -> Problem:
    """Half-deviances of Poisson, gamma and Tweedie regression."""
    X, y, weight = regression_rows(model, data)
    names = {cls.__name__ for cls in type(model).__mro__}
    convention = CONVENTIONS["TweedieRegressor"]
    loss: RowLoss
    if "PoissonRegressor" in names:
        power, loss, name = 1.0, deviances.poisson, "half Poisson deviance, log link"
    elif "GammaRegressor" in names:
        power, loss, name = 2.0, deviances.gamma, "half gamma deviance, log link"
    else:
        power = float(model.power)
        link = ("identity" if power <= 0 else "log") if model.link == "auto" else model.link
        loss = partial(deviances.tweedie, power=power, link=link)
        name = f"half Tweedie deviance of power {power:g}, {link} link"
        if power == 0:
            name = f"squared error, no 1/2, {link} link"
            loss = losses.squared_error if link == "identity" else loss
            convention = replace(convention, l2=2 * float(convention.l2 or 0.0))
    _check_range(y, power)
    fit = LinearFit(
        model=model, X=X, y=y, weight=weight, row_loss=loss, loss_name=name, convention=convention
    )
    return linear_problem(fit, options)


def _check_range(y: Array, power: float) -> None:
    """Refuse targets that the deviance is not defined for."""
    low = -np.inf if power <= 0 else 0.0
    if np.any(y < low) or (power >= 2 and np.any(y == 0)):
        raise ValueError(
            f"Expected {'y > 0' if power >= 2 else 'y >= 0'} for a deviance of power {power:g}, "
            f"got a smallest y of {y.min():g}: some value(s) of y are out of the valid range of "
            "the loss."
        )


def _huber(model: Any, data: Data, options: Options) -> Problem:
    """Huber's concomitant loss at the fitted scale."""
    X, y, weight = regression_rows(model, data)
    fit = LinearFit(
        model=model,
        X=X,
        y=y,
        weight=weight,
        row_loss=partial(losses.scaled_huber, epsilon=model.epsilon, scale=float(model.scale_)),
        loss_name="Huber loss times the fitted scale",
        convention=CONVENTIONS["HuberRegressor"],
    )
    return linear_problem(fit, options)


def _own_loss(handler: Handler, model: Any, data: Data, options: Options) -> Problem:
    """The model's own loss, unless another one is given."""
    check_is_fitted(model)
    given = not (isinstance(options.loss, str) and options.loss == "auto")
    return adapt_any_linear(model, data, options) if given else handler(model, data, options)


def _mlp(model: Any, data: Data, options: Options) -> Problem:
    """Multi-layer perceptrons, by way of torch."""
    problem: Problem = import_module("sklearn_implicitreg.adapters.sklearn.mlp").adapt_mlp(
        model, data, options
    )
    return problem


_BAYES = replace(CONVENTIONS["Ridge"], parameter="lambda_/alpha_")
_LINEAR: dict[str, Handler] = {
    "LinearRegression": partial(_squared, None),
    **dict.fromkeys(["Ridge", "RidgeCV"], _ridge),
    **dict.fromkeys(["RidgeClassifier", "RidgeClassifierCV"], _ridge_classifier),
    "BayesianRidge": partial(_squared, _BAYES),
    **dict.fromkeys(["Lasso", "LassoCV"], partial(_squared, CONVENTIONS["Lasso"])),
    **dict.fromkeys(["ElasticNet", "ElasticNetCV"], partial(_squared, CONVENTIONS["ElasticNet"])),
    **dict.fromkeys(
        ["MultiTaskLasso", "MultiTaskLassoCV"], partial(_squared, CONVENTIONS["MultiTaskLasso"])
    ),
    **dict.fromkeys(
        ["MultiTaskElasticNet", "MultiTaskElasticNetCV"],
        partial(_squared, CONVENTIONS["MultiTaskElasticNet"]),
    ),
    **dict.fromkeys(["LassoLars", "LassoLarsCV", "LassoLarsIC"], _lars),
    **dict.fromkeys(["LogisticRegression", "LogisticRegressionCV"], _logistic),
    **dict.fromkeys(["SGDRegressor", "SGDClassifier"], _sgd),
    "LinearSVC": _linear_svc,
    "LinearSVR": _linear_svr,
    **dict.fromkeys(["PoissonRegressor", "GammaRegressor", "TweedieRegressor"], _glm),
    "HuberRegressor": _huber,
}

# By class name, along the model's MRO.
HANDLERS: dict[str, Handler] = {
    **{name: streamed(partial(_own_loss, handler)) for name, handler in _LINEAR.items()},
    **dict.fromkeys(["MLPRegressor", "MLPClassifier"], _mlp),
    **CONTAINERS,
}
