"""Penalties on the gradient of the loss: what finite steps and mini-batches add to a loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from sklearn_implicitreg.penalties.base import Penalty
from sklearn_implicitreg.problem import BatchProblem, Indices, Params, Problem
from sklearn_implicitreg.problem.parameters import (
    FLAG,
    NOTHING,
    RANDOM_STATE,
    having,
    integer,
    row_numbers,
)


class OfGradient(Penalty):
    """A penalty that is a function of loss gradients, with its value and its own gradient."""

    _term: str

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Value of the term; it can be differentiated once with respect to the parameters."""
        self.check_parameters()
        there = self._problem(problem).at({name: t.detach() for name, t in params.items()})
        scope = Scope(params, there)
        value = next(iter(params.values())).new_tensor(self._value(scope))
        if any(t.requires_grad for t in params.values()):
            slope = self._gradient(scope)
            for name, tensor in params.items():
                value = value + (slope[name].to(tensor) * (tensor - tensor.detach())).sum()
        return {self._term: value}

    def full_gradient(self, params: Params, problem: Problem | None) -> dict[str, Params]:
        """Gradient of the term at the problem's weights, for all tensors that it reaches."""
        return {self._term: self._gradient(Scope(params, self._problem(problem)))}

    def _problem(self, problem: Problem | None) -> Problem:
        if problem is None:
            raise ValueError(
                f"Expected a model with its data, which {type(self).__name__} is a function of, "
                "got the weights alone; give X and y."
            )
        found: Problem = BatchProblem.of(problem, drawn=getattr(self, "stochastic", False))
        return found

    @abstractmethod
    def _value(self, scope: Scope) -> float:
        """Value of the term."""

    @abstractmethod
    def _gradient(self, scope: Scope) -> Params:
        """Gradient of the term."""


class Scope:
    """A problem with all trained tensors, and which of their gradients the norm counts."""

    def __init__(self, params: Params, problem: Problem):
        self.problem = problem.whole()
        # All of them, unless the penalty was restricted to some of those in scope.
        restricted = params.keys() != problem.params.keys()
        counted = frozenset(params if restricted else self.problem.params)
        self._counted = counted - problem.still

    def only(self, gradient: Params) -> Params:
        """Entries that the norm counts."""
        return {name: g for name, g in gradient.items() if name in self._counted}


class GradientNorm(OfGradient):
    """Squared norm of the loss gradient, ``R = |grad L|^2``.

    Gradient descent with step size ``lr`` follows, to second order, the gradient flow of
    ``L + lr / 4 * R`` [1]_. Its gradient is ``2 H grad L``, one product with the Hessian.

    The norm is over all trained tensors, also those that give no equations; restricted by
    ``.on`` or ``.per`` it is over the chosen ones, and its gradient still reaches all others.

    See Also
    --------
    sklearn_implicitreg.trajectory.GradientDescentProbe : Makes the trajectory to fit it on.
    sklearn_implicitreg.trajectory.finite_step_factor : What theory expects at a finite step.

    References
    ----------
    .. [1] Barrett and Dherin (2021), Implicit Gradient Regularization, whose ``R`` is divided
       by the number of weights p and whose coefficient is ``lr * p / 4``.

    Examples
    --------
    >>> from sklearn_implicitreg.adapters import Data, Options, adapt
    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(net.weight, 3.0)
    >>> rows = Data(torch.ones(2, 1), torch.ones(2, 1))
    >>> problem = adapt(net, rows, Options(loss="mse"))  # L = (theta - 1)^2
    >>> GradientNorm().terms(problem.params, problem)
    {'gradient_norm': tensor(16.)}
    """

    _term = "gradient_norm"

    def _value(self, scope: Scope) -> float:
        return _squared(scope.only(scope.problem.gradient().value))

    def _gradient(self, scope: Scope) -> Params:
        product = scope.problem.hvp(scope.only(scope.problem.gradient().value))
        return {name: 2 * h for name, h in product.items()}


class BatchGradientNorm(OfGradient):
    """Mean squared norm of mini-batch gradients, ``R = mean_k |g_k - g|^2`` or ``mean_k |g_k|^2``.

    Over whole shuffled epochs, plain SGD follows the gradient flow of ``L + lr / 4 * mean_k
    |g_k|^2`` [1]_: take ``centered=False`` with the reference "flow", else ``True``. Momentum
    multiplies the coefficient by :func:`sklearn_implicitreg.trajectory.minibatch_factor`.

    Parameters
    ----------
    batch_size : int, default=None
        Rows in a batch of random partitions, where the batches themselves are not known.
    centered : bool, default=True
        Whether g, the mean of the batch gradients, is subtracted.
    batches : list of array-like of int, default=None
        Row numbers of the batches; by default those of the trajectory's window, if known.
    n_partitions, random_state : int, default=1 and 0
        Random partitions that are averaged, and their seed.

    References
    ----------
    .. [1] Smith, Dherin, Barrett and De (2021), On the Origin of Implicit Regularization in
       Stochastic Gradient Descent.

    Examples
    --------
    >>> from sklearn_implicitreg.adapters import Data, Options, adapt
    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(net.weight, 3.0)
    >>> rows = Data(torch.ones(2, 1), torch.tensor([[0.0], [2.0]]))
    >>> problem = adapt(net, rows, Options(loss="mse"))  # g_1 = 6, g_2 = 2, g = 4
    >>> BatchGradientNorm(batches=[[0], [1]]).terms(problem.params, problem)
    {'batch_gradient_norm': tensor(4.)}
    """

    _term = "batch_gradient_norm"
    _allowed: ClassVar = {
        "batch_size": NOTHING | integer(1),
        "centered": FLAG,
        "batches": NOTHING | having("a list of arrays of row numbers", "__len__", "__iter__"),
        "n_partitions": integer(1),
        "random_state": RANDOM_STATE,
    }

    def __init__(
        self,
        batch_size: int | None = None,
        centered: bool = True,
        batches: Sequence[Any] | None = None,
        n_partitions: int = 1,
        random_state: Any = 0,
    ):
        self.batch_size = batch_size
        self.centered = centered
        self.batches = batches
        self.n_partitions = n_partitions
        self.random_state = random_state

    def _value(self, scope: Scope) -> float:
        values = []
        for batches in self._partitions(scope.problem):
            gradients = _gradients(scope, batches)
            center = self._center(gradients)
            values += [_squared({n: g - center[n] for n, g in own.items()}) for own in gradients]
        return float(np.mean(values))

    def _gradient(self, scope: Scope) -> Params:
        spreads = []
        for batches in self._partitions(scope.problem):
            center = self._center(_gradients(scope, batches))
            spreads.append(scope.problem.spread_gradient(batches, center))
        return _mean(spreads)

    def _center(self, gradients: list[Params]) -> Params:
        """What is subtracted from the gradients; entries that are not there do not count."""
        mean = _mean(gradients)
        return mean if self.centered else {name: torch.zeros_like(g) for name, g in mean.items()}

    def _partitions(self, problem: Problem) -> Iterator[list[Indices]]:
        known = self.batches if self.batches is not None else problem.batches
        if known is not None and (self.batches is not None or self.batch_size is None):
            rows = [row_numbers("batches", batch) for batch in known]
            _check_rows(rows, problem.n_rows)
            yield rows
            return
        n_rows, size = problem.n_rows, self.batch_size
        if n_rows is None or size is None or not 1 <= size <= n_rows:
            raise ValueError(
                f"Expected batch_size in 1..{n_rows} or the row numbers of the batches, got "
                f"batch_size={size!r} and no batches; give one of them, or a trajectory that "
                "knows its batches and whose steps are each on the mean loss of all their rows."
            )
        rng = check_random_state(self.random_state)
        for _ in range(self.n_partitions):
            order = rng.permutation(n_rows).astype(np.int64)
            yield [order[start : start + size] for start in range(0, n_rows, size)]


def _check_rows(batches: list[Indices], n_rows: int | None) -> None:
    last = max((int(rows.max()) for rows in batches if len(rows)), default=-1)
    if n_rows is not None and last >= n_rows:
        raise ValueError(
            f"Expected batches of the {n_rows} rows given, got row {last}: the rows of a fold are "
            "not those that the batches count in. Select by ImplicitRegularizationCV without cv, "
            "or by folds of equations(...)."
        )


def _gradients(scope: Scope, batches: list[Indices]) -> list[Params]:
    parts = (scope.problem.take(rows, np.ones(len(rows))) for rows in batches)
    return [scope.only(part.gradient().value) for part in parts]


def _mean(gradients: list[Params]) -> Params:
    return {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}


def _squared(gradient: Params) -> float:
    return float(sum(float(g.square().sum()) for g in gradient.values()))
