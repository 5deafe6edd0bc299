"""Correlation of the units of a layer: a penalty on moments over all rows."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty
from sklearn_implicitreg.penalties.columns import columns_of_leaves
from sklearn_implicitreg.problem import Params, Problem, RowBatch, closing
from sklearn_implicitreg.problem.parameters import LAYER
from sklearn_implicitreg.problem.vectors import wide


class DeCov(Penalty):
    """Covariance of the units of a layer, ``R = 1/2 (|C|_F^2 - |diag C|^2)`` [1]_.

    C is the covariance (divided by the total weight) of the layer's activations over *all* rows,
    which takes two passes. It is no mean over rows: the mean of R over mini-batches, as the value
    in a training loop is, lies above the R of all rows, by about one part per row of a batch.

    Parameters
    ----------
    layer : str
        Name in ``module.named_modules()`` of the layer whose output counts.

    References
    ----------
    .. [1] Cogswell, Ahmed, Girshick, Zitnick and Batra (2016), Reducing Overfitting in Deep
       Networks by Decorrelating Representations.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 1))
    >>> batch = RowBatch.of(net, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    >>> DeCov("0").terms(batch.params, batch)  # covariance 1
    {'decov': tensor(1., dtype=torch.float64)}
    """

    _allowed: ClassVar = {"layer": LAYER}

    def __init__(self, layer: str):
        self.layer = layer

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Value of the term; it can be differentiated once with respect to the parameters."""
        value, spread = self._at(params, problem)
        if any(t.requires_grad for t in params.values()):
            along = spread.terms(params, problem)["decov"]
            value = value + along - along.detach()
        return {"decov": value}

    def full_gradient(self, params: Params, problem: Problem) -> dict[str, Params]:
        """Gradient of the term, in a second pass over the rows."""
        _, spread = self._at(params, problem)
        (columns,) = columns_of_leaves([Leaf(spread, tuple(params))], params, problem)
        return {"decov": {name: columns.columns(name, t)[0] for name, t in params.items()}}

    def _at(self, params: Params, problem: Problem | None) -> tuple[Tensor, _Spread]:
        """Value, and the mean over rows whose gradient is that of R."""
        self.check_parameters()
        if problem is None:
            raise ValueError(
                "DeCov is a covariance over rows of data, and got the parameters alone; give X and "
                "y."
            )
        weight: float = 0.0
        mean: Any = 0.0
        second: Any = 0.0
        there = {name: t.detach() for name, t in params.items()}
        with torch.no_grad(), closing(problem.row_batches(there)) as batches:
            for batch in batches:
                a, w = _activation(batch, self.layer), wide(batch.weight)
                # Sums about the mean so far, by the update of Chan, Golub and LeVeque.
                own = float(w.sum())
                center = (w @ a) / max(own, 1e-300)
                away = center - mean
                share = own / max(weight + own, 1e-300)
                second = second + a.sub(center).T @ (w[:, None] * a.sub(center))
                second = second + weight * share * torch.outer(away, away)
                mean, weight = mean + share * away, weight + own
        covariance = second / weight
        covariance = covariance - covariance.diag().diag()
        return covariance.square().sum() / 2, _Spread(self.layer, mean, covariance)


class _Spread(Penalty):
    """``(a - m)' C (a - m)`` of every row, C and m fixed."""

    def __init__(self, layer: str, mean: Tensor, matrix: Tensor):
        self.layer = layer
        self.mean = mean
        self.matrix = matrix

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        away = _activation(batch, self.layer) - self.mean
        return {"decov": ((away @ self.matrix) * away).sum(1)}


def _activation(batch: RowBatch, layer: str) -> Tensor:
    return wide(batch.activation(layer).reshape(batch.n_rows, -1))
