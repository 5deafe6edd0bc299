"""The estimator that states an implicit penalty openly."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LogisticRegression,
    MultiTaskElasticNet,
    MultiTaskLasso,
    Ridge,
    RidgeClassifier,
)
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC

from sklearn_implicitreg.endpoints.templates import alone_inside, inner_model
from sklearn_implicitreg.penalties import FittedPenalty
from sklearn_implicitreg.problem.conventions import CONVENTIONS
from sklearn_implicitreg.results.fit_description import Description

# Of one squared error without its 1/2: which estimator states these terms.
_L2_TERMS = frozenset({"l2", "weight_decay"})
_LEAST_SQUARES = {
    **dict.fromkeys(["Ridge", "RidgeCV", "BayesianRidge", "LinearRegression"], Ridge),
    **dict.fromkeys(["Lasso", "LassoCV", "LassoLars", "LassoLarsCV", "LassoLarsIC"], Lasso),
    **dict.fromkeys(["ElasticNet", "ElasticNetCV"], ElasticNet),
    **dict.fromkeys(["MultiTaskLasso", "MultiTaskLassoCV"], MultiTaskLasso),
    **dict.fromkeys(["MultiTaskElasticNet", "MultiTaskElasticNetCV"], MultiTaskElasticNet),
}
_BY_TERMS: dict[tuple[bool, frozenset[str]], type] = {
    (True, frozenset()): Ridge,
    (False, frozenset({"l1"})): Lasso,
    (True, frozenset({"l1"})): ElasticNet,
    (False, frozenset({"l21"})): MultiTaskLasso,
    (True, frozenset({"l21"})): MultiTaskElasticNet,
}
_CLASSIFIERS = {"RidgeClassifierCV": RidgeClassifier, "LogisticRegressionCV": LogisticRegression}
_OF_THE_PROBLEM = {"fit_intercept", "positive", "class_weight", "random_state"}
_OF_THE_SOLVER = {"tol", "max_iter", "solver", "selection", "intercept_scaling", "dual"}


def explicit_estimator(
    model: Any, coef: Mapping[str, float], description: Description, penalty: FittedPenalty | None
) -> Any:
    """Unfitted estimator of the model's kind with the penalty as its own parameters."""
    inside = alone_inside(model)
    if inside is not None:
        return explicit_estimator(inside, coef, description, penalty)
    if isinstance(model, Pipeline):
        last = explicit_estimator(model[-1], coef, description, penalty)
        return clone(model).set_params(**{model.steps[-1][0]: last})
    if isinstance(model, TransformedTargetRegressor):
        inner = explicit_estimator(model.regressor_, coef, description, penalty)
        return clone(model).set_params(regressor=inner)
    if not hasattr(model, "get_params") or penalty is None:
        raise TypeError(
            "Expected a scikit-learn or skorch model, got "
            f"{'given equations' if isinstance(model, str) else type(model).__name__}: there is no "
            f"constructor that takes a penalty; {_by_hand(model, description)}."
        )
    _check_no_reward(coef)
    description.check_all_unknown()
    coef = _stated(coef)
    if hasattr(model, "module_"):
        if description.convention is None:
            raise ValueError(
                "Expected a loss that is a mean over the rows, got a sum: the weight decay that "
                "states the penalty depends on the size of a batch; train on the mean."
            )
        return clone(model).set_params(**_skorch_params(model, coef, penalty))
    _check_scope(model, description, penalty)
    return _sklearn_estimator(model, coef, description)


def _by_hand(model: Any, description: Description) -> str:
    """How a model is trained that is not made by a constructor with a penalty."""
    if isinstance(model, str):
        return "read coef_"
    if description.convention is None or hasattr(model, "parameters"):
        return "add penalty_ to a training loop"
    return "give in_model_units() to the training of its library, such as fit_regularized"


def _check_scope(model: Any, description: Description, penalty: FittedPenalty) -> None:
    """Raise ValueError for a penalty on some weights, which one parameter would put on all."""
    every = {*penalty.tensors, *_penalized(model, description)}
    parts = [set(leaf.names) for leaf, _ in penalty.leaves]
    if description.per_output:  # one for each output
        parts = [set().union(*parts)]
    partial = [part for part in parts if part != every]
    if partial:
        raise ValueError(
            f"Expected a penalty on all of {sorted(every)}, got one on {sorted(partial[0])}: "
            f"{type(model).__name__} has one parameter for all its weights; use penalty_ in a "
            "training loop."
        )


def _penalized(model: Any, description: Description) -> set[str]:
    """Names of all the weights that the model's parameter is about, where they are several."""
    if hasattr(model, "coefs_"):
        return {f"layers.{i}.weight" for i in range(len(model.coefs_))}
    if description.per_output:
        return {f"coef[{k}]" for k in range(len(model.coef_))}
    return set()


def _sklearn_estimator(model: Any, coef: Mapping[str, float], description: Description) -> Any:
    name = type(model).__name__
    terms = frozenset(term.partition("[")[0] for term in coef)
    if name in _LEAST_SQUARES:
        return _least_squares(model, terms, coef, description)
    if description.convention is None:
        raise ValueError(f"{name} has no parameter for a penalty; use penalty_ in a training loop.")
    whole = clone(model)
    if name in _CLASSIFIERS:
        whole = _like(model, _CLASSIFIERS[name], _OF_THE_PROBLEM | _OF_THE_SOLVER)
    return whole.set_params(**_units(whole, coef, description))


def _least_squares(
    model: Any, terms: frozenset[str], coef: Mapping[str, float], description: Description
) -> Any:
    cls = _BY_TERMS.get((bool(terms & _L2_TERMS), terms - _L2_TERMS))
    if cls is None:
        raise ValueError(
            "Expected terms among 'l2' (or 'weight_decay') and 'l1' or 'l21' for a least-squares "
            f"model, got {sorted(terms)}; use penalty_ in a training loop."
        )
    same = _LEAST_SQUARES[type(model).__name__] is cls
    stated = _like(model, cls, _OF_THE_PROBLEM | (_OF_THE_SOLVER if same else set()))
    convention = CONVENTIONS[cls.__name__]
    return stated.set_params(**_units(stated, coef, replace(description, convention=convention)))


def _like(model: Any, cls: type, kept: set[str]) -> Any:
    if type(model) is cls:
        return clone(model)
    new, given = cls(), model.get_params(deep=False)
    return new.set_params(**{key: given[key] for key in kept & set(new.get_params()) & set(given)})


def model_units(model: Any, coef: Mapping[str, float], description: Description) -> dict[str, Any]:
    """Coefficients as the model's own parameters, with those that state the kind of penalty."""
    models = [inner_model(m) for m in (model if isinstance(model, list) else [model])]
    inside, convention = models[0], description.convention
    if convention is None:
        raise ValueError(_no_parameter(models))
    params = description.in_model_units(_stated(coef))
    terms = {name.partition("[")[0] for name in _stated(coef)}
    # The inverse of a negative number, or a share of terms of two signs, is no smaller penalty.
    shared = len(terms) > 1 and any(key.startswith(convention.ratio) for key in params)
    if convention.inverse or shared:
        _check_no_reward(coef)
    own = inside.get_params(deep=False) if hasattr(inside, "get_params") else {}
    if "l1_ratio" not in params or "penalty" not in own:
        return params
    ratio = params["l1_ratio"]
    name = "l2" if ratio == 0 else "l1" if ratio == 1 else "elasticnet"
    if isinstance(inside, LogisticRegression):  # LogisticRegressionCV is one as well
        params |= _logistic_params(own, name)
    else:
        params["penalty"] = name
    if own.get("dual") and name != "l2":
        params["dual"] = False
    if isinstance(inside, LinearSVC):
        del params["l1_ratio"]
        if name == "elasticnet" or (name == "l1" and inside.loss == "hinge"):
            raise ValueError(
                f"Expected a penalty that LinearSVC(loss={inside.loss!r}) has, got {name}; use "
                "penalty_ in a training loop."
            )
    return params


def _no_parameter(models: list[Any]) -> str:
    """What can be read where no parameter of the models states a penalty."""
    model, kinds = models[0], {type(model).__name__ for model in models}
    if len(kinds) > 1:
        return (
            "Expected endpoints of models that state a penalty by the same parameter, got those of "
            f"{sorted(kinds)}; read coef_ instead."
        )
    text = "The model has no parameter for a penalty; read coef_ instead."
    if hasattr(model, "parameters") or hasattr(model, "module_"):
        return (
            f"{text} Beside a loss that is summed over a batch, weight_decay is 2 * coef_ of l2 "
            "times the size of the batch."
        )
    return text


def _check_no_reward(coef: Mapping[str, float]) -> None:
    """Raise ValueError for a negative coefficient, which no model takes."""
    negative = {term: c for term, c in coef.items() if not c >= 0}
    if negative:
        raise ValueError(
            f"Expected coefficients at or above zero, got {negative}: no model has a parameter for "
            "a penalty that rewards large weights. Fit with positive=True, or read verdict_ and "
            "coef_."
        )


def _stated(coef: Mapping[str, float]) -> dict[str, float]:
    """Coefficients of the terms that are not zero everywhere, of all if none is."""
    terms = {name.partition("[")[0] for name, value in coef.items() if value != 0}
    kept = {name: value for name, value in coef.items() if name.partition("[")[0] in terms}
    return kept or dict(coef)


def _units(model: Any, coef: Mapping[str, float], description: Description) -> dict[str, Any]:
    params = model_units(model, coef, description)
    grouped = [key for key in params if "[" in key]
    if grouped:
        raise ValueError(
            f"Expected one coefficient per term, got {grouped}: no scikit-learn estimator takes "
            "one per group; use penalty_ in a training loop."
        )
    return params


def _logistic_params(own: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A solver that has this kind of penalty, which the ratio and strength state."""
    solver, default = own["solver"], LogisticRegression().penalty
    solvers = {"l1": ("saga", "liblinear"), "elasticnet": ("saga",)}.get(name, (solver,))
    params: dict[str, Any] = {} if solver in solvers else {"solver": solvers[0]}
    if params and solver == "liblinear" and own["fit_intercept"]:
        raise ValueError(
            "Expected one kind of penalty for solver='liblinear', got l2 and l1: the solver that "
            "has both does not penalize the intercept, as this one does. Fit one term, or use "
            "penalty_ in a training loop."
        )
    if own["penalty"] != default:  # l1_ratio and C state it, once this one does not
        params["penalty"] = default
    return params


def _skorch_params(net: Any, coef: Mapping[str, float], penalty: FittedPenalty) -> dict[str, Any]:
    """``weight_decay`` of every tensor that the penalty sees, through parameter groups."""
    stated = {term.partition("[")[0]: c for term, c in coef.items()}
    CONVENTIONS["torch"].parameters(stated)  # raises ValueError if weight_decay cannot state a term
    _check_decaying(net.optimizer)
    parameters = dict(net.module_.named_parameters())
    decay: dict[str, float] = {}
    for leaf, coefs in penalty.leaves:
        terms = leaf.penalty.terms({name: parameters[name] for name in leaf.names}, None)
        own = {t: c for t, c in zip(terms, coefs, strict=True) if t.partition("[")[0] in stated}
        of_leaf = CONVENTIONS["torch"].parameters(own)
        for name in leaf.names:
            decay[name] = decay.get(name, 0.0) + of_leaf["weight_decay"]
    values = set(decay.values())
    everywhere = set(decay) == {name for name, p in parameters.items() if p.requires_grad}
    if everywhere and len(values) == 1:
        return {"optimizer__weight_decay": values.pop()}
    groups = [(name, {"weight_decay": value}) for name, value in decay.items()]
    return {"optimizer__weight_decay": 0.0, "optimizer__param_groups": groups}


def _check_decaying(optimizer: Any) -> None:
    known = "weight_decay" in inspect.signature(optimizer).parameters
    if not known or "AdamW" in {cls.__name__ for cls in optimizer.__mro__}:
        what = "decays weights apart from the loss" if known else "has no weight_decay"
        raise ValueError(
            f"Expected an optimizer whose weight_decay is a penalty, such as SGD or Adam, got "
            f"{optimizer.__name__}, which {what}; set another one, or use penalty_ in get_loss."
        )
