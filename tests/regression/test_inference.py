"""Standard errors over equations, against statsmodels, explicit loops and simulation."""

import numpy as np
import pytest
from scipy import stats

from sklearn_implicitreg.regression.inference import (
    COVARIANCES,
    infer,
    one_data_set,
    spread,
    without_numbers,
)
from sklearn_implicitreg.regression.restrictions import wald
from sklearn_implicitreg.regression.solve import solve
from sklearn_implicitreg.regression.system import System

NAMES = ("l2", "l1", "l21")


def fitted(design, target, groups=None, positive=False, names=None, **options):
    names = names or [f"term{j}" for j in range(np.shape(design)[1])]
    system = System.from_arrays(design, target, names, groups)
    solution = solve(system.r_factor, system.n_equations, positive=positive)
    return solution, infer(system, solution, **options)


def equations(m=300, n_clusters=6, seed=0):
    rng = np.random.default_rng(seed)
    design = rng.standard_normal((m, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0.2], [0, 0, 2.0]])
    target = design @ [1.0, -2.0, 0.5] + rng.standard_normal(m) * np.exp(design[:, 0] / 2)
    return design, target, rng.integers(0, n_clusters, m)


def delete_one_cluster(design, target, groups):
    """Jackknife by refitting the rows of the other clusters, one cluster after the other."""
    coef = np.linalg.lstsq(design, target, rcond=None)[0]
    labels = np.unique(groups)
    refits = [
        np.linalg.lstsq(design[groups != c], target[groups != c], rcond=None)[0] for c in labels
    ]
    spread = np.array(refits) - coef
    return (len(labels) - 1) / len(labels) * spread.T @ spread


class TestAgainstStatsmodels:
    @pytest.mark.parametrize("name", ["ols", "nonrobust"])
    @pytest.mark.parametrize("level", [0.95, 0.8])
    def test_ols(self, name, level, sm):
        design, target, _ = equations()
        _, inference = fitted(design, target, covariance=name, confidence_level=level)
        expected = sm.OLS(target, design).fit()
        np.testing.assert_allclose(inference.cov, expected.cov_params(), rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(inference.std_err, expected.bse, rtol=1e-10)
        np.testing.assert_allclose(inference.tvalues, expected.tvalues, rtol=1e-10)
        np.testing.assert_allclose(inference.pvalues, expected.pvalues, rtol=1e-10, atol=1e-300)
        np.testing.assert_allclose(inference.conf_int, expected.conf_int(1 - level), rtol=1e-10)
        assert (inference.covariance, inference.df) == ("ols", 297)

    def test_hc3(self, sm):
        design, target, _ = equations()
        _, inference = fitted(design, target, covariance="hc3")
        expected = sm.OLS(target, design).fit().get_robustcov_results("HC3", use_t=True)
        np.testing.assert_allclose(inference.cov, expected.cov_params(), rtol=1e-10)
        np.testing.assert_allclose(inference.pvalues, expected.pvalues, rtol=1e-10, atol=1e-300)
        np.testing.assert_allclose(inference.conf_int, expected.conf_int(), rtol=1e-10)
        assert (inference.covariance, inference.df) == ("hc3", 297)

    def test_every_row_its_own_cluster_is_hc3(self, sm):
        design, target, _ = equations(m=60)
        _, inference = fitted(design, target, np.arange(60), covariance="cluster")
        expected = sm.OLS(target, design).fit().get_robustcov_results("HC3").cov_params()
        np.testing.assert_allclose(inference.cov, 59 / 60 * expected, rtol=1e-10)

    def test_longley(self, sm):
        data = sm.datasets.longley.load_pandas()
        design = np.column_stack([np.ones(16), data.exog.to_numpy()])
        _, inference = fitted(design, data.endog.to_numpy(), covariance="ols")
        # Certified by the National Institute of Standards and Technology.
        certified = [
            890420.383607373,
            84.9149257747669,
            0.334910077722432e-01,
            0.488399681651699,
            0.214274163161675,
            0.226073200069370,
            455.478499142212,
        ]
        np.testing.assert_allclose(inference.std_err, certified, rtol=1e-8)


class TestJackknife:
    @pytest.mark.parametrize("n_clusters", [4, 6, 25])
    @pytest.mark.parametrize("name", ["auto", "cluster"])
    def test_equals_refits(self, n_clusters, name):
        design, target, groups = equations(n_clusters=n_clusters)
        _, inference = fitted(design, target, groups, covariance=name)
        expected = delete_one_cluster(design, target, groups)
        np.testing.assert_allclose(inference.cov, expected, rtol=1e-9, atol=1e-14)
        assert (inference.covariance, inference.df) == ("cluster", n_clusters - 1)
        assert f"over {n_clusters} clusters of 300 equations" in inference.description

    def test_t_distribution_of_clusters_less_one(self):
        design, target, groups = equations()
        solution, inference = fitted(design, target, groups)
        half = stats.t.ppf(0.975, 5) * inference.std_err
        np.testing.assert_allclose(inference.conf_int[:, 1] - solution.coef, half, rtol=1e-12)
        expected = 2 * stats.t.sf(np.abs(solution.coef / inference.std_err), 5)
        np.testing.assert_allclose(inference.pvalues, expected, rtol=1e-12)

    def test_units_of_the_terms(self):
        design, target, groups = equations()
        units = np.array([1e-9, 1.0, 1e10])
        plain = fitted(design, target, groups)[1]
        scaled = fitted(design * units, target, groups)[1]
        np.testing.assert_allclose(scaled.std_err * units, plain.std_err, rtol=1e-9)

    def test_two_clusters_only_on_request(self):
        design, target, groups = equations(n_clusters=2)
        _, inference = fitted(design, target, groups, covariance="cluster")
        np.testing.assert_allclose(
            inference.cov, delete_one_cluster(design, target, groups), rtol=1e-9
        )
        assert inference.df == 1


class TestAuto:
    @pytest.mark.parametrize("n_clusters", [1, 2, 3])
    def test_few_clusters_fall_back_to_hc3(self, n_clusters):
        design, target, groups = equations(n_clusters=n_clusters)
        _, inference = fitted(design, target, groups)
        assert inference.covariance == "hc3"
        few = "1 cluster is" if n_clusters == 1 else f"{n_clusters} clusters are"
        assert inference.description == (
            f"robust (HC3) over 300 equations, t(297); no cluster errors: {few} too few"
        )

    def test_column_of_one_cluster_falls_back_to_hc3(self):
        design, target, groups = equations()
        design[groups != 2, 1] = 0
        _, inference = fitted(design, target, groups)
        assert inference.covariance == "hc3"
        assert "a column without support once cluster '2' is left out" in inference.description

    def test_columns_that_only_one_cluster_tells_apart(self):
        design, target, groups = equations()
        design[groups != 3, 1] = 2 * design[groups != 3, 0]
        _, inference = fitted(design, target, groups)
        assert inference.covariance == "hc3"
        assert "cluster '3'" in inference.description

    def test_equations_that_cannot_be_read_again_fall_back_to_ols(self):
        design, target, _ = equations()
        whole = System.from_arrays(design, target, NAMES)
        system = System(NAMES, whole.labels, whole.r_factors, whole.counts)
        inference = infer(system, solve(system.r_factor, 300))
        assert inference.covariance == "ols"
        assert (
            "no cluster errors: 1 cluster is too few; no robust errors: equations"
            in inference.description
        )

    def test_row_of_leverage_one_falls_back_to_ols(self):
        design, target, _ = equations()
        design[1:, 2] = 0
        _, inference = fitted(design, target)
        assert inference.covariance == "ols"
        assert "leverage 1" in inference.description


class TestNoStandardError:
    @pytest.mark.parametrize("covariance", COVARIANCES)
    @pytest.mark.parametrize("m", [1, 2, 3])
    def test_no_more_equations_than_coefficients(self, m, covariance):
        design, target, _ = equations()
        _, inference = fitted(design[:m], target[:m], covariance=covariance)
        assert np.isnan(inference.std_err).all()
        assert np.isnan(inference.conf_int).all()
        assert np.isnan(inference.pvalues).all()
        assert np.isnan(inference.cov).all()
        assert f"{m} equations for 3 coefficients" in inference.description

    @pytest.mark.parametrize("covariance", ["ols", "hc3", "cluster"])
    def test_dependent_columns(self, covariance):
        design, target, groups = equations()
        a, b, _ = design.T
        _, inference = fitted(np.column_stack([a, b, 2 * a]), target, groups, covariance=covariance)
        reduced = fitted(np.column_stack([a, b]), target, groups, covariance=covariance)[1]
        np.testing.assert_array_equal(np.isnan(inference.std_err), [True, False, True])
        np.testing.assert_allclose(inference.std_err[1], reduced.std_err[1], rtol=1e-10)
        np.testing.assert_allclose(inference.pvalues[1], reduced.pvalues[1], rtol=1e-8)

    @pytest.mark.parametrize("covariance", ["ols", "hc3", "cluster"])
    def test_columns_that_a_nonnegative_fit_left_at_zero(self, covariance):
        design, target, groups = equations()
        target = target + 3 * design[:, 0]
        solution, inference = fitted(design, target, groups, positive=True, covariance=covariance)
        np.testing.assert_array_equal(solution.active, [True, False, True])
        np.testing.assert_array_equal(np.isnan(inference.std_err), [False, True, False])
        reduced = fitted(design[:, [0, 2]], target, groups, covariance=covariance)[1]
        np.testing.assert_allclose(inference.std_err[[0, 2]], reduced.std_err, rtol=1e-9)

    def test_all_at_zero(self):
        _, inference = fitted(np.ones((9, 1)), -np.ones(9), positive=True)
        assert np.isnan(inference.std_err).all()
        assert inference.description == "no standard errors: no coefficient above zero"

    def test_exact_recovery_has_errors_of_rounding(self):
        design, _, groups = equations()
        for covariance in ("ols", "hc3", "cluster"):
            solution, inference = fitted(
                design, design @ [1.0, 2.0, 3.0], groups, covariance=covariance
            )
            np.testing.assert_allclose(solution.coef, [1, 2, 3], rtol=1e-12)
            assert (inference.std_err < 1e-13).all()
            assert (inference.pvalues < 1e-50).all() or covariance == "cluster"

    def test_zero_target(self):
        design, _, groups = equations()
        _, inference = fitted(design, np.zeros(300), groups)
        assert not inference.std_err.any()
        assert np.isnan(inference.tvalues).all()


class TestRounding:
    """An exact fit leaves of the target what rounding leaves."""

    def test_of_the_target(self):
        design, target, _ = equations()
        size = np.linalg.norm(target - design @ np.linalg.lstsq(design, target, rcond=None)[0])
        _, below = fitted(design, target, rounding=1.001 * size)
        _, above = fitted(design, target, rounding=0.999 * size)
        assert (below.exact, above.exact) == (True, False)
        assert below.log_likelihood == np.inf
        assert below.aic == below.bic == -np.inf
        assert np.isfinite([above.log_likelihood, above.aic, above.bic]).all()
        np.testing.assert_array_equal(below.cov, above.cov)

    @pytest.mark.parametrize("m", [3, 300])
    def test_of_the_columns(self, m):
        design = equations()[0][:m]
        assert fitted(design, design @ [1.0, 2.0, 3.0])[1].exact

    def test_of_resamples(self):
        solution, _ = fitted(np.ones((5, 1)), np.arange(5.0))
        alone = np.arange(5.0)[:, None]
        assert [spread(solution, alone, 0.95, rounding).exact for rounding in (0, 9)] == [0, 1]
        assert [one_data_set(solution, 0.95, rounding).exact for rounding in (0, 9)] == [0, 1]


class TestResamples:
    def test_spread_is_the_standard_deviation(self):
        solution, _ = fitted(np.ones((5, 1)), np.arange(5.0))
        found = spread(solution, np.arange(5.0)[:, None], 0.95)
        np.testing.assert_allclose(found.std_err, [np.std(np.arange(5.0), ddof=1)], rtol=1e-12)
        half = stats.t.ppf(0.975, 4) * found.std_err[0]
        np.testing.assert_allclose(found.conf_int, [[2 - half, 2 + half]], rtol=1e-12)
        assert (found.covariance, found.df) == ("bootstrap", 4)

    def test_resamples_without_coefficients_are_left_out(self):
        solution, _ = fitted(np.ones((5, 1)), np.arange(5.0))
        alone = np.array([0.0, 1.0, np.nan, 2.0, 3.0, 4.0])[:, None]
        assert spread(solution, alone, 0.95).df == 4
        few = spread(solution, alone[:4], 0.95)
        assert np.isnan(few.std_err).all()
        assert "3 resamples have coefficients by themselves, fewer than 4" in few.description

    def test_models_on_one_data_set_have_no_standard_errors(self):
        solution, _ = fitted(np.ones((5, 1)), np.arange(5.0))
        found = one_data_set(solution, 0.95)
        assert np.isnan(found.std_err).all()
        assert found.covariance == "none"
        assert "endpoints share their rows and are no resamples of them" in found.description

    def test_without_numbers_all_are_nan(self):
        solution, inference = fitted(*equations())
        blank, nothing = without_numbers(solution, inference)
        assert np.isnan(blank.coef).all()
        assert (blank.r2, blank.shortfall) == (0.0, 1.0)
        for name in ("cov", "std_err", "tvalues", "pvalues", "conf_int", "aic", "bic"):
            assert np.isnan(getattr(nothing, name)).all()
        assert np.isnan(nothing.log_likelihood)
        assert not nothing.exact


def test_known_answer():
    _, inference = fitted(np.ones((3, 1)), [1.0, 2.0, 3.0], covariance="ols")
    np.testing.assert_allclose(inference.std_err, [3**-0.5], rtol=1e-12)
    assert inference.df == 2


class TestRefusals:
    def test_unknown_covariance(self):
        with pytest.raises(ValueError, match=r"among \['auto', 'ols', .*\], got 'white'"):
            fitted(*equations(), covariance="white")

    @pytest.mark.parametrize("level", [0, 1, 95, np.nan])
    def test_level_outside_0_1(self, level):
        with pytest.raises(ValueError, match="Expected 0 < confidence_level < 1, got"):
            fitted(*equations(), confidence_level=level)

    def test_cluster_of_one(self):
        design, target, _ = equations()
        with pytest.raises(ValueError, match=r"gives? covariance='cluster', got 1 cluster; use"):
            fitted(design, target, covariance="cluster")

    def test_cluster_that_holds_a_column(self):
        design, target, groups = equations()
        design[groups != 2, 1] = 0
        with pytest.raises(ValueError, match="without support once cluster '2' is left out"):
            fitted(design, target, groups, covariance="cluster")

    def test_hc3_without_a_second_pass(self):
        system = System(("l2",), ("all",), (np.ones((2, 2)),), (9,))
        with pytest.raises(ValueError, match="cannot be read a second time"):
            infer(system, solve(system.r_factor, 9), covariance="hc3")


def coverage(covariance, draw, n_runs=1000):
    """Share of 95 % intervals that hold the true first coefficient, 1."""
    hits = 0
    for seed in range(n_runs):
        design, target, groups = draw(np.random.default_rng(seed))
        low, high = fitted(design, target, groups, covariance=covariance)[1].conf_int[0]
        hits += low <= 1 <= high
    return hits / n_runs


def clustered(rng):
    """Twelve clusters of unequal size, each with a coefficient and a noise level of its own."""
    groups = np.repeat(np.arange(12), rng.integers(5, 60, 12))
    design = rng.standard_normal((len(groups), 2)) + rng.standard_normal((12, 2))[groups]
    own = 1 + 0.5 * rng.standard_normal(12)
    noise = rng.standard_normal(len(groups)) * rng.uniform(0.2, 2, 12)[groups]
    return design, own[groups] * design[:, 0] - design[:, 1] + noise, groups


def heteroskedastic(rng):
    """Independent rows whose noise grows with the first column."""
    design = rng.standard_normal((100, 2))
    noise = rng.standard_normal(100) * (0.1 + design[:, 0] ** 2)
    return design, design[:, 0] + noise, None


@pytest.mark.slow
class TestSimulatedCoverage:
    def test_jackknife_of_clusters(self):
        assert 0.93 <= coverage("cluster", clustered) <= 0.985

    def test_ols_is_far_off_where_clusters_differ(self):
        assert coverage("ols", clustered) < 0.8

    def test_hc3_of_heteroskedastic_rows(self):
        assert 0.92 <= coverage("hc3", heteroskedastic) <= 0.98

    def test_ols_is_off_where_rows_are_heteroskedastic(self):
        assert coverage("ols", heteroskedastic) < 0.85


class TestSizeOfTheJointTest:
    """Rejections at 5 % of a true null, nearly collinear columns beside a nuisance column."""

    @staticmethod
    def p_value(rng, n_clusters, k, m=12):
        base = rng.standard_normal((m, k + 1))
        base[:, 1:k] = base[:, :1] + 0.05 * base[:, 1:k]
        design = base + 0.1 * rng.standard_normal((n_clusters, m, k + 1))
        noise = rng.standard_normal((n_clusters, m)) @ rng.standard_normal((m, m))  # of a window
        target = design[:, :, k] + noise
        groups = np.repeat(np.arange(n_clusters), m)
        solution, inference = fitted(
            design.reshape(-1, k + 1), target.ravel(), groups, covariance="cluster"
        )
        return wald(np.eye(k + 1)[:k], solution.coef[:k], inference)[1], inference.pvalues[0]

    @pytest.mark.parametrize("k", [1, 2, 3])
    @pytest.mark.parametrize("n_clusters", [5, 12, 30])
    def test_is_the_level(self, n_clusters, k):
        rng = np.random.default_rng(1000 * k + n_clusters)
        n = {5: 500, 12: 250, 30: 120}[n_clusters]
        rejected = [self.p_value(rng, n_clusters, k)[0] < 0.05 for _ in range(n)]
        low, high = stats.binom.interval(0.998, n, 0.05)
        # The jackknife's covariance is a little too wide.
        assert 0.2 * low <= sum(rejected) <= high

    def test_of_one_coefficient_is_its_interval(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            joint, alone = self.p_value(rng, 6, 1)
            assert joint == pytest.approx(alone, rel=1e-9)
