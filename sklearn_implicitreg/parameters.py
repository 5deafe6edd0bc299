"""Parameters of the estimators: checked before a fit, and turned into a penalty."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sklearn_implicitreg.penalties import Fixed, Penalty, penalty_with_terms

__all__ = ["check_parameters", "check_precomputed", "check_structured", "penalty_of"]


def check_parameters(estimator: Any) -> None:
    """Refuse parameter values that no fit can use, all but the model and the family.

    Raises
    ------
    ValueError
        With what was expected and what came.
    """
    choices = {
        "mode": ("endpoint", "trajectory"),
        "module_mode": ("auto", "eval", "train"),
        "covariance": ("auto", "ols", "nonrobust", "hc3", "cluster"),
        "positive": (True, False),
    }
    for name, allowed in choices.items():
        value = getattr(estimator, name)
        if not isinstance(value, str | bool | np.bool_) or value not in allowed:
            raise ValueError(f"Expected {name} to be one of {allowed}, got {value!r}.")
    level = estimator.confidence_level
    if not isinstance(level, numbers.Real) or not 0 < float(level) < 1:
        raise ValueError(f"Expected 0 < confidence_level < 1, got {level!r}.")
    size = estimator.batch_size
    is_count = isinstance(size, numbers.Integral) and not isinstance(size, bool)
    if not (is_count and size >= 1) and not (isinstance(size, str) and size == "auto"):
        raise ValueError(f"Expected batch_size 'auto' or an integer >= 1, got {size!r}.")
    verbose = estimator.verbose
    if not isinstance(verbose, numbers.Integral | np.bool_) or verbose < 0:
        raise ValueError(f"Expected verbose to be an integer >= 0, got {verbose!r}.")
    if not callable(estimator.params) and not _is_pattern(estimator.params):
        raise ValueError(
            "Expected params 'auto', 'all', 'weights', a regular expression or a "
            f"callable(name, tensor) -> bool, got {estimator.params!r}."
        )
    if estimator.known is not None and not _finite_numbers(estimator.known):
        raise ValueError(
            "Expected known to be a dict of family name to finite coefficient, such as "
            f"{{'weight_decay': 1e-4}}, got {estimator.known!r}."
        )


def check_structured(estimator: Any, family: Any) -> None:
    """Refuse parameters that speak of terms, beside a family without any."""
    defaults = {"group_by": None, "known": None, "positive": False, "covariance": "auto"}
    given = _not_default(estimator, defaults)
    if given:
        raise ValueError(
            f"Expected {given} left at the default with {family!r}, which has no terms; "
            "a structured family has parameters of its own."
        )


def check_precomputed(estimator: Any) -> None:
    """Refuse parameters that speak of a model, beside equations that were given as arrays."""
    defaults = {"family": "l2", "mode": "endpoint"}
    none = dict.fromkeys(("trajectory", "group_by", "known"))
    given = _not_default(estimator, defaults | none)
    if given:
        raise ValueError(
            f"Expected {given} left at the default with model='precomputed': the columns of X are "
            "the family, and what is known belongs into y."
        )


def _not_default(estimator: Any, defaults: Mapping[str, Any]) -> str:
    """Names of the parameters that are not at these defaults."""
    return ", ".join(n for n, default in defaults.items() if getattr(estimator, n) != default)


def penalty_of(
    penalty: Penalty,
    own_groups: Mapping[str, str] | None,
    group_by: str | Mapping[str, str] | Callable[[str, Any], str] | None,
    known: Mapping[str, float] | None,
) -> Penalty:
    """The family, grouped as asked for (or as the model's own penalty is), with the known part."""
    if group_by is not None:
        penalty = penalty.per(group_by)
    elif own_groups is not None:
        penalty = penalty.per(own_groups)
    for family, coef in (known or {}).items():
        penalty = penalty + Fixed(penalty_with_terms(family), float(coef))
    return penalty


def _finite_numbers(known: Any) -> bool:
    return isinstance(known, Mapping) and all(
        isinstance(family, str) and isinstance(coef, numbers.Real) and math.isfinite(coef)
        for family, coef in known.items()
    )


def _is_pattern(params: Any) -> bool:
    try:
        return isinstance(params, str) and re.compile(params) is not None
    except re.error:
        return False
