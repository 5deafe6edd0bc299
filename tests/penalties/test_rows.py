"""Penalties on rows of data and distances to a checkpoint: known answers, blocks, messages."""

from __future__ import annotations

import pickle
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from module_cases import minimize
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties import (
    L2,
    ActivationL2,
    Callables,
    Penalty,
    RowBatch,
    as_penalty,
    check_penalty,
)
from sklearn_implicitreg.penalties.columns import columns_of_leaves
from sklearn_implicitreg.problem import Problem

N_ROWS = 300
COEF = {"l2": 1e-3, "activation_l2": 2e-3}


def digits():
    X, y = load_digits(return_X_y=True)
    return torch.tensor(X[:N_ROWS] / 16), torch.tensor(y[:N_ROWS])


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)).double()


def minimized(net, loss, rounds=25):
    """The net at a stationary point of a loss."""
    minimize(net.parameters(), loss, 200, rounds=rounds, tol=1e-12)
    net.zero_grad()
    return net


def activation_trained(weight=None):
    """A net trained with l2 beside squared activations of its hidden layer, by hand."""
    X, y = digits()
    net = mlp()
    weight = torch.ones(N_ROWS, dtype=torch.float64) if weight is None else weight

    def loss():
        hidden = net[:2](X)
        rows = nn.functional.cross_entropy(net[2](hidden), y, reduction="none")
        rows = rows + COEF["activation_l2"] * hidden.square().sum(1)
        decay = sum(p.square().sum() for p in net.parameters())
        return (weight * rows).sum() / weight.sum() + COEF["l2"] * decay

    return minimized(net, loss)


@pytest.fixture(scope="module")
def net():
    return activation_trained()


def fit(net, family, X=None, y=None, sample_weight=None, **params):
    X, y = digits() if X is None else (X, y)
    options = {"loss": "cross_entropy", "params": "all"} | params
    est = ImplicitRegularizationEstimator(net, family=family, **options)
    return est.fit(X, y, sample_weight=sample_weight)


def problem_of(net, **options):
    X, y = digits()
    given = {"loss": "cross_entropy", "params": "all"} | options
    return adapt(net, Data(X, y), Options(**given))


BOTH = L2() + ActivationL2("1")


class Outputs(Penalty):
    """Mean squared output."""

    def rows(self, batch):
        return {"outputs": batch.outputs.square().sum(1)}


class Jacobian(Penalty):
    """Squared derivative of the summed outputs in the inputs."""

    def rows(self, batch):
        inputs = batch.inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(batch.call(inputs).sum(), inputs, create_graph=True)
        return {"jacobian": slope.square().sum(1)}


class Noise(Penalty):
    """Squared change of the outputs by noise in the inputs."""

    stochastic = True

    def rows(self, batch):
        noise = torch.from_numpy(batch.rng.standard_normal(batch.inputs.shape))
        change = batch.call(batch.inputs + 0.1 * noise) - batch.outputs
        return {"noise": change.square().sum(1)}


class TestKnownAnswers:
    def test_activation_beside_l2(self, net):
        est = fit(net, BOTH)
        assert est.term_names_ == ["l2", "activation_l2"]
        np.testing.assert_allclose(est.coef_, list(COEF.values()), rtol=1e-5)
        assert est.r2_ > 1 - 1e-8
        assert est.verdict_ == "supported"

    def test_blocks_and_all_at_once(self, net):
        blocks, whole = fit(net, BOTH, batch_size=64), fit(net, BOTH, batch_size=N_ROWS)
        np.testing.assert_allclose(blocks.coef_, whole.coef_, rtol=1e-12)

    def test_a_callable_of_rows_is_the_same(self, net):
        family = {
            "l2": lambda params: sum(t.square().sum() for t in params.values()),
            "own": lambda params, batch: batch.activation("1").square().sum(1),
        }
        est = fit(net, family)
        assert est.term_names_ == ["l2", "own"]
        np.testing.assert_allclose(est.coef_, fit(net, BOTH).coef_, rtol=1e-10)

    def test_single_precision(self, net):
        single = mlp().float()
        single.load_state_dict({n: t.float() for n, t in net.state_dict().items()})
        np.testing.assert_allclose(fit(single, BOTH).coef_, list(COEF.values()), rtol=1e-2)

    def test_row_weights(self):
        weight = torch.linspace(0.2, 3, N_ROWS, dtype=torch.float64)
        est = fit(activation_trained(weight), BOTH, sample_weight=weight.numpy())
        np.testing.assert_allclose(est.coef_, list(COEF.values()), rtol=1e-5)

    def test_integer_weights_are_repeated_rows(self, net):
        X, y = digits()
        counts = np.arange(N_ROWS) % 3
        rows = np.repeat(np.arange(N_ROWS), counts)
        weighted = fit(net, BOTH, X, y, sample_weight=counts.astype(float))
        np.testing.assert_allclose(weighted.coef_, fit(net, BOTH, X[rows], y[rows]).coef_, 1e-9)

    def test_anchored_at_a_checkpoint(self, net):
        X, y = digits()
        start = {name: p.detach().clone() for name, p in net.named_parameters()}
        rows = slice(150, 300)
        tuned = mlp()
        tuned.load_state_dict(start)

        def loss():
            away = sum((p - start[n]).square().sum() for n, p in tuned.named_parameters())
            return nn.functional.cross_entropy(tuned(X[rows]), y[rows]) + 0.03 * away

        minimized(tuned, loss)
        for center in (start, net):
            est = fit(tuned, L2(center=center), X[rows], y[rows])
            assert est.term_names_ == ["l2_center"]
            np.testing.assert_allclose(est.coef_, [0.03], rtol=1e-6)
            assert est.r2_ > 1 - 1e-8

    @pytest.mark.parametrize("weighted", [False, True])
    def test_squared_outputs_of_a_linear_model(self, weighted):
        """``mean (x'w - y)^2 + c mean (x'w)^2``: least squares over ``1 + c``."""
        X, y = load_diabetes(return_X_y=True)
        weight = np.linspace(0.5, 2, len(y)) if weighted else None
        model = LinearRegression(fit_intercept=False).fit(X, y, sample_weight=weight)
        model.coef_ = model.coef_ / 1.25
        est = ImplicitRegularizationEstimator(model, family=Outputs())
        est.fit(X, y, sample_weight=weight)
        np.testing.assert_allclose(est.coef_, [0.25], rtol=1e-10)

    def test_squared_outputs_beside_ridge(self):
        X, y = load_diabetes(return_X_y=True)
        alpha, extra, n = 2.0, 0.5, len(y)
        model = Ridge(alpha=alpha, fit_intercept=False).fit(X, y)
        model.coef_ = np.linalg.solve((1 + extra) * X.T @ X + alpha * np.eye(X.shape[1]), X.T @ y)
        est = ImplicitRegularizationEstimator(model, family=L2() + Outputs()).fit(X, y)
        np.testing.assert_allclose(est.coef_, [alpha / n, extra], rtol=1e-9)


class Twice(nn.Module):
    """Layers that are called twice, never, in place, and across rows."""

    def __init__(self):
        super().__init__()
        self.act, self.idle, self.turn = nn.Tanh(), nn.Tanh(), nn.Flatten(0)
        self.linear, self.relu = nn.Linear(2, 2), nn.ReLU(inplace=True)
        self.several = nn.LSTM(2, 2, batch_first=True)

    def forward(self, x):
        self.turn(x)
        self.several(x[:, None])[0][:, 0]
        return self.act(self.act(x)) + self.relu(self.linear(x))


class TestBatch:
    def test_outputs_of_linear_models(self):
        X, y = load_diabetes(return_X_y=True)
        classes = (y > 140).astype(int) + (y > 200)
        models = [
            Ridge().fit(X, np.column_stack([y, -y])),
            LogisticRegression().fit(X, classes),
            LogisticRegression(solver="liblinear", intercept_scaling=5.0).fit(X, classes > 0),
        ]
        targets = np.column_stack([y, -y]), classes, classes > 0
        for model, target in zip(models, targets, strict=True):
            expected = getattr(model, "decision_function", model.predict)(X).reshape(len(X), -1)
            problem = adapt(model, Data(X, target), Options(params="all"))
            outputs = [b.outputs for b in problem.row_batches(problem.params)]
            np.testing.assert_allclose(torch.cat(outputs).numpy(), expected, rtol=1e-9)

    def test_sparse_features(self):
        X, y = load_diabetes(return_X_y=True)
        X = np.where(abs(X) > 0.04, X, 0.0)
        model = Ridge().fit(X, y)
        dense, thin = (
            ImplicitRegularizationEstimator(model, family=L2() + Outputs()).fit(rows, y).coef_
            for rows in (X, sparse.csr_matrix(X))
        )
        np.testing.assert_allclose(thin, dense, rtol=1e-8, atol=1e-12)

    def test_one_forward_pass_for_all_families(self, net):
        calls = []

        class Counted(nn.Sequential):
            def forward(self, x):
                calls.append(len(x))
                return super().forward(x)

        problem = problem_of(Counted(*net), batch_size=100)
        family = L2() + ActivationL2("1") + ActivationL2("0") + Outputs()
        leaves = family.leaves(problem.params, problem)
        params = {n: t.double() for n, t in problem.params.items()}
        together = columns_of_leaves(leaves, params, problem)
        assert calls == [100, 100, 100]
        for leaf, part in zip(leaves, together, strict=True):
            alone = columns_of_leaves([leaf], params, problem)[0]
            assert part.terms == alone.terms
            for name, tensor in params.items():
                for a, b in zip(
                    part.columns(name, tensor), alone.columns(name, tensor), strict=True
                ):
                    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)

    def test_one_graph_at_a_time(self, net):
        graphs = []

        class Watched(Penalty):
            def rows(self, batch):
                alive = [ref for ref in graphs if ref() is not None]
                assert not alive
                graphs.append(weakref.ref(batch.outputs))
                return {"watched": batch.outputs.square().sum(1)}

        problem = problem_of(net, batch_size=50)
        (leaf,) = Watched().leaves(problem.params, problem)
        columns_of_leaves([leaf], problem.params, problem)[0]
        assert len(graphs) == 6
        graphs.clear()
        Watched().terms(problem.params, problem)
        assert len(graphs) == 6

    def test_per_and_on_keep_the_tensors_of_the_leaf(self, net):
        problem = problem_of(net)
        (whole,) = (
            columns_of_leaves([leaf], problem.params, problem)[0]
            for leaf in Outputs().leaves(problem.params, problem)
        )
        for leaf in Outputs().per("layer").leaves(problem.params, problem):
            part = columns_of_leaves([leaf], problem.params, problem)[0]
            for name, tensor in problem.params.items():
                (own,), (all_,) = part.columns(name, tensor), whole.columns(name, tensor)
                torch.testing.assert_close(own, all_ if name in leaf.names else 0 * all_)

    def test_activations(self):
        batch = RowBatch.of(Twice(), torch.ones(3, 2))
        assert batch.activation("act").shape == (3, 4)
        torch.testing.assert_close(batch.activation("act", inputs=True)[:, :2], batch.inputs)
        assert batch.activation("several").shape == (3, 1, 2)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("idle", "the output of layer 'idle', but the forward pass did not call the layer"),
            ("turn", r"Expected 3 rows on the first axis of .* got shape \(6,\)"),
            ("linear", "later operation changed it in place; set inplace=False"),
            ("acts", r"among \['act', .*'idle'.* got 'acts'. Did you mean 'act'\?"),
        ],
    )
    def test_activations_that_cannot_be_read(self, name, text):
        with pytest.raises(ValueError, match=text):
            RowBatch.of(Twice(), torch.ones(3, 2)).activation(name)

    def test_linear_models_have_no_layers(self):
        X, y = load_diabetes(return_X_y=True)
        with pytest.raises(ValueError, match="The model has none; use outputs"):
            ImplicitRegularizationEstimator(Ridge().fit(X, y), family=ActivationL2("1")).fit(X, y)

    def test_models_without_known_outputs(self):
        with pytest.raises(ValueError, match="linear model for a penalty on rows, got Other"):
            Problem.row_batches(SimpleNamespace(model_name="Other"), {})

    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ({}, "Expected Returns.rows to return a dict of term name to Tensor"),
            ({"a": torch.ones(())}, r"'a' of Returns to be one number for each of 300 rows, got s"),
            ({"a": torch.ones(300, 2)}, r"one number .* got shape \(300, 2\); sum over"),
            ({"a": 1.0}, "one number for each of 300 rows, got 1.0"),
            ({"a": torch.full((300,), np.nan)}, "Expected finite values for every row, got 'a'"),
        ],
    )
    def test_what_rows_must_return(self, net, values, text):
        class Returns(Penalty):
            def rows(self, batch):
                return values

        with pytest.raises((TypeError, ValueError), match=text):
            fit(net, Returns())

    def test_neither_method(self, net):
        class Neither(Penalty):
            pass

        with pytest.raises(TypeError, match="Neither to have a method `terms.*` or `rows"):
            fit(net, Neither())

    def test_users_objects_stay(self, net):
        layers = nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 10)
        batch_norm = nn.Sequential(*layers).double()
        before = {n: t.clone() for n, t in batch_norm.state_dict().items()}
        generators = torch.get_rng_state()
        est = fit(batch_norm, L2() + ActivationL2("1"), batch_size=100)
        X, y = digits()
        assert torch.equal(torch.get_rng_state(), generators)
        est.penalty_(batch_norm.train(), X, y).backward()
        for name, tensor in batch_norm.state_dict().items():
            assert torch.equal(tensor, before[name])
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in batch_norm.modules())


class TestFittedPenalty:
    @torch.no_grad()
    def test_mini_batches_average_to_the_whole(self, net):
        X, y = digits()
        penalty = fit(net, BOTH).penalty_
        expected = COEF["activation_l2"] * net[:2](X).square().sum(1).mean()
        expected += COEF["l2"] * sum(p.square().sum() for p in net.parameters())
        assert float(penalty(net, X, y)) == pytest.approx(float(expected), rel=1e-5)
        X, y = X[:296], y[:296]
        parts = [float(penalty(net, X[i::8], y[i::8])) for i in range(8)]
        assert np.mean(parts) == pytest.approx(float(penalty(net, X, y)), rel=1e-15, abs=0)

    def test_gradient_is_minus_that_of_the_loss(self, net):
        X, y = digits()
        value = fit(net, BOTH).penalty_(net, X.numpy(), y.numpy())
        ours = torch.autograd.grad(value, list(net.parameters()))
        loss = nn.functional.cross_entropy(net(X), y)
        theirs = torch.autograd.grad(loss, list(net.parameters()))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, -b, rtol=1e-4, atol=1e-8)

    def test_rows_are_asked_for(self, net):
        penalty = fit(net, BOTH).penalty_
        with pytest.raises(ValueError, match="ActivationL2 is a mean over rows.*give X and y"):
            penalty(net)
        fitted = fit(net, {"a": lambda p, b: b.outputs[range(len(b.target)), b.target.long()]})
        with pytest.raises(ValueError, match="got X alone; give X and y"):
            fitted.penalty_(net, digits()[0])

    def test_without_rows_as_before(self, net):
        X, y = digits()
        penalty = fit(net, "l2").penalty_
        assert penalty(net) == penalty(net, X, y)

    def test_on_a_dict_pickled_and_compiled(self, net):
        X, y = digits()
        penalty = fit(net, BOTH).penalty_
        value = penalty(net, X, y)
        assert penalty(dict(net.named_parameters()), X, y) == value
        again = pickle.loads(pickle.dumps(penalty))
        assert again(dict(net.named_parameters()), X, y) == value
        assert penalty(net, X, y, np.ones(N_ROWS)) == value
        with torch.no_grad():
            assert not penalty(net, X, y).requires_grad

    def test_of_a_linear_model(self):
        X, y = load_diabetes(return_X_y=True)
        model = Ridge(alpha=0.1).fit(X, y)
        est = ImplicitRegularizationEstimator(model, family=L2() + Outputs()).fit(X, y)
        coef = torch.from_numpy(model.coef_.copy()).requires_grad_()
        value = est.penalty_({"coef": coef}, X, y)
        expected = est.coef_ @ [np.sum(model.coef_**2), np.mean(model.predict(X) ** 2)]
        assert value.item() == pytest.approx(expected, rel=1e-12)
        value.backward()
        loss_gradient = 2 * X.T @ (model.predict(X) - y) / len(y)
        assert float(coef.grad @ torch.from_numpy(loss_gradient)) < 0

    def test_random_numbers_of_a_training_loop(self, net):
        X, y = digits()
        penalty = fit(net, Noise()).penalty_
        with torch.random.fork_rng():
            torch.manual_seed(1)
            first, second = penalty(net, X, y), penalty(net, X, y)
            torch.manual_seed(1)
            assert penalty(net, X, y) == first != second


class TestCheckPenalty:
    @pytest.mark.parametrize(
        "penalty",
        [ActivationL2("1"), Outputs(), Jacobian(), Noise(), L2() + 0.5 * Outputs()],
        ids=lambda p: type(p).__name__,
    )
    def test_kept(self, net, penalty):
        X, y = digits()
        state = torch.get_rng_state()
        check_penalty(penalty)
        check_penalty(penalty, problem=RowBatch.of(net, X[:7], y[:7]))
        check_penalty(penalty, problem=problem_of(net, batch_size=200))
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_layer_of_another_net(self):
        with pytest.raises(ValueError, match=r"among \['0', '1', '2'\], got 'fc1'"):
            check_penalty(ActivationL2("fc1"))

    def test_single_precision(self):
        batch = RowBatch.of(nn.Linear(2, 1), torch.ones(3, 2))
        with pytest.raises(ValueError, match=r"problem in float64.*give module.double\(\)"):
            check_penalty(Outputs(), problem=batch)

    @pytest.mark.parametrize(
        ("rows", "error", "text"),
        [
            (lambda b: b.outputs.sum(1) * b.outputs.mean(), AssertionError, "on the other rows"),
            (lambda b: b.outputs.sum(1) + torch.rand(()), AssertionError, "global random gener"),
            (lambda b: b.outputs.sum(1) * np.random.rand(), AssertionError, "global random gener"),
            (lambda b: b.outputs.detach().sum(1), AssertionError, "by autograd, .* by differences"),
            (
                lambda b: b.outputs.sum(1) * (1.0 + b.params["0.weight"].requires_grad),
                AssertionError,
                "where parameters require gradients, has other values",
            ),
        ],
        ids=["together", "torch", "numpy", "detached", "requires_grad"],
    )
    def test_finds(self, rows, error, text):
        class Wrong(Penalty):
            def rows(self, batch):
                return {"wrong": rows(batch)}

        with pytest.raises(error, match=text):
            check_penalty(Wrong())

    def test_finds_what_cannot_be_pickled(self):
        class Holds(ActivationL2):
            def __init__(self, layer="1"):
                super().__init__(layer)

        check_penalty(Holds(), problem=RowBatch.of(mlp(), digits()[0][:5]))
        holds = Callables({"a": lambda params, batch: batch.outputs.square().sum(1)})
        check_penalty(holds)
        with pytest.raises(AssertionError, match="cannot be pickled"):
            check_penalty(holds, problem=RowBatch.of(mlp(), digits()[0][:5]))

    def test_both_methods(self):
        class Both(L2):
            def rows(self, batch):
                return {"l2": batch.outputs.sum(1)}

        with pytest.raises(TypeError, match="Both has both `terms` and `rows`; keep one"):
            check_penalty(Both())

    def test_finds_a_false_elementwise(self):
        class Norm(Penalty):
            elementwise = True

            def terms(self, params, problem):
                return {"norm": sum(t.norm() for t in params.values())}

            def gradient(self, name, tensor):
                return {"norm": tensor / tensor.norm()}

        with pytest.raises(AssertionError, match="on a piece of 'layer.weight'"):
            check_penalty(Norm())


class TestCenter:
    PARAMS = {"w": torch.tensor([[3.0, 4.0]], dtype=torch.float64)}

    def test_keeps_the_contract(self):
        center = {"w": np.array([[1.0, 1.0]]), "unused": np.zeros(2)}
        penalty = L2(center=center)
        check_penalty(penalty, self.PARAMS)
        assert float(penalty.terms(self.PARAMS, None)["l2_center"]) == 13
        assert not penalty.elementwise and L2().elementwise

    def test_clone_pickle_and_repr(self):
        module = nn.Linear(2, 1, bias=False)
        for center in (module, module.state_dict()):
            penalty = L2(center=center)
            assert penalty.get_params()["center"] is center
            params = {"weight": torch.ones(1, 2)}
            for copy in (clone(penalty), pickle.loads(pickle.dumps(penalty))):
                assert copy.terms(params, None) == penalty.terms(params, None)
            assert len(repr(penalty)) < 40
        assert repr(L2()) == "L2()"

    @pytest.mark.parametrize(
        ("center", "error", "text"),
        [
            ({"v": [1.0]}, ValueError, r"for \['w'\], got one for \['v'\]: \['w'\] missing"),
            ({"w": [1.0, 2.0, 3.0]}, ValueError, r"shape \(1, 2\) for 'w', got \(3,\)"),
            (
                3.0,
                TypeError,
                r"center of L2 .*got 3\.0\.",
            ),
        ],
        ids=["name", "shape", "kind"],
    )
    def test_a_center_that_does_not_match(self, center, error, text):
        with pytest.raises(error, match=text):
            L2(center=center).terms(self.PARAMS, None)

    def test_beside_l2(self):
        both = L2() + L2(center={"w": [[1.0, 1.0]]})
        assert list(both.terms(self.PARAMS, None)) == ["l2", "l2_center"]


def test_functions_of_parameters_and_of_rows_keep_their_order(net):
    family = {
        "rows": lambda params, batch: batch.outputs.square().sum(1),
        "params": lambda params: params["0.weight"].square().sum(),
        "partial": partial(lambda k, params, batch: k * batch.outputs.sum(1), 2.0),
        "default": lambda params, scale=1.0: scale * params["2.bias"].sum(),
    }
    problem = problem_of(net)
    assert list(as_penalty(family).terms(problem.params, problem)) == list(family)
    assert fit(net, family).term_names_ == list(family)
