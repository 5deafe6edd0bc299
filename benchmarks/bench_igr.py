"""What a finite step size adds to the loss: coefficient of |grad L|^2 over lr / 4.

MLPs on MNIST (2,000 rows, float64), one full-batch step against the gradient flow: ratio as it is
found, over the finite-step factor, and extrapolated to a step of zero; ReLU nets and their kinks;
distance of gradient descent to the modified flow over that to the flow, from the start.

Run: ``python benchmarks/bench_igr.py [folder of mnist.npz]``; without an argument MNIST is looked
for where ``SKLEARN_IMPLICITREG_DATA`` says, and scikit-learn's digits stand in where it is not.
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.datasets import load_mnist
from sklearn_implicitreg.penalties import GradientNorm
from sklearn_implicitreg.trajectory import (
    GradientDescentProbe,
    drift_ratio,
    find_kinks,
    finite_step_factor,
    richardson,
)

LRS = (0.003, 0.01, 0.03, 0.1)
ALLOWED = (0.002, 0.002, 0.002, 0.06)
RICHARDSON = 0.002
DRIFT = {"Tanh": (0.0, 0.03), "ReLU": (0.5, float("inf"))}


def images(place: str | None, standardized: bool):
    """2,000 images in 0..1, or standardized, and their labels."""
    try:
        mnist = load_mnist(place, download=False)
        X, y = mnist.data[:2000] / 255, mnist.target[:2000]
    except OSError:
        X, y = load_digits(return_X_y=True)
        X = X / 16
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    return ((X - X.mean()) / X.std() if standardized else X), y


def network(unit, X, y, widths, epochs: int, seed: int = 0):
    """Net trained by SGD in batches of 128."""
    torch.manual_seed(seed)
    layers = [nn.Linear(X.shape[1], widths[0]), unit(), nn.Linear(*widths), unit()]
    net = nn.Sequential(*layers, nn.Linear(widths[1], 10)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
            optimizer.step()
    return net


def whole_problem(net, X, y):
    """Net with its rows, all tensors in scope."""
    return adapt(net, Data(X, y), Options(loss="cross_entropy", params="all"))


def estimator(net, X, y, lr: float):
    """Fit of the gradient norm to one step of gradient descent against the flow."""
    return ImplicitRegularizationEstimator(
        net,
        family=GradientNorm(),
        mode="trajectory",
        trajectory=GradientDescentProbe(lr, n_steps=1),
        reference="flow",
        loss="cross_entropy",
        params="all",
    ).fit(X, y)


def recovery(X, y, epochs: int, seed: int) -> bool:
    """Print the row of every step size; whether all are within what is allowed."""
    net = network(nn.Tanh, X, y, (64, 64), epochs, seed)
    factor, good = finite_step_factor(whole_problem(net, X, y), LRS[0]), True
    for lr, allowed in zip(LRS, ALLOWED, strict=True):
        parts = [estimator(net, X, y, part * lr).coef_[0] / (part * lr / 4) for part in (0.25, 0.5)]
        fit, expected = estimator(net, X, y, lr), factor.at(lr)
        ratio = fit.coef_[0] / (lr / 4)
        left, limit = ratio / expected.value, richardson(*parts, ratio)
        passed = abs(left - 1) <= allowed and abs(limit - 1) <= RICHARDSON
        good &= passed
        print(
            f"  lr {lr:<5} found {ratio:.4f}  factor {expected.quadratic:.4f} (third order "
            f"{expected.correction:+.4f})  left {left:.4f}  Richardson {limit:.4f}  "
            f"R2 {fit.r2_:.4f}{'' if passed else '  FAILED'}"
            f"{'  (large step)' if expected.note else ''}"
        )
    return good


def relu(X, y, epochs: int, seed: int) -> bool:
    """Print R2 and the mismatch at the kinks; whether they are found at every step size."""
    net = network(nn.ReLU, X, y, (64, 64), epochs, seed)
    problem, good = whole_problem(net, X, y), True
    for lr in LRS:
        fit, kinks = estimator(net, X, y, lr), find_kinks(problem, lr)
        good &= not kinks.smooth
        print(
            f"  lr {lr:<5} found {fit.coef_[0] / (lr / 4):.4f}  R2 {fit.r2_:.4f}  mismatch of Hg "
            f"{kinks.mismatch[0]:.3f}, {kinks.mismatch[1]:.3f}  {fit.verdict_}"
            f"{'' if not kinks.smooth else '  NOT FOUND'}"
        )
    return good


def main() -> bool:
    """Print all tables; whether every figure is within what is allowed."""
    place, good = (sys.argv[1] if len(sys.argv) > 1 else None), True
    for standardized in (False, True):
        X, y = images(place, standardized)
        pixels = "standardized pixels" if standardized else "pixels in 0..1"
        for epochs, seed in ((2, 0), (15, 0), (15, 1)):
            print(f"tanh MLP, {len(X)} rows, {pixels}, {epochs} epochs, seed {seed}")
            good &= recovery(X, y, epochs, seed)
        for epochs in (0, 15):
            print(f"ReLU MLP, {pixels}, {epochs} epochs")
            good &= relu(X, y, epochs, 0)
    for unit in (nn.Tanh, nn.ReLU):
        net = network(unit, X, y, (64, 32), 0)
        drift = drift_ratio(whole_problem(net, X, y), 0.01, 30, n_substeps=2)
        low, high = DRIFT[unit.__name__]
        good &= low <= drift <= high
        print(f"drift ratio, {unit.__name__}, 30 steps of .01: {drift:.4f}")
    print("all within what is allowed" if good else "NOT all within what is allowed")
    return good


if __name__ == "__main__":
    sys.exit(not main())
