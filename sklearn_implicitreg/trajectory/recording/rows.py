"""Which rows of a data set a batch holds, found by their content, or else its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sklearn_implicitreg.adapters.torch.generators import generators_in, preserved_rng, seeded
from sklearn_implicitreg.adapters.torch.loaders import is_of_dicts
from sklearn_implicitreg.exceptions import ModelStateWarning, warn_user
from sklearn_implicitreg.problem import Indices, Params
from sklearn_implicitreg.trajectory.batches import tensors_of_batch
from sklearn_implicitreg.trajectory.marks import Kept, Mark
from sklearn_implicitreg.trajectory.window import Step

_CHUNK = 4096  # rows that are turned into keys at once
_TRIED = 64  # rows that are read twice
_KINDS = (torch.float32, torch.float16, torch.bfloat16)


class RowFinder:
    """Positions of rows in a data set; equal rows are interchangeable."""

    # A row is known by a hash of all its numbers, as float32, in which nets see them. Rows that a
    # transform changes at every visit are not found: their tensors are kept.

    def __init__(self, data: Any):
        keys = np.fromiter(chain.from_iterable(_keys(part) for part in _chunks(data)), np.int64)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def find(self, batch: Any) -> Indices | None:
        """Positions of the rows of a batch; None if one of them is not in the data set."""
        try:
            keys = np.fromiter(_keys(batch), np.int64)
        except ValueError:  # not one array per row: a graph, a ragged batch
            return None
        place = np.searchsorted(self._sorted, keys)
        known = np.array_equal(self._sorted.take(place, mode="clip"), keys)
        return self._order[place] if known else None


@dataclass(frozen=True)
class _Named:
    """One batch of the next step."""

    rows: Indices | None
    size: int | None
    weight: float | None
    tensors: Params | None  # copies of them, where they are no rows, or may join such
    n_before: int  # backward passes since the batch before it was named, or since the last step


class Batches:
    """What is named of the batches of the next step; ``shelf`` makes where tensors are kept."""

    def __init__(self, shelf: Callable[[], Kept] | None = None) -> None:
        self.finder: RowFinder | None = None
        self._shelf = shelf
        self._kept: Kept | None = None
        self._named: list[_Named] = []
        self._n_passes = 0  # since a batch was named, or since the last step
        # Whether batches of one step were seen to have passes of their own; named before these?
        self._apart = False
        self._first: bool | None = None
        # One gradient when a batch was named, and after the last step.
        self._seen = self._spent = _smallest(())

    def name(self, rows: Any, *, accumulate: bool, weight: Any, given: Iterable[Tensor]) -> None:
        """Take row numbers, their number, or the batch itself, which is looked up.

        ``given`` are the gradients that wait for the step.
        """
        own = None if weight is None else _weight(weight)
        found, size = self._looked_up(rows)
        keeps = self._shelf is not None and _has_rows(rows) and (found is None or accumulate)
        tensors = tensors_of_batch(rows) if keeps else None
        gradients = list(given)
        if self._named and accumulate and (own is None) != (self._named[0].weight is None):
            raise ValueError(
                "Expected weight= for every batch of a step or for none, got it for some; give "
                "each the factor by which its loss is multiplied."
            )
        if self._named and not accumulate and self._added(gradients):
            raise ValueError(
                "Expected one batch(...) for each step, got a second one after a backward pass and "
                "before the optimizer stepped; where gradients are accumulated call "
                "batch(rows, accumulate=True), with weight= unless each loss is divided by the "
                "number of batches. Where a step was left out, call optimizer.zero_grad() first; "
                "where another optimizer took it, start a new record(...) with that one."
            )
        before = self._named if accumulate else []
        self._named = [*before, _Named(found, size, own, tensors, self._n_passes)]
        self._n_passes = 0
        self._seen = _smallest(gradients)

    def passed(self) -> None:
        """Count a backward pass."""
        self._n_passes += 1

    def _looked_up(self, rows: Any) -> tuple[Indices | None, int | None]:
        if not _has_rows(rows):
            return None, _size(rows)
        found = _positions(rows, self.finder)
        if found is None and self.finder is not None:
            found = self.finder.find(rows)
        return found, n_rows_of(rows) if found is None else len(found)

    def _added(self, gradients: list[Tensor]) -> bool:
        """Whether the gradients of the batch that was named last wait for a step."""
        (now, version), (then, before) = _smallest(gradients), self._seen
        spent, last = self._spent
        if then is not None and (then is not spent or before != last):
            # It was named after its backward pass: another tensor, or one that was zeroed in place
            # first, is of a step that was not made.
            return now is then and version == before + 1
        return (now is not then or version != before) and _waits(gradients)

    def taken(self, given: Iterable[Tensor]) -> dict[str, Any]:
        """What a step holds of its batches, which are then forgotten; nothing of none."""
        self._spent = _smallest(given)
        named, self._named = self._with_passes(), []
        self._n_passes = 0
        if not named:
            return {}
        rows = [batch.rows for batch in named if batch.rows is not None]
        sizes = [batch.size for batch in named if batch.size is not None]
        plain = len(named) < 2 and all(batch.weight in (None, 1.0) for batch in named)
        seen = () if len(rows) == len(named) else self._put([batch.tensors for batch in named])
        return {
            "seen": seen,
            "rows": np.concatenate(rows) if len(rows) == len(named) else None,
            "batch_size": sum(sizes) if len(sizes) == len(named) else None,
            "parts": () if plain else tuple((batch.size, batch.weight) for batch in named),
        }

    def _with_passes(self) -> list[_Named]:
        """The named batches that had a backward pass; none where the factors are not known then."""
        # Batches may be named before their passes or after them, or all at once for one pass. Only
        # where the passes were seen to come between is a batch without one known to be left out.
        before = [batch.n_before for batch in self._named]
        after = [*before[1:], self._n_passes]
        self._apart = self._apart or any(before[1:])
        if before and bool(before[0]) != bool(after[-1]):
            self._first = not before[0]
        if not self._apart or all(before) or all(after):
            return self._named
        own = after if self._first else before
        known = self._first is not None and all(b.weight is not None for b in self._named)
        return [b for b, n in zip(self._named, own, strict=True) if n and known]

    def _put(self, batches: Sequence[Params | None]) -> tuple[int, ...]:
        """Keep the tensors of all batches of a step; their places, none if some are not known."""
        known = [batch for batch in batches if batch is not None]
        if self._shelf is None or len(known) < len(batches):
            return ()
        self._kept = kept = self._kept or self._shelf()
        first = len(kept.marks)
        for batch in known:
            kept.put(Mark(len(kept.marks), 0, batch, {}, {}, {}))
        if kept.failed is not None:
            self._shelf = None
            warn_user(
                f"Batches cannot be written to {kept.folder} ({kept.failed.strerror}): of the "
                "steps from here on only their sizes are known. Give directory= a folder with "
                "more room.",
                ModelStateWarning,
            )
            return ()
        return tuple(range(first, len(kept.marks)))

    def close(self) -> None:
        """Called when recording ends."""
        if self._kept is not None:
            self._kept.close(())

    def with_kept(self, steps: Iterable[Step]) -> tuple[Step, ...]:
        """Steps with the tensors of their batches, of which they know the places."""
        marks = () if self._kept is None else self._kept.recorded()[0]

        def there(seen: tuple[int, ...]) -> tuple[Mark, ...]:
            return tuple(marks[i] for i in seen) if max(seen) < len(marks) else ()

        return tuple(replace(s, seen=there(s.seen)) if s.seen else s for s in steps)


def _weight(weight: Any) -> float:
    if isinstance(weight, Tensor | np.ndarray) and not weight.ndim:
        weight = weight.item()
    real = isinstance(weight, Real) and not isinstance(weight, bool | np.bool_)
    if not real or not 0 < weight < float("inf"):
        raise ValueError(
            "Expected weight to be the factor > 0 by which the loss of the batch was multiplied, "
            f"such as 1 / 4, got {weight!r}."
        )
    return float(weight)


def _smallest(gradients: Iterable[Tensor]) -> tuple[Tensor | None, int]:
    """One gradient, which costs little to hold, and how often it was changed in place."""
    one = min(gradients, key=Tensor.numel, default=None)
    return one, 0 if one is None else one._version


def _waits(gradients: list[Tensor]) -> bool:
    """Whether the next step would be on these gradients."""
    # Zeroed ones, and infinite ones that a scaler leaves out, are of a step that was not made.
    sizes = [float(gradient.detach().norm()) for gradient in gradients]
    return any(sizes) and bool(np.isfinite(sizes).all())


def n_rows_of(batch: Any) -> int | None:
    """Number of rows of a batch, by its first array."""
    first = next(_leaves(batch), None)
    return None if first is None else len(first)


def is_batch(part: Any) -> bool:
    """Whether a batch of data was given, not row numbers or their number."""
    return isinstance(part, Mapping) or _is_nested(part)


def holds_inputs(batch: Any, inputs: Any) -> bool:
    """Whether the largest input of a module that has the size of a part of a batch is that part."""

    # In any order, since a step may turn axes; and cast to fewer digits.
    def ordered(leaf: Any, kind: torch.dtype) -> Tensor:
        return torch.from_numpy(leaf).to(kind).float().ravel().nan_to_num().sort().values

    own, given = list(_leaves(batch)), [leaf for leaf in _leaves(inputs) if leaf.size]
    sizes = {part.size for part in own}
    largest = max((leaf for leaf in given if leaf.size in sizes), key=np.size, default=None)
    if largest is None:
        return not given
    seen = ordered(largest, torch.float32)
    same = (part for part in own if part.size == largest.size)
    return any(torch.equal(ordered(part, kind), seen) for part in same for kind in _KINDS)


def _size(rows: Any) -> int:
    """Number of rows that was given in their place."""
    if isinstance(rows, Tensor | np.ndarray):
        rows = rows.item()
    if isinstance(rows, bool | np.bool_) or not isinstance(rows, int | np.integer) or rows < 1:
        raise ValueError(
            "Expected row numbers, their number (at least 1) or the batch itself, got "
            f"{rows!r}; give an array such as np.arange(10, 20)."
        )
    return int(rows)


def _positions(rows: Any, finder: RowFinder | None) -> Indices | None:
    """Row numbers, unless a batch of data was given."""
    if is_batch(rows):
        return None
    array = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        return None
    if array.dtype.kind == "b":
        array = np.flatnonzero(array)
    if array.dtype.kind not in "iu" and len(array) and finder is not None:
        return None  # a batch of single numbers
    if array.dtype.kind not in "iu" or not len(array) or array.min() < 0:
        raise ValueError(
            "Expected row numbers that are integers >= 0, at least one, got "
            f"{array.tolist()[:5]} of {array.dtype}; give positions in the data set."
        )
    return np.array(array, dtype=np.int64)


def _has_rows(part: Any) -> bool:
    several = isinstance(part, Mapping | Sequence) and not isinstance(part, str)
    return several or getattr(part, "ndim", 0) > 0


def _is_nested(batch: Any) -> bool:
    return isinstance(batch, list | tuple) and any(_has_rows(part) for part in batch)


def _chunks(data: Any) -> Iterator[Any]:
    if isinstance(data, Dataset) or is_of_dicts(data):
        if isinstance(data, IterableDataset):
            raise ValueError("Expected a data set with numbered rows, got a stream.")
        with preserved_rng(torch.device("cpu")), seeded(generators_in(data)):
            yield from DataLoader(data, batch_size=_CHUNK)
        return
    yield data


def differs(data: Any) -> bool:
    """Whether rows of a data set differ at each reading, so that none can be known again."""
    numbered = isinstance(data, Dataset) or is_of_dicts(data)
    if not numbered or isinstance(data, IterableDataset):
        return False
    n: int = len(data)
    places = np.unique(np.linspace(0, n - 1, min(n, _TRIED), dtype=np.int64)).tolist()
    own = generators_in(data)
    with preserved_rng(torch.device("cpu")):
        readings = []
        for _ in range(2):
            with seeded(own):
                readings.append([leaf for i in places for leaf in _leaves(data[i])])
    pairs = zip(*readings, strict=False)
    return not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _keys(batch: Any) -> Iterator[int]:
    leaves = list(_leaves(batch))
    n = len(leaves[0]) if leaves else 0
    if not leaves or any(len(leaf) != n for leaf in leaves):
        raise ValueError(
            f"Expected numeric arrays of equally many rows, got {[len(leaf) for leaf in leaves]}."
        )
    for start in range(0, n, _CHUNK):
        parts = [np.asarray(leaf[start : start + _CHUNK], dtype=np.float32) for leaf in leaves]
        rows = np.hstack([part.reshape(len(part), -1) for part in parts]) + np.float32(0)
        yield from map(hash, rows.view(f"V{rows.shape[1] * 4}").ravel().tolist())


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Tensor):
        plain = batch.detach().cpu()
        if plain.ndim:
            yield (plain.float() if plain.is_floating_point() else plain).numpy()
    elif isinstance(batch, Mapping):
        for key in sorted(batch, key=str):  # a collate function may give them in another order
            yield from _leaves(batch[key])
    elif _is_nested(batch):
        for part in batch:
            yield from _leaves(part)
    else:
        array = np.asarray(batch)
        if array.ndim and array.dtype.kind in "biuf":
            yield array
