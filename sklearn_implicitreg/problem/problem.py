"""A trained model and its data, seen as parameters and the gradient of a mean loss."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import lstsq
from torch import Tensor

from sklearn_implicitreg.problem.conventions import Convention
from sklearn_implicitreg.problem.gradient import BlockGradient, LossGradient
from sklearn_implicitreg.problem.ranks import Ranks
from sklearn_implicitreg.problem.row_batch import RowBatch
from sklearn_implicitreg.problem.vectors import Params, add_to, times, zeros_of

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
ParamsSpec = str | Callable[[str, Tensor], bool]
BatchLoss = Callable[[Params], tuple[Tensor, float]]  # sum over rows, and their weight
Value = TypeVar("Value")
Sampling = Literal["data sets", "resamples", "one data set"]  # how several endpoints were made


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """Frozen view of a trained model and its data; it never changes the user's objects.

    Adapters return one. :meth:`gradient` is that of the mean loss over the rows;
    :meth:`row_batches` gives the rows block by block with the model's outputs on them.

    Attributes
    ----------
    params : dict of str to Tensor
        The trained tensors in scope.
    model_name, loss_name : str
        As the summary shows them.
    left_out : tuple of str
        Trained tensors out of scope, which give no equations.
    convention : Convention or None
        The model's own way to state its penalty.
    notes : tuple of str
        What the reader of a summary should know.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg.adapters import Data, Options, Problem, adapt
    >>> X, y = load_diabetes(return_X_y=True)
    >>> problem = adapt(Ridge().fit(X, y), Data(X, y), Options())
    >>> isinstance(problem, Problem), list(problem.params), problem.left_out
    (True, ['coef'], ('intercept',))
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
    batches: tuple[Indices, ...] | None = None  # of the steps it is evaluated for
    still: frozenset[str] = frozenset()  # trained tensors that these steps do not update
    trained_factor: float = 1.0  # the loss of a training step over L, its mean over rows
    trained_sum: bool = False  # a step was trained on a sum over its rows, not on their mean
    draw: int = 0  # which of many independent draws a stochastic penalty takes
    n_passes: int = 1  # over rows that differ at each reading
    reading: int = 0  # which of many readings of such rows comes first
    ranks: Ranks | None = None  # processes that give rows, or hold parts of the tensors

    @abstractmethod  # several blocks are drawn at random, always the same: rows may come sorted
    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """Gradient sums over at least ``n_blocks`` blocks of rows, if there are as many rows."""

    def blocks_after(self, n_done: int, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """The same blocks without the first ones, which are made all the same."""
        return islice(self.blocks(n_blocks), n_done, None)

    def gradient(self) -> LossGradient:
        """Gradient of the mean loss over all rows, in one pass."""
        return self.over_passes(LossGradient.from_blocks(self.blocks()))

    @property
    def sums_blocks(self) -> bool:
        """Whether the gradient is that of the sum of all blocks, to the bit."""
        return type(self).gradient is Problem.gradient

    def facts(self) -> dict[str, Any]:
        """What the gradient depends on without the rows: tensors by name, or what JSON holds."""
        return {
            "model": self.model_name,
            "loss": self.loss_name,
            "params": [*self.params],
            "weights": self.params,
            "n_passes": self.n_passes,
            "dtype": self.eps,
        }

    def contents(self) -> Iterator[dict[str, Any]]:
        """The rows block by block, as the loss takes them: X, y and sample_weight."""
        for batch in self.row_batches(self.params):
            yield {"X": batch.inputs, "y": batch.given_target, "sample_weight": batch.weight}

    def over_passes(
        self, first: LossGradient, once: Callable[[Problem], LossGradient] | None = None
    ) -> LossGradient:
        """The mean gradient over all readings of rows that differ at each; of others the first."""
        if self.n_passes == 1:
            return first
        once = once or (lambda problem: LossGradient.from_blocks(problem.blocks()))
        later = range(self.reading + 1, self.reading + self.n_passes)
        others = (once(replace(self, reading=r)) for r in later)
        return LossGradient.over_readings(chain([first], others), self.n_passes)

    def read_again(self, place: int) -> Self:
        """The same problem with readings of its own at one of several places."""
        return self if self.n_passes == 1 else replace(self, reading=place * self.n_passes)

    def row_batches(self, params: Params) -> Iterator[RowBatch]:
        """The rows block by block, with outputs at these parameters; others stay as trained."""
        raise ValueError(
            f"Expected a torch module, a skorch net or a linear model for a penalty on rows, got "
            f"{self.model_name}; its outputs are not known at other parameters."
        )

    @property
    def here(self) -> Problem:
        """The problem of the rows that this process has."""
        return self

    @property
    def n_rows(self) -> int | None:
        """Number of rows; None for a stream."""
        return None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors in scope."""
        return {name: tuple(tensor.shape) for name, tensor in self.params.items()}

    @property
    def in_shards(self) -> bool:
        """Whether each of several processes has a part of the tensors."""
        return self.ranks is not None and self.ranks.sharded

    def over_shards(self, value: Value) -> list[Value]:
        """A number, or something as small, of every process that has a part of the tensors."""
        if self.ranks is None or not self.ranks.sharded:
            return [value]
        return self.ranks.gathered(value)

    @property
    def is_apart(self) -> bool:
        """Whether other processes have parts of the tensors, and are not asked now."""
        return self.ranks is not None and self.ranks.sharded and not self.ranks.meets

    @property
    def has_paths(self) -> bool:
        """Whether the loss is known at other weights, as the steps of a trajectory need it."""
        return False

    @property
    def is_net(self) -> bool:
        """Whether it was trained in steps, also where the loss is known at its weights alone."""
        return self.has_paths or self.ranks is not None

    @property
    def masses(self) -> Weights | None:
        """Weight of every row in the mean loss; None where all count as one."""
        return None

    def entry_names(self, name: str) -> Sequence[str] | None:
        """Names of the entries of a flattened tensor; None where they have numbers alone."""
        return None

    def labels(self, name: str, entries: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Names of some entries of a flattened tensor, or their numbers; of pairs that they are."""
        if entries.dtype.names:  # rows and columns in singular bases, which are no entries
            return np.array([f"rotated ({i}, {j})" for i, j in entries.tolist()], dtype=object)
        names = self.entry_names(name)
        return entries if names is None else np.asarray(names, dtype=object)[entries]

    def at(self, params: Params) -> Problem:
        """The same problem at other values of some parameters."""
        raise self._no_path()

    def take(self, rows: Indices, weights: Weights) -> Problem:
        """The same problem on some of the rows, with these weights."""
        raise self._no_path()

    def seeing(self, batch: Any) -> Problem:
        """The same problem on one batch ``(inputs, targets)`` as a step of a training saw it."""
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

    def losses(self) -> Iterator[BatchLoss]:
        """The loss on each batch of rows, as a differentiable function of the parameters."""
        raise self._no_path()

    def outputs(self, params: Params) -> tuple[Weights, Weights]:
        """Outputs of the model at some parameters, of shape (n, K), and weights of the rows."""
        raise self._no_path()

    def fresh(self, seed: int) -> Params:
        """Parameters before a training, as the model's layers draw them."""
        raise self._no_path()

    def spread_gradient(
        self, batches: list[Indices], center: Params, scale: Params | None = None
    ) -> Params:
        """Gradient of ``mean_k (g_k - g)' scale (g_k - g)`` over batches; ``center`` is g."""
        # 2 mean_k H_k scale (g_k - g), by one product with the Hessian for each batch.
        total = zeros_of(self.params)
        for batch in (self.take(rows, np.ones(len(rows))) for rows in batches):
            own = batch.gradient().value
            away = times({name: own[name] - g for name, g in center.items()}, scale)
            for name, h in batch.hvp(away).items():
                add_to(total[name], h, 2 / len(batches))
        return total

    def mean_and_spread(
        self, batches: list[Indices], scale: Params | None = None
    ) -> tuple[LossGradient, Params] | None:
        """Mean g of batch gradients and ``spread_gradient`` about it; None if not in one pass."""
        return None

    def with_dropout(self, rate: float | None, seed: int) -> Problem:
        """The same problem with its dropout layers on, at a given rate or at their own."""
        raise ValueError(
            f"Expected a torch module or skorch net with dropout layers, got {self.model_name}, "
            "which has no rate p; give a module with the layers that it was trained with."
        )

    def hessian(self) -> npt.NDArray[np.float64]:
        """Hessian of a quadratic mean loss in the flattened parameters, the others profiled out."""
        raise self._not_quadratic()

    def gauss_newton(self) -> npt.NDArray[np.float64]:
        """Hessian of the mean loss in the flattened parameters, without that of the outputs."""
        raise self._no_path()

    def _not_quadratic(self) -> ValueError:
        return ValueError(
            f"Expected a loss that is quadratic in the parameters, got {self.loss_name} of "
            f"{self.model_name}; give a linear model with squared error."
        )

    def _no_path(self) -> ValueError:
        return ValueError(
            "Expected a torch module, skorch net or MLP where the loss is needed at other weights "
            "than the trained ones, as on a trajectory or for a family of loss gradients, got "
            f"{self.model_name}; give such a model, or another family."
        )


def select_params(
    spec: ParamsSpec, params: Params, default: set[str], norms: Collection[str] = ()
) -> list[str]:
    """Names that ``params=`` selects: "auto" is ``default``; ``norms`` are of normalizations."""
    if callable(spec):
        answers = {name: spec(name, tensor) for name, tensor in params.items()}
        words = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
        if words:
            raise TypeError(f"Expected True or False from params= for each tensor, got {words}.")
        chosen = [name for name, answer in answers.items() if answer]
    elif spec == "auto":
        chosen = [name for name in params if name in default]
    elif spec == "all":
        chosen = list(params)
    elif spec in ("weights", "decay"):
        seen = {n: t for n, t in params.items() if spec == "weights" or n not in norms}
        chosen = [name for name, tensor in seen.items() if tensor.ndim >= 2] or [
            name for name in seen if "bias" not in name and "intercept" not in name
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
    """Hessian of what is in scope with the rest at its optimum: the Schur complement."""
    if scope.all():
        return hessian
    cross = hessian[~scope][:, scope]
    best = lstsq(hessian[~scope][:, ~scope], cross)[0]
    reduced = hessian[scope][:, scope] - cross.T @ best
    return np.asarray((reduced + reduced.T) / 2)


def check_finite_params(params: Params) -> None:
    """Raise ValueError if a weight is NaN, infinite or complex, naming the tensors."""
    unreal = [name for name, t in params.items() if t.is_complex()]
    if unreal:
        raise ValueError(
            f"Expected real trained parameters, got complex ones in {unreal}; store their real and "
            "imaginary parts (torch.view_as_real) as parameters."
        )
    # The sum is faster to check; it is finite unless a number is not, or numbers are huge.
    suspect = {name: t for name, t in params.items() if not bool(torch.isfinite(t.sum()))}
    bad = [name for name, t in suspect.items() if not bool(torch.isfinite(t).all())]
    if bad:
        raise ValueError(
            f"Expected finite trained parameters, got NaN or inf in {bad}; "
            "analyse a checkpoint from before the training diverged."
        )
