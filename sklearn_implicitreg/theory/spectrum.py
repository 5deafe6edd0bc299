"""The decomposed data of a quadratic loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import svd

from sklearn_implicitreg.theory.checks import as_vector

__all__ = ["Spectrum", "column_notes", "decompose", "weighted_rows"]

Array = npt.NDArray[np.float64]


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
    """What is to be said of columns that are zero or constant."""
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
