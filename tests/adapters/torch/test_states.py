"""Layers that compute another function in training state than in evaluation state."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from module_cases import X_, Y_, P, by_hand, estimate, fingerprint, l2, minimize, rng_states
from torch import nn

from sklearn_implicitreg.exceptions import ModelStateWarning
from sklearn_implicitreg.trajectory import Trajectory, record

X, Y = torch.as_tensor(X_), torch.as_tensor(Y_)[:, None]


def in_training(net, inputs=X, size=None):
    """Coefficient by NumPy from the gradient of the loss as training computes it."""
    own = copy.deepcopy(net).double().train()
    size = size or len(inputs)
    pairs = zip(inputs.split(size), Y.split(size), strict=True)
    losses = [F.mse_loss(own(x), y, reduction="sum") for x, y in pairs]
    return by_hand(own, sum(losses) / len(inputs), [l2])


def normalized(dims, norm):
    torch.manual_seed(0)
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return nn.Sequential(
        conv(2, 3, 2), norm, nn.Tanh(), nn.Flatten(), nn.Linear(3 * 2**dims, 1)
    ).double()  # fmt: skip


def images(dims):
    g = torch.Generator().manual_seed(dims)
    return 2 + torch.randn(len(X), 2, *(3,) * dims, generator=g, dtype=torch.float64)


NORMS = {
    "1d": (1, lambda: nn.InstanceNorm1d(3, track_running_stats=True)),
    "2d": (2, lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True)),
    "3d": (3, lambda: nn.InstanceNorm3d(3, affine=True, track_running_stats=True)),
    "lazy": (2, lambda: nn.LazyInstanceNorm2d(affine=True, track_running_stats=True)),
    "nested": (1, lambda: nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True))),
    "without": (2, lambda: nn.InstanceNorm2d(3, affine=True)),
}


class Centred(nn.Module):
    """A user's batch normalization: means of the batch in training, running ones afterwards."""

    def __init__(self, n):
        super().__init__()
        self.register_buffer("mean", torch.zeros(n))

    def forward(self, x):
        if not self.training:
            return x - self.mean
        mean = x.mean(0)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * mean)
        return x - mean


class Scaled(nn.Module):
    """Another function of the same row, without buffers."""

    def forward(self, x):
        return 2 * x if self.training else x


class Inner(nn.Module):
    """Its state is asked for in an inner function, under a decorator."""

    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return (lambda v: v.abs() if self.training else v)(x)


class Statistics(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("m", torch.zeros(n))
        self.register_buffer("v", torch.ones(n))

    def forward(self, x):
        return F.batch_norm(x, self.m, self.v, training=self.training)


class Masked(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.3, self.training)


class DropPath(nn.Module):
    """Drops a row rarely: on few rows mostly a constant factor."""

    def forward(self, x):
        if not self.training:
            return x
        return x * (torch.rand(len(x), 1) < 0.9) / 0.9


class ByNumPy(nn.Module):
    def forward(self, x):
        return x * (np.random.rand() < 0.99) / 0.99 if self.training else x


class Auxiliary(nn.Module):
    """A second output in training, as inception nets have."""

    def forward(self, x):
        return (x, x.mean()) if self.training else x


class Same(nn.Module):
    def forward(self, x):
        assert self.training in (True, False)
        return x + 0.0


class Fragile(nn.Module):
    """Cannot be run in training state on few rows."""

    def forward(self, x):
        if self.training and len(x) < 10:
            raise RuntimeError("too few rows")
        return x


class First(nn.Module):
    def forward(self, x):
        return x[0] if isinstance(x, tuple) else x


def between(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(P, 6), layer, First(), nn.Tanh(), nn.Linear(6, 1)).double()


class TestInstanceNorm:
    @pytest.mark.parametrize("kind", NORMS)
    def test_statistics_of_each_instance(self, kind):
        dims, make = NORMS[kind]
        inputs = images(dims)
        net = normalized(dims, make())
        with torch.no_grad():
            net(inputs)
        net[-1](torch.ones(3 * 2**dims, dtype=torch.float64)).backward()
        before, states = fingerprint(net), rng_states()
        est = estimate(net.eval(), inputs, Y, batch_size=7)
        np.testing.assert_allclose(est.coef_, in_training(net, inputs), rtol=1e-8)
        assert fingerprint(net.train()) == before
        assert rng_states() == states
        said = "InstanceNorm by the statistics of each instance" in str(est.summary())
        assert said == (kind != "without")

    def test_running_statistics_where_they_are_asked_for(self):
        net = normalized(1, NORMS["1d"][1]()).eval()
        expected = by_hand(net, F.mse_loss(net(images(1)), Y), [l2])
        found = estimate(net.train(), images(1), Y, module_mode="eval").coef_
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        assert abs(found[0] - in_training(net, images(1))[0]) > 1e-3

    def test_beside_batch_norm(self):
        """Each kind by its own rule."""
        inputs = images(1)
        net = normalized(1, nn.Sequential(NORMS["1d"][1](), nn.BatchNorm1d(3)))
        est = estimate(net, inputs, Y, batch_size=20)
        np.testing.assert_allclose(est.coef_, in_training(net, inputs, 20), rtol=1e-8)
        with pytest.warns(ModelStateWarning, match="BatchNorm"):
            estimate(net, inputs, Y)

    def test_trajectory(self):
        inputs = images(1)
        net = normalized(1, NORMS["1d"][1]())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, weight_decay=0.03)
        with record(net, optimizer) as recorder:
            for rows in torch.randperm(len(X)).split(10) * 2:
                recorder.batch(rows)
                optimizer.zero_grad()
                F.mse_loss(net(inputs[rows]), Y[rows]).backward()
                optimizer.step()
        options = {"mode": "trajectory", "trajectory": recorder.trajectory, "reference": "batch"}
        est = estimate(net.eval(), inputs, Y, family="weight_decay", **options)
        np.testing.assert_allclose(est.coef_, 0.03, rtol=1e-8)


class TestOwnLayers:
    @pytest.mark.parametrize(
        "layer", [Centred(6), Statistics(6), Scaled(), Inner()], ids=lambda x: type(x).__name__
    )
    def test_a_warning_names_the_layer_and_the_remedy(self, layer):
        net = between(layer)
        before, states = fingerprint(net), rng_states()
        with pytest.warns(ModelStateWarning, match=rf"{type(layer).__name__} \(1\).*mode='train'"):
            off = estimate(net, X_, Y, batch_size=20)
        est = estimate(net, X_, Y, batch_size=20, module_mode="train")
        np.testing.assert_allclose(est.coef_, in_training(net, size=20), rtol=1e-8)
        assert abs(off.coef_[0] - est.coef_[0]) > 1e-3
        assert fingerprint(net) == before
        assert rng_states() == states

    def test_once_on_a_trajectory(self):
        net = between(Scaled())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, weight_decay=0.03)
        with record(net, optimizer) as recorder:
            for rows in torch.arange(len(X)).split(10):
                recorder.batch(rows)
                optimizer.zero_grad()
                F.mse_loss(net(X[rows]), Y[rows]).backward()
                optimizer.step()
        options = {"mode": "trajectory", "trajectory": recorder.trajectory, "reference": "batch"}
        with pytest.warns(ModelStateWarning, match="Scaled") as seen:
            estimate(net, X_, Y, family="weight_decay", **options)
        assert len(seen) == 1
        est = estimate(net, X_, Y, family="weight_decay", module_mode="train", **options)
        np.testing.assert_allclose(est.coef_, 0.03, rtol=1e-9)

    @pytest.mark.parametrize(
        "layer",
        [Masked(), DropPath(), ByNumPy(), Auxiliary(), Same(), Fragile(), nn.RReLU()],
        ids=lambda x: type(x).__name__,
    )
    def test_no_warning_of_noise_and_of_the_same_function(self, layer):
        net, states = between(layer), rng_states()
        for seed in range(5):
            torch.manual_seed(seed)
            np.random.seed(seed)
            states = rng_states()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                estimate(net, X_, Y)
            assert rng_states() == states

    def test_the_state_that_is_asked_for_is_not_doubted(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            estimate(between(Scaled()), X_, Y, module_mode="eval")
            estimate(between(Scaled()), X_, Y, module_mode="train")


def trained_along(net, decay=0.1, between=lambda epoch: None):
    """Recording of SGD with a decay on batches of 10 rows."""
    tensors = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(tensors, lr=0.02, weight_decay=decay)
    with record(net, optimizer) as recorder:
        for epoch in range(3):
            between(epoch)
            for batch in torch.arange(len(X)).split(10):
                recorder.batch(batch)
                optimizer.zero_grad()
                F.mse_loss(net(X[batch]), Y[batch]).backward()
                optimizer.step()
            recorder.epoch()
    return recorder.trajectory


def along(net, trajectory, **options):
    options = {"mode": "trajectory", "reference": "batch", "window": "epoch"} | options
    return estimate(net, X, Y, trajectory=trajectory, family="weight_decay", **options)


def minimized(net, decay):
    tensors = [p for p in net.parameters() if p.requires_grad]
    minimize(tensors, lambda: F.mse_loss(net(X), Y) + decay / 2 * l2(tensors), 3000)
    return net


class Backbone(nn.Sequential):
    """Its normalization stays at rest in training, as fine-tuning has it."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


class TestNormsAtRest:
    def net(self, kind=nn.Sequential, norm=nn.BatchNorm1d):
        torch.manual_seed(0)
        body = kind(nn.Linear(P, 4), norm(4, track_running_stats=True), nn.Tanh())
        net = nn.Sequential(body, nn.Linear(4, 1)).double()
        for _ in range(30):
            body[1](3 * torch.randn(20, 4, dtype=torch.float64) + 1)
        return net.train()

    def test_at_an_endpoint(self):
        net = self.net()
        net[0][1].eval()
        minimized(net, 0.05)
        before = fingerprint(net)
        est = estimate(net, X, Y, family="weight_decay")
        assert est.coef_ == pytest.approx([0.05], rel=1e-5)
        assert "normalizations trained at rest, by running statistics: 1" in " ".join(
            str(est.summary()).split()
        )
        assert fingerprint(net) == before

    @pytest.mark.parametrize("training", [True, False])
    def test_by_a_train_method_of_the_users(self, training):
        net = minimized(self.net(Backbone), 0.05).train(training)
        before = fingerprint(net)
        est = estimate(net, X, Y, family="weight_decay")
        assert est.coef_ == pytest.approx([0.05], rel=1e-5)
        assert fingerprint(net) == before

    def test_one_of_several(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(P, 4), nn.BatchNorm1d(4), nn.Linear(4, 4),
                            nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()  # fmt: skip
        net(X)
        net[1].eval()
        path = trained_along(net)
        assert along(net.eval(), path).coef_ == pytest.approx([0.1], rel=1e-9)

    def test_a_whole_net_trained_at_rest(self, tmp_path):
        net = self.net().eval()
        trained_along(net).save(tmp_path / "path")
        est = along(net.train(), Trajectory.load(tmp_path / "path"))
        assert est.coef_ == pytest.approx([0.1], rel=1e-9)

    def test_a_validation_between_epochs_is_no_change(self):
        net = self.net()

        def validate(epoch):
            net.eval()
            net(X).square().mean().backward()
            net.train()

        path = trained_along(net, between=validate)
        assert along(net, path).coef_ == pytest.approx([0.1], rel=1e-9)

    def test_put_to_rest_while_recording(self):
        net = self.net()
        path = trained_along(net, between=lambda epoch: net[0][1].train(epoch < 1))
        with pytest.raises(ValueError, match=r"Expected normalizations .* others: 0.1; record"):
            along(net, path)
        along(net, path, reference="applied")


class Merging(nn.Linear):
    """Adds its factors' product to its weight for evaluation, as adapters of low rank do."""

    def __init__(self, n, m):
        super().__init__(n, m)
        self.weight.requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(2, n) / 3), nn.Parameter(torch.randn(m, 2) / 3)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.B @ self.A
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) + (0 if self.merged else x @ self.A.T @ self.B.T)


class TestMergingLayers:
    def net(self):
        torch.manual_seed(0)
        return nn.Sequential(Merging(P, 4), nn.Tanh(), Merging(4, 1)).double()

    @pytest.mark.parametrize("training", [True, False])
    def test_at_an_endpoint(self, training):
        net = minimized(self.net(), 0.03).train(training)
        before = fingerprint(net)
        est = estimate(net, X, Y, family="weight_decay")
        assert est.coef_ == pytest.approx([0.03], rel=1e-5)
        assert fingerprint(net) == before

    @pytest.mark.parametrize("training", [True, False])
    def test_on_a_path(self, training):
        net = self.net()
        path = trained_along(net, 0.03)
        net.train(training)
        before = fingerprint(net)
        assert along(net, path).coef_ == pytest.approx([0.03], rel=1e-9)
        assert fingerprint(net) == before


class Remembering(nn.Module):
    """Computes its weight once for evaluation, without a gradient."""

    def __init__(self):
        super().__init__()
        self.raw, self.known = nn.Parameter(torch.randn(4, P, dtype=torch.float64)), None

    def forward(self, x):
        if self.training or self.known is None:
            weight = torch.tanh(self.raw)
            self.known = None if self.training else weight.detach()
        return x @ (weight if self.training else self.known).T


class TestWeightsWithoutAGradientAtRest:
    def net(self):
        torch.manual_seed(0)
        return nn.Sequential(Remembering(), nn.Tanh(), nn.Linear(4, 1)).double()

    def test_warns_and_names_them(self):
        net = minimized(self.net(), 0.05).eval()
        with pytest.warns(
            ModelStateWarning, match=r"Remembering \(0\) .*reaches 0.raw\).*mode='tr"
        ):
            estimate(net, X, Y)

    def test_as_it_was_trained(self):
        net = minimized(self.net(), 0.05).eval()
        est = estimate(net, X, Y, family="weight_decay", module_mode="train")
        assert est.coef_ == pytest.approx([0.05], rel=1e-5)
        net = self.net()
        path = trained_along(net)
        net.eval()(X)
        est = along(net, path, module_mode="train")
        assert est.coef_ == pytest.approx([0.1], rel=1e-9)


class TestGradientHooks:
    MESSAGE = r"without the gradient hooks of 0.weight\. A decay"

    @pytest.fixture
    def net(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(P, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    @pytest.mark.parametrize("after", [False, True])
    def test_masks(self, net, after):
        weight = net[0].weight
        mask = (torch.rand(4, P) > 0.5).double()

        def masked(p):
            p.grad.mul_(mask)

        if after:
            weight.register_post_accumulate_grad_hook(masked)
        else:
            weight.register_hook(lambda g: g * mask)
        path = trained_along(net, 0.05)
        for fitted in (lambda: estimate(net, X, Y), lambda: along(net, path)):
            with pytest.warns(ModelStateWarning, match=self.MESSAGE):
                fitted()
        est = along(net, path, reference="applied")  # what the optimizer added
        assert est.coef_ == pytest.approx([0.05], rel=1e-9)

    def test_a_decay_is_found(self, net):
        for p in net.parameters():
            p.register_hook(lambda g, p=p: g + 0.5 * p.detach())
        path = trained_along(net, 0.0)
        with pytest.warns(ModelStateWarning, match="hooks of 0.weight, 0.bias, 2.weight, 2.bias"):
            assert along(net, path).coef_ == pytest.approx([0.5], rel=1e-9)

    def test_those_of_a_recorder_are_none(self, net):
        with record(net, torch.optim.SGD(net.parameters(), lr=0.1)):
            estimate(net, X, Y)
