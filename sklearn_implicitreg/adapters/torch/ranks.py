"""A module that every rank has, with the rows of all of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.adapters.torch.data import (
    Batch,
    Rows,
    cuts_into_rows,
    joined,
    map_tensors,
    rows_in,
)
from sklearn_implicitreg.adapters.torch.few_rows import with_counted_labels
from sklearn_implicitreg.adapters.torch.functions import mass_and_weight
from sklearn_implicitreg.adapters.torch.labels import labels_in
from sklearn_implicitreg.adapters.torch.loaders import checksum
from sklearn_implicitreg.adapters.torch.trial import TRIED_ROWS
from sklearn_implicitreg.problem import (
    BlockGradient,
    Indices,
    Params,
    Problem,
    Ranks,
    RowBatch,
    Weights,
    closing,
    summed,
)
from sklearn_implicitreg.problem.frozen import tensors_in

TorchProblem = Any  # which imports this module


@dataclass(frozen=True, kw_only=True)
class RanksProblem(Problem):
    """The rows of all ranks, numbered in the order of the ranks: their blocks added up."""

    own: TorchProblem  # of this rank's rows
    ranks: Ranks
    counts: tuple[int | None, ...] = ()  # rows of every rank; None for a stream
    memory: list[Any] = field(default_factory=list)  # masses of rows

    @property
    def here(self) -> TorchProblem:
        """The rows of this rank, with what is asked of those of all."""
        asked = {name: getattr(self, name) for name in ("params", "left_out", "draw", "reading")}
        return replace(self.own, **asked)

    @property
    def n_rows(self) -> int | None:
        """Number of rows; None where a rank has a stream."""
        known = [n for n in self.counts if n is not None]
        return sum(known) if len(known) == len(self.counts) else None

    @property
    def masses(self) -> Weights | None:
        """Weight of every row in the mean loss; None where all count as one."""
        if self.n_rows is None:
            return None
        key = [self.own.rows, self.own.row_loss, self.reading]
        if any(a is not b for a, b in zip(self.memory or [None] * 3, key, strict=False)):

            def own() -> Weights:
                found = self._own_masses()
                return np.ones(self.here.n_rows) if found is None else found

            every = np.concatenate(self.ranks.arrays(own))
            self.memory[:] = *key, None if (every == 1).all() else every
        found: Weights | None = self.memory[3]
        return found

    def _own_masses(self) -> Weights | None:
        found: Weights | None = self.here.masses
        return found

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """Sums over the ranks: of their blocks with the same number, or of all."""
        own, like = self.here, self.params
        if n_blocks == 1:

            def of_this_rank() -> BlockGradient | None:
                total = summed(own.blocks())
                return total if total.n_rows else None  # none of a batch of other ranks

            whole = self.ranks.summed(of_this_rank, like)
            if whole is not None:
                yield whole
            return
        with closing(own.blocks(n_blocks)) as blocks:
            while block := self.ranks.summed(lambda: next(blocks, None), like):
                yield block
                del block  # freed before the next is made

    def row_batches(self, params: Params) -> Iterator[RowBatch]:
        """Rows are on other ranks too."""
        raise self._no_path()

    def means(
        self, summed: Callable[[TorchProblem], tuple[dict[Any, Tensor], float]]
    ) -> dict[Any, Tensor]:
        """Means over the rows of all ranks of what is summed over those of each."""
        if self.in_shards:
            raise self._no_path()
        own = replace(self.here, stream=self.ranks.place)
        loss = own.row_loss
        if loss.by_class and (loss.classes is None or loss.weighs(loss.classes)):
            pairs = self.ranks.shared(lambda: mass_and_weight(own))
            mass, weight = map(sum, zip(*pairs, strict=True))
            own = replace(own, mass_of_row=mass / weight)

        def sums() -> tuple[dict[Any, Tensor], float]:
            found = summed(own)
            if any(total.requires_grad for total in found[0].values()):
                raise self._no_path()
            return found

        return self.ranks.means(sums)

    def numbered_like(self, fitted: Problem) -> Self:
        """The same problem with labels numbered as they are in the fitted rows."""
        return replace(self, own=self.own.numbered_like(getattr(fitted, "own", fitted)))

    def at(self, params: Params) -> Self:
        """The same problem at other values of some parameters."""
        own = self.here.at(params)
        return replace(self, own=own, params=own.params)

    def whole(self) -> Self:
        """The same problem with all trained tensors in scope."""
        own = self.here.whole()
        return replace(self, own=own, params=own.params, left_out=own.left_out)

    def take(self, rows: Indices, weights: Weights) -> Self:
        """The same problem on some of the rows of all ranks, each reading its own."""
        ends = np.cumsum([0, *[n or 0 for n in self.counts]])
        inside = [(rows >= a) & (rows < b) for a, b in itertools.pairwise(ends)]
        mine = inside[self.ranks.place]
        own = self.own.take(rows[mine] - ends[self.ranks.place], np.asarray(weights)[mine])
        return replace(self, own=own, counts=tuple(int(at.sum()) for at in inside), memory=[])

    def seeing(self, batch: Any) -> Self:
        """The same problem on one batch, which one rank has and the others give as None."""
        if batch is None:
            none = Rows(lambda size, order: iter(()), 0)
            own = replace(self.own, rows=none, n_passes=1, memory=[])
        else:
            own = self.own.seeing(batch)
        counts = tuple(self.ranks.gathered(own.n_rows))
        return replace(self, own=own, n_passes=1, counts=counts, memory=[])

    def hvp(self, vector: Params) -> Params:
        """Hessian of the mean loss over the rows of all ranks times a vector."""

        def product() -> BlockGradient | None:
            here = self.here
            if here.n_rows is None:
                raise self._no_path()
            if not here.n_rows:
                return None
            mass = float(here.n_rows if here.masses is None else here.masses.sum())
            sums = {name: own.mul_(mass) for name, own in here.hvp(vector).items()}
            return BlockGradient(sums, 0.0, mass, here.n_rows, 0.0)

        total = self.ranks.summed(product, self.params)
        assert total is not None
        return {name: own.div_(total.weight) for name, own in total.sums.items()}

    def reads(self, names: Sequence[str]) -> bool:
        """Whether the gradient depends on frozen parameters, buffers or attributes."""
        found: bool = self.here.reads(names)
        return found

    def moved_with_loss(self) -> list[str]:
        """What the loss reads beside outputs and targets, and a training may have moved."""
        found: list[str] = self.here.moved_with_loss()
        return found

    def _no_path(self) -> ValueError:
        return ValueError(
            f"Expected a model of one process here, got {self.model_name} on {self.ranks.n} ranks, "
            "whose losses and means over rows are known, and not the rows of all; give the module "
            "inside, with the full weights and all rows, to one process."
        )


def on_ranks(
    ranks: Ranks,
    make: Callable[[], TorchProblem],
    kind: type[RanksProblem] = RanksProblem,
    more: Callable[[TorchProblem], dict[str, Any]] = lambda own: {},
) -> Any:
    """Problem of the rows of all ranks; ValueError where they have not the same model."""
    held = []

    def here() -> tuple[bool, int | None, bool]:
        held.append(make())
        some = held[0].rows.few(1) is not None
        return some, held[0].n_rows, held[0].row_loss.counted is not None

    any_rows, counts, counted = zip(*ranks.shared(here), strict=True)
    ranks.need_rows(any_rows)
    own = held.pop()
    if any(counted):
        own = _counted_alike(own, ranks)
    ranks.agree(_facts(own, ranks))
    own = _numbered_alike(own, ranks)
    same = {field.name: getattr(own, field.name) for field in fields(Problem)}
    return kind(**same | {"ranks": ranks}, own=own, counts=counts, **more(own))


def few_of_all(rows: Rows, ranks: Ranks) -> Batch | None:
    """A few rows of all ranks as one batch, the same on each; None where they cannot be cut."""
    n = max(2, TRIED_ROWS // ranks.n)

    def few() -> Batch | None:
        batch = rows.few(n)
        if batch is None or not cuts_into_rows(batch[:2], rows_in(batch)):
            return None
        own = batch._replace(weight=None)  # as others may not have any
        return Batch(*map_tensors(lambda t: t[:n].detach().cpu().clone(), tuple(own)))

    every = [batch for batch in ranks.shared(few) if batch is not None]
    return _alike(every) if every else None


def _alike(batches: Sequence[Batch]) -> Batch:
    """Rows of batches that are shaped as the one with the most different numbers of labels."""

    def kinds(batch: Batch) -> tuple[int, int]:
        target = batch.target
        if not isinstance(target, Tensor):
            return 0, 0
        return len(labels_in(target).reshape(len(target), -1).sum(1).unique()), len(target)

    def shape(batch: Batch) -> str:
        return repr(map_tensors(lambda t: t[:0], tuple(batch)[:2]))

    most = max(batches, key=kinds)
    return functools.reduce(joined, (own for own in batches if shape(own) == shape(most)))


def _counted_alike(own: TorchProblem, ranks: Ranks) -> TorchProblem:
    """Labels that count by the rows of all ranks: those of one may not show a mean over rows."""
    read = few_of_all(own.rows, ranks)
    if read is None:
        return own
    found = with_counted_labels(replace(own, row_loss=replace(own.row_loss, counted=None)), read)
    if not any(ranks.gathered(found.row_loss.counted is not None)):
        ranks.disagree(
            "a mean over labels as the loss that the model returns on rows",
            "one that is none; give loss= and a forward that returns outputs",
        )
    return found


def _facts(problem: TorchProblem, ranks: Ranks) -> dict[str, Any]:
    """What has to be the same on all ranks."""
    few = problem.rows.few(1)
    facts = {
        "tensors in scope": list(problem.params),
        "losses": problem.loss_name,
        "labels in the mean": getattr(problem.row_loss.counted, "__name__", "all"),
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
        facts[f"weights {name}"] = f"checksum {checksum(tensor):08x}"
    return facts


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
