"""What theory expects of the coefficient of :class:`GradientNorm` at a finite step size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh_tridiagonal
from scipy.special import hyp1f1

from sklearn_implicitreg.problem import Params, Problem, flat, shaped
from sklearn_implicitreg.problem.parameters import FLAG, as_numbers, check, checked, integer, number
from sklearn_implicitreg.trajectory.smoothness import PROBLEM, central_difference
from sklearn_implicitreg.trajectory.vectors import norm

Array = npt.NDArray[np.float64]
_LARGE_STEP = 0.5  # lr times curvature above which a series in it no longer holds


@dataclass(frozen=True)
class StepFactor:
    """Ratio of the coefficient of :class:`GradientNorm` to ``lr / 4`` at a finite step size.

    Parameters
    ----------
    lr : float
        Step size of the gradient descent.
    curvatures, weights : ndarray of shape (n,)
        Spectral measure of the Hessian as seen from ``H g``: Ritz values and their shares.
    third : float
        ``<Hg, D3L[g, g]> / |Hg|^2``, what the third derivative adds at first order in ``lr``.

    See Also
    --------
    finite_step_factor : Measures it for a trained model.

    Examples
    --------
    >>> import numpy as np
    >>> factor = StepFactor(0.1, np.array([2.0]), np.array([1.0]), 0.0)
    >>> round(factor.value, 4), factor.at(1e-6).note
    (0.9365, '')
    """

    lr: float
    curvatures: Array
    weights: Array
    third: float = 0.0

    def __post_init__(self) -> None:
        check("StepFactor", vars(self), {"lr": number(above=0), "third": number()})
        sizes = [as_numbers(name, getattr(self, name)).shape for name in ("curvatures", "weights")]
        if len(sizes[0]) != 1 or sizes[0] != sizes[1]:
            raise ValueError(
                f"Expected curvatures and weights of one shape (n,), got {sizes[0]} and {sizes[1]}."
            )

    @property
    def quadratic(self) -> float:
        """Factor of a locally quadratic loss, exact: the mean of ``2 (e^-x - 1 + x) / x^2``."""
        return float(self.weights @ hyp1f1(1, 3, -self.lr * self.curvatures))

    @property
    def correction(self) -> float:
        """What the third derivative adds, to first order in ``lr``."""
        return -self.lr / 3 * self.third

    @property
    def value(self) -> float:
        """Factor with the correction."""
        return self.quadratic + self.correction

    @property
    def expected_coefficient(self) -> float:
        """Coefficient of :class:`GradientNorm` that theory expects, ``lr / 4`` times the factor."""
        return self.lr / 4 * self.value

    @property
    def note(self) -> str:
        """What to know where the step is too large for the theory; else empty."""
        largest = self.lr * float(np.max(self.curvatures))
        if largest <= _LARGE_STEP:
            return ""
        return (
            f"lr times the largest curvature met by the step is {largest:.2g} (> {_LARGE_STEP}), "
            "far from the limit lr / 4; extrapolate with richardson(), or take a smaller lr."
        )

    def at(self, lr: float) -> StepFactor:
        """The same for another step size, from the same spectrum."""
        return replace(self, lr=lr)


@checked(problem=PROBLEM, lr=number(above=0), n_lanczos=integer(1), third_order=FLAG)
def finite_step_factor(
    problem: Problem, lr: float, n_lanczos: int = 12, *, third_order: bool = True
) -> StepFactor:
    """Expected ratio of the coefficient of :class:`GradientNorm` to ``lr / 4``.

    For a quadratic loss it is ``sum_i w_i f(lr h_i)`` with ``f(x) = 2 (e^-x - 1 + x) / x^2`` and
    ``w_i`` proportional to ``(h_i g_i)^2``, by Lanczos steps from ``Hg``.

    Parameters
    ----------
    problem : Problem
        The model at which a step begins; all its trained tensors count.
    lr : float
        Step size.
    n_lanczos : int, default=12
        Products with the Hessian, which give as many Ritz values (fewer where they are exact).
    third_order : bool, default=True
        Whether the third derivative is measured, by two more products.

    Returns
    -------
    factor : StepFactor
        With ``value``, ``expected_coefficient`` and a ``note``.

    Raises
    ------
    ValueError
        If the gradient or its product with the Hessian is zero, or ``lr`` is not positive.

    Examples
    --------
    >>> import torch
    >>> from sklearn_implicitreg.adapters import Data, Options, adapt
    >>> net = torch.nn.Linear(1, 1, bias=False).double()
    >>> rows = Data(torch.ones(2, 1).double(), 5 * torch.ones(2, 1).double())
    >>> factor = finite_step_factor(adapt(net, rows, Options(loss="mse")), lr=0.1)  # h = 2
    >>> round(factor.value, 6), round(factor.expected_coefficient, 8)
    (0.936538, 0.02341344)
    """
    whole = problem.whole()
    gradient = whole.gradient().value
    start = whole.hvp(gradient)
    if not norm(start) > 0:
        raise ValueError("Expected H g other than zero, got Hg = 0; the step size leaves no trace.")
    curvatures, weights = _lanczos(whole, start, n_lanczos)
    third = _third(whole, gradient, start) if third_order else 0.0
    return StepFactor(lr, curvatures, weights, third)


@checked(c_lr4=number(), c_lr2=number(), c_lr=number())
def richardson(c_lr4: float, c_lr2: float, c_lr: float) -> float:
    """Extrapolate coefficients over their step sizes to a step size of zero.

    Parameters
    ----------
    c_lr4, c_lr2, c_lr : float
        Coefficient over its step size, at ``lr/4``, ``lr/2`` and ``lr``, from the same weights.

    Returns
    -------
    c : float
        ``(8 c(lr/4) - 6 c(lr/2) + c(lr)) / 3``, free of the first and second order.

    Examples
    --------
    >>> round(richardson(*(0.25 * (1 - h + h * h) for h in (0.1, 0.2, 0.4))), 12)
    0.25
    """
    return (8 * c_lr4 - 6 * c_lr2 + c_lr) / 3


@checked(lr=number(above=0), n_params=integer(1))
def barrett_dherin_scale(lr: float, n_params: int) -> float:
    """Coefficient ``lr p / 4`` of Barrett and Dherin, whose penalty is ``|grad L|^2 / p``.

    Parameters
    ----------
    lr : float
        Step size.
    n_params : int
        Number of trained weights, p.

    Returns
    -------
    coef : float
        ``p`` times the coefficient of :class:`GradientNorm`.

    Examples
    --------
    >>> barrett_dherin_scale(0.01, 1000)
    2.5
    """
    return lr * n_params / 4


@checked(momentum=number(least=0, below=1), n_steps=integer(2), nesterov=FLAG)
def minibatch_factor(momentum: float, n_steps: int, nesterov: bool = False) -> float:
    """What momentum multiplies the mini-batch penalty of a shuffled epoch by.

    Parameters
    ----------
    momentum : float
        Of the heavy ball, m.
    n_steps : int
        Steps in an epoch (window), T.
    nesterov : bool, default=False
        Whether it is Nesterov's.

    Returns
    -------
    kappa : float
        ``2 / (T (T - 1)) sum_{k < T} (T - k) (1 - m^k) / (1 - m)``; Nesterov's has ``m^(k+1)``.

    Examples
    --------
    >>> minibatch_factor(0.0, 10)
    1.0
    >>> round(minibatch_factor(0.9, 10), 2), round(minibatch_factor(0.9, 79), 2)
    (3.03, 7.98)
    """
    k = np.arange(1, n_steps)
    sums = (1 - momentum ** (k + bool(nesterov))) / (1 - momentum)
    return float(2 * ((n_steps - k) @ sums) / (n_steps * (n_steps - 1)))


def _lanczos(problem: Problem, start: Params, n_steps: int) -> tuple[Array, Array]:
    """Ritz values of the Hessian and their shares of the start, fully reorthogonalized."""
    basis = flat(start)[None] / norm(start)
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(n_steps, basis.shape[1])):
        image = flat(problem.hvp(shaped(start, basis[-1])))
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):  # once leaves what the first subtraction rounds off
            image = image - basis.T @ (basis @ image)
        beside.append(float(np.linalg.norm(image)))
        if beside[-1] <= 100 * problem.eps * np.abs([*diagonal, *beside[:-1]]).max():
            break
        basis = np.vstack([basis, image / beside[-1]])
    values, vectors = eigh_tridiagonal(diagonal, beside[:-1])
    return values, vectors[0] ** 2


def _third(problem: Problem, gradient: Params, product: Params) -> float:
    """``<Hg, D3L[g, g]> / |Hg|^2`` by central differences of products along the gradient."""
    step = problem.eps ** (1 / 3) * norm(problem.params) / norm(gradient)
    change = central_difference(lambda there: there.hvp(gradient), problem, gradient, step)
    return float(flat(product) @ flat(change) / norm(product) ** 2)
