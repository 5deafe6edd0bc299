"""What a few rows show before all are read: types of inputs, the user's loss, random outputs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_implicitreg.adapters.registry import Options
from sklearn_implicitreg.adapters.torch.data import (
    Batch,
    Rows,
    cuts_into_rows,
    few_rows,
    map_tensors,
    rows_in,
)
from sklearn_implicitreg.adapters.torch.generators import (
    GENERATORS,
    all_states,
    preserved_rng,
    same_numbers,
)
from sklearn_implicitreg.adapters.torch.labels import (
    labels_after_first,
    labels_in,
    with_other_first,
)
from sklearn_implicitreg.adapters.torch.trial import TRIED_ROWS, Trial, examined
from sklearn_implicitreg.exceptions import ModelStateWarning, warn_user

TorchProblem = Any  # which imports this module

_DIGITS = 0.75  # of the rounding unit's; the others are left to rounding
_PARTS = 4  # of a few rows, whose losses are compared with that of all
_MAX_INTEGERS = 4  # of which all combinations are tried


def with_integers(problem: TorchProblem) -> TorchProblem:
    """Find out which integer inputs the module takes as integers."""
    rows, module = problem.rows, problem.module
    if not any(rows.integers):
        return problem

    def works(kept: tuple[bool, ...], batch: Batch) -> bool:
        own = replace(problem, kept=kept)
        with contextlib.suppress(Exception):
            own.forward(module, own.to_device(batch).inputs)
            return True
        return False

    kept: tuple[bool, ...] = ()
    with preserved_rng(problem.device, problem.seed), torch.no_grad(), problem.own_kernels():
        for whole in (False, True):  # rows of a graph cannot be cut
            batch = next(rows.read(problem.batch_size, None), None) if whole else rows.few(2)
            if batch is not None:
                tried = functools.partial(works, batch=batch)
                kept = integers_kept(rows.integers, rows.in_tensors, tried)
                if tried(kept):
                    break
    return replace(problem, kept=kept)


def with_custom_loss(
    problem: TorchProblem, module: nn.Module | None, options: Options
) -> TorchProblem:
    """Find out by a few rows what a user's loss returns, and how rows are to be cut for it."""
    trial = _tried(problem, module) if problem.row_loss.custom else None
    if trial is not None and trial.kind != "unknown":
        row_loss, notes = trial.row_loss, (*problem.notes, *trial.notes)
        problem = replace(problem, row_loss=row_loss, loss_name=row_loss.words, notes=notes)
        if not row_loss.by_rows and not problem.batch_normalized:
            problem = _by_batches(problem, trial, options)
    if problem.row_loss.trained_sum:
        return replace(problem, trained_sum=True, convention=None)
    return problem


def with_counted_labels(problem: TorchProblem, read: Batch | None = None) -> TorchProblem:
    """Find out by a few rows over which labels the loss that a model returns is the mean."""
    if read is None and problem.label_args:
        read = problem.rows.few(TRIED_ROWS)
    with preserved_rng(problem.device, problem.seed), problem.own_kernels():
        return problem if read is None else with_counted(problem, read, returned_loss)


def with_counted(
    problem: TorchProblem,
    read: Batch,
    evaluate: Callable[[TorchProblem, Batch], Tensor],
) -> TorchProblem:
    """Find out by some rows, on some of which the loss is evaluated at a time."""
    labels, loss = read.target, functools.partial(evaluate, problem)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        return problem
    with contextlib.suppress(Exception), torch.no_grad():  # which reading all rows will show
        counted = _counted(problem.rows, read, loss)
        if counted is None:
            return problem
        eps = torch.finfo(loss(read).dtype).eps  # Hugging Face's have logits in float32
        words = problem.row_loss.words
        if labels.ndim > 1:
            words = words.replace("mean over rows", "mean over labels")
        row_loss = replace(problem.row_loss, counted=counted, custom=False, words=words)
        eps = max(problem.eps, eps)
        return replace(problem, row_loss=row_loss, loss_name=words, eps=eps)
    return problem


def returned_loss(problem: TorchProblem, rows: Batch) -> Tensor:
    """The loss that a model returns on some rows."""
    batch = problem.to_device(rows)
    output = problem.forward(problem.module, batch.inputs)
    return problem.row_loss.criterion(output, batch.target)  # type: ignore[no-any-return]


def _counted(
    rows: Rows, batch: Batch, loss: Callable[[Batch], Tensor]
) -> Callable[[Tensor], Tensor] | None:
    """Which labels count in a mean over them; None where the loss is none."""
    value, labels = loss(batch), batch.target
    n_rows = len(labels)
    cuts = cuts_into_rows(batch[:2], n_rows)
    if value.ndim or n_rows < 2 or not (cuts or (rows.pick and not rows.together)):
        return None

    def apart(part: Tensor) -> Batch:
        if cuts:
            return Batch(*map_tensors(operator.itemgetter(part), tuple(batch)))
        assert rows.pick is not None  # with names of rows, or settings, among the inputs
        return rows.pick(rows.few_places(TRIED_ROWS)[part.cpu().numpy()])

    size = torch.finfo(value.dtype).eps ** _DIGITS * abs(float(value))
    ways = [labels_in]
    if labels.ndim > 1 and labels.shape[-1] > 1:
        other = with_other_first(labels)
        read = other is not None and abs(float(loss(batch._replace(target=other)) - value)) > size
        ways = [labels_in] if read else [labels_after_first, labels_in]
    for counted in ways:
        counts = counted(labels).reshape(n_rows, -1).sum(1)
        # Rows with many labels and rows with few: a mean over rows is another one.
        parts = counts.argsort(stable=True).tensor_split(min(_PARTS, n_rows))
        parts = tuple(part for part in parts if counts[part].any())
        if len(parts) < 2:
            continue
        masses = [int(counts[part].sum()) for part in parts]
        total = sum(n * float(loss(apart(part))) for n, part in zip(masses, parts, strict=True))
        if abs(total / sum(masses) - float(value)) <= size:
            return counted
    return None


def _tried(problem: TorchProblem, module: nn.Module | None) -> Trial | None:
    """The loss on a few rows and on parts of them."""
    rows = problem.rows

    def on_part(part: slice) -> tuple[Any, Any]:
        assert rows.pick is not None
        own = problem.to_device(rows.pick(rows.few_places(TRIED_ROWS)[part]))
        return problem.forward(problem.module, own.inputs), own.target

    with preserved_rng(problem.device, problem.seed), torch.no_grad(), problem.own_kernels():
        few = rows.few(TRIED_ROWS)
        if few is None:
            return None
        batch = problem.to_device(few)
        try:
            output = problem.forward(problem.module, batch.inputs)
        except Exception:  # rows that only pass together, or an error that all rows will show
            return None
        cut = few_rows(Batch(output, batch.target, None), TRIED_ROWS)
        if cut is not None and cuts_into_rows(batch.inputs, rows_in(batch)):
            batch = few_rows(batch, TRIED_ROWS) or batch
        elif cut is not None:
            batch = Batch(batch.inputs, cut.target, None)
        output = output if cut is None else cut.inputs
        apart = None if rows.pick is None or rows.together else on_part
        return examined(problem.row_loss, batch, output, module, apart)


def _by_batches(problem: TorchProblem, trial: Trial, options: Options) -> TorchProblem:
    """With a loss that is no mean over rows: in the batches of the training, or all at once."""
    n_rows, size = problem.rows.n_rows, problem.batch_size
    elements = trial.kind == "elements"
    what = f"{problem.loss_name.split(',')[0]} is no mean over rows"
    what += " but one over unequal numbers of elements" if elements else ": its value depends on "
    what += "" if elements else "which rows are in a batch"
    given, trained = options.batch_size != "auto", problem.rows.train_batch_size
    if trained is not None and not given:
        size = trained
    elif n_rows is None or (n_rows > size and (elements or not given)):
        raise ValueError(
            f"Expected a loss that is a mean over rows, or the batches that it was trained on, "
            f"got one that is not ({what}), on {n_rows or 'unknown'} rows in blocks of {size}; "
            "return one number per row, give a DataLoader with the batches of the training, or a "
            "batch_size of at least the number of rows."
        )
    elif not given and not elements:
        warn_user(
            f"{what} (contrastive losses; shapes (n, 1) and (n,) broadcast against each other). "
            "All rows are taken as one batch: give `batch_size`, the size it was trained with.",
            ModelStateWarning,
        )
    note = f"{what}: taken in batches of {min(size, n_rows or size)} rows."
    return replace(
        problem,
        row_loss=replace(problem.row_loss, elements=elements),
        batch_size=size,
        batch_normalized=True,
        loss_name=problem.loss_name.replace(", mean over rows", ", batch by batch"),
        notes=(*problem.notes, note),
    )


def warn_if_random(problem: TorchProblem, batch: Batch, before: list[Any]) -> None:
    """Warn where two passes differ though no layer is in training state."""
    module = problem.module
    if problem.seed is not None and any(part.training for part in module.modules()):
        return
    if before == all_states(problem.device) and not holds_generator(module):
        return
    few = problem.to_device(few_rows(batch, TRIED_ROWS) or batch)
    with torch.no_grad():
        first, second = (problem.forward(module, few.inputs) for _ in range(2))
    if not same_numbers(first, second):
        warn_user(
            f"{type(module).__name__} gives other outputs each time in eval state: its "
            "forward draws random numbers (dropout without self.training, noise). The "
            "gradient is that of one draw; let forward ask self.training.",
            ModelStateWarning,
        )


def integers_kept(
    integers: Sequence[bool], in_tensors: bool, works: Callable[[tuple[bool, ...]], bool]
) -> tuple[bool, ...]:
    """Which integer inputs stay integers: tensors where the model takes them, arrays if it must.

    A training loop passes tensors as they are; arrays of integers are mostly numbers.
    """
    places = [i for i, own in enumerate(integers) if own]
    sizes: Iterator[int] = iter(range(len(places) + 1))
    if len(places) > _MAX_INTEGERS:
        sizes = iter((0, len(places)))
    order = sorted(sizes, reverse=in_tensors)
    tries = [
        tuple(i in chosen for i in range(len(integers)))
        for size in order
        for chosen in itertools.combinations(places, size)
    ]
    return next((kept for kept in tries if works(kept)), tries[0])


def holds_generator(module: nn.Module) -> bool:
    """Whether a module has a generator of its own."""
    return any(isinstance(v, GENERATORS) for part in module.modules() for v in vars(part).values())
