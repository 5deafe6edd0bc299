"""Adapters of scikit-learn: every model gives back the penalty it was trained with."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cases import (
    CASES,
    W_CANCER,
    W_DIABETES,
    X_CANCER,
    X_DIABETES,
    X_WINE,
    Y_CANCER,
    Y_COUNTS,
    Y_DIABETES,
    Y_TWO,
    Y_UNIT,
    Y_WINE,
    Case,
)
from scipy import sparse
from sklearn import metrics
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import (
    GammaRegressor,
    Lasso,
    LassoLars,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    OrthogonalMatchingPursuit,
    Perceptron,
    PoissonRegressor,
    QuantileRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
    TheilSenRegressor,
    TweedieRegressor,
)
from sklearn.metrics import mean_pinball_loss
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler, TargetEncoder
from sklearn.svm import LinearSVC, LinearSVR

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.adapters.linear.problems import LinearProblem
from sklearn_implicitreg.problem import LossGradient, Problem

TERM_GRADIENTS = {
    "l2": lambda w: 2 * w,
    "weight_decay": lambda w: w,
    "l1": np.sign,
    "l21": lambda w: w / np.maximum(np.linalg.norm(w, axis=0), 1e-300),
}
BY_ID = {case.id: case for case in CASES}


def problem_of(case: Case, **options: Any) -> Problem:
    data = Data(case.X, case.y, case.sample_weight)
    return adapt(case.make(), data, Options(**options))


def recovered(problem: Problem, family: str) -> dict[str, float]:
    """Coefficients by plain least squares of the gradient on the penalties' gradients."""
    gradient = problem.gradient().value
    groups = problem.groups or dict.fromkeys(problem.params, "")
    found = {}
    for group in dict.fromkeys(groups[name] for name in problem.params):
        names = [name for name in problem.params if groups[name] == group]
        target, design = [], []
        for name in names:
            w, g = problem.params[name].numpy(), gradient[name].numpy()
            used = np.ones(w.shape, dtype=bool)
            if name in problem.free:
                used = problem.free[name].numpy()
            if "l1" in family or "l21" in family:
                used &= w != 0
            target.append(-g[used])
            design.append([TERM_GRADIENTS[term](w)[used] for term in family.split("+")])
        columns = np.column_stack([np.concatenate(parts) for parts in zip(*design, strict=True)])
        coef = np.linalg.lstsq(columns, np.concatenate(target), rcond=None)[0]
        suffix = f"[{group}]" if group else ""
        found.update(zip([t + suffix for t in family.split("+")], coef, strict=True))
    return found


def own_parameters(problem: Problem, found: dict[str, float]) -> dict[str, Any]:
    """The same in the model's own parameters, arrays where there is one for each group."""
    assert problem.convention is not None
    n = problem.n_effective or problem.gradient().weight
    own: dict[str, list[float]] = {}
    for group in dict.fromkeys(term.partition("[")[2] for term in found):
        mine = {t.partition("[")[0]: c for t, c in found.items() if t.partition("[")[2] == group}
        for name, value in problem.convention.parameters(mine, n).items():
            own.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in own.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_own_penalty_is_recovered(case: Case) -> None:
    problem = problem_of(case)
    found = recovered(problem, case.family)
    assert found == pytest.approx(case.expected_coef(), rel=case.rtol, abs=0)
    own, expected = own_parameters(problem, found), case.expected_own()
    assert set(expected) <= set(own) <= {*expected, "l1_ratio"}
    for name, value in expected.items():
        np.testing.assert_allclose(own[name], np.atleast_1d(value), rtol=case.rtol)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.family == "l1" and c.rtol <= 1e-6], ids=lambda case: case.id
)
def test_zeros_of_l1_obey_the_inequality(case: Case) -> None:
    problem = problem_of(case)
    (bound,) = case.expected_coef().values()
    gradient = problem.gradient().value
    for name, w in problem.params.items():
        at_zero = gradient[name][w == 0]
        positive = getattr(case.make(), "positive", False)
        at_zero = -at_zero if positive else at_zero.abs()
        assert bool((at_zero <= bound * (1 + 1e-6)).all())


@pytest.mark.parametrize("name", ["ridge-positive", "lasso-positive"])
def test_coordinates_at_a_bound_are_not_free(name: str) -> None:
    case = BY_ID[name]
    problem = problem_of(case)
    at_bound = case.make().coef_ == 0
    assert 0 < at_bound.sum() < len(at_bound)
    np.testing.assert_array_equal(problem.free["coef"].numpy(), ~at_bound)


def _sklearn_loss(case: Case) -> float:
    """Mean loss of a fitted model by scikit-learn's own metrics."""
    model, X, y, w = case.make(), case.X, case.y, case.sample_weight
    if case.id.startswith(("poisson", "tweedie-1.5", "mlp-regressor-poisson")):
        power = 1.5 if "tweedie" in case.id else 1
        return metrics.mean_tweedie_deviance(y, model.predict(X), sample_weight=w, power=power) / 2
    if case.id == "gamma":
        return metrics.mean_gamma_deviance(y, model.predict(X)) / 2
    if case.id.startswith(("logistic", "mlp-classifier")):
        return metrics.log_loss(y, model.predict_proba(X), sample_weight=w)
    outputs = 1 if np.ndim(y) == 1 else y.shape[1]
    return outputs * metrics.mean_squared_error(y, model.predict(X), sample_weight=w)


@pytest.mark.parametrize(
    "name",
    [
        "ridge-weights",
        "ridge-two-outputs",
        "ridge-sparse",
        "multi-task-lasso",
        "elastic-net",
        "bayesian-ridge",
        "logistic",
        "logistic-multinomial",
        "logistic-elastic-net",
        "poisson-weights",
        "gamma",
        "tweedie-1.5",
        "tweedie-0",
        "tweedie-0-log-link",
        "mlp-regressor-weights",
        "mlp-regressor-poisson",
        "mlp-classifier",
        "mlp-classifier-three-classes",
        "pipeline",
        "grid-search-of-pipeline",
    ],
)
def test_mean_loss_is_that_of_sklearn_metrics(name: str) -> None:
    case = BY_ID[name]
    assert problem_of(case).gradient().loss == pytest.approx(_sklearn_loss(case), rel=1e-9)


@pytest.mark.parametrize(
    "name", ["linear-svc", "linear-svr", "huber-weights", "sgd-classifier-three-classes-balanced"]
)
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    case = BY_ID[name]
    problem = problem_of(case, params="all")
    gradient = problem.gradient()
    model, step = pickle.loads(pickle.dumps(case.make())), 1e-6
    unit = getattr(model, "intercept_scaling", 1.0) if name.startswith("linear") else 1.0
    data, slopes = Data(case.X, case.y, case.sample_weight), {}
    for attribute, name_, scale in (("coef_", "coef", 1.0), ("intercept_", "intercept", unit)):
        values = np.array(getattr(model, attribute), dtype=float)
        slope = np.zeros(values.size)
        for i in range(min(values.size, 6)):
            ends = []
            for sign in (1, -1):
                moved = values.copy()
                moved.flat[i] += sign * step
                setattr(model, attribute, moved)
                ends.append(adapt(model, data, Options()).gradient().loss)
            slope[i] = (ends[0] - ends[1]) / (2 * step) * scale
        setattr(model, attribute, values)
        slopes[name_] = slope[:6]
    for name_, slope in slopes.items():
        mine = gradient.value[name_].numpy().ravel()[:6]
        np.testing.assert_allclose(mine, slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("n_blocks", [1, 2, 7, 442, 10_000])
@pytest.mark.parametrize("name", ["ridge-weights", "ridge-sparse", "ridge-alpha-per-target"])
def test_blocks_add_up(name: str, n_blocks: int) -> None:
    problem = problem_of(BY_ID[name])
    blocks = list(problem.blocks(n_blocks))
    assert len(blocks) == (1 if n_blocks == 1 else min(max(n_blocks, 100), 442))
    whole, summed = problem.gradient(), LossGradient.from_blocks(iter(blocks))
    assert summed.n_rows == whole.n_rows == 442
    assert summed.weight == pytest.approx(whole.weight)
    assert summed.loss == pytest.approx(whole.loss)
    for name_, value in whole.value.items():
        torch.testing.assert_close(summed.value[name_], value)


def test_sparse_features_are_never_made_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    places = rng.integers(0, 50, 1000), rng.integers(0, 200_000, 1000)
    X = sparse.csr_array((rng.random(1000), places), shape=(50, 200_000))
    y = np.arange(50.0)
    model = Ridge(1.0, solver="sparse_cg").fit(X, y)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("made dense")

    for cls in type(X).__mro__:
        for method in ("toarray", "todense"):
            if method in vars(cls):
                monkeypatch.setattr(cls, method, refuse)
    assert adapt(model, Data(X, y), Options()).gradient().weight == 50


@pytest.mark.parametrize("interpolated", [False, True])
def test_least_squares_have_a_gradient_of_zero_to_rounding(interpolated: bool) -> None:
    X, y = (X_DIABETES[:8], Y_DIABETES[:8]) if interpolated else (X_DIABETES, Y_DIABETES)
    problem = adapt(LinearRegression().fit(X, y), Data(X, y), Options())
    gradient = problem.gradient()
    assert problem.convention is None
    assert gradient.norm() <= 100 * problem.eps * gradient.scale
    far = adapt(Ridge(1e-6).fit(X_DIABETES, Y_DIABETES), Data(X_DIABETES, Y_DIABETES), Options())
    assert far.gradient().norm() > 100 * far.eps * far.gradient().scale


def test_float32_models_round_as_they_were_trained() -> None:
    X, y = X_DIABETES.astype(np.float32), Y_DIABETES.astype(np.float32)
    problem = adapt(Ridge(100.0).fit(X, y), Data(X, y), Options())
    assert problem.eps == np.finfo(np.float32).eps
    assert problem.params["coef"].dtype == torch.float64
    assert recovered(problem, "l2")["l2"] == pytest.approx(100 / 442, rel=1e-4)


def test_intercept_of_liblinear_is_in_scope_in_units_of_its_penalty() -> None:
    problem = problem_of(BY_ID["linear-svc-sparse-weights"])
    model = BY_ID["linear-svc-sparse-weights"].make()
    assert list(problem.params) == ["coef", "intercept"]
    np.testing.assert_allclose(problem.params["intercept"].numpy(), model.intercept_ / 3.0)


def test_intercept_of_others_is_left_out_unless_asked_for() -> None:
    case = BY_ID["ridge"]
    assert problem_of(case).left_out == ("intercept",)
    both = problem_of(case, params="all")
    assert list(both.params) == ["coef", "intercept"]
    assert abs(float(both.gradient().value["intercept"])) < 1e-10
    no_intercept = Ridge(fit_intercept=False).fit(X_DIABETES, Y_DIABETES)
    assert adapt(no_intercept, Data(X_DIABETES, Y_DIABETES), Options()).left_out == ()


@pytest.mark.parametrize(
    "model",
    [
        LinearSVC(loss="hinge", C=0.1, tol=1e-6, max_iter=1_000_000, random_state=0),
        LinearSVR(C=0.1, epsilon=0.2, tol=1e-6, max_iter=1_000_000, random_state=0),
    ],
    ids=["hinge", "epsilon-insensitive"],
)
def test_rows_on_a_kink_are_counted(model: Any) -> None:
    y = Y_CANCER if isinstance(model, LinearSVC) else X_CANCER[:, 0] ** 2 - X_CANCER[:, 1]
    model.fit(X_CANCER, y)
    gradient = adapt(model, Data(X_CANCER, y), Options()).gradient()
    assert gradient.n_kinks >= 3


def test_a_loss_that_was_changed_after_the_training() -> None:
    model = SGDRegressor(max_iter=5, tol=None, random_state=0).fit(X_DIABETES, Y_DIABETES)
    model.loss = "cubic"
    with pytest.raises(ValueError, match=r"Expected a loss among .*'squared_error'.*, got 'cubic'"):
        adapt(model, Data(X_DIABETES, Y_DIABETES), Options())


@pytest.mark.parametrize("quantile", [0.2, 0.5])
def test_quantile_regression_is_a_linear_program(quantile: float) -> None:
    model = QuantileRegressor(quantile=quantile, alpha=0.02).fit(X_DIABETES, Y_DIABETES)
    gradient = adapt(model, Data(X_DIABETES, Y_DIABETES), Options()).gradient()
    residual = Y_DIABETES - model.predict(X_DIABETES)
    pinball = mean_pinball_loss(Y_DIABETES, model.predict(X_DIABETES), alpha=quantile)
    assert gradient.loss == pytest.approx(pinball, rel=1e-12)
    # A vertex: as many rows on the kink as there are coefficients that are not zero.
    n_free = np.count_nonzero(model.coef_) + 1
    assert gradient.n_kinks == n_free == np.count_nonzero(np.abs(residual) < 1e-6)
    # At the minimum the slopes of the rows on the kink make up for what misses from +- alpha.
    on_kink = np.abs(residual) < 1e-6
    away = np.where(residual > 0, -quantile, 1 - quantile) * ~on_kink / len(residual)
    design = np.column_stack([X_DIABETES, np.ones(len(residual))])
    wanted = -np.append(0.02 * np.sign(model.coef_), 0.0) - design.T @ away
    used = np.append(model.coef_ != 0, True)
    slopes = np.linalg.solve(design[on_kink][:, used].T, wanted[used]) * len(residual)
    assert (slopes >= -quantile - 1e-7).all() and (slopes <= 1 - quantile + 1e-7).all()


def test_rows_of_smooth_losses_have_no_kink() -> None:
    assert problem_of(BY_ID["linear-svc"]).gradient().n_kinks == 0


def test_sparsified_coefficients_are_read() -> None:
    model = Lasso(1.5).fit(X_DIABETES, Y_DIABETES)
    dense = adapt(model, Data(X_DIABETES, Y_DIABETES), Options()).gradient()
    classifier = SGDClassifier(penalty="l1", alpha=0.05, random_state=0).fit(X_CANCER, Y_CANCER)
    before = adapt(classifier, Data(X_CANCER, Y_CANCER), Options()).gradient()
    after = adapt(classifier.sparsify(), Data(X_CANCER, Y_CANCER), Options()).gradient()
    assert after.loss == before.loss
    assert dense.value["coef"].shape == (10,)


def test_data_frames_and_feature_names() -> None:
    frame = pd.DataFrame(X_DIABETES, columns=[f"x{i}" for i in range(10)])
    target = pd.Series(Y_DIABETES)
    alone = adapt(Ridge().fit(frame, target), Data(frame, target), Options())
    pipe = make_pipeline(StandardScaler(), Ridge()).fit(frame, target)
    inside = adapt(pipe, Data(frame, target), Options())
    for problem in (alone, inside):
        assert isinstance(problem, LinearProblem)
        assert problem.feature_names == tuple(frame.columns)


def test_class_labels_of_any_kind() -> None:
    gradients = []
    for labels in (Y_CANCER, Y_CANCER.astype(bool), Y_CANCER + 3, np.array(["b", "m"])[Y_CANCER]):
        model = LogisticRegression(C=0.3).fit(X_CANCER, labels)
        gradients.append(adapt(model, Data(X_CANCER, labels), Options()).gradient())
    assert {round(g.loss, 12) for g in gradients} == {round(gradients[0].loss, 12)}


@pytest.mark.parametrize("model", [LogisticRegression(), RidgeClassifier(), SGDClassifier()])
@pytest.mark.parametrize(
    ("trained", "given"),
    [
        (("neg", "pos"), ("negative", "positive")),
        (("neg", "pos"), (False, True)),
        ((0, 1), ("0", "1")),
        ((0, 1), (256, 257)),
        ((False, True), (1, 2)),
    ],
    ids=["longer", "flags", "text", "large", "numbers"],
)
def test_labels_are_not_cast_to_those_of_the_training(model: Any, trained: Any, given: Any) -> None:
    """LabelEncoder cuts "positive" to "pos", and takes 257 for 1 among small integers."""
    classes = np.array(trained)
    classes = classes.astype("i1") if classes.dtype.kind == "i" else classes
    model = clone(model).fit(X_CANCER, classes[Y_CANCER])
    adapt(model, Data(X_CANCER, np.array(trained)[Y_CANCER]), Options())
    with pytest.raises(ValueError, match="unseen labels.*expected those of the training"):
        adapt(model, Data(X_CANCER, np.array(given)[Y_CANCER]), Options())


def test_part_of_the_rows_may_lack_a_class() -> None:
    model = LogisticRegression(class_weight="balanced").fit(X_WINE, Y_WINE)
    rows = Y_WINE < 2
    problem = adapt(model, Data(X_WINE[rows], Y_WINE[rows]), Options())
    assert problem.gradient().weight == pytest.approx(rows.sum())
    assert "balanced" in problem.notes[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_model_is_not_changed(case: Case) -> None:
    model = case.make()
    before = pickle.dumps(model)
    problem_of(case).gradient()
    assert pickle.dumps(model) == before


@pytest.mark.parametrize("name", ["ridge", "huber", "linear-svc", "tweedie-1.5"])
def test_linear_problems_can_be_pickled(name: str) -> None:
    problem = problem_of(BY_ID[name])
    copy = pickle.loads(pickle.dumps(problem))
    assert copy.gradient().loss == problem.gradient().loss


# Multi-layer perceptrons


def test_mlp_gradient_vanishes_for_biases_and_names_are_those_of_torch() -> None:
    case = BY_ID["mlp-regressor"]
    problem = problem_of(case, params="all")
    assert list(problem.params)[:2] == ["layers.0.weight", "layers.0.bias"]
    assert problem.params["layers.0.weight"].shape == (6, 10)
    gradient = problem.gradient().value
    assert float(gradient["layers.1.bias"].abs().max()) < 1e-6
    assert "transposed" in problem.notes[0]


@pytest.mark.parametrize(
    ("batch_size", "expected"), [("auto", 3 / (2 / 200 + 1 / 42)), (221, 221.0), (442, 442.0)]
)
def test_minibatch_alpha_is_divided_by_the_rows_of_a_batch(batch_size: Any, expected: Any) -> None:
    model = MLPRegressor(hidden_layer_sizes=2, batch_size=batch_size, max_iter=2, solver="sgd")
    with pytest.warns(match="haven't|hasn't converged"):
        model.fit(X_DIABETES, Y_UNIT)
    problem = adapt(model, Data(X_DIABETES, Y_UNIT), Options())
    assert problem.n_effective == pytest.approx(expected)


def test_full_batch_sgd_mlp_gives_back_alpha() -> None:
    model = MLPRegressor(
        hidden_layer_sizes=3,
        activation="tanh",
        solver="sgd",
        batch_size=442,
        alpha=20.0,
        learning_rate_init=0.1,
        max_iter=20_000,
        tol=0.0,
        n_iter_no_change=20_000,
        random_state=0,
    )
    with pytest.warns(match="hasn't converged"):
        model.set_params(max_iter=5000).fit(X_DIABETES, Y_UNIT)
    problem = adapt(model, Data(X_DIABETES, Y_UNIT), Options())
    assert recovered(problem, "l2")["l2"] == pytest.approx(20 / 442, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value"), [("coefs_", []), ("intercepts_", []), ("activation", "swish")]
)
def test_mlp_that_is_not_as_its_fit_left_it(name: str, value: Any) -> None:
    model = MLPRegressor(hidden_layer_sizes=(2,), solver="lbfgs", max_iter=1000, random_state=0)
    setattr(model.fit(X_DIABETES, Y_UNIT), name, value)
    with pytest.raises(ValueError, match="a trained MLPRegressor with coefs_ and intercepts_"):
        adapt(model, Data(X_DIABETES, Y_UNIT), Options())


def test_mlp_of_several_outputs_has_no_one_objective() -> None:
    model = MLPRegressor(hidden_layer_sizes=2, solver="lbfgs", alpha=10.0, max_iter=3000)
    model.fit(X_DIABETES, (Y_TWO - Y_TWO.mean(0)) / Y_TWO.std(0))
    data = Data(X_DIABETES, (Y_TWO - Y_TWO.mean(0)) / Y_TWO.std(0))
    with pytest.raises(ValueError, match=r"one output, got 2.*no one objective.*loss='mse'"):
        adapt(model, data, Options())
    mean = adapt(model, data, Options(loss="mse")).gradient().loss
    assert mean == pytest.approx(metrics.mean_squared_error(data.y, model.predict(X_DIABETES)))


# Other estimators, with a loss given


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "squared_error",
        torch.nn.MSELoss(),
        lambda output, target: (output - target) ** 2,
        lambda output, target: ((output - target) ** 2).mean(),
    ],
    ids=["name", "sklearn-name", "nn-loss", "per-row-callable", "mean-callable"],
)
def test_any_linear_model_with_a_loss(loss: Any) -> None:
    model = Ridge(2.0).fit(X_DIABETES, Y_DIABETES)
    bare = OrthogonalMatchingPursuit(n_nonzero_coefs=10).fit(X_DIABETES, Y_DIABETES)
    bare.coef_, bare.intercept_ = model.coef_, model.intercept_
    problem = adapt(bare, Data(X_DIABETES, Y_DIABETES), Options(loss=loss))
    own = adapt(model, Data(X_DIABETES, Y_DIABETES), Options())
    assert problem.convention is None
    assert recovered(problem, "l2")["l2"] == pytest.approx(2 / 442, rel=1e-9)
    assert problem.gradient().loss == pytest.approx(own.gradient().loss)
    assert problem.gradient().scale == pytest.approx(own.gradient().scale, rel=1.0)


def test_mse_averages_outputs_and_squared_error_sums_them() -> None:
    model = Ridge(2.0).fit(X_DIABETES, Y_TWO)
    found = {
        str(loss): recovered(adapt(model, Data(X_DIABETES, Y_TWO), Options(loss=loss)), "l2")["l2"]
        for loss in ("mse", "squared_error", torch.nn.MSELoss(), torch.nn.MSELoss(reduction="sum"))
    }
    assert list(found.values()) == pytest.approx([1 / 442, 2 / 442, 1 / 442][:2] + [2 / 442])


@pytest.mark.parametrize("loss", ["bce", torch.nn.BCELoss()])
def test_a_linear_predictor_is_no_probability(loss: Any) -> None:
    model = LogisticRegression().fit(X_CANCER, Y_CANCER)
    with pytest.raises(ValueError, match="Expected 0 to 1 for .*use loss='bce_with_logits'"):
        adapt(model, Data(X_CANCER, Y_CANCER), Options(loss=loss))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["log_loss", "bce_with_logits", torch.nn.BCEWithLogitsLoss()])
def test_a_given_log_loss_is_that_of_logistic_regression(loss: Any, weighted: bool) -> None:
    weight = W_CANCER if weighted else None
    model = LogisticRegression(C=0.3, solver="newton-cholesky", tol=1e-10)
    model.fit(X_CANCER, Y_CANCER, sample_weight=weight)
    data = Data(X_CANCER, Y_CANCER, weight)
    problem, own = adapt(model, data, Options(loss=loss)), adapt(model, data, Options())
    mine, theirs = problem.gradient(), own.gradient()
    assert (mine.loss, mine.weight) == pytest.approx((theirs.loss, theirs.weight))
    torch.testing.assert_close(mine.value["coef"], theirs.value["coef"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "log_loss"])
def test_a_given_cross_entropy_is_that_of_multinomial_regression(loss: str) -> None:
    model = LogisticRegression(C=0.3, solver="newton-cholesky", tol=1e-10).fit(X_WINE, Y_WINE)
    mine = adapt(model, Data(X_WINE, Y_WINE), Options(loss=loss)).gradient()
    theirs = adapt(model, Data(X_WINE, Y_WINE), Options()).gradient()
    assert mine.loss == pytest.approx(theirs.loss)
    torch.testing.assert_close(mine.value["coef"], theirs.value["coef"], rtol=1e-9, atol=1e-12)


def test_other_given_losses() -> None:
    data = Data(X_DIABETES, Y_DIABETES, W_DIABETES)
    model = Ridge().fit(X_DIABETES, Y_DIABETES)
    expected = metrics.mean_absolute_error(
        Y_DIABETES, model.predict(X_DIABETES), sample_weight=W_DIABETES
    )
    assert adapt(model, data, Options(loss="mae")).gradient().loss == pytest.approx(expected)
    counts = PoissonRegressor(tol=1e-8).fit(X_DIABETES, Y_COUNTS)
    poisson = Data(X_DIABETES, Y_COUNTS)
    own = adapt(counts, poisson, Options()).gradient()
    for loss in ("poisson_nll", "poisson"):
        mine = adapt(counts, poisson, Options(loss=loss)).gradient()
        torch.testing.assert_close(mine.value["coef"], own.value["coef"], rtol=1e-6, atol=1e-12)
    binary = Perceptron(random_state=0).fit(X_CANCER, Y_CANCER)
    hinge = adapt(binary, Data(X_CANCER, Y_CANCER), Options(loss="hinge")).gradient().loss
    scores = binary.decision_function(X_CANCER)
    assert hinge == pytest.approx(metrics.hinge_loss(Y_CANCER, scores))


# Refusals

RIDGE = Ridge().fit(X_DIABETES, Y_DIABETES)
LOGISTIC = LogisticRegression(max_iter=1000).fit(X_WINE, Y_WINE)
YES_OR_NO = LogisticRegression(max_iter=1000).fit(X_WINE, Y_WINE == 0)
NAN_X, INF_Y = X_DIABETES.copy(), Y_DIABETES.copy()
NAN_X[3, 2], INF_Y[5] = np.nan, np.inf
ONES = np.ones(442)


@pytest.mark.parametrize(
    ("model", "X", "y", "weight", "message"),
    [
        (RIDGE, NAN_X, Y_DIABETES, None, "Input X contains NaN"),
        (RIDGE, X_DIABETES, INF_Y, None, "Input y contains infinity"),
        (RIDGE, X_DIABETES, Y_DIABETES[:-1], None, "inconsistent numbers of samples"),
        (RIDGE, X_DIABETES[:, :3], Y_DIABETES, None, "X has 3 features, but Ridge is expecting 10"),
        (RIDGE, X_DIABETES, None, None, "requires y to be passed, but the target y is None"),
        (RIDGE, X_DIABETES, Y_TWO, None, r"Expected y with the 1 output\(s\).*got 2"),
        (RIDGE, X_DIABETES[:0], Y_DIABETES[:0], None, "0 sample"),
        (RIDGE, X_DIABETES, Y_DIABETES, ONES[:5], r"of shape \(442,\), got \(5,\)"),
        (RIDGE, X_DIABETES, Y_DIABETES, ONES[:, None], r"of shape \(442,\), got \(442, 1\)"),
        (RIDGE, X_DIABETES, Y_DIABETES, ONES * np.nan, "Input sample_weight contains NaN"),
        (RIDGE, X_DIABETES, Y_DIABETES, -ONES, "Expected sample_weight at or above zero, got -1"),
        (LOGISTIC, X_WINE, Y_WINE + 1, None, "previously unseen labels: .*3"),
        (YES_OR_NO, X_WINE, Y_WINE + 1, None, "previously unseen labels: .*False, True"),
        (LOGISTIC, X_WINE, X_WINE[:, 0], None, "Unknown label type: continuous"),
    ],
    ids=[
        "nan-in-X",
        "inf-in-y",
        "lengths",
        "features",
        "no-y",
        "outputs",
        "no-rows",
        "weight-length",
        "weight-shape",
        "weight-nan",
        "weight-negative",
        "unseen-label",
        "labels-of-a-yes-or-no-model",
        "continuous-labels",
    ],
)
def test_bad_rows_are_refused_in_sklearns_words(
    model: Any, X: Any, y: Any, weight: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adapt(model, Data(X, y, weight), Options())


def test_weights_of_zero_in_all_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="positive total weight"):
        adapt(RIDGE, Data(X_DIABETES, Y_DIABETES, 0 * ONES), Options()).gradient()


def _diverged() -> Any:
    model = Ridge().fit(X_DIABETES, Y_DIABETES)
    model.coef_ = model.coef_ * np.nan
    return model


REFUSED = {
    "search-without-refit": (
        lambda: GridSearchCV(Ridge(), {"alpha": [1.0]}, refit=False).fit(X_DIABETES, Y_DIABETES),
        Y_DIABETES,
        "refit=True, got refit=False",
    ),
    "early-stopped-sgd": (
        lambda: SGDRegressor(early_stopping=True).fit(X_DIABETES, Y_UNIT),
        Y_UNIT,
        "early_stopping=False, got True.*held out",
    ),
    "early-stopped-mlp": (
        lambda: MLPClassifier(2, early_stopping=True, random_state=0).fit(X_CANCER, Y_CANCER),
        Y_CANCER,
        "early_stopping=False, got True.*held out",
    ),
    "crammer-singer": (
        lambda: LinearSVC(multi_class="crammer_singer", max_iter=100_000).fit(X_WINE, Y_WINE),
        Y_WINE,
        "multi_class='ovr'",
    ),
    "mean-of-folds": (
        lambda: LogisticRegressionCV(
            Cs=[1.0],
            refit=False,
            l1_ratios=(0,),
            scoring="accuracy",
            use_legacy_attributes=True,  # scikit-learn 1.8 cannot fit it with the others
        ).fit(X_CANCER, Y_CANCER),
        Y_CANCER,
        "refit=True, got refit=False.*no one objective",
    ),
    "jittered-lars": (
        lambda: LassoLars(1.0, jitter=0.1, random_state=0).fit(X_DIABETES, Y_DIABETES),
        Y_DIABETES,
        "jitter=None",
    ),
    "gamma-of-zero": (
        lambda: GammaRegressor().fit(X_DIABETES, Y_DIABETES),
        Y_DIABETES * 0,
        "Expected y > 0.*out of the valid range",
    ),
    "threshold-on-a-part": (
        lambda: TunedThresholdClassifierCV(LogisticRegression(), cv=0.5, refit=False).fit(
            X_CANCER, Y_CANCER
        ),
        Y_CANCER,
        "refit=True, got refit=False.*a part of the rows",
    ),
    "cross-fitted-step": (
        lambda: make_pipeline(TargetEncoder(), Ridge()).fit(np.round(X_DIABETES), Y_UNIT),
        Y_UNIT,
        "targetencoder.*cross-fitting",
    ),
    "diverged": (_diverged, Y_DIABETES, "finite trained parameters.*coef"),
    "no-loss": (
        lambda: TheilSenRegressor(max_subpopulation=50, random_state=0).fit(X_DIABETES, Y_DIABETES),
        Y_DIABETES,
        "TheilSenRegressor was trained with, got no loss; give `loss=`, one of .*'mse'",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_models_without_one_known_objective_are_refused(name: str) -> None:
    make, y, message = REFUSED[name]
    X = {442: X_DIABETES, 569: X_CANCER, 178: X_WINE}[len(y)]
    with pytest.raises(ValueError, match=message):
        adapt(make(), Data(X, y), Options())


class _Resampler(StandardScaler):
    """A step that trains the model on other rows, as those of imbalanced-learn do."""

    def fit_resample(self, X: Any, y: Any) -> Any:
        raise NotImplementedError


def test_a_threshold_for_a_classifier_that_was_trained_before() -> None:
    inner = LogisticRegression(C=0.3).fit(X_CANCER, Y_CANCER)
    model = TunedThresholdClassifierCV(inner, cv="prefit", refit=False)
    model.fit(X_CANCER[:80], Y_CANCER[:80])
    found = adapt(model, Data(X_CANCER, Y_CANCER), Options()).gradient().value["coef"]
    own = adapt(inner, Data(X_CANCER, Y_CANCER), Options()).gradient().value["coef"]
    assert torch.equal(found, own)


@pytest.mark.parametrize(
    "step",
    [
        ColumnTransformer([("of city", TargetEncoder(), [0])], remainder="passthrough"),
        FeatureUnion([("of city", TargetEncoder()), ("pca", PCA(2))]),
        Pipeline([("of city", TargetEncoder()), ("scaler", StandardScaler())]),
    ],
    ids=["columns", "union", "pipeline"],
)
def test_a_cross_fitted_step_is_found_inside_of_others(step: Any) -> None:
    X = np.round(X_DIABETES)
    model = make_pipeline(step, Ridge(2.0)).fit(X, Y_UNIT)
    with pytest.raises(ValueError, match=r"got 'of city' \(TargetEncoder\).*cross-fitting"):
        adapt(model, Data(X, Y_UNIT), Options())


def test_a_step_that_resamples_rows_is_refused() -> None:
    pipe = make_pipeline(_Resampler(), Ridge()).fit(X_DIABETES, Y_DIABETES)
    with pytest.raises(ValueError, match=r"'_resampler' \(_Resampler\).*resampled rows"):
        adapt(pipe, Data(X_DIABETES, Y_DIABETES), Options())


def test_unknown_loss_and_parameters_are_refused() -> None:
    data = Data(X_DIABETES, Y_DIABETES)
    with pytest.raises(ValueError, match="got loss='sqared'; give `loss=`, one of"):
        adapt(RIDGE, data, Options(loss="sqared"))
    with pytest.raises(ValueError, match="selects none of the trained parameters"):
        adapt(RIDGE, data, Options(params="embedding"))
    with pytest.raises(NotFittedError):
        adapt(Ridge(), data, Options())
    lars = LassoLars().fit(X_DIABETES, Y_DIABETES)
    with pytest.raises(ValueError, match="LassoLars cannot be trained with weights"):
        adapt(lars, Data(X_DIABETES, Y_DIABETES, W_DIABETES), Options())


@pytest.mark.parametrize("power", [-1, 0, 1, 1.5, 2, 2.5, 3])
@pytest.mark.parametrize("link", ["log", "identity"])
def test_every_power_and_link_of_tweedie(power: float, link: str) -> None:
    X, y = X_DIABETES / 10, Y_DIABETES / 100 + 1
    model = TweedieRegressor(power=power, link=link, alpha=0.01, tol=1e-10, max_iter=1000)
    model = model.set_params(solver="newton-cholesky").fit(X, y)
    est = ImplicitRegularizationEstimator(model).fit(X, y)
    assert est.in_model_units() == pytest.approx({"alpha": 0.01}, rel=1e-6)


def test_predictions_out_of_range_are_refused() -> None:
    model = TweedieRegressor(power=1.5, link="identity").fit(X_DIABETES, Y_DIABETES)
    model.intercept_ = -1e3
    with pytest.raises(ValueError, match="predictions in the range of the loss"):
        ImplicitRegularizationEstimator(model).fit(X_DIABETES, Y_DIABETES)
