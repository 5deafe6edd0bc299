"""Unknown shape parameters: found, with intervals, in every mode; and what is no shape."""

import pickle
from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    contrast,
    equations,
)
from sklearn_implicitreg.exceptions import CollinearTermsWarning
from sklearn_implicitreg.model_selection import family_score, simplest_within_one_se
from sklearn_implicitreg.penalties import (
    L2,
    MCP,
    SCAD,
    ElasticNet,
    LogCosh,
    LogPenalty,
    Penalty,
    Power,
    Schatten,
    SmoothL1,
)
from sklearn_implicitreg.regression.solve import solve_system
from sklearn_implicitreg.trajectory import record

FIT = "fit"


class Pulled(nn.Module):
    """A net whose loss is minus the sum of weights times given pulls."""

    def __init__(self, pull, sizes=(20, 16, 10), noise=0.0, std=0.15):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        pairs = zip(sizes, sizes[1:], strict=False)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False).double() for a, b in pairs)
        for p in self.parameters():
            nn.init.normal_(p, std=std, generator=rng)
        pulls = [pull(p.detach()) for p in self.parameters()]
        errors = [torch.randn(t.shape, generator=rng).double() for t in pulls]
        size = torch.cat([t.flatten() for t in pulls]).square().mean().sqrt()
        self.pulls = [t + noise * size * e for t, e in zip(pulls, errors, strict=True)]

    def forward(self, x):
        pairs = zip(self.parameters(), self.pulls, strict=True)
        return x[:, 0] * 0 - sum((p * t).sum() for p, t in pairs)


def power(q, coef=0.01):
    return lambda t: coef * q * t.sign() * t.abs().pow(q - 1)


def smooth_l1(delta, coef=0.01):
    return lambda t: coef * (t / delta).clamp(-1, 1)


def ridge(coef=1e-3):
    return lambda t: 2 * coef * t


def schatten(q, coef=0.01):
    def pull(t):
        left, values, right = torch.linalg.svd(t, full_matrices=False)
        return coef * (left * (q * values.pow(q - 1))) @ right

    return pull


def log_cosh(scale, coef=0.01):
    return lambda t: coef * torch.tanh(t / scale) / scale


def log(eps, coef=0.01):
    return lambda t: coef * t.sign() / (eps + t.abs())


def scad(lam, coef=0.01):
    def pull(t):
        size = t.abs()
        middle = (3.7 * lam - size) / 2.7
        slope = torch.where(size <= lam, torch.full_like(size, lam), middle)
        return coef * torch.where(size <= 3.7 * lam, slope, torch.zeros_like(size)) * t.sign()

    return pull


def mcp(lam, coef=0.01):
    return lambda t: coef * torch.relu(lam - t.abs() / 3) * t.sign()


def added(*pulls):
    return lambda t: sum(pull(t) for pull in pulls)


def fitted(net, family, **options):
    est = ImplicitRegularizationEstimator(
        net, family=family, loss=lambda output, _: output, params="all", **options
    )
    return est.fit(np.zeros((1, 1)), np.zeros(1))


class ByAutograd(Penalty):
    """A spectral family, whose gradient autograd finds."""

    shapes = {"q": (0.3, 4.0)}  # noqa: RUF012

    def __init__(self, q=1.5):
        self.q = q

    def terms(self, params, problem):
        values = [torch.linalg.svdvals(t).pow(self.q).sum() for t in params.values()]
        return {"spectrum": torch.stack(values).sum()}


class Scaled(Penalty):
    """A family on rows: the outputs at scaled inputs."""

    shapes = {"by": (0.3, 3.0)}  # noqa: RUF012

    def __init__(self, by=1.0):
        self.by = by

    def rows(self, batch):
        return {"scaled": batch.call(self.by * batch.inputs).square().sum(1)}


class Backward(Power):
    """A range the wrong way round."""

    shapes = {"q": (3.0, 1.0)}  # noqa: RUF012


class Below(Power):
    """A range that is not positive."""

    shapes = {"q": (-1.0, 1.0)}  # noqa: RUF012


class Steps(Penalty):
    """A parameter that is an integer, and no shape."""

    def __init__(self, n=2):
        self.n = n

    def terms(self, params, problem):
        return {"steps": sum(t.pow(2 * self.n).sum() for t in params.values())}


CASES = {
    "q below 2": (power(1.5), Power(q=FIT), {"q": 1.5}),
    "q above 2": (power(3), Power(q=FIT), {"q": 3.0}),
    "q beside l2": (added(ridge(), power(3)), L2() + Power(q=FIT), {"q": 3.0}),
    "delta": (smooth_l1(0.08), SmoothL1(delta=FIT), {"delta": 0.08}),
    "elastic net": (added(ridge(), smooth_l1(0.08)), ElasticNet(delta=FIT), {"delta": 0.08}),
    "spectrum": (schatten(1.2), Schatten(q=FIT), {"q": 1.2}),
    "spectrum below 1": (schatten(0.7), Schatten(q=FIT), {"q": 0.7}),
    "spectrum beside l2": (
        added(ridge(), schatten(1.2)),
        L2() + Schatten(q=FIT),
        {"q": 1.2},
    ),
    "spectrum by autograd": (schatten(1.2), ByAutograd(q=FIT), {"q": 1.2}),
    "log-cosh": (added(ridge(), log_cosh(0.08)), L2() + LogCosh(scale=FIT), {"scale": 0.08}),
    "log": (added(ridge(), log(0.08)), L2() + LogPenalty(eps=FIT), {"eps": 0.08}),
    "scad": (added(ridge(), scad(0.08)), L2() + SCAD(lam=FIT), {"lam": 0.08}),
    "mcp": (added(ridge(), mcp(0.08)), L2() + MCP(lam=FIT), {"lam": 0.08}),
    "two shapes": (
        added(smooth_l1(0.08, 0.003), power(3)),
        SmoothL1(delta=FIT) + Power(q=FIT),
        {"delta": 0.08, "q": 3.0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_shapes_are_found(case):
    pull, family, shapes = CASES[case]
    est = fitted(Pulled(pull), family)
    assert est.shapes_["value"].to_dict() == pytest.approx(shapes, rel=1e-6)
    assert est.verdict_ == "supported"
    assert 1 - est.r2_ < 1e-12
    assert est.n_terms_ == len(est.coef_) + len(shapes)


COUNTED = {
    "power": (Power, "_slope", "q", power(1.5)),
    "smooth_l1": (SmoothL1, "_slope", "delta", smooth_l1(0.08)),
    "schatten": (Schatten, "_value", "q", schatten(1.2)),
    "log_cosh": (LogCosh, "_slope", "scale", log_cosh(0.08)),
    "log": (LogPenalty, "_slope", "eps", log(0.08)),
    "scad": (SCAD, "_slope", "lam", scad(0.08)),
    "mcp": (MCP, "_slope", "lam", mcp(0.08)),
}


@pytest.mark.parametrize("case", COUNTED)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_few_columns_are_evaluated(case, noise, monkeypatch):
    family, method, name, pull = COUNTED[case]
    seen = []
    own = getattr(family, method)
    # At the second tensor: of the first the names of the terms are read as well.
    second = {torch.Size([10, 16]), torch.Size([10])}
    monkeypatch.setattr(
        family, method, lambda self, t: (seen.append(t.shape in second), own(self, t))[1]
    )
    fitted(Pulled(pull, noise=noise), family(**{name: FIT}))
    assert 16 < sum(seen) <= 50


def test_a_spectrum_with_zeros():
    net = Pulled(lambda t: t)
    for k, p in enumerate(net.parameters()):
        left, values, right = torch.linalg.svd(p.detach(), full_matrices=False)
        values[4:] = 0
        p.data = (left * values) @ right
        net.pulls[k] = 0.01 * (left[:, :4] * (0.7 * values[:4].pow(-0.3))) @ right[:4]
    est = fitted(net, Schatten(q=FIT))
    assert est.shapes_["value"].item() == pytest.approx(0.7, rel=1e-6)
    assert est.coef_[0] == pytest.approx(0.01, rel=1e-6)
    assert est.shapes_["ci_low"].item() == pytest.approx(0.7, rel=1e-4)


def test_the_scale_of_the_weights_does_not_matter():
    wide = fitted(Pulled(smooth_l1(80.0), std=150.0), SmoothL1(delta=FIT))
    assert wide.shapes_["value"].item() == pytest.approx(80.0, rel=1e-6)


def test_an_interval_is_that_of_nonlinear_least_squares():
    # scipy solves for coefficient and exponent at once; its Jacobian gives the classical errors.
    net = Pulled(power(1.5), noise=0.2)
    est = fitted(net, Power(q=FIT), covariance="ols")
    t = torch.cat([p.detach().flatten() for p in net.parameters()]).numpy()
    target = torch.cat([p.flatten() for p in net.pulls]).numpy()

    def jacobian(coef, q):
        column = q * np.sign(t) * np.abs(t) ** (q - 1)
        slope = coef * (column / q + column * np.log(np.abs(t)))
        return np.column_stack([column, slope])

    def loss(x):
        return 1e6 * np.sum((target - x[0] * jacobian(*x)[:, 0]) ** 2)

    coef, q = minimize(loss, [0.01, 1.4], method="Nelder-Mead", options={"xatol": 1e-10}).x
    left = target - coef * jacobian(coef, q)[:, 0]
    cov = left @ left / (len(t) - 2) * np.linalg.inv(jacobian(coef, q).T @ jacobian(coef, q))
    found = est.shapes_.loc["q"]
    assert found["value"] == pytest.approx(q, rel=1e-4)
    assert found["std_err"] == pytest.approx(cov[1, 1] ** 0.5, rel=1e-3)
    assert est.std_err_[0] == pytest.approx(cov[0, 0] ** 0.5, rel=1e-3)
    half = np.log(found["ci_high"] / found["ci_low"]) / 2
    assert half == pytest.approx(1.965 * found["std_err"] / found["value"], rel=1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("family", [Power(q=FIT), SmoothL1(delta=FIT)], ids=["q", "delta"])
def test_a_term_that_explains_nothing_has_no_interval(family, noise):
    est = fitted(Pulled(ridge(), noise=noise), L2() + family)
    assert est.coef_[0] == pytest.approx(1e-3, rel=0.1)
    assert np.isnan(est.shapes_[["std_err", "ci_low", "ci_high"]].to_numpy()).all()
    assert "not identifiable" in str(est.summary())
    assert est.n_terms_ == 3


def test_a_shape_at_the_end_of_its_range_has_no_interval():
    est = fitted(Pulled(power(0.3)), Power(q=FIT))
    assert est.shapes_["value"].item() == pytest.approx(0.5, rel=1e-2)
    assert np.isnan(est.shapes_["ci_low"].item())
    assert "at an end of its range, 0.5 to 6" in " ".join(str(est.summary()).split())


def test_without_a_gradient_there_is_no_interval():
    est = fitted(Pulled(lambda t: 0 * t), Power(q=FIT))
    assert est.verdict_ == "no signal"
    assert np.isfinite(est.shapes_["value"].item())
    assert np.isnan(est.shapes_["ci_low"].item())
    assert "there is no gradient to explain" in " ".join(str(est.summary()).split())


def test_weights_that_are_zero_have_no_interval():
    with pytest.warns(CollinearTermsWarning, match="zero or linearly dependent"):
        est = fitted(Pulled(torch.ones_like, std=0.0), Power(q=FIT))
    assert est.verdict_ == "not identifiable"
    assert np.isnan(est.shapes_["ci_low"].item())


@cache
def bridge():
    """A linear model at the minimum of the mean squared error and .05 times the sum |w|^1.5."""
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:200] / X.std(0), (y[:200] - y.mean()) / y.std()

    def objective(w):
        left = y - X @ w
        slope = -2 * X.T @ left / len(y) + 0.075 * np.sign(w) * np.abs(w) ** 0.5
        return left @ left / len(y) + 0.05 * (np.abs(w) ** 1.5).sum(), slope

    start = np.linalg.lstsq(X, y, rcond=None)[0]
    found = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-12})
    model = Ridge(fit_intercept=False).fit(X, y)
    model.coef_ = found.x
    return model, X, y


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positive": True},
        {"known": {"l2": 0.0}},
        {"group_by": "layer"},
        {"covariance": "hc3"},
    ],
    ids=["default", "positive", "known", "layer", "hc3"],
)
def test_linear_models(options):
    model, X, y = bridge()
    est = ImplicitRegularizationEstimator(model, family=Power(q=FIT), **options).fit(X, y)
    assert est.shapes_.loc["q", "value"] == pytest.approx(1.5, rel=1e-6)
    assert est.coef_[0] == pytest.approx(0.05, rel=1e-6)
    weights = torch.as_tensor(model.coef_)
    assert float(est.penalty_({"coef": weights})) == pytest.approx(
        0.05 * float(weights.abs().pow(1.5).sum()), rel=1e-6
    )
    assert est.score(X, y) == pytest.approx(1.0)
    assert est.get_params()["family__q"] == FIT
    assert clone(est).family.q == FIT
    again = pickle.loads(pickle.dumps(est))
    assert again.shapes_.equals(est.shapes_)
    assert str(again.summary()) == str(est.summary())


def test_positive_drops_a_term_and_keeps_the_interval():
    net = Pulled(added(ridge(-1e-3), power(1.5)), noise=0.05)
    est = fitted(net, L2() + Power(q=FIT), positive=True)
    assert est.coef_[0] == 0
    assert est.coef_[1] > 0
    alone = fitted(net, Power(q=FIT))
    np.testing.assert_allclose(est.shapes_, alone.shapes_, rtol=1e-6)


def test_shapes_count_where_families_are_compared():
    model, X, y = bridge()
    families = ["l2", Power(q=FIT), Power(q=1.5)]
    search = ImplicitRegularizationCV(model, families=families, refit="smallest").fit(X, y)
    assert list(search.cv_results_["n_terms"]) == [1, 2, 1]
    assert search.best_index_ == 2
    search = ImplicitRegularizationCV(model, families=families[:2]).fit(X, y)
    assert search.best_index_ == 1
    assert search.shapes_.loc["q", "value"] == pytest.approx(1.5)
    assert search.score(X, y) == pytest.approx(1.0)
    grid = GridSearchCV(
        ImplicitRegularizationEstimator(model),
        {"family": families},
        cv=3,
        scoring=family_score,
        refit=simplest_within_one_se,
    ).fit(X, y)
    assert list(grid.cv_results_["mean_test_n_terms"]) == [1, 2, 1]
    assert [family.count_terms() for family in families[1:]] == [2, 1]
    assert grid.best_params_["family"].q == 1.5


def test_a_family_that_is_true_without_a_shape_stays():
    X, y = load_diabetes(return_X_y=True)
    model = Ridge(alpha=3.0).fit(X, y)
    search = ImplicitRegularizationCV(model, families=["l2", Power(q=FIT)]).fit(X, y)
    assert search.best_name_ == "l2"


def test_several_endpoints_share_a_shape():
    model, X, y = bridge()
    group = [Endpoint(model, X, y), Endpoint(model, X, y)]
    est = ImplicitRegularizationEstimator(None, family=Power(q=FIT)).fit(group)
    assert est.shapes_.loc["q", "value"] == pytest.approx(1.5, rel=1e-6)
    assert np.isnan(est.shapes_.loc["q", "ci_low"])  # as the coefficient, of one data set
    assert "has no standard error" in str(est.summary())
    assert est.score(group) == pytest.approx(1.0)


def test_what_reads_the_fit():
    model, X, y = bridge()
    est = ImplicitRegularizationEstimator(model, family=Power(q=FIT)).fit(X, y)
    assert '"shapes": {' in est.to_json()
    assert est.by_layer().loc["coef", "coef"] == pytest.approx(0.05)
    assert list(est.influence(3).columns)[-1] == "dfb_power"
    assert len(est.smallest_detectable()) == 1
    assert list(est.to_frame()["term"]) == ["power"]
    table = equations(model, X, y, Power(q=FIT))
    known = equations(model, X, y, Power(q=est.shapes_.loc["q", "value"]))
    np.testing.assert_allclose(table.data, known.data)


@cache
def trained():
    """A tanh net trained by L-BFGS with l2 and smooth_l1(.08)."""
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(80, 6, generator=rng).double()
    y = torch.sin(X[:, :1]) + 0.1 * torch.randn(80, 1, generator=rng).double()
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    optimizer = torch.optim.LBFGS(
        net.parameters(),
        max_iter=3000,
        tolerance_grad=1e-10,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def objective():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(X), y)
        for weight in (net[0].weight, net[2].weight):
            zero = torch.zeros_like(weight)
            corner = nn.functional.smooth_l1_loss(weight, zero, reduction="sum", beta=0.08)
            loss = loss + 1e-3 * weight.square().sum() + 2e-3 * corner
        loss.backward()
        return loss

    optimizer.step(objective)
    return net, X, y


def test_a_trained_net():
    net, X, y = trained()
    before = [p.detach().clone() for p in net.parameters()]
    est = ImplicitRegularizationEstimator(net, family=L2() + SmoothL1(delta=FIT), loss="mse")
    est.fit(X, y)
    assert est.shapes_["value"].item() == pytest.approx(0.08, rel=1e-4)
    np.testing.assert_allclose(est.coef_, [1e-3, 2e-3], rtol=1e-4)
    back = est.recover(X, y, start="trained")
    assert "Back:                           1 of 1" in str(back)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_restricted_penalty_beside_a_known_one():
    net, X, y = trained()
    est = ImplicitRegularizationEstimator(
        net,
        family=SmoothL1(delta=FIT).on("weight"),
        known={"l2": 1e-3},
        loss="mse",
    ).fit(X, y)
    assert est.shapes_.loc["delta", "value"] == pytest.approx(0.08, rel=1e-4)
    assert est.coef_[0] == pytest.approx(2e-3, rel=1e-4)


def test_shapes_of_one_name_have_those_of_their_penalties():
    net = Pulled(power(1.5))
    net.pulls[1] = power(3)(net.layers[1].weight.detach())
    est = fitted(net, Power(q=FIT).on("layers.0") + Power(q=FIT).on("layers.1"))
    found = est.shapes_["value"].to_dict()
    assert found == pytest.approx({"scoped1__q": 1.5, "scoped2__q": 3.0}, rel=1e-6)


def test_one_shape_for_all_groups():
    net = Pulled(power(1.5))
    net.pulls[1] = 2 * net.pulls[1]
    est = fitted(net, Power(q=FIT).per("layer"))
    np.testing.assert_allclose(est.coef_, [0.01, 0.02], rtol=1e-6)
    assert est.shapes_.loc["q", "value"] == pytest.approx(1.5, rel=1e-6)
    assert est.shapes_.loc["q", "ci_low"] == pytest.approx(1.5, rel=1e-6)


def test_a_family_on_rows():
    net, X, y = trained()
    wide = Scaled(1.7)
    est = ImplicitRegularizationEstimator(net, family="l2", loss="mse").fit(X, y)
    problem = est._equations.targets.problem
    seen = {name: t.clone().requires_grad_() for name, t in problem.params.items()}
    (value,) = wide.terms(seen, problem).values()
    slopes = torch.autograd.grad(-0.02 * value, list(seen.values()))
    pulls = dict(zip(seen, slopes, strict=True))

    class WithPulls(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            named = dict(self.net.named_parameters())
            total = sum((named[n] * g).sum() for n, g in pulls.items())
            return torch.cat([self.net(x), total.expand(len(x), 1)], dim=1)

    class First(Scaled):
        def rows(self, batch):
            return {"scaled": batch.call(self.by * batch.inputs)[:, :1].square().sum(1)}

    both = ImplicitRegularizationEstimator(
        WithPulls(), family=First(by=FIT), loss=lambda output, _: output[:, 1], params="weight"
    ).fit(X, y)
    assert both.shapes_.loc["by", "value"] == pytest.approx(1.7, rel=1e-5)
    assert both.coef_[0] == pytest.approx(0.02, rel=1e-5)


@cache
def recorded():
    torch.manual_seed(1)
    X = torch.randn(40, 4).double()
    y = torch.sin(X[:, :1])
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    weights = (net[0].weight, net[2].weight)
    with record(net, optimizer) as recorder:
        for _ in range(4):
            for start in range(0, 40, 20):
                recorder.batch(np.arange(start, start + 20))
                rows = slice(start, start + 20)
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(net(X[rows]), y[rows])
                (loss + 0.02 * sum(w.abs().pow(3).sum() for w in weights)).backward()
                optimizer.step()
            recorder.epoch()
    return net, X, y, recorder.trajectory


@pytest.mark.parametrize("reference", ["batch", "gradient"])
def test_a_trajectory(reference):
    net, X, y, trajectory = recorded()
    est = ImplicitRegularizationEstimator(
        net,
        family=Power(q=FIT),
        loss="mse",
        mode="trajectory",
        trajectory=trajectory,
        reference=reference,
        window=None if reference == "batch" else "epoch",
    ).fit(X, y)
    q = est.shapes_.loc["q", "value"]
    if reference == "batch":
        assert q == pytest.approx(3.0, rel=1e-6)
        assert est.coef_[0] == pytest.approx(0.02, rel=1e-6)
    # No fixed exponent leaves less of the windows' equations.
    left = []
    for exponent in (q, 0.99 * q, 1.01 * q):
        fixed = clone(est).set_params(family=Power(q=exponent)).fit(X, y)
        left.append(solve_system(fixed._equations.system).shortfall)
    assert np.argmin(left) == 0
    assert est.coef_path_.shape[1] == len(est.term_names_)
    assert "power" in str(est.summary())
    if reference == "gradient":
        assert est.term_names_ == ["power", "minibatch"]
        assert est.score(X, y) == pytest.approx(est.r2_, abs=0.01)


def test_random_draws_along_a_trajectory_raise():
    class Random(Scaled):
        stochastic = True

    net, X, y, trajectory = recorded()
    est = ImplicitRegularizationEstimator(
        net, family=Random(by=FIT), loss="mse", mode="trajectory", trajectory=trajectory
    ).set_params(reference="batch")
    with pytest.raises(ValueError, match="without random draws for an unknown shape"):
        est.fit(X, y)


BAD = {
    "typing error": (Power(q="fitt"), "finite number > 0 or 'fit', got 'fitt'"),
    "center": (L2(center=FIT), "Expected center of L2 to be None"),
    "integer": (Steps(n=FIT), "Expected a value for n of Steps, got 'fit'"),
    "backward": (Backward(q=FIT), "two finite numbers 0 < low < high, got"),
    "not positive": (Below(q=FIT), "two finite numbers 0 < low < high, got"),
    "known coefficient": (
        [0.1 * Power(q=FIT), "l2"],
        "an unknown coefficient in a term with q='fit'",
    ),
    "twice": ([Power(q=FIT), Power(q=FIT)], "two of Power"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    family, message = BAD[case]
    model, X, y = bridge()
    with pytest.raises(ValueError, match=message):
        ImplicitRegularizationEstimator(model, family=family).fit(X, y)


def test_places_that_need_a_number_say_so():
    model, X, y = bridge()
    other = Ridge(fit_intercept=False).fit(X, y)
    for call in (
        lambda: Power(q=FIT).terms({"w": torch.ones(2)}, None),
        lambda: contrast(model, other, Power(q=FIT), X=X, y=y),
    ):
        with pytest.raises(ValueError, match="Expected a number as q of Power here, got 'fit'"):
            call()
    precomputed = ImplicitRegularizationEstimator("precomputed", family=Power(q=FIT))
    with pytest.raises(ValueError, match="Expected family left at the default"):
        precomputed.fit(X, y)
