"""Many coefficient vectors on one data set with squared error: one Gram matrix for all."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from sklearn_implicitreg.adapters.linear.losses import Array
from sklearn_implicitreg.adapters.linear.problems import LinearProblem
from sklearn_implicitreg.adapters.registry import Data, Options, adapt
from sklearn_implicitreg.problem import LossGradient, Params, Problem, check_finite_params
from sklearn_implicitreg.problem.linear_model import LinearModel

# A Gram matrix costs n p^2, a gradient from the rows about 4 n p.
_PASSES = 4
_SQUARED = ("squared_error", "mse")


@dataclass(frozen=True)
class _Shared:
    """One of the checkpoints, and what is computed once for all of them."""

    reference: LinearProblem

    @cached_property
    def gram(self) -> Array:
        """Hessian of one output in its coefficients and intercept (zero without one)."""
        own, p = self.reference, self.reference.coef.shape[1]
        n_own = p + (own.intercept is not None)
        gram = np.zeros((p + 1, p + 1))
        gram[:n_own, :n_own] = own.output_hessian(own.loss_weight[:, 0], np.arange(n_own))
        return gram

    @cached_property
    def gradient(self) -> tuple[Array, LossGradient]:
        """Gradient from the rows, in all parameters, as a matrix ``[coef, intercept]``."""
        whole = {"coef": torch.from_numpy(self.reference.coef)}
        if self.reference.intercept is not None:
            whole["intercept"] = torch.from_numpy(self.reference.intercept)
        found = replace(self.reference, params=whole, left_out=()).gradient()
        matrix = np.zeros((len(self.reference.coef), len(self.gram)))
        for name, value in found.value.items():
            matrix.reshape(-1)[self.reference.places(name)] = value.numpy().reshape(-1)
        return matrix, found

    @cached_property
    def hessian(self) -> Array:
        """Hessian in the parameters in scope."""
        return self.reference.hessian()


@dataclass(frozen=True, kw_only=True)
class CheckpointProblem(LinearProblem):
    """A linear model whose gradient comes from that of another on the same rows."""

    # grad L(theta) = grad L(theta_0) + H (theta - theta_0), the first from the rows: the rounding
    # of X'X times the *difference* does not swamp the small gradients of a trajectory that ends
    # near theta_0.
    shared: _Shared  # gradient at theta_0 and Gram matrix, computed when first asked for

    def gradient(self) -> LossGradient:
        """Gradient of the mean loss in O(p^2)."""
        gram, (start, found) = self.shared.gram, self.shared.gradient
        difference = self.matrix() - self.shared.reference.matrix()
        change = difference @ gram
        matrix = start + change
        value = self.in_scope(matrix)
        # |H_ij| <= s_i s_j bounds the size of what the product sums up.
        s = np.sqrt(np.maximum(np.diag(gram), 0.0))
        size = float(np.linalg.norm(s) * np.linalg.norm(np.abs(difference) @ s))
        loss = found.loss + float(np.sum(difference * (start + change / 2)))
        return replace(found, value=value, loss=loss, scale=found.scale + size)

    def hessian(self) -> Array:
        """Hessian of the mean loss, computed once for all checkpoints."""
        return self.shared.hessian.copy()


def adapt_checkpoints(
    models: Sequence[Any], data: Sequence[Data], options: Options
) -> list[Problem]:
    """Problems of several models; those on the same objects share a Gram matrix if it pays."""
    members: dict[Hashable, list[int]] = {}
    for index, (model, rows) in enumerate(zip(models, data, strict=True)):
        members.setdefault(_sharing(model, rows, options) or index, []).append(index)
    problems: dict[int, Problem] = {}
    for group in members.values():
        end = group[-1]
        with _about(end):
            last = adapt(models[end], data[end], options)
        shared = None
        if isinstance(last, LinearProblem) and _pays(last, len(group)):
            shared = _Shared(last)
        problems[end] = last
        for index in group if shared is not None else group[:-1]:
            with _about(index):
                if shared is not None:
                    problems[index] = _checkpoint(models[index], shared)
                else:
                    problems[index] = adapt(models[index], data[index], options)
    return [problems[index] for index in range(len(models))]


@contextmanager
def _about(index: int) -> Iterator[None]:
    """Errors that say which model of the list they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(f"This is about endpoint {index} of the list.")
        raise


def _sharing(model: Any, rows: Data, options: Options) -> Hashable:
    """What models must have in common to share; None if this one cannot."""
    if type(model) is not LinearModel or model.classes is not None:
        return None
    loss = model.loss if options.loss == "auto" else options.loss
    if not (isinstance(loss, nn.MSELoss) or (isinstance(loss, str) and loss in _SQUARED)):
        return None
    kind = loss.reduction if isinstance(loss, nn.MSELoss) else loss
    coef, names = model.coef_, getattr(model, "feature_names_in_", None)
    return (
        *(id(part) for part in (rows.X, rows.y, rows.sample_weight)),
        kind,
        coef.shape,
        coef.dtype.str,
        model.fit_intercept,
        None if names is None else tuple(names),
    )


def _pays(problem: LinearProblem, n_models: int) -> bool:
    """Whether one Gram matrix is cheaper than a pass over the rows for each model."""
    quadratic, n_features = problem.loss.curvature is not None, problem.coef.shape[1]
    return quadratic and n_models > 1 and _PASSES * n_models > n_features


def _checkpoint(model: LinearModel, shared: _Shared) -> CheckpointProblem:
    """Problem of one of the models that share."""
    own = shared.reference
    coef = np.array(model.coef_, dtype=np.float64)
    whole = {"coef": coef}
    if own.intercept is not None:
        whole["intercept"] = np.array(model.intercept_, dtype=np.float64)
    params: Params = {name: torch.from_numpy(np.asarray(whole[name])) for name in own.params}
    check_finite_params(params)
    known = {field.name: getattr(own, field.name) for field in fields(own)}
    known |= {"params": params, "coef": np.atleast_2d(coef), "shared": shared}
    known["intercept"] = None if own.intercept is None else np.atleast_1d(whole["intercept"])
    return CheckpointProblem(**known)
