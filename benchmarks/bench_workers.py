"""Worker processes: what travels in a search, and the time of bootstrap endpoints.

``python benchmarks/bench_workers.py [--seconds 60] [--smoke]``
"""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from measuring import figures
from sklearn.model_selection import GridSearchCV, KFold
from skorch import NeuralNetRegressor
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator, endpoints


def travelled(n_units, n_splits, families):
    """Bytes of weights, of tasks and of mapped files in a search of two workers, and seconds."""
    from joblib import _memmapping_reducer as reducer
    from joblib.externals.loky.backend import queues

    sizes = {"tasks": 0, "files": 0}
    dumps, dump = queues.dumps, reducer.dump

    def counted(task, *args, **how):
        found = dumps(task, *args, **how)
        sizes["tasks"] += len(found)
        return found

    def mapped(array, *args, **how):
        sizes["files"] += array.nbytes
        return dump(array, *args, **how)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(62, n_units), nn.Tanh(), nn.Linear(n_units, 1))
    X = np.random.default_rng(0).normal(size=(100, 62)).astype(np.float32)
    search = GridSearchCV(
        ImplicitRegularizationEstimator(net, loss="mse"),
        {"family": families},
        cv=KFold(n_splits, shuffle=True, random_state=0),
        n_jobs=2,
        refit=False,
    )
    queues.dumps, reducer.dump = counted, mapped
    start = time.perf_counter()
    try:
        search.fit(X, X[:, :1])
    finally:
        queues.dumps, reducer.dump = dumps, dump
    weights = sum(t.nbytes for t in net.parameters())
    return weights, sizes["tasks"], sizes["files"], time.perf_counter() - start


def template(n_epochs):
    """A net whose training takes some time in one thread."""
    torch.manual_seed(0)
    return NeuralNetRegressor(
        nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 1)),
        max_epochs=n_epochs,
        train_split=None,
        verbose=0,
    )


def trained(n_epochs, n_endpoints, X, y, **how):
    """Endpoints and their seconds."""
    start = time.perf_counter()
    found = endpoints(template(n_epochs), X, y, n_endpoints, random_state=0, **how)
    return found, time.perf_counter() - start


def same_bits(one, other):
    """Whether all weights of two lists of endpoints are the same."""
    states = [[own.model.module_.state_dict() for own in group] for group in (one, other)]
    return all(
        torch.equal(tensor, theirs[name])
        for mine, theirs in zip(*states, strict=True)
        for name, tensor in mine.items()
    )


def bootstrap(n_endpoints, seconds):
    """Seconds of one process over those of two, and 1 where the bits are the same, by figure."""
    torch.set_num_threads(1)
    X = np.random.default_rng(0).normal(size=(2_000, 64)).astype(np.float32)
    y = X[:, :1]
    trained(1, 1, X, y)
    epoch = trained(20, 2, X, y)[1] / 40
    n_epochs = max(1, round(seconds / n_endpoints / epoch))
    one, alone = trained(n_epochs, n_endpoints, X, y)
    print(f"{n_endpoints} endpoints, one process: {alone:.1f} s")
    Parallel(n_jobs=2)(delayed(time.sleep)(0.5) for _ in range(4))
    trained(1, 4, X, y, n_jobs=2)
    two, seconds_two = trained(n_epochs, n_endpoints, X, y, n_jobs=2)
    found = {
        "bootstrap, one process / n_jobs=2, seconds": alone / seconds_two,
        "bootstrap, same bits with n_jobs=2": float(same_bits(one, two)),
    }
    names = "bootstrap, one process / Dask, seconds", "bootstrap, same bits with Dask"
    try:
        import dask
        from dask.distributed import Client, LocalCluster
    except ImportError:
        return found | dict.fromkeys(names, "Dask is not installed")
    how = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    # Without MALLOC_TRIM_THRESHOLD_, which slows the training down; see doc/scaling.md.
    dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}})
    with LocalCluster(**how) as cluster, Client(cluster), parallel_config(backend="dask"):
        trained(1, 4, X, y)
        two, seconds_two = trained(n_epochs, n_endpoints, X, y)
    return found | dict(zip(names, (alone / seconds_two, float(same_bits(one, two))), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the job in one process")
    parser.add_argument("--smoke", action="store_true", help="a small run of everything")
    args = parser.parse_args()
    families = ["l2", "l1", "l2+l1", "smooth_l1", "power"]
    size = (8_000, 4, families[:2]) if args.smoke else (64_000, 20, families)
    weights, tasks, files, seconds = travelled(*size)
    print(
        f"{size[1]} folds, {len(size[2])} families, weights of {weights / 1e6:.1f} MB: tasks "
        f"{tasks / weights:.2f} and files {files / weights:.2f} times the weights, {seconds:.1f} s"
    )
    travels = {"search, bytes that travel / those of the weights": (tasks + files) / weights}
    figures(travels | bootstrap(*((6, 2.0) if args.smoke else (100, args.seconds))))


if __name__ == "__main__":
    main()
