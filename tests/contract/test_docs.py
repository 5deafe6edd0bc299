"""What the documentation shows is what happens: pages and examples are run."""

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in [ROOT / "README.md", *(ROOT / "doc").glob("*.md")] if ">>>" in path.read_text()
)
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
PUBLIC_MODULES = [
    "sklearn_implicitreg",
    "sklearn_implicitreg.penalties",
    "sklearn_implicitreg.theory",
    "sklearn_implicitreg.inspection",
    "sklearn_implicitreg.model_selection",
]
CODE = re.compile(r"^```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page):
    source = "\n".join(block for block in CODE.findall(page.read_text()) if ">>>" in block)
    test = doctest.DocTestParser().get_doctest(source, {}, page.name, str(page), 0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    report = []
    doctest.DocTestRunner(optionflags=flags).run(test, out=report.append)
    assert test.examples
    assert not report, "".join(report)


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_api_page_lists_public_names(module):
    listed = set((ROOT / "doc" / "api.rst").read_text().split())
    assert [n for n in importlib.import_module(module).__all__ if n not in listed] == []


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
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
