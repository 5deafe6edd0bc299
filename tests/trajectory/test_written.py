"""State that a forward pass reads before it writes to it, beside state that it reads afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrizations
from torch.optim import SGD

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.trajectory import record
from sklearn_implicitreg.trajectory.references import Batch
from sklearn_implicitreg.trajectory.written import as_read

DECAY = 0.04
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(40, 4, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(40, 6, generator=GENERATOR, dtype=torch.float64)


class Queue(nn.Module):
    """Similarities with rows of the past, which the batch joins afterwards."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.register_buffer("queue", torch.ones(6, 3))
        self.place = 0

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        found = hidden @ self.queue.clone().T
        if self.training:
            with torch.no_grad():
                self.queue[self.place : self.place + 2] = hidden[:2]
            self.place = (self.place + 2) % 6
        return found


class Codebook(Queue):
    """Codes that follow the rows that are nearest to them."""

    def forward(self, x):
        hidden = self.a(x)
        nearest = torch.cdist(hidden, self.queue).argmin(1)
        found = (hidden - self.queue[nearest]) @ torch.ones(3, 6, dtype=x.dtype)
        if self.training:
            self.queue = self.queue.clone()
            for k in nearest.unique().tolist():
                self.queue[k] += 0.2 * (hidden[nearest == k].detach().mean(0) - self.queue[k])
        return found


class Normalized(Queue):
    """With a layer whose buffers are written to before they are read."""

    def __init__(self):
        super().__init__()
        self.a = parametrizations.spectral_norm(self.a)


class Attribute(Queue):
    """A mean of the past as an attribute of Python, replaced afterwards."""

    def __init__(self):
        super().__init__()
        self.past = [0.0]

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        found = (hidden - self.past[0]) @ self.queue.T
        if self.training:
            self.past[0] = 0.5 * self.past[0] + 0.5 * float(hidden.detach().mean())
        return found


def trained(kind, penalty=0.0, whole=False, **how):
    torch.manual_seed(0)
    net = kind().double()
    optimizer = SGD(net.parameters(), lr=0.1, weight_decay=DECAY)
    with record(net, optimizer, **how) as recorder:
        for _ in range(4):
            for rows in torch.randperm(len(X)).split(10):
                recorder.batch((X[rows], Y[rows]) if whole else rows)
                optimizer.zero_grad()
                loss = mse_loss(net(X[rows]), Y[rows])
                (loss + penalty * sum(p.square().sum() for p in net.parameters())).backward()
                optimizer.step()
            recorder.epoch()
    return net, recorder.trajectory


def fitted(net, trajectory, reference="batch", window="epoch"):
    return ImplicitRegularizationEstimator(
        net,
        family="weight_decay",
        params="all",
        mode="trajectory",
        trajectory=trajectory,
        window=window,
        reference=reference,
        loss="mse",
    ).fit(X, Y)


KINDS = [Queue, Codebook, Normalized, Attribute]


@pytest.mark.filterwarnings("ignore:.* computes another function")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [0.0, 0.001])
@pytest.mark.parametrize("whole", [False, True], ids=["rows", "tensors"])
def test_what_the_forward_pass_read(kind, penalty, whole):
    """A small penalty in the loss is part of the gradient that was given, and of no batch's."""
    net, trajectory = trained(kind, penalty, whole)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    found = fitted(net, trajectory).coef_[0]
    assert found == pytest.approx(DECAY + 2 * penalty, rel=1e-9)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.filterwarnings("ignore:.* computes another function")
def test_values_of_each_step():
    """Known from the net itself: the queue as every forward pass found it."""
    seen = []

    class Noted(Queue):
        def forward(self, x):
            if self.training:
                seen.append(self.queue.clone())
            return super().forward(x)

    net, trajectory = trained(Noted)
    read = list(seen)
    problem = adapt(net, Data(X, Y), Options(loss="mse", params="all"))
    windows = as_read(problem, trajectory, Batch()).windows(None)
    for window, queue in zip(windows, read, strict=True):
        torch.testing.assert_close(window.mean("visited")["queue"], queue)


@pytest.mark.filterwarnings("ignore:.* computes another function")
def test_a_part_does_not_know_what_came_before():
    net, trajectory = trained(Queue)
    with pytest.raises(ValueError, match="in which queue changed while recording"):
        fitted(net, trajectory[4:])
    assert fitted(net, trajectory[4:], "applied").coef_[0] == pytest.approx(DECAY, rel=1e-9)
