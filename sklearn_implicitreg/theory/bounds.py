"""How far estimated coefficients and penalties can be from true ones, and what could be seen."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats
from scipy.linalg import qr, solve_triangular, svdvals
from scipy.optimize import brentq

from sklearn_implicitreg.problem.parameters import (
    FLAG,
    NOTHING,
    as_array,
    as_numbers,
    checked,
    choice,
    integer,
    number,
    shown,
)
from sklearn_implicitreg.theory.inputs import Array, as_matrix, as_vector

_SIZE = number(least=0)
_CHANCE = number(above=0, below=1)
_NODES = 400  # of a quadrature


class _Errors(NamedTuple):
    """A design in orthonormal columns, and the covariance of the errors in them."""

    upper: Array  # (k, k), R of the design
    inside: Array  # (k, k), covariance of Q' errors
    variance: float  # of one equation

    @property
    def inflation(self) -> float:
        """Largest variance along a direction of the columns over that of one equation."""
        largest = float(np.linalg.eigvalsh(self.inside)[-1])
        return largest / self.variance if self.variance else 1.0

    @property
    def covariance(self) -> Array:
        """Covariance of the coefficients."""
        half = solve_triangular(self.upper, self.inside)
        return np.asarray(solve_triangular(self.upper, half.T))


@checked(noise=NOTHING | _SIZE, alpha=_CHANCE, bias=_SIZE, form=choice("sharp", "printed"))
def distance_bound(  # noqa: PLR0913
    design: npt.ArrayLike,
    target: npt.ArrayLike | None = None,
    *,
    noise: float | None = None,
    error_covariance: Any = None,
    groups: npt.ArrayLike | None = None,
    alpha: float = 0.05,
    bias: float = 0.0,
    form: str = "sharp",
) -> float:
    r"""Bound on the Euclidean distance of all estimated coefficients to the true ones.

    The target is ``G coef* + delta + xi`` with the design G, errors xi that are sub-Gaussian with
    the proxy :math:`\sigma^2 \Sigma`, and a misfit delta. With
    :math:`M = A^{-1} G' \Sigma G A^{-1}`, :math:`A = G'G` and :math:`l = \log(1/\alpha)`, with
    probability at least ``1 - alpha`` the distance is at most

    .. math::
        \sigma \sqrt{\operatorname{tr} M + 2 \sqrt{l \operatorname{tr} M^2} + 2 \|M\| l}
        + \frac{\|G'\delta\|}{\lambda_{\min}(A)} ,

    or as printed in the paper, where the first summand is

    .. math::
        2 \sigma \frac{\sqrt{\lambda_{\max}(A)}}{\lambda_{\min}(A)}
        \sqrt{2 \rho\, (k \log 5 + l)} , \quad \rho = \lambda_{\max}(P_G \Sigma P_G) .

    Parameters
    ----------
    design : array-like of shape (m, k)
        Gradients of the terms, a row for each equation: ``data`` of
        :func:`sklearn_implicitreg.equations`. Without correlated errors and with ``noise`` the R
        factor of its QR decomposition says the same.
    target : array-like of shape (m,), default=None
        What the residuals are of, which show the noise where it is not given.
    noise : float, default=None
        Standard deviation sigma of the error of one equation; None estimates it from the residuals.
    error_covariance : array-like or sparse matrix of shape (m, m), or (m,), default=None
        Sigma, or its diagonal; the identity by default.
    groups : array-like of shape (m,), default=None
        Labels of clusters of equations whose errors are correlated, such as ``groups`` of
        :func:`sklearn_implicitreg.equations`; ``sigma^2 Sigma`` is then estimated from the
        residuals, by the jackknife over clusters.
    alpha : float, default=0.05
        Probability that the bound may fail with.
    bias : float, default=0.0
        Norm of ``G' delta``; in the paper it is divided by m.
    form : {"sharp", "printed"}, default="sharp"
        Which of both.

    Returns
    -------
    bound : float
        In the units of the coefficients.

    Raises
    ------
    ValueError
        For dependent columns, or where nothing says what the noise is.

    See Also
    --------
    coefficient_bounds : The same for each coefficient.

    References
    ----------
    Rudoler, Tan, Hooker, Kording (2026), Theorem 1; Hsu, Kakade, Zhang (2012), *A tail inequality
    for quadratic forms of subgaussian random vectors*, Electronic Communications in Probability 17.

    Examples
    --------
    >>> design = np.repeat(np.eye(2), 50, axis=0)
    >>> round(distance_bound(design, noise=0.1), 4)
    0.0508
    >>> round(distance_bound(design, noise=0.1, form="printed"), 4)
    0.0997
    """
    errors = _errors(design, target, noise, error_covariance, groups)
    exponent, sizes = np.log(1 / alpha), svdvals(errors.upper)
    if form == "printed":
        rho = errors.inflation * errors.variance * (len(sizes) * np.log(5) + exponent)
        random = 2 * sizes[0] / sizes[-1] ** 2 * np.sqrt(2 * rho)
    else:
        cov = errors.covariance
        spread = np.sqrt(exponent) * np.linalg.norm(cov)
        largest = np.linalg.norm(cov, 2)
        random = np.sqrt(np.trace(cov) + 2 * spread + 2 * largest * exponent)
    return float(random + bias / sizes[-1] ** 2)


@checked(noise=NOTHING | _SIZE, alpha=_CHANCE)
def coefficient_bounds(  # noqa: PLR0913
    design: npt.ArrayLike,
    target: npt.ArrayLike | None = None,
    *,
    noise: float | None = None,
    error_covariance: Any = None,
    groups: npt.ArrayLike | None = None,
    alpha: float = 0.05,
) -> Array:
    r"""Bound on the distance of each estimated coefficient to the true one.

    The standard error times :math:`\sqrt{2 \log(2/\alpha)}`, which each coefficient alone exceeds
    with probability at most alpha where errors are sub-Gaussian.

    Parameters
    ----------
    design, target, noise, error_covariance, groups
        As of :func:`distance_bound`.
    alpha : float, default=0.05
        Probability that each bound may fail with; divided by k, that one of them may.

    Returns
    -------
    bounds : ndarray of shape (k,)

    Raises
    ------
    ValueError
        For dependent columns, or where nothing says what the noise is.

    References
    ----------
    Boucheron, Lugosi, Massart (2013), *Concentration Inequalities*, section 2.3.

    Examples
    --------
    >>> coefficient_bounds(np.repeat(np.eye(2), 50, axis=0), noise=0.1).round(4)
    array([0.0384, 0.0384])
    """
    errors = _errors(design, target, noise, error_covariance, groups)
    root = np.sqrt(np.diagonal(errors.covariance))
    return np.asarray(root * np.sqrt(2 * np.log(2 / alpha)))


def error_inflation(
    design: npt.ArrayLike,
    target: npt.ArrayLike | None = None,
    *,
    error_covariance: Any = None,
    groups: npt.ArrayLike | None = None,
) -> float:
    r"""How much correlated errors inflate the variance along the columns of a design.

    The largest eigenvalue of :math:`P_G \Sigma P_G`, where :math:`P_G` projects on the columns of
    the design; 1 for uncorrelated errors of one variance.

    Parameters
    ----------
    design, target, error_covariance, groups
        As of :func:`distance_bound`; with ``groups`` an estimate.

    Returns
    -------
    inflation : float

    Raises
    ------
    ValueError
        For dependent columns, or for ``groups`` without ``target``.

    References
    ----------
    Rudoler, Tan, Hooker, Kording (2026), Assumption 1.

    Examples
    --------
    >>> alike = np.full((4, 4), 0.5) + 0.5 * np.eye(4)
    >>> round(error_inflation(np.ones((4, 1)), error_covariance=alike), 10)
    2.5
    """
    noise = 1.0 if groups is None else None
    return _errors(design, target, noise, error_covariance, groups).inflation


def effective_parameters(
    design: npt.ArrayLike,
    target: npt.ArrayLike | None = None,
    *,
    error_covariance: Any = None,
    groups: npt.ArrayLike | None = None,
) -> float:
    r"""Number of equations with independent errors that would say as much as these.

    The number of equations over :func:`error_inflation`, :math:`p_{\rm eff} = p/\rho`: the error
    of k coefficients is of the order :math:`\sqrt{k / p_{\rm eff}}`.

    Parameters
    ----------
    design, target, error_covariance, groups
        As of :func:`distance_bound`; with ``groups`` an estimate.

    Returns
    -------
    n : float

    Raises
    ------
    ValueError
        For dependent columns, or for ``groups`` without ``target``.

    References
    ----------
    Rudoler, Tan, Hooker, Kording (2026), section 2.2 and Theorem 1.

    Examples
    --------
    >>> alike = np.full((4, 4), 0.5) + 0.5 * np.eye(4)
    >>> round(effective_parameters(np.ones((4, 1)), error_covariance=alike), 10)
    1.6
    """
    inflation = error_inflation(design, target, error_covariance=error_covariance, groups=groups)
    return len(as_numbers("design", design)) / inflation


@checked(
    n_equations=integer(1),
    noise=_SIZE,
    log_covering=_SIZE,
    alpha=_CHANCE,
    radius=_SIZE,
    misfit=_SIZE,
    inflation=number(above=0),
)
def gradient_bound(  # noqa: PLR0913
    n_equations: int,
    *,
    noise: float,
    log_covering: float,
    alpha: float = 0.05,
    radius: float = 0.0,
    misfit: float = 0.0,
    inflation: float = 1.0,
) -> float:
    r"""Bound on the mean squared error of a gradient that was fitted from any class of penalties.

    The target is ``g* + delta + xi`` with a gradient g* of the class, a misfit delta, and errors xi
    that are sub-Gaussian with the proxy :math:`\sigma^2 \Sigma`; norms are root mean squares over
    the p equations. With :math:`l = \log(1/\alpha)` and

    .. math::
        a = \sigma \sqrt{2 \rho (N + l) / p} , \quad
        c = \sigma (1 + \sqrt{2 \rho l / p}) , \quad b = a + \|\delta\| ,

    with probability at least ``1 - alpha`` the gradient of the class that is nearest to the target
    has :math:`\|\hat g - g^*\|^2 \le (b + \sqrt{b^2 + 2 \epsilon (a + c)})^2`. Where epsilon is
    not zero, two events may fail, and l is :math:`\log(2/\alpha)`. The paper leaves the constants
    open; these follow from its proof.

    Parameters
    ----------
    n_equations : int
        Equations, p.
    noise : float
        Standard deviation sigma of the error of one equation.
    log_covering : float
        N: log of the number of gradients of the class that come within ``radius`` of all others.
    alpha : float, default=0.05
        Probability that the bound may fail with.
    radius : float, default=0.0
        epsilon, 0 for a finite class.
    misfit : float, default=0.0
        Root mean square of delta.
    inflation : float, default=1.0
        rho: largest eigenvalue of Sigma, whose diagonal has the mean 1; for a finite class its
        largest quadratic form along a difference of two gradients.

    Returns
    -------
    bound : float

    Raises
    ------
    ValueError
        For a number that is out of its range.

    References
    ----------
    Rudoler, Tan, Hooker, Kording (2026), Theorem 2.

    Examples
    --------
    >>> round(gradient_bound(1000, noise=0.1, log_covering=np.log(50)), 6)
    0.000553
    >>> round(gradient_bound(1000, noise=0.1, log_covering=np.log(50), radius=0.001), 6)
    0.001035
    """
    exponent = np.log((2 if radius else 1) / alpha)
    along = noise * np.sqrt(2 * inflation * (log_covering + exponent) / n_equations)
    whole = noise * (1 + np.sqrt(2 * inflation * exponent / n_equations))
    b = along + misfit
    return float((b + np.sqrt(b**2 + 2 * radius * (along + whole))) ** 2)


@checked(df=number(least=1) | choice(np.inf), alpha=_CHANCE, power=_CHANCE)
def smallest_detectable(
    std_err: npt.ArrayLike, *, df: float = np.inf, alpha: float = 0.05, power: float = 0.8
) -> Array:
    r"""Smallest coefficients that a two-sided t test would find with a given probability.

    The non-centrality at which :math:`|t_{\rm df}|` exceeds its critical value with probability
    ``power``, times the standard error. A smaller penalty may be there and not be seen.

    Parameters
    ----------
    std_err : array-like of shape (k,)
        Standard errors, such as ``std_err_`` of a fit.
    df : float, default=inf
        Degrees of freedom of these.
    alpha : float, default=0.05
        Level of the test.
    power : float, default=0.8
        Probability to reject zero, above alpha.

    Returns
    -------
    coef : ndarray of shape (k,)
        In the units of the coefficients; NaN where there is no standard error.

    Raises
    ------
    ValueError
        If the power is not above alpha, or a standard error is negative.

    See Also
    --------
    sklearn_implicitreg.ImplicitRegularizationEstimator.smallest_detectable : Of a fit.

    References
    ----------
    Cohen (1988), *Statistical Power Analysis for the Behavioral Sciences*, chapter 2.

    Examples
    --------
    >>> smallest_detectable([0.01, 0.002]).round(4)
    array([0.028 , 0.0056])
    >>> smallest_detectable([0.01, 0.002], df=5).round(4)
    array([0.0351, 0.007 ])
    """
    errors = as_numbers("std_err", std_err)
    if (errors < 0).any():
        raise ValueError(f"Expected std_err of numbers >= 0, got {shown(std_err)}.")
    if power <= alpha:
        raise ValueError(
            f"Expected power > alpha, got power={power} and alpha={alpha}: a coefficient of zero "
            "is found with probability alpha."
        )
    return errors * _non_centrality(float(df), alpha, power)


@checked(
    n_steps=integer(1),
    variation=_SIZE,
    increment=_SIZE,
    alpha=_CHANCE,
    log_covering=_SIZE,
    radius=_SIZE,
    noise=_SIZE,
    fixed_target=FLAG,
)
def trajectory_bound(  # noqa: PLR0913
    n_steps: int,
    *,
    variation: float,
    increment: float,
    alpha: float = 0.05,
    log_covering: float = 0.0,
    radius: float = 0.0,
    noise: float = 0.0,
    fixed_target: bool = True,
) -> float:
    r"""Bound on what noise along one path costs the penalty that was fitted to it.

    With targets :math:`Y_t` of mean :math:`m_t` given the past and noise
    :math:`\xi_t = Y_t - m_t`, let E be the mean over T steps of
    :math:`\|m_t - \nabla R(\theta_t)\|^2_{W_t}`, and ``R^`` the penalty of a class that fits the
    targets best. With probability at least ``1 - alpha``, E of ``R^`` is above E of a penalty
    ``R*`` of the class by at most

    .. math::
        \tfrac1T \Big[\sqrt{2 v (N + \log\tfrac1\alpha)}
        + \tfrac b3 (N + \log\tfrac1\alpha)\Big]
        + 2 \epsilon \tfrac1T \sum_t \|W_t \xi_t\| .

    R* must be fixed in advance, such as the penalty that was put in on purpose; for the minimizer
    of E pairs of penalties are covered, by 2N, and the last term counts twice.

    Parameters
    ----------
    n_steps : int
        Steps of the path, T.
    variation : float
        v: no penalty of the class has a sum over the steps of the variances, given the past, of
        ``D_t = 2 <W xi_t, grad R - grad R*>`` above it.
    increment : float
        b: no ``|D_t|`` is above it.
    alpha : float, default=0.05
        Probability that the bound may fail with.
    log_covering : float, default=0.0
        N: log of the number of penalties whose gradients come within ``radius`` of all others.
    radius, noise : float, default=0.0
        epsilon, 0 for a finite class, and mean over the steps of the norm of ``W xi_t``.
    fixed_target : bool, default=True
        Whether R* was fixed in advance.

    Returns
    -------
    bound : float

    Raises
    ------
    ValueError
        For a number that is out of its range.

    References
    ----------
    Rudoler, Tan, Hooker, Kording (2026), Theorem 3; Freedman (1975), Annals of Probability 3.

    Examples
    --------
    >>> round(trajectory_bound(100, variation=4.0, increment=0.5), 4)
    0.0539
    >>> round(trajectory_bound(100, variation=4.0, increment=0.5, log_covering=3.0), 4)
    0.0793
    """
    covered = 1 if fixed_target else 2  # penalties at a time
    exponent = covered * log_covering + np.log(1 / alpha)
    sums = np.sqrt(2 * variation * exponent) + increment / 3 * exponent
    return float(sums / n_steps + covered * 2 * radius * noise)


def _errors(
    design: npt.ArrayLike,
    target: npt.ArrayLike | None,
    noise: float | None,
    error_covariance: Any,
    groups: npt.ArrayLike | None,
) -> _Errors:
    """What the errors of the equations are inside the columns of the design."""
    matrix = as_matrix("design", design)
    m, k = matrix.shape
    basis, upper = _decomposed(matrix)
    residual = None
    if target is not None:
        values = as_vector("target", target, m)
        residual = values - basis @ (basis.T @ values)
    if groups is not None:
        if residual is None or noise is not None or error_covariance is not None:
            raise ValueError(
                "Expected groups with target, and without noise and error_covariance: the noise of "
                "groups is estimated from the residuals of the target."
            )
        return _of_groups(basis, upper, residual, groups)
    total, inside = float(m), np.eye(k)
    if error_covariance is not None:
        total, inside = _inside(basis, error_covariance)
    if noise is not None:
        variance = noise**2
    elif residual is None or m <= k:
        raise ValueError(
            f"Expected noise=, or a target of more than {k} equations whose residuals show it, got "
            f"{m} equations {'without' if residual is None else 'with'} a target."
        )
    else:  # the expected sum of squares is sigma^2 tr((1 - P) Sigma)
        free = total - float(np.trace(inside))
        variance = float(residual @ residual) / free if free > 0 else 0.0
    return _Errors(upper, variance * inside, variance)


def _decomposed(matrix: Array) -> tuple[Array, Array]:
    """Orthonormal columns and R factor of a design; ValueError where columns are dependent."""
    norms = np.linalg.norm(matrix, axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    basis, upper = qr(matrix / scale, mode="economic")
    sizes = svdvals(upper)
    if min(norms) == 0 or len(upper) < len(norms) or sizes[-1] <= 1e-12 * sizes[0]:
        raise ValueError(
            f"Expected linearly independent columns of the design, got {matrix.shape[1]} columns "
            f"of {len(matrix)} equations that are not; leave terms out."
        )
    return basis, upper * scale


def _inside(basis: Array, error_covariance: Any) -> tuple[float, Array]:
    """Trace of Sigma, and Sigma in the columns of the design."""
    m = len(basis)
    if sparse.issparse(error_covariance):
        sigma = error_covariance.tocsr()
    else:
        sigma = as_numbers("error_covariance", error_covariance)
    if sigma.shape == (m,):
        sigma = sparse.diags_array(sigma).tocsr()
    if sigma.shape != (m, m):
        raise ValueError(
            f"Expected error_covariance of shape ({m}, {m}), or ({m},) for its diagonal, got shape "
            f"{sigma.shape}."
        )
    inside, total = np.asarray(basis.T @ (sigma @ basis)), float(sigma.trace())
    gap = abs(sigma - sigma.T).max()
    least = np.linalg.eigvalsh(inside)[0] if np.isfinite(inside).all() else -np.inf
    if not (gap <= 1e-8 * abs(sigma).max() and least >= -1e-8 * abs(total) and total > 0):
        raise ValueError(
            "Expected error_covariance to be a covariance, got numbers that are not finite, not "
            "symmetric or not positive semidefinite."
        )
    return total, (inside + inside.T) / 2


def _of_groups(
    basis: Array, upper: Array, residual: Array, groups: npt.ArrayLike | None
) -> _Errors:
    """Errors that are correlated within groups: the jackknife that leaves out one at a time."""
    m, k = basis.shape
    labels, codes = np.unique(as_array(groups), return_inverse=True)
    if codes.shape != (m,) or len(labels) < 2 or m <= k:
        raise ValueError(
            f"Expected groups as {m} labels of at least 2 clusters, and more equations than "
            f"coefficients, got {len(labels)} clusters, labels of shape {codes.shape} and {m} "
            f"equations for {k} coefficients."
        )
    away = np.empty((len(labels), k))
    for i in range(len(labels)):
        own = basis[codes == i]
        rest = np.eye(k) - own.T @ own
        if np.linalg.eigvalsh(rest)[0] <= 1e-12:
            raise ValueError(
                f"Expected columns with support in several clusters, got one that group "
                f"{labels[i]!r} alone determines; leave groups out."
            )
        away[i] = np.linalg.solve(rest, own.T @ residual[codes == i])
    inside = (len(labels) - 1) / len(labels) * (away.T @ away)
    return _Errors(upper, inside, float(residual @ residual) / (m - k))


def _non_centrality(df: float, alpha: float, power: float) -> float:
    """Mean of a t statistic that exceeds its critical value with a given probability."""
    # P(|z + shift| > critical s), s^2 = chi^2 / df, by quadrature over the quantiles of s: the
    # non-central t distribution of SciPy has no numbers far out.
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    quantiles = (nodes + 1) / 2
    s = np.ones(_NODES) if np.isinf(df) else np.sqrt(stats.chi2.ppf(quantiles, df) / df)
    edge = s * (stats.norm.isf(alpha / 2) if np.isinf(df) else stats.t.isf(alpha / 2, df))

    def lacking(shift: float) -> float:
        found = stats.norm.sf(edge - shift) + stats.norm.cdf(-edge - shift)
        return float(found @ weights / 2) - power

    return float(brentq(lacking, 0.0, edge[-1] + 40.0, xtol=1e-12))
