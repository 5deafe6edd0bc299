"""Penalties of unknown shape: a spline of the size of a weight, and a network."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.optimize
import torch
from scipy.interpolate import BSpline
from sklearn.base import clone
from sklearn.linear_model import Ridge
from torch import nn

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    LinearModel,
    record,
)
from sklearn_implicitreg.inspection import PenaltyShapeDisplay
from sklearn_implicitreg.penalties import Learned, Spline, check_penalty

KNOTS = [0.1, 0.5, 1.2, 2.0]
N_WEIGHTS, N_ROWS = 400, 900
SCALE = 0.01

# Slopes r'(a) of penalties that no other family contains, at weights of size .4.
SLOPES = {
    "log-cosh": lambda a: np.tanh(a / 0.2),
    "log(1 + t^2)": lambda a: 2 * (a / 0.3) / (1 + (a / 0.3) ** 2),
    "scad": lambda a: np.where(a <= 0.2, 0.2, np.maximum(3.7 * 0.2 - a, 0) / 2.7),
    "mcp": lambda a: np.maximum(0.3 - a / 3, 0),
}


def phi(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)]
    return nn.Sequential(*layers)


def problem(slope, noise=0.0, seed=0):
    """A linear model whose gradient is minus that of the penalty, exactly, and a true curve."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N_ROWS, N_WEIGHTS))
    theta = 0.4 * rng.standard_normal(N_WEIGHTS)
    true = SCALE * np.sign(theta) * slope(np.abs(theta))
    target = true + noise**0.5 * np.std(true) * rng.standard_normal(N_WEIGHTS)
    # 2 X'(y - X theta) / n = target
    y = X @ (theta + np.linalg.solve(X.T @ X, target) * N_ROWS / 2)
    return LinearModel(theta, 0.0), X, y, theta, true


def curve(est, theta):
    """Gradient of the fitted penalty at the weights."""
    at = torch.tensor(theta, requires_grad=True)
    est.penalty_({"coef": at}).backward()
    return at.grad.numpy()


def off(found, true):
    return np.linalg.norm(found - true) / np.linalg.norm(true)


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize(("noise", "most"), [(0.0, 0.01), (0.01, 0.05)])
@pytest.mark.parametrize("kind", ["spline", "learned"])
def test_shapes_that_no_family_contains(kind, noise, most, name):
    model, X, y, theta, true = problem(SLOPES[name], noise)
    family = Spline() if kind == "spline" else Learned(phi(), n_starts=2)
    est = ImplicitRegularizationEstimator(model, family=family).fit(X, y)
    assert off(curve(est, theta), true) < most
    if not noise:
        assert est.verdict_ == "supported"
        held_out = est.held_out_r2() if kind == "spline" else est._result.whole[1].held_out[0]
        assert held_out >= 0.999


def test_basis_is_that_of_scipy():
    sizes = np.linspace(0.01, 1.99, 50)
    ends = np.r_[[0.0] * 4, KNOTS, [KNOTS[-1]] * 3]
    expected = BSpline.design_matrix(sizes, ends, 3).toarray()
    found = Spline(KNOTS).gradient("w", torch.from_numpy(-sizes))
    np.testing.assert_allclose(np.stack([*found.values()], 1), -expected, atol=1e-12)
    values = Spline(KNOTS).terms({"w": torch.tensor([-1.3], dtype=torch.float64)}, None)
    for k in (0, 3, 6):
        whole = BSpline(ends, np.eye(7)[k], 3).antiderivative()
        assert float(values[f"spline_{k}"]) == pytest.approx(float(whole(1.3) - whole(0)))


def test_contract():
    check_penalty(Spline(KNOTS))
    check_penalty(Spline([0.2]))
    check_penalty(Spline())


def test_beyond_the_last_knot_the_slope_is_constant():
    far = torch.tensor([2.0, 3.0, -7.0])
    slopes = Spline(KNOTS).gradient("w", far)
    assert slopes["spline_6"].tolist() == [1, 1, -1]
    assert all(not slopes[f"spline_{k}"].any() for k in range(6))
    values = [Spline(KNOTS).terms({"w": torch.tensor([t])}, None)["spline_6"] for t in (3.0, 7.0)]
    assert float(values[1] - values[0]) == pytest.approx(4)


def test_contains_ridge_and_lasso():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 60))
    y = X @ rng.standard_normal(60) + rng.standard_normal(300)
    model = Ridge(alpha=20.0).fit(X, y)
    est = ImplicitRegularizationEstimator(model, family=Spline(4)).fit(X, y)
    np.testing.assert_allclose(
        curve(est, model.coef_), 2 * 20 / 300 * model.coef_, rtol=1e-8, atol=1e-12
    )
    named = Spline(KNOTS).terms({"w": torch.tensor([1.5, -0.2])}, None)
    assert float(sum(named.values())) == pytest.approx(1.7)


def test_knots_have_weights_between_them():
    model, X, y, theta, _ = problem(SLOPES["mcp"])
    theta[:5] = [30, 31, 32, 33, 34]  # far from all others
    est = ImplicitRegularizationEstimator(LinearModel(theta, 0.0), family=Spline(30)).fit(X, y)
    ((leaf, coefs),) = est.penalty_.leaves
    edges = np.r_[0, leaf.penalty.knots]
    counts, _ = np.histogram(np.abs(theta), edges)
    assert counts.min() >= 2
    assert len(coefs) == est.n_terms_ == len(edges) + 2
    assert est.condition_number_ < 1e4


def test_one_spline_for_each_layer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    X, y = torch.randn(80, 5).double(), torch.randn(80, 3).double()
    est = ImplicitRegularizationEstimator(net, family=Spline(2), group_by="layer", loss="mse")
    est.fit(X, y)
    assert est.n_terms_ == 12
    ends = [leaf.penalty.knots[-1] for leaf, _ in est.penalty_.leaves]
    assert ends == [float(net[i].weight.detach().abs().max()) for i in (0, 2)]


def test_in_a_search_and_a_sum():
    model, X, y, *_ = problem(SLOPES["log-cosh"])
    search = ImplicitRegularizationCV(model, families=["l2", "spline", "l1"]).fit(X, y)
    assert search.best_name_ == "spline"
    joined = ImplicitRegularizationEstimator(model, family="spline+weight_decay")
    with pytest.warns(UserWarning, match="linearly dependent"):
        joined.fit(X, y)
    assert joined.verdict_ == "not identifiable"


def test_picture_of_the_curve():
    pytest.importorskip("matplotlib")
    model, X, y, *_ = problem(SLOPES["log-cosh"])
    est = ImplicitRegularizationEstimator(model, family=Spline()).fit(X, y)
    display = PenaltyShapeDisplay.from_estimator(est, families=["l2"])
    (weights, values), _ = display.curves.values()
    inside = np.abs(weights) < 0.8
    expected = SCALE * np.tanh(np.asarray(weights) / 0.2)
    np.testing.assert_allclose(np.asarray(values)[inside], expected[inside], atol=1e-4)


def test_left_out_equations_are_those_of_a_plain_loop():
    model, X, y, theta, true = problem(SLOPES["mcp"], noise=0.05)
    est = ImplicitRegularizationEstimator(model, family="l2+l1").fit(X, y)
    target = 2 * X.T @ (y - X @ theta) / N_ROWS
    columns = np.stack([2 * theta, np.sign(theta)], 1)
    folds = np.random.default_rng(0).permutation(np.arange(N_WEIGHTS) % 5)
    left = np.zeros(N_WEIGHTS)
    for fold in range(5):
        own = folds == fold
        coef = np.linalg.lstsq(columns[~own], target[~own], rcond=None)[0]
        left[own] = target[own] - columns[own] @ coef
    expected = 1 - left @ left / (target @ target)
    assert est.held_out_r2() == pytest.approx(expected, abs=1e-10)
    assert est.held_out_r2() < est.r2_
    assert est.held_out_r2(n_splits=3, random_state=1) != est.held_out_r2()


def plain_loop(columns, target, solve):
    folds = np.random.default_rng(0).permutation(np.arange(len(target)) % 5)
    left = np.zeros(len(target))
    for fold in range(5):
        own = folds == fold
        left[own] = target[own] - columns[own] @ solve(columns[~own], target[~own])
    return 1 - left @ left / (target @ target)


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, 1), (-1, -1, -1)], ids=str)
def test_left_out_equations_of_coefficients_that_are_positive(signs):
    rng = np.random.default_rng(3)
    columns = rng.standard_normal((60, 3))
    target = columns @ np.multiply(signs, [1.0, 2.0, 0.3]) + 0.5 * rng.standard_normal(60)
    est = ImplicitRegularizationEstimator("precomputed", positive=True).fit(columns, target)
    expected = plain_loop(columns, target, lambda D, t: scipy.optimize.nnls(D, t)[0])
    assert est.held_out_r2() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 1.0, 1e20], ids=str)
def test_left_out_equations_do_not_depend_on_the_units_of_a_term(unit):
    rng = np.random.default_rng(3)
    columns = rng.standard_normal((60, 3))
    target = columns @ [1.0, 2.0, 0.3] + 0.5 * rng.standard_normal(60)
    expected = plain_loop(columns, target, lambda D, t: np.linalg.lstsq(D, t, rcond=None)[0])
    est = ImplicitRegularizationEstimator("precomputed").fit(columns * [1, unit, 1], target)
    assert est.held_out_r2() == pytest.approx(expected, abs=1e-10)


def test_many_useless_columns_explain_nothing_of_what_is_left_out():
    rng = np.random.default_rng(0)
    columns, target = rng.standard_normal((60, 40)), rng.standard_normal(60)
    est = ImplicitRegularizationEstimator("precomputed").fit(columns, target)
    assert est.r2_ > 0.5
    assert est.held_out_r2() < 0


def learned(**params):
    return Learned(phi(), **({"n_starts": 1, "max_iter": 60} | params))


def test_learned_leaves_the_module_and_the_generators():
    module = phi()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    state = torch.get_rng_state()
    model, X, y, *_ = problem(SLOPES["mcp"])
    Family = Learned(module, n_starts=2, max_iter=40)  # noqa: N806
    one, two = (ImplicitRegularizationEstimator(model, family=Family).fit(X, y) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    np.testing.assert_array_equal(one.coef_, two.coef_)


def test_learned_gradient_is_that_of_its_value():
    model, X, y, theta, _ = problem(SLOPES["log-cosh"])
    est = ImplicitRegularizationEstimator(model, family=learned()).fit(X, y)
    np.testing.assert_allclose(est.penalty_.gradient(theta), curve(est, theta), rtol=1e-12)
    step = 1e-6 * np.eye(N_WEIGHTS)[3]
    ahead, behind = (est.penalty_.value(theta + s * step) for s in (1, -1))
    assert (ahead - behind) / 2e-6 == pytest.approx(est.penalty_.gradient(theta)[3], rel=1e-5)
    assert est.penalty_.value(np.zeros(N_WEIGHTS)) == pytest.approx(0, abs=1e-12)
    again = pickle.loads(pickle.dumps(est))
    np.testing.assert_array_equal(again.penalty_.gradient(theta), est.penalty_.gradient(theta))
    assert "Learned(<Sequential>)" in str(est.summary())
    assert clone(est).family.max_iter == 60


class Rows(nn.Module):
    """A function of the norms of the rows of all tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, params):
        norms = torch.cat([t.square().sum(1).add(1e-12).sqrt() for t in params.values()])
        return self.inner(norms[:, None]).sum()


def test_a_network_of_whole_tensors_learns_a_group_lasso():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((40, 5)) * rng.uniform(0.2, 1, (40, 1))
    X = rng.standard_normal((400, 5))
    slope = 0.01 * weights / np.linalg.norm(weights, axis=1, keepdims=True)
    net = nn.Linear(5, 40, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.from_numpy(weights))
    # mean over rows and outputs: 2 R' X / (n K) = slope
    residual = np.linalg.solve(X.T @ X, slope.T * 400 * 40 / 2)
    y = X @ (weights.T + residual)
    family = Learned(Rows(), inputs="params", n_starts=2)
    est = ImplicitRegularizationEstimator(net, family=family, loss="mse").fit(X, y)
    assert est._result.whole[1].held_out[0] > 0.99
    found = est.penalty_.gradient(weights.ravel())
    assert off(found, slope.ravel()) < 0.05


def test_a_network_that_remembers_is_not_supported():
    rng = np.random.default_rng(0)
    theta, target = rng.standard_normal((60, 1)), rng.standard_normal((60, 1))
    found = Learned(phi(), max_iter=200).solve(theta, target)
    r2 = 1 - np.sum((target - found.fitted) ** 2) / np.sum(target**2)
    assert found.held_out[0] < 0.5
    assert found.held_out[0] < r2


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (lambda: Spline(0), "Expected knots of Spline to be an integer >= 1 or sizes above 0"),
        (lambda: Spline([0.5, 0.2]), "sizes above 0 in increasing order"),
        (lambda: Spline([0.0, 0.2]), "sizes above 0 in increasing order"),
        (lambda: Spline([]), "sizes above 0 in increasing order"),
        (lambda: Spline([0.1, np.nan]), "sizes above 0 in increasing order"),
        (lambda: Learned("tanh"), "Expected module of Learned to be a torch module"),
        (lambda: Learned(phi(), inputs="rows"), "to be 'sizes' or 'params'"),
        (lambda: Learned(nn.Linear(2, 1)), "to map shape .400, 1. to itself"),
        (lambda: Learned(nn.Flatten(0)), "a module with parameters to train"),
        (lambda: Learned(phi(), inputs="params"), "to map a dict of tensors to a number"),
    ],
)
def test_bad_input(family, text):
    model, X, y, *_ = problem(SLOPES["mcp"])
    est = ImplicitRegularizationEstimator(model, family=family())
    with pytest.raises((ValueError, TypeError), match=text):
        est.fit(X, y)


def test_a_network_along_a_trajectory_is_an_error_and_a_spline_is_not():
    torch.manual_seed(0)
    X, y = torch.randn(60, 4).double(), torch.randn(60, 2).double()
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    steps = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=0.02)
    with record(net, steps) as recorder:
        for _ in range(30):
            recorder.batch(torch.arange(60))
            steps.zero_grad()
            nn.functional.mse_loss(net(X), y).backward()
            steps.step()
    est = ImplicitRegularizationEstimator(
        net, mode="trajectory", trajectory=recorder.trajectory, reference="batch", loss="mse"
    )
    with pytest.raises(ValueError, match="Expected mode='endpoint' for Learned"):
        est.set_params(family=learned()).fit(X, y)
    est.set_params(family=Spline(3)).fit(X, y)
    assert est.r2_ > 0.9999  # weights were larger before than at the end, where the knots are
    at = net[0].weight.detach()
    params = {n: t.detach().clone().requires_grad_() for n, t in net.named_parameters()}
    est.penalty_(params).backward()
    np.testing.assert_allclose(params["0.weight"].grad, 0.02 * at, atol=2e-4)


def test_number_of_knots_without_weights():
    with pytest.raises(ValueError, match="Expected the places of the knots, got their number 12"):
        Spline().terms({"w": torch.ones(3)}, None)
    with pytest.raises(ValueError, match="weights that are not all zero"):
        Spline().leaves({"w": torch.zeros(3)}, None)


def test_too_few_weights_to_learn_from():
    theta = np.ones((12, 1))
    theta[:5] = 0
    with pytest.raises(ValueError, match="at least 10 weights that are not zero"):
        learned().solve(theta, theta)


def net_of(seed, hidden=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double()


PLACED = {
    "spline": (Spline(), ""),
    "two knots": (Spline(2), ""),
    "one layer": (Spline(2).on("0"), "0"),
}


@pytest.mark.parametrize("case", PLACED)
def test_endpoints_share_their_knots(case):
    family, scope = PLACED[case]
    X, y = torch.randn(40, 4).double(), torch.randn(40, 3).double()
    nets = [net_of(seed) for seed in range(3)]
    with torch.no_grad():  # sizes of their own
        nets[1][0].weight.mul_(3)
    group = [Endpoint(net, X, y) for net in nets]
    est = ImplicitRegularizationEstimator(None, family=family, loss="mse").fit(group)
    weights = [
        {n: p for n, p in net.named_parameters() if "weight" in n and scope in n} for net in nets
    ]
    sizes = {f"{i}{n}": p for i, own in enumerate(weights) for n, p in own.items()}
    placed = (family.penalty if scope else family).placed(sizes)
    columns, target = [], []
    for net, own in zip(nets, weights, strict=True):
        every = {n: p for n, p in net.named_parameters() if "weight" in n}
        loss = nn.functional.mse_loss(net(X), y)
        for (n, p), g in zip(
            every.items(), torch.autograd.grad(loss, list(every.values())), strict=True
        ):
            if n in own:
                slopes = placed.gradient(n, p.detach()).values()
                columns.append(torch.stack([s.flatten() for s in slopes], 1).numpy())
                target.append(-g.flatten().numpy())
    coef = np.linalg.lstsq(np.concatenate(columns), np.concatenate(target), rcond=None)[0]
    np.testing.assert_allclose(est.coef_, coef, rtol=1e-6)


def test_windows_share_their_knots():
    X, y = torch.randn(40, 4).double(), torch.randn(40, 3).double()
    net = net_of(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.02)
    with record(net, optimizer, every=1) as recording:
        for _ in range(8):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(X), y).backward()
            optimizer.step()
    own = {"mode": "trajectory", "trajectory": recording, "loss": "mse", "params": "weights"}
    # With the spectral term columns are those of each window's weights, and not averaged.
    est = ImplicitRegularizationEstimator(net, family=[Spline(2), "nuclear"], **own).fit(X, y)
    weights = [p.detach() for n, p in net.named_parameters() if "weight" in n]
    expected = 0.01 * sum(float(p.square().sum()) for p in weights)
    assert float(est.penalty_(net).detach()) == pytest.approx(expected, rel=1e-2)
    assert est.r2_ == pytest.approx(1, abs=1e-4)
    placed = Spline(2).placed({"w": torch.cat([p.flatten() for p in weights])})
    held = [leaf.penalty.knots for leaf, _ in est._equations.places[0].design.leaves[:1]]
    np.testing.assert_allclose(held[0], placed.knots)
    assert all(
        place.design.leaves[0][0].penalty.knots == held[0] for place in est._equations.places
    )
