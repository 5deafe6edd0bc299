"""Trajectories as files of torch.save, with a checksum of every tensor."""

from __future__ import annotations

import errno
import itertools
import json
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.trajectory.marks import PARTS, Mark, StoredMark
from sklearn_implicitreg.trajectory.r_factors import RFactors

_FORMAT = 4
_BY_NAME = 2**30  # bytes of a file above which another process opens it instead of taking a copy
_OF_RUN = ("optimizer", "settings", "n_dropped", "begins_epoch", "steps", "skipped", "skipped_by")
_HEADER = (*_OF_RUN, "param_groups", "marks", "names", "others", "r_factors", "seen", "tensors")
_LENGTHS, _ROWS, _R_FACTORS = "lengths of batches", "rows of batches", "R factors "
_SEEN = "batch "
_OTHERS = "before its first change "


def write(
    file: str | PathLike[str],
    header: dict[str, Any],
    marks: Sequence[Mark],
    batches: Sequence[tuple[Any, tuple[Mark, ...]]],
    r_factors: RFactors | None,
    others: dict[str, Tensor | None],
) -> None:
    """Write marks, rows or tensors of batches, R factors, what else moved, a header for JSON."""
    rows, seen = [own for own, _ in batches], [b for _, own in batches for b in own]
    tensors = {key: tensor.detach().cpu() for key, tensor in _tensors(marks, rows, r_factors)}
    tensors |= {
        f"{_SEEN}{i} {name}": tensor.detach().cpu()
        for i, batch in enumerate(seen)
        for name, tensor in batch.weights.items()
    }
    tensors |= {_OTHERS + name: t.detach().cpu() for name, t in others.items() if t is not None}
    header |= {
        "marks": [[mark.step, mark.epoch] for mark in marks],
        "names": list(dict.fromkeys([*marks[0].weights, *others])),
        "others": list(others),
        "seen": [[list(b.weights) for b in own] for _, own in batches] if seen else [],
        "r_factors": None if r_factors is None else r_factors.header(),
        "tensors": {key: [*_kind(t), _checksum(t)] for key, t in tensors.items()},
    }
    text = json.dumps(header)
    checksum = zlib.crc32(text.encode())
    content = {"format": _FORMAT, "header": text, "checksum": checksum, "tensors": tensors}
    target = _target(file)
    try:
        # A file in a folder of its own has a name that nobody else uses, and usual permissions.
        with TemporaryDirectory(prefix=".trajectory-", dir=target.parent) as folder:
            part = Path(folder, "part")
            torch.save(content, part)
            os.replace(part, target)
    except (OSError, RuntimeError) as error:  # torch's own for a full disk
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"The trajectory cannot be written to {target} ({_reason(error)}), where all is as it "
            "was; save it in a folder with more room, or one that can be written to.",
        ) from error


def _target(file: str | PathLike[str]) -> Path:
    """Where the file is written: where a link leads, and in place of an ordinary file only."""
    try:
        target = Path(file).resolve()
        there, fits = target.exists(), target.parent.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a long name, links in a circle, "\0"
        raise ValueError(
            f"Expected the name of a file, got {str(file)!r} ({_reason(error)}); give another one."
        ) from error
    if target.is_dir() or not fits:
        raise ValueError(f"Expected the name of a file in a folder that is there, got {target}.")
    if there and not target.is_file():
        raise ValueError(f"Expected the name of a file, got {target}, which is no ordinary one.")
    return target


def read(
    file: str | PathLike[str],
) -> tuple[dict[str, Any], tuple[Mark, ...], list[Any], RFactors | None, dict[str, Tensor | None]]:
    """What :func:`write` wrote: header, marks, batches, R factors, what else moved."""
    place = Path(file).absolute()
    content = _content(place)
    saved, header = _SavedFile(place, content["checksum"], content), content["header"]
    marks = tuple(
        StoredMark(step, epoch, _SavedMark(saved, i))
        for i, (step, epoch) in enumerate(header["marks"])
    )
    lengths, rows = saved.tensor(_LENGTHS).numpy(), saved.tensor(_ROWS).numpy()
    ends = np.cumsum(np.maximum(lengths, 0))
    numbers = [None if n < 0 else rows[end - n : end] for n, end in zip(lengths, ends, strict=True)]
    places = itertools.count()
    seen = [
        tuple(StoredMark(0, 0, _SavedBatch(saved, next(places), tuple(names))) for names in own)
        for own in header["seen"] or [[]] * len(numbers)
    ]
    batches = list(zip(numbers, seen, strict=True))
    kept = {name: f"{_OTHERS}{name}" for name in header["others"]}
    known = header["tensors"]
    others = {name: saved.tensor(key) if key in known else None for name, key in kept.items()}
    if header["r_factors"] is None:
        return header, marks, batches, None, others
    own = [key for key in header["tensors"] if key.startswith(_R_FACTORS)]
    arrays = {key.removeprefix(_R_FACTORS): saved.tensor(key).numpy() for key in own}
    return header, marks, batches, RFactors.read(header["r_factors"], arrays), others


class _SavedFile:
    """A file mapped into memory; a tensor is compared with its checksum when it is first used."""

    def __init__(self, file: Path, checksum: int, content: dict[str, Any] | None = None):
        self.file, self._checksum, self._content = file, checksum, content
        self._sound: set[str] = set()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return _SavedFile, (self.file, self._checksum)

    @property
    def content(self) -> dict[str, Any]:
        if self._content is None:
            try:
                content = _content(self.file)
            except FileNotFoundError as error:
                raise ValueError(
                    f"Expected the marks of this trajectory in {self.file}, which is gone; load "
                    "it from where its file is."
                ) from error
            if content["checksum"] != self._checksum:
                raise ValueError(
                    f"Expected the trajectory that was loaded from {self.file}, got another one; "
                    "load it again."
                )
            self._content = content
        return self._content

    def tensor(self, key: str) -> Tensor:
        tensor: Tensor = self.content["tensors"][key]
        if key not in self._sound:
            if _checksum(tensor) != self.content["header"]["tensors"][key][-1]:
                raise ValueError(
                    f"Expected the numbers that were saved in {self.file}, got {key} with another "
                    "checksum; the file is damaged: load a copy of it, or record again."
                )
            self._sound.add(key)
        return tensor


@dataclass(frozen=True)
class _SavedMark:
    """One mark of a file."""

    saved: _SavedFile
    i: int

    def read(self, what: str, only: str | None = None) -> Params:
        content = self.saved.content
        names = content["header"]["names"] if only is None else [only]
        keys = {name: _key(self.i, what, name) for name in names}
        held = content["tensors"]
        return {name: self.saved.tensor(key) for name, key in keys.items() if key in held}

    def kept(self) -> Self | None:
        """A large file stays where it is."""
        file = self.saved.file
        return self if file.is_file() and file.stat().st_size > _BY_NAME else None


@dataclass(frozen=True)
class _SavedBatch(_SavedMark):
    """One batch of a file."""

    names: tuple[str, ...]

    def read(self, what: str, only: str | None = None) -> Params:
        wanted = [name for name in self.names if what == "weights" and only in (None, name)]
        return {name: self.saved.tensor(f"{_SEEN}{self.i} {name}") for name in wanted}


def _content(file: Path) -> dict[str, Any]:
    content: dict[str, Any]
    try:
        if file.exists() and not file.is_file():  # a pipe would wait for ever
            raise ValueError("no ordinary file")
        with warnings.catch_warnings(action="ignore"):  # torch's, of what the file may be instead
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        version = content["format"]
        if version == _FORMAT:
            _check(content)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file may raise anything
        # What torch says of an unknown pickle is how to run the code in it.
        own = isinstance(error, OSError | ValueError | LookupError)
        reason = _reason(error) if own else "damaged, or another kind of file"
        raise ValueError(
            f"Expected a file written by Trajectory.save, got {file}, which cannot be read "
            f"({reason}); was it cut short? Load a copy of it, or record again."
        ) from error
    if version != _FORMAT:
        raise ValueError(
            f"Expected a trajectory of format {_FORMAT}, got {version!r} in {file}; read it with "
            "the version that wrote it."
        )
    return content


def _reason(error: Exception) -> str:
    """Why the system, or torch, could not do it."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def _check(content: dict[str, Any]) -> None:
    text, tensors = content["header"], content["tensors"]
    if zlib.crc32(text.encode()) != content["checksum"]:
        raise ValueError("its header has another checksum")
    header = content["header"] = json.loads(text)
    for key in _HEADER:
        header[key]
    for key, (*kind, _) in header["tensors"].items():
        if key not in tensors:
            raise ValueError(f"no {key}")
        if _kind(tensors[key]) != kind:
            raise ValueError(f"{key} is {_kind(tensors[key])} instead of {kind}")


def _tensors(
    marks: Sequence[Mark], rows: Sequence[Any], r_factors: RFactors | None
) -> Iterator[tuple[str, Tensor]]:
    for i, mark in enumerate(marks):
        for what in PARTS:
            for name, tensor in getattr(mark, what).items():
                yield _key(i, what, name), tensor
    if r_factors is not None:
        for name, array in r_factors.arrays():
            own = np.require(array, requirements=["C", "W"])
            yield f"{_R_FACTORS}{name}", torch.from_numpy(own)
    known = [np.asarray(own, dtype=np.int64) for own in rows if own is not None]
    yield _LENGTHS, torch.tensor([-1 if own is None else len(own) for own in rows])
    yield _ROWS, torch.from_numpy(np.concatenate([np.empty(0, np.int64), *known]))


def _key(i: int, what: str, name: str) -> str:
    return f"{what} of {name} at mark {i}"


def _kind(tensor: Tensor) -> list[Any]:
    """Type and shape as JSON holds them."""
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _checksum(tensor: Tensor) -> int:
    dense = tensor.contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # empty and single ones may have stride 0
    return zlib.crc32(flat.view(torch.uint8).numpy().data)
