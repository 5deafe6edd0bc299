"""Random situations: a model, its data and a family, drawn from a few small numbers."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn import linear_model as lm
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import LinearSVC, LinearSVR
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator

FAMILIES = ["l2", "l1", "smooth_l1", "power", "l2+l1", "l2+power", "elastic_net", "l2+l1+power"]
REGRESSORS = {
    "Ridge": lm.Ridge(),
    "LinearRegression": lm.LinearRegression(),
    "Lasso": lm.Lasso(alpha=0.01),
    "ElasticNet": lm.ElasticNet(alpha=0.01),
    "SGDRegressor": lm.SGDRegressor(max_iter=5, tol=None, random_state=0),
    "HuberRegressor": lm.HuberRegressor(max_iter=200),
    "LinearSVR": LinearSVR(loss="squared_epsilon_insensitive", random_state=0),
    "QuantileRegressor": lm.QuantileRegressor(alpha=0.01),
    "PoissonRegressor": lm.PoissonRegressor(),
    "GammaRegressor": lm.GammaRegressor(),
    "TweedieRegressor": lm.TweedieRegressor(power=1.5),
    "MLPRegressor": MLPRegressor(hidden_layer_sizes=(4,), max_iter=5, random_state=0),
}
CLASSIFIERS = {
    "RidgeClassifier": lm.RidgeClassifier(),
    "LogisticRegression": lm.LogisticRegression(),
    "SGDClassifier": lm.SGDClassifier("log_loss", max_iter=5, tol=None, random_state=0),
    "LinearSVC": LinearSVC(random_state=0),
    "MLPClassifier": MLPClassifier(hidden_layer_sizes=(4,), max_iter=5, random_state=0),
}
POSITIVE = ("PoissonRegressor", "GammaRegressor", "TweedieRegressor")
MOVED = 0.1  # relative change of the weights after training, so that no family is exact


@dataclass(frozen=True)
class Situation:
    """Everything that a law needs to make the same model and data again."""

    kind: str
    family: str
    seed: int
    n: int
    d: int
    n_outputs: int = 1
    activation: str = "tanh"
    loss: str = "mse"
    batch_size: int = 7
    params: str = "auto"

    @property
    def rng(self) -> np.random.Generator:
        """Generator of the situation's own seed."""
        return np.random.default_rng(self.seed)

    @property
    def is_net(self) -> bool:
        """Whether the model is a torch module."""
        return self.kind == "net"

    def rows(self) -> tuple[Any, Any]:
        """X and y as NumPy arrays."""
        rng = self.rng
        X = rng.normal(size=(self.n, self.d))
        signal = X @ rng.normal(size=(self.d, max(self.n_outputs, 1)))
        noisy = signal + 0.5 * rng.normal(size=signal.shape)
        if self.kind in CLASSIFIERS or self.loss == "cross_entropy":
            labels = np.argmax(np.column_stack([noisy, rng.normal(size=self.n)]), axis=1)
            # Every class has rows, whatever was drawn.
            labels[: self.n_outputs + 1] = np.arange(self.n_outputs + 1)
            return X, labels
        if self.loss == "bce_with_logits":
            return X, (noisy > 0).astype(float)
        if self.kind in POSITIVE or self.loss == "poisson_nll":
            return X, np.exp(0.3 * (noisy if self.is_net else noisy[:, 0])) + 0.1
        single = not self.is_net and self.n_outputs == 1
        return X, noisy[:, 0] if single else noisy

    def model(self, X: Any, y: Any) -> Any:
        """The model: trained a little, then moved away from where it stopped."""
        if self.is_net:
            return self.net()
        template = {**REGRESSORS, **CLASSIFIERS}[self.kind]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = copy.deepcopy(template).fit(X, y)
        rng = np.random.default_rng(self.seed + 1)
        weights = model.coefs_ if hasattr(model, "coefs_") else [model.coef_]
        for array in weights:
            # No weight is at a kink of l1, and none is next to one.
            size = 0.1 + np.abs(array).mean()
            array += (
                MOVED
                * size
                * rng.choice([-1.0, 1.0], array.shape)
                * rng.uniform(0.5, 1.5, array.shape)
            )
        return model

    def net(self) -> nn.Module:
        """A net at random weights."""
        generator = torch.Generator().manual_seed(self.seed % 2**31)
        activation = {"tanh": nn.Tanh, "gelu": nn.GELU, "relu": nn.ReLU}[self.activation]
        width = self.n_outputs + (self.loss == "cross_entropy")
        net = nn.Sequential(nn.Linear(self.d, 5), activation(), nn.Linear(5, width)).double()
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.6)
        return net

    def estimator(self, model: Any, **options: Any) -> Any:
        """Estimator of the situation, not fitted."""
        options = {"family": self.family, "params": self.params} | options
        if self.is_net:
            options = {"loss": self.loss, "batch_size": self.batch_size} | options
        return ImplicitRegularizationEstimator(model, **options)


def sparse(X: Any) -> Any:
    """The same numbers as a sparse array."""
    return csr_array(X)


def without_columns_in_order(model: Any, order: Any) -> Any:
    """The model for columns of X in another order."""
    model = copy.deepcopy(model)
    if isinstance(model, nn.Module):
        with torch.no_grad():
            model[0].weight.copy_(model[0].weight[:, list(order)])
    elif hasattr(model, "coefs_"):
        model.coefs_[0] = model.coefs_[0][order]
    else:
        model.coef_ = model.coef_[..., order]
    return model


sizes = {
    "seed": st.integers(0, 2**31 - 1),
    "n": st.integers(14, 60),
    "d": st.integers(4, 7),
    "family": st.sampled_from(FAMILIES),
}


@st.composite
def linear_situations(draw: Any) -> Situation:
    """A scikit-learn model with one or several outputs."""
    kind = draw(st.sampled_from([*REGRESSORS, *CLASSIFIERS]))
    several = kind in {"Ridge", "LinearRegression", *CLASSIFIERS}
    n_outputs = draw(st.integers(1, 3)) if several else 1
    made: Situation = draw(st.builds(Situation, kind=st.just(kind), **sizes))
    return replace(made, n_outputs=n_outputs)


@st.composite
def nets(draw: Any) -> Situation:
    """A small net with one of the losses."""
    made: Situation = draw(
        st.builds(
            Situation,
            kind=st.just("net"),
            n_outputs=st.integers(1, 3),
            activation=st.sampled_from(["tanh", "gelu", "relu"]),
            loss=st.sampled_from(
                ["mse", "mae", "huber", "cross_entropy", "bce_with_logits", "poisson_nll"]
            ),
            batch_size=st.integers(1, 70),
            params=st.sampled_from(["auto", "all", "weights", "^0"]),
            **sizes,
        )
    )
    return made


def situations() -> Any:
    """Any of them."""
    return st.one_of(linear_situations(), nets())
