"""The penalty of early stopping after an unknown number of steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import special
from scipy.linalg import eigh
from scipy.optimize import least_squares
from torch import nn

from sklearn_implicitreg.penalties.fitted import named_tensors
from sklearn_implicitreg.penalties.structured import (
    Array,
    Endpoints,
    Shapes,
    Structured,
    StructuredPenalty,
    StructuredSolution,
)
from sklearn_implicitreg.problem import Problem, Sampling, as_tensor, flat, shaped
from sklearn_implicitreg.problem.frozen import own_names
from sklearn_implicitreg.problem.parameters import FLAG, NOTHING, instance, number
from sklearn_implicitreg.theory import early_stopping_eigenvalues, early_stopping_slopes

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
    """Gradient descent that was stopped, ``R = (theta - start)' Lambda_t (theta - start)``.

    For a quadratic loss with Hessian ``2 S = 2 V diag(s) V'`` it has ``Lambda_t = V diag(s / ((1 -
    2 lr s)^-t - 1)) V'``. ``coef_[0]`` is t, the number of steps that the fit is worth; inf without
    a finite best t. Parameters out of scope, such as an intercept, are profiled out of the Hessian.
    The endpoints must be away from the start.

    A network needs its ``start`` and all trained tensors in scope (``params="all"``). Its Hessian
    is that of Gauss and Newton halfway from the start, which stands for the whole way as long as
    the weights moved by a quarter of their size or less: t and R are approximations, and R2 shows
    what they leave.

    Parameters
    ----------
    lr : float, optional
        Step size on the mean loss; by default the flow, whose unknown is the time ``lr * t``.
    shared : bool, default=True
        One number for all endpoints; otherwise one each.
    start : dict of str to array or Tensor, or torch.nn.Module, default=None
        Weights before the training, a value for every tensor in scope under its name. None is
        zero.

    See Also
    --------
    sklearn_implicitreg.theory.early_stopping_eigenvalues : The eigenvalues of the penalty.
    sklearn_implicitreg.theory.kernel_penalty : The same of kernel models, by theory.

    Notes
    -----
    A kernel model with n weights a is a :class:`~sklearn_implicitreg.LinearModel` whose inputs are
    the kernel matrix K; a penalty ``coef a'Ka`` of its loss adds the rows ``sqrt(n coef) K^(1/2)``
    with the target 0, all rows and targets times ``sqrt(2)``, as there are twice as many. From
    a start other than zero R has a linear term: ``(a - start)' Q (a - start)``.

    The interval is on the scale of log t: of four or more endpoints that share their t by leaving
    out one at a time, for resamples by the spread of their answers; otherwise by the misfit.

    References
    ----------
    Ali, Kolter and Tibshirani (2019), AISTATS; their step size, on half of the loss, is ``2 lr``.

    Examples
    --------
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

    _allowed: ClassVar = {
        "lr": NOTHING | number(above=0),
        "shared": FLAG,
        "start": NOTHING
        | instance("a dict of tensor name to array", Mapping)
        | instance("a torch module", nn.Module),
    }

    def __init__(self, lr: float | None = None, shared: bool = True, start: Any = None):
        self.lr = lr
        self.shared = shared
        self.start = start

    def _solve(self, endpoints: Endpoints) -> StructuredSolution:
        thetas, targets, sampling = endpoints.thetas, endpoints.targets, endpoints.sampling
        if not endpoints.problems:
            raise ValueError(
                "Expected the endpoints' problems: EarlyStopping needs the curvature of their "
                "losses. Fit models with data instead of equations alone."
            )
        start = self._flat_start(endpoints.shapes)
        moved = thetas if start is None else thetas - start[:, None]
        if not np.abs(moved).max(axis=0).all():
            where = "zero" if start is None else "the start"
            raise ValueError(
                f"Expected endpoints away from {where}, got one at {where}: no step was taken, and "
                "no finite penalty gives it."
            )
        views = _views(moved, targets / 2, self._curvatures(endpoints.problems, start))
        groups = [views] if self.shared else [[view] for view in views]
        if len(groups[0]) < _MIN_CLUSTERS:
            sampling = "one data set"  # so few give an interval by the misfit alone
        fits = [_fit(group, self.lr, endpoints.confidence_level, sampling) for group in groups]
        coef = np.array([steps for steps, _ in fits])
        per_view = np.broadcast_to(coef, len(views))
        pairs = zip(views, per_view, strict=True)
        fitted = np.column_stack([view.gradient(self.lr, steps) for view, steps in pairs])
        name = "time" if self.lr is None else "steps"
        names = (name,) if self.shared else tuple(f"{name}[{k}]" for k in range(len(fits)))
        never = tuple(n for n, value in zip(names, coef, strict=True) if np.isinf(value))
        return StructuredSolution(
            StructuredPenalty(views[0].matrix(self.lr, per_view[0]), endpoints.shapes, start),
            coef=coef,
            term_names=names,
            fitted=fitted,
            rank=len(fits) - len(never),
            n_equations=thetas.size,
            notes=self._notes(sampling, endpoints.unexplained(fitted), never),
            dependent=never,
            conf_int=np.array([interval for _, interval in fits]),
        )

    def gradients_at(
        self, found: StructuredSolution, thetas: Array, problems: Sequence[Problem]
    ) -> Array:
        """Gradients after the fitted number of steps, by the curvature of each endpoint."""
        if len(found.coef) > 1:
            raise ValueError(
                f"Expected a number of steps that all endpoints share, got {len(found.coef)}: "
                "other endpoints have none of them; fit with shared=True."
            )
        steps = float(found.coef[0])
        if np.isnan(steps):
            return np.zeros_like(thetas)  # there was no gradient to explain
        start = found.penalty.center
        moved = thetas if start is None else thetas - start[:, None]
        views = _views(moved, moved, self._curvatures(problems, start))
        return np.column_stack([view.gradient(self.lr, steps) for view in views])

    def _flat_start(self, shapes: Shapes) -> Array | None:
        if self.start is None:
            return None
        given = {name: as_tensor(t) for name, t in own_names(self.start, "start").items()}
        named = named_tensors(given, shapes)
        start = flat({name: named[name].detach() for name in shapes})
        if not np.isfinite(start).all():
            raise ValueError("Expected a finite start, got NaN or inf.")
        return start

    def _curvatures(self, problems: Sequence[Problem], start: Array | None) -> Iterator[Array]:
        """Hessians, of a network that of Gauss and Newton halfway from the start."""
        for problem in problems:
            if start is None or not problem.has_paths:
                yield _quadratic(problem)
                continue
            if problem.left_out:
                raise ValueError(
                    "Expected all trained tensors in scope for EarlyStopping of a network, got "
                    f"{', '.join(problem.left_out)} left out, which moved as well; give "
                    "params='all'."
                )
            halfway = shaped(problem.params, (flat(problem.params) + start) / 2)
            yield problem.at(halfway).gauss_newton()

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # noqa: N803, as scikit-learn names it
        if self.start is None:
            return str(super().__repr__(N_CHAR_MAX))
        kind = type(self.start).__name__
        return f"EarlyStopping(lr={self.lr}, shared={self.shared}, start=<{kind}>)"

    def _notes(self, sampling: Sampling, share: float, never: tuple[str, ...]) -> tuple[str, ...]:
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

    def gradient(self, lr: float | None, steps: float) -> Array:
        return np.asarray(2 * self.vectors @ (self._eigenvalues(lr, steps) * self.theta))

    def matrix(self, lr: float | None, steps: float) -> Array:
        return np.asarray((self.vectors * self._eigenvalues(lr, steps)) @ self.vectors.T)

    def _eigenvalues(self, lr: float | None, steps: float) -> Array:
        if np.isinf(steps):
            return np.zeros_like(self.s)
        return early_stopping_eigenvalues(self.s, lr, steps)


def _quadratic(problem: Problem) -> Array:
    try:
        return problem.hessian()
    except ValueError as error:
        more = ", or the weights before the training of a network, EarlyStopping(start=...)"
        raise ValueError(f"{str(error).removesuffix('.')}{more}.") from error


def _views(thetas: Array, rhs: Array, curvatures: Iterable[Array]) -> list[_View]:
    """Endpoints in the eigenvectors of their curvature, decomposed once where it repeats."""
    views: list[_View] = []
    hessian: Array | None = None
    for theta, target, own in zip(thetas.T, rhs.T, curvatures, strict=True):
        if hessian is None or not np.array_equal(own, hessian):
            hessian = own
            values, vectors = eigh(hessian / 2)
        views.append(_View(values.clip(min=0.0), vectors, vectors.T @ theta, vectors.T @ target))
    return views


def _fit(
    views: list[_View], lr: float | None, level: float, sampling: Sampling = "one data set"
) -> tuple[float, tuple[float, float]]:
    s = np.concatenate([view.s for view in views])
    theta = np.concatenate([view.theta for view in views])
    target = np.concatenate([view.target for view in views])
    size = float(np.linalg.norm(target)) or 1.0

    def residual(log_t: Array) -> Array:
        values = early_stopping_eigenvalues(s, lr, np.exp(log_t))
        return np.asarray((values * theta - target) / size)

    def slope(log_t: Array) -> Array:
        values = early_stopping_slopes(s, lr, np.exp(log_t))
        return np.asarray(values * theta / size)[:, None]

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
            spare = len(views) - 1
            alone = [_fit([view], lr, level)[0] for view in views]
            error = float(np.std(np.log(alone), ddof=1))
        else:
            n_clusters = len(views) if sampling == "data sets" else 0
            error, spare = _error(residual(log_t), slope(log_t)[:, 0], n_clusters)
        half = special.stdtrit(spare, (1 + level) / 2) * error
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
    return np.asarray(np.linspace(first, min(last, _LAST_LOG), _N_STARTS))


def _error(residual: Array, column: Array, n_clusters: int) -> tuple[float, int]:
    """Standard error of log t and its degrees of freedom: leave-one-out, or by the misfit."""
    square = column @ column
    if not n_clusters:
        spare = len(residual) - 1
        return float(np.sqrt(residual @ residual / spare / square)), spare
    moments = (column * residual).reshape(n_clusters, -1).sum(axis=1)
    squares = np.square(column).reshape(n_clusters, -1).sum(axis=1)
    moves = moments / (square - squares)
    spare = n_clusters - 1
    return float(np.sqrt(spare / n_clusters * np.square(moves).sum())), spare
