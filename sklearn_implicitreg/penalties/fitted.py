"""The penalty with its estimated coefficients, for a training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.problem import BatchProblem, Params, Problem, RowBatch
from sklearn_implicitreg.problem.frozen import own_names
from sklearn_implicitreg.problem.row_models import RowModel

Coefficients = tuple[tuple[Leaf, tuple[float, ...]], ...]


@dataclass(frozen=True)
class FittedPenalty:
    """``R(theta) = sum_k coef_k * R_k(theta)`` with estimated coefficients.

    Add it to the mean loss of a training loop to state the penalty openly.

    Parameters
    ----------
    leaves : tuple of (Leaf, coefficients)
        The penalties with the tensors they see and their coefficients, term by term.
    tensors : dict of str to tuple of int
        Names and shapes of the tensors that the penalty sees.
    model : callable(params, inputs), optional
        The model's outputs at given parameters, where penalties on rows are among the leaves.

    Examples
    --------
    >>> from sklearn_implicitreg.penalties import L2
    >>> from sklearn_implicitreg.penalties.base import Leaf
    >>> penalty = FittedPenalty(((Leaf(L2(), ("weight",)), (0.5,)),), {"weight": (1,)})
    >>> float(penalty({"weight": torch.tensor([2.0]), "bias": torch.tensor([9.0])}))
    2.0
    """

    leaves: Coefficients
    tensors: Mapping[str, tuple[int, ...]]
    model: RowModel | None = None

    @classmethod
    def of(cls, leaves: Coefficients, problem: Problem) -> FittedPenalty:
        """The penalty of a problem's tensors, with its model where a leaf needs it."""
        needed = any([needs_rows(leaf) for leaf, _ in leaves])
        model = next(problem.here.row_batches(problem.params)).model if needed else None
        return cls(leaves, problem.shapes, model)

    def __call__(
        self,
        params: nn.Module | Mapping[str, Tensor],
        X: Any = None,
        y: Any = None,
        sample_weight: Any = None,
    ) -> Tensor:
        """Value at a module or at a dict of parameters, differentiable with respect to both.

        Penalties on data need X, some also y: their value is that of these rows, of the module in
        the mode it is in.

        Parameters
        ----------
        params : torch.nn.Module or dict of str to Tensor
            Must hold the tensors in ``self.tensors``; it may be wrapped by ``torch.compile``.
        X, y : Tensor or array, or dict or tuple of these, optional
            Rows, for penalties on data.
        sample_weight : array of shape (n,), optional
            Weights of the rows.

        Returns
        -------
        value : Tensor of shape ()

        Raises
        ------
        ValueError
            If a tensor is missing or of another shape, or the rows for a penalty on rows are.
        TypeError
            If it is neither a module nor a dict of tensors.
        """
        named = named_tensors(params, self.tensors)
        batch = None
        if X is not None and any(needs_rows(leaf) for leaf, _ in self.leaves):
            batch = self._batch(params, X, y, sample_weight)
        return self.at(named, batch)

    def at(self, params: Params, rows: Problem | None) -> Tensor:
        """Value at a dict of parameters, for penalties on data that of given rows.

        Parameters
        ----------
        params : dict of str to Tensor
            The tensors in ``self.tensors``.
        rows : Problem or None
            Rows with their model.

        Returns
        -------
        value : Tensor of shape ()
        """
        total = params[next(iter(self.tensors))].new_zeros(())
        for leaf, coefs in self.leaves:
            seen = {name: params[name] for name in leaf.names}
            there = rows if needs_rows(leaf) else None
            values = torch.cat([v.reshape(-1) for v in leaf.penalty.terms(seen, there).values()])
            total = total + (values @ values.new_tensor(coefs)).to(total)
        return total

    def _batch(
        self, params: nn.Module | Mapping[str, Tensor], X: Any, y: Any, sample_weight: Any
    ) -> Problem:
        if self.model is None:
            raise ValueError("Expected a module for a penalty on rows, got parameters alone.")
        if isinstance(params, nn.Module):
            batch = RowBatch.of(params, X, y, sample_weight, None, self.model.loss)
        else:
            module = getattr(self.model, "module", None)
            others = {} if module is None else own_names(module, "parameters")
            named = others | own_names(params, "parameters")
            batch = RowBatch.at(self.model, named, X, y, sample_weight, None)
        random = any(getattr(leaf.penalty, "stochastic", False) for leaf, _ in self.leaves)
        return cast(Problem, BatchProblem.of(batch.seeing(self.tensors), drawn=random))


def needs_rows(leaf: Leaf) -> bool:
    """Whether a penalty is a function of rows of data, or of the loss on them."""
    return leaf.penalty.on_rows or hasattr(leaf.penalty, "full_gradient")


def named_tensors(
    params: nn.Module | Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Parameters of a module or a dict by their own names; those expected have their shapes."""
    given = own_names(params, "parameters")
    named = {name: torch.as_tensor(value) for name, value in given.items()}
    missing = [name for name in shapes if name not in named]
    if missing:
        raise ValueError(
            f"Expected parameters named {list(shapes)}, got {list(named)}: {missing} missing."
        )
    for name, shape in shapes.items():
        found = tuple(named[name].shape)
        if [n for n in found if n != 1] != [n for n in shape if n != 1]:
            raise ValueError(
                f"Expected {name!r} of shape {shape}, that of the fitted model, got {found}."
            )
        named[name] = named[name].reshape(shape)  # an axis of length one more or less
    return named
