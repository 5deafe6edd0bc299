"""Marks of rows that a net was trained on, of which it held none out."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pandas as pd

_MARK = "sklearn_implicitreg.training_rows"


class TrainingRows(np.ndarray):
    """Array whose rows a net was trained on: no validation split is taken from them."""

    of_training = True


def marked(X: Any) -> Any:
    """Rows with the mark, which folds of arrays and DataFrames keep."""
    if isinstance(X, np.ndarray):
        return X.view(TrainingRows)
    if isinstance(X, pd.DataFrame):
        X = X.copy(deep=False)
        X.attrs[_MARK] = True
    else:
        with contextlib.suppress(AttributeError):
            X.of_training = True
    return X


def is_marked(X: Any) -> bool:
    """Whether rows have the mark."""
    return bool(getattr(X, "of_training", False)) or bool(getattr(X, "attrs", {}).get(_MARK))
