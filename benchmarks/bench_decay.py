"""Weight decay found in 300 steps of shuffled mini-batches with the gradient on all rows.

wd .02, batch 32 of 400, whole epochs, 20 seeds: error and coverage of the interval. The steps are
the first of a training, in which the weights move far within an epoch: two nodes see that better
than the mean iterate.

Run: ``python benchmarks/bench_decay.py [seeds]``
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from nets import make_data
from torch import nn, optim

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import Gradient, record

DECAY = 0.02
REFERENCES = {"applied": "applied", "gradient": "gradient", "two nodes": Gradient(n_nodes=2)}
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
    for name, reference in REFERENCES.items():
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
        found[name] = (est.coef_[0] / DECAY - 1, bool(low <= DECAY <= high))
    return found


def main(n_seeds: int = 20) -> None:
    """Print errors and coverage of every optimizer."""
    torch.set_num_threads(1)
    for name, make in OPTIMIZERS.items():
        found = [one(make, seed) for seed in range(n_seeds)]
        errors = {key: np.array([f[key][0] for f in found]) for key in REFERENCES}
        print(f"{name:9s} applied: error <= {np.abs(errors['applied']).max():.1e}", end="")
        for key in ("gradient", "two nodes"):
            covers = np.mean([f[key][1] for f in found])
            print(
                f"; {key}: mean error {errors[key].mean():+.2%}, largest "
                f"{np.abs(errors[key]).max():.2%}, covers {covers:.0%}",
                end="",
            )
        print(flush=True)


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
