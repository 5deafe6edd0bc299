"""Structured families through the estimator, against matrices that are known."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    endpoints,
    equations,
)
from sklearn_implicitreg.penalties import Diagonal, EarlyStopping, Quadratic
from sklearn_implicitreg.trajectory import record

P, N = 4, 50
RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((P, P))
MATRIX = ROOT @ ROOT.T / P
TRIANGLE = MATRIX[np.triu_indices(P)]


def penalized(seed, matrix=MATRIX):
    """Least squares with the penalty ``theta' matrix theta``, as an endpoint."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, P))
    y = X @ rng.standard_normal(P) + rng.standard_normal(N)
    model = LinearRegression(fit_intercept=False).fit(X, y)
    model.coef_ = np.linalg.solve(X.T @ X / N + matrix, X.T @ y / N)
    return Endpoint(model, X, y)


def group(count, matrix=MATRIX):
    return [penalized(seed, matrix) for seed in range(count)]


def estimator(family, **params):
    return ImplicitRegularizationEstimator(None, family=family, **params)


def words(est):
    return " ".join(str(est.summary()).split())


# Coefficients


@pytest.mark.parametrize("family", ["quadratic", Quadratic(), Quadratic(psd=True)], ids=repr)
@pytest.mark.parametrize("count", [P, 3 * P])
def test_matrix_is_found(family, count):
    est = estimator(family).fit(group(count))
    np.testing.assert_allclose(est.penalty_.matrix_, MATRIX, atol=1e-10)
    np.testing.assert_allclose(est.coef_, TRIANGLE, atol=1e-10)
    assert len(est.term_names_) == P * (P + 1) // 2
    assert est.n_equations_ == count * P
    assert est.r2_ == pytest.approx(1.0)
    np.testing.assert_allclose(est.cosine_, [1.0])
    assert est.verdict_ == "supported"
    assert est.std_err_ is est.pvalues_ is est.vif_ is est.condition_number_ is None
    assert est.conf_int_ is None


def test_too_few_endpoints_are_not_identifiable():
    est = estimator("quadratic").fit(group(P - 1))
    assert est.verdict_ == "not identifiable"
    assert "12 equations determine 9 of 10 unknowns" in words(est)
    assert est.r2_ == pytest.approx(1.0)
    own = penalized(0)
    thetas = torch.tensor(own.model.coef_)
    slope = torch.func.grad(est.penalty_)({"coef": thetas})["coef"].numpy()
    data = 2 * own.X.T @ (own.y - own.X @ own.model.coef_) / N
    np.testing.assert_allclose(slope, data, rtol=1e-9)


def test_diagonal_of_one_endpoint_tests_nothing():
    own = penalized(1, np.diag([0.1, 0.2, 0.3, 0.4]))
    est = ImplicitRegularizationEstimator(own.model, family="diagonal").fit(own.X, own.y)
    np.testing.assert_allclose(est.coef_, [0.1, 0.2, 0.3, 0.4], rtol=1e-10)
    assert est.verdict_ == "partial"
    assert "many coefficients as equations: R2 tests nothing" in words(est)
    listed = estimator("diagonal").fit([own])
    assert str(listed.summary()) == str(est.summary())


def test_diagonal_of_several_endpoints():
    truth = np.array([0.1, 0.2, 0.3, 0.4])
    est = estimator("diagonal").fit(group(5, np.diag(truth)))
    np.testing.assert_allclose(est.coef_, truth, rtol=1e-10)
    np.testing.assert_allclose(est.penalty_.diagonal_, truth, rtol=1e-10)
    assert est.verdict_ == "supported"
    wrong = estimator("diagonal").fit(group(20))  # a full matrix
    assert wrong.verdict_ == "partial"
    assert 0.1 < wrong.r2_ < 0.99


def test_r2_and_cosine_are_those_of_all_equations():
    own = group(6)
    est = estimator(Diagonal()).fit(own)
    thetas = np.stack([e.model.coef_ for e in own], axis=1)
    targets = np.stack([2 * e.X.T @ (e.y - e.model.predict(e.X)) / N for e in own], axis=1)
    coef = (targets * thetas).sum(1) / (2 * np.square(thetas).sum(1))
    fitted = 2 * coef[:, None] * thetas
    np.testing.assert_allclose(est.coef_, coef, rtol=1e-10)
    left = np.square(targets - fitted).sum() / np.square(targets).sum()
    assert est.r2_ == pytest.approx(1 - left, rel=1e-10)
    cosine = (targets * fitted).sum() / np.linalg.norm(targets) / np.linalg.norm(fitted)
    assert est.cosine_[0] == pytest.approx(cosine, rel=1e-10)


def stopped(seed, lr=0.05, n_steps=7):
    own = penalized(seed, np.eye(P))
    hessian, moment = 2 * own.X.T @ own.X / N, 2 * own.X.T @ own.y / N
    theta = np.zeros(P)
    for _ in range(n_steps):
        theta = theta - lr * (hessian @ theta - moment)
    own.model.coef_ = theta
    return own


def test_steps_of_gradient_descent_are_counted():
    own = stopped(0)
    est = ImplicitRegularizationEstimator(own.model, family=EarlyStopping(lr=0.05))
    est.fit(own.X, own.y)
    assert est.coef_[0] == pytest.approx(7.0, rel=1e-6)
    assert list(est.term_names_) == ["steps"]
    low, high = est.conf_int_[0]
    assert low <= 7.0 + 1e-6 and high >= 7.0 - 1e-6
    assert est.verdict_ == "supported"
    many = estimator(EarlyStopping(lr=0.05)).fit([stopped(s) for s in range(5)])
    assert many.coef_[0] == pytest.approx(7.0, rel=1e-6)


def test_steps_are_scored_by_the_curvature_of_each_endpoint():
    many = estimator(EarlyStopping(lr=0.05)).fit([stopped(s) for s in range(5)])
    assert many.score([stopped(9)]) == pytest.approx(1.0)
    assert many.score([stopped(9, n_steps=20)]) < 0.9
    single = ImplicitRegularizationEstimator(stopped(0).model, family=EarlyStopping(lr=0.05))
    single.fit(stopped(0).X, stopped(0).y)
    assert single.score([stopped(3)]) == pytest.approx(1.0)
    own = estimator(EarlyStopping(lr=0.05, shared=False)).fit([stopped(s) for s in range(5)])
    with pytest.raises(ValueError, match="fit with shared=True"):
        own.score([stopped(9)])
    families = ["l2", EarlyStopping(lr=0.05), EarlyStopping(lr=0.001)]
    search = GridSearchCV(estimator("l2"), {"family": families}, cv=3)
    search.fit([stopped(s) for s in range(9)])
    assert search.best_params_["family"].lr == 0.05
    assert search.best_score_ == pytest.approx(1.0)


def test_intervals_go_by_the_level_and_by_what_the_endpoints_are():
    own = [Endpoint(Ridge(50.0).fit(e.X, e.y), e.X, e.y) for e in group(6)]
    halves = []
    for level in (0.5, 0.99):
        est = estimator("early_stopping", confidence_level=level).fit(own)
        halves.append(np.diff(np.log(est.conf_int_[0]))[0])
    ratio = student_t.ppf(0.995, 5) / student_t.ppf(0.75, 5)
    assert halves[1] / halves[0] == pytest.approx(ratio, rel=1e-9)
    assert "other data sets" in words(est)
    X, y = load_diabetes(return_X_y=True)
    resamples = estimator("early_stopping").fit(endpoints(Ridge(2.0), X, y, 5, random_state=0))
    assert "standard deviation of the answers of single resamples" in words(resamples)
    models = [Endpoint(Ridge(a).fit(X, y), X, y) for a in (1.0, 2.0, 3.0, 4.0)]
    assert "interval is by the misfit" in words(estimator("early_stopping").fit(models))


def test_zero_gradients_are_no_signal():
    est = estimator("quadratic").fit(group(5, np.zeros((P, P))))
    assert est.verdict_ == "no signal"
    assert np.isnan(est.coef_).all()
    assert est.r2_ == 0.0
    assert not est.penalty_.matrix_.any()


def test_no_steps_are_told_of_a_zero_gradient():
    X, y = load_diabetes(return_X_y=True)
    est = ImplicitRegularizationEstimator(LinearRegression(), family="early_stopping").fit(X, y)
    assert est.verdict_ == "no signal"
    assert np.isnan(est.coef_).all() and np.isnan(est.conf_int_).all()
    text = words(est)
    for word in ("the interval is", "left over", "eigenvalues", "no finite number"):
        assert word not in text and word not in est.to_json()


def test_weights_beyond_least_squares_are_out_of_family():
    X, y = load_diabetes(return_X_y=True)
    model = LinearRegression().fit(X, y)
    model.coef_ = 1.3 * model.coef_
    est = ImplicitRegularizationEstimator(model, family="early_stopping").fit(X, y)
    assert np.isinf(est.coef_).all()
    assert est.verdict_ == "out of family"
    assert "No finite number of steps is best for time" in words(est)


def test_lazy_names_are_shown():
    est = estimator("quadratic").fit(group(5))
    assert repr(est.term_names_).startswith("['q[coef[0],coef[0]]', 'q[coef[0],coef[1]]', ")
    assert repr(est.term_names_).endswith(", ... (10 names)]")
    few = estimator("diagonal").fit(group(5)).term_names_
    assert eval(repr(few)) == list(few)


def test_path_of_a_penalized_module(capsys):
    """Steps on L + theta' Q theta, held against L: the mean column is that at the mean iterate."""
    own = penalized(0)
    inputs, outputs = torch.tensor(own.X), torch.tensor(own.y)[:, None]
    module = nn.Linear(P, 1, bias=False).double()
    matrix = torch.tensor(MATRIX)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.weight.data[:] = torch.tensor([[3.0, -2.0, 1.0, 2.0]], dtype=torch.float64)
    with record(module, optimizer) as path:
        for _ in range(6 * P):
            optimizer.zero_grad()
            theta = module.weight[0]
            loss = nn.functional.mse_loss(module(inputs), outputs)
            (loss + theta @ matrix @ theta).backward()
            optimizer.step()
    est = ImplicitRegularizationEstimator(
        module,
        family="quadratic",
        loss="mse",
        mode="trajectory",
        trajectory=path.trajectory,
        window=2,
        verbose=1,
    ).fit(inputs, outputs)
    assert "windows [" + "#" * 30 + "] 12/12, " in capsys.readouterr().out
    np.testing.assert_allclose(est.penalty_.matrix_, MATRIX, atol=1e-6)
    assert est.verdict_ == "supported"
    assert "12 windows of" in str(est.summary())


# Report


def test_summary_is_short_and_the_frame_is_whole():
    est = estimator("quadratic").fit(group(8))
    frame = est.to_frame()
    assert list(frame.columns) == ["term", "coef", "ci_low", "ci_high"]
    assert frame["coef"].tolist() == est.coef_.tolist()
    large = 30
    inputs = RNG.standard_normal((80, large))
    resamples = endpoints(Ridge(2.0), inputs, inputs.sum(1), large + 5, random_state=0)
    wide = estimator("quadratic").fit(resamples)
    text = str(wide.summary())
    assert "The first 10 of 465 coefficients" in text
    assert len(text.splitlines()) < 45
    assert "eigenvalues of Q" in text
    assert "35 endpoints of Ridge" in text
    np.testing.assert_allclose(wide.penalty_.matrix_, 2.0 / 80 * np.eye(large), atol=1e-9)
    found = json.loads(wide.to_json())
    assert len(found["terms"]) == 465
    assert found["rank"] == 465
    assert "<table>" in wide.summary()._repr_html_()


def test_what_needs_terms_says_so():
    est = estimator("quadratic").fit(group(5))
    for method in (est.in_model_units, est.explicit_estimator):
        with pytest.raises(ValueError, match=r"got Quadratic\(\), which is solved as a whole"):
            method()


def test_a_fit_with_terms_after_it_is_complete():
    own = group(5)
    est = estimator("l2").fit(own)
    path = est.coef_path_
    est.set_params(family="quadratic").fit(own)
    assert not hasattr(est, "coef_path_")
    est.set_params(family="l2").fit(own)
    np.testing.assert_array_equal(est.coef_path_, path)
    assert est.std_err_.shape == (1,)


def test_results_are_pickled_and_cloned():
    est = estimator(Quadratic(psd=True)).fit(group(5))
    again = pickle.loads(pickle.dumps(est))
    assert str(again.summary()) == str(est.summary())
    assert again.score(group(5)) == est.score(group(5))
    assert clone(est).set_params(family__psd=False).family.psd is False


# Score and selection


def test_score_is_the_plain_r2_at_other_endpoints():
    est = estimator("diagonal").fit(group(6))
    others = [penalized(seed) for seed in range(10, 14)]
    thetas = np.stack([e.model.coef_ for e in others], axis=1)
    targets = np.stack([2 * e.X.T @ (e.y - e.model.predict(e.X)) / N for e in others], axis=1)
    left = np.square(targets - 2 * est.coef_[:, None] * thetas).sum()
    assert est.score(others) == pytest.approx(1 - left / np.square(targets).sum(), rel=1e-10)
    matrix = estimator("quadratic").fit(group(6))
    assert matrix.score(others) == pytest.approx(1.0)
    with pytest.raises(
        ValueError, match="Expected a list of Endpoint to score Quadratic\\(\\), got other"
    ):
        matrix.score(others[0].X, others[0].y)


def test_search_over_folds_of_endpoints():
    search = GridSearchCV(estimator("l2"), {"family": ["l2", "diagonal", "quadratic"]}, cv=4)
    assert search.fit(group(16)).best_params_ == {"family": "quadratic"}
    best = ImplicitRegularizationCV(None, families=["l2", "quadratic"], cv=4).fit(group(16))
    assert best.best_family_ == "quadratic"
    np.testing.assert_allclose(best.penalty_.matrix_, MATRIX, atol=1e-9)


def test_selection_in_one_pass_and_tables_refuse():
    with pytest.raises(ValueError, match="Expected a family with terms"):
        ImplicitRegularizationCV(None, families=["l2", "quadratic"]).fit(group(5))
    with pytest.raises(ValueError, match="Expected a family with terms"):
        equations(None, group(5), families="quadratic")


@pytest.mark.parametrize(
    "params",
    [{"group_by": "layer"}, {"known": {"l2": 0.1}}, {"positive": True}, {"covariance": "hc3"}],
    ids=str,
)
def test_parameters_of_terms_are_refused(params):
    with pytest.raises(ValueError, match=f"Expected {next(iter(params))} left at the default"):
        estimator("quadratic", **params).fit(group(5))


@pytest.mark.parametrize(
    "params",
    [
        {"family": "quadratic"},
        {"family": Diagonal()},
        {"family": "l1"},
        {"known": {"l2": 0.1}},
        {"group_by": "layer"},
        {"mode": "trajectory"},
    ],
    ids=str,
)
def test_parameters_of_a_model_are_refused_beside_equations(params):
    est = ImplicitRegularizationEstimator("precomputed", **params)
    with pytest.raises(ValueError, match=f"Expected {next(iter(params))} left at the default"):
        est.fit(np.ones((3, 1)), np.ones(3))


def test_bounds_are_refused():
    own = penalized(0)
    model = Lasso(alpha=0.1, positive=True).fit(own.X, -own.X[:, 0])
    with pytest.raises(ValueError, match="Expected parameters away from bounds"):
        ImplicitRegularizationEstimator(model, family="diagonal").fit(own.X, -own.X[:, 0])


def test_other_parameters_in_a_score_are_refused():
    est = estimator("quadratic", loss="mse").fit([penalized(s) for s in range(5)])
    rows = torch.ones(3, P, dtype=torch.float64)
    with pytest.raises(ValueError, match="Expected endpoints with the parameters"):
        est.score([Endpoint(nn.Linear(P, 1).double(), rows, rows[:, :1])])
