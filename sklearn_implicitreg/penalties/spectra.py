"""Penalties on the singular values of the weights, convolutions as matrices."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty
from sklearn_implicitreg.penalties.frames import Frame
from sklearn_implicitreg.problem import Params, Problem
from sklearn_implicitreg.problem.parameters import number

_EQUAL = 1e-6  # relative difference of singular values below which training meant them equal


class _Factors(NamedTuple):
    """Singular value decomposition of a matrix, ``left @ diag(values) @ right``."""

    left: Tensor
    values: Tensor
    right: Tensor

    def times(self, values: Tensor) -> Tensor:
        """``left @ diag(values) @ right`` with other values, of which many may be zero."""
        used = torch.nonzero(values).reshape(-1)
        return (self.left[:, used] * values[used]) @ self.right[used]


# Of each tensor its matrix when it was last decomposed, and the factors; None outside of a fit.
_Known = dict[str, tuple[Tensor, _Factors]]
_known: ContextVar[_Known | None] = ContextVar("decompositions", default=None)


@contextlib.contextmanager
def shared_decompositions() -> Iterator[None]:
    """Decompose a matrix once for all families inside; nothing is kept afterwards."""
    if _known.get() is not None:
        yield
        return
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def _decomposed(name: str, matrix: Tensor) -> _Factors:
    """Singular value decomposition, from before where the same matrix was decomposed."""
    known = _known.get()
    before = None if known is None else known.get(name)
    if before is not None and _same(before[0], matrix):
        return before[1]
    factors = _Factors(*torch.linalg.svd(matrix.detach(), full_matrices=False))
    if known is not None:
        known[name] = matrix.detach().clone(), factors
    return factors


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same numbers of one kind in one place."""
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return alike and torch.equal(one, other)


class _SingularValues(torch.autograd.Function):
    """Singular values from a shared decomposition, with all their derivatives."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.name = name
        return _decomposed(name, matrix).values.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # it is differentiated once more
            values = torch.linalg.svdvals(matrix)
            (slope,) = torch.autograd.grad(values, matrix, slopes[0], create_graph=True)
            return slope, None
        return _decomposed(ctx.name, matrix).times(slopes[0]), None


def _singular_values(name: str, matrix: Tensor) -> Tensor:
    shared: Any = _SingularValues.apply
    values: Tensor = torch.linalg.svdvals(matrix) if _known.get() is None else shared(matrix, name)
    return values


class _Spectral(Penalty):
    """A penalty with one term, a function of the singular values of all matrices."""

    _term: str
    _side = 1  # rows and columns that a matrix must have at least
    _positive: int | None = None  # place of a singular value that must not be zero
    _simple: ClassVar[tuple[int, ...]] = ()  # of those that must differ from their neighbors

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """R of all matrices; tensors with one axis are left out."""
        self.check_parameters()
        spectra = {}
        for name in self._matrices(params):
            spectra[name] = _singular_values(name, params[name].flatten(1))
            self._check(name, spectra[name].detach())
        return {self._term: self._total(spectra)}

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """The penalty on the matrices alone."""
        self.check_parameters()
        return [Leaf(self, tuple(self._matrices(params)))]

    def smooth(self, name: str, tensor: Tensor) -> Tensor | Frame:
        """Everywhere; ValueError where singular values that must differ are equal."""
        if self._simple and self._counts(tensor):
            values = _decomposed(name, tensor.flatten(1)).values
            self._check(name, values)
            steps = values[:-1] - values[1:]
            for i in self._simple:
                at = i % len(values)
                beside = steps[max(at - 1, 0) : at + 1]
                least = _EQUAL * values[0]
                if bool((beside <= least).any()) or not values[at] > least:
                    raise ValueError(
                        f"Expected singular values at which {type(self).__name__} has a "
                        f"derivative, got equal ones, or zero, in {name!r} ({values[at]:.3g}); "
                        "leave it out by .on(...) or params=."
                    )
        return torch.ones_like(tensor, dtype=torch.bool)

    @abstractmethod
    def _total(self, spectra: Params) -> Tensor:
        """R of the singular values of each matrix."""

    def _counts(self, tensor: Tensor) -> bool:
        """Whether a tensor is a matrix with enough rows and columns."""
        return tensor.ndim > 1 and min(len(tensor), tensor[0].numel()) >= self._side

    def _matrices(self, params: Params) -> list[str]:
        """Names of the matrices; ValueError if there is none."""
        found = [name for name, tensor in params.items() if self._counts(tensor)]
        if not found:
            shapes = {name: tuple(tensor.shape) for name, tensor in params.items()}
            raise ValueError(
                f"Expected a tensor for {type(self).__name__} with two axes or more, and at least "
                f"{self._side} rows and columns as a matrix, got {shapes}; choose others by "
                "params= or .on(...)."
            )
        return found

    def _check(self, name: str, values: Tensor) -> None:
        """Raise ValueError for a singular value of zero where R is not defined."""
        if self._positive is None:
            return
        least = torch.finfo(values.dtype).eps * len(values) * values[0]
        if not values[self._positive] > least:
            what = "of full rank" if self._positive else "other than zero"
            raise ValueError(
                f"Expected matrices {what} for {type(self).__name__}, which is not defined at "
                f"others, got singular values from {values[0]:.3g} to {values[-1]:.3g} in "
                f"{name!r}; leave it out by .on(...) or params=."
            )


class _SumOfMatrices(_Spectral):
    """A sum over the matrices, whose gradient at one of them is ``U diag(f'(s)) V'``."""

    def gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """``U diag(f'(s)) V'``; zero for a tensor with one axis."""
        if not self._counts(tensor):
            return {self._term: torch.zeros_like(tensor)}
        factors = _decomposed(name, tensor.flatten(1))
        self._check(name, factors.values)
        with torch.enable_grad():
            at = factors.values.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self._value(at), at)
        return {self._term: factors.times(slope).reshape(tensor.shape)}

    def _total(self, spectra: Params) -> Tensor:
        return torch.stack([self._value(values) for values in spectra.values()]).sum()

    @abstractmethod
    def _value(self, values: Tensor) -> Tensor:
        """R of the singular values of one matrix."""


class Schatten(_SumOfMatrices):
    """Schatten norm to the power of its exponent, ``R = sum_l sum_i s_i^q`` over the matrices.

    ``s_i`` are the singular values of a weight matrix ``W_l``; of a convolution as the matrix
    (outputs, inputs times kernel). Tensors with one axis are left out. ``q=2`` is ``L2`` of the
    matrices. With ``q <= 1`` a singular value of zero is a kink: in the singular bases the block
    of rows and columns that belong to zeros gives an inequality instead of equations.

    Parameters
    ----------
    q : float or "fit", default=4.0
        Exponent, above 0. "fit" estimates it, between 0.5 and 6.
    tol : float, default=1e-2
        With ``q <= 1``, share of the largest singular value of a matrix up to which others count
        as zero; above 0 and below 1. Training by L-BFGS leaves zeros of about 1e-3.

    Raises
    ------
    ValueError
        If no tensor has two axes, ``q`` is not above 0, or ``tol`` is outside of (0, 1).

    Examples
    --------
    >>> Schatten(q=3).terms({"w": torch.diag(torch.tensor([1.0, 2.0]))}, None)
    {'schatten': tensor(9.)}
    """

    _term = "schatten"
    _allowed: ClassVar = {"q": number(above=0), "tol": number(above=0, below=1)}
    shapes: ClassVar = {"q": (0.5, 6.0)}

    def __init__(self, q: Any = 4.0, tol: float = 1e-2):
        self.q = q
        self.tol = tol

    def _value(self, values: Tensor) -> Tensor:
        # The power of q < 1 has an infinite slope at zero, which is set to 0.
        zero = values == 0
        return torch.where(zero, 1.0, values).pow(self.q).masked_fill(zero, 0.0).sum()

    def smooth(self, name: str, tensor: Tensor) -> Tensor | Frame:
        """Everywhere for ``q > 1``, else where the singular values are not zero."""
        if self.q > 1:
            return torch.ones_like(tensor, dtype=torch.bool)
        return Nuclear(self.tol).smooth(name, tensor)


class Nuclear(_SumOfMatrices):
    """Nuclear norm, ``R = sum_l sum_i s_i`` over the weight matrices: a lasso on their ranks.

    ``s_i`` are the singular values of ``W_l``; of a convolution as the matrix (outputs, inputs
    times kernel). Tensors with one axis are left out. With r singular values above zero R is
    differentiable along matrices whose last ``(m - r) x (n - r)`` block is zero in the singular
    bases: the rest gives the inequality that the block of ``grad L`` has a spectral norm of at most
    the coefficient [1]_.

    Parameters
    ----------
    tol : float, default=1e-2
        Share of the largest singular value of a matrix up to which others count as zero; above 0
        and below 1. Training by L-BFGS leaves zeros of about 1e-3.

    Raises
    ------
    ValueError
        If no tensor has two axes, or ``tol`` is outside of (0, 1).

    References
    ----------
    .. [1] Watson (1992), Characterization of the subdifferential of some matrix norms.

    Examples
    --------
    >>> Nuclear().terms({"w": torch.diag(torch.tensor([3.0, 4.0]))}, None)
    {'nuclear': tensor(7.)}
    """

    _term = "nuclear"
    _allowed: ClassVar = {"tol": number(above=0, below=1)}

    def __init__(self, tol: float = 1e-2):
        self.tol = tol

    def _value(self, values: Tensor) -> Tensor:
        return values.sum()

    def smooth(self, name: str, tensor: Tensor) -> Tensor | Frame:
        """Where the singular values are not zero."""
        everywhere = torch.ones_like(tensor, dtype=torch.bool)
        if not self._counts(tensor):
            return everywhere
        left, values, right = _decomposed(name, tensor.flatten(1))
        rank = int((values > self.tol * values[0]).sum())
        if rank == len(values):
            return everywhere
        mask = everywhere.flatten(1)
        mask[rank:, rank:] = False
        return Frame(_completed(left), _completed(right.T), mask)


class LogDet(_SumOfMatrices):
    """Smoothed rank, ``R = sum_l sum_i log(eps + s_i^2)`` over the weight matrices.

    It is ``log det(W W' + eps I)`` of matrices with no more rows than columns, and that of
    ``W' W`` otherwise [1]_.

    Parameters
    ----------
    eps : float, default=1e-2
        Squared singular value, above 0, below which the logarithm is flat.

    Raises
    ------
    ValueError
        If no tensor has two axes, or ``eps`` is not above 0.

    References
    ----------
    .. [1] Fazel, Hindi, Boyd (2003), Log-det heuristic for matrix rank minimization.

    Examples
    --------
    >>> LogDet(eps=1.0).terms({"w": torch.zeros(2, 3)}, None)
    {'log_det': tensor(0.)}
    """

    _term = "log_det"
    _allowed: ClassVar = {"eps": number(above=0)}

    def __init__(self, eps: float = 1e-2):
        self.eps = eps

    def _value(self, values: Tensor) -> Tensor:
        return (self.eps + values.square()).log().sum()


class SpectralNorm(_SumOfMatrices):
    """Spectral norms, ``R = sum_l s_1`` over the weight matrices.

    Raises
    ------
    ValueError
        If no tensor has two axes, or if equations are asked for where ``s_1 = s_2``.

    Examples
    --------
    >>> SpectralNorm().terms({"w": torch.diag(torch.tensor([3.0, 4.0]))}, None)
    {'spectral_norm': tensor(4.)}
    """

    _term = "spectral_norm"
    _simple = (0,)

    def _value(self, values: Tensor) -> Tensor:
        return values.amax()


class LogSpectralNorm(_SumOfMatrices):
    """Logarithm of the product of spectral norms, ``R = sum_l log s_1`` over the weight matrices.

    The product bounds the Lipschitz constant of a net whose activations have slopes of at most 1.

    Raises
    ------
    ValueError
        If no tensor has two axes, a matrix is zero, or equations are asked for where ``s_1 = s_2``.

    Examples
    --------
    >>> LogSpectralNorm().terms({"w": torch.eye(2), "v": torch.eye(3)}, None)
    {'log_spectral_norm': tensor(0.)}
    """

    _term = "log_spectral_norm"
    _positive = 0
    _simple = (0,)

    def _value(self, values: Tensor) -> Tensor:
        return values.amax().log()


class StableRank(_SumOfMatrices):
    """Stable ranks, ``R = sum_l sum_i s_i^2 / s_1^2`` over the weight matrices.

    R does not depend on the scale of a matrix. Matrices with one row or column are left out.

    Raises
    ------
    ValueError
        If no matrix has two rows and columns, one is zero, or equations are asked for where ``s_1 =
        s_2``.

    Examples
    --------
    >>> StableRank().terms({"w": torch.eye(3)}, None)
    {'stable_rank': tensor(3.)}
    """

    _term = "stable_rank"
    _side = 2
    _positive = 0
    _simple = (0,)

    def _value(self, values: Tensor) -> Tensor:
        return (values / values.amax()).square().sum()


class SpectralEntropy(_SumOfMatrices):
    """Entropy of the spectra, ``R = -sum_l sum_i p_i log p_i`` with ``p_i = s_i^2 / sum_j s_j^2``.

    Its exponential is the effective rank of a matrix [1]_, there of ``p_i = s_i / sum_j s_j``. R
    does not depend on the scale of a matrix. Matrices with one row or column are left out.

    Raises
    ------
    ValueError
        If no matrix has two rows and columns, or one is zero.

    References
    ----------
    .. [1] Roy and Vetterli (2007), The effective rank: a measure of effective dimensionality.

    Examples
    --------
    >>> SpectralEntropy().terms({"w": torch.eye(2)}, None)  # log 2
    {'spectral_entropy': tensor(0.6931)}
    """

    _term = "spectral_entropy"
    _side = 2
    _positive = 0

    def _value(self, values: Tensor) -> Tensor:
        parts = (values / values[0].detach()).square()
        shares = parts / parts.sum()
        return -(shares * torch.where(shares == 0, 1.0, shares).log()).sum()


class SpectralGap(_SumOfMatrices):
    """Gaps of the largest singular values, ``R = sum_l log(s_1 / s_2)`` over the weight matrices.

    R does not depend on the scale of a matrix. Matrices with one row or column are left out.

    Raises
    ------
    ValueError
        If no matrix has two rows and columns, one is of rank 1, or equations are asked for where
        ``s_1 = s_2`` or ``s_2 = s_3``.

    Examples
    --------
    >>> SpectralGap().terms({"w": torch.diag(torch.tensor([1.0, 2.0]))}, None)  # log 2
    {'spectral_gap': tensor(0.6931)}
    """

    _term = "spectral_gap"
    _side = 2
    _positive = 1
    _simple = (0, 1)

    def _value(self, values: Tensor) -> Tensor:
        return (values[0] / values[1]).log()


class ConditionNumber(_SumOfMatrices):
    """Condition numbers, ``R = sum_l s_1 / s_min`` over the weight matrices.

    R does not depend on the scale of a matrix. Matrices with one row or column are left out.

    Raises
    ------
    ValueError
        If no matrix has two rows and columns, one is not of full rank, or equations are asked for
        where the largest or the smallest singular value is repeated.

    Examples
    --------
    >>> ConditionNumber().terms({"w": torch.diag(torch.tensor([1.0, 2.0]))}, None)
    {'condition_number': tensor(2.)}
    """

    _term = "condition_number"
    _side = 2
    _positive = -1
    _simple = (0, -1)

    def _value(self, values: Tensor) -> Tensor:
        return values.amax() / values.amin()


class EffectiveDepth(_Spectral):
    """Smallest over largest singular values, ``R = sum_l s_min / sum_l s_1``.

    R does not depend on a scale that the weight matrices share.

    Raises
    ------
    ValueError
        If no tensor has two axes, a matrix is zero, or equations are asked for where the largest or
        the smallest singular value is repeated, or the smallest is zero.

    Examples
    --------
    >>> EffectiveDepth().terms({"w": torch.diag(torch.tensor([1.0, 2.0]))}, None)
    {'effective_depth': tensor(0.5000)}
    """

    _term = "effective_depth"
    _positive = 0
    _simple = (0, -1)

    def _total(self, spectra: Params) -> Tensor:
        smallest, largest = (
            torch.stack([part(values) for values in spectra.values()]).sum()
            for part in (torch.amin, torch.amax)
        )
        return smallest / largest


class LogNormVariance(_Spectral):
    """Unbalanced layers, ``R = var_l log s_1``, over the weight matrices.

    The variance is the unbiased one, over the number of matrices less 1. R does not depend on a
    scale that the matrices share.

    Raises
    ------
    ValueError
        If fewer than two tensors have two axes, a matrix is zero, or equations are asked for where
        ``s_1 = s_2``.

    Examples
    --------
    >>> LogNormVariance().terms({"w": torch.eye(2), "v": 2 * torch.eye(2)}, None)  # (log 2)^2 / 2
    {'log_norm_variance': tensor(0.2402)}
    """

    _term = "log_norm_variance"
    _positive = 0
    _simple = (0,)

    def _total(self, spectra: Params) -> Tensor:
        if len(spectra) < 2:
            raise ValueError(
                "Expected two matrices or more for LogNormVariance, a variance over them, got "
                f"{list(spectra)}; choose more by params= or .on(...), and no group for each layer."
            )
        return torch.stack([values.amax().log() for values in spectra.values()]).var()


def _completed(basis: Tensor) -> Tensor:
    """Orthonormal columns, and others so that they are a basis."""
    k = basis.shape[1]
    if len(basis) == k:
        return basis
    return torch.cat([basis, torch.linalg.qr(basis, mode="complete").Q[:, k:]], dim=1)
