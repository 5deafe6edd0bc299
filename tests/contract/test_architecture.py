"""The shape of the package: direction of imports, sizes, documented names, a light import."""

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sklearn_implicitreg

NAME = sklearn_implicitreg.__name__
ROOT = Path(sklearn_implicitreg.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in MODULES]
TREES = {path: ast.parse(path.read_text()) for path in MODULES}

# The picture in the docs shows what is counted here.
_SPEC = importlib.util.spec_from_file_location(
    "draw_house", Path(__file__).parents[2] / "doc" / "draw_house.py"
)
house = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(house)

# Bottom to top. A part imports from lines above its own here and, in a line, leftwards only.
LAYERS = [
    ["exceptions", "progress", "problem", "datasets"],
    ["theory", "adapters", "penalties"],
    ["regression"],
    ["endpoints", "trajectory", "inspection"],
    ["results"],
    ["base", "estimator", "model_selection", "__init__"],
]
ORDER = [part for layer in LAYERS for part in layer]
OPTIONAL = ("skorch", "matplotlib", "lightning", "transformers", "statsmodels", "dask")
# Loaded with the models that need them: a quarter of the time of an import.
USED_LATER = tuple(
    f"sklearn.{part}" for part in ("compose", "linear_model", "model_selection", "pipeline", "svm")
)
PUBLIC_MODULES = (
    "",
    ".adapters",
    ".datasets",
    ".exceptions",
    ".inspection",
    ".model_selection",
    ".penalties",
    ".theory",
    ".trajectory",
)
PUBLIC = [
    (module, name)
    for module in (NAME + suffix for suffix in PUBLIC_MODULES)
    for name in importlib.import_module(module).__all__
]


NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, *NAMED)

# Where the kinds of the regression are defined, and what their instances are called.
KIND_MODULES = [
    *(ROOT / "regression").glob("*.py"),
    ROOT / "endpoints" / "targets.py",
    ROOT / "trajectory" / "targets.py",
    ROOT / "results" / "fit_description.py",
    ROOT / "results" / "structured.py",
]
KIND_NAMES = {"equations", "system", "design", "targets", "place", "result", "_result", "facts"}
PRIVATE_LINES = 200


def reachable(start, graph):
    """All modules that a module imports, directly or not."""
    seen, todo = set(), list(graph[start])
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += graph[module]
    return seen


def docstrings(tree):
    """Nodes that have a docstring, with it."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            yield node, node.body[0]


def n_lines_of_code(path):
    """Lines that are neither blank, nor only a comment, nor in a docstring."""
    inside = {i for _, e in docstrings(TREES[path]) for i in range(e.lineno, e.end_lineno + 1)}
    numbered = enumerate(map(str.strip, path.read_text().splitlines()), start=1)
    return sum(bool(t) and not t.startswith("#") and i not in inside for i, t in numbered)


def questions(path):
    """Places that ask of which kind an object of the regression is, not in its own module."""
    home = {c.name: p for p in KIND_MODULES for c in TREES[p].body if isinstance(c, ast.ClassDef)}

    def kinds(*nodes):
        names = {name_of(x) for node in nodes for x in ast.walk(node)}
        return {name for name in names if home.get(name, path) != path}

    found = []
    for node in ast.walk(TREES[path]):
        asked = set()
        if isinstance(node, ast.Call):
            called, n = name_of(node.func), len(node.args)
            if called in {"isinstance", "issubclass"}:
                asked = kinds(node.args[1])
            elif called == "hasattr" or (called == "getattr" and n == 3):
                asked = {name_of(node.args[0])} & KIND_NAMES
        elif isinstance(node, ast.Compare):
            inside = {name_of(x.func) for x in ast.walk(node) if isinstance(x, ast.Call)}
            if "type" in inside or "__class__" in {name_of(x) for x in ast.walk(node)}:
                asked = kinds(node)
        elif isinstance(node, ast.MatchClass):
            asked = kinds(node.cls)
        found += [f"line {getattr(node, 'lineno', '?')}: {name}" for name in sorted(asked)]
    return found


def name_of(node):
    """Name of a variable or an attribute."""
    return getattr(node, "id", getattr(node, "attr", None))


def shown():
    """Names of public modules and of the API page, as (module, qualified name), bases included."""
    things = []
    for module in (importlib.import_module(NAME + suffix) for suffix in PUBLIC_MODULES):
        names = [*module.__all__, *getattr(module, "_RECORDERS", ())]
        things += [getattr(module, name) for name in names]
    for line in (Path(__file__).parents[2] / "doc" / "api.rst").read_text().split():
        if line.startswith(("results.", "regression.")):  # what a method returns
            where, name = line.rsplit(".", 1)
            things.append(getattr(importlib.import_module(f"{NAME}.{where}"), name))
    own = [t for thing in things for t in (thing.__mro__ if inspect.isclass(thing) else (thing,))]
    return {(t.__module__, t.__qualname__) for t in own if hasattr(t, "__qualname__")}


def n_private_lines(path):
    """Lines beyond the first of docstrings that no public name has."""
    module, lines = house.dotted(path), path.read_text().splitlines()
    public = shown()

    def is_public(names):
        if not names:
            return module in {NAME + suffix for suffix in PUBLIC_MODULES}
        for i in range(len(names)):
            if (module, ".".join(names[: i + 1])) in public:
                return not any(name.startswith("_") for name in names[i + 1 :])
        return False

    def count(node, names):
        total = 0
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) and not is_public(names):
            text = node.body[0]
            total = sum(bool(line.strip()) for line in lines[text.lineno : text.end_lineno])
        for child in ast.iter_child_nodes(node):
            total += count(child, [*names, child.name] if isinstance(child, NAMED) else names)
        return total

    return count(TREES[path], [])


def own_lines(node):
    """Lines of a function without its docstring."""
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_point_downward(path):
    mine = house.part_of(house.dotted(path))
    assert mine in ORDER, f"{mine} has no place in LAYERS"
    for module in sorted(house.imports(path)):
        part = house.part_of(module)
        assert ORDER.index(part) <= ORDER.index(mine), f"{mine} imports {module}"


def test_no_import_cycles():
    graph = {house.dotted(path): house.imports(path) for path in MODULES}
    assert [module for module in graph if module in reachable(module, graph)] == []


def test_few_parts_and_few_arrows_between_them():
    assert len(list(ROOT.glob("*.py"))) <= 10
    arrows = set(house.arrows())
    assert len(arrows) <= 60
    assert max(house.heights(arrows).values()) <= 10  # arrows on the longest chain


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_modules_have_one_subject(path):
    assert path.stem not in {"utils", "common", "helpers", "misc"}
    assert n_lines_of_code(path) <= 400


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_no_questions_about_kinds_of_the_regression(path):
    assert questions(path) == []


def test_private_docstrings_have_one_line():
    assert sum(map(n_private_lines, MODULES)) <= PRIVATE_LINES


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_functions_are_short(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, functions)]
    assert {n.name: own_lines(n) for n in nodes if own_lines(n) >= 50} == {}


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[f"{m}.{n}" for m, n in PUBLIC])
def test_public_names_are_documented(module, name):
    thing = getattr(importlib.import_module(module), name)
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return
    docstring = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert docstring, f"{module}.{name} has no docstring"
    if module == NAME:
        assert "Examples\n" in docstring, f"{module}.{name} shows no example"
        assert ">>>" in docstring


def test_public_names_are_sorted_and_exist():
    for module in {m for m, _ in PUBLIC}:
        names = importlib.import_module(module).__all__
        assert len(set(names)) == len(names)


def test_import_is_light():
    later = OPTIONAL + USED_LATER
    code = f"import sys, {NAME}; print([m for m in {later} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
