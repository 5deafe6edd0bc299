"""Families of penalties: named, user-written, combined."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor

from sklearn_implicitreg.penalties.base import (
    Callables,
    Fixed,
    Grouped,
    Penalty,
    Scoped,
    Sum,
)
from sklearn_implicitreg.penalties.columns import check_terms
from sklearn_implicitreg.penalties.fitted import FittedPenalty
from sklearn_implicitreg.penalties.gradients import BatchGradientNorm, GradientNorm
from sklearn_implicitreg.penalties.weights import (
    L1,
    L2,
    L21,
    ElasticNet,
    Power,
    SmoothL1,
    WeightDecay,
)
from sklearn_implicitreg.problem import Params

__all__ = [
    "FAMILIES",
    "L1",
    "L2",
    "L21",
    "BatchGradientNorm",
    "Callables",
    "ElasticNet",
    "FittedPenalty",
    "Fixed",
    "GradientNorm",
    "Grouped",
    "Penalty",
    "Power",
    "Scoped",
    "SmoothL1",
    "Sum",
    "WeightDecay",
    "as_penalty",
    "check_penalty",
]

FAMILIES: dict[str, type[Penalty]] = {
    "l2": L2,
    "l1": L1,
    "smooth_l1": SmoothL1,
    "elastic_net": ElasticNet,
    "weight_decay": WeightDecay,
    "power": Power,
    "l21": L21,
    "gradient_norm": GradientNorm,
}


def as_penalty(family: Any) -> Penalty:
    """Penalty that a ``family=`` argument stands for.

    Parameters
    ----------
    family : str, Penalty, list of these, or dict of str to callable(params) -> scalar
        A name of :data:`FAMILIES`, several joined by ``+``, or a list that is joined.

    Returns
    -------
    penalty : Penalty

    Raises
    ------
    ValueError
        If a name is not known; the message lists the names and suggests the nearest.
    TypeError
        If it is none of the above.

    Examples
    --------
    >>> as_penalty("l2+l1")
    Sum(parts=[L2(), L1()])
    """
    if isinstance(family, Penalty):
        return family
    if isinstance(family, str):
        names = [name.strip() for name in family.split("+")]
        parts: list[Penalty] = [_named(name) for name in names]
    elif isinstance(family, Mapping):
        if not family or not all(callable(f) for f in family.values()):
            raise TypeError(
                f"Expected a non-empty dict of name to callable(params), got {family!r}."
            )
        return Callables(family)
    elif isinstance(family, list | tuple) and family:
        parts = [as_penalty(part) for part in family]
    else:
        raise TypeError(
            f"Expected family to be one of {list(FAMILIES)}, a Penalty, a list of these, or a "
            f"dict of name to callable(params) -> scalar, got {family!r}."
        )
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _named(name: str) -> Penalty:
    if name in FAMILIES:
        return FAMILIES[name]()
    near = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.0)
    raise ValueError(
        f"Unknown family {name!r}; expected one of {list(FAMILIES)}, joined by '+'. "
        f"Did you mean {near[0]!r}?"
    )


def check_penalty(penalty: Penalty, params: Params | None = None) -> None:
    """Check that a penalty keeps the contract of :class:`Penalty`.

    Terms are named finite scalars or vectors; the penalty can be cloned; a closed-form
    ``gradient`` equals automatic differentiation to 1e-10; autograd equals central differences
    to 1e-6 where the penalty says that it is smooth.

    Parameters
    ----------
    penalty : Penalty
        What is checked.
    params : dict of str to Tensor, default=None
        Where it is checked; by default at two random tensors, of shapes (3, 4) and (3,).

    Raises
    ------
    TypeError, ValueError
        If terms are of the wrong kind.
    AssertionError
        If a gradient is wrong or cloning changes the terms.

    Examples
    --------
    >>> from sklearn_implicitreg.penalties import SmoothL1, check_penalty
    >>> check_penalty(SmoothL1(delta=0.1))
    """
    if not isinstance(penalty, Penalty):
        raise TypeError(f"Expected a Penalty, got {type(penalty).__name__}; subclass Penalty.")
    if params is None:
        generator = torch.Generator().manual_seed(0)
        params = {
            "layer.weight": torch.randn(3, 4, generator=generator, dtype=torch.float64),
            "layer.bias": torch.randn(3, generator=generator, dtype=torch.float64),
        }
    values = penalty.terms(params, None)
    check_terms(penalty, values)
    again = clone(penalty).terms(params, None)
    if list(again) != list(values):
        raise AssertionError(f"A clone has terms {list(again)} instead of {list(values)}.")
    for name, tensor in params.items():
        _check_tensor(penalty, params, name, tensor, values)


def _check_tensor(
    penalty: Penalty, params: Params, name: str, tensor: Tensor, values: dict[str, Tensor]
) -> None:
    """Closed form against autograd against differences, for one tensor."""
    smooth = getattr(penalty, "smooth", lambda _, t: torch.ones_like(t, dtype=torch.bool))
    mask = smooth(name, tensor)
    gradient = getattr(penalty, "gradient", None)
    closed = None if gradient is None else gradient(name, tensor)
    if closed is not None and list(closed) != list(values):
        raise AssertionError(f"gradient has terms {list(closed)}, terms has {list(values)}.")
    direction = torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)
    direction = direction * mask
    step = 1e-6
    for term in values:

        def total(t: Tensor, term: str = term) -> Tensor:
            return penalty.terms(params | {name: t}, None)[term].sum()

        leaf = tensor.detach().clone().requires_grad_()
        value = total(leaf)
        auto = torch.zeros_like(tensor)
        if value.requires_grad:
            auto = torch.autograd.grad(value, leaf, allow_unused=True)[0]
            auto = torch.zeros_like(tensor) if auto is None else auto
        if closed is not None and not torch.allclose(closed[term] * mask, auto * mask, 1e-10):
            raise AssertionError(f"gradient of {term!r} at {name!r} is not that of terms.")
        ahead, behind = total(tensor + step * direction), total(tensor - step * direction)
        slope = float((ahead - behind) / (2 * step))
        exact = float((auto * direction).sum())
        if abs(slope - exact) > 1e-6 * max(1.0, abs(exact)):
            raise AssertionError(
                f"{term!r} at {name!r}: slope {exact} by autograd, {slope} by differences."
            )
