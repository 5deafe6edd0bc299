"""Penalties on what layers compute, and penalties given as callables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from itertools import groupby
from typing import ClassVar

from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty
from sklearn_implicitreg.problem import Params, Problem, RowBatch
from sklearn_implicitreg.problem.parameters import LAYER, Allowed, takes


class ActivationL2(Penalty):
    """Squared activations of a layer, ``R = mean_i sum_j a_j(x_i)^2`` over the rows.

    Parameters
    ----------
    layer : str
        Name in ``module.named_modules()`` of the layer whose output counts.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 1))
    >>> batch = RowBatch.of(net, torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> ActivationL2("0").rows(batch)
    {'activation_l2': tensor([5., 9.])}
    """

    _allowed: ClassVar = {"layer": LAYER}

    def __init__(self, layer: str):
        self.layer = layer

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """``sum_j a_j^2`` of every row."""
        activation = batch.activation(self.layer).reshape(batch.n_rows, -1)
        return {"activation_l2": activation.square().sum(1)}


class ActivationL1(Penalty):
    """Absolute activations of a layer, ``R = mean_i sum_j |a_j(x_i)|`` over the rows.

    The sparsity penalty of autoencoders [1]_. An activation of exactly zero counts as flat, which
    is right behind a ReLU.

    Parameters
    ----------
    layer : str
        Name in ``module.named_modules()`` of the layer whose output counts.

    References
    ----------
    .. [1] Glorot, Bordes and Bengio (2011), Deep Sparse Rectifier Neural Networks.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 1))
    >>> batch = RowBatch.of(net, torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    >>> ActivationL1("0").rows(batch)
    {'activation_l1': tensor([3., 3.])}
    """

    _allowed: ClassVar = {"layer": LAYER}

    def __init__(self, layer: str):
        self.layer = layer

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """``sum_j |a_j|`` of every row."""
        activation = batch.activation(self.layer).reshape(batch.n_rows, -1)
        return {"activation_l1": activation.abs().sum(1)}


class Callables(Penalty):
    """Penalties given as functions of the parameters, or of the parameters and a block of rows.

    Parameters
    ----------
    functions : dict of str to callable
        ``function(params)`` returns a scalar; ``function(params, batch)`` one number per row of
        the :class:`RowBatch`. ``params`` is the dict of the tensors in scope.

    Examples
    --------
    >>> import torch
    >>> from sklearn_implicitreg.penalties import Callables
    >>> family = Callables({"cube": lambda params: params["w"].abs().pow(3).sum()})
    >>> float(family.terms({"w": torch.tensor([1.0, -2.0])}, None)["cube"])
    9.0
    """

    _allowed: ClassVar = {
        "functions": Allowed(
            lambda given: (
                isinstance(given, Mapping)
                and len(given) > 0
                and all(callable(f) and (takes(f, 1) or takes(f, 2)) for f in given.values())
            ),
            ("a dict of name to callable(params) or callable(params, batch)",),
        )
    }

    def __init__(self, functions: Mapping[str, Callable[..., Tensor]]):
        self.functions = functions

    @property
    def on_rows(self) -> bool:
        """Whether all functions are of rows."""
        return all(_takes_batch(function) for function in self.functions.values())

    def count_terms(self) -> float:
        """One for each function."""
        return float(len(self.functions))

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """Functions of parameters and functions of rows apart, in the order given."""
        self.check_parameters()
        runs = groupby(self.functions.items(), key=lambda item: _takes_batch(item[1]))
        return [Leaf(Callables(dict(run)), tuple(params)) for _, run in runs]

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Value of every function; the mean over rows where it is one of rows."""
        self.check_parameters()
        if self.on_rows:
            return super().terms(params, problem)
        values: dict[str, Tensor] = {}
        for name, function in self.functions.items():
            alone = Callables({name: function})
            if alone.on_rows:
                values |= alone.terms(params, problem)
            else:
                values[name] = _called(name, function, params)
        return values

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """Numbers of every function."""
        functions = self.functions.items()
        return {name: _called(name, function, batch.params, batch) for name, function in functions}


def _called(name: str, function: Callable[..., Tensor], params: Params, *batch: RowBatch) -> Tensor:
    """What a function of the user's returns; its usual mistakes in words."""
    try:
        return function(params, *batch)
    except KeyError as error:
        if not error.args or error.args[0] in params:
            raise
        raise ValueError(
            f"Expected the function {name!r} to use parameters among {list(params)}, got KeyError: "
            f"{error}; choose others by params= or .on(...)."
        ) from error
    except RuntimeError as error:
        if "numpy()" not in str(error):
            raise
        raise TypeError(
            f"Expected the function {name!r} to use operations of torch, which have derivatives, "
            "got NumPy; write torch.sum for np.sum."
        ) from error


def _takes_batch(function: Callable[..., Tensor]) -> bool:
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    try:
        needed = signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return False
    return sum(p.kind in kinds and p.default is Parameter.empty for p in needed) == 2
