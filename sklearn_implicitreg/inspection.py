"""Pictures of a fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sklearn_implicitreg.estimator import ImplicitRegularizationEstimator
from sklearn_implicitreg.model_selection import equations

__all__ = ["GradientMatchDisplay"]

_MAX_POINTS = 20_000  # more are drawn as a sample


class GradientMatchDisplay:
    """Minus the gradient of the loss against what the fitted penalty says it should be.

    Every point is an equation: a trained parameter. On the diagonal the penalty explains it.

    Parameters
    ----------
    target : array-like of shape (m,)
        Minus the gradient of the loss.
    fitted : array-like of shape (m,)
        Gradient of the fitted penalty.
    groups : array-like of shape (m,)
        Tensor of every equation.
    r2 : float
        Uncentered R2.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    scatters_ : list of PathCollection
        One per tensor.

    See Also
    --------
    GradientMatchDisplay.from_estimator : Makes one from a fitted estimator.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
    >>> from sklearn_implicitreg.inspection import GradientMatchDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> est = ImplicitRegularizationEstimator(Ridge(alpha=3.0).fit(X, y)).fit(X, y)
    >>> display = GradientMatchDisplay.from_estimator(est, X, y)
    >>> display.ax_.get_xlabel()
    'gradient of the fitted penalty'
    """

    def __init__(self, *, target: Any, fitted: Any, groups: Any, r2: float):
        self.target = target
        self.fitted = fitted
        self.groups = groups
        self.r2 = r2

    @classmethod
    def from_estimator(
        cls,
        estimator: ImplicitRegularizationEstimator,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        ax: Any = None,
        scatter_kwargs: dict[str, Any] | None = None,
    ) -> GradientMatchDisplay:
        """Display of a fitted estimator, drawn.

        Parameters
        ----------
        estimator : ImplicitRegularizationEstimator
            Fitted.
        X, y, sample_weight
            The rows that it was fitted on.
        ax : matplotlib Axes, default=None
        scatter_kwargs : dict, default=None
            Passed to ``Axes.scatter``.

        Returns
        -------
        display : GradientMatchDisplay
        """
        regression = equations(estimator, X, y, sample_weight=sample_weight)
        fitted = regression.data.to_numpy() @ np.nan_to_num(estimator.coef_)
        display = cls(
            target=regression.target.to_numpy(),
            fitted=fitted,
            groups=regression.groups.to_numpy(),
            r2=estimator.r2_,
        )
        return display.plot(ax, scatter_kwargs=scatter_kwargs)

    def plot(
        self, ax: Any = None, *, scatter_kwargs: dict[str, Any] | None = None
    ) -> GradientMatchDisplay:
        """Draw the equations, one color per tensor, with the diagonal.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            A new figure if None.
        scatter_kwargs : dict, default=None
            Passed to ``Axes.scatter``.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                "GradientMatchDisplay.plot needs matplotlib: pip install sklearn_implicitreg[plot]"
            ) from error
        if ax is None:
            _, ax = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
        style = {"s": 12, "alpha": 0.6, "linewidths": 0} | (scatter_kwargs or {})
        frame = self.frame()
        if len(frame) > _MAX_POINTS:
            frame = frame.sample(_MAX_POINTS, random_state=0)
        self.scatters_ = [
            ax.scatter(part["fitted"], part["target"], label=name, **style)
            for name, part in frame.groupby("tensor", sort=False)
        ]
        span = [frame[["fitted", "target"]].min().min(), frame[["fitted", "target"]].max().max()]
        ax.plot(span, span, color="0.3", linewidth=1, zorder=0)
        ax.set(
            xlabel="gradient of the fitted penalty",
            ylabel="minus gradient of the loss",
            title=f"R2 = {self.r2:.4f}",
        )
        if 1 < len(self.scatters_) <= 10:
            ax.legend(frameon=False)
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
        return pd.DataFrame(
            {"tensor": self.groups, "target": self.target, "fitted": self.fitted}
        )
