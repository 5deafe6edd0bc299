"""Rows of data sets and loaders, which may differ at each reading."""

from __future__ import annotations

import contextlib
import operator
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
    default_collate,
)

from sklearn_implicitreg.adapters.registry import Data
from sklearn_implicitreg.adapters.torch.data import (
    Batch,
    Rows,
    array_rows,
    map_tensors,
    rows_in,
    weights_of,
    which_integers,
)
from sklearn_implicitreg.adapters.torch.generators import (
    generators_in,
    preserved_rng,
    same_numbers,
    seeded,
)
from sklearn_implicitreg.adapters.torch.labels import inputs_and_labels
from sklearn_implicitreg.exceptions import AugmentationWarning, SamplerWarning, warn_user
from sklearn_implicitreg.problem import Indices
from sklearn_implicitreg.problem.frozen import tensors_in

_SAME = "Expected the same rows each time that they are read, got"
_REMEDY = (
    "give arrays, a Dataset with a length or a stream that neither shuffles, drops rows nor ends "
    "early; n_passes=20 if rows are augmented at random."
)
_TRIED = 8  # rows of a Dataset that are read twice: a flip may leave one as it is


def read_rows(data: Data, n_passes: Any) -> Rows:
    """Rows of arrays, DataFrames, tensors, dicts of these, a Dataset or a DataLoader.

    Those of a Dataset or DataLoader are read ``n_passes`` times, once by "auto".
    """
    loader = data.X
    if isinstance(loader, Dataset) or is_of_dicts(loader):
        return _dataset_rows(data, loader, default_collate, None, n_passes)
    if isinstance(loader, list) and loader and isinstance(loader[0], tuple | Mapping):
        raise TypeError(
            "Expected arrays, a Dataset or a DataLoader, got a list of rows or batches; give "
            "DataLoader(rows, batch_size=...), or with batch_size=None for batches. A search of "
            "scikit-learn makes such a list of a Dataset: use ImplicitRegularizationCV, which "
            "needs no folds."
        )
    if not isinstance(loader, DataLoader):
        return array_rows(data)
    if loader.batch_sampler is None and loader.batch_size is None:  # of batches, as items
        first = operator.itemgetter(0)
        rows = _dataset_rows(data, loader.dataset, first, 1, n_passes, in_batches=True)
        return replace(rows, read=lambda *_: rows.read(1, None), train_batch_size=None)
    _warn_of_sampler(loader)
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return _dataset_rows(data, loader.dataset, loader.collate_fn, size, n_passes)


def _warn_of_sampler(loader: DataLoader[Any]) -> None:
    """Warn where a sampler leaves rows of the data set out, or draws some more often."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    n_rows = n_drawn = 0
    # Other rows each time, or those of one rank: all rows are what the training saw.
    if not isinstance(sampler, RandomSampler | DistributedSampler):
        with contextlib.suppress(TypeError, NotImplementedError):  # a stream has no length
            n_rows, n_drawn = len(loader.dataset), len(sampler)  # type: ignore[arg-type]
    if isinstance(sampler, WeightedRandomSampler) and len(sampler.weights.unique()) > 1:
        what, instead = "draws some rows more often than others", "their shares as sample_weight"
    elif n_drawn < n_rows:
        what = f"has {n_drawn} of the {n_rows} rows"
        instead = "Subset(dataset, rows) if the others are no rows of the training"
    else:
        return
    warn_user(
        f"The sampler of the loader {what}, but all rows of its data set are read once: give "
        f"{instead}.",
        SamplerWarning,
    )


def rows_of_batch(batch: Any) -> Rows:
    """The rows of one batch, which are read at once."""
    try:
        own = Batch(*_unpack(batch), None)
    except TypeError as error:
        raise TypeError(f"{error} While recording: recorder.batch((inputs, target)).") from None
    return Rows(lambda *_: iter([own]), rows_in(own), in_tensors=True)


def is_of_dicts(data: Any) -> bool:
    """Whether rows are dicts, as in the data sets of Hugging Face, which are none of torch."""
    if isinstance(data, Mapping | Tensor | np.ndarray | pd.DataFrame):
        return False
    with contextlib.suppress(TypeError, KeyError, IndexError, AttributeError):
        return len(data) > 0 and isinstance(data[0], Mapping)
    return False


def _dataset_rows(  # noqa: PLR0913
    data: Data,
    dataset: Dataset[Any],
    collate: Any,
    size: int | None,
    n_passes: Any,
    in_batches: bool = False,
) -> Rows:
    """Rows of a dataset in its own order, whatever the sampler of the loader it came in."""
    if data.y is not None:
        raise ValueError(
            "Expected y=None with a Dataset or DataLoader, which bring their own targets; got "
            f"y of type {type(data.y).__name__}."
        )
    stream = isinstance(dataset, IterableDataset)
    length = _length(dataset, stream)
    n_rows = None if stream or in_batches else length
    weight = weights_of(data.sample_weight, n_rows)
    drawing = generators_in(dataset, collate)
    readings = Readings()
    end = None if length is None else 2 * length  # what a stream says it has is a guess at times

    def read(batch_size: int, order: Tensor | None) -> Iterator[Batch]:
        loader: DataLoader[Any] = DataLoader(
            dataset if order is None else Subset(dataset, order.tolist()),
            batch_size=batch_size,
            shuffle=None if stream else False,
            collate_fn=collate,
            generator=torch.Generator(),
        )
        weights = weight if weight is None or order is None else weight[order]
        start = 0
        with seeded(drawing):
            known = batch_size if order is None else None
            for batch in readings.compared(_batches(loader, end), known):
                stop = start + rows_in(batch)
                yield batch._replace(weight=None if weights is None else weights[start:stop])
                start = stop

    def pick(rows: Indices) -> Batch:
        with seeded(drawing):
            inputs, target = _unpack(collate([dataset[int(i)] for i in rows]))
        return Batch(inputs, target, None if weight is None else weight[torch.as_tensor(rows)])

    once = n_passes == "auto"
    first, same = _first_batch(read, size or (1 if in_batches else _TRIED), once)
    readings.steady, readings.counted = same, once
    integers = () if first is None else which_integers(first.inputs)
    found = Rows(read, n_rows, size, integers=integers, in_tensors=True)
    return replace(found, pick=None if n_rows is None else pick, n_passes=1 if once else n_passes)


class Readings:
    """Number of rows of the readings of a data set, and checksums of them."""

    def __init__(self) -> None:
        self.counted = self.steady = False  # whether they must have as many rows, and the same
        self._n_rows: int | None = None
        self._sums: dict[int, int] = {}  # by batch size, which padding may depend on

    def compared(self, batches: Iterator[Batch], size: int | None) -> Iterator[Batch]:
        """The batches; ValueError where they end otherwise than an earlier reading."""
        n_rows = so_far = 0
        for batch in batches:
            n_rows += rows_in(batch)
            if self.steady and size is not None:
                for tensor in tensors_in(batch[:2]):
                    so_far = checksum(tensor, so_far)
            yield batch
        if not self.counted:
            return
        before = n_rows if self._n_rows is None else self._n_rows
        self._n_rows = n_rows
        if before != n_rows:
            raise ValueError(f"{_SAME} {before} rows and then {n_rows}; {_REMEDY}")
        if self.steady and size is not None and self._sums.setdefault(size, so_far) != so_far:
            raise ValueError(f"{_SAME} {n_rows} rows twice, with other numbers; {_REMEDY}")


def checksum(tensor: Tensor, before: int = 0) -> int:
    """CRC of the numbers of a dense tensor, after those of others."""
    if tensor.layout != torch.strided:
        return before
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data, before)


def _length(dataset: Any, stream: bool) -> int | None:
    """Number of items that a data set says it has; a stream may not know."""
    if hasattr(dataset, "__len__"):
        with contextlib.suppress(TypeError, NotImplementedError):
            return len(dataset)
    if stream:
        return None
    raise TypeError(
        f"Expected a data set with a length, got {type(dataset).__name__} without one; give it a "
        "__len__, or make it an IterableDataset if it is a stream."
    )


def _batches(loader: DataLoader[Any], end: int | None) -> Iterator[Batch]:
    for n_before, item in enumerate(_collated(loader)):
        if end is not None and n_before * (loader.batch_size or 1) > end:
            raise ValueError(
                f"Expected a stream that ends, got more than {end} items of one whose length is "
                f"{end // 2}; give the stream of one epoch, such as itertools.islice of it."
            )
        yield Batch(*_unpack(item), None)


def _collated(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        yield from loader
    except TypeError as error:
        raise TypeError(
            f"Expected rows of numbers that can be joined to batches, got others: {error}; encode "
            "them, or give a DataLoader with a collate_fn."
        ) from error
    except RuntimeError as error:
        if "stack expects each tensor" not in str(error):
            raise
        raise ValueError(
            f"Expected rows of one shape, got others: {error}; give a DataLoader with the "
            "collate_fn of the training, which fills them up, or with batch_size=None for batches."
        ) from error


def _unpack(item: Any) -> tuple[Any, Any]:
    if isinstance(item, list | tuple) and len(item) == 2:
        return map_tensors(lambda t: t, item[0]), item[1]
    if isinstance(item, Mapping):
        return inputs_and_labels(item)
    size = f" of {len(item)}" if hasattr(item, "__len__") else ""
    raise TypeError(
        f"Expected batches (inputs, target), got {type(item).__name__}{size}; give the loader a "
        "collate_fn that returns such pairs."
    )


def _first_batch(
    read: Callable[[int, Tensor | None], Iterator[Batch]], size: int, twice: bool
) -> tuple[Batch | None, bool]:
    """The first batch, read twice where asked for; and whether it was the same."""
    with preserved_rng(torch.device("cpu")):
        first = next(read(size, None), None)
        second = next(read(size, None), None) if twice else None
        if first is None or second is None:
            return first, False
        same = same_numbers(first[:2], second[:2])
        if not same:  # random augmentation makes the loss another function
            warn_user(
                "The first batch differs when it is read twice: random augmentation, or a "
                "stream that cannot be read again. The gradient is that of one draw; give "
                "n_passes=20 for the mean over 20 readings, with their noise in the errors.",
                AugmentationWarning,
            )
        return first, same
