"""Penalties on the weights alone, each a sum over tensors with a closed-form gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sklearn_implicitreg.penalties.base import Penalty
from sklearn_implicitreg.problem import Params, Problem, as_tensor
from sklearn_implicitreg.problem.frozen import own_names
from sklearn_implicitreg.problem.parameters import NOTHING, check, instance, number

_PARAMS = {"params": instance("a dict of tensor name to Tensor", Mapping)}


class _OfTensors(Penalty):
    """A penalty with one term that sums up over the tensors."""

    _term: str

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        self.check_parameters()
        check(f"{type(self).__name__}.terms", {"params": params}, _PARAMS)
        return {self._term: cast(Tensor, sum(map(self._value, params.values())))}

    def gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {self._term: self._slope(tensor)}

    @abstractmethod
    def _value(self, tensor: Tensor) -> Tensor:
        """Value at one tensor."""

    @abstractmethod
    def _slope(self, tensor: Tensor) -> Tensor:
        """Gradient at one tensor."""


class L2(_OfTensors):
    """Ridge, ``R = sum theta^2``, or the squared distance ``R = sum (theta - center)^2``.

    Without a center the coefficient is ``alpha / n`` of scikit-learn's ``Ridge``, and the term
    is ``l2``; with one, such as the weights that a fine-tuning started from, it is ``l2_center``.

    Parameters
    ----------
    center : dict of str to array or Tensor, or torch.nn.Module, default=None
        A value for every tensor in scope, under its name; others are ignored. None is zero.

    Examples
    --------
    >>> L2().terms({"w": torch.tensor([3.0, 4.0])}, None)
    {'l2': tensor(25.)}
    >>> L2(center={"w": [3.0, 2.0]}).terms({"w": torch.tensor([3.0, 4.0])}, None)
    {'l2_center': tensor(4.)}
    """

    affine = True
    _allowed: ClassVar = {
        "center": NOTHING
        | instance("a dict of tensor name to array", Mapping)
        | instance("a torch module", nn.Module)
    }

    def __init__(self, center: Any = None):
        self.center = center

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        """Whether there is no center, which is given for whole tensors."""
        return self.center is None

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """``sum (theta - center)^2`` over all tensors."""
        self.check_parameters()
        return super().terms(self._away(params), problem)

    def gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """``2 (theta - center)``."""
        return super().gradient(name, self._away({name: tensor})[name])

    def _value(self, tensor: Tensor) -> Tensor:
        return tensor.square().sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        return 2 * tensor

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # noqa: N803, as scikit-learn names it
        return "L2()" if self.center is None else f"L2(center=<{type(self.center).__name__}>)"

    @property
    def _term(self) -> str:  # type: ignore[override]
        return "l2" if self.center is None else "l2_center"

    def _away(self, params: Params) -> Params:
        """Differences from the center, which must have every tensor in its shape."""
        if self.center is None:
            return params
        center = own_names(self.center, "center")
        missing = [name for name in params if name not in center]
        if missing:
            raise ValueError(
                f"Expected a center for {list(params)}, got one for {list(center)}: {missing} "
                "missing; add them, or restrict the penalty by .on(...)."
            )
        found = {}
        for name, tensor in params.items():
            own = as_tensor(center[name]).to(tensor)
            if own.shape != tensor.shape:
                raise ValueError(
                    f"Expected a center of shape {tuple(tensor.shape)} for {name!r}, got "
                    f"{tuple(own.shape)}."
                )
            found[name] = tensor - own.detach()
        return found


class WeightDecay(_OfTensors):
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


class L1(_OfTensors):
    """Lasso, ``R = sum |theta|`` (coefficient ``2 alpha`` of scikit-learn's ``Lasso``).

    A coordinate at zero gives the inequality ``|g| <= coef`` instead of an equation.

    Examples
    --------
    >>> L1().terms({"w": torch.tensor([3.0, -4.0])}, None)
    {'l1': tensor(7.)}
    """

    elementwise = True
    _term = "l1"

    def _value(self, tensor: Tensor) -> Tensor:
        return tensor.abs().sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        return tensor.sign()

    def smooth(self, name: str, tensor: Tensor) -> Tensor:
        """Where ``theta`` is not zero."""
        return tensor != 0


class SmoothL1(_OfTensors):
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

    def shape_unit(self, name: str, params: Params) -> float:
        """Root mean square of the weights."""
        return _rms(params)

    def _value(self, tensor: Tensor) -> Tensor:
        zero = torch.zeros_like(tensor)
        return nn.functional.smooth_l1_loss(tensor, zero, reduction="sum", beta=self.delta)

    def _slope(self, tensor: Tensor) -> Tensor:
        slope: Tensor = (tensor / self.delta).clamp(-1, 1)
        return slope


class ElasticNet(Penalty):
    """The paper's elastic net, terms ``l2`` and ``smooth_l1`` in this order.

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

    def shape_unit(self, name: str, params: Params) -> float:
        """Root mean square of the weights."""
        return _rms(params)

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """``sum theta^2`` and ``sum h_delta(theta)``."""
        self.check_parameters()
        return L2().terms(params, problem) | SmoothL1(self.delta).terms(params, problem)

    def gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """``2 theta`` and ``clip(theta / delta, -1, 1)``."""
        return L2().gradient(name, tensor) | SmoothL1(self.delta).gradient(name, tensor)


class Power(_OfTensors):
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
        # At zero the power of q < 1 is infinite and the sign 0: the product is set to 0 there.
        size = torch.where(tensor == 0, 0.0, tensor.abs().pow(self.q - 1))
        slope: Tensor = self.q * size * tensor.sign()
        return slope

    def smooth(self, name: str, tensor: Tensor) -> Tensor:
        """Everywhere for ``q > 1``, else where ``theta`` is not zero."""
        return torch.ones_like(tensor, dtype=torch.bool) if self.q > 1 else tensor != 0


class L21(_OfTensors):
    """Group lasso over features, ``R = sum_j ||W[:, j]||_2`` (``MultiTaskLasso``: ``2 alpha``).

    ``W`` has shape (outputs, features); further axes (kernels) belong to the output axis'
    norm. In a tensor with one axis every entry is a feature of its own.

    Examples
    --------
    >>> L21().terms({"w": torch.tensor([[3.0, 1.0], [4.0, 0.0]])}, None)
    {'l21': tensor(6.)}
    """

    _term = "l21"

    def _value(self, tensor: Tensor) -> Tensor:
        return _feature_norms(tensor).sum()

    def _slope(self, tensor: Tensor) -> Tensor:
        norms = _feature_norms(tensor)
        return tensor / torch.where(norms == 0, 1.0, norms)

    def smooth(self, name: str, tensor: Tensor) -> Tensor:
        """Features that are not zero in all outputs."""
        return (_feature_norms(tensor) != 0).expand_as(tensor)


def _rms(params: Params) -> float:
    """Root mean square of all weights, 1 where they are zero."""
    total = sum(float(t.detach().double().square().sum()) for t in params.values())
    return (total / sum(t.numel() for t in params.values())) ** 0.5 or 1.0


def _feature_norms(tensor: Tensor) -> Tensor:
    """Norm over all axes but the second, kept for broadcasting."""
    if tensor.ndim < 2:
        return tensor.abs()
    axes = [axis for axis in range(tensor.ndim) if axis != 1]
    return torch.linalg.vector_norm(tensor, dim=axes, keepdim=True)  # type: ignore[no-any-return]
