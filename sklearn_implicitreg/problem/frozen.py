"""A trained module as a parameter value: shared by clone, cheap to send to workers."""

from __future__ import annotations

import copy
import itertools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sklearn_implicitreg.problem.references import Made, turned

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
    scikit-learn would deep-copy a bare module for every candidate and fold. Worker processes
    get the weights as NumPy arrays, which joblib maps into memory once.

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
        self._arrays: dict[str, npt.NDArray[Any]] | None = None

    def __sklearn_clone__(self) -> FrozenModel:
        return self

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters())
        return f"FrozenModel({type(self.model).__name__}, {size:,} parameters)"

    def __getstate__(self) -> dict[str, Any]:
        """Weights as cached arrays (the same objects each time), structure without numbers."""
        with STATES:
            tensors = _tensors(self.model)
            if self._arrays is None:
                self._arrays = {name: _to_array(t) for name, t in tensors.items()}
            dtypes = {name: t.dtype for name, t in tensors.items()}
            structure = rebuilt(self.model, _empty_like, Tensor.detach)
        return {"arrays": self._arrays, "dtypes": dtypes, "structure": structure}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put the arrays back in place, without copying them."""
        arrays, dtypes = state["arrays"], state["dtypes"]
        names = {id(t): name for name, t in _tensors(state["structure"]).items()}

        def filled(empty: Tensor) -> Tensor:
            name = names[id(empty)]
            return _of_kind(empty, _to_tensor(arrays[name], dtypes[name]))

        self.model = rebuilt(state["structure"], filled, Tensor.detach)
        self._arrays = arrays


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
        memo[id(part)] = type(part).__new__(type(part))
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
        state = vars(memo[id(part)])
        for key, value in vars(part).items():
            if key != "_compiled_call_impl":  # calls the module that it was compiled for
                simple = _simple_copy(value, memo)
                state[key] = turned(_copied(value, memo), own, made) if simple is None else simple
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
    return _WRAPPER in vars(module)["_modules"]


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


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    named = itertools.chain(module.named_parameters(), module.named_buffers())
    return {own_name(name): tensor for name, tensor in named}


def _empty_like(tensor: Tensor) -> Tensor:
    return _of_kind(tensor, torch.empty_like(tensor, device="meta"))


def _of_kind(like: Tensor, tensor: Tensor) -> Tensor:
    if isinstance(like, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=like.requires_grad)
    return tensor


def _to_array(tensor: Tensor) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu().contiguous()
    # NumPy has no bfloat16: its bits travel as integers.
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _to_tensor(array: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
    with warnings.catch_warnings():  # memory-mapped arrays are read-only; nothing writes to them
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(np.asarray(array))
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


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
