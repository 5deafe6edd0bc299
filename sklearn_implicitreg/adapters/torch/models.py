"""A torch module wherever it is: in this process, on several ranks, in shards on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_implicitreg.adapters.registry import Data, Options
from sklearn_implicitreg.adapters.torch.calls import CopyCall, Forward
from sklearn_implicitreg.adapters.torch.criteria import resolve_loss
from sklearn_implicitreg.adapters.torch.data import Rows
from sklearn_implicitreg.adapters.torch.few_rows import (
    with_counted_labels,
    with_custom_loss,
    with_integers,
)
from sklearn_implicitreg.adapters.torch.labels import label_names
from sklearn_implicitreg.adapters.torch.loaders import read_rows
from sklearn_implicitreg.adapters.torch.losses import RowLoss
from sklearn_implicitreg.adapters.torch.modules import TorchProblem
from sklearn_implicitreg.adapters.torch.options import (
    batch_size_of,
    device_of,
    doubtful,
    dtype_of,
    seed_of,
    set_modes,
    stored_notes,
)
from sklearn_implicitreg.adapters.torch.ranks import RanksProblem, on_ranks
from sklearn_implicitreg.adapters.torch.sharded import (
    ShardedProblem,
    check_whole,
    coarsest,
    dtype_in_place,
    integers_in_place,
    modes_of,
    part_of,
)
from sklearn_implicitreg.adapters.torch.structure import in_scope, skeleton
from sklearn_implicitreg.problem import (
    Params,
    Problem,
    Ranks,
    call_module,
    check_finite_params,
    ranks_of,
)
from sklearn_implicitreg.problem.conventions import CONVENTIONS
from sklearn_implicitreg.problem.frozen import STATES, inner_module, own_name


def adapt_model(model: nn.Module, data: Data, options: Options) -> Problem:
    """Problem of a module, and of the rows of all ranks that it is on."""
    ranks = ranks_of(model) if options.together else None
    if ranks is None:
        return adapt_module(model, data, options)
    if ranks.sharded:
        return _sharded(inner_module(model), data, options, ranks)
    problem: Problem = on_ranks(ranks, lambda: adapt_module(model, data, options))
    return problem


def _sharded(module: nn.Module, data: Data, options: Options, ranks: Ranks) -> RanksProblem:
    """Problem of a module that is sharded over ranks, and of the rows of all of them."""
    tensors: dict[str, Tensor] = {}
    modes: list[bool] = []

    def here() -> TorchProblem:
        rows, row_loss, labels = _rows_and_loss(module, data, options)
        named = {own_name(n): p for n, p in module.named_parameters() if p.requires_grad}
        parts = {name: part_of(p, ranks) for name, p in named.items()}
        check_finite_params(parts)
        names = in_scope(module, dict(named), options.params)
        tensors.update(named)
        device, dtype = next(iter(parts.values())).device, dtype_in_place(options, parts)
        normalized, notes, own_modes = modes_of(module, options, rows)
        modes.extend(own_modes)
        return TorchProblem(
            params={name: parts[name] for name in names},
            model_name=type(module).__name__.removeprefix("FSDP"),
            loss_name=row_loss.words,
            eps=coarsest(module, dtype),
            left_out=tuple(name for name in named if name not in names),
            convention=CONVENTIONS["torch"],
            batch_normalized=normalized,
            notes=tuple(notes),
            module=module,
            rows=rows,
            row_loss=moved_loss(row_loss, device, dtype),
            batch_size=batch_size_of(options.batch_size, rows, normalized),
            device=device,
            dtype=dtype,
            seed=seed_of(options, rows.n_passes),
            n_passes=rows.n_passes,
            forward=call_module,
            kept=integers_in_place(module, rows),
            label_args=labels,
        )

    def more(own: TorchProblem) -> dict[str, Any]:
        return {"tensors": tensors, "modes": modes}

    problem: ShardedProblem = on_ranks(ranks, here, ShardedProblem, more)
    if problem.own.label_args:
        problem = problem.with_counted_labels()
    return problem.tried(options) if problem.own.row_loss.custom else problem


def _rows_and_loss(
    module: nn.Module, data: Data, options: Options
) -> tuple[Rows, RowLoss, tuple[str, ...]]:
    """Rows, their loss, and the arguments for labels of a module that returns it."""
    rows = read_rows(data, options.n_passes)
    labels = label_names(module) if options.loss == "auto" else ()
    row_loss = resolve_loss(options.loss, rows.classes, returned=bool(labels))
    return rows, replace(row_loss, named_labels=rows.names is not None), labels


def adapt_module(model: nn.Module, data: Data, options: Options) -> Problem:
    """Problem of a bare module, whose loss is given."""
    model = inner_module(model)
    check_whole(model)
    rows, row_loss, labels = _rows_and_loss(model, data, options)
    convention = CONVENTIONS["torch"]
    return module_problem(model, row_loss, rows, options, convention=convention, label_args=labels)


def module_problem(
    module: nn.Module,
    row_loss: RowLoss,
    data: Data | Rows,
    options: Options,
    *,
    model_name: str | None = None,
    default: set[str] | None = None,
    forward: Forward = call_module,
    **fields: Any,
) -> TorchProblem:
    """Problem of a module; ``params="auto"`` selects ``default``, or the weight matrices."""
    rows = data if isinstance(data, Rows) else read_rows(data, options.n_passes)
    if rows.train_batch_size is None:
        rows = replace(rows, train_batch_size=options.trained_batch_size)
    if rows.names is not None and row_loss.kind not in ("classes", "binary"):
        raise ValueError(f"Expected numbers in y for {row_loss.words!r}, got labels.")
    with STATES:
        trained = _trained(module)
        device = device_of(options.device, trained)
        dtype = dtype_of(options.dtype, trained)
        own = skeleton(module, device, dtype)
        call = CopyCall(module, forward, doubtful(own) if options.module_mode == "auto" else {})
    normalized, notes = set_modes(own, options, rows)
    named: Params = dict(own.named_parameters())
    names = in_scope(own, {n: named[n] for n in trained}, options.params, default)
    problem = TorchProblem(
        params={n: named[n].detach() for n in names},
        model_name=model_name or type(own).__name__,
        loss_name=row_loss.words,
        eps=torch.finfo(dtype).eps,
        left_out=tuple(n for n in trained if n not in names),
        batch_normalized=normalized,
        notes=(*notes, *stored_notes(names), *fields.pop("notes", ())),
        module=own,
        rows=rows,
        row_loss=moved_loss(row_loss, device, dtype),
        batch_size=batch_size_of(options.batch_size, rows, normalized),
        device=device,
        dtype=dtype,
        seed=seed_of(options, rows.n_passes),
        n_passes=rows.n_passes,
        forward=call,
        **fields,
    )
    problem = with_counted_labels(with_integers(problem))
    return with_custom_loss(problem, module, options)  # type: ignore[no-any-return]


def _trained(module: nn.Module) -> Params:
    """Trained parameters by their own names; ValueError if there are none, or not finite ones."""
    named = {own_name(n): p for n, p in module.named_parameters() if p.requires_grad}
    trained: Params = {n: p for n, p in named.items() if not p.is_meta}
    if named and not trained:
        raise ValueError(
            "Expected a trained module, got one whose parameters have no numbers (they are on the "
            "device meta); load its weights first: load_state_dict(weights, assign=True)."
        )
    untracked = [n for n, p in trained.items() if p.is_inference()]
    if untracked:
        raise ValueError(
            f"Expected parameters that autograd follows, got {', '.join(untracked[:3])} made in "
            "torch.inference_mode(); make the module outside of it and load its weights."
        )
    if not trained:
        raise ValueError(
            "Expected a model with trainable parameters, got one with requires_grad=False "
            "everywhere (or without parameters); set requires_grad on what was trained."
        )
    check_finite_params(trained)
    return trained


def moved_loss(row_loss: RowLoss, device: torch.device, dtype: torch.dtype) -> RowLoss:
    """Class weights and the like on the device and in the type of the outputs."""
    if isinstance(row_loss.criterion, nn.Module):
        row_loss.criterion.to(device=device, dtype=dtype)  # a copy, made by undo_reduction
    return row_loss


HANDLERS = {"Module": adapt_model}
