"""Coefficients by instrumental variables: for columns that share noise with their target.

With columns D, target t and instruments Z, one for each column, the coefficients are
``(Z'D)^-1 Z't``: they stay right where D has noise of its own or shares that of t, as long as Z
shares neither. From R of the QR decomposition of ``[Z | D | t]`` they are the solution of its first
k rows, the projection of columns and target on the instruments, so such R factors add up over
equations as those of least squares do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from scipy.linalg import lstsq
from torch import Tensor

from sklearn_implicitreg.regression.equations import Equations, RowBlock
from sklearn_implicitreg.regression.system import Array, GradientSystem, merge, r_factor
from sklearn_implicitreg.trajectory.stretches import MeanColumns

__all__ = ["InstrumentedEquations", "InstrumentedSystem", "projected"]

_ROUNDING = 1e3 * float(np.finfo(np.float64).eps)


class InstrumentedSystem(GradientSystem):
    """Equations with an instrument for each column; its R factors are of ``[Z | D | t]``.

    ``r_factor`` and ``without_each`` are those of :func:`projected`, so that whatever is read off
    the R factors of least squares is read off these.

    References
    ----------
    Wooldridge (2010), Econometric Analysis of Cross Section and Panel Data, chapter 5.

    Examples
    --------
    >>> import numpy as np
    >>> z, noise = np.array([1.0, 2.0, 3.0]), np.array([3.0, 0.0, -1.0])  # z'noise = 0
    >>> both = np.column_stack([z, z + noise])
    >>> system = InstrumentedSystem(("a",), ("all",), (r_factor(both, 2.0 * z),), (3,))
    >>> upper = system.r_factor
    >>> round(float(upper[0, 1] / upper[0, 0]), 12)
    2.0
    """

    def __post_init__(self) -> None:
        """Refuse R factors of another width."""
        width = 2 * self.n_terms + 1
        wrong = sorted({part.shape for part in self.r_factors} - {(width, width)})
        if wrong:
            raise ValueError(
                f"Expected R factors of {self.n_terms} instruments, as many columns and the "
                f"target, of shape {(width, width)}, got {wrong}."
            )

    @cached_property
    def r_factor(self) -> Array:
        """R factor of all equations, projected on the instruments."""
        return projected(merge(self.r_factors))

    def products_among(self, kept: list[int]) -> Array:
        """Instruments times columns, ``Z'D``, of some terms, the others projected out.

        With the coefficients of these terms on both sides it is the squared norm of what they
        explain, free of the noise of the columns.
        """
        upper, k = merge(self.r_factors), self.n_terms
        products: Array = upper[:k, :k].T @ upper[:k, k:-1]
        others = [i for i in range(k) if i not in kept]
        inside = products[np.ix_(kept, kept)]
        if others:
            across = products[np.ix_(others, kept)]
            shares = lstsq(products[np.ix_(others, others)], across)[0]
            inside = inside - products[np.ix_(kept, others)] @ shares
        return inside

    def select(self, names: Iterable[str]) -> InstrumentedSystem:
        """System of some of the terms, with their instruments."""
        wanted = tuple(names)
        index = [self.term_names.index(name) for name in wanted]
        both = [*index, *(self.n_terms + i for i in index)]
        r_factors = tuple(r_factor(part[:, both], part[:, -1]) for part in self.r_factors)
        return replace(self, term_names=wanted, r_factors=r_factors)

    def without_each(self) -> list[Array]:
        """Projected R factors of all clusters but one, for each cluster in turn."""
        return [projected(rest) for rest in super().without_each()]


def projected(upper: Array) -> Array:
    """R factor of columns and target projected on the instruments.

    Parameters
    ----------
    upper : ndarray of shape (2k + 1, 2k + 1)
        R factor of ``[instruments | columns | target]``.

    Returns
    -------
    ndarray of shape (k + 1, k + 1)
        Its least-squares coefficients are those of instrumental variables; the residual is that
        of the equations themselves.
    """
    k = len(upper) // 2
    top, rest = upper[:k, k:].copy(), upper[k:, k:]
    # A direction that the instruments do not span but for rounding says nothing.
    sizes = np.linalg.norm(upper[:k, :k], axis=0)
    top[np.abs(np.diagonal(upper)[:k]) <= _ROUNDING * sizes] = 0.0
    result = r_factor(top[:, :-1], top[:, -1])
    coef = lstsq(top[:, :-1], top[:, -1])[0]
    away = np.concatenate([part[:, -1] - part[:, :-1] @ coef for part in (top, rest)])
    result[-1, -1] = np.linalg.norm(away)
    return result


@dataclass(frozen=True)
class InstrumentedEquations(Equations):
    """Equations of a window whose columns come with instruments."""

    _per_term: ClassVar[int] = 2

    columns: MeanColumns

    def _regressors(self, block: RowBlock) -> Tensor:
        """Instruments and columns."""
        instruments = self.columns.instruments[block.name]
        if block.index is not None:
            instruments = instruments[block.index]
        return torch.cat([instruments, block.design], dim=1)

    def _system(
        self, labels: tuple[str, ...], r_factors: tuple[Array, ...], counts: tuple[int, ...]
    ) -> GradientSystem:
        """The R factors of all blocks together; rows are not read again."""
        return InstrumentedSystem(self.columns.term_names, labels, r_factors, counts)
