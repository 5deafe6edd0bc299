"""What moves while a trajectory is recorded and is in no recorded optimizer."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrizations, spectral_norm
from torch.optim import SGD, AdamW

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import Trajectory, record

DECAY = 0.03
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(48, 4, generator=GENERATOR, dtype=torch.float64)
Y = torch.tanh(X.sum(1, keepdim=True)) + 0.2 * torch.randn(
    48, 1, generator=GENERATOR, dtype=torch.float64
)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 1)
        self.extra()

    def extra(self):
        """State of its own."""

    def between(self):
        """Between the gradient and the step."""

    def after(self):
        """After the step."""

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Spectral(Base):
    def extra(self):
        self.a = parametrizations.spectral_norm(self.a)


class OldSpectral(Base):
    def extra(self):
        self.a = spectral_norm(self.a)


class Attribute(Base):
    """A tensor that is no buffer, replaced in every forward pass of the training."""

    def extra(self):
        self.center = torch.zeros(3, dtype=torch.float64)

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        if self.training:
            self.center = 0.7 * self.center + 0.3 * hidden.detach().mean(0)
        return self.b(hidden - self.center)


class Counter(Base):
    """A number of Python that a layer is scaled by."""

    def extra(self):
        self.n_steps = 0

    def after(self):
        self.n_steps += 1

    def forward(self, x):
        return super().forward(x) / (1 + 0.2 * self.n_steps)


class Queue(Base):
    """Rows that are replaced in turn, and where the next goes."""

    def extra(self):
        self.register_buffer("queue", torch.ones(6, 3, dtype=torch.float64))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def after(self):
        row = torch.tanh(self.a(X[:1])).detach()[0]
        self.queue[int(self.place)] = row
        self.place.add_(1).remainder_(6)

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        return self.b(hidden) + 0.3 * (hidden @ self.queue.T).mean(1, keepdim=True)


class Target(Base):
    """A copy that is set to the net at every fifth step."""

    def extra(self):
        self.target, self.n = copy.deepcopy(self.a).requires_grad_(False), 0

    def after(self):
        self.n += 1
        if self.n % 5 == 0:
            self.target.load_state_dict(self.a.state_dict())

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)) - 0.5 * torch.tanh(self.target(x)))


class Hidden(Target):
    """A teacher in a list, which keeps it out of the parameters, moved by ``.data``."""

    def extra(self):
        self.list = [copy.deepcopy(self.a).double().requires_grad_(False)]

    @property
    def target(self):
        return self.list[0]

    def after(self):
        for slow, fast in zip(self.target.parameters(), self.a.parameters(), strict=True):
            slow.data = 0.8 * slow.data + 0.2 * fast.data


class Between(Target):
    """A teacher that follows before the step is made."""

    def between(self):
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.a.parameters(), strict=True):
                slow.lerp_(fast, 0.3)

    def after(self):
        pass


class Trained(Base):
    """A layer that another optimizer trains, which steps first."""

    def between(self):
        if not hasattr(self, "other"):
            object.__setattr__(self, "other", AdamW(self.b.parameters(), lr=0.05))
        self.other.step()


KINDS = [
    Spectral,
    OldSpectral,
    Attribute,
    Counter,
    Queue,
    Target,
    Hidden,
    Between,
    Trained,
]


def trained(kind, n_epochs=4, size=12, net=None, **how):
    """Net and trajectory of plain descent with a decay on the first layer."""
    torch.manual_seed(0)
    net = kind().double() if net is None else net
    own = [p for n, p in net.named_parameters() if n.startswith("a.")]
    optimizer = SGD(own, lr=0.1, weight_decay=DECAY)
    with record(net, optimizer, **how) as recorder:
        run(net, optimizer, recorder, n_epochs, size)
    return net, recorder.trajectory


def run(net, optimizer, recorder, n_epochs=4, size=12):
    for _ in range(n_epochs):
        for rows in torch.randperm(len(X)).split(size):
            recorder.batch(rows)
            net.zero_grad()
            mse_loss(net(X[rows]), Y[rows]).backward()
            net.between()
            optimizer.step()
            net.after()
        recorder.epoch()


def fitted(net, trajectory, reference="batch", **how):
    own = {"window": "epoch", "loss": "mse", "params": r"^a\.", "family": "weight_decay", **how}
    est = ImplicitRegularizationEstimator(
        net, mode="trajectory", trajectory=trajectory, reference=reference, **own
    )
    return est.fit(X, Y)


@pytest.mark.filterwarnings("ignore:Attribute computes another function")
@pytest.mark.parametrize("kind", KINDS)
def test_decay_beside_what_moves(kind):
    net, trajectory = trained(kind)
    assert fitted(net, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)


@pytest.mark.parametrize("kind", [Spectral, Queue, Between, Counter])
def test_without_the_values_of_each_step_the_decay_is_another(kind):
    """The mechanism: at the last values the same batches have other gradients."""
    net, trajectory = trained(kind)
    est = fitted(
        net,
        Trajectory(
            trajectory.marks[:1]
            + tuple(bare_of_others(mark, trajectory) for mark in trajectory.marks[1:]),
            trajectory.steps,
            "SGD",
            trajectory.settings,
        ),
    )
    assert abs(est.coef_[0] - DECAY) > 1e-4


def bare_of_others(mark, trajectory):
    kept = {name: t for name, t in mark.visited.items() if name not in trajectory.others}
    return type(mark)(mark.step, mark.epoch, mark.weights, mark.applied, mark.consumed, kept)


def test_values_are_those_at_the_gradient():
    """Known from a plain loop: what the teacher was when each gradient was taken."""
    torch.manual_seed(0)
    net = Between().double()
    seen = []
    own = [p for n, p in net.named_parameters() if n.startswith("a.")]
    optimizer = SGD(own, lr=0.1)
    net.a.weight.register_hook(lambda g: seen.append(net.target.weight.clone()))
    with record(net, optimizer) as recorder:
        run(net, optimizer, recorder, n_epochs=1)
    for window, value in zip(recorder.trajectory.windows(None), seen, strict=True):
        torch.testing.assert_close(window.mean("visited")["target.weight"], value)
    whole = recorder.trajectory.windows("epoch")[0].mean("visited")["target.weight"]
    torch.testing.assert_close(whole, torch.stack(seen).mean(0))


def test_statistics_of_a_net_that_uses_its_own():
    """BatchNorm in eval state, whose statistics something else updates."""
    torch.manual_seed(0)
    net = Base().double()
    net.norm = nn.BatchNorm1d(3).double()
    net.norm.requires_grad_(False)
    net.forward_hidden = None
    net.a = nn.Sequential(net.a, net.norm)
    net.eval()
    net.after = lambda: net.norm.running_mean.add_(0.05)
    path = trained(None, net=net)[1]
    net.after = None
    found = fitted(net, path, module_mode="eval", params=r"^a\.0").coef_[0]
    assert found == pytest.approx(DECAY, rel=1e-9)


@pytest.mark.filterwarnings("ignore:Attribute computes another function")
@pytest.mark.parametrize("kind", [Spectral, Attribute, Queue])
def test_gradients_within_a_closure(kind):
    """As skorch takes them: what a forward pass changes changes within the step."""
    torch.manual_seed(0)
    net = kind().double()
    optimizer = SGD([p for n, p in net.named_parameters() if n.startswith("a.")], 0.1, 0, 0, DECAY)
    with record(net, optimizer) as recorder:
        for rows in torch.randperm(len(X)).split(12):
            recorder.batch(rows)

            def closure(rows=rows):
                net.zero_grad()
                loss = mse_loss(net(X[rows]), Y[rows])
                loss.backward()
                return loss

            optimizer.step(closure)
            net.after()
    found = fitted(net, recorder.trajectory, window=None).coef_[0]
    assert found == pytest.approx(DECAY, rel=1e-9)


@pytest.mark.parametrize("kind", [Spectral, Target, Between])
@pytest.mark.parametrize("every", [2, 4])
def test_mean_over_steps_between_marks(kind, every):
    """The mean of what moves loses no step."""
    means = []
    for own in (1, every):
        _, trajectory = trained(kind, every=own)
        means.append([w.mean("visited") for w in trajectory.windows("epoch")])
    for a, b in zip(*means, strict=True):
        assert a.keys() == b.keys()
        for name, tensor in a.items():
            torch.testing.assert_close(b[name], tensor, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", [Spectral, Target, Hidden])
def test_files_and_folders_keep_what_moves(kind, tmp_path):
    net, trajectory = trained(kind)
    trajectory.save(tmp_path / "path.pt")
    copies = [Trajectory.load(tmp_path / "path.pt"), pickle.loads(pickle.dumps(trajectory))]
    copies.append(pickle.loads(pickle.dumps(copies[0])))
    copies.append(trained(kind, directory=tmp_path / "marks")[1])
    copies.append(trained(kind, memory_limit=1)[1])
    for own in copies:
        assert fitted(net, own).coef_[0] == pytest.approx(DECAY, rel=1e-9)


@pytest.mark.parametrize("kind", [Spectral, Target, Counter])
def test_parts_and_joined_parts(kind):
    net, trajectory = trained(kind)
    assert fitted(net, trajectory[8:]).coef_[0] == pytest.approx(DECAY, rel=1e-9)
    own = [p for n, p in net.named_parameters() if n.startswith("a.")]
    optimizer = SGD(own, lr=0.1, weight_decay=DECAY)
    with record(net, optimizer) as recorder:
        run(net, optimizer, recorder)
    joined = Trajectory.join([trajectory, recorder.trajectory])
    assert fitted(net, joined).coef_[0] == pytest.approx(DECAY, rel=1e-9)


@pytest.mark.parametrize("kind", [Target, Between, Trained])
def test_reduced_recording(kind):
    found = []
    for families in (None, ["weight_decay"]):
        how = {} if families is None else {"data": (X, Y), "loss": "mse", "params": r"^a\."}
        net, trajectory = trained(kind, families=families, **how)
        found.append(fitted(net, trajectory, "gradient").coef_)
    assert found[1] == pytest.approx(found[0], rel=1e-9)


class Grown(Base):
    """A tensor whose shape changes."""

    def extra(self):
        self.log = torch.ones(1, dtype=torch.float64)

    def after(self):
        self.log = torch.cat([self.log, self.log[-1:] * 0.8])

    def forward(self, x):
        return super().forward(x) * self.log.mean()


class Kept(Base):
    """What the last forward pass left behind, of as many rows as the batch had."""

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        self.last = hidden.detach()
        return self.b(hidden)


def test_what_was_not_kept_is_named():
    net, trajectory = trained(Grown)
    for reference in ("batch", "gradient", "flow"):
        with pytest.raises(ValueError, match="Expected .* got one in which log changed while rec"):
            fitted(net, trajectory, reference)
    assert fitted(net, trajectory, "applied").coef_[0] == pytest.approx(DECAY, rel=1e-9)
    net, trajectory = trained(Kept, size=10)
    assert trajectory.others["last"] is None
    assert fitted(net, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)


class Wide(Target):
    """A frozen layer that is larger than the limit."""

    def extra(self):
        super().extra()
        self.wide = nn.Linear(4, 2**16).requires_grad_(False)

    def after(self):
        self.wide.weight.mul_(0.98)

    def forward(self, x):
        return super().forward(x) + self.wide(x).mean(1, keepdim=True)


def test_large_frozen_tensors_are_noticed():
    net, trajectory = trained(Wide, n_epochs=2, memory_limit=1000)
    with pytest.raises(ValueError, match=r"wide\.weight changed while recording"):
        fitted(net, trajectory)
    assert fitted(net, trajectory, "applied").coef_[0] == pytest.approx(DECAY, rel=1e-9)
    net, trajectory = trained(Wide, n_epochs=2)
    assert fitted(net, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)


def test_one_entry_of_a_large_tensor():
    """Too few to be seen at once: at the end they are, and named."""
    net = Wide().double()
    net.after = lambda: net.wide.weight[1, 1].add_(0.5)
    trajectory = trained(None, n_epochs=2, net=net)[1]
    net.after = None
    with pytest.raises(ValueError, match=r"wide\.weight changed while recording"):
        fitted(net, trajectory)


def test_flow_of_a_part():
    """The rest is frozen: the flow is that of the same net in which it cannot move."""
    found = []
    for frozen in (False, True):
        torch.manual_seed(0)
        net = Base().double()
        net.b.requires_grad_(not frozen)
        optimizer = SGD(net.a.parameters(), lr=0.01, weight_decay=DECAY)
        with record(net, optimizer) as recorder:
            for _ in range(6):
                net.zero_grad()
                mse_loss(net(X), Y).backward()
                optimizer.step()
        found.append(fitted(net, recorder.trajectory, "flow", params="all", window=None))
    assert found[0].coef_ == pytest.approx(found[1].coef_, rel=1e-12)
    assert found[0].coef_[0] == pytest.approx(DECAY, rel=0.2)
    assert "In no recorded optimizer, and so without equations: b.weight, b.bias" in str(
        found[0].summary()
    )


@pytest.mark.parametrize("reference", ["applied", "gradient", "batch", "flow"])
def test_optimizer_of_a_part(reference):
    net, trajectory = trained(Base)
    est = fitted(net, trajectory, reference, params="all")
    assert est.n_equations_ == 4 * 15
    if reference in ("applied", "batch"):
        assert est.coef_[0] == pytest.approx(DECAY, rel=1e-9)
        assert est.score(X, Y) == pytest.approx(1.0)


def test_model_is_as_it_was_after_recording_and_fit():
    net, trajectory = trained(Spectral)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    fitted(net, trajectory)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(not p._post_accumulate_grad_hooks for p in net.parameters())


Pair = namedtuple("Pair", "scale shape")


@dataclass
class Settings:
    inner: dict = field(default_factory=lambda: {"scales": [1.0, 1.0]})


@dataclass(frozen=True)
class Fixed:
    scale: float = 1.0


def one():
    return torch.ones((), dtype=torch.float64)


# What holds a number that the net is scaled by, how it is read, and how it is set to another.
HOLDERS = {
    "numpy": (lambda: np.float64(1), lambda h: h, lambda h, x: np.float64(x)),
    "numpy-float32": (lambda: np.float32(1), float, lambda h, x: np.float32(x)),
    "dict": (lambda: {"s": 1.0}, lambda h: h["s"], lambda h, x: h.update(s=x)),
    "nested": (lambda: [{"s": (1.0,)}], lambda h: h[0]["s"][0], lambda h, x: h[0].update(s=(x,))),
    "list": (lambda: [1.0, 2], lambda h: h[0], lambda h, x: h.__setitem__(0, x)),
    "tuple": (lambda: (3, (1.0, 2)), lambda h: h[1][0], lambda h, x: (3, (x, 2))),
    "named-tuple": (lambda: Pair(1.0, (2, 2)), lambda h: h.scale, lambda h, x: Pair(x, (2, 2))),
    "deque": (lambda: deque([0.0, 1.0], 2), lambda h: h[-1], lambda h, x: h.append(x)),
    "ordered": (lambda: OrderedDict(s=one()), lambda h: h["s"], lambda h, x: h.update(s=x * one())),
    "tensors": (
        lambda: deque([one()], 1),
        lambda h: h[0],
        lambda h, x: h.append(x * one()),
    ),
    "namespace": (lambda: SimpleNamespace(s=1.0), lambda h: h.s, lambda h, x: setattr(h, "s", x)),
    "dataclass": (
        Settings,
        lambda h: h.inner["scales"][1],
        lambda h, x: h.inner["scales"].__setitem__(1, x),
    ),
    "frozen-dataclass": (Fixed, lambda h: h.scale, lambda h, x: Fixed(x)),
    "array": (lambda: np.ones(3), lambda h: float(h[1]), lambda h, x: np.full(3, x)),
    "array-in-place": (
        lambda: {"s": np.ones((2, 1))},
        lambda h: float(h["s"][1, 0]),
        lambda h, x: h["s"].__setitem__((1, 0), x),
    ),
    "integer-or-float": (lambda: 1, lambda h: h, lambda h, x: 2 if x < 0.8 else x),
}


class Holding(Base):
    """A number, wherever it is kept."""

    kind = ""

    def extra(self):
        self.n = 0
        self.held = HOLDERS[self.kind][0]()

    def after(self):
        self.n += 1
        new = HOLDERS[self.kind][2](self.held, 1 / (1 + 0.1 * self.n))
        self.held = self.held if new is None else new

    def forward(self, x):
        return super().forward(x) * HOLDERS[self.kind][1](self.held)


@pytest.mark.parametrize("kind", HOLDERS)
def test_numbers_wherever_they_are_kept(kind):
    torch.manual_seed(0)
    net = type(kind, (Holding,), {"kind": kind})().double()
    before = copy.deepcopy(net.held)
    _, trajectory = trained(None, net=net)
    assert not np.array_equal(HOLDERS[kind][1](before), HOLDERS[kind][1](net.held))
    own = copy.deepcopy(net.held)
    assert fitted(net, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)
    assert type(net.held) is type(own)
    assert HOLDERS[kind][1](net.held) == HOLDERS[kind][1](own)


def test_what_is_constant_is_not_recorded():
    """Shapes, sizes and complex tensors that stand still; a module that knows its parent."""
    torch.manual_seed(0)
    net = Base().double()
    net.register_buffer("turns", torch.polar(torch.ones(3), torch.arange(3.0)))
    net.sizes, net.table = (3, 4), {"a": 1, "b": [2.0]}
    net.a.parent = [net]
    _, trajectory = trained(None, net=net)
    assert not trajectory.others
    assert fitted(net, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)


def test_complex_tensors_that_move_are_named():
    net = Base().double()
    net.register_buffer("turns", torch.polar(torch.ones(3), torch.arange(3.0)).to(torch.cdouble))
    net.after = lambda: net.turns.mul_(1.01)
    net.b.register_forward_pre_hook(lambda m, inputs: (inputs[0] * net.turns.real,))
    _, trajectory = trained(None, net=net, n_epochs=1)
    assert trajectory.others == {"turns": None}


class Replaced(Target):
    """A copy that is made again instead of being written to."""

    def after(self):
        self.n += 1
        if self.n % 3 == 0:
            self.target = copy.deepcopy(self.a).requires_grad_(False)


class ReplacedInList(Hidden):
    def after(self):
        self.list[0] = copy.deepcopy(self.a).requires_grad_(False)


@pytest.mark.parametrize("kind", [Replaced, ReplacedInList])
def test_copies_that_are_made_again(kind):
    net, trajectory = trained(kind)
    assert fitted(net, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)


class Added(Base):
    """A tensor that the first steps did not have."""

    def after(self):
        self.factor = getattr(self, "factor", 1.0) * one() * 0.95

    def forward(self, x):
        return super().forward(x) * getattr(self, "factor", 1.0)


class Log(Base):
    """A list that grows and is read by nothing."""

    def extra(self):
        self.log = []

    def after(self):
        self.log.append(len(self.log) / 2)


def test_what_the_first_step_did_not_have():
    net, trajectory = trained(Added)
    with pytest.raises(ValueError, match=r"in which factor changed while recording"):
        fitted(net, trajectory)
    net, trajectory = trained(Log)
    assert fitted(net, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)


@pytest.mark.parametrize("kind", [Spectral, Counter, Base])
def test_batches_of_one_step_at_several_values(kind):
    """A value that moves between them stands for none of their gradients."""
    torch.manual_seed(0)
    net = kind().double()
    optimizer = SGD(net.a.parameters(), lr=0.1, weight_decay=DECAY)
    with record(net, optimizer) as recorder:
        for rows in torch.randperm(len(X)).split(12):
            net.zero_grad()
            for part in rows.split(6):
                recorder.batch(part, accumulate=True)
                (mse_loss(net(X[part]), Y[part]) / 2).backward()
            optimizer.step()
            net.after()
    if kind is Spectral:
        with pytest.raises(ValueError, match="changed between the batches of one step"):
            fitted(net, recorder.trajectory, window=None)
        found = fitted(net, recorder.trajectory, "applied", window=None)
    else:
        found = fitted(net, recorder.trajectory, window=None)
    assert found.coef_[0] == pytest.approx(DECAY, rel=1e-9)


class Switch(Base):
    """Which of two ways the net takes: 0 and 1, or one of three whose mean is whole."""

    values = (0, 1)

    def extra(self):
        self.c, self.which = nn.Linear(4, 3), self.values[0]
        self.n = 0

    def after(self):
        self.n += 1
        self.which = self.values[self.n % len(self.values)]

    def forward(self, x):
        return self.b(torch.tanh(self.a(x) if self.which else self.c(x).sin() + self.a(x)))


class Signs(Switch):
    values = (-1, 0, 1)


class Flags(Switch):
    values = (True, False)


class Counts(Switch):
    def extra(self):
        super().extra()
        del self.which
        self.register_buffer("which", torch.zeros((), dtype=torch.long))

    def after(self):
        self.which.add_(1).remainder_(2)


@pytest.mark.parametrize("kind", [Switch, Signs, Flags, Counts])
@pytest.mark.parametrize("every", [1, 3, 6])
def test_switches_have_no_mean(kind, every):
    """Six steps in an epoch."""
    net, trajectory = trained(kind, size=8, every=every)
    with pytest.raises(ValueError, match="Expected whole numbers .* in which which changes, whose"):
        fitted(net, trajectory, "gradient")
    if every == 1:
        assert fitted(net, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)
    else:
        with pytest.raises(ValueError, match="Expected whole numbers"):
            fitted(net, trajectory, "flow", window=None)


def test_switches_of_a_reduced_recording():
    how = {"data": (X, Y), "loss": "mse", "params": r"^a\.", "families": ["weight_decay"]}
    net, trajectory = trained(Switch, **how)
    with pytest.raises(ValueError, match="which changed while recording"):
        fitted(net, trajectory, "gradient")


def test_switches_that_stand_still_in_a_window():
    """One way in each epoch: as if each epoch were of a net that has one way only."""
    torch.manual_seed(0)
    net = Switch().double()
    own = [p for n, p in net.named_parameters() if n.startswith("a.")]
    net.after = lambda: None
    optimizer = SGD(own, lr=0.1, weight_decay=DECAY)
    with record(net, optimizer) as recorder:
        for which in (0, 1, 1, 0):
            net.which = which
            run(net, optimizer, recorder, n_epochs=1)
    path = fitted(net, recorder.trajectory, "gradient").coef_path_
    for row, which, start in ((0, 0, 0), (1, 1, 4), (3, 0, 12)):
        net.which = which
        part = recorder.trajectory[start : start + 5]
        alone = fitted(net, replace(part, others={}), "gradient")
        assert path[row, 0] == pytest.approx(alone.coef_[0], rel=1e-9)


class Ensemble(nn.Module):
    """Three nets in one set of tensors, called by a net that has none."""

    def __init__(self, frozen, first):
        super().__init__()
        nets = [nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in range(3)]
        stacked, _ = torch.func.stack_module_state(nets)
        parts = {"base": copy.deepcopy(nets[0]).to("meta").requires_grad_(not frozen)}
        named = {name.replace(".", "_"): t.detach() for name, t in stacked.items()}
        parts["a"] = nn.ParameterDict({name: nn.Parameter(t) for name, t in named.items()})
        for name in sorted(parts, reverse=first):
            setattr(self, name, parts[name])
        self.names = {name.replace(".", "_"): name for name in stacked}

    def forward(self, x):
        def one(params):
            return torch.func.functional_call(self.base, params, (x,))

        return torch.func.vmap(one)({self.names[n]: p for n, p in self.a.items()}).mean(0)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_nets_without_tensors_of_their_own(frozen, first):
    torch.manual_seed(0)
    net = Ensemble(frozen, first).double()
    net.between = net.after = lambda: None
    optimizer = SGD(net.a.parameters(), lr=0.1, weight_decay=DECAY)
    with record(net, optimizer) as recorder:
        run(net, optimizer, recorder)
    net.between = net.after = None
    found = fitted(net, recorder.trajectory)
    assert found.coef_[0] == pytest.approx(DECAY, rel=1e-9)
    assert found.n_equations_ == 4 * 3 * 19
