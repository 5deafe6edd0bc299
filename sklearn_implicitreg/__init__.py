"""The penalty that a trained model behaves as if it had been trained with."""

from __future__ import annotations

from typing import Any

from sklearn_implicitreg.endpoints.endpoint import Endpoint
from sklearn_implicitreg.endpoints.retraining import endpoints
from sklearn_implicitreg.estimator import ImplicitRegularizationEstimator
from sklearn_implicitreg.model_selection import (
    ImplicitRegularizationCV,
    contrast,
    equations,
    identifiability,
)
from sklearn_implicitreg.problem.frozen import FrozenModel
from sklearn_implicitreg.problem.linear_model import LinearModel
from sklearn_implicitreg.trajectory import record

__all__ = [
    "Endpoint",
    "FrozenModel",
    "ImplicitRegularizationCV",
    "ImplicitRegularizationEstimator",
    "LinearModel",
    "contrast",
    "endpoints",
    "equations",
    "identifiability",
    "record",
    "training_rows",
]


def __getattr__(name: str) -> Any:
    """Import what needs skorch only when it is asked for."""
    if name == "training_rows":
        from sklearn_implicitreg.adapters.skorch import training_rows

        return training_rows
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
