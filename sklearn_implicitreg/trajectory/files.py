"""Trajectories as files of torch.save, with a checksum of every tensor."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.trajectory.marks import Mark, Place, Source, StoredMark
from sklearn_implicitreg.trajectory.r_factors import RFactors

__all__ = ["read", "write"]

_FORMAT = 2
_BY_NAME = 2**30  # bytes of a file above which another process opens it instead of taking a copy
_HEADER = ("layouts", "marks", "r_factors", "tensors", "checksums")
_LENGTHS, _ROWS, _R_FACTORS = "lengths of batches", "rows of batches", "R factors "


def write(
    file: str | PathLike[str],
    header: dict[str, Any],
    marks: Sequence[Mark],
    rows: Sequence[Any],
    r_factors: RFactors | None,
) -> None:
    """Write marks, the rows of batches, R factors and a header that JSON can hold."""
    tensors = dict(_others(rows, r_factors))
    checksums = {key: _checksum(tensor) for key, tensor in tensors.items()}
    layouts: list[tuple[Place, ...]] = []
    numbered = []
    for i, mark in enumerate(marks):
        # One tensor for each mark: torch.load takes 80 microseconds for every one.
        places, block = mark.packed()
        if places not in layouts:
            layouts.append(places)
        tensors[_mark(i)] = block
        own = [_checksum(block[place.start : place.stop]) for place in places]
        numbered.append([mark.step, mark.epoch, layouts.index(places), own])
    full = {
        **header,
        "layouts": [[_plain(place) for place in places] for places in layouts],
        "marks": numbered,
        "r_factors": None if r_factors is None else r_factors.header(),
        "tensors": {key: _kind(tensor) for key, tensor in tensors.items()},
        "checksums": checksums,
    }
    text = json.dumps(full)
    content = {
        "format": _FORMAT,
        "header": text,
        "checksum": zlib.crc32(text.encode()),
        "tensors": tensors,
    }
    target = Path(file)
    # A file in a folder of its own has a name that nobody else uses, and the usual permissions.
    with TemporaryDirectory(prefix=".trajectory-", dir=target.parent) as folder:
        part = Path(folder, "part")
        torch.save(content, part)
        os.replace(part, target)


def read(
    file: str | PathLike[str],
) -> tuple[dict[str, Any], tuple[Mark, ...], list[Any], RFactors | None]:
    """Header, marks, rows of batches and R factors of a file that :func:`write` wrote."""
    place = Path(file).absolute()
    content = _content(place)
    saved, header = _SavedFile(place, content["checksum"], content), content["header"]
    layouts = [tuple(_place(plain) for plain in layout) for layout in header["layouts"]]
    marks = tuple(
        StoredMark(step, epoch, _SavedMark(saved, i, layouts[layout], checksums))
        for i, (step, epoch, layout, checksums) in enumerate(header["marks"])
    )
    others = {key: content["tensors"][key].numpy() for key in header["checksums"]}
    lengths, rows = others[_LENGTHS], others[_ROWS]
    ends = np.cumsum(np.maximum(lengths, 0))
    batches = [None if n < 0 else rows[end - n : end] for n, end in zip(lengths, ends, strict=True)]
    if header["r_factors"] is None:
        return header, marks, batches, None
    own = {k.removeprefix(_R_FACTORS): a for k, a in others.items() if k.startswith(_R_FACTORS)}
    return header, marks, batches, RFactors.read(header["r_factors"], own)


class _SavedFile:
    """A file that is mapped into memory."""

    def __init__(self, file: Path, checksum: int, content: dict[str, Any] | None = None):
        self.file, self._checksum, self._content = file, checksum, content

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Another process opens the file again."""
        return _SavedFile, (self.file, self._checksum)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the file."""
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
        tensors: dict[str, Tensor] = self._content["tensors"]
        return tensors


@dataclass(frozen=True)
class _SavedMark(Source):
    """One mark of a file, whose tensors are compared with their checksums at the first use."""

    saved: _SavedFile
    i: int
    places: tuple[Place, ...]
    checksums: list[int]
    sound: set[Place] = field(default_factory=set)

    def bytes(self, begin: int, end: int) -> Tensor:
        """Part of the block of the mark."""
        block = self.saved.tensors[_mark(self.i)]
        for place, checksum in zip(self.places, self.checksums, strict=True):
            if begin <= place.start and place.stop <= end and place not in self.sound:
                if _checksum(block[place.start : place.stop]) != checksum:
                    raise ValueError(
                        f"Expected the numbers that were saved in {self.saved.file}, got "
                        f"{place.what} of {place.name} at {_mark(self.i)} with another checksum; "
                        "the file is damaged: load a copy of it, or record again."
                    )
                self.sound.add(place)
        return block[begin:end]

    def mapped(self) -> Tensor:
        """The whole block."""
        return self.bytes(0, max((place.stop for place in self.places), default=0))

    def kept(self) -> _SavedMark | None:
        """A large file stays where it is."""
        file = self.saved.file
        return self if file.is_file() and file.stat().st_size > _BY_NAME else None


def _content(file: Path) -> dict[str, Any]:
    """Header and tensors of a file, which are what the header says."""
    content: dict[str, Any]
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        version = content["format"]
        if version == _FORMAT:
            _check(content)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"Expected a file written by Trajectory.save, got {file}, which cannot be read "
            f"({reason}); was it cut short?"
        ) from error
    if version != _FORMAT:
        raise ValueError(
            f"Expected a trajectory of format {_FORMAT}, got {version!r} in {file}; read it with "
            "the version that wrote it."
        )
    return content


def _check(content: dict[str, Any]) -> None:
    """Parse the header, and compare the tensors with it."""
    text, tensors = content["header"], content["tensors"]
    if zlib.crc32(text.encode()) != content["checksum"]:
        raise ValueError("its header has another checksum")
    header = content["header"] = json.loads(text)
    for key in _HEADER:
        header[key]
    for key, kind in header["tensors"].items():
        if key not in tensors:
            raise ValueError(f"no {key}")
        if _kind(tensors[key]) != kind:
            raise ValueError(f"{key} is {_kind(tensors[key])} instead of {kind}")
        if key in header["checksums"] and _checksum(tensors[key]) != header["checksums"][key]:
            raise ValueError(f"{key} with another checksum")


def _others(rows: Sequence[Any], r_factors: RFactors | None) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a file that belong to no mark."""
    if r_factors is not None:
        for name, array in r_factors.arrays():
            own = np.require(array, requirements=["C", "W"])
            yield f"{_R_FACTORS}{name}", torch.from_numpy(own)
    known = [np.asarray(own, dtype=np.int64) for own in rows if own is not None]
    yield _LENGTHS, torch.tensor([-1 if own is None else len(own) for own in rows])
    yield _ROWS, torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *known]))


def _mark(i: int) -> str:
    return f"mark {i}"


def _plain(place: Place) -> list[Any]:
    """A place as JSON holds it."""
    return [place.what, place.name, _name(place.dtype), place.shape, place.start]


def _place(plain: list[Any]) -> Place:
    what, name, dtype, shape, start = plain
    return Place(what, name, getattr(torch, dtype), tuple(shape), start)


def _kind(tensor: Tensor) -> list[Any]:
    """Type and shape as JSON holds them."""
    return [_name(tensor.dtype), list(tensor.shape)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of the bytes of a contiguous tensor."""
    return zlib.crc32(tensor.numpy().data)
