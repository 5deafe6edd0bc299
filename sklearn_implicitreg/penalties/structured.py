"""Families that are solved as a whole: ``theta' Q theta`` with an unknown Q has no columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from sklearn_implicitreg.penalties.fitted import named_tensors
from sklearn_implicitreg.problem import Problem, Sampling
from sklearn_implicitreg.problem.parameters import Checked, as_numbers, check, number

Array = npt.NDArray[np.float64]
_SHOWN = 6  # names in a repr
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class StructuredPenalty:
    """``R = (theta - center)' Q (theta - center)`` with an estimated Q, full or diagonal.

    Attributes
    ----------
    coefficients : ndarray of shape (p, p) or (p,)
        Q, or its diagonal.
    shapes : dict of str to tuple of int
        Shapes of the tensors that theta is flattened and concatenated from, in this order.
    center : ndarray of shape (p,) or None
        Where R is zero, such as the start of a training that was stopped early; None is zero.

    Examples
    --------
    >>> penalty = StructuredPenalty(np.array([[2.0, 1.0], [1.0, 3.0]]), {"coef": (2,)})
    >>> penalty.value(np.array([1.0, 1.0])), penalty.gradient(np.array([1.0, 0.0]))
    (7.0, array([4., 2.]))
    >>> penalty({"coef": torch.tensor([1.0, 1.0])})
    tensor(7.)
    """

    coefficients: Array
    shapes: Shapes
    center: Array | None = None

    def nothing(self) -> StructuredPenalty:
        """The same with Q = 0.

        Returns
        -------
        penalty : StructuredPenalty
        """
        return replace(self, coefficients=np.zeros_like(self.coefficients))

    def words(self) -> str:
        """What the penalty is like, in a sentence.

        Returns
        -------
        str
        """
        if not np.isfinite(self.coefficients).all():
            return "The penalty is not finite."
        own = self.coefficients
        values = np.linalg.eigvalsh(own) if own.ndim == 2 else own
        away = "theta" if self.center is None else "(theta - start)"
        return (
            f"R = {away}' Q {away} with eigenvalues of Q from {values.min():.4g} to "
            f"{values.max():.4g}, mean {values.mean():.4g}."
        )

    @property
    def matrix_(self) -> Array:
        """Q as a full matrix of shape (p, p)."""
        return self.coefficients if self.coefficients.ndim == 2 else np.diag(self.coefficients)

    @property
    def entries_(self) -> Array:
        """Q as a full matrix, or its diagonal where the rest is zero."""
        return self.coefficients

    @property
    def diagonal_(self) -> Array:
        """Diagonal of Q, of shape (p,)."""
        return np.diag(self.coefficients) if self.coefficients.ndim == 2 else self.coefficients

    def value(self, theta: Array) -> float:
        """Value at flattened parameters.

        Parameters
        ----------
        theta : ndarray of shape (p,)
            The tensors, flattened and concatenated in the order of ``shapes``.

        Returns
        -------
        float
        """
        theta = as_numbers("theta", theta)
        away = theta if self.center is None else theta - self.center
        return float(away @ self.gradient(theta)) / 2

    def gradient(self, theta: Array) -> Array:
        """Gradient ``2 Q (theta - center)`` at flattened parameters.

        Parameters
        ----------
        theta : ndarray of shape (p,) or (p, M)
            One set of parameters, or one per column.

        Returns
        -------
        ndarray of the shape of theta
        """
        theta = as_numbers("theta", theta)
        size = sum(map(prod, self.shapes.values()))
        if theta.shape[:1] != (size,):
            raise ValueError(
                f"Expected theta of shape ({size},) or with a column for each set of parameters, "
                f"got {theta.shape}."
            )
        if self.center is not None:
            theta = (theta.T - self.center).T
        gradient: Array = 2 * self._times(torch.from_numpy(theta)).numpy()
        return gradient

    def __call__(self, params: nn.Module | Mapping[str, Tensor]) -> Tensor:
        """Value at a module or at a dict of parameters, differentiable with respect to both.

        Parameters
        ----------
        params : torch.nn.Module or dict of str to Tensor
            Must hold the tensors of ``shapes``.

        Returns
        -------
        value : Tensor of shape ()

        Raises
        ------
        ValueError
            If a tensor is missing or of another shape.
        TypeError
            If ``params`` is neither a module nor a dict of tensors.
        """
        named = named_tensors(params, self.shapes)
        theta = torch.cat([named[name].reshape(-1) for name in self.shapes])
        if self.center is not None:
            theta = theta - theta.new_tensor(self.center)
        return theta @ self._times(theta)

    def _times(self, theta: Tensor) -> Tensor:
        """Q times one set of parameters, or one per column."""
        q = theta.new_tensor(self.coefficients)
        return q @ theta if q.ndim == 2 else q.reshape(-1, *[1] * (theta.ndim - 1)) * theta


@dataclass(frozen=True)
class StructuredSolution:
    """Result of a structured family.

    Examples
    --------
    >>> from sklearn_implicitreg.penalties import Diagonal
    >>> found = Diagonal().solve([[1.0], [2.0]], [[0.2], [1.2]])
    >>> found.n_unknowns, found.coef.round(3).tolist()
    (2, [0.1, 0.3])
    """

    penalty: Any  # StructuredPenalty, or LearnedPenalty
    coef: Array  # (k,)
    term_names: Sequence[str]  # made when asked for
    fitted: Array  # (p, M), part of the targets that the family explains
    rank: int  # numbers that the equations determine
    n_equations: int
    notes: tuple[str, ...]
    dependent: tuple[str, ...] = ()  # what is not determined, in words
    conf_int: Array | None = None  # (k, 2)
    held_out: tuple[float, int] | None = None  # R2 of equations left out, and how many
    n_free: int | None = None  # numbers that can be chosen, where they are not the coefficients

    @property
    def n_unknowns(self) -> int:
        """Numbers that are looked for: the coefficients, or those that they are made of."""
        return len(self.coef) if self.n_free is None else self.n_free


@dataclass(frozen=True)
class Endpoints:
    """What a structured family is solved from."""

    thetas: Array
    targets: Array
    shapes: Shapes
    problems: Sequence[Problem]
    confidence_level: float
    sampling: Sampling

    def names(self, pattern: str = "{}") -> ScalarNames:
        """Names of the parameters, by features where the model has them."""
        problem = self.problems[0] if self.problems else None
        known = {n: problem.entry_names(n) for n in self.shapes} if problem is not None else {}
        entries = {name: names for name, names in known.items() if names is not None}
        return ScalarNames(self.shapes, pattern, entries)

    def unexplained(self, fitted: Array) -> float:
        """Share of the squared target that is left over; 0 for a zero target."""
        size = float(np.linalg.norm(self.targets))
        return (float(np.linalg.norm(self.targets - fitted)) / size) ** 2 if size else 0.0


class Structured(Checked, BaseEstimator, ABC):
    """A family that is solved as a whole, from the endpoints themselves.

    It has no terms and no columns, and cannot be joined with other families.

    See Also
    --------
    sklearn_implicitreg.penalties.STRUCTURED : The families by name.

    Examples
    --------
    >>> from sklearn_implicitreg.penalties import STRUCTURED, Structured
    >>> all(issubclass(family, Structured) for family in STRUCTURED.values())
    True
    """

    at_mean = True  # whether the mean gradient over a window is that at its mean weights

    def solve(
        self,
        thetas: Array,
        targets: Array,
        problems: Sequence[Problem] | None = None,
        *,
        confidence_level: float = 0.95,
        sampling: Sampling = "data sets",
    ) -> StructuredSolution:
        """Unknowns of the family from M endpoints.

        Parameters
        ----------
        thetas, targets : ndarray of shape (p, M)
            Parameters, flattened in the order of ``problem.params``, and minus their gradients.
        problems : sequence of M Problem, optional
            The endpoints' models and data, for families that use them, and for names.
        confidence_level : float, default=0.95
            Of the intervals, where the family has any.
        sampling : {"data sets", "resamples", "one data set"}, default="data sets"
            How the endpoints were made; the intervals depend on it.

        Returns
        -------
        StructuredSolution

        Raises
        ------
        ValueError
            If the arrays are not finite or not of one shape, or the problems do not do.
        """
        self.check_parameters()
        level = {"confidence_level": number(above=0, below=1)}
        check("solve", {"confidence_level": confidence_level}, level)
        thetas, targets = as_numbers("thetas", thetas), as_numbers("targets", targets)
        shapes = _checked_shapes(thetas, targets, problems)
        return self._solve(
            Endpoints(thetas, targets, shapes, problems or (), confidence_level, sampling)
        )

    @abstractmethod
    def _solve(self, endpoints: Endpoints) -> StructuredSolution:
        """Unknowns of the family from checked endpoints."""

    def gradients_at(
        self, found: StructuredSolution, thetas: Array, problems: Sequence[Problem]
    ) -> Array:
        """Gradients of the fitted penalty, at endpoints that need not be those of the fit.

        Parameters
        ----------
        found : StructuredSolution
            What :meth:`solve` returned.
        thetas : ndarray of shape (p, M)
            Parameters in scope of each endpoint.
        problems : sequence of M Problem
            The endpoints' models and data, for families that use them.

        Returns
        -------
        ndarray of shape (p, M)
        """
        gradients: Array = found.penalty.gradient(thetas)
        return gradients


class _Names(Sequence[str]):
    """Names that are made when asked for."""

    @abstractmethod
    def _name(self, index: int) -> str:
        """Name at an index from 0 to the length less one."""

    def __getitem__(self, index: Any) -> Any:
        places = range(len(self))[index]
        return self._name(places) if isinstance(places, int) else tuple(map(self._name, places))

    def __repr__(self) -> str:
        shown = [repr(name) for name in self[:_SHOWN]]
        more = f", ... ({len(self)} names)" if len(self) > _SHOWN else ""
        return f"[{', '.join(shown)}{more}]"


class ScalarNames(_Names):
    """Names of the entries of tensors, such as ``"coef[age]"`` and ``"fc.weight[2,1]"``."""

    def __init__(
        self,
        shapes: Shapes,
        pattern: str = "{}",
        entries: Mapping[str, Sequence[str]] | None = None,
    ):
        self.shapes = dict(shapes)
        self.pattern = pattern
        self.entries = entries or {}
        self._ends = list(accumulate(prod(shape) for shape in self.shapes.values()))

    def __len__(self) -> int:
        return self._ends[-1]

    def _name(self, index: int) -> str:
        place = bisect_right(self._ends, index)
        name, shape = list(self.shapes.items())[place]
        entry = index - self._ends[place] + prod(shape)
        inside = ",".join(str(int(i)) for i in np.unravel_index(entry, shape))
        if name in self.entries:
            inside = self.entries[name][entry]
        alone = not shape or inside == name  # such as an intercept
        return self.pattern.format(name if alone else f"{name}[{inside}]")


class TriangleNames(_Names):
    """Names of the upper triangle of a symmetric matrix, row by row, such as ``"q[a,b]"``."""

    def __init__(self, names: Sequence[str]):
        self.names = names

    def __len__(self) -> int:
        return len(self.names) * (len(self.names) + 1) // 2

    def _start(self, row: int) -> int:
        """Index of the diagonal entry of a row."""
        return row * len(self.names) - row * (row - 1) // 2

    def _name(self, index: int) -> str:
        row = bisect_right(range(len(self.names)), index, key=self._start) - 1
        column = row + index - self._start(row)
        return f"q[{self.names[row]},{self.names[column]}]"


def _checked_shapes(thetas: Array, targets: Array, problems: Sequence[Problem] | None) -> Shapes:
    """Shapes of the tensors; ValueError if the arrays or the problems do not match."""
    if thetas.ndim != 2 or not thetas.size or thetas.shape != targets.shape:
        raise ValueError(
            "Expected parameters and targets of one shape (p, M), a column for each endpoint, got "
            f"{thetas.shape} and {targets.shape}."
        )
    if not (np.isfinite(thetas).all() and np.isfinite(targets).all()):
        raise ValueError(
            "Expected finite parameters and gradients, got NaN or inf; leave out the endpoints "
            "whose training diverged."
        )
    if problems is None:
        return {"theta": (len(thetas),)}
    shapes = {name: tuple(t.shape) for name, t in problems[0].params.items()}
    if len(problems) != thetas.shape[1] or sum(map(prod, shapes.values())) != len(thetas):
        raise ValueError(
            f"Expected one problem with {len(thetas)} parameters for each of the "
            f"{thetas.shape[1]} endpoints, got {len(problems)} with {shapes}."
        )
    return shapes
