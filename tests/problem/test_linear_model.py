"""Given coefficients as a model: the same answers as the estimator that they come from."""

import numpy as np
import pandas as pd
import pytest
import torch
from cases import W_DIABETES, X_CANCER, X_DIABETES, X_WINE, Y_CANCER, Y_COUNTS, Y_DIABETES, Y_TWO
from cases import WINE_NAMES as Y_NAMES
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.linear_model import (
    GammaRegressor,
    Lasso,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    SGDClassifier,
)
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sklearn_implicitreg import (
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    LinearModel,
)

NAMES = [f"x{j}" for j in range(10)]
MODELS = {
    "squared error": (Ridge(alpha=3.0), X_DIABETES, Y_DIABETES, "squared_error", "l2"),
    "two outputs": (Ridge(alpha=3.0), X_DIABETES, Y_TWO, "squared_error", "l2"),
    "l1": (Lasso(alpha=0.5, tol=1e-12), X_DIABETES, Y_DIABETES, "squared_error", "l1"),
    "poisson": (PoissonRegressor(alpha=0.1, tol=1e-9), X_DIABETES, Y_COUNTS, "poisson", "l2"),
    "gamma": (GammaRegressor(alpha=0.1, tol=1e-9), X_DIABETES, Y_DIABETES, "gamma", "l2"),
    "log loss": (LogisticRegression(tol=1e-9), X_CANCER, Y_CANCER, "log_loss", "l2"),
    "softmax": (LogisticRegression(tol=1e-9), X_WINE, Y_NAMES, "log_loss", "l2"),
    "hinge": (SGDClassifier(), X_CANCER, Y_CANCER, "squared_hinge", "l2"),
}


def as_numbers(model, loss):
    """The same model, as its coefficients."""
    classes = getattr(model, "classes_", None)
    return LinearModel(model.coef_, model.intercept_, loss=loss, classes=classes)


@pytest.mark.parametrize(("model", "X", "y", "loss", "family"), MODELS.values(), ids=MODELS)
def test_same_as_the_estimator(model, X, y, loss, family):
    model = clone(model).fit(X, y)
    own = {} if loss != "squared_hinge" else {"loss": loss}
    expected = ImplicitRegularizationEstimator(model, family=family, **own).fit(X, y)
    given = as_numbers(model, loss)
    found = ImplicitRegularizationEstimator(given, family=family).fit(X, y)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-12)
    assert found.verdict_ == expected.verdict_
    np.testing.assert_array_equal(found.predict(X), given.predict(X))
    if loss in ("poisson", "gamma"):
        np.testing.assert_allclose(given.predict(X), model.predict(X), rtol=1e-12)
    else:
        np.testing.assert_array_equal(given.predict(X), model.predict(X))


def test_weights_and_other_losses():
    model = Ridge(alpha=3.0).fit(X_DIABETES, Y_DIABETES, W_DIABETES)
    given = LinearModel(model.coef_, model.intercept_)
    for loss in ("auto", "mse", nn.MSELoss(), lambda output, target: (output - target) ** 2):
        est = ImplicitRegularizationEstimator(given, loss=loss)
        est.fit(X_DIABETES, Y_DIABETES, W_DIABETES)
        assert est.coef_[0] * W_DIABETES.sum() == pytest.approx(3.0, rel=1e-9)


def test_no_intercept_is_no_parameter():
    theta = np.linalg.solve(X_DIABETES.T @ X_DIABETES + 4 * np.eye(10), X_DIABETES.T @ Y_DIABETES)
    est = ImplicitRegularizationEstimator(LinearModel(theta), params="all")
    est.fit(X_DIABETES, Y_DIABETES)
    assert est.n_equations_ == 10
    assert est.coef_[0] * len(Y_DIABETES) == pytest.approx(4.0, rel=1e-10)
    with_one = ImplicitRegularizationEstimator(LinearModel(theta, 0.0), params="all")
    assert with_one.fit(X_DIABETES, Y_DIABETES).n_equations_ == 11


def test_named_coefficients_are_checked():
    X = pd.DataFrame(X_DIABETES, columns=NAMES)
    model = Ridge(alpha=3.0).fit(X, Y_DIABETES)
    given = LinearModel(pd.Series(model.coef_, NAMES), model.intercept_)
    est = ImplicitRegularizationEstimator(given).fit(X, Y_DIABETES)
    assert est.coef_[0] * len(X) == pytest.approx(3.0, rel=1e-9)
    with pytest.raises(ValueError, match="feature names"):
        est.fit(X[NAMES[::-1]], Y_DIABETES)


def test_is_a_fitted_estimator():
    given = LinearModel([1.0, 2.0], 0.5)
    check_is_fitted(given)
    assert given.fit([[0.0, 0.0]]) is given
    assert is_regressor(given)
    assert repr(given) == "LinearModel(coef=[1.0, 2.0], intercept=0.5)"
    assert clone(given).coef == [1.0, 2.0]
    assert clone(ImplicitRegularizationEstimator(given)).model is given
    assert given.n_features_in_ == 2
    assert not hasattr(given, "feature_names_in_")
    assert not hasattr(given, "classes_")
    assert not hasattr(given, "decision_function")
    np.testing.assert_array_equal(given.predict([[1.0, 1.0]]), [3.5])
    labels = LinearModel([1.0, -1.0], loss="log_loss", classes=["no", "yes"])
    assert is_classifier(labels)
    assert labels.predict([[1.0, 0.0], [0.0, 1.0]]).tolist() == ["yes", "no"]
    assert labels.decision_function([[1.0, 0.0]]).tolist() == [1.0]


def test_precision_is_that_of_the_coefficients():
    theta = np.linalg.solve(X_DIABETES.T @ X_DIABETES, X_DIABETES.T @ Y_DIABETES)
    est = ImplicitRegularizationEstimator(LinearModel(theta.astype(np.float32)))
    assert est.fit(X_DIABETES, Y_DIABETES).verdict_ == "no signal"


def test_selects_a_family():
    model = Lasso(alpha=2.0, tol=1e-12).fit(X_DIABETES, Y_DIABETES)
    given = LinearModel(model.coef_, model.intercept_)
    search = ImplicitRegularizationCV(given, families=["l2", "l1"]).fit(X_DIABETES, Y_DIABETES)
    assert search.best_family_ == "l1"


def test_nothing_is_changed_or_copied():
    coef = np.ones(10)
    given = LinearModel(coef)
    ImplicitRegularizationEstimator(given).fit(X_DIABETES, Y_DIABETES)
    assert given.coef is coef
    assert given.coef_ is coef
    np.testing.assert_array_equal(coef, 1.0)


@pytest.mark.parametrize(
    ("model", "y", "message"),
    [
        (LinearModel(np.ones(9)), Y_DIABETES, "10 features, but LinearModel is expecting 9"),
        (LinearModel(np.ones(10)), Y_DIABETES[:-1], "inconsistent numbers of samples"),
        (LinearModel(np.ones(10)), Y_TWO, "y with the 1 output"),
        (LinearModel(np.full(10, np.nan)), Y_DIABETES, "finite trained parameters"),
        (LinearModel(np.ones(10), [1.0, 2.0]), Y_DIABETES, "one intercept for each row of coef"),
        (LinearModel(np.ones((1, 1, 10))), Y_DIABETES, r"shape \(p,\) or \(K, p\)"),
        (LinearModel(list("abcdefghij")), Y_DIABETES, r"coef as numbers of shape"),
        (LinearModel(np.ones(10), loss="l2"), Y_DIABETES, "got loss='l2'"),
        (LinearModel(np.ones(10), classes=[1, 2, 3]), Y_DIABETES, "Expected 2 classes"),
        (LinearModel(np.ones(10), loss="log_loss"), Y_DIABETES, "label"),
    ],
)
def test_what_does_not_fit_is_refused(model, y, message):
    with pytest.raises(ValueError, match=message):
        ImplicitRegularizationEstimator(model).fit(X_DIABETES, y)


def test_constant_columns_and_more_columns_than_rows():
    X = np.column_stack([X_DIABETES, np.full(len(X_DIABETES), 2.0)])[:8]
    y = Y_DIABETES[:8]
    theta = np.linalg.solve(X.T @ X / 8 + 0.1 * np.eye(11), X.T @ y / 8)
    est = ImplicitRegularizationEstimator(LinearModel(theta)).fit(X, y)
    assert est.coef_[0] == pytest.approx(0.1, rel=1e-10)


def test_torch_coefficients():
    given = LinearModel(torch.ones(10, dtype=torch.float64))
    est = ImplicitRegularizationEstimator(given).fit(X_DIABETES, Y_DIABETES)
    assert est.n_equations_ == 10


@pytest.mark.parametrize(
    ("loss", "mean"),
    [
        ("poisson_nll", np.e),
        ("poisson", np.e),
        ("gamma", np.e),
        (nn.PoissonNLLLoss(), np.e),
        (nn.PoissonNLLLoss(log_input=False), 1.0),
        ("squared_error", 1.0),
    ],
)
def test_predicts_by_the_link_of_the_loss(loss, mean):
    assert LinearModel([1.0], loss=loss).predict([[1.0]]) == pytest.approx(mean)
