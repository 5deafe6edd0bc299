"""Sums of the gradients that steps applied, with or without a copy of the weights per step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.problem.vectors import wide_zeros
from sklearn_implicitreg.trajectory.recording.optimizers import (
    Group,
    Rule,
    State,
    Watched,
    adam_direction,
    frozen,
    lr_of,
    number,
    rounding_of,
    signed,
    wide,
)

_CHUNK = 2**16  # entries that are worked on at once on a CPU, so that they stay in its cache
_COLLECTED = 16  # terms that are added up in float32 before they join the sum
_SAMPLE = 1000  # entries of a tensor that the rounding is estimated from
_BUFFERS = ("momentum_buffer", "exp_avg")


class RunningSums:
    """Sums by name, in the float64 tensors that are given."""

    # Up to 16 float32 terms are added up in float32 first, an eighth of the cost; that is off by
    # less than one part in a million, and by the rounding of the terms themselves in the mean.

    def __init__(self, totals: Params):
        self.totals = totals
        self._recent: Params = {}
        self._n_recent: dict[str, int] = {}

    def add(self, name: str, term: Tensor, sign: int = 1) -> None:
        """Add a term to one sum."""
        if term.dtype != torch.float32 or term.is_sparse:
            self.totals[name].add_(term.to(self.totals[name].device), alpha=sign)
        elif self._begins(name):
            self._place(name, term).copy_(term)
            if sign < 0:
                self._recent[name].neg_()
        else:
            self._recent[name].add_(term, alpha=sign)

    def add_quotient(self, name: str, above: Tensor, below: Tensor, factor: float) -> None:
        """Add ``factor * above / below`` to one sum, without a tensor of it."""
        if above.dtype != torch.float32:
            self.totals[name].add_(wide(above / below), alpha=factor)
        elif self._begins(name):
            torch.div(above, below, out=self._place(name, above)).mul_(factor)
        else:
            self._recent[name].addcdiv_(above, below, value=factor)

    def _begins(self, name: str) -> bool:
        """Whether the next term is the first of those that are added up in float32."""
        n = self._n_recent.get(name, 0)
        first = n in (0, _COLLECTED)
        if first:
            self._flush(name)
        self._n_recent[name] = 1 if first else n + 1
        return first

    def _place(self, name: str, like: Tensor) -> Tensor:
        """Memory of the terms that are added up."""
        if name not in self._recent:
            kind = torch.contiguous_format
            self._recent[name] = torch.empty_like(like, memory_format=kind, requires_grad=False)
        return self._recent[name]

    def flush(self) -> Params:
        """The sums, with all terms in."""
        for name in self._recent:
            self._flush(name)
        return self.totals

    def clear(self) -> None:
        """Begin again at zero."""
        for total in self.totals.values():
            total.zero_()
        self._n_recent = {}

    def _flush(self, name: str) -> None:
        if self._n_recent.get(name):
            _add(self.totals[name], self._recent[name])
            self._n_recent[name] = 0


def _add(total: Tensor, part: Tensor) -> None:
    """Add float32 numbers in place, in pieces that stay in the cache."""
    sums, flat = total.view(-1), part.reshape(-1)
    if part.device.type != "cpu":
        sums += flat.to(sums.device)
        return
    chunk = torch.empty(min(_CHUNK, len(flat)), dtype=torch.float64)
    for start in range(0, len(flat), _CHUNK):
        narrow = flat[start : start + _CHUNK]
        own = chunk[: len(narrow)]
        sums[start : start + _CHUNK].add_(own.copy_(narrow))


class Meter:
    """Sum over steps of the gradients that they applied to one tensor."""

    def __init__(self, rule: Rule, p: Tensor, group: Group, start: Tensor, state: State):
        self._rule, self._p, self._group = rule, p, group
        self._start, self._state = start, state  # weights and state of the optimizer, copied

    def spoilt(self) -> bool:
        """Whether it is known already that the sum will not be sound."""
        return False

    def rounding(self, state: State) -> float:
        """Norm of the rounding of the step just made, the first, from evenly spread entries."""
        p, rule = self._p.detach(), self._rule
        if self._p.grad is None:
            return 0.0
        part = slice(None, None, max(p.numel() // _SAMPLE, 1)) if rule.entrywise else None
        start = _part(self._start, part)
        moved = wide(start) - wide(_part(p, part))
        before, after = _cut(self._state, p, part), _cut(state, p, part)
        size = rounding_of(rule, start, moved, self._group, before, after)
        return float(size.norm()) * math.sqrt(p.numel() / max(size.numel(), 1))


class StepByStep(Meter):
    """Every step measured alone, from a copy of the weights before it."""

    def __init__(self, rule: Rule, p: Tensor, group: Group, state: State):
        super().__init__(rule, p, group, torch.empty_like(p, requires_grad=False), state)
        self._sum = wide_zeros(p)

    def restart(self, state: State) -> None:
        """Begin again at the weights as they are."""
        self._sum.zero_()

    def before(self, state: State) -> None:
        """Remember what a step starts from."""
        self._start.copy_(self._p.detach())
        self._state = self._rule.remember(state)

    def after(self, state: State) -> None:
        """Add what a step applied."""
        if self._p.grad is None:
            return
        p = self._p.detach()
        for part in _slices(p) if self._rule.entrywise else (None,):
            moved = wide(_part(self._start, part)) - wide(_part(p, part))
            before, after = _cut(self._state, p, part), _cut(state, p, part)
            _part(self._sum, part).add_(self._rule.applied(moved, self._group, before, after))

    def sound(self) -> bool:
        """Whether all gradients were finite; what happens between steps is not measured."""
        return bool(self._sum.sum().isfinite())

    def add_to(self, total: Tensor) -> None:
        """Add the sum over the steps."""
        total += self._sum

    def moved(self) -> bool:
        """Whether the tensor is not where the last step left it."""
        return not torch.equal(self._p.detach(), self._start)


class Telescope(Meter):
    """Sum over steps of constant settings from its two ends, without a copy in between."""

    # SGD: (1 - m) (theta_a - theta_b) / lr and a boundary term of the momentum buffers. Adam kinds:
    # the running sum of the first moment and its boundary term, and what the directions do not
    # explain of the displacement where decay is decoupled.

    def __init__(self, rule: Rule, p: Tensor, group: Group, state: State):
        super().__init__(rule, p, group, p.detach().clone(), rule.remember(state))
        self._live = state  # the optimizer's own tensors, which it changes in place
        # After the last step: checksum of the weights, and how often the buffer had been changed.
        self._seen: Tensor | None = None
        self._version = 0
        self._edited = False  # the buffer, between steps
        self._tampered = torch.zeros((), dtype=torch.bool, device=p.device)
        self._sums = RunningSums({})  # of moments and directions, from the first step on

    def restart(self, state: State) -> None:
        """Begin again at the weights as they are."""
        self._start.copy_(self._p.detach())
        for key, old in self._state.items():
            if isinstance(old, Tensor):
                old.copy_(state[key])
        self._live, self._seen, self._edited = state, None, False
        self._tampered.zero_()
        self._sums.clear()

    def before(self, state: State) -> None:
        """Note whether the weights and the buffer are still those that the last step left."""
        if self._seen is None:
            self._see()
        else:
            self._edited |= self._version != self._version_now()
            self._tampered |= self._p.detach().sum() != self._seen

    def after(self, state: State) -> None:
        """Add what a step applied."""
        self._live = dict(state)
        p = self._p.detach()
        self._see()
        if self._p.grad is None or self._rule.telescopes != "moment":
            return
        decoupled = bool(self._group.get("decoupled_weight_decay"))
        if not self._sums.totals:
            self._sums.totals = {
                name: wide_zeros(p) for name in ("moment", "direction")[: 1 + decoupled]
            }
        self._sums.add("moment", state["exp_avg"])
        if decoupled:
            self._sums.add_quotient("direction", *adam_direction(self._group, state))

    def _see(self) -> None:
        self._seen, self._version = self._p.detach().sum(), self._version_now()

    def _version_now(self) -> int:
        buffer = self._live.get(self._rule.remembered[0])
        return 0 if buffer is None else buffer._version

    def spoilt(self) -> bool:
        """Whether something changed between steps; known at the end where that would wait."""
        return self._edited or (self._tampered.device.type == "cpu" and bool(self._tampered))

    def sound(self) -> bool:
        """Whether the weights are finite, and they and the buffer changed in no other way."""
        return not (self._edited or bool(self._tampered) or self.moved())

    def add_to(self, total: Tensor) -> None:
        """Add the sum over the steps."""
        key, p = self._rule.remembered[0], self._p.detach()
        self._sums.flush()
        for part in _slices(p):
            rate = wide(_part(self._start, part)) - wide(_part(p, part))
            rate /= lr_of(self._group)
            ends = [self._live.get(key), self._state.get(key)]
            last, first = (wide(t if t is None else _part(t, part)) for t in ends)
            if self._rule.telescopes == "moment":
                applied = self._by_moments(part, rate, last - first)
            else:
                applied = self._by_displacement(rate, last - first)
            _part(total, part).add_(signed(applied, self._group))

    def _by_moments(self, part: slice, rate: Tensor, gained: Tensor | float) -> Tensor:
        sums, beta = self._sums.totals, number(self._group["betas"][0])
        if not sums:
            return torch.zeros_like(rate)
        applied = _part(sums["moment"], part) + beta / (1 - beta) * gained
        if "direction" in sums:
            applied += rate - _part(sums["direction"], part)
        return applied

    def _by_displacement(self, rate: Tensor, gained: Tensor | float) -> Tensor:
        momentum = number(self._group["momentum"])
        if not momentum:
            return rate
        power = 2 if self._group["nesterov"] else 1
        applied = (1 - momentum) * rate + momentum**power * gained
        return applied / (1 - number(self._group["dampening"]))

    def moved(self) -> bool:
        """Whether the weights or the buffer are other than when they were last looked at."""
        if self._seen is None:
            return False
        return self._version != self._version_now() or bool(self._p.detach().sum() != self._seen)


class Stretch:
    """Steps of constant settings: one sum for each tensor; with ``each`` all measured alone."""

    def __init__(self, rule: Rule, optimizer: Optimizer, watched: Watched, each: bool):
        self.settings, self.each = settings_of(optimizer), each
        self.n_steps = 0
        params = watched.params
        self.frozen = frozenset(name for name, p in params.items() if not p.requires_grad)
        self._optimizer, self._watched = optimizer, watched
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._meters: dict[str, StepByStep | Telescope] = {}
        for name, p in params.items():
            group, state = frozen(groups[id(watched.given[name])]), self._state(name)
            step_by_step = each or rule.telescopes is None or _undampened(group, state)
            kind = StepByStep if step_by_step else Telescope
            self._meters[name] = kind(rule, p, group, state)

    def fits(self, each: bool) -> bool:
        """Whether the settings are still those of the stretch."""
        return self.each == each and self.settings == settings_of(self._optimizer)

    def restart(self) -> None:
        """Begin a new stretch of the same settings in the memory of this one."""
        for name, meter in self._meters.items():
            meter.restart(self._state(name))
        self.n_steps = 0

    def before(self) -> None:
        """Before a step."""
        for name, meter in self._meters.items():
            meter.before(self._state(name))

    def after(self) -> None:
        """After a step that was made."""
        for name, meter in self._meters.items():
            meter.after(self._state(name))
        self.n_steps += 1

    def spoilt(self) -> bool:
        """Whether it is known already that a sum will not be sound."""
        return any(meter.spoilt() for meter in self._meters.values())

    def sound(self) -> bool:
        """Whether all sums are finite, and nothing else changed what they follow from."""
        return all(meter.sound() for meter in self._meters.values())

    def add_to(self, totals: Mapping[str, Tensor]) -> None:
        """Add the sums of the applied gradients."""
        for name, meter in self._meters.items():
            if name not in self.frozen:  # decay or momentum may move it, its gradient does not
                meter.add_to(totals[name])

    def moved(self) -> bool:
        """Whether a step that raised had changed weights already."""
        return any(meter.moved() for meter in self._meters.values())

    def rounding(self) -> float:
        """Norm of the rounding of the first step, just made."""
        return math.hypot(*(m.rounding(self._state(name)) for name, m in self._meters.items()))

    def _state(self, name: str) -> State:
        return self._watched.state(self._optimizer, name)


def settings_of(optimizer: Optimizer) -> list[Any]:
    """What must stay constant in a stretch: hyperparameters, and the buffers of the state."""
    found: list[Any] = []
    for group in optimizer.param_groups:
        found.append({key: v for key, v in frozen(group).items() if key != "params"})
        found.append([p.requires_grad for p in group["params"]])
        states = [optimizer.state.get(p, {}) for p in group["params"]]
        found.append(tuple(id(s[k]) for s in states for k in _BUFFERS if s.get(k) is not None))
    return found


def _slices(tensor: Tensor) -> Iterator[slice]:
    n = tensor.numel()
    size = _CHUNK if tensor.device.type == "cpu" else max(n, 1)
    return (slice(start, start + size) for start in range(0, n, size))


def _part(tensor: Tensor, part: slice | None) -> Tensor:
    """Some of the entries of a tensor in one row, or all of them as they are."""
    return tensor if part is None else tensor.reshape(-1)[part]


def _cut(state: State, like: Tensor, part: slice | None) -> State:
    return {
        key: _part(v, part) if isinstance(v, Tensor) and v.shape == like.shape and v.ndim else v
        for key, v in state.items()
    }


def _undampened(group: Group, state: State) -> bool:
    """Whether the next step is the first of SGD with dampening, which is not dampened."""
    return bool(group.get("dampening")) and state.get("momentum_buffer") is None
