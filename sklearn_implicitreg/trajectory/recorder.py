"""Recording a training run through hooks of its optimizer."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.trajectory.path import Indices, Mark, Step, Trajectory
from sklearn_implicitreg.trajectory.updates import UpdateRule, rule_of

__all__ = ["Recorder", "record"]

_ATTACHED = "_sklearn_implicitreg_recorder"


def record(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    every: int = 1,
    update_rule: UpdateRule | None = None,
) -> Recorder:
    """Context manager that records the steps of an optimizer.

    Parameters
    ----------
    model : nn.Module
        What is trained.
    optimizer : torch.optim.Optimizer
        SGD (momentum, Nesterov, dampening), Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad.
    every : int, default=1
        Steps between marks; the sums lose no step.
    update_rule : callable(displacement, group, state_before, state_after), default=None
        Returns the gradient that a step applied, for other optimizers.

    Returns
    -------
    path : Recorder
        With ``path.epoch()`` and ``path.batch(rows)`` to call in the loop, and
        ``path.trajectory`` afterwards.

    Raises
    ------
    ValueError
        For an optimizer that cannot be told from its steps, or one that is recorded already.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with record(net, optimizer) as path:
    ...     net(torch.ones(4, 2)).square().mean().backward()
    ...     optimizer.step()
    ...     path.epoch()
    >>> path.trajectory
    Trajectory(1 steps of SGD, 2 marks, 1 epochs, batches known for 0 steps)
    """
    return Recorder(model, optimizer, every=every, update_rule=update_rule)


class Recorder:
    """Keeps the marks of a run; see :func:`record`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        every: int = 1,
        update_rule: UpdateRule | None = None,
    ):
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"Expected every >= 1, got {every!r}.")
        self._rule, self._remembered = rule_of(optimizer, update_rule)
        self._optimizer = optimizer
        self._every = every
        names = {id(p): name for name, p in model.named_parameters()}
        self._params = {
            names[id(p)]: p
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in names
        }
        if not self._params:
            raise ValueError(
                "Expected an optimizer of this model's parameters, got one of none of them."
            )
        self._names = names
        self._handles: list[Any] = []
        self._before: dict[str, tuple[Tensor, dict[str, Any]]] = {}
        self._step = self._epoch = self._n_dropped = 0
        self._rows: Indices | None = None
        self._batch_size: int | None = None
        self._steps: list[Step] = []
        self._marks: list[Mark] = []
        self._sums: dict[str, Params] = {
            what: {n: torch.zeros_like(p, dtype=torch.float64) for n, p in self._params.items()}
            for what in ("applied", "consumed", "visited")
        }

    def __enter__(self) -> Recorder:
        """Attach the hooks and make the first mark."""
        if getattr(self._optimizer, _ATTACHED, False):
            raise ValueError(
                "This optimizer is being recorded already; leave the other record(...) first."
            )
        setattr(self._optimizer, _ATTACHED, True)
        self._handles = [
            self._optimizer.register_step_pre_hook(self._remember),
            self._optimizer.register_step_post_hook(self._add),
        ]
        if not self._marks:
            self._mark()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Detach the hooks; what was recorded is kept, also when the loop raised."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        delattr(self._optimizer, _ATTACHED)
        if self._marks[-1].step != self._step:
            self._mark()

    def epoch(self) -> None:
        """Mark the end of an epoch."""
        self._epoch += 1
        if self._marks[-1].step == self._step:
            self._marks.pop()
        self._mark()

    def batch(self, rows: Any) -> None:
        """Name the rows of the batch of the next step.

        Parameters
        ----------
        rows : array-like of int, or int
            Positions of the rows in the data set; or only their number.
        """
        if np.ndim(rows) == 0:
            self._rows, self._batch_size = None, int(rows)
            return
        self._rows = np.array(torch.as_tensor(rows).cpu().numpy(), dtype=np.int64)
        self._batch_size = len(self._rows)

    @property
    def trajectory(self) -> Trajectory:
        """What was recorded.

        Raises
        ------
        ValueError
            If there was no step, or most were not finite.
        """
        if len(self._marks) < 2:
            raise ValueError("Expected at least one recorded step, got none.")
        if self._n_dropped > self._step / 2:
            raise ValueError(
                f"Expected finite steps, got {self._n_dropped} of "
                f"{self._step + self._n_dropped} with NaN or inf; the training diverged."
            )
        group = self._optimizer.param_groups[0]
        settings = {
            key: value
            for key, value in group.items()
            if isinstance(value, int | float | bool | str) or _is_pair(value)
        }
        name = type(self._optimizer).__name__
        return Trajectory(
            tuple(self._marks), tuple(self._steps), name, settings, self._n_dropped
        )

    def _mark(self) -> None:
        self._marks.append(
            Mark(
                self._step,
                self._epoch,
                {name: p.detach().clone() for name, p in self._params.items()},
                *(
                    {name: t.clone() for name, t in self._sums[what].items()}
                    for what in ("applied", "consumed", "visited")
                ),
            )
        )

    def _remember(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Weights and the state that the step will overwrite."""
        self._before = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                name = self._names.get(id(p))
                if name is None:
                    raise ValueError(
                        "Expected the optimizer to keep the parameters of the recorded model, "
                        "got another one; start a new record(...) after replacing a model."
                    )
                state = optimizer.state.get(p, {})
                kept = state if "*" in self._remembered else {
                    key: state[key] for key in self._remembered if key in state
                }
                copied = {
                    key: value.clone() if isinstance(value, Tensor) else value
                    for key, value in kept.items()
                }
                self._before[name] = (p.detach().clone(), copied)

    def _add(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Add what the step did to the running sums."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                name = self._names[id(p)]
                weights, state = self._before[name]
                moved = weights.double() - p.detach().double()
                applied = self._rule(moved, group, state, optimizer.state.get(p, {}))
                found[name] = (applied, p.grad.detach().double())
        if not all(bool(torch.isfinite(a.sum())) for a, _ in found.values()):
            self._n_dropped += 1
            return
        for name, (weights, _) in self._before.items():
            self._sums["visited"][name] += weights
        for name, (applied, gradient) in found.items():
            self._sums["applied"][name] += applied
            self._sums["consumed"][name] += gradient
        lr = optimizer.param_groups[0]["lr"]
        self._steps.append(Step(float(lr), self._rows, self._batch_size))
        self._rows = self._batch_size = None
        self._step += 1
        self._before = {}
        if self._step % self._every == 0:
            self._mark()


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, int | float) for v in value)
