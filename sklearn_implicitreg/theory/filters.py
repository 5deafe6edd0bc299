"""Spectral filters of ridge, principal components, boosting and conjugate gradients.

Every argument is in the units of ``L = (1/n) |y - X theta|^2``: a coefficient multiplies
``|theta|^2`` beside L.
"""

from __future__ import annotations

import math
from functools import partial

from sklearn_implicitreg.theory import responses
from sklearn_implicitreg.theory.checks import check_positive, check_whole
from sklearn_implicitreg.theory.spectral import SpectralFilter

__all__ = ["conjugate_gradient", "l2_boosting", "principal_components", "ridge"]


def ridge(coef: float) -> SpectralFilter:
    """Ridge regression: ``f = s / (s + coef)``.

    Parameters
    ----------
    coef : float
        Coefficient of ``|theta|^2`` beside L; ``alpha / n`` of scikit-learn's ``Ridge``.

    Returns
    -------
    filter : SpectralFilter
        For :func:`implicit_penalty`.

    Raises
    ------
    ValueError
        If the coefficient is not positive and finite.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import ridge
    >>> ridge(0.5).values([1.5]), ridge(0.5).penalty([1.5])
    (array([0.75]), array([0.5]))
    """
    check_positive("coef", coef)
    return SpectralFilter(f"ridge(coef={coef:g})", partial(responses.shrunk, coef=coef))


def principal_components(k: int) -> SpectralFilter:
    """Regression on the k leading principal components of X, taken as it is.

    The components are the eigenvectors of ``X'X/n``: center X first if they shall be those of the
    covariance. The implied penalty is a constraint: zero on the space kept, and the directions
    dropped beside it.

    Parameters
    ----------
    k : int
        Number of components.

    Returns
    -------
    filter : SpectralFilter
        For :func:`implicit_penalty`.

    Raises
    ------
    ValueError
        If k is not a whole number of at least 1.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import principal_components
    >>> principal_components(1).values([2.0, 1.0])
    array([1., 0.])
    """
    check_whole("k", k)
    return SpectralFilter(
        f"principal_components(k={k})", partial(responses.kept, k=int(k)), drops=True
    )


def l2_boosting(rate: float, n_steps: int, learner: str | SpectralFilter = "ols") -> SpectralFilter:
    """L2 boosting of a linear base learner: ``f = 1 - (1 - rate * f_learner)^t``.

    Parameters
    ----------
    rate : float
        Share of a learner's fit that is added, above 0 and at most 1.
    n_steps : int
        Number of learners.
    learner : "ols" or SpectralFilter, default="ols"
        Base learner: least squares of minimum norm, or a filter such as ``ridge(coef)``; with
        ``rate=1`` that is iterated ridge.

    Returns
    -------
    filter : SpectralFilter
        For :func:`implicit_penalty`.

    Raises
    ------
    ValueError
        If an argument is out of its range, or the learner is none that has a filter, such as
        componentwise least squares.

    References
    ----------
    Bühlmann and Yu (2003), *Boosting with the L2 loss*, JASA 98.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import l2_boosting, ridge
    >>> l2_boosting(0.5, 2).values([3.0]), l2_boosting(1.0, 2, ridge(1.0)).values([3.0])
    (array([0.75]), array([0.9375]))
    """
    if not 0 < rate <= 1:
        raise ValueError(f"Expected 0 < rate <= 1, got {rate!r}.")
    check_whole("n_steps", n_steps)
    if isinstance(learner, str) and learner == "componentwise":
        raise ValueError(
            "Expected a learner that has a spectral filter, got 'componentwise': which column it "
            "takes depends on y, and no quadratic penalty gives its weights."
        )
    if isinstance(learner, SpectralFilter):
        if learner.needs_y or learner.drops:
            raise ValueError(f"Expected a learner that is smooth in X alone, got {learner.name}.")
        name, base, limit = learner.name, learner.response, learner.limit
    elif isinstance(learner, str) and learner == "ols":
        name, base, limit = "'ols'", responses.solved, math.inf
    else:
        raise ValueError(
            f"Expected learner='ols' or a filter such as ridge(coef), got {learner!r}."
        )
    response = partial(responses.boosted, rate=rate, n_steps=int(n_steps), base=base)
    return SpectralFilter(f"l2_boosting({rate:g}, {n_steps}, {name})", response, limit)


def conjugate_gradient(k: int) -> SpectralFilter:
    """Steps of conjugate gradients on L, which are partial least squares with k components.

    What is left is ``prod_j (1 - s / ritz_j)`` over the Ritz values of ``X'X/n`` on the Krylov
    space of ``X'y/n``: the filter holds for the given y only.

    Parameters
    ----------
    k : int
        Number of steps, or of components.

    Returns
    -------
    filter : SpectralFilter
        For :func:`implicit_penalty` with ``y=``.

    Raises
    ------
    ValueError
        If k is not a whole number of at least 1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_implicitreg.theory import conjugate_gradient, implicit_penalty
    >>> X, y = np.diag([1.0, 2.0]), np.array([1.0, 1.0])
    >>> implicit_penalty(X, conjugate_gradient(2), y=y).theta()
    array([1. , 0.5])
    """
    check_whole("k", k)
    return SpectralFilter(
        f"conjugate_gradient(k={k})", partial(responses.krylov, k=int(k)), needs_y=True
    )
