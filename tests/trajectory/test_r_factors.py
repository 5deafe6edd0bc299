"""Paths whose equations are reduced while they are recorded, against the same run with weights."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from torch import nn

from sklearn_implicitreg import (
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    equations,
)
from sklearn_implicitreg.exceptions import PathNoiseWarning
from sklearn_implicitreg.penalties import L1, L2, Dropout, SmoothL1
from sklearn_implicitreg.trajectory import Gradient, Trajectory, record

N, BATCH = 120, 20
OPTIONS = {"loss": "mse", "mode": "trajectory", "family": "l2+smooth_l1"}
SHARED = ["l2", "l2+smooth_l1", L1()]
COMPARED = ["coef_", "std_err_", "r2_", "cosine_", "vif_", "condition_number_", "coef_path_"]


def make_data():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    y = torch.sin(X[:, 0]) + 0.5 * X[:, 1] + 0.3 * torch.randn(N, generator=generator)
    return X, y[:, None]


X, Y = make_data()


def new_net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, *others = (nn.Linear(a, b) for a, b in ((4, 7), (7, 5), (5, 1)))
        return nn.Sequential(first, nn.Tanh(), others[0], nn.Tanh(), others[1]).double()


def train(every=1, n_epochs=6, epochs=True, decay=0.02, optimizer=torch.optim.SGD, **how):
    """Net trained in shuffled epochs, with its recorder."""
    net = new_net()
    steps = optimizer(net.parameters(), lr=0.02, weight_decay=decay)
    order = torch.Generator().manual_seed(2)
    with record(net, steps, every=every, **how) as recorder:
        for _ in range(n_epochs):
            for rows in torch.randperm(N, generator=order).split(BATCH):
                recorder.batch(rows)
                steps.zero_grad()
                nn.functional.mse_loss(net(X[rows]), Y[rows]).backward()
                steps.step()
            if epochs:
                recorder.epoch()
    return net, recorder.trajectory


def fit(case, **params):
    net, trajectory = case
    return ImplicitRegularizationEstimator(
        net, **(OPTIONS | {"trajectory": trajectory} | params)
    ).fit(X, Y)


GRADIENT = {"families": SHARED, "data": (X, Y), "loss": "mse"}
APPLIED = {"families": SHARED, "reference": "applied"}
# How it is recorded, how it is asked.
CASES = {
    "applied-steps": ({"epochs": False, "every": 3}, APPLIED, {"reference": "applied"}),
    "applied-epochs": (
        {"every": 10**6},
        APPLIED,
        {"reference": "applied", "window": "epoch"},
    ),
    "gradient-epochs": ({"every": 10**6}, GRADIENT, {"window": "epoch"}),
    "gradient-steps": ({"epochs": False, "every": 6}, GRADIENT, {}),
    "gradient-int": ({"epochs": False, "every": 6}, GRADIENT, {"window": 6}),
    "all-tensors": (
        {"every": 10**6},
        {**GRADIENT, "params": "all"},
        {"window": "epoch", "params": "all"},
    ),
}


@pytest.fixture(scope="module", params=list(CASES))
def both(request):
    """The same run with weights and with R factors, and how to ask."""
    how, given, asked = CASES[request.param]
    sums = {"gradients": True} if given.get("reference") == "applied" else {}
    return train(**how, **sums), train(**how, **given), asked


def same(a, b, tol=1e-10):
    for name in COMPARED:
        np.testing.assert_allclose(
            getattr(a, name), getattr(b, name), rtol=tol, atol=1e-14, err_msg=name
        )
    assert a.verdict_ == b.verdict_
    assert a.term_names_ == b.term_names_
    assert a.n_equations_ == b.n_equations_


class TestSameAsWithWeights:
    @pytest.mark.parametrize("family", ["l2", "l2+smooth_l1", [L1(), SmoothL1()]], ids=str)
    def test_families_and_their_parts(self, both, family):
        weights, r_factors, asked = both
        mine, own = (fit(case, family=family, **asked) for case in (r_factors, weights))
        same(mine, own)
        assert dict(mine._description.header) == dict(own._description.header)
        theta = {name: p.detach() for name, p in weights[0].named_parameters()}
        assert float(mine.penalty_(theta)) == pytest.approx(float(own.penalty_(theta)), rel=1e-10)

    def test_known_part_and_bounds(self, both):
        weights, r_factors, asked = both
        how = {"family": "smooth_l1", "known": {"l2": 0.004}, "positive": True, **asked}
        same(fit(r_factors, **how), fit(weights, **how))

    def test_bands_where_tensors_are_clusters(self, both):
        weights, r_factors, asked = both
        mine, own = fit(r_factors, **asked), fit(weights, **asked)
        if asked.get("params") == "all":  # six tensors: the jackknife over them needs no rows
            np.testing.assert_allclose(mine.coef_path_conf_int_, own.coef_path_conf_int_, rtol=1e-9)
        assert mine.coef_path_conf_int_.shape == own.coef_path_conf_int_.shape

    def test_saved_and_loaded(self, both, tmp_path):
        _, (net, trajectory), asked = both
        trajectory.save(tmp_path / "path.npz")
        again = Trajectory.load(tmp_path / "path.npz")
        assert repr(again) == repr(trajectory)
        same(fit((net, again), **asked), fit((net, trajectory), **asked), tol=0)
        assert repr(pickle.loads(pickle.dumps(trajectory))) == repr(trajectory)
        assert clone(trajectory) is trajectory


def test_decay_is_found():
    est = fit(train(epochs=False, every=4, **APPLIED), reference="applied", family="l2")
    assert est.coef_[0] == pytest.approx(0.01, rel=1e-9)
    assert est.verdict_ == "supported"


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_decay_of_adam_kinds_is_found(kind):
    case = train(epochs=False, every=4, optimizer=kind, **APPLIED)
    est = fit(case, reference="applied", family="l2")
    assert est.coef_[0] == pytest.approx(0.01, rel=1e-7)


def test_groups_are_recorded_as_such():
    given = {**APPLIED, "families": [L2().per("layer")]}
    weights = train(every=3, epochs=False, gradients=True)
    r_factors = train(every=3, epochs=False, **given)
    how = {"family": "l2", "group_by": "layer", "reference": "applied"}
    same(fit(r_factors, **how), fit(weights, **how))


def test_a_term_is_found_in_a_family_that_has_it():
    weights = train(every=3, epochs=False, gradients=True)
    r_factors = train(every=3, epochs=False, **{**APPLIED, "families": ["elastic_net"]})
    for family in ("l2", SmoothL1(), "weight_decay"):
        how = {"family": family, "reference": "applied"}
        if family == "weight_decay":
            with pytest.raises(ValueError, match=r"among those recorded, \['l2', 'smooth_l1'\]"):
                fit(r_factors, **how)
        else:
            same(fit(r_factors, **how), fit(weights, **how))


def test_centers_that_look_alike_are_recorded_each():
    start = dict(new_net().named_parameters())
    ends = [{n: scale * p.detach() for n, p in start.items()} for scale in (0.0, 1.0)]
    families = [L2(center=center) for center in ends]
    weights = train(every=3, epochs=False, gradients=True)
    r_factors = train(every=3, epochs=False, **{**APPLIED, "families": families})
    for family in families:
        how = {"family": family, "reference": "applied"}
        same(fit(r_factors, **how), fit(weights, **how))


@pytest.mark.parametrize("other", ["l1", SmoothL1(delta=1e-4), SmoothL1(delta=0.1)], ids=str)
def test_a_term_that_is_alike_at_large_weights_is_not_taken(other):
    case = train(every=6, epochs=False, n_epochs=1, **{**APPLIED, "families": [SmoothL1()]})
    with pytest.raises(ValueError, match=r"among those recorded, \['smooth_l1'\], got"):
        fit(case, family=other, reference="applied")


def test_coordinates_at_a_kink_are_left_out_of_the_families_that_have_it():
    """Biases begin at zero, where l1 has no gradient and l2 has."""

    def run(**how):
        net = new_net()
        for name, p in net.named_parameters():
            if "bias" in name:
                nn.init.zeros_(p)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, weight_decay=0.02)
        with record(net, optimizer, **how) as recorder:
            for _ in range(10):
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X), Y).backward()
                optimizer.step()
        return net, recorder.trajectory

    weights, r_factors = run(gradients=True), run(every=1, **APPLIED, params="all")
    for family in ("l2", "l1", "l2+l1"):
        how = {"family": family, "reference": "applied", "params": "all"}
        same(fit(r_factors, **how), fit(weights, **how))


def test_selection_among_what_was_recorded():
    given = {**GRADIENT, "params": "all"}
    cases = [train(every=10**6), train(every=10**6, **given)]
    how = {"mode": "trajectory", "window": "epoch", "loss": "mse", "params": "all"}
    families = ["l2", "smooth_l1", "l1"]
    found = [
        ImplicitRegularizationCV(net, families=families, trajectory=trajectory, **how).fit(X, Y)
        for net, trajectory in cases
    ]
    scores = [search.cv_results_["mean_test_score"] for search in found]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-10)
    assert found[0].best_family_ == found[1].best_family_


def test_no_weights_are_kept_between_the_ends():
    _, trajectory = train(every=2, epochs=False, **APPLIED)
    assert len(trajectory.marks) == 19
    assert [bool(mark.weights) for mark in trajectory.marks] == [True, *[False] * 17, True]
    assert repr(trajectory) == (
        "Trajectory(36 steps of SGD, 19 marks, 0 epochs, batches known for 36 steps, "
        "R factors of l2, smooth_l1, l1 by reference='applied')"
    )
    numbers = sum(
        cell.r_factor.size for block in trajectory.r_factors.blocks for cell in block.cells
    )
    assert numbers == 18 * 3 * 4**2  # blocks, weight matrices, l2, smooth_l1, l1 and the target


def test_steps_after_the_last_epoch_are_left_out():
    net = new_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, weight_decay=0.02)

    def step():
        optimizer.zero_grad()
        nn.functional.mse_loss(net(X), Y).backward()
        optimizer.step()

    with record(net, optimizer, every=10**6, **APPLIED) as recorder:
        for _ in range(3):
            step()
            step()
            recorder.epoch()
        step()
    assert recorder.trajectory.n_steps == 6
    est = fit((net, recorder.trajectory), family="l2", window="epoch", reference="applied")
    assert est.coef_[0] == pytest.approx(0.01, rel=1e-9)


def test_a_loop_that_raises_keeps_its_r_factors():
    net = new_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, weight_decay=0.02)
    recorder = record(net, optimizer, every=1, **APPLIED)
    with pytest.raises(RuntimeError, match="stop"), recorder as recorder:
        for i in range(5):
            if i == 4:
                raise RuntimeError("stop")
            optimizer.zero_grad()
            nn.functional.mse_loss(net(X), Y).backward()
            optimizer.step()
    assert recorder.trajectory.n_steps == 4
    assert len(recorder.trajectory.r_factors.blocks) == 4


def test_steps_that_are_not_finite_are_dropped():
    net = new_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, weight_decay=0.02)
    with record(net, optimizer, every=2, **APPLIED) as recorder:
        for i in range(12):
            kept = [p.detach().clone() for p in net.parameters()]
            optimizer.zero_grad()
            nn.functional.mse_loss(net(X), Y).backward()
            if i == 5:
                net[0].weight.grad[0, 0] = float("nan")
            optimizer.step()
            if i == 5:
                with torch.no_grad():
                    for p, old in zip(net.parameters(), kept, strict=True):
                        p.copy_(old)
    assert recorder.trajectory.n_dropped >= 1
    est = fit((net, recorder.trajectory), family="l2", reference="applied")
    assert est.coef_[0] == pytest.approx(0.01, rel=1e-9)


class TestJoins:
    def parts(self, **how):
        """One run in two recordings, and in one."""
        paths = []
        for cuts in ((0, 4, 8), (0, 8)):
            net = new_net()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.02, weight_decay=0.02)
            own = []
            for a, b in zip(cuts[:-1], cuts[1:], strict=True):
                with record(net, optimizer, every=2, **how) as recorder:
                    for i in range(a, b):
                        rows = slice(i * 10, i * 10 + 40)
                        optimizer.zero_grad()
                        nn.functional.mse_loss(net(X[rows]), Y[rows]).backward()
                        optimizer.step()
                own.append(recorder.trajectory)
            paths.append((net, Trajectory.join(own)))
        return paths

    def test_parts_are_the_whole(self):
        joined, whole = self.parts(**APPLIED)
        assert repr(joined[1]) == repr(whole[1])
        same(fit(joined, reference="applied"), fit(whole, reference="applied"))

    def test_of_different_kinds_are_refused(self):
        net = new_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
        paths = []
        for how in (APPLIED, {"gradients": True}, {**APPLIED, "families": ["l2"]}):
            with record(net, optimizer, **how) as recorder:
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X), Y).backward()
                optimizer.step()
            paths.append(recorder.trajectory)
        with pytest.raises(ValueError, match="same families=, or both without"):
            Trajectory.join(paths[:2])
        with pytest.raises(ValueError, match="R factors of the same columns, tensors, reference"):
            paths[0].r_factors.joined(paths[2].r_factors)


def test_slices_are_refused():
    _, trajectory = train(every=4, epochs=False, **APPLIED)
    assert trajectory[:].n_steps == trajectory.n_steps
    with pytest.raises(ValueError, match=r"only R factors and sums.* Trajectory.join, or record"):
        _ = trajectory[2:]


BAD_RECORDINGS = {
    "no-data": (
        {"families": ["l2"]},
        r"data=\(X, y\) and loss= with families= .* got no data; give both, or reference='applied'",
    ),
    "no-loss": ({"families": ["l2"], "data": (X, Y)}, "does not say what it was trained with"),
    "other-reference": (
        {"families": ["l2"], "reference": "batch"},
        r"reference among \['gradient', 'applied'\] with families= .* record the weights",
    ),
    "no-families": ({"loss": "mse"}, "families= with loss=, reference= or params=, got none"),
    "not-a-list": ({**APPLIED, "families": "l2"}, r"families to be a list such as \['l2'\]"),
    "unknown": ({**APPLIED, "families": ["l3"]}, "l3"),
    "knots-of-the-end": (
        {**APPLIED, "families": ["l2", "spline"]},
        r"known before the training, got Spline.*give knots=\[\.\.\.\], or record the weights",
    ),
    "random-draws": (
        {**APPLIED, "families": ["l2", Dropout(0.3)]},
        "without random draws, got Dro",
    ),
    "no-tensor": ({**APPLIED, "params": "conv"}, "selects none of the trained parameters"),
}


@pytest.mark.parametrize("case", BAD_RECORDINGS)
def test_bad_recordings(case):
    given, message = BAD_RECORDINGS[case]
    net = new_net()
    with pytest.raises(ValueError, match=message):
        record(net, torch.optim.SGD(net.parameters(), lr=0.1), **given)


@pytest.fixture(scope="module")
def epochs():
    return train(every=10**6, **{**GRADIENT, "families": ["l2"]})


BAD_QUESTIONS = {
    "new-family": (
        {"family": "l1"},
        r"among those recorded, \['l2'\], got L1\(\); give it in families= while recording, or",
    ),
    "other-reference": ({"reference": "applied"}, "reference that was recorded, Gradient"),
    "sub-windows": ({"reference": Gradient(sub_window=2)}, "recorded, Gradient.* got Gradient"),
    "marks-of-epochs": ({"window": None}, "with window=None; use window='epoch'"),
    "other-window": ({"window": 12}, "needs a mark every 12 steps|blocks between the marks"),
    "other-tensors": ({"params": "all"}, r"tensors that were recorded, .*; give params= as to"),
    "other-loss": ({"loss": "mae"}, "loss that was recorded, .*, got"),
}


@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_questions_that_r_factors_do_not_answer(epochs, case):
    asked, message = BAD_QUESTIONS[case]
    with pytest.raises(ValueError, match=message):
        fit(epochs, **{"family": "l2", "window": "epoch", **asked})


@pytest.mark.parametrize("given", [GRADIENT, APPLIED], ids=["gradient", "applied"])
@pytest.mark.parametrize("every", [None, 1, 4, 10])
def test_epochs_are_the_blocks_whatever_every_is(every, given):
    asked = {"window": "epoch", "reference": given.get("reference", "gradient")}
    case = train(every=every, **given)
    same(fit(case, **asked), fit(train(every=10**6, **given), **asked))
    assert len(case[1].marks) == 7


def test_folds_of_rows_are_refused(epochs):
    net, trajectory = epochs
    est = fit(epochs, family="l2", window="epoch")
    with pytest.raises(
        ValueError, match="with weights to complete by other rows, .* without families"
    ):
        est.score(X[:30], Y[:30])
    search = GridSearchCV(clone(est), {"family": ["l2"]}, cv=KFold(4), error_score="raise")
    with pytest.raises(ValueError, match="has no folds of rows; record without families="):
        search.fit(X, Y)


def test_rows_of_equations_are_refused(epochs):
    net, trajectory = epochs
    est = fit(epochs, family="l2", window="epoch")
    missing = "got a trajectory that holds only R factors; record without families= to keep"
    with pytest.raises(ValueError, match=f"single equations for their influence, {missing}"):
        est.influence()
    with pytest.raises(ValueError, match=f"single equations for a table of them, {missing}"):
        equations(
            net, X, Y, **OPTIONS | {"family": "l2", "trajectory": trajectory, "window": "epoch"}
        )


def test_families_that_are_solved_as_a_whole_are_refused(epochs):
    message = "weights for a family that is solved as a whole, got .* only R factors; record"
    with pytest.raises(ValueError, match=message):
        fit(epochs, family="diagonal", window="epoch")


def test_evidence_at_an_endpoint_is_refused(epochs):
    with pytest.raises(ValueError, match="weights beside an endpoint, .* mode='trajectory'"):
        fit(epochs, family="l2", mode="endpoint")


def test_unnamed_batches_have_no_column():
    """With weights it would be a mean over all, which is not known while recording."""
    net = new_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    with record(net, optimizer, every=10**6, **GRADIENT) as recorder:
        for _ in range(2):
            for rows in torch.arange(N).split(BATCH):
                recorder.batch(BATCH)
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X[rows]), Y[rows]).backward()
                optimizer.step()
            recorder.epoch()
    est = fit((net, recorder.trajectory), window="epoch")
    assert est.term_names_ == ["l2", "smooth_l1"]
    assert "the rows of the batches are not known" in " ".join(str(est.summary()).split())


def test_more_coefficients_than_equations():
    families = [L2().per(lambda name, t: name), SmoothL1().per(lambda name, t: name)]

    def run(**how):
        net = nn.Linear(1, 1).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
        with record(net, optimizer, **how) as recorder:
            for _ in range(4):
                optimizer.zero_grad()
                (net(X[:, :1]) - Y).square().mean().backward()
                optimizer.step()
        return net, recorder.trajectory

    given = {"reference": "applied", "families": families, "params": "all"}
    for case in (run(gradients=True), run(**given)):
        with pytest.raises(ValueError, match="got 2 equations for the 4 coefficients"):
            fit(case, family=families, params="all", reference="applied")


def test_single_steps_are_warned_of():
    case = train(every=1, epochs=False, n_epochs=1, **{**GRADIENT, "families": ["l2"]})
    with pytest.warns(PathNoiseWarning, match="do not use all rows"):
        fit(case, family="l2")


@pytest.mark.parametrize("lost", ["R factors block/3", "R factors design/0.weight"])
def test_a_file_without_some_r_factors_is_refused(epochs, tmp_path, lost):
    file = tmp_path / "path.npz"
    epochs[1].save(file)
    content = torch.load(file, weights_only=True)
    del content["tensors"][lost]
    torch.save(content, file)
    with pytest.raises(ValueError, match="cannot be read .*was it cut short"):
        Trajectory.load(file)
