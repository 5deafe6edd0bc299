"""One of the optimizers of a recording: its tensors, its rule and the stretch it is in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sklearn_implicitreg.adapters.torch.structure import groups_of
from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.trajectory.recording.applied_gradient import Stretch
from sklearn_implicitreg.trajectory.recording.optimizers import (
    UpdateRule,
    Watched,
    number,
    plain_settings,
    rule_of,
    scale_of,
)

# Of Accelerate and Lightning, whose optimizers are of torch's class as well.
_WRAPPERS = {"AcceleratedOptimizer", "LightningOptimizer", "_FabricOptimizer"}

_ROUNDING_EVERY = 10  # steps between two estimates of the rounding


class Followed:
    """An optimizer whose steps are measured; its tensors, and what it did in this round."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, update_rule: UpdateRule | None):
        self.rule = rule_of(optimizer, update_rule)
        self.optimizer = optimizer
        self.watched = Watched(model, optimizer)
        self.params: Params = self.watched.params
        self.given: Params = self.watched.given
        self.stretch: Stretch | None = None
        self._spare: Stretch | None = None  # ended; its memory serves the next
        # In a step; whether it made its step of this round.
        self.pending = self.stepped = False
        self.idle, self.lr = "", float("nan")
        self.rates: list[float] = []  # of the groups, in its last step
        self.frozen: frozenset[str] = frozenset()  # at its last step
        self.skipped: frozenset[str] = frozenset()  # by its last step
        self.rounding, self._rounding_at = float("nan"), -_ROUNDING_EVERY

    def begin(self, each: bool) -> None:
        """Begin to measure here, in the memory of the last stretch where that is possible."""
        stretch, self._spare = self._spare, None
        if stretch is not None and stretch.fits(each):
            stretch.restart()
        else:
            stretch = Stretch(self.rule, self.optimizer, self.watched, each)
        stretch.before()
        self.stretch = stretch

    def looked(self) -> Followed:
        """The same, with the gradients that its tensors have now."""
        self.watched.look()
        return self

    def ended(self) -> Stretch | None:
        """The stretch that ends here, if it has steps."""
        stretch, self.stretch = self.stretch, None
        return stretch if stretch is not None and stretch.n_steps else None

    def spare(self, stretch: Stretch | None) -> None:
        """Keep the memory of a stretch, or let it go."""
        self._spare = stretch

    @property
    def without(self) -> frozenset[str]:
        """Tensors that the step did not update, frozen ones aside: no gradient reached them."""
        return frozenset(name for name, p in self.params.items() if p.grad is None) - self.frozen

    def after(self, n_steps: int) -> None:
        """Measure the step that was made, after so many of the recording."""
        assert self.stretch is not None
        self.stretch.after()
        skipped = self.frozen | self.without
        self.skipped = self.skipped if skipped == self.skipped else skipped
        if self.stretch.n_steps == 1 and n_steps >= self._rounding_at + _ROUNDING_EVERY:
            self.rounding, self._rounding_at = self.stretch.rounding(), n_steps
        self.lr = self.watched.lr(self.optimizer)
        self.rates = [number(group["lr"]) for group in self.optimizer.param_groups]
        self.stepped = True


def followed(model: nn.Module, optimizer: Any, update_rule: Any) -> tuple[Followed, ...]:
    """The optimizer, or each of several, with its own rule; ValueError where they overlap."""
    several = isinstance(optimizer, Sequence)
    given = list(optimizer) if several else [optimizer]
    optimizers = [inner_optimizer(one) for one in given]
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise TypeError(
                "Expected a torch optimizer or a list of them, got "
                f"{type(one).__name__}{' in the list' if several else ''}."
            )
    if not optimizers:
        raise ValueError("Expected at least one optimizer, got an empty list.")
    rules = _rules(update_rule, len(optimizers), several)
    if len({id(one) for one in optimizers}) < len(optimizers):
        raise ValueError("Expected optimizers that differ, got one of them twice; give it once.")
    found = tuple(Followed(model, one, r) for one, r in zip(optimizers, rules, strict=True))
    owners: dict[int, str] = {}
    for one in found:
        for name, p in one.given.items():
            if id(p) in owners:
                raise ValueError(
                    f"Expected optimizers of different tensors, got {name} in two of them; what "
                    "each of them applied to it does not follow from where it went."
                )
            owners[id(p)] = name
    return found


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer that steps, inside of those that training libraries wrap around it."""
    # Optimizers of torch with another one inside, such as Lookahead, make steps of their own.
    kinds = {cls.__name__ for cls in type(optimizer).__mro__}
    if isinstance(optimizer, Optimizer) and kinds.isdisjoint(_WRAPPERS):
        return optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if inner is optimizer else inner_optimizer(inner)


def _rules(update_rule: Any, n: int, several: bool) -> list[Any]:
    if update_rule is None:
        return [None] * n
    if not several:
        if not callable(update_rule):
            raise ValueError(
                f"Expected update_rule to be a callable for one optimizer, got {update_rule!r}."
            )
        return [update_rule]
    given = isinstance(update_rule, Sequence) and len(update_rule) == n
    if not given or not all(rule is None or callable(rule) for rule in update_rule):
        raise ValueError(
            f"Expected update_rule to be a list of {n} rules, one for each optimizer and None for "
            f"those that have their own, got {update_rule!r}."
        )
    return list(update_rule)


def described(parts: Sequence[Followed]) -> tuple[str, dict[str, Any]]:
    """Class and settings of the optimizers; no settings where they differ in more than the lr."""
    kinds = [type(one.optimizer).__name__ for one in parts]
    settings = [plain_settings(one.optimizer) for one in parts]
    first = settings[0]
    own = ("lr", "initial_lr", "weight_decay")
    shared = [{k: v for k, v in one.items() if k not in own} for one in settings]
    if len(set(kinds)) == 1 and all(one == shared[0] for one in shared):
        return kinds[0], first
    return " + ".join(kinds), {}


def scales(parts: Sequence[Followed]) -> Params:
    """What each entry of a gradient is multiplied by, over the first step size; {} if by one."""
    groups: dict[int, tuple[Any, float]] = {}
    for one in parts:
        for index, group in enumerate(one.optimizer.param_groups):
            # A scheduler may have set the group's own to that of the next step.
            lr = one.rates[index] if index < len(one.rates) else number(group["lr"])
            groups |= {id(p): (group, lr) for p in group["params"]}
    own: dict[str, tuple[Tensor, float, Tensor | None]] = {}
    for one in parts:
        for name, p in one.params.items():
            (group, lr), state = groups[id(one.given[name])], one.watched.state(one.optimizer, name)
            own[name] = p.detach(), lr, scale_of(p, group, state)
    rates = [lr for _, lr, _ in own.values()]
    first = next(filter(None, rates), 0.0)
    if not first or (len(set(rates)) == 1 and all(s is None for *_, s in own.values())):
        return {}
    return {
        name: (torch.ones_like(p) if scale is None else scale) * (lr / first)
        for name, (p, lr, scale) in own.items()
    }


def param_groups(parts: Sequence[Followed]) -> dict[str, str]:
    """Parameter group of every recorded tensor."""
    names = {id(p): name for one in parts for name, p in one.given.items()}
    return groups_of([one.optimizer for one in parts], names)


def tensors_of(parts: Sequence[Followed]) -> dict[str, Tensor]:
    """Recorded tensors of all optimizers."""
    return {name: p for one in parts for name, p in one.params.items()}
