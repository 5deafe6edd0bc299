"""An accelerator emulated on the CPU: tensors that claim a device and raise when mixed."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy:0")  # the one kind that autograd accepts without hardware
_MOVES = ("aten.copy_", "aten._to_copy", "aten.set_")
_INDEXED = ("aten.index.Tensor", "aten.index_put")  # a CPU index is allowed, as CUDA does
_no_float64 = False


class MixedDevicesError(RuntimeError):
    """An operation on tensors of two devices."""


class There(torch.Tensor):
    """A tensor on the emulated device."""

    @staticmethod
    def __new__(cls, held):
        kept = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), dtype=held.dtype, device=DEVICE, **kept
        )

    def __init__(self, held):
        _check_type(held.dtype)
        self.held = held

    def __repr__(self, **_):
        return f"There({self.held})"

    def __deepcopy__(self, memo):
        own = There(self.held.clone()).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            own = nn.Parameter(own, requires_grad=self.requires_grad)
        memo[id(self)] = own
        return own

    @property
    def data(self):
        return There(self.held.detach())

    @data.setter
    def data(self, other):
        self.held = other.held if isinstance(other, There) else other

    def __getitem__(self, places):
        return super().__getitem__(_without_lists(places))

    def __setitem__(self, places, values):
        super().__setitem__(_without_lists(places), values)

    def new_tensor(self, data, **how):
        return There(self.held.new_tensor(data, **how))

    def tolist(self):
        return self.held.tolist()

    def numpy(self, **_):
        raise TypeError("can't convert a device tensor to numpy. Use Tensor.cpu()")

    def __array__(self, *_, **__):
        raise TypeError("can't convert a device tensor to numpy. Use Tensor.cpu()")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Calls that name the device make tensors there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


@contextlib.contextmanager
def emulated(float64=True):
    """The device is there; without float64 it is as MPS is."""
    global _no_float64
    _no_float64 = not float64
    try:
        with _Factories():
            yield
    finally:
        _no_float64 = False


def there(module):
    """Copy of a module on the device."""
    moved = copy.deepcopy(module)
    for part in moved.modules():
        for name, p in part._parameters.items():
            if p is not None:
                own = There(p.detach().clone())
                part._parameters[name] = nn.Parameter(own, requires_grad=p.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = There(buffer.clone())
    return moved


def _check_type(dtype):
    if _no_float64 and dtype == torch.float64:
        raise TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
            "float64. Please use float32 instead."
        )


def _run(func, args, kwargs):
    name, leaves = str(func), tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    _check_devices(name, args, tensors)
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    inner = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    to_device = any(isinstance(t, There) for t in tensors) if asked is None else asked == DEVICE
    if to_device and kwargs.get("dtype") is not None:
        _check_type(kwargs["dtype"])
    own_args, own_kwargs = tree_map(_held, (args, inner))
    out = func(*own_args, **own_kwargs)
    if func._schema.is_mutable and func._schema.name.endswith("_"):
        return args[0]
    if kwargs.get("out") is not None:
        return kwargs["out"]
    return tree_map(_wrapped, out) if to_device else out


def _check_devices(name, args, tensors):
    here = [not isinstance(t, There) for t in tensors]
    if not any(here) or all(here) or name.startswith(_MOVES):
        return
    if name.startswith(_INDEXED) and isinstance(args[0], There):
        tensors = [args[0], *args[2:3]]
    strict = any(word in name for word in ("cat", "stack", "equal", "where"))
    if any(not isinstance(t, There) and (t.dim() or strict) for t in tensors):
        kinds = [("device" if isinstance(t, There) else "cpu", tuple(t.shape)) for t in tensors]
        raise MixedDevicesError(f"Expected tensors on one device: {name} of {kinds}")


def _without_lists(places):
    """Lists become tensors on the CPU: the bindings would make them on the device."""
    both = places if isinstance(places, tuple) else (places,)
    return tuple(torch.tensor(p, dtype=torch.int64) if isinstance(p, list) else p for p in both)


def _held(value):
    return value.held if isinstance(value, There) else value


def _wrapped(value):
    return There(value) if isinstance(value, torch.Tensor) else value
