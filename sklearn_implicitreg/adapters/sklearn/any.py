"""Any fitted estimator with ``coef_`` and ``intercept_``, once its loss is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from sklearn_implicitreg.adapters import Data, Options
from sklearn_implicitreg.adapters.linear import deviances, losses, margins
from sklearn_implicitreg.adapters.linear.adapter import (
    LinearFit,
    LinearProblem,
    linear_problem,
    predictor,
)
from sklearn_implicitreg.adapters.linear.losses import Array, RowLoss, RowLosses
from sklearn_implicitreg.adapters.linear.streams import streamed
from sklearn_implicitreg.adapters.sklearn.rows import (
    classification_rows,
    one_hot,
    regression_rows,
    row_class_weights,
)
from sklearn_implicitreg.adapters.torch.losses import LOSSES, resolve_loss

__all__ = ["HANDLERS", "adapt_any_linear", "any_linear_fit"]

_LossMaker = Callable[[Any], RowLoss]

# Regression: outputs summed; name -> loss of a model.
_RESIDUAL: dict[str, _LossMaker] = {
    "squared_error": lambda _: losses.squared_error,
    "absolute_error": lambda _: losses.absolute,
    "epsilon_insensitive": lambda m: partial(
        losses.epsilon_insensitive, epsilon=float(getattr(m, "epsilon", 0.1))
    ),
    "squared_epsilon_insensitive": lambda m: partial(
        losses.squared_epsilon_insensitive, epsilon=float(getattr(m, "epsilon", 0.1))
    ),
    "poisson": lambda _: deviances.poisson,
    "gamma": lambda _: deviances.gamma,
}
# The same, averaged over outputs as torch does.
_AVERAGED: dict[str, _LossMaker] = {
    "mse": lambda _: losses.squared_error,
    "mae": lambda _: losses.absolute,
}
# Classification by margins, one problem per class.
_MARGIN: dict[str, RowLoss] = {
    "hinge": margins.hinge,
    "squared_hinge": margins.squared_hinge,
    "modified_huber": margins.modified_huber,
    "perceptron": margins.perceptron,
}
_LOG = ("log_loss",)


def adapt_any_linear(model: Any, data: Data, options: Options) -> LinearProblem:
    """Problem of any fitted estimator with ``coef_`` and ``intercept_``, with a loss given.

    Parameters
    ----------
    model : estimator
        Fitted; its predictor is ``X coef_' + intercept_``. With ``classes_`` it is a
        classifier, whose ``class_weight``, if any, multiplies the weights of the rows.
    data : Data
        Rows.
    options : Options
        ``loss`` is a name, an nn loss, or a callable(output, target) that returns a mean or
        one number per row. The last two are differentiated by torch, with respect to the
        predictor alone.

    Returns
    -------
    LinearProblem
        Without a convention: the model's own penalty is not known.

    Raises
    ------
    ValueError
        If no loss is given, its name is not known, or it does not suit the model.

    Examples
    --------
    >>> from sklearn.linear_model import OrthogonalMatchingPursuit
    >>> X, y = [[0.0], [1.0], [2.0]], [0.0, 1.0, 3.0]
    >>> model = OrthogonalMatchingPursuit().fit(X, y)
    >>> problem = adapt_any_linear(model, Data(X, y), Options(loss="squared_error"))
    >>> float(abs(problem.gradient().value["coef"]).max()) < 1e-12
    True
    """
    return linear_problem(any_linear_fit(model, data, options.loss), options)


def any_linear_fit(model: Any, data: Data, loss: Any) -> LinearFit:
    """Validated rows of a fitted estimator and the loss given.

    Parameters
    ----------
    model : estimator
        Has ``coef_`` and ``intercept_``.
    data : Data
        Rows.
    loss : str, nn loss or callable(output, target)
        As in `adapt_any_linear`.

    Returns
    -------
    LinearFit

    Raises
    ------
    ValueError
        If no loss is given, its name is not known, or it does not suit the model.
    """
    known = [*_AVERAGED, *LOSSES, *_RESIDUAL, *_LOG, *_MARGIN]
    if loss is None or (isinstance(loss, str) and loss not in known):
        what = "no loss" if loss in (None, "auto") else f"loss={loss!r}"
        raise ValueError(
            f"Expected the loss that {type(model).__name__} was trained with, got {what}; give "
            f"`loss=`, one of {sorted(set(known))}, an nn loss, or a callable(output, target)."
        )
    classifier = hasattr(model, "classes_")
    return _classifier_fit(model, data, loss) if classifier else _regressor_fit(model, data, loss)


def _regressor_fit(model: Any, data: Data, loss: Any) -> LinearFit:
    """Rows of a regressor."""
    X, y, weight = regression_rows(model, data)
    if type(loss) is nn.MSELoss:  # the same in closed form; a sum is over outputs
        loss = "squared_error" if loss.reduction == "sum" else "mse"
    if isinstance(loss, str) and loss in _AVERAGED:
        row_loss, n_outputs = _AVERAGED[loss](model), y.shape[1]
        name = {"mse": "squared error (no 1/2)", "mae": "absolute error"}[loss]
        return LinearFit(
            model=model,
            X=X,
            y=y,
            weight=weight,
            row_loss=row_loss,
            loss_name=name + ", mean over rows and outputs" * (n_outputs > 1),
            loss_weight=weight[:, None] / n_outputs,
        )
    if isinstance(loss, str) and loss in _RESIDUAL:
        return LinearFit(
            model=model,
            X=X,
            y=y,
            weight=weight,
            row_loss=_RESIDUAL[loss](model),
            loss_name=loss.replace("_", " ") + ", mean over rows",
        )
    target = torch.from_numpy(y[:, 0] if y.shape[1] == 1 else y)
    return _by_autograd(model, X, target, weight, loss)


def _classifier_fit(model: Any, data: Data, loss: Any) -> LinearFit:
    """Rows of a classifier."""
    X, codes, labels, weight = classification_rows(model, data)
    n_classes = len(model.classes_)
    if getattr(model, "class_weight", None):
        weight = weight * row_class_weights(model, labels)
    low, row_loss = 0.0, None
    if isinstance(loss, str) and loss in _MARGIN:
        low, row_loss = -1.0, _MARGIN[loss]
    elif isinstance(loss, str) and loss in _LOG:
        row_loss = deviances.log_loss if n_classes == 2 else deviances.multinomial
    elif isinstance(loss, str) and loss in (*_AVERAGED, *_RESIDUAL):
        maker = {**_AVERAGED, **_RESIDUAL}[loss]
        low, row_loss = -1.0, maker(model)
    if row_loss is None:
        target = codes if n_classes > 2 else codes.astype(np.float64)
        return _by_autograd(model, X, torch.from_numpy(target), weight, loss)
    return LinearFit(
        model=model,
        X=X,
        y=one_hot(codes, n_classes, low=low),
        weight=weight,
        row_loss=row_loss,
        loss_name=str(loss).replace("_", " ") + ", mean over rows",
    )


def _by_autograd(model: Any, X: Any, target: torch.Tensor, weight: Array, loss: Any) -> LinearFit:
    """A loss of torch, or the user's, differentiated with respect to the predictor."""
    row_loss = resolve_loss(loss)
    eta = torch.from_numpy(predictor(model, X)).requires_grad_()
    output = eta[:, 0] if eta.shape[1] == 1 else eta
    given = None if np.all(weight == 1) else torch.from_numpy(weight)
    total, mass = row_loss(output, row_loss.prepare(output, target), given)
    (slope,) = torch.autograd.grad(total, eta, create_graph=True)
    curvature = _curvature(slope, eta)
    n_rows, n_outputs = eta.shape
    slopes = slope.detach().numpy()
    value = np.full((n_rows, 1), float(total.detach()) / n_rows)

    def looked_up(_: Array, place: Array, eta_size: Array | None) -> RowLosses:
        at = place[:, 0].astype(np.intp)
        size = np.abs(slopes[at]) + curvature[at] * (0.0 if eta_size is None else eta_size)
        return RowLosses(value[at], slopes[at], size, np.zeros(size.shape, dtype=bool))

    return LinearFit(
        model=model,
        X=X,
        y=np.repeat(np.arange(float(n_rows))[:, None], n_outputs, axis=1),
        weight=weight * (mass / weight.sum()),
        row_loss=looked_up,
        loss_name=row_loss.words,
        loss_weight=np.ones((n_rows, 1)),
    )


def _curvature(slope: torch.Tensor, eta: torch.Tensor) -> Array:
    """Size of the second derivative of the loss, zero where it has none."""
    if not slope.requires_grad:
        return np.zeros(eta.shape)
    (second,) = torch.autograd.grad(slope.sum(), eta, allow_unused=True)
    size: Array = np.zeros(eta.shape) if second is None else np.abs(second.numpy())
    return size


def _linear_model(model: Any, data: Data, options: Options) -> LinearProblem:
    """Given coefficients with their own loss, unless another one is asked for."""
    own = isinstance(options.loss, str) and options.loss == "auto"
    return adapt_any_linear(model, data, replace(options, loss=model.loss) if own else options)


HANDLERS = {"LinearModel": streamed(_linear_model)}
