"""Recordings and files where the disk is full, the folder is wrong or the file is damaged."""

import errno
import gc
import multiprocessing
import os
import pickle
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.exceptions import ModelStateWarning
from sklearn_implicitreg.trajectory import Trajectory, files, marks, record

X = torch.linspace(-1, 1, 40).double().reshape(20, 2)
Y = X.sum(1, keepdim=True).sin()


def new_run(width=3):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).double()
    return net, SGD(net.parameters(), lr=0.1, weight_decay=0.02)


def step(net, optimizer):
    optimizer.zero_grad()
    (net(X) - Y).square().mean().backward()
    optimizer.step()


def recorded(n=4, width=3, **how):
    net, optimizer = new_run(width)
    with record(net, optimizer, **how) as recorder:
        for _ in range(n):
            step(net, optimizer)
    return recorder.trajectory


def decay_of(net, trajectory):
    how = {"mode": "trajectory", "loss": "mse", "family": "weight_decay", "params": "all"}
    est = ImplicitRegularizationEstimator(net, trajectory=trajectory, reference="applied", **how)
    return est.fit(X, Y).coef_[0]


def full_after(monkeypatch, n):
    """The disk takes n marks."""
    own, taken = os.open, []

    def opened(path, *args, **kwargs):
        if "mark-" in str(path):
            if len(taken) >= n:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken.append(path)
        return own(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)


class TestFullDisk:
    @pytest.mark.parametrize("n", [3, 4, 5])
    def test_training_goes_on_and_the_rest_answers(self, tmp_path, monkeypatch, n):
        full_after(monkeypatch, n)
        folder = tmp_path / "marks"
        twin, other = new_run()
        net, optimizer = new_run()
        with (
            pytest.warns(ModelStateWarning, match=f"{folder} .No space left") as caught,
            record(net, optimizer, directory=folder) as recorder,
        ):
            for _ in range(10):
                step(net, optimizer)
                step(twin, other)
                recorder.batch(np.arange(20))
                recorder.epoch()
        assert len(caught) == 1
        assert all(map(torch.equal, net.parameters(), twin.parameters()))
        trajectory = recorder.trajectory
        # Every epoch is marked twice: after its step and at its end.
        assert trajectory.n_steps == len(trajectory.steps) == (n - 1) // 2
        assert len(list(folder.iterdir())) == len(trajectory.marks)
        assert not optimizer._optimizer_step_pre_hooks
        assert record(net, optimizer).__enter__().__exit__() is None

    def test_the_decay_is_found_up_to_there(self, tmp_path, monkeypatch):
        full_after(monkeypatch, 5)
        net, optimizer = new_run()
        with (
            pytest.warns(ModelStateWarning, match="ends after step 4, and the training goes on"),
            record(net, optimizer, directory=tmp_path) as recorder,
        ):
            for _ in range(12):
                step(net, optimizer)
        assert recorder.trajectory.n_steps == 4
        assert decay_of(net, recorder.trajectory) == pytest.approx(0.02, rel=1e-9)

    def test_a_write_that_breaks_off(self, tmp_path, monkeypatch):
        own = marks._write

        def half(file, block):
            if "000000003" in file.name:
                file.write_bytes(block[:10])
                raise OSError(errno.ENOSPC, "No space left on device")
            own(file, block)

        monkeypatch.setattr(marks, "_write", half)
        with pytest.warns(ModelStateWarning, match="ends after step 2"):
            trajectory = recorded(8, directory=tmp_path)
        assert trajectory.n_steps == 2
        assert [file.name[5:14] for file in sorted(tmp_path.iterdir())] == [
            f"{i:09d}" for i in range(3)
        ]

    def test_the_last_mark(self, tmp_path, monkeypatch):
        full_after(monkeypatch, 4)
        with pytest.warns(ModelStateWarning, match="ends after step 3"):
            assert recorded(4, directory=tmp_path).n_steps == 3

    def test_a_trajectory_that_is_read_while_recording(self, tmp_path, monkeypatch):
        full_after(monkeypatch, 4)
        net, optimizer = new_run()
        with record(net, optimizer, directory=tmp_path) as recorder:
            for _ in range(4):
                step(net, optimizer)
            with pytest.warns(ModelStateWarning, match="ends after step 3"):
                assert recorder.trajectory.n_steps == 3
            step(net, optimizer)
        assert recorder.trajectory.n_steps == 3

    def test_before_the_first_step_it_is_an_error(self, tmp_path, monkeypatch):
        full_after(monkeypatch, 0)
        net, optimizer = new_run()
        with (
            pytest.raises(OSError, match=f"{tmp_path} .No space left.*more room"),
            record(net, optimizer, directory=tmp_path),
        ):
            pass
        assert not optimizer._optimizer_step_pre_hooks
        with record(net, optimizer):
            step(net, optimizer)

    def test_marks_in_memory_stay_where_they_cannot_be_moved(self, monkeypatch):
        full_after(monkeypatch, 2)
        size = 4 * 13 * 8  # weights and three sums
        with pytest.warns(ModelStateWarning, match="ends after step 3"):
            trajectory = recorded(8, memory_limit=4 * size)
        assert trajectory.n_steps == 3

    def test_a_save_leaves_the_old_file(self, tmp_path, monkeypatch):
        file = tmp_path / "run"
        recorded(3).save(file)

        def full(*_):
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

        monkeypatch.setattr(files.torch, "save", full)
        with pytest.raises(OSError, match=f"{file} .Pytorch.*all is as it was"):
            recorded(5).save(file)
        assert Trajectory.load(file).n_steps == 3
        assert list(tmp_path.iterdir()) == [file]


class TestFolders:
    def test_an_empty_or_new_one(self, tmp_path):
        for folder in (tmp_path / "new", tmp_path / "new2"):
            if folder.name == "new2":
                folder.mkdir()
            assert recorded(directory=folder).n_steps == 4

    @pytest.mark.parametrize(
        ("name", "match"),
        [
            ("mine/notes.txt", r"notes.txt .File exists"),
            ("mine", r"mine with files in it; give another"),
            ("none/deeper", r"deeper .No such file"),
            ("mine/notes.txt/inside", r"inside .Not a directory"),
        ],
    )
    def test_others_are_refused_before_the_training(self, tmp_path, name, match):
        (tmp_path / "mine").mkdir()
        notes = tmp_path / "mine" / "notes.txt"
        notes.write_text("mine")
        net, optimizer = new_run()
        with pytest.raises(ValueError, match=f"Expected an empty folder.*{match}"):
            record(net, optimizer, directory=tmp_path / name)
        assert notes.read_text() == "mine"
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_one_that_takes_no_files(self, tmp_path, monkeypatch):
        def refused(**_):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(marks.tempfile, "TemporaryFile", refused)
        net, optimizer = new_run()
        with pytest.raises(ValueError, match="Permission denied.; give a folder that can be"):
            record(net, optimizer, directory=tmp_path)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    def test_a_fork_leaves_the_temporary_folder(self):
        trajectory = recorded(memory_limit=0)
        child = os.fork()
        if not child:
            trajectory = None
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        assert all(len(mark.weights) == 4 for mark in trajectory.marks)


@pytest.mark.parametrize("how", [{"memory_limit": 0}, {"directory": "marks"}])
def test_no_thread_stays(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    before = set(threading.enumerate())
    trajectory = recorded(**how)
    assert set(threading.enumerate()) == before
    assert trajectory.n_steps == 4
    net, optimizer = new_run()
    recorder = record(net, optimizer, memory_limit=0).__enter__()
    for _ in range(3):
        step(net, optimizer)
    folder = recorder.trajectory.marks[0]._source.shelf.path
    assert set(threading.enumerate()) == before
    optimizer._optimizer_step_pre_hooks.clear()  # a recorder that is dropped without its end
    optimizer._optimizer_step_post_hooks.clear()
    del recorder
    gc.collect()
    assert not folder.exists()


class TestTwoWriters:
    def test_threads(self, tmp_path):
        short, long = recorded(2), recorded(9, width=40)
        mine = [tmp_path / name for name in ("run.part", "run.tmp", ".run.part", "part")]
        for path in mine:
            path.write_text("mine")
        file, broken = tmp_path / "run", []
        with ThreadPoolExecutor(4) as pool:
            for _ in range(25):
                writers = [pool.submit(own.save, file) for own in (short, long, short, long)]
                for writer in writers:
                    writer.result()
                broken += [Trajectory.load(file).n_steps not in (2, 9)]
        assert not any(broken)
        assert all(path.read_text() == "mine" for path in mine)
        assert sorted(tmp_path.iterdir()) == sorted([*mine, file])

    def test_processes(self, tmp_path):
        file = tmp_path / "run"
        fork = multiprocessing.get_context("fork")
        runs = recorded(2), recorded(5, width=40)
        writers = [fork.Process(target=own.save, args=(file,)) for own in runs * 4]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [writer.exitcode for writer in writers] == [0] * 8
        assert Trajectory.load(file).n_steps in (2, 5)
        assert list(tmp_path.iterdir()) == [file]


def numbers_of(trajectory):
    held = [
        (what, name, own.numpy().tobytes())
        for mark in trajectory.marks
        for what in marks.PARTS
        for name, own in getattr(mark, what).items()
    ]
    return held, [(s.lr, s.batch_size) for s in trajectory.steps], trajectory.settings


def save_zip(path):
    with zipfile.ZipFile(path, "w") as own:
        own.writestr("run/data.pkl", b"nothing")


NOT_TRAJECTORIES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("step,loss"),
    "folder": lambda path: path.mkdir(),
    "zip": save_zip,
    "npy": lambda path: path.write_bytes(np.arange(3).tobytes()),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"format": 2})),
    "state": lambda path: torch.save(nn.Linear(2, 1).state_dict(), path),
    "list": lambda path: torch.save([torch.ones(2)], path),
    "module": lambda path: torch.save(nn.Linear(2, 1), path),
    "old": lambda path: torch.save({"format": 2}, path, _use_new_zipfile_serialization=False),
    "later": lambda path: torch.save({"format": 99}, path),
}


class TestDamagedFiles:
    @pytest.mark.parametrize("kind", NOT_TRAJECTORIES)
    def test_other_files(self, tmp_path, kind):
        path = tmp_path / kind
        NOT_TRAJECTORIES[kind](path)
        with pytest.raises(ValueError, match=rf"Expected .*{path}.*(record again|read it with)"):
            Trajectory.load(path)

    def test_any_bit_that_flips(self, tmp_path):
        file = tmp_path / "run"
        recorded(1).save(file)
        whole = numbers_of(Trajectory.load(file))
        raw, rng, n_found = file.read_bytes(), np.random.default_rng(0), 0
        for place in rng.integers(len(raw), size=150):
            damaged = bytearray(raw)
            damaged[place] ^= 1 << rng.integers(8)
            path = tmp_path / "damaged"
            path.write_bytes(damaged)
            try:
                assert numbers_of(Trajectory.load(path)) == whole  # padding, or torch's own notes
            except ValueError as error:
                n_found += 1
                assert str(path) in str(error)  # noqa: PT017
        assert n_found > 50

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
    def test_cut_short(self, tmp_path, share):
        file = tmp_path / "run"
        recorded(2).save(file)
        raw = file.read_bytes()
        file.write_bytes(raw[: int(share * len(raw))])
        with pytest.raises(ValueError, match=rf"{file}.*was it cut short. Load a copy"):
            Trajectory.load(file)

    @pytest.mark.parametrize("name", ["none/run", "."])
    def test_a_name_that_cannot_be_written(self, tmp_path, name):
        with pytest.raises(ValueError, match="name of a file in a folder that is there"):
            recorded(1).save(tmp_path / name)
