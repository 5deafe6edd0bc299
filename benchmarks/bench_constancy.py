"""How often a coefficient that is constant, or not, is called so: recordings and endpoint lists.

Run: ``python benchmarks/bench_constancy.py [seeds per optimizer] [lists]``
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn.functional import mse_loss

from sklearn_implicitreg import Endpoint, ImplicitRegularizationEstimator, record

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.004, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=5e-4),
}
FAMILIES = ("weight_decay", "l2+l1", "l2+smooth_l1")
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "off, then on": lambda e, n: 0.02 * (e >= n // 2),
    "alternating": lambda e, n: 0.02 * (e % 2),
    "growing": lambda e, n: 0.04 * e / (n - 1),
    "changing sign": lambda e, n: 0.02 if e < n // 2 else -0.02,
    "one epoch": lambda e, n: 0.1 * (e == n - 1),
    ".02 -> .024": lambda e, n: 0.02 if e < n // 2 else 0.024,
}


def recorded(optimizer: str, seed: int, n_epochs: int, decay: Callable[[int, int], float]):
    """A small net, its data and a recording in which the decay follows a schedule."""
    torch.manual_seed(seed)
    X = torch.randn(200, 5).double()
    y = torch.sin(X.sum(1, keepdim=True)) + 0.3 * torch.randn(200, 1).double()
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    steps = OPTIMIZERS[optimizer](net.parameters())
    with record(net, steps) as recorder:
        for epoch in range(n_epochs):
            steps.param_groups[0]["weight_decay"] = decay(epoch, n_epochs)
            for rows in torch.randperm(200).split(20):
                recorder.batch(rows)
                steps.zero_grad()
                mse_loss(net(X[rows]), y[rows]).backward()
                steps.step()
            recorder.epoch()
    return net, X, y, recorder.trajectory


def verdict(case, family: str, reference: str) -> str:
    """Verdict on the epochs of a recording."""
    net, X, y, trajectory = case
    return str(
        ImplicitRegularizationEstimator(
            net, family=family, params="all", loss="mse", mode="trajectory",
            trajectory=trajectory, window="epoch", reference=reference,
        ).fit(X, y).verdict_
    )  # fmt: skip


def main(n_seeds: int = 10) -> None:
    """Print the verdicts of constant and of changing decays."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.perf_counter()
    alarms: Counter[str] = Counter()
    n_fits: Counter[str] = Counter()
    for optimizer, seed in product(OPTIMIZERS, range(n_seeds)):
        case = recorded(optimizer, seed, (5, 12, 25, 60)[seed % 4], lambda e, n: 0.02)
        for family, reference in product(FAMILIES, ("gradient", "batch")):
            n_fits[reference] += 1
            alarms[reference] += verdict(case, family, reference) == "not constant"
    for reference in n_fits:
        print(
            f"constant, {reference}: {alarms[reference]} of {n_fits[reference]} not constant, "
            f"{n_seeds * len(OPTIMIZERS)} recordings ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    for name, schedule in SCHEDULES.items():
        seen: Counter[str] = Counter()
        for optimizer, seed in product(OPTIMIZERS, range(max(1, n_seeds // 4))):
            case = recorded(optimizer, seed, (12, 25)[seed % 2], schedule)
            for reference in ("gradient", "batch"):
                seen[reference] += verdict(case, "weight_decay", reference) == "not constant"
        n = len(OPTIMIZERS) * max(1, n_seeds // 4)
        print(
            f"{name}: seen by gradient {seen['gradient']}, batch {seen['batch']} of {n}", flush=True
        )


def resampled(seed: int, n_nets: int = 6) -> list[Endpoint]:
    """Nets that SGD left, each trained on a resample of one data set with the same decay."""
    torch.manual_seed(seed)
    X = torch.randn(200, 5).double()
    y = torch.sin(X.sum(1, keepdim=True)) + 0.3 * torch.randn(200, 1).double()
    group = []
    for _ in range(n_nets):
        rows = torch.randint(200, (200,))
        own, target = X[rows], y[rows]
        net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)).double()
        steps = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.02)
        for _ in range(150):
            for batch in torch.randperm(200).split(20):
                steps.zero_grad()
                mse_loss(net(own[batch]), target[batch]).backward()
                steps.step()
        group.append(Endpoint(net, own, target))
    return group


def lists(n: int) -> None:
    """Print the verdicts of lists of resampled nets, and of Ridge models 20 % apart."""
    families = ("l2", "l2+l1")
    alarms: Counter[str] = Counter()
    for seed in range(n):
        group = resampled(seed)
        for family in families:
            fit = ImplicitRegularizationEstimator(None, family=family, loss="mse", params="all")
            alarms[family] += fit.fit(group).verdict_ == "not constant"
    shown = ", ".join(f"{family} {alarms[family]}" for family in families)
    print(f"lists of resampled nets: not constant in {shown} of {n}", flush=True)
    seen = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        group = []
        for alpha in (1.0, 1.0, 1.0, 1.2, 1.2, 1.2):
            X = rng.standard_normal((100, 8))
            y = X @ rng.standard_normal(8) + rng.standard_normal(100)
            group.append(Endpoint(Ridge(alpha).fit(X, y), X, y))
        seen += ImplicitRegularizationEstimator(None).fit(group).verdict_ == "not constant"
    print(f"lists of Ridge models, alphas 20 % apart: seen in {seen} of 20", flush=True)


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:]]
    main(*numbers[:1])
    lists(*numbers[1:2] or [100])
