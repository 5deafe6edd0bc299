"""The recorder: hooks of the optimizers, and the sums and marks that they make."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sklearn_implicitreg.exceptions import ModelStateWarning, warn_user
from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.problem.vectors import wide_zeros
from sklearn_implicitreg.trajectory.marks import SUMS, Kept, Mark, checked_total, copied
from sklearn_implicitreg.trajectory.recording.applied_gradient import RunningSums, settings_of
from sklearn_implicitreg.trajectory.recording.followed import (
    Followed,
    described,
    param_groups,
    scales,
    tensors_of,
)
from sklearn_implicitreg.trajectory.recording.optimizers import number
from sklearn_implicitreg.trajectory.recording.others import Others
from sklearn_implicitreg.trajectory.recording.rows import Batches, RowFinder, differs
from sklearn_implicitreg.trajectory.trajectory import Trajectory
from sklearn_implicitreg.trajectory.window import Step

_RECORDED: weakref.WeakSet[Optimizer] = weakref.WeakSet()


class Recorder:
    """Hooks of the optimizers, and what they recorded; made by :func:`record`."""

    def __init__(
        self,
        parts: tuple[Followed, ...],
        others: Others,
        every: int,
        gradients: bool | None,
        kept: Kept,
        shelf: Callable[[], Kept] | None = None,
    ):
        self._parts, self._others, self._every = parts, others, int(every)
        self._params = tensors_of(parts)
        self._kept, self._batches = kept, Batches(shelf)
        kept.others = others.began
        self._handles: list[Any] = []
        self._each = self._every == 1
        self._stale = self._called = self._stopped = False  # stopped: the disk took no more
        self._busy = False  # counting; also where an interrupt ended that half-way
        self._open = False  # whether some of the optimizers made their step of this round
        # The batches of the round, and the optimizers that stepped on them.
        self._named: tuple[dict[str, Any], set[int]] = ({}, set())
        self._pass, self._fresh = -1, False  # the backward pass; whether no round began since
        self._reached: set[int] = set()  # the ``id`` of each tensor that it reached
        self._skipped: frozenset[str] = frozenset()  # by the last round
        self._n_changed = 0
        self._epoch, self._epoch_at = 0, -1
        self._dropped: dict[str, int] = {}
        self._steps: list[Step] = []
        summed = SUMS if gradients or (gradients is None and every == 1) else ("applied", "visited")
        self._begin_sums(
            {w: {n: wide_zeros(p) for n, p in self._params.items() if w in summed} for w in SUMS}
        )

    def __enter__(self) -> Recorder:
        if any(part.optimizer in _RECORDED for part in self._parts):
            raise ValueError(
                "This optimizer is being recorded already; leave the other record(...) first."
            )
        self._batches.taken(())  # of a step that was interrupted
        self._others.begin()
        if self._marks:
            self._stale = True  # weights may have changed outside
        else:
            self._mark()
            self._end_if_full()  # at once, before hours of training
        for part in self._parts:
            _RECORDED.add(part.optimizer)
            self._handles.append(part.optimizer.register_step_pre_hook(self._before))
            handle = part.optimizer.register_step_post_hook(self._after)
            # Before the user's own, which may zero the gradients or change the weights.
            hooks: Any = part.optimizer._optimizer_step_post_hooks
            hooks.move_to_end(handle.id, last=False)
            self._handles.append(handle)
        # The parameters keep no recorder that is dropped without its end.
        on_gradient = weakref.WeakMethod(self._on_gradient)

        def look(p: Tensor) -> None:
            if (own := on_gradient()) is not None:
                own(p)

        for p in self._params.values():
            if p.requires_grad and p.is_leaf:
                self._handles.append(p.register_post_accumulate_grad_hook(look))
        return self

    def __exit__(self, kind: Any = None, *details: Any) -> None:
        """Detach the hooks; what was recorded is kept, also when the loop raised."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._batches.close()
        for part in self._parts:
            _RECORDED.discard(part.optimizer)
        if self._stopped:
            self._kept.close(self._steps, raised=kind is not None)
            return
        self._settle()
        self._end_round()
        self._others.look(whole=True)
        lost = self._replaced()
        if lost:
            self._roll_back("of another model")
        if self._marks[-1].step != self._step:
            self._mark()
        self._busy = False
        for part in self._parts:
            part.spare(None)
        self._kept.close(self._steps, raised=kind is not None)
        self._end_if_full()
        if kind is not None:
            return
        if lost:
            raise ValueError(lost)
        if self._n_changed:
            warn_user(
                f"Something else than the optimizer changed the weights before {self._n_changed} "
                "of the steps that begin at a mark. These changes are part of no step, so a "
                "penalty that they amount to is not found.",
                ModelStateWarning,
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
        if self._stopped:
            return
        if not self._called:
            raise ValueError(
                "Expected steps of the recorded optimizer since the last epoch, got none; the "
                "optimizer that was given to record(...) must be the one that steps."
            )
        self._settle()
        self._end_round()
        self._check(self._replaced())
        self._called = False
        self._epoch, self._epoch_at = self._epoch + 1, self._step
        self._every = self._kept.end_epoch(self._epoch, self._every)
        self._mark()
        self._busy = False

    def batch(self, rows: Any, *, accumulate: bool = False, weight: float | None = None) -> None:
        """Name the rows of the batch of the next step, once for each batch that it is made on.

        Parameters
        ----------
        rows : int, array of int or bool, or the batch itself
            Positions of the rows in the data set, a mask of them, or only their number. The batch
            ``(inputs, targets)`` is looked up in ``data``; where a transform changed it, or no
            ``data`` was given, its tensors are kept as the step saw them (with ``every=1``).
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

        Notes
        -----
        Where the batches of a step have a backward pass each, those without one are left out of
        it; without ``weight`` the batches of such a step are not known.
        """
        # Gradients that come within a step are those of a closure.
        given = [] if self._pending else self._gradients()
        self._batches.name(rows, accumulate=accumulate, weight=weight, given=given)

    def rows_from(self, data: Any) -> None:
        """Data set that batches are looked up in.

        Parameters
        ----------
        data : array, tensor, tuple of these or Dataset
            All that a batch holds. Of one whose rows differ at each reading none is found.
        """
        self._batches.finder = None if differs(data) else RowFinder(data)

    @property
    def trajectory(self) -> Trajectory:
        """What was recorded.

        Raises
        ------
        ValueError
            If there was no step, or most had to be dropped.
        """
        n_dropped = checked_total(self._dropped, self._step)
        self._end_if_full()
        if self._epoch_at == self._step == self._marks[-1].step:  # so it is final
            self._kept.settle(self._steps)
        marks, r_factors = self._kept.recorded()
        self._kept.check_steps(len(marks) - 1, self._stopped)
        steps = self._batches.with_kept(self._steps[: marks[-1].step])
        name, settings = described(self._parts)
        if norms := self._others.norms_in_training:
            settings["norms_in_training"] = dict(norms)
        moved, groups = dict(self._others.began), param_groups(self._parts)
        return Trajectory(marks, steps, name, settings, n_dropped, r_factors, True, moved, groups)

    def _on_gradient(self, p: Tensor) -> None:
        """Look at what else moves, when the first gradient of a backward pass arrives."""
        here = torch._C._current_graph_task_id()
        if self._stopped or here == self._pass:
            self._reached.add(id(p))
            return
        self._pass, self._fresh, self._reached = here, True, {id(p)}
        self._batches.passed()
        pending = self._pending
        if pending and not self._busy and any(part.stepped for part in self._parts):
            self._busy = True
            self._begin_alone(pending)
            self._busy = False
        self._others.look()

    def _begin_alone(self, part: Followed) -> None:
        """A closure takes gradients after others have stepped: another round."""
        self._visit(part, -1)
        part.pending = False
        self._end_round()
        self._begin(part)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._called = True
        if self._stopped:
            return
        self._settle()
        self._prepare(self._part_of(optimizer))
        self._busy = False

    def _prepare(self, part: Followed) -> None:
        """Begin the step of an optimizer, and end the round before where it belongs to another."""
        self._check(part.watched.change(part.optimizer))
        if self._open and (part.stepped or self._fresh):
            self._end_round()
        if not self._open:
            self._kept.settle(self._steps)
        if part.stretch is not None and part.stretch.settings != settings_of(part.optimizer):
            self._close([part])
        if not self._open:
            self._look_back()
        part.idle = part.watched.idle(part.optimizer)
        if part.idle:
            return
        if part.stretch is not None:
            part.stretch.before()
            if part.stretch.spoilt():
                self._close(self._parts)
                self._refresh()
        self._begin(part)

    def _begin(self, part: Followed) -> None:
        """Begin a step, which is the first of a round unless one is open."""
        if part.stretch is None:
            part.begin(self._each)
        if not self._open:
            self._begin_round()
        self._visit(part, 1)
        part.pending = True

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._busy = True
        part = self._part_of(optimizer).looked()
        self._take_rows(part)
        if not self._stopped:
            self._made(part)
        self._busy = False

    def _made(self, part: Followed) -> None:
        """Count the step of an optimizer, unless it shows nothing or was skipped."""
        if part.idle:
            if len(self._parts) == 1:  # the others make the step
                self._drop(1, part.idle)
            self._stale = True
        elif part.stretch is None:
            return
        elif number(getattr(part.optimizer, "found_inf", 0.0)):  # fused ones skip it under AMP
            self._take_back(part)
        else:
            self._count(part)
            part.pending = False
            if all(part.stepped for part in self._parts):
                self._end_round()

    def _count(self, part: Followed) -> None:
        """Add what a step that was made visited, consumed and applied."""
        self._fresh = False  # those that a closure took are of this step
        if not any(part.stepped for part in self._parts):
            n_batches = len(self._named[0].get("parts", ()))
            self._others.add_to(self._running["visited"], self._step, n_batches)
        # Not before the step: a closure makes the gradients in it.
        for name in part.without:
            self._running["visited"].add(name, self._params[name].detach(), -1)
        part.after(self._step)
        for name in self._sums["consumed"].keys() & part.params.keys() - part.skipped:
            gradient = self._params[name].grad
            if gradient is not None:
                self._running["consumed"].add(name, gradient.detach())

    def _look_back(self) -> None:
        """Notice what changed the weights since the last round."""
        here = self._marks[-1].step == self._step
        if not self._stale and here and any([part.watched.changed() for part in self._parts]):
            self._n_changed += 1
            self._stale = True
        if self._stale:
            self._refresh()

    def _begin_round(self) -> None:
        if not self._fresh:  # gradients that no backward pass of these tensors made
            self._others.look()
            self._pass = torch._C._current_graph_task_id()
        self._fresh = False
        self._open = True

    def _end_round(self) -> None:
        """Count the steps that the optimizers made since the last round as one."""
        made = [part for part in self._parts if part.stepped]
        if not made:
            self._open = False
            return
        own = [part.skipped if part.stepped else part.params.keys() for part in self._parts]
        skipped = frozenset[str]().union(*own)
        self._skipped = self._skipped if skipped == self._skipped else skipped
        rounding = math.hypot(*(part.rounding for part in made))
        step = Step(made[0].lr, rounding=rounding, skipped=self._skipped, **self._named[0])
        self._leave_round()
        self._steps.append(step)
        if self._step % self._every == 0:
            self._check(self._replaced())
            self._mark()

    def _leave_round(self) -> None:
        self._open = False
        for part in self._parts:
            part.stepped = part.pending = False

    def _gradients(self) -> list[Tensor]:
        """Gradients of the tensors that the last backward pass reached; of all before the first."""
        params = self._params.values()
        reached = [p for p in params if id(p) in self._reached] or params
        return [p.grad for p in reached if p.grad is not None]

    def _take_rows(self, part: Followed) -> None:
        """Batches of the round; optimizers that step one after the other share them."""
        named, users = self._batches.taken(self._gradients()), self._named[1]
        if named or id(part) in users:
            self._named = (named, {id(part)})
        else:
            users.add(id(part))

    def _take_back(self, part: Followed) -> None:
        """A step was not made; nor was the round, if it was the first."""
        part.pending = False
        self._visit(part, -1)
        if not any(part.stepped for part in self._parts):
            self._leave_round()

    def _visit(self, part: Followed, sign: int) -> None:
        assert part.stretch is not None
        part.frozen = part.stretch.frozen
        for name in part.params.keys() - part.frozen:
            self._running["visited"].add(name, self._params[name].detach(), sign)

    def _settle(self) -> None:
        """Take back a step that raised before it was made, or all since a half-counted one."""
        cut, self._busy = self._busy, True
        part = self._pending
        moved = part is not None and part.stretch is not None and part.stretch.moved()
        if cut or moved:
            self._roll_back("that raised")
        elif part is not None:
            self._take_back(part)

    def _close(self, parts: Sequence[Followed]) -> None:
        """End stretches: their sums join the running ones, or all since the last mark is lost."""
        ended = [(part, part.ended()) for part in parts]
        made = [(part, stretch) for part, stretch in ended if stretch is not None]
        if not made:
            return
        given = self._running["consumed"].flush().values()
        sound = all([stretch.sound() for _, stretch in made])
        if sound and all(bool(total.sum().isfinite()) for total in given):
            for part, stretch in made:
                stretch.add_to(self._sums["applied"])
                part.spare(stretch)
        elif self._finite():
            self._each = True  # weights are changed between steps: measure each alone
            self._roll_back(
                "between which something else changed the weights or the optimizer's state"
            )
        else:
            self._roll_back("with NaN or inf")

    def _begin_sums(self, sums: dict[str, Params]) -> None:
        self._sums = sums
        self._running = {what: RunningSums(sums[what]) for what in ("visited", "consumed")}

    def _roll_back(self, reason: str) -> None:
        self._end_if_full()
        last = self._marks[-1]
        for part in self._parts:
            part.stretch = None
        self._leave_round()
        last = copied(last)
        self._begin_sums({what: getattr(last, what) for what in SUMS})
        self._drop(self._step - last.step, reason)
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
        self._close(self._parts)
        weights = {name: p.detach() for name, p in self._params.items()}
        if self._marks and self._marks[-1].step == self._step and not self._finite():
            self._end_if_full()
            weights = self._marks[-1].weights
        sums = {**self._sums, **{what: own.flush() for what, own in self._running.items()}}
        for part in self._parts:
            part.watched.remember()
        scale = scales(self._parts) if self._epoch_at == self._step else {}
        own = {"weights": weights, **sums, "scale": scale}
        self._kept.put(Mark(self._step, self._epoch, **own))
        if self._kept.failed is not None:
            self._end_if_full()

    def _end_if_full(self) -> None:
        """End the recording, not the training, where a mark could not be written."""
        self._kept.wait()
        failed = self._kept.failed
        if failed is None or self._stopped:
            return
        full = f"Marks cannot be written to {self._kept.folder} ({failed.strerror or failed})"
        if not self._marks:
            raise OSError(failed.errno, f"{full}; give directory= a folder with more room.")
        self._stopped = True
        for part in self._parts:
            part.stretch = None
        self._leave_round()
        del self._steps[self._marks[-1].step :]
        warn_user(
            f"{full}: the recording ends after step {self._step}, and the training goes on. What "
            "was recorded until there can be used; give directory= a folder with more room, or "
            "record with a larger `every`.",
            ModelStateWarning,
        )

    def _replaced(self) -> str:
        """Which recorded tensors the model has no longer; empty where it has all."""
        return next(filter(None, (part.watched.replaced() for part in self._parts)), "")

    @property
    def _marks(self) -> list[Mark]:
        return self._kept.marks

    @property
    def _step(self) -> int:
        """Number of steps so far."""
        return len(self._steps)

    @property
    def _pending(self) -> Followed | None:
        """The optimizer that is in a step."""
        return next((part for part in self._parts if part.pending), None)

    def _part_of(self, optimizer: Optimizer) -> Followed:
        return next(part for part in self._parts if part.optimizer is optimizer)

    def _check(self, wrong: str) -> None:
        if wrong:
            self._roll_back("of another model")
            raise ValueError(wrong)
