"""The penalty of averaging weights, as a ridge around the weights that the averaging began at.

MNIST, ReLU net 784-256-256-256-10, momentum SGD with a constant step: the mean of the weights at
the ends of the epochs is where ``L + c |theta - start|^2`` is stationary, and on a way that is
nearly straight ``c = (1 - momentum) / (lr * steps)``. Printed: c by ``L2(center=start)`` over that
value, its R2, that of ``L2()`` (the ridge around zero), and the way to the mean made by training
with the penalty instead, from the start.

An epoch has 27 steps, as many as 54,000 rows have in batches of 2,000. 10,000 rows, one seed: a few
minutes on one core.

Run: ``python benchmarks/bench_swa.py [folder of mnist.npz] [rows] [seeds]``
"""

from __future__ import annotations

import copy
import sys
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.datasets import load_mnist
from sklearn_implicitreg.penalties import L2

STEPS, EPOCHS = 27, 100
LR, MOMENTUM, LR_BEFORE = 0.005, 0.9, 0.05


def images(place: str | None, n_rows: int):
    """Pixels in 0..1 and labels."""
    mnist = load_mnist(place, download=False)
    X = torch.as_tensor(mnist.data[:n_rows]).reshape(n_rows, -1).float() / 255
    return X, torch.as_tensor(mnist.target[:n_rows]).long()


def epochs(net, X, y, lr: float, n: int, seed: int, penalty=None):
    """Train by momentum SGD; one turn at the end of each epoch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=MOMENTUM)
    order = torch.Generator().manual_seed(seed)
    for _ in range(n):
        for rows in torch.randperm(len(X), generator=order).tensor_split(STEPS):
            optimizer.zero_grad()
            loss = cross_entropy(net(X[rows]), y[rows])
            (loss if penalty is None else loss + penalty(net)).backward()
            optimizer.step()
        yield net


def averaged(X, y, seed: int):
    """The start, the last weights and the mean over the epochs after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for n_in in (X.shape[1], 256, 256):
            layers += [nn.Linear(n_in, 256), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Linear(256, 10))
    for _ in epochs(net, X, y, LR_BEFORE, EPOCHS, seed):
        pass
    start, mean = copy.deepcopy(net), AveragedModel(net)
    for now in epochs(net, X, y, LR, EPOCHS, seed + 1):
        mean.update_parameters(now)
    return start, net, mean.module


def flat(net):
    """All weights in one vector of float64."""
    return nn.utils.parameters_to_vector(net.parameters()).detach().double()


def agreement(way, other) -> str:
    """Cosine of two ways, and the length of the second over the first."""
    cosine = float(way @ other / (way.norm() * other.norm()))
    return f"cosine {cosine:.5f}, length {float(other.norm() / way.norm()):.3f}"


def main(place: str | None = None, n_rows: str = "10000", n_seeds: str = "1") -> None:
    """Print the coefficient over theory, R2, and what training with the penalty gives."""
    torch.set_num_threads(1)
    X, y = images(place, int(n_rows))
    theory = (1 - MOMENTUM) / (LR * EPOCHS * STEPS)
    for seed in range(int(n_seeds)):
        begun = time.perf_counter()
        start, last, mean = averaged(X, y, seed)
        how = {"loss": "cross_entropy", "params": "all"}
        around = {"start": L2(center=start), "zero": L2()}
        fits = {
            name: ImplicitRegularizationEstimator(mean, family=family, **how).fit(X, y)
            for name, family in around.items()
        }
        est, ridge = fits["start"], fits["zero"]
        print(
            f"  seed {seed}: c {est.coef_[0]:.6f}, over theory ({theory:.6f}) "
            f"{est.coef_[0] / theory:.3f}, R2 {est.r2_:.3f}, {est.verdict_}; around zero "
            f"{ridge.coef_[0]:.2e}, R2 {ridge.r2_:.3f}, {ridge.verdict_} "
            f"({time.perf_counter() - begun:.0f} s)",
            flush=True,
        )
        begun, again = time.perf_counter(), copy.deepcopy(start)
        for _ in epochs(again, X, y, LR, EPOCHS, seed + 1, est.penalty_):
            pass
        origin, way = flat(start), flat(mean) - flat(start)
        print(
            f"    trained with it instead: {agreement(way, flat(again) - origin)}; the last "
            f"weights: {agreement(way, flat(last) - origin)} ({time.perf_counter() - begun:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:4])
