"""Dropout of the inputs of a linear model: its expectation over the masks without drawing any."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Penalty
from sklearn_implicitreg.problem import RowBatch

_END = 12.5  # where exp(-pi t) has reached rounding


class LinearDropout(Penalty):
    """``R = E_mask L_drop - L`` of a linear model whose inputs are dropped at a rate."""

    def __init__(self, q: float):
        self.q = q

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """What dropout adds to the loss of every row, exact."""
        coef, kind = batch.coef, getattr(batch.model.loss, "kind", None)
        how = {
            "squared_error": self._squared,
            "log_loss": self._logistic,
            "poisson": self._poisson,
            "gamma": self._gamma,
        }.get(kind or "")
        if coef is None or how is None:
            raise ValueError(
                "Expected squared error, a logistic loss of two classes, or a Poisson or gamma "
                "deviance with log link for dropout of a linear model without drawing masks, got "
                "another loss; use DropoutQuadratic(q), or a torch module with nn.Dropout."
            )
        x = batch.inputs.to_dense() if batch.inputs.is_sparse else batch.inputs
        parts = [how(x * own, batch, k) for k, own in enumerate(coef)]
        return {"dropout": batch.weighed(torch.stack(parts, dim=1))}

    def _squared(self, a: Tensor, batch: RowBatch, k: int) -> Tensor:
        return self.q / (1 - self.q) * a.square().sum(1)

    def _poisson(self, a: Tensor, batch: RowBatch, k: int) -> Tensor:
        # E exp(eta + sum_j (m_j / (1 - q) - 1) a_j), the parts of a mean of logarithms near zero.
        mean: Tensor = batch.outputs[:, k].exp()
        return mean * torch.expm1(self._log_mean(a))

    def _gamma(self, a: Tensor, batch: RowBatch, k: int) -> Tensor:
        size: Tensor = batch.prepared[:, k] * (-batch.outputs[:, k]).exp()
        return size * torch.expm1(self._log_mean(-a))

    def _log_mean(self, a: Tensor) -> Tensor:
        kept = torch.expm1(a * (self.q / (1 - self.q)))
        return torch.log1p(self.q * torch.expm1(-a) + (1 - self.q) * kept).sum(1)

    def _logistic(self, a: Tensor, batch: RowBatch, k: int) -> Tensor:
        rest = batch.outputs[:, k] - a.sum(1)  # the intercept is not dropped
        terms = a / (1 - self.q)
        mean: Tensor = _MeanLogCosh.apply(terms, rest, self.q)  # type: ignore[no-untyped-call]
        return mean - _log_cosh(batch.outputs[:, k] / 2)


def _log_cosh(x: Tensor) -> Tensor:
    return torch.logaddexp(x, -x) - math.log(2)


class _MeanLogCosh(torch.autograd.Function):
    """``E log cosh(Z / 2)``, Z a constant and the sum of terms that are dropped at a rate q."""

    # log cosh(z / 2) = int_0^inf (1 - cos t z) / (t sinh(pi t)) dt, so the expectation needs the
    # characteristic function of Z, a product over the terms. The trapezoid rule converges
    # geometrically: its error is exp(|Z| - 2 pi / h).

    @staticmethod
    def forward(ctx: Any, a: Tensor, rest: Tensor, q: float) -> Tensor:
        largest = float((a.abs().sum(1) + rest.abs()).max())
        h = 2 * math.pi / (largest + 40)
        n = math.ceil(_END / h)
        mean = rest + (1 - q) * a.sum(1)
        value = h / 2 * (mean.square() + q * (1 - q) * a.square().sum(1)) / (2 * math.pi)
        in_a = h / 2 * (2 * mean[:, None] * (1 - q) + 2 * q * (1 - q) * a) / (2 * math.pi)
        in_rest = h / 2 * mean / math.pi
        for t in (h * k for k in range(1, n + 1)):
            share = h / (t * math.sinh(math.pi * t))
            kept = (1 - q) * torch.polar(torch.ones_like(a), t * a)
            whole = torch.polar(torch.ones_like(rest), t * rest) * (q + kept).prod(1)
            value = value + share * (1 - whole.real)
            in_rest = in_rest + share * t * whole.imag
            in_a = in_a + share * t * (whole[:, None] * kept / (q + kept)).imag
        ctx.save_for_backward(in_a, in_rest)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        in_a, in_rest = ctx.saved_tensors
        return slope[:, None] * in_a, slope * in_rest, None
