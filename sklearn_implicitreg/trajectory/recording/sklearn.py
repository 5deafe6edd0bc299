"""Recorder for scikit-learn's callbacks, and training a copy of an MLP on."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.utils import _safe_indexing, gen_batches
from torch import Tensor

from sklearn_implicitreg.adapters import Data
from sklearn_implicitreg.adapters.sklearn.mlp import Perceptron
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.trajectory.recording.record import record
from sklearn_implicitreg.trajectory.trajectory import Trajectory


class IterateRecorder:
    """Callback that keeps the iterates that a scikit-learn estimator hands out.

    Those of ``LogisticRegression(solver="lbfgs")`` are fitted models; an iteration of L-BFGS is no
    gradient step, so analyze each as an endpoint. :meth:`path` is for gradient steps.

    Attributes
    ----------
    iterates_ : list of estimators
        In their order, as if ``fit`` had stopped there.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> recorder = IterateRecorder()
    >>> model = LogisticRegression(max_iter=500)
    >>> model = model.set_callbacks(recorder)  # in scikit-learn 1.9 or later
    >>> _ = model.fit(*load_iris(return_X_y=True))
    >>> bool((recorder.iterates_[-1].coef_ == model.coef_).all())
    True
    """

    def __init__(self) -> None:
        self.iterates_: list[Any] = []

    def setup(self, estimator: Any, context: Any) -> None:
        """Forget the iterates of another fit."""
        self.iterates_ = []

    def teardown(self, estimator: Any, context: Any) -> None:
        """Nothing is left to do."""

    def on_fit_task_begin(self, estimator: Any, context: Any, **kwargs: Any) -> None:
        """Nothing is known yet."""

    def on_fit_task_end(
        self, estimator: Any, context: Any, *, fitted_estimator: Any = None, **kwargs: Any
    ) -> bool:
        """Keep the iterate of a task; some tasks have none, the whole fit repeats the last."""
        is_iteration = not getattr(context, "max_subtasks", 0)
        if is_iteration and hasattr(fitted_estimator, "coef_"):
            self.iterates_.append(fitted_estimator)
        return False

    def path(self, lr: float | Iterable[float]) -> Trajectory:
        """Trajectory through the iterates, as gradient steps.

        Parameters
        ----------
        lr : float or iterable of floats
            Step size.

        Returns
        -------
        trajectory : Trajectory
        """
        return Trajectory.from_iterates(self.iterates_, lr)


class _StepsOfModel(torch.optim.Optimizer):
    """Optimizer of an MLP of scikit-learn, whose steps a module of the same weights follows."""

    def __init__(self, module: Perceptron, model: Any):
        layers: Any = module.layers
        self._tensors = [layer.weight for layer in layers] + [layer.bias for layer in layers]
        self._inner = model._optimizer
        self._update = self._inner.update_params
        super().__init__(self._tensors, {"lr": self.rate, **_betas(self._inner)})

    @property
    def rate(self) -> float:
        """Step size, before the correction of Adam's moments."""
        own = self._inner
        return float(own.learning_rate_init if _betas(own) else own.learning_rate)

    @torch.no_grad()
    def step(self, params: list[Any], grads: list[Any]) -> None:  # type: ignore[override]
        """Let the model's optimizer make its step on its arrays, and take over where it led."""
        for tensor, gradient in zip(self._tensors, grads, strict=True):
            tensor.grad = torch.tensor(gradient.T, dtype=torch.float64)
        self._update(params, grads)
        for tensor, value in zip(self._tensors, params, strict=True):
            tensor.copy_(torch.tensor(value.T))
            self.state[tensor]["given"] = tensor.grad
        if not _betas(self._inner):
            return
        for tensor, square in zip(self._tensors, self._inner.vs, strict=True):
            self.state[tensor] |= {"exp_avg_sq": torch.tensor(square.T), "step": self._inner.t}
        # Added before the bias is corrected, by torch's Adam after.
        corrected = 1 - self._inner.beta_2**self._inner.t
        self.param_groups[0]["eps"] = self._inner.epsilon / corrected**0.5


def _betas(inner: Any) -> dict[str, Any]:
    """Decay rates of the moments, of Adam only."""
    return {"betas": (inner.beta_1, inner.beta_2)} if hasattr(inner, "beta_1") else {}


def _given(moved: Tensor, group: Any, before: Any, after: Any) -> Tensor:
    """Gradient that scikit-learn's optimizer was given, with the penalty of the model in it."""
    given: Tensor = after["given"]
    return given


def continued(model: Any, data: Data, whole: Problem, *, n_epochs: int, every: int) -> Trajectory:
    """Trajectory of a copy of a fitted MLP that is trained on; the model stays as it is."""
    if model.solver not in ("sgd", "adam"):
        raise ValueError(
            f"Expected an MLP of solver='sgd' or 'adam' to train on, got {model.solver!r}, which "
            "makes no gradient steps; analyze it with mode='endpoint'."
        )
    own = copy.deepcopy(model)
    # The order of the rows is drawn here, so that it is known.
    own.set_params(verbose=False, shuffle=False)
    module = Perceptron(own.coefs_, own.intercepts_, own.activation)
    optimizer = _StepsOfModel(module, own)
    n_rows = whole.n_rows or 0
    size = min(200, n_rows) if own.batch_size == "auto" else min(own.batch_size, n_rows)
    own.set_params(batch_size=size)
    with record(module, optimizer, every=every, gradients=False, update_rule=_given) as recorder:
        for _ in range(n_epochs):
            order = torch.randperm(n_rows).numpy() if model.shuffle else np.arange(n_rows)
            batches = (order[rows] for rows in gen_batches(n_rows, size))

            def step(params: Any, grads: Any, batches: Iterator[Any] = batches) -> None:
                recorder.batch(next(batches))
                optimizer.param_groups[0]["lr"] = optimizer.rate
                optimizer.step(params, grads)

            own._optimizer.update_params = step
            rows = data.X, data.y, data.sample_weight
            X, y, *weight = [_safe_indexing(part, order) for part in rows if part is not None]
            own.partial_fit(X, y, *weight)
            recorder.epoch()
    sgd = model.solver == "sgd"
    settings = {"momentum": model.momentum, "nesterov": model.nesterovs_momentum} if sgd else {}
    settings |= _betas(own._optimizer)
    settings["lr"] = recorder.trajectory.steps[0].lr
    return replace(recorder.trajectory, optimizer="SGD" if sgd else "Adam", settings=settings)
