"""Wrong or useless input: every error says what was expected, what came and what to do."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from threading import Thread

import numpy as np
import pandas as pd
import pytest
import torch
from cases import SPARSE_DIABETES, X_DIABETES, Y_DIABETES, Y_TWO, Y_UNIT
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import BaggingRegressor
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.feature_selection import RFE
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from skorch import NeuralNetRegressor
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from sklearn_implicitreg import (
    Endpoint,
    FrozenModel,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    LinearModel,
    endpoints,
    equations,
)
from sklearn_implicitreg.exceptions import ModelStateWarning, OutputWarning
from sklearn_implicitreg.penalties import L2, RowBatch
from sklearn_implicitreg.theory import l2_boosting, ridge, scalar_equivalent
from sklearn_implicitreg.trajectory import ImplicitRegularizationRecorder, record

Estimator = ImplicitRegularizationEstimator
X, Y = X_DIABETES, Y_DIABETES
N = len(Y)
CODES = np.digitize(Y, [100, 200])
RIDGE = Ridge().fit(X, Y)
ONES = np.ones(N)


def linear(outputs=1):
    torch.manual_seed(0)
    return nn.Linear(10, outputs).double()


def at(array, value):
    """A copy with one other number."""
    changed = np.array(array, dtype=float)
    changed.flat[3] = value
    return changed


def frozen():
    return linear().requires_grad_(False)


def with_nan():
    module = linear()
    module.weight.data[0, 0] = np.nan
    return module


class ForwardOnly:
    def forward(self, inputs):
        return inputs


class TextRows(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return np.array(["a"] * 10), 0.0


def net(split=None, y=None, **params):
    model = NeuralNetRegressor(linear(), max_epochs=1, verbose=0, train_split=split, **params)
    return model.fit(X, Y_UNIT[:, None] if y is None else y)


LOSS_NAMES = (
    r"\['mse', 'mae', 'huber', 'cross_entropy', 'bce', 'bce_with_logits', 'nll', 'poisson_nll'\]"
)
MSE = {"loss": "mse"}

# id: (model, parameters, X, y, sample_weight), error, text
MODELS = {
    "object-with-forward": (
        (ForwardOnly, MSE, X, Y, None),
        TypeError,
        "Expected a trained nn.Module, a fitted skorch net or scikit-learn estimator, an unfitted "
        "one as a template, or 'precomputed', got <.*ForwardOnly",
    ),
    "module-class": (
        (lambda: nn.Linear, MSE, X, Y, None),
        TypeError,
        "Expected a trained model instance, got the class Linear; create and train it first",
    ),
    "estimator-class": (
        (lambda: Ridge, {}, X, Y, None),
        TypeError,
        "Expected a trained model instance, got the class Ridge; create and train it first",
    ),
    "function": ((lambda: len, MSE, X, Y, None), TypeError, "Expected a trained nn.Module.*got <b"),
    "None": ((lambda: None, MSE, X, Y, None), TypeError, "one Endpoint as X where model is None"),
    "name": ((lambda: "ridge", {}, X, Y, None), TypeError, "or 'precomputed', got 'ridge'"),
    "lazy-module": (
        (lambda: nn.LazyLinear(1), MSE, X, Y, None),
        ValueError,
        r"Expected a trained module, got one whose parameters \['weight', 'bias'\] have no shape "
        "yet; train it first",
    ),
    "frozen-lazy-module": (
        (lambda: FrozenEstimator(nn.LazyLinear(1)), MSE, X, Y, None),
        ValueError,
        "have no shape yet; train it first",
    ),
    "frozen-unfitted": (
        (lambda: FrozenEstimator(Ridge()), {}, X, Y, None),
        NotFittedError,
        "This Ridge instance is not fitted yet",
    ),
    "unknown-estimator": (
        (lambda: KNeighborsRegressor().fit(X, Y), {}, X, Y, None),
        TypeError,
        "Expected a trained torch module, skorch net, scikit-learn linear or MLP model or "
        "results of statsmodels, got "
        "KNeighborsRegressor. Give a bare nn.Module with `loss=`, or .*adapters.register",
    ),
    "several-outputs-of-an-mlp": (
        (lambda: MLPRegressor(max_iter=200).fit(X, Y_TWO / 100), {}, X, Y_TWO, None),
        ValueError,
        "Expected an MLPRegressor with one output, got 2: its loss averages .* while the gradient "
        "that it follows sums them, so it minimizes no one objective. Give loss='mse'",
    ),
    "search-without-refit": (
        (lambda: GridSearchCV(Ridge(), {"alpha": [1]}, refit=False).fit(X, Y), {}, X, Y, None),
        ValueError,
        "Expected GridSearchCV with refit=True, got refit=False: .* Fit it with refit=True",
    ),
    "no-trainable-parameters": (
        (frozen, MSE, X, Y, None),
        ValueError,
        "Expected a model with trainable parameters, got one with requires_grad=False everywhere "
        r"\(or without parameters\); set requires_grad on what was trained",
    ),
    "no-parameters-at-all": (
        (nn.Identity, MSE, X, Y, None),
        ValueError,
        "Expected a model with trainable parameters",
    ),
    "nan-in-parameters": (
        (with_nan, MSE, X, Y, None),
        ValueError,
        r"Expected finite trained parameters, got NaN or inf in \['weight'\]; analyse a checkpoint",
    ),
}
LOSSES = {
    "no-loss": (
        (linear, {}, X, Y, None),
        ValueError,
        "A bare nn.Module does not say what it was trained with: give `loss=`, one of "
        + LOSS_NAMES,
    ),
    "no-loss-frozen-module": (
        (lambda: FrozenModel(linear()), {}, X, Y, None),
        ValueError,
        "give `loss=`",
    ),
    "unknown-loss": (
        (linear, {"loss": "cross-entropy"}, X, Y, None),
        ValueError,
        f"Unknown loss 'cross-entropy'; expected one of {LOSS_NAMES}. Did you mean 'cross_entropy'",
    ),
    "loss-in-capitals": (
        (linear, {"loss": "MSE"}, X, Y, None),
        ValueError,
        "Unknown loss 'MSE'; expected one of .*Did you mean 'mse'",
    ),
    "loss-of-scikit-learn": (
        (linear, {"loss": "squared_error"}, X, Y, None),
        ValueError,
        "Unknown loss 'squared_error'.*Did you mean 'mse'",
    ),
    "loss-of-torch": (
        (linear, {"loss": "BCEWithLogitsLoss"}, X, Y, None),
        ValueError,
        "Unknown loss.*Did you mean 'bce_with_logits'",
    ),
    "loss-like-none": (
        (linear, {"loss": "???"}, X, Y, None),
        ValueError,
        r"Unknown loss '\?\?\?'; expected one of \[[^]]*\]\.$",
    ),
    "statsmodels-before-fit": (
        (lambda: pytest.importorskip("statsmodels.api").OLS(Y, X), {}, X, Y, None),
        TypeError,
        r"Expected results of statsmodels, got OLS before its fit; give .*model\.fit\(\)",
    ),
    "statsmodels-before-fit-without-rows": (
        (lambda: pytest.importorskip("statsmodels.api").OLS(Y, X), {}, None, None, None),
        TypeError,
        r"Expected results of statsmodels, got OLS before its fit; give .*model\.fit\(\)",
    ),
    "models-inside": (
        (lambda: BaggingRegressor(Ridge(), 2).fit(X, Y.ravel()), {}, X, Y, None),
        TypeError,
        "got BaggingRegressor. Give one of its estimators_ as the model, with the rows",
    ),
    "model-inside": (
        (lambda: RFE(Ridge()).fit(X, Y.ravel()), {}, X, Y, None),
        TypeError,
        "got RFE. Give its estimator_ as the model, with the rows",
    ),
    "loss-class": (
        (linear, {"loss": nn.MSELoss}, X, Y, None),
        TypeError,
        "loss of ImplicitRegularizationEstimator .*got <class 'torch.nn.modules.loss.MSELoss'>",
    ),
    "detached-loss": (
        (linear, {"loss": lambda o, y: (o.detach() - y).square().mean()}, X, Y, None),
        ValueError,
        "Expected a loss that depends on the trained parameters, got one without a gradient",
    ),
    "loss-that-returns-nothing": (
        (linear, {"loss": lambda o, y: None}, X, Y, None),
        TypeError,
        "Expected the loss to return a Tensor, got NoneType",
    ),
    "mean-with-sample-weight": (
        (linear, {"loss": lambda o, y: (o[:, 0] - y).square().mean()}, X, Y, np.arange(1.0, N + 1)),
        ValueError,
        "Expected a loss that returns one number per row to go with sample_weight, got a single "
        "mean; return the unreduced losses",
    ),
}
FAMILIES = {
    "unknown-family": (
        (lambda: RIDGE, {"family": "l3"}, X, Y, None),
        ValueError,
        "Unknown family 'l3'; expected names of penalties.FAMILIES or STRUCTURED, joined by .*"
        "Did you mean 'l2'",
    ),
    "unknown-part": (
        (lambda: RIDGE, {"family": "l2+smooth"}, X, Y, None),
        ValueError,
        "Unknown family 'smooth'.*Did you mean 'smooth_l1'",
    ),
    "class-without-a-name": (
        (lambda: RIDGE, {"family": "ewc"}, X, Y, None),
        ValueError,
        r"Unknown family 'ewc'.*The class EWC is given as an instance, family=EWC\(\.\.\.\)",
    ),
    "called-in-a-string": (
        (lambda: RIDGE, {"family": "dropout(0.3)"}, X, Y, None),
        ValueError,
        r"The class Dropout is given as an instance, family=Dropout\(\.\.\.\)",
    ),
    "nothing-near": (
        (lambda: RIDGE, {"family": "xyz"}, X, Y, None),
        ValueError,
        "Unknown family 'xyz'.*The names are l2, l1, ",
    ),
    "class-of-a-family": (
        (lambda: RIDGE, {"family": L2}, X, Y, None),
        TypeError,
        r"got <class '.*L2'>; give an instance\.",
    ),
    "family-of-another-type": (
        (lambda: RIDGE, {"family": 3}, X, Y, None),
        TypeError,
        "Expected family to be a name of penalties.FAMILIES or STRUCTURED, such as 'l2', a "
        "Penalty, a list of these, .* got 3",
    ),
    "more-coefficients-than-equations": (
        (lambda: nn.Linear(1, 1).double(), {**MSE, "family": "l2+l1+power"}, X[:, :1], Y, None),
        ValueError,
        r"Expected at least as many equations as coefficients, got 1 equations for the 3 "
        r"coefficients \['l2', 'l1', 'power'\]; take fewer terms, or widen params=",
    ),
    "two-terms-of-one-name": (
        (lambda: RIDGE, {"family": ["l2", "l1", "l2"]}, X, Y, None),
        ValueError,
        r"Expected terms of different names, got \['l2'\] more than once; drop one, or",
    ),
    "unknown-known": (
        (lambda: RIDGE, {"known": {"l3": 0.1}}, X, Y, None),
        ValueError,
        "Unknown family 'l3'",
    ),
    "known-without-numbers": (
        (lambda: RIDGE, {"known": {"l2": np.nan}}, X, Y, None),
        ValueError,
        r"Expected known of ImplicitRegularizationEstimator .*got \{'l2': nan\}\.",
    ),
}
DATA = {
    "unequal-length": (
        (lambda: RIDGE, {}, X, Y[:-1], None),
        ValueError,
        r"inconsistent numbers of samples: \[442, 441\]",
    ),
    "unequal-length-of-a-module": (
        (linear, MSE, X, Y[:-1], None),
        ValueError,
        r"inconsistent numbers of samples: \[442, 441\]",
    ),
    "too-few-weights": (
        (linear, MSE, X, Y, ONES[:-1]),
        ValueError,
        r"Expected sample_weight of shape \(442,\), got \(441,\)",
    ),
    "too-few-weights-for-ridge": (
        (lambda: RIDGE, {}, X, Y, ONES[:-1]),
        ValueError,
        "sample_weight",
    ),
    "nan-in-X": ((lambda: RIDGE, {}, at(X, np.nan), Y, None), ValueError, "Input X contains NaN"),
    "nan-in-X-of-a-module": (
        (linear, MSE, at(X, np.nan), Y, None),
        ValueError,
        "Expected finite data, got NaN or inf in X or y",
    ),
    "inf-in-y": ((lambda: RIDGE, {}, X, at(Y, np.inf), None), ValueError, "Input y contains inf"),
    "inf-in-y-of-a-module": (
        (linear, MSE, X, at(Y, np.inf), None),
        ValueError,
        "Expected finite data, got NaN or inf in X or y",
    ),
    "nan-in-weights": (
        (lambda: RIDGE, {}, X, Y, at(ONES, np.nan)),
        ValueError,
        "Input sample_weight contains NaN",
    ),
    "nan-in-weights-of-a-module": (
        (linear, MSE, X, Y, at(ONES, np.nan)),
        ValueError,
        "Expected finite sample_weight, got NaN or inf",
    ),
    "negative-weights": (
        (lambda: RIDGE, {}, X, Y, at(ONES, -1)),
        ValueError,
        "at or above zero, got",
    ),
    "negative-weights-of-a-module": (
        (linear, MSE, X, Y, at(ONES, -1)),
        ValueError,
        "Expected sample_weight at or above zero, got -1; drop those rows",
    ),
    "weights-of-zero": (
        (linear, MSE, X, Y, 0 * ONES),
        ValueError,
        "Expected a positive total weight of the rows, got 0",
    ),
    "no-y": ((lambda: RIDGE, {}, X, None, None), ValueError, "requires y to be passed"),
    "no-y-for-a-module": (
        (linear, MSE, X, None, None),
        ValueError,
        "Expected y with arrays, got None; or give a Dataset or DataLoader",
    ),
    "y-beside-a-dataset": (
        (linear, MSE, TensorDataset(torch.as_tensor(X), torch.as_tensor(Y)), Y, None),
        ValueError,
        "Expected y=None with a Dataset or DataLoader, which bring their own targets; got y of",
    ),
    "no-rows": ((lambda: RIDGE, {}, X[:0], Y[:0], None), ValueError, r"Found array with 0 sample"),
    "no-rows-for-a-module": (
        (linear, MSE, X[:0], Y[:0], None),
        ValueError,
        "Expected at least 1 row in X, got 0",
    ),
    "labels-for-a-squared-error": (
        (linear, MSE, X, np.where(Y > 100, "a", "b"), None),
        ValueError,
        "Expected numbers in y for 'squared error .*', got labels",
    ),
    "fractions-for-cross-entropy": (
        (lambda: linear(3), {"loss": "cross_entropy"}, X, Y / 7, None),
        ValueError,
        "Expected class labels for 'cross-entropy.*', got fractional numbers in y; use a regress",
    ),
    "fractions-for-a-classifier": (
        (lambda: LogisticRegression().fit(X, Y > 100), {}, X, Y / 7, None),
        ValueError,
        "Unknown label type: continuous",
    ),
    "negative-counts": (
        (lambda: PoissonRegressor().fit(X, Y), {}, X, -Y, None),
        ValueError,
        "Expected y >= 0 for the half Poisson deviance, log link, got values from -346 to -25: "
        r"some value\(s\) of y are out of the valid range of the loss; give the y of the training",
    ),
    "three-classes-for-bce": (
        (linear, {"loss": "bce_with_logits"}, X, CODES, None),
        ValueError,
        r"Expected binary labels or probabilities for .*, got values \[0, 1, 2\]",
    ),
    "one-output-for-cross-entropy": (
        (linear, {"loss": "cross_entropy"}, X, CODES, None),
        ValueError,
        r"Expected outputs of shape \(n, classes\) .*, got \(442, 1\); use loss='bce_with_logits'",
    ),
    "outputs-against-flat-targets": (
        (lambda: linear(2), MSE, X, Y, None),
        ValueError,
        r"Expected y of the shape of the outputs, \(442, 2\), got \(442,\): the two would be broad",
    ),
    "two-targets-for-one-output": (
        (lambda: RIDGE, {}, X, Y_TWO, None),
        ValueError,
        r"Expected y with the 1 output\(s\) that the model was trained on, got 2; give the y of",
    ),
    "other-features": (
        (lambda: RIDGE, {}, X[:, :4], Y, None),
        ValueError,
        "X has 4 features, but Ridge is expecting 10 features",
    ),
    "sparse-for-a-module": (
        (linear, MSE, SPARSE_DIABETES, Y, None),
        TypeError,
        "Expected dense X for a torch model, got a sparse matrix; use X.toarray",
    ),
    "text": (
        (linear, MSE, X.astype(str), Y, None),
        TypeError,
        "Expected numbers in X, got dtype <U",
    ),
}
CHOICES = {
    "trajectory": (
        (linear, {**MSE, "mode": "trajectory"}, X, Y, None),
        ValueError,
        r"mode='trajectory' needs `trajectory=`; record one with `record\(model, optimizer\)`",
    ),
    "mode": ((linear, {**MSE, "mode": "end"}, X, Y, None), ValueError, "Expected mode.*got 'end'"),
    "device-that-is-not-there": (
        (linear, {**MSE, "device": "cuda:77"}, X, Y, None),
        ValueError,
        r"Expected a device that is there, one of \['cpu'.*\], got 'cuda:77'; use device='cpu'",
    ),
    "device-of-no-kind": (
        (linear, {**MSE, "device": "gpu"}, X, Y, None),
        ValueError,
        r"Expected device of ImplicitRegularizationEstimator .*got 'gpu'\.",
    ),
    "dtype": (
        (linear, {**MSE, "dtype": "float16"}, X, Y, None),
        ValueError,
        r"Expected dtype of ImplicitRegularizationEstimator .*got 'float16'\.",
    ),
    "covariance": (
        (lambda: RIDGE, {"covariance": "HC1"}, X, Y, None),
        ValueError,
        r"Expected covariance of ImplicitRegularizationEstimator .*got 'HC1'\.",
    ),
    "confidence-level": (
        (lambda: RIDGE, {"confidence_level": 95}, X, Y, None),
        ValueError,
        r"Expected confidence_level of ImplicitRegularizationEstimator .*got 95\.",
    ),
    "confidence-level-none": (
        (lambda: RIDGE, {"confidence_level": None}, X, Y, None),
        ValueError,
        r"Expected confidence_level of ImplicitRegularizationEstimator .*got None\.",
    ),
    "module-mode": (
        (linear, {**MSE, "module_mode": "test"}, X, Y, None),
        ValueError,
        r"Expected module_mode of ImplicitRegularizationEstimator .*got 'test'\.",
    ),
    "positive": (
        (lambda: RIDGE, {"positive": "yes"}, X, Y, None),
        ValueError,
        r"Expected positive of ImplicitRegularizationEstimator to be True or False, got 'yes'\.",
    ),
    "batch-size": (
        (linear, {**MSE, "batch_size": 0}, X, Y, None),
        ValueError,
        r"Expected batch_size of ImplicitRegularizationEstimator .*got 0\.",
    ),
    "batch-size-true": (
        (linear, {**MSE, "batch_size": True}, X, Y, None),
        ValueError,
        r"Expected batch_size of ImplicitRegularizationEstimator .*got True\.",
    ),
    "params-that-select-nothing": (
        (linear, {**MSE, "params": "conv"}, X, Y, None),
        ValueError,
        r"params='conv' selects none of the trained parameters; expected .* among \['weight'",
    ),
    "params-of-no-kind": (
        (linear, {**MSE, "params": 3}, X, Y, None),
        ValueError,
        r"Expected params of ImplicitRegularizationEstimator .*got 3\.",
    ),
    "params-of-a-broken-pattern": (
        (linear, {**MSE, "params": "["}, X, Y, None),
        ValueError,
        r"a regular expression or a callable.*, got '\['",
    ),
    "group-by": (
        (linear, {**MSE, "group_by": "layers"}, X, Y, None),
        ValueError,
        r"Expected group_by of ImplicitRegularizationEstimator .*got 'layers'\.",
    ),
    "group-by-unknown-optimizer": (
        (linear, {**MSE, "group_by": "param_group"}, X, Y, None),
        ValueError,
        "group_by='param_group' needs a model that knows its optimizer, such as a fitted skorch",
    ),
}
SKORCH = {
    "split-that-cannot-be-reproduced": (
        (lambda: net(ValidSplit(0.2)), {}, X, Y_UNIT[:, None], None),
        ValueError,
        "validation split cannot be reproduced .*Retrain with train_split=ValidSplit",
    ),
    "fewer-rows": (
        (lambda: net(ValidSplit(5)), {}, X[:300], Y_UNIT[:300, None], None),
        ValueError,
        r"Expected the 442 rows that the net's history says .* got 300: .*`training_rows\(net",
    ),
    "loss-beside-its-own": (
        (net, MSE, X, Y_UNIT[:, None], None),
        ValueError,
        "Expected loss='auto' for a skorch net, whose own get_loss is used, got 'mse'; give net.mo",
    ),
}
GIVEN = {
    "equations-with-two-targets": (
        (lambda: "precomputed", {}, X, Y_TWO, None),
        ValueError,
        r"Expected a design of shape \(m, k\) as X and a target of shape \(m,\) as y .*\(442, 2\)",
    ),
    "equations-without-a-target": (
        (lambda: "precomputed", {}, X, None, None),
        ValueError,
        "Expected y, the target of the regression, with model='precomputed', got None",
    ),
    "equations-with-nan": (
        (lambda: "precomputed", {}, at(X, np.nan), Y, None),
        ValueError,
        "Expected finite numbers in X, got NaN or inf; drop those rows",
    ),
    "too-few-equations": (
        (lambda: "precomputed", {}, X[:3], Y[:3], None),
        ValueError,
        "Expected at least as many equations as coefficients, got 3 equations for 10 coeff",
    ),
    "no-equations": (
        (lambda: "precomputed", {}, np.empty((0, 0)), np.empty(0), None),
        ValueError,
        "Expected at least as many equations as coefficients, got 0 equations",
    ),
    "two-columns-of-one-name": (
        (lambda: "precomputed", {}, pd.DataFrame(X, columns=list("aabcdefghi")), Y, None),
        ValueError,
        r"Expected columns of different names, got \['a'\] twice; rename them",
    ),
    "negative-weights-of-equations": (
        (lambda: "precomputed", {}, X, Y, -ONES),
        ValueError,
        "Expected sample_weight of shape .*, at or above zero .* a smallest weight of -1",
    ),
}
SHAPES = {
    "other-features-of-a-module": (
        (linear, MSE, X[:, :4], Y, None),
        ValueError,
        r"Expected X as the forward of Linear takes it, whose first layer is "
        r"Linear\(in_features=10.*got shape \(442, 4\) \(float64\): Runtime.*Give the data",
    ),
    "one-dimension-of-a-module": (
        (linear, MSE, X[:, 0], Y, None),
        ValueError,
        r"first layer is Linear.*, got shape \(442,\)",
    ),
    "named-inputs-that-the-module-does-not-take": (
        (linear, MSE, {"features": X}, Y, None),
        ValueError,
        r"Expected X as the forward of Linear takes it, .*must be Tensor, not dict",
    ),
    "members-of-other-lengths": (
        (linear, MSE, {"input": X, "other": X[:5]}, Y, None),
        ValueError,
        r"Expected X as the forward .* got shape \(442, 10\) .*, shape \(5, 10\)",
    ),
    "images-for-a-convolution": (
        (lambda: nn.Conv2d(3, 1, 2).double(), MSE, np.ones((4, 2, 5, 5)), np.ones((4, 1)), None),
        ValueError,
        r"first layer is Conv2d\(3, 1.*got shape \(4, 2, 5, 5\).*to have 3 channels",
    ),
    "labels-above-the-classes": (
        (lambda: linear(2), {"loss": nn.CrossEntropyLoss()}, X, CODES + 5, None),
        ValueError,
        "Expected",
    ),
    "a-loss-that-does-not-fit": (
        (linear, {"loss": lambda o, y: o @ y}, X, np.ones((N, 2)), None),
        ValueError,
        r"Expected a loss that takes the outputs and targets, \(32, 1\) and \(32, 2\), got Runtime",
    ),
    "complex-numbers": (
        (linear, MSE, torch.as_tensor(X) * 1j, Y, None),
        ValueError,
        r"got shape \(442, 10\) \(complex128\)",
    ),
    "a-loader-of-text": (
        (linear, MSE, TextRows(), None, None),
        TypeError,
        "Expected rows of numbers that can be joined to batches",
    ),
    "text-in-X": (
        (lambda: RIDGE, {}, pd.DataFrame([["a"] * 10] * N), Y, None),
        ValueError,
        "Expected numbers in X and y, got others: could not convert string",
    ),
    "text-in-weights": (
        (lambda: RIDGE, {}, X, Y, "a"),
        ValueError,
        "Expected sample_weight to be an array of real numbers, got 'a'",
    ),
    "weights-by-column": (
        (lambda: RIDGE, {}, X, Y, np.ones((N, 1))),
        ValueError,
        r"Expected sample_weight of shape \(442,\), got \(442, 1\)",
    ),
    "a-class-without-tags-in-a-pipeline": (
        (lambda: make_pipeline(ForwardOnly()), {}, X, Y, None),
        TypeError,
        "Expected estimators of scikit-learn inside Pipeline.*inherit from sklearn.base.BaseEstim",
    ),
    "other-rows-of-a-net": (
        (net, {}, X, Y_UNIT[:5, None], None),
        ValueError,
        "Expected X and y that the net can be fitted on, got .* as many rows of X as of y",
    ),
}
HELD = {
    "no-rows": (
        (lambda: RIDGE, {}, None, None, None),
        ValueError,
        "Expected X, the rows that Ridge was trained on, got None; only results of statsmodels",
    ),
    "no-rows-of-a-net": (
        (linear, {"loss": "mse"}, None, None, None),
        ValueError,
        "Expected X, the rows that Linear was trained on, got None",
    ),
    "no-rows-of-a-template": (
        (Ridge, {}, None, None, None),
        ValueError,
        "Expected X, the rows that Ridge was trained on, got None",
    ),
    "targets-alone": (
        (lambda: RIDGE, {}, None, Y, None),
        ValueError,
        "Expected X with y, got None; give both, or neither",
    ),
    "alias-with-a-typo": (
        (lambda: RIDGE, {"family": "ridgee"}, X, Y, None),
        ValueError,
        "Unknown family 'ridgee'; expected names of .*Did you mean 'ridge'",
    ),
    "dropout-without-a-rate": (
        (linear, {"loss": "mse", "family": "dropout"}, X, Y, None),
        ValueError,
        "Expected a model with dropout layers .*so the rate p is not known",
    ),
}


class Own(RegressorMixin, BaseEstimator):
    """Of a user, who keeps what they like."""

    def fit(self, X, y):
        return self


def edited(name, change, model=RIDGE):
    """A trained model with another attribute, or none."""
    made = copy.deepcopy(model)
    if change is None:
        delattr(made, name)
    else:
        setattr(made, name, change(getattr(made, name)))
    return made


def own(coef, intercept):
    made = Own()
    made.coef_, made.intercept_, made.n_features_in_ = coef, intercept, 10
    return made


def drawing_and_interrupted(output, target):
    torch.rand(3), np.random.rand(3)
    raise KeyboardInterrupt


BINARY = Y > 140
TWO = LogisticRegression(max_iter=1000).fit(X, BINARY)
NUMBERS = "to be an array of real numbers, got"
LEFT = {  # what training leaves: attribute, change, model, text
    "no-coef": ("coef_", None, RIDGE, "a trained Ridge with coef_, got none"),
    "None-coef": ("coef_", lambda v: None, RIDGE, "a trained Ridge with coef_, got none; give"),
    "text-coef": ("coef_", lambda v: "a", TWO, f"coef_ of LogisticRegression {NUMBERS} 'a'"),
    "complex-coef": ("coef_", lambda v: v + 1j, RIDGE, f"coef_ of Ridge {NUMBERS}"),
    "dict-coef": ("coef_", lambda v: {}, RIDGE, f"coef_ of Ridge {NUMBERS}"),
    "number-coef": ("coef_", lambda v: 1.0, RIDGE, r"coef_ of shape \(p,\) or .*got shape \(\)"),
    "cube-coef": ("coef_", lambda v: v[None, None], RIDGE, r"got shape \(1, 1, 10\)"),
    "empty-coef": ("coef_", lambda v: v[:0], RIDGE, r"got shape \(0,\)"),
    "short-coef": ("coef_", lambda v: v[:3], RIDGE, r"each of the 10 features of X.*\(3,\)"),
    "long-coef": ("coef_", lambda v: np.r_[v, 1], RIDGE, r"each of the 10 features .*\(11,\)"),
    "short-rows": ("coef_", lambda v: v[:, :4], TWO, r"each of the 10 features of X.*\(1, 4\)"),
    "no-intercept": ("intercept_", None, RIDGE, "a trained Ridge with intercept_, got none"),
    "None-intercept": ("intercept_", lambda v: None, RIDGE, "with intercept_, got none"),
    "two-intercepts": ("intercept_", lambda v: [v, v], RIDGE, r"for each row .*got shape \(2,\)"),
    "two-of-one": ("intercept_", lambda v: np.r_[v, 0], TWO, r"for each row .*got shape \(2,\)"),
    "complex-intercept": ("intercept_", lambda v: v + 1j, TWO, f"intercept_ of .* {NUMBERS}"),
    "matrix-intercept": ("intercept_", lambda v: [[v]], RIDGE, r"got shape \(1, 1\)"),
    "no-classes": ("classes_", None, TWO, "a trained LogisticRegression with classes_"),
    "None-classes": ("classes_", lambda v: None, TWO, "with classes_ on one axis, got None"),
    "matrix-classes": ("classes_", lambda v: v[None], TWO, "with classes_ on one axis, got array"),
}
LINEAR = {
    name: ((partial(edited, at_, change, model), {}, X, BINARY if model is TWO else Y, None),
           ValueError, f"Expected .*{text}")
    for name, (at_, change, model, text) in LEFT.items()
} | {
    f"{name}-y": ((lambda: RIDGE, {}, X, y, None), ValueError, f"Expected y {NUMBERS}")
    for name, y in {
        "text": np.where(Y > 100, "a", "b"),
        "bytes": np.full(N, b"a"),
        "dates": np.full(N, "2020", "M8[Y]"),
        "sparse": csr_matrix(Y[:, None]),
    }.items()
} | {
    f"loss-{name}": ((lambda: RIDGE, {"loss": loss}, X, Y, None), error, text)
    for name, (loss, error, text) in {
        "detached": (lambda o, t: (o - t).detach() ** 2, ValueError, "depends on the outputs, got"),
        "constant": (lambda o, t: torch.ones(len(o)), ValueError, "depends on the outputs, got"),
        "other-graph": (
            lambda o, t: torch.ones(len(o), requires_grad=True) ** 2,
            ValueError,
            "depends on the outputs, got one without a gradient",
        ),
        "bool": (lambda o, t: o > t, TypeError, "numbers, got torch.bool"),
        "whole": (lambda o, t: (o - t).long(), TypeError, "numbers, got torch.int64"),
        "complex": (lambda o, t: (o - t) * 1j, TypeError, "numbers, got torch.complex128"),
    }.items()
} | {
    "loss-complex-of-a-module": (
        (linear, {"loss": lambda o, t: (o - t) * 1j}, X, Y[:, None], None),
        TypeError,
        "Expected the loss to return real floating-point numbers, got torch.complex128",
    ),
    "sparse-tensor": (
        (lambda: RIDGE, {}, torch.from_numpy(X).to_sparse(), Y, None),
        TypeError,
        "Expected numbers in X and y, got others: .*to_dense",
    ),
}  # fmt: skip
ALL = {**LINEAR, **SHAPES, **MODELS, **LOSSES, **FAMILIES, **DATA, **CHOICES, **SKORCH, **GIVEN}
ALL |= HELD


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", ALL)
def test_error_says_what_to_do(kind):
    (make, params, x, y, weight), error, text = ALL[kind]
    estimator = Estimator(make(), **params)
    with pytest.raises(error, match=text):
        estimator.fit(x, y, sample_weight=weight)
    assert not hasattr(estimator, "coef_")


@pytest.mark.parametrize(
    "change",
    [np.ndarray.tolist, torch.from_numpy, pd.Series, lambda v: torch.tensor(v, requires_grad=True)],
)
def test_coefficients_of_any_array_are_read(change):
    expected = Estimator(RIDGE).fit(X, Y).coef_
    assert np.array_equal(Estimator(edited("coef_", change)).fit(X, Y).coef_, expected)
    intercept = torch.tensor(RIDGE.intercept_, requires_grad=True)
    made = Estimator(own(change(RIDGE.coef_), intercept), loss="squared_error")
    assert np.array_equal(made.fit(X, Y).coef_, expected)


def test_a_class_of_the_users_without_intercept():
    through_zero = Ridge(3.0, fit_intercept=False).fit(X, Y)
    made = own(through_zero.coef_, None)
    assert Estimator(made, loss="squared_error").fit(X, Y).coef_[0] == pytest.approx(3 / N)


def test_classes_in_a_list_are_read():
    listed = edited("classes_", np.ndarray.tolist, TWO)
    assert np.array_equal(
        Estimator(listed).fit(X, BINARY).coef_, Estimator(TWO).fit(X, BINARY).coef_
    )


def test_tensors_with_a_graph_are_rows():
    x, y = (torch.tensor(v, requires_grad=True) for v in (X, Y))
    found = Estimator(RIDGE).fit(x, y, sample_weight=torch.ones(N, requires_grad=True))
    assert np.array_equal(found.coef_, Estimator(RIDGE).fit(X, Y).coef_)
    given = LinearModel(torch.tensor(RIDGE.coef_, requires_grad=True), RIDGE.intercept_)
    assert np.array_equal(Estimator(given).fit(x, y).coef_, found.coef_)


@pytest.mark.parametrize(
    ("model", "y"), [(RIDGE, Y), (TWO, BINARY)], ids=["regressor", "classifier"]
)
def test_an_interrupted_loss_leaves_the_generators(model, y):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.raises(KeyboardInterrupt):
        Estimator(model, loss=drawing_and_interrupted).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_flat_targets_of_a_net_that_broadcast():
    flat = net(y=Y_UNIT, batch_size=N)
    with pytest.raises(ValueError, match=r"got \(442,\): the net's own loss broadcast .*reshape"):
        Estimator(flat).fit(X, Y_UNIT)


def test_flat_targets_of_a_module_are_meant():
    """(n,) against (n, 1) can mean one thing only."""
    one = Estimator(linear(), loss="mse").fit(X, Y)
    np.testing.assert_array_equal(
        one.coef_, Estimator(linear(), loss="mse").fit(X, Y[:, None]).coef_
    )
    last = Estimator(linear(), loss="mse", batch_size=N - 1).fit(X, Y)
    assert last.coef_ == pytest.approx(one.coef_, rel=1e-10)


def test_parameters_of_a_shared_model():
    with pytest.raises(ValueError, match="Expected a template to set .*, got a trained model"):
        Estimator(make_pipeline(RIDGE)).set_params(model__ridge__alpha=2.0)


def test_zero_gradient_is_no_exception():
    est = Estimator(LinearRegression().fit(X, Y)).fit(X, Y)
    assert est.verdict_ == "no signal"
    assert np.isnan(est.coef_).all()


@pytest.mark.parametrize(
    ("last", "loss", "outputs"),
    [(nn.Softmax(dim=-1), "cross_entropy", 3), (nn.Sigmoid(), "bce_with_logits", 1)],
    ids=["softmax", "sigmoid"],
)
def test_probabilities_for_logits_warn(last, loss, outputs):
    module = nn.Sequential(linear(outputs), last)
    y = CODES if outputs == 3 else (Y > 100).astype(int)
    with pytest.warns(OutputWarning, match="expects logits, but the outputs look like probabilit"):
        Estimator(module, loss=loss).fit(X, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_cast_up_and_said(dtype):
    module = linear().to(dtype)
    with pytest.warns(ModelStateWarning, match=f"is stored in {str(dtype)[6:]}, too coarse for"):
        est = Estimator(module, loss="mse").fit(X, Y)
    assert module.weight.dtype == dtype
    exact = Estimator(linear().to(dtype).double(), loss="mse").fit(X, Y)
    assert est.coef_ == pytest.approx(exact.coef_, rel=1e-3)


SEARCHES = {
    "no-family": ({"families": []}, r"Expected families of ImplicitRegularizationCV .*got \[\]\."),
    "one-name": ({"families": "l2"}, r"Expected families of ImplicitRegularizationCV .*got 'l2'\."),
    "unknown": ({"families": ["l2", "l9"]}, "Unknown family 'l9'.*Did you mean"),
    "twice": (
        {"families": ["l2", "l1", "l2"]},
        r"Expected families of different names, got \['l2'\] twice; name them by a dict",
    ),
    "wrong-parameter": (
        {"families": ["l2"], "covariance": "x"},
        "Expected covariance of ImplicitRegularizationCV to be ",
    ),
}


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("cv", [None, 3], ids=["criterion", "folds"])
def test_searches_say_what_to_do(kind, cv):
    params, text = SEARCHES[kind]
    with pytest.raises(ValueError, match=text):
        ImplicitRegularizationCV(RIDGE, cv=cv, **params).fit(X, Y)


def test_search_of_given_equations():
    with pytest.raises(ValueError, match="Expected a model, got 'precomputed': families are func"):
        ImplicitRegularizationCV("precomputed", families=["l2"]).fit(X, Y)
    with pytest.raises(ValueError, match="Expected a model, got 'precomputed': its equations are"):
        equations("precomputed", X, Y)


def test_search_of_one_row():
    with pytest.raises(ValueError, match="Expected at least 2 rows, .* got n_samples = 1"):
        ImplicitRegularizationCV(RIDGE, families=["l2"]).fit(X[:1], Y[:1])


def test_score_of_other_equations():
    est = Estimator("precomputed").fit(X, Y)
    with pytest.raises(ValueError, match="X has 3 features, but .* is expecting 10 features"):
        est.score(X[:, :3], Y)


def test_model_is_whole_after_a_fit_that_raised():
    module = linear()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rng = torch.get_rng_state()
    with pytest.raises(ValueError, match="Expected finite data"):
        Estimator(module, loss="mse").fit(at(X, np.nan), Y)
    assert all(torch.equal(state[name], t) for name, t in module.state_dict().items())
    assert module.weight.grad is None
    assert module.training
    assert torch.equal(torch.get_rng_state(), rng)


def test_failed_refit_keeps_the_last_results():
    est = Estimator(RIDGE).fit(X, Y)
    coef = est.coef_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with pytest.raises(ValueError, match="Unknown family"):
            est.set_params(family="l9").fit(X, Y)
    assert est.coef_ is coef


def layered():
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))


def sgd(*modules):
    return torch.optim.SGD([p for m in modules for p in m.parameters()], lr=0.1)


OPTIMIZERS = {
    "none": (lambda net: [], ValueError, "at least one optimizer, got an empty list"),
    "twice": (lambda net: [sgd(net)] * 2, ValueError, "Expected optimizers that differ, got one"),
    "overlap": (
        lambda net: [sgd(net), sgd(net[1])],
        ValueError,
        r"Expected optimizers of different tensors, got 1\.weight in two of them",
    ),
    "foreign": (
        lambda net: [sgd(net), sgd(torch.nn.Linear(1, 1))],
        ValueError,
        "Expected an optimizer of this model's parameters, got one of none of them",
    ),
    "no-optimizer": (
        lambda net: [sgd(net), net],
        TypeError,
        "Expected a torch optimizer or a list of them, got Sequential in the list",
    ),
    "class": (
        lambda net: torch.optim.SGD,
        TypeError,
        "Expected optimizer of record to be an Optimizer or a list of them, got <class",
    ),
}


PASSES = [0, -1, 2.0, True, "many", None]


@pytest.mark.parametrize("n_passes", PASSES)
@pytest.mark.parametrize("cv", [False, True])
def test_number_of_readings(n_passes, cv):
    kind = ImplicitRegularizationCV if cv else ImplicitRegularizationEstimator
    own = {"families": ["l2"]} if cv else {}
    text = rf"n_passes of {kind.__name__} to be 'auto' or an integer >= 1, got {n_passes!r}"
    with pytest.raises((ValueError, TypeError), match=text):
        kind(RIDGE, n_passes=n_passes, **own).fit(X, Y)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_of_a_recording(kind):
    made, error, text = OPTIMIZERS[kind]
    net = layered()
    with pytest.raises(error, match=text):
        record(net, made(net))


RECORDERS = {
    "families": ({"families": "l2"}, "Expected families to be a list such as"),
    "no families": ({"families": []}, "Expected families to be a list such as"),
    "reference": ({"families": ["l2"], "reference": "batch"}, "Expected reference among"),
    "without": ({"reference": "applied"}, "Expected families= with loss=, reference= or params="),
    "params": (
        {"families": ["l2"], "params": "nothing"},
        "params='nothing' selects none of the trained",
    ),
}


@pytest.mark.parametrize("kind", RECORDERS)
def test_recorder_of_a_skorch_net(kind):
    how, text = RECORDERS[kind]
    net = NeuralNetRegressor(
        linear(),
        max_epochs=1,
        verbose=0,
        callbacks=[ImplicitRegularizationRecorder(**how)],
    )
    with pytest.raises(ValueError, match=text):
        net.fit(X, Y.reshape(-1, 1))


@pytest.mark.parametrize("rule", [lambda *given: 0, [None]])
def test_rules_of_several_optimizers(rule):
    net = layered()
    with pytest.raises(ValueError, match="Expected update_rule to be a list of 2 rules"):
        record(net, [sgd(net[0]), sgd(net[1])], update_rule=rule)


def test_one_of_several_that_is_recorded_already():
    net = layered()
    first, second = sgd(net[0]), sgd(net[1])
    with record(net, first), pytest.raises(ValueError, match="recorded already"):
        record(net, [second, first]).__enter__()
    with record(net, second):
        pass


CALLS = {
    "learner-array": (lambda: l2_boosting(0.1, 3, np.ones(2)), "learner='ols' or a filter"),
    "learner-table": (lambda: l2_boosting(0.1, 3, pd.Series([1, 2])), "learner='ols' or a filter"),
    "reference-array": (lambda: recorded(reference=np.ones(2)), "families= with loss=, reference="),
    "reference-table": (lambda: recorded(reference=pd.Series([1, 2])), "families= with loss="),
    "no-columns": (lambda: endpoints(Ridge(), {}, Y, 3), "at least 1 row, got an empty dict"),
    "no-targets": (lambda: endpoints(Ridge(), X, {}, 3), "at least 1 row, got an empty dict"),
    "no-weights": (lambda: endpoints(Ridge(), X, Y, 3, sample_weight={"a": {}}), "at least 1 row"),
    "rows-of-nothing": (lambda: Estimator(None).fit([Endpoint(RIDGE, {}, Y, rows=[1])]), "row"),
    "no-processes": (
        lambda: endpoints(Ridge(), X, Y, 3, n_jobs=0),
        "n_jobs of endpoints to be None or an integer other than 0, got 0",
    ),
    "no-rows": (lambda: RowBatch.of(linear(), torch.zeros(0, 10)), "at least 1 row of data, got 0"),
    "huge-theta": (lambda: scalar_equivalent([10**400], np.eye(1)), "array of real numbers, got"),
    "huge-spectrum": (lambda: ridge(1.0).values([10**400]), "array of real numbers, got"),
    "huge-weights": (lambda: Estimator(RIDGE).fit(X, Y, [10**400] * N), "array of real"),
    "a-thread": (lambda: Estimator(linear(), loss="mse", trajectory=Thread()).fit(X, Y), "a probe"),
    "a-thread-as-path": (lambda: on_path(Thread()), "trajectory of .* to be .* a probe"),
    "short-penalty": (lambda: PENALTY({"coef": torch.ones(3)}), r"shape \(10,\).*\(3,\)"),
    "square-penalty": (lambda: PENALTY({"coef": torch.ones(10, 10)}), r"\(10,\).*\(10, 10\)"),
    "wide-penalty": (
        lambda: Estimator(linear(), loss="mse").fit(X, Y[:, None]).penalty_(torch.nn.Linear(3, 1)),
        r"'weight' of shape \(1, 10\), that of the fitted model, got \(1, 3\)",
    ),
    "short-matrix": (lambda: WHOLE({"coef": torch.ones(3)}), r"shape \(10,\).*\(3,\)"),
}  # fmt: skip
PENALTY = Estimator(RIDGE).fit(X, Y).penalty_
WHOLE = Estimator(RIDGE, family="quadratic").fit(X, Y).penalty_


def recorded(**given):
    net = layered()
    with record(net, sgd(net), **given):
        pass


def on_path(trajectory):
    return Estimator(linear(), loss="mse", mode="trajectory", trajectory=trajectory).fit(X, Y)


@pytest.mark.parametrize("kind", CALLS)
def test_calls_say_what_to_do(kind):
    call, text = CALLS[kind]
    with pytest.raises(ValueError, match=f"Expected .*{text}"):
        call()


def test_a_penalty_takes_axes_of_length_one():
    """As coefficients stand in a layer of torch, or in the rows of several outputs."""
    coef = torch.from_numpy(RIDGE.coef_)
    for penalty in (PENALTY, WHOLE):
        assert penalty({"coef": coef[None]}) == penalty({"coef": coef})
        assert penalty({"coef": coef[:, None]}) == penalty({"coef": coef})


def test_recording_of_complex_parameters():
    net = torch.nn.Linear(2, 1, dtype=torch.cfloat)
    with pytest.raises(ValueError, match="Expected an optimizer of real parameters, got complex"):
        record(net, sgd(net))


def doubled(params):
    return params["coef"].mul_(2).sum()


CALLED = {
    "params of one argument": (
        {"params": lambda name: True},
        r"or a callable\(name, tensor\) -> bool, got",
    ),
    "params that answer in words": (
        {"params": lambda name, tensor: "no"},
        "Expected True or False from params= for each tensor, got {'coef': 'no'",
    ),
    "groups of one argument": (
        {"group_by": lambda name: "a"},
        r"a callable\(name, tensor\)",
    ),
    "a penalty of nothing": (
        {"family": {"a": lambda: 1}},
        r"a dict of name to callable\(params\) or callable\(params, batch\)",
    ),
    "a penalty of three": (
        {"family": {"a": lambda params, batch, more: 1}},
        r"a dict of name to callable\(params\) or callable\(params, batch\)",
    ),
    "a penalty in place": (
        {"family": {"a": doubled}},
        "Expected Callables to leave its parameters as they are, got an operation in place",
    ),
    "a complex penalty": (
        {"family": {"a": lambda params: (params["coef"] * 1j).sum()}},
        "Expected real values of a floating-point type, got 'a' of Callables",
    ),
    "a complex penalty of rows": (
        {"family": {"a": lambda params, batch: batch.inputs[:, 0] * 1j}},
        "Expected real values of a floating-point type for every row, got torch.complex128 as 'a'",
    ),
}


@pytest.mark.parametrize("kind", CALLED)
def test_callables(kind):
    options, text = CALLED[kind]
    before = RIDGE.coef_.copy()
    with pytest.raises((TypeError, ValueError), match=text):
        Estimator(RIDGE, **options).fit(X, Y)
    assert np.array_equal(RIDGE.coef_, before)


class Broken(Dataset):
    """A data set that fails for a reason of its own."""

    def __len__(self):
        raise ValueError("No file of this name.")


def test_an_error_of_a_data_set_is_not_one_of_lengths():
    net = NeuralNetRegressor(linear(), max_epochs=1, train_split=None, verbose=0)
    net.fit(X, Y[:, None])
    with pytest.raises(ValueError, match=r"can be fitted on, got .*No file of this name\.$"):
        Estimator(net).fit(Broken())
    with pytest.raises(ValueError, match="Give as many rows of X as of y"):
        Estimator(net).fit(X, Y[:-1, None])
