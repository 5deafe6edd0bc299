"""Recorder for Hugging Face's Trainer; where Transformers is installed, it is imported here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence, Sized
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_implicitreg.adapters.torch.generators import preserved_rng
from sklearn_implicitreg.adapters.torch.labels import labels_after_first, labels_in, names_labels
from sklearn_implicitreg.adapters.torch.structure import skeleton
from sklearn_implicitreg.problem import ParamsSpec
from sklearn_implicitreg.trajectory.recording.sessions import Session, SessionRecorder, base_of

_Callback: Any = base_of("transformers", "TrainerCallback")


class TransformersRecorder(SessionRecorder, _Callback):
    """Callback that records the training of a Hugging Face ``Trainer``.

    Epochs are marked; batches are what the model is called with, and where that has no labels
    (label smoothing, ``compute_loss_func``) only their sizes are known. Losses that the Trainer
    divides by ``num_items_in_batch`` have the share of their labels in those of the step as
    factor, other ones one over the number of accumulated batches. The Trainer clips gradients by
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
    Trajectory(4 steps of AdamW, 5 marks, 2 epochs, batches known for 4 steps)
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
        self._sizes: list[int] = []  # of the batches of the next step, as far as settings tell
        self._seen: list[Mapping[str, Any]] = []  # what the model was called with in the step
        self._hook: Any = None
        self._counted: Counted | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the optimizer, which Accelerate wraps, and see what the model is given."""
        loader = kwargs.get("train_dataloader")
        trained = kwargs["model"], [kwargs["optimizer"]]
        self.session_.begin(*trained, lambda needed: loader if needed else None)
        self.session_.rows_from(getattr(loader, "dataset", None))
        self._stop_seeing()
        self._counted = None
        self._hook = kwargs["model"].register_forward_pre_hook(self._see, with_kwargs=True)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the rows of the epoch."""
        data: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        counted = isinstance(data, Sized) and not getattr(args, "dataloader_drop_last", False)
        self._left = len(data) if counted else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find how many rows the batches of the next step have."""
        self._sizes, self._seen = [], []
        for _ in range(args.gradient_accumulation_steps):
            size = args.train_batch_size * args.world_size
            if self._left is not None:
                size = min(size, self._left)
                self._left -= size
            if size:
                self._sizes.append(size)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Name the batches of the step, by what the model was called with or by their sizes."""
        # With several processes the model sees a part of each batch.
        whole = args.world_size == 1 and len(self._seen) == len(self._sizes)
        named = self._named(kwargs["model"]) if whole else None
        for k, (batch, weight) in enumerate(named or [(size, None) for size in self._sizes]):
            self.session_.batch(batch, accumulate=k > 0, weight=weight, called=True)
        self._seen = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the end of an epoch."""
        self.session_.epoch()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Detach."""
        self._stop_seeing()
        super().on_train_end(*args, **kwargs)

    def _see(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        # Not more than a step has: the calls go on where a training has raised an error.
        if model.training and torch.is_grad_enabled() and len(self._seen) <= len(self._sizes):
            self._seen.append(kwargs)

    def _stop_seeing(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _named(self, model: nn.Module) -> list[tuple[Any, float | None]] | None:
        """Batches that the model was called with, and the factors of their losses, if known."""
        calls = self._seen
        if not all(any(map(names_labels, call)) for call in calls):
            return None
        batches = [{k: v for k, v in call.items() if k != _N_LABELS} for call in calls]
        total = calls[0].get(_N_LABELS) if calls else None
        if total is None:  # each loss is divided by the number of batches
            return [(batch, None) for batch in batches]
        if not all(isinstance(batch.get("labels"), Tensor) for batch in batches):
            return None
        self._counted = self._counted or _count_of(model, batches[0], total)
        if self._counted is None:
            return None
        counts = [self._counted(batch["labels"]) for batch in batches]
        whole = 1.0 if self._counted is _one else float(total)
        factors = [count / whole for count in counts]
        return [(batch, own) for batch, own in zip(batches, factors, strict=True) if own]


Counted = Callable[[Tensor], float]  # what the mean over some labels is multiplied by
_N_LABELS = "num_items_in_batch"  # what a model is given to divide its summed loss by


def _all(labels: Tensor) -> float:
    return float(labels_in(labels).sum())


def _after_first(labels: Tensor) -> float:
    return float(labels_after_first(labels).sum())


def _one(labels: Tensor) -> float:
    return 1.0


def _count_of(model: nn.Module, batch: Mapping[str, Any], total: Any) -> Counted | None:
    """Over how many labels the loss of a model is a sum, if it is: the Trainer may count others."""
    copy = skeleton(model, None, None)
    for part in copy.modules():
        part.training = False  # without dropout, so that two losses can be compared
    one = total / total
    device = next(model.parameters()).device
    with preserved_rng(device), torch.no_grad(), contextlib.suppress(Exception):
        summed, mean = (float(_loss_of(copy(**batch, **more))) for more in ({_N_LABELS: one}, {}))
        for counted in (_one, _after_first, _all):
            if abs(summed - counted(batch["labels"]) * mean) <= _CLOSE * abs(summed):
                return counted
    return None


def _loss_of(output: Any) -> Any:
    return output["loss"] if isinstance(output, Mapping) else output[0]


_CLOSE = 1e-4  # a sum in float32, and less than one label of a batch
