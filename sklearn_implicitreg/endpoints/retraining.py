"""Endpoints from one estimator, retrained on resamples of the rows or on new data sets."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import numbers
import os
import pickle
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import sklearn
import torch
from joblib.hashing import NumpyHasher
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state

from sklearn_implicitreg.adapters import Data
from sklearn_implicitreg.endpoints.endpoint import Endpoint, EndpointList, n_rows
from sklearn_implicitreg.endpoints.identity import digest
from sklearn_implicitreg.endpoints.kept import put_in_place
from sklearn_implicitreg.endpoints.templates import inner_model, routing_enabled, weight_name
from sklearn_implicitreg.exceptions import warn_user
from sklearn_implicitreg.problem import Indices, Weights
from sklearn_implicitreg.problem.parameters import (
    FLAG,
    FOLDER,
    NOTHING,
    RANDOM_STATE,
    Allowed,
    as_numbers,
    checked,
    integer,
    shown,
)
from sklearn_implicitreg.problem.workers import Shared, in_workers
from sklearn_implicitreg.progress import progress

_CHECKSUM = 32  # bytes, at the end of a file
_INTEGER = integer(-(2**31))
Learned = npt.NDArray[Any]
Sets = list[tuple[Data, Indices | None]]  # data, and which of their rows


@checked(
    n_endpoints=integer(1),
    bootstrap=FLAG,
    n_jobs=NOTHING | Allowed(lambda n: n != 0 and _INTEGER.holds(n), ("an integer other than 0",)),
    random_state=RANDOM_STATE,
    cache=NOTHING | FOLDER,
    verbose=integer(0) | FLAG,
)
def endpoints(  # noqa: PLR0913
    estimator: Any,
    X: Any,
    y: Any,
    n_endpoints: int,
    *,
    bootstrap: bool = True,
    weights: npt.ArrayLike | None = None,
    sample_weight: Any = None,
    n_jobs: int | None = None,
    random_state: Any = None,
    cache: Any = None,
    verbose: int = 0,
) -> EndpointList:
    """Train an estimator on resamples of the rows, or on new data sets.

    Parameters
    ----------
    estimator : scikit-learn or skorch estimator
        Cloned and trained for every endpoint; a ``random_state`` that is no integer is drawn.
    X : array-like, sparse matrix, DataFrame, dict of arrays, sequence of these, or callable
        Rows to resample; else data sets, or a function of a ``RandomState`` that returns (X, y).
    y : array-like, sequence of these or None
        Targets; a sequence where X is one, None where it is a callable.
    n_endpoints : int
        How many to train.
    bootstrap : bool, default=True
        Draw n of the n rows with replacement. The first endpoint has every row once.
    weights : array-like of shape (n,), default=None
        Probabilities by which rows are drawn, up to a factor; the trainings then have importance
        weights ``c / probability``, so that all rows count alike and the total weight stays.
    sample_weight : array-like of shape (n,), or sequence of these, default=None
        Weights of the rows.
    n_jobs : int or None, default=None
        Processes, as in scikit-learn; the numbers are the same for any.
    random_state : int, RandomState instance or None, default=None
        For the resamples or data sets, and for the trainings.
    cache : str, path or None, default=None
        Folder that keeps every trained endpoint, so that a run that was killed goes on where it
        was. The files are pickles: reading them runs code, so let nobody else write there.
    verbose : int, default=0
        Print a progress bar if above 0.

    Returns
    -------
    endpoints : EndpointList
        A list of :class:`Endpoint`, with ``effective_sample_size_`` and ``n_failed_``.

    Raises
    ------
    ValueError, TypeError
        If the data or the estimator do not fit, or all trainings failed.

    Warns
    -----
    FitFailedWarning
        If trainings are left out: they failed, are not finite, or miss classes of the first.

    See Also
    --------
    Endpoint : One trained model with its data.

    References
    ----------
    Rudoler, Tan, Hooker, Kording (2026), Estimating Implicit Regularization in Deep Learning,
    Appendix F.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator, endpoints
    >>> X, y = load_diabetes(return_X_y=True)
    >>> resamples = endpoints(Ridge(alpha=3.0), X, y, 10, random_state=0)
    >>> est = ImplicitRegularizationEstimator(None, family="l2").fit(resamples)
    >>> round(est.in_model_units()["alpha"], 8), est.coef_path_.shape
    (3.0, (10, 1))
    """
    trainable = hasattr(estimator, "fit") and hasattr(estimator, "get_params")
    if not trainable or isinstance(estimator, type | FrozenEstimator):
        raise TypeError(
            "Expected a scikit-learn or skorch estimator that can be cloned and trained, got "
            f"{estimator!r}; train other models yourself and make a list of Endpoint."
        )
    rng, make = check_random_state(random_state), _resamples if bootstrap else _data_sets
    sets = make(Data(X, y, sample_weight), int(n_endpoints), weights, rng)
    weighted = None
    if any(data.sample_weight is not None for data, _ in sets):
        weighted = "sample_weight" if routing_enabled() else weight_name(estimator)
        if weighted is None:
            raise ValueError(
                f"Expected an estimator whose fit takes sample_weight, got "
                f"{type(estimator).__name__}; leave out `weights` and `sample_weight`."
            )
    seeds = rng.randint(np.iinfo(np.int32).max, size=len(sets))
    common = Data(X, y) if bootstrap else None
    tasks = [
        (replace(data, X=None, y=None) if bootstrap else data, rows, int(seed))
        for (data, rows), seed in zip(sets, seeds, strict=True)
    ]
    folder = None if cache is None else _folder_of(cache, estimator, common)
    files = [folder and folder / f"{_hash((weighted, *task))}.joblib" for task in tasks]
    shared = Shared(estimator, common, weighted)
    outcomes = _outcomes(shared, list(zip(files, tasks, strict=True)), n_jobs)
    return _collected(sets, progress(outcomes, "endpoints", len(sets), verbose))


def _resamples(
    data: Data, n_endpoints: int, weights: npt.ArrayLike | None, rng: np.random.RandomState
) -> Sets:
    if callable(data.X):
        raise ValueError("Expected rows to resample, got a callable; pass bootstrap=False.")
    n = n_rows(data.X)
    if n < 1:
        raise ValueError("Expected at least 1 row to resample, got 0.")
    _check_lengths(data)
    share = None if weights is None else _probabilities(weights, n)
    draws = [rng.choice(n, size=n, p=share) for _ in range(n_endpoints - 1)]
    if share is None:
        return [(data, None), *((data, rows) for rows in draws)]
    base = (
        np.ones(n)
        if data.sample_weight is None
        else as_numbers("sample_weight", data.sample_weight)
    )
    data = replace(data, sample_weight=base)
    importance = base / share
    scales = [base.sum() / importance[rows].sum() for rows in draws]
    weighted = [replace(data, sample_weight=scale * importance) for scale in scales]
    return [(data, None), *zip(weighted, draws, strict=True)]


def _probabilities(weights: npt.ArrayLike, n: int) -> Weights:
    share = as_numbers("weights", weights)
    if share.shape != (n,) or not np.isfinite(share).all() or not (share > 0).all():
        raise ValueError(
            f"Expected weights of shape ({n},), finite and above zero, got shape {share.shape} "
            f"with a smallest of {share.min(initial=np.inf):g}: they are the probabilities by "
            "which rows are drawn, and a row that is never drawn cannot be weighted back. Leave "
            "such rows out."
        )
    return np.asarray(share / share.sum())


def _data_sets(
    data: Data, n_endpoints: int, weights: npt.ArrayLike | None, rng: np.random.RandomState
) -> Sets:
    if weights is not None:
        raise ValueError("Expected no weights without bootstrap: they are probabilities of rows.")
    sets = _drawn(data, n_endpoints, rng) if callable(data.X) else _given(data, n_endpoints)
    for own in sets:
        _check_lengths(own)
    return [(own, None) for own in sets]


def _given(data: Data, n_endpoints: int) -> list[Data]:
    columns = [("X", data.X), ("y", data.y), ("sample_weight", data.sample_weight)]
    for name, values in columns:
        fits = isinstance(values, list | tuple) and len(values) == n_endpoints
        if not fits and (name == "X" or values is not None):
            got = f"{len(values)}" if isinstance(values, list | tuple) else type(values).__name__
            raise ValueError(
                f"Expected {name} to be a list of {n_endpoints} data sets with bootstrap=False, "
                f"got {got}; give one entry for each of n_endpoints."
            )
    nones = [None] * n_endpoints
    return list(map(Data, *(nones if values is None else values for _, values in columns)))


def _drawn(data: Data, n_endpoints: int, rng: np.random.RandomState) -> list[Data]:
    if data.y is not None or data.sample_weight is not None:
        raise ValueError(
            "Expected y=None and no sample_weight with a callable, which returns both."
        )
    seeds = rng.randint(np.iinfo(np.int32).max, size=n_endpoints)
    drawn = [data.X(np.random.RandomState(seed)) for seed in seeds]
    if not all(isinstance(own, tuple) and len(own) in (2, 3) for own in drawn):
        raise TypeError(
            "Expected the callable to return a tuple (X, y) or (X, y, sample_weight), got "
            f"{type(drawn[0]).__name__}."
        )
    return [Data(*own) for own in drawn]


def _check_lengths(data: Data) -> None:
    n = n_rows(data.X)
    for name, values in (("y", data.y), ("sample_weight", data.sample_weight)):
        if values is not None and n_rows(values) != n:
            raise ValueError(
                f"Expected {name} to have one entry for each of the {n} rows of X, got "
                f"{n_rows(values)}."
            )


def _folder_of(cache: str | PathLike[str], template: Any, common: Data | None) -> Path:
    """Folder of a template on its rows; the files in it are those of seeds and resamples."""
    place = Path(cache)
    if place.exists() and not place.is_dir():
        raise ValueError(f"Expected a folder as cache, got the file {str(place)!r}.")
    versions = sklearn.__version__, torch.__version__, np.__version__
    try:
        key = _hash((template, common, versions))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            "Expected an estimator and rows that can be pickled for cache=, got "
            f"{shown(template)} ({error}); define its classes in a file, or leave out cache."
        ) from error
    own = place / key
    own.mkdir(parents=True, exist_ok=True)
    return own


class _Hasher(NumpyHasher):
    """That of ``joblib.hash``, for tensors too, which torch pickles with addresses in memory."""

    def save(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            value = type(value).__name__, value.requires_grad, digest(value)
        super().save(value)


def _hash(value: Any) -> str:
    found: str = _Hasher().hash(value)
    return found


def _outcomes(
    shared: Shared, tasks: Sequence[tuple[Path | None, tuple[Any, ...]]], n_jobs: int | None
) -> Iterator[Any]:
    """Trained models in the order of their tasks; only those that no file has need workers."""
    kept = [file and _read(file) for file, _ in tasks]
    missing = {
        f"endpoint {i}": (file, *task)
        for i, (own, (file, task)) in enumerate(zip(kept, tasks, strict=True))
        if own is None
    }
    trained = in_workers(_written, shared, missing, n_jobs, instead=str)
    return (next(trained) if own is None else own for own in kept)


def _read(file: Path) -> Any:
    """The trained model in a file; None if that is not there or not whole."""
    with contextlib.suppress(OSError):
        content = file.read_bytes()
        if hashlib.sha256(content[:-_CHECKSUM]).digest() == content[-_CHECKSUM:]:
            return joblib.load(io.BytesIO(content))
    return None


def _written(
    template: Any, common: Data | None, weighted: str | None, file: Path | None, *task: Any
) -> Any:
    """A trained model, kept in its file."""
    found = _trained(template, common, weighted, *task)
    if file is not None and not isinstance(found, str):
        put_in_place(file, functools.partial(_dumped, found))
    return found


def _dumped(model: Any, file: Path) -> None:
    """Write a pickle, with its checksum behind it, which readers of pickles leave alone."""
    joblib.dump(model, file)
    with file.open("rb+") as stream:
        checksum = hashlib.file_digest(stream, "sha256").digest()
        stream.seek(0, os.SEEK_END)
        stream.write(checksum)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Global generators that begin at a seed, and then are as they were."""
    mine, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)  # what skorch nets start from and shuffle by
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(mine)
            np.random.set_state(numpys)


def _trained(  # noqa: PLR0913
    template: Any,
    common: Data | None,
    weighted: str | None,
    data: Data,
    rows: Indices | None,
    seed: int,
) -> Any:
    if common is not None:
        data = replace(data, X=common.X, y=common.y)
    model = clone(template)
    try:
        for key, value in model.get_params().items():
            free = key.rpartition("__")[2] == "random_state"
            if free and not isinstance(value, numbers.Integral):
                model.set_params(**{key: seed})
        endpoint = Endpoint(model, data.X, data.y, data.sample_weight, rows=rows)
        fit_params = {weighted: endpoint.sample_weight} if weighted else {}
        with _seeded(seed):
            return model.fit(endpoint.X, endpoint.y, **fit_params)
    except Exception as error:  # any estimator, any reason: the other endpoints go on
        return f"{type(error).__name__}: {error}"


def _collected(sets: Sets, outcomes: Iterable[Any]) -> EndpointList:
    found, failures = EndpointList(), {}
    like: dict[str, Learned] = {}
    for i, ((data, rows), outcome) in enumerate(zip(sets, outcomes, strict=True)):
        learned = {} if isinstance(outcome, str) else _learned(outcome)
        failure = outcome if isinstance(outcome, str) else _unlike(learned, like)
        if failure:
            failures[i] = failure
        else:
            like = like or learned
            found.append(Endpoint(outcome, data.X, data.y, data.sample_weight, rows=rows))
    if failures:
        reasons = "; ".join(f"endpoint {i}: {reason}" for i, reason in list(failures.items())[:5])
        text = f"{len(failures)} of {len(sets)} endpoints failed and are left out: {reasons}"
        if not found:
            raise ValueError(f"Expected a training that succeeds, got none: {text}")
        warn_user(text, FitFailedWarning)
    found.n_failed_ = len(failures)
    return found


def _learned(model: Any) -> dict[str, Learned]:
    """Coefficients and classes of a trained model, or of the one inside a container."""
    model = inner_model(model)
    found = {name: getattr(model, name, None) for name in ("classes_", "coef_", "intercept_")}
    for name in ("coefs_", "intercepts_"):
        found |= {f"{name}[{i}]": own for i, own in enumerate(getattr(model, name, ()))}
    module = getattr(model, "module_", None)
    if isinstance(module, torch.nn.Module):
        found |= {name: own.detach().cpu().double() for name, own in module.named_parameters()}
    return {name: np.asarray(own) for name, own in found.items() if own is not None}


def _unlike(learned: Mapping[str, Learned], like: Mapping[str, Learned]) -> str:
    """Why a model cannot be combined with the first one, or an empty string."""
    for name, own in learned.items():
        if own.dtype.kind in "fc" and not np.isfinite(own).all():
            return f"{name} is not finite"
        first = like.get(name)
        if first is None:
            continue
        if name == "classes_" and not np.array_equal(own, first):
            return f"classes_ are {own.tolist()}, of the first endpoint {first.tolist()}"
        if own.shape != first.shape:
            return f"{name} has shape {own.shape}, of the first endpoint {first.shape}"
    return ""
