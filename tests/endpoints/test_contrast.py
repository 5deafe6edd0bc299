"""What a treatment added, against penalties that were applied and regressions by hand."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from cases import X_DIABETES as X
from cases import Y_DIABETES as Y
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.linear_model import Lasso, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    contrast,
    record,
)
from sklearn_implicitreg.exceptions import CollinearTermsWarning
from sklearn_implicitreg.penalties import L2, Callables

RNG = np.random.default_rng(0)
INPUTS = torch.from_numpy(RNG.normal(size=(80, 4)))
TARGETS = torch.sin(INPUTS[:, :1]) + INPUTS[:, 1:2] * INPUTS[:, 2:3]
TARGETS = TARGETS + 0.3 * torch.from_numpy(RNG.normal(size=(80, 1)))


def network(*, dropout=False, dtype=torch.float64):
    torch.manual_seed(1)
    layers = [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)]
    if dropout:
        layers.insert(2, nn.Dropout(0.0))  # moves the name of the last layer
    return nn.Sequential(*layers).to(dtype)


def weights(net):
    return [p for p in net.parameters() if p.ndim == 2]


@functools.cache
def trained(l2=0.0, l1=0.0, more=0.0, max_iter=3000, dropout=False):
    """Net at the minimum of its loss with an l2, a Huber and a last layer's penalty."""
    net = network(dropout=dropout)
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=max_iter, tolerance_grad=1e-10, tolerance_change=0.0,
        history_size=50, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = ((net(INPUTS) - TARGETS) ** 2).mean()
        for w in weights(net):
            huber = nn.functional.smooth_l1_loss(w, 0 * w, beta=1e-3, reduction="sum")
            loss = loss + l2 * w.square().sum() + l1 * huber
        loss = loss + more * weights(net)[-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return net


def nets(treated, control, family="l2", **params):
    return contrast(treated, control, family, X=INPUTS, y=TARGETS, loss="mse", **params)


def slopes(net):
    """Gradients of the loss, and of the sum of squares, by autograd."""
    loss = ((net(INPUTS) - TARGETS) ** 2).mean()
    found = torch.autograd.grad(loss, weights(net))
    flat = torch.cat([g.reshape(-1) for g in found]).numpy()
    return flat, torch.cat([2 * w.detach().reshape(-1) for w in weights(net)]).numpy()


# Penalties that were applied


@pytest.mark.parametrize("added", [0.02, 0.002, 0.0005])
@pytest.mark.parametrize("shared", [0.01, 0.001])
def test_an_added_decay_is_found(added, shared):
    found = nets(trained(shared + added), trained(shared))
    assert found.coef_ == pytest.approx([added], rel=1e-3)
    assert found.total_coef_ == pytest.approx([shared + added], rel=1e-3)
    assert found.shared_coef_ == pytest.approx([shared], rel=1e-3)
    assert found.verdict_ == "supported"
    assert found.conf_int_[0, 0] <= added * (1 + 1e-6) and found.conf_int_[0, 1] >= added * 0.999


def test_what_was_taken_away_is_negative():
    found = nets(trained(0.01), trained(0.012))
    assert found.coef_ == pytest.approx([-0.002], rel=1e-3)
    assert found.verdict_ == "supported"


@pytest.mark.parametrize("added", [0.02, 0.002, 0.0005])
def test_a_control_that_had_not_ended(added):
    found = nets(trained(added), trained(max_iter=150))
    off = abs(found.coef_[0] - added) / added
    assert 1e-4 < off < 0.05
    assert found.conf_int_[0, 0] < added < found.conf_int_[0, 1]
    assert off < 0.01 or found.verdict_ != "supported"
    note = "its training had not ended" in str(found.summary()).replace("\n    ", " ")
    assert off < 1e-3 or note


def test_a_control_at_no_end_makes_the_verdict_partial():
    control = trained(max_iter=60)
    found = nets(trained(0.01), control)
    assert found.r2_control_ < 0.99
    assert found.verdict_ == "partial"
    assert "its training had not ended" in str(found.summary()).replace("\n    ", " ")


def test_a_term_without_a_gradient_hides_no_other():
    nothing = Callables({"nothing": lambda p: 0.0 * sum(t.sum() for t in p.values())})
    with pytest.warns(CollinearTermsWarning):
        found = nets(trained(0.01), trained(max_iter=60), L2() + nothing)
    assert found.coef_[1] == found.total_coef_[1] == 0
    assert "its training had not ended" in str(found.summary()).replace("\n    ", " ")


def test_shared_penalties_of_another_family():
    treated, control = trained(0.012, l1=0.006), trained(0.01, l1=0.006)
    named = nets(treated, control, base="l2+smooth_l1")
    assert named.coef_ == pytest.approx([0.002], rel=1e-3)
    assert named.shared_coef_ == pytest.approx([0.01, 0.006], rel=1e-3)
    assert named.verdict_ == "supported"
    # Without the name of one the added coefficient is near, and is not called certain.
    less = nets(treated, control)
    assert less.conf_int_[0, 0] < 0.002 < less.conf_int_[0, 1]
    assert less.verdict_ == "partial"
    assert "base= lacks a term" in str(less.summary()).replace("\n    ", " ")


def test_a_family_that_is_not_shared():
    found = nets(trained(0.01, l1=0.002), trained(0.01), "smooth_l1", base="l2")
    assert found.term_names_ == ["smooth_l1"]
    assert found.coef_ == pytest.approx([0.002], rel=1e-3)
    assert found.shared_coef_ == pytest.approx([0.01], rel=1e-3)


def test_groups():
    found = nets(trained(0.01, more=0.004), trained(0.01), group_by="layer")
    assert found.term_names_ == ["l2[0]", "l2[2]"]
    assert found.coef_ == pytest.approx([0.0, 0.004], abs=1e-6)
    assert list(found.to_frame()["group"]) == ["0", "2"] * 3


def test_a_layer_that_moves_the_names_of_others():
    treated, control = trained(0.012, dropout=True), trained(0.01)
    assert list(treated.state_dict()) != list(control.state_dict())
    assert nets(treated, control).coef_ == pytest.approx([0.002], rel=1e-3)
    grouped = nets(treated, control, group_by="layer")
    assert grouped.coef_ == pytest.approx([0.002, 0.002], rel=1e-3)


def test_linear_models_in_their_units():
    found = contrast(Ridge(3.0).fit(X, Y), Ridge(1.0).fit(X, Y), X=X, y=Y)
    assert found.in_model_units()["alpha"] == pytest.approx(2.0)
    labels = Y > np.median(Y)
    pair = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-10)).fit(X, labels)
        for c in (0.1, 1.0)
    ]
    found = contrast(*pair, X=X, y=labels)
    assert found.in_model_units()["C"] == pytest.approx(1 / (1 / 0.1 - 1 / 1.0), rel=1e-4)


@pytest.mark.parametrize("size", [1e-100, 1e100])
def test_numbers_whose_squares_are_out_of_range(size):
    pair = [Ridge(alpha).fit(X, Y * size) for alpha in (3.0, 1.0)]
    found = contrast(*pair, X=X, y=Y * size)
    assert found.in_model_units()["alpha"] == pytest.approx(2.0)
    assert found.verdict_ == "supported"
    assert found.r2_ == pytest.approx(1.0)


def test_coordinates_at_a_kink_of_one_model_alone():
    strong, weak = (Lasso(a, tol=1e-12).fit(X, Y) for a in (1.0, 0.5))
    assert ((strong.coef_ == 0) != (weak.coef_ == 0)).any()
    found = contrast(strong, weak, "l1", X=X, y=Y)
    assert found.coef_ == pytest.approx([2 * 0.5])
    assert found.verdict_ == "supported"


# By hand


def test_the_regression_is_that_of_both_models():
    treated, control = trained(0.01, l1=0.001), trained(0.001, max_iter=60)
    (target, column), (other, shared) = slopes(treated), slopes(control)
    design = np.block([[column[:, None], column[:, None]], [shared[:, None], 0 * shared[:, None]]])
    expected = np.linalg.lstsq(design, -np.concatenate([target, other]), rcond=None)[0]
    found = nets(treated, control)
    assert [*found.shared_coef_, *found.coef_] == pytest.approx(expected, rel=1e-9)
    alone = [Endpoint(net, INPUTS, TARGETS) for net in (treated, control)]
    totals = [
        ImplicitRegularizationEstimator(None, loss="mse").fit([own]).coef_[0] for own in alone
    ]
    assert found.coef_[0] == pytest.approx(totals[0] - totals[1], rel=1e-9)
    # R2 is of the difference of the gradients.
    left = -(target - other) - found.shared_coef_[0] * (column - shared)
    residual = left - found.coef_[0] * column
    assert found.r2_ == pytest.approx(1 - residual @ residual / (left @ left), rel=1e-9)


def test_the_mean_hessian_over_the_way_is_the_difference_of_the_gradients():
    treated, control = trained(0.012), trained(0.01)
    ends = [
        torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in (control, treated)
    ]
    names = [name for name, _ in control.named_parameters()]
    shapes = [p.shape for p in control.parameters()]

    def loss(vector):
        parts = torch.split(vector, [s.numel() for s in shapes])
        params = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return ((torch.func.functional_call(control, params, INPUTS) - TARGETS) ** 2).mean()

    way = ends[1] - ends[0]
    points, shares = np.polynomial.legendre.leggauss(5)
    slope = torch.func.grad(loss)
    mean = sum(
        share / 2 * torch.autograd.functional.hvp(loss, ends[0] + (1 + at) / 2 * way, way)[1]
        for at, share in zip(points, shares, strict=True)
    )
    assert torch.allclose(mean, slope(ends[1]) - slope(ends[0]), rtol=1e-3, atol=1e-7)


def test_ways_to_give_a_pair_agree():
    treated, control = Ridge(3.0).fit(X, Y), Ridge(1.0).fit(X, Y)
    expected = contrast(treated, control, X=X, y=Y)
    as_endpoints = contrast(Endpoint(treated, X, Y), Endpoint(control, X, Y))
    copied = contrast(Endpoint(treated, X, Y), Endpoint(control, X.copy(), Y.copy()))
    fits = [ImplicitRegularizationEstimator(m).fit(X, Y) for m in (treated, control)]
    searches = [ImplicitRegularizationCV(m, families=["l2", "l1"]) for m in (treated, control)]
    found = [contrast(*fits), contrast(*[own.fit(X, Y) for own in searches])]
    for own in [as_endpoints, copied, *found]:
        assert own.coef_ == pytest.approx(expected.coef_)
        assert own.conf_int_ == pytest.approx(expected.conf_int_)


def test_several_pairs():
    halves = [(X[:221], Y[:221]), (X[221:], Y[221:])]
    groups = [[Endpoint(Ridge(a).fit(*own), *own) for own in halves] for a in (5.0, 2.0)]
    found = contrast(*groups)
    assert found.in_model_units()["alpha"] == pytest.approx(3.0)


def test_what_comes_out():
    treated = trained(0.012)
    found = nets(treated, trained(0.01))
    frame = found.to_frame()
    assert list(frame["question"]) == ["total", "shared", "added"]
    assert list(frame["term"]) == ["l2"] * 3
    assert frame["coef"].to_list() == pytest.approx([0.012, 0.01, 0.002], rel=1e-3)
    value = found.penalty_(treated).item()
    squares = sum(w.square().sum().item() for w in weights(treated))
    assert value == pytest.approx(0.002 * squares, rel=1e-3)
    assert "which penalty did the treatment add" in str(found.summary()).replace("\n    ", " ")
    assert repr(found) == "Contrast(added l2 0.002; supported)"


def test_float32():
    pair = [copy.deepcopy(net).float() for net in (trained(0.012), trained(0.01))]
    found = contrast(*pair, X=INPUTS.float(), y=TARGETS.float(), loss="mse")
    assert found.coef_ == pytest.approx([0.002], rel=1e-2)


def test_nothing_is_changed():
    pair = trained(0.012), trained(0.01)
    before = [copy.deepcopy(net.state_dict()) for net in pair]
    state = torch.get_rng_state()
    nets(*pair)
    for net, own in zip(pair, before, strict=True):
        assert all(torch.equal(own[name], t) for name, t in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


# Recordings


@functools.cache
def recorded(decay, n_warm_up=0, reference="batch", n_epochs=4, window=None):
    net, order = network(), torch.Generator().manual_seed(2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)
    with record(net, optimizer) as recorder:
        for epoch in range(n_epochs):
            for rows in torch.randperm(80, generator=order).split(20):
                optimizer.param_groups[0]["lr"] = 0.05 * min(1.0, (epoch + 1) / (n_warm_up + 1))
                recorder.batch(rows)
                optimizer.zero_grad()
                ((net(INPUTS[rows]) - TARGETS[rows]) ** 2).mean().backward()
                optimizer.step()
            recorder.epoch()
    return ImplicitRegularizationEstimator(
        net, mode="trajectory", trajectory=recorder, reference=reference, window=window,
        loss="mse", params="all", family="weight_decay",
    ).fit(INPUTS, TARGETS)  # fmt: skip


def test_recordings():
    found = contrast(recorded(0.012), recorded(0.01), "weight_decay")
    assert found.coef_ == pytest.approx([0.002], rel=1e-6)
    assert found.total_coef_ == pytest.approx([0.012], rel=1e-6)
    assert found.verdict_ == "supported"


def test_warm_up_adds_no_penalty():
    found = contrast(recorded(0.01, n_warm_up=3), recorded(0.01), "weight_decay")
    assert found.total_coef_ == pytest.approx([0.01], rel=1e-6)
    assert abs(found.coef_[0]) < 1e-12
    assert found.verdict_ == "no signal"


def test_noise_that_pairs_share_cancels():
    run = functools.partial(recorded, reference="gradient", n_epochs=8, window="epoch")
    found = contrast(run(0.012), run(0.01), "weight_decay")
    low, high = found.conf_int_[0]
    assert low < 0.002 < high
    assert abs(found.coef_[0] - 0.002) < 0.25 * abs(found.total_coef_[0] - 0.012)


def test_early_stopping_against_a_control_at_its_end():
    features = np.linalg.qr(RNG.normal(size=(80, 4)))[0] * 80**0.5
    target = features @ np.array([1.0, -2.0, 0.5, 3.0]) + RNG.normal(size=80)
    theta = [np.zeros(4)]
    for _ in range(400):
        theta.append(theta[-1] - 0.2 * features.T @ (features @ theta[-1] - target) / 80)
    ridges = [Ridge(fit_intercept=False).fit(features, target) for _ in range(2)]
    for ridge, own in zip(ridges, (theta[5], theta[-1]), strict=True):
        ridge.coef_ = own
    found = contrast(*ridges, X=features, y=target)
    assert found.coef_ == pytest.approx([1 / (0.8**-5 - 1)])
    assert found.coef_ == pytest.approx(found.total_coef_)
    assert found.verdict_ == "supported"


def test_penalties_that_look_alike_are_not_one():
    treated, control = trained(0.012), trained(0.01)
    start = dict(network().named_parameters())
    families = [L2(center={n: s * p.detach() for n, p in start.items()}) for s in (1.0, 0.0)]
    with pytest.raises(ValueError, match="Expected terms of different names"):
        nets(treated, control, families[0], base=families[1])


@pytest.mark.parametrize("copied", [copy.deepcopy, clone])
def test_a_penalty_in_both_families_counts_once(copied):
    treated, control = trained(0.012), trained(0.01)
    center = {name: torch.zeros_like(p) for name, p in control.named_parameters()}
    family = L2(center=center)
    found = nets(treated, control, family, base=copied(family))
    assert found.coef_ == pytest.approx([0.002], rel=1e-3)
    assert found.verdict_ == "supported"


# Bad input

SHAPES = "got '0.weight' of shape \\(7, 4\\) in the treated and '0.weight' of shape \\(6, 4\\)"
WIDE = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 1)).double()
DEEP = nn.Sequential(
    nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 1)
).double()
RIDGES = [Ridge(a).fit(X, Y) for a in (3.0, 1.0)]
OTHER = Ridge(1.0).fit(X, Y[::-1])
WEIGHTS = np.linspace(0.5, 2.0, len(X))
WEIGHTED = Ridge(1.0).fit(X, Y, sample_weight=WEIGHTS)
MOVED = Ridge(1.0).fit(X + 0.01 * Y[:, None], Y)


def fitted(model, *rows):
    return ImplicitRegularizationEstimator(model).fit(*rows)


def searched(model, *rows):
    return ImplicitRegularizationCV(model, families=["l2", "l1"]).fit(*rows)


TWO_MODELS = {
    "of an estimator": lambda: fitted(RIDGES[0], X, Y),
    "of a search": lambda: searched(RIDGES[0], X, Y),
    "of an endpoint": lambda: Endpoint(RIDGES[0], X, Y),
    "of a list": lambda: [Endpoint(RIDGES[0], X, Y)] * 2,
    "of a fitted list": lambda: fitted(None, [Endpoint(RIDGES[0], X, Y)] * 2),
}
OTHER_ROWS = {
    "of an estimator": lambda *rows: fitted(rows[0], *rows[1:]),
    "of a search": lambda *rows: searched(rows[0], *rows[1:]),
    "of an endpoint": lambda *rows: Endpoint(*rows),
    "of a list": lambda *rows: [Endpoint(RIDGES[1], X, Y), Endpoint(*rows)],
    "of a fitted list": lambda *rows: fitted(None, [Endpoint(RIDGES[1], X, Y), Endpoint(*rows)]),
}
ONE, SEVERAL = list(TWO_MODELS)[:3], list(TWO_MODELS)[3:]


@pytest.mark.parametrize("other", [(WEIGHTED, X, Y, WEIGHTS), (MOVED, X + 0.01 * Y[:, None], Y)])
@pytest.mark.parametrize(
    "pair", [(a, b) for own in (ONE, SEVERAL) for a in own for b in own], ids=" and ".join
)
def test_other_rows_or_weights(pair, other):
    with pytest.raises(ValueError, match="on the same rows, got others"):
        contrast(TWO_MODELS[pair[0]](), OTHER_ROWS[pair[1]](*other))


def test_the_same_rows_and_weights():
    treated = Ridge(3.0).fit(X, Y, sample_weight=WEIGHTS)
    found = contrast(fitted(treated, X, Y, WEIGHTS), fitted(WEIGHTED, X.copy(), Y, WEIGHTS.copy()))
    assert found.in_model_units()["alpha"] == pytest.approx(2.0)
    even = contrast(fitted(RIDGES[0], X, Y, np.ones(len(X))), fitted(RIDGES[1], X, Y))
    assert even.in_model_units()["alpha"] == pytest.approx(2.0)


BAD = {
    "another width": (lambda: nets(WIDE, network()), SHAPES),
    "another depth": (
        lambda: nets(network(), DEEP),
        "got no such tensor in the treated and '4.weight' of shape",
    ),
    "the same model": (lambda: contrast(*[RIDGES[0]] * 2, X=X, y=Y), "of the same weights"),
    "a copy": (
        lambda: contrast(RIDGES[0], copy.deepcopy(RIDGES[0]), X=X, y=Y),
        "of the same weights",
    ),
    "an unfitted model": (
        lambda: contrast(RIDGES[0], Ridge(), X=X, y=Y),
        "Expected two trained models in a contrast, got an unfitted Ridge",
    ),
    "an unfitted estimator": (
        lambda: contrast(*map(ImplicitRegularizationEstimator, RIDGES)),
        "not fitted yet",
    ),
    "other rows": (
        lambda: contrast(Endpoint(RIDGES[0], X, Y), Endpoint(OTHER, X, Y[::-1])),
        "on the same rows, got others",
    ),
    "other sparse rows": (
        lambda: contrast(
            Endpoint(RIDGES[0], csr_array(X), Y), Endpoint(OTHER, csr_array(2 * X), Y)
        ),
        "on the same rows, got others",
    ),
    "fewer rows": (
        lambda: contrast(
            *[
                ImplicitRegularizationEstimator(m).fit(X[: 442 - i], Y[: 442 - i])
                for i, m in enumerate(RIDGES)
            ]
        ),
        "on the same rows, got others",
    ),
    "rows of one's own": (
        lambda: contrast(*[Endpoint(m, X, Y) for m in RIDGES], X=X, y=Y),
        "Expected X, y and sample_weight with trained models only",
    ),
    "options of a fit": (
        lambda: contrast(
            *[ImplicitRegularizationEstimator(m).fit(X, Y) for m in RIDGES], params="all"
        ),
        r"Expected no further parameters with fitted estimators, got \['params'\]",
    ),
    "a structured family": (lambda: contrast(*RIDGES, "quadratic", X=X, y=Y), "Expected"),
    "a fit of a structured family": (
        lambda: contrast(
            *[ImplicitRegularizationEstimator(m, family="early_stopping").fit(X, Y) for m in RIDGES]
        ),
        "equations of their fit",
    ),
    "non-negative": (
        lambda: contrast(*RIDGES, X=X, y=Y, positive=True),
        "Expected positive=False in a contrast",
    ),
    "one recording for both": (
        lambda: nets(network(), network(), trajectory=object()),
        "Expected recordings in fitted estimators",
    ),
    "unequal recordings": (
        lambda: contrast(recorded(0.01), recorded(0.012, n_epochs=3), "weight_decay"),
        "Expected pairs, got 16 windows of the treated model and 12 of the control",
    ),
    "unequal lists": (
        lambda: contrast([Endpoint(m, X, Y) for m in RIDGES], [Endpoint(OTHER, X, Y)]),
        "Expected pairs, got 2 endpoints of the treated model and 1 of the control",
    ),
    "an endpoint and a recording": (
        lambda: contrast(
            ImplicitRegularizationEstimator(trained(0.01), loss="mse").fit(INPUTS, TARGETS),
            recorded(0.01),
        ),
        "Expected two endpoints or two recordings, got endpoints",
    ),
    "losses": (
        lambda: contrast(
            *[
                ImplicitRegularizationEstimator(trained(a), loss=loss).fit(INPUTS, TARGETS)
                for a, loss in ((0.01, "mse"), (0.012, "huber"))
            ]
        ),
        "Expected one loss for both models",
    ),
}


@pytest.mark.parametrize("covariance", ["sandwich", "bootstrap"])
@pytest.mark.parametrize("how", ["models", "estimators", "searches"])
def test_no_standard_errors_over_rows(covariance, how):
    arms, params = RIDGES, {"X": X, "y": Y, "covariance": covariance}
    if how != "models":
        kind, own = ImplicitRegularizationEstimator, {"covariance": covariance}
        if how == "searches":
            kind, own = ImplicitRegularizationCV, own | {"families": ["l2", "l1"]}
        arms, params = [kind(m, **own).fit(X, Y) for m in RIDGES], {}
    with pytest.raises(ValueError, match=f"got covariance='{covariance}', which is for one model"):
        contrast(*arms, **params)


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind):
    call, text = BAD[kind]
    with pytest.raises((TypeError, ValueError), match=text):
        call()
