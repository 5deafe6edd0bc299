"""Containers of scikit-learn: unwrapped to the trained model inside and the rows it saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils.validation import check_array, check_is_fitted

from sklearn_implicitreg.adapters.linear.problems import LinearProblem
from sklearn_implicitreg.adapters.linear.rows import output_names
from sklearn_implicitreg.adapters.linear.streams import TransformedBlocks, is_stream
from sklearn_implicitreg.adapters.registry import Data, Options, adapt
from sklearn_implicitreg.adapters.training_rows import is_marked, marked
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.problem.frozen import FrozenModel


def adapt_container(model: Any, data: Data, options: Options) -> Problem:
    """Problem of the model inside, on the rows as it saw them."""
    model = _flat(model)
    inner, own = _opened(model, data)
    problem = adapt(inner, own, options)
    if len(getattr(model, "steps", ())) < 2 or not isinstance(problem, LinearProblem):
        return problem
    names = problem.feature_names
    return replace(problem, feature_names=_names_out(model[:-1]) if names is None else names)


def innermost(model: Any, data: Data) -> tuple[Any, Data]:
    """The trained model inside of all containers, and the rows as it saw them."""
    while True:
        if isinstance(model, FrozenModel):
            model = model.model
        if not any(cls.__name__ in CONTAINERS for cls in type(model).__mro__):
            return model, data
        model, data = _opened(model, data)


def _flat(model: Any) -> Any:
    """A pipeline that ends in a pipeline as one, whose steps know the names."""
    while isinstance(model, Pipeline) and isinstance(model[-1], Pipeline):
        steps = [*model.steps[:-1], *model[-1].steps]
        model = Pipeline([(str(i), step) for i, (_, step) in enumerate(steps)])
    return model


def _opened(model: Any, data: Data) -> tuple[Any, Data]:
    names = (cls.__name__ for cls in type(model).__mro__)
    return CONTAINERS[next(name for name in names if name in CONTAINERS)](model, data)


def _pipeline(model: Any, data: Data) -> tuple[Any, Data]:
    """Last step, on the rows as the earlier steps transform them."""
    check_is_fitted(model)
    _check_steps(model)
    if len(model.steps) == 1:
        return model[-1], data
    before = model[:-1]
    if data.y is None and is_stream(data.X):
        return model[-1], replace(data, X=TransformedBlocks(data.X, before.transform))
    X = before.transform(data.X)
    return model[-1], replace(data, X=marked(X) if is_marked(data.X) else X)


def _check_steps(model: Any) -> None:
    """Raise ValueError for steps that gave the last one other rows in training."""
    for name, step in _steps(model.steps[:-1]):
        cross_fitted = type(step).__name__ == "TargetEncoder"
        if cross_fitted or hasattr(step, "fit_resample"):
            what = "features by cross-fitting" if cross_fitted else "resampled rows"
            raise ValueError(
                f"Expected a pipeline whose steps transform rows as they did in training, got "
                f"{name!r} ({type(step).__name__}), which gave the model {what} there. Give the "
                "model itself, with the rows that it was trained on."
            )


def _steps(named: Any) -> Iterator[tuple[str, Any]]:
    """Steps with their names, also those inside of pipelines, unions and column transformers."""
    for name, step, *_ in named:
        yield name, step
        if isinstance(step, Pipeline):
            yield from _steps(step.steps)
        elif isinstance(step, FeatureUnion):
            yield from _steps(step.transformer_list)
        elif isinstance(step, ColumnTransformer):
            yield from _steps(step.transformers_)


def _names_out(steps: Any) -> tuple[str, ...] | None:
    """Feature names behind the steps, where all of them give some."""
    try:
        return tuple(str(name) for name in steps.get_feature_names_out())
    except (AttributeError, ValueError):
        return None


def _transformed_target(model: Any, data: Data) -> tuple[Any, Data]:
    """Regressor inside, on the targets as transformed for it."""
    check_is_fitted(model)
    if data.y is None:
        raise ValueError("This TransformedTargetRegressor requires y, but the target y is None.")
    y = np.asarray(check_array(data.y, ensure_2d=False, dtype="numeric", input_name="y"))
    transformed = model.transformer_.transform(y.reshape(len(y), -1) if y.ndim == 1 else y)
    if transformed.ndim == 2 and transformed.shape[1] == 1 and y.ndim == 1:
        transformed = transformed[:, 0]
    elif output_names(data.y) and transformed.shape == y.shape:
        transformed = pd.DataFrame(transformed, columns=data.y.columns)
    return model.regressor_, replace(data, y=transformed)


def _search(model: Any, data: Data) -> tuple[Any, Data]:
    """Best estimator of a search."""
    if not model.refit:
        raise ValueError(
            f"Expected {type(model).__name__} with refit=True, got refit=False: it keeps no "
            "trained model. Fit it with refit=True, or give the model itself."
        )
    check_is_fitted(model)
    return model.best_estimator_, data


def _threshold(model: Any, data: Data) -> tuple[Any, Data]:
    """Classifier inside, which is trained on all rows before or after its threshold is chosen."""
    check_is_fitted(model)
    if not getattr(model, "refit", True) and model.cv != "prefit":
        raise ValueError(
            f"Expected {type(model).__name__} with refit=True, got refit=False: its classifier was "
            "trained on a part of the rows. Fit it with refit=True, or give the classifier itself, "
            "with the rows that it was trained on."
        )
    return model.estimator_, data


def _frozen(model: Any, data: Data) -> tuple[Any, Data]:
    """Estimator inside."""
    return model.estimator, data


CONTAINERS: dict[str, Callable[[Any, Data], tuple[Any, Data]]] = {
    "Pipeline": _pipeline,
    "TransformedTargetRegressor": _transformed_target,
    "GridSearchCV": _search,
    "RandomizedSearchCV": _search,
    "HalvingGridSearchCV": _search,
    "HalvingRandomSearchCV": _search,
    "FixedThresholdClassifier": _threshold,
    "TunedThresholdClassifierCV": _threshold,
    "FrozenEstimator": _frozen,
}
