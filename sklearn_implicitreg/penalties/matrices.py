"""Penalties on the shape of weight matrices: balance of rows and layers, orthogonality."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty
from sklearn_implicitreg.penalties.sums import OfMatrices, matrices, unless_zero
from sklearn_implicitreg.problem import Params, Problem


class RowNormVariance(OfMatrices):
    """Unequal rows, ``R = sum_l mean_i (q_li - 1)^2``, ``q_li = |W_l[i]|^2 / mean_k |W_l[k]|^2``.

    The variance of the rows' squared norms over their mean, in every matrix l. Convolutions count
    as matrices (outputs, rest), vectors not. It does not depend on the scale of a matrix, and is 0
    for a matrix of zeros.

    Examples
    --------
    >>> RowNormVariance().terms({"w": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}, None)
    {'row_norm_variance': tensor(1.)}
    """

    _term = "row_norm_variance"

    def _value(self, tensor: Tensor) -> Tensor:
        squares = tensor.square().sum(1)
        share = squares / unless_zero(squares.mean())
        return (share - share.mean()).square().mean()

    def _slope(self, tensor: Tensor) -> Tensor:
        squares = tensor.square().sum(1, keepdim=True)
        mean = unless_zero(squares.mean())
        share = squares / mean
        # The mean of the squared shares less one; the shares' mean moves with every row.
        return 4 / len(tensor) / mean * (share - share.square().mean()) * tensor


class Coherence(OfMatrices):
    """Overlap of inputs, ``R = sum_l |offdiag(W_l' W_l)|_F^2 / |W_l|_F^4`` over the matrices l.

    The squared inner products of different columns. Convolutions count as matrices (outputs,
    rest), vectors not. It does not depend on the scale of a matrix, and is 0 for a matrix of zeros.

    Examples
    --------
    >>> Coherence().terms({"w": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}, None)
    {'coherence': tensor(0.5000)}
    """

    _term = "coherence"

    def _value(self, tensor: Tensor) -> Tensor:
        # |W'W|_F = |WW'|_F: the smaller of the two, less the diagonal of W'W.
        overlap = _gram(tensor).square().sum() - tensor.square().sum(0).square().sum()
        return overlap / unless_zero(tensor.square().sum().square())

    def _slope(self, tensor: Tensor) -> Tensor:
        size = unless_zero(tensor.square().sum())
        inner = _times_gram(tensor) - tensor.square().sum(0) * tensor
        return 4 * inner / size**2 - 4 * self._value(tensor) / size * tensor


class Orthogonality(OfMatrices):
    """Distance from orthogonality, ``R = sum_l |W_l W_l' - I|_F^2`` over the matrices l [1]_.

    Of a matrix with more rows than columns it is ``|W_l' W_l - I|_F^2``, which can be zero.
    Convolutions count as matrices (outputs, rest), vectors not.

    References
    ----------
    .. [1] Brock, Lim, Ritchie and Weston (2017), Neural photo editing with introspective
       adversarial networks.

    Examples
    --------
    >>> Orthogonality().terms({"w": torch.tensor([[1.0, 0.0], [0.0, 2.0]])}, None)
    {'orthogonality': tensor(9.)}
    """

    _term = "orthogonality"

    def _value(self, tensor: Tensor) -> Tensor:
        gram = _gram(tensor)
        return (gram - torch.eye(len(gram)).to(gram)).square().sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        return 4 * (_times_gram(tensor) - tensor)


class LayerBalance(Penalty):
    """Unequal layers, ``R = mean_l (log |W_l|_F - mean_m log |W_m|_F)^2`` over the matrices l, m.

    The variance of the logarithms of the Frobenius norms. Like the differences of squared norms
    that gradient flow keeps in homogeneous networks [1]_ it is zero where all layers have the same
    norm, and it needs no order of the layers. Convolutions count as matrices, vectors not.

    References
    ----------
    .. [1] Du, Hu and Lee (2018), Algorithmic regularization in learning deep homogeneous models:
       layers are automatically balanced.

    Examples
    --------
    >>> params = {"a": torch.ones(1, 1), "b": torch.full((1, 1), 2.7182818)}
    >>> LayerBalance().terms(params, None)
    {'layer_balance': tensor(0.2500)}
    """

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """The penalty on the matrices."""
        return [Leaf(self, tuple(self._seen(params)))]

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Variance of the logarithms of the matrices' norms."""
        seen = self._seen(params)
        sizes = torch.stack([tensor.square().sum() for tensor in seen.values()])
        zero = [name for name, norm in zip(seen, sizes.tolist(), strict=True) if not norm]
        if zero:
            raise ValueError(
                f"Expected matrices that are not zero for LayerBalance, got zeros in {zero}; leave "
                "them out by .on(...)."
            )
        logs = sizes.log() / 2
        return {"layer_balance": (logs - logs.mean()).square().mean()}

    def _seen(self, params: Params) -> Params:
        found = matrices(params, "LayerBalance")
        if len(found) == 1:
            raise ValueError(
                f"Expected two or more matrices in the scope of LayerBalance, got {list(found)}; "
                "choose others by params= or .on(...), and no coefficient per layer."
            )
        return found


def _gram(tensor: Tensor) -> Tensor:
    """The smaller of W W' and W' W."""
    return tensor @ tensor.T if len(tensor) <= tensor.shape[1] else tensor.T @ tensor


def _times_gram(tensor: Tensor) -> Tensor:
    """W W' W."""
    gram = _gram(tensor)
    return gram @ tensor if len(tensor) <= tensor.shape[1] else tensor @ gram
