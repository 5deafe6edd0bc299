"""Columns of a family averaged over the steps of a window of a path."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.penalties.columns import Columns
from sklearn_implicitreg.problem import Params, Problem
from sklearn_implicitreg.trajectory.path import Mark, Window

__all__ = ["MeanColumns", "add_to"]


@dataclass
class MeanColumns:
    """Columns of a family averaged over the steps of a window.

    Parameters
    ----------
    term_names : tuple of str
    leaves : list of (Leaf, int)
        As of :class:`Columns`; the nuisance column is none of them.
    params : dict of str to Tensor
        Weights at the first step.
    designs, knowns, masks : dict of str to Tensor
        Mean columns of shape (numel, k), mean gradient of the known penalties, and where all
        terms are differentiable at every step, by tensor.
    instruments : dict of str to Tensor
        Columns of other draws at the first step, where a penalty is stochastic.
    """

    term_names: tuple[str, ...]
    leaves: list[tuple[Leaf, int]]
    params: Params
    designs: Params
    knowns: Params
    masks: Params
    known_terms: tuple[str, ...] = ()
    closed_form: bool = False
    instruments: Params = field(default_factory=dict)

    @classmethod
    def over(cls, penalty: Penalty, problem: Problem, window: Window) -> MeanColumns:
        """Mean over the marks at which a step of the window began.

        A stochastic penalty has other draws at every mark, and others again as instruments at
        the first: these know nothing of what the window's steps drew.
        """
        n = len(window.inside)
        designs: Params = {}
        knowns: Params = {}
        masks: Params = {}
        first: Columns | None = None
        for mark in window.inside:
            columns = Columns(penalty, _there(penalty, problem, mark, draw=2 * mark.step))
            first = first or columns
            for name in problem.params:
                add_to(designs, name, columns.design(name) / n)
                known = columns.known(name)
                if known is not None:
                    add_to(knowns, name, known / n)
                smooth = columns.smooth(name)
                masks[name] = masks[name] & smooth if name in masks else smooth
        if first is None:
            raise ValueError("Expected at least one mark in every window, got none.")
        own = (designs, knowns, masks, first.known_terms)
        mean = cls(first.term_names, first.leaves, first.params, *own)
        leaves = penalty.leaves(problem.params, problem)
        if not any(getattr(leaf.penalty, "stochastic", False) for leaf in leaves):
            return mean
        start = window.start
        other = Columns(penalty, _there(penalty, problem, start, draw=2 * start.step + 1))
        return replace(mean, instruments={name: other.design(name) for name in problem.params})

    @classmethod
    def mean(cls, parts: list[MeanColumns], shares: list[float]) -> MeanColumns:
        """Mean over windows."""
        designs: Params = {}
        knowns: Params = {}
        masks: Params = {}
        for part, share in zip(parts, shares, strict=True):
            for name in part.designs:
                add_to(designs, name, share * part.designs[name])
                if name in part.knowns:
                    add_to(knowns, name, share * part.knowns[name])
                mask = part.masks[name]
                masks[name] = masks[name] & mask if name in masks else mask
        first = parts[0]
        own = (designs, knowns, masks, first.known_terms)
        return cls(first.term_names, first.leaves, first.params, *own)

    def joined(self, name: str, column: Params) -> MeanColumns:
        """The same with one more column, which is its own instrument."""
        designs, instruments = (
            {
                tensor: torch.cat([design, column[tensor].reshape(-1, 1)], dim=1)
                for tensor, design in columns.items()
            }
            for columns in (self.designs, self.instruments)
        )
        names = (*self.term_names, name)
        return replace(self, term_names=names, designs=designs, instruments=instruments)

    def design(self, name: str, tensor: Tensor | None = None) -> Tensor:
        """Mean gradients of the terms with respect to one tensor, of shape (numel, k)."""
        return self.designs[name]

    def known(self, name: str, tensor: Tensor | None = None) -> Tensor | None:
        """Mean gradient of the penalties with known coefficients."""
        return self.knowns.get(name)

    def smooth(self, name: str) -> Tensor:
        """Coordinates at which all terms are differentiable at every step."""
        return self.masks[name]


def _there(penalty: Penalty, problem: Problem, mark: Mark, draw: int) -> Problem:
    """The problem at a mark; only its parameters, where no penalty looks at the model."""
    weights = mark.weights
    leaves = penalty.leaves(problem.params, problem)
    if any(getattr(leaf.penalty, "gradient", None) is None for leaf in leaves):
        return replace(problem.at(weights), draw=draw)
    own = {name: weights[name].to(tensor.device) for name, tensor in problem.params.items()}
    return replace(problem, params=own)


def add_to(total: Params, name: str, part: Tensor) -> None:
    """Add a part to one of the totals by name."""
    if name in total:
        total[name] += part
    else:
        total[name] = part.clone()
