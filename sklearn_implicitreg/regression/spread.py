"""The noise of a mean gradient inside a family's columns, from blocks of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from sklearn_implicitreg.problem import BlockGradient, Problem
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.regression.system import Array

__all__ = ["Spread", "noise_of_mean", "observed"]

# For each block of rows its weight, and the products (k,) of the columns with its mean gradient.
Spread = list[tuple[float, Array]]


def observed(
    blocks: Iterable[BlockGradient], problem: Problem, designs: Sequence[Design]
) -> tuple[Iterator[BlockGradient], list[Spread]]:
    """Blocks passed on, and for each design a list that grows by k numbers with each of them."""
    seen: list[Spread] = [[] for _ in designs]

    def passed() -> Iterator[BlockGradient]:
        for block in blocks:
            for design, products in zip(designs, seen, strict=True):
                products.append((block.weight, _products(design, problem, block)))
            yield block
            del block  # freed before the next is made

    return passed(), seen


def noise_of_mean(seen: Spread, whitener: Array) -> float:
    """``tr(P S) / n``: variance of the mean gradient inside the columns that a whitener spans."""
    if len(seen) < 2:
        return 0.0
    weights, products = (np.array(part) for part in zip(*seen, strict=True))
    center = weights @ products / weights.sum()
    deviations = (products - center) @ whitener
    trace = float(weights @ np.square(deviations).sum(axis=1)) / (len(weights) - 1)
    return trace / float(weights.sum())


def _products(design: Design, problem: Problem, block: BlockGradient) -> Array:
    """Products of the columns with the mean gradient of a block of rows."""
    total = torch.zeros(len(design.term_names), dtype=torch.float64)
    for name, sums in block.sums.items():
        slope = sums.reshape(-1).double()
        for mask in (design.smooth(name), problem.free.get(name)):
            slope = slope if mask is None else torch.where(mask.reshape(-1), slope, 0.0)
        total += (design.columns(name).T @ slope).cpu()
    products: Array = total.numpy() / block.weight
    return products
