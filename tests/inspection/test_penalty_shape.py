"""The points of this picture are the derivative of the penalty."""

from __future__ import annotations

import numpy as np
import pytest
from displays import LASSO, RIDGE, X, Y, fit, of_net, of_resamples, on_path, trained
from sklearn.linear_model import ElasticNet

from sklearn_implicitreg import equations
from sklearn_implicitreg.inspection import PenaltyShapeDisplay
from sklearn_implicitreg.penalties import L1, L2, Penalty


def minus_gradient(model):
    return 2 / len(Y) * X.T @ (Y - model.predict(X))


def on_curve(pair, weights):
    """Values of a curve at weights away from its step."""
    return np.interp(weights, *pair)


def test_points_are_weights_and_minus_gradients():
    display = PenaltyShapeDisplay.from_estimator(fit(family="l1"))
    np.testing.assert_array_equal(display.weights, RIDGE.coef_)
    np.testing.assert_allclose(display.target, minus_gradient(RIDGE), rtol=1e-9)
    (points,) = display.scatters_
    np.testing.assert_array_equal(
        points.get_offsets(), np.column_stack([display.weights, display.target])
    )
    assert display.axes_[0] is display.ax_
    assert display.histogram_.datavalues.sum() == 10
    assert display.ax_.get_xlim() == display.axes_[1].get_xlim()


def test_curve_is_the_derivative_of_the_penalty_that_trained():
    alpha, ratio = 0.05, 0.4
    model = ElasticNet(alpha=alpha, l1_ratio=ratio, tol=1e-12, max_iter=100_000).fit(X, Y)
    display = PenaltyShapeDisplay.from_estimator(fit(model, family="l2+l1"), families=["l2"])
    assert list(display.curves) == ["l2 + l1, $R^2$ = 1.0000", f"l2, $R^2$ = {_r2(model):.4f}"]
    w = np.array([-5.0, -0.5, 0.5, 5.0])
    derivative = 2 * alpha * (1 - ratio) * w + 2 * alpha * ratio * np.sign(w)  # of twice the loss
    own, ridge = display.curves.values()
    np.testing.assert_allclose(on_curve(own, w), derivative, rtol=1e-5)
    slope = np.sum(model.coef_ * minus_gradient(model)) / np.sum(model.coef_**2)
    np.testing.assert_allclose(on_curve(ridge, w), slope * w, rtol=1e-5)
    points = on_curve(own, display.weights)
    away = display.smooth
    np.testing.assert_allclose(points[away], display.target[away], rtol=1e-5)


def test_many_terms_have_a_short_label():
    (label,) = PenaltyShapeDisplay.from_estimator(fit(family="spline")).curves
    assert label.startswith("spline_0 + ... + spline_") and len(label) < 50


def _r2(model):
    target = minus_gradient(model)
    return (model.coef_ @ target) ** 2 / (target @ target) / (model.coef_ @ model.coef_)


def test_weights_at_a_kink_stand_on_the_step():
    assert 0 < np.sum(LASSO.coef_ == 0) < 10
    est = fit(LASSO, family="l1")
    display = PenaltyShapeDisplay.from_estimator(est)
    np.testing.assert_array_equal(display.smooth, LASSO.coef_ != 0)
    assert np.sum(display.smooth) == est.n_equations_
    assert len(display.kinks_.get_offsets()) == np.sum(LASSO.coef_ == 0)
    step = display.target[~display.smooth]
    assert np.all(np.abs(step) < est.coef_[0])
    (line,) = display.lines_
    x, values = line.get_data()
    near = np.abs(x) < 1e-6
    assert values[near].min() == pytest.approx(-est.coef_[0])
    assert values[near].max() == pytest.approx(est.coef_[0])


def test_groups_have_curves_and_points_of_their_own():
    est = of_net(family="l2", group_by="layer")
    display = PenaltyShapeDisplay.from_estimator(est)
    assert [label.split(", ")[1] for label in display.curves] == ["0", "2"]
    for coef, (x, values) in zip(est.coef_, display.curves.values(), strict=True):
        np.testing.assert_allclose(values, 2 * coef * x, rtol=1e-12)
    net, _ = trained()
    first = np.concatenate([p.detach().numpy().ravel() for p in net[0].parameters()])
    np.testing.assert_array_equal(display.weights[display.groups == "0"], first)
    assert len(display.scatters_) == 2


def test_scopes_have_curves_of_their_own():
    est = of_net(family=L2().on("^0") + L1().on("^2"))
    names = ["0.weight, 0.bias", "2.weight, 2.bias"]
    display = PenaltyShapeDisplay.from_estimator(est)
    assert [label.split(", ", 1)[1] for label in display.curves] == names
    (x, first), (_, second) = display.curves.values()
    np.testing.assert_allclose(first, 2 * est.coef_[0] * x, rtol=1e-12)
    np.testing.assert_allclose(second, est.coef_[1] * np.sign(x), rtol=1e-12)


def test_a_penalty_of_several_weights_is_drawn_at_the_weights():
    def products(params):
        return sum((t[..., 1:] * t[..., :-1]).sum() for t in params.values())

    display = PenaltyShapeDisplay.from_estimator(fit(family={"p": products}), families=["l2"])
    ((x, values),) = display.fitted.values()
    w = RIDGE.coef_
    slope = np.append(w[1:], 0) + np.append(0, w[:-1])
    coef = slope @ minus_gradient(RIDGE) / (slope @ slope)
    np.testing.assert_array_equal(x, w)
    np.testing.assert_allclose(values, coef * slope, rtol=1e-9)
    assert len(display.curves) == 1
    assert len(display.lines_) == 2


def test_a_penalty_without_closed_form_is_drawn_at_the_weights():
    class Cubic(Penalty):
        def terms(self, params, problem):
            return {"cubic": sum(t.abs().pow(3).sum() for t in params.values())}

    ((x, values),) = PenaltyShapeDisplay.from_estimator(fit(family=Cubic())).fitted.values()
    shape = 3 * x * np.abs(x)
    np.testing.assert_allclose(values / values[0], shape / shape[0], rtol=1e-12)


def test_known_parts_are_taken_off():
    est = fit(family="l1", known={"l2": 0.05})
    display = PenaltyShapeDisplay.from_estimator(est)
    expected = minus_gradient(RIDGE) - 0.1 * RIDGE.coef_
    np.testing.assert_allclose(display.target, expected, rtol=1e-9)


def test_trajectories_show_the_mean_over_windows():
    est = on_path(reference="applied")
    display = PenaltyShapeDisplay.from_estimator(est)
    net, _ = trained()
    assert len(display.weights) == sum(p.numel() for p in net.parameters())
    left = display.target - est.coef_[0] * display.weights
    r2 = 1 - np.sum(left**2) / np.sum(display.target**2)
    assert est.r2_ == pytest.approx(r2, rel=1e-6)
    assert display.ax_.get_ylabel() == "applied gradient less that of the loss"


def test_what_mini_batching_explains_is_taken_off():
    est = on_path()
    assert est.term_names_[1] == "minibatch"
    display = PenaltyShapeDisplay.from_estimator(est)
    rows = equations(est, X, Y[:, None] / 100)
    rest = rows.target - est.coef_[1] * rows.data["minibatch"]
    mean = rest.groupby(["tensor", "coordinate"], sort=False).mean()
    np.testing.assert_allclose(display.target, mean, rtol=1e-9)
    weights = rows.data["weight_decay"].groupby(["tensor", "coordinate"], sort=False).mean()
    np.testing.assert_allclose(display.weights, weights, rtol=1e-9)


def test_endpoints_show_the_points_of_all():
    est = of_resamples()
    display = PenaltyShapeDisplay.from_estimator(est)
    weights = np.concatenate([model.coef_ for model in est.model_])
    np.testing.assert_array_equal(display.weights, weights)
    np.testing.assert_allclose(display.target, 2 * 5 / len(Y) * weights, rtol=1e-8)


def test_rows_make_the_equations_again():
    est = fit(family="l1")
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(Y))
    again = PenaltyShapeDisplay.from_estimator(est, X, Y, weights)
    mean = np.average(Y - RIDGE.predict(X), weights=weights)
    residual = Y - RIDGE.predict(X)
    expected = 2 * X.T @ (weights * residual) / weights.sum()
    assert abs(mean) > 0
    np.testing.assert_allclose(again.target, expected, rtol=1e-9)


def test_nothing_of_the_fit_is_changed():
    est = fit(family="l1")
    before, coef = est._equations, est.coef_.copy()
    PenaltyShapeDisplay.from_estimator(est, families=["l2", "power"])
    assert est._equations is before
    assert est.family == "l1"
    np.testing.assert_array_equal(est.coef_, coef)


def test_many_points_are_sampled():
    w = np.random.default_rng(0).normal(size=30_000)
    display = PenaltyShapeDisplay(weights=w, target=w, smooth=w > -1).plot()
    drawn = len(display.scatters_[0].get_offsets()) + len(display.kinks_.get_offsets())
    assert drawn == 20_000
    assert display.histogram_.datavalues.sum() == 30_000


@pytest.mark.parametrize(
    ("families", "text"),
    [
        ("l2", "Expected families of PenaltyShapeDisplay to be None or a list of families"),
        (["quadratic"], "Expected a family with terms"),
        (["l9"], "Unknown family 'l9'"),
    ],
)
def test_wrong_families(families, text):
    with pytest.raises(ValueError, match=text):
        PenaltyShapeDisplay.from_estimator(fit(), families=families)


def test_data_alone_are_drawn():
    display = PenaltyShapeDisplay(weights=[1.0, 2.0], target=[0.0, 0.0], name="a net").plot()
    assert display.ax_.get_title() == "a net"
    assert display.lines_ == []
