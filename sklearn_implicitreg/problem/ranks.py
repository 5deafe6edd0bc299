"""The processes that a model lives on: what they agree on, their sums and their errors."""

from __future__ import annotations

import contextlib
import functools
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sklearn_implicitreg.problem.frozen import FrozenModel, wrappers_of
from sklearn_implicitreg.problem.gradient import BlockGradient
from sklearn_implicitreg.problem.vectors import Params, wide, wide_zeros

Array = npt.NDArray[np.float64]
T = TypeVar("T")
Key = TypeVar("Key")
Function = TypeVar("Function", bound=Callable[..., Any])

# In which all ranks begin a fit; later a rank may have more rows than another.
_BEGIN, _LATER = timedelta(seconds=60), timedelta(minutes=30)
_IN_LAYERS = timedelta(minutes=5)  # where all have a batch at hand
_KEY = "sklearn_implicitreg"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# Parameters of an estimator that may differ, or whose own values are compared elsewhere.
_OWN = ("model", "trajectory", "cache", "verbose")
_counts: dict[str, int] = {}  # exchanges of each group
_meetings: set[str] = set()  # groups in a meeting


@dataclass(frozen=True)
class Ranks:
    """The processes of one group, each with rows of its own."""

    group: Any
    sharded: bool = False  # each has a part of the tensors; else all have all of them

    @property
    def n(self) -> int:
        """Number of processes."""
        return dist.get_world_size(self.group)

    @property
    def place(self) -> int:
        """Number of this process among them."""
        return dist.get_rank(self.group)

    @property
    def name(self) -> str:
        """Name of the group."""
        return str(getattr(self.group, "group_name", ""))

    @property
    def meets(self) -> bool:
        """Whether the ranks are in a fit, a score or a search together."""
        return self.name in _meetings

    def shared(self, make: Callable[[], T], limit: timedelta = _LATER) -> list[T]:
        """What every rank makes, in their order; where one raises an error, all do."""
        if not self.meets:  # the others would not answer
            raise ValueError(
                "Expected fit, score or a search, which all ranks call and in which they exchange "
                "what each has, got a call of something else; load the full state dict into a "
                "module of one process for it."
            )
        try:
            answer: tuple[str, Any] = "", make()
        except Exception as error:
            words = f"{type(error).__name__}: {error}".rstrip(".")
            for rank, (other, _) in enumerate(self._exchanged((words, None), limit)):
                if other and rank != self.place:
                    error.add_note(f"Rank {rank} raised {other}.")
            error.__dict__["on_all_ranks"] = True
            raise
        answers = self._exchanged(answer, limit)
        for rank, (words, _) in enumerate(answers):
            if words:
                self._raise(f"all {self.n} ranks to succeed, but rank {rank} raised {words}.")
        return [value for _, value in answers]

    def gathered(self, value: T) -> list[T]:
        """A small value of every rank."""
        return self.shared(lambda: value)

    def agree(self, facts: Mapping[str, Any], limit: timedelta = _LATER) -> None:
        """Raise ValueError on all ranks where facts differ, with who has what."""
        every = self.shared(lambda: dict(facts), limit)
        for name in dict.fromkeys(name for own in every for name in own):
            values = [_ADDRESS.sub("", str(own.get(name, "none"))) for own in every]
            if len(set(values)) > 1:
                places = {v: [i for i, w in enumerate(values) if v == w] for v in values}
                found = " and ".join(f"{value} on {_at(own)}" for value, own in places.items())
                self._raise(f"the same {name} on all {self.n} ranks, got {found}.")

    def add(self, tensor: Tensor) -> Tensor:
        """A float64 tensor summed over the ranks, in place."""
        there = tensor if dist.get_backend(self.group) != "nccl" else tensor.cuda()
        self._collective(lambda: dist.all_reduce(there, group=self.group))
        return tensor if there is tensor else tensor.copy_(there)

    def arrays(self, make: Callable[[], Array]) -> list[Array]:
        """A flat array that every rank makes, of any length."""
        held: list[Array] = []

        def length() -> int:
            held.append(make())
            return len(held[0])

        lengths = self.shared(length)
        array = held.pop()
        own = torch.zeros(max(lengths), dtype=torch.float64)
        own[: len(array)] = torch.from_numpy(array)
        own = own if dist.get_backend(self.group) != "nccl" else own.cuda()
        every = [torch.empty_like(own) for _ in lengths]
        self._collective(lambda: dist.all_gather(every, own, group=self.group))
        pairs = zip(every, lengths, strict=True)
        return [part[:length].cpu().numpy() for part, length in pairs]

    def summed(
        self, make: Callable[[], BlockGradient | None], like: Params
    ) -> BlockGradient | None:
        """Sum of the ranks' blocks of rows; None where none has one."""
        held: list[BlockGradient | None] = []

        def numbers() -> BlockGradient | None:
            held.append(make())
            return held[0] and replace(held[0], sums={})

        blocks = [block for block in self.shared(numbers) if block is not None]
        if not blocks:
            return None
        own = held.pop()
        sums: Params = {}
        for name, tensor in like.items():
            part = wide_zeros(tensor) if own is None else wide(own.sums[name]).contiguous()
            sums[name] = self.add(part)
        return BlockGradient.joined(blocks, sums)

    def means(self, make: Callable[[], tuple[dict[Key, Tensor], float]]) -> dict[Key, Tensor]:
        """Means over the rows of all ranks of what each sums over its own, with their weight."""
        held: list[dict[Key, Tensor]] = []

        def shapes() -> tuple[dict[Key, tuple[int, ...]], float]:
            sums, weight = make()
            held.append(sums)
            return {key: tuple(total.shape) for key, total in sums.items()}, weight

        every, own = self.shared(shapes), held.pop()
        total = sum(weight for _, weight in every)
        found = {}
        for key, shape in {k: v for one, _ in every for k, v in one.items()}.items():
            part = torch.zeros(shape, dtype=torch.float64) if key not in own else wide(own[key])
            found[key] = self.add(part.detach().clone(memory_format=torch.contiguous_format))
            found[key] /= total
        return found

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """Collectives inside layers in which no rank waits long for one that raised an error."""
        device = torch.device("cuda" if dist.get_backend(self.group) == "nccl" else "cpu")
        options = self.group._get_backend(device).options
        before = options._timeout
        try:
            dist.distributed_c10d._set_pg_timeout(min(before, _IN_LAYERS), self.group)
            yield
        finally:
            dist.distributed_c10d._set_pg_timeout(before, self.group)

    def disagree(self, expected: str, got: str) -> NoReturn:
        """Raise ValueError on all ranks, which know the same."""
        self._raise(f"{expected} of {self.n} ranks, got {got}.")

    def need_rows(self, there: Sequence[int]) -> None:
        """Raise ValueError on all ranks where some have no rows."""
        without = [rank for rank, rows in enumerate(there) if not rows]
        if without:
            self.disagree("at least 1 row on each", f"none on {_at(without)}; give each some")

    def _exchanged(self, answer: Any, limit: timedelta) -> list[Any]:
        # By the store and not by the group, whose collectives wait for a rank that has stopped.
        store, count = dist.distributed_c10d._get_default_store(), _counts.get(self.name, 0)
        keys = [f"{_KEY}/{self.name}/{count}/{rank}" for rank in range(self.n)]
        store.set(keys[self.place], pickle.dumps(answer))  # type: ignore[arg-type]
        try:
            store.wait(keys, limit)
        except (RuntimeError, TimeoutError):  # of torch, and of its stores
            late = [rank for rank, key in enumerate(keys) if not store.check([key])]
            store.delete_key(keys[self.place])
            self._raise(
                f"an answer of all {self.n} ranks within {limit.total_seconds():g} s, got none of "
                f"{_at(late)}; call the same method on every rank, and look for an error there."
            )
        found = [pickle.loads(store.get(key)) for key in keys]
        _counts[self.name] = count + 1
        if count:  # which all have read
            store.delete_key(f"{_KEY}/{self.name}/{count - 1}/{self.place}")
        return found

    def _collective(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            self._raise(f"all {self.n} ranks to stay connected, but one was lost: {error}.")

    def _raise(self, what: str) -> NoReturn:
        error = ValueError(f"Expected {what}")
        error.__dict__["on_all_ranks"] = True
        raise error


def ranks_of(model: Any) -> Ranks | None:
    """The processes that a model lives on; None for a model of this process alone."""
    model = model.model if isinstance(model, FrozenModel) else model
    inside = getattr(model, "module_", None)  # of a skorch net
    if isinstance(inside, nn.Module) and ranks_of(inside) is not None:
        raise ValueError(
            f"Expected the module alone where it lives on several ranks, got it in a "
            f"{type(model).__name__}; give model=net.module_ with its loss and the rows of each "
            "rank."
        )
    if not isinstance(model, nn.Module):
        return None
    for wrapper in wrappers_of(model):
        if _is(wrapper, "DistributedDataParallel"):
            return Ranks(_initialized(functools.partial(getattr, wrapper, "process_group")))
        tensors = any(_is(tensor, "DTensor") for tensor in wrapper.parameters())
        if tensors or sharding_parts(wrapper):
            return Ranks(_initialized(functools.partial(_group_of, wrapper)), sharded=True)
    _check_parts(model)
    return None


def _check_parts(module: nn.Module) -> None:
    """Raise ValueError where only a part of a module lives on several ranks."""
    for part in module.modules():
        if _is(part, "FullyShardedDataParallel"):
            raise ValueError(
                "Expected a module that fully_shard shards, got one of FullyShardedDataParallel; "
                "shard it by torch.distributed.fsdp.fully_shard, or load the full state dict into "
                "a module of one process."
            )
        alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        if _is(part, "DistributedDataParallel") and not alone:
            raise ValueError(
                "Expected DistributedDataParallel around the whole model, got it around a part of "
                f"{type(module).__name__}; wrap the whole, or give the part."
            )


def sharding_parts(module: nn.Module) -> list[Any]:
    """Parts of a module that ``fully_shard`` was called on."""
    return [part for part in module.modules() if _is(part, "FSDPModule")]


def _is(value: Any, name: str) -> bool:
    """Whether the class of a value has a name among its bases, without an import of it."""
    return any(cls.__name__ == name for cls in type(value).__mro__)


def _group_of(module: nn.Module) -> Any:
    """The processes of a sharded module; ValueError for other tensors than ``fully_shard`` has."""
    parts = sharding_parts(module)
    for part in parts:
        part.reshard()  # the outermost stays whole after a forward pass
    tensors: list[Any] = [p for p in module.parameters() if _is(p, "DTensor")]
    meshes = list(dict.fromkeys(tensor.device_mesh for tensor in tensors))
    kinds = [p for tensor in tensors for p in tensor.placements if not p.is_replicate()]
    alone = all(sum(not p.is_replicate() for p in t.placements) <= 1 for t in tensors)
    first = all(getattr(p, "dim", None) == 0 for p in kinds)
    group = meshes[0].get_group() if meshes and meshes[0].ndim == 1 else dist.group.WORLD
    if (
        not parts
        or len(meshes) != 1
        or not alone
        or not first
        or (meshes[0].size() != dist.get_world_size(group))
    ):
        raise ValueError(
            "Expected a module that fully_shard shards along the first axis of its tensors, over "
            "all processes or one mesh, got DTensors of another kind (tensor parallel, several "
            "meshes); load the full state dict into a module of one process and fit that."
        )
    return group


def on_all_ranks(method: Function) -> Function:
    """A method of an estimator that ranks enter and leave together."""

    @functools.wraps(method)
    def met(self: Any, X: Any = None, *rows: Any, **named: Any) -> Any:  # noqa: N803
        first = X[0] if isinstance(X, Sequence) and len(X) and hasattr(X[0], "model") else self
        ranks = ranks_of(first.model)
        if ranks is None or ranks.meets:
            return method(self, X, *rows, **named)
        given = {k: v for k, v in self.get_params(deep=False).items() if k not in _OWN}
        facts = {f"{name}=": repr(value) for name, value in given.items()}
        facts["versions of sklearn_implicitreg"] = version("sklearn_implicitreg")
        facts["methods"] = f"{type(self).__name__}.{method.__name__}"
        with _meeting(ranks, facts):
            return method(self, X, *rows, **named)

    return met  # type: ignore[return-value]


@contextlib.contextmanager
def _meeting(ranks: Ranks, facts: Mapping[str, Any]) -> Iterator[None]:
    """What ranks do together; where one raises an error, all do."""
    _meetings.add(ranks.name)
    try:
        ranks.agree(facts, _BEGIN)
        try:
            yield
        except Exception as error:
            if not getattr(error, "on_all_ranks", False):
                ranks.shared(functools.partial(_raised, error))
            raise
        ranks.gathered(None)
    finally:
        _meetings.discard(ranks.name)


def together(model: Any, what: str) -> contextlib.AbstractContextManager[None]:
    """What the ranks of a model do together outside of an estimator; they are there at once."""
    ranks = ranks_of(model)
    if ranks is None or ranks.meets:
        return contextlib.nullcontext()
    return _meeting(ranks, {"methods": what})


def mean_over_rows(
    problem: Any, summed: Callable[[Any], tuple[dict[Key, Tensor], float]]
) -> dict[Key, Tensor]:
    """Means over the rows of all ranks, from the weighted sums over those here and their weight."""
    if getattr(problem, "ranks", None) is not None:
        found: dict[Key, Tensor] = problem.means(summed)
        return found
    sums, weight = summed(problem)
    return {key: total / weight for key, total in sums.items()}


def _raised(error: Exception) -> NoReturn:
    raise error


def _initialized(find: Callable[[], Any]) -> Any:
    """A group that is there; ValueError where it was destroyed."""
    if dist.is_available() and dist.is_initialized():
        group = find()
        with contextlib.suppress(ValueError, RuntimeError):
            if dist.get_rank(group) >= 0:
                return group
    raise ValueError(
        "Expected a model whose process group is initialized, got one that lost it; fit before "
        "torch.distributed.destroy_process_group, or give the module inside "
        "(DistributedDataParallel) or a module with the full state dict (fully_shard)."
    )


def _at(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
