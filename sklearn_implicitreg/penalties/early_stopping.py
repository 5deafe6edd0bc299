"""The penalty of early stopping after an unknown number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import least_squares
from scipy.stats import t as student_t

from sklearn_implicitreg.penalties.structured import (
    Array,
    Structured,
    StructuredPenalty,
    StructuredSolution,
    checked_endpoints,
    unexplained,
)
from sklearn_implicitreg.problem import Problem, Sampling
from sklearn_implicitreg.theory import early_stopping_eigenvalues, early_stopping_slopes

__all__ = ["EarlyStopping"]

_N_STARTS = 200
_LAST_LOG = 700.0  # of the largest number whose exponential is finite
_EPS = float(np.finfo(np.float64).eps)
_MIN_CLUSTERS = 4  # endpoints from which their differences give an interval
_INTERVALS: dict[Sampling, str] = {
    "data sets": "is for other data sets, by leaving out each endpoint in turn",
    "resamples": "is for other rows, by the standard deviation of the answers of single resamples",
    "one data set": "is by the misfit, how far the equations are from any number of steps; it does "
    "not cover the noise in the labels",
}


class EarlyStopping(Structured):
    """The penalty that gradient descent from zero leaves after an unknown number of steps.

    For a quadratic loss with Hessian ``2 S = 2 V diag(s) V'`` it is ``theta' Lambda_t theta``
    with ``Lambda_t = V diag(s / ((1 - 2 lr s)^-t - 1)) V'``. ``coef_[0]`` is t: the number of
    gradient steps that the fit is worth, whatever it was trained by. Parameters out of scope,
    such as an intercept, are profiled out of the Hessian.

    Parameters
    ----------
    lr : float, optional
        Step size that multiplies the gradient of the mean loss. By default the flow
        (``lr -> 0``): the unknown is then the time ``lr * t``, the only product identified.
    shared : bool, default=True
        One number for all endpoints; otherwise one each.

    See Also
    --------
    sklearn_implicitreg.theory.early_stopping_eigenvalues : The eigenvalues of the penalty.

    Notes
    -----
    The interval is on the scale of log t. With four or more endpoints that share their t it comes
    from leaving out one at a time if they are of independent data sets, and from the standard
    deviation of their single answers if they are resamples. Otherwise it comes from the misfit:
    how far the equations are from any t.

    References
    ----------
    Ali, Kolter and Tibshirani (2019), *A continuous-time view of early stopping for least squares
    regression*, AISTATS. Their step size, on half of the loss, is ``2 lr``.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace as Namespace
    >>> curvature, theta, moment = np.diag([2.0, 8.0]), np.zeros(2), np.array([1.0, 2.0])
    >>> for _ in range(30):
    ...     theta = theta - 0.01 * (curvature @ theta - moment)
    >>> problem = Namespace(hessian=lambda: curvature, params={"coef": theta})
    >>> target = moment - curvature @ theta
    >>> found = EarlyStopping(lr=0.01).solve(theta[:, None], target[:, None], [problem])
    >>> list(found.term_names), found.coef.round(6).tolist()
    (['steps'], [30.0])
    """

    def __init__(self, lr: float | None = None, shared: bool = True):
        self.lr = lr
        self.shared = shared

    def solve(
        self,
        thetas: Array,
        targets: Array,
        problems: Sequence[Problem] | None = None,
        *,
        confidence_level: float = 0.95,
        sampling: Sampling = "data sets",
    ) -> StructuredSolution:
        """Nonlinear least squares over log t, from the best of a grid.

        Parameters
        ----------
        thetas : ndarray of shape (p, M)
            Parameters in scope of each endpoint.
        targets : ndarray of shape (p, M)
            Minus the gradients of the mean loss there.
        problems : sequence of M Problem
            For their Hessians.
        confidence_level : float, default=0.95
            Of the interval.
        sampling : {"data sets", "resamples", "one data set"}, default="data sets"
            How the endpoints were made; the interval depends on it.

        Returns
        -------
        StructuredSolution
            Its penalty is that of the first endpoint, by its own Hessian. ``coef`` is inf if no
            finite number of steps is best.

        Raises
        ------
        ValueError
            If no problems are given, a loss is not quadratic, an endpoint is zero (no step was
            taken), or ``2 lr s > 1`` for an eigenvalue.
        """
        if problems is None:
            raise ValueError(
                "Expected the endpoints' problems: EarlyStopping needs the curvature of their "
                "losses. Fit models with data instead of equations alone."
            )
        thetas, targets, shapes = checked_endpoints(thetas, targets, problems)
        if not np.abs(thetas).max(axis=0).all():
            raise ValueError(
                "Expected endpoints away from zero, got one at zero: no step was taken, and no "
                "finite penalty gives it."
            )
        views = _views(thetas, targets / 2, problems)
        groups = [views] if self.shared else [[view] for view in views]
        if len(groups[0]) < _MIN_CLUSTERS:
            sampling = "one data set"  # so few give an interval by the misfit alone
        fits = [_fit(group, self.lr, confidence_level, sampling) for group in groups]
        per_view = fits * len(views) if self.shared else fits
        fitted = np.column_stack(
            [2 * view.apply(self.lr, fit[0]) for view, fit in zip(views, per_view, strict=True)]
        )
        name = "time" if self.lr is None else "steps"
        names = (name,) if self.shared else tuple(f"{name}[{k}]" for k in range(len(fits)))
        coef = np.array([fit[0] for fit in fits])
        never = tuple(n for n, value in zip(names, coef, strict=True) if np.isinf(value))
        return StructuredSolution(
            coef=coef,
            term_names=names,
            fitted=fitted,
            rank=len(fits) - len(never),
            n_unknowns=len(fits),
            n_equations=int(thetas.size),
            conf_int=np.array([fit[1] for fit in fits]),
            dependent=never,
            notes=self._notes(sampling, unexplained(targets, fitted), never),
            penalty=StructuredPenalty(views[0].matrix(self.lr, per_view[0][0]), shapes),
        )

    def gradients_at(
        self, found: StructuredSolution, thetas: Array, problems: Sequence[Problem]
    ) -> Array:
        """Gradients after the fitted number of steps, by the curvature of each endpoint.

        Parameters
        ----------
        found : StructuredSolution
            What :meth:`solve` returned.
        thetas : ndarray of shape (p, M)
            Parameters in scope of each endpoint.
        problems : sequence of M Problem
            For their Hessians.

        Returns
        -------
        ndarray of shape (p, M)

        Raises
        ------
        ValueError
            If each endpoint has its own number of steps.
        """
        if len(found.coef) > 1:
            raise ValueError(
                f"Expected a number of steps that all endpoints share, got {len(found.coef)}: "
                "other endpoints have none of them; fit with shared=True."
            )
        if np.isnan(found.coef[0]):
            return np.zeros_like(thetas)  # there was no gradient to explain
        views = _views(thetas, thetas, problems)
        return np.column_stack([2 * view.apply(self.lr, float(found.coef[0])) for view in views])

    def _notes(self, sampling: Sampling, share: float, never: tuple[str, ...]) -> tuple[str, ...]:
        """Notes of the summary."""
        notes = [
            f"the interval {_INTERVALS[sampling]}",
            f"{share:.2g} of the squared gradient is left over",
        ]
        if self.lr is None:
            notes.append("time is lr times the number of steps: only the product is identified")
        if never:
            notes.append(f"no finite number of steps is best for {', '.join(never)}")
        return tuple(notes)


@dataclass(frozen=True)
class _View:
    """One endpoint in the eigenvectors of its curvature: ``lambda_i theta_i = target_i``."""

    s: Array
    vectors: Array
    theta: Array
    target: Array

    def apply(self, lr: float | None, steps: float) -> Array:
        """``Lambda_t theta`` in the coordinates of the parameters."""
        product: Array = self.vectors @ (_eigenvalues(self.s, lr, steps) * self.theta)
        return product

    def matrix(self, lr: float | None, steps: float) -> Array:
        """``Lambda_t``."""
        product: Array = (self.vectors * _eigenvalues(self.s, lr, steps)) @ self.vectors.T
        return product


def _eigenvalues(s: Array, lr: float | None, steps: float) -> Array:
    """Eigenvalues of the penalty; zero after infinitely many steps."""
    return early_stopping_eigenvalues(s, lr, steps) if np.isfinite(steps) else np.zeros_like(s)


def _views(thetas: Array, rhs: Array, problems: Sequence[Problem]) -> list[_View]:
    """Endpoints in the eigenvectors of their curvature, decomposed once where it repeats."""
    views: list[_View] = []
    hessian: Array | None = None
    for theta, target, problem in zip(thetas.T, rhs.T, problems, strict=True):
        own = problem.hessian()
        if hessian is None or not np.array_equal(own, hessian):
            hessian = own
            values, vectors = eigh(hessian / 2)
        views.append(_View(values.clip(min=0.0), vectors, vectors.T @ theta, vectors.T @ target))
    return views


def _fit(
    views: list[_View], lr: float | None, level: float, sampling: Sampling = "one data set"
) -> tuple[float, tuple[float, float]]:
    """Number of steps that fits these endpoints best, with its interval."""
    s = np.concatenate([view.s for view in views])
    theta = np.concatenate([view.theta for view in views])
    target = np.concatenate([view.target for view in views])
    size = float(np.linalg.norm(target)) or 1.0

    def residual(log_t: Array) -> Array:
        found: Array = (early_stopping_eigenvalues(s, lr, np.exp(log_t)) * theta - target) / size
        return found

    def slope(log_t: Array) -> Array:
        found: Array = early_stopping_slopes(s, lr, np.exp(log_t)) * theta / size
        return found[:, None]

    slope(np.zeros(1))  # raises ValueError if the step size is too large
    starts = _starts(s, theta, target, lr)
    losses = [float(np.square(residual(np.array([u]))).sum()) for u in starts]
    if not losses or min(losses) >= losses[-1]:
        return np.inf, (np.nan, np.nan)
    best = int(np.argmin(losses))
    options = {"xtol": _EPS, "ftol": _EPS, "gtol": _EPS, "bounds": (starts[0] - 1, starts[-1] + 1)}
    log_t = least_squares(residual, starts[best : best + 1], jac=slope, **options).x
    with np.errstate(all="ignore"):  # equations that hardly depend on t: up to infinity
        if sampling == "resamples":
            half = _half_spread([_fit([view], lr, level)[0] for view in views], level)
        else:
            n_clusters = len(views) if sampling == "data sets" else 1
            half = _half_width(residual(log_t), slope(log_t)[:, 0], n_clusters, level)
        half = np.inf if np.isnan(half) else half
        lower, upper = np.exp(log_t[0] - half), np.exp(log_t[0] + half)
    return float(np.exp(log_t[0])), (float(lower), float(upper))


def _starts(s: Array, theta: Array, target: Array, lr: float | None) -> Array:
    """Grid of log t between the answers of the single equations, and well beyond the largest."""
    # Each term of the sum of squares has one minimum, at its own answer; only equations
    # without an answer pull towards infinitely many steps.
    own = (target * theta > 0) & (np.abs(theta) > _EPS * np.abs(theta).max())
    penalty = target[own] / theta[own]
    slow = 2.0 if lr is None else 2 * lr  # the rate over s as s goes to 0
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = 2 * s[own] if lr is None else -np.log1p(-2 * lr * s[own])
        times = np.where(s[own] > 0, np.log1p(s[own] / penalty) / rate, 1 / (slow * penalty))
    times = times[np.isfinite(times) & (times > 0)]
    if not len(times):
        return np.zeros(0)
    first, last = np.log(times.min()), np.log(times.max()) + 5
    grid: Array = np.linspace(first, min(last, _LAST_LOG), _N_STARTS)
    return grid


def _half_spread(times: list[float], level: float) -> float:
    """Half width of the interval for log t: the spread of the answers of the endpoints."""
    spread = float(np.std(np.log(times), ddof=1))  # NaN if one of them is not finite
    return float(student_t.ppf((1 + level) / 2, len(times) - 1)) * spread


def _half_width(residual: Array, column: Array, n_clusters: int, level: float) -> float:
    """Half width of the interval for log t: leave-one-out over clusters, or by the misfit."""
    square = column @ column
    spare = len(residual) - 1
    if n_clusters >= _MIN_CLUSTERS:
        moments = (column * residual).reshape(n_clusters, -1).sum(axis=1)
        squares = np.square(column).reshape(n_clusters, -1).sum(axis=1)
        moves = moments / (square - squares)
        spare = n_clusters - 1
        variance = spare / n_clusters * np.square(moves).sum()
    elif spare:
        variance = (residual @ residual) / spare / square
    else:
        return np.inf
    return float(student_t.ppf((1 + level) / 2, spare)) * float(np.sqrt(variance))
