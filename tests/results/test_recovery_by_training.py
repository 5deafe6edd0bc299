"""Networks trained again by their own trainer: the same start and order with and without R."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.dataset import ValidSplit
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import FittedPenalty

N, P, C = 40, 4, 0.05
RNG = np.random.default_rng(0)
X = torch.tensor(RNG.standard_normal((N, P)))
Y = torch.sin(X.sum(dim=1, keepdim=True)) + 0.3 * torch.tensor(RNG.standard_normal((N, 1)))


def net(*layers, seed=1, n_out=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(P, 3), *(layers or (nn.Tanh(),)), nn.Linear(3, n_out))


def squares(model):
    return C * sum(p.square().sum() for p in model.parameters())


def sgd(model, penalty, seed, y=Y, loss=mse_loss, n_epochs=20):
    """A plain loop over shuffled batches."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = X.to(next(model.parameters()))
    for _ in range(n_epochs):
        for batch in torch.randperm(N, generator=order).split(10):
            optimizer.zero_grad()
            target = y[batch].to(rows) if y.is_floating_point() else y[batch]
            (loss(model(rows[batch]), target) + penalty(model)).backward()
            optimizer.step()
    return model


def fitted(model, y=Y, **options):
    options = dict(loss="mse", family="l2", params="all", random_state=3) | options
    rows = X.to(next(model.parameters()))
    target = y.to(rows) if y.is_floating_point() else y
    return ImplicitRegularizationEstimator(model, **options).fit(rows, target), rows, target


def with_coefficient(est, coef):
    ((leaf, _),) = est.penalty_.leaves
    est.penalty_ = FittedPenalty(((leaf, (coef,)),), est.penalty_.tensors)
    return est


@pytest.fixture(scope="module")
def pair():
    initial = net().double()
    model = sgd(copy.deepcopy(initial), squares, 3)
    return initial, model


@pytest.mark.parametrize(("error", "most"), [(0.0, 1e-10), (0.01, 0.02), (-0.1, 0.15)])
def test_error_of_the_coefficient(pair, error, most):
    initial, model = pair
    est, rows, y = fitted(model)
    with_coefficient(est, C * (1 + error))
    found = est.recover(rows, y, mode="trainer", train=sgd, initial=initial, force=True)
    runs = found.runs.set_index(["arm", "draw"])
    ratio = runs["function"] / runs.loc[("ablated", 0), "function"]
    assert runs.loc[("ablated", 0), "function"] > 0.05
    assert ratio["recovered", 0] <= most
    assert (ratio["recovered", 0] > 1e-4) == (error != 0)
    assert 1e-4 < ratio["recovered", 1] < 0.5  # another order
    gap = abs(runs.loc[("nudged", 0), "function"] - runs.loc[("recovered", 0), "function"])
    assert gap < 1e-5
    assert 0 < float(dict(found.facts)["Floor of chaos"]) < 1e-5
    assert runs["seed"].tolist() == [3, 3, 4, 4, 5, 5, 3]
    text = " ".join(str(found).split())
    for part in ("Evidence: with 2 other orders", "no evidence about the model", "nudged by 1e-07"):
        assert part in text


def test_arms_by_hand(pair):
    initial, model = pair
    est, rows, y = fitted(model)
    found = est.recover(rows, y, mode="trainer", train=sgd, initial=initial, n_draws=2, force=True)
    own = sgd(copy.deepcopy(initial), lambda m: est.coef_[0] * squares(m) / C, 3)
    values = torch.nn.utils.parameters_to_vector(own.parameters()).detach().numpy()
    np.testing.assert_allclose(found.recovered.coef, values, rtol=1e-10)
    own = sgd(copy.deepcopy(initial), lambda m: 0.0, 3)
    values = torch.nn.utils.parameters_to_vector(own.parameters()).detach().numpy()
    np.testing.assert_allclose(found.ablated.coef, values, rtol=1e-10)
    assert found.ablated.loss == pytest.approx(mse_loss(own(X), Y).item(), rel=1e-10)
    away = (own(X) - model(X)).square().mean().sqrt() / model(X).std(correction=0)
    row = found.runs[(found.runs["arm"] == "ablated") & (found.runs["draw"] == 0)].iloc[0]
    assert row["function"] == pytest.approx(away.item(), rel=1e-9)


def test_nothing_of_the_user_moves(pair):
    """A trainer that draws from global generators and from one of its own."""
    initial, model = pair
    own = torch.Generator().manual_seed(7)
    seen = []

    def train(model, penalty, seed):
        assert model.training
        noise = [torch.randn(()), torch.randn((), generator=own), np.random.standard_normal()]
        seen.append([float(n) for n in noise])
        return sgd(model, penalty, seed, n_epochs=2)

    before = [p.clone() for m in (initial, model.eval()) for p in m.parameters()]
    est, rows, y = fitted(model)
    states = torch.get_rng_state(), own.get_state(), np.random.get_state()[1].copy()
    how = dict(mode="trainer", train=train, n_draws=2, force=True)
    first = est.recover(rows, y, **how)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(own.get_state(), states[1])
    np.testing.assert_array_equal(np.random.get_state()[1], states[2])
    after = [p for m in (initial, model) for p in m.parameters()]
    assert all(map(torch.equal, before, after))
    assert not model.training
    model.train()
    # The same numbers in both arms of a draw, others in another draw.
    assert seen[0] == seen[1] != seen[2]
    assert first.runs.equals(est.recover(rows, y, **how).runs)
    text = " ".join(str(first).split())
    assert "The start of the model is not known" in text
    starts = first.runs.groupby("draw")["start"].unique()
    assert [len(own) for own in starts] == [1, 1]
    assert starts[0] != starts[1]


def test_running_means_of_every_arm():
    """The outputs of an arm are by its own running means."""
    initial = net(nn.BatchNorm1d(3), nn.Tanh())
    model = sgd(copy.deepcopy(initial), squares, 3).eval()
    est, rows, y = fitted(model, module_mode="eval")
    with_coefficient(est, C)
    how = dict(mode="trainer", train=sgd, n_draws=1, force=True)
    found = est.recover(rows, y, initial=initial, **how)
    assert found.runs["function"][0] < 1e-6
    fresh = est.recover(rows, y, **how).ablated
    arms = []

    def train(model, penalty, seed):
        assert model[1].num_batches_tracked == 0
        arms.append(sgd(model, penalty, seed))
        return arms[-1]

    again = est.recover(rows, y, mode="trainer", train=train, n_draws=1, force=True).ablated
    np.testing.assert_array_equal(again.coef, fresh.coef)
    with torch.no_grad():
        expected = mse_loss(arms[1].eval()(rows), y).item()
    assert fresh.loss == pytest.approx(expected, rel=1e-5)


def test_classes_in_float32():
    y = torch.tensor(load_iris().target[::4][:N])
    y = torch.cat([y, y])[:N]
    initial = net(n_out=3)

    def train(model, penalty, seed):
        return sgd(model, penalty, seed, y=y, loss=cross_entropy)

    model = train(copy.deepcopy(initial), squares, 3)
    est, rows, target = fitted(model, y, loss="cross_entropy")
    with_coefficient(est, C)
    found = est.recover(
        rows, target, mode="trainer", train=train, initial=initial, n_draws=1, force=True
    )
    runs = found.runs.set_index("arm")["function"]
    assert runs["recovered"] < 1e-4 * runs["ablated"]


class TestSkorch:
    HOW = dict(max_epochs=15, lr=0.1, verbose=0, batch_size=10, iterator_train__shuffle=True)

    @pytest.mark.parametrize(
        "split", [None, ValidSplit(0.25, random_state=0)], ids=["whole", "split"]
    )
    def test_own_training(self, split):
        """The decay of the optimizer is taken away, where it is stated in the loss."""
        x, y = X.numpy().astype(np.float32), Y.numpy().astype(np.float32)
        initial = net()
        how = self.HOW | dict(train_split=split, optimizer__weight_decay=2 * C)
        model = NeuralNetRegressor(copy.deepcopy(initial), **how).initialize()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model.partial_fit(x, y)
        est = ImplicitRegularizationEstimator(model, family="l2", params="all", random_state=3)
        with_coefficient(est.fit(x, y), C)
        before = copy.deepcopy(model.history)
        found = est.recover(x, y, mode="trainer", initial=initial, n_draws=2, force=True)
        runs = found.runs.set_index(["arm", "draw"])["function"]
        assert runs["recovered", 0] < 1e-4 * runs["ablated", 0]
        assert 1e-3 < runs["recovered", 1] < runs["ablated", 1]
        assert model.history == before

    def test_a_trainer_for_its_module(self):
        x, y = X.numpy().astype(np.float32), Y.numpy().astype(np.float32)
        initial = net()
        how = self.HOW | dict(train_split=None)
        model = NeuralNetRegressor(sgd(copy.deepcopy(initial), squares, 3), **how).initialize()
        model.module_.load_state_dict(sgd(copy.deepcopy(initial), squares, 3).state_dict())
        model.history.new_epoch()
        model.history.new_batch()
        model.history.record_batch("train_batch_size", N)
        est = ImplicitRegularizationEstimator(model, family="l2", params="all", random_state=3)
        with_coefficient(est.fit(x, y), C)
        found = est.recover(x, y, mode="trainer", train=sgd, initial=initial, n_draws=1, force=True)
        assert found.runs["function"][0] < 1e-6

    def test_groups_and_dropout_are_taken_away(self):
        x, y = load_iris(return_X_y=True)
        x = (x - x.mean(0)).astype(np.float32)
        module = nn.Sequential(nn.Linear(P, 8), nn.Dropout(0.5), nn.Linear(8, 3), nn.Softmax(1))
        groups = [("0.weight", {"weight_decay": 0.5, "lr": 0.05})]
        how = self.HOW | dict(max_epochs=3, train_split=None, optimizer__param_groups=groups)
        model = NeuralNetClassifier(module, **how).fit(x, y)
        est = ImplicitRegularizationEstimator(model, family="l2").fit(x, y)
        found = est.recover(x, y, mode="trainer", n_draws=1, arms=("ablated",), force=True)
        plain = nn.Sequential(nn.Linear(P, 8), nn.Linear(8, 3), nn.Softmax(1))
        groups = [("0.weight", {"lr": 0.05})]
        own = NeuralNetClassifier(plain, **(how | dict(optimizer__param_groups=groups)))
        assert found.recovered is None
        own.initialize()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for part in own.module_.double()[:2]:
                part.reset_parameters()
            own.module_.float()
            torch.manual_seed(0)
            own.partial_fit(x, y)
        values = torch.nn.utils.parameters_to_vector(own.module_.parameters()).detach().numpy()
        np.testing.assert_allclose(found.ablated.coef, values, rtol=1e-5, atol=1e-6)


class TestBadInput:
    @pytest.mark.parametrize(
        ("train", "words"),
        [
            (lambda m, p, s: None, "return the trained module, got NoneType"),
            (lambda m, p, s: m.state_dict(), "return the trained module, got OrderedDict"),
            (lambda m, p, s: nn.Linear(P, 1), "another architecture: '0.weight' is missing"),
            (lambda m, p, s: net(nn.BatchNorm1d(3)), "another architecture: '1.weight'"),
            (
                lambda m, p, s: nn.Sequential(nn.Linear(P, 9), nn.Tanh(), nn.Linear(9, 1)),
                r"'0.weight' is \(9, 4\) and of the model \(3, 4\)",
            ),
            (lambda m, p, s: nn.init.constant_(m[0].bias, np.nan) is None or m, "finite weights"),
        ],
    )
    def test_what_is_returned(self, pair, train, words):
        est, rows, y = fitted(pair[1])
        with pytest.raises((TypeError, ValueError), match=words):
            est.recover(rows, y, mode="trainer", train=train, force=True)

    def test_own_model_is_returned(self, pair):
        est, rows, y = fitted(pair[1])
        with pytest.raises(ValueError, match="train the copy"):
            est.recover(rows, y, mode="trainer", train=lambda m, p, s: est.model, force=True)

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"mode": "own"}, "mode of recover"),
            ({"train": sgd, "mode": "auto"}, "mode='trainer' with train="),
            ({"train": None}, r"Expected train\(model, penalty, seed\) for mode='trainer'"),
            ({"train": lambda model: model}, "train of recover"),
            ({"initial": {"0.weight": 1}}, "initial of recover"),
            ({"initial": nn.Linear(P, 1)}, "Expected initial a module .* another architecture"),
        ],
    )
    def test_parameters(self, pair, wrong, words):
        est, rows, y = fitted(pair[1])
        with pytest.raises(ValueError, match=words):
            est.recover(rows, y, **({"mode": "trainer", "train": sgd, "force": True} | wrong))

    @pytest.mark.parametrize(
        "model", [MLPRegressor(hidden_layer_sizes=(3,), solver="lbfgs", tol=1e-1), Ridge()]
    )
    def test_models_of_scikit_learn(self, model):
        x, y = X.numpy(), Y.numpy().ravel()
        est = ImplicitRegularizationEstimator(model.fit(x, y)).fit(x, y)
        with pytest.raises(TypeError, match="torch module or a skorch net .* got (MLPR|Ridge)"):
            est.recover(x, y, mode="trainer", train=sgd, force=True)

    def test_no_lower_bound_is_seen_before_training(self, pair):
        est, rows, y = fitted(pair[1])
        with_coefficient(est, -1.0)

        def train(model, penalty, seed):
            raise AssertionError("trained")

        with pytest.raises(ValueError, match="falls without end"):
            est.recover(rows, y, mode="trainer", train=train, force=True)
