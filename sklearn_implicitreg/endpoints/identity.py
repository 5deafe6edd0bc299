"""What a gradient is of, as checksums: weights, rows, loss, and how they are evaluated."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.problem import BatchProblem, Problem, closing, norm_of
from sklearn_implicitreg.problem.parameters import listed

Facts = dict[str, Any]
_ROWS = ("X", "y", "sample_weight")
_TRIED = "loss and gradient of some rows"
_FEW = 32


def identity(problem: Problem) -> Facts:
    """All that the gradient depends on, as JSON holds it, the same on every device."""
    facts = {word: _shown(value) for word, value in problem.facts().items()}
    sums = {name: hashlib.sha256() for name in _ROWS}
    with closing(problem.contents()) as blocks:
        for block in blocks:
            for name, total in sums.items():
                for part in _bytes(block[name]):
                    total.update(part)
    return facts | {n: total.hexdigest() for n, total in sums.items()} | {_TRIED: _tried(problem)}


def key_of(facts: Facts) -> str:
    """Checksum of all that is known by checksums."""
    known = {word: value for word, value in facts.items() if word != _TRIED}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def differences(held: Facts, now: Facts, eps: float) -> list[str]:
    """What differs between two, in words, with the names of tensors."""
    found: list[str] = []
    # Checksums of other batches, or in another type, differ for the same rows and weights too.
    moved = [word for word in ("batch_size", "dtype") if held.get(word) != now.get(word)]
    hidden = {*_ROWS} if moved else set()
    hidden |= {word for word in held if "weights" in word} if "dtype" in moved else set()
    for word in dict.fromkeys([*held, *now]):
        if word in hidden:
            continue
        one, other = held.get(word), now.get(word)
        if word == _TRIED:
            # What else is known is compared by checksums; this is for code, up to rounding.
            same = _close(one, other, math.sqrt(eps))
            found += [] if same or found else ["code of the model or of the loss"]
        elif isinstance(one, dict) and isinstance(other, dict):
            names = [n for n in one if n in other and one[n] != other[n]]
            shown = ", ".join(n or "the whole" for n in names[:3]) + ", ..." * (len(names) > 3)
            found += [f"{word} ({shown})"] if names else []
            found += [word] if one.keys() != other.keys() and "weights" not in word else []
        elif isinstance(one, list) and isinstance(other, list) and word == "params":
            names = [n for n in [*one, *other] if (n in one) != (n in other)]
            found += [f"{word} ({listed(names)})" if names else word] if one != other else []
        elif one != other:
            brief = word in ("model", "loss", "n_passes", "batch_size", "dtype")
            found.append(f"{word} ({one} and not {other})" if brief else word)
    return found


def _close(one: Any, other: Any, tolerance: float) -> bool:
    if one is None or other is None or len(one) != len(other):
        return bool(one == other)
    return bool(np.allclose(one, other, rtol=tolerance, atol=tolerance * max(map(abs, one))))


def _tried(problem: Problem) -> list[float] | None:
    """Loss and norms of the gradient on a few rows, by which code that was changed is found."""
    with (
        contextlib.suppress(Exception),  # outputs that are no rows, a loss without row losses
        warnings.catch_warnings(action="ignore"),
        closing(problem.row_batches(problem.params)) as batches,
    ):
        batch = next(batches)
        few = batch.part(slice(None, None, max(1, batch.n_rows // _FEW)))
        found = BatchProblem.of(few).gradient()
        return [found.loss, *(norm_of({name: t}) for name, t in found.value.items())]
    return None


def _shown(value: Any) -> Any:
    """Tensors as checksums, the rest as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(name): _shown(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(own) for own in value]
    return digest(value) if isinstance(value, Tensor | np.ndarray) else value


def digest(tree: Any) -> str:
    """Checksum of the types, shapes and bytes of all that containers hold, or an iterator gives."""
    total = hashlib.sha256()
    for part in _bytes(tree):
        total.update(part)
    return total.hexdigest()


def _bytes(tree: Any, above: tuple[int, ...] = ()) -> Iterator[Any]:
    """Types, shapes and bytes of all that nested containers, iterators and objects hold."""
    if isinstance(tree, Tensor) and tree.layout != torch.strided:
        own = tree.detach().to_sparse_coo().coalesce()
        yield from _bytes([list(own.shape), own.indices(), own.values()])
    elif isinstance(tree, Tensor):
        yield f"{tree.dtype} {tuple(tree.shape)}".encode()
        yield tree.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(tree, np.ndarray):
        yield f"{tree.dtype} {tree.shape}".encode()
        yield np.ascontiguousarray(tree).reshape(-1).view(np.uint8).data
    elif hasattr(tree, "tocsr"):
        own = tree.tocsr()
        yield from _bytes([list(own.shape), own.data, own.indices, own.indptr])
    elif isinstance(tree, Mapping):
        for name, own in tree.items():
            yield str(name).encode()
            yield from _bytes(own, above)
    elif isinstance(tree, list | tuple | Iterator):
        for own in tree:
            yield from _bytes(own, above)
    else:
        yield from _of_object(tree, above)


def _of_object(tree: Any, above: tuple[int, ...]) -> Iterator[Any]:
    if getattr(tree, "__dict__", None) and not isinstance(tree, type):
        yield type(tree).__qualname__.encode()
        if id(tree) not in above:
            yield from _bytes(vars(tree), (*above, id(tree)))
    else:  # the address that many objects show is another one each time
        yield re.sub(" at 0x[0-9a-fA-F]+", "", repr(tree)).encode()
