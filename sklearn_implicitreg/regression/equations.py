"""The bridge between torch and the regression: rows ``target ~ design @ coef``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.regression import system as regression
from sklearn_implicitreg.regression.design import Columns
from sklearn_implicitreg.regression.solve import Solution, solve
from sklearn_implicitreg.regression.system import Array, GradientSystem

__all__ = ["DesignColumns", "Equations", "Inequalities", "RowBlock", "device_r_factor"]

_HIDDEN_SHARE = 0.01  # the completed score acts as if one row in a hundred had been left out
_COSINE_OF_INVARIANCE = 1e-3  # BatchNorm's own eps leaves 5e-6, in layers of small weights 2e-4
_SLACK = 3.0  # root mean square residuals of the equations that an inequality may miss by
_NUDGE = 1e-100  # towards which side of a kink: no float64 column changes by it elsewhere


class DesignColumns(Protocol):
    """Gradients of the penalty terms, by tensor; :class:`Columns` at one point."""

    params: Params

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the columns."""
        ...

    @property
    def leaves(self) -> list[tuple[Leaf, int]]:
        """The penalties, each with its number of coefficients."""
        ...

    @property
    def closed_form(self) -> bool:
        """Whether all gradients can be evaluated at other values of one tensor."""
        ...

    @property
    def known_terms(self) -> tuple[str, ...]:
        """Names of the terms with known coefficients."""
        ...

    def design(self, name: str, tensor: Tensor | None = None) -> Tensor:
        """Columns for one tensor, of shape (numel, k)."""
        ...

    def known(self, name: str, tensor: Tensor | None = None) -> Tensor | None:
        """Gradient of the penalties with known coefficients."""
        ...

    def smooth(self, name: str) -> Tensor:
        """Where all terms are differentiable."""
        ...


@dataclass(frozen=True)
class RowBlock:
    """Equations of one parameter tensor, in float64, and where they are in it."""

    name: str
    target: Tensor  # (m,)
    design: Tensor  # (m, k)
    index: Tensor | None  # (m,), positions in the flattened tensor; None: all of it


@dataclass(frozen=True)
class Inequalities:
    """Coordinates at a kink or a bound, which give inequalities in the place of equations."""

    n: int
    n_violated: int


@dataclass(frozen=True)
class Equations:
    """Equations of a family at a problem's parameters, for one gradient of the loss.

    The rows are made anew, tensor by tensor, each time they are asked for; only R factors of
    (k + 1)^2 numbers are kept.
    """

    _per_term: ClassVar[int] = 1  # regressors of each term

    problem: Problem
    columns: DesignColumns
    gradient: LossGradient

    @classmethod
    def of(cls, problem: Problem, penalty: Penalty, gradient: LossGradient) -> Equations:
        """Equations of a penalty, whose columns are evaluated here."""
        return cls(problem, Columns(penalty, problem), gradient)

    def rows(self) -> Iterator[RowBlock]:
        """Blocks of equations, one for each tensor that gives any."""
        for name in self.problem.params:
            dropped = self._dropped.get(name)
            if dropped is None:
                yield RowBlock(name, self._target(name), self.columns.design(name), None)
            elif not bool(dropped.all()):
                index = torch.nonzero(~dropped).reshape(-1)
                design, target = self.columns.design(name), self._target(name)
                yield RowBlock(name, target[index], design[index], index)

    @property
    def parts(self) -> tuple[Equations, ...]:
        """These equations, as the only ones of a stack."""
        return (self,)

    @cached_property
    def system(self) -> GradientSystem:
        """R factors of the equations, one per tensor.

        Raises
        ------
        ValueError
            If there are fewer equations than coefficients.
        """
        check_count(self.reduced, self.parts)
        return self.reduced

    @cached_property
    def reduced(self) -> GradientSystem:
        """R factors of the equations, one per tensor, however few they are."""
        labels, r_factors, counts = [], [], []
        for block in self.rows():
            labels.append(block.name)
            r_factors.append(device_r_factor(self._regressors(block), block.target))
            counts.append(len(block.target))
        if not labels:
            width = self._per_term * len(self.columns.term_names) + 1
            labels, r_factors, counts = ["none"], [np.zeros((width, width))], [0]
        return self._system(tuple(labels), tuple(r_factors), tuple(counts))

    @property
    def n_dropped(self) -> int:
        """Coordinates in scope that give no equation."""
        return sum(int(mask.sum()) for mask in self._dropped.values())

    def inequalities(self, coef: Array, slack: float = 0.0) -> Inequalities | None:
        """Test the coordinates that give no equation: no descent of ``L + sum coef R`` there.

        At a kink the slope against the gradient of the rest must not be negative, at a bound
        the slope away from it. None where a penalty has no closed form to test with. What
        misses by less than ``slack`` counts as held: training had its own tolerance.
        """
        if not self.n_dropped:
            return Inequalities(0, 0)
        if not self.columns.closed_form:
            return None
        violated = 0
        scale = max(float(g.abs().max()) for g in self.gradient.value.values() if g.numel())
        for name, dropped in self._dropped.items():
            side, beside, slope = self._beside(name, dropped)
            bound = slope @ torch.as_tensor(coef, dtype=slope.dtype, device=slope.device)
            descent = (self._target(name, beside) - bound) * side.sign()
            violated += int((dropped & (descent > slack + 1e-6 * scale)).sum())
        return Inequalities(self.n_dropped, violated)

    def kink_bounds(self) -> dict[str, float]:
        """What the coordinates at a kink say by themselves: a term's coefficient is at least this.

        Of terms that alone have a slope there, and nothing where a coordinate is at a bound.
        """
        bounds: dict[str, float] = {}
        if not self.columns.closed_form or not all(map(self._is_free, self._dropped)):
            return bounds
        for name, dropped in self._dropped.items():
            _, beside, slope = self._beside(name, dropped)
            steep = torch.nonzero((slope[dropped].abs() > _NUDGE**0.5).any(0)).reshape(-1)
            if len(steep) == 1:
                term = self.columns.term_names[int(steep)]
                target, own = self._target(name, beside)[dropped], slope[dropped, int(steep)]
                ratio = torch.where(target == 0, 0.0, target / own).max()
                bounds[term] = max(bounds.get(term, 0.0), float(ratio))
        return bounds

    def tested(self, solution: Solution) -> Inequalities | None:
        """The inequalities at a solution, to within its residuals."""
        slack = _SLACK * (solution.rss / solution.n_equations) ** 0.5
        return self.inequalities(solution.coef, slack)

    def scale_invariant(self) -> tuple[tuple[str, ...], bool]:
        """Tensors whose units the loss does not see the scale of, and whether they dominate."""
        if not self.problem.batch_normalized:
            return (), False
        found, inside, total = [], 0.0, 0.0
        for name, tensor in self.problem.params.items():
            size = float(self.columns.design(name).square().sum())
            total += size
            if tensor.ndim < 2:
                continue
            weight = tensor.double().flatten(1)
            slope = self.gradient.value[name].flatten(1)
            radial = (weight * slope).sum(1).abs()
            if bool(
                (radial <= _COSINE_OF_INVARIANCE * weight.norm(dim=1) * slope.norm(dim=1)).all()
            ):
                found.append(name)
                inside += size
        return tuple(found), inside > 0.5 * total

    def completing(self, other: Problem) -> LossGradient:
        """Gradient over further rows, whose labels are numbered as in the rows of this one."""
        return other.numbered_like(self.problem).gradient()

    def completed_r2(
        self, other: LossGradient, coef: Array, *, positive: bool, eps: float
    ) -> float:
        """R2 of coefficients against the gradient over these rows and others together.

        The noise of leaving the other rows out is scaled to that of one row in a hundred, so
        that scores of different numbers of folds compare.
        """
        completed = Equations(self.problem, self.columns, self.gradient.completed(other))
        system = completed.system
        best = solve(system.r_factor, system.n_equations, positive=positive, eps=eps)
        ratio = self.gradient.weight / other.weight
        shrink = (_HIDDEN_SHARE / (1 - _HIDDEN_SHARE) * ratio) ** 0.5
        if best.tss**0.5 <= completed.rounding:
            return 0.0
        return explained(system.r_factor, best.coef + shrink * (coef - best.coef))

    @property
    def rounding(self) -> float:
        """Norm below which the target is zero to rounding."""
        return self.gradient.rounding(self.problem.eps)

    def frame(self) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
        """Design, target and tensor of every equation, as one table of rows."""
        blocks = list(self.rows())
        names = np.concatenate([[b.name] * len(b.target) for b in blocks])
        places = np.concatenate(
            [np.arange(len(b.target)) if b.index is None else b.index.cpu().numpy() for b in blocks]
        )
        index = pd.MultiIndex.from_arrays([names, places], names=["tensor", "coordinate"])
        design = np.concatenate([b.design.cpu().numpy() for b in blocks])
        target = np.concatenate([b.target.cpu().numpy() for b in blocks])
        return (
            pd.DataFrame(design, index=index, columns=list(self.columns.term_names)),
            pd.Series(target, index=index, name="target"),
            pd.Series(names, index=index, name="tensor"),
        )

    def _regressors(self, block: RowBlock) -> Tensor:
        """What stands before the target in the R factor of a block."""
        return block.design

    def _system(
        self, labels: tuple[str, ...], r_factors: tuple[Array, ...], counts: tuple[int, ...]
    ) -> GradientSystem:
        """The R factors of all blocks together."""
        return GradientSystem(self.columns.term_names, labels, r_factors, counts, self._meat)

    def _target(self, name: str, tensor: Tensor | None = None) -> Tensor:
        """Minus the gradient of the loss and of the penalties with known coefficients."""
        slope = self.gradient.value[name].reshape(-1)
        known = self.columns.known(name, tensor)
        return -slope if known is None else -(slope + known)

    def _beside(self, name: str, dropped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Direction of descent, the tensor a touch along it from its kinks, its columns."""
        tensor, target = self.columns.params[name], self._target(name)
        side = torch.where(self._free(name), target, torch.ones_like(target))
        size = side.abs().max()
        nudge = torch.where(dropped, side / torch.where(size == 0, 1.0, size), 0.0) * _NUDGE
        beside = tensor + nudge.reshape(tensor.shape)
        return side, beside, self.columns.design(name, beside)

    def _is_free(self, name: str) -> bool:
        return bool(self._free(name).all())

    def _free(self, name: str) -> Tensor:
        free = self.problem.free.get(name)
        if free is None:
            tensor = self.columns.params[name]
            return torch.ones(tensor.numel(), dtype=torch.bool, device=tensor.device)
        return free.reshape(-1)

    @cached_property
    def _dropped(self) -> Params:
        """Masks of the coordinates at a kink or a bound, for the tensors that have any."""
        masks = {n: ~(self.columns.smooth(n) & self._free(n)) for n in self.problem.params}
        return {name: mask for name, mask in masks.items() if bool(mask.any())}

    def _meat(self, whitener: Array, coef: Array) -> Array:
        """Second pass over the rows: the middle factor of the HC3 covariance."""
        total = np.zeros((whitener.shape[1], whitener.shape[1]))
        for block in self.rows():
            design, target = block.design.cpu().numpy(), block.target.cpu().numpy()
            total += regression.hc3_meat(design, target, whitener, coef)
        return total


def check_count(system: GradientSystem, parts: Sequence[Equations]) -> None:
    """Refuse fewer equations than coefficients."""
    m, k = system.n_equations, system.n_terms
    n_dropped = 0 if m else sum(part.n_dropped for part in parts)
    if n_dropped:
        bounds: dict[str, float] = {}
        for part in parts:
            for term, bound in part.kink_bounds().items():
                bounds[term] = max(bounds.get(term, 0.0), bound)
        told = ", ".join(f"{term} >= {bound:.6g}" for term, bound in bounds.items())
        raise ValueError(
            f"Expected parameters away from kinks and bounds, got all {n_dropped} at one, where "
            "they give inequalities and no equation: "
            + (f"all that is known is {told}" if told else "no coefficient is known")
            + "; fit a model of less regularization."
        )
    if m < k:
        raise ValueError(
            f"Expected at least as many equations as coefficients, got {m} equations for the "
            f"{k} coefficients {list(system.term_names)}; take fewer terms, or widen params=."
        )


def explained(r_factor: Array, coef: Array) -> float:
    """Uncentered R2 of given coefficients."""
    target = r_factor[:, -1]
    total = float(target @ target)
    if total == 0:
        return 0.0
    residual = target - r_factor[:, :-1] @ coef
    return 1.0 - float(residual @ residual) / total


def device_r_factor(design: Tensor, target: Tensor) -> Array:
    """R factor of equations, reduced on the device where they are."""
    if target.device.type == "cpu":
        return regression.r_factor(design.numpy(), target.numpy())
    both = torch.cat([design, target[:, None]], dim=1)
    upper = torch.linalg.qr(both, mode="r").R.cpu().numpy()
    width = both.shape[1]
    padded = np.zeros((width, width))
    padded[: len(upper)] = upper
    return padded
