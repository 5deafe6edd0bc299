"""A penalty of unknown shape: the slope as a function of the size of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Penalty
from sklearn_implicitreg.problem import Params, Problem
from sklearn_implicitreg.problem.parameters import Allowed, as_numbers, integer

_DEGREE = 3  # of the slope
_APART = 2  # weights that lie between two knots at least: each basis function has some


def _increasing(given: Any) -> bool:
    try:
        knots = as_numbers("knots", given)
    except (TypeError, ValueError):
        return False
    ends = knots.ndim == 1 and len(knots) > 0 and bool(knots[0] > 0)
    return ends and bool((knots[1:] > knots[:-1]).all()) and bool((knots < float("inf")).all())


class Spline(Penalty):
    r"""``R = sum r(|theta|)`` with an unknown r, whose slope is a cubic spline.

    ``r'(a) = sum_k c_k B_k(a)`` in B-splines [1]_, linear in the coefficients ``c_k`` (terms
    ``spline_0`` and so on; all equal to c are the lasso with coefficient c). They have no use one
    by one: ``PenaltyShapeDisplay`` draws the curve.

    With a number of knots these lie halfway between quantiles of the sizes of the weights and an
    even grid up to the largest, so that no stretch is without data; beyond, the slope is constant.
    Where r has a corner at zero, weights that are zero give inequalities.

    What the equations do not identify: r beyond the range of the weights; r between sizes that
    few weights have, where the curve follows its neighbors; a shape that differs from tensor to
    tensor (``Spline().per("layer")`` has one each); and any penalty that is no function of single
    weights, of which the curve is the best such function (R2 is low then).

    Parameters
    ----------
    knots : int or array-like of shape (K,), default=12
        Number of knots below the largest weight; or sizes of weights in increasing order, above
        zero, the last of which is the end of the spline.

    See Also
    --------
    Learned : A penalty that a network computes.

    References
    ----------
    .. [1] de Boor (1978), A Practical Guide to Splines, chapters IX and X.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
    >>> X, y = load_diabetes(return_X_y=True)
    >>> ridge = Ridge(alpha=0.1).fit(X, y)
    >>> est = ImplicitRegularizationEstimator(ridge, family=Spline(knots=2)).fit(X, y)
    >>> slope = est.penalty_({"coef": torch.full((10,), 200.0, dtype=torch.float64)}) / 10
    >>> round(float(slope / 200.0**2 * len(X)), 4)  # alpha theta^2 / n
    0.1
    """

    elementwise = True
    _allowed: ClassVar = {
        "knots": integer(1) | Allowed(_increasing, ("sizes above 0 in increasing order",))
    }

    _n_placed = 0  # knots that were placed by weights, and are again for a group of these

    def __init__(self, knots: int | Sequence[float] = 12):
        self.knots = knots

    def count_terms(self) -> float:
        """Knots and the end of the spline, one more for each degree."""
        n = _number(self.knots)
        return float(_DEGREE + (np.size(self.knots) if n is None else n + 1))

    def placed(self, params: Params) -> Penalty:
        """The penalty with its knots at these weights.

        Parameters
        ----------
        params : dict of str to Tensor
            The tensors that the penalty sees.

        Returns
        -------
        penalty : Spline
            Itself where the knots were given.
        """
        n = _number(self.knots) or self._n_placed
        if not n:
            return self
        own = type(self)(_places(params, n))
        own._n_placed = n
        return own

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Integrals of the B-splines from 0 to the sizes of all weights."""
        self.check_parameters()
        values = sum(self._integrals(t.abs().reshape(-1)).sum(0) for t in params.values())
        return {f"spline_{i}": value for i, value in enumerate(torch.as_tensor(values))}

    def gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """B-splines at the sizes of the weights, with the signs of the weights."""
        ends = self._ends(tensor)
        basis = _basis(tensor.abs().clamp(max=float(ends[-1])), ends, _DEGREE)
        signs = tensor.sign()
        return {f"spline_{i}": signs * basis[..., i] for i in range(basis.shape[-1])}

    def smooth(self, name: str, tensor: Tensor) -> Tensor:
        """Where ``theta`` is not zero."""
        return tensor != 0

    def _ends(self, like: Tensor) -> Tensor:
        """Zero and the knots."""
        if _number(self.knots) is not None:
            raise ValueError(
                f"Expected the places of the knots, got their number {self.knots}: an estimator "
                "takes them from the weights; give knots=[...] here."
            )
        return torch.cat(
            [like.new_zeros(1), torch.from_numpy(as_numbers("knots", self.knots)).to(like)]
        )

    def _integrals(self, sizes: Tensor) -> Tensor:
        """Integrals of the basis from zero; beyond the last knot they grow with its value."""
        ends = self._ends(sizes)
        inside = sizes.clamp(max=float(ends[-1]))
        # int_0^a B_k = (t_{k+d+1} - t_k) / (d + 1) sum_{j > k} of the B-splines of one degree more
        higher = _basis(inside, ends, _DEGREE + 1)
        tails = higher.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        knots = _repeated(ends, _DEGREE)
        widths = (knots[_DEGREE + 1 :] - knots[: -_DEGREE - 1]) / (_DEGREE + 1)
        at_end = torch.zeros_like(widths)
        at_end[-1] = 1.0
        return widths * tails + (sizes - inside)[..., None] * at_end

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # noqa: N803, as scikit-learn names it
        n = _number(self.knots)
        return f"Spline(knots={f'<{np.size(self.knots)}>' if n is None else n})"


def _number(knots: Any) -> int | None:
    """How many knots an estimator places; None where their places are given."""
    return int(knots) if isinstance(knots, Integral) else None


def _places(params: Params, n: int) -> list[float]:
    """Knots between quantiles and an even grid, with weights between any two of them."""
    sizes = torch.cat([t.detach().double().abs().reshape(-1) for t in params.values()])
    sizes = sizes[sizes > 0].sort().values
    if not len(sizes):
        raise ValueError("Expected weights that are not all zero for a spline, got zeros.")
    last = float(sizes[-1])
    shares = torch.linspace(0, 1, n + 2, dtype=sizes.dtype, device=sizes.device)[1:-1]
    # The largest is the end: a quantile of a million weights is read off the sorted ones.
    quantiles = sizes[(shares * (len(sizes) - 1)).long()]
    found: list[float] = []
    passed = 0
    for knot in ((quantiles + last * shares) / 2).tolist():
        below = int(torch.searchsorted(sizes, knot))
        if below - passed >= _APART and len(sizes) - below >= _APART:
            found.append(knot)
            passed = below
    return [*found, last]


def _repeated(ends: Tensor, degree: int) -> Tensor:
    """The knots with the first and the last as often as the degree and once more."""
    return torch.cat([ends[:1].expand(degree), ends, ends[-1:].expand(degree)])


def _basis(sizes: Tensor, ends: Tensor, degree: int) -> Tensor:
    """B-splines at sizes from zero to the last knot, on a new last axis."""
    place = torch.bucketize(sizes.detach(), ends[1:-1].contiguous(), right=True)
    basis = torch.nn.functional.one_hot(place, len(ends) - 1).to(sizes)
    knots = _repeated(ends, degree)
    basis = torch.nn.functional.pad(basis, (degree, degree))
    for d in range(1, degree + 1):
        low, high = knots[:-d], knots[d:]
        widths = high - low
        up = torch.where(widths > 0, 1 / torch.where(widths > 0, widths, 1.0), 0.0)
        rising = (sizes[..., None] - low) * up
        basis = rising[..., :-1] * basis[..., :-1] + (1 - rising[..., 1:]) * basis[..., 1:]
    return basis
