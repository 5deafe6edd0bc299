"""Time of a fit of three terms over that of one bare pass, and of ten families over one fit.

An MLP 784-512-512-10 (float32) on the 60,000 training rows of MNIST, or on random rows of that
shape. The bare pass is the same loop over batches of the same size, with the gradient of the
summed loss added up in ``.grad``. Medians over rounds that call each once.

Run: ``python benchmarks/bench_fit_over_pass.py [--data FOLDER] [--rounds 5]``
"""

from __future__ import annotations

import argparse
import warnings

import torch
from measuring import figures, ratio, rounds, spread
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.datasets import load_mnist

THREE = "l2+smooth_l1+power"
TEN = [
    "l2",
    "l1",
    "smooth_l1",
    "power",
    "elastic_net",
    "l21",
    "l2+smooth_l1",
    "l2+power",
    "smooth_l1+power",
    THREE,
]


def rows_of(folder: str | None, n_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of MNIST in a folder, or random ones."""
    if folder is None:
        return torch.rand(n_rows, 784), torch.randint(0, 10, (n_rows,))
    mnist = load_mnist(folder, download=False)
    X = torch.from_numpy(mnist.data[:n_rows]).float() / 255
    return X, torch.from_numpy(mnist.target[:n_rows]).long()


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of mnist.npz; random rows without it")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=8192, help="as the estimator takes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-cv", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(784, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10)
    )
    X, y = rows_of(args.data, args.rows)
    options = {"loss": "cross_entropy", "batch_size": args.batch}

    def bare() -> None:
        net.zero_grad()
        for start in range(0, len(X), args.batch):
            part = slice(start, start + args.batch)
            nn.functional.cross_entropy(net(X[part]), y[part], reduction="sum").backward()

    functions = {
        "bare pass": bare,
        "fit of three": lambda: ImplicitRegularizationEstimator(net, family=THREE, **options).fit(
            X, y
        ),
    }
    if not args.no_cv:
        functions["ten families"] = lambda: ImplicitRegularizationCV(
            net, families=TEN, **options
        ).fit(X, y)
    found = rounds(functions, args.rounds)
    for name, values in found.items():
        print(f"{name}: {spread(values)}")
    named = {"fit of three / bare pass": ratio(found, "fit of three", "bare pass")}
    if not args.no_cv:
        named["ten families / one fit"] = ratio(found, "ten families", "fit of three")
    figures(named)


if __name__ == "__main__":
    main()
