"""Eigenvalues of early stopping against more digits, and against differences."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from sklearn_implicitreg.theory import early_stopping_eigenvalues, early_stopping_slopes

S = np.array([1e-300, 1e-16, 1e-9, 1e-3, 0.3, 1.0, 2.4, 4.9, 5.0])


def exact(s: float, lr: float | None, t: float, slope: bool = False) -> float:
    """The eigenvalue or its derivative in log t, in 400 digits."""
    with mpmath.workdps(400):
        s, t = mpmath.mpf(s), mpmath.mpf(t)
        x = 2 * s * t if lr is None else -t * mpmath.log(1 - 2 * mpmath.mpf(lr) * s)
        value = s / (mpmath.exp(x) - 1)
        return float(-value * x / (1 - mpmath.exp(-x)) if slope else value)


@pytest.mark.parametrize("t", [1, 0.37, 7.5, 200, 10_000])
@pytest.mark.parametrize("lr", [None, 1e-4, 0.0625])
def test_eigenvalues_and_slopes_to_the_last_digits(lr: float | None, t: float) -> None:
    # An exponent x has an error of x eps, which is the relative error of its exponential.
    wanted = [exact(s, lr, t) for s in S]
    size = 2 * S * t * (lr or 1)
    rounding = 1e-15 * (10 + 2 * size)
    found = early_stopping_eigenvalues(S, lr, t)
    normal = np.array(wanted) > 1e-300
    np.testing.assert_array_less(
        np.abs(found - wanted)[normal], (rounding * np.array(wanted))[normal]
    )
    wanted = [exact(s, lr, t, slope=True) for s in S]
    found = early_stopping_slopes(S, lr, t)
    np.testing.assert_array_less(
        np.abs(found - wanted)[normal], (rounding * np.abs(wanted))[normal]
    )


def test_slopes_are_differences() -> None:
    s, step = np.array([0.0, 1e-3, 0.1, 1.0, 3.0]), 1e-5
    for lr, t in ((0.1, 12.3), (None, 0.8)):
        ahead = early_stopping_eigenvalues(s, lr, t * np.exp(step))
        behind = early_stopping_eigenvalues(s, lr, t * np.exp(-step))
        found = early_stopping_slopes(s, lr, t)
        np.testing.assert_allclose(found, (ahead - behind) / (2 * step), rtol=1e-8)


def test_zero_and_the_extremes() -> None:
    assert early_stopping_eigenvalues([0.0], 0.1, 4) == pytest.approx(1 / 0.8, rel=1e-15)
    assert early_stopping_slopes([0.0], 0.1, 4) == pytest.approx(-1 / 0.8, rel=1e-15)
    # One step of size 1/(2s) arrives, and so does a long time: nothing is left of the penalty.
    for lr, t in ((0.5, 3.0), (0.4, 1e7), (None, 1e7)):
        assert early_stopping_eigenvalues([1.0], lr, t) == 0
        assert early_stopping_slopes([1.0], lr, t) == 0


@pytest.mark.parametrize(("t", "h"), [(3, 1.25), (4, 1.25), (5, 1.9999999), (6, 1.9999999)])
def test_steps_past_the_goal(t: int, h: float) -> None:
    with mpmath.workdps(60):
        left = (1 - mpmath.mpf(h)) ** t
        wanted = float(left / (1 - left))
    assert early_stopping_eigenvalues([1.0], h / 2, t) == pytest.approx(wanted, rel=1e-14)


def test_steps_broadcast() -> None:
    table = early_stopping_eigenvalues(S, 0.1, np.array([[1.0], [2.0]]))
    np.testing.assert_array_equal(table[1], early_stopping_eigenvalues(S, 0.1, 2))


@pytest.mark.parametrize(
    ("s", "lr", "t", "message"),
    [
        ([-1.0], 0.1, 3, r"finite eigenvalues s >= 0, got array\(\[-1\.\]\)\."),
        ([1.0], 0.0, 3, r"lr of early_stopping_eigenvalues .*got 0\.0\."),
        ([1.0], 0.1, 0, "positive finite n_steps, got 0: after no step"),
        ([1.0], None, float("inf"), "positive finite n_steps, got inf"),
        ([1.0], 0.6, 2.5, "whole number of steps where 2 lr s > 1, got 2.5"),
    ],
)
def test_what_is_refused(s: list[float], lr: float | None, t: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        early_stopping_eigenvalues(s, lr, t)


def test_no_slope_past_the_goal() -> None:
    with pytest.raises(ValueError, match=r"Expected 2 lr s <= 1, got 1.2"):
        early_stopping_slopes([1.0], 0.6, 3)
