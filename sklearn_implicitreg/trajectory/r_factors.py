"""Equations that were reduced while a trajectory was recorded: one small R factor per block."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty
from sklearn_implicitreg.problem import Params, Problem
from sklearn_implicitreg.regression.blocks import device_r_factor
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.trajectory.design import at_weights

_SUMS = ("design", "deviation", "smooth")


class LeafPenalty(Penalty):
    """One of the penalties that a family is made of, alone and with an unknown coefficient."""

    def __init__(self, leaf: Leaf):
        self.leaf = replace(leaf, coef=None)

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Terms at the tensors that the leaf sees."""
        return self.leaf.values(params, problem)

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """The leaf alone."""
        return [self.leaf]


@dataclass(frozen=True)
class Cell:
    """Equations of one tensor at whose coordinates the same columns are differentiable."""

    tensor: str
    smooth: tuple[bool, ...]
    n: int
    r_factor: Array


@dataclass(frozen=True)
class Block:
    """Steps between two marks as one block of equations."""

    reference: str
    nuisance: bool
    scale: float
    n_kinks: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class RFactors:
    """What a trajectory holds instead of weights."""

    term_names: tuple[str, ...]
    tensors: tuple[str, ...]
    signatures: Array
    reference: str
    loss: str
    n_rows: int | None
    blocks: tuple[Block, ...]
    design: Params
    deviation: Params
    smooth: Params

    def __str__(self) -> str:
        shown = list(dict.fromkeys(self.term_names))
        return f"R factors of {', '.join(shown)} by reference={self.reference!r}"

    def add(self, other: RFactors) -> None:
        """Add the sums of further steps, in place."""
        for name in self.tensors:
            self.design[name].add_(other.design[name].to(self.design[name]))
            self.deviation[name].add_(other.deviation[name].to(self.deviation[name]))
            self.smooth[name].logical_and_(other.smooth[name].to(self.smooth[name]))

    def joined(self, other: RFactors) -> RFactors:
        """Those of a trajectory and of the one that continues it."""
        kinds = [(t.term_names, t.tensors, t.reference, t.loss, t.n_rows) for t in (self, other)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                "Expected trajectories with R factors of the same columns, tensors, reference and "
                f"rows, got {kinds[0]} and {kinds[1]}; record both in the same way."
            )
        total = copy.deepcopy(self)
        total.add(other)
        blocks = (*self.blocks, *other.blocks)
        return replace(total, signatures=other.signatures, blocks=blocks)

    def header(self) -> dict[str, Any]:
        """What JSON can hold of them."""
        keys = ("term_names", "tensors", "reference", "loss", "n_rows")
        blocks = []
        for block in self.blocks:
            cells = [(cell.tensor, cell.smooth, cell.n) for cell in block.cells]
            blocks.append({**asdict(replace(block, cells=())), "cells": cells})
        return {**{key: getattr(self, key) for key in keys}, "blocks": blocks}

    def arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Names and arrays of the rest."""
        yield "signatures", self.signatures
        for i, block in enumerate(self.blocks):
            uppers = [cell.r_factor for cell in block.cells]
            yield f"block/{i}", np.stack(uppers) if uppers else np.empty((0, 0, 0))
        for what in _SUMS:
            for name, tensor in getattr(self, what).items():
                yield f"{what}/{name}", tensor.cpu().numpy()

    @classmethod
    def read(cls, header: Mapping[str, Any], stored: Mapping[str, Any]) -> RFactors:
        """R factors of what :meth:`header` and :meth:`arrays` gave."""
        blocks = []
        for i, plain in enumerate(header["blocks"]):
            pairs = zip(plain["cells"], stored[f"block/{i}"], strict=True)
            cells = [Cell(name, tuple(smooth), n, upper) for (name, smooth, n), upper in pairs]
            blocks.append(Block(**{**plain, "cells": tuple(cells)}))
        own = {**header, "blocks": blocks}
        own |= {key: tuple(own[key]) for key in ("term_names", "tensors", "blocks")}
        for what in _SUMS:
            own[what] = {n: torch.from_numpy(stored[f"{what}/{n}"]) for n in own["tensors"]}
        return cls(**own, signatures=stored["signatures"])


def cells_of(name: str, design: Tensor, target: Tensor, smooth: Tensor) -> Iterator[Cell]:
    """R factors of the equations of one tensor, by which columns are differentiable."""
    if bool(smooth.all()):
        upper = device_r_factor(design, target)
        yield Cell(name, (True,) * design.shape[1], len(target), upper)
        return
    patterns, kinds = torch.unique(smooth, dim=0, return_inverse=True)
    for i, pattern in enumerate(patterns.tolist()):
        own = torch.nonzero(kinds == i).reshape(-1)
        yield Cell(name, tuple(pattern), len(own), device_r_factor(design[own], target[own]))


def signature(leaf: Leaf, problem: Problem, weights: Params) -> Array:
    """Numbers by which a column is known again, of shape (k, 2 n_tensors, 2)."""
    penalty = LeafPenalty(leaf)
    generator = torch.Generator().manual_seed(0)

    def fixed(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64)

    smaller = {n: t.double() * (1e-6 ** fixed(t)).to(t.device) for n, t in weights.items()}
    found = []
    for at in (weights, smaller):
        own = Design.at(penalty, at_weights(penalty, problem, at))
        for name, tensor in problem.params.items():
            design = own.columns(name).cpu()
            along = fixed(tensor).reshape(-1) @ design
            found.append(torch.stack([along, design.norm(dim=0)], dim=1))
    return torch.stack(found, dim=1).numpy()


def place_of(own: Array, recorded: Array, problem: Problem) -> int | None:
    """Which of the recorded columns has a signature, on all ranks that have parts of them."""
    here = np.abs(recorded - own).reshape(len(recorded), -1).max(axis=1), np.abs(own).max()
    every, sizes = zip(*problem.over_shards(here), strict=True)
    away = np.max(every, axis=0)
    best = int(away.argmin())
    return best if away[best] <= 1e-6 * max(sizes) else None
