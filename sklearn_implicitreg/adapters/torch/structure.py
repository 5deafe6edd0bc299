"""The structure of a module: a copy that shares its tensors, what is a weight."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sklearn_implicitreg.adapters.torch.options import BATCH_NORMS, INSTANCE_NORMS
from sklearn_implicitreg.problem import Params, ParamsSpec, select_params
from sklearn_implicitreg.problem.frozen import own_name, rebuilt

_NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def skeleton(
    module: nn.Module, device: torch.device | None, dtype: torch.dtype | None
) -> nn.Module:
    """Copy of a module's structure that shares its parameters' memory."""
    # Buffers and what a forward pass writes to are copied: nothing reaches the user's module.
    written = set()
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError("Expected an eager module, got a scripted one; give the original.")
        if getattr(part, "max_norm", None) is not None:  # embeddings renormalize in place
            written |= {id(p) for p in part.parameters(recurse=False)}

    def moved(tensor: Tensor) -> Tensor:
        if tensor.is_meta:  # of a module that is called with the tensors of others
            return tensor.detach()
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else None)

    def named(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return moved(tensor).clone()
        own = moved(tensor).clone() if id(tensor) in written else moved(tensor)
        return nn.Parameter(own, requires_grad=tensor.requires_grad)

    return rebuilt(module, named, lambda tensor: moved(tensor).clone())


def normalizing(module: nn.Module) -> set[str]:
    """Names of the parameters of normalization layers."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if isinstance(part, _NORMS)
        for name, _ in part.named_parameters(recurse=False)
    }


def weight_matrices(module: nn.Module) -> set[str]:
    """Names of the parameters with two or more axes that belong to no normalization."""
    norms = normalizing(module)
    every = {n: p for n, p in module.named_parameters() if p.requires_grad}
    return {n for n, p in every.items() if p.ndim >= 2 and n not in norms} or set(every)


def in_scope(
    module: nn.Module, trained: Params, spec: ParamsSpec, default: Iterable[str] | None = None
) -> list[str]:
    """Names of the tensors that ``params=`` selects; "auto" are ``default``, or the matrices."""
    covered, norms = default or weight_matrices(module), normalizing(module)
    return select_params(spec, trained, {*map(own_name, covered)}, {*map(own_name, norms)})


def groups_of(optimizers: Iterable[Any], names: Mapping[int, str]) -> dict[str, str]:
    """Group of every tensor that optimizers have, by the names that ``id`` gives them."""
    groups: dict[str, str] = {}
    for number, group in enumerate(own for one in optimizers for own in one.param_groups):
        for parameter in group["params"]:
            if id(parameter) in names:
                groups[names[id(parameter)]] = str(group.get("name", number))
    return groups


class Place(NamedTuple):
    """Where a value is held: ``holder[key]``, with the place of a holder that is a tuple."""

    holder: Any
    key: Any
    above: Place | None = None

    def get(self) -> Any:
        """The value that is there now."""
        holder = self.above.get() if self._fixed and self.above else self.holder
        return holder[self.key]

    def put(self, value: Any) -> None:
        """Set a value; a tuple is made again with it."""
        if not self._fixed or self.above is None:
            self.holder[self.key] = value
            return
        old = self.above.get()
        own = [*old[: self.key], value, *old[self.key + 1 :]]
        self.above.put(old._make(own) if hasattr(old, "_make") else type(old)(own))

    @property
    def _fixed(self) -> bool:
        return isinstance(self.holder, tuple)


class StatePart(NamedTuple):
    """A buffer, or a tensor, an array or a number that an attribute of a module holds."""

    name: str
    place: Place | None  # None: a parameter of a module in a container
    value: Tensor | float  # an array as the tensor that shares its memory


def state_of(module: nn.Module, seen: set[int] | None = None) -> Iterator[StatePart]:
    """What a forward pass may read and no parameter is, without what it computed itself."""
    seen = set() if seen is None else seen
    parts = [(prefix, part) for prefix, part in module.named_modules() if id(part) not in seen]
    for _, part in parts:
        seen |= {id(part), *map(id, vars(part).get("_parameters", {}).values())}
    for prefix, part in parts:
        own = vars(part)
        if "_orig_mod" in own.get("_modules", ()):  # a wrapper of torch.compile
            continue
        start = own_name(f"{prefix}.") if prefix else ""
        for key, value in own.get("_buffers", {}).items():
            if key != "num_batches_tracked" or not isinstance(part, _NORMS):  # which nothing reads
                yield from _parts(f"{start}{key}", Place(own["_buffers"], key), value, seen)
        for key, value in own.items():
            if key not in (_SETTINGS if type(part).__module__.startswith(_TORCH) else _STRUCTURE):
                yield from _parts(f"{start}{key}", Place(own, key), value, seen)


_STRUCTURE = frozenset(vars(nn.Module()))  # of every module: its mode, its hooks, its parts
_TORCH = "torch.nn.modules."
_SETTINGS = _STRUCTURE | {  # of torch's own layers, which are looked at in every step
    *("kernel_size", "stride", "padding", "dilation", "output_padding", "normalized_shape"),
    "_reversed_padding_repeated_twice",
}
_NUMBERS = (int, float, np.bool_, np.integer, np.floating)
_MANY = 1000  # entries of a container, such as a vocabulary, whose numbers are not looked at


def _parts(name: str, place: Place, value: Any, seen: set[int]) -> Iterator[StatePart]:
    if isinstance(value, _NUMBERS):
        yield StatePart(name, place, value)  # type: ignore[arg-type]
    elif value is None or isinstance(value, str):
        return
    elif isinstance(value, Tensor):
        computed = value.grad_fn is not None or value.is_meta or value.layout != torch.strided
        if not computed and id(value) not in seen:
            seen.add(id(value))
            yield StatePart(name, place, value)
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf" and id(value) not in seen:
            seen.add(id(value))
            shared = _shared(value)
            if shared is not None:
                yield StatePart(name, place, shared)
    elif isinstance(value, nn.Module):  # in a container, which keeps it out of the parameters
        yield from _of_module(name, value, seen)
    elif isinstance(value, Mapping | list | tuple | deque | SimpleNamespace) or (
        is_dataclass(value) and not isinstance(value, type)
    ):
        yield from _inside(name, place, value, seen)


def _of_module(name: str, module: nn.Module, seen: set[int]) -> Iterator[StatePart]:
    if id(module) in seen:  # such as the module that holds this one
        return
    for key, tensor in module.named_parameters():
        if id(tensor) not in seen and not tensor.is_meta:
            seen.add(id(tensor))
            yield StatePart(f"{name}.{own_name(key)}", None, tensor)
    for part in state_of(module, seen):
        yield part._replace(name=f"{name}.{part.name}")


def _inside(name: str, place: Place, value: Any, seen: set[int]) -> Iterator[StatePart]:
    """What a container holds, or an object that has nothing but its fields."""
    if isinstance(value, tuple):
        above = place
    elif id(value) in seen:
        return
    else:
        seen.add(id(value))
        above = None
    sequence = isinstance(value, list | tuple | deque)
    holder = value if sequence or isinstance(value, Mapping) else getattr(value, "__dict__", {})
    fixed = not sequence and not isinstance(holder, MutableMapping)
    numbers = len(holder) <= _MANY and not fixed
    for key, own in enumerate(holder) if sequence else holder.items():
        if numbers or not isinstance(own, _NUMBERS):
            yield from _parts(f"{name}[{key!r}]", Place(holder, key, above), own, seen)


def _shared(array: npt.NDArray[Any]) -> Tensor | None:
    """Tensor in the memory of an array; None for numbers that torch does not have."""
    try:
        if array.flags.writeable:
            return torch.from_numpy(array)
        with warnings.catch_warnings():  # nothing writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array)
    except (TypeError, ValueError):
        return None


def restore(module: nn.Module, values: Params) -> None:
    """Set parameters, buffers and attributes of a copy; whole tensors to the nearest number."""
    named = dict(module.named_parameters())
    for name in values.keys() & named.keys():
        named[name].data = values[name].to(named[name])
    rest = {name: value for name, value in values.items() if name not in named}
    for part in list(state_of(module)) if rest else ():
        if part.name in rest:
            _set(part, rest[part.name])


def _set(part: StatePart, value: Tensor) -> None:
    old = part.value
    if isinstance(old, Tensor):
        exact = value if old.is_floating_point() or old.is_complex() else value.round()
        exact = exact.to(old.device, old.dtype)
        if part.place is not None and isinstance(part.place.get(), np.ndarray):
            part.place.put(exact.numpy())
        else:
            old.data = exact
        return
    assert part.place is not None
    number = float(value)
    whole = not isinstance(old, float | np.floating) and number == round(number)
    kind = type(old) if whole or isinstance(old, np.floating) else float
    part.place.put(kind(round(number)) if whole else kind(number))
