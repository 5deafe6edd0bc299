"""Steps on accumulated gradients: the decay that was applied, or words."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skorch import NeuralNetRegressor
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.exceptions import PathNoiseWarning
from sklearn_implicitreg.trajectory import (
    ImplicitRegularizationRecorder,
    LightningRecorder,
    Trajectory,
    record,
)
from sklearn_implicitreg.trajectory.recording import lightning as lightning_recorder
from sklearn_implicitreg.trajectory.window import Step

DECAY = 0.05


def rows(n=42):
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return X, torch.sin(X.sum(1, keepdim=True)) + 0.4 * noise


def new_net(normalized=False, n_out=1):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(5)] if normalized else []
    return nn.Sequential(nn.Linear(3, 5), *middle, nn.Tanh(), nn.Linear(5, n_out)).double()


def chunks(order, size, m):
    """Windows of at most m batches."""
    batches = order.split(size)
    return [batches[i : i + m] for i in range(0, len(batches), m)]


# What a loop multiplies each loss by, and what it says of that.
LOOPS = {
    "divided by their number": (lambda b, step, m: 1 / len(step), lambda f: None),
    "divided by a constant": (lambda b, step, m: 1 / m, lambda f: f),
    "undivided": (lambda b, step, m: 1.0, lambda f: f),
    "by rows": (lambda b, step, m: len(b) / sum(map(len, step)), lambda f: f),
    "of any size": (lambda b, step, m: 0.3 + 0.1 * len(b), lambda f: f),
}


def train(loop="divided by their number", loss=None, said=None, n=42, m=2, size=8, **how):
    """A loop in plain torch, with what was said to the recorder."""
    factor, word = LOOPS[loop]
    word = word if said is None else said
    loss = nn.MSELoss() if loss is None else loss
    X, y = rows(n)
    y = how.pop("y", y)
    net = new_net(how.pop("normalized", False), how.pop("n_out", 1))
    kind = how.pop("kind", SGD)
    optimizer = kind(net.parameters(), lr=how.pop("lr", 0.02), weight_decay=DECAY)
    order = torch.Generator().manual_seed(1)
    with record(net, optimizer, **how) as path:
        for _ in range(4):
            for step in chunks(torch.randperm(n, generator=order), size, m):
                optimizer.zero_grad()
                for part in step:
                    own = factor(part, step, m)
                    path.batch(part, accumulate=True, weight=word(own))
                    (own * loss(net(X[part]), y[part])).backward()
                optimizer.step()
            path.epoch()
    return net, X, y, path.trajectory


def fit(case, loss="mse", reference="batch", window=None, **how):
    net, X, y, path = case
    how = {"family": "weight_decay", "params": "all", **how}
    est = ImplicitRegularizationEstimator(
        net,
        mode="trajectory",
        trajectory=path,
        reference=reference,
        window=window,
        loss=loss,
        **how,
    )
    return est.fit(X, y)


@pytest.mark.parametrize("kind", [SGD, AdamW])
@pytest.mark.parametrize("loop", LOOPS)
def test_mean_losses(loop, kind):
    est = fit(train(loop, kind=kind))
    np.testing.assert_allclose(est.coef_, DECAY, rtol=1e-9)
    assert est.r2_ > 1 - 1e-9


@pytest.mark.parametrize(("n", "m"), [(48, 2), (40, 2), (42, 2), (48, 4), (24, 10)])
def test_windows_of_every_length(n, m):
    np.testing.assert_allclose(
        fit(train("divided by a constant", n=n, m=m)).coef_, DECAY, rtol=1e-9
    )


def test_normalization_by_the_statistics_of_each_batch():
    case = train("undivided", normalized=True, n=40)
    np.testing.assert_allclose(fit(case).coef_, DECAY, rtol=1e-9)


def test_classes_and_ignored_targets_weigh_within_a_batch():
    y = (torch.arange(42) * 7 % 5 % 3).roll(4)
    y[[3, 7, 20]] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]).double())
    case = train("divided by their number", loss, y=y, n_out=3)
    np.testing.assert_allclose(fit(case, loss).coef_, DECAY, rtol=1e-9)


@pytest.mark.parametrize("loop", ["undivided", "divided by a constant"])
def test_sums_over_rows(loop):
    """The loss of a step is a sum: the decay is that over its rows."""
    case = train(loop, nn.MSELoss(reduction="sum"), n=48, lr=1e-3)
    mass = 16.0 if loop == "undivided" else 8.0
    est = fit(case, nn.MSELoss(reduction="sum"))
    np.testing.assert_allclose(est.coef_ * mass, DECAY, rtol=1e-9)


def test_sums_are_not_divided_unless_said():
    case = train("undivided", nn.MSELoss(reduction="sum"), lambda f: None, n=48, lr=1e-3)
    est = fit(case, nn.MSELoss(reduction="sum"))
    np.testing.assert_allclose(est.coef_ * 16, DECAY, rtol=1e-9)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("loop", "said", "words"),
    [
        ("undivided", lambda f: None, "undivided"),
        ("undivided", lambda f: 0.5, "undivided"),
        ("divided by a constant", lambda f: 1.0, "divided by the number"),
        ("by rows", lambda f: None, "weighted by their rows"),
    ],
)
def test_factors_that_the_steps_do_not_fit(loop, said, words, every):
    case = train(loop, said=said, n=44, m=2, size=11 if loop != "by rows" else 24, every=every)
    with pytest.raises(ValueError, match=f"Expected steps .*{words}.*weight=") as raised:
        fit(case, reference="gradient", window="epoch")
    assert "accumulate=True" in str(raised.value)


def test_a_large_penalty_in_the_loss_is_no_other_factor():
    """What a step has beside the loss may be larger than the gradient."""
    X, y = rows(40)
    net = new_net()
    optimizer = SGD(net.parameters(), lr=0.01)
    with record(net, optimizer) as path:
        for _ in range(30):
            for step in chunks(torch.arange(40), 10, 2):
                optimizer.zero_grad()
                for part in step:
                    path.batch(part, accumulate=True)
                    (nn.functional.mse_loss(net(X[part]), y[part]) / 2).backward()
                for p in net.parameters():
                    p.grad += 1.5 * p.detach()
                optimizer.step()
    np.testing.assert_allclose(fit((net, X, y, path.trajectory)).coef_, 1.5, rtol=1e-9)


@pytest.mark.parametrize("loop", ["undivided", "divided by a constant", "by rows"])
def test_epochs_of_the_gradient_reference(loop):
    """Loss factors other than one are in the mean gradient and in the column of mini-batching."""
    found = []
    for lr in (4e-3, 1e-3):
        est = fit(train(loop, lr=lr), reference="gradient", window="epoch")
        assert est.term_names_ == ["weight_decay", "minibatch"]
        found.append(abs(est.coef_[0] - DECAY))
    assert found[0] < 0.02
    assert found[1] < 0.3 * found[0] + 1e-4


def test_the_column_of_mini_batching_is_that_of_the_steps():
    """Half the gradient of mean |g_k - g|^2 by finite differences of sums of batch losses."""
    from sklearn_implicitreg.adapters import Data, Options, adapt
    from sklearn_implicitreg.trajectory.minibatch import gradient_and_column
    from sklearn_implicitreg.trajectory.references import Gradient

    net, X, y, path = train("of any size")
    window = path.windows("epoch")[1]
    whole = adapt(net, Data(X, y), Options(loss="mse", params="all"))
    gradient, column = gradient_and_column(whole, window, Gradient())
    at = {name: t.clone() for name, t in window.mean("visited").items()}

    def gradients(at):
        found = []
        leaves = {name: t.clone().requires_grad_() for name, t in at.items()}
        for step in window.steps:
            loss = 0.0
            for part in torch.as_tensor(step.rows).split([size for size, _ in step.parts]):
                output = torch.func.functional_call(net, leaves, (X[part],))
                loss = loss + (0.3 + 0.1 * len(part)) * (output - y[part]).square().mean()
            slopes = torch.autograd.grad(loss, list(leaves.values()))
            found.append(torch.cat([s.flatten() for s in slopes]))
        return torch.stack(found)

    center = gradients(at).mean(0)
    mine = torch.cat([g.flatten() for g in gradient.value.values()])
    torch.testing.assert_close(mine, center, rtol=1e-10, atol=1e-12)
    for name, i in (("0.weight", 4), ("2.bias", 0)):
        spreads = []
        for h in (-1e-5, 1e-5):
            moved = {n: t.clone() for n, t in at.items()}
            moved[name].view(-1)[i] += h
            spreads.append(float((gradients(moved) - center).square().sum(1).mean()))
        slope = (spreads[1] - spreads[0]) / 2e-5
        assert float(column[name].view(-1)[i]) == pytest.approx(slope, rel=1e-5)


def test_factors_are_saved(tmp_path):
    _, _, _, path = train("undivided")
    path.save(tmp_path / "path")
    assert Trajectory.load(tmp_path / "path").steps[0].parts == ((8, 1.0), (8, 1.0))
    assert [s.parts for s in path.steps] == [
        s.parts for s in Trajectory.load(tmp_path / "path").steps
    ]


ORDERS = {  # of one iteration: when the batch is named, and when gradients are zeroed
    "zeroed first": "zero name backward",
    "zeroed after naming": "name zero backward",
    "named last": "zero backward name",
}


class TestASecondBatch:
    """Named before the optimizer stepped."""

    def loop(self, order, *, every, skipped=(), to_none=True, factor=1.0):
        """Iterations that step at every n-th one, unless that is left out."""
        X, y = rows(48)
        net = new_net()
        optimizer = SGD(net.parameters(), lr=0.02)
        with record(net, optimizer) as path:
            for k, part in enumerate(torch.arange(48).split(4)):
                for what in order.split():
                    if what == "zero" and k % every == 0:
                        optimizer.zero_grad(set_to_none=to_none)
                    elif what == "name":
                        path.batch(part)
                    elif what == "backward":
                        loss = nn.functional.mse_loss(net(X[part]), y[part])
                        (loss * (factor if k in skipped else 1.0)).backward()
                if k % every == every - 1 and k not in skipped:
                    optimizer.step()
        return path.trajectory

    @pytest.mark.parametrize("to_none", [True, False])
    @pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
    @pytest.mark.parametrize("every", [2, 3])
    def test_is_accumulated_only_if_said(self, order, every, to_none):
        with pytest.raises(ValueError, match=r"accumulate=True.*weight="):
            self.loop(order, every=every, to_none=to_none)

    @pytest.mark.parametrize("to_none", [True, False])
    @pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
    def test_replaces_those_that_a_scaler_left_out(self, order, to_none):
        path = self.loop(order, every=1, skipped=(0, 3, 4, 7), to_none=to_none, factor=float("inf"))
        assert [step.rows[0] for step in path.steps] == [4, 8, 20, 24, 32, 36, 40, 44]
        assert {step.batch_size for step in path.steps} == {4}

    @pytest.mark.parametrize("to_none", [True, False])
    def test_replaces_those_that_the_loop_left_out(self, to_none):
        path = self.loop(ORDERS["named last"], every=1, skipped=(0, 3, 4), to_none=to_none)
        assert path.n_steps == 9

    def test_replaces_one_without_a_backward_pass(self):
        X, y = rows(16)
        net = new_net()
        optimizer = SGD(net.parameters(), lr=0.02)
        nn.functional.mse_loss(net(X), y).backward()  # of before
        with record(net, optimizer) as path:
            path.batch(range(8))
            path.batch(range(4))
            optimizer.step()
            path.batch(range(8))
            path.batch(range(4))
            optimizer.step()
        assert [step.batch_size for step in path.trajectory.steps] == [4, 4]

    @pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
    def test_replaces_one_that_was_interrupted(self, order):
        X, y = rows(16)
        net = new_net()
        optimizer = SGD(net.parameters(), lr=0.02)
        path = record(net, optimizer)
        for part in (range(8), range(4)):
            with pytest.raises(KeyboardInterrupt), path:
                for what in order.split():
                    if what == "zero":
                        optimizer.zero_grad()
                    elif what == "name":
                        path.batch(part)
                    else:
                        nn.functional.mse_loss(net(X[part]), y[part]).backward()
                if len(part) == 4:
                    optimizer.step()
                raise KeyboardInterrupt
        assert [step.batch_size for step in path.trajectory.steps] == [4]

    def test_within_a_closure(self):
        X, y = rows(16)
        net = new_net()
        optimizer = SGD(net.parameters(), lr=0.02)
        with record(net, optimizer) as path:

            def closure():
                optimizer.zero_grad()
                for part in (range(8), range(8)):
                    path.batch(part)
                    loss = nn.functional.mse_loss(net(X[part]), y[part])
                    loss.backward()
                return loss

            optimizer.step(closure)
        assert path.trajectory.steps[0].batch_size == 8


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf"), "half", True, [1.0]])
def test_weights_that_are_none(weight):
    net = new_net()
    with (
        record(net, SGD(net.parameters(), lr=0.1)) as path,
        pytest.raises(ValueError, match="Expected weight to be the factor > 0"),
    ):
        path.batch(range(4), weight=weight)


def test_weights_of_some_batches_only():
    net = new_net()
    with record(net, SGD(net.parameters(), lr=0.1)) as path:
        path.batch(range(4), weight=torch.tensor(0.5))
        with pytest.raises(ValueError, match="every batch of a step or for none"):
            path.batch(range(4, 8), accumulate=True)


class Accumulating(NeuralNetRegressor):
    """A step at every third batch; what is left of an epoch joins the next one."""

    def train_step(self, batch, **fit_params):
        step = self.train_step_single(batch, **fit_params)
        if len(self.history[-1, "batches"]) % 3 == 0:
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step


class Divided(Accumulating):
    def train_step_single(self, batch, **fit_params):
        self._set_training(True)
        Xi, yi = batch
        y_pred = self.infer(Xi, **fit_params)
        loss = self.get_loss(y_pred, yi, X=Xi, training=True)
        (loss / 3).backward()
        return {"loss": loss, "y_pred": y_pred}


def skorch_fit(kind, n):
    X, y = (t.numpy() for t in rows(n))
    recorder = ImplicitRegularizationRecorder()
    net = kind(
        new_net(),
        optimizer__weight_decay=DECAY,
        callbacks=[recorder],
        lr=0.02,
        max_epochs=4,
        batch_size=8,
        train_split=None,
        verbose=0,
        iterator_train__shuffle=True,
    ).fit(X, y)
    return ImplicitRegularizationEstimator(
        net,
        family="weight_decay",
        params="all",
        mode="trajectory",
        reference="batch",
        trajectory=recorder,
    ).fit(X, y)


@pytest.mark.parametrize(("kind", "n"), [(Accumulating, 40), (Divided, 48)])
def test_skorch(kind, n):
    est = skorch_fit(kind, n)
    counts = {len(step.parts) for step in est.trajectory.trajectory_.steps}
    assert counts == ({3, 5} if n == 40 else {3})
    np.testing.assert_allclose(est.coef_, DECAY, rtol=1e-9)


def test_skorch_where_the_factors_are_not_known():
    """What is left of an epoch joins three batches of the next and is divided by three too."""
    with pytest.raises(ValueError, match="losses divided by 3"):
        skorch_fit(Divided, 40)


@pytest.mark.parametrize(("n", "m"), [(40, 2), (48, 4)])
def test_a_short_end_of_an_epoch_that_was_divided_like_the_others(n, m):
    case = train("divided by a constant", said=lambda f: None, n=n, m=m)
    with pytest.raises(ValueError, match=f"losses divided by {m}"):
        fit(case)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("n", "m"), [(48, 2), (40, 2), (42, 2), (48, 4), (24, 10)])
def test_lightning(tmp_path, n, m):
    lightning = pytest.importorskip("lightning.pytorch")
    if lightning_recorder._Callback is object:
        pytest.skip("imported before lightning was there")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = new_net()

        def training_step(self, batch, index):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return SGD(self.parameters(), lr=0.02, weight_decay=DECAY)

    recorder = LightningRecorder(submodule="net")
    trainer = lightning.Trainer(
        max_epochs=4,
        callbacks=[recorder],
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=m,
    )
    X, y = rows(n)
    model = Model()
    trainer.fit(model, DataLoader(TensorDataset(X, y), batch_size=8, shuffle=True))
    est = fit((model.net, X, y, recorder.trajectory_))
    np.testing.assert_allclose(est.coef_, DECAY, rtol=1e-9)


def test_factors_are_checked_while_recording_r_factors():
    X, y = rows(40)
    net = new_net()
    optimizer = SGD(net.parameters(), lr=0.02)
    with (
        pytest.raises(ValueError, match="undivided losses"),
        record(net, optimizer, data=(X, y), loss="mse", families=["l2"]) as path,
    ):
        for _ in range(3):
            for step in chunks(torch.arange(40), 10, 2):
                optimizer.zero_grad()
                for part in step:
                    path.batch(part, accumulate=True)
                    nn.functional.mse_loss(net(X[part]), y[part]).backward()
                optimizer.step()
            path.epoch()


def test_the_noise_of_batches_whose_sizes_are_known():
    """Mean square over random partitions, by hand, against the factor of the rows' spread."""
    from types import SimpleNamespace

    from sklearn_implicitreg.trajectory.minibatch import _noise
    from sklearn_implicitreg.trajectory.window import Step

    rng = np.random.default_rng(0)
    values = rng.normal(size=30)
    step = Step(0.1, None, 12, parts=((8, 0.5), (4, 0.25)))
    draws = rng.permuted(np.tile(values, (100_000, 1)), axis=1)[:, :12]
    means = 0.5 * draws[:, :8].mean(1) + 0.25 * draws[:, 8:].mean(1)
    problem = SimpleNamespace(n_rows=30, trained_sum=False)
    expected = _noise(step, problem) * values.var() / 29
    assert np.var(means) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("size", [10, 20, 40])
def test_steps_of_unknown_size_are_warned_of(size):
    X, y = rows(40)
    net = new_net()
    optimizer = SGD(net.parameters(), lr=0.02, weight_decay=DECAY)
    with record(net, optimizer) as path:
        for _ in range(4):
            for part in torch.arange(40).split(size):
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X[part]), y[part]).backward()
                optimizer.step()
            path.epoch()
    case = (net, X, y, path.trajectory)
    fit(case, reference="gradient", window="epoch")
    if size < 40:
        with pytest.warns(PathNoiseWarning, match="differ as steps on a part of the rows do"):
            fit(case, reference="gradient", window=1)
    else:
        np.testing.assert_allclose(fit(case, reference="gradient", window=1).coef_, DECAY)


# --- undivided losses and the noise of rows ------------------------------------------------------


def shuffled(weight, named=True, lr=1e-4, decay=0.0, n_epochs=25, m=3):
    """Six batches of eight in steps of m, their losses times ``weight``."""
    X, y = rows(48)
    net = new_net()
    optimizer = SGD(net.parameters(), lr=lr, weight_decay=decay)
    order = torch.Generator().manual_seed(1)
    with record(net, optimizer) as path:
        for _ in range(n_epochs):
            for step in chunks(torch.randperm(48, generator=order), 8, m):
                optimizer.zero_grad()
                for part in step:
                    path.batch(part if named else len(part), accumulate=True, weight=weight)
                    (weight * nn.functional.mse_loss(net(X[part]), y[part])).backward()
                optimizer.step()
            path.epoch()
    return net, X, y, path.trajectory


def test_the_column_of_batches_of_known_size_goes_with_the_square_of_the_factor():
    """Also where the rows of the batches are not known, and their noise is that expected."""
    from sklearn_implicitreg.adapters import Data, Options, adapt
    from sklearn_implicitreg.trajectory.minibatch import gradient_and_column
    from sklearn_implicitreg.trajectory.references import Gradient

    for named in (True, False):
        columns = []
        for weight in (1 / 3, 1.0):
            net, X, y, path = shuffled(weight, named, lr=1e-7 / weight, n_epochs=2)
            whole = adapt(net, Data(X, y), Options(loss="mse", params="all"))
            window = path.windows("epoch")[0]
            columns.append(gradient_and_column(whole, window, Gradient())[1])
        for name, undivided in columns[1].items():
            torch.testing.assert_close(undivided, 9 * columns[0][name], rtol=1e-3, atol=1e-4)


def test_the_criterion_does_not_depend_on_how_losses_are_divided():
    """The same iterates: losses undivided, half the step and twice the decay."""
    scores = []
    for weight, lr, decay in ((0.5, 0.1, 0.05), (1.0, 0.05, 0.1)):
        net, X, y, path = shuffled(weight, lr=lr, decay=decay, n_epochs=8, m=2)
        search = ImplicitRegularizationCV(
            net, families=["l2", "power"], mode="trajectory", trajectory=path, window="epoch",
            loss="mse", params="all",
        ).fit(X, y)  # fmt: skip
        scores.append(search.cv_results_["mean_test_score"])
        said = "on 2 times L" in " ".join(str(search.summary()).split())
        assert said == (weight == 1.0)
    np.testing.assert_allclose(*scores, rtol=1e-9)


# --- batches that a loop leaves out ---------------------------------------------------------------


LEFT_OUT = {(1, 1), (2, 0), (4, 2), (6, 0), (7, 1), (8, 0), (8, 2)}  # batch of a step


def with_left_out(order, *, size=7, left_out=LEFT_OUT, weight=1 / 3, loss=None, joint=False):
    """A loop over three batches for a step, of which some get no backward pass."""
    X, y = rows(63)
    net = new_net()
    optimizer = SGD(net.parameters(), lr=0.02, weight_decay=DECAY)
    loss = nn.MSELoss() if loss is None else loss
    with record(net, optimizer) as path:
        for k, step in enumerate([*torch.arange(63).split(size)] * 3):
            optimizer.zero_grad(set_to_none=bool(k % 2))
            losses = []
            for i, part in enumerate(step.chunk(3)):
                if order == "before":
                    path.batch(part, accumulate=True, weight=weight)
                if (k, i) in left_out:
                    if order == "after, also those left out":
                        path.batch(part, accumulate=True, weight=weight)
                    continue
                losses.append(loss(net(X[part]), y[part]) / 3)
                if not joint:
                    losses.pop().backward()
                if order != "before":
                    path.batch(part, accumulate=True, weight=weight)
            if losses:
                sum(losses).backward()
            optimizer.step()
    return net, X, y, path.trajectory


class TestABatchWithoutABackwardPass:
    """Named for accumulation, and then left out by the loop."""

    @pytest.mark.parametrize("order", ["before", "after", "after, also those left out"])
    def test_is_no_part_of_the_step(self, order):
        case = with_left_out(order)
        np.testing.assert_allclose(fit(case).coef_, DECAY, rtol=1e-9)
        sizes = [step.batch_size for step in case[3].steps[:3]]
        assert sizes == [7, 4, 4]

    def test_leaves_the_batches_of_a_first_step_unknown(self):
        """Named before its passes, and one left out, or after them?"""
        case = with_left_out("before", left_out={(0, 2)})
        assert [k for k, step in enumerate(case[3].steps) if step.rows is None] == [0]

    def test_leaves_the_batches_of_a_step_without_factors_unknown(self):
        case = with_left_out("before", weight=None)
        known = [k for k, step in enumerate(case[3].steps) if step.rows is not None]
        assert known == [k for k in range(27) if k not in {k for k, _ in LEFT_OUT}]

    def test_is_not_known_where_one_pass_serves_all(self):
        case = with_left_out("before", left_out=(), joint=True)
        np.testing.assert_allclose(fit(case).coef_, DECAY, rtol=1e-9)
        case = with_left_out("before", left_out=(), joint=True, weight=None)
        np.testing.assert_allclose(fit(case).coef_, DECAY, rtol=1e-9)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("stale", ["zero", "of another loss"])
def test_a_second_batch_is_noticed_beside_a_tensor_that_no_pass_reaches(order, stale):
    X, y = rows(48)
    net = new_net()
    net.scale = nn.Parameter(torch.ones(1).double())  # the smallest; it gets no new gradient
    optimizer = SGD(net.parameters(), lr=0.02)
    (net.scale * nn.functional.mse_loss(net(X), y)).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    if stale != "zero":
        net.scale.grad += 0.3
    body = [p for name, p in net.named_parameters() if name != "scale"]
    with record(net, optimizer) as path, pytest.raises(ValueError, match="accumulate=True"):
        net.scale.requires_grad_(stale != "zero")
        for k, part in enumerate(torch.arange(48).split(8)):
            for what in order.split():
                if what == "zero" and k % 2 == 0:
                    for p in body:
                        p.grad.zero_()
                elif what == "name":
                    path.batch(part)
                elif what == "backward":
                    (nn.functional.mse_loss(net(X[part]), y[part]) / 2).backward()
            if k % 2:
                optimizer.step()


@pytest.mark.parametrize("m", [3, 6, 7, 10, 49])
def test_factors_that_sum_to_one_are_one(m):
    step = Step(0.1, parts=((2, 1 / m),) * m)
    assert step.loss_factor(SimpleNamespace(trained_sum=False)) == 1.0
    assert replace(step, parts=((2, 1.01 / m),) * m).loss_factor(
        SimpleNamespace(trained_sum=False)
    ) == pytest.approx(1.01, rel=1e-12)


def test_sums_over_batches_of_many_sizes_where_a_tensor_rested():
    """The steps of a tensor have their own sizes, not those of the first steps of the window."""
    X, y = rows(48)
    net = new_net()
    optimizer = SGD(net.parameters(), lr=2e-3, weight_decay=DECAY)
    loss = nn.MSELoss(reduction="sum")
    with record(net, optimizer) as path:
        for k, part in enumerate([*torch.arange(48).split([3, 9, 5, 12, 4, 15])] * 3):
            net[2].requires_grad_(k % 2 == 1)
            optimizer.zero_grad()
            path.batch(part)
            loss(net(X[part]), y[part]).backward()
            optimizer.step()
    (window,) = path.trajectory.windows(18)
    alone = replace(window, of="2.weight")
    steps = [one for one in path.trajectory.windows(None) if "2.weight" not in one.steps[0].skipped]
    wanted = sum(one.mean("applied")["2.weight"] / one.steps[0].batch_size for one in steps)
    problem = SimpleNamespace(trained_sum=True, trained_factor=1.0, masses=None)
    found = alone.mean_gradient("applied", problem)["2.weight"]
    assert torch.allclose(found, wanted / len(steps), rtol=1e-12)
