"""Rows as scikit-learn's models take them: validated features, targets, labels and weights."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_array
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data
from torch import Tensor

from sklearn_implicitreg.adapters.linear.losses import Array
from sklearn_implicitreg.adapters.registry import Data
from sklearn_implicitreg.problem.parameters import as_array, as_numbers

Codes = NDArray[np.intp]
# Features (ndarray or CSR matrix of shape (n, p)), targets (n, K), sample weights (n,).
Rows = tuple[Any, Array, Array]
# Kept as they come; the products are in float64. Others become float64, which is the first.
_INTEGERS = [f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)]
_KEPT = [np.dtype(name) for name in ("f8", "f4", *_INTEGERS)]

# Products of derivatives with the largest weight keep their digits, and sums of them are finite.
_SMALLEST, _LARGEST = float(np.finfo(np.float64).tiny), 1e300


def regression_rows(model: Any, data: Data) -> Rows:
    """Rows of a fitted regressor, validated in scikit-learn's words."""
    check_is_fitted(model)
    X, y = _validated(model, data, multi_output=True, y_numeric=True)
    y = as_numbers("y", y)
    return X, y.reshape(-1, 1) if y.ndim == 1 else y, _sample_weight(model, data, X.shape[0])


def output_names(y: Any) -> tuple[str, ...] | None:
    """Names of several targets, from the columns of a table."""
    names = tuple(map(str, getattr(y, "columns", ())))
    return names if len(set(names)) == len(names) > 1 else None


def classification_rows(model: Any, data: Data) -> tuple[Any, Codes, Any, Array]:
    """Features, positions in ``classes_``, labels and sample weights of a fitted classifier."""
    check_is_fitted(model)
    X, y = _validated(model, data)
    check_classification_targets(y)
    classes = np.asarray(model.classes_)
    _check_labels(classes, np.asarray(y).reshape(-1))
    ranks = LabelEncoder().fit(classes).transform(y)
    # The encoder sorts; classes that were given may stand in another order.
    codes = np.argsort(classes, kind="stable")[ranks]
    return X, codes, y, _sample_weight(model, data, X.shape[0])


def _check_labels(classes: NDArray[Any], labels: NDArray[Any]) -> None:
    """Raise ValueError for labels that LabelEncoder would cast to those of the model."""
    # It would cut "positive" to "pos", take 257 for 1 among small integers, all for True.
    kind, given = classes.dtype.kind, labels
    if kind == "O":
        return
    if kind in "US":
        given = labels.astype(kind)
    elif labels.dtype.kind == "O":
        given = np.array(labels.tolist())
    known = np.isin(given, classes) if (given.dtype.kind in "US") == (kind in "US") else False
    unknown = np.unique(given[np.broadcast_to(~np.asarray(known), given.shape)]).tolist()
    if unknown:
        raise ValueError(
            f"y contains previously unseen labels: {unknown[:5]}, expected those of the training, "
            f"{classes.tolist()}."
        )


def _validated(model: Any, data: Data, **checks: Any) -> Any:
    try:
        X, y = (as_array(v) if isinstance(v, Tensor) else v for v in (data.X, data.y))
        return validate_data(model, X, y, reset=False, accept_sparse="csr", dtype=_KEPT, **checks)
    except (TypeError, ValueError) as error:
        raw = ("could not convert string", "float() argument", "can't convert Sparse")
        if not str(error).startswith(raw):
            raise  # in scikit-learn's words
        raise type(error)(
            f"Expected numbers in X and y, got others: {error}; encode them."
        ) from error


def one_hot(codes: Codes, n_classes: int, low: float = 0.0) -> Array:
    """1.0 in the column of the row's class, ``low`` elsewhere; of two classes the second alone."""
    hot = np.where(codes[:, None] == np.arange(n_classes), 1.0, low)
    return hot[:, 1:] if n_classes == 2 else hot


def class_weights(model: Any, y: Any, sample_weight: Array | None) -> Array:
    """Weights of the classes, 1.0 for one that does not occur; by total weights where given."""
    classes = np.asarray(model.classes_)
    if not isinstance(model.class_weight, str):
        return np.asarray(
            compute_class_weight(model.class_weight, classes=classes, y=y), np.float64
        )
    present = np.unique(y)
    weighted = "sample_weight" in inspect.signature(compute_class_weight).parameters
    extra = {"sample_weight": sample_weight} if weighted else {}
    found = compute_class_weight(model.class_weight, classes=present, y=y, **extra)
    weights = np.ones(len(classes))
    weights[np.isin(classes, present)] = found
    return weights


def row_class_weights(model: Any, y: Any) -> Array:
    """Weights of the rows by ``class_weight``, if any, balanced by counts of rows."""
    if not getattr(model, "class_weight", None):
        return np.ones(len(y))
    return np.asarray(compute_sample_weight(model.class_weight, y), dtype=np.float64)


def _sample_weight(model: Any, data: Data, n_rows: int) -> Array:
    """Validated sample weights, ones by default."""
    if data.sample_weight is None:
        return np.ones(n_rows)
    weight = check_array(
        as_numbers("sample_weight", data.sample_weight),
        ensure_2d=False,
        dtype=np.float64,
        input_name="sample_weight",
    )
    if weight.shape != (n_rows,):
        raise ValueError(f"Expected sample_weight of shape ({n_rows},), got {weight.shape}.")
    if np.any(weight < 0):
        raise ValueError(
            f"Expected sample_weight at or above zero, got {weight.min():g}; drop those rows."
        )
    with np.errstate(over="ignore"):
        largest, total = weight.max(initial=0.0), weight.sum()
    if 0 < largest < _SMALLEST or total > _LARGEST:
        raise ValueError(
            f"Expected sample_weight of {_SMALLEST:.3g} or more, with a total of {_LARGEST:g} or "
            f"less, got {largest:.3g} as the largest and a total of {total:.3g}; divide all by one "
            "number, and train with them."
        )
    if not has_fit_parameter(model, "sample_weight") and np.ptp(weight) > 0:
        raise ValueError(
            f"Expected no sample_weight, got one: {type(model).__name__} cannot be trained with "
            "weights; leave it out, as in training."
        )
    return np.asarray(weight, dtype=np.float64)
