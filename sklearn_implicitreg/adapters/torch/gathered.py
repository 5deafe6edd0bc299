"""Second derivatives of a module in shards: of a copy that has the whole tensors for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_implicitreg.adapters.torch.ranks import RanksProblem
from sklearn_implicitreg.problem import Params, Problem, Ranks
from sklearn_implicitreg.problem.frozen import own_name, rebuilt
from sklearn_implicitreg.problem.ranks import sharding_parts

ShardedProblem = Any  # which imports this module
_DISTRIBUTED = "torch.distributed."
_STATE = "__composable_api"  # what they keep in a module


def hessian_product(problem: ShardedProblem, vector: Params, parts: Params) -> Params:
    """Hessian of the mean loss times a vector, of which this rank has a part; all ``parts``."""
    along: Params = {}
    starts = {}
    for name, own in problem.params.items():
        given = vector.get(name, torch.zeros_like(own))
        along[name], starts[name] = _joined(given, problem.shapes[name], problem.ranks)
    found = {}
    for name, product in _whole(problem, parts).hvp(along).items():
        own, start = problem.params[name], starts[name]
        found[name] = product.reshape(-1)[start : start + own.numel()].reshape(own.shape).clone()
    return found


def _whole(problem: ShardedProblem, parts: Params) -> RanksProblem:
    """The same problem with a copy of the module that has whole tensors on every rank."""
    module = problem.own.module
    _check_order(module)
    values = {}
    for name, p in module.named_parameters():
        values[id(p)] = _joined(parts[name], tuple(p.shape), problem.ranks)[0].to(p.dtype)

    def named(tensor: Tensor) -> Tensor:
        if id(tensor) not in values:
            return tensor.detach().clone()
        return nn.Parameter(values[id(tensor)], requires_grad=tensor.requires_grad)

    with _plain(module):
        copy = rebuilt(module, named, lambda tensor: tensor.detach().clone())
    every = {own_name(name): p.detach() for name, p in copy.named_parameters()}
    same = {field.name: getattr(problem, field.name) for field in fields(Problem)}
    same |= {"params": {name: every[name] for name in problem.params}}
    same |= {"ranks": replace(problem.ranks, sharded=False)}
    own = replace(problem.own, module=copy, memory=[])
    return RanksProblem(**same, own=own, counts=problem.counts)


def _check_order(module: nn.Module) -> None:
    """Raise ValueError for a mesh in another order than the ranks, by which parts are joined."""
    for mesh in {p.device_mesh for p in module.parameters() if hasattr(p, "device_mesh")}:
        places = mesh.mesh.flatten().tolist()
        if places != sorted(places):
            raise ValueError(
                "Expected a device mesh in the order of the ranks for second derivatives of a "
                f"module that fully_shard shards, got {places}; use reference='applied' or windows "
                "of steps, or load its full state dict into a module of one process."
            )


def _joined(part: Tensor, shape: tuple[int, ...], ranks: Ranks) -> tuple[Tensor, int]:
    """A tensor from the parts that ranks have, in their order, and where the one here begins."""
    every = ranks.arrays(lambda: part.detach().double().cpu().reshape(-1).numpy())
    start = sum(len(own) for own in every[: ranks.place])
    return torch.from_numpy(np.concatenate(every)).reshape(shape).to(part.device), start


@contextlib.contextmanager
def _plain(module: nn.Module) -> Iterator[None]:
    """A module without what ``fully_shard`` and the like add to its layers, which is put back."""
    parts, sharding = list(module.modules()), sharding_parts(module)
    kinds, states = [type(part) for part in sharding], [dict(vars(part)) for part in parts]
    try:
        for part, kind in zip(sharding, kinds, strict=True):
            part.__class__ = kind.__mro__[getattr(kind, "_orig_cls_mro_index", 2)]
        for part in parts:
            for key, value in list(vars(part).items()):
                if key.startswith(_STATE):
                    del vars(part)[key]
                elif key.endswith("_hooks") and value:
                    kept = {k: hook for k, hook in value.items() if not _distributed(hook)}
                    vars(part)[key] = type(value)(kept)
        yield
    finally:
        for part, kind in zip(sharding, kinds, strict=True):
            part.__class__ = kind
        for part, state in zip(parts, states, strict=True):
            vars(part).clear()
            vars(part).update(state)


def _distributed(hook: Any) -> bool:
    return str(getattr(getattr(hook, "hook", hook), "__module__", "")).startswith(_DISTRIBUTED)
