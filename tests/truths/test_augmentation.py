"""Augmented data: readings of a loader, and batches as the steps of a training saw them."""

import copy
import pickle
import random
from functools import partial

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    LinearModel,
)
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.exceptions import AugmentationWarning
from sklearn_implicitreg.trajectory import (
    Gradient,
    ImplicitRegularizationRecorder,
    Trajectory,
    record,
)

RNG = np.random.default_rng(0)
N, P, SD, DECAY = 60, 5, 0.3, 0.05
X = torch.tensor(RNG.normal(size=(N, P)))
Y = X @ torch.tensor(RNG.normal(size=P)) + 0.3 * torch.tensor(RNG.normal(size=N))
LABELS = torch.tensor(RNG.integers(0, 3, size=N))


class Noisy(Dataset):
    """Noise on the features, drawn where people draw it."""

    def __init__(self, draw=None, y=Y[:, None]):
        self.draw, self.y = draw or (lambda: torch.randn(P).double()), y

    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i] + SD * self.draw(), self.y[i]


class Stream(IterableDataset):
    def __iter__(self):
        data = Noisy()
        return (data[i] for i in range(N))


def from_closure():
    rng = np.random.default_rng(3)
    return lambda: torch.tensor(rng.normal(size=P))


def from_generator():
    return partial(torch.randn, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


DRAWS = {
    "torch": lambda: None,
    "numpy": lambda: lambda: torch.tensor(np.random.normal(size=P)),
    "random": lambda: lambda: torch.tensor([random.gauss(0, 1) for _ in range(P)]).double(),
    "its own numpy generator": from_closure,
    "its own torch generator": from_generator,
}


def at_rest(decay=DECAY, variance=SD**2):
    """A linear net at rest under ``E L + decay |w|^2``: noise in features is a ridge in E L."""
    centered = X - X.mean(0)
    matrix = centered.T @ centered / N + (decay + variance) * torch.eye(P).double()
    w = torch.linalg.solve(matrix, centered.T @ (Y - Y.mean()) / N)
    net = nn.Linear(P, 1).double()
    with torch.no_grad():
        net.weight.copy_(w[None])
        net.bias.fill_(float(Y.mean() - X.mean(0) @ w))
    return net


NET = at_rest()


def fit(data, **params):
    params = {"loss": "mse", "n_passes": 20, "random_state": 0} | params
    return ImplicitRegularizationEstimator(NET, **params).fit(data)


def words(est):
    """Text of the summary in one line."""
    return " ".join(str(est.summary()).split())


def noise_of_one_reading():
    """Variance of each entry of the gradient in one reading, by the formula for normal noise."""
    # d/dw of (x'w + e'w - r)^2 is 2 (x + e)(u + e'w) with u the residual; row by row.
    w = at_rest().weight.detach()[0]
    u = X @ w + at_rest().bias.detach()[0] - Y
    total = torch.zeros(P, P).double()
    eye = torch.eye(P).double()
    for x, residual in zip(X, u, strict=True):
        s = float(w @ w)
        first = torch.outer(x, x) * SD**2 * s + SD**2 * residual**2 * eye
        first += SD**2 * residual * (torch.outer(x, w) + torch.outer(w, x))
        total += 4 * (first + SD**4 * (s * eye + torch.outer(w, w)))
    return total / N**2


class TestReadings:
    def test_their_noise_is_the_known_one(self):
        est = fit(DataLoader(Noisy(), batch_size=32), n_passes=400, covariance="ols")
        column, cov = 2 * at_rest().weight.detach()[0], noise_of_one_reading() / 400
        size = float(column @ column)
        theory = float(column @ cov @ column) / size**2
        assert abs(est.coef_[0] - DECAY) < 4 * theory**0.5
        assert est.verdict_ == "supported"
        # 20 groups of readings tell a variance to a third.
        share = float(cov.trace()) / (DECAY**2 * size)
        assert est._result.noise_share == pytest.approx(share, rel=0.5)
        classical = est._result.solution.rss / (P - 1) / size
        assert est.std_err_[0] ** 2 - classical == pytest.approx(theory, rel=0.8)

    def test_the_verdict_goes_by_the_noise(self):
        few, many = (fit(Noisy(), n_passes=n, random_state=1) for n in (20, 1000))
        assert few.verdict_ == "partial"
        assert many.verdict_ == "supported"
        assert few._result.noise_share > 0.1 > many._result.noise_share
        assert "with n_passes=" in words(few)
        assert "mean over 1000 readings" in words(many)
        assert "the variance over 1000 readings of the rows is added" in words(many)

    def test_a_pure_function_of_the_row_has_no_noise(self):
        once = fit(torch.utils.data.TensorDataset(X, Y[:, None]), n_passes=1)
        often = fit(torch.utils.data.TensorDataset(X, Y[:, None]), n_passes=3)
        assert often.coef_[0] == pytest.approx(once.coef_[0], rel=1e-12)
        assert often.std_err_[0] == pytest.approx(once.std_err_[0], rel=1e-9)
        assert often._result.noise_share < 1e-20

    @pytest.mark.parametrize("name", DRAWS)
    def test_generators_are_left_and_readings_come_again(self, name):
        data = Noisy(DRAWS[name]() or None)
        first = data.draw() if "own" in name else None
        data = Noisy(DRAWS[name]() or None)
        states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        coefs = [fit(data, n_passes=3, random_state=state).coef_[0] for state in (0, 0, 1)]
        assert coefs[0] == coefs[1] != coefs[2]
        assert random.getstate() == states[0]
        assert np.array_equal(np.random.get_state()[1], states[1])
        assert torch.equal(torch.get_rng_state(), states[2])
        if first is not None:
            assert torch.equal(data.draw(), first)

    def test_a_fit_that_raises_leaves_generators(self):
        data = Noisy(from_closure())
        state = torch.get_rng_state()
        with pytest.raises(ValueError, match="Expected outputs of shape"):
            fit(data, loss="cross_entropy")
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(data.draw(), from_closure()())

    def test_a_stream_is_read_again(self):
        est = fit(Stream(), n_passes=400)
        assert est.coef_[0] == pytest.approx(DECAY, abs=0.03)
        assert "60 (weight 60)" in str(est.summary())

    def test_blocks_of_a_linear_model(self):
        """Noise of the blocks is drawn by a generator of their own, which stays as it was."""

        class Blocks:
            def __init__(self):
                self.rng = np.random.default_rng(1)

            def __iter__(self):
                for rows in np.array_split(np.arange(N), 3):
                    noise = SD * self.rng.normal(size=(len(rows), P))
                    yield X[rows].numpy() + noise, Y[rows].numpy()

        model = LinearModel(NET.weight.detach().numpy()[0], float(NET.bias.detach()))
        blocks, states = Blocks(), np.random.get_state()[1].copy()
        params = {"n_passes": 400, "random_state": 0}
        found = [ImplicitRegularizationEstimator(model, **params).fit(blocks) for _ in range(2)]
        assert found[0].coef_[0] == found[1].coef_[0]
        assert found[0].conf_int_[0, 0] < DECAY < found[0].conf_int_[0, 1]
        assert "400 readings" in words(found[0])
        assert blocks.rng.normal() == np.random.default_rng(1).normal()
        assert np.array_equal(np.random.get_state()[1], states)

    def test_the_intercept_has_the_standard_error_of_one_reading(self):
        class Blocks:
            def __iter__(self):
                return iter([(X.numpy(), Y.numpy())])

        coef, intercept = NET.weight.detach().numpy()[0], float(NET.bias.detach())
        model = LinearModel(coef, intercept + 0.1)
        one, many = (adapt(model, Data(Blocks()), Options(n_passes=n)).gradient() for n in (1, 30))
        assert many.unrest == pytest.approx(one.unrest, rel=1e-12)
        assert one.unrest > 0

    def test_what_a_collate_function_mixes_is_in_random_order(self):
        order = torch.argsort(Y)  # consecutive rows would be mixed with their like

        def mixup(rows):
            x, y = (torch.stack(part) for part in zip(*rows, strict=True))
            return (x + x.flip(0)) / 2, (y + y.flip(0)) / 2

        data = torch.utils.data.TensorDataset(X[order], Y[order][:, None])
        found = fit(DataLoader(data, batch_size=20, collate_fn=mixup), n_passes=40)
        value = np.array([found._equations.places[0].gradient.value["weight"].numpy()])
        own, total = at_rest(), 0.0
        torch.manual_seed(0)
        for _ in range(300):
            for rows in torch.randperm(N).split(20):
                x, y = mixup([(X[i], Y[i : i + 1]) for i in rows])
                loss = nn.functional.mse_loss(own(x), y)
                total += torch.autograd.grad(loss, own.weight)[0].numpy() / 900
        assert np.linalg.norm(value - total) < 0.15 * np.linalg.norm(total)

    def test_families_are_compared_over_all_readings(self):
        families = ["l2", "l1", "power"]
        params = {"loss": "mse", "n_passes": 200, "random_state": 0}
        search = ImplicitRegularizationCV(at_rest(), families=families, **params).fit(Noisy())
        alone = fit(Noisy(), n_passes=200)
        assert search.best_family_ == "l2"
        assert search.coef_[0] == pytest.approx(alone.coef_[0], abs=3 * alone.std_err_[0])
        assert "200 readings" in words(search)

    def test_a_search_scores_by_the_readings_of_the_fit(self):
        est = fit(Noisy(), n_passes=50)
        assert est.score(Noisy()) == pytest.approx(est.r2_, abs=1e-9)

    def test_endpoints_have_readings_of_their_own(self):
        several = [Endpoint(at_rest(decay), Noisy()) for decay in (DECAY,) * 5]
        params = {"loss": "mse", "n_passes": 20, "random_state": 0}
        est = ImplicitRegularizationEstimator(None, **params).fit(several)
        assert len(np.unique(est.coef_path_.round(9))) == 5
        assert est.conf_int_[0, 0] < DECAY < est.conf_int_[0, 1]

    def test_skorch(self):
        net = trained_net([])
        kinds = [AugmentationWarning, None]
        for n_passes, kind in zip(("auto", 5), kinds, strict=True):
            est = ImplicitRegularizationEstimator(net, n_passes=n_passes, random_state=0)
            data = Noisy(single, LABELS)
            if kind is None:
                assert "5 readings" in str(est.fit(data).summary())
            else:
                with pytest.warns(kind, match="n_passes=20"):
                    est.fit(data)

    def test_windows_of_a_trajectory_have_readings_of_their_own(self):
        def train():
            net = at_rest()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.02, weight_decay=2 * DECAY)
            with record(net, optimizer) as path:
                for _ in range(30):
                    for x, y in DataLoader(Noisy(), batch_size=20, shuffle=True):
                        optimizer.zero_grad()
                        nn.functional.mse_loss(net(x), y).backward()
                        optimizer.step()
                    path.epoch()
            return net, path

        torch.manual_seed(0)
        net, path = train()
        params = {"mode": "trajectory", "trajectory": path, "window": "epoch", "loss": "mse"}
        params |= {"n_passes": 20, "random_state": 0}
        est = ImplicitRegularizationEstimator(net, **params).fit(Noisy())
        low, high = est.conf_int_[0]
        assert low < DECAY < high
        assert est._result.noise_share > 0
        assert "mean over 20 readings" in words(est)


def single():
    return torch.randn(P).double()


def trained_net(callbacks):
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        nn.Linear(P, 3).double(),
        criterion=nn.CrossEntropyLoss,
        optimizer__weight_decay=0.02,
        max_epochs=3,
        batch_size=16,
        lr=0.1,
        train_split=None,
        verbose=0,
        callbacks=callbacks,
    )
    return net.fit(Noisy(single, LABELS), None)


class Two(nn.Module):
    """Two inputs, batch statistics."""

    def __init__(self, normed=False):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.c = nn.Linear(P, 4), nn.Linear(P, 4), nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4) if normed else nn.Identity()
        self.double()

    def forward(self, u, v):
        return self.c(torch.tanh(self.norm(self.a(u) + self.b(v))))


class OwnLoss(nn.Module):
    """A module that is given its labels, as those of Hugging Face are."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(P, 3).double()

    def forward(self, x, labels=None):
        logits = self.a(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Dicts(Noisy):
    def __getitem__(self, i):
        return {"x": X[i] + SD * self.draw(), "labels": LABELS[i]}


def augmented(rows):
    return X[rows] + SD * torch.randn(len(rows), P).double(), X[rows] * (
        torch.rand(len(rows), 1) < 0.5
    )


def unchanged(rows):
    return X[rows], X[rows]


def trained(  # noqa: PLR0913
    name,
    *,
    make=augmented,
    loss=None,
    n_parts=1,
    model=None,
    optimizer=None,
    **how,
):
    """Path of a training whose batches are named by a function of rows, inputs and labels."""
    model = model or Two()
    loss = loss or nn.CrossEntropyLoss()
    optimizer = optimizer or partial(torch.optim.SGD, lr=0.01, weight_decay=0.02)
    optimizer = optimizer(model.parameters())
    torch.manual_seed(2)
    with record(model, optimizer, **how) as path:
        for _ in range(2):
            for k, rows in enumerate(torch.randperm(N).split(11)):
                inputs, labels = make(rows), LABELS[rows]
                factor = 1.0 if n_parts == 1 else 1 / (k % n_parts + 1.5)
                own = {} if n_parts == 1 else {"accumulate": True, "weight": factor}
                path.batch(name(rows, inputs, labels), **own)
                (loss(model(*inputs), labels) * factor).backward()
                for tensor in inputs:
                    if make is augmented:
                        tensor.zero_()  # a loader may use its memory again
                if (k + 1) % n_parts == 0:
                    optimizer.step()
                    optimizer.zero_grad()
            path.epoch()
    return model, path


def read(model, path, *, loss="cross_entropy", reference="batch", data=None, **params):
    params = {"mode": "trajectory", "params": "all", "family": "weight_decay"} | params
    est = ImplicitRegularizationEstimator(
        model, trajectory=path, reference=reference, loss=loss, **params
    )
    return est.fit(*(data or ((X, X), LABELS)))


NAMES = {
    "tuple": lambda rows, inputs, labels: (inputs, labels),
    "list": lambda rows, inputs, labels: [list(inputs), labels],
    "dict": lambda rows, inputs, labels: (dict(zip("uv", inputs, strict=True)), labels),
    "arrays": lambda rows, inputs, labels: (tuple(t.numpy() for t in inputs), labels.numpy()),
    "numbers": lambda rows, inputs, labels: (inputs, labels.tolist()),
}


class TestBatches:
    @pytest.mark.parametrize("name", NAMES)
    def test_of_any_kind_are_exact(self, name):
        est = read(*trained(NAMES[name]))
        assert est.coef_[0] == pytest.approx(0.02, abs=1e-9)
        assert est.verdict_ == "supported"

    def test_dicts_of_a_module_that_returns_its_loss(self):
        model, data = OwnLoss(), Dicts()
        loader = DataLoader(data, batch_size=10, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.02)
        with record(model, optimizer, data=loader) as path:
            for batch in loader:
                path.batch(batch)
                optimizer.zero_grad()
                model(**batch)["loss"].backward()
                optimizer.step()
        assert repr(path.trajectory).endswith("batches known for 6 steps)")
        est = read(model, path, loss="auto", window=1, data=(loader,))
        assert est.coef_[0] == pytest.approx(0.02, abs=1e-9)

    @pytest.mark.parametrize(
        "optimizer",
        [
            partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.02),
            partial(torch.optim.Adam, lr=0.01, weight_decay=0.02),
            partial(torch.optim.RMSprop, lr=0.01, weight_decay=0.02),
        ],
    )
    def test_of_any_optimizer(self, optimizer):
        est = read(*trained(NAMES["tuple"], optimizer=optimizer))
        assert est.coef_[0] == pytest.approx(0.02, abs=1e-9)

    def test_in_float32_to_its_rounding(self):
        def single(rows):
            return tuple(t.float() for t in augmented(rows))

        model, path = trained(NAMES["tuple"], make=single, model=Two().float())
        est = read(model, path, data=((X.float(), X.float()), LABELS))
        assert est.coef_[0] == pytest.approx(0.02, abs=1e-4)

    def test_with_batch_statistics(self):
        est = read(*trained(NAMES["tuple"], model=Two(normed=True)))
        assert est.coef_[0] == pytest.approx(0.02, abs=1e-9)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.5]).double()])
    @pytest.mark.parametrize("n_parts", [1, 2])
    @pytest.mark.parametrize("reference", ["batch", Gradient(sub_window=2)])
    def test_they_are_what_their_row_numbers_are(self, reduction, weight, n_parts, reference):
        loss = nn.CrossEntropyLoss(weight=weight, reduction=reduction)
        found = []
        for name in (lambda rows, inputs, labels: rows, NAMES["tuple"]):
            model, path = trained(name, make=unchanged, loss=loss, n_parts=n_parts)
            found.append(read(model, path, loss=loss, reference=reference))
        assert path.trajectory.steps[0].rows is None
        np.testing.assert_allclose(found[0].coef_, found[1].coef_, rtol=1e-9)
        np.testing.assert_allclose(found[0].r2_, found[1].r2_, rtol=1e-9)

    def test_some_steps_on_rows_that_are_known(self):
        def sometimes(rows):
            return augmented(rows) if rows[0] % 2 else (X[rows].clone(), X[rows].clone())

        for n_parts in (1, 2):
            how = {"make": sometimes, "n_parts": n_parts, "data": ((X, X), LABELS)}
            model, path = trained(NAMES["tuple"], **how)
            known = [step.rows is None for step in path.trajectory.steps]
            assert any(known)
            assert n_parts == 2 or not all(known)
            assert read(model, path).coef_[0] == pytest.approx(0.02, abs=1e-9)

    def test_beyond_memory_on_disk_in_files_and_slices(self, tmp_path):
        own = {
            "memory": trained(NAMES["tuple"]),
            "small memory": trained(NAMES["tuple"], memory_limit=100),
            "folder": trained(NAMES["tuple"], directory=tmp_path / "marks"),
        }
        path = own["small memory"][1].trajectory
        path.save(tmp_path / "saved")
        paths = {name: held.trajectory for name, (_, held) in own.items()}
        paths["saved"] = Trajectory.load(tmp_path / "saved")
        paths["pickled"] = pickle.loads(pickle.dumps(path))
        paths["pickled file"] = pickle.loads(pickle.dumps(paths["saved"]))
        paths["slice"] = path[2:6]
        paths["joined"] = Trajectory.join([path[:4], path[3:]])
        for name, held in paths.items():
            est = read(own["memory"][0], held)
            assert est.coef_[0] == pytest.approx(0.02, abs=1e-9), name

    def test_a_damaged_batch_is_found_out(self, tmp_path):
        model, path = trained(NAMES["tuple"])
        file = tmp_path / "saved"
        path.trajectory.save(file)
        content = torch.load(file)
        key = next(key for key in content["tensors"] if key.startswith("batch 0"))
        content["tensors"][key].view(-1)[0] += 1
        torch.save(content, file)
        with pytest.raises(ValueError, match="with another checksum; the file is damaged"):
            read(model, Trajectory.load(file))

    def test_a_loader_of_them_is_not_compared_with(self):
        """No warning of augmentation, which is an error here."""
        torch.manual_seed(0)
        net = nn.Linear(P, 1).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.02)
        loader = DataLoader(Noisy(), batch_size=20, shuffle=True)
        with record(net, optimizer) as path:
            for batch in loader:
                path.batch(batch)
                optimizer.zero_grad()
                nn.functional.mse_loss(net(batch[0]), batch[1]).backward()
                optimizer.step()
        for reference in ("batch", "applied"):
            est = read(net, path, loss="mse", reference=reference, data=(loader,))
            assert est.coef_[0] == pytest.approx(0.02, abs=1e-9)

    def test_an_augmented_data_set_is_no_place_to_find_rows(self):
        """Drawn again from the same state its rows would be those of the first epoch."""
        torch.manual_seed(0)
        net = nn.Linear(P, 1).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.02)
        data = Noisy(from_closure())
        with record(net, optimizer, data=data) as path:
            for batch in DataLoader(data, batch_size=20):
                path.batch(batch)
                optimizer.zero_grad()
                nn.functional.mse_loss(net(batch[0]), batch[1]).backward()
                optimizer.step()
        assert all(step.rows is None and step.seen for step in path.trajectory.steps)
        est = read(net, path, loss="mse", data=(X, Y[:, None]))
        assert est.coef_[0] == pytest.approx(0.02, abs=1e-9)

    def test_skorch(self):
        recorder = ImplicitRegularizationRecorder()
        net = trained_net([recorder])
        est = ImplicitRegularizationEstimator(
            net, mode="trajectory", trajectory=recorder, reference="batch", family="weight_decay"
        ).fit(Noisy(single, LABELS))
        assert est.coef_[0] == pytest.approx(0.02, abs=1e-9)
        assert copy.deepcopy(recorder).trajectory_.steps[0].seen

    def test_sizes_alone_where_nothing_is_looked_up(self):
        recorder = ImplicitRegularizationRecorder(find_rows=False)
        trained_net([recorder])
        steps = recorder.trajectory_.steps
        assert not any(step.seen for step in steps)
        assert [step.batch_size for step in steps[:4]] == [16, 16, 16, 12]

    @pytest.mark.parametrize(
        ("name", "how", "error", "text"),
        [
            (lambda r, i, y: {"u": i[0], "v": i[1]}, {}, TypeError, r"'labels', got.*recorder\.b"),
            (lambda r, i, y: i[0], {}, TypeError, r"got Tensor of 11.*batch\(\(inputs, target"),
            (lambda r, i, y: (*i, y), {}, TypeError, "got tuple of 3"),
            (lambda r, i, y: ((i[0][:, :2], i[1]), y), {}, ValueError, r"got shape \(11, 2\)"),
            (lambda r, i, y: (i, ["a"] * len(y)), {}, ValueError, "the batch itself in a recor"),
            (lambda r, i, y: (i, y), {"every": 2}, ValueError, "a mark every 1 steps"),
            (lambda r, i, y: len(y), {}, ValueError, "need the rows of every batch"),
        ],
    )
    def test_what_cannot_be_read(self, name, how, error, text):
        model, path = trained(name, **how)
        with pytest.raises(error, match=text):
            read(model, path)
