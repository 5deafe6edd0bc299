"""The recorder: marks, batches, bad input, and the user's objects left as they were."""

import contextlib
import errno
import gc
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from sklearn_implicitreg.exceptions import ModelStateWarning
from sklearn_implicitreg.trajectory import record
from sklearn_implicitreg.trajectory.marks import StoredMark
from sklearn_implicitreg.trajectory.recording.rows import RowFinder, holds_inputs

X = torch.linspace(-1, 1, 40).reshape(20, 2)
Y = X.sum(1, keepdim=True).sin()


def new_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


def loss_of(net, rows=slice(None)):
    return (net(X[rows]) - Y[rows]).square().mean()


def steps(net, optimizer, n, rows=slice(None)):
    for _ in range(n):
        optimizer.zero_grad()
        loss_of(net, rows).backward()
        optimizer.step()


def new_run(lr=0.1, **settings):
    net = new_net()
    return net, SGD(net.parameters(), lr=lr, **settings)


def close(a, b, tol=1e-5):
    return all(torch.allclose(t.double(), b[n].double(), rtol=tol, atol=tol) for n, t in a.items())


@pytest.mark.parametrize(("every", "marks"), [(1, 11), (4, 4), (100, 2)])
def test_marks(every, marks):
    net, optimizer = new_run()
    with record(net, optimizer, every=every) as recorder:
        steps(net, optimizer, 10)
    assert len(recorder.trajectory.marks) == marks
    assert recorder.trajectory.n_steps == 10
    assert recorder.trajectory.every_step == (every == 1)
    assert recorder.trajectory.has_gradients == (every == 1)


def test_epochs_make_marks():
    net, optimizer = new_run()
    with record(net, optimizer, every=4) as recorder:
        for _ in range(3):
            steps(net, optimizer, 5)
            recorder.epoch()
    windows = recorder.trajectory.windows("epoch")
    assert [w.n_steps for w in windows] == [5, 5, 5]
    assert [m.step for m in recorder.trajectory.marks] == [0, 4, 5, 8, 10, 12, 15]


def test_nothing_of_the_user_changes():
    net, optimizer = new_run(momentum=0.9)
    twin, other = new_run(momentum=0.9)
    steps(twin, other, 6)
    state = torch.get_rng_state()
    before = set(vars(optimizer))
    with record(net, optimizer, every=2) as recorder:
        steps(net, optimizer, 6)
        recorder.epoch()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
    assert set(vars(optimizer)) == before
    assert not optimizer._optimizer_step_pre_hooks
    steps(net, optimizer, 1)
    assert recorder.trajectory.n_steps == 6


def test_recording_twice_at_once_is_refused():
    net, optimizer = new_run()
    with record(net, optimizer):
        with pytest.raises(ValueError, match="is being recorded already; leave the other"):
            record(net, optimizer).__enter__()
        steps(net, optimizer, 1)
    with record(net, optimizer) as recorder:
        steps(net, optimizer, 1)
    assert recorder.trajectory.n_steps == 1


@pytest.mark.parametrize("every", [1, 4])
def test_a_loop_that_raises_keeps_what_was_recorded(every):
    net, optimizer = new_run()
    with pytest.raises(RuntimeError, match="stop"), record(net, optimizer, every=every) as recorder:
        steps(net, optimizer, 6)
        raise RuntimeError("stop")
    assert recorder.trajectory.n_steps == 6
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("every", [1, 4])
def test_a_step_that_raises_is_not_counted(every):
    net, optimizer = new_run()
    twin, other = new_run()

    def closure():
        raise MemoryError

    with record(net, optimizer, every=every) as recorder, record(twin, other, every=every) as plain:
        steps(net, optimizer, 3)
        with pytest.raises(MemoryError):
            optimizer.step(closure)
        steps(net, optimizer, 3)
        steps(twin, other, 6)
    ours, wanted = recorder.trajectory, plain.trajectory
    assert (ours.n_steps, ours.n_dropped) == (6, 0)
    assert close(ours.marks[-1].visited, wanted.marks[-1].visited)
    assert close(ours.marks[-1].applied, wanted.marks[-1].applied)


@pytest.mark.parametrize("every", [1, 5])
def test_steps_that_are_not_finite_are_dropped(every):
    net, optimizer = new_run()
    with record(net, optimizer, every=every) as recorder:
        steps(net, optimizer, 20)
        kept = {name: p.detach().clone() for name, p in net.named_parameters()}
        optimizer.zero_grad()
        (loss_of(net) * float("nan")).backward()
        optimizer.step()
        net.load_state_dict(kept)
        steps(net, optimizer, 10)
    trajectory = recorder.trajectory
    assert trajectory.n_dropped == 1
    assert trajectory.n_steps == 30
    assert "1 steps dropped" in repr(trajectory)
    assert all(bool(t.isfinite().all()) for m in trajectory.marks for t in m.applied.values())
    window = trajectory.windows(30)[0]
    assert close(window.mean("applied"), given_of(30), tol=1e-4)


def given_of(n):
    """Mean gradient of the plain run."""
    net, optimizer = new_run()
    with record(net, optimizer) as recorder:
        steps(net, optimizer, n)
    return recorder.trajectory.windows(n)[0].mean("consumed")


def test_a_run_that_diverged_is_refused():
    net, optimizer = new_run()
    with record(net, optimizer) as recorder:
        steps(net, optimizer, 2)
        with torch.no_grad():
            net[0].weight.fill_(float("nan"))
        steps(net, optimizer, 3)
    with pytest.raises(ValueError, match="5 steps of which 3 with NaN or inf; record a run that"):
        _ = recorder.trajectory


@pytest.mark.parametrize("every", [1, 4])
def test_warm_up_from_a_learning_rate_of_zero(every):
    net, optimizer = new_run()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 4, 1))
    with record(net, optimizer, every=every) as recorder:
        for _ in range(9):
            steps(net, optimizer, 1)
            schedule.step()
    assert (recorder.trajectory.n_steps, recorder.trajectory.n_dropped) == (8, 1)
    assert recorder.trajectory.steps[0].lr == 0.025


def test_a_learning_rate_of_zero_is_refused():
    net, optimizer = new_run(lr=0.0)
    with record(net, optimizer) as recorder:
        steps(net, optimizer, 3)
    with pytest.raises(ValueError, match="positive learning rate, got 3 steps of which 3 with"):
        _ = recorder.trajectory


def test_weights_changed_between_steps():
    net, optimizer = new_run()
    with (
        pytest.warns(ModelStateWarning, match="changed the weights before 3 of the steps that"),
        record(net, optimizer, every=5, gradients=True) as recorder,
    ):
        steps(net, optimizer, 10)
        for _ in range(20):
            steps(net, optimizer, 1)
            with torch.no_grad():
                net[2].weight.clamp_(-0.1, 0.1)
    trajectory = recorder.trajectory
    assert 1 <= trajectory.n_dropped <= 5  # then every step is measured by itself
    assert trajectory.n_steps == 30 - trajectory.n_dropped
    window = trajectory.windows(trajectory.n_steps)[0]
    assert close(window.mean("applied"), window.mean("consumed"))


def test_nothing_recorded():
    net, optimizer = new_run()
    with record(net, optimizer) as recorder:
        pass
    with pytest.raises(ValueError, match="at least one recorded step, got none; the optimizer"):
        _ = recorder.trajectory


@pytest.mark.parametrize("every", [0, 1.5, True, "3"], ids=str)
def test_every_is_checked(every):
    net, optimizer = new_run()
    with pytest.raises(ValueError, match="every of record to be None or an integer >= 1"):
        record(net, optimizer, every=every)


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="optimizer of this model's parameters, got one of none"):
        record(new_net(), new_run()[1])


@pytest.mark.parametrize("every", [1, 4])
def test_a_model_replaced_while_recording_is_refused(every):
    net, optimizer = new_run()
    with record(net, optimizer, every=every) as recorder:
        steps(net, optimizer, 8)
        optimizer.param_groups[0]["params"] = list(new_net().parameters())
        with pytest.raises(ValueError, match="got another one or a new parameter group; start a"):
            optimizer.step()
    assert recorder.trajectory.n_steps == 8


@pytest.mark.parametrize("every", [1, 4])
def test_a_changed_shape_is_refused(every):
    net, optimizer = new_run()
    with record(net, optimizer, every=every) as recorder:
        steps(net, optimizer, 8)
        net[2].weight.data = torch.zeros(1, 7)
        with pytest.raises(ValueError, match=r"2.weight to keep its shape \(1, 4\), got \(1, 7\)"):
            optimizer.step()
    assert recorder.trajectory.n_steps == 8


def test_other_tensors_of_the_optimizer_are_left_out():
    net = new_net()
    scale = nn.Parameter(torch.ones(1))
    net[0].bias.requires_grad_(False)
    optimizer = SGD([*net.parameters(), scale], lr=0.1)
    with record(net, optimizer, every=2) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            (loss_of(net) * scale).sum().backward()
            optimizer.step()
    assert recorder.trajectory.names == ("0.weight", "2.weight", "2.bias")


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("kind", [SGD, AdamW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("every", [1, 4])
def test_steps_skipped_by_the_gradient_scaler(kind, fused, every):
    def run(overflow):
        net = new_net()
        optimizer = kind(net.parameters(), lr=0.01, weight_decay=0.0, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        with record(net, optimizer, every=every, gradients=True) as recorder:
            for step in range(12):
                if step == 6 and overflow is None:
                    continue
                optimizer.zero_grad()
                scaler.scale(loss_of(net) * (overflow if step == 6 else 1.0)).backward()
                recorder.batch(np.arange(20))
                scaler.step(optimizer)
                scaler.update()
        return recorder.trajectory

    ours, wanted = run(float("inf")), run(None)
    assert (ours.n_steps, ours.n_dropped) == (11, 0)
    for what in ("applied", "consumed", "visited"):
        assert close(getattr(ours.marks[-1], what), getattr(wanted.marks[-1], what), tol=1e-4), what
    window = ours.windows(11)[0]
    assert close(window.mean("applied"), window.mean("consumed"), tol=2e-3)


def test_entering_again_goes_on():
    net, optimizer = new_run()
    recorder = record(net, optimizer, every=2)
    with recorder:
        steps(net, optimizer, 3)
    with torch.no_grad():
        net[0].weight += 1
    with recorder:
        steps(net, optimizer, 3)
    assert recorder.trajectory.n_steps == 6
    window = recorder.trajectory.windows(6)[0]
    assert float(window.mean("applied")["0.weight"].abs().max()) < 1


def test_batches_by_number_size_and_content():
    net, optimizer = new_run()
    with record(net, optimizer, data=(X, Y)) as recorder:
        for name in ([3, 4], torch.tensor([7, 5]), 6, (X[8:11], Y[8:11]), (X[:4] + 1, Y[:4])):
            recorder.batch(name)
            steps(net, optimizer, 1)
        steps(net, optimizer, 1)
    found = [
        (None if s.rows is None else s.rows.tolist(), s.batch_size)
        for s in recorder.trajectory.steps
    ]
    assert found == [
        ([3, 4], 2),
        ([7, 5], 2),
        (None, 6),
        ([8, 9, 10], 3),
        (None, 4),
        (None, None),
    ]


@pytest.mark.parametrize(
    "data",
    [
        X.numpy(),
        torch.arange(60).reshape(20, 3),
        {"a": X, "b": torch.arange(20)},
        torch.utils.data.TensorDataset(X, Y),
        [X.numpy().astype(np.float64), Y.numpy()],
    ],
    ids=["array", "integers", "dict", "dataset", "float64"],
)
def test_rows_are_found_by_content(data):
    finder = RowFinder(data)
    order = np.random.permutation(20)[:7]
    if isinstance(data, torch.utils.data.Dataset):
        batch = data[order]
    elif isinstance(data, dict):
        batch = {key: value[order] for key, value in data.items()}
    elif isinstance(data, list):
        batch = [torch.as_tensor(part[order], dtype=torch.float32) for part in data]
    else:
        batch = torch.as_tensor(data[order])
    assert finder.find(batch).tolist() == order.tolist()


def test_rows_are_told_apart_by_their_targets():
    inputs = torch.ones(4, 2)
    finder = RowFinder((inputs, torch.tensor([0, 1, 2, 1])))
    assert finder.find((inputs[:2], torch.tensor([2, 0]))).tolist() == [2, 0]
    assert finder.find((inputs[:1], torch.tensor([5]))) is None


def test_finding_rows_leaves_the_random_numbers():
    state = torch.get_rng_state()
    RowFinder(torch.utils.data.TensorDataset(X, Y))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("every", [1, 3])
def test_marks_on_disk_are_those_in_memory(tmp_path, every):
    paths = []
    for how in ({}, {"directory": tmp_path / "marks"}, {"memory_limit": 1000}):
        net = new_net()
        optimizer = Adam(net.parameters(), lr=0.01)
        with record(net, optimizer, every=every, **how) as recorder:
            for _ in range(3):
                steps(net, optimizer, 4)
                recorder.epoch()
        paths.append(recorder.trajectory)
    held, *stored = paths
    for trajectory in stored:
        assert any(isinstance(mark, StoredMark) for mark in trajectory.marks)
        assert [(m.step, m.epoch) for m in trajectory.marks] == [
            (m.step, m.epoch) for m in held.marks
        ]
        for mine, own in zip(held.marks, trajectory.marks, strict=True):
            for what in ("weights", "applied", "consumed", "visited"):
                a, b = getattr(mine, what), getattr(own, what)
                assert a.keys() == b.keys()
                assert all(torch.equal(t, b[n]) and t.dtype == b[n].dtype for n, t in a.items())


def test_a_disk_that_takes_no_direct_writes(tmp_path, monkeypatch):
    direct = getattr(os, "O_DIRECT", 0)
    own = os.open

    def refuse(trajectory, flags, *args, **kwargs):
        if direct and flags & direct:
            raise OSError(errno.EINVAL, "no direct writes")
        return own(trajectory, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    net, optimizer = new_run()
    with record(net, optimizer, directory=tmp_path / "marks") as recorder:
        steps(net, optimizer, 2)
    assert close(recorder.trajectory.marks[-1].weights, dict(net.named_parameters()), tol=0)


def test_a_mark_that_was_cut_short_is_refused(tmp_path):
    net, optimizer = new_run()
    with record(net, optimizer, directory=tmp_path / "marks") as recorder:
        steps(net, optimizer, 2)
    file = sorted((tmp_path / "marks").iterdir())[1]
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(ValueError, match=r"whole mark in .*, got one that was cut short; record"):
        _ = recorder.trajectory.marks[1].weights


@pytest.mark.parametrize("how", ["of one process", "of another process"])
@pytest.mark.parametrize("what", ["weights", "applied", "visited"])
def test_a_mark_that_was_damaged_is_refused(tmp_path, what, how):
    net, optimizer = new_run()
    with record(net, optimizer, directory=tmp_path / "marks") as recorder:
        steps(net, optimizer, 4)
    trajectory = recorder.trajectory
    if how == "of another process":
        trajectory = pickle.loads(pickle.dumps(trajectory))
    file = sorted((tmp_path / "marks").iterdir())[2]
    places = trajectory.marks[2]._source.places
    place = next(p for p in places if (p.what, p.name) == (what, "2.weight"))
    content = bytearray(file.read_bytes())
    content[place.start + 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"got {what} of 2.weight with another checksum; the"):
        trajectory.marks[2].tensor(what, "2.weight")
    with pytest.raises(ValueError, match="the file is damaged: record again"):
        getattr(trajectory.marks[2], what)
    assert trajectory.marks[2].tensor(what, "0.weight").isfinite().all()
    assert trajectory.marks[1].tensor(what, "2.weight").isfinite().all()


def test_a_temporary_folder_goes_with_the_path():
    net, optimizer = new_run()
    with record(net, optimizer, memory_limit=0) as recorder:
        steps(net, optimizer, 3)
    trajectory = recorder.trajectory
    folder = trajectory.marks[0]._source.shelf.path
    again = pickle.loads(pickle.dumps(trajectory))
    assert close(again.marks[2].weights, trajectory.marks[2].weights, tol=0)
    assert len(list(folder.glob("mark-*"))) == 4
    del trajectory, recorder
    gc.collect()
    assert not folder.exists()
    assert again.n_steps == 3


def test_a_folder_with_marks_is_refused(tmp_path):
    net, optimizer = new_run()
    with record(net, optimizer, directory=tmp_path) as recorder:
        steps(net, optimizer, 2)
    with pytest.raises(
        ValueError, match="Expected an empty folder for the marks, got .* with files in it"
    ):
        record(net, optimizer, directory=tmp_path)
    kept = recorder.trajectory
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="which is gone; save a trajectory"):
        _ = kept.marks[0].weights


def test_every_may_be_an_integer_of_numpy():
    net, optimizer = new_run()
    with record(net, optimizer, every=np.int64(5)) as recorder:
        steps(net, optimizer, 10)
    assert len(recorder.trajectory.marks) == 3


@pytest.mark.parametrize("every", [1, 4, 100])
def test_a_layer_replaced_while_recording_is_refused(every):
    net, optimizer = new_run()
    recorder = record(net, optimizer, every=every)
    with (
        pytest.raises(ValueError, match=r"got others for 2.weight, 2.bias; start a new record"),
        recorder as recorder,
    ):
        steps(net, optimizer, 8)
        recorder.epoch()
        net[2] = nn.Linear(4, 1)
        steps(net, optimizer, 4)
    assert recorder.trajectory.n_steps == 8
    assert not recorder.attached


def test_an_epoch_without_a_step_is_refused():
    net, optimizer = new_run()
    with record(net, optimizer) as recorder:
        steps(net, optimizer, 4)
        recorder.epoch()
        steps(*new_run(), 4)
        with pytest.raises(ValueError, match="since the last epoch, got none; the optimizer"):
            recorder.epoch()
    assert recorder.trajectory.n_steps == 4


def test_an_epoch_outside_is_refused():
    net, optimizer = new_run()
    with record(net, optimizer) as recorder:
        steps(net, optimizer, 4)
    with pytest.raises(ValueError, match=r"got it outside of the with block; call it"):
        recorder.epoch()


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_weights_changed_by_hand_after_every_step(kind):
    net = new_net().double()
    optimizer = kind(net.parameters(), lr=0.01)
    begins = []
    with (
        pytest.warns(ModelStateWarning, match="changed the weights before 9 of the steps that"),
        record(net, optimizer) as recorder,
    ):
        for _ in range(10):
            optimizer.zero_grad()
            begins.append(net[2].weight.detach().clone())
            (net(X.double()) - Y).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                net[2].weight.mul_(0.99)
    windows = recorder.trajectory.windows(None)
    assert recorder.trajectory.n_dropped == 0
    for window, begin in zip(windows, begins, strict=True):
        assert torch.equal(window.start.weights["2.weight"], begin)
        assert close(window.mean("applied"), window.mean("consumed"))


def test_a_group_of_learning_rate_0_is_named():
    net = new_net()
    groups = [{"params": net[0].parameters(), "lr": 0.0}, {"params": net[2].parameters()}]
    optimizer = SGD(groups, lr=0.1)
    with record(net, optimizer) as recorder:
        steps(net, optimizer, 4)
    with pytest.raises(ValueError, match=r"rate 0 of 0.weight, 0.bias, whose .* \(freeze them by"):
        _ = recorder.trajectory
    other = nn.Linear(2, 1)
    optimizer = SGD([{"params": other.parameters(), "lr": 0}, {"params": net.parameters()}], lr=0.1)
    with record(net, optimizer) as recorder:
        steps(net, optimizer, 4)
    assert [step.lr for step in recorder.trajectory.steps] == [0.1] * 4


def test_a_mask_names_rows():
    net, optimizer = new_run()
    with record(net, optimizer) as recorder:
        for mask in (np.arange(20) % 7 == 2, torch.arange(20) % 7 == 2):
            recorder.batch(mask)
            steps(net, optimizer, 1)
    assert [step.rows.tolist() for step in recorder.trajectory.steps] == [[2, 9, 16]] * 2


@pytest.mark.parametrize(
    "rows",
    [[1.0, 2.0], np.array([0.5]), 0, -3, True, 2.5, [-1, 3], [], slice(3), None, np.zeros(4, bool)],
    ids=str,
)
def test_rows_that_are_none(rows):
    net, optimizer = new_run()
    with (
        record(net, optimizer) as recorder,
        pytest.raises(ValueError, match="Expected row numbers"),
    ):
        recorder.batch(rows)


class Interrupt:
    """Raises at one of the lines that the package runs in a block, which it counts."""

    def __init__(self, at):
        self.at, self.n_lines = at, 0

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)

    def __exit__(self, *details):
        sys.settrace(self.before)

    def trace(self, frame, event, arg):
        if "sklearn_implicitreg" not in frame.f_code.co_filename:
            return None
        self.n_lines += event == "line"
        if self.n_lines == self.at:
            sys.settrace(None)
            raise KeyboardInterrupt
        return self.trace


def interrupted(at, every, several):
    """A run with an interrupt in what the recorder does within the sixth step."""
    net = new_net()
    heads = [net[0], net[2]] if several else [net]
    optimizers = [SGD(head.parameters(), lr=0.1, weight_decay=0.2) for head in heads]
    interrupt = Interrupt(at)
    with record(net, optimizers, every=every, gradients=True) as recorder:
        for k in range(14):
            rows = torch.arange(5) + k
            net.zero_grad()
            recorder.batch(rows)
            loss_of(net, rows).backward()
            with (
                contextlib.suppress(KeyboardInterrupt),
                interrupt if k == 5 else contextlib.nullcontext(),
            ):
                for optimizer in optimizers:
                    optimizer.step()
            net.zero_grad()
    return recorder.trajectory, interrupt.n_lines


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("several", [False, True], ids=["one", "two optimizers"])
def test_an_interrupt_anywhere_in_the_recorder_loses_steps_but_mixes_none(every, several):
    _, n_lines = interrupted(-1, every, several)
    assert n_lines > 100
    for at in range(1, n_lines, 37):
        trajectory, _ = interrupted(at, every, several)
        assert len(trajectory.steps) == trajectory.n_steps
        assert 14 - every - several <= trajectory.n_steps <= 14
        for window in trajectory.windows(None):
            visited, given = window.mean("visited"), window.mean("consumed")
            # An optimizer that the interrupt left out has fewer steps than the window.
            shares = {name: 0.2 * window.n_updates(name) / window.n_steps for name in given}
            decay = {name: given[name] + shares[name] * visited[name] for name in given}
            assert close(window.mean("applied"), decay, tol=1e-4), at
            if every == 1:
                net = new_net()
                net.load_state_dict(window.start.weights)
                loss_of(net, window.steps[0].rows).backward()
                gradients = {n: p.grad for n, p in net.named_parameters() if window.n_updates(n)}
                assert close(gradients, given, tol=1e-4), at


@pytest.mark.parametrize("every", [1, 4])
def test_what_a_hook_of_the_user_does_after_a_step_is_no_part_of_it(every):
    """Hooks that were registered before the recorder's zero the gradients and clip the weights."""

    def clip(optimizer, args, kwargs):
        with torch.no_grad():
            net[0].weight.clamp_(-0.3, 0.3)

    net, optimizer = new_run(weight_decay=0.2)
    optimizer.register_step_post_hook(lambda own, args, kwargs: own.zero_grad())
    if every == 1:
        optimizer.register_step_post_hook(clip)
    own = list(optimizer._optimizer_step_post_hooks)
    recorder = record(net, optimizer, every=every, gradients=True)
    with contextlib.ExitStack() as stack:
        if every == 1:
            stack.enter_context(pytest.warns(ModelStateWarning, match="changed the weights"))
        stack.enter_context(recorder)
        for k in range(8):
            loss_of(net, torch.arange(5) + k).backward()
            optimizer.step()
    assert list(optimizer._optimizer_step_post_hooks) == own
    assert not any(step.skipped for step in recorder.trajectory.steps)
    for window in recorder.trajectory.windows(None):
        visited, given = window.mean("visited"), window.mean("consumed")
        decay = {name: t + 0.2 * visited[name] for name, t in given.items()}
        assert close(window.mean("applied"), decay)


IMAGES = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(28).reshape(4, 7) % 9


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (IMAGES, True),
        (IMAGES.permute(0, 2, 3, 1), True),
        (IMAGES.bfloat16(), True),
        (IMAGES.where(IMAGES > -2, torch.nan), True),
        (0.7 * IMAGES + 0.3 * IMAGES.flip(0), False),
        (IMAGES + 1e-3, False),
        (IMAGES[:, :, 1:], False),
    ],
)
def test_inputs_of_a_module_are_those_of_the_batch(given, same):
    batch = IMAGES if not given.isnan().any() else given
    assert holds_inputs((batch, torch.ones(4, 1)), ((given,), {})) == same


def test_an_input_that_the_module_gets_beside_the_batch():
    kwargs = {"input_ids": TOKENS, "mask": torch.ones(4, 1, 7, 7)}
    assert holds_inputs({"input_ids": TOKENS}, ((), kwargs))
    assert not holds_inputs({"input_ids": TOKENS}, ((), {**kwargs, "input_ids": TOKENS + 1}))
    assert holds_inputs({"input_ids": TOKENS}, ((), {}))


def test_lazy_layers_have_shapes_before_they_are_recorded():
    net = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"have shapes, got 0.weight, 0.bias without; pass one ba"):
        record(net, SGD(net.parameters(), lr=0.1))


def test_a_name_is_no_batch():
    net, optimizer = new_run()
    with record(net, optimizer) as recorder, pytest.raises(ValueError, match="got 'train'"):
        recorder.batch("train")
