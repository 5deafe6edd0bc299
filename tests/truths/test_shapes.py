"""Shapes of what noise and dropout add to a loss, of models that were trained with them."""

from __future__ import annotations

import itertools

import module_cases
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator, identifiability
from sklearn_implicitreg.penalties import L2, Dropout, InputNoise, Power
from sklearn_implicitreg.penalties.linear_dropout import LinearDropout

FIT = "fit"
RNG = np.random.default_rng(0)
X = RNG.standard_normal((120, 6))
SIGNAL = X @ RNG.standard_normal(6) + RNG.standard_normal(120)
CLASSES = (SIGNAL > 0).astype(int)


def dropped_out(q):
    """Logistic regression at the minimum of its loss over all masks of the inputs."""
    masks = np.array(list(itertools.product([0.0, 1.0], repeat=6)))
    share = np.where(masks == 1, 1 - q, q).prod(axis=1)
    inputs = X[:, None] * masks / (1 - q)
    sign = (2 * CLASSES - 1)[:, None]

    def objective(w):
        margin = sign * (inputs @ w)
        slope = -sign / (1 + np.exp(margin)) * share
        value = np.logaddexp(0, -margin) @ share
        return value.mean(), np.einsum("nm,nmj->j", slope, inputs) / len(X)

    found = minimize(objective, np.zeros(6), jac=True, method="BFGS", options={"gtol": 1e-10})
    model = LogisticRegression(fit_intercept=False).fit(X, CLASSES)
    model.coef_ = found.x[None]
    return model


@pytest.mark.parametrize("q", [0.1, 0.3, 0.6])
def test_dropout_of_a_linear_model(q, monkeypatch):
    seen, rows = [], LinearDropout.rows
    monkeypatch.setattr(
        LinearDropout, "rows", lambda self, batch: (seen.append(self.q), rows(self, batch))[1]
    )
    est = ImplicitRegularizationEstimator(dropped_out(q), family=Dropout(q=FIT)).fit(X, CLASSES)
    assert est.shapes_.loc["q", "value"] == pytest.approx(q, rel=1e-6)
    assert est.coef_[0] == pytest.approx(1, rel=1e-5)
    assert est.verdict_ == "supported"
    assert 16 < len(seen) <= 50


@pytest.mark.parametrize("family", [Dropout(q=FIT), InputNoise(sigma=FIT)], ids=["q", "sigma"])
def test_with_squared_error_a_coefficient_does_what_the_shape_does(family):
    model = LinearRegression(fit_intercept=False).fit(X, SIGNAL)
    # R = q / (1 - q) sum_j mean(x_j^2) theta_j^2 at q = .3, or sigma^2 |theta|^2 at sigma^2 = .2
    size = (X**2).mean(0) * 0.3 / 0.7 if isinstance(family, Dropout) else np.full(6, 0.2)
    model.coef_ = np.linalg.solve(X.T @ X / len(X) + np.diag(size), X.T @ SIGNAL / len(X))
    est = ImplicitRegularizationEstimator(model, family=family).fit(X, SIGNAL)
    assert est.r2_ == pytest.approx(1)
    assert est.verdict_ == "not identifiable"
    assert np.isnan(est.shapes_["ci_low"].item())
    assert "a coefficient does what it does" in " ".join(str(est.summary()).split())


def small_net(*more):
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), *more, nn.Linear(4, 2)).double()
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data = 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return net


def trained(net, added):
    """The net at a stationary point of its loss on 30 rows, of l2 1e-3 and what is added."""
    inputs, classes = torch.from_numpy(X[:30]), torch.from_numpy(CLASSES[:30])

    def objective():
        return 1e-3 * sum(p.square().sum() for p in net.parameters()) + added(net, inputs, classes)

    module_cases.minimize(net.parameters(), objective, 3000, tol=1e-10)
    slopes = torch.autograd.grad(objective(), list(net.parameters()))
    assert max(slope.abs().max().item() for slope in slopes) < 1e-7
    return net.eval(), inputs, classes


def cross_entropy(net, inputs, classes):
    return nn.functional.cross_entropy(net(inputs), classes)


@pytest.mark.parametrize("sigma", [0.3, 0.8])
def test_noise_in_the_inputs_by_common_draws(sigma):
    # The first numbers of the generator that a fit takes.
    noise = torch.from_numpy(np.random.default_rng([0, 0]).standard_normal((30, 4, 6)))

    def noisy(net, inputs, classes):
        moves = [sign * sigma * noise[:, k] for k in range(4) for sign in (1, -1)]
        return sum(cross_entropy(net, inputs + move, classes) for move in moves) / 8

    net, inputs, classes = trained(small_net(), noisy)
    est = ImplicitRegularizationEstimator(
        net, family=L2() + InputNoise(sigma=FIT, n_draws=4), loss="cross_entropy", params="all"
    ).fit(inputs, classes)
    assert est.shapes_.loc["sigma", "value"] == pytest.approx(sigma, rel=1e-5)
    np.testing.assert_allclose(est.coef_, [1e-3, 1], rtol=1e-4)
    assert est.verdict_ == "supported"


def test_masks_of_a_network_jump():
    net = small_net(nn.Dropout(0.3)).eval()
    est = ImplicitRegularizationEstimator(
        net, family=L2() + Dropout(q=FIT, n_draws=4), loss="cross_entropy", params="all"
    )
    with pytest.raises(ValueError, match="changes smoothly with its unknown q, got jumps"):
        est.fit(torch.from_numpy(X[:30]), torch.from_numpy(CLASSES[:30]))


def test_identifiability_is_that_at_the_shapes_found():
    model = LinearRegression(fit_intercept=False).fit(X, SIGNAL)
    w = minimize(
        lambda w: np.mean((SIGNAL - X @ w) ** 2) + 0.05 * w @ w + 0.1 * (np.abs(w) ** 3).sum(),
        model.coef_,
        method="BFGS",
        options={"gtol": 1e-11},
    ).x
    model.coef_ = w
    # All families at once have the exponent 3, which the second would not have alone.
    unknown = [Power(q=FIT), L2() + Power(q=FIT)]
    found = identifiability(model, X, SIGNAL, ["l2", *unknown])
    known = identifiability(model, X, SIGNAL, ["l2", Power(q=3.0)])
    np.testing.assert_allclose(found.cosines_, known.cosines_, atol=1e-5)
    assert found.angles_.iloc[0, 2] == pytest.approx(0, abs=1e-5)
    assert found.angles_.iloc[0, 1] == pytest.approx(known.angles_.iloc[0, 1], abs=1e-3)
