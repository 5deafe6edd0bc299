"""Penalties on what a model computes, each a mean over rows of data."""

from __future__ import annotations

from torch import Tensor

from sklearn_implicitreg.penalties.base import Penalty
from sklearn_implicitreg.problem import RowBatch

__all__ = ["ActivationL2"]


class ActivationL2(Penalty):
    """Squared activations of a layer, ``R = mean_i sum_j a_j(x_i)^2`` over the rows.

    Parameters
    ----------
    layer : str
        Name in ``module.named_modules()`` of the layer whose output counts.

    Examples
    --------
    >>> import torch
    >>> from sklearn_implicitreg.penalties import ActivationL2, RowBatch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 1))
    >>> batch = RowBatch.of(net, torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> ActivationL2("0").rows(batch)
    {'activation_l2': tensor([5., 9.])}
    """

    def __init__(self, layer: str):
        self.layer = layer

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """``sum_j a_j^2`` of every row."""
        activation = batch.activation(self.layer).reshape(batch.n_rows, -1)
        return {"activation_l2": activation.square().sum(1)}
