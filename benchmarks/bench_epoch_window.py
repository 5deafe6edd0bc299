"""Time of a fit of one recorded epoch, with its column of mini-batching, over one training epoch.

An MLP 784-128-128-10 (float32), 10,000 rows of MNIST (or random ones) in shuffled batches of
128, plain SGD. Every round trains an epoch, trains and records another, and fits its window with
the gradient on all rows. Medians over rounds, after one that is not measured.

Run: ``python benchmarks/bench_epoch_window.py [--data FOLDER] [--rounds 5]``
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import warnings

import torch
from bench_fit_over_pass import rows_of
from measuring import ratio, spread, timed
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import record


def epoch(net, optimizer, X, y, batch, path=None) -> None:
    """One shuffled epoch; the recorder, if there is one, gets its batches."""
    for part in torch.randperm(len(X)).split(batch):
        if path is not None:
            path.batch(part)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X[part]), y[part]).backward()
        optimizer.step()
    if path is not None:
        path.epoch()


def one(net, X, y, args) -> dict[str, float]:
    """Seconds of the three things of a round."""
    found, paths, fits = {}, [], []

    def train(recorded: bool) -> None:
        own = copy.deepcopy(net)
        optimizer = torch.optim.SGD(own.parameters(), lr=args.lr)
        with record(own, optimizer) if recorded else contextlib.nullcontext() as path:
            epoch(own, optimizer, X, y, args.batch, path)
        if recorded:
            paths.append((own, path.trajectory))

    found["training epoch"] = timed(lambda: train(False))
    found["recorded epoch"] = timed(lambda: train(True))
    trained, path = paths[0]
    estimator = ImplicitRegularizationEstimator(
        trained,
        family=args.family,
        mode="trajectory",
        trajectory=path,
        reference="gradient",
        window="epoch",
        loss="cross_entropy",
        params="all",
    )
    found["fit"] = timed(lambda: fits.append(estimator.fit(X, y)))
    if "minibatch" not in fits[0].term_names_:
        raise RuntimeError(f"Expected a column minibatch, got {fits[0].term_names_}.")
    return found


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of mnist.npz; random rows without it")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--family", default="l2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10)
    )
    X, y = rows_of(args.data, args.rows)
    one(net, X, y, args)
    found: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, seconds in one(net, X, y, args).items():
            found.setdefault(name, []).append(seconds)
    for name, values in found.items():
        print(f"{name}: {spread(values)}, {ratio(found, name, 'training epoch'):.3f} epochs")


if __name__ == "__main__":
    main()
