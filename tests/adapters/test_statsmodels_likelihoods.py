"""Discrete, robust and quantile models of statsmodels: their own likelihood, their own penalty."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog, minimize

from sklearn_implicitreg import (
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    equations,
)
from sklearn_implicitreg.adapters import Data, Options, adapt

sm = pytest.importorskip("statsmodels.api")
discrete = pytest.importorskip("statsmodels.discrete.discrete_model")
norms = pytest.importorskip("statsmodels.robust.norms")

RNG = np.random.default_rng(0)
N = 150
EXOG = sm.add_constant(RNG.normal(size=(N, 3)))
ETA = EXOG @ [0.3, 0.5, -0.4, 0.2]
COUNTS = RNG.poisson(np.exp(ETA) * RNG.gamma(2, 0.5, size=N)).astype(float)
BITS = (ETA + RNG.logistic(size=N) > 0).astype(float)
LABELS = np.array(["b", "a", "c"])[RNG.integers(0, 3, N)]
OFFSET, EXPOSURE = RNG.normal(size=N) / 3, RNG.uniform(1, 2, N)
NUMBERS = ETA + RNG.standard_t(2, size=N)
P = EXOG.shape[1]

MODELS = {
    "Logit": lambda: sm.Logit(BITS, EXOG, offset=OFFSET),
    "Probit": lambda: sm.Probit(BITS, EXOG, offset=OFFSET),
    "Poisson": lambda: sm.Poisson(COUNTS, EXOG, offset=OFFSET, exposure=EXPOSURE),
    "NB2": lambda: sm.NegativeBinomial(COUNTS, EXOG, exposure=EXPOSURE),
    "NB1": lambda: sm.NegativeBinomial(COUNTS, EXOG, loglike_method="nb1", offset=OFFSET),
    "geometric": lambda: sm.NegativeBinomial(COUNTS, EXOG, loglike_method="geometric"),
    "NBP": lambda: sm.NegativeBinomialP(COUNTS, EXOG, p=1.5),
    "GP1": lambda: sm.GeneralizedPoisson(COUNTS, EXOG),
    "GP2": lambda: sm.GeneralizedPoisson(COUNTS, EXOG, p=2, exposure=EXPOSURE),
    "MNLogit": lambda: sm.MNLogit(LABELS, EXOG),
}


def results_at(model, params):
    """Results of a model whose parameters are given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = model.fit(
            start_params=params, maxiter=0, disp=0, method="bfgs", skip_hessian=True
        )
    shape = np.shape(results.params)
    results._results.params = np.asarray(params).reshape(shape, order="F")
    return results


def start(model):
    """Parameters away from the maximum, a dispersion of .4 behind them where there is one."""
    n = P * (model.J - 1) if hasattr(model, "J") else P
    return np.r_[np.linspace(-0.3, 0.5, n), [0.4] * int(getattr(model, "k_extra", 0))]


def likelihood(model):
    """Mean of minus the log-likelihood of statsmodels, at the dispersion itself."""
    model._transparams = False
    return lambda params: -model.loglike(np.asarray(params)) / N


def numeric(function, at):
    return np.array([(function(at + h) - function(at - h)) / 2e-5 for h in np.eye(len(at)) * 1e-5])


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_gradient_is_that_of_the_log_likelihood(make):
    model = make()
    params = start(model)
    y = LABELS if hasattr(model, "J") else model.endog
    problem = adapt(results_at(model, params), Data(EXOG, y), Options())
    mean = likelihood(make())
    slope = numeric(lambda p: mean(np.r_[p, params[len(p) :]]), params[: problem.coef.size])
    gradient = problem.gradient()
    found = np.hstack([gradient.value["const"], gradient.value["coef"]]).reshape(-1)
    np.testing.assert_allclose(found, slope, atol=2e-9)
    assert gradient.weight == N
    if "deviance" not in problem.loss_name:  # which differs by a constant
        assert gradient.loss == pytest.approx(mean(params), rel=1e-12)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_ridge_of_a_quasi_newton_method(make):
    """A known ridge, and minus the log-likelihood by statsmodels, minimized by scipy."""
    model = make()
    first, mean = start(model), likelihood(make())
    k = len(first) - int(getattr(model, "k_extra", 0))
    with np.errstate(all="ignore"):
        found = minimize(
            lambda p: mean(np.r_[p, first[k:]]) + 0.05 * np.sum(p**2),
            first[:k],
            options={"gtol": 1e-9},
        )
    est = ImplicitRegularizationEstimator(results_at(model, np.r_[found.x, first[k:]])).fit()
    assert est.coef_[0] == pytest.approx(0.05, rel=1e-4)
    assert est.verdict_ == "supported"
    assert est.n_equations_ == k
    assert ("dispersion is held at its value, 0.4" in str(est.summary())) == (len(first) > k)


@pytest.mark.parametrize("name", ["Logit", "Probit", "Poisson", "NB2", "NB1", "GP1", "MNLogit"])
def test_lasso_of_statsmodels(name):
    """``fit_regularized`` penalizes the sum of log-likelihoods."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = MODELS[name]().fit_regularized(alpha=2.0, disp=0, acc=1e-14)
    est = ImplicitRegularizationEstimator(results, family="lasso").fit()
    assert est.in_model_units() == pytest.approx({"alpha": 2.0}, rel=1e-3)
    assert est.term_names_ == ["l1"]
    assert est.r2_ > 0.9999
    with pytest.raises(ValueError, match="parameter for a term|can state"):
        ImplicitRegularizationEstimator(results, family="l2").fit().in_model_units()


def test_zeros_of_a_lasso_are_inequalities():
    results = sm.Logit(BITS, EXOG).fit_regularized(alpha=6.0, disp=0, acc=1e-14)
    n_zero = int(np.sum(np.asarray(results.params) == 0))
    assert n_zero > 0
    est = ImplicitRegularizationEstimator(results, family="l1").fit()
    assert est.n_equations_ == P - n_zero
    assert est.in_model_units()["alpha"] == pytest.approx(6.0, rel=1e-3)


def test_discrete_models_agree_with_the_glm():
    for model, family in ((sm.Logit, sm.families.Binomial()), (sm.Poisson, sm.families.Poisson())):
        y = BITS if model is sm.Logit else COUNTS
        one = results_at(model(y, EXOG), start(model(y, EXOG)))
        two = sm.GLM(y, EXOG, family=family).fit(start_params=one.params, maxiter=0)
        estimates = [ImplicitRegularizationEstimator(results).fit().coef_ for results in (one, two)]
        assert estimates[0] == pytest.approx(estimates[1], rel=1e-12)


NORMS = {
    "Huber": norms.HuberT(),
    "Tukey": norms.TukeyBiweight(),
    "Hampel": norms.Hampel(),
    "Andrew": norms.AndrewWave(),
    "Ramsay": norms.RamsayE(),
    "least squares": norms.LeastSquares(),
    "trimmed": norms.TrimmedMean(),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_robust_norms_at_the_scale(norm):
    results = sm.RLM(NUMBERS, EXOG, M=norm).fit()
    moved = np.asarray(results.params) * 0.9

    def deviance(params):
        return norm.rho((NUMBERS - EXOG @ params) / results.scale).sum() / N

    ridge = -numeric(deviance, moved)
    results._results.params = moved
    gradient = adapt(results, Data(EXOG, NUMBERS), Options()).gradient()
    found = np.r_[gradient.value["const"], gradient.value["coef"]]
    np.testing.assert_allclose(found, -ridge, atol=1e-8)
    assert gradient.loss == pytest.approx(deviance(moved), rel=1e-12)
    assert gradient.n_kinks == 0
    assert "scale of the residuals is held" in str(
        ImplicitRegularizationEstimator(results).fit().summary()
    )


@pytest.mark.parametrize("norm", [norms.HuberT(), norms.TukeyBiweight()], ids=["Huber", "Tukey"])
def test_ridge_of_a_robust_regression(norm):
    results = sm.RLM(NUMBERS, EXOG, M=norm).fit()

    def objective(params):
        z = (NUMBERS - EXOG @ params) / results.scale
        return norm.rho(z).mean() + 0.02 * np.sum(params**2)

    results._results.params = minimize(objective, results.params, options={"gtol": 1e-9}).x
    est = ImplicitRegularizationEstimator(results, family="ridge").fit()
    assert est.coef_[0] == pytest.approx(0.02, rel=1e-5)
    assert est.verdict_ == "supported"


def test_a_jump_of_a_norm_is_a_kink():
    y = EXOG @ [1.0, 0.0, 0.0, 0.0] + np.tile([0.5, -0.5, 2.0], N // 3)
    results = sm.RLM(y, EXOG, M=norms.TrimmedMean(c=2.0)).fit()
    results._results.params, results._results.scale = np.array([1.0, 0.0, 0.0, 0.0]), 1.0
    problem = adapt(results, Data(EXOG, y), Options())
    assert problem.gradient().n_kinks == N // 3


def check_loss(params, q):
    r = NUMBERS - EXOG @ params
    return np.maximum(q * r, (q - 1) * r).mean()


@pytest.mark.parametrize("q", [0.2, 0.5, 0.9])
def test_quantile_loss(q):
    results = sm.QuantReg(NUMBERS, EXOG).fit(q=q)
    results._results.params = np.asarray(results.params) * 0.9
    gradient = adapt(results, Data(EXOG, NUMBERS), Options()).gradient()
    slope = numeric(lambda p: check_loss(p, q), np.asarray(results.params))
    found = np.r_[gradient.value["const"], gradient.value["coef"]]
    np.testing.assert_allclose(found, slope, atol=1e-9)
    assert gradient.loss == pytest.approx(check_loss(results.params, q), rel=1e-12)


@pytest.mark.parametrize("exact", [False, True], ids=["statsmodels", "linear program"])
def test_rows_on_the_kink_of_a_quantile_are_never_supported(exact):
    results = sm.QuantReg(NUMBERS, EXOG).fit(q=0.3, p_tol=1e-8, max_iter=5000)
    if exact:
        both, eye = np.hstack([EXOG, -EXOG]), np.eye(N)
        cost = np.r_[np.zeros(2 * P), np.full(N, 0.3), np.full(N, 0.7)]
        found = linprog(cost, A_eq=np.hstack([both, eye, -eye]), b_eq=NUMBERS).x
        results._results.params = found[:P] - found[P : 2 * P]
    assert adapt(results, Data(EXOG, NUMBERS), Options()).gradient().n_kinks == P
    assert ImplicitRegularizationEstimator(results).fit().verdict_ != "supported"


class TestRowsThatTheResultsHold:
    @pytest.mark.parametrize("framed", [False, True], ids=["arrays", "frames"])
    def test_all_methods(self, framed):
        exog = pd.DataFrame(EXOG, columns=["const", "a", "b", "c"]) if framed else EXOG
        results = sm.OLS(NUMBERS, exog).fit_regularized(alpha=0.3, L1_wt=0.0)
        est = ImplicitRegularizationEstimator(results).fit()
        given = ImplicitRegularizationEstimator(results).fit(exog, NUMBERS)
        assert est.coef_ == given.coef_
        assert est.n_features_in_ == P
        assert hasattr(est, "feature_names_in_") == framed
        assert est.score() == given.score(exog, NUMBERS)
        assert est.recover().recovered.distance < 1e-12
        assert len(equations(est).data) == len(equations(results).data) == P
        search = ImplicitRegularizationCV(results, families=["ridge", "lasso"]).fit()
        assert search.best_family_ == "ridge"
        assert search.score() == pytest.approx(1.0)

    def test_weights_offsets_and_trials_are_the_models(self):
        trials = RNG.integers(1, 9, size=N)
        hits = RNG.binomial(trials, 0.4)
        models = [
            sm.GLM(np.column_stack([hits, trials - hits]), EXOG, family=sm.families.Binomial()),
            sm.GLM(COUNTS, EXOG, family=sm.families.Poisson(), exposure=EXPOSURE, offset=OFFSET),
            sm.GLM(COUNTS, EXOG, family=sm.families.Poisson(), freq_weights=trials),
            sm.WLS(NUMBERS, EXOG, weights=EXPOSURE),
            sm.GLS(NUMBERS, EXOG, sigma=EXPOSURE),
        ]
        for model in models:
            options = {"maxiter": 5000, "cnvrg_tol": 1e-12, "zero_tol": 1e-9}
            results = model.fit_regularized(alpha=0.05, L1_wt=0.5, **options)
            est = ImplicitRegularizationEstimator(results, family="l2+l1").fit()
            expected = {"alpha": 0.05, "L1_wt": 0.5}
            assert est.in_model_units() == pytest.approx(expected, rel=1e-5)

    def test_dropped_rows_and_formulas(self):
        frame = pd.DataFrame(EXOG[:, 1:], columns=list("abc")).assign(y=NUMBERS)
        frame.loc[3, "a"] = np.nan
        model = sm.formula.ols("y ~ a * b + np.exp(c)", frame)
        results = model.fit_regularized(alpha=0.3, L1_wt=0.0)
        est = ImplicitRegularizationEstimator(results).fit()
        assert est.in_model_units()["alpha"] == pytest.approx(0.3, rel=1e-10)
        assert est.feature_names_in_.tolist() == ["Intercept", "a", "b", "a:b", "np.exp(c)"]
        names = equations(est).data.index.get_level_values("coordinate")
        assert sorted(names) == sorted(est.feature_names_in_)

    def test_a_model_without_one_linear_predictor_holds_no_rows(self):
        results = sm.tsa.AutoReg(NUMBERS, 2).fit()  # its exog is None
        with pytest.raises(TypeError, match=r"one of statsmodels' .*got AutoReg"):
            ImplicitRegularizationEstimator(results).fit()

    def test_removed(self):
        results = sm.OLS(NUMBERS, EXOG).fit()
        results.remove_data()
        with pytest.raises(ValueError, match="remove_data"):
            ImplicitRegularizationEstimator(results).fit()
        counted = sm.Poisson(COUNTS, EXOG, exposure=EXPOSURE).fit(disp=0)
        counted.remove_data()
        with pytest.raises(ValueError, match="offset or exposure"):
            ImplicitRegularizationEstimator(counted).fit(EXOG, COUNTS)


class TestClasses:
    @pytest.mark.parametrize(
        "endog",
        [
            LABELS,
            pd.Series(pd.Categorical(LABELS, categories=["c", "a", "b"])),
            pd.get_dummies(pd.Series(LABELS)),
            pd.Series(LABELS).map({"a": 1.0, "b": 3.0, "c": 5.0}),
            pd.Series(LABELS).map({"a": 0.5, "b": 1.5, "c": 2.5}),
            [str(label) for label in LABELS],
        ],
        ids=["strings", "categories", "dummies", "floats", "fractions", "list"],
    )
    def test_labels_are_those_of_the_training(self, endog):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = sm.MNLogit(endog, EXOG).fit_regularized(alpha=2.0, disp=0, acc=1e-14)
        given = ImplicitRegularizationEstimator(results, family="l1").fit(EXOG, endog)
        held = ImplicitRegularizationEstimator(results, family="l1").fit()
        assert given.in_model_units()["alpha"] == pytest.approx(2.0, rel=1e-3)
        assert held.coef_ == given.coef_

    def test_unknown_labels_and_other_losses(self):
        results = sm.MNLogit(LABELS, EXOG).fit(disp=0)
        with pytest.raises(ValueError, match=r"classes \['a', 'b', 'c'\].*got \['z'\]"):
            ImplicitRegularizationEstimator(results).fit(EXOG, np.where(LABELS == "a", "z", "b"))
        with pytest.raises(ValueError, match="Expected loss='auto' for MNLogit"):
            ImplicitRegularizationEstimator(results, loss="log_loss").fit()

    def test_the_constant_can_be_left_out(self):
        results = sm.MNLogit(LABELS, EXOG).fit(disp=0)
        est = ImplicitRegularizationEstimator(results, params="coef").fit()
        assert est.n_equations_ == 2 * (P - 1)
        names = equations(est).data.index.get_level_values("coordinate").tolist()
        assert names == ["b,x1", "b,x2", "b,x3", "c,x1", "c,x2", "c,x3"]

    def test_categories_of_a_formula(self):
        """patsy makes the first category of a boolean or string the success."""
        frame = pd.DataFrame(EXOG[:, 1:], columns=list("abc"))
        for y in (BITS == 1, np.where(BITS == 1, "yes", "no")):
            model = sm.formula.glm("y ~ a + b", frame.assign(y=y), family=sm.families.Binomial())
            results = model.fit_regularized(alpha=0.05, L1_wt=1.0, maxiter=999, cnvrg_tol=1e-12)
            design = pd.DataFrame(model.exog, columns=model.exog_names)
            for rows in ((), (design, y), (design, pd.Series(y))):
                est = ImplicitRegularizationEstimator(results, family="l1").fit(*rows)
                assert est.in_model_units()["alpha"] == pytest.approx(0.05, rel=1e-5)


def test_models_of_several_predictors_are_named():
    results = sm.ZeroInflatedPoisson(COUNTS, EXOG, EXOG[:, :1]).fit(disp=0, maxiter=200)
    with pytest.raises(
        TypeError, match=r"one\s+linear predictor, got ZeroInflatedPoisson; .*torch"
    ):
        ImplicitRegularizationEstimator(results).fit()


def test_nothing_of_the_results_is_changed():
    results = sm.NegativeBinomial(COUNTS, EXOG, exposure=EXPOSURE).fit(disp=0)
    before = results.params.copy(), results.model.endog.copy(), list(results.model.exog_names)
    ImplicitRegularizationEstimator(results).fit()
    np.testing.assert_array_equal(results.params, before[0])
    np.testing.assert_array_equal(results.model.endog, before[1])
    assert list(results.model.exog_names) == before[2]
