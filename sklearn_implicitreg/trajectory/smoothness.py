"""Whether the expansion behind the step-size penalty holds: kinks, and long horizons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.problem.parameters import NOTHING, checked, instance, integer, number
from sklearn_implicitreg.trajectory.references import runge_kutta
from sklearn_implicitreg.trajectory.vectors import minus, moved, norm

_MISMATCH = 0.01  # of Hg with differences of the gradient, relative
_FALL = (8, 100)  # of the mismatch at a quarter of the distance; 16 where the loss is smooth
PROBLEM = instance("a Problem, such as adapt(model, Data(X, y), Options(loss=...))", Problem)
_RELATIVE_STEP = 1e-3  # of a difference, relative to the weights


@dataclass(frozen=True)
class Kinks:
    """Whether a loss is smooth on the scale of a step along its gradient.

    Parameters
    ----------
    smooth : bool
    mismatch : tuple of float
        Of ``Hg`` with central differences of the gradient, over ``|Hg|``, at the two distances.
    distances : tuple of float
        How far the differences reach, the larger first.

    Examples
    --------
    >>> from sklearn_implicitreg.trajectory import Kinks
    >>> Kinks(smooth=True, mismatch=(1.6e-7, 1e-8), distances=(1e-3, 2.5e-4)).note
    ''
    """

    smooth: bool
    mismatch: tuple[float, float]
    distances: tuple[float, float]

    @property
    def note(self) -> str:
        """Why there is no step-size penalty to be found; empty where the loss is smooth."""
        if self.smooth:
            return ""
        return (
            f"The loss has kinks on the scale of a step: differences of its gradient miss Hg by "
            f"{self.mismatch[0]:.2g} of its norm at distance {self.distances[0]:.2g} and by "
            f"{self.mismatch[1]:.2g} at {self.distances[1]:.2g}, where those of a smooth loss come "
            "16 times nearer. The expansion behind GradientNorm does not hold."
        )


@checked(problem=PROBLEM, lr=NOTHING | number(above=0))
def find_kinks(problem: Problem, lr: float | None = None) -> Kinks:
    """Compare ``Hg`` with differences of the gradient along g at two distances.

    Automatic differentiation sees the curvature between kinks and not the kinks.

    Parameters
    ----------
    problem : Problem
        The model at which a step begins.
    lr : float, default=None
        Step size; by default a step is a thousandth of the weights.

    Returns
    -------
    kinks : Kinks

    Examples
    --------
    >>> import torch
    >>> from sklearn_implicitreg.adapters import Data, Options, adapt
    >>> X = torch.linspace(-1, 1, 400).double().reshape(-1, 1)
    >>> rows = Data(X, X.square())
    >>> for unit in (torch.nn.Tanh(), torch.nn.ReLU()):
    ...     net = torch.nn.Sequential(torch.nn.Linear(1, 1), unit).double()
    ...     _ = [torch.nn.init.constant_(p, 0.5) for p in net.parameters()]
    ...     print(find_kinks(adapt(net, rows, Options(loss="mse")), lr=0.1).smooth)
    True
    False
    """
    whole = problem.whole()
    gradient = whole.gradient().value
    product = whole.hvp(gradient)
    size, length = norm(product), norm(gradient)
    if not size > 0:
        return Kinks(True, (0.0, 0.0), (0.0, 0.0))
    reach = lr * length if lr is not None else _RELATIVE_STEP * norm(whole.params)
    reach = max(reach, whole.eps ** (1 / 3) * norm(whole.params))
    distances = (reach, reach / 4)
    first, second = (
        norm(minus(central_difference(_gradient, whole, gradient, d / length), product)) / size
        for d in distances
    )
    falls = first / _FALL[1] < second < first / _FALL[0]
    return Kinks(falls or max(first, second) < _MISMATCH, (first, second), distances)


@checked(problem=PROBLEM, lr=number(above=0), n_steps=integer(1), n_substeps=integer(1))
def drift_ratio(problem: Problem, lr: float, n_steps: int, n_substeps: int = 10) -> float:
    """How much nearer the modified flow is to gradient descent than the flow of the loss.

    Parameters
    ----------
    problem : Problem
        The model at which the steps begin.
    lr : float
        Step size.
    n_steps : int
        Steps of gradient descent.
    n_substeps : int, default=10
        Runge-Kutta steps for each of them.

    Returns
    -------
    ratio : float
        Distance of gradient descent to the flow of ``L + lr/4 |grad L|^2``, over its distance to
        the flow of ``L``, after the same time.

    References
    ----------
    Barrett and Dherin (2021), Implicit Gradient Regularization.

    Examples
    --------
    >>> import torch
    >>> from sklearn_implicitreg.adapters import Data, Options, adapt
    >>> net = torch.nn.Linear(1, 1, bias=False).double()
    >>> rows = Data(torch.ones(2, 1).double(), 5 * torch.ones(2, 1).double())
    >>> ratio = drift_ratio(adapt(net, rows, Options(loss="mse")), lr=0.01, n_steps=5)
    >>> 0.01 < ratio < 0.02
    True
    """
    # The descent below is that of L, whatever the model was trained on.
    whole = replace(problem.whole(), trained_factor=1.0, trained_sum=False)
    start = at = {name: t.double() for name, t in whole.params.items()}
    for _ in range(n_steps):
        at = moved(at, whole.at(at).gradient().value, -lr)
    away = []
    followed: tuple[_Modified | Problem, ...] = (_Modified(whole, lr), whole)
    for loss in followed:
        flow = start
        for _ in range(n_steps * n_substeps):
            flow, _ = runge_kutta(loss, flow, lr / n_substeps)
        away.append(norm(minus(at, flow)))
    return away[0] / away[1]


@dataclass(frozen=True)
class _Modified:
    """``L + lr/4 |grad L|^2`` instead of the loss L of a problem."""

    inner: Problem
    lr: float

    def at(self, params: Params) -> _Modified:
        return replace(self, inner=self.inner.at(params))

    def gradient(self) -> LossGradient:
        own = self.inner.gradient()
        return replace(own, value=moved(own.value, self.inner.hvp(own.value), self.lr / 2))


def central_difference(
    measured: Callable[[Problem], Params], problem: Problem, along: Params, step: float
) -> Params:
    """Derivative of what is measured at a problem, from displacements by ``step * along``."""
    ahead, behind = (
        measured(problem.at(moved(problem.params, along, sign * step))) for sign in (1.0, -1.0)
    )
    return {name: (ahead[name] - behind[name]) / (2 * step) for name in ahead}


def _gradient(problem: Problem) -> Params:
    return problem.gradient().value
