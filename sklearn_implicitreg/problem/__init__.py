"""A trained model on its data: parameters, the gradient of a mean loss, and its conventions."""

from __future__ import annotations

from sklearn_implicitreg.problem.batch_problem import BatchProblem
from sklearn_implicitreg.problem.gradient import BlockGradient, LossGradient, Rest, closing, summed
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
from sklearn_implicitreg.problem.ranks import (
    Ranks,
    mean_over_rows,
    on_all_ranks,
    ranks_of,
    together,
)
from sklearn_implicitreg.problem.row_batch import RowBatch
from sklearn_implicitreg.problem.row_models import LinearCall, ModuleCall, as_tensor, call_module
from sklearn_implicitreg.problem.vectors import (
    Params,
    add_to,
    flat,
    norm_of,
    shaped,
    times,
    zeros_of,
)

__all__ = [
    "BatchProblem",
    "BlockGradient",
    "Indices",
    "LinearCall",
    "LossGradient",
    "ModuleCall",
    "Params",
    "ParamsSpec",
    "Problem",
    "Ranks",
    "Rest",
    "RowBatch",
    "Sampling",
    "Weights",
    "add_to",
    "as_tensor",
    "call_module",
    "check_finite_params",
    "closing",
    "flat",
    "mean_over_rows",
    "norm_of",
    "on_all_ranks",
    "profiled",
    "ranks_of",
    "select_params",
    "shaped",
    "summed",
    "times",
    "together",
    "zeros_of",
]
