"""Losses and penalties that are quadratic in the weights, and where their sum is stationary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import pinvh
from torch import Tensor

from sklearn_implicitreg.problem import Params, Problem, flat, shaped
from sklearn_implicitreg.regression.system import Array

PenaltyValue = Callable[[Params], Tensor]

_EPS = float(np.finfo(np.float64).eps)
_LARGEST = 4000  # weights; an eigendecomposition of this size takes half a minute
_SOLVED = 1e-6  # share of the slope that a solution may leave
_ROUNDING = 1e4 * _EPS  # share of a gradient by which it may be off a straight line


@dataclass(frozen=True, eq=False)
class QuadraticForm:
    """A function of the flattened parameters with gradient ``hessian @ theta - slope``."""

    hessian: Array
    slope: Array

    def __add__(self, other: QuadraticForm) -> QuadraticForm:
        return QuadraticForm(self.hessian + other.hessian, self.slope + other.slope)

    def change(self, start: Array, end: Array) -> float:
        """Value at the end minus value at the start."""
        step = end - start
        return float(step @ (self.hessian @ (start + step / 2) - self.slope))

    def stationary(self) -> Stationary:
        """Where the gradient is zero: the only such point, or the shortest of many."""
        size = np.sqrt(np.abs(np.diagonal(self.hessian)))
        size[size == 0] = 1.0
        # Scaled to a diagonal of ones, so that the units of the features do not matter: the
        # signs of the eigenvalues stay.
        values, vectors = np.linalg.eigh(self.hessian / np.outer(size, size))
        bound = 10 * len(values) * _EPS * float(np.abs(values).max())
        n_negative = int((values < -bound).sum())
        n_zero = int((np.abs(values) <= bound).sum())
        if n_zero:
            point = pinvh(self.hessian) @ self.slope
        else:
            point = vectors @ ((vectors.T @ (self.slope / size)) / values) / size
        lowest = 0.0
        if n_negative:
            lowest = min(float(np.linalg.eigvalsh(self.hessian)[0]), 0.0)
        elif not n_zero:  # by the inverse, of which it is the largest: no digits are lost
            inverse = (vectors / values) @ vectors.T / np.outer(size, size)
            lowest = 1 / float(np.linalg.eigvalsh(inverse)[-1])
        off = np.linalg.norm(self.hessian @ point - self.slope)
        scale = np.linalg.norm(self.slope) + np.linalg.norm(np.abs(self.hessian) @ np.abs(point))
        exists = not n_zero or bool(off <= _SOLVED * scale)
        return Stationary(point, len(values), n_negative, n_zero, lowest, exists)


class Stationary(NamedTuple):
    """A stationary point, and the signs of the Hessian's eigenvalues."""

    point: Array
    n: int
    n_negative: int
    n_zero: int
    smallest_eigenvalue: float
    exists: bool  # no: the slope leaves the range of a singular Hessian


def quadratic_loss(problem: Problem) -> QuadraticForm | None:
    """The loss if it is quadratic in free parameters that are not too many."""
    if problem.free or sum(t.numel() for t in problem.params.values()) > _LARGEST:
        return None
    try:
        hessian = problem.hessian()
    except ValueError:
        return None
    gradient = flat(problem.gradient().value)
    return QuadraticForm(hessian, hessian @ flat(problem.params) - gradient)


def quadratic_penalty(penalty: PenaltyValue, params: Params) -> QuadraticForm | None:
    """The penalty if it is quadratic: its gradient is affine at unit vectors and other points."""
    theta = flat(params)
    start = _slope(penalty, params, np.zeros_like(theta))
    columns = [_slope(penalty, params, unit) - start for unit in np.eye(len(theta))]
    rule = QuadraticForm(np.array(columns), -start)
    rng = np.random.default_rng(0)
    size = 2 * max(1.0, float(np.abs(theta).max()))
    step = size * rng.choice([-1.0, 1.0], len(theta)) * rng.uniform(1.0, 2.0, len(theta))
    points = (theta, theta + step, theta - step, 1e3 * step)
    return rule if all(has_gradient(penalty, params, rule, point) for point in points) else None


def has_gradient(penalty: PenaltyValue, params: Params, rule: QuadraticForm, theta: Array) -> bool:
    """Whether a penalty has at a point the gradient that a quadratic one would have."""
    expected = rule.hessian @ theta - rule.slope
    scale = np.linalg.norm(np.abs(rule.hessian) @ np.abs(theta)) + np.linalg.norm(rule.slope)
    off = np.linalg.norm(_slope(penalty, params, theta) - expected)
    return bool(off <= _ROUNDING * scale)  # never of NaN


def _slope(penalty: PenaltyValue, params: Params, theta: Array) -> Array:
    leaves = {name: tensor.requires_grad_() for name, tensor in shaped(params, theta).items()}
    with torch.enable_grad():
        value = penalty(leaves)
        if not value.requires_grad:
            return np.zeros_like(theta)
        slopes = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return flat(dict(zip(leaves, slopes, strict=True)))
