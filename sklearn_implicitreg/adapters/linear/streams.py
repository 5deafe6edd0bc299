"""Linear models over rows that come in blocks, each read, used and let go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from sklearn_implicitreg.adapters import Data, Options
from sklearn_implicitreg.adapters.linear.blocks import row_blocks
from sklearn_implicitreg.adapters.linear.losses import Array
from sklearn_implicitreg.adapters.linear.problems import LinearProblem
from sklearn_implicitreg.problem import BlockGradient, LossGradient, Problem, profiled

__all__ = ["StreamedProblem", "TransformedBlocks", "is_stream", "streamed"]

_MANY_BLOCKS = 100

Handler = Callable[[Any, Data, Options], Problem]


@dataclass(frozen=True, kw_only=True)
class StreamedProblem(Problem):
    """A linear model and an iterable of blocks ``(X, y)`` or ``(X, y, sample_weight)``.

    Attributes
    ----------
    model : estimator
        Fitted.
    source : iterable
        Read anew in every pass.
    handler : callable(model, data, options) -> LinearProblem
        Makes the problem of one block.
    options : Options
        Of the handler.
    """

    model: Any
    source: Iterable[Any]
    handler: Handler
    options: Options

    def gradient(self) -> LossGradient:
        """Gradient of the mean loss over all rows, in one pass.

        Returns
        -------
        LossGradient
        """
        own = next(self._problems())
        center = own.center()
        if center is None:
            return super().gradient()
        parts = (p.measured(rows, center) for p in self._problems() for rows in row_blocks(p.X))
        return own.gathered(parts, center)

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """Gradient sums, one per block of the source unless several random ones are asked for.

        Parameters
        ----------
        n_blocks : int
            Number of blocks, or more; at most one per row.

        Yields
        ------
        BlockGradient
            One per block.
        """
        if n_blocks <= 1:
            for problem in self._problems():
                yield from problem.blocks()
            return
        # Each gets a random part of every block of the source, which may come sorted.
        parts: dict[int, BlockGradient] = {}
        n_parts, count = max(n_blocks, _MANY_BLOCKS), 0
        for problem in self._problems():
            for block in problem.blocks(n_parts):
                place = count % n_parts
                parts[place] = _joined(parts[place], block) if place in parts else block
                count += 1
        yield from parts.values()

    def hessian(self) -> Array:
        """Hessian of the mean loss of a squared error, from all blocks.

        Returns
        -------
        ndarray of shape (p, p)

        Raises
        ------
        ValueError
            If the loss is not the squared error.
        """
        total, weight, scope = np.zeros((0, 0)), 0.0, np.zeros(0, dtype=bool)
        for problem in self._problems(replace(self.options, params="all")):
            own = float(problem.weight.sum())
            part = own * problem.hessian()
            total = part if weight == 0 else total + part
            weight += own
            sizes = [tensor.numel() for tensor in problem.params.values()]
            scope = np.repeat([name in self.params for name in problem.params], sizes)
        return profiled(total / weight, scope)

    def _problems(self, options: Options | None = None) -> Iterator[LinearProblem]:
        """Problem of each block."""
        for block in self.source:
            yield _block_problem(self.handler, self.model, block, options or self.options)


def streamed(handler: Handler) -> Handler:
    """Handler that also takes an iterable of blocks as X, where y is None.

    Parameters
    ----------
    handler : callable(model, data, options) -> LinearProblem
        Of arrays.

    Returns
    -------
    callable(model, data, options) -> Problem
    """

    def adapt_rows(model: Any, data: Data, options: Options) -> Problem:
        if data.y is not None or not is_stream(data.X):
            return handler(model, data, options)
        _check_readable(data.X)
        if getattr(model, "class_weight", None) == "balanced":
            raise ValueError(
                "Expected all rows at once for class_weight='balanced', which counts them, got "
                "blocks; give X and y as arrays (X may be a memory map)."
            )
        first = next(iter(data.X), None)
        if first is None:
            raise ValueError("Expected at least 1 block of rows, got 0.")
        own = _block_problem(handler, model, first, options)
        shared = {field.name: getattr(own, field.name) for field in fields(Problem)}
        return StreamedProblem(
            **shared, model=model, source=data.X, handler=handler, options=options
        )

    return adapt_rows


class TransformedBlocks:
    """Blocks of rows whose features a function transforms, each when it is read.

    Parameters
    ----------
    source : iterable
        Blocks.
    transform : callable(X) -> X
        Of the features.

    Raises
    ------
    ValueError
        If the source is an iterator, which can be read but once.

    Examples
    --------
    >>> list(TransformedBlocks([(1.0, "y")], lambda X: 2 * X))
    [(2.0, 'y')]
    """

    def __init__(self, source: Iterable[Any], transform: Callable[[Any], Any]):
        _check_readable(source)
        self.source = source
        self.transform = transform

    def __iter__(self) -> Iterator[Any]:
        """Blocks from the first on."""
        for block in self.source:
            is_block = isinstance(block, list | tuple)
            yield (self.transform(block[0]), *block[1:]) if is_block else block


def _check_readable(source: Iterable[Any]) -> None:
    """Refuse an iterator."""
    if iter(source) is source:
        raise ValueError(
            "Expected blocks of rows that can be read more than once, got an iterator; give "
            "a DataLoader, a list of blocks, or an object whose __iter__ starts anew."
        )


def is_stream(X: Any) -> bool:
    """Whether X is an iterable of blocks and no array, table or nested list of numbers.

    Parameters
    ----------
    X : object
        What was given as X, without y.

    Returns
    -------
    bool

    Examples
    --------
    >>> is_stream([(np.ones((2, 1)), [1, 2])]), is_stream([[1.0], [2.0]])
    (True, False)
    """
    if isinstance(X, list | tuple):
        return len(X) > 0 and isinstance(X[0], tuple) and getattr(X[0][0], "ndim", 0) == 2
    return hasattr(X, "__iter__") and not hasattr(X, "shape") and not isinstance(X, str | dict)


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
    return BlockGradient(
        sums={name: value + second.sums[name] for name, value in first.sums.items()},
        loss=first.loss + second.loss,
        weight=first.weight + second.weight,
        n_rows=first.n_rows + second.n_rows,
        scale=first.scale + second.scale,
        n_kinks=first.n_kinks + second.n_kinks,
    )
