"""Which coefficients are zero: those that can be left out at no cost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import fdtrc

from sklearn_implicitreg.regression.solve import Solution, norm_of, solve
from sklearn_implicitreg.regression.system import Array, System
from sklearn_implicitreg.regression.verdict import is_explained

Mask = npt.NDArray[np.bool_]

_LEVEL = 1e-6  # of tests: what a solver leaves is no sample, and five standard errors occur
_REWARD = 0.05  # level of the test of a negative coefficient
_LITTLE = 0.01  # of the target's norm: R2 falls by 1e-4, of the .01 that a supported family leaves


def with_zeros(  # noqa: PLR0913
    system: System,
    solution: Solution,
    *,
    rounding: float,
    pvalues: Array,
    at_end: bool,
    signal: bool,
) -> Array:
    """Coefficients, zero where they can be: the others are solved for again without them.

    A coefficient is zero if leaving it out moves what is fitted by no more than rounding. Where
    the weights are an endpoint and the fit is explained, also by no more than what the solver
    left of the same equations, unless a test rejects it. Without signal a negative one is zero
    that no test tells from it: what a solver leaves has either sign.
    """
    coef = np.array(solution.coef)
    if not np.isfinite(coef).all():
        return coef
    firm = (pvalues < _LEVEL) | (not at_end or not is_explained(solution))
    chance = (coef < 0) & ~((pvalues < _REWARD) | signal)
    coef = _without(system, solution, coef, firm, rounding)
    return np.where(chance, 0.0, coef)


def _without(system: System, solution: Solution, coef: Array, firm: Mask, rounding: float) -> Array:
    """Coefficients, without those that can be left out at no cost."""
    if (firm & (np.abs(coef) > rounding * solution.reach)).all():
        return coef  # none can be left out
    fixed = ~solution.active
    fixed[list(solution.dependent)] = True
    for columns, part in system.components:
        reach, own = solution.reach[columns], (firm[columns], fixed[columns])
        coef[columns] = _of_part(part, coef[columns], reach, *own, rounding)
    return coef


def _of_part(  # noqa: PLR0913
    part: System, full: Array, reach: Array, firm: Mask, fixed: Mask, rounding: float
) -> Array:
    """Coefficients of a part, after as many as can be were left out, the least costly first."""
    upper, df = part.r_factor, part.n_equations - len(full)
    design, target = upper[:, :-1], upper[:, -1]
    left = norm_of(target - design @ full)
    most = max(left, _LITTLE * norm_of(target))
    used, found, kept = np.flatnonzero(full), full, ~fixed & (full != 0)
    while kept.any():
        cost = np.full_like(full, np.inf)
        np.divide(np.abs(found), reach, out=cost, where=kept)  # of leaving out this one
        first = int(np.argmin(cost))
        if cost[first] > max(rounding, most):
            break
        used, without, kept[first] = used[used != first], np.zeros_like(full), False
        if used.size:
            again = solve(upper[:, [*used, -1]], part.n_equations)
            without[used], reach = again.coef, np.ones_like(full)
            reach[used] = again.reach
        change, q = norm_of(design @ (full - without)), np.count_nonzero(full) - used.size
        if change > rounding:
            if firm[first] or change > most or df < 1 or not left:
                break
            if not fdtrc(q, df, (change / left) ** 2 * df / q) >= _LEVEL:
                break
        found = without
    return found
