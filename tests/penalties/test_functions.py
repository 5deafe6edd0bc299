"""Families on what a model computes: contract, linear models, training loops, bad input."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator, LinearModel
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties import (
    FAMILIES,
    L2,
    ActivationL1,
    DeCov,
    Dropout,
    DropoutQuadratic,
    GradientNorm,
    HessianTrace,
    InputNoise,
    Jacobian,
    KLToReference,
    LabelSmoothing,
    Mixup,
    OutputL2,
    PathNorm,
    Penalty,
    RowBatch,
    Sharpness,
    check_penalty,
)
from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.penalties.columns import columns_of_leaves
from sklearn_implicitreg.penalties.fitted import needs_rows

CE = nn.CrossEntropyLoss(reduction="none")


def net(n_in=4, n_out=2, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(n_in, 3), nn.Tanh(), nn.Linear(3, n_out)).double()


def rows(n=12):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return X, torch.randint(2, (n,), generator=generator)


def batch(module=None, **options):
    weight = np.linspace(0.2, 2, 12)
    return RowBatch.of(module or net(), *rows(), weight, **({"loss": CE} | options))


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return 20 * X[:, :5], y / 100


# Dropout needs a rate, and the noise of mini-batches their size: see their own tests.
OWN = ("dropout", "batch_gradient_norm")
WITH_ROWS = [n for n, c in FAMILIES.items() if n not in OWN and needs_rows(Leaf(c(), ()))]
ALL = {name: FAMILIES[name]() for name in WITH_ROWS} | {
    "activation_l1": ActivationL1("1"),
    "decov": DeCov("1"),
    "kl_to_reference": KLToReference(net(seed=1)),
    "kl_reverse": KLToReference(net(seed=1), reverse=True),
    "projections": Jacobian(n_projections=2),
    "gradient_norm": GradientNorm(),
}


@pytest.mark.parametrize("name", ALL)
class TestContract:
    def test_kept(self, name):
        state = torch.get_rng_state()
        check_penalty(ALL[name])
        check_penalty(ALL[name], problem=batch())
        assert torch.equal(torch.get_rng_state(), state)

    def test_kept_on_a_problem(self, name):
        options = Options(loss="cross_entropy", params="all", batch_size=5)
        check_penalty(ALL[name], problem=adapt(net(), Data(*rows()), options))

    def test_clone_and_pickle(self, name):
        there, value = batch(), ALL[name].terms(batch().params, batch())
        for other in (clone(ALL[name]), pickle.loads(pickle.dumps(ALL[name]))):
            assert other.terms(there.params, there) == value
        assert len(repr(ALL[name])) < 80

    def test_in_a_training_loop(self, name):
        """The estimated coefficient times the gradient is that of the column."""
        module, (X, y) = net(), rows()
        options = {"loss": "cross_entropy", "params": "all"}
        est = ImplicitRegularizationEstimator(module, family=ALL[name], **options).fit(X, y)
        value = est.penalty_(module, X, y)
        assert torch.isfinite(value) and value.ndim == 0
        found = torch.autograd.grad(value, list(module.parameters()), allow_unused=True)
        assert any(g is not None and bool(g.abs().max() > 0) for g in found)
        again = pickle.loads(pickle.dumps(est.penalty_))(module, X, y)
        if not getattr(ALL[name], "stochastic", False):
            there = adapt(module, Data(X, y), Options(**options))
            assert value.item() == pytest.approx(est.penalty_.at(there.params, there).item(), 1e-9)
            assert again.item() == pytest.approx(value.item(), 1e-12)
        with pytest.raises(ValueError, match="give X and y"):
            est.penalty_(module)


def test_dropout_in_a_training_loop():
    module = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 1)).double().eval()
    X, y = rows()
    target = y[:, None].double()
    est = ImplicitRegularizationEstimator(module, family=Dropout(n_draws=400), loss="mse")
    penalty = est.fit(X, target).penalty_
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [penalty(module, X, target).detach() / est.coef_[0] for _ in range(8)]
        assert drawn[0] != drawn[1]  # other masks at each call
    expected = 0.3 / 0.7 * (X.square().mean(0) * module[1].weight.square()).sum()
    error = 4 * torch.stack(drawn).std().item() / 8**0.5
    assert torch.stack(drawn).mean().item() == pytest.approx(expected.item(), abs=error)
    assert error < 0.3 * expected.item()


class TestLinear:
    """Linear models: outputs are X coef."""

    def test_ridge_beside_squared_outputs_jacobian_and_noise(self):
        X, y = diabetes()
        weight = np.linspace(0.5, 2, len(y))
        W = weight / weight.sum()
        alpha, extra, sigma = 0.01, 0.3, 0.5
        gram = (X * W[:, None]).T @ X
        ridge = np.eye(5)  # Jacobian and noise of variance sigma^2 are multiples of l2
        for family, strength, own in (
            (OutputL2(), extra, extra * gram),
            (InputNoise(sigma), 1.0, sigma**2 * ridge),
            (Jacobian(), extra, extra * ridge),
        ):
            theta = np.linalg.solve(gram + own, X.T @ (W * y))
            est = ImplicitRegularizationEstimator(LinearModel(theta), family=family)
            est.fit(X, y, sample_weight=weight)
            np.testing.assert_allclose(est.coef_, [strength], rtol=1e-10)
        theta = np.linalg.solve((1 + extra) * gram + alpha * np.eye(5), X.T @ (W * y))
        est = ImplicitRegularizationEstimator(LinearModel(theta), family=L2() + OutputL2())
        est.fit(X, y, sample_weight=weight)
        np.testing.assert_allclose(est.coef_, [alpha, extra], rtol=1e-9)

    @pytest.mark.parametrize("classes", [2, 3])
    def test_label_smoothing_of_logistic_regression(self, classes):
        X, y = diabetes()
        codes = np.digitize(y, np.quantile(y, np.arange(1, classes) / classes))
        eps, lam = 0.1, 0.01
        shares = (1 - eps) * np.eye(classes)[codes] + eps / classes
        size = 1 if classes == 2 else classes

        def objective(theta):
            t = torch.tensor(theta, requires_grad=True)
            z = torch.from_numpy(X) @ t.reshape(size, 5).T
            z = torch.cat([torch.zeros_like(z), z], 1) if size == 1 else z
            loss = nn.functional.cross_entropy(z, torch.from_numpy(shares))
            value = loss + lam * t.square().sum()
            (slope,) = torch.autograd.grad(value, t)
            return value.item(), slope.numpy()

        found = minimize(objective, np.zeros(5 * size), jac=True, options={"gtol": 1e-11})
        model = LogisticRegression(fit_intercept=False).fit(X, codes)
        model.coef_ = found.x.reshape(size, 5)
        est = ImplicitRegularizationEstimator(model, family=L2() + LabelSmoothing()).fit(X, codes)
        np.testing.assert_allclose(est.coef_, [lam, eps], rtol=1e-6)


def enumerated(loss, X, theta, intercept, y, q):
    """Mean loss over all masks of the features, less the loss."""
    total = np.zeros(len(X))
    for mask in itertools.product([0, 1], repeat=X.shape[1]):
        kept = sum(mask)
        chance = q ** (len(mask) - kept) * (1 - q) ** kept
        total += chance * loss((X * mask / (1 - q)) @ theta + intercept, y)
    return np.mean(total - loss(X @ theta + intercept, y))


class TestLinearDropout:
    LOSSES = {
        "squared_error": lambda z, y: (z - y) ** 2,
        "log_loss": lambda z, y: np.logaddexp(0, z) - y * z,
        "poisson": lambda z, y: np.exp(z) - y * z,
        "gamma": lambda z, y: z + y * np.exp(-z),
    }

    @pytest.mark.parametrize("q", [0.1, 0.5, 0.8])
    @pytest.mark.parametrize("name", LOSSES)
    def test_is_the_mean_over_all_masks(self, name, q):
        X, y = diabetes()
        y = (y > 1.4).astype(float) if name == "log_loss" else y
        theta, intercept = np.array([1.0, -2.0, 0.3, 0.0, 4.0]) / 3, 0.2
        given = {"squared_error": "squared_error", "log_loss": "log_loss"}.get(name, name)
        model = LinearModel(theta, intercept, loss=given)
        problem = adapt(model, Data(X, y), Options())
        leaf = Dropout(q).leaves(problem.params, problem)[0]
        value = leaf.penalty.terms(problem.params, problem)["dropout"].item()
        assert Dropout(q).terms(problem.params, problem)["dropout"].item() == value
        expected = enumerated(self.LOSSES[name], X, theta, intercept, y, q)
        assert value == pytest.approx(expected, rel=1e-10)
        check_penalty(Dropout(q), problem=problem)

    def test_squared_error_is_the_closed_form(self):
        X, y = diabetes()
        theta, q = np.linspace(-1, 1, 5), 0.3
        problem = adapt(LinearModel(theta), Data(X, y), Options())
        exact = q / (1 - q) * (np.mean(X**2, axis=0) * theta**2).sum()
        for family in (Dropout(q), DropoutQuadratic(q)):
            (value,) = family.terms(problem.params, problem).values()
            assert value.item() == pytest.approx(exact, rel=1e-10)

    def test_coefficient_of_a_logistic_model_is_one(self):
        X, y = diabetes()
        y, q, lam = (y > 1.4).astype(float), 0.3, 0.01
        masks = [np.array(m) for m in itertools.product([0, 1], repeat=5)]

        def objective(theta):
            value, slope = lam * theta @ theta, 2 * lam * theta
            for mask in masks:
                chance = q ** (5 - mask.sum()) * (1 - q) ** mask.sum()
                features = X * mask / (1 - q)
                z = features @ theta
                value += chance * np.mean(np.logaddexp(0, z) - y * z)
                slope = slope + chance * features.T @ (expit(z) - y) / len(y)
            return value, slope

        theta = minimize(objective, np.zeros(5), jac=True, options={"gtol": 1e-12}).x
        model = LinearModel(theta, loss="log_loss")
        est = ImplicitRegularizationEstimator(model, family=L2() + Dropout(q)).fit(X, y)
        np.testing.assert_allclose(est.coef_, [lam, 1], rtol=1e-6)

    def test_wager(self):
        X, y = diabetes()
        theta, q = np.linspace(-1, 1, 5), 0.3
        y = (y > 1.4).astype(float)
        problem = adapt(LinearModel(theta, loss="log_loss"), Data(X, y), Options())
        p = expit(X @ theta)
        expected = q / (1 - q) / 2 * np.mean(p * (1 - p) * (X**2 @ theta**2))
        value = DropoutQuadratic(q).terms(problem.params, problem)["dropout_quadratic"]
        assert value.item() == pytest.approx(expected, rel=1e-10)
        model = LinearModel(theta / 100, loss="log_loss")  # where it is exact
        problem = adapt(model, Data(X, y), Options())
        small = [f(q).terms(problem.params, problem) for f in (Dropout, DropoutQuadratic)]
        one, other = (next(iter(terms.values())).item() for terms in small)
        assert one == pytest.approx(other, rel=1e-3)

    def test_wide_margins(self):
        X, y = 40 * diabetes()[0], np.ones(442)
        theta, q = np.linspace(-1, 1, 5), 0.4
        problem = adapt(LinearModel(theta, loss="log_loss"), Data(X, y), Options())
        value = Dropout(q).terms(problem.params, problem)["dropout"].item()
        expected = enumerated(self.LOSSES["log_loss"], X, theta, 0.0, y, q)
        assert value == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(
        ("model", "family", "text"),
        [
            (Ridge(), Dropout(), "which has no rate p"),
            (LinearModel(np.ones(5), loss="huber"), Dropout(0.2), "use DropoutQuadratic"),
            (Ridge(), Mixup(), "Expected a torch module or skorch net .* for mixup, got Ridge"),
            (Ridge(), PathNorm(), "got a linear model, whose path norm is l2"),
        ],
        ids=["rate", "loss", "mixup", "paths"],
    )
    def test_what_linear_models_do_not_have(self, model, family, text):
        X, y = diabetes()
        with pytest.raises(ValueError, match=text):
            ImplicitRegularizationEstimator(model.fit(X, y), family=family).fit(X, y)


class TestLosses:
    """``batch.losses`` is the loss of training, row by row."""

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize(
        "loss",
        [
            nn.CrossEntropyLoss(),
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]).double()),
            nn.CrossEntropyLoss(ignore_index=1),
            nn.CrossEntropyLoss(reduction="sum"),
        ],
        ids=["plain", "classes", "ignored", "sum"],
    )
    def test_mean_is_the_loss(self, loss, weighted):
        weight = np.linspace(0.2, 2, 12) if weighted else None
        options = Options(loss=loss, params="all", batch_size=5)
        problem = adapt(net(), Data(*rows(), weight), options)
        batches = list(problem.row_batches(problem.params))
        total = sum(float((b.weight * b.losses()).sum()) for b in batches)
        mean = total / sum(b.total_weight for b in batches)
        assert mean == pytest.approx(problem.gradient().loss, rel=1e-12)

    @pytest.mark.parametrize("name", ["squared_error", "log_loss", "poisson", "gamma", "huber"])
    def test_of_linear_models(self, name):
        X, y = diabetes()
        y = (y > 1.4).astype(float) if name == "log_loss" else y
        model = LinearModel(np.linspace(-1, 1, 5), 0.1, loss=name)
        problem = adapt(model, Data(X, y, np.linspace(0.2, 2, len(y))), Options())
        (b,) = problem.row_batches({n: t.requires_grad_() for n, t in problem.params.items()})
        mean = (b.weight * b.losses()).sum() / b.total_weight
        assert mean.item() == pytest.approx(problem.gradient().loss, rel=1e-12)
        slopes = torch.autograd.grad(mean, list(problem.params.values()))
        for own, g in zip(slopes, problem.gradient().value.values(), strict=True):
            torch.testing.assert_close(own, g, rtol=1e-10, atol=1e-12)

    def test_labels_of_any_numbers(self):
        X, y = rows()
        options = Options(loss="cross_entropy", params="all")
        one, other = (adapt(net(), Data(X, labels), options) for labels in (y, 3 + 2 * y))
        for name in ("label_smoothing", "input_noise", "mixup"):
            family = FAMILIES[name]()
            assert family.terms(one.params, one) == family.terms(other.params, other)

    def test_a_loss_that_is_a_mean(self):
        X, y = rows()
        mean = lambda output, target: nn.functional.cross_entropy(output, target)  # noqa: E731
        est = ImplicitRegularizationEstimator(net(), family=InputNoise(), loss=mean, params="all")
        with pytest.raises(ValueError, match="one number for each of 12 rows .*unreduced"):
            est.fit(X, y)
        with pytest.raises(ValueError, match="one number per row, got .*not reduced"):
            InputNoise().rows(batch(loss=nn.CrossEntropyLoss()))
        with pytest.raises(ValueError, match="Expected a loss for this penalty.*loss=..."):
            InputNoise().rows(batch(loss=None))


def functional(module):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = module[0], module[2]

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    return Functional()


class TestBadInput:
    @pytest.mark.parametrize(
        ("family", "text"),
        [
            (InputNoise(sigma=0.0), "sigma of InputNoise to be a finite number > 0"),
            (InputNoise(n_draws=0), "n_draws of InputNoise to be an integer >= 1"),
            (Mixup(alpha=-1), "alpha of Mixup"),
            (Jacobian(n_projections=0), "n_projections of Jacobian"),
            (Sharpness(rho=0), "rho of Sharpness"),
            (HessianTrace(n_draws=0.5), "n_draws of HessianTrace"),
            (DropoutQuadratic(q=1), "q of DropoutQuadratic"),
            (KLToReference("net"), "model of KLToReference to be a torch module, got 'net'"),
            (DeCov(3), "layer of DeCov to be the name of a layer, got 3"),
            (ActivationL1("2x"), "got '2x'. Did you mean '2'"),
            (DeCov("tanh"), r"Expected a layer among \['0', '1', '2'\]"),
            (KLToReference(net(n_out=3)), r"reference of shape \(12, 2\), got \(12, 3\)"),
        ],
        ids=lambda v: v[:30] if isinstance(v, str) else type(v).__name__,
    )
    def test_parameters(self, family, text):
        options = {"loss": "cross_entropy", "params": "all"}
        est = ImplicitRegularizationEstimator(net(), family=family, **options)
        with pytest.raises(ValueError, match=text):
            est.fit(*rows())

    @pytest.mark.parametrize(
        ("module", "text"),
        [
            (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), "got .*BatchNorm1d"),
            (functional(net()), "not affine in its inputs.*name its functions as modules"),
        ],
        ids=["norm", "functional"],
    )
    def test_no_path_norm(self, module, text):
        with pytest.raises(ValueError, match=text):
            PathNorm().rows(RowBatch.of(module.double().eval(), rows()[0]))
        assert not any(m._forward_hooks for m in module.modules())

    def test_labels_for_smoothing(self):
        with pytest.raises(ValueError, match="each 0 to 1"):
            LabelSmoothing().rows(RowBatch.of(net(), rows()[0], torch.full((12,), 2)))
        with pytest.raises(ValueError, match="add up to one"):
            LabelSmoothing().rows(RowBatch.of(net(), rows()[0], torch.ones(12, 2).double()))

    def test_integers_have_no_derivative(self):
        class Embedded(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(5, 2)

            def forward(self, x):
                return self.table(x).sum(1)

        there = RowBatch.of(Embedded(), torch.ones(12, 3).long(), rows()[1], loss=CE)
        for family in (Jacobian(), InputNoise(), DropoutQuadratic()):
            with pytest.raises(ValueError, match="floating-point numbers .* got integers alone"):
                family.rows(there)

    OUTSIDE = net(seed=3)

    @pytest.mark.parametrize(
        ("value", "error", "text"),
        [
            (lambda b: torch.ones(b.n_rows).double(), AssertionError, "does not change with"),
            (
                lambda b: TestBadInput.OUTSIDE(b.inputs).sum(1),
                AssertionError,
                "outside of the prob",
            ),
            (
                lambda b: b.inputs.mul_(2).sum() + b.outputs.sum(1),
                AssertionError,
                "wrote to the par",
            ),
            (lambda b: torch.ones(b.n_rows).long(), TypeError, "floating-point type for every row"),
            (
                lambda b: b.outputs.sum(1) / 0 * 0,
                ValueError,
                "Expected finite values for every row",
            ),
            (lambda b: b.outputs.sum(0), TypeError, "one number for each of 12 rows"),
        ],
        ids=["constant", "outside", "in_place", "integers", "nan", "number"],
    )
    def test_check_penalty_finds(self, value, error, text):
        class Wrong(Penalty):
            def rows(self, batch):
                return {"wrong": value(batch)}

        with pytest.raises(error, match=text):
            check_penalty(Wrong())

    @pytest.mark.parametrize(
        ("value", "error", "text"),
        [
            (lambda w: torch.linalg.matrix_rank(w), TypeError, "rank has no gradient"),
            (lambda w: torch.linalg.matrix_rank(w).double(), AssertionError, "such as a rank"),
            (lambda w: w.detach().add_(0.0).sum(), AssertionError, "by autograd"),
            (lambda w: w.data.mul_(2).sum(), AssertionError, "wrote to the parameters"),
        ],
        ids=["integer", "rank", "detached", "in_place"],
    )
    def test_check_penalty_finds_on_weights(self, value, error, text):
        class Wrong(Penalty):
            def terms(self, params, problem):
                return {"wrong": value(params["w"])}

        with pytest.raises(error, match=text):
            check_penalty(Wrong(), {"w": torch.randn(3, 2).double()})

    @pytest.mark.parametrize(
        ("function", "error", "text"),
        [
            (
                lambda p: p["weight"].sum(),
                ValueError,
                r"'mine' .* \['coef'\], got KeyError: 'weight'",
            ),
            (lambda p: np.sum(np.square(p["coef"])), TypeError, "'mine' .* of torch"),
            (lambda p, batch: p["bias"] * batch.outputs[:, 0], ValueError, "KeyError: 'bias'"),
        ],
        ids=["name", "numpy", "rows"],
    )
    def test_functions_with_the_usual_mistakes(self, function, error, text):
        X, y = np.eye(3), np.arange(3.0)
        model = Ridge().fit(X, y)
        with pytest.raises(error, match=text):
            ImplicitRegularizationEstimator(model, family={"mine": function}).fit(X, y)


class TestRandom:
    def test_others_do_not_change_the_numbers(self):
        problem = adapt(net(), Data(*rows()), Options(loss="cross_entropy", batch_size=5))
        alone, both = (
            columns_of_leaves(family.leaves(problem.params, problem), problem.params, problem)
            for family in (InputNoise(), Jacobian(n_projections=1) + InputNoise())
        )
        for name, tensor in problem.params.items():
            (own,), (other,) = (found[-1].columns(name, tensor) for found in (alone, both))
            torch.testing.assert_close(own, other, rtol=1e-13, atol=0)

    def test_projections_are_unbiased(self):
        there = batch()
        exact = Jacobian().terms(there.params, there)["jacobian"].item()
        many = Jacobian(n_projections=3000).terms(there.params, there)["jacobian"].item()
        assert many == pytest.approx(exact, rel=0.05)

    def test_signs_that_are_as_many_as_weights(self):
        there = batch()
        exact = HessianTrace(None).terms(there.params, there)["hessian_trace"].item()
        other = HessianTrace(None, random_state=5).terms(there.params, there)
        assert other["hessian_trace"].item() == pytest.approx(exact, rel=1e-12)

    def test_single_precision_callables(self):
        family = {
            "l2": lambda params: sum(p.square().sum() for p in params.values()),
            "own": lambda params, batch: (batch.outputs @ params["2.weight"]).square().sum(1),
        }
        X, y = rows()
        found = [
            ImplicitRegularizationEstimator(m, family=family, loss="cross_entropy").fit(x, y).coef_
            for m, x in ((net(), X), (net().float(), X.float()))
        ]
        np.testing.assert_allclose(found[1], found[0], rtol=1e-3)
