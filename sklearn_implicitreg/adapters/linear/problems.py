"""Linear models as a `Problem`: the gradient of the mean loss in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from sklearn_implicitreg.adapters.linear.losses import Array, Loss
from sklearn_implicitreg.adapters.linear.row_losses import LinearLosses
from sklearn_implicitreg.adapters.torch.generators import preserved_rng
from sklearn_implicitreg.problem import (
    BlockGradient,
    LinearCall,
    LossGradient,
    Params,
    Problem,
    Rest,
    RowBatch,
    as_tensor,
    norm_of,
    profiled,
)

Rows = slice | NDArray[np.intp]
# Of one block: its sums about a center, and the sums of the derivatives and of their sizes.
Measured = tuple[BlockGradient, Array, Array]

# Numbers in a block: large enough for BLAS, small enough to stay in the cache.
_BLOCK = 2**20
# Blocks cost nothing here, and 20 give the spread of the rows to a third only.
_MANY_BLOCKS = 100


@dataclass(frozen=True, kw_only=True)
class LinearProblem(Problem):
    """A fitted linear model and its rows: ``eta = X coef' + intercept``."""

    # The gradient of the mean loss is X' (s * dloss/deta) / sum(s) in float64, never by way of
    # X'X; X is read in blocks of rows and never copied whole. Where an intercept out of scope is at
    # its best, the derivatives sum to zero, and features that lie far from zero are measured from
    # near their mean, which loses no digits.
    X: Any  # ndarray or CSR matrix of shape (n, p)
    y: Array  # (n, K), as the loss takes them
    coef: Array  # (K, p)
    intercept: Array | None  # (K,); None if none was fitted
    loss: Loss
    loss_weight: Array  # (n, 1) or (n, K): what multiplies the losses
    weight: Array  # (n,): sums to what the loss is divided by
    intercept_unit: float = 1.0  # constant feature that the intercept parameter multiplies
    at_rest: bool = False  # whether training leaves no gradient in an intercept out of scope
    feature_names: tuple[str, ...] | None = None
    output_names: tuple[str, ...] | None = None
    # Where each parameter stands in the flattened [coef, intercept], if not as "coef" and
    # "intercept"; its shape is that of the parameter.
    columns: Mapping[str, NDArray[np.intp]] | None = None

    def gradient(self) -> LossGradient:
        """Gradient of the mean loss over all rows, in one pass."""
        center = self.center()
        return self.gathered([self.measured(rows, center) for rows in row_blocks(self.X)], center)

    def facts(self) -> dict[str, Any]:
        """What the gradient depends on without the rows."""
        return super().facts() | {
            "settings of the loss": [self.loss.words, repr(dict(self.loss.values))],
            "weights out of scope": {"all": torch.from_numpy(self.matrix())},
            "intercept": [self.intercept is not None, self.intercept_unit, self.at_rest],
        }

    def contents(self) -> Iterator[dict[str, Any]]:
        """The rows block by block."""
        for rows in row_blocks(self.X):
            weights = (self.weight[rows], self.loss_weight[rows])
            own = rows_of_features(self.X, rows)
            yield {"X": own, "y": self.y[rows], "sample_weight": weights}

    def center(self) -> Array | None:
        """Mean of the first rows; None without an intercept out of scope, and of a sparse X."""
        if self._constant is None or self._constant in self._scope or sparse.issparse(self.X):
            return None
        first = rows_of_features(self.X, next(row_blocks(self.X)))
        return np.asarray(first.mean(axis=0), dtype=np.float64)

    def gathered(self, parts: Iterable[Measured], center: Array | None) -> LossGradient:
        """Gradient of the mean loss from blocks whose features are measured from a center."""
        blocks, slopes, sizes = zip(*parts, strict=True)
        found = LossGradient.from_blocks(iter(blocks))
        if center is None:
            return found
        left, size = np.sum(slopes, axis=0) / found.weight, np.sum(sizes, axis=0) / found.weight
        # Where the derivatives sum to zero, up to rounding, the center does not matter.
        if np.all(np.abs(left) <= 100 * self.eps * size):
            return found
        point = np.append(center, 0.0)
        shift = self.in_scope(left[:, None] * point)
        value = {name: tensor + shift[name] for name, tensor in found.value.items()}
        more = norm_of(self.in_scope(size[:, None] * np.abs(point)))
        return replace(found, value=value, scale=found.scale + more)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.X.shape[0])

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """Gradient sums over blocks of rows, drawn at random if several are asked for."""
        in_order = list(row_blocks(self.X))
        n_parts = min(max(n_blocks, _MANY_BLOCKS, len(in_order)), self.n_rows)
        if n_blocks <= 1 or n_parts <= 1:
            yield from (self.measured(rows, None)[0] for rows in in_order)
            return
        # In the order given, the spread of blocks of sorted rows would be that of their means.
        order = np.random.default_rng(0).permutation(self.n_rows)
        for part in np.array_split(order, n_parts):
            yield self.measured(part, None)[0]

    def hessian(self) -> Array:
        """Hessian of a squared error in the parameters in scope; outputs do not meet in it."""
        if self.loss.curvature is None:
            raise self._not_quadratic()
        places = np.concatenate([self.places(name) for name in self.params])
        outputs, features = np.divmod(places, self.X.shape[1] + 1)
        hessian = np.zeros((len(places), len(places)))
        known: dict[tuple[int, bytes], Array] = {}
        for k in np.unique(outputs):
            own = np.flatnonzero(outputs == k)
            own = own[np.argsort(features[own])]
            column = min(int(k), self.loss_weight.shape[1] - 1)
            key = (column, features[own].tobytes())
            if key not in known:
                known[key] = self.output_hessian(self.loss_weight[:, column], features[own])
            hessian[np.ix_(own, own)] = known[key]
        return hessian

    def output_hessian(self, weight: Array, scope: NDArray[np.intp]) -> Array:
        """Hessian of one output in some features, ascending, p for the intercept."""
        p = self.X.shape[1]
        total = float(weight.sum())
        parts = (rows_of_features(self.X, r).T @ weight[r] for r in row_blocks(self.X))
        mean = np.sum([np.asarray(part) for part in parts], axis=0) / total
        if self._constant is not None and self._constant not in scope:
            center = np.where(np.arange(p) == self._constant, 0.0, mean)
            gram = _weighted_gram(self.X, weight, center)
        else:
            gram = _weighted_gram(self.X, weight, np.zeros(p))
            if self.intercept is not None:
                unit = self.intercept_unit
                edge = total * unit * mean[:, None]
                gram = np.block([[gram, edge], [edge.T, np.array([[total * unit**2]])]])
        factor = float(self.loss.curvature or 0.0) / float(self.weight.sum())
        return factor * profiled(gram, np.isin(np.arange(len(gram)), scope))

    def measured(self, rows: Rows, center: Array | None) -> Measured:
        """Gradient sums over one block, and what is needed to move the center."""
        features, weight = rows_of_features(self.X, rows), self.loss_weight[rows]
        eta = np.asarray(features @ self.coef.T)
        eta_size = np.asarray(abs(features) @ np.abs(self.coef).T)
        if self.intercept is not None:
            eta, eta_size = eta + self.intercept, eta_size + np.abs(self.intercept)
        with np.errstate(all="ignore"):  # what is not finite raises below
            losses = self.loss(eta, self.y[rows], eta_size)
        self._check_finite(losses.derivative)
        kinks = np.any(losses.kink & (weight != 0), axis=1)
        slopes, sizes = weight * losses.derivative, np.abs(weight) * losses.size
        if center is not None:
            features = features - center
        rest = Rest()
        if self.at_rest and self._constant not in self._scope:
            top = np.maximum(np.abs(slopes).max(axis=0), np.finfo(np.float64).tiny)
            norms = top * np.linalg.norm(slopes / top, axis=0)
            rest = Rest(slopes.sum(axis=0), norms, sizes.sum(axis=0))
        block = BlockGradient(
            sums=self._summed(features, slopes),
            loss=float(np.sum(weight * losses.value)),
            weight=float(np.sum(self.weight[rows])),
            n_rows=features.shape[0],
            scale=norm_of(self._summed(abs(features), sizes)),
            n_kinks=int(np.count_nonzero(kinks)),
            rest=rest,
        )
        return block, slopes.sum(axis=0), sizes.sum(axis=0)

    def places(self, name: str) -> NDArray[np.intp]:
        """Where a parameter's entries stand in the flattened ``[coef, intercept]``."""
        if self.columns is not None:
            return self.columns[name].reshape(-1)
        base, output = parsed(name)
        n_outputs, p = self.coef.shape
        every = np.arange(n_outputs * (p + 1)).reshape(n_outputs, p + 1)
        own = every[:, :p] if base == "coef" else every[:, p:]
        return (own if output is None else own[output]).reshape(-1)

    def entry_names(self, name: str) -> Sequence[str] | None:
        """Features, with the output before them where the tensor has several."""
        n_outputs, p = self.coef.shape
        if self.feature_names is None and self.output_names is None:
            return None
        features = [*(self.feature_names or map(str, range(p))), "intercept"]
        outputs, places = np.divmod(self.places(name), p + 1)
        if n_outputs == 1 or len(np.unique(outputs)) < n_outputs:
            return [features[j] for j in places]
        named = self.output_names or tuple(map(str, range(n_outputs)))
        pairs = zip(outputs, places, strict=True)
        return [named[k] if j == p else f"{named[k]},{features[j]}" for k, j in pairs]

    def matrix(self) -> Array:
        """Trained ``[coef, intercept]`` of shape (K, p + 1), zero where there is no intercept."""
        intercept = np.zeros(len(self.coef)) if self.intercept is None else self.intercept
        return np.column_stack([self.coef, intercept])

    @property
    def _constant(self) -> int | None:
        """Place of the feature that is one for all rows, p for a fitted intercept."""
        if self.columns is not None:
            return int(self.columns["const"].flat[0]) if "const" in self.columns else None
        return None if self.intercept is None else self.X.shape[1]

    @property
    def _scope(self) -> set[int]:
        """Places of the features in scope, p for the intercept."""
        places = np.concatenate([self.places(name) for name in self.params])
        return set((places % (self.X.shape[1] + 1)).tolist())

    def _check_finite(self, slopes: Array) -> None:
        """Raise ValueError for rows whose predictions are out of the range of the loss."""
        n_bad = np.count_nonzero(~np.isfinite(slopes).all(axis=1))
        if n_bad:
            raise ValueError(
                f"Expected predictions in the range of the loss ({self.loss_name}), got {n_bad} "
                "row(s) without a finite derivative; train with a link that keeps them in range."
            )

    def _summed(self, features: Any, slopes: Array) -> Params:
        """Sums over rows for the parameters in scope, from derivatives of shape (n, K)."""
        edge = self.intercept_unit * slopes.sum(axis=0)
        return self.in_scope(np.column_stack([np.asarray(features.T @ slopes).T, edge]))

    def in_scope(self, matrix: Array) -> Params:
        """Parameters in scope from a matrix ``[coef, intercept]``."""
        return {
            name: torch.from_numpy(matrix.reshape(-1)[self.places(name)]).reshape(tensor.shape)
            for name, tensor in self.params.items()
        }

    def row_batches(self, params: Params) -> Iterator[RowBatch]:
        """Blocks of rows, with the linear predictor at these parameters as outputs."""
        matrix = self.matrix() / np.append(np.ones(self.X.shape[1]), self.intercept_unit)
        places = {name: self.places(name) for name in (*self.params, *self.left_out)}
        model = LinearCall(matrix, places, self.intercept_unit, LinearLosses(self.loss))
        own = self.weight[:, None]
        factor = np.divide(
            self.loss_weight, own, out=np.zeros_like(self.loss_weight), where=own > 0
        )
        plain = bool((factor == 1).all())
        rng = np.random.default_rng([0, self.draw])
        with preserved_rng(torch.device("cpu")):
            for rows in row_blocks(self.X):
                # Copies: a penalty that works in place would write to the user's rows.
                given = rows_of_features(self.X, rows), self.y[rows], self.weight[rows]
                inputs, target, weight = (as_tensor(part).clone() for part in given)
                of_rows = None if plain else as_tensor(factor[rows])
                yield RowBatch(model, params, inputs, target, weight, rng, factor=of_rows)


def parsed(name: str) -> tuple[str, int | None]:
    """Kind of a parameter ("coef" or "intercept") and its output, None for all of them."""
    base, bracket, output = name.partition("[")
    return base, int(output[:-1]) if bracket else None


def row_blocks(X: Any) -> Iterator[slice]:
    """Slices of consecutive rows with about a million numbers each."""
    n_rows, n_features = X.shape
    per_row = X.nnz / max(n_rows, 1) if sparse.issparse(X) else n_features
    size = max(1, int(_BLOCK / max(per_row, 1)))
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def rows_of_features(X: Any, rows: Rows) -> Any:
    """Some rows of X in float64; a view where X is a float64 array and the rows a slice."""
    return X[rows].astype(np.float64, copy=False)


def _weighted_gram(X: Any, weight: Array, center: Array) -> Array:
    """``sum_i w_i (x_i - center) (x_i - center)'``, dense; a sparse X itself is not centered."""
    gram = np.zeros((X.shape[1], X.shape[1]))
    for rows in row_blocks(X):
        part, w = rows_of_features(X, rows), weight[rows]
        if sparse.issparse(part):
            gram += (part.T @ part.multiply(w[:, None])).toarray()
        else:
            part = part - center
            gram += part.T @ (part * w[:, None])
    if sparse.issparse(X):
        cross = np.outer(np.asarray(X.T @ weight), center)
        gram += weight.sum() * np.outer(center, center) - cross - cross.T
    return (gram + gram.T) / 2
