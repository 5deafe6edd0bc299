"""The gradient that an optimizer's step applied, from the displacement and its state.

Never from its settings of a penalty: a decay is found in the numbers or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["UpdateRule", "rule_of"]

State = dict[str, Any]
Group = dict[str, Any]
# (displacement theta_t - theta_{t+1}, group, state before, state after) -> applied gradient
UpdateRule = Callable[[Tensor, Group, State, State], Tensor]


def sgd(moved: Tensor, group: Group, before: State, after: State) -> Tensor:
    """Displacement over the step size; momentum, dampening and Nesterov undone."""
    velocity = moved / _lr(group)
    momentum = group["momentum"]
    if not momentum:
        return _signed(velocity, group)
    old = before.get("momentum_buffer")
    old = torch.zeros_like(velocity) if old is None else old.double()
    if group["nesterov"]:
        return _signed((velocity - momentum**2 * old) / (1 + momentum), group)
    if before.get("momentum_buffer") is None:  # torch does not dampen the first step
        return _signed(velocity, group)
    return _signed((velocity - momentum * old) / (1 - group["dampening"]), group)


def adam(moved: Tensor, group: Group, before: State, after: State) -> Tensor:
    """Increment of the first moment; a decoupled decay is what the moments leave unexplained."""
    beta = _number(group["betas"][0])
    new = after["exp_avg"].double()
    old = before.get("exp_avg")
    old = torch.zeros_like(new) if old is None else old.double()
    gradient = (new - beta * old) / (1 - beta)
    if group.get("decoupled_weight_decay"):
        gradient = gradient + (moved / _lr(group) - _adam_direction(group, after))
    return _signed(gradient, group)


def _adam_direction(group: Group, after: State) -> Tensor:
    """Preconditioned direction of Adam's step."""
    step = _number(after["step"])
    first, second = (_number(beta) for beta in group["betas"])
    name = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    scale = (after[name].double() / (1 - second**step)).sqrt() + group["eps"]
    return after["exp_avg"].double() / (1 - first**step) / scale


def first_moment(moved: Tensor, group: Group, before: State, after: State) -> Tensor:
    """NAdam, RAdam, Adamax: the increment of the first moment."""
    if group.get("decoupled_weight_decay"):
        raise ValueError(
            "Expected an optimizer whose decay can be told from its step, got NAdam or RAdam "
            "with decoupled_weight_decay=True; use AdamW, or give `update_rule=`."
        )
    return adam(moved, group, before, after)


def rmsprop(moved: Tensor, group: Group, before: State, after: State) -> Tensor:
    """Displacement over the step size, times the running root of the squared gradients."""
    step = moved / _lr(group)
    if group["momentum"]:
        old = before.get("momentum_buffer")
        step = step if old is None else step - group["momentum"] * old.double()
    square = after["square_avg"].double()
    if group["centered"]:
        square = square - after["grad_avg"].double().square()
    return _signed(step * (square.sqrt() + group["eps"]), group)


def adagrad(moved: Tensor, group: Group, before: State, after: State) -> Tensor:
    """Displacement over the decayed step size, times the root of the summed squares."""
    step = _number(after["step"])
    lr = _lr(group) / (1 + (step - 1) * group["lr_decay"])
    return _signed(moved / lr * (after["sum"].double().sqrt() + group["eps"]), group)


_RULES: dict[str, tuple[UpdateRule, tuple[str, ...]]] = {
    "SGD": (sgd, ("momentum_buffer",)),
    "Adam": (adam, ("exp_avg",)),
    "AdamW": (adam, ("exp_avg",)),
    "NAdam": (first_moment, ("exp_avg",)),
    "RAdam": (first_moment, ("exp_avg",)),
    "Adamax": (first_moment, ("exp_avg",)),
    "RMSprop": (rmsprop, ("momentum_buffer",)),
    "Adagrad": (adagrad, ()),
}


def rule_of(
    optimizer: Optimizer, update_rule: UpdateRule | None = None
) -> tuple[UpdateRule, tuple[str, ...]]:
    """Rule of an optimizer, and the state that must be remembered from before the step.

    Raises
    ------
    ValueError
        For LBFGS, and for optimizers that no rule is known for.
    """
    if update_rule is not None:
        return update_rule, ("*",)
    for cls in type(optimizer).__mro__:
        if cls.__name__ == "LBFGS":
            raise ValueError(
                "Expected an optimizer that makes one step per gradient, got LBFGS, whose step "
                "holds many evaluations; analyze its endpoint with mode='endpoint'."
            )
        if cls.__name__ in _RULES and cls.__module__.startswith("torch.optim"):
            return _RULES[cls.__name__]
    raise ValueError(
        f"Expected one of the optimizers {list(_RULES)}, got {type(optimizer).__name__}; give "
        "`update_rule=`, a callable(displacement, group, state_before, state_after) that returns "
        "the gradient that the step applied."
    )


def _lr(group: Group) -> float:
    lr = _number(group["lr"])
    if not lr > 0:
        raise ValueError(
            f"Expected a positive learning rate, got {lr}: a step that does not move tells "
            "nothing; record the steps that do."
        )
    return lr


def _number(value: Any) -> float:
    return float(value.item()) if isinstance(value, Tensor) else float(value)


def _signed(gradient: Tensor, group: Group) -> Tensor:
    """A maximizing optimizer follows minus its gradient."""
    return -gradient if group.get("maximize") else gradient
