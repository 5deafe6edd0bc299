"""The noise of a mean gradient inside a family's columns, from blocks of rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_implicitreg.problem import BlockGradient, Problem
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.regression.solve import decompose
from sklearn_implicitreg.regression.system import Array, System

# For each block of rows its weight, and the products (k,) of the columns with its mean gradient.
Spread = list[tuple[float, Array]]
_Columns = tuple[str, int, Tensor]  # of which tensor, from which coordinate on, (m, k)
_TOGETHER = 8  # blocks whose products are taken at a time
_HELD = 2**24  # numbers in the columns that are kept for all blocks


def observed(
    blocks: Iterable[BlockGradient], problem: Problem, designs: Sequence[Design]
) -> tuple[Iterator[BlockGradient], list[Spread]]:
    """Blocks passed on, and for each design a list that grows by k numbers with each of them."""
    seen: list[Spread] = [[] for _ in designs]
    ends = list(itertools.accumulate(len(design.term_names) for design in designs))

    n = max(problem.over_shards(sum(tensor.numel() for tensor in problem.params.values())))
    # Columns are read once for several blocks, as many as there is room for.
    together = max(1, min(_TOGETHER, _HELD // max(n, 1)))

    def passed() -> Iterator[BlockGradient]:
        held = list(_pieces(problem, designs)) if n * ends[-1] <= _HELD else []
        waiting: list[BlockGradient] = []

        def measure() -> None:
            products = _products(held or _pieces(problem, designs), waiting)
            products = np.sum(problem.over_shards(products), axis=0)
            for block, own in zip(waiting, products.T, strict=True):
                if not block.weight:  # its rows do not count
                    continue
                for part, spread in zip(np.split(own / block.weight, ends[:-1]), seen, strict=True):
                    spread.append((block.weight, part))
            waiting.clear()

        for block in blocks:
            waiting.append(block)
            if len(waiting) == together:
                measure()
            yield block
            del block  # freed before the next is made
        if waiting:
            measure()

    return passed(), seen


def parts_of_noise(seen: Spread, whitener: Array) -> Array:
    """What every block adds to ``tr(P S) / n``, the variance of the mean gradient in columns."""
    if len(seen) < 2:
        return np.zeros(len(seen))
    weights, products = (np.array(part) for part in zip(*seen, strict=True))
    center = weights @ products / weights.sum()
    with np.errstate(over="ignore", invalid="ignore"):  # the caller sees what is out of range
        deviations = (products - center) @ whitener
        parts: Array = weights * np.square(deviations).sum(axis=1) / (len(weights) - 1)
    return parts / float(weights.sum())


def deviations(
    seen: Spread,
    r_factor: Array,
    active: npt.NDArray[np.bool_],
    powers: Array | None,
    eps: float,
) -> tuple[Array, Array]:
    """What every block of rows adds to the error of the coefficients, (B, k), and its share."""
    # coef = A^-1 D't, linear in the target t, which is minus a mean over rows: of block b it is
    # s_b A^-1 D'(t_b - t), with its share s_b of the weight. These sum to zero.
    k = r_factor.shape[1] - 1
    weights, products = (np.array(part) for part in zip(*seen, strict=True))
    shares = weights / weights.sum()
    if powers is not None:
        products = products * (powers[:-1] * powers[-1])
    used, found = np.flatnonzero(active), np.zeros((len(shares), k))
    if not used.size:
        return found, shares
    whitener = decompose(r_factor[:, [*used, -1]], eps=eps).whitener
    away = shares[:, None] * (shares @ products - products)[:, used]
    found[:, used] = (away @ whitener) @ whitener.T
    return found, shares


def share_of_pairs(systems: Sequence[System], shares: Sequence[float], mean: System) -> float:
    """Share of a mean target's squared norm that pairs of different windows have."""
    labels = [set(system.labels) for system in systems]
    if all(own == labels[0] for own in labels):
        return float(1 - np.square(shares).sum())
    # A tensor has pairs of the windows that updated it.
    total = pairs = 0.0
    for name, upper in zip(mean.labels, mean.r_factors, strict=True):
        size = float(np.square(upper[:, -1]).sum())
        own = np.array([s for s, has in zip(shares, labels, strict=True) if name in has])
        total += size
        pairs += size * (1 - float(np.square(own / own.sum()).sum())) if own.size else 0.0
    return pairs / total if total else 0.0


def _products(pieces: Iterable[_Columns], blocks: Sequence[BlockGradient]) -> Array:
    """Products of all columns with the gradients of some blocks of rows, (K, blocks)."""
    total: Tensor | float = 0.0
    for name, start, columns in pieces:
        slopes = columns.new_empty((len(blocks), len(columns)))
        for slope, block in zip(slopes, blocks, strict=True):
            slope.copy_(block.sums[name].reshape(-1)[start : start + len(columns)])
        total = total + (slopes @ columns).T.cpu()
    return np.asarray(total)


def _pieces(problem: Problem, designs: Sequence[Design]) -> Iterator[_Columns]:
    """Columns of all designs side by side, zero where they give no equation."""
    for name in problem.params:
        free = problem.free.get(name)
        for own in zip(*(design.full_pieces(name) for design in designs), strict=True):
            columns = []
            for start, part, smooth in own:
                if smooth is not None:
                    part = torch.where(smooth[:, None], part, 0.0)
                if free is not None:
                    part = torch.where(free.reshape(-1)[start : start + len(part), None], part, 0.0)
                columns.append(part)
            yield name, own[0][0], torch.cat(columns, dim=1)
