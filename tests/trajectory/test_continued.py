"""Training on what is inside of pipelines: skorch nets, and MLPs of scikit-learn."""

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge, SGDRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from skorch import NeuralNetRegressor
from skorch.dataset import ValidSplit
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator, training_rows
from sklearn_implicitreg.trajectory import ContinueTraining

DECAY, ALPHA, SIZE = 0.02, 0.6, 20
X = np.random.default_rng(0).normal(size=(60, 4)) * [1, 10, 0.1, 3] + 2
Y = np.tanh(X @ [1, 0.1, 3, -0.3]) + 0.1 * X[:, 0]
Z = StandardScaler().fit_transform(X)
LABELS = np.array(["no", "yes", "maybe"])[np.digitize(Y, np.quantile(Y, [0.3, 0.6]))]


def skorch_net(**options):
    torch.manual_seed(0)
    options = {"train_split": None} | options
    return NeuralNetRegressor(
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double(),
        optimizer__weight_decay=DECAY,
        lr=0.05,
        batch_size=SIZE,
        max_epochs=3,
        iterator_train__shuffle=True,
        verbose=0,
        **options,
    )


def mlp(kind=MLPRegressor, **options):
    options = {"alpha": ALPHA, "batch_size": SIZE, "max_iter": 5, "random_state": 0} | options
    return kind(**{"hidden_layer_sizes": 5} | options)


def trained(model, X, y, **how):
    with warnings.catch_warnings(action="ignore"):  # of a training that has not converged
        return model.fit(X, y, **how)


def continued(model, X, y, n_epochs=2, **how):
    how = {"reference": "batch", "trajectory": ContinueTraining(n_epochs, random_state=0)} | how
    weight = how.pop("sample_weight", None)
    return ImplicitRegularizationEstimator(model, mode="trajectory", **how).fit(X, y, weight)


def column(y):
    return y.reshape(-1, 1)


CONTAINERS = {
    "pipeline": lambda net: make_pipeline(StandardScaler(), net),
    "one step": make_pipeline,
    "nested": lambda net: make_pipeline(StandardScaler(), make_pipeline(StandardScaler(), net)),
    "target": lambda net: TransformedTargetRegressor(net, transformer=StandardScaler()),
    "both": lambda net: TransformedTargetRegressor(
        make_pipeline(StandardScaler(), net), transformer=StandardScaler()
    ),
    "search": lambda net: GridSearchCV(
        make_pipeline(StandardScaler(), net), {"standardscaler__with_mean": [True]}, cv=2
    ),
    "frozen": lambda net: make_pipeline(StandardScaler(), net),
}


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("make", [skorch_net, mlp], ids=["skorch", "MLP"])
def test_what_is_inside_of_containers_trains_on(make, kind):
    y = column(Y) if make is skorch_net else Y
    model = trained(CONTAINERS[kind](make()), X, y)
    model = FrozenEstimator(model) if kind == "frozen" else model
    est = continued(model, X, y, params="weights")
    expected = DECAY / 2 if make is skorch_net else ALPHA / SIZE
    assert est.coef_[0] == pytest.approx(expected, rel=1e-8)
    assert est.verdict_ == "supported"


@pytest.mark.parametrize("split", [None, ValidSplit(5)], ids=["all rows", "split"])
@pytest.mark.parametrize("kind", ["array", "frame", "marked frame"])
def test_training_rows_of_a_pipeline(split, kind):
    frame = pd.DataFrame(X, columns=list("abcd"))
    given = X if kind == "array" else frame
    scaler = StandardScaler()
    if kind == "marked frame":
        scaler.set_output(transform="pandas")
    to_array = FunctionTransformer(np.array)
    model = make_pipeline(scaler, to_array, skorch_net(train_split=split)).fit(given, column(Y))
    X_train, y_train = training_rows(model, given, column(Y))
    assert type(X_train).__name__ == ("TrainingRows" if kind == "array" else "DataFrame")
    train, _ = model[-1].get_split_datasets(X, column(Y))
    rows = np.arange(60) if split is None else train.indices
    np.testing.assert_array_equal(np.asarray(X_train), X[rows])
    np.testing.assert_array_equal(y_train, column(Y)[rows])
    whole, part = continued(model, given, column(Y)), continued(model, X_train, y_train)
    for est in (whole, part):
        assert est.coef_[0] == pytest.approx(DECAY / 2, rel=1e-8)


def test_training_rows_of_a_target_transformer_and_of_a_search():
    net = skorch_net(train_split=ValidSplit(5))
    inner = make_pipeline(StandardScaler(), net)
    model = TransformedTargetRegressor(inner, transformer=StandardScaler()).fit(X, column(Y))
    X_train, y_train = training_rows(model, X, column(Y))
    assert X_train.shape == (48, 4)
    assert set(y_train[:, 0]) <= set(Y)  # as they were given, not as they were transformed
    assert continued(model, X_train, y_train).coef_[0] == pytest.approx(DECAY / 2, rel=1e-8)
    search = GridSearchCV(
        ImplicitRegularizationEstimator(model), {"family": ["l2", "power"]}, cv=3
    ).fit(X_train, y_train)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    search = GridSearchCV(inner, {"standardscaler__with_mean": [True]}, cv=2).fit(X, column(Y))
    assert len(training_rows(search, X, column(Y))[0]) == 48


def test_rows_of_a_pipeline_that_hands_on_a_sparse_matrix():
    levels = np.random.default_rng(0).integers(0, 2, (60, 2))
    encoder = OneHotEncoder().fit(levels)

    def dense(encoded):
        return encoded.toarray()

    model = make_pipeline(
        encoder, FunctionTransformer(dense, accept_sparse=True), skorch_net(train_split=None)
    ).fit(levels, column(Y))
    X_train, y_train = training_rows(model, levels, column(Y))
    assert continued(model, X_train, y_train).coef_[0] == pytest.approx(DECAY / 2, rel=1e-8)


SOLVERS = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.01},
    "plain": {"solver": "sgd", "momentum": 0.0},
    "no Nesterov": {"solver": "sgd", "nesterovs_momentum": False},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling"},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 1.0},
    "in order": {"shuffle": False},
    "layers": {"hidden_layer_sizes": (4, 3), "activation": "logistic"},
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", [MLPRegressor, MLPClassifier])
def test_the_penalty_of_an_mlp_is_found_as_it_is_applied(kind, solver):
    y = Y if kind is MLPRegressor else LABELS
    model = trained(mlp(kind, **SOLVERS[solver]), Z, y)
    est = continued(model, Z, y, params="weights")
    # Of the log loss, whose penalty is alpha / 2, or of squared errors without their 1/2.
    factor = 1.0 if kind is MLPRegressor else 0.5
    assert est.coef_[0] == pytest.approx(factor * ALPHA / SIZE, rel=1e-8)
    assert est.in_model_units()["alpha"] == pytest.approx(ALPHA, rel=1e-8)
    assert est.verdict_ == "supported"


@pytest.mark.parametrize("kind", ["binary", "multilabel", "poisson", "float32", "weights"])
def test_other_targets_types_and_weights_of_an_mlp(kind):
    given, y, how, model = Z, LABELS == "yes", {}, mlp(MLPClassifier)
    if kind == "multilabel":
        y = np.column_stack([Y > 0, Y > 0.3]).astype(int)
    elif kind == "poisson":
        y, model = np.round(np.exp(Y)), mlp(loss="poisson")
    elif kind == "float32":
        given, y, model = Z.astype(np.float32), Y.astype(np.float32), mlp()
    elif kind == "weights":
        y, model = Y, mlp()
        how = {"sample_weight": np.tile([0.5, 1.5], 30)}
    model.set_params(shuffle=kind != "weights")  # batches of equal weight
    model = trained(model, given, y, **how)
    est = continued(model, given, y, params="weights", **how)
    factor = 0.5 if kind in ("binary", "multilabel", "poisson") else 1.0
    tolerance = 1e-5 if kind == "float32" else 1e-8
    assert est.coef_[0] == pytest.approx(factor * ALPHA / SIZE, rel=tolerance)


def test_an_mlp_trains_on_by_its_own_optimizer_and_stays_as_it_is():
    model = trained(mlp(random_state=np.random.RandomState(3)), Z, Y)
    before = copy.deepcopy(vars(model))
    state = np.random.get_state()[1].copy()
    probe = ContinueTraining(2, random_state=0)
    est = continued(model, Z, Y, trajectory=probe)
    trajectory = est._equations.targets.trajectory if hasattr(est, "_equations") else None
    for name in ("coefs_", "intercepts_"):
        assert all(map(np.array_equal, getattr(model, name), before[name]))
    own, then = model._optimizer, before["_optimizer"]
    assert own.t == then.t
    assert all(map(np.array_equal, own.ms, then.ms))
    assert model.n_iter_ == before["n_iter_"]
    assert model.loss_curve_ == before["loss_curve_"]
    assert model.get_params()["shuffle"] is True
    assert np.array_equal(state, np.random.get_state()[1])
    assert "update_params" not in vars(own)
    # The same epochs by scikit-learn alone, on the rows in the order that was recorded.
    alone = copy.deepcopy(model).set_params(shuffle=False)
    for steps in (trajectory.steps[:3], trajectory.steps[3:]):
        order = np.concatenate([step.rows for step in steps])
        alone.partial_fit(Z[order], Y[order])
    last = trajectory.marks[-1].weights
    for i, (coef, intercept) in enumerate(zip(alone.coefs_, alone.intercepts_, strict=True)):
        assert np.array_equal(last[f"layers.{i}.weight"].numpy().T, coef)
        assert np.array_equal(last[f"layers.{i}.bias"].numpy(), intercept)
    assert trajectory.optimizer == "Adam"


def test_the_gradient_of_the_loss_alone_is_what_is_left_of_an_mlp_without_a_penalty():
    model = trained(mlp(alpha=0.0), Z, Y)
    assert continued(model, Z, Y).verdict_ == "no signal"


BAD = {
    "lbfgs": (lambda: trained(mlp(solver="lbfgs"), X, Y), Y, "solver='sgd' or 'adam' to train on"),
    "linear": (lambda: Ridge().fit(X, Y), Y, "for a family of loss gradients, got Ridge"),
    "one row at a time": (
        lambda: make_pipeline(StandardScaler(), SGDRegressor()).fit(X, Y),
        Y,
        "for a family of loss gradients, got SGDRegressor",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_trained_on(case):
    make, y, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message):
        continued(make(), X, y)


@pytest.mark.parametrize("make", [skorch_net, mlp], ids=["skorch", "MLP"])
def test_no_loop_for_what_has_its_own(make):
    y = column(Y) if make is skorch_net else Y
    model = trained(make_pipeline(StandardScaler(), make()), X, y)
    probe = ContinueTraining(1, train_epoch=lambda model, optimizer: None)
    with pytest.raises(ValueError, match="Expected no train_epoch and no optimizer with"):
        continued(model, X, y, trajectory=probe)


def test_rows_of_its_own_are_those_of_the_pipeline():
    model = trained(make_pipeline(StandardScaler(), mlp()), X, Y)
    probe = ContinueTraining(2, data=(X, Y), random_state=0)
    est = continued(model, X, Y, trajectory=probe, params="weights")
    assert est.coef_[0] == pytest.approx(ALPHA / SIZE, rel=1e-8)


@pytest.mark.parametrize(
    ("net", "rows", "error", "message"),
    [
        (make_pipeline(StandardScaler(), Ridge()).fit(X, Y), X, ValueError, "pipeline or search"),
        ("net", X, ValueError, "a fitted skorch net"),
        (mlp(), X, ValueError, "a fitted skorch net, or a pipeline"),
    ],
    ids=["no net inside", "a name", "an MLP"],
)
def test_training_rows_of_what_has_none(net, rows, error, message):
    with pytest.raises(error, match=message):
        training_rows(net, rows, Y)


def test_training_rows_of_a_sparse_matrix():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match="which searches cannot take folds"):
        training_rows(skorch_net(), sparse.csr_matrix(X), Y)
