"""Time of a fit of three terms over that of one bare forward and backward pass.

An MLP 784-512-512-10 (float32) on 10,000 rows, the same batch size in both, best of five
pairs measured side by side.

Run: ``python benchmarks/bench_speed.py``
"""

from __future__ import annotations

import time

import torch
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator

BATCH = 2000


def bare_pass(net, X, y) -> None:
    """Gradient of the summed loss, batch by batch, added up in ``.grad``."""
    net.zero_grad()
    for start in range(0, len(X), BATCH):
        part = slice(start, start + BATCH)
        nn.functional.cross_entropy(net(X[part]), y[part], reduction="sum").backward()


def timed(function) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> float:
    """Print and return the smallest ratio of five pairs."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(784, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10)
    )
    X, y = torch.rand(10_000, 784), torch.randint(0, 10, (10_000,))
    estimator = ImplicitRegularizationEstimator(
        net, family=["l2", "smooth_l1", "power"], loss="cross_entropy", batch_size=BATCH
    )
    bare_pass(net, X, y)
    estimator.fit(X, y)
    bare, fit = zip(
        *(
            (timed(lambda: bare_pass(net, X, y)), timed(lambda: estimator.fit(X, y)))
            for _ in range(5)
        ),
        strict=True,
    )
    ratios = [f / b for f, b in zip(fit, bare, strict=True)]
    print(f"bare pass, s: {[round(b, 3) for b in bare]}")
    print(f"fit, s:       {[round(f, 3) for f in fit]}")
    print(
        f"best of five pairs: {min(ratios):.3f}; best fit over best pass {min(fit) / min(bare):.3f}"
    )
    return min(ratios)


if __name__ == "__main__":
    main()
