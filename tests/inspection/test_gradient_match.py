"""The picture of a fit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from cases import X_DIABETES, Y_DIABETES
from displays import trained
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.inspection import GradientMatchDisplay
from sklearn_implicitreg.inspection.drawing import COLORS

mcolors = pytest.importorskip("matplotlib.colors")
plt = pytest.importorskip("matplotlib.pyplot")

X, Y = X_DIABETES, Y_DIABETES
RIDGE = Ridge(50.0).fit(X, Y)


def layered(n_layers=2):
    net = nn.Sequential(*(nn.Linear(10, 10) for _ in range(n_layers)), nn.Linear(10, 1)).double()
    return ImplicitRegularizationEstimator(net, loss="mse", params="all").fit(X, Y / 100)


def test_points_are_the_equations():
    est = ImplicitRegularizationEstimator(RIDGE, family="l1").fit(X, Y)
    display = GradientMatchDisplay.from_estimator(est, X, Y)
    frame = display.frame()
    gradient = 2 / len(Y) * X.T @ (RIDGE.predict(X) - Y)
    np.testing.assert_allclose(frame["target"], -gradient, rtol=1e-9)
    np.testing.assert_allclose(frame["fitted"], est.coef_[0] * np.sign(RIDGE.coef_), rtol=1e-12)
    (points,) = display.scatters_
    np.testing.assert_array_equal(points.get_offsets(), frame[["fitted", "target"]])
    residual = frame["target"] - frame["fitted"]
    r2 = 1 - np.sum(residual**2) / np.sum(frame["target"] ** 2)
    assert display.r2 == pytest.approx(r2, rel=1e-12)
    assert display.ax_.figure is display.figure_


def test_title_has_coefficient_verdict_and_r2():
    est = ImplicitRegularizationEstimator(RIDGE, family="l1").fit(X, Y)
    title = GradientMatchDisplay.from_estimator(est, X, Y).ax_.get_title()
    assert title == f"l1: {est.coef_[0]:.3g} (partial)\n$R^2$ = {est.r2_:.4f}"
    named = GradientMatchDisplay.from_estimator(est, X, Y, name="diabetes").ax_.get_title()
    assert named.startswith("diabetes\n")
    display = GradientMatchDisplay(target=[1.0], fitted=[1.0], groups=["w"], r2=1.0)
    assert display.plot().ax_.get_title() == "$R^2$ = 1.0000"


def test_long_titles_are_short():
    net = nn.Sequential(*(nn.Linear(10, 10) for _ in range(5))).double()
    est = ImplicitRegularizationEstimator(net, loss="mse", group_by="layer")
    est.fit(X, np.tile(Y[:, None] / 100, 10))
    title = GradientMatchDisplay.from_estimator(est, X, np.tile(Y[:, None] / 100, 10)).ax_
    assert title.get_title().startswith("5 terms (")


def test_diagonal_is_one():
    ax = GradientMatchDisplay.from_estimator(layered(), X, Y / 100).ax_
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_aspect() == 1.0
    low, high = ax.get_xlim()
    assert low == -high


def test_axes_are_used_and_styles_passed_on():
    _, ax = plt.subplots()
    est = ImplicitRegularizationEstimator(RIDGE).fit(X, Y)
    display = GradientMatchDisplay.from_estimator(
        est, X, Y, ax=ax, scatter_kwargs={"s": 50, "color": "r"}, line_kwargs={"color": "b"}
    )
    assert display.ax_ is ax
    assert display.scatters_[0].get_sizes() == [50]
    assert display.line_.get_color() == "b"
    again = display.plot()
    assert again is display
    assert display.ax_ is not ax


@pytest.mark.parametrize(("n_layers", "named"), [(0, True), (2, True), (6, False)])
def test_tensors_have_colors_and_names(n_layers, named):
    est = layered(n_layers)
    display = GradientMatchDisplay.from_estimator(est, X, Y / 100)
    assert len(display.scatters_) == 2 * (n_layers + 1)
    legend = display.ax_.get_legend()
    assert (legend is not None) == named
    if named:
        names = [text.get_text() for text in legend.get_texts()]
        assert names == [s.get_label() for s in display.scatters_] == list(est.penalty_.tensors)


def test_many_points_are_sampled():
    rng = np.random.default_rng(0)
    points = rng.normal(size=30_000)
    groups = np.repeat(["a", "b"], 15_000)
    display = GradientMatchDisplay(target=points, fitted=points, groups=groups, r2=1.0).plot()
    assert sum(len(s.get_offsets()) for s in display.scatters_) == 20_000
    assert len(display.frame()) == 30_000
    assert display.scatters_[0].get_rasterized()


def test_picture_of_a_search_and_of_weights():
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(Y))
    model = Ridge(50.0).fit(X, Y, sample_weight=weights)
    search = ImplicitRegularizationCV(model, families=["l1", "l2"]).fit(X, Y, weights)
    frame = GradientMatchDisplay.from_estimator(search, X, Y, weights).frame()
    np.testing.assert_allclose(frame["fitted"], frame["target"], rtol=1e-8)


def test_no_gradient_is_drawn():
    display = GradientMatchDisplay(target=np.zeros(3), fitted=np.zeros(3), groups=["w"] * 3, r2=0.0)
    assert display.plot().ax_.get_xlim() == (-1.0, 1.0)


def test_unfitted_is_refused():
    with pytest.raises(NotFittedError):
        GradientMatchDisplay.from_estimator(ImplicitRegularizationEstimator(RIDGE), X, Y)


def test_given_equations_are_those_of_the_fit():
    est = ImplicitRegularizationEstimator("precomputed").fit(X, Y)
    display = GradientMatchDisplay.from_estimator(est)
    np.testing.assert_allclose(display.fitted, X @ est.coef_, rtol=1e-12)
    np.testing.assert_array_equal(display.target, Y)
    with pytest.raises(ValueError, match="Expected a model, got 'precomputed': its equations are"):
        GradientMatchDisplay.from_estimator(est, X, Y)


def test_pipelines_are_looked_into():
    """The picture is that of the inner estimator on what the steps before it make of X."""
    scaled = StandardScaler().fit_transform(X)
    pipeline = make_pipeline(
        StandardScaler(),
        ImplicitRegularizationEstimator(Ridge(5.0).fit(scaled, Y), family="l1"),
    ).fit(X, Y)
    target = 2 / len(Y) * scaled.T @ (Y - pipeline[-1].model_.predict(scaled))
    search = GridSearchCV(pipeline[-1], {"family": ["l1"]}, cv=KFold(5, shuffle=True))
    for estimator, rows in (
        (pipeline, (X, Y)),
        (pipeline, ()),
        (FrozenEstimator(pipeline), (X, Y)),
        (search.fit(scaled, Y), (scaled, Y)),
    ):
        display = GradientMatchDisplay.from_estimator(estimator, *rows)
        np.testing.assert_allclose(display.target, target, rtol=1e-9)
        assert display.r2 == pytest.approx(pipeline[-1].r2_, rel=1e-12)


def test_points_of_a_trajectory_have_its_r2():
    """They are those of the mean, with the column of mini-batching projected out."""
    net, path = trained()
    est = ImplicitRegularizationEstimator(
        net, family="weight_decay", loss="mse", params="all", mode="trajectory", trajectory=path,
        window="epoch",
    ).fit(X, Y[:, None] / 100)  # fmt: skip
    assert est.term_names_ == ["weight_decay", "minibatch"]
    display = GradientMatchDisplay.from_estimator(est)
    left = np.sum((display.target - display.fitted) ** 2) / np.sum(display.target**2)
    assert display.r2 == pytest.approx(1 - left, rel=1e-9)
    assert len(display.target) == sum(p.numel() for p in net.parameters())


def test_colors_are_for_everyone():
    display = GradientMatchDisplay.from_estimator(layered(2), X, Y / 100)
    colors = [mcolors.to_hex(s.get_facecolor()[0]).upper() for s in display.scatters_]
    assert colors == list(COLORS[:6])
    shapes = {s.get_paths()[0].vertices.tobytes() for s in display.scatters_}
    assert len(shapes) == 6


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    display = GradientMatchDisplay(target=[1.0], fitted=[1.0], groups=["w"], r2=1.0)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install sklearn_implicitreg\[pl"):
        display.plot()
