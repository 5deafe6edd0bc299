"""Calls of a copy of a module, also where the copy still calls the module itself."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sklearn_implicitreg.adapters.torch.data import map_tensors
from sklearn_implicitreg.adapters.torch.generators import (
    all_states,
    generator_states,
    preserved_rng,
    reset_generators,
)
from sklearn_implicitreg.adapters.torch.structure import skeleton
from sklearn_implicitreg.exceptions import ModelStateWarning, warn_user
from sklearn_implicitreg.problem.frozen import STATES, own_name, parts_of, tensors_in
from sklearn_implicitreg.problem.row_models import forget_calls

_FEW = 4  # rows on which states of a layer are compared
_SAME = 100  # rounding units that outputs of one function may differ by

# What is asked of a tensor without computing with it; attributes are read by __get__.
_ASKED = {"__get__", "__len__", "dim", "is_floating_point", "numel", "size"}

Forward = Callable[[nn.Module, Any], Any]


class CopyCall:
    """Outputs of a copy of a module; the first call finds out what it calls.

    A copy may call the module itself: by a global, by a weak reference, in a function that cannot
    be made again. The module's parts then have the state of the copy's parts in every call.
    """

    def __init__(self, module: nn.Module, forward: Forward, suspects: Mapping[str, list[str]]):
        self._parts = parts_of(module)
        named = [*module.named_parameters(), *module.named_buffers()]
        self._names = {id(tensor): own_name(name) for name, tensor in named}
        self._tensors = [tensor for _, tensor in named]  # kept, so that the ids stay theirs
        self._forward = forward
        self._suspects = suspects
        self._hooked = [own_name(n) for n, p in module.named_parameters() if _hooks(p)]
        # Whether the copy calls the module itself; None before the first call.
        self.borrows: bool | None = None

    def __call__(self, copy: nn.Module, inputs: Any) -> Any:
        """Outputs of the copy."""
        if self.borrows is None:
            return self._first(copy, inputs)
        if not self.borrows:
            return self._forward(copy, inputs)
        with self.state_of(copy):
            return self._forward(copy, inputs)

    @contextlib.contextmanager
    def state_of(self, copy: nn.Module) -> Iterator[None]:
        """Where the copy calls the module itself, give its parts the state of the copy."""
        if not self.borrows:
            yield
            return
        with STATES, _eager():
            states = [vars(part) for part in self._parts]
            try:
                for part, own in zip(self._parts, copy.modules(), strict=True):
                    object.__setattr__(part, "__dict__", vars(own))
                yield
            finally:
                for part, state in zip(self._parts, states, strict=True):
                    object.__setattr__(part, "__dict__", state)

    def _first(self, copy: nn.Module, inputs: Any) -> Any:
        device = _device_of(copy)
        start = generator_states(device)
        with STATES, _eager():
            states = [dict(vars(part)) for part in self._parts]
            watch = _Watch(self._names)
            try:
                with _stopped(self._parts), watch:
                    output = self._forward(copy, inputs)
                self.borrows = False
                return output
            except (_Reached, Exception) as error:
                # A layer may compare the types of its tensors and its inputs before it computes.
                if not isinstance(error, _Reached) and not watch.asked:
                    raise
            self.borrows = True
            forget_calls()
            for part, state in zip(self._parts, states, strict=True):
                vars(part).clear()  # of what was noted there until then
                vars(part).update(state)
        reset_generators(device, start, None)
        try:
            with self.state_of(copy), _Watch(self._names):
                return self._forward(copy, inputs)
        except _Reached as reached:
            raise ValueError(
                "Expected a module whose forward reads its tensors from its layers, got one that "
                f"reads {reached} from elsewhere (a global or another object), so that a copy "
                "computes with the module's own; read it as an attribute of the layer."
            ) from None

    def warn_of_hooks(self) -> None:
        """Warn once of hooks of the user's parameters, which a copy's parameters do not have."""
        hooked, self._hooked = self._hooked, []
        if hooked:
            warn_user(
                "The gradient of the loss is taken without the gradient hooks of "
                f"{', '.join(hooked)}. A decay that a hook adds is found; where it scales, masks "
                "or clips the gradient, coefficients are wrong: record the training and take "
                "reference='applied', or leave the tensors out by params=. Remove a hook that only "
                "observes.",
                ModelStateWarning,
            )

    def warn_of_states(self, copy: nn.Module, inputs: Any) -> None:
        """Warn once of layers that compute another function in training state, dropout aside."""
        suspects, self._suspects = self._suspects, {}
        few = _few(inputs) if suspects else inputs
        for kind, names in suspects.items():
            active, reached, drawn = self._outputs(copy, names, few)
            if drawn:
                continue
            output, own, _ = self._outputs(copy, [], few)
            missing = sorted(reached - own) if output is not None else []
            if missing or not _same(active, output):
                where = f" ({', '.join(names)})" if names != [""] else ""
                other = f" (no gradient reaches {', '.join(missing)})" if missing else ""
                warn_user(
                    f"{kind}{where} computes another function in training state than in "
                    f"evaluation state{other}, which is the one taken. If it was trained so, give "
                    "module_mode='train', and the training's batch_size if it computes "
                    "statistics of batches.",
                    ModelStateWarning,
                )

    def _outputs(
        self, copy: nn.Module, active: Sequence[str], inputs: Any
    ) -> tuple[Tensor | None, set[str], bool]:
        """First output with some layers in training state, what it reaches, if it is random."""
        device = _device_of(copy)
        own = skeleton(copy, device, None)
        for name in active:
            own.get_submodule(name).training = True
        with preserved_rng(device), torch.enable_grad():
            before = all_states(device)
            # Where a layer cannot be run on few rows there is nothing to compare.
            with contextlib.suppress(Exception), self.state_of(own):
                output = next(tensors_in(self._forward(own, inputs)), None)
                reached = _reached_by(output, own)
                output = None if output is None else output.detach()
                return output, reached, before != all_states(device)
        return None, set(), True


class _Reached(BaseException):
    """The module itself was reached; no ``except Exception`` of a forward holds this up."""


@contextlib.contextmanager
def _stopped(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Stop where a layer without tensors is called, which has a state all the same (dropout)."""
    thread = threading.get_ident()
    bare = [part for part in parts if not (part._parameters or part._buffers or part._modules)]
    own = [vars(part).get("forward") for part in bare]

    def stop(called: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            raise _Reached
        return called(*args, **kwargs)

    try:
        for part in bare:
            vars(part)["forward"] = functools.partial(stop, part.forward)
        yield
    finally:
        for part, forward in zip(bare, own, strict=True):
            del vars(part)["forward"]
            if forward is not None:
                vars(part)["forward"] = forward


class _Watch(TorchFunctionMode):
    """Stops where one of some tensors is computed with."""

    def __init__(self, names: dict[int, str]):
        super().__init__()
        self._names = names
        self.asked = False  # for a shape or a type

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        ids = map(id, tensors_in((args, kwargs)))
        name = next((self._names[i] for i in ids if i in self._names), None)
        if name is None:
            return func(*args, **kwargs)
        output = func(*args, **kwargs) if func.__name__ in _ASKED else None
        if output is None or isinstance(output, Tensor):
            raise _Reached(name)
        self.asked = True
        return output


def _eager() -> contextlib.AbstractContextManager[None]:
    """Without torch.compile, which would compile for every copy."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    eager: contextlib.AbstractContextManager[None]
    eager = torch.compiler.set_stance("force_eager")
    return eager


def without_cudnn() -> contextlib.AbstractContextManager[None]:
    """With the kernels of torch itself."""
    tf32 = torch.backends.cudnn.allow_tf32
    off: contextlib.AbstractContextManager[None]
    off = torch.backends.cudnn.flags(enabled=False, allow_tf32=tf32)
    return off


def _device_of(module: nn.Module) -> torch.device:
    return next(p.device for p in module.parameters() if not p.is_meta)


def _hooks(p: Tensor) -> bool:
    """Whether a parameter has hooks of the user's on its gradient."""
    after = (p._post_accumulate_grad_hooks or {}).values()
    # A recorder's hooks only look.
    return bool(p._backward_hooks) or any(
        not str(hook.__module__).startswith(__name__.partition(".")[0]) for hook in after
    )


def _reached_by(output: Tensor | None, module: nn.Module) -> set[str]:
    """Parameters that a gradient by an output reaches."""
    named = {own_name(n): p for n, p in module.named_parameters() if p.requires_grad}
    if output is None or not output.requires_grad:
        return set()
    found = torch.autograd.grad(output.abs().sum(), list(named.values()), allow_unused=True)
    return {name for name, g in zip(named, found, strict=True) if g is not None}


def _few(inputs: Any) -> Any:
    """A few rows, where rows are the first axis of everything."""
    sizes = {tensor.shape[:1] for tensor in tensors_in(inputs)}
    return map_tensors(lambda t: t[:_FEW], inputs) if len(sizes) == 1 else inputs


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None or not first.numel():
        return True
    if first.shape != second.shape:
        return False
    # Kernels of evaluation state may sum in another order.
    off = _SAME * torch.finfo(first.dtype).eps if first.is_floating_point() else 0.0
    return torch.allclose(first, second, rtol=0.0, atol=off * float(first.abs().max()))
