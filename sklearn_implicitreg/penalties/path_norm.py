"""Sums over the paths of a network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_implicitreg.penalties.base import Penalty
from sklearn_implicitreg.problem import RowBatch
from sklearn_implicitreg.problem.row_models import map_leaves

_SUMS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class PathNorm(Penalty):
    """Squared path norm, ``R = sum over paths of the product of squared weights`` [1]_.

    Paths go from an input, or a bias, to an output. They are added up by one forward pass of ones
    through the network with squared weights, its activations left out. The data do not matter but
    for the shape of a row. For feed-forward networks of linear and convolutional layers, whose
    activations are modules such as ``nn.ReLU()``.

    References
    ----------
    .. [1] Neyshabur, Tomioka and Srebro (2015), Norm-Based Capacity Control in Neural Networks.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False))
    >>> for layer, weight in ((net[0], 2.0), (net[2], 3.0)):
    ...     _ = nn.init.constant_(layer.weight, weight)
    >>> batch = RowBatch.of(net, torch.zeros(2, 1))
    >>> PathNorm().terms(batch.params, batch)["path_norm"].item()  # (2 * 3)^2
    36.0
    """

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """The norm of the network, the same for every row."""
        _check_layers(batch.model.layers, getattr(batch.model, "module", None))
        one = map_leaves(lambda t: torch.ones_like(t[:1]), batch.inputs)
        with _without_activations(batch.model.layers):
            value = batch.squared_weights(one).sum()
            _check_sums(batch, one)
        return {"path_norm": value.expand(batch.n_rows)}


def _check_layers(layers: Mapping[str, nn.Module], whole: nn.Module | None) -> None:
    parts = {"": whole, **layers} if whole is not None else {}
    other = {
        type(part).__name__
        for part in parts.values()
        if part is not None
        and not isinstance(part, _SUMS)
        and next(part.parameters(recurse=False), None) is not None
    }
    if whole is None or other:
        raise ValueError(
            "Expected a torch module of linear and convolutional layers for the path norm, got "
            f"{sorted(other) or 'a linear model, whose path norm is l2'}; it has no paths there."
        )


@contextlib.contextmanager
def _without_activations(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Layers of torch's activations return what they get."""
    kinds = nn.ReLU.__module__
    found = [part for part in layers.values() if type(part).__module__ == kinds]
    handles = [part.register_forward_hook(lambda _, args, out: args[0]) for part in found]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_sums(batch: RowBatch, one: Any) -> None:
    """What is left must be affine in the inputs: functions that are no modules would stay."""
    rng = torch.Generator().manual_seed(0)

    def drawn(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=rng).to(tensor)

    first, second = map_leaves(drawn, one), map_leaves(drawn, one)
    both = _joined(first, second)
    points = (first, second, both, map_leaves(torch.zeros_like, one))
    with torch.no_grad():
        a, b, sum_, zero = (batch.squared_weights(point).double() for point in points)
    error = float((sum_ - a - b + zero).abs().max())
    if not error <= 1e3 * torch.finfo(batch.weight.dtype).eps * float(sum_.abs().max()):
        raise ValueError(
            "Expected a network whose activations are modules, such as nn.ReLU(), for the path "
            "norm, got one that is not affine in its inputs without them; name its functions as "
            "modules, or leave out pooling by the maximum."
        )


def _joined(one: Any, other: Any) -> Any:
    """Sums of nested inputs."""
    values: list[Tensor] = []
    map_leaves(values.append, other)
    rest = iter(values)
    return map_leaves(lambda t: t + next(rest), one)
