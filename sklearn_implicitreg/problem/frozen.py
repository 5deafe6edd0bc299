"""A trained module as a parameter value: shared by clone, cheap to send to workers."""

from __future__ import annotations

import copy
import itertools
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from sklearn_implicitreg.problem.references import Made, leads, turned

# Names of classes whose instances come trained, though they are no scikit-learn estimators.
TRAINED_CLASSES = {"statsmodels.Results", "statsmodels.ResultsWrapper"}

_WRAPPER = "_orig_mod"  # where torch.compile keeps the module that it wraps

# Classes that pass all calls on to what is in their ``module``.
_PASSING_ON = {"DataParallel", "DistributedDataParallel", "DeepSpeedEngine", "_FabricModule"}

# Held while a module is read, or while its parts have the state of a copy.
STATES = threading.RLock()


class FrozenModel:
    """Trained module that searches share instead of copying it.

    Put one in a parameter grid (``{"model": [FrozenModel(a), FrozenModel(b)]}``), where
    scikit-learn would deep-copy a bare module for every candidate and fold.

    Parameters
    ----------
    model : torch.nn.Module
        The trained module; it is never changed.

    Raises
    ------
    TypeError
        If ``model`` is not an instance of ``nn.Module``.

    Examples
    --------
    >>> from sklearn.base import clone
    >>> frozen = FrozenModel(torch.nn.Linear(3, 1))
    >>> clone(frozen) is frozen
    True
    """

    def __init__(self, model: nn.Module):
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"Expected a trained nn.Module instance, got {type(model).__name__}; other "
                "estimators are frozen by sklearn.frozen.FrozenEstimator."
            )
        self.model = model

    def __sklearn_clone__(self) -> FrozenModel:
        return self

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters())
        return f"FrozenModel({type(self.model).__name__}, {size:,} parameters)"

    def __copy__(self) -> FrozenModel:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenModel:
        return FrozenModel(copy.deepcopy(self.model, memo))

    def __getstate__(self) -> dict[str, Any]:
        return {"model": Sent.of(self.model)}


class Sent:
    """A model on its way to another process; it arrives as the model."""

    # Its large arrays are the same objects each time that it is pickled: joblib maps them into
    # memory once, where bytes that torch makes would travel with every task. Within one pickle a
    # model is one of these, so that it arrives as one.

    _on_their_way: ClassVar[WeakValueDictionary[int, Sent]] = WeakValueDictionary()

    def __init__(self, model: Any):
        self.model = model

    @classmethod
    def of(cls, model: Any) -> Sent:
        """The one of this model that is on its way, or a new one."""
        with STATES:
            found = cls._on_their_way.get(id(model))  # which keeps the model, and so its id
            if found is None:
                found = cls._on_their_way[id(model)] = cls(model)
            return found

    def __reduce__(self) -> tuple[Any, ...]:
        model = self.model
        if isinstance(model, nn.Module):
            with STATES:
                return _arrived, (_structure(model),)
        made, args, *rest = model.__reduce_ex__(4)
        if rest and isinstance(rest[0], dict):  # else of a class that pickles itself
            with STATES:
                held = _HELD.setdefault(model, {})
                rest[0] = {key: _held_bytes(held, key, sent(v)) for key, v in rest[0].items()}
        return _made, (made, args), *rest


def sent(value: Any, around: frozenset[int] = frozenset()) -> Any:
    """The same value, with the modules and nets that are in it ready to be sent."""
    if isinstance(value, nn.Module) or isinstance(getattr(value, "module_", None), nn.Module):
        return Sent.of(value)
    if type(value) in (list, tuple):
        inside = [sent(own, around) for own in value]
        same = all(one is other for one, other in zip(inside, value, strict=True))
        return value if same else type(value)(inside)
    if not hasattr(value, "get_params") or isinstance(value, type) or id(value) in around:
        return value
    around |= {id(value)}
    return Sent.of(value) if any(sent(v, around) is not v for v in vars(value).values()) else value


def sent_state(state: dict[str, Any]) -> dict[str, Any]:
    """State of an estimator, whose model is ready to be sent unless other values lead to it."""
    ours = {key: state[key] for key in ("model", "model_") if key in state}
    modules = [model for model in ours.values() if isinstance(model, nn.Module)]
    parts = {id(p): p for module in modules for p in (*module.modules(), *module.parameters())}
    if any(leads(value, parts, set()) for key, value in state.items() if key not in ours):
        return state  # a bound method or a closure has to arrive with the module that it is of
    return state | {key: sent(model) for key, model in ours.items()}


def rebuilt(
    module: nn.Module, named: Callable[[Tensor], Tensor], loose: Callable[[Tensor], Tensor]
) -> nn.Module:
    """Copy of a module's structure with other tensors, wherever they are referred to."""
    # The module's own __deepcopy__ is not called: it may raise or copy the weights. ``named``
    # makes parameters and buffers, ``loose`` other tensors; wrappers of torch.compile are left out.
    stored = itertools.chain(module.parameters(), module.buffers())
    memo: dict[int, Any] = {id(tensor): named(tensor) for tensor in stored}
    parts = parts_of(module)
    for part in parts:
        memo[id(part)] = object.__new__(type(part))  # a GraphModule's own makes another class
        for tensor in tensors_in(vars(part)):
            if id(tensor) not in memo:
                memo[id(tensor)] = loose(tensor)
    for part in module.modules():
        memo[id(part)] = memo[id(_unwrapped(part))]
        for child in vars(part)["_modules"].values():
            if child is not None and id(child) not in memo:  # a weak proxy of a part
                memo[id(child)] = memo[id(_unwrapped(next(child.modules())))]
    own, made = dict(memo), Made()
    for part in parts:
        state, values = vars(memo[id(part)]), dict(vars(part))
        values.pop("_compiled_call_impl", None)  # calls the module that it was compiled for
        state.update({key: _simple_copy(value, memo) for key, value in values.items()})
        for key, value in values.items():
            if state[key] is None:
                state[key] = turned(_copied(value, memo), own, made)
    return memo[id(module)]  # type: ignore[no-any-return]


def inner_module(module: nn.Module) -> nn.Module:
    """The module that wrappers of torch and of training libraries pass all calls on to."""
    *_, inner = wrappers_of(module)
    return inner


def wrappers_of(module: nn.Module) -> Iterator[nn.Module]:
    """A module and those that it passes all calls on to, the outermost first."""
    while True:
        module = _unwrapped(module)
        yield module
        if not any(cls.__name__ in _PASSING_ON for cls in type(module).__mro__):
            return
        module = module.module  # type: ignore[assignment]


def parts_of(module: nn.Module) -> list[nn.Module]:
    """Modules inside a module, itself first, without the wrappers of ``torch.compile``."""
    return [part for part in module.modules() if not _is_wrapper(part)]


def own_name(name: str) -> str:
    """Name of a tensor without what ``torch.compile`` adds to it."""
    return name.replace(f"{_WRAPPER}.", "")


def own_names(values: Any, what: str) -> dict[str, Any]:
    """Parameters of a module, or the values of a mapping, by the tensors' own names."""
    if not isinstance(values, nn.Module | Mapping):
        raise TypeError(
            f"Expected a torch module or a dict of tensor name to array as {what}, got "
            f"{type(values).__name__}."
        )
    if isinstance(values, nn.Module):
        values = dict(inner_module(values).named_parameters())
    return {own_name(name): value for name, value in values.items()}


_SIMPLE = (bool, int, float, str, type(None))


def _is_wrapper(module: nn.Module) -> bool:
    return _WRAPPER in vars(module).get("_modules", ())  # traced modules have none


def _unwrapped(module: nn.Module) -> nn.Module:
    while _is_wrapper(module):
        module = vars(module)["_modules"][_WRAPPER]
    return module


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Tensors in nested dicts, lists and tuples."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple) or isinstance(tree, Mapping):
        for value in tree if isinstance(tree, list | tuple) else tree.values():
            if type(value) not in _SIMPLE:
                yield from tensors_in(value)


def _simple_copy(value: Any, memo: dict[int, Any]) -> Any:
    """Copy of a number, a string or an empty container, which most attributes are; else None."""
    kind = type(value)
    if kind in (bool, int, float, str):
        return value
    if kind in (dict, OrderedDict, list, set) and not value:
        return memo.setdefault(id(value), kind())
    return None


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, a stream, a logger: what cannot be copied is shared
        return value


_LARGE = 2**20  # bytes of an array from which joblib maps it into memory
_FEW = 2**16  # bytes that may travel with every task
_ALIGNED = 64  # bytes
# Arrays of models that were sent, the same objects as long as their contents are.
_HELD: WeakIdKeyDictionary = WeakIdKeyDictionary()


class _Placed:
    """What arrives as the value of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any):
        self.reduced = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def _structure(module: nn.Module) -> nn.Module:
    """The module with tensors that arrive from large arrays; as it is if its class pickles it."""
    own = ("__reduce__", "__reduce_ex__", "__getstate__")
    if any(getattr(type(p), n) is not getattr(nn.Module, n) for p in parts_of(module) for n in own):
        return module
    found: dict[int, Tensor] = {}
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        found[id(tensor)] = tensor
    for part in parts_of(module):
        found |= {id(tensor): tensor for tensor in tensors_in(vars(part))}
    plain = {key: tensor for key, tensor in found.items() if _is_plain(tensor)}
    storages = _storages(module, list(plain.values()))

    def placed(tensor: Tensor) -> Any:
        if id(tensor) not in plain:
            return tensor
        named = isinstance(tensor, nn.Parameter) or tensor.is_leaf
        where = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        how = isinstance(tensor, nn.Parameter), named and tensor.requires_grad, vars(tensor)
        return _Placed(_tensor, storages[_memory_of(tensor)], tensor.dtype, where, how)

    return rebuilt(module, placed, placed)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is its numbers in memory and nothing else."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    special = tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg()
    return tensor.device.type == "cpu" and not special


def _memory_of(tensor: Tensor) -> tuple[int, int]:
    memory = tensor.untyped_storage()
    return memory.data_ptr(), memory.nbytes()


def _storages(module: nn.Module, tensors: list[Tensor]) -> dict[tuple[int, int], _Placed]:
    """What tensors are views of, by its address: large memory as it is, the rest in one array."""
    before, now = _HELD.get(module, {}), dict[Any, npt.NDArray[Any]]()
    views: dict[tuple[int, int], npt.NDArray[Any]] = {}
    for tensor in tensors:
        memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        views[_memory_of(tensor)] = memory.numpy()
    found, small, end = {}, [], 0
    for place, view in views.items():
        if view.nbytes > _LARGE:
            # By its contents: what writes to .data does not add to torch's count of changes.
            key = place, zlib.crc32(view.data)
            now[key] = before.get(key, view)
            found[place] = _Placed(_memory, now[key], 0, view.nbytes)
        else:
            small.append((place, end, view))
            end += -(-view.nbytes // _ALIGNED) * _ALIGNED
    # Zeros at its end make it large enough to be mapped, rather than to travel with every task.
    joined = np.zeros(end if end < _FEW else max(end, _LARGE + 1), np.uint8)
    for _, start, view in small:
        joined[start : start + view.nbytes] = view
    now["small"] = _same(before.get("small"), joined)
    _HELD[module] = now
    for place, start, view in small:
        found[place] = _Placed(_memory, now["small"], start, start + view.nbytes)
    return found


def _same(held: npt.NDArray[Any] | None, now: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array that is held, if the one of now has the same numbers."""
    return held if held is not None and np.array_equal(held, now) else now


def _held_bytes(held: dict[str, Any], key: str, value: Any) -> Any:
    """Bytes, such as those of a skorch net's module, as an array that stays the same object."""
    if type(value) is not bytes or len(value) <= _LARGE:
        return value
    held[key] = _same(held.get(key), np.frombuffer(value, np.uint8))
    return _Placed(_bytes, held[key])


def _arrived(model: Any) -> Any:
    return model


def _made(make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return make(*args)  # pickle wants copyreg.__newobj__ for the class of Sent itself


def _bytes(array: npt.NDArray[Any]) -> bytes:
    return array.tobytes()


def _memory(array: npt.NDArray[Any], start: int, stop: int) -> Tensor:
    """Memory of its own, aligned as torch aligns it: maps of files cannot be written to."""
    memory = torch.empty(stop - start, dtype=torch.uint8)
    memory.numpy()[:] = array[start:stop]
    return memory


def _tensor(memory: Tensor, dtype: torch.dtype, where: Any, how: Any) -> Tensor:
    is_parameter, requires_grad, attributes = how
    tensor = torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), *where)
    tensor = nn.Parameter(tensor, False) if is_parameter else tensor
    vars(tensor).update(attributes)
    return tensor.requires_grad_(requires_grad)


def is_trained(model: Any) -> bool:
    """Whether a model comes trained: a module, frozen, results, or a fitted estimator."""
    if isinstance(model, nn.Module | FrozenModel | FrozenEstimator):
        return True
    if isinstance(model, str | type):
        return False
    names = itertools.chain.from_iterable(map(names_of_class, type(model).__mro__))
    if not hasattr(model, "get_params") and not TRAINED_CLASSES.isdisjoint(names):
        return True
    if not hasattr(model, "fit"):
        return False
    try:
        check_is_fitted(model)
    except (NotFittedError, AttributeError, TypeError):  # the last two: not an estimator
        return False
    return True


def names_of_class(cls: type) -> list[str]:
    """Name of a class with its module, and with each of the packages that the module is in."""
    parts = cls.__module__.split(".")
    return [".".join([*parts[:n], cls.__qualname__]) for n in range(len(parts), 0, -1)]
