"""Recorder for skorch nets, and training a copy of one on."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

from skorch import NeuralNet, callbacks
from torch.utils.data import DataLoader

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.adapters.skorch import optimizers_of
from sklearn_implicitreg.problem import ParamsSpec, Problem
from sklearn_implicitreg.trajectory.recording.sessions import Session, SessionRecorder
from sklearn_implicitreg.trajectory.trajectory import Trajectory


class ImplicitRegularizationRecorder(SessionRecorder, callbacks.Callback):
    """Callback that records the training of a skorch net.

    Epochs are marked, and the rows of every batch are looked up by their content; where a
    transform changes them the batch itself is kept. A ``train_step`` that steps at every n-th
    batch is followed: the batches since the last step are its own. ``partial_fit`` goes on with
    the same trajectory, but of a net that was pickled or copied: join both by
    ``Trajectory.join``.

    Parameters
    ----------
    every, gradients, directory
        As for :func:`record`.
    find_rows : bool, default=True
        Whether to look up batches, which costs one pass over the data, and to keep those that
        are not found (with ``every=1``); without it only their sizes are known.
    families, reference, params
        As for :func:`record`; the rows and the loss are the net's own.

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
        families: Sequence[Any] | None = None,
        reference: str = "gradient",
        params: ParamsSpec = "auto",
    ):
        self.every = every
        self.gradients = gradients
        self.directory = directory
        self.find_rows = find_rows
        self.families = families
        self.reference = reference
        self.params = params

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Leave a run before this one that raised."""
        if "session_" not in vars(self):
            names = ("every", "gradients", "directory", "families", "reference", "params")
            how = {name: getattr(self, name) for name in names}
            self.session_ = Session(self.find_rows, **how)
        self.session_.end()

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, **kwargs: Any) -> None:
        """Attach to the optimizer of the net, or to each that it has; learn the training rows."""

        def problem(needed: bool) -> Problem:  # also for the tensors that a penalty covers
            rows = Data(net.get_iterator(dataset_train, training=True))
            return adapt(net, rows, Options(params=self.params))

        if not self.session_.begun:
            self.session_.begin(net.module_, optimizers_of(net), problem)
        if self.find_rows:
            self.session_.rows_from(dataset_train)

    def on_batch_begin(
        self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any
    ) -> None:
        """Name the batch; where the net has a step of its own it may join others."""
        if not training:
            return
        if getattr(net.train_step, "__func__", None) is NeuralNet.train_step:
            self.session_.batch(batch)
        else:
            self.session_.batch(batch, accumulate=True, weight=_factor(net))

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Mark the end of an epoch."""
        self.session_.epoch()


def _factor(net: Any) -> float | None:
    """Factor of the net's own loss in the gradients that its steps add up, where it is known."""
    if getattr(net.train_step_single, "__func__", None) is NeuralNet.train_step_single:
        return 1.0  # it calls backward() on what get_loss returns
    accelerator = getattr(net, "accelerator", None)
    return 1 / getattr(accelerator, "gradient_accumulation_steps", 1) if accelerator else None


# They write files, print, stop, start over, or record: none of them changes a step.
_LEFT_OUT = (
    ImplicitRegularizationRecorder,
    callbacks.Checkpoint,
    callbacks.EarlyStopping,
    callbacks.LoadInitState,
    callbacks.PrintLog,
    callbacks.ProgressBar,
    callbacks.TrainEndCheckpoint,
)


class _Remembering:
    """Batch sampler that remembers the row numbers of the batches that it gave out."""

    def __init__(self, inner: Any, given: deque[list[int]]):
        self._inner, self._given = inner, given

    def __iter__(self) -> Iterator[list[int]]:
        self._given.clear()
        for rows in self._inner:
            self._given.append(list(rows))
            yield rows

    def __len__(self) -> int:
        return len(self._inner)


class _NumberedRecorder(ImplicitRegularizationRecorder):
    """Recorder of a net whose loader remembers the rows of its batches."""

    def __init__(self, every: int, given: deque[list[int]]):
        super().__init__(every)
        self.given = given

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, **kwargs: Any) -> None:
        """Attach; the rows need not be looked up."""
        super().on_epoch_begin(net)

    def on_batch_begin(
        self, net: NeuralNet, batch: Any = None, training: bool | None = None, **kwargs: Any
    ) -> None:
        if self.given:
            super().on_batch_begin(net, self.given.popleft(), training)


def continued(
    net: NeuralNet, data: Data, whole: Problem, *, n_epochs: int, every: int
) -> Trajectory:
    """Trajectory of a copy of a fitted net that is trained on; the net stays as it is."""
    own = copy.deepcopy(net)
    X, y = data.X, data.y
    if isinstance(X, DataLoader):
        X = X.dataset
    # On the rows of the problem, which are those that the net was trained on.
    n_given = len(own.get_dataset(X, y))
    own.set_params(max_epochs=n_epochs, verbose=0)
    if n_given == whole.n_rows:
        own.set_params(train_split=None)
    given: deque[list[int]] = deque()
    make = own.get_iterator

    def get_iterator(dataset: Any, training: bool = False) -> Any:
        loader = make(dataset, training=training)
        return _remembering(loader, given) if training else loader

    own.get_iterator = get_iterator
    recorder = _NumberedRecorder(every, given)
    kept = [(name, c) for name, c in own.callbacks_ if not isinstance(c, _LEFT_OUT)]
    own.callbacks_ = [*kept, ("recorder", recorder)]
    own.partial_fit(X, y)
    return recorder.trajectory_


def _remembering(loader: Any, given: deque[list[int]]) -> Any:
    """The same loader, whose batches of rows are known; where it draws rows by number."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return loader
    own = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator")
    how: dict[str, Any] = {key: getattr(loader, key) for key in own}
    sampler: Any = _Remembering(loader.batch_sampler, given)
    return DataLoader(loader.dataset, batch_sampler=sampler, **how)
