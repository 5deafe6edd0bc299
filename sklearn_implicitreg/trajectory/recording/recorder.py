"""Recording a training run by hooks of its optimizer."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Sequence
from os import PathLike
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sklearn_implicitreg.exceptions import ModelStateWarning
from sklearn_implicitreg.problem import Params, ParamsSpec
from sklearn_implicitreg.trajectory.marks import SUMS, Kept, Mark, copied
from sklearn_implicitreg.trajectory.recording.applied_gradient import (
    RunningSums,
    Stretch,
    settings_of,
    zeros,
)
from sklearn_implicitreg.trajectory.recording.optimizers import (
    UpdateRule,
    Watched,
    number,
    plain_settings,
    rule_of,
)
from sklearn_implicitreg.trajectory.recording.reducing import ReducedKept, Reduction
from sklearn_implicitreg.trajectory.recording.rows import Batches, RowFinder
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.window import Step, check_count

_RECORDED: weakref.WeakSet[Optimizer] = weakref.WeakSet()
_ROUNDING_EVERY = 10  # steps between two estimates of the rounding
MEMORY = 2**30  # bytes


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
    optimizer : torch.optim.Optimizer
        SGD (momentum, Nesterov, dampening), Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad.
    every : int, default=None
        Steps between marks; the sums lose no step. None is 1; with ``families`` it is the whole
        training, and ``every`` counts only where no epoch is marked.
    data : array, tensor, tuple of these or Dataset, default=None
        All that a batch holds, so that ``recorder.batch`` can be given the batch itself. With
        ``families`` the rows (X, y) that the reference is taken on.
    loss : str, nn loss or callable(output, target), default=None
        The data term, for ``families``.
    families : list of families, default=None
        Penalties whose R factors are kept, in memory, instead of weights.
    reference : {"gradient", "applied"}, default="gradient"
        For ``families``: the gradient on ``data``, one pass per mark; or what the optimizer was
        given, without ``data`` and ``loss``.
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
    recorder : Recorder
        With ``recorder.epoch()`` and ``recorder.batch(rows)`` to call in the loop, and
        ``recorder.trajectory`` afterwards.

    Raises
    ------
    ValueError
        For an optimizer whose gradients do not follow from its steps, or one that is recorded
        already; for ``families`` without what their reference needs.

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
    every = 1 if every is None else every
    recorder = Recorder(model, optimizer, every, gradients, update_rule, kept)
    if data is not None:
        recorder.rows_from(data)
    return recorder


class Recorder:
    """Hooks of one optimizer, and what they recorded; made by :func:`record`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        every: int,
        gradients: bool | None,
        update_rule: UpdateRule | None,
        kept: Kept,
    ):
        check_count("every", every)
        self._rule = rule_of(optimizer, update_rule)
        self._optimizer, self._every = optimizer, int(every)
        self._watched = Watched(model, optimizer)
        self._params = self._watched.params
        self._kept, self._batches = kept, Batches()
        self._handles: list[Any] = []
        self._stretch: Stretch | None = None
        self._spare: Stretch | None = None  # ended; its memory serves the next
        self._each = self._every == 1
        self._pending = self._stale = self._called = False
        self._idle, self._n_changed = "", 0
        self._step = self._epoch = 0
        self._dropped: dict[str, int] = {}
        self._rounding, self._rounding_at = float("nan"), -_ROUNDING_EVERY
        self._steps: list[Step] = []
        summed = SUMS if gradients or (gradients is None and every == 1) else ("applied", "visited")
        self._begin_sums(
            {w: {n: zeros(p) for n, p in self._params.items() if w in summed} for w in SUMS}
        )

    def __enter__(self) -> Recorder:
        if self._optimizer in _RECORDED:
            raise ValueError(
                "This optimizer is being recorded already; leave the other record(...) first."
            )
        _RECORDED.add(self._optimizer)
        self._batches.taken(())  # of a step that was interrupted
        pre = self._optimizer.register_step_pre_hook(self._before)
        self._handles = [pre, self._optimizer.register_step_post_hook(self._after)]
        if self._marks:
            self._stale = True  # weights may have changed outside
        else:
            self._mark()
        return self

    def __exit__(self, kind: Any = None, *details: Any) -> None:
        """Detach the hooks; what was recorded is kept, also when the loop raised."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _RECORDED.discard(self._optimizer)
        self._settle()
        lost = self._watched.replaced()
        if lost:
            self._roll_back("of another model")
        if self._marks[-1].step != self._step:
            self._mark()
        self._spare = None
        self._kept.close(self._steps)
        if kind is not None:
            return
        if lost:
            raise ValueError(lost)
        if self._n_changed:
            warnings.warn(
                f"Something else than the optimizer changed the weights before {self._n_changed} "
                "of the steps that begin at a mark. These changes are part of no step, so a "
                "penalty that they amount to is not found.",
                ModelStateWarning,
                stacklevel=2,
            )
            self._n_changed = 0

    @property
    def attached(self) -> bool:
        """Whether steps are being recorded."""
        return bool(self._handles)

    @property
    def epoch_begun(self) -> bool:
        """Whether the optimizer was called since the last epoch ended."""
        return self._called

    def epoch(self) -> None:
        """Mark the end of an epoch.

        Raises
        ------
        ValueError
            If nothing is being recorded, or the optimizer made no step since the last epoch.
        """
        if not self.attached:
            raise ValueError(
                "Expected epoch() while steps are recorded, got it outside of the with block; "
                "call it at the end of every epoch in the block."
            )
        if not self._called:
            raise ValueError(
                "Expected steps of the recorded optimizer since the last epoch, got none; the "
                "optimizer that was given to record(...) must be the one that steps."
            )
        self._settle()
        self._check(self._watched.replaced())
        self._called = False
        self._epoch += 1
        self._every = self._kept.end_epoch(self._epoch, self._every)
        self._mark()

    def batch(self, rows: Any, *, accumulate: bool = False, weight: float | None = None) -> None:
        """Name the rows of the batch of the next step, once for each batch that it is made on.

        Parameters
        ----------
        rows : int, array of int or bool, or the batch itself
            Positions of the rows in the data set, a mask of them, or only their number. The batch
            is looked up in ``data``; where a transform changed it, only its size is kept.
        accumulate : bool, default=False
            Whether the batch joins those named since the last step, where gradients are
            accumulated.
        weight : float > 0, default=None
            Factor by which the loss of this batch is multiplied before ``backward()``, for every
            batch of a step or for none. None: each loss is divided by the number of batches; a
            loss that is a sum over rows is not.

        Raises
        ------
        ValueError
            For no rows, negative ones, or what is none of these; for a second batch before the
            optimizer stepped without ``accumulate``; for weights of some batches only.
        """
        # Gradients that come within a step are those of a closure.
        given = [] if self._pending else self._gradients()
        self._batches.name(rows, accumulate=accumulate, weight=weight, given=given)

    def rows_from(self, data: Any) -> None:
        """Data set that batches are looked up in.

        Parameters
        ----------
        data : array, tensor, tuple of these or Dataset
            All that a batch holds.
        """
        self._batches.finder = RowFinder(data)

    @property
    def trajectory(self) -> Trajectory:
        """What was recorded.

        Raises
        ------
        ValueError
            If there was no step, or most had to be dropped.
        """
        n_dropped = sum(self._dropped.values())
        if n_dropped > (self._step + n_dropped) / 2:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self._dropped.items())
            raise ValueError(
                f"Expected finite steps of positive learning rate, got {self._step + n_dropped} "
                f"steps of which {reasons}; record a run that trains."
            )
        marks, r_factors = self._kept.recorded()
        if len(marks) < 2:
            raise ValueError(
                "Expected at least one recorded step, got none; the optimizer that was given to "
                "record(...) must be the one that steps."
            )
        steps = tuple(self._steps[: marks[-1].step])
        name, settings = type(self._optimizer).__name__, plain_settings(self._optimizer)
        return Trajectory(marks, steps, name, settings, n_dropped, r_factors)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._settle()
        self._called = True
        self._check(self._watched.change(optimizer))
        self._kept.settle(self._steps)
        if self._stretch is not None and self._stretch.settings != settings_of(optimizer):
            self._close()
        if not self._stale and self._marks[-1].step == self._step and self._watched.changed():
            self._n_changed += 1
            self._stale = True
        if self._stale:
            self._refresh()
        self._idle = self._watched.idle(optimizer)
        if self._idle:
            return
        if self._stretch is not None:
            self._stretch.before()
            if self._stretch.spoilt():
                self._close()
                self._refresh()
        if self._stretch is None:
            self._stretch = self._begin_stretch()
        self._visit(1)
        self._pending = True

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        batches = self._batches.taken(self._gradients())
        if self._idle:
            self._drop(1, self._idle)
            self._stale = True
            return
        stretch = self._stretch
        if stretch is None:
            return
        self._pending = False
        if number(getattr(optimizer, "found_inf", 0.0)):  # a fused optimizer skips it under AMP
            self._visit(-1)
            return
        stretch.after()
        for name in self._sums["consumed"]:
            gradient = self._params[name].grad
            if gradient is not None:
                self._running["consumed"].add(name, gradient.detach())
        if stretch.n_steps == 1 and self._step >= self._rounding_at + _ROUNDING_EVERY:
            self._rounding, self._rounding_at = stretch.rounding(), self._step
        lr = self._watched.lr(optimizer)
        self._steps.append(Step(lr, rounding=self._rounding, **batches))
        self._step += 1
        if self._step % self._every == 0:
            self._check(self._watched.replaced())
            self._mark()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._params.values() if p.grad is not None]

    def _begin_stretch(self) -> Stretch:
        """Begin to measure here, in the memory of the last stretch where that is possible."""
        stretch, self._spare = self._spare, None
        if stretch is not None and stretch.fits(self._each):
            stretch.restart()
        else:
            stretch = Stretch(self._rule, self._optimizer, self._params, self._each)
        stretch.before()
        return stretch

    def _visit(self, sign: int) -> None:
        for name in self._sums["visited"]:
            self._running["visited"].add(name, self._params[name].detach(), sign)

    def _settle(self) -> None:
        """Take back a step that raised before it was made, or all since a half-made one."""
        if not self._pending:
            return
        self._pending = False
        assert self._stretch is not None
        if self._stretch.moved():
            self._roll_back("that raised")
        else:
            self._visit(-1)

    def _close(self) -> None:
        """End a stretch: its sum joins the running one, or all since the last mark is dropped."""
        stretch, self._stretch = self._stretch, None
        if stretch is None or not stretch.n_steps:
            return
        given = self._running["consumed"].flush().values()
        if stretch.sound() and all(bool(total.sum().isfinite()) for total in given):
            stretch.add_to(self._sums["applied"])
            self._spare = stretch
        elif self._finite():
            self._each = True  # weights are changed between steps: measure each alone
            self._roll_back("between which something else changed the weights")
        else:
            self._roll_back("with NaN or inf")

    def _begin_sums(self, sums: dict[str, Params]) -> None:
        self._sums = sums
        self._running = {what: RunningSums(sums[what]) for what in ("visited", "consumed")}

    def _roll_back(self, reason: str) -> None:
        last = self._marks[-1]
        self._stretch = None
        last = copied(last)
        self._begin_sums({what: getattr(last, what) for what in SUMS})
        self._drop(self._step - last.step, reason)
        self._step = last.step
        del self._steps[last.step :]
        self._stale = True

    def _drop(self, n_steps: int, reason: str) -> None:
        if n_steps:
            self._dropped[reason] = self._dropped.get(reason, 0) + n_steps

    def _refresh(self) -> None:
        """Where steps were dropped, the next one begins at other weights than the last mark's."""
        if self._marks[-1].step == self._step and self._finite():
            self._mark()
        self._stale = False

    def _finite(self) -> bool:
        return all(bool(p.detach().sum().isfinite()) for p in self._params.values())

    def _mark(self) -> None:
        """Keep the weights and sums; a mark of the same step is replaced."""
        self._close()
        weights = {name: p.detach() for name, p in self._params.items()}
        if self._marks and self._marks[-1].step == self._step and not self._finite():
            weights = self._marks[-1].weights
        sums = {**self._sums, **{what: own.flush() for what, own in self._running.items()}}
        self._watched.remember()
        self._kept.put(Mark(self._step, self._epoch, weights, *(sums[what] for what in SUMS)))

    @property
    def _marks(self) -> list[Mark]:
        return self._kept.marks

    def _check(self, wrong: str) -> None:
        if wrong:
            self._roll_back("of another model")
            raise ValueError(wrong)
