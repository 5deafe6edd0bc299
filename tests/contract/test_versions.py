"""Versions that are promised are those that are tested; optional libraries may be missing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.inspection import CoefficientDisplay

ROOT = Path(__file__).parents[2]
WITHOUT = """
import pkgutil, sys
missing = {"accelerate", "dask", "hypothesis", "lightning", "matplotlib"}
missing |= {"ray", "safetensors", "statsmodels", "transformers"}
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
import sklearn_implicitreg as package
for module in pkgutil.walk_packages(package.__path__, "sklearn_implicitreg."):
    __import__(module.name)
    print(module.name)
"""


def test_every_module_imports_without_any_of_them():
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "sklearn_implicitreg.adapters.statsmodels" in run.stdout.split()


def drawn(folder):
    CoefficientDisplay(coef=[1.0], term_names=["l2"]).plot()


def cached(folder):
    X, y = load_diabetes(return_X_y=True)
    ImplicitRegularizationEstimator(Ridge().fit(X, y), cache=folder).fit(X, y)


@pytest.mark.parametrize(
    ("call", "library", "extra"),
    [(drawn, "matplotlib", "plot"), (cached, "safetensors", "cache")],
)
def test_the_message_has_the_extra(call, library, extra, monkeypatch, tmp_path):
    for name in [library, *(n for n in sys.modules if n.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=rf"{library}.*pip install sklearn_implicitreg\[{extra}\]"
    ):
        call(tmp_path)


def numbers(version):
    """Parts of a version without zeros at its end: 1.8 and 1.8.0 are the same."""
    return re.sub(r"(\.0)+$", "", version)


def pins(file):
    return dict(re.findall(r"(?m)^([\w-]+)==([\d.]+)", (ROOT / file).read_text()))


def test_lower_bounds_are_the_oldest_tested_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = sum((extras[e] for e in ("cache", "plot", "statsmodels", "test")), [])
    bounds = [re.fullmatch(r"([\w-]+)>=([\d.]+)", r) for r in project["dependencies"] + listed]
    promised = {found[1]: numbers(found[2]) for found in bounds if found}
    tested = {name: numbers(version) for name, version in pins("constraints-oldest.txt").items()}
    assert len(promised) >= 14
    assert promised == {name: tested.get(name) for name in promised}
    assert promised.keys() <= pins("constraints.txt").keys()


def test_the_page_names_the_oldest_versions():
    page = (ROOT / "doc" / "start.md").read_text().split("## Versions")[1].split("\n## ")[0]
    words = " ".join(page.split())
    tested = pins("constraints-oldest.txt")
    for name in ("NumPy", "SciPy", "pandas", "scikit-learn", "skorch", "joblib", "torch"):
        assert f"{name} {numbers(tested[name.lower()])}" in words
