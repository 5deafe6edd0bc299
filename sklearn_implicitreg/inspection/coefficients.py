"""Coefficients with their intervals, layer by layer where they are grouped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sklearn_implicitreg.inspection.drawing import (
    COLORS,
    WIDTH,
    check_names,
    few_ticks,
    panels,
    styled,
)
from sklearn_implicitreg.inspection.fits import fit_of, verdict_title
from sklearn_implicitreg.problem.parameters import as_numbers, shown

_MAX_TICKS = 40  # rows that have a name


class CoefficientDisplay:
    """Coefficients with their intervals, layer by layer where they are grouped.

    Parameters
    ----------
    coef : array-like of shape (k,)
        The coefficients.
    conf_int : array-like of shape (k, 2), default=None
        Their confidence intervals.
    term_names : list of str of length k
        Terms: one panel each if there are groups.
    groups : list of str of length k, default=None
        Layer, output or other group of each coefficient: one line each.
    name : str, default=None
        Title.

    Attributes
    ----------
    ax_, figure_, axes_ : Axes, Figure and list of Axes
        The first axes, the figure, and one axes for each term of a grouped family.
    errorbars_ : list of ErrorbarContainer
        One for each axes.

    See Also
    --------
    CoefficientPathDisplay : Coefficients window by window.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import ElasticNet
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
    >>> from sklearn_implicitreg.inspection import CoefficientDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = ElasticNet(alpha=0.01).fit(X, y)
    >>> est = ImplicitRegularizationEstimator(model, family="l2+l1").fit(X, y)
    >>> display = CoefficientDisplay.from_estimator(est)
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['l2', 'l1']
    """

    def __init__(
        self,
        *,
        coef: Any,
        conf_int: Any = None,
        term_names: Sequence[str],
        groups: Sequence[str] | None = None,
        name: str | None = None,
    ):
        shape = as_numbers("coef", coef).shape
        if len(shape) != 1 or not shape[0]:
            raise ValueError(f"Expected coef of shape (k,), got {shape}.")
        if conf_int is not None and as_numbers("conf_int", conf_int).shape != (*shape, 2):
            raise ValueError(f"Expected conf_int of shape {(*shape, 2)}, got {np.shape(conf_int)}.")
        check_names("term_names", term_names, shape[0])
        if groups is not None:
            check_names("groups", groups, shape[0])
        self.coef = coef
        self.conf_int = conf_int
        self.term_names = term_names
        self.groups = groups
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        name: str | None = None,
        ax: Any = None,
        errorbar_kwargs: dict[str, Any] | None = None,
    ) -> CoefficientDisplay:
        """Display of a fitted estimator, drawn.

        Parameters
        ----------
        estimator : ImplicitRegularizationEstimator or ImplicitRegularizationCV
            Fitted; also in a pipeline or a search of scikit-learn.
        name, ax : str, matplotlib Axes or list of them, default=None
            Title, by default R2 and verdict; a new figure if None.
        errorbar_kwargs : dict, default=None
            Passed to ``Axes.errorbar``.

        Returns
        -------
        display : CoefficientDisplay
            With what it drew as attributes.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the family is a matrix that is solved as a whole.
        """
        fit, _ = fit_of(estimator)
        result, frame = fit._fitted(), fit.to_frame()
        if result.whole is not None and result.conf_int is None:
            raise ValueError(
                f"Expected coefficients with intervals for {cls.__name__}, got {fit.family!r}, "
                "whose coefficients are the entries of a matrix; draw it by SpectrumDisplay."
            )
        if result.whole is None:  # columns beside the family are no part of the penalty
            frame = frame.iloc[list(result.family)]
        groups = frame["group"].tolist() if "group" in frame else [""]
        display = cls(
            coef=frame["coef"].to_numpy(),
            conf_int=frame[["ci_low", "ci_high"]].to_numpy(),
            term_names=frame["term"].tolist(),
            groups=groups if any(groups) else None,
            name=verdict_title(fit) if name is None else name,
        )
        return display.plot(ax, errorbar_kwargs=errorbar_kwargs)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        name: str | None = None,
        ax: Any = None,
        errorbar_kwargs: dict[str, Any] | None = None,
    ) -> CoefficientDisplay:
        """Display of the table that ``est.by_layer()`` gives, drawn.

        Parameters
        ----------
        frame : DataFrame
            A row per layer with ``coef``, ``ci_low`` and ``ci_high``, of several terms in brackets.
        name, ax : str, matplotlib Axes or list of them, default=None
            Title; a new figure if None.
        errorbar_kwargs : dict, default=None
            Passed to ``Axes.errorbar``.

        Returns
        -------
        display : CoefficientDisplay
            With what it drew as attributes.

        Raises
        ------
        ValueError
            If the table has other columns.
        """
        columns = [str(column) for column in getattr(frame, "columns", ())]
        ends = [column.removeprefix("coef") for column in columns if column.startswith("coef")]
        wanted = [what + end for end in ends for what in ("coef", "ci_low", "ci_high")]
        missing = [column for column in wanted if column not in columns]
        if not ends or missing or not len(frame):
            raise ValueError(
                f"Expected the table of est.by_layer() with the columns coef, ci_low and ci_high, "
                f"got {columns or shown(frame)}."
            )
        layers = [str(layer) for layer in frame.index]
        only = str(frame.columns.name or "the term")  # of a single one, which needs no brackets
        terms = [end.removeprefix("[").removesuffix("]") or only for end in ends]
        bounds = [frame[[f"ci_low{end}", f"ci_high{end}"]].to_numpy(float) for end in ends]
        display = cls(
            coef=np.concatenate([frame[f"coef{end}"].to_numpy(float) for end in ends]),
            conf_int=np.concatenate(bounds),
            term_names=[term for term in terms for _ in layers],
            groups=layers * len(terms),
            name=name,
        )
        return display.plot(ax, errorbar_kwargs=errorbar_kwargs)

    def plot(
        self, ax: Any = None, *, errorbar_kwargs: dict[str, Any] | None = None
    ) -> CoefficientDisplay:
        """Draw a line for each coefficient, of several grouped terms a panel for each term.

        Parameters
        ----------
        ax : matplotlib Axes or list of them, default=None
            One is divided where there are several panels; a new figure if None.
        errorbar_kwargs : dict, default=None
            Passed to ``Axes.errorbar``.

        Returns
        -------
        self : CoefficientDisplay

        Raises
        ------
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        terms = list(dict.fromkeys(self.term_names))
        rows = list(dict.fromkeys(self.term_names if self.groups is None else self.groups))
        n = len(terms) if self.groups is not None else 1
        size = (WIDTH, float(np.clip(1.2 + 0.3 * len(rows), 2.0, 12.0)))
        self.axes_ = panels(type(self).__name__, ax, widths=(1.0,) * n, size=size)
        self.errorbars_: list[Any] = []
        labels = self.term_names if self.groups is None else self.groups
        for j, own in enumerate(self.axes_):
            index = [
                i
                for i, term in enumerate(self.term_names)
                if self.groups is None or term == terms[j]
            ]
            self._plot_panel(own, index, [rows.index(labels[i]) for i in index], errorbar_kwargs)
            step = -(-len(rows) // _MAX_TICKS)
            own.set(yticks=range(0, len(rows), step), ylim=(len(rows) - 0.5, -0.5))
            own.set_yticklabels(rows[::step] if j == 0 else [])
            what = "coefficient" if self.groups is None else f"coefficient of {terms[j]}"
            own.set_xlabel(what)
        if self.groups is not None:
            self.axes_[0].set_ylabel("group")
        self.ax_, self.figure_ = self.axes_[0], self.axes_[0].figure
        if self.name is not None:
            if n == 1:
                self.ax_.set_title(self.name)
            else:
                self.ax_.set_title(self.name, loc="left")
        return self

    def _plot_panel(self, ax: Any, index: list[int], places: list[int], given: Any) -> None:
        from matplotlib.lines import Line2D

        coef = as_numbers("coef", self.coef)[index]
        bars = None
        if self.conf_int is not None:
            ends = as_numbers("conf_int", self.conf_int)[index]
            bars = np.abs(np.where(np.isfinite(ends), ends, np.nan) - coef[:, None]).T
        style = styled(Line2D, given, color=COLORS[0], marker="o", linestyle="", capsize=3)
        ax.axvline(0, color="0.6", linewidth=1, zorder=0)
        self.errorbars_.append(ax.errorbar(coef, places, xerr=bars, **style))
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
        few_ticks(ax, "x")
