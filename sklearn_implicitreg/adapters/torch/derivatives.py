"""Gradients of a loss by a copy's parameters, also where layers are computed once more for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def gradients_of(
    total: Tensor, leaves: Sequence[Tensor], twice: bool
) -> Sequence[Tensor | None] | None:
    """Gradients; None where reentrant checkpoints leave them to ``backward``."""
    try:
        grads: Sequence[Tensor | None]
        grads = torch.autograd.grad(total, leaves, create_graph=twice, allow_unused=True)
    except RuntimeError as error:
        if twice or "use_reentrant" not in str(error):
            raise
        return None
    # The parameters in such a checkpoint are no part of the graph outside.
    if all(g is not None for g in grads) or not _is_reentrant(total):
        return grads
    if twice:
        raise RuntimeError("A reentrant checkpoint has no second derivative.")
    return None


def by_backward(
    total: Tensor, module: nn.Module, leaves: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Gradients by ``backward``, which also has those in reentrant checkpoints."""
    try:
        total.backward()
        return [leaf.grad for leaf in leaves]
    finally:
        module.zero_grad()


def _is_reentrant(value: Tensor) -> bool:
    """Whether a reentrant checkpoint is in the graph of a value."""
    open_, seen = [value.grad_fn], set()
    while open_:
        node = open_.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        open_ += [inner for inner, _ in node.next_functions]
    return False
