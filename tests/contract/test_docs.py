"""What the documentation shows is what happens: pages and examples are run."""

import ast
import contextlib
import doctest
import importlib
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest

import sklearn_implicitreg
from sklearn_implicitreg.regression.verdict import VERDICTS
from sklearn_implicitreg.results.next_steps import RULES

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in [ROOT / "README.md", *(ROOT / "doc").glob("*.md")] if ">>>" in path.read_text()
)
EXAMPLES = [
    pytest.param(script, id=script.name, marks=[pytest.mark.slow] * ("_fig5_" in script.name))
    for script in sorted((ROOT / "examples").rglob("plot_*.py"))
]
PUBLIC_MODULES = [
    "sklearn_implicitreg",
    "sklearn_implicitreg.adapters",
    "sklearn_implicitreg.datasets",
    "sklearn_implicitreg.exceptions",
    "sklearn_implicitreg.inspection",
    "sklearn_implicitreg.model_selection",
    "sklearn_implicitreg.penalties",
    "sklearn_implicitreg.theory",
    "sklearn_implicitreg.trajectory",
]
RECORD = ROOT / "doc" / "record.md"
EXTENDING = ROOT / "doc" / "extending.md"
SVG = "{http://www.w3.org/2000/svg}"
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
CODE = re.compile(r"^```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page):
    source = "\n".join(block for block in CODE.findall(page.read_text()) if ">>>" in block)
    test = doctest.DocTestParser().get_doctest(source, {}, page.name, str(page), 0)
    report = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert test.examples
    assert not report, "".join(report)


PARTS = EXTENDING.read_text().split("\n## ")[1:]
PART_NAMES = [part.splitlines()[0] for part in PARTS]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ERROR_ROW = re.compile(r"^\| (.*?(?:`|…)) \| ", re.MULTILINE)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("part", PARTS, ids=PART_NAMES)
def test_part_of_extending_alone(part):
    namespace = {"__name__": "extending"}
    printed = ""
    for kind, text in BLOCK.findall(part):
        if kind == "python":
            assert not printed, "what a block prints is shown below it"
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, EXTENDING.name, "exec"), namespace)
            printed = out.getvalue()
        else:
            assert doctest.OutputChecker().check_output(text, printed, FLAGS), printed
            printed = ""
    assert not printed


@pytest.mark.parametrize("part", PARTS, ids=PART_NAMES)
def test_errors_that_extending_explains_exist(part):
    rows = ERROR_ROW.findall(part.split("### Errors you may see")[1])
    assert len(rows) > 3
    texts = _texts()
    for row in rows:
        for piece in row.split("…"):
            words = piece.strip().strip("`")
            assert any(words in text for text in texts), words


RECORDED = RECORD.read_text().split("\n## ")
LIBRARIES = re.compile(r"^(?:from|import) (accelerate|lightning|transformers)", re.MULTILINE)


@pytest.mark.parametrize("part", RECORDED[1:], ids=lambda part: part.splitlines()[0])
def test_part_of_record_alone(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    libraries = LIBRARIES.findall(part)
    if libraries:  # which warn of themselves
        warnings.simplefilter("default")
    for library in libraries:
        pytest.importorskip(library)
    blocks = [text for _, text in BLOCK.findall(RECORDED[0] + part)]
    namespace = {"__name__": "record"}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for code in blocks[:-1]:
            exec(compile(code, RECORD.name, "exec"), namespace)
    shown = blocks[-1].splitlines(keepends=True)
    printed = out.getvalue().splitlines(keepends=True)[-len(shown) :]  # libraries print as well
    assert printed == shown


def _texts():
    """Constant strings of the package."""
    package = Path(sklearn_implicitreg.__file__).parent
    trees = [ast.parse(path.read_text()) for path in package.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_the_page_of_next_steps_is_the_table():
    sys.path.insert(0, str(ROOT / "doc"))
    text = importlib.import_module("next_steps_page").page()
    heads = re.findall(r"^## `(.*)`$", text, re.MULTILINE)
    for verdict, section in zip(
        heads, re.split(r"^## .*$", text, flags=re.MULTILINE)[1:], strict=True
    ):
        rules = [rule for rule in RULES if verdict in rule.verdicts]
        assert rules
        codes = CODE.findall(section)
        assert len(codes) == len(rules)
        for code in codes:
            compile(code, "next_steps.md", "exec")
        for rule in rules:
            assert rule.title.partition("{")[0] in section
            assert rule.why.partition("{")[0] in section
    assert heads == list(VERDICTS)


@pytest.mark.parametrize("page", ["doc/design.md", "CONTRIBUTING.md"])
def test_files_that_are_named_exist(page):
    package = Path(sklearn_implicitreg.__file__).parent
    folders = ROOT, package, package / "regression"
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / page).read_text())
    assert named
    assert [n for n in named if not any((folder / n).is_file() for folder in folders)] == []


def test_the_picture_of_the_house_shows_every_part(tmp_path):
    picture = tmp_path / "house.svg"
    subprocess.run([sys.executable, ROOT / "doc" / "draw_house.py", picture], check=True)
    shown = {text.text for text in ElementTree.parse(picture).iter(f"{SVG}text")}
    package = Path(sklearn_implicitreg.__file__).parent
    parts = {path.stem for path in package.iterdir() if list(path.glob("*.py"))}
    assert parts | {path.stem for path in package.glob("*.py")} <= shown


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_api_page_lists_public_names(module):
    listed = set((ROOT / "doc" / "api.rst").read_text().split())
    assert [n for n in importlib.import_module(module).__all__ if n not in listed] == []


@pytest.mark.parametrize("script", EXAMPLES)
def test_example(script, tmp_path):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
