"""Optimizers: the gradient that a step of each applied, and the tensors that they hold."""

# The gradient follows from the displacement and the state of the optimizer, never from its settings
# of a penalty: a decay is found in the numbers or not at all.

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from sklearn_implicitreg.adapters.torch.sharded import groups_of, part_of
from sklearn_implicitreg.problem import Params, Ranks, ranks_of
from sklearn_implicitreg.problem.frozen import own_name
from sklearn_implicitreg.problem.ranks import sharding_parts
from sklearn_implicitreg.problem.vectors import wide as in_float64

_NEW = "start a new record(...) after changing a model"

State = dict[str, Any]
Group = dict[str, Any]
# (displacement theta_t - theta_{t+1}, group, state before, state after) -> applied gradient
UpdateRule = Callable[[Tensor, Group, State, State], Tensor]


def sgd(moved: Tensor, group: Group, before: State, after: State) -> Tensor:
    """Displacement over the step size; momentum, dampening and Nesterov undone."""
    velocity, momentum = moved / lr_of(group), group["momentum"]
    first = before.get("momentum_buffer") is None
    if not momentum or (first and not group["nesterov"]):  # torch does not dampen the first step
        return signed(velocity, group)
    old = wide(before.get("momentum_buffer"))
    if group["nesterov"]:
        return signed((velocity - momentum**2 * old) / (1 + momentum), group)
    return signed((velocity - momentum * old) / (1 - group["dampening"]), group)


def adam(moved: Tensor, group: Group, before: State, after: State) -> Tensor:
    """Increment of the first moment; a decoupled decay is what the moments leave unexplained."""
    beta = number(group["betas"][0])
    gradient = (wide(after["exp_avg"]) - beta * wide(before.get("exp_avg"))) / (1 - beta)
    if group.get("decoupled_weight_decay"):
        own = {k: wide(v) if k in _MOMENTS else v for k, v in after.items()}
        mean, scale, factor = adam_direction(group, own)
        gradient = gradient + (moved / lr_of(group) - factor * mean / scale)
    return signed(gradient, group)


def adam_direction(group: Group, after: State) -> tuple[Tensor, Tensor, float]:
    """Direction of Adam's step as ``factor * mean / scale``, in the dtype of its state."""
    # The corrections of the bias are numbers: a pass over the tensors for each would cost as much
    # as the square root.
    step = number(after["step"])
    first, second = (number(beta) for beta in group["betas"])
    square = after["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    root = (1 - second**step) ** 0.5
    scale = square.sqrt().add_(number(group["eps"]) * root)
    return after["exp_avg"], scale, root / (1 - first**step)


def adamw(moved: Tensor, group: Group, before: State, after: State) -> Tensor:
    """Adam whose decay is apart from the gradient."""
    return adam(moved, {**group, "decoupled_weight_decay": True}, before, after)


def rmsprop(moved: Tensor, group: Group, before: State, after: State) -> Tensor:
    """Displacement over the step size, times the running root of the squared gradients."""
    step = moved / lr_of(group)
    if group["momentum"]:
        step = step - group["momentum"] * wide(before.get("momentum_buffer"))
    square = wide(after["square_avg"])
    if group["centered"]:
        square = square - wide(after["grad_avg"]).square()
    return signed(step * (square.sqrt() + group["eps"]), group)


def adagrad(moved: Tensor, group: Group, before: State, after: State) -> Tensor:
    """Displacement over the decayed step size, times the root of the summed squares."""
    step = number(after["step"])
    lr = lr_of(group) / (1 + (step - 1) * group["lr_decay"])
    return signed(moved / lr * (wide(after["sum"]).sqrt() + group["eps"]), group)


def scale_of(p: Tensor, group: Group, state: State) -> Tensor | None:
    """What a step multiplies each entry of the gradient by; None if it is one number for all."""
    kinds = ("max_exp_avg_sq", "exp_avg_sq", "exp_inf", "square_avg", "sum")
    found = (state[key] for key in kinds if isinstance(state.get(key), Tensor))
    root = next((t for t in found if t.shape == p.shape), None)
    if root is None:
        return None
    if "exp_avg_sq" in state and "betas" in group:
        root = root / (1 - number(group["betas"][1]) ** number(state["step"]))
    if isinstance(state.get("grad_avg"), Tensor):  # of a centered RMSprop
        root = root - state["grad_avg"].square()
    if "exp_inf" not in state:
        root = root.sqrt()
    return torch.nan_to_num(1 / (root + number(group.get("eps", 0.0))), 0.0, 0.0)


@dataclass(frozen=True)
class Rule:
    """How the gradient that a step applied is recovered, in float64."""

    applied: UpdateRule
    remembered: tuple[str, ...]  # keys of the state that the step overwrites; "*" for all
    # What a sum over steps of constant settings follows from: "displacement" and momentum buffer
    # at both ends, or the running sum of the first "moment"; None: step by step only.
    telescopes: str | None = None

    @property
    def entrywise(self) -> bool:
        """Whether every entry of a tensor follows from its own state alone."""
        return "*" not in self.remembered

    def remember(self, state: State) -> State:
        """Copy of the state that the next step will overwrite."""
        keys = state if "*" in self.remembered else [k for k in self.remembered if k in state]
        return {k: v.clone() if isinstance(v := state[k], Tensor) else v for k in keys}


_RULES = {
    "SGD": Rule(sgd, ("momentum_buffer",), "displacement"),
    "Adam": Rule(adam, ("exp_avg",), "moment"),
    "AdamW": Rule(adamw, ("exp_avg",), "moment"),
    "NAdam": Rule(adam, ("exp_avg",), "moment"),
    "RAdam": Rule(adam, ("exp_avg",), "moment"),
    "Adamax": Rule(adam, ("exp_avg",), "moment"),
    "RMSprop": Rule(rmsprop, ("momentum_buffer",)),
    "Adagrad": Rule(adagrad, ()),
}


def rule_of(optimizer: Optimizer, update_rule: UpdateRule | None = None) -> Rule:
    """Rule of an optimizer; ValueError where none is known, or its step is not torch's."""
    if update_rule is not None:
        return Rule(update_rule, ("*",))
    for cls in type(optimizer).__mro__:
        if not cls.__module__.startswith("torch.optim"):
            continue
        if cls.__name__ == "LBFGS":
            raise ValueError(
                "Expected an optimizer that makes one step per gradient, got LBFGS, whose step "
                "holds many evaluations; analyze its endpoint with mode='endpoint'."
            )
        if cls.__name__ in _RULES and _same_step(type(optimizer), cls):
            _check_decay(cls.__name__, optimizer)
            return _RULES[cls.__name__]
    raise ValueError(
        f"Expected one of torch's optimizers {list(_RULES)} with its own step, got "
        f"{type(optimizer).__name__}; give `update_rule=`, a callable(displacement, group, "
        "state_before, state_after) that returns the gradient that the step applied."
    )


def _same_step(own: type, known: type) -> bool:
    """Whether a subclass steps as torch's class does."""
    return bool(inspect.unwrap(own.step) is inspect.unwrap(known.step))  # type: ignore[attr-defined]


def _check_decay(name: str, optimizer: Optimizer) -> None:
    decoupled = any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    if decoupled and name in ("NAdam", "RAdam"):
        raise ValueError(
            "Expected an optimizer whose decay can be found from its step, got "
            f"{name} with decoupled_weight_decay=True; use AdamW, or give `update_rule=`."
        )


def rounding_of(
    rule: Rule, weights: Tensor, moved: Tensor, group: Group, before: State, after: State
) -> Tensor:
    """Size of the rounding in the applied gradient of one step, entry by entry."""
    # To first order, by what a relative change of one rounding unit in the weights, the
    # displacement and the state of the optimizer does to the recovered gradient. For SGD it is
    # the rounding of the weights over the step size.
    unit = torch.finfo(weights.dtype).eps / 2
    base = rule.applied(moved, group, before, after)
    slack = wide(weights.detach()).abs() + 4 * moved.abs()
    total = (rule.applied(moved + slack, group, before, after) - base).abs()
    h = 1e-4
    changes: list[tuple[State, State]]
    changes = [({k: value}, {}) for k, value in before.items() if k in rule.remembered]
    changes += [({}, {k: after[k]}) for k in _MOMENTS & after.keys()]
    for changed in changes:
        if not all(isinstance(t, Tensor) for state in changed for t in state.values()):
            continue
        ahead = [{k: wide(t) * (1 + h) for k, t in state.items()} for state in changed]
        recovered = rule.applied(moved, group, {**before, **ahead[0]}, {**after, **ahead[1]})
        total += (recovered - base).abs() * (2 / h)
    return unit * (total.nan_to_num(0.0, 0.0, 0.0) + base.abs())


_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "sum"}


def lr_of(group: Group) -> float:
    """Step size in force, which must be positive."""
    lr = number(group["lr"])
    if not lr > 0:
        raise ValueError(
            f"Expected a positive learning rate, got {lr}: a step that does not move shows "
            "nothing; record the steps that do."
        )
    return lr


def wide(tensor: Tensor | None) -> Any:
    """A tensor of the state in float64, 0 where there is none yet."""
    return 0.0 if tensor is None else in_float64(tensor)


def number(value: Any) -> float:
    """Number that a setting stands for, also where it is a tensor."""
    return float(value.item()) if isinstance(value, Tensor) else float(value)


def signed(gradient: Tensor, group: Group) -> Tensor:
    """A maximizing optimizer follows minus its gradient."""
    return -gradient if group.get("maximize") else gradient


def _apart(model: Iterable[Tensor], held: Iterable[Tensor]) -> str:
    """Where both are, if they are on different devices."""
    here, there = (sorted({str(p.device) for p in own}) for own in (model, held))
    if here == there:
        return ""
    return f" (the model is on {', '.join(here)}, the optimizer's tensors on {', '.join(there)})"


class Watched:
    """Trained tensors of a model that an optimizer has."""

    def __init__(self, model: nn.Module, optimizer: Optimizer):
        for part in sharding_parts(model):
            part.reshard()
        if empty := [name for name, p in model.named_parameters() if is_lazy(p)]:
            raise ValueError(
                f"Expected a model whose tensors have shapes, got {', '.join(empty)} without; pass "
                "one batch through the lazy layers before record(...)."
            )
        names = {id(p): own_name(name) for name, p in model.named_parameters() if p.requires_grad}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self.params: Params = {names[id(p)]: p for p in held if id(p) in names}
        if not self.params:
            raise ValueError(
                "Expected an optimizer of this model's parameters, got one of none of them"
                f"{_apart(model.parameters(), held)}; make it of model.parameters(), after the "
                "model was moved or copied."
            )
        for name, p in self.params.items():
            for key, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor) and value.ndim and value.device != p.device:
                    raise ValueError(
                        f"Expected an optimizer on the device of the model, got {key} of {name} on "
                        f"{value.device} and {name} on {p.device}; move the model before its "
                        "optimizer is made, or load the optimizer's state_dict again."
                    )
        complex_ones = [name for name, p in self.params.items() if p.is_complex()]
        if complex_ones:
            raise ValueError(
                f"Expected an optimizer of real parameters, got complex ones in {complex_ones}; "
                "store their real and imaginary parts (torch.view_as_real) as parameters."
            )
        # The recorder has no room for tensors that may never train, such as a large frozen base.
        self._frozen = {own_name(n): p for n, p in model.named_parameters() if not p.requires_grad}
        self._frozen = {n: p for n, p in self._frozen.items() if any(p is own for own in held)}
        self._model = model
        self._own = {id(p) for p in self.params.values()}
        # Of a tensor in shards the part here is recorded, with its gradient and state.
        self.given, ranks = self.params, ranks_of(model)
        if ranks is not None and ranks.sharded:
            self.params = {name: part_of(p, ranks) for name, p in self.given.items()}
            self._ranks: Ranks | None = ranks
        else:
            self._ranks = None
        self.look()
        self.remember()
        self._others = {id(p) for p in held if id(p) not in names}
        self._shapes = {name: p.shape for name, p in self.params.items()}

    def look(self) -> None:
        """Give the parts of tensors in shards their gradients."""
        if self._ranks is None:
            return
        for name, p in self.given.items():
            part, here = self.params[name], part_of(p, self._ranks)
            if part.data_ptr() != here.data_ptr():
                raise ValueError(f"Expected {name} to keep its memory, got another; {_NEW}.")
            part.requires_grad_(p.requires_grad)
            part.grad = None if p.grad is None else part_of(p.grad, self._ranks)

    def state(self, optimizer: Optimizer, name: str) -> State:
        """What the optimizer holds of a tensor, of one in shards its part here."""
        found: State = optimizer.state.get(self.given[name], {})
        if self._ranks is None:
            return found
        return {
            key: part_of(value, self._ranks) if hasattr(value, "device_mesh") else value
            for key, value in found.items()
        }

    def change(self, optimizer: Optimizer) -> str:
        """What is other than at the beginning; empty where nothing is."""
        self.look()
        here = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, shape in self._shapes.items():
            if self.params[name].shape != shape:
                return (
                    f"Expected {name} to keep its shape {tuple(shape)}, got "
                    f"{tuple(self.params[name].shape)}; {_NEW}."
                )
        late = [name for name, p in self._frozen.items() if p.requires_grad]
        if late:
            return (
                f"Expected tensors that require gradients when record(...) begins, got "
                f"{', '.join(late)}, unfrozen since; begin with them unfrozen and freeze them in "
                "the with block: the recorder counts the steps of each tensor."
            )
        if not self._own <= here or not here <= self._own | self._others:
            return (
                "Expected the optimizer to keep the parameters of the recorded model, got "
                f"another one or a new parameter group; {_NEW}."
            )
        return ""

    def _checksums(self) -> list[Tensor]:
        return [p.detach().sum() for p in self.params.values()]

    def remember(self) -> None:
        """Take the checksums of the weights."""
        self._sums = self._checksums()

    def changed(self) -> bool:
        """Whether the weights are other than remembered."""
        pairs = zip(self._checksums(), self._sums, strict=True)
        return any(bool((now - then).isfinite() & (now != then)) for now, then in pairs)

    def lr(self, optimizer: Optimizer) -> float:
        """Step size of the first group with a recorded tensor."""
        first = next(g for g in optimizer.param_groups if self._own & {id(p) for p in g["params"]})
        return number(first["lr"])

    def idle(self, optimizer: Optimizer) -> str:
        """Why a step shows nothing, where recorded tensors have learning rate 0."""
        still = [group for group in optimizer.param_groups if number(group["lr"]) == 0]
        held = {id(p) for group in still for p in group["params"]}
        names = [name for name, p in self.given.items() if id(p) in held]
        if not names:
            return ""
        if len(names) == len(self.params):
            return "with learning rate 0"
        return (
            f"with learning rate 0 of {', '.join(names)}, whose applied gradient is unknown "
            "(freeze them by requires_grad_(False))"
        )

    def replaced(self) -> str:
        """Which recorded tensors the model has no longer; empty where it has all."""
        here = {id(p) for p in self._model.parameters()}
        for part in sharding_parts(self._model):  # also while it is whole
            here |= {id(p.sharded_param) for group in groups_of(part) for p in group.fsdp_params}
        names = ", ".join(name for name, p in self.given.items() if id(p) not in here)
        return names and (
            f"Expected the model to keep the recorded tensors, got others for {names}; {_NEW}."
        )


def frozen(group: Group) -> Group:
    """Settings as they are now, numbers for tensors."""
    return {k: number(v) if isinstance(v, Tensor) else v for k, v in group.items()}


def plain_settings(optimizer: Optimizer) -> dict[str, Any]:
    """Settings of the first parameter group that are numbers, names or pairs of numbers."""
    settings = frozen(optimizer.param_groups[0])
    return {key: value for key, value in settings.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(isinstance(part, int | float) for part in parts) or isinstance(value, str)
