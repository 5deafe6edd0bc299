"""R-squared of equations that the coefficients were not chosen by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.solve import solve
from sklearn_implicitreg.regression.system import Array, merge, r_factor


def r2_of_left_out(equations: Equations, n_splits: int, seed: int, positive: bool = False) -> float:
    """R-squared over folds of equations, each predicted by least squares on the others."""
    system = equations.in_r2
    if system.n_equations < n_splits * 2:
        raise ValueError(
            f"Expected at least two equations in each of {n_splits} parts, got "
            f"{system.n_equations}; use fewer."
        )
    folds = np.random.default_rng(seed).permutation(np.arange(system.n_equations) % n_splits)
    parts: list[list[Array]] = [[] for _ in range(n_splits)]
    start = 0
    for _, _, design, target in system.single("to leave some out"):
        own = folds[start : start + len(target)]
        start += len(target)
        for fold, part in enumerate(parts):
            chosen = own == fold
            if chosen.any():
                part.append(r_factor(design[chosen], target[chosen]))
    uppers = [merge(part) for part in parts]
    free = np.isin(system.term_names, equations.nuisance)
    left = whole = 0.0
    for fold, upper in enumerate(uppers):
        rest = merge([own for i, own in enumerate(uppers) if i != fold])
        coef = _coefficients(rest, free, positive)
        left += float(np.square(upper[:, -1] - upper[:, :-1] @ coef).sum())
        whole += float(np.square(upper[:, -1]).sum())
    return 1 - left / whole if whole else 0.0


def _coefficients(upper: Array, free: npt.NDArray[np.bool_], positive: bool) -> Array:
    """Coefficients of the columns, of which the free ones may have any sign."""
    if not positive:
        return solve(upper, len(upper)).coef
    k = len(free)
    both = np.column_stack([upper[:, :k], -upper[:, :k][:, free], upper[:, k]])
    found = solve(both, len(both), positive=True).coef
    found[:k][free] -= found[k:]
    return found[:k]
