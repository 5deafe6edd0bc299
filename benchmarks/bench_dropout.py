"""The rate of dropout read off a path: coefficient and explained share of ``E_mask L - L``.

Tanh nets trained by SGD in shuffled mini-batches with dropout .3, the last epochs recorded.
For each rate q: coefficient of ``Dropout(q)`` with its 95 % interval, by instruments z; that of
least squares on the same columns D; and how much of the squared norm of a window's target t the
column explains, free of noise: with a free coefficient, ``<z, t>^2 / <z, D>``, and with the
coefficient 1 that dropout itself has, ``2 <z, t> - <z, D>``. Gradients of near rates are nearly
parallel, so a free coefficient leaves the rate open: look where the coefficient is 1,
and by what the coefficient 1 explains.

Scikit-learn's digits, 64-32-10, three seeds, two minutes on one core; with a folder also MNIST,
784-64-64-10, 5,000 rows, two minutes a seed.

Run: ``python benchmarks/bench_dropout.py [folder of mnist.npz] [seeds]``
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from sklearn_implicitreg.adapters import Data, Options
from sklearn_implicitreg.datasets import load_mnist
from sklearn_implicitreg.penalties import Dropout
from sklearn_implicitreg.regression.inference import infer
from sklearn_implicitreg.regression.solve import solve
from sklearn_implicitreg.regression.system import merge, r_factor
from sklearn_implicitreg.results.paths import path_targets
from sklearn_implicitreg.trajectory import record

TRUTH = 0.3
RATES = (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)


def digits():
    """1,797 images of 8 x 8 pixels in 0..1 and their labels."""
    data, target = load_digits(return_X_y=True)
    return torch.as_tensor(data / 16), torch.as_tensor(target)


def mnist(place: str):
    """5,000 images of 28 x 28 pixels in 0..1 and their labels."""
    both = load_mnist(place, download=False)
    data = torch.as_tensor(both.data[:5000] / np.float32(255))
    return data, torch.as_tensor(both.target[:5000])


def train(X, y, widths, seed: int, *, batch: int, lr: float, n_before: int, n_epochs: int):
    """Network trained with dropout after every hidden layer, and the path of its last epochs."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for width in widths:
            layers += [nn.LazyLinear(width), nn.Tanh(), nn.Dropout(TRUTH)]
        net = nn.Sequential(*layers, nn.LazyLinear(10)).to(X.dtype)
        net(X[:2])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def epoch(path=None):
            for rows in torch.randperm(len(X)).split(batch):
                if path is not None:
                    path.batch(rows)
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
                optimizer.step()
            if path is not None:
                path.epoch()

        for i in range(n_before):
            if i == n_before - 10:
                optimizer.param_groups[0]["lr"] = lr
            epoch()
        with record(net, optimizer, every=len(X)) as path:
            for _ in range(n_epochs):
                epoch(path)
    return net, path.trajectory


def report(net, X, y, path, n_draws: int) -> tuple[float, float, bool, float]:
    """Print the table of one net; best rates by both shares, whether 1 is inside, coefficient."""
    options = Options(loss="cross_entropy", params="all")
    targets = path_targets(net, Data(X, y), options, path, "gradient", "epoch")
    found = []
    for q in RATES:
        system = targets.equations(Dropout(q, n_draws=n_draws)).system
        solution = solve(system.r_factor, system.n_equations)
        coef = solution.coef[0]
        low, high = infer(system, solution).conf_int[0]
        both = merge(system.r_factors)[:, system.n_terms :]
        least = solve(r_factor(both[:, :-1], both[:, -1]), system.n_equations).coef[0]
        size = system.products_among([0])[0, 0] / len(system.labels)  # |D|^2 without noise
        found.append((coef**2 * size, (2 * coef - 1) * size, coef, low, high))
        print(
            f"   q {q:4.2f}  coef {coef:.3f} [{low:.3f}, {high:.3f}]  least squares {least:.3f}  "
            f"explained, coef free {1e4 * found[-1][0]:.3f}e-4, coef 1 {1e4 * found[-1][1]:.3f}e-4",
            flush=True,
        )
    table = np.array(found)
    _, _, coef, low, high = table[RATES.index(TRUTH)]
    best_free, best_one = (RATES[int(np.argmax(table[:, i]))] for i in (0, 1))
    return best_free, best_one, low <= 1 <= high, coef


def main(place: str | None = None, n_seeds: int = 3) -> None:
    """Print one table per net, and what all of them say."""
    torch.set_num_threads(1)
    cases = {"digits": (digits(), (32,), {"batch": 64, "lr": 0.02, "n_before": 80, "n_epochs": 60})}
    if place is not None:
        setting = {"batch": 125, "lr": 0.02, "n_before": 40, "n_epochs": 40}
        cases["MNIST"] = (mnist(place), (64, 64), setting)
    for name, ((X, y), widths, setting) in cases.items():
        rows = []
        for seed in range(n_seeds):
            start = time.perf_counter()
            net, path = train(X, y, widths, seed, **setting)
            print(f"{name}, seed {seed}")
            rows.append(report(net, X, y, path, n_draws=5))
            print(f"   best q: coef free {rows[-1][0]}, coef 1 {rows[-1][1]}; ", end="")
            print(f"{time.perf_counter() - start:.0f} s", flush=True)
        free, one, inside, coef = (np.array(column) for column in zip(*rows, strict=True))
        print(
            f"{name}: best q within .05 in {np.mean(np.abs(one - TRUTH) < 0.051):.0%} of nets by "
            f"what coefficient 1 explains ({np.mean(np.abs(free - TRUTH) < 0.051):.0%} with a "
            f"free one); 1 inside the interval at q = {TRUTH} in {np.mean(inside):.0%}, mean "
            f"coefficient {coef.mean():.3f}"
        )


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 and not sys.argv[1].isdigit() else None
    numbers = [int(a) for a in sys.argv[1:] if a.isdigit()]
    main(folder, *numbers[:1])
