"""The shape of the package: direction of imports, sizes, documented names, a light import."""

import ast
import importlib
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

# Bottom to top; a module may import from lines above its own (and, in a package, from siblings).
LAYERS = [
    {"exceptions", "datasets", "progress"},
    {"problem"},
    {"theory"},
    {"adapters"},
    {"penalties"},
    {"regression"},
    {"endpoints"},
    {"trajectory"},
    {"results"},
    {"base"},
    {"estimator"},
    {"model_selection"},
    {"inspection"},
    {"__init__"},
]
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
OPTIONAL = ("skorch", "matplotlib", "lightning", "transformers", "statsmodels", "dask")
PUBLIC_MODULES = (
    "",
    ".datasets",
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


def dotted(path):
    """Import name of a file, a package under the name of its directory."""
    parts = [NAME, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {dotted(path) for path in MODULES}


def part_of(module):
    """Top-level part of the package that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path):
    """Modules of the package that a file imports, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in KNOWN else node.module for name in names]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] == NAME}
    return found


def reachable(start, graph):
    """All modules that a module imports, directly or not."""
    seen, todo = set(), list(graph[start])
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += graph[module]
    return seen


def own_lines(node):
    """Lines of a function without its docstring."""
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_point_downward(path):
    mine = part_of(dotted(path))
    assert mine in RANK, f"{mine} has no place in LAYERS"
    for module in sorted(imports(path)):
        part = part_of(module)
        assert part == mine or RANK[part] < RANK[mine], f"{mine} imports {module}"


def test_no_import_cycles():
    graph = {dotted(path): imports(path) - {dotted(path)} for path in MODULES}
    assert [module for module in graph if module in reachable(module, graph)] == []


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_modules_have_one_subject(path):
    assert path.stem not in {"utils", "common", "helpers", "misc"}
    assert len(path.read_text().splitlines()) < 400


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
    code = f"import sys, {NAME}; print([m for m in {OPTIONAL} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
