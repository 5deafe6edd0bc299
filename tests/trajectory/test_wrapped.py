"""Recordings through wrappers of nets and optimizers, and what they know of parameter groups."""

import copy
import pickle
import tempfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed._composable import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, AdamW

from sklearn_implicitreg import FrozenModel, ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import WeightDecay
from sklearn_implicitreg.trajectory import ContinueTraining, Trajectory, record

DECAY = 0.02
X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double()
Y = X.sum(1, keepdim=True).sin()


def new_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


class Scaling(nn.Module):
    """Wrapper that is another function than the net in it."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(2 * x) / 3


class Deep(nn.Module):
    """Net under a name of two parts."""

    def __init__(self, inner):
        super().__init__()
        self.own = nn.ModuleDict({"net": inner})

    def forward(self, x):
        return self.own["net"](x)


def compiled(net):
    return torch.compile(net, backend="eager")


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": compiled,
    "both": lambda net: compiled(nn.DataParallel(net)),
    "inside out": lambda net: nn.DataParallel(compiled(net)),
    "deep": Deep,
}


def trained(model, optimizer, n_epochs=2, forward=None, **how):
    """Trajectory of a model whose rows are named."""
    forward = model if forward is None else forward
    with record(model, optimizer, **how) as recorder:
        for _ in range(n_epochs):
            for rows in torch.randperm(30).split(10):
                recorder.batch(rows)
                optimizer.zero_grad()
                (forward(X[rows]) - Y[rows]).square().mean().backward()
                optimizer.step()
            recorder.epoch()
    return recorder.trajectory


def fitted(model, trajectory, **how):
    how = {"family": "weight_decay", "reference": "batch", "params": "all", "loss": "mse"} | how
    return ImplicitRegularizationEstimator(
        model, mode="trajectory", trajectory=trajectory, **how
    ).fit(X, Y)


@pytest.mark.parametrize("read_inner", [True, False], ids=["read by the net", "by the wrapper"])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_one_of_wrapper_and_net_reads_the_recording_of_the_other(kind, read_inner):
    net = new_net()
    wrapper = WRAPPERS[kind](net)
    optimizer = SGD(net.parameters(), lr=0.05, weight_decay=DECAY)
    trajectory = trained(wrapper if read_inner else net, optimizer, forward=wrapper)
    before = copy.deepcopy(net.state_dict())
    est = fitted(net if read_inner else wrapper, trajectory)
    assert est.coef_[0] == pytest.approx(DECAY, rel=1e-9)
    assert est.verdict_ == "supported"
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_a_wrapper_that_changes_the_function_is_read_as_that_function():
    net = new_net()
    wrapper = Scaling(net)
    trajectory = trained(wrapper, SGD(net.parameters(), lr=0.05, weight_decay=DECAY))
    assert fitted(wrapper, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)
    assert fitted(net, trajectory).verdict_ != "supported"  # it was not trained on these rows


def test_distributed_training_on_one_process():
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1
    )
    try:
        net = new_net()
        wrapper = nn.parallel.DistributedDataParallel(net)
        trajectory = trained(wrapper, AdamW(net.parameters(), lr=0.01, weight_decay=DECAY))
        for model in (net, wrapper):
            assert fitted(model, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)
    finally:
        torch.distributed.destroy_process_group()


def test_epochs_of_a_sharded_module_with_hooks_of_its_own_and_checkpoints():
    def doubled(module, inputs, output):
        return 2 * output

    def estimated(net):
        net[0].register_forward_hook(doubled)
        trajectory = trained(net, SGD(net.parameters(), lr=0.1, weight_decay=DECAY))
        how = {"reference": "gradient", "window": "epoch"}
        est = fitted(net, trajectory, **how)
        return [*est.coef_, est.r2_]

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1
    )
    try:
        net = new_net()
        checkpoint(net[0])
        mesh = init_device_mesh("cpu", (1,))
        assert estimated(fully_shard(net, mesh=mesh)) == pytest.approx(estimated(new_net()))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("way", ["disk", "file", "pickle", "slice"])
def test_other_names_wherever_the_marks_are(way, tmp_path):
    net = new_net()
    how = {"directory": tmp_path / "marks"} if way == "disk" else {}
    trajectory = trained(Deep(net), SGD(net.parameters(), lr=0.05, weight_decay=DECAY), **how)
    if way == "file":
        trajectory.save(tmp_path / "saved")
        trajectory = Trajectory.load(tmp_path / "saved")
    est = ImplicitRegularizationEstimator(net, trajectory=trajectory, loss="mse").fit(X, Y)
    assert [name.count(".") for name in trajectory.names] == [3, 3, 3, 3]
    if way == "slice":
        trajectory = trajectory[2:]
    if way == "pickle":
        trajectory = pickle.loads(pickle.dumps(est._evidence))
        assert trajectory.names[0] == "0.weight"
    assert fitted(net, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)


def test_buffers_and_skipped_tensors_take_the_other_names_too():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    wrapper = Deep(net)
    net[2].bias.requires_grad_(True)
    optimizer = SGD(net.parameters(), lr=0.05, weight_decay=DECAY)
    with record(wrapper, optimizer) as recorder:
        for step, rows in enumerate(torch.randperm(30).split(10)):
            net[0].requires_grad_(step != 1)
            recorder.batch(rows)
            optimizer.zero_grad()
            (wrapper(X[rows]) - Y[rows]).square().mean().backward()
            optimizer.step()
    net[0].requires_grad_(True)
    how = {"module_mode": "train", "batch_size": 10}
    own, inner = (fitted(model, recorder.trajectory, **how) for model in (wrapper, net))
    assert inner.coef_[0] == pytest.approx(DECAY, rel=1e-9)
    assert inner.coef_[0] == pytest.approx(own.coef_[0], rel=1e-12)


def test_another_net_is_still_an_error():
    net = new_net()
    trajectory = trained(net, SGD(net.parameters(), lr=0.05))
    for other in (Deep(nn.Linear(3, 1).double()), nn.Sequential(nn.Linear(3, 4).double(), net)):
        with pytest.raises(ValueError, match="Expected a trajectory of this model"):
            fitted(other, trajectory)


@pytest.mark.parametrize("kind", ["DataParallel", "both"])
def test_a_wrapped_net_is_analyzed_as_the_net(kind):
    net = new_net()
    wrapper = WRAPPERS[kind](net)
    how = {"loss": "mse", "params": "all"}
    own, other = (
        ImplicitRegularizationEstimator(model, **how).fit(X, Y)
        for model in (net, FrozenModel(wrapper))
    )
    assert own.coef_[0] == other.coef_[0]
    assert own.penalty_(wrapper) == own.penalty_(net)


def groups_of(net):
    return [
        {"params": net[0].parameters(), "weight_decay": DECAY, "name": "first"},
        {"params": net[2].parameters(), "weight_decay": 5 * DECAY},
    ]


@pytest.mark.parametrize("way", ["recorded", "file", "wrapper", "slice"])
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_coefficient_per_parameter_group(kind, way, tmp_path):
    net = new_net()
    trajectory = trained(Deep(net) if way == "wrapper" else net, kind(groups_of(net), lr=0.01))
    if way == "file":
        trajectory.save(tmp_path / "saved")
        trajectory = Trajectory.load(tmp_path / "saved")
    if way == "slice":
        trajectory = trajectory[1:]
    est = fitted(net, trajectory, group_by="param_group")
    assert est.term_names_ == ["weight_decay[first]", "weight_decay[1]"]
    np.testing.assert_allclose(est.coef_, [DECAY, 5 * DECAY], rtol=1e-8)


def test_groups_of_several_optimizers_are_numbered_on():
    net = new_net()
    optimizers = [
        SGD(net[0].parameters(), lr=0.01, weight_decay=DECAY),
        SGD(net[2].parameters(), lr=0.01, weight_decay=5 * DECAY),
    ]
    with record(net, optimizers) as recorder:
        for rows in torch.randperm(30).split(10):
            recorder.batch(rows)
            net.zero_grad()
            (net(X[rows]) - Y[rows]).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
    est = fitted(net, recorder.trajectory, group_by="param_group")
    assert est.term_names_ == ["weight_decay[0]", "weight_decay[1]"]
    np.testing.assert_allclose(est.coef_, [DECAY, 5 * DECAY], rtol=1e-9)


def test_groups_of_r_factors_and_of_an_endpoint():
    net = new_net()
    family = WeightDecay().per("param_group")
    how = {"families": [family], "data": (X, Y), "loss": "mse", "params": "all"}
    optimizer = SGD(groups_of(net), lr=0.01)
    reduced = trained(net, optimizer, **how)
    kept = fitted(net, reduced, family=family, reference="gradient", window="epoch")
    assert kept.term_names_[:2] == ["weight_decay[first]", "weight_decay[1]"]
    trajectory = trained(net, optimizer)
    est = ImplicitRegularizationEstimator(
        net, trajectory=trajectory, group_by="param_group", loss="mse"
    ).fit(X, Y)
    assert est.term_names_ == ["l2[first]", "l2[1]"]


def test_groups_need_a_recorded_optimizer():
    net = new_net()
    frozen = trained(net, SGD(net[0].parameters(), lr=0.01))
    with pytest.raises(ValueError, match="or its recorded trajectory"):
        ImplicitRegularizationEstimator(net, group_by="param_group", loss="mse").fit(X, Y)
    est = ImplicitRegularizationEstimator(
        net, trajectory=frozen, group_by="param_group", loss="mse"
    )
    with pytest.raises(ValueError, match="'2.weight', which is in none"):
        est.fit(X, Y)


class AcceleratedOptimizer(torch.optim.Optimizer):
    """As Accelerate's: one of torch by its class, with the optimizer that steps inside."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self):
        self.optimizer.step()


class Lookahead(torch.optim.Optimizer):
    """Steps of its own, which those of the optimizer inside do not show."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()


def test_an_accelerated_optimizer():
    net = new_net()
    optimizer = AcceleratedOptimizer(AdamW(net.parameters(), lr=0.01, weight_decay=DECAY))
    trajectory = trained(net, optimizer)
    assert trajectory.optimizer == "AdamW"
    assert fitted(net, trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)


def test_an_optimizer_with_steps_of_its_own_is_none_of_its_inside():
    net = new_net()
    with pytest.raises(ValueError, match="give `update_rule=`"):
        record(net, Lookahead(SGD(net.parameters(), lr=0.01)))


def test_a_wrapped_net_trains_on_with_an_accelerated_optimizer():
    net = new_net()
    optimizer = AcceleratedOptimizer(SGD(net.parameters(), lr=0.05, weight_decay=DECAY))
    before = copy.deepcopy(net.state_dict())

    def train_epoch(model, own, recorder):
        for rows in torch.randperm(30).split(10):
            recorder.batch(rows)
            own.zero_grad()
            (model(X[rows]) - Y[rows]).square().mean().backward()
            own.step()

    probe = ContinueTraining(2, train_epoch=train_epoch, optimizer=optimizer)
    est = fitted(nn.DataParallel(net), probe)
    assert est.coef_[0] == pytest.approx(DECAY, rel=1e-9)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.filterwarnings("default")
def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    net = new_net()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=10)
    optimizer = AdamW(net.parameters(), lr=0.01, weight_decay=DECAY)
    model, prepared, loader = accelerator.prepare(net, optimizer, loader)
    with record(model, prepared, data=(X, Y)) as recorder:
        for batch in loader:
            recorder.batch(batch)
            prepared.zero_grad()
            accelerator.backward((model(batch[0]) - batch[1]).square().mean())
            prepared.step()
    assert fitted(net, recorder.trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)


@pytest.mark.filterwarnings("default")
def test_fabric():
    fabric = pytest.importorskip("lightning").Fabric(accelerator="cpu", devices=1)
    net = new_net()
    optimizer = SGD(net.parameters(), lr=0.05, weight_decay=DECAY)
    model, prepared = fabric.setup(net, optimizer)
    with record(model, prepared) as recorder:
        for rows in torch.arange(30).split(10):
            recorder.batch(rows)
            prepared.zero_grad()
            fabric.backward((model(X[rows]) - Y[rows]).square().mean())
            prepared.step()
    for read in (net, model):
        assert fitted(read, recorder.trajectory).coef_[0] == pytest.approx(DECAY, rel=1e-9)
