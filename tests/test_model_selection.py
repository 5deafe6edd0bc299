"""Choosing a family: searches, the criterion without folds, and the table of equations."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from cases import X_DIABETES, X_WINE, Y_DIABETES, Y_TWO, Y_WINE
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import TensorDataset

from sklearn_implicitreg import (
    FrozenModel,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    equations,
)
from sklearn_implicitreg.model_selection import simplest_within_one_se
from sklearn_implicitreg.penalties import L2, Power, SmoothL1

Estimator = ImplicitRegularizationEstimator
X, Y = X_DIABETES, Y_DIABETES - Y_DIABETES.mean()
WEIGHTS = np.random.default_rng(0).uniform(0.2, 3.0, len(Y))


# --- networks with a known penalty ----------------------------------------------------------

DELTA = 1e-3


def smooth_l1(w):
    return nn.functional.smooth_l1_loss(w, torch.zeros_like(w), beta=DELTA, reduction="sum")


PENALTIES = {
    "l2": lambda w: 1e-2 * w.square().sum(),
    "smooth_l1": lambda w: 3e-3 * smooth_l1(w),
    "elastic_net": lambda w: 3e-3 * w.square().sum() + 1e-3 * smooth_l1(w),
    "power": lambda w: 1e-2 * w.pow(4).sum(),
}


def union(params):
    return sum((t.square() + 0.01).pow(0.25).sum() for t in params.values())


FAMILIES = {
    "l2": "l2",
    "smooth_l1": "smooth_l1",
    "elastic_net": "elastic_net",
    "power": Power(q=4),
    "union": [L2(), SmoothL1(), Power(q=4), {"root": union}],
}


def draw(seed):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(400, 10)), rng.normal(size=10)
    y = np.sin(x @ w / 2) + 0.5 * x[:, 0] + 0.3 * rng.normal(size=400)
    return x, y.reshape(-1, 1)


def train(penalty, seed):
    """A 10-50-1 tanh network, by L-BFGS."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(10, 50), nn.Tanh(), nn.Linear(50, 1)).double()
    x, y = (torch.as_tensor(a) for a in draw(seed))
    optimizer = torch.optim.LBFGS(
        net.parameters(),
        max_iter=1500,
        max_eval=2000,
        history_size=30,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean() + sum(PENALTIES[penalty](p) for p in net.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return net


@pytest.fixture(scope="module")
def networks():
    return {penalty: train(penalty, seed) for seed, penalty in enumerate(PENALTIES)}


@pytest.mark.parametrize("truth", PENALTIES)
def test_true_family_of_a_network_by_grid_search(networks, truth):
    net, (x, y) = networks[truth], draw(list(PENALTIES).index(truth))
    before = [p.detach().clone() for p in net.parameters()]
    search = GridSearchCV(
        Estimator(net, loss="mse", params="all"),
        {"family": list(FAMILIES.values())},
        cv=KFold(5, shuffle=True, random_state=0),
        error_score="raise",
    ).fit(x, y)
    assert list(FAMILIES)[search.best_index_] == truth
    assert search.best_estimator_.model is net
    assert search.best_estimator_.verdict_ == "supported"
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("truth", PENALTIES)
def test_true_family_of_a_network_without_folds(networks, truth):
    x, y = draw(list(PENALTIES).index(truth))
    search = ImplicitRegularizationCV(
        networks[truth], families=FAMILIES, loss="mse", params="all"
    ).fit(x, y)
    assert search.best_name_ == truth
    assert search.verdict_ == "supported"


# --- searches share the model ---------------------------------------------------------------


class Counted(nn.Module):
    """A module that counts the copies of itself and of its weights."""

    copies = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(10, 1).double()

    def forward(self, inputs):
        return self.linear(inputs)

    def __deepcopy__(self, memo):
        type(self).copies += 1
        raise AssertionError("the module was copied")

    def __reduce_ex__(self, protocol):
        type(self).copies += 1
        raise AssertionError("the module was pickled")


def test_search_makes_no_copies(monkeypatch):
    net = Counted()
    copied = []
    own = nn.Parameter.__deepcopy__
    monkeypatch.setattr(
        nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(1) or own(self, memo)
    )
    Counted.copies = 0
    search = GridSearchCV(
        Estimator(net, loss="mse"),
        {"family": ["l2", "l1", "smooth_l1", "power"]},
        cv=KFold(20, shuffle=True, random_state=0),
        error_score="raise",
    ).fit(X, Y)
    assert Counted.copies == 0
    assert copied == []
    assert search.best_estimator_.model is net
    assert search.best_estimator_.model_ is net
    ImplicitRegularizationCV(net, families=["l2", "l1"], cv=3, loss="mse").fit(X, Y)
    assert Counted.copies == 0


def test_parameters_of_a_family_are_searched(networks):
    net, (x, y) = networks["smooth_l1"], draw(1)
    search = GridSearchCV(
        Estimator(net, family=SmoothL1(), loss="mse", params="all"),
        {"family__delta": [1e-3, 3e-1, 3.0]},
        cv=KFold(5, shuffle=True, random_state=0),
        error_score="raise",
    ).fit(x, y)
    assert search.best_params_ == {"family__delta": 1e-3}
    assert search.best_estimator_.coef_[0] == pytest.approx(3e-3, rel=1e-3)


def test_several_trained_models_in_one_grid(networks):
    x, y = draw(0)
    models = [FrozenModel(networks["l2"]), FrozenModel(networks["power"])]
    search = GridSearchCV(
        Estimator(models[1], loss="mse", params="all"),
        {"model": models, "family": ["l2", "smooth_l1"]},
        cv=KFold(5, shuffle=True, random_state=0),
        error_score="raise",
    ).fit(x, y)
    assert search.best_params_["model"] is models[0]
    assert search.best_params_["family"] == "l2"
    assert search.best_estimator_.model_ is models[0]


@pytest.mark.parametrize("kind", ["module", "ridge"])
def test_search_with_two_processes(networks, kind):
    if kind == "module":
        (x, y), estimator = draw(0), Estimator(networks["l2"], loss="mse", params="all")
    else:
        x, y, estimator = X, Y, Estimator(Ridge(50.0).fit(X, Y))
    grid, folds = {"family": ["l2", "smooth_l1"]}, KFold(5, shuffle=True, random_state=0)
    one = GridSearchCV(estimator, grid, cv=folds).fit(x, y)
    two = GridSearchCV(estimator, grid, cv=folds, n_jobs=2).fit(x, y)
    assert two.best_estimator_.model is estimator.model
    np.testing.assert_allclose(
        two.cv_results_["mean_test_score"], one.cv_results_["mean_test_score"], rtol=1e-9
    )


def test_pipeline_with_a_template():
    pipe = make_pipeline(StandardScaler(), Estimator(Ridge(alpha=5.0)))
    search = GridSearchCV(
        pipe,
        {"implicitregularizationestimator__family": ["l1", "l2"]},
        cv=KFold(5, shuffle=True, random_state=0),
        error_score="raise",
    ).fit(X, Y)
    best = search.best_estimator_[-1]
    assert search.best_params_ == {"implicitregularizationestimator__family": "l2"}
    assert best.in_model_units()["alpha"] == pytest.approx(5.0, rel=1e-8)


# --- linear models --------------------------------------------------------------------------

CD = {"tol": 1e-14, "max_iter": 100_000}
RANDOM = np.random.default_rng(7).normal(size=X.shape[1])


def random_direction(params):
    vector = torch.cat([t.reshape(-1) for t in params.values()])
    return vector @ torch.as_tensor(RANDOM)


LINEAR_FAMILIES = {
    "l1": "l1",
    "l2": "l2",
    "en": "l2+l1",
    "random": {"random": random_direction},
}
LINEAR = {
    "Ridge-2": (Ridge(2.0), "l2"),
    "Ridge-50": (Ridge(50.0), "l2"),
    "Ridge-500": (Ridge(500.0), "l2"),
    "Lasso-0.1": (Lasso(0.1, **CD), "l1"),
    "Lasso-1": (Lasso(1.0, **CD), "l1"),
    "Lasso-5": (Lasso(5.0, **CD), "l1"),
    "ElasticNet": (ElasticNet(1.0, l1_ratio=0.5, **CD), "en"),
}


LOW = "ignore:A score is:sklearn_implicitreg.exceptions.SelectionWarning"  # of the false families


@pytest.mark.filterwarnings(LOW)
@pytest.mark.parametrize("seed", [0, 1, 12])
@pytest.mark.parametrize("kind", LINEAR)
def test_family_of_a_linear_model(kind, seed):
    model, truth = LINEAR[kind]
    search = GridSearchCV(
        Estimator(clone(model).fit(X, Y)),
        {"family": list(LINEAR_FAMILIES.values())},
        cv=KFold(20, shuffle=True, random_state=seed),
        error_score="raise",
    ).fit(X, Y)
    assert list(LINEAR_FAMILIES)[search.best_index_] == truth


@pytest.mark.parametrize("kind", LINEAR)
def test_family_of_a_linear_model_without_folds(kind):
    model, truth = LINEAR[kind]
    search = ImplicitRegularizationCV(clone(model).fit(X, Y), families=LINEAR_FAMILIES)
    assert search.fit(X, Y).best_name_ == truth


# --- the score ------------------------------------------------------------------------------


def gradient(model, x, y, weight=None):
    """Of the mean squared error of a Ridge, by hand."""
    weight = np.ones(len(y)) if weight is None else weight
    return 2 / weight.sum() * x.T @ (weight * (model.predict(x) - y))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights"])
@pytest.mark.parametrize("family", ["l2", "l1"])
def test_completed_score_by_hand(family, weighted):
    w = WEIGHTS if weighted else np.ones(len(Y))
    model = Ridge(50.0).fit(X, Y, sample_weight=w)
    fit, held = np.arange(300), np.arange(300, len(Y))
    est = Estimator(model, family=family).fit(X[fit], Y[fit], w[fit])
    column = 2 * model.coef_ if family == "l2" else np.sign(model.coef_)
    own = -gradient(model, X[fit], Y[fit], w[fit])
    whole = -gradient(model, X, Y, w)
    a, b = (column @ t / (column @ column) for t in (own, whole))
    assert est.coef_[0] == pytest.approx(a, rel=1e-10)
    coef = b + np.sqrt(1 / 99 * w[fit].sum() / w[held].sum()) * (a - b)
    left, lost = (np.sum((whole - c * column) ** 2) / np.sum(whole**2) for c in (b, coef))
    cost = min(lost - left, 10 * max(left * 10 / 9, 1e-10))  # 10 equations, 1 coefficient
    assert (cost < lost - left) == (family == "l2")  # both sides of the minimum
    expected = 1 - left - cost
    assert est.score(X[held], Y[held], w[held]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("family", ["l2", "l1", "l2+l1", "smooth_l1"])
def test_score_on_all_rows_again_is_r2(family):
    est = Estimator(Ridge(50.0).fit(X, Y), family=family).fit(X, Y)
    assert est.score(X, Y) == pytest.approx(est.r2_, abs=1e-12)
    train = cross_val_score(est, X, Y, cv=[(np.arange(len(Y)), np.arange(len(Y)))])
    assert train == pytest.approx([est.r2_], abs=1e-12)


def test_score_of_no_gradient_is_zero():
    est = Estimator(LinearRegression().fit(X, Y)).fit(X, Y)
    assert est.score(X, Y) == 0.0
    parts = Estimator(LinearRegression().fit(X, Y)).fit(X[:300], Y[:300])
    assert parts.score(X[300:], Y[300:]) == 0.0


def test_search_over_a_model_without_a_penalty_does_not_fail():
    search = GridSearchCV(
        Estimator(LinearRegression().fit(X, Y)),
        {"family": ["l2", "l1"]},
        cv=KFold(5, shuffle=True),
        error_score="raise",
    ).fit(X, Y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], [0.0, 0.0])
    assert search.best_estimator_.verdict_ == "no signal"


def test_positive_is_kept_in_the_score():
    est = Estimator(Ridge(50.0).fit(X, -Y), family="l2+l1", positive=True).fit(X[:300], Y[:300])
    assert est.score(X[300:], Y[300:]) <= 1.0


# --- the criterion without folds ------------------------------------------------------------


def small(seed=0, n=18):
    """Few rows, so that every block of the pass is one row."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, x @ [1.0, -2.0, 0.5, 3.0] + rng.normal(size=n)


@pytest.mark.parametrize("family", ["l2", "l1", "l2+l1", "smooth_l1"])
@pytest.mark.parametrize("kind", ["ridge", "module"])
def test_criterion_is_the_mean_completed_score(kind, family):
    """With one row left out at a time the average is exact."""
    x, y = small()
    ridge = Ridge(3.0, fit_intercept=False).fit(x, y)
    if kind == "module":
        model = nn.Linear(4, 1, bias=False).double()
        model.weight.data[:] = torch.as_tensor(ridge.coef_)
        params = {"loss": "mse"}
    else:
        model, params = ridge, {}
    search = ImplicitRegularizationCV(model, families=[family], **params).fit(x, y)
    scores = cross_val_score(Estimator(model, family=family, **params), x, y, cv=LeaveOneOut())
    assert search.best_score_ == pytest.approx(scores.mean(), abs=1e-10)
    assert search.cv_results_["r2"][0] == pytest.approx(search.r2_, abs=1e-14)
    assert search.best_score_ < search.r2_


@pytest.mark.filterwarnings(LOW)
def test_criterion_is_near_the_mean_over_folds():
    """By twenty blocks of rows the noise is estimated; both it and the folds vary."""
    model = Lasso(2.0, **CD).fit(X, Y)
    for family in ("l2", "power"):
        criterion = ImplicitRegularizationCV(model, families=[family]).fit(X, Y).best_score_
        folds = [
            cross_val_score(
                Estimator(model, family=family),
                X,
                Y,
                cv=KFold(20, shuffle=True, random_state=seed),
            ).mean()
            for seed in range(3)
        ]
        r2 = Estimator(model, family=family).fit(X, Y).r2_
        assert r2 - criterion == pytest.approx(r2 - np.mean(folds), rel=0.3)


def test_results_of_a_search():
    search = ImplicitRegularizationCV(
        Ridge(50.0).fit(X, Y), families={"a": "l1", "b": "l2", "c": "l2+l1"}
    ).fit(X, Y)
    results = pd.DataFrame(search.cv_results_)
    assert list(results["name"]) == ["a", "b", "c"]
    assert list(results["n_terms"]) == [1, 1, 2]
    assert results["rank_test_score"].tolist()[1] == 1
    assert (results["mean_test_score"] <= results["r2"]).all()
    assert search.best_name_ == "b"
    assert search.best_family_ == "l2"
    assert search.best_index_ == 1
    assert search.best_score_ == results["mean_test_score"].max()


def test_results_are_those_of_the_best_estimator():
    model = Ridge(50.0).fit(X, Y)
    search = ImplicitRegularizationCV(model, families=["l1", "l2"]).fit(X, Y)
    alone = Estimator(model, family="l2").fit(X, Y)
    assert {name for name in vars(alone) if name.endswith("_")} <= set(vars(search))
    for name in ("coef_", "conf_int_", "r2_", "cosine_", "vif_", "n_equations_"):
        np.testing.assert_allclose(getattr(search, name), getattr(alone, name), rtol=1e-12)
    assert search.term_names_ == ["l2"]
    assert search.verdict_ == alone.verdict_
    assert search.model_ is model
    assert search.in_model_units() == pytest.approx({"alpha": 50.0}, rel=1e-8)
    assert search.summary().header == alone.summary().header
    assert list(search.summary().before.table["verdict"]) == search.cv_results_["verdict"]
    assert search.summary().before.table.index[search.best_index_] == "> l2"
    assert search.to_frame().shape == alone.to_frame().shape
    assert search.explicit_estimator().alpha == pytest.approx(50.0, rel=1e-8)
    assert search.score(X, Y) == pytest.approx(search.r2_)
    np.testing.assert_array_equal(search.predict(X), model.predict(X))
    assert search.n_features_in_ == 10


def test_search_before_fit():
    search = ImplicitRegularizationCV(Ridge().fit(X, Y), families=["l2"])
    for name in ("coef_", "best_estimator_", "something"):
        assert not hasattr(search, name)
    with pytest.raises(NotFittedError):
        search.summary()
    with pytest.raises(NotFittedError):
        search.score(X, Y)


def test_search_is_cloned_and_pickled():
    model = Ridge(50.0).fit(X, Y)
    search = ImplicitRegularizationCV(model, families=["l1", "l2"]).fit(X, Y)
    assert clone(search).model is model
    assert not hasattr(clone(search), "coef_")
    for again in (pickle.loads(pickle.dumps(search)), copy.deepcopy(search)):
        assert again.best_family_ == "l2"
        assert str(again.summary()) == str(search.summary())
        assert again.in_model_units() == search.in_model_units()
    assert repr(search) == (
        "ImplicitRegularizationCV(families=['l1', 'l2'], model=Ridge(alpha=50.0))"
    )


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights"])
def test_search_by_a_splitter(weighted):
    weights = WEIGHTS if weighted else None
    model = Ridge(50.0).fit(X, Y, sample_weight=weights)
    folds = KFold(20, shuffle=True, random_state=0)
    search = ImplicitRegularizationCV(model, families=LINEAR_FAMILIES, cv=folds)
    search.fit(X, Y, sample_weight=weights)
    assert search.best_name_ == "l2"
    assert search.in_model_units() == pytest.approx({"alpha": 50.0}, rel=1e-8)
    grid = GridSearchCV(Estimator(model), {"family": list(LINEAR_FAMILIES.values())}, cv=folds)
    grid.fit(X, Y, **({} if weights is None else {"sample_weight": weights}))
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], grid.cv_results_["mean_test_score"]
    )
    assert search.cv_results_["name"] == list(LINEAR_FAMILIES)


def test_search_of_a_template_and_weights():
    search = ImplicitRegularizationCV(Ridge(50.0), families=["l1", "l2"])
    search.fit(X, Y, sample_weight=WEIGHTS)
    assert search.in_model_units() == pytest.approx({"alpha": 50.0}, rel=1e-8)


def test_search_of_one_alpha_per_output():
    search = ImplicitRegularizationCV(
        Ridge(np.array([5.0, 50.0])).fit(X, Y_TWO), families=["l1", "l2"]
    )
    search.fit(X, Y_TWO)
    np.testing.assert_allclose(search.in_model_units()["alpha"], [5.0, 50.0], rtol=1e-8)


def test_search_with_parameters_of_the_estimator():
    model = ElasticNet(0.5, l1_ratio=0.6, **CD).fit(X, Y)
    search = ImplicitRegularizationCV(
        model,
        families=["l1", "smooth_l1"],
        known={"l2": 0.2},
        positive=True,
        covariance="ols",
    ).fit(X, Y)
    assert search.best_family_ == "l1"
    assert search.coef_ == pytest.approx([0.6], rel=1e-6)


def test_criterion_does_not_depend_on_the_order_of_the_rows():
    """Against the covariance of all row gradients, also for rows sorted by their target."""
    model = ElasticNet(0.5, l1_ratio=0.5, **CD).fit(X, Y)
    rows = 2 * X * (model.predict(X) - Y)[:, None]
    g, w = rows.mean(axis=0), model.coef_
    bases = [np.linalg.qr(np.array(c).T)[0] for c in ([w], [np.sign(w)])]
    noise = [np.trace(b.T @ np.cov(rows.T) @ b) / (99 * len(Y) * g @ g) for b in bases]
    net = nn.Linear(10, 1).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor(w)[None]), net.bias.fill_(float(model.intercept_))
    order = np.argsort(Y)
    inputs, target = torch.tensor(X[order]), torch.tensor(Y[order])[:, None]
    families = ["l2", "l1"]  # of what both leave, the noise costs no more than it is
    for trained, data in (
        (model, (X[order], Y[order])),
        (net, (inputs, target)),
        (net, (TensorDataset(inputs, target),)),
    ):
        params = {"loss": "mse"} if trained is net else {}
        search = ImplicitRegularizationCV(trained, families=families, **params)
        found = search.fit(*data).cv_results_
        shares = (found["r2"] - found["mean_test_score"]) / noise
        assert np.all((shares > 0.4) & (shares < 2.5)), shares  # 19 degrees of freedom


def test_search_of_a_model_without_a_penalty():
    search = ImplicitRegularizationCV(LinearRegression().fit(X, Y), families=["l2", "l1"])
    assert search.fit(X, Y).verdict_ == "no signal"
    assert search.best_score_ == 0.0


# --- the one-standard-error rule ------------------------------------------------------------


def test_simplest_within_one_standard_error():
    """A template is trained anew in every fold: families that hold the true one tie with it."""
    search = GridSearchCV(
        Estimator(Ridge(50.0)),
        {"family": ["l2+l1+power", "l2+l1", "l2", "l1"]},
        cv=KFold(5, shuffle=True, random_state=0),
        refit=simplest_within_one_se,
        error_score="raise",
    ).fit(X, Y)
    assert search.best_params_ == {"family": "l2"}
    assert search.best_estimator_.in_model_units()["alpha"] == pytest.approx(50.0, rel=1e-8)


@pytest.mark.parametrize(
    ("means", "stds", "chosen"),
    [
        ([0.90, 0.89, 0.50], [0.1, 0.1, 0.1], 1),
        ([0.90, 0.80, 0.50], [0.1, 0.1, 0.1], 0),
        ([0.90, np.nan, 0.89], [0.1, np.nan, 0.1], 2),
        ([0.89, 0.90, 0.895], [0.1, 0.1, 0.1], 1),
    ],
    ids=["tie", "clear", "failed-family", "best-of-the-simple"],
)
def test_rule_by_hand(means, stds, chosen):
    """Standard error of the best: .1 / sqrt(4) = .05."""
    results = {
        "params": [{"family": "l2+l1"}, {"family": "l2"}, {"family": "l1"}],
        "mean_test_score": means,
        "std_test_score": stds,
        **{f"split{i}_test_score": means for i in range(4)},
    }
    assert simplest_within_one_se(results) == chosen


def test_rule_in_a_pipeline():
    results = {
        "params": [{"est__family": "l2+l1"}, {"est__family": "l2"}],
        "mean_test_score": [0.90, 0.89],
        "std_test_score": [0.1, 0.1],
        "split0_test_score": [0.9, 0.9],
    }
    assert simplest_within_one_se(results) == 1
    results["params"] = [{"alpha": 1.0}, {"alpha": 2.0}]
    with pytest.raises(ValueError, match="Expected a search over one parameter 'family', got"):
        simplest_within_one_se(results)


# --- equations as a table -------------------------------------------------------------------


@pytest.fixture(scope="module")
def logistic():
    model = LogisticRegression(C=0.3, solver="newton-cholesky", tol=1e-10)
    return model.fit(X_WINE, Y_WINE)


def test_equations_in_statsmodels(logistic, sm):
    regression = equations(logistic, X_WINE, Y_WINE, ["l2", "l1"])
    est = Estimator(logistic, family="l2+l1", covariance="ols").fit(X_WINE, Y_WINE)
    theirs = sm.OLS(regression.target, regression.data).fit()
    assert list(theirs.params.index) == est.term_names_
    np.testing.assert_allclose(est.coef_, theirs.params, rtol=1e-10, atol=1e-16)
    np.testing.assert_allclose(est.std_err_, theirs.bse, rtol=1e-6)  # residuals are rounding
    assert est.r2_ == pytest.approx(theirs.rsquared, abs=1e-10)
    assert len(regression.data) == est.n_equations_ == 39


def test_equations_of_a_noisy_regression_in_statsmodels(sm):
    model = Ridge(50.0).fit(X, Y)
    regression = equations(model, X[:300], Y[:300], ["l2", "l1"])
    for covariance, options in {"ols": {}, "hc3": {"cov_type": "HC3", "use_t": True}}.items():
        est = Estimator(model, family="l2+l1", covariance=covariance).fit(X[:300], Y[:300])
        theirs = sm.OLS(regression.target, regression.data).fit(**options)
        np.testing.assert_allclose(est.coef_, theirs.params, rtol=1e-10)
        np.testing.assert_allclose(est.std_err_, theirs.bse, rtol=1e-10)
        np.testing.assert_allclose(est.pvalues_, theirs.pvalues, rtol=1e-8)
        np.testing.assert_allclose(est.conf_int_, theirs.conf_int(), rtol=1e-10)


def test_equations_by_groups(networks):
    """Folds over tensors: does one layer's coefficient hold in the others?"""
    x, y = draw(0)
    regression = equations(networks["l2"], x, y, "l2", loss="mse", params="all")
    assert set(regression.groups) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    scores = cross_val_score(
        LinearRegression(fit_intercept=False, positive=True),
        regression.data,
        regression.target,
        groups=regression.groups,
        cv=GroupKFold(3),
        scoring="neg_mean_squared_error",
    )
    assert (-scores < 1e-6 * np.mean(regression.target**2)).all()
    fitted = LinearRegression(fit_intercept=False).fit(regression.data, regression.target)
    est = Estimator(networks["l2"], loss="mse", params="all").fit(x, y)
    np.testing.assert_allclose(fitted.coef_, est.coef_, rtol=1e-10)


def test_equations_of_a_fitted_estimator_and_a_search():
    model = Ridge(50.0).fit(X, Y)
    est = Estimator(model, family="l2+l1").fit(X, Y)
    own, given = equations(est, X, Y), equations(model, X, Y, "l2+l1")
    pd.testing.assert_frame_equal(own.data, given.data)
    pd.testing.assert_series_equal(own.target, given.target)
    search = ImplicitRegularizationCV(model, families=["l1", "l2"]).fit(X, Y)
    assert list(equations(search, X, Y).data) == ["l2"]
    with pytest.raises(NotFittedError):
        equations(clone(search), X, Y)


def test_equations_do_not_change_the_estimator():
    est = Estimator(Ridge(50.0)).fit(X, Y)
    model = est.model_
    regression = equations(est, X, Y, "l1", params="all")
    assert est.family == "l2"
    assert est.params == "auto"
    assert est.model_ is model
    assert list(regression.data) == ["l1"]
    assert regression.data.index.names == ["tensor", "coordinate"]
