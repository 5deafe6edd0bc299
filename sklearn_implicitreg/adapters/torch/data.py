"""Rows for a module, batch by batch, each once and in a fixed order; those of arrays."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from sklearn.utils import check_consistent_length
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from sklearn_implicitreg.adapters.registry import Data
from sklearn_implicitreg.exceptions import ParameterError
from sklearn_implicitreg.problem import Indices, Weights
from sklearn_implicitreg.problem.frozen import tensors_in
from sklearn_implicitreg.problem.parameters import as_numbers, shown

SCALE_ROWS = 4  # rows whose own gradients tell the size of what the mean cancels
_PIECE = 2**18  # labels that are sorted at a time
_STREAM = (
    "Expected rows that can be picked by number, got a stream; give arrays or a Dataset with a "
    "length."
)


class Batch(NamedTuple):
    """Inputs (Tensor, dict or tuple of Tensors), target and sample weights of some rows."""

    inputs: Any
    target: Any
    weight: Tensor | None


@dataclass(frozen=True)
class Rows:
    """Rows that can be read again, in batches; ``n_rows`` is None for a stream."""

    read: Callable[[int, Tensor | None], Iterator[Batch]]  # of a batch size, in an order
    n_rows: int | None
    train_batch_size: int | None = None  # of the loader they came in
    pick: Callable[[Indices], Batch] | None = None  # rows by number
    row_size: int = 1  # numbers in one row's inputs
    classes: Tensor | None = None  # sorted labels, where y came as an array
    names: npt.NDArray[Any] | None = None  # sorted names in y, coded as 0, 1, ...
    integers: tuple[bool, ...] = ()  # which tensors of the inputs hold integers
    in_tensors: bool = False  # inputs came as tensors, as a training loop has them
    together: bool = False  # inputs of other lengths than y: all rows pass at once
    n_passes: int = 1  # over rows that differ at each reading

    def few(self, n: int) -> Batch | None:
        """At most n rows, from all over where they can be picked."""
        if self.pick is None or self.together or not self.n_rows:
            return next(self.read(n, None), None)
        return self.pick(self.few_places(n))

    def few_places(self, n: int) -> Indices:
        """Numbers of at most n rows, at random (always the same): rows may come in a pattern."""
        size = self.n_rows or 0
        drawn = np.random.default_rng(0).choice(size, min(n, size), replace=False, shuffle=False)
        return np.sort(drawn)

    def picked(self, batches: Sequence[Indices]) -> Iterator[Batch]:
        """Batches of rows picked by number, with their own weights."""
        if self.pick is None:
            raise ValueError(_STREAM)
        self._check_numbers(batches)
        return map(self.pick, batches)

    def _check_numbers(self, batches: Sequence[Indices]) -> None:
        """Raise ValueError if a row number is none of these rows."""
        lowest = min((int(rows.min()) for rows in batches if len(rows)), default=0)
        highest = max((int(rows.max()) for rows in batches if len(rows)), default=-1)
        if lowest < 0 or highest >= (self.n_rows or 0):
            raise ValueError(
                f"Expected row numbers in 0..{(self.n_rows or 0) - 1}, got {lowest} to "
                f"{highest}; give the data set that recorder.batch(rows) counts in."
            )

    def take(self, rows: Indices, weights: Weights) -> Rows:
        """Some of the rows, in the order given, their weights multiplied by others."""
        if self.pick is None:
            raise ValueError(_STREAM)
        self._check_numbers([rows])
        pick, factors = self.pick, torch.as_tensor(weights)

        def read(batch_size: int, order: Tensor | None) -> Iterator[Batch]:
            places = np.arange(len(rows)) if order is None else order.numpy()
            for start in range(0, len(rows), batch_size):
                part = places[start : start + batch_size]
                batch, own = pick(rows[part]), factors[part]
                yield batch._replace(weight=own if batch.weight is None else own * batch.weight)

        return replace(self, read=read, n_rows=len(rows), pick=lambda i: pick(rows[i]))

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[Batch]:
        """Batches of consecutive rows, or in a random order by a seed; ValueError for NaN, inf."""
        order = None
        if seed is not None and self.n_rows:
            order = torch.randperm(self.n_rows, generator=torch.Generator().manual_seed(seed))
        for batch in self.read(batch_size, order):
            for tensor in tensors_in((batch.inputs, batch.target)):
                if not all_finite(tensor):
                    raise ValueError("Expected finite data, got NaN or inf in X or y.")
            yield batch

    def named_like(self, fitted: Rows) -> Rows:
        """The same rows with names numbered as they are in the fitted rows."""
        if self.names is None or fitted.names is None:
            return self
        new = sorted(set(self.names.tolist()) - set(fitted.names.tolist()))
        if new:
            raise ValueError(
                f"Expected the labels of the fitted rows, {fitted.names.tolist()}, got also {new}."
            )
        codes = torch.as_tensor(np.searchsorted(fitted.names, self.names))

        def renamed(batch: Batch) -> Batch:
            return batch._replace(target=codes[batch.target])

        def read(batch_size: int, order: Tensor | None) -> Iterator[Batch]:
            return map(renamed, self.read(batch_size, order))

        def pick(rows: Indices) -> Batch:
            assert self.pick is not None  # arrays, which alone hold names, have it
            return renamed(self.pick(rows))

        return replace(self, read=read, pick=pick, names=fitted.names, classes=fitted.classes)


def few_rows(batch: Batch, n: int) -> Batch | None:
    """About n rows of a batch; None if rows are not the first axis of everything in it."""
    n_rows = rows_in(batch)
    if not cuts_into_rows(batch[:2], n_rows):
        return None  # as a collate_fn may have it
    few = operator.itemgetter(slice(None, None, max(1, n_rows // n)))
    return Batch(*map_tensors(few, tuple(batch)))


def of_equal_weight(batch: Batch, zero: bool = False) -> list[Batch]:
    """The rows of each weight, for a loss that is one mean; those of weight zero only if asked."""
    values: Tensor | list[Any] = [] if batch.weight is None else batch.weight.unique()
    if batch.weight is None or len(values) < 2 or not cuts_into_rows(batch[:2], len(batch.weight)):
        return [batch]
    parts = [batch.weight == value for value in values if zero or value > 0]
    return [Batch(*map_tensors(operator.itemgetter(rows), tuple(batch))) for rows in parts]


def rows_in(batch: Batch) -> int:
    """Number of rows of a batch: the length of its first tensor, or of a list of anything."""
    alone = batch.inputs
    if isinstance(alone, Tensor) and alone.ndim:
        return len(alone)
    if isinstance(alone, PackedSequence):
        return int(alone.batch_sizes[0])
    for tensor in tensors_in(batch[:2]):
        if tensor.ndim:
            return len(tensor)
    return len(alone) if hasattr(alone, "__len__") else 1


def cuts_into_rows(tree: Any, n_rows: int) -> bool:
    """Whether everything in a tree is a tensor of so many rows (or None)."""
    if isinstance(tree, Tensor):
        return tree.layout == torch.strided and tree.ndim > 0 and len(tree) == n_rows
    if isinstance(tree, Mapping):
        return all(cuts_into_rows(value, n_rows) for value in tree.values())
    if isinstance(tree, list | tuple):
        return all(cuts_into_rows(value, n_rows) for value in tree)
    return tree is None


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same nested structure with every tensor replaced."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, PackedSequence):  # its lengths stay as they are
        return tree._replace(data=function(tree.data))
    if isinstance(tree, Mapping):
        named = {key: map_tensors(function, value) for key, value in tree.items()}
        # Outputs of Hugging Face's models are dicts whose items are attributes as well.
        return type(tree)(**named) if is_dataclass(tree) else named
    if isinstance(tree, list | tuple):
        values = [map_tensors(function, value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return tree


def all_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; by the sum first, which is read much faster."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return True
    return bool(torch.isfinite(tensor).all())


def which_integers(inputs: Any) -> tuple[bool, ...]:
    """Which tensors hold integers; truth values are masks."""
    return tuple(
        not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)
        for t in tensors_in(inputs)
    )


def array_rows(data: Data) -> Rows:
    """Rows of arrays, which have their targets in y."""
    inputs = _as_tensors(data.X, "X")
    if data.y is None:
        raise ValueError("Expected y with arrays, got None; or give a Dataset or DataLoader.")
    target, classes, names = _target_tensor(data.y)
    own, others = list(tensors_in(inputs)), list(tensors_in(target))
    if not others or not all(tensor.ndim for tensor in others):
        raise ParameterError(f"Expected an entry for every row in y, got {shown(data.y)}.")
    together = _together(inputs, own, others)
    check_consistent_length(*(() if together else own), *others)
    n_rows = len(others[0])
    if n_rows < 1:
        raise ValueError("Expected at least 1 row in X, got 0.")
    weight = weights_of(data.sample_weight, n_rows)

    def taken(rows: slice | Tensor) -> Batch:
        return Batch(*map_tensors(operator.itemgetter(rows), (inputs, target, weight)))

    def read(batch_size: int, order: Tensor | None) -> Iterator[Batch]:
        for start in range(0, n_rows, batch_size):
            part = slice(start, start + batch_size)
            yield taken(part if order is None else order[part])

    def pick(rows: Indices) -> Batch:
        places = torch.as_tensor(rows)

        def cut(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, places.to(tensor.device))

        return Batch(*map_tensors(cut, (inputs, target, weight)))

    reading: tuple[Any, Any] = (read, pick)
    if together:
        reading = _read_together(Batch(inputs, target, weight), n_rows)
    row_size = 1 if together else sum(t[0].numel() for t in own)
    return Rows(
        reading[0],
        n_rows,
        None,
        reading[1],
        row_size,
        classes,
        names,
        which_integers(inputs),
        all(isinstance(value, Tensor) for value in _leaves(data.X)),
        together,
    )


def _together(inputs: Any, own: list[Tensor], others: list[Tensor]) -> bool:
    """Whether several inputs hold what belongs to all rows, as the edges of a graph."""
    n_rows = len(others[0]) if others else 0
    fit = [len(tensor) == n_rows for tensor in own if tensor.ndim]
    several = not isinstance(inputs, Tensor) and any(fit)
    return several and (not all(fit) or any(t.layout != torch.strided for t in own))


def _read_together(
    whole: Batch, n_rows: int
) -> tuple[Callable[[int, Tensor | None], Iterator[Batch]], Callable[[Indices], Batch]]:
    """Read and pick rows that pass through a model at once only."""

    def read(batch_size: int, order: Tensor | None) -> Iterator[Batch]:
        yield whole

    def pick(rows: Indices) -> Batch:
        if len(rows) != n_rows or not np.array_equal(rows, np.arange(n_rows)):
            raise ValueError(
                "Expected all rows at once where inputs are of other lengths than y (such as the "
                f"edges of a graph), got {len(rows)} of {n_rows} rows; give sample_weight to "
                "leave rows out of the loss."
            )
        return whole

    return read, pick


def _leaves(tree: Any) -> Iterator[Any]:
    """What nested containers hold, as it came."""
    if isinstance(tree, Mapping | tuple):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _leaves(value)
    elif tree is not None:
        yield tree


def _as_tensors(X: Any, name: str) -> Any:
    """Tensors that share the memory of arrays where they can."""
    if isinstance(X, Tensor):
        return X.detach()
    if scipy.sparse.issparse(X):
        raise TypeError(
            f"Expected dense {name} for a torch model, got a sparse matrix; use {name}.toarray()."
        )
    if isinstance(X, Mapping):
        given = X.items()
        return {k: None if v is None else _as_tensors(v, f"{name}[{k!r}]") for k, v in given}
    if isinstance(X, tuple) or (isinstance(X, list) and X and hasattr(X[0], "ndim")):
        values: list[Any] = [None if v is None else _as_tensors(v, name) for v in X]
        return type(X)(*values) if hasattr(X, "_fields") else tuple(values)
    try:
        array = np.asarray(X)
    except ValueError as error:  # rows of different lengths
        raise ParameterError(f"Expected {name} with rows of one shape, got {shown(X)}.") from error
    if array.dtype == object:
        with contextlib.suppress(ValueError, TypeError):
            array = array.astype(np.float64)
    if isinstance(X, Iterator):
        raise TypeError(
            f"Expected {name} that can be read several times, got a {type(X).__name__}; give "
            "arrays, a Dataset or a DataLoader."
        )
    if array.dtype.kind not in "biuf":
        raise TypeError(f"Expected numbers in {name}, got dtype {array.dtype}.")
    if array.ndim == 0:
        raise TypeError(f"Expected {name} with one entry per row, got a scalar.")
    # A copy where torch could not share the memory without a warning.
    writable = array if array.flags.writeable else array.copy()
    return torch.as_tensor(np.ascontiguousarray(writable))


def _target_tensor(y: Any) -> tuple[Any, Tensor | None, npt.NDArray[Any] | None]:
    """Target, its sorted labels where it is discrete, and their names where it held names."""
    if not isinstance(y, Tensor | Mapping | tuple):
        array = np.asarray(y)
        if array.dtype == object and all(isinstance(v, Number) for v in array.flat):
            array = array.astype(np.float64)
        if array.dtype.kind in "OSUT":
            try:
                names, codes = np.unique(array, return_inverse=True)
            except TypeError as error:
                raise ValueError(f"Expected labels of one type in y: {error}.") from error
            return torch.as_tensor(codes.reshape(array.shape)), torch.arange(len(names)), names
        y = array
    target = _as_tensors(y, "y")
    if not isinstance(target, Tensor):
        return target, None, None
    return target, _distinct(target), None


def _distinct(target: Tensor) -> Tensor | None:
    """Sorted labels where all numbers are whole; in pieces, for sorting copies what it sorts."""
    found = []
    for piece in target.reshape(-1).split(_PIECE):
        if piece.is_floating_point() and not bool((piece == piece.round()).all()):
            return None
        found.append(piece.unique())
    labels: Tensor = torch.cat(found).unique()
    return labels


def weights_of(sample_weight: Any, n_rows: int | None) -> Tensor | None:
    """Sample weights, one for every row."""
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Tensor):
        weight = sample_weight.detach().cpu().to(torch.float64, copy=True)
    else:
        weight = torch.as_tensor(as_numbers("sample_weight", sample_weight).copy())
    if n_rows is None:
        raise ValueError(
            "Expected no sample_weight with rows whose number is not known before they are read "
            "(a stream, or a dataset of batches); give a Dataset of single rows, or arrays."
        )
    if tuple(weight.shape) != (n_rows,):
        raise ValueError(f"Expected sample_weight of shape ({n_rows},), got {tuple(weight.shape)}.")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("Expected finite sample_weight, got NaN or inf.")
    if bool((weight < 0).any()):
        raise ValueError(
            f"Expected sample_weight at or above zero, got {float(weight.min()):g}; drop those "
            "rows."
        )
    return weight


def merged_last(batches: Iterator[Batch], merging: bool) -> Iterator[Batch]:
    """With batch statistics a last batch of one row joins the one before it."""
    if not merging:
        yield from batches
        return
    held: Batch | None = None
    for batch in batches:
        if held is not None and rows_in(batch) == 1:
            batch = joined(held, batch)
            held = None
        if held is not None:
            yield held
        held = batch
    if held is not None:
        yield held


def joined(first: Batch, second: Batch) -> Batch:
    """Rows of two batches as one."""

    def join(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor):
            return torch.cat([a, b])
        if isinstance(a, dict):
            return {key: join(a[key], b[key]) for key in a}
        if isinstance(a, PackedSequence):
            own = [x for packed in (a, b) for x in unpack_sequence(packed)]
            return pack_sequence(own, enforce_sorted=False)
        if a is None:
            return None
        items = [join(x, y) for x, y in zip(a, b, strict=True)]
        return type(a)(*items) if hasattr(a, "_fields") else tuple(items)

    return Batch(*(join(a, b) for a, b in zip(first, second, strict=True)))
