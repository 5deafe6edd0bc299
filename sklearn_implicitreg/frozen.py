"""A trained module as a parameter value: shared by clone, cheap to send to workers."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["FrozenModel"]


class FrozenModel:
    """Trained module that searches share instead of copying it.

    Put one in a parameter grid (``{"model": [FrozenModel(a), FrozenModel(b)]}``), where
    scikit-learn would deep-copy a bare module for every candidate and fold. Worker processes
    get the weights as NumPy arrays, which joblib maps into memory once.

    Parameters
    ----------
    model : torch.nn.Module
        The trained module; it is never changed.

    Raises
    ------
    TypeError
        If it is not an instance of ``nn.Module``.

    Examples
    --------
    >>> from sklearn.base import clone
    >>> frozen = FrozenModel(torch.nn.Linear(3, 1))
    >>> clone(frozen) is frozen
    True
    """

    def __init__(self, model: nn.Module):
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"Expected a trained nn.Module instance, got {type(model).__name__}; other "
                "estimators are frozen by sklearn.frozen.FrozenEstimator."
            )
        self.model = model
        self._arrays: dict[str, npt.NDArray[Any]] | None = None

    def __sklearn_clone__(self) -> FrozenModel:
        """Shared, not copied."""
        return self

    def __repr__(self) -> str:
        """Class and size of the module."""
        size = sum(p.numel() for p in self.model.parameters())
        return f"FrozenModel({type(self.model).__name__}, {size:,} parameters)"

    def __getstate__(self) -> dict[str, Any]:
        """Weights as cached arrays (the same objects each time), structure without numbers."""
        tensors = _tensors(self.model)
        if self._arrays is None:
            self._arrays = {name: _to_array(t) for name, t in tensors.items()}
        memo: dict[int, Any] = {id(t): _empty_like(t) for t in tensors.values()}
        dtypes = {name: t.dtype for name, t in tensors.items()}
        structure = copy.deepcopy(self.model, memo)
        return {"arrays": self._arrays, "dtypes": dtypes, "structure": structure}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put the arrays back in place, without copying them."""
        module = state["structure"]
        tensors = {n: _to_tensor(a, state["dtypes"][n]) for n, a in state["arrays"].items()}
        for name, old in _tensors(module).items():
            new = tensors[name]
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            for owner, key in _places(module, old):
                owner[key] = new
        self.model = module
        self._arrays = state["arrays"]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers (persistent or not) by name, each tensor once."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _places(module: nn.Module, tensor: Tensor) -> list[tuple[dict[str, Any], str]]:
    """Every slot of the module tree that holds this tensor (tied weights have several)."""
    return [
        (slots, key)
        for part in module.modules()
        for slots in (vars(part)["_parameters"], vars(part)["_buffers"])
        for key, value in slots.items()
        if value is tensor
    ]


def _empty_like(tensor: Tensor) -> Tensor:
    """The same kind of tensor without numbers."""
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _to_array(tensor: Tensor) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu().contiguous()
    # NumPy has no bfloat16: its bits travel as integers.
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _to_tensor(array: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
    with warnings.catch_warnings():  # memory-mapped arrays are read-only; nothing writes to them
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(np.asarray(array))
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor
