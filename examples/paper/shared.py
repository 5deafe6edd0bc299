"""What the figures of the paper share: arguments, images, a cache, the published fit, results."""

import argparse
import json
import os
import uuid
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from sklearn_implicitreg.datasets import load_mnist

RESULTS = "SKLEARN_IMPLICITREG_RESULTS"
COLUMNS = ("what", "published", "audited", "here", "verdict")


def arguments(description, cells=()):
    """Size, data, cache and cells of a figure, from the command line.

    ``cells`` are the names of all cells of the quick grid and of the full one, as a function of
    ``full`` or a tuple; ``args.cells`` are those asked for, all of them by default.
    """
    parser = argparse.ArgumentParser(description=description)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="the default, for two cores")
    size.add_argument("--full", action="store_true", help="the size of the paper, resumable")
    parser.add_argument("--data", help="folder of mnist.npz")
    parser.add_argument("--cache", help="folder of the results of cells that are done")
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="cells of the grid; all")
    parser.add_argument("--jobs", type=int, default=2, help="processes, 2 by default")
    args = parser.parse_args()
    known = tuple(cells(args.full) if callable(cells) else cells)
    unknown = sorted(set(args.cells or ()) - set(known))
    if unknown:
        names = ", ".join(known) or "none, the figure has no cells"
        parser.error(f"Expected cells among {names}; got {', '.join(unknown)}.")
    args.cells = [name for name in known if name in (args.cells or known)]
    return args


def images(n_rows, data=None, *, download=False):
    """Training images with standardized pixels, their labels, and where they are from.

    MNIST from ``data`` or where ``SKLEARN_IMPLICITREG_DATA`` says; else scikit-learn's digits.
    """
    try:
        mnist = load_mnist(data, download=download)
        X, y, source = (mnist.data[:n_rows] / 255 - 0.1307) / 0.3081, mnist.target[:n_rows], "MNIST"
    except OSError:
        X, y = load_digits(return_X_y=True)
        X, y, source = ((X - X.mean()) / X.std())[:n_rows], y[:n_rows], "digits"
    return X.astype(np.float32), y, source


def kept(folder, name, made_with, make):
    """Dict of arrays from a file of the folder, or made and written there.

    A file that is damaged, or was made with other settings, is made again. Files are written
    under another name first: one that exists is complete.
    """
    file = Path(folder) / f"{name}.npz"
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            found = dict(stored)
        if str(found.pop("made_with")) == str(made_with):
            return found
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        pass
    made = {key: np.asarray(value) for key, value in make().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as stream:
            np.savez(stream, made_with=str(made_with), **made)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    return made


def published_fit(gram, products, squares, n_weights, *, lr, n_epochs, patience, plateau=None):
    """Positive coefficients as the paper fits them: by Adam, on their logarithms.

    The objective on a mini-batch b is the mean over the weights of (sum_k s_k d_k + g_b)^2, with
    columns d_k and the gradient g_b of the loss. It depends on these through sums alone, so
    Adam is replayed on the sums. The losses of epochs are compared in float32, as they are logged.

    Parameters
    ----------
    gram, products, squares : arrays of shapes (k, k), (n_batches, k), (n_batches,)
        Products of columns; of columns with the gradients of batches; of these with themselves.
    n_weights : int
    lr, n_epochs, patience : float, int and int
        Adam's step size, and epochs at most and without a lower loss until it stops.
    plateau : int or None, default=None
        Epochs without a loss lower by 1e-4 of it until the step size is halved; None: never.

    Returns
    -------
    coef : array of shape (k,)
    epochs : int
    """
    log, m, v = np.zeros(len(gram)), 0.0, 0.0
    t, best, stale, lowest, waited = 0, np.inf, 0, np.inf, 0
    epochs = 0
    while epochs < n_epochs:
        epochs += 1
        total = 0.0
        for own, square in zip(products, squares, strict=True):
            t += 1
            coef = np.exp(log)
            force = gram @ coef
            total += float(coef @ (force + 2 * own) + square) / n_weights
            slope = 2 * coef * (force + own) / n_weights
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            log = log - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        loss = np.float32(total / len(squares))
        lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
        if waited >= patience:
            break
        best, stale = (loss, 0) if loss < best * np.float32(1 - 1e-4) else (best, stale + 1)
        if plateau is not None and stale > plateau:
            lr, stale = lr / 2, 0
    return np.exp(log), epochs


def report(figure, rows, picture):
    """Print what a figure found; write it and the picture where ``run.py`` asks for them.

    ``rows`` are dicts of texts: ``what``, its ``published`` and ``audited`` value (audited: by the
    authors, later, or by theory), the value ``here``, and the ``verdict``.
    """
    rows = [{column: str(row.get(column, "")) for column in COLUMNS} for row in rows]
    for row in rows:
        print(" | ".join(row.values()))
    folder = os.environ.get(RESULTS)
    if folder:
        picture.savefig(Path(folder) / f"{figure}.png", dpi=110)
        (Path(folder) / f"{figure}.json").write_text(json.dumps(rows, indent=1))
