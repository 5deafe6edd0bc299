"""Global random generators of torch, NumPy and Python: kept, seeded, compared."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import threading
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.problem.frozen import tensors_in

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)

_LOOKED_AT, _SEARCHED = 100, 10_000  # entries of a container, and objects, that are looked at
_WITHOUT = (Tensor, np.ndarray, str, bytes, int, float, type, type(None), types.ModuleType)

# Two threads in torch.get_rng_state and torch.set_rng_state at once wait for each other forever.
_GENERATORS = threading.RLock()


@contextlib.contextmanager
def preserved_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Leave the global generators of torch, NumPy and Python as they were."""
    # With a seed other threads wait, so that the numbers drawn in the block are the seed's.
    with _GENERATORS if seed is not None else contextlib.nullcontext():
        with _GENERATORS:
            states = random.getstate(), np.random.get_state(), torch.get_rng_state()
            cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        try:
            if seed is not None:
                _seed_all(device, seed)
            yield
        finally:
            with _GENERATORS:
                random.setstate(states[0])
                np.random.set_state(states[1])
                torch.set_rng_state(states[2])
                if cuda is not None:
                    torch.cuda.set_rng_state(cuda, device)


def generator_states(device: torch.device) -> list[Tensor]:
    """States of torch's generators on the processor and on the device."""
    states = [torch.get_rng_state()]
    return states if device.type != "cuda" else [*states, torch.cuda.get_rng_state(device)]


def all_states(device: torch.device) -> list[Any]:
    """States of all global generators, to see whether a forward pass draws from them."""
    drawn: Any = np.random.get_state()
    own = [state.numpy().tobytes() for state in generator_states(device)]
    return [random.getstate(), drawn[1].tobytes(), drawn[2], *own]


def reset_generators(device: torch.device, states: list[Tensor], seed: int | None) -> None:
    """Begin again with the same random numbers, where some were drawn."""
    now = generator_states(device)
    if all(map(torch.equal, now, states)):
        return
    if seed is not None:
        _seed_all(device, seed)
        return
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def same_numbers(first: Any, second: Any) -> bool:
    """Whether two batches or outputs hold the same tensors."""
    pairs = zip(tensors_in(first), tensors_in(second), strict=False)
    return all(_same(a, b) for a, b in pairs)


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether numbers are equal, NaN included (which raises an error of its own later)."""
    equal = first.shape == second.shape
    return equal and bool(((first == second) | ((first != first) & (second != second))).all())


def generators_in(*roots: Any) -> list[Any]:
    """Random generators that objects hold: in attributes, containers, closures and partials."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting = list(roots)
    while waiting and len(seen) < _SEARCHED:
        here = waiting.pop()
        if id(here) in seen or isinstance(here, _WITHOUT):
            continue
        seen.add(id(here))
        if isinstance(here, GENERATORS):
            found[id(here)] = here
        else:
            waiting += _held(here)
    return list(found.values())


def _held(here: Any) -> Iterable[Any]:
    """What an object holds where a transform may keep its generator."""
    if isinstance(here, list | tuple | set | dict):
        # Rows are many and no generators: the first say what the others are.
        return itertools.islice(here.values() if isinstance(here, dict) else here, _LOOKED_AT)
    if isinstance(here, functools.partial):
        return here.func, *here.args, *here.keywords.values()
    if isinstance(here, types.MethodType | types.BuiltinMethodType):
        return (here.__self__,)
    if isinstance(here, types.FunctionType):
        return [_content(cell) for cell in here.__closure__ or ()]
    return getattr(here, "__dict__", {}).values()


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


@contextlib.contextmanager
def seeded(own: Sequence[Any]) -> Iterator[None]:
    """Generators of the user's, seeded by the global one for a while and then as they were."""
    states = [_state(generator) for generator in own]
    try:
        for generator in own:
            _seed(generator, int(torch.randint(2**31 - 1, ())))
        yield
    finally:
        for generator, state in zip(own, states, strict=True):
            _restore(generator, state)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    read = "getstate" if isinstance(generator, random.Random) else "get_state"
    return getattr(generator, read)()


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
        return
    write = "setstate" if isinstance(generator, random.Random) else "set_state"
    getattr(generator, write)(state)


def _seed(generator: Any, seed: int) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    elif isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    else:
        generator.seed(seed)


def _seed_all(device: torch.device, seed: int) -> None:
    """Seed what is preserved; torch.manual_seed would seed every device there is."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
