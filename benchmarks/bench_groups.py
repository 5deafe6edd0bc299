"""How the time of a fit grows with the number of groups.

Modules of 100, 400 and 1600 layers of one 4 x 4 tensor each, side by side, with one coefficient
per layer. Every size runs in a fresh process that may allocate 8 GiB; where it needs more, or is
not done in time, ``fails`` is printed. Median of the fits after one that is not measured.

Run: ``python benchmarks/bench_groups.py [--groups 100 400 1600] [--repeats 3]``
"""

from __future__ import annotations

import argparse
import json
import warnings
from statistics import median

import torch
from measuring import fresh, limit_memory, peak, spread, timed
from torch import Tensor, nn

from sklearn_implicitreg import ImplicitRegularizationEstimator


class Sum(nn.Module):
    """Mean of many small layers."""

    def __init__(self, n_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        """Mean over layers."""
        return torch.stack([layer(x).tanh() for layer in self.layers]).mean(0)


def child(n_groups: int, args: argparse.Namespace) -> None:
    """Seconds and peak memory of one size, as JSON."""
    limit_memory(args.guard)
    torch.manual_seed(0)
    net = Sum(n_groups).double()
    X, y = torch.randn(64, 4).double(), torch.randn(64, 4).double()
    estimator = ImplicitRegularizationEstimator(net, family="l2", loss="mse", group_by="layer")
    first = timed(lambda: estimator.fit(X, y))
    if len(estimator.coef_) != n_groups:
        raise RuntimeError(f"Expected {n_groups} coefficients, got {len(estimator.coef_)}.")
    n = args.repeats if first < args.long else 0
    seconds = [timed(lambda: estimator.fit(X, y)) for _ in range(n)] or [first]
    print(json.dumps({"seconds": seconds, "peak": peak()}))


def main() -> None:
    """Print seconds, and ratios of neighbours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[100, 400, 1600])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--guard", type=float, default=8.0, help="GiB a process may allocate")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds of one process")
    parser.add_argument("--long", type=float, default=20.0, help="seconds not to be repeated")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    if args.child:
        child(args.child, args)
        return
    options = ["--repeats", args.repeats, "--threads", args.threads, "--guard", args.guard]
    options += ["--long", args.long]
    before = None
    for n in args.groups:
        found = fresh("--child", n, *options, timeout=args.timeout)
        if isinstance(found, str):
            print(f"{n} groups: {found}", flush=True)
            before = None
            continue
        now = median(found["seconds"])
        more = f", {now / before[1]:.2f} times that of {before[0]}" if before else ""
        print(
            f"{n} groups: {spread(found['seconds'])}, peak {found['peak']:.2f} GiB{more}",
            flush=True,
        )
        before = (n, now)


if __name__ == "__main__":
    main()
