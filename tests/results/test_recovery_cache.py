"""Recoveries that were interrupted: what is kept, what is made again, what is left behind."""

import copy
import functools
import os

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.results.recovery import minimize, networks
from sklearn_implicitreg.results.recovery.cache import manifest
from sklearn_implicitreg.results.recovery.objective import Objective

HOW = {"n_draws": 2, "arms": ("recovered", "ablated")}
NAMES = ["ablated-1.npz", "ablated-2.npz", "recovered-1.npz", "recovered-2.npz"]


@functools.cache
def fitted():
    rng = torch.Generator().manual_seed(0)
    X, y = torch.randn(30, 3, generator=rng).double(), torch.randn(30, 1, generator=rng).double()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, weight_decay=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        mse_loss(net(X), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return ImplicitRegularizationEstimator(net, loss="mse", params="all").fit(X, y), X, y


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr(minimize, "BUDGET", 25)


@pytest.fixture
def counted(monkeypatch):
    """Names of the runs that were made, not read."""
    made, plain = [], networks._run

    def run(*args):
        made.append("run")
        return plain(*args)

    monkeypatch.setattr(networks, "_run", run)
    return made


def same(one, other):
    assert one.runs.equals(other.runs)
    np.testing.assert_array_equal(one.to_frame(), other.to_frame())
    assert str(one) == str(other)


def test_interrupted(tmp_path, monkeypatch, counted):
    est, X, y = fitted()
    whole = est.recover(X, y, **HOW)
    plain, calls = networks._run, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*args)

    with monkeypatch.context() as patched:
        patched.setattr(networks, "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            est.recover(X, y, **HOW, cache=tmp_path)
    assert sorted(os.listdir(tmp_path)) == NAMES[2:]
    counted.clear()
    same(est.recover(X, y, **HOW, cache=str(tmp_path)), whole)
    assert len(counted) == 2
    assert sorted(os.listdir(tmp_path)) == NAMES
    counted.clear()
    same(est.recover(X, y, **HOW, cache=tmp_path), whole)
    assert not counted
    assert len(est.recover(X, y, n_draws=3, arms=("ablated",), cache=tmp_path).runs) == 3
    assert len(counted) == 1


def test_killed_or_stopped_while_writing(tmp_path, monkeypatch):
    est, X, y = fitted()

    def half(stream, **arrays):
        stream.write(b"PK half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", half)
        with pytest.raises(KeyboardInterrupt):
            est.recover(X, y, **HOW, cache=tmp_path)
    assert os.listdir(tmp_path) == []
    left = tmp_path / "recovered-2.npz.0.part"
    left.write_bytes(b"PK half")  # what a kill left long ago
    os.utime(left, (0, 0))
    est.recover(X, y, **HOW, cache=tmp_path)
    assert sorted(os.listdir(tmp_path)) == NAMES


@pytest.mark.parametrize("damage", ["empty", "half", "text", "other array", "flipped"])
def test_damaged_files_are_written_again(tmp_path, counted, damage):
    est, X, y = fitted()
    whole = est.recover(X, y, **HOW, cache=tmp_path)
    file = tmp_path / NAMES[2]
    content = bytearray(file.read_bytes())
    if damage == "other array":
        np.savez(file, manifest="{}", theta=np.zeros(3))
    else:
        place = content.index(b"theta.npy") + 200
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        half = content[: len(content) // 2]
        file.write_bytes({"empty": b"", "half": half, "text": b"x", "flipped": flipped}[damage])
    counted.clear()
    same(est.recover(X, y, **HOW, cache=tmp_path), whole)
    assert len(counted) == 1
    assert file.read_bytes()[:2] == b"PK"


@pytest.mark.parametrize("change", ["weights", "rows", "penalty", "noise", "budget", "weighted"])
def test_files_of_other_runs_are_written_again(tmp_path, counted, monkeypatch, change):
    est, X, y = fitted()
    est.recover(X, y, **HOW, cache=tmp_path)
    counted.clear()
    how, weight = dict(HOW), None
    if change == "weights":
        net = copy.deepcopy(est.model)
        with torch.no_grad():
            net[0].bias[0] += 1e-9
        est = ImplicitRegularizationEstimator(net, loss="mse", params="all").fit(X, y)
    elif change == "rows":
        X = X.clone()
        X[3, 1] += 1e-6
    elif change == "penalty":
        est = ImplicitRegularizationEstimator(
            est.model, loss="mse", family="elastic_net", params="all"
        ).fit(X, y)
    elif change == "budget":
        monkeypatch.setattr(minimize, "BUDGET", 26)
    elif change == "weighted":
        weight = np.linspace(1.0, 1.5, len(X))
    else:
        how["noise"] = 0.11
    fresh = est.recover(X, y, weight, **how)
    counted.clear()
    same(est.recover(X, y, weight, **how, cache=tmp_path), fresh)
    assert len(counted) == 4


def test_a_row_that_matters_elsewhere():
    """The gradient at the model does not see it, but the manifest does."""
    _, X, y = fitted()
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
    found = []
    for value in (-1.0, -2.0):
        rows = X.clone()
        rows[0] = value
        problem = adapt(net, Data(rows, y), Options(loss="mse", params="all"))
        found.append(manifest("nowhere", Objective(problem, None)))
    assert found[0]["rows"] != found[1]["rows"]
    assert found[0]["weights"] == found[1]["weights"]


def train(model, penalty, seed):
    rng = torch.Generator().manual_seed(seed)
    X, y = torch.randn(30, 3, generator=rng).double(), torch.randn(30, 1, generator=rng).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (mse_loss(model(X), y) + penalty(model)).backward()
        optimizer.step()
    return model


def test_trainings(tmp_path):
    est, X, y = fitted()
    calls = []

    def own(model, penalty, seed):
        calls.append(seed)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(model, penalty, seed)

    how = {"mode": "trainer", "n_draws": 2}
    with pytest.raises(KeyboardInterrupt):
        est.recover(X, y, **how, train=own, cache=tmp_path)
    found = est.recover(X, y, **how, train=own, cache=tmp_path)
    assert len(calls) == 4 + 2
    same(found, est.recover(X, y, **how, train=train))
    files = ["ablated-order-0", "ablated-order-1", "nudged-order-0"]
    files += ["recovered-order-0", "recovered-order-1"]
    assert sorted(os.listdir(tmp_path)) == [f"{name}.npz" for name in files]


class TestBadInput:
    def test_no_path(self):
        est, X, y = fitted()
        with pytest.raises(ValueError, match="name of a folder"):
            est.recover(X, y, cache=3)

    def test_a_file(self, tmp_path):
        est, X, y = fitted()
        file = tmp_path / "file"
        file.write_text("mine")
        with pytest.raises(ValueError, match="Expected a folder as cache"):
            est.recover(X, y, cache=file)
        assert file.read_text() == "mine"
