"""Measure the figures that the documentation and its tables give, and keep them as JSON.

Each script is run in a process of its own. What it measured is its last line, a JSON object of
figures by name, or ``{"skipped": why}`` (``measuring.figures``); a figure that is text is why this
machine cannot measure it. One line is printed for each
figure, with what is to be reached; the exit code is 1 if one is missed or a script fails. The
figures are kept in ``results/DEVICE.json`` with a description of the machine; those of scripts
that were not run stay, if they are of the same machine.

Run: ``python benchmarks/run.py [--threads 2] [name of a script without bench_ ...]``
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

FOLDER = Path(__file__).parent
INF = math.inf


class Script(NamedTuple):
    """Arguments of a script, and what its figures are to reach: lowest and highest."""

    arguments: str = ""
    bounds: dict[str, tuple[float, float]] = {}


DECADES = {
    **{f"rows {10 * n:,} / {n:,}, seconds": (-INF, 12) for n in (10**3,)},
    **{f"rows {10 * n:,} / {n:,}, seconds": (8, 12) for n in (10**4, 10**5)},
    **{f"weights {10 * n:,} / {n:,}, seconds": (-INF, 12) for n in (10**4, 10**5)},
    **{f"weights {10 * n:,} / {n:,}, seconds": (8, 12) for n in (10**6, 10**7)},
}
SCRIPTS = {
    "fit_over_pass": Script("--threads {threads}", {"fit of three / bare pass": (-INF, 1.05)}),
    "scaling": Script(
        "",
        {
            **DECADES,
            "rows, memory beyond the rows: most / fewest": (-INF, 1.05),
            "weights, bytes that a fit adds for each of the most": (-INF, 13),
        },
    ),
    "others": Script(
        "",
        {
            "this package, error of the coefficient": (-INF, 1e-6),
            "Adam, one gradient / this package given it, seconds": (400, INF),
            "Adam, a gradient each step / this package, seconds": (5000, INF),
            "Adam, a gradient each step of 40000 rows / this package, seconds": (5000, INF),
            "laplace-torch, kron / this package, seconds": (30, INF),
            "laplace-torch, diag / this package, seconds": (30, INF),
            "laplace-torch, full / this package, seconds": (30, INF),
        },
    ),
    "kills": Script(
        "",
        {
            f"{job}, ends with other bits": (-INF, 0)
            for job in ("caching", "recording", "bootstrapping", "bootstrapping_by_two")
        },
    ),
    "workers": Script(
        "",
        {
            "search, bytes that travel / those of the weights": (-INF, 3),
            "bootstrap, one process / n_jobs=2, seconds": (1.8, INF),
            "bootstrap, same bits with n_jobs=2": (1, 1),
            "bootstrap, one process / Dask, seconds": (1.8, INF),
            "bootstrap, same bits with Dask": (1, 1),
        },
    ),
    "gpu": Script(
        "",
        {
            f"{net}, {what}": (-INF, most)
            for net in ("resnet", "transformer")
            for what, most in (
                ("fit / bare pass, seconds", 1.03),
                ("GiB beyond a bare pass and a gradient", 0.5),
            )
        },
    ),
    "ranks": Script(
        "",
        {
            f"{place}, {kind}, relative difference to one process": (-INF, 1e-12)
            for place in ("DistributedDataParallel", "fully_shard")
            for kind in ("endpoint", "trajectory")
        }
        | {
            "DistributedDataParallel, bytes of a fit to the collectives": (-INF, 2.68e6),
            "fully_shard, bytes of a fit to the collectives": (-INF, 544),
        },
    ),
    "theory": Script("", {"largest error": (-INF, 1e-13)}),
    "bounds": Script(
        "",
        {
            "sharp bound / true 95 % quantile of normal errors, most": (-INF, 1.7),
            "share of draws beyond the bound, most": (-INF, 0.05),
            "share of draws beyond that of a coefficient, most": (-INF, 0.05),
        },
    ),
    "matrix": Script(
        "",
        {
            "fixed stop, 10 or more endpoints, error": (-INF, 1e-12),
            "p = M = 500, error": (-INF, 5e-12),
            "p = M = 1000, seconds": (-INF, 10),
            "dense least squares / this package, seconds": (300, INF),
            "variable stops, normalized, error": (-INF, 0.12),
            "own step counts, error": (-INF, 1e-6),
            "bootstrap, error / that of the fitted multiple": (-INF, 1),
        },
    ),
    "row_uncertainty": Script(
        "400", {"share of intervals that hold the truth, least": (0.92, INF)}
    ),
    "no_penalty": Script("40", {"share of nets without a signal": (0.9, INF)}),
}


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "processors": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")},
    }


def processor() -> str:
    """Name of the processor."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def run(name: str, threads: int) -> dict[str, Any]:
    """What a script measured; all that it prints is shown while it runs."""
    arguments = SCRIPTS[name].arguments.format(threads=threads).split()
    command = [sys.executable, "-u", str(FOLDER / f"bench_{name}.py"), *arguments]
    print(f"\n$ {' '.join(['python', *command[2:]])}", flush=True)
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(last, end="", flush=True)
            last = line
    try:
        found = json.loads(last)
    except json.JSONDecodeError:
        found = None
    if process.returncode or not isinstance(found, dict):
        print(last)
        return {"failed": f"exit code {process.returncode}, last line {last.strip()[:80]!r}"}
    return found


def judged(name: str, found: dict[str, Any]) -> bool:
    """Print one line for each figure of a script; whether all reach what they are to reach."""
    for word in ("failed", "skipped"):
        if word in found:
            print(f"{name}: {word}, {found[word]}")
            return word == "skipped"
    good = True
    bounds = SCRIPTS[name].bounds
    for figure in {**found, **bounds}:
        low, high = bounds.get(figure, (-INF, INF))
        limits = [f">= {low:g}"] * (low > -INF) + [f"<= {high:g}"] * (high < INF)
        value = found.get(figure)
        shown = "not measured" if value is None else f"{value}"
        reached = not limits or isinstance(value, str)
        reached = reached or (value is not None and low <= value <= high)
        wanted = f" (to reach {' and '.join(limits)})" if limits else ""
        print(f"{name}: {figure}: {shown}{wanted}{'' if reached else ' MISSED'}")
        good &= reached
    return good


def kept(found: dict[str, dict[str, Any]], here: dict[str, Any], folder: Path) -> Path:
    """Write the figures beside those of other scripts on this machine."""
    name = re.sub(r"[^a-z0-9]+", "-", here["device"].lower()).strip("-")
    path = folder / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    same = before.get("machine") == here
    figures = {**(before["figures"] if same else {}), **found}
    folder.mkdir(exist_ok=True)
    in_order = {name: figures[name] for name in SCRIPTS if name in figures}
    path.write_text(json.dumps({"machine": here, "figures": in_order}, indent=2) + "\n")
    return path


def main() -> int:
    """Run the scripts, print and keep their figures; 1 if one fails or misses a bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(SCRIPTS)}")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--results", type=Path, default=FOLDER / "results")
    args = parser.parse_args()
    unknown = set(args.names) - set(SCRIPTS)
    if unknown:
        parser.error(f"Expected names among {', '.join(SCRIPTS)}, got {', '.join(unknown)}.")
    begun, here = time.perf_counter(), machine(args.threads)
    names = [name for name in SCRIPTS if not args.names or name in args.names]
    found = {name: run(name, args.threads) for name in names}
    print(f"\n{json.dumps(here)}, {(time.perf_counter() - begun) / 60:.1f} minutes")
    good = [judged(name, figures) for name, figures in found.items()]
    worked = {name: figures for name, figures in found.items() if "failed" not in figures}
    print(f"kept in {kept(worked, here, args.results)}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
