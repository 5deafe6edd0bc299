"""Every mode on an emulated accelerator: the CPU's numbers, and no devices mixed."""

import copy
import json

import emulated_device
import numpy as np
import pytest
import torch
from emulated_device import There, emulated, there
from module_cases import fingerprint
from sklearn.model_selection import GridSearchCV, KFold
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    contrast,
    equations,
    identifiability,
)
from sklearn_implicitreg.__main__ import main
from sklearn_implicitreg.exceptions import ModelStateWarning
from sklearn_implicitreg.penalties import (
    EWC,
    FAMILIES,
    L2,
    MCP,
    ActivationL2,
    BatchGradientNorm,
    DeCov,
    Dropout,
    FittedPenalty,
    KLToReference,
    Learned,
    LogCosh,
    PreconditionedL2,
    Spline,
)
from sklearn_implicitreg.regression.blocks import device_r_factor
from sklearn_implicitreg.trajectory import Flow, Trajectory, record

N = 24
X_ = np.random.default_rng(0).normal(size=(N, 3))
Y_ = np.random.default_rng(1).integers(0, 3, size=N)
CLASSES = {"loss": "cross_entropy"}


def new_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def on_device_of(net, thing):
    """A tensor or a module on the device of a net, emulated or not."""
    like = next(net.parameters()).data
    if isinstance(like, There):
        return there(thing) if isinstance(thing, nn.Module) else There(thing)
    return thing.to(like.device)


def rows_for(net):
    """X and y where the net is."""
    X, y = torch.from_numpy(X_).to(next(net.parameters()).dtype), torch.from_numpy(Y_)
    return on_device_of(net, X), on_device_of(net, y)


def beside(net, other):
    """Another net of the same type, on the same device."""
    return on_device_of(net, other.to(next(net.parameters()).dtype))


def trajectory_of(net, every=1, momentum=0.5, **how):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum, weight_decay=0.02)
    X, y = rows_for(net)
    with record(net, optimizer, every=every, gradients=True, **how) as recorder:
        for epoch in range(3):
            for rows in np.split(np.random.default_rng(epoch).permutation(N), 3):
                optimizer.zero_grad()
                places = torch.as_tensor(rows)
                nn.functional.cross_entropy(net(X[places]), y[places]).backward()
                recorder.batch(rows)
                optimizer.step()
            recorder.epoch()
    return recorder.trajectory


def fitted(net, family="l2+l1", data=(X_, Y_), **how):
    return ImplicitRegularizationEstimator(net, family=family, **CLASSES, **how).fit(*data)


def along(net, family="l2", trajectory=None, **how):
    trajectory = trajectory_of(net) if trajectory is None else trajectory
    settings = {"mode": "trajectory", "trajectory": trajectory, "window": "epoch", **how}
    return fitted(net, family, **settings)


def numbers_of(est):
    est.summary()
    return [*np.ravel(est.coef_), *np.ravel(est.std_err_), est.r2_]


def of_a_fit(**how):
    return lambda net, _: numbers_of(fitted(net, **how))


def of_a_path(**how):
    return lambda net, _: numbers_of(along(net, **how))


def flow(net, folder):
    how = {"reference": Flow(2), "params": "all"}
    return numbers_of(along(net, trajectory=trajectory_of(net, momentum=0.0), **how))


def spilled(net, folder):
    return numbers_of(along(net, trajectory=trajectory_of(net, memory_limit=0)))


def loaded(net, folder):
    trajectory_of(net, directory=folder / "marks").save(folder / "run")
    return numbers_of(along(net, trajectory=Trajectory.load(folder / "run")))


def reduced(reference):
    def answer(net, folder):
        given = {"data": (X_, Y_), **CLASSES} if reference == "gradient" else {}
        how = {"families": ["l2", "l1"], "reference": reference, **given}
        est = along(net, "l2+l1", trajectory_of(net, **how), reference=reference)
        return numbers_of(est)

    return answer


def several(net, folder):
    both = [Endpoint(net, X_, Y_), Endpoint(beside(net, new_net(1)), *rows_for(net))]
    est = ImplicitRegularizationEstimator(None, family="l2+l1", **CLASSES).fit(both)
    return numbers_of(est)


def precomputed(net, folder):
    X, _ = rows_for(net)
    est = ImplicitRegularizationEstimator("precomputed").fit(X, X.sum(1) + X[:, 0].square())
    return numbers_of(est)


def cached(first, then):
    """A gradient kept by a model on one device, and read by one on the other."""

    def answer(net, folder):
        models = {"cpu": new_net().to(next(net.parameters()).dtype), "there": net}
        fitted(models[first], cache=folder)
        return numbers_of(fitted(models[then], "l2+power", cache=folder))

    return answer


def searched(path=False, **how):
    def answer(net, folder):
        own = {"mode": "trajectory", "trajectory": trajectory_of(net), "window": "epoch"}
        settings = {**CLASSES, **how, **(own if path else {})}
        search = ImplicitRegularizationCV(net, families=["l2", "l1", "power"], **settings)
        search.fit(X_, Y_)
        return [*search.cv_results_["mean_test_score"], *search.coef_]

    return answer


def grid(net, folder):
    est = ImplicitRegularizationEstimator(net, **CLASSES)
    found = GridSearchCV(est, {"family": ["l2", "l1"]}, cv=KFold(3)).fit(X_, Y_)
    return [*found.cv_results_["mean_test_score"], *found.best_estimator_.coef_]


def recovered(net, folder):
    how = {"n_draws": 1, "force": True, "start": "trained", "arms": ("recovered",)}
    found = fitted(net, "l2", positive=True).recover(X_, Y_, **how)
    return [*found.recovered.coef, found.smallest_eigenvalue]


def methods(net, folder):
    est = fitted(net, "l2+l1")
    part = [a[: N // 2] for a in rows_for(net)]
    value = est.penalty_(net)
    value.backward()
    slopes = [float(p.grad.sum()) for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    return [
        est.score(X_, Y_),
        fitted(net, "l2", data=part).score(X_[N // 2 :], Y_[N // 2 :]),
        *est.influence().select_dtypes("number").to_numpy().ravel(),
        *est.attribution().select_dtypes("number").to_numpy().ravel(),
        *est.by_layer().select_dtypes("number").fillna(0).to_numpy().ravel(),
        est.held_out_r2(),
        *est.smallest_detectable(),
        len(repr(est.identifiability())) > 0,
        float(value.detach()),
        *slopes,
        len(est.to_json()) > 0,
        len(str(est.next_steps())) > 0,
    ]


def compared(net, folder):
    found = contrast(net, beside(net, new_net(1)), "l1", base="l2", X=X_, y=Y_, **CLASSES)
    return [*found.coef_, *found.std_err_, found.r2_]


def tables(net, folder):
    est = ImplicitRegularizationEstimator(net, **CLASSES)
    table = equations(est, X_, Y_, ["l2", "l1"])
    told = identifiability(net, X_, Y_, ["l2", "l1", "power"], **CLASSES)
    return [*table.data.to_numpy().ravel(), *table.target, len(repr(told)) > 0]


def loader(net, folder):
    X, y = (t.cpu() for t in rows_for(net))
    data = TensorDataset(X, y)
    est = fitted(net, data=(DataLoader(data, batch_size=7, shuffle=True),))
    return [*numbers_of(est), est.score(data)]


def weighted(net, folder):
    """Sample weights, class weights, batch statistics and buffers."""
    first = nn.Sequential(*net[:2], beside(net, nn.BatchNorm1d(5)))
    weights = torch.tensor([1.0, 2.0, 3.0])
    est = ImplicitRegularizationEstimator(
        nn.Sequential(*first, net[2]), loss=nn.CrossEntropyLoss(weight=weights), batch_size=8
    )
    return numbers_of(est.fit(*rows_for(net), np.linspace(1, 2, N)))


def large(net, folder):
    """Tensors whose equations are read in chunks and reduced in many blocks."""
    own = beside(net, nn.Sequential(nn.Linear(3, 300), nn.Tanh(), nn.Linear(300, 500)))
    with torch.no_grad():
        own[2].weight.mul_(torch.as_tensor(1.0) / 3)[::7] = 0.0
    return numbers_of(fitted(own, "l2+l1+power"))


MODES = {
    "endpoint": of_a_fit(),
    "several endpoints": several,
    "precomputed": precomputed,
    "hc3": of_a_fit(covariance="hc3"),
    "sandwich": of_a_fit(covariance="sandwich"),
    "bootstrap": of_a_fit(covariance="bootstrap", random_state=0),
    "known, by layer": of_a_fit(family="l1", known={"weight_decay": 0.01}, group_by="layer"),
    "positive": of_a_fit(family="l2+power", positive=True),
    "gradient": of_a_path(),
    "batch": of_a_path(reference="batch", window=None),
    "applied": of_a_path(reference="applied"),
    "flow": flow,
    "spilled marks": spilled,
    "saved and loaded": loaded,
    "reduced by gradient": reduced("gradient"),
    "reduced by applied": reduced("applied"),
    "cache written there": cached("there", "cpu"),
    "cache written here": cached("cpu", "there"),
    "cache there": cached("there", "there"),
    "search": searched(),
    "search in folds": searched(cv=3),
    "search along a path": searched(path=True),
    "grid": grid,
    "recover": recovered,
    "methods": methods,
    "contrast": compared,
    "tables": tables,
    "large": large,
    "loader": loader,
    "weighted": weighted,
}
OTHERS = {
    "dropout": Dropout(0.2),
    "batch_gradient_norm": BatchGradientNorm(8),
    "on rows": {"size": lambda params, batch: batch.outputs.square().mean(1)},
    "of weights": {"fourth": lambda params: sum(t.pow(4).sum() for t in params.values())},
    "quadratic": "quadratic",
    "diagonal": "diagonal",
    "kronecker": "kronecker",
    "spline": Spline(),
    "learned": Learned(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), max_iter=20),
    "shapes": MCP(lam=0.4),
    "log_cosh": LogCosh(scale=0.3),
    "center": L2(center={n: p.detach() + 0.1 for n, p in new_net().named_parameters()}),
    "ewc": EWC(
        {n: p.detach() + 0.1 for n, p in new_net().named_parameters()},
        {n: torch.full_like(p, 2.0) for n, p in new_net().named_parameters()},
    ),
    "preconditioned": PreconditionedL2(
        {n: torch.full_like(p, 2.0) for n, p in new_net().named_parameters()}
    ),
    "activations": ActivationL2("0"),
    "decov": DeCov("0"),
    "kl": KLToReference(new_net(1)),
}
NAMED = {name: name for name in FAMILIES if name not in ("dropout", "batch_gradient_norm")}
FAMILIES_TRIED = {**NAMED, **OTHERS}


def here_and_there(answer, tmp_path, dtype=torch.float64):
    """What a model on the CPU gives, and the same on the device."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    expected = answer(new_net().to(dtype), tmp_path / "here")
    with emulated():
        net = there(new_net().to(dtype))
        found = answer(net, tmp_path / "there")
    tol = 1e-10 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(found, expected, rtol=tol, atol=tol / 10)


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, tmp_path):
    if "cache" in mode:
        pytest.importorskip("safetensors")
    here_and_there(MODES[mode], tmp_path)


@pytest.mark.parametrize("mode", ["endpoint", "gradient", "applied", "spilled marks", "search"])
def test_modes_in_float32(mode, tmp_path):
    here_and_there(MODES[mode], tmp_path, torch.float32)


def of_a_family(family):
    def answer(net, _):
        own = copy.deepcopy(FAMILIES_TRIED[family])
        est = fitted(net.append(nn.Dropout(0.2)).eval(), own, random_state=0)
        rows = rows_for(net) if isinstance(est.penalty_, FittedPenalty) else ()
        value = est.penalty_(net, *rows)
        value.backward()
        slopes = [float(p.grad.norm()) for p in net.parameters() if p.grad is not None]
        net.zero_grad()
        return [*np.ravel(est.coef_), float(value.detach()), *slopes]

    return answer


@pytest.mark.parametrize("family", FAMILIES_TRIED)
def test_families(family, tmp_path):
    here_and_there(of_a_family(family), tmp_path)


ON_CUDA = {**MODES, **{name: of_a_family(name) for name in FAMILIES_TRIED if name != "dropout"}}


@pytest.mark.cuda
@pytest.mark.parametrize("what", ON_CUDA)  # but masks, of which a device draws others
def test_on_cuda(what, tmp_path):
    folders = tmp_path / "here", tmp_path / "there"
    for folder in folders:
        folder.mkdir()
    expected = ON_CUDA[what](new_net(), folders[0])
    found = ON_CUDA[what](new_net().cuda(), folders[1])
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_a_model_on_the_cpu_is_moved_tensor_by_tensor(monkeypatch):
    """Each weight once; the model that was given stays where it is."""
    net = new_net()
    before, expected = fingerprint(net), numbers_of(fitted(net))
    moved, run = [], emulated_device._run

    def counted(func, args, kwargs):
        if str(func).startswith("aten._to_copy") and not isinstance(args[0], There):
            moved.append(tuple(args[0].shape))
        return run(func, args, kwargs)

    monkeypatch.setattr(emulated_device, "_run", counted)
    with emulated():
        found = numbers_of(fitted(net, device="lazy:0"))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert fingerprint(net) == before
    for p in (net[0].weight, net[2].weight):
        assert moved.count(tuple(p.shape)) == 1


def test_the_command_line_moves_the_model(tmp_path, monkeypatch, capsys):
    (tmp_path / "there_and_back.py").write_text(
        "import torch\n"
        "def model():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Linear(3, 2).double()\n"
        "def rows():\n"
        "    return torch.arange(30.0).reshape(10, 3).sin(), torch.arange(10) % 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = ["--model", "there_and_back:model", "--data", "there_and_back:rows"]
    how = ["estimate", *made, "--loss", "cross_entropy", "--family", "l2", "--json"]
    coefs = []
    for device in ("cpu", "lazy:0"):
        with emulated():
            assert main([*how, "--device", device]) == 0
        found = json.loads(capsys.readouterr().out)
        coefs.append([term["coef"] for term in found["terms"]])
    np.testing.assert_allclose(coefs[1], coefs[0], rtol=1e-10)


@pytest.mark.parametrize("n", [1, 3, 511, 513, 5000])
@pytest.mark.parametrize("k", [1, 4, 70])
def test_r_factors_of_a_device(n, k):
    """By blocks, and in one where columns are many: R'R is that of the equations."""
    rows = torch.randn(n, k + 1, dtype=torch.float64) * torch.logspace(-6, 6, k + 1).double()
    with emulated():
        upper = device_r_factor(There(rows[:, :-1].contiguous()), There(rows[:, -1].contiguous()))
    expected = np.zeros((k + 1, k + 1))
    expected[: min(n, k + 1)] = np.linalg.qr(rows.numpy(), mode="r")
    scale = np.linalg.norm(rows.numpy(), axis=0)
    np.testing.assert_allclose(np.abs(upper) / scale, np.abs(expected) / scale, atol=1e-13)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("place", ["here", "there"])
def test_coarse_weights_are_evaluated_in_float32(kind, place):
    """Weights, buffers and centers of two bytes give what their float32 copies give."""
    coarse = nn.Sequential(new_net(), nn.BatchNorm1d(3)).to(getattr(torch, kind)).eval()
    fine = copy.deepcopy(coarse).float()
    how = {"loss": "cross_entropy", "family": "l2+l1", "params": "all", "module_mode": "eval"}
    expected = ImplicitRegularizationEstimator(fine, **how).fit(X_, Y_)
    with emulated(), pytest.warns(ModelStateWarning, match=f"stored in {kind}.*in float32"):
        net = there(coarse) if place == "there" else coarse
        found = ImplicitRegularizationEstimator(net, **how).fit(X_, Y_)
        sums = found._equations.places[0].gradient.value.values()
        assert {t.dtype for t in sums} == {torch.float64}
        assert {p.dtype for p in net.parameters()} == {getattr(torch, kind)}
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-10)
    np.testing.assert_allclose(found.std_err_, expected.std_err_, rtol=1e-8)


def test_no_device_of_that_kind(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = r"one of \['cpu'\], got 'cuda'; use device='cpu'"
    with pytest.raises(ValueError, match=words):
        fitted(new_net(), device="cuda")


def test_an_optimizer_of_the_model_before_it_was_moved():
    net = new_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with emulated():
        moved = there(net)
        words = "on lazy:0, the optimizer's tensors on cpu.*make it of model.parameters"
        with pytest.raises(ValueError, match=words):
            record(moved, optimizer)


def test_an_optimizer_whose_state_stayed_behind():
    with emulated():
        net = there(new_net())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        p = net[0].weight
        optimizer.state[p]["momentum_buffer"] = There(torch.zeros(5, 3).double())
        record(net, optimizer)
        optimizer.state[p]["momentum_buffer"] = torch.zeros(5, 3)
        words = "momentum_buffer of 0.weight on cpu and 0.weight on lazy:0; move the model before"
        with pytest.raises(ValueError, match=words):
            record(net, optimizer)
