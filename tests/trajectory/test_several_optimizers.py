"""One recording of several optimizers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from skorch import NeuralNetRegressor
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import (
    ContinueTraining,
    ImplicitRegularizationRecorder,
    Trajectory,
    record,
)

DECAY = 0.02
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(48, 4, generator=GENERATOR, dtype=torch.float64)
Y = (
    X[:, :1]
    - torch.sin(X[:, 1:2])
    + 0.2 * torch.randn(48, 1, generator=GENERATOR, dtype=torch.float64)
)


def module():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()


class Signed(Optimizer):
    """A momentum's sign and a decay apart: one that torch has not."""

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(0.9).add_(p.grad)
                state["grad"] = p.grad.clone()
                p.sub_(group["lr"] * (state["momentum"].sign() + group["weight_decay"] * p))


def signed_rule(moved, group, before, after):
    return after["grad"] + moved / group["lr"] - after["momentum"].sign()


def batches(n_epochs=4, size=12):
    for _ in range(n_epochs):
        yield from torch.randperm(len(X)).split(size)


def at_once(net, optimizers, recorder, n_epochs=4):
    """One gradient, then all step."""
    for i, rows in enumerate(batches(n_epochs)):
        recorder.batch(rows)
        net.zero_grad()
        mse_loss(net(X[rows]), Y[rows]).backward()
        for optimizer in optimizers:
            optimizer.step()
        if i % 4 == 3:
            recorder.epoch()


def reverse(net, optimizers, recorder):
    at_once(net, optimizers[::-1], recorder)


def every_second(net, optimizers, recorder):
    """The second steps in every second round."""
    for i, rows in enumerate(batches()):
        recorder.batch(rows)
        net.zero_grad()
        mse_loss(net(X[rows]), Y[rows]).backward()
        optimizers[0].step()
        if i % 2:
            optimizers[1].step()
        if i % 4 == 3:
            recorder.epoch()


def in_turn(net, optimizers, recorder):
    """Each on a gradient of its own, after the other has stepped."""
    for i, rows in enumerate(batches()):
        recorder.batch(rows)
        for optimizer in optimizers:
            net.zero_grad()
            mse_loss(net(X[rows]), Y[rows]).backward()
            optimizer.step()
        if i % 4 == 3:
            recorder.epoch()


def closure_of(net, rows):
    """Takes the gradients of a batch within a step."""

    def closure():
        net.zero_grad()
        loss = mse_loss(net(X[rows]), Y[rows])
        loss.backward()
        return loss

    return closure


def closures(net, optimizers, recorder):
    """Each takes its gradients within its step, as in skorch."""
    for i, rows in enumerate(batches()):
        recorder.batch(rows)
        closure = closure_of(net, rows)
        for optimizer in optimizers:
            optimizer.step(closure)
        if i % 4 == 3:
            recorder.epoch()


def first_closure(net, optimizers, recorder):
    """The second uses the gradients that the first took."""
    for i, rows in enumerate(batches()):
        recorder.batch(rows)
        closure = closure_of(net, rows)
        optimizers[0].step(closure)
        optimizers[1].step()
        if i % 4 == 3:
            recorder.epoch()


def alternating(net, optimizers, recorder):
    """Each on every second batch."""
    for i, rows in enumerate(batches()):
        recorder.batch(rows)
        net.zero_grad()
        mse_loss(net(X[rows]), Y[rows]).backward()
        optimizers[i % 2].step()
        if i % 4 == 3:
            recorder.epoch()


LOOPS = [at_once, reverse, every_second, in_turn, alternating, closures, first_closure]
PAIRS = {
    "sgd+sgd": lambda net: (
        SGD(net[0].parameters(), lr=0.1, weight_decay=DECAY),
        SGD(net[2].parameters(), lr=0.02, weight_decay=DECAY),
    ),
    "adamw+momentum": lambda net: (
        AdamW(net[0].parameters(), lr=0.02, weight_decay=DECAY),
        SGD(net[2].parameters(), lr=0.02, weight_decay=DECAY, momentum=0.8, nesterov=True),
    ),
    "adam+rmsprop": lambda net: (
        Adam(net[0].parameters(), lr=0.02, weight_decay=DECAY),
        RMSprop([net[2].weight, net[2].bias], lr=0.01, weight_decay=DECAY),
    ),
}


def recorded(pair="sgd+sgd", loop=at_once, **how):
    net = module()
    optimizers = PAIRS[pair](net) if isinstance(pair, str) else pair(net)
    with record(net, list(optimizers), **how) as recorder:
        loop(net, optimizers, recorder)
    return net, recorder.trajectory


def fitted(net, trajectory, reference="batch", **how):
    own = {"window": "epoch", "loss": "mse", "params": "all", "family": "weight_decay", **how}
    est = ImplicitRegularizationEstimator(
        net, mode="trajectory", trajectory=trajectory, reference=reference, **own
    )
    return est.fit(X, Y)


@pytest.mark.parametrize("reference", ["batch", "applied"])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("pair", PAIRS)
def test_decay_of_two_optimizers(pair, loop, reference):
    net, trajectory = recorded(pair, loop)
    est = fitted(net, trajectory, reference)
    assert est.coef_[0] == pytest.approx(DECAY, rel=1e-8)
    assert est.n_equations_ == 4 * 19
    assert est.r2_ == pytest.approx(1.0)


@pytest.mark.parametrize("loop", [every_second, in_turn, alternating, closures])
def test_windows_of_single_rounds(loop):
    """A window in which a tensor made no step gives no equation of it."""
    net, trajectory = recorded(loop=loop)
    est = fitted(net, trajectory, window=None)
    assert est.coef_[0] == pytest.approx(DECAY, rel=1e-8)
    moved = [15 if "2.weight" in step.skipped else 4 for step in trajectory.steps]
    both = [19 if not step.skipped else n for step, n in zip(trajectory.steps, moved, strict=True)]
    assert est.n_equations_ == sum(both)
    alone = fitted(net, trajectory, window=None, params=r"^2\.")
    assert alone.coef_[0] == pytest.approx(DECAY, rel=1e-8)


@pytest.mark.parametrize("loop", [at_once, every_second, in_turn, closures])
@pytest.mark.parametrize("every", [2, 3])
def test_marks_apart(loop, every):
    """Sums lose no step, whoever steps in which round."""
    means = []
    for own in (1, every):
        _, trajectory = recorded("adamw+momentum", loop, every=own, gradients=True)
        windows = trajectory.windows("epoch")
        sums = [w.mean(what) for w in windows for what in ("applied", "consumed")]
        visited = [replace(w, of=n).mean("visited")[n] for w in windows for n in trajectory.names]
        means.append([*sums, dict(enumerate(visited))])
    for a, b in zip(*means, strict=True):
        for name, tensor in a.items():
            torch.testing.assert_close(b[name], tensor, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loop", [every_second, in_turn])
@pytest.mark.parametrize("window", ["epoch", None])
def test_columns_with_kinks_are_of_the_own_steps(loop, window):
    """Where a tensor made no step its sum of weights is no zero weight."""
    net, trajectory = recorded(loop=loop)
    est = fitted(net, trajectory, window=window, family="l1+weight_decay")
    assert est.coef_ == pytest.approx([0.0, DECAY], abs=1e-9)


def test_one_optimizer_per_layer_with_decays_of_their_own():
    decays = (0.05, 0.01)

    def each(net):
        return [
            SGD(net[i].parameters(), lr=0.05, weight_decay=decay)
            for i, decay in zip((0, 2), decays, strict=True)
        ]

    net, trajectory = recorded(each)
    assert fitted(net, trajectory, group_by="layer").coef_ == pytest.approx(decays, rel=1e-8)


def test_steps_within_the_backward_pass():
    """One optimizer per tensor, which steps as soon as its gradient is there."""
    net = module()
    own = {p: SGD([p], lr=0.1, weight_decay=DECAY) for p in net.parameters()}

    def step(p):
        own[p].step()
        own[p].zero_grad()

    for early in (True, False):
        hooks = []
        if early:
            hooks = [p.register_post_accumulate_grad_hook(step) for p in own]
        with record(net, list(own.values())) as recorder:
            if not early:
                hooks = [p.register_post_accumulate_grad_hook(step) for p in own]
            for rows in batches():
                recorder.batch(rows)
                mse_loss(net(X[rows]), Y[rows]).backward()
        for hook in hooks:
            hook.remove()
        assert recorder.trajectory.n_steps == 16
        est = fitted(net, recorder.trajectory, window=None)
        assert est.coef_[0] == pytest.approx(DECAY, rel=1e-8)


def test_rule_for_one_of_two():
    def pair(net):
        matrices, rest = [net[0].weight, net[2].weight], [net[0].bias, net[2].bias]
        return Signed(matrices, 0.01, DECAY), AdamW(rest, lr=0.01, weight_decay=DECAY)

    net, trajectory = recorded(pair, update_rule=[signed_rule, None])
    assert trajectory.optimizer == "Signed + AdamW"
    assert fitted(net, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-8)


def test_names_and_settings():
    assert recorded()[1].optimizer == "SGD"
    _, trajectory = recorded("adamw+momentum")
    assert (trajectory.optimizer, trajectory.settings) == ("AdamW + SGD", {})
    assert "16 steps of AdamW + SGD" in repr(trajectory)


def test_summaries_of_two_optimizers():
    net, trajectory = recorded("adamw+momentum")
    text = str(fitted(net, trajectory, "gradient").summary())
    assert "minibatch: no theory for several optimizers." in text
    with pytest.raises(ValueError, match="Expected SGD without momentum .* got AdamW . SGD"):
        fitted(net, trajectory, "flow")
    with pytest.raises(ValueError, match="one step size .* got steps of '2.weight' other than lr="):
        fitted(*recorded(), "flow")


def test_flow_of_two_optimizers_of_one_step_size():
    def pair(net):
        return [SGD(net[i].parameters(), lr=0.005, weight_decay=DECAY) for i in (0, 2)]

    def whole(net):
        return [SGD(net.parameters(), lr=0.005, weight_decay=DECAY)]

    found = [fitted(*recorded(own), "flow").coef_[0] for own in (pair, whole)]
    assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize("loop", [at_once, every_second, alternating])
@pytest.mark.parametrize("reference", ["applied", "gradient"])
def test_reduced_recording(loop, reference, tmp_path):
    found = []
    data = {"data": (X, Y), "loss": "mse", "params": "all", "reference": reference}
    for how in (
        {"every": 4, "gradients": True},
        {"families": ["weight_decay"], **data},
    ):
        net, trajectory = recorded(loop=loop, **how)
        trajectory.save(tmp_path / "path.pt")
        for own in (trajectory, Trajectory.load(tmp_path / "path.pt")):
            est = fitted(net, own, reference)
            found.append([*est.coef_, est.r2_])
    assert found[1:] == [pytest.approx(found[0], rel=1e-8)] * 3


def test_file_keeps_who_stepped(tmp_path):
    net, trajectory = recorded(loop=every_second)
    trajectory.save(tmp_path / "path.pt")
    loaded = Trajectory.load(tmp_path / "path.pt")
    assert [s.skipped for s in loaded.steps] == [s.skipped for s in trajectory.steps]
    assert fitted(net, loaded).coef_[0] == pytest.approx(DECAY, rel=1e-8)


def test_learning_rate_of_zero_is_no_step_of_its_tensors():
    net = module()
    first, second = PAIRS["sgd+sgd"](net)
    with record(net, [first, second]) as recorder:
        second.param_groups[0]["lr"] = 0.0
        at_once(net, (first, second), recorder, n_epochs=1)
        second.param_groups[0]["lr"] = 0.02
        at_once(net, (first, second), recorder, n_epochs=3)
    trajectory = recorder.trajectory
    assert [bool(step.skipped) for step in trajectory.steps] == [True] * 4 + [False] * 12
    for reference in ("batch", "applied"):
        assert fitted(net, trajectory, reference).coef_[0] == pytest.approx(DECAY, rel=1e-8)


def test_step_that_raised_is_taken_back():
    net = module()
    first, second = PAIRS["sgd+sgd"](net)

    def fails(optimizer, args, kwargs):
        raise RuntimeError("no step")

    with record(net, [first, second]) as recorder:
        for i, rows in enumerate(batches(2)):
            recorder.batch(rows)
            net.zero_grad()
            mse_loss(net(X[rows]), Y[rows]).backward()
            first.step()
            hook = second.register_step_pre_hook(fails) if i == 3 else None
            if hook is None:
                second.step()
            else:
                with pytest.raises(RuntimeError, match="no step"):
                    second.step()
                hook.remove()
    steps = recorder.trajectory.steps
    assert [i for i, step in enumerate(steps) if step.skipped] == [3]
    est = fitted(net, recorder.trajectory, window=None)
    assert est.coef_[0] == pytest.approx(DECAY, rel=1e-8)


@pytest.mark.parametrize("given", ["optimizers", "factory"])
def test_training_on_with_two_optimizers(given):
    net = module()
    made = list(PAIRS["adamw+momentum"](net))

    def factory(parameters):
        own = list(parameters)
        return [AdamW(own[:2], 0.02, weight_decay=DECAY), SGD(own[2:], 0.02, weight_decay=DECAY)]

    def train_epoch(model, optimizers, recorder):
        for rows in torch.randperm(len(X)).split(12):
            recorder.batch(rows)
            model.zero_grad()
            mse_loss(model(X[rows]), Y[rows]).backward()
            for optimizer in optimizers:
                optimizer.step()

    probe = ContinueTraining(2, train_epoch, made if given == "optimizers" else factory)
    assert fitted(net, probe).coef_[0] == pytest.approx(DECAY, rel=1e-8)


class TwoOptimizers(NeuralNetRegressor):
    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_ = SGD(self.module_[0].parameters(), lr=0.05, weight_decay=DECAY)
        self.second_ = AdamW(self.module_[2].parameters(), lr=0.02, weight_decay=DECAY)
        return self


def test_skorch_net_with_two_optimizers():
    recorder = ImplicitRegularizationRecorder()
    net = TwoOptimizers(
        module(), max_epochs=3, batch_size=12, train_split=None, verbose=0, callbacks=[recorder]
    )
    net.fit(X.numpy(), Y.numpy())
    trajectory = recorder.trajectory_
    assert trajectory.optimizer == "SGD + AdamW"
    how = {"mode": "trajectory", "trajectory": trajectory, "reference": "batch"}
    est = ImplicitRegularizationEstimator(net, family="weight_decay", window="epoch", **how)
    assert est.fit(X.numpy(), Y.numpy()).coef_[0] == pytest.approx(DECAY, rel=1e-8)
    assert est.n_equations_ == 3 * 19
