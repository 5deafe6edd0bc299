"""A block of rows with its loss as a problem: what penalties on the loss see in a training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sklearn_implicitreg.problem.frozen import rebuilt
from sklearn_implicitreg.problem.gradient import BlockGradient
from sklearn_implicitreg.problem.masks import draw_masks
from sklearn_implicitreg.problem.problem import BatchLoss, Indices, Problem, Weights
from sklearn_implicitreg.problem.row_batch import RowBatch
from sklearn_implicitreg.problem.row_models import ModuleCall
from sklearn_implicitreg.problem.vectors import Params, wide, zeros_of


@dataclass(frozen=True, kw_only=True)
class BatchProblem(Problem):
    """A batch with the loss of its rows; its parameters are those that the batch sees."""

    batch: RowBatch
    seed: int | None = None  # of the masks, where dropout layers are at work

    @classmethod
    def of(cls, given: Any, drawn: bool = False) -> Any:
        """The problem of a batch, with a draw of its own; any other problem is its own."""
        if hasattr(given, "gradient"):
            return given
        eps = max(torch.finfo(t.dtype).eps for t in given.params.values())
        return cls(
            params=given.params,
            model_name="the model",
            loss_name="the loss",
            eps=eps,
            left_out=tuple(name for name in given.trained if name not in given.params),
            draw=int(given.seeing(given.params).rng.integers(2**31)) if drawn else 0,
            batch=given,
        )

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.batch.n_rows

    @property
    def has_paths(self) -> bool:
        """A module gives the loss at any weights."""
        return hasattr(self.batch.model, "module")

    def row_batches(self, params: Params) -> Iterator[RowBatch]:
        """The block alone, at these parameters."""
        yield from self.batch.row_batches(params)

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """Gradient of the loss on the rows."""
        leaves = self._leaves
        with torch.enable_grad():
            total = self._loss(leaves) * self.batch.total_weight
        sums = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        named = dict(zip(leaves, sums, strict=True))
        yield BlockGradient(named, float(total.detach()), self.batch.total_weight, self.n_rows, 0.0)

    def losses(self) -> Iterator[BatchLoss]:
        """The loss on the rows as a differentiable function of the parameters."""
        mass = self.batch.total_weight
        with sdpa_kernel(SDPBackend.MATH):
            yield lambda params: (self._loss(params) * mass, mass)

    def at(self, params: Params) -> BatchProblem:
        """The same rows at other parameters."""
        moved = next(self.batch.row_batches({**self.params, **params}))
        return replace(self, params={name: moved.params[name] for name in self.params}, batch=moved)

    def whole(self) -> BatchProblem:
        """The same with all trained tensors in scope."""
        batch = self.batch.seeing([*self.params, *self.left_out])
        return replace(self, params=batch.params, batch=batch, left_out=())

    def take(self, rows: Indices, weights: Weights) -> BatchProblem:
        """Some of the rows, with these weights."""
        part = self.batch.part(torch.from_numpy(np.asarray(rows)))
        part.weight = torch.from_numpy(np.asarray(weights)).to(part.weight)
        return replace(self, batch=part)

    def hvp(self, vector: Params) -> Params:
        """Hessian of the loss times a vector, by reverse mode twice."""
        leaves = self._leaves
        tensors = list(leaves.values())
        # Fused attention has no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            first = torch.autograd.grad(
                self._loss(leaves), tensors, create_graph=True, materialize_grads=True
            )
            pairs = [(g, vector[n]) for n, g in zip(leaves, first, strict=True) if n in vector]
            along = torch.stack([(g * v.to(g)).sum() for g, v in pairs]).sum()
        if not along.requires_grad:
            return zeros_of(leaves)
        second = torch.autograd.grad(along, tensors, materialize_grads=True)
        return {name: wide(h) for name, h in zip(leaves, second, strict=True)}

    def with_dropout(self, rate: float | None, seed: int) -> BatchProblem:
        """The same rows with the dropout layers at work."""
        model = cast(ModuleCall, self.batch.model)
        masked = rebuilt(model.module, _itself, _itself)
        draw_masks(masked, rate)
        batch = self.batch.part(slice(None))
        batch.model = replace(model, module=masked)
        return replace(self, batch=batch, seed=seed, draw=0)

    @cached_property
    def _leaves(self) -> Params:
        return {n: t.detach().clone().requires_grad_() for n, t in self.params.items()}

    def _loss(self, params: Params) -> Tensor:
        """Mean loss of the rows at some parameters."""
        batch = next(self.batch.row_batches(params))
        device = batch.weight.device
        devices = [device] if device.type == "cuda" else []
        drawn = torch.random.fork_rng(devices) if self.seed is not None else None
        with drawn or contextlib.nullcontext():
            if self.seed is not None:
                torch.manual_seed(self.seed)
            losses = batch.losses()
        return (batch.weight * losses).sum() / batch.total_weight


def _itself(tensor: Tensor) -> Tensor:
    return tensor
