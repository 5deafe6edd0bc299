"""Paths: windows, files, slices, joins, iterates that were kept."""

import copy
import json
import os
import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import SGDRegressor
from sklearn.neural_network import MLPRegressor
from torch import nn
from torch.optim import SGD, Adam

from sklearn_implicitreg.trajectory import Trajectory, files, record
from sklearn_implicitreg.trajectory.marks import SUMS, StoredMark

X = torch.linspace(-1, 1, 40).reshape(20, 2)
Y = X.sum(1, keepdim=True).sin()
ALL = ("weights", *SUMS)


def new_net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def recorded(net=None, n_epochs=3, every=1, kind=SGD, **how):
    net = new_net() if net is None else net
    optimizer = kind(net.parameters(), lr=0.05, weight_decay=0.02)
    dtype = next(net.parameters()).dtype
    with record(net, optimizer, every=every, **how) as recorder:
        for _ in range(n_epochs):
            for rows in np.split(np.arange(20), [8, 16]):
                optimizer.zero_grad()
                (net(X[rows].to(dtype)) - Y[rows].to(dtype)).square().mean().backward()
                recorder.batch(rows)
                optimizer.step()
            recorder.epoch()
    return recorder.trajectory


def assert_same(ours, wanted, tol=0.0):
    assert [(m.step, m.epoch) for m in ours.marks] == [(m.step, m.epoch) for m in wanted.marks]
    for mine, own in zip(ours.marks, wanted.marks, strict=True):
        for what in ALL:
            a, b = getattr(mine, what), getattr(own, what)
            assert a.keys() == b.keys()
            for name, tensor in a.items():
                assert tensor.dtype == b[name].dtype
                assert torch.allclose(tensor, b[name], rtol=tol, atol=tol)
    for mine, own in zip(ours.steps, wanted.steps, strict=True):
        assert (mine.lr, mine.batch_size, mine.rounding) == (own.lr, own.batch_size, own.rounding)
        assert (mine.rows is None) == (own.rows is None)
        assert mine.rows is None or np.array_equal(mine.rows, own.rows)


def test_windows():
    trajectory = recorded()
    assert [w.n_steps for w in trajectory.windows(None)] == [1] * 9
    assert [w.n_steps for w in trajectory.windows(2)] == [2] * 4
    assert [w.n_steps for w in trajectory.windows("epoch")] == [3] * 3
    weights = trajectory.windows("epoch")[1].row_weights(
        SimpleNamespace(n_rows=20, masses=None, trained_sum=False)
    )
    assert weights == pytest.approx([1 / 24] * 16 + [1 / 12] * 4)
    assert trajectory.rounding("epoch") < trajectory.rounding()


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (0, "window .* None, 'epoch' or an integer >= 1"),
        ("step", "window .* None, 'epoch' or an integer >= 1"),
        (2, "window=2 needs a mark every 2 steps"),
        (50, "at least that many steps"),
    ],
    ids=str,
)
def test_windows_that_are_not_there(window, message):
    with pytest.raises(ValueError, match=message):
        recorded(every=3).windows(window)


def test_epochs_that_were_not_marked():
    net = new_net()
    optimizer = SGD(net.parameters(), lr=0.1)
    with record(net, optimizer) as recorder:
        net(X).sum().backward()
        optimizer.step()
    with pytest.raises(ValueError, match=r"call recorder.epoch\(\) at the end of every epoch\.$"):
        recorder.trajectory.windows("epoch")


def test_gradients_that_were_not_recorded():
    window = recorded(every=3).windows(3)[0]
    with pytest.raises(ValueError, match="reference='applied' needs .* record with gradients=True"):
        window.mean("consumed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("every", [1, 3])
def test_saved_and_loaded(tmp_path, dtype, every):
    trajectory = recorded(new_net(dtype), every=every, kind=Adam)
    trajectory.save(tmp_path / "path")
    again = Trajectory.load(tmp_path / "path")
    assert_same(again, trajectory)
    assert (again.optimizer, again.settings) == (trajectory.optimizer, trajectory.settings)
    assert again.settings["betas"] == (0.9, 0.999)
    assert repr(again) == repr(trajectory)
    assert [f.name for f in tmp_path.iterdir()] == ["path"]


def test_marks_are_read_when_they_are_used(tmp_path, monkeypatch):
    trajectory = recorded()
    trajectory.save(tmp_path / "path.pt")
    again = Trajectory.load(tmp_path / "path.pt")
    assert all(isinstance(mark, StoredMark) for mark in again.marks)
    assert_same(pickle.loads(pickle.dumps(again)), trajectory)
    again.save(tmp_path / "copy.pt")
    assert_same(Trajectory.load(tmp_path / "copy.pt"), trajectory)
    again.save(tmp_path / "path.pt")  # onto the file that it is read from
    assert_same(again, trajectory)
    with pytest.raises(AttributeError, match="'StoredMark' object has no attribute 'weight'"):
        _ = again.marks[0].weight


def test_large_files_are_pickled_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BY_NAME", 0)
    trajectory, file = recorded(), tmp_path / "path.pt"
    trajectory.save(file)
    again = Trajectory.load(file)
    pickled = pickle.dumps(again)
    assert_same(pickle.loads(pickled), trajectory)
    file.rename(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"marks of this trajectory in .*path.pt, which is gone"):
        _ = pickle.loads(pickled).marks[0].weights
    recorded(n_epochs=2).save(file)
    with pytest.raises(ValueError, match=r"loaded from .*path.pt, got another one; load it again"):
        _ = pickle.loads(pickled).marks[0].weights
    file.unlink()
    assert_same(pickle.loads(pickle.dumps(again)), trajectory)


def test_marks_on_disk_are_saved(tmp_path):
    trajectory = recorded(directory=tmp_path / "marks")
    trajectory.save(tmp_path / "path.pt")
    assert_same(Trajectory.load(tmp_path / "path.pt"), recorded())


def test_pickled_marks_hold_no_more_than_their_numbers(tmp_path):
    trajectory = recorded(memory_limit=0)
    again = pickle.loads(pickle.dumps(trajectory))
    assert_same(again, trajectory)
    assert len(pickle.dumps(trajectory)) <= len(pickle.dumps(recorded()))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_file_that_was_cut_is_refused(tmp_path, part):
    file = tmp_path / "path.pt"
    recorded().save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match="file written by Trajectory.save, .* was it cut short"):
        Trajectory.load(file)


def changed(file, change):
    """Rewrite a file with another header, or without some tensors."""
    content = torch.load(file, weights_only=True)
    header = json.loads(content["header"])
    change(content, header)
    text = json.dumps(header)
    torch.save({**content, "header": text, "checksum": zlib.crc32(text.encode())}, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content, _: content.update(format=99), "of format 4, got 99 in .*; read it with"),
        (lambda content, _: content.pop("format"), "cannot be read .'format'"),
        (
            lambda content, _: content["tensors"].pop("applied of 0.bias at mark 3"),
            "no applied of .*0.bias.* mark 3",
        ),
        (
            lambda content, _: content["tensors"].update(
                {"weights of 0.bias at mark 3": torch.ones(5)}
            ),
            r"weights of 0.bias at mark 3 is \['float32', \[5\]\] instead of",
        ),
        (lambda _, header: header.pop("marks"), "cannot be read .'marks'"),
    ],
    ids=["newer", "without-version", "without-a-sum", "another-shape", "without-marks"],
)
def test_files_of_another_kind_are_refused(tmp_path, change, message):
    file = tmp_path / "path.pt"
    recorded().save(file)
    changed(file, change)
    with pytest.raises(ValueError, match=message):
        Trajectory.load(file)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Trajectory.load(tmp_path / "none.pt")
    (tmp_path / "text").write_text("no trajectory")
    np.savez(tmp_path / "arrays.npz", header=np.zeros(3))
    torch.save({"weight": torch.ones(3)}, tmp_path / "state.pt")
    for name in ("text", "arrays.npz", "state.pt"):
        with pytest.raises(ValueError, match=f"{name}, which cannot be read"):
            Trajectory.load(tmp_path / name)


def test_tensors_of_odd_strides_are_saved(tmp_path):
    shapes = [torch.zeros(()), torch.zeros(()).expand(1), torch.zeros(0), torch.rand(3, 4).T]
    weights = {f"{i}": tensor for i, tensor in enumerate(shapes)}
    trajectory = Trajectory.from_iterates([weights, weights], lr=0.1)
    trajectory.save(tmp_path / "path.pt")
    assert_same(Trajectory.load(tmp_path / "path.pt"), trajectory)


def flipped(content, place, bit):
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def test_flipped_bits_of_numbers_are_found(tmp_path):
    file = tmp_path / "path.pt"
    trajectory = recorded()
    trajectory.save(file)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(10):
        i, what = int(rng.integers(len(trajectory.marks))), str(rng.choice(ALL))
        held = getattr(trajectory.marks[i], what)
        name = str(rng.choice(list(held)))
        numbers = held[name].numpy().tobytes()
        places = [p for p in range(len(whole)) if whole.startswith(numbers, p)]
        place = int(rng.choice(places)) + int(rng.integers(len(numbers)))
        file.write_bytes(flipped(whole, place, int(rng.integers(8))))
        again = Trajectory.load(file)
        with pytest.raises(ValueError, match=r"path.pt, got .* at mark \d+ with another checksum"):
            for mark in again.marks:
                for part in ALL:
                    getattr(mark, part)
        with pytest.raises(ValueError, match="the file is damaged"):
            again.save(tmp_path / "copy.pt")


def test_flipped_bits_of_the_header_are_found(tmp_path):
    file = tmp_path / "path.pt"
    recorded().save(file)
    whole = file.read_bytes()
    text = torch.load(file, weights_only=True)["header"].encode()
    start = whole.index(text)
    rng = np.random.default_rng(0)
    for place in rng.integers(start, start + len(text), 20):
        file.write_bytes(flipped(whole, place, int(rng.integers(8))))
        with pytest.raises(ValueError, match="path.pt, which cannot be read"):
            Trajectory.load(file)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "path.pt"
    recorded().save(file)
    before = file.read_bytes()
    broken = recorded()
    broken.marks[3].weights["0.bias"] = None
    with pytest.raises(AttributeError):
        broken.save(file)

    def full(content, part):
        part.write_bytes(b"half")
        raise OSError("No space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        recorded().save(file)
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["path.pt"]


def test_two_writers_at_once_leave_one_whole_file(tmp_path):
    file = tmp_path / "path.pt"
    others = [tmp_path / f"path.pt{end}" for end in (".tmp", ".part")]
    for other in others:
        other.write_text("of the user")
    trajectory = recorded()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: trajectory.save(file), range(20)))
    assert_same(Trajectory.load(file), trajectory)
    assert all(other.read_text() == "of the user" for other in others)
    assert sorted(tmp_path.iterdir()) == sorted([file, *others])


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("size", [1, 30, 2**17])
def test_stacked_iterates(tmp_path, monkeypatch, every, on_disk, size):
    monkeypatch.setattr("sklearn_implicitreg.trajectory.window._STACKED", size)
    trajectory = recorded(every=every, directory=tmp_path / "marks" if on_disk else None)
    for window in trajectory.windows("epoch"):
        iterates = [(part.mean("visited"), part.n_steps) for part in window.parts()]
        for name in trajectory.names:
            stack, shares = map(torch.cat, zip(*window.stacks(name), strict=True))
            assert stack.dtype == shares.dtype == torch.float64
            assert torch.equal(stack, torch.stack([weights[name] for weights, _ in iterates]))
            assert shares.tolist() == [n / window.n_steps for _, n in iterates]


def test_slices():
    trajectory = recorded()
    part = trajectory[3:7]
    assert (part.n_steps, part.marks[0].step, len(part.steps)) == (3, 3, 3)
    assert part.windows("epoch")[0].n_steps == 3
    assert_same(Trajectory(part.marks, part.steps, trajectory.optimizer), part)
    for wrong in (slice(0, 6, 2), 3):
        with pytest.raises(TypeError, match="slice of marks"):
            trajectory[wrong]
    with pytest.raises(ValueError, match="at least 2 marks, got 1"):
        trajectory[8:9]


@pytest.mark.parametrize("every", [1, 3])
def test_parts_that_are_joined_are_the_whole(every):
    whole = recorded(n_epochs=6, every=every)
    net = new_net()
    parts = [recorded(net, n_epochs=n, every=every) for n in (1, 2, 3)]
    joined = Trajectory.join(parts)
    assert [m.step for m in joined.marks] == [m.step for m in whole.marks]
    assert joined.marks[-1].epoch == 6
    for what in ALL:
        for name, tensor in getattr(whole.marks[-1], what).items():
            assert torch.allclose(tensor, getattr(joined.marks[-1], what)[name])
    assert len(joined.windows("epoch")) == 6


def test_paths_that_do_not_meet_are_not_joined():
    trajectory = recorded()
    with pytest.raises(ValueError, match="continue each other, got a start that is not where"):
        Trajectory.join([trajectory, trajectory])
    with pytest.raises(ValueError, match="at least one trajectory"):
        Trajectory.join([])
    net = new_net()
    with pytest.raises(ValueError, match="one optimizer that hold the same, got SGD .* and Adam"):
        Trajectory.join([recorded(net), recorded(net, kind=Adam)])


def test_clone_shares():
    trajectory = recorded()
    assert clone(trajectory) is trajectory


def descended(dtype=torch.float64, lr=0.1, n_steps=6):
    net = new_net(dtype)
    iterates, gradients = [dict(net.named_parameters())], []
    iterates = [{n: p.detach().clone() for n, p in net.named_parameters()}]
    for _ in range(n_steps):
        net.zero_grad()
        (net(X.to(dtype)) - Y.to(dtype)).square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in net.named_parameters()})
        with torch.no_grad():
            for p in net.parameters():
                p -= lr * p.grad
        iterates.append({n: p.detach().clone() for n, p in net.named_parameters()})
    return iterates, gradients


def test_iterates_of_gradient_descent():
    iterates, gradients = descended()
    trajectory = Trajectory.from_iterates(iterates, lr=0.1, gradients=gradients)
    assert (trajectory.n_steps, trajectory.every_step, trajectory.has_gradients) == (6, True, True)
    for window, given, weights in zip(trajectory.windows(None), gradients, iterates, strict=False):
        for name, tensor in given.items():
            assert torch.allclose(window.mean("applied")[name], tensor, atol=1e-13)
            assert torch.equal(window.mean("consumed")[name], tensor) or torch.allclose(
                window.mean("consumed")[name], tensor
            )
            assert torch.allclose(window.mean("visited")[name], weights[name])
    assert 0 < trajectory.rounding() < 1e-13


def test_checkpoints_several_steps_apart(tmp_path):
    iterates, gradients = descended()
    saved = []
    for i in (0, 3, 6):
        saved.append(tmp_path / f"{i}.pt")
        torch.save(iterates[i], saved[-1])
    trajectory = Trajectory.from_iterates(saved, lr=[0.1, 0.1], n_steps=3)
    assert (trajectory.n_steps, len(trajectory.marks)) == (6, 3)
    applied = trajectory.windows(6)[0].mean("applied")
    mean = {n: sum(g[n] for g in gradients) / 6 for n in gradients[0]}
    assert all(torch.allclose(applied[name], tensor) for name, tensor in mean.items())


def test_iterates_of_partial_fit():
    rng = np.random.default_rng(0)
    inputs, target = rng.normal(size=(50, 3)), rng.normal(size=50)
    model = MLPRegressor(
        hidden_layer_sizes=4,
        solver="sgd",
        momentum=0,
        learning_rate_init=0.01,
        alpha=0.5,
        batch_size=50,
        random_state=0,
    )
    iterates = []
    for _ in range(4):
        model.partial_fit(inputs, target)
        iterates.append(
            {
                f"layers.{i}.{kind}": np.array(value.T)
                for i, pair in enumerate(zip(model.coefs_, model.intercepts_, strict=True))
                for kind, value in zip(("weight", "bias"), pair, strict=True)
            }
        )
    trajectory = Trajectory.from_iterates(iterates, lr=0.01)
    assert trajectory.names == (
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
    )
    last = Trajectory.from_iterates([iterates[0], model], lr=0.01, n_steps=3)
    for name, tensor in last.windows(None)[0].mean("applied").items():
        assert torch.allclose(tensor, trajectory.windows(3)[0].mean("applied")[name])


def test_linear_models_and_modules_are_iterates():
    rng = np.random.default_rng(0)
    model = SGDRegressor(learning_rate="constant", eta0=0.01, max_iter=1, tol=None)
    first = model.partial_fit(rng.normal(size=(5, 2)), rng.normal(size=5))
    again = copy.deepcopy(first)
    assert Trajectory.from_iterates([first, again], lr=0.01).names == ("coef", "intercept")
    assert Trajectory.from_iterates([new_net(), new_net()], lr=0.01).n_steps == 1


@pytest.mark.parametrize(
    ("weights", "lr", "message"),
    [
        ([], 0.1, "at least 2 iterates, got 0"),
        ([{"w": torch.ones(1)}], 0.1, "at least 2 finite iterates, got 1"),
        ([{"w": torch.ones(1)}] * 2, 0.0, r"lr of from_iterates .*got 0\.0\."),
        ([{"w": torch.ones(1)}] * 3, [0.1], "one lr .* for each step, got 1 of them"),
        ([{"w": torch.ones(1)}, {"w": torch.ones(2)}], 0.1, r"iterates of one model, .*\(2,\)"),
        ([{"w": torch.ones(1)}, {"v": torch.ones(1)}], 0.1, "iterates of one model"),
        ([3, 4], 0.1, "got int"),
    ],
    ids=["none", "one", "lr-zero", "few-lr", "shape", "name", "kind"],
)
def test_bad_iterates(weights, lr, message):
    with pytest.raises(ValueError, match=message):
        Trajectory.from_iterates(weights, lr)


def test_iterates_that_are_not_finite():
    iterates, _ = descended()
    iterates[3] = {n: t * float("nan") for n, t in iterates[3].items()}
    trajectory = Trajectory.from_iterates(iterates, lr=0.1)
    assert (trajectory.n_steps, trajectory.n_dropped) == (4, 2)
    whole = Trajectory.from_iterates(iterates[4:], lr=0.1)
    ours, wanted = trajectory.windows(2)[1].mean("applied"), whole.windows(2)[0].mean("applied")
    assert all(torch.allclose(ours[name], tensor) for name, tensor in wanted.items())
    with pytest.raises(ValueError, match="at least 2 finite iterates"):
        Trajectory.from_iterates([iterates[3]] * 4, lr=0.1)


def test_a_link_is_followed_and_stays(tmp_path):
    real = tmp_path / "real.pt"
    link, dangling = tmp_path / "link.pt", tmp_path / "dangling.pt"
    link.symlink_to("real.pt")
    dangling.symlink_to("new.pt")
    real.write_bytes(b"older")
    trajectory = recorded(n_epochs=1)
    for one, target in ((link, real), (dangling, tmp_path / "new.pt")):
        trajectory.save(one)
        assert one.is_symlink()
        assert not target.is_symlink()
        assert_same(Trajectory.load(target), trajectory)


def odd_places(tmp_path):
    pipe, circle = tmp_path / "pipe", tmp_path / "circle"
    os.mkfifo(pipe)
    circle.symlink_to(circle)
    to_pipe = tmp_path / "to-pipe"
    to_pipe.symlink_to(pipe)
    return {
        "pipe": pipe,
        "link to a pipe": to_pipe,
        "circle": circle,
        "long": tmp_path / ("n" * 300),
        "zero": str(tmp_path / "a\0b"),
    }


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "circle", "long", "zero"])
def test_what_is_no_file_stays(tmp_path, kind):
    place = odd_places(tmp_path)[kind]
    before = sorted((p.name, p.lstat().st_mode) for p in tmp_path.iterdir())
    with pytest.raises(ValueError, match="Expected the name of a file, got") as caught:
        recorded(n_epochs=1).save(place)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted((p.name, p.lstat().st_mode) for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "circle", "long", "zero"])
def test_what_is_no_file_is_not_loaded(tmp_path, kind):
    with pytest.raises(ValueError, match="Expected a file written by Trajectory.save, got"):
        Trajectory.load(odd_places(tmp_path)[kind])


@pytest.mark.parametrize("key", ["skipped", "skipped_by", "begins_epoch", "n_dropped", "steps"])
def test_a_header_without_a_part_is_refused(tmp_path, key):
    file = tmp_path / "path.pt"
    recorded(n_epochs=1).save(file)
    content = torch.load(file)
    header = json.loads(content["header"])
    del header[key]
    text = json.dumps(header)
    torch.save({**content, "header": text, "checksum": zlib.crc32(text.encode())}, file)
    with pytest.raises(ValueError, match="Expected a file written by Trajectory.save, got"):
        Trajectory.load(file)
