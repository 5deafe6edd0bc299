"""Dropout as a penalty: closed forms, and paths whose columns share noise with their target."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch import NeuralNetRegressor
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator, equations
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.exceptions import CollinearTermsWarning, ModelStateWarning
from sklearn_implicitreg.penalties import Dropout, WeightDecay
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.regression.inference import infer
from sklearn_implicitreg.regression.solve import solve
from sklearn_implicitreg.regression.system import System, merge, projected, r_factor
from sklearn_implicitreg.trajectory import record

Q = 0.3
TRUE = [[1.0], [-2.0], [0.5]]


def rows(n=40):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    y = X @ torch.tensor(TRUE, dtype=torch.float64)
    return X, y + 0.3 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def linear(q=Q):
    """Linear model with input dropout, at weights that are no minimum."""
    net = nn.Sequential(nn.Dropout(q), nn.Linear(3, 1, bias=False)).double()
    net[1].weight.data = torch.tensor([[1.0, -1.5, 0.7]], dtype=torch.float64)
    return net


def made(net=None, **options):
    X, y = rows()
    return adapt(net or linear(), Data(X, y), Options(**({"loss": "mse"} | options)))


def closed_form(params, X, q=Q):
    """``q / (1 - q) sum_j mean(x_j^2) theta_j^2`` for squared error."""
    (weight,) = params.values()
    return q / (1 - q) * (X.square().mean(0) * weight.square()).sum()


def column(penalty, problem):
    return penalty.full_gradient(problem.params, problem)["dropout"]


class TestLinear:
    def errors(self, n_draws, q=None):
        """Relative errors of the gradient over many seeds."""
        problem, (X, _) = made(), rows()
        weight = problem.params["1.weight"]
        exact = 2 * Q / (1 - Q) * X.square().mean(0) * weight
        found = [
            column(Dropout(q, n_draws=n_draws, random_state=seed), problem)["1.weight"]
            for seed in range(40)
        ]
        return torch.stack(found) / exact - 1

    def test_mean_is_the_closed_form_and_errors_fall_as_the_root_of_the_draws(self):
        few, many = self.errors(2), self.errors(32)
        for errors in (few, many):
            size = errors.std(0) / len(errors) ** 0.5
            assert (errors.mean(0).abs() < 4 * size).all()
        ratio = few.square().mean().sqrt() / many.square().mean().sqrt()
        assert float(ratio) == pytest.approx(4, rel=0.2)

    def test_rate_of_the_layers_or_a_given_one(self):
        own = column(Dropout(), made())["1.weight"]
        torch.testing.assert_close(own, column(Dropout(Q), made(linear(0.5)))["1.weight"])
        assert float((own - column(Dropout(0.5), made())["1.weight"]).abs().max()) > 1
        assert float(column(Dropout(0.0), made())["1.weight"].abs().max()) == 0

    def test_value_is_the_closed_form(self):
        X, _ = rows()
        problem = made()
        value = Dropout(n_draws=1000).terms(problem.params, problem)["dropout"]
        assert float(value) == pytest.approx(float(closed_form(problem.params, X)), rel=0.03)

    def test_coefficient_at_an_endpoint(self):
        X, y = rows()
        net = linear()
        second = X.T @ X / len(X)  # minimum of L + R: (S + q / (1 - q) diag S) theta = X'y / n
        own = second + Q / (1 - Q) * second.diag().diag()
        net[1].weight.data = torch.linalg.solve(own, X.T @ y / len(X)).T.clone()
        fit = ImplicitRegularizationEstimator(net, family=Dropout(n_draws=1000), loss="mse")
        assert fit.fit(X, y).coef_[0] == pytest.approx(1, abs=0.03)


class TestGradient:
    NET = nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.4), nn.Linear(4, 2), nn.Dropout(0.2)
    )

    def problem(self):
        torch.manual_seed(0)
        return made(nn.Sequential(*self.NET, nn.Linear(2, 1)).double(), params="all")

    def test_against_differences_with_the_same_masks(self):
        problem, penalty, step = self.problem(), Dropout(n_draws=2), 1e-6
        slope = column(penalty, problem)
        for name, tensor in problem.params.items():
            along = torch.linspace(-1, 1, tensor.numel(), dtype=torch.float64).view_as(tensor)
            ahead, behind = (
                penalty.terms(problem.params | {name: tensor + s * along}, problem)["dropout"]
                for s in (step, -step)
            )
            expected = float(ahead - behind) / (2 * step)
            assert float((slope[name] * along).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-9)

    def test_terms_are_differentiable_once(self):
        problem = self.problem()
        params = {n: t.clone().requires_grad_() for n, t in problem.params.items()}
        value = Dropout().terms(params, problem)["dropout"]
        slope = column(Dropout(), problem)
        for name, g in zip(params, torch.autograd.grad(value, params.values()), strict=True):
            torch.testing.assert_close(g, slope[name])

    def test_skorch_nets(self):
        X, y = (t.float() for t in rows())
        net = NeuralNetRegressor(linear(0.4).float(), max_epochs=1, train_split=None, verbose=0)
        problem = adapt(net.fit(X, y), Data(X, y), Options())
        exact = 0.8 / 0.6 * X.square().mean(0) * problem.params["1.weight"]
        found = column(Dropout(n_draws=100), problem)["1.weight"]
        assert float((found - exact).abs().max()) < 0.2

    def test_restricted_to_some_tensors(self):
        problem = self.problem()
        families = (Dropout(), Dropout().on(r"^3\."), Dropout().per("layer"))
        whole, part, layers = (Design.at(family, problem) for family in families)
        assert layers.term_names == ("dropout[0]", "dropout[3]", "dropout[5]")
        for name in problem.params:
            expected = whole.columns(name) * name.startswith("3.")
            torch.testing.assert_close(part.columns(name), expected)
            torch.testing.assert_close(layers.columns(name).sum(1), whole.columns(name)[:, 0])

    @pytest.mark.parametrize(
        "layer",
        [
            nn.LSTM(3, 4, num_layers=2, dropout=0.5, batch_first=True),
            nn.TransformerEncoderLayer(3, 1, 4, dropout=0.5, batch_first=True),
        ],
        ids=["recurrent", "attention"],
    )
    def test_layers_that_have_a_rate_among_other_things(self, layer):
        class Sequence(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.head = layer, nn.LazyLinear(1)

            def forward(self, x):
                out = self.layer(x[:, None] * torch.arange(1, 3, dtype=x.dtype)[:, None])
                return self.head((out[0] if isinstance(out, tuple) else out).mean(1))

        torch.manual_seed(0)
        net = Sequence().double()
        net(rows()[0])
        problem = made(net)
        slope = column(Dropout(), problem)
        assert max(float(g.abs().max()) for g in slope.values()) > 0
        nothing = column(Dropout(0.0), problem)
        assert max(float(g.abs().max()) for g in nothing.values()) == 0


class TestDraws:
    def test_same_state_same_masks(self):
        problem = made()
        first, again, other = (
            column(Dropout(random_state=s), problem)["1.weight"] for s in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_nothing_of_the_user_changes(self):
        net = linear()
        problem = made(net)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        column(Dropout(0.5), problem)
        Dropout(0.5).terms(problem.params, problem)
        assert torch.equal(torch.get_rng_state(), before[0])
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])
        assert random.getstate() == before[2]
        assert net.training
        assert net[0].training
        assert net[0].p == Q
        assert not problem.module[0].training

    def test_clone_pickle_and_repr(self):
        penalty = Dropout(0.25, n_draws=8, random_state=3)
        for copy in (clone(penalty), pickle.loads(pickle.dumps(penalty))):
            assert copy.get_params() == penalty.get_params()
        assert repr(penalty) == "Dropout(n_draws=8, q=0.25, random_state=3)"


class TestRefusals:
    @pytest.mark.parametrize(
        ("params", "words"),
        [
            ({"q": 1.0}, "q of Dropout to be None, a finite number >= 0 and < 1 or 'fit'"),
            ({"q": -0.1}, "q of Dropout to be None, a finite number >= 0 and < 1 or 'fit'"),
            ({"n_draws": 0}, "n_draws of Dropout to be an integer >= 1"),
            ({"n_draws": 1.5}, "n_draws of Dropout to be an integer >= 1"),
            ({"random_state": None}, "random_state of Dropout to be "),
        ],
    )
    def test_parameters(self, params, words):
        with pytest.raises(ValueError, match=words):
            column(Dropout(**params), made())

    def test_no_dropout_layer(self):
        with pytest.raises(ValueError, match=r"Expected a model with dropout layers"):
            column(Dropout(), made(nn.Linear(3, 1).double()))

    def test_a_loss_with_masks(self):
        problem = made(module_mode="train", random_state=0)
        with pytest.raises(ValueError, match="module_mode='auto' or 'eval'"):
            column(Dropout(), problem)

    def test_scikit_learn_models(self):
        from sklearn.linear_model import Ridge

        X, y = (t.numpy() for t in rows())
        problem = adapt(Ridge().fit(X, y.ravel()), Data(X, y.ravel()), Options())
        with pytest.raises(ValueError, match="with dropout layers, got Ridge"):
            column(Dropout(), problem)


class TestInstruments:
    """Columns with noise: least squares is too small by a known factor, instruments are not."""

    def arrays(self, seed=0, m=4000):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=(m, 2))
        truth[:, 1] += 0.5 * truth[:, 0]
        design, instruments = (truth + rng.normal(size=(m, 2)) for _ in range(2))
        return instruments, design, truth @ [2.0, -1.0] + rng.normal(size=m)

    def system(self, arrays, n_clusters=20):
        Z, D, t = arrays
        parts = [slice(i, None, n_clusters) for i in range(n_clusters)]
        return System(
            ("a", "b"),
            tuple(str(i) for i in range(n_clusters)),
            tuple(r_factor(np.column_stack([Z[p], D[p]]), t[p]) for p in parts),
            tuple(len(t[p]) for p in parts),
            instrumented=True,
        )

    def test_coefficients_by_the_formula(self):
        Z, D, t = arrays = self.arrays()
        system = self.system(arrays)
        expected = np.linalg.solve(Z.T @ D, Z.T @ t)
        solution = solve(system.r_factor, system.n_equations)
        np.testing.assert_allclose(solution.coef, expected, rtol=1e-12)
        assert solution.rss == pytest.approx(np.square(t - D @ expected).sum(), rel=1e-12)
        products = Z.T @ D
        for coef in (expected, np.array([0.3, -2.0])):
            found = system.explained_by_instruments(coef, [0, 1])
            assert found == pytest.approx(coef @ products @ coef, rel=1e-10)
            alone = products[1, 1] - products[1, 0] * products[0, 1] / products[0, 0]
            found = system.explained_by_instruments(coef, [1])
            assert found == pytest.approx(coef[1] ** 2 * alone, rel=1e-10)
        own = system.select(["b"])
        single = solve(own.r_factor, own.n_equations).coef[0]
        assert single == pytest.approx(Z[:, 1] @ t / (Z[:, 1] @ D[:, 1]), rel=1e-12)

    def test_jackknife_by_hand(self):
        Z, D, t = arrays = self.arrays(m=200)
        system = self.system(arrays, 10)
        found = infer(system, solve(system.r_factor, 200))
        coef = np.linalg.solve(Z.T @ D, Z.T @ t)
        left = []
        for i in range(10):
            kept = np.arange(200) % 10 != i
            left.append(np.linalg.solve(Z[kept].T @ D[kept], Z[kept].T @ t[kept]))
        away = np.array(left) - coef
        np.testing.assert_allclose(found.cov, 0.9 * away.T @ away, rtol=1e-8)
        assert found.covariance == "cluster"

    def test_classical_covariance_without_clusters_enough(self):
        Z, D, t = arrays = self.arrays(m=300)
        found = infer(self.system(arrays, 2), solve(self.system(arrays, 2).r_factor, 300))
        coef = np.linalg.solve(Z.T @ D, Z.T @ t)
        back = np.linalg.inv(Z.T @ D)
        expected = np.square(t - D @ coef).sum() / 298 * back @ (Z.T @ Z) @ back.T
        np.testing.assert_allclose(found.cov, expected, rtol=1e-10)

    def test_least_squares_is_too_small_by_the_share_of_noise(self):
        rng = np.random.default_rng(1)
        truth = rng.normal(size=20_000)
        Z, D = (truth + rng.normal(size=20_000) for _ in range(2))
        upper = r_factor(np.column_stack([Z, D]), 3 * truth)
        plain = solve(r_factor(D[:, None], 3 * truth), 20_000).coef[0]
        assert plain == pytest.approx(3 / 2, rel=0.03)
        assert solve(projected(upper), 20_000).coef[0] == pytest.approx(3, rel=0.03)

    def test_an_instrument_without_support(self):
        Z, D, t = self.arrays()
        Z[:, 1] = 0
        solution = solve(projected(r_factor(np.column_stack([Z, D]), t)), len(t))
        assert solution.rank == 1
        assert np.isinf(solution.condition_number)

    def test_r_factors_of_another_width(self):
        with pytest.raises(ValueError, match="for 1 terms with an instrument each"):
            System(("a",), ("all",), (np.eye(2),), (3,), instrumented=True)


def descend(net, X, y, *, lr, n_before, n_steps, every, masks=True):
    """Full-batch gradient descent, with masks or with the closed form in their place."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)

    def step():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(X), y)
        if not masks:
            loss = loss + closed_form(dict(net.named_parameters()), X)
        loss.backward()
        optimizer.step()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net.train(masks)
        for _ in range(n_before):
            step()
        with record(net, optimizer, every=every) as path:
            for _ in range(n_steps):
                step()
    return path.trajectory


def along(net, X, y, path, family, **params):
    options = {"loss": "mse", "mode": "trajectory", "trajectory": path, "window": 10}
    return ImplicitRegularizationEstimator(net, family=family, **(options | params)).fit(X, y)


def least_squares(est):
    """Coefficients of least squares on the columns of a fit by instruments."""
    system = est._equations.system
    both = merge(system.r_factors)[:, system.n_terms :]
    return solve(r_factor(both[:, :-1], both[:, -1]), system.n_equations).coef


class TestPathOfALinearModel:
    CLOSED = {"closed": lambda params: closed_form(params, rows()[0])}

    def test_noisy_columns_and_an_exact_target(self):
        X, y = rows()
        net = linear()
        path = descend(net, X, y, lr=0.05, n_before=0, n_steps=200, every=1, masks=False)
        exact = along(net, X, y, path, self.CLOSED)
        np.testing.assert_allclose(exact.coef_, 1, rtol=1e-9)
        est = along(net, X, y, path, Dropout(n_draws=1))
        truth, noisy = (
            np.concatenate([p.design.columns("1.weight")[:, 0] for p in e._equations.places])
            for e in (exact, est)
        )
        factor = truth @ noisy / (noisy @ noisy)  # share of the noise-free column
        assert factor < 0.95
        np.testing.assert_allclose(least_squares(est), factor, rtol=1e-6)
        assert est.conf_int_[0, 0] < 1 < est.conf_int_[0, 1]
        assert est.coef_[0] == pytest.approx(1, abs=0.05)

    def test_masks_that_the_path_remembers(self):
        X, _ = rows()
        y = 0.3 * X.sum(1, keepdim=True) + 3 * (rows()[1] - X @ rows()[1].new_tensor(TRUE))
        net = linear(0.5)
        path = descend(net, X, y, lr=0.1, n_before=100, n_steps=3000, every=10)
        est = along(net, X, y, path, Dropout(n_draws=3))
        low, high = est.conf_int_[0]
        assert low < 1 < high
        assert high - low < 0.15
        assert est.coef_path_.shape == (300, 1)
        assert "instrumental variables" in str(est.summary())
        # Least squares is too small even without noise in the columns: the path's own remains.
        exact = along(net, X, y, path, {"closed": lambda params: closed_form(params, X, 0.5)})
        assert exact.conf_int_[0, 1] < 1
        assert least_squares(est)[0] < low

    def test_a_rate_of_zero_says_nothing(self):
        X, y = rows()
        net = linear()
        path = descend(net, X, y, lr=0.1, n_before=0, n_steps=40, every=10)
        with pytest.warns(CollinearTermsWarning, match="zero or linearly dependent"):
            est = along(net, X, y, path, Dropout(0.0, n_draws=1))
        assert est.coef_[0] == 0
        assert est.verdict_ in ("no signal", "not identifiable")

    def test_tables_are_refused(self):
        X, y = rows()
        net = linear()
        path = descend(net, X, y, lr=0.1, n_before=0, n_steps=40, every=10)
        est = along(net, X, y, path, Dropout(n_draws=1))
        with pytest.raises(
            ValueError, match="a table of them, got a family with random draws .* use Implicit"
        ):
            equations(est, X, y)

    def test_decay_beside_known_dropout(self):
        X, y = rows()
        net = linear()
        path = descend(net, X, y, lr=0.1, n_before=100, n_steps=1000, every=10)
        est = along(net, X, y, path, WeightDecay() + 1.0 * Dropout(n_draws=1))
        assert est.term_names_ == ["weight_decay"]
        assert est.conf_int_[0, 0] < 0 < est.conf_int_[0, 1]
        assert est._equations.system.instrumented


EPOCHS = {"loss": "cross_entropy", "params": "all", "window": "epoch"}


@pytest.fixture(scope="module")
def trained():
    """Tanh net with dropout .3 by shuffled mini-batches."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(120, 4, generator=generator, dtype=torch.float64)
    y = (X[:, 0] * X[:, 1] + X[:, 2] > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(Q), nn.Linear(16, 2))
        optimizer = torch.optim.SGD(net.double().parameters(), lr=0.2)

        def epoch(path=None):
            for batch in torch.randperm(120).split(30):
                if path is not None:
                    path.batch(batch)
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(X[batch]), y[batch]).backward()
                optimizer.step()
            if path is not None:
                path.epoch()

        for _ in range(200):
            epoch()
        optimizer.param_groups[0]["lr"] = 0.05
        with record(net, optimizer, every=4) as path:
            for _ in range(100):
                epoch(path)
    return net, X, y, path.trajectory


@pytest.fixture(scope="module")
def fitted(trained):
    return along(*trained, Dropout(n_draws=3), **EPOCHS)


class TestPathOfANetwork:
    def test_one_is_inside_the_interval(self, fitted):
        assert fitted.term_names_ == ["dropout", "minibatch"]
        low, high = fitted.conf_int_[0]
        assert low < 1 < high
        assert high - low < 1
        assert least_squares(fitted)[0] < low
        assert np.isfinite(fitted.coef_path_conf_int_).all()

    def test_summary_and_pickle(self, fitted):
        text = str(fitted.summary())
        assert "instrumental variables" in text
        assert "R2, noise removed" in text
        assert str(pickle.loads(pickle.dumps(fitted)).summary()) == text

    def test_what_is_left_is_measured_by_products_of_windows(self, trained):
        net, X, y, path = trained
        est = along(net, X, y, path[:11], Dropout(n_draws=1), **{**EPOCHS, "window": None})
        coef = torch.as_tensor(est.coef_)
        left = torch.stack(
            [
                torch.cat([p.target(n) - p.design.columns(n) @ coef for n in p.problem.params])
                for p in est._equations.places
            ]
        )
        products = left @ left.T
        pairs = ~torch.eye(len(left), dtype=torch.bool)
        signal, whole = est._equations.signal(est.coef_)
        assert signal == pytest.approx(float(products[pairs].mean()), rel=1e-8)
        assert whole == pytest.approx(float(products.mean()), rel=1e-8)

    def test_influence_is_refused(self, fitted):
        with pytest.raises(
            ValueError, match="their influence, got a family with random draws .* from instruments"
        ):
            fitted.influence()

    def test_same_state_same_coefficients(self, trained):
        net, X, y, path = trained
        first, again, other = (
            along(net, X, y, path[:11], Dropout(n_draws=1, random_state=s), **EPOCHS).coef_
            for s in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert first[0] != other[0]


class Noisy(nn.Linear):
    """Draws from the generators of torch and NumPy, also in eval state."""

    def forward(self, x):
        noise = torch.from_numpy(np.random.rand(len(x), 1))
        return super().forward(nn.functional.dropout(x, 0.3)) + noise


@pytest.mark.parametrize("kind", ["dropout", "nested", "noise in eval state"])
def test_gradient_and_losses_have_the_same_masks(kind):
    """What is looked at after the first batch takes no random numbers from the others."""
    if kind == "noise in eval state":
        drawn = replace(made(Noisy(3, 1).double(), batch_size=16), seed=3)
        with pytest.warns(ModelStateWarning, match="random numbers"):
            gradient = drawn.gradient()
    else:
        deep = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(Q), nn.Linear(5, 1)).double()
        net = linear() if kind == "dropout" else nn.Sequential(nn.Dropout(Q), deep)
        [drawn] = Dropout(n_draws=1).masked(made(net, batch_size=16, params="all"))
        gradient = drawn.gradient()
    leaves = {name: t.detach().requires_grad_() for name, t in drawn.params.items()}
    total = weight = 0.0
    for summed in drawn.losses():
        value, mass = summed(leaves)
        total, weight = total + value, weight + mass
    loss = total / weight
    assert gradient.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    expected = torch.autograd.grad(loss, list(leaves.values()))
    for name, own in zip(leaves, expected, strict=True):
        torch.testing.assert_close(gradient.value[name], own, rtol=1e-9, atol=1e-12)
