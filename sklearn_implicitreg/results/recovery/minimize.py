"""Minimization of L + R: L-BFGS from afar, a trust region with products of the Hessian, Newton."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, minres

from sklearn_implicitreg.regression.solve import norm_of as norm
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.recovery.objective import Objective

BUDGET = 2000  # gradients; a product with the Hessian counts as one
NEAR = 1e-4  # of the scale of the gradient: where L-BFGS gives over to the trust region
STATIONARY = 1e-6  # of the scale: where the trust region does to Newton's steps
ROUNDING = 1e-12  # of the scale: nothing is left to gain
_N_NEWTON = 6


class Run(NamedTuple):
    """Where a minimization ended."""

    theta: Array
    value: float
    gradient: float  # its norm
    n_evaluations: int
    stopped: str  # "stationary", "budget" or "no progress"


class _Spent(Exception):
    """The budget is used up."""


class _Counted:
    """An objective that counts what is asked of it and remembers the lowest value."""

    def __init__(self, objective: Objective, start: Array, budget: int):
        self._objective, self._budget, self.n = objective, budget, 0
        self.best, self.value = start, float("inf")

    def _count(self) -> None:
        if self.n >= self._budget:
            raise _Spent
        self.n += 1

    def gradient(self, theta: Array) -> tuple[float, Array]:
        """Value and gradient."""
        self._count()
        value, slope = self._objective.gradient(np.array(theta))
        if value < self.value and np.isfinite(slope).all():
            self.best, self.value = np.array(theta), value
        return value, slope

    def product(self, theta: Array, vector: Array) -> Array:
        """Hessian times a vector."""
        self._count()
        return self._objective.product(np.array(theta), np.array(vector))


def minimized(objective: Objective, start: Array, scale: float) -> Run:
    """Minimize from a start until the gradient is zero to rounding or the budget is spent."""
    counted = _Counted(objective, start, BUDGET)
    theta = start
    try:
        theta = _descended(counted, start, scale)
        stopped = "stationary"
    except _Spent:
        theta, stopped = counted.best, "budget"
    value, slope = objective.gradient(theta)
    if norm(slope) <= STATIONARY * scale:
        stopped = "stationary"  # also where the budget ended the last steps of Newton
    elif stopped == "stationary":
        stopped = "no progress"
    return Run(theta, value, norm(slope), counted.n, stopped)


def _descended(counted: _Counted, start: Array, scale: float) -> Array:
    # L-BFGS compares the largest entry, which is below the norm.
    rough = {"gtol": NEAR * scale / len(start) ** 0.5, "ftol": 0.0, "maxcor": 30}
    rough |= {"maxiter": 10**6, "maxfun": 10**6}
    minimize(counted.gradient, start, jac=True, method="L-BFGS-B", options=rough)
    found = minimize(
        counted.gradient,
        counted.best,
        jac=True,
        hessp=counted.product,
        method="trust-ncg",
        options={"gtol": STATIONARY * scale, "maxiter": 200, "max_trust_radius": 10.0},
    )
    return _polished(counted, found.x, scale)


def _polished(counted: _Counted, theta: Array, scale: float) -> Array:
    """Newton's steps as long as they make the gradient smaller and do not climb to a saddle."""
    here, slope = counted.gradient(theta)
    for _ in range(_N_NEWTON):
        if norm(slope) <= ROUNDING * scale:
            break
        there = theta + newton_step(functools.partial(counted.product, theta), -slope)
        value, ahead = counted.gradient(there)
        climbs = value > here + ROUNDING * max(1.0, abs(here))
        if climbs or not norm(ahead) < 0.5 * norm(slope):
            break
        theta, here, slope = there, value, ahead
    return theta


def newton_step(product: Callable[[Array], Array], target: Array, rtol: float = 1e-8) -> Array:
    """Solution of ``H s = target`` by MINRES, which takes an indefinite Hessian."""
    p = len(target)
    operator = LinearOperator((p, p), matvec=product, dtype=np.float64)
    step: Array = minres(operator, target, rtol=rtol, maxiter=min(5 * p, 1000))[0]
    return step
