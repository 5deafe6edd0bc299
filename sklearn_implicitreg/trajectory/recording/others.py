"""What a model has beside the recorded tensors, and which of it moves while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_implicitreg.adapters.torch.options import running_norms
from sklearn_implicitreg.adapters.torch.structure import state_of
from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.problem.frozen import own_name
from sklearn_implicitreg.problem.ranks import sharding_parts
from sklearn_implicitreg.problem.vectors import wide
from sklearn_implicitreg.trajectory.recording.applied_gradient import RunningSums
from sklearn_implicitreg.trajectory.window import squares_of

_SAMPLE = 2**16  # entries of a tensor, never seen to move, that are compared at every step

_SMALL = 2**20  # bytes of a tensor that is copied in any case


class Others:
    """Parameters, buffers and attributes that no recorded optimizer has.

    A step's gradient is taken where they are when it is made, so that they are looked at then.
    Those that move join the sums of what the steps visited; whole numbers with their squares too,
    which show whether a mean is of several values.

    Parameters
    ----------
    model : nn.Module
    recorded : set of int
        The ``id`` of each tensor that an optimizer of the recording has.
    limit : int
        Bytes of copies, past which a change is only noticed.
    """

    def __init__(self, model: nn.Module, recorded: set[int], limit: int):
        self._model, self._recorded, self._left = model, recorded, limit
        # Values before the first change; None where that was not kept.
        self.began: dict[str, Tensor | None] = {}
        self._held: Params = {}  # as they were when last looked at
        self._sums: Params = {}  # checksums of those that are not held
        self._numbers: dict[str, float] = {}
        self._squares: dict[str, str] = {}  # of whole numbers, by the names of their squares
        # Looks since the last step, what moved between them, and whether a step was made.
        self._n_looks, self._within, self._begun = 0, set[str](), False
        self._norms = running_norms(model)
        self._training: dict[str, bool] = {}  # when last looked at
        # Whether they were in training state in the steps; None: in some.
        self.norms_in_training: dict[str, bool | None] = {}

    def begin(self) -> None:
        """Look before the first forward pass, which may write to what it read."""
        self.look()
        self._n_looks, self._within = 0, set()

    @torch.no_grad()
    def look(self, whole: bool = False) -> None:
        """Notice what changed since the last look; ``whole``: in every entry."""
        self._training = {name: norm.training for name, norm in self._norms.items()}
        pairs: list[tuple[str, Tensor, Tensor]] = []
        now: Params = {}
        for name, value in self._values():
            if self.began.get(name, value) is None:
                continue
            if self._is_new(name, value):
                self.began[name] = None
                continue
            if not isinstance(value, Tensor):
                if self._numbers.setdefault(name, value) == value:
                    continue
                self._held.setdefault(name, _float64(self._numbers[name]))
                self._numbers[name], value = value, _float64(value)
            old = self._held.get(name)
            now[name] = value = value if old is None else value.to(old.device)
            if old is None:
                pairs += self._first_seen(name, value, whole)
            elif old.shape != value.shape or old.dtype != value.dtype:
                self.began[name] = None
            elif name in self.began or whole or value.numel() <= _SAMPLE:
                pairs.append((name, old, value))
            else:
                pairs.append((name, _sample(old), _sample(value)))
        for name in _different(pairs):
            self._moved(name, now[name], late=whole)
        self._n_looks += 1

    def add_to(self, sums: RunningSums, n_before: int, n_batches: int) -> None:
        """Add what moves to the sums of what the steps visited; before that it stood still."""
        if n_batches > 1:  # one value does not stand for the gradients of several batches
            self.began |= dict.fromkeys(self._within)
        self._n_looks, self._within, self._begun = 0, set(), True
        for name, training in self._training.items():
            if self.norms_in_training.setdefault(name, training) != training:
                self.norms_in_training[name] = None
        for name, began in self.began.items():
            if began is None:
                continue
            if name not in sums.totals:  # also after steps were dropped
                sums.totals[name] = wide(began) * n_before
            held = self._held[self._squares.get(name, name)]
            if name in self._squares:
                held = wide(held).square()
            sums.add(name, held if held.is_floating_point() else wide(held))

    def _values(self) -> Iterator[tuple[str, Tensor | float]]:
        for part in state_of(self._model):
            if id(part.value) not in self._recorded:
                value = part.value
                yield part.name, value.detach() if isinstance(value, Tensor) else value
        if sharding_parts(self._model):  # all of which are recorded, and whole at times
            return
        for name, p in self._model.named_parameters():  # they may be others than at the beginning
            if id(p) not in self._recorded and not p.is_meta:
                yield own_name(name), p.detach()

    def _is_new(self, name: str, value: Tensor | float) -> bool:
        """Whether the first step had nothing of this name, or a number for a tensor."""
        if isinstance(value, Tensor):
            known = name in self._held or name in self._sums
            return name in self._numbers or (self._begun and not known)
        return name not in self._numbers and (self._begun or name in self._held)

    def _first_seen(
        self, name: str, value: Tensor, whole: bool
    ) -> list[tuple[str, Tensor, Tensor]]:
        """Hold a copy, or a checksum where there is no room; what to compare."""
        if name in self._sums:
            return [(name, self._sums[name], _checksum(value))] if whole else []
        if value.nbytes > max(self._left, _SMALL):
            self._sums[name] = _checksum(value)
        else:
            self._left -= value.nbytes
            self._held[name] = value.clone()
        return []

    def _moved(self, name: str, value: Tensor, late: bool) -> None:
        if self._n_looks:
            self._within.add(name)
        if name in self._sums or value.is_complex():
            self.began[name] = None
        elif name in self.began:
            self._held[name].copy_(value)
        elif late and value.numel() > _SAMPLE and _same(self._held[name], value):
            self.began[name] = None  # in few entries, which nobody knows since when
        else:
            self.began[name] = began = self._held[name]
            self._held[name] = value.clone()
            if not value.is_floating_point() or _is_whole(self._numbers.get(name)):
                self._squares[squares_of(name)] = name
                self.began[squares_of(name)] = wide(began).square()


def _is_whole(number: float | None) -> bool:
    return isinstance(number, Integral | np.bool_)


def _float64(number: float) -> Tensor:
    return torch.tensor(float(number), dtype=torch.float64)


def _same(old: Tensor, value: Tensor) -> bool:
    return torch.equal(_sample(old), _sample(value))


def _sample(tensor: Tensor) -> Tensor:
    """Evenly spread entries."""
    return tensor.reshape(-1)[:: -(-tensor.numel() // _SAMPLE)]


def _checksum(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.sum()
    try:
        return tensor.sum(dtype=torch.float64)
    except TypeError:  # MPS has no float64
        return tensor.sum(dtype=torch.float32)


def _different(pairs: list[tuple[str, Tensor, Tensor]]) -> list[str]:
    """Names of the pairs that differ, waiting once for each device that is not a CPU."""
    found = [name for name, old, value in pairs if _near(value) and not torch.equal(old, value)]
    flags: dict[torch.device, dict[str, Tensor]] = {}
    for name, old, value in pairs:
        if not _near(value):
            flags.setdefault(value.device, {})[name] = (old != value).any()
    for own in flags.values():
        differ = torch.stack(list(own.values())).tolist()
        found += [name for name, flag in zip(own, differ, strict=True) if flag]
    return found


def _near(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
