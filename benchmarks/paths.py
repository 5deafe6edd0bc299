"""Small networks trained by SGD, the last epochs recorded: the cases of the path benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from nets import TRUTHS, make_data
from torch import Tensor, nn

from sklearn_implicitreg.trajectory import Trajectory, record


@dataclass(frozen=True)
class RecordedNet:
    """A network, its rows, its last epochs, and the penalty that it was trained with."""

    truth: str | None
    net: nn.Module
    X: Tensor
    y: Tensor
    path: Trajectory


def train_sgd(  # noqa: C901, PLR0913
    truth: str | None,
    seed: int,
    *,
    lr: float = 0.01,
    momentum: float = 0.0,
    batch: int = 40,
    n_epochs: int = 20,
    n_before: int = 350,
    replacement: bool = False,
    n_hidden: int = 50,
    kind: type[torch.optim.Optimizer] = torch.optim.SGD,
) -> RecordedNet:
    """10-50-1 tanh network, 400 rows, mean squared error plus the true penalty, float64."""
    X, y = make_data(seed)
    # torch asks for seeds with a good balance of bits: those of small ones are not independent.
    spread = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) // 2
    rng = torch.Generator().manual_seed(spread)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(10, n_hidden), nn.Tanh(), nn.Linear(n_hidden, 1)).double()
    if kind is torch.optim.SGD:
        fast = 0.05 * (1 - momentum)
        optimizer = kind(net.parameters(), lr=max(lr, fast), momentum=momentum)
    else:
        optimizer = kind(net.parameters(), lr=5 * lr, weight_decay=0.0)

    def step(rows: Tensor) -> None:
        optimizer.zero_grad()
        value = nn.functional.mse_loss(net(X[rows]), y[rows])
        if truth is not None:
            params = dict(net.named_parameters())
            value = value + sum(c * sum(p.terms(params, None).values()) for c, p in TRUTHS[truth])
        value.backward()
        optimizer.step()

    def epoch(path=None) -> None:
        order = torch.randperm(len(X), generator=rng)
        for start in range(0, len(X), batch):
            rows = order[start : start + batch]
            if replacement:
                rows = torch.randint(0, len(X), (batch,), generator=rng)
            if path is not None:
                path.batch(rows)
            step(rows)
        if path is not None:
            path.epoch()

    for i in range(n_before):
        if i == n_before * 6 // 7:
            optimizer.param_groups[0]["lr"] = lr
        epoch()
    with record(net, optimizer) as path:
        for _ in range(n_epochs):
            epoch(path)
    return RecordedNet(truth, net, X, y, path.trajectory)
