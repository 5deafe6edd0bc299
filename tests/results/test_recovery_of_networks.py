"""Networks retrained with the estimated penalty: from several starts, on a copy, in float64."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from emulated_device import emulated, there
from joblib import parallel_config
from sklearn.datasets import load_iris
from sklearn.neural_network import MLPRegressor
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties import L2, Dropout, GradientNorm, SmoothL1
from sklearn_implicitreg.results.recovery import certificates, minimize, networks
from sklearn_implicitreg.results.recovery.certificates import (
    certificate,
    check_bounded,
    smallest_eigenvalue,
)
from sklearn_implicitreg.results.recovery.matching import hidden_layers, matched
from sklearn_implicitreg.results.recovery.objective import Objective

N, P, H = 60, 4, 3


def rows(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, P))
    y = np.sin(X.sum(axis=1, keepdims=True)) + 0.3 * rng.standard_normal((N, 1))
    return torch.tensor(X), torch.tensor(y)


def net(activation=nn.Tanh, seed=1, width=H, n_out=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(P, width), activation(), nn.Linear(width, n_out)).double()


def squares(parameters):
    return sum(p.square().sum() for p in parameters)


def trained(module, objective, steps=3000):
    """L-BFGS of torch to stationarity on a loss with its penalty."""
    how = dict(max_iter=steps, line_search_fn="strong_wolfe")
    how |= dict(tolerance_change=0, tolerance_grad=1e-11)
    optimizer = torch.optim.LBFGS(module.parameters(), **how)

    def closure():
        optimizer.zero_grad()
        value = objective(module)
        value.backward()
        return value

    optimizer.step(closure)
    optimizer.zero_grad()
    return module


def fitted(module, X, y, **options):
    options = dict(loss="mse", family="l2", params="all") | options
    return ImplicitRegularizationEstimator(module, **options).fit(X, y)


@pytest.fixture(scope="module")
def l2_net():
    X, y = rows()
    module = trained(net(), lambda m: mse_loss(m(X), y) + 0.02 * squares(m.parameters()))
    return fitted(module, X, y), X, y


@pytest.fixture
def brief(monkeypatch):
    """A budget that L alone, which has no minimum nearby, does not use for long."""
    monkeypatch.setattr(minimize, "BUDGET", 200)


class Slow(nn.Module):
    """A module of one's own, whose order of layers only its forward knows."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(H, 1)
        self.first = nn.Linear(P, H)

    def forward(self, x):
        return self.last(nn.functional.softplus(self.first(x)))


class TestComesBack:
    def test_bare_module(self, l2_net, brief):
        est, X, y = l2_net
        before = {n: p.detach().clone() for n, p in est.model.named_parameters()}
        state = torch.get_rng_state()
        found = est.recover(X, y, n_draws=2)
        runs = found.runs[found.runs["arm"] == "recovered"]
        assert runs["back"].all()
        assert (runs["start"] > 0.02).all()
        assert (runs["distance"] < 1e-6).all()
        assert (runs["function"] < 1e-6).all()
        assert found.is_minimizer
        assert "Proposition A" in " ".join(str(found).split())
        assert not found.runs[found.runs["arm"] == "ablated"]["back"].any()
        text = " ".join(str(found).split())
        assert "L alone has no minimum near the model: without R 1, without R 2 ended" in text
        assert "lower L + R" not in text
        for name, p in est.model.named_parameters():
            assert torch.equal(p, before[name])
            assert p.grad is None
        assert torch.equal(torch.get_rng_state(), state)
        again = est.recover(X, y, n_draws=2, arms=("recovered",))
        assert again.runs.equals(runs)
        np.testing.assert_array_equal(again.recovered.coef, found.recovered.coef)

    def test_numbers_by_hand(self, l2_net, brief):
        est, X, y = l2_net
        found = est.recover(X, y, start="trained", arms=("ablated",))
        assert found.recovered is None
        assert len(found.runs) == 1
        own, values = net(), found.ablated.coef
        torch.nn.utils.vector_to_parameters(torch.tensor(values), own.parameters())
        model = torch.nn.utils.parameters_to_vector(est.model.parameters()).detach().numpy()
        row = found.runs.iloc[0]
        assert row["loss"] == pytest.approx(mse_loss(own(X), y).item(), rel=1e-10)
        penalty = est.coef_[0] * squares(own.parameters()).item()
        assert row["penalty"] == pytest.approx(penalty, rel=1e-9)
        far = np.linalg.norm(values - model) / np.linalg.norm(model)
        assert row["distance"] == pytest.approx(far, rel=1e-9)
        output = est.model(X)
        away = ((own(X) - output).square().mean().sqrt() / output.std(correction=0)).item()
        assert row["function"] == pytest.approx(away, rel=1e-9)

    @pytest.mark.parametrize("family", [SmoothL1(delta=1e-2), L2() + SmoothL1(delta=1e-2)], ids=str)
    def test_penalties_with_a_kink(self, family):
        X, y = rows()
        coefs = [0.02, 0.01]

        def objective(m):
            terms = family.terms(dict(m.named_parameters()), None).values()
            return mse_loss(m(X), y) + sum(c * t for c, t in zip(coefs, terms, strict=False))

        found = fitted(trained(net(), objective), X, y, family=family)
        found = found.recover(X, y, n_draws=2, arms=("recovered",))
        runs = found.runs[found.runs["arm"] == "recovered"]
        assert (runs["distance"] < 1e-6).all()

    def test_penalty_on_the_weights_alone(self):
        """Biases are trained as well, without a penalty."""
        X, y = rows()

        def objective(m):
            return mse_loss(m(X), y) + 0.02 * squares(p for p in m.parameters() if p.ndim > 1)

        est = fitted(trained(net(), objective), X, y, params="auto")
        found = est.recover(X, y, n_draws=1, arms=("recovered",))
        assert found.recovered.distance < 1e-6
        assert len(found.index) == sum(p.numel() for p in est.model.parameters())

    def test_classes_whose_outputs_may_shift(self):
        """The last bias is free up to a constant, which no probability sees."""
        X, y = load_iris(return_X_y=True)
        X, y = torch.tensor(X - X.mean(0)), torch.tensor(y)

        def objective(m):
            return cross_entropy(m(X), y) + 0.01 * squares(p for p in m.parameters() if p.ndim > 1)

        module = trained(net(n_out=3), objective)
        found = fitted(module, X, y, loss="cross_entropy", params="auto")
        found = found.recover(X, y, noise=0.3, n_draws=2, arms=("recovered",))
        runs = found.runs[found.runs["arm"] == "recovered"]
        assert (runs["function"] < 1e-6).all()
        assert (runs["distance"] > 1e-3).any()
        text = " ".join(str(found).split())
        assert "Flat" in text
        assert "The weights say nothing here" in text

    def test_float32_of_skorch(self, brief):
        X, y = (t.numpy().astype(np.float32) for t in rows())
        how = dict(max_epochs=1500, lr=0.2, train_split=None, verbose=0, batch_size=-1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = NeuralNetRegressor(Slow, optimizer__weight_decay=0.05, **how).fit(X, y)
        est = ImplicitRegularizationEstimator(model, family="weight_decay").fit(X, y)
        found = est.recover(X, y, n_draws=1)
        assert found.recovered.distance < 0.05 * found.ablated.distance
        assert model.module_.first.weight.dtype == torch.float32

    def test_classifier_of_skorch(self, brief):
        X, y = load_iris(return_X_y=True)
        X = (X - X.mean(0)).astype(np.float32)
        how = dict(max_epochs=300, lr=0.3, train_split=None, verbose=0, batch_size=-1)
        module = nn.Sequential(nn.Linear(P, 3), nn.Softmax(dim=1))
        model = NeuralNetClassifier(module, optimizer__weight_decay=0.05, **how).fit(X, y)
        found = ImplicitRegularizationEstimator(model, family="weight_decay").fit(X, y)
        assert found.recover(X, y, n_draws=1, arms=("recovered",)).runs["back"].all()

    def test_perceptron_of_scikit_learn(self, brief):
        X, y = (t.numpy() for t in rows())
        how = dict(hidden_layer_sizes=(3,), solver="lbfgs", max_iter=5000, random_state=0)
        model = MLPRegressor(alpha=1.0, tol=1e-12, max_fun=10**5, **how).fit(X, y.ravel())
        found = ImplicitRegularizationEstimator(model).fit(X, y.ravel())
        found = found.recover(X, y.ravel(), n_draws=1)
        assert found.method == "minimized"
        assert found.recovered.distance < 0.05 < 0.1 * found.ablated.distance

    def test_fresh_start_and_workers(self, l2_net):
        est, X, y = l2_net
        how = dict(start="fresh", n_draws=2, arms=("recovered",))
        found = est.recover(X, y, **how)
        assert (found.runs["start"] > 0.3).all()
        with parallel_config(backend="threading"):  # workers start in seconds
            shared = est.recover(X, y, **how, n_jobs=2)
        assert shared.runs["distance"].to_numpy() == pytest.approx(
            found.runs["distance"].to_numpy(), abs=1e-6
        )

    def test_random_state_gives_the_starts(self, l2_net, brief):
        est, X, y = l2_net
        how = dict(n_draws=1, arms=("recovered",))
        first = est.recover(X, y, **how).runs["start"][0]
        other = fitted(est.model, X, y, random_state=5).recover(X, y, **how).runs["start"][0]
        assert first != other
        state = np.random.RandomState(5)
        before = state.get_state()[1].copy()
        est = fitted(est.model, X, y)
        est.random_state = state
        assert est.recover(X, y, **how).runs["start"][0] == other
        np.testing.assert_array_equal(state.get_state()[1], before)


@pytest.mark.parametrize(("lr", "n_epochs"), [(0.01, 8), (0.03, 25)])
def test_averaged_weights(lr, n_epochs):
    """The mean over the steps of SGD, as a penalty on the way from where they began."""
    X, y = rows()
    module, order = net(), torch.Generator().manual_seed(0)

    def stepped(optimizer, batch=slice(None)):
        optimizer.zero_grad()
        mse_loss(module(X[batch]), y[batch]).backward()
        optimizer.step()

    for _ in range(20):
        stepped(torch.optim.SGD(module.parameters(), lr=0.02))
    begun = torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    center = {name: p.detach().clone() for name, p in module.named_parameters()}
    averaged = torch.optim.swa_utils.AveragedModel(module)
    for _ in range(n_epochs):
        for batch in torch.randperm(N, generator=order).split(15):
            stepped(torch.optim.SGD(module.parameters(), lr=lr), batch)
            averaged.update_parameters(module)
    est = fitted(averaged.module, X, y, family=L2(center=center))
    assert est.r2_ >= 0.85
    found = est.recover(X, y, start="trained", arms=("recovered",), force=True)
    way, again = found.model.coef - begun, found.recovered.coef - begun
    sizes = np.linalg.norm(way), np.linalg.norm(again)
    assert way @ again >= 0.985 * np.prod(sizes)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)


class TestDropout:
    def test_masks_are_fixed(self):
        """L + R is the mean loss over the masks of the family, the same at all weights."""
        X, y = rows()
        module = nn.Sequential(nn.Linear(P, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 1))
        problem = adapt(module.double(), Data(X, y), Options(loss="mse", params="all"))
        penalty = Dropout(n_draws=3)
        est = fitted(module, X, y, family=penalty)
        objective = Objective(problem, est.penalty_)
        coef, theta = est.coef_[0], objective.theta + 0.1
        params = {
            n: torch.tensor(t)
            for n, t in zip(objective.params, split(objective, theta), strict=True)
        }
        expected = float(problem.at(params).gradient().loss)
        expected += coef * float(penalty.terms(params, problem)["dropout"])
        assert objective.value(theta) == pytest.approx(expected, rel=1e-10)
        slope = objective.gradient(theta)[1]
        along = np.random.default_rng(0).standard_normal(len(theta))
        ends = [objective.value(theta + s * along) for s in (1e-5, -1e-5)]
        assert slope @ along == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
        ahead, behind = (objective.gradient(theta + s * along)[1] for s in (1e-5, -1e-5))
        np.testing.assert_allclose(
            objective.product(theta, along), (ahead - behind) / 2e-5, atol=1e-6
        )


def split(objective, theta):
    sizes = [t.numel() for t in objective.params.values()]
    parts = np.split(theta, np.cumsum(sizes)[:-1])
    return [part.reshape(t.shape) for part, t in zip(parts, objective.params.values(), strict=True)]


class TestMatching:
    @pytest.mark.parametrize(
        ("activation", "signs"), [(nn.Tanh, True), (nn.ReLU, False), (nn.Sigmoid, False)]
    )
    def test_permuted_units_are_found(self, activation, signs):
        X, y = rows()
        module = nn.Sequential(
            *net(activation, width=5)[:2], nn.Linear(5, 4), activation(), nn.Linear(4, 2)
        ).double()
        y = torch.cat([y, -y], dim=1)
        objective = Objective(adapt(module, Data(X, y), Options(loss="mse", params="all")), None)
        layers = hidden_layers(objective, 0)
        assert [layer.signs for layer in layers] == [signs, signs]
        theta, rng = objective.theta.copy(), np.random.default_rng(0)
        w1, b1, w2, b2, w3, b3 = (part.copy() for part in split(objective, theta))
        for _ in range(2):
            order, flips = rng.permutation(5), rng.choice([-1.0, 1.0] if signs else [1.0], 5)
            w1, b1, w2 = w1[order] * flips[:, None], b1[order] * flips, w2[:, order] * flips
            order = rng.permutation(4)
            w2, b2, w3 = w2[order], b2[order], w3[:, order]
        moved = np.concatenate([part.ravel() for part in (w1, b1, w2, b2, w3, b3)])
        assert np.linalg.norm(moved - theta) > 0.5
        np.testing.assert_allclose(matched(objective, layers, moved), theta, atol=1e-14)

    def test_layers_that_cannot_be_permuted(self):
        """Normalized over halves of the units: two layers, but no symmetry."""
        X, y = rows()
        module = nn.Sequential(
            nn.Linear(P, 4), nn.GroupNorm(2, 4), nn.Tanh(), nn.Linear(4, 1)
        ).double()
        with torch.no_grad():
            module[1].weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        objective = Objective(adapt(module, Data(X, y), Options(loss="mse")), None)
        assert hidden_layers(objective, 0) == []


def certificate_of(est, X, y):
    problem = adapt(est.model, Data(X, y), Options(loss=est.loss, params=est.params))
    objective = Objective(problem, est.penalty_)
    return certificate(objective, objective.theta, objective.scale(), 0)


class Shifted(nn.Module):
    """Logits of every position, of classes in dimension 1, with a shift that all classes share."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Linear(P, 3).double()
        self.shift = nn.Linear(P, 1).double()

    def forward(self, x):
        return (self.logits(x) + self.shift(x)).movedim(-1, 1)


@pytest.mark.parametrize("places", [(7,), (2, 5)], ids=["sequences", "images"])
def test_functions_of_sequences_and_images(places):
    """What all classes of a position share is no part of the function."""
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(20, *places, P, generator=rng, dtype=torch.float64)
    y = torch.randint(0, 3, (20, *places), generator=rng)
    problem = adapt(Shifted(), Data(X, y), Options(loss="cross_entropy")).whole()
    params = dict(problem.params)
    outputs, weights = problem.outputs(params)
    logits = nn.functional.linear(X, params["logits.weight"], params["logits.bias"]).detach()
    expected = (logits - logits.mean(-1, keepdim=True)).movedim(-1, 1)
    np.testing.assert_allclose(outputs, expected.flatten(1).numpy(), atol=1e-12)
    assert weights.shape == (20,)


@pytest.mark.parametrize(("start", "end"), [(0.3, 0.3), (0.9, 1.0)], ids=["saddle", "minimum"])
def test_newton_does_not_climb(monkeypatch, start, end):
    """The smaller gradient next to a maximum of x^4 / 4 - x^2 / 2 is not progress."""
    stays = SimpleNamespace(x=np.array([start, 0.0]))
    monkeypatch.setattr(minimize, "minimize", lambda *given, **how: stays)
    double_well = SimpleNamespace(
        gradient=lambda x: (x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1] ** 2, x * [x[0] ** 2 - 1, 2]),
        product=lambda x, v: v * [3 * x[0] ** 2 - 1, 2],
    )
    found = minimize.minimized(double_well, stays.x, 1.0)
    np.testing.assert_allclose(found.theta, [end, 0.0], atol=1e-9)


def test_rays_cost_little():
    """Of many tensors: a few vectors of weights at a time, and no ray beyond where it rises."""
    params = {str(k): torch.ones(100, 10) for k in range(200)}
    theta, n = np.ones(200_000), 0

    def value(there):
        nonlocal n
        n += 1
        return float(there @ there)

    many = SimpleNamespace(params=params, theta=theta, value=value, penalty_gradient=np.zeros_like)
    tracemalloc.start()
    check_bounded(many, theta / np.linalg.norm(theta))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * theta.nbytes
    assert n == 1 + 2 * (2 + 200 + 1 + 2 * 199)


def test_network_on_a_device(l2_net, brief):
    """The same numbers as on the CPU, in float64 there."""
    est, X, y = l2_net
    how = dict(n_draws=1, arms=("recovered",))
    expected = est.recover(X, y, **how)
    with emulated():
        found = fitted(there(est.model), X, y).recover(X, y, **how)
    assert found.smallest_eigenvalue == pytest.approx(expected.smallest_eigenvalue, rel=1e-9)
    np.testing.assert_allclose(found.recovered.coef, expected.recovered.coef, rtol=1e-6)
    assert found.is_minimizer


class TestCertificates:
    def test_lanczos_equals_dense(self):
        X, y = rows()
        module = net(width=60)
        objective = Objective(adapt(module, Data(X, y), Options(loss="mse", params="all")), None)
        p = len(objective.theta)
        assert p > 200
        hessian = np.array([objective.product(objective.theta, unit) for unit in np.eye(p)])
        expected = np.linalg.eigvalsh(hessian)
        lowest, largest, vector, converged = smallest_eigenvalue(objective, objective.theta, 0)
        assert converged
        assert expected[0] < 0
        assert lowest == pytest.approx(expected[0], rel=1e-4)
        assert largest == pytest.approx(expected[-1], rel=1e-2)
        assert vector @ hessian @ vector == pytest.approx(lowest, rel=1e-4)

    @pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
    @pytest.mark.parametrize("lowest", [1e-6, 1e-2])
    def test_flat_hessian(self, scale, lowest):
        """A quarter of the eigenvalues zero, next to small ones: found, in few products."""
        p, rng, n = 400, np.random.default_rng(0), 0
        basis = np.linalg.qr(rng.standard_normal((p, p)))[0]
        values = scale * np.concatenate([np.zeros(100), np.geomspace(lowest, 1, 300)])
        hessian = (basis * values) @ basis.T

        def product(theta, vector):
            nonlocal n
            n += 1
            return hessian @ vector

        flat = SimpleNamespace(product=product)
        value, largest, vector, converged = smallest_eigenvalue(flat, np.zeros(p), 0)
        assert n <= p
        assert largest == pytest.approx(scale, rel=1e-9)
        assert abs(value) <= 1e-9 * scale
        assert vector @ hessian @ vector == pytest.approx(value, abs=1e-12 * scale)
        assert converged

    @pytest.mark.parametrize("hidden", [-1e-6, 1e-6])
    @pytest.mark.parametrize("kept", [1000, 60])
    def test_small_eigenvalue_next_to_large_ones(self, monkeypatch, hidden, kept):
        """The sign and four digits of one that is a millionth of the largest."""
        monkeypatch.setattr(certificates, "_KEPT", kept)
        p, rng = 400, np.random.default_rng(0)
        basis = np.linalg.qr(rng.standard_normal((p, p)))[0]
        hessian = (basis * [hidden, *np.geomspace(3e-6 if kept > p else 1e-3, 1, p - 1)]) @ basis.T
        curved = SimpleNamespace(product=lambda theta, vector: hessian @ vector)
        value, _, vector, converged = smallest_eigenvalue(curved, np.zeros(p), 0)
        assert value == pytest.approx(hidden, rel=1e-4)
        assert converged
        assert abs(vector @ basis[:, 0]) == pytest.approx(1.0, abs=1e-6)

    @pytest.mark.parametrize("hidden", [-1e-8, 1e-8])
    def test_no_minimum_from_a_bound(self, monkeypatch, hidden):
        """At rest, with an eigenvalue among many small ones that few vectors do not reach."""
        monkeypatch.setattr(certificates, "_KEPT", 20)
        monkeypatch.setattr(certificates, "_PRODUCTS", 200)
        p, rng = 400, np.random.default_rng(0)
        basis = np.linalg.qr(rng.standard_normal((p, p)))[0]
        values = np.concatenate([[hidden], np.geomspace(2e-8, 1, p - 1)])
        hessian = (basis * values) @ basis.T
        objective = SimpleNamespace(
            gradient=lambda theta: (0.0, np.zeros(p)),
            product=lambda theta, vector: hessian @ vector,
            problem=None,
            penalty=None,
            by_differences=False,
        )
        found = certificate(objective, np.zeros(p), 1.0, 0)
        assert found.at_rest
        assert found.lowest > 0
        assert not found.converged
        assert found.is_minimizer is None
        assert "is only an upper bound" in found.sentences()[0]

    @pytest.mark.parametrize(
        ("hidden", "exact", "minimizer", "words"),
        [
            (1e-7, 1e-8, True, "Proposition A"),
            (1e-7, 1e-5, None, "zero to its accuracy of 1e-05): whether the model is a minimum"),
            (-1e-7, 1e-5, False, "A saddle"),
            (1e-12, 1e-16, False, "L + R does not change along a direction"),
        ],
        ids=["positive", "unknown", "negative", "zero"],
    )
    def test_sign_to_its_accuracy(self, monkeypatch, hidden, exact, minimizer, words):
        """Between rounding and the tolerance of Lanczos, by the residual of the direction."""
        hessian = np.diag([hidden, 0.5, 1.0])
        direction = np.array([1.0, exact / 0.5, 0.0])
        objective = SimpleNamespace(
            gradient=lambda theta: (0.0, np.zeros(3)),
            product=lambda theta, vector: hessian @ vector,
            problem=None,
            penalty=None,
            by_differences=False,
        )
        given = (hidden, 1.0, direction, True)
        monkeypatch.setattr(certificates, "smallest_eigenvalue", lambda *args: given)
        found = certificate(objective, np.zeros(3), 1.0, 0)
        assert found.is_minimizer is minimizer
        assert words in found.sentences()[0]
        objective.by_differences = True
        rough = certificate(objective, np.zeros(3), 1.0, 0)
        assert rough.is_minimizer is (False if hidden < -1e-9 else None)

    def test_saddle_is_called_one(self):
        """All weights zero: a stationary point of a tanh net, whose Hessian has both signs."""
        X, y = rows()
        module = net()
        with torch.no_grad():
            for p in module.parameters():
                p.zero_()
            module[2].bias.fill_(float(y.mean()))
            module[0].bias.fill_(1e-3)
        est = fitted(module, X, y, family={"b": lambda params: params["2.bias"].square().sum()})
        found = est.recover(X, y, n_draws=1, force=True, arms=("recovered",))
        assert found.smallest_eigenvalue < 0
        assert not found.is_minimizer
        assert "A saddle, not a minimum" in " ".join(str(found).split())

    @pytest.mark.parametrize(
        ("params", "least"), [("all", 0.04), ("weight", 0.0)], ids=["strongly", "convex"]
    )
    def test_convex_models(self, params, least):
        """A linear layer: one minimum, and away from it proposition D bounds the distance."""
        X, y = rows()
        classes = (y[:, 0] > 0).long()
        module, other = nn.Linear(P, 2).double(), nn.Linear(P, 2).double()

        def objective(m):
            penalized = [p for n, p in m.named_parameters() if params in ("all", n)]
            return cross_entropy(m(X), classes) + 0.02 * squares(penalized)

        est = fitted(trained(module, objective), X, classes, loss="cross_entropy", params=params)
        found = certificate_of(est, X, classes)
        assert found.least == pytest.approx(least, rel=1e-6)
        if least:
            assert "Proposition B" in found.sentences()[0]
            off = fitted(other, X, classes, loss="cross_entropy")
            off.penalty_ = est.penalty_
            away = certificate_of(off, X, classes)
            assert "Proposition D" in away.sentences()[0]
            gap = [
                (p - q).detach().flatten()
                for p, q in zip(module.parameters(), other.parameters(), strict=True)
            ]
            assert away.gradient / away.least > float(torch.cat(gap).norm())
        else:  # both biases may shift
            assert "Flat" in found.sentences()[0]

    def test_convex_with_a_free_bias(self):
        X, y = rows()
        module = nn.Linear(P, 1).double()
        module = trained(
            module, lambda m: nn.functional.huber_loss(m(X), y) + 0.02 * squares([m.weight])
        )
        est = fitted(module, X, y, loss="huber", params="weight")
        assert "Proposition C" in certificate_of(est, X, y).sentences()[0]

    @pytest.mark.parametrize("family", ["l2", SmoothL1(delta=1e-2)], ids=str)
    def test_no_claim_without_its_reasons(self, family):
        X, y = rows()
        module = net() if family == "l2" else nn.Linear(P, 1).double()
        assert np.isnan(certificate_of(fitted(module, X, y, family=family), X, y).least)

    def test_distance_to_the_minimum_is_estimated(self, l2_net):
        """Weights off the minimum: the Newton step against the distance that was made."""
        est, X, y = l2_net
        module = net()
        module.load_state_dict(est.model.state_dict())
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.002 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        off = fitted(module, X, y)
        off.penalty_ = est.penalty_
        found = off.recover(X, y, n_draws=1, arms=("recovered",))
        text = " ".join(str(found).split())
        assert "Estimated distance to the minimum" in text
        estimate = float(text.split("Estimated distance to the minimum: ")[1].split()[0])
        assert estimate == pytest.approx(found.recovered.distance, rel=0.15)

    def test_penalty_on_the_gradient(self):
        """Its own gradient is all that is known: products by differences."""
        X, y = rows()
        module = net()
        est = fitted(module, X, y, family=GradientNorm())
        problem = adapt(module, Data(X, y), Options(loss="mse", params="all"))
        objective = Objective(problem, est.penalty_)
        assert objective.by_differences
        theta, along = objective.theta, np.random.default_rng(0).standard_normal(19)
        ends = [objective.value(theta + s * along) for s in (1e-5, -1e-5)]
        slope = objective.gradient(theta)[1]
        assert slope @ along == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


class TestBadInput:
    @pytest.mark.parametrize(
        ("activation", "loss"), [(nn.Tanh, "mse"), (nn.ReLU, "mse"), (nn.Identity, "huber")]
    )
    def test_no_lower_bound(self, activation, loss):
        X, y = rows()
        module = net(activation)
        est = fitted(module, X, y, loss=loss)
        sign = -abs(est.coef_[0])
        leaves = tuple((leaf, (sign,)) for leaf, _ in est.penalty_.leaves)
        est.penalty_ = type(est.penalty_)(leaves, est.penalty_.tensors)
        with pytest.raises(ValueError, match="L \\+ R with a lower bound, got one that falls"):
            est.recover(X, y, force=True)

    @pytest.mark.parametrize("verdict", ["out of family", "not constant"])
    def test_verdicts(self, l2_net, verdict):
        est, X, y = l2_net
        est = fitted(est.model, X, y)
        est.verdict_ = verdict
        with pytest.raises(ValueError, match=f"verdict '{verdict}'.*force=True"):
            est.recover(X, y)
        found = est.recover(X, y, n_draws=1, arms=("recovered",), force=True)
        assert f"the verdict of the fit is '{verdict}'" in " ".join(str(found).split())

    def test_layers_without_a_start(self):
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(P, dtype=torch.float64))
                self.last = nn.Linear(P, 1).double()

            def forward(self, x):
                return self.last(torch.tanh(x * self.scale))

        X, y = rows()
        module = trained(Own(), lambda m: mse_loss(m(X), y) + 0.02 * squares(m.parameters()))
        est = fitted(module, X, y)
        with pytest.raises(ValueError, match="reset_parameters.* got Own"):
            est.recover(X, y, start="fresh")
        assert est.recover(X, y, n_draws=1, arms=("recovered",)).runs["back"].all()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"start": "cold"},
            {"noise": 0.0},
            {"noise": float("nan")},
            {"n_draws": 0},
            {"arms": ()},
            {"arms": "recovered"},
            {"arms": ("recovered", "other")},
            {"arms": ("recovered", "recovered")},
            {"force": 1},
            {"n_jobs": 0},
        ],
        ids=str,
    )
    def test_parameters(self, l2_net, wrong):
        est, X, y = l2_net
        with pytest.raises(ValueError, match="Expected .* of recover to be"):
            est.recover(X, y, **wrong)


def test_tables(l2_net, brief):
    est, X, y = l2_net
    found = est.recover(X, y, n_draws=1)
    text = str(found)
    for part in ("Back:", "1 of 1", "perturbed by 10 %", "200 gradients", "without R 1"):
        assert part in text
    assert max(map(len, text.splitlines())) == 79
    assert list(found.to_frame().columns) == ["model", "recovered", "ablated"]
    assert "recovered 1" in found._repr_html_()


def test_a_run_that_ends_lower(monkeypatch):
    """A model in the higher well of (x^2 - 1)^2 + 0.2 x, and one start over the hill."""
    X, y = torch.ones(4, 1).double(), torch.zeros(4, 1).double()

    class Well(nn.Module):
        def __init__(self, x):
            super().__init__()
            self.x = nn.Parameter(torch.tensor([x], dtype=torch.float64))

        def forward(self, rows):
            return ((self.x**2 - 1) ** 2 + 0.2 * self.x + 1) * rows

    x = max(r.real for r in np.roots([4, 0, -4, 0.2]) if abs(r.imag) < 1e-9)
    est = fitted(Well(x), X, y, loss=lambda output, target: output.mean(), family="l2")
    starts = iter([np.array([x + 0.1]), np.array([-0.7])])
    monkeypatch.setattr(networks, "start_of", lambda *args: next(starts))
    text = " ".join(str(est.recover(X, y, n_draws=2, arms=("recovered",), force=True)).split())
    assert "Ended elsewhere at a lower L + R than the model's (1.19" in text
    assert ": recovered 2 (lowest 0.7" in text
    assert "L alone" not in text
