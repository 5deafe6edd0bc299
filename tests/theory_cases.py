"""Procedures on linear models whose penalty is known, by other libraries and by explicit steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import expm, norm
from scipy.sparse.linalg import cg
from sklearn.linear_model import LinearRegression, Ridge

from sklearn_implicitreg import ImplicitRegularizationEstimator, theory

Array = npt.NDArray[np.float64]


def data(n: int, p: int) -> tuple[Array, Array, Array]:
    """Correlated columns of unequal size, a target and a start; curvatures up to about 4."""
    rng = np.random.default_rng(n + p)
    X = rng.normal(size=(n, p)) @ (np.eye(p) + 0.3 * rng.normal(size=(p, p)))
    X *= np.linspace(0.4, 1.4, p)
    X *= 2 / np.sqrt(norm(X.T @ X / n, 2))
    return X, X @ rng.normal(size=p) + rng.normal(size=n), rng.normal(size=p)


def iterates(X: Array, y: Array, start: Array, n_steps: int, **keywords: float) -> Array:
    """Weights before and after each step of torch's SGD on the mean squared error."""
    theta = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.SGD([theta], **keywords)
    path = [start]
    for _ in range(n_steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(torch.tensor(X) @ theta, torch.tensor(y)).backward()
        optimizer.step()
        path.append(theta.detach().numpy().copy())
    return np.array(path)


def last(X: Array, y: Array, start: Array, **keywords: float) -> Array:
    return iterates(X, y, start, **keywords)[-1]


def mean(X: Array, y: Array, start: Array, **keywords: float) -> Array:
    return iterates(X, y, start, **keywords)[1:].mean(0)


def moving(X: Array, y: Array, start: Array, decay: float, **keywords: float) -> Array:
    average = start
    for theta in iterates(X, y, start, **keywords)[1:]:
        average = decay * average + (1 - decay) * theta
    return average


def flow(X: Array, y: Array, start: Array, time: float) -> Array:
    """By the exponential of the affine system ``theta' = -2 (S theta - b)``."""
    n, p = X.shape
    system = np.zeros((p + 1, p + 1))
    system[:p, :p], system[:p, p] = -2 * X.T @ X / n, 2 * X.T @ y / n
    return np.asarray((expm(time * system) @ np.append(start, 1.0))[:p])


def ridge(X: Array, y: Array, start: Array, coef: float) -> Array:
    model = Ridge(coef * len(y), fit_intercept=False, solver="svd")
    return start + model.fit(X, y - X @ start).coef_


def boosting(X: Array, y: Array, start: Array, learner: object, rate: float, n_steps: int) -> Array:
    theta = start
    for _ in range(n_steps):
        theta = theta + rate * learner.fit(X, y - X @ theta).coef_  # type: ignore[attr-defined]
    return theta


def conjugate(X: Array, y: Array, start: Array, k: int) -> Array:
    found, _ = cg(X.T @ X, X.T @ y, x0=start, rtol=0.0, maxiter=k)
    return np.asarray(found)


DESCENT = {"lr": 0.1, "n_steps": 17}
ols = LinearRegression(fit_intercept=False)
TRUTHS: dict[str, tuple[theory.SpectralFilter, Callable[..., Array]]] = {
    "gradient descent": (theory.gradient_descent(**DESCENT), partial(last, **DESCENT)),
    "one step": (theory.gradient_descent(0.1, 1), partial(last, lr=0.1, n_steps=1)),
    "large step": (theory.gradient_descent(0.2, 7), partial(last, lr=0.2, n_steps=7)),
    "momentum": (
        theory.gradient_descent(**DESCENT, momentum=0.8),
        partial(last, **DESCENT, momentum=0.8),
    ),
    "Nesterov": (
        theory.gradient_descent(**DESCENT, momentum=0.8, nesterov=True),
        partial(last, **DESCENT, momentum=0.8, nesterov=True),
    ),
    "average": (theory.gradient_descent(**DESCENT, average=True), partial(mean, **DESCENT)),
    "average of momentum": (
        theory.gradient_descent(**DESCENT, momentum=0.8, average=True),
        partial(mean, **DESCENT, momentum=0.8),
    ),
    "moving average": (
        theory.exponential_average(**DESCENT, decay=0.9),
        partial(moving, **DESCENT, decay=0.9),
    ),
    "moving average of Nesterov": (
        theory.exponential_average(**DESCENT, decay=0.9, momentum=0.5, nesterov=True),
        partial(moving, **DESCENT, decay=0.9, momentum=0.5, nesterov=True),
    ),
    "flow": (theory.gradient_flow(1.3), partial(flow, time=1.3)),
    "ridge": (theory.ridge(0.3), partial(ridge, coef=0.3)),
    "boosting of ridge": (
        theory.l2_boosting(0.3, 12, theory.ridge(0.5)),
        lambda X, y, start: boosting(
            X, y, start, Ridge(0.5 * len(y), fit_intercept=False, solver="svd"), 0.3, 12
        ),
    ),
    "iterated ridge": (
        theory.l2_boosting(1.0, 4, theory.ridge(0.5)),
        lambda X, y, start: boosting(
            X, y, start, Ridge(0.5 * len(y), fit_intercept=False, solver="svd"), 1.0, 4
        ),
    ),
    "boosting of least squares": (
        theory.l2_boosting(0.3, 5),
        partial(boosting, learner=ols, rate=0.3, n_steps=5),
    ),
    "conjugate gradients": (theory.conjugate_gradient(3), partial(conjugate, k=3)),
}


def relative(found: Array, wanted: Array) -> float:
    return float(norm(found - wanted) / norm(wanted))


def dropout(X: Array, y: Array, rate: float) -> Array:
    """Least squares over all masks of the inputs, weighted by their probability."""
    keep = np.array(list(product([0, 1], repeat=X.shape[1])))
    rows = np.concatenate([X * mask / (1 - rate) for mask in keep])
    chance = np.prod(np.where(keep, 1 - rate, rate), axis=1)
    weight = np.repeat(chance, len(y))
    return np.asarray(ols.fit(rows, np.tile(y, len(keep)), weight).coef_)


def noise(X: Array, y: Array, sigma: float) -> Array:
    """Least squares over all signs of noise of size sigma, which has the Gaussian's moments."""
    signs = np.array(list(product([-1, 1], repeat=X.shape[1])))
    rows = np.concatenate([X + sigma * sign for sign in signs])
    return np.asarray(ols.fit(rows, np.tile(y, len(signs))).coef_)


def kernel_case(
    kind: str, momentum: float, from_zero: bool = False
) -> tuple[Array, Array, Array, float, Array, theory.SpectralFilter]:
    """A kernel, target, start, coefficient, the weights after 30 explicit steps, their filter."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(15, 2))
    K = np.exp(-3 * ((points[:, None] - points) ** 2).sum(-1))
    n, coef, lr = 15, 0.1, 0.2
    y = np.sin(points).sum(1)
    start = np.zeros(n) if from_zero else rng.normal(size=n)
    a, velocity = start.copy(), np.zeros(n)
    for _ in range(30):
        slope = 2 * K @ (K @ a - y) / n + 2 * coef * K @ a
        # The tangent kernel: outputs move by -K times the gradient by outputs, so K is divided out.
        step = slope if kind == "ridge" else 2 * (K @ a - y) / n + 2 * coef * a
        velocity = momentum * velocity + step
        a = a - lr * velocity
    return K, y, start, coef, a, theory.gradient_descent(lr, 30, momentum)


def fitted(
    X: Array, y: Array, theta: Array, terms: dict[str, tuple[Array, Array]]
) -> ImplicitRegularizationEstimator:
    """The estimator on a linear module with these weights; terms by their matrix and start."""
    model = torch.nn.Linear(X.shape[1], 1, bias=False).double()
    model.weight.data = torch.tensor(theta)[None]

    def quadratic(matrix: Array, start: Array) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
        def value(params: dict[str, torch.Tensor]) -> torch.Tensor:
            moved = params["weight"][0] - torch.tensor(start)
            return moved @ torch.tensor(matrix) @ moved

        return value

    family = {name: quadratic(*term) for name, term in terms.items()}
    est = ImplicitRegularizationEstimator(model, family=family, loss="mse")
    return est.fit(torch.tensor(X), torch.tensor(y)[:, None])
