"""The tensors and the settings of the optimizer that is recorded."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.problem.frozen import own_name
from sklearn_implicitreg.trajectory.recording.applied_gradient import number

__all__ = ["Watched", "plain_settings"]


class Watched:
    """Trained tensors of a model that an optimizer has.

    Parameters
    ----------
    model : nn.Module
    optimizer : torch.optim.Optimizer

    Raises
    ------
    ValueError
        If it has none of them.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer):
        names = {id(p): own_name(name) for name, p in model.named_parameters() if p.requires_grad}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self.params: Params = {names[id(p)]: p for p in held if id(p) in names}
        if not self.params:
            raise ValueError(
                "Expected an optimizer of this model's parameters, got one of none of them."
            )
        self._model = model
        self._sums = self._checksums()
        self._others = {id(p) for p in held if id(p) not in names}
        self._shapes = {name: p.shape for name, p in self.params.items()}

    def change(self, optimizer: Optimizer) -> str:
        """What is other than at the beginning; empty where nothing is."""
        here = {id(p) for group in optimizer.param_groups for p in group["params"]}
        own = {id(p) for p in self.params.values()}
        for name, shape in self._shapes.items():
            if self.params[name].shape != shape:
                return (
                    f"Expected {name} to keep its shape {tuple(shape)}, got "
                    f"{tuple(self.params[name].shape)}"
                )
        if not own <= here or not here <= own | self._others:
            return (
                "Expected the optimizer to keep the parameters of the recorded model, got "
                "another one or a new parameter group"
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
        own = {id(p) for p in self.params.values()}
        groups = optimizer.param_groups
        return number(next(g["lr"] for g in groups if any(id(p) in own for p in g["params"])))

    def idle(self, optimizer: Optimizer) -> str:
        """Why a step tells nothing, where recorded tensors have learning rate 0."""
        still = [group for group in optimizer.param_groups if number(group["lr"]) == 0]
        if not still:
            return ""
        held = {id(p) for group in still for p in group["params"]}
        names = [name for name, p in self.params.items() if id(p) in held]
        if len(names) == len(self.params):
            return "with learning rate 0"
        if not names:
            return ""
        return (
            f"with learning rate 0 of {', '.join(names)}, whose applied gradient is unknown "
            "(freeze them by requires_grad_(False))"
        )

    def replaced(self) -> str:
        """Names of recorded tensors that the model has no longer; empty where it has all."""
        here = {id(p) for p in self._model.parameters()}
        return ", ".join(name for name, p in self.params.items() if id(p) not in here)


def plain_settings(optimizer: Optimizer) -> dict[str, Any]:
    """Settings of the first parameter group that are numbers or names."""
    return {
        key: number(value) if isinstance(value, Tensor) else value
        for key, value in optimizer.param_groups[0].items()
        if _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    """Whether a setting is a number, a name or a pair of numbers."""
    if isinstance(value, tuple):
        return all(isinstance(v, int | float) for v in value)
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float | bool | str)
