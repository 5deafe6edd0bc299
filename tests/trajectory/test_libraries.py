"""Recorders for skorch, Lightning, Transformers and scikit-learn against a bare loop."""

import copy
import pickle
import subprocess
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import (
    ContinueTraining,
    ImplicitRegularizationRecorder,
    IterateRecorder,
    record,
)
from sklearn_implicitreg.trajectory.recording import lightning as lightning_recorder
from sklearn_implicitreg.trajectory.recording import transformers as hf_recorder

DECAY = 0.02
X = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
Y = np.sin(X.sum(1, keepdims=True))


def module(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def data(dtype=torch.float64):
    return TensorDataset(torch.tensor(X, dtype=dtype), torch.tensor(Y, dtype=dtype))


def decay_found(trajectory):
    """Coefficient of the weights in what was applied beyond what the optimizer was given."""
    (window,) = trajectory.windows(trajectory.n_steps)
    mean = {w: torch.cat([t.flatten() for t in window.mean(w).values()]) for w in _SUMS}
    column, target = mean["visited"], mean["applied"] - mean["consumed"]
    return float(column @ target / (column @ column))


_SUMS = ("visited", "applied", "consumed")


def skorch_net(recorder, kind=NeuralNetRegressor, **settings):
    common = {
        "max_epochs": 3,
        "batch_size": 8,
        "train_split": None,
        "verbose": 0,
        "lr": 0.05,
        "callbacks": [("path", recorder)],
        "optimizer__weight_decay": DECAY,
    }
    return kind(module, **{**common, **settings})


@pytest.mark.parametrize("optimizer", [SGD, AdamW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("every", [1, 4])
def test_skorch_finds_the_decay(optimizer, every):
    recorder = ImplicitRegularizationRecorder(every=every, gradients=True)
    net = skorch_net(recorder, optimizer=optimizer, iterator_train__shuffle=True)
    net.fit(X.astype(np.float64), Y.astype(np.float64))
    trajectory = recorder.trajectory_
    assert decay_found(trajectory) == pytest.approx(DECAY, rel=1e-9)
    assert [w.n_steps for w in trajectory.windows("epoch")] == [4, 4, 4]
    assert [step.batch_size for step in trajectory.steps] == [8, 8, 8, 6] * 3
    for window in trajectory.windows("epoch"):  # each epoch uses every row once, in its own order
        rows = np.concatenate([step.rows for step in window.steps])
        assert sorted(rows) == list(range(30))
        assert list(rows) != list(range(30))


def test_skorch_rows_are_those_of_the_training_part():
    recorder = ImplicitRegularizationRecorder()
    split = ValidSplit(5)
    net = skorch_net(recorder, module__dtype=torch.float32, train_split=split)
    net.fit(X, Y)
    train, _ = net.get_split_datasets(X, Y)
    trajectory = recorder.trajectory_
    assert np.concatenate([s.rows for s in trajectory.steps[:3]]).tolist() == list(range(24))
    step = trajectory.steps[1]
    given = torch.tensor(np.stack([train[int(i)][0] for i in step.rows]))
    target = torch.tensor(np.stack([train[int(i)][1] for i in step.rows]))
    own = module(torch.float32)
    own.load_state_dict(trajectory.marks[1].weights)
    (own(given) - target).square().mean().backward()
    window = trajectory.windows(None)[1]
    for name, p in own.named_parameters():
        assert torch.allclose(window.mean("consumed")[name].float(), p.grad, atol=1e-6)


class Scaled(Callback):
    """Changes the inputs of each batch."""

    def __init__(self, factor):
        self.factor = factor

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        batch[0].mul_(self.factor)


def test_skorch_without_the_rows():
    recorder = ImplicitRegularizationRecorder(find_rows=False)
    skorch_net(recorder, module__dtype=torch.float32).fit(X, Y)
    changed = ImplicitRegularizationRecorder()
    net = skorch_net(changed, module__dtype=torch.float32)
    net.set_params(callbacks=[("scaled", Scaled(1.5)), ("path", changed)])
    net.fit(X.copy(), Y)
    for trajectory in (recorder.trajectory_, changed.trajectory_):
        assert all(step.rows is None for step in trajectory.steps)
        assert trajectory.steps[3].batch_size == 6


def test_skorch_partial_fit_goes_on_and_fit_begins_anew():
    recorder = ImplicitRegularizationRecorder()
    net = skorch_net(recorder, module__dtype=torch.float32)
    net.fit(X, Y)
    assert recorder.trajectory_.n_steps == 12
    net.partial_fit(X, Y)
    assert recorder.trajectory_.n_steps == 24
    assert len(recorder.trajectory_.windows("epoch")) == 6
    net.fit(X, Y)
    assert recorder.trajectory_.n_steps == 12


def test_a_recorded_skorch_net_is_trained_on():
    recorder = ImplicitRegularizationRecorder()
    net = skorch_net(recorder, module__dtype=torch.float32).fit(X, Y)
    est = ImplicitRegularizationEstimator(
        net, family="l2", mode="trajectory", window="epoch", trajectory=ContinueTraining(2)
    ).fit(X, Y)
    assert np.isfinite(est.coef_).all()
    assert recorder.trajectory_.n_steps == 12


def test_skorch_after_a_run_that_raised():
    recorder = ImplicitRegularizationRecorder()
    net = skorch_net(recorder, module__dtype=torch.float32)
    with pytest.raises(RuntimeError):
        net.fit(X[:, :2], Y)
    net.fit(X, Y)
    assert recorder.trajectory_.n_steps == 12


def test_skorch_nets_are_cloned_copied_and_pickled():
    recorder = ImplicitRegularizationRecorder(every=2)
    net = skorch_net(recorder, module__dtype=torch.float32).fit(X, Y)
    assert dict(clone(net).callbacks)["path"].every == 2
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        trajectory = dict(other.callbacks_)["path"].trajectory_
        assert trajectory.n_steps == 12
        other.partial_fit(X, Y)
    assert recorder.trajectory_.n_steps == 12
    with pytest.raises(ValueError, match="a recorder that has seen a training run, got a new one"):
        _ = ImplicitRegularizationRecorder().trajectory_


def test_skorch_classifier_learns_as_without():
    torch.manual_seed(1)
    labels = (Y[:, 0] > 0).astype(np.int64)
    nets = []
    for callbacks in ([], [("path", ImplicitRegularizationRecorder())]):
        net = NeuralNetClassifier(
            nn.Sequential,
            module__0=0,
            max_epochs=2,
            verbose=0,
            callbacks=callbacks,
            iterator_train__shuffle=True,
        )
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=-1))
        net = NeuralNetClassifier(
            layers, max_epochs=2, verbose=0, callbacks=callbacks, iterator_train__shuffle=True
        )
        net.fit(X, labels)
        nets.append(net)
    plain, recorded = (dict(net.module_.named_parameters()) for net in nets)
    assert all(torch.equal(p, recorded[name]) for name, p in plain.items())


def drive_lightning(recorder, n_epochs=2, accumulated=1, n_optimizers=1, left_out=()):
    """Call the hooks in the order in which Lightning's fit loop documents them."""
    net = module()
    optimizer = SGD(net.parameters(), lr=0.05, weight_decay=DECAY)
    loader = DataLoader(data(), batch_size=8, shuffle=True)
    trainer = SimpleNamespace(
        optimizers=[optimizer] * n_optimizers,
        train_dataloader=loader,
        accumulate_grad_batches=accumulated,
    )
    recorder.on_train_start(trainer, net)
    for _ in range(n_epochs):
        for i, batch in enumerate(loader):
            recorder.on_train_batch_start(trainer, net, batch, i)
            if i not in left_out:
                loss = (net(batch[0]) - batch[1]).square().mean() / accumulated
                recorder.on_before_backward(trainer, net, loss)
                loss.backward()
            if (i + 1) % accumulated == 0 or i + 1 == len(loader):
                optimizer.step()
        recorder.on_train_epoch_end(trainer, net)
    recorder.on_train_end(trainer, net)


@pytest.fixture
def without_base(monkeypatch):
    """Recorders built on nothing, as fakes drive them."""
    for own in (lightning_recorder, hf_recorder):
        monkeypatch.setattr(own, "_Callback", SimpleNamespace)


@pytest.mark.parametrize("every", [1, 4])
def test_lightning_hooks(without_base, every):
    recorder = lightning_recorder.LightningRecorder(every=every, gradients=True)
    drive_lightning(recorder)
    trajectory = recorder.trajectory_
    assert decay_found(trajectory) == pytest.approx(DECAY, rel=1e-9)
    assert [w.n_steps for w in trajectory.windows("epoch")] == [4, 4]
    assert sorted(np.concatenate([s.rows for s in trajectory.steps[:4]])) == list(range(30))


def test_lightning_hooks_with_accumulation(without_base):
    recorder = lightning_recorder.LightningRecorder()
    drive_lightning(recorder, accumulated=2)
    assert [step.batch_size for step in recorder.trajectory_.steps] == [16, 14] * 2
    assert len(recorder.trajectory_.steps[0].rows) == 16


@pytest.mark.parametrize(("i", "sizes"), [(0, [8, 14]), (1, [8, 14]), (2, [16, 6]), (3, [16, 8])])
def test_lightning_hooks_where_a_training_step_returns_none(without_base, i, sizes):
    recorder = lightning_recorder.LightningRecorder()
    drive_lightning(recorder, accumulated=2, left_out=(i,))
    assert [step.batch_size for step in recorder.trajectory_.steps] == sizes * 2
    assert decay_found(recorder.trajectory_) == pytest.approx(DECAY, rel=1e-9)


def test_lightning_hooks_with_two_optimizers(without_base):
    recorder = lightning_recorder.LightningRecorder()
    net, foreign = module(), nn.Linear(1, 1)
    first, *rest = net.parameters()
    optimizers = [
        SGD([first], lr=0.05, weight_decay=DECAY),
        AdamW(rest, lr=0.05, weight_decay=DECAY),
        SGD(foreign.parameters(), lr=0.1),
    ]
    loader = DataLoader(data(), batch_size=8, shuffle=True)
    trainer = SimpleNamespace(
        optimizers=optimizers, train_dataloader=loader, accumulate_grad_batches=1
    )
    recorder.on_train_start(trainer, net)
    for i, batch in enumerate(loader):
        recorder.on_train_batch_start(trainer, net, batch, i)
        net.zero_grad()
        (net(batch[0]) - batch[1]).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    recorder.on_train_epoch_end(trainer, net)
    recorder.on_train_end(trainer, net)
    assert recorder.trajectory_.optimizer == "SGD + AdamW"
    assert decay_found(recorder.trajectory_) == pytest.approx(DECAY, rel=1e-9)


@pytest.mark.parametrize(("accumulated", "sizes"), [(1, [8, 8, 8, 6]), (2, [16, 14])])
def test_transformers_hooks(without_base, accumulated, sizes):
    net = module()
    optimizer = AdamW(net.parameters(), lr=0.05, weight_decay=DECAY)
    loader = DataLoader(data(), batch_size=8)
    args = SimpleNamespace(
        train_batch_size=8, gradient_accumulation_steps=accumulated, world_size=1
    )
    shown = {
        "model": net,
        "optimizer": SimpleNamespace(optimizer=optimizer),
        "train_dataloader": loader,
    }
    recorder = hf_recorder.TransformersRecorder()
    recorder.on_train_begin(args, None, None, **shown)
    for _ in range(2):
        recorder.on_epoch_begin(args, None, None, **shown)
        for i, batch in enumerate(loader):
            if i % accumulated == 0:
                recorder.on_step_begin(args, None, None, **shown)
                optimizer.zero_grad()
            ((net(batch[0]) - batch[1]).square().mean() / accumulated).backward()
            if (i + 1) % accumulated == 0:
                recorder.on_pre_optimizer_step(args, None, None, **shown)
                optimizer.step()
            else:
                recorder.on_substep_end(args, None, None, **shown)
        recorder.on_epoch_end(args, None, None, **shown)
    recorder.on_train_end(args, None, None, **shown)
    trajectory = recorder.trajectory_
    assert decay_found(trajectory) == pytest.approx(DECAY, rel=1e-9)
    assert [step.batch_size for step in trajectory.steps] == sizes * 2
    assert len(trajectory.windows("epoch")) == 2


class Returning(nn.Linear):
    """A model that returns its loss where labels are given."""

    def forward(self, x, labels=None):
        output = super().forward(x)
        return {"loss": (output - labels).square().mean(), "logits": output}


def begun(world_size=1):
    """A recorder of the Trainer that has seen a training begin, its model and arguments."""
    net = Returning(3, 1)
    args = SimpleNamespace(train_batch_size=8, gradient_accumulation_steps=1, world_size=world_size)
    shown = {"model": net, "optimizer": SGD(net.parameters(), lr=0.1)}
    shown["train_dataloader"] = DataLoader(data(torch.float32), batch_size=8)
    recorder = hf_recorder.TransformersRecorder()
    recorder.on_train_begin(args, None, None, **shown)
    recorder.on_epoch_begin(args, None, None, **shown)
    recorder.on_step_begin(args, None, None, **shown)
    return recorder, args, shown


@pytest.mark.parametrize(("world_size", "n_known", "size"), [(1, 1, 8), (2, 0, 16)])
def test_transformers_batches_of_several_processes(without_base, world_size, n_known, size):
    recorder, args, shown = begun(world_size)
    shown["model"](x=torch.tensor(X[:8]), labels=torch.tensor(Y[:8]))["loss"].backward()
    recorder.on_pre_optimizer_step(args, None, None, **shown)
    shown["optimizer"].step()
    recorder.on_train_end(args, None, None, **shown)
    (step,) = recorder.trajectory_.steps
    assert step.batch_size == size
    assert bool(step.seen) is bool(n_known)


def test_transformers_keeps_few_batches_after_an_error(without_base):
    recorder, _, shown = begun()
    held = []
    for _ in range(5):  # a loop of one's own goes on where the Trainer raised an error
        labels = torch.tensor(Y[:8])
        held.append(weakref.ref(labels))
        shown["model"](x=torch.tensor(X[:8]), labels=labels)
    del labels
    assert sum(ref() is not None for ref in held) <= 2


@pytest.mark.parametrize(
    ("own", "name"),
    [(lightning_recorder, "LightningRecorder"), (hf_recorder, "TransformersRecorder")],
    ids=["lightning", "transformers"],
)
def test_a_library_that_is_missing(monkeypatch, own, name):
    monkeypatch.setattr(own, "_Callback", object)
    with pytest.raises(ImportError, match=f"{name} needs the package"):
        getattr(own, name)()


@pytest.mark.filterwarnings("default")
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = module()

        def training_step(self, batch, index):
            return (self.net(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self):
            return SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=DECAY)

    recorder = lightning_recorder.LightningRecorder(every=2, gradients=True, submodule="net")
    trainer = lightning.Trainer(
        max_epochs=2,
        callbacks=[recorder],
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(data(), batch_size=8, shuffle=True))
    trajectory = recorder.trajectory_
    assert trajectory.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert decay_found(trajectory) == pytest.approx(DECAY, rel=1e-9)
    assert [w.n_steps for w in trajectory.windows("epoch")] == [4, 4]
    assert sorted(np.concatenate([s.rows for s in trajectory.steps[:4]])) == list(range(30))


@pytest.mark.filterwarnings("default")
def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module()

        def forward(self, x, labels):
            return {"loss": (self.net(x) - labels).square().mean()}

    rows = [{"x": x, "labels": y} for x, y in data()]
    args = transformers.TrainingArguments(
        output_dir=tmp_path,
        num_train_epochs=2,
        per_device_train_batch_size=8,
        learning_rate=0.01,
        weight_decay=DECAY,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    recorder = hf_recorder.TransformersRecorder(gradients=True)
    model = Model()
    transformers.Trainer(model, args, train_dataset=rows, callbacks=[recorder]).train()
    trajectory = recorder.trajectory_
    assert [step.batch_size for step in trajectory.steps] == [8, 8, 8, 6] * 2
    assert len(trajectory.windows("epoch")) == 2
    window = trajectory.windows(trajectory.n_steps)[0]
    for name, column in window.mean("visited").items():  # biases are not decayed there
        extra = window.mean("applied")[name] - window.mean("consumed")[name]
        decay = 0 if name.endswith("bias") else DECAY
        assert torch.allclose(extra, decay * column, atol=1e-11)


def same_fit(model, reduced, kept, **how):
    """A fit of R factors against one of weights."""
    how = {"mode": "trajectory", "family": "l2", "window": "epoch"} | how
    data = (X.astype(np.float64), Y.astype(np.float64))
    own, other = (
        ImplicitRegularizationEstimator(model, trajectory=t, **how).fit(*data)
        for t in (reduced, kept)
    )
    assert "R factors of l2" in repr(reduced)
    np.testing.assert_allclose(own.coef_, other.coef_, rtol=1e-7)
    assert own.r2_ == pytest.approx(other.r2_, rel=1e-9)


@pytest.mark.parametrize("reference", ["gradient", "applied"])
@pytest.mark.parametrize("split", [None, ValidSplit(5)], ids=["all rows", "split"])
def test_skorch_with_families(split, reference):
    reduced = ImplicitRegularizationRecorder(families=["l2", "l1"], reference=reference)
    kept = ImplicitRegularizationRecorder(gradients=True)
    net = skorch_net(reduced, train_split=split)
    net.set_params(callbacks=[("reduced", reduced)])
    net.fit(X.astype(np.float64), Y.astype(np.float64))
    other = skorch_net(kept, train_split=split).fit(X.astype(np.float64), Y.astype(np.float64))
    assert torch.equal(other.module_[0].weight, net.module_[0].weight)
    window = {"window": "epoch"} if reference == "gradient" else {}
    same_fit(net, reduced.trajectory_, kept.trajectory_, reference=reference, **window)
    net.partial_fit(X.astype(np.float64), Y.astype(np.float64))
    assert len(reduced.trajectory_.windows("epoch")) == 6
    assert clone(reduced).get_params()["families"] == ["l2", "l1"]


def test_skorch_with_families_takes_the_loss_of_the_net():
    labels = (Y[:, 0] > 0).astype(np.int64)
    trajectories = []
    for how in ({"families": ["l2"]}, {}):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=-1))
        recorder = ImplicitRegularizationRecorder(**how)
        net = NeuralNetClassifier(
            layers, max_epochs=3, batch_size=8, train_split=None, verbose=0, callbacks=[recorder]
        ).fit(X, labels)
        trajectories.append(recorder.trajectory_)
    how = {"mode": "trajectory", "window": "epoch"}
    own, other = (
        ImplicitRegularizationEstimator(net, trajectory=t, **how).fit(X, labels)
        for t in trajectories
    )
    np.testing.assert_allclose(own.coef_, other.coef_, rtol=1e-4)


def test_lightning_with_families(without_base):
    reduced = lightning_recorder.LightningRecorder(families=["l2"], loss="mse")
    kept = lightning_recorder.LightningRecorder()
    for recorder in (reduced, kept):
        torch.manual_seed(1)
        drive_lightning(recorder)
    same_fit(module(), reduced.trajectory_, kept.trajectory_, loss="mse")
    applied = lightning_recorder.LightningRecorder(families=["l2"], reference="applied")
    drive_lightning(applied)
    how = {"mode": "trajectory", "reference": "applied", "trajectory": applied, "loss": "mse"}
    est = ImplicitRegularizationEstimator(module(), **how).fit(X, Y)
    assert est.coef_[0] == pytest.approx(DECAY / 2, rel=1e-9)
    with pytest.raises(ValueError, match="give `loss=`"):
        drive_lightning(lightning_recorder.LightningRecorder(families=["l2"]))


def test_transformers_with_families(without_base):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module()

        def forward(self, x, labels):
            return {"loss": (self.net(x) - labels).square().mean()}

    rows = [{"x": x, "labels": y} for x, y in data()]
    found = []
    for how in ({"families": ["l2"]}, {}):
        model = Model()
        optimizer = SGD(model.parameters(), lr=0.05, weight_decay=DECAY)
        loader = DataLoader(rows, batch_size=8)
        args = SimpleNamespace(train_batch_size=8, gradient_accumulation_steps=1, world_size=1)
        shown = {"model": model, "optimizer": optimizer, "train_dataloader": loader}
        recorder = hf_recorder.TransformersRecorder(**how)
        recorder.on_train_begin(args, None, None, **shown)
        for _ in range(2):
            recorder.on_epoch_begin(args, None, None, **shown)
            for batch in loader:
                recorder.on_step_begin(args, None, None, **shown)
                optimizer.zero_grad()
                model(**batch)["loss"].backward()
                optimizer.step()
            recorder.on_epoch_end(args, None, None, **shown)
        recorder.on_train_end(args, None, None, **shown)
        found.append((model, recorder.trajectory_))
    (_, reduced), (model, kept) = found
    # The column of batches whose rows are not known would be a mean over the trajectory.
    kept = replace(kept, steps=tuple(replace(step, batch_size=None) for step in kept.steps))
    how = {"mode": "trajectory", "window": "epoch"}
    own, other = (
        ImplicitRegularizationEstimator(model, trajectory=t, **how).fit(rows)
        for t in (reduced, kept)
    )
    np.testing.assert_allclose(own.coef_, other.coef_, rtol=1e-7)


def test_logistic_regression_hands_out_its_iterates():
    pytest.importorskip("sklearn.callback")
    from sklearn.linear_model import LogisticRegression

    recorder = IterateRecorder()
    model = LogisticRegression(C=0.5).set_callbacks(recorder)
    labels = (Y[:, 0] > 0).astype(int)
    model.fit(X, labels)
    assert len(recorder.iterates_) == model.n_iter_[0]
    assert np.array_equal(recorder.iterates_[-1].coef_, model.coef_)
    trajectory = recorder.path(lr=0.1)
    assert trajectory.n_steps == len(recorder.iterates_) - 1
    assert trajectory.names == ("coef", "intercept")
    model.fit(X, labels)
    assert len(recorder.iterates_) == model.n_iter_[0]


def test_libraries_are_not_imported_unasked():
    code = (
        "import sys; from sklearn_implicitreg import record; "
        "from sklearn_implicitreg.trajectory import Trajectory; "
        "print([m for m in ('skorch', 'lightning', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_bare_loop_records_the_same():
    callback = ImplicitRegularizationRecorder()
    skorch_net(callback, module__dtype=torch.float32, optimizer__weight_decay=0.0).fit(X, Y)
    net = module(torch.float32)
    optimizer = SGD(net.parameters(), lr=0.05)
    with record(net, optimizer) as recorder:
        for _ in range(3):
            for rows in np.split(np.arange(30), [8, 16, 24]):
                optimizer.zero_grad()
                given, target = data(torch.float32)[rows]
                (net(given) - target).square().mean().backward()
                recorder.batch(rows)
                optimizer.step()
            recorder.epoch()
    ours, wanted = callback.trajectory_, recorder.trajectory
    for what in ("weights", *_SUMS):
        for name, tensor in getattr(wanted.marks[-1], what).items():
            assert torch.allclose(getattr(ours.marks[-1], what)[name], tensor, atol=1e-6)
    assert [s.rows.tolist() for s in ours.steps] == [s.rows.tolist() for s in wanted.steps]
