"""From a trained model and its data to a `Problem`: one module per library, loaded on need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.problem.frozen import FrozenModel

__all__ = ["Data", "Options", "adapt", "adapt_many"]

_LIBRARIES = {
    "sklearn": "sklearn.models",
    "sklearn_implicitreg": "sklearn.any",
    "skorch": "skorch",
    "statsmodels": "statsmodels.results",
    "torch": "torch.modules",
}


@dataclass(frozen=True)
class Data:
    """Rows as the user gave them."""

    X: Any
    y: Any = None
    sample_weight: Any = None


@dataclass(frozen=True)
class Options:
    """What the estimator's parameters ask of an adapter."""

    loss: Any = "auto"
    params: str | Callable[[str, Tensor], bool] = "auto"
    module_mode: str = "auto"
    batch_size: Any = "auto"
    device: Any = "auto"
    dtype: Any = "auto"
    random_state: Any = None
    trained_batch_size: int | None = None  # where the rows do not tell it
    completing: bool = False  # rows that complete those of a fit, taken as they come


def adapt(model: Any, data: Data, options: Options) -> Problem:
    """Problem of a trained model, by the first class of its MRO that an adapter knows.

    Raises
    ------
    TypeError
        If no adapter knows the model.
    """
    if isinstance(model, FrozenModel):
        model = model.model
    for cls in type(model).__mro__:
        module = _LIBRARIES.get(cls.__module__.partition(".")[0])
        if module is None:
            continue
        handler = import_module(f"{__name__}.{module}").HANDLERS.get(cls.__name__)
        if handler is not None:
            problem: Problem = handler(model, data, options)
            return problem
    if hasattr(model, "coef_") and hasattr(model, "intercept_"):
        generic = import_module(f"{__name__}.sklearn.models").adapt_any_linear
        problem = generic(model, data, options)
        return problem
    raise TypeError(
        f"Expected a trained torch module, skorch net, scikit-learn linear or MLP model or results "
        f"of statsmodels, got {type(model).__name__}. Give a bare nn.Module with `loss=`, or "
        "model='precomputed' with the design as X and the target as y."
    )


def adapt_many(models: Sequence[Any], data: Sequence[Data], options: Options) -> list[Problem]:
    """Problems of several trained models, which share what they can.

    Linear models with squared error on the same rows (the same objects) share one Gram matrix.

    Raises
    ------
    TypeError
        If no adapter knows one of the models.
    """
    shared = import_module(f"{__name__}.linear.checkpoints").adapt_checkpoints
    problems: list[Problem] = shared(models, data, options)
    return problems
