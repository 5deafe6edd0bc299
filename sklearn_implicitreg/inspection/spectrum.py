"""The matrix of a quadratic penalty, and its eigenvalues against a ridge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sklearn_implicitreg.inspection.drawing import (
    COLORS,
    WIDTH,
    check_names,
    few_ticks,
    panels,
    styled,
)
from sklearn_implicitreg.inspection.fits import Array, fit_of, verdict_title
from sklearn_implicitreg.penalties.structured import ScalarNames
from sklearn_implicitreg.problem.parameters import as_numbers, shown

_MAX_NAMES = 12  # more parameters go without names


class SpectrumDisplay:
    """The matrix of a quadratic penalty, and its eigenvalues against a ridge.

    A ridge ``a |theta|^2`` has a horizontal line of eigenvalues; the one with the same trace is
    drawn.

    Parameters
    ----------
    matrix : array-like of shape (p, p) or (p,)
        Symmetric matrix Lambda of ``theta' Lambda theta``, or its diagonal, which has no image.
    theory : array-like of shape (p, p) or (p,), default=None
        A matrix, or a diagonal, to compare eigenvalues with.
    parameter_names : list of str of length p, default=None
        Names of rows and columns.
    name : str, default=None
        Title.

    Attributes
    ----------
    ax_, figure_, axes_ : Axes, Figure and list of Axes
        Axes of the eigenvalues, figure, and all axes.
    eigenvalues_, ridge_, theory_ : Line2D
        Eigenvalues by decreasing size, the ridge, and theory or None.
    image_ : AxesImage or None
        The matrix.

    See Also
    --------
    sklearn_implicitreg.theory.implicit_penalty : The matrix that a procedure implies.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_implicitreg.inspection import SpectrumDisplay
    >>> from sklearn_implicitreg.theory import gradient_flow, implicit_penalty
    >>> X, y = load_diabetes(return_X_y=True)
    >>> display = SpectrumDisplay.from_penalty(implicit_penalty(X, gradient_flow(100.0)))
    >>> display.matrix.shape, len(display.eigenvalues_.get_ydata())
    ((10, 10), 10)
    """

    def __init__(
        self,
        *,
        matrix: Any,
        theory: Any = None,
        parameter_names: Sequence[str] | None = None,
        name: str | None = None,
    ):
        p = len(_eigenvalues("matrix", matrix))
        if theory is not None and len(_eigenvalues("theory", theory)) != p:
            raise ValueError(f"Expected theory for {p} parameters, got shape {np.shape(theory)}.")
        if parameter_names is not None:
            check_names("parameter_names", parameter_names, p)
        self.matrix = matrix
        self.theory = theory
        self.parameter_names = parameter_names
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        theory: Any = None,
        name: str | None = None,
        ax: Any = None,
        line_kwargs: dict[str, Any] | None = None,
        image_kwargs: dict[str, Any] | None = None,
    ) -> SpectrumDisplay:
        """Display of a fitted quadratic family, drawn.

        Parameters
        ----------
        estimator : ImplicitRegularizationEstimator or ImplicitRegularizationCV
            Fitted with ``"quadratic"``, ``"diagonal"`` or ``"early_stopping"``.
        theory : ImplicitPenalty or array-like of shape (p, p) or (p,), default=None
            A matrix to compare with.
        name, ax : str, matplotlib Axes or list of two, default=None
            Title, by default R2 and verdict; a new figure if None.
        line_kwargs, image_kwargs : dict, default=None
            Passed to ``Axes.plot`` for the eigenvalues, to ``Axes.imshow``.

        Returns
        -------
        display : SpectrumDisplay
            With what it drew as attributes.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the family has terms and no matrix.
        """
        fit, _ = fit_of(estimator)
        if fit._fitted().whole is None:
            raise ValueError(
                f"Expected the fit of a quadratic family for {cls.__name__}, got {fit.family!r}, "
                "which has terms and no matrix; draw it by CoefficientDisplay."
            )
        name = verdict_title(fit) if name is None else name
        given: Any = getattr(fit, "feature_names_in_", None)
        if given is not None and len(given) != len(getattr(fit.penalty_, "diagonal_", ())):
            given = None
        return cls.from_penalty(
            fit.penalty_,
            theory=theory,
            parameter_names=None if given is None else [str(own) for own in given],
            name=name,
            ax=ax,
            line_kwargs=line_kwargs,
            image_kwargs=image_kwargs,
        )

    @classmethod
    def from_penalty(
        cls,
        penalty: Any,
        *,
        theory: Any = None,
        parameter_names: Sequence[str] | None = None,
        name: str | None = None,
        ax: Any = None,
        line_kwargs: dict[str, Any] | None = None,
        image_kwargs: dict[str, Any] | None = None,
    ) -> SpectrumDisplay:
        """Display of a quadratic penalty, drawn.

        Parameters
        ----------
        penalty : StructuredPenalty or ImplicitPenalty
            What ``penalty_`` is of a quadratic family, or what ``theory`` makes.
        theory : ImplicitPenalty or array-like of shape (p, p) or (p,), default=None
            A matrix to compare with.
        parameter_names : list of str of length p, default=None
            Names of rows and columns; by default those of the tensors.
        name, ax : str, matplotlib Axes or list of two, default=None
            Title; a new figure if None.
        line_kwargs, image_kwargs : dict, default=None
            Passed to ``Axes.plot`` for the eigenvalues, to ``Axes.imshow``.

        Returns
        -------
        display : SpectrumDisplay
            With what it drew as attributes.

        Raises
        ------
        TypeError
            If the penalty has no matrix.
        """
        matrix = getattr(penalty, "entries_", getattr(penalty, "matrix", None))
        if isinstance(penalty, type) or matrix is None:
            raise TypeError(
                "Expected a StructuredPenalty or an ImplicitPenalty, which have a matrix, got "
                f"{shown(penalty)}."
            )
        shapes = getattr(penalty, "shapes", None)
        if parameter_names is None and shapes and len(matrix) <= _MAX_NAMES:
            parameter_names = list(ScalarNames(shapes))
        display = cls(
            matrix=matrix,
            theory=getattr(theory, "matrix", theory),
            parameter_names=parameter_names,
            name=name,
        )
        return display.plot(ax, line_kwargs=line_kwargs, image_kwargs=image_kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        line_kwargs: dict[str, Any] | None = None,
        image_kwargs: dict[str, Any] | None = None,
    ) -> SpectrumDisplay:
        """Draw the eigenvalues, and the matrix as an image beside them.

        Parameters
        ----------
        ax : matplotlib Axes or list of two, default=None
            One is divided in two; a new figure if None.
        line_kwargs, image_kwargs : dict, default=None
            Passed to ``Axes.plot`` for the eigenvalues, to ``Axes.imshow``.

        Returns
        -------
        self : SpectrumDisplay

        Raises
        ------
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        matrix = as_numbers("matrix", self.matrix)
        widths = (1.0, 1.15) if matrix.ndim == 2 else (1.0,)
        self.axes_ = panels(type(self).__name__, ax, widths=widths, size=(WIDTH, 3.3))
        self._plot_eigenvalues(self.axes_[0], matrix, line_kwargs)
        self.image_ = None
        if matrix.ndim == 2:
            self._plot_matrix(self.axes_[1], matrix, image_kwargs)
        self.ax_, self.figure_ = self.axes_[0], self.axes_[0].figure
        if self.name is not None:
            self.ax_.set_title(self.name, loc="left", fontsize="medium")
        return self

    def _plot_eigenvalues(self, ax: Any, matrix: Array, given: Any) -> None:
        from matplotlib.lines import Line2D

        values = _eigenvalues("matrix", matrix)
        order = np.arange(1, len(values) + 1)
        mean = float(values.mean())
        self.theory_ = None
        self.ridge_ = ax.axhline(mean, color=COLORS[1], linestyle="--", label=f"ridge {mean:.3g}")
        if self.theory is not None:
            expected = _eigenvalues("theory", as_numbers("theory", self.theory))
            (self.theory_,) = ax.plot(
                order, expected, color="black", marker="_", markersize=10, linestyle="",
                label="theory", zorder=3,
            )  # fmt: skip
        few = len(order) <= 60
        style = {"color": COLORS[0], "marker": "o", "linestyle": "-", "linewidth": 1}
        style = styled(Line2D, given, **style, markersize=5 if few else 2)
        (self.eigenvalues_,) = ax.plot(order, values, label=r"$\Lambda$", **style)
        ax.axhline(0, color="0.8", linewidth=1, zorder=0)
        ax.set(xlabel="eigenvalue, by size", ylabel="penalty along its eigenvector")
        few_ticks(ax, "y")
        ax.locator_params(axis="x", nbins=5, integer=True)
        ax.legend(fontsize="small", framealpha=0.8)

    def _plot_matrix(self, ax: Any, matrix: Array, given: Any) -> None:
        # From dark to light in grey as in color.
        style = {"cmap": "cividis", "interpolation": "nearest"} | (given or {})
        self.image_ = ax.imshow(matrix, **style)
        bar = ax.figure.colorbar(self.image_, ax=ax, shrink=0.9)
        bar.formatter.set_powerlimits((-2, 3))
        bar.formatter.set_useMathText(True)
        names = self.parameter_names
        if names is None or len(names) > _MAX_NAMES:
            ax.locator_params(nbins=5, integer=True)
        else:
            ticks = range(len(names))
            ax.set_xticks(ticks, names, rotation=90, fontsize="small")
            ax.set_yticks(ticks, names, fontsize="small")
        ax.set_title(r"$\Lambda$", fontsize="medium")


def _eigenvalues(name: str, matrix: Any) -> Array:
    """Eigenvalues of a symmetric matrix or of a diagonal, by decreasing size."""
    array = as_numbers(name, matrix)
    square = array.ndim == 2 and array.shape[0] == array.shape[1]
    if not array.size or not (square or array.ndim == 1) or not np.isfinite(array).all():
        raise ValueError(
            f"Expected {name} to be a finite symmetric matrix of shape (p, p), or a diagonal of "
            f"shape (p,), got {shown(matrix)}."
        )
    if array.ndim == 2:
        if not np.allclose(array, array.T, rtol=1e-6, atol=1e-9 * np.abs(array).max()):
            raise ValueError(f"Expected {name} to be symmetric, got {shown(matrix)}.")
        array = np.asarray(np.linalg.eigvalsh(array), dtype=np.float64)
    return np.sort(array)[::-1]
