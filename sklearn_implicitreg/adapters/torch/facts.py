"""What the gradient of a module depends on besides its trained tensors and rows."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from sklearn_implicitreg.problem.frozen import own_name

_PLAIN = (bool, int, float, str, type(None))


def facts_of(problem: Any) -> dict[str, Any]:
    """Other tensors, states and attributes of the layers, and how the rows pass through."""
    module = problem.module
    named = itertools.chain(module.named_parameters(), module.named_buffers())
    layers = {own_name(name): part for name, part in module.named_modules()}
    seeded = [problem.seed, problem.device.type]  # devices draw other numbers
    return {
        "weights out of scope and buffers": {n: t for n, t in named if n not in problem.params},
        "attributes of layers": {name: _attributes(part) for name, part in layers.items()},
        "module_mode": [name for name, part in layers.items() if part.training],
        "settings of the loss": list(_settings(problem.row_loss)),
        "batch_size": problem.batch_size,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "random_state": None if problem.seed is None else seeded,
    }


def _attributes(part: Any) -> dict[str, Any]:
    """Attributes of an object that are numbers or words."""
    own = getattr(part, "__dict__", {})
    named = {n: v for n, v in own.items() if not n.startswith("_") and n != "training"}
    return {n: repr(v) for n, v in named.items() if isinstance(v, _PLAIN)}


def _settings(row_loss: Any) -> Iterator[Any]:
    """Numbers, words and tensors that a loss holds, also in closures and partials."""
    waiting = [row_loss.criterion, row_loss.given, row_loss.evaluate, row_loss.inside]
    waiting += [row_loss.kind, row_loss.sum_outputs, row_loss.classes]
    seen: set[int] = set()
    while waiting:
        here = waiting.pop(0)
        if isinstance(here, Tensor | np.ndarray):
            yield here
        elif isinstance(here, _PLAIN):
            yield repr(here)
        elif isinstance(here, list | tuple | dict):
            waiting += here.values() if isinstance(here, dict) else here
        elif id(here) not in seen:
            seen.add(id(here))
            waiting += _held(here)


def _held(here: Any) -> list[Any]:
    if isinstance(here, functools.partial):
        return [here.func, *here.args, *here.keywords.values()]
    if isinstance(here, types.MethodType):
        return [here.__func__, here.__self__]
    if isinstance(here, types.FunctionType):
        cells = [cell.cell_contents for cell in here.__closure__ or () if cell != types.CellType()]
        constants = [c for c in here.__code__.co_consts if isinstance(c, int | float)]
        return [*here.__code__.co_names, *constants, *(here.__defaults__ or ()), *cells]
    if isinstance(here, nn.Module):
        return [type(here).__name__, _attributes(here), *here.state_dict().values()]
    return [_attributes(here)]
