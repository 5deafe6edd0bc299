"""Kill a process at random times, let it go on, and compare the bits with an uninterrupted run.

Three jobs, each killed by SIGKILL: fits with ``cache=``, trainings recorded as doc/record.md says,
and endpoints with ``cache=`` by one process and by two, whose workers are killed with it or left.
Every second kill a run goes on to its end. The exit code is 1 if a number differs in one bit.

Run: ``python benchmarks/bench_kills.py [--kills 10] [--seed 0] [job ...]``
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from measuring import figures

OPTIMIZERS = {
    "SGD": {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.02},
    "Adam": {"lr": 0.01, "weight_decay": 0.02},
    "AdamW": {"lr": 0.01, "weight_decay": 0.02},
}
N_EPOCHS = 5


def data_and_net(width=64):
    """Rows and a net that are the same in every process."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    X = torch.randn(600, 20)
    y = X.sum(1, keepdim=True).sin()
    return X, y, nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 1))


def caching(folder):
    """A fit, which keeps sums of gradients, and a search, which keeps blocks."""
    from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
    from sklearn_implicitreg.endpoints import kept

    kept._SECONDS, kept._SHARE = 0.0, 0  # a state on disk after every block
    X, y, net = data_and_net(400)
    how = {"loss": "mse", "batch_size": 2}
    fits = {
        "fit": ImplicitRegularizationEstimator(net, **how),
        "search": ImplicitRegularizationCV(net, families=["l1", "l2"], **how),
    }
    found = [est.set_params(cache=folder / name).fit(X, y) for name, est in fits.items()]
    yield from (est.to_json() for est in found)


def recording(folder):
    """Trainings by three optimizers, with the weights kept and reduced to R factors."""
    from sklearn_implicitreg import ImplicitRegularizationEstimator
    from sklearn_implicitreg.trajectory import Trajectory

    kinds = [(name, families) for name in OPTIMIZERS for families in (None, ["weight_decay", "l1"])]
    found = [train(*kind, folder / f"kind-{i}") for i, kind in enumerate(kinds)]
    for (X, y, net, files), (_, families) in zip(found, kinds, strict=True):
        trajectory = Trajectory.join(map(Trajectory.load, files))
        for reference in ("gradient",) if families else ("gradient", "batch", "applied"):
            est = ImplicitRegularizationEstimator(
                net,
                family="weight_decay",
                mode="trajectory",
                trajectory=trajectory,
                reference=reference,
                window="epoch",
                loss="mse",
            )
            yield est.fit(X, y).to_json()
        for mark in trajectory.marks:
            held = [mark.weights, mark.applied, mark.consumed, mark.visited, mark.scale]
            yield digest(tensor for part in held for tensor in part.values())


def train(name, families, folder):
    """The training of doc/record.md that may be killed."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from sklearn_implicitreg import record

    folder.mkdir(exist_ok=True)
    files = [folder / f"epoch-{epoch}" for epoch in range(N_EPOCHS)]
    X, y, net = data_and_net()
    optimizer = getattr(torch.optim, name)(net.parameters(), **OPTIMIZERS[name])
    rows, checkpoint, begun = TensorDataset(X, y), folder / "checkpoint", 0
    if checkpoint.exists():
        last = torch.load(checkpoint)
        net.load_state_dict(last["net"])
        optimizer.load_state_dict(last["optimizer"])
        torch.set_rng_state(last["random"])
        begun = last["epochs"]
    how = {"data": (X, y), "loss": "mse", "families": families} if families else {"data": rows}
    for epoch in range(begun, N_EPOCHS):
        with record(net, optimizer, **how) as recorder:
            for batch in DataLoader(rows, batch_size=30, shuffle=True):
                recorder.batch(batch)
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(net(batch[0]), batch[1]).backward()
                optimizer.step()
            recorder.epoch()
        recorder.trajectory.save(files[epoch])
        last = {
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "epochs": epoch + 1,
        }
        torch.save(last, folder / "checkpoint.part")
        os.replace(folder / "checkpoint.part", checkpoint)
    return X, y, net, files


def bootstrapping(folder, n_jobs=None):
    """Nets of skorch on resamples of the rows."""
    from skorch import NeuralNetRegressor

    from sklearn_implicitreg import ImplicitRegularizationEstimator, endpoints

    X, y, net = data_and_net()
    template = NeuralNetRegressor(
        net, max_epochs=40, optimizer__weight_decay=0.02, train_split=None, verbose=0
    )
    how = {"random_state": 0, "cache": folder, "n_jobs": n_jobs}
    found = endpoints(template, X.numpy(), y.numpy(), 16, **how)
    yield digest(tensor for own in found for tensor in own.model.module_.parameters())
    yield ImplicitRegularizationEstimator(None).fit(found).to_json()


def bootstrapping_by_two(folder):
    """The same in two worker processes."""
    yield from bootstrapping(folder, n_jobs=2)


JOBS = {own.__name__: own for own in (caching, recording, bootstrapping, bootstrapping_by_two)}


def digest(tensors):
    """Checksum of the bits of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().numpy().tobytes())
    return found.hexdigest()


def run(job, folder):
    """Print when a job begins and when its work is done, and a checksum of all numbers."""
    import skorch  # noqa: F401

    import sklearn_implicitreg  # noqa: F401

    folder.mkdir(exist_ok=True)
    print("ready", flush=True)
    numbers = job(folder)
    first = next(numbers)
    print("done", flush=True)
    print(hashlib.sha256("".join([first, *numbers]).encode()).hexdigest())


def started(job, folder):
    """A process that runs a job, in a group of its own, once it has imported what it needs."""
    command = [sys.executable, __file__, "--job", job, "--folder", str(folder)]
    how = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, **how)
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"The job {job} did not begin.")
    return process


def end(process):
    """Kill a process; whether it was still there."""
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    return process.wait() == -signal.SIGKILL


def end_workers(process):
    """Kill the workers of a process that was killed; they wait for minutes before they end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def result(process):
    """What a job printed at its end."""
    text = process.stdout.readline()
    if process.wait():
        raise RuntimeError(f"A job ended with exit code {process.returncode}.")
    process.stdout.close()
    return text


def killed(job, n_kills, rng, place):
    """Counts of kills, of those with work on disk, of runs to the end, and of different ones."""
    begun = time.perf_counter()
    process = started(job, place / "whole")
    ready = time.perf_counter()
    process.stdout.readline()
    seconds = time.perf_counter() - ready
    whole = result(process)
    print(f"{job}: {seconds:.1f} s of {time.perf_counter() - begun:.1f} s", flush=True)
    n, n_begun, n_ended, n_different, folder = 0, 0, 0, 0, place / "killed"
    while n < n_kills:
        folder.mkdir(exist_ok=True)
        left = []
        for last in (seconds / 2, seconds):  # the second finds what the first left
            process = started(job, folder)
            time.sleep(rng.uniform(0, last))
            there = any(path.is_file() for path in folder.rglob("*"))
            if end(process):
                n, n_begun = n + 1, n_begun + there
            left.append(process)
            if rng.random() < 0.5:
                end_workers(process)
        process = started(job, folder)
        process.stdout.readline()
        n_different += result(process) != whole
        n_ended += 1
        for process in left:
            end_workers(process)
        shutil.rmtree(folder)
    return n, n_begun, n_ended, n_different


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="*", metavar="job", help=f"of {', '.join(JOBS)}; all")
    parser.add_argument("--kills", type=int, default=10, help="of every kind of job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", choices=JOBS, help="run one of the jobs, in a folder")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.job:
        run(JOBS[args.job], args.folder)
        return 0
    rng, found, n_wrong = np.random.default_rng(args.seed), {}, 0
    for job in args.jobs or JOBS:
        n_kills = -(-args.kills // 2) if job.startswith("bootstrapping") else args.kills
        with tempfile.TemporaryDirectory() as place:
            n, n_begun, n_ended, n_different = killed(job, n_kills, rng, Path(place))
        print(f"  {n} kills, {n_begun} with work on disk; {n_different} of {n_ended} ends differ")
        found |= {f"{job}, kills": n, f"{job}, ends with other bits": n_different}
        n_wrong += n_different
    figures(found)
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
