"""Families of penalties: named, user-written, combined."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from sklearn_implicitreg.penalties.base import (
    Callables,
    Fixed,
    Grouped,
    Penalty,
    Scoped,
    Sum,
)
from sklearn_implicitreg.penalties.checks import check_penalty
from sklearn_implicitreg.penalties.dropout import Dropout
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

__all__ = [
    "FAMILIES",
    "L1",
    "L2",
    "L21",
    "BatchGradientNorm",
    "Callables",
    "Dropout",
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
