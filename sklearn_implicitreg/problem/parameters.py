"""What a parameter may be, declared beside it, and one sentence for all that it may not be."""

from __future__ import annotations

import functools
import inspect
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sklearn_implicitreg.exceptions import ParameterError

Function = TypeVar("Function", bound=Callable[..., Any])
_SHORT = reprlib.Repr()
_SHORT.maxother, _SHORT.maxstring, _SHORT.maxdict = 160, 80, 6
_LISTED = 8  # names of a list that are shown


@dataclass(frozen=True)
class Allowed:
    """Values that a parameter may take, and what they are in words; joined by ``|``."""

    holds: Callable[[Any], bool]
    words: tuple[str, ...]

    def __or__(self, other: Allowed) -> Allowed:
        return Allowed(lambda v: self.holds(v) or other.holds(v), self.words + other.words)

    def __str__(self) -> str:
        *first, last = self.words
        return f"{', '.join(first)} or {last}" if first else last


def check(owner: str, given: Mapping[str, Any], allowed: Mapping[str, Allowed]) -> None:
    """Raise ParameterError, a ValueError and TypeError, for the first value that is not allowed."""
    for name, kind in allowed.items():
        if name in given and not kind.holds(given[name]):
            raise ParameterError(
                f"Expected {name} of {owner} to be {kind}, got {shown(given[name])}."
            )


class Checked:
    """Base of what keeps its parameters as they are given and checks them where they are used."""

    _allowed: ClassVar[Mapping[str, Allowed]] = {}

    def check_parameters(self) -> None:
        """Raise ValueError, which is a TypeError too, for a parameter that cannot be used."""
        check(type(self).__name__, vars(self), self._allowed)


def checked(**allowed: Allowed) -> Callable[[Function], Function]:
    """Decorator that checks what a function is given."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        owner = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:  # too few or too many: Python says so below
                given = {}
            check(owner, given, allowed)
            return function(*args, **kwargs)

        return cast(Function, call)

    return decorate


def shown(value: Any) -> str:
    """A value in one short line."""
    return " ".join(_SHORT.repr(value).split())


def listed(names: Sequence[str]) -> str:
    """Names in one or two lines, whatever the model's size."""
    more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def as_array(values: Any) -> npt.NDArray[Any]:
    """Array of what is given; of a tensor its numbers alone."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    return np.asarray(values)


def as_numbers(name: str, values: Any) -> npt.NDArray[np.float64]:
    """Array of floats of what is given; ParameterError where it holds something else."""
    try:
        array = as_array(values)
        if array.dtype.kind in "cSUmM":
            raise TypeError
        return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ParameterError(
            f"Expected {name} to be an array of real numbers, got {shown(values)}."
        ) from error


def row_numbers(name: str, rows: Any) -> npt.NDArray[np.int64]:
    """Numbers of rows; ValueError where they are not integers >= 0 on one axis."""
    array = as_numbers(name, rows)
    if array.ndim != 1 or not (array >= 0).all() or not (array == np.floor(array)).all():
        raise ValueError(f"Expected {name} to be row numbers >= 0, got {shown(rows)}.")
    return array.astype(np.int64)


def number(
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> Allowed:
    """Finite real numbers in a range; bools are none."""
    bounds = {">": above, ">=": least, "<=": most, "<": below}
    said = " and ".join(f"{sign} {end:g}" for sign, end in bounds.items() if math.isfinite(end))

    def holds(value: Any) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        try:
            real = float(value)
        except OverflowError:  # of an integer
            return False
        return above < real < below and least <= real <= most and math.isfinite(real)

    return Allowed(holds, (f"a finite number {said}".rstrip(),))


def integer(least: int, most: float = math.inf) -> Allowed:
    """Integers in a range; bools and whole floats are none."""
    within = f" and <= {most}" if math.isfinite(most) else ""

    def holds(value: Any) -> bool:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return whole and least <= int(value) <= most

    return Allowed(holds, (f"an integer >= {least}{within}",))


def choice(*values: Any) -> Allowed:
    """One of a few values, mostly names."""

    def holds(given: Any) -> bool:  # a string of NumPy is one, and True is not 1
        bools = [isinstance(value, bool) == isinstance(given, bool) for value in values]
        pairs = zip(values, bools, strict=True)
        return any(same and isinstance(given, type(v)) and given == v for v, same in pairs)

    return Allowed(holds, tuple(map(repr, values)))


def instance(words: str, *kinds: type) -> Allowed:
    """Instances of some classes."""
    return Allowed(lambda v: isinstance(v, kinds), (words,))


FOLDER = Allowed(  # an empty name would be the working folder
    lambda v: isinstance(v, str | PathLike) and v != "", ("the name of a folder",)
)


def having(words: str, *methods: str) -> Allowed:
    """Instances, not classes, that have some methods or attributes."""
    return Allowed(
        lambda v: not isinstance(v, type) and all(hasattr(v, name) for name in methods), (words,)
    )


def function(signature: str = "", n_arguments: int | None = None) -> Allowed:
    """Functions and other callables; a class and a module are none."""

    def holds(value: Any) -> bool:
        if not callable(value) or isinstance(value, type | nn.Module):
            return False
        return n_arguments is None or takes(value, n_arguments)

    return Allowed(holds, (f"a callable{signature}",))


def takes(called: Callable[..., Any], n_arguments: int) -> bool:
    """Whether a callable takes so many arguments by position, as far as Python knows."""
    try:
        own = inspect.signature(called)
    except (TypeError, ValueError):  # written in C
        return True
    try:
        own.bind(*(None,) * n_arguments)
    except TypeError:
        return False
    return True


def _compiles(pattern: Any) -> bool:
    try:
        return isinstance(pattern, str) and re.compile(pattern) is not None
    except re.error:
        return False


FLAG = Allowed(lambda v: isinstance(v, bool | np.bool_), ("True", "False"))
NOTHING = choice(None)
PATTERN = Allowed(_compiles, ("a regular expression",))
SCOPE = PATTERN | function("(name, tensor) -> bool", 2)
GROUPS = (
    choice("layer", "block", "type", "param_group")
    | instance("a dict of tensor name to group", Mapping)
    | function("(name, tensor)", 2)
)
SEED = integer(0, 2**32 - 1)
LAYER = instance("the name of a layer", str)
RANDOM_STATE = NOTHING | SEED | instance("a RandomState", np.random.RandomState)
