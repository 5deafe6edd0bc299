"""Penalties on the norms of groups of weights: rows, columns, heads, whole tensors."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.sums import (
    OfMatrices,
    OfTensors,
    is_matrix,
    matrices,
    norms,
    unless_zero,
)
from sklearn_implicitreg.problem import Params, Problem
from sklearn_implicitreg.problem.parameters import NOTHING, choice, integer, number

_N_AXES = {"filters": 3, "heads": 2}
_WITHIN = (0, 2)  # axes of a group in blocks


class GroupLasso(OfTensors):
    """Group lasso [1]_, ``R = sum_g |theta_g|_2`` over the groups g of every tensor.

    Groups at zero give the inequality ``|g| <= coef`` instead of equations. Gradient methods do not
    bring them to zero exactly, so that small ones count as zero.

    Parameters
    ----------
    by : {"rows", "columns", "filters", "heads", "layers"}, default="rows"
        "rows": the weights of an output or output channel; "columns": those of an input or input
        channel (structured sparsity [2]_). In a tensor with one axis every entry is a group.
        "filters": rows, of convolution kernels alone. "heads": ``n_heads`` blocks of rows, of
        matrices alone; in torch's ``in_proj_weight`` a head has the rows of its query, key and
        value. "layers": every tensor is a group.
    n_heads : int, default=None
        Number of attention heads, for "heads".
    tol : float, default=0.01
        Groups count as zero up to this multiple of the largest norm in their tensor; 0 is for
        trainings that set groups to zero, as proximal ones do.

    References
    ----------
    .. [1] Yuan and Lin (2006), Model selection and estimation in regression with grouped variables.
    .. [2] Wen, Wu, Wang, Chen and Li (2016), Learning structured sparsity in deep neural networks.

    Examples
    --------
    >>> GroupLasso("rows").terms({"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}, None)
    {'group_lasso': tensor(6.)}
    """

    _term = "group_lasso"
    _allowed: ClassVar = {
        "by": choice("rows", "columns", "filters", "heads", "layers"),
        "n_heads": NOTHING | integer(1),
        "tol": number(least=0, below=1),
    }

    def __init__(self, by: str = "rows", n_heads: int | None = None, tol: float = 1e-2):
        self.by = by
        self.n_heads = n_heads
        self.tol = tol

    def check_parameters(self, unknown: bool = False) -> None:
        """Raise ValueError as well where ``n_heads`` is missing, or given for other groups.

        Parameters
        ----------
        unknown : bool, default=False
            Whether parameters of ``shapes`` may be ``"fit"``.
        """
        super().check_parameters(unknown)
        if (self.by == "heads") != (self.n_heads is not None):
            raise ValueError(
                f"Expected n_heads with by='heads' and with it alone, got by={self.by!r} and "
                f"n_heads={self.n_heads!r}; give GroupLasso('heads', n_heads=4)."
            )

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Sum of the norms of all groups."""
        self.check_parameters()
        found = self._seen(params).items()
        sums = [norms(self._blocks(name, tensor), _WITHIN).sum() for name, tensor in found]
        return {self._term: torch.stack(sums).sum()}

    def gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The weights of every group over its norm."""
        if not is_matrix(tensor, _N_AXES.get(self.by, 0)):
            return {self._term: torch.zeros_like(tensor)}
        blocks = self._blocks(name, tensor)
        return {self._term: (blocks / unless_zero(norms(blocks, _WITHIN))).reshape(tensor.shape)}

    def smooth(self, name: str, tensor: Tensor) -> Tensor:
        """Groups that are not zero, to within ``tol``."""
        if not is_matrix(tensor, _N_AXES.get(self.by, 0)):
            return torch.ones_like(tensor, dtype=torch.bool)
        blocks = self._blocks(name, tensor)
        sizes = norms(blocks, _WITHIN)
        return (sizes > self.tol * sizes.max()).expand_as(blocks).reshape(tensor.shape)

    def beside(self, name: str, tensor: Tensor, step: Tensor) -> dict[str, Tensor]:
        """The gradient on the step's side of zero, where groups count as zero."""
        return self.gradient(name, torch.where(self.smooth(name, tensor), tensor, 0.0) + step)

    def _seen(self, params: Params) -> Params:
        return matrices(params, repr(self), _N_AXES.get(self.by, 0))

    def _blocks(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor with its groups along the second axis."""
        if self.by == "layers":
            return tensor.reshape(1, 1, -1)
        if self.by == "columns" and tensor.ndim > 1:
            return tensor.reshape(len(tensor), tensor.shape[1], -1)
        if self.n_heads is None:
            return tensor.reshape(1, tensor.numel() if tensor.ndim < 2 else len(tensor), -1)
        n_parts = 3 if name.rpartition(".")[2] == "in_proj_weight" else 1
        if len(tensor) % (n_parts * self.n_heads):
            raise ValueError(
                f"Expected rows that n_heads={self.n_heads} divides, got {len(tensor)} in "
                f"{name!r}; restrict the penalty to the projections of the attention by .on(...)."
            )
        return tensor.reshape(n_parts, self.n_heads, -1)


class L21(GroupLasso):
    """Group lasso over features, ``R = sum_j ||W[:, j]||_2`` (``MultiTaskLasso``: ``2 alpha``).

    ``W`` has shape (outputs, features); further axes (kernels) belong to the output axis'
    norm. In a tensor with one axis every entry is a feature of its own. It is
    ``GroupLasso("columns", tol=0)`` under a name of its own.

    Examples
    --------
    >>> L21().terms({"w": torch.tensor([[3.0, 1.0], [4.0, 0.0]])}, None)
    {'l21': tensor(6.)}
    """

    _term = "l21"

    def __init__(self) -> None:
        self.by, self.n_heads, self.tol = "columns", None, 0.0


class MaxNorm(OfMatrices):
    """Largest row, ``R = sum_l max_i |W_l[i]|_2`` over the outputs i of every matrix l.

    The max-norm of a factor [1]_, and in the form of a bound the max-norm regularization of
    networks [2]_. Convolutions count as matrices (outputs, rest), vectors not. Rows that share
    the largest norm leave the equations, as R has a kink there; where no other row is left of any
    matrix, the coefficient is not identifiable.

    Parameters
    ----------
    tol : float, default=0.001
        Rows within this fraction of the largest norm share it.

    References
    ----------
    .. [1] Srebro, Rennie and Jaakkola (2004), Maximum-margin matrix factorization.
    .. [2] Srebro and Shraibman (2005), Rank, trace-norm and max-norm.

    Examples
    --------
    >>> MaxNorm().terms({"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}, None)
    {'max_norm': tensor(5.)}
    """

    _term = "max_norm"
    _allowed: ClassVar = {"tol": number(least=0, below=1)}

    def __init__(self, tol: float = 1e-3):
        self.tol = tol

    def smooth(self, name: str, tensor: Tensor) -> Tensor:
        """All rows, without those that share the largest norm."""
        everywhere = torch.ones_like(tensor, dtype=torch.bool)
        if not is_matrix(tensor):
            return everywhere
        largest = self._largest(tensor)
        return everywhere if int(largest.sum()) == 1 else everywhere & ~largest

    def beside(self, name: str, tensor: Tensor, step: Tensor) -> dict[str, Tensor]:
        """The gradient as though each row that shares the largest norm had it alone."""
        if not is_matrix(tensor):
            return self.gradient(name, tensor)
        inside = torch.where(self._largest(tensor), tensor + step, 0.0).flatten(1)
        return {self._term: (inside / unless_zero(norms(inside, 1))).reshape(tensor.shape)}

    def _largest(self, tensor: Tensor) -> Tensor:
        sizes = norms(tensor.flatten(1), 1)
        found = sizes >= (1 - self.tol) * sizes.max()
        return found.reshape(-1, *[1] * (tensor.ndim - 1))

    def _value(self, tensor: Tensor) -> Tensor:
        return norms(tensor, 1).amax()

    def _slope(self, tensor: Tensor) -> Tensor:
        sizes = norms(tensor, 1)
        largest = (sizes == sizes.amax()).to(tensor)
        return largest / largest.sum() * tensor / unless_zero(sizes)
