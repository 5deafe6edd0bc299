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
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

import sklearn_implicitreg
from sklearn_implicitreg import ImplicitRegularizationEstimator, exceptions
from sklearn_implicitreg.regression.verdict import VERDICTS
from sklearn_implicitreg.results.next_steps import RULES, NextSteps, section_of

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in [ROOT / "README.md", *(ROOT / "doc").glob("*.md")] if ">>>" in path.read_text()
)
SLOW = ("_fig3_", "_fig5_")  # whole grids of trained nets; make paper runs them too
EXAMPLES = [
    pytest.param(
        script, id=script.name, marks=[pytest.mark.slow] * any(s in script.name for s in SLOW)
    )
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
NEEDS = {  # beyond the dependencies: how a page or script shows it
    "matplotlib": r"\bmatplotlib\.pyplot|Display\.",
    "safetensors": r"\bcache=folder",
    "statsmodels": r"\bimport statsmodels",
}
CODE = re.compile(r"^```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


def skip_without_what_it_needs(source):
    for library, sign in NEEDS.items():
        if re.search(sign, source):
            pytest.importorskip(library)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page, monkeypatch):
    monkeypatch.setattr(exceptions, "_GIVEN", set())  # warnings that come once a process
    source = "\n".join(block for block in CODE.findall(page.read_text()) if ">>>" in block)
    skip_without_what_it_needs(source)
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


def _anchors(page):
    """Anchors of the headings of a page, as the builder of the pages makes them."""
    heads = re.findall(r"^#+ (.*)$", CODE.sub("", (ROOT / page).read_text()), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return {f"{page}#{word.replace(' ', '-')}" for word in words}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_names_its_section(verdict):
    section = section_of(verdict)
    assert section in _anchors("doc/trust.md")
    assert section in repr(NextSteps(verdict, []))
    assert section in NextSteps(verdict, [])._repr_html_()


def test_a_summary_names_the_section_of_its_verdict():
    X, y = load_diabetes(return_X_y=True)
    for family in ("l2", "power", "l2+weight_decay", "diagonal"):
        est = ImplicitRegularizationEstimator(Ridge().fit(X, y), family=family)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", exceptions.CollinearTermsWarning)
            est.fit(X, y)
        assert section_of(est.verdict_) in " ".join(str(est.summary()).split())


@pytest.mark.parametrize("name", exceptions.__all__)
def test_every_warning_names_its_section_with_an_example(name):
    kind = getattr(exceptions, name)
    section = f"doc/warnings.md#{name.lower()}"
    assert section in _anchors("doc/warnings.md")
    assert section in kind.__doc__
    text = (ROOT / "doc" / "warnings.md").read_text().split(f"## {name}\n")[1].split("\n## ")[0]
    assert name in "".join(CODE.findall(text))
    if issubclass(kind, Warning):
        with pytest.warns(kind, match=re.escape(f"Something. ({section})")):
            exceptions.warn_user("Something.", kind)


def test_warnings_of_others_are_left_as_they_are():
    with pytest.warns(UserWarning) as caught:
        exceptions.warn_user("Something.", UserWarning)
    assert str(caught[0].message) == "Something."


def test_every_public_name_has_an_example_that_runs():
    pages = [path for path in (ROOT / "doc").glob("*.md") if path in PAGES or path == EXTENDING]
    code = "".join(block for path in pages for block in CODE.findall(path.read_text()))
    assert "load_diabetes" in code
    missing = []
    for module in map(importlib.import_module, PUBLIC_MODULES):
        for name in module.__all__:
            own = vars(getattr(module, name)) if isinstance(getattr(module, name), type) else {}
            text = own.get("__doc__") or getattr(getattr(module, name), "__doc__", "") or ""
            if ">>>" not in text and not re.search(rf"\b{name}\b", code):
                missing.append(f"{module.__name__}.{name}")
    assert missing == []


def test_the_readme_and_the_home_page_open_with_the_picture():
    picture = ROOT / "doc" / "_static" / "penalty_shape.png"
    assert picture.stat().st_size < 100_000
    for page in (ROOT / "README.md", ROOT / "doc" / "index.md"):
        head = page.read_text().split("```python")[0]
        (path,) = re.findall(r"!\[[^\]]+\]\((.+?)\)", head)
        assert (page.parent / path).resolve() == picture


def test_formulas_need_no_network():
    pytest.importorskip("latex2mathml")
    sys.path.insert(0, str(ROOT / "doc"))
    offline = importlib.import_module("offline")
    assert "<mfrac>" in offline.mathml(r"\frac{1}{2}", block=True)
    with pytest.raises(ValueError, match="that latex2mathml knows"):
        offline.mathml(r"\unknown{x}")
    for text in ('<script src="https://a.b/c.js">', '<link rel="stylesheet" href="//a.b/c.css">'):
        assert offline.loaded(text)
    assert not offline.loaded('<a href="https://a.b/c"> <script src="_static/c.js">')


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
    parts |= {path.stem for path in package.glob("*.py")}
    assert parts - {"__main__"} <= shown  # the command line is drawn with the face


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_api_page_lists_public_names(module):
    listed = set((ROOT / "doc" / "api.rst").read_text().split())
    assert [n for n in importlib.import_module(module).__all__ if n not in listed] == []


@pytest.mark.parametrize("script", EXAMPLES)
def test_example(script, tmp_path):
    skip_without_what_it_needs(script.read_text())
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
