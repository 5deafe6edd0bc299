"""Random training runs that are recorded."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import record

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p, lr, w: torch.optim.SGD(p, lr, weight_decay=w),
    "momentum": lambda p, lr, w: torch.optim.SGD(p, lr / 5, momentum=0.8, weight_decay=w),
    "Nesterov": lambda p, lr, w: torch.optim.SGD(
        p, lr / 5, momentum=0.7, nesterov=True, weight_decay=w
    ),
    "Adam": lambda p, lr, w: torch.optim.Adam(p, lr / 5, weight_decay=w),
    "AdamW": lambda p, lr, w: torch.optim.AdamW(p, lr / 5, weight_decay=w),
    "RMSprop": lambda p, lr, w: torch.optim.RMSprop(p, lr / 20, weight_decay=w),
    "Adagrad": lambda p, lr, w: torch.optim.Adagrad(p, lr / 5, weight_decay=w),
}


@dataclass(frozen=True)
class Run:
    """Everything that makes the same training again."""

    optimizer: str
    seed: int
    lr: float
    decay: float
    batch: int
    n_epochs: int
    every: int
    n: int = 24
    d: int = 3

    def rows(self) -> tuple[Any, Any]:
        """X and y as tensors."""
        generator = torch.Generator().manual_seed(self.seed)
        X = torch.randn(self.n, self.d, generator=generator, dtype=torch.float64)
        noise = torch.randn(self.n, 1, generator=generator, dtype=torch.float64)
        return X, torch.sin(X.sum(1, keepdim=True)) + 0.3 * noise

    def train(self, recorded: bool = True, directory: Any = None) -> tuple[nn.Module, Any]:
        """The trained net, and its trajectory where it is recorded."""
        X, y = self.rows()
        generator = torch.Generator().manual_seed(self.seed)
        net = nn.Sequential(nn.Linear(self.d, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.5)
        optimizer = OPTIMIZERS[self.optimizer](net.parameters(), self.lr, self.decay)
        options = {"every": self.every, "gradients": True, "directory": directory}
        recorder = record(net, optimizer, **options) if recorded else None
        with recorder or contextlib.nullcontext():
            for _ in range(self.n_epochs):
                for rows in torch.randperm(self.n, generator=generator).split(self.batch):
                    if recorder is not None:
                        recorder.batch(rows)
                    optimizer.zero_grad()
                    (net(X[rows]) - y[rows]).square().mean().backward()
                    optimizer.step()
                if recorder is not None:
                    recorder.epoch()
        return net, recorder.trajectory if recorder is not None else None

    def estimator(self, net: nn.Module, trajectory: Any, **options: Any) -> Any:
        """Estimator of the decay, not fitted."""
        given = {"family": "weight_decay", "loss": "mse", "params": "all", "window": "epoch"}
        return ImplicitRegularizationEstimator(
            net, mode="trajectory", trajectory=trajectory, **(given | options)
        )


def runs(**fixed: Any) -> Any:
    """Any of them."""
    drawn = {
        "optimizer": st.sampled_from(list(OPTIMIZERS)),
        "seed": st.integers(0, 2**31 - 1),
        "lr": st.floats(0.005, 0.1),
        "decay": st.floats(0.01, 0.2),
        "batch": st.integers(4, 24),
        "n_epochs": st.integers(2, 4),
        "every": st.sampled_from([1, 2, 5]),
    }
    return st.builds(Run, **(drawn | fixed))
