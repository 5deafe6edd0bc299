"""skorch nets: their own loss, on the rows that they were trained on."""

from __future__ import annotations

import copy
import pickle
import re

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import ValidSplit
from skorch.helper import SliceDict, predefined_split
from torch import nn

from sklearn_implicitreg import (
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    equations,
    training_rows,
)
from sklearn_implicitreg.exceptions import ModelStateWarning
from sklearn_implicitreg.trajectory import ImplicitRegularizationRecorder

N, D = 100, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
Y = (np.sin(X @ RNG.normal(size=D)) + 0.3 * RNG.normal(size=N)).reshape(-1, 1)
CODES = np.digitize(Y[:, 0], [-0.4, 0.4])
BINARY = (Y[:, 0] > 0).astype(np.float64)


class DecayedLBFGS(torch.optim.LBFGS):
    """L-BFGS with a weight decay, as it would be in SGD."""

    def __init__(self, params, weight_decay=0.0, **kwargs):
        super().__init__(params, line_search_fn="strong_wolfe", **kwargs)
        self.param_groups[0]["weight_decay"] = weight_decay

    def step(self, closure):
        (group,) = self.param_groups

        def decayed():
            loss = closure()
            for p in group["params"]:
                loss = loss + group["weight_decay"] / 2 * p.detach().square().sum()
                p.grad.add_(p.detach(), alpha=group["weight_decay"])
            return loss

        return super().step(decayed)


def network(outputs=1, *last):
    torch.manual_seed(0)
    layers = [nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, outputs), *last]
    return nn.Sequential(*layers).double()


def trained(cls, module, y, **params):
    """A net after a few steps on all rows."""
    defaults = {"max_epochs": 3, "lr": 0.05, "train_split": None, "verbose": 0, "batch_size": 30}
    return cls(module, **{**defaults, **params}).fit(X, y)


def stationary(y=Y, decay=0.02, module=None, cls=NeuralNetRegressor, **params):
    """A net trained by full-batch L-BFGS to stationarity, by default on 80 % of the rows."""
    defaults = {
        "optimizer": DecayedLBFGS,
        "optimizer__weight_decay": decay,
        "optimizer__max_iter": 200,
        "optimizer__tolerance_grad": 1e-12,
        "optimizer__tolerance_change": 1e-16,
        "optimizer__history_size": 20,
        "lr": 1.0,
        "max_epochs": 5,
        "batch_size": -1,
        "verbose": 0,
    }
    net = cls(network() if module is None else module, **{**defaults, **params})
    return net.fit(X, y)


@pytest.fixture(scope="module")
def split_net():
    return stationary()


def fitted(net, y=Y, x=X, **params):
    return ImplicitRegularizationEstimator(net, **params).fit(x, y)


def gradient_of(net, y, x=X, **params):
    """Minus the target of the equations, tensor by tensor."""
    target = equations(net, x, y, params="all", **params).target
    return {name: -part.to_numpy() for name, part in target.groupby(level=0, sort=False)}


# --- the loss -------------------------------------------------------------------------------


def log_of_probabilities(output, y):
    return nn.functional.nll_loss(torch.log(output + torch.finfo(output.dtype).eps), y)


WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


class LassoNet(NeuralNetRegressor):
    """A net with a penalty in its own loss."""

    def get_loss(self, y_pred, y_true, *args, **kwargs):
        loss = super().get_loss(y_pred, y_true, *args, **kwargs)
        return loss + 0.01 * sum(p.abs().sum() for p in self.module_.parameters())


class WeightedNet(NeuralNet):
    """A net with a loss that reads X."""

    def get_loss(self, y_pred, y_true, X=None, training=False):
        assert training
        return ((y_pred - y_true) ** 2 * (1 + X[:, :1].abs())).mean()


class ConsistentNet(NeuralNetRegressor):
    """A net whose loss calls its module on the rows, and so is no penalty."""

    def get_loss(self, y_pred, y_true, X=None, training=False):
        again = self.module_(X + 0.1)
        return super().get_loss(y_pred, y_true) + (again - y_pred).square().mean()


def consistent_loss(output, y, module, x):
    return (output - y).square().mean() + (module(x + 0.1) - output).square().mean()


def data_term(output, y, module, x):
    return (output - y).square().mean()


LOSSES = {
    "regressor": (
        lambda: trained(NeuralNetRegressor, network(), Y),
        Y,
        lambda o, y, m, x: (o - y).square().mean(),
    ),
    "regressor-huber": (
        lambda: trained(
            NeuralNetRegressor, network(), Y, criterion=nn.HuberLoss, criterion__delta=0.3
        ),
        Y,
        lambda o, y, m, x: nn.functional.huber_loss(o, y, delta=0.3),
    ),
    "regressor-two-outputs": (
        lambda: trained(NeuralNetRegressor, network(2), np.hstack([Y, Y**2])),
        np.hstack([Y, Y**2]),
        lambda o, y, m, x: (o - y).square().mean(),
    ),
    "classifier-log-inside": (
        lambda: trained(NeuralNetClassifier, network(3, nn.Softmax(dim=-1)), CODES),
        CODES,
        lambda o, y, m, x: log_of_probabilities(o, y),
    ),
    "classifier-log-inside-class-weights": (
        lambda: trained(
            NeuralNetClassifier,
            network(3, nn.Softmax(dim=-1)),
            CODES,
            criterion__weight=WEIGHTS,
        ),
        CODES,
        lambda o, y, m, x: nn.functional.nll_loss(
            torch.log(o + torch.finfo(o.dtype).eps), y, weight=WEIGHTS
        ),
    ),
    "classifier-logits": (
        lambda: trained(NeuralNetClassifier, network(3), CODES, criterion=nn.CrossEntropyLoss),
        CODES,
        lambda o, y, m, x: nn.functional.cross_entropy(o, y),
    ),
    "classifier-logits-class-weights": (
        lambda: trained(
            NeuralNetClassifier,
            network(3),
            CODES,
            criterion=nn.CrossEntropyLoss,
            criterion__weight=WEIGHTS,
        ),
        CODES,
        lambda o, y, m, x: nn.functional.cross_entropy(o, y, weight=WEIGHTS),
    ),
    "classifier-label-smoothing": (
        lambda: trained(
            NeuralNetClassifier,
            network(3),
            CODES,
            criterion=nn.CrossEntropyLoss,
            criterion__label_smoothing=0.2,
        ),
        CODES,
        lambda o, y, m, x: nn.functional.cross_entropy(o, y, label_smoothing=0.2),
    ),
    "binary": (
        lambda: trained(NeuralNetBinaryClassifier, network(), BINARY),
        BINARY,
        lambda o, y, m, x: nn.functional.binary_cross_entropy_with_logits(o[:, 0], y),
    ),
    "binary-pos-weight": (
        lambda: trained(
            NeuralNetBinaryClassifier, network(), BINARY, criterion__pos_weight=torch.tensor(3.0)
        ),
        BINARY,
        lambda o, y, m, x: nn.functional.binary_cross_entropy_with_logits(
            o[:, 0], y, pos_weight=torch.tensor(3.0, dtype=torch.float64)
        ),
    ),
    "summed-criterion": (
        lambda: trained(NeuralNetRegressor, network(), Y, criterion__reduction="sum", lr=1e-4),
        Y,
        lambda o, y, m, x: (o - y).square().sum() / N,
    ),
    "penalty-in-get-loss": (lambda: trained(LassoNet, network(), Y), Y, data_term),
    "get-loss-calls-the-module": (
        lambda: trained(ConsistentNet, network(), Y),
        Y,
        consistent_loss,
    ),
    "get-loss-reads-X": (
        lambda: trained(WeightedNet, network(), Y, criterion=nn.MSELoss),
        Y,
        lambda o, y, m, x: ((o - y) ** 2 * (1 + x[:, :1].abs())).mean(),
    ),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_gradient_is_that_of_the_nets_own_loss(kind):
    make, y, loss = LOSSES[kind]
    net = make()
    module, inputs = net.module_, torch.as_tensor(X)
    value = loss(module(inputs), torch.as_tensor(y), module, inputs)
    named = dict(module.named_parameters())
    expected = torch.autograd.grad(value, list(named.values()))
    found = gradient_of(net, y)
    assert list(found) == list(named)
    for name, slope in zip(named, expected, strict=True):
        size = float(slope.norm())
        assert np.linalg.norm(found[name] - slope.numpy().ravel()) <= 1e-9 * size, name


class NotingNet(NeuralNetRegressor):
    """A net whose loss calls its module, writes to a buffer of it, and notes what it did."""

    def get_loss(self, y_pred, y_true, X=None, training=False):
        self.module_.seen.add_(1)
        self.noted_["losses"] = self.noted_.get("losses", 0) + 1
        self.sizes_.append(len(X))
        self.history.record_batch("size", len(X))
        return super().get_loss(y_pred, y_true) + 0.1 * self.module_(X).square().mean()


def test_a_loss_that_notes_and_calls_changes_nothing_of_the_nets():
    module = nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))
    module.register_buffer("seen", torch.zeros(()))
    net = NotingNet(module.double(), train_split=None, max_epochs=1, batch_size=20, verbose=0)
    net.noted_, net.sizes_ = {}, []
    net.fit(X, Y)
    before = copy.deepcopy(net.history), dict(net.noted_), list(net.sizes_)
    state = copy.deepcopy(net.module_.state_dict())
    assert net.module_.training
    ImplicitRegularizationEstimator(net).fit(X, Y)
    assert (net.history, net.noted_, net.sizes_) == before
    assert all(torch.equal(t, state[name]) for name, t in net.module_.state_dict().items())


@pytest.mark.parametrize("batch_size", [7, 100])
def test_batches_do_not_matter(batch_size):
    make, y, _ = LOSSES["classifier-logits-class-weights"]
    net = make()
    auto, batched = gradient_of(net, y), gradient_of(net, y, batch_size=batch_size)
    for name in auto:
        np.testing.assert_allclose(batched[name], auto[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("regressor", "squared error (no 1/2), mean over rows and outputs"),
        ("classifier-log-inside", "negative log-likelihood of probabilities"),
        ("classifier-logits-class-weights", "cross-entropy, mean over rows, class weights"),
    ],
)
def test_loss_in_words(kind, words):
    make, y, _ = LOSSES[kind]
    assert words in " ".join(str(fitted(make(), y).summary()).split())


# --- the rows -------------------------------------------------------------------------------


def test_default_split_recovers_the_weight_decay(split_net):
    est = fitted(split_net, family="weight_decay")
    assert est.in_model_units() == pytest.approx({"weight_decay": 0.02}, rel=1e-3)
    assert est.in_model_units() == pytest.approx({"weight_decay": 0.02}, rel=1e-6)
    assert est.r2_ > 0.999
    assert est.verdict_ == "supported"
    assert est.n_equations_ == sum(p.numel() for p in split_net.module_.parameters())
    assert "80 (weight 80)" in str(est.summary())
    assert est.score(X, Y) == pytest.approx(est.r2_, abs=1e-12)


def test_held_out_rows_are_not_used(split_net):
    held = split_net.get_split_datasets(X, Y)[1].indices
    x, y = X.copy(), Y.copy()
    x[held], y[held] = 1e3, -1e3
    np.testing.assert_array_equal(fitted(split_net, y, x).coef_, fitted(split_net).coef_)
    used = np.setdiff1d(np.arange(N), held)[:1]
    y[used] += 1.0
    assert fitted(split_net, y, x).coef_ != fitted(split_net).coef_


def test_weights_of_held_out_rows_are_not_used(split_net):
    held = split_net.get_split_datasets(X, Y)[1].indices
    weight = np.ones(N)
    est = ImplicitRegularizationEstimator(split_net).fit(X, Y, sample_weight=weight)
    weight[held] = 7.0
    again = ImplicitRegularizationEstimator(split_net).fit(X, Y, sample_weight=weight)
    np.testing.assert_array_equal(est.coef_, again.coef_)
    assert est.coef_ == pytest.approx(fitted(split_net).coef_, rel=1e-10)


def test_fewer_rows_name_training_rows(split_net):
    text = (
        "Expected the 100 rows that the net's history says it was given (80 to train on), got "
        "60: its own validation split cannot be replayed on other rows. Give all of them, or "
        "search on `training_rows(net, X, y)`."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        fitted(split_net, Y[:60], X[:60])


def folds_of(data, kind):
    if kind == "array":
        return data
    if kind == "frame":
        return pd.DataFrame(data, columns=list("abcd"))
    return {"input": data}


class FromFrame(NeuralNetRegressor):
    """A net for DataFrames, as a table of numbers."""

    def get_dataset(self, X, y=None):
        return super().get_dataset(np.array(X), y)


@pytest.mark.parametrize("kind", ["array", "frame", "dict"])
def test_search_on_training_rows(split_net, kind):
    net = split_net
    if kind == "frame":
        net = copy.deepcopy(split_net)
        net.__class__ = FromFrame
    x = folds_of(X, kind)
    x_train, y_train = training_rows(net, x, Y)
    index = split_net.get_split_datasets(X, Y)[0].indices
    inside = x_train["input"] if kind == "dict" else x_train
    np.testing.assert_array_equal(np.asarray(inside), X[index])
    np.testing.assert_array_equal(y_train, Y[index])
    assert isinstance(
        x_train, {"array": np.ndarray, "frame": pd.DataFrame, "dict": SliceDict}[kind]
    )
    search = GridSearchCV(
        ImplicitRegularizationEstimator(net),
        {"family": ["l1", "weight_decay", "smooth_l1"]},
        cv=KFold(20, shuffle=True, random_state=0),
        error_score="raise",
    ).fit(x_train, y_train)
    assert search.best_params_ == {"family": "weight_decay"}
    assert search.best_estimator_.in_model_units() == pytest.approx(
        {"weight_decay": 0.02}, rel=1e-6
    )
    assert search.best_estimator_.model is net


def test_folds_of_training_rows_are_whole(split_net):
    """A fold is used as it comes: its score is the formula on these very rows."""
    x, y = training_rows(split_net, X, Y)
    est = ImplicitRegularizationEstimator(split_net).fit(x[:60], y[:60])
    assert "60 (weight 60)" in str(est.summary())
    target = gradient_of(split_net, y[:60], x[:60])
    free = trained(NeuralNetRegressor, split_net.module_, Y, max_epochs=0)
    with pytest.warns(ModelStateWarning):
        expected = gradient_of(free, np.asarray(y[:60]), np.asarray(x[:60]))
    for name in target:
        np.testing.assert_allclose(target[name], expected[name], rtol=1e-12, atol=1e-16)


def test_cv_chooses_on_a_split_net(split_net):
    search = ImplicitRegularizationCV(split_net, families=["l1", "weight_decay", "smooth_l1"])
    assert search.fit(X, Y).best_family_ == "weight_decay"


def test_split_without_random_state_is_refused():
    net = trained(NeuralNetRegressor, network(), Y, train_split=ValidSplit(0.2))
    text = (
        "The net's validation split cannot be reproduced (a random split without random_state): "
        "the rows that it was trained on are not known. Retrain with train_split=ValidSplit(..., "
        "random_state=0) or an integer cv, or analyse net.module_ with its training rows and "
        "`loss=`."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        fitted(net)
    rng = np.random.get_state()[1].copy()
    with pytest.raises(ValueError, match="cannot be reproduced"):
        training_rows(net, X, Y)
    np.testing.assert_array_equal(np.random.get_state()[1], rng)


def test_split_with_random_state_is_replayed():
    split = ValidSplit(0.25, random_state=3)
    net = stationary(train_split=split)
    est = fitted(net, family="weight_decay")
    assert est.in_model_units() == pytest.approx({"weight_decay": 0.02}, rel=1e-6)
    assert "75 (weight 75)" in str(est.summary())


def test_stratified_split_is_replayed():
    module = network(3)
    net = stationary(CODES, module=module, cls=NeuralNetClassifier, criterion=nn.CrossEntropyLoss)
    est = fitted(net, CODES, family="weight_decay")
    assert est.in_model_units() == pytest.approx({"weight_decay": 0.02}, rel=1e-4)


@pytest.mark.parametrize("split", ["none", "predefined"])
def test_all_rows_where_none_are_split_off(split):
    held = predefined_split(SkorchDataset(X[:10], Y[:10]))
    net = stationary(train_split=None if split == "none" else held)
    est = fitted(net, family="weight_decay")
    assert est.in_model_units() == pytest.approx({"weight_decay": 0.02}, rel=1e-6)
    assert "100 (weight 100)" in str(est.summary())
    x, y = training_rows(net, X, Y)
    assert len(x) == len(y) == N


def test_dropped_last_batch_is_no_other_split():
    net = trained(
        NeuralNetRegressor,
        network(),
        Y,
        train_split=ValidSplit(5),
        batch_size=30,
        iterator_train__drop_last=True,
    )
    assert "80 (weight 80)" in str(fitted(net).summary())


# --- the scope ------------------------------------------------------------------------------


def grouped_net(**kwargs):
    groups = [("*.bias", {"weight_decay": 0.0}), ("2.weight", {"weight_decay": 0.04})]
    return trained(
        NeuralNetRegressor,
        network(),
        Y,
        optimizer=torch.optim.SGD,
        optimizer__weight_decay=0.02,
        optimizer__param_groups=groups,
        **kwargs,
    )


def test_auto_scope_is_what_the_optimizer_decays():
    est = fitted(grouped_net())
    assert list(est.penalty_.tensors) == ["0.weight", "2.weight"]
    assert "Parameters without equations: 0.bias, 2.bias." in str(est.summary())
    everything = trained(NeuralNetRegressor, network(), Y, optimizer__weight_decay=0.02)
    assert len(fitted(everything).penalty_.tensors) == 4
    none = trained(NeuralNetRegressor, network(), Y)
    assert list(fitted(none).penalty_.tensors) == ["0.weight", "2.weight"]


def test_each_param_group_has_its_own_decay():
    """Full-batch steepest descent with momentum, to stationarity."""
    net = grouped_net(
        batch_size=-1, max_epochs=1500, lr=0.1, optimizer__momentum=0.9, callbacks__print_log=None
    )
    est = fitted(net, family="weight_decay", group_by="param_group")
    assert est.r2_ > 0.9999
    assert sorted(est.coef_) == pytest.approx([0.02, 0.04], rel=1e-3)
    explicit = est.explicit_estimator()
    groups = dict(explicit.optimizer__param_groups)
    assert groups["0.weight"]["weight_decay"] == pytest.approx(0.02, rel=1e-3)
    assert groups["2.weight"]["weight_decay"] == pytest.approx(0.04, rel=1e-3)
    assert explicit.optimizer__weight_decay == 0.0


class Tanh(nn.Module):
    """A module that is made anew by every net."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, inputs):
        return self.body(inputs)


def test_explicit_net_is_trained_with_the_penalty():
    net = stationary(module=Tanh)
    explicit = fitted(net, family="l2").explicit_estimator()
    assert explicit.optimizer__weight_decay == pytest.approx(0.02, rel=1e-6)
    assert not hasattr(explicit, "module_")
    explicit.fit(X, Y)
    for mine, theirs in zip(explicit.module_.parameters(), net.module_.parameters(), strict=True):
        np.testing.assert_allclose(mine.detach(), theirs.detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "what"),
    [
        (torch.optim.AdamW, "decays weights apart from the loss"),
        (torch.optim.LBFGS, "has no weight_"),
    ],
    ids=["AdamW", "LBFGS"],
)
def test_explicit_net_needs_a_decay_that_is_a_penalty(optimizer, what):
    net = trained(NeuralNetRegressor, network(), Y, optimizer=optimizer, batch_size=-1)
    est = fitted(net, positive=True)
    with pytest.raises(ValueError, match=f"Expected an optimizer whose weight_decay.*{what}"):
        est.explicit_estimator()


# --- kinds of data --------------------------------------------------------------------------


class Named(nn.Module):
    """A module that takes its inputs by name."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(2, 1), nn.Linear(2, 1)
        self.double()

    def forward(self, a, b):
        return self.left(a) + self.right(b).tanh()


def test_dict_of_arrays():
    x = {"a": X[:, :2], "b": X[:, 2:]}
    net = NeuralNetRegressor(Named(), max_epochs=2, verbose=0, train_split=None, batch_size=16).fit(
        x, Y
    )
    found = gradient_of(net, Y, x)
    loss = (net.module_(*map(torch.as_tensor, x.values())) - torch.as_tensor(Y)).square().mean()
    expected = torch.autograd.grad(loss, list(net.module_.parameters()))
    for slope, name in zip(expected, found, strict=True):
        np.testing.assert_allclose(found[name], slope.numpy().ravel(), rtol=1e-10, atol=1e-14)


class Columns(nn.Module):
    """skorch hands a DataFrame on as a dict of its columns."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1).double()

    def forward(self, **columns):
        return self.linear(torch.cat([columns[name].reshape(-1, 1) for name in "abcd"], dim=1))


# skorch itself hands pandas' read-only columns to torch, in training already.
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_frame():
    frame = pd.DataFrame(X, columns=list("abcd"))
    net = NeuralNetRegressor(
        Columns(), max_epochs=2, verbose=0, train_split=None, batch_size=16
    ).fit(frame, Y)
    est = fitted(net, x=frame)
    assert list(est.feature_names_in_) == list("abcd")
    found = gradient_of(net, Y, frame)["linear.weight"]
    residual = net.module_.linear(torch.as_tensor(X)).detach().numpy() - Y
    np.testing.assert_allclose(found, 2 / N * residual[:, 0] @ X, rtol=1e-10)


def test_dataset(split_net):
    dataset = SkorchDataset(X, Y)
    est = ImplicitRegularizationEstimator(split_net, family="weight_decay").fit(dataset)
    assert est.in_model_units() == pytest.approx({"weight_decay": 0.02}, rel=1e-6)


def test_pipeline_around_a_trained_net():
    pipe = make_pipeline(
        StandardScaler(), NeuralNetRegressor(network(), max_epochs=2, verbose=0, lr=0.05)
    ).fit(X, Y)
    est = fitted(pipe)
    direct = fitted(pipe[-1], x=pipe[:-1].transform(X))
    np.testing.assert_array_equal(est.coef_, direct.coef_)


def test_template_is_trained():
    net = NeuralNetRegressor(network(), max_epochs=2, verbose=0, lr=0.05)
    est = fitted(net)
    assert not net.initialized_
    assert est.model_ is not net
    assert len(est.model_.history) == 2


# --- the net stays as it is -----------------------------------------------------------------


def state_of(net):
    return joblib.hash(
        [
            {k: v.numpy() for k, v in net.module_.state_dict().items()},
            [m.training for m in net.module_.modules()],
            [p.requires_grad for p in net.module_.parameters()],
            list(net.history),
            sorted(vars(net)),
            str(net.optimizer_.state_dict()),
        ]
    )


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_net_is_untouched(mode):
    net = trained(NeuralNetRegressor, network(1, nn.Dropout(0.1)), Y, optimizer__momentum=0.9)
    net.module_.train(mode == "train")
    before, grads = state_of(net), [p.grad for p in net.module_.parameters()]
    module, criterion, optimizer = net.module_, net.criterion_, net.optimizer_
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    est = fitted(net)
    est.score(X, Y)
    ImplicitRegularizationCV(net, families=["l1", "l2"]).fit(X, Y)
    with pytest.raises(ValueError, match="Expected finite data"):
        fitted(net, x=np.full_like(X, np.nan))
    assert state_of(net) == before
    assert net.module_ is module
    assert net.criterion_ is criterion
    assert net.optimizer_ is optimizer
    assert all(p.grad is g for p, g in zip(net.module_.parameters(), grads, strict=True))
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_net_is_not_copied(monkeypatch):
    net = trained(NeuralNetRegressor, network(), Y)
    est = ImplicitRegularizationEstimator(net)

    def refuse(*_):
        raise AssertionError("the net was copied")

    monkeypatch.setattr(NeuralNetRegressor, "__getstate__", refuse)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    search = GridSearchCV(est, {"family": ["l1", "l2"]}, cv=5).fit(X, Y)
    assert search.best_estimator_.model is net


def test_float32_net_in_float64():
    net = trained(NeuralNetRegressor, network().float(), Y.astype(np.float32), max_epochs=0)
    net = NeuralNetRegressor(network().float(), max_epochs=2, train_split=None, verbose=0)
    net.fit(X.astype(np.float32), Y.astype(np.float32))
    single = fitted(net, Y.astype(np.float32), X.astype(np.float32))
    double = fitted(net, Y.astype(np.float32), X.astype(np.float32), dtype="float64")
    assert single.coef_ == pytest.approx(double.coef_, rel=1e-4)
    assert next(net.module_.parameters()).dtype == torch.float32


# --- what is refused, and warned of ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_column_against_flat_targets_is_refused():
    net = trained(NeuralNetRegressor, network(), Y[:, 0], batch_size=N)
    with pytest.raises(
        ValueError,
        match=r"Expected y of the shape of the outputs, \(100, 1\), got \(100,\): the net's own "
        r"loss broadcast them against each other in training. Train it with y.reshape\(-1, 1\).",
    ):
        fitted(net, Y[:, 0])


def test_another_loss_is_refused(split_net):
    with pytest.raises(ValueError, match="Expected loss='auto' for a skorch net, .* got 'mse'"):
        fitted(split_net, loss="mse")


def test_net_without_history_warns():
    net = NeuralNetRegressor(network(), verbose=0).initialize()
    with pytest.warns(ModelStateWarning, match="no training history: .*`training_rows"):
        est = fitted(net)
    assert "100 (weight 100)" in str(est.summary())


def test_loaded_weights_need_their_history(split_net, tmp_path):
    files = {"f_params": tmp_path / "params.pt", "f_history": tmp_path / "history.json"}
    split_net.save_params(**files)
    net = NeuralNetRegressor(network(), verbose=0).initialize()
    net.load_params(**files)
    est = fitted(net, family="weight_decay", params="all")
    assert est.in_model_units() == pytest.approx({"weight_decay": 0.02}, rel=1e-6)


def test_pickled_net(split_net):
    est = fitted(pickle.loads(pickle.dumps(split_net)))
    np.testing.assert_array_equal(est.coef_, fitted(split_net).coef_)


def test_trimmed_net_is_refused(split_net):
    net = copy.deepcopy(split_net)
    net.trim_for_prediction()
    with (
        pytest.raises(ValueError, match=r"Expected a net with its criterion, got one after trim_"),
        pytest.warns(ModelStateWarning),
    ):
        fitted(net)


class LearnedScale(nn.Module):
    """A criterion with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, target):
        return ((output - target) / self.scale).square().mean() + self.scale.log()


def test_learned_criterion_is_refused():
    net = trained(NeuralNetRegressor, network(), Y, criterion=LearnedScale)
    with pytest.raises(
        ValueError, match=r"learnable parameters are all in module_, got \['scale'\]"
    ):
        fitted(net)


def test_training_rows_of_a_dataset_are_refused(split_net):
    with pytest.raises(TypeError, match="Expected arrays, a DataFrame or a dict of arrays"):
        training_rows(split_net, SkorchDataset(X, Y))


class MixedUp(NeuralNetRegressor):
    """Steps on mixtures of rows, which the batch does not hold."""

    def train_step_single(self, batch, **fit_params):
        X, y = batch
        order = torch.arange(len(X) - 1, -1, -1)
        return super().train_step_single((0.7 * X + 0.3 * X[order], 0.7 * y + 0.3 * y[order]))


class Cast(NeuralNetRegressor):
    """Steps on the same rows in another shape and precision."""

    def train_step_single(self, batch, **fit_params):
        X, y = batch
        own = X.bfloat16().float().reshape(len(X), -1)
        return super().train_step_single((own, y))


@pytest.mark.parametrize("kind", [MixedUp, Cast, NeuralNetRegressor])
def test_a_step_on_other_inputs_than_the_batch_is_seen(kind):
    recorder = ImplicitRegularizationRecorder()
    torch.manual_seed(0)
    net = kind(
        torch.nn.Linear(3, 1), max_epochs=2, batch_size=5, train_split=None, verbose=0,
        callbacks=[recorder],
    )  # fmt: skip
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    y = X[:, :1] + 1
    if kind is MixedUp:
        with pytest.warns(ModelStateWarning, match="other numbers than the batch has"):
            net.fit(X, y)
        with pytest.raises(ValueError, match="batch"):
            ImplicitRegularizationEstimator(
                net, mode="trajectory", trajectory=recorder.trajectory_, reference="batch"
            ).fit(X, y)
    else:
        net.fit(X, y)
    known = [step.rows is not None for step in recorder.trajectory_.steps]
    assert all(known) == (kind is not MixedUp)
    assert not net.module_._forward_pre_hooks
