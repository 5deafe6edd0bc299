"""A torch module wherever it is: in this process, on several ranks, in shards on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sklearn_implicitreg.adapters.registry import Data, Options
from sklearn_implicitreg.adapters.torch.labels import label_names
from sklearn_implicitreg.adapters.torch.loaders import read_rows
from sklearn_implicitreg.adapters.torch.losses import resolve_loss
from sklearn_implicitreg.adapters.torch.modules import TorchProblem, adapt_module, moved_loss
from sklearn_implicitreg.adapters.torch.options import batch_size_of, seed_of
from sklearn_implicitreg.adapters.torch.ranks import RanksProblem, on_ranks
from sklearn_implicitreg.adapters.torch.sharded import (
    ShardedProblem,
    coarsest,
    dtype_in_place,
    integers_in_place,
    modes_of,
    part_of,
)
from sklearn_implicitreg.adapters.torch.structure import in_scope
from sklearn_implicitreg.problem import (
    Problem,
    Ranks,
    call_module,
    check_finite_params,
    ranks_of,
)
from sklearn_implicitreg.problem.conventions import CONVENTIONS
from sklearn_implicitreg.problem.frozen import inner_module, own_name


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
        rows = read_rows(data, options.n_passes)
        labels = label_names(module) if options.loss == "auto" else ()
        row_loss = resolve_loss(options.loss, rows.classes, returned=bool(labels))
        row_loss = replace(row_loss, named_labels=rows.names is not None)
        named = {own_name(n): p for n, p in module.named_parameters() if p.requires_grad}
        parts = {name: part_of(p, ranks) for name, p in named.items()}
        check_finite_params(parts)
        names = in_scope(module, dict(named), options.params)
        tensors.update({name: named[name] for name in names})
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
    return problem.tried(options) if problem.own.row_loss.custom else problem


HANDLERS = {"Module": adapt_model}
