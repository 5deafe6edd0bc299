"""Coverage of ``covariance="sandwich"`` and ``"bootstrap"`` for weights that did not see the rows.

The weights are given, every run draws fresh rows. The true coefficients are those of the gradient
of the population: in closed form for squared error, else on two million rows.

Run: ``python benchmarks/bench_row_uncertainty.py [runs] [case]``
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measuring import figures
from scipy.stats import binom
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator, LinearModel

N_POPULATION = 2_000_000
AT_ONCE = 50_000
THETA = np.array([1.0, -0.5, 0.3, 0.8, -1.2, 0.1])
BETA = np.array([1.3, -0.4, 0.3, 1.1, -1.0, 0.0])
ROOT = np.linalg.cholesky(0.3 + 0.7 * np.eye(6))


@dataclass(frozen=True)
class Case:
    """A model, how its rows are drawn, and the true coefficients."""

    model: Any
    draw: Callable[[np.random.Generator, int], tuple[Any, ...]]
    truth: np.ndarray
    n: int
    options: dict[str, Any]


def design_at(theta):
    """Gradients of l2 and l1."""
    return np.column_stack([2 * theta, np.sign(theta)])


def least_squares(n: int, kind: str) -> Case:
    """Squared error: the gradient of the population is ``2 Sigma (theta - beta)``."""

    def draw(rng, n):
        X = rng.normal(size=(n, 6)) @ ROOT.T
        noise = rng.normal(size=n)
        weight = None
        if kind == "skewed":
            noise = rng.exponential(size=n) - 1
            noise *= np.abs(X[:, 0])  # heteroscedastic
        if kind == "weighted":
            weight = rng.uniform(0.2, 2.0, size=n)
        return X, X @ BETA + noise, weight

    slope = 2 * ROOT @ ROOT.T @ (THETA - BETA)
    truth = np.linalg.lstsq(design_at(THETA), -slope)[0]
    return Case(LinearModel(THETA), draw, truth, n, {"family": "l2 + l1"})


def logistic(n: int) -> Case:
    """Log loss, of labels that other weights made."""

    def draw(rng, n):
        X = rng.normal(size=(n, 6)) @ ROOT.T
        return X, (rng.random(n) < 1 / (1 + np.exp(-X @ BETA))).astype(int), None

    rng, slope = np.random.default_rng(99), np.zeros(6)
    for _ in range(N_POPULATION // AT_ONCE):
        X, _, _ = draw(rng, AT_ONCE)
        slope += X.T @ (1 / (1 + np.exp(-X @ THETA)) - 1 / (1 + np.exp(-X @ BETA)))
    truth = np.linalg.lstsq(design_at(THETA), -slope / N_POPULATION)[0]
    model = LinearModel(THETA[None], loss="log_loss", intercept=np.zeros(1))
    return Case(model, draw, truth, n, {"family": "l2 + l1"})


def small_net(n: int) -> Case:
    """A tanh net with random weights on a noisy sine."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def draw(rng, n):
        X = rng.normal(size=(n, 3))
        y = np.sin(X[:, :1]) + 0.5 * X[:, 1:2] + 0.3 * rng.normal(size=(n, 1))
        return X, y, None

    rng, weights = np.random.default_rng(99), [net[0].weight, net[2].weight]
    slopes = [torch.zeros_like(w) for w in weights]
    for _ in range(N_POPULATION // AT_ONCE):
        X, y, _ = map(lambda a: None if a is None else torch.as_tensor(a), draw(rng, AT_ONCE))
        loss = nn.functional.mse_loss(net(X), y)
        for total, own in zip(slopes, torch.autograd.grad(loss, weights), strict=True):
            total += own
    slope = torch.cat([s.reshape(-1) for s in slopes]).numpy() * AT_ONCE / N_POPULATION
    theta = torch.cat([w.detach().reshape(-1) for w in weights]).numpy()
    truth = np.linalg.lstsq(design_at(theta), -slope)[0]
    return Case(net, draw, truth, n, {"family": "l2 + l1", "loss": "mse", "params": "weights"})


CASES = {
    "least squares, 20 rows": lambda: least_squares(20, "plain"),
    "least squares, 100 rows": lambda: least_squares(100, "plain"),
    "least squares, 1200 rows": lambda: least_squares(1200, "plain"),
    "skewed, 100 rows": lambda: least_squares(100, "skewed"),
    "weighted, 100 rows": lambda: least_squares(100, "weighted"),
    "logistic, 150 rows": lambda: logistic(150),
    "tanh net, 100 rows": lambda: small_net(100),
}


def main(n_runs: int = 2000, only: str = "") -> None:
    """Print how many intervals hold the truth, of both terms and both covariances."""
    torch.set_num_threads(1)
    band = binom.interval(0.95, n_runs, 0.95)
    print(f"of {n_runs} runs, 95 % of counts at .95 lie in {band[0]:.0f} .. {band[1]:.0f}")
    named: dict[str, float] = {}
    for name, make in CASES.items():
        if only not in name:
            continue
        case, start = make(), time.perf_counter()
        covers = {kind: np.zeros(2) for kind in ("sandwich", "bootstrap")}
        for run in range(n_runs):
            rows = case.draw(np.random.default_rng(run), case.n)
            for kind, count in covers.items():
                est = ImplicitRegularizationEstimator(
                    case.model, covariance=kind, random_state=run, **case.options
                ).fit(*rows)
                low, high = est.conf_int_.T
                count += (low <= case.truth) & (case.truth <= high)
        shares = "; ".join(
            f"{kind} {' and '.join(f'{share:.1%}' for share in count / n_runs)}"
            for kind, count in covers.items()
        )
        named |= {f"{name}, {kind}": float(min(count)) / n_runs for kind, count in covers.items()}
        print(f"{name}: {shares} ({time.perf_counter() - start:.0f} s)", flush=True)
    figures({"share of intervals that hold the truth, least": min(named.values())})


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 2000, *sys.argv[2:])
