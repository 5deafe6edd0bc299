"""Tasks in worker processes: what they share is sent once, and what dies is run again."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from sklearn.utils.parallel import Parallel, delayed

from sklearn_implicitreg.exceptions import WorkerWarning, warn_user

_TRIES = 3
_DEATH = "TerminatedWorkerError"  # of joblib's own processes; Dask runs a task again by itself


class Shared:
    """Values that all tasks have, pickled once for all of them."""

    def __init__(self, *values: Any):
        self.values = values
        self._arrays: tuple[Any, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, self._as_arrays()

    def __sizeof__(self) -> int:
        """Bytes that travel: Dask sends an object of more than 1,000 once to each worker."""
        return sum(array.nbytes for array in self._as_arrays())

    def _as_arrays(self) -> tuple[Any, ...]:
        if self._arrays is None:
            large: list[pickle.PickleBuffer] = []
            rest = cloudpickle.dumps(self.values, protocol=5, buffer_callback=large.append)
            # The same objects each time: joblib maps them into memory once.
            raw = [rest, *(buffer.raw() for buffer in large)]
            self._arrays = tuple(np.frombuffer(own, np.uint8) for own in raw)
        return self._arrays


def _received(rest: Any, *large: Any) -> Shared:
    return Shared(*pickle.loads(rest, buffers=large))


@dataclass(frozen=True)
class _Died:
    reason: str = f"its worker process died {_TRIES} times"


def in_workers(
    function: Callable[..., Any],
    shared: Shared,
    tasks: Mapping[str, tuple[Any, ...]],
    n_jobs: int | None,
    instead: Callable[[str], Any] | None = None,
) -> Iterator[Any]:
    """``function(*shared, *task)`` of every named task, in their order, run by joblib."""
    # A task whose worker died is run again, alone. At the third death ``instead`` makes a result
    # of the reason; without it RuntimeError is raised, after all other tasks.
    found: dict[str, Any] = {}
    dead: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        outcomes = _outcomes(function, shared, tasks, n_jobs, folder)
        for name in tasks:
            while name not in found:
                other, outcome = next(outcomes)
                found[other] = outcome
            outcome = found.pop(name)
            if not isinstance(outcome, _Died):
                yield outcome
            elif instead is not None:
                yield instead(outcome.reason)
            else:
                dead.append(f"{name}: {outcome.reason}")
    if dead:
        raise RuntimeError(
            f"Expected results of all {len(tasks)} tasks, got none of {len(dead)}: "
            f"{'; '.join(dead)}; give them more memory, or a smaller n_jobs."
        )


def _outcomes(
    function: Callable[..., Any],
    shared: Shared,
    tasks: Mapping[str, tuple[Any, ...]],
    n_jobs: int | None,
    folder: str,
) -> Iterator[tuple[str, Any]]:
    """Names and results as they come."""
    marks = {name: str(Path(folder) / str(i)) for i, name in enumerate(tasks)}
    left = dict(tasks)

    def run(names: list[str]) -> Iterator[tuple[str, Any]]:
        calls = (delayed(_task)(function, shared, n, marks[n], tasks[n]) for n in names)
        try:
            parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
        except ValueError:  # a backend that returns all results at once, as Ray's
            parallel = Parallel(n_jobs=n_jobs)
        yield from parallel(calls)

    while left:
        try:
            for name, outcome in run(list(left)):
                del left[name]
                yield name, outcome
        except Exception as error:
            if type(error).__name__ != _DEATH:
                raise
            running = [n for n in left if Path(marks[n]).exists()] or list(left)
            again = "which are run again" if running[1:] else "which is run again"
            warn_user(
                f"A worker process died while it ran {_listed(running)}, {again}.", WorkerWarning
            )
            for name in running:
                del left[name]
                yield name, _alone(run, name)


def _alone(run: Callable[[list[str]], Iterator[tuple[str, Any]]], name: str) -> Any:
    """Result of a task that ran when a worker died, which may have been that of another."""
    for _ in range(_TRIES - 1):
        try:
            ((_, outcome),) = run([name])
            return outcome
        except Exception as error:
            if type(error).__name__ != _DEATH:
                raise
    return _Died()


def _listed(names: list[str]) -> str:
    return " or ".join(names[:4]) + (f" or {len(names) - 4} others" if names[4:] else "")


def _task(
    function: Callable[..., Any], shared: Shared, name: str, mark: str, args: tuple[Any, ...]
) -> tuple[str, Any]:
    """A task, with a file that counts how often it began and is there until it ends."""
    with contextlib.suppress(OSError), Path(mark).open("ab") as begun:  # not on another machine
        if begun.tell() >= _TRIES:
            return name, _Died()
        begun.write(b".")
    try:
        return name, function(*shared.values, *args)
    finally:
        with contextlib.suppress(OSError):
            Path(mark).unlink(missing_ok=True)
