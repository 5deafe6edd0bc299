"""A trained model on its data: parameters, the gradient of a mean loss, and its conventions."""

from __future__ import annotations

from sklearn_implicitreg.problem.problem import (
    BlockGradient,
    Indices,
    LossGradient,
    Params,
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
