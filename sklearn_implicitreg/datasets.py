"""Data for examples and benchmarks."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import fetch_openml, get_data_home
from sklearn.utils import Bunch

from sklearn_implicitreg.problem.parameters import FLAG, NOTHING, checked, instance

__all__ = ["load_mnist"]

_VARIABLE = "SKLEARN_IMPLICITREG_DATA"
_IDX = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


@checked(data_home=NOTHING | instance("a path", str, os.PathLike), download=FLAG)
def load_mnist(data_home: str | os.PathLike[str] | None = None, *, download: bool = True) -> Bunch:
    """Handwritten digits of LeCun, Cortes and Burges.

    Looked for as ``mnist.npz`` or as the four original idx files (plain or gzipped): in
    ``data_home``, at the place that the environment variable ``SKLEARN_IMPLICITREG_DATA`` names,
    and in scikit-learn's data folder; else fetched from OpenML and kept in that folder.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder, or the npz file itself.
    download : bool, default=True
        Whether to fetch the data from OpenML if there is no copy.

    Returns
    -------
    mnist : Bunch
        ``data``, ``test_data`` of shapes (60000, 784), (10000, 784); ``target``, ``test_target``.

    Raises
    ------
    OSError
        If there is no copy and it cannot be fetched; the message says where to put the file.

    Examples
    --------
    >>> from sklearn_implicitreg.datasets import load_mnist
    >>> load_mnist("/no/such/folder", download=False)
    Traceback (most recent call last):
    ...
    OSError: MNIST was not found in ...
    """
    places = [Path(p) for p in (data_home, os.environ.get(_VARIABLE)) if p is not None]
    if data_home is None or download:
        places.append(Path(get_data_home()))
    for place in places:
        arrays = _read(place)
        if arrays is not None:
            return _bunch(arrays)
    cause: OSError | None = None
    if download:
        try:
            return _fetched(Path(get_data_home()) / "mnist.npz")
        except OSError as error:
            cause = error
    raise OSError(
        f"MNIST was not found in {', '.join(map(str, places))}, and was not fetched. Put mnist.npz "
        f"(arrays {', '.join(_IDX)}) into one of them, or name its folder by `data_home` or the "
        f"environment variable {_VARIABLE}."
    ) from cause


def _read(place: Path) -> dict[str, npt.NDArray[Any]] | None:
    file = place if place.suffix == ".npz" else place / "mnist.npz"
    if file.is_file():
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in _IDX}
    found = {name: _idx_file(place, stem) for name, stem in _IDX.items()}
    if all(path is not None for path in found.values()):
        return {name: _read_idx(path) for name, path in found.items() if path is not None}
    return None


def _idx_file(place: Path, stem: str) -> Path | None:
    return next((p for p in (place / stem, place / f"{stem}.gz") if p.is_file()), None)


def _read_idx(path: Path) -> npt.NDArray[Any]:
    """Array of an idx file: two zero bytes, type 8 (uint8), axes, their sizes, the numbers."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        raw = file.read()
    if raw[:3] != b"\x00\x00\x08":
        raise OSError(f"Expected an idx file of unsigned bytes, got {path}, which is not one.")
    n_axes = raw[3]
    shape = np.frombuffer(raw, ">i4", n_axes, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * n_axes).reshape(shape)


def _fetched(file: Path) -> Bunch:
    images, labels = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False)
    images, labels = images.astype(np.uint8), labels.astype(np.int64)
    parts = (images[:60000], labels[:60000], images[60000:], labels[60000:])
    arrays = dict(zip(_IDX, parts, strict=True))
    np.savez_compressed(file, **arrays)
    return _bunch(arrays)


def _bunch(arrays: dict[str, npt.NDArray[Any]]) -> Bunch:
    return Bunch(
        data=arrays["x_train"].reshape(-1, 784),
        target=arrays["y_train"].astype(np.int64),
        test_data=arrays["x_test"].reshape(-1, 784),
        test_target=arrays["y_test"].astype(np.int64),
    )
