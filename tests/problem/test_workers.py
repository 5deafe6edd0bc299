"""Tasks in worker processes: the same results, what is shared is sent once, deaths are repaired."""

import logging
import os
import pickle
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import parallel_config
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from skorch import NeuralNetRegressor
from threadpoolctl import threadpool_limits
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator, endpoints
from sklearn_implicitreg.exceptions import WorkerWarning
from sklearn_implicitreg.problem.workers import Shared, in_workers

TASKS = {f"task {i}": (i,) for i in range(8)}


def product(factor, i):
    return factor * i


def dying(folder, killers, deaths, i):
    """Kill the process that runs task i of the killers, as often as ``deaths`` says."""
    if i in killers:
        tries = Path(folder) / str(i)
        n_before = len(tries.read_bytes()) if tries.exists() else 0
        if n_before < deaths:
            tries.write_bytes(b"." * (n_before + 1))
            os.kill(os.getpid(), signal.SIGKILL)
    with (Path(folder) / "ran").open("a") as log:
        log.write(f"{i}\n")
    return i


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing", "sequential"])
def test_results_in_order(backend):
    with parallel_config(backend):
        found = list(in_workers(product, Shared(3), TASKS, 2))
    assert found == [0, 3, 6, 9, 12, 15, 18, 21]


def test_an_error_of_a_task_is_raised():
    with pytest.raises(TypeError, match="unsupported operand"):
        list(in_workers(product, Shared({}), TASKS, 2))


def test_a_worker_that_dies_costs_its_task_only(tmp_path):
    shared = Shared(str(tmp_path), (2,), 1)
    with pytest.warns(WorkerWarning, match="task 2"):
        assert list(in_workers(dying, shared, TASKS, 2)) == list(range(8))
    ran = (tmp_path / "ran").read_text().split()
    assert set(ran) == set(map(str, range(8)))
    # Besides the task itself, those that the other worker had begun or not handed back.
    assert len(ran) <= 12


def test_a_task_that_kills_every_worker_is_named(tmp_path):
    shared, found = Shared(str(tmp_path), (3,), 99), []
    with (
        pytest.warns(WorkerWarning),
        pytest.raises(RuntimeError, match="none of 1: task 3: its worker process died 3 times"),
    ):
        for own in in_workers(dying, shared, TASKS, 2):
            found.append(own)  # noqa: PERF402
    assert found == [0, 1, 2, 4, 5, 6, 7]
    assert (tmp_path / "3").read_bytes() == b"..."


class Fragile(Ridge):
    """A ridge whose training on resamples that begin with some row kills its process."""

    def __init__(self, alpha=1.0, first=0.0, parent=0):
        super().__init__(alpha)
        self.first, self.parent = first, parent

    def fit(self, X, y):
        if X[0, 0] == self.first and os.getpid() != self.parent:
            os._exit(1)
        return super().fit(X, y)


@pytest.mark.slow
def test_an_endpoint_whose_worker_dies_is_left_out():
    X = np.random.default_rng(0).normal(size=(300, 3))
    y = X @ [1.0, 2.0, 3.0]
    safe = endpoints(Ridge(2.0), X, y, 6, random_state=0)
    firsts = [float(own.X[0, 0]) for own in safe]
    assert firsts.count(firsts[4]) == 1
    template = Fragile(2.0, first=firsts[4], parent=os.getpid())
    with pytest.warns(FitFailedWarning, match="endpoint 4: its worker process died 3 times"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WorkerWarning)
            found = endpoints(template, X, y, 6, random_state=0, n_jobs=2)
    assert found.n_failed_ == 1
    for mine, theirs in zip(found, [*safe[:4], safe[5]], strict=True):
        np.testing.assert_array_equal(mine.model.coef_, theirs.model.coef_)


class TestShared:
    def test_values_arrive_and_tensors_can_be_written_to(self):
        weights, rows = torch.ones(600, 600), np.ones((600, 400))
        again = pickle.loads(pickle.dumps(Shared(weights, [rows, None])))
        assert torch.equal(again.values[0], weights)
        np.testing.assert_array_equal(again.values[1][0], rows)
        again.values[0].zero_()
        assert (weights == 1).all()

    def test_pickled_once(self):
        shared = Shared(Counted(), np.ones(300_000))
        first, second = shared.__reduce__()[1], shared.__reduce__()[1]
        assert all(one is other for one, other in zip(first, second, strict=True))
        assert Counted.pickles == 1
        assert shared.__sizeof__() >= 2_400_000


class Counted:
    pickles = arrivals = 0

    def __reduce__(self):
        Counted.pickles += 1
        return arrived, ()


def arrived():
    Counted.arrivals += 1
    return Counted()


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    how = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(**how, silence_logs=logging.CRITICAL) as cluster,
        distributed.Client(cluster) as own,
    ):
        yield own


@pytest.mark.filterwarnings("default:::distributed")
class TestDask:
    @pytest.fixture(autouse=True)
    def both_workers(self, client):
        client.wait_for_workers(2)  # with one, joblib runs tasks in this process

    def test_same_bits(self, client):
        X = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
        y = (X @ np.ones((4, 1))).astype(np.float32)
        net = NeuralNetRegressor(
            nn.Linear,
            module__in_features=4,
            module__out_features=1,
            max_epochs=2,
            train_split=None,
            verbose=0,
        )
        with threadpool_limits(1):
            one = endpoints(net, X, y, 4, random_state=0)
        with parallel_config("dask"):
            two = endpoints(net, X, y, 4, random_state=0)
        for mine, theirs in zip(one, two, strict=True):
            theirs = theirs.model.module_.state_dict()
            for name, tensor in mine.model.module_.state_dict().items():
                assert torch.equal(tensor, theirs[name])

    def test_a_search(self, client):
        X = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
        est = ImplicitRegularizationEstimator(nn.Linear(4, 1), loss="mse")
        grid, folds = {"family": ["l2", "l1"]}, KFold(4, shuffle=True, random_state=0)
        one = GridSearchCV(est, grid, cv=folds, refit=False).fit(X, X[:, :1])
        with parallel_config("dask"):
            two = GridSearchCV(est, grid, cv=folds, refit=False).fit(X, X[:, :1])
        for name in ("mean_test_score", "std_test_score"):
            np.testing.assert_array_equal(two.cv_results_[name], one.cv_results_[name])

    def test_what_tasks_share_is_sent_once_to_a_worker(self, client):
        shared = Shared(Counted(), np.ones(1_000_000))
        n_before = sum(client.run(lambda: Counted.arrivals).values())
        with parallel_config("dask"):
            assert list(in_workers(length, shared, TASKS, None)) == [1_000_000] * 8
        arrivals = client.run(lambda: Counted.arrivals)
        assert sum(arrivals.values()) - n_before <= 2

    def test_a_worker_that_dies(self, client, tmp_path):
        with parallel_config("dask"):
            shared = Shared(str(tmp_path), (2,), 1)
            assert list(in_workers(dying, shared, TASKS, None)) == list(range(8))
        assert (tmp_path / "2").read_bytes() == b"."

    @pytest.mark.slow
    def test_a_task_that_kills_every_worker_is_named(self, client, tmp_path):
        client.restart()  # the worker that died above may still be counted
        with (
            parallel_config("dask"),
            pytest.raises(RuntimeError, match="none of 1: task 3: its worker process died 3 times"),
        ):
            list(in_workers(dying, Shared(str(tmp_path), (3,), 99), TASKS, None))
        assert (tmp_path / "3").read_bytes() == b"..."


def length(counted, rows, i):
    return len(rows)
