"""Training a copy of a skorch net on, with its own optimizer and loader."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any

from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    LoadInitState,
    PrintLog,
    ProgressBar,
    TrainEndCheckpoint,
)
from torch.utils.data import DataLoader

from sklearn_implicitreg.adapters import Data
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.trajectory.recording.recorder import Recorder, record
from sklearn_implicitreg.trajectory.recording.skorch import ImplicitRegularizationRecorder
from sklearn_implicitreg.trajectory.trajectory import Trajectory

__all__ = ["continue_net"]

# They write files, print, stop, start anew, or record: none of them changes a step.
_LEFT_OUT = (
    ImplicitRegularizationRecorder,
    Checkpoint,
    EarlyStopping,
    LoadInitState,
    PrintLog,
    ProgressBar,
    TrainEndCheckpoint,
)


class _Remembering:
    """Batch sampler that remembers the row numbers of the batches that it gave out."""

    def __init__(self, inner: Any):
        self._inner = inner
        self.given: deque[list[int]] = deque()

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self._inner:
            self.given.append(list(rows))
            yield rows

    def __len__(self) -> int:
        return len(self._inner)


class _Marking(Callback):
    """Names the rows of every batch and marks the ends of epochs."""

    def __init__(self, path: Recorder, loaders: list[_Remembering]):
        self.path = path
        self.loaders = loaders

    def on_batch_begin(
        self, net: NeuralNet, batch: Any = None, training: bool | None = None, **kwargs: Any
    ) -> None:
        """Batches are trained on in the order in which they were drawn."""
        if training and self.loaders:
            self.path.batch(self.loaders[-1].given.popleft())

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Mark it."""
        self.path.epoch()


def continue_net(
    net: NeuralNet, data: Data, whole: Problem, *, n_epochs: int, every: int
) -> Trajectory:
    """Path of a copy of a fitted net that is trained on; the net stays as it is."""
    own = copy.deepcopy(net)
    X, y = data.X, data.y
    if isinstance(X, DataLoader):
        X = X.dataset
    # On the rows of the problem, which are those that the net was trained on.
    n_given = len(own.get_dataset(X, y))
    own.set_params(max_epochs=n_epochs, verbose=0)
    if n_given == whole.n_rows:
        own.set_params(train_split=None)
    loaders: list[_Remembering] = []
    make = own.get_iterator

    def get_iterator(dataset: Any, training: bool = False) -> Any:
        loader = make(dataset, training=training)
        return _remembering(loader, loaders) if training else loader

    own.get_iterator = get_iterator
    with record(own.module_, own.optimizer_, every=every) as path:
        kept = [(n, c) for n, c in own.callbacks_ if not isinstance(c, _LEFT_OUT)]
        own.callbacks_ = [*kept, ("path", _Marking(path, loaders))]
        own.partial_fit(X, y)
    return path.trajectory


def _remembering(loader: Any, loaders: list[_Remembering]) -> Any:
    """The same loader, whose batches of rows are known; where it draws rows by number."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return loader
    sampler = _Remembering(loader.batch_sampler)
    loaders.append(sampler)
    return DataLoader(
        loader.dataset,
        batch_sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
    )
