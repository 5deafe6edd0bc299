"""What holds at given weights: the sign of the curvature, the distance to the minimum, bounds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigh
from torch import nn

from sklearn_implicitreg.problem import shaped
from sklearn_implicitreg.regression.solve import norm_of as norm
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.quadratic_form import quadratic_penalty
from sklearn_implicitreg.results.recovery.minimize import newton_step
from sklearn_implicitreg.results.recovery.objective import Objective

_DENSE = 200  # weights; below, the whole Hessian costs less than Lanczos
_TOL = 1e-5  # of the smallest eigenvalue: where Lanczos ends
_REACHED = 1e-6  # of the largest: with less the smallest one is a bound only
_PRODUCTS = 3000  # of Lanczos
_KEPT, _FEWEST = 1000, 60  # vectors of Lanczos
_NUMBERS = 40_000_000  # in these vectors
_ROUNDING = 1e-14
_FLAT = 1e-9  # of the largest eigenvalue: below, differences of rounding
_BY_DIFFERENCES = 1e-6  # of the largest: accuracy of an eigenvalue by differences of gradients
_AT_REST = 1e-6  # of the summands of the gradient
_CONTRACTING = 0.5  # above, a Newton step does not tell the distance
_DEEP = 10.0  # times the value at the model: a fall that is no rounding
# Criteria that are convex functions of outputs.
_CONVEX = {nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss}
_CONVEX |= {nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.SoftMarginLoss}
_MOVED = 0.25  # of the start; farther, one curvature does not stand for the whole way
_FAR = (1e2, 1e4, 1e6)  # how far along a ray


class Certificate(NamedTuple):
    """What the first and second derivatives of L + R say at some weights."""

    gradient: float  # its norm
    scale: float  # of its two summands
    lowest: float  # eigenvalue of the Hessian
    largest: float
    direction: Array
    converged: bool
    step: float  # estimated distance to the minimum, relative to the weights
    contraction: float
    least: float  # curvature that L + R has at all weights; NaN where it is not known
    accuracy: float  # of the smallest eigenvalue

    @property
    def at_rest(self) -> bool:
        """Whether the gradient is zero next to its summands."""
        return self.gradient <= _AT_REST * self.scale

    @property
    def sign(self) -> int:
        """Sign of the smallest eigenvalue; 0 where it is zero to rounding or to its accuracy."""
        # A curvature is never below the smallest: a negative one needs no accurate direction.
        if self.lowest < -_FLAT * self.largest:
            return -1
        accuracy = self.accuracy if self.converged else 0.0
        return int(self.lowest > max(_FLAT * self.largest, accuracy))

    @property
    def is_minimizer(self) -> bool | None:
        """Whether the weights are a strict local minimum; None where only a bound is known."""
        if not self.at_rest or self.sign < 0:
            return False
        if self.sign == 0:
            return None if self.accuracy > _FLAT * self.largest else False
        return True if self.converged else None

    def sentences(self) -> list[str]:
        """Which proposition holds, in plain words, and the estimated distance."""
        said = [self._proposition()]
        if self.least > 0:
            return said  # with a bound where it is not at rest
        if self.sign > 0 and not self.at_rest and self.contraction < _CONTRACTING:
            said.append(
                f"Estimated distance to the minimum: {self.step:.2g} of the weights, by a Newton "
                f"step that contracts by {self.contraction:.2g}; an estimate, not a bound."
            )
        elif self.sign > 0 and not self.at_rest:
            said.append(
                "The distance to the minimum cannot be estimated: a Newton step does not contract "
                f"here ({self.contraction:.2g})."
            )
        return said

    def _proposition(self) -> str:
        size = f"smallest eigenvalue of the Hessian of L + R: {self.lowest:.3g}"
        if not self.converged:
            size += ", not converged"
        if self.least > 0 and not self.at_rest:
            return (
                f"Proposition D: L + R is strongly convex, and its minimum at most "
                f"{self.gradient / self.least:.2g} away from the weights of the model ({size})."
            )
        if self.sign < 0:
            return (
                f"A saddle, not a minimum ({size}): near the model are weights with a lower "
                "L + R, and training on it would not end here. Compare functions, not weights."
            )
        if self.sign == 0 and self.accuracy > _FLAT * self.largest:
            return (
                f"Flat ({size}, zero to its accuracy of {self.accuracy:.1g}): whether the model is "
                "a minimum or a saddle is not known. Compare functions."
            )
        if self.sign == 0:
            return (
                f"Flat ({size}): L + R does not change along a direction of the weights, which "
                "say nothing along it. Compare functions."
            )
        if not self.at_rest:
            return (
                f"The gradient of L + R is not zero at the model ({self.gradient:.2g}, of summands "
                f"of {self.scale:.2g}), so no proposition holds there; {size}."
            )
        return self._at_minimum(size)

    def _at_minimum(self, size: str) -> str:
        if self.least >= 0:
            name, convex = ("B", "strongly convex") if self.least > 0 else ("C", "convex")
            return (
                f"Proposition {name}: L + R is {convex}, and the model its only minimum ({size})."
            )
        if not self.converged:
            return (
                "The gradient of L + R is zero at the model, but whether it is a minimum is not "
                f"known: Lanczos did not converge, and {self.lowest:.3g} is only an upper bound "
                "of the smallest eigenvalue of the Hessian, which may be negative."
            )
        return (
            f"Proposition A: the model is a strict local minimum of L + R and its only stationary "
            f"point nearby ({size}); other basins may have minima of their own."
        )


def certificate(objective: Objective, theta: Array, scale: float, seed: int) -> Certificate:
    """Curvature at some weights, and the Newton step from there with its contraction."""
    slope = objective.gradient(theta)[1]
    lowest, largest, direction, converged = smallest_eigenvalue(objective, theta, seed)
    step = contraction = float("nan")
    at_rest = norm(slope) <= _AT_REST * scale
    if not at_rest and lowest > _FLAT * largest:
        step, contraction = newton_distance(objective, theta, slope)
    accuracy = norm(objective.product(theta, direction) - lowest * direction)
    if objective.by_differences:
        accuracy = max(accuracy, _BY_DIFFERENCES * largest)
    least = least_curvature(objective)
    found = (lowest, largest, direction, converged, step, contraction, least, accuracy)
    return Certificate(norm(slope), scale, *found)


def least_curvature(objective: Objective) -> float:
    """Smallest eigenvalue of the Hessian of R where L is convex and R quadratic; else NaN."""
    problem, penalty = objective.problem, objective.penalty
    criterion = getattr(getattr(problem, "row_loss", None), "criterion", None)
    if type(criterion) not in _CONVEX or getattr(penalty, "model", None) is not None:
        return float("nan")
    if penalty is None or len(objective.theta) > _DENSE or not _is_affine(objective):
        return float("nan")
    rule = quadratic_penalty(penalty, objective.scope.params)
    if rule is None:
        return float("nan")
    values = np.linalg.eigvalsh(rule.hessian)
    if values[0] < -_FLAT * np.abs(values).max():
        return float("nan")
    free = len(values) < len(objective.theta) or values[0] <= _FLAT * values[-1]
    return 0.0 if free else float(values[0])


def _is_affine(objective: Objective) -> bool:
    """Whether outputs are affine in the weights, by second differences at random ones."""
    rng, theta = np.random.default_rng(0), objective.theta
    ways = rng.standard_normal((2, len(theta))) * (1.0 + np.abs(theta))

    def outputs(step: Array) -> Array:
        return objective.problem.outputs(shaped(objective.params, theta + step))[0]

    corners = [outputs(step) for step in (ways[0] + ways[1], ways[0], ways[1], 0 * theta)]
    second = corners[0] - corners[1] - corners[2] + corners[3]
    return bool(np.abs(second).max() <= _FLAT * max(np.abs(c).max() for c in corners))


def newton_distance(objective: Objective, theta: Array, slope: Array) -> tuple[float, float]:
    """Relative length of two Newton steps, and the length of the second over the first."""
    # With the same Hessian in both: a step that leaves the basin then does not contract.
    product = functools.partial(objective.product, theta)
    first = newton_step(product, -slope)
    second = newton_step(product, -objective.gradient(theta + first)[1])
    size = norm(theta) or 1.0
    return norm(first + second) / size, norm(second) / norm(first)


def smallest_eigenvalue(
    objective: Objective, theta: Array, seed: int
) -> tuple[float, float, Array, bool]:
    """Smallest and largest eigenvalue of the Hessian, direction of the first, if it converged."""
    p = len(theta)
    if p <= _DENSE:
        hessian = np.array([objective.product(theta, unit) for unit in np.eye(p)])
        values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
        return float(values[0]), float(np.abs(values).max()), vectors[:, 0], True
    start = np.random.default_rng(seed).standard_normal(p)
    return _ends_of_spectrum(functools.partial(objective.product, theta), start)


def _ends_of_spectrum(
    product: Callable[[Array], Array], start: Array
) -> tuple[float, float, Array, bool]:
    """Lanczos with all vectors kept: of small eigenvalues next to large ones it needs hundreds."""
    p = len(start)
    size = min(p, _KEPT, max(_FEWEST, _NUMBERS // p))
    basis, projected = np.empty((size, p)), np.zeros((size, size))
    basis[0], n, check, largest, lasted = start / norm(start), 0, 20, 0.0, False
    for k_products in range(1, _PRODUCTS + 1):
        ahead, n = np.array(product(basis[n])), n + 1
        if not np.isfinite(ahead).all():
            return float("nan"), float("nan"), basis[0], False
        projected[n - 1, :n] = projected[:n, n - 1] = _orthogonalized(ahead, basis[:n])
        beyond = norm(ahead)
        ended = n == p or beyond <= _ROUNDING * np.abs(projected[:n, :n]).max()
        if ended or n in (size, check) or k_products == _PRODUCTS:
            check = n + max(20, n // 8)
            values, vectors = eigh(projected[:n, :n])
            largest = max(largest, float(np.abs(values).max()))
            away = 0.0 if ended else beyond * abs(vectors[-1, 0])
            exact = away <= max(_TOL * abs(values[0]), _FLAT * largest)
            if ended or (exact and lasted) or k_products == _PRODUCTS:
                break
            lasted = exact
            if n == size:
                n, check = size // 2, size // 2 + 20
                basis[:n] = vectors[:, :n].T @ basis
                projected[:n, :n] = np.diag(values[:n])
        basis[n] = ahead / beyond
    direction = vectors[:, 0] @ basis[: len(vectors)]
    return float(values[0]), largest, direction / norm(direction), bool(away <= _REACHED * largest)


def _orthogonalized(vector: Array, basis: Array) -> Array:
    """Take the part in a basis out of a vector, in place; its coefficients."""
    found = np.zeros(len(basis))
    for _ in range(2):  # once more for the rounding of the first
        more = basis @ vector
        vector -= more @ basis
        found += more
    return found


def check_bounded(objective: Objective, direction: Array) -> None:
    """Raise ValueError where L + R falls without end along a ray from the model."""
    here = objective.value(objective.theta)
    for words, ray in _rays(objective, direction):
        with np.errstate(over="ignore", invalid="ignore"):
            values = [objective.value(ray(1.0))]
            for far in _FAR:
                values.append(objective.value(ray(far)))
                if not values[-1] < values[-2]:
                    break
        falls = np.diff(values)
        # A fall that grows with the distance outruns whatever the loss does along the ray.
        deep = values[-1] < here - _DEEP * max(1.0, abs(here))
        if deep and np.isfinite(values).all() and (falls < 0).all() and falls[-1] < 10 * falls[-2]:
            raise ValueError(
                "Expected an L + R with a lower bound, got one that falls without end: with "
                f"{words} {_FAR[-1]:g} times as large it is {values[-1]:.3g} (at the model "
                f"{here:.3g}), because the penalty rewards large "
                "weights. Fit with positive=True or another family, and recover that."
            )


def near_start(objective: Objective, found: Certificate, force: bool) -> tuple[str, ...]:
    """What early stopping of a network rests on; ValueError where it moved too far, if not forced.

    Its penalty has the curvature halfway from the start.
    """
    start = getattr(objective.penalty, "center", None)
    if start is None:
        return ()
    moved = norm(objective.theta - start) / (norm(start) or float("nan"))
    how = f"the weights moved by {100 * moved:.3g} % of their start"
    near = found.at_rest or found.contraction < _CONTRACTING
    if moved <= _MOVED and found.sign >= 0 and near:
        return (f"R is that of early stopping, by the curvature halfway: {how}.",)
    if found.sign < 0:
        how += f", and L + R has a negative curvature at the model ({found.lowest:.2g})"
    elif not near:
        how += (
            ", and a Newton step from the model does not contract, so no minimum of L + R is near"
        )
    if force:
        return (f"Trained with force=True: {how}, too far for the penalty of early stopping.",)
    raise ValueError(
        "Expected a network near its start, as the penalty of early stopping takes the curvature "
        f"halfway for that of the whole way (up to {100 * _MOVED:g} %, with L + R convex at the "
        f"model and its minimum near), got one too far: {how}. Compare trainings by "
        "mode='trainer' with another family, or give force=True."
    )


def _rays(objective: Objective, direction: Array) -> Iterator[tuple[str, Callable[[float], Array]]]:
    """Ways to go far: along the smallest curvature, by tensors alone, by one against the next."""
    theta, size = objective.theta, norm(objective.theta) or 1.0
    for length in (size, -size):
        words = "a step along the smallest curvature"
        yield words, functools.partial(_away, theta, length * direction)
    ends = itertools.accumulate(t.numel() for t in objective.params.values())
    places = {
        name: slice(end - tensor.numel(), end)
        for (name, tensor), end in zip(objective.params.items(), ends, strict=True)
    }
    for name, place in places.items():
        yield name, functools.partial(_scaled, theta, place, slice(0))
    rewarded = theta * objective.penalty_gradient(theta) < 0
    words = "the weights that the penalty rewards"
    yield words, functools.partial(_scaled, theta, rewarded, slice(0))
    matrices = [name for name, tensor in objective.params.items() if tensor.ndim > 1]
    for pair in itertools.pairwise(matrices):
        for up, down in (pair, pair[::-1]):
            words = f"{up} (and {down} by the inverse)"
            yield words, functools.partial(_scaled, theta, places[up], places[down])


def _away(theta: Array, step: Array, far: float) -> Array:
    return theta + far * step


def _scaled(theta: Array, up: Any, down: slice, far: float) -> Array:
    """Weights of which some are multiplied, and others divided."""
    there = theta.copy()
    there[up] *= far
    there[down] /= far
    return there
