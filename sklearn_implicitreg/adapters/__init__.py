"""From a trained model and its data to a `Problem`: one package or module per library.

A class of another library is made known by `register`, with a handler(model, data, options) that
returns a `Problem`, mostly by `linear_problem`.
"""

from __future__ import annotations

from sklearn_implicitreg.adapters.registry import (
    Data,
    Handler,
    Options,
    adapt,
    linear_problem,
    register,
)
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.problem.conventions import Convention

__all__ = [
    "Convention",
    "Data",
    "Handler",
    "Options",
    "Problem",
    "adapt",
    "linear_problem",
    "register",
]
