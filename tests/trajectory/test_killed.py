"""Trainings that are killed while they are recorded: what is joined has the bits of the whole."""

import copy
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import Trajectory, record, temporary
from sklearn_implicitreg.trajectory.marks import PARTS, Shelf
from sklearn_implicitreg.trajectory.temporary import temporary_folder

ROOT = Path(__file__).parents[2]
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
Y = X.sum(1, keepdim=True).sin()
ROWS = TensorDataset(X, Y)
N_EPOCHS = 3
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.02),
    "dampened": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, dampening=0.1, weight_decay=0.02
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.02),
}
KINDS = {
    "weights": {"data": ROWS},
    "every": {"data": ROWS, "every": 2},
    "R factors": {"data": (X, Y), "loss": "mse", "families": ["weight_decay", "l1"]},
}


def new_run(optimizer):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))
    return net, OPTIMIZERS[optimizer](net.parameters())


def train_epoch(net, optimizer, recorder):
    for batch in DataLoader(ROWS, batch_size=30, shuffle=True):
        recorder.batch(batch)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(batch[0]), batch[1]).backward()
        optimizer.step()
    recorder.epoch()


def in_parts(name, how, folder, killed_before=()):
    """The recipe of doc/record.md; a kill leaves nothing but the files."""
    net, optimizer = new_run(name)
    for epoch in range(N_EPOCHS):
        if epoch in killed_before:
            net, optimizer = new_run(name)
            last = torch.load(folder / "checkpoint")
            net.load_state_dict(last["net"])
            optimizer.load_state_dict(last["optimizer"])
            torch.set_rng_state(last["random"])
        with record(net, optimizer, **how) as recorder:
            train_epoch(net, optimizer, recorder)
        recorder.trajectory.save(folder / f"{epoch}")
        last = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(last | {"random": torch.get_rng_state()}, folder / "checkpoint")
    return net, Trajectory.join(Trajectory.load(folder / f"{i}") for i in range(N_EPOCHS))


def at_once(name, how):
    net, optimizer = new_run(name)
    with record(net, optimizer, **how) as recorder:
        for _ in range(N_EPOCHS):
            train_epoch(net, optimizer, recorder)
    return net, recorder.trajectory


def fitted(net, trajectory, **how):
    how = {"family": "weight_decay", "mode": "trajectory", "loss": "mse", "batch_size": 30} | how
    return ImplicitRegularizationEstimator(net, trajectory=trajectory, **how).fit(X, Y)


def bits(trajectory):
    marks = [
        (mark.step, mark.epoch, what, name, tensor.numpy().tobytes())
        for mark in trajectory.marks
        for what in PARTS
        for name, tensor in getattr(mark, what).items()
    ]
    steps = [(s.lr, s.batch_size, s.rounding, s.rows.tobytes()) for s in trajectory.steps]
    arrays = dict(trajectory.r_factors.arrays()) if trajectory.r_factors else {}
    return marks, repr(steps), {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.filterwarnings("ignore:The model has BatchNorm layers and the size")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_killed_run_has_the_bits_of_one_that_was_not(name, kind, tmp_path):
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    (net, whole), (other, killed) = (
        in_parts(name, KINDS[kind], folder, stops)
        for folder, stops in zip(folders, ((), (1, 2)), strict=True)
    )
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))
    assert bits(whole) == bits(killed)
    references = {"weights": ("gradient", "batch", "applied")}.get(kind, ("gradient",))
    for reference in references:
        how = {"reference": reference, "window": "epoch"}
        mine = fitted(other, killed, **how)
        assert mine.to_json() == fitted(net, whole, **how).to_json()
        # A mark within an epoch of its own ends a float32 sum of moments elsewhere.
        same = {"rtol": 1e-5 if kind == "every" else 1e-12}
        plain = fitted(*at_once(name, KINDS[kind]), **how)
        np.testing.assert_allclose(mine.coef_, plain.coef_, **same)
        assert mine.verdict_ == plain.verdict_


@pytest.mark.filterwarnings("ignore:The model has BatchNorm layers and the size")
@pytest.mark.parametrize("kind", KINDS)
def test_saved_at_an_epoch_of_a_recording_that_goes_on(kind, tmp_path):
    """As by a callback beside those of the libraries."""
    net, optimizer = new_run("adamw")
    with record(net, optimizer, **KINDS[kind]) as recorder:
        for epoch in range(3):
            train_epoch(net, optimizer, recorder)
            recorder.trajectory.save(tmp_path / "first")
            if epoch == 1:
                first = Trajectory.load(tmp_path / "first")
                states = copy.deepcopy([net.state_dict(), optimizer.state_dict()])
                random = torch.get_rng_state()
                assert repr(first).count("2 epochs") == 1
                first.save(tmp_path / "kept")
    net, optimizer = new_run("adamw")
    net.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    torch.set_rng_state(random)
    with record(net, optimizer, **KINDS[kind]) as recorder:
        for _ in range(2, N_EPOCHS):
            train_epoch(net, optimizer, recorder)
    joined = Trajectory.join([Trajectory.load(tmp_path / "kept"), recorder.trajectory])
    other, whole = at_once("adamw", KINDS[kind])
    assert repr(joined) == repr(whole)
    mine, plain = fitted(net, joined, window="epoch"), fitted(other, whole, window="epoch")
    np.testing.assert_allclose(mine.coef_, plain.coef_, rtol=1e-12)
    np.testing.assert_allclose(mine.std_err_, plain.std_err_, rtol=1e-9)


def test_joined_files_are_read_when_they_are_used(tmp_path):
    _, joined = in_parts("adam", KINDS["weights"], tmp_path)
    file = tmp_path / "1"
    raw = bytearray(file.read_bytes())
    own = Trajectory.load(file).marks[1].applied["0.weight"].numpy().tobytes()
    sums = joined.marks[4].applied
    raw[raw.index(own)] ^= 1
    copied = tmp_path / "damaged"
    copied.write_bytes(raw)
    parts = [Trajectory.load(path) for path in (tmp_path / "0", copied, tmp_path / "2")]
    again = Trajectory.join(parts)  # does not look at it
    assert all(map(torch.equal, again.marks[4].applied.values(), sums.values()))
    assert torch.equal(again.marks[4].tensor("applied", "0.weight"), sums["0.weight"])
    with pytest.raises(ValueError, match="the file is damaged"):
        _ = again.marks[3].applied


RECORDING = """
import sys, tempfile
import torch
from sklearn_implicitreg.trajectory import record
tempfile.tempdir = sys.argv[1]
net = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
with record(net, optimizer, memory_limit=0) as recorder:
    net(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    print(recorder._kept.folder, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_marks_of_a_killed_process_are_removed_by_the_next_recording(tmp_path, monkeypatch):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", RECORDING, str(tmp_path)]
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    how = {**pipes, "text": True, "env": os.environ | {"PYTHONPATH": path}}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "trajectory-mine").mkdir()  # a folder of the user's
    with subprocess.Popen(command, **how) as killed, subprocess.Popen(command, **how) as alive:
        left, used = (Path(process.stdout.readline().strip()) for process in (killed, alive))
        killed.kill()
        killed.wait()
        assert list(left.glob("mark-*"))
        assert list(used.glob("mark-*"))
        first, second = Shelf(), Shelf()
        assert not left.exists()
        assert list(used.glob("mark-*"))
        assert first.path.exists()
        alive.communicate("")
    assert alive.returncode == 0
    del first, second
    assert [own.name for own in tmp_path.glob("trajectory-*")] == ["trajectory-mine"]


def test_folders_of_another_machine_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # Locks that are local to a machine, as network file systems may have them.
    unseen = types.SimpleNamespace(flock=lambda *_: None, LOCK_EX=0, LOCK_NB=0)
    monkeypatch.setattr(temporary, "fcntl", unseen)
    monkeypatch.setattr(temporary.platform, "node", lambda: "there")
    used, remove_used = temporary_folder()
    monkeypatch.setattr(temporary.platform, "node", lambda: "here")
    own, remove_own = temporary_folder()
    assert used.exists()
    remove_own()
    monkeypatch.setattr(temporary.platform, "node", lambda: "there")
    _, remove_next = temporary_folder()
    assert not used.exists() and not own.exists()
    remove_used()
    remove_next()
    assert not list(tmp_path.iterdir())


def none(*_):
    raise OSError("Function not implemented")


@pytest.mark.parametrize(
    "locks", [None, types.SimpleNamespace(flock=none, LOCK_EX=0, LOCK_NB=0)], ids=["none", "failed"]
)
def test_folders_without_locks_are_left(tmp_path, monkeypatch, locks):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(temporary, "fcntl", locks)
    folders = [temporary_folder() for _ in range(2)]
    assert all(folder.exists() and not list(folder.iterdir()) for folder, _ in folders)
    for _, remove in folders:
        remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_recipe_killed_at_random_times(tmp_path):
    head, *parts = (ROOT / "doc" / "record.md").read_text().split("\n## ")
    part = next(part for part in parts if part.startswith("A training that may be killed"))
    code = "".join(re.findall(r"```python\n(.*?)```", head + part, re.DOTALL))
    slower = code.replace("optimizer.step()\n", "optimizer.step(); import time; time.sleep(0.01)\n")
    assert slower != code
    begin = slower.replace("folder = Path", "print('ready', flush=True)\nfolder = Path")
    (tmp_path / "script.py").write_text(begin + "print(est.to_json())\n")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

    def run(folder):
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py")],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        return process

    whole = run(tmp_path / "whole").communicate()[0]
    rng, n_killed = np.random.default_rng(0), 0
    for epoch in (0, 3):
        process, last = (
            run(tmp_path / "killed"),
            tmp_path / "killed/run" / f"epoch-{epoch}.trajectory",
        )
        while not last.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        n_killed += process.returncode == -signal.SIGKILL
    assert n_killed
    assert run(tmp_path / "killed").communicate()[0] == whole
