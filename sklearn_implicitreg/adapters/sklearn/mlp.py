"""Multi-layer perceptrons of scikit-learn, rebuilt as torch modules in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import gen_batches
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sklearn_implicitreg.adapters.linear.losses import Array
from sklearn_implicitreg.adapters.linear.rows import classification_rows, regression_rows
from sklearn_implicitreg.adapters.registry import Data, Options
from sklearn_implicitreg.adapters.sklearn.checks import all_rows
from sklearn_implicitreg.adapters.torch.criteria import resolve_loss
from sklearn_implicitreg.adapters.torch.losses import RowLoss
from sklearn_implicitreg.adapters.torch.models import module_problem
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.problem.conventions import CONVENTIONS, Convention

_ACTIVATIONS = {"identity": nn.Identity, "logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


class Perceptron(nn.Module):
    """Layers of a fitted MLP, up to the logits or the linear predictor of its outputs."""

    def __init__(self, coefs: list[Any], intercepts: list[Any], activation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for coef, intercept in zip(coefs, intercepts, strict=True):
            n_in, n_out = coef.shape
            # Initial weights would be drawn from the user's generator.
            layer = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float64)
            layer.weight = nn.Parameter(torch.tensor(coef.T, dtype=torch.float64))
            layer.bias = nn.Parameter(torch.tensor(intercept, dtype=torch.float64))
            self.layers.append(layer)
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, X: Tensor) -> Tensor:
        """Outputs before the last activation, of shape (n, K)."""
        for layer in self.layers[:-1]:
            X = self.activation(layer(X))
        last: Tensor = self.layers[-1](X)
        return last


def adapt_mlp(model: Any, data: Data, options: Options) -> Problem:
    """Problem of a fitted MLPRegressor or MLPClassifier."""
    check_is_fitted(model)
    _check_layers(model)
    all_rows(model)
    X, y, weight, row_loss, convention = _rows_and_loss(model, data, options)
    given = None if data.sample_weight is None else weight
    rows = Data(X.toarray() if sparse.issparse(X) else X, y, given)
    module = Perceptron(model.coefs_, model.intercepts_, model.activation)
    problem = module_problem(
        module,
        row_loss,
        rows,
        options,
        model_name=type(model).__name__,
        default={name for name, _ in module.named_parameters() if name.endswith("weight")},
        convention=convention,
        n_effective=_batch_rows(model, X.shape[0], float(weight.mean())),
        notes=("layers.i.weight is coefs_[i] transposed.",),
    )
    eps, factor = float(np.finfo(model.coefs_[0].dtype).eps), _trained_factor(model, row_loss)
    return replace(problem, eps=eps, trained_factor=factor, trained_sum=False)


def _check_layers(model: Any) -> None:
    """Raise ValueError for a model without what training leaves, or with something else there."""
    n_coefs, n_intercepts = (len(getattr(model, n, ())) for n in ("coefs_", "intercepts_"))
    if not n_coefs or n_coefs != n_intercepts or model.activation not in _ACTIVATIONS:
        raise ValueError(
            f"Expected a trained {type(model).__name__} with coefs_ and intercepts_ of the same "
            f"layers and an activation among {list(_ACTIVATIONS)}, got {n_coefs} and "
            f"{n_intercepts} layers and {model.activation!r}; give the model as its fit left it."
        )


def _trained_factor(model: Any, row_loss: RowLoss) -> float:
    """What the training follows, half the squared errors summed over outputs, over L."""
    own = getattr(model, "loss", None) == "squared_error"
    if not own or not isinstance(row_loss.criterion, nn.MSELoss):
        return 1.0
    return 0.5 if row_loss.sum_outputs else 0.5 * float(model.n_outputs_)


def _rows_and_loss(
    model: Any, data: Data, options: Options
) -> tuple[Any, Any, Array, RowLoss, Convention | None]:
    """Rows, loss and units of the model, or of the loss given."""
    if hasattr(model, "classes_"):
        X, y, weight, row_loss = _classifier_rows(model, data)
        convention = CONVENTIONS["MLPClassifier"]
    else:
        X, y, weight = regression_rows(model, data)
        if options.loss == "auto":
            row_loss = _regressor_loss(model)
        convention = CONVENTIONS["MLPRegressor"]
        if getattr(model, "loss", "squared_error") == "poisson":
            convention = replace(convention, l2=0.5)
    if options.loss != "auto":
        return X, y, weight, resolve_loss(options.loss), None
    return X, y, weight, row_loss, convention


def _regressor_loss(model: Any) -> RowLoss:
    """Loss of a regressor."""
    if getattr(model, "loss", "squared_error") == "poisson":
        words = "half Poisson deviance, mean over rows"
        return RowLoss(half_poisson_deviance, words, "regression", sum_outputs=True)
    if model.n_outputs_ > 1:
        raise ValueError(
            f"Expected an MLPRegressor with one output, got {model.n_outputs_}: its loss averages "
            "squared errors over outputs while the gradient that it follows sums them, so it "
            "minimizes no one objective. Give loss='mse' to analyze it against the mean over "
            "outputs, or train one model per output."
        )
    return replace(resolve_loss("mse"), words="squared error, mean over rows, no 1/2")


def half_poisson_deviance(output: Tensor, target: Tensor) -> Tensor:
    """Elementwise ``y log(y / m) - y + m`` of the mean ``m = exp(output)``."""
    return torch.xlogy(target, target) - target * output - target + torch.exp(output)


def _classifier_rows(model: Any, data: Data) -> tuple[Any, Any, Array, RowLoss]:
    """Rows and loss of a classifier."""
    if data.y is not None and type_of_target(data.y).startswith("multilabel"):
        X, y, weight = regression_rows(model, data)
        words = "binary log loss, labels summed, mean over rows"
        loss = replace(resolve_loss("bce_with_logits"), words=words, sum_outputs=True)
        return X, y, weight, loss
    X, codes, _, weight = classification_rows(model, data)
    if len(model.classes_) == 2:
        y = codes[:, None].astype(np.float64)
        loss = replace(resolve_loss("bce_with_logits"), words="log loss, mean over rows")
        return X, y, weight, loss
    return X, codes.astype(np.int64), weight, resolve_loss("cross_entropy")


def _batch_rows(model: Any, n_rows: int, mean_weight: float) -> float | None:
    """What alpha was divided by on average: the harmonic mean of the batches' weights."""
    if model.solver == "lbfgs":
        return None
    size = min(200, n_rows) if model.batch_size == "auto" else min(model.batch_size, n_rows)
    batches = [b.stop - b.start for b in gen_batches(n_rows, size)]
    return float(mean_weight * len(batches) / sum(1 / rows for rows in batches))
