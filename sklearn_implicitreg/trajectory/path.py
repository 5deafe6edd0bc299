"""A recorded training path: marks with running sums, so that any window is a difference of two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sklearn_implicitreg.problem import Params

__all__ = ["Mark", "Step", "Trajectory", "Window"]

_FORMAT = 1
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """What is known of one step beside the weights."""

    lr: float
    rows: Indices | None = None  # of the batch, where they were named
    batch_size: int | None = None


@dataclass(frozen=True)
class Mark:
    """State of the path after ``step`` steps; the sums run from its start, in float64."""

    step: int
    epoch: int  # epochs that had ended
    weights: Params
    applied: Params  # sum of the gradients that the steps applied
    consumed: Params  # sum of the gradients that the optimizer was given
    visited: Params  # sum of the weights that the gradients were taken at


@dataclass(frozen=True)
class Window:
    """A stretch of steps as one block of equations."""

    start: Mark
    stop: Mark
    inside: tuple[Mark, ...]  # marks at which a step of the window began
    steps: tuple[Step, ...]

    @property
    def n_steps(self) -> int:
        """Number of steps, T."""
        return self.stop.step - self.start.step

    def mean(self, what: str) -> Params:
        """Mean over the steps of "applied", "consumed" or "visited"."""
        first, last = getattr(self.start, what), getattr(self.stop, what)
        return {name: (last[name] - first[name]) / self.n_steps for name in last}

    def row_weights(self, n_rows: int) -> npt.NDArray[np.float64] | None:
        """``omega_i``: mean over the steps of 1 / batch size where row i was used.

        None where the rows of a batch are not known.
        """
        weights = np.zeros(n_rows)
        for step in self.steps:
            if step.rows is None:
                return None
            np.add.at(weights, step.rows, 1.0 / (len(step.rows) * self.n_steps))
        return weights


@dataclass(frozen=True)
class Trajectory:
    """Recorded path of a training run; made by :func:`sklearn_implicitreg.trajectory.record`.

    Parameters
    ----------
    marks : tuple of Mark
        In the order of their steps; the first is the start.
    steps : tuple of Step
        One for each step between the first and the last mark.
    optimizer : str
        Class of the optimizer.
    settings : dict
        Of its first parameter group (momentum, betas, ...).
    n_dropped : int
        Steps that were not finite and are left out.
    """

    marks: tuple[Mark, ...]
    steps: tuple[Step, ...]
    optimizer: str
    settings: dict[str, Any] = field(default_factory=dict)
    n_dropped: int = 0

    def __sklearn_clone__(self) -> Trajectory:
        """Shared, not copied."""
        return self

    def __repr__(self) -> str:
        """What the path holds."""
        epochs = self.marks[-1].epoch - self.marks[0].epoch
        known = sum(step.rows is not None for step in self.steps)
        return (
            f"Trajectory({self.n_steps} steps of {self.optimizer}, {len(self.marks)} marks, "
            f"{epochs} epochs, batches known for {known} steps)"
        )

    @property
    def n_steps(self) -> int:
        """Number of recorded steps."""
        return self.marks[-1].step - self.marks[0].step

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the recorded tensors."""
        return tuple(self.marks[0].weights)

    @property
    def every_step(self) -> bool:
        """Whether there is a mark at every step."""
        return len(self.marks) == self.n_steps + 1

    def windows(self, window: int | str | None) -> list[Window]:
        """Windows of the path: between marks (None), of some steps (int) or of epochs.

        Raises
        ------
        ValueError
            If the marks that the windows need are not there.
        """
        edges = self._edges(window)
        return [self._between(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def _edges(self, window: int | str | None) -> list[int]:
        if window is None:
            return list(range(len(self.marks)))
        if window == "epoch":
            ends = [0] if self.marks[0].epoch == self._first_epoch else []
            ends = [
                i
                for i, mark in enumerate(self.marks)
                if i == 0 or mark.epoch > self.marks[i - 1].epoch
            ]
            if len(ends) < 2:
                raise ValueError(
                    "window='epoch' needs a path with marks of epochs; call path.epoch() at the "
                    "end of every epoch while recording."
                )
            return ends
        if not isinstance(window, int | np.integer) or window < 1:
            raise ValueError(f"Expected window None, 'epoch' or an integer >= 1, got {window!r}.")
        place = {mark.step: i for i, mark in enumerate(self.marks)}
        first = self.marks[0].step
        wanted = range(first, self.marks[-1].step + 1, int(window))
        if any(step not in place for step in wanted) or len(wanted) < 2:
            raise ValueError(
                f"window={window} needs a mark every {window} steps and at least that many "
                f"steps, got {len(self.marks)} marks over {self.n_steps} steps; record with an "
                "`every` that divides the window."
            )
        return [place[step] for step in wanted]

    @property
    def _first_epoch(self) -> int:
        return self.marks[0].epoch

    def _between(self, a: int, b: int) -> Window:
        start, stop = self.marks[a], self.marks[b]
        offset = self.marks[0].step
        steps = self.steps[start.step - offset : stop.step - offset]
        return Window(start, stop, self.marks[a:b], steps)

    def __getitem__(self, part: slice) -> Trajectory:
        """Part of the path, by marks."""
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError("Expected a slice of marks such as path[10:50].")
        marks = self.marks[part]
        if len(marks) < 2:
            raise ValueError(f"Expected a slice of at least 2 marks, got {len(marks)}.")
        offset = self.marks[0].step
        steps = self.steps[marks[0].step - offset : marks[-1].step - offset]
        return replace(self, marks=marks, steps=steps)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the path to one npz file, without pickle.

        Parameters
        ----------
        path : str or path-like
        """
        arrays: dict[str, npt.NDArray[Any]] = {}
        for i, mark in enumerate(self.marks):
            for what in ("weights", "applied", "consumed", "visited"):
                for name, tensor in getattr(mark, what).items():
                    arrays[f"{i}/{what}/{name}"] = tensor.detach().cpu().numpy()
        for i, step in enumerate(self.steps):
            if step.rows is not None:
                arrays[f"rows/{i}"] = step.rows
        header = {
            "format": _FORMAT,
            "optimizer": self.optimizer,
            "settings": self.settings,
            "n_dropped": self.n_dropped,
            "marks": [[mark.step, mark.epoch] for mark in self.marks],
            "names": list(self.names),
            "steps": [[step.lr, step.batch_size] for step in self.steps],
        }
        np.savez(path, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Trajectory:
        """Read a path that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        trajectory : Trajectory

        Raises
        ------
        ValueError
            If the file is cut short, or of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                header = json.loads(str(stored["header"]))
                if header.get("format") != _FORMAT:
                    raise ValueError(
                        f"Expected a path of format {_FORMAT}, got {header.get('format')!r}; "
                        "read it with the version that wrote it."
                    )
                content = {name: stored[name] for name in stored.files}
        except (OSError, EOFError, KeyError, ValueError) as error:
            if "of format" in str(error):
                raise
            raise ValueError(
                f"Expected a file written by Trajectory.save, got one that cannot be read "
                f"({error}); was it cut short?"
            ) from error
        return cls._from_content(header, content)

    @classmethod
    def _from_content(cls, header: dict[str, Any], content: dict[str, Any]) -> Trajectory:
        def params(i: int, what: str) -> Params:
            return {n: torch.from_numpy(content[f"{i}/{what}/{n}"]) for n in header["names"]}

        marks = tuple(
            Mark(step, epoch, *(params(i, w) for w in ("weights", "applied", "consumed", "visited")))
            for i, (step, epoch) in enumerate(header["marks"])
        )
        steps = tuple(
            Step(lr, content.get(f"rows/{i}"), size)
            for i, (lr, size) in enumerate(header["steps"])
        )
        return cls(marks, steps, header["optimizer"], header["settings"], header["n_dropped"])


def joined(paths: Sequence[Trajectory]) -> Trajectory:
    """One path of consecutive ones, whose marks must meet."""
    total = paths[0]
    for path in paths[1:]:
        last, first = total.marks[-1], path.marks[0]
        same = last.weights.keys() == first.weights.keys() and all(
            torch.equal(t, first.weights[n]) for n, t in last.weights.items()
        )
        if not same:
            raise ValueError(
                "Expected paths that continue each other, got a start that is not where the one "
                "before ended."
            )
        shifted = tuple(
            Mark(
                mark.step - first.step + last.step,
                mark.epoch - first.epoch + last.epoch,
                mark.weights,
                *(
                    {n: t - getattr(first, w)[n] + getattr(last, w)[n] for n, t in sums.items()}
                    for w, sums in (
                        ("applied", mark.applied),
                        ("consumed", mark.consumed),
                        ("visited", mark.visited),
                    )
                ),
            )
            for mark in path.marks[1:]
        )
        total = replace(
            total,
            marks=(*total.marks, *shifted),
            steps=(*total.steps, *path.steps),
            n_dropped=total.n_dropped + path.n_dropped,
        )
    return total
