"""Matrices of quadratic penalties."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from displays import RIDGE, X, Y, fit, of_resamples
from sklearn.linear_model import Ridge

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.inspection import SpectrumDisplay
from sklearn_implicitreg.penalties import StructuredPenalty
from sklearn_implicitreg.theory import gradient_flow, implicit_penalty, ridge


def test_a_ridge_is_flat():
    est = of_resamples("quadratic")
    display = SpectrumDisplay.from_estimator(est, theory=implicit_penalty(X, ridge(5 / len(Y))))
    np.testing.assert_allclose(display.eigenvalues_.get_ydata(), 5 / len(Y), rtol=1e-6)
    np.testing.assert_allclose(display.ridge_.get_ydata(), 5 / len(Y), rtol=1e-9)
    np.testing.assert_allclose(display.theory_.get_ydata(), 5 / len(Y), rtol=1e-9)
    np.testing.assert_array_equal(display.image_.get_array(), est.penalty_.matrix_)


def test_eigenvalues_are_those_of_theory():
    penalty = implicit_penalty(X, gradient_flow(0.1))
    display = SpectrumDisplay.from_penalty(penalty, name="flow")
    expected = np.sort(penalty.eigenvalues)[::-1]
    np.testing.assert_allclose(display.eigenvalues_.get_ydata(), expected, rtol=1e-9)
    assert np.ptp(expected) > 0.1 * expected[0]
    assert display.ridge_.get_ydata()[0] == pytest.approx(np.trace(penalty.matrix) / 10)
    assert display.theory_ is None
    assert display.ax_.get_title(loc="left") == "flow"


def test_a_diagonal_has_no_image():
    est = fit(family="diagonal")
    display = SpectrumDisplay.from_estimator(est)
    assert display.image_ is None
    assert len(display.axes_) == 1
    np.testing.assert_array_equal(display.eigenvalues_.get_ydata(), np.sort(est.coef_)[::-1])


def test_a_long_diagonal_makes_no_matrix():
    penalty = StructuredPenalty(np.arange(1e6), {"w": (1_000_000,)})
    display = SpectrumDisplay.from_penalty(penalty)
    assert display.eigenvalues_.get_ydata()[0] == 1e6 - 1


def test_features_name_rows():
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(10)])
    model = Ridge(5.0).fit(frame, Y)
    est = ImplicitRegularizationEstimator(model, family="quadratic").fit(frame, Y)
    display = SpectrumDisplay.from_estimator(est)
    labels = [label.get_text() for label in display.axes_[1].get_yticklabels()]
    assert labels == list(frame.columns)
    plain = SpectrumDisplay.from_estimator(fit(RIDGE, family="quadratic"))
    assert plain.parameter_names[0] == "coef[0]"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"matrix": [[1.0, 2.0], [0.0, 1.0]]}, "Expected matrix to be symmetric"),
        ({"matrix": np.eye(2), "theory": np.eye(3)}, "Expected theory for 2 parameters"),
        ({"matrix": np.eye(2), "parameter_names": ["a"]}, "Expected 2 parameter_names"),
    ],
)
def test_wrong_matrices(given, text):
    with pytest.raises(ValueError, match=text):
        SpectrumDisplay(**given)


def test_a_penalty_without_a_matrix():
    with pytest.raises(TypeError, match="Expected a StructuredPenalty or an ImplicitPenalty"):
        SpectrumDisplay.from_penalty(fit().penalty_)
