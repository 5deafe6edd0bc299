"""The gradient of a loss in a folder: passes over the rows that need not be made again."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_implicitreg.endpoints.identity import Facts, differences, identity, key_of
from sklearn_implicitreg.exceptions import CacheWarning, warn_user
from sklearn_implicitreg.problem import (
    BlockGradient,
    LossGradient,
    Params,
    Problem,
    Rest,
    closing,
    summed,
)

_FORMAT = 1
_SHARD = 2**30  # bytes of a file at most, unless one tensor is larger
_SECONDS = 30.0  # at least, between two states of a pass on disk
_SHARE = 20  # times what writing one takes
_NUMBERS = ("loss", "weight", "n_rows", "scale", "n_kinks")
State = dict[str, Any]


@dataclass(frozen=True)
class KeptGradient:
    """Passes over the rows of a problem, read from a folder as far as they are there."""

    folder: Path
    problem: Problem
    key: str  # checksum of what the gradient is of

    @classmethod
    def of(cls, folder: str | PathLike[str], problem: Problem) -> KeptGradient:
        """The folder of a problem; ValueError if it has the gradient of another one."""
        try:
            import safetensors.torch  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "Expected the package safetensors for cache=, which is not installed; install it: "
                "pip install sklearn_implicitreg[cache]."
            ) from error
        place = Path(folder)
        if place.exists() and not place.is_dir():
            raise ValueError(f"Expected a folder as cache, got the file {str(folder)!r}.")
        facts = identity(problem)
        held = _facts_in(place / "manifest.json")
        if held is None:
            text = json.dumps({"format": _FORMAT, "facts": facts}, indent=1)
            with _written(place):
                place.mkdir(parents=True, exist_ok=True)
                put_in_place(place / "manifest.json", lambda part: part.write_text(text))
        else:
            others = differences(held, facts, problem.eps)
            if others:
                raise ValueError(
                    f"Expected the gradient of this fit in {str(folder)!r}, got one with other "
                    f"{', '.join(others)}; give another folder as cache, or delete this one."
                )
        return cls(place, problem, key_of(held or facts))

    def gradient(self) -> LossGradient:
        """The gradient of the mean loss over all rows, with the bits that a pass has."""
        if self.problem.sums_blocks:
            return self.problem.over_passes(self._reading(self.problem), self._reading)
        state = self._state("mean")
        if state is None:
            found = self.problem.gradient()
            every = [found, *found.readings]
            with _written(self.folder):
                parts = [self._parted(f"mean-{i}", g.value, g) for i, g in enumerate(every)]
                self._put("mean", {"done": True, "parts": parts})
            return found
        mean, *readings = (LossGradient(*self._read(part)) for part in state["parts"])
        return replace(mean, readings=tuple(readings))

    def blocks(self, n_blocks: int) -> Iterator[BlockGradient]:
        """The blocks of a pass, each a part of its own; those that are missing are made."""
        name = f"blocks-{n_blocks}"
        state = self._state(name) or {"done": False, "parts": []}
        parts = list(state["parts"])
        for part in parts:
            yield BlockGradient(*self._read(part))
        if state["done"]:
            return
        now_and_then = _pace()
        with closing(self.problem.blocks_after(len(parts), n_blocks)) as blocks:
            for block in blocks:
                with _written(self.folder):
                    parts.append(self._parted(f"{name}-{len(parts)}", block.sums, block))
                    now_and_then(lambda: self._put(name, {"done": False, "parts": parts}))
                yield block
                del block  # freed before the next is made
        with _written(self.folder):
            self._put(name, {"done": True, "parts": parts})

    def over_passes(self, first: LossGradient) -> LossGradient:
        """The mean over all readings of rows that differ at each, the first of them given."""
        return self.problem.over_passes(first, self._reading)

    def _reading(self, problem: Problem) -> LossGradient:
        """Gradient of one reading; a pass that was killed goes on at its last state."""
        name = f"sum-{problem.reading}"
        state = self._state(name) or {"done": False, "n_blocks": 0, "parts": []}
        begun = [BlockGradient(*self._read(part)) for part in state["parts"]]
        if state["done"]:
            return LossGradient.of_sum(summed(iter(begun)))
        n_done, now_and_then = itertools.count(state["n_blocks"] or 1), _pace()

        def put(total: BlockGradient, n_blocks: int, done: bool) -> None:
            with _written(self.folder):
                part = self._parted(f"{name}-{'all' if done else n_blocks}", total.sums, total)
                self._put(name, {"done": done, "n_blocks": n_blocks, "parts": [part]})

        def keep(total: BlockGradient) -> None:
            n_blocks = next(n_done)
            now_and_then(lambda: put(total, n_blocks, done=False))

        with closing(problem.blocks_after(state["n_blocks"])) as blocks:
            total = summed(itertools.chain(begun, blocks), keep)
        if total.n_rows:
            put(total, next(n_done) - 1, done=True)
        return LossGradient.of_sum(total)

    def _state(self, name: str) -> State | None:
        """What is there of a pass, if it is whole; None, with a warning if it is damaged."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            return None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state: State = json.loads(file.read_text())
            shards = [shard for part in state["parts"] for shard in part["shards"].items()]
            if state["of"] == self.key and all(self._is_sound(*shard) for shard in shards):
                return state
        warn_user(
            f"What {file} names was damaged or is of another gradient, and the pass over the rows "
            "is made again.",
            CacheWarning,
        )
        return None

    def _is_sound(self, name: str, checksum: str) -> bool:
        return _checksum(self.folder / name) == checksum

    def _put(self, name: str, state: State) -> None:
        """Replace the state of a pass, and remove the files of the one before it."""
        text = json.dumps(state | {"of": self.key}, indent=1)
        put_in_place(self.folder / f"{name}.json", lambda part: part.write_text(text))
        named = {shard for part in state["parts"] for shard in part["shards"]}
        for file in self.folder.glob(f"{name}-*"):
            if file.name not in named:
                file.unlink(missing_ok=True)

    def _parted(self, stem: str, tensors: Params, numbers: Any) -> State:
        """Write tensors, and state them with the numbers beside them."""
        from safetensors.torch import save_file

        shards = {}
        for i, shard in enumerate(_shards(tensors)):
            file = self.folder / f"{stem}-{i}.safetensors"
            # Copies: a gradient may be a view of another one.
            own = {name: tensor.detach().cpu().clone() for name, tensor in shard.items()}
            own = {name: tensor.contiguous() for name, tensor in own.items()}
            put_in_place(file, lambda part, own=own: save_file(own, part))  # type: ignore[misc]
            shards[file.name] = _checksum(file)
        rest = {name: np.asarray(v).tolist() for name, v in vars(numbers.rest).items()}
        own_numbers = {name: np.asarray(getattr(numbers, name)).item() for name in _NUMBERS}
        return own_numbers | {"absent": sorted(numbers.absent), "rest": rest, "shards": shards}

    def _read(self, part: State) -> tuple[Any, ...]:
        """Tensors and numbers of a part, in the order of the fields that they are of."""
        from safetensors.torch import load_file

        found: Params = {}
        for shard in part["shards"]:
            found |= load_file(self.folder / shard)
        like = self.problem.params
        tensors = {name: found[name].to(tensor.device) for name, tensor in like.items()}
        rest = {n: np.array(v) if isinstance(v, list) else v for n, v in part["rest"].items()}
        numbers = [part[name] for name in _NUMBERS]
        return tensors, *numbers, frozenset(part["absent"]), Rest(**rest)


def _facts_in(manifest: Path) -> Facts | None:
    """What the gradients of a folder are of; None where it has none, or a damaged manifest."""
    if not manifest.exists():
        return None
    try:
        content = json.loads(manifest.read_text())
        version, facts = content["format"], content["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        warn_user(f"{manifest} was damaged, and is written again.", CacheWarning)
        return None
    if version != _FORMAT:
        raise ValueError(
            f"Expected a cache of format {_FORMAT}, got {version!r} in {manifest}; give another "
            "folder, or the version of sklearn_implicitreg that wrote it."
        )
    return dict(facts)


def _shards(tensors: Params) -> Iterator[Params]:
    """Tensors in the order of their names' files, each below a size where it can be."""
    shard: Params = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > _SHARD:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def put_in_place(file: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name and then rename it, so that nobody reads half of one."""
    part = file.with_name(f"{file.name}.part")  # what a kill leaves is replaced or removed
    try:
        write(part)
        os.replace(part, file)
    except FileNotFoundError:
        if not file.exists():  # else a worker of a run that was killed put the same there
            raise
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            getattr(error, "errno", None),
            f"The gradient cannot be kept in {folder} ({reason}); give cache= a folder with more "
            "room that can be written to. What is there already is used.",
        ) from error


def _pace() -> Callable[[Callable[[], None]], None]:
    """Call what writes a state, rarely enough that it takes a small share of the time."""
    last, cost = time.monotonic(), 0.0

    def now_and_then(write: Callable[[], None]) -> None:
        nonlocal last, cost
        start = time.monotonic()
        if start - last >= max(_SECONDS, _SHARE * cost):
            write()
            last = time.monotonic()
            cost = last - start

    return now_and_then
