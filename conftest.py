"""Examples in docstrings that need a library which is not installed are skipped."""

import importlib.util

import pytest

# By the end of the name of what has the docstring.
NEEDED = {
    "IterateRecorder": ["sklearn.callback"],
    "LightningRecorder": ["lightning"],
    "TransformersRecorder": ["transformers", "accelerate"],
}


def pytest_collection_modifyitems(items):
    """Mark the examples of classes for other libraries."""
    for item in items:
        example = isinstance(item, pytest.DoctestItem)
        name = item.name.rpartition(".")[2] if example else ""
        libraries = ["matplotlib"] if name.endswith("Display") else NEEDED.get(name, [])
        if {"lightning", "transformers"} & set(libraries):
            item.add_marker(pytest.mark.filterwarnings("default"))  # which warn of themselves
        for library in libraries:
            missing = importlib.util.find_spec(library) is None
            item.add_marker(pytest.mark.skipif(missing, reason=f"needs {library}"))
