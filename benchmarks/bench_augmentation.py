"""Nets trained on augmented batches (noise, flips) with a weight decay: is the decay found?

By the batches as the steps saw them (to rounding), and by 20 readings of the loader: along the
epochs of the training, and at weights that are at rest for the mean over many readings.

Run: ``python benchmarks/bench_augmentation.py [runs]``
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import record

N, SIZE, DECAY, N_PASSES = 96, 6, 0.02, 20


class Augmented(Dataset):
    """Small pictures with noise, of which half are flipped."""

    def __init__(self, seed: int):
        rng = torch.Generator().manual_seed(seed)
        self.X = torch.randn(N, 1, SIZE, SIZE, generator=rng).double()
        side = torch.linspace(-1, 1, SIZE).double().abs()
        self.y = ((self.X * side).sum((1, 2, 3)) > 0).long()

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int):
        x = self.X[i] + 0.3 * torch.randn(1, SIZE, SIZE).double()
        return (x.flip(-1) if torch.rand(()) < 0.5 else x), self.y[i]


def net() -> nn.Module:
    """Convolution and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * (SIZE - 2) ** 2, 2)
    ).double()


def train(data: Dataset, n_epochs: int):
    """A net and its recorded epochs, after twenty that are not recorded."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5, weight_decay=DECAY)
    loader = DataLoader(data, batch_size=16, shuffle=True)

    def epoch(path=None) -> None:
        for batch in loader:
            if path is not None:
                path.batch(batch)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()

    for _ in range(20):
        epoch()
    with record(model, optimizer) as path:
        for _ in range(n_epochs):
            epoch(path)
            path.epoch()
    return model, loader, path


def at_rest(data: Dataset) -> nn.Module:
    """A net at rest under the mean loss over many readings and the decay."""
    model = net()
    draws = [next(iter(DataLoader(data, batch_size=N))) for _ in range(400)]
    X, y = (torch.cat(part) for part in zip(*draws, strict=True))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=150, tolerance_grad=1e-8, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), y)
        loss = loss + DECAY / 2 * sum((p**2).sum() for p in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def one(seed: int) -> dict[str, tuple[float, bool, str]]:
    """Error, whether the interval holds the decay, and verdict, of three ways to ask."""
    torch.manual_seed(seed)
    data = Augmented(seed)
    model, loader, path = train(data, 20)
    own = {"loss": "cross_entropy", "params": "all", "family": "weight_decay", "random_state": seed}
    along = {**own, "mode": "trajectory", "trajectory": path}
    ways = {
        "batches as seen": (model, {**along, "reference": "batch"}),
        "epochs": (model, {**along, "window": "epoch", "n_passes": N_PASSES}),
        "endpoint": (at_rest(data), {**own, "n_passes": N_PASSES}),
    }
    found = {}
    for name, (trained, params) in ways.items():
        est = ImplicitRegularizationEstimator(trained, **params).fit(loader)
        low, high = est.conf_int_[0]
        found[name] = abs(est.coef_[0] - DECAY), bool(low <= DECAY <= high), est.verdict_
    return found


def main(n_runs: int = 50) -> None:
    """Print errors, coverage and verdicts."""
    torch.set_num_threads(1)
    found = [one(seed) for seed in range(n_runs)]
    for name in found[0]:
        errors, inside, verdicts = zip(*(run[name] for run in found), strict=True)
        print(
            f"{name}: decay of {DECAY} off by {np.median(errors):.2g} (at most {max(errors):.2g}), "
            f"inside in {sum(inside)} of {n_runs}, {dict(Counter(verdicts))}"
        )


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
