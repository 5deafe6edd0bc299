"""Implied penalties against what they describe: other libraries' fits, and explicit iterations."""

from __future__ import annotations

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from mpmath import mpf
from scipy.linalg import expm, norm, solve
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_diabetes
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from theory_cases import TRUTHS, data, kernel_case, relative

from sklearn_implicitreg import theory
from sklearn_implicitreg.exceptions import IndefinitePenaltyWarning

Array = npt.NDArray[np.float64]
BOUND = 1e-10
quiet = pytest.mark.filterwarnings(
    "ignore::" + IndefinitePenaltyWarning.__module__ + ".IndefinitePenaltyWarning"
)


@quiet
@pytest.mark.parametrize("from_zero", [True, False], ids=["zero", "start"])
@pytest.mark.parametrize("shape", [(40, 6), (7, 11)], ids=["n>p", "p>n"])
@pytest.mark.parametrize("name", TRUTHS)
def test_weights_minimize_loss_and_penalty(
    name: str, shape: tuple[int, int], from_zero: bool
) -> None:
    X, y, start = data(*shape)
    start = np.zeros_like(start) if from_zero else start
    filter, procedure = TRUTHS[name]
    theta = procedure(X, y, start)
    penalty = theory.implicit_penalty(X, filter, y=y, start=start)
    assert relative(penalty.theta(), theta) < BOUND
    # Stationary: the gradients of loss and penalty are opposite.
    slope = 2 * X.T @ (X @ theta - y) / len(y)
    pulled = penalty.gradient(theta)
    start_slope = 2 * X.T @ (X @ start - y) / len(y)
    assert norm(slope + pulled) < BOUND * norm(start_slope)
    np.testing.assert_allclose(pulled, 2 * penalty.matrix @ (theta - start), atol=1e-13)
    assert penalty.value(theta) == pytest.approx((theta - start) @ pulled / 2, rel=1e-12)
    # And the minimizer, where it is the only one.
    curvature = X.T @ X / len(y) + penalty.matrix
    if np.linalg.cond(curvature) < 1e6:
        right = X.T @ y / len(y) + penalty.matrix @ start
        assert relative(solve(curvature, right, assume_a="pos"), theta) < BOUND


@quiet
@pytest.mark.parametrize("name", [n for n in TRUTHS if n != "conjugate gradients"])
def test_one_penalty_serves_every_target_and_weighted_rows(name: str) -> None:
    X, y, start = data(40, 6)
    weight = np.random.default_rng(0).integers(1, 4, size=40)
    filter, procedure = TRUTHS[name]
    penalty = theory.implicit_penalty(X, filter, sample_weight=weight, start=start)
    rows = np.repeat(np.arange(40), weight)
    for target in (y, np.sin(5 * y)):
        assert relative(penalty.theta(target), procedure(X[rows], target[rows], start)) < BOUND


@quiet
@pytest.mark.parametrize("k", [1, 2, 5, 7, 9, 10])
def test_partial_least_squares(k: int) -> None:
    X, y = load_diabetes(return_X_y=True)
    X, y = X - X.mean(0), y - y.mean()
    theta = PLSRegression(k, scale=False, tol=1e-15).fit(X, y).coef_.ravel()
    penalty = theory.implicit_penalty(X, theory.conjugate_gradient(k), y=y)
    assert relative(penalty.theta(), theta) < 1e-13
    slope = 2 * X.T @ (X @ theta - y) / len(y)
    assert norm(slope + penalty.gradient(theta)) < 1e-13 * norm(2 * X.T @ y / len(y))


@pytest.mark.parametrize("k", [1, 3, 9, 14])
def test_conjugate_gradients_of_a_large_condition(k: int) -> None:
    """Eigenvalues over six decades; in floating point the plain recurrence has lost its way."""
    s = np.logspace(0, -6, 20)
    b = np.sqrt(s) * np.random.default_rng(0).normal(size=20)
    with mpmath.workdps(100):
        many, towards = [mpf(v) for v in s], [mpf(v) for v in b]
        left, taken, ahead = [mpf(1)] * 20, [mpf(0)] * 20, [mpf(1)] * 20
        for _ in range(k):
            size = sum((v * e) ** 2 for v, e in zip(towards, left, strict=True))
            bend = sum(u * (v * d) ** 2 for u, v, d in zip(many, towards, ahead, strict=True))
            rate = size / bend
            taken = [g + rate * d for g, d in zip(taken, ahead, strict=True)]
            left = [1 - u * g for u, g in zip(many, taken, strict=True)]
            new = sum((v * e) ** 2 for v, e in zip(towards, left, strict=True))
            ahead = [e + new / size * d for e, d in zip(left, ahead, strict=True)]
        gain, residual = np.array(taken, float), np.array(left, float)
    found_residual, found_gain = theory.conjugate_gradient(k).response(s, b)
    assert relative(found_gain * b, gain * b) < 1e-13
    np.testing.assert_allclose(found_gain, gain, rtol=1e-10)
    np.testing.assert_allclose(found_residual, residual, atol=1e-10)


@quiet
def test_as_many_conjugate_gradients_as_directions_arrive() -> None:
    X, y, start = data(40, 6)
    wanted = LinearRegression(fit_intercept=False).fit(X, y).coef_
    for k in (6, 9):
        penalty = theory.implicit_penalty(X, theory.conjugate_gradient(k), y=y, start=start)
        assert relative(penalty.theta(), wanted) < BOUND
        assert norm(penalty.matrix) < BOUND


@pytest.mark.parametrize("shape", [(40, 6), (7, 11)], ids=["n>p", "p>n"])
def test_principal_components_are_a_constraint(shape: tuple[int, int]) -> None:
    X, y, _ = data(*shape)
    X, y = X - X.mean(0), y - y.mean()
    pca = PCA(3).fit(X)
    theta = pca.components_.T @ LinearRegression().fit(pca.transform(X), y).coef_
    penalty = theory.implicit_penalty(X, theory.principal_components(3), y=y)
    assert relative(penalty.theta(), theta) < BOUND
    assert not penalty.matrix.any()
    assert penalty.constraint.shape == (X.shape[1], X.shape[1] - 3)
    assert norm(penalty.constraint.T @ theta) < BOUND
    # Stationary along the directions that the constraint leaves.
    slope = 2 * X.T @ (X @ theta - y) / len(y)
    free = slope - penalty.constraint @ (penalty.constraint.T @ slope)
    assert norm(free) < BOUND * norm(X.T @ y / len(y))
    start = np.linspace(-1, 1, X.shape[1])
    moved = theory.implicit_penalty(X, theory.principal_components(3), y=y, start=start).theta()
    assert norm(penalty.constraint.T @ (moved - start)) < BOUND


def test_dropout_and_noise_are_expectations() -> None:
    X, y, start = data(12, 3)
    n, rate, sigma = len(y), 0.3, 0.5
    keep = np.array(np.meshgrid(*[[0, 1]] * 3)).reshape(3, -1).T
    chance = np.prod(np.where(keep, 1 - rate, rate), axis=1)
    masked = sum(
        c * (y - (X * k / (1 - rate)) @ start) ** 2 for c, k in zip(chance, keep, strict=True)
    )
    penalty = np.mean(masked) - np.mean((y - X @ start) ** 2)
    assert theory.input_dropout(X, rate) @ start**2 == pytest.approx(penalty, rel=1e-12)
    # Expectations over Gaussian noise are exact by quadrature with two nodes per column.
    nodes, weights = np.polynomial.hermite_e.hermegauss(2)
    weights = weights / weights.sum()
    noisy = 0.0
    for i in np.ndindex(2, 2, 2):
        shift = sigma * nodes[list(i)]
        noisy += np.prod(weights[list(i)]) * np.mean((y - (X + shift) @ start) ** 2)
    wanted = noisy - np.mean((y - X @ start) ** 2)
    assert theory.input_noise(sigma) * start @ start == pytest.approx(wanted, rel=1e-10)
    weight = np.arange(1, n + 1)
    np.testing.assert_allclose(
        theory.input_dropout(X, rate, sample_weight=weight),
        rate / (1 - rate) * np.average(X**2, axis=0, weights=weight),
        rtol=1e-13,
    )


@quiet
@pytest.mark.parametrize("from_zero", [True, False], ids=["zero", "start"])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["ridge", "ntk"])
def test_kernels(kind: str, momentum: float, from_zero: bool) -> None:
    """Descent on the loss of kernel ridge, and the flow of outputs under a tangent kernel."""
    K, y, start, coef, a, filter = kernel_case(kind, momentum, from_zero)
    n = len(y)
    penalty = theory.kernel_penalty(K, filter, coef=coef, kind=kind, y=y, start=start)  # type: ignore[arg-type]
    assert relative(penalty.theta(), a) < BOUND
    slope = 2 * K @ (K @ a - y) / n + 2 * coef * K @ a
    assert norm(slope + penalty.gradient(a)) < BOUND * norm(K @ y / n)
    # The penalty of the tangent kernel is K times the matrix of its own steps.
    D = K @ K / n + coef * K if kind == "ridge" else K / n + coef * np.eye(n)
    values, vectors = np.linalg.eigh(D)
    Q = (vectors * filter.penalty(np.maximum(values, 0))) @ vectors.T
    wanted = Q if kind == "ridge" else K @ Q
    assert relative(penalty.matrix, wanted) < BOUND


def test_flow_of_a_tangent_kernel() -> None:
    """Outputs of a wide model, from the exponential of their own equation."""
    X, y, _ = data(9, 20)
    K, time = X @ X.T, 0.8
    penalty = theory.kernel_penalty(K, theory.gradient_flow(time), kind="ntk", y=y)
    outputs = y - expm(-2 * time * K / 9) @ y
    assert relative(K @ penalty.theta(), outputs) < BOUND
    # The same model in its weights: the flow from zero on the linear model.
    weights = theory.implicit_penalty(X, theory.gradient_flow(time), y=y).theta()
    assert relative(X.T @ penalty.theta(), weights) < BOUND
