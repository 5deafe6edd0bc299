"""Single equations by leverage and residual, the most influential ones named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sklearn_implicitreg.inspection.drawing import (
    COLORS,
    GREY,
    WIDTH,
    check_names,
    few_ticks,
    panels,
    styled,
)
from sklearn_implicitreg.inspection.fits import check_columns, fit_of, verdict_title
from sklearn_implicitreg.problem.parameters import NOTHING, as_numbers, check, integer, number

_UNUSUAL = 2.0  # student residuals, and multiples of the mean leverage
_LARGEST = 600.0  # square points of a marker


class InfluenceDisplay:
    """Single equations by leverage and residual, the most influential ones named.

    The area of a marker is Cook's distance. Dotted lines are at studentized residuals of 2 and -2
    and at twice the mean leverage.

    Parameters
    ----------
    leverage, residual, cooks_distance : array-like of shape (m,)
        Leverage, studentized residual (NaN where an equation alone determines a coefficient) and
        Cook's distance of each equation.
    labels : list of str of length m, default=None
        Names of the equations.
    mean_leverage : float, default=None
        Coefficients over equations; by default the mean of ``leverage``.
    n_labels : int, default=5
        Number of equations that are named, those with the largest Cook's distance.
    name : str, default=None
        Title.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    scatter_, alone_ : PathCollection
        Equations, and those that alone determine a coefficient, or None.
    texts_ : list of Text
        Names of the most influential ones.

    See Also
    --------
    sklearn_implicitreg.ImplicitRegularizationEstimator.influence : The numbers.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
    >>> from sklearn_implicitreg.inspection import InfluenceDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> ridge = Ridge(alpha=3.0).fit(X, y)
    >>> est = ImplicitRegularizationEstimator(ridge, family="l1").fit(X, y)
    >>> display = InfluenceDisplay.from_estimator(est, n_labels=2)
    >>> len(display.leverage), len(display.texts_)
    (10, 2)
    """

    def __init__(
        self,
        *,
        leverage: Any,
        residual: Any,
        cooks_distance: Any,
        labels: Sequence[str] | None = None,
        mean_leverage: float | None = None,
        n_labels: int = 5,
        name: str | None = None,
    ):
        given = {"leverage": leverage, "residual": residual, "cooks_distance": cooks_distance}
        shapes = [as_numbers(label, own).shape for label, own in given.items()]
        if len(shapes[0]) != 1 or not shapes[0][0] or len(set(shapes)) != 1:
            raise ValueError(
                f"Expected leverage, residual and cooks_distance of one shape (m,), got {shapes}."
            )
        if labels is not None:
            check_names("labels", labels, shapes[0][0])
        numbers = {"n_labels": n_labels, "mean_leverage": mean_leverage}
        allowed = {"n_labels": integer(0), "mean_leverage": NOTHING | number(least=0)}
        check("InfluenceDisplay", numbers, allowed)
        self.leverage = leverage
        self.residual = residual
        self.cooks_distance = cooks_distance
        self.labels = labels
        self.mean_leverage = mean_leverage
        self.n_labels = n_labels
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        top: int = 2000,
        n_labels: int = 5,
        name: str | None = None,
        ax: Any = None,
        scatter_kwargs: dict[str, Any] | None = None,
    ) -> InfluenceDisplay:
        """Display of a fitted estimator, drawn.

        Parameters
        ----------
        estimator : ImplicitRegularizationEstimator or ImplicitRegularizationCV
            Fitted; also in a pipeline or a search of scikit-learn.
        top : int, default=2000
            Number of equations, those with the largest Cook's distance.
        n_labels : int, default=5
            Number of equations that are named.
        name, ax : str, matplotlib Axes, default=None
            Title, by default R2 and verdict; a new figure if None.
        scatter_kwargs : dict, default=None
            Passed to ``Axes.scatter``.

        Returns
        -------
        display : InfluenceDisplay
            With what it drew as attributes.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the family is solved as a whole, the fit is exact, or was unpickled.
        """
        fit, _ = fit_of(estimator)
        check_columns(cls.__name__, fit)
        frame = fit.influence(top)
        display = cls(
            leverage=frame["hat_diag"].to_numpy(),
            residual=frame["student_resid"].to_numpy(),
            cooks_distance=frame["cooks_d"].to_numpy(),
            labels=[_label(at) for at in frame.index],
            mean_leverage=len(fit.coef_) / fit.n_equations_,
            n_labels=n_labels,
            name=verdict_title(fit) if name is None else name,
        )
        return display.plot(ax, scatter_kwargs=scatter_kwargs)

    def plot(
        self, ax: Any = None, *, scatter_kwargs: dict[str, Any] | None = None
    ) -> InfluenceDisplay:
        """Draw the equations, and name the most influential ones.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            A new figure if None.
        scatter_kwargs : dict, default=None
            Passed to ``Axes.scatter``.

        Returns
        -------
        self : InfluenceDisplay

        Raises
        ------
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        (ax,) = panels(type(self).__name__, ax, size=(WIDTH, 4.2))
        from matplotlib.collections import PathCollection

        leverage, residual = (as_numbers("", own) for own in (self.leverage, self.residual))
        cook = as_numbers("cooks_distance", self.cooks_distance)
        largest = float(cook[np.isfinite(cook)].max(initial=0.0))
        area = 12 + _LARGEST * np.clip(np.nan_to_num(cook / (largest or 1.0)), 0, 1)
        seen = np.isfinite(residual)
        style = {"color": COLORS[0], "alpha": 0.5, "edgecolors": "black", "linewidths": 0.6}
        style = styled(PathCollection, scatter_kwargs, **style)
        style.setdefault("s", area[seen])
        self.scatter_ = ax.scatter(leverage[seen], residual[seen], **style)
        self.alone_ = None
        if not seen.all():
            at = leverage[~seen]
            self.alone_ = ax.scatter(
                at, np.zeros_like(at), marker="X", color=COLORS[5], s=60,
                label="alone determines a coefficient",
            )  # fmt: skip
            ax.legend(fontsize="small")
        mean = leverage.mean() if self.mean_leverage is None else self.mean_leverage
        for draw, values in ((ax.axhline, (-_UNUSUAL, _UNUSUAL)), (ax.axvline, (2 * mean,))):
            for value in values:
                draw(value, color=GREY, linestyle=":", linewidth=1, zorder=0)
        ax.axhline(0, color="0.85", linewidth=1, zorder=0)
        ax.set(xlabel="leverage", ylabel="studentized residual")
        ax.margins(0.12)
        ax.set_xlim(left=min(0.0, ax.get_xlim()[0]))
        few_ticks(ax)
        self._write(ax, leverage, residual, area)
        if self.name is not None:
            ax.set_title(self.name)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _write(self, ax: Any, leverage: Any, residual: Any, area: Any) -> None:
        """Names of the equations with the largest Cook's distance, left and right in turn."""
        self.texts_ = []
        if self.labels is None:
            return
        cook = np.nan_to_num(as_numbers("", self.cooks_distance), nan=-1.0, posinf=np.inf)
        named = np.argsort(-cook, kind="stable")[: self.n_labels]
        left_end, right_end = ax.get_xlim()
        for turn, i in enumerate(named[np.argsort(np.nan_to_num(residual[named]))]):
            at = (leverage[i] - left_end) / (right_end - left_end)
            left = at > 0.75 or (at > 0.2 and turn % 2 == 1)
            away = 3 + float(np.sqrt(area[i] / np.pi))
            place = {"xytext": (-away if left else away, 0), "textcoords": "offset points"}
            style = {"ha": "right" if left else "left", "va": "center", "fontsize": "small"}
            at_point = (leverage[i], np.nan_to_num(residual[i]))
            self.texts_.append(ax.annotate(self.labels[i], at_point, **place, **style))


def _label(place: Any) -> str:
    """Name of an equation: cluster, tensor and coordinate."""
    if not isinstance(place, tuple):
        return str(place)
    *first, tensor, coordinate = place
    return " ".join([*map(str, first), f"{tensor}[{coordinate}]"])
