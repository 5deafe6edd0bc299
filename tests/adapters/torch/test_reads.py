"""What a loss reads beside outputs and targets: the trajectory of a model does not hold it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.exceptions import ModelStateWarning
from sklearn_implicitreg.trajectory import record

DECAY = 0.05
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(40, 3, generator=GENERATOR, dtype=torch.float64)
Y = X.sum(1, keepdim=True).sin()


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


class Variance(nn.Module):
    """A learned variance."""

    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, output, target):
        return ((output - target).square() * torch.exp(-self.log) + self.log).mean()


class Centered(nn.Module):
    """A center that follows the outputs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(1, dtype=torch.float64))

    def forward(self, output, target):
        self.center.mul_(0.9).add_(0.1 * output.detach().mean(0))
        return (output - 0.2 * self.center - target).square().mean()


def distilled(net, wrapped):
    """A teacher that follows the net, in the closure of the loss or a part of it."""
    teacher = copy.deepcopy(net).requires_grad_(False)

    class Distilled(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = teacher

        def forward(self, output, target):
            return loss(output, target)

    def loss(output, target):
        with torch.no_grad():
            aim = teacher(target[:, 1:])
        return mse_loss(output, aim + target[:, :1])

    def after():
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), net.parameters(), strict=True):
                slow.lerp_(fast, 0.1)

    return (Distilled() if wrapped else loss), [], after


def learned(net):
    loss = Variance()
    return loss, list(loss.parameters()), lambda: None


def in_closure(net):
    log = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    return (
        lambda output, target: ((output - target).square() * torch.exp(-log) + log).mean(),
        [log],
        lambda: None,
    )


def judged(net):
    """A net that is trained to tell outputs from targets."""
    judge = nn.Sequential(nn.Linear(1, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    return (
        lambda output, target: mse_loss(output, target) + 0.1 * judge(output).mean(),
        list(judge.parameters()),
        lambda: None,
    )


def frozen(net):
    """A net that stands still and is like no part of the model."""
    seen = nn.Sequential(nn.Linear(1, 7), nn.Tanh()).double().requires_grad_(False)
    return (lambda output, target: mse_loss(seen(output), seen(target))), [], lambda: None


def trained(made, n_epochs=3):
    torch.manual_seed(0)
    net = mlp()
    loss, more, after = made(net)
    groups = [{"params": list(net.parameters())}, *([{"params": more}] if more else [])]
    y = torch.cat([Y, X], 1) if made.__name__ == "<lambda>" else Y
    with record(net, optimizer := SGD(groups, lr=0.1, weight_decay=DECAY)) as recorder:
        for _ in range(n_epochs):
            for rows in torch.randperm(len(X)).split(10):
                recorder.batch(rows)
                optimizer.zero_grad()
                loss(net(X[rows]), y[rows]).backward()
                optimizer.step()
                after()
            recorder.epoch()
    return net, loss, y, recorder.trajectory


def fitted(net, loss, y, trajectory, reference="batch"):
    return ImplicitRegularizationEstimator(
        net,
        family="weight_decay",
        params="all",
        mode="trajectory",
        trajectory=trajectory,
        window="epoch",
        reference=reference,
        loss=loss,
    ).fit(X, y)


MOVING = {
    "learned-variance": (learned, "reads log, as it is now"),
    "closure": (in_closure, r"reads a parameter of shape \(1,\), as"),
    "judge": (judged, "reads a Sequential, as"),
    "teacher": (lambda net: distilled(net, False), "reads a Sequential, as"),
    "teacher-in-loss": (lambda net: distilled(net, True), "reads a Sequential, as"),
    "center": (lambda net: (Centered(), [], lambda: None), "reads center, as"),
}


@pytest.mark.parametrize("kind", MOVING)
def test_what_moves_with_the_loss_is_named(kind):
    made, text = MOVING[kind]
    net, loss, y, trajectory = trained(made)
    state = copy.deepcopy(loss.state_dict()) if isinstance(loss, nn.Module) else {}
    with pytest.warns(ModelStateWarning, match=text):
        found = fitted(net, loss, y, trajectory)
    assert abs(found.coef_[0] - DECAY) > 1e-5  # a wrong number, without the warning
    found = fitted(net, loss, y, trajectory, "applied")
    assert found.coef_[0] == pytest.approx(DECAY, rel=1e-9)
    if kind != "center":
        assert all(torch.equal(t, state[name]) for name, t in loss_state(loss).items())


def loss_state(loss):
    return loss.state_dict() if isinstance(loss, nn.Module) else {}


def constant(net):
    """A loss of its own class with numbers that stand still."""

    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.full((1,), 2.0, dtype=torch.float64))
            self.power = 2

        def forward(self, output, target):
            return (self.weight * (output - target).abs() ** self.power).mean()

    return Weighted(), [], lambda: None


@pytest.mark.parametrize("made", [frozen, constant])
def test_what_stands_still_is_not(made):
    net, loss, y, trajectory = trained(made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fitted(net, loss, y, trajectory)
    assert found.coef_[0] == pytest.approx(DECAY, rel=1e-9)


def test_an_endpoint_reads_what_is_there():
    net, loss, _, _ = trained(learned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImplicitRegularizationEstimator(net, loss=loss).fit(X, Y)
