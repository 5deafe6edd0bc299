"""Known answers: fitted scikit-learn models, their data, and the penalty each was trained with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    BayesianRidge,
    ElasticNet,
    ElasticNetCV,
    GammaRegressor,
    HuberRegressor,
    Lasso,
    LassoCV,
    LassoLars,
    LogisticRegression,
    LogisticRegressionCV,
    MultiTaskElasticNet,
    MultiTaskLasso,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
    TweedieRegressor,
)
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, RandomizedSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC, LinearSVR

EXACT = 1e-6

Terms = dict[str, Any]  # numbers, or one per output
Expected = Terms | Callable[[Any], Terms]


@dataclass(frozen=True)
class Case:
    """A model with a known penalty.

    ``coef`` are coefficients in units of the mean loss, by term name; ``own`` the model's own
    parameters; either may be a function of the fitted model. ``rtol`` is 1e-6 where the solver
    is exact, and else as far as the solver goes, for which ``solver`` gives the reason.
    """

    id: str
    estimator: Any
    X: Any
    y: Any
    family: str
    coef: Expected
    own: Expected
    sample_weight: Any = None
    rtol: float = EXACT
    fit: Callable[..., Any] | None = None
    solver: str = ""

    def make(self) -> Any:
        """Fitted model, trained once for all tests."""
        return _fitted(self)

    def expected_coef(self) -> Terms:
        """Coefficients by term name."""
        return self.coef(self.make()) if callable(self.coef) else self.coef

    def expected_own(self) -> Terms:
        """The model's own parameters."""
        return self.own(self.make()) if callable(self.own) else self.own

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return self is other


@cache
def _fitted(case: Case) -> Any:
    """Train the model of a case."""
    if case.fit is not None:
        return case.fit(case.estimator, case.X, case.y, case.sample_weight)
    model = clone(case.estimator)
    if case.sample_weight is None:
        return model.fit(case.X, case.y)
    return model.fit(case.X, case.y, sample_weight=case.sample_weight)


def fit_frozen(model: Any, X: Any, y: Any, sample_weight: Any) -> Any:
    """A frozen trained model."""
    return FrozenEstimator(clone(model).fit(X, y))


def fit_restarted(model: Any, X: Any, y: Any, sample_weight: Any, *, rounds: int = 100) -> Any:
    """A model by L-BFGS, restarted where it stops on the relative change of the loss."""
    model = clone(model).set_params(warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(rounds):
            model.fit(X, y) if sample_weight is None else model.fit(X, y, sample_weight)
    return model


def fit_quietly(model: Any, X: Any, y: Any, sample_weight: Any) -> Any:
    """A model whose solver runs up to its limit of iterations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        return clone(model).fit(X, y, **weights)


def _standardized(loader: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray]:
    X, y = loader(return_X_y=True)
    return StandardScaler().fit_transform(X), y


X_DIABETES, Y_DIABETES = _standardized(load_diabetes)
X_CANCER, Y_CANCER = _standardized(load_breast_cancer)
X_WINE, Y_WINE = _standardized(load_wine)
N_DIABETES, N_CANCER, N_WINE = len(Y_DIABETES), len(Y_CANCER), len(Y_WINE)
Y_TWO = np.column_stack([Y_DIABETES, 10 * np.sqrt(Y_DIABETES) + X_DIABETES[:, 0]])
Y_UNIT = (Y_DIABETES - Y_DIABETES.mean()) / Y_DIABETES.std()
Y_COUNTS = np.round(Y_DIABETES / 20)
WINE_NAMES = np.array(["barolo", "grignolino", "barbera"])[Y_WINE]

_RNG = np.random.default_rng(0)
W_DIABETES = _RNG.uniform(0.2, 3.0, N_DIABETES)
W_CANCER = _RNG.uniform(0.2, 3.0, N_CANCER)
W_WINE = _RNG.uniform(0.2, 3.0, N_WINE)
S_DIABETES, S_CANCER = float(W_DIABETES.sum()), float(W_CANCER.sum())
SPARSE_DIABETES = sparse.csr_matrix(np.where(np.abs(X_DIABETES) > 0.7, X_DIABETES, 0.0))
SPARSE_CANCER = sparse.csr_array(np.where(np.abs(X_CANCER) > 0.7, X_CANCER, 0.0))


def balanced_total(y: Any, sample_weight: Any = None) -> float:
    """Total weight of the rows under class weights balanced by counts of rows."""
    if sample_weight is None:
        return float(len(y))
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    return float(np.sum(sample_weight * (len(y) / (len(counts) * counts))[codes]))


RIDGE = [
    Case("ridge", Ridge(2.0), X_DIABETES, Y_DIABETES, "l2", {"l2": 2 / N_DIABETES}, {"alpha": 2.0}),
    Case(
        "ridge-weights",
        Ridge(2.0),
        X_DIABETES,
        Y_DIABETES,
        "l2",
        {"l2": 2 / S_DIABETES},
        {"alpha": 2.0},
        W_DIABETES,
    ),
    Case(
        "ridge-sparse",
        Ridge(2.0, solver="sparse_cg", tol=1e-14),
        SPARSE_DIABETES,
        Y_DIABETES,
        "l2",
        {"l2": 2 / N_DIABETES},
        {"alpha": 2.0},
    ),
    Case(
        "ridge-two-outputs",
        Ridge(2.0),
        X_DIABETES,
        Y_TWO,
        "l2",
        {"l2": 2 / N_DIABETES},
        {"alpha": 2.0},
    ),
    Case(
        "ridge-alpha-per-target",
        Ridge(alpha=[1.0, 5.0]),
        X_DIABETES,
        Y_TWO,
        "l2",
        {"l2[output 0]": 1 / N_DIABETES, "l2[output 1]": 5 / N_DIABETES},
        {"alpha": np.array([1.0, 5.0])},
    ),
    Case(
        "ridge-positive",
        Ridge(200.0, positive=True, tol=1e-12),
        X_DIABETES,
        Y_DIABETES,
        "l2",
        {"l2": 200 / N_DIABETES},
        {"alpha": 200.0},
    ),
    Case(
        "ridge-cv",
        RidgeCV(alphas=[0.5, 5.0, 50.0]),
        X_DIABETES,
        Y_DIABETES,
        "l2",
        lambda m: {"l2": m.alpha_ / N_DIABETES},
        lambda m: {"alpha": m.alpha_},
    ),
    Case(
        "ridge-cv-alpha-per-target",
        RidgeCV(alphas=[0.5, 5.0, 50.0], alpha_per_target=True),
        X_DIABETES,
        np.column_stack([Y_DIABETES, _RNG.normal(size=N_DIABETES)]),
        "l2",
        lambda m: {f"l2[output {k}]": a / N_DIABETES for k, a in enumerate(m.alpha_)},
        lambda m: {"alpha": m.alpha_},
    ),
    Case(
        "bayesian-ridge",
        BayesianRidge(),
        X_DIABETES,
        Y_DIABETES,
        "l2",
        lambda m: {"l2": m.lambda_ / m.alpha_ / N_DIABETES},
        lambda m: {"lambda_/alpha_": m.lambda_ / m.alpha_},
    ),
    Case(
        "bayesian-ridge-weights",
        BayesianRidge(),
        X_DIABETES,
        Y_DIABETES,
        "l2",
        lambda m: {"l2": m.lambda_ / m.alpha_ / S_DIABETES},
        lambda m: {"lambda_/alpha_": m.lambda_ / m.alpha_},
        W_DIABETES,
    ),
    Case(
        "ridge-classifier",
        RidgeClassifier(3.0),
        X_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 3 / N_CANCER},
        {"alpha": 3.0},
    ),
    Case(
        "ridge-classifier-three-classes",
        RidgeClassifier(3.0),
        X_WINE,
        WINE_NAMES,
        "l2",
        {"l2": 3 / N_WINE},
        {"alpha": 3.0},
    ),
    Case(
        "ridge-classifier-balanced-weights",
        RidgeClassifier(3.0, class_weight="balanced"),
        X_WINE,
        Y_WINE,
        "l2",
        {"l2": 3 / balanced_total(Y_WINE, W_WINE)},
        {"alpha": 3.0},
        W_WINE,
    ),
    Case(
        "ridge-classifier-cv",
        RidgeClassifierCV(alphas=[3.0], class_weight={0: 2.0, 1: 0.5}),
        X_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 3 / float(np.where(Y_CANCER == 0, 2.0, 0.5).sum())},
        {"alpha": 3.0},
    ),
]

_CD: dict[str, Any] = {"tol": 1e-15, "max_iter": 100_000}
SPARSE_MODELS = [
    Case("lasso", Lasso(1.5, **_CD), X_DIABETES, Y_DIABETES, "l1", {"l1": 3.0}, {"alpha": 1.5}),
    Case(
        "lasso-weights",
        Lasso(1.5, **_CD),
        X_DIABETES,
        Y_DIABETES,
        "l1",
        {"l1": 3.0},
        {"alpha": 1.5},
        W_DIABETES,
    ),
    Case(
        "lasso-sparse",
        Lasso(1.5, **_CD),
        SPARSE_DIABETES,
        Y_DIABETES,
        "l1",
        {"l1": 3.0},
        {"alpha": 1.5},
    ),
    Case(
        "lasso-positive",
        Lasso(1.5, positive=True, **_CD),
        X_DIABETES,
        Y_DIABETES,
        "l1",
        {"l1": 3.0},
        {"alpha": 1.5},
    ),
    Case(
        "lasso-cv",
        LassoCV(alphas=[0.5, 3.0], cv=3, **_CD),
        X_DIABETES,
        Y_DIABETES,
        "l1",
        lambda m: {"l1": 2 * m.alpha_},
        lambda m: {"alpha": m.alpha_},
    ),
    Case("lasso-lars", LassoLars(1.5), X_DIABETES, Y_DIABETES, "l1", {"l1": 3.0}, {"alpha": 1.5}),
    Case(
        "elastic-net",
        ElasticNet(0.5, l1_ratio=0.6, **_CD),
        X_DIABETES,
        Y_DIABETES,
        "l1+l2",
        {"l1": 0.6, "l2": 0.2},
        {"alpha": 0.5, "l1_ratio": 0.6},
    ),
    Case(
        "elastic-net-cv",
        ElasticNetCV(alphas=[0.5, 2.0], l1_ratio=[0.3, 0.6], cv=3, **_CD),
        X_DIABETES,
        Y_DIABETES,
        "l1+l2",
        lambda m: {"l1": 2 * m.alpha_ * m.l1_ratio_, "l2": m.alpha_ * (1 - m.l1_ratio_)},
        lambda m: {"alpha": m.alpha_, "l1_ratio": m.l1_ratio_},
    ),
    Case(
        "multi-task-lasso",
        MultiTaskLasso(3.0, **_CD),
        X_DIABETES,
        Y_TWO,
        "l21",
        {"l21": 6.0},
        {"alpha": 3.0},
    ),
    Case(
        "multi-task-lasso-weights",
        MultiTaskLasso(3.0, **_CD),
        X_DIABETES,
        Y_TWO,
        "l21",
        {"l21": 6.0},
        {"alpha": 3.0},
        W_DIABETES,
    ),
    Case(
        "multi-task-elastic-net",
        MultiTaskElasticNet(3.0, l1_ratio=0.8, **_CD),
        X_DIABETES,
        Y_TWO,
        "l21+l2",
        {"l21": 4.8, "l2": 0.6},
        {"alpha": 3.0, "l1_ratio": 0.8},
    ),
]

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

_SGD: dict[str, Any] = {
    "learning_rate": "adaptive",
    "eta0": 0.01,
    "tol": 1e-9,
    "n_iter_no_change": 200,
    "max_iter": 20_000,
    "random_state": 0,
}
SGD = [
    Case(
        "sgd-regressor",
        SGDRegressor(alpha=0.1, **_SGD),
        X_DIABETES,
        Y_UNIT,
        "l2",
        {"l2": 0.1},
        {"alpha": 0.1},
        rtol=1e-3,
        solver="SGD with steps that shrink to 1e-6",
    ),
    Case(
        "sgd-regressor-weights",
        SGDRegressor(alpha=0.1, **_SGD),
        X_DIABETES,
        Y_UNIT,
        "l2",
        {"l2": 0.1 * N_DIABETES / S_DIABETES},
        {"alpha": 0.1},
        W_DIABETES,
        rtol=1e-3,
        solver="SGD with steps that shrink to 1e-6",
    ),
    Case(
        "sgd-regressor-huber",
        SGDRegressor(loss="huber", epsilon=0.5, alpha=0.1, **_SGD),
        X_DIABETES,
        Y_UNIT,
        "l2",
        {"l2": 0.05},
        {"alpha": 0.1},
        rtol=1e-3,
        solver="SGD with steps that shrink to 1e-6",
    ),
    Case(
        "sgd-classifier-log-loss",
        SGDClassifier(loss="log_loss", alpha=0.1, **_SGD),
        X_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 0.05},
        {"alpha": 0.1},
        rtol=1e-3,
        solver="SGD with steps that shrink to 1e-6",
    ),
    Case(
        "sgd-classifier-three-classes-balanced",
        SGDClassifier(
            loss="squared_hinge",
            alpha=0.1,
            class_weight="balanced",
            **{**_SGD, "n_iter_no_change": 1000},
        ),
        X_WINE,
        WINE_NAMES,
        "l2",
        {"l2": 0.05},
        {"alpha": 0.1},
        rtol=1e-3,
        solver="SGD with steps that shrink to 1e-6",
    ),
]

_MLP: dict[str, Any] = {
    "hidden_layer_sizes": (6,),
    "activation": "tanh",
    "solver": "lbfgs",
    "tol": 1e-12,
    "max_iter": 5000,
    "max_fun": 100_000,
    "random_state": 0,
}
MLP = [
    Case(
        "mlp-regressor",
        MLPRegressor(alpha=100.0, **_MLP),
        X_DIABETES,
        Y_UNIT,
        "l2",
        {"l2": 100 / N_DIABETES},
        {"alpha": 100.0},
        rtol=1e-4,
        fit=fit_restarted,
        solver="L-BFGS, restarted",
    ),
    Case(
        "mlp-regressor-one-run",
        MLPRegressor(alpha=100.0, **_MLP),
        X_DIABETES,
        Y_UNIT,
        "l2",
        {"l2": 100 / N_DIABETES},
        {"alpha": 100.0},
        rtol=1e-3,
        fit=fit_quietly,
        solver="L-BFGS",
    ),
    Case(
        "mlp-regressor-weights",
        MLPRegressor(alpha=100.0, **_MLP),
        X_DIABETES,
        Y_UNIT,
        "l2",
        {"l2": 100 / S_DIABETES},
        {"alpha": 100.0},
        W_DIABETES,
        rtol=1e-4,
        fit=fit_restarted,
        solver="L-BFGS, restarted",
    ),
    Case(
        "mlp-regressor-poisson",
        MLPRegressor(loss="poisson", alpha=10.0, **_MLP),
        X_DIABETES,
        Y_COUNTS,
        "l2",
        {"l2": 5 / N_DIABETES},
        {"alpha": 10.0},
        rtol=1e-4,
        fit=fit_restarted,
        solver="L-BFGS, restarted",
    ),
    Case(
        "mlp-classifier",
        MLPClassifier(alpha=10.0, **_MLP),
        X_CANCER,
        Y_CANCER,
        "l2",
        {"l2": 5 / N_CANCER},
        {"alpha": 10.0},
        rtol=1e-4,
        fit=fit_restarted,
        solver="L-BFGS, restarted",
    ),
    Case(
        "mlp-classifier-three-classes",
        MLPClassifier(alpha=10.0, **_MLP),
        X_WINE,
        WINE_NAMES,
        "l2",
        {"l2": 5 / N_WINE},
        {"alpha": 10.0},
        rtol=1e-4,
        fit=fit_restarted,
        solver="L-BFGS, restarted",
    ),
    Case(
        "mlp-classifier-multilabel",
        MLPClassifier(alpha=10.0, **_MLP),
        X_WINE,
        np.column_stack([Y_WINE > 0, X_WINE[:, 0] + X_WINE[:, 3] > 0]).astype(int),
        "l2",
        {"l2": 5 / N_WINE},
        {"alpha": 10.0},
        rtol=1e-4,
        fit=fit_restarted,
        solver="L-BFGS, restarted",
    ),
]

X_RAW, Y_RAW = load_diabetes(return_X_y=True)
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

CASES: list[Case] = [
    *RIDGE,
    *SPARSE_MODELS,
    *LOGISTIC,
    *SVM,
    *GLM,
    *SGD,
    *MLP,
    *CONTAINERS,
]
