"""Choice of the family for 24 networks whose optimizer decays the weights, supersets among them.

Momentum, Adam and AdamW with a decay of .02, batches of 40 of 400 rows, 20 epochs recorded after
60; the candidates hold the decay alone, other penalties, and sums of it with others.

Run: ``python benchmarks/bench_selection_decay.py [seeds per optimizer]``
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable

import torch
from nets import Rooted, make_data
from torch import nn, optim

from sklearn_implicitreg import ImplicitRegularizationCV, record
from sklearn_implicitreg.penalties import L2, Penalty, Power, SmoothL1
from sklearn_implicitreg.trajectory import Trajectory

DECAY = 0.02
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "momentum": lambda p: optim.SGD(p, lr=0.005, momentum=0.9, weight_decay=DECAY),
    "Adam": lambda p: optim.Adam(p, lr=1e-3, weight_decay=DECAY),
    "AdamW": lambda p: optim.AdamW(p, lr=1e-3, weight_decay=DECAY),
}
FAMILIES: dict[str, str | Penalty] = {
    "decay": "weight_decay",
    "l1": "l1",
    "smooth l1": "smooth_l1",
    "quartic": "power",
    "decay + l1": "weight_decay+l1",
    "elastic net": "elastic_net",
    "all": L2() + SmoothL1() + Power() + Rooted(),
}


def trained(
    make: Callable[..., optim.Optimizer], seed: int
) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Trajectory]:
    """Network, rows and recorded epochs."""
    X, y = make_data(seed)
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(10, 50), nn.Tanh(), nn.Linear(50, 1)).double()
    optimizer = make(net.parameters())

    def epoch(recorder=None) -> None:
        for rows in torch.randperm(len(X), generator=order).split(40):
            if recorder is not None:
                recorder.batch(rows)
            optimizer.zero_grad()
            nn.functional.mse_loss(net(X[rows]), y[rows]).backward()
            optimizer.step()
        if recorder is not None:
            recorder.epoch()

    for _ in range(60):
        epoch()
    with record(net, optimizer) as recorder:
        for _ in range(20):
            epoch(recorder)
    return net, X, y, recorder.trajectory


def main(n_seeds: int = 8) -> None:
    """Print how often the decay alone was picked, by reference."""
    torch.set_num_threads(1)
    right: Counter[str] = Counter()
    start = time.perf_counter()
    for name, make in OPTIMIZERS.items():
        for seed in range(n_seeds):
            net, X, y, trajectory = trained(make, seed)
            for reference in ("gradient", "batch"):
                choice = ImplicitRegularizationCV(
                    net, families=FAMILIES, loss="mse", params="all", mode="trajectory",
                    trajectory=trajectory, window="epoch", reference=reference,
                ).fit(X, y)  # fmt: skip
                right[reference] += choice.best_name_ == "decay"
                if choice.best_name_ != "decay":
                    print(f"{name} {seed}, {reference}: {choice.best_name_}", flush=True)
    n = n_seeds * len(OPTIMIZERS)
    print(f"\nThe decay alone picked ({time.perf_counter() - start:.0f} s):")
    for reference, count in right.items():
        print(f"  {reference:10s} {count} of {n}")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
