"""A trained model on its data: parameters, the gradient of a mean loss, and its conventions."""

from __future__ import annotations

from sklearn_implicitreg.problem.gradient import BlockGradient, LossGradient, Params
from sklearn_implicitreg.problem.problem import (
    Indices,
    ParamsSpec,
    Problem,
    Sampling,
    Weights,
    check_finite_params,
    profiled,
    select_params,
)

__all__ = [
    "BlockGradient",
    "Indices",
    "LossGradient",
    "Params",
    "ParamsSpec",
    "Problem",
    "Sampling",
    "Weights",
    "check_finite_params",
    "profiled",
    "select_params",
]
