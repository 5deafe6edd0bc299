"""Adapters of statsmodels: regularized fits give back their penalty, plain fits have none."""

import warnings

import numpy as np
import pandas as pd
import pytest
from cases import W_DIABETES, X_DIABETES, Y_COUNTS, Y_DIABETES, Y_UNIT
from sklearn.linear_model import PoissonRegressor

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator, equations
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.base import is_trained

sm = pytest.importorskip("statsmodels.api")
ConvergenceWarning = pytest.importorskip("statsmodels.tools.sm_exceptions").ConvergenceWarning

N = len(Y_DIABETES)
EXOG = sm.add_constant(X_DIABETES)
NAMES = ["const", *(f"x{j}" for j in range(10))]
FRAME = pd.DataFrame(EXOG, columns=NAMES)
BITS = (Y_DIABETES > np.median(Y_DIABETES)).astype(float)
POSITIVE = Y_DIABETES / 100
SIGMA = np.exp(-np.abs(np.subtract.outer(np.arange(N), np.arange(N))) / 3) * np.sqrt(
    np.outer(W_DIABETES, W_DIABETES)
)
TIGHT = {"maxiter": 5000, "cnvrg_tol": 1e-12}


def fit(results, X, y, family="l2", sample_weight=None, **options):
    """Fitted estimator of results."""
    est = ImplicitRegularizationEstimator(results, family=family, **options)
    return est.fit(X, y, sample_weight)


LEAST_SQUARES = {
    "OLS": lambda: sm.OLS(Y_DIABETES, EXOG),
    "WLS": lambda: sm.WLS(Y_DIABETES, EXOG, weights=W_DIABETES),
    "GLS, variances": lambda: sm.GLS(Y_DIABETES, EXOG, sigma=1 / W_DIABETES),
    "GLS": lambda: sm.GLS(Y_DIABETES, EXOG, sigma=SIGMA),
    "GLS without sigma": lambda: sm.GLS(Y_DIABETES, EXOG),
}


@pytest.mark.parametrize("make", LEAST_SQUARES.values(), ids=LEAST_SQUARES)
def test_ridge_of_least_squares(make):
    est = fit(make().fit_regularized(alpha=0.3, L1_wt=0.0), EXOG, Y_DIABETES)
    assert est.in_model_units() == pytest.approx({"alpha": 0.3, "L1_wt": 0.0}, rel=1e-10)
    assert est.coef_[0] == pytest.approx(0.3, rel=1e-10)
    assert est.r2_ == pytest.approx(1.0)
    assert est.n_equations_ == 11
    assert "squared error" in str(est.summary())


@pytest.mark.parametrize("make", LEAST_SQUARES.values(), ids=LEAST_SQUARES)
@pytest.mark.parametrize("ratio", [1.0, 0.4])
def test_elastic_net_of_least_squares(make, ratio):
    """Coordinate descent, down to changes of 1e-12."""
    results = make().fit_regularized(alpha=0.3, L1_wt=ratio, zero_tol=1e-6, **TIGHT)
    est = fit(results, EXOG, Y_DIABETES, "l1" if ratio == 1 else "l2+l1")
    expected = {"alpha": 0.3, "L1_wt": ratio}
    assert est.in_model_units() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("make", LEAST_SQUARES.values(), ids=LEAST_SQUARES)
def test_plain_least_squares_has_no_penalty(make):
    est = fit(make().fit(), EXOG, Y_DIABETES)
    assert est.verdict_ == "no signal"
    np.testing.assert_array_equal(est.predict(EXOG[:3]), make().fit().predict(EXOG[:3]))


def test_unpenalized_constant():
    """A vector of alphas: statsmodels' way to leave out the constant."""
    results = sm.OLS(Y_DIABETES, EXOG).fit_regularized(alpha=np.r_[0.0, np.full(10, 0.3)], L1_wt=0)
    est = fit(results, EXOG, Y_DIABETES, params="coef")
    assert est.in_model_units() == pytest.approx({"alpha": 0.3, "L1_wt": 0.0}, rel=1e-10)
    assert est.n_equations_ == 10
    assert fit(results, EXOG, Y_DIABETES).r2_ < 0.99
    grouped = fit(results, EXOG, Y_DIABETES, group_by=lambda name, tensor: name)
    assert grouped.term_names_ == ["l2[coef]", "l2[const]"]
    assert grouped.coef_ == pytest.approx([0.3, 0.0], abs=1e-10)


def test_weighted_loss_and_hessian():
    weight = W_DIABETES
    results = sm.WLS(Y_DIABETES, EXOG, weights=weight).fit_regularized(alpha=0.3, L1_wt=0)
    problem = adapt(results, Data(EXOG, Y_DIABETES), Options())
    residual = Y_DIABETES - EXOG @ results.params
    gradient = problem.gradient()
    assert gradient.loss == pytest.approx(np.average(residual**2, weights=weight), rel=1e-12)
    assert gradient.weight == pytest.approx(weight.sum())
    gram = 2 * EXOG.T @ (EXOG * weight[:, None]) / weight.sum()
    order = [*range(1, 11), 0]
    np.testing.assert_allclose(problem.hessian(), gram[np.ix_(order, order)], rtol=1e-10)
    assert list(problem.params) == ["coef", "const"]
    alone = adapt(results, Data(EXOG, Y_DIABETES), Options(params="coef")).hessian()
    centered = X_DIABETES - np.average(X_DIABETES, axis=0, weights=weight)
    expected = 2 * centered.T @ (centered * weight[:, None]) / weight.sum()
    np.testing.assert_allclose(alone, expected, rtol=1e-9, atol=1e-12)


def test_autoregressive_errors():
    model = sm.GLSAR(Y_DIABETES, EXOG, rho=[0.4])
    results = model.fit_regularized(alpha=0.3, L1_wt=0.0)
    problem = adapt(results, Data(EXOG, Y_DIABETES), Options())
    white = model.whiten(Y_DIABETES) - model.whiten(EXOG) @ results.params
    assert problem.gradient().loss == pytest.approx(np.mean(white**2), rel=1e-12)
    assert fit(results, EXOG, Y_DIABETES).in_model_units()["alpha"] == pytest.approx(0.3, rel=1e-9)


FREQ = np.random.default_rng(1).integers(1, 5, size=N).astype(float)
FAMILIES = {
    "Gaussian": (sm.families.Gaussian(), Y_UNIT, 2.0),
    "Poisson": (sm.families.Poisson(), Y_COUNTS, 1.0),
    "Binomial": (sm.families.Binomial(), BITS, 1.0),
    "Gamma, log": (sm.families.Gamma(sm.families.links.Log()), POSITIVE, 1.0),
    "Tweedie": (sm.families.Tweedie(var_power=1.5), POSITIVE, 1.0),
    "inverse Gaussian, log": (
        sm.families.InverseGaussian(sm.families.links.Log()),
        POSITIVE,
        1.0,
    ),
    "negative binomial": (sm.families.NegativeBinomial(alpha=0.5), Y_COUNTS, 1.0),
    "probit": (sm.families.Binomial(sm.families.links.Probit()), BITS, 1.0),
    "cloglog": (sm.families.Binomial(sm.families.links.CLogLog()), BITS, 1.0),
    "Gaussian, log": (sm.families.Gaussian(sm.families.links.Log()), POSITIVE, 2.0),
}


@pytest.mark.parametrize(("family", "y", "factor"), FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_loss_of_a_glm_is_its_half_deviance(family, y, factor, weighted):
    """Value, and gradient by differences of statsmodels' own deviance and score."""
    weights = {"freq_weights": FREQ, "var_weights": W_DIABETES} if weighted else {}
    results = sm.GLM(y, EXOG, family=family, **weights).fit()
    model, params = results.model, np.asarray(results.params) * 0.9
    moved = sm.GLM(y, EXOG, family=family, **weights).fit(start_params=params, maxiter=0)
    count = FREQ.sum() if weighted else N
    problem = adapt(moved, Data(EXOG, y), Options())
    gradient = problem.gradient()
    assert gradient.loss == pytest.approx(factor * moved.deviance / 2 / count, rel=1e-10)
    assert gradient.weight == pytest.approx(count)
    score = -factor * model.score(np.asarray(moved.params), scale=1.0) / count
    found = np.r_[gradient.value["const"], gradient.value["coef"]]
    np.testing.assert_allclose(found, score, rtol=1e-9, atol=1e-12 * np.abs(score).max())
    plain = fit(results, EXOG, y)
    assert abs(plain.coef_[0]) < 1e-4 or plain.verdict_ == "no signal"


@pytest.mark.parametrize("name", ["Gaussian", "Poisson", "Binomial", "Gamma, log", "Tweedie"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_elastic_net_of_glm(name, weighted):
    family, y, _ = FAMILIES[name]
    weights = {"freq_weights": FREQ, "var_weights": W_DIABETES} if weighted else {}
    model = sm.GLM(y, EXOG, family=family, **weights)
    results = model.fit_regularized(alpha=0.05, L1_wt=0.5, **TIGHT)
    est = fit(results, EXOG, y, "l2+l1")
    expected = {"alpha": 0.05, "L1_wt": 0.5}
    assert est.in_model_units() == pytest.approx(expected, rel=1e-5)
    assert est.r2_ > 1 - 1e-8


@pytest.mark.parametrize("name", ["Poisson", "Binomial"])
def test_ridge_of_glm(name):
    """By BFGS, which stops at a gradient of 1e-5."""
    family, y, _ = FAMILIES[name]
    results = sm.GLM(y, EXOG, family=family).fit_regularized(alpha=0.05, L1_wt=0.0)
    assert fit(results, EXOG, y).in_model_units() == pytest.approx(
        {"alpha": 0.05, "L1_wt": 0.0}, rel=1e-3
    )


@pytest.mark.parametrize("name", ["Gaussian", "Gamma, log"])
def test_ridge_of_glm_with_an_estimated_scale(name):
    """statsmodels divides the loss of a ridge, and of no other fit, by the estimated scale."""
    family, y, _ = FAMILIES[name]
    model = sm.GLM(y, EXOG, family=family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "GLM ridge optimization")  # of statsmodels 0.14
        results = model.fit_regularized(alpha=0.05, L1_wt=0.0)
    assert fit(results, EXOG, y).in_model_units() == pytest.approx(
        {"alpha": 0.05, "L1_wt": 0.0}, rel=1e-2
    )


def test_agrees_with_scikit_learn():
    ours = PoissonRegressor(alpha=0.1, fit_intercept=False, tol=1e-10).fit(EXOG, Y_COUNTS)
    results = sm.GLM(Y_COUNTS, EXOG, family=sm.families.Poisson()).fit(
        start_params=ours.coef_, maxiter=0
    )
    expected = fit(ours, EXOG, Y_COUNTS)
    found = fit(results, EXOG, Y_COUNTS)
    assert found.coef_ == pytest.approx(expected.coef_, rel=1e-10)
    assert found.in_model_units() == pytest.approx({"alpha": 0.1, "L1_wt": 0.0}, rel=1e-6)


def test_freq_weights_count_rows_and_var_weights_do_not():
    family = sm.families.Poisson()
    repeated = np.repeat(np.arange(N), FREQ.astype(int))
    alone = sm.GLM(Y_COUNTS, EXOG, family=family, freq_weights=FREQ).fit()
    long = sm.GLM(Y_COUNTS[repeated], EXOG[repeated], family=family).fit()
    start = np.asarray(alone.params) * 0.9
    at = {"start_params": start, "maxiter": 0}
    alone, long = alone.model.fit(**at), long.model.fit(**at)
    one = adapt(alone, Data(EXOG, Y_COUNTS), Options()).gradient()
    two = adapt(long, Data(EXOG[repeated], Y_COUNTS[repeated]), Options()).gradient()
    assert one.loss == pytest.approx(two.loss, rel=1e-12)
    assert one.weight == two.weight
    doubled = sm.GLM(Y_COUNTS, EXOG, family=family, var_weights=np.full(N, 2.0)).fit(**at)
    plain = sm.GLM(Y_COUNTS, EXOG, family=family).fit(**at)
    two, one = (adapt(r, Data(EXOG, Y_COUNTS), Options()).gradient() for r in (doubled, plain))
    assert two.loss == pytest.approx(2 * one.loss, rel=1e-12)
    assert two.weight == one.weight == N
    told = str(fit(doubled, EXOG, Y_COUNTS).summary())
    assert "times var_weights, mean over rows" in " ".join(told.split())
    assert "var_weights" not in str(fit(plain, EXOG, Y_COUNTS).summary())


def test_binomial_trials_are_rows():
    trials = np.random.default_rng(0).integers(1, 9, size=N)
    hits = np.random.default_rng(1).binomial(trials, 0.3 + 0.4 * BITS)
    y = np.column_stack([hits, trials - hits])
    family = sm.families.Binomial()
    at = {"start_params": np.full(11, 0.1), "maxiter": 0}
    paired = adapt(sm.GLM(y, EXOG, family=family).fit(**at), Data(EXOG, y), Options()).gradient()
    rows = np.repeat(np.arange(N), trials)
    bits = np.concatenate([[1.0] * h + [0.0] * (t - h) for h, t in zip(hits, trials, strict=True)])
    model = sm.GLM(bits, EXOG[rows], family=sm.families.Binomial()).fit(**at)
    single = adapt(model, Data(EXOG[rows], bits), Options()).gradient()
    assert paired.weight == single.weight == trials.sum()
    np.testing.assert_allclose(paired.value["coef"], single.value["coef"], rtol=1e-10)
    results = sm.GLM(y, EXOG, family=family).fit_regularized(alpha=0.05, L1_wt=0.5, **TIGHT)
    found = fit(results, EXOG, y, "l2+l1").in_model_units()
    assert found == pytest.approx({"alpha": 0.05, "L1_wt": 0.5}, rel=1e-5)


def test_offset_and_exposure():
    exposure, offset = np.random.default_rng(0).uniform(1, 3, size=(2, N))
    model = sm.GLM(
        Y_COUNTS, EXOG, family=sm.families.Poisson(), exposure=exposure, offset=offset / 10
    )
    results = model.fit_regularized(alpha=0.05, L1_wt=0.5, **TIGHT)
    found = fit(results, EXOG, Y_COUNTS, "l2+l1").in_model_units()
    assert found == pytest.approx({"alpha": 0.05, "L1_wt": 0.5}, rel=1e-5)
    with pytest.raises(ValueError, match="offset or exposure"):
        fit(results, EXOG[:50], Y_COUNTS[:50])


def test_frames_are_matched_by_name():
    model = sm.OLS(pd.Series(Y_DIABETES, name="y"), FRAME)
    results = model.fit_regularized(alpha=0.3, L1_wt=0.0)
    expected = fit(results, FRAME, Y_DIABETES)
    found = fit(results, FRAME[NAMES[::-1]], pd.Series(Y_DIABETES))
    assert found.coef_ == pytest.approx(expected.coef_, rel=1e-12)
    assert found.feature_names_in_.tolist() == NAMES[::-1]
    data = equations(results, FRAME, Y_DIABETES).data
    assert len(data) == 11
    with pytest.raises(ValueError, match=r"columns \['const', 'x0'.*missing \['x3'\]"):
        fit(results, FRAME.drop(columns="x3"), Y_DIABETES)


def test_formulas_take_the_design_matrix():
    frame = FRAME.assign(y=Y_DIABETES)
    results = sm.formula.ols("y ~ x0 + x1 + x2", frame).fit_regularized(alpha=0.3, L1_wt=0.0)
    design = pd.DataFrame(results.model.exog, columns=results.model.exog_names)
    est = fit(results, design, Y_DIABETES)
    assert est.in_model_units() == pytest.approx({"alpha": 0.3, "L1_wt": 0.0}, rel=1e-10)
    with pytest.raises(ValueError, match=r"missing \['Intercept'\].*results.model.exog"):
        fit(results, frame[["x0", "x1", "x2"]], Y_DIABETES)


def test_weights_belong_to_the_rows():
    results = sm.WLS(Y_DIABETES, EXOG, weights=W_DIABETES).fit_regularized(alpha=0.3, L1_wt=0)
    order = np.random.default_rng(0).permutation(N)
    with pytest.raises(ValueError, match="give sample_weight"):
        fit(results, EXOG[order], Y_DIABETES[order])
    found = fit(results, EXOG[order], Y_DIABETES[order], sample_weight=W_DIABETES[order])
    assert found.coef_[0] == pytest.approx(0.3, rel=1e-10)
    counted = sm.GLM(Y_COUNTS, EXOG, family=sm.families.Poisson(), freq_weights=FREQ).fit()
    with pytest.raises(ValueError, match="give sample_weight"):
        fit(counted, EXOG[order], Y_COUNTS[order])


def test_results_are_trained_models_for_all_estimators():
    results = sm.OLS(Y_UNIT, EXOG).fit_regularized(alpha=0.1, L1_wt=1.0, zero_tol=1e-6, **TIGHT)
    assert is_trained(results)
    assert is_trained(sm.OLS(Y_UNIT, EXOG).fit())
    assert not is_trained(sm.OLS(Y_UNIT, EXOG))
    search = ImplicitRegularizationCV(results, families=["l2", "l1"]).fit(EXOG, Y_UNIT)
    assert search.best_family_ == "l1"
    est = fit(results, EXOG, Y_UNIT, "l1")
    assert -1 < est.score(EXOG, Y_UNIT) <= 1


def test_other_losses_can_be_asked_for():
    results = sm.OLS(Y_DIABETES, EXOG).fit()
    est = fit(results, EXOG, Y_DIABETES, loss="absolute_error", params="coef")
    assert est.n_equations_ == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sm.GEE(Y_DIABETES, EXOG, np.arange(N) // 5).fit(), "got GEE"),
        (lambda: sm.PHReg(Y_DIABETES, X_DIABETES).fit(), "got PHReg"),
    ],
)
def test_other_models_are_refused_by_name(make, message):
    with pytest.raises(TypeError, match=message):
        fit(make(), EXOG, Y_DIABETES)


def test_what_does_not_fit_is_refused():
    results = sm.OLS(Y_DIABETES, EXOG).fit()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fit(results, EXOG, Y_DIABETES[:-1])
    with pytest.raises(ValueError, match="10 features"):
        fit(results, X_DIABETES, Y_DIABETES)
    whitened = sm.GLS(Y_DIABETES, EXOG, sigma=SIGMA).fit()
    with pytest.raises(ValueError, match="rows that the model was made with"):
        fit(whitened, EXOG[:50], Y_DIABETES[:50])
    with pytest.raises(ValueError, match="no sample_weight"):
        fit(whitened, EXOG, Y_DIABETES, sample_weight=W_DIABETES)
    poisson = sm.GLM(Y_COUNTS, EXOG, family=sm.families.Poisson()).fit()
    with pytest.raises(ValueError, match="y >= 0"):
        fit(poisson, EXOG, -Y_COUNTS)


def test_nothing_of_the_results_is_changed():
    results = sm.WLS(Y_DIABETES, FRAME, weights=W_DIABETES).fit()
    params, exog = results.params.copy(), results.model.exog.copy()
    fit(results, FRAME, Y_DIABETES)
    pd.testing.assert_series_equal(results.params, params)
    np.testing.assert_array_equal(results.model.exog, exog)
