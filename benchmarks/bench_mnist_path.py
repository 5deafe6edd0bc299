"""Penalties of an MLP on MNIST read off its last ten epochs of momentum SGD.

10,000 rows in batches of 128, tanh 784-128-128-10 (118 k weights, float32), penalty on all
parameters: l2 1e-4, and l2 1e-4 with smooth l1 1e-5. With pixels in 0..1 whole epochs are short
against the curvature; with standardized pixels they are not (their mean iterate is no longer a
good place for the gradient), and sub-windows of five steps are needed.

Run: ``python benchmarks/bench_mnist_path.py [folder of mnist.npz]``
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.datasets import load_mnist
from sklearn_implicitreg.penalties import L2, SmoothL1
from sklearn_implicitreg.trajectory import Gradient, record

TRUTHS = {"l2": {"l2": 1e-4}, "elastic net": {"l2": 1e-4, "smooth_l1": 1e-5}}
REFERENCES = {"epochs": "gradient", "sub-windows of 5": Gradient(sub_window=5)}


def images(place: str | None):
    """10,000 images in 0..1 and their labels; scikit-learn's digits where MNIST is not there."""
    try:
        mnist = load_mnist(place, download=False)
    except OSError as error:
        print(f"{error} The digits of scikit-learn stand in.")
        data, target = load_digits(return_X_y=True)
        return torch.as_tensor(data / 16).float(), torch.as_tensor(target)
    return torch.as_tensor(mnist.data[:10_000] / np.float32(255)), torch.as_tensor(
        mnist.target[:10_000]
    )


def train(X, y, truth: dict[str, float], n_before: int = 30, n_epochs: int = 10):
    """Network and the path of its last epochs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(X.shape[1], 128),
            nn.Tanh(),
            nn.Linear(128, 128),
            nn.Tanh(),
            nn.Linear(128, 10),
        )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(0)

    def epoch(path=None):
        for rows in torch.randperm(len(X), generator=order).split(128):
            if path is not None:
                path.batch(rows)
            params = dict(net.named_parameters())
            terms = L2().terms(params, None) | SmoothL1().terms(params, None)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(X[rows]), y[rows])
            (loss + sum(coef * terms[name] for name, coef in truth.items())).backward()
            optimizer.step()
        if path is not None:
            path.epoch()

    for i in range(n_before):
        if i == n_before - 10:
            optimizer.param_groups[0]["lr"] = 0.01
        epoch()
    with record(net, optimizer) as path:
        for _ in range(n_epochs):
            epoch(path)
    return net, path.trajectory


def main(place: str | None = None) -> None:
    """Print estimate over truth at the endpoint and along the epochs."""
    pixels, y = images(place)
    inputs = {"0..1": pixels, "standardized": (pixels - pixels.mean()) / pixels.std()}
    for kind, X in inputs.items():
        for name, truth in TRUTHS.items():
            start = time.perf_counter()
            net, path = train(X, y, truth)
            print(f"pixels {kind}, {name} ({time.perf_counter() - start:.0f} s of training)")
            show(net, path, X, y, truth)


def show(net, path, X, y, truth: dict[str, float]) -> None:
    """Print estimate over truth for one network."""
    options = {"family": list(truth), "loss": "cross_entropy", "params": "all"}
    expected = np.array(list(truth.values()))
    end = ImplicitRegularizationEstimator(net, **options).fit(X, y)
    print(f"   {'endpoint':17s}", np.round(end.coef_ / expected, 4), f"R2 {end.r2_:.3f}")
    for name, reference in REFERENCES.items():
        start = time.perf_counter()
        est = ImplicitRegularizationEstimator(
            net, mode="trajectory", trajectory=path, window="epoch", reference=reference, **options
        ).fit(X, y)
        print(
            f"   {name:17s}",
            np.round(est.coef_[: len(expected)] / expected, 4),
            f"R2 {est.r2_:.4f}, {est.verdict_} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:2])
