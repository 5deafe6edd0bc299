"""What a stretch of steps says: its mean columns and its deviation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.regression.design import Columns
from sklearn_implicitreg.trajectory.window import Window

__all__ = ["MeanColumns", "add_to", "deviation", "is_stochastic", "there"]


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
        """Mean over the iterates of the window, by their numbers of steps.

        Where a penalty is stochastic it is :meth:`with_instruments`.
        """
        if any(is_stochastic(leaf) for leaf in penalty.leaves(problem.params, problem)):
            return cls.with_instruments(penalty, problem, window)
        designs: Params = {}
        knowns: Params = {}
        masks: Params = {}
        first: Columns | None = None
        for weights, n in window.iterates():
            share = n / window.n_steps
            columns = Columns(penalty, there(penalty, problem, weights))
            first = first or columns
            for name in problem.params:
                add_to(designs, name, columns.design(name), share)
                known = columns.known(name)
                if known is not None:
                    add_to(knowns, name, known, share)
                smooth = columns.smooth(name)
                masks[name] = masks[name] & smooth if name in masks else smooth
        if first is None:
            raise ValueError("Expected at least one mark in every window, got none.")
        own = (designs, knowns, masks, first.known_terms)
        return cls(first.term_names, first.leaves, first.params, *own)

    @classmethod
    def with_instruments(cls, penalty: Penalty, problem: Problem, window: Window) -> MeanColumns:
        """Columns at the mean iterate; as instruments those of other draws at the first step.

        The instruments neither share the noise of the columns' draws nor know what the window's
        steps drew. Sums over few marks are no choice here: they lean to the first step, where
        the instruments are, and what a path forgets within a window would bias the coefficients.
        """
        n = 2 * window.start.step  # windows have draws of their own
        first = Columns(penalty, replace(problem.at(window.start.weights), draw=n))
        mean = Columns(penalty, replace(problem.at(window.mean("visited")), draw=n + 1))
        names = problem.params
        return cls(
            mean.term_names,
            mean.leaves,
            first.params,
            {name: mean.design(name) for name in names},
            {name: known for name in names if (known := mean.known(name)) is not None},
            {name: first.smooth(name) & mean.smooth(name) for name in names},
            mean.known_terms,
            instruments={name: first.design(name) for name in names},
        )

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


def is_stochastic(leaf: Leaf) -> bool:
    """Whether a penalty draws random numbers."""
    return bool(getattr(leaf.penalty, "stochastic", False))


def there(penalty: Penalty, problem: Problem, weights: Params) -> Problem:
    """The problem at other weights; only its parameters, where no penalty looks at the model."""
    leaves = penalty.leaves(problem.params, problem)
    if any(getattr(leaf.penalty, "gradient", None) is None for leaf in leaves):
        return problem.at(weights)
    own = {name: weights[name].to(tensor.device) for name, tensor in problem.params.items()}
    return replace(problem, params=own)


def deviation(problem: Problem, window: Window, gradient: LossGradient) -> LossGradient:
    """Reference less applied gradient, in units of L: minus the target of the equations."""
    applied = window.mean_gradient("applied", problem)
    value = {
        name: gradient.value[name] - applied[name].to(gradient.value[name].device)
        for name in problem.params
    }
    return replace(gradient, value=value)


def add_to(total: Params, name: str, part: Tensor, share: float = 1.0) -> None:
    """Add a share of a tensor that nothing else needs."""
    part = part if share == 1.0 else part.mul_(share)
    if name in total:
        total[name] += part
    else:
        total[name] = part
