"""Time and peak memory of a fit over those of one bare pass, where there are many weights.

256 rows through two square layers, 2e6, 2e7 and 9.8e7 float32 weights in all, two threads. The
bare pass is one forward and backward pass of the same rows at once: it holds the weights and
``.grad``. Seconds: medians over rounds in one process. Memory: the largest resident memory of a
fresh process that does nothing else, that of the imports included; and what comes on top of a
process that only makes the network and its rows, in copies of the weights.

Run: ``python benchmarks/bench_many_weights.py [--widths 1000 3162 7000] [--rounds 5]``
"""

from __future__ import annotations

import argparse
import json
import warnings

import torch
from measuring import fresh, limit_memory, peak, ratio, rounds, spread
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator

THREE = "l2+smooth_l1+power"


class Case:
    """A network of two square layers, its rows, and what is measured."""

    def __init__(self, width: int, rows: int):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.X, self.y = torch.rand(rows, width), torch.rand(rows, width)
        self.rows = rows

    def bare(self) -> None:
        """Gradient of the loss in ``.grad``."""
        self.net.zero_grad()
        nn.functional.mse_loss(self.net(self.X), self.y).backward()

    def fit(self, family: str) -> None:
        """One fit of a family."""
        self.net.zero_grad()
        ImplicitRegularizationEstimator(
            self.net, family=family, loss="mse", batch_size=self.rows
        ).fit(self.X, self.y)

    def functions(self) -> dict:
        """What is measured, by name; ``none`` makes the network only."""
        return {
            "none": lambda: None,
            "bare pass": self.bare,
            "fit of l2": lambda: self.fit("l2"),
            "fit of three": lambda: self.fit(THREE),
        }


def child(args: argparse.Namespace) -> None:
    """Peak memory of one function, or seconds of all, as JSON."""
    limit_memory(args.guard)
    case = Case(args.widths[0], args.rows)
    functions = case.functions()
    if args.child == "time":
        del functions["none"]
        print(json.dumps(rounds(functions, args.rounds)))
    else:
        functions[args.child]()
        print(json.dumps({"peak": peak()}))


def report(width: int, args: argparse.Namespace) -> None:
    """Print the ratios of one width."""
    copy = 2 * width * (width + 1) * 4 / (1 << 30)
    print(f"{2 * width * (width + 1):.3g} weights, {copy:.3f} GiB a copy", flush=True)
    options = ["--widths", width, "--rows", args.rows, "--rounds", args.rounds]
    options += ["--guard", args.guard, "--threads", args.threads]
    peaks = {}
    names = () if args.no_memory else ("none", "bare pass", "fit of l2", "fit of three")
    for name in names:
        found = fresh("--child", name, *options, timeout=args.timeout)
        if isinstance(found, str):
            print(f"  peak of {name}: {found}", flush=True)
        else:
            peaks[name] = found["peak"]
    for name, value in peaks.items():
        more = (
            f", {value / peaks['bare pass']:.3f} of the bare pass" if "bare pass" in peaks else ""
        )
        own = (value - peaks["none"]) / copy if "none" in peaks else float("nan")
        print(f"  peak of {name}: {value:.3f} GiB{more}, {own:.2f} copies", flush=True)
    times = fresh("--child", "time", *options, timeout=args.timeout)
    if isinstance(times, str):
        print(f"  time: {times}", flush=True)
        return
    for name, values in times.items():
        print(f"  {name}: {spread(values)}, {ratio(times, name, 'bare pass'):.3f} bare passes")


def main() -> None:
    """Print time and memory over those of the bare pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[1000, 3162, 7000])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--guard", type=float, default=0.0, help="GiB a process may allocate")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds of one process")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    if args.child:
        child(args)
        return
    for width in args.widths:
        report(width, args)


if __name__ == "__main__":
    main()
