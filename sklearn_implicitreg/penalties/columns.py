"""Gradients of one penalty's terms: in closed form, all tensors at once, or by autograd."""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty
from sklearn_implicitreg.penalties.held import check_parts
from sklearn_implicitreg.problem import Params, Problem, closing, mean_over_rows

TensorGradient = Callable[[str, Tensor], dict[str, Tensor]]


class LeafColumns(ABC):
    """Columns of one leaf of a family, in float64, tensor by tensor."""

    closed_form = False  # whether they can be evaluated at other values of one tensor
    elementwise = False  # whether they can be evaluated on any piece of a tensor
    everywhere = False  # whether tensors that the leaf does not see can have columns too
    leaf: Leaf
    terms: tuple[str, ...]

    @abstractmethod
    def columns(self, name: str, tensor: Tensor) -> list[Tensor]:
        """Columns for one tensor; zero where the leaf does not see it."""

    def beside(self, name: str, tensor: Tensor, step: Tensor) -> list[Tensor]:
        """Columns for one tensor, a tiny step away from the kinks."""
        return self.columns(name, tensor + step)


class ClosedForm(LeafColumns):
    """Columns of a leaf whose penalty knows its gradient with respect to one tensor."""

    closed_form = True

    def __init__(self, leaf: Leaf, params: Params, gradient: TensorGradient):
        self.leaf = leaf
        self.elementwise = leaf.penalty.elementwise
        self._gradient = gradient
        first = leaf.names[0]
        tensor = params[first].detach()
        # Names of terms need no more than one number where every number is alike.
        seen = tensor.reshape(-1)[:1] if self.elementwise else tensor.double()
        self.terms = tuple(gradient(first, seen))

    def columns(self, name: str, tensor: Tensor) -> list[Tensor]:
        """Columns for one tensor; zero where the leaf does not see it."""
        if name not in self.leaf.names:
            return [torch.zeros_like(tensor) for _ in self.terms]
        columns = self._gradient(name, tensor)
        return list(map(columns.__getitem__, self.terms))

    def beside(self, name: str, tensor: Tensor, step: Tensor) -> list[Tensor]:
        """Columns a tiny step away from the kinks, which not all are where the tensor is zero."""
        own = getattr(self.leaf.penalty, "beside", None)
        if own is None or name not in self.leaf.names:
            return super().beside(name, tensor, step)
        columns = own(name, tensor, step)
        return list(map(columns.__getitem__, self.terms))


class FullGradients(LeafColumns):
    """Columns of a leaf that were computed for all tensors at once and are kept."""

    everywhere = True

    def __init__(self, leaf: Leaf, columns: dict[str, Params]):
        self.leaf = leaf
        self._columns = columns
        self.terms = tuple(columns)

    def columns(self, name: str, tensor: Tensor) -> list[Tensor]:
        """Columns for one tensor; a penalty may reach beyond the tensors that the leaf sees."""
        nothing = torch.zeros_like(tensor)
        return [column.get(name, nothing).to(tensor) for column in self._columns.values()]


def columns_of_leaves(
    leaves: Sequence[Leaf], params: Params, problem: Problem
) -> list[LeafColumns]:
    """Columns of several leaves; the penalties on rows share one pass over the data."""
    if problem.in_shards:
        check_parts(leaves)
    kinds = [leaf.penalty.on_rows for leaf in leaves]
    on_rows = list(itertools.compress(leaves, kinds))
    means = iter(_mean_gradients(on_rows, params, problem) if on_rows else [])
    found: list[LeafColumns] = []
    for leaf, is_mean in zip(leaves, kinds, strict=True):
        found.append(FullGradients(leaf, next(means)) if is_mean else _one(leaf, params, problem))
    return found


def _one(leaf: Leaf, params: Params, problem: Problem) -> LeafColumns:
    gradient: TensorGradient | None = getattr(leaf.penalty, "gradient", None)
    if gradient is not None:
        return ClosedForm(leaf, params, gradient)
    full = getattr(leaf.penalty, "full_gradient", None)
    if full is None:
        return FullGradients(leaf, _gradients(leaf, params, problem))
    seen = {name: params[name].detach().double() for name in leaf.names}
    return FullGradients(leaf, full(seen, problem))


def _gradients(leaf: Leaf, params: Params, problem: Problem) -> dict[str, Params]:
    with torch.enable_grad():
        seen = _as_leaves(params, leaf.names)
        try:
            values = leaf.penalty.terms(seen, problem)
        except RuntimeError as error:
            if "in-place" not in str(error):
                raise
            raise ValueError(
                f"Expected {type(leaf.penalty).__name__} to leave its parameters as they are, got "
                f"an operation in place: {error} Compute new tensors, as p.mul(2) does."
            ) from error
        check_terms(leaf.penalty, values)
        entries = {
            term if value.ndim == 0 else f"{term}[{i}]": entry
            for term, value in values.items()
            for i, entry in enumerate(value.reshape(-1))
        }
        return {term: gradient_of(entry, seen) for term, entry in entries.items()}


def _mean_gradients(
    leaves: list[Leaf], params: Params, problem: Problem
) -> list[dict[str, Params]]:
    """Gradients of means over rows, block by block: one forward pass, a backward per term."""
    seen = _as_leaves(params, tuple(dict.fromkeys(n for leaf in leaves for n in leaf.names)))

    def summed(here: Problem) -> tuple[dict[tuple[int, str, str], Tensor], float]:
        totals: dict[tuple[int, str, str], Tensor] = {}
        weight, drawn, rngs = 0.0, None, []
        with torch.enable_grad(), closing(here.row_batches(seen)) as batches:
            for batch in batches:
                if batch.rng is not drawn:  # its own numbers for every leaf, whatever others draw
                    drawn, rngs = batch.rng, [copy.deepcopy(batch.rng) for _ in leaves]
                for i, (leaf, rng) in enumerate(zip(leaves, rngs, strict=True)):
                    own = {name: seen[name] for name in leaf.names}
                    values = leaf.penalty.rows(batch.seeing(leaf.names).seeded(rng))
                    for term, value in batch.summed(values, type(leaf.penalty).__name__).items():
                        for name, slope in gradient_of(value, own).items():
                            column = totals.setdefault((i, term, name), torch.zeros_like(slope))
                            column += slope
                weight += batch.total_weight
                del batch, value, values  # with them the graph, before the next block is read
        return totals, weight

    found: list[dict[str, Params]] = [{} for _ in leaves]
    for (i, term, name), mean in mean_over_rows(problem, summed).items():
        found[i].setdefault(term, {})[name] = mean
    return found


def _as_leaves(params: Params, names: tuple[str, ...]) -> Params:
    return {name: params[name].detach().double().clone().requires_grad_() for name in names}


def gradient_of(value: Tensor, params: Params) -> Params:
    """Gradient with respect to every tensor; zero where the value does not depend on it."""
    if not value.requires_grad:
        return {name: torch.zeros_like(t) for name, t in params.items()}
    grads = torch.autograd.grad(value, list(params.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(t) if g is None else g.detach()
        for (name, t), g in zip(params.items(), grads, strict=True)
    }


def check_terms(penalty: Penalty, values: object) -> None:
    """Raise what is wrong with ``terms`` that are no non-empty dict of finite tensors."""
    name = type(penalty).__name__
    if not isinstance(values, dict) or not values:
        raise TypeError(
            f"Expected {name}.terms to return a dict of term name to Tensor, got {values!r}."
        )
    for term, value in values.items():
        if not isinstance(term, str) or not isinstance(value, Tensor) or value.ndim > 1:
            raise TypeError(
                f"Expected every term of {name} to be a scalar or vector Tensor under a string, "
                f"got {term!r}: {value!r}."
            )
        if value.is_complex() or not value.is_floating_point():
            raise TypeError(
                f"Expected real values of a floating-point type, got {term!r} of {name} = {value}; "
                "a number such as a rank has no gradient."
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"Expected finite values, got {term!r} of {name} = {value}.")
