"""How the cost of a fit grows: rows, weights, terms, steps of a trajectory, endpoints.

One of them grows at a time, and each size has a process of its own: seconds are the median of
fits after one that is not measured, with one family of three terms where terms do not grow.
Memory is what a fit adds to a process that holds the network and the rows: the largest resident
memory less that before the fit, which is the first of a process of its own. For rows it is also
compared as a whole: the largest resident memory, imports included, less the rows themselves.

Run: ``python benchmarks/bench_scaling.py [--parts rows weights terms steps endpoints]``
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch
from measuring import GIB, figures, fresh, peak, resident, timed
from torch import nn
from torch.nn.functional import mse_loss

from sklearn_implicitreg import Endpoint, ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import SmoothL1
from sklearn_implicitreg.trajectory import record

THREE = "l2+smooth_l1+power"
BATCH = 1000
ROW_BYTES = 50 * 4 + 8
SIZES = {
    "rows": [10**3, 10**4, 10**5, 10**6],
    "weights": [10**4, 10**5, 10**6, 10**7, 10**8],
    "terms": [1, 3, 10, 30],
    "steps": [32, 320],
    "endpoints": [1, 10, 100],
}


def square(width: int, n_rows: int = 256):
    """Two square layers and their rows."""
    net = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
    return net, torch.rand(n_rows, width), torch.rand(n_rows, width)


def rows(n: int) -> Callable[[], object]:
    """A fit on n rows in batches of 1000; 81,000 weights."""
    net = nn.Sequential(
        nn.Linear(50, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)
    )
    X, y = torch.empty(n, 50).normal_(), torch.arange(n) % 10
    est = ImplicitRegularizationEstimator(net, family=THREE, loss="cross_entropy", batch_size=BATCH)
    return lambda: est.fit(X, y)


def weights(p: int) -> Callable[[], object]:
    """A fit of p weights, 256 rows in one batch."""
    net, X, y = square(round((p / 2) ** 0.5))
    est = ImplicitRegularizationEstimator(net, family=THREE, loss="mse", batch_size=256)
    return lambda: est.fit(X, y)


def terms(k: int) -> Callable[[], object]:
    """A fit of k terms: a million weights, 256 rows."""
    net, X, y = square(707)
    family = [SmoothL1(delta=10.0 ** (-3 + 3 * i / 30)) for i in range(k)]
    est = ImplicitRegularizationEstimator(net, family=family, loss="mse", batch_size=256)
    return lambda: est.fit(X, y)


def steps(n: int) -> Callable[[], object]:
    """A fit of n recorded steps by their batches of 100 rows; 50,000 weights."""
    net, X, y = square(158, 3200)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    batches = [torch.arange(start, start + 100) for start in range(0, 3200, 100)]
    with record(net, optimizer) as trajectory:
        for i in range(n):
            own = batches[i % len(batches)]
            trajectory.batch(own)
            optimizer.zero_grad()
            mse_loss(net(X[own]), y[own]).backward()
            optimizer.step()
    est = ImplicitRegularizationEstimator(
        net, family=THREE, loss="mse", mode="trajectory", trajectory=trajectory, reference="batch"
    )
    return lambda: est.fit(X, y)


def endpoints(m: int) -> Callable[[], object]:
    """A fit of m networks of 50,000 weights together, on the same 1000 rows."""
    nets = [square(158, 1)[0] for _ in range(m)]
    _, X, y = square(158, 1000)
    group = [Endpoint(net, X, y) for net in nets]
    est = ImplicitRegularizationEstimator(None, family=THREE, loss="mse")
    return lambda: est.fit(group)


PARTS = {f.__name__: f for f in (rows, weights, terms, steps, endpoints)}


def child(args: argparse.Namespace) -> None:
    """Memory that one fit adds, or seconds of several, as JSON."""
    torch.manual_seed(0)
    fit = PARTS[args.child](args.size)
    before = resident()
    fit()
    added = peak() - before
    seconds = [timed(fit) for _ in range(args.rounds)]
    print(json.dumps({"added": added, "peak": before + added, "seconds": seconds}))


def measured(part: str, size: int, args: argparse.Namespace) -> tuple[float, float, float]:
    """Median of seconds, GiB that a fit adds, and GiB of the process, of one size."""
    options = ["--child", part, "--size", size, "--threads", args.threads]
    found = [fresh(*options, "--rounds", n, timeout=args.timeout) for n in (0, args.rounds)]
    for one in found:
        if isinstance(one, str):
            raise SystemExit(f"{part}, {size}: {one}")
    return median(found[1]["seconds"]), found[0]["added"], found[0]["peak"]


def report(part: str, args: argparse.Namespace) -> dict[str, float]:
    """Print one table; its figures."""
    sizes = [size for size in SIZES[part] if size <= args.largest]
    print(f"{part:>12} {'seconds':>10} {'ratio':>8} {'GiB added':>10}")
    seconds, added, whole = [], [], []
    for size in sizes:
        now, more, peak_of = measured(part, size, args)
        ratio = f"{now / seconds[-1]:8.2f}" if seconds else " " * 8
        print(f"{size:12,} {now:10.4g} {ratio} {more:10.4f}", flush=True)
        seconds.append(now)
        added.append(more)
        whole.append(peak_of)
    pairs = pairwise(zip(sizes, seconds, strict=True))
    named = {f"{part} {b:,} / {a:,}, seconds": t / s for (a, s), (b, t) in pairs}
    if part == "rows":
        beyond = [w - ROW_BYTES * n / GIB for w, n in zip(whole, sizes, strict=True)]
        named["rows, memory beyond the rows: most / fewest"] = beyond[-1] / beyond[0]
    if part == "weights":
        named["weights, bytes that a fit adds for each of the most"] = added[-1] * GIB / sizes[-1]
    if part in ("steps", "endpoints"):
        more = (added[-1] - added[-2]) / (sizes[-1] - sizes[-2])
        named[f"{part}, bytes that one more adds for each weight"] = more * GIB / (2 * 158 * 159)
    return named


def main() -> None:
    """Print the tables and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--largest", type=int, default=10**8, help="size that is left out above")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds of one process")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    if args.child:
        child(args)
        return
    found: dict[str, float] = {}
    for part in args.parts:
        found |= report(part, args)
    figures(found)


if __name__ == "__main__":
    main()
