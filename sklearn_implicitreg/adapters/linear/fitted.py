"""From a fitted linear model and its rows to a `LinearProblem`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.adapters.linear.losses import Array, Loss
from sklearn_implicitreg.adapters.linear.predictions import check_linear
from sklearn_implicitreg.adapters.linear.problems import (
    LinearProblem,
    parsed,
    row_blocks,
    rows_of_features,
)
from sklearn_implicitreg.adapters.linear.rows import Rows
from sklearn_implicitreg.adapters.registry import Options
from sklearn_implicitreg.problem import Params, check_finite_params, select_params
from sklearn_implicitreg.problem.parameters import as_array, as_numbers, shown


def fitted_problem(
    model: Any,
    rows: Rows,
    loss: Loss,
    options: Options,
    *,
    how: str | None = None,  # the losses are put together
    per_output: bool = False,  # each output has a penalty of its own
    liblinear: float | None = None,  # intercept_scaling of a model with a penalized intercept
    **known: Any,
) -> LinearProblem:
    """Problem of a fitted linear model; what else is known goes into its fields."""
    X, y, weight = rows
    coef, intercept, eps = _coef(model), _intercept(model), _rounding_unit(model)
    n_outputs = 1 if coef.ndim == 1 else coef.shape[0]
    _check_features(coef, X)
    _check_targets(y, n_outputs, loss)
    unit, columns = liblinear or 1.0, known.get("columns")
    every = _parameters(coef, None if intercept is None else intercept / unit, columns, per_output)
    whole = liblinear is not None or columns is not None
    default = {name for name in every if whole or name.startswith("coef")}
    summed = "outputs summed, mean over rows" if n_outputs > 1 else "mean over rows"
    own = {
        "model_name": type(model).__name__,
        "eps": eps,
        "loss_weight": weight[:, None],
        "loss_name": loss.described(how or summed),
        **_names(model, n_outputs),
    }
    named = known.get("output_names") or tuple(map(str, range(n_outputs)))
    check_finite_params(every)
    check_linear(model, X, coef, intercept, eps)
    chosen = select_params(options.params, every, default)
    params = {name: every[name] for name in chosen}
    bounded = getattr(model, "positive", False)
    return LinearProblem(
        params=params,
        left_out=tuple(name for name in every if name not in params),
        free={n: t != 0 for n, t in params.items() if n.startswith("coef")} if bounded else {},
        groups={n: f"output {named[parsed(n)[1] or 0]}" for n in chosen} if per_output else None,
        X=X,
        y=y,
        coef=np.atleast_2d(coef),
        intercept=None if intercept is None else np.atleast_1d(intercept),
        loss=loss,
        weight=weight,
        intercept_unit=unit,
        at_rest=not (intercept is None or whole or loss.kinked or options.penalized_intercept),
        **{**own, **known},
    )


def check_trained(model: Any) -> None:
    """Raise ValueError for a model without what training leaves, or with something else there."""
    check_is_fitted(model)
    coef, intercept = _coef(model), _intercept(model)
    if coef.ndim not in (1, 2) or not coef.size:
        raise _untrained(model, "coef_ of shape (p,) or (K, p)", f"shape {coef.shape}")
    shapes = {(), (1,), np.atleast_2d(coef).shape[:1]}
    if intercept is not None and intercept.shape not in shapes:
        expected = f"intercept_ with a number for each row of coef_ of shape {coef.shape}"
        raise _untrained(model, expected, f"shape {intercept.shape}")
    labels: Any = getattr(model, "classes_", None)
    if (is_classifier(model) or hasattr(model, "classes_")) and np.ndim(labels) != 1:
        raise _untrained(model, "classes_ on one axis", shown(labels))


def _untrained(model: Any, expected: str, found: Any) -> ValueError:
    return ValueError(
        f"Expected a trained {type(model).__name__} with {expected}, got {found}; give the model "
        "as its fit left it, or LinearModel(coef, intercept, loss=...)."
    )


def predictor(model: Any, X: Any) -> Array:
    """Linear predictor ``X coef' + intercept`` of shape (n, K)."""
    intercept, coef = _intercept(model), np.atleast_2d(_coef(model))
    _check_features(coef, X)
    parts = [np.asarray(rows_of_features(X, rows) @ coef.T) for rows in row_blocks(X)]
    eta = np.concatenate(parts)
    return eta if intercept is None else eta + np.atleast_1d(intercept)


def _coef(model: Any) -> Array:
    """``coef_`` in float64, dense also after ``sparsify``."""
    coef = getattr(model, "coef_", None)
    if coef is None:
        raise _untrained(model, "coef_", "none")
    coef = coef.toarray() if sparse.issparse(coef) else coef
    return as_numbers(f"coef_ of {type(model).__name__}", coef).copy()


def _intercept(model: Any) -> Array | None:
    """Fitted intercept, or None if none was fitted."""
    if not getattr(model, "fit_intercept", True):
        return None
    intercept = getattr(model, "intercept_", None)
    if intercept is None:
        if hasattr(model, "intercept_") and not hasattr(model, "fit_intercept"):
            return None  # of a class of the user's
        raise _untrained(model, "intercept_", "none")
    return as_numbers(f"intercept_ of {type(model).__name__}", intercept).copy()


def _check_features(coef: Array, X: Any) -> None:
    """Raise ValueError for rows of other features than those of the coefficients."""
    if coef.shape[-1] != X.shape[1]:
        raise ValueError(
            f"Expected a coefficient for each of the {X.shape[1]} features of X, got coef_ of "
            f"shape {coef.shape}; give the X of the training."
        )


def _parameters(
    coef: Array,
    intercept: Array | None,
    columns: Mapping[str, NDArray[np.intp]] | None,
    per_output: bool,
) -> Params:
    """All trained parameters by name."""
    if columns is not None:
        matrix = np.atleast_2d(coef)
        flat = np.column_stack([matrix, np.zeros(len(matrix))]).reshape(-1)
        return {name: torch.from_numpy(flat[places]) for name, places in columns.items()}
    whole = {"coef": coef} if intercept is None else {"coef": coef, "intercept": intercept}
    if per_output:
        rows = ((name, k, row) for name, value in whole.items() for k, row in enumerate(value))
        whole = {f"{name}[{k}]": np.array(row) for name, k, row in rows}
    return {name: torch.from_numpy(np.asarray(value)) for name, value in whole.items()}


def _names(model: Any, n_outputs: int) -> dict[str, tuple[str, ...] | None]:
    """Names of features as in training, and of the outputs of a classifier of several classes."""
    features = getattr(model, "feature_names_in_", None)
    classes = np.asarray(getattr(model, "classes_", ()))
    several = n_outputs > 1 and classes.shape == (n_outputs,)
    return {
        "feature_names": None if features is None else tuple(map(str, features)),
        "output_names": tuple(map(str, classes)) if several else None,
    }


def _check_targets(y: Array, n_outputs: int, loss: Loss) -> None:
    """Raise ValueError for another number of outputs than the model's or y out of range."""
    if y.shape[1] != n_outputs:
        raise ValueError(
            f"Expected y with the {n_outputs} output(s) that the model was trained on, "
            f"got {y.shape[1]}; give the y of its training."
        )
    if loss.valid is not None:
        loss.check_range(y)


def _rounding_unit(model: Any) -> float:
    """Machine epsilon of the precision that the model was trained in."""
    dtype = as_array(model.coef_).dtype if not sparse.issparse(model.coef_) else model.coef_.dtype
    return float(np.finfo(dtype if dtype.kind == "f" else np.float64).eps)
