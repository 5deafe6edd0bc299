"""Standard errors of endpoints that share their rows: by the spread of resamples, or none."""

from __future__ import annotations

import numpy as np

from sklearn_implicitreg.regression.inference import Inference, packaged
from sklearn_implicitreg.regression.solve import Solution
from sklearn_implicitreg.regression.system import Array

__all__ = ["MIN_RESAMPLES", "one_data_set", "spread"]

MIN_RESAMPLES = 4  # as with clusters: a spread of fewer says next to nothing


def spread(solution: Solution, coef_path: Array, confidence_level: float) -> Inference:
    """Bootstrap: covariance of the coefficients that the resamples have each by itself.

    What resamples say together has an error of its own, of their number; leaving one out would
    tell that, and goes to zero with more of them. The spread is about the rows, and does not.

    Parameters
    ----------
    solution : Solution
        Of all resamples together.
    coef_path : ndarray of shape (M, k)
        Coefficients of every resample by itself; NaN where it has too few equations.
    confidence_level : float
        Of ``conf_int``, which is normal: the coefficient plus and minus t(M - 1) standard errors.

    Returns
    -------
    Inference
        Every standard error NaN where fewer than four resamples have coefficients.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 6 and 12.

    Examples
    --------
    >>> from sklearn_implicitreg.regression.solve import solve
    >>> from sklearn_implicitreg.regression.system import r_factor
    >>> together = solve(r_factor(np.ones((5, 1)), np.arange(5.0)), 5)
    >>> spread(together, np.arange(5.0)[:, None], 0.95).std_err.round(4).tolist()
    [1.5811]
    """
    alone = coef_path[np.isfinite(coef_path).all(axis=1)]
    if len(alone) < MIN_RESAMPLES:
        return _without(
            solution,
            confidence_level,
            f"{len(alone)} resamples have coefficients by themselves, fewer than {MIN_RESAMPLES}",
        )
    known = np.flatnonzero(solution.active)
    cov = np.atleast_2d(np.cov(alone[:, known], rowvar=False))
    df = float(len(alone) - 1)
    description = (
        f"standard deviation over {len(alone)} resamples of the same rows (bootstrap), t({df:g})"
    )
    return packaged(solution, cov, known, df, confidence_level, "bootstrap", description)


def one_data_set(solution: Solution, confidence_level: float) -> Inference:
    """No standard errors: models that were trained on the same rows are no sample.

    Parameters
    ----------
    solution : Solution
        Of all models together.
    confidence_level : float
        Of the intervals, which are NaN.

    Returns
    -------
    Inference
        Every standard error NaN.

    Examples
    --------
    >>> from sklearn_implicitreg.regression.solve import solve
    >>> from sklearn_implicitreg.regression.system import r_factor
    >>> together = solve(r_factor(np.ones((5, 1)), np.arange(5.0)), 5)
    >>> one_data_set(together, 0.95).std_err.tolist()
    [nan]
    """
    return _without(
        solution,
        confidence_level,
        "endpoints share their rows and are no resamples of them, so that they are no independent "
        "sample; retrain on resamples (endpoints), or name a covariance over equations",
    )


def _without(solution: Solution, level: float, reason: str) -> Inference:
    none = np.empty((0, 0)), np.flatnonzero(solution.active)[:0]
    return packaged(solution, *none, np.nan, level, "none", f"no standard errors: {reason}")
