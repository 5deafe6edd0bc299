"""What the recorders for other libraries share: one recording that a training run drives."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sklearn_implicitreg.exceptions import ModelStateWarning, warn_user
from sklearn_implicitreg.trajectory.recording.record import record
from sklearn_implicitreg.trajectory.recording.recorder import Recorder
from sklearn_implicitreg.trajectory.recording.rows import holds_inputs, is_batch, n_rows_of
from sklearn_implicitreg.trajectory.trajectory import Trajectory


def base_of(module: str, name: str) -> Any:
    """Class of an optional library; ``object`` where that is not installed."""
    try:
        return getattr(import_module(module), name)
    except ImportError:
        return object


class Session:
    """Recording that begins, goes on and ends where a library calls; parameters of ``record``."""

    def __init__(self, find_rows: bool = True, **how: Any):
        self._how, self._find_rows = how, find_rows
        self.recorder: Recorder | None = None
        self._recorded: tuple[Any, ...] = ()
        self._kept: Trajectory | None = None
        self._searched = False
        self._compared = False  # a batch with what the model is called with
        self._batch: Any = None
        self._hook: Any = None

    @property
    def trajectory(self) -> Trajectory:
        """What was recorded."""
        if self.recorder is not None:
            return self.recorder.trajectory
        if self._kept is None:
            raise ValueError("Expected a recorder that has seen a training run, got a new one.")
        return self._kept

    def begin(
        self, model: nn.Module, optimizers: Sequence[Optimizer], rows: Callable[[bool], Any]
    ) -> None:
        """Start, or go on where the same model and optimizers were recorded before."""
        # ``rows`` makes the data of families, where the user gave none; a flag says whether their
        # reference is taken on rows.
        self.end()  # where the run before raised
        given = (model, *optimizers)
        before = self._recorded
        same = len(given) == len(before) and all(map(operator.is_, given, before))
        if not same or self.recorder is None:
            how = dict(self._how)
            if how.get("families") is not None and how.get("data") is None:
                how["data"] = rows(how["reference"] != "applied")
            self.recorder = record(model, optimizers, **how)
            self._recorded, self._searched, self._compared = given, False, False
        self.recorder.__enter__()

    def rows_from(self, data: Any) -> None:
        """Look batches up in a data set, if it is one whose rows are numbers."""
        if self.recorder is None or self._searched or data is None:
            return
        self._searched = True
        try:
            self.recorder.rows_from(data)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return  # a stream, or samples that need the loader's own collate function

    def batch(
        self,
        batch: Any,
        accumulate: bool = False,
        weight: float | None = None,
        *,
        called: bool = False,
    ) -> None:
        """Name the batch of the next step, or its size, before the model is called or after."""
        if self._attached is not None:
            given = batch if self._find_rows else n_rows_of(batch) or batch
            self._attached.batch(given, accumulate=accumulate, weight=weight)
            if self._find_rows and not (called or self._compared) and is_batch(batch):
                self._compare_with(batch)

    def _compare_with(self, batch: Any) -> None:
        """See whether the model is called with the last batch, the first time that it is called."""
        self._batch = batch  # of one that the step leaves out there is no call
        if self._hook is not None:
            return

        def compare(model: nn.Module, args: Any, kwargs: Any) -> None:
            self._hook.remove()
            batch, self._batch, self._compared = self._batch, None, True
            if holds_inputs(batch, (args, kwargs)):
                return
            self._find_rows = False
            warn_user(
                f"The training step calls {type(model).__name__} with other numbers than the "
                "batch has (mixup, or a transform in the step), so that of the next batches only "
                "the sizes are known. For reference='batch' move the transform into the data set "
                "or the module, or record in a loop of your own and name what the model is "
                "called with: batch((inputs, targets)).",
                ModelStateWarning,
            )

        self._hook = self._recorded[0].register_forward_pre_hook(compare, with_kwargs=True)

    def epoch(self) -> None:
        """End of an epoch."""
        if self._attached is not None:
            self._attached.epoch()

    def end(self) -> None:
        """End of the run."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = self._batch = None
        if self._attached is not None:
            self._attached.__exit__()

    @property
    def begun(self) -> bool:
        """Whether steps are being recorded."""
        return self._attached is not None

    @property
    def _attached(self) -> Recorder | None:
        return self.recorder if self.recorder is not None and self.recorder.attached else None

    def __getstate__(self) -> dict[str, Any]:
        """What was recorded, without the hooks, the model and the optimizer."""
        try:
            kept = self.trajectory
        except ValueError:
            kept = None
        own = {"recorder": None, "_recorded": (), "_kept": kept, "_batch": None, "_hook": None}
        return {**vars(self), **own}


class SessionRecorder:
    """What the callbacks for the libraries share."""

    session_ = Session()  # each has its own from its first run on

    @property
    def trajectory_(self) -> Trajectory:
        """What was recorded."""
        return self.session_.trajectory

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Detach."""
        self.session_.end()
