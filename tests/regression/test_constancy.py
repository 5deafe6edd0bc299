"""One coefficient for all places: the two F tests against fits of their models written out."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from sklearn_implicitreg import Endpoint, ImplicitRegularizationEstimator, record
from sklearn_implicitreg.penalties import L2, Schatten
from sklearn_implicitreg.regression.constancy import constancy
from sklearn_implicitreg.regression.system import System

W, G, M, K = 6, 4, 12, 2
NAMES = ("a", "b")


def stack(coefs, noise, rng, k=K, nuisance=False, n_tensors=G, by_tensor=0.0):
    """Systems of W places, and their equations as arrays (places, tensors, rows, columns)."""
    systems, designs, targets = [], [], []
    of_tensors = by_tensor * rng.normal(size=(n_tensors, k))
    for own in coefs:
        design = rng.normal(size=(n_tensors, M, k + nuisance))
        design *= np.array([1.0, 5.0, 2.0])[: k + nuisance]
        target = design[..., :k] @ own + noise * rng.normal(size=(n_tensors, M))
        target += np.einsum("gmk,gk->gm", design[..., :k], of_tensors)
        if nuisance:
            target += design[..., k] * rng.normal()
        names = (*NAMES[:k], "minibatch")[: k + nuisance]
        groups = np.repeat([f"t{g}" for g in range(n_tensors)], M)
        flat = design.reshape(-1, k + nuisance)
        systems.append(System.from_arrays(flat, target.ravel(), names, groups))
        designs.append(design)
        targets.append(target)
    return systems, np.array(designs), np.array(targets)


def residual(columns, target):
    coef, _, rank, _ = np.linalg.lstsq(columns, target, rcond=None)
    return float(np.sum((target - columns @ coef) ** 2)), rank


def test_the_statistics_are_those_of_the_models_written_out():
    rng = np.random.default_rng(0)
    systems, designs, targets = stack([[0.3, -0.1]] * W, 0.5, rng)
    found = constancy(systems, [0, 1], 0.0)

    def block(by_place, by_tensor, crossed=False):
        parts = []
        for w in range(W):
            for g in range(G):
                own = np.zeros((M, K * (W * G if crossed else W * by_place + G * by_tensor)))
                if crossed:
                    at = K * (w * G + g)
                    own[:, at : at + K] = designs[w, g]
                else:
                    if by_tensor:
                        own[:, K * g : K * (g + 1)] = designs[w, g]
                    if by_place:
                        at = K * (G * by_tensor + w)
                        own[:, at : at + K] = designs[w, g]
                parts.append(own)
        return np.concatenate(parts)

    y = targets.ravel()
    one, _ = residual(designs.reshape(-1, K), y)
    each, rank = residual(block(True, False), y)
    df, df_noise = (W - 1) * K, y.size - rank
    statistic = (one - each) / df / (each / df_noise)
    assert found.equations[0] == pytest.approx(statistic)
    assert found.equations[1] == pytest.approx(stats.f.sf(statistic, df, df_noise))
    (rss0, r0), (rss1, r1) = residual(block(False, True), y), residual(block(True, True), y)
    rss2, r2 = residual(block(False, False, crossed=True), y)
    assert (r1 - r0, r2 - r1) == (df, (W - 1) * (G - 1) * K)
    statistic = (rss0 - rss1) / (r1 - r0) / ((rss1 - rss2) / (r2 - r1))
    assert found.tensors[0] == pytest.approx(statistic)
    assert found.tensors[1] == pytest.approx(stats.f.sf(statistic, r1 - r0, r2 - r1))


def test_the_share_is_the_one_that_a_shared_coefficient_explains():
    rng = np.random.default_rng(1)
    coefs = np.array([[0.5 + 0.2 * (w % 2), 0.3] for w in range(W)])
    systems, designs, targets = stack(coefs, 0.0, rng)
    coef = np.linalg.lstsq(designs.reshape(-1, K), targets.ravel(), rcond=None)[0]
    found = constancy(systems, [0, 1], 1e-9)
    fitted = np.einsum("wgmk,k->wgm", designs, coef)
    assert 1 - found.same == pytest.approx(np.sum((targets - fitted) ** 2) / np.sum(targets**2))
    assert found.differs


@pytest.mark.parametrize("nuisance", [False, True], ids=["plain", "nuisance"])
@pytest.mark.parametrize("n_tensors", [1, 4], ids=["one-tensor", "four-tensors"])
def test_a_constant_coefficient_is_seldom_rejected(nuisance, n_tensors):
    rng = np.random.default_rng(2)
    n_rejected = 0
    for _ in range(200):
        systems, *_ = stack([[0.3, -0.1]] * W, 0.5, rng, K, nuisance, n_tensors)
        found = constancy(systems, [0, 1], 0.0)
        n_rejected += found.differs
    assert n_rejected <= 12  # 5 % is 10, and both tests must reject


def test_coefficients_that_differ_between_tensors_are_no_change():
    rng = np.random.default_rng(3)
    n_rejected = 0
    for _ in range(100):
        systems, *_ = stack([[0.3, -0.1]] * W, 0.1, rng, by_tensor=0.3)
        found = constancy(systems, [0, 1], 0.0)
        n_rejected += found.differs
    assert n_rejected <= 8


@pytest.mark.parametrize("changed", [[1.3] * 3 + [1.0] * 3, [1, 1, 1, 1, 1, 2], [0, 1] * 3])
def test_a_change_is_seen(changed):
    rng = np.random.default_rng(4)
    coefs = [[0.3 * c, -0.1] for c in changed]
    systems, *_ = stack(coefs, 0.02, rng, nuisance=True)
    assert constancy(systems, [0, 1], 0.0).differs


def test_a_change_of_rounding_size_is_none():
    rng = np.random.default_rng(5)
    systems, *_ = stack([[0.3, -0.1]] * W, 1e-15, rng)
    found = constancy(systems, [0, 1], 1e-10)
    assert not found.above_rounding
    assert not found.differs
    assert found.same == pytest.approx(1.0)


def test_nothing_is_tested_where_nothing_can_be():
    rng = np.random.default_rng(6)
    systems, *_ = stack([[0.3, -0.1]] * W, 0.1, rng)
    assert constancy(systems[:1], [0, 1], 0.0) is None
    small = [System.from_arrays(np.eye(2), np.ones(2), NAMES)] * 3
    assert constancy(small, [0, 1], 0.0) is None
    zero = [System.from_arrays(np.zeros((5, 2)), np.ones(5), NAMES)] * 3
    assert constancy(zero, [0, 1], 0.0) is None


@pytest.mark.parametrize("n_without", [1, 2, 3])
@pytest.mark.parametrize("nuisance", [False, True])
def test_tensors_without_columns_of_the_family_are_no_replicates(n_without, nuisance):
    rng = np.random.default_rng(6)
    reaching = stack([[0.3 + 0.1 * w, -0.1] for w in range(W)], 0.5, rng, nuisance=nuisance)
    other = rng.normal(size=(n_without * M, K + 1 + nuisance))
    other[:, :K] = 0.0
    if nuisance:  # it is projected out by the place's own coefficient, here of zero
        other[:, K] = 0.0
    labels = np.repeat([f"without{g}" for g in range(n_without)], M)
    names = (*NAMES, "minibatch")[: K + nuisance]
    both = []
    for w, own in enumerate(reaching[0]):
        columns = np.concatenate([reaching[1][w].reshape(G * M, -1), other[:, :-1]])
        target = np.concatenate([reaching[2][w].ravel(), other[:, -1]])
        groups = np.concatenate([np.repeat([f"t{g}" for g in range(G)], M), labels])
        both.append(System.from_arrays(columns, target, names, groups))
        assert own.n_terms == both[-1].n_terms
    alone, beside = (constancy(own, [0, 1], 0.0) for own in (reaching[0], both))
    np.testing.assert_allclose(beside.tensors, alone.tensors, rtol=1e-9)


SCOPED = {
    "one layer": (L2().on("0"), ["0.weight", "0.bias"]),
    "a bias": (L2().on("2.bias"), ["2.bias"]),
    "matrices": (Schatten(2), ["0.weight", "2.weight"]),
}


@pytest.mark.parametrize("case", SCOPED)
@pytest.mark.parametrize("mode", ["trajectory", "endpoints"])
def test_families_that_reach_some_of_the_tensors(case, mode):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = torch.randn(30, 3).double(), torch.randn(30, 2).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=0.02)
    family, reached = SCOPED[case]
    settings = {"family": family, "loss": "mse", "params": "all"}
    states = []
    with record(net, optimizer, every=1) as recording:
        for _ in range(12):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(X), y).backward()
            optimizer.step()
            states.append(copy.deepcopy(net))
    if mode == "trajectory":
        own = {"mode": "trajectory", "trajectory": recording}
        est = ImplicitRegularizationEstimator(net, **settings, **own).fit(X, y)
        assert est.coef_[0] == pytest.approx(0.01, rel=1e-8)
        return
    group = [Endpoint(own, X, y) for own in states[::4]]
    est = ImplicitRegularizationEstimator(None, **settings).fit(group)
    top = bottom = 0.0
    for own in states[::4]:
        loss = nn.functional.mse_loss(own(X), y)
        named = dict(own.named_parameters())
        slopes = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        for name in reached:
            column = 2 * named[name].detach()
            top -= float((column * slopes[name]).sum())
            bottom += float(column.square().sum())
    assert est.coef_[0] == pytest.approx(top / bottom, rel=1e-6)
