"""Paths as npz files, without pickle."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, path
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.trajectory.marks import SUMS, Mark, StoredMark
from sklearn_implicitreg.trajectory.r_factors import RFactors

__all__ = ["Archive", "read", "write"]

_FORMAT = 1
_IN_MEMORY = 2**30  # bytes of a file up to which its marks are read at once
# NumPy has no such type; the bits are kept.
_BITS = {torch.bfloat16: torch.int16}


def write(
    file: str | PathLike[str],
    header: dict[str, Any],
    marks: Sequence[Mark],
    rows: Sequence[Any],
    r_factors: RFactors | None,
) -> None:
    """Write marks, the rows of batches, R factors and a header that JSON can hold."""
    first = marks[0]
    full = {
        **header,
        "format": _FORMAT,
        "marks": [[mark.step, mark.epoch] for mark in marks],
        "dtypes": {n: str(t.dtype).removeprefix("torch.") for n, t in first.weights.items()},
        "gradients": bool(first.consumed),
        "r_factors": None if r_factors is None else r_factors.header(),
    }

    def arrays() -> Iterator[tuple[str, npt.NDArray[Any]]]:
        yield "header", np.array(json.dumps(full))
        for i, mark in enumerate(marks):
            yield from _tensors_of(mark, f"{i}/")
        if r_factors is not None:
            yield from ((f"R factors/{name}", array) for name, array in r_factors.arrays())
        known = [np.asarray(own, dtype=np.int64) for own in rows if own is not None]
        yield "batch_lengths", np.array([-1 if own is None else len(own) for own in rows])
        yield "batch_rows", np.concatenate([np.empty(0, np.int64), *known])

    _write_arrays(file, arrays())


def read(
    file: str | PathLike[str],
) -> tuple[dict[str, Any], tuple[Mark, ...], list[Any], RFactors | None]:
    """Header, marks, rows of batches and R factors of a file that :func:`write` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is cut short, not a path, or of another version.
    """
    try:
        # Opened here: np.load does not close a file whose directory it cannot read.
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as stored:
            header = json.loads(str(stored["header"]))
            if header.get("format") != _FORMAT:
                raise _OtherVersion(
                    f"Expected a path of format {_FORMAT}, got {header.get('format')!r}; "
                    "read it with the version that wrote it."
                )
            marks = _marks(file, header, stored)
            lengths, rows = stored["batch_lengths"], stored["batch_rows"]
            r_factors = _r_factors(header, stored)
    except (FileNotFoundError, _OtherVersion):
        raise
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            "Expected a file written by Trajectory.save, got one that cannot be read "
            f"({error}); was it cut short?"
        ) from error
    ends = np.cumsum(np.maximum(lengths, 0))
    batches = [None if n < 0 else rows[end - n : end] for n, end in zip(lengths, ends, strict=True)]
    return header, marks, batches, r_factors


def _r_factors(header: dict[str, Any], stored: Any) -> RFactors | None:
    if not header.get("r_factors"):
        return None
    prefix = "R factors/"
    own = {n.removeprefix(prefix): stored[n] for n in stored.files if n.startswith(prefix)}
    return RFactors.read(header["r_factors"], own)


class _OtherVersion(ValueError):
    """A whole file that this version does not read."""


def _marks(file: str | PathLike[str], header: dict[str, Any], stored: Any) -> tuple[Mark, ...]:
    dtypes = {name: getattr(torch, kind) for name, kind in header["dtypes"].items()}
    gradients = header["gradients"]
    wanted = ["weights", *(s for s in SUMS if gradients or s != "consumed")]
    numbered = list(enumerate(header["marks"]))
    inner = set(range(1, len(numbered) - 1)) if header.get("r_factors") else set()
    here = set(stored.files)
    for i in set(range(len(numbered))) - inner:
        for what in wanted:
            lost = [name for name in dtypes if f"{i}/{what}/{name}" not in here]
            if lost:
                raise KeyError(f"no {what} of {lost} at mark {i}")
    if path.getsize(file) > _IN_MEMORY:
        return tuple(
            Mark(step, epoch, {}, {}, {}, {})
            if i in inner
            else StoredMark(step, epoch, Archive(file, f"{i}/", dtypes, gradients))
            for i, (step, epoch) in numbered
        )

    def tensors(i: int, what: str) -> dict[str, torch.Tensor]:
        if what not in wanted or i in inner:
            return {}
        kinds = {n: d if what == "weights" else torch.float64 for n, d in dtypes.items()}
        return {n: _read_tensor(stored[f"{i}/{what}/{n}"], kind) for n, kind in kinds.items()}

    return tuple(
        Mark(step, epoch, tensors(i, "weights"), *(tensors(i, what) for what in SUMS))
        for i, (step, epoch) in numbered
    )


@dataclass(frozen=True)
class Archive:
    """Where the tensors of one mark are in an npz file.

    Parameters
    ----------
    file : path-like
    prefix : str
        Of its arrays in the file.
    dtypes : dict of str to torch.dtype
        Tensors and the types of the weights.
    gradients : bool
        Whether the file has the sums of the consumed gradients.
    """

    file: str | PathLike[str]
    prefix: str
    dtypes: Mapping[str, torch.dtype]
    gradients: bool

    def read(self, what: str) -> Params:
        """Weights or one of the sums."""
        if what == "consumed" and not self.gradients:
            return {}
        try:
            with np.load(self.file, allow_pickle=False) as stored:
                return {
                    name: _read_tensor(
                        stored[f"{self.prefix}{what}/{name}"],
                        dtype if what == "weights" else torch.float64,
                    )
                    for name, dtype in self.dtypes.items()
                }
        except FileNotFoundError as error:
            raise ValueError(
                f"Expected the marks of this path in {self.file}, which is gone; load a path "
                "from where its file is."
            ) from error

    def kept(self) -> Archive:
        """The file stays where it is."""
        return self


def _tensors_of(mark: Mark, prefix: str = "") -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Names and arrays of a mark, as they are stored."""
    for what in ("weights", *SUMS):
        for name, tensor in getattr(mark, what).items():
            bits = _BITS.get(tensor.dtype)
            plain = tensor.detach().cpu()
            array = (plain if bits is None else plain.view(bits)).numpy()
            yield f"{prefix}{what}/{name}", array


def _read_tensor(array: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
    """Tensor of a stored array."""
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype in _BITS else tensor


def _write_arrays(
    file: str | PathLike[str], arrays: Iterator[tuple[str, npt.NDArray[Any]]]
) -> None:
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
