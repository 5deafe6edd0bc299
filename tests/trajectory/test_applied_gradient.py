"""The gradient that a step applied: against ``.grad`` and the decay that the test knows."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import (
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
)

from sklearn_implicitreg.trajectory import record

DECAY = 0.02
OPTIMIZERS = {
    "sgd": (SGD, {"lr": 0.01}),
    "momentum": (SGD, {"lr": 0.005, "momentum": 0.9}),
    "dampening": (SGD, {"lr": 0.01, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": (SGD, {"lr": 0.005, "momentum": 0.9, "nesterov": True}),
    "adam": (Adam, {"lr": 1e-3}),
    "amsgrad": (Adam, {"lr": 1e-3, "amsgrad": True}),
    "adam-decoupled": (Adam, {"lr": 1e-3, "decoupled_weight_decay": True}),
    "adamw": (AdamW, {"lr": 1e-3}),
    "adamw-amsgrad": (AdamW, {"lr": 1e-3, "amsgrad": True}),
    "nadam": (NAdam, {"lr": 1e-3}),
    "radam": (RAdam, {"lr": 1e-3}),
    "adamax": (Adamax, {"lr": 1e-3}),
    "rmsprop": (RMSprop, {"lr": 1e-3}),
    "rmsprop-centered-momentum": (RMSprop, {"lr": 1e-3, "centered": True, "momentum": 0.5}),
    "adagrad": (Adagrad, {"lr": 0.01, "lr_decay": 0.01}),
}
SGD_KINDS = ("sgd", "momentum", "dampening", "nesterov")
OF_ALL = pytest.mark.parametrize("name", OPTIMIZERS)
EVERY = pytest.mark.parametrize("every", [1, 7], ids=["each-step", "every-7"])


def net_and_data(dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    X = torch.randn(60, 6, dtype=dtype)
    return net, X, torch.sin(X[:, :1]) + 0.1 * torch.randn(60, 1, dtype=dtype)


def loss_of(net, X, y, rows=slice(None)):
    return (net(X[rows]) - y[rows]).square().mean()


def train(net, X, y, optimizer, *, n_steps=21, every=1, after_backward=None, after_step=None):
    """Path of a run in which the loop itself sums gradient + DECAY * weights as the truth."""
    truth = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in net.named_parameters()}
    with record(net, optimizer, every=every, gradients=True) as recorder:
        for step in range(n_steps):
            optimizer.zero_grad()
            rows = torch.arange(12) + 12 * (step % 5)
            loss_of(net, X, y, rows).backward()
            if after_backward is not None:
                after_backward()
            for name, p in net.named_parameters():
                truth[name] += p.grad.double() + DECAY * p.detach().double()
            optimizer.step()
            if after_step is not None:
                after_step(step)
    return recorder.trajectory, truth


def window_of(trajectory):
    (window,) = trajectory.windows(trajectory.n_steps)
    return window


def stacked(params):
    return torch.cat([t.double().flatten() for t in params.values()])


def error(trajectory, truth):
    """Relative error of the sum of the applied gradients."""
    wanted = stacked(truth)
    found = stacked(window_of(trajectory).mean("applied")) * trajectory.n_steps
    return float((found - wanted).norm() / wanted.norm())


def decay_found(trajectory):
    """Coefficient of the weights in what was applied beyond what the optimizer was given."""
    window = window_of(trajectory)
    column = stacked(window.mean("visited"))
    target = stacked(window.mean("applied")) - stacked(window.mean("consumed"))
    return float(column @ target / (column @ column)), float(column.norm())


@OF_ALL
@EVERY
def test_applied_is_gradient_plus_decay(name, every):
    kind, settings = OPTIMIZERS[name]
    net, X, y = net_and_data()
    optimizer = kind(net.parameters(), weight_decay=DECAY, **settings)
    trajectory, truth = train(net, X, y, optimizer, every=every)
    assert error(trajectory, truth) < 1e-10
    assert decay_found(trajectory)[0] == pytest.approx(DECAY, rel=1e-9)


@OF_ALL
def test_sums_of_stretches_are_those_of_steps(name):
    kind, settings = OPTIMIZERS[name]
    net, X, y = net_and_data()
    paths = []
    for every in (1, 5):
        own = copy.deepcopy(net)
        optimizer = kind(own.parameters(), weight_decay=DECAY, **settings)
        paths.append(train(own, X, y, optimizer, every=every, n_steps=20)[0])
    each, few = paths
    assert len(few.marks) == 5
    for mark in few.marks[1:]:
        for what in ("weights", "applied", "consumed", "visited"):
            wanted = stacked(getattr(each.marks[mark.step], what))
            found = stacked(getattr(mark, what))
            assert float((found - wanted).norm()) < 1e-11 * float(wanted.norm()), what


@pytest.mark.parametrize("name", SGD_KINDS)
@EVERY
def test_float32_of_sgd_kinds(name, every):
    kind, settings = OPTIMIZERS[name]
    net, X, y = net_and_data(torch.float32)
    optimizer = kind(net.parameters(), weight_decay=DECAY, **settings)
    trajectory, _ = train(net, X, y, optimizer, every=every, n_steps=210)
    found, size = decay_found(trajectory)
    assert found == pytest.approx(DECAY, rel=1e-4)
    assert abs(found - DECAY) * size < trajectory.rounding(210)


@OF_ALL
@EVERY
def test_float32_is_within_the_rounding_that_is_told(name, every):
    kind, settings = OPTIMIZERS[name]
    net, X, y = net_and_data(torch.float32)
    optimizer = kind(net.parameters(), weight_decay=DECAY, **settings)
    trajectory, _ = train(net, X, y, optimizer, every=every, n_steps=70)
    found, size = decay_found(trajectory)
    bound = trajectory.rounding(70) / size
    print(f"{name}: {found / DECAY - 1:.1e} of at most {bound / DECAY:.1e}")
    assert abs(found - DECAY) < bound < 0.2 * DECAY


def test_rounding_of_plain_sgd_is_that_of_the_weights_over_lr():
    net, X, y = net_and_data(torch.float32)
    trajectory, _ = train(net, X, y, SGD(net.parameters(), lr=1e-4), n_steps=1)
    weights = stacked(trajectory.marks[0].weights)
    expected = float(weights.norm()) * 2**-24 / 1e-4
    assert trajectory.rounding() == pytest.approx(expected, rel=0.02)


@EVERY
@pytest.mark.parametrize("name", [*SGD_KINDS, "adam", "adagrad"])
def test_maximizing_follows_minus_its_gradient(name, every):
    kind, settings = OPTIMIZERS[name]
    net, X, y = net_and_data()
    optimizer = kind(net.parameters(), maximize=True, **settings)
    trajectory, _ = train(net, X, y, optimizer, every=every)
    window = window_of(trajectory)
    given = stacked(window.mean("consumed"))
    assert float((stacked(window.mean("applied")) - given).norm() / given.norm()) < 1e-10


@EVERY
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW], ids=lambda kind: kind.__name__)
def test_groups_keep_their_own_settings(kind, every):
    net, X, y = net_and_data()
    groups = [
        {"params": net[0].parameters(), "lr": 0.01, "weight_decay": 0.1},
        {"params": net[2].parameters(), "lr": 0.002, "weight_decay": 0.0},
    ]
    trajectory, _ = train(net, X, y, kind(groups, lr=1.0), every=every)
    window = window_of(trajectory)
    applied, given, visited = (window.mean(what) for what in ("applied", "consumed", "visited"))
    for tensor, mean in visited.items():
        decay = 0.1 if tensor.startswith("0.") else 0.0
        assert torch.allclose(applied[tensor] - given[tensor], decay * mean, atol=1e-11)


@EVERY
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, total_steps=30, cycle_momentum=True),
    ],
    ids=["steps", "cosine", "one-cycle-with-momentum"],
)
def test_schedules(name, every, schedule):
    kind, settings = OPTIMIZERS[name]
    if name in ("sgd", "rmsprop"):
        settings = {**settings, "momentum": 0.5}
    net, X, y = net_and_data()
    optimizer = kind(net.parameters(), weight_decay=DECAY, **settings)
    scheduler = schedule(optimizer)
    trajectory, truth = train(
        net, X, y, optimizer, every=every, after_step=lambda _: scheduler.step()
    )
    assert error(trajectory, truth) < 1e-10
    assert trajectory.steps[0].lr != trajectory.steps[-1].lr


@EVERY
@pytest.mark.parametrize("variant", ["foreach", "fused"])
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, Adagrad], ids=lambda kind: kind.__name__)
def test_variants_of_the_implementation(kind, variant, every):
    net, X, y = net_and_data()
    optimizer = kind(net.parameters(), lr=0.01, weight_decay=DECAY, **{variant: True})
    trajectory, truth = train(net, X, y, optimizer, every=every)
    assert error(trajectory, truth) < 1e-10


@EVERY
@OF_ALL
def test_decay_added_by_hand_is_found(name, every):
    kind, settings = OPTIMIZERS[name]
    net, X, y = net_and_data()
    optimizer = kind(net.parameters(), weight_decay=0.0, **settings)
    given = {n: torch.zeros_like(p) for n, p in net.named_parameters()}

    def by_hand():
        for n, p in net.named_parameters():
            given[n] += p.grad
            p.grad += DECAY * p.detach()

    trajectory, _ = train(net, X, y, optimizer, every=every, after_backward=by_hand)
    window = window_of(trajectory)
    column = stacked(window.mean("visited"))
    extra = stacked(window.mean("applied")) - stacked(given) / trajectory.n_steps
    assert float(column @ extra / (column @ column)) == pytest.approx(DECAY, rel=1e-9)
    assert decay_found(trajectory)[0] == pytest.approx(0, abs=1e-10)


@EVERY
@pytest.mark.parametrize("name", ["momentum", "adam", "adamw"])
def test_clipped_gradients_are_those_that_were_applied(name, every):
    kind, settings = OPTIMIZERS[name]
    net, X, y = net_and_data()
    optimizer = kind(net.parameters(), weight_decay=DECAY, **settings)
    trajectory, truth = train(
        net,
        X,
        y,
        optimizer,
        every=every,
        after_backward=lambda: nn.utils.clip_grad_norm_(net.parameters(), 0.01),
    )
    assert error(trajectory, truth) < 1e-10


@EVERY
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_accumulated_gradients_are_one_step(name, every):
    kind, settings = OPTIMIZERS[name]
    net, X, y = net_and_data()
    optimizer = kind(net.parameters(), weight_decay=0.0, **settings)
    given = 0
    with record(net, optimizer, every=every) as recorder:
        for step in range(28):
            (loss_of(net, X, y, slice(step, step + 10)) / 2).backward()
            recorder.batch(range(step, step + 10), accumulate=step % 2 == 1)
            if step % 2:
                given = given + stacked({n: p.grad for n, p in net.named_parameters()})
                optimizer.step()
                optimizer.zero_grad()
    found = stacked(window_of(recorder.trajectory).mean("applied")) * 14
    assert float((found - given).norm() / given.norm()) < 1e-10
    assert recorder.trajectory.n_steps == 14
    assert recorder.trajectory.steps[3].rows.tolist() == [*range(6, 16), *range(7, 17)]


@EVERY
@pytest.mark.parametrize("name", ["nesterov", "adam"])
def test_closures(name, every):
    kind, settings = OPTIMIZERS[name]
    net, X, y = net_and_data()
    optimizer = kind(net.parameters(), weight_decay=DECAY, **settings)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(net, X, y)
        loss.backward()
        return loss

    with record(net, optimizer, every=every, gradients=True) as recorder:
        for _ in range(14):
            optimizer.step(closure)
    assert decay_found(recorder.trajectory)[0] == pytest.approx(DECAY, rel=1e-9)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", ["momentum", "adamw", "adagrad"])
def test_parameters_without_a_gradient_add_nothing(name, every):
    kind, settings = OPTIMIZERS[name]
    net, X, y = net_and_data()
    extra = nn.ParameterDict({"late": nn.Parameter(torch.ones(3, dtype=torch.float64))})
    both = nn.ModuleList([net, extra])
    optimizer = kind(both.parameters(), weight_decay=DECAY, **settings)
    given = torch.zeros(3, dtype=torch.float64)
    with record(both, optimizer, every=every) as recorder:
        for step in range(9):
            optimizer.zero_grad()
            loss = loss_of(net, X, y)
            if step in (4, 5, 8):
                loss = loss + extra["late"].square().sum()
                given += (2 + DECAY) * extra["late"].detach()
            loss.backward()
            optimizer.step()
    assert torch.allclose(recorder.trajectory.marks[-1].applied["1.late"], given, rtol=1e-11)


@pytest.mark.parametrize("every", [1, 4])
def test_state_that_is_loaded_in_between(every):
    net, X, y = net_and_data()
    optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=DECAY)

    def reset(step):
        if step == 9:
            optimizer.load_state_dict(SGD(net.parameters(), 0.02, momentum=0.8).state_dict())
            optimizer.param_groups[0]["weight_decay"] = DECAY

    trajectory, truth = train(net, X, y, optimizer, every=every, n_steps=20, after_step=reset)
    assert error(trajectory, truth) < 1e-10


@pytest.mark.parametrize("edit", ["restart", "damped", "foreach", "other"])
@pytest.mark.parametrize("name", ["momentum", "nesterov", "dampening", "adam", "adamw", "radam"])
@EVERY
def test_momentum_that_is_changed_in_place(name, edit, every):
    net, X, y = net_and_data()
    kind, settings = OPTIMIZERS[name]
    optimizer = kind(net.parameters(), weight_decay=DECAY, **settings)
    own = "exp_avg" if "betas" in optimizer.defaults else "momentum_buffer"

    def change(step):
        if step not in (9, 13, 27):
            return
        buffers = [state[own] for state in optimizer.state.values()]
        if edit == "restart":
            _ = [buffer.zero_() for buffer in buffers]
        elif edit == "damped":
            _ = [buffer.mul_(0.5) for buffer in buffers]
        elif edit == "foreach":
            torch._foreach_mul_(buffers, 3.0)
        else:
            buffers[-1] += 0.1

    trajectory, _ = train(net, X, y, optimizer, every=every, n_steps=42, after_step=change)
    assert trajectory.n_dropped <= (0 if every == 1 else 7)
    window = window_of(trajectory)
    beyond = stacked(window.mean("applied")) - stacked(window.mean("consumed"))
    wanted = DECAY * stacked(window.mean("visited"))
    assert torch.allclose(beyond, wanted, rtol=0, atol=1e-11)


def test_learning_rate_in_a_tensor():
    net, X, y = net_and_data()
    optimizer = Adam(net.parameters(), lr=torch.tensor(0.01, dtype=torch.float64), foreach=False)

    def halve(step):
        optimizer.param_groups[0]["lr"].mul_(0.5 if step == 6 else 1.0)

    trajectory, truth = train(net, X, y, optimizer, every=7, after_step=halve)
    assert trajectory.steps[7].lr == 0.005
    assert trajectory.settings["lr"] == 0.005
    window = window_of(trajectory)
    assert torch.allclose(stacked(window.mean("applied")), stacked(window.mean("consumed")))


def test_lbfgs_is_refused():
    net, _, _ = net_and_data()
    with pytest.raises(ValueError, match="LBFGS, whose step holds many evaluations; analyze its"):
        record(net, LBFGS(net.parameters()))


@pytest.mark.parametrize("kind", [NAdam, RAdam], ids=lambda kind: kind.__name__)
def test_decoupled_decay_that_no_state_tells_is_refused(kind):
    net, _, _ = net_and_data()
    with pytest.raises(ValueError, match=f"{kind.__name__} with decoupled_weight_decay=True"):
        record(net, kind(net.parameters(), decoupled_weight_decay=True))


class Doubled(SGD):
    """Moves twice as far."""

    def step(self, closure=None):
        for _ in range(2):
            super().step()


@pytest.mark.parametrize("kind", [Adadelta, Doubled], ids=lambda kind: kind.__name__)
def test_unknown_optimizers_are_refused(kind):
    net, _, _ = net_and_data()
    with pytest.raises(ValueError, match=f"its own step, got {kind.__name__}; give `update_rule="):
        record(net, kind(net.parameters(), lr=0.01))


def test_subclasses_that_step_alike_are_known():
    net, X, y = net_and_data()
    own = type("Renamed", (SGD,), {})
    trajectory, truth = train(net, X, y, own(net.parameters(), lr=0.01, weight_decay=DECAY))
    assert error(trajectory, truth) < 1e-10
    assert trajectory.optimizer == "Renamed"


@EVERY
def test_rule_of_the_user(every):
    net, X, y = net_and_data()

    class Signed(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.01})

        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p -= 0.01 * p.grad.tanh()

    def rule(moved, group, before, after):
        return torch.atanh(moved / group["lr"])

    optimizer = Signed(net.parameters())
    with record(net, optimizer, every=every, update_rule=rule, gradients=True) as recorder:
        for _ in range(7):
            optimizer.zero_grad()
            loss_of(net, X, y).backward()
            optimizer.step()
    window = window_of(recorder.trajectory)
    assert torch.allclose(stacked(window.mean("applied")), stacked(window.mean("consumed")))


def test_sparse_gradients():
    torch.manual_seed(0)
    net = nn.Embedding(9, 3, sparse=True, dtype=torch.float64)
    optimizer = SGD(net.parameters(), lr=0.1)
    given = torch.zeros(9, 3, dtype=torch.float64)
    with record(net, optimizer) as recorder:
        for step in range(4):
            optimizer.zero_grad()
            net(torch.tensor([step, 2, 8])).square().sum().backward()
            given += net.weight.grad.to_dense()
            optimizer.step()
    last = recorder.trajectory.marks[-1]
    assert torch.allclose(last.applied["weight"], given)
    assert torch.allclose(last.consumed["weight"], given)
