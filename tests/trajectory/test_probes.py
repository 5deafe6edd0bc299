"""Paths made from trained models: gradient descent, and training a copy on."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Checkpoint, EarlyStopping, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn

from sklearn_implicitreg import FrozenModel, ImplicitRegularizationEstimator, training_rows
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties import L2, GradientNorm, SmoothL1
from sklearn_implicitreg.trajectory import ContinueTraining, GradientDescentProbe

DECAY = 0.01


def rows(n=60, p=4):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, p))
    y = np.tanh(X @ rng.normal(size=(p, 1))) + 0.1 * rng.normal(size=(n, 1))
    return X, y


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def problem_of(model, X, y, **options):
    return adapt(model, Data(X, y), Options(params="all", **options))


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(first, second):
    return all(torch.equal(t, second[name]) for name, t in first.items())


class Loop:
    """Epochs of mini-batches on rows of its own."""

    def __init__(self, X, y, size=20):
        self.X, self.y, self.size = torch.as_tensor(X), torch.as_tensor(y), size

    def steps(self, model, optimizer, recorder=None):
        for part in torch.randperm(len(self.X)).split(self.size):
            if recorder is not None:
                recorder.batch(part)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(self.X[part]), self.y[part]).backward()
            optimizer.step()

    def unnamed(self, model, optimizer):
        self.steps(model, optimizer)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, weight_decay=2 * DECAY)


def fitted_net(**options):
    """Regressor trained in batches of 20 with weight decay, in float64."""
    X, y = rows()
    options = {
        "optimizer__weight_decay": 2 * DECAY,
        "lr": 0.05,
        "batch_size": 20,
        "max_epochs": 3,
        "train_split": None,
        "iterator_train__shuffle": True,
        "verbose": 0,
    } | options
    return NeuralNetRegressor(module(), **options).fit(X, y), X, y


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_descent_takes_the_steps_of_plain_gradient_descent(dtype):
    X, y = (torch.as_tensor(a).to(dtype) for a in rows())
    net = module().to(dtype)
    before = weights_of(net)
    whole = problem_of(net, X, y, loss="mse")
    trajectory = GradientDescentProbe(0.1, n_steps=4).run(net, Data(X, y), whole)
    assert same(before, weights_of(net))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for mark in trajectory.marks[1:]:
        optimizer.zero_grad()
        nn.functional.mse_loss(net(X), y).backward()
        optimizer.step()
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        for name, p in net.named_parameters():
            assert mark.weights[name].dtype == torch.float64
            torch.testing.assert_close(
                mark.weights[name], p.detach().double(), rtol=tolerance, atol=tolerance
            )
    assert trajectory.every_step
    assert trajectory.n_steps == trajectory.marks[-1].epoch == 4


def test_sums_of_a_descent_are_those_of_its_steps():
    X, y = rows()
    whole = problem_of(module(), X, y, loss="mse")
    trajectory = GradientDescentProbe(0.1, n_steps=3).run(None, Data(X, y), whole)
    for window in trajectory.windows(None):
        slope = whole.at(window.start.weights).gradient().value
        for name, applied in window.mean("applied").items():
            torch.testing.assert_close(applied, slope[name], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(window.mean("visited")[name], window.start.weights[name])


def test_a_descent_that_diverges_is_refused():
    X, y = rows()
    whole = problem_of(nn.Linear(4, 1).double(), X, y, loss="mse")
    with pytest.raises(ValueError, match="take a smaller lr"):
        GradientDescentProbe(1e80, n_steps=6).run(None, Data(X, y), whole)


def test_the_path_is_made_once_for_a_model_and_its_rows():
    X, y = rows()
    data = Data(X, y)
    probe = GradientDescentProbe(0.1, n_steps=2)
    first = probe.run(None, data, problem_of(module(), X, y, loss="mse"))
    assert clone(probe) is probe
    assert clone({"a": probe}["a"]).run(None, data, problem_of(module(), X, y, loss="mse")) is first
    other = module()
    nn.init.ones_(other[0].weight)
    assert probe.run(None, data, problem_of(other, X, y, loss="mse")) is not first
    again = probe.run(None, Data(X.copy(), y), problem_of(module(), X, y, loss="mse"))
    assert again is not first


def test_a_search_over_the_step_size_penalty():
    X, y = rows()
    estimator = ImplicitRegularizationEstimator(
        module(),
        mode="trajectory",
        trajectory=GradientDescentProbe(0.01, n_steps=2),
        reference="flow",
        loss="mse",
        params="all",
    )
    grid = {"family": [GradientNorm(), L2()]}
    search = GridSearchCV(estimator, grid, cv=2).fit(X, y)
    assert isinstance(search.best_params_["family"], GradientNorm)


@pytest.mark.parametrize("wrapped", [False, True], ids=["module", "frozen"])
def test_a_module_trains_on_with_a_new_optimizer(wrapped):
    X, y = rows()
    net, loop = module(), Loop(X, y)
    before = weights_of(net)
    probe = ContinueTraining(3, train_epoch=loop.steps, optimizer=sgd, random_state=0)
    fit = ImplicitRegularizationEstimator(
        FrozenModel(net) if wrapped else net,
        family=[L2(), SmoothL1(delta=0.1)],
        mode="trajectory",
        trajectory=probe,
        reference="batch",
        loss="mse",
        params="all",
    ).fit(X, y)
    np.testing.assert_allclose(fit.coef_, [DECAY, 0], atol=1e-9)
    assert same(before, weights_of(net))
    trajectory = probe.run(net, Data(X, y), problem_of(net, X, y, loss="mse"))
    assert trajectory.marks[-1].epoch == 3
    assert trajectory.n_steps == 9
    assert all(len(step.rows) == 20 for step in trajectory.steps)


def test_an_optimizer_goes_on_from_its_state():
    X, y = rows()
    net, loop = module(), Loop(X, y)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    loop.steps(net, optimizer)
    velocity = {n: optimizer.state[p]["momentum_buffer"].clone() for n, p in net.named_parameters()}
    before = weights_of(net)
    probe = ContinueTraining(2, train_epoch=loop.steps, optimizer=optimizer, random_state=3)
    trajectory = probe.run(net, Data(X, y), problem_of(net, X, y, loss="mse"))
    assert same(before, weights_of(net))
    assert same(
        velocity, {n: optimizer.state[p]["momentum_buffer"] for n, p in net.named_parameters()}
    )
    torch.manual_seed(3)
    for _ in range(2):
        loop.steps(net, optimizer)
    assert same(trajectory.marks[-1].weights, weights_of(net))


def test_a_loop_need_not_know_of_the_path():
    X, y = rows()
    probe = ContinueTraining(1, train_epoch=Loop(X, y).unnamed, optimizer=sgd)
    trajectory = probe.run(module(), Data(X, y), problem_of(module(), X, y, loss="mse"))
    assert trajectory.n_steps == 3
    assert all(step.rows is None for step in trajectory.steps)


def test_random_numbers_stay_where_they_were():
    X, y = rows()
    net = module()
    whole = problem_of(net, X, y, loss="mse")
    state = torch.get_rng_state()
    probe = ContinueTraining(1, train_epoch=Loop(X, y).steps, optimizer=sgd)
    probe.run(net, Data(X, y), whole)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_skorch_net_trains_on(momentum):
    net, X, y = fitted_net(optimizer__momentum=momentum)
    before, epochs = weights_of(net.module_), len(net.history)
    fit = ImplicitRegularizationEstimator(
        net,
        family=[L2(), SmoothL1(delta=0.1)],
        mode="trajectory",
        trajectory=ContinueTraining(4, random_state=0),
        reference="batch",
        params="all",
    ).fit(X, y)
    np.testing.assert_allclose(fit.coef_, [DECAY, 0], atol=1e-9)
    assert same(before, weights_of(net.module_))
    assert len(net.history) == epochs


def test_a_skorch_net_trains_on_as_it_would_itself():
    net, X, y = fitted_net(optimizer__momentum=0.9)
    trajectory = ContinueTraining(2, random_state=5).run(net, Data(X, y), problem_of(net, X, y))
    torch.manual_seed(5)
    net.set_params(max_epochs=2).partial_fit(X, y)
    assert same(trajectory.marks[-1].weights, weights_of(net.module_))
    used = np.sort(np.concatenate([step.rows for step in trajectory.steps[:3]]))
    assert np.array_equal(used, np.arange(60))
    assert [mark.epoch for mark in trajectory.marks] == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("marked", [False, True], ids=["all rows", "training rows"])
def test_rows_held_out_in_training_stay_out(marked):
    net, X, y = fitted_net(train_split=ValidSplit(5))
    given = training_rows(net, X, y) if marked else (X, y)
    fit = ImplicitRegularizationEstimator(
        net,
        mode="trajectory",
        trajectory=ContinueTraining(2, random_state=0),
        reference="batch",
        params="all",
    ).fit(*given)
    assert fit.coef_[0] == pytest.approx(DECAY, abs=1e-9)


def test_callbacks_that_stop_or_write_are_left_out(tmp_path):
    X, y = rows()
    labels = (y[:, 0] > 0).astype(np.int64)
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(4, 2), nn.Softmax(dim=1)).double(),
        max_epochs=2,
        verbose=0,
        callbacks=[
            ("keep", Checkpoint(dirname=str(tmp_path))),
            ("stop", EarlyStopping(patience=1, threshold=10.0)),
            ("rate", LRScheduler("ExponentialLR", gamma=0.5)),
        ],
        train_split=ValidSplit(5, random_state=None),
    ).fit(X, labels)
    for file in tmp_path.iterdir():
        file.unlink()
    trajectory = ContinueTraining(3).run(net, Data(X, labels), problem_of(net, X, labels))
    assert trajectory.marks[-1].epoch == 3
    assert not list(tmp_path.iterdir())
    rates = [step.lr for step in trajectory.steps]
    assert rates[-1] < rates[0]


def test_rows_of_its_own_for_searches():
    net, X, y = fitted_net()
    probe = ContinueTraining(2, data=(X, y), random_state=0)
    first = probe.run(net, Data(X, y), problem_of(net, X, y))
    part = training_rows(net, X, y)[0][:40]
    assert probe.run(net, Data(part, y[:40]), problem_of(net, part, y[:40])) is first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientDescentProbe(0.0), "lr of GradientDescentProbe to be a finite number > 0"),
        (
            lambda: GradientDescentProbe(0.1, 0),
            "n_steps of GradientDescentProbe to be an integer >= 1",
        ),
        (lambda: ContinueTraining(0), "n_epochs of ContinueTraining to be an integer >= 1"),
    ],
    ids=["lr", "steps", "epochs"],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_module_needs_a_loop_and_a_net_must_not_have_one():
    X, y = rows()
    whole = problem_of(module(), X, y, loss="mse")
    with pytest.raises(ValueError, match="Expected `train_epoch` and `optimizer`"):
        ContinueTraining(1).run(module(), Data(X, y), whole)
    with pytest.raises(TypeError, match="make one from parameters"):
        ContinueTraining(1, Loop(X, y).steps, list).run(module(), Data(X, y), whole)
    net, X, y = fitted_net()
    with pytest.raises(ValueError, match="which has its own"):
        ContinueTraining(1, Loop(X, y).steps, sgd).run(net, Data(X, y), problem_of(net, X, y))


def test_representations():
    assert repr(GradientDescentProbe(0.1)) == "GradientDescentProbe(lr=0.1, n_steps=5)"
    assert repr(ContinueTraining(3)) == "ContinueTraining(n_epochs=3)"
