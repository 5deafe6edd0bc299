"""What the recorders for other libraries share: one recording that a training run drives."""

from __future__ import annotations

from importlib import import_module
from os import PathLike
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sklearn_implicitreg.trajectory.recording.recorder import Recorder, record
from sklearn_implicitreg.trajectory.trajectory import Trajectory

__all__ = ["Session", "base_of"]


def base_of(module: str, name: str) -> Any:
    """Class of an optional library; ``object`` where that is not installed."""
    try:
        return getattr(import_module(module), name)
    except ImportError:
        return object


class Session:
    """Recording that begins, goes on and ends where a library calls.

    Parameters
    ----------
    every : int
    gradients : bool or None
    directory : path-like or None
        As for :func:`sklearn_implicitreg.trajectory.record`.
    """

    def __init__(
        self,
        every: int = 1,
        gradients: bool | None = None,
        directory: str | PathLike[str] | None = None,
    ):
        self.every, self.gradients, self.directory = every, gradients, directory
        self.path: Recorder | None = None
        self._recorded: tuple[nn.Module, Optimizer] | None = None
        self._kept: Trajectory | None = None
        self._searched = False

    @property
    def trajectory(self) -> Trajectory:
        """What was recorded."""
        if self.path is not None:
            return self.path.trajectory
        if self._kept is None:
            raise ValueError("Expected a recorder that has seen a training run, got a new one.")
        return self._kept

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Start, or go on where the same model and optimizer were recorded before."""
        self.end()  # where the run before raised
        same = self._recorded is not None and (
            self._recorded[0] is model and self._recorded[1] is optimizer
        )
        if not same or self.path is None:
            self.path = record(
                model,
                optimizer,
                every=self.every,
                gradients=self.gradients,
                directory=self.directory,
            )
            self._recorded, self._searched = (model, optimizer), False
        self.path.__enter__()

    def rows_from(self, data: Any) -> None:
        """Look batches up in a data set, if it is one whose rows are numbers."""
        if self.path is None or self._searched or data is None:
            return
        self._searched = True
        try:
            self.path.rows_from(data)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return  # a stream, or samples that need the loader's own collate function

    def batch(self, batch: Any, accumulate: bool = False) -> None:
        """Name the batch of the next step."""
        if self.path is not None and self.path.attached:
            self.path.batch(batch, accumulate=accumulate)

    def epoch(self) -> None:
        """End of an epoch."""
        if self.path is not None and self.path.attached:
            self.path.epoch()

    def end(self) -> None:
        """End of the run."""
        if self.path is not None and self.path.attached:
            self.path.__exit__()

    def __getstate__(self) -> dict[str, Any]:
        """The recorded path without the hooks, the model and the optimizer."""
        try:
            kept = self.trajectory
        except ValueError:
            kept = None
        return {**vars(self), "path": None, "_recorded": None, "_kept": kept}
