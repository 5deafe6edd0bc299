"""Loss and estimated penalty as one function of all trained weights, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.penalties import FittedPenalty
from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.problem import Params, Problem, flat, shaped
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.quadratic_form import PenaltyValue

_HELD = 16  # batches whose graphs are kept for products with the Hessian,
_HELD_ROWS = 20_000  # or rows, as of many masks
_STEP = 1e-6  # of a difference of gradients, relative to the weights
Given = tuple[Leaf, tuple[float, ...]]


class Objective:
    """``L + R`` of a problem; without a penalty L alone."""

    # A penalty of random masks is a difference of losses: on the masks of its own draws, which are
    # the same at all weights, and without them.

    def __init__(self, problem: Problem, penalty: PenaltyValue | None):
        self.problem = problem.whole()
        self.params = {name: t.detach().double() for name, t in self.problem.params.items()}
        self.theta = flat(self.params)
        self.scope, self.penalty = problem, penalty
        self._on_params: list[Given] = []
        self._on_rows: list[Given] = []
        self._of_gradient: list[Given] = []  # whose own gradient is all that is known
        masked = self._sorted(penalty) if isinstance(penalty, FittedPenalty) else []
        losses = [(1.0 - sum(coef for coef, _ in masked), self.problem)]
        for coef, problems in masked:
            losses += [(coef / len(problems), drawn) for drawn in problems]
        self._losses = [(share, *self._weighed(own), own) for share, own in losses]
        n_batches = sum(n for _, _, n, _ in self._losses)
        n_rows = (self.problem.n_rows or _HELD_ROWS) * len(self._losses)
        self._held = n_batches <= _HELD or n_rows <= _HELD_ROWS
        self._at: tuple[bytes, list[Tensor], list[Tensor]] | None = None
        self.by_differences = bool(self._of_gradient)

    def _sorted(self, penalty: FittedPenalty) -> list[tuple[float, list[Problem]]]:
        """Sort the leaves by what they are functions of; those of random masks are returned."""
        masked = []
        for leaf, coefs in penalty.leaves:
            if hasattr(leaf.penalty, "masked"):
                masked.append((coefs[0], leaf.penalty.masked(self.problem)))
            elif hasattr(leaf.penalty, "full_gradient"):
                self._of_gradient.append((leaf, coefs))
            else:
                (self._on_rows if leaf.penalty.on_rows else self._on_params).append((leaf, coefs))
        return masked

    def _weighed(self, problem: Problem) -> tuple[float, int]:
        """Total weight of the rows, and number of batches."""
        with torch.no_grad():
            weights = [loss(self.params)[1] for loss in problem.losses()]
        return sum(weights), len(weights)

    def loss(self, theta: Array) -> float:
        """Mean loss L alone."""
        params, (_, weight, _, problem) = shaped(self.params, theta), self._losses[0]
        with torch.no_grad():
            return sum(float(loss(params)[0]) for loss in problem.losses()) / weight

    def value(self, theta: Array) -> float:
        """``L + R``."""
        leaves = shaped(self.params, theta)
        with torch.no_grad():
            total = sum(float(part) for part in self._parts(leaves))
        return total + self._beside(leaves)[0]

    def gradient(self, theta: Array) -> tuple[float, Array]:
        """``L + R`` and its gradient."""
        leaves = {n: t.requires_grad_() for n, t in shaped(self.params, theta).items()}
        total, slope = self._beside(leaves)
        with torch.enable_grad():
            for part in self._summands(leaves):
                total += float(part.detach())
                if part.requires_grad:
                    found = torch.autograd.grad(
                        part, list(leaves.values()), materialize_grads=True, allow_unused=True
                    )
                    slope += flat(dict(zip(leaves, found, strict=True)))
        return total, slope

    def product(self, theta: Array, vector: Array) -> Array:
        """Hessian of ``L + R`` times a vector."""
        if not self.by_differences:
            try:
                return self._exact(theta, vector)
            except (RuntimeError, NotImplementedError):  # no second derivative, as in checkpoints
                self.by_differences = True
        size = float(np.linalg.norm(vector))
        if not size:
            return np.zeros_like(vector)
        step = _STEP * max(1.0, float(np.linalg.norm(theta))) / size
        ahead, behind = (self.gradient(theta + s * vector)[1] for s in (step, -step))
        return (ahead - behind) / (2 * step)

    def _exact(self, theta: Array, vector: Array) -> Array:
        along = torch.from_numpy(np.array(vector, dtype=np.float64))
        total = np.zeros_like(self.theta)
        for leaves, slope in self._slopes(theta):
            found = torch.autograd.grad(
                slope, leaves, along, retain_graph=True, materialize_grads=True, allow_unused=True
            )
            total += np.concatenate([t.detach().cpu().double().reshape(-1) for t in found])
        return total

    def _slopes(self, theta: Array) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Gradients of the parts with their graphs, which are kept where there are few."""
        key = theta.tobytes()
        if self._at is not None and self._at[0] == key:
            yield from ((self._at[1], slope) for slope in self._at[2])
            return
        leaves = {n: t.requires_grad_() for n, t in shaped(self.params, theta).items()}
        tensors, kept = list(leaves.values()), []
        self._at = None
        with torch.enable_grad():
            for part in self._summands(leaves):
                if not part.requires_grad:
                    continue
                found = torch.autograd.grad(
                    part, tensors, create_graph=True, materialize_grads=True, allow_unused=True
                )
                slope = torch.cat([g.cpu().double().reshape(-1) for g in found])
                if not slope.requires_grad:
                    continue  # a linear part
                kept += [slope] if self._held else []
                yield tensors, slope
        if self._held:
            self._at = key, tensors, kept

    def _summands(self, leaves: Params) -> Iterable[Tensor]:
        """Numbers that add up to ``L + R``; of many masks one, whose pass backward is for all."""
        parts = self._parts(leaves)
        if self._held and len(self._losses) > 1:
            return [torch.stack(list(parts)).sum()]
        return parts

    def _parts(self, leaves: Params) -> Iterator[Tensor]:
        """Numbers that add up to ``L + R``, without what has no graph."""
        for share, weight, _, problem in self._losses:
            if share:
                for loss in problem.losses():
                    yield loss(leaves)[0].double().cpu() * (share / weight)
        if self.penalty is None:
            return
        seen = {name: leaves[name] for name in self.scope.params}
        if not isinstance(self.penalty, FittedPenalty):
            yield self.penalty(seen)
            return
        for leaf, coefs in self._on_params:
            yield _weighted(leaf.penalty.terms({n: seen[n] for n in leaf.names}, None), coefs)
        if self._on_rows:
            # The rows at all these weights, also at those that the penalty does not see.
            live = SimpleNamespace(
                row_batches=lambda own: (b.seeing(own) for b in self.problem.row_batches(leaves))
            )
            for leaf, coefs in self._on_rows:
                own = {n: seen[n] for n in leaf.names}
                yield _weighted(leaf.penalty.terms(own, cast(Problem, live)), coefs)

    def _beside(self, leaves: Params) -> tuple[float, Array]:
        """Value and gradient of penalties on the gradient of the loss."""
        total, slope = 0.0, np.zeros_like(self.theta)
        if not self._of_gradient:
            return total, slope
        there = self.scope.at({name: t.detach() for name, t in leaves.items()})
        for leaf, coefs in self._of_gradient:
            own, penalty = {n: there.params[n] for n in leaf.names}, cast(Any, leaf.penalty)
            values, slopes = penalty.terms(own, there), penalty.full_gradient(own, there)
            for coef, term in zip(coefs, values, strict=True):
                total += coef * float(values[term])
                found = {n: slopes[term].get(n, torch.zeros_like(t)) for n, t in leaves.items()}
                slope += coef * flat(found)
        return total, slope

    def penalty_gradient(self, theta: Array) -> Array:
        """Gradient of R alone."""
        if self.penalty is None:
            return np.zeros_like(theta)
        return self.gradient(theta)[1] - self.ablated().gradient(theta)[1]

    def scale(self) -> float:
        """Size of the summands of the gradient at the model, which cancel at a minimum."""
        penalty = self.penalty_gradient(self.theta)
        loss = self.gradient(self.theta)[1] - penalty
        summands = max(float(np.linalg.norm(loss)), float(np.linalg.norm(penalty)))
        return summands or self.problem.gradient().scale

    def ablated(self) -> Objective:
        """L alone."""
        return Objective(self.scope, None)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_at": None}


def _weighted(terms: Params, coefs: tuple[float, ...]) -> Tensor:
    values = torch.cat([value.reshape(-1) for value in terms.values()]).cpu().double()
    return values @ torch.tensor(coefs, dtype=torch.float64)
