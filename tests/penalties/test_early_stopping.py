"""How many gradient steps a fit is worth: against descent itself, closed forms, profiles."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import X_DIABETES, Y_DIABETES
from numpy.testing import assert_allclose
from scipy.optimize import minimize_scalar
from scipy.stats import t as student_t
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties import EarlyStopping


def problem(hessian):
    """What the family asks of a Problem."""
    return SimpleNamespace(hessian=lambda: hessian, params={"coef": torch.zeros(len(hessian))})


def draw(p=6, condition=10.0, seed=0):
    """Curvature S = X'X/n with eigenvalues between 1 and ``1 / condition``, and X'y/n."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.standard_normal((p, p)))[0]
    return vectors * np.geomspace(1, 1 / condition, p) @ vectors.T, rng.standard_normal(p)


def stopped(S, moment, lr, n_steps):
    """Weights and minus the gradient after descent from zero, in closed form."""
    s, vectors = np.linalg.eigh(S)
    residual = np.exp(-2 * n_steps * s) if lr is None else np.exp(n_steps * np.log1p(-2 * lr * s))
    projected = vectors.T @ moment
    return vectors @ ((1 - residual) / s * projected), vectors @ (2 * residual * projected)


def endpoints(counts, lr, **options):
    """One endpoint for each number of steps, all on the same features."""
    S, _ = draw(**options)
    rng = np.random.default_rng(7)
    pairs = [stopped(S, rng.standard_normal(len(S)), lr, count) for count in counts]
    thetas, targets = (np.column_stack(parts) for parts in zip(*pairs, strict=True))
    return thetas, targets, [problem(2 * S)] * len(counts)


def test_gradient_descent_itself():
    S, moment = draw()
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    S_, moment_ = torch.as_tensor(S), torch.as_tensor(moment)
    optimizer = torch.optim.SGD([theta], lr=0.02)
    for _ in range(137):
        optimizer.zero_grad()
        (theta @ S_ @ theta - 2 * moment_ @ theta).backward()
        optimizer.step()
    weights = theta.detach().numpy()[:, None]
    target = 2 * (moment - S @ weights[:, 0])[:, None]
    found = EarlyStopping(lr=0.02).solve(weights, target, [problem(2 * S)])
    assert_allclose(found.coef, [137], rtol=1e-10)
    assert found.term_names == ("steps",)
    assert_allclose(found.fitted, target, rtol=1e-9)
    assert_allclose(found.penalty.gradient(weights), target, rtol=1e-9)


def solved(model, X, y, **options):
    """What the family finds at a fitted scikit-learn model."""
    own = adapt(model, Data(X, y, None), Options())
    theta, gradient = (np.asarray(t["coef"]) for t in (own.params, own.gradient().value))
    return EarlyStopping(**options).solve(theta[:, None], -gradient[:, None], [own])


def test_a_linear_model_with_an_intercept():
    X, y = X_DIABETES + 3.0, Y_DIABETES
    model = LinearRegression().fit(X, y)
    centered, theta = X - X.mean(axis=0), np.zeros(10)
    lr = 0.2 / np.linalg.eigvalsh(2 * centered.T @ centered / len(y))[-1]
    for _ in range(80):
        theta -= 2 * lr * centered.T @ (centered @ theta - y) / len(y)
    model.coef_, model.intercept_ = theta, y.mean() - X.mean(axis=0) @ theta
    assert_allclose(solved(model, X, y, lr=lr).coef, [80], rtol=1e-8)


def test_what_ridge_is_worth():
    # Where coef is large against s, the flow leaves that penalty at time 1 / (2 coef).
    X = np.random.default_rng(0).standard_normal((200, 5))
    y = X @ np.ones(5)
    worth = [solved(Ridge(alpha, fit_intercept=False).fit(X, y), X, y) for alpha in (2e3, 2e5)]
    assert_allclose(worth[1].coef, [1 / (2 * 1e3)], rtol=1e-3)
    assert worth[0].coef[0] > 50 * worth[1].coef[0]


def test_a_loss_that_is_not_quadratic():
    model = LogisticRegression().fit(X_DIABETES, Y_DIABETES > Y_DIABETES.mean())
    own = adapt(model, Data(X_DIABETES, Y_DIABETES > Y_DIABETES.mean(), None), Options())
    with pytest.raises(ValueError, match="quadratic|squared"):
        EarlyStopping().solve(np.ones((10, 1)), np.ones((10, 1)), [own])


@pytest.mark.parametrize("n_steps", [1, 2, 30, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("lr", [0.1, 1e-4, None])
def test_steps_are_recovered(n_steps, lr):
    # The condition puts the slowest direction where something is left after so many steps.
    time = n_steps * (lr or 1e-4)
    thetas, targets, problems = endpoints(
        [time if lr is None else n_steps], lr, condition=max(10, 2 * time)
    )
    found = EarlyStopping(lr=lr).solve(thetas, targets, problems)
    assert_allclose(found.coef, [time if lr is None else n_steps], rtol=1e-6)
    assert (found.conf_int[:, 0] <= found.coef).all()
    assert (found.coef <= found.conf_int[:, 1]).all()
    assert found.term_names == ("time" if lr is None else "steps",)


def test_only_the_product_is_identified_in_the_flow():
    thetas, targets, problems = endpoints([1000], 1e-6)
    found = EarlyStopping().solve(thetas, targets, problems)
    assert_allclose(found.coef, [1e-3], rtol=1e-5)


def test_each_endpoint_its_own():
    counts = np.random.default_rng(0).integers(450, 501, 20)
    thetas, targets, problems = endpoints(counts, 0.005)
    found = EarlyStopping(lr=0.005, shared=False).solve(thetas, targets, problems)
    assert_allclose(found.coef, counts, rtol=1e-9)
    assert found.term_names[3] == "steps[3]"
    assert (found.rank, found.n_unknowns, found.conf_int.shape) == (20, 20, (20, 2))
    assert_allclose(found.fitted, targets, rtol=1e-7)


def test_each_endpoint_its_own_curvature():
    pairs = [draw(seed=seed) for seed in range(5)]
    fits = [stopped(S, moment, 0.05, 60) for S, moment in pairs]
    thetas, targets = (np.column_stack(parts) for parts in zip(*fits, strict=True))
    problems = [problem(2 * S) for S, _ in pairs]
    found = EarlyStopping(lr=0.05).solve(thetas, targets, problems)
    assert_allclose(found.coef, [60], rtol=1e-10)
    assert_allclose(found.fitted, targets, rtol=1e-8)


def noisy(n_endpoints, seed=3):
    thetas, targets, problems = endpoints([60] * n_endpoints, 0.05)
    noise = np.random.default_rng(seed).standard_normal(targets.shape)
    return thetas, targets + 0.1 * np.abs(targets).mean() * noise, problems


@pytest.mark.parametrize("n_endpoints", [1, 3, 8])
def test_is_the_global_minimum(n_endpoints):
    thetas, targets, problems = noisy(n_endpoints)
    s, vectors = np.linalg.eigh(problems[0].hessian() / 2)

    def loss(log_t):
        penalty = s / np.expm1(-np.exp(log_t) * np.log1p(-0.1 * s))
        return np.square(2 * vectors * penalty @ vectors.T @ thetas - targets).sum()

    grid = np.linspace(0, 7, 1000)
    near = grid[np.argmin([loss(u) for u in grid])]
    expected = minimize_scalar(loss, (near - 0.1, near), options={"xtol": 1e-10}).x
    found = EarlyStopping(lr=0.05).solve(thetas, targets, problems)
    assert_allclose(np.log(found.coef), [expected], atol=1e-6)


def test_interval_by_misfit():
    thetas, targets, problems = noisy(1)
    family = EarlyStopping(lr=0.05)
    found = family.solve(thetas, targets, problems, confidence_level=0.9)
    step, log_t = 1e-4, np.log(found.coef[0])
    s, vectors = np.linalg.eigh(problems[0].hessian() / 2)

    def fitted(u):
        penalty = s / np.expm1(-np.exp(u) * np.log1p(-0.1 * s))
        return 2 * penalty * (vectors.T @ thetas[:, 0])

    slope = (fitted(log_t + step) - fitted(log_t - step)) / (2 * step)
    rss = np.square(targets - found.fitted).sum()
    half = student_t.ppf(0.95, 5) * np.sqrt(rss / 5 / (slope @ slope))
    assert_allclose(np.log(found.conf_int[0]), [log_t - half, log_t + half], rtol=1e-6)
    assert "misfit" in found.notes[0]
    assert "does not cover the noise in the labels" in found.notes[0]


def test_interval_by_leaving_out_endpoints():
    thetas, targets, problems = noisy(30)
    family = EarlyStopping(lr=0.05)
    found = family.solve(thetas, targets, problems)
    without = [
        np.log(family.solve(*(np.delete(a, k, 1) for a in (thetas, targets)), problems[1:]).coef[0])
        for k in range(30)
    ]
    spread = np.sqrt(29 / 30 * np.square(without - np.log(found.coef)).sum())
    half = student_t.ppf(0.975, 29) * spread
    assert_allclose(np.diff(np.log(found.conf_int[0])) / 2, [half], rtol=0.05)
    assert "other data sets" in found.notes[0]


def test_interval_of_resamples_is_their_spread():
    thetas, targets, problems = noisy(30)
    family = EarlyStopping(lr=0.05)
    found = family.solve(thetas, targets, problems, sampling="resamples", confidence_level=0.9)
    alone = EarlyStopping(lr=0.05, shared=False).solve(thetas, targets, problems).coef
    half = student_t.ppf(0.95, 29) * np.std(np.log(alone), ddof=1)
    assert_allclose(np.diff(np.log(found.conf_int[0])) / 2, [half], rtol=1e-9)
    assert_allclose(found.coef, family.solve(thetas, targets, problems).coef)
    assert "resample" in found.notes[0]


def test_interval_of_one_data_set_is_that_of_the_misfit():
    thetas, targets, problems = noisy(6)
    found = EarlyStopping(lr=0.05).solve(thetas, targets, problems, sampling="one data set")
    others = EarlyStopping(lr=0.05).solve(thetas, targets, problems)
    assert "misfit" in found.notes[0]
    assert not np.allclose(found.conf_int, others.conf_int, rtol=1e-3)
    assert_allclose(found.coef, others.coef)


@pytest.mark.parametrize("n_endpoints", [1, 6])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_targets_that_no_number_of_steps_explains(n_endpoints, size):
    _, thetas, problems = endpoints([60] * n_endpoints, 0.05)
    targets = size * np.random.default_rng(5).standard_normal(thetas.shape)
    found = EarlyStopping().solve(thetas, targets, problems)
    assert not np.isnan(found.coef).any()
    assert np.linalg.norm(targets - found.fitted) <= np.linalg.norm(targets)
    if np.isfinite(found.coef[0]):
        assert found.conf_int[0, 0] <= found.coef[0] <= found.conf_int[0, 1]


def test_flat_directions():
    S = np.diag([1.0, 0.5, 0.0])
    left = (1 - 0.2 * np.diag(S)) ** 25
    moment = np.array([1.0, -2.0, 0.7])
    theta = np.append((1 - left[:2]) / np.diag(S)[:2] * moment[:2], 25 * 0.2 * moment[2])
    found = EarlyStopping(lr=0.1).solve(
        theta[:, None], 2 * (left * moment)[:, None], [problem(2 * S)]
    )
    assert_allclose(found.coef, [25], rtol=1e-12)


def test_no_finite_number_of_steps():
    thetas, targets, problems = endpoints([50], 0.05)
    found = EarlyStopping(lr=0.05).solve(thetas, -targets, problems)
    assert np.isinf(found.coef).all()
    assert np.isnan(found.conf_int).all()
    assert (found.rank, found.dependent) == (0, ("steps",))
    assert not found.fitted.any()
    assert not found.penalty.matrix_.any()
    assert "no finite number" in found.notes[-1]


class TestStart:
    def test_a_linear_model_from_ones(self):
        X, y = X_DIABETES + 3.0, Y_DIABETES
        model = LinearRegression().fit(X, y)
        centered, theta = X - X.mean(axis=0), np.ones(10)
        lr = 0.2 / np.linalg.eigvalsh(2 * centered.T @ centered / len(y))[-1]
        for _ in range(100):
            theta -= 2 * lr * centered.T @ (centered @ theta - y) / len(y)
        model.coef_, model.intercept_ = theta, y.mean() - X.mean(axis=0) @ theta
        found = solved(model, X, y, lr=lr, start={"coef": np.ones(10)})
        assert_allclose(found.coef, [100], rtol=1e-8)
        assert abs(solved(model, X, y, lr=lr).coef[0] - 100) > 0.01
        rows = 2 * centered.T @ (y - y.mean() - centered @ theta) / len(y)
        assert_allclose(found.penalty.gradient(theta), rows, rtol=1e-6)
        assert found.penalty.value(np.ones(10)) == 0
        step = 1e-3 * np.arange(10)
        ahead, behind = (found.penalty.value(theta + s * step) for s in (1, -1))
        assert_allclose(ahead - behind, 2 * step @ rows, rtol=1e-6)
        assert float(found.penalty({"coef": torch.tensor(theta)})) == pytest.approx(
            found.penalty.value(theta)
        )

    def test_a_module_that_is_linear_in_float32(self):
        X = torch.tensor(X_DIABETES / X_DIABETES.std(), dtype=torch.float32)
        y = torch.tensor(Y_DIABETES / 100, dtype=torch.float32)[:, None]
        module = torch.nn.Linear(10, 1)
        start = {name: t.detach().clone() for name, t in module.named_parameters()}
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for _ in range(40):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(module(X), y).backward()
            optimizer.step()
        est = ImplicitRegularizationEstimator(
            module, family=EarlyStopping(lr=0.05, start=start), loss="mse", params="all"
        ).fit(X, y)
        assert_allclose(est.coef_, [40], rtol=1e-4)
        found = est.recover(X, y)
        assert found.method == "closed form"
        assert found.recovered.distance < 1e-5 < found.ablated.distance

    @pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
    def test_curvature_of_a_network(self, loss):
        rng = torch.Generator().manual_seed(0)
        X, w = torch.randn(20, 3, generator=rng).double(), torch.rand(20, generator=rng).double()
        y = torch.randint(4, (20,), generator=rng)
        y = y if loss == "cross_entropy" else torch.randn(20, 4, generator=rng).double()
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 4))
        options = Options(loss=loss, params="all", batch_size=7)
        own = adapt(module.double(), Data(X, y, w), options)

        def outputs(*tensors):
            named = dict(zip(own.params, tensors, strict=True))
            return torch.func.functional_call(module, named, (X,))

        jacobian = torch.autograd.functional.jacobian(outputs, tuple(own.params.values()))
        J = torch.cat([part.reshape(20, 4, -1) for part in jacobian], dim=2).detach()
        inner = torch.eye(4).double().expand(20, 4, 4) * 2 / 4
        if loss == "cross_entropy":
            p = outputs(*own.params.values()).softmax(1)
            inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        expected = torch.einsum("n,nki,nkl,nlj->ij", w / w.sum(), J, inner, J)
        assert_allclose(own.gauss_newton(), expected.detach(), atol=1e-14)


class TestBadInput:
    def test_without_problems(self):
        with pytest.raises(ValueError, match="needs the curvature"):
            EarlyStopping().solve(np.ones((2, 1)), np.ones((2, 1)))

    def test_start(self):
        with pytest.raises(ValueError, match="no step was taken"):
            EarlyStopping().solve(np.zeros((2, 1)), np.ones((2, 1)), [problem(np.eye(2))])

    @pytest.mark.parametrize("lr", [0.6, 0.0, -1.0])
    def test_step_size(self, lr):
        with pytest.raises(ValueError, match="lr"):
            EarlyStopping(lr=lr).solve(np.ones((2, 1)), np.ones((2, 1)), [problem(2 * np.eye(2))])

    @pytest.mark.parametrize(
        ("start", "words"),
        [
            (np.ones(2), "start must be|Expected start"),
            ({"weight": np.ones(2)}, "missing"),
            ({"coef": np.ones(3)}, r"shape \(2,\)"),
            ({"coef": [np.nan, 1.0]}, "finite start"),
            ({"coef": np.ones(2)}, "no step was taken"),
        ],
        ids=["array", "name", "shape", "nan", "endpoint"],
    )
    def test_where_the_training_began(self, start, words):
        with pytest.raises(ValueError, match=words):
            EarlyStopping(start=start).solve(
                np.ones((2, 1)), np.ones((2, 1)), [problem(2 * np.eye(2))]
            )

    def test_networks(self):
        X, y = torch.randn(9, 3), torch.randn(9, 1)
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
        start = {name: t.detach() + 1 for name, t in module.named_parameters()}
        for params, family, words in [
            ("all", EarlyStopping(), "EarlyStopping.start"),
            ("weights", EarlyStopping(start=start), "params='all'"),
        ]:
            est = ImplicitRegularizationEstimator(module, family=family, loss="mse", params=params)
            with pytest.raises(ValueError, match=words):
                est.fit(X, y)
        assert repr(EarlyStopping(start=start)).endswith("start=<dict>)")
