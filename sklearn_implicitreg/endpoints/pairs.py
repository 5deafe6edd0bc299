"""Whether two trained models are a pair: of one architecture, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from sklearn_implicitreg.problem import Problem


class Arm(Protocol):
    """The targets of a model, or of several."""

    place: str

    @property
    def problem(self) -> Problem:
        """The first trained model."""
        ...


def check_pair(treated: Arm, control: Arm, rows_differ: bool) -> None:
    """Raise ValueError where two models have no contrast."""
    if treated.place != control.place:
        raise ValueError(
            f"Expected two endpoints or two recordings, got {treated.place}s of the treated model "
            f"and {control.place}s of the control; fit both estimators in one mode."
        )
    first, second = treated.problem, control.problem
    _check_tensors(first, second)
    if first.loss_name != second.loss_name:
        raise ValueError(
            f"Expected one loss for both models, got {first.loss_name!r} of the treated and "
            f"{second.loss_name!r} of the control; give both the loss without the treatment."
        )
    if rows_differ or first.n_rows != second.n_rows:
        raise ValueError(
            f"Expected both models on the same rows, got others ({first.n_rows} and "
            f"{second.n_rows} rows); give both the rows without the treatment."
        )
    pairs = zip(first.params.values(), second.params.values(), strict=True)
    if all(torch.equal(one, other.to(one)) for one, other in pairs):
        raise ValueError(
            "Expected two trained models, got two of the same weights: one model was given twice, "
            "or the treatment changed nothing."
        )


def rows_differ(one: tuple[Any, Any, Any], other: tuple[Any, Any, Any]) -> bool:
    """Whether X, y or the weights of two models are known to differ."""
    weights = [own for own in (one[2], other[2]) if own is not None]
    if len(weights) == 1 and np.ptp(np.asarray(weights[0])) > 0:  # equal ones are as none
        return True
    return any(_differ(*pair) for pair in zip(one, other, strict=True))


def _differ(one: Any, other: Any) -> bool:
    """Whether two arrays differ; of what is no array that is not known."""
    if one is other or not (hasattr(one, "shape") and hasattr(other, "shape")):
        return False
    if tuple(one.shape) != tuple(other.shape):
        return True
    one, other = (v.detach().cpu() if isinstance(v, torch.Tensor) else v for v in (one, other))
    if hasattr(one, "nnz") or hasattr(other, "nnz"):
        return bool(abs(one - other).max() > 0)
    one, other = np.asarray(one), np.asarray(other)
    missing = (one != one) & (other != other)
    return not bool(((one == other) | missing).all())


def _check_tensors(first: Problem, second: Problem) -> None:
    """Raise ValueError with the first tensor that the models do not have in common."""
    one, other = (
        [(name, tuple(tensor.shape)) for name, tensor in own.params.items()]
        for own in (first, second)
    )
    for i in range(max(len(one), len(other))):
        a, b = (_in_words(own, i) for own in (one, other))
        if i >= min(len(one), len(other)) or one[i][1] != other[i][1]:
            raise ValueError(
                f"Expected two models of one architecture, got {a} in the treated and {b} in the "
                "control; train both from the same module."
            )


def _in_words(tensors: Sequence[tuple[str, tuple[int, ...]]], i: int) -> str:
    return f"{tensors[i][0]!r} of shape {tensors[i][1]}" if i < len(tensors) else "no such tensor"
