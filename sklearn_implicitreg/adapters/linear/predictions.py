"""Whether a fitted model predicts by its coefficients and intercept, on a few of the rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import expit, logit

from sklearn_implicitreg.adapters.linear.losses import Array
from sklearn_implicitreg.adapters.linear.problems import rows_of_features
from sklearn_implicitreg.problem.linear_model import LinearModel

_METHODS = ("decision_function", "predict")
_CHECKED, _MANY = 20, 1000  # rows, evenly over those given; to know another link by
_ROUNDED = 1e-4  # relative error of predictions that were rounded
_SINGLE = 10 * float(np.finfo(np.float32).eps)  # of the summands of a predictor in float32
# Means of a predictor eta, how far each moves with it, and the predictor of a mean.
_Map = Callable[[Array], Array]
_MEANS: tuple[tuple[_Map, _Map, _Map], ...] = (
    (lambda eta: eta, np.ones_like, lambda mean: mean),
    (np.exp, np.exp, np.log),
    (expit, np.ones_like, logit),
)


def check_linear(model: Any, X: Any, coef: Array, intercept: Array | None, eps: float) -> None:
    """Raise ValueError for a model that does not predict by ``X coef' + intercept``."""
    if isinstance(model, LinearModel) or not any(map(partial(_is_own, model), _METHODS)):
        return  # by definition
    matrix, level = np.atleast_2d(coef), 0.0 if intercept is None else intercept
    at = partial(_predicted, model, X, matrix, level, max(eps**0.5, _SINGLE))
    wrong = _wrong_method(model, *at(_CHECKED))
    if wrong and not (wrong == "predict" and _other_link(model, *at(_MANY))):
        raise ValueError(
            f"Expected a model that predicts by X coef_' + intercept_, got {type(model).__name__}, "
            f"whose {wrong} differs from it: it centers or scales X, combines its coefficients "
            "in another way, or has another link. Give LinearModel(coef, intercept, loss=...) with "
            "the coefficients that it predicts by, and the rows as they enter."
        )


def _predicted(
    model: Any, X: Any, matrix: Array, level: Any, unit: float, n_rows: int
) -> tuple[Any, Array, Array]:
    """Some rows as the model takes them, their predictor, and how close predictions must be."""
    rows = np.unique(np.linspace(0, X.shape[0] - 1, n_rows).astype(np.intp))
    some = rows_of_features(X, rows)
    eta = np.asarray(some @ matrix.T) + level
    near = unit * (np.asarray(abs(some) @ abs(matrix).T) + np.abs(level)) + _ROUNDED * np.abs(eta)
    names = getattr(model, "feature_names_in_", None)
    if names is not None:  # as the model was trained, so that it does not warn
        some = pd.DataFrame(some.toarray() if sparse.issparse(some) else some, columns=names)
    return some, eta, near


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
        agree = [_equal(found, mean(eta), near * slope(eta)) for mean, slope, _ in _MEANS]
    return "" if any(agree) else "predict"


def _other_link(model: Any, some: Any, eta: Array, near: Array) -> bool:
    """Whether predictions are a strictly monotone function of one predictor, of another link."""
    found = _answer(model, "predict", some)
    if hasattr(model, "classes_") or found is None or found.size != eta.size:
        return False
    if eta.shape[1] != 1 or found.dtype.kind != "f" or not np.isfinite(found).all():
        return False
    order = np.argsort(eta[:, 0])
    eta, near, found = eta[order, 0], near[order, 0], found.reshape(-1)[order]
    if found.min() >= 0 and found.max() <= 1:  # probabilities, which end in rounding
        inner = (found > _ROUNDED) & (found < 1 - _ROUNDED)
        eta, near, found = eta[inner], near[inner], found[inner]
    sure = np.flatnonzero(np.diff(eta) > near[1:] + near[:-1])
    steps = np.diff(found)[sure]
    if len(sure) < _CHECKED // 2 or not ((steps > 0).all() or (steps < 0).all()):
        return False
    # A line after a known link is no other link: the features were centered or scaled.
    with np.errstate(divide="ignore", invalid="ignore"):
        return not any(_is_line(eta, inverse(found), near) for *_, inverse in _MEANS)


def _is_line(eta: Array, found: Array, near: Array) -> bool:
    if not np.isfinite(found).all():
        return False
    middle = eta.mean()
    slope = (found @ (eta - middle)) / np.sum((eta - middle) ** 2)
    left = found - found.mean() - slope * (eta - middle)
    return bool(np.all(np.abs(left) <= 2 * abs(slope) * near.max()))


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
