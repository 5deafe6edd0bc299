"""From a fitted linear model and its rows to a `LinearProblem`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from sklearn_implicitreg.adapters import Options
from sklearn_implicitreg.adapters.linear.blocks import row_blocks, rows_of_features
from sklearn_implicitreg.adapters.linear.losses import Array, RowLoss, squared_error
from sklearn_implicitreg.adapters.linear.problems import LinearProblem, parsed
from sklearn_implicitreg.problem import Params, check_finite_params, select_params
from sklearn_implicitreg.problem.conventions import Convention

__all__ = ["LinearFit", "LinearProblem", "linear_problem", "predictor"]


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
    columns : mapping of str to ndarray of int, or None
        Features of each parameter, where they are not "coef" and "intercept"; the model's
        penalty covers all of them.
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
    columns: Mapping[str, NDArray[np.intp]] | None = None


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
    >>> from sklearn_implicitreg.adapters.linear.losses import squared_error
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
    _check_outputs(fit, np.atleast_2d(coef).shape[0])
    whole = fit.liblinear is not None or fit.columns is not None
    default = {n for n in every if n.startswith("coef") or whole}
    chosen = select_params(options.params, every, default)
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
        groups={n: f"output {parsed(n)[1]}" for n in chosen} if split else None,
        notes=fit.notes,
        X=fit.X,
        y=fit.y,
        coef=np.atleast_2d(coef),
        intercept=None if intercept is None else np.atleast_1d(intercept),
        row_loss=fit.row_loss,
        loss_weight=fit.weight[:, None] if fit.loss_weight is None else fit.loss_weight,
        weight=fit.weight,
        intercept_unit=1.0 if fit.liblinear is None else fit.liblinear,
        feature_names=_feature_names(fit.model),
        columns=fit.columns,
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
    coef = np.atleast_2d(_coef(model))
    parts = [np.asarray(rows_of_features(X, rows) @ coef.T) for rows in row_blocks(X)]
    eta = np.concatenate(parts)
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
    if fit.columns is not None:
        return {name: torch.from_numpy(coef[places]) for name, places in fit.columns.items()}
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


def _check_outputs(fit: LinearFit, n_outputs: int) -> None:
    """Refuse targets with another number of outputs than the model has."""
    if fit.y.shape[1] != n_outputs:
        raise ValueError(
            f"Expected y with the {n_outputs} output(s) that the model was trained on, "
            f"got {fit.y.shape[1]}; give the y of its training."
        )


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
