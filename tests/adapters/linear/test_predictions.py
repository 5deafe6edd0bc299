"""Models that have coef_ and predict by something else, and rows that are not those of training."""

import numpy as np
import pytest
import torch
from cases import CASES
from scipy import sparse
from scipy.special import expit
from scipy.stats import norm
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.cross_decomposition import CCA, PLSCanonical, PLSRegression
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import (
    ARDRegression,
    ElasticNet,
    Lars,
    LinearRegression,
    LogisticRegression,
    OrthogonalMatchingPursuit,
    PoissonRegressor,
    QuantileRegressor,
    Ridge,
    SGDRegressor,
    TheilSenRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC, NuSVC

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    LinearModel,
)
from sklearn_implicitreg.adapters import Data, Options, adapt, linear_problem

X, Y = load_diabetes(return_X_y=True)
X = 30 + 20 * X
LABELS = Y > 140


class Scaling(Ridge):
    """Standardizes its features, and keeps the coefficients of the standardized ones."""

    def fit(self, X, y):
        self.center_, self.size_ = np.mean(X, axis=0), np.std(X, axis=0)
        return super().fit((X - self.center_) / self.size_, y)

    def predict(self, X):
        return super().predict((X - self.center_) / self.size_)


class Clipped(Ridge):
    def predict(self, X):
        return np.maximum(super().predict(X), 150.0)


class Interacting(LogisticRegression):
    """Trained on squares, in decision_function."""

    def fit(self, X, y):
        return super().fit(X**2, y)

    def decision_function(self, X):
        return super().decision_function(np.asarray(X) ** 2)


class Voting(BaseEstimator):
    """One coefficient vector for each pair of classes, of which the labels are voted."""

    def fit(self, X, y):
        self.inner = SVC(kernel="linear", C=0.1).fit(X, y)
        self.coef_, self.intercept_ = self.inner.coef_, self.inner.intercept_
        self.classes_, self.n_features_in_ = self.inner.classes_, X.shape[1]
        return self

    def predict(self, X):
        return self.inner.predict(X)


class Plain(RegressorMixin, BaseEstimator):
    """Least squares of another library."""

    def fit(self, X, y):
        self.n_features_in_ = X.shape[1]
        whole = np.linalg.lstsq(np.column_stack([X, np.ones(len(X))]), y, rcond=None)[0]
        self.coef_, self.intercept_ = whole[:-1], whole[-1]
        return self

    def predict(self, X):
        return X @ self.coef_ + self.intercept_


class LogLink(Plain):
    def fit(self, X, y):
        return super().fit(X, np.log(y))

    def predict(self, X):
        return np.exp(super().predict(X))


class Single(Plain):
    """Computes in float32 what it stores in float64."""

    def predict(self, X):
        return np.asarray(X, np.float32) @ self.coef_.astype(np.float32) + np.float32(
            self.intercept_
        )


class Rounding(Ridge):
    def predict(self, X):
        return np.round(super().predict(X), 2)


def shortly(value):
    """Name of a model or loss; the same in every process, without addresses of functions."""
    name = getattr(value, "__name__", type(value).__name__)
    return value if isinstance(value, str) else name


class Linked(Plain):
    """A mean of a predictor, by a link of its own; trained on a line."""

    def __init__(self, mean, size=1e-2):
        self.mean, self.size = mean, size

    def fit(self, X, y):
        return super().fit(X, self.size * (y - np.mean(y)))

    def predict(self, X):
        return self.mean(super().predict(X))


class Shifted(Linked):
    """Its intercept is that of centered features."""

    def fit(self, X, y):
        super().fit(X, y)
        self.center_ = np.mean(X, axis=0)
        self.intercept_ = self.intercept_ + self.center_ @ self.coef_
        return self

    def predict(self, X):
        return super().predict(X - self.center_)


def slightly(eta):
    return 1.003 * eta


class WithoutPredict(Plain):
    predict = None


class OfTables(Plain):
    """Its predict takes tables only."""

    def predict(self, X):
        return X.to_numpy() @ self.coef_


def squared(output, target):
    return (output - target) ** 2


IRIS, WINE = load_iris(return_X_y=True), load_wine(return_X_y=True)
OTHERS = [
    (PLSRegression(2), (X, Y), "squared_error"),
    (PLSRegression(1), (X, np.column_stack([Y, -Y, Y**2])), "mse"),
    (PLSCanonical(1), (X, np.column_stack([Y, Y**2])), "mse"),
    (CCA(1), (X, Y[:, None]), "squared_error"),
    (SVC(kernel="linear"), IRIS, "hinge"),
    (SVC(kernel="linear", decision_function_shape="ovo"), IRIS, "hinge"),
    (NuSVC(kernel="linear", nu=0.2), WINE, "squared_hinge"),
    (Voting(), IRIS, "hinge"),
    (Scaling(3.0), (X, Y), "auto"),
    (Scaling(3.0), (X, Y), "squared_error"),
    (Clipped(3.0), (X, Y), "auto"),
    (Interacting(max_iter=1000), (X / 100, LABELS), "auto"),
    (make_pipeline(StandardScaler(), Clipped()), (X, Y), "auto"),
    (PLSRegression(1, scale=False), (X, Y), "squared_error"),
    (Scaling(3.0), (X[:, [2]], Y), "squared_error"),
    (Linked(slightly), (X, Y), "squared_error"),
    (Shifted(np.exp), (X, Y), "squared_error"),
    (Shifted(expit), (X, Y), squared),
    (Linked(np.sin, 0.1), (X, Y), squared),
    (Linked(lambda eta: np.clip(eta, -0.2, 0.2)), (X, Y), squared),
    (Linked(lambda eta: np.clip(0.5 + eta, 0, 1)), (X, Y), squared),
    (Linked(np.tanh), (X[:8], Y[:8]), squared),
]


@pytest.mark.parametrize(("model", "rows", "loss"), OTHERS, ids=shortly)
def test_other_predictions_raise(model, rows, loss):
    model.fit(*rows)
    est = ImplicitRegularizationEstimator(model, loss=loss)
    with pytest.raises(ValueError, match=r"Expected a model that predicts by X coef_' \+"):
        est.fit(*rows)


def test_an_instance_with_a_predict_of_its_own_raises():
    model = Ridge().fit(X, Y)
    model.predict = lambda rows: np.asarray(rows) @ model.coef_
    with pytest.raises(ValueError, match="got Ridge, whose predict differs"):
        ImplicitRegularizationEstimator(model).fit(X, Y)


def test_every_way_to_the_model_is_checked():
    model = Scaling(3.0).fit(X, Y)
    calls = (
        lambda: ImplicitRegularizationCV(model, families=["l1", "l2"]).fit(X, Y),
        lambda: ImplicitRegularizationEstimator(None).fit([Endpoint(model, X, Y)] * 2),
        lambda: ImplicitRegularizationEstimator(model).fit(
            [(X[:200], Y[:200]), (X[200:], Y[200:])]
        ),
    )
    for call in calls:
        with pytest.raises(ValueError, match="Give LinearModel"):
            call()


def test_the_advice_gives_the_right_number():
    """A scaling model is Ridge of what enters it."""
    model = Scaling(3.0).fit(X, Y)
    entered = (X - model.center_) / model.size_
    est = ImplicitRegularizationEstimator(LinearModel(model.coef_, model.intercept_))
    assert est.fit(entered, Y).coef_[0] == pytest.approx(3.0 / len(Y), rel=1e-8)


LINEAR = [
    (Plain(), Y, "squared_error"),
    (LogLink(), Y, "squared_error"),
    (Single(), Y, "squared_error"),
    (Rounding(3.0), Y, "auto"),
    (Linked(norm.cdf), Y, squared),
    (Linked(norm.cdf, 0.1), Y, squared),  # up to probabilities of exactly 0 and 1
    (Linked(np.tanh), Y, squared),
    (Linked(lambda eta: 1 - np.exp(-np.exp(eta))), Y, squared),
    (Linked(lambda eta: 1 / (3 + eta)), Y, squared),
    (WithoutPredict(), Y, "squared_error"),
    (OfTables(), Y, "squared_error"),
    (SVC(kernel="linear", C=1e-3), LABELS, "hinge"),
    (SVR(kernel="linear", C=1e-3), Y, "epsilon_insensitive"),
    (LinearDiscriminantAnalysis(), LABELS, "log_loss"),
    (LinearDiscriminantAnalysis(), np.digitize(Y, [100, 200]), "cross_entropy"),
    (TheilSenRegressor(max_subpopulation=50, random_state=0), Y, "mae"),
    (ARDRegression(), Y, "squared_error"),
    (Lars(), Y, "squared_error"),
    (OrthogonalMatchingPursuit(n_nonzero_coefs=3), Y, "squared_error"),
    (QuantileRegressor(alpha=1e-3), Y, "mae"),
]


@pytest.mark.parametrize(("model", "y", "loss"), LINEAR, ids=shortly)
def test_linear_predictors_are_taken(model, y, loss):
    model.fit(X, y)
    est = ImplicitRegularizationEstimator(model, loss=loss).fit(X, y)
    assert est.n_equations_ > 0


def test_a_probit_is_fitted_right():
    """Its own loss, minimized with a penalty of known size."""
    rows, labels = StandardScaler().fit_transform(X), (Y > 140).astype(float)

    def loss(output, target):
        ahead = torch.special.log_ndtr((2 * target - 1) * output)
        return -ahead

    theta = torch.zeros(11, dtype=torch.float64, requires_grad=True)
    inputs, target = torch.from_numpy(rows), torch.from_numpy(labels)
    solver = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        solver.zero_grad()
        value = loss(inputs @ theta[:-1] + theta[-1], target).mean()
        value = value + 0.05 * theta[:-1].square().sum()
        value.backward()
        return value

    for _ in range(3):
        solver.step(closure)
    model = Linked(norm.cdf)
    model.coef_, model.intercept_ = theta[:-1].detach().numpy(), float(theta[-1].detach())
    model.n_features_in_ = 10
    est = ImplicitRegularizationEstimator(model, loss=loss).fit(rows, labels)
    assert est.coef_[0] == pytest.approx(0.05, rel=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_in_single_precision_are_taken(dtype):
    model = Ridge(3.0).fit(X.astype(dtype), Y.astype(dtype))
    for rows in (X, X.astype(np.float32), sparse.csr_matrix(X)):
        assert adapt(model, Data(rows, Y), Options()).n_rows == len(Y)


# --- rows, weights and model of the training ----------------------------------------------------


def unrest(model, X, y, sample_weight=None, **params):
    est = ImplicitRegularizationEstimator(model, **params).fit(X, y, sample_weight)
    value = est._equations.judged.gradient.unrest
    noted = "unpenalized intercept" in " ".join(str(est.summary()).split())
    assert noted == (value > 0.3)
    return value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_no_note_on_the_rows_of_the_training(case):
    """All models, losses, solvers and weights with a known penalty."""
    problem = adapt(case.make(), Data(case.X, case.y, case.sample_weight), Options())
    assert problem.gradient().unrest <= 0.1


MODELS = [
    LinearRegression(),
    Ridge(3.0),
    Ridge(3.0, solver="lsqr"),
    ElasticNet(0.5),
    PoissonRegressor(alpha=1e-3, max_iter=1000),
]


@pytest.mark.parametrize("model", MODELS, ids=shortly)
def test_other_rows_are_noted(model):
    ours = Y < 200
    model.fit(X[ours], Y[ours])
    assert unrest(model, X[ours], Y[ours]) <= 0.1
    assert unrest(model, X[~ours], Y[~ours]) > 0.3


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "newton-cholesky", "sag", "saga"])
def test_other_rows_of_a_classifier(solver):
    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs = StandardScaler().fit_transform(inputs)
    model = LogisticRegression(C=0.1, solver=solver, max_iter=2000, random_state=0)
    model.fit(inputs[:400], labels[:400])
    assert unrest(model, inputs[:400], labels[:400]) <= 0.1
    assert unrest(model, inputs[400:], labels[400:]) > 0.3


def test_other_weights_are_noted():
    weight = np.where(Y > 200, 3.0, 1.0)
    model = Ridge(3.0).fit(X, Y, weight)
    assert unrest(model, X, Y, weight) <= 0.1
    assert unrest(model, X, Y) > 0.3


def test_one_of_several_outputs_is_enough():
    model = Ridge(3.0).fit(X, np.column_stack([Y, -Y]))
    assert unrest(model, X, np.column_stack([Y, -Y])) <= 0.1
    model.intercept_ = model.intercept_ + [0.0, 40.0]
    assert unrest(model, X, np.column_stack([Y, -Y])) > 0.3


@pytest.mark.parametrize("change", ["rounded", "raw features", "an unfinished training"])
def test_changed_models_are_noted(change):
    scaled = StandardScaler().fit_transform(X)
    model = Ridge(3.0).fit(scaled, Y)
    rows = scaled
    if change == "rounded":
        model.coef_, model.intercept_ = np.round(model.coef_, -1), np.round(model.intercept_, -1)
    elif change == "raw features":
        rows = X
    else:
        model = SGDRegressor(max_iter=1, tol=None, eta0=1e-3, random_state=0).fit(scaled, Y)
    assert unrest(model, rows, Y) > 0.3


def test_what_the_penalty_covers_is_not_at_rest():
    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs = StandardScaler().fit_transform(inputs)
    for model in (
        LogisticRegression(C=1e-3, solver="liblinear"),
        LinearSVC(C=1e-4, intercept_scaling=2.0),
    ):
        for params in ("auto", "coef"):
            assert unrest(model.fit(inputs, labels), inputs, labels, params=params) == 0.0
    gradient = 2 * X.T @ (X @ np.ones(10) + 5 - Y)
    assert np.linalg.norm(gradient) > 1
    problem = linear_problem(
        Data(X, Y),
        Options(params="coef"),
        coef=np.ones(10),
        intercept=5.0,
        penalized_intercept=True,
    )
    assert problem.gradient().unrest == 0.0
    known = {"coef": np.ones(10), "intercept": 5.0, "penalized_intercept": True}
    blocks = Data([(X[:200], Y[:200]), (X[200:], Y[200:])])
    assert linear_problem(blocks, Options(params="coef"), **known).gradient().unrest == 0.0


def test_an_exact_fit_has_nothing_but_rounding():
    y = X @ np.arange(10.0) + 3
    assert unrest(LinearRegression().fit(X, y), X, y) == 0.0


def test_losses_with_kinks_have_a_set_for_a_gradient():
    model = SVC(kernel="linear", C=1e-3).fit(X, LABELS)
    assert unrest(model, X, LABELS, loss="hinge") == 0.0
    model = QuantileRegressor(alpha=1e-3).fit(X, Y)
    assert unrest(model, X, Y, loss="mae") == 0.0


def test_blocks_of_rows_and_the_criterion_know_it_too():
    model = Ridge(3.0).fit(X[:200], Y[:200])
    whole = unrest(model, X[200:], Y[200:])
    blocks = [(X[200:300], Y[200:300]), (X[300:], Y[300:])]
    assert unrest(model, blocks, None) == pytest.approx(whole, rel=1e-9)
    found = ImplicitRegularizationCV(model, families=["l2", "l1"]).fit(X[200:], Y[200:])
    own = found.best_estimator_._equations.judged.gradient.unrest
    assert own == pytest.approx(whole, rel=1e-9)
    assert "unpenalized intercept" in str(found.summary())
