"""Kernel models after gradient descent from weights that are not zero, against theory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from sklearn_implicitreg import ImplicitRegularizationEstimator, LinearModel, theory
from sklearn_implicitreg.penalties import EarlyStopping

N, LR, STEPS = 12, 0.05, 40
RNG = np.random.default_rng(0)
POINTS = RNG.standard_normal((N, 2))
K = np.exp(-((POINTS[:, None] - POINTS) ** 2).sum(2))
Y = np.sin(np.abs(POINTS).sum(1)) + 0.1 * RNG.standard_normal(N)
START = RNG.standard_normal(N)
ROOT = sqrtm(K).real


def rows(kind, coef):
    """Rows whose mean squared error has the gradient that the weights step along."""
    if kind == "ridge":  # |y - K a|^2 / n + coef a'Ka
        X, y = np.vstack([K, np.sqrt(N * coef) * ROOT]), np.append(Y, np.zeros(N))
    else:  # gradient 2 ((K / n + coef I) a - y / n)
        X = np.vstack([ROOT, np.sqrt(N * coef) * np.eye(N)])
        y = np.append(np.linalg.solve(ROOT, Y), np.zeros(N))
    return np.sqrt(2) * X, np.sqrt(2) * y  # the mean is over twice as many rows


@pytest.mark.parametrize("kind", ["ridge", "ntk"])
@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_steps_and_penalty_are_those_of_theory(kind, coef):
    descent = theory.gradient_descent(LR, STEPS)
    known = theory.kernel_penalty(K, descent, coef=coef, kind=kind, start=START)
    d = K @ K / N + coef * K if kind == "ridge" else K / N + coef * np.eye(N)
    weights = START
    for _ in range(STEPS):
        weights = weights - 2 * LR * (d @ weights - (K @ Y if kind == "ridge" else Y) / N)
    X, y = rows(kind, coef)
    model = LinearModel(weights)
    est = ImplicitRegularizationEstimator(model, family=EarlyStopping(lr=LR, start={"coef": START}))
    est.fit(X, y)
    assert est.coef_[0] == pytest.approx(STEPS, rel=1e-6)
    np.testing.assert_allclose(est.penalty_.center, START)
    # That of the tangent kernel is on another loss, of which K is the metric.
    found = est.penalty_.matrix_ if kind == "ridge" else K @ est.penalty_.matrix_
    np.testing.assert_allclose(found, known.matrix, rtol=1e-6, atol=1e-8)
    # R = a'Qa - 2 w'a + const with w = (D + Q) A^t a_0 and A = I - 2 lr D.
    a, q = RNG.standard_normal(N), est.penalty_.matrix_
    w = (d + q) @ np.linalg.matrix_power(np.eye(N) - 2 * LR * d, STEPS) @ START
    expected = a @ q @ a - 2 * w @ a + START @ q @ START
    assert est.penalty_.value(a) == pytest.approx(expected, rel=1e-6)
