"""Minus the gradient of the loss against the gradient of the fitted penalty, as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sklearn_implicitreg.inspection.drawing import WIDTH, few_ticks, look, panels, sampled, styled
from sklearn_implicitreg.inspection.fits import (
    check_columns,
    coef_title,
    drawn_rows,
    equations_of,
    fit_of,
)
from sklearn_implicitreg.problem.parameters import as_numbers, check, number

_MAX_POINTS = 20_000  # more are drawn as a sample
_MAX_NAMES = 10  # more tensors go without a legend


class GradientMatchDisplay:
    """Minus the gradient of the loss against the gradient of the fitted penalty.

    Every point is an equation: a trained parameter; along a trajectory that of the mean over the
    windows. The penalty explains points on the diagonal.

    Parameters
    ----------
    target, fitted : array-like of shape (m,)
        Minus the gradient of the loss, and the gradient of the fitted penalty.
    groups : array-like of shape (m,)
        Tensor of every equation.
    r2 : float
        Uncentered R2.
    name : str or None, default=None
        What was fitted, shown above R2.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    scatters_, line_ : list of PathCollection, Line2D
        One per tensor, and the diagonal.

    See Also
    --------
    GradientMatchDisplay.from_estimator : Makes one from a fitted estimator.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
    >>> X, y = load_diabetes(return_X_y=True)
    >>> est = ImplicitRegularizationEstimator(Ridge(alpha=3.0).fit(X, y)).fit(X, y)
    >>> display = GradientMatchDisplay.from_estimator(est, X, y)
    >>> display.ax_.get_xlabel()
    'gradient of the fitted penalty'
    """

    def __init__(
        self, *, target: Any, fitted: Any, groups: Any, r2: float, name: str | None = None
    ):
        check("GradientMatchDisplay", {"r2": r2}, {"r2": number()})
        shapes = [as_numbers("target", target).shape, as_numbers("fitted", fitted).shape]
        if len(shapes[0]) != 1 or shapes[0] != shapes[1] or np.shape(groups) != shapes[0]:
            raise ValueError(
                "Expected target, fitted and groups of one shape (m,), got "
                f"{shapes[0]}, {shapes[1]} and {np.shape(groups)}."
            )
        self.target = target
        self.fitted = fitted
        self.groups = groups
        self.r2 = r2
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        y: Any = None,
        sample_weight: Any = None,
        *,
        name: str | None = None,
        ax: Any = None,
        scatter_kwargs: dict[str, Any] | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> GradientMatchDisplay:
        """Display of a fitted estimator, drawn.

        Parameters
        ----------
        estimator : ImplicitRegularizationEstimator or ImplicitRegularizationCV
            Fitted; also in a pipeline or a search of scikit-learn.
        X, y, sample_weight
            The rows that it was fitted on; by default the equations that the fit keeps.
        name, ax : str, matplotlib Axes, default=None
            Title, by default the fitted terms and the verdict; a new figure if None.
        scatter_kwargs, line_kwargs : dict, default=None
            Passed to ``Axes.scatter`` for the equations, to ``Axes.plot`` for the diagonal.

        Returns
        -------
        display : GradientMatchDisplay
            With what it drew as attributes.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the family is solved as a whole, or there are no rows to draw.
        """
        fit, X = fit_of(estimator, X)
        check_columns(cls.__name__, fit)
        target, fitted, groups = _points(fit, equations_of(fit, X, y, sample_weight))
        display = cls(
            target=target,
            fitted=fitted,
            groups=groups,
            r2=fit.r2_,
            name=coef_title(fit) if name is None else name,
        )
        return display.plot(ax, scatter_kwargs=scatter_kwargs, line_kwargs=line_kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        scatter_kwargs: dict[str, Any] | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> GradientMatchDisplay:
        """Draw the equations, one color per tensor, with the diagonal.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            A new figure if None.
        scatter_kwargs, line_kwargs : dict, default=None
            Passed to ``Axes.scatter`` for the equations, to ``Axes.plot`` for the diagonal.

        Returns
        -------
        self : GradientMatchDisplay

        Raises
        ------
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        (ax,) = panels(type(self).__name__, ax, size=(WIDTH, WIDTH - 1.0))
        from matplotlib.collections import PathCollection
        from matplotlib.lines import Line2D

        frame = self.frame()
        frame = frame.iloc[sampled(len(frame), _MAX_POINTS)]
        size = float(np.clip(6000 / max(1, len(frame)), 8, 36))
        style = {"alpha": 0.7, "linewidths": 0, "rasterized": len(frame) > 2000}
        self.scatters_ = []
        for i, (name, part) in enumerate(frame.groupby("tensor", sort=False)):
            color, marker, _ = look(i)
            own = styled(PathCollection, scatter_kwargs, **style, color=color)
            own = {"s": size, "marker": marker} | own
            self.scatters_.append(ax.scatter(part["fitted"], part["target"], label=name, **own))
        values = frame[["fitted", "target"]].to_numpy()
        limit = 1.08 * float(np.abs(values).max(initial=0.0)) or 1.0
        line_style = styled(Line2D, line_kwargs, color="0.3", linewidth=1, zorder=0)
        (self.line_,) = ax.plot([-limit, limit], [-limit, limit], **line_style)
        title = [] if self.name is None else [self.name]
        ax.set(
            xlim=(-limit, limit),
            ylim=(-limit, limit),
            aspect="equal",  # so that the diagonal is one
            xlabel="gradient of the fitted penalty",
            ylabel="minus gradient of the loss",
            title="\n".join([*title, f"$R^2$ = {self.r2:.4f}"]),
        )
        few_ticks(ax)
        if 1 < len(self.scatters_) <= _MAX_NAMES:
            legend = ax.legend(frameon=False, loc="upper left", fontsize="small")
            for handle in legend.legend_handles:
                handle.set(sizes=[20], alpha=1)
        self.ax_ = ax
        self.figure_ = ax.figure
        return self

    def frame(self) -> pd.DataFrame:
        """The points as a table.

        Returns
        -------
        frame : DataFrame of shape (m, 3)
            Columns tensor, target, fitted.
        """
        return pd.DataFrame({"tensor": self.groups, "target": self.target, "fitted": self.fitted})


def _points(fit: Any, equations: Any) -> tuple[Any, Any, Any]:
    """Target and fitted gradient of every equation, with its tensor or endpoint."""
    names, family = list(fit.term_names_), equations.family
    coef = np.nan_to_num([fit.coef_[names.index(equations.term_names[i])] for i in family])
    aside = [i for i in range(len(equations.term_names)) if i not in family]
    parts = [
        (target, design[:, family] @ coef, design[:, aside].sum(axis=1), [label] * len(target))
        for label, design, target in drawn_rows(equations)
    ]
    target, fitted, nuisance, groups = (np.concatenate(own) for own in zip(*parts, strict=True))
    size = float(nuisance @ nuisance)
    if size:  # projected out of both, as R2 is defined
        target, fitted = (v - nuisance * (nuisance @ v / size) for v in (target, fitted))
    return target, fitted, groups
