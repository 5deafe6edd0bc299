"""Trajectories of training runs: recording or making them, and what theory expects of steps."""

from importlib import import_module
from typing import Any

from sklearn_implicitreg.trajectory.probes import ContinueTraining, GradientDescentProbe, Probe
from sklearn_implicitreg.trajectory.recording.record import record
from sklearn_implicitreg.trajectory.references import Applied, Batch, Flow, Gradient
from sklearn_implicitreg.trajectory.smoothness import Kinks, drift_ratio, find_kinks
from sklearn_implicitreg.trajectory.step_size import (
    StepFactor,
    barrett_dherin_scale,
    finite_step_factor,
    minibatch_factor,
    richardson,
)
from sklearn_implicitreg.trajectory.trajectory import Trajectory

__all__ = [
    "Applied",
    "Batch",
    "ContinueTraining",
    "Flow",
    "Gradient",
    "GradientDescentProbe",
    "ImplicitRegularizationRecorder",
    "IterateRecorder",
    "Kinks",
    "LightningRecorder",
    "Probe",
    "StepFactor",
    "Trajectory",
    "TransformersRecorder",
    "barrett_dherin_scale",
    "drift_ratio",
    "find_kinks",
    "finite_step_factor",
    "minibatch_factor",
    "record",
    "richardson",
]

# Loaded with the library that each is for.
_RECORDERS = {
    "ImplicitRegularizationRecorder": "recording.skorch",
    "IterateRecorder": "recording.sklearn",
    "LightningRecorder": "recording.lightning",
    "TransformersRecorder": "recording.transformers",
}


def __getattr__(name: str) -> Any:
    """Recorders for other libraries, imported when they are asked for."""
    if name not in _RECORDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_RECORDERS[name]}"), name)
