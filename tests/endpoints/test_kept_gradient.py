"""A loss gradient kept in a folder: same bits, no second pass, what is refused, what is mended."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from two_processes import assert_two_write

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    equations,
)
from sklearn_implicitreg.adapters.linear.problems import LinearProblem
from sklearn_implicitreg.adapters.torch.modules import TorchProblem
from sklearn_implicitreg.endpoints import kept
from sklearn_implicitreg.exceptions import CacheWarning

pytest.importorskip("safetensors")
Estimator = ImplicitRegularizationEstimator


@functools.cache
def data():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(60, 3, generator=rng), torch.randn(60, 1, generator=rng)


@functools.cache
def net(norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        middle = nn.BatchNorm1d(4) if norm else nn.Tanh()
        made = nn.Sequential(nn.Linear(3, 4), middle, nn.Dropout(0.5), nn.Linear(4, 1))
    return made.eval()


class Noisy(Dataset):
    """Rows that differ at each reading."""

    def __len__(self):
        return 60

    def __getitem__(self, i):
        X, y = data()
        return X[i] + 0.1 * torch.randn(3), y[i]


@pytest.fixture(autouse=True)
def passes(monkeypatch):
    """Number of blocks that were computed; states are written after each of them."""
    monkeypatch.setattr(kept, "_SECONDS", 0.0)
    monkeypatch.setattr(kept, "_SHARE", 0)
    made = []
    plain, measured = TorchProblem._block, LinearProblem.measured

    def block(self, batch, first=False, twice=False, ahead=None):
        if sys._getframe(1).f_code.co_name == "of_part":  # and not a few rows for a scale
            made.append("block")
        return plain(self, batch, first, twice, ahead)

    def linear(self, *args):
        made.append("block")
        return measured(self, *args)

    monkeypatch.setattr(TorchProblem, "_block", block)
    monkeypatch.setattr(LinearProblem, "measured", linear)
    return made


PUBLIC = (
    "coef_ std_err_ pvalues_ conf_int_ r2_ cosine_ condition_number_ vif_ n_equations_ aic_ bic_ "
    "verdict_ term_names_ n_terms_ coef_path_ coef_path_conf_int_"
).split()


def same(one, other):
    """Same bits in every public attribute, the same tables."""
    for name in PUBLIC:
        np.testing.assert_array_equal(getattr(one, name, None), getattr(other, name, None), name)
    assert str(one.summary()) == str(other.summary())
    assert one.to_json() == other.to_json()
    pd.testing.assert_frame_equal(one.to_frame(), other.to_frame())
    for name in ("se_difference", "mean_test_score", "r2", "verdict"):
        if hasattr(one, "cv_results_"):
            np.testing.assert_array_equal(one.cv_results_[name], other.cv_results_[name])


def arrays():
    X, y = data()
    return X.numpy().astype(np.float64), y.numpy()[:, 0].astype(np.float64)


def classes():
    X, y = arrays()
    return X, (y > 0).astype(int) + (y > 1)


def logistic():
    return LogisticRegression(C=0.1).fit(*classes())


def sparse():
    X, y = arrays()
    X = scipy.sparse.csr_matrix(np.where(X > 0, X, 0.0))
    return Ridge(2.0).fit(X, y), {}, (X, y)


def stream():
    X, y = arrays()
    return [(X[i : i + 15], y[i : i + 15]) for i in range(0, 60, 15)]


KINDS = {
    "net": lambda: (net(), {"loss": "mse", "params": "all"}, data()),
    "batches": lambda: (net(), {"loss": "huber", "batch_size": 7}, data()),
    "weighted": lambda: (net(), {"loss": "mse"}, (*data(), np.linspace(0.0, 2.0, 60))),
    "double": lambda: (net(), {"loss": "mse", "dtype": "float64"}, data()),
    "norms": lambda: (net(True), {"loss": "mse", "batch_size": 16}, data()),
    "masks": lambda: (
        net(),
        {"loss": "mse", "module_mode": "train", "random_state": 3, "batch_size": 16},
        data(),
    ),
    "loader": lambda: (net(), {"loss": "mse"}, (DataLoader(TensorDataset(*data()), 16, True),)),
    "readings": lambda: (
        net(),
        {"loss": "mse", "n_passes": 3, "random_state": 0, "batch_size": 16},
        (Noisy(),),
    ),
    "ridge": lambda: (Ridge(2.0).fit(*arrays()), {}, arrays()),
    "other rows": lambda: (Ridge(2.0).fit(*arrays()), {}, [part[:50] for part in arrays()]),
    "sparse": sparse,
    "logistic": lambda: (logistic(), {}, classes()),
    "stream": lambda: (Ridge(2.0).fit(*arrays()), {}, (stream(),)),
    "template": lambda: (Ridge(2.0), {}, arrays()),
    "endpoints": lambda: (
        None,
        {},
        ([Endpoint(Ridge(a).fit(*arrays()), *arrays()) for a in (1.0, 2.0)],),
    ),
    "nets": lambda: (
        None,
        {"loss": "mse"},
        ([Endpoint(own, *data()) for own in (net(), net(True))][:1] * 2,),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_and_no_second_pass(kind, tmp_path, passes):
    model, how, rows = KINDS[kind]()
    folder = tmp_path / "new" / "folder"
    plain = Estimator(model, **how).fit(*rows)
    same(Estimator(model, **how, cache=folder).fit(*rows), plain)
    passes.clear()
    same(Estimator(model, **how, cache=str(folder)).fit(*rows), plain)
    for family in ("l1", "l2+l1"):
        same(
            Estimator(model, **how, family=family, cache=folder).fit(*rows),
            Estimator(model, **how, family=family).fit(*rows),
        )
        passes.clear()
        Estimator(model, **how, family=family, cache=folder).fit(*rows)
        assert not passes


@pytest.mark.parametrize("kind", KINDS)
def test_comparison_of_families(kind, tmp_path, passes):
    model, how, rows = KINDS[kind]()
    for families in (["l1", "l2"], ["l2", "smooth_l1", "l2+l1"]):
        plain = ImplicitRegularizationCV(model, families=families, **how).fit(*rows)
        for _ in range(2):
            passes.clear()
            own = ImplicitRegularizationCV(model, families=families, cache=tmp_path, **how)
            same(own.fit(*rows), plain)
        assert not passes


@pytest.mark.parametrize("covariance", ["sandwich", "bootstrap"])
def test_errors_over_rows(covariance, tmp_path, passes):
    how = {"loss": "mse", "covariance": covariance, "random_state": 0}
    plain = Estimator(net(), **how).fit(*data())
    same(Estimator(net(), **how, cache=tmp_path).fit(*data()), plain)
    passes.clear()
    same(Estimator(net(), **how, cache=tmp_path).fit(*data()), plain)
    assert not passes


def test_score_completes_and_structured_families_read(tmp_path, passes):
    X, y = arrays()
    model = Ridge(2.0).fit(X, y)
    plain = Estimator(model).fit(X[:40], y[:40])
    own = Estimator(model, cache=tmp_path).fit(X[:40], y[:40])
    assert own.score(X[40:], y[40:]) == plain.score(X[40:], y[40:])
    passes.clear()
    found = Estimator(model, family="quadratic", cache=tmp_path).fit(X[:40], y[:40])
    assert not passes
    np.testing.assert_array_equal(
        found.coef_, Estimator(model, family="quadratic").fit(X[:40], y[:40]).coef_
    )
    table = equations(model, X[:40], y[:40], cache=tmp_path)
    pd.testing.assert_series_equal(table.target, equations(model, X[:40], y[:40]).target)


def test_families_on_rows_have_a_pass_of_their_own(tmp_path, passes):
    how = {"loss": "mse", "family": "l2+gradient_norm"}
    plain = Estimator(net(), **how).fit(*data())
    Estimator(net(), loss="mse", cache=tmp_path).fit(*data())
    same(Estimator(net(), **how, cache=tmp_path).fit(*data()), plain)


def changed_net(change):
    own = copy.deepcopy(net())
    with torch.no_grad():
        change(own)
    return own


def shift(tensor):
    tensor.view(-1)[0] += 1e-6


def moved(i, by=1e-6):
    rows = [part.clone() for part in data()]
    rows[i][3] += by
    return rows


class Softer(nn.Tanh):
    def forward(self, x):
        return super().forward(x) * 1.01


def scaled_loss(factor):
    weight = torch.tensor([factor])
    return lambda output, target: ((output - target).square() * weight).mean(1)


def replaced(own):
    own[1] = Softer()


HOW = {"loss": "mse", "params": "weights"}
DIFFERENT = {
    "weights (0.weight)": lambda: (changed_net(lambda own: shift(own[0].weight)), {}, data()),
    "weights out of scope and buffers (3.bias)": lambda: (
        changed_net(lambda own: shift(own[3].bias)),
        {},
        data(),
    ),
    "code of the model": lambda: (changed_net(replaced), {}, data()),
    "X": lambda: (net(), {}, moved(0)),
    "y": lambda: (net(), {}, moved(1)),
    "X, y, sample_weight": lambda: (net(), {}, [part[:59] for part in data()]),
    "X, y": lambda: (net(), {}, [part.flip(0) for part in data()]),
    "sample_weight": lambda: (net(), {}, (*data(), np.linspace(1.0, 2.0, 60))),
    "loss (": lambda: (net(), {"loss": "mae"}, data()),
    "settings of the loss": lambda: (net(), {"loss": nn.HuberLoss(delta=0.5)}, data()),
    "params (0.bias, 3.bias);": lambda: (net(), {"params": "all"}, data()),
    "module_mode": lambda: (net(), {"module_mode": "train", "random_state": 0}, data()),
    "with other batch_size (8192 and not 10);": lambda: (net(), {"batch_size": 10}, data()),
    "with other dtype (float32 and not float64);": lambda: (net(), {"dtype": "float64"}, data()),
    "model (": lambda: (Ridge(2.0).fit(*arrays()), {"loss": "auto"}, arrays()),
}


@pytest.mark.parametrize("word", DIFFERENT)
def test_another_gradient_is_refused_by_name(word, tmp_path):
    Estimator(net(), **HOW, cache=tmp_path).fit(*data())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model, how, rows = DIFFERENT[word]()
    with pytest.raises(ValueError, match="got one with other") as error:
        Estimator(model, **(HOW | how), cache=tmp_path).fit(*rows)
    assert word in str(error.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_other_losses_and_seeds(tmp_path):
    first = {"loss": scaled_loss(2.0), "module_mode": "train", "random_state": 0}
    Estimator(net(), **first, cache=tmp_path).fit(*data())
    Estimator(net(), **(first | {"loss": scaled_loss(2.0)}), cache=tmp_path).fit(*data())
    for change, word in (
        ({"loss": scaled_loss(3.0)}, "settings of the loss"),
        ({"random_state": 1}, "random_state"),
    ):
        with pytest.raises(ValueError, match=f"got one with other {word}"):
            Estimator(net(), **(first | change), cache=tmp_path).fit(*data())


def test_two_linear_models(tmp_path):
    X, y = arrays()
    Estimator(Ridge(2.0).fit(X, y), cache=tmp_path).fit(X, y)
    with pytest.raises(ValueError, match=r"other weights \(coef\), weights out of scope"):
        Estimator(Ridge(3.0).fit(X, y), cache=tmp_path).fit(X, y)
    with pytest.raises(ValueError, match=r"other sample_weight; give another folder"):
        Estimator(Ridge(2.0).fit(X, y), cache=tmp_path).fit(X, y, np.linspace(1, 2, 60))


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"cache": 3}, "the name of a folder"),
        ({"cache": ""}, "the name of a folder"),
        ({"mode": "trajectory"}, "cache=None with mode='trajectory'"),
        ({"module_mode": "train"}, "an integer as random_state with cache="),
        ({"n_passes": 4}, "an integer as random_state with cache="),
    ],
    ids=["number", "no name", "trajectory", "masks", "readings"],
)
def test_bad_parameters(how, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        Estimator(net(), loss="mse", **({"cache": tmp_path} | how)).fit(*data())


def test_bad_places(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="Expected a folder as cache, got the file"):
        Estimator(net(), loss="mse", cache=file).fit(*data())
    assert file.read_text() == "mine"
    with pytest.raises(OSError, match="cannot be kept in .*; give cache= a folder"):
        Estimator(net(), loss="mse", cache=file / "below").fit(*data())
    with pytest.raises(ValueError, match="Expected cache=None with cv"):
        ImplicitRegularizationCV(
            Ridge().fit(*arrays()), families=["l1", "l2"], cv=3, cache=tmp_path
        ).fit(*arrays())
    with pytest.raises(ValueError, match="Expected cache left at the default"):
        Estimator("precomputed", cache=tmp_path).fit(*arrays())
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"pip install sklearn_implicitreg\[cache\]"):
        Estimator(net(), loss="mse", cache=tmp_path / "new").fit(*data())


def test_another_format(tmp_path):
    Estimator(net(), **HOW, cache=tmp_path).fit(*data())
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(ValueError, match="Expected a cache of format 1, got 99"):
        Estimator(net(), **HOW, cache=tmp_path).fit(*data())


@pytest.mark.parametrize("damage", ["half", "empty", "gone", "flipped", "json", "manifest"])
@pytest.mark.parametrize("several", [False, True], ids=["sum", "blocks"])
def test_damage_is_mended_with_a_warning(damage, several, tmp_path):
    kind = ImplicitRegularizationCV if several else Estimator
    how = HOW | ({"families": ["l1", "l2"]} if several else {})
    plain = kind(net(), **how).fit(*data())
    kind(net(), **how, cache=tmp_path).fit(*data())
    name = {"json": "[bs]*.json", "manifest": "manifest.json"}.get(damage, "*.safetensors")
    file = sorted(tmp_path.glob(name))[-1]
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        file.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    with pytest.warns(CacheWarning, match="damaged"):
        same(kind(net(), **how, cache=tmp_path).fit(*data()), plain)
    same(kind(net(), **how, cache=tmp_path).fit(*data()), plain)


STATES = {
    "null": lambda text: "null",
    "another number": lambda text: text.replace('"weight": 60.0', '"weight": 61.0'),
    "no parts": lambda text: json.dumps(json.loads(text) | {"parts": []}),
    "not done": lambda text: text.replace('"done": true', '"done": false'),
}


@pytest.mark.parametrize("file", ["sum-0.json", "manifest.json"])
@pytest.mark.parametrize("change", STATES)
def test_what_is_stated_has_a_checksum_as_well(change, file, tmp_path):
    plain = Estimator(net(), **HOW).fit(*data())
    Estimator(net(), **HOW, cache=tmp_path).fit(*data())
    place = tmp_path / file
    text = place.read_text()
    changed = STATES[change](text)
    if file == "manifest.json" and change != "null":
        changed = text.replace('"n_passes": 1', '"n_passes": 2')
    assert changed != text
    place.write_text(changed)
    with pytest.warns(CacheWarning, match="damaged"):
        same(Estimator(net(), **HOW, cache=tmp_path).fit(*data()), plain)
    assert place.read_text() == text


def test_two_fits_at_once(tmp_path):
    code = (
        "import sys, torch\n"
        "from sklearn_implicitreg import ImplicitRegularizationEstimator\n"
        "kept = sys.modules['sklearn_implicitreg.endpoints.kept']\n"
        "kept._SECONDS, kept._SHARE = 0.0, 0\n"
        "torch.manual_seed(0)\n"
        "net, X = torch.nn.Linear(3, 1), torch.randn(40, 3)\n"
        "est = ImplicitRegularizationEstimator(net, loss='mse', batch_size=1, cache=sys.argv[1])\n"
        "sys.stdin.readline()\n"
        "print(repr(est.fit(X, X[:, :1]).coef_[0]))\n"
    )
    assert_two_write(code, tmp_path)


@pytest.mark.parametrize("left", ["sum-0-7-0.safetensors", "sum-0.json.0.part"])
def test_what_a_kill_left_is_removed_after_a_while(left, tmp_path):
    now = time.time()
    (tmp_path / left).write_bytes(b"half")
    Estimator(net(), **HOW, cache=tmp_path).fit(*data())
    assert (tmp_path / left).exists()  # another run may be about to name it
    os.utime(tmp_path / left, (now - 7200, now - 7200))
    (tmp_path / "sum-0.json").unlink()
    Estimator(net(), **HOW, cache=tmp_path).fit(*data())
    assert not (tmp_path / left).exists()


class Setting:
    """An object among the inputs, which shows its address."""

    def __init__(self, factor):
        self.factor = torch.tensor(factor)
        self.me = self


def test_objects_among_the_inputs(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x, labels=None, setting=None):
            return {"loss": (setting.factor * self.net(x) - labels).square().mean()}

    def fit(factor, **how):
        def collate(items):
            x, y = torch.utils.data.default_collate(items)
            return {"x": x, "labels": y, "setting": Setting(factor)}

        loader = DataLoader(TensorDataset(*data()), 60, collate_fn=collate)
        return Estimator(Scaled(), **how).fit(loader).coef_

    for _ in range(2):
        np.testing.assert_array_equal(fit(1.0, cache=tmp_path), fit(1.0))
    with pytest.raises(ValueError, match="got one with other X"):
        fit(2.0, cache=tmp_path)


BLOCKED = ["batches", "norms", "masks", "readings", "stream", "other rows"]


@pytest.mark.parametrize("several", [False, True], ids=["sum", "blocks"])
@pytest.mark.parametrize("kind", BLOCKED)
def test_killed_in_a_block_and_resumed(kind, several, tmp_path, monkeypatch, passes):
    model, how, rows = KINDS[kind]()
    cls = ImplicitRegularizationCV if several else Estimator
    how = how | ({"families": ["l1", "l2"]} if several else {})
    passes.clear()
    plain = cls(model, **how).fit(*rows)
    whole = len(passes)
    for end in sorted({min(2, whole), whole} | ({1, 5} if kind == "batches" else set())):
        est = cls(model, **how, cache=tmp_path / str(end))
        with monkeypatch.context() as patched:
            interrupt_before(end, patched)
            with pytest.raises(KeyboardInterrupt):
                est.fit(*rows)
        passes.clear()
        same(est.fit(*rows), plain)
        if kind == "batches":  # what was written is not computed again
            assert len(passes) == whole - end + 1


def interrupt_before(end, patched):
    """The computation of a block ends all of it."""
    left = iter([None] * (end - 1))
    torch_block, linear_block = TorchProblem._block, LinearProblem.measured

    def stop():
        if next(left, "end") == "end":
            raise KeyboardInterrupt

    def block(self, batch, first=False, twice=False, ahead=None):
        if sys._getframe(1).f_code.co_name == "of_part":
            stop()
        return torch_block(self, batch, first, twice, ahead)

    def linear(self, *args):
        stop()
        return linear_block(self, *args)

    patched.setattr(TorchProblem, "_block", block)
    patched.setattr(LinearProblem, "measured", linear)


@pytest.mark.filterwarnings("ignore:What .* names was damaged")
@pytest.mark.parametrize("place", ["half", "after"])
@pytest.mark.parametrize("several", [False, True], ids=["sum", "blocks"])
def test_killed_while_writing(several, place, tmp_path, monkeypatch):
    model, how, rows = KINDS["batches"]()
    how = how | {"batch_size": 20}  # three blocks
    cls = ImplicitRegularizationCV if several else Estimator
    how = how | ({"families": ["l1", "l2"]} if several else {})
    plain, replace = cls(model, **how).fit(*rows), kept.put_in_place
    for number in itertools.count() if not several else (0, 1, 2, 7, 41, 42):
        est, writes = cls(model, **how, cache=tmp_path / str(number)), itertools.count()

        def killed(file, write, writes=writes, number=number):
            if next(writes) != number:
                return replace(file, write)
            part = file.with_name(f"{file.name}.0.part")
            if place == "half":
                write(part)
                part.write_bytes(part.read_bytes()[:9])
                os.utime(part, (0, 0))  # long ago
            if place == "after":
                replace(file, write)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(kept, "put_in_place", killed)
            try:
                est.fit(*rows)
            except KeyboardInterrupt:
                pass
            else:
                break
        same(est.fit(*rows), plain)
        left = [file.name for file in est.cache.glob("*.part")]
        assert left in ([], ["manifest.json.0.part"])
    assert number >= 7
    assert len(list(est.cache.glob("*.safetensors"))) == (20 if several else 1)


def test_two_processes_write_the_same_file(tmp_path):
    """A worker of a run that was killed may still be at work where the next one is."""
    file, fork = tmp_path / "file", multiprocessing.get_context("fork")
    half, go_on = fork.Event(), fork.Event()

    def slowly(part):
        with part.open("w") as out:
            out.write("one ")
            out.flush()
            half.set()
            go_on.wait(20)
            out.write("two")

    other = fork.Process(target=kept.put_in_place, args=(file, slowly))
    other.start()
    assert half.wait(20)
    kept.put_in_place(file, lambda part: part.write_text("one two"))
    assert file.read_text() == "one two"
    go_on.set()
    other.join()
    assert other.exitcode == 0
    assert file.read_text() == "one two"
    assert list(tmp_path.iterdir()) == [file]


SCRIPT = """
import sys, time, torch
from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.endpoints import kept
kept._SECONDS, kept._SHARE = 0.0, 0
torch.manual_seed(0)
net, X = torch.nn.Linear(3, 1), torch.randn(400, 3)
def loss(output, target):
    time.sleep(0.004)
    return (output - target).square().mean()
est = ImplicitRegularizationEstimator(net, loss=loss, batch_size=4, cache=sys.argv[1] or None)
print("ready", flush=True)
print(est.fit(X, X[:, :1]).to_json(), flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_times(tmp_path):
    def run(folder):
        command = [sys.executable, "-c", SCRIPT, str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    whole = run("").communicate()[0]
    rng, n_killed = np.random.default_rng(0), 0
    for _ in range(8):
        process = run(tmp_path)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        n_killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert n_killed
    assert run(tmp_path).communicate()[0] == whole


@pytest.mark.parametrize("kind", ["norms", "masks", "readings"])
def test_nothing_of_the_users_changes(kind, tmp_path):
    model, how, rows = KINDS[kind]()
    before = copy.deepcopy(model.state_dict()), copy.deepcopy(rows)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    for _ in range(2):
        Estimator(model, **how, cache=tmp_path).fit(*rows)
    with pytest.raises(ValueError, match="got one with other"):
        Estimator(model, **(how | {"batch_size": 20}), cache=tmp_path).fit(*rows)
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])
    assert all(map(torch.equal, before[0].values(), model.state_dict().values()))
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    for own, given in zip(before[1], rows, strict=True):
        assert not isinstance(given, torch.Tensor) or torch.equal(own, given)
