"""Distances of the weights from others: a center, with weights, or in an optimizer's metric."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sklearn_implicitreg.penalties.base import Penalty
from sklearn_implicitreg.penalties.sums import OfTensors
from sklearn_implicitreg.problem import Params, Problem, as_tensor
from sklearn_implicitreg.problem.frozen import own_names
from sklearn_implicitreg.problem.parameters import NOTHING, checked, having, instance, number

_ARRAYS = instance("a dict of tensor name to array", Mapping)
_CENTER = _ARRAYS | instance("a torch module", nn.Module)
_NAME = NOTHING | instance("a word for the term", str)


class Anchored(OfTensors):
    """A sum over tensors of differences from a center; without one, of the weights."""

    _kind: str
    _allowed: ClassVar = {"center": NOTHING | _CENTER, "name": _NAME}

    def __init__(self, center: Any = None, name: str | None = None):
        self.center = center
        self.name = name

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        """Whether there is no center, which is given for whole tensors."""
        return self.center is None

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """The term of the differences from the center, over all tensors."""
        self.check_parameters()
        return super().terms(self._away(params), problem)

    def gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Closed form at one tensor."""
        return super().gradient(name, self._away({name: tensor})[name])

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # noqa: N803, as scikit-learn names it
        given = "" if self.center is None else f"center=<{type(self.center).__name__}>"
        given += "" if self.name is None else f"{', ' if given else ''}name={self.name!r}"
        return f"{type(self).__name__}({given})"

    @property
    def _term(self) -> str:  # type: ignore[override]
        return self._kind if self.center is None else f"{self._kind}_{self.name or 'center'}"

    def _away(self, params: Params) -> Params:
        """Differences from the center, which must have every tensor in its shape."""
        return params if self.center is None else _from_center(params, self.center)


class _WeightedSquares(Penalty):
    """Half a sum of weighted squares, or a sum of them."""

    affine = True
    _factor: float

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Weighted squares, summed over all tensors."""
        self.check_parameters()
        parts = [w * t.square() for w, t in self._weighted(params).values()]
        return {self._name: self._factor * cast(Tensor, sum(part.sum() for part in parts))}

    def gradient(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Closed form at one tensor."""
        weight, own = self._weighted({name: tensor})[name]
        return {self._name: 2 * self._factor * weight * own}

    @property
    @abstractmethod
    def _name(self) -> str:
        """Name of the term."""

    @abstractmethod
    def _weighted(self, params: Params) -> dict[str, tuple[Tensor, Tensor]]:
        """Weights, and what is squared."""


class EWC(_WeightedSquares):
    """Elastic weight consolidation, ``R = 1/2 sum_j F_j (theta_j - c_j)^2`` [1]_.

    The coefficient is the lambda of [1]_. The term is ``ewc``, or ``ewc_<name>``, as for one of
    several earlier tasks.

    Parameters
    ----------
    center : dict of str to array or Tensor, or torch.nn.Module
        Weights after the earlier task, for every tensor in scope, under its name.
    weights : dict of str to array or Tensor
        Diagonal F of the Fisher information there, in the shapes of the tensors; not negative.
    name : str, default=None
        A word for the term, which keeps several of them apart.

    References
    ----------
    .. [1] Kirkpatrick et al. (2017), Overcoming catastrophic forgetting in neural networks.

    Examples
    --------
    >>> penalty = EWC(center={"w": [1.0, 1.0]}, weights={"w": [2.0, 0.5]})
    >>> penalty.terms({"w": torch.tensor([2.0, 3.0])}, None)
    {'ewc': tensor(2.)}
    """

    _factor = 0.5
    _allowed: ClassVar = {"center": _CENTER, "weights": _ARRAYS, "name": _NAME}

    def __init__(self, center: Any, weights: Any, name: str | None = None):
        self.center = center
        self.weights = weights
        self.name = name

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # noqa: N803, as scikit-learn names it
        given = f"center=<{type(self.center).__name__}>, weights=<{type(self.weights).__name__}>"
        return f"EWC({given}{'' if self.name is None else f', name={self.name!r}'})"

    @property
    def _name(self) -> str:
        return "ewc" if self.name is None else f"ewc_{self.name}"

    def _weighted(self, params: Params) -> dict[str, tuple[Tensor, Tensor]]:
        weights = _not_negative(params, self.weights, "a weight of EWC")
        return {name: (weights[name], t) for name, t in _from_center(params, self.center).items()}


class PreconditionedL2(_WeightedSquares):
    """Decoupled decay at the end of Adam, ``R = sum_j (sqrt(v_j) + eps) theta_j^2``.

    AdamW moves each weight by ``g_j / (sqrt(v_j) + eps) + weight_decay * theta_j`` [1]_, which is
    zero where training ends. So the coefficient is ``weight_decay / 2``, after several
    times ``1 / (lr * weight_decay)`` steps, the last ones at a small learning rate.

    Parameters
    ----------
    v : dict of str to array or Tensor
        Second moments of the gradient, bias-corrected, for every tensor in scope under its name;
        not negative. :meth:`of` reads them from an optimizer.
    eps : float, default=1e-8
        The optimizer's.

    References
    ----------
    .. [1] Loshchilov and Hutter (2019), Decoupled weight decay regularization.

    Examples
    --------
    >>> penalty = PreconditionedL2({"w": [4.0, 1.0]}, eps=0.0)
    >>> penalty.terms({"w": torch.tensor([1.0, 3.0])}, None)
    {'preconditioned_l2': tensor(11.)}
    """

    _factor = 1.0
    _name = "preconditioned_l2"
    _allowed: ClassVar = {"v": _ARRAYS, "eps": number(least=0)}

    def __init__(self, v: Any, eps: float = 1e-8):
        self.v = v
        self.eps = eps

    @classmethod
    @checked(
        optimizer=having("a torch optimizer", "param_groups", "state"),
        module=instance("the torch module that it trained", nn.Module),
    )
    def of(cls, optimizer: Any, module: nn.Module) -> PreconditionedL2:
        """The penalty of an Adam or AdamW as it is now.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            One that keeps ``exp_avg_sq``, such as Adam, AdamW or NAdam.
        module : torch.nn.Module
            What it trained, for the names of the tensors; those without a step are left out.

        Returns
        -------
        penalty : PreconditionedL2

        Raises
        ------
        ValueError
            If the optimizer keeps no second moments of the module's tensors, or its groups have
            different ``eps``.
        """
        names = {id(tensor): name for name, tensor in module.named_parameters()}
        found: dict[str, Tensor] = {}
        eps = set()
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                state = optimizer.state.get(tensor, {})
                if id(tensor) in names and "exp_avg_sq" in state:
                    moment = state.get("max_exp_avg_sq", state["exp_avg_sq"])
                    correction = 1 - group["betas"][1] ** float(state["step"])
                    found[names[id(tensor)]] = moment.detach() / correction
                    eps.add(group["eps"])
        if len(eps) != 1:
            raise ValueError(
                "Expected an optimizer such as AdamW, after steps on tensors of the module and "
                f"with one eps, got {type(optimizer).__name__} with {len(found)} second moments "
                f"and the eps {sorted(eps)}; give v={{name: second moment}} by hand."
            )
        return cls(found, eps.pop())

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # noqa: N803, as scikit-learn names it
        return f"PreconditionedL2(v=<{type(self.v).__name__}>, eps={self.eps})"

    def _weighted(self, params: Params) -> dict[str, tuple[Tensor, Tensor]]:
        v = _not_negative(params, self.v, "a second moment of the gradient")
        return {name: (v[name].sqrt() + self.eps, tensor) for name, tensor in params.items()}


def _from_center(params: Params, center: Any) -> Params:
    """Differences from a center."""
    own = _matched(params, center, "a center")
    return {name: tensor - own[name] for name, tensor in params.items()}


def _not_negative(params: Params, values: Any, what: str) -> Params:
    """Values for every tensor, none of them below zero."""
    found = _matched(params, values, what)
    for name, own in found.items():
        if not bool((own >= 0).all()):
            raise ValueError(f"Expected {what} to be >= 0, got {float(own.min())} for {name!r}.")
    return found


def _matched(params: Params, values: Any, what: str) -> Params:
    """What is given for every tensor, in its shape and type."""
    own = own_names(values, what)
    missing = [name for name in params if name not in own]
    if missing:
        raise ValueError(
            f"Expected {what} for {list(params)}, got one for {list(own)}: {missing} missing; "
            "add them, or restrict the penalty by .on(...)."
        )
    found = {}
    for name, tensor in params.items():
        value = as_tensor(own[name]).detach().to(tensor)
        if value.shape != tensor.shape:
            raise ValueError(
                f"Expected {what} of shape {tuple(tensor.shape)} for {name!r}, got "
                f"{tuple(value.shape)}."
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"Expected {what} for {name!r} that is finite, got NaN or infinity.")
        found[name] = value
    return found
