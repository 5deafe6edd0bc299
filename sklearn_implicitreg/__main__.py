"""The estimator from a command line: ``python -m sklearn_implicitreg estimate --help``."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from traceback import walk_tb
from typing import Any

_TEXT = """\
Find the penalty that a trained torch model behaves as if it had been trained with.

The functions are imported from the working folder, or from installed packages. The result is
printed on standard output, progress and warnings on standard error."""
_CODES = """\
exit codes:
  0  a fit was made, whatever its verdict is
  1  an error in the code of the model or of the data, with its traceback
  2  an argument, a file or the data do not fit, or the result cannot be printed, in one sentence"""


_OWN = {"sklearn_implicitreg"}
_LIBRARIES = _OWN | {"joblib", "numpy", "pandas", "safetensors", "scipy", "sklearn", "skorch"}
_LIBRARIES |= {"statsmodels", "torch", *sys.stdlib_module_names}


class _Wrong(Exception):
    """An argument that does not fit, in a sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code."""
    given = _parser().parse_args(arguments)
    try:
        # What functions of the user's print must not come between the numbers.
        with contextlib.redirect_stdout(sys.stderr):
            text = _estimated(given)
        _printed(text)
    except _Wrong as error:
        print(f"sklearn_implicitreg: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _printed(text: str) -> None:
    """Print the result; what Python still holds of it is dropped where it cannot be written."""
    if sys.stdout is None:  # was closed before
        raise _Wrong("Expected an open standard output for the result, got a closed one.")
    try:
        print(text, flush=True)  # noqa: T201
    except OSError as error:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise _Wrong(
            f"Expected a standard output that takes the result, got {str(error.strerror).lower()}; "
            "give it room, or let its reader read to the end."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m sklearn_implicitreg", description=_TEXT)
    commands = parser.add_subparsers(required=True, metavar="command")
    shape = argparse.RawDescriptionHelpFormatter
    own = commands.add_parser(
        "estimate",
        help="coefficients of a family, or the best of several",
        description=_TEXT,
        epilog=_CODES,
        formatter_class=shape,
    )
    own.add_argument(
        "--model",
        required=True,
        metavar="MODULE:FUNCTION",
        help="function without arguments that returns the nn.Module",
    )
    own.add_argument(
        "--weights",
        metavar="FILE",
        help="state dict: a .safetensors file, or one of torch.save, read with weights_only=True; "
        "without it the model comes trained from its function",
    )
    own.add_argument(
        "--data",
        required=True,
        metavar="MODULE:FUNCTION",
        help="function without arguments that returns (X, y), (X, y, sample_weight), a Dataset or "
        "a DataLoader: the rows of the training",
    )
    _add_settings(own)
    own.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _add_settings(own: argparse.ArgumentParser) -> None:
    """Parameters of the estimator."""
    own.add_argument(
        "--family",
        default="l2",
        metavar="NAMES",
        help="l2+l1 is one family of two terms; of several (l2,l1) the best is taken (default: l2)",
    )
    own.add_argument("--loss", default="auto", help="such as mse (default: what the model returns)")
    own.add_argument("--params", default="auto", help="all, weights, decay or a regular expression")
    own.add_argument(
        "--group-by",
        metavar="GROUP",
        help="layer, type, block or param_group: one coefficient for each (default: one for all)",
    )
    own.add_argument("--batch-size", type=_count, default="auto", metavar="N", help="rows at once")
    own.add_argument(
        "--device", default="auto", help="such as cpu or cuda:0 (default: the model's)"
    )
    own.add_argument("--cache", metavar="FOLDER", help="keep the loss gradient there, or read it")


def _estimated(given: argparse.Namespace) -> str:
    """Table or JSON of the fit that the arguments ask for."""
    from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator

    with _stage("model"):
        model = _called(given.model, "model")
        if given.weights is not None:
            _load(model, Path(given.weights))
    with _stage("data"):
        rows = _called(given.data, "data")
        of_dicts = isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows)
        rows = tuple(rows) if isinstance(rows, tuple | list) and not of_dicts else (rows,)
        if not 1 <= len(rows) <= 3:
            raise _Wrong(f"Expected (X, y) or a loader from {given.data}, got {len(rows)} things.")
    names = [name.strip() for name in given.family.split(",")]
    own = {name: getattr(given, name) for name in ("loss", "params", "batch_size", "device")}
    own |= {"cache": given.cache, "group_by": given.group_by}
    with _stage(f"fit of {given.family}"), _in_a_sentence():
        if len(names) > 1:
            est = ImplicitRegularizationCV(model, families=names, **own)
        else:
            est = ImplicitRegularizationEstimator(model, family=names[0], **own)
        est.fit(*rows)
        return str(est.to_json() if given.json else est.summary())


def _called(name: str, what: str) -> Any:
    """What the function of a name such as ``module:function`` returns."""
    module, colon, function = name.partition(":")
    if not (module and colon and function) or module.startswith("."):
        raise _Wrong(f"Expected --{what} module:function, got {name!r}.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # one that the module imports
        raise _Wrong(
            f"Expected --{what} module:function, got {name!r}: there is no module {module!r} in "
            f"{Path.cwd()} and none is installed."
        ) from error
    own = getattr(found, function, None)
    if not callable(own):
        names = [name for name, value in vars(found).items() if callable(value)]
        near = difflib.get_close_matches(function, names, n=1)
        kind = (
            f"a value of type {type(own).__name__}" if function in vars(found) else "no such name"
        )
        hint = f" Did you mean {module}:{near[0]}?" if near else ""
        raise _Wrong(f"Expected a function {function!r} in {found.__file__}, got {kind}.{hint}")
    return own()


def _load(model: Any, file: Path) -> None:
    """Load the weights of a module from a file that runs no code."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise _Wrong(f"Expected an nn.Module for --weights, got {type(model).__name__}.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise _Wrong(
            f"Expected the package safetensors to read {file}, which is not installed; install it: "
            "pip install sklearn_implicitreg[cache]."
        ) from error
    except OSError as error:
        reason = error.strerror or error  # safetensors has a text alone
        raise _Wrong(f"Expected a file of weights, got {file} ({reason}).") from error
    except Exception as error:  # a damaged file may raise anything
        # What torch says of other pickles is how to run the code in them.
        raise _Wrong(
            f"Expected a state dict in {file}, as safetensors or torch.save(model.state_dict(), "
            "...) write it, got a damaged file or one that holds code."
        ) from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise _Wrong(f"Expected the weights of the model in {file}: {text}") from error


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    start = time.perf_counter()
    print(f"{name} ...", end=" ", flush=True, file=sys.stderr)  # noqa: T201
    try:
        yield
    except BaseException:
        print(file=sys.stderr)  # noqa: T201
        raise
    print(f"{time.perf_counter() - start:.1f} s", flush=True, file=sys.stderr)  # noqa: T201


@contextlib.contextmanager
def _in_a_sentence() -> Iterator[None]:
    """Errors of the package, which are sentences, without their traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        if _is_the_users(error):
            raise
        raise _Wrong(" ".join(str(error).split())) from error


def _is_the_users(error: Exception) -> bool:
    """Whether an error was raised in code that is neither the package's nor of its libraries."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    tops = [name.partition(".")[0] for name in names]
    last = len(tops) - tops[::-1].index("sklearn_implicitreg") if _OWN <= set(tops) else 0
    return any(top not in _LIBRARIES for top in tops[last:])


def _count(text: str) -> int | str:
    if text != "auto" and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"Expected auto or an integer, got {text!r}.")
    return text if text == "auto" else int(text)


if __name__ == "__main__":
    sys.exit(main())
