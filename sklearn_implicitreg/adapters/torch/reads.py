"""What a gradient depends on besides the weights and the rows."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from sklearn_implicitreg.adapters.torch.data import map_tensors
from sklearn_implicitreg.adapters.torch.generators import preserved_rng
from sklearn_implicitreg.adapters.torch.structure import state_of
from sklearn_implicitreg.adapters.torch.trial import TRIED_ROWS
from sklearn_implicitreg.problem.frozen import tensors_in
from sklearn_implicitreg.problem.vectors import wide

TorchProblem = Any  # which imports this module


def depends_on(problem: TorchProblem, names: Sequence[str]) -> bool:
    """Whether the gradient is another at other values of what a module holds."""
    held = {part.name: part.value for part in state_of(problem.module)}
    held |= {n: p.detach() for n, p in problem.module.named_parameters()}
    own = {name: torch.as_tensor(held[name]) for name in names if name in held}
    if not own:
        return False
    found = problem.at({}).gradient().value
    # A switch may take the same way at several numbers, and an index be out of range.
    for factor, shift in ((1.5, 1.0), (0.0, 0.0), (0.0, 1.0)):
        moved = {n: (t if t.is_complex() else wide(t)) * factor + shift for n, t in own.items()}
        try:
            changed = problem.at(moved).gradient().value
        except Exception:
            return True
        if any(not torch.equal(t, changed[n]) for n, t in found.items()):
            return True
        if all(t.is_floating_point() for t in own.values()):
            break
    return False


def moved_with_loss(problem: TorchProblem) -> list[str]:
    """Learned parameters, nets shaped as parts of the model, what the loss itself writes to."""
    row_loss = problem.row_loss
    few = problem.rows.few(TRIED_ROWS) if row_loss.custom else None
    found: list[str] = []
    if few is None:
        return found
    criterion = row_loss.criterion
    with (
        preserved_rng(problem.device, problem.seed),
        problem.own_kernels(),
        contextlib.suppress(Exception),  # what fails here fails in the fit, with its reason
    ):
        if isinstance(criterion, nn.Module) and row_loss.inside is None:
            criterion = copy.deepcopy(criterion)  # a loss may write to its buffers
            row_loss = replace(row_loss, criterion=criterion)
        before = _state(criterion)
        batch = problem.to_device(few)
        with torch.no_grad():
            output = map_tensors(_leaf, problem.forward(problem.module, batch.inputs))
        with torch.enable_grad(), _calls() as called:
            total, _ = row_loss(output, row_loss.prepare(output, batch.target), None)
        own = {id(t) for t in (*tensors_in(output), *problem.module.parameters())}
        learned = [leaf for leaf in _leaves(total) if id(leaf) not in own]
        nets = _read(problem.module, [m for m in called if m is not criterion], learned)
        found += [f"a {type(net).__name__}" for net in nets]
        apart = {id(p) for net in nets for p in net.parameters()}
        names = {id(p): name for name, p in _parameters(criterion)}
        for leaf in learned:
            if id(leaf) not in apart:
                found.append(names.get(id(leaf), f"a parameter of shape {tuple(leaf.shape)}"))
        after = _state(criterion)
        found += [name for name, value in after.items() if not _equal(before.get(name), value)]
    return list(dict.fromkeys(found))


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _parameters(criterion: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(criterion, nn.Module):
        yield from criterion.named_parameters()


def _state(criterion: Any) -> dict[str, Any]:
    if not isinstance(criterion, nn.Module):
        return {}
    return {part.name: copy.deepcopy(part.value) for part in state_of(criterion)}


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    return bool(first == second)


@contextlib.contextmanager
def _calls() -> Iterator[list[nn.Module]]:
    """Modules that are called in the block."""
    called: list[nn.Module] = []
    handle = register_module_forward_pre_hook(lambda module, _: called.append(module))
    try:
        yield called
    finally:
        handle.remove()


def _leaves(total: Tensor) -> list[Tensor]:
    """Leaves that a value depends on."""
    found: list[Tensor] = []
    waiting: list[Any] = [total.grad_fn]
    seen = {None}
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [own for own, _ in node.next_functions]
            if hasattr(node, "variable"):
                found.append(node.variable)
    return found


def _read(model: nn.Module, called: list[nn.Module], learned: list[Tensor]) -> list[nn.Module]:
    """Called nets outside of the model that are learned, or shaped as it or a part of it is."""
    inner = {id(part) for net in (model, *called) for part in list(net.modules())[1:]}
    shapes = [own for own in map(_shapes, model.modules()) if own]
    own, leaves = {id(p) for p in model.parameters()}, set(map(id, learned))
    found: dict[int, nn.Module] = {}
    for net in called:
        held = {id(p) for p in net.parameters()}
        if id(net) not in inner and not held <= own and (held & leaves or _shapes(net) in shapes):
            found[id(net)] = net
    return list(found.values())


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [p.shape for p in module.parameters()]
