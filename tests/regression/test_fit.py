"""One fit for endpoints, windows, given arrays and families that are solved as a whole."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from sklearn_implicitreg import Endpoint, ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.endpoints.precomputed import given_equations
from sklearn_implicitreg.endpoints.targets import EndpointTargets
from sklearn_implicitreg.penalties import L1, L2, SmoothL1, as_penalty
from sklearn_implicitreg.problem import LossGradient
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.fit import Result, Settings, fit
from sklearn_implicitreg.regression.place import Place
from sklearn_implicitreg.regression.system import System
from sklearn_implicitreg.regression.verdict import VERDICTS
from sklearn_implicitreg.trajectory import record

N, P = 40, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, P))
Y = X @ [1.0, -2.0, 0.5, 0.0] + 0.3 * RNG.normal(size=N)


def ridge(seed):
    rows = np.random.default_rng(seed).normal(size=(N, P))
    y = rows @ [1.0, -2.0, 0.5, 0.3] + 0.3 * rows[:, 0] ** 2
    return Endpoint(Ridge(alpha=3.0).fit(rows, y), rows, y)


def trained():
    """Linear module that was trained with weight decay, its data and its trajectory."""
    inputs, targets = torch.as_tensor(X), torch.as_tensor(Y)[:, None]
    torch.manual_seed(0)
    net = nn.Linear(P, 1).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=0.02)
    with record(net, optimizer) as path:
        for _ in range(6):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(inputs), targets).backward()
            optimizer.step()
    return net, inputs, targets, path.trajectory


def at_endpoint(family="l2"):
    est = ImplicitRegularizationEstimator(Ridge(alpha=3.0).fit(X, Y), family=family)
    return est.fit(X, Y)


def at_endpoints(family="l2"):
    est = ImplicitRegularizationEstimator(None, family=family)
    return est.fit([ridge(seed) for seed in range(5)])


def along(family="l2"):
    net, inputs, targets, path = trained()
    est = ImplicitRegularizationEstimator(
        net, family=family, mode="trajectory", trajectory=path, loss="mse"
    )
    return est.fit(inputs, targets)


def given():
    return ImplicitRegularizationEstimator("precomputed").fit(X, Y)


# What is fitted, and which fields of the result belong to it besides those of all.
KINDS = {
    "endpoint": (at_endpoint, {"solution", "inference"}),
    "endpoints": (at_endpoints, {"solution", "inference", "path", "bands"}),
    "windows": (along, {"solution", "inference", "path", "bands"}),
    "arrays": (given, {"solution", "inference"}),
    "structured endpoint": (lambda: at_endpoint("diagonal"), {"whole"}),
    "structured endpoints": (lambda: at_endpoints("quadratic"), {"whole"}),
    "structured windows": (lambda: along("diagonal"), {"whole"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_fit_has_the_same_result(kind):
    made, own = KINDS[kind]
    est = made()
    result = est._result
    assert type(result) is Result
    k = len(result.coef)
    assert len(result.term_names) == k
    assert result.verdict.label in VERDICTS
    assert result.verdict.sentence.endswith(".")
    assert isinstance(result.n_equations, int)
    assert result.n_equations >= 1
    assert result.r2 <= 1
    assert np.isfinite(result.cosine).all()
    assert result.conf_int is None or result.conf_int.shape == (k, 2)
    optional = {"solution", "inference", "path", "bands", "whole"}
    assert {name for name in optional if getattr(result, name) is not None} == own
    if "path" in own:
        assert result.path.shape[1:] == (k,)
        assert result.bands.shape == (*result.path.shape, 2)
    assert (result.penalty is None) == (kind == "arrays")
    assert est.verdict_ == result.verdict.label
    np.testing.assert_array_equal(est.coef_, result.coef)
    assert (est.r2_, est.n_equations_) == (result.r2, result.n_equations)
    assert str(est.summary())
    assert list(est.to_frame()["term"])


@pytest.mark.parametrize("kind", KINDS)
def test_regression_or_solved_as_a_whole(kind):
    made, own = KINDS[kind]
    result = made()._result
    if "whole" in own:
        with pytest.raises(ValueError, match="Expected the fit of a family of terms, got .* whole"):
            result.regression()
        family, found = result.solved_as_whole()
        assert found.n_equations == result.n_equations
        assert repr(family)
    else:
        solution, inference = result.regression()
        np.testing.assert_array_equal(solution.coef, result.coef)
        np.testing.assert_array_equal(inference.conf_int, result.conf_int)


def test_fit_of_equations_is_that_of_the_estimator():
    problem = adapt(Ridge(alpha=3.0).fit(X, Y), Data(X, Y), Options())
    result = fit(EndpointTargets((problem,)).equations(as_penalty("l2")), Settings())
    public = at_endpoint()._result
    for name in ("coef", "conf_int", "r2", "cosine", "n_equations", "noise_share"):
        np.testing.assert_array_equal(getattr(result, name), getattr(public, name))
    assert str(result.verdict) == str(public.verdict)


def test_result_names_its_fields():
    """A new field belongs in the docstring, and in the test of all kinds."""
    assert {field.name for field in fields(Result)} == {
        *("term_names", "coef", "conf_int", "r2", "cosine", "n_equations", "verdict", "penalty"),
        *("solution", "inference", "family", "path", "bands", "noise_share", "signal_share"),
        *("stated", "same", "tested", "scale_invariant", "whole", "shapes"),
    }


class TestPlace:
    def made(self, family):
        inputs, targets = torch.as_tensor(X), torch.as_tensor(Y)[:, None]
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(P, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        with torch.no_grad():
            net[0].weight[0, 1] = 0.0
        problem = adapt(net, Data(inputs, targets), Options(loss="mse", params="all"))
        return Place(problem, Design.at(family, problem), problem.gradient())

    def alone(self, place):
        """The same place with R factors only."""
        given = replace(place.system, rows=None, missing="R factors of a test")
        empty = LossGradient({}, float("nan"), 1.0, 1, place.gradient.scale, 0)
        return Place(place.problem, place.design, empty, given)

    def test_r_factors_alone_give_the_same_fit(self):
        place = self.made(L2() + SmoothL1())
        targets = EndpointTargets((place.problem,))
        whole, reduced = (
            fit(Equations((own,), targets), Settings()) for own in (place, self.alone(place))
        )
        for name in ("coef", "conf_int", "r2", "cosine", "n_equations"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(reduced, name))
        assert str(whole.verdict) == str(reduced.verdict)

    def test_r_factors_alone_know_of_no_dropped_coordinate(self):
        place = self.made(L1())
        assert place.n_dropped == 1
        reduced = self.alone(place)
        assert reduced.n_dropped == 0
        assert reduced.inequalities(np.array([0.1])) == (0, 0)

    def test_single_equations_are_missing(self):
        equations = Equations((self.alone(self.made(L2())),), EndpointTargets(()))
        for read in (equations.frame, lambda: equations.system.single("for a table of them")):
            with pytest.raises(ValueError, match="for a table of them, got R factors of a test"):
                read()

    def test_one_place_without_rows_leaves_none_to_the_whole(self):
        place = self.made(L2())
        both = Equations((place, self.alone(place)), EndpointTargets(()), "endpoint")
        assert both.system.n_equations == 2 * place.system.n_equations
        assert both.system.rows is None
        alike = Equations((place, place), EndpointTargets(()), "endpoint").system
        labels = [label for label, *_ in alike.single("of both")]
        tensors = list(place.problem.params)
        expected = [(f"endpoint {i}", tensor) for i in range(2) for tensor in tensors]
        assert labels == expected

    def test_places_without_an_equation_are_counted_as_none(self):
        place = self.made(L1())
        with torch.no_grad():
            for tensor in place.problem.params.values():
                tensor.zero_()
        assert place.system.counts == (0,)
        assert place.n_dropped == sum(t.numel() for t in place.problem.params.values())


def test_a_mean_of_fewer_equations_than_coefficients():
    """Windows may have enough together; R-squared of their mean would test nothing."""
    names = [f"x{i}" for i in range(3)]
    rows = RNG.normal(size=(3, 2, 4))
    places = [
        replace(
            given_equations(X[:, :3], Y).judged,
            given=System.from_arrays(part[:, :3], part[:, 3], names),
        )
        for part in rows
    ]
    equations = replace(
        given_equations(X[:, :3], Y), places=tuple(places), cluster="window", shares=(1 / 3,) * 3
    )
    assert equations.system.n_equations == 6
    with pytest.raises(ValueError, match="got 2 equations for the 3 coefficients"):
        fit(replace(equations, mean=places[0]), Settings())
    with pytest.raises(ValueError, match="got 2 equations for the 3 coefficients"):
        _ = replace(equations, mean=places[0]).system


@pytest.mark.parametrize(("size", "dominates"), [(30.0, True), (0.3, False)])
def test_scale_that_no_place_sees_counts_where_it_dominates(size, dominates):
    torch.manual_seed(0)
    inputs, targets = torch.randn(60, P).double(), torch.randn(60, 1).double()
    net = nn.Sequential(nn.Linear(P, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)).double().train()
    with torch.no_grad():
        net[0].weight.mul_(size)
        net[2].weight.mul_(10)
    problem = adapt(net, Data(inputs, targets), Options(loss="mse", module_mode="train"))
    equations = EndpointTargets((problem,)).equations(L2())
    assert equations.scale_invariant() == (("0.weight",), dominates)
    # A target that the weights explain: the verdict then rests on what they are.
    known = {name: -0.2 * t for name, t in problem.params.items()}
    radial = replace(equations.judged, gradient=replace(equations.judged.gradient, value=known))
    system = radial.system
    explained = replace(equations, places=(replace(equations.judged, given=system),))
    result = fit(explained, Settings())
    assert result.scale_invariant == ("0.weight",)
    assert result.verdict.label == ("not identifiable" if dominates else "supported")
    words = "the model does not depend on the scale of tensors that carry"
    assert (words in result.verdict.sentence) == dominates
