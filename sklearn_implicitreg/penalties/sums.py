"""Bases of penalties that are sums over tensors, or over the matrices among them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty
from sklearn_implicitreg.problem import Params, Problem
from sklearn_implicitreg.problem.parameters import check, instance

_PARAMS = {"params": instance("a dict of tensor name to Tensor", Mapping)}


class OfTensors(Penalty):
    """A penalty with one term that sums up over the tensors."""

    _term: str

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """The penalty on the tensors that it is about."""
        (leaf,) = super().leaves(params, problem)
        return [replace(leaf, names=tuple(self._seen(params)))]

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Sum of the values at all tensors."""
        self.check_parameters()
        check(f"{type(self).__name__}.terms", {"params": params}, _PARAMS)
        return {self._term: cast(Tensor, sum(map(self._value, self._seen(params).values())))}

    def gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Closed form at one tensor."""
        return {self._term: self._slope(tensor)}

    def _seen(self, params: Params) -> Params:
        """The tensors that the penalty is about."""
        return params

    @abstractmethod
    def _value(self, tensor: Tensor) -> Tensor:
        """Value at one tensor."""

    @abstractmethod
    def _slope(self, tensor: Tensor) -> Tensor:
        """Gradient at one tensor."""


class OfMatrices(OfTensors):
    """A sum over the tensors of two or more axes, each as a matrix (outputs, rest)."""

    def gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Closed form; zero at a tensor that is no matrix."""
        if not is_matrix(tensor):
            return {self._term: torch.zeros_like(tensor)}
        return {self._term: self._slope(tensor.flatten(1)).reshape(tensor.shape)}

    def _seen(self, params: Params) -> Params:
        return {name: t.flatten(1) for name, t in matrices(params, type(self).__name__).items()}


def is_matrix(tensor: Tensor, n_axes: int = 2) -> bool:
    """Whether a tensor has so many axes, and entries."""
    return tensor.ndim >= n_axes and tensor.numel() > 0


def matrices(params: Params, owner: str, n_axes: int = 2) -> Params:
    """Tensors of so many axes; ValueError where there is none."""
    found = {name: tensor for name, tensor in params.items() if is_matrix(tensor, n_axes)}
    if not found:
        shapes = {name: tuple(tensor.shape) for name, tensor in params.items()}
        raise ValueError(
            f"Expected a tensor of {n_axes} or more axes in the scope of {owner}, got the shapes "
            f"{shapes}; choose others by params= or .on(...)."
        )
    return found


def unless_zero(tensor: Tensor) -> Tensor:
    """The tensor with ones for its zeros, to divide by."""
    return torch.where(tensor == 0, 1.0, tensor)


def norms(tensor: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """Norms over some axes, which stay as axes of one."""
    return cast(Tensor, torch.linalg.vector_norm(tensor, dim=axes, keepdim=True))
