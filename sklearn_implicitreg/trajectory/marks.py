"""Marks of a trajectory: weights and running sums after a step, in memory or on disk."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
import weakref
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.trajectory.temporary import temporary_folder

SUMS = ("applied", "consumed", "visited")
PARTS = ("weights", *SUMS, "scale")
_ALIGNED = 8  # bytes; a tensor of a file begins at a multiple of them


@dataclass(frozen=True)
class Mark:
    """State of the trajectory after ``step`` steps; the sums run from its start, in float64.

    Parameters
    ----------
    step, epoch : int
        Steps recorded so far, and epochs that had ended.
    weights : dict of str to Tensor
    applied, consumed : dict of str to Tensor
        Sums of the gradients that the steps applied, and of those that the optimizer was given;
        these are empty where they were not recorded.
    visited : dict of str to Tensor
        Sum of the weights that the gradients were taken at.
    scale : dict of str to Tensor
        What the optimizer multiplies each entry of a gradient by, up to the step size, at the end
        of an epoch; empty elsewhere, and where it is the same for all entries.
    """

    step: int
    epoch: int
    weights: Params
    applied: Params
    consumed: Params
    visited: Params
    scale: Params = field(default_factory=dict)

    def tensor(self, what: str, name: str) -> Tensor:
        """One tensor of the weights or of one of the sums."""
        tensor: Tensor = getattr(self, what)[name]
        return tensor

    def on(self, device: torch.device) -> Mark:
        """The mark with its tensors on a device, where they are moved when they are read."""
        there = all(t.device == device for what in PARTS for t in vars(self)[what].values())
        return self if there else StoredMark(self.step, self.epoch, _Moved(self, device))

    def named(self, names: Mapping[str, str]) -> Mark:
        """The mark with other names for its tensors."""
        return StoredMark(self.step, self.epoch, _Renamed(self, names))


class Source(Protocol):
    """Where the tensors of a stored mark are."""

    def read(self, what: str, only: str | None = None) -> Params:
        """Weights or one of the sums, or one tensor; they stay in the file until they are used."""

    def kept(self) -> Source | None:
        """The source as another process finds it; None if it goes with this one."""


class StoredMark(Mark):
    """Mark whose tensors are read from a file at every use."""

    _source: Source

    def __init__(self, step: int, epoch: int, source: Source):
        vars(self).update(step=step, epoch=epoch, _source=source)

    def __getattr__(self, what: str) -> Params:
        if what not in PARTS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {what!r}")
        return self._source.read(what)

    def tensor(self, what: str, name: str) -> Tensor:
        """One tensor, read without the others."""
        return self._source.read(what, name)[name]

    def on(self, device: torch.device) -> Mark:
        """The mark with its tensors on a device, where they are moved when they are read."""
        return StoredMark(self.step, self.epoch, _Moved(self, device))

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """A mark in a temporary folder travels as its tensors, others by the name of the file."""
        source = self._source.kept()
        if source is None:
            return Mark, (self.step, self.epoch, *[self._source.read(what) for what in PARTS])
        return StoredMark, (self.step, self.epoch, source)


@dataclass(frozen=True)
class _Moved:
    """A mark as another device reads it."""

    mark: Mark
    device: torch.device

    def read(self, what: str, only: str | None = None) -> Params:
        if only is not None:
            return {only: self.mark.tensor(what, only).to(self.device)}
        return {name: t.to(self.device) for name, t in getattr(self.mark, what).items()}

    def kept(self) -> Source | None:
        """The mark knows how it travels."""
        return self


@dataclass(frozen=True)
class _Renamed:
    """A mark by other names for its tensors."""

    mark: Mark
    names: Mapping[str, str]

    def read(self, what: str, only: str | None = None) -> Params:
        if only is not None:
            old = next(old for old, new in self.names.items() if new == only)
            return {only: self.mark.tensor(what, old)}
        return {self.names[name]: t for name, t in getattr(self.mark, what).items()}

    def kept(self) -> Source | None:
        """The mark knows how it travels."""
        return self


@dataclass(frozen=True)
class _Place:
    """Bytes of one tensor in a block."""

    what: str
    name: str
    dtype: torch.dtype
    shape: torch.Size
    start: int
    stop: int

    def of(self, block: npt.NDArray[np.uint8]) -> Tensor:
        """The tensor in a block of bytes, as a storage of its own, which pickle and torch need."""
        own = torch.from_numpy(block[self.start : self.stop])
        return own.view(self.dtype).view(self.shape)


def _places(mark: Mark) -> tuple[_Place, ...]:
    found: list[_Place] = []
    for what in PARTS:
        for name, tensor in getattr(mark, what).items():
            last = found[-1].stop if found else 0
            start = -(-last // _ALIGNED) * _ALIGNED
            found.append(
                _Place(what, name, tensor.dtype, tensor.shape, start, start + tensor.nbytes)
            )
    return tuple(found)


@dataclass(frozen=True)
class _Block:
    """File of the plain bytes of one mark."""

    file: Path
    places: tuple[_Place, ...]
    shelf: Shelf | None  # folder that must live as long as the mark
    # Of the bytes of each place, by the thread that writes them; and where they were found again.
    checksums: dict[_Place, int] = field(default_factory=dict, compare=False)
    sound: set[_Place] = field(default_factory=set, compare=False)

    def read(self, what: str, only: str | None = None) -> Params:
        if self.shelf is not None:
            self.shelf.wait()
        end = self.places[-1].stop
        try:
            if self.file.stat().st_size < end:
                raise ValueError(
                    f"Expected a whole mark in {self.file}, got one that was cut short; record "
                    "again."
                )
            block = np.memmap(self.file, np.uint8, "c", shape=(end,))
        except FileNotFoundError as error:
            raise ValueError(
                f"Expected the marks of this trajectory in {self.file}, which is gone; save a "
                "trajectory with trajectory.save(file) before removing its folder."
            ) from error
        except OSError as error:
            raise ValueError(
                f"Expected a mark in {self.file}, which cannot be read ({error.strerror}); give "
                "it back, or record again."
            ) from error
        own = [p for p in self.places if p.what == what and only in (None, p.name)]
        for place in own:
            if place not in self.sound:
                self._check(place, block)
        return {place.name: place.of(block) for place in own}

    def summed(self, block: memoryview) -> None:
        """Take the checksums."""
        self.checksums.update({p: zlib.crc32(block[p.start : p.stop]) for p in self.places})

    def _check(self, place: _Place, block: npt.NDArray[np.uint8]) -> None:
        if zlib.crc32(block[place.start : place.stop].data) != self.checksums[place]:
            raise ValueError(
                f"Expected the numbers that were recorded in {self.file}, got {place.what} of "
                f"{place.name} with another checksum; the file is damaged: record again."
            )
        self.sound.add(place)

    def kept(self) -> Source | None:
        """The file alone, unless its folder goes with this process."""
        if self.shelf is None:
            return self
        self.shelf.wait()
        return None if self.shelf.temporary else replace(self, shelf=None)


class Shelf:
    """Folder with one file of plain bytes for each mark, written while training goes on."""

    def __init__(self, directory: str | PathLike[str] | None = None):
        # A temporary folder goes with the last mark that needs it.
        self.temporary = directory is None
        self._writer: Thread | None = None
        self.failed: OSError | None = None  # what the disk did not take
        # Bytes that are being written, in memory that is reused.
        self._stage: npt.NDArray[np.uint8] | None = None
        if directory is None:
            self.path, remove = temporary_folder()
            weakref.finalize(self, remove)
        else:
            self.path = _empty_folder(Path(directory))

    def put(self, mark: Mark) -> StoredMark:
        """Write a mark; one of the same step is replaced."""
        block = _Block(self.path / f"mark-{mark.step:09d}.bin", _places(mark), self)
        self.wait()
        size = -(-block.places[-1].stop // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._stage is None or len(self._stage) != size:
            # Whole pages of its own, which the disk can take without a copy.
            self._stage = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
        for place in block.places:
            place.of(self._stage).copy_(getattr(mark, place.what)[place.name].detach())
        # One call with one block: the writer holds up nobody while it waits for the disk.
        self._writer = Thread(target=self._write, args=(block, self._stage.data))
        self._writer.start()
        return StoredMark(mark.step, mark.epoch, block)

    def close(self) -> None:
        """Write what waits, and let the stage go."""
        self.wait()
        self._stage = None

    def wait(self) -> None:
        """Until the last mark is written, or has failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _write(self, block: _Block, content: memoryview) -> None:
        """Write; what stops it is kept for the thread that records, and no part of a mark."""
        try:
            block.summed(content)
            _write(block.file, content)
        except OSError as error:
            self.failed = error
            with contextlib.suppress(OSError):
                block.file.unlink()


def _empty_folder(folder: Path) -> Path:
    """Folder for marks, made where its parent is there; ValueError where it cannot take them."""
    try:
        folder.mkdir(exist_ok=True)
        if any(folder.iterdir()):
            raise ValueError(
                f"Expected an empty folder for the marks, got {folder} with files in it; give "
                "another one, or one that is not there yet."
            )
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            "Expected an empty folder for the marks, or a new one in a folder that is there, got "
            f"{folder} ({error.strerror}); give a folder that can be written to."
        ) from error
    return folder


def _write(file: Path, block: memoryview) -> None:
    """Write whole pages to a file, past the cache of the system where that is possible."""
    # New pages of the cache cost more processor time than all sums of the steps between two marks.
    for direct in (getattr(os, "O_DIRECT", 0), 0):
        try:
            opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | direct, 0o666)
            with open(opened, "wb", buffering=0) as out:
                done = 0
                while done < len(block):
                    done += out.write(block[done:])
            return
        except OSError as error:
            if not direct or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise


def bare(mark: Mark) -> Mark:
    """The mark without its tensors."""
    return Mark(mark.step, mark.epoch, {}, {}, {}, {})


def checked_total(dropped: Mapping[str, int], n_steps: int) -> int:
    """Number of steps that were dropped, by the reason; ValueError if it is most of all."""
    n_dropped = sum(dropped.values())
    if n_dropped > n_steps:
        reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        raise ValueError(
            f"Expected finite steps of positive learning rate, got {n_steps + n_dropped} steps of "
            f"which {reasons}; record a run that trains."
        )
    return n_dropped


def copied(mark: Mark) -> Mark:
    """Copy of a mark and its tensors."""
    parts = (getattr(mark, what) for what in PARTS)
    own = ({name: tensor.detach().clone() for name, tensor in part.items()} for part in parts)
    return Mark(mark.step, mark.epoch, *own)


class Kept:
    """Marks of a recording, in memory up to a limit in bytes and then on disk."""

    def __init__(self, directory: str | PathLike[str] | None, memory_limit: int):
        self.marks: list[Mark] = []
        self.failed: OSError | None = None  # what ends the recording
        self.others: dict[str, Tensor | None] = {}  # what moves besides, as in a Window
        self._shelf = None if directory is None else Shelf(directory)
        self._limit = memory_limit

    def put(self, mark: Mark) -> None:
        """Keep a mark; one of the same step is replaced."""
        self.wait()
        if self.failed is not None:
            return
        replaced = bool(self.marks) and self.marks[-1].step == mark.step
        n = len(self.marks) - replaced
        try:
            if self._shelf is None and self._is_full(mark, n + 1):
                self._move_to_disk()
            self.marks[n:] = [copied(mark) if self._shelf is None else self._shelf.put(mark)]
        except OSError as error:
            self.failed = error

    def wait(self) -> None:
        """Until the last mark is written; it is dropped where the disk did not take it."""
        if self._shelf is None or self.failed is not None:
            return
        self._shelf.wait()
        self.failed = self._shelf.failed
        if self.failed is not None:
            self.marks.pop()

    def _move_to_disk(self) -> None:
        shelf = Shelf()
        stored: list[Mark] = [shelf.put(kept) for kept in self.marks]
        shelf.wait()
        if shelf.failed is not None:
            raise shelf.failed
        self.marks, self._shelf = stored, shelf

    @property
    def folder(self) -> Path:
        """Where the marks on disk are, or would be."""
        return Path(tempfile.gettempdir()) if self._shelf is None else self._shelf.path

    def _is_full(self, mark: Mark, n: int) -> bool:
        """Whether n such marks exceed the limit on one of the devices that they lie on."""
        sizes: Counter[torch.device] = Counter()
        for what in PARTS:
            for tensor in getattr(mark, what).values():
                sizes[tensor.device] += tensor.nbytes
        return max(sizes.values(), default=0) * n > self._limit

    def settle(self, steps: Sequence[Any]) -> None:
        """Called before the step after a mark, which is final then."""

    def end_epoch(self, epoch: int, every: int) -> int:
        """Called at the end of an epoch; steps between the marks that follow."""
        return every

    def close(self, steps: Sequence[Any], raised: bool = False) -> None:
        """Called when recording ends, also by an error that the loop raised."""
        self.wait()
        if self._shelf is not None:
            self._shelf.close()

    def check_steps(self, n: int, stopped: bool) -> None:
        """Raise ValueError where no step is kept."""
        if n < 1 and stopped:
            raise ValueError(
                f"Expected at least one recorded step, got none: {self.folder} was full; "
                "give directory= a folder with more room."
            )
        if n < 1:
            raise ValueError(
                "Expected at least one recorded step, got none; the optimizer that was given to "
                "record(...) must be the one that steps, in the block of `with record(...)`."
            )

    def recorded(self) -> tuple[tuple[Mark, ...], Any]:
        """The marks, and the R factors where they hold these instead of weights."""
        self.wait()
        return tuple(self.marks), None
