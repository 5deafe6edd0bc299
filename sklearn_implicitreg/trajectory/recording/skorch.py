"""Recorder for skorch nets."""

from __future__ import annotations

from os import PathLike
from typing import Any

from skorch.callbacks import Callback

from sklearn_implicitreg.trajectory.recording.sessions import Session
from sklearn_implicitreg.trajectory.trajectory import Trajectory

__all__ = ["ImplicitRegularizationRecorder"]


class ImplicitRegularizationRecorder(Callback):
    """Callback that records the training path of a skorch net.

    Epochs are marked, and the rows of every batch are named: they are looked up in the
    training part of the data by their content. Where a transform changes them at each visit,
    only their number is known. ``partial_fit`` goes on with the same path; of a net that was
    pickled or copied it begins a new one, so take ``trajectory_`` before and join both by
    ``Trajectory.join``.

    Parameters
    ----------
    every : int, default=1
        Steps between marks.
    gradients : bool, default=None
        Whether to sum the gradients that the optimizer is given; None: with ``every=1`` only.
    directory : path-like, default=None
        Empty folder for the marks.
    find_rows : bool, default=True
        Whether to look up batches, which costs one pass over the data.

    Attributes
    ----------
    trajectory_ : Trajectory
        What was recorded.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skorch import NeuralNetRegressor
    >>> recorder = ImplicitRegularizationRecorder()
    >>> net = NeuralNetRegressor(
    ...     torch.nn.Linear(2, 1), max_epochs=2, batch_size=4, train_split=None, verbose=0,
    ...     callbacks=[recorder],
    ... )
    >>> X = np.eye(8, 2, dtype=np.float32)
    >>> _ = net.fit(X, X[:, :1])
    >>> recorder.trajectory_
    Trajectory(4 steps of SGD, 5 marks, 2 epochs, batches known for 4 steps)
    """

    def __init__(
        self,
        every: int = 1,
        gradients: bool | None = None,
        directory: str | PathLike[str] | None = None,
        find_rows: bool = True,
    ):
        self.every = every
        self.gradients = gradients
        self.directory = directory
        self.find_rows = find_rows

    @property
    def trajectory_(self) -> Trajectory:
        """What was recorded."""
        session: Session = getattr(self, "session_", None) or Session()
        return session.trajectory

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Attach to the optimizer of the net."""
        if not hasattr(self, "session_"):
            self.session_ = Session(self.every, self.gradients, self.directory)
        self.session_.begin(net.module_, net.optimizer_)

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, **kwargs: Any) -> None:
        """Learn the rows of the training part."""
        if self.find_rows:
            self.session_.rows_from(dataset_train)

    def on_batch_begin(
        self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any
    ) -> None:
        """Name the batch."""
        if training:
            self.session_.batch(batch)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Mark the end of an epoch."""
        self.session_.epoch()

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Detach."""
        self.session_.end()
