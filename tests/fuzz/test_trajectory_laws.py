"""Laws of recorded trainings, on random ones."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz.runs import runs
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.base import clone

from sklearn_implicitreg.trajectory import Trajectory

EVERY_STEP = st.just(1)


@st.composite
def runs_and_references(draw):
    """A run and a reference; that of batches needs the weights of every step."""
    reference = draw(st.sampled_from(["applied", "batch", "gradient"]))
    return draw(runs(every=EVERY_STEP) if reference == "batch" else runs()), reference


def assert_same_fit(one, other, rounding=1e-9):
    np.testing.assert_allclose(other.coef_, one.coef_, rtol=rounding, atol=rounding * 1e-3)
    assert other.r2_ == pytest.approx(one.r2_, abs=rounding)
    assert other.verdict_ == one.verdict_


@given(runs(every=EVERY_STEP), st.sampled_from(["applied", "batch"]))
def test_an_exact_reference_finds_the_decay(run, reference):
    net, trajectory = run.train()
    est = run.estimator(net, trajectory, reference=reference).fit(*run.rows())
    # RMSprop and Adagrad divide by roots of sums, which cost digits where these are small.
    np.testing.assert_allclose(est.coef_, run.decay, rtol=1e-6)
    assert est.r2_ == pytest.approx(1)
    assert est.verdict_ == "supported"


@given(runs())
def test_recording_does_not_change_the_training(run):
    recorded, plain = run.train()[0], run.train(recorded=False)[0]
    for one, other in zip(recorded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


@given(runs_and_references())
def test_the_score_of_the_same_rows_is_r2(drawn):
    run, reference = drawn
    net, trajectory = run.train()
    est = run.estimator(net, trajectory, reference=reference).fit(*run.rows())
    assume(est.verdict_ != "no signal")
    assert est.score(*run.rows()) == pytest.approx(est.r2_, abs=1e-9)


@given(runs_and_references(), st.integers(1, 30))
def test_the_size_of_the_passes_does_not_matter(drawn, size):
    run, reference = drawn
    net, trajectory = run.train()
    est = run.estimator(net, trajectory, reference=reference)
    one = clone(est).fit(*run.rows())
    assert_same_fit(one, est.set_params(batch_size=size).fit(*run.rows()), 1e-7)


@given(runs_and_references())
def test_a_file_and_a_folder_hold_the_trajectory(drawn):
    run, reference = drawn
    with tempfile.TemporaryDirectory() as folder:
        net, trajectory = run.train()
        one = run.estimator(net, trajectory, reference=reference).fit(*run.rows())
        trajectory.save(Path(folder) / "trajectory.pt")
        loaded = Trajectory.load(Path(folder) / "trajectory.pt")
        assert_same_fit(one, run.estimator(net, loaded, reference=reference).fit(*run.rows()))
        (Path(folder) / "marks").mkdir()
        _, on_disk = run.train(directory=Path(folder) / "marks")
        assert_same_fit(one, run.estimator(net, on_disk, reference=reference).fit(*run.rows()))
        copied = pickle.loads(pickle.dumps(clone(trajectory)))
        assert_same_fit(one, run.estimator(net, copied, reference=reference).fit(*run.rows()))


@given(runs_and_references())
def test_a_known_decay_leaves_the_rest(drawn):
    run, reference = drawn
    net, trajectory = run.train()
    options = {"reference": reference, "family": "weight_decay+smooth_l1"}
    both = run.estimator(net, trajectory, **options).fit(*run.rows())
    assume(both.condition_number_ < 1e4)
    options = {"reference": reference, "family": "smooth_l1"}
    options["known"] = {"weight_decay": both.coef_[0]}
    rest = run.estimator(net, trajectory, **options).fit(*run.rows())
    scale = np.abs(both.coef_).max()
    np.testing.assert_allclose(rest.coef_[0], both.coef_[1], atol=1e-6 * scale)


@given(runs(every=EVERY_STEP))
def test_fitting_changes_nothing_of_the_users(run):
    net, trajectory = run.train()
    X, y = run.rows()
    before = pickle.dumps((net, X, y, trajectory.marks[0])), torch.get_rng_state().numpy().tobytes()
    run.estimator(net, trajectory).fit(X, y).score(X, y)
    after = pickle.dumps((net, X, y, trajectory.marks[0])), torch.get_rng_state().numpy().tobytes()
    assert after == before
