"""Penalties on weights that networks were trained with, found again."""

import functools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.endpoints.targets import EndpointTargets
from sklearn_implicitreg.penalties import (
    EWC,
    L1,
    L2,
    MCP,
    SCAD,
    Coherence,
    GroupLasso,
    L1OverL2,
    L1Squared,
    LayerBalance,
    LogCosh,
    LogPenalty,
    MaxNorm,
    Orthogonality,
    PreconditionedL2,
    RowNormVariance,
)

DECAY = 1e-3  # the coefficient of l2 beside every family


@functools.cache
def rows():
    """Digits of 4 x 4 pixels."""
    X, y = load_digits(return_X_y=True)
    X = torch.tensor(X[:120] / 16).reshape(-1, 1, 8, 8)
    return nn.functional.avg_pool2d(X, 2), torch.tensor(y[:120])


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 10)).double()


def conv():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Conv2d(3, 4, 2), nn.Tanh()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 10)).double()


NETS = {"mlp": mlp, "conv": conv}


def data_term(net):
    X, y = rows()
    return nn.functional.cross_entropy(net(X), y)


def value(penalty, net):
    return sum(penalty.terms(dict(net.named_parameters()), None).values())


def minimized(net, extra, free=None, n_steps=4000):
    """The net at a minimum of loss, l2 and an extra term, in the coordinates that are free."""
    params = list(net.parameters())
    free = free or [torch.ones_like(p, dtype=torch.bool) for p in params]
    mask = parameters_to_vector(free).numpy()

    def objective(theta):
        vector_to_parameters(torch.from_numpy(theta), params)
        loss = data_term(net) + DECAY * value(L2(), net) + extra(net)
        slopes = torch.autograd.grad(loss, params)
        return float(loss.detach()), np.where(mask, parameters_to_vector(slopes).numpy(), 0.0)

    start = parameters_to_vector(params).detach().numpy()
    options = {"maxcor": 50, "maxiter": n_steps, "maxfun": 2 * n_steps, "ftol": 0.0, "gtol": 1e-8}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    vector_to_parameters(torch.from_numpy(found.x), params)
    return net


def misfit(net, extra, free=None):
    """``|g + grad R| / |g|`` in the coordinates that are free."""
    params = list(net.parameters())
    slopes = torch.autograd.grad(data_term(net), params)
    others = torch.autograd.grad(DECAY * value(L2(), net) + extra(net), params)
    free = free or [torch.ones_like(p, dtype=torch.bool) for p in params]
    rest = sum(
        float((g + r)[f].square().sum()) for g, r, f in zip(slopes, others, free, strict=True)
    )
    return (
        rest / sum(float(g[f].square().sum()) for g, f in zip(slopes, free, strict=True))
    ) ** 0.5


def fitted(net, family, **options):
    options = {"loss": "cross_entropy", "params": "all"} | options
    return ImplicitRegularizationEstimator(net, family=family, **options).fit(*rows())


SMOOTH = {
    "log_cosh": (LogCosh(scale=0.1), 1e-3),
    "row_norm_variance": (RowNormVariance(), 1e-2),
    "layer_balance": (LayerBalance(), 1e-1),
    "coherence": (Coherence(), 1e-1),
    "orthogonality": (Orthogonality(), 1e-3),
    "max_norm": (MaxNorm(), 3e-5),  # weak, so that one row stays the largest of its matrix
}
KINKED = {
    "log": (LogPenalty(eps=0.1), 1e-3),
    "scad": (SCAD(lam=0.2), 5e-3),
    "mcp": (MCP(lam=0.2), 5e-3),
    "l1_squared": (L1Squared(), 2e-5),
    "l1_over_l2": (L1OverL2(), 1e-2),
}


@functools.cache
def trained(family, net):
    """A net at a stationary point with a family, zeros held where it has a kink."""
    penalty, coef = (SMOOTH | KINKED)[family]
    found, free = NETS[net](), None

    def extra(own):
        return coef * value(penalty, own)

    minimized(found, extra, n_steps=300 if family in KINKED else 4000)
    for _ in range(20 if family in KINKED else 0):
        with torch.no_grad():
            for p in found.parameters():
                p[p.abs() < 1e-3] = 0.0
        free = [p != 0 for p in found.parameters()]
        minimized(found, extra, free, 200)
        if misfit(found, extra, free) < 1e-5:
            break
    return found, misfit(found, extra, free)


@pytest.mark.parametrize(
    ("family", "net"), [(f, n) for f in SMOOTH for n in NETS] + [(f, "mlp") for f in KINKED]
)
def test_coefficient_of_training(family, net):
    penalty, coef = (SMOOTH | KINKED)[family]
    found, away = trained(family, net)
    assert away <= 1e-3
    est = fitted(found, L2() + penalty)
    assert est.term_names_ == ["l2", family]
    np.testing.assert_allclose(est.coef_, [DECAY, coef], rtol=1e-4)
    assert est.r2_ >= 0.9999
    n_zeros = sum(int((p == 0).sum()) for p in found.parameters())
    assert est.n_equations_ == sum(p.numel() for p in found.parameters()) - n_zeros
    assert (n_zeros > 0) == (family in KINKED)


def step(net, prox, lr):
    """Weights after a step of gradient descent on loss and l2, and a proximal map."""
    params = list(net.parameters())
    slopes = torch.autograd.grad(data_term(net) + DECAY * value(L2(), net), params)
    with torch.no_grad():
        return prox([p - lr * g for p, g in zip(params, slopes, strict=True)], lr)


def proximally(net, prox, n_steps=700, lr=0.3):
    """The net trained by proximal steps with momentum."""
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(n_steps):
        moved = step(net, prox, lr)
        with torch.no_grad():
            for p, new, old in zip(net.parameters(), moved, before, strict=True):
                p.copy_(new + 0.9 * (new - old))
        before = moved
    with torch.no_grad():
        for p, new in zip(net.parameters(), before, strict=True):
            p.copy_(new)


class TestAnchored:
    """Trained from a center: to another task, or by decoupled decay."""

    def center(self, scale=1.0):
        torch.manual_seed(5)
        return {n: scale * torch.randn(p.shape).double() for n, p in mlp().named_parameters()}

    def test_two_centers(self):
        near, far = self.center(0.3), {n: t.numpy() for n, t in self.center().items()}
        family = L2(center=near, name="near") + L2(center=far, name="far")

        def extra(own):
            terms = family.terms(dict(own.named_parameters()), None)
            return 0.01 * terms["l2_near"] + 0.003 * terms["l2_far"]

        est = fitted(minimized(mlp(), extra), DECAY * L2() + family)
        assert est.term_names_ == ["l2_near", "l2_far"]
        np.testing.assert_allclose(est.coef_, [0.01, 0.003], rtol=1e-4)
        assert est.r2_ >= 0.9999

    def test_ewc(self):
        penalty = EWC(self.center(), {n: t.square() for n, t in self.center().items()})
        net = minimized(mlp(), lambda own: 0.02 * value(penalty, own))
        est = fitted(net, L2() + penalty)
        assert est.term_names_ == ["l2", "ewc"]
        np.testing.assert_allclose(est.coef_, [DECAY, 0.02], rtol=1e-4)
        assert est.r2_ >= 0.9999

    def test_l1_from_a_center(self):
        """Fine-tuning by proximal steps: weights that stay at the center are inequalities."""
        center, coef = self.center(0.3), 1e-2
        start = list(center.values())

        def prox(tensors, lr):
            away = [t - c for t, c in zip(tensors, start, strict=True)]
            return [
                c + t.sign() * (t.abs() - lr * coef).clamp(min=0)
                for t, c in zip(away, start, strict=True)
            ]

        net = mlp()
        net.load_state_dict(center)
        proximally(net, prox, n_steps=1200)
        free = [p != c for p, c in zip(net.parameters(), start, strict=True)]
        penalty = L1(center=center)
        minimized(net, lambda own: coef * value(penalty, own), free)
        est = fitted(net, L2() + penalty)
        assert est.term_names_ == ["l2", "l1_center"]
        assert est.n_equations_ == sum(int(own.sum()) for own in free) < 172
        np.testing.assert_allclose(est.coef_, [DECAY, coef], rtol=1e-4)
        assert est.r2_ >= 0.9999 and est.verdict_ == "supported"

    @pytest.mark.parametrize(
        ("eps", "beta", "n_steps", "rtol", "r2"),
        [(0.1, 0.999, 1000, 1e-4, 0.9999), (1e-8, 0.999999, 3000, 5e-3, 0.998)],
        ids=["large eps", "small eps"],
    )
    def test_adamw(self, eps, beta, n_steps, rtol, r2):
        """On full batches; with a small eps the slow second moments still move."""
        net = mlp()
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=3e-2, betas=(0.9, beta), eps=eps, weight_decay=2.0
        )
        for _ in range(n_steps):
            optimizer.zero_grad()
            data_term(net).backward()
            optimizer.step()
        optimizer.zero_grad()
        before = [t.clone() for state in optimizer.state.values() for t in state.values()]
        est = fitted(net, PreconditionedL2.of(optimizer, net))
        after = [t for state in optimizer.state.values() for t in state.values()]
        assert all(map(torch.equal, before, after))
        np.testing.assert_allclose(2 * est.coef_, [2.0], rtol=rtol)
        assert est.r2_ >= r2 > fitted(net, L2()).r2_


def of_groups(by, coef):
    """The proximal map of a group lasso on the weight matrices."""

    def shrunk(tensor, threshold):
        axes = [axis for axis in range(tensor.ndim) if axis != ("rows", "columns").index(by)]
        norms = torch.linalg.vector_norm(tensor, dim=axes, keepdim=True)
        return tensor * (1 - threshold / norms.clamp(min=1e-300)).clamp(min=0)

    return lambda tensors, lr: [shrunk(t, lr * coef) if t.ndim > 1 else t for t in tensors]


@functools.cache
def proximally_trained(net, by, coef):
    found = NETS[net]()
    proximally(found, of_groups(by, coef))
    # The groups that the proximal steps left are taken to the end by Newton-like steps.
    free = [p != 0 if p.ndim > 1 else torch.ones_like(p) > 0 for p in found.parameters()]
    weights = GroupLasso(by).on("weight")
    return minimized(found, lambda own: coef * value(weights, own), free)


GROUPS = [("mlp", "columns", 1e-2), ("mlp", "rows", 2e-2), ("conv", "rows", 1e-2)]


@functools.cache
def pushed(coef):
    """The mlp with a group lasso on its inputs, by a method that sets nothing to zero."""
    found, weights = mlp(), GroupLasso("columns").on("weight")
    for _ in range(10):
        minimized(found, lambda own: coef * value(weights, own), n_steps=100)
    return found


class TestGroupLasso:
    @pytest.mark.parametrize(("net", "by", "coef"), GROUPS)
    def test_proximal_training(self, net, by, coef):
        found = proximally_trained(net, by, coef)
        again = step(found, of_groups(by, coef), 0.3)
        for p, moved in zip(found.parameters(), again, strict=True):
            torch.testing.assert_close(p.detach(), moved, rtol=0, atol=1e-6)
        est = fitted(found, L2() + GroupLasso(by).on("weight"))
        np.testing.assert_allclose(est.coef_, [DECAY, coef], rtol=1e-4)
        assert est.r2_ >= 0.99
        assert est.verdict_ == "supported"

    def test_lbfgs(self):
        coef, weights = 1e-2, GroupLasso("columns").on("weight")
        found = pushed(coef)
        assert not any(bool((p == 0).any()) for p in found.parameters())
        est = fitted(found, L2() + weights)
        np.testing.assert_allclose(est.coef_, [DECAY, coef], rtol=1e-2)
        assert est.verdict_ == "supported"
        strict = fitted(found, L2() + GroupLasso("columns", tol=0).on("weight"))
        assert abs(strict.coef_[1] / coef - 1) > 0.2

    @pytest.mark.parametrize("found", ["proximal", "lbfgs"])
    def test_zero_groups_are_held_by_the_coefficient(self, found):
        coef = 1e-2
        net = proximally_trained("mlp", "columns", coef) if found == "proximal" else pushed(coef)
        options = Options(loss="cross_entropy", params="all")
        targets = EndpointTargets((adapt(net, Data(*rows()), options),))
        (place,) = targets.equations(L2() + GroupLasso("columns").on("weight")).places
        n_violated = [place.inequalities(np.array([DECAY, c]), 1e-5)[1] for c in (coef, coef / 10)]
        assert n_violated[0] == 0 < n_violated[1]
