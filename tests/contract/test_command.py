"""The command line: what it prints, what it loads, and how it ends."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sklearn_implicitreg
from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.__main__ import main

MINE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def model():
    print("building")
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()

def rows():
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(80, 3, generator=rng).double()
    return X, X[:, :1].sin()

def weighted():
    return *rows(), torch.linspace(1, 2, 80)

def loader():
    return DataLoader(TensorDataset(*rows()), 16)

def wrong_rows():
    return torch.ones(3, 7).double(), torch.ones(3, 1).double()

def many():
    return 1, 2, 3, 4

class Strict(nn.Linear):
    def forward(self, x):
        raise ValueError("of the user's forward")

def strict():
    return Strict(3, 1).double()

class Short(torch.utils.data.Dataset):
    def __len__(self):
        return 9
    def __getitem__(self, i):
        if i == 8:
            raise OSError("of the user's rows")
        return torch.ones(3).double(), torch.ones(1).double()

def short():
    return Short()

class Large(nn.Linear):
    def forward(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory.")

def large():
    return Large(3, 1).double()

class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)
    def forward(self, x, labels=None):
        return {"loss": (self.net(x) - labels).square().mean()}

def dicts():
    return [{"x": x, "labels": x[:1]} for x in torch.eye(3)]

def missing():
    import not_there_at_all

def broken():
    raise RuntimeError("of the user's own")

ridge = object
number = 3
"""


@functools.cache
def trained():
    """State of the net at a minimum of its loss and 0.02 sum w^2, and its rows."""
    space = {}
    exec(MINE, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = space["model"]()
    X, y = space["rows"]()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=300, tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        own = sum(p.square().sum() for n, p in net.named_parameters() if "weight" in n)
        loss = nn.functional.mse_loss(net(X), y) + 0.02 * own
        loss.backward()
        return loss

    optimizer.step(closure)
    return net, X, y


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's in the working folder, and weights that it was trained to."""
    (tmp_path / "mine_of_command.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_of_command", raising=False)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    net, X, y = trained()
    torch.save(net.state_dict(), "net.pt")
    return net, X, y


def arguments(**changed):
    own = {"model": "mine_of_command:model", "weights": "net.pt", "data": "mine_of_command:rows"}
    own |= {"loss": "mse"} | changed
    pairs = [(f"--{name}", value) for name, value in own.items() if value is not None]
    return ["estimate", *(part for pair in pairs for part in pair)]


def test_json_of_a_known_coefficient(mine, capsys):
    net, X, y = mine
    assert main([*arguments(), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found == json.loads(ImplicitRegularizationEstimator(net, loss="mse").fit(X, y).to_json())
    assert found["terms"][0]["coef"] == pytest.approx(0.02, rel=1e-3)
    assert "building" in err
    assert all(f"{stage} ..." in err for stage in ("model", "data", "fit of l2"))


def test_safetensors_families_and_cache(mine, capsys):
    safetensors = pytest.importorskip("safetensors.torch")
    net, X, y = mine
    safetensors.save_file(net.state_dict(), "net.safetensors")
    how = {"weights": "net.safetensors", "family": "l2,l1", "params": "all", "cache": "kept"}
    plain = ImplicitRegularizationCV(net, families=["l2", "l1"], loss="mse", params="all")
    plain.fit(X, y)
    for _ in range(2):
        assert main(arguments(**how)) == 0
        assert capsys.readouterr().out == f"{plain.summary()}\n"
    assert Path("kept", "manifest.json").exists()
    torch.save({n: t + 1e-3 for n, t in net.state_dict().items()}, "net.pt")
    assert main(arguments(**(how | {"weights": "net.pt"}))) == 2
    assert "got one with other weights (0.weight, 0.bias" in capsys.readouterr().err


@pytest.mark.parametrize("rows", ["weighted", "loader"])
def test_kinds_of_data(mine, rows, capsys):
    import mine_of_command

    given = getattr(mine_of_command, rows)()
    given = given if isinstance(given, tuple) else (given,)
    plain = ImplicitRegularizationEstimator(mine[0], loss="mse").fit(*given)
    assert main([*arguments(data=f"mine_of_command:{rows}"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(plain.to_json())


WRONG = {
    "no colon": ({"model": "mine_of_command"}, "Expected --model module:function, got"),
    "no module": ({"data": "nowhere:rows"}, "there is no module 'nowhere'"),
    "no function": ({"data": "mine_of_command:nope"}, "mine_of_command.py, got no such name."),
    "mistyped": ({"data": "mine_of_command:rosw"}, "Did you mean mine_of_command:rows?"),
    "no callable": ({"model": "mine_of_command:number"}, "got a value of type int"),
    "no net": ({"model": "mine_of_command:ridge"}, "Expected an nn.Module for --weights"),
    "no file": ({"weights": "gone.pt"}, "got gone.pt (No such file or directory)"),
    "no safetensors": ({"weights": "gone.safetensors"}, "got gone.safetensors (No such file or"),
    "code": ({"weights": "whole.pt"}, "got a damaged file or one that holds code"),
    "cut": ({"weights": "cut.safetensors"}, "got a damaged file or one that holds code"),
    "other net": ({"weights": "other.pt"}, "Expected the weights of the model in other.pt"),
    "a tensor": ({"weights": "tensor.pt"}, "Expected the weights of the model in tensor.pt"),
    "relative": ({"model": ".mine:model"}, "Expected --model module:function, got"),
    "memory": ({"model": "mine_of_command:large", "weights": "other.pt"}, "Expected memory for"),
    "no folder": ({"cache": ""}, "the name of a folder"),
    "family": ({"family": "l2,nope"}, "nope"),
    "loss": ({"loss": "nope"}, "nope"),
    "no loss": ({"loss": None}, "loss"),
    "group": ({"group-by": "nope"}, "Expected group_by of"),
    "groups of no optimizer": ({"group-by": "param_group"}, "knows its optimizer"),
    "params": ({"params": "nope"}, "selects none of the trained parameters"),
    "rows": ({"data": "mine_of_command:wrong_rows"}, "Expected"),
    "many": ({"data": "mine_of_command:many"}, "got 4 things"),
    "device": ({"device": "gpu"}, "device"),
    "cache": ({"cache": "net.pt"}, "Expected a folder as cache, got the file 'net.pt'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_arguments_are_a_sentence(mine, case, capsys):
    torch.save(nn.Linear(3, 1), "whole.pt")
    torch.save(nn.Linear(3, 1).state_dict(), "other.pt")
    torch.save(torch.ones(3), "tensor.pt")
    Path("cut.safetensors").write_bytes(b"\x10\x00")
    changed, text = WRONG[case]
    if "cache" in changed or ".safetensors" in changed.get("weights", ""):
        pytest.importorskip("safetensors")
    assert main(arguments(**changed)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("sklearn_implicitreg: ")
    assert text in last
    assert "Traceback" not in err


def test_without_safetensors(mine, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert main(arguments(weights="gone.safetensors")) == 2
    assert "install it: pip install sklearn_implicitreg[cache]." in capsys.readouterr().err


@pytest.mark.parametrize("case", [[], ["estimate"], ["nope"], [*arguments(), "--batch-size", "x"]])
def test_usage(case, capsys):
    with pytest.raises(SystemExit) as ended:
        main(case)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "usage: python -m sklearn_implicitreg" in err
    assert ("Expected auto or an integer, got 'x'." in err) is ("x" in case)


def test_help_states_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["estimate", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("--weights", "--cache", "exit codes:", "0  a fit was made"))


@pytest.mark.parametrize(
    ("name", "error"), [("missing", ModuleNotFoundError), ("broken", RuntimeError)]
)
def test_errors_of_the_users_code_keep_their_traceback(mine, name, error):
    with pytest.raises(error):
        main(arguments(data=f"mine_of_command:{name}"))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"model": "mine_of_command:strict"}, "of the user's forward"),
        ({"data": "mine_of_command:short"}, "of the user's rows"),
    ],
    ids=["forward", "rows"],
)
def test_errors_of_the_users_code_during_the_fit_do_as_well(mine, changed, text):
    with pytest.raises((ValueError, OSError), match=text):
        main(arguments(**changed, weights=None))


def test_a_list_of_dicts_is_a_data_set(mine, capsys):
    how = {"model": "mine_of_command:Labelled", "data": "mine_of_command:dicts"}
    assert main([*arguments(**how, weights=None, loss=None), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["terms"][0]["term"] == "l2"


def test_batch_sizes_in_words(capsys):
    with pytest.raises(SystemExit):
        main([*arguments(), "--batch-size", "x"])
    assert "Expected auto or an integer, got 'x'" in capsys.readouterr().err


def run_into(stdout, **how):
    """A run in a process of its own, whose result goes somewhere."""
    command = [sys.executable, "-m", "sklearn_implicitreg", *arguments()]
    env = os.environ | {"PYTHONPATH": str(Path(sklearn_implicitreg.__file__).parents[1])}
    own = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True, "env": env}
    return subprocess.Popen(command, **own, **how)


def no_room_for(ran, text):
    """Assert that a run ends with one sentence."""
    with ran:
        err = ran.stderr.read()
    assert ran.returncode == 2
    assert "fit of l2" in err
    assert "Traceback" not in err and "Exception ignored" not in err
    last = err.splitlines()[-1]
    assert last.startswith("sklearn_implicitreg: Expected ") and text in last


def test_a_reader_that_stops(mine):
    ran = run_into(subprocess.PIPE)
    ran.stdout.close()
    no_room_for(ran, "broken pipe")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk(mine):
    with open("/dev/full", "w") as full:
        no_room_for(run_into(full), "no space left on device")


@pytest.mark.skipif(os.name != "posix", reason="descriptors of POSIX")
def test_a_closed_output(mine):
    no_room_for(run_into(None, preexec_fn=lambda: os.close(1)), "got a closed one")


@pytest.mark.parametrize("family", ["l2", "l2+l1", "l2,l1"])
def test_groups(mine, capsys, family):
    assert main([*arguments(family=family, **{"group-by": "layer"}), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = family.split(",")
    how = {"loss": "mse", "group_by": "layer"}
    if len(names) > 1:
        plain = ImplicitRegularizationCV(mine[0], families=names, **how)
    else:
        plain = ImplicitRegularizationEstimator(mine[0], family=family, **how)
    assert found == json.loads(plain.fit(*mine[1:]).to_json())
    assert {term["group"] for term in found["terms"]} == {"0", "2"}


def test_json_of_several_families_holds_that_of_one_and_all_of_the_table(mine, capsys):
    assert main([*arguments(family="l1,l2"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    one = json.loads(ImplicitRegularizationEstimator(mine[0], loss="mse").fit(*mine[1:]).to_json())
    assert found.pop("family") == "l2"
    families = {own.pop("family"): own for own in found.pop("families")}
    assert list(families) == ["l1", "l2"]
    assert found.keys() == one.keys()
    assert found["terms"][0]["coef"] == pytest.approx(one["terms"][0]["coef"], rel=1e-12)
    for name, own in families.items():
        est = ImplicitRegularizationEstimator(mine[0], family=name, loss="mse").fit(*mine[1:])
        assert own["r2"] == pytest.approx(est.r2_, rel=1e-9)
        assert (own["n_terms"], own["verdict"]) == (1, est.verdict_)
    assert families["l2"]["criterion"] > families["l1"]["criterion"]
    assert families["l2"]["se_difference"] == 0


def test_from_a_shell(mine):
    command = [sys.executable, "-m", "sklearn_implicitreg", *arguments(weights="gone.pt")]
    root = str(Path(sklearn_implicitreg.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": root}
    ran = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines()[-1].startswith("sklearn_implicitreg: Expected a file of weights")
    assert (
        subprocess.run(
            command, capture_output=True, env=os.environ | {"PYTHONPATH": root}
        ).returncode
        == 2
    )
