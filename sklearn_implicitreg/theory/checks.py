"""Checks of numbers and arrays that come in."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["as_matrix", "as_vector", "check_positive", "check_steps", "check_whole"]

Array = npt.NDArray[np.float64]


def check_positive(name: str, value: float) -> None:
    """A number above zero."""
    if not 0 < value < math.inf:
        raise ValueError(f"Expected a positive finite {name}, got {value!r}.")


def check_steps(n_steps: npt.ArrayLike) -> None:
    """Numbers of steps above zero."""
    steps = np.asarray(n_steps, dtype=float)
    if not (np.all(steps > 0) and np.all(np.isfinite(steps))):
        raise ValueError(
            f"Expected a positive finite n_steps, got {n_steps!r}: after no step the "
            "weights are the start, which no finite penalty gives."
        )


def check_whole(name: str, value: float) -> None:
    """A count of at least one."""
    if not (value >= 1 and float(value).is_integer()):
        raise ValueError(f"Expected {name} to be a whole number of at least 1, got {value!r}.")


def as_matrix(name: str, values: npt.ArrayLike) -> Array:
    """A finite matrix."""
    matrix = np.asarray(values, dtype=float)
    if matrix.ndim != 2 or not matrix.size or not np.all(np.isfinite(matrix)):
        raise ValueError(
            f"Expected {name} to be a matrix of finite numbers, got an array of shape "
            f"{matrix.shape}{'' if np.all(np.isfinite(matrix)) else ' with some that are not'}."
        )
    return matrix


def as_vector(name: str, values: npt.ArrayLike, length: int) -> Array:
    """A finite vector of known length."""
    vector = np.asarray(values, dtype=float)
    if vector.shape != (length,) or not np.all(np.isfinite(vector)):
        raise ValueError(
            f"Expected {name} to be {length} finite numbers, got an array of shape "
            f"{vector.shape}{'' if np.all(np.isfinite(vector)) else ' with some that are not'}."
        )
    return vector
