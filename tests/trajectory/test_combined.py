"""Several optimizers, frozen layers, accumulated batches and moving tensors in one recording."""

from __future__ import annotations

import pytest
import torch
from emulated_device import There, emulated, there
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.trajectory import Trajectory, record
from sklearn_implicitreg.trajectory.references import at_batches

DECAY = 0.03
N_ROUNDS, N_EPOCHS = 8, 2
GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(40, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.sin(X[:, :1]) + 0.3 * torch.randn(40, 1, generator=GENERATOR, dtype=torch.float64)


class Net(nn.Module):
    """Its scale is a buffer that the loop changes between the steps."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Linear(3, 4), nn.Linear(4, 4)
        self.last = nn.Linear(4, 1)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x):
        hidden = torch.tanh(self.first(x)) * self.scale
        return self.last(torch.tanh(self.middle(hidden)))


def pair_of(net):
    """The first optimizer has two layers, the second one, with decays of the same size."""
    both = [*net.first.parameters(), *net.middle.parameters()]
    first = SGD(both, lr=0.1, momentum=0.5, weight_decay=DECAY)
    return first, AdamW(net.last.parameters(), lr=0.02, weight_decay=DECAY)


def trained(net=None, *, sizes=(7, 3), weight=0.5, said=None, moving=False, turns=2, **how):
    """The second optimizer steps in every second round, the middle layer is frozen in three."""
    torch.manual_seed(0)
    net = Net().double() if net is None else net
    optimizers = pair_of(net)
    like = next(net.parameters())

    def here(rows):
        found = [t[rows].to(like.dtype) for t in (X, Y)]
        return [There(t) for t in found] if isinstance(like.data, There) else found

    with record(net, list(optimizers), **how) as recorder:
        for _ in range(N_EPOCHS):
            for k in range(N_ROUNDS):
                net.middle.requires_grad_(k not in (2, 3, 5))
                net.zero_grad()
                for rows in torch.randperm(len(X))[: sum(sizes)].split(list(sizes)):
                    word = weight if said is None else said
                    recorder.batch(rows.numpy(), accumulate=True, weight=word)
                    inputs, targets = here(rows)
                    (mse_loss(net(inputs), targets) * weight).backward()
                optimizers[0].step()
                if k % turns == turns - 1:
                    optimizers[1].step()
                if moving:
                    net.scale.mul_(0.97).add_(0.01 * net.first.bias.detach())
            recorder.epoch()
    net.middle.requires_grad_(True)
    return net, recorder.trajectory


def fitted(net, trajectory, reference, window=None, **how):
    own = {"loss": "mse", "params": "all", "family": "weight_decay", **how}
    est = ImplicitRegularizationEstimator(
        net, mode="trajectory", trajectory=trajectory, reference=reference, window=window, **own
    )
    return est.fit(X, Y)


@pytest.mark.parametrize("reference", ["batch", "applied"])
@pytest.mark.parametrize("window", [None, "epoch"])
@pytest.mark.parametrize("moving", [False, True])
def test_decay(reference, window, moving, tmp_path):
    net, trajectory = trained(moving=moving)
    assert fitted(net, trajectory, reference, window).coef_[0] == pytest.approx(DECAY, rel=1e-9)
    trajectory.save(tmp_path / "run")
    loaded = Trajectory.load(tmp_path / "run")
    assert fitted(net, loaded, reference, window).coef_[0] == pytest.approx(DECAY, rel=1e-9)


def test_equations_are_of_the_tensors_that_a_round_updated():
    net, trajectory = trained()
    n = {"first": 16, "middle": 20, "last": 5}
    for k, step in enumerate(trajectory.steps):
        own = {name.split(".")[0] for name in step.skipped}
        middle = {"middle"} if k % N_ROUNDS in (2, 3, 5) else set()
        assert own == middle | (set() if k % 2 else {"last"})
        assert [size for size, _ in step.parts] == [7, 3]
    held = [
        sum(n.values()) - sum(n[p] for p in {name.split(".")[0] for name in s.skipped})
        for s in trajectory.steps
    ]
    assert fitted(net, trajectory, "batch").n_equations_ == sum(held)


@pytest.mark.parametrize("params", [r"^last\.", r"^middle\."])
@pytest.mark.parametrize("window", [None, "epoch"])
def test_tensors_that_some_rounds_updated(params, window):
    net, trajectory = trained(moving=True)
    est = fitted(net, trajectory, "batch", window, params=params)
    assert est.coef_[0] == pytest.approx(DECAY, rel=1e-9)


def test_a_column_with_a_kink_is_of_the_own_steps():
    net, trajectory = trained(moving=True)
    est = fitted(net, trajectory, "batch", "epoch", family="l1+weight_decay")
    assert est.coef_ == pytest.approx([0.0, DECAY], abs=1e-9)


@pytest.mark.parametrize("every", [2, 3, 8])
def test_marks_apart(every):
    """What was applied and given loses no step."""
    net, trajectory = trained(moving=True, every=every, gradients=True)
    found = fitted(net, trajectory, "applied", "epoch").coef_[0]
    each = fitted(*trained(moving=True), "applied", "epoch").coef_[0]
    assert found == pytest.approx(each, rel=1e-6)


def test_batches_of_a_stretch_are_evaluated_at_its_mean_weights():
    """Also where only one of its steps updated a tensor."""
    net, trajectory = trained(every=2)
    window = trajectory.windows(None)[2]  # the middle layer is frozen in the second round
    problem = adapt(net, Data(X, Y), Options(loss="mse", params="all"))
    alone = window.batches(problem)
    net.load_state_dict({**net.state_dict(), **window.mean("visited")})
    for (own, _), found in zip(alone, at_batches(problem, window, alone), strict=True):
        net.zero_grad()
        mse_loss(net(X[own.steps[0].rows]), Y[own.steps[0].rows]).backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(found.value[name], p.grad)


@pytest.mark.parametrize("every", [1, 2])
def test_wrong_factors_are_noticed(every):
    net, trajectory = trained(weight=1.0, said=0.5, every=every)
    with pytest.raises(ValueError, match="undivided losses .weight=1."):
        fitted(net, trajectory, "batch" if every == 1 else "gradient", params=r"^first\.")


def test_right_factors_are_not_doubted_where_some_steps_skip_a_tensor():
    for every in (1, 4):
        net, trajectory = trained(every=every)
        fitted(net, trajectory, "gradient", "epoch")


@pytest.mark.parametrize("reference", ["applied", "gradient"])
def test_reduced_recording(reference):
    given = {"data": (X, Y), "loss": "mse", "params": "all", "reference": reference}
    found = []
    for how in ({"every": N_ROUNDS, "gradients": True}, {"families": ["weight_decay"], **given}):
        net, trajectory = trained(moving=True, **how)
        est = fitted(net, trajectory, reference, "epoch")
        found.append([*est.coef_, est.r2_])
    assert found[1] == pytest.approx(found[0], rel=1e-8)


def test_joined_recordings():
    net, first = trained(moving=True)
    _, second = trained(net, moving=True)
    both = Trajectory.join([first, second])
    assert both.n_steps == 32
    assert fitted(net, both, "batch").coef_[0] == pytest.approx(DECAY, rel=1e-9)
    assert fitted(net, both[5:25], "batch").coef_[0] == pytest.approx(DECAY, rel=1e-9)


@pytest.mark.parametrize("float64", [True, False])
def test_on_a_device(float64):
    dtype = torch.float64 if float64 else torch.float32
    with emulated(float64=float64):
        torch.manual_seed(1)
        net = there(Net().to(dtype))
        net, trajectory = trained(net, moving=True)
        assert set(trajectory.others) == {"scale"}
        assert isinstance(trajectory.others["scale"], There)
        how = {} if float64 else {"dtype": "float64", "device": "cpu"}
        est = fitted(net, trajectory, "batch", "epoch", **how)
    assert est.coef_[0] == pytest.approx(DECAY, rel=1e-9 if float64 else 1e-3)
