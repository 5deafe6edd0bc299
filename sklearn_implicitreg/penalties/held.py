"""Families whose terms are the same at several places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sklearn_implicitreg.penalties.base import Leaf, Penalty
from sklearn_implicitreg.problem import Params, Problem


class Held(Penalty):
    """Leaves with what they took from weights, such as knots, at any weights."""

    def __init__(self, held: Sequence[Leaf]):
        self.held = held

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """The same at any weights."""
        return list(self.held)


def shared(penalty: Penalty, problems: Sequence[Problem]) -> list[Penalty]:
    """The penalty at every problem, with what it takes from weights taken from all of them."""
    own = [penalty.leaves(problem.params, problem) for problem in problems]
    if len({len(leaves) for leaves in own}) > 1:
        return [penalty] * len(problems)
    found = []
    for leaves in zip(*own, strict=True):
        seen = {
            f"{i}.{name}": problem.params[name]
            for i, (problem, leaf) in enumerate(zip(problems, leaves, strict=True))
            for name in leaf.names
        }
        found.append([replace(leaf, penalty=leaf.penalty.placed(seen)) for leaf in leaves])
    return [Held(leaves) for leaves in zip(*found, strict=True)]
