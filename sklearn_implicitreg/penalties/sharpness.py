"""Penalties on the loss around the weights: its rise towards the steepest side, its curvature."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch

from sklearn_implicitreg.penalties.gradients import OfGradient, Scope
from sklearn_implicitreg.problem import Params, Problem, add_to, zeros_of
from sklearn_implicitreg.problem.parameters import NOTHING, SEED, integer, number


class Sharpness(OfGradient):
    """Rise of the loss at a distance, ``R = L(theta + rho g / |g|) - L(theta)``, g its gradient.

    Sharpness-aware minimization [1]_ minimizes ``L + R``, its step without the derivative of
    ``g / |g|``; here the derivative is complete. To first order R is ``rho |g|``; its square over
    ``rho^2`` is :class:`GradientNorm`. R has a kink where g is zero, and is zero there.

    Parameters
    ----------
    rho : float, default=0.05
        Distance in the units of the weights.

    References
    ----------
    .. [1] Foret, Kleiner, Mobahi and Neyshabur (2021), Sharpness-Aware Minimization for
       Efficiently Improving Generalization.

    Examples
    --------
    >>> from sklearn_implicitreg.adapters import Data, Options, adapt
    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(net.weight, 3.0)
    >>> rows = Data(torch.ones(2, 1), torch.ones(2, 1))
    >>> problem = adapt(net, rows, Options(loss="mse"))  # L = (theta - 1)^2
    >>> Sharpness(rho=1.0).terms(problem.params, problem)  # 3^2 - 2^2
    {'sharpness': tensor(5.)}
    """

    _term = "sharpness"
    _allowed: ClassVar = {"rho": number(above=0)}

    def __init__(self, rho: float = 0.05):
        self.rho = rho

    def _value(self, scope: Scope) -> float:
        here = scope.problem.gradient()
        step, size = self._step(scope, here.value)
        return _moved(scope, step).gradient().loss - here.loss if size else 0.0

    def _gradient(self, scope: Scope) -> Params:
        here = scope.problem.gradient().value
        step, size = self._step(scope, here)
        if not size:
            return zeros_of(here)
        there = _moved(scope, step).gradient().value
        # The step turns with the weights: rho / |g| H (I - uu') g(theta + step), u = g / |g|.
        along = _along(there, step) / self.rho**2
        across = {n: (there[n] - along * s) * (self.rho / size) for n, s in step.items()}
        turned = scope.problem.hvp(across)
        return {name: there[name] - g + turned[name] for name, g in here.items()}

    def _along(vector: Params, other: Params) -> float:
    return sum(float((vector[name] * t).sum()) for name, t in other.items())


def _moved(scope: Scope, step: Params, factor: float = 1.0) -> Problem:
    """The problem at weights a step away."""
    own = scope.problem.params
    moved = {name: own[name] + factor * s.to(own[name]) for name, s in step.items()}
    return scope.problem.at({**own, **moved})
