"""Pipelines, transformed targets, searches and frozen models around a ridge."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, RandomizedSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cases.case import Case, fit_frozen
from cases.data import N_DIABETES, X_DIABETES, X_RAW, Y_RAW

_RIDGE_TERMS: dict[str, Any] = {
    "family": "l2",
    "coef": {"l2": 2 / N_DIABETES},
    "own": {"alpha": 2.0},
}
_ALPHAS = {"alpha": [2.0]}
CONTAINERS = [
    Case("pipeline", make_pipeline(StandardScaler(), Ridge(2.0)), X_RAW, Y_RAW, **_RIDGE_TERMS),
    Case(
        "transformed-target",
        TransformedTargetRegressor(Ridge(2.0), func=np.log, inverse_func=np.exp),
        X_DIABETES,
        Y_RAW,
        **_RIDGE_TERMS,
    ),
    Case(
        "transformed-target-in-pipeline",
        make_pipeline(
            StandardScaler(),
            TransformedTargetRegressor(Ridge(2.0), transformer=StandardScaler()),
        ),
        X_RAW,
        Y_RAW,
        **_RIDGE_TERMS,
    ),
    Case("grid-search", GridSearchCV(Ridge(), _ALPHAS), X_DIABETES, Y_RAW, **_RIDGE_TERMS),
    Case(
        "grid-search-of-pipeline",
        GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [2.0]}),
        X_RAW,
        Y_RAW,
        **_RIDGE_TERMS,
    ),
    Case(
        "randomized-search",
        RandomizedSearchCV(Ridge(), _ALPHAS, n_iter=1),
        X_DIABETES,
        Y_RAW,
        **_RIDGE_TERMS,
    ),
    Case(
        "halving-search",
        HalvingGridSearchCV(Ridge(), _ALPHAS, random_state=0),
        X_DIABETES,
        Y_RAW,
        **_RIDGE_TERMS,
    ),
    Case("frozen", Ridge(2.0), X_DIABETES, Y_RAW, fit=fit_frozen, **_RIDGE_TERMS),
]
