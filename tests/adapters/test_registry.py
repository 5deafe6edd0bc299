"""Classes of other libraries, made known by a handler."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from cases import W_DIABETES, X_DIABETES, Y_DIABETES
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_implicitreg import (
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    LinearModel,
    endpoints,
)
from sklearn_implicitreg.adapters import (
    Convention,
    Data,
    Options,
    adapt,
    linear_problem,
    register,
    registry,
)
from sklearn_implicitreg.problem import frozen


class LinearBooster:
    """Least squares with an L2 penalty on the weights, boosted one weight at a time."""

    def __init__(self, alpha=1.0):
        self.alpha = alpha

    def fit(self, X, y, sample_weight=None):
        s = np.ones(len(y)) if sample_weight is None else sample_weight
        self.weights_, self.bias_ = np.zeros(X.shape[1]), 0.0
        residual = np.array(y, dtype=float)
        for _ in range(3000):
            step = np.average(residual, weights=s)
            self.bias_, residual = self.bias_ + step, residual - step
            for j, x in enumerate(X.T):
                slope = s * x @ residual - self.alpha * self.weights_[j]
                step = slope / (s * x @ x + self.alpha)
                self.weights_[j], residual = self.weights_[j] + step, residual - step * x
        return self


class BoosterEstimator(LinearBooster, BaseEstimator):
    """The same as an estimator of scikit-learn."""


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch):
    """Leave what is registered here behind."""
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(frozen, "TRAINED_CLASSES", trained := set(frozen.TRAINED_CLASSES))
    monkeypatch.setattr(registry, "TRAINED_CLASSES", trained)


def handler(model, data, options):
    return linear_problem(
        data,
        options,
        coef=model.weights_,
        intercept=model.bias_,
        convention=Convention("alpha", l2=1.0, per_row=True),
    )


@pytest.mark.parametrize("weight", [None, W_DIABETES], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", [LinearBooster, BoosterEstimator])
def test_a_registered_booster_gives_back_its_alpha(kind, weight):
    register(LinearBooster, handler)
    model = kind(alpha=0.3).fit(X_DIABETES, Y_DIABETES, weight)
    est = ImplicitRegularizationEstimator(model).fit(X_DIABETES, Y_DIABETES, weight)
    assert est.in_model_units()["alpha"] == pytest.approx(0.3, rel=1e-6)
    assert est.verdict_ == "supported"
    assert kind.__name__ in str(est.summary())
    assert clone(est).model is model


def test_a_registered_estimator_is_a_template_and_stands_in_pipelines():
    register(BoosterEstimator, handler)
    template = ImplicitRegularizationEstimator(BoosterEstimator(alpha=0.3))
    found = template.fit(X_DIABETES, Y_DIABETES).in_model_units()
    assert found["alpha"] == pytest.approx(0.3, rel=1e-6)
    pipe = make_pipeline(StandardScaler(), BoosterEstimator(alpha=30.0)).fit(X_DIABETES, Y_DIABETES)
    search = ImplicitRegularizationCV(pipe, families=["l1", "l2"]).fit(X_DIABETES, Y_DIABETES)
    assert search.best_family_ == "l2"
    group = endpoints(BoosterEstimator(), X_DIABETES[:, :3], Y_DIABETES, 3, random_state=0)
    alphas = ImplicitRegularizationEstimator(None).fit(group).in_model_units()
    assert alphas["alpha"] == pytest.approx(1.0, rel=1e-6)


def test_a_class_is_known_by_name_before_its_library_is_imported(monkeypatch):
    register("boosters.Booster", handler)
    library = ModuleType("boosters.core")
    monkeypatch.setitem(sys.modules, "boosters.core", library)
    library.Booster = type("Booster", (LinearBooster,), {"__module__": "boosters.core"})
    model = library.Booster(alpha=2.0).fit(X_DIABETES, Y_DIABETES)
    est = ImplicitRegularizationEstimator(model).fit(X_DIABETES, Y_DIABETES)
    assert est.in_model_units()["alpha"] == pytest.approx(2.0, rel=1e-6)


def test_a_registered_class_comes_before_the_packages_own():
    register(Ridge, lambda model, data, options: linear_problem(data, options, coef=model.coef_))
    model = Ridge(fit_intercept=False).fit(X_DIABETES, Y_DIABETES)
    problem = adapt(model, Data(X_DIABETES, Y_DIABETES), Options())
    assert (problem.model_name, problem.convention) == ("Ridge", None)


def test_a_handler_may_hand_on_a_model_inside():
    class Wrapped:
        def __init__(self, net):
            self.net = net

    register(Wrapped, lambda model, data, options: adapt(model.net, data, options))
    X, y = torch.randn(20, 3), torch.randn(20, 1)
    model = Wrapped(torch.nn.Linear(3, 1))
    est = ImplicitRegularizationEstimator(model, loss="mse").fit(X, y)
    alone = ImplicitRegularizationEstimator(model.net, loss="mse").fit(X, y)
    assert est.coef_ == pytest.approx(alone.coef_, rel=1e-12)


def test_a_linear_problem_of_classes_with_a_penalized_intercept():
    y = Y_DIABETES > np.median(Y_DIABETES)
    model = LogisticRegression(solver="liblinear", tol=1e-10).fit(X_DIABETES, y)
    given = {"coef": model.coef_, "intercept": model.intercept_, "loss": "log_loss"}
    problem = linear_problem(
        Data(X_DIABETES, y.astype(int)), Options(), **given, penalized_intercept=True
    )
    own = adapt(model, Data(X_DIABETES, y), Options())
    assert problem.left_out == own.left_out == ()
    for name, expected in own.gradient().value.items():
        torch.testing.assert_close(problem.gradient().value[name], expected, rtol=1e-12, atol=0)


def test_unknown_classes_and_bad_registrations_name_the_way_out():
    model = LinearBooster().fit(X_DIABETES, Y_DIABETES)
    with pytest.raises(TypeError, match=r"got LinearBooster.*adapters\.register"):
        adapt(model, Data(X_DIABETES, Y_DIABETES), Options())
    with pytest.raises(TypeError, match=r"Expected a trained.*adapters\.register"):
        ImplicitRegularizationEstimator(model).fit(X_DIABETES, Y_DIABETES)
    with pytest.raises(TypeError, match="Expected a class or its dotted name"):
        register("Booster", handler)
    with pytest.raises(TypeError, match="Expected a class or its dotted name"):
        register(LinearBooster, None)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 0, 2]], ids=str)
def test_classes_are_in_the_order_of_the_rows_of_coef(order):
    X, y = load_iris(return_X_y=True)
    labels = np.array(["b", "c", "a"])[y]
    fitted = LogisticRegression(C=0.4, tol=1e-10, max_iter=10_000).fit(X, labels)

    class Own:
        coef = fitted.coef_[order]
        intercept = fitted.intercept_[order]
        names = fitted.classes_[order]

    def handler(model, data, options):
        return linear_problem(
            data,
            options,
            coef=model.coef,
            intercept=model.intercept,
            loss="cross_entropy",
            classes=model.names,
            convention=Convention("C", l2=0.5, per_row=True, inverse=True),
        )

    register(Own, handler)
    est = ImplicitRegularizationEstimator(Own(), family="l2").fit(X, labels)
    np.testing.assert_allclose(est.in_model_units()["C"], 0.4, rtol=1e-5)


def test_of_two_classes_a_positive_predictor_stands_for_the_second():
    X, y = load_breast_cancer(return_X_y=True)
    labels, X = np.array(["no", "yes"])[y], StandardScaler().fit_transform(X)
    fitted = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(X, labels)
    for sign, classes in ((1.0, ["no", "yes"]), (-1.0, ["yes", "no"])):
        model = LinearModel(
            sign * fitted.coef_, sign * fitted.intercept_, loss="log_loss", classes=classes
        )
        est = ImplicitRegularizationEstimator(model, family="l2").fit(X, labels)
        np.testing.assert_allclose(est.coef_, 1 / (2 * len(X) * 0.1), rtol=1e-5)


def test_a_handler_that_returns_nothing():
    class Empty:
        pass

    register(Empty, lambda model, data, options: None)
    with pytest.raises(TypeError, match="Expected a Problem from the handler of .*Empty, got None"):
        ImplicitRegularizationEstimator(Empty()).fit(np.ones((3, 1)), np.ones(3))
