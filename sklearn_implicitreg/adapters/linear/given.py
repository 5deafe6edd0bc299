"""Any fitted estimator with ``coef_`` and ``intercept_``, once its loss is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sklearn_implicitreg.adapters.linear import losses
from sklearn_implicitreg.adapters.linear.fitted import check_trained, fitted_problem, predictor
from sklearn_implicitreg.adapters.linear.losses import Array, Loss, loss_of
from sklearn_implicitreg.adapters.linear.problems import LinearProblem
from sklearn_implicitreg.adapters.linear.rows import (
    classification_rows,
    one_hot,
    output_names,
    regression_rows,
    row_class_weights,
)
from sklearn_implicitreg.adapters.linear.streams import streamed
from sklearn_implicitreg.adapters.registry import Data, Options
from sklearn_implicitreg.adapters.torch import criteria
from sklearn_implicitreg.adapters.torch.data import Batch
from sklearn_implicitreg.adapters.torch.generators import preserved_rng
from sklearn_implicitreg.adapters.torch.trial import TRIED_ROWS, examined

# Losses of torch that average over outputs what the table sums.
_AVERAGED = {loss.torch: name for name, loss in losses.LOSSES.items() if loss.torch}


def adapt_given(model: Any, data: Data, options: Options, **known: Any) -> LinearProblem:
    """Problem of a fitted estimator whose loss ``options.loss`` is, without a convention."""
    loss = options.loss
    choices = {*criteria.LOSSES, *losses.LOSSES}
    if loss is None or (isinstance(loss, str) and loss not in choices):
        what = "no loss" if loss in (None, "auto") else f"loss={loss!r}"
        raise ValueError(
            f"Expected the loss that {type(model).__name__} was trained with, got {what}; give "
            f"`loss=`, one of {sorted(choices)}, an nn loss, or a callable(output, target)."
        )
    check_trained(model)
    make = _classifier if hasattr(model, "classes_") else _regressor
    return make(model, data, options, known)


def _regressor(model: Any, data: Data, options: Options, known: dict[str, Any]) -> LinearProblem:
    """Problem of a regressor."""
    loss, (X, y, weight) = options.loss, regression_rows(model, data)
    known = {"output_names": output_names(data.y)} | known
    if type(loss) is nn.MSELoss:  # the same in closed form; a sum is over outputs
        loss = "squared_error" if loss.reduction == "sum" else "mse"
    named = _closed_form(loss, model)
    if named is None:
        target = torch.from_numpy(y[:, 0] if y.shape[1] == 1 else y)
        with preserved_rng(target.device):
            return _by_autograd(model, (X, target, weight), options, known)
    n_outputs = y.shape[1]
    if loss in _AVERAGED and n_outputs > 1:
        averaged = {"loss_weight": weight[:, None] / n_outputs}
        known = {"how": "mean over rows and outputs"} | averaged | known
    return fitted_problem(model, (X, y, weight), named, options, **known)


def _classifier(model: Any, data: Data, options: Options, known: dict[str, Any]) -> LinearProblem:
    """Problem of a classifier, whose ``class_weight`` multiplies the weights of the rows."""
    X, codes, labels, weight = classification_rows(model, data)
    weight = weight * row_class_weights(model, labels)
    n_classes = len(model.classes_)
    named = _closed_form(options.loss, model)
    if named is None:
        target = torch.from_numpy(codes if n_classes > 2 else codes.astype(np.float64))
        with preserved_rng(target.device):
            return _by_autograd(model, (X, target, weight), options, known)
    if n_classes > 2 and options.loss == "log_loss":
        named = losses.LOSSES["cross_entropy"]
        known = {"how": "mean over rows"} | known
    y = one_hot(codes, n_classes, low=named.low)
    return fitted_problem(model, (X, y, weight), named, options, **known)


def _closed_form(loss: Any, model: Any) -> Loss | None:
    """Loss of the table by the user's name; torch's own names are torch's losses."""
    if not isinstance(loss, str):
        return None
    name = _AVERAGED.get(loss, loss)
    return None if name in criteria.LOSSES else loss_of(name, model)


def _by_autograd(
    model: Any, rows: tuple[Any, torch.Tensor, Array], options: Options, known: dict[str, Any]
) -> LinearProblem:
    """A loss of torch, or the user's, differentiated with respect to the predictor."""
    X, target, weight = rows
    row_loss = criteria.resolve_loss(options.loss)
    eta = torch.from_numpy(predictor(model, X)).requires_grad_()
    output = (eta[:, 0] if eta.shape[1] == 1 else eta).clone()  # which a loss may work in
    target = target.clone()
    if row_loss.custom:
        few = slice(None, None, max(1, len(eta) // TRIED_ROWS))
        row_loss = examined(row_loss, Batch((), target[few], None), output[few], None).row_loss
    row_weight = None if np.all(weight == 1) else torch.from_numpy(weight)
    total, mass = row_loss(output, row_loss.prepare(output, target), row_weight)
    slope = None
    if total.requires_grad:
        (slope,) = torch.autograd.grad(total, eta, create_graph=True, allow_unused=True)
    if slope is None:
        raise ValueError(
            "Expected a loss that depends on the outputs, got one without a gradient; does it "
            "detach, or compute without torch?"
        )
    curvature = _curvature(slope, eta)
    n_rows, n_outputs = eta.shape
    slopes = slope.detach().numpy()
    value = np.full((n_rows, 1), float(total.detach()) / n_rows)

    def looked_up(_: Array, place: Array, size: Array) -> losses.Values:
        at = place[:, 0].astype(np.intp)
        return value[at], slopes[at], np.abs(slopes[at]) + curvature[at] * size

    places = np.repeat(np.arange(float(n_rows))[:, None], n_outputs, axis=1)
    whole = (X, places, weight * (mass / weight.sum()))
    default: dict[str, Any] = {"loss_weight": np.ones((n_rows, 1)), "loss_name": row_loss.words}
    looked = Loss(looked_up, row_loss.words, kinked=not curvature.any())
    return fitted_problem(model, whole, looked, options, **(default | known))


def _curvature(slope: torch.Tensor, eta: torch.Tensor) -> Array:
    """Size of the second derivative of the loss, zero where it has none."""
    if not slope.requires_grad:
        return np.zeros(eta.shape)
    (second,) = torch.autograd.grad(slope.sum(), eta, allow_unused=True)
    size: Array = np.zeros(eta.shape) if second is None else np.abs(second.numpy())
    return size


def _linear_model(model: Any, data: Data, options: Options) -> LinearProblem:
    """Given coefficients with their own loss, unless another one is asked for."""
    asked = replace(options, loss=model.loss) if options.loss == "auto" else options
    return adapt_given(model, data, asked)


HANDLERS = {"LinearModel": streamed(_linear_model)}
