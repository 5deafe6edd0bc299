"""The losses of a linear predictor row by row, in torch: what penalties on rows look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.adapters.linear.losses import LOSSES, Loss

# As torch differentiates them any number of times; equal to those of the table.
_IN_TORCH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared_error": lambda eta, y: (eta - y).square(),
    "log_loss": lambda eta, y: torch.nn.functional.softplus(eta) - y * eta,
    "cross_entropy": lambda eta, y: -(y * eta.log_softmax(1)).sum(1, keepdim=True),
    "poisson": lambda eta, y: torch.xlogy(y, y) - y * eta - y + eta.exp(),
    "gamma": lambda eta, y: eta - y.log() + y * (-eta).exp() - 1,
}


@dataclass(frozen=True)
class LinearLosses:
    """A loss of the table as a function that torch differentiates."""

    loss: Loss

    @property
    def kind(self) -> str | None:
        """Name of the loss, if torch can differentiate it any number of times."""
        same = (name for name in _IN_TORCH if LOSSES[name].rows is self.loss.rows)
        return next(same, None)

    def prepare(self, output: Any, target: Any) -> Any:
        """Targets of the shape of the outputs; numbers of classes as zeros and ones."""
        found: Tensor = target.to(output)
        n_rows, n_outputs = output.shape
        if self.kind == "cross_entropy" and found.shape == (n_rows,):
            found = (found[:, None] == torch.arange(n_outputs)).to(output)
        if found.numel() != output.numel():
            raise ValueError(
                f"Expected y with {n_outputs} number(s) for each of {n_rows} rows, as the "
                f"{self.loss.words} takes them, got shape {tuple(found.shape)}."
            )
        self.loss.check_range(found.numpy())
        return found.reshape(output.shape)

    def each(self, output: Any, target: Any) -> tuple[Tensor, None]:
        """Losses of the rows and outputs."""
        kind, target = self.kind, self.prepare(output, target)
        if kind is not None:
            return _IN_TORCH[kind](output, target), None
        value: Tensor = _Once.apply(output, target, self.loss)  # type: ignore[no-untyped-call]
        return value, None


class _Once(torch.autograd.Function):
    """Losses whose first derivative is known."""

    @staticmethod
    def forward(ctx: Any, eta: Tensor, y: Tensor, loss: Loss) -> Tensor:
        with np.errstate(all="ignore"):
            found = loss(eta.detach().numpy(), y.numpy())
        ctx.save_for_backward(torch.from_numpy(found.derivative))
        return torch.from_numpy(found.value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (derivative,) = ctx.saved_tensors
        return slope * derivative, None, None
