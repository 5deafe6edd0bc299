"""A module whose tensors are sharded over ranks by ``fully_shard``: it runs itself, in place."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from sklearn_implicitreg.adapters.registry import Options
from sklearn_implicitreg.adapters.torch.data import (
    SCALE_ROWS,
    Batch,
    Rows,
    few_rows,
    of_equal_weight,
    rows_in,
)
from sklearn_implicitreg.adapters.torch.few_rows import (
    returned_loss,
    with_counted,
    with_custom_loss,
)
from sklearn_implicitreg.adapters.torch.gathered import hessian_product
from sklearn_implicitreg.adapters.torch.generators import preserved_rng
from sklearn_implicitreg.adapters.torch.labels import labels_after_first, labels_in
from sklearn_implicitreg.adapters.torch.options import set_modes
from sklearn_implicitreg.adapters.torch.ranks import RanksProblem, few_of_all
from sklearn_implicitreg.problem import (
    BlockGradient,
    Indices,
    Params,
    Ranks,
    Weights,
    closing,
    norm_of,
)
from sklearn_implicitreg.problem.ranks import sharding_parts
from sklearn_implicitreg.problem.vectors import wide, wide_zeros

_LABELS_AT_ONCE = 1024  # rows


@dataclass(frozen=True, kw_only=True)
class ShardedProblem(RanksProblem):
    """The rows of all ranks, and of every tensor the part that this one has."""

    tensors: Mapping[str, Tensor]  # all trained ones, the user's, with parts here
    modes: Sequence[bool]  # states of the layers
    placed: Params = field(default_factory=dict)  # values that the parts have in a pass
    first: Batch | None = None  # rows that pass with those of other ranks, and do not count

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the whole tensors."""
        return {name: tuple(self.tensors[name].shape) for name in self.params}

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """Sums over the ranks, batch by batch, in the tensors' parts on this one."""
        own, scale, begun = self.here, 0.0, False
        apart = own.row_loss.counted is not None
        last = None if self.first is None else own.to_device(self.first)
        with self.at_work(own), closing(own.batches_read(n_blocks)) as batches:
            while True:
                here: list[Batch] = []

                def read(here: list[Batch] = here) -> int:
                    for batch in map(own.to_device, itertools.islice(batches, 1)):
                        here.extend(of_equal_weight(batch, zero=True) if apart else [batch])
                    return len(here)

                left = self.ranks.shared(read)
                if not any(left):
                    return
                if last is None:
                    self.ranks.need_rows(left)
                last = here[-1] if here else last  # of the largest weight
                assert last is not None
                rest = [(last, False)] * (max(left) - len(here))
                passed = [*((part, True) for part in here), *rest]
                block = BlockGradient.joined([self._block(*each) for each in passed])
                if not begun and all(left) and not self.batch_normalized:
                    scale = self._row_scale(last)
                begun = True
                yield replace(block, scale=max(scale * block.n_rows, block.scale))
                del block  # freed before the next is made

    @contextlib.contextmanager
    def at_work(self, own: Any) -> Iterator[None]:
        """The user's module in the states of the fit; it is left as it was."""
        with (
            preserved_rng(own.device, own._drawn),
            torch.enable_grad(),
            own.own_kernels(),
            lent(own.module),
            self.ranks.bounded(),
        ):
            for part, mode in zip(own.module.modules(), self.modes, strict=True):
                part.training = mode
            with self._with_values():
                yield

    @contextlib.contextmanager
    def _with_values(self) -> Iterator[None]:
        """Other values in the user's tensors for a while."""
        held: dict[str, Any] = dict(self.own.module.named_buffers()) if self.placed else {}
        held |= {name: local_of(self.tensors[name]) for name in self.placed if name not in held}
        before = {name: held[name].clone() for name in self.placed}
        try:
            with torch.no_grad():
                for name, value in self.placed.items():
                    held[name].copy_(value)
            yield
        finally:
            for part in sharding_parts(self.own.module) if before else ():
                part.reshard()
            with torch.no_grad():
                for name, value in before.items():
                    held[name].copy_(value)

    def at(self, params: Params) -> Self:
        """The same problem at other values of some parameters, in the user's tensors."""
        buffers = dict(self.own.module.named_buffers())
        unknown = [n for n in params if n not in self.tensors and n not in buffers]
        pairs = [(n, local_of(t), part_of(t, self.ranks)) for n, t in self.tensors.items()]
        whole = [name for name, here, part in pairs if here.shape != part.shape]
        if unknown or whole:
            raise ValueError(
                "Expected a trajectory of tensors that fully_shard shards over all ranks, and of "
                f"buffers, got others: {', '.join(unknown or whole)}; load the full state dict "
                "into a module of one process for it."
            )
        placed = self.placed | params
        own = {n: placed[n].to(t.dtype) if n in placed else t for n, t in self.params.items()}
        return replace(self, params=own, placed=placed)

    def whole(self) -> Self:
        """The same problem with all trained tensors in scope."""
        names = [n for n in self.tensors if n in {*self.params, *self.left_out}]
        parts = {n: part_of(self.tensors[n], self.ranks) for n in names}
        parts |= {n: t.to(parts[n].dtype) for n, t in self.placed.items() if n in parts}
        return replace(self, params=parts, left_out=())

    def take(self, rows: Indices, weights: Weights) -> Self:
        """The same problem on some of the rows of all ranks, each reading its own."""
        return replace(super().take(rows, weights), first=self._some())

    def seeing(self, batch: Any) -> Self:
        """The same problem on one batch, which one rank has and the others give as None."""
        return replace(super().seeing(batch), first=self._some())

    def _some(self) -> Batch | None:
        return self.own.rows.few(2) if self.first is None else self.first

    def _own_masses(self) -> Weights | None:
        # Without the outputs, for which all ranks would have to pass as many batches.
        loss, found = self.own.row_loss, []
        if loss.by_class and loss.criterion.weight is not None:
            raise ValueError(
                "Expected a loss without class weights along a trajectory of a sharded module, "
                f"got {loss.words}; load its full state dict into a module of one process."
            )
        for batch in self.here.rows.batches(self.own.batch_size):
            own = loss.counts(batch.target) if loss.by_class else loss.masses(batch.target, None)
            ones = torch.ones(rows_in(batch)) if own is None else own.cpu()
            found.append(ones.double() * (1.0 if batch.weight is None else batch.weight.cpu()))
        return torch.cat(found).double().numpy() if found else None

    def hvp(self, vector: Params) -> Params:
        """Hessian of the mean loss times a vector, by a copy with whole tensors on every rank."""
        # Backward passes of a sharded module itself cannot be differentiated.
        module = self.own.module
        with lent(module):
            for part, mode in zip(module.modules(), self.modes, strict=True):
                part.training = mode
            with self._with_values():
                named = dict(module.named_parameters())
                parts = {name: part_of(p, self.ranks) for name, p in named.items()}
                return hessian_product(self, vector, parts)

    def reads(self, names: Sequence[str]) -> bool:
        """Whether the gradient may depend on frozen parameters, buffers or attributes."""
        return True

    def moved_with_loss(self) -> list[str]:
        """What the loss reads beside outputs and targets is not looked for."""
        return []

    def tried(self, options: Options) -> ShardedProblem:
        """Find out by a few rows what a user's loss returns."""

        def trial() -> Any:
            with self.at_work(self.own):
                # Rows that are picked one by one would take more passes on some ranks.
                apart = replace(self.own, rows=replace(self.own.rows, pick=None))
                found.append(with_custom_loss(apart, None, options))
            return found[0].loss_name

        found: list[Any] = []
        losses = self.ranks.shared(trial)
        self.ranks.agree({"losses": losses[self.ranks.place]})
        names = ("loss_name", "notes", "batch_normalized", "convention", "trained_sum")
        same = {name: getattr(found[0], name) for name in names}
        return replace(self, **same, own=replace(found[0], rows=self.own.rows))

    def with_counted_labels(self) -> ShardedProblem:
        """Find out by a few rows of all ranks over which labels a model's own loss is the mean."""

        def loss(own: Any, batch: Batch) -> Tensor:
            # The number of one rank, so that all take as many passes.
            return self.ranks.shared(lambda: returned_loss(own, batch).detach().cpu())[0]

        read, own = few_of_all(self.own.rows, self.ranks), self.own
        if read is not None:
            with self.at_work(own):
                own = with_counted(own, read, loss)
        if own.row_loss.counted is None:
            self.ranks.shared(functools.partial(_check_even, own.rows))
        return replace(self, loss_name=own.loss_name, eps=own.eps, own=own)

    def _block(self, batch: Batch, counts: bool = True) -> BlockGradient:
        """Gradient of the loss on a batch of each rank, which need not count."""
        held: list[Tensor] = []

        def evaluated() -> BlockGradient | None:
            total, weight, n_kinks = self.own.loss_on(batch)
            held.append(total if counts else total * 0)
            if not counts:
                return None
            return BlockGradient({}, float(total.detach()), weight, rows_in(batch), 0.0, n_kinks)

        blocks = [block for block in self.ranks.shared(evaluated) if block is not None]
        held.pop().backward()
        factors, sums, absent = _factors(self.own.module), {}, []
        for name, p in ((name, self.tensors[name]) for name in self.params):
            grad, p.grad = p.grad, None
            if grad is None:
                absent.append(name)
            if hasattr(p, "device_mesh"):
                local = part_of(p if grad is None else grad, self.ranks)
                factor = 0.0 if grad is None else factors.get(id(p)) or self.ranks.n
                sums[name] = local * factor
            else:
                whole = wide_zeros(p) if grad is None else wide(grad)
                sums[name] = part_of(self.ranks.add(whole), self.ranks)
        self.own.module.zero_grad()  # of tensors out of scope
        every = self.ranks.gathered((norm_of(sums), frozenset(absent)))
        norm = math.hypot(*[own for own, _ in every])
        missing = frozenset.intersection(*[names for _, names in every])
        return replace(BlockGradient.joined(blocks, sums), scale=norm, absent=missing)

    def _row_scale(self, batch: Batch) -> float:
        """Norm of the mean gradient of a few rows: the size of what the mean over all cancels."""
        few = few_rows(batch, SCALE_ROWS)
        if not all(self.ranks.gathered(few is not None)):
            return 0.0
        with preserved_rng(self.own.device):
            block = self._block(few or batch)
        return block.scale / block.n_rows


def _check_even(rows: Rows) -> None:
    """Raise ValueError where a mean over labels is no mean over rows."""
    found: dict[Any, set[int]] = {labels_in: set(), labels_after_first: set()}
    for batch in rows.batches(_LABELS_AT_ONCE):
        if isinstance(batch.target, Tensor) and not batch.target.is_floating_point():
            for counted, numbers in found.items():
                own = counted(batch.target).reshape(len(batch.target), -1)
                numbers.update(own.sum(1).tolist())
    for numbers in found.values():
        if len(numbers) > 1:
            raise ValueError(
                "Expected a mean over labels as the loss that a sharded module returns, or as many "
                f"labels in every row, got {min(numbers)} to {max(numbers)} of them and a loss of "
                "which a few rows show no such mean; give loss= and a forward that returns "
                "outputs, or load the full state dict into a module of one process."
            )


def part_of(tensor: Any, ranks: Ranks) -> Tensor:
    """The entries of a tensor that this rank has; of those on several, the first has them."""
    whole: Any = tensor.detach()
    if not hasattr(whole, "device_mesh"):
        plain: Tensor = whole if ranks.place == 0 else _none_of(whole)
        return plain
    mesh = whole.device_mesh
    places = zip(mesh.get_coordinate(), whole.placements, strict=True)
    local: Tensor = whole.to_local()
    mine = all(at == 0 for at, placement in places if placement.is_replicate())
    return local if mine else _none_of(local)


def local_of(tensor: Any) -> Tensor:
    """The entries of a tensor that are in this process."""
    own: Any = tensor.detach()
    local: Tensor = own.to_local() if hasattr(own, "device_mesh") else own
    return local


def _none_of(tensor: Tensor) -> Tensor:
    return tensor[:0] if tensor.ndim else tensor.reshape(1)[:0]


def modes_of(module: nn.Module, options: Options, rows: Any) -> tuple[bool, list[str], list[bool]]:
    """States of the layers in a fit, whether batches share statistics, and notes."""
    if any(type(part).train is not nn.Module.train for part in module.modules()):
        raise ValueError(
            "Expected a sharded module whose layers have no train() of their own, which may "
            "change weights; fit the module with its full state dict in one process."
        )
    with lent(module):
        normalized, notes = set_modes(module, options, rows)
        return normalized, notes, [part.training for part in module.modules()]


@contextlib.contextmanager
def lent(module: nn.Module) -> Iterator[None]:
    """Gradients, buffers, states and settings of a sharded module, put back at the end."""
    sharding, done = sharding_parts(module), False
    for part in sharding:
        part.reshard()
    with _states_kept(module), _averaging(sharding):
        try:
            yield
            done = True
        finally:
            for part in sharding:
                if not done and hasattr(part, "reset_iter_state"):
                    with contextlib.suppress(RuntimeError, AttributeError):  # inner, not used yet
                        part.reset_iter_state()
                part.reshard()


@contextlib.contextmanager
def _states_kept(module: nn.Module) -> Iterator[None]:
    """No gradients for a while; they, buffers and states are put back."""
    parts, params = list(module.modules()), list(module.parameters())
    modes, grads = [part.training for part in parts], [p.grad for p in params]
    buffers = [dict(part._buffers) for part in parts]
    values = [(b, b.clone()) for own in buffers for b in own.values() if b is not None]
    try:
        for p in params:
            p.grad = None
        yield
    finally:
        for part, mode, own in zip(parts, modes, buffers, strict=True):
            part.training = mode
            part._buffers.update(own)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad


@contextlib.contextmanager
def _averaging(sharding: Sequence[Any]) -> Iterator[None]:
    """Gradients reduced over the ranks, without those that wait to be."""
    groups = [group for part in sharding for group in groups_of(part)]
    settings = [(group.reduce_grads, group.all_reduce_grads) for group in groups]
    waiting = [(p, p.unsharded_accumulated_grad) for g in groups for p in g.fsdp_params]
    try:
        for group in groups:
            group.reduce_grads = group.all_reduce_grads = True
        for p, _ in waiting:
            p.unsharded_accumulated_grad = None
        yield
    finally:
        for group, setting in zip(groups, settings, strict=True):
            group.reduce_grads, group.all_reduce_grads = setting
        for p, grad in waiting:
            p.unsharded_accumulated_grad = grad


def groups_of(part: Any) -> list[Any]:
    """What torch keeps of the parameters that one part shards."""
    state = part._get_fsdp_state()
    one = [group] if (group := getattr(state, "_fsdp_param_group", None)) is not None else []
    return list(getattr(state, "_fsdp_param_groups", one))


def _factors(module: nn.Module) -> dict[int, float | None]:
    """What torch divides the sum over ranks of each gradient by, where a user has set it."""
    groups = [group for part in sharding_parts(module) for group in groups_of(part)]
    return {id(p.sharded_param): g.gradient_divide_factor for g in groups for p in g.fsdp_params}


def check_whole(module: nn.Module) -> None:
    """Raise ValueError for a sharded module where the model of one process is needed."""
    if sharding_parts(module):
        raise ValueError(
            "Expected a module of one process here, got one that fully_shard shards over ranks, "
            "which fit, score and searches with mode='endpoint' read; load the full state dict "
            "into a module of one process for everything else."
        )


def dtype_in_place(options: Options, params: Params) -> torch.dtype:
    """Type of the module, which is not converted."""
    kinds = {p.dtype for p in params.values()}
    dtype = functools.reduce(torch.promote_types, kinds)
    asked = str(options.dtype).removeprefix("torch.")
    if asked not in ("auto", str(dtype).removeprefix("torch.")) or options.device != "auto":
        raise ValueError(
            "Expected dtype='auto' and device='auto' with a sharded module, which runs as it is, "
            f"got {options.dtype!r} and {options.device!r}; convert the module itself."
        )
    return dtype


def integers_in_place(module: nn.Module, rows: Rows) -> tuple[bool, ...]:
    """Which integers stay integers: tensors, as in training, and all where they are looked up."""
    looked_up = any(isinstance(part, nn.Embedding) for part in module.modules())
    return tuple(own and (looked_up or rows.in_tensors) for own in rows.integers)


def coarsest(module: nn.Module, dtype: torch.dtype) -> float:
    """Rounding unit of the arithmetic, in which parts may compute or add up."""
    kinds = [dtype]
    for group in (group for part in sharding_parts(module) for group in groups_of(part)):
        policy = group.mp_policy
        kinds += [kind for kind in (policy.param_dtype, policy.reduce_dtype) if kind is not None]
    return max(torch.finfo(kind).eps for kind in kinds)
