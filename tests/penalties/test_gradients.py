"""Penalties on loss gradients: values and columns against finite differences and theory."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties import L2, BatchGradientNorm, GradientNorm
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.trajectory import Flow
from sklearn_implicitreg.trajectory.trajectory import Mark, Step, Window


class Attention(nn.Module):
    """A transformer layer over four copies of a row; its fused attention has no jvp."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        steps = torch.arange(1, 5, dtype=x.dtype)[None, :, None] / 4
        return self.head(self.layer(x[:, None, :] * steps).mean(1))


class Recurrent(nn.Module):
    """An LSTM over two steps of three numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x.reshape(-1, 2, 3))[0][:, -1])


class Once(torch.autograd.Function):
    """Square, by rules for reverse mode only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 2 * x * slope


class Squares(nn.Module):
    """Activation without a forward-mode rule."""

    def forward(self, x):
        return Once.apply(x)


MODULES = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)
    ),
    "recurrent": Recurrent,
    "attention": Attention,
    "no forward mode": lambda: nn.Sequential(nn.Linear(6, 5), Squares(), nn.Linear(5, 3)),
}


def made(module, n=23, **options):
    """Problem of a module on random rows, in batches of 10."""
    torch.manual_seed(0)
    X, y = torch.randn(n, 6, dtype=torch.float64), torch.arange(n) % 3
    options = {"params": "all", "batch_size": 10, "loss": "cross_entropy"} | options
    return adapt(module().double(), Data(X, y), Options(**options))


def differences(problem, value, direction, step=1e-5):
    """Central difference of a function of a problem along a direction."""
    ahead, behind = (
        value(problem.at({n: t + s * direction[n] for n, t in problem.params.items()}))
        for s in (step, -step)
    )
    return (ahead - behind) / (2 * step)


def direction_of(problem):
    generator = torch.Generator().manual_seed(1)
    return {
        n: torch.randn(t.shape, generator=generator, dtype=torch.float64)
        for n, t in problem.params.items()
    }


def along(column, direction):
    return sum(float((column[n] * direction[n]).sum()) for n in column)


@pytest.mark.parametrize("name", MODULES)
def test_product_with_the_hessian_against_differences(name):
    problem = made(MODULES[name])
    direction = direction_of(problem)
    product = problem.hvp(direction)
    for tensor, h in product.items():
        assert h.dtype == torch.float64
        slopes = differences(problem, lambda p, t=tensor: p.gradient().value[t], direction)
        torch.testing.assert_close(h, slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), "cross_entropy"]
)
def test_product_with_the_hessian_weighs_rows_as_the_gradient_does(loss):
    problem = made(MODULES["mlp"], loss=loss)
    weighted = problem.take(np.arange(12), np.linspace(0.5, 2, 12))
    direction = direction_of(problem)
    h = along(weighted.hvp(direction), direction)
    slope = differences(weighted, lambda p: along(p.gradient().value, direction), direction)
    assert h == pytest.approx(slope, rel=1e-6)


def test_product_with_a_part_of_the_tensors():
    problem = made(MODULES["mlp"])
    direction = direction_of(problem)
    part = {"0.weight": direction["0.weight"]}
    zeros = {n: t * (n == "0.weight") for n, t in direction.items()}
    expected = problem.hvp(zeros)
    for name, h in problem.hvp(part).items():
        torch.testing.assert_close(h, expected[name])
    with pytest.raises(ValueError, match="Expected a vector shaped like"):
        problem.hvp({"0.weight": torch.ones(2)})


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    "penalty",
    [
        GradientNorm(),
        BatchGradientNorm(batch_size=6),
        BatchGradientNorm(batch_size=6, centered=False, n_partitions=2),
    ],
    ids=["gradient", "centered", "not centered"],
)
def test_columns_against_differences(name, penalty):
    problem = made(MODULES[name])
    direction = direction_of(problem)

    def value(p):
        (term,) = penalty.terms(p.params, p).values()
        return float(term)

    (column,) = penalty.full_gradient(problem.params, problem).values()
    assert along(column, direction) == pytest.approx(differences(problem, value, direction), 1e-5)


def test_columns_by_reverse_mode_are_the_full_gradient():
    problem = made(MODULES["mlp"])
    params = {n: t.clone().requires_grad_() for n, t in problem.params.items()}
    (value,) = GradientNorm().terms(params, problem).values()
    column = GradientNorm().full_gradient(problem.params, problem)["gradient_norm"]
    for (name, _), g in zip(
        params.items(), torch.autograd.grad(value, list(params.values())), strict=True
    ):
        torch.testing.assert_close(g, column[name])


def test_the_norm_counts_tensors_that_give_no_equations():
    every, weights = made(MODULES["mlp"]), made(MODULES["mlp"], params="weights")
    assert weights.left_out == ("0.bias", "2.bias")
    whole, part = Design.at(GradientNorm(), every), Design.at(GradientNorm(), weights)
    assert weights.whole().params.keys() == every.params.keys()
    for name in weights.params:
        torch.testing.assert_close(part.columns(name), whole.columns(name))


def test_one_coefficient_per_layer():
    problem = made(MODULES["mlp"])
    design = Design.at(GradientNorm().per("layer"), problem)
    whole = Design.at(GradientNorm(), problem)
    assert design.term_names == ("gradient_norm[0]", "gradient_norm[2]")
    for name in problem.params:  # each column reaches all tensors, together they are the norm
        assert float(design.columns(name).abs().min(1).values.max()) > 0
        torch.testing.assert_close(design.columns(name).sum(1), whole.columns(name)[:, 0])


def test_known_coefficient_and_sum():
    problem = made(MODULES["mlp"])
    design = Design.at(L2() + 0.1 * GradientNorm(), problem)
    alone = Design.at(GradientNorm(), problem)
    assert design.term_names == ("l2",)
    for name in problem.params:
        torch.testing.assert_close(design.known(name), 0.1 * alone.columns(name)[:, 0])


def test_batches_of_a_window_or_random_ones():
    problem = made(MODULES["mlp"])
    halves = [np.arange(11), np.arange(11, 23)]
    given = BatchGradientNorm(batches=halves).terms(problem.params, problem)
    known = replace(problem, batches=tuple(halves))
    (read,) = BatchGradientNorm().terms(known.params, known).values()
    assert float(read) == float(given["batch_gradient_norm"])
    (drawn,) = BatchGradientNorm(batch_size=6, random_state=1).terms(known.params, known).values()
    assert float(drawn) != float(read)
    one = BatchGradientNorm(batches=[np.arange(23)], centered=False)
    torch.testing.assert_close(
        one.full_gradient(problem.params, problem)["batch_gradient_norm"],
        GradientNorm().full_gradient(problem.params, problem)["gradient_norm"],
    )


def test_mean_over_partitions_is_the_expected_penalty():
    problem = made(MODULES["mlp"], n=6)
    rows = [np.array(pair) for pair in itertools.combinations(range(6), 2)]
    singles = [np.array([i]) for i in range(6)]
    pairs = BatchGradientNorm(batches=rows).terms(problem.params, problem)
    single = BatchGradientNorm(batches=singles).terms(problem.params, problem)
    ratio = float(pairs["batch_gradient_norm"]) / float(single["batch_gradient_norm"])
    assert ratio == pytest.approx((6 - 2) / ((6 - 1) * 2))


def shuffled_ends(problem, batches, lr):
    """Mean over all orders of the weights after an epoch of plain SGD."""
    ends = []
    for order in itertools.permutations(batches):
        at = dict(problem.params)
        for rows in order:
            slope = problem.at(at).take(rows, np.ones(len(rows))).gradient().value
            at = {n: t - lr * slope[n] for n, t in at.items()}
        ends.append(at)
    return {n: torch.stack([end[n] for end in ends]).mean(0) for n in problem.params}


@pytest.mark.parametrize("lr", [0.02, 0.01])
def test_an_epoch_in_any_order_follows_lr_over_four(lr):
    problem = made(MODULES["mlp"], n=24)
    batches = np.arange(24).reshape(3, 8)
    end = shuffled_ends(problem, list(batches), lr)
    first, last = Mark(0, 0, problem.params, {}, {}, {}), Mark(3, 1, end, {}, {}, {})
    flow = Flow().mean_gradient(problem, Window(first, last, (first,), (Step(lr),) * 3)).value
    target = {n: (t - end[n]) / (3 * lr) - flow[n] for n, t in problem.params.items()}
    family = BatchGradientNorm(batches=batches, centered=False)
    column = family.full_gradient(problem.params, problem)["batch_gradient_norm"]
    coef = along(column, target) / along(column, column)
    assert coef / (lr / 4) == pytest.approx(1, abs=4 * lr)


def test_clone():
    penalty = clone(BatchGradientNorm(batch_size=32, centered=False))
    assert penalty.get_params()["batch_size"] == 32


@pytest.mark.parametrize("batch_size", [None, 0, 24])
def test_batches_must_be_known(batch_size):
    problem = made(MODULES["mlp"])
    with pytest.raises(ValueError, match=r"Expected batch_size (in 1\.\.23|of .* an integer >= 1)"):
        BatchGradientNorm(batch_size).terms(problem.params, problem)


def test_the_model_is_needed():
    with pytest.raises(ValueError, match="Expected a model with its data"):
        GradientNorm().terms({"w": torch.ones(2)}, None)


def test_a_second_derivative_is_needed():
    class Distances(nn.Module):
        """To fixed points, by an operation whose backward pass has no derivative."""

        def forward(self, x):
            return torch.cdist(x, torch.eye(5, dtype=x.dtype), p=3.0)

    problem = made(lambda: nn.Sequential(nn.Linear(6, 5), Distances(), nn.Linear(5, 3)))
    with pytest.raises(ValueError, match="differentiated twice"):
        problem.hvp(problem.gradient().value)


def test_scikit_learn_models_have_no_path():
    from sklearn.linear_model import Ridge

    X = np.random.default_rng(0).normal(size=(20, 3))
    problem = adapt(Ridge().fit(X, X[:, 0]), Data(X, X[:, 0]), Options())
    with pytest.raises(ValueError, match="Expected a torch module, skorch net or MLP where"):
        problem.hvp(problem.params)


@pytest.mark.parametrize("name", ["gradient_norm", "sharpness", "hessian_trace"])
@pytest.mark.parametrize("kind", ["LogisticRegression", "PoissonRegressor"])
def test_families_of_loss_gradients_say_which_models_have_them(name, kind):
    import sklearn.linear_model

    X = np.random.default_rng(0).normal(size=(20, 3))
    y = (X[:, 0] > 0).astype(int)
    model = getattr(sklearn.linear_model, kind)().fit(X, y)
    with pytest.raises(ValueError, match=f"for a family of loss gradients, got {kind}; give such"):
        ImplicitRegularizationEstimator(model, family=name).fit(X, y)


def _spread_case(dtype=torch.float64):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    X, y = torch.randn(50, 4), torch.randint(0, 3, (50,))
    batches = list(np.split(np.random.default_rng(0).permutation(50), [16, 32, 48]))
    weight = np.random.default_rng(1).uniform(0.5, 2.0, 50)
    return adapt(net, Data(X, y, weight), Options(loss="cross_entropy", params="all")), batches


@pytest.mark.parametrize("room", [0, 2**28], ids=["recomputed", "held"])
def test_mean_and_spread_in_one_pass(monkeypatch, room):
    """Against a pass per batch and products with the Hessian."""
    monkeypatch.setattr("sklearn_implicitreg.adapters.torch.curvature._HELD", room)
    problem, batches = _spread_case()
    mean, spread = problem.mean_and_spread(batches)
    parts = [problem.take(rows, np.ones(len(rows))) for rows in batches]
    gradients = [part.gradient() for part in parts]
    for name in problem.params:
        g = torch.stack([own.value[name] for own in gradients]).mean(0)
        torch.testing.assert_close(mean.value[name], g, rtol=1e-12, atol=1e-15)
    about = [{n: t - mean.value[n] for n, t in own.value.items()} for own in gradients]
    products = [part.hvp(v) for part, v in zip(parts, about, strict=True)]
    for name, column in spread.items():
        expected = 2 * torch.stack([h[name] for h in products]).mean(0)
        torch.testing.assert_close(column, expected, rtol=1e-10, atol=1e-14)
    again = problem.spread_gradient(batches, mean.value)
    for name, column in spread.items():
        torch.testing.assert_close(again[name], column, rtol=1e-12, atol=1e-15)
    assert mean.loss == pytest.approx(np.mean([own.loss for own in gradients]), rel=1e-12)
    assert (mean.weight, mean.n_rows) == (pytest.approx(problem.masses.sum()), 50)


def test_batches_larger_than_what_fits_at_once():
    problem, batches = _spread_case()
    mean, spread = problem.mean_and_spread(batches)
    small = replace(problem, batch_size=5)
    assert small.mean_and_spread(batches) is None
    for name, column in small.spread_gradient(batches, mean.value).items():
        torch.testing.assert_close(column, spread[name], rtol=1e-10, atol=1e-14)


def test_single_precision_is_added_in_double():
    whole = _spread_case(torch.float32)[0]
    exact = _spread_case()[0]
    gradient = replace(whole, batch_size=7).gradient()
    for name, g in exact.gradient().value.items():
        assert gradient.value[name].dtype == torch.float64
        torch.testing.assert_close(gradient.value[name], g, rtol=1e-4, atol=1e-6)
