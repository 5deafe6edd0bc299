"""Fits of two processes against those of one over all rows: differences, seconds and bytes.

The largest relative differences are of coefficients of endpoints and of recorded trainings, over
the largest of each fit; the cases are those of the tests, in float64 by gloo on the CPU. Seconds
are of an MLP 784-256-256-256-10 (float32) on 40,000 rows in all, three terms, one thread in each
process, beside a bare pass over the same rows in as many processes: of the module inside a
DistributedDataParallel, with nothing exchanged, and of a sharded module itself, as in training.
Bytes are what one process gives to collectives and to the store within a fit, without the weights
and gradients that a pass in shards gathers and reduces itself.

Run: ``python benchmarks/bench_ranks.py``
"""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from measuring import figures, ratio, rounds, spread
from torch import multiprocessing, nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.problem import ranks

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import rank_cases  # noqa: E402
import rank_trajectories  # noqa: E402

PLACES = {"ddp": "DistributedDataParallel", "fsdp": "fully_shard"}
N_ROWS, BATCH, THREE, ROUNDS = 40_000, 500, "l2+l1+power", 5


def fits(rank: int | None = None) -> dict[tuple[str, ...], Any]:
    """What each case gives on a rank, or in one process."""
    places = {name: rank_cases.PLACES[name] for name in PLACES} if rank is not None else {}
    part = slice(None) if rank is None else rank_cases.PARTS[rank]
    found = rank_trajectories.of_trajectories(rank)
    for name, place in (places or {"one": copy.copy}).items():
        for case in rank_cases.cases_of(name if rank is not None else "ddp"):
            found[name, "endpoint", case] = rank_cases.CASES[case](place, part)
    return found


def costs(rank: int, n_ranks: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of fits and passes of each kind of model, and the bytes that a fit sends."""
    X = torch.randn(N_ROWS, 784, generator=torch.Generator().manual_seed(0))[rank::n_ranks]
    y = (X[:, 0] > 0).long()
    found = {}
    for name in PLACES:
        torch.manual_seed(0)
        widths = [784, 256, 256, 256, 10]  # four tensors: with fewer, hc3 gathers single equations
        pairs = itertools.pairwise(widths)
        module = nn.Sequential(*[part for a, b in pairs for part in (nn.Linear(a, b), nn.Tanh())])
        model = rank_cases.PLACES[name](module)
        fit = fit_of(model, X, y)
        bare = pass_of(module, X, y)  # which is the model itself in shards
        found[PLACES[name]] = rounds({"bare pass": bare, "fit": fit}, ROUNDS) | bytes_of(fit)
    return found


def fit_of(model: nn.Module, *rows: torch.Tensor) -> Callable[[], None]:
    """A fit that all processes begin at once."""

    def fit() -> None:
        dist.barrier()
        how = {"loss": "cross_entropy", "batch_size": BATCH, "family": THREE}
        ImplicitRegularizationEstimator(model, **how).fit(*rows)

    return fit


def pass_of(module: nn.Module, X: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """A bare pass that all processes begin and end at once."""

    def bare() -> None:
        dist.barrier()
        module.zero_grad()
        for start in range(0, len(X), BATCH):
            part = slice(start, start + BATCH)
            nn.functional.cross_entropy(module(X[part]), y[part], reduction="sum").backward()
        dist.barrier()

    return bare


def bytes_of(fit: Callable[[], None]) -> dict[str, list[float]]:
    """What this process gives to collectives and to the store within a fit."""
    found: dict[str, list[float]] = {"collectives": [], "store": []}

    def counting(call: Callable[..., Any], place: int) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            found["collectives"].append(args[place].nbytes)
            return call(*args, **kwargs)

        return counted

    def dumps(value: Any) -> bytes:
        content = pickle.dumps(value)
        found["store"].append(len(content))
        return content

    own = SimpleNamespace(dumps=dumps, loads=pickle.loads)
    with (
        mock.patch.object(dist, "all_reduce", counting(dist.all_reduce, 0)),
        mock.patch.object(dist, "all_gather", counting(dist.all_gather, 1)),
        mock.patch.object(ranks, "pickle", own),
    ):
        fit()
    return {name: [sum(values)] for name, values in found.items()}


def work(rank: int, folder: str, port: int, n_ranks: int) -> None:
    """One rank, which writes what it found to a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.TCPStore("127.0.0.1", port, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n_ranks)
    found = costs(rank, n_ranks), fits(rank) if n_ranks == rank_cases.N_RANKS else {}
    Path(folder, f"rank{rank}").write_bytes(pickle.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(n_ranks: int) -> Any:
    """What the first of some processes found."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (folder, store.port, n_ranks), nprocs=n_ranks)
        return pickle.loads(Path(folder, "rank0").read_bytes())


def main() -> None:
    """Print the largest difference of each kind of model and fit, and what a fit costs."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    of_one, _ = on_ranks(1)
    of_two, found = on_ranks(rank_cases.N_RANKS)
    one, largest = fits(), dict[str, float]()
    for (place, kind, *rest), own in found.items():
        if "coef_" not in own:
            continue
        there = np.asarray(one["one", kind, *rest]["coef_"])
        away = float(np.abs(own["coef_"] - there).max() / np.abs(there).max())
        name = f"{PLACES[place]}, {kind}, relative difference to one process"
        largest[name] = max(largest.get(name, 0.0), away)
    for name, away in largest.items():
        print(f"{name}: {away:.1e}")
    named = dict(largest)
    for place in PLACES.values():
        for n_ranks, costs_of in ((1, of_one), (2, of_two)):
            own = costs_of[place]
            number = f"{n_ranks} process{'es' * (n_ranks > 1)}"
            for what in ("bare pass", "fit"):
                print(f"{place}, {number}, {what}: {spread(own[what])}")
            named[f"{place}, {number}, fit / bare pass"] = ratio(own, "fit", "bare pass")
        seconds = [median(costs_of[place]["fit"]) for costs_of in (of_one, of_two)]
        named[f"{place}, fit of 1 process / of 2, seconds"] = seconds[0] / seconds[1]
        for what in ("collectives", "store"):
            named[f"{place}, bytes of a fit to the {what}"] = of_two[place][what][0]
    figures(named)


if __name__ == "__main__":
    main()
