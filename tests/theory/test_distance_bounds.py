"""How far coefficients can be from the true ones: bounds against simulated errors."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from scipy.linalg import block_diag
from sklearn.linear_model import Ridge

from sklearn_implicitreg import ImplicitRegularizationEstimator, LinearModel, equations
from sklearn_implicitreg.theory import (
    coefficient_bounds,
    distance_bound,
    effective_parameters,
    error_inflation,
    gradient_bound,
    smallest_detectable,
)

M, DRAWS = 90, 4000
ALIKE = block_diag(*[0.6 + 0.4 * np.eye(15)] * 6)  # six groups of correlated errors
SIGMAS = {
    "independent": np.eye(M),
    "in groups": ALIKE,
    "along a chain": 0.8 ** np.abs(np.subtract.outer(range(M), range(M))),
    "of two sizes": np.diag(np.where(np.arange(M) % 9, 0.1, 8.2)),
}


def design_of(k, seed=0):
    """Columns of very different lengths, the last close to the first."""
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(M, k)) * np.logspace(0, 2, k) + 0.5
    design[:, -1] += 300 * design[:, 0] * (k > 1)
    return design


def distances(design, sigma, noise, signs=False, seed=1):
    """Errors of least squares, (draws, k), with Gaussian errors or signs, both sub-Gaussian."""
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(M, DRAWS))
    root = np.linalg.cholesky(sigma)
    return (np.linalg.pinv(design) @ (noise * root @ (np.sign(draws) if signs else draws))).T


class TestDistanceBound:
    @pytest.mark.parametrize("signs", [False, True], ids=["normal", "signs"])
    @pytest.mark.parametrize("k", [1, 2, 7])
    @pytest.mark.parametrize("kind", SIGMAS)
    def test_holds_and_is_within_1_7_of_the_true_quantile(self, kind, k, signs):
        design, sigma = design_of(k), SIGMAS[kind]
        away = np.linalg.norm(distances(design, sigma, 0.3, signs), axis=1)
        bound = distance_bound(design, noise=0.3, error_covariance=sigma)
        assert (away > bound).mean() <= 0.05
        assert bound <= 1.75 * np.quantile(away, 0.95)  # the quantile itself is good to 2 %
        printed = distance_bound(design, noise=0.3, error_covariance=sigma, form="printed")
        assert printed > bound

    def test_printed_is_the_formula_of_the_paper(self):
        design, sigma, p, k = design_of(3), SIGMAS["along a chain"], M, 3
        eigenvalues = np.linalg.eigvalsh(design.T @ design / p)
        onto = design @ np.linalg.pinv(design)
        rho = np.linalg.eigvalsh(onto @ sigma @ onto)[-1]
        size = k * np.log(5) + np.log(1 / 0.1)
        expected = 2 * 0.3 / eigenvalues[0] * np.sqrt(2 * eigenvalues[-1] * rho * size / p)
        expected += 0.02 / eigenvalues[0]
        options = {"noise": 0.3, "error_covariance": sigma, "alpha": 0.1, "form": "printed"}
        assert distance_bound(design, bias=0.02 * p, **options) == pytest.approx(expected, rel=1e-9)

    def test_misfit_moves_the_coefficients_by_at_most_its_summand(self):
        design = design_of(3)
        delta = design @ np.linalg.svd(design.T @ design)[0][:, -1]
        moved = np.linalg.norm(np.linalg.pinv(design) @ delta)
        bias = np.linalg.norm(design.T @ delta)
        assert distance_bound(design, noise=0.0, bias=bias) == pytest.approx(moved, rel=1e-9)

    def test_of_the_equations_of_a_fit(self):
        rng = np.random.default_rng(2)
        X, y = rng.normal(size=(200, 8)), rng.normal(size=200)
        model = Ridge(alpha=5.0).fit(X, y)
        regression = equations(model, X, y, "l2 + l1")
        noisy = regression.target + 0.01 * rng.normal(size=8)
        fitted = np.linalg.lstsq(regression.data.to_numpy(), noisy.to_numpy(), rcond=None)[0]
        away = np.linalg.norm(fitted - [5 / 200, 0])
        assert away <= distance_bound(regression.data, noisy) < 20 * away

    def test_an_r_factor_says_what_its_design_says(self):
        design = design_of(4)
        upper = np.linalg.qr(design, mode="r")
        for form in ("sharp", "printed"):
            whole = distance_bound(design, noise=0.2, form=form)
            assert distance_bound(upper, noise=0.2, form=form) == pytest.approx(whole, rel=1e-9)

    def test_noise_of_the_residuals(self):
        design, sigma = design_of(2), SIGMAS["of two sizes"]
        rng = np.random.default_rng(3)
        given = distance_bound(design, noise=0.3, error_covariance=sigma)
        found = [
            distance_bound(design, target, error_covariance=np.diagonal(sigma))
            for target in 0.3 * rng.normal(size=(400, M)) * np.sqrt(np.diagonal(sigma))
        ]
        assert np.sqrt(np.mean(np.square(found))) == pytest.approx(given, rel=0.05)


class TestCoefficientBounds:
    @pytest.mark.parametrize("kind", SIGMAS)
    def test_hold_for_each(self, kind):
        design, sigma = design_of(4), SIGMAS[kind]
        away = np.abs(distances(design, sigma, 0.3))
        bounds = coefficient_bounds(design, noise=0.3, error_covariance=sigma)
        assert ((away > bounds).mean(axis=0) <= 0.05).all()
        assert (bounds <= 1.5 * np.quantile(away, 0.95, axis=0)).all()

    def test_with_groups_as_the_jackknife_of_a_fit(self):
        rng = np.random.default_rng(4)
        design, groups = rng.normal(size=(60, 2)), np.repeat(list("abcdef"), 10)
        target = design @ [1.0, 2.0] + rng.normal(size=6)[np.repeat(range(6), 10)]
        whole = np.linalg.lstsq(design, target, rcond=None)[0]
        rest = [
            np.linalg.lstsq(design[groups != g], target[groups != g], rcond=None)[0]
            for g in "abcdef"
        ]
        std_err = np.sqrt(5 / 6 * np.square(rest - whole).sum(axis=0))
        bounds = coefficient_bounds(design, target, groups=groups, alpha=0.1)
        assert bounds == pytest.approx(std_err * np.sqrt(2 * np.log(20)), rel=1e-9)


class TestInflation:
    def test_groups_of_equal_errors_count_once(self):
        sigma = sparse.block_diag([np.ones((5, 5))] * 20)
        design = np.repeat(np.random.default_rng(5).normal(size=(20, 2)), 5, axis=0)
        assert error_inflation(design, error_covariance=sigma) == pytest.approx(5.0)
        assert effective_parameters(design, error_covariance=sigma) == pytest.approx(20.0)
        inside = np.tile([1.0, -1.0, 0.0, 2.0, -2.0], 20)[:, None]  # sums to zero in each group
        assert error_inflation(inside, error_covariance=sigma) == pytest.approx(0.0, abs=1e-12)

    def test_estimate_of_groups(self):
        rng = np.random.default_rng(6)
        groups = np.repeat(range(300), 4)
        design = np.repeat(rng.normal(size=(300, 1)), 4, axis=0)
        target = rng.normal(size=300)[groups]
        assert error_inflation(design, target, groups=groups) == pytest.approx(4.0, rel=0.2)
        assert error_inflation(design, rng.normal(size=1200), groups=groups) < 1.4

    def test_independent_errors(self):
        assert error_inflation(design_of(3)) == pytest.approx(1.0)
        assert effective_parameters(design_of(3)) == pytest.approx(M)


class TestGradientBound:
    @pytest.mark.parametrize("alpha", [0.3, 0.05])
    def test_a_finite_class(self, alpha):
        rng = np.random.default_rng(7)
        p, n_members, noise = 40, 30, 0.5
        members = rng.normal(size=(n_members, p))
        members[1:11] = members[0] + 0.2 * members[1:11]
        draws = noise * rng.normal(size=(3000, p)) + members[0] + 0.1
        nearest = np.square(draws[:, None] - members).sum(2).argmin(1)
        errors = np.square(members[nearest] - members[0]).mean(1)
        sizes = {"noise": noise, "log_covering": np.log(n_members), "alpha": alpha}
        bound = gradient_bound(p, **sizes, misfit=0.1)
        assert (errors > bound).mean() <= alpha
        assert (errors > 0).mean() > 0.05  # some draws mislead

    def test_a_line_by_a_cover(self):
        """``t u`` with t in [-1, 1] and u of root mean square 1, covered by ten points."""
        rng = np.random.default_rng(8)
        p, noise, u = 20, 1.0, np.ones(20)
        fitted = np.clip(noise * rng.normal(size=(5000, p)) @ u / p, -1, 1)
        bound = gradient_bound(p, noise=noise, log_covering=np.log(10), radius=0.1)
        assert (fitted**2 > bound).mean() <= 0.05

    def test_correlated_errors_cost_their_inflation(self):
        one = gradient_bound(100, noise=1.0, log_covering=2.0)
        assert gradient_bound(100, noise=1.0, log_covering=2.0, inflation=4.0) == pytest.approx(
            4 * one
        )


class TestSmallestDetectable:
    @pytest.mark.parametrize("df", [1, 4, 30, np.inf])
    @pytest.mark.parametrize("power", [0.2, 0.8, 0.99])
    def test_is_found_with_this_power(self, df, power):
        rng = np.random.default_rng(9)
        coef = smallest_detectable(0.3, df=df, alpha=0.1, power=power)
        scale = 1.0 if np.isinf(df) else np.sqrt(rng.chisquare(df, 100_000) / df)
        t = (coef + 0.3 * rng.normal(size=100_000)) / (0.3 * scale)
        critical = stats.norm.isf(0.05) if np.isinf(df) else stats.t.isf(0.05, df)
        assert (np.abs(t) > critical).mean() == pytest.approx(power, abs=0.005)

    def test_of_a_fit(self):
        """A coefficient of this size is found in four of five data sets."""
        rng = np.random.default_rng(10)
        design = rng.normal(size=(30, 2))
        options = {"model": "precomputed", "covariance": "ols"}
        est = ImplicitRegularizationEstimator(**options).fit(design, rng.normal(size=30))
        small = est.smallest_detectable()
        assert small == pytest.approx(smallest_detectable(est.std_err_, df=28), rel=1e-9)
        truth = small * np.sqrt(1 / (est.std_err_**2 / _variance(design)))
        found = [
            ImplicitRegularizationEstimator(**options).fit(design, y).pvalues_ < 0.05
            for y in design @ np.diag(truth)[0] + rng.normal(size=(300, 30))
        ]
        assert np.mean(found, axis=0)[0] == pytest.approx(0.8, abs=0.07)

    def test_without_a_gradient_rounding_is_the_limit(self):
        """What stands out from rounding is found, and a hundredth of it is not."""
        rng = np.random.default_rng(11)
        X, y = rng.normal(size=(50, 6)), rng.normal(size=50)
        theta = np.linalg.lstsq(X, y, rcond=None)[0]
        est = ImplicitRegularizationEstimator(LinearModel(theta)).fit(X, y)
        assert est.verdict_ == "no signal"
        small = est.smallest_detectable()[0]
        assert 0 < small < 1e-10
        for factor, verdict in [(10.0, "supported"), (0.01, "no signal")]:
            gram = X.T @ X / 50 + factor * small * np.eye(6)
            model = LinearModel(np.linalg.solve(gram, X.T @ y / 50))
            assert ImplicitRegularizationEstimator(model).fit(X, y).verdict_ == verdict

    def test_dependent_columns_have_none(self):
        rng = np.random.default_rng(12)
        column = rng.normal(size=20)
        design = pd.DataFrame({"a": column, "b": 2 * column, "c": rng.normal(size=20)})
        with pytest.warns(match="linearly dependent"):
            est = ImplicitRegularizationEstimator("precomputed").fit(design, rng.normal(size=20))
        assert np.isnan(est.smallest_detectable()).tolist() == [True, True, False]


def _variance(design):
    """Diagonal of the inverse Gram matrix."""
    return np.diagonal(np.linalg.inv(design.T @ design))


GOOD = {"design": np.eye(4)[:, :2] + 1.0, "target": np.arange(4.0)}
WRONG = {
    "dependent columns": ({"design": np.ones((4, 2))}, "Expected linearly independent columns"),
    "a zero column": ({"design": np.eye(4)[:, :2] * [1, 0]}, "Expected linearly independent"),
    "more columns than rows": ({"design": np.eye(4)[:2]}, "got 4 columns of 2 equations"),
    "an infinite design": ({"design": [[np.inf], [1.0]]}, "Expected design to be a matrix of fini"),
    "a short target": ({"target": [1.0]}, "Expected target to be 4 finite numbers"),
    "no noise": ({"target": None}, "Expected noise=, or a target of more than 2 equations"),
    "a negative noise": ({"noise": -1.0}, "Expected noise of distance_bound to be None or a fin"),
    "a form": ({"form": "tight"}, "Expected form of distance_bound to be 'sharp' or 'printed'"),
    "a wrong shape": ({"error_covariance": np.eye(3)}, r"of shape \(4, 4\), or \(4,\) for its"),
    "no covariance": ({"error_covariance": -np.ones(4)}, "Expected error_covariance to be a cov"),
    "lopsided": ({"error_covariance": np.triu(np.ones((4, 4)))}, "not symmetric"),
    "NaN": ({"error_covariance": np.full(4, np.nan)}, "not finite"),
    "one group": ({"groups": [1, 1, 1, 1]}, "labels of at least 2 clusters"),
    "too few labels": ({"groups": [1, 2]}, "Expected groups as 4 labels"),
    "groups and noise": ({"groups": [1, 1, 2, 2], "noise": 1.0}, "Expected groups with target"),
    "a group alone": (
        {"design": np.eye(4)[:, :2], "groups": [1, 2, 2, 2]},
        "group .*1.* alone determines; leave groups out",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input(kind):
    given, text = WRONG[kind]
    with pytest.raises(ValueError, match=text):
        distance_bound(**(GOOD | given))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"power": 0.05}, "Expected power > alpha"),
        ({"power": 1.0}, "Expected power of smallest_detectable"),
        ({"df": 0.0}, "Expected df of smallest_detectable to be a finite number >= 1 or inf"),
        ({"std_err": [-1.0]}, "Expected std_err of numbers >= 0"),
    ],
    ids=str,
)
def test_wrong_power(given, text):
    with pytest.raises(ValueError, match=text):
        smallest_detectable(**({"std_err": [1.0]} | given))
