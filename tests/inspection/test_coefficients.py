"""Coefficients with intervals."""

from __future__ import annotations

import numpy as np
from displays import fit, of_net, on_path

from sklearn_implicitreg.inspection import CoefficientDisplay


def drawn(display, panel=0):
    """Values and interval ends of a panel."""
    line, _, (bars,) = display.errorbars_[panel].lines
    ends = [segment[:, 0] for segment in bars.get_segments()]
    return line.get_xdata(), np.array(ends)


def test_numbers_are_those_of_the_fit():
    est = fit(family="l2+power")
    display = CoefficientDisplay.from_estimator(est)
    values, ends = drawn(display)
    np.testing.assert_array_equal(values, est.coef_)
    np.testing.assert_allclose(ends, est.conf_int_, rtol=1e-12)
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert labels == est.term_names_
    assert display.ax_.get_title() == f"$R^2$ = {est.r2_:.4f} ({est.verdict_})"


def test_groups_are_rows_and_terms_are_panels():
    est = of_net(family="l2+l1", group_by="layer")
    display = CoefficientDisplay.from_estimator(est)
    assert len(display.axes_) == 2
    frame = est.to_frame()
    for panel, (_, own) in enumerate(frame.groupby("term", sort=False)):
        values, ends = drawn(display, panel)
        np.testing.assert_array_equal(values, own["coef"])
        np.testing.assert_allclose(ends, own[["ci_low", "ci_high"]], rtol=1e-9)
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["0", "2"]


def test_terms_beside_the_family_are_left_out():
    est = on_path()
    assert "minibatch" in est.term_names_
    assert CoefficientDisplay.from_estimator(est).term_names == ["weight_decay"]


def test_time_of_early_stopping():
    est = fit(family="early_stopping")
    display = CoefficientDisplay.from_estimator(est)
    values, ends = drawn(display)
    np.testing.assert_array_equal(values, est.coef_)
    np.testing.assert_allclose(ends, est.conf_int_, rtol=1e-12)


def test_many_rows_and_no_interval():
    names = [f"layer{i}" for i in range(120)]
    display = CoefficientDisplay(
        coef=np.arange(120.0), term_names=["l2"] * 120, groups=names
    ).plot()
    assert len(display.ax_.get_yticklabels()) == 40
    low = CoefficientDisplay(coef=[1.0], conf_int=[[-np.inf, np.inf]], term_names=["l2"]).plot()
    assert np.isfinite(low.ax_.get_xlim()).all()
