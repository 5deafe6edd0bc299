"""Global random generators of torch, NumPy and Python: kept, seeded, compared."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

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


def _seed_all(device: torch.device, seed: int) -> None:
    """Seed what is preserved; torch.manual_seed would seed every device there is."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
