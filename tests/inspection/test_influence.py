"""Influence of single equations."""

from __future__ import annotations

import numpy as np
import pytest
from displays import X, Y, fit

from sklearn_implicitreg import ImplicitRegularizationEstimator, equations
from sklearn_implicitreg.inspection import InfluenceDisplay

sm = pytest.importorskip("statsmodels.api")


def test_numbers_are_those_of_statsmodels():
    est = fit(family="l1+power")
    display = InfluenceDisplay.from_estimator(est, n_labels=3)
    rows = equations(est, X, Y)
    other = sm.OLS(rows.target, rows.data).fit().get_influence()
    order = np.argsort(-other.cooks_distance[0])
    np.testing.assert_allclose(display.leverage, other.hat_matrix_diag[order], rtol=1e-9)
    np.testing.assert_allclose(display.residual, other.resid_studentized_external[order], rtol=1e-8)
    points = display.scatter_.get_offsets()
    np.testing.assert_array_equal(points, np.column_stack([display.leverage, display.residual]))
    named = {text.get_text() for text in display.texts_}
    assert named == {f"coef[{i}]" for i in order[:3]}
    assert display.mean_leverage == 2 / 10


def test_areas_are_cooks_distances():
    display = InfluenceDisplay.from_estimator(fit(family="l1"), n_labels=0)
    area = display.scatter_.get_sizes() - 12
    np.testing.assert_allclose(area / area[0], display.cooks_distance / display.cooks_distance[0])
    assert display.texts_ == []


def test_the_most_influential_ones_are_kept():
    est = fit(family="l1")
    display = InfluenceDisplay.from_estimator(est, top=4)
    frame = est.influence(4)
    np.testing.assert_array_equal(display.cooks_distance, frame["cooks_d"])


def test_an_equation_that_alone_determines_a_coefficient():
    design = np.zeros((6, 2))
    design[:5, 0] = [1.0, 2.0, 3.0, 4.0, 5.0]
    design[5, 1] = 1.0
    target = np.array([1.0, 2.5, 2.7, 4.2, 4.9, 2.0])
    est = ImplicitRegularizationEstimator("precomputed").fit(design, target)
    display = InfluenceDisplay.from_estimator(est, n_labels=1)
    assert len(display.scatter_.get_offsets()) == 5
    np.testing.assert_allclose(display.alone_.get_offsets(), [[1.0, 0.0]])
    assert [text.get_text() for text in display.texts_] == ["5"]
