"""The columns of the regression: gradients of a family's terms, tensor by tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty, name_terms
from sklearn_implicitreg.penalties.columns import ClosedForm, FullGradients, columns_of_leaves
from sklearn_implicitreg.problem import Params, Problem

__all__ = ["Columns"]


class Columns:
    """Design of a family at a problem's parameters, in float64.

    Penalties with a closed-form ``gradient`` are evaluated one tensor at a time, those with a
    ``full_gradient`` of all tensors at once; the others by one reverse pass for each
    coefficient. The last two are kept until the object goes.
    """

    def __init__(self, penalty: Penalty, problem: Problem):
        self.params: Params = {name: t.detach().double() for name, t in problem.params.items()}
        leaves = penalty.leaves(self.params, problem)
        self._parts = columns_of_leaves(leaves, self.params, problem)
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
            if part.leaf.coef is not None and (
                name in part.leaf.names or isinstance(part, FullGradients)
            ):
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
        return all(isinstance(part, ClosedForm) for part in self._parts)
