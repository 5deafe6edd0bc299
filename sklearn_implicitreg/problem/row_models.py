"""Outputs of a model as a function of its parameters and inputs, and what its layers compute."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sklearn_implicitreg.exceptions import ParameterError
from sklearn_implicitreg.problem.frozen import own_name, tensors_in
from sklearn_implicitreg.problem.parameters import shown
from sklearn_implicitreg.problem.vectors import Params

Forward = Callable[[nn.Module, Any], Any]
Calls = dict[tuple[str, bool], list[Any]]

_COLLECTED: ContextVar[Calls | None] = ContextVar("collected", default=None)


class RowLosses(Protocol):
    """The loss of a model, row by row, as a function of outputs and targets."""

    def prepare(self, output: Any, target: Any) -> Any:
        """Targets as the loss compares them with the outputs, such as numbers of classes."""

    def each(self, output: Any, target: Any) -> tuple[Tensor, Tensor | None]:
        """Loss of every row times its weight in the mean, and that weight; None: all are one."""


class RowModel(Protocol):
    """Outputs as a function of some of the parameters (the others stay) and of the inputs."""

    @property
    def loss(self) -> RowLosses | None:
        """The loss that the model was trained with, where it is known row by row."""

    @property
    def layers(self) -> Mapping[str, nn.Module]:
        """Modules by name, whose activations can be read."""

    def __call__(self, params: Params, inputs: Any) -> Any:
        """Outputs."""


def as_tensor(value: Any) -> Tensor:
    """Tensor of an array, DataFrame or sparse matrix, sharing memory where it can."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "tocoo"):
        coo = value.tocoo()
        places = torch.from_numpy(np.vstack([coo.row, coo.col]))
        return torch.sparse_coo_tensor(places, coo.data, coo.shape, check_invariants=True)
    with warnings.catch_warnings():  # read-only arrays; nothing writes to them
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        try:
            return torch.as_tensor(np.ascontiguousarray(value))
        except TypeError as error:
            raise ParameterError(f"Expected an array of numbers, got {shown(value)}.") from error


# What other errors than torch's own and Python's say where memory is short.
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is short, on the processor or on a device."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(words in str(error) for words in _NO_MEMORY)


@contextlib.contextmanager
def memory_in_words() -> Iterator[None]:
    """Say what to do where torch is short of memory for a batch, which batch_size changes."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"Expected memory for the passes over the rows, got {error}; give a smaller "
            "batch_size, a larger device, or device='cpu'."
        ) from error


# What a forward pass or a loss raises where it is given something else than it takes.
ERRORS = (RuntimeError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


def raise_in_words(error: Exception, expected: str) -> NoReturn:
    """Raise an error of torch or of the user's code with what was expected; others as they are."""
    own = isinstance(error, TypeError) and str(error).startswith("Expected")
    if own or isinstance(error, ParameterError) or is_out_of_memory(error):
        raise error
    text = str(error).rstrip(".")
    found = f"{type(error).__name__}: {text}"
    advice = "Give the data as in training."
    if "same dtype" in text or "should be the same" in text:
        advice = (
            "X, weights and buffers are all in this type: let forward convert to the type of "
            "a layer's weights instead of a fixed one, as x.float() does."
        )
    raise ValueError(f"Expected {expected}: {found}. {advice}") from error


def input_of(module: nn.Module, inputs: Any) -> str:
    """What a module takes, with its first layer, and what it was given."""
    first = next(part for part in module.modules() if not part._modules)
    kinds = {str(p.dtype)[6:] for p in module.parameters() if p.is_floating_point()}
    words = f"X as the forward of {type(module).__name__} takes it, whose first layer is"
    return f"{words} {first!r} ({', '.join(sorted(kinds))}), got {shapes_of(inputs)}"


def shapes_of(values: Any) -> str:
    """Shapes and types of all tensors in a batch."""
    found = [f"shape {tuple(t.shape)} ({str(t.dtype)[6:]})" for t in tensors_in((values,))]
    return ", ".join(found) or type(values).__name__


def call_module(module: nn.Module, inputs: Any) -> Any:
    """Call a module as skorch does: dicts by keyword, tuples by position.

    What ``forward`` takes as one argument only is passed whole; so is a named tuple where it has
    one parameter.
    """
    if isinstance(inputs, Tensor) or not isinstance(inputs, dict | tuple):
        return module(inputs)
    apart: tuple[tuple[Any, ...], dict[str, Any]]
    apart = ((), inputs) if isinstance(inputs, dict) else (tuple(inputs), {})
    ways = [apart, ((inputs,), {})]
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # a builtin
        return module(*apart[0], **apart[1])
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    one = sum(p.kind not in several for p in signature.parameters.values()) < 2
    if isinstance(inputs, PackedSequence) or (hasattr(inputs, "_fields") and one):
        ways.reverse()
    for args, kwargs in ways:
        with contextlib.suppress(TypeError):
            signature.bind(*args, **kwargs)
            break
    else:
        args, kwargs = apart
    return module(*args, **kwargs)


class _Called(nn.Module):
    """A module inside a function of it, so that its parameters can be swapped."""

    def __init__(self, inner: nn.Module, function: Forward):
        super().__init__()
        self.inner = inner
        self._function = function

    def forward(self, inputs: Any) -> Any:
        return self._function(self.inner, inputs)


@dataclass(frozen=True)
class ModuleCall:
    """Outputs of a module, some of its tensors swapped."""

    module: nn.Module
    forward: Forward = call_module
    loss: RowLosses | None = None

    @property
    def layers(self) -> Mapping[str, nn.Module]:
        """Modules inside the module by name."""
        return {own_name(name): part for name, part in self.module.named_modules() if name}

    def __call__(self, params: Params, inputs: Any) -> Any:
        """Outputs."""
        stored = itertools.chain(self.module.named_parameters(), self.module.named_buffers())
        swapped = {f"inner.{n}": params[own_name(n)] for n, _ in stored if own_name(n) in params}
        called = _Called(self.module, self.forward)
        return torch.func.functional_call(called, swapped, (inputs,))

    def __reduce__(self) -> Any:
        """Pickles as the module, without the net that called it."""
        return ModuleCall, (self.module, call_module, self.loss)


@dataclass(frozen=True)
class LinearCall:
    """Outputs ``X coef' + intercept``, differentiable in the parameters that are given."""

    matrix: npt.NDArray[np.float64]  # [coef, intercept parameter], of shape (K, p + 1)
    places: Mapping[str, npt.NDArray[np.intp]]  # of every parameter in the flattened matrix
    unit: float = 1.0  # what the intercept parameter multiplies
    loss: RowLosses | None = None

    @property
    def layers(self) -> Mapping[str, nn.Module]:
        """None."""
        return {}

    def coef(self, params: Params) -> Tensor:
        """Coefficients with the intercept parameter last, of shape (K, p + 1)."""
        flat = torch.from_numpy(self.matrix.reshape(-1))
        for name, tensor in params.items():
            if name in self.places:
                place = torch.from_numpy(self.places[name])
                flat = flat.index_put((place,), tensor.double().reshape(-1))
        return flat.reshape(self.matrix.shape)

    def __call__(self, params: Params, inputs: Any) -> Tensor:
        """Outputs of shape (n, K)."""
        matrix = self.coef(params)
        return inputs @ matrix[:, :-1].T + self.unit * matrix[:, -1]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class GivenLosses:
    """A loss given as a function that returns one number per row, or several to be averaged."""

    function: Callable[[Any, Any], Any]

    def prepare(self, output: Any, target: Any) -> Any:
        """Targets as they are."""
        return target

    def each(self, output: Any, target: Any) -> tuple[Tensor, None]:
        """Losses of the rows, which all count alike."""
        value = self.function(output, target)
        if not isinstance(value, Tensor) or not value.ndim:
            raise ValueError(
                f"Expected a loss that returns one number per row, got {shown(value)}; give one "
                'that is not reduced, such as nn.CrossEntropyLoss(reduction="none").'
            )
        return value.reshape(len(value), -1).mean(1), None


@contextlib.contextmanager
def collected(layers: Mapping[str, nn.Module]) -> Iterator[Calls]:
    """First input and output of every call of the layers, with the tensors' versions."""
    calls: Calls = {}
    handles = []
    for name, layer in layers.items():
        before, after = calls.setdefault((name, True), []), calls.setdefault((name, False), [])

        def received(_: Any, args: Any, kwargs: Any, into: list[Any] = before) -> None:
            _note(into, (args, kwargs))

        def returned(_: Any, args: Any, out: Any, into: list[Any] = after) -> None:
            _note(into, out)

        handles.append(layer.register_forward_pre_hook(received, with_kwargs=True))
        handles.append(layer.register_forward_hook(returned))
    token = _COLLECTED.set(calls)
    try:
        yield calls
    finally:
        _COLLECTED.reset(token)
        for handle in handles:
            handle.remove()


def forget_calls() -> None:
    """Forget the calls collected so far, of a forward pass that begins again."""
    for found in (_COLLECTED.get() or {}).values():
        found.clear()


def _note(into: list[Any], tree: Any) -> None:
    """Add the first tensor of nested containers, if there is one, with its version."""
    tensor = first_tensor(tree)
    if tensor is not None:
        into.append((tensor, tensor._version))


def first_tensor(tree: Any) -> Any:
    """The first tensor of nested dicts, lists and tuples; None if there is none."""
    return next(tensors_in(tree), None)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same nested dicts and tuples with every leaf replaced; None stays."""
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        values = [map_leaves(function, value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return None if tree is None else function(tree)
