"""Weight decay found in 300 steps of shuffled mini-batches with the gradient on all rows.

wd .02, batch 32 of 400, whole epochs, 20 seeds: error and coverage of the interval.

Run: ``python benchmarks/bench_decay.py [seeds]``
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from nets import make_data
from torch import nn, optim

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import record

DECAY = 0.02
OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.01, weight_decay=DECAY),
    "momentum": lambda p: optim.SGD(p, lr=0.005, momentum=0.9, weight_decay=DECAY),
    "Nesterov": lambda p: optim.SGD(p, lr=0.005, momentum=0.9, nesterov=True, weight_decay=DECAY),
    "Adam": lambda p: optim.Adam(p, lr=1e-3, weight_decay=DECAY),
    "AdamW": lambda p: optim.AdamW(p, lr=1e-3, weight_decay=DECAY),
    "RMSprop": lambda p: optim.RMSprop(p, lr=1e-3, weight_decay=DECAY),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.01, weight_decay=DECAY),
}


def one(make, seed: int) -> dict[str, tuple[float, bool]]:
    """Relative error, and whether the interval covers, by reference."""
    X, y = make_data(seed)
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(10, 50), nn.Tanh(), nn.Linear(50, 1)).double()
    optimizer = make(net.parameters())
    n_steps = 0
    with record(net, optimizer) as path:
        while n_steps < 300:
            for rows in torch.randperm(len(X), generator=order).split(32):
                path.batch(rows)
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X[rows]), y[rows]).backward()
                optimizer.step()
                n_steps += 1
            path.epoch()
    found = {}
    for reference in ("applied", "gradient"):
        est = ImplicitRegularizationEstimator(
            net,
            family="weight_decay",
            mode="trajectory",
            trajectory=path.trajectory,
            reference=reference,
            window="epoch",
            loss="mse",
            params="all",
        ).fit(X, y)
        low, high = est.conf_int_[0]
        found[reference] = (est.coef_[0] / DECAY - 1, bool(low <= DECAY <= high))
    return found


def main(n_seeds: int = 20) -> None:
    """Print errors and coverage of every optimizer."""
    torch.set_num_threads(1)
    for name, make in OPTIMIZERS.items():
        found = [one(make, seed) for seed in range(n_seeds)]
        applied = np.array([f["applied"][0] for f in found])
        gradient = np.array([f["gradient"][0] for f in found])
        covers = np.mean([f["gradient"][1] for f in found])
        print(
            f"{name:9s} applied: error <= {np.abs(applied).max():.1e}; gradient: mean error "
            f"{gradient.mean():+.2%}, largest {np.abs(gradient).max():.2%}, covers {covers:.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
