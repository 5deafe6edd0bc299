"""Seconds, ratios side by side, and peak memory of a fresh process: shared by the benchmarks."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

GIB = 1 << 30


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rounds(functions: Mapping[str, Callable[[], Any]], n: int) -> dict[str, list[float]]:
    """Seconds of every function in n rounds; each round calls all of them, after one unmeasured."""
    for function in functions.values():
        function()
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(n):
        for name, function in functions.items():
            found[name].append(timed(function))
    return found


def ratio(found: Mapping[str, list[float]], above: str, below: str) -> float:
    """Median over rounds of one function's seconds over another's."""
    return median(a / b for a, b in zip(found[above], found[below], strict=True))


def spread(values: list[float]) -> str:
    """Median and range of seconds."""
    return f"{median(values):.4g} s ({min(values):.4g} to {max(values):.4g})"


def limit_memory(gib: float) -> None:
    """Let the process allocate no more than that; a larger request raises ``MemoryError``."""
    if gib > 0:
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * GIB), int(gib * GIB)))


def peak() -> float:
    """Largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def resident() -> float:
    """Resident memory of this process now, in GiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / GIB


def figures(found: Mapping[str, float | str]) -> None:
    """Print what a script measured, as its last line: ``run.py`` and ``fresh`` read it.

    Text is why this machine cannot measure one; ``{"skipped": why}`` for all of a script.
    """
    print(json.dumps({k: v if isinstance(v, str) else float(f"{v:.4g}") for k, v in found.items()}))


def fresh(*arguments: Any, timeout: float | None = None) -> dict[str, Any] | str:
    """What this script prints as JSON when it is run with other arguments; or why not.

    The parent should be small: what it holds when it starts the child counts in the child's peak.
    """
    command = [sys.executable, sys.argv[0], *map(str, arguments)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"fails: not done after {timeout:g} s"
    if run.returncode == 0:
        found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return found
    lines = run.stderr.strip().splitlines()
    return f"fails: {lines[-1][:150] if lines else f'signal {-run.returncode}'}"
