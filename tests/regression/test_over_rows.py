"""Errors over rows at fixed weights: against statsmodels, plain loops, and drawn rows."""

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from sklearn.linear_model import Lasso, LogisticRegression, Ridge
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    LinearModel,
)
from sklearn_implicitreg.penalties import L2, GradientNorm
from sklearn_implicitreg.trajectory import record

sm = pytest.importorskip("statsmodels.api")

RNG = np.random.default_rng(0)
N, P = 80, 4
X = RNG.normal(size=(N, P)) + 0.5
THETA = np.array([1.0, -0.5, 0.3, 0.8])
Y = X @ [1.2, -0.3, 0.3, 0.6] + RNG.normal(size=N)
WEIGHT = RNG.uniform(0.1, 3.0, size=N) * (np.arange(N) % 7 > 0)


def fit(model, *rows, family="l2 + l1", covariance="sandwich", **params):
    given = {"family": family, "covariance": covariance, "random_state": 0} | params
    return ImplicitRegularizationEstimator(model, **given).fit(*rows)


def columns(theta):
    return np.column_stack([2 * theta, np.sign(theta)])


def by_statsmodels(slopes, design, weight=None):
    """Coefficients and HC1 errors of a regression on a constant of what each row would say."""
    rows = -slopes @ np.linalg.pinv(design).T
    weight = np.ones(len(rows)) if weight is None else weight
    used = weight > 0
    found = [
        sm.WLS(own[used], np.ones(used.sum()), weights=weight[used]).fit(cov_type="HC1")
        for own in rows.T
    ]
    return np.array([[own.params[0], own.bse[0]] for own in found]).T


def agrees(est, expected, rel=1e-9):
    assert est.coef_ == pytest.approx(expected[0], rel=rel)
    assert est.std_err_ == pytest.approx(expected[1], rel=rel)


class TestSandwich:
    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["alike", "weighted"])
    @pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
    def test_squared_error(self, kind, weight):
        slopes = 2 * X * (X @ THETA - Y)[:, None]
        est = fit(LinearModel(THETA), kind(X), Y, weight)
        agrees(est, by_statsmodels(slopes, columns(THETA), weight))
        n = N if weight is None else int((weight > 0).sum())
        half = est.std_err_ * stats.t.ppf(0.975, n - 1)
        assert est.conf_int_[:, 1] - est.coef_ == pytest.approx(half, rel=1e-12)

    def test_log_loss_with_an_intercept_of_its_own_scope(self):
        labels = (Y > 0).astype(int)
        model = LogisticRegression(C=2.0).fit(X, labels)
        slopes = X * (model.predict_proba(X)[:, 1] - labels)[:, None]
        fresh = X[:, ::-1]  # other rows: the intercept is not at rest there
        agrees(fit(model, X, labels), by_statsmodels(slopes, columns(model.coef_[0])), rel=1e-7)
        slopes = fresh * (model.predict_proba(fresh)[:, 1] - labels)[:, None]
        agrees(fit(model, fresh, labels), by_statsmodels(slopes, columns(model.coef_[0])))

    def test_several_outputs(self):
        theta = np.stack([THETA, THETA[::-1] ** 2])
        both = np.column_stack([Y, X[:, 0]])
        left = X @ theta.T - both
        slopes = (2 * left[:, :, None] * X[:, None]).reshape(N, -1)
        agrees(fit(LinearModel(theta), X, both), by_statsmodels(slopes, columns(theta.ravel())))

    def test_coordinates_at_a_kink_give_no_equation(self):
        lasso = Lasso(alpha=0.3).fit(X, Y)
        kept = lasso.coef_ != 0
        assert 1 < kept.sum() < P
        slopes = 2 * X * (lasso.predict(X) - Y)[:, None]
        expected = by_statsmodels(slopes[:, kept], np.sign(lasso.coef_[kept])[:, None])
        agrees(fit(lasso, X, Y, family="l1"), expected)

    def test_known_penalties(self):
        slopes = 2 * X * (X @ THETA - Y)[:, None]
        known = fit(LinearModel(THETA), X, Y, family="l2", known={"l1": 0.1})
        expected = by_statsmodels(slopes + 0.1 * np.sign(THETA), 2 * THETA[:, None])
        agrees(known, expected)

    def test_a_coefficient_held_at_zero(self):
        theta = np.array([0.5, -0.05, 0.3, 0.5])
        held = fit(LinearModel(theta), X, Y, positive=True)
        (off,) = np.flatnonzero(held.coef_ == 0)
        slopes = 2 * X * (X @ theta - Y)[:, None]
        expected = by_statsmodels(slopes, columns(theta)[:, [1 - off]])
        assert held.coef_[1 - off] == pytest.approx(expected[0, 0])
        assert held.std_err_[1 - off] == pytest.approx(expected[1, 0])
        assert np.isnan(held.std_err_[off])

    def test_no_coefficient_above_zero(self):
        for kind in ("sandwich", "bootstrap"):
            theta = np.array([2.0, -0.4, 0.5, 0.5])
            held = fit(LinearModel(theta), X, Y, positive=True, covariance=kind)
            assert not held.coef_.any() and np.isnan(held.conf_int_).all()

    @pytest.mark.parametrize("kind", ["tensors", "loader"])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_a_net_against_a_loop_over_its_rows(self, dtype, kind):
        net = nn.Sequential(nn.Linear(P, 3), nn.Tanh(), nn.Linear(3, 2)).to(dtype)
        inputs, labels = torch.tensor(X, dtype=dtype), torch.tensor(Y > 0).long()
        weights = [net[0].weight, net[2].weight]
        slopes = []
        for row, label in zip(inputs, labels, strict=True):
            loss = nn.functional.cross_entropy(net(row[None]), label[None])
            own = torch.autograd.grad(loss, weights)
            slopes.append(torch.cat([g.reshape(-1) for g in own]).double().numpy())
        theta = torch.cat([w.detach().reshape(-1) for w in weights]).double().numpy()
        rows = (inputs, labels)
        if kind == "loader":
            rows = (DataLoader(TensorDataset(*rows), batch_size=1),)
        est = fit(net, *rows, loss="cross_entropy", params="weights")
        expected = by_statsmodels(np.array(slopes), columns(theta))
        agrees(est, expected, rel=1e-9 if dtype == torch.float64 else 1e-3)

    def test_blocks_of_many_rows(self):
        rng = np.random.default_rng(1)
        many = np.sort(rng.normal(size=(20_000, P)), axis=0)  # in an order, which does not matter
        targets = many @ [1.2, -0.3, 0.3, 0.6] + rng.normal(size=20_000)
        slopes = 2 * many * (many @ THETA - targets)[:, None]
        est = fit(LinearModel(THETA), many, targets)
        assert est.std_err_ == pytest.approx(by_statsmodels(slopes, columns(THETA))[1], rel=0.1)

    def test_numbers_out_of_the_range_of_squares(self):
        plain = fit(LinearModel(THETA), X, Y, family="l2")
        small = fit(LinearModel(THETA), 1e-90 * X, 1e-90 * Y * 1e-90, family="l2")
        scaled = fit(LinearModel(THETA), X, 1e-90 * Y, family="l2")
        assert small.std_err_ / small.coef_ == pytest.approx(scaled.std_err_ / scaled.coef_)
        assert np.isfinite(plain.std_err_).all()

    def test_wald_and_table(self):
        est = fit(LinearModel(THETA), X, Y)
        slopes = 2 * X * (X @ THETA - Y)[:, None]
        rows = -slopes @ np.linalg.pinv(columns(THETA)).T
        mean, cov = rows.mean(0), np.cov(rows, rowvar=False) / N
        test = est.wald_test("l2, l1")
        squared = mean @ np.linalg.solve(cov, mean)  # Hotelling's T squared of two means
        assert test.statistic == pytest.approx((N - 2) / (2 * (N - 1)) * squared, rel=1e-9)
        assert "over rows at fixed weights" in str(est.summary())

    def test_error_of_an_exact_fit_is_shown(self):
        """One weight and one coefficient leave nothing over, and rows still differ."""
        est = fit(LinearModel(THETA[:1]), X[:, :1], Y, family="l2")
        rows = -(X[:, 0] * (X[:, 0] * THETA[0] - Y)) / THETA[0]
        assert est.std_err_ == pytest.approx([rows.std(ddof=1) / N**0.5])
        assert f"{est.std_err_[0]:#.3g}" in str(est.summary())

    def test_search_takes_it_from_its_own_pass(self):
        model = LinearModel(THETA)
        options = {"covariance": "sandwich"}
        search = ImplicitRegularizationCV(model, families=["l2", "l2 + l1"], **options).fit(X, Y)
        alone = fit(model, X, Y, family=search.best_family_)
        assert search.std_err_ == pytest.approx(alone.std_err_, rel=1e-9)

    def test_a_list_of_one_endpoint(self):
        one = fit(LinearModel(THETA), [Endpoint(LinearModel(THETA), X, Y)])
        assert one.std_err_ == pytest.approx(fit(LinearModel(THETA), X, Y).std_err_, rel=1e-12)

    def test_auto_never_takes_it(self):
        for family in ("l2", "l2 + l1"):
            assert "rows" not in str(fit(LinearModel(THETA), X, Y, covariance="auto", family=family)
                                     .summary()).partition("Standard errors")[2]  # fmt: skip


class TestBootstrap:
    def test_is_the_studentized_bootstrap_of_a_plain_loop(self):
        est = fit(LinearModel(THETA), X, Y, WEIGHT, covariance="bootstrap")
        used = WEIGHT > 0
        slopes = 2 * X * (X @ THETA - Y)[:, None]
        rows = (-slopes @ np.linalg.pinv(columns(THETA)).T)[used]
        weight, rng = WEIGHT[used], np.random.default_rng(5)

        def mean_and_error(taken):
            own, w = rows[taken], weight[taken]
            mean = w @ own / w.sum()
            spread = np.square(w[:, None] * (own - mean)).sum(0)
            return mean, np.sqrt(len(own) / (len(own) - 1) * spread) / w.sum()

        mean, error = mean_and_error(np.arange(used.sum()))
        drawn = []
        for _ in range(4000):
            other, its_error = mean_and_error(rng.integers(0, used.sum(), used.sum()))
            drawn.append((other - mean) / its_error)
        half = np.quantile(np.abs(drawn), 0.95, axis=0) * error
        assert est.std_err_ == pytest.approx(error, rel=1e-9)
        assert est.conf_int_[:, 0] == pytest.approx(mean - half, abs=0.12 * error.min())
        assert est.conf_int_[:, 1] == pytest.approx(mean + half, abs=0.12 * error.min())

    def test_p_values_go_with_the_intervals(self):
        for shift in np.linspace(-0.6, 0.6, 7):
            model = LinearModel(THETA + shift * np.sign(THETA))
            for level in (0.9, 0.95):
                est = fit(model, X, Y, covariance="bootstrap", confidence_level=level)
                low, high = est.conf_int_.T
                outside = (low > 0) | (high < 0)
                clear = np.abs(est.pvalues_ - (1 - level)) > 0.002
                assert (outside == (est.pvalues_ < 1 - level))[clear].all()

    def test_high_levels_have_enough_draws(self):
        wide = fit(LinearModel(THETA), X, Y, covariance="bootstrap", confidence_level=0.999)
        assert "20000 draws" in str(wide.summary())

    def test_seed(self):
        first, second = (fit(LinearModel(THETA), X, Y, covariance="bootstrap") for _ in range(2))
        other = fit(LinearModel(THETA), X, Y, covariance="bootstrap", random_state=1)
        assert np.array_equal(first.conf_int_, second.conf_int_)
        assert not np.array_equal(first.conf_int_, other.conf_int_)
        before = np.random.get_state()[1].copy()
        fit(LinearModel(THETA), X, Y, covariance="bootstrap", random_state=None)
        assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("covariance", ["sandwich", "bootstrap"])
def test_covers_the_coefficient_of_the_population(covariance):
    """The gradient of the population is ``2 (theta - beta)`` where features are independent."""
    beta, runs, n, held = np.array([1.2, -0.3, 0.3, 0.6]), 200, 20, 0
    truth = np.linalg.lstsq(columns(THETA), -2 * (THETA - beta), rcond=None)[0]
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(n, P))
        est = fit(LinearModel(THETA), rows, rows @ beta + rng.normal(size=n), covariance=covariance)
        low, high = est.conf_int_[0]
        held += low <= truth[0] <= high
    assert stats.binom.ppf(0.001, runs, 0.95) <= held <= stats.binom.ppf(0.999, runs, 0.95)


def recorded():
    net = nn.Linear(P, 1).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    inputs, targets = torch.tensor(X), torch.tensor(Y)[:, None]
    with record(net, optimizer) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(inputs), targets).backward()
            optimizer.step()
    return net, recorder.trajectory


def along(**given):
    net, trajectory = recorded()
    options = {"mode": "trajectory", "trajectory": trajectory, "loss": "mse"}
    return fit(net, torch.tensor(X), torch.tensor(Y)[:, None], **options, **given)


def of_batches(**given):
    net = nn.Sequential(nn.Linear(P, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    rows = (torch.tensor(X), torch.tensor(Y)[:, None])
    return fit(net, *rows, loss="mse", params="weights", batch_size=N, **given)


def on_a_net(**given):
    net = nn.Linear(P, 1).double()
    return fit(net, torch.tensor(X), torch.tensor(Y)[:, None], loss="mse", **given)


MODEL = LinearModel(THETA)
WRONG = {
    "trajectory": (along, "Expected mode='endpoint' with covariance="),
    "endpoints": (
        lambda **given: fit(MODEL, [Endpoint(MODEL, X, Y)] * 2, **given),
        "Expected one model with covariance='[a-z]+', got 2 endpoints",
    ),
    "arrays": (
        lambda **given: fit("precomputed", columns(THETA), THETA, family="l2", **given),
        "Expected the equations of one model on its rows",
    ),
    "a family of rows": (
        lambda **given: fit(MODEL, X, Y, **{"family": {"a": lambda p, b: b.outputs[:, 0]}} | given),
        "Expected a family of the weights alone for errors over rows, got Callables",
    ),
    "a family of the gradient": (
        lambda **given: on_a_net(family=GradientNorm(), **given),
        "Expected a family of the weights alone",
    ),
    "a known family of rows": (
        lambda **given: on_a_net(family=L2() + 0.1 * GradientNorm(), **given),
        "Expected a family of the weights alone",
    ),
    "one row": (
        lambda **given: fit(MODEL, X[:1], Y[:1], **given),
        r"Expected at least 2 rows, whose gradients give the noise",
    ),
    "one row with weight": (
        lambda **given: fit(MODEL, X, Y, np.eye(N)[0], **given),
        "Expected at least 2 rows or batches for covariance='[a-z]+', got 1",
    ),
    "one batch": (of_batches, "got 1; give more rows, or a smaller batch_size"),
    "passes": (
        lambda **given: fit(
            nn.Linear(P, 1).double(),
            DataLoader(TensorDataset(torch.tensor(X), torch.tensor(Y)[:, None]), batch_size=8),
            loss="mse",
            n_passes=2,
            **given,
        ),  # fmt: skip
        "Expected n_passes=1 for errors over rows, got 2",
    ),
    "layers": (
        lambda **given: fit(MODEL, X, Y, **given).by_layer(),
        "got some of its tensors alone, or arrays; use covariance='auto'",
    ),
    "structured": (
        lambda **given: fit(Ridge().fit(X, Y), X, Y, family="quadratic", **given),
        "Expected covariance left at the default with Quadratic",
    ),
}


@pytest.mark.parametrize("covariance", ["sandwich", "bootstrap"])
@pytest.mark.parametrize("kind", WRONG)
def test_where_it_makes_no_sense(kind, covariance):
    call, text = WRONG[kind]
    with pytest.raises(ValueError, match=text):
        call(covariance=covariance)
