"""Hessians of quadratic losses, against second differences of the loss and least squares."""

import numpy as np
import pytest
import torch
from cases import W_DIABETES, X_DIABETES, Y_DIABETES, Y_TWO
from scipy import sparse
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, TweedieRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_implicitreg.adapters import Data, Options, adapt


def hessian(model, X, y, sample_weight=None, **options):
    """Hessian of a model's problem."""
    return adapt(model, Data(X, y, sample_weight), Options(**options)).hessian()


def centered_gram(X, weight):
    """``X' W X / sum(W)`` about the weighted means."""
    centered = X - np.average(X, axis=0, weights=weight)
    return centered.T @ (centered * weight[:, None]) / weight.sum()


@pytest.mark.parametrize("weight", [None, W_DIABETES], ids=["plain", "weighted"])
@pytest.mark.parametrize("as_given", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
def test_unpenalized_intercept_is_profiled_out(weight, as_given):
    X = X_DIABETES + 3.0
    model = Ridge(alpha=2.0, solver="lsqr").fit(X, Y_DIABETES, weight)
    given = np.ones(len(X)) if weight is None else weight
    found = hessian(model, as_given(X), Y_DIABETES, weight)
    np.testing.assert_allclose(found, 2 * centered_gram(X, given), rtol=1e-12, atol=1e-13)


def test_without_intercept_it_is_the_gram_matrix():
    model = LinearRegression(fit_intercept=False).fit(X_DIABETES, Y_DIABETES)
    found = hessian(model, X_DIABETES, Y_DIABETES)
    expected = 2 * X_DIABETES.T @ X_DIABETES / len(X_DIABETES)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_solves_ridge_and_its_gradient():
    """``theta = (H + 2 coef)^-1 H theta_ols`` and ``grad L = H (theta - theta_ols)``."""
    ols = LinearRegression().fit(X_DIABETES, Y_DIABETES)
    ridge = Ridge(alpha=5.0).fit(X_DIABETES, Y_DIABETES)
    found = hessian(ridge, X_DIABETES, Y_DIABETES)
    penalty = 2 * 5.0 / len(Y_DIABETES) * np.eye(10)
    theta = np.linalg.solve(found + penalty, found @ ols.coef_)
    np.testing.assert_allclose(theta, ridge.coef_, rtol=1e-10)
    problem = adapt(ridge, Data(X_DIABETES, Y_DIABETES), Options())
    gradient = problem.gradient().value["coef"].numpy()
    np.testing.assert_allclose(found @ (ridge.coef_ - ols.coef_), gradient, rtol=1e-9)


def test_all_parameters_in_scope_or_the_intercept_alone():
    X = X_DIABETES + 3.0
    model = Ridge(alpha=2.0).fit(X, Y_DIABETES)
    with_one = np.column_stack([X, np.ones(len(X))])
    found = hessian(model, X, Y_DIABETES, params="all")
    np.testing.assert_allclose(found, 2 * with_one.T @ with_one / len(X), rtol=1e-12)
    alone = hessian(model, X, Y_DIABETES, params="intercept")
    np.testing.assert_allclose(alone, [[1 / np.linalg.inv(found)[-1, -1]]], rtol=1e-10)


@pytest.mark.parametrize("alpha", [2.0, np.array([1.0, 3.0])], ids=["shared", "one per output"])
def test_outputs_do_not_meet(alpha):
    model = Ridge(alpha=alpha).fit(X_DIABETES, Y_TWO)
    found = hessian(model, X_DIABETES, Y_TWO)
    one = 2 * centered_gram(X_DIABETES, np.ones(len(X_DIABETES)))
    np.testing.assert_allclose(found, np.kron(np.eye(2), one), rtol=1e-12, atol=1e-14)


def test_order_of_parameters_of_several_outputs():
    model = Ridge(alpha=2.0).fit(X_DIABETES, Y_TWO)
    problem = adapt(model, Data(X_DIABETES, Y_TWO), Options(params="all"))
    assert list(problem.params) == ["coef", "intercept"]
    with_one = np.column_stack([X_DIABETES, np.ones(len(X_DIABETES))])
    gram = 2 * with_one.T @ with_one / len(X_DIABETES)
    order = [*range(10), *range(11, 21), 10, 21]
    expected = np.kron(np.eye(2), gram)[np.ix_(order, order)]
    np.testing.assert_allclose(problem.hessian(), expected, rtol=1e-12, atol=1e-14)


def test_averaged_outputs_and_other_ways_to_say_squared_error():
    model = Ridge(alpha=2.0).fit(X_DIABETES, Y_TWO)
    summed = hessian(model, X_DIABETES, Y_TWO)
    for loss in ("mse", nn.MSELoss()):
        found = hessian(model, X_DIABETES, Y_TWO, loss=loss)
        np.testing.assert_allclose(found, summed / 2, rtol=1e-12)
    normal = TweedieRegressor(power=0, alpha=0.1).fit(X_DIABETES, Y_DIABETES)
    found = hessian(normal, X_DIABETES, Y_DIABETES)
    np.testing.assert_allclose(found, summed[:10, :10], rtol=1e-12)


def test_pipeline_is_in_the_transformed_features():
    pipe = make_pipeline(StandardScaler(), Ridge()).fit(4 * X_DIABETES, Y_DIABETES)
    found = hessian(pipe, 4 * X_DIABETES, Y_DIABETES)
    expected = 2 * centered_gram(X_DIABETES, np.ones(len(X_DIABETES)))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weight", [None, W_DIABETES], ids=["plain", "weighted"])
def test_linear_module(weight):
    X = torch.from_numpy(X_DIABETES + 1.0)
    y = torch.from_numpy(Y_DIABETES).reshape(-1, 1)
    module = nn.Linear(10, 1).double()
    given = np.ones(len(X)) if weight is None else weight
    found = hessian(module, X, y, weight, loss="mse", batch_size=100)
    np.testing.assert_allclose(found, 2 * centered_gram(X.numpy(), given), rtol=1e-10, atol=1e-12)


def test_linear_module_of_two_outputs_with_biases_in_scope():
    X = torch.randn(50, 3, dtype=torch.float64)
    module = nn.Sequential(nn.Linear(3, 2)).double()
    found = hessian(module, X, torch.randn(50, 2).double(), loss="mse", params="all")
    with_one = torch.cat([X, torch.ones(50, 1).double()], dim=1).numpy()
    order = [0, 1, 2, 4, 5, 6, 3, 7]
    expected = np.kron(np.eye(2), with_one.T @ with_one / 50)[np.ix_(order, order)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_float32_module_is_recognized():
    X = torch.randn(200, 5)
    found = hessian(nn.Linear(5, 1), X, torch.randn(200, 1), loss="mse")
    np.testing.assert_allclose(
        found, 2 * centered_gram(X.double().numpy(), np.ones(200)), rtol=1e-4
    )
    assert found.dtype == np.float64


@pytest.mark.parametrize(
    ("module", "loss", "y"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), "mse", torch.randn(20, 1)),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), "mse", torch.randn(20, 1)),
        (nn.Linear(3, 2), "cross_entropy", torch.arange(20) % 2),
        (nn.Linear(3, 1), "huber", 3 * torch.randn(20, 1)),
    ],
    ids=["deep linear", "ReLU", "cross-entropy", "Huber"],
)
def test_other_modules_are_refused(module, loss, y):
    with pytest.raises(ValueError, match="Expected a loss that is quadratic"):
        hessian(module, torch.randn(20, 3), y, loss=loss)


def test_other_losses_of_linear_models_are_refused():
    labels = Y_DIABETES > np.median(Y_DIABETES)
    model = LogisticRegression().fit(X_DIABETES, labels)
    with pytest.raises(ValueError, match="quadratic in the parameters, got log loss"):
        hessian(model, X_DIABETES, labels)


def test_many_parameters_are_refused():
    module = nn.Linear(3000, 1)
    with pytest.raises(ValueError, match="at most 2000 parameters for a Hessian, got 3001"):
        hessian(module, torch.randn(5, 3000), torch.randn(5, 1), loss="mse")


def test_constant_columns_and_more_parameters_than_rows():
    X = np.column_stack([np.random.default_rng(0).normal(size=(6, 8)), np.full(6, 3.0)])
    model = Ridge(alpha=1.0).fit(X, np.arange(6.0))
    found = hessian(model, X, np.arange(6.0))
    assert np.abs(found[-1]).max() < 1e-14  # a constant column is the intercept's
    assert np.linalg.matrix_rank(found) == 5
