"""What all displays keep to: conventions of scikit-learn, choice of one, bad input."""

from __future__ import annotations

import inspect
import pickle
import sys

import numpy as np
import pytest
from displays import LASSO, RIDGE, X, Y, fit, of_net, of_resamples, on_path, trained
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg import inspection as package
from sklearn_implicitreg.inspection import (
    CoefficientDisplay,
    CoefficientPathDisplay,
    FamilyComparisonDisplay,
    GradientMatchDisplay,
    IdentifiabilityDisplay,
    InfluenceDisplay,
    PenaltyShapeDisplay,
    RecoveryDisplay,
    SpectrumDisplay,
)
from sklearn_implicitreg.inspection.drawing import COLORS, LINES, MARKERS

plt = pytest.importorskip("matplotlib.pyplot")

DISPLAYS = [getattr(package, name) for name in package.__all__]


def search():
    return ImplicitRegularizationCV(RIDGE, families=["l1", "l2"]).fit(X, Y)


MADE = {
    CoefficientDisplay: lambda: fit(family="l2+power"),
    CoefficientPathDisplay: on_path,
    FamilyComparisonDisplay: search,
    GradientMatchDisplay: lambda: fit(family="l1"),
    IdentifiabilityDisplay: lambda: fit(family="l2+power"),
    InfluenceDisplay: lambda: fit(family="l1"),
    PenaltyShapeDisplay: lambda: fit(LASSO, family="l1"),
    RecoveryDisplay: fit,
    SpectrumDisplay: lambda: fit(family="quadratic"),
}
ROWS = {RecoveryDisplay: (X, Y)}  # which it trains on


def drawn(display, **params):
    return display.from_estimator(MADE[display](), *ROWS.get(display, ()), **params)


@pytest.mark.parametrize("display", DISPLAYS)
def test_conventions(display):
    made = drawn(display)
    for name in inspect.signature(display).parameters:
        assert hasattr(made, name), "data are kept under the names of the constructor"
    data = {name: getattr(made, name) for name in inspect.signature(display).parameters}
    assert set(vars(display(**data))) == set(data), "nothing is drawn before plot"
    again = display(**data)
    assert again.plot() is again
    assert again.figure_ is again.ax_.figure
    assert made.ax_ is not again.ax_
    assert {name for name in vars(again) if not name.endswith("_")} == set(data)
    parameters = list(inspect.signature(display.plot).parameters.values())
    assert [p.name for p in parameters[:2]] == ["self", "ax"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])
    shown = set(inspect.signature(display.from_estimator).parameters)
    assert {p.name for p in parameters[1:]} <= shown
    assert again.figure_.get_size_inches()[0] == 6.4


@pytest.mark.parametrize("display", DISPLAYS)
def test_one_axes_is_used_or_divided(display):
    figure, (left, right) = plt.subplots(1, 2)
    made = drawn(display, ax=left)
    assert made.figure_ is figure
    axes = getattr(made, "axes_", [made.ax_])
    assert (left in axes) == (len(axes) == 1)
    assert not right.has_data()
    figure.canvas.draw()
    if len(axes) > 1:
        _, given = plt.subplots(1, len(axes))
        assert list(made.plot(list(given)).axes_) == list(given)
        with pytest.raises(ValueError, match=f"give a list of {len(axes)} axes"):
            made.plot(plt.figure().add_axes((0, 0, 1, 1)))
    for wrong in ("a", 3, plt.figure(), [left] * (len(axes) + 1)):
        with pytest.raises(ValueError, match="Expected ax of plot to be None, Axes of matplotlib"):
            made.plot(wrong)


@pytest.mark.parametrize("display", DISPLAYS)
def test_styles_are_passed_on_under_any_alias(display):
    names = [n for n in inspect.signature(display.plot).parameters if n.endswith("_kwargs")]
    assert names
    made = drawn(display)
    for name in names:
        made.plot(**{name: {"cmap": "gray"} if name == "image_kwargs" else {"alpha": 0.5}})
    if display is GradientMatchDisplay:
        assert made.plot(line_kwargs={"c": "b", "lw": 3}).line_.get_color() == "b"


@pytest.mark.parametrize("display", DISPLAYS)
def test_without_matplotlib(display, monkeypatch):
    est = MADE[display]()
    made = display.from_estimator(est, *ROWS.get(display, ()))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    text = rf"{display.__name__}.plot needs matplotlib: pip install sklearn_implicitreg\[plot\]"
    with pytest.raises(ImportError, match=text):
        made.plot()
    with pytest.raises(ImportError, match=text):
        display.from_estimator(est, *ROWS.get(display, ()))
    with pytest.raises(ImportError, match="needs matplotlib"):
        est.plot()


@pytest.mark.parametrize("display", DISPLAYS)
@pytest.mark.parametrize(
    "unfitted",
    [
        ImplicitRegularizationEstimator(RIDGE),
        ImplicitRegularizationCV(RIDGE, families=["l2"]),
        make_pipeline(ImplicitRegularizationEstimator(RIDGE)),
        GridSearchCV(ImplicitRegularizationEstimator(RIDGE), {"family": ["l2"]}),
    ],
    ids=lambda e: type(e).__name__,
)
def test_unfitted_estimators(display, unfitted):
    with pytest.raises(NotFittedError):
        display.from_estimator(unfitted)


@pytest.mark.parametrize("display", DISPLAYS)
@pytest.mark.parametrize("wrong", [RIDGE, None, Ridge, "l2", 3])
def test_other_objects(display, wrong):
    with pytest.raises(TypeError, match="Expected a fitted ImplicitRegularization"):
        display.from_estimator(wrong)


def precomputed():
    return ImplicitRegularizationEstimator("precomputed").fit(X, Y)


def reduced():
    net, path = trained(("weight_decay",))
    return ImplicitRegularizationEstimator(
        net, family="weight_decay", loss="mse", params="all", mode="trajectory", trajectory=path,
        reference="applied",
    ).fit(X, Y[:, None] / 100)  # fmt: skip


def unpickled(**params):
    return pickle.loads(pickle.dumps(fit(**params)))


QUADRATIC = "got 'quadratic', which is solved as a whole and has no columns; draw it by Spectrum"
WRONG = {
    "shape of a matrix": (PenaltyShapeDisplay, lambda: fit(family="quadratic"), QUADRATIC),
    "match of a matrix": (GradientMatchDisplay, lambda: fit(family="quadratic"), QUADRATIC),
    "influence of a matrix": (InfluenceDisplay, lambda: fit(family="quadratic"), QUADRATIC),
    "path of a matrix": (CoefficientPathDisplay, lambda: of_resamples("quadratic"), QUADRATIC),
    "entries": (CoefficientDisplay, lambda: fit(family="diagonal"), "entries of a matrix; draw"),
    "spectrum of terms": (SpectrumDisplay, fit, "got 'l2', which has terms and no matrix; draw it"),
    "path of an endpoint": (CoefficientPathDisplay, fit, "got one endpoint, which has no coef_pa"),
    "families of a fit": (FamilyComparisonDisplay, fit, "draw a single fit by its plot"),
    "weights of arrays": (PenaltyShapeDisplay, precomputed, "draw them by GradientMatchDisplay"),
    "weights of R factors": (PenaltyShapeDisplay, reduced, "or a recording of R factors; draw"),
    "unpickled shape": (PenaltyShapeDisplay, unpickled, "Expected X and y, or an estimator that"),
    "unpickled match": (GradientMatchDisplay, unpickled, "Expected X and y, or an estimator that"),
    "exact influence": (InfluenceDisplay, fit, "Expected a residual to see influence in, got an"),
    "unpickled influence": (InfluenceDisplay, lambda: unpickled(family="l1"), "not pickled"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_fits_of_another_kind(kind):
    display, made, text = WRONG[kind]
    with pytest.raises((ValueError, TypeError), match=text):
        display.from_estimator(made())


def test_rows_do_instead_of_what_was_not_pickled():
    est = unpickled(family="l1")
    display = PenaltyShapeDisplay.from_estimator(est, X, Y)
    np.testing.assert_array_equal(display.weights, RIDGE.coef_)


def test_a_fit_without_a_gradient_is_drawn():
    model = Ridge(1e-30).fit(X, Y)
    est = ImplicitRegularizationEstimator(model).fit(X, Y)
    assert est.verdict_ == "no signal"
    for display in (PenaltyShapeDisplay, GradientMatchDisplay, CoefficientDisplay):
        assert np.isfinite(display.from_estimator(est).ax_.get_xlim()).all()


CHOSEN = {
    "linear": (lambda: fit(LASSO, family="l1"), PenaltyShapeDisplay),
    "net": (of_net, PenaltyShapeDisplay),
    "layers": (lambda: of_net(group_by="layer"), CoefficientDisplay),
    "functions": (
        lambda: fit(family={"c": lambda p: sum(t.abs().pow(3).sum() for t in p.values())}),
        GradientMatchDisplay,
    ),
    "arrays": (precomputed, GradientMatchDisplay),
    "search": (search, FamilyComparisonDisplay),
    "path": (on_path, CoefficientPathDisplay),
    "R factors": (reduced, CoefficientPathDisplay),
    "one window": (lambda: on_path(window=20), PenaltyShapeDisplay),
    "endpoints": (of_resamples, CoefficientPathDisplay),
    "matrix": (lambda: of_resamples("quadratic"), SpectrumDisplay),
    "diagonal": (lambda: fit(family="diagonal"), SpectrumDisplay),
    "early stopping": (lambda: fit(family="early_stopping"), SpectrumDisplay),
    "unpickled": (unpickled, CoefficientDisplay),
}


@pytest.mark.parametrize("kind", CHOSEN)
def test_plot_of_a_fit(kind):
    made, display = CHOSEN[kind]
    _, ax = plt.subplots()
    drawn = made().plot(ax=ax)
    assert type(drawn) is display
    assert drawn.figure_ is ax.figure


def test_plot_of_an_unfitted_estimator():
    with pytest.raises(NotFittedError):
        ImplicitRegularizationEstimator(RIDGE).plot()


def test_neighbors_differ_without_color():
    """In grey by at least a tenth of the range, and by marker and line style."""
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLORS]) / 255
    grey = rgb @ [0.299, 0.587, 0.114]
    assert np.abs(np.diff(grey))[:1].min() > 0.2
    assert len(set(MARKERS)) == len(set(LINES)) == len(COLORS)
