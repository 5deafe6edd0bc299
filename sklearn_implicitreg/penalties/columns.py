"""Gradients of the penalty terms, tensor by tensor: the columns of the regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty, name_terms
from sklearn_implicitreg.problem import Params, Problem

__all__ = ["Columns"]

TensorGradient = Callable[[str, Tensor], dict[str, Tensor]]
FullGradient = Callable[[Params, Problem], dict[str, Params]]


class Columns:
    """Design of a family at a problem's parameters, in float64.

    Penalties with a closed-form ``gradient`` are evaluated one tensor at a time, those with a
    ``full_gradient`` of all tensors at once; the others by one reverse pass for each
    coefficient. The last two are kept until the object goes.
    """

    def __init__(self, penalty: Penalty, problem: Problem):
        self.params: Params = {name: t.detach().double() for name, t in problem.params.items()}
        leaves = penalty.leaves(self.params, problem)
        self._parts = [_part(leaf, self.params, problem) for leaf in leaves]
        self._free = [part for part in self._parts if part.leaf.coef is None]
        if not self._free:
            raise ValueError("Expected at least one penalty with an unknown coefficient, got none.")
        named = name_terms([p.leaf for p in self._free], [p.terms for p in self._free])
        self.term_names = tuple(name for names in named for name in names)

    @property
    def leaves(self) -> list[tuple[Leaf, int]]:
        """The penalties with unknown coefficients, each with its number of coefficients."""
        return [(part.leaf, len(part.terms)) for part in self._free]

    @property
    def known_terms(self) -> tuple[str, ...]:
        """Names of the terms with known coefficients, such as ``"0.1*l2"``."""
        fixed = [part for part in self._parts if part.leaf.coef is not None]
        named = name_terms([part.leaf for part in fixed], [part.terms for part in fixed])
        return tuple(name for names in named for name in names)

    def design(self, name: str, tensor: Tensor | None = None) -> Tensor:
        """Gradients of the terms with respect to one tensor, of shape (numel, k).

        ``tensor`` puts other values in the place of the trained ones (closed forms only).
        """
        at = self.params[name] if tensor is None else tensor
        columns = [column.reshape(-1) for part in self._free for column in part.columns(name, at)]
        return torch.stack(columns).T  # column by column, as LAPACK wants it

    def known(self, name: str, tensor: Tensor | None = None) -> Tensor | None:
        """Gradient of the penalties with known coefficients, of shape (numel,)."""
        at = self.params[name] if tensor is None else tensor
        total = None
        for part in self._parts:
            if part.leaf.coef is not None and (name in part.leaf.names or isinstance(part, _Full)):
                for column in part.columns(name, at):
                    own = part.leaf.coef * column.reshape(-1)
                    total = own if total is None else total + own
        return total

    def smooth(self, name: str) -> Tensor:
        """Mask of the coordinates at which all terms that see them are differentiable."""
        tensor = self.params[name]
        mask = torch.ones_like(tensor, dtype=torch.bool)
        for part in self._parts:
            smooth = getattr(part.leaf.penalty, "smooth", None)
            if smooth is not None and name in part.leaf.names:
                mask &= smooth(name, tensor)
        return mask.reshape(-1)

    @property
    def closed_form(self) -> bool:
        """Whether all gradients can be evaluated at other values of one tensor."""
        return all(isinstance(part, _ClosedForm) for part in self._parts)


class _ClosedForm:
    """Columns of a leaf whose penalty knows its gradient with respect to one tensor."""

    def __init__(self, leaf: Leaf, params: Params, gradient: TensorGradient):
        self.leaf = leaf
        self._gradient = gradient
        first = leaf.names[0]
        self.terms = tuple(gradient(first, params[first]))

    def columns(self, name: str, tensor: Tensor) -> list[Tensor]:
        """Columns for one tensor; zero where the leaf does not see it."""
        if name not in self.leaf.names:
            return [torch.zeros_like(tensor) for _ in self.terms]
        columns = self._gradient(name, tensor)
        return [columns[term] for term in self.terms]


class _Autograd:
    """Columns of a leaf by reverse-mode differentiation of its terms."""

    def __init__(self, leaf: Leaf, params: Params, problem: Problem):
        self.leaf = leaf
        with torch.enable_grad():
            seen = {n: params[n].detach().clone().requires_grad_() for n in leaf.names}
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


class _Full:
    """Columns of a leaf whose penalty gives its gradients at all tensors of the problem."""

    def __init__(self, leaf: Leaf, params: Params, problem: Problem, gradient: FullGradient):
        self.leaf = leaf
        seen = {name: params[name] for name in leaf.names}
        self._columns = gradient(seen, problem)
        self.terms = tuple(self._columns)

    def columns(self, name: str, tensor: Tensor) -> list[Tensor]:
        """Columns for one tensor; a penalty may reach beyond the tensors that the leaf sees."""
        nothing = torch.zeros_like(tensor)
        return [column.get(name, nothing).to(tensor) for column in self._columns.values()]


def _gradient_of(value: Tensor, params: Params) -> Params:
    """Gradient with respect to every tensor; zero where the value does not depend on it."""
    if not value.requires_grad:
        return {name: torch.zeros_like(t) for name, t in params.items()}
    grads = torch.autograd.grad(value, list(params.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(t) if g is None else g.detach()
        for (name, t), g in zip(params.items(), grads, strict=True)
    }


def _part(leaf: Leaf, params: Params, problem: Problem) -> _ClosedForm | _Autograd | _Full:
    full = getattr(leaf.penalty, "full_gradient", None)
    if full is not None:
        return _Full(leaf, params, problem, cast(FullGradient, full))
    gradient = getattr(leaf.penalty, "gradient", None)
    if gradient is None:
        return _Autograd(leaf, params, problem)
    return _ClosedForm(leaf, params, cast(TensorGradient, gradient))


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
