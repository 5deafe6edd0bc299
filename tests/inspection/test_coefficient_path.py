"""Coefficients by window."""

from __future__ import annotations

import numpy as np
import pytest
from displays import DECAYS, of_resamples, on_path

from sklearn_implicitreg.inspection import CoefficientPathDisplay


def test_numbers_are_those_of_the_fit():
    est = on_path(reference="batch")
    display = CoefficientPathDisplay.from_estimator(est, theory=DECAYS)
    np.testing.assert_array_equal(display.path, est.coef_path_)
    np.testing.assert_array_equal(display.bands, est.coef_path_conf_int_)
    (line,), (shared,), (theory,) = display.lines_, display.shared_, display.theory_
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(line.get_ydata(), est.coef_path_[:, 0])
    np.testing.assert_array_equal(shared.get_ydata(), [est.coef_[0]] * 2)
    np.testing.assert_array_equal(theory.get_ydata(), DECAYS)
    np.testing.assert_allclose(line.get_ydata(), theory.get_ydata(), atol=1e-9)
    assert display.ax_.get_xlabel() == "window"


def test_bands_are_drawn():
    est = on_path()
    display = CoefficientPathDisplay.from_estimator(est)
    (band,) = display.bands_
    corners = band.get_paths()[0].vertices[:, 1]
    assert set(np.round(est.coef_path_conf_int_[:, 0].ravel(), 12)) <= set(np.round(corners, 12))


def test_terms_beside_the_family_are_left_out_until_asked_for():
    est = on_path()
    assert est.term_names_ == ["weight_decay", "minibatch"]
    assert CoefficientPathDisplay.from_estimator(est).term_names == ["weight_decay"]
    display = CoefficientPathDisplay.from_estimator(est, terms=["minibatch"])
    np.testing.assert_array_equal(display.path[:, 0], est.coef_path_[:, 1])


def test_groups_have_panels():
    est = on_path(group_by="layer", reference="batch")
    display = CoefficientPathDisplay.from_estimator(est, theory={"weight_decay[2]": 0.01})
    assert len(display.axes_) == len(display.lines_) == 2
    assert display.theory_[0] is None
    np.testing.assert_array_equal(display.theory_[1].get_ydata(), [0.01, 0.01])
    assert [ax.get_ylabel() for ax in display.axes_] == ["weight_decay[0]", "weight_decay[2]"]


def test_endpoints_have_error_bars():
    est = of_resamples()
    display = CoefficientPathDisplay.from_estimator(est)
    assert display.place == "endpoint"
    (line,) = display.lines_
    assert line.get_linestyle() == "None"
    np.testing.assert_array_equal(line.get_ydata(), est.coef_path_[:, 0])


def test_many_terms_are_cut_and_named():
    names = [f"t{i}" for i in range(3)]
    path = np.random.default_rng(0).normal(size=(5, 3))
    display = CoefficientPathDisplay(path=path, term_names=names).plot()
    assert display.shared_ == display.theory_ == [None] * 3
    path[2] = np.nan
    bands = np.stack([path - 1, path + np.inf], axis=-1)
    CoefficientPathDisplay(path=path, bands=bands, shared=[0, 0, 0], term_names=names).plot()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"terms": ["l9"]}, r"Expected terms to be a list among \['weight_decay', 'minibatch'\]"),
        ({"terms": "weight_decay"}, "Expected terms to be a list among"),
        ({"theory": [0.1, 0.2]}, "each a number or 4 of them"),
        ({"theory": {"l2": 0.1}}, "Expected theory of terms among"),
        ({"theory": "a"}, "Expected theory to be an array of real numbers"),
    ],
)
def test_wrong_terms_and_theory(given, text):
    with pytest.raises(ValueError, match=text):
        CoefficientPathDisplay.from_estimator(on_path(), **given)


def test_theory_of_several_terms_is_a_dict():
    with pytest.raises(ValueError, match="Expected theory as a dict of term to value"):
        CoefficientPathDisplay.from_estimator(on_path(group_by="layer"), theory=0.1)
