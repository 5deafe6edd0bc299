"""What references, probes and theory make of paths that are not the plain case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.exceptions import ModelStateWarning
from sklearn_implicitreg.penalties.gradients import GradientNorm
from sklearn_implicitreg.trajectory import (
    Batch,
    Flow,
    Gradient,
    GradientDescentProbe,
    Trajectory,
    minibatch_factor,
    record,
)

N = 80
SGD, Adam, RMSprop = torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop


def rows():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(N, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(N, 1, generator=generator, dtype=torch.float64)
    return X, torch.sin(X[:, :1]) + 0.3 * noise


def new_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def train(make, bs=16, n_epochs=4, decay=1.0, between=None):
    """Net and its trajectory; lr falls by a factor each epoch, `between` runs before every step."""
    X, y = rows()
    net = new_net()
    optimizer = make(net.parameters())
    order = torch.Generator().manual_seed(1)
    with record(net, optimizer) as recorder:
        for _ in range(n_epochs):
            for part in torch.randperm(N, generator=order).split(bs):
                recorder.batch(part)
                if between is not None:
                    between(net)
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X[part]), y[part]).backward()
                optimizer.step()
            recorder.epoch()
            for group in optimizer.param_groups:
                group["lr"] *= decay
    return net, X, y, recorder.trajectory


def fit(case, family="l2", **how):
    net, X, y, trajectory = case
    how = {"params": "all", "window": "epoch", "loss": "mse"} | how
    est = ImplicitRegularizationEstimator(
        net, family=family, mode="trajectory", trajectory=trajectory, **how
    )
    return est.fit(X, y)


def text_of(est):
    return " ".join(str(est.summary()).split())


class Halves(nn.Module):
    """Normalizes each half of a batch alone."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x):
        halves = self.a(x).chunk(2)
        return self.b(torch.tanh(torch.cat([self.norm(half) for half in halves])))


def neighbours(output, target):
    """Compares each row with the next one of the batch."""
    return (output.diff(dim=0) - target.diff(dim=0)).abs().pow(1.5).mean()


def drawn(rng):
    return list(torch.randint(N, (5, 16), generator=rng))


def shuffled(rng):
    return torch.randperm(N, generator=rng).split(16)


def all_shuffled(rng):
    return [torch.randperm(N, generator=rng)]


class TestTheRowsOfABatchAsTheyCame:
    """In their order, and as often: the decay that was applied is found."""

    @pytest.mark.parametrize("n_parts", [1, 2])
    @pytest.mark.parametrize(
        ("make", "loss", "draw"),
        [
            (new_net, "mse", drawn),
            (new_net, neighbours, shuffled),
            (new_net, neighbours, all_shuffled),
            (new_net, neighbours, drawn),
            (Halves, "mse", shuffled),
            (Halves, "mse", drawn),
            (Halves, "mse", all_shuffled),
        ],
    )
    def test_by_batch(self, make, loss, draw, n_parts):
        X, y = rows()
        net = make().double()
        value = nn.functional.mse_loss if loss == "mse" else loss
        rng = torch.Generator().manual_seed(0)
        optimizer = SGD(net.parameters(), lr=0.02, weight_decay=0.05)
        with record(net, optimizer) as recorder:
            for _ in range(3):
                for batch in draw(rng):
                    optimizer.zero_grad()
                    for part in batch.chunk(n_parts):
                        recorder.batch(part, accumulate=n_parts > 1)
                        (value(net(X[part]), y[part]) / n_parts).backward()
                    optimizer.step()
                recorder.epoch()
        est = fit((net, X, y, recorder.trajectory), "weight_decay", reference="batch", loss=loss)
        assert est.coef_ == pytest.approx([0.05], rel=1e-9)
        assert est.r2_ == pytest.approx(1, abs=1e-12)


class TestDraws:
    def problem_and_path(self):
        net = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 1)).double()
        X, y = rows()
        options = Options(loss="mse", params="all", module_mode="train", random_state=0)
        optimizer = SGD(net.parameters(), lr=1e-9)
        with record(net, optimizer) as recorder:
            for _ in range(2):
                recorder.batch(range(N))
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X), y).backward()
                optimizer.step()
        return adapt(net, Data(X, y), options), recorder.trajectory

    def test_masks_differ_between_draws_and_steps(self):
        problem, trajectory = self.problem_and_path()
        first, second = trajectory.windows(None)
        one = Batch().mean_gradient(problem, first).value["0.weight"]
        again = Batch().mean_gradient(problem, first).value["0.weight"]
        assert torch.equal(one, again)
        assert not torch.allclose(one, Batch(3).mean_gradient(problem, first).value["0.weight"])
        other = Batch().mean_gradient(problem, second).value["0.weight"]
        assert not torch.allclose(one, other, rtol=1e-3)

    def test_noise_falls_with_the_draws(self):
        problem, trajectory = self.problem_and_path()
        window = trajectory.windows(None)[0]
        mean = Batch(400).mean_gradient(problem, window).value["0.weight"]
        away = [
            float((Batch(n).mean_gradient(problem, window).value["0.weight"] - mean).norm())
            for n in (1, 100)
        ]
        assert away[1] < away[0] / 4


class TestProbesAreMadeAnew:
    @pytest.mark.parametrize("what", ["y", "weight", "loss"])
    def test_where_what_they_depend_on_changes(self, what):
        X, y = rows()
        net, probe = new_net(), GradientDescentProbe(lr=0.01, n_steps=2)
        first = adapt(net, Data(X, y), Options(loss="mse", params="all"))
        data, loss = Data(X, y), "mse"
        if what == "y":
            data = Data(X, y + 1)
        elif what == "weight":
            data = Data(X, y, np.linspace(1, 2, N))
        else:
            loss = nn.HuberLoss(delta=0.1)
        trajectory = probe.run(net, Data(X, y), first)
        assert probe.run(net, Data(X, y), first) is trajectory
        other = probe.run(net, data, adapt(net, data, Options(loss=loss, params="all")))
        assert other is not trajectory

    def test_numpy_integers(self):
        assert GradientDescentProbe(lr=0.01, n_steps=np.int64(2)).n_steps == 2


class TestFlowNeedsPlainDescent:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda p: SGD(p, lr=0.01, momentum=0.9), "got SGD with momentum=0.9"),
            (lambda p: Adam(p, lr=0.01), "got Adam"),
        ],
        ids=["momentum", "adam"],
    )
    def test_other_optimizers_are_refused_by_name(self, make, message):
        case = train(make, bs=N)
        with pytest.raises(ValueError, match=message):
            fit(case, GradientNorm(), reference="flow", window=None)

    def test_step_sizes_of_groups(self):
        def groups(parameters):
            first, *others = parameters
            return SGD([{"params": [first]}, {"params": others, "lr": 0.02}], lr=0.01)

        case = train(groups, bs=N)
        with pytest.raises(ValueError, match="one step size .* '0.bias'"):
            fit(case, GradientNorm(), reference="flow", window=None)

    def test_plain_descent(self):
        case = train(lambda p: SGD(p, lr=0.01), bs=N)
        est = fit(case, GradientNorm(), reference="flow", window=None)
        assert est.coef_[0] == pytest.approx(0.01 / 4, rel=0.05)


class TestTheoryOfMinibatches:
    def expected(self, est):
        return float(
            text_of(est).split("theory expects lr/4 times ")[1].split(" = ")[1].split()[0][:-1]
        )

    @pytest.mark.parametrize(
        ("settings", "sub_window", "n", "kept"),
        [
            ({"momentum": 0.9, "dampening": 0.5}, None, 5, 0.5),
            ({"momentum": 0.5}, 99, 5, 1.0),
            ({"momentum": 0.5}, 3, 3, 1.0),
        ],
        ids=["dampening", "large-sub-window", "sub-window"],
    )
    def test_factor(self, settings, sub_window, n, kept):
        case = train(lambda p: SGD(p, lr=0.01, **settings))
        est = fit(case, reference=Gradient(sub_window=sub_window))
        wanted = 0.01 / 4 * minibatch_factor(settings["momentum"], n) * kept
        assert self.expected(est) == pytest.approx(wanted, rel=1e-3)

    def test_mean_step_size(self):
        est = fit(train(lambda p: SGD(p, lr=0.01), decay=0.5, n_epochs=3))
        assert self.expected(est) == pytest.approx(0.01 * (1 + 0.5 + 0.25) / 3 / 4, rel=1e-3)

    @pytest.mark.parametrize(
        ("make", "wanted"),
        [
            (lambda p: RMSprop(p, lr=0.001, momentum=0.5), minibatch_factor(0.5, 5)),
            (lambda p: Adam(p, lr=0.001, betas=(0.8, 0.99)), minibatch_factor(0.8, 5) * 0.2),
        ],
        ids=["RMSprop", "Adam"],
    )
    def test_preconditioned(self, make, wanted):
        """Momentum in the same way, the scale of the entries in the column."""
        est = fit(train(make))
        assert self.expected(est) == pytest.approx(0.001 / 4 * wanted, rel=2e-3)

    def test_none_for_nadam(self):
        est = fit(train(lambda p: torch.optim.NAdam(p, lr=0.001)))
        assert "no theory for a preconditioned optimizer" in text_of(est)


def test_weights_that_are_set_between_steps():
    generator = torch.Generator().manual_seed(5)

    def jump(net):
        state = {
            n: t + 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype)
            for n, t in net.state_dict().items()
        }
        net.load_state_dict(state)

    with pytest.warns(ModelStateWarning, match="Something else than the optimizer"):
        case = train(lambda p: SGD(p, lr=0.01, weight_decay=0.02), between=jump)
    est = fit(case, reference="batch")
    assert est.coef_[0] == pytest.approx(0.01, rel=1e-8)


@pytest.mark.parametrize(
    ("kind", "wrong", "text"),
    [
        (lambda n: Gradient(sub_window=n), 2.5, r"sub_window of Gradient .*got 2\.5\."),
        (lambda n: Gradient(sub_window=n), 0, r"sub_window of Gradient .*got 0\."),
        (Batch, 0, r"n_draws of Batch .*got 0\."),
        (Flow, 0, r"n_substeps of Flow .*got 0\."),
        (Flow, True, r"n_substeps of Flow .*got True\."),
    ],
)
def test_counts_are_checked_where_they_are_given(kind, wrong, text):
    with pytest.raises(ValueError, match=text):
        kind(wrong)
    assert kind(np.int64(2))


def test_flow_of_iterates():
    X, y = rows()
    net = new_net()
    probe = GradientDescentProbe(lr=0.01, n_steps=3)
    whole = adapt(net, Data(X, y), Options(loss="mse", params="all"))
    weights = [mark.weights for mark in probe.run(net, Data(X, y), whole).marks]
    trajectory = Trajectory.from_iterates(weights, lr=0.01)
    est = fit((net, X, y, trajectory), GradientNorm(), reference="flow", window=None)
    assert est.coef_[0] == pytest.approx(0.01 / 4, rel=0.05)


@pytest.mark.parametrize("accumulate", [False, True])
def test_fewer_rows_than_the_batches_name(accumulate):
    X, y = rows()
    net = new_net()
    optimizer = SGD(net.parameters(), lr=0.05)
    with record(net, optimizer) as recorder:
        for part in torch.arange(N).split(20):
            optimizer.zero_grad()
            for own in part.split(10 if accumulate else 20):
                recorder.batch(own, accumulate=accumulate)
                (nn.functional.mse_loss(net(X[own]), y[own]) * (len(own) / 20)).backward()
            optimizer.step()
    est = ImplicitRegularizationEstimator(
        net, mode="trajectory", trajectory=recorder.trajectory, reference="batch", loss="mse"
    )
    with pytest.raises(ValueError, match="got X with 50 rows and batches that name rows up to"):
        est.fit(X[:50], y[:50])


class Counted(nn.Module):
    """A classifier that counts the rows it is given, whichever copy of it is called."""

    seen = 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        Counted.seen += len(x)
        return self.layer(x)


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 4.0]])
def test_the_batch_reference_takes_one_pass_an_epoch_whatever_weighs_the_rows(weight):
    n_rows, n_epochs, batch, decay = 240, 3, 8, 0.02
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n_rows, 5, generator=generator, dtype=torch.float64)
    y = torch.arange(n_rows) % 3
    loss = nn.CrossEntropyLoss(None if weight is None else torch.tensor(weight).double())
    net = Counted().double()
    optimizer = SGD(net.parameters(), lr=0.1, weight_decay=decay)
    with record(net, optimizer) as recorder:
        for _ in range(n_epochs):
            for part in torch.randperm(n_rows, generator=generator).split(batch):
                recorder.batch(part)
                optimizer.zero_grad()
                loss(net(X[part]), y[part]).backward()
                optimizer.step()
            recorder.epoch()
    Counted.seen = 0
    est = ImplicitRegularizationEstimator(
        net,
        family="weight_decay",
        mode="trajectory",
        trajectory=recorder.trajectory,
        reference="batch",
        window="epoch",
        loss=loss,
        params="all",
    ).fit(X, y)
    np.testing.assert_allclose(est.coef_, [decay], rtol=1e-9)
    assert Counted.seen <= 2 * (n_epochs + 2) * n_rows  # 90 steps took 90 passes
