"""From a fitted linear model and its rows to a `LinearProblem`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

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
    coef, intercept = _coef(model), _intercept(model)
    n_outputs = 1 if coef.ndim == 1 else coef.shape[0]
    _check_targets(y, n_outputs, loss)
    unit, columns = liblinear or 1.0, known.get("columns")
    every = _parameters(coef, None if intercept is None else intercept / unit, columns, per_output)
    whole = liblinear is not None or columns is not None
    default = {name for name in every if whole or name.startswith("coef")}
    summed = "outputs summed, mean over rows" if n_outputs > 1 else "mean over rows"
    seen = getattr(model, "feature_names_in_", None)
    eps = _rounding_unit(model)
    own = {
        "model_name": type(model).__name__,
        "eps": eps,
        "feature_names": None if seen is None else tuple(map(str, seen)),
        "loss_weight": weight[:, None],
        "loss_name": loss.described(how or summed),
    }
    check_finite_params(every)
    check_linear(model, X, coef, intercept, eps)
    chosen = select_params(options.params, every, default)
    params = {name: every[name] for name in chosen}
    bounded = getattr(model, "positive", False)
    return LinearProblem(
        params=params,
        left_out=tuple(name for name in every if name not in params),
        free={n: t != 0 for n, t in params.items() if n.startswith("coef")} if bounded else {},
        groups={n: f"output {parsed(n)[1]}" for n in chosen} if per_output else None,
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


def predictor(model: Any, X: Any) -> Array:
    """Linear predictor ``X coef' + intercept`` of shape (n, K)."""
    intercept, coef = _intercept(model), np.atleast_2d(_coef(model))
    parts = [np.asarray(rows_of_features(X, rows) @ coef.T) for rows in row_blocks(X)]
    eta = np.concatenate(parts)
    return eta if intercept is None else eta + np.atleast_1d(intercept)


def _coef(model: Any) -> Array:
    """``coef_`` in float64, dense also after ``sparsify``."""
    coef = model.coef_
    return np.array(coef.toarray() if sparse.issparse(coef) else coef, dtype=np.float64)


def _intercept(model: Any) -> Array | None:
    """Fitted intercept, or None if none was fitted."""
    if not getattr(model, "fit_intercept", True):
        return None
    return np.array(model.intercept_, dtype=np.float64)


def _parameters(
    coef: Array,
    intercept: Array | None,
    columns: Mapping[str, NDArray[np.intp]] | None,
    per_output: bool,
) -> Params:
    """All trained parameters by name."""
    if columns is not None:
        return {name: torch.from_numpy(coef[places]) for name, places in columns.items()}
    whole = {"coef": coef} if intercept is None else {"coef": coef, "intercept": intercept}
    if per_output:
        rows = ((name, k, row) for name, value in whole.items() for k, row in enumerate(value))
        whole = {f"{name}[{k}]": np.array(row) for name, k, row in rows}
    return {name: torch.from_numpy(np.asarray(value)) for name, value in whole.items()}


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
    dtype = np.dtype(model.coef_.dtype)
    return float(np.finfo(dtype if dtype.kind == "f" else np.float64).eps)
