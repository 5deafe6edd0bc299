"""Whether a fitted model predicts by its coefficients and intercept, on a few of the rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import expit

from sklearn_implicitreg.adapters.linear.losses import Array
from sklearn_implicitreg.adapters.linear.problems import rows_of_features
from sklearn_implicitreg.problem.linear_model import LinearModel

_METHODS = ("decision_function", "predict")
_CHECKED = 20  # rows, evenly over those given
# Means of a predictor eta, and how far each moves with it.
_MEANS: tuple[tuple[Callable[[Array], Array], Callable[[Array], Array]], ...] = (
    (lambda eta: eta, np.ones_like),
    (np.exp, np.exp),
    (expit, np.ones_like),
)


def check_linear(model: Any, X: Any, coef: Array, intercept: Array | None, eps: float) -> None:
    """Raise ValueError for a model that does not predict by ``X coef' + intercept``."""
    if isinstance(model, LinearModel) or not any(map(partial(_is_own, model), _METHODS)):
        return  # by definition
    rows = np.unique(np.linspace(0, X.shape[0] - 1, _CHECKED).astype(np.intp))
    some, matrix = rows_of_features(X, rows), np.atleast_2d(coef)
    level = 0.0 if intercept is None else intercept
    eta = np.asarray(some @ matrix.T) + level
    near = eps**0.5 * (np.asarray(abs(some) @ abs(matrix).T) + np.abs(level))
    names = getattr(model, "feature_names_in_", None)
    if names is not None:  # as the model was trained, so that it does not warn
        some = pd.DataFrame(some.toarray() if sparse.issparse(some) else some, columns=names)
    wrong = _wrong_method(model, some, eta, near)
    if wrong:
        raise ValueError(
            f"Expected a model that predicts by X coef_' + intercept_, got {type(model).__name__}, "
            f"whose {wrong} differs from it: it centers or scales X, or combines its coefficients "
            "in another way. Give LinearModel(coef, intercept, loss=...) with the coefficients "
            "that it predicts by, and the rows as they enter."
        )


def _is_own(model: Any, method: str) -> bool:
    """Whether a method is not one of scikit-learn's linear models, which are linear."""
    found = getattr(type(model), method, None)
    known = found is None or found.__module__.startswith("sklearn.linear_model.")
    return method in vars(model) or not known


def _wrong_method(model: Any, some: Any, eta: Array, near: Array) -> str:
    """Method whose answers do not come from the predictor; empty if none."""
    values = _answer(model, "decision_function", some)
    if values is not None:
        values = values.reshape(len(eta), -1)
        if values.shape != eta.shape or not _equal(values, eta, near):
            return "decision_function"
        if eta.shape[1] == 1:
            return ""
    found = _answer(model, "predict", some)
    if found is None:
        return ""
    if hasattr(model, "classes_"):
        return "" if found.ndim > 1 or _same_labels(model, found, eta, near) else "predict"
    found = found.reshape(len(eta), -1)
    if found.shape != eta.shape or found.dtype.kind not in "fiub":
        return "predict"
    with np.errstate(over="ignore", invalid="ignore"):
        agree = [_equal(found, mean(eta), near * slope(eta)) for mean, slope in _MEANS]
    return "" if any(agree) else "predict"


def _answer(model: Any, method: str, some: Any) -> Any:
    """What a method of the model returns; None where it has none, or takes no arrays."""
    if not hasattr(model, method):
        return None
    try:
        found = np.asarray(getattr(model, method)(some))
    except Exception:  # noqa: BLE001  # of the user's code, which may want other rows
        return None
    return found if found.ndim and len(found) == some.shape[0] else None


def _equal(found: Array, expected: Array, near: Array) -> bool:
    # Numbers out of range, such as exp of a predictor that is a mean itself, agree with nothing.
    return bool(np.isfinite(expected).all() and np.all(np.abs(found - expected) <= near))


def _same_labels(model: Any, found: Any, eta: Array, near: Array) -> bool:
    """Whether labels are those of the largest predictor, where rounding cannot change it."""
    n_classes, binary = len(model.classes_), eta.shape[1] == 1
    if eta.shape[1] != (1 if binary and n_classes == 2 else n_classes):
        return False
    codes = (eta[:, 0] > 0).astype(np.intp) if binary else eta.argmax(axis=1)
    ordered = np.sort(np.abs(eta) if binary else eta, axis=1)
    margin = ordered[:, -1] if binary else ordered[:, -1] - ordered[:, -2]
    sure = margin > 2 * near.max(axis=1)
    return bool(np.all(found[sure] == np.asarray(model.classes_)[codes[sure]]))
