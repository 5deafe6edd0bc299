"""Loss, outputs and new starts of a module, as functions of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sklearn_implicitreg.adapters.torch.curvature import hessian_vector
from sklearn_implicitreg.adapters.torch.data import Batch, merged_last
from sklearn_implicitreg.adapters.torch.generators import preserved_rng
from sklearn_implicitreg.adapters.torch.structure import skeleton
from sklearn_implicitreg.problem import ModuleCall, Params, add_to, zeros_of
from sklearn_implicitreg.problem.problem import BatchLoss
from sklearn_implicitreg.problem.row_models import first_tensor

Array = npt.NDArray[np.float64]
OutputCall = Callable[[Params], Any]
SummedLoss = Callable[[Any], tuple[Tensor, float]]


def losses(problem: Any) -> Iterator[BatchLoss]:
    """Those of all batches, of all readings of rows that differ at each."""
    for reading in range(problem.reading, problem.reading + problem.n_passes):
        yield from batch_losses(replace(problem, reading=reading))


def batch_losses(problem: Any) -> Iterator[BatchLoss]:
    """Summed loss and weight of every batch as functions; random numbers begin at the seed."""
    for call, summed in batch_calls(problem):

        def loss(
            params: Params, call: OutputCall = call, summed: SummedLoss = summed
        ) -> tuple[Tensor, float]:
            return summed(call(params))

        yield loss


def batch_calls(problem: Any) -> Iterator[tuple[OutputCall, SummedLoss]]:
    """Outputs of every batch as a function, and their summed loss and weight as another."""
    call = ModuleCall(problem.module, problem.forward)
    # Fused attention has neither a forward rule nor a second derivative.
    with (
        preserved_rng(problem.device, problem._drawn),
        problem.own_kernels(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        for read in merged_last(problem.rows.batches(problem.batch_size), problem.merging):
            batch = problem.to_device(read)

            def output(params: Params, batch: Batch = batch) -> Any:
                return call({n: t.to(problem.device) for n, t in params.items()}, batch.inputs)

            def summed(output: Any, batch: Batch = batch) -> tuple[Tensor, float]:
                target = problem.row_loss.prepare(output, batch.target)
                found: tuple[Tensor, float] = problem.row_loss(output, target, batch.weight)
                return found

            yield output, summed


def outputs_at(problem: Any, params: Params) -> tuple[Array, Array]:
    """Outputs of shape (n, K) and weights of the rows."""
    found, weights = [], []
    with torch.no_grad():
        for batch in problem.row_batches(params):
            output = first_tensor((batch.outputs,)).double()
            if not output.ndim:
                raise ValueError(
                    f"Expected outputs of {problem.model_name} with one entry per row, got its "
                    "loss alone; give `loss=` and a module that returns outputs."
                )
            if isinstance(problem.row_loss.criterion, nn.CrossEntropyLoss):
                output = output - output.mean(dim=1, keepdim=True)  # it sees no common shift
            found.append(output.reshape(batch.n_rows, -1).cpu().numpy())
            weights.append(batch.weight.double().cpu().numpy())
    return np.concatenate(found), np.concatenate(weights)


def hessian_product(problem: Any, vector: Params) -> Params:
    """Hessian of the mean loss times a vector, in one pass."""
    own = problem.params
    wrong = [n for n, v in vector.items() if n not in own or v.shape != own[n].shape]
    if wrong:
        raise ValueError(f"Expected a vector shaped like {list(own)}, got also {wrong}.")
    along = {
        name: vector[name].to(t) if name in vector else torch.zeros_like(t)
        for name, t in own.items()
    }
    total = zeros_of(own)
    weight = mass = 0.0
    for summed in batch_losses(problem):

        def loss(params: Params, summed: BatchLoss = summed) -> Tensor:
            nonlocal mass
            value, mass = summed(params)
            return value

        for name, product in hessian_vector(loss, own, along).items():
            add_to(total[name], product)
        weight += mass
    return {name: product.div_(weight) for name, product in total.items()}


def fresh_params(problem: Any, seed: int) -> Params:
    """Trained parameters as the layers' own ``reset_parameters`` draws them."""
    own = skeleton(problem.module, problem.device, None)
    for parameter in own.parameters():  # whose memory is the user's
        parameter.data = parameter.data.clone()
    with preserved_rng(problem.device, seed), torch.no_grad():
        for name, part in own.named_modules():
            reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
            if reset is not None:
                reset()
            elif any(p.requires_grad for p in part.parameters(recurse=False)):
                raise ValueError(
                    "Expected layers that draw their own start by reset_parameters() for "
                    f"start='fresh', got {type(part).__name__} ({name or 'the module itself'}), "
                    "which has none; write one, or use start='perturbed'."
                )
    named = dict(own.named_parameters())
    return {name: named[name].detach() for name in problem.params}


def masses_of(problem: Any) -> Array | None:
    """Weight of every row in the mean loss; None where all count as one."""
    if not problem.rows.n_rows:
        return None
    found: list[Tensor] = []
    with preserved_rng(problem.device, problem.seed), torch.no_grad():
        for read in problem.rows.batches(problem.batch_size):
            batch = problem.to_device(read)
            target = batch.target
            if problem.row_loss.by_class:  # labels are numbered by the number of outputs
                output = problem.forward(problem.module, batch.inputs)
                target = problem.row_loss.prepare(output, target)
            own = problem.row_loss.masses(target, batch.weight)
            if own is None:
                return None
            found.append(own.double().cpu())
    masses: Array = torch.cat(found).numpy()
    return None if (masses == 1).all() else masses


def mean_mass(problem: Any) -> float:
    """Mean weight that classes, or labels that are not ignored, give a row in the mean loss."""
    if problem.mass_of_row is not None:
        return float(problem.mass_of_row)
    if not problem.row_loss.by_class:
        return 1.0
    mass, weight = mass_and_weight(problem)
    return mass / weight


def mass_and_weight(problem: Any) -> tuple[float, float]:
    """Sums over rows of their weights in the mean loss, and of those that were given."""
    total = weight = 0.0
    with preserved_rng(problem.device, problem._drawn), torch.no_grad():
        for read in problem.rows.batches(problem.batch_size):
            batch = problem.to_device(read)
            mass = problem.row_loss.counts(batch.target)
            if mass is None:
                output = problem.forward(problem.module, batch.inputs)
                mass = problem.row_loss.masses(problem.row_loss.prepare(output, batch.target), None)
            n_rows = len(first_tensor((batch.inputs,)))
            own = torch.ones(n_rows) if batch.weight is None else batch.weight.double().cpu()
            total += float(own.sum() if mass is None else own.double() @ mass.double().cpu())
            weight += float(own.sum())
    return total, weight
