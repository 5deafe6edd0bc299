"""Equations given as arrays: a design and its target."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from sklearn_implicitreg.regression.system import Array, GradientSystem

__all__ = ["GivenEquations"]


@dataclass(frozen=True, eq=False)
class GivenEquations:
    """A design and its target as they were given, row weights multiplied in.

    Parameters
    ----------
    design : ndarray of shape (m, k)
    target : ndarray of shape (m,)
    term_names : tuple of k str
    index : Index
        Names of the rows.
    """

    design: Array
    target: Array
    term_names: tuple[str, ...]
    index: pd.Index[Any]

    @classmethod
    def of(
        cls, design: Any, target: Any, sample_weight: Any = None, n_terms: int | None = None
    ) -> GivenEquations:
        """Equations given as arrays; row weights multiply squared residuals.

        Raises
        ------
        ValueError
            If shapes do not fit, ``n_terms`` included, numbers are not finite, two columns have
            one name, or there are fewer equations than coefficients.
        """
        if target is None:
            raise ValueError(
                "Expected y, the target of the regression, with model='precomputed', got None."
            )
        X, y = _numbers(design, "X"), _numbers(target, "y")
        if X.ndim != 2 or y.shape != X.shape[:1] or n_terms not in (None, X.shape[1]):
            raise ValueError(
                f"Expected a design of shape (m, {n_terms or 'k'}) as X and a target of shape (m,) "
                f"as y with model='precomputed', got {X.shape} and {y.shape}."
            )
        names = [f"x{i}" for i in range(X.shape[1])]
        if isinstance(design, pd.DataFrame):
            names = [str(column) for column in design.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"Expected columns of different names, got {twice} twice; rename them."
            )
        if len(X) < X.shape[1] or not len(X):
            raise ValueError(
                f"Expected at least as many equations as coefficients, got {len(X)} equations for "
                f"{X.shape[1]} coefficients; give more rows or fewer columns."
            )
        if sample_weight is not None:
            root = np.sqrt(_weights(sample_weight, len(X)))
            X, y = X * root[:, None], y * root
        index = design.index if isinstance(design, pd.DataFrame) else pd.RangeIndex(len(X))
        return cls(X, y, tuple(names), index)

    @cached_property
    def system(self) -> GradientSystem:
        """R factor of the equations."""
        return GradientSystem.from_arrays(self.design, self.target, self.term_names)


def _numbers(values: Any, name: str) -> Array:
    """Finite float64 numbers."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"Expected finite numbers in {name}, got NaN or inf; drop those rows.")
    return array


def _weights(sample_weight: Any, n_rows: int) -> Array:
    weight = _numbers(sample_weight, "sample_weight")
    if weight.shape != (n_rows,) or (weight < 0).any() or not weight.sum() > 0:
        raise ValueError(
            f"Expected sample_weight of shape ({n_rows},), at or above zero and not all zero, "
            f"got shape {weight.shape} with a smallest weight of {weight.min(initial=np.inf):g}."
        )
    return weight
