"""The regression at a trained model: its rows, what is dropped, the completed score."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso, LinearRegression, MultiTaskLasso
from torch import nn

from sklearn_implicitreg import Endpoint, ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.endpoints.targets import EndpointTargets
from sklearn_implicitreg.penalties import L1, L2, L21, Power, SmoothL1, as_penalty
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.solve import solve
from sklearn_implicitreg.regression.system import System, explained, r_factor
from sklearn_implicitreg.results.criterion import completed_r2

SHAPES = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (1, 4), "2.bias": (1,)}


def net(zeros=()):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        for name, index in zeros:
            dict(model.named_parameters())[name].view(-1)[index] = 0.0
    return model


def rows(n=30, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)), rng.normal(size=n)


def equations(penalty, model=None, data=None, **options):
    options = {"loss": "mse", "params": "all"} | options
    problem = adapt(model or net(), Data(*(data or rows())), Options(**options))
    return EndpointTargets((problem,)).equations(as_penalty(penalty))


def place(*args, **options):
    return equations(*args, **options).judged


def blocks_of(own):
    """Design and target of each tensor."""
    return {label: part for (label,), _, *part in own.system.single("to compare them")}


def dense(penalty, model, data):
    """Design and target over all parameters, by autograd alone."""
    X, y = (torch.as_tensor(part) for part in data)
    params = dict(model.named_parameters())
    names = list(params)

    def flat(value):
        slopes = torch.autograd.grad(value, [params[n] for n in names], allow_unused=True)
        return np.concatenate(
            [
                (torch.zeros_like(params[n]) if s is None else s).numpy().ravel()
                for n, s in zip(names, slopes, strict=True)
            ]
        )

    target = -flat(nn.functional.mse_loss(model(X)[:, 0], y))
    terms = as_penalty(penalty).terms(params, None)
    return np.stack([flat(value) for value in terms.values()], axis=1), target


def linear(coef, intercept, n_outputs=1):
    """Linear module with the weights of another library."""
    coef = np.atleast_2d(coef)
    model = nn.Linear(coef.shape[1], n_outputs).double()
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(coef))
        model.bias.copy_(torch.as_tensor(np.atleast_1d(intercept)))
    return model


FAMILIES = ["l2", "l2+l1", "elastic_net", L2() + Power(q=3), L2().per("layer"), L21() + SmoothL1()]


class TestRows:
    @pytest.mark.parametrize("family", FAMILIES, ids=repr)
    def test_equal_an_explicit_regression(self, family):
        model, data = net(), rows()
        design, target = dense(family, model, data)
        own = equations(family, model, data)
        blocks = blocks_of(own)
        assert list(blocks) == list(SHAPES)
        ours = np.concatenate([columns for columns, _ in blocks.values()])
        np.testing.assert_allclose(ours, design, rtol=1e-12, atol=1e-14)
        theirs = np.concatenate([values for _, values in blocks.values()])
        np.testing.assert_allclose(theirs, target, rtol=1e-10, atol=1e-14)
        coef = solve(own.system.r_factor, own.system.n_equations).coef
        expected = LinearRegression(fit_intercept=False).fit(design, target).coef_
        np.testing.assert_allclose(coef, expected, rtol=1e-9)

    def test_read_again_are_the_same(self):
        read = equations("l2+l1", net([("0.weight", 5)])).system.single
        for a, b in zip(read("once"), read("once more"), strict=True):
            assert a[0] == b[0]
            for mine, again in zip(a[1:], b[1:], strict=True):
                np.testing.assert_array_equal(mine, again)

    def test_clusters_are_tensors(self):
        system = equations("l2").system
        assert system.labels == tuple(SHAPES)
        assert system.counts == (12, 4, 4, 1)

    def test_known_penalties_are_on_the_side_of_the_loss(self):
        model, data = net(), rows()
        design, target = dense("l2+l1", model, data)
        own = equations(L1() + 0.7 * L2(), model, data)
        ours = np.concatenate([values for _, values in blocks_of(own).values()])
        np.testing.assert_allclose(ours, target - 0.7 * design[:, 0], rtol=1e-10, atol=1e-14)

    def test_float32_gradients_make_float64_rows(self):
        blocks = blocks_of(equations("l2", net().float())).values()
        assert all(part.dtype == np.float64 for block in blocks for part in block)


class TestFrame:
    def test_one_row_per_equation(self):
        model, data = net(zeros=[("0.weight", 5), ("2.bias", 0)]), rows()
        own = equations("l2+l1", model, data)
        design, target, tensor = own.frame()
        assert list(design.columns) == ["l2", "l1"]
        assert len(design) == own.system.n_equations == 19
        assert (design.index == target.index).all() and (design.index == tensor.index).all()
        assert design.index.names == ["tensor", "coordinate"]
        assert ("0.weight", 5) not in design.index and ("0.weight", 6) in design.index
        assert tensor.to_dict() == {place: place[0] for place in design.index}
        whole, _ = dense("l2", model, data)
        by_place = dict(zip([("0.weight", i) for i in range(12)], whole[:12, 0], strict=True))
        for place, value in by_place.items():
            if place in design.index:
                assert design.loc[place, "l2"] == pytest.approx(value, rel=1e-14)

    def test_gives_the_r_factor(self):
        own = equations("l2+l1")
        design, target, _ = own.frame()
        both = np.column_stack([design, target])
        r_factor = own.system.r_factor
        np.testing.assert_allclose(r_factor.T @ r_factor, both.T @ both, rtol=1e-12, atol=1e-14)


class TestDropped:
    def test_zeros_of_l1(self):
        zeros = [("0.weight", 5), ("0.weight", 7), ("2.bias", 0)]
        own = place("l2+l1", net(zeros))
        assert own.n_dropped == 3
        assert own.system.counts == (10, 4, 4)
        assert own.system.labels == ("0.weight", "0.bias", "2.weight")

    def test_only_in_the_scope_of_l1(self):
        zeros = [("0.weight", 5), ("2.weight", 1)]
        assert place(L2() + L1().on("^0"), net(zeros)).n_dropped == 1
        assert place("l2+smooth_l1+power", net(zeros)).n_dropped == 0

    def test_no_zeros(self):
        own = place("l1")
        assert own.inequalities(np.array([0.0])) is not None
        assert (own.inequalities(np.array([0.0])).n, own.n_dropped) == (0, 0)

    def lasso(self, alpha=0.3):
        X, y = load_diabetes(return_X_y=True)
        fitted = Lasso(alpha=alpha, tol=1e-14, max_iter=100_000).fit(X, y)
        residual = y - fitted.predict(X)
        slopes = np.abs(2 * X.T @ residual / len(y))[fitted.coef_ == 0]
        return linear(fitted.coef_, fitted.intercept_), (X, y), slopes

    def test_inequalities_hold_at_an_exact_solution(self):
        model, data, slopes = self.lasso()
        own = place("l1", model, data, params="auto")
        tested = own.inequalities(np.array([0.6]))
        assert tested.n == len(slopes) > 1
        assert tested.n_violated == 0

    def test_violated_inequalities_are_counted(self):
        model, data, slopes = self.lasso()
        own = place("l1", model, data, params="auto")
        for coef in (*(np.sort(slopes) * 1.0001), *(np.sort(slopes) * 0.9999), 0.0, -1.0):
            tested = own.inequalities(np.array([coef]))
            assert tested.n_violated == int((slopes > coef).sum())

    def test_a_known_part_takes_its_share(self):
        model, data, slopes = self.lasso()
        middle = float(np.median(slopes))
        for total in (0.6, middle):
            own = place(L2() + total * L1(), model, data, params="auto")
            tested = own.inequalities(np.array([0.0]))
            assert tested.n == len(slopes)
            assert tested.n_violated == int((slopes > total).sum())

    def test_groups_of_l21(self):
        """A feature that is out in all outputs is out if its slope's norm is within coef."""
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(2, 3))
        weights[:, 1] = 0.0
        X, Y = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
        model = linear(weights, [0.0, 0.0], 2)
        residual = Y - X @ weights.T
        slope = float(np.linalg.norm(X[:, 1] @ residual)) / 50
        own = place("l21", model, (X, Y), params="auto")
        assert own.n_dropped == 2
        assert own.inequalities(np.array([1.001 * slope])).n_violated == 0
        assert own.inequalities(np.array([0.999 * slope])).n_violated == 2

    def test_low_powers_hold_any_zero(self):
        own = place(Power(q=0.5), net([("0.weight", 5)]))
        assert own.inequalities(np.array([1e-3])).n_violated == 0
        assert own.inequalities(np.array([-1e-3])).n_violated == 1

    def test_bounds(self):
        """At a bound the loss may only fall beyond it."""
        X, y = load_diabetes(return_X_y=True)
        fitted = LinearRegression(positive=True).fit(X, y)
        own = place("l2", fitted, (X, y), loss="auto", params="auto")
        assert own.n_dropped == int((fitted.coef_ == 0).sum()) > 0
        assert own.inequalities(np.array([0.0])).n_violated == 0
        flipped = place("l2", fitted, (-X, y), loss="auto", params="auto")
        assert flipped.inequalities(np.array([0.0])).n_violated > 0

    @pytest.mark.parametrize("known", [False, True], ids=["estimated", "known"])
    def test_penalties_without_a_closed_form_are_not_tested(self, known):
        class Own(L2):
            gradient = None

        penalty = L1() + 0.5 * Own() if known else L1() + Own()
        own = place(penalty, net([("0.weight", 5)]))
        assert own.inequalities(np.zeros(2)[: 2 - known]) == (own.n_dropped, None)
        assert own.n_dropped == 1


class TestCompletedScore:
    def by_hand(self, family, model, parts, positive=False):
        """Section by section: complete, solve, rescale, R2."""
        gradients = [dense(family, model, part)[1] for part in parts]
        design = dense(family, model, parts[0])[0]
        n_fit, n_held = (len(part[1]) for part in parts)
        target = (n_fit * gradients[0] + n_held * gradients[1]) / (n_fit + n_held)

        def answer(values):
            fit = LinearRegression(fit_intercept=False, positive=positive).fit(design, values)
            return fit.coef_

        fitted, best = answer(gradients[0]), answer(target)
        coef = best + np.sqrt(n_fit / n_held / 99) * (fitted - best)
        residual = target - design @ coef
        return fitted, 1 - residual @ residual / (target @ target)

    @pytest.mark.parametrize("n_held", [2, 10, 25])
    @pytest.mark.parametrize("positive", [False, True], ids=["free", "positive"])
    def test_equals_its_formula(self, n_held, positive):
        X, y = rows(30)
        model = net()
        parts = [(X[n_held:], y[n_held:]), (X[:n_held], y[:n_held])]
        coef, expected = self.by_hand("l2+l1", model, parts, positive)
        own = equations("l2+l1", model, parts[0])
        rest = adapt(model, Data(*parts[1]), Options(loss="mse", params="all"))
        found, _ = completed_r2(own, own.targets.completing(rest), coef, positive=positive)
        assert found == pytest.approx(expected, rel=1e-9)

    def test_weights_of_rows_count(self):
        X, y = rows(30)
        model, counts = net(), np.random.default_rng(3).integers(1, 4, 30)
        repeated = [
            (np.repeat(X[part], counts[part], 0), np.repeat(y[part], counts[part]))
            for part in (slice(10, None), slice(0, 10))
        ]
        coef, expected = self.by_hand("l2", model, repeated)
        options = Options(loss="mse", params="all")
        fitted = adapt(model, Data(X[10:], y[10:], counts[10:]), options)
        own = EndpointTargets((fitted,)).equations(L2())
        rest = adapt(model, Data(X[:10], y[:10], counts[:10]), options).gradient()
        found, _ = completed_r2(own, [rest], coef, positive=False)
        assert found == pytest.approx(expected, rel=1e-9)

    def test_the_same_rows_again_change_nothing(self):
        own = equations("l2+l1")
        solution = solve(own.system.r_factor, own.system.n_equations)
        again, _ = completed_r2(own, [own.judged.gradient], solution.coef, positive=False)
        assert again == pytest.approx(solution.r2, rel=1e-10)

    def test_zero_target_scores_zero(self):
        X, y = load_diabetes(return_X_y=True)
        fitted = LinearRegression().fit(X, y)
        own = equations("l2", linear(fitted.coef_, fitted.intercept_), (X, y))
        assert completed_r2(own, [own.judged.gradient], np.array([0.0]), positive=False)[0] == 0.0

    def test_explained_of_a_zero_target(self):
        assert explained(np.zeros((2, 2)), np.array([1.0])) == 0.0


class TestCounts:
    def test_more_coefficients_than_equations(self):
        own = equations("l2+l1", params=r"2\.bias")
        with pytest.raises(
            ValueError, match=r"got 1 equations for the 2 coefficients \['l2', 'l1'\]"
        ):
            _ = own.system

    def test_all_coordinates_at_kinks(self):
        own = equations("l1", linear([[0.0, 0.0, 0.0]], 0.0), params="auto")
        with pytest.raises(ValueError, match="got all 3 at one, .* known is l1 >= "):
            _ = own.system

    def test_as_many_as_equations(self):
        own = equations("l2", params=r"2\.bias")
        assert own.system.n_equations == own.system.n_terms == 1

    def test_per_layer_outside_scope(self):
        own = equations(L2().on("^0").per("layer"))
        assert own.term_names == ("l2[0]",)
        assert own.system.n_equations == 21
        assert not own.judged.design.columns("2.weight").any()


@pytest.mark.parametrize("family", ["l1", "l2+l1"])
def test_all_weights_at_the_kink_bound_the_coefficient(family):
    """Lasso stays at zero from alpha = max |X'(y - mean)| / n on; coef is twice alpha."""
    X, y = load_diabetes(return_X_y=True)
    bound = 2 * np.abs(X.T @ (y - y.mean())).max() / len(y)
    model = Lasso(1e3).fit(X, y)
    est = ImplicitRegularizationEstimator(model, family=family)
    with pytest.raises(ValueError, match="all 10 at one, where they give inequal") as caught:
        est.fit(X, y)
    assert f"all that is known is l1 >= {bound:.6g}" in str(caught.value)
    with pytest.raises(ValueError, match=f"l1 >= {bound:.6g}"):
        ImplicitRegularizationEstimator(None, family=family).fit([Endpoint(model, X, y)] * 2)


def test_all_groups_at_the_kink_bound_the_coefficient():
    X, y = load_diabetes(return_X_y=True)
    both = np.column_stack([y, X[:, 0] * 30 + y])
    model = MultiTaskLasso(1e3).fit(X, both)
    grad = 2 * X.T @ (both - both.mean(0)) / len(y)
    bound = np.linalg.norm(grad, axis=1).max()
    with pytest.raises(ValueError, match="all 20 at one") as caught:
        ImplicitRegularizationEstimator(model, family="l21").fit(X, both)
    assert f"l21 >= {bound:.6g}" in str(caught.value)


def test_weights_at_bounds_leave_no_equation():
    X, y = load_diabetes(return_X_y=True)
    model = Lasso(1e3, positive=True).fit(X, y)
    with pytest.raises(ValueError, match="no coefficient is known"):
        ImplicitRegularizationEstimator(model, family="l2").fit(X, y)


@pytest.mark.parametrize("kind", ["zero", "twice", "dependent", "plain", "all zero"])
def test_what_is_beyond_nuisance_columns(kind):
    rng = np.random.default_rng(0)
    family, target, one, two = rng.normal(size=(4, 50))
    nuisance = {
        "zero": [np.zeros(50), one],
        "twice": [one, one],
        "dependent": [one, 1e-9 * two, one + 3 * two],
        "plain": [one, two],
        "all zero": [np.zeros(50)],
    }[kind]
    names = tuple(f"n{i}" for i in range(len(nuisance)))
    upper = r_factor(np.column_stack([*nuisance, family]), target)
    system = System((*names, "l2"), ("w",), (upper,), (50,))
    own = Equations((SimpleNamespace(system=system),), None, nuisance=names)
    span = np.column_stack(nuisance)
    pair = np.column_stack([family, target])
    left = pair - span @ np.linalg.lstsq(span, pair, rcond=None)[0]
    found = own.without_nuisance(system)
    np.testing.assert_allclose(found.T @ found, left.T @ left, rtol=1e-9)
    assert own.signal()[1] == pytest.approx(left[:, 1] @ left[:, 1], rel=1e-9)
