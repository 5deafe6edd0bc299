"""Generalized linear models and Huber regression."""

from __future__ import annotations

from typing import Any

from sklearn.linear_model import GammaRegressor, HuberRegressor, PoissonRegressor, TweedieRegressor

from cases.case import Case, fit_restarted
from cases.data import N_DIABETES, S_DIABETES, W_DIABETES, X_DIABETES, Y_COUNTS, Y_DIABETES, Y_UNIT

_GLM: dict[str, Any] = {"solver": "newton-cholesky", "tol": 1e-10, "max_iter": 200}
GLM = [
    Case(
        "poisson",
        PoissonRegressor(alpha=0.15, **_GLM),
        X_DIABETES,
        Y_COUNTS,
        "l2",
        {"l2": 0.075},
        {"alpha": 0.15},
    ),
    Case(
        "poisson-weights",
        PoissonRegressor(alpha=0.15, **_GLM),
        X_DIABETES,
        Y_COUNTS,
        "l2",
        {"l2": 0.075},
        {"alpha": 0.15},
        W_DIABETES,
    ),
    Case(
        "gamma",
        GammaRegressor(alpha=0.15, **_GLM),
        X_DIABETES,
        Y_DIABETES,
        "l2",
        {"l2": 0.075},
        {"alpha": 0.15},
    ),
    Case(
        "tweedie-1.5",
        TweedieRegressor(power=1.5, alpha=0.15, **_GLM),
        X_DIABETES,
        Y_COUNTS,
        "l2",
        {"l2": 0.075},
        {"alpha": 0.15},
    ),
    Case(
        "tweedie-0",
        TweedieRegressor(power=0, alpha=0.15, **_GLM),
        X_DIABETES,
        Y_DIABETES,
        "l2",
        {"l2": 0.15},
        {"alpha": 0.15},
    ),
    Case(
        "tweedie-0-log-link",
        TweedieRegressor(power=0, link="log", alpha=0.15, **_GLM),
        X_DIABETES,
        Y_DIABETES / 100,
        "l2",
        {"l2": 0.15},
        {"alpha": 0.15},
    ),
    Case(
        "huber",
        HuberRegressor(alpha=20.0, epsilon=1.5, tol=1e-9, max_iter=5000),
        X_DIABETES,
        Y_UNIT,
        "l2",
        {"l2": 20 / N_DIABETES},
        {"alpha": 20.0},
        rtol=1e-4,
        fit=fit_restarted,
        solver="L-BFGS, restarted, to a relative loss of 2e-9",
    ),
    Case(
        "huber-weights",
        HuberRegressor(alpha=20.0, epsilon=1.5, tol=1e-9, max_iter=5000),
        X_DIABETES,
        Y_UNIT,
        "l2",
        {"l2": 20 / S_DIABETES},
        {"alpha": 20.0},
        W_DIABETES,
        rtol=1e-4,
        fit=fit_restarted,
        solver="L-BFGS, restarted, to a relative loss of 2e-9",
    ),
]
