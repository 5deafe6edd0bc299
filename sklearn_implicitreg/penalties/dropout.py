"""What dropout adds to a loss, by random masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty
from sklearn_implicitreg.penalties.gradients import OfGradient, Scope
from sklearn_implicitreg.penalties.linear_dropout import LinearDropout
from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.problem.parameters import NOTHING, SEED, integer, number


class Dropout(OfGradient):
    """What dropout adds to the loss, ``R = E_mask L_drop - L``, by random masks.

    L is the loss with the dropout layers at rest, ``L_drop`` the loss with their masks drawn, so
    a network that was trained with dropout at rate ``q`` follows ``L + R`` with coefficient 1
    [1]_. For a linear model with squared error ``R = q / (1 - q) * sum_j mean(x_j^2) theta_j^2``.

    Of a linear model the inputs are dropped. The expectation is exact there, without masks, for
    squared error, the logistic loss of two classes, and Poisson and gamma deviances with log link.

    Of a network the expectation is a mean over passes with masks of their own for every row. Its
    noise makes the coefficient at an endpoint too small, by the share of noise in the squared norm
    of the column; on a trajectory it does not, by instruments: columns of other masks at each
    window's start.

    Parameters
    ----------
    q : float or "fit", default=None
        Rate of all layers that have one above zero or are dropout layers; None takes their own.
        A linear model has no layers that say it; there "fit" estimates it, between .01 and .95.
        With squared error the coefficient and ``q / (1 - q)`` are one number. Masks of a network
        jump with the rate: compare several by ``ImplicitRegularizationCV``.
    n_draws, random_state : int, default=10 and 0
        Passes over the rows that are averaged, and seed of the masks at all rates and weights.

    References
    ----------
    .. [1] Wager, Wang and Liang (2013), Dropout Training as Adaptive Regularization.

    Examples
    --------
    >>> from sklearn_implicitreg.adapters import Data, Options, adapt
    >>> net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(1, 1, bias=False))
    >>> _ = torch.nn.init.constant_(net[1].weight, 2.0)
    >>> rows = Data(torch.ones(10_000, 1), torch.ones(10_000, 1))
    >>> problem = adapt(net, rows, Options(loss="mse"))  # R = theta^2 = 4
    >>> value = Dropout().terms(problem.params, problem)["dropout"]
    >>> round(float(value), 1)
    4.0
    """

    stochastic = True
    _term = "dropout"
    _allowed: ClassVar = {
        "q": NOTHING | number(least=0, below=1),
        "n_draws": integer(1),
        "random_state": SEED,
    }
    shapes: ClassVar = {"q": (0.01, 0.95)}

    def __init__(self, q: Any = None, n_draws: int = 10, random_state: int = 0):
        self.q = q
        self.n_draws = n_draws
        self.random_state = random_state

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """The penalty, or for a linear model its exact form."""
        return [replace(leaf, penalty=self._form(problem)) for leaf in super().leaves(params, None)]

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Value of the term; it can be differentiated once with respect to the parameters."""
        form = self._form(problem)
        return super().terms(params, problem) if form is self else form.terms(params, problem)

    def _form(self, problem: Problem | None) -> Penalty:
        # A recording without data knows parameters alone, and cannot be trained on either.
        linear = not getattr(problem, "is_net", True) and getattr(problem, "n_rows", None)
        return LinearDropout(float(self.q)) if linear and self.q is not None else self

    def _problem(self, problem: Problem | None) -> Problem:
        self.check_parameters()
        found = super()._problem(problem)
        if not found.has_paths:
            found.with_dropout(self.q, 0)  # raises ValueError for a model without such layers
        return found

    def masked(self, problem: Problem) -> list[Problem]:
        """The problem with each of the masks: R is the mean of their losses minus its own.

        Parameters
        ----------
        problem : Problem
            The model on its data.

        Returns
        -------
        problems : list of Problem
            One for each draw.
        """
        seeds = np.random.SeedSequence([int(self.random_state), problem.draw])
        return [problem.with_dropout(self.q, int(s)) for s in seeds.generate_state(self.n_draws)]

    def _value(self, scope: Scope) -> float:
        losses = [drawn.loss for drawn in self._drawn(scope.problem)]
        return float(np.mean(losses)) - scope.problem.gradient().loss

    def _gradient(self, scope: Scope) -> Params:
        rest = scope.problem.gradient().value
        total = {name: torch.zeros_like(g) for name, g in rest.items()}
        for drawn in self._drawn(scope.problem):
            for name, g in drawn.value.items():
                total[name] += (g - rest[name]) / self.n_draws  # exactly zero at rate zero
        return scope.only(total)

    def _drawn(self, problem: Problem) -> Iterator[LossGradient]:
        """Gradients with masks, each of a pass over the rows; other ones for every draw."""
        for drawn in self.masked(problem):
            yield drawn.gradient()
