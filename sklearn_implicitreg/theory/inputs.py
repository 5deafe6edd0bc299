"""What comes in: numbers and arrays, checked; rows, weighted; the decomposed data of a loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import svd

from sklearn_implicitreg.problem.parameters import as_numbers, shown

Array = npt.NDArray[np.float64]


def check_eigenvalues(s: npt.ArrayLike) -> Array:
    """Eigenvalues as an array; ValueError if one is negative."""
    s = as_numbers("s", s)
    if not np.all((s >= 0) & np.isfinite(s)):
        raise ValueError(f"Expected finite eigenvalues s >= 0, got {shown(s)}.")
    return s


def check_steps(n_steps: npt.ArrayLike) -> Array:
    """Numbers of steps as an array; ValueError if one is not positive and finite."""
    steps = as_numbers("n_steps", n_steps)
    if not (np.all(steps > 0) and np.all(np.isfinite(steps))):
        raise ValueError(
            f"Expected a positive finite n_steps, got {n_steps!r}: after no step the "
            "weights are the start, which no finite penalty gives."
        )
    return steps


def as_matrix(name: str, values: npt.ArrayLike) -> Array:
    """A finite matrix."""
    matrix = as_numbers(name, values)
    return _checked(name, "a matrix of finite", matrix, matrix.ndim == 2 and matrix.size > 0)


def as_vector(name: str, values: npt.ArrayLike, length: int) -> Array:
    """A finite vector of known length."""
    vector = as_numbers(name, values)
    return _checked(name, f"{length} finite", vector, vector.shape == (length,))


def _checked(name: str, expected: str, array: Array, fits: bool) -> Array:
    finite = bool(np.all(np.isfinite(array)))
    if not (fits and finite):
        raise ValueError(
            f"Expected {name} to be {expected} numbers, got an array of shape "
            f"{array.shape}{'' if finite else ' with some that are not'}."
        )
    return array


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Data of a quadratic loss: its curvature, and its gradient as a map of the target."""

    s: Array  # (r,), half the curvature along each direction, decreasing
    vectors: Array  # (p, r), the directions
    data: Array  # (r, n), takes a target to minus half the gradient at zero
    scale: Array  # (r,), gradient of L over the direction of a step: 1, or eigenvalues of K

    def gradient(self, y: Array, start: Array) -> Array:
        """Minus half the gradient at the start, along the directions."""
        return np.asarray(self.data @ y - self.s * (self.vectors.T @ start))


def decompose(X: Array, sample_weight: npt.ArrayLike | None) -> Spectrum:
    """Row space of a design, by its singular values: ``X'X`` would square the condition."""
    rows, root = weighted_rows(X, sample_weight)
    left, sigma, right = svd(rows, full_matrices=False)
    rank = int(np.sum(sigma > max(X.shape) * np.finfo(float).eps * sigma[0]))
    if not rank:
        raise ValueError("Expected X with an entry that is not zero, got none.")
    sigma = sigma[:rank]
    data = (left[:, :rank] * sigma * root[:, None]).T
    return Spectrum(sigma**2, right[:rank].T, data, np.ones(rank))


def column_notes(X: Array) -> list[str]:
    """Notes on columns that are zero or constant."""
    constant = np.ptp(X, axis=0) == 0
    zero = np.flatnonzero(constant & (X[0] == 0)).tolist()
    other = np.flatnonzero(constant & (X[0] != 0)).tolist()
    notes = [f"Columns {zero} are zero: their weights stay at the start."] if zero else []
    if other:
        notes.append(
            f"Columns {other} are constant and penalized as the others are; center X and y to "
            "leave an intercept free."
        )
    return notes


def weighted_rows(X: Array, sample_weight: npt.ArrayLike | None) -> tuple[Array, Array]:
    """Rows times the root of their share of the total weight, and these roots."""
    n = len(X)
    weight = np.ones(n) if sample_weight is None else as_vector("sample_weight", sample_weight, n)
    if not (np.all(weight >= 0) and np.sum(weight) > 0):
        raise ValueError("Expected sample weights >= 0 that are not all zero.")
    root = np.sqrt(weight / np.sum(weight))
    return X * root[:, None], root
