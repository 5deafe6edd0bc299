"""Time of a fit of many families over bare passes of the model.

All families on weights together, and each family on rows alone, on an MLP of 235,000 weights
(784-256-128-10, float32) and 10,000 rows: a bare pass is the gradient of the loss, and a family on
rows may cost one more for each forward pass that it needs.

Run: ``python benchmarks/bench_families.py [--data FOLDER] [--rounds 3]``
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch
from bench_fit_over_pass import rows_of
from measuring import ratio, rounds, timed
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import (
    FAMILIES,
    MCP,
    SCAD,
    ActivationL1,
    ActivationL2,
    LogCosh,
    LogPenalty,
    OutputEntropy,
    OutputL2,
    Penalty,
)

# Strings of families that see rows, or whose knots depend on the weights.
ON_ROWS = [
    *("output_l2", "output_entropy", "label_smoothing", "jacobian", "input_noise", "mixup"),
    *("dropout_quadratic", "path_norm", "sharpness", "hessian_trace", "gradient_norm"),
]
TWICE = {"l2", "elastic_net", "batch_gradient_norm", "dropout"}  # terms that another family has


def on_weights() -> list[Penalty]:
    """All families on the weights that need no other weights."""
    named = [cls() for name, cls in FAMILIES.items() if name not in {*ON_ROWS, *TWICE}]
    return [*named, LogCosh(0.05), LogPenalty(0.05), SCAD(0.05), MCP(0.05)]


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of mnist.npz; random rows without it")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 10)
    )
    X, y = rows_of(args.data, args.rows)

    def bare() -> None:
        for p in net.parameters():
            p.grad = None
        for start in range(0, len(X), 2000):
            part = slice(start, start + 2000)
            nn.functional.cross_entropy(net(X[part]), y[part], reduction="sum").backward()

    def fitted(family: object) -> None:
        ImplicitRegularizationEstimator(
            net, family=family, loss="cross_entropy", batch_size=2000
        ).fit(X, y)

    families = on_weights()
    fitted("l2"), bare()
    seconds = [(timed(bare), timed(lambda: fitted(families))) for _ in range(args.rounds)]
    one, whole = np.median(seconds, axis=0)
    print(f"bare pass {one:.3f} s; {len(families)} families on weights {whole:.3f} s", flush=True)
    for name in ("l2", *ON_ROWS):
        found = rounds({"pass": bare, "fit": lambda own=name: fitted(own)}, args.rounds)
        print(f"{name}: {ratio(found, 'fit', 'pass'):.2f} bare passes", flush=True)
    several = [OutputL2(), OutputEntropy(), ActivationL1("1"), ActivationL2("1"), ActivationL2("3")]
    found = rounds({"pass": bare, "fit": lambda: fitted(several)}, args.rounds)
    print(f"five on rows together: {ratio(found, 'fit', 'pass'):.2f} bare passes")


if __name__ == "__main__":
    main()
