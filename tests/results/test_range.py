"""Numbers at the end of the range: no square of them is taken, so all answers are the same."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from torch import nn

from sklearn_implicitreg import Endpoint, ImplicitRegularizationCV, LinearModel
from sklearn_implicitreg import ImplicitRegularizationEstimator as Estimator
from sklearn_implicitreg.regression.fit import Settings, fit
from sklearn_implicitreg.regression.system import System
from sklearn_implicitreg.trajectory import record

X, Y = load_diabetes(return_X_y=True)
RIDGE = Ridge(3.0).fit(X, Y)
ENDS = [1e100, 1e155, 1e160, 1e200, 1e-100, 1e-155, 1e-160, 1e-200]


def model_of(scale):
    return LinearModel(RIDGE.coef_ * scale, RIDGE.intercept_ * scale)


def numbers(est, unit):
    """All that a fit says, free of units where the coefficient is proportional to the target."""
    own = (est.coef_ / unit, est.std_err_ / unit, est.conf_int_ / unit)
    rest = (est.pvalues_, est.cosine_, est.vif_, est.condition_number_, est.r2_, est.n_equations_)
    return np.concatenate([np.ravel(part) for part in (*own, *rest)])


@pytest.mark.parametrize("scale", ENDS)
@pytest.mark.parametrize("covariance", ["auto", "ols"])
@pytest.mark.parametrize("positive", [False, True])
def test_a_lasso_in_any_units(scale, covariance, positive):
    options = {"family": "l1", "covariance": covariance, "positive": positive}
    plain = Estimator(model_of(1.0), **options).fit(X, Y)
    est = Estimator(model_of(scale), **options).fit(X, Y * scale)
    np.testing.assert_allclose(numbers(est, scale), numbers(plain, 1.0), rtol=1e-9)
    assert est.verdict_ == plain.verdict_
    assert est.score(X, Y * scale) == pytest.approx(plain.r2_, rel=1e-9)
    assert est.penalty_.leaves[0][1][0] == pytest.approx(est.coef_[0], rel=1e-12)
    shown, expected = dict(est.summary().header), dict(plain.summary().header)
    for name in ("R2 (uncentered)", "F(1, 9)", "Prob (F)", "Verdict"):
        assert shown[name] == expected[name]
    # The likelihood of m numbers in other units: their density is divided by the unit.
    away = est._result.inference.log_likelihood - plain._result.inference.log_likelihood
    assert away == pytest.approx(-est.n_equations_ * np.log(scale), rel=1e-9)
    assert est.aic_ - plain.aic_ == pytest.approx(-2 * away, rel=1e-9)


@pytest.mark.parametrize("scale", ENDS)
def test_a_ridge_in_any_units(scale):
    """Columns and target are both out of range."""
    est = Estimator(model_of(scale)).fit(X, Y * scale)
    assert est.coef_[0] * len(Y) == pytest.approx(3.0, rel=1e-8)
    assert (est.verdict_, est.r2_) == ("supported", pytest.approx(1.0, abs=1e-12))


@pytest.mark.parametrize("scale", ENDS)
def test_influence_and_tests_in_any_units(scale):
    plain = Estimator(model_of(1.0), family="l1").fit(X, Y)
    est = Estimator(model_of(scale), family="l1").fit(X, Y * scale)
    table, expected = est.influence(), plain.influence()
    table["resid"] /= scale
    np.testing.assert_allclose(table.values, expected.values, rtol=1e-8)
    test, wanted = est.wald_test("l1 = 0"), plain.wald_test("l1 = 0")
    assert test.statistic == pytest.approx(wanted.statistic, rel=1e-9)


@pytest.mark.parametrize("scale", [1e155, 1e-160])
def test_several_endpoints_and_outputs(scale):
    def endpoints(unit):
        coefs = [RIDGE.coef_ * unit * (1 + i / 10) for i in range(5)]
        models = [LinearModel(coef, RIDGE.intercept_ * unit) for coef in coefs]
        return [Endpoint(model, X, Y * unit) for model in models]

    plain = Estimator(None, family="l1").fit(endpoints(1.0))
    est = Estimator(None, family="l1").fit(endpoints(scale))
    np.testing.assert_allclose(numbers(est, scale), numbers(plain, 1.0), rtol=1e-9)
    np.testing.assert_allclose(est.coef_path_ / scale, plain.coef_path_, rtol=1e-9)
    np.testing.assert_allclose(
        est.coef_path_conf_int_ / scale, plain.coef_path_conf_int_, rtol=1e-9
    )


def test_powers_of_two_change_no_digit():
    rng = np.random.default_rng(0)
    design, target = rng.normal(size=(20, 3)), rng.normal(size=20)
    groups = np.arange(20) % 5
    names = ["a", "b", "c"]
    plain = System.from_arrays(design, target, names, groups)
    powers = np.ldexp(1.0, [-600, 700, 0, 800])
    wild = System.from_arrays(design / powers[:3], target / powers[3], names, groups)
    found = wild.powers()
    assert found is not None and found[2] == 1.0
    back = wild.scaled(found)
    tops = np.abs(back.r_factor).max(axis=0)
    assert ((tops > 1e-3) & (tops < 1e3)).all()
    assert plain.powers() is None
    for _, _, rows, last in back.single("for a test"):
        np.testing.assert_array_equal(rows, design / powers[:3] * found[:3])
        np.testing.assert_array_equal(last, target / powers[3] * found[3])


@pytest.mark.parametrize("scale", [1e155, 1e-160])
def test_given_equations(scale):
    rng = np.random.default_rng(0)
    design, target = rng.normal(size=(20, 2)), rng.normal(size=20)
    plain = Estimator("precomputed").fit(design, target)
    est = Estimator("precomputed").fit(design, target * scale)
    np.testing.assert_allclose(numbers(est, scale), numbers(plain, 1.0), rtol=1e-9)
    turned = Estimator("precomputed").fit(design * scale, target)
    np.testing.assert_allclose(turned.coef_ * scale, plain.coef_, rtol=1e-9)
    np.testing.assert_allclose(turned.pvalues_, plain.pvalues_, rtol=1e-9)
    assert est.score(design, target * scale) == pytest.approx(plain.r2_, rel=1e-9)
    assert fit(plain._equations, Settings()).solution.norm == pytest.approx(np.linalg.norm(target))


NETS = [(torch.float64, s) for s in (1e155, 1e160, 1e-155, 1e-160)]
NETS += [(torch.float32, s) for s in (1e19, 1e25, 1e-22, 1e-30)]
INPUTS = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.sin(INPUTS.sum(1, keepdim=True))


@pytest.mark.parametrize(("dtype", "scale"), NETS)
def test_nets(dtype, scale):
    """Where a ridge of .05 leaves a linear net."""
    gram = INPUTS.T @ INPUTS / 60 + 0.05 * torch.eye(4, dtype=torch.float64)
    net = nn.Linear(4, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        net.weight.copy_(torch.linalg.solve(gram, INPUTS.T @ TARGETS / 60).T * scale)
    rows = INPUTS.to(dtype), (TARGETS * scale).to(dtype)
    est = Estimator(net, loss="mse", params="all").fit(*rows)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    assert est.coef_[0] == pytest.approx(0.05, rel=tolerance)
    assert (est.verdict_, est.score(*rows)) == ("supported", pytest.approx(est.r2_, abs=1e-12))


@pytest.mark.parametrize(("dtype", "scale"), NETS)
@pytest.mark.parametrize("reference", ["batch", "applied"])
def test_trajectories(dtype, scale, reference):
    torch.manual_seed(0)
    net = nn.Linear(4, 1, dtype=dtype)
    with torch.no_grad():
        net.weight.mul_(scale)
        net.bias.mul_(scale)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=0.1)
    X_, Y_ = INPUTS.to(dtype), (TARGETS * scale).to(dtype)
    with record(net, optimizer) as recorder:
        for _ in range(3):
            for rows in torch.randperm(60).split(15):
                recorder.batch(rows)
                net.zero_grad()
                nn.functional.mse_loss(net(X_[rows]), Y_[rows]).backward()
                optimizer.step()
            recorder.epoch()
    options = {"mode": "trajectory", "trajectory": recorder.trajectory, "window": "epoch"}
    options |= {"family": "weight_decay", "loss": "mse", "params": "all", "reference": reference}
    est = Estimator(net, **options).fit(X_, Y_)
    assert est.coef_[0] == pytest.approx(0.1, rel=1e-5)
    assert est.r2_ == pytest.approx(1.0, abs=1e-6)
    assert est.score(X_, Y_) == pytest.approx(est.r2_, abs=1e-9)


def test_families_are_compared_in_range_or_not_at_all():
    for scale in (1e60, 1e-60):
        found = ImplicitRegularizationCV(model_of(scale), families=["l1", "l2"])
        assert found.fit(X, Y * scale).best_name_ == "l2"
    for scale in (1e160, 1e-160):
        search = ImplicitRegularizationCV(model_of(scale), families=["l1", "l2"])
        with pytest.raises(ValueError, match="Expected gradients whose squares are in the range"):
            search.fit(X, Y * scale)


# --- both ends of the range ---------------------------------------------------------------------

RNG = np.random.default_rng(1)
DESIGN = RNG.normal(size=(30, 2))
TARGET = DESIGN @ [1.0, 2.0] + 0.01 * RNG.normal(size=30)
FAR = [(1, 1e307), (1e307, 1), (1e307, 1e307), (1e-310, 1e-310), (1, 1e-307), (1e-305, 1e-305)]


@pytest.mark.parametrize(("columns", "target"), FAR)
@pytest.mark.parametrize("covariance", ["auto", "ols"])
def test_the_ends_of_the_range(columns, target, covariance):
    plain = Estimator("precomputed", covariance=covariance).fit(DESIGN, TARGET)
    est = Estimator("precomputed", covariance=covariance).fit(DESIGN * columns, TARGET * target)
    unit = target / columns
    np.testing.assert_allclose(est.coef_ / unit, plain.coef_, rtol=1e-12)
    np.testing.assert_allclose(est.std_err_ / unit, plain.std_err_, rtol=1e-9)
    np.testing.assert_allclose(est.pvalues_, plain.pvalues_, rtol=1e-8)
    assert (est.verdict_, est.r2_) == ("supported", pytest.approx(plain.r2_, rel=1e-12))
    assert est.score(DESIGN * columns, TARGET * target) == pytest.approx(plain.r2_, rel=1e-9)
    cooks = est.influence()["cooks_d"]
    np.testing.assert_allclose(cooks, plain.influence()["cooks_d"], rtol=1e-7)


@pytest.mark.parametrize(("columns", "target"), [(5e-324, 5e-324), (1, 1e-320), (1e-318, 1)])
def test_numbers_that_have_lost_their_digits(columns, target):
    with pytest.raises(ValueError, match="have all their digits in float64, got a column or targ"):
        Estimator("precomputed").fit(np.round(DESIGN * 4) * columns, np.round(TARGET * 4) * target)


@pytest.mark.parametrize(
    ("columns", "target"),
    [(1e-200, 1e200), (1e200, 1e-200), (1e-310, 1), (1, 1e-309), (1e300, 1e-9)],
)
def test_coefficients_that_no_float_holds(columns, target):
    with pytest.raises(ValueError, match="Expected coefficients in the range of float64, got"):
        Estimator("precomputed").fit(DESIGN * columns, TARGET * target)


@pytest.mark.parametrize("unit", [1e157, 1e160, 1e-157, 1e-160])
def test_a_ridge_of_features_in_other_units(unit):
    """Its coefficient has their unit twice."""
    model = LinearModel(RIDGE.coef_ / unit, RIDGE.intercept_)
    with pytest.raises(ValueError, match="Expected coefficients in the range of float64, got"):
        Estimator(model).fit(X * unit, Y)


@pytest.mark.parametrize("size", [1e306, 1e307, 1e308, 1e-310, 1e-323])
def test_weights_that_no_sum_holds(size):
    for model in (RIDGE, LinearModel(RIDGE.coef_, RIDGE.intercept_)):
        with pytest.raises(ValueError, match="Expected sample_weight of 2.23e-308 or more"):
            Estimator(model).fit(X, Y, sample_weight=np.full(len(Y), size))


@pytest.mark.parametrize("size", [1e295, 1e-305, 1.0])
def test_weights_of_any_other_size(size):
    weights = np.full(len(Y), size)
    weights[:3] = 0.0
    est = Estimator(Ridge(3.0).fit(X[3:], Y[3:])).fit(X, Y, sample_weight=weights)
    assert est.coef_[0] * (len(Y) - 3) == pytest.approx(3.0, rel=1e-8)
    assert est.verdict_ == "supported"
