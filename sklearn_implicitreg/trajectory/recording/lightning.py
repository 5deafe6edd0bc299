"""Recorder for Lightning; where Lightning is installed, it is imported here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

from sklearn_implicitreg.problem import ParamsSpec
from sklearn_implicitreg.trajectory.recording.sessions import Session, SessionRecorder, base_of

# Of the two names that Lightning has, the one that is in use.
_Callback: Any = base_of(
    "pytorch_lightning"
    if "pytorch_lightning" in sys.modules and "lightning" not in sys.modules
    else "lightning.pytorch",
    "Callback",
)


def _held(optimizer: Any) -> Iterator[int]:
    return (id(p) for group in optimizer.param_groups for p in group["params"])


class LightningRecorder(SessionRecorder, _Callback):
    """Callback that records the training of a LightningModule, by one optimizer or several.

    Epochs are marked, and the rows of every batch are looked up by their content; where a
    transform changes them the batch itself is kept.

    Parameters
    ----------
    every, gradients, directory
        As for :func:`record`.
    find_rows : bool, default=True
        Whether to look up batches, which costs one pass over the data, and to keep those that
        are not found (with ``every=1``); without it only their sizes are known.
    submodule : str, default=None
        Part of the LightningModule that is recorded, such as "net"; None: all of it.
    families, reference, data, loss, params
        As for :func:`record`; the default data are those of the trainer's loader.

    Attributes
    ----------
    trajectory_ : Trajectory
        What was recorded.

    Raises
    ------
    ImportError
        If Lightning is not installed.

    Examples
    --------
    >>> import lightning, torch
    >>> from sklearn_implicitreg.trajectory import LightningRecorder
    >>> class Mean(lightning.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = torch.nn.Linear(2, 1)
    ...     def training_step(self, batch, index):
    ...         return self.net(batch).square().mean()
    ...     def configure_optimizers(self):
    ...         return torch.optim.SGD(self.parameters(), lr=0.1)
    >>> recorder = LightningRecorder()
    >>> settings = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    >>> trainer = lightning.Trainer(
    ...     max_epochs=2, callbacks=[recorder], accelerator="cpu", **dict.fromkeys(settings, False)
    ... )
    >>> trainer.fit(Mean(), torch.utils.data.DataLoader(torch.eye(8, 2), batch_size=4))
    >>> recorder.trajectory_
    Trajectory(4 steps of SGD, 5 marks, 2 epochs, batches known for 4 steps)
    """

    def __init__(  # noqa: PLR0913
        self,
        every: int = 1,
        gradients: bool | None = None,
        directory: str | PathLike[str] | None = None,
        find_rows: bool = True,
        submodule: str | None = None,
        *,
        families: Sequence[Any] | None = None,
        reference: str = "gradient",
        data: Any = None,
        loss: Any = None,
        params: ParamsSpec = "auto",
    ):
        if _Callback is object:
            raise ImportError("LightningRecorder needs the package lightning; install it.")
        super().__init__()
        self.find_rows, self.submodule = find_rows, submodule
        how = {"every": every, "gradients": gradients, "directory": directory, "data": data}
        self.session_ = Session(
            find_rows, **how, families=families, reference=reference, loss=loss, params=params
        )
        self._batch: tuple[Any, int] | None = None  # what waits for its backward pass

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the optimizers that have tensors of the model."""
        model = pl_module if self.submodule is None else pl_module.get_submodule(self.submodule)
        own = set(map(id, model.parameters()))
        optimizers = [o for o in trainer.optimizers if not own.isdisjoint(_held(o))]
        self.session_.begin(
            model,
            optimizers or trainer.optimizers,
            lambda needed: trainer.train_dataloader if needed else None,
        )
        if self.find_rows:
            self.session_.rows_from(getattr(trainer.train_dataloader, "dataset", None))

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Name the batch, which joins those whose gradients it is accumulated with."""
        n, self._batch = trainer.accumulate_grad_batches, None
        if not getattr(pl_module, "automatic_optimization", True):
            self.session_.batch(batch, accumulate=True)
        elif n == 1:
            self.session_.batch(batch)
        else:  # a training_step that returns None leaves a batch out
            self._batch = batch, batch_idx

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Name a batch whose gradients are accumulated."""
        if self._batch is not None:
            # The loss is divided by n also where an epoch ends with fewer batches.
            n, (batch, batch_idx) = trainer.accumulate_grad_batches, self._batch
            self._batch = None
            joins = bool(batch_idx % n)
            self.session_.batch(batch, accumulate=joins, weight=1 / n, called=True)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Mark the end of an epoch."""
        self.session_.epoch()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detach; what was recorded is kept."""
        self.session_.end()
