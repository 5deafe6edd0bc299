"""Trained modules: known answers, invariances, kinks, and models that are not trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from module_cases import X_, Y_, N, by_hand, digits, digits_net, estimate, l1, l2, mlp, rows
from sklearn.datasets import load_diabetes, load_linnerud
from sklearn.linear_model import Lasso, MultiTaskLasso, Ridge
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.adapters.torch import functions


class TestDigits:
    @pytest.mark.parametrize("scope", ["all", "auto"])
    @pytest.mark.parametrize(
        ("family", "coefs", "max_iter"),
        [
            ("l2", {"l2": 1e-2}, 800),
            ("smooth_l1", {"smooth_l1": 1e-3}, 1700),
            ("elastic_net", {"l2": 1e-2, "smooth_l1": 1e-3}, 800),
        ],
        ids=["l2", "smooth_l1", "both"],
    )
    def test_trained_penalty(self, family, coefs, max_iter, scope):
        model = digits_net(scope, max_iter, **coefs)
        est = estimate(model, *digits(), family=family, loss="cross_entropy", params=scope)
        np.testing.assert_allclose(est.coef_, list(coefs.values()), rtol=1e-3)
        assert est.term_names_ == list(coefs)
        assert est.r2_ >= 0.999
        assert est.verdict_ == "supported"
        assert est.n_equations_ == (1210 if scope == "all" else 1184)

    def test_biases_that_were_not_penalized_bias_the_answer(self):
        model = digits_net("auto", 800, l2=1e-2)
        est = estimate(model, *digits(), loss="cross_entropy", params="all")
        assert abs(est.coef_[0] / 1e-2 - 1) > 1e-3
        auto = estimate(model, *digits(), loss="cross_entropy", params="auto")
        assert "Parameters without equations: 0.bias, 2.bias." in str(auto.summary())

    @pytest.mark.parametrize("scope", ["all", "auto"])
    def test_out_of_family_is_never_supported(self, scope):
        model = digits_net(scope, 800, l2=3e-3, smooth_l1=1e-3)
        est = estimate(model, *digits(), loss="cross_entropy", params=scope)
        assert est.verdict_ == "partial"
        assert est.r2_ < 0.98
        true = estimate(model, *digits(), family="elastic_net", loss="cross_entropy", params=scope)
        assert true.verdict_ == "supported"

    def test_ridge_as_a_module(self):
        """Weights of an exact solver, of another library."""
        X, y = load_diabetes(return_X_y=True)
        ridge = Ridge(alpha=3.0).fit(X, y)
        model = nn.Linear(10, 1).double()
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(ridge.coef_))
            model.bias.fill_(float(ridge.intercept_))
        est = estimate(model, X, y, params="auto")
        assert est.coef_[0] == pytest.approx(3.0 / len(y), rel=1e-9)
        assert est.in_model_units()["weight_decay"] == pytest.approx(6.0 / len(y), rel=1e-9)


class TestInvariances:
    def test_weight_decay_is_twice_l2(self):
        model, (X, y) = mlp(), rows()
        a, b = (estimate(model, X, y, family=f).coef_[0] for f in ("l2", "weight_decay"))
        assert b == pytest.approx(2 * a, rel=1e-12)

    def test_regression_is_the_one_by_hand(self):
        model, (X, y) = mlp(), rows()
        loss = F.mse_loss(model(torch.as_tensor(X))[:, 0], torch.as_tensor(y))
        est = estimate(model, X, y, family="l2+l1")
        np.testing.assert_allclose(est.coef_, by_hand(model, loss, [l2, l1]), rtol=1e-9)

    def test_scaling_the_loss_scales_the_coefficients(self):
        model, (X, y) = mlp(), rows()
        one = estimate(model, X, y, loss=lambda o, t: (o - t).square(), family="l2+l1")
        five = estimate(model, X, y, loss=lambda o, t: 5 * (o - t).square(), family="l2+l1")
        np.testing.assert_allclose(five.coef_, 5 * one.coef_, rtol=1e-12)
        assert five.r2_ == pytest.approx(one.r2_, rel=1e-12)

    def test_order_of_rows(self):
        model, (X, y) = mlp(), rows()
        order = np.random.default_rng(1).permutation(N)
        one, other = estimate(model, X, y), estimate(model, X[order], y[order])
        np.testing.assert_allclose(other.coef_, one.coef_, rtol=1e-12)

    @pytest.mark.parametrize("batch_size", [1, 7, 39, 40, 1000])
    def test_batch_size(self, batch_size):
        model, (X, y) = mlp(), rows()
        one = estimate(model, X, y, family="l2+l1")
        other = estimate(model, X, y, family="l2+l1", batch_size=batch_size)
        np.testing.assert_allclose(other.coef_, one.coef_, rtol=1e-11)

    def test_weights_of_rows(self):
        model, (X, y) = mlp(), rows()
        counts = np.random.default_rng(2).integers(0, 4, N)
        repeated = estimate(model, np.repeat(X, counts, axis=0), np.repeat(y, counts))
        weighted = estimate(model, X, y, counts.astype(float), batch_size=9)
        np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-12)
        scaled = estimate(model, X, y, 3.0 * counts)
        np.testing.assert_allclose(scaled.coef_, repeated.coef_, rtol=1e-12)

    def test_score_of_all_rows_again_is_r2(self):
        model, (X, y) = mlp(), rows()
        est = estimate(model, X, y)
        assert est.score(X, y) == pytest.approx(est.r2_, rel=1e-10)


class TestKinks:
    """Weights of scikit-learn's exact solvers, put into modules."""

    def test_l1_zeros_give_inequalities(self):
        X, y = load_diabetes(return_X_y=True)
        lasso = Lasso(alpha=0.3, tol=1e-14, max_iter=100_000).fit(X, y)
        n_zero = int((lasso.coef_ == 0).sum())
        assert 0 < n_zero < 9
        model = nn.Linear(10, 1).double()
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(lasso.coef_))
            model.bias.fill_(float(lasso.intercept_))
        est = estimate(model, X, y, family="l1", params="auto")
        assert est.coef_[0] == pytest.approx(0.6, rel=1e-9)
        assert est.n_equations_ == 10 - n_zero
        text = " ".join(str(est.summary()).split())
        assert f"{n_zero} coordinates at a kink of the penalty or a bound give no equation" in text
        assert "all their inequalities hold" in text
        moved = estimate(
            model, X, y + 400 * X[:, lasso.coef_ == 0].sum(1), family="l1", params="auto"
        )
        assert "of their inequalities do not hold" in " ".join(str(moved.summary()).split())

    def test_l1_that_is_known_still_bounds_the_zeros(self):
        X, y = load_diabetes(return_X_y=True)
        lasso = Lasso(alpha=0.3, tol=1e-14, max_iter=100_000).fit(X, y)
        model = nn.Linear(10, 1).double()
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(lasso.coef_))
            model.bias.fill_(float(lasso.intercept_))
        est = estimate(model, X, y, family="l1", known={"l1": 0.2}, params="auto")
        assert est.coef_[0] == pytest.approx(0.4, rel=1e-9)
        assert "all their inequalities hold" in " ".join(str(est.summary()).split())

    def test_l21(self):
        X, Y = load_linnerud(return_X_y=True)
        X = (X - X.mean(0)) / X.std(0)
        lasso = MultiTaskLasso(alpha=2.0, tol=1e-14, max_iter=100_000).fit(X, Y)
        model = nn.Linear(3, 3).double()
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(lasso.coef_))
            model.bias.copy_(torch.as_tensor(lasso.intercept_))
        loss = nn.MSELoss(reduction="sum")
        est = estimate(model, X, Y, family="l21", loss=loss, params="auto")
        assert est.coef_[0] == pytest.approx(4.0, rel=1e-8)
        assert est.n_equations_ == int((lasso.coef_ != 0).sum())


class TestUnfitted:
    def test_a_class_is_no_model(self):
        with pytest.raises(
            TypeError, match="Expected a trained model instance, got the class Linear"
        ):
            estimate(nn.Linear, X_, Y_)

    def test_a_bare_module_needs_a_loss(self):
        with pytest.raises(ValueError, match="does not say what it was trained with: give `loss=`"):
            ImplicitRegularizationEstimator(mlp()).fit(X_, Y_)

    def test_more_coefficients_than_equations(self):
        with pytest.raises(
            ValueError, match="at least as many equations as coefficients, got 1 eq"
        ):
            estimate(mlp(), X_, Y_, family="l2+l1", params=r"2\.bias")


@pytest.mark.parametrize("between", ["a part", "a batch"])
def test_masses_are_read_once(between, monkeypatch):
    """What is asked of other rows in between, or a late reading, reads them no second time."""
    net = nn.Linear(3, 2)
    X, y = torch.randn(12, 3), torch.arange(12) % 2
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    problem = replace(adapt(net, Data(X, y), Options(loss=loss)), reading=int("1000"))
    read = []

    def counted(own, masses_of=functions.masses_of):
        read.append(own.n_rows)
        return masses_of(own)

    monkeypatch.setattr(functions, "masses_of", counted)
    expected = np.where(np.arange(12) % 2, 3.0, 1.0)
    for _ in range(3):
        whole = replace(problem, reading=int("1000"))
        np.testing.assert_allclose(whole.masses, expected)
        rows = np.array([1, 2])
        if between == "a part":
            part = problem.take(rows, np.array([1.0, 2.0]))
        else:
            part = problem.seeing((X[rows], y[rows]))
        np.testing.assert_allclose(part.masses, [3.0, 2.0 if between == "a part" else 1.0])
    assert read.count(12) == 1
