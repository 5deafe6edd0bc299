"""Minus the gradient of the loss against the gradient of the fitted penalty, as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.estimator import ImplicitRegularizationEstimator
from sklearn_implicitreg.model_selection import ImplicitRegularizationCV, equations
from sklearn_implicitreg.problem.parameters import NOTHING, as_numbers, check, having, number

_MAX_POINTS = 20_000  # more are drawn as a sample
_MAX_NAMES = 10  # more tensors go without a legend
_MAX_TITLE = 45  # characters


class GradientMatchDisplay:
    """Minus the gradient of the loss against the gradient of the fitted penalty.

    Every point is an equation: a trained parameter. The penalty explains points on the diagonal.

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
        estimator: ImplicitRegularizationEstimator | ImplicitRegularizationCV,
        X: Any,
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
            Fitted.
        X, y, sample_weight
            The rows that it was fitted on.
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
        """
        check_is_fitted(estimator, "coef_")
        regression = equations(estimator, X, y, sample_weight=sample_weight)
        fitted = regression.data.to_numpy() @ np.nan_to_num(estimator.coef_)
        display = cls(
            target=regression.target.to_numpy(),
            fitted=fitted,
            groups=regression.groups.to_numpy(),
            r2=estimator.r2_,
            name=_title(estimator) if name is None else name,
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
        axes = {"ax": NOTHING | having("Axes of matplotlib", "scatter", "plot", "figure")}
        check("plot", {"ax": ax}, axes)
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                "GradientMatchDisplay.plot needs matplotlib: pip install sklearn_implicitreg[plot]"
            ) from error
        if ax is None:
            _, ax = plt.subplots(figsize=(5.0, 5.0), layout="constrained")
        frame = self.frame()
        if len(frame) > _MAX_POINTS:
            frame = frame.sample(_MAX_POINTS, random_state=0)
        size = float(np.clip(6000 / max(1, len(frame)), 8, 36))
        style = {"s": size, "alpha": 0.6, "linewidths": 0, "rasterized": len(frame) > 2000}
        style |= scatter_kwargs or {}
        self.scatters_ = [
            ax.scatter(part["fitted"], part["target"], label=name, **style)
            for name, part in frame.groupby("tensor", sort=False)
        ]
        values = frame[["fitted", "target"]].to_numpy()
        limit = 1.08 * float(np.abs(values).max(initial=0.0)) or 1.0
        line_style = {"color": "0.3", "linewidth": 1, "zorder": 0} | (line_kwargs or {})
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
        ax.locator_params(nbins=5)
        ax.ticklabel_format(style="sci", scilimits=(-2, 3), useMathText=True)
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


def _title(estimator: ImplicitRegularizationEstimator | ImplicitRegularizationCV) -> str:
    pairs = zip(estimator.term_names_, estimator.coef_, strict=True)
    terms = ", ".join(f"{name}: {coef:.3g}" for name, coef in pairs)
    if len(terms) > _MAX_TITLE:
        terms = f"{len(estimator.term_names_)} terms"
    return f"{terms} ({estimator.verdict_})"
