"""Beginning a recording: what is given, and what is made of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from sklearn_implicitreg.problem import ParamsSpec, Problem, together
from sklearn_implicitreg.problem.frozen import inner_module, own_name
from sklearn_implicitreg.problem.parameters import (
    FLAG,
    NOTHING,
    SCOPE,
    checked,
    function,
    having,
    instance,
    integer,
)
from sklearn_implicitreg.problem.ranks import sharding_parts
from sklearn_implicitreg.trajectory.design import recorded_part
from sklearn_implicitreg.trajectory.marks import Kept
from sklearn_implicitreg.trajectory.recording.followed import (
    Followed,
    followed,
    param_groups,
)
from sklearn_implicitreg.trajectory.recording.optimizers import UpdateRule
from sklearn_implicitreg.trajectory.recording.others import Others
from sklearn_implicitreg.trajectory.recording.recorder import Recorder
from sklearn_implicitreg.trajectory.recording.reducing import ReducedKept, Reduction

MEMORY = 2**30  # bytes


@checked(
    model=instance("the nn.Module that is trained", nn.Module),
    optimizer=having("an Optimizer", "register_step_post_hook")
    | instance("a list of them", list, tuple),
    every=NOTHING | integer(1),
    params=SCOPE,
    gradients=NOTHING | FLAG,
    directory=NOTHING | instance("a path", str, PathLike),
    memory_limit=integer(0),
    update_rule=NOTHING
    | function("(displacement, group, state_before, state_after)")
    | instance("a list of them", list, tuple),
)
def record(  # noqa: PLR0913
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    every: int | None = None,
    data: Any = None,
    loss: Any = None,
    families: Sequence[Any] | None = None,
    reference: str = "gradient",
    params: ParamsSpec = "auto",
    gradients: bool | None = None,
    directory: str | PathLike[str] | None = None,
    memory_limit: int = MEMORY,
    update_rule: UpdateRule | Sequence[UpdateRule | None] | None = None,
) -> Recorder:
    """Context manager that records the steps of an optimizer, or of several as one training.

    A step of several optimizers is a round in which each steps once at most, on gradients of the
    same weights: another backward pass begins the next round. What else moves in the model
    (buffers, an average of the weights, what another optimizer trains) is kept with the marks, as
    it was when each gradient was taken.

    With ``every`` above 1 what SGD and the Adam kinds applied follows from both ends of a stretch
    of constant settings. RMSprop, Adagrad and other rules, and step sizes that change at every
    step, cost a copy of the weights per step. Clipped gradients are what the optimizer applies:
    use ``reference="applied"``, or no clipping.

    With ``families`` the steps between two marks are reduced to the R factor of their equations,
    a few numbers per tensor and column. Such a trajectory answers for these families, this
    reference and the windows between its marks alone.

    Parameters
    ----------
    model : nn.Module
        What is trained.
    optimizer : torch.optim.Optimizer, or list of them
        SGD (momentum, Nesterov, dampening), Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad.
    every : int, default=None
        Steps between marks; the sums lose no step. None is 1; with ``families`` it is the whole
        training, and ``every`` counts only where no epoch is marked.
    data : array, tensor, tuple of these, Dataset or DataLoader, default=None
        All that a batch holds, so that ``recorder.batch`` can be given the batch itself and finds
        its rows. Other batches, such as augmented ones, are kept by their tensors. With
        ``families`` the rows (X, y) that the reference is taken on, or a Problem of the model.
    loss : str, nn loss or callable(output, target), default=None
        The data term, for ``families``; None is that of a model that returns its own loss.
    families : list of families, default=None
        Penalties whose R factors are kept, in memory, instead of weights.
    reference : {"gradient", "applied"}, default="gradient"
        For ``families``: the gradient on ``data``, one pass per mark; or what the optimizer was
        given, without ``data`` and ``loss``.
    params : {"auto", "all", "weights", "decay"}, str or callable(name, tensor) -> bool, \
            default="auto"
        For ``families``: the tensors that give equations.
    gradients : bool, default=None
        Whether to sum the gradients that the optimizer is given, for ``reference="applied"``;
        None: with ``every=1`` only.
    directory : path-like, default=None
        Empty folder for the marks, or a new one. None keeps them in memory, on the devices that
        the weights are on, up to ``memory_limit``, then in a temporary folder,
        which the next recording on this machine removes if this process is killed. Where the disk
        is full a warning names the folder, the recording ends and the training goes on.
    memory_limit : int, default=2**30
        Bytes of marks on one device, and as many of batches that are kept. Other tensors of the
        model of more bytes than this are not kept where they move.
    update_rule : callable(displacement, group, state_before, state_after), default=None
        Returns the gradient that a step applied, for other optimizers; with several optimizers a
        list of one for each, None for those of torch.

    Returns
    -------
    recorder : Recorder
        With ``recorder.epoch()`` and ``recorder.batch(rows)`` to call in the loop, and
        ``recorder.trajectory`` afterwards.

    Raises
    ------
    TypeError
        For what is no optimizer.
    ValueError
        For an optimizer whose gradients do not follow from its steps, or one that is recorded
        already; for no optimizers, one given twice, or two of the same tensor; for ``families``
        without what their reference needs; for a ``directory`` that is not empty or cannot be
        written to.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with record(net, optimizer) as recorder:
    ...     net(torch.ones(4, 2)).square().mean().backward()
    ...     optimizer.step()
    >>> recorder.trajectory
    Trajectory(1 steps of SGD, 2 marks, 0 epochs, batches known for 0 steps)
    """
    given, model = model, inner_module(model)
    parts = followed(model, optimizer, update_rule)
    if sharding_parts(model):
        _check_all(model, parts)
    if families is None:
        named = isinstance(reference, str) and reference == "gradient"
        if loss is not None or not named or params != "auto":
            raise ValueError(
                "Expected families= with loss=, reference= or params=, got none; give the "
                "penalties, or leave these to the estimator."
            )
        kept = Kept(directory, memory_limit)
    else:
        with together(given, "record(families=...)"):
            own = _reduction(given, parts, families, reference, data, loss, params)
        kept = ReducedKept(own)
        gradients = reference == "applied"
        every = sys.maxsize if every is None else every
    every = 1 if every is None else every
    others = Others(model, {id(p) for one in parts for p in one.given.values()}, memory_limit)
    shelf = None
    if every == 1 and families is None:  # the references on batches need a mark at every step
        below = None if directory is None else Path(directory, "batches")
        shelf = partial(Kept, below, memory_limit)
    recorder = Recorder(parts, others, every, gradients, kept, shelf)
    if data is not None and not isinstance(data, Problem):
        recorder.rows_from(data.dataset if isinstance(data, DataLoader) else data)
    return recorder


def _check_all(model: nn.Module, parts: Sequence[Followed]) -> None:
    """Raise ValueError where a sharded module has trained tensors that are not looked at."""
    recorded = {name for part in parts for name in part.given}
    trained = {own_name(name) for name, p in model.named_parameters() if p.requires_grad}
    if trained - recorded:
        raise ValueError(
            "Expected the optimizers of all trained tensors of a module that fully_shard shards, "
            f"got none of {', '.join(sorted(trained - recorded))}; give them in a list to "
            "record(model, [optimizers]), or freeze what is not trained."
        )


def _reduction(model: nn.Module, parts: Sequence[Followed], *given: Any) -> Reduction:
    groups = param_groups(parts)
    own = Reduction.of(model, groups, *given)
    return replace(own, problem=recorded_part(own.problem, tuple(groups)))
