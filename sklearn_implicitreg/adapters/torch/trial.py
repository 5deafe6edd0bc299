"""What a user's loss is made of its rows, as a few of them show."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from sklearn_implicitreg.adapters.torch.data import (
    Batch,
    cuts_into_rows,
    map_tensors,
)
from sklearn_implicitreg.adapters.torch.losses import RowLoss
from sklearn_implicitreg.problem.frozen import tensors_in

# How a loss is made of its rows: a mean over them, a sum, a mean over what they are made of, or a
# function of which rows are together.
Kind = Literal["mean", "sum", "elements", "coupled", "unknown"]

TRIED_ROWS = 32
_SHARE = 5 / 12  # of the rows in the first of two unequal parts
_APART = (
    "The loss has a term that does not come from the outputs (a penalty on the parameters): it is "
    "left out of L."
)
_CALLS = (
    "Expected a loss of outputs and targets, got one that calls the model itself; let the module's "
    "forward return what the loss needs."
)


@dataclass(frozen=True)
class Trial:
    """A loss as a few rows show it to be."""

    row_loss: RowLoss
    kind: Kind
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Value:
    """A loss on some rows at fixed outputs: its mean and how it changes with them."""

    total: float
    weight: float
    by_output: list[Tensor]
    by_parameter: list[Tensor | None]
    called: bool  # the loss called the model

    @property
    def mean(self) -> float:
        return self.total / self.weight if self.weight else 0.0


def examined(
    row_loss: RowLoss,
    batch: Batch,
    output: Any,
    model: nn.Module | None,
    on_part: Callable[[slice], tuple[Any, Any]] | None = None,
) -> Trial:
    """Compare a user's loss on a few rows with the same on two parts of them.

    ``on_part`` gives outputs and targets of a part where they cannot be cut; ``model`` is the
    user's, which a loss may see beside the outputs.
    """
    unlike = _one_column(output, batch.target)
    if row_loss.given is None:  # whether one number is a sum is found out
        row_loss = replace(row_loss, scalar_is_sum=False, trained_sum=False)
    with warnings.catch_warnings():
        if unlike:  # of torch, where the target is given in the other shape
            warnings.filterwarnings("ignore", message="Using a target size")
        try:
            trial = _compared(row_loss, batch, output, model, on_part)
        except ValueError:
            if not unlike:
                raise
            trial = None
        if unlike and (trial is None or trial.kind == "coupled"):
            # The loss takes the column off the outputs itself, or broadcasts either way.
            as_given = replace(row_loss, reshaped=False)
            other = _compared(as_given, batch, output, model, on_part)
            if trial is None or other.kind != "coupled":
                return other
    assert trial is not None
    return trial


def _one_column(output: Any, target: Any) -> bool:
    """Whether outputs and targets differ by a last axis of length one."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return False
    return output.shape != target.shape and output.numel() == target.numel()


def _compared(
    row_loss: RowLoss,
    batch: Batch,
    output: Any,
    model: nn.Module | None,
    on_part: Callable[[slice], tuple[Any, Any]] | None,
) -> Trial:
    whole = _value(row_loss, output, batch.target, model)
    row_loss, whole = _own_reduction(row_loss, whole, output, batch.target, model)
    n_rows = max((len(t) for t in tensors_in((output, batch.target)) if t.ndim), default=0)
    cut = int(np.ceil(_SHARE * n_rows))
    parts, read = [slice(0, cut), slice(cut, None)], (output, batch.target)
    seen = read if row_loss.on_rows is None else (*read, batch.inputs)
    if n_rows < 2 or not np.isfinite(whole.total):
        return Trial(row_loss, "unknown")
    if cuts_into_rows(seen, n_rows):
        values = []
        for rows in parts:
            own, target = _cut(read, rows)
            values.append(_value(row_loss, own, target, model, rows))
        kind = _kind_by_gradients(whole, values, parts)
    elif on_part is not None and row_loss.on_rows is None:
        pairs = map(on_part, parts)
        values = [_value(row_loss, own, target, model) for own, target in pairs]
        kind = _kind_by_values(whole, values)
    else:
        return Trial(row_loss, "unknown")
    if kind == "sum":
        words = row_loss.words.replace(", mean over rows", ", summed, mean over rows")
        row_loss = replace(row_loss, scalar_is_sum=True, trained_sum=True, words=words)
    if kind in ("elements", "coupled"):
        row_loss = replace(row_loss, by_rows=False)
    return _without_parameters(Trial(row_loss, kind), whole, values[0])


def _cut(tree: Any, rows: slice) -> Any:
    return map_tensors(lambda tensor: tensor[rows], tree)


def _value(
    row_loss: RowLoss,
    output: Any,
    target: Any,
    model: nn.Module | None,
    rows: slice | None = None,
) -> _Value:
    """Sum of the loss on some rows, and its derivatives at fixed outputs."""
    leaves: list[Tensor] = []

    def held(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.detach().clone()
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1].clone()  # which a loss may work in

    with torch.enable_grad():
        output, target = map_tensors(held, output), map_tensors(torch.clone, target)
    model = model if row_loss.model is None else row_loss.model
    parameters, parts = _own_parts(row_loss, model)
    if row_loss.on_rows is not None:
        row_loss.on_rows(rows)
    try:
        with torch.enable_grad(), _calls_of(parts, row_loss.inside is None) as calls:
            total, weight = row_loss(output, row_loss.prepare(output, target), None)
    except (RuntimeError, IndexError, KeyError, AttributeError, TypeError) as error:
        if str(error).startswith("Expected "):
            raise
        raise ValueError(
            f"Expected a loss that takes the outputs and targets, {_shapes(output)} and "
            f"{_shapes(target)}, got {type(error).__name__} from {row_loss.words.split(',')[0]}: "
            f"{error}"
        ) from error
    finally:
        if row_loss.on_rows is not None:
            row_loss.on_rows(None)
    wanted = [*leaves, *parameters]
    found: Sequence[Tensor | None] = [None] * len(wanted)
    if total.requires_grad:
        found = torch.autograd.grad(total, wanted, allow_unused=True)
    by_output = [
        torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=False)
    ]
    by_parameter = list(found[len(leaves) :])
    return _Value(float(total.detach()), weight, by_output, by_parameter, bool(calls))


def _own_parts(row_loss: RowLoss, model: nn.Module | None) -> tuple[list[Tensor], set[int]]:
    """Parameters and parts of the model as the loss may hold them, also in a copy of its own."""
    if model is None:
        return [], set()
    trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    parts = set(map(id, model.modules()))
    places = {p.data_ptr() for p in trained}
    if isinstance(row_loss.criterion, nn.Module):
        for part in row_loss.criterion.modules():
            own = [p for p in part.parameters(recurse=False) if p.data_ptr() in places]
            if own:
                parts.add(id(part))
                trained += [p for p in own if p.requires_grad]
    return trained, parts


@contextlib.contextmanager
def _calls_of(parts: set[int], own: bool) -> Iterator[list[int]]:
    """Which of the modules are called in the block; of the user's ``own``, only what is fixed."""
    calls: list[int] = []
    before: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None], list[Tensor]]] = []

    def noted(module: nn.Module, _: Any) -> None:
        if id(module) not in parts:
            return
        if own and next(module.parameters(), None) is not None:
            raise ValueError(_CALLS)  # before the call, which may change its buffers
        calls.append(id(module))
        for part in module.modules() if own else ():
            held = [t.clone() for t in part._buffers.values() if t is not None]
            before.append((part._buffers, dict(part._buffers), held))

    if not parts:
        yield calls
        return
    handle = register_module_forward_pre_hook(noted)  # no hook stays on the user's modules
    try:
        yield calls
    finally:
        handle.remove()
        moved = [_put_back(*buffers) for buffers in reversed(before)]
    if any(moved):
        raise ValueError(_CALLS)


def _put_back(
    buffers: dict[str, Tensor | None], stored: dict[str, Tensor | None], values: list[Tensor]
) -> bool:
    """Give a part the buffers that it had; whether they were others."""
    tensors = [tensor for tensor in stored.values() if tensor is not None]
    moved = any(buffers.get(key) is not tensor for key, tensor in stored.items())
    buffers.update(stored)
    for tensor, value in zip(tensors, values, strict=True):
        if not torch.equal(tensor, value):
            moved = True
            tensor.detach().copy_(value)
    return moved


def _shapes(tree: Any) -> str:
    shapes = [str(tuple(tensor.shape)) for tensor in tensors_in(tree)]
    return ", ".join(shapes) or type(tree).__name__


def _own_reduction(
    row_loss: RowLoss, whole: _Value, output: Any, target: Any, model: nn.Module | None
) -> tuple[RowLoss, _Value]:
    """The loss of a user's class as it is, where its reduction is another than torch's."""
    if row_loss.given is None or row_loss.evaluate is not None:
        return row_loss, whole
    name = type(row_loss.given).__name__
    as_given = RowLoss(
        row_loss.given, f"{name}, mean over rows", classes=row_loss.classes, custom=True
    )
    own = _value(as_given, output, target, model)
    mean = own.mean / whole.weight if row_loss.trained_sum else own.mean
    if abs(mean - whole.mean) <= _tolerance(whole) * max(abs(mean), abs(whole.mean)):
        return row_loss, whole
    return as_given, own


def _tolerance(value: _Value) -> float:
    """Where rounding ends: about a third of the digits are left for it."""
    kinds = [torch.finfo(t.dtype).eps for t in value.by_output]
    return float(max(kinds, default=1e-7) ** 0.65)


def _kind_by_gradients(whole: _Value, parts: list[_Value], cuts: list[slice]) -> Kind:
    """By which factor a part's gradient in its outputs shrinks when the rest is added."""
    tolerance, shares = _tolerance(whole), []
    for part, rows in zip(parts, cuts, strict=True):
        alone = _flat(part.by_output)
        among = _flat([g[rows] for g in whole.by_output])
        size = float(alone @ alone)
        if size == 0.0:
            if float(among @ among) > 0.0:
                return "coupled"
            continue
        factor = float(among @ alone) / size
        off = float((among - factor * alone).norm())
        if off > tolerance * max(float(among.norm()), float(alone.norm())):
            return "coupled"
        # Of the means: what the share of the part would be in one of weighted elements.
        shares.append((factor, factor * part.weight / whole.weight))
    if all(abs(factor - 1) <= tolerance for factor, _ in shares):
        return "mean"
    if all(abs(share - 1) <= tolerance for _, share in shares):
        return "sum"
    total = sum(share for _, share in shares)
    elements = len(shares) < len(parts) or abs(total - 1) <= tolerance
    return "elements" if elements else "coupled"


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    flat = [tensor.detach().reshape(-1).double().cpu() for tensor in tensors]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)


def _kind_by_values(whole: _Value, parts: list[_Value]) -> Kind:
    """The same from values alone, where rows of outputs cannot be told."""
    first, second = parts
    size = _tolerance(whole) * max(abs(v.total) for v in (whole, *parts))
    if abs(whole.total - first.total - second.total) <= size:
        return "mean"
    means = sorted((first.mean, second.mean))
    size = _tolerance(whole) * max(map(abs, means))
    if abs(whole.mean - sum(means)) <= size:
        return "sum"
    between = means[0] - size <= whole.mean <= means[1] + size
    return "elements" if between else "coupled"


def _without_parameters(trial: Trial, whole: _Value, part: _Value) -> Trial:
    """A term of the parameters alone is left out of L; one that sees the rows belongs to it."""
    row_loss = trial.row_loss
    pairs = [(a, b) for a, b in zip(whole.by_parameter, part.by_parameter, strict=True)
             if a is not None or b is not None]  # fmt: skip
    if not pairs:
        return trial
    alone = not whole.called
    for a, b in pairs:
        mine, own = (0.0 if g is None else g / v.weight for g, v in ((a, whole), (b, part)))
        size = max(float(torch.as_tensor(g).norm()) for g in (mine, own))
        alone = alone and float(torch.as_tensor(mine - own).norm()) <= _tolerance(whole) * size
    if alone:
        return replace(trial, notes=(_APART,))
    if row_loss.inside is None:
        raise ValueError(_CALLS)
    return replace(trial, row_loss=replace(row_loss, evaluate=row_loss.inside))
