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
    own = [leaves_at(penalty, problem) for problem in problems]
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


def check_parts(leaves: Sequence[Leaf]) -> None:
    """Raise ValueError for penalties that need more than parts of tensors."""
    for penalty in (leaf.penalty for leaf in leaves):
        placed = type(penalty).placed is not Penalty.placed
        if placed or not penalty.elementwise or not hasattr(penalty, "gradient"):
            raise _needs_whole(penalty)


def leaves_at(penalty: Penalty, problem: Problem) -> list[Leaf]:
    """Leaves of a penalty; ValueError for those that need more than parts of tensors in shards."""
    if not problem.in_shards:
        return penalty.leaves(problem.params, problem)
    try:
        leaves = penalty.leaves(problem.params, problem)
    except IndexError as error:  # of a tensor of which nothing is here
        raise _needs_whole(penalty) from error
    check_parts(leaves)
    return leaves


def _needs_whole(penalty: Penalty) -> ValueError:
    return ValueError(
        "Expected a penalty of the single weights (l1, l2, power, ...) for a model whose tensors "
        f"are sharded over ranks, got {penalty!r}, which needs whole tensors or rows; load the "
        "full state dict into a module of one process and fit that."
    )
