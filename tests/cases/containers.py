"""Pipelines, transformed targets, searches and frozen models around a ridge."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cases.case import Case, fit_frozen
from cases.data import N_DIABETES, X_CANCER, X_DIABETES, X_RAW, Y_CANCER, Y_RAW

_RIDGE_TERMS: dict[str, Any] = {
    "family": "l2",
    "coef": {"l2": 2 / N_DIABETES},
    "own": {"alpha": 2.0},
}
_LOGISTIC = LogisticRegression(C=0.3, solver="newton-cholesky", tol=1e-12)
_LOGISTIC_TERMS: dict[str, Any] = {
    "family": "l2",
    "coef": {"l2": 1 / (2 * 0.3 * len(X_CANCER))},
    "own": {"C": 0.3},
}
_NAMES = np.where(Y_CANCER == 1, "benign", "malignant")
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
    Case(
        "fixed-threshold",
        FixedThresholdClassifier(_LOGISTIC, threshold=0.3, pos_label="malignant"),
        X_CANCER,
        _NAMES,
        **_LOGISTIC_TERMS,
    ),
    Case(
        "tuned-threshold-in-pipeline",
        make_pipeline(StandardScaler(), TunedThresholdClassifierCV(_LOGISTIC, cv=3)),
        X_CANCER,
        Y_CANCER,
        **_LOGISTIC_TERMS,
    ),
    Case("frozen", Ridge(2.0), X_DIABETES, Y_RAW, fit=fit_frozen, **_RIDGE_TERMS),
]
