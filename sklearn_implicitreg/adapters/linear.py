"""Linear models as a `Problem`: the gradient of the mean loss in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from sklearn_implicitreg.adapters import Options
from sklearn_implicitreg.adapters.linear_blocks import weighted_gram
from sklearn_implicitreg.adapters.linear_losses import Array, RowLoss, RowLosses, squared_error
from sklearn_implicitreg.conventions import Convention
from sklearn_implicitreg.problem import (
    BlockGradient,
    Params,
    Problem,
    check_finite_params,
    profiled,
    select_params,
)

__all__ = ["LinearFit", "LinearProblem", "linear_problem", "predictor"]

# Blocks cost nothing here, and 20 tell the spread of the rows to a third only.
_MANY_BLOCKS = 100


@dataclass(frozen=True, kw_only=True)
class LinearProblem(Problem):
    """A fitted linear model and its rows: ``eta = X coef' + intercept``.

    The gradient of the mean loss is ``X' (s * dloss/deta) / sum(s)`` in float64, never by way
    of ``X'X``; a sparse X stays sparse.

    Attributes
    ----------
    X : ndarray or CSR matrix of shape (n, p)
        Features.
    rows : RowLosses
        Losses at the trained coefficients, (n, K).
    loss_weight : ndarray of shape (n, 1) or (n, K)
        What multiplies the losses.
    weight : ndarray of shape (n,)
        Weight of the rows, which sums to what the loss is divided by.
    intercept_unit : float
        Constant feature that the intercept parameter multiplies.
    feature_names : tuple of str or None
        Names of the p features, where the model knows them.
    curvature : float or None
        Second derivative of the loss in ``eta`` where it is constant.
    """

    X: Any
    rows: RowLosses
    loss_weight: Array
    weight: Array
    intercept_unit: float = 1.0
    feature_names: tuple[str, ...] | None = None
    curvature: float | None = None

    def hessian(self) -> Array:
        """Hessian of the mean loss in closed form; outputs do not meet in it.

        Returns
        -------
        ndarray of shape (p, p)
            Of the parameters in scope, in their order; the others are profiled out.

        Raises
        ------
        ValueError
            If the loss is not the squared error.
        """
        if self.curvature is None:
            raise self._not_quadratic()
        places = np.concatenate([self._places(name) for name in self.params])
        outputs, features = np.divmod(places, self.X.shape[1] + 1)
        hessian = np.zeros((len(places), len(places)))
        known: dict[tuple[int, bytes], Array] = {}
        for k in np.unique(outputs):
            own = np.flatnonzero(outputs == k)
            column = min(int(k), self.loss_weight.shape[1] - 1)
            key = (column, features[own].tobytes())
            if key not in known:
                known[key] = self._output_hessian(self.loss_weight[:, column], features[own])
            hessian[np.ix_(own, own)] = known[key]
        return hessian

    def _places(self, name: str) -> NDArray[np.intp]:
        """Output times p + 1 plus feature of each entry of a parameter; p is the intercept."""
        base, output = _parse(name)
        n_outputs, p = self.rows.derivative.shape[1], self.X.shape[1]
        every = np.arange(n_outputs * (p + 1)).reshape(n_outputs, p + 1)
        own = every[:, :p] if base == "coef" else every[:, p:]
        return (own if output is None else own[output]).reshape(-1)

    def _output_hessian(self, weight: Array, scope: NDArray[np.intp]) -> Array:
        """Hessian of one output for some of its features, the rest profiled out."""
        p = self.X.shape[1]
        factor = float(self.curvature or 0.0) / float(self.weight.sum())
        fitted_intercept = any(n.startswith("intercept") for n in (*self.params, *self.left_out))
        total = float(weight.sum())
        mean = np.asarray(self.X.T @ weight) / total
        if fitted_intercept and len(scope) == p and p not in scope:
            return factor * weighted_gram(self.X, weight, mean)
        gram = weighted_gram(self.X, weight, np.zeros(p))
        if fitted_intercept:
            unit = self.intercept_unit
            edge = total * unit * mean[:, None]
            gram = np.block([[gram, edge], [edge.T, np.array([[total * unit**2]])]])
        return factor * profiled(gram, np.isin(np.arange(len(gram)), scope))

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """Gradient sums over blocks of rows, drawn at random if there are several.

        Parameters
        ----------
        n_blocks : int
            Number of blocks, or more; at most one per row.

        Yields
        ------
        BlockGradient
            One per block.
        """
        n_rows = self.X.shape[0]
        n_parts = min(max(n_blocks, _MANY_BLOCKS), n_rows)
        if n_blocks <= 1 or n_parts <= 1:
            yield self._block(slice(None))
            return
        # In the order given, the spread of blocks of sorted rows would be that of their means.
        order = np.random.default_rng(0).permutation(n_rows)
        for rows in np.array_split(order, n_parts):
            yield self._block(rows)

    def _block(self, rows: slice | NDArray[np.intp]) -> BlockGradient:
        """Gradient sums over one block."""
        features, weight = self.X[rows], self.loss_weight[rows]
        sums = self._summed(features, weight * self.rows.derivative[rows])
        sizes = self._summed(abs(features), np.abs(weight) * self.rows.size[rows])
        kinks = np.any(self.rows.kink[rows] & (weight != 0), axis=1)
        return BlockGradient(
            sums=sums,
            loss=float(np.sum(weight * self.rows.value[rows])),
            weight=float(np.sum(self.weight[rows])),
            n_rows=features.shape[0],
            scale=float(np.sqrt(sum(float(t.square().sum()) for t in sizes.values()))),
            n_kinks=int(np.count_nonzero(kinks)),
        )

    def _summed(self, features: Any, slopes: Array) -> Params:
        """Sums over rows for the parameters in scope, from derivatives of shape (n, K)."""
        whole = {
            "coef": np.asarray(features.T @ slopes).T,
            "intercept": self.intercept_unit * slopes.sum(axis=0),
        }
        sums: Params = {}
        for name, tensor in self.params.items():
            base, output = _parse(name)
            part = whole[base] if output is None else whole[base][output]
            sums[name] = torch.from_numpy(np.ascontiguousarray(part)).reshape(tensor.shape)
        return sums


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """What a handler knows of a fitted linear model, in validated arrays.

    Attributes
    ----------
    model : estimator
        Has ``coef_``, and ``intercept_`` where one was fitted.
    X, y : arrays of shape (n, p) and (n, K)
        Rows, targets encoded as ``row_loss`` wants them.
    weight : ndarray of shape (n,)
        Weight of the rows.
    row_loss : RowLoss
        Loss of the rows.
    loss_name : str
        The loss in words.
    convention : Convention or None
        The model's own units.
    loss_weight : ndarray of shape (n, K) or None
        What multiplies the losses, where it is not ``weight``.
    n_effective : float or None
        What the convention divides by, if not the total weight.
    liblinear : float or None
        The ``intercept_scaling`` of a model whose intercept is penalized.
    per_output : bool
        Whether each output has a penalty of its own.
    notes : tuple of str
        Sentences for the reader of the result.
    """

    model: Any
    X: Any
    y: Array
    weight: Array
    row_loss: RowLoss
    loss_name: str
    convention: Convention | None = None
    loss_weight: Array | None = None
    n_effective: float | None = None
    liblinear: float | None = None
    per_output: bool = False
    notes: tuple[str, ...] = ()


def linear_problem(fit: LinearFit, options: Options) -> LinearProblem:
    """Problem of a fitted linear model.

    Parameters
    ----------
    fit : LinearFit
        Model and rows.
    options : Options
        ``params`` says which parameters are in scope. By default the coefficients, and the
        intercept where the model penalizes it.

    Returns
    -------
    LinearProblem
        Parameters "coef" and "intercept", or "coef[0]", "intercept[0]", ... with a penalty for
        each output; float64, shaped like the model's own.

    Raises
    ------
    ValueError
        If y does not have as many outputs as the model, parameters are not finite, or
        ``params`` selects nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg.adapters.linear_losses import squared_error
    >>> X, y = np.array([[1.0], [2.0]]), np.array([[1.0], [1.0]])
    >>> model = Ridge(alpha=1.0, fit_intercept=False).fit(X, y[:, 0])
    >>> problem = linear_problem(LinearFit(model=model, X=X, y=y, weight=np.ones(2),
    ...     row_loss=squared_error, loss_name="squared error"), Options())
    >>> gradient = problem.gradient().value["coef"]
    >>> float(-gradient[0] / (2 * model.coef_[0])) * 2  # alpha = n * coefficient
    1.0
    """
    coef, intercept = _coef(fit.model), _intercept(fit.model)
    every = _parameters(coef, intercept, fit)
    check_finite_params(every)
    default = {n for n in every if n.startswith("coef") or fit.liblinear is not None}
    chosen = select_params(options.params, every, default)
    rows = _row_losses(fit, coef, intercept)
    split = fit.per_output
    return LinearProblem(
        params={name: every[name] for name in chosen},
        model_name=type(fit.model).__name__,
        loss_name=fit.loss_name,
        eps=_rounding_unit(fit.model),
        left_out=tuple(name for name in every if name not in chosen),
        free=_free(fit.model, {name: every[name] for name in chosen}),
        convention=fit.convention,
        n_effective=fit.n_effective,
        groups={n: f"output {_parse(n)[1]}" for n in chosen} if split else None,
        notes=fit.notes,
        X=fit.X,
        rows=rows,
        loss_weight=fit.weight[:, None] if fit.loss_weight is None else fit.loss_weight,
        weight=fit.weight,
        intercept_unit=1.0 if fit.liblinear is None else fit.liblinear,
        feature_names=_feature_names(fit.model),
        curvature=2.0 if fit.row_loss is squared_error else None,
    )


def predictor(model: Any, X: Any) -> Array:
    """Linear predictor ``X coef' + intercept`` of a fitted model.

    Parameters
    ----------
    model : estimator
        Has ``coef_``, and ``intercept_`` where one was fitted.
    X : ndarray or CSR matrix of shape (n, p)
        Features.

    Returns
    -------
    ndarray of shape (n, K)

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LinearRegression
    >>> X = np.array([[0.0], [1.0]])
    >>> predictor(LinearRegression().fit(X, [1.0, 3.0]), X).round(6).tolist()
    [[1.0], [3.0]]
    """
    intercept = _intercept(model)
    eta = np.asarray(X @ np.atleast_2d(_coef(model)).T)
    return eta if intercept is None else eta + np.atleast_1d(intercept)


def _coef(model: Any) -> Array:
    """``coef_`` in float64, dense also after ``sparsify``."""
    coef = model.coef_
    return np.array(coef.toarray() if sparse.issparse(coef) else coef, dtype=np.float64)


def _intercept(model: Any) -> Array | None:
    """Fitted intercept, or None if none was fitted."""
    if not getattr(model, "fit_intercept", True):
        return None
    return np.array(model.intercept_, dtype=np.float64)


def _parameters(coef: Array, intercept: Array | None, fit: LinearFit) -> Params:
    """All trained parameters by name."""
    whole = {"coef": coef}
    if intercept is not None:
        whole["intercept"] = intercept / (1.0 if fit.liblinear is None else fit.liblinear)
    if not fit.per_output:
        return {name: torch.from_numpy(np.asarray(value)) for name, value in whole.items()}
    return {
        f"{name}[{k}]": torch.from_numpy(np.array(row))
        for name, value in whole.items()
        for k, row in enumerate(value)
    }


def _parse(name: str) -> tuple[str, int | None]:
    """Kind of a parameter and its output, of a name such as "coef" or "coef[1]"."""
    base, bracket, output = name.partition("[")
    return base, int(output[:-1]) if bracket else None


def _row_losses(fit: LinearFit, coef: Array, intercept: Array | None) -> RowLosses:
    """Losses of the rows at the trained coefficients."""
    weights = np.atleast_2d(coef).T
    if fit.y.shape[1] != weights.shape[1]:
        raise ValueError(
            f"Expected y with the {weights.shape[1]} output(s) that the model was trained on, "
            f"got {fit.y.shape[1]}; give the y of its training."
        )
    offset = np.zeros(weights.shape[1]) if intercept is None else np.atleast_1d(intercept)
    eta = np.asarray(fit.X @ weights) + offset
    eta_size = np.asarray(abs(fit.X) @ np.abs(weights)) + np.abs(offset)
    return fit.row_loss(eta, fit.y, eta_size)


def _free(model: Any, params: Params) -> Mapping[str, Tensor]:
    """Mask of the coordinates off their bound, where the model has bounds."""
    if not getattr(model, "positive", False):
        return {}
    return {name: tensor != 0 for name, tensor in params.items() if name.startswith("coef")}


def _rounding_unit(model: Any) -> float:
    """Machine epsilon of the precision that the model was trained in."""
    dtype = np.dtype(model.coef_.dtype)
    return float(np.finfo(dtype if dtype.kind == "f" else np.float64).eps)


def _feature_names(model: Any) -> tuple[str, ...] | None:
    """Feature names, where the model has seen any."""
    names = getattr(model, "feature_names_in_", None)
    return None if names is None else tuple(str(name) for name in names)
