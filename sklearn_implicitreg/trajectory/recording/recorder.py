"""Recording a training run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from os import PathLike
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sklearn_implicitreg.problem import ParamsSpec
from sklearn_implicitreg.trajectory.marks import Kept
from sklearn_implicitreg.trajectory.recording.applied_gradient import UpdateRule
from sklearn_implicitreg.trajectory.recording.hooks import MEMORY, Recorder
from sklearn_implicitreg.trajectory.recording.reducing import ReducedKept, Reduction

__all__ = ["Recorder", "record"]


def record(  # noqa: PLR0913
    model: nn.Module,
    optimizer: Optimizer,
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
    update_rule: UpdateRule | None = None,
) -> Recorder:
    """Context manager that records the steps of an optimizer.

    With ``every`` above 1 the weights are not copied at each step: what SGD and the Adam kinds
    applied follows from both ends of a stretch of constant settings. RMSprop, Adagrad and other
    rules, and step sizes that change at every step, cost a copy per step.

    Clipped gradients are what the optimizer applies. References on rows then see the clipping as
    a penalty; use ``reference="applied"``, or no clipping.

    With ``families`` the steps between two marks are reduced at once to the R factor of their
    equations: a mark then costs a few numbers per tensor and column, and no weights. Such a path
    answers for these families, this reference and the windows between its marks alone.

    Parameters
    ----------
    model : nn.Module
        What is trained.
    optimizer : torch.optim.Optimizer
        SGD (momentum, Nesterov, dampening), Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad.
    every : int, default=None
        Steps between marks; the sums lose no step. None is 1; with ``families`` it is no mark
        but those of ``path.epoch()`` and of the end. With ``families`` it counts only where no
        epoch is marked: the equations of a path with epochs are those of its epochs.
    data : array, tensor, tuple of these or Dataset, default=None
        All that a batch holds, in the order in which the rows count, so that ``path.batch`` can
        be given the batch itself. With ``families`` the rows (X, y) that the reference is
        taken on.
    loss : str, nn loss or callable(output, target), default=None
        The data term, for ``families``.
    families : list of families, default=None
        Penalties whose R factors are kept in the place of weights, as for
        :class:`sklearn_implicitreg.ImplicitRegularizationEstimator`; they stay in memory.
    reference : {"gradient", "applied"}, default="gradient"
        For ``families``: the gradient on ``data``, one pass per mark, rows weighted as they
        were used where marks are ends of epochs; or what the optimizer was given, without a
        pass and without ``data`` and ``loss``.
    params : {"auto", "all", "weights"}, str or callable(name, tensor) -> bool, default="auto"
        For ``families``: the tensors that give equations.
    gradients : bool, default=None
        Whether to sum the gradients that the optimizer is given, for ``reference="applied"``;
        None: with ``every=1`` only.
    directory : path-like, default=None
        Empty folder for the marks. None keeps them in memory up to ``memory_limit``, then in a
        temporary folder.
    memory_limit : int, default=2**30
        Bytes.
    update_rule : callable(displacement, group, state_before, state_after), default=None
        Returns the gradient that a step applied, for other optimizers.

    Returns
    -------
    path : Recorder
        With ``path.epoch()`` and ``path.batch(rows)`` to call in the loop, and
        ``path.trajectory`` afterwards.

    Raises
    ------
    ValueError
        For an optimizer that cannot be told from its steps, or one that is recorded already;
        for ``families`` without what their reference needs.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with record(net, optimizer) as path:
    ...     net(torch.ones(4, 2)).square().mean().backward()
    ...     optimizer.step()
    >>> path.trajectory
    Trajectory(1 steps of SGD, 2 marks, 0 epochs, batches known for 0 steps)
    """
    if families is None:
        if loss is not None or reference != "gradient" or params != "auto":
            raise ValueError(
                "Expected families= with loss=, reference= or params=, got none; give the "
                "penalties, or leave these to the estimator."
            )
        kept = Kept(directory, memory_limit)
    else:
        kept = ReducedKept(Reduction.of(model, families, reference, data, loss, params))
        gradients = reference == "applied"
        every = sys.maxsize if every is None else every
    recorder = Recorder(
        model, optimizer, 1 if every is None else every, gradients, update_rule, kept
    )
    if data is not None:
        recorder.rows_from(data)
    return recorder
