"""One block of rows with the model at given parameters: what a penalty on data looks at."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping
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
    function,
    instance,
    shown,
)
from sklearn_implicitreg.problem.row_models import (
    ERRORS,
    GivenLosses,
    ModuleCall,
    RowModel,
    as_tensor,
    collected,
    first_tensor,
    input_of,
    map_leaves,
    raise_in_words,
)
from sklearn_implicitreg.problem.vectors import Params, wide

_OF = {
    "X": Allowed(lambda X: X is not None, ("the inputs of the rows",)),
    "module": instance("an nn.Module", nn.Module),
    "random_state": NOTHING | SEED,
    "loss": NOTHING | instance("an unreduced loss of torch", nn.Module) | function("(output, y)"),
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
        mean_mass: Callable[[], float] | None = None,
        factor: Tensor | None = None,
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
        self._mean_mass = mean_mass  # of all rows, where this is one block of several
        self._factor = factor  # of the losses of every row, or of each of its outputs
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
        loss: Any = None,
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
        loss : callable(output, target), default=None
            Loss that returns one number per row, such as ``nn.MSELoss(reduction="none")``, for
            penalties that look at it.

        Returns
        -------
        RowBatch
        """
        given = {"module": module, "X": X, "random_state": random_state, "loss": loss}
        check("RowBatch.of", given, _OF)
        module = inner_module(module)
        params: Params = {own_name(name): p for name, p in module.named_parameters()}
        if sample_weight is not None:
            sample_weight = as_numbers("sample_weight", sample_weight)
        # A loss by rows that comes from a fitted penalty is one already.
        losses = loss if loss is None or hasattr(loss, "each") else GivenLosses(loss)
        model = ModuleCall(module, loss=losses)
        batch = cls.at(model, params, X, y, sample_weight, random_state)
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
    def given_target(self) -> Any:
        """Targets of the rows, None if there are none."""
        return self._target

    @property
    def prepared(self) -> Any:
        """Targets as the loss compares them with the outputs: numbers of classes, not labels."""
        loss = self.model.loss
        return self.target if loss is None else loss.prepare(self.outputs, self.target)

    @property
    def outputs(self) -> Any:
        """Outputs of the model, by one forward pass however often they are read."""
        if "outputs" not in self._cache:
            module = getattr(self.model, "module", None)
            with collected(self.model.layers) as calls:
                try:
                    self._cache["outputs"] = self.call(self.inputs)
                except ERRORS as error:
                    if module is None:
                        raise
                    raise_in_words(error, input_of(module, self.inputs))
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

    def losses(self, outputs: Any = None, target: Any = None) -> Tensor:
        """Loss of every row; their weighted mean over all rows is the loss of the training.

        Parameters
        ----------
        outputs, target : optional
            Other outputs, or other targets, than those of the rows.

        Returns
        -------
        losses : Tensor of shape (n,)

        Raises
        ------
        ValueError
            If the loss is not known, or gives no number per row.
        """
        if self.model.loss is None:
            raise ValueError(
                "Expected a loss for this penalty, got a model alone; give one that returns a "
                "number per row, as RowBatch.of(module, X, y, loss=...)."
            )
        target = self.target if target is None else target
        values, mass = self.model.loss.each(self.outputs if outputs is None else outputs, target)
        values = self.weighed(values)
        if mass is None:
            return values
        if self._mean_mass is not None:
            return values / self._mean_mass()
        return values * (self.total_weight / float((wide(self.weight) * wide(mass)).sum()))

    def weighed(self, values: Tensor) -> Tensor:
        """Sums over the outputs of a linear model, each with its weight in the loss."""
        values = values if self._factor is None else values * self._factor
        return values.reshape(self.n_rows, -1).sum(1)

    @property
    def coef(self) -> Tensor | None:
        """Coefficients of a linear model, of shape (K, p), without intercept; None of a net."""
        coef = getattr(self.model, "coef", None)
        return None if coef is None else coef(self._at)[:, :-1]

    def squared_weights(self, inputs: Any) -> Any:
        """Outputs of a module at other inputs with all of its weights squared."""
        module = getattr(self.model, "module", None)
        own = {} if module is None else dict(module.named_parameters())
        named = {own_name(name): t for name, t in own.items()} | self._at
        weights = {own_name(name) for name in own}
        squares = {name: t.square() for name, t in named.items() if name in weights}
        return self.model(named | squares, inputs)

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
    def trained(self) -> list[str]:
        """Names of the trained tensors of the model, among those that the batch has."""
        module = getattr(self.model, "module", None)
        if module is None:
            return list(self._at)
        named = module.named_parameters()
        return [own_name(n) for n, t in named if t.requires_grad and own_name(n) in self._at]

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
            if not value.is_floating_point():
                raise TypeError(
                    "Expected real values of a floating-point type for every row, got "
                    f"{value.dtype} as {term!r} of {owner}; a rank, say, has no gradient."
                )
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

    def seeded(self, seed: int | np.random.Generator) -> RowBatch:
        """The same batch with a generator of its own."""
        view = copy.copy(self)
        view._rng = np.random.default_rng(seed)
        return view

    def part(self, rows: Any) -> RowBatch:
        """Some of the rows, by a slice or by numbers, with a forward pass of their own."""
        part = copy.copy(self)
        part.inputs = map_leaves(lambda t: t[rows], self.inputs)
        part._target = map_leaves(lambda t: t[rows], self._target)
        part.weight = self.weight[rows]
        part._factor = None if self._factor is None else self._factor[rows]
        part.n_rows = len(part.weight)
        part._cache = {}
        return part
