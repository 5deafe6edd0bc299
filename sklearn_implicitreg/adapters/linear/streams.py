"""Linear models over rows that come in blocks, each read, used and let go."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from sklearn_implicitreg.adapters.linear.losses import Array
from sklearn_implicitreg.adapters.linear.problems import LinearProblem, row_blocks
from sklearn_implicitreg.adapters.registry import Data, Handler, Options
from sklearn_implicitreg.adapters.torch.generators import generators_in, preserved_rng, seeded
from sklearn_implicitreg.adapters.torch.options import seed_of
from sklearn_implicitreg.problem import BlockGradient, LossGradient, Problem, profiled

_MANY_BLOCKS = 100


@dataclass(frozen=True, kw_only=True)
class StreamedProblem(Problem):
    """A linear model and an iterable of blocks ``(X, y)`` or ``(X, y, sample_weight)``."""

    model: Any
    source: Iterable[Any]  # read from the first block on in every pass
    handler: Handler  # makes the problem of one block
    options: Options

    def gradient(self) -> LossGradient:
        """Gradient of the mean loss over all rows, in one pass."""
        own = next(self._problems())
        center = own.center()
        parts = (p.measured(rows, center) for p in self._problems() for rows in row_blocks(p.X))
        return self.over_passes(own.gathered(parts, center))

    def contents(self) -> Iterator[dict[str, Any]]:
        """The rows block by block."""
        for problem in self._problems():
            yield from problem.contents()

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """Gradient sums, one per block of the source unless several random ones are asked for."""
        if n_blocks <= 1:
            for problem in self._problems():
                yield from problem.blocks()
            return
        # Each gets a random part of every block of the source, which may come sorted.
        n_parts = max(n_blocks, _MANY_BLOCKS)
        parts: dict[int, BlockGradient] = {}
        blocks = chain.from_iterable(problem.blocks(n_parts) for problem in self._problems())
        for count, block in enumerate(blocks):
            place = count % n_parts
            parts[place] = _joined(parts[place], block) if place in parts else block
        yield from parts.values()

    def hessian(self) -> Array:
        """Hessian of the mean loss of a squared error, from all blocks."""
        total, weight, scope = np.zeros(()), 0.0, np.zeros(0, dtype=bool)
        for problem in self._problems(replace(self.options, params="all")):
            own = float(problem.weight.sum())
            total, weight = total + own * problem.hessian(), weight + own
            sizes = [tensor.numel() for tensor in problem.params.values()]
            scope = np.repeat([name in self.params for name in problem.params], sizes)
        return profiled(total / weight, scope)

    def _problems(self, options: Options | None = None) -> Iterator[LinearProblem]:
        """Problem of each block; blocks that draw random numbers do so by the reading."""
        seed = None
        if self.n_passes > 1:
            place = [seed_of(self.options, self.n_passes) or 0, self.reading]
            seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        with _preserved(self.source, seed):
            for block in self.source:
                yield _block_problem(self.handler, self.model, block, options or self.options)


def streamed(handler: Handler) -> Handler:
    """Handler that also takes an iterable of blocks as X, where y is None."""

    def adapt_rows(model: Any, data: Data, options: Options) -> Problem:
        if data.y is not None or not is_stream(data.X):
            return handler(model, data, options)
        with _preserved(data.X):
            _check_readable(data.X)
            first = next(iter(data.X), None)
        if getattr(model, "class_weight", None) == "balanced":
            raise ValueError(
                "Expected all rows at once for class_weight='balanced', which counts them, got "
                "blocks; give X and y as arrays (X may be a memory map)."
            )
        if first is None:
            raise ValueError("Expected at least 1 block of rows, got 0.")
        own = _block_problem(handler, model, first, options)
        shared = {field.name: getattr(own, field.name) for field in fields(Problem)}
        if options.n_passes != "auto":
            shared["n_passes"] = options.n_passes
        return StreamedProblem(
            **shared, model=model, source=data.X, handler=handler, options=options
        )

    return adapt_rows


@contextlib.contextmanager
def _preserved(source: Any, seed: int | None = None) -> Iterator[None]:
    """Leave the generators that blocks may draw from as they were."""
    with preserved_rng(torch.device("cpu"), seed), seeded(generators_in(source)):
        yield


class TransformedBlocks:
    """Blocks of rows whose features a function transforms, each when it is read."""

    def __init__(self, source: Iterable[Any], transform: Callable[[Any], Any]):
        _check_readable(source)
        self.source = source
        self.transform = transform

    def __iter__(self) -> Iterator[Any]:
        """Blocks from the first on."""
        for block in self.source:
            is_block = isinstance(block, list | tuple)
            yield (self.transform(block[0]), *block[1:]) if is_block else block


def is_stream(X: Any) -> bool:
    """Whether X is an iterable of blocks and no array, table or nested list of numbers."""
    if isinstance(X, list | tuple):
        return len(X) > 0 and isinstance(X[0], tuple) and getattr(X[0][0], "ndim", 0) == 2
    return hasattr(X, "__iter__") and not hasattr(X, "shape") and not isinstance(X, str | dict)


def _check_readable(source: Iterable[Any]) -> None:
    """Raise ValueError for an iterator, which can be read but once."""
    if iter(source) is source:
        raise ValueError(
            "Expected blocks of rows that can be read more than once, got an iterator; give "
            "a DataLoader, a list of blocks, or an object whose __iter__ starts from the first."
        )


def _block_problem(handler: Handler, model: Any, block: Any, options: Options) -> LinearProblem:
    """Problem of one block."""
    if not isinstance(block, list | tuple) or len(block) not in (2, 3):
        raise ValueError(
            "Expected blocks (X, y) or (X, y, sample_weight) where y is None, got "
            f"{type(block).__name__}; give y, or blocks of both."
        )
    X, y, *weight = block
    target = np.asarray(y)
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    problem = handler(model, Data(X, target, *weight), options)
    if not isinstance(problem, LinearProblem) or problem.n_effective is not None:
        raise ValueError(
            f"Expected rows at once for {type(model).__name__} with these weights, got blocks; "
            "give X and y as arrays (X may be a memory map)."
        )
    return problem


def _joined(first: BlockGradient, second: BlockGradient) -> BlockGradient:
    """Both blocks as one."""
    names = ("loss", "weight", "n_rows", "scale", "n_kinks", "rest")
    added = {name: getattr(first, name) + getattr(second, name) for name in names}
    sums = {name: value + second.sums[name] for name, value in first.sums.items()}
    return BlockGradient(sums=sums, **added)
