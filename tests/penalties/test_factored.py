"""Quadratic penalties of few numbers: matrices of low rank, and Kronecker products per layer."""

import pickle
from types import SimpleNamespace

import module_cases
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from sklearn.linear_model import LinearRegression
from torch import nn

from sklearn_implicitreg import Endpoint, ImplicitRegularizationEstimator
from sklearn_implicitreg.inspection import SpectrumDisplay
from sklearn_implicitreg.penalties import (
    KroneckerPenalty,
    KroneckerQuadratic,
    Learned,
    LowRankPenalty,
    LowRankQuadratic,
    as_penalty,
)

EPS = float(np.finfo(np.float64).eps)


def problem(shapes):
    """What a family asks of a Problem: its parameters, their names and its rounding unit."""
    params = {n: torch.zeros(s) for n, s in shapes.items()}
    return SimpleNamespace(params=params, eps=EPS, entry_names=lambda name: None)


def of_rank(p, r, psd, rng):
    factor = rng.standard_normal((p, r))
    signs = np.ones(r) if psd else np.where(np.arange(r) % 2, -1.0, 1.0)
    return (factor * signs) @ factor.T


def symmetric(n, definite, rng):
    root = rng.standard_normal((n, n))
    return root @ root.T / n + 0.1 * np.eye(n) if definite else root + root.T


class TestLowRank:
    @pytest.mark.parametrize("psd", [True, False])
    @pytest.mark.parametrize(
        ("p", "r", "n_endpoints"), [(8, 1, 1), (8, 2, 2), (8, 3, 12), (8, 8, 8), (200, 3, 4)]
    )
    def test_recovers_the_matrix(self, p, r, n_endpoints, psd):
        rng = np.random.default_rng(p + r)
        matrix, thetas = of_rank(p, r, psd, rng), rng.standard_normal((p, n_endpoints))
        found = LowRankQuadratic(r, psd=psd).solve(thetas, 2 * matrix @ thetas)
        scale = np.abs(matrix).max()
        assert_allclose(found.penalty.matrix_, matrix, atol=1e-6 * scale)
        values = np.linalg.eigvalsh(matrix)
        assert_allclose(np.sort(np.abs(found.coef)), np.sort(np.abs(values))[-r:], rtol=1e-6)
        assert found.rank == found.n_unknowns == p * r - r * (r - 1) // 2
        assert found.dependent == ()
        assert len(found.coef) == len(found.term_names) == r

    @pytest.mark.parametrize("psd", [True, False])
    @pytest.mark.parametrize(("r", "n_endpoints"), [(2, 1), (3, 1), (3, 2), (4, 3)])
    def test_too_few_endpoints(self, r, n_endpoints, psd):
        rng = np.random.default_rng(r)
        matrix, thetas = of_rank(8, r, psd, rng), rng.standard_normal((8, n_endpoints))
        found = LowRankQuadratic(r, psd=psd).solve(thetas, 2 * matrix @ thetas)
        assert_allclose(found.fitted, 2 * matrix @ thetas, atol=1e-6)
        # As many as of a matrix without a bound on its rank.
        assert found.rank == n_endpoints * 8 - n_endpoints * (n_endpoints - 1) // 2
        assert found.rank < found.n_unknowns
        assert found.dependent == ("Q",)
        assert "not identifiable below" in found.notes[-1]

    @pytest.mark.parametrize("n_endpoints", [2, 3, 5])
    def test_numbers_that_are_determined(self, n_endpoints):
        # One of two directions of Q is orthogonal to all endpoints: the slopes in U are counted.
        rng = np.random.default_rng(0)
        basis = np.linalg.qr(rng.standard_normal((7, 7)))[0]
        thetas = basis[:, :6] @ rng.standard_normal((6, n_endpoints))
        vectors = basis[:, [0, 6]]
        penalty = LowRankPenalty(np.array([2.0, 1.0]), {"theta": (7,)}, vectors=vectors)
        factor = vectors * np.sqrt([2.0, 1.0])
        moves = []
        for k in range(14):
            step = np.zeros((7, 2))
            step.flat[k] = 1
            moves.append(((step @ factor.T + factor @ step.T) @ thetas).reshape(-1))
        counted = LowRankQuadratic(2)._determined(penalty, thetas, n_endpoints)
        assert counted == np.linalg.matrix_rank(np.array(moves), tol=1e-10)

    @pytest.mark.parametrize("psd", [True, False])
    def test_noise_leaves_no_more_than_other_minimizers(self, psd):
        rng = np.random.default_rng(1)
        matrix, thetas = of_rank(6, 2, psd, rng), rng.standard_normal((6, 15))
        targets = 2 * matrix @ thetas + rng.standard_normal((6, 15))
        found = LowRankQuadratic(2, psd=psd).solve(thetas, targets)
        signs = np.sign(found.coef)

        def left(x):
            u = x.reshape(6, 2)
            residual = 2 * (u * signs) @ (u.T @ thetas) - targets
            slope = 4 * (residual @ (thetas.T @ u * signs) + thetas @ (residual.T @ (u * signs)))
            return (residual**2).sum(), slope.reshape(-1)

        starts = [rng.standard_normal(12) for _ in range(4)]
        best = min(minimize(left, start, jac=True, tol=1e-10).fun for start in starts)
        assert np.square(found.fitted - targets).sum() <= best * (1 + 1e-8)
        assert psd <= (found.coef >= 0).all()

    def test_zeros(self):
        thetas = np.random.default_rng(0).standard_normal((4, 3))
        none = LowRankQuadratic(2).solve(thetas, np.zeros((4, 3)))
        assert_allclose(none.penalty.matrix_, 0)
        nowhere = LowRankQuadratic(2).solve(np.zeros((4, 3)), thetas)
        assert_allclose(nowhere.penalty.matrix_, 0)
        assert nowhere.rank == 0

    @pytest.mark.parametrize("rank", [0, -1, 1.5, True, None, "1"])
    def test_bad_ranks(self, rank):
        with pytest.raises(ValueError, match="Expected rank of LowRankQuadratic to be"):
            LowRankQuadratic(rank).solve(np.eye(3), np.eye(3))

    def test_a_rank_above_the_number_of_parameters(self):
        with pytest.raises(ValueError, match="Expected a rank of at most 3"):
            LowRankQuadratic(4).solve(np.eye(3), np.eye(3))


SHAPES = [(4, 6), (3, 10), (7, 7), (5, 1), (1, 5), (1, 1), (2, 2)]


class TestKronecker:
    @pytest.mark.parametrize("definite", [True, False])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_recovers_the_factors(self, shape, definite):
        rng = np.random.default_rng(sum(shape))
        a, b = (symmetric(n, definite, rng) for n in shape)
        n_endpoints = 2 * max(shape) // min(shape) + 2
        weights = rng.standard_normal((n_endpoints, *shape))
        thetas, targets = flat(weights), 2 * flat(a @ weights @ b)
        found = KroneckerQuadratic().solve(thetas, targets, [problem({"w": shape})] * n_endpoints)
        assert_allclose(found.penalty.matrix_, np.kron(a, b), rtol=1e-6, atol=1e-6)
        own_a, own_b = found.penalty.factors_["w"]
        assert np.linalg.norm(own_b) == pytest.approx(np.sqrt(shape[1]))
        assert np.trace(own_b) >= 0
        assert_allclose(own_a, a * (a * own_a).sum() / (a * a).sum(), atol=1e-6)
        assert found.rank == found.n_unknowns == sum(n * (n + 1) // 2 for n in shape) - 1
        assert found.dependent == ()

    @pytest.mark.parametrize("definite", [True, False])
    @pytest.mark.parametrize("n_endpoints", [1, 2, 3, 5])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_numbers_that_are_determined(self, shape, n_endpoints, definite):
        rng = np.random.default_rng(sum(shape))
        a, b = (symmetric(n, definite, rng) for n in shape)
        weights = rng.standard_normal((n_endpoints, *shape))
        found = KroneckerQuadratic().solve(
            flat(weights), 2 * flat(a @ weights @ b), [problem({"w": shape})] * n_endpoints
        )
        own_a, own_b = found.penalty.factors_["w"]
        moves = [(step @ weights @ own_b).reshape(-1) for step in units(shape[0])]
        moves += [(own_a @ weights @ step).reshape(-1) for step in units(shape[1])]
        assert found.rank == np.linalg.matrix_rank(np.array(moves), tol=1e-8)
        assert (found.rank < found.n_unknowns) == (found.dependent == ("A and B of w",))
        assert_allclose(found.fitted, 2 * flat(a @ weights @ b), atol=1e-6)

    def test_a_singular_pair(self):
        rng = np.random.default_rng(0)
        a, b = np.diag([1.0, 2.0, 0.0]), np.diag([3.0, 1.0, 1.0, 0.0])
        weights = rng.standard_normal((6, 3, 4))
        found = KroneckerQuadratic().solve(
            flat(weights), 2 * flat(a @ weights @ b), [problem({"w": (3, 4)})] * 6
        )
        assert_allclose(found.penalty.matrix_, np.kron(a, b), atol=1e-6)

    def test_zeros(self):
        weights = np.random.default_rng(0).standard_normal((6, 3))
        given = [problem({"w": (2, 3)})] * 3
        none = KroneckerQuadratic().solve(weights, np.zeros((6, 3)), given)
        assert_allclose(none.penalty.matrix_, 0)
        nowhere = KroneckerQuadratic().solve(np.zeros((6, 3)), weights, given)
        assert_allclose(nowhere.penalty.matrix_, 0)
        assert nowhere.rank == 0

    def test_names(self):
        rng = np.random.default_rng(0)
        shapes = {"conv.weight": (2, 1, 2), "bias": (2,), "scale": ()}
        thetas = rng.standard_normal((7, 3))
        found = KroneckerQuadratic().solve(thetas, thetas, [problem(shapes)] * 3)
        names = [f"A[conv.weight][{ij}]" for ij in ("0,0", "0,1", "1,1")]
        names += [f"B[conv.weight][{ij}]" for ij in ("0,0", "0,1", "1,1")]
        names += ["A[bias][0,0]", "A[bias][0,1]", "A[bias][1,1]", "B[bias][0,0]"]
        assert list(found.term_names) == [*names, "A[scale][0,0]", "B[scale][0,0]"]
        assert_allclose(found.penalty.matrix_, np.eye(7) / 2, atol=1e-9)


def flat(weights):
    return weights.reshape(len(weights), -1).T


def units(n):
    for i, j in zip(*np.triu_indices(n), strict=True):
        step = np.zeros((n, n))
        step[i, j] = step[j, i] = 1.0
        yield step


PENALTIES = {
    "low rank": LowRankPenalty(
        np.array([2.0, -1.0]),
        {"a": (2, 3), "b": ()},
        vectors=np.linalg.qr(np.arange(14.0).reshape(7, 2) ** 2)[0],
    ),
    "kronecker": KroneckerPenalty(np.arange(1.0, 12.0), {"a": (2, 3), "b": ()}),
}


@pytest.mark.parametrize("case", PENALTIES)
def test_penalties_are_their_matrices(case):
    penalty = PENALTIES[case]
    theta = np.random.default_rng(0).standard_normal((7, 2))
    assert_allclose(penalty.gradient(theta), 2 * penalty.matrix_ @ theta, atol=1e-12)
    assert_allclose(penalty.matrix_, penalty.matrix_.T)
    assert_allclose(penalty.diagonal_, np.diag(penalty.matrix_))
    first = torch.tensor(theta[:, 0], requires_grad=True)
    value = penalty({"a": first[:6].reshape(2, 3), "b": first[6]})
    value.backward()
    assert value.item() == pytest.approx(theta[:, 0] @ penalty.matrix_ @ theta[:, 0])
    assert value.item() == pytest.approx(penalty.value(theta[:, 0]))
    assert_allclose(first.grad, penalty.gradient(theta[:, 0]), atol=1e-12)
    assert not penalty.nothing().matrix_.any()
    again = pickle.loads(pickle.dumps(penalty))
    assert again.words() == penalty.words()
    with pytest.raises(ValueError, match=r"Expected theta of shape \(7,\)"):
        penalty.gradient(theta[:6])


def test_kronecker_of_given_factors():
    # tr(W' A W B) by hand, and its gradient 2 A W B.
    penalty = PENALTIES["kronecker"]
    a, b = np.array([[1.0, 2], [2, 3]]), np.array([[4.0, 5, 6], [5, 7, 8], [6, 8, 9]])
    w = np.random.default_rng(0).standard_normal((2, 3))
    theta = np.append(w.reshape(-1), 2.0)
    assert penalty.value(theta) == pytest.approx(np.trace(w.T @ a @ w @ b) + 10 * 11 * 4)


# Through the estimator


def penalized(seed, matrix):
    """Least squares with the penalty ``theta' matrix theta``, as an endpoint."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((50, len(matrix)))
    y = X @ rng.standard_normal(len(matrix)) + rng.standard_normal(50)
    model = LinearRegression(fit_intercept=False).fit(X, y)
    model.coef_ = np.linalg.solve(X.T @ X / 50 + matrix, X.T @ y / 50)
    return Endpoint(model, X, y)


def test_linear_models_with_a_penalty_of_low_rank():
    factor = np.random.default_rng(0).standard_normal((6, 2)) / 3
    group = [penalized(seed, factor @ factor.T) for seed in range(4)]
    est = ImplicitRegularizationEstimator(None, family=LowRankQuadratic(2, psd=True)).fit(group)
    assert_allclose(est.penalty_.matrix_, factor @ factor.T, atol=1e-8)
    assert est.verdict_ == "supported"
    assert est.score([penalized(9, factor @ factor.T)]) == pytest.approx(1)
    words = " ".join(str(est.summary()).split())
    assert "determine 11 of the 11 numbers of a matrix of rank 2" in words
    again = pickle.loads(pickle.dumps(est))
    assert str(again.summary()) == str(est.summary())
    few = ImplicitRegularizationEstimator(None, family=LowRankQuadratic(2)).fit(group[:1])
    assert few.verdict_ == "not identifiable"
    one = ImplicitRegularizationEstimator(None, family=LowRankQuadratic(1)).fit(group[:1])
    assert "R2 tests nothing" in " ".join(str(one.summary()).split())


A0 = np.array([[0.02, 0.01, 0.0], [0.01, 0.03, 0.005], [0.0, 0.005, 0.04]])
B0 = np.diag([0.5, 1.0, 1.5, 2.0])


def trained(seed):
    """A net at a minimum of its loss and ``tr(W' A W B)`` of its first layer, ridge of the last."""
    rng = torch.Generator().manual_seed(seed)
    X = torch.randn(40, 4, generator=rng).double()
    y = torch.sin(X[:, :1]) + 0.5 * X[:, 1:2] * X[:, 2:3]
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.7, generator=rng)
    a, b = torch.from_numpy(A0), torch.from_numpy(B0)

    def objective():
        first, last = net[0].weight, net[2].weight
        penalty = torch.trace(first.T @ a @ first @ b) + 0.01 * last.square().sum()
        return nn.functional.mse_loss(net(X), y) + penalty

    module_cases.minimize(net.parameters(), objective, 3000, tol=1e-10)
    return Endpoint(net, X, y)


@pytest.fixture(scope="module")
def nets():
    return [trained(seed) for seed in range(5)]


def test_trained_nets(nets):
    est = ImplicitRegularizationEstimator(None, family="kronecker", loss="mse").fit(nets)
    a, b = est.penalty_.factors_["0.weight"]
    assert_allclose(np.kron(a, b), np.kron(A0, B0), atol=1e-6)
    assert_allclose(b, B0 * 2 / np.linalg.norm(B0), atol=1e-4)
    a, b = est.penalty_.factors_["2.weight"]
    assert_allclose(np.kron(a, b), 0.01 * np.eye(3), atol=1e-6)
    assert est.verdict_ == "supported"
    assert "eigenvalues of A from" in " ".join(str(est.summary()).split())
    few = ImplicitRegularizationEstimator(None, family="kronecker", loss="mse").fit(nets[:2])
    assert few.verdict_ == "not identifiable"
    assert "not determined: A and B of 2.weight" in " ".join(str(few.summary()).split())


def test_the_spectrum_is_that_of_the_matrix(nets):
    pytest.importorskip("matplotlib")
    est = ImplicitRegularizationEstimator(None, family="kronecker", loss="mse").fit(nets)
    display = SpectrumDisplay.from_estimator(est)
    assert_allclose(display.matrix, est.penalty_.matrix_)
    module = nn.Linear(1, 1)
    learned = ImplicitRegularizationEstimator(None, family=Learned(module), loss="mse").fit(nets)
    with pytest.raises(TypeError, match="which have a matrix"):
        SpectrumDisplay.from_estimator(learned)


def test_by_name():
    assert isinstance(as_penalty("kronecker"), KroneckerQuadratic)
    with pytest.raises(ValueError, match="solved as a whole"):
        as_penalty("l2+kronecker")
