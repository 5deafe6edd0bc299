"""References of functions, methods and containers to a module's parts, turned to their copies."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Mapping
from typing import Any

_COMPILED = "_torchdynamo_orig_callable"  # where torch.compile keeps the function that it wraps


# What was made again, with what it was made from: an id means something while that lives.
Made = dict[int, tuple[Any, Any]]


def turned(value: Any, own: Mapping[int, Any], made: Made) -> Any:
    """The same value over copies, which ``own`` holds by the id of what they were made of.

    Only what leads to such a part is made again (and noted in ``made``); the rest is shared.
    """
    if id(value) in own:
        return own[id(value)]
    if id(value) in made:
        return made[id(value)][1]
    return _again(value, own, made) if leads(value, own, set()) else value


def _again(value: Any, own: Mapping[int, Any], made: Made) -> Any:
    turn = functools.partial(turned, own=own, made=made)
    if isinstance(value, types.FunctionType):
        return _turned_function(value, own, made)
    if isinstance(value, types.MethodType):
        return types.MethodType(turn(value.__func__), turn(value.__self__))
    if isinstance(value, functools.partial):
        bound = type(value)(turn(value.func), *map(turn, value.args), **turn(value.keywords))
        vars(bound).update(turn(vars(value)))
        return bound
    if isinstance(value, tuple):
        items = map(turn, value)
        return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    again = copy.copy(value)
    made[id(value)] = value, again
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        again[key] = turn(item)
    return again


def _turned_function(function: types.FunctionType, own: Mapping[int, Any], made: Made) -> Any:
    """A function with cells, defaults and attributes of its own, without torch.compile."""
    if hasattr(function, _COMPILED):
        return turned(getattr(function, _COMPILED), own, made)
    turn = functools.partial(turned, own=own, made=made)
    closure = function.__closure__ or ()
    cells = tuple(types.CellType() for _ in closure)
    again = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, None, cells or None
    )
    made[id(function)] = function, again
    again.__qualname__ = function.__qualname__
    again.__defaults__ = turn(function.__defaults__)
    again.__kwdefaults__ = turn(function.__kwdefaults__)
    vars(again).update(turn(vars(function)))
    for cell, old in zip(cells, closure, strict=True):
        if not _is_empty(old):
            cell.cell_contents = turn(old.cell_contents)
    return again


def leads(value: Any, own: Mapping[int, Any], seen: set[int]) -> bool:
    """Whether a part of the module can be reached."""
    if id(value) in own:
        return True
    inside = _inside(value)
    if not inside or id(value) in seen:
        return False
    seen.add(id(value))
    return any(leads(item, own, seen) for item in inside)


def _inside(value: Any) -> list[Any]:
    """What a function, a method or a container refers to."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, types.FunctionType):
        cells = [c.cell_contents for c in value.__closure__ or () if not _is_empty(c)]
        return [*cells, value.__defaults__, value.__kwdefaults__, vars(value)]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords, vars(value)]
    return []


def _is_empty(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # of a name that has no value yet
        return True
    return False
