"""Nothing of the user's changes: in a call that ends, one that fails, and one interrupted."""

import contextlib
import copy
import inspect
import pickle
import random
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from module_cases import fingerprint, mlp, rng_states, rows
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso, LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPRegressor
from skorch import NeuralNet, NeuralNetRegressor
from torch import nn

from sklearn_implicitreg import (
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    equations,
)
from sklearn_implicitreg.penalties import ActivationL2
from sklearn_implicitreg.results.recovery import minimize
from sklearn_implicitreg.trajectory import ContinueTraining, record

N_POINTS = 14  # of an interruption in each call, spread over all of its function calls
X, Y = rows()
X_LINEAR, Y_LINEAR = load_diabetes(return_X_y=True)


class Situation:
    """A model, its data and a call on them."""

    def __init__(self, model, X, y, call):
        self.model, self.X, self.y, self.call = model, copy.deepcopy(X), copy.deepcopy(y), call

    def state(self):
        """All that is the user's, bit for bit."""
        if isinstance(self.model, nn.Module):
            model = fingerprint(self.model)
        elif isinstance(self.model, NeuralNet):
            noted = self.model.history.to_list(), self.model.noted_
            model = fingerprint(self.model.module_), pickle.dumps(noted)
        else:
            model = pickle.dumps(self.model)
        return model, pickle.dumps((self.X, self.y)), rng_states(), self.surroundings()

    def surroundings(self):
        """Settings of torch and NumPy that code may change for a while."""
        return (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            str(np.geterr()),
            sys.getprofile(),
        )

    def __call__(self):
        return self.call(self.model, self.X, self.y)


def dropping_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 1)
    ).double()
    net(torch.as_tensor(X)).sum().backward()
    return net.train()


def on(model, **params):
    params = {"loss": "mse", "params": "all", "batch_size": 8} | params
    return ImplicitRegularizationEstimator(model, **params)


def recorded(net, X, y):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.5, weight_decay=0.1)
    X, y = torch.as_tensor(X), torch.as_tensor(y)[:, None]
    with record(net, optimizer) as recorder:
        for _ in range(2):
            for batch in torch.arange(len(X)).split(16):
                recorder.batch(batch)
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X[batch]), y[batch]).backward()
                optimizer.step()
            recorder.epoch()
    return net, recorder.trajectory


def along(reference):
    net, trajectory = recorded(mlp(), X, Y)

    def call(model, X, y):
        est = on(model, mode="trajectory", trajectory=trajectory, reference=reference)
        return est.set_params(window="epoch", family="weight_decay").fit(X, y).score(X, y)

    return Situation(net, X, Y, call)


def continued():
    inputs, targets = torch.as_tensor(X), torch.as_tensor(Y)[:, None]

    def train_epoch(model, optimizer, recorder):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()

    def optimizer(parameters):
        return torch.optim.SGD(parameters, lr=0.01)

    probe = ContinueTraining(2, train_epoch=train_epoch, optimizer=optimizer)
    return Situation(
        dropping_net(), X, Y,
        lambda m, X, y: on(m, mode="trajectory", trajectory=probe, reference="applied").fit(X, y),
    )  # fmt: skip


def linear(model, X, y, call=None):
    def fitted(model, X, y):
        est = ImplicitRegularizationEstimator(model, family="l2+l1").fit(X, y)
        return est.score(X, y), est.summary()

    return Situation(model.fit(X, y), X, y, call or fitted)


class NotingNet(NeuralNetRegressor):
    """Its loss calls its module, and notes what it did."""

    def get_loss(self, y_pred, y_true, X=None, training=False):
        self.history.record_batch("rows", len(X))
        self.noted_.append(len(X))
        return super().get_loss(y_pred, y_true) + 0.1 * self.module_(X).square().mean()


def of_a_net(cls, call, **options):
    """A skorch net with a normalization, left in training state."""
    net = cls(dropping_net(), max_epochs=2, train_split=None, verbose=0, batch_size=8,
              optimizer__weight_decay=0.1, **options)  # fmt: skip
    net.noted_ = []
    y = Y[:, None]
    net.fit(X, y)
    net.module_.train()
    return Situation(net, X, y, call)


def recovered_briefly(est, X, y):
    with mock.patch.object(minimize, "BUDGET", 20):
        return est.fit(X, y).recover(X, y, arms=("recovered",), n_draws=1, force=True)


SITUATIONS = {
    "skorch": lambda: of_a_net(
        NeuralNetRegressor,
        lambda m, X, y: ImplicitRegularizationEstimator(m).fit(X, y).score(X, y),
    ),
    "skorch, a loss that calls and notes": lambda: of_a_net(
        NotingNet, lambda m, X, y: ImplicitRegularizationEstimator(m).fit(X, y)
    ),
    "recovery of a net": lambda: of_a_net(
        NeuralNetRegressor,
        lambda m, X, y: recovered_briefly(
            ImplicitRegularizationEstimator(m, family="weight_decay", positive=True), X, y
        ),
    ),
    "folds of a net": lambda: of_a_net(
        NeuralNetRegressor,
        lambda m, X, y: cross_val_score(
            ImplicitRegularizationEstimator(m), X, y, cv=2, error_score="raise"
        ),
    ),
    "net": lambda: Situation(mlp(), X, Y, lambda m, X, y: on(m).fit(X, y).score(X, y)),
    "net of many layers": lambda: Situation(
        dropping_net(), X, Y, lambda m, X, y: on(m, family="l2+l1").fit(X, y)
    ),
    "masks": lambda: Situation(
        dropping_net(), X, Y, lambda m, X, y: on(m, module_mode="train", random_state=0).fit(X, y)
    ),
    "activations": lambda: Situation(
        mlp(), X, Y, lambda m, X, y: on(m, family=ActivationL2("1")).fit(X, y)
    ),
    "search of a net": lambda: Situation(
        mlp(), X, Y,
        lambda m, X, y: ImplicitRegularizationCV(
            m, families=["l2", "l1"], loss="mse"
        ).fit(X, y),
    ),
    "gradient": lambda: along("gradient"),
    "batch": lambda: along("batch"),
    "applied": lambda: along("applied"),
    "continued": continued,
    "Ridge": lambda: linear(Ridge(), X_LINEAR, Y_LINEAR),
    "logistic": lambda: linear(LogisticRegression(), X_LINEAR, Y_LINEAR > 150),
    "Lasso": lambda: linear(Lasso(0.1), X_LINEAR, Y_LINEAR),
    "MLP": lambda: linear(
        MLPRegressor(hidden_layer_sizes=(3,), solver="lbfgs", max_iter=3000, random_state=0), X, Y
    ),
    "recovery": lambda: linear(
        Ridge(), X_LINEAR, Y_LINEAR,
        lambda m, X, y: ImplicitRegularizationEstimator(m).fit(X, y).recover(X, y),
    ),
    "tables": lambda: linear(
        Ridge(), X_LINEAR, Y_LINEAR, lambda m, X, y: equations(m, X, y, "l2+power")
    ),
}  # fmt: skip


@contextlib.contextmanager
def at_call(n, error):
    """Raise an error when the package's function number n is called; None only counts."""
    count = [0]

    def watch(frame, event, arg):
        code = frame.f_code
        # A generator that goes on would be left without its `finally`, as no signal leaves it.
        if event != "call" or code.co_flags & inspect.CO_GENERATOR:
            return
        if "sklearn_implicitreg" in code.co_filename:
            count[0] += 1
            if count[0] == n:
                sys.setprofile(None)
                raise error

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield count
    finally:
        sys.setprofile(before)


def seeded():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_call_changes_nothing_of_the_users(name):
    situation = SITUATIONS[name]()
    seeded()
    before = situation.state()
    situation()
    assert situation.state() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError], ids=lambda e: e.__name__)
@pytest.mark.parametrize("name", SITUATIONS)
def test_a_call_that_is_cut_short_changes_nothing(name, error):
    situation = SITUATIONS[name]()
    seeded()
    before = situation.state()
    with at_call(None, None) as count:
        situation()
    n = count[0]
    assert n > N_POINTS
    for point in np.linspace(1, n, N_POINTS).astype(int):
        with contextlib.suppress(error), at_call(point, error()):
            situation()
        assert situation.state() == before, f"call {point} of {n}"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError], ids=lambda e: e.__name__)
def test_a_recording_that_is_cut_short_leaves_no_hooks(error):
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    before = len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)
    with pytest.raises(error), record(net, optimizer) as recorder:
        for step in range(9):
            optimizer.zero_grad()
            net(torch.as_tensor(X)).square().mean().backward()
            if step == 7:
                raise error
            optimizer.step()
    after = len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)
    assert after == before
    assert len(recorder.trajectory.steps) == 7
