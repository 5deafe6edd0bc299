"""Coefficients from a R factor, against scipy and statsmodels on the full equations."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from sklearn_implicitreg.regression.solve import decompose, solve
from sklearn_implicitreg.regression.system import r_factor

EPS = float(np.finfo(np.float64).eps)
EPS32 = float(np.finfo(np.float32).eps)

# Certified values of the National Institute of Standards and Technology, "Longley".
NIST_LONGLEY = [
    -3482258.63459582,
    15.0618722713733,
    -0.358191792925910e-01,
    -2.02022980381683,
    -1.03322686717359,
    -0.511041056535807e-01,
    1829.15146461355,
]
NIST_LONGLEY_RSS = 836424.055505915


def solved(design, target, **options):
    return solve(r_factor(design, target), len(target), **options)


def random_equations(m=200, k=3, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    design = rng.standard_normal((m, k)) @ rng.standard_normal((k, k))
    return design, design @ rng.standard_normal(k) + noise * rng.standard_normal(m)


def uncentered_vif(design, sm):
    """1 / (1 - R2) of each column on the others, by statsmodels."""
    others = [np.delete(design, j, axis=1) for j in range(design.shape[1])]
    fits = [sm.OLS(x, rest).fit() for x, rest in zip(design.T, others, strict=True) if rest.size]
    return [1 / (1 - fit.rsquared) for fit in fits] or [1.0]


def test_longley_against_certified_values(sm):
    data = sm.datasets.longley.load_pandas()
    design = np.column_stack([np.ones(16), data.exog.to_numpy()])
    solution = solved(design, data.endog.to_numpy())
    np.testing.assert_allclose(solution.coef, NIST_LONGLEY, rtol=1e-8)
    np.testing.assert_allclose(solution.rss, NIST_LONGLEY_RSS, rtol=1e-9)
    assert solution.rank == 7
    assert solution.dependent == ()


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("noise", [0.0, 1.0], ids=["exact", "noisy"])
def test_equals_scipy_and_statsmodels(k, noise, sm):
    design, target = random_equations(k=k, seed=k, noise=noise)
    solution = solved(design, target)
    expected = sm.OLS(target, design).fit()
    np.testing.assert_allclose(
        solution.coef, scipy.linalg.lstsq(design, target)[0], rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(solution.coef, expected.params, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(solution.r2, expected.rsquared, rtol=1e-10)
    np.testing.assert_allclose(solution.rss, expected.ssr, rtol=1e-10, atol=1e-20)
    np.testing.assert_allclose(solution.tss, target @ target, rtol=1e-12)
    np.testing.assert_allclose(solution.shortfall, 1 - expected.rsquared, rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(solution.vif, uncentered_vif(design, sm), rtol=1e-10)


def test_residual_is_orthogonal_to_the_columns():
    design, target = random_equations(k=4)
    residual = target - design @ solved(design, target).coef
    np.testing.assert_allclose(design.T @ residual, 0, atol=1e-10)


def test_cosine_and_condition_number_by_their_definitions():
    design, target = random_equations(k=3)
    solution = solved(design, target)
    unit = design / np.linalg.norm(design, axis=0)
    np.testing.assert_allclose(solution.cosine, unit.T @ target / np.linalg.norm(target))
    np.testing.assert_allclose(solution.condition_number, np.linalg.cond(unit), rtol=1e-10)


def test_units_of_the_terms_change_nothing_but_the_coefficients():
    design, target = random_equations(k=3)
    units = np.array([1e-9, 1.0, 1e12])
    plain, scaled = solved(design, target), solved(design * units, target)
    np.testing.assert_allclose(scaled.coef * units, plain.coef, rtol=1e-11)
    np.testing.assert_allclose(scaled.vif, plain.vif, rtol=1e-11)
    assert scaled.rank == 3
    np.testing.assert_allclose(scaled.condition_number, plain.condition_number, rtol=1e-11)


@pytest.mark.parametrize("scale", [1e-200, 1e-170, 1e150], ids=str)
def test_very_small_and_large_gradients(scale):
    design, target = random_equations(k=2)
    plain, scaled = solved(design, target), solved(design, target * scale)
    np.testing.assert_allclose(scaled.coef / scale, plain.coef, rtol=1e-12)
    np.testing.assert_allclose(scaled.r2, plain.r2, rtol=1e-12)
    np.testing.assert_allclose(solved(design * scale, target * scale).coef, plain.coef, rtol=1e-12)


class TestDependentColumns:
    @pytest.fixture
    def pair(self):
        rng = np.random.default_rng(4)
        return rng.standard_normal((2, 1000))

    def test_collinear_pair_gets_the_answer_of_minimum_norm(self, pair):
        a, c = pair
        design, target = np.column_stack([a, 2 * a, c]), 3 * a + 5 * c
        solution = solved(design, target)
        norms = np.linalg.norm(design, axis=0)
        expected = scipy.linalg.lstsq(design / norms, target)[0] / norms
        np.testing.assert_allclose(solution.coef, expected, rtol=1e-10)
        np.testing.assert_allclose(solution.coef, [1.5, 0.75, 5], rtol=1e-10)
        assert (solution.rank, solution.dependent) == (2, (0, 1))
        assert solution.condition_number == np.inf
        assert np.isinf(solution.vif[:2]).all()
        np.testing.assert_allclose(solution.vif[2], 1, rtol=0.02)
        np.testing.assert_allclose(solution.r2, 1)

    def test_minimum_norm_answer_does_not_depend_on_units(self, pair):
        a, c = pair
        target = 3 * a + 5 * c
        plain = solved(np.column_stack([a, a, c]), target)
        scaled = solved(np.column_stack([a, 1e6 * a, c]), target)
        np.testing.assert_allclose(scaled.coef * [1, 1e6, 1], plain.coef, rtol=1e-10)

    def test_dependence_of_three_leaves_out_the_fourth(self, pair):
        a, c = pair
        d = np.random.default_rng(5).standard_normal(1000)
        solution = solved(np.column_stack([a, d, c, a - 3 * c]), a + d)
        assert (solution.rank, solution.dependent) == (3, (0, 2, 3))
        np.testing.assert_allclose(solution.coef[1], 1, rtol=1e-10)

    @pytest.mark.parametrize("positive", [False, True])
    def test_zero_column_has_coefficient_zero_and_is_named(self, pair, positive):
        a, c = pair
        design = np.column_stack([a, 0 * a, c])
        solution = solved(design, 3 * a + 5 * c, positive=positive)
        np.testing.assert_allclose(solution.coef, [3, 0, 5], rtol=1e-12)
        assert (solution.rank, solution.dependent) == (2, (1,))
        assert solution.cosine[1] == 0
        np.testing.assert_allclose(solution.vif[0], solution.vif[2], rtol=1e-12)

    def test_only_zero_columns(self, pair):
        solution = solved(np.zeros((1000, 2)), pair[0])
        assert (solution.rank, solution.dependent, solution.r2) == (0, (0, 1), 0.0)
        assert not solution.coef.any()

    def test_columns_built_in_float32_are_judged_by_its_rounding(self, pair):
        a, c = pair.astype(np.float32)
        twice = (a + np.float32(0.1) * a) - np.float32(0.1) * a
        design = np.column_stack([a, np.float32(1 / 3) * twice, c])
        target = 3 * a + 5 * c
        assert np.abs(design[:, 1] * 3 - a).max() > 0
        found = solved(design, target, eps=EPS32)
        assert (found.rank, found.dependent) == (2, (0, 1))
        np.testing.assert_allclose(found.coef @ [1, 1 / 3, 0], 3, rtol=1e-5)
        np.testing.assert_allclose(found.coef[2], 5, rtol=1e-5)

    @pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9])
    def test_near_collinear_columns_are_still_told_apart(self, pair, distance):
        a, c = pair
        design = np.column_stack([a, a + distance * c])
        solution = solved(design, design @ [1.0, 2.0])
        assert solution.rank == 2
        np.testing.assert_allclose(solution.coef, [1, 2], rtol=20 * EPS * solution.condition_number)
        np.testing.assert_allclose(solution.condition_number, 2 / distance, rtol=0.05)

    def test_no_more_equations_than_terms(self):
        design = np.array([[1.0, 2.0, 2.0]])
        solution = solved(design, np.array([6.0]))
        assert solution.rank == 1
        # Unit columns share the target equally.
        np.testing.assert_allclose(solution.coef, [2, 1, 1], rtol=1e-12)
        np.testing.assert_allclose(solution.r2, 1)

    def test_rank_of_a_very_tall_design_is_not_lost(self):
        rng = np.random.default_rng(6)
        design = rng.standard_normal((200_000, 2)).astype(np.float32)
        solution = solved(design, design @ np.array([1, -2], np.float32), eps=EPS32)
        assert solution.rank == 2
        np.testing.assert_allclose(solution.coef, [1, -2], rtol=1e-6)


class TestNonNegative:
    @pytest.mark.parametrize("seed", range(20))
    def test_equals_nnls_on_the_full_system(self, seed):
        design, target = random_equations(k=5, seed=seed, noise=3.0)
        solution = solved(design, target, positive=True)
        expected, distance = scipy.optimize.nnls(design, target)
        np.testing.assert_allclose(solution.coef, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(solution.rss, distance**2, rtol=1e-10)
        np.testing.assert_array_equal(solution.active, expected > 0)

    def test_equals_least_squares_where_all_are_positive(self):
        design, _ = random_equations(k=3)
        target = design @ [1.0, 2.0, 3.0]
        np.testing.assert_allclose(
            solved(design, target, positive=True).coef, [1, 2, 3], rtol=1e-12
        )

    def test_all_left_at_zero(self):
        design = np.ones((10, 1))
        solution = solved(design, -np.ones(10), positive=True)
        assert (solution.coef[0], solution.r2, solution.active[0]) == (0.0, 0.0, False)
        assert solution.cosine[0] == -1

    def test_optimality_with_badly_scaled_terms(self):
        design, target = random_equations(k=4, seed=3, noise=2.0)
        design = design * [1e-8, 1, 1e8, 1e3]
        solution = solved(design, target, positive=True)
        pull = (design / np.linalg.norm(design, axis=0)).T @ (target - design @ solution.coef)
        assert (solution.coef >= 0).all()
        assert (pull <= 1e-10).all()
        np.testing.assert_allclose(pull[solution.active], 0, atol=1e-10)

    def test_collinear_pair(self):
        a, c = np.random.default_rng(4).standard_normal((2, 100))
        solution = solved(np.column_stack([a, 2 * a, c]), 3 * a + 5 * c, positive=True)
        np.testing.assert_allclose(solution.coef @ [1, 2, 0], 3, rtol=1e-12)
        assert solution.dependent == (0, 1)


def test_zero_target_explains_nothing():
    design, _ = random_equations(k=2)
    for positive in (False, True):
        solution = solved(design, np.zeros(len(design)), positive=positive)
        assert (solution.r2, solution.rss, solution.tss, solution.shortfall) == (0, 0, 0, 1)
        assert not solution.coef.any()
        assert not solution.cosine.any()


def test_orthogonal_target_explains_nothing():
    solution = solved(np.array([[1.0], [1.0]]), np.array([1.0, -1.0]))
    np.testing.assert_allclose(solution.r2, 0, atol=1e-15)
    assert solution.r2 >= 0


def test_whitener_makes_the_columns_orthonormal():
    design, target = random_equations(k=4)
    basis = design @ decompose(r_factor(design, target)).whitener
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-12)
