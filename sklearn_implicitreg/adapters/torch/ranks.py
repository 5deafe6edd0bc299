"""A module that every rank has, with the rows of all of them."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.problem import (
    BlockGradient,
    Params,
    Problem,
    Ranks,
    RowBatch,
    closing,
    summed,
)
from sklearn_implicitreg.problem.frozen import tensors_in

TorchProblem = Any  # which imports this module


@dataclass(frozen=True, kw_only=True)
class RanksProblem(Problem):
    """The rows of all ranks: their blocks added up. What else rows are read for is not known."""

    own: TorchProblem  # of this rank's rows
    ranks: Ranks

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """Sums over the ranks: of their blocks with the same number, or of all."""
        own, like = replace(self.own, reading=self.reading), self.own.params
        if n_blocks == 1:
            whole = self.ranks.summed(lambda: summed(own.blocks()), like)
            assert whole is not None
            yield whole
            return
        with closing(own.blocks(n_blocks)) as blocks:
            while block := self.ranks.summed(lambda: next(blocks, None), like):
                yield block
                del block  # freed before the next is made

    def row_batches(self, params: Params) -> Iterator[RowBatch]:
        """Rows are on other ranks too."""
        raise self._no_path()

    def numbered_like(self, fitted: Problem) -> Self:
        """The same problem with labels numbered as they are in the fitted rows."""
        return replace(self, own=self.own.numbered_like(getattr(fitted, "own", fitted)))

    def _no_path(self) -> ValueError:
        return ValueError(
            f"Expected a model of one process here, got {self.model_name} on {self.ranks.n} ranks, "
            "of which only the loss gradient, its columns in the weights and their fit are known; "
            "give the module inside, with the full weights and all rows, to one process."
        )


def on_ranks(
    ranks: Ranks,
    make: Callable[[], TorchProblem],
    kind: type[RanksProblem] = RanksProblem,
    more: Callable[[TorchProblem], dict[str, Any]] = lambda own: {},
) -> Any:
    """Problem of the rows of all ranks; ValueError where they have not the same model."""
    held = []

    def facts() -> dict[str, Any]:
        held.append(make())
        return _facts(held[0], ranks)

    ranks.agree(ranks.shared(facts)[ranks.place])
    own = _numbered_alike(held.pop(), ranks)
    same = {field.name: getattr(own, field.name) for field in fields(Problem)}
    return kind(**same | {"ranks": ranks}, own=own, **more(own))


def _facts(problem: TorchProblem, ranks: Ranks) -> dict[str, Any]:
    """What has to be the same on all ranks."""
    few = problem.rows.few(1)
    facts = {
        "tensors in scope": list(problem.params),
        "losses": problem.loss_name,
        "types of the computation": problem.dtype,
        "types of X": [str(t.dtype) for t in tensors_in(few and few.inputs)],
        "labels": "with names" if problem.rows.names is not None else "numbers",
        "types of y": [str(t.dtype) for t in tensors_in(few and few.target)],
        "batches with shared statistics": problem.batch_normalized,
    }
    if ranks.sharded:  # an error inside a layer would leave the others waiting there
        tables = [
            t for t in tensors_in(few and few.inputs) if t.ndim == 2 and t.is_floating_point()
        ]
        facts["columns of X"] = [t.shape[1] for t in tables]
    for name, tensor in {} if ranks.sharded else problem.params.items():
        facts[f"weights {name}"] = f"checksum {_checksum(tensor):08x}"
    return facts


def _checksum(tensor: Tensor) -> int:
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(plain.view(torch.uint8).numpy().data)


def _numbered_alike(own: TorchProblem, ranks: Ranks) -> TorchProblem:
    """Labels numbered by those on all ranks."""
    if own.row_loss.kind not in ("classes", "binary"):
        return own
    names = None if own.rows.names is None else own.rows.names.tolist()
    classes = None if own.row_loss.classes is None else own.row_loss.classes.tolist()
    every = ranks.gathered((names, classes))
    if names is not None:  # as on all ranks, which have y of the same type
        known = np.array(_union(names for names, _ in every))
        numbers = torch.arange(len(known))
        rows = own.rows.named_like(replace(own.rows, names=known, classes=numbers))
        return replace(own, rows=rows, row_loss=replace(own.row_loss, classes=numbers))
    if any(classes is None for _, classes in every):
        return replace(own, row_loss=replace(own.row_loss, classes=None))
    labels = torch.tensor(_union(c for _, c in every), dtype=own.row_loss.classes.dtype)
    return replace(own, row_loss=replace(own.row_loss, classes=labels))


def _union(parts: Iterable[Any]) -> list[Any]:
    return sorted(set(itertools.chain.from_iterable(parts)))
