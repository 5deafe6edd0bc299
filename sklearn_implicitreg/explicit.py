"""The estimator that states an implicit penalty openly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge
from sklearn.pipeline import Pipeline

from sklearn_implicitreg.conventions import CONVENTIONS, Convention
from sklearn_implicitreg.penalties import FittedPenalty

__all__ = ["explicit_estimator"]

_LEAST_SQUARES = {
    "Ridge",
    "RidgeCV",
    "Lasso",
    "LassoCV",
    "ElasticNet",
    "ElasticNetCV",
    "LinearRegression",
    "BayesianRidge",
}
# Where L has squared error without its 1/2: which estimator states these terms.
_BY_TERMS: dict[frozenset[str], tuple[type, str]] = {
    frozenset({"l2"}): (Ridge, "Ridge"),
    frozenset({"weight_decay"}): (Ridge, "Ridge"),
    frozenset({"l1"}): (Lasso, "Lasso"),
    frozenset({"l2", "l1"}): (ElasticNet, "ElasticNet"),
}


def explicit_estimator(
    model: Any,
    coef: Mapping[str, float],
    n: float,
    convention: Convention | None,
    penalty: FittedPenalty,
) -> Any:
    """Unfitted estimator of the model's kind that has the penalty as its own parameters.

    ``coef`` holds the coefficient of every term, ``n`` is what a per-row convention divides
    by.

    Raises
    ------
    ValueError
        If the model has no parameter for a term, or a coefficient is negative.
    TypeError
        For a bare module, which has no constructor to call.
    """
    negative = {term: c for term, c in coef.items() if not c >= 0}
    if negative:
        raise ValueError(
            f"Expected coefficients at or above zero, got {negative}: no estimator takes a "
            "penalty that rewards large weights. Fit with positive=True, or read coef_."
        )
    if isinstance(model, FrozenEstimator):
        return explicit_estimator(model.estimator, coef, n, convention, penalty)
    if hasattr(model, "best_estimator_"):
        return explicit_estimator(model.best_estimator_, coef, n, convention, penalty)
    if isinstance(model, Pipeline):
        last = explicit_estimator(model[-1], coef, n, convention, penalty)
        whole = clone(model)
        whole.steps[-1] = (model.steps[-1][0], last)
        return whole
    if isinstance(model, TransformedTargetRegressor):
        inner = explicit_estimator(model.regressor_, coef, n, convention, penalty)
        return clone(model).set_params(regressor=inner)
    if hasattr(model, "module_"):
        return clone(model).set_params(**_skorch_params(model, coef, penalty))
    return _sklearn_estimator(model, coef, n, convention)


def _sklearn_estimator(
    model: Any, coef: Mapping[str, float], n: float, convention: Convention | None
) -> Any:
    name = type(model).__name__
    if name in _LEAST_SQUARES:
        terms = frozenset(coef)
        if terms not in _BY_TERMS:
            raise ValueError(
                f"Expected terms among {[sorted(t) for t in _BY_TERMS]} for a least-squares "
                f"model, got {sorted(terms)}; use penalty_ in a training loop."
            )
        cls, row = _BY_TERMS[terms]
        shared = {"fit_intercept", "positive"} & set(cls().get_params()) & set(model.get_params())
        kept = {key: model.get_params()[key] for key in shared}
        return cls(**kept, **CONVENTIONS[row].parameters(coef, n))
    if not hasattr(model, "get_params"):
        raise TypeError(
            f"Expected a scikit-learn or skorch model, got {name}: a bare module has no "
            "constructor that takes a penalty; add penalty_ to its training loop."
        )
    if convention is None:
        raise ValueError(f"{name} has no parameter for a penalty; use penalty_.")
    params = convention.parameters(coef, n)
    if name in ("LogisticRegression", "LogisticRegressionCV"):
        kept = {k: getattr(model, k) for k in ("fit_intercept", "class_weight", "random_state")}
        solver = "saga" if "l1" in coef else "lbfgs"
        ratio = {"l1_ratio": 1.0} if set(coef) == {"l1"} else {}
        return LogisticRegression(**kept, **params, **ratio, solver=solver)
    if "penalty" in model.get_params():
        params["penalty"] = {True: "elasticnet", False: "l1" if "l1" in coef else "l2"}[
            len(coef) > 1
        ]
    return clone(model).set_params(**params)


def _skorch_params(
    net: Any, coef: Mapping[str, float], penalty: FittedPenalty
) -> dict[str, Any]:
    """``weight_decay`` of every tensor that the penalty sees, through parameter groups."""
    CONVENTIONS["torch"].parameters(
        {term.partition("[")[0]: c for term, c in coef.items()}
    )  # refuses terms that weight_decay cannot state
    decay: dict[str, float] = {}
    for leaf, coefs in penalty.leaves:
        terms = leaf.penalty.terms(
            {name: p for name, p in net.module_.named_parameters() if name in leaf.names}, None
        )
        of_leaf = CONVENTIONS["torch"].parameters(dict(zip(terms, coefs, strict=True)))
        for name in leaf.names:
            decay[name] = decay.get(name, 0.0) + of_leaf["weight_decay"]
    every = {name for name, p in net.module_.named_parameters() if p.requires_grad}
    values = set(decay.values())
    if set(decay) == every and len(values) == 1:
        return {"optimizer__weight_decay": values.pop()}
    groups = [(name, {"weight_decay": value}) for name, value in decay.items()]
    return {"optimizer__weight_decay": 0.0, "optimizer__param_groups": groups}
