"""Batches on their way to a device: cast and copied, read ahead, cut where memory is short."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sklearn_implicitreg.adapters.torch.data import Batch, cuts_into_rows, map_tensors, rows_in
from sklearn_implicitreg.problem import BlockGradient
from sklearn_implicitreg.problem.gradient import summed
from sklearn_implicitreg.problem.row_models import is_out_of_memory

TorchProblem = Any  # which imports this module


def moved(
    batch: Batch, device: torch.device, dtype: torch.dtype, kept: tuple[bool, ...] = ()
) -> Batch:
    """A copy of a batch on a device, floats in a type; ``kept`` are integers that stay such."""
    alone = isinstance(batch.inputs, Tensor)
    places = itertools.count()

    def move(tensor: Tensor) -> Tensor:
        place = next(places)
        own: torch.dtype | None = dtype
        if tensor.is_complex():
            own = dtype.to_complex()
        elif tensor.dtype == torch.bool:
            own = dtype if alone else None
        elif not tensor.is_floating_point() and kept:
            own = None if kept[min(place, len(kept) - 1)] else dtype
        return _copied(tensor, device, own)

    def move_target(tensor: Tensor) -> Tensor:
        return _copied(tensor, device, dtype if tensor.is_floating_point() else None)

    weight = None if batch.weight is None else batch.weight.to(device, dtype)
    target = batch.target  # most batches are two tensors, of which many are moved
    return Batch(
        move(batch.inputs) if alone else map_tensors(move, batch.inputs),
        move_target(target) if isinstance(target, Tensor) else map_tensors(move_target, target),
        weight,
    )


def _copied(tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    # A copy always: a module or loss that works in place would write to the user's rows.
    pinned = device.type == "cuda" and tensor.device.type == "cpu" and tensor.is_pinned()
    return tensor.to(device, dtype, copy=True, non_blocking=pinned)


class ReadAhead(Iterator[Batch]):
    """Batches, the next of which may be read while the device computes with the one before."""

    def __init__(self, batches: Iterator[Batch], dtype: torch.dtype, kept: tuple[bool, ...]):
        self._batches, self._dtype, self._kept = batches, dtype, kept
        self._held: list[Batch | Exception] = []

    def __next__(self) -> Batch:
        found = self._held.pop() if self._held else next(self._batches)
        if isinstance(found, Exception):
            raise found
        return found

    def ahead(self) -> None:
        """Read the next batch now, in pinned memory where that makes its copy asynchronous."""
        if self._held:
            return
        pinning = torch.cuda.is_available()
        try:
            for batch in itertools.islice(self._batches, 1):
                own = moved(batch, torch.device("cpu"), self._dtype, self._kept)
                self._held.append(Batch(*map_tensors(_pinned, tuple(own))) if pinning else own)
        except Exception as error:  # of the reading, not of what is computed meanwhile
            self._held.append(error)


def _pinned(tensor: Tensor) -> Tensor:
    plain = tensor.device.type == "cpu" and tensor.layout == torch.strided
    return tensor.pin_memory() if plain else tensor


def within_memory(
    problem: TorchProblem,
    batch: Batch,
    at_once: int | None,
    first: bool,
    ahead: Callable[[], None] | None,
) -> tuple[BlockGradient, int | None]:
    """Gradient on a batch, in parts where memory is short; and how many rows fit at once."""
    # What batch statistics, drawn masks and edges of a graph depend on is not cut.
    whole = problem.batch_normalized or problem.rows.together or problem._drawn is not None

    def of_part(part: Batch) -> BlockGradient:
        found: BlockGradient = problem._block(problem.to_device(part), first, ahead=ahead)
        return found

    while True:
        parts = [batch] if at_once is None else cut(batch, at_once)
        try:
            return (of_part(batch) if len(parts) == 1 else summed(map(of_part, parts))), at_once
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            on_device = problem.device.type != "cpu"
            at_once = _fewer(batch, rows_in(parts[0]), error, whole=whole, on_device=on_device)


def _fewer(batch: Batch, n_rows: int, error: Exception, *, whole: bool, on_device: bool) -> int:
    """Half as many rows; MemoryError where they cannot be cut."""
    together = whole or not cuts_into_rows(batch[:2], rows_in(batch))
    if n_rows > 1 and not together:
        return -(-n_rows // 2)
    rows, advice = "1 row", ""
    if n_rows > 1:
        rows, advice = (
            f"{n_rows} rows, which pass together",
            "a smaller batch_size if training had it, ",
        )
    advice += "a larger device, or device='cpu'" if on_device else "a machine with more memory"
    raise MemoryError(
        f"Expected memory for the forward and backward pass of {rows}, got "
        f"{str(error) or type(error).__name__}; use {advice}."
    ) from error


def cut(batch: Batch, n: int) -> list[Batch]:
    """Parts of at most n rows."""
    parts = [slice(start, start + n) for start in range(0, rows_in(batch), n)]
    return [Batch(*map_tensors(operator.itemgetter(part), tuple(batch))) for part in parts]
