"""Whether a penalty keeps its contract: the check for authors of penalties."""

from __future__ import annotations

import torch
from sklearn.base import clone
from torch import Tensor

from sklearn_implicitreg.penalties.base import Penalty
from sklearn_implicitreg.penalties.columns import check_terms
from sklearn_implicitreg.problem import Params

__all__ = ["check_penalty"]

_STEP = 1e-6  # of the central differences


def check_penalty(penalty: Penalty, params: Params | None = None) -> None:
    """Check that a penalty keeps the contract of :class:`Penalty`.

    Terms are named finite scalars or vectors; a clone has the same terms; a closed-form
    ``gradient`` equals automatic differentiation to 1e-10; autograd equals central differences
    to 1e-6 where the penalty says that it is smooth.

    Parameters
    ----------
    penalty : Penalty
        What is checked.
    params : dict of str to Tensor, default=None
        Where it is checked, in float64; by default at two random tensors, of shapes (3, 4) and
        (3,).

    Raises
    ------
    TypeError, ValueError
        If terms are of the wrong kind.
    AssertionError
        If a gradient is wrong or cloning changes the terms.

    Examples
    --------
    >>> from sklearn_implicitreg.penalties import SmoothL1, check_penalty
    >>> check_penalty(SmoothL1(delta=0.1))
    """
    if not isinstance(penalty, Penalty):
        raise TypeError(f"Expected a Penalty, got {type(penalty).__name__}; subclass Penalty.")
    if params is None:
        generator = torch.Generator().manual_seed(0)
        params = {
            "layer.weight": torch.randn(3, 4, generator=generator, dtype=torch.float64),
            "layer.bias": torch.randn(3, generator=generator, dtype=torch.float64),
        }
    params = {name: tensor.detach().double() for name, tensor in params.items()}
    values = penalty.terms(params, None)
    check_terms(penalty, values)
    again = clone(penalty).terms(params, None)
    if list(again) != list(values):
        raise AssertionError(f"A clone has terms {list(again)} instead of {list(values)}.")
    changed = [term for term, value in values.items() if not torch.equal(value, again[term])]
    if changed:
        raise AssertionError(f"A clone has other values of {changed}.")
    for name in params:
        mask = _smooth(penalty, params, name)
        _check_closed_form(penalty, params, name, values, mask)
        for term, value in values.items():
            for entry in range(value.numel()):
                _check_differences(penalty, params, name, (term, entry), mask)


def _smooth(penalty: Penalty, params: Params, name: str) -> Tensor:
    """Mask of the coordinates at which all parts of the penalty say that they are smooth."""
    mask = torch.ones_like(params[name], dtype=torch.bool)
    for leaf in penalty.leaves(params, None):
        smooth = getattr(leaf.penalty, "smooth", None)
        if smooth is not None and name in leaf.names:
            mask = mask & smooth(name, params[name])
    return mask


def _check_closed_form(
    penalty: Penalty, params: Params, name: str, values: dict[str, Tensor], mask: Tensor
) -> None:
    """Closed form against autograd, for one tensor."""
    gradient = getattr(penalty, "gradient", None)
    if gradient is None:
        return
    closed = gradient(name, params[name])
    if list(closed) != list(values):
        raise AssertionError(f"gradient has terms {list(closed)}, terms has {list(values)}.")
    for term in values:
        if closed[term].shape != params[name].shape:
            raise AssertionError(
                f"gradient of {term!r} at {name!r} has shape {tuple(closed[term].shape)}, the "
                f"tensor has {tuple(params[name].shape)}."
            )
        exact = _autograd(penalty, params, name, (term, 0))
        if not torch.allclose(closed[term][mask], exact[mask], rtol=1e-10, atol=1e-12):
            raise AssertionError(f"gradient of {term!r} at {name!r} is not that of terms.")


def _check_differences(
    penalty: Penalty, params: Params, name: str, entry: tuple[str, int], mask: Tensor
) -> None:
    """Autograd of one entry of a term against central differences, for one tensor."""
    tensor = params[name]
    direction = torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)
    direction = torch.where(mask, direction, 0.0)
    ahead = _value(penalty, params | {name: tensor + _STEP * direction}, entry)
    behind = _value(penalty, params | {name: tensor - _STEP * direction}, entry)
    slope = float(ahead - behind) / (2 * _STEP)
    exact = float((_autograd(penalty, params, name, entry)[mask] * direction[mask]).sum())
    # Written so that NaN fails.
    if not abs(slope - exact) <= 1e-6 * max(1.0, abs(exact)):
        raise AssertionError(
            f"{entry[0]!r} at {name!r}: slope {exact} by autograd, {slope} by differences."
        )


def _value(penalty: Penalty, params: Params, entry: tuple[str, int]) -> Tensor:
    term, index = entry
    return penalty.terms(params, None)[term].reshape(-1)[index]


def _autograd(penalty: Penalty, params: Params, name: str, entry: tuple[str, int]) -> Tensor:
    """Gradient of one entry of a term; zero where it does not depend on the tensor."""
    with torch.enable_grad():
        leaf = params[name].clone().requires_grad_()
        value = _value(penalty, params | {name: leaf}, entry)
        if not value.requires_grad:
            return torch.zeros_like(leaf)
        found = torch.autograd.grad(value, leaf, allow_unused=True)[0]
    return torch.zeros_like(leaf) if found is None else found
