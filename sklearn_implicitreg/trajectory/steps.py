"""Steps of a path, and stretches of them that are one block of equations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sklearn_implicitreg.problem import Params
from sklearn_implicitreg.trajectory.marks import Mark

__all__ = ["Indices", "Step", "Window"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """What is known of one step beside the weights.

    Parameters
    ----------
    lr : float
        Step size of the first parameter group.
    rows : array of int or None, default=None
        Rows of the batch, where they were named.
    batch_size : int or None, default=None
    rounding : float, default=nan
        Norm of the rounding in the applied gradient; see :meth:`Trajectory.rounding`.
    """

    lr: float
    rows: Indices | None = None
    batch_size: int | None = None
    rounding: float = float("nan")


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
        """Mean over the steps of "applied", "consumed" or "visited".

        Parameters
        ----------
        what : {"applied", "consumed", "visited"}

        Returns
        -------
        mean : dict of str to Tensor

        Raises
        ------
        ValueError
            If the path holds no consumed gradients.
        """
        first, last = getattr(self.start, what), getattr(self.stop, what)
        if not last:
            raise ValueError(
                "reference='applied' needs the gradients that the optimizer was given, which "
                "this path does not hold; record with gradients=True (the default only with "
                "every=1)."
            )
        return {name: (last[name] - first[name]).div_(self.n_steps) for name in last}

    def iterates(self) -> Iterator[tuple[Params, int]]:
        """Weights between any two marks of the window, and for how many steps they stand.

        Those of the step, or the mean iterate of several steps: a column that is linear in the
        weights is then as exact as with a mark at every step.
        """
        ends = (*self.inside, self.stop)
        for mark, after in zip(ends[:-1], ends[1:], strict=True):
            n = after.step - mark.step
            if n == 1:
                yield mark.weights, n
            else:
                first, last = mark.visited, after.visited
                yield {name: (t - first[name]).div_(n) for name, t in last.items()}, n

    def row_weights(self, n_rows: int) -> npt.NDArray[np.float64] | None:
        """``omega_i``: mean over the steps of 1 / batch size where row i was used.

        None where the rows of a batch are not known, or count in another data set.
        """
        weights = np.zeros(n_rows)
        for step in self.steps:
            if step.rows is None or step.rows.max() >= n_rows:
                return None
            np.add.at(weights, step.rows, 1.0 / (len(step.rows) * self.n_steps))
        return weights

    @property
    def rounding(self) -> float:
        """Norm of the rounding in the mean applied gradient, at most; nan where unknown."""
        return float(np.mean([step.rounding for step in self.steps]))
