"""Models on an accelerator, emulated, with marks there, on disk or in a file."""

import copy

import numpy as np
import pytest
import torch
from emulated_device import DEVICE, MixedDevicesError, There, emulated, there
from torch import nn
from torch.optim import SGD, Adam, AdamW

from sklearn_implicitreg import ImplicitRegularizationEstimator, equations
from sklearn_implicitreg.model_selection import ImplicitRegularizationCV
from sklearn_implicitreg.penalties import L2, ActivationL2
from sklearn_implicitreg.problem import norm_of, zeros_of
from sklearn_implicitreg.trajectory import Flow, Trajectory, record

N = 18
X_ = np.random.default_rng(0).normal(size=(N, 3))
Y_ = np.random.default_rng(1).normal(size=(N, 1))

OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.05, weight_decay=0.02),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.5, weight_decay=0.02),
    "adam": lambda p: Adam(p, lr=0.01, weight_decay=0.02),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.02),
}


def new_net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def moved(tensor, like):
    return There(tensor) if isinstance(like, There) else tensor


def train(net, optimizer="sgd", n_epochs=2, **how):
    optimizer = OPTIMIZERS[optimizer](net.parameters())
    like = next(net.parameters()).data
    X, Y = (moved(torch.tensor(a, dtype=like.dtype), like) for a in (X_, Y_))
    with record(net, optimizer, **how) as recorder:
        for epoch in range(n_epochs):
            for rows in np.split(np.random.default_rng(epoch).permutation(N), 3):
                optimizer.zero_grad()
                (
                    net(X[torch.as_tensor(rows)]) - Y[torch.as_tensor(rows)]
                ).square().mean().backward()
                recorder.batch(rows)
                optimizer.step()
            recorder.epoch()
    return recorder.trajectory


def kept(trajectory, store, tmp_path):
    if store != "file":
        return trajectory
    trajectory.save(tmp_path / "run")
    return Trajectory.load(tmp_path / "run")


def fitted(net, trajectory, **how):
    settings = {"mode": "trajectory", "window": "epoch", "loss": "mse", **how}
    est = ImplicitRegularizationEstimator(net, trajectory=trajectory, **settings).fit(X_, Y_)
    est.summary()
    return est


def here_and_there(answer, float64=True):
    """What a model on the CPU gives, and the same on the device."""
    dtype = torch.float64 if float64 else torch.float32
    expected = answer(new_net(dtype))
    with emulated(float64):
        found = answer(there(new_net(dtype)))
    tol = 1e-9 if float64 else 2e-3
    np.testing.assert_allclose(found, expected, rtol=tol, atol=tol / 10)
    return expected


STORES = {"memory": {}, "disk": {"memory_limit": 0}, "file": {}}


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norms_and_zeros_without_float64(size):
    """Squares that float32 has not are taken on the CPU."""
    values = size * torch.arange(1.0, 5.0)
    with emulated(float64=False):
        params = {"weight": There(values)}
        assert norm_of(params) == pytest.approx(size * 30**0.5, rel=1e-6)
        assert zeros_of(params)["weight"].dtype == torch.float64


def test_the_emulated_device_raises_where_a_device_would():
    net = there(new_net())
    assert {p.device for p in net.parameters()} == {DEVICE}
    with pytest.raises(MixedDevicesError, match="aten.addmm"):
        net(torch.tensor(X_))
    with pytest.raises(TypeError, match="numpy"):
        net(There(torch.tensor(X_))).detach().numpy()
    with emulated(float64=False), pytest.raises(TypeError, match="doesn't support float64"):
        There(torch.ones(2)).double()


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("reference", ["gradient", "batch", "applied", "flow"])
def test_references(store, reference, tmp_path):
    def answer(net):
        trajectory = kept(train(net, gradients=True, **STORES[store]), store, tmp_path)
        own = Flow(2) if reference == "flow" else reference
        window = None if reference == "batch" else "epoch"
        return fitted(net, trajectory, reference=own, window=window, params="all").coef_

    expected = here_and_there(answer)
    if reference in ("batch", "applied"):
        np.testing.assert_allclose(expected, 0.01, rtol=1e-6)  # l2: half the decay


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("every", [1, 3])
def test_optimizers(optimizer, every, tmp_path):
    def answer(net):
        trajectory = kept(train(net, optimizer, every=every, gradients=True), "file", tmp_path)
        est = fitted(net, trajectory, reference="applied", params="all")
        return [*est.coef_, *fitted(net, trajectory).coef_, est.score(X_, Y_)]

    expected = here_and_there(answer)
    if optimizer != "adam":  # whose decay is scaled as its gradient is
        assert expected[0] == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    "how",
    [
        {"group_by": "layer"},
        {"family": "l21"},
        {"family": "quadratic"},
        {"family": "l1", "known": {"weight_decay": 0.02}},
        {"family": ActivationL2("0")},
        {"family": {"fourth": lambda params: sum(t.pow(4).sum() for t in params.values())}},
        {"family": {"size": lambda params, batch: batch.outputs.square().mean(1)}},
        {"family": L2(center={n: p.detach() + 0.1 for n, p in new_net().named_parameters()})},
    ],
    ids=["layers", "l21", "quadratic", "known", "activation", "terms", "rows", "center"],
)
def test_families(store, how, tmp_path):
    def answer(net):
        return fitted(net, kept(train(net, **STORES[store]), store, tmp_path), **how).coef_.ravel()

    here_and_there(answer)


def test_a_center_on_the_device():
    def answer(net):
        center = {name: p.detach() + 0.1 for name, p in net.named_parameters()}
        return fitted(net, train(net, memory_limit=0), family=L2(center=center)).coef_

    here_and_there(answer)


@pytest.mark.parametrize("where", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_rows_on_either_device(where):
    def answer(net):
        like = next(net.parameters()).data
        rows = [
            moved(torch.tensor(a), like if on_device else None)
            for a, on_device in zip((X_, Y_, np.arange(1.0, N + 1)), (*where, 1), strict=True)
        ]
        est = ImplicitRegularizationEstimator(net, loss="mse").fit(*rows)
        trajectory = fitted(net, train(net, memory_limit=0)).fit(*rows[:2])
        penalty = est.penalty_(net)
        penalty.backward()
        return [*est.coef_, est.score(*rows), *trajectory.coef_, float(penalty.detach())]

    here_and_there(answer)


@pytest.mark.parametrize("on_device", [False, True])
def test_class_weights(on_device):
    labels = (Y_[:, 0] > 0).astype(int)

    def answer(net):
        like = next(net.parameters()).data
        net[2] = there(nn.Linear(4, 2).double()) if isinstance(like, There) else net[2]
        weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
        loss = nn.CrossEntropyLoss(weight=moved(weights, like if on_device else None))
        return ImplicitRegularizationEstimator(net, loss=loss).fit(X_, labels).coef_

    def start(net):
        torch.manual_seed(1)
        net[2] = nn.Linear(4, 2).double()
        return net

    expected = answer(start(new_net()))
    with emulated():
        torch.manual_seed(1)
        net = start(new_net())
        torch.manual_seed(1)
        found = answer(there(net))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_loaders_searches_and_equations(tmp_path):
    rows = torch.utils.data.TensorDataset(torch.tensor(X_), torch.tensor(Y_))

    def answer(net):
        trajectory = kept(train(net), "file", tmp_path)
        loader = torch.utils.data.DataLoader(rows, batch_size=5)
        endpoint = ImplicitRegularizationEstimator(net, loss="mse").fit(loader)
        how = {"mode": "trajectory", "trajectory": trajectory, "window": "epoch", "loss": "mse"}
        search = ImplicitRegularizationCV(net, families=["l2", "l1"], **how)
        table = equations(ImplicitRegularizationEstimator(net, **how), X_, Y_, ["l2", "l1"])
        scores = search.fit(X_, Y_).cv_results_["mean_test_score"]
        return [*endpoint.coef_, *scores, *table.data.to_numpy().ravel(), *table.target]

    here_and_there(answer)


@pytest.mark.parametrize("reference", ["gradient", "applied"])
def test_reduced_recordings(reference, tmp_path):
    def answer(net):
        given = {"data": (X_, Y_), "loss": "mse"} if reference == "gradient" else {}
        recorded = train(net, "momentum", families=["l2", "l1"], reference=reference, **given)
        found = []
        for trajectory in (recorded, kept(recorded, "file", tmp_path)):
            found += [*fitted(net, trajectory, reference=reference, family="l1").coef_]
        return found

    here_and_there(answer)


def test_a_model_that_moved_after_it_was_recorded(tmp_path):
    def answer(net):
        trajectory = train(net, gradients=True)
        back = new_net()
        back.load_state_dict({n: t.detach().cpu() for n, t in net.state_dict().items()})
        return [
            *fitted(back, trajectory).coef_,
            *fitted(back, trajectory, reference="applied").coef_,
        ]

    here_and_there(answer)
    net = new_net()
    trajectory = train(net, gradients=True)
    with emulated():
        for reference in ("gradient", "applied"):
            found = fitted(there(net), trajectory, reference=reference).coef_
            np.testing.assert_allclose(
                found, fitted(net, trajectory, reference=reference).coef_, rtol=1e-9
            )


def test_parts_from_a_file_and_from_memory_are_joined(tmp_path):
    def answer(net):
        first = train(net)
        parts = kept(first, "file", tmp_path), train(net)
        other_way = [*kept(parts[1], "file", tmp_path).marks]
        assert len(other_way) == len(parts[1].marks)
        return fitted(net, Trajectory.join(parts)).coef_

    here_and_there(answer)


def test_marks_stay_on_their_device_up_to_the_limit():
    with emulated():
        net = there(new_net())
        size = sum(4 * 8 * p.numel() for p in net.parameters())
        held = train(net, n_epochs=1, memory_limit=5 * size)
        spilled = train(net, n_epochs=1, memory_limit=3 * size)
        assert all(t.device == DEVICE for t in held.marks[-1].weights.values())
        assert all(t.device.type == "cpu" for t in spilled.marks[-1].weights.values())
        # The limit is one of each device: half of the tensors here leave room for more.
        net[0] = nn.Linear(3, 4).double()
        here, away = (32 * sum(p.numel() for p in part.parameters()) for part in (net[0], net[2]))
        optimizer = SGD(net.parameters(), lr=0.1)
        with record(net, optimizer, memory_limit=3 * max(here, away)) as recorder:
            for _ in range(2):
                for p in net.parameters():
                    p.grad = torch.ones_like(p)
                optimizer.step()
        marks = recorder.trajectory.marks
    assert [t.device for t in marks[-1].weights.values()] == [torch.device("cpu")] * 2 + [
        DEVICE
    ] * 2


class TestNoFloat64:
    """Devices such as MPS."""

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    @pytest.mark.parametrize("every", [1, 3])
    def test_recorded_there_and_analyzed_on_the_cpu(self, optimizer, every):
        def answer(net):
            trajectory = train(net, optimizer, every=every, gradients=True)
            assert {t.dtype for t in trajectory.marks[-1].applied.values()} == {torch.float64}
            est = fitted(net, trajectory, reference="applied", params="all")
            return [*est.coef_, *fitted(net, trajectory).coef_]

        here_and_there(answer, float64=False)

    def test_endpoints_penalties_and_reduced_recordings(self):
        def answer(net):
            est = ImplicitRegularizationEstimator(net, loss="mse", family="l2+l1").fit(X_, Y_)
            rows = ImplicitRegularizationEstimator(net, loss="mse", family=ActivationL2("0"))
            penalty = rows.fit(X_, Y_).penalty_(net, X_, Y_) + est.penalty_(net)
            penalty.backward()
            slope = float(net[0].weight.grad.sum())
            found = [*est.coef_, est.score(X_, Y_), float(penalty.detach()), slope]
            trajectory = train(net, families=["l2"], reference="applied")
            reduced = fitted(net, trajectory, reference="applied", window=None)
            joined = Trajectory.join([train(net), train(net)])
            return [*found, *reduced.coef_, *fitted(net, joined).coef_]

        here_and_there(answer, float64=False)

    def test_iterates(self):
        def answer(net):
            like = next(net.parameters()).data
            X, Y = (moved(torch.tensor(a, dtype=torch.float32), like) for a in (X_, Y_))
            iterates = [copy.deepcopy(net)]
            for _ in range(3):
                net.zero_grad()
                (net(X) - Y).square().mean().backward()
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.05 * (p.grad + 0.02 * p)
                iterates.append(copy.deepcopy(net))
            return fitted(net, Trajectory.from_iterates(iterates, lr=0.05), window=None).coef_

        np.testing.assert_allclose(here_and_there(answer, float64=False), 0.01, rtol=1e-3)

    def test_the_device_that_is_asked_for(self):
        with emulated(float64=False):
            net = there(new_net(torch.float32))
            est = ImplicitRegularizationEstimator(net, loss="mse", device="lazy:0")
            with pytest.raises(
                ValueError, match=r"device with float64.*'lazy:0'; use device='cpu'"
            ):
                est.fit(X_, Y_)
