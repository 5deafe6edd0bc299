"""Gradients of one penalty's terms: in closed form, all tensors at once, or by autograd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty
from sklearn_implicitreg.problem import Params, Problem

__all__ = ["LeafColumns", "check_terms", "columns_of_leaves"]

TensorGradient = Callable[[str, Tensor], dict[str, Tensor]]
FullGradient = Callable[[Params, Problem], dict[str, Params]]


class LeafColumns(ABC):
    """Columns of one leaf of a family, in float64, tensor by tensor."""

    closed_form = False  # whether they can be evaluated at other values of one tensor
    leaf: Leaf
    terms: tuple[str, ...]

    @abstractmethod
    def columns(self, name: str, tensor: Tensor) -> list[Tensor]:
        """Columns for one tensor; zero where the leaf does not see it."""

    elementwise = False  # whether they can be evaluated on any piece of a tensor

    def reach(self, names: Iterable[str]) -> Iterable[str]:
        """The tensors that can have columns other than zero."""
        return self.leaf.names


class ClosedForm(LeafColumns):
    """Columns of a leaf whose penalty knows its gradient with respect to one tensor."""

    closed_form = True

    def __init__(self, leaf: Leaf, params: Params, gradient: TensorGradient):
        self.leaf = leaf
        self._gradient = gradient
        first = leaf.names[0]
        self.terms = tuple(gradient(first, _double(params[first])))

    def columns(self, name: str, tensor: Tensor) -> list[Tensor]:
        """Columns for one tensor; zero where the leaf does not see it."""
        if name not in self.leaf.names:
            return [torch.zeros_like(tensor) for _ in self.terms]
        columns = self._gradient(name, tensor)
        return [columns[term] for term in self.terms]


class Autograd(LeafColumns):
    """Columns of a leaf by reverse-mode differentiation of its terms."""

    def __init__(self, leaf: Leaf, params: Params, problem: Problem):
        self.leaf = leaf
        with torch.enable_grad():
            seen = {n: _double(params[n]).clone().requires_grad_() for n in leaf.names}
            values = leaf.penalty.terms(seen, problem)
            check_terms(leaf.penalty, values)
            entries = [
                (term if value.ndim == 0 else f"{term}[{i}]", entry)
                for term, value in values.items()
                for i, entry in enumerate(value.reshape(-1))
            ]
            self.terms = tuple(term for term, _ in entries)
            self._columns = [_gradient_of(entry, seen) for _, entry in entries]

    def columns(self, name: str, tensor: Tensor) -> list[Tensor]:
        """Columns for one tensor; zero where the leaf does not see it."""
        if name not in self.leaf.names:
            return [torch.zeros_like(tensor) for _ in self.terms]
        return [column[name] for column in self._columns]


class FullGradients(LeafColumns):
    """Columns of a leaf whose penalty gives its gradients at all tensors of the problem."""

    def __init__(self, leaf: Leaf, params: Params, problem: Problem, gradient: FullGradient):
        self.leaf = leaf
        seen = {name: _double(params[name]) for name in leaf.names}
        self._columns = gradient(seen, problem)
        self.terms = tuple(self._columns)

    def columns(self, name: str, tensor: Tensor) -> list[Tensor]:
        """Columns for one tensor; a penalty may reach beyond the tensors that the leaf sees."""
        nothing = torch.zeros_like(tensor)
        return [column.get(name, nothing).to(tensor) for column in self._columns.values()]

    def reach(self, names: Iterable[str]) -> Iterable[str]:
        """Every tensor."""
        return names


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double()


def _gradient_of(value: Tensor, params: Params) -> Params:
    """Gradient with respect to every tensor; zero where the value does not depend on it."""
    if not value.requires_grad:
        return {name: torch.zeros_like(t) for name, t in params.items()}
    grads = torch.autograd.grad(value, list(params.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(t) if g is None else g.detach()
        for (name, t), g in zip(params.items(), grads, strict=True)
    }


def columns_of_leaves(
    leaves: Sequence[Leaf], params: Params, problem: Problem
) -> list[LeafColumns]:
    """Columns of several leaves."""
    return [columns_of(leaf, params, problem) for leaf in leaves]


def columns_of(leaf: Leaf, params: Params, problem: Problem) -> LeafColumns:
    """Gradients of a leaf's terms by the best way that its penalty offers."""
    full = getattr(leaf.penalty, "full_gradient", None)
    if full is not None:
        return FullGradients(leaf, params, problem, cast(FullGradient, full))
    gradient = getattr(leaf.penalty, "gradient", None)
    if gradient is None:
        return Autograd(leaf, params, problem)
    return ClosedForm(leaf, params, cast(TensorGradient, gradient))


def check_terms(penalty: Penalty, values: object) -> None:
    """Refuse what is not a non-empty dict of finite tensors.

    Raises
    ------
    TypeError, ValueError
        If ``terms`` returned something else.
    """
    name = type(penalty).__name__
    if not isinstance(values, dict) or not values:
        raise TypeError(
            f"Expected {name}.terms to return a dict of term name to Tensor, got {values!r}."
        )
    for term, value in values.items():
        if not isinstance(term, str) or not isinstance(value, Tensor) or value.ndim > 1:
            raise TypeError(
                f"Expected every term of {name} to be a scalar or vector Tensor under a string, "
                f"got {term!r}: {value!r}."
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"Expected finite values, got {term!r} of {name} = {value}.")
