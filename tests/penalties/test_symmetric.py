"""Symmetric matrices from endpoints: against dense least squares, Sylvester, brute force."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.linalg import lstsq, solve_sylvester
from scipy.optimize import minimize

from sklearn_implicitreg.penalties.symmetric import n_determined, nearest_psd, solve_symmetric


def endpoints(p, n_endpoints, *, noise=0.0, spread=1.0, seed=0, definite=True):
    """A symmetric matrix, parameters and right-hand sides; ``spread``: condition of the former."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((p, p))
    matrix = root @ root.T / p if definite else (root + root.T) / 2
    thetas = np.geomspace(1, 1 / spread, p)[:, None] * rng.standard_normal((p, n_endpoints))
    return matrix, thetas, matrix @ thetas + noise * rng.standard_normal((p, n_endpoints))


def dense(thetas, rhs):
    """Least squares on p(p + 1)/2 columns, off-diagonals scaled by sqrt 2: minimum Frobenius."""
    p, n_endpoints = thetas.shape
    rows, columns = np.triu_indices(p)
    design = np.zeros((p, n_endpoints, len(rows)))
    for k, (i, j) in enumerate(zip(rows, columns, strict=True)):
        scale = 1.0 if i == j else np.sqrt(0.5)
        design[i, :, k] += scale * thetas[j]
        if i != j:
            design[j, :, k] += scale * thetas[i]
    flat = design.reshape(-1, len(rows))
    coef, _, rank, _ = lstsq(flat, rhs.reshape(-1), cond=1e-12)
    matrix = np.zeros((p, p))
    matrix[rows, columns] = coef * np.where(rows == columns, 1.0, np.sqrt(0.5))
    return matrix + np.triu(matrix, 1).T, rank


class TestLeastSquares:
    @pytest.mark.parametrize("n_endpoints", [1, 2, 5, 6, 7, 20])
    @pytest.mark.parametrize("noise", [0.0, 0.3])
    def test_equals_dense_least_squares(self, n_endpoints, noise):
        _, thetas, rhs = endpoints(6, n_endpoints, noise=noise)
        expected, rank = dense(thetas, rhs)
        found = solve_symmetric(thetas, rhs)
        assert_allclose(found.matrix, expected, atol=1e-11)
        assert found.rank == rank

    def test_equals_the_sylvester_equation(self):
        _, thetas, rhs = endpoints(5, 9, noise=0.2)
        gram = thetas @ thetas.T
        expected = solve_sylvester(gram, gram, rhs @ thetas.T + thetas @ rhs.T)
        assert_allclose(solve_symmetric(thetas, rhs).matrix, expected, rtol=1e-10)

    def test_repeated_endpoints_count_once(self):
        _, thetas, rhs = endpoints(6, 3)
        found = solve_symmetric(np.tile(thetas, 4), np.tile(rhs, 4))
        assert (found.n_independent, found.rank) == (3, n_determined(6, 3))
        assert_allclose(found.matrix, solve_symmetric(thetas, rhs).matrix, atol=1e-13)

    def test_many_parameters(self):
        matrix, thetas, rhs = endpoints(500, 500)
        found = solve_symmetric(thetas, rhs)
        norm = np.linalg.norm
        assert norm(found.matrix @ thetas - rhs) <= 1e-13 * norm(rhs)
        assert norm(found.matrix - matrix) <= found.error_bound * norm(matrix)

    @pytest.mark.parametrize("spread", [1, 1e3, 1e6])
    @pytest.mark.parametrize("noise", [0.0, 1e-10])
    def test_error_bound_holds(self, spread, noise):
        matrix, thetas, rhs = endpoints(8, 20, spread=spread, noise=noise)
        found = solve_symmetric(thetas, rhs)
        error = np.linalg.norm(found.matrix - matrix) / np.linalg.norm(matrix)
        assert error <= found.error_bound <= 1e4 * error

    def test_asymmetry(self):
        _, thetas, rhs = endpoints(6, 4)
        assert solve_symmetric(thetas, rhs).asymmetry < 1e-14
        rhs[:, 0] *= 2
        assert solve_symmetric(thetas, rhs).asymmetry > 1e-2

    @pytest.mark.parametrize("n_endpoints", [1, 4, 9])
    def test_asymmetry_is_the_skew_share(self, n_endpoints):
        _, thetas, rhs = endpoints(6, n_endpoints, noise=0.1)
        cross = thetas.T @ rhs
        expected = np.linalg.norm(cross - cross.T) / 2 / np.linalg.norm(cross)
        assert_allclose(solve_symmetric(thetas, rhs).asymmetry, expected, atol=1e-14)

    def test_very_many_endpoints_make_no_square_of_their_number(self):
        matrix, thetas, rhs = endpoints(3, 100_000)
        assert_allclose(solve_symmetric(thetas, rhs).matrix, matrix, rtol=1e-11)

    def test_zero_endpoints_determine_nothing(self):
        found = solve_symmetric(np.zeros((3, 2)), np.ones((3, 2)))
        assert (found.rank, found.n_independent) == (0, 0)
        assert not found.matrix.any()

    def test_units(self):
        _, thetas, rhs = endpoints(5, 8, noise=0.1)
        found = solve_symmetric(1e-80 * thetas, 1e-90 * rhs).matrix
        assert_allclose(1e10 * found, solve_symmetric(thetas, rhs).matrix, rtol=1e-11)


class TestSemidefinite:
    @pytest.mark.parametrize("n_endpoints", [1, 3, 5])
    def test_below_full_rank_it_is_the_smallest(self, n_endpoints):
        matrix, thetas, rhs = endpoints(6, n_endpoints)
        found = solve_symmetric(thetas, rhs, psd=True).matrix
        expected = rhs @ np.linalg.pinv(thetas.T @ rhs) @ rhs.T
        assert_allclose(found, expected, atol=1e-12)
        assert_allclose(found @ thetas, rhs, atol=1e-12)
        assert np.linalg.eigvalsh(matrix - found)[0] > -1e-12
        assert np.linalg.eigvalsh(found)[0] > -1e-14

    def test_a_semidefinite_answer_stands(self):
        matrix, thetas, rhs = endpoints(5, 7)
        assert_allclose(solve_symmetric(thetas, rhs, psd=True).matrix, matrix, atol=1e-12)

    @pytest.mark.parametrize(("p", "spread"), [(3, 1), (4, 10), (6, 100)])
    def test_equals_brute_force(self, p, spread):
        _, thetas, rhs = endpoints(p, 3 * p, spread=spread, noise=0.01, definite=False)
        lower = np.tril_indices(p)

        def loss(flat):
            root = np.zeros((p, p))
            root[lower] = flat
            residual = root @ root.T @ thetas - rhs
            cross = residual @ thetas.T
            return np.square(residual).sum(), (2 * (cross + cross.T) @ root)[lower]

        rng = np.random.default_rng(1)
        options = {"jac": True, "method": "BFGS", "options": {"gtol": 1e-9, "maxiter": 10_000}}
        starts = rng.standard_normal((5, len(lower[0])))
        expected = min(minimize(loss, start, **options).fun for start in starts)
        found = solve_symmetric(thetas, rhs, psd=True)
        assert_allclose(np.square(found.matrix @ thetas - rhs).sum(), expected, rtol=1e-9)

    @pytest.mark.parametrize("spread", [1, 1e3])
    def test_optimality_conditions(self, spread):
        _, thetas, rhs = endpoints(12, 30, spread=spread, noise=0.01, definite=False)
        found = solve_symmetric(thetas, rhs, psd=True)
        slope = (found.matrix @ thetas - rhs) @ thetas.T
        slope = (slope + slope.T) / 2
        size = np.linalg.norm(slope)
        assert np.linalg.eigvalsh(found.matrix)[0] > -1e-13 * np.linalg.norm(found.matrix)
        assert np.linalg.eigvalsh(slope)[0] > -1e-10 * size
        assert abs(np.sum(slope * found.matrix)) < 1e-10 * size * np.linalg.norm(found.matrix)
        assert found.distance < 1e-8

    def test_unweighted_it_is_the_projection(self):
        center = np.random.default_rng(0).standard_normal((5, 5))
        center = center + center.T
        values, vectors = np.linalg.eigh(center)
        expected = vectors * values.clip(min=0) @ vectors.T
        assert_allclose(nearest_psd(center, np.ones((5, 5)))[0], expected, atol=1e-13)

    def test_below_full_rank_with_noise(self):
        _, thetas, rhs = endpoints(6, 3, noise=0.5, definite=False)
        found = solve_symmetric(thetas, rhs, psd=True).matrix
        assert np.linalg.eigvalsh(found)[0] > -1e-13


def bootstrap(sigma, seed, n_endpoints=100, n_steps=500, step=0.005):
    """Early stopping on resampled rows: the matrix of the whole data, thetas, right-hand sides."""
    rng = np.random.default_rng(56)
    X = rng.standard_normal((1000, 10))
    y = X @ (3 * rng.standard_normal(10)) + sigma * rng.standard_normal(1000)
    rng = np.random.default_rng(seed)
    thetas, rhs = [], []
    for k in range(n_endpoints):
        rows = rng.integers(0, 1000, 1000) if k else np.arange(1000)
        s, vectors = np.linalg.eigh(X[rows].T @ X[rows] / 1000)
        moment = vectors.T @ (X[rows].T @ y[rows]) / 1000
        left = (1 - 2 * step * s) ** n_steps
        thetas.append(vectors @ ((1 - left) / s * moment))
        rhs.append(vectors @ (left * moment))
        if not k:
            truth = vectors * (s * left / (1 - left)) @ vectors.T
    return truth, np.array(thetas).T, np.array(rhs).T


class TestShrinkage:
    @pytest.mark.parametrize("sigma", [0.5, 1, 3, 10, 20])
    def test_resampled_endpoints(self, sigma):
        truth, thetas, rhs = bootstrap(sigma, seed=1)
        plain = solve_symmetric(thetas, rhs)
        shrunk = solve_symmetric(thetas, rhs, shrinkage="identity")
        error = np.linalg.norm(shrunk.matrix - truth)
        assert error <= np.linalg.norm(plain.multiple * np.eye(10) - truth)
        assert error < np.linalg.norm(plain.matrix - truth)

    @pytest.mark.parametrize("seed", [1, 2, 3])
    @pytest.mark.parametrize("sigma", [0.5, 3])
    def test_many_resamples_of_one_data_set(self, sigma, seed):
        truth, thetas, rhs = bootstrap(sigma, seed, n_endpoints=400)
        found = solve_symmetric(thetas, rhs, shrinkage="identity", n_rows=1000)
        error = np.linalg.norm(found.matrix - truth)
        assert error <= np.linalg.norm(found.multiple * np.eye(10) - truth)
        assert found.n_counted == pytest.approx(80)  # 400 / (1 + 400 * 10 / 1000)

    def test_semidefinite_and_a_negative_multiple(self):
        _, thetas, rhs = endpoints(4, 9)
        found = solve_symmetric(thetas, -rhs, psd=True, shrinkage=0.5)
        assert found.multiple == 0
        assert np.linalg.eigvalsh(found.matrix)[0] >= -1e-15

    def test_exact_endpoints_are_not_shrunk(self):
        matrix, thetas, rhs = endpoints(10, 20)
        found = solve_symmetric(thetas, rhs, shrinkage="identity")
        assert_allclose(found.matrix, matrix, rtol=1e-11, atol=1e-13)

    def test_what_is_open_is_the_multiple(self):
        _, thetas, rhs = endpoints(4, 1)
        found = solve_symmetric(thetas, rhs, shrinkage="identity")
        assert_allclose(found.matrix @ thetas, rhs, atol=1e-13)
        unit = thetas[:, 0] / np.linalg.norm(thetas)
        other = np.linalg.svd(unit[None])[2][1]
        assert_allclose(found.matrix @ other @ other, found.multiple, rtol=1e-12)

    @pytest.mark.parametrize("weight", [0, 0.25, 1])
    def test_a_weight(self, weight):
        _, thetas, rhs = endpoints(4, 9, noise=0.1)
        plain = solve_symmetric(thetas, rhs)
        multiple = np.sum(thetas * rhs) / np.sum(thetas**2)
        expected = (1 - weight) * plain.matrix + weight * multiple * np.eye(4)
        found = solve_symmetric(thetas, rhs, shrinkage=weight).matrix
        assert_allclose(found, expected, atol=1e-13)

    def test_semidefinite_and_shrunk(self):
        _, thetas, rhs = bootstrap(3, seed=2)
        found = solve_symmetric(thetas, rhs, psd=True, shrinkage="identity").matrix
        assert np.linalg.eigvalsh(found)[0] > -1e-14
