"""Steps on losses that are not the mean over rows: sums, halves, weights within a batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.neural_network import MLPRegressor
from skorch import NeuralNetRegressor
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties.gradients import GradientNorm
from sklearn_implicitreg.trajectory import (
    GradientDescentProbe,
    ImplicitRegularizationRecorder,
    Trajectory,
    record,
)

N, WD = 80, 0.02


def rows(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(N, 5, generator=generator, dtype=torch.float64)
    y = torch.sin(X[:, :1]) + 0.3 * torch.randn(N, 1, generator=generator, dtype=torch.float64)
    return X.to(dtype), y.to(dtype)


def train(loss, y=None, n_out=1, bs=16, lr=0.01, every=1, wd=WD, n_epochs=5):
    """Tanh net by SGD with weight decay, recorded."""
    X, target = rows()
    y = target if y is None else y
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, n_out)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, weight_decay=wd)
    order = torch.Generator().manual_seed(1)
    with record(net, optimizer, every=every, gradients=True) as path:
        for _ in range(n_epochs):
            for part in torch.randperm(N, generator=order).split(bs):
                path.batch(part)
                optimizer.zero_grad()
                loss(net(X[part]), y[part]).backward()
                optimizer.step()
            path.epoch()
    return net, X, y, path.trajectory


def fit(case, loss, family="l2", **how):
    net, X, y, path = case
    how = {"params": "all", "window": "epoch", **how}
    est = ImplicitRegularizationEstimator(
        net, family=family, mode="trajectory", trajectory=path, loss=loss, **how
    )
    return est.fit(X, y)


class TestSums:
    LOSS = nn.MSELoss(reduction="sum")

    @pytest.mark.parametrize(("reference", "every"), [("batch", 1), ("applied", 1), ("applied", 5)])
    def test_weight_decay_over_twice_the_batch_size(self, reference, every):
        case = train(self.LOSS, lr=5e-4, every=every)
        est = fit(case, self.LOSS, reference=reference)
        assert est.coef_[0] == pytest.approx(WD / 2 / 16, rel=1e-8)
        assert est.r2_ > 1 - 1e-8

    def test_reference_of_all_rows(self):
        case = train(self.LOSS, lr=1e-4, wd=1.0)
        est = fit(case, self.LOSS)
        assert est.coef_[0] == pytest.approx(1.0 / 2 / 16, rel=0.03)

    def test_mean_and_sum_of_one_path_agree(self):
        mean = fit(train(nn.MSELoss(), lr=16e-4, wd=WD / 16), "mse")
        summed = fit(train(self.LOSS, lr=1e-4), self.LOSS)
        np.testing.assert_allclose(summed.coef_, mean.coef_, rtol=1e-6)
        assert summed.r2_ == pytest.approx(mean.r2_, rel=1e-6)

    def test_uneven_batches(self):
        sizes = [30, 30, 20]
        est = fit(train(self.LOSS, lr=1e-4, bs=30), self.LOSS, reference="batch")
        assert est.coef_[0] == pytest.approx(WD / 2 * np.mean(1 / np.array(sizes)), rel=1e-2)
        case = train(self.LOSS, lr=1e-4, bs=30, every=3)
        with pytest.raises(ValueError, match="batches of one size between two marks"):
            fit(case, self.LOSS)

    def test_class_sums(self):
        loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 6.0]).double(), reduction="sum")
        y = (rows()[1][:, 0] > 0.5).long()
        case = train(loss, y, n_out=2, lr=1e-4)
        est = fit(case, loss, reference="batch", window=1)
        assert est.r2_ > 0.9
        # The weights hardly move: steps count alike, each divided by the mass of its batch.
        masses = [float((1 + 5 * y[step.rows]).sum()) for step in case[-1].steps]
        assert est.coef_[0] == pytest.approx(WD / 2 * np.mean(1 / np.array(masses)), rel=1e-2)

    def test_unknown_sizes(self):
        net, X, y, path = train(self.LOSS, lr=1e-4)
        bare = Trajectory.from_iterates([mark.weights for mark in path.marks], lr=1e-4)
        with pytest.raises(ValueError, match="size of every batch .* reduction='sum'"):
            fit((net, X, y, bare), self.LOSS, window=5)

    def test_skorch(self):
        X, y = (t.numpy() for t in rows(torch.float32))
        recorder = ImplicitRegularizationRecorder()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = NeuralNetRegressor(
                nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)),
                criterion=nn.MSELoss,
                criterion__reduction="sum",
                optimizer=torch.optim.SGD,
                optimizer__weight_decay=1.0,
                lr=5e-4,
                batch_size=16,
                max_epochs=4,
                train_split=None,
                verbose=0,
                callbacks=[recorder],
            ).fit(X, y)
        path = recorder.trajectory_
        est = fit((net, X, y, path), "auto", reference="batch")
        assert est.coef_[0] == pytest.approx(1.0 / 2 / 16, rel=1e-3)

    def test_probe_follows_the_mean(self):
        net, X, y, _ = train(self.LOSS, lr=1e-4)
        probe = GradientDescentProbe(lr=1e-3, n_steps=2)
        how = {"reference": "flow", "window": None, "family": GradientNorm()}
        summed = fit((net, X, y, probe), self.LOSS, **how)
        mean = fit((net, X, y, GradientDescentProbe(lr=1e-3, n_steps=2)), "mse", **how)
        np.testing.assert_allclose(summed.coef_, mean.coef_, rtol=1e-6)
        assert summed.coef_[0] == pytest.approx(1e-3 / 4, rel=0.02)


@pytest.mark.parametrize("lr", [0.01, 0.005])
def test_half_squared_error_of_mlps(lr):
    X, y = (t.numpy() for t in rows())
    model = MLPRegressor(
        hidden_layer_sizes=6,
        activation="tanh",
        solver="sgd",
        momentum=0,
        alpha=0.8,
        batch_size=N,
        learning_rate_init=lr,
        random_state=0,
    )
    iterates = [copy.deepcopy(model.partial_fit(X, y[:, 0])) for _ in range(6)]
    path = Trajectory.from_iterates(iterates, lr=lr)
    est = fit((iterates[-1], X, y[:, 0], path), "auto", params="auto", window=None)
    assert est.coef_[0] == pytest.approx(0.8 / N, rel=1e-9)
    flow = fit(
        (iterates[-1], X, y[:, 0], GradientDescentProbe(lr=1e-3, n_steps=2)),
        "auto",
        family=GradientNorm(),
        reference="flow",
        window=None,
    )
    assert flow.coef_[0] == pytest.approx(1e-3 / 4, rel=0.02)


class TestWeightsWithinABatch:
    @pytest.mark.parametrize("kind", ["class_weight", "ignored"])
    def test_rows_count_by_the_weight_of_their_batch(self, kind):
        generator = torch.Generator().manual_seed(3)
        y = (rows()[1][:, 0] > 0.5).long()
        if kind == "class_weight":
            loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 6.0]).double())
        else:
            loss = nn.CrossEntropyLoss(ignore_index=-100)
            y[torch.rand(N, generator=generator) < 0.4] = -100
        case = train(loss, y, n_out=2, lr=0.001)
        est = fit(case, loss)
        assert est.coef_[0] == pytest.approx(WD / 2, rel=0.03)
        assert fit(case, loss, reference="batch").coef_[0] == pytest.approx(WD / 2, rel=1e-9)

    @pytest.mark.parametrize("reference", ["gradient", "batch"])
    def test_sample_weight(self, reference):
        weight = torch.linspace(0.2, 3, N, dtype=torch.float64)
        X, y = rows()

        def loss(output, target):
            error, own = (output - target[:, :1]).square()[:, 0], target[:, 1]
            return (own * error).sum() / own.sum()

        net, _, _, path = train(loss, torch.cat([y, weight[:, None]], dim=1))
        est = ImplicitRegularizationEstimator(
            net,
            family="l2",
            mode="trajectory",
            trajectory=path,
            loss="mse",
            params="all",
            window="epoch",
            reference=reference,
        ).fit(X, y, sample_weight=weight.numpy())
        assert est.coef_[0] == pytest.approx(WD / 2, rel=1e-9 if reference == "batch" else 0.01)


def test_weight_decay_beside_a_sum_is_told_in_units_of_the_mean():
    """One parameter is as strong as a batch is small: read off the coefficient, never stated."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 3))
    y = X @ np.array([[1.0], [2.0], [3.0]])
    module = nn.Linear(3, 1).double()
    net = NeuralNetRegressor(
        module,
        criterion__reduction="sum",
        optimizer__weight_decay=5.0,
        lr=0.002,
        batch_size=-1,
        max_epochs=2000,
        train_split=None,
        verbose=0,
    ).fit(X, y)
    est = ImplicitRegularizationEstimator(net).fit(X, y)
    assert est.coef_[0] == pytest.approx(5.0 / 2 / 50, rel=1e-6)
    with pytest.raises(ValueError, match="summed over a batch"):
        est.in_model_units()
    with pytest.raises(ValueError, match="train on the mean"):
        est.explicit_estimator()
