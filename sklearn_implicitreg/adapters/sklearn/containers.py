"""Containers of scikit-learn: unwrapped to the trained model inside and the rows it saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_array, check_is_fitted

from sklearn_implicitreg.adapters.linear.problems import LinearProblem
from sklearn_implicitreg.adapters.linear.rows import output_names
from sklearn_implicitreg.adapters.linear.streams import TransformedBlocks, is_stream
from sklearn_implicitreg.adapters.registry import Data, Options, adapt
from sklearn_implicitreg.problem import Problem


def _pipeline(model: Any, data: Data, options: Options) -> Problem:
    """Last step, on the rows as the earlier steps transform them."""
    check_is_fitted(model)
    _check_steps(model)
    if len(model.steps) == 1:
        return adapt(model[-1], data, options)
    if isinstance(model[-1], Pipeline):  # one pipeline, whose steps know the names
        inner = model[-1].steps
        steps = [(str(i), step) for i, (_, step) in enumerate([*model.steps[:-1], *inner])]
        return _pipeline(Pipeline(steps), data, options)
    before = model[:-1]
    streamed = data.y is None and is_stream(data.X)
    X = TransformedBlocks(data.X, before.transform) if streamed else before.transform(data.X)
    problem = adapt(model[-1], replace(data, X=X), options)
    if not isinstance(problem, LinearProblem) or problem.feature_names is not None:
        return problem
    return replace(problem, feature_names=_names_out(before))


def _check_steps(model: Any) -> None:
    """Raise ValueError for steps that gave the last one other rows in training."""
    for name, step in model.steps[:-1]:
        cross_fitted = type(step).__name__ == "TargetEncoder"
        if cross_fitted or hasattr(step, "fit_resample"):
            what = "features by cross-fitting" if cross_fitted else "resampled rows"
            raise ValueError(
                f"Expected a pipeline whose steps transform rows as they did in training, got "
                f"{name!r} ({type(step).__name__}), which gave the model {what} there. Give the "
                "model itself, with the rows that it was trained on."
            )


def _names_out(steps: Any) -> tuple[str, ...] | None:
    """Feature names behind the steps, where all of them give some."""
    try:
        return tuple(str(name) for name in steps.get_feature_names_out())
    except (AttributeError, ValueError):
        return None


def _transformed_target(model: Any, data: Data, options: Options) -> Problem:
    """Regressor inside, on the targets as transformed for it."""
    check_is_fitted(model)
    if data.y is None:
        raise ValueError("This TransformedTargetRegressor requires y, but the target y is None.")
    y = np.asarray(check_array(data.y, ensure_2d=False, dtype="numeric", input_name="y"))
    transformed = model.transformer_.transform(y.reshape(len(y), -1) if y.ndim == 1 else y)
    if transformed.ndim == 2 and transformed.shape[1] == 1:
        transformed = transformed[:, 0]
    elif output_names(data.y) and transformed.shape == y.shape:
        transformed = pd.DataFrame(transformed, columns=data.y.columns)
    return adapt(model.regressor_, replace(data, y=transformed), options)


def _search(model: Any, data: Data, options: Options) -> Problem:
    """Best estimator of a search."""
    if not model.refit:
        raise ValueError(
            f"Expected {type(model).__name__} with refit=True, got refit=False: it keeps no "
            "trained model. Fit it with refit=True, or give the model itself."
        )
    check_is_fitted(model)
    return adapt(model.best_estimator_, data, options)


def _frozen(model: Any, data: Data, options: Options) -> Problem:
    """Estimator inside."""
    return adapt(model.estimator, data, options)


CONTAINERS: dict[str, Callable[[Any, Data, Options], Problem]] = {
    "Pipeline": _pipeline,
    "TransformedTargetRegressor": _transformed_target,
    "GridSearchCV": _search,
    "RandomizedSearchCV": _search,
    "HalvingGridSearchCV": _search,
    "HalvingRandomSearchCV": _search,
    "FrozenEstimator": _frozen,
}
