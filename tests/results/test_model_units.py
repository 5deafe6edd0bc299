"""What in_model_units returns trains the penalty that was found."""

import warnings

import numpy as np
import pytest
from cases import CASES
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    ElasticNet,
    ElasticNetCV,
    HuberRegressor,
    Lasso,
    LassoCV,
    LogisticRegression,
    LogisticRegressionCV,
    PoissonRegressor,
    Ridge,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from sklearn_implicitreg import ImplicitRegularizationEstimator as Estimator
from sklearn_implicitreg import LinearModel, equations
from sklearn_implicitreg.endpoints.templates import inner_model
from sklearn_implicitreg.results.explicit import model_units

X, Y = load_diabetes(return_X_y=True)
X = StandardScaler().fit_transform(X)
CANCER, LABELS = load_breast_cancer(return_X_y=True)
CANCER = StandardScaler().fit_transform(CANCER)[:, :8]
TIGHT = {"tol": 1e-10, "max_iter": 100_000}


def weights_of(model):
    return np.append(np.ravel(model.coef_), model.intercept_)


def agree(found, expected, rtol=1e-4):
    """Weights that differ by this share of their size."""
    size = np.linalg.norm(weights_of(expected))
    assert np.linalg.norm(weights_of(found) - weights_of(expected)) <= rtol * size


def retrained(est, model, X, y, sample_weight=None, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        again = clone(model).set_params(**est.in_model_units(), **more)
        return again.fit(
            X, y, **({} if sample_weight is None else {"sample_weight": sample_weight})
        )


def stated(case):
    """Whether a plain estimator of scikit-learn takes the parameters that a case has."""
    own = case.estimator.get_params(deep=False)
    return hasattr(case.estimator, "get_params") and set(case.own) <= set(own) and case.fit is None


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if isinstance(c.own, dict) and stated(c)],
    ids=lambda case: case.id,
)
def test_the_model_comes_back(case):
    """All estimators with a known penalty, each from the family that is its own."""
    model = case.make()
    est = Estimator(model, family=case.family).fit(case.X, case.y, case.sample_weight)
    again = retrained(est, model, case.X, case.y, case.sample_weight)
    if hasattr(model, "coefs_"):
        pairs = zip(again.coefs_, model.coefs_, strict=True)
        assert all(np.allclose(a, b, rtol=0.1, atol=0.1) for a, b in pairs)
    else:
        agree(again, model, max(1e-4, 20 * case.rtol))


LOGISTIC = {
    "l2": LogisticRegression(C=0.1, **TIGHT),
    "l1": LogisticRegression(C=0.1, l1_ratio=1.0, solver="saga", random_state=0, **TIGHT),
    "l1 by liblinear": LogisticRegression(C=0.1, l1_ratio=1.0, solver="liblinear", **TIGHT),
    "l2+l1": LogisticRegression(C=0.1, l1_ratio=0.5, solver="saga", random_state=0, **TIGHT),
}


@pytest.mark.parametrize("name", LOGISTIC)
def test_from_any_other_kind_of_the_same_class(name):
    """Found in weights that were trained elsewhere, and stated by a model of another kind."""
    truth = clone(LOGISTIC[name]).fit(CANCER, LABELS)
    start = LogisticRegression(**TIGHT, solver="newton-cg").fit(CANCER, LABELS)
    if "liblinear" in name:
        start = LogisticRegression(**TIGHT, solver="liblinear").fit(CANCER, LABELS)
    start.coef_, start.intercept_ = truth.coef_, truth.intercept_
    est = Estimator(start, family=name.partition(" ")[0]).fit(CANCER, LABELS)
    units = est.in_model_units()
    assert units["l1_ratio"] == pytest.approx(truth.l1_ratio, abs=1e-6)
    agree(retrained(est, start, CANCER, LABELS), truth)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("other", ["l1", "l2"])
def test_linear_svc_by_its_penalty(penalty, other):
    truth = LinearSVC(C=0.05, penalty=penalty, dual=False, **TIGHT).fit(CANCER, LABELS)
    start = LinearSVC(penalty=other, dual=other == "l2" and "auto", **TIGHT).fit(CANCER, LABELS)
    start.coef_, start.intercept_ = truth.coef_, truth.intercept_
    est = Estimator(start, family=penalty).fit(CANCER, LABELS)
    assert est.in_model_units()["penalty"] == penalty
    assert "l1_ratio" not in est.in_model_units()
    agree(retrained(est, start, CANCER, LABELS), truth, 1e-3)


@pytest.mark.parametrize(("loss", "coef"), [("squared_hinge", [1, 1]), ("hinge", [0, 1])])
def test_linear_svc_has_no_other_penalty(loss, coef):
    model = LinearSVC(loss=loss, max_iter=100_000).fit(CANCER, LABELS)
    est = Estimator(model, family="l2+l1").fit(CANCER, LABELS)
    found = dict(zip(["l2", "l1"], map(float, coef), strict=True))
    with pytest.raises(ValueError, match="Expected a penalty that LinearSVC"):
        model_units(model, found, est._description)


@pytest.mark.parametrize("cls", [SGDRegressor, SGDClassifier])
@pytest.mark.parametrize(("family", "kind"), [("l2", "l2"), ("l1", "l1"), ("l2+l1", "elasticnet")])
def test_sgd_by_its_penalty(cls, family, kind):
    """Weights of a solver that ends, in a model of SGD, which states what led to them."""
    ratio = {"l2": 0.0, "l1": 1.0, "elasticnet": 0.4}[kind]
    if cls is SGDRegressor:
        inputs, target = X, Y
        other = Ridge(0.2 * len(X)) if kind == "l2" else ElasticNet(0.2, l1_ratio=ratio, **TIGHT)
    else:
        inputs, target = CANCER, LABELS
        other = LogisticRegression(
            C=1 / (0.2 * len(CANCER)), l1_ratio=ratio, solver="saga", random_state=0, **TIGHT
        )
    truth = other.fit(inputs, target)
    loss = {} if cls is SGDRegressor else {"loss": "log_loss"}
    model = cls(penalty=None, max_iter=5, tol=None, random_state=0, **loss).fit(inputs, target)
    model.coef_ = truth.coef_.reshape(model.coef_.shape)
    model.intercept_ = np.reshape(truth.intercept_, model.intercept_.shape)
    units = Estimator(model, family=family).fit(inputs, target).in_model_units()
    assert units["penalty"] == kind
    assert units["alpha"] == pytest.approx(0.2, rel=1e-4)
    assert units["l1_ratio"] == pytest.approx(ratio, abs=1e-5)
    clone(model).set_params(**units).fit(inputs, target)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("penalty", [None, "l1", "elasticnet"])
def test_a_deprecated_penalty_does_not_hide_the_other_parameters(penalty):
    truth = LogisticRegression(C=0.1, **TIGHT).fit(CANCER, LABELS)
    own = {"penalty": penalty, "solver": "saga", "l1_ratio": 0.5 if penalty == "elasticnet" else 0}
    if penalty == "l1":
        own["l1_ratio"] = 1
    model = LogisticRegression(**own, max_iter=5000).fit(CANCER, LABELS)
    model.coef_, model.intercept_ = truth.coef_, truth.intercept_
    est = Estimator(model).fit(CANCER, LABELS)
    agree(retrained(est, model, CANCER, LABELS, tol=1e-8), truth)


def test_containers_give_the_parameters_of_the_model_inside():
    pipe = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, **TIGHT))
    for model in (pipe, GridSearchCV(pipe, {"logisticregression__C": [0.3]}, cv=2)):
        units = Estimator(model.fit(CANCER, LABELS), family="l1").fit(CANCER, LABELS)
        assert units.in_model_units()["l1_ratio"] == 1.0
        assert units.in_model_units()["solver"] == "saga"
    several = LogisticRegressionCV(
        Cs=[0.3], cv=2, l1_ratios=(0,), scoring="accuracy", use_legacy_attributes=False
    )
    units = Estimator(several.fit(CANCER, LABELS)).fit(CANCER, LABELS).in_model_units()
    assert units == pytest.approx({"C": 0.3, "l1_ratio": 0.0}, rel=1e-2)


# --- statsmodels --------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "ratio"), [("l2", 0.0), ("l1", 1.0), ("l2+l1", 0.6)])
def test_statsmodels_trains_them(family, ratio, sm):
    options = {"zero_tol": 1e-12, "cnvrg_tol": 1e-12, "maxiter": 5000} if ratio else {}
    model = sm.OLS(Y, X)
    truth = model.fit_regularized(alpha=0.7, L1_wt=ratio, **options)
    units = Estimator(truth, family=family).fit(X, Y).in_model_units()
    assert units["L1_wt"] == pytest.approx(ratio, abs=1e-8)
    again = model.fit_regularized(**units, **options)
    np.testing.assert_allclose(again.params, truth.params, rtol=1e-6, atol=1e-6)


def test_square_root_lasso_in_units_of_the_elastic_net(sm):
    """Its weights are those of a lasso, whose strength has the residual in it."""
    from statsmodels.base import elastic_net

    strength = 40.0
    lasso = Lasso(alpha=1.0, fit_intercept=False, **TIGHT)
    alpha = 1.0
    for _ in range(200):  # |y - X b| / sqrt(n) + strength/n |b|: a lasso of this alpha
        root = np.linalg.norm(Y - X @ lasso.set_params(alpha=alpha).fit(X, Y).coef_)
        alpha = strength * root / len(Y) ** 1.5
    model = sm.OLS(Y, X)
    results = elastic_net.RegularizedResults(model, lasso.coef_)  # as statsmodels returns them
    units = Estimator(results, family="l1").fit(X, Y).in_model_units()
    assert units == pytest.approx({"alpha": alpha, "L1_wt": 1.0}, rel=1e-8)
    again = model.fit_regularized(**units, zero_tol=1e-10, cnvrg_tol=1e-12, maxiter=5000)
    np.testing.assert_allclose(again.params, lasso.coef_, rtol=1e-6, atol=1e-6)


# --- coefficients within rounding of zero -------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (Ridge(3.0), Y),
        (Ridge(3.0, solver="lsqr", tol=1e-6), Y),
        (PoissonRegressor(alpha=0.1), Y),
        (HuberRegressor(alpha=3.0, max_iter=10_000), Y),
        (LogisticRegression(C=0.5), Y > 140),
        (LogisticRegression(C=0.5, tol=1e-12, solver="newton-cholesky"), Y > 140),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["l2+l1", "l1+l2"])
def test_a_lasso_that_is_not_there(model, target, family):
    model.fit(X, target)
    est = Estimator(model, family=family).fit(X, target)
    alone = Estimator(model, family="l2").fit(X, target)
    assert est.coef_[0 if family == "l1+l2" else 1] != 0
    explicit = est.explicit_estimator()
    assert type(explicit) is type(model)
    assert est.in_model_units() == pytest.approx(alone.in_model_units(), rel=1e-2)
    agree(explicit.fit(X, target), model, 1e-2)


def test_a_ridge_that_is_not_there():
    model = Lasso(0.5, **TIGHT).fit(X, Y)
    est = Estimator(model, family="l2+l1").fit(X, Y)
    assert est.coef_[0] != 0
    assert est.explicit_estimator().get_params() == pytest.approx(
        clone(model).set_params(alpha=est.in_model_units()["alpha"]).get_params()
    )


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.99])
def test_what_is_there_stays(ratio):
    """Small and above what the solver left."""
    model = ElasticNet(0.5, l1_ratio=ratio, **TIGHT).fit(X, Y)
    est = Estimator(model, family="l2+l1").fit(X, Y)
    assert est.in_model_units()["l1_ratio"] == pytest.approx(ratio, rel=1e-5)
    assert est.explicit_estimator().l1_ratio == pytest.approx(ratio, rel=1e-5)


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_scales_do_not_matter(size):
    """No number is small by itself."""
    model = ElasticNet(0.5 * size**2, l1_ratio=0.3, **TIGHT).fit(X * size, Y * size)
    est = Estimator(model, family="l2+l1").fit(X * size, Y * size)
    assert all(est._coefficients().values())


def test_an_unexplained_fit_keeps_its_small_coefficients():
    model = SGDRegressor(random_state=0).fit(X, Y)
    est = Estimator(model, family="l2+l1").fit(X, Y)
    assert est.r2_ < 0.9
    assert all(est._coefficients().values())


# --- as many coefficients as equations ----------------------------------------------------------


@pytest.mark.parametrize("family", ["l2+l1", "l1+power"])
def test_no_f_test_without_residual_degrees_of_freedom(family):
    model = Ridge(3.0).fit(X[:, :2], Y)
    est = Estimator(model, family=family).fit(X[:, :2], Y)
    header = dict(est.summary().header)
    assert (header["F"], header["Prob (F)"], header["Df residuals"]) == ("none", "none", "0")
    assert "nan" not in " ".join(header.values())
    assert not any("inf" in value for value in header.values())


# --- zero as a set: what leaving coefficients out costs -----------------------------------------

ROWS = np.random.default_rng(3).normal(size=(300, 6))
SLOPES = np.array([1.0, -2.0, 0.5, 1.5, -1.0, 2.0])


def given(design, target, names=("x0", "x1")):
    """Coefficients as they are stated, of equations given as arrays."""
    est = Estimator("precomputed").fit(design, target)
    return np.array([est._coefficients()[name] for name in names])


@pytest.mark.parametrize("ratio", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("solver", ["lsqr", "sag"])
def test_one_output_is_not_judged_by_what_another_left(ratio, solver):
    """Outputs share no equation: what one leaves is no error of the other's coefficient."""
    rng = np.random.default_rng(1)
    scale = np.array([ratio, 1.0])
    target = (ROWS @ rng.normal(size=(6, 2)) + rng.normal(size=(300, 2))) * scale
    model = Ridge(np.array([2.0, 7.0]), solver=solver, random_state=0).fit(ROWS, target)
    est = Estimator(model).fit(ROWS, target)
    np.testing.assert_allclose(est.in_model_units()["alpha"], [2.0, 7.0], rtol=5e-2)
    np.testing.assert_allclose(est.explicit_estimator().alpha, [2.0, 7.0], rtol=5e-2)


@pytest.mark.parametrize("ratio", [1.0, 1e4])
def test_an_output_without_a_penalty(ratio):
    target = np.column_stack([ratio * (ROWS @ SLOPES + 1), ROWS[:, ::-1] @ SLOPES - 2])
    target += np.random.default_rng(2).normal(size=target.shape)
    model = Ridge(np.array([4.0, 0.0]), solver="svd").fit(ROWS, target)
    np.testing.assert_allclose(
        Estimator(model).fit(ROWS, target).in_model_units()["alpha"], [4.0, 0.0], rtol=1e-6
    )


@pytest.mark.parametrize("m", [8, 60, 4000])
@pytest.mark.parametrize(("errors", "is_zero"), [(0.5, True), (3.5, True), (25.0, False)])
def test_by_its_standard_errors(m, errors, is_zero):
    """A column orthogonal to the others, with a coefficient of so many standard errors."""
    rng = np.random.default_rng(m)
    basis = np.linalg.qr(rng.normal(size=(m, 3)))[0]  # two columns, and what is left
    left = 1e-3
    small = errors * left / (m - 2) ** 0.5
    if m == 8 and errors > 3:  # four in the tail of t(6), and no more than what was left
        small = left * (0.9 if is_zero else 50)
    found = given(basis[:, :2], basis @ [1.0, small, left])
    np.testing.assert_allclose(found, [1.0, 0.0 if is_zero else small], rtol=1e-8, atol=1e-12)


def test_what_the_own_test_rejects_is_not_zero():
    """Clusters that agree, where the equations of large residuals do not."""
    rng = np.random.default_rng(0)
    for size in (1e-1, 1e-4):
        design = rng.normal(size=(400, 2))
        target = design @ [1.0, size] + 1e-2 * size * rng.normal(size=400)
        np.testing.assert_allclose(given(design, target), [1.0, size], rtol=1e-2)


def test_collinear_coefficients_are_zero_together_or_not_at_all():
    """Each is within its error of zero; without both nothing is explained."""
    rng = np.random.default_rng(4)
    column = rng.normal(size=50)
    design = np.column_stack([column, column + 1e-4 * rng.normal(size=50)])
    target = column * 3.0 + 1e-2 * rng.normal(size=50)
    found = given(design, target)
    assert np.count_nonzero(found) == 1
    assert found.sum() == pytest.approx(3.0, rel=1e-2)  # solved again, not the joint value
    best = np.linalg.lstsq(design, target, rcond=None)[1][0]
    assert np.square(target - design @ found).sum() <= 1.5 * best


def test_what_is_left_is_solved_again():
    """An elastic net that stopped early: a lasso explains what it left as well as both terms."""
    target = ROWS @ (2 * np.sign(SLOPES)) + 0.1 * np.random.default_rng(0).normal(size=300)
    model = ElasticNet(0.1, l1_ratio=0.5, tol=0.1).fit(ROWS, target)
    est = Estimator(model, family="l2+l1").fit(ROWS, target)
    stated = np.array(list(est._coefficients().values()))
    table = equations(model, ROWS, target, "l2+l1")
    away = table.target.values - table.data.values @ stated
    assert stated[0] == 0.0
    column = table.data.values[:, 1]
    assert stated[1] == pytest.approx(column @ table.target.values / (column @ column), rel=1e-9)
    assert np.square(away).sum() <= (1 - est.r2_ + 1e-4) * np.square(table.target.values).sum()


SOLVERS = [
    (Ridge(3.0, fit_intercept=False, solver="sag", tol=1e-12, max_iter=10_000), None),
    (Ridge(3.0, solver="saga", tol=1e-9, max_iter=10_000), None),
    (Ridge(3.0, solver="lsqr", tol=1e-6), None),
    (LogisticRegression(solver="saga", tol=1e-9, max_iter=10_000), 0.0),
    (LogisticRegression(solver="lbfgs", tol=1e-7), 0.0),
]


@pytest.mark.parametrize(("model", "threshold"), SOLVERS, ids=str)
@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_what_a_solver_left_is_no_lasso(model, threshold, size):
    """Few equations, of which any number may be left: no more than four in the tail of t."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        inputs = rng.normal(size=(60, 5))
        target = inputs @ rng.normal(size=5) + 0.5 * rng.normal(size=60)
        target = target * size if threshold is None else target > threshold
        if hasattr(model, "random_state"):
            model.set_params(random_state=seed)
        est = Estimator(model.fit(inputs, target), family="l2+l1").fit(inputs, target)
        assert est._coefficients()["l1"] == 0.0
        clone(model).set_params(**est.in_model_units()).fit(inputs, target)


@pytest.mark.parametrize("share", [1e-3, 1e-5, 1e-7])
def test_a_small_lasso_that_is_there_stays(share):
    """Stationary to rounding, where nothing was left."""
    weights = np.array([1.0, -2.0, 0.5, 1.5, -1.0, 3.0])
    rest = np.random.default_rng(5).normal(size=300)
    rest -= ROWS @ np.linalg.lstsq(ROWS, rest, rcond=None)[0]
    slope = 300 / 2 * (0.1 * weights * 2 + share * np.sign(weights))  # X'(y - X w) = n/2 grad R
    target = ROWS @ weights + rest + ROWS @ np.linalg.solve(ROWS.T @ ROWS, slope)
    model = LinearModel(weights, loss="squared_error")
    est = Estimator(model, family="l2+l1").fit(ROWS, target)
    np.testing.assert_allclose(list(est._coefficients().values()), [0.1, share], rtol=1e-5)


# --- containers, and what no model has a parameter for ------------------------------------------

SCALED = ROWS * np.arange(1, 7) + 2
NOISY = SCALED @ SLOPES + np.random.default_rng(6).normal(size=300)
CLASSES = NOISY > np.median(NOISY) + np.random.default_rng(7).normal(size=300)


def in_containers(model, **grid):
    """A model in everything that a penalty is looked for through."""
    pipe = make_pipeline(StandardScaler(), model)
    return [
        model,
        pipe,
        FrozenEstimator(clone(model).fit(SCALED, CLASSES if hasattr(model, "C") else NOISY)),
        GridSearchCV(pipe, {f"{pipe.steps[-1][0]}__{k}": [v] for k, v in grid.items()}, cv=2),
    ]


CONTAINERS = [
    *((model, NOISY, "l2") for model in in_containers(Ridge(7.0), alpha=7.0)),
    *(
        (model, CLASSES, "l2")
        for model in in_containers(LogisticRegression(C=0.02, **TIGHT), C=0.02)
    ),
    (TransformedTargetRegressor(Ridge(7.0), transformer=StandardScaler()), NOISY, "l2"),
    (
        make_pipeline(
            StandardScaler(),
            TransformedTargetRegressor(Lasso(0.1, **TIGHT), transformer=StandardScaler()),
        ),
        NOISY,
        "l1",
    ),
    (make_pipeline(StandardScaler(), RidgeCV([7.0, 8.0])), NOISY, "l2"),
    (RidgeCV([7.0]), NOISY, "l2"),
    (LassoCV(cv=3, **TIGHT), NOISY, "l1"),
    (ElasticNetCV(l1_ratio=0.4, cv=3, **TIGHT), NOISY, "l2+l1"),
]


@pytest.mark.parametrize("kind", range(len(CONTAINERS)))
def test_the_explicit_estimator_of_a_container_trains_the_penalty_found(kind):
    template, target, family = CONTAINERS[kind]
    model = template.fit(SCALED, target)
    est = Estimator(model, family=family).fit(SCALED, target)
    explicit = est.explicit_estimator()
    again = Estimator(clone(explicit).fit(SCALED, target), family=family).fit(SCALED, target)
    np.testing.assert_allclose(again.coef_, est.coef_, rtol=1e-5)
    method = "decision_function" if hasattr(model, "classes_") else "predict"
    old, new = getattr(model, method)(SCALED), getattr(explicit.fit(SCALED, target), method)(SCALED)
    assert np.linalg.norm(old - new) <= 1e-5 * np.linalg.norm(old)
    inner = inner_model(explicit).get_params()
    assert {key: inner[key] for key in est.in_model_units()} == est.in_model_units()


def test_liblinear_penalizes_the_intercept_and_no_other_solver_does():
    both = {"l2": 0.01, "l1": 0.02}
    for intercept, dual in ((True, False), (True, True), (False, False), (False, True)):
        model = LogisticRegression(solver="liblinear", fit_intercept=intercept, dual=dual)
        found = Estimator(model.fit(CANCER, LABELS)).fit(CANCER, LABELS)._description
        if intercept:
            with pytest.raises(ValueError, match="Expected one kind of penalty for solver='libl"):
                model_units(model, both, found)
        else:
            units = model_units(model, both, found)
            assert units["solver"] == "saga"
            clone(model).set_params(**units, tol=0.1).fit(CANCER, LABELS)
        for kind, ratio in (("l2", 0.0), ("l1", 1.0)):  # the solver stays
            units = model_units(model, {kind: 0.01}, found)
            again = clone(model).set_params(**units)
            assert (again.solver, again.l1_ratio) == ("liblinear", ratio)
            again.fit(CANCER, LABELS)


@pytest.mark.filterwarnings("ignore:Setting penalty=None:UserWarning")  # of scikit-learn 1.8
def test_zero_or_impossible_penalties():
    plain = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-13)
    noisy = np.random.default_rng(8).random(300) < 1 / (1 + np.exp(-ROWS[:, 0]))
    for family in ("l2", "l2+l1"):
        est = Estimator(plain.fit(ROWS, noisy), family=family).fit(ROWS, noisy)
        assert est.verdict_ == "no signal"
        assert est.in_model_units() == {"C": np.inf, "l1_ratio": 0.0}
        est.explicit_estimator().fit(ROWS, noisy)
    ridge = Ridge(2.0).fit(ROWS, NOISY)
    ridge.coef_ = ridge.coef_ * 1.2
    est = Estimator(ridge).fit(ROWS, NOISY)
    assert est.in_model_units()["alpha"] < 0  # a number in other units, which no estimator takes
    with pytest.raises(ValueError, match="Expected coefficients at or above zero, got {'l2'"):
        est.explicit_estimator()


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (LogisticRegression(), {"l2": -1e-3}),
        (LogisticRegression(), {"l2": 1e-3, "l1": -1e-4}),
        (LinearSVC(), {"l2": -1e-3}),
        (SGDClassifier(random_state=0), {"l2": -0.1, "l1": 0.2}),
    ],
    ids=str,
)
def test_no_inverse_and_no_share_of_a_negative_penalty(model, found):
    model.fit(CANCER, LABELS)
    description = Estimator(model).fit(CANCER, LABELS)._description
    with pytest.raises(ValueError, match="Expected coefficients at or above zero, got {'l"):
        model_units(model, found, description)


def test_statsmodels_has_no_constructor_with_a_penalty(sm):
    results = sm.OLS(Y, X).fit_regularized(alpha=0.7, L1_wt=0.0)
    est = Estimator(results).fit(X, Y)
    with pytest.raises(TypeError, match=r"give in_model_units\(\) to the training of its library"):
        est.explicit_estimator()
