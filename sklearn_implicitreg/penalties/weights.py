"""Penalties on the weights one by one, or on their sizes within a tensor, in closed form."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sklearn_implicitreg.penalties.anchored import Anchored
from sklearn_implicitreg.penalties.base import Penalty
from sklearn_implicitreg.penalties.sums import OfTensors, unless_zero
from sklearn_implicitreg.problem import Params, Problem
from sklearn_implicitreg.problem.parameters import number


class L2(Anchored):
    """Ridge, ``R = sum theta^2``, or the squared distance ``R = sum (theta - center)^2``.

    Without a center the coefficient is ``alpha / n`` of scikit-learn's ``Ridge``, and the term
    is ``l2``. With one the term is ``l2_center``, or ``l2_<name>``. Centers in use: the weights
    that a fine-tuning started from (L2-SP [1]_), those before an averaging of weights (SWA), or the
    average that a training is drawn to (EMA, mean teachers).

    Parameters
    ----------
    center : dict of str to array or Tensor, or torch.nn.Module, default=None
        A value for every tensor in scope, under its name; others are ignored. None is zero.
    name : str, default=None
        A word for the term, which keeps several centers apart.

    References
    ----------
    .. [1] Li, Grandvalet and Davoine (2018), Explicit inductive bias for transfer learning with
       convolutional networks.

    Examples
    --------
    >>> L2().terms({"w": torch.tensor([3.0, 4.0])}, None)
    {'l2': tensor(25.)}
    >>> start, average = {"w": [3.0, 2.0]}, {"w": [0.0, 4.0]}
    >>> both = L2(center=start, name="start") + L2(center=average, name="average")
    >>> both.terms({"w": torch.tensor([3.0, 4.0])}, None)
    {'l2_start': tensor(4.), 'l2_average': tensor(9.)}
    """

    affine = True
    _kind = "l2"

    def __init__(self, center: Any = None, name: str | None = None):
        super().__init__(center, name)

    def _value(self, tensor: Tensor) -> Tensor:
        return tensor.square().sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        return 2 * tensor


class _KinkAtZero(OfTensors):
    """A penalty that is not differentiable where a coordinate is zero."""

    def smooth(self, name: str, tensor: Tensor) -> Tensor:
        """Where ``theta`` is not zero."""
        return tensor != 0


class WeightDecay(OfTensors):
    """``R = 1/2 sum theta^2``: the coefficient is torch's ``weight_decay``.

    Examples
    --------
    >>> WeightDecay().terms({"w": torch.tensor([3.0, 4.0])}, None)
    {'weight_decay': tensor(12.5000)}
    """

    elementwise = True
    affine = True
    _term = "weight_decay"

    def _value(self, tensor: Tensor) -> Tensor:
        return 0.5 * tensor.square().sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        return tensor


class L1(Anchored):
    """Lasso, ``R = sum |theta|`` (coefficient ``2 alpha`` of scikit-learn's ``Lasso``).

    With a center it is the distance ``R = sum |theta - center|``, and the term is ``l1_center``, or
    ``l1_<name>``. A coordinate at zero, or at the center, gives the inequality ``|g| <= coef``
    instead of an equation.

    Parameters
    ----------
    center : dict of str to array or Tensor, or torch.nn.Module, default=None
        A value for every tensor in scope, under its name; others are ignored. None is zero.
    name : str, default=None
        A word for the term, which keeps several centers apart.

    Examples
    --------
    >>> L1().terms({"w": torch.tensor([3.0, -4.0])}, None)
    {'l1': tensor(7.)}
    >>> L1(center={"w": [1.0, -4.0]}).terms({"w": torch.tensor([3.0, -4.0])}, None)
    {'l1_center': tensor(2.)}
    """

    _kind = "l1"

    def __init__(self, center: Any = None, name: str | None = None):
        super().__init__(center, name)

    def _value(self, tensor: Tensor) -> Tensor:
        return tensor.abs().sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        return tensor.sign()

    def smooth(self, name: str, tensor: Tensor) -> Tensor:
        """Where ``theta`` is not at the center."""
        return self._away({name: tensor})[name] != 0

    def beside(self, name: str, tensor: Tensor, step: Tensor) -> dict[str, Tensor]:
        """The gradient on the step's side of the center."""
        return {self._term: self._slope(self._away({name: tensor})[name] + step)}


class _Wide(Penalty):
    """A penalty with a width or a height in the units of the weights."""

    def shape_unit(self, name: str, params: Params) -> float:
        """Root mean square of the weights."""
        total = sum(float(t.detach().double().square().sum()) for t in params.values())
        return (total / sum(t.numel() for t in params.values())) ** 0.5 or 1.0


class SmoothL1(_Wide, OfTensors):
    """Smoothed lasso, ``R = sum h_delta(theta)`` with torch's ``smooth_l1_loss(beta=delta)``.

    ``h_delta(x) = x^2 / (2 delta)`` for ``|x| < delta`` and ``|x| - delta / 2`` beyond.

    Parameters
    ----------
    delta : float or "fit", default=1e-3
        Width of the smoothed corner, in the units of the weights; "fit" estimates it,
        between .01 and 3 times their root mean square.

    Examples
    --------
    >>> SmoothL1(delta=1.0).terms({"w": torch.tensor([3.0, 0.0])}, None)
    {'smooth_l1': tensor(2.5000)}
    """

    elementwise = True
    _term = "smooth_l1"
    _allowed: ClassVar = {"delta": number(above=0)}
    shapes: ClassVar = {"delta": (0.01, 3.0)}

    def __init__(self, delta: Any = 1e-3):
        self.delta = delta

    def _value(self, tensor: Tensor) -> Tensor:
        zero = torch.zeros_like(tensor)
        return nn.functional.smooth_l1_loss(tensor, zero, reduction="sum", beta=self.delta)

    def _slope(self, tensor: Tensor) -> Tensor:
        slope: Tensor = (tensor / self.delta).clamp(-1, 1)
        return slope


class ElasticNet(_Wide):
    """The paper's elastic net, terms ``l2`` and ``smooth_l1`` in this order.

    ``R = l2 sum theta^2 + smooth_l1 sum h_delta(theta)``, with a coefficient for each term;
    scikit-learn's elastic net is the family ``"l2+l1"``.

    Parameters
    ----------
    delta : float or "fit", default=1e-3
        Width of the smoothed corner of ``smooth_l1``; "fit" estimates it.

    Examples
    --------
    >>> ElasticNet(delta=1.0).terms({"w": torch.tensor([3.0])}, None)
    {'l2': tensor(9.), 'smooth_l1': tensor(2.5000)}
    """

    elementwise = True
    _allowed: ClassVar = {"delta": number(above=0)}
    shapes: ClassVar = {"delta": (0.01, 3.0)}

    def __init__(self, delta: Any = 1e-3):
        self.delta = delta

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """``sum theta^2`` and ``sum h_delta(theta)``."""
        self.check_parameters()
        return L2().terms(params, problem) | SmoothL1(self.delta).terms(params, problem)

    def gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """``2 theta`` and ``clip(theta / delta, -1, 1)``."""
        return L2().gradient(name, tensor) | SmoothL1(self.delta).gradient(name, tensor)


class Power(OfTensors):
    """``R = sum |theta|^q``.

    Parameters
    ----------
    q : float or "fit", default=4.0
        Exponent, above 0; at ``q <= 1`` a coordinate at zero gives no equation. "fit" estimates
        it, between 0.5 and 6.

    Examples
    --------
    >>> Power(q=3).terms({"w": torch.tensor([1.0, -2.0])}, None)
    {'power': tensor(9.)}
    """

    elementwise = True
    _term = "power"
    _allowed: ClassVar = {"q": number(above=0)}
    shapes: ClassVar = {"q": (0.5, 6.0)}

    def __init__(self, q: Any = 4.0):
        self.q = q

    def _value(self, tensor: Tensor) -> Tensor:
        return tensor.abs().pow(self.q).sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        size = tensor.abs().pow(self.q - 1)
        if self.q <= 1:  # infinite at zero for q < 1, where the slope is set to 0
            size = torch.where(tensor == 0, 0.0, size)
        return torch.copysign(self.q * size, tensor)

    def smooth(self, name: str, tensor: Tensor) -> Tensor:
        """Everywhere for ``q > 1``, else where ``theta`` is not zero."""
        return torch.ones_like(tensor, dtype=torch.bool) if self.q > 1 else tensor != 0


class LogPenalty(_Wide, _KinkAtZero):
    """Logarithm, ``R = sum log(1 + |theta| / eps)``, which iterated l1 minimizes [1]_.

    Parameters
    ----------
    eps : float or "fit"
        Where it turns from the shape of l1 to a logarithm, in the units of the weights; "fit"
        estimates it, between .01 and 10 times their root mean square.

    References
    ----------
    .. [1] Candes, Wakin and Boyd (2008), Enhancing sparsity by reweighted l1 minimization.

    Examples
    --------
    >>> LogPenalty(eps=0.5).terms({"w": torch.tensor([0.5, -1.5])}, None)
    {'log': tensor(2.0794)}
    """

    elementwise = True
    _term = "log"
    _allowed: ClassVar = {"eps": number(above=0)}
    shapes: ClassVar = {"eps": (0.01, 10.0)}

    def __init__(self, eps: Any):
        self.eps = eps

    def _value(self, tensor: Tensor) -> Tensor:
        return torch.log1p(tensor.abs() / self.eps).sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        slope: Tensor = tensor.sign() / (self.eps + tensor.abs())
        return slope


class LogCosh(_Wide, OfTensors):
    """``R = sum log cosh(theta / scale)``: like l2 near zero, like l1 far from it.

    Parameters
    ----------
    scale : float or "fit"
        Where it turns from the one to the other, in the units of the weights; "fit" estimates it,
        between .01 and 10 times their root mean square.

    Examples
    --------
    >>> LogCosh(scale=1.0).terms({"w": torch.tensor([0.0, 1.0])}, None)
    {'log_cosh': tensor(0.4338)}
    """

    elementwise = True
    _term = "log_cosh"
    _allowed: ClassVar = {"scale": number(above=0)}
    shapes: ClassVar = {"scale": (0.01, 10.0)}

    def __init__(self, scale: Any):
        self.scale = scale

    def _value(self, tensor: Tensor) -> Tensor:
        x = tensor / self.scale
        return (torch.logaddexp(x, -x) - math.log(2)).sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        slope: Tensor = torch.tanh(tensor / self.scale) / self.scale
        return slope


class SCAD(_Wide, _KinkAtZero):
    """Smoothly clipped absolute deviation [1]_, ``R = sum p(|theta|)``.

    ``p(t) = lam t`` up to ``lam``, ``(2 a lam t - t^2 - lam^2) / (2 (a - 1))`` up to ``a lam``, and
    ``lam^2 (a + 1) / 2`` beyond. The coefficient multiplies all of it.

    Parameters
    ----------
    lam : float or "fit"
        Slope at zero and width of the l1 part, in the units of the weights; "fit" estimates it,
        between .01 and 3 times their root mean square.
    a : float, default=3.7
        Where the penalty is flat, in multiples of ``lam``; above 2.

    References
    ----------
    .. [1] Fan and Li (2001), Variable selection via nonconcave penalized likelihood and its oracle
       properties.

    Examples
    --------
    >>> SCAD(lam=1.0, a=3.0).terms({"w": torch.tensor([0.5, -2.0, 9.0])}, None)
    {'scad': tensor(4.2500)}
    """

    elementwise = True
    _term = "scad"
    _allowed: ClassVar = {"lam": number(above=0), "a": number(above=2)}
    shapes: ClassVar = {"lam": (0.01, 3.0)}

    def __init__(self, lam: Any, a: float = 3.7):
        self.lam = lam
        self.a = a

    def _value(self, tensor: Tensor) -> Tensor:
        size, lam, a = tensor.abs(), self.lam, self.a
        middle = (2 * a * lam * size - size.square() - lam**2) / (2 * (a - 1))
        value = torch.where(size <= lam, lam * size, middle)
        return torch.where(size <= a * lam, value, lam**2 * (a + 1) / 2).sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        falling = (self.a * self.lam - tensor.abs()) / (self.a - 1)
        slope: Tensor = falling.clamp(0, self.lam) * tensor.sign()
        return slope


class MCP(_Wide, _KinkAtZero):
    """Minimax concave penalty [1]_, ``R = sum p(|theta|)``.

    ``p(t) = lam t - t^2 / (2 gamma)`` up to ``gamma lam``, and ``gamma lam^2 / 2`` beyond. The
    coefficient multiplies all of it.

    Parameters
    ----------
    lam : float or "fit"
        Slope at zero, in the units of the weights; "fit" estimates it, between .01 and 3 times
        their root mean square.
    gamma : float, default=3.0
        Where the penalty is flat, in multiples of ``lam``; above 1.

    References
    ----------
    .. [1] Zhang (2010), Nearly unbiased variable selection under minimax concave penalty.

    Examples
    --------
    >>> MCP(lam=1.0, gamma=2.0).terms({"w": torch.tensor([1.0, -9.0])}, None)
    {'mcp': tensor(1.7500)}
    """

    elementwise = True
    _term = "mcp"
    _allowed: ClassVar = {"lam": number(above=0), "gamma": number(above=1)}
    shapes: ClassVar = {"lam": (0.01, 3.0)}

    def __init__(self, lam: Any, gamma: float = 3.0):
        self.lam = lam
        self.gamma = gamma

    def _value(self, tensor: Tensor) -> Tensor:
        size = tensor.abs()
        value = self.lam * size - size.square() / (2 * self.gamma)
        return torch.where(size <= self.gamma * self.lam, value, self.gamma * self.lam**2 / 2).sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        slope: Tensor = (self.lam - tensor.abs() / self.gamma).clamp(min=0) * tensor.sign()
        return slope


class L1Squared(_KinkAtZero):
    """Exclusive lasso over tensors [1]_, ``R = sum_l (sum_j |theta_lj|)^2``, l over the tensors.

    Of one tensor its gradient is a multiple of that of ``l1``. So is that of the square of the sum
    over all tensors, for which ``l1`` stands.

    References
    ----------
    .. [1] Zhou, Jin and Hoi (2010), Exclusive lasso for multi-task feature selection.

    Examples
    --------
    >>> L1Squared().terms({"a": torch.tensor([3.0, -4.0]), "b": torch.tensor([2.0])}, None)
    {'l1_squared': tensor(53.)}
    """

    _term = "l1_squared"

    def _value(self, tensor: Tensor) -> Tensor:
        return tensor.abs().sum().square()

    def _slope(self, tensor: Tensor) -> Tensor:
        return 2 * tensor.abs().sum() * tensor.sign()


class L1OverL2(_KinkAtZero):
    """Scale-invariant sparsity [1]_, ``R = sum_l |theta_l|_1 / |theta_l|_2``, l over the tensors.

    It is between 1 and the root of the number of entries for each tensor, and 0 for one of zeros.

    References
    ----------
    .. [1] Krishnan, Tay and Fergus (2011), Blind deconvolution using a normalized sparsity measure.

    Examples
    --------
    >>> L1OverL2().terms({"w": torch.tensor([3.0, -4.0])}, None)
    {'l1_over_l2': tensor(1.4000)}
    """

    _term = "l1_over_l2"

    def _value(self, tensor: Tensor) -> Tensor:
        return tensor.abs().sum() / unless_zero(cast(Tensor, torch.linalg.vector_norm(tensor)))

    def _slope(self, tensor: Tensor) -> Tensor:
        norm = unless_zero(cast(Tensor, torch.linalg.vector_norm(tensor)))
        return tensor.sign() / norm - (tensor.abs().sum() / norm**3) * tensor
