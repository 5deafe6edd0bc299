"""Batches that steps saw, kept by their tensors where they are not rows of a data set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.trajectory.marks import Mark


def tensors_of_batch(batch: Any) -> Params | None:
    """Copies of the tensors of nested dicts and tuples, by their place; None of anything else."""
    try:
        found = {json.dumps(place): tensor for place, tensor in _leaves(batch, [])}
    except TypeError:  # no numbers, or keys that are no strings
        return None
    return found if any(tensor.numel() for tensor in found.values()) else None


def batch_of(mark: Mark) -> Any:
    """The batch whose tensors a mark holds; lists are tuples, and arrays tensors."""
    batch: Any = None
    for name, tensor in mark.weights.items():
        batch = _with(batch, json.loads(name), tensor)
    return batch


def _leaves(part: Any, place: list[Any]) -> Iterator[tuple[list[Any], Tensor]]:
    """Tensors with the keys that lead to each: of a dict its own, of a tuple place and length."""
    if isinstance(part, Tensor) and part.layout == torch.strided and not part.is_nested:
        yield place, part.detach().clone()
    elif isinstance(part, np.ndarray | np.generic | Number) or _is_row_of_numbers(part):
        yield place, torch.as_tensor(np.array(part))
    elif isinstance(part, Mapping):
        for key, value in part.items():
            if not isinstance(key, str):
                raise TypeError(key)
            yield from _leaves(value, [*place, key])
    elif isinstance(part, list | tuple) and not isinstance(part, PackedSequence):
        for i, value in enumerate(part):
            yield from _leaves(value, [*place, [i, len(part)]])
    elif part is not None:
        raise TypeError(part)


def _is_row_of_numbers(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and all(isinstance(v, Number) for v in part)


def _with(batch: Any, place: list[Any], tensor: Tensor) -> Any:
    """A batch with one more tensor at its place."""
    if not place:
        return tensor
    key, rest = place[0], place[1:]
    if isinstance(key, str):
        return {**(batch or {}), key: _with((batch or {}).get(key), rest, tensor)}
    i, n = key
    parts = list(batch or [None] * n)
    parts[i] = _with(parts[i], rest, tensor)
    return tuple(parts)
