"""The columns of the regression at one place: gradients of a family's terms, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty, name_terms
from sklearn_implicitreg.penalties.columns import LeafColumns, columns_of
from sklearn_implicitreg.problem import Params, Problem

__all__ = ["Design"]


@dataclass(frozen=True, eq=False)
class Design:
    """Columns of a family at one place, in float64: evaluated there, or held as means.

    Attributes
    ----------
    term_names : tuple of k str
    leaves : tuple of (Leaf, int)
        The penalties with unknown coefficients, each with its number of coefficients.
    known_terms : tuple of str
        Names of the terms with known coefficients, such as ``"0.1*l2"``.
    params : dict of str to Tensor
        The weights at the place.
    parts : tuple of LeafColumns
        What evaluates the columns; empty where they are held.
    designs, knowns, masks : dict of str to Tensor
        Columns (numel, k) that are held, gradient of the known part, and where all terms are
        differentiable.
    instruments : dict of str to Tensor
        One for each column, where a penalty is stochastic.
    """

    term_names: tuple[str, ...]
    leaves: tuple[tuple[Leaf, int], ...]
    known_terms: tuple[str, ...]
    params: Params
    parts: tuple[LeafColumns, ...] = ()
    designs: Params = field(default_factory=dict)
    knowns: Params = field(default_factory=dict)
    masks: Params = field(default_factory=dict)
    instruments: Params = field(default_factory=dict)

    @classmethod
    def at(cls, penalty: Penalty, problem: Problem) -> Design:
        """Columns of a penalty at a problem's parameters.

        Raises
        ------
        ValueError
            If no coefficient is unknown.
        """
        leaves = penalty.leaves(problem.params, problem)
        parts = tuple(columns_of(leaf, problem.params, problem) for leaf in leaves)
        free = [part for part in parts if part.leaf.coef is None]
        if not free:
            raise ValueError("Expected at least one penalty with an unknown coefficient, got none.")
        fixed = [part for part in parts if part.leaf.coef is not None]
        sizes = tuple((part.leaf, len(part.terms)) for part in free)
        return cls(_names(free), sizes, _names(fixed), problem.params, parts)

    @property
    def closed_form(self) -> bool:
        """Whether all gradients can be evaluated at other values of one tensor."""
        return bool(self.parts) and all(part.closed_form for part in self.parts)

    def weights(self, name: str) -> Tensor:
        """One tensor at the place, in float64."""
        return self.params[name].detach().double()

    def columns(self, name: str, tensor: Tensor | None = None) -> Tensor:
        """Columns for one tensor, (numel, k); with ``tensor`` at other values of it."""
        if name in self.designs:
            return self.designs[name]
        at = self.weights(name) if tensor is None else tensor
        free = [part for part in self.parts if part.leaf.coef is None]
        columns = [column.reshape(-1) for part in free for column in part.columns(name, at)]
        return torch.stack(columns).T  # column by column, as LAPACK wants it

    def known(self, name: str, tensor: Tensor | None = None) -> Tensor | None:
        """Gradient of the penalties with known coefficients, (numel,)."""
        if not self.parts:
            return self.knowns.get(name)
        fixed = [part for part in self.parts if part.leaf.coef is not None and part.reaches(name)]
        if not fixed:
            return None
        at = self.weights(name) if tensor is None else tensor
        total = torch.zeros(at.numel(), dtype=torch.float64, device=at.device)
        for part in fixed:
            for column in part.columns(name, at):
                total += (part.leaf.coef or 0.0) * column.reshape(-1)
        return total

    def smooth(self, name: str) -> Tensor | None:
        """Mask of the coordinates at which all terms are differentiable; None: all of them."""
        if not self.parts:
            return self.masks.get(name)
        mask: Tensor | None = None
        for part in self.parts:
            smooth = getattr(part.leaf.penalty, "smooth", None)
            if smooth is not None and name in part.leaf.names:
                own = smooth(name, self.weights(name)).reshape(-1)
                mask = own if mask is None else mask & own
        return mask

    def joined(self, name: str, column: Params) -> Design:
        """The same with one more held column, which is its own instrument."""
        designs, instruments = (
            {n: torch.cat([own, column[n].reshape(-1, 1)], dim=1) for n, own in held.items()}
            for held in (self.designs, self.instruments)
        )
        names = (*self.term_names, name)
        return replace(self, term_names=names, designs=designs, instruments=instruments)


def _names(parts: Sequence[LeafColumns]) -> tuple[str, ...]:
    named = name_terms([part.leaf for part in parts], [part.terms for part in parts])
    return tuple(name for names in named for name in names)
