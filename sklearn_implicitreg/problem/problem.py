"""A trained model and its data, seen as parameters and the gradient of a mean loss."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import lstsq
from torch import Tensor

from sklearn_implicitreg.problem.conventions import Convention
from sklearn_implicitreg.problem.row_batch import RowBatch

__all__ = [
    "BlockGradient",
    "LossGradient",
    "Params",
    "Problem",
    "Sampling",
    "profiled",
    "select_params",
]

Params = dict[str, Tensor]
Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
ParamsSpec = str | Callable[[str, Tensor], bool]
Sampling = Literal["data sets", "resamples", "one data set"]  # what several endpoints are of


@dataclass(frozen=True)
class BlockGradient:
    """Gradient of the weighted *sum* of the losses of one block of rows."""

    sums: Params  # float64, shaped like Problem.params
    loss: float  # weighted sum of the row losses
    weight: float  # total weight of the rows
    n_rows: int
    scale: float  # sum over rows of the size of what was summed: eps * scale is rounding
    n_kinks: int = 0  # rows at which the loss has no derivative


@dataclass(frozen=True)
class LossGradient:
    """Gradient of the *mean* loss (divided by the total weight of the rows)."""

    value: Params
    loss: float
    weight: float
    n_rows: int
    scale: float
    n_kinks: int

    @classmethod
    def from_blocks(cls, blocks: Iterator[BlockGradient]) -> LossGradient:
        """Add up blocks of rows, in float64."""
        total: Params = {}
        loss = weight = scale = 0.0
        n_rows = n_kinks = 0
        for block in blocks:
            for name, tensor in block.sums.items():
                if name in total:
                    total[name] += tensor
                else:
                    total[name] = tensor.clone()
            loss += block.loss
            weight += block.weight
            scale += block.scale
            n_rows += block.n_rows
            n_kinks += block.n_kinks
        if n_rows < 1:
            raise ValueError("Expected at least 1 row of data, got 0.")
        if not weight > 0:
            raise ValueError(f"Expected a positive total weight of the rows, got {weight}.")
        value = {name: tensor / weight for name, tensor in total.items()}
        return cls(value, loss / weight, weight, n_rows, scale / weight, n_kinks)

    def completed(self, other: LossGradient) -> LossGradient:
        """Mean over the rows of both, each by its total weight."""
        weight = self.weight + other.weight
        mine, theirs = self.weight / weight, other.weight / weight
        value = {name: mine * g + theirs * other.value[name] for name, g in self.value.items()}
        return LossGradient(
            value,
            mine * self.loss + theirs * other.loss,
            weight,
            self.n_rows + other.n_rows,
            mine * self.scale + theirs * other.scale,
            self.n_kinks + other.n_kinks,
        )

    def rounding(self, eps: float) -> float:
        """Norm below which it is zero to rounding."""
        return 100 * eps * self.scale

    def norm(self) -> float:
        """Euclidean norm over all parameters."""
        return float(sum(float(g.square().sum()) for g in self.value.values()) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """Frozen view of (trained model, data); it never changes the user's objects.

    ``params`` are the trained tensors in scope: they give the equations and are what the
    penalties see. Subclasses say how the loss gradient is computed, block by block of rows.
    """

    params: Params
    model_name: str
    loss_name: str
    eps: float  # rounding unit of the arithmetic that the gradient is computed in
    left_out: tuple[str, ...] = ()  # trained tensors that give no equations
    free: Mapping[str, Tensor] = field(default_factory=dict)  # masks; False: at a bound
    convention: Convention | None = None  # the model's own way to state its penalty
    n_effective: float | None = None  # what the convention divides by, if not the weight
    groups: Mapping[str, str] | None = None  # one coefficient per group, where the model has
    param_groups: Mapping[str, str] | None = None  # the optimizer's groups, where known
    batch_normalized: bool = False  # gradient taken through batch statistics
    notes: tuple[str, ...] = ()
    batches: tuple[Indices, ...] | None = None  # of the steps that it is looked at for
    trained_factor: float = 1.0  # loss that a step was trained on over L, its mean over rows
    trained_sum: bool = False  # a step was trained on a sum over its rows, not on their mean
    draw: int = 0  # which of many independent draws a stochastic penalty takes

    @abstractmethod
    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """Gradient sums over blocks of rows, at least ``n_blocks`` of them if rows allow it.

        Several blocks are drawn at random, always the same: rows may come sorted.
        """

    def gradient(self) -> LossGradient:
        """Gradient of the mean loss over all rows, in one pass."""
        return LossGradient.from_blocks(self.blocks())

    def row_batches(self, params: Params) -> Iterator[RowBatch]:
        """The rows block by block, with the model's outputs at these parameters.

        Parameters that are not given stay as trained. A consumer that keeps no batch holds the
        graph of one block at a time.
        """
        raise ValueError(
            f"Expected a torch module, a skorch net or a linear model for a penalty on rows, got "
            f"{self.model_name}; its outputs are not known at other parameters."
        )

    @property
    def n_rows(self) -> int | None:
        """Number of rows; None for a stream."""
        return None

    @property
    def has_paths(self) -> bool:
        """Whether the loss is known at other weights, as the steps of a path need it."""
        return False

    @property
    def masses(self) -> Weights | None:
        """Weight of every row in the mean loss; None where all count as one."""
        return None

    def at(self, params: Params) -> Problem:
        """The same problem at other values of some parameters."""
        raise self._no_path()

    def take(self, rows: Indices, weights: Weights) -> Problem:
        """The same problem on some of the rows, with weights of their own."""
        raise self._no_path()

    def numbered_like(self, fitted: Problem) -> Problem:
        """The same problem with labels numbered as in another; most are not numbered."""
        return self

    def whole(self) -> Problem:
        """The same problem with all trained tensors in scope."""
        if self.left_out:
            raise self._no_path()
        return self

    def hvp(self, vector: Params) -> Params:
        """Hessian of the mean loss times a vector (zero where it has no entry), in float64."""
        raise self._no_path()

    def spread_gradient(self, batches: list[Indices], center: Params) -> Params:
        """Gradient of ``mean_k |g_k - g|^2`` over batches of rows; ``center`` is g."""
        raise self._no_path()

    def with_dropout(self, rate: float | None, seed: int) -> Problem:
        """The same problem with its dropout layers at work, at a rate or at their own."""
        raise ValueError(
            f"Expected a torch module or skorch net with dropout layers, got {self.model_name}."
        )

    def hessian(self) -> npt.NDArray[np.float64]:
        """Hessian of a mean loss that is quadratic in the parameters.

        Of shape (p, p), p the number of parameters in scope, flattened and joined in the order
        of ``params``. Trained parameters out of scope, such as an unpenalized intercept, are
        profiled out: they stand at their best for every value of those in scope.

        Raises
        ------
        ValueError
            If the loss is not quadratic, or its Hessian is too large to be made.
        """
        raise self._not_quadratic()

    def _not_quadratic(self) -> ValueError:
        return ValueError(
            f"Expected a loss that is quadratic in the parameters, got {self.loss_name} of "
            f"{self.model_name}; give a linear model with squared error."
        )

    def _no_path(self) -> ValueError:
        return ValueError(
            f"Expected a torch module or skorch net for a path, got {self.model_name}; a path "
            "needs the loss at other weights than the trained ones."
        )


def select_params(spec: ParamsSpec, params: Params, default: set[str]) -> list[str]:
    """Names of the tensors that a ``params=`` specification selects.

    ``default`` is what ``"auto"`` means for the model at hand.
    """
    if callable(spec):
        chosen = [name for name, tensor in params.items() if spec(name, tensor)]
    elif spec == "auto":
        chosen = [name for name in params if name in default]
    elif spec == "all":
        chosen = list(params)
    elif spec == "weights":
        chosen = [name for name, tensor in params.items() if tensor.ndim >= 2] or [
            name for name in params if "bias" not in name and "intercept" not in name
        ]
    else:
        chosen = [name for name in params if re.search(spec, name)]
    if not chosen:
        raise ValueError(
            f"params={spec!r} selects none of the trained parameters; expected a selection "
            f"among {list(params)}."
        )
    return chosen


def profiled(
    hessian: npt.NDArray[np.float64], scope: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Hessian of what is in scope where the rest is at its best: the Schur complement."""
    if scope.all():
        return hessian
    cross = hessian[~scope][:, scope]
    best = lstsq(hessian[~scope][:, ~scope], cross)[0]
    reduced = hessian[scope][:, scope] - cross.T @ best
    return np.asarray((reduced + reduced.T) / 2)


def check_finite_params(params: Params) -> None:
    """Refuse NaN and infinite weights, naming the tensors."""
    # The sum is read faster, and is finite unless numbers are not or are huge.
    bad = [
        name
        for name, t in params.items()
        if not bool(torch.isfinite(t.sum())) and not bool(torch.isfinite(t).all())
    ]
    if bad:
        raise ValueError(
            f"Expected finite trained parameters, got NaN or inf in {bad}; "
            "analyse a checkpoint from before the training diverged."
        )
