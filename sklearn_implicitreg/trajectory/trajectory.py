"""A recorded training run: marks with running sums, so any window is a difference of two."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.problem.parameters import NOTHING, check, choice, instance, integer, shown
from sklearn_implicitreg.trajectory.files import read, write
from sklearn_implicitreg.trajectory.marks import SUMS, Mark, StoredMark, bare
from sklearn_implicitreg.trajectory.r_factors import RFactors
from sklearn_implicitreg.trajectory.vectors import minus
from sklearn_implicitreg.trajectory.window import Step, Window, on_device, with_others

WINDOW = NOTHING | choice("epoch") | integer(1)
_PATH = {"path": instance("a path", str, PathLike)}


@dataclass(frozen=True)
class Trajectory:
    """Recorded training run; made by :func:`sklearn_implicitreg.trajectory.record`.

    Parameters
    ----------
    marks : tuple of Mark
        In the order of their steps; the first is the start.
    steps : tuple of Step
        One for each step between the first and the last mark.
    optimizer : str
        Class of the optimizer, or those of several whose settings differ, joined by " + ".
    settings : dict
        Of its first parameter group (momentum, betas, ...), none for optimizers that differ; under
        "norms_in_training" whether each normalization was in training state (None: in some steps).
    n_dropped : int
        Steps that are left out: not finite, of step size zero, or with weights that something
        else than the optimizer changed.
    r_factors : R factors or None, default=None
        What the trajectory holds instead of weights, where families were given to ``record``;
        only the first and the last mark have tensors then.
    begins_epoch : bool, default=True
        Whether the first step is that of an epoch, which a slice may have cut.
    others : dict of str to Tensor or None
        What moved in the model and was in no recorded optimizer (buffers, frozen tensors), as it
        was before its first change; None where it was not kept. The marks hold where it went.
    param_groups : dict of str to str
        Name or number of the optimizer's parameter group of every recorded tensor, by which
        ``group_by="param_group"`` groups; empty where it is not known.

    Examples
    --------
    >>> import torch
    >>> from sklearn_implicitreg.trajectory import record
    >>> net = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with record(net, optimizer) as recorder:
    ...     for _ in range(4):
    ...         optimizer.zero_grad()
    ...         net(torch.ones(4, 2)).square().mean().backward()
    ...         optimizer.step()
    >>> recorder.trajectory
    Trajectory(4 steps of SGD, 5 marks, 0 epochs, batches known for 0 steps)
    >>> recorder.trajectory[2:].n_steps
    2
    """

    marks: tuple[Mark, ...]
    steps: tuple[Step, ...]
    optimizer: str
    settings: dict[str, Any] = field(default_factory=dict)
    n_dropped: int = 0
    r_factors: RFactors | None = None
    begins_epoch: bool = True
    others: dict[str, Tensor | None] = field(default_factory=dict)
    param_groups: dict[str, str] = field(default_factory=dict)

    def __sklearn_clone__(self) -> Trajectory:
        """Shared, not copied."""
        return self

    def __repr__(self) -> str:
        epochs = self.marks[-1].epoch - self.marks[0].epoch
        known = sum(step.rows is not None or bool(step.seen) for step in self.steps)
        dropped = f", {self.n_dropped} steps dropped" if self.n_dropped else ""
        held = f", {self.r_factors}" if self.r_factors else ""
        return (
            f"Trajectory({self.n_steps} steps of {self.optimizer}, {len(self.marks)} marks, "
            f"{epochs} epochs, batches known for {known} steps{dropped}{held})"
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

    @property
    def has_gradients(self) -> bool:
        """Whether the gradients that the optimizer was given are known."""
        return bool(self.marks[0].consumed)

    def rounding(self, window: int | str | None = None) -> float:
        """Norm of the rounding in the targets of all windows, at most.

        A coefficient of a single term is wrong by at most this over the norm of its column.

        Parameters
        ----------
        window : None, int or "epoch", default=None
            As for :meth:`windows`.

        Returns
        -------
        rounding : float
            Measured at one step in ten at least, and held in between; nan where unknown.
        """
        return float(np.sqrt(sum(part.rounding**2 for part in self.windows(window))))

    def windows(self, window: int | str | None) -> list[Window]:
        """Windows of the trajectory: between marks (None), of some steps (int) or of epochs.

        Raises
        ------
        ValueError
            If the marks that the windows need are not there.
        """
        check("Trajectory.windows", {"window": window}, {"window": WINDOW})
        edges = self._edges(window)
        return [self._between(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def _edges(self, window: int | str | None) -> list[int]:
        if window is None:
            return list(range(len(self.marks)))
        if window == "epoch":
            ends = [
                i
                for i, mark in enumerate(self.marks)
                if (mark.epoch > self.marks[i - 1].epoch if i else self.begins_epoch)
            ]
            if len(ends) < 2:
                cut = self.marks[-1].epoch > 0
                raise ValueError(
                    "window='epoch' needs a trajectory with marks of epochs; call recorder.epoch() "
                    "at the end of every epoch"
                    + (", and slice so that a whole one is left." if cut else ".")
                )
            return ends
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

    def _between(self, a: int, b: int) -> Window:
        start, stop = self.marks[a], self.marks[b]
        offset = self.marks[0].step
        steps = self.steps[start.step - offset : stop.step - offset]
        return Window(start, stop, self.marks[a:b], steps, self.others)

    def __getitem__(self, part: slice) -> Trajectory:
        """Part of the trajectory, by marks."""
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError("Expected a slice of marks such as trajectory[10:50].")
        marks = self.marks[part]
        if self.r_factors and len(marks) < len(self.marks):
            raise ValueError(
                "Expected a trajectory with weights to slice, got one of only R factors and sums; "
                "record its parts and join them by Trajectory.join, or record without families=."
            )
        if len(marks) < 2:
            raise ValueError(f"Expected a slice of at least 2 marks, got {len(marks)}.")
        offset = self.marks[0].step
        steps = self.steps[marks[0].step - offset : marks[-1].step - offset]
        first = range(len(self.marks))[part].start
        begins = self.begins_epoch
        if first:
            begins = self.marks[first].epoch > self.marks[first - 1].epoch
        return replace(self, marks=marks, steps=steps, begins_epoch=begins)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the trajectory to one file of torch.save, with a checksum of every tensor.

        Parameters
        ----------
        path : str or path-like
            An existing file, or the one that a link leads to, is replaced once the new one is
            whole.

        Raises
        ------
        ValueError
            If it is a folder or a device, in a folder that is not there, or no name of a file.
        OSError
            If it cannot be written; a file that was there stays.
        """
        check("Trajectory.save", {"path": path}, _PATH)
        kinds: dict[frozenset[str], int] = {}
        for step in self.steps:
            kinds.setdefault(step.skipped, len(kinds))
        header = {
            "optimizer": self.optimizer,
            "settings": self.settings,
            "n_dropped": self.n_dropped,
            "begins_epoch": self.begins_epoch,
            "steps": [[s.lr, s.batch_size, s.rounding, s.parts] for s in self.steps],
            "skipped": [sorted(own) for own in kinds],
            "skipped_by": [kinds[step.skipped] for step in self.steps],
            "param_groups": self.param_groups,
        }
        batches = [(step.rows, step.seen) for step in self.steps]
        write(path, header, self.marks, batches, self.r_factors, self.others)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Trajectory:
        """Read a trajectory that :meth:`save` wrote.

        The file is mapped into memory and must stay as it is: a mark is compared with its
        checksums, and ValueError raised, when it is first used.

        Parameters
        ----------
        path : str or path-like
            Pickling writes the marks of a file up to 1 GiB, and the name of a larger one.

        Returns
        -------
        trajectory : Trajectory

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is cut short, damaged, or of another version.
        """
        check("Trajectory.load", {"path": path}, _PATH)
        header, marks, batches, r_factors, others = read(path)
        settings = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in header["settings"].items()
        }
        kinds = [frozenset(own) for own in header["skipped"]]
        steps = tuple(
            Step(lr, rows, size, rounding, kinds[kind], tuple(map(tuple, parts)), seen)
            for (rows, seen), (lr, size, rounding, parts), kind in zip(
                batches, header["steps"], header["skipped_by"], strict=True
            )
        )
        begins, dropped = header["begins_epoch"], header["n_dropped"]
        own = (header["optimizer"], settings, dropped, r_factors, begins, others)
        return cls(marks, steps, *own, header["param_groups"])

    @classmethod
    def from_iterates(
        cls,
        weights: Iterable[Any],
        lr: float | Iterable[float],
        *,
        gradients: Iterable[Any] | None = None,
        n_steps: int = 1,
    ) -> Trajectory:
        """Trajectory of iterates that gradient descent made, such as checkpoints.

        The applied gradient is the displacement over the step size, so the iterates must be of
        plain SGD (``MLPRegressor(solver="sgd", momentum=0)`` by ``partial_fit``).

        Parameters
        ----------
        weights : iterable of T + 1 modules, dicts, fitted scikit-learn models or checkpoint files
            State dicts and files that hold one may keep buffers, which do not change.
        lr : float or iterable of T floats
            Step size, of every step or of the steps between two iterates.
        gradients : iterable of T dicts, default=None
            Mean gradients that were given to the optimizer, for ``reference="applied"``.
        n_steps : int, default=1
            Steps between two iterates. With more than one the mean iterate between them is
            taken as the mean of both.

        Returns
        -------
        trajectory : Trajectory

        Raises
        ------
        ValueError
            If iterates change names or shapes, are too few, not finite or the same object, a step
            size is not positive, or a scikit-learn model has momentum or another solver.

        Examples
        --------
        >>> import torch
        >>> iterates = [{"w": torch.ones(2)}, {"w": torch.zeros(2)}]
        >>> trajectory = Trajectory.from_iterates(iterates, lr=0.5)
        >>> trajectory.windows(None)[0].mean("applied")["w"].tolist()
        [2.0, 2.0]
        """
        from sklearn_implicitreg.trajectory.iterates import recorded

        marks, steps, dropped = recorded(weights, lr, gradients, n_steps)
        return cls(tuple(marks), tuple(steps), "gradient descent", {}, dropped)

    @classmethod
    def join(cls, trajectories: Iterable[Trajectory]) -> Trajectory:
        """One trajectory of consecutive ones, as of a training that was continued.

        Parameters
        ----------
        trajectories : iterable of Trajectory
            Each begins at the weights at which the one before ended.

        Returns
        -------
        trajectory : Trajectory

        Raises
        ------
        ValueError
            If they do not continue each other.
        """
        parts = list(trajectories) if hasattr(trajectories, "__iter__") else []
        if not parts or not all(isinstance(part, Trajectory) for part in parts):
            raise ValueError(
                f"Expected at least one trajectory to join, got {shown(trajectories)}."
            )
        total = parts[0]
        for part in parts[1:]:
            total = _continued(total, part)
        return total


def on_device_of(trajectory: Trajectory, params: Params) -> Trajectory:
    """The trajectory as it is read on the device of some tensors, wherever its marks are."""
    return _on(trajectory, next(iter(params.values())).device)


def _on(trajectory: Trajectory, device: torch.device) -> Trajectory:
    marks = tuple(map(operator.methodcaller("on", device), trajectory.marks))
    return replace(trajectory, marks=marks, others=on_device(trajectory.others, device))


def with_names_of(trajectory: Trajectory, params: Params) -> Trajectory:
    """The trajectory by the names of a model that wraps the recorded one, or is wrapped by it."""
    # All tensors of one of the two have one prefix before their names in the other.
    shapes = {name: t.shape for name, t in params.items()}
    own = {name: t.shape for name, t in trajectory.marks[0].weights.items()}
    every = [*own, *trajectory.others]
    ways = [{n: n.removeprefix(prefix) for n in every} for prefix in _prefixes(own)]
    ways += [{n: prefix + n for n in every} for prefix in _prefixes(shapes)]
    for names in ways:
        if all(shapes.get(names[name]) == shape for name, shape in own.items()):
            return _renamed(trajectory, names)
    return trajectory


def _renamed(trajectory: Trajectory, names: Mapping[str, str]) -> Trajectory:
    kinds = {own: frozenset(names[n] for n in own) for own in {s.skipped for s in trajectory.steps}}
    return replace(
        trajectory,
        marks=tuple(mark.named(names) for mark in trajectory.marks),
        steps=tuple(replace(step, skipped=kinds[step.skipped]) for step in trajectory.steps),
        others={names[name]: t for name, t in trajectory.others.items()},
        param_groups={names[name]: group for name, group in trajectory.param_groups.items()},
    )


def _prefixes(names: Iterable[str]) -> list[str]:
    """All prefixes that end with a dot and are in all of the names."""
    common = os.path.commonprefix(list(names))
    return [common[: i + 1] for i, letter in enumerate(common) if letter == "."]


def _continued(total: Trajectory, part: Trajectory) -> Trajectory:
    """Two trajectories, one after the other."""
    device = next(iter(total.marks[-1].visited.values())).device  # where float64 is
    part = _on(part, device)
    last, first = total.marks[-1].on(device), part.marks[0]
    ends, starts = last.weights, first.weights
    if ends.keys() != starts.keys() or not all(
        torch.equal(t, starts[name]) for name, t in ends.items()
    ):
        raise ValueError(
            "Expected trajectories that continue each other, got a start that is not where the "
            "one before ended."
        )
    if total.optimizer != part.optimizer or total.has_gradients != part.has_gradients:
        raise ValueError(
            "Expected trajectories of one optimizer that hold the same, got "
            f"{total.optimizer} (gradients: {total.has_gradients}) and {part.optimizer} "
            f"(gradients: {part.has_gradients}); record both in the same way."
        )
    if (total.r_factors is None) != (part.r_factors is None):
        raise ValueError(
            "Expected trajectories that hold the same, got one with weights and one with R "
            "factors; record both with the same families=, or both without."
        )
    r_factors = total.r_factors and part.r_factors and total.r_factors.joined(part.r_factors)
    # What moved in the first part alone stands in the second where nobody knows.
    others = part.others | dict.fromkeys(total.others.keys() - part.others.keys())
    before = on_device(total.others, device)
    others |= {n: t for n, t in before.items() if others[n] is not None}
    its = {n: None if others[n] is None else t for n, t in part.others.items()}
    sums, begun = _sums(last, others), _sums(first, its)
    lead = {what: minus(sums[what], begun[what]) for what in SUMS}
    n_steps, n_epochs = last.step - first.step, last.epoch - first.epoch
    after = [
        StoredMark(mark.step + n_steps, mark.epoch + n_epochs, _After(mark, lead, its))
        for mark in part.marks[1:]
    ]
    kept = total.marks if r_factors is None else (*total.marks[:-1], bare(last))
    return replace(
        total,
        marks=(*kept, *after),
        steps=(*total.steps, *part.steps),
        n_dropped=total.n_dropped + part.n_dropped,
        r_factors=r_factors,
        others=others,
    )


@dataclass(frozen=True)
class _After:
    """A mark of a continued training, whose sums go on from those before; added when read."""

    mark: Mark
    lead: Mapping[str, Params]  # by which the sums before are ahead, shared by all marks
    others: Mapping[str, Tensor | None]

    def read(self, what: str, only: str | None = None) -> Params:
        if what == "visited" and self.others:
            own = with_others(self.mark, self.others)
        elif only is not None:
            own = {only: self.mark.tensor(what, only)}
        else:
            own = getattr(self.mark, what)
        own = own if only is None else {only: own[only]}
        return own if what not in SUMS else {n: t + self.lead[what][n] for n, t in own.items()}

    def kept(self) -> Self | None:
        """The mark knows how it travels."""
        return self


def _sums(mark: Mark, others: Mapping[str, Tensor | None]) -> dict[str, Params]:
    """Sums of a mark, also of what had not moved yet."""
    sums = {what: getattr(mark, what) for what in SUMS}
    return sums | {"visited": with_others(mark, others)}
