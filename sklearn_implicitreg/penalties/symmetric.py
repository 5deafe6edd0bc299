"""Symmetric matrices from ``Q theta_k = b_k``: least squares, psd, shrunk; with error bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, svd

Array = npt.NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_MAX_STEPS = 20_000


@dataclass(frozen=True)
class SymmetricFit:
    """A symmetric matrix and how well the endpoints determine it."""

    matrix: Array  # (p, p)
    n_independent: int  # m, rank of the endpoints
    rank: int  # numbers that are determined, m p - m (m - 1) / 2
    error_bound: float  # relative, if B is off by rounding and by as much as the misfit
    asymmetry: float  # of Theta' B, relative; 0 if one matrix fits all endpoints
    multiple: float  # the best allowed multiple of the identity
    strength: float = 0.0  # of the pull towards that multiple
    pull: float = 0.0  # largest share of that way that a determined entry moves
    n_counted: float = 0.0  # endpoints that this strength counts as independent
    distance: float = 0.0  # relative bound on the distance from the constrained minimum


def n_determined(p: int, m: int) -> int:
    """Numbers of a symmetric (p, p) matrix that m independent endpoints determine."""
    # The equations of two endpoints share one relation: theta_j' Q theta_k = theta_k' Q theta_j.
    return m * p - m * (m - 1) // 2


def solve_symmetric(
    thetas: Array,
    rhs: Array,
    *,
    psd: bool = False,
    shrinkage: str | float | None = None,
    eps: float = _EPS,
    n_rows: int | None = None,
) -> SymmetricFit:
    """Least-squares solution of ``Q thetas = rhs`` over symmetric matrices."""
    p, n_endpoints = thetas.shape
    # In the singular vectors of thetas the entries of Q part: each pair of them has two equations
    # and one unknown. What the endpoints do not determine is zero: minimum Frobenius norm.
    # All p left vectors are needed, but of the right ones only those that go with them.
    basis, values, right = svd(thetas, full_matrices=n_endpoints < p, check_finite=False)
    m = int(np.sum(values > max(p, n_endpoints) * max(eps, _EPS) * values[0]))
    sigma = np.zeros(p)
    sigma[:m] = values[:m]
    weights = (sigma[:, None] ** 2 + sigma**2) / 2  # of the entries in the sum of squares
    projected = basis.T @ rhs
    moments = np.pad(projected @ right[:m].T * sigma[:m], ((0, 0), (0, p - m)))
    entries = _divided((moments + moments.T) / 2, weights)
    plain = basis @ entries @ basis.T
    misfit = float(np.linalg.norm(plain @ thetas - rhs))
    spare = thetas.size - n_determined(p, m)
    multiple = _multiple(thetas, rhs, psd)
    gain = float(1 / np.sqrt(weights[weights > 0].min())) if m else 0.0
    noise = _noise(plain, thetas, rhs, misfit, spare, eps)
    n_counted = _counted(n_endpoints, p, n_rows)
    strength = distance = 0.0
    if shrinkage == "identity":
        variance = n_endpoints / n_counted * misfit**2 / spare if spare > 0 else 0.0
        entries, strength = _shrunk(entries, weights, variance, multiple)
    if psd:
        entries, distance = _psd_entries(entries, weights + strength)
    if isinstance(shrinkage, float | int):
        entries = (1 - shrinkage) * entries + shrinkage * multiple * np.eye(p)
    matrix = basis @ entries @ basis.T
    return SymmetricFit(
        matrix=(matrix + matrix.T) / 2,
        n_independent=m,
        rank=n_determined(p, m),
        error_bound=gain * noise,
        asymmetry=_asymmetry(sigma[:m, None] * projected[:m], right[:m]),
        multiple=multiple,
        strength=strength,
        pull=gain**2 * strength / (1 + gain**2 * strength),
        n_counted=n_counted,
        distance=distance,
    )


def _counted(n_endpoints: int, p: int, n_rows: int | None) -> float:
    """Endpoints that count as independent; ``n_rows`` if they are resamples of one data set."""
    # M resamples of n rows know no more than the n/p disjoint parts of the rows that are large
    # enough to determine p weights (a heuristic).
    return n_endpoints / (1 + n_endpoints * p / n_rows) if n_rows else float(n_endpoints)


def _multiple(thetas: Array, rhs: Array, psd: bool) -> float:
    square = float(np.square(thetas).sum())
    multiple = float((thetas * rhs).sum()) / square if square else 0.0
    return max(multiple, 0.0) if psd else multiple


def _divided(numerator: Array, denominator: Array) -> Array:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _noise(
    matrix: Array, thetas: Array, rhs: Array, misfit: float, spare: int, eps: float
) -> float:
    """Relative error that ``rhs`` may have: rounding, and three times the misfit."""
    norm = float(np.linalg.norm(matrix))
    rounding = np.linalg.norm(rhs) + norm * np.linalg.norm(thetas)
    # The misfit lies in the spare directions; the others have as much noise in each.
    left_over = 3 * misfit * np.sqrt(thetas.size / spare) if spare > 0 else 0.0
    return float(max(eps, _EPS) * rounding + left_over) / norm if norm else 0.0


def _asymmetry(cross: Array, right: Array) -> float:
    """Share of ``Theta' B = right' cross`` that is skew, by its Frobenius norm."""
    norm = float(np.linalg.norm(cross))
    inner = cross @ right.T
    outer = cross - inner @ right  # meets only zeros on the other side of the diagonal
    skew = np.hypot(np.linalg.norm(inner - inner.T), np.sqrt(2) * np.linalg.norm(outer))
    return float(skew) / (2 * norm) if norm else 0.0


def _shrunk(entries: Array, weights: Array, noise: float, multiple: float) -> tuple[Array, float]:
    strength = _strength(entries, weights, noise, multiple)
    share = _divided(weights, weights + strength)
    return share * entries + (1 - share) * multiple * np.eye(len(entries)), strength


def _strength(entries: Array, weights: Array, noise: float, multiple: float) -> float:
    """Weight of the pull towards the multiple of the identity, s^2 / nu^2."""
    # Empirical Bayes (Efron, Morris 1973): Q - multiple * I has the prior N(0, nu^2), with nu up
    # to where the eigenvalues still keep one sign (Wigner's semicircle).
    p = len(entries)
    widest = abs(multiple) / np.sqrt(2 * p)
    if not noise or not widest:
        return 0.0
    rows, columns = np.triu_indices(p)
    known = weights[rows, columns] > 0
    rows, columns = rows[known], columns[known]
    off = entries[rows, columns] - multiple * (rows == columns)
    squares = np.square(off) * np.where(rows == columns, 1.0, 2.0)
    variances = noise / weights[rows, columns]
    grid = np.geomspace(1e-3, 1.0, 61) * widest
    loss = [float(np.sum(np.log(w**2 + variances) + squares / (w**2 + variances))) for w in grid]
    return float(noise / grid[int(np.argmin(loss))] ** 2)


def _psd_entries(entries: Array, weights: Array) -> tuple[Array, float]:
    """The constrained minimum over the weighted entries, completed in the others."""
    m = int((np.diag(weights) > 0).sum())
    inner, distance = nearest_psd(entries[:m, :m], weights[:m, :m])
    if m == len(entries):
        return inner, distance
    # Positive semi-definite means Q_oo >= Q_oi Q_ii^+ Q_io for the rest: take equality. Where Q_ii
    # is singular, only an infinite Q_oo could match the part of Q_oi there: it is dropped.
    values, vectors = eigh(inner)
    kept = values > len(entries) * _EPS * max(values[-1], 0.0)
    roots = np.sqrt(values[kept])
    factor = np.vstack([vectors[:, kept] * roots, entries[m:, :m] @ vectors[:, kept] / roots])
    return factor @ factor.T, distance


def nearest_psd(center: Array, weights: Array) -> tuple[Array, float]:
    """Positive semi-definite matrix of smallest weighted distance, and its error bound."""
    if not len(center) or eigh(center, eigvals_only=True)[0] >= 0:
        return center, 0.0
    # Accelerated projected gradients (Nesterov 2004, 2.2.3) after a scaling that keeps the cone
    # and takes the root of the condition; distance: twice the gradient mapping over convexity.
    scale = np.diag(weights) ** -0.25
    scales = np.outer(scale, scale)
    target, curvature = center / scales, weights * scales**2  # curvature between 1 and steepest
    steepest = float(curvature.max())
    momentum = (np.sqrt(steepest) - 1) / (np.sqrt(steepest) + 1)
    found = point = _cone(target)
    tolerance = 64 * _EPS * steepest * float(np.linalg.norm(target))  # what rounding leaves
    distance = np.inf
    for _ in range(_MAX_STEPS):
        previous = found
        found = _cone(point - curvature * (point - target) / steepest)
        distance = 2 * steepest * float(np.linalg.norm(point - found))
        if distance <= tolerance:
            break
        point = found + momentum * (found - previous)
    matrix: Array = found * scales
    norm = float(np.linalg.norm(matrix))
    return matrix, float(scales.max()) * distance / norm if norm else 0.0


def _cone(matrix: Array) -> Array:
    values, vectors = eigh(matrix, check_finite=False)
    root = vectors * np.sqrt(values.clip(min=0.0))
    return np.asarray(root @ root.T)
