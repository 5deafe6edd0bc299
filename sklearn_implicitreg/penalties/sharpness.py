"""Penalties on the loss around the weights: its rise towards the steepest side, its curvature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.penalties.gradients import OfGradient, Scope
from sklearn_implicitreg.problem import Params, Problem, add_to, closing, norm_of, zeros_of
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
        along = float(_dot(there, step)) / self.rho**2
        across = {n: (there[n] - along * s) * (self.rho / size) for n, s in step.items()}
        turned = scope.problem.hvp(across)
        return {name: there[name] - g + turned[name] for name, g in here.items()}

    def _step(self, scope: Scope, gradient: Params) -> tuple[Params, float]:
        counted = scope.only(gradient)
        size = norm_of(counted)
        return {n: g * (self.rho / (size or 1.0)) for n, g in counted.items()}, size


class HessianTrace(OfGradient):
    """Curvature of the loss, ``R = tr H``, the trace of its Hessian in all trained weights.

    Noise in the weights adds ``E L(theta + noise) - L``, which for independent noise of variance
    ``s^2`` is ``s^2 / 2 tr H`` to second order. Label noise of variance ``s^2``, fresh at each step
    of plain SGD with squared error, adds ``lr s^2 / (2 B) tr H`` for batches of B rows [1]_.

    The trace is a mean of ``v' H v`` over vectors of signs; its gradient takes three backward
    passes for each. Vectors are orthogonal to each other as far as they go, so that with as
    many as there are weights the trace is exact; with fewer, noise makes the coefficient at an
    endpoint too small. Restricted by ``.on`` or ``.per`` the trace is over the chosen weights.

    Parameters
    ----------
    n_draws : int or None, default=32
        Vectors of signs; None takes as many as make the trace exact.
    random_state : int, default=0
        Seed of the vectors.

    References
    ----------
    .. [1] Blanc, Gupta, Valiant and Valiant (2020), Implicit Regularization for Deep Neural
       Networks Driven by an Ornstein-Uhlenbeck Like Process.

    Examples
    --------
    >>> from sklearn_implicitreg.adapters import Data, Options, adapt
    >>> net = torch.nn.Linear(2, 1, bias=False).double()
    >>> rows = Data(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.ones(2, 1))
    >>> problem = adapt(net, rows, Options(loss="mse"))  # H = X'X
    >>> round(HessianTrace().terms(problem.params, problem)["hessian_trace"].item(), 4)
    10.0
    """

    _term = "hessian_trace"
    _allowed: ClassVar = {"n_draws": NOTHING | integer(1), "random_state": SEED}

    def __init__(self, n_draws: int | None = 32, random_state: int = 0):
        self.n_draws = n_draws
        self.random_state = random_state

    @property
    def stochastic(self) -> bool:
        """Whether the vectors are drawn."""
        return self.n_draws is not None

    def _value(self, scope: Scope) -> float:
        return self._curvature(scope)[0]

    def _gradient(self, scope: Scope) -> Params:
        return self._curvature(scope, sloped=True)[1]

    def _curvature(self, scope: Scope, sloped: bool = False) -> tuple[float, Params]:
        """Mean of ``v' H v``, and its gradient if asked for, by reverse mode three times."""
        own = scope.problem.params
        total, slope, mass, n_draws = 0.0, zeros_of(own), 0.0, 0
        with torch.enable_grad(), closing(scope.problem.losses()) as losses:
            for summed in losses:
                leaves = {name: t.detach().clone().requires_grad_() for name, t in own.items()}
                loss, weight = summed(leaves)
                first = _derivatives(loss, leaves)
                n_draws = 0
                for signs in self._signs(scope):
                    n_draws += 1
                    bent = _dot(_derivatives(_dot(first, signs), leaves), signs)
                    total += float(bent.detach())
                    for name, g in _derivatives(bent, leaves).items() if sloped else ():
                        add_to(slope[name], g.detach())
                mass += weight
        number = mass * n_draws
        return total / number, {name: t / number for name, t in slope.items()}

    def _signs(self, scope: Scope) -> Iterator[Params]:
        """Rows of a Hadamard matrix in random order, their entries times random signs."""
        counted = scope.only(scope.problem.params)
        size = sum(t.numel() for t in counted.values())
        n_rows = 1 << max(0, size - 1).bit_length()
        rng = np.random.default_rng([int(self.random_state), scope.problem.draw])
        flips = rng.integers(0, 2, size)
        n = n_rows if self.n_draws is None else min(self.n_draws, n_rows)
        for row in rng.choice(n_rows, n, replace=False):
            bits = np.arange(size) & row
            for shift in (32, 16, 8, 4, 2, 1):  # whether the number of bits is odd
                bits ^= bits >> shift
            signs = torch.from_numpy(1.0 - 2.0 * ((bits + flips) & 1))
            parts = torch.split(signs, [t.numel() for t in counted.values()])
            pairs = zip(counted.items(), parts, strict=True)
            yield {name: part.reshape(t.shape).to(t) for (name, t), part in pairs}


def _dot(vector: Params, other: Params) -> Tensor:
    return torch.stack([(vector[name] * t).sum() for name, t in other.items()]).sum()


def _derivatives(value: Tensor, leaves: Params) -> Params:
    """Derivatives with their graphs; zero where there is none, as of a linear model."""
    if not value.requires_grad:
        return {name: torch.zeros_like(t) for name, t in leaves.items()}
    found = torch.autograd.grad(
        value, list(leaves.values()), create_graph=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def _moved(scope: Scope, step: Params) -> Problem:
    """The problem at weights a step away."""
    own = scope.problem.params
    moved = {name: own[name] + s.to(own[name]) for name, s in step.items()}
    return scope.problem.at({**own, **moved})
