"""The structure of a module: a copy that shares its tensors, what is a weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sklearn_implicitreg.adapters.torch.options import BATCH_NORMS, INSTANCE_NORMS
from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.problem.frozen import own_name, rebuilt

_NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def skeleton(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """Copy of a module's structure that shares its parameters' memory."""
    # Buffers and what a forward pass writes to are copied: nothing reaches the user's module.
    written = set()
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError("Expected an eager module, got a scripted one; give the original.")
        if getattr(part, "max_norm", None) is not None:  # embeddings renormalize in place
            written |= {id(p) for p in part.parameters(recurse=False)}

    def moved(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else None)

    def named(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return moved(tensor).clone()
        own = moved(tensor).clone() if id(tensor) in written else moved(tensor)
        return nn.Parameter(own, requires_grad=tensor.requires_grad)

    return rebuilt(module, named, lambda tensor: moved(tensor).clone())


def weight_matrices(module: nn.Module) -> set[str]:
    """Names of the parameters with two or more axes that belong to no normalization."""
    norms = {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if isinstance(part, _NORMS)
        for name, _ in part.named_parameters(recurse=False)
    }
    every = {n: p for n, p in module.named_parameters() if p.requires_grad}
    return {n for n, p in every.items() if p.ndim >= 2 and n not in norms} or set(every)


def groups_of(optimizers: Iterable[Any], names: Mapping[int, str]) -> dict[str, str]:
    """Group of every tensor that optimizers have, by the names that ``id`` gives them."""
    groups: dict[str, str] = {}
    for number, group in enumerate(own for one in optimizers for own in one.param_groups):
        for parameter in group["params"]:
            if id(parameter) in names:
                groups[names[id(parameter)]] = str(group.get("name", number))
    return groups


class StatePart(NamedTuple):
    """A buffer, or a tensor or number that is an attribute of a module."""

    name: str
    holder: Any  # what it is set in
    key: Any
    value: Tensor | float


def state_of(module: nn.Module) -> Iterator[StatePart]:
    """What a forward pass may read and no parameter is, without what it computed itself."""
    parts = list(module.named_modules())
    seen = {id(p) for _, part in parts for p in vars(part).get("_parameters", {}).values()}
    for prefix, part in parts:
        own = vars(part)
        if "_orig_mod" in own.get("_modules", ()):  # a wrapper of torch.compile
            continue
        start = own_name(f"{prefix}.") if prefix else ""
        attributes = {k: v for k, v in own.items() if k not in _STRUCTURE}
        for holder in (own.get("_buffers", {}), attributes):
            setting = own if holder is attributes else holder
            for key, value in holder.items():
                yield from _parts(f"{start}{key}", setting, key, value, seen)


_STRUCTURE = frozenset(vars(nn.Module()))  # of every module: its mode, its hooks, its parts


def _parts(name: str, holder: Any, key: Any, value: Any, seen: set[int]) -> Iterator[StatePart]:
    if isinstance(value, Tensor):
        computed = value.grad_fn is not None or value.is_meta or value.layout != torch.strided
        if not computed and id(value) not in seen:
            seen.add(id(value))
            yield StatePart(name, holder, key, value)
    elif type(value) in (int, float, bool):
        yield StatePart(name, holder, key, value)
    elif isinstance(value, nn.Module):  # in a list, which keeps it out of the parameters
        for own_key, tensor in value.named_parameters():
            yield from _parts(f"{name}.{own_key}", None, None, tensor, seen)
        for part in state_of(value):
            yield part._replace(name=f"{name}.{part.name}")
    elif type(value) in (dict, list, tuple):
        inner = value.items() if isinstance(value, Mapping) else enumerate(value)
        for place, own in inner:
            if isinstance(own, Tensor | nn.Module | dict | list | tuple):
                yield from _parts(f"{name}[{place!r}]", value, place, own, seen)


def restore(module: nn.Module, values: Params) -> None:
    """Set parameters, buffers and attributes of a copy; whole numbers to the nearest."""
    named = dict(module.named_parameters())
    for name in values.keys() & named.keys():
        named[name].data = values[name].to(named[name])
    rest = {name: value for name, value in values.items() if name not in named}
    for part in list(state_of(module)) if rest else ():
        value = rest.get(part.name)
        if value is None:
            continue
        old = part.value
        if isinstance(old, Tensor):
            exact = value if old.is_floating_point() else value.round()
            old.data = exact.to(old.device, old.dtype)
        else:
            number = float(value)
            part.holder[part.key] = number if isinstance(old, float) else type(old)(round(number))
