"""Penalties at several values of their unknown shape parameters, and their slopes in these."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty, same
from sklearn_implicitreg.penalties.frames import Frame
from sklearn_implicitreg.problem import Params, Problem, RowBatch

Weighted = tuple[tuple[Leaf, tuple[float, ...]], ...]  # leaves with a factor for each term


@dataclass(frozen=True)
class Shape:
    """A shape parameter that was found, with its interval where it has one."""

    name: str
    value: float
    columns: tuple[int, ...]  # of the terms that it is the shape of
    std_err: float = np.nan
    conf_int: tuple[float, float] = (np.nan, np.nan)
    notes: tuple[str, ...] = ()
    interval: bool = True  # whether it can have one

    def failing(self, why: str) -> Shape:
        """The same without an interval, and why."""
        note = f"{self.name} = {self.value:.4g} has no interval: {why}."
        return replace(self, notes=(*self.notes, note), interval=False)


def short_names(names: Collection[str]) -> list[str]:
    """Names of parameters without those of their penalties, where these differ without."""
    last = [name.rpartition("__")[2] for name in names]
    whole = [name.replace("penalty__", "") for name in names]
    return [own if last.count(own) == 1 else full for own, full in zip(last, whole, strict=True)]


class Variants(Penalty):
    """A penalty at several values of its shapes; terms that do not change come once."""

    def __init__(self, penalties: Sequence[Penalty]):
        self.penalties = penalties

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """Leaves of the first penalty, and those of each other one that differ from them."""
        first, *others = [own.leaves(params, problem) for own in self.penalties]
        found = list(first)
        for i, own in enumerate(others):
            pairs = zip(own, first, strict=True)
            changed = [leaf for leaf, base in pairs if not same(leaf.penalty, base.penalty)]
            found += [replace(leaf, scope=f"{leaf.scope}#{i}") for leaf in changed]
        return found


class ShapeSlope(Penalty):
    """Slope of ``sum_k coef_k R_k`` in a shape, from the leaves at a value ahead and one behind."""

    def __init__(self, term: str, leaves: Weighted):
        self.term = term
        self.weighted = leaves

    @property
    def on_rows(self) -> bool:
        """Whether the terms are means over rows."""
        return any([leaf.penalty.on_rows for leaf, _ in self.weighted])

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        """Whether all of them are."""
        return all([leaf.penalty.elementwise for leaf, _ in self.weighted])

    @property
    def gradient(self) -> Callable[[str, Tensor], dict[str, Tensor]] | None:
        """The slope of the closed forms, where all leaves have one."""
        known = [getattr(leaf.penalty, "gradient", None) for leaf, _ in self.weighted]
        return None if None in known else self._gradient

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """One leaf on all tensors that the terms see."""
        seen = {name for leaf, _ in self.weighted for name in leaf.names}
        return [Leaf(self, tuple(name for name in params if name in seen))]

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Difference of the terms."""
        if self.on_rows:
            return super().terms(params, problem)
        total: Any = 0.0
        for leaf, factors in self.weighted:
            values = leaf.penalty.terms({name: params[name] for name in leaf.names}, problem)
            entries = torch.cat([value.reshape(-1) for value in values.values()])
            total = total + entries @ entries.new_tensor(factors)
        return {self.term: total}

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """Difference of what each row adds."""
        total: Any = 0.0
        for leaf, factors in self.weighted:
            values = leaf.penalty.rows(batch.seeing(leaf.names)).values()
            total = total + sum(f * own for f, own in zip(factors, values, strict=True))
        return {self.term: total}

    def smooth(self, name: str, tensor: Tensor) -> Tensor | Frame:
        """Where all leaves are smooth; in the bases of those that have a frame."""
        mask = torch.ones_like(tensor, dtype=torch.bool)
        for leaf, _ in self.weighted:
            kinks: Any = getattr(leaf.penalty, "smooth", None)
            if kinks is not None and name in leaf.names:
                own: Tensor | Frame = kinks(name, tensor)
                if not isinstance(own, Tensor):
                    return own
                mask = mask & own
        return mask

    def _gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        total = torch.zeros_like(tensor)
        for leaf, factors in self.weighted:
            if name in leaf.names:
                own: Any = leaf.penalty
                values = own.gradient(name, tensor).values()
                for factor, value in zip(factors, values, strict=True):
                    total = total + factor * value
        return {self.term: total}
