"""One block of rows with the model at given parameters: what a penalty on data looks at."""

from __future__ import annotations

import contextlib
import copy
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_implicitreg.problem.frozen import inner_module, own_name
from sklearn_implicitreg.problem.parameters import (
    NOTHING,
    SEED,
    Allowed,
    as_numbers,
    check,
    instance,
    shown,
)
from sklearn_implicitreg.problem.row_models import (
    ModuleCall,
    RowModel,
    as_tensor,
    collected,
    first_tensor,
    in_forward,
    map_leaves,
)
from sklearn_implicitreg.problem.vectors import Params, wide

_OF = {
    "X": Allowed(lambda X: X is not None, ("the inputs of the rows",)),
    "module": instance("an nn.Module", nn.Module),
    "random_state": NOTHING | SEED,
}


class RowBatch:
    """A block of rows and the model's outputs on it, differentiable in the parameters.

    ``Penalty.rows`` receives one for every block; :meth:`of` makes one from a module and rows.

    Attributes
    ----------
    params, inputs : dict of str to Tensor; Tensor, or dict or tuple of these
        The parameters that the penalty sees, and the inputs as the model takes them.
    weight, n_rows : Tensor of shape (n,), int
        Sample weights, ones if none were given, and number of rows.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> batch = RowBatch.of(net, torch.ones(5, 2), torch.zeros(5, 1))
    >>> batch.outputs.shape, batch.activation("1").shape, batch.activation("0", inputs=True).shape
    (torch.Size([5, 1]), torch.Size([5, 3]), torch.Size([5, 2]))
    >>> torch.equal(batch.call(2 * batch.inputs), net(2 * torch.ones(5, 2)))
    True
    """

    def __init__(
        self,
        model: RowModel,
        params: Params,
        inputs: Any,
        target: Any = None,
        weight: Tensor | None = None,
        rng: np.random.Generator | int | None = 0,
    ):
        self.model = model
        self.params = params
        self.inputs = inputs
        rows = first_tensor(inputs)
        dtype = rows.dtype if rows.is_floating_point() else None
        ones = torch.ones(len(rows), dtype=dtype, device=rows.device)
        self.n_rows = len(rows)
        self.weight = ones if weight is None else weight
        self._target = target
        self._rng = rng
        self._at = params
        self._cache: dict[str, Any] = {}  # shared by the views that `seeing` makes

    @classmethod
    def of(
        cls,
        module: nn.Module,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        random_state: int | None = 0,
    ) -> RowBatch:
        """Batch of a module, in the mode it is in, at its own parameters.

        Parameters
        ----------
        module : torch.nn.Module
            Its parameters stay in the graph; its buffers are left as they are.
        X : Tensor or array, or dict or tuple of these
            Inputs.
        y, sample_weight : Tensor or array, optional
            Targets and weights of the rows.
        random_state : int or None, default=0
            Seed of ``rng``; None takes one from torch's generator if a number is drawn.

        Returns
        -------
        RowBatch
        """
        given = {"module": module, "X": X, "random_state": random_state}
        check("RowBatch.of", given, _OF)
        module = inner_module(module)
        params: Params = {own_name(name): p for name, p in module.named_parameters()}
        if sample_weight is not None:
            sample_weight = as_numbers("sample_weight", sample_weight)
        batch = cls.at(ModuleCall(module), params, X, y, sample_weight, random_state)
        if not batch.n_rows:
            raise ValueError("Expected at least 1 row of data, got 0.")
        shape, weight = (batch.n_rows,), batch.weight
        if weight.shape != shape or not bool((weight >= 0).all()) or not 0 < weight.sum() < np.inf:
            raise ValueError(
                f"Expected sample_weight of shape {shape}, finite, at or above zero and not all "
                f"zero, got {shown(sample_weight)}."
            )
        # A forward pass in train mode writes to its buffers.
        buffers = {own_name(name): b.clone() for name, b in module.named_buffers()}
        batch._at = params | buffers
        return batch

    @classmethod
    def at(
        cls,
        model: RowModel,
        params: Params,
        X: Any,
        y: Any,
        sample_weight: Any,
        rng: int | None,
    ) -> RowBatch:
        """Batch of a model at given parameters, whose type and device arrays take."""
        like = next(iter(params.values()))

        def tensor(value: Any) -> Tensor:
            made = as_tensor(value)
            return made.to(like.device, like.dtype if made.is_floating_point() else None)

        weight = None if sample_weight is None else tensor(sample_weight)
        return cls(model, params, map_leaves(tensor, X), map_leaves(tensor, y), weight, rng)

    @property
    def target(self) -> Any:
        """Targets of the rows as they were given, in tensors; ValueError if there are none."""
        if self._target is None:
            raise ValueError("Expected targets for this penalty, got X alone; give X and y.")
        return self._target

    @property
    def outputs(self) -> Any:
        """Outputs of the model, by one forward pass however often they are read."""
        if "outputs" not in self._cache:
            module = getattr(self.model, "module", None)
            said = contextlib.nullcontext() if module is None else in_forward(module, self.inputs)
            with said, collected(self.model.layers) as calls:
                self._cache["outputs"] = self.call(self.inputs)
            self._cache["calls"] = calls
        return self._cache["outputs"]

    def call(self, inputs: Any) -> Any:
        """Outputs of the model at the same parameters and other inputs.

        Parameters
        ----------
        inputs : Tensor, or dict or tuple of these
            Shaped as ``self.inputs``; the number of rows is free.

        Returns
        -------
        outputs : Tensor, or what the model returns
        """
        return self.model(self._at, inputs)

    def activation(self, name: str, inputs: bool = False) -> Tensor:
        """What a layer returned, or received, in the pass that gave ``outputs``.

        Parameters
        ----------
        name : str
            Name of the layer in ``module.named_modules()``.
        inputs : bool, default=False
            Whether to take what the layer received.

        Returns
        -------
        activation : Tensor of shape (n, ...)
            The first of several tensors; several calls flattened and joined on the second axis.

        Raises
        ------
        ValueError
            If the layer is not there or not called, or its rows are not as computed.
        """
        layers = self.model.layers
        if not isinstance(name, str) or name not in layers:
            near = difflib.get_close_matches(str(name), layers, n=1, cutoff=0.0)
            hint = f"Did you mean {near[0]!r}?" if near else "The model has none; use outputs."
            raise ValueError(f"Expected a layer among {list(layers)}, got {name!r}. {hint}")
        _ = self.outputs
        calls = self._cache["calls"][name, inputs]
        what = f"the {'inputs' if inputs else 'output'} of layer {name!r}"
        if not calls:
            raise ValueError(f"Expected {what}, but the forward pass did not call the layer.")
        for tensor, version in calls:
            if tensor._version != version:
                raise ValueError(
                    f"Expected {what} to stay as computed, but a later operation changed it in "
                    "place; set inplace=False there, or take a later layer."
                )
            if tensor.shape[:1] != (self.n_rows,):
                raise ValueError(
                    f"Expected {self.n_rows} rows on the first axis of {what}, got shape "
                    f"{tuple(tensor.shape)}."
                )
        tensors: list[Tensor] = [tensor for tensor, _ in calls]
        if len(tensors) == 1:
            return tensors[0]
        return torch.cat([tensor.reshape(self.n_rows, -1) for tensor in tensors], dim=1)

    @property
    def rng(self) -> np.random.Generator:
        """NumPy generator, the same in every pass; in a training loop seeded by torch's."""
        if self._rng is None:
            self._rng = int(torch.randint(2**63 - 1, ()))
        self._rng = np.random.default_rng(self._rng)  # a generator stays itself
        return self._rng

    @property
    def total_weight(self) -> float:
        """Sum of the weights."""
        return float(wide(self.weight).sum())

    def summed(self, values: object, owner: str) -> Params:
        """Weighted float64 sums of what ``rows`` returned, checked: finite numbers, one per row."""
        if not isinstance(values, Mapping) or not values:
            raise TypeError(
                f"Expected {owner}.rows to return a dict of term name to Tensor, got {values!r}."
            )
        for term, value in values.items():
            if not isinstance(value, Tensor) or tuple(value.shape) != (self.n_rows,):
                shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise TypeError(
                    f"Expected {term!r} of {owner} to be one number for each of {self.n_rows} "
                    f"rows, got {shape}; sum over the other axes."
                )
            if value.is_complex():
                raise TypeError(f"Expected real values for every row, got {term!r} of {owner}.")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"Expected finite values for every row, got {term!r} of {owner}.")
        weight = wide(self.weight)
        return {term: (weight * wide(value)).sum() for term, value in values.items()}

    def row_batches(self, params: Params) -> Iterator[RowBatch]:
        """The block alone, at these parameters: a batch stands for a problem of its rows."""
        batch = self
        if any(tensor is not self._at.get(name) for name, tensor in params.items()):
            batch = self.part(slice(None))
            batch._at = self._at | params
        yield batch.seeing(params)

    def seeing(self, names: Any) -> RowBatch:
        """The same batch, with its forward pass, for a penalty that sees some parameters."""
        view = copy.copy(self)
        view.params = {name: self._at[name] for name in names}
        return view

    def seeded(self, seed: int) -> RowBatch:
        """The same batch with a generator of its own."""
        view = copy.copy(self)
        view._rng = np.random.default_rng(seed)
        return view

    def part(self, rows: slice) -> RowBatch:
        """Some of the rows, with a forward pass of their own."""
        part = copy.copy(self)
        part.inputs = map_leaves(lambda t: t[rows], self.inputs)
        part._target = map_leaves(lambda t: t[rows], self._target)
        part.weight = self.weight[rows]
        part.n_rows = len(part.weight)
        part._cache = {}
        return part
