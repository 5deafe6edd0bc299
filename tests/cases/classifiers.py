"""Logistic regression and support vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.svm import LinearSVC, LinearSVR

from cases.case import Case
from cases.data import (
    N_CANCER,
    N_DIABETES,
    N_WINE,
    S_CANCER,
    SPARSE_CANCER,
    W_CANCER,
    WINE_NAMES,
    X_CANCER,
    X_DIABETES,
    X_WINE,
    Y_CANCER,
    Y_UNIT,
    Y_WINE,
)

_NEWTON: dict[str, Any] = {"solver": "newton-cholesky", "tol": 1e-10, "max_iter": 200}
_SAGA: dict[str, Any] = {"solver": "saga", "tol": 1e-12, "max_iter": 20_000, "random_state": 0}
_LIBLINEAR: dict[str, Any] = {"solver": "liblinear", "tol": 1e-12, "max_iter": 5000}
_DICT_TOTAL = float(np.where(Y_CANCER == 0, 2.0, 0.5).sum())
LOGISTIC = [
    Case(
        "logistic",
        LogisticRegression(C=0.3, **_NEWTON),
        X_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 1 / (2 * 0.3 * N_CANCER)},
        {"C": 0.3},
    ),
    Case(
        "logistic-lbfgs",
        LogisticRegression(C=0.3, tol=1e-10, max_iter=5000),
        X_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 1 / (2 * 0.3 * N_CANCER)},
        {"C": 0.3},
    ),
    Case(
        "logistic-sparse",
        LogisticRegression(C=0.3, **_NEWTON),
        SPARSE_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 1 / (2 * 0.3 * N_CANCER)},
        {"C": 0.3},
    ),
    Case(
        "logistic-weight-decay",
        LogisticRegression(C=0.3, **_NEWTON),
        X_CANCER,
        Y_CANCER,
        "weight_decay",
        {"weight_decay": 1 / (0.3 * N_CANCER)},
        {"C": 0.3},
    ),
    Case(
        "logistic-class-weight-dict",
        LogisticRegression(C=0.3, class_weight={0: 2.0, 1: 0.5}, **_NEWTON),
        X_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 1 / (2 * 0.3 * _DICT_TOTAL)},
        {"C": 0.3},
    ),
    Case(
        "logistic-balanced-weights",
        LogisticRegression(C=0.3, class_weight="balanced", **_NEWTON),
        X_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 1 / (2 * 0.3 * S_CANCER)},  # balancing keeps the total weight
        {"C": 0.3},
        W_CANCER,
    ),
    Case(
        "logistic-multinomial",
        LogisticRegression(C=0.3, **_NEWTON),
        X_WINE,
        WINE_NAMES,
        "l2",
        {"l2": 1 / (2 * 0.3 * N_WINE)},
        {"C": 0.3},
    ),
    Case(
        "logistic-l1-liblinear",
        LogisticRegression(C=0.3, l1_ratio=1, fit_intercept=False, **_LIBLINEAR),
        X_CANCER,
        Y_CANCER,
        "l1",
        {"l1": 1 / (0.3 * N_CANCER)},
        {"C": 0.3},
    ),
    Case(
        "logistic-l1-multinomial",
        LogisticRegression(C=0.3, l1_ratio=1, **_SAGA),
        X_WINE,
        Y_WINE,
        "l1",
        {"l1": 1 / (0.3 * N_WINE)},
        {"C": 0.3},
    ),
    Case(
        "logistic-elastic-net",
        LogisticRegression(C=0.3, l1_ratio=0.4, **_SAGA),
        X_WINE,
        Y_WINE,
        "l1+l2",
        {"l1": 0.4 / (0.3 * N_WINE), "l2": 0.6 / (2 * 0.3 * N_WINE)},
        {"C": 0.3, "l1_ratio": 0.4},
    ),
    Case(
        "logistic-liblinear",
        LogisticRegression(C=0.3, intercept_scaling=2.0, **_LIBLINEAR),
        X_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 1 / (2 * 0.3 * N_CANCER)},
        {"C": 0.3},
    ),
    Case(
        "logistic-cv",
        LogisticRegressionCV(
            Cs=[0.3],
            cv=3,
            l1_ratios=(0,),
            scoring="neg_log_loss",
            use_legacy_attributes=False,
            **_NEWTON,
        ),
        X_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 1 / (2 * 0.3 * N_CANCER)},
        {"C": 0.3},
    ),
]

_SVC: dict[str, Any] = {"tol": 1e-12, "dual": False, "max_iter": 100_000}
SVM = [
    Case(
        "linear-svc",
        LinearSVC(C=0.2, **_SVC),
        X_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 1 / (2 * 0.2 * N_CANCER)},
        {"C": 0.2},
    ),
    Case(
        "linear-svc-sparse-weights",
        LinearSVC(C=0.2, intercept_scaling=3.0, **_SVC),
        SPARSE_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 1 / (2 * 0.2 * S_CANCER)},
        {"C": 0.2},
        W_CANCER,
    ),
    Case(
        "linear-svc-three-classes-balanced",
        LinearSVC(C=0.2, class_weight="balanced", **_SVC),
        X_WINE,
        WINE_NAMES,
        "l2",
        {"l2": 1 / (2 * 0.2 * N_WINE)},
        {"C": 0.2},
    ),
    Case(
        "linear-svc-l1",
        LinearSVC(C=0.2, penalty="l1", dual=False, tol=1e-10, max_iter=100_000),
        X_CANCER,
        Y_CANCER,
        "l1",
        {"l1": 1 / (0.2 * N_CANCER)},
        {"C": 0.2},
    ),
    Case(
        "linear-svr",
        LinearSVR(C=0.2, epsilon=0.1, loss="squared_epsilon_insensitive", **_SVC),
        X_DIABETES,
        Y_UNIT,
        "l2",
        {"l2": 1 / (2 * 0.2 * N_DIABETES)},
        {"C": 0.2},
    ),
]
