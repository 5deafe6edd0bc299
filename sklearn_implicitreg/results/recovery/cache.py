"""Finished runs of a recovery in a folder, so that an interrupted one goes on where it was."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import scipy
import torch

from sklearn_implicitreg.endpoints.identity import digest
from sklearn_implicitreg.endpoints.kept import put_in_place
from sklearn_implicitreg.problem import shaped
from sklearn_implicitreg.problem.frozen import tensors_in
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.recovery.objective import Objective

Manifest = dict[str, str]
Found = TypeVar("Found", bound=tuple[Any, ...])


def manifest(folder: Any, objective: Objective, **settings: Any) -> Manifest:
    """Digests of the weights, rows and penalty that runs depend on, and settings in words."""
    if folder is None:
        return {}
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"Expected a folder as cache, got the file {str(folder)!r}.")
    theta, ablated = objective.theta, objective.ablated()
    # Gradients away from the model as well, where a row may matter that does not at the model.
    far = np.random.default_rng(0).standard_normal((2, len(theta))) * (1.0 + np.abs(theta))
    places = [theta, *far]
    return {
        "weights": digest(theta),
        "rows": digest(_rows(objective)),
        "loss": digest(ablated.gradient(place)[1] for place in places),
        "penalty": digest(objective.gradient(place)[1] for place in places),
        "settings": json.dumps({name: str(value) for name, value in settings.items()}),
        "versions": f"torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}",
    }


def kept(
    folder: Any,
    name: str,
    known: Manifest,
    start: Array,
    kind: type[Found],
    make: Callable[[], Found],
) -> Found:
    """A run from its file, if that is whole and of the same manifest and start; else made."""
    if folder is None:
        return make()
    file, stated = Path(folder) / f"{name}.npz", json.dumps(known | {"start": digest(start)})
    found: Found | None = None
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, BadZipFile):
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as given:
            if given["manifest"].item() == stated:
                values = {field: given[field] for field in kind._fields}  # type: ignore[attr-defined]
                found = kind(**{n: v if v.ndim else v.item() for n, v in values.items()})
    return found if found is not None else _stored(file, stated, make())


def _stored(file: Path, stated: str, found: Found) -> Found:
    file.parent.mkdir(parents=True, exist_ok=True)

    def write(part: Path) -> None:
        with part.open("wb") as stream:  # np.savez would give a path its own ending
            np.savez(stream, manifest=stated, **found._asdict())  # type: ignore[attr-defined]

    put_in_place(file, write)
    return found


def source_of(train: Any) -> str:
    """What a training does, as far as its source says it."""
    try:
        return inspect.getsource(train)
    except (OSError, TypeError):  # typed in a shell, or a net with its parameters
        return str(getattr(train, "__qualname__", train))


def _rows(objective: Objective) -> Iterator[Any]:
    with torch.no_grad():
        for batch in objective.problem.row_batches(shaped(objective.params, objective.theta)):
            yield from tensors_in((batch.inputs, batch.target, batch.weight))
