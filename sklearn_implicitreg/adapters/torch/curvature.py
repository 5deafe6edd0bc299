"""Products of a loss's second derivatives with vectors."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sklearn_implicitreg.problem import (
    BlockGradient,
    Indices,
    LossGradient,
    Params,
    Problem,
    Weights,
    closing,
    flat,
    profiled,
    times,
    zeros_of,
)
from sklearn_implicitreg.problem.row_models import is_out_of_memory

# Each column is a pass over the rows.
_MAX_HESSIAN = 2000
_MAX_CURVATURE = 3000  # without a second derivative of the module
_HELD = 2**28  # bytes of graphs that are kept from the mean gradient to the spread about it
_AFFINE_TOL = 1e4  # rounding units that a gradient may be off a straight line by

Scalar = Callable[[Params], Tensor]


def hessian_vector(loss: Scalar, params: Params, vector: Params) -> Params:
    """``H v`` of a scalar function, by forward over reverse mode or by reverse mode twice."""
    # Fused attention has neither a forward rule nor a second derivative.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # torch compiles its own forward rules by a function that it deprecates.
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        try:
            product: Params = torch.func.jvp(torch.func.grad(loss), (params,), (vector,))[1]
            return product
        except (RuntimeError, NotImplementedError):
            return _double_backward(loss, params, vector)


def _double_backward(loss: Scalar, params: Params, vector: Params) -> Params:
    with torch.enable_grad():
        leaves = {name: t.detach().clone().requires_grad_() for name, t in params.items()}
        tensors = list(leaves.values())
        try:
            first = torch.autograd.grad(loss(leaves), tensors, create_graph=True, allow_unused=True)
            seen = [(g, vector[n]) for n, g in zip(leaves, first, strict=True) if g is not None]
            inner = torch.stack([(g * v).sum() for g, v in seen]).sum()
            linear = not inner.requires_grad  # the loss has no second derivative
            second = (
                [None] * len(tensors)
                if linear
                else torch.autograd.grad(inner, tensors, allow_unused=True)
            )
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                "Expected a model and a loss that can be differentiated twice, got an operation "
                f"that cannot ({str(error).splitlines()[0]}); replace it, or leave out penalties "
                "on the gradient."
            ) from error
    return {
        name: torch.zeros_like(t) if h is None else h.detach()
        for (name, t), h in zip(leaves.items(), second, strict=True)
    }


class _Batched(Protocol):
    """A problem whose batch gradients can be differentiated once more."""

    @property
    def params(self) -> Params:
        """Trained tensors by name."""
        ...

    @property
    def n_rows(self) -> int | None:
        """Number of rows."""
        ...

    @property
    def masses(self) -> Weights | None:
        """Weight of every row in the mean loss; None where all count as one."""
        ...

    @property
    def leaves(self) -> list[Tensor]:
        """What the batch gradients are differentiated by, in the order of the parameters."""
        ...

    def graphs(self, batches: Sequence[Indices]) -> Iterator[BlockGradient]:
        """Gradients of the loss on batches, with their graphs."""
        ...


def mean_and_spread(
    problem: _Batched, batches: list[Indices], scale: Params | None = None
) -> tuple[LossGradient, Params]:
    """Mean of the batch gradients, and the gradient of their spread about it."""
    # Graphs are kept for the second derivatives as far as there is room.
    held: list[BlockGradient] = []
    row_weights = np.zeros(problem.n_rows or 0)

    def blocks() -> Iterator[BlockGradient]:
        graphs = problem.graphs(batches)
        block, size = _measured(problem, graphs)
        for k, rows in enumerate(batches):
            if k:
                block = next(graphs)
            if k < _HELD // size:
                held.append(block)
            mass = block.weight
            np.add.at(row_weights, rows, 1 / (mass * len(batches)))
            sums = {}
            for name, g in block.sums.items():
                sums[name] = g.detach() / mass
            # One summand of weight 1, without its graph.
            yield replace(
                block, sums=sums, loss=block.loss / mass, weight=1.0, scale=block.scale / mass
            )

    mean = LossGradient.from_blocks(blocks())
    masses = problem.masses
    weight = float(len(row_weights) if masses is None else masses.sum())
    mean = replace(mean, weight=weight, n_rows=int(np.count_nonzero(row_weights)))
    return mean, spread_about(problem, batches, mean.value, held, scale)


def spread_about(
    problem: _Batched,
    batches: list[Indices],
    center: Params,
    held: Sequence[BlockGradient] = (),
    scale: Params | None = None,
) -> Params:
    """``2 mean_k H_k scale (g_k - center)`` by reverse mode twice, from graphs where held."""
    total = zeros_of(problem.params)
    about = {name: g.to(problem.params[name]) for name, g in center.items()}
    with closing(problem.graphs(batches[len(held) :])) as graphs:
        for block in itertools.chain(held, graphs):
            mass, outputs = block.weight, []
            away: Params = {}
            for name, g in about.items():
                own = block.sums[name]
                if own.requires_grad:
                    outputs.append(own)
                    away[name] = own.detach() / mass - g
            if not outputs:
                continue  # the loss has no second derivative
            vectors = list(times(away, scale).values())
            products = torch.autograd.grad(outputs, problem.leaves, vectors, allow_unused=True)
            for into, product in zip(total.values(), products, strict=True):
                if product is not None:
                    into.add_(product, alpha=2 / (mass * len(batches)))
    return total


def _measured(problem: _Batched, graphs: Iterator[BlockGradient]) -> tuple[BlockGradient, int]:
    """The first batch gradient, and the bytes that its graph holds."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block = next(graphs)
    for leaf in problem.leaves:
        sizes.pop(leaf.untyped_storage().data_ptr(), None)
    return block, sum(sizes.values()) + sum(g.nbytes for g in block.sums.values())


def quadratic_hessian(problem: Problem) -> npt.NDArray[np.float64]:
    """Hessian of a quadratic loss, from its products with unit vectors."""
    whole = problem.whole()
    sizes = [tensor.numel() for tensor in whole.params.values()]
    if sum(sizes) > _MAX_HESSIAN:
        raise ValueError(
            f"Expected at most {_MAX_HESSIAN} parameters for a Hessian, got {sum(sizes)}; give a "
            "smaller model, or a linear model of scikit-learn, whose Hessian is in closed form."
        )
    if not _affine_gradient(whole):
        raise problem._not_quadratic()
    columns = [flat(whole.hvp(unit)) for unit in _units(whole.params)]
    hessian = np.stack(columns, axis=1)
    scope = np.repeat([name in problem.params for name in whole.params], sizes)
    return profiled((hessian + hessian.T) / 2, scope)


def gauss_newton(
    problem: Problem, calls: Iterator[tuple[Callable[[Params], Any], Callable[[Any], Any]]]
) -> npt.NDArray[np.float64]:
    """``mean_i J_i' H_i J_i``: J_i of the outputs of a row, H_i the Hessian of its loss in them."""
    p, weight = sum(t.numel() for t in problem.params.values()), 0.0
    if p > _MAX_CURVATURE:
        raise ValueError(
            f"Expected at most {_MAX_CURVATURE} parameters for the curvature of a network, got "
            f"{p}; give a smaller one."
        )
    total = np.zeros((p, p))
    for call, summed in calls:
        leaves = [t.detach().clone().requires_grad_() for t in problem.params.values()]
        with torch.enable_grad():
            output = call(dict(zip(problem.params, leaves, strict=True)))
            if not isinstance(output, Tensor):
                raise ValueError(
                    "Expected a network with one tensor as its output for its curvature, got "
                    f"{type(output).__name__}."
                )
            value, mass = summed(output)
            slope = torch.autograd.grad(value, output, create_graph=True)[0]
            # Linear in what stands before it, so that its derivative is J times a vector.
            before = torch.zeros_like(output, requires_grad=True)
            back = _joined(output, leaves, before, create_graph=True)
        weight += mass
        if not slope.requires_grad:
            continue  # the loss is linear in the outputs
        for column, unit in enumerate(torch.eye(p, dtype=back.dtype, device=back.device)):
            along = torch.autograd.grad(back, before, unit, retain_graph=True)[0]
            bent = torch.autograd.grad(slope, output, along, retain_graph=True)[0]
            total[:, column] += _joined(output, leaves, bent).detach().cpu().double().numpy()
    return (total + total.T) / (2 * weight)


def _joined(output: Tensor, leaves: list[Tensor], along: Tensor, **how: bool) -> Tensor:
    """Gradient of outputs along a vector, as one vector."""
    options = {"retain_graph": True, "materialize_grads": True, "allow_unused": True} | how
    found = torch.autograd.grad(output, leaves, along, **options)
    return torch.cat([g.reshape(-1) for g in found])


def _affine_gradient(problem: Problem) -> bool:
    """Whether the gradient is affine, to rounding, along a random line: a quadratic loss."""
    generator = torch.Generator().manual_seed(0)
    step = {
        name: max(1.0, float(t.abs().max())) * torch.randn(t.shape, generator=generator).to(t)
        for name, t in problem.params.items()
    }
    gradients = [
        problem.at({name: t + sign * step[name] for name, t in problem.params.items()}).gradient()
        for sign in (-1.0, 0.0, 1.0)
    ]
    down, here, up = (flat(g.value) for g in gradients)
    size = max(max(g.scale, g.norm()) for g in gradients)
    off = float(np.linalg.norm(up - 2 * here + down))
    return off <= _AFFINE_TOL * problem.eps * size


def _units(params: Params) -> Iterator[Params]:
    """Unit vectors in the space of the parameters."""
    for name, tensor in params.items():
        for index in range(tensor.numel()):
            unit = torch.zeros(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
            unit[index] = 1.0
            yield {name: unit.reshape(tensor.shape)}
