"""Fits of two processes against those of one over all rows: the largest relative differences.

Coefficients of endpoints and of recorded trainings, over the largest of each fit; the cases are
those of the tests, in float64 by gloo on the CPU.

Run: ``python benchmarks/bench_ranks.py``
"""

from __future__ import annotations

import copy
import pickle
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from measuring import figures
from torch import multiprocessing

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import rank_cases  # noqa: E402
import rank_trajectories  # noqa: E402

PLACES = {"ddp": "DistributedDataParallel", "fsdp": "fully_shard"}


def fits(rank: int | None = None) -> dict[tuple[str, ...], Any]:
    """What each case gives on a rank, or in one process."""
    places = {name: rank_cases.PLACES[name] for name in PLACES} if rank is not None else {}
    part = slice(None) if rank is None else rank_cases.PARTS[rank]
    found = rank_trajectories.of_trajectories(rank)
    for name, place in (places or {"one": copy.copy}).items():
        for case in rank_cases.cases_of(name if rank is not None else "ddp"):
            found[name, "endpoint", case] = rank_cases.CASES[case](place, part)
    return found


def work(rank: int, folder: str, port: int) -> None:
    """One rank, which writes what it found to a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.TCPStore("127.0.0.1", port, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=rank_cases.N_RANKS)
    Path(folder, f"rank{rank}").write_bytes(pickle.dumps(fits(rank)))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Print the largest difference of each kind of model and fit."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (folder, store.port), nprocs=rank_cases.N_RANKS)
        found = pickle.loads(Path(folder, "rank0").read_bytes())
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
    figures(largest)


if __name__ == "__main__":
    main()
