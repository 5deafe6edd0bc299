"""Whether weights are an endpoint, by the trajectory beside them: known answers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import ContinueTraining, GradientDescentProbe, record

N, DECAY = 120, 0.05
OPTIONS = {"family": "weight_decay", "loss": "mse", "params": "all"}


def make_data():
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(N, 4, generator=rng, dtype=torch.float64)
    y = torch.sin(X[:, :1]) + 0.5 * X[:, 1:2] + 0.3 * torch.randn(N, 1, generator=rng)
    return X, y.double()


X, Y = make_data()


def train_epoch(net, optimizer, recorder=None, batch=N, order=None):
    """One shuffled epoch; all rows at once by default."""
    rows_of = [torch.arange(N)] if batch == N else torch.randperm(N, generator=order).split(batch)
    for rows in rows_of:
        if recorder is not None:
            recorder.batch(rows)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(X[rows]), Y[rows]).backward()
        optimizer.step()
    if recorder is not None:
        recorder.epoch()


def trained(n_epochs, batch=N, lr=0.05, decay=DECAY, n_recorded=10, zero=False):
    """A net trained for some epochs, the last of them recorded."""
    torch.manual_seed(1)
    if zero:  # a linear model that starts at zero
        net = nn.Linear(4, 1).double()
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
    else:
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    optimizer = SGD(net.parameters(), lr=lr, weight_decay=decay)
    order = torch.Generator().manual_seed(2)
    for _ in range(n_epochs - n_recorded):
        train_epoch(net, optimizer, None, batch, order)
    with record(net, optimizer) as recorder:
        for _ in range(n_recorded):
            train_epoch(net, optimizer, recorder, batch, order)
    return net, recorder.trajectory


def fit(net, trajectory, **params):
    return ImplicitRegularizationEstimator(net, trajectory=trajectory, **(OPTIONS | params)).fit(
        X, Y
    )


def sentence(est):
    return " ".join(str(est.summary()).split())


@pytest.fixture(scope="module")
def converged():
    return trained(1500, lr=0.2)


@pytest.fixture(scope="module")
def noisy():
    return trained(300, batch=12)


class TestEndpoint:
    def test_path_bears_it_out(self, converged):
        est = fit(*converged)
        assert est.verdict_ == "supported"
        assert (
            "The trajectory confirms it: the penalty gradient that the 10 steps next to these"
            in sentence(est)
        )
        np.testing.assert_allclose(est.coef_, [DECAY], rtol=1e-3)

    def test_path_from_far_is_looked_at_near_the_weights(self):
        est = fit(*trained(1500, lr=0.2, n_recorded=1500))
        assert est.verdict_ == "supported"

    def test_continued_training(self, converged):
        net, _ = converged
        make = lambda params: SGD(params, lr=0.1, weight_decay=DECAY)  # noqa: E731
        est = fit(net, ContinueTraining(5, train_epoch=train_epoch, optimizer=make))
        assert est.verdict_ == "supported"
        assert "that the 5 steps next to these weights added" in sentence(est)

    def test_small_steps_of_batches_leave_an_endpoint(self, converged):
        """Batch noise far below the gradient of the penalty, which the windows measure."""
        net, _ = converged
        make = lambda params: SGD(params, lr=1e-4, weight_decay=DECAY)  # noqa: E731
        order = torch.Generator().manual_seed(3)

        def epoch(model, optimizer, trajectory):
            train_epoch(model, optimizer, trajectory, 12, order)

        est = fit(net, ContinueTraining(4, train_epoch=epoch, optimizer=make))
        assert est.verdict_ == "supported"

    def test_known_part_is_left_out_of_both(self, converged):
        est = fit(*converged, family="l2", known={"weight_decay": 0.9 * DECAY})
        np.testing.assert_allclose(est.coef_, [0.05 * DECAY], rtol=0.02)
        assert "differs from -grad L less what is known by" in sentence(est)

    def test_one_window_does_not_know_its_noise(self, converged):
        net, trajectory = converged
        assert "one window: its noise is not known" in sentence(fit(net, trajectory[-2:]))

    def test_selection_tells_it_as_well(self, converged):
        net, trajectory = converged
        params = {"trajectory": trajectory, "loss": "mse", "params": "all"}
        search = ImplicitRegularizationCV(
            net, families=["weight_decay", "smooth_l1"], **params
        ).fit(X, Y)
        assert search.best_family_ == "weight_decay"
        assert "The trajectory confirms it" in sentence(search)


class TestNotStationary:
    def test_gradient_of_batch_noise(self, noisy):
        net, trajectory = noisy
        without, est = fit(net, None), fit(net, trajectory)
        assert without.verdict_ == "partial"
        assert est.verdict_ == "not stationary"
        np.testing.assert_array_equal(est.coef_, without.coef_)
        norm = np.sqrt(sum(float(g.square().sum()) for g in gradient_of(net)))
        assert (
            f"-grad L has norm {norm:.4g} and the penalty gradient that the 100 steps"
            in sentence(est)
        )
        assert "mode='trajectory'" in sentence(est)
        along = fit(net, trajectory, mode="trajectory", window="epoch")
        np.testing.assert_allclose(along.coef_[0], DECAY, rtol=0.1)

    @pytest.mark.parametrize("probe", [None, GradientDescentProbe(0.02, n_steps=3)], ids=str)
    def test_training_that_had_not_ended(self, probe):
        """No step added a penalty, though the endpoint looks like a ridge: a = grad L."""
        net, trajectory = trained(12, decay=0.0, lr=0.02, zero=True)
        without, est = fit(net, None), fit(net, probe or trajectory)
        assert without.r2_ > 0.1
        assert est.verdict_ == "not stationary"
        share = float(sentence(est).split("they differ by ")[1].split()[0])
        assert share == pytest.approx(1.0, abs=1e-3)

    def test_partial_names_what_makes_a_path(self, noisy):
        est = fit(noisy[0], None)
        assert est.verdict_ == "partial"
        assert "ContinueTraining" in est.next_steps()[0].code


class TestRefusals:
    def test_path_that_does_not_meet_the_weights(self, converged):
        net, _ = converged
        other = trained(20)[1]
        with pytest.raises(ValueError, match="Expected a trajectory through the trained weights"):
            fit(net, other)

    def test_path_of_another_model(self, converged):
        with pytest.raises(ValueError, match="Expected a trajectory of this model"):
            fit(converged[0], trained(12, zero=True)[1])

    def test_gradient_of_zero_needs_no_evidence(self):
        net = nn.Linear(4, 1).double()
        est = ImplicitRegularizationEstimator(
            net, trajectory=GradientDescentProbe(0.1), **OPTIONS
        ).fit(X, net(X).detach())
        assert est.verdict_ == "no signal"


def gradient_of(net):
    loss = nn.functional.mse_loss(net(X), Y)
    return torch.autograd.grad(loss, list(net.parameters()))
