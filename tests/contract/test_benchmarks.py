"""The run of all benchmarks: what is printed and kept, and what makes it fail."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmarks_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    bounds = {"at most": (-math.inf, 1.05), "between": (8.0, 12.0)}
    monkeypatch.setattr(module, "SCRIPTS", {"one": module.Script("", bounds)})
    return module


def test_scripts_are_there():
    listed = (FOLDER / "run.py").read_text().split("SCRIPTS = ")[1].split("\ndef ")[0]
    names = [line.split('"')[1] for line in listed.splitlines() if line.startswith('    "')]
    assert len(names) > 5
    assert all((FOLDER / f"bench_{name}.py").exists() for name in names)


@pytest.mark.parametrize(
    ("found", "good"),
    [
        ({"at most": 1.05, "between": 8.0}, True),
        ({"at most": 0.0, "between": 12.0, "of no bound": 3.0}, True),
        ({"at most": 1.06, "between": 10.0}, False),
        ({"at most": 1.0, "between": 7.99}, False),
        ({"at most": 1.0, "between": 12.1}, False),
        ({"at most": 1.0}, False),
        ({"at most": 1.0, "between": "a library is not installed"}, True),
        ({"at most": float("nan"), "between": 10.0}, False),
        ({"skipped": "no GPU"}, True),
        ({"failed": "exit code 1"}, False),
    ],
)
def test_judged(run, capsys, found, good):
    assert run.judged("one", found) is good
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.startswith("one: ") for line in lines)
    assert any("MISSED" in line or "failed" in line for line in lines) is not good


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("print('table'); print('{\"a\": 1.5}')", {"a": 1.5}),
        ("print('no figures')", None),
        ("print('{\"a\": 1.5}'); raise SystemExit(3)", None),
        ("", None),
    ],
)
def test_run(run, monkeypatch, tmp_path, body, found):
    (tmp_path / "bench_one.py").write_text(body)
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    result = run.run("one", 1)
    assert result == found if found else "failed" in result


def test_kept_beside_those_of_the_same_machine(run, tmp_path):
    run.SCRIPTS.update(two=run.Script())
    here = {"device": "A (R) 2.1GHz", "threads": 2}
    run.kept({"two": {"b": 2.0}}, here, tmp_path)
    path = run.kept({"one": {"a": 1.0}}, here, tmp_path)
    assert path.name == "a-r-2-1ghz.json"
    assert json.loads(path.read_text())["figures"] == {"one": {"a": 1.0}, "two": {"b": 2.0}}
    run.kept({"one": {"a": 3.0}}, here | {"threads": 1}, tmp_path)
    assert json.loads(path.read_text())["figures"] == {"one": {"a": 3.0}}
