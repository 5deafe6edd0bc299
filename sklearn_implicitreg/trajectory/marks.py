"""Marks of a path: the weights and the running sums after a step, in memory or on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_implicitreg.problem import Params

__all__ = [
    "SUMS",
    "Mark",
    "Shelf",
    "StoredMark",
    "read_tensor",
    "size_of",
    "tensors_of",
    "write_arrays",
]

SUMS = ("applied", "consumed", "visited")
# NumPy has no such type; the bits are kept.
_BITS = {torch.bfloat16: torch.int16}


@dataclass(frozen=True)
class Mark:
    """State of the path after ``step`` steps; the sums run from its start, in float64.

    Parameters
    ----------
    step : int
        Steps recorded so far.
    epoch : int
        Epochs that had ended.
    weights : dict of str to Tensor
    applied : dict of str to Tensor
        Sum of the gradients that the steps applied.
    consumed : dict of str to Tensor
        Sum of the gradients that the optimizer was given; empty where they were not recorded.
    visited : dict of str to Tensor
        Sum of the weights that the gradients were taken at.
    """

    step: int
    epoch: int
    weights: Params
    applied: Params
    consumed: Params
    visited: Params


class StoredMark(Mark):
    """Mark whose tensors are read from an npz file when they are asked for.

    Parameters
    ----------
    step, epoch : int
    file : path-like
    prefix : str
        Of its arrays in the file.
    names, dtypes : dict of str to torch.dtype
        Tensors and the types of the weights.
    gradients : bool
        Whether the file has the sums of the consumed gradients.
    shelf : Shelf or None
        Folder that must live as long as the mark.
    """

    def __init__(
        self,
        step: int,
        epoch: int,
        file: str | PathLike[str],
        prefix: str,
        dtypes: Mapping[str, torch.dtype],
        gradients: bool,
        shelf: Shelf | None = None,
    ):
        own = {"step": step, "epoch": epoch, "_file": file, "_prefix": prefix, "_shelf": shelf}
        for key, value in {**own, "_dtypes": dict(dtypes), "_gradients": gradients}.items():
            object.__setattr__(self, key, value)

    @property
    def weights(self) -> Params:
        """Weights, read anew each time."""
        return self._read("weights")

    @property
    def applied(self) -> Params:
        """Sum of the applied gradients, read anew each time."""
        return self._read("applied")

    @property
    def consumed(self) -> Params:
        """Sum of the consumed gradients, read anew each time."""
        return self._read("consumed") if self._gradients else {}

    @property
    def visited(self) -> Params:
        """Sum of the weights, read anew each time."""
        return self._read("visited")

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """A mark in a temporary folder travels as its tensors, others by the name of the file."""
        if self._shelf is not None and self._shelf.temporary:
            sums = (getattr(self, what) for what in SUMS)
            return Mark, (self.step, self.epoch, self.weights, *sums)
        if self._shelf is not None:
            self._shelf.wait()
        own = (self.step, self.epoch, self._file, self._prefix, self._dtypes, self._gradients)
        return StoredMark, own

    def _read(self, what: str) -> Params:
        if self._shelf is not None:
            self._shelf.wait()
        try:
            with np.load(self._file, allow_pickle=False) as stored:
                return {
                    name: read_tensor(
                        stored[f"{self._prefix}{what}/{name}"],
                        dtype if what == "weights" else torch.float64,
                    )
                    for name, dtype in self._dtypes.items()
                }
        except FileNotFoundError as error:
            raise ValueError(
                f"Expected the marks of this path in {self._file}, which is gone; save a path "
                "with path.save(file) before removing its folder."
            ) from error

    _file: str | PathLike[str]
    _prefix: str
    _shelf: Shelf | None
    _dtypes: dict[str, torch.dtype]
    _gradients: bool


class Shelf:
    """Folder with one npz file for each mark, written while training goes on.

    Parameters
    ----------
    directory : path-like or None
        None makes a temporary folder, which goes with the last mark that needs it.
    """

    def __init__(self, directory: str | PathLike[str] | None = None):
        self.temporary = directory is None
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None
        self._stage: Mark | None = None  # copy that is being written, in memory that is reused
        if directory is None:
            self.path = Path(tempfile.mkdtemp(prefix="trajectory-"))
            weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        else:
            self.path = Path(directory)
            self.path.mkdir(parents=True, exist_ok=True)
            if any(self.path.glob("mark-*.npz")):
                raise ValueError(
                    f"Expected a folder without marks of another recording, got {self.path}; "
                    "give an empty one."
                )

    def put(self, mark: Mark) -> StoredMark:
        """Write a mark; one of the same step is replaced."""
        file = self.path / f"mark-{mark.step:09d}.npz"
        dtypes = {name: t.dtype for name, t in mark.weights.items()}
        stored = StoredMark(mark.step, mark.epoch, file, "", dtypes, bool(mark.consumed), self)
        self.wait()
        self._stage = copied(mark, self._stage)
        self._pending = self._writer.submit(write_arrays, file, tensors_of(self._stage))
        return stored

    def close(self) -> None:
        """Finish writing and give back the memory that it needed."""
        self.wait()
        self._stage = None

    def wait(self) -> None:
        """Until the last mark is written; raises what stopped it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()


def tensors_of(mark: Mark, prefix: str = "") -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Names and arrays of a mark, as they are stored."""
    for what in ("weights", *SUMS):
        for name, tensor in getattr(mark, what).items():
            bits = _BITS.get(tensor.dtype)
            plain = tensor.detach().cpu()
            array = (plain if bits is None else plain.view(bits)).numpy()
            yield f"{prefix}{what}/{name}", array


def size_of(mark: Mark) -> int:
    """Bytes of the tensors of a mark."""
    tensors = (t for what in ("weights", *SUMS) for t in getattr(mark, what).values())
    return sum(t.numel() * t.element_size() for t in tensors)


def copied(mark: Mark, onto: Mark | None = None) -> Mark:
    """Copy of a mark, in the memory of another one where that is given."""

    def copy(what: str) -> Params:
        own = getattr(mark, what)
        if onto is None:
            return {name: tensor.detach().clone() for name, tensor in own.items()}
        return {name: getattr(onto, what)[name].copy_(t.detach()) for name, t in own.items()}

    return Mark(mark.step, mark.epoch, copy("weights"), *(copy(what) for what in SUMS))


def read_tensor(array: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
    """Tensor of a stored array."""
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype in _BITS else tensor


def write_arrays(file: str | PathLike[str], arrays: Iterator[tuple[str, npt.NDArray[Any]]]) -> None:
    """Write an npz file array by array; an unfinished one does not take its name."""
    target = Path(file)
    part = target.with_name(target.name + ".part")
    try:
        with zipfile.ZipFile(part, "w", allowZip64=True) as archive:
            for name, array in arrays:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write(member, array)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _write(member: IO[bytes], array: npt.NDArray[Any]) -> None:
    """Write an array as np.save does, without its copy by pieces where memory is one block."""
    if not array.flags.c_contiguous or not array.size or not array.ndim:
        np.lib.format.write_array(member, array, allow_pickle=False)
        return
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(member, header)
    member.write(array.reshape(-1).view(np.uint8).data)
