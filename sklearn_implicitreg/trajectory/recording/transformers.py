"""Recorder for Hugging Face's Trainer; where Transformers is installed, it is imported here."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from os import PathLike
from typing import Any

from sklearn_implicitreg.problem import ParamsSpec
from sklearn_implicitreg.trajectory.recording.sessions import Session, SessionRecorder, base_of

_Callback: Any = base_of("transformers", "TrainerCallback")


class TransformersRecorder(SessionRecorder, _Callback):
    """Callback that records the training of a Hugging Face ``Trainer``.

    Epochs are marked; of the batches only the size is known. The Trainer clips gradients by
    default, and clipped ones are what the optimizer applies: ``max_grad_norm=0`` turns that off.

    Parameters
    ----------
    every, gradients, directory
        As for :func:`record`.
    families, reference, data, loss, params
        As for :func:`record`; the default data are those of the Trainer's loader, and the default
        loss is the one that the model returns.

    Attributes
    ----------
    trajectory_ : Trajectory
        What was recorded.

    Raises
    ------
    ImportError
        If Transformers is not installed.

    Examples
    --------
    >>> import tempfile, torch, transformers
    >>> from sklearn_implicitreg.trajectory import TransformersRecorder
    >>> class Mean(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = torch.nn.Linear(2, 1)
    ...     def forward(self, x, labels):
    ...         return {"loss": (self.net(x) - labels).square().mean()}
    >>> recorder = TransformersRecorder()
    >>> settings = transformers.TrainingArguments(
    ...     output_dir=tempfile.mkdtemp(), num_train_epochs=2, per_device_train_batch_size=4,
    ...     report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
    ... )
    >>> rows = [{"x": x, "labels": x[:1]} for x in torch.eye(8, 2)]
    >>> trainer = transformers.Trainer(Mean(), settings, train_dataset=rows, callbacks=[recorder])
    >>> _ = trainer.train()  # doctest: +ELLIPSIS
    {'train_runtime': ...}
    >>> recorder.trajectory_
    Trajectory(4 steps of AdamW, 5 marks, 2 epochs, batches known for 0 steps)
    """

    def __init__(  # noqa: PLR0913
        self,
        every: int = 1,
        gradients: bool | None = None,
        directory: str | PathLike[str] | None = None,
        *,
        families: Sequence[Any] | None = None,
        reference: str = "gradient",
        data: Any = None,
        loss: Any = None,
        params: ParamsSpec = "auto",
    ):
        if _Callback is object:
            raise ImportError("TransformersRecorder needs the package transformers; install it.")
        how = {"every": every, "gradients": gradients, "directory": directory, "data": data}
        self.session_ = Session(
            **how, families=families, reference=reference, loss=loss, params=params
        )
        self._left: int | None = None  # rows of the epoch that are still to come

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the optimizer, which Accelerate has wrapped."""
        loader = kwargs.get("train_dataloader")
        trained = kwargs["model"], [kwargs["optimizer"]]
        self.session_.begin(*trained, lambda needed: loader if needed else None)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the rows of the epoch."""
        data: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        counted = isinstance(data, Sized) and not getattr(args, "dataloader_drop_last", False)
        self._left = len(data) if counted else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say how many rows the batches of the next step have."""
        for k in range(args.gradient_accumulation_steps):
            size = args.train_batch_size * args.world_size
            if self._left is not None:
                size = min(size, self._left)
                self._left -= size
            if size:
                self.session_.batch(size, accumulate=k > 0)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the end of an epoch."""
        self.session_.epoch()
