"""Paths that are given wrongly, cut, or leave nothing to explain."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.neural_network import MLPRegressor
from torch import nn
from trajectory.test_references import SGD, N, fit, new_net, rows, text_of, train

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.endpoints.precomputed import given_equations
from sklearn_implicitreg.exceptions import PathNoiseWarning
from sklearn_implicitreg.penalties.gradients import GradientNorm
from sklearn_implicitreg.regression.fit import Settings
from sklearn_implicitreg.regression.fit import fit as solved
from sklearn_implicitreg.trajectory import GradientDescentProbe, Trajectory, record
from sklearn_implicitreg.trajectory.minibatch import NUISANCE


@pytest.fixture(scope="module")
def decayed():
    return train(lambda p: SGD(p, lr=0.01, weight_decay=0.02), n_epochs=6)


class TestIterates:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"solver": "sgd", "momentum": 0.9}, "MLPRegressor with momentum=0.9"),
            ({"solver": "adam"}, "MLPRegressor with solver='adam'"),
        ],
        ids=["momentum", "adam"],
    )
    def test_models_whose_steps_are_not_gradients(self, settings, message):
        X, y = (t.numpy() for t in rows())
        model = MLPRegressor(hidden_layer_sizes=3, **settings)
        iterates = [copy.deepcopy(model.partial_fit(X, y[:, 0])) for _ in range(3)]
        with pytest.raises(ValueError, match=message):
            Trajectory.from_iterates(iterates, lr=0.001)

    def test_one_object_twice(self):
        net = new_net()
        with pytest.raises(ValueError, match="the same Sequential twice"):
            Trajectory.from_iterates([net, net, net], lr=0.01)

    @pytest.mark.parametrize("lr", [np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
    def test_step_size_of_any_kind(self, lr):
        weights = [{"w": torch.ones(2)}, {"w": torch.zeros(2)}]
        trajectory = Trajectory.from_iterates(weights, lr=lr)
        assert trajectory.windows(None)[0].mean("applied")["w"].tolist() == [2.0, 2.0]

    def test_more_step_sizes_than_steps(self):
        weights = [{"w": torch.ones(2)}, {"w": torch.zeros(2)}]
        with pytest.raises(ValueError, match="got 2 more than"):
            Trajectory.from_iterates(weights, lr=[0.1, 0.1, 0.1])


class TestEpochsOfSlices:
    def test_begin_at_the_first_whole_epoch(self, decayed, tmp_path):
        net, X, y, trajectory = decayed
        part = trajectory[3:]
        assert [w.n_steps for w in part.windows("epoch")] == [5] * 5
        assert [w.n_steps for w in trajectory[5:].windows("epoch")] == [5] * 5
        assert [w.n_steps for w in trajectory[2:][3:].windows("epoch")] == [5] * 5
        assert [w.n_steps for w in trajectory.windows("epoch")] == [5] * 6
        part.save(tmp_path / "part.npz")
        loaded = Trajectory.load(tmp_path / "part.npz")
        assert [w.n_steps for w in loaded.windows("epoch")] == [5] * 5
        est, whole = fit((net, X, y, trajectory[4:-2])), fit((net, X, y, trajectory[5:-5]))
        np.testing.assert_allclose(est.coef_, whole.coef_)
        assert "The first 1 steps are left out" in text_of(est)
        assert "The last 3 steps are left out" in text_of(est)
        assert "left out" not in text_of(whole)

    def test_no_whole_epoch(self, decayed):
        with pytest.raises(ValueError, match="slice so that a whole one is left"):
            decayed[3][1:6].windows("epoch")


class TestNothingToExplain:
    def test_flow_at_a_minimum(self):
        X, _ = rows()
        net = new_net()
        with torch.no_grad():
            y = net(X)
        case = (net, X, y, GradientDescentProbe(lr=0.01))
        est = fit(case, GradientNorm(), reference="flow", window=None)
        assert est.verdict_ == "no signal"


class TestWhatIsGivenAsPath:
    def test_recorder(self):
        X, y = rows()
        net = new_net()
        optimizer = SGD(net.parameters(), lr=0.01, weight_decay=0.02)
        with record(net, optimizer) as recorder:
            for _ in range(3):
                recorder.batch(range(N))
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X), y).backward()
                optimizer.step()
        est = fit((net, X, y, recorder), window=None)
        assert est.coef_[0] == pytest.approx(0.01, rel=1e-6)

    @pytest.mark.parametrize("wrong", ["path.npz", []])
    def test_others_are_refused(self, decayed, wrong):
        with pytest.raises(
            TypeError, match=r"Expected trajectory of ImplicitRegularizationEstimator to be "
        ):
            fit((*decayed[:3], wrong))


def test_rows_of_another_data_set_are_told(decayed):
    net, X, y, trajectory = decayed
    est = fit((net, X[:64], y[:64], trajectory))
    assert "recorder.batch(rows) counted to 79, the data have 64 rows" in text_of(est)


def test_one_batch_without_a_name():
    X, y = rows()
    net = new_net()
    optimizer = SGD(net.parameters(), lr=0.01, weight_decay=0.02)
    with record(net, optimizer) as recorder:
        for epoch in range(3):
            for k, part in enumerate(torch.arange(N).split(16)):
                recorder.batch(len(part) if (epoch, k) == (1, 2) else part)
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X[part]), y[part]).backward()
                optimizer.step()
            recorder.epoch()
    est = fit((net, X, y, recorder.trajectory))
    assert "1 of 15 batches were not named" in text_of(est)


def test_sizes_alone_warn_of_single_steps():
    X, y = rows()
    net = new_net()
    optimizer = SGD(net.parameters(), lr=0.01, weight_decay=0.02)
    with record(net, optimizer) as recorder:
        for part in torch.arange(N).split(16):
            recorder.batch(len(part))
            optimizer.zero_grad()
            nn.functional.mse_loss(net(X[part]), y[part]).backward()
            optimizer.step()
    with pytest.warns(PathNoiseWarning, match="do not use all rows"):
        fit((net, X, y, recorder.trajectory), window=1)


@pytest.mark.parametrize("truth", [(2.0, -3.0), (2.0, 3.0), (-2.0, -3.0)])
def test_positive_leaves_the_minibatch_column_free(truth):
    design = np.random.default_rng(0).normal(size=(30, 2))
    given = given_equations(pd.DataFrame(design, columns=["l2", NUISANCE]), design @ truth)
    along = replace(given, nuisance=NUISANCE, mean=given.judged)
    found = solved(along, Settings(positive=True)).solution
    if truth[0] > 0:
        np.testing.assert_allclose(found.coef, truth)
    else:
        alone = np.linalg.lstsq(design[:, 1:], design @ truth, rcond=None)[0]
        np.testing.assert_allclose(found.coef, [0.0, alone[0]])
    assert found.active.tolist() == [truth[0] > 0, True]
    assert (found.coef * found.cosine)[1] > 0


def test_kinks_leave_out_the_theory():
    X, y = rows()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    probe = GradientDescentProbe(lr=0.1, n_steps=2)
    est = fit((net, X, y, probe), GradientNorm(), reference="flow", window=None)
    assert est.verdict_ == "out of family"
    assert "theory expects" not in text_of(est)


def test_batch_norm_of_the_size_of_the_steps():
    X, y = rows()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
    net = net.double()
    optimizer = SGD(net.parameters(), lr=0.01, weight_decay=0.02)
    with record(net, optimizer) as recorder:
        for _ in range(3):
            for part in torch.arange(N).split(16):
                recorder.batch(part)
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X[part]), y[part]).backward()
                optimizer.step()
            recorder.epoch()
    est = ImplicitRegularizationEstimator(
        net,
        family="l2",
        mode="trajectory",
        trajectory=recorder.trajectory,
        reference="batch",
        window="epoch",
        loss="mse",
        params="all",
    ).fit(X, y)
    assert est.coef_[0] == pytest.approx(0.01, rel=1e-8)
