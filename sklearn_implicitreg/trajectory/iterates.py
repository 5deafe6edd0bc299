"""Trajectories made from iterates that were kept, instead of by hooks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.problem.parameters import NOTHING, Allowed, check, integer, number
from sklearn_implicitreg.problem.vectors import wide, wide_zeros
from sklearn_implicitreg.trajectory.marks import Mark
from sklearn_implicitreg.trajectory.vectors import minus, moved
from sklearn_implicitreg.trajectory.window import Step


def _are_several(weights: Any) -> bool:
    if isinstance(weights, str | bytes | set | type | nn.Module):
        return False
    try:
        return iter(weights) is not None
    except TypeError:
        return False


_SEVERAL = Allowed(_are_several, ("an iterable, with one entry after another",))
_ALLOWED = {
    "weights": _SEVERAL,
    "lr": number(above=0) | _SEVERAL,
    "gradients": NOTHING | _SEVERAL,
    "n_steps": integer(1),
}


def recorded(
    weights: Iterable[Any],
    lr: float | Iterable[float],
    gradients: Iterable[Any] | None,
    n_steps: int,
) -> tuple[list[Mark], list[Step], int]:
    """Marks and steps of gradient descent through the iterates, and how many were dropped."""
    lr = lr.item() if isinstance(lr, np.ndarray | Tensor) and not lr.ndim else lr
    given = {"weights": weights, "lr": lr, "gradients": gradients, "n_steps": n_steps}
    check("from_iterates", given, _ALLOWED)
    iterates = iter(weights)
    first = next(iterates, None)
    if first is None:
        raise ValueError("Expected at least 2 iterates, got 0.")
    _check_descent(first)
    here = tensors(first)
    rates = _rates(lr)
    slopes = iter(() if gradients is None else gradients)
    zeros = {n: wide_zeros(t) for n, t in here.items()}
    consumed = {} if gradients is None else zeros
    marks, steps, dropped = [Mark(0, 0, here, zeros, consumed, zeros)], [], 0
    before = first
    for after in iterates:
        _check_own(before, after)
        before, there = after, tensors(after)
        rate, gradient = next(rates, None), next(slopes, None)
        if rate is None or (gradients is not None and gradient is None):
            raise ValueError(
                f"Expected one lr (and gradient) for each step, got {len(marks) - 1 + dropped} "
                "of them for more iterates; give one less than there are iterates."
            )
        _check_same(here, there)
        if not (_finite(here) and _finite(there)):
            dropped += n_steps
        else:
            if marks[-1].weights is not here:  # steps before were dropped
                marks[-1] = replace(marks[-1], weights=here)
            marks.append(_next(marks[-1], there, rate, gradient, n_steps))
            step = Step(rate, rounding=_rounding(there, rate), skipped=_unmoved(here, there))
            steps += [step] * n_steps
        here = there
    _check_used_up(lr, rates)
    if len(marks) < 2 or dropped > len(steps):
        raise ValueError(
            f"Expected at least 2 finite iterates, got {len(marks)} with {dropped} steps to NaN "
            "or inf."
        )
    return marks, steps, dropped


def tensors(iterate: Any) -> Params:
    """Weights of an iterate by their names, copied."""
    if isinstance(iterate, str | PathLike):
        iterate = torch.load(iterate, map_location="cpu", weights_only=True)
    if isinstance(iterate, nn.Module):
        iterate = dict(iterate.named_parameters())
    elif hasattr(iterate, "coefs_") and hasattr(iterate, "intercepts_"):
        pairs = enumerate(zip(iterate.coefs_, iterate.intercepts_, strict=True))
        iterate = {
            f"layers.{i}.{kind}": value
            for i, (coef, bias) in pairs
            for kind, value in (("weight", np.transpose(coef)), ("bias", bias))
        }
    elif hasattr(iterate, "coef_"):
        iterate = {"coef": iterate.coef_, "intercept": getattr(iterate, "intercept_", 0.0)}
    if not isinstance(iterate, Mapping) or not iterate:
        raise ValueError(
            "Expected iterates that are modules, dicts of tensors, fitted scikit-learn models "
            f"with coef_ or coefs_, or files of state dicts, got {type(iterate).__name__}."
        )
    found = {}
    for name, value in iterate.items():
        tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.array(value))
        if tensor.is_floating_point():
            found[name] = tensor.clone()
    return found


def _check_descent(model: Any) -> None:
    solver = getattr(model, "solver", None)
    if not hasattr(model, "coefs_") or solver is None:
        return
    momentum = float(model.momentum) if solver == "sgd" else 0.0
    if solver != "sgd" or momentum:
        setting = f"momentum={momentum:g}" if momentum else f"solver={solver!r}"
        raise ValueError(
            "Expected iterates of gradient descent, whose displacement over the step size is "
            f"the gradient, got a {type(model).__name__} with {setting}; train it with "
            "solver='sgd' and momentum=0."
        )


def _check_own(before: Any, after: Any) -> None:
    if after is before and not isinstance(after, str | PathLike | Mapping):
        raise ValueError(
            f"Expected iterates that are objects of their own, got the same {type(after).__name__} "
            "twice, which holds its last weights; append copy.deepcopy(model) at every step."
        )


def _check_used_up(lr: Any, rates: Iterator[float]) -> None:
    if not isinstance(lr, Sequence | np.ndarray | Tensor) or np.ndim(lr) == 0:
        return
    if left := sum(1 for _ in rates):
        raise ValueError(
            f"Expected one lr for each step, got {left} more than the iterates have steps."
        )


def _rates(lr: Any) -> Iterator[float]:
    one = not isinstance(lr, Iterator) and np.ndim(lr) == 0
    for rate in repeat(float(lr)) if one else lr:
        if not 0 < rate < float("inf"):
            raise ValueError(
                f"Expected a positive learning rate, got {rate}; displacements are divided by it."
            )
        yield float(rate)


def _check_same(here: Params, there: Params) -> None:
    shapes = [{n: tuple(t.shape) for n, t in params.items()} for params in (here, there)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Expected iterates of one model, got tensors {shapes[0]} and then {shapes[1]}; "
            "start a new trajectory where the model changes."
        )


def _finite(params: Params) -> bool:
    return all(bool(tensor.sum().isfinite()) for tensor in params.values())


def _next(last: Mark, there: Params, rate: float, gradient: Any, n_steps: int) -> Mark:
    old = {name: wide(t) for name, t in last.weights.items()}
    new = {name: wide(t) for name, t in there.items()}
    applied = {n: last.applied[n] + (t - new[n]) / rate for n, t in old.items()}
    middle = old if n_steps == 1 else moved(old, minus(new, old), 0.5)
    consumed = last.consumed
    if gradient is not None:
        given = tensors(gradient)
        _check_same(old, given)
        consumed = moved(consumed, {n: wide(t) for n, t in given.items()}, n_steps)
    visited = moved(last.visited, middle, n_steps)
    return Mark(last.step + n_steps, last.epoch, there, applied, consumed, visited)


def _unmoved(here: Params, there: Params) -> frozenset[str]:
    """Tensors that stayed where they were while others moved: no step updated them."""
    same = frozenset(name for name, t in here.items() if torch.equal(t, there[name]))
    return same if len(same) < len(here) else frozenset()


def _rounding(weights: Params, rate: float) -> float:
    sizes = [float(wide(t).norm()) * torch.finfo(t.dtype).eps / 2 for t in weights.values()]
    return math.hypot(*sizes) / rate
