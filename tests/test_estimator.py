"""The estimator: what a fit gives, for models whose penalty is known."""

from __future__ import annotations

import inspect
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CASES, N_DIABETES, N_WINE, X_DIABETES, X_WINE, Y_DIABETES, Y_TWO, Y_UNIT, Y_WINE
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    BayesianRidge,
    ElasticNet,
    ElasticNetCV,
    GammaRegressor,
    Lasso,
    LassoCV,
    LassoLarsCV,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    MultiTaskElasticNet,
    MultiTaskLasso,
    PoissonRegressor,
    QuantileRegressor,
    Ridge,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC, LinearSVR
from torch import nn

from sklearn_implicitreg import Endpoint, ImplicitRegularizationEstimator
from sklearn_implicitreg.exceptions import CollinearTermsWarning
from sklearn_implicitreg.penalties import L2, SmoothL1

WEIGHTS = np.random.default_rng(0).uniform(0.2, 3.0, N_DIABETES)
X, Y, N = X_DIABETES, Y_DIABETES, N_DIABETES
Y_CLASS = Y > np.median(Y)
Estimator = ImplicitRegularizationEstimator


# --- the table of known answers, through the face -------------------------------------------


def grouped_own(case):
    """Own parameters of a case, with those of several outputs as one array."""
    own = case.expected_own()
    if not any("[" in key for key in own):
        return own
    keys = {key.partition("[")[0] for key in own}
    return {k: np.array([v for key, v in own.items() if key.startswith(k)]) for k in keys}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_known_answers(case):
    est = Estimator(case.make(), family=case.family).fit(case.X, case.y, case.sample_weight)
    found = dict(zip(est.term_names_, est.coef_, strict=True))
    assert found == pytest.approx(case.expected_coef(), rel=case.rtol, abs=0)
    units, expected = est.in_model_units(), grouped_own(case)
    stating = {"l1_ratio", "penalty", "solver", "dual"}  # the kind of penalty; test_model_units
    assert set(expected) <= set(units) <= set(expected) | stating
    for key in expected:
        assert units[key] == pytest.approx(expected[key], rel=case.rtol, abs=0)
    assert est.r2_ > 1 - 1e-3
    assert est.verdict_ == "supported"
    assert est.score(case.X, case.y, case.sample_weight) == pytest.approx(est.r2_, abs=1e-12)


def text_of(est):
    """Summary without its line breaks."""
    return " ".join(str(est.summary()).split())


# --- attributes -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elastic():
    model = ElasticNet(0.5, l1_ratio=0.6, tol=1e-15, max_iter=100_000).fit(X, Y)
    return Estimator(model, family="l2+l1").fit(X, Y)


def test_attributes_and_shapes(elastic):
    assert elastic.term_names_ == ["l2", "l1"]
    k = len(elastic.term_names_)
    for name in ("coef_", "std_err_", "pvalues_", "cosine_", "vif_"):
        value = getattr(elastic, name)
        assert value.shape == (k,), name
        assert value.dtype == np.float64, name
    assert elastic.conf_int_.shape == (k, 2)
    assert (elastic.conf_int_[:, 0] <= elastic.coef_).all()
    assert (elastic.coef_ <= elastic.conf_int_[:, 1]).all()
    assert isinstance(elastic.r2_, float)
    assert isinstance(elastic.condition_number_, float)
    assert elastic.n_equations_ == int((elastic.model_.coef_ != 0).sum())
    assert elastic.verdict_ == "supported"
    assert elastic.n_features_in_ == 10
    assert callable(elastic.penalty_)
    assert np.abs(elastic.cosine_).max() <= 1


def test_fit_adds_only_documented_attributes(elastic):
    documented = inspect.getdoc(Estimator).split("Attributes\n")[1]
    added = [name for name in vars(elastic) if name.endswith("_") and not name.startswith("_")]
    assert {name for name in added if name not in documented} == set()


def test_before_fit_nothing_is_shown():
    est = Estimator(Ridge().fit(X, Y))
    for method in ("summary", "to_frame", "to_json", "in_model_units", "explicit_estimator"):
        with pytest.raises(NotFittedError):
            getattr(est, method)()
    with pytest.raises(NotFittedError):
        est.score(X, Y)


def test_known_moves_a_penalty_to_the_loss():
    model = ElasticNet(0.5, l1_ratio=0.6, tol=1e-15, max_iter=100_000).fit(X, Y)
    est = Estimator(model, family="l1", known={"l2": 0.2}).fit(X, Y)
    assert est.term_names_ == ["l1"]
    assert est.coef_ == pytest.approx([0.6], rel=1e-6)
    assert est.verdict_ == "supported"
    assert "Known, and moved to the side of the loss: 0.2*l2." in str(est.summary())
    with pytest.raises(ValueError, match="Expected a family without known penalties, got .*0.2"):
        est.explicit_estimator()


def test_positive_keeps_coefficients_at_or_above_zero():
    weighted = Ridge(2.0).fit(X, Y, WEIGHTS)
    free = Estimator(weighted, family="l2+l1").fit(X, Y)
    bounded = Estimator(weighted, family="l2+l1", positive=True).fit(X, Y)
    assert free.coef_.min() < 0
    assert bounded.coef_.min() >= 0
    assert bounded.r2_ <= free.r2_


@pytest.mark.parametrize(
    ("covariance", "used"),
    [("auto", "hc3"), ("ols", "ols"), ("nonrobust", "ols"), ("hc3", "hc3")],
)
def test_covariance_is_named(covariance, used):
    est = Estimator(Ridge(5.0).fit(X, Y), family="l1+l2", covariance=covariance).fit(X, Y)
    assert json.loads(est.to_json())["covariance"] == used
    assert {"hc3": "Standard errors: robust (HC3)", "ols": "classical (ols)"}[used] in text_of(est)


def test_json_of_a_shape_parameter_without_an_interval():
    est = Estimator(Ridge(5.0).fit(X, Y), family=SmoothL1("fit")).fit(X, Y)
    (value, *interval) = json.loads(est.to_json())["shapes"]["delta"]
    assert value > 0
    assert interval == [None, None]


def test_covariance_by_tensors():
    torch.manual_seed(0)
    layers = [nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()]
    net = nn.Sequential(*layers, nn.Linear(8, 1)).double()
    est = Estimator(net, loss="mse").fit(X, Y_UNIT)
    assert json.loads(est.to_json())["covariance"] == "cluster"
    with pytest.raises(ValueError, match="cluster"):
        Estimator(Ridge(5.0).fit(X, Y), covariance="cluster").fit(X, Y)


def test_confidence_level_widens_intervals():
    ridge = Ridge(5.0).fit(X, Y)
    narrow = Estimator(ridge, family="l1", confidence_level=0.5).fit(X, Y)
    wide = Estimator(ridge, family="l1", confidence_level=0.99).fit(X, Y)
    assert np.ptp(wide.conf_int_) > np.ptp(narrow.conf_int_)


# --- reports --------------------------------------------------------------------------------


def test_summary_in_three_ways(elastic):
    summary = elastic.summary()
    text, html, latex = str(summary), summary.as_html(), summary.as_latex()
    for part in ("ElasticNet", "supported", "l2", "l1", "squared error", "442"):
        assert part in text
        assert part in html
        assert part in latex
    assert max(map(len, text.splitlines())) <= 79
    assert "Parameters without equations: intercept." in text
    assert "[2] Standard errors" in text
    assert html == summary._repr_html_()
    assert html.count("<table>") == 2


def test_frame_is_tidy(elastic):
    frame = elastic.to_frame()
    columns = "term group coef std_err ci_low ci_high statistic p_value cosine vif".split()
    assert list(frame.columns) == columns
    assert list(frame["term"]) == ["l2", "l1"]
    np.testing.assert_array_equal(frame["coef"], elastic.coef_)
    np.testing.assert_array_equal(frame[["ci_low", "ci_high"]], elastic.conf_int_)


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("family", ["l2", "l2+l1", "l21"])
@pytest.mark.parametrize("kind", ["ridge", "no-signal", "collinear", "precomputed", "per-output"])
@pytest.mark.filterwarnings("ignore::sklearn_implicitreg.exceptions.CollinearTermsWarning")
def test_json_has_no_nan(kind, family):
    if kind == "precomputed":
        est = Estimator("precomputed").fit(X, np.zeros(N))
    elif kind == "per-output":
        est = Estimator(Ridge(np.array([1.0, 2.0])).fit(X, Y_TWO), family=family).fit(X, Y_TWO)
    else:
        model = LinearRegression() if kind == "no-signal" else Ridge()
        family = f"{family}+weight_decay" if kind == "collinear" else family
        est = Estimator(model.fit(X, Y), family=family).fit(X, Y)
    content = json.loads(est.to_json(), parse_constant=refuse)
    assert [row["term"] for row in content["terms"]] == list(est.to_frame()["term"])
    assert content["verdict"] == est.verdict_


# --- units ----------------------------------------------------------------------------------


def test_one_alpha_per_output_is_an_array():
    est = Estimator(Ridge(alpha=np.array([1.0, 5.0])).fit(X, Y_TWO)).fit(X, Y_TWO)
    assert est.term_names_ == ["l2[output 0]", "l2[output 1]"]
    np.testing.assert_allclose(est.in_model_units()["alpha"], [1.0, 5.0], rtol=1e-8)
    np.testing.assert_allclose(est.explicit_estimator().alpha, [1.0, 5.0], rtol=1e-8)
    assert list(est.to_frame()["group"]) == ["output 0", "output 1"]


def test_weight_decay_per_layer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    est = Estimator(net, loss="mse", group_by="layer").fit(X, Y_UNIT)
    assert est.term_names_ == ["l2[0]", "l2[2]"]
    expected = {"weight_decay[0]": 2 * est.coef_[0], "weight_decay[2]": 2 * est.coef_[1]}
    assert est.in_model_units() == pytest.approx(expected)
    decay = Estimator(net, loss="mse", family="weight_decay").fit(X, Y_UNIT)
    assert decay.in_model_units() == pytest.approx({"weight_decay": decay.coef_[0]})


def test_terms_without_a_parameter_have_no_units():
    est = Estimator(Ridge().fit(X, Y), family="l1").fit(X, Y)
    with pytest.raises(ValueError, match="Expected terms that 'alpha' of this model can state"):
        est.in_model_units()


# --- the explicit estimator -----------------------------------------------------------------

CD = {"tol": 1e-15, "max_iter": 100_000}
NEWTON = {"solver": "newton-cholesky", "tol": 1e-12}
SAGA = {"solver": "saga", "tol": 1e-12, "max_iter": 50_000, "random_state": 0}
Y_COUNT = np.round(Y / 20)
# model, family, targets, class of the explicit estimator, relative error of its refit
EXPLICIT = {
    "Ridge": (Ridge(3.0), "l2", Y, Ridge, 1e-9),
    "Ridge-weight-decay": (Ridge(3.0), "weight_decay", Y, Ridge, 1e-9),
    "Ridge-no-intercept": (Ridge(3.0, fit_intercept=False), "l2", Y, Ridge, 1e-9),
    "Ridge-positive": (Ridge(300.0, positive=True, tol=1e-12), "l2", Y, Ridge, 1e-6),
    "Ridge-outputs": (Ridge(np.array([1.0, 5.0])), "l2", Y_TWO, Ridge, 1e-9),
    "RidgeCV": (RidgeCV([0.5, 5.0]), "l2", Y, Ridge, 1e-9),
    "BayesianRidge": (BayesianRidge(), "l2", Y, Ridge, 1e-9),
    "Lasso": (Lasso(1.5, **CD), "l1", Y, Lasso, 1e-9),
    "LassoCV": (LassoCV(alphas=[0.5, 3.0], cv=3, **CD), "l1", Y, Lasso, 1e-9),
    "LassoLarsCV": (LassoLarsCV(cv=3), "l1", Y, Lasso, 1e-2),
    "ElasticNet": (ElasticNet(0.5, l1_ratio=0.6, **CD), "l2+l1", Y, ElasticNet, 1e-9),
    "ElasticNetCV": (
        ElasticNetCV(alphas=[0.5, 2.0], l1_ratio=[0.3], cv=3, **CD),
        "l2+l1",
        Y,
        ElasticNet,
        1e-9,
    ),
    "MultiTaskLasso": (MultiTaskLasso(3.0, **CD), "l21", Y_TWO, MultiTaskLasso, 1e-9),
    "MultiTaskElasticNet": (
        MultiTaskElasticNet(3.0, l1_ratio=0.8, **CD),
        "l21+l2",
        Y_TWO,
        MultiTaskElasticNet,
        1e-9,
    ),
    "RidgeClassifierCV": (RidgeClassifierCV([3.0]), "l2", Y_CLASS, object, 1e-9),
    "Logistic": (LogisticRegression(C=0.3, **NEWTON), "l2", Y_CLASS, LogisticRegression, 1e-6),
    "Logistic-l1": (
        LogisticRegression(C=0.3, l1_ratio=1.0, **SAGA),
        "l1",
        Y_CLASS,
        LogisticRegression,
        1e-6,
    ),
    "Logistic-elastic": (
        LogisticRegression(C=0.3, l1_ratio=0.4, **SAGA),
        "l1+l2",
        Y_CLASS,
        LogisticRegression,
        1e-6,
    ),
    "LogisticCV": (
        LogisticRegressionCV(
            Cs=[0.3],
            cv=3,
            l1_ratios=(0,),
            scoring="neg_log_loss",
            use_legacy_attributes=False,
            **NEWTON,
        ),
        "l2",
        Y_CLASS,
        LogisticRegression,
        1e-6,
    ),
    "LinearSVC": (
        LinearSVC(C=0.2, dual=False, tol=1e-12, max_iter=100_000),
        "l2",
        Y_CLASS,
        LinearSVC,
        1e-5,
    ),
    "LinearSVC-l1": (
        LinearSVC(C=0.2, penalty="l1", dual=False, tol=1e-10, max_iter=100_000),
        "l1",
        Y_CLASS,
        LinearSVC,
        1e-5,
    ),
    "LinearSVR": (
        LinearSVR(
            C=0.2, loss="squared_epsilon_insensitive", dual=False, tol=1e-12, max_iter=100_000
        ),
        "l2",
        Y_UNIT,
        LinearSVR,
        1e-5,
    ),
    "Poisson": (
        PoissonRegressor(alpha=0.15, solver="newton-cholesky", tol=1e-10),
        "l2",
        Y_COUNT,
        PoissonRegressor,
        1e-6,
    ),
    "Gamma": (
        GammaRegressor(alpha=0.15, solver="newton-cholesky", tol=1e-10),
        "l2",
        Y,
        GammaRegressor,
        1e-6,
    ),
    "pipeline": (make_pipeline(StandardScaler(), Ridge(3.0)), "l2", Y, object, 1e-9),
    "target": (
        TransformedTargetRegressor(Ridge(3.0), func=np.log, inverse_func=np.exp),
        "l2",
        Y,
        TransformedTargetRegressor,
        1e-9,
    ),
    "search": (GridSearchCV(Ridge(), {"alpha": [3.0]}), "l2", Y, Ridge, 1e-9),
    "frozen": (FrozenEstimator(Ridge(3.0).fit(X, Y)), "l2", Y, Ridge, 1e-9),
}


@pytest.mark.parametrize("kind", EXPLICIT)
def test_explicit_estimator_gives_the_same_weights(kind):
    model, family, y, cls, rtol = EXPLICIT[kind]
    model = model if isinstance(model, FrozenEstimator) else clone(model).fit(X, y)
    explicit = Estimator(model, family=family).fit(X, y).explicit_estimator()
    assert isinstance(explicit, cls)
    with pytest.raises(NotFittedError):
        explicit.predict(X)
    explicit = clone(explicit).fit(X, y)
    if hasattr(model, "decision_function"):
        np.testing.assert_allclose(
            explicit.decision_function(X), model.decision_function(X), rtol=rtol, atol=rtol
        )
    else:
        np.testing.assert_allclose(explicit.predict(X), model.predict(X), rtol=rtol, atol=rtol)


def test_explicit_estimator_of_another_kind():
    """What has l1 as its implicit penalty is a Lasso, whatever it was trained by."""
    lasso = Lasso(1.5, **CD).fit(X, Y)
    ridge = Estimator(lasso, family="l2").fit(X, Y).explicit_estimator()
    assert isinstance(ridge, Ridge)
    assert ridge.max_iter is None  # that of another solver is not taken over
    est = Estimator(LinearRegression().fit(X, Y), family="l1", positive=True).fit(X[:300], Y[:300])
    assert isinstance(est.explicit_estimator(), Lasso)


def test_no_estimator_has_a_parameter_for_a_part_of_the_weights():
    mlp = MLPRegressor(hidden_layer_sizes=(3,), alpha=2.0, solver="lbfgs", random_state=0)
    mlp = mlp.set_params(max_iter=1000).fit(X, Y_UNIT)
    outputs = np.column_stack([Y_UNIT, Y_UNIT**2])
    ridge = Ridge(np.array([1.0, 4.0])).fit(X, outputs)
    for model, y, part in ((mlp, Y_UNIT, r"layers\.0"), (ridge, outputs, r"coef\[1\]")):
        with pytest.raises(ValueError, match="Expected a penalty on all of .* got one on"):
            Estimator(model, params=part).fit(X, y).explicit_estimator()
    found = Estimator(ridge).fit(X, outputs).explicit_estimator().alpha
    np.testing.assert_allclose(found, [1.0, 4.0])


def test_explicit_sgd_and_mlp():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        sgd = SGDRegressor(alpha=0.1, max_iter=50, random_state=0).fit(X, Y_UNIT)
        mlp = MLPRegressor(hidden_layer_sizes=(3,), alpha=2.0, max_iter=5, random_state=0).fit(
            X, Y_UNIT
        )
    stated = Estimator(sgd, family="l1+l2", positive=True).fit(X, Y_UNIT).explicit_estimator()
    assert stated.penalty == "elasticnet"
    assert 0 <= stated.l1_ratio <= 1
    assert (stated.max_iter, stated.random_state) == (50, 0)
    est = Estimator(mlp, positive=True).fit(X, Y_UNIT)
    assert est.explicit_estimator().alpha == pytest.approx(est.coef_[0] * N)


@pytest.mark.parametrize(
    ("family", "error", "text"),
    [
        ("power", ValueError, r"Expected terms among 'l2' .* and 'l1' or 'l21'.*got \['power'\]"),
        ("l2+l1", ValueError, "Expected coefficients at or above zero, got .*positive=True"),
    ],
)
def test_explicit_estimator_refuses(family, error, text):
    y = Y + X[:, 0] if family == "power" else Y
    weights = None if family == "power" else WEIGHTS
    est = Estimator(Ridge(2.0).fit(X, y, weights), family=family).fit(X, y)
    with pytest.raises(error, match=text):
        est.explicit_estimator()


def test_explicit_estimator_of_what_has_no_constructor():
    module = nn.Linear(10, 1).double()
    est = Estimator(module, loss="mse", positive=True).fit(X, Y_UNIT)
    with pytest.raises(TypeError, match="got Linear: .*add penalty_ to a training loop"):
        est.explicit_estimator()
    est = Estimator("precomputed", positive=True).fit(X, Y)
    with pytest.raises(TypeError, match="got given equations"):
        est.explicit_estimator()


# --- the penalty as a function --------------------------------------------------------------


def test_penalty_closes_the_gradient():
    """grad L + grad penalty_ = 0, by automatic differentiation of both."""
    model = LogisticRegression(C=0.3, **NEWTON).fit(X_WINE, Y_WINE)
    est = Estimator(model).fit(X_WINE, Y_WINE)
    assert est.coef_[0] == pytest.approx(1 / (2 * 0.3 * N_WINE), rel=1e-6)
    weights = torch.tensor(model.coef_, requires_grad=True)
    bias = torch.tensor(model.intercept_)
    names = est.penalty_.tensors
    logits = torch.as_tensor(X_WINE) @ weights.T + bias
    loss = nn.functional.cross_entropy(logits, torch.as_tensor(Y_WINE))
    split = (
        {next(iter(names)): weights} if len(names) == 1 else dict(zip(names, weights, strict=True))
    )
    (slope,) = torch.autograd.grad(loss + est.penalty_(split), weights)
    assert float(slope.norm()) < 1e-6 * float(weights.detach().norm())


# --- equations given as such ----------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, np.linspace(0.5, 2.0, N)], ids=["plain", "weights"])
@pytest.mark.parametrize("covariance", ["ols", "hc3"])
def test_precomputed_is_the_regression_of_statsmodels(covariance, weights, sm):
    frame = pd.DataFrame(X, columns=[f"term {i}" for i in range(10)])
    est = Estimator("precomputed", covariance=covariance).fit(frame, Y, sample_weight=weights)
    model = sm.OLS(Y, frame) if weights is None else sm.WLS(Y, frame, weights=weights)
    theirs = model.fit(**({"cov_type": "HC3", "use_t": True} if covariance == "hc3" else {}))
    assert est.term_names_ == list(frame.columns)
    assert list(est.feature_names_in_) == list(frame.columns)
    np.testing.assert_allclose(est.coef_, theirs.params, rtol=1e-10)
    np.testing.assert_allclose(est.std_err_, theirs.bse, rtol=1e-10)
    np.testing.assert_allclose(est.pvalues_, theirs.pvalues, rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(est.conf_int_, theirs.conf_int(), rtol=1e-10, atol=1e-9)
    assert est.r2_ == pytest.approx(theirs.rsquared, abs=1e-10)
    assert est.penalty_ is None
    assert est.model_ == "precomputed"


def test_precomputed_scores_plain_r2():
    est = Estimator("precomputed").fit(X[:300], Y_UNIT[:300])
    rest, y = X[300:], Y_UNIT[300:]
    expected = 1 - np.sum((y - rest @ est.coef_) ** 2) / np.sum(y**2)
    assert est.score(rest, y) == pytest.approx(expected, rel=1e-12)


def test_precomputed_in_a_search():
    search = GridSearchCV(Estimator("precomputed"), {"positive": [True, False]}, cv=5)
    search.fit(X, Y_UNIT)
    assert search.best_estimator_.model_ == "precomputed"


# --- verdicts -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["l2", "l1", "l2+l1", "elastic_net"])
def test_no_gradient_is_no_signal(family):
    est = Estimator(LinearRegression().fit(X, Y), family=family).fit(X, Y)
    assert est.verdict_ == "no signal"
    for name in ("coef_", "std_err_", "pvalues_", "conf_int_"):
        assert np.isnan(getattr(est, name)).all(), name
    assert est.r2_ == 0.0
    assert est.score(X, Y) == 0.0
    assert "The gradient is zero to rounding" in text_of(est)
    inside = {name: torch.ones(10, dtype=torch.float64) for name in est.penalty_.tensors}
    assert float(est.penalty_(inside)) == 0.0
    with pytest.raises(ValueError, match=r"no parameter for a penalty; read coef_ instead\.$"):
        est.in_model_units()


@pytest.mark.filterwarnings("ignore:Setting penalty=None:UserWarning")  # of scikit-learn 1.8
def test_no_gradient_of_a_classifier():
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-14, max_iter=1000)
    est = Estimator(model.fit(X, Y_CLASS)).fit(X, Y_CLASS)
    assert est.verdict_ == "no signal"


@pytest.mark.filterwarnings("ignore:Setting penalty=None:UserWarning")  # of scikit-learn 1.8
@pytest.mark.parametrize("seed", range(4))
def test_what_a_solver_leaves_has_either_sign(seed):
    """Without signal and at rest no model states a reward: alpha is 0, C is inf."""
    moved = np.random.default_rng(seed).normal(size=10) * 1e-5
    for model, y, name, zero in (
        (PoissonRegressor(alpha=0, tol=1e-10, max_iter=10_000), Y, "alpha", 0.0),
        (LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000), Y_CLASS, "C", np.inf),
    ):
        model.fit(X, y).coef_ += moved
        est = Estimator(model).fit(X, y)
        assert est.verdict_ == "no signal"
        found = est.in_model_units()[name]
        assert found == zero if est.coef_[0] < 0 else 0 < found < np.inf
        est.explicit_estimator()


def test_a_reward_of_an_unfinished_training_is_not_stated():
    model = LogisticRegression(C=0.1, max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        est = Estimator(model.fit(X, Y_CLASS)).fit(X, Y_CLASS)
    assert est.coef_[0] < 0
    with pytest.raises(ValueError, match="at or above zero"):
        est.in_model_units()


def test_endpoints_of_models_with_different_parameters():
    several = [Endpoint(model.fit(X, Y), X, Y) for model in (Ridge(3.0), Lasso(0.1))]
    est = Estimator(None).fit(several)
    with pytest.raises(ValueError, match=r"by the same parameter, got those of \['Lasso', 'Ridge'"):
        est.in_model_units()


def test_given_equations_have_no_estimator():
    est = Estimator("precomputed").fit(X, Y)
    assert (est.coef_ < 0).any()
    with pytest.raises(TypeError, match="got given equations"):
        est.explicit_estimator()


KINKED = {
    "LinearSVC": LinearSVC(C=0.01, loss="hinge", tol=1e-10, max_iter=1_000_000, random_state=0),
    "SGD-hinge": SGDClassifier(loss="hinge", alpha=0.1, random_state=0),
    "SGD-perceptron": SGDClassifier(loss="perceptron", alpha=0.1, random_state=0),
    "SGD-balanced": SGDClassifier(class_weight="balanced", alpha=1.0, random_state=0),
    "LinearSVR": LinearSVR(C=0.1, epsilon=0.2, tol=1e-10, max_iter=1_000_000, random_state=0),
    "Linear program": QuantileRegressor(quantile=0.3, alpha=0.05),
    "SGD-epsilon": SGDRegressor(loss="epsilon_insensitive", alpha=0.1, random_state=0),
}


@pytest.mark.parametrize("kind", KINKED)
def test_losses_with_a_kink_are_never_supported(kind):
    y = Y_UNIT if kind in ("LinearSVR", "SGD-epsilon", "Linear program") else Y_CLASS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = clone(KINKED[kind]).fit(X, y)
    est = Estimator(model).fit(X, y)
    assert est.verdict_ != "supported"
    if kind.startswith("Linear"):
        assert "kink" in text_of(est)


def test_bounds_give_inequalities():
    model = Ridge(200.0, positive=True, tol=1e-12).fit(X, Y)
    n_bound = int((model.coef_ == 0).sum())
    assert n_bound > 0
    est = Estimator(model).fit(X, Y)
    assert est.n_equations_ == 10 - n_bound
    assert est.in_model_units()["alpha"] == pytest.approx(200.0, rel=1e-6)
    assert f"{n_bound} coordinates at a kink of the penalty or a bound give no equation; all " in (
        text_of(est)
    )


def test_collinear_terms_are_named():
    est = Estimator(Ridge(2.0).fit(X, Y), family="l2+weight_decay")
    with pytest.warns(
        CollinearTermsWarning, match=r"\['l2', 'weight_decay'\] are zero or linearly dependent"
    ) as caught:
        est.fit(X, Y)
    assert caught[0].filename == __file__
    assert est.verdict_ == "not identifiable"
    assert est.coef_[0] + est.coef_[1] / 2 == pytest.approx(2.0 / N, rel=1e-8)


def test_part_of_the_rows_has_a_low_r2():
    """A model is stationary on all of its rows only; the score adds the others."""
    est = Estimator(Ridge(100.0).fit(X, Y)).fit(X[:350], Y[:350])
    assert est.r2_ < 0.95
    assert est.score(X[350:], Y[350:]) > 0.99


class TestViolatedInequalities:
    def test_lasso_of_some_features_is_not_supported(self):
        X, y = load_diabetes(return_X_y=True)
        few = Lasso(alpha=0.1, tol=1e-12).fit(X[:, :6], y)
        whole = Lasso(alpha=0.1, tol=1e-12).fit(X, y)
        whole.coef_, whole.intercept_ = np.r_[few.coef_, np.zeros(4)], few.intercept_
        est = ImplicitRegularizationEstimator(whole, family="l1").fit(X, y)
        assert est.r2_ > 0.999999
        assert est.verdict_ == "partial"
        assert "coordinates at a kink or bound pull away from it" in str(est.summary())

    def test_default_tolerance_of_the_solver_is_forgiven(self):
        X, y = load_diabetes(return_X_y=True)
        est = ImplicitRegularizationEstimator(Lasso(alpha=0.5).fit(X, y), family="l1").fit(X, y)
        assert est.verdict_ == "supported"


def test_explicit_estimator_refuses_a_penalty_on_some_weights():
    X, y = load_diabetes(return_X_y=True)
    model = MLPRegressor(
        hidden_layer_sizes=3, solver="lbfgs", alpha=0.1, max_iter=500, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y / y.std())
    family = L2().on(r"layers\.0")
    est = ImplicitRegularizationEstimator(model, family=family, positive=True)
    with pytest.raises(ValueError, match="one parameter for all its weights"):
        est.fit(X, y / y.std()).explicit_estimator()
