"""Gradients of a loss: sums over a block of rows, and the mean over all of them."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from sklearn_implicitreg.problem.vectors import Params, accumulate, norm_of

Array = npt.NDArray[np.float64]
Item = TypeVar("Item")
_READINGS = 20  # gradients that are held at most, to know how they differ


@contextlib.contextmanager
def closing(blocks: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """A generator over rows, which ends where its loop is left: an error would keep it waiting."""
    # As long as the error is kept, so would be the seeds and modes that it restores at its end.
    try:
        yield blocks
    finally:
        if isinstance(blocks, Generator):
            blocks.close()


@dataclass(frozen=True)
class Rest:
    """Derivatives in an unpenalized intercept, by output: sum, norm and size over the rows."""

    total: Array | float = 0.0
    norm: Array | float = 0.0
    size: Array | float = 0.0

    def __add__(self, other: Rest) -> Rest:
        """That of the rows of both."""
        norm = np.hypot(self.norm, other.norm)
        return Rest(self.total + other.total, norm, self.size + other.size)

    def over_readings(self, n: int) -> Rest:
        """That of one of n readings of the same rows, whose sum this is."""
        return Rest(self.total / n, self.norm / np.sqrt(n), self.size / n)

    def over_error(self) -> float:
        """Largest sum over its standard error; 0 where it is rounding."""
        total, norm, size = map(np.atleast_1d, (self.total, self.norm, self.size))
        above = np.abs(total) > 100 * np.finfo(np.float64).eps * size
        return float(np.max(np.abs(total[above]) / norm[above], initial=0.0))


_NO_REST = Rest()


@dataclass(frozen=True)
class BlockGradient:
    """Gradient of the weighted *sum* of the losses of one block of rows."""

    sums: Params  # shaped like Problem.params, in the type that they were computed in
    loss: float  # weighted sum of the row losses
    weight: float  # total weight of the rows
    n_rows: int
    scale: float  # sum over rows of the size of the summands: eps * scale is rounding
    n_kinks: int = 0  # rows at which the loss has no derivative
    absent: frozenset[str] = frozenset()  # tensors that the loss of these rows does not reach
    rest: Rest = _NO_REST

    @classmethod
    def joined(cls, blocks: Sequence[BlockGradient], sums: Params | None = None) -> BlockGradient:
        """The rows of several blocks as one, with their sums where these are known."""
        first, *others = blocks
        if sums is None:
            sums = {n: sum((own.sums[n] for own in others), t) for n, t in first.sums.items()}
        return cls(
            sums,
            sum(own.loss for own in blocks),
            sum(own.weight for own in blocks),
            sum(own.n_rows for own in blocks),
            sum(own.scale for own in blocks),
            sum(own.n_kinks for own in blocks),
            frozenset.intersection(*[own.absent for own in blocks]),
            functools.reduce(Rest.__add__, [own.rest for own in blocks]),
        )


@dataclass(frozen=True)
class LossGradient:
    """Gradient of the *mean* loss (divided by the total weight of the rows)."""

    value: Params
    loss: float
    weight: float
    n_rows: int
    scale: float
    n_kinks: int
    # Tensors that training did not act on: zeros in ``value``, and no equations.
    absent: frozenset[str] = frozenset()
    rest: Rest = _NO_REST
    # Where rows differ at each reading, what ``value`` is the mean of, each with its weight.
    readings: tuple[LossGradient, ...] = ()

    @classmethod
    def from_blocks(cls, blocks: Iterator[BlockGradient]) -> LossGradient:
        """Add up blocks of rows, in float64."""
        return cls.of_sum(summed(blocks))

    @classmethod
    def of_sum(cls, total: BlockGradient) -> LossGradient:
        """Divide the sum over all rows, which is used up, by their weight."""
        weight = total.weight
        if total.n_rows < 1:
            raise ValueError(
                "Expected at least 1 row of data, got 0; a stream must begin from its first row "
                "each time it is read."
            )
        if not weight > 0:
            raise ValueError(f"Expected a positive total weight of the rows, got {weight}.")
        for tensor in total.sums.values():
            tensor.div_(weight)
        numbers = (total.loss / weight, weight, total.n_rows, total.scale / weight, total.n_kinks)
        return cls(total.sums, *numbers, total.absent, total.rest)

    @classmethod
    def over_readings(cls, passes: Iterable[LossGradient], n: int) -> LossGradient:
        """Mean over n readings of the same rows; their spread is kept, that of many in groups."""
        parts, held, size = iter(passes), [], -(-n // _READINGS)
        for first in parts:
            held.append(functools.reduce(cls.completed, itertools.islice(parts, size - 1), first))
        mean = functools.reduce(cls.completed, held)
        return replace(
            mean,
            weight=mean.weight / n,
            n_rows=-(-mean.n_rows // n),
            n_kinks=-(-mean.n_kinks // n),
            rest=mean.rest.over_readings(n),
            readings=tuple(held),
        )

    def completed(self, other: LossGradient) -> LossGradient:
        """Mean over the rows of both, each by its total weight."""
        weight = self.weight + other.weight
        mine, theirs = self.weight / weight, other.weight / weight
        value = {name: mine * g + theirs * other.value[name] for name, g in self.value.items()}
        return LossGradient(
            value,
            mine * self.loss + theirs * other.loss,
            weight,
            self.n_rows + other.n_rows,
            mine * self.scale + theirs * other.scale,
            self.n_kinks + other.n_kinks,
            self.absent & other.absent,
            self.rest + other.rest,
        )

    @property
    def unrest(self) -> float:
        """Largest gradient of an unpenalized intercept over its standard error; 0 for rounding."""
        return self.rest.over_error()

    @classmethod
    def mean(cls, parts: Sequence[LossGradient], shares: Sequence[float]) -> LossGradient:
        """Mean of gradients over the same rows at several places."""
        pairs = list(zip(shares, parts, strict=True))
        first = parts[0]
        value = {
            name: sum((share * part.value[name] for share, part in pairs), torch.zeros_like(own))
            for name, own in first.value.items()
        }
        return cls(
            value,
            sum(share * part.loss for share, part in pairs),
            first.weight,
            first.n_rows,
            sum(share * part.scale for share, part in pairs),
            max(part.n_kinks for part in parts),
            frozenset.intersection(*[part.absent for part in parts]),
        )

    def rounding(self, eps: float) -> float:
        """Norm below which the gradient is zero to rounding."""
        return 100 * eps * self.scale

    def norm(self) -> float:
        """Euclidean norm over all parameters."""
        return norm_of(self.value)


def summed(
    blocks: Iterator[BlockGradient], keep: Callable[[BlockGradient], None] | None = None
) -> BlockGradient:
    """Sum of all blocks, in float64; ``keep`` is called with what it is after each of them."""
    sums: Params = {}
    absent: frozenset[str] | None = None
    loss = weight = scale = 0.0
    n_rows = n_kinks = 0
    rest = _NO_REST

    def total() -> BlockGradient:
        missing = absent or frozenset()
        return BlockGradient(sums, loss, weight, n_rows, scale, n_kinks, missing, rest)

    with closing(blocks):
        for block in blocks:
            accumulate(sums, block.sums)
            rest = rest if block.rest is _NO_REST else rest + block.rest
            loss += block.loss
            weight += block.weight
            scale += block.scale
            n_rows += block.n_rows
            n_kinks += block.n_kinks
            absent = block.absent if absent is None else absent & block.absent
            del block  # freed before the next is made
            if keep is not None:
                keep(total())
    return total()
