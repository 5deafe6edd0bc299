"""Endpoints: several trained models, each with the data that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np
import torch
from sklearn.utils import _safe_indexing

from sklearn_implicitreg.adapters import Data, Options
from sklearn_implicitreg.adapters.registry import adapt_many
from sklearn_implicitreg.endpoints.targets import EndpointTargets
from sklearn_implicitreg.problem import Indices, Problem, Sampling, Weights
from sklearn_implicitreg.problem.frozen import is_trained
from sklearn_implicitreg.problem.parameters import check, having


class Endpoint:
    """A trained model and the data that it was trained on.

    A list of endpoints is fitted as a whole: all share the coefficients.

    Parameters
    ----------
    model : nn.Module, skorch net or scikit-learn estimator
        The trained model; it is shared, never changed or copied.
    X : array-like, sparse matrix, DataFrame, tensor, dict of arrays, Dataset or DataLoader
        The rows that the model was trained on.
    y, sample_weight : array-like of shape (n,) or, of y, (n, outputs), default=None
        Targets (None with a Dataset or DataLoader) and weights of the training.
    rows : array-like of int or bool, default=None
        Numbers of the rows that were trained on, as often as they were used, or a mask.

    Attributes
    ----------
    model : object
        As given.

    Raises
    ------
    ValueError
        If rows are neither numbers of rows of X nor a mask.

    See Also
    --------
    endpoints : Trains many of them.

    Notes
    -----
    Endpoints with the same X and y (the same objects) count as resamples if their rows or weights
    differ and some row is in two of them, else as one data set; all others as independent. The
    standard errors are the spread of resamples, absent for one data set, else the jackknife.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg import Endpoint, ImplicitRegularizationEstimator
    >>> X, y = load_diabetes(return_X_y=True)
    >>> halves = [(X[:221], y[:221]), (X[221:], y[221:])]
    >>> two = [Endpoint(Ridge(alpha=3.0).fit(*half), *half) for half in halves]
    >>> est = ImplicitRegularizationEstimator(None, family="l2").fit(two)
    >>> round(est.in_model_units()["alpha"], 8)
    3.0
    """

    def __init__(
        self, model: Any, X: Any, y: Any = None, sample_weight: Any = None, *, rows: Any = None
    ):
        self.model = model
        self._data = Data(X, y, sample_weight)
        self._rows = None if rows is None else _row_numbers(rows, X)

    @property
    def X(self) -> Any:
        """Rows of the training."""
        return _taken(self._data.X, self._rows)

    @property
    def y(self) -> Any:
        """Targets of these rows."""
        return _taken(self._data.y, self._rows)

    @property
    def sample_weight(self) -> Any:
        """Weights of these rows, or None."""
        return _taken(self._data.sample_weight, self._rows)

    @property
    def effective_sample_size(self) -> float:
        """``(sum w)^2 / sum w^2``: as many rows of equal weight are as informative."""
        weights = self.sample_weight
        if weights is None:
            return float(n_rows(self._data.X) if self._rows is None else len(self._rows))
        weights = np.asarray(weights, dtype=np.float64)
        return float(weights.sum() ** 2 / np.square(weights).sum())

    def __sklearn_clone__(self) -> Endpoint:
        return self

    def __repr__(self) -> str:
        rows = self._data.X if self._rows is None else self._rows
        size = f", {n_rows(rows)} rows" if hasattr(rows, "__len__") else ""
        return f"Endpoint({type(self.model).__name__}{size})"


class EndpointList(list[Endpoint]):
    """List of endpoints that were trained together; ``n_failed_`` further trainings failed."""

    n_failed_: int = 0

    def __getitem__(self, index: Any) -> Any:
        own = super().__getitem__(index)
        if isinstance(index, slice):
            own = EndpointList(own)
            own.n_failed_ = self.n_failed_
        return own

    @property
    def effective_sample_size_(self) -> Weights:
        """Effective sample size of every endpoint."""
        return np.array([endpoint.effective_sample_size for endpoint in self])


def holds_endpoints(X: Any) -> TypeGuard[Sequence[Endpoint]]:
    """Whether the data are a list of endpoints."""
    if isinstance(X, Endpoint):
        raise TypeError("Expected a list of Endpoint, got one; pass [endpoint].")
    if isinstance(X, EndpointList) and not X:
        raise ValueError("Expected at least 1 endpoint, got 0.")
    if not isinstance(X, list | tuple) or not any(isinstance(own, Endpoint) for own in X):
        return False
    others = sorted({type(own).__name__ for own in X if not isinstance(own, Endpoint)})
    if others:
        raise TypeError(f"Expected a list of Endpoint alone, got {', '.join(others)} among them.")
    return True


def endpoint_targets(
    group: Sequence[Endpoint], options: Options, verbose: int = 0
) -> EndpointTargets:
    """Targets of the regression on a list of endpoints."""
    for i, endpoint in enumerate(group):
        if hasattr(endpoint.model, "fit") and not is_trained(endpoint.model):
            raise ValueError(
                f"Expected a trained model in every endpoint, got an unfitted "
                f"{type(endpoint.model).__name__} in endpoint {i}; train it first."
            )
    models = [endpoint.model for endpoint in group]
    data = [Data(endpoint.X, endpoint.y, endpoint.sample_weight) for endpoint in group]
    problems = adapt_many(models, data, options)
    for i, (endpoint, problem) in enumerate(zip(group, problems, strict=True)):
        _check_alike(i, endpoint, problem, group[0], problems[0])
    n_failed = getattr(group, "n_failed_", 0)
    if n_failed:
        note = f"{n_failed} further endpoints failed in training and are left out."
        problems = [replace(problems[0], notes=(*problems[0].notes, note)), *problems[1:]]
    own = tuple(problem.read_again(i) for i, problem in enumerate(problems))
    return EndpointTargets(own, verbose, _sampling(group))


def _sampling(group: Sequence[Endpoint]) -> Sampling:
    """How the endpoints were made, by the identity of their data and by their rows."""
    own = [endpoint._data for endpoint in group]
    n_sets = len({(id(data.X), id(data.y)) for data in own})
    if n_sets == len(group):
        return "data sets"
    if n_sets > 1:
        return "one data set"  # some of them share one
    rows = [endpoint._rows for endpoint in group]
    parts = [np.unique(taken) for taken in rows if taken is not None]
    if len(parts) == len(rows) and len(np.unique(np.concatenate(parts))) == sum(map(len, parts)):
        return "data sets"
    weights = [id(data.sample_weight) for data in own]
    draws = {(w, None if r is None else r.tobytes()) for w, r in zip(weights, rows, strict=True)}
    return "resamples" if len(draws) == len(group) else "one data set"


def _check_alike(
    i: int, endpoint: Endpoint, problem: Problem, first: Endpoint, like: Problem
) -> None:
    names, wanted = _feature_names(endpoint), _feature_names(first)
    if names is not None and wanted is not None and names != wanted:
        raise ValueError(
            f"Expected the features of endpoint 0, {wanted}, in this order, got {names} in "
            f"endpoint {i}; one coefficient would mean different things."
        )
    shapes, expected = (
        {name: tuple(t.shape) for name, t in own.params.items()} for own in (problem, like)
    )
    if shapes != expected:
        raise ValueError(
            f"Expected parameters as in endpoint 0, {expected}, got {shapes} in endpoint {i}; "
            "endpoints must have the same parameters in scope."
        )


def _feature_names(endpoint: Endpoint) -> list[str] | None:
    names = getattr(endpoint._data.X, "columns", None)
    if names is None:
        names = getattr(endpoint.model, "feature_names_in_", None)
    return None if names is None else [str(name) for name in names]


def n_rows(values: Any) -> int:
    """Number of rows of data."""
    if isinstance(values, Mapping):
        if not values:
            raise ValueError("Expected data of at least 1 row, got an empty dict.")
        return n_rows(next(iter(values.values())))
    shape = getattr(values, "shape", None)
    if not isinstance(shape, tuple) or not shape:
        rows = having("rows, one after another", "__len__", "__getitem__")
        check("data", {"values": values}, {"values": rows})
        return len(values)
    return int(shape[0])


def _row_numbers(rows: Any, X: Any) -> Indices:
    n, given = n_rows(X), np.asarray(rows)
    if given.dtype == bool and given.shape == (n,):
        return np.flatnonzero(given)
    numeric = given.dtype.kind in "iuf" and given.ndim == 1 and given.size > 0
    if not numeric or not (given == np.floor(given)).all() or given.min() < 0 or given.max() >= n:
        raise ValueError(
            f"Expected rows to be numbers of rows from 0 to {n - 1}, or a mask of shape ({n},), "
            f"got {given.dtype} of shape {given.shape}."
        )
    return given.astype(np.int64)


def _taken(values: Any, rows: Indices | None) -> Any:
    if values is None or rows is None:
        return values
    if isinstance(values, Mapping):
        return {key: _taken(own, rows) for key, own in values.items()}
    if isinstance(values, torch.Tensor):
        return values[torch.as_tensor(rows)]
    return _safe_indexing(values, rows)
