"""The penalty with its estimated coefficients, for a training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.problem.frozen import own_name

__all__ = ["FittedPenalty", "named_tensors"]


@dataclass(frozen=True)
class FittedPenalty:
    """``R(theta) = sum_k coef_k * R_k(theta)`` with estimated coefficients.

    Add it to the mean loss of a training loop to state openly what the trained model
    behaved as if it had been trained with.

    Parameters
    ----------
    leaves : tuple of (Leaf, coefficients)
        The penalties with the tensors they see and their coefficients, term by term.
    tensors : tuple of str
        Names of the tensors that the penalty sees.

    Examples
    --------
    >>> import torch
    >>> from sklearn_implicitreg.penalties import L2
    >>> from sklearn_implicitreg.penalties.base import Leaf
    >>> penalty = FittedPenalty(((Leaf(L2(), ("weight",)), (0.5,)),), ("weight",))
    >>> float(penalty({"weight": torch.tensor([2.0]), "bias": torch.tensor([9.0])}))
    2.0
    """

    leaves: tuple[tuple[Leaf, tuple[float, ...]], ...]
    tensors: tuple[str, ...]

    def __call__(self, params: nn.Module | Mapping[str, Tensor]) -> Tensor:
        """Value at a module or at a dict of parameters, differentiable with respect to both.

        Parameters
        ----------
        params : torch.nn.Module or dict of str to Tensor
            Must hold the tensors in ``self.tensors``; it may be wrapped by ``torch.compile``.

        Returns
        -------
        value : Tensor of shape ()

        Raises
        ------
        ValueError
            If a tensor is missing.
        TypeError
            If it is neither a module nor a dict of tensors.
        """
        named = named_tensors(params, self.tensors)
        total = torch.zeros((), dtype=named[self.tensors[0]].dtype)
        total = total.to(named[self.tensors[0]].device)
        for leaf, coefs in self.leaves:
            seen = {name: named[name] for name in leaf.names}
            values = torch.cat([v.reshape(-1) for v in leaf.penalty.terms(seen, None).values()])
            total = total + values @ values.new_tensor(coefs)
        return total


def named_tensors(
    params: nn.Module | Mapping[str, Tensor], tensors: tuple[str, ...]
) -> dict[str, Tensor]:
    """Parameters of a module or a dict by their own names; those expected must be there."""
    if not isinstance(params, nn.Module | Mapping):
        raise TypeError(
            f"Expected a torch module or a dict of name to Tensor, got "
            f"{type(params).__name__}; give {{name: tensor}} for {list(tensors)}."
        )
    given = params.named_parameters() if isinstance(params, nn.Module) else params.items()
    named = {own_name(name): tensor for name, tensor in given}
    missing = [name for name in tensors if name not in named]
    if missing:
        raise ValueError(
            f"Expected parameters named {list(tensors)}, got {list(named)}: {missing} missing."
        )
    return named
