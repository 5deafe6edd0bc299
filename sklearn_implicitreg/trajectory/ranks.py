"""A trajectory that several ranks recorded: each step on the batches of all of them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sklearn_implicitreg.problem import Problem, Ranks
from sklearn_implicitreg.trajectory.marks import Mark
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.window import Step

_ELSEWHERE = Mark(0, 0, {}, {}, {}, {})  # a batch whose tensors another rank has

# Of a step on one rank: size and factor of each batch, and whether their tensors are kept.
_Known = tuple[list[tuple[int | None, float]], bool]


def over_ranks(trajectory: Trajectory, problem: Problem) -> Trajectory:
    """The trajectory with the batches of all ranks in its steps, if the model is on several."""
    if problem.ranks is None:
        return trajectory
    problem.ranks.agree(_facts(trajectory, problem.ranks))
    return replace(trajectory, steps=steps_over_ranks(trajectory.steps, problem))


def steps_over_ranks(steps: Sequence[Step], problem: Problem) -> tuple[Step, ...]:
    """Steps whose gradients were the mean over the ranks of those of their own batches."""
    ranks: Any = problem.ranks
    known = ranks.gathered([_known(step, problem) for step in steps])
    rounding = [step.rounding for step in steps]
    if ranks.sharded:
        rounding = np.hypot.reduce(ranks.gathered(rounding)).tolist()
    rows = _rows_over(ranks, steps, problem)
    found = []
    for t, step in enumerate(steps):
        parts = [pair for own in known for pair in own[t][0]]
        sizes = [size for size, _ in parts if size is not None]
        seen: list[Mark] = []
        for rank, own in enumerate(known):
            mine = rank == ranks.place and own[t][1]
            seen += step.seen if mine else [_ELSEWHERE] * len(own[t][0])
        joined = replace(
            step,
            rows=rows[t],
            batch_size=sum(sizes) if len(sizes) == len(parts) else None,
            parts=tuple((size, factor / ranks.n) for size, factor in parts),
            rounding=rounding[t],
            seen=tuple(seen) if all(own[t][1] for own in known) else (),
        )
        found.append(_as_one(joined, problem))
    return tuple(found)


def _known(step: Step, problem: Problem) -> _Known:
    sizes = [size for size, _ in step.parts] or [step.batch_size]
    factors = step.factors(problem).tolist()
    return list(zip(sizes, factors, strict=True)), bool(step.seen)


def _as_one(step: Step, problem: Problem) -> Step:
    # A step on the mean over all its rows is one on a single batch.
    if problem.trained_sum or step.seen or problem.batch_normalized:
        return step
    if step.rows is not None:
        one = step.merged(problem)
    else:  # of a mean over equal numbers of rows
        one = len(set(step.parts)) == 1 and step.batch_size is not None and problem.masses is None
    return replace(step, parts=()) if one and step.loss_factor(problem) == 1 else step


def _rows_over(ranks: Ranks, steps: Sequence[Step], problem: Any) -> list[Any]:
    """Rows of every step in the numbers that all have together; None where some are not known."""
    n, none = problem.counts[ranks.place], np.empty(0, dtype=np.int64)
    inside = [None if s.rows is None or s.rows.max() >= (n or 0) else s.rows for s in steps]
    flat = ranks.arrays(lambda: np.concatenate([none, *[r for r in inside if r is not None]]) * 1.0)
    sizes = ranks.gathered([-1 if r is None else len(r) for r in inside])
    first, every = 0, []
    for rank, (rows, lengths) in enumerate(zip(flat, sizes, strict=True)):
        ends = np.cumsum(np.maximum(lengths, 0))[:-1]
        every.append(np.split(rows.astype(np.int64) + first, ends))
        first += problem.counts[rank] or 0
    known = [min(lengths) >= 0 for lengths in zip(*sizes, strict=True)]
    joined = zip(*every, strict=True)
    return [np.concatenate(p) if named else None for p, named in zip(joined, known, strict=True)]


def _facts(trajectory: Trajectory, ranks: Ranks) -> dict[str, Any]:
    steps = [(step.lr, sorted(step.skipped)) for step in trajectory.steps]
    moved = [name for name, began in trajectory.others.items() if began is not None]
    facts: dict[str, Any] = {
        "numbers of recorded steps": trajectory.n_steps,
        "marks": [(mark.step, mark.epoch) for mark in trajectory.marks],
        "recorded tensors": list(trajectory.names),
        "gradients recorded": trajectory.has_gradients,
        "optimizers": (trajectory.optimizer, trajectory.settings),
        "steps that were left out": trajectory.n_dropped,
        "R factors": str(trajectory.r_factors),
        "tensors that moved besides": sorted(moved),
        "step sizes and updates": f"checksum {zlib.crc32(repr(steps).encode()):08x}",
    }
    if not ranks.sharded:
        last = trajectory.marks[-1].weights.values()
        sums = [float(tensor.double().sum()) for tensor in last]
        facts["recorded weights"] = f"checksum {zlib.crc32(repr(sums).encode()):08x}"
    return facts
