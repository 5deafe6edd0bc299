"""Filters: digits against exact arithmetic, limits, what is refused and what is said."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from mpmath import mpf
from scipy.linalg import norm

from sklearn_implicitreg import theory
from sklearn_implicitreg.exceptions import IndefinitePenaltyWarning, StepSizeWarning
from sklearn_implicitreg.penalties import StructuredPenalty

S = np.array([1e-14, 1e-8, 1e-4, 0.01, 0.1, 0.5, 1.0])
LR, STEPS = 0.05, 300


def descent(s: Any, momentum: float = 0.0, nesterov: bool = False) -> list[Any]:
    """What is left after each step, by the recurrence in many digits."""
    h, m = 2 * mpf(LR) * s, mpf(momentum)
    left = [mpf(1), 1 - (1 + m) * h if nesterov else 1 - h]
    for _ in range(STEPS - 1):
        if nesterov:
            left.append((1 - h) * ((1 + m) * left[-1] - m * left[-2]))
        else:
            left.append((1 + m - h) * left[-1] - m * left[-2])
    return left


def moving(s: Any) -> Any:
    average = mpf(1)
    for left in descent(s)[1:]:
        average = mpf(0.9) * average + (1 - mpf(0.9)) * left
    return average


def boosted(s: Any, rate: float, coef: float) -> Any:
    return (1 - mpf(rate) * s / (s + mpf(coef))) ** STEPS


Left = Callable[[Any], Any]
EXACT: dict[str, tuple[theory.SpectralFilter, Left]] = {
    "descent": (theory.gradient_descent(LR, STEPS), lambda s: descent(s)[-1]),
    "momentum": (theory.gradient_descent(LR, STEPS, 0.5), lambda s: descent(s, 0.5)[-1]),
    "Nesterov": (
        theory.gradient_descent(LR, STEPS, 0.5, True),
        lambda s: descent(s, 0.5, True)[-1],
    ),
    "average": (
        theory.gradient_descent(LR, STEPS, average=True),
        lambda s: mpmath.fsum(descent(s)[1:]) / STEPS,
    ),
    "moving average": (theory.exponential_average(LR, STEPS, 0.9), moving),
    "flow": (theory.gradient_flow(LR * STEPS), lambda s: mpmath.exp(-2 * s * mpf(LR * STEPS))),
    "ridge": (theory.ridge(0.01), lambda s: mpf(0.01) / (s + mpf(0.01))),
    "boosting": (
        theory.l2_boosting(0.1, STEPS, theory.ridge(0.3)),
        lambda s: boosted(s, 0.1, 0.3),
    ),
    "iterated ridge": (
        theory.l2_boosting(1.0, STEPS, theory.ridge(30.0)),
        lambda s: boosted(s, 1.0, 30.0),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_every_digit(name: str) -> None:
    filter, left = EXACT[name]
    with mpmath.workdps(80):
        residual = [left(mpf(s)) for s in S]
        values = [1 - e for e in residual]
        penalty = [mpf(s) * e / f for s, e, f in zip(S, residual, values, strict=True)]
    # Each of the 300 steps rounds once.
    np.testing.assert_allclose(filter.values(S), np.array(values, float), rtol=2e-13)
    np.testing.assert_allclose(filter.complement(S), np.array(residual, float), rtol=2e-13)
    np.testing.assert_allclose(filter.penalty(S), np.array(penalty, float), rtol=2e-13)


@pytest.mark.parametrize("name", EXACT)
def test_limit_at_zero(name: str) -> None:
    filter, _ = EXACT[name]
    assert filter.penalty([0.0])[0] == pytest.approx(1 / filter.slope_at_zero, rel=1e-14)
    assert filter.penalty([0.0])[0] == pytest.approx(filter.penalty([1e-13])[0], rel=1e-9)
    assert filter.values([0.0])[0] == 0
    assert filter.complement([0.0])[0] == 1


def test_slopes_that_are_known() -> None:
    T, k = 20, np.arange(1, 21)
    assert theory.gradient_descent(0.1, T).slope_at_zero == pytest.approx(2 * 0.1 * T)
    heavy = 2 * 0.1 * np.sum((1 - 0.9**k) / (1 - 0.9))
    assert theory.gradient_descent(0.1, T, 0.9).slope_at_zero == pytest.approx(heavy)
    nesterov = 2 * 0.1 * np.sum((1 - 0.9 ** (k + 1)) / (1 - 0.9))
    assert theory.gradient_descent(0.1, T, 0.9, True).slope_at_zero == pytest.approx(nesterov)
    assert theory.gradient_flow(2.0).slope_at_zero == 4.0
    assert theory.ridge(0.3).slope_at_zero == pytest.approx(1 / 0.3)
    ema = 2 * 0.1 * (T - 0.8 * (1 - 0.8**T) / (1 - 0.8))
    assert theory.exponential_average(0.1, T, 0.8).slope_at_zero == pytest.approx(ema)


def test_steps_may_be_any_positive_number() -> None:
    between = theory.gradient_descent(0.1, 2.5).penalty([0.0, 1.0, 3.0])
    expected = theory.early_stopping_eigenvalues([0.0, 1.0, 3.0], 0.1, 2.5)
    np.testing.assert_array_equal(between, expected)


def test_filters_survive_pickling() -> None:
    for filter, _ in EXACT.values():
        again = pickle.loads(pickle.dumps(filter))
        np.testing.assert_array_equal(again.penalty(S), filter.penalty(S))


def test_momentum_overshoots_and_is_told_apart_from_a_negative_filter() -> None:
    X = np.diag([1.0, 2.0, 3.0])
    with pytest.warns(IndefinitePenaltyWarning, match=r"L \+ R still convex.*f reaches 1\.47"):
        penalty = theory.implicit_penalty(X, theory.gradient_descent(0.05, 10, 0.9))
    assert penalty.eigenvalues.min() < 0
    assert np.linalg.eigvalsh(X.T @ X / 3 + penalty.matrix).min() > 0
    assert "indefinite" in penalty.notes[-1]


def test_a_stationary_point_that_is_no_minimum_is_refused() -> None:
    X, lr = np.diag([1.0, 2.0, 3.0]), 0.4  # curvatures 2 s of 2/3, 8/3, 6
    message = r"directions 0 \(s = 3, f = -2.842\).*stationary.*not a minimum.*diverge"
    with pytest.raises(ValueError, match=message):
        theory.implicit_penalty(X, theory.gradient_descent(lr + 1e-12, 4))
    with pytest.raises(ValueError, match=r"got f <= 0 at s = \[3.0\] under gradient_descent"):
        theory.gradient_descent(lr, 4).penalty([1.0, 3.0])
    huge = theory.gradient_descent(50.0, 4001, 0.5)
    with pytest.raises(ValueError, match="Expected 0 < f < inf"):
        theory.implicit_penalty(X, huge)


@pytest.mark.parametrize(
    ("limit", "momentum"), [(1.0, {}), (1.9, {"momentum": 0.9}), (1.9 / 2.8, {"nesterov": True})]
)
def test_diverging_steps_warn(limit: float, momentum: dict[str, Any]) -> None:
    """Limits as the spectral radius of the recurrence has them."""
    keywords = {"momentum": 0.9, **momentum} if momentum else {}
    m, h = keywords.get("momentum", 0.0), 2 * limit
    first = (1 - h) * (1 + m) if "nesterov" in keywords else 1 + m - h
    second = (1 - h) * m if "nesterov" in keywords else m
    assert max(abs(np.roots([1, -first, second]))) == pytest.approx(1, abs=1e-12)
    X, lr = np.ones((5, 1)), limit
    for size, diverges in ((0.999, False), (1.001, True)):
        filter = theory.gradient_descent(lr * size, 1, **keywords)
        with pytest.warns(Warning) as caught:
            theory.implicit_penalty(X, filter)
        found = {w.category for w in caught}  # one step of this size goes past the goal
        assert found == {IndefinitePenaltyWarning} | ({StepSizeWarning} if diverges else set())


def test_notes_on_rank_and_columns() -> None:
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(6), np.zeros(6), rng.normal(size=(6, 2))])
    X = np.column_stack([X, X[:, 2] + X[:, 3]])
    start = np.array([0.0, 7.0, 0.0, 0.0, 0.0])
    penalty = theory.implicit_penalty(X, theory.gradient_descent(0.01, 50), start=start)
    said = " ".join(penalty.notes)
    assert "Columns [1] are zero" in said
    assert "Columns [0] are constant" in said
    assert "rank 3 of 5" in said
    assert "1/f'(0) = 1." in said
    assert penalty.eigenvectors.shape == (5, 3)
    assert penalty.theta(rng.normal(size=6))[1] == 7
    assert penalty.null_eigenvalue == pytest.approx(1 / (2 * 0.01 * 50))
    full = theory.implicit_penalty(rng.normal(size=(9, 3)), theory.ridge(0.1))
    assert full.notes == ()


def test_small_singular_values_are_not_squared_away() -> None:
    """Condition 1e10, so that X'X would have no digit of the last direction."""
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(20, 3)))[0]
    right = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    sigma = np.array([1.0, 1e-5, 1e-10])
    penalty = theory.implicit_penalty(
        np.sqrt(20) * left * sigma @ right.T, theory.gradient_flow(1e19)
    )
    wanted = 1e-20 / np.expm1(2e-20 * 1e19)
    assert penalty.eigenvalues[2] == pytest.approx(wanted, rel=1e-5)


def test_degrees_of_freedom_are_the_trace_of_the_hat_matrix() -> None:
    rng = np.random.default_rng(0)
    X, weight = rng.normal(size=(12, 4)), rng.uniform(1, 2, size=12)
    filter = theory.gradient_descent(0.05, 9)
    for w in (None, weight):
        penalty = theory.implicit_penalty(X, filter, sample_weight=w)
        hat = np.column_stack([X @ penalty.theta(e) for e in np.eye(12)])
        found = theory.degrees_of_freedom(X, filter, sample_weight=w)
        assert found == pytest.approx(np.trace(hat), rel=1e-12)


@pytest.mark.parametrize("time", [1e-9, 1e-3, 1.0, 15.0])
def test_equivalent_ridge(time: float) -> None:
    X = np.random.default_rng(0).normal(size=(12, 4))
    filter = theory.gradient_flow(time)
    coef = theory.equivalent_ridge(X, filter)
    same = theory.ridge(coef)
    s = np.linalg.svd(X)[1] ** 2 / 12
    assert same.values(s).sum() == pytest.approx(filter.values(s).sum(), rel=1e-12)
    assert same.complement(s).sum() == pytest.approx(filter.complement(s).sum(), rel=1e-12)
    assert theory.equivalent_ridge(X, same) == pytest.approx(coef, rel=1e-12)


def test_equivalent_ridge_at_its_ends() -> None:
    X = np.random.default_rng(0).normal(size=(12, 4))
    assert theory.equivalent_ridge(X, theory.principal_components(4)) == 0
    assert theory.equivalent_ridge(np.ones((3, 1)), theory.ridge(0.4)) == pytest.approx(0.4)
    over = theory.gradient_descent(0.4, 3)
    with pytest.raises(ValueError, match="between 0 and 1 degrees of freedom, got 1.2"):
        theory.equivalent_ridge(np.full((3, 1), 1.42), over)


def test_scalar_equivalent_is_the_regression_on_l2() -> None:
    rng = np.random.default_rng(0)
    X, y, start = rng.normal(size=(30, 5)), rng.normal(size=30), rng.normal(size=5)
    for begin in (np.zeros(5), start):
        filter = theory.gradient_flow(0.4)
        penalty = theory.implicit_penalty(X, filter, y=y, start=begin)
        theta = penalty.theta()
        slope = 2 * X.T @ (X @ theta - y) / 30
        moved = theta - begin
        wanted = -(moved @ slope) / (2 * moved @ moved)
        assert theory.scalar_equivalent(theta, penalty) == pytest.approx(wanted, rel=1e-12)
        found = theory.scalar_equivalent(theta, penalty.matrix, start=begin)
        assert found == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(ValueError, match="away from the start"):
        theory.scalar_equivalent(start, penalty)


def test_averages_along_a_line_have_the_strength_of_their_filter() -> None:
    """Averages of 1..T at small h: ``1/tau (1 - h tau / 6)`` for the time tau."""
    lr, T = 1e-4, 10_000
    h = 0.1 / (lr * T)
    found = theory.gradient_descent(lr, T, average=True).penalty([h / 2])[0]
    assert found == pytest.approx(1 / (lr * T) * (1 - 0.1 / 6), rel=1e-3)


X2 = np.diag([1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.gradient_descent(0.1, 0), r"n_steps of gradient_descent .*got 0\."),
        (
            lambda: theory.gradient_descent(0.1, 2.5, 0.9),
            r"n_steps of gradient_descent .*got 2\.5\.",
        ),
        (
            lambda: theory.gradient_descent(0.1, 2, 1.0),
            r"momentum of gradient_descent .*got 1\.0\.",
        ),
        (lambda: theory.gradient_descent(0.1, 2, nesterov=True), "momentum for nesterov=True"),
        (lambda: theory.gradient_descent(-0.1, 2), r"lr of gradient_descent .*got -0\.1\."),
        (
            lambda: theory.exponential_average(0.1, 2, 1.0),
            r"decay of exponential_average .*got 1\.0\.",
        ),
        (lambda: theory.gradient_flow(0), r"time of gradient_flow .*got 0\."),
        (lambda: theory.ridge(0.0), r"coef of ridge to be a finite number > 0, got 0\.0\."),
        (lambda: theory.principal_components(0), r"k of principal_components .*got 0\."),
        (lambda: theory.l2_boosting(0.1, 5, "componentwise"), "'componentwise': which column"),
        (lambda: theory.l2_boosting(0.1, 5, "tree"), "learner='ols' or a filter.*got 'tree'"),
        (lambda: theory.l2_boosting(1.5, 5), r"rate of l2_boosting .*got 1\.5\."),
        (
            lambda: theory.l2_boosting(0.1, 5, theory.principal_components(1)),
            "smooth in X alone, got principal_components",
        ),
        (
            lambda: theory.implicit_penalty(X2, theory.principal_components(3)),
            "Expected k <= 2, the number of components that X has, got 3",
        ),
        (
            lambda: theory.implicit_penalty(np.eye(2), theory.principal_components(1)),
            "eigenvalues 0 and 1 of X'X/n to differ",
        ),
        (
            lambda: theory.implicit_penalty(X2, theory.conjugate_gradient(1)),
            "Expected y for conjugate_gradient",
        ),
        (
            lambda: theory.implicit_penalty(X2, theory.conjugate_gradient(1), y=[0.0, 0.0]),
            "X'y = 0",
        ),
        (
            lambda: theory.degrees_of_freedom(X2, theory.conjugate_gradient(1)),
            "eigenvalues alone, got conjugate_gradient",
        ),
        (lambda: theory.principal_components(1).penalty([1.0, 2.0]), "f <= 0 at s = "),
        (
            lambda: theory.ridge(1.0).values([-1.0]),
            r"finite eigenvalues s >= 0, got array\(\[-1\.\]\)\.",
        ),
        (lambda: theory.implicit_penalty([1.0], theory.ridge(1.0)), r"X to be a matrix.*\(1,\)"),
        (lambda: theory.implicit_penalty([[np.nan]], theory.ridge(1.0)), "some that are not"),
        (lambda: theory.implicit_penalty(np.zeros((2, 2)), theory.ridge(1.0)), "not zero"),
        (lambda: theory.implicit_penalty(X2, theory.ridge(1.0), start=[1.0]), "start to be 2"),
        (lambda: theory.implicit_penalty(X2, theory.ridge(1.0)).theta(), "Expected y, here or"),
        (
            lambda: theory.implicit_penalty(X2, theory.ridge(1.0), sample_weight=[-1, 2]),
            "weights >= 0",
        ),
        (lambda: theory.kernel_penalty([[1.0, 2.0], [0.0, 1.0]], theory.ridge(1.0)), "symmetric"),
        (
            lambda: theory.kernel_penalty([[1.0, 2.0], [2.0, 1.0]], theory.ridge(1.0)),
            "without negative eigenvalues, got -1",
        ),
        (
            lambda: theory.kernel_penalty(X2, theory.ridge(1.0), kind="krr"),  # type: ignore[arg-type]
            r"kind of kernel_penalty to be 'ridge' or 'ntk', got 'krr'\.",
        ),
        (
            lambda: theory.kernel_penalty(X2, theory.ridge(1.0), coef=-1.0),
            r"coef of kernel_penalty .*got -1\.0\.",
        ),
        (lambda: theory.input_dropout(X2, 1.0), r"rate of input_dropout .*got 1\.0\."),
        (lambda: theory.input_noise(-1.0), r"sigma of input_noise .*got -1\.0\."),
    ],
)
def test_what_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_conjugate_gradients_answer_for_their_own_target() -> None:
    X, y = np.diag([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 1.0])
    penalty = theory.implicit_penalty(X, theory.conjugate_gradient(3), y=y)
    assert norm(penalty.theta(y) - [1, 1 / 2, 1 / 3]) < 1e-14
    assert "this y only" in " ".join(penalty.notes)
    with pytest.raises(ValueError, match="got another: this filter depends on y"):
        penalty.theta(2 * y)


def test_a_filter_is_asked_for() -> None:
    with pytest.raises(TypeError, match=r"filter such as gradient_descent.*got 'ridge'"):
        theory.implicit_penalty(X2, "ridge")  # type: ignore[arg-type]


def test_a_singular_kernel_has_its_null_space_beside() -> None:
    penalty = theory.kernel_penalty(np.ones((3, 3)), theory.l2_boosting(0.5, 2))
    assert any("rank 1 of 3" in note for note in penalty.notes)
    np.testing.assert_allclose(penalty.theta([1.0, 2.0, 3.0]), 0.75 * 2 / 3 * np.ones(3))
    with pytest.raises(ValueError, match="without zero eigenvalues for l2_boosting"):
        theory.kernel_penalty(np.ones((3, 3)), theory.l2_boosting(0.5, 2), kind="ntk")
    with pytest.raises(ValueError, match="an entry that is not zero"):
        theory.kernel_penalty(np.zeros((3, 3)), theory.ridge(1.0))


def test_degrees_of_freedom_of_what_is_no_penalty() -> None:
    X = np.diag([1.0, 2.0]) * 2**0.5  # eigenvalues 1 and 4
    for strength in (theory.degrees_of_freedom, theory.equivalent_ridge):
        with pytest.raises(ValueError, match="Expected 0 < f < inf"):
            strength(X, theory.gradient_descent(lr=0.3, n_steps=2))
    with pytest.warns(StepSizeWarning, match="diverge"):
        theory.degrees_of_freedom(X, theory.gradient_descent(lr=0.3, n_steps=3))


def test_scalar_equivalent_of_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"Expected Lambda of shape \(2, 2\)"):
        theory.scalar_equivalent([1.0, 2.0], np.eye(3))
    with pytest.raises(ValueError, match="Expected theta to be 2 finite numbers"):
        theory.scalar_equivalent(np.ones(3), theory.implicit_penalty(np.eye(2), theory.ridge(1.0)))
    fitted = StructuredPenalty(np.array([1.0, 3.0]), {"coef": (2,)})
    assert theory.scalar_equivalent([1.0, 1.0], fitted) == 2.0


def test_conjugate_gradients_at_least_squares_say_so() -> None:
    X, y = np.diag([1.0, 2.0]), np.ones(2)
    for k in (2, 5):
        notes = theory.implicit_penalty(X, theory.conjugate_gradient(k), y=y).notes
        assert any("reached least squares" in note for note in notes)
    with pytest.warns(IndefinitePenaltyWarning):
        notes = theory.implicit_penalty(X, theory.conjugate_gradient(1), y=y).notes
    assert not any("reached least squares" in note for note in notes)
