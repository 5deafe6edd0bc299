"""Training on loss and estimated penalty leads back to the model, and without it does not."""

import pickle

import numpy as np
import pytest
import torch
from cases import W_DIABETES, X_DIABETES, Y_DIABETES, Y_TWO
from scipy import sparse
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    SGDRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVR
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options
from sklearn_implicitreg.penalties import L1, L2, L21, Penalty, Power, SmoothL1, WeightDecay
from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.penalties.fitted import FittedPenalty
from sklearn_implicitreg.results.quadratic_form import QuadraticForm, quadratic_penalty
from sklearn_implicitreg.results.recovery import recover

N = len(X_DIABETES)
TOL = 1e-10


class Squares(Penalty):
    """``sum_j c_j theta_j^2``: one coefficient per weight."""

    def terms(self, params, problem=None):
        return {"square": torch.cat([t.reshape(-1) for t in params.values()]).square()}


def recovered(model, X, y, sample_weight=None, **options):
    est = ImplicitRegularizationEstimator(model, **options).fit(X, y, sample_weight)
    return est.recover(X, y, sample_weight)


def assert_recovered(found, tol=TOL):
    assert found.recovered.distance <= tol
    assert found.recovered.cosine == pytest.approx(1, abs=1e-14)
    assert found.recovered.loss == pytest.approx(found.model.loss, rel=1e-10)
    assert found.recovered.prediction <= 1e-9 * found.ablated.prediction


MODELS = {
    "ridge": (Ridge(alpha=3.0), X_DIABETES, Y_DIABETES, None),
    "offset": (Ridge(alpha=3.0, solver="cholesky"), X_DIABETES + 5.0, Y_DIABETES + 3.0, None),
    "weighted": (Ridge(alpha=3.0), X_DIABETES, Y_DIABETES, W_DIABETES),
    "no intercept": (Ridge(alpha=3.0, fit_intercept=False), X_DIABETES, Y_DIABETES, None),
    "two outputs": (Ridge(alpha=3.0), X_DIABETES, Y_TWO, None),
    "one alpha per output": (Ridge(alpha=np.array([1.0, 9.0])), X_DIABETES, Y_TWO, None),
    "sparse": (
        Ridge(alpha=3.0, solver="sparse_cg", tol=1e-14),
        sparse.csr_matrix(X_DIABETES),
        Y_DIABETES,
        None,
    ),
    "pipeline": (make_pipeline(StandardScaler(), Ridge(alpha=30.0)), X_DIABETES, Y_DIABETES, None),
    "target": (TransformedTargetRegressor(Ridge(3.0)), X_DIABETES, Y_DIABETES, None),
    "p > n": (Ridge(alpha=3.0), X_DIABETES[:6], Y_DIABETES[:6], None),
}


class TestClosedForm:
    @pytest.mark.parametrize("name", MODELS)
    def test_ridge_is_recovered(self, name):
        model, X, y, weight = MODELS[name]
        if weight is None:
            model.fit(X, y)
        else:
            model.fit(X, y, sample_weight=weight)
        found = recovered(model, X, y, weight)
        assert_recovered(found)
        assert found.method == "closed form"
        assert found.is_minimizer
        assert found.smallest_eigenvalue > 0
        assert found.ablated.distance > 0.01

    @pytest.mark.parametrize("weight", [None, W_DIABETES], ids=["plain", "weighted"])
    def test_numbers_of_the_arms(self, weight):
        """Loss, predictions and weights of every arm, by scikit-learn's own estimators."""
        truth = np.arange(1.0, 11.0)  # a penalty of another kind, so that l2 is off
        X = X_DIABETES + 2.0
        model = Ridge(alpha=3.0).fit(X / truth, Y_DIABETES, weight)
        model.coef_ = model.coef_ / truth
        est = ImplicitRegularizationEstimator(model).fit(X, Y_DIABETES, weight)
        found = est.recover(X, Y_DIABETES, weight)
        ridge = est.explicit_estimator().fit(X, Y_DIABETES, weight)
        ols = LinearRegression().fit(X, Y_DIABETES, weight)
        for arm, trained in ((found.model, model), (found.recovered, ridge), (found.ablated, ols)):
            np.testing.assert_allclose(arm.coef, trained.coef_, rtol=1e-9)
            error = Y_DIABETES - trained.predict(X)
            assert arm.loss == pytest.approx(np.average(error**2, weights=weight), rel=1e-10)
            away = trained.predict(X) - model.predict(X)
            rms = np.sqrt(np.average(away**2, weights=weight))
            assert arm.prediction == pytest.approx(rms, rel=1e-8, abs=1e-12)
            r = est.coef_[0] * (trained.coef_**2).sum()
            assert arm.penalty == pytest.approx(r, rel=1e-9)
            distance = np.linalg.norm(trained.coef_ - model.coef_) / np.linalg.norm(model.coef_)
            assert arm.distance == pytest.approx(distance, rel=1e-8, abs=1e-14)
        total = found.recovered.loss + found.recovered.penalty
        assert total < found.model.loss + found.model.penalty
        assert 0.01 < found.recovered.distance < found.ablated.distance

    def test_smallest_eigenvalue_is_of_the_hessian(self):
        model = Ridge(alpha=3.0).fit(X_DIABETES, Y_DIABETES)
        centered = X_DIABETES - X_DIABETES.mean(axis=0)
        hessian = 2 * centered.T @ centered / N + 2 * 3.0 / N * np.eye(10)
        found = recovered(model, X_DIABETES, Y_DIABETES)
        expected = np.linalg.eigvalsh(hessian)[0]
        assert found.smallest_eigenvalue == pytest.approx(expected, rel=1e-10)

    def test_ablated_arm_is_the_shortest_least_squares(self):
        X, y = X_DIABETES[:6], Y_DIABETES[:6]
        model = Ridge(alpha=3.0, fit_intercept=False).fit(X, y)
        found = recovered(model, X, y)
        np.testing.assert_allclose(
            found.ablated.coef, np.linalg.lstsq(X, y, rcond=None)[0], rtol=1e-9
        )
        assert found.ablated.loss == pytest.approx(0, abs=1e-10)

    def test_without_a_penalty_both_arms_are_the_model(self):
        model = LinearRegression().fit(X_DIABETES, Y_DIABETES)
        found = recovered(model, X_DIABETES, Y_DIABETES)
        assert found.recovered.distance < TOL
        assert found.ablated.distance < TOL

    def test_units_of_the_features_do_not_matter(self):
        X = X_DIABETES * np.logspace(-6, 6, 10)
        model = Ridge(alpha=1e-3, fit_intercept=False, solver="svd").fit(X, Y_DIABETES)
        model.coef_ = np.linalg.solve(
            np.eye(10) + np.diag(1 / np.diag(X.T @ X)) @ (X.T @ X),
            X.T @ Y_DIABETES / np.diag(X.T @ X),
        )
        penalty = {"scaled": lambda p: (p["coef"].square() * torch.tensor(np.diag(X.T @ X))).sum()}
        found = recovered(model, X, Y_DIABETES, family=penalty)
        assert found.is_minimizer
        assert found.smallest_eigenvalue > 0
        np.testing.assert_allclose(found.recovered.coef, model.coef_, rtol=1e-9)

    def test_penalty_with_a_center(self):
        """``R = |theta - 1|^2``: its gradient is affine, not linear."""
        X = X_DIABETES
        A = X.T @ X / N + 0.5 * np.eye(10)
        model = LinearRegression(fit_intercept=False).fit(X, Y_DIABETES)
        model.coef_ = np.linalg.solve(A, X.T @ Y_DIABETES / N + 0.5 * np.ones(10))
        found = recovered(
            model, X, Y_DIABETES, family={"c": lambda p: (p["coef"] - 1).square().sum()}
        )
        assert_recovered(found)
        assert found.model.penalty == pytest.approx(0.5 * ((model.coef_ - 1) ** 2).sum())

    @pytest.mark.parametrize("scale", [1.0, 7.0])
    def test_penalty_on_rows(self, scale):
        """``R = mean_i |f(x_i)|^2`` shrinks least squares; the rows are those of the last step."""
        X, y = StandardScaler().fit_transform(X_DIABETES), Y_DIABETES
        model = make_pipeline(StandardScaler(), LinearRegression(fit_intercept=False))
        model.fit(scale * X, y, linearregression__sample_weight=W_DIABETES)
        model[-1].coef_ /= 1.25
        family = {"outputs": lambda params, batch: batch.outputs.square().sum(1)}
        est = ImplicitRegularizationEstimator(model, family=family).fit(scale * X, y, W_DIABETES)
        assert est.coef_ == pytest.approx([0.25])
        found = est.recover(scale * X, y, W_DIABETES)
        assert_recovered(found)
        rows = np.average(np.square(X @ model[-1].coef_), weights=W_DIABETES)
        assert found.model.penalty == pytest.approx(0.25 * rows)

    @pytest.mark.parametrize("params", ["all", "weights"])
    def test_linear_module(self, params):
        X, y = torch.tensor(X_DIABETES + 1.0), torch.tensor(Y_DIABETES)[:, None]
        columns = torch.cat([X, torch.ones(N, 1).double()], dim=1)
        penalized = torch.eye(11).double() * 0.05
        penalized[10, 10] *= params == "all"
        theta = torch.linalg.solve(columns.T @ columns / N + penalized, columns.T @ y / N)[:, 0]
        module = nn.Linear(10, 1).double()
        with torch.no_grad():
            module.weight.copy_(theta[None, :10])
            module.bias.copy_(theta[10:])
        found = recovered(module, X, y, loss="mse", params=params)
        assert_recovered(found)
        assert len(found.index) == (11 if params == "all" else 10)
        assert len(found.notes) == 2
        assert all(p.grad is None for p in module.parameters())

    def test_choice_of_families_and_pickled_fits(self):
        model = Ridge(alpha=3.0).fit(X_DIABETES, Y_DIABETES)
        search = ImplicitRegularizationCV(model, families=["l1", "l2"]).fit(X_DIABETES, Y_DIABETES)
        assert_recovered(search.recover(X_DIABETES, Y_DIABETES))
        est = ImplicitRegularizationEstimator(model).fit(X_DIABETES, Y_DIABETES)
        again = pickle.loads(pickle.dumps(est))
        assert_recovered(again.recover(X_DIABETES, Y_DIABETES))

    def test_template(self):
        assert_recovered(recovered(Ridge(alpha=2.0), X_DIABETES, Y_DIABETES))


def early_stopped(seed, n=1000, p=10, lr=0.005, steps=500):
    """Gradient descent from zero on the mean squared error, stopped early (figure 4)."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    y = X @ rng.standard_normal(p) + rng.standard_normal(n)
    theta = np.zeros(p)
    for _ in range(steps):
        theta -= lr * 2 / n * X.T @ (X @ theta - y)
    model = LinearRegression(fit_intercept=False).fit(X, y)
    model.coef_ = theta
    return model, X, y


class TestDiagonal:
    """One coefficient per weight: equal by the linear solve, a minimizer only sometimes."""

    def test_equal_always_minimizer_where_positive_definite(self):
        named, expected = set(), set()
        for seed in range(56, 77):
            model, X, y = early_stopped(seed, steps=60)
            est = ImplicitRegularizationEstimator(model, family=Squares()).fit(X, y)
            found = est.recover(X, y)
            np.testing.assert_allclose(found.recovered.coef, model.coef_, rtol=TOL, atol=TOL)
            assert_recovered(found)
            lowest = np.linalg.eigvalsh(X.T @ X / len(X) + np.diag(est.coef_))[0]
            assert found.smallest_eigenvalue == pytest.approx(2 * lowest, rel=1e-9)
            expected |= {seed} if lowest <= 0 else set()
            named |= set() if found.is_minimizer else {seed}
        assert named == expected
        assert 0 < len(named) < 21  # both kinds are among the draws

    def test_saddle_is_named(self):
        X = X_DIABETES[:, :2]
        model = LinearRegression(fit_intercept=False).fit(X, Y_DIABETES)
        model.coef_ = model.coef_ * [-0.2, 1.1]
        found = recovered(model, X, Y_DIABETES, family=Squares())
        assert_recovered(found)
        assert not found.is_minimizer
        assert found.smallest_eigenvalue < 0
        text = " ".join(str(found).split())
        assert "Not a minimizer: 1 of 2 eigenvalues" in text
        assert "Minimizer: no" in text

    def test_singular_is_named(self):
        X = np.column_stack([X_DIABETES[:, :2], X_DIABETES[:, :2].sum(axis=1)])
        model = LinearRegression(fit_intercept=False).fit(X, Y_DIABETES)
        found = recovered(model, X, Y_DIABETES)
        assert found.is_minimizer
        assert not found.is_unique
        text = " ".join(str(found).split())
        assert "1 of 3 eigenvalues of the Hessian of L + R are zero" in text
        assert "Minimizer: yes, not alone" in text

    def test_singular_without_a_stationary_point(self):
        falling = QuadraticForm(np.diag([2.0, 0.0]), np.array([1.0, 1.0])).stationary()
        assert (falling.n_zero, falling.exists) == (1, False)
        resting = QuadraticForm(np.diag([2.0, 0.0]), np.array([1.0, 0.0])).stationary()
        assert (resting.n_zero, resting.exists) == (1, True)


LABELS = (Y_DIABETES > np.median(Y_DIABETES)).astype(int)


class TestRefit:
    @pytest.mark.parametrize(
        ("model", "family", "y"),
        [
            (Lasso(alpha=0.05, tol=1e-14, max_iter=10**6), "l1", Y_DIABETES),
            (ElasticNet(alpha=0.05, tol=1e-14, max_iter=10**6), "l2+l1", Y_DIABETES),
            (LogisticRegression(C=0.5, tol=1e-12, max_iter=10**4), "l2", LABELS),
            (PoissonRegressor(alpha=0.3, tol=1e-12, max_iter=10**4), "l2", LABELS),
        ],
        ids=lambda value: type(value).__name__,
    )
    @pytest.mark.parametrize("weight", [None, W_DIABETES], ids=["plain", "weighted"])
    def test_explicit_estimator_is_trained(self, model, family, y, weight):
        model.fit(X_DIABETES, y, sample_weight=weight)
        before = model.coef_.copy()
        found = recovered(model, X_DIABETES, y, weight, family=family)
        assert found.method == "refit"
        assert found.is_minimizer is None
        assert found.recovered.distance < 1e-6
        assert found.ablated.distance > 1e-2
        assert found.ablated.loss < found.model.loss
        assert found.recovered.loss == pytest.approx(found.model.loss, rel=1e-6)
        assert found.recovered.prediction < 1e-5 < found.ablated.prediction
        assert type(model).__name__ in found.notes[0]
        np.testing.assert_array_equal(model.coef_, before)

    def test_ablated_arm_of_a_squared_error_is_least_squares(self):
        model = Lasso(alpha=0.1).fit(X_DIABETES, Y_DIABETES)
        ols = LinearRegression().fit(X_DIABETES, Y_DIABETES)
        found = recovered(model, X_DIABETES, Y_DIABETES, family="l1")
        np.testing.assert_allclose(found.ablated.coef, ols.coef_, rtol=1e-8)
        error = Y_DIABETES - ols.predict(X_DIABETES)
        assert found.ablated.loss == pytest.approx(np.mean(error**2), rel=1e-12)

    def test_bounds_need_a_solver(self):
        model = Ridge(alpha=3.0, positive=True, tol=1e-12).fit(X_DIABETES, Y_DIABETES)
        assert (model.coef_ == 0).any()
        found = recovered(model, X_DIABETES, Y_DIABETES)
        assert found.method == "refit"
        assert found.recovered.distance < 1e-6
        assert (found.ablated.coef >= 0).all()

    def test_what_is_heard_without_a_penalty_is_a_note(self):
        X, y = X_DIABETES[:20], LABELS[:20]
        model = LogisticRegression(tol=1e-10, max_iter=300).fit(X, y)
        found = recovered(model, X, y)
        assert found.recovered.distance < 1e-4
        assert found.ablated.distance > 1

    def test_estimator_that_takes_no_zero(self):
        model = LinearSVR(loss="squared_epsilon_insensitive", tol=1e-12, max_iter=10**5)
        model.fit(X_DIABETES, Y_DIABETES / 50)
        found = recovered(model, X_DIABETES, Y_DIABETES / 50)
        assert found.recovered.distance < 1e-4 < 0.1 * found.ablated.distance
        assert "LinearSVR takes no zero" in found.notes[2]


class TestWhatIsQuadratic:
    @pytest.mark.parametrize(
        ("penalty", "expected"),
        [
            (L2(), True),
            (WeightDecay(), True),
            (Power(2), True),
            (L1(), False),
            (SmoothL1(), False),
            (SmoothL1(delta=0.5), False),
            (Power(4), False),
            (Power(1.5), False),
            (L21(), False),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.3, -2.0, 5.0], [1e-8, 0.0, 1e-5]])
    def test_families(self, penalty, expected, values):
        params = {"coef": torch.tensor([values]).double()}
        fitted = FittedPenalty(((Leaf(penalty, ("coef",)), (0.7,)),), {"coef": (1, 3)})
        rule = quadratic_penalty(fitted, params)
        assert (rule is not None) == expected
        if rule is not None:
            scale = 0.7 if isinstance(penalty, WeightDecay) else 1.4
            np.testing.assert_allclose(rule.hessian, scale * np.eye(3), rtol=1e-14)
        assert not params["coef"].requires_grad


class TestBadInput:
    def test_given_equations(self):
        est = ImplicitRegularizationEstimator("precomputed").fit(X_DIABETES, Y_DIABETES)
        with pytest.raises(TypeError, match="Expected a model to recover"):
            est.recover(X_DIABETES, Y_DIABETES)

    def test_known_penalty(self):
        model = Ridge(alpha=3.0).fit(X_DIABETES, Y_DIABETES)
        est = ImplicitRegularizationEstimator(model, known={"l2": 1e-3}).fit(X_DIABETES, Y_DIABETES)
        with pytest.raises(ValueError, match="without known penalties"):
            est.recover(X_DIABETES, Y_DIABETES)

    def test_penalty_that_no_estimator_states(self):
        model = Ridge(alpha=3.0).fit(X_DIABETES, Y_DIABETES)
        est = ImplicitRegularizationEstimator(model, family="smooth_l1").fit(X_DIABETES, Y_DIABETES)
        with pytest.raises(ValueError, match="use penalty_ in a training loop"):
            est.recover(X_DIABETES, Y_DIABETES)

    def test_intercept_that_is_not_at_its_best(self):
        model = SGDRegressor(alpha=0.1, max_iter=2, tol=None, random_state=0)
        model.fit(X_DIABETES + 2.0, Y_DIABETES)
        est = ImplicitRegularizationEstimator(model).fit(X_DIABETES + 2.0, Y_DIABETES)
        found = est.recover(X_DIABETES + 2.0, Y_DIABETES)
        assert "not in the model: intercept (gradient" in found.notes[-1]

    def test_penalty_that_is_only_a_function(self):
        """A closed form asks for no more than its value; an estimator cannot be made from it."""
        options, data = Options(), Data(X_DIABETES, Y_DIABETES)
        model = Ridge(alpha=3.0).fit(X_DIABETES, Y_DIABETES)
        est = ImplicitRegularizationEstimator(model).fit(X_DIABETES, Y_DIABETES)
        description = est._description

        def penalty(params):
            return 3.0 / N * params["coef"].square().sum()

        assert_recovered(recover(model, {}, description, penalty, data, options))
        logistic = LogisticRegression().fit(X_DIABETES, LABELS)
        with pytest.raises(ValueError, match="Expected a quadratic loss for this penalty"):
            recover(logistic, {}, description, penalty, Data(X_DIABETES, LABELS), options)

    def test_several_models(self):
        model = Ridge(alpha=3.0).fit(X_DIABETES, Y_DIABETES)
        est = ImplicitRegularizationEstimator(model).fit(X_DIABETES, Y_DIABETES)
        est.model_ = [model, model]
        with pytest.raises(ValueError, match="one model to recover, got 2"):
            est.recover(X_DIABETES, Y_DIABETES)

    def test_unfitted(self):
        with pytest.raises(ValueError, match="not fitted"):
            ImplicitRegularizationEstimator(Ridge()).recover(X_DIABETES, Y_DIABETES)


def test_tables():
    model = Ridge(alpha=3.0).fit(X_DIABETES, Y_DIABETES)
    found = recovered(model, X_DIABETES, Y_DIABETES)
    frame = found.to_frame()
    assert list(frame.columns) == ["model", "recovered", "ablated"]
    assert frame.index[3] == ("coef", 3)
    np.testing.assert_array_equal(frame["model"], model.coef_)
    text = str(found)
    assert repr(found) == text
    for part in ("without R", "L + R", "distance", "positive definite", "closed form"):
        assert part in text
    assert "without R" in found._repr_html_()
    assert max(len(line) for line in text.splitlines()) == 79
