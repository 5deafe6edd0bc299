"""Nets that were trained with each family on data by a formula of our own, and linear models."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from module_cases import minimize
from torch import nn
from torch.func import functional_call, hessian, jacrev, vmap

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import (
    L2,
    ActivationL1,
    ActivationL2,
    DeCov,
    DropoutQuadratic,
    GradientNorm,
    HessianTrace,
    InputNoise,
    Jacobian,
    KLToReference,
    LabelSmoothing,
    Mixup,
    OutputEntropy,
    OutputL2,
    PathNorm,
    Sharpness,
)

L2_COEF = 1e-3
N_ROWS, N_CLASSES = 30, 3


def rows_of(shape):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(N_ROWS, *shape, generator=generator, dtype=torch.float64)
    return X, torch.randint(N_CLASSES, (N_ROWS,), generator=generator)


def seeded(*layers):
    net = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data = 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return net


def mlp():
    return seeded(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, N_CLASSES))


def conv():
    return seeded(nn.Conv1d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, N_CLASSES))


NETS = {"mlp": (mlp, (4,)), "conv": (conv, (1, 6))}
WEIGHT = torch.linspace(0.5, 1.5, N_ROWS, dtype=torch.float64)


def mean(values):
    return (WEIGHT * values).sum() / WEIGHT.sum()


def cross_entropy(net, X, y):
    return mean(nn.functional.cross_entropy(net(X), y, reduction="none"))


def hidden(net, X):
    return net[:2](X).flatten(1)


def gradient(net, X, y):
    loss = cross_entropy(net, X, y)
    return torch.autograd.grad(loss, list(net.parameters()), create_graph=True)


def norm(tensors):
    return torch.cat([t.reshape(-1) for t in tensors]).norm()


def path_norm(net, X, y):
    x = torch.ones_like(X[:1])
    for layer in net:
        if isinstance(layer, nn.Linear):
            x = nn.functional.linear(x, layer.weight.square(), layer.bias.square())
        elif isinstance(layer, nn.Conv1d):
            x = nn.functional.conv1d(x, layer.weight.square(), layer.bias.square())
        elif isinstance(layer, nn.Flatten):
            x = x.flatten(1)
    return x.sum()


def decov(net, X, y):
    a = hidden(net, X)
    away = a - (WEIGHT @ a) / WEIGHT.sum()
    c = away.T @ (WEIGHT[:, None] * away) / WEIGHT.sum()
    return (c.square().sum() - c.diag().square().sum()) / 2


def kl(net, X, y):
    log_p, log_q = (m(X).log_softmax(1) for m in (net, reference(net)))
    return mean((log_q.exp() * (log_q - log_p)).sum(1))


def reference(net):
    other = NETS["conv" if len(net) == 4 else "mlp"][0]()
    for p in other.parameters():
        p.data = p.data.flip(0)
    return other


def jacobian(net, X, y):
    slopes = vmap(jacrev(lambda x: net(x[None])[0]))(X)
    return mean(slopes.square().flatten(1).sum(1))


def input_noise(net, X, y):
    # The first numbers of the generator that a fit takes.
    drawn = np.random.default_rng([0, 0]).standard_normal((N_ROWS, 2, X[0].numel()))
    noise = torch.from_numpy(drawn).reshape(N_ROWS, 2, *X.shape[1:])
    noisy = [cross_entropy(net, X + s * noise[:, k], y) for k in range(2) for s in (0.3, -0.3)]
    return sum(noisy) / 4 - cross_entropy(net, X, y)


def mixup(net, X, y):
    rng = np.random.default_rng([0, 0, 0])
    partner, share = rng.permutation(N_ROWS), torch.from_numpy(rng.beta(0.5, 0.5, N_ROWS))
    mixed = share.reshape(-1, *[1] * (X.ndim - 1))
    outputs = net(mixed * X + (1 - mixed) * X[partner])
    own, other = (
        nn.functional.cross_entropy(outputs, t, reduction="none") for t in (y, y[partner])
    )
    return mean(share * own + (1 - share) * other) - cross_entropy(net, X, y)


def sharpness(net, X, y):
    g = gradient(net, X, y)
    named = zip(net.named_parameters(), g, strict=True)
    moved = {n: p + 0.1 * s / norm(g) for (n, p), s in named}
    rows = nn.functional.cross_entropy(functional_call(net, moved, X), y, reduction="none")
    return mean(rows) - cross_entropy(net, X, y)


def flat_loss(net, X, y):
    shapes = {n: p.shape for n, p in net.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def loss(theta):
        parts = theta.split(sizes)
        named = {n: t.reshape(s) for (n, s), t in zip(shapes.items(), parts, strict=True)}
        outputs = functional_call(net, named, X)
        return mean(nn.functional.cross_entropy(outputs, y, reduction="none"))

    return loss, torch.cat([p.reshape(-1) for p in net.parameters()])


def trace(net, X, y):
    loss, theta = flat_loss(net, X, y)
    return hessian(loss)(theta).trace()


def entropy(net, X, y):
    log_p = net(X).log_softmax(1)
    return mean((log_p.exp() * log_p).sum(1))


def smoothing(net, X, y):
    rows = nn.functional.cross_entropy(net(X), y, reduction="none", label_smoothing=1.0)
    return mean(rows) - cross_entropy(net, X, y)


def dropout_quadratic(net, X, y):
    p = net(X).softmax(1)
    slopes = vmap(jacrev(lambda x: net(x[None])[0]))(X).flatten(2)
    curved = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    form = torch.einsum("nkj,nkl,nlj->nj", slopes, curved, slopes)
    return 0.3 / 1.4 * mean((X.flatten(1).square() * form).sum(1))


def activation_l1(net, X, y):
    return mean(hidden(net, X).abs().sum(1))


def activation_l2(net, X, y):
    return mean(hidden(net, X).square().sum(1))


def output_l2(net, X, y):
    return mean(net(X).square().sum(1))


def squared_norm(net, X, y):
    return norm(gradient(net, X, y)) ** 2


# Family, its strength and its value.
FAMILIES = {
    "activation_l1": (lambda net: ActivationL1("1"), 0.01, activation_l1),
    "activation_l2": (lambda net: ActivationL2("1"), 0.02, activation_l2),
    "output_l2": (lambda net: OutputL2(), 0.02, output_l2),
    "output_entropy": (lambda net: OutputEntropy(), 0.1, entropy),
    "label_smoothing": (lambda net: LabelSmoothing(), 0.1, smoothing),
    "kl_to_reference": (lambda net: KLToReference(reference(net)), 0.1, kl),
    "jacobian": (lambda net: Jacobian(), 0.01, jacobian),
    "input_noise": (lambda net: InputNoise(0.3, n_draws=2), 1.0, input_noise),
    "mixup": (lambda net: Mixup(0.5, n_draws=1), 1.0, mixup),
    "dropout_quadratic": (lambda net: DropoutQuadratic(0.3), 1.0, dropout_quadratic),
    "decov": (lambda net: DeCov("1"), 0.05, decov),
    "path_norm": (lambda net: PathNorm(), 1e-3, path_norm),
    "gradient_norm": (lambda net: GradientNorm(), 0.2, squared_norm),
    "sharpness": (lambda net: Sharpness(0.1), 0.5, sharpness),
    "hessian_trace": (lambda net: HessianTrace(None), 1e-3, trace),
}  # fmt: skip


def minimized(net, objective, rounds=30):
    minimize(net.parameters(), objective, 100, rounds=rounds, tol=1e-9)
    net.zero_grad()
    return net


def decay(net):
    return L2_COEF * sum(p.square().sum() for p in net.parameters())


@functools.cache
def trained(kind, name):
    """A stationary point of loss, l2 and the family; the residual is asserted."""
    make, shape = NETS[kind]
    net, (X, y) = make(), rows_of(shape)
    if name == "activation_l1":
        net[1] = nn.Sigmoid()  # those of tanh have a kink at zero
    _, coef, value = FAMILIES[name]
    minimized(net, lambda: cross_entropy(net, X, y) + decay(net) + coef * value(net, X, y))
    parameters = list(net.parameters())
    total = cross_entropy(net, X, y) + decay(net) + coef * value(net, X, y)
    left = norm(torch.autograd.grad(total, parameters))
    assert left <= 1e-3 * norm(torch.autograd.grad(cross_entropy(net, X, y), parameters))
    return net


def fit(net, family, X, y, **options):
    options = {"loss": "cross_entropy", "params": "all", "sample_weight": WEIGHT} | options
    weight = options.pop("sample_weight")
    est = ImplicitRegularizationEstimator(net, family=family, **options)
    return est.fit(X, y, sample_weight=weight)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", NETS)
class TestTrained:
    def test_coefficients(self, kind, name):
        net, (X, y) = trained(kind, name), rows_of(NETS[kind][1])
        family, coef, _ = FAMILIES[name]
        est = fit(net, L2() + family(net), X, y)
        np.testing.assert_allclose(est.coef_, [L2_COEF, coef], rtol=1e-4)
        assert est.r2_ > 0.9999

    def test_blocks(self, kind, name):
        net, (X, y) = trained(kind, name), rows_of(NETS[kind][1])
        family = L2() + FAMILIES[name][0](net) + InputNoise(0.2, n_draws=1)
        whole = fit(net, family, X, y, batch_size=N_ROWS)
        for size in (1, 7):
            blocks = fit(net, family, X, y, batch_size=size)
            scale = abs(whole.coef_).max()
            np.testing.assert_allclose(blocks.coef_, whole.coef_, rtol=0, atol=1e-12 * scale)


class Recurrent(nn.Module):
    """A GRU whose last state gives the classes."""

    def __init__(self):
        super().__init__()
        self.gru, self.out = nn.GRU(2, 3, batch_first=True), nn.Linear(3, N_CLASSES)

    def forward(self, x):
        return self.out(self.gru(x)[0][:, -1])


class Attention(nn.Module):
    """One layer of self-attention, averaged over the places."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(2, 1, batch_first=True)
        self.out = nn.Linear(2, N_CLASSES)

    def forward(self, x):
        return self.out(torch.tanh(self.attend(x, x, x, need_weights=False)[0]).mean(1))


@pytest.mark.parametrize("name", ["output_entropy", "label_smoothing", "input_noise"])
@pytest.mark.parametrize("kind", [Recurrent, Attention])
def test_recurrent_and_attention(kind, name):
    net, (X, y) = seeded(kind()), rows_of((4, 2))
    family, coef, value = FAMILIES[name]
    net = net[0]
    minimized(net, lambda: cross_entropy(net, X, y) + decay(net) + coef * value(net, X, y), 4)
    total = cross_entropy(net, X, y) + decay(net) + coef * value(net, X, y)
    left = norm(torch.autograd.grad(total, list(net.parameters())))
    assert left <= 1e-3 * norm(gradient(net, X, y)).detach()
    est = fit(net, L2() + family(net), X, y)
    np.testing.assert_allclose(est.coef_, [L2_COEF, coef], rtol=0.01)
    assert est.r2_ > 0.9999


def test_training_by_torchs_own_label_smoothing():
    net, (X, y) = mlp(), rows_of((4,))
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    minimized(net, lambda: loss(net(X), y) + decay(net))
    est = fit(net, "l2+label_smoothing", X, y, sample_weight=None)
    np.testing.assert_allclose(est.coef_, [L2_COEF, 0.1], rtol=1e-4)
    assert est.r2_ > 0.9999


@pytest.mark.parametrize("name", ["gradient_norm", "decov"])
def test_training_with_the_penalty_of_a_fit(name):
    """``penalty_`` in a loop leads back to the net that it was read from."""
    net, (X, y) = trained("mlp", name), rows_of((4,))
    penalty = fit(net, L2() + FAMILIES[name][0](net), X, y).penalty_
    again = mlp()
    minimized(again, lambda: cross_entropy(again, X, y) + penalty(again, X, y, WEIGHT))
    for one, other in zip(again.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
