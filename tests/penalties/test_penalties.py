"""Penalties: closed forms, combinations and names, user-written ones, the fitted penalty."""

import math
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator, penalties
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.endpoints.targets import EndpointTargets
from sklearn_implicitreg.penalties import (
    FAMILIES,
    L1,
    L2,
    L21,
    Callables,
    ElasticNet,
    Fixed,
    Penalty,
    Power,
    SmoothL1,
    WeightDecay,
    as_penalty,
    check_penalty,
)
from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.penalties.fitted import needs_rows
from sklearn_implicitreg.regression.design import Design

SHAPES = {"fc1.weight": (4, 3), "fc1.bias": (4,), "fc2.weight": (2, 4), "fc2.bias": (2,)}


def tensors(scale=1.0):
    return {name: scale * torch.randn(shape, dtype=torch.float64) for name, shape in SHAPES.items()}


def problem(model=None, **options):
    """Problem of a small module, for columns."""
    torch.manual_seed(1)
    model = model or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = np.random.default_rng(0).normal(size=(20, 3)), np.zeros((20, 2))
    return adapt(model, Data(X, y), Options(loss="mse", params="all", **options))


class NoGradient(Penalty):
    """Cubic penalty that leaves its gradient to autograd."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def terms(self, params, problem):
        return {"cubic": self.scale * sum(t.abs().pow(3).sum() for t in params.values())}


class PerTensor(Penalty):
    """A vector term: one coefficient per tensor."""

    def terms(self, params, problem):
        return {"energy": torch.stack([t.square().sum() for t in params.values()])}


class Product(Penalty):
    """A penalty that is no sum over tensors."""

    def terms(self, params, problem):
        first, *_, last = params.values()
        return {"product": first.square().sum() * last.square().sum()}


class WrongGradient(L2):
    """The factor 2 forgotten."""

    def gradient(self, name, tensor):
        return {"l2": tensor}


class SlightlyWrong(L2):
    """Off in the ninth digit."""

    def gradient(self, name, tensor):
        return {"l2": 2 * (1 + 1e-9) * tensor}


class WrongNames(L2):
    def gradient(self, name, tensor):
        return {"L2": 2 * tensor}


class WrongShape(L2):
    def terms(self, params, problem):
        return {"l2": sum(t.sum() for t in params.values())}

    def gradient(self, name, tensor):
        return {"l2": torch.ones(())}


class Detached(L2):
    gradient = None

    def terms(self, params, problem):
        return {"l2": sum(t.detach().square().sum() for t in params.values())}


class NaNGradient(Penalty):
    """Finite values, but autograd gives NaN at zero."""

    def terms(self, params, problem):
        return {"root": sum(t.abs().pow(0.5).sum() for t in params.values())}


class Forgetful(Penalty):
    """A clone does not have the scale that was set outside the constructor."""

    scale = 1.0

    def terms(self, params, problem):
        return {"l2": self.scale * sum(t.square().sum() for t in params.values())}


class NotFinite(Penalty):
    def terms(self, params, problem):
        return {"bad": torch.tensor(torch.inf)}


class Numbers(Penalty):
    def terms(self, params, problem):
        return {"l2": 1.0}


class Matrix(Penalty):
    def terms(self, params, problem):
        return {"l2": torch.ones(2, 2)}


class Nothing(Penalty):
    def terms(self, params, problem):
        return {}


# A spline takes its knots from the weights, and spectra have no values at zeros: see their tests.
ON_WEIGHTS = [
    name
    for name, cls in FAMILIES.items()
    if name != "spline"
    and not cls.__module__.endswith("spectra")
    and not needs_rows(Leaf(cls(), ()))
]
CLOSED = [name for name in ON_WEIGHTS if hasattr(FAMILIES[name], "gradient")]


@pytest.mark.parametrize("name", ON_WEIGHTS)
class TestFamilies:
    def test_keeps_the_contract(self, name):
        check_penalty(FAMILIES[name]())
        check_penalty(FAMILIES[name](), tensors())

    def test_keeps_the_contract_with_zeros(self, name):
        params = tensors()
        params["fc1.weight"][:, 1] = 0.0
        params["fc2.bias"][0] = 0.0
        check_penalty(FAMILIES[name](), params)

    def test_clone_repr_pickle(self, name):
        penalty, params = FAMILIES[name](), tensors()
        again = eval(repr(penalty), vars(penalties))
        for other in (clone(penalty), pickle.loads(pickle.dumps(penalty)), again):
            assert type(other) is type(penalty)
            assert other.get_params() == penalty.get_params()
            assert other.terms(params, None) == penalty.terms(params, None)

    def test_by_name(self, name):
        assert type(as_penalty(name)) is FAMILIES[name]


@pytest.mark.parametrize("name", CLOSED)
class TestClosedForms:
    def test_closed_form_is_autograd_of_terms(self, name):
        penalty, params = FAMILIES[name](), tensors()
        leaves = {n: t.clone().requires_grad_() for n, t in params.items()}
        for term, value in penalty.terms(leaves, None).items():
            exact = torch.autograd.grad(
                value, list(leaves.values()), retain_graph=True, materialize_grads=True
            )
            for (n, tensor), slope in zip(params.items(), exact, strict=True):
                closed = penalty.gradient(n, tensor)[term]
                torch.testing.assert_close(closed, slope, rtol=1e-12, atol=1e-14)

    def test_closed_form_is_the_slope_of_terms(self, name):
        penalty, params = FAMILIES[name](), tensors()
        for n, tensor in params.items():
            slopes = penalty.gradient(n, tensor)
            for term, slope in slopes.items():
                for i in range(tensor.numel()):
                    step = torch.zeros(tensor.numel(), dtype=torch.float64)
                    step[i] = 1e-6
                    step = step.reshape(tensor.shape)
                    ahead = penalty.terms(params | {n: tensor + step}, None)[term]
                    behind = penalty.terms(params | {n: tensor - step}, None)[term]
                    expected = float(slope.reshape(-1)[i])
                    assert float(ahead - behind) / 2e-6 == pytest.approx(expected, 1e-6, 1e-6)

    def test_finite_at_zero_weights(self, name):
        penalty, params = FAMILIES[name](), tensors(scale=0.0)
        for n, tensor in params.items():
            assert all(bool(torch.isfinite(g).all()) for g in penalty.gradient(n, tensor).values())
            assert not any(bool(g.any()) for g in penalty.gradient(n, tensor).values())
        expected = 5.0 if name == "orthogonality" else 0.0  # of 3 and 2 vectors
        assert all(float(v) == expected for v in penalty.terms(params, None).values())

    def test_one_layer(self, name):
        penalty = FAMILIES[name]()
        params = {"weight": torch.tensor([[0.5, -2.0]], dtype=torch.float64)}
        if name != "row_norm_variance":  # which is a constant of one row
            check_penalty(penalty, params)
        found = adapt(
            nn.Linear(2, 1, bias=False).double(),
            Data(np.ones((3, 2)), np.ones(3)),
            Options(loss="mse"),
        )
        design = Design.at(penalty, found).columns("weight")
        assert design.shape == (2, len(penalty.terms(params, None)))
        assert bool(torch.isfinite(design).all())


class TestFormulas:
    """Values by hand at the weights (3, -4, 0)."""

    @pytest.mark.parametrize(
        ("penalty", "expected"),
        [
            (L2(), {"l2": 25.0}),
            (WeightDecay(), {"weight_decay": 12.5}),
            (L1(), {"l1": 7.0}),
            (SmoothL1(delta=1e-3), {"smooth_l1": 7.0 - 1e-3}),
            (SmoothL1(delta=10.0), {"smooth_l1": 25.0 / 20}),
            (ElasticNet(delta=1e-3), {"l2": 25.0, "smooth_l1": 7.0 - 1e-3}),
            (Power(q=4), {"power": 81.0 + 256}),
            (Power(q=0.5), {"power": 3**0.5 + 2}),
            (L21(), {"l21": 7.0}),
        ],
        ids=lambda value: repr(value) if isinstance(value, Penalty) else "",
    )
    def test_values(self, penalty, expected):
        params = {"w": torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64)}
        values = {term: float(v) for term, v in penalty.terms(params, None).items()}
        assert list(values) == list(expected)
        assert values == pytest.approx(expected, rel=1e-14)

    def test_smooth_l1_is_that_of_torch(self):
        w = torch.randn(50, dtype=torch.float64)
        expected = nn.functional.smooth_l1_loss(w, torch.zeros_like(w), reduction="sum", beta=0.3)
        assert SmoothL1(delta=0.3).terms({"w": w}, None)["smooth_l1"] == expected

    def test_l21_sums_over_features(self):
        w = torch.tensor([[3.0, 1.0, 0.0], [4.0, 0.0, 0.0]], dtype=torch.float64)
        assert float(L21().terms({"w": w}, None)["l21"]) == 6.0
        slope = L21().gradient("w", w)["l21"]
        expected = torch.tensor([[0.6, 1.0, 0.0], [0.8, 0.0, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(slope, expected)
        smooth = torch.tensor([[True, True, False]] * 2)
        assert torch.equal(L21().smooth("w", w), smooth)

    def test_l21_of_a_kernel_groups_by_input_channel(self):
        w = torch.randn(5, 2, 3, 3, dtype=torch.float64)
        expected = sum(float(w[:, j].norm()) for j in range(2))
        assert float(L21().terms({"w": w}, None)["l21"]) == pytest.approx(expected, rel=1e-14)

    def test_zeros_are_kinks_of_l1_and_low_powers_only(self):
        w = torch.tensor([1.0, 0.0])
        for penalty in (L1(), Power(q=0.5), Power(q=1.0), L21()):
            assert penalty.smooth("w", w).tolist() == [True, False]
        assert Power(q=4).smooth("w", w).tolist() == [True, True]

    @pytest.mark.parametrize("q", [0.0, -1.0, float("nan")])
    def test_power_refuses_exponents(self, q):
        with pytest.raises(
            ValueError, match="Expected q of Power to be a finite number > 0 or 'fit', got"
        ):
            Power(q=q).terms(tensors(), None)
        with pytest.raises(
            ValueError, match="Expected q of Power to be a finite number > 0 or 'fit', got"
        ):
            Power(q=q).leaves(tensors(), None)


class TestCombinations:
    def test_sum_has_the_terms_of_both(self):
        params = tensors()
        both = (L2() + L1()).terms(params, None)
        assert both == L2().terms(params, None) | L1().terms(params, None)
        check_penalty(L2() + L1() + Power(q=4))

    def test_sum_of_a_list(self):
        parts = [L2(), L1(), Power(q=4)]
        assert repr(sum(parts)) == repr(L2() + L1() + Power(q=4))
        assert sum([parts[0]]) is parts[0]

    @pytest.mark.parametrize(
        "other",
        [
            3,
            0.5,
            "l2",
            None,
            np.ones(2),
            np.float64(1),
            torch.ones(2),
            nn.Linear,
            [L2()],
            nn.Linear(1, 1),
        ],
    )
    def test_what_is_no_penalty_cannot_be_joined(self, other):
        for joined in (lambda: L2() + other, lambda: other + L2()):
            with pytest.raises(TypeError, match=r"Expected a Penalty to join to L2\(\), got"):
                joined()

    def test_another_class_may_know_how(self):
        class Both:
            def __radd__(self, penalty):
                return repr(penalty)

        assert L2() + Both() == "L2()"

    def test_sum_with_zeros_keeps_the_contract(self):
        params = tensors()
        params["fc1.weight"][0] = 0.0
        check_penalty(L2() + L1() + Power(q=0.5), params)

    def test_columns_of_a_sum_are_those_of_its_parts(self):
        own = problem()
        both = Design.at(L2() + NoGradient(), own)
        assert both.term_names == ("l2", "cubic")
        for name, w in both.params.items():
            expected = torch.stack([2 * w, 3 * w * w.abs()], dim=-1).reshape(-1, 2)
            torch.testing.assert_close(both.columns(name), expected, rtol=1e-12, atol=0)

    @pytest.mark.parametrize(
        "scope",
        ["fc1", lambda name, tensor: name.startswith("fc1"), r"^fc1\."],
        ids=["name", "callable", "regex"],
    )
    def test_scope(self, scope):
        params = tensors()
        expected = sum(float(params[n].square().sum()) for n in ("fc1.weight", "fc1.bias"))
        scoped = L2().on(scope)
        assert float(scoped.terms(params, None)["l2"]) == pytest.approx(expected, rel=1e-14)
        check_penalty(scoped, params)

    def test_column_is_zero_outside_the_scope(self):
        design = Design.at(L2().on("^0") + L1(), problem())
        assert not design.columns("2.weight")[:, 0].any()
        assert design.columns("0.weight")[:, 0].all()
        assert design.columns("2.weight")[:, 1].all()

    def test_scope_without_tensors(self):
        with pytest.raises(ValueError, match=r"The scope 'fc9' of L2\(\) selects no tensor"):
            L2().on("fc9").terms(tensors(), None)

    @pytest.mark.parametrize(
        ("by", "names"),
        [
            ("layer", ["l2[fc1]", "l2[fc2]"]),
            (dict.fromkeys(SHAPES, "every"), ["l2[every]"]),
            (lambda name, tensor: tensor.ndim, ["l2[2]", "l2[1]"]),
        ],
        ids=["layer", "dict", "callable"],
    )
    def test_groups(self, by, names):
        params = tensors()
        values = L2().per(by).terms(params, None)
        assert list(values) == names
        total = float(sum(values.values()))
        assert total == pytest.approx(float(L2().terms(params, None)["l2"]), rel=1e-14)

    def test_groups_of_several_terms_go_group_by_group(self):
        values = ElasticNet().per("layer").terms(tensors(), None)
        assert list(values) == ["l2[fc1]", "smooth_l1[fc1]", "l2[fc2]", "smooth_l1[fc2]"]

    def test_groups_within_groups(self):
        nested = L2().per("layer").per(lambda name, tensor: "deep")
        assert list(nested.terms(tensors(), None)) == ["l2[fc1,deep]", "l2[fc2,deep]"]

    def test_groups_of_which_a_part_sees_nothing(self):
        both = (L2().on("^fc1") + L1()).per("layer")
        assert list(both.terms(tensors(), None)) == ["l2[fc1]", "l1[fc1]", "l1[fc2]"]

    def test_a_layer_owns_what_its_weights_are_computed_from(self):
        names = ["a.fc.parametrizations.weight.original0", "a.fc.bias", "b.weight", "scale"]
        params = {name: torch.ones(1) for name in names}
        values = L2().per("layer").terms(params, None)
        assert list(values) == ["l2[a.fc]", "l2[b]", "l2[scale]"]

    def test_unknown_groups(self):
        with pytest.raises(ValueError, match=r"Expected by of Grouped .*got 'blocks'\."):
            L2().per("blocks").terms(tensors(), None)
        with pytest.raises(ValueError, match=r"Expected a group for every tensor .*'fc1.bias'"):
            L2().per({"fc1.weight": "a"}).terms(tensors(), None)
        with pytest.raises(ValueError, match=r"group_by='param_group' needs a model that knows"):
            L2().per("param_group").terms(tensors(), None)

    @pytest.mark.parametrize("number", [0.5, np.float64(0.5), np.float32(0.5)], ids=type)
    def test_fixed_coefficient(self, number):
        params = tensors()
        fixed = number * L2()
        assert isinstance(fixed, Fixed)
        values = fixed.terms(params, None)
        assert list(values) == ["0.5*l2"]
        assert float(values["0.5*l2"]) == 0.5 * float(L2().terms(params, None)["l2"])
        check_penalty(2 * fixed)
        assert list((2 * fixed).terms(params, None)) == ["1*l2"]

    def test_fixed_part_moves_to_the_side_of_the_loss(self):
        design = Design.at(L1() + 0.25 * L2() + 3.0 * NoGradient(), problem())
        assert design.term_names == ("l1",)
        w = design.params["0.weight"].reshape(-1)
        torch.testing.assert_close(design.known("0.weight"), 0.5 * w + 9 * w * w.abs())

    def test_nothing_to_estimate(self):
        with pytest.raises(ValueError, match="at least one penalty with an unknown coefficient"):
            Design.at(0.25 * L2(), problem())


class TestNames:
    def test_a_clash_gets_the_parameters(self):
        both = SmoothL1(delta=0.1) + SmoothL1(delta=0.2)
        assert list(both.terms(tensors(), None)) == ["smooth_l1(delta=0.1)", "smooth_l1(delta=0.2)"]

    def test_a_clash_of_scopes_gets_the_scopes(self):
        both = L2().on("fc1") + L2().on("fc2")
        assert list(both.terms(tensors(), None)) == ["l2(on=fc1)", "l2(on=fc2)"]
        check_penalty(both, tensors())

    def test_only_what_clashes_is_renamed(self):
        three = Power(q=3) + Power(q=4) + L2()
        assert list(three.terms(tensors(), None)) == ["power(q=3)", "power(q=4)", "l2"]

    def test_a_term_within_another_penalty(self):
        values = (ElasticNet() + L2()).terms(tensors(), None)
        assert list(values) == ["l2(delta=0.001)", "smooth_l1", "l2"]

    @pytest.mark.parametrize(
        "penalty",
        [
            L2() + L2(),
            SmoothL1(0.1) + SmoothL1(0.1),
            L2().per("layer") + L2().per("layer"),
            Callables({"a": lambda p: p["0.bias"].sum()})
            + Callables({"a": lambda p: p["2.bias"].sum()}),
        ],
        ids=["same", "same parameters", "grouped", "callables"],
    )
    def test_two_terms_of_one_name(self, penalty):
        with pytest.raises(ValueError, match=r"Expected terms of different names, got \["):
            Design.at(as_penalty(penalty), problem())

    def test_fixed_and_estimated_may_share_a_name(self):
        assert Design.at(L2() + 0.1 * L2(), problem()).term_names == ("l2",)


class TestParameters:
    def test_parts_are_reached_by_name(self):
        both = L2() + SmoothL1(delta=1e-2)
        assert both.get_params()["smooth_l1__delta"] == 1e-2
        both.set_params(smooth_l1__delta=0.5)
        assert both.parts[1].delta == 0.5

    def test_two_parts_of_one_class_are_numbered(self):
        both = Power(q=3) + Power(q=4)
        both.set_params(power2__q=5)
        assert [part.q for part in both.parts] == [3, 5]

    def test_unknown_part(self):
        with pytest.raises(ValueError, match=r"parameters of the parts \['l2', 'l1'\]"):
            (L2() + L1()).set_params(smooth_l1__delta=1)
        with pytest.raises(ValueError, match="Invalid parameter 'delta' for estimator L2"):
            (L2() + L1()).set_params(l2__delta=1)

    def test_through_the_estimator(self):
        est = ImplicitRegularizationEstimator(nn.Linear(2, 1), family=L2() + SmoothL1())
        est.set_params(family__smooth_l1__delta=0.7)
        assert est.family.parts[1].delta == 0.7
        assert est.get_params()["family__smooth_l1__delta"] == 0.7

    @pytest.mark.parametrize(
        "penalty",
        [
            L2() + SmoothL1(0.3),
            SmoothL1(0.3).on("fc1"),
            L2().per("layer"),
            0.5 * SmoothL1(0.3),
            (L2() + 2 * L1()).on("fc").per("layer"),
        ],
        ids=repr,
    )
    def test_combinations_clone_and_pickle(self, penalty):
        params = tensors()
        expected = penalty.terms(params, None)
        for other in (clone(penalty), pickle.loads(pickle.dumps(penalty))):
            assert other.terms(params, None) == expected
            assert repr(other) == repr(penalty)

    def test_clone_of_a_sum_owns_its_parts(self):
        both = L2() + SmoothL1(delta=0.1)
        clone(both).set_params(smooth_l1__delta=0.9)
        assert both.parts[1].delta == 0.1


class TestAsPenalty:
    @pytest.mark.parametrize(
        ("family", "expected"),
        [
            ("l2", "L2()"),
            ("l1+l2", "Sum(parts=[L1(), L2()])"),
            (" l1 + l2 ", "Sum(parts=[L1(), L2()])"),
            (["l2", "l1"], "Sum(parts=[L2(), L1()])"),
            (("l2", SmoothL1(0.1)), "Sum(parts=[L2(), SmoothL1(delta=0.1)])"),
            (["l2+l1", "power"], "Sum(parts=[L2(), L1(), Power()])"),
            (["l2"], "L2()"),
            (
                [L2(center={}, name="start"), L2()],
                "Sum(parts=[L2(center=<dict>, name='start'), L2()])",
            ),
        ],
        ids=repr,
    )
    def test_accepts(self, family, expected):
        assert repr(as_penalty(family)) == expected

    def test_a_penalty_is_itself(self):
        penalty = SmoothL1(0.1)
        assert as_penalty(penalty) is penalty

    @pytest.mark.parametrize(
        ("name", "near"),
        [("L2", "l2"), ("smoothl1", "smooth_l1"), ("l2+weightdecay", "weight_dec")],
    )
    def test_unknown_name_suggests_the_nearest(self, name, near):
        with pytest.raises(ValueError, match="Unknown family") as caught:
            as_penalty(name)
        assert f"Did you mean '{near}" in str(caught.value)

    @pytest.mark.parametrize("family", [None, 3, [], {}, {"a": 1}, L2], ids=repr)
    def test_other_things(self, family):
        with pytest.raises(
            TypeError, match=r"Expected (family to be a name of|functions of Callables)"
        ):
            as_penalty(family)

    def test_dict_of_callables(self):
        family = {
            "first": lambda params: params["0.weight"].square().sum(),
            "all": lambda params: sum(t.abs().sum() for t in params.values()),
        }
        design = Design.at(as_penalty(family), problem())
        assert design.term_names == ("first", "all")
        w = design.params["0.weight"]
        expected = torch.stack([2 * w, w.sign()], dim=-1).reshape(-1, 2)
        torch.testing.assert_close(design.columns("0.weight"), expected)
        assert not design.columns("2.weight")[:, 0].any()
        check_penalty(Callables({"first": lambda params: params["layer.weight"].square().sum()}))
        with pytest.raises(AssertionError, match="'all' has a kink"):
            check_penalty(Callables({"all": family["all"]}))

    def test_callable_that_returns_a_number(self):
        with pytest.raises(TypeError, match=r"scalar or vector Tensor .*got 'one': 1.0"):
            Design.at(as_penalty({"one": lambda params: 1.0}), problem())


class TestUserPenalties:
    def test_autograd_in_place_of_a_gradient(self):
        design = Design.at(NoGradient(scale=2.0), problem())
        for name, w in design.params.items():
            torch.testing.assert_close(design.columns(name)[:, 0], (6 * w * w.abs()).reshape(-1))

    def test_vector_terms_have_one_coefficient_per_entry(self):
        design = Design.at(PerTensor(), problem())
        names = list(design.params)
        assert design.term_names == tuple(f"energy[{i}]" for i in range(4))
        for i, name in enumerate(names):
            expected = torch.zeros(design.params[name].numel(), 4, dtype=torch.float64)
            expected[:, i] = 2 * design.params[name].reshape(-1)
            torch.testing.assert_close(design.columns(name), expected)
        check_penalty(PerTensor())

    def test_no_sum_over_tensors(self):
        check_penalty(Product())
        design = Design.at(Product(), problem())
        first, last = design.params["0.weight"], design.params["2.bias"]
        expected = 2 * first * last.square().sum()
        torch.testing.assert_close(design.columns("0.weight")[:, 0], expected.reshape(-1))

    @pytest.mark.parametrize(
        ("penalty", "error", "text"),
        [
            (WrongGradient(), AssertionError, "gradient of 'l2' at 'layer.weight' is not that of"),
            (SlightlyWrong(), AssertionError, "gradient of 'l2' at 'layer.weight' is not that of"),
            (WrongNames(), AssertionError, r"gradient has terms \['L2'\], terms has \['l2'\]"),
            (WrongShape(), AssertionError, r"has shape \(\), the tensor has \(3, 4\)"),
            (Detached(), AssertionError, "by autograd, .* by differences"),
            (NotFinite(), ValueError, "Expected finite values, got 'bad' of NotFinite"),
            (Numbers(), TypeError, "Expected every term of Numbers to be a scalar or vector"),
            (Matrix(), TypeError, "Expected every term of Matrix to be a scalar or vector"),
            (Nothing(), TypeError, "Expected Nothing.terms to return a dict of term name"),
            ("l2", TypeError, "penalty of check_penalty to be a Penalty instance, got 'l2'"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Penalty) else None,
    )
    def test_check_penalty_finds(self, penalty, error, text):
        with pytest.raises(error, match=text):
            check_penalty(penalty)

    @pytest.mark.parametrize("shape", [(), (0,), (0, 2), (2, 0), (1,)], ids=str)
    def test_check_penalty_takes_scalars_and_empty_tensors(self, shape):
        params = {"scale": torch.full(shape, 2.0).double(), "w": torch.randn(3, 2).double()}
        check_penalty(L1() + L2(), params)

        class Rough(Penalty):
            def terms(self, params, problem):
                return {"rough": params["scale"].abs().sum()}

        if math.prod(shape):
            with pytest.raises(AssertionError, match="'rough' has a kink where 'scale' is zero"):
                check_penalty(Rough(), params)

    def test_check_penalty_finds_nan_of_autograd(self):
        with pytest.raises(AssertionError, match="'root' has a kink"):
            check_penalty(NaNGradient())
        with pytest.raises(AssertionError, match="slope nan by autograd"):
            check_penalty(NaNGradient(), {"w": torch.tensor([1.0, 0.0])})

    def test_check_penalty_finds_a_clone_that_differs(self):
        penalty = Forgetful()
        penalty.scale = 3.0
        with pytest.raises(AssertionError, match=r"A clone has other values of \['l2'\]"):
            check_penalty(penalty)

    def test_check_penalty_leaves_the_given_tensors(self):
        params = {"w": torch.randn(3, 2)}
        before = params["w"].clone()
        check_penalty(L2(), params)
        assert torch.equal(params["w"], before)
        assert not params["w"].requires_grad


def compile_quietly(model):
    """Wrapped by torch.compile, whose own import warns of torch's deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.compile(model)


def trained(penalty, coefs, steps=60):
    """Small regression net at a stationary point of its penalized loss, with its rows."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    X = torch.randn(60, 3, dtype=torch.float64)
    y = torch.sin(X[:, :1]) + 0.1 * torch.randn(60, 1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=300, tolerance_grad=1e-12, tolerance_change=0.0,
        history_size=50, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        values = penalty.terms(dict(model.named_parameters()), None).values()
        loss = nn.functional.mse_loss(model(X), y)
        loss = loss + sum(c * v for c, v in zip(coefs, values, strict=True))
        loss.backward()
        return loss

    for _ in range(steps // 10):
        optimizer.step(closure)
    model.zero_grad()
    return model, X, y


@pytest.fixture(scope="module")
def stationary():
    return trained(L2() + Power(q=4), (0.02, 0.01))


@pytest.fixture(scope="module")
def fitted(stationary):
    model, X, y = stationary
    est = ImplicitRegularizationEstimator(model, family=L2() + Power(q=4), loss="mse", params="all")
    return est.fit(X, y)


class TestFittedPenalty:
    def test_known_answer(self, fitted):
        np.testing.assert_allclose(fitted.coef_, [0.02, 0.01], rtol=1e-6)

    def test_gradient_is_minus_that_of_the_loss(self, fitted, stationary):
        model, X, y = stationary
        loss = nn.functional.mse_loss(model(X), y)
        ours = torch.autograd.grad(fitted.penalty_(model), list(model.parameters()))
        theirs = torch.autograd.grad(loss, list(model.parameters()))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, -b, rtol=1e-6, atol=1e-9)

    def test_in_a_training_loop(self, fitted, stationary):
        model, X, y = stationary
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        again = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        again.load_state_dict(start)
        optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            (nn.functional.mse_loss(again(X), y) + fitted.penalty_(again)).backward()
            optimizer.step()
        for name, p in again.named_parameters():
            torch.testing.assert_close(p.detach(), start[name], rtol=1e-6, atol=1e-8)

    def test_on_a_dict_and_on_compiled_names(self, fitted, stationary):
        model = stationary[0]
        value = fitted.penalty_(model)
        compiled = compile_quietly(model)
        assert fitted.penalty_(dict(model.named_parameters())) == value
        assert fitted.penalty_(compiled) == value
        assert fitted.penalty_(dict(compiled.named_parameters())) == value

    def test_of_a_compiled_model(self, fitted, stationary):
        model, X, y = stationary
        est = clone(fitted).set_params(model=compile_quietly(model)).fit(X, y)
        np.testing.assert_array_equal(est.coef_, fitted.coef_)
        assert est.penalty_(model) == fitted.penalty_(model)

    def test_of_something_without_tensors(self, fitted):
        with pytest.raises(TypeError, match="Expected a torch module or a dict .* got Ridge"):
            fitted.penalty_(Ridge())

    def test_missing_tensors(self, fitted):
        with pytest.raises(
            ValueError, match=r"Expected parameters named .*\['2.weight', '2.bias'\]"
        ):
            fitted.penalty_(nn.Sequential(nn.Linear(3, 5)))

    def test_pickles(self, fitted, stationary):
        again = pickle.loads(pickle.dumps(fitted.penalty_))
        assert again(stationary[0]) == fitted.penalty_(stationary[0])

    def test_keeps_dtype_and_sees_only_the_scope(self, stationary):
        model, X, y = stationary
        est = ImplicitRegularizationEstimator(model, family="l2+l1", loss="mse").fit(X, y)
        single = {n: p.detach().float() for n, p in model.named_parameters()}
        value = est.penalty_(single)
        assert value.dtype == torch.float32
        weights = [single[n] for n in ("0.weight", "2.weight")]
        expected = sum(
            est.coef_[0] * w.square().sum() + est.coef_[1] * w.abs().sum() for w in weights
        )
        assert float(value) == pytest.approx(float(expected), rel=1e-5)

    def test_grouped_and_vector_terms(self, stationary):
        model, X, y = stationary
        for family, group_by in ((L2(), "layer"), (PerTensor(), None)):
            est = ImplicitRegularizationEstimator(
                model, family=family, loss="mse", params="all", group_by=group_by
            ).fit(X, y)
            params = dict(model.named_parameters())
            names = list(params)
            groups = [names[:2], names[2:]] if group_by else [[n] for n in names]
            expected = sum(
                c * sum(params[n].square().sum() for n in group)
                for c, group in zip(est.coef_, groups, strict=True)
            )
            torch.testing.assert_close(est.penalty_(model), expected, rtol=1e-12, atol=0)

    def test_penalties_with_problems_see_them(self):
        seen = []

        class Looks(L2):
            gradient = None

            def terms(self, params, problem):
                seen.append(problem)
                return super().terms(params, problem)

        own = problem()
        EndpointTargets((own,)).equations(Looks())
        assert seen == [own]


def test_scopes_by_partial_have_a_name():
    choose = partial(lambda start, name, tensor: name.startswith(start), "fc1")
    both = L2().on(choose) + L2().on("fc2")
    assert list(both.terms(tensors(), None)) == ["l2(on=partial)", "l2(on=fc2)"]


def test_a_false_claim_of_an_affine_gradient_is_found():
    class Cubic(Penalty):
        affine = True

        def terms(self, params, problem):
            return {"cubic": sum(t.pow(3).sum() for t in params.values())}

        def gradient(self, name, tensor):
            return {"cubic": 3 * tensor.square()}

    with pytest.raises(AssertionError, match="'cubic' at 'weight' is not affine in it; drop"):
        check_penalty(Cubic(), {"weight": torch.linspace(-1, 2, 6, dtype=torch.float64)})


class Corner(Penalty):
    """A penalty with a kink at zero, and whatever ``smooth`` a test gives it."""

    def terms(self, params, problem):
        return {"corner": sum(t.abs().sum() for t in params.values())}


class TestForgottenSmooth:
    def test_a_kink_that_is_not_left_out(self):
        with pytest.raises(AssertionError, match="'corner' has a kink where 'layer.weight' is zer"):
            check_penalty(Corner())

    def test_a_kink_of_whole_columns(self):
        class Groups(Corner):
            def terms(self, params, problem):
                return {
                    "groups": sum(t.reshape(len(t), -1).norm(dim=0).sum() for t in params.values())
                }

        with pytest.raises(AssertionError, match="has a kink"):
            check_penalty(Groups())

    @pytest.mark.parametrize(
        "given", [True, [True], torch.tensor([True]), torch.ones(3, 4)], ids=str
    )
    def test_what_is_no_mask(self, given):
        class Wrong(Corner):
            def smooth(self, name, tensor):
                return given

        with pytest.raises(
            AssertionError, match=r"smooth of Wrong\(\) gives .* not a mask of the t"
        ):
            check_penalty(Wrong())

    def test_a_mask(self):
        class Right(Corner):
            def smooth(self, name, tensor):
                return tensor != 0

        check_penalty(Right())

    @pytest.mark.parametrize("q", [1.1, 1.5, 2.0, 4.0])
    def test_a_steep_slope_is_no_kink(self, q):
        check_penalty(Power(q=q))
        check_penalty(SmoothL1(delta=1e-5))
