"""Which terms can be told apart, and how R2 is shared among them."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from torch import nn

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    identifiability,
)
from sklearn_implicitreg.penalties import L1, L2, Power, SmoothL1, Spline
from sklearn_implicitreg.regression.attribution import shares_of_r2

X, Y = load_diabetes(return_X_y=True)
RIDGE = Ridge(50.0).fit(X, Y)


def net(seed=0, hidden=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double()


def rows(n=50):
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(n, 8, **draw), torch.randn(n, 3, **draw)


def found(families, model=None, **params):
    return identifiability(model or net(), *rows(), families, loss="mse", **params)


def frobenius(power):
    return lambda p: sum(t.square().sum() ** power for t in p.values())


FAMILIES = {
    "l2": "l2",
    "schatten": {"schatten": lambda p: sum((t @ t.T).square().sum() for t in p.values())},
    "orthogonality": {
        "orthogonality": lambda p: sum(
            (t @ t.T - torch.eye(len(t)).to(t)).square().sum() for t in p.values()
        )
    },
}


def test_a_dependence_that_no_cosine_shows_is_found_in_words():
    known = found(FAMILIES)
    (dependence,) = known.dependences_
    assert str(dependence) == "orthogonality = schatten - 2 l2"
    assert dependence.everywhere
    assert known.groups_ == [("l2", "schatten", "orthogonality")]
    assert known.cosines_.abs().mask(np.eye(3, dtype=bool)).max().max() < 0.99
    assert np.isinf(known.inflation_).all()
    assert any(
        note.startswith("Leave out one of orthogonality, l2, schatten") for note in known.advice_
    )


def test_one_function_of_norms_more_than_layers_depends_at_these_weights_alone():
    norms = {f"norm_{p}": {f"norm_{p}": frobenius(p)} for p in (0.5, 1, 2)}
    known = found(norms)
    (dependence,) = known.dependences_
    assert not dependence.everywhere
    # gradient 2 p s^(p - 1) theta of a layer whose squared norm is s
    sizes = [float(t.detach().square().sum()) for n, t in net().named_parameters() if "weight" in n]
    slopes = np.array([[p * s ** (p - 1) for p in (0.5, 1, 2)] for s in sizes])
    expected = np.linalg.solve(slopes[:, :2], slopes[:, 2])
    assert list(dependence.others) == ["norm_0.5", "norm_1"]
    np.testing.assert_allclose(list(dependence.others.values()), expected, rtol=1e-8)
    assert any("endpoints at other weights" in note for note in known.advice_)


SPECTRAL = ["spectral_norm", "log_spectral_norm", "log_norm_variance"]
FOUR = {
    "a polynomial of singular values": (
        ["l2", "schatten", "orthogonality"],
        "orthogonality = schatten - 2 l2",
        True,
    ),
    "three functions of two Frobenius norms": (
        ["l2", "layer_balance", {"fourth": frobenius(2)}],
        "fourth = ",
        False,
    ),
    "three functions of two spectral norms": (SPECTRAL, "log_norm_variance = ", False),
    "stable rank of both norms": (
        ["l2", "layer_balance", *SPECTRAL[:2], "stable_rank"],
        "stable_rank = ",
        False,
    ),
}


@pytest.mark.parametrize("name", FOUR)
def test_dependences_between_families_of_the_package(name):
    families, words, everywhere = FOUR[name]
    known = found(families)
    (dependence,) = known.dependences_
    assert str(dependence).startswith(words)
    assert dependence.everywhere == everywhere
    own = {dependence.term, *dependence.others}
    assert len(own) == len(families)  # all take part
    assert [set(group) for group in known.groups_] == [own]


def test_endpoints_at_other_weights_separate_what_one_does_not():
    norms = [{f"norm_{p}": frobenius(p)} for p in (0.5, 1, 2)]
    group = [Endpoint(net(seed), *rows()) for seed in range(3)]
    known = identifiability(
        None, group, None, {str(i): own for i, own in enumerate(norms)}, loss="mse"
    )
    assert not known.dependences_
    assert np.isfinite(known.inflation_).all()


def test_families_that_coincide_up_to_a_factor():
    known = found(["l2", "weight_decay", "l1"])
    assert [str(own) for own in known.dependences_] == ["weight_decay = 0.5 l2"]
    assert known.groups_ == [("l2", "weight_decay")]
    assert known.inflation_["l1"] == pytest.approx(
        1 / np.sin(np.deg2rad(known.angles_["l1"]["l2"]))
    )


def test_principal_angles_are_those_of_numpy():
    known = found(
        [L2().per("layer"), {"fourth": lambda p: sum(t.pow(4).sum() for t in p.values())}]
    )
    weights = [t.detach().numpy().ravel() for n, t in net().named_parameters() if "weight" in n]
    fourth = np.concatenate([w**3 for w in weights])
    along = [np.concatenate([w * (i == j) for j, w in enumerate(weights)]) for i in range(2)]
    basis = np.linalg.qr(np.array(along).T)[0]
    cosine = np.linalg.norm(basis.T @ fourth) / np.linalg.norm(fourth)
    assert known.angles_.iloc[0, 1] == pytest.approx(np.degrees(np.arccos(cosine)))
    assert known.angles_.iloc[0, 0] == pytest.approx(0, abs=1e-5)


SPLINES = {
    "default": Spline(),
    "two": Spline(2),
    "scoped": Spline(1).on("0"),
    "given": Spline([0.1, 0.5]),
}


@pytest.mark.parametrize("kind", SPLINES)
def test_a_lasso_is_the_sum_of_splines_at_other_weights_too(kind):
    known = found([SPLINES[kind], L1().on("0" if kind == "scoped" else "")])
    (dependence,) = known.dependences_
    assert dependence.everywhere
    np.testing.assert_allclose(list(dependence.others.values()), 1, rtol=1e-8)
    assert len(dependence.others) == len(known.cosines_) - 1


@pytest.mark.parametrize("family", [L2(), Power(3), SmoothL1(0.1)], ids=["l2", "power", "smooth"])
def test_one_family_on_separate_tensors_is_two_at_right_angles(family):
    known = found({"first": family.on("0"), "last": family.on("2"), "all": Power(5)})
    assert known.angles_["first"]["last"] == pytest.approx(90)
    assert known.angles_["first"]["first"] == pytest.approx(0, abs=1e-5)
    assert 0 < known.angles_["first"]["all"] < 90


SHAPES = {"q": Power("fit"), "sum": Power("fit") + L2(), "delta": SmoothL1("fit").on("0")}


@pytest.mark.parametrize("kind", SHAPES)
def test_of_a_fit_with_a_shape_that_was_found(kind):
    family = SHAPES[kind]
    est = ImplicitRegularizationEstimator(net(), family=family, loss="mse").fit(*rows())
    value = float(est.shapes_["value"].iloc[0])
    at = family.with_shapes({name: value for name in family.unknown_shapes()})
    expected = found({"all": at})
    np.testing.assert_allclose(est.identifiability().cosines_, expected.cosines_, atol=1e-10)


def test_nearly_collinear_terms_are_a_group_and_others_are_not():
    nearly = {"near": lambda p: sum((t.square() + 0.02 * t.pow(4)).sum() for t in p.values())}
    known = found(["l2", nearly, "l1"])
    assert known.groups_ == [("l2", "near")]
    assert not known.dependences_
    assert known.inflation_["near"] > 10 > known.inflation_["l1"]


def test_a_term_without_gradient_is_named():
    known = found(["l2", {"constant": lambda p: sum(0 * t.sum() for t in p.values())}])
    assert any("No gradient at these weights: constant" in note for note in known.advice_)
    assert known.inflation_["l2"] == 1


def test_of_a_fit_and_of_a_search():
    est = ImplicitRegularizationEstimator(RIDGE, family="l2+weight_decay")
    with pytest.warns(UserWarning, match="linearly dependent"):
        est.fit(X, Y)
    assert [str(own) for own in est.identifiability().dependences_] == ["weight_decay = 0.5 l2"]
    search = ImplicitRegularizationCV(RIDGE, families=["l2", "l1"]).fit(X, Y)
    assert list(search.identifiability().cosines_) == ["l2"]
    assert list(identifiability(search, X, Y).cosines_) == ["l2", "l1"]
    assert list(identifiability(est, X, Y).cosines_) == ["l2", "weight_decay"]
    assert "Every term has a direction of its own" in str(search.identifiability())


def test_shares_are_the_mean_over_all_orders():
    rng = np.random.default_rng(0)
    upper = np.triu(rng.standard_normal((5, 5)))
    target = upper[:, -1]

    def r2(own):
        left = target - upper[:, own] @ np.linalg.lstsq(upper[:, own], target, rcond=None)[0]
        return 1 - left @ left / (target @ target)

    expected = np.zeros(4)
    for order in permutations(range(4)):
        for place, j in enumerate(order):
            expected[j] += (r2(list(order[: place + 1])) - r2(list(order[:place]))) / 24
    shares = shares_of_r2(upper)
    np.testing.assert_allclose(shares.average, expected, atol=1e-12)
    np.testing.assert_allclose(shares.alone, [r2([j]) for j in range(4)], atol=1e-12)
    last = [r2(list(range(4))) - r2([i for i in range(4) if i != j]) for j in range(4)]
    np.testing.assert_allclose(shares.last, last, atol=1e-12)


def test_equal_columns_share_equally_and_sum_to_r2():
    est = ImplicitRegularizationEstimator(RIDGE, family="l2+weight_decay+l1")
    with pytest.warns(UserWarning, match="linearly dependent"):
        est.fit(X, Y)
    table = est.attribution()
    assert table["share"].sum() == pytest.approx(est.r2_, abs=1e-12)
    assert table["share"]["l2"] == pytest.approx(table["share"]["weight_decay"], abs=1e-12)
    assert table["last"]["l2"] == pytest.approx(0, abs=1e-12)


def test_too_many_terms_to_share_among():
    names = "+".join(["l2", "l1", "power"])
    est = ImplicitRegularizationEstimator(
        nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)]).double(),
        family=names,
        group_by="layer",
        loss="mse",
    ).fit(torch.randn(20, 4).double(), torch.randn(20, 4).double())
    with pytest.raises(ValueError, match="at most 12 terms to share R2 among, got 15"):
        est.attribution()


@pytest.mark.parametrize(
    ("families", "text"),
    [
        ("quadratic", "Expected a family with terms"),
        (["l2", "l2"], "families of different names"),
        (["lemon"], "Unknown family"),
        ([], "a list or dict of at least one family"),
        ({}, "a list or dict of at least one family"),
    ],
    ids=str,
)
def test_bad_families(families, text):
    given = [families] if isinstance(families, str) else families
    with pytest.raises(ValueError, match=text):
        identifiability(RIDGE, X, Y, given)
