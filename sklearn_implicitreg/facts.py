"""What a fit tells about its model beside the coefficients, in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sklearn_implicitreg.assembly import Equations, Inequalities
from sklearn_implicitreg.conventions import Convention
from sklearn_implicitreg.solve import Solution

__all__ = ["Facts", "in_model_units", "precomputed_facts"]

_CONDITION_NOTE = 30.0  # above it a statistician would ask which terms are told apart
_VIF_NOTE = 10.0  # the same, by the usual rule


@dataclass(frozen=True)
class Facts:
    """Header lines and notes of the summary, and what conversions need."""

    header: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    n_effective: float
    convention: Convention | None
    per_output: bool
    known: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        equations: Equations,
        solution: Solution,
        scale_invariant: tuple[str, ...],
        tested: Inequalities | None,
    ) -> Facts:
        """Facts of the equations at a trained model."""
        problem, gradient = equations.problem, equations.gradient
        header = (
            ("Model", problem.model_name),
            ("Loss", problem.loss_name),
            ("Rows", f"{gradient.n_rows} (weight {gradient.weight:g})"),
            ("|grad L|", f"{gradient.norm():.4g}"),
        )
        notes = [*problem.notes]
        if problem.left_out:
            notes.append(f"Parameters without equations: {', '.join(problem.left_out)}.")
        known = equations.columns.known_terms
        if known:
            notes.append(f"Known, and moved to the side of the loss: {', '.join(known)}.")
        notes += _inequality_notes(equations.n_dropped, tested)
        if scale_invariant:
            notes.append(
                "The loss does not see the scale of " + ", ".join(scale_invariant) + " (they "
                "feed a normalization): an endpoint shows no L2 there."
            )
        condition, vif = solution.condition_number, float(solution.vif.max())
        if np.isfinite(condition) and (condition > _CONDITION_NOTE or vif > _VIF_NOTE):
            notes.append(
                f"The columns are close to dependent (condition number {condition:.3g}, largest "
                f"VIF {vif:.3g}): single coefficients are uncertain; test them together "
                "(wald_test)."
            )
        n = problem.n_effective or gradient.weight
        split = problem.groups is not None
        return cls(header, tuple(notes), n, problem.convention, split, known)

    def in_convention(self, convention: Convention) -> Facts:
        """The same facts for a model that states penalties in another way."""
        return replace(self, convention=convention)


def _inequality_notes(dropped: int, tested: Inequalities | None) -> list[str]:
    if not dropped:
        return []
    start = f"{dropped} coordinates at a kink of the penalty or a bound give no equation"
    if tested is None:
        return [f"{start}; their inequalities were not tested."]
    if tested.n_violated:
        return [f"{start}; {tested.n_violated} of their inequalities do not hold."]
    return [f"{start}; all their inequalities hold."]


def precomputed_facts() -> Facts:
    """Facts of a regression that was given as arrays."""
    return Facts((("Model", "precomputed equations"),), (), 1.0, None, False)


def in_model_units(coef: Mapping[str, float], facts: Facts) -> dict[str, Any]:
    """Coefficients as the model's own parameters.

    Raises
    ------
    ValueError
        If the model has no parameter for a penalty or for a term.
    """
    if facts.convention is None:
        raise ValueError("The model has no parameter for a penalty; read coef_ instead.")
    groups: dict[str, dict[str, float]] = {}
    for name, value in coef.items():
        term, _, group = name.partition("[")
        groups.setdefault(group.removesuffix("]"), {})[term] = value
    stated = {g: facts.convention.parameters(c, facts.n_effective) for g, c in groups.items()}
    if list(stated) == [""]:
        return dict(stated[""])
    if facts.per_output:
        keys = next(iter(stated.values()))
        return {key: np.array([params[key] for params in stated.values()]) for key in keys}
    return {
        f"{key}[{group}]": value
        for group, params in stated.items()
        for key, value in params.items()
    }
