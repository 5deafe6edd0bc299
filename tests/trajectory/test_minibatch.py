"""The column of mini-batching: against plain loops, with the scale of the optimizer's steps."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from sklearn.neural_network import MLPRegressor
from torch import nn
from torch.nn.functional import mse_loss

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import ContinueTraining, Gradient, Trajectory, record

N, SIZE = 60, 12
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True, weight_decay=0.0),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rates": lambda p: torch.optim.SGD(
        [{"params": p[:2], "lr": 0.01}, {"params": p[2:], "lr": 0.04}]
    ),
}


def trained(make, *, seed=0, n_epochs=3, n_before=2, size=6):
    """Net, data, recording, and the rows of the last epoch."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    y = X[:, :1].sin() + 0.3 * torch.randn(N, 1, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, size), nn.Tanh(), nn.Linear(size, 1)).double()
    optimizer = make(list(net.parameters()))

    def epoch(recorder=None):
        batches = torch.randperm(N, generator=generator).split(SIZE)
        for rows in batches:
            if recorder is not None:
                recorder.batch(rows)
            optimizer.zero_grad()
            mse_loss(net(X[rows]), y[rows]).backward()
            optimizer.step()
        if recorder is not None:
            recorder.epoch()
        return batches

    for _ in range(n_before):
        epoch()
    with record(net, optimizer) as recorder:
        for _ in range(n_epochs):
            batches = epoch(recorder)
    return net, X, y, recorder.trajectory, optimizer, batches


def fitted(net, X, y, trajectory, family="l2", **options):
    options = {"window": "epoch", "loss": "mse", "params": "all"} | options
    return ImplicitRegularizationEstimator(
        net, family=family, mode="trajectory", trajectory=trajectory, **options
    ).fit(X, y)


def moved_per_gradient(optimizer, net):
    """How far a step moves each entry over the first moment that it follows, by torch alone."""
    scales = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            name = next(n for n, own in net.named_parameters() if own is p)
            twin = nn.Parameter(p.detach().clone())
            known = inspect.signature(type(optimizer)).parameters
            own = {k: v for k, v in group.items() if k in known and k != "params"}
            single = type(optimizer)([twin], **own)
            single.state[twin] = {
                k: v.clone() if isinstance(v, torch.Tensor) else v
                for k, v in optimizer.state[p].items()
            }
            twin.grad = torch.ones_like(p) * 1e-7
            single.step()
            state = single.state[twin]
            mean = state.get("exp_avg", state.get("momentum_buffer"))
            mean = twin.grad if mean is None else mean
            scales[name] = (p.detach() - twin.detach()) / mean
    return scales


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scale_is_what_a_step_multiplies_by(name):
    """One more step of torch's optimizer: displacement over what it follows, up to a number."""
    net, _, _, trajectory, optimizer, _ = trained(OPTIMIZERS[name])
    scale = trajectory.marks[-1].scale
    if name == "SGD":
        assert scale == {}
        return
    assert all(not mark.scale for mark in trajectory.marks[1:5])  # epochs alone
    expected = moved_per_gradient(optimizer, net)
    ratios = torch.cat([(expected[n] / t).flatten() for n, t in scale.items()])
    # The step has changed the second moment by a thousandth, a hundredth for RMSprop.
    spread = float(ratios.std() / ratios.mean().abs())
    assert spread < (2e-2 if name == "RMSprop" else 2e-3)


@pytest.mark.parametrize("how", ["one pass", "small blocks", "sub-windows"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "rates"])
def test_column_is_that_of_a_plain_loop(name, how):
    net, X, y, trajectory, _, batches = trained(OPTIMIZERS[name])
    options = {"batch_size": 7} if how == "small blocks" else {}
    if how == "sub-windows":
        options["reference"] = Gradient(sub_window=5)  # as long as an epoch
    est = fitted(net, X, y, trajectory, **options)
    own = est._equations.places[-1].design
    window = trajectory.windows("epoch")[-1]
    bar, scale = window.mean("visited"), window.stop.scale
    leaves = {n: t.clone().requires_grad_() for n, t in bar.items()}

    def gradient(rows, graph=False):
        value = mse_loss(torch.func.functional_call(net, leaves, (X[rows],)), y[rows])
        return torch.autograd.grad(value, list(leaves.values()), create_graph=graph)

    alone = [gradient(rows) for rows in batches]
    mean = [torch.stack(own).mean(0) for own in zip(*alone, strict=True)]
    total = [torch.zeros_like(t) for t in mean]
    for rows, g in zip(batches, alone, strict=True):
        away = [
            (a - b) * (scale[n] if scale else 1) for n, a, b in zip(leaves, g, mean, strict=True)
        ]
        again = torch.autograd.grad(gradient(rows, graph=True), list(leaves.values()), away)
        total = [t + 2 * h / len(batches) for t, h in zip(total, again, strict=True)]
    k = est.term_names_.index("minibatch")
    for n, expected in zip(leaves, total, strict=True):
        found = own.columns(n)[:, k].reshape(expected.shape)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_scale_is_saved_and_goes_on(tmp_path):
    net, X, y, trajectory, *_ = trained(OPTIMIZERS["Adam"])
    trajectory.save(tmp_path / "own")
    again = Trajectory.load(tmp_path / "own")
    np.testing.assert_array_equal(
        fitted(net, X, y, again).coef_, fitted(net, X, y, trajectory).coef_
    )
    for name, tensor in again.marks[-1].scale.items():
        torch.testing.assert_close(tensor, trajectory.marks[-1].scale[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["SGD", "Adam", "rates"])
def test_scale_is_of_the_steps_that_were_made(name):
    """Whether a scheduler moves before or after the end of the epoch changes no scale."""
    found = {}
    for first in (True, False):
        net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        for index, p in enumerate(net.parameters()):
            nn.init.constant_(p, 0.1 * (index + 1))
        optimizer = OPTIMIZERS[name](list(net.parameters()))
        # The first group's rate is halved; at last all rates are 0.
        factors = [lambda k: (1, 0.5, 0)[k]] + [lambda k: (1, 1, 0)[k]] * (name == "rates")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        with record(net, optimizer) as recorder:
            for _ in range(2):
                optimizer.zero_grad()
                net(torch.tensor([[1.0, -0.5]]).double()).sum().backward()
                optimizer.step()
                if first:
                    scheduler.step()
                recorder.epoch()
                if not first:
                    scheduler.step()
        found[first] = [mark.scale for mark in recorder.trajectory.marks[1:]]
    for early, late in zip(found[True], found[False], strict=True):
        assert early.keys() == late.keys()
        assert bool(early) == (name != "SGD")
        for key, tensor in early.items():
            torch.testing.assert_close(tensor, late[key], rtol=0, atol=0)
    if name == "rates":
        assert [float(scale["2.bias"].mean()) for scale in found[True]] == [4.0, 8.0]


def test_recording_of_r_factors_has_it():
    net, X, y, trajectory, *_ = trained(OPTIMIZERS["Adam"], n_before=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        twin = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    optimizer = OPTIMIZERS["Adam"](list(twin.parameters()))
    own = {"families": ["l2"], "data": (X, y), "loss": "mse", "params": "all"}
    with record(twin, optimizer, **own) as recorder:
        for i, step in enumerate(trajectory.steps, start=1):
            recorder.batch(step.rows)
            optimizer.zero_grad()
            mse_loss(twin(X[step.rows]), y[step.rows]).backward()
            optimizer.step()
            if i % (N // SIZE) == 0:
                recorder.epoch()
    found = fitted(twin, X, y, recorder.trajectory).coef_
    np.testing.assert_allclose(found, fitted(net, X, y, trajectory).coef_, rtol=1e-8)


def test_multilayer_perceptron_of_scikit_learn():
    """Its Adam is none of torch's; a few steps later its second moments are nearly the same."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, 4))
    y = np.sin(X[:, 0]) + 0.3 * rng.standard_normal(N)
    settings = {"batch_size": SIZE, "max_iter": 30, "random_state": 0}
    model = MLPRegressor(hidden_layer_sizes=(5,), **settings)
    with pytest.warns(UserWarning, match="converged"):
        model.fit(X, y)
    probe = ContinueTraining(n_epochs=2)
    est = ImplicitRegularizationEstimator(
        model, mode="trajectory", trajectory=probe, window="epoch"
    ).fit(X, y)
    scale = est._equations.targets.windows[0].stop.scale
    second = [v.T for v in model._optimizer.vs]
    named = {t.shape: np.sqrt(v) for v in second for t in scale.values() if t.shape == v.shape}
    ratios = np.concatenate([(scale[n].numpy() * named[t.shape]).ravel() for n, t in scale.items()])
    assert len(scale) == 4
    assert ratios.std() < 0.05 * ratios.mean()


def test_scale_of_an_mlp_is_what_its_step_multiplies_by():
    """Without a first moment a step is the step size times the scale times the gradient."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, 4))
    y = np.sin(X[:, 0])
    settings = {"batch_size": N, "max_iter": 2, "beta_1": 0.0, "beta_2": 0.8, "epsilon": 0.1}
    model = MLPRegressor(hidden_layer_sizes=(5,), random_state=0, **settings)
    with pytest.warns(UserWarning, match="converged"):
        model.fit(X, y)
    est = ImplicitRegularizationEstimator(
        model, mode="trajectory", trajectory=ContinueTraining(n_epochs=3), window="epoch"
    ).fit(X, y)
    for window in est._equations.targets.windows:
        applied = window.mean("applied")
        for name, scale in window.stop.scale.items():
            moved = window.start.weights[name] - window.stop.weights[name]
            expected = model.learning_rate_init * scale * applied[name]
            torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-12)


def test_note_of_an_mlp_has_the_momentum_of_its_adam():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, 4))
    y = np.sin(X[:, 0])
    settings = {"batch_size": SIZE, "max_iter": 2, "beta_1": 0.7, "random_state": 0}
    model = MLPRegressor(hidden_layer_sizes=(5,), **settings)
    with pytest.warns(UserWarning, match="converged"):
        model.fit(X, y)
    est = ImplicitRegularizationEstimator(
        model, mode="trajectory", trajectory=ContinueTraining(n_epochs=2), window="epoch"
    ).fit(X, y)
    [note] = [own for own in est._description.notes if own.startswith("minibatch: theory")]
    # Steps k < T of an epoch weigh T - k; dampened, the velocity has had 1 - m^k of a gradient.
    T = N // SIZE
    kappa = sum((T - k) * (1 - 0.7**k) for k in range(1, T)) / (T * (T - 1) / 2)
    lr = model.learning_rate_init / 2  # along the mean square, of which its loss is half
    assert f"lr/4 times {kappa:.3g} = {lr / 4 * kappa:.4g}" in note


def test_nets_without_a_penalty_have_no_signal():
    """19 of 20 such nets; 2 of 20 where the column has one number for all entries."""
    verdicts = []
    for seed in range(5):  # 4 of them; 1 of them
        case = trained(OPTIMIZERS["RMSprop"], seed=10 + seed, n_before=40, n_epochs=12, size=10)
        verdicts.append(fitted(*case[:4], family="l2+power").verdict_)
    assert verdicts.count("no signal") >= 3


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_batches_have_no_column(dtype, named):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(N, 4, generator=generator).to(dtype)
    y = X[:, :1].sin() + 0.3 * torch.randn(N, 1, generator=generator).to(dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=0.02)
    with record(net, optimizer) as recorder:
        for _ in range(8):
            for _ in range(5):
                if named:
                    recorder.batch(torch.randperm(N, generator=generator))
                optimizer.zero_grad()
                mse_loss(net(X), y).backward()
                optimizer.step()
            recorder.epoch()
    own = {"mode": "trajectory", "trajectory": recorder.trajectory, "window": "epoch"}
    est = ImplicitRegularizationEstimator(net, loss="mse", params="all", **own).fit(X, y)
    assert est.term_names_ == ["l2"]
    assert est.coef_ == pytest.approx([0.01], rel=0.03)  # half of the decay, as w'w is the term
    assert est.r2_ > 0.999 and est.verdict_ == "supported"
