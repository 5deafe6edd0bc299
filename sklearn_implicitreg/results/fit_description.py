"""What a fit tells about its model beside the coefficients, in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sklearn_implicitreg.problem import LossGradient, Problem
from sklearn_implicitreg.problem.conventions import Convention
from sklearn_implicitreg.regression.equations import Equations, Inequalities
from sklearn_implicitreg.regression.solve import Solution
from sklearn_implicitreg.regression.stacks import StackedEquations

__all__ = ["Facts", "in_model_units", "precomputed_facts"]

_CONDITION_NOTE = 30.0  # above it a statistician would ask which terms are told apart
_ROUNDING = 1e-9  # of total weights
_VIF_NOTE = 10.0  # the same, by the usual rule


@dataclass(frozen=True)
class Facts:
    """Header lines and notes of the summary, and what conversions need."""

    header: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    n_effective: float | None  # None: endpoints of different numbers of rows
    convention: Convention | None
    per_output: bool
    known: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        equations: Equations | StackedEquations,
        solution: Solution,
        scale_invariant: tuple[str, ...],
        tested: Inequalities | None,
    ) -> Facts:
        """Facts of the equations at a trained model, or at several."""
        parts = equations.parts
        facts = cls.at([part.problem for part in parts], [part.gradient for part in parts])
        notes = [*facts.notes]
        known = parts[0].columns.known_terms
        if known:
            notes.append(f"Known, and moved to the side of the loss: {', '.join(known)}.")
        notes += _inequality_notes(sum(part.n_dropped for part in parts), tested)
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
        return replace(facts, notes=tuple(notes), known=known)

    @classmethod
    def at(
        cls,
        problems: Sequence[Problem],
        gradients: Sequence[LossGradient],
        place: str = "endpoint",
    ) -> Facts:
        """Facts of trained models, or of the windows of a path, whatever the family."""
        first = problems[0]
        models, losses = (
            _each([p.model_name for p in problems]),
            _each([p.loss_name for p in problems]),
        )
        rows = [g.n_rows for g in gradients]
        weights = [g.weight for g in gradients]
        header = [("Model", " or ".join(models)), ("Loss", " or ".join(losses))]
        size = np.sqrt(np.mean([g.norm() ** 2 for g in gradients]))
        if len(problems) == 1:
            header.append(("Rows", f"{rows[0]} (weight {weights[0]:g})"))
            header.append(("|grad L|", f"{size:.4g}"))
        else:
            header[0] = ("Model", f"{len(problems)} {place}s of {header[0][1]}")
            header.append(("Rows of each", f"{_range(rows)} (weight {_range(weights)})"))
            header.append(("|grad L|, r.m.s.", f"{size:.4g}"))
        notes = _each([note for problem in problems for note in problem.notes])
        if first.left_out:
            notes.append(f"Parameters without equations: {', '.join(first.left_out)}.")
        sizes = [p.n_effective or g.weight for p, g in zip(problems, gradients, strict=True)]
        same = all(p.convention == first.convention for p in problems)
        return cls(
            tuple(header),
            tuple(notes),
            sizes[0] if np.allclose(sizes, sizes[0], rtol=_ROUNDING, atol=0.0) else None,
            first.convention if same else None,
            first.groups is not None,
        )

    def in_convention(self, convention: Convention) -> Facts:
        """The same facts for a model that states penalties in another way."""
        return replace(self, convention=convention)


def _each(texts: Sequence[str]) -> list[str]:
    """Different ones, in their order."""
    return list(dict.fromkeys(texts))


def _range(numbers: Sequence[float]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


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
        If the model has no parameter for a penalty or for a term, or endpoints of different
        numbers of rows would need different ones.
    """
    if facts.convention is None:
        raise ValueError(
            "The model has no parameter for a penalty; read coef_ instead. Beside a loss that is "
            "summed over a batch, weight_decay is 2 * coef_ of l2 times the size of the batch."
        )
    if facts.convention.per_row and facts.n_effective is None:
        raise ValueError(
            "Expected endpoints of one number of rows, got several: the model's parameter for "
            "one coefficient depends on it; read coef_ instead."
        )
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
