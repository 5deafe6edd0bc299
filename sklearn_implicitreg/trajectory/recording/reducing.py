"""Reducing a trajectory to R factors while it is recorded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.adapters.torch.options import device_of
from sklearn_implicitreg.adapters.torch.sharded import part_of
from sklearn_implicitreg.adapters.torch.structure import in_scope
from sklearn_implicitreg.penalties import penalty_with_terms
from sklearn_implicitreg.penalties.base import Leaf, same
from sklearn_implicitreg.penalties.held import leaves_at
from sklearn_implicitreg.problem import (
    BlockGradient,
    Params,
    ParamsSpec,
    Problem,
    ranks_of,
    together,
)
from sklearn_implicitreg.problem.frozen import inner_module, own_name
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.trajectory.design import deviation, is_stochastic, window_design
from sklearn_implicitreg.trajectory.factors import check_factors
from sklearn_implicitreg.trajectory.marks import Kept, Mark, bare
from sklearn_implicitreg.trajectory.minibatch import (
    NUISANCE,
    gradient_and_column,
    named_batches,
)
from sklearn_implicitreg.trajectory.r_factors import (
    Block,
    Cell,
    LeafPenalty,
    RFactors,
    cells_of,
    signature,
)
from sklearn_implicitreg.trajectory.ranks import steps_over_ranks
from sklearn_implicitreg.trajectory.references import Gradient, as_reference
from sklearn_implicitreg.trajectory.window import Step, Window, on_device

_NAMED = ("gradient", "applied")


@dataclass(frozen=True)
class Reduction:
    """What the equations of a trajectory are made of while it is recorded."""

    model: nn.Module
    problem: Problem
    leaves: tuple[Leaf, ...]
    reference: str

    @classmethod
    def of(
        cls,
        model: nn.Module,
        groups: Mapping[str, str],
        families: Sequence[Any],
        reference: Any,
        data: Any,
        loss: Any,
        params: ParamsSpec,
    ) -> Reduction:
        """Check what was given."""
        if not isinstance(reference, str) or reference not in _NAMED:
            raise ValueError(
                f"Expected reference among {list(_NAMED)} with families= given while recording, "
                f"got {reference!r}; record the weights (without families=) for others."
            )
        if not isinstance(families, Sequence) or isinstance(families, str) or not families:
            raise ValueError(f"Expected families to be a list such as ['l2'], got {families!r}.")
        if data is None and (loss is not None or reference != "applied"):
            raise ValueError(
                "Expected data=(X, y) and loss= with families= and reference='gradient', got no "
                "data; give both, or reference='applied'."
            )
        if data is None:
            problem = _without_rows(model, params)
        elif isinstance(data, Problem):
            problem = data
        else:
            own = Data(*data) if isinstance(data, tuple) else Data(data)
            problem = adapt(model, own, Options(loss=loss, params=params, together=True))
        problem = replace(problem, param_groups=groups)
        penalties = map(penalty_with_terms, families)
        found = [leaf for own in penalties for leaf in leaves_at(own, problem)]
        _check_families(found, problem)
        leaves: dict[tuple[str, ...], list[Leaf]] = {}
        for leaf in found:
            known = leaves.setdefault(leaf.names, [])
            if not any(same(leaf.penalty, own.penalty) for own in known):
                known.append(replace(leaf, coef=None))
        return cls(model, problem, tuple(chain.from_iterable(leaves.values())), reference)

    @property
    def device(self) -> torch.device:
        """Where the columns are computed."""
        return next(iter(self.problem.params.values())).device

    def of_window(self, window: Window) -> RFactors:
        """Equations of a window as one block, and the sums over its steps."""
        is_epoch = window.stop.epoch > window.start.epoch
        reference = as_reference(self.reference, "epoch" if is_epoch else None)
        whole = self.problem.whole()
        nuisance: Params | None = None
        # The column of unnamed batches is a mean over the trajectory, which is not known yet.
        named = named_batches(window, whole) is not None
        if named and isinstance(reference, Gradient) and reference.weighted:
            gradient, nuisance = gradient_and_column(whole, window, reference)
        else:
            gradient = reference.mean_gradient(whole, window)
        means = [window_design(LeafPenalty(leaf), self.problem, window) for leaf in self.leaves]
        cells: list[Cell] = []
        designs: Params = {}
        deviations: Params = {}
        masks: Params = {}
        away = deviation(self.problem, window, gradient)
        for name, slope in away.value.items():
            design, masks[name] = self._joined(means, name, nuisance)
            if name not in away.absent:
                cells += cells_of(name, design, -slope.reshape(-1), masks[name])
            designs[name], deviations[name] = design.mul_(window.n_steps), slope * window.n_steps
        named_so = repr(reference), nuisance is not None
        block = Block(*named_so, gradient.scale, gradient.n_kinks, tuple(cells))
        names = [name for mean in means for name in mean.term_names]
        return RFactors(
            (*names, NUISANCE) if self._with_nuisance else tuple(names),
            tuple(self.problem.params),
            np.empty(0),
            self.reference,
            self.problem.loss_name,
            self.problem.n_rows,
            (block,),
            designs,
            deviations,
            masks,
        )

    def signed(self, sums: RFactors, blocks: Sequence[Block], weights: Params) -> RFactors:
        """R factors with what their columns are known by at the last weights."""
        found = [torch.as_tensor(signature(leaf, self.problem, weights)) for leaf in self.leaves]
        if self._with_nuisance:
            found.append(torch.full_like(found[0][:1], float("inf")))  # like no other column
        return replace(sums, signatures=torch.cat(found).numpy(), blocks=tuple(blocks))

    @property
    def _with_nuisance(self) -> bool:
        return self.reference != "applied"

    def _joined(
        self, means: list[Design], name: str, nuisance: Params | None
    ) -> tuple[Tensor, Tensor]:
        """Columns of all penalties side by side, and where each is differentiable."""
        designs = [mean.columns(name) for mean in means]
        masks = [torch.ones_like(design, dtype=torch.bool) for design in designs]
        for everywhere, mean in zip(masks, means, strict=True):
            smooth = mean.smooth(name)
            if smooth is not None:
                everywhere &= smooth[:, None]
        if self._with_nuisance:
            first = designs[0][:, :1]
            own = torch.zeros_like(first) if nuisance is None else nuisance[name].reshape(-1, 1)
            designs, masks = [*designs, own], [*masks, torch.ones_like(first, dtype=torch.bool)]
        if len(designs) == 1:
            return designs[0], masks[0]
        return torch.cat(designs, dim=1), torch.cat(masks, dim=1)


class ReducedKept(Kept):
    """Marks of which only the first and the last two hold tensors; the rest is R factors."""

    def __init__(self, reduction: Reduction):
        super().__init__(None, sys.maxsize)
        self._reduction = reduction
        self._blocks: list[Block] = []
        self._sums: RFactors | None = None
        self._signed: RFactors | None = None  # of several ranks, which are not together later

    def end_epoch(self, epoch: int, every: int) -> int:
        """Only epochs are blocks from here on, also the first one."""
        if epoch == 1:
            del self.marks[1:]
            self._blocks, self._sums, self._signed = [], None, None
        return sys.maxsize

    def settle(self, steps: Sequence[Step]) -> None:
        """Reduce the steps before the last mark, which is final now."""
        n = len(self.marks)
        if n < 2 or len(self._blocks) == n - 1:
            return
        with together(self._reduction.model, "record(families=...)"):
            self._reduce(steps)
        if n > 2:
            self.marks[-2] = bare(self.marks[-2])

    def _reduce(self, steps: Sequence[Step]) -> None:
        problem, device = self._reduction.problem, self._reduction.device
        start, stop = (mark.on(device) for mark in self.marks[-2:])
        own = tuple(steps[start.step : stop.step])
        if problem.ranks is not None:
            own = steps_over_ranks(own, problem)
        window = Window(start, stop, (start,), own, on_device(self.others, device))
        self.others.update(dict.fromkeys(window.changing()))  # a mean of them is of no use
        if self._sums is None and self._reduction.reference != "applied":
            check_factors(problem.whole(), [window])
        found = self._reduction.of_window(window)
        self._blocks += found.blocks
        if self._sums is None:
            self._sums = found
        else:
            self._sums.add(found)
        if problem.ranks is not None:
            self._signed = self._reduction.signed(self._sums, self._blocks, stop.weights)

    def close(self, steps: Sequence[Step], raised: bool = False) -> None:
        """Reduce the rest, unless it is less than an epoch after epochs."""
        if raised and ranks_of(self._reduction.model) is not None:
            return  # other ranks are in their loops and would not answer
        ends = self.marks
        epochs = [b.epoch > a.epoch for a, b in zip(ends[:-1], ends[1:], strict=True)]
        if len(epochs) < 2 or epochs[-1] or not all(epochs[:-1]):
            self.settle(steps)

    def recorded(self) -> tuple[tuple[Mark, ...], RFactors | None]:
        """The marks up to the last block that was reduced, and the R factors."""
        if self._sums is None:
            return tuple(self.marks[:1]), None
        marks = tuple(self.marks[: len(self._blocks) + 1])
        if self._signed is not None:
            return marks, self._signed
        weights = marks[-1].on(self._reduction.device).weights
        return marks, self._reduction.signed(self._sums, self._blocks, weights)


@dataclass(frozen=True, kw_only=True)
class _Weights(Problem):
    """The weights of a module without any rows."""

    counts: tuple[None, ...] = ()  # of rows that ranks have

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """Raise ValueError: there are no rows."""
        raise ValueError(
            "Expected data=(X, y) and loss= for penalties that look at the rows, got neither; "
            "give both to record(...)."
        )

    def whole(self) -> Problem:
        return self

    def at(self, params: Params) -> Problem:
        return replace(self, params={n: params[n] for n in self.params})


def _without_rows(given: nn.Module, params: ParamsSpec) -> Problem:
    model, ranks = inner_module(given), ranks_of(given)
    ranks = ranks if ranks is not None and ranks.sharded else None  # else all have the same
    found: Params = {
        own_name(n): p.detach() if ranks is None else part_of(p, ranks)
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    device = device_of("auto", found)
    trained = {n: p.to(device) for n, p in found.items()}
    names = in_scope(model, trained, params)
    kinds = {p.dtype for p in trained.values()}
    return _Weights(
        params={n: trained[n] for n in names},
        model_name=type(model).__name__,
        loss_name="",
        eps=max(torch.finfo(kind).eps for kind in kinds),
        left_out=tuple(n for n in trained if n not in names),
        ranks=ranks,
        counts=() if ranks is None else (None,) * ranks.n,
    )


def _check_families(leaves: Sequence[Leaf], problem: Problem) -> None:
    """Raise ValueError for penalties whose columns cannot be reduced while a model is trained."""
    for leaf in leaves:
        if is_stochastic(leaf):
            raise ValueError(
                f"Expected families without random draws, got {leaf.penalty!r}, whose instruments "
                "the R factors do not hold; record the weights (without families=)."
            )
        seen = {name: problem.params[name] for name in leaf.names}
        if leaf.penalty.placed(seen) is not leaf.penalty:
            raise ValueError(
                f"Expected families that are known before the training, got {leaf.penalty!r}, "
                "which takes its knots from the weights at the end; give knots=[...], or record "
                "the weights (without families=)."
            )
