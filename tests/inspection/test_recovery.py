"""Training again, drawn: every point is a number of the recovery."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from displays import LASSO, RIDGE, X, Y, fit
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.inspection import RecoveryDisplay

mcolors = pytest.importorskip("matplotlib.colors")
plt = pytest.importorskip("matplotlib.pyplot")

COLUMNS = ["arm", "draw", "distance", "matched", "function", "objective"]


def table(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def values(display, arm):
    return [points.get_offsets()[:, 1].tolist() for points in display.scatters_[arm]]


@pytest.fixture(scope="module")
def network():
    """A tanh net at the minimum of L + 0.02 sum of squares, and its fit."""
    rng = np.random.default_rng(0)
    inputs = torch.tensor(rng.standard_normal((60, 4)))
    target = torch.tanh(inputs.sum(1, keepdim=True))
    target = target + 0.3 * torch.tensor(rng.standard_normal((60, 1)))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=3000, tolerance_change=0, tolerance_grad=1e-11,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = (net(inputs) - target).square().mean()
        loss = loss + 0.02 * sum(p.square().sum() for p in net.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    est = ImplicitRegularizationEstimator(net, loss="mse", params="all").fit(inputs, target)
    return est, inputs, target


def test_points_of_a_network_are_its_runs(network):
    est, inputs, target = network
    found = est.recover(inputs, target, n_draws=2)
    display = found.plot()
    assert type(display) is RecoveryDisplay
    assert display.objective == found.model.loss + found.model.penalty
    for arm, own in found.runs.groupby("arm"):
        weights, functions, loss = values(display, arm)
        np.testing.assert_allclose(weights, own["matched"], rtol=1e-12)
        np.testing.assert_allclose(functions, own["function"], rtol=1e-12)
        above = np.abs(own["objective"] - display.objective).clip(1e-16)
        np.testing.assert_allclose(loss, above, rtol=1e-12)
    assert max(values(display, "recovered")[1]) < display.back < min(values(display, "ablated")[1])
    title = display.ax_.get_legend().get_title().get_text()
    assert title == "function back in 2 of 2, without R in 0 of 2"
    assert display.axes_[-1].get_xlabel() == "draw"
    again = RecoveryDisplay.from_estimator(est, inputs, target, n_draws=2)
    pd.testing.assert_frame_equal(again.runs, found.runs)


def test_one_arm_alone(network):
    est, inputs, target = network
    display = est.recover(inputs, target, n_draws=1, arms=("ablated",)).plot()
    assert list(display.scatters_) == ["ablated"]
    title = display.ax_.get_legend().get_title().get_text()
    assert title == "function back without R in 0 of 1"


@pytest.mark.parametrize(
    ("made", "method"), [(fit, "closed form"), (lambda: fit(LASSO, family="l1"), "refit")]
)
def test_linear_models_are_single_points(made, method):
    found = made().recover(X, Y)
    display = found.plot()
    assert display.back is display.back_ is None
    for arm in ("recovered", "ablated"):
        own = getattr(found, arm)
        above = own.loss + own.penalty - display.objective
        expected = np.abs([own.distance, own.prediction, above]).clip(1e-16)
        np.testing.assert_allclose(np.ravel(values(display, arm)), expected, rtol=1e-9)
    assert display.ax_.get_legend().get_title().get_text() == f"trained again: {method}"
    assert not len(display.axes_[-1].get_xticks())


def test_lines_lead_from_before_matching_to_after_it():
    runs = table(
        ["recovered", 0, 1.4, 1e-7, 1e-8, 1.0],
        ["recovered", 1, 0.3, 0.3, 1e-2, 1.0],
        ["ablated", 0, 2.0, np.nan, 0.5, 3.0],
    )
    display = RecoveryDisplay(runs=runs, objective=1.0).plot()
    (line,) = display.lines_["recovered"].get_segments()
    np.testing.assert_allclose(line[:, 1], [1e-7, 1.4])
    assert display.lines_["ablated"].get_segments() == []
    assert values(display, "ablated")[0] == [2.0]
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["recovered", "without R", "unmatched"]


def test_a_loss_below_the_models_is_hollow():
    runs = table(
        ["recovered", 0, 0.1, 0.1, 0.1, 1.9],
        ["recovered", 1, 0.1, 0.1, 0.1, 2.0 - 1e-14],
        ["recovered", 2, 0.1, 0.1, 0.1, 2.5],
    )
    display = RecoveryDisplay(runs=runs, objective=2.0).plot()
    loss = display.scatters_["recovered"][2]
    white = [mcolors.to_hex(c) == "#ffffff" for c in loss.get_facecolor()]
    assert white == [True, False, False]
    np.testing.assert_allclose(loss.get_offsets()[::2, 1], [0.1, 0.5])
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["recovered", "lower L + R"]


def test_what_is_zero_infinite_or_unknown_is_drawn_without_a_warning():
    runs = table(
        ["recovered", 0, 0.0, 0.0, 0.0, 1.0],
        ["ablated", 0, np.nan, np.nan, np.inf, np.inf],
    )
    display = RecoveryDisplay(runs=runs, objective=1.0).plot()
    display.figure_.canvas.draw()
    assert values(display, "recovered") == [[1e-16]] * 3
    only = RecoveryDisplay(runs=runs[1:], objective=1.0).plot()
    only.figure_.canvas.draw()


def test_further_arms_have_looks_of_their_own():
    runs = table(*[[arm, 0, 0.1, 0.1, 0.1, 1.0] for arm in ("recovered", "ablated", "nudged")])
    display = RecoveryDisplay(runs=runs, objective=1.0).plot()
    colors = {mcolors.to_hex(s[0].get_facecolor()[0]) for s in display.scatters_.values()}
    assert len(colors) == 3


def test_styles():
    runs = table(["recovered", 0, 1.4, 0.1, 0.1, 1.0])
    display = RecoveryDisplay(runs=runs, objective=2.0)
    display.plot(scatter_kwargs={"color": "r", "s": 50}, line_kwargs={"lw": 3})
    points = display.scatters_["recovered"][0]
    assert mcolors.to_hex(points.get_facecolor()[0]) == mcolors.to_hex("r")
    assert points.get_sizes() == [50]
    assert display.lines_["recovered"].get_linewidth() == [3]


def test_inside_pipelines_and_searches():
    est = ImplicitRegularizationEstimator(RIDGE)
    pipeline = make_pipeline(FunctionTransformer(), est).fit(X, Y)
    search = GridSearchCV(est, {"family": ["l2"]}, cv=3).fit(X, Y)
    expected = fit().recover(X, Y).recovered.distance
    for given in (pipeline, search):
        display = RecoveryDisplay.from_estimator(given, X, Y)
        assert display.runs["distance"][0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("wrong", [None, 3, RIDGE, RecoveryDisplay, "a"])
def test_what_is_no_recovery(wrong):
    with pytest.raises(TypeError, match="Expected a Recovery, got .* give the result of est.recov"):
        RecoveryDisplay.from_recovery(wrong)


@pytest.mark.parametrize("runs", [None, table(), table(["a"] + [0.1] * 5).drop(columns="draw"), []])
def test_runs_without_what_is_drawn(runs):
    with pytest.raises(ValueError, match="Expected runs to be a DataFrame with rows and the col"):
        RecoveryDisplay(runs=runs, objective=1.0)


def test_one_axes_is_divided():
    _, ax = plt.subplots()
    display = fit().recover(X, Y).plot(ax=ax)
    assert len(display.axes_) == 3
    assert display.figure_ is ax.figure
