"""The structure of a module: a copy that shares its tensors, what is a weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sklearn_implicitreg.adapters.torch.options import BATCH_NORMS, INSTANCE_NORMS
from sklearn_implicitreg.problem.frozen import rebuilt

_NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def skeleton(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """Copy of a module's structure that shares its parameters' memory."""
    # Buffers and what a forward pass writes to are copied: nothing reaches the user's module.
    written = set()
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError("Expected an eager module, got a scripted one; give the original.")
        if getattr(part, "max_norm", None) is not None:  # embeddings renormalize in place
            written |= {id(p) for p in part.parameters(recurse=False)}

    def moved(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else None)

    def named(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return moved(tensor).clone()
        own = moved(tensor).clone() if id(tensor) in written else moved(tensor)
        return nn.Parameter(own, requires_grad=tensor.requires_grad)

    return rebuilt(module, named, lambda tensor: moved(tensor).clone())


def weight_matrices(module: nn.Module) -> set[str]:
    """Names of the parameters with two or more axes that belong to no normalization."""
    norms = {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if isinstance(part, _NORMS)
        for name, _ in part.named_parameters(recurse=False)
    }
    every = {n: p for n, p in module.named_parameters() if p.requires_grad}
    return {n for n, p in every.items() if p.ndim >= 2 and n not in norms} or set(every)
