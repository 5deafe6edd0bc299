"""Coefficients of penalties on spectra that small nets were trained with."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import FAMILIES, L2, Nuclear, Schatten, spectra

DECAY = 1e-3
KINKED = ["nuclear"]
# Signs and sizes whose minima are away from kinks: norms would be made equal by positive ones.
COEF = {
    "schatten": 1e-3,
    "log_det": 1e-3,
    "spectral_norm": -3e-3,
    "log_spectral_norm": 1e-2,
    "stable_rank": 5e-3,
    "spectral_entropy": 1e-2,
    "spectral_gap": -3e-3,
    "condition_number": 1e-3,
    "effective_depth": 3e-3,
    "log_norm_variance": 2e-2,
}
NAMES = [
    name
    for name, cls in FAMILIES.items()
    if cls.__module__ == spectra.__name__ and name not in KINKED
]


def rows():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, 9, generator=generator).double()
    signal = torch.tanh(X @ torch.randn(9, 3, generator=generator).double() / 2)
    return X, signal + 0.3 * torch.randn(60, 3, generator=generator).double()


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def conv():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 3)),
        nn.Conv2d(1, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()


NETS = {"mlp": mlp, "conv": conv}


def minimized(net, objective, rounds=10, tol=1e-7):
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=500, tolerance_grad=tol, tolerance_change=0.0,
        history_size=50, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    for _ in range(rounds):
        optimizer.step(closure)
        if max(float(p.grad.abs().max()) for p in net.parameters()) < tol:
            break
    net.zero_grad()


def gradient(net, value):
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(net.parameters()))])


@functools.cache
def trained(kind, penalty, coef):
    """A net, and how far it is from a stationary point of its objective."""
    X, y = rows()
    net = NETS[kind]()

    def objective():
        params = dict(net.named_parameters())
        (own,) = penalty.terms(params, None).values()
        decay = sum(p.square().sum() for p in params.values())
        return nn.functional.mse_loss(net(X), y) + coef * own + DECAY * decay

    minimized(net, objective)
    size = gradient(net, nn.functional.mse_loss(net(X), y)).norm()
    return net, float(gradient(net, objective()).norm() / size)


def fit(net, family):
    est = ImplicitRegularizationEstimator(net, family=family, loss="mse", params="all")
    return est.fit(*rows())


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("name", NAMES)
def test_smooth_families(name, kind):
    net, away = trained(kind, FAMILIES[name](), COEF[name])
    assert away <= 1e-3
    est = fit(net, L2() + FAMILIES[name]())
    assert est.coef_ == pytest.approx([DECAY, COEF[name]], rel=1e-4)
    assert est.r2_ >= 0.9999
    assert est.verdict_ == "supported"


@pytest.mark.parametrize("kind", NETS)
def test_nuclear_by_lbfgs(kind):
    net, _ = trained(kind, Nuclear(), 3e-2)
    ratios = []
    for parameter in net.parameters():
        if parameter.ndim > 1:
            values = torch.linalg.svdvals(parameter.detach().flatten(1))
            ratios += (values / values[0]).tolist()
    assert min(ratios) < 1e-3  # it made zeros, to within what L-BFGS reaches
    est = fit(net, L2() + Nuclear())
    assert est.coef_[1] == pytest.approx(3e-2, rel=0.01)
    assert est._result.tested.n_violated == 0
    assert est.verdict_ == "supported"


@pytest.mark.parametrize("kind", NETS)
def test_no_nuclear_norm_where_there_is_none(kind):
    net, _ = trained(kind, Schatten(q=2), 0.0)
    est = fit(net, L2() + Nuclear())
    low, high = est.conf_int_[1]
    assert low - 1e-8 <= 0 <= high + 1e-8
    assert est.coef_[0] == pytest.approx(DECAY, rel=1e-3)


def shrunk(weight, by):
    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    return (left * (sizes - by).clamp(min=0)) @ right


@pytest.mark.parametrize("depth", [1, 2])
def test_nuclear_by_proximal_gradients(depth):
    """Steps on loss and decay, each followed by soft thresholds of the singular values."""
    X, y = rows()
    torch.manual_seed(0)
    layers = [nn.Linear(9, 3)] if depth == 1 else [nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 3)]
    net, coef, step = nn.Sequential(*layers).double(), {1: 0.4, 2: 0.1}[depth], 0.5
    for _ in range(2000):
        loss = nn.functional.mse_loss(net(X), y)
        loss = loss + DECAY * sum(p.square().sum() for p in net.parameters())
        before = [parameter.detach().clone() for parameter in net.parameters()]
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(net.parameters(), slopes, strict=True):
                parameter -= step * slope
                if parameter.ndim > 1:
                    parameter.copy_(shrunk(parameter, step * coef))
        if all(map(torch.allclose, before, net.parameters(), [1e-12] * 4, [1e-13] * 4)):
            break
    ranks = [int(torch.linalg.matrix_rank(p)) for p in net.parameters() if p.ndim > 1]
    assert min(ranks) < 3
    est = fit(net, L2() + Nuclear())
    assert est.coef_ == pytest.approx([DECAY, coef], rel=1e-4)
    assert est.r2_ >= 0.99
    assert est._result.tested.n_violated == 0
    assert np.isfinite(est.conf_int_).all()
