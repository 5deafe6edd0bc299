"""What a statistician reads off a fit, against statsmodels on the same equations."""

import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, LinearRegression, Ridge
from sklearn.preprocessing import scale

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator, equations
from sklearn_implicitreg.regression.restrictions import wald
from sklearn_implicitreg.trajectory import record

sm = pytest.importorskip("statsmodels.api")
OLSInfluence = pytest.importorskip("statsmodels.stats.outliers_influence").OLSInfluence

TOL = 1e-10


@pytest.fixture(scope="module")
def longley():
    """Ridge on the standardized Longley data, and a family that it was not trained with."""
    data = sm.datasets.longley.load_pandas()
    X = (data.exog - data.exog.mean()) / data.exog.std()
    model = Ridge(alpha=0.5).fit(X, data.endog / data.endog.std())
    return model, X, data.endog / data.endog.std()


@pytest.fixture(scope="module")
def diabetes():
    X, y = scale(load_diabetes().data), scale(load_diabetes().target)
    return Ridge(alpha=1.0).fit(X, y), X, y


def both(case, covariance):
    """The fit and statsmodels' on the same design."""
    model, X, y = case
    est = ImplicitRegularizationEstimator(model, family="l1+power", covariance=covariance)
    rows = equations(model, X, y, families="l1+power")
    kind = {"ols": "nonrobust", "hc3": "HC3"}[covariance]
    # Without it a column of one sign would be taken for an intercept and R2 be centered.
    theirs = sm.OLS(rows.target, rows.data, hasconst=False).fit(cov_type=kind, use_t=True)
    return est.fit(X, y), theirs


@pytest.fixture(params=["longley", "diabetes"])
def case(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("covariance", ["ols", "hc3"])
class TestAgainstStatsmodels:
    def test_coefficients_tests_and_intervals(self, case, covariance):
        est, ols = both(case, covariance)
        np.testing.assert_allclose(est.coef_, ols.params, rtol=TOL)
        np.testing.assert_allclose(est.std_err_, ols.bse, rtol=TOL)
        np.testing.assert_allclose(est.to_frame()["statistic"], ols.tvalues, rtol=TOL)
        np.testing.assert_allclose(est.pvalues_, ols.pvalues, rtol=TOL)
        np.testing.assert_allclose(est.conf_int_, ols.conf_int(), rtol=TOL)

    def test_fit_and_criteria(self, case, covariance):
        est, ols = both(case, covariance)
        assert est.r2_ == pytest.approx(ols.rsquared, rel=TOL)
        assert est.aic_ == pytest.approx(ols.aic, rel=TOL)
        assert est.bic_ == pytest.approx(ols.bic, rel=TOL)
        content = json.loads(est.to_json())
        assert content["log_likelihood"] == pytest.approx(ols.llf, rel=TOL)
        assert content["df_resid"] == ols.df_resid
        assert [content["aic"], content["bic"]] == [est.aic_, est.bic_]

    def test_collinearity(self, case, covariance):
        est, ols = both(case, covariance)
        design = ols.model.exog
        # Uncentered, by the auxiliary regressions: recent versions of statsmodels' own function
        # center the columns, which the regression here does not.
        shares = [
            sm.OLS(column, np.delete(design, j, axis=1), hasconst=False).fit().rsquared
            for j, column in enumerate(design.T)
        ]
        vif = 1 / (1 - np.array(shares))
        np.testing.assert_allclose(est.vif_, vif, rtol=TOL)
        # Ours is of columns of unit norm: that of statsmodels depends on their units.
        unit = design / np.linalg.norm(design, axis=0)
        scaled = sm.OLS(ols.model.endog, unit, hasconst=False).fit()
        assert est.condition_number_ == pytest.approx(scaled.condition_number, rel=TOL)

    def test_header_has_the_numbers(self, case, covariance):
        est, ols = both(case, covariance)
        header = dict(est.summary().header)
        assert header["Equations"] == str(int(ols.nobs))
        assert header["Df residuals"] == str(int(ols.df_resid))
        assert header[f"F({int(ols.df_model)}, {int(ols.df_resid)})"] == f"{ols.fvalue:.4g}"
        assert header["Prob (F)"] == f"{ols.f_pvalue:.3g}"
        assert header["Log-likelihood"] == f"{ols.llf:.2f}"
        assert header["AIC"] == f"{ols.aic:.2f}"
        assert header["BIC"] == f"{ols.bic:.2f}"
        assert header["Covariance"] == covariance

    @pytest.mark.parametrize(
        "restrictions",
        ["l1 = 0", "l1 = 0, power = 0", "2*l1 - 3 = power/4 + 1", "l1 + power = 1"],
    )
    def test_wald(self, case, covariance, restrictions):
        est, ols = both(case, covariance)
        theirs = ols.wald_test(restrictions, use_f=True, scalar=True)
        mine = est.wald_test(restrictions)
        assert mine.statistic == pytest.approx(theirs.statistic, rel=TOL)
        assert mine.p_value == pytest.approx(theirs.pvalue, rel=TOL)
        assert (mine.df_num, mine.df_denom) == (theirs.df_num, theirs.df_denom)

    def test_influence(self, case, covariance):
        est, ols = both(case, covariance)
        frame, theirs = est.influence(), OLSInfluence(ols)
        for name, values in {
            "hat_diag": theirs.hat_matrix_diag,
            "resid": theirs.resid,
            "standard_resid": theirs.resid_studentized_internal,
            "student_resid": theirs.resid_studentized_external,
            "cooks_d": theirs.cooks_distance[0],
            "dffits": theirs.dffits[0],
        }.items():
            np.testing.assert_allclose(frame[name], values, rtol=TOL, err_msg=name)
        np.testing.assert_allclose(frame[["dfb_l1", "dfb_power"]], theirs.dfbetas, rtol=1e-9)


class TestCriteria:
    def test_compare_families_as_statsmodels_would(self, diabetes):
        model, X, y = diabetes
        theirs, mine = [], []
        for family in ("l1", "l1+power", "l21"):
            rows = equations(model, X, y, families=family)
            theirs.append(sm.OLS(rows.target, rows.data, hasconst=False).fit().bic)
            mine.append(ImplicitRegularizationEstimator(model, family=family).fit(X, y).bic_)
        np.testing.assert_allclose(mine, theirs, rtol=TOL)

    def test_exact_fit_has_criteria_of_minus_infinity(self, diabetes):
        model, X, y = diabetes
        est = ImplicitRegularizationEstimator(model).fit(X, y)
        assert est.aic_ == est.bic_ == -np.inf
        found = json.loads(est.to_json())
        assert [found[name] for name in ("aic", "bic", "log_likelihood")] == [None] * 3
        with pytest.raises(ValueError, match="got an exact fit"):
            est.influence()
        rows = np.random.default_rng(0).standard_normal((20, 2))
        given = ImplicitRegularizationEstimator("precomputed").fit(rows, rows @ [1.0, 2.0])
        assert given.aic_ == -np.inf
        near = ImplicitRegularizationEstimator("precomputed")
        near.fit(rows, rows @ [1.0, 2.0] + 1e-9 * rows[:, 0] ** 2)
        assert np.isfinite(near.aic_)
        assert near.influence().shape == (20, 8)

    def test_exact_fit_is_said(self, diabetes):
        model, X, y = diabetes
        est = ImplicitRegularizationEstimator(model).fit(X, y)
        header = dict(est.summary().header)
        assert header["AIC"] == header["BIC"] == header["Log-likelihood"] == "exact fit"
        assert (header["F(1, 9)"], header["Prob (F)"]) == ("exact fit", "exact fit")
        table = est.summary().table.loc["l2"]
        assert table[["std err", "t", "P>|t|"]].tolist() == ["exact", "-", "-"]
        summary = est.summary()
        for text in (summary.as_text(), summary.as_html(), summary.as_latex()):
            assert not re.search(r"e[+]\d\d", text)
        assert est.to_frame()["statistic"][0] > 1e10

    def test_rounding_errors_of_two_exact_terms_are_no_errors(self):
        rows = np.random.default_rng(0).normal(size=(20, 2))
        est = ImplicitRegularizationEstimator("precomputed").fit(rows, rows @ [1.0, 0.0])
        assert est.summary().table["std err"].tolist() == ["exact", "exact"]

    @pytest.mark.parametrize("column", [[1.0, 0.0, 0.0], [1.0, 2.0, 4.0]])
    def test_zero_residual(self, column):
        X = np.array(column)[:, None]
        est = ImplicitRegularizationEstimator("precomputed").fit(X, 2 * X[:, 0])
        assert est.aic_ == est.bic_ == -np.inf
        assert json.loads(est.to_json())["aic"] is None
        assert dict(est.summary().header)["AIC"] == "exact fit"

    def test_no_gradient_has_no_likelihood(self, diabetes):
        _, X, y = diabetes
        est = ImplicitRegularizationEstimator(LinearRegression().fit(X, y)).fit(X, y)
        assert np.isnan([est.aic_, est.bic_]).all()
        header = dict(est.summary().header)
        assert header["AIC"] == header["Prob (F)"] == "nan"

    def test_coefficients_kept_at_zero_are_not_counted(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((30, 2))
        y = X @ [2.0, -1.0] + rng.standard_normal(30)
        est = ImplicitRegularizationEstimator("precomputed", positive=True).fit(X, y)
        assert est.coef_[1] == 0
        assert est.aic_ == pytest.approx(sm.OLS(y, X[:, :1], hasconst=False).fit().aic, rel=TOL)

    def test_dependent_columns_are_counted_once(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((30, 1)) * [1.0, 2.0]
        y = rng.standard_normal(30)
        est = ImplicitRegularizationEstimator("precomputed")
        with pytest.warns(UserWarning, match="linearly dependent"):
            est.fit(X, y)
        assert est.aic_ == pytest.approx(sm.OLS(y, X[:, :1], hasconst=False).fit().aic, rel=TOL)

    def test_weights_of_equations(self):
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((30, 2)), rng.standard_normal(30)
        weight = rng.integers(1, 4, 30)
        est = ImplicitRegularizationEstimator("precomputed", covariance="ols")
        est.fit(X, y, sample_weight=weight)
        root = np.sqrt(weight)
        ols = sm.OLS(root * y, root[:, None] * X, hasconst=False).fit()
        assert est.aic_ == pytest.approx(ols.aic, rel=TOL)
        cooks = OLSInfluence(ols).cooks_distance[0]
        np.testing.assert_allclose(est.influence()["cooks_d"], cooks, rtol=TOL)


NAMES = ["l2", "l2[fc1]", "l2[conv(1, 2)=3]", "0.2*l2", "my term", "7"]


@pytest.fixture
def six():
    rng = np.random.default_rng(3)
    X = pd.DataFrame(rng.standard_normal((60, 6)), columns=NAMES)
    y = X.to_numpy() @ rng.standard_normal(6) + rng.standard_normal(60)
    return ImplicitRegularizationEstimator("precomputed").fit(X, y)


class TestWald:
    @pytest.mark.parametrize(
        ("text", "rows", "value"),
        [
            ("l2", [[1, 0, 0, 0, 0, 0]], [0]),
            ("l2 = l2[fc1]", [[1, -1, 0, 0, 0, 0]], [0]),
            ("l2[fc1]=l2[conv(1, 2)=3]", [[0, 1, -1, 0, 0, 0]], [0]),
            ("2*l2 + l2[fc1]*3 = -4", [[2, 3, 0, 0, 0, 0]], [-4]),
            ("(l2 - my term) / 2 = 1e-3", [[0.5, 0, 0, 0, -0.5, 0]], [1e-3]),
            ("0.2*l2 = +.5", [[0, 0, 0, 1, 0, 0]], [0.5]),
            ("l2 = my term = 1", [[1, 0, 0, 0, -1, 0], [0, 0, 0, 0, 1, 0]], [0, 1]),
            ("l2 == my term", [[1, 0, 0, 0, -1, 0]], [0]),
            ("l2, my term = 2", [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]], [0, 2]),
            (["l2", "l2[fc1] = 2"], [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]], [0, 2]),
        ],
    )
    def test_text_is_a_matrix(self, six, text, rows, value):
        mine, matrix = six.wald_test(text), six.wald_test(rows, value)
        assert mine.statistic == pytest.approx(matrix.statistic, rel=1e-13)
        assert mine.p_value == matrix.p_value or mine.p_value == pytest.approx(matrix.p_value)
        difference = np.array(rows) @ six.coef_ - value
        cov = np.array(rows) @ six._result.inference.cov @ np.array(rows).T
        by_hand = difference @ np.linalg.solve(cov, difference) / len(rows)
        assert mine.statistic == pytest.approx(by_hand, rel=TOL)

    def test_one_restriction_is_the_square_of_t(self, six):
        frame = six.to_frame()
        test = six.wald_test("l2[fc1]")
        assert test.statistic == pytest.approx(frame["statistic"][1] ** 2, rel=1e-12)
        assert test.p_value == pytest.approx(frame["p_value"][1], rel=1e-10)

    def test_is_printed_with_names_and_covariance(self, six):
        text = str(six.wald_test("l2[fc1] = 2*my term"))
        assert text.startswith("F(1, 54) = ")
        assert "for l2[fc1] = 2*my term; robust (HC3) over 60 equations" in text
        shown = six.wald_test([0, 1, 0, 0, -2, 0], 0.5).restrictions
        assert shown == ("l2[fc1] - 2*my term = 0.5",)

    @pytest.mark.parametrize(
        ("restrictions", "value", "message"),
        [
            ("l3 = 0", None, "not understood from 'l3 = 0' on"),
            ("l2l2 = 0", None, "not understood"),
            ("l2 * my term = 0", None, "Expected a linear equation"),
            ("1 / l2 = 0", None, "Expected a linear equation"),
            ("l2 / 0 = 0", None, "Expected a linear equation"),
            ("l2 === 0", None, "Expected a linear equation"),
            ("l2 = 1e400", None, "Expected numbers below 1.8e308"),
            ("l2 = 1e300 * 1e300", None, "Expected numbers below 1.8e308"),
            ("1" + "0" * 400 + "*l2 = 1", None, "Expected numbers below 1.8e308"),
            ("1" + "0" * 5000 + "*l2 = 1", None, "Expected a linear equation"),
            ("l2 + = 0", None, "Expected a linear equation"),
            ("l2 2 = 0", None, "Expected a linear equation"),
            ("", None, "Expected a linear equation"),
            ("l2 = 0,", None, "Expected a linear equation"),
            ("1 = 1", None, "none follows from others"),
            ("l2 = 0, 2*l2 = 1", None, "none follows from others"),
            ("l2 = 0", 1.0, "Expected the value in the text"),
            ([1.0, 2.0], None, "one column for each of"),
            ([1.0, 0, 0, 0, 0, 0], [1.0, 2.0], "a value of shape"),
            ([np.nan, 0, 0, 0, 0, 0], None, "finite"),
            ({"l2": 1}, None, "a list of these or a matrix"),
            ([], None, "one column for each of"),
        ],
    )
    def test_what_is_no_linear_restriction(self, six, restrictions, value, message):
        with pytest.raises(ValueError, match=message):
            six.wald_test(restrictions, value)

    def test_needs_standard_errors(self):
        X = np.array([[1.0, 2.0, 0.0], [2.0, 4.0, 1.0], [3.0, 6.0, 1.0], [1.0, 2.0, 5.0]])
        est = ImplicitRegularizationEstimator("precomputed", covariance="ols")
        with pytest.warns(UserWarning, match="linearly dependent"):
            est.fit(X, [1.0, 2.0, 0.0, 1.0])
        with pytest.raises(ValueError, match="'x0'.*none"):
            est.wald_test("x0 = x2")
        assert np.isfinite(est.wald_test("x2").statistic)

    def test_cannot_test_more_than_the_clusters(self):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(3, 3) for _ in range(4)]
        net = torch.nn.Sequential(*layers).double()
        X, y = torch.randn(20, 3).double(), torch.randn(20, 3).double()
        est = ImplicitRegularizationEstimator(net, loss="mse", family="l2+l1+l21+power")
        est.fit(X, y)
        assert est._result.inference.covariance == "cluster"
        with pytest.raises(ValueError, match="at most 3 restrictions"):
            est.wald_test(est.term_names_)
        assert est.wald_test("l2 = 0").df_denom == 3

    def test_units_of_the_terms_do_not_matter(self):
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((40, 2)), rng.standard_normal(40)
        one = ImplicitRegularizationEstimator("precomputed").fit(X, y).wald_test("x0, x1")
        other = ImplicitRegularizationEstimator("precomputed").fit(X * [1e9, 1e-9], y)
        assert other.wald_test("x0, x1").statistic == pytest.approx(one.statistic, rel=1e-10)

    def test_no_variance(self, six):
        certain = replace(six._result.inference, cov=np.zeros((6, 6)))
        first = np.eye(6)[:1]
        assert wald(first, np.array([1.0]), certain) == (np.inf, 0.0)
        assert np.isnan(wald(first, np.array([0.0]), certain)[0])


@pytest.fixture(scope="module")
def path():
    """Gradient descent of a linear module, with a penalty that the family has not."""
    torch.manual_seed(0)
    X, y = torch.randn(40, 5).double(), torch.randn(40, 1).double()
    net = torch.nn.Linear(5, 1).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with record(net, optimizer) as recorded:
        for _ in range(6):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(net(X), y)
            (loss + 0.1 * net.weight.abs().sum()).backward()
            optimizer.step()
    est = ImplicitRegularizationEstimator(
        net, loss="mse", mode="trajectory", trajectory=recorded.trajectory, family="l2+power"
    )
    est.fit(X, y)
    _, _, designs, targets = zip(*est._equations.system.single("to compare them"), strict=True)
    design, target = np.concatenate(designs), np.concatenate(targets)
    return est, sm.OLS(target, design, hasconst=False).fit()


class TestPath:
    def test_criteria_are_of_the_equations_of_all_windows(self, path):
        est, ols = path
        np.testing.assert_allclose(est.coef_, ols.params, rtol=TOL)
        assert est.aic_ == pytest.approx(ols.aic, rel=TOL)
        assert est.bic_ == pytest.approx(ols.bic, rel=TOL)
        header = dict(est.summary().header)
        assert header["Equations"] == str(int(ols.nobs)) == "30"
        assert header["AIC"] == f"{ols.aic:.2f}"

    def test_influence_names_the_window(self, path):
        est, ols = path
        frame, theirs = est.influence(), OLSInfluence(ols)
        assert frame.index.names == ["cluster", "tensor", "coordinate"]
        assert frame.index[7] == ("window 1", "weight", 2)
        np.testing.assert_allclose(frame["cooks_d"], theirs.cooks_distance[0], rtol=TOL)
        np.testing.assert_allclose(frame["student_resid"], theirs.resid_studentized_external)
        pd.testing.assert_frame_equal(est.influence(3), frame.nlargest(3, "cooks_d"))

    def test_joint_test_is_that_of_the_verdict(self, path):
        est, _ = path
        test = est.wald_test(est.term_names_)
        header = dict(est.summary().header)
        assert header[f"F({test.df_num:g}, {test.df_denom:g})"] == f"{test.statistic:.4g}"
        assert test.df_denom == 4  # six windows, two coefficients


class TestInfluence:
    def test_known_answer(self):
        est = ImplicitRegularizationEstimator("precomputed").fit(np.ones((3, 1)), [1.0, 2.0, 6.0])
        np.testing.assert_allclose(est.influence()["cooks_d"], [12 / 28, 3 / 28, 27 / 28])

    def test_deleting_an_equation_does_what_is_said(self):
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((20, 2)), rng.standard_normal(20)
        est = ImplicitRegularizationEstimator("precomputed", covariance="ols").fit(X, y)
        without = ImplicitRegularizationEstimator("precomputed").fit(X[1:], y[1:])
        s = np.sqrt(np.square(y[1:] - X[1:] @ without.coef_).sum() / 17)
        scale = s * np.sqrt(np.diag(np.linalg.inv(X.T @ X)))
        expected = (est.coef_ - without.coef_) / scale
        got = est.influence().loc[0, ["dfb_x0", "dfb_x1"]]
        np.testing.assert_allclose(got.to_numpy(dtype=float), expected, rtol=TOL)

    def test_rows_are_named_by_tensor_and_coordinate(self, diabetes):
        _, X, y = diabetes
        model = ElasticNet(alpha=0.05, tol=1e-10, max_iter=100_000).fit(X, y)
        model.coef_[3] = 0.0
        frame = ImplicitRegularizationEstimator(model, family="l2+l1").fit(X, y).influence()
        assert frame.index.names == ["tensor", "coordinate"]
        assert [i for _, i in frame.index] == [i for i in range(10) if model.coef_[i]]

    def test_rows_of_given_equations_keep_their_index(self):
        X = pd.DataFrame({"a": [1.0, 2.0, 5.0]}, index=["u", "v", "w"])
        est = ImplicitRegularizationEstimator("precomputed").fit(X, [1.0, 1.0, 0.0])
        assert est.influence().index.tolist() == ["u", "v", "w"]

    @pytest.mark.parametrize("top", [1, 7])
    def test_top_are_the_largest_in_chunks(self, top, monkeypatch):
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((500, 3)), rng.standard_normal(500)
        est = ImplicitRegularizationEstimator("precomputed").fit(X, y)
        whole = est.influence()
        monkeypatch.setattr("sklearn_implicitreg.results.influence._CHUNK", 64)
        largest = est.influence(top=top)
        pd.testing.assert_frame_equal(largest, whole.nlargest(top, "cooks_d"))
        pd.testing.assert_frame_equal(est.influence(), whole)

    def test_an_equation_alone_in_its_column(self):
        X = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        est = ImplicitRegularizationEstimator("precomputed", covariance="ols")
        frame = est.fit(X, [1.0, 2.0, 2.0, 3.0]).influence(top=1)
        assert frame.index.tolist() == [3]
        assert frame["cooks_d"].item() == np.inf
        assert frame[["student_resid", "dfb_x0"]].isna().all(axis=None)

    def test_coefficients_kept_at_zero_have_no_influence(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((30, 2))
        y = X @ [2.0, -1.0] + rng.standard_normal(30)
        est = ImplicitRegularizationEstimator("precomputed", positive=True).fit(X, y)
        frame, theirs = est.influence(), OLSInfluence(sm.OLS(y, X[:, :1], hasconst=False).fit())
        np.testing.assert_allclose(frame["cooks_d"], theirs.cooks_distance[0], rtol=TOL)
        np.testing.assert_allclose(frame["dfb_x0"], theirs.dfbetas[:, 0], rtol=1e-9)
        assert frame["dfb_x1"].isna().all()

    def test_choice_of_families_has_it_too(self, diabetes):
        model, X, y = diabetes
        search = ImplicitRegularizationCV(model, families=["l1", "power"]).fit(X, y)
        alone = ImplicitRegularizationEstimator(model, family=search.best_family_).fit(X, y)
        pd.testing.assert_frame_equal(search.influence(), alone.influence())
        assert search.aic_ == pytest.approx(alone.aic_, rel=1e-12)
        name = alone.term_names_[0]
        statistic = alone.wald_test(name).statistic
        assert search.wald_test(name).statistic == pytest.approx(statistic, rel=1e-12)

    def test_dependent_columns_have_no_change_of_their_own(self):
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((30, 2)), rng.standard_normal(30)
        est = ImplicitRegularizationEstimator("precomputed")
        with pytest.warns(UserWarning, match="linearly dependent"):
            est.fit(np.column_stack([X, 2 * X[:, 0]]), y)
        frame, theirs = est.influence(), OLSInfluence(sm.OLS(y, X, hasconst=False).fit())
        np.testing.assert_allclose(frame["cooks_d"], theirs.cooks_distance[0], rtol=TOL)
        np.testing.assert_allclose(frame["dfb_x1"], theirs.dfbetas[:, 1], rtol=1e-9)
        assert frame[["dfb_x0", "dfb_x2"]].isna().all(axis=None)

    def test_needs_a_coefficient_in_use(self):
        X = np.array([[1.0], [2.0]])
        est = ImplicitRegularizationEstimator("precomputed", positive=True).fit(X, -X[:, 0])
        with pytest.raises(ValueError, match="coefficient above zero, got none"):
            est.influence()

    def test_equations_are_not_pickled(self, diabetes):
        model, X, y = diabetes
        est = ImplicitRegularizationEstimator(model, family="l1").fit(X, y)
        again = pickle.loads(pickle.dumps(est))
        assert again.wald_test("l1").statistic == est.wald_test("l1").statistic
        with pytest.raises(ValueError, match="not pickled; fit again"):
            again.influence()

    def test_needs_a_gradient(self, diabetes):
        _, X, y = diabetes
        est = ImplicitRegularizationEstimator(LinearRegression().fit(X, y)).fit(X, y)
        with pytest.raises(ValueError, match="no gradient to explain"):
            est.influence()
        with pytest.raises(ValueError, match="top of influence .* integer >= 1, got 0"):
            ImplicitRegularizationEstimator("precomputed").fit(X, y).influence(top=0)
