"""Estimators in containers: the model inside, and how its ``fit`` takes sample weights."""

from __future__ import annotations

from typing import Any

from sklearn import get_config
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import has_fit_parameter


def routing_enabled() -> bool:
    """Whether scikit-learn routes metadata on request only."""
    return bool(get_config().get("enable_metadata_routing", False))


def inner_model(model: Any) -> Any:
    """Trained model inside of pipelines, searches and other containers."""
    from sklearn.pipeline import Pipeline  # a light import of the package

    if isinstance(model, Pipeline):
        return inner_model(model[-1])
    inside = alone_inside(model)
    if inside is None:
        inside = getattr(model, "regressor_", None)
    return model if inside is None else inner_model(inside)


def alone_inside(model: Any) -> Any:
    """Trained model inside of a container that changes neither rows nor targets, or None."""
    if isinstance(model, FrozenEstimator):
        return model.estimator
    names = {cls.__name__ for cls in type(model).__mro__}
    if names & {"FixedThresholdClassifier", "TunedThresholdClassifierCV"}:
        return model.estimator_
    return getattr(model, "best_estimator_", None)


def weight_name(model: Any) -> str | None:
    """Name by which a template's fit takes sample weights, also through containers."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import Pipeline

    if isinstance(model, Pipeline):
        step, last = model.steps[-1]
        inner = weight_name(last)
        return None if inner is None else f"{step}__{inner}"
    if has_fit_parameter(model, "sample_weight"):
        return "sample_weight"
    if isinstance(model, TransformedTargetRegressor):
        return weight_name(LinearRegression() if model.regressor is None else model.regressor)
    is_search = hasattr(model, "estimator") and hasattr(model, "refit")
    return weight_name(model.estimator) if is_search else None
