"""Training again: the arms against the model, by weights, functions and loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sklearn_implicitreg.inspection.drawing import (
    GREY,
    WIDTH,
    legend_above,
    look,
    panels,
    styled,
)
from sklearn_implicitreg.inspection.fits import fit_of
from sklearn_implicitreg.problem.parameters import NOTHING, as_numbers, check, number, shown

_LOWEST = 1e-16  # what is smaller, or zero, is drawn here
_ROUNDING = 1e-12  # of L + R: what is less below the model's is not below
_COLUMNS = ("arm", "draw", "distance", "matched", "function", "objective")
_NAMES = {"ablated": "without R"}


class RecoveryDisplay:
    """Training again: the arms against the model, by weights, functions and loss.

    Each column is a draw; the arms of a draw began at the same start. A hollow marker is an L + R
    below that of the model, whose size is drawn.

    Parameters
    ----------
    runs : DataFrame
        One row per arm and draw, as ``Recovery.runs``: ``arm``, ``draw``, relative ``distance`` of
        the weights, the same ``matched`` (after matching hidden units; NaN where they were not),
        ``function`` and ``objective`` (L + R).
    objective : float
        L + R at the model.
    back : float or None, default=1e-3
        Up to which difference a function is back, drawn as a line; None: no line.
    function_name : str, default="difference / sd"
        What ``function`` is.
    name : str or None, default=None
        Title.

    Attributes
    ----------
    ax_, axes_, figure_ : matplotlib Axes, list of them, Figure
        Where it was drawn.
    scatters_ : dict of str to list of PathCollection
        Of each arm its weights, functions and loss.
    lines_ : dict of str to LineCollection
        Of each arm the lines from the weights before matching to those after it.
    back_ : Line2D or None
        Where a function is back.

    See Also
    --------
    sklearn_implicitreg.ImplicitRegularizationEstimator.recover : The numbers.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
    >>> from sklearn_implicitreg.inspection import RecoveryDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> est = ImplicitRegularizationEstimator(Ridge(alpha=3.0).fit(X, y), family="l2").fit(X, y)
    >>> display = RecoveryDisplay.from_recovery(est.recover(X, y))
    >>> list(display.scatters_), len(display.axes_)
    (['recovered', 'ablated'], 3)
    """

    def __init__(
        self,
        *,
        runs: pd.DataFrame,
        objective: float,
        back: float | None = 1e-3,
        function_name: str = "difference / sd",
        name: str | None = None,
    ):
        allowed = {"objective": number(), "back": NOTHING | number(above=0)}
        check("RecoveryDisplay", {"objective": objective, "back": back}, allowed)
        missing = [c for c in _COLUMNS if c not in getattr(runs, "columns", ())]
        if missing or not len(runs):
            raise ValueError(
                f"Expected runs to be a DataFrame with rows and the columns {', '.join(_COLUMNS)}, "
                f"got {shown(runs)}."
            )
        self.runs = runs
        self.objective = objective
        self.back = back
        self.function_name = function_name
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        y: Any = None,
        sample_weight: Any = None,
        *,
        start: str = "perturbed",
        n_draws: int = 3,
        name: str | None = None,
        ax: Any = None,
        scatter_kwargs: dict[str, Any] | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> RecoveryDisplay:
        """Train the model of a fitted estimator again, and draw the display of it.

        Parameters
        ----------
        estimator : ImplicitRegularizationEstimator or ImplicitRegularizationCV
            Fitted; also in a pipeline or a search of scikit-learn.
        X, y, sample_weight
            The rows that the model was trained on; None where the model has them.
        start, n_draws : str, int, default="perturbed", 3
            Where the arms of a network begin, and how often, as in ``recover``; for more options
            give the result of ``recover`` to :meth:`from_recovery`.
        name, ax : str, matplotlib Axes or list of three, default=None
            Title, by default in how many draws the function is back; a new figure if None.
        scatter_kwargs, line_kwargs : dict, default=None
            Passed to ``Axes.scatter`` for the arms, to ``Axes.vlines`` for the lines between the
            weights before and after matching.

        Returns
        -------
        display : RecoveryDisplay
            With what it drew as attributes.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError, TypeError
            Where ``recover`` raises it.
        """
        fit, X = fit_of(estimator, X)
        found = fit.recover(X, y, sample_weight, start=start, n_draws=n_draws)
        return cls.from_recovery(
            found, name=name, ax=ax, scatter_kwargs=scatter_kwargs, line_kwargs=line_kwargs
        )

    @classmethod
    def from_recovery(
        cls,
        recovery: Any,
        *,
        name: str | None = None,
        ax: Any = None,
        scatter_kwargs: dict[str, Any] | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> RecoveryDisplay:
        """Display of what ``recover`` returns, drawn.

        Parameters
        ----------
        recovery : Recovery
            Of a network with its runs; of a linear model each arm is one point.
        name, ax : str, matplotlib Axes or list of three, default=None
            Title, by default in how many draws the function is back; a new figure if None.
        scatter_kwargs, line_kwargs : dict, default=None
            Passed to ``Axes.scatter`` for the arms, to ``Axes.vlines`` for the lines between the
            weights before and after matching.

        Returns
        -------
        display : RecoveryDisplay
            With what it drew as attributes.

        Raises
        ------
        TypeError
            If it is not the result of ``recover``.
        """
        if isinstance(recovery, type) or not hasattr(recovery, "runs"):
            raise TypeError(
                f"Expected a Recovery, got {shown(recovery)}; give the result of est.recover(X, y)."
            )
        model = recovery.model
        data: dict[str, Any] = {"runs": recovery.runs, "objective": model.loss + model.penalty}
        if recovery.runs is None:
            # Without the rows there is no spread of the outputs to divide by.
            data |= {"runs": _single_runs(recovery), "back": None}
            data["function_name"] = "difference"
            default = f"trained again: {recovery.method}"
        else:
            default = _counts(recovery.runs)
        display = cls(**data, name=default if name is None else name)
        return display.plot(ax, scatter_kwargs=scatter_kwargs, line_kwargs=line_kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        scatter_kwargs: dict[str, Any] | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> RecoveryDisplay:
        """Draw weights, functions and loss below each other, on logarithmic scales.

        Parameters
        ----------
        ax : matplotlib Axes or list of three, default=None
            One is divided in three; a new figure if None.
        scatter_kwargs, line_kwargs : dict, default=None
            Passed to ``Axes.scatter`` for the arms, to ``Axes.vlines`` for the lines between the
            weights before and after matching.

        Returns
        -------
        self : RecoveryDisplay

        Raises
        ------
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        self.axes_ = panels(type(self).__name__, ax, heights=(1.0,) * 3, size=(WIDTH, 4.8))
        weights, functions, loss = self.axes_
        self.scatters_, self.lines_, self.back_ = {}, {}, None
        groups = list(self.runs.groupby("arm", sort=False))
        for i, (arm, own) in enumerate(groups):
            at = own["draw"].to_numpy(float) + 1 + 0.12 * (i - (len(groups) - 1) / 2)
            before = as_numbers("distance", own["distance"])
            after = as_numbers("matched", own["matched"])
            after = np.where(np.isnan(after), before, after)
            above = as_numbers("objective", own["objective"]) - self.objective
            style = _style(i, _NAMES.get(arm, arm), scatter_kwargs)
            self.lines_[arm] = _lines(weights, at, after, before, line_kwargs)
            self.scatters_[arm] = [
                _points(weights, at, after, style),
                _points(functions, at, as_numbers("function", own["function"]), style),
                _points(loss, at, above, style, above < -_ROUNDING * abs(self.objective)),
            ]
        if self.back is not None:
            style = {"color": GREY, "linestyle": "--", "linewidth": 1, "zorder": 1.5}
            self.back_ = functions.axhline(self.back, **style)
            place = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": "small"}
            functions.annotate("back", (1.01, self.back), color=GREY, **place)
        self._label()
        self.ax_, self.figure_ = weights, weights.figure
        return self

    def _label(self) -> None:
        """Names and ticks of the axes, with the legend above the first one."""
        weights, functions, loss = self.axes_
        draws = np.unique(self.runs["draw"].to_numpy(float)) + 1
        for ax in self.axes_:
            _log_axis(ax)
            ax.set_xlim(draws[0] - 0.5, draws[-1] + 0.5)
            ax.locator_params(axis="x", nbins=12, integer=True)
            ax.tick_params(axis="x", labelbottom=ax is loss)
            if len(draws) == 1:
                ax.set_xticks([])
        if any(np.size(lines.get_paths()) for lines in self.lines_.values()):
            weights.scatter([], [], marker="_", s=60, color=GREY, label="unmatched")
        if (self.runs["objective"] < self.objective - _ROUNDING * abs(self.objective)).any():
            style = {"facecolor": "white", "edgecolor": GREY, "s": 36}
            weights.scatter([], [], **style, label="lower L + R")
        weights.set_ylabel("weights\ndistance / size", fontsize="small")
        functions.set_ylabel(f"functions\n{self.function_name}", fontsize="small")
        loss.set_ylabel("L + R\nminus the model's", fontsize="small")
        if len(draws) > 1:
            loss.set_xlabel("draw")
        legend_above(weights, self.name, 4)


def _style(i: int, label: str, given: Any) -> dict[str, Any]:
    """Style of the points of an arm."""
    from matplotlib.collections import PathCollection

    color, marker, _ = look(i)
    own = styled(PathCollection, given, color=color, label=label, zorder=3, linewidth=1.2)
    color = own.pop("color")
    return {"s": 36, "marker": marker, "facecolor": color, "edgecolor": color} | own


def _points(ax: Any, at: Any, values: Any, style: dict[str, Any], hollow: Any = False) -> Any:
    """Sizes of some values, some of them hollow."""
    sizes = np.where(np.isfinite(values), np.maximum(np.abs(values), _LOWEST), np.nan)
    if np.any(hollow):
        from matplotlib.colors import to_rgba_array

        faces = np.resize(to_rgba_array(style["facecolor"]), (len(values), 4))
        faces[hollow] = 1.0
        style = style | {"facecolor": faces}
    return ax.scatter(at, sizes, **style)


def _lines(ax: Any, at: Any, after: Any, before: Any, given: Any) -> Any:
    """Lines from the distances before matching to those after it."""
    from matplotlib.collections import LineCollection

    moved = np.abs(before - after) > 0.1 * np.abs(before)  # less is not seen
    style = styled(LineCollection, given, color=GREY, linewidth=1.5, zorder=2)
    ends = np.maximum([after[moved], before[moved]], _LOWEST)
    lines = ax.vlines(at[moved], *ends, **style)
    ax.scatter(at[moved], ends[1], marker="_", s=60, color=GREY, zorder=2)
    return lines


def _log_axis(ax: Any) -> None:
    """A logarithmic axis with a few powers of ten, around all that was drawn."""
    from matplotlib.ticker import LogLocator, NullLocator

    if not np.isfinite(ax.dataLim.minposy):
        ax.set_yticks([])  # nothing was drawn
        return
    ax.set_yscale("log")
    ax.margins(y=0.15)
    low, high = ax.get_ylim()
    if high < 100 * low:  # so that a power of ten is in it
        ax.set_ylim(low / 5, high * 5)
    ax.yaxis.set_major_locator(LogLocator(numticks=5))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)


def _single_runs(recovery: Any) -> pd.DataFrame:
    """The arms of a linear model as runs of one draw."""
    arms = {"recovered": recovery.recovered, "ablated": recovery.ablated}
    rows: Sequence[Any] = [
        (name, 0, arm.distance, np.nan, arm.prediction, arm.loss + arm.penalty)
        for name, arm in arms.items()
        if arm is not None
    ]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _counts(runs: pd.DataFrame) -> str:
    """In how many draws the function is back."""
    parts = [
        f"{_NAMES.get(arm, '')} in {own['back'].sum()} of {len(own)}".strip()
        for arm, own in runs.groupby("arm", sort=False)
    ]
    return f"function back {', '.join(parts)}"
