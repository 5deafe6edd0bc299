"""Coefficients window by window, with the one for all windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sklearn_implicitreg.inspection.drawing import (
    COLORS,
    GREY,
    WIDTH,
    check_names,
    few_ticks,
    legend_above,
    limits,
    panels,
    styled,
)
from sklearn_implicitreg.inspection.fits import Array, check_columns, fit_of, verdict_title
from sklearn_implicitreg.problem.parameters import as_numbers, check, choice, shown

_MAX_TERMS = 6  # panels, unless terms= says otherwise


class CoefficientPathDisplay:
    """Coefficients window by window, with the one for all windows.

    Parameters
    ----------
    path : array-like of shape (W, k)
        Coefficients of every window or endpoint alone; NaN where there are none.
    bands : array-like of shape (W, k, 2), default=None
        Their confidence intervals.
    shared : array-like of shape (k,), default=None
        The coefficients that all windows share.
    term_names : list of str of length k
        Names of the coefficients.
    theory : float, array-like of shape (W,), or dict of term to these, default=None
        What the coefficients should be; without a dict there is one coefficient.
    place : {"window", "endpoint"}, default="window"
        What a row of the path is.
    name : str, default=None
        Title.

    Attributes
    ----------
    ax_, figure_, axes_ : Axes, Figure and list of Axes
        The first axes, the figure, and one axes for each term.
    lines_, bands_, shared_, theory_ : list
        Coefficients with their bands (or error bars, of endpoints), shared and theory lines of
        each term; None where there is none.

    See Also
    --------
    CoefficientDisplay : The shared coefficients alone, with their intervals.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator, endpoints
    >>> from sklearn_implicitreg.inspection import CoefficientPathDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> resamples = endpoints(Ridge(alpha=5.0), X, y, 8, random_state=0)
    >>> est = ImplicitRegularizationEstimator(None).fit(resamples)
    >>> display = CoefficientPathDisplay.from_estimator(est, theory=5.0 / len(X))
    >>> display.ax_.get_xlabel(), display.path.shape
    ('endpoint', (8, 1))
    """

    def __init__(
        self,
        *,
        path: Any,
        bands: Any = None,
        shared: Any = None,
        term_names: Sequence[str],
        theory: Any = None,
        place: str = "window",
        name: str | None = None,
    ):
        shape = as_numbers("path", path).shape
        if len(shape) != 2 or not shape[0] or not shape[1]:
            raise ValueError(f"Expected path of shape (W, k), a row per window, got {shape}.")
        if bands is not None and as_numbers("bands", bands).shape != (*shape, 2):
            raise ValueError(f"Expected bands of shape {(*shape, 2)}, got {np.shape(bands)}.")
        if shared is not None and as_numbers("shared", shared).shape != shape[1:]:
            raise ValueError(f"Expected shared of shape {shape[1:]}, got {np.shape(shared)}.")
        check_names("term_names", term_names, shape[1])
        check(type(self).__name__, {"place": place}, {"place": choice("window", "endpoint")})
        _theories(theory, term_names, shape[0])
        self.path = path
        self.bands = bands
        self.shared = shared
        self.term_names = term_names
        self.theory = theory
        self.place = place
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        terms: Sequence[str] | None = None,
        theory: Any = None,
        name: str | None = None,
        ax: Any = None,
        line_kwargs: dict[str, Any] | None = None,
        band_kwargs: dict[str, Any] | None = None,
        shared_kwargs: dict[str, Any] | None = None,
    ) -> CoefficientPathDisplay:
        """Display of a fitted estimator, drawn.

        Parameters
        ----------
        estimator : ImplicitRegularizationEstimator or ImplicitRegularizationCV
            Fitted along a trajectory or to a list of endpoints.
        terms : list of str, default=None
            Names among ``term_names_``; by default the first six of the family.
        theory : float, array-like of shape (W,), or dict of term to these, default=None
            What the coefficients should be.
        name, ax : str, matplotlib Axes or list of them, default=None
            Title, by default R2 and verdict; a new figure if None.
        line_kwargs, band_kwargs, shared_kwargs : dict, default=None
            Passed to ``Axes.plot`` for the coefficients, to ``Axes.fill_between`` for the bands
            (of endpoints both to ``Axes.errorbar``), to ``Axes.axhline``.

        Returns
        -------
        display : CoefficientPathDisplay
            With what it drew as attributes.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If it was fitted to one endpoint, or terms are not its own.
        """
        fit, _ = fit_of(estimator)
        check_columns(cls.__name__, fit)
        result = fit._fitted()
        if result.path is None:
            raise ValueError(
                f"Expected a fit of a trajectory or of a list of endpoints for {cls.__name__}, "
                "got one endpoint, which has no coef_path_; draw it by CoefficientDisplay."
            )
        all_names = list(fit.term_names_)
        family = [all_names[i] for i in result.family]
        chosen = family[:_MAX_TERMS] if terms is None else _among(terms, all_names)
        if name is None:
            rest = len(family) - len(chosen)
            more = f", the first {len(chosen)} of {len(family)} terms" if rest and not terms else ""
            name = verdict_title(fit) + more
        index = [all_names.index(term) for term in chosen]
        display = cls(
            path=result.path[:, index],
            bands=None if result.bands is None else result.bands[:, index],
            shared=fit.coef_[index],
            term_names=chosen,
            theory=theory,
            place="window" if fit.mode == "trajectory" else "endpoint",
            name=name,
        )
        return display.plot(
            ax, line_kwargs=line_kwargs, band_kwargs=band_kwargs, shared_kwargs=shared_kwargs
        )

    def plot(
        self,
        ax: Any = None,
        *,
        line_kwargs: dict[str, Any] | None = None,
        band_kwargs: dict[str, Any] | None = None,
        shared_kwargs: dict[str, Any] | None = None,
    ) -> CoefficientPathDisplay:
        """Draw a panel for each term.

        Parameters
        ----------
        ax : matplotlib Axes or list of k, default=None
            One is divided in k; a new figure if None.
        line_kwargs, band_kwargs, shared_kwargs : dict, default=None
            Passed to ``Axes.plot`` for the coefficients, to ``Axes.fill_between`` for the bands
            (of endpoints both to ``Axes.errorbar``), to ``Axes.axhline``.

        Returns
        -------
        self : CoefficientPathDisplay

        Raises
        ------
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        path = as_numbers("path", self.path)
        k = len(self.term_names)
        size = (WIDTH, 3.6 if k == 1 else 0.8 + 1.7 * k)
        self.axes_ = panels(type(self).__name__, ax, heights=(1.0,) * k, size=size)
        self.lines_: list[Any] = []
        self.bands_: list[Any] = []
        self.shared_: list[Any] = []
        self.theory_: list[Any] = []
        lines = _theories(self.theory, self.term_names, len(path))
        for j, (own, term) in enumerate(zip(self.axes_, self.term_names, strict=True)):
            self._plot_term(own, path, j, (line_kwargs, band_kwargs))
            self._plot_constant(own, j, lines.get(term), shared_kwargs)
            own.set(ylabel=f"coefficient of {term}" if k == 1 else term)
            own.set_xlim(0.5, len(path) + 0.5)
            own.tick_params(labelbottom=own is self.axes_[-1])
            own.locator_params(axis="x", integer=True)
            few_ticks(own, "y")
        self.axes_[-1].set_xlabel(self.place)
        legend_above(self.axes_[0], self.name, n_columns=3)
        self.ax_, self.figure_ = self.axes_[0], self.axes_[0].figure
        return self

    def _plot_term(self, ax: Any, path: Array, j: int, given: tuple[Any, Any]) -> None:
        """Coefficients with their band, or of endpoints, which have no order, error bars."""
        from matplotlib.collections import PolyCollection
        from matplotlib.lines import Line2D

        x, values = np.arange(1, len(path) + 1), path[:, j]
        style = {"color": COLORS[0], "marker": "o", "markersize": 4 if len(x) <= 60 else 2}
        low = high = np.full(len(x), np.nan)
        if self.bands is not None:
            both = as_numbers("bands", self.bands)[:, j]
            low, high = np.where(np.isfinite(both), both, np.nan).T
        label = f"each {self.place} alone"
        if self.place == "endpoint":
            style |= {"linestyle": "", "capsize": 2, "elinewidth": 1}
            style = styled(Line2D, {**(given[0] or {}), **(given[1] or {})}, **style)
            bars = ax.errorbar(x, values, [values - low, high - values], label=label, **style)
            self.lines_.append(bars.lines[0])
            self.bands_.append(bars)
        else:
            style = styled(Line2D, given[0], **style, linewidth=1.2)
            self.lines_ += ax.plot(x, values, label=label, **style)
            style = styled(PolyCollection, given[1], facecolor=COLORS[0], alpha=0.2, linewidth=0)
            self.bands_.append(ax.fill_between(x, low, high, **style))
        ax.set_ylim(*_range(values, low, high))

    def _plot_constant(self, ax: Any, j: int, theory: Any, given: Any) -> None:
        """The shared coefficient, and theory."""
        from matplotlib.lines import Line2D

        shared, line = None, None
        if self.shared is not None:
            value = float(as_numbers("shared", self.shared)[j])
            style = styled(Line2D, given, color="#D55E00", linestyle="--", linewidth=1.8)
            text = f"one for all {self.place}s: {value:.4g}"
            shared = ax.axhline(value, label=text if j == 0 else f"{value:.4g}", **style)
        if theory is not None:
            n = len(theory)
            (line,) = ax.plot(
                *([0.5, n + 0.5], theory[[0, -1]])
                if np.ptp(theory) == 0
                else (np.arange(1, n + 1), theory),
                color="black",
                linestyle=":",
                linewidth=2,
                label="theory",
            )
        self.shared_.append(shared)
        self.theory_.append(line)
        ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        known = [] if self.shared is None else [as_numbers("shared", self.shared)[j]]
        known += [] if theory is None else [*theory]
        ax.set_ylim(*_range(np.asarray(ax.get_ylim()), np.asarray(known), margin=0.0))


def _range(*values: Array, margin: float = 0.08) -> tuple[float, float]:
    """Range of finite numbers, from zero where that is not far."""
    joined = np.concatenate([np.ravel(v) for v in values])
    joined = joined[np.isfinite(joined)]
    return limits(joined, margin=margin)


def _among(terms: Sequence[str], names: Sequence[str]) -> list[str]:
    if isinstance(terms, str) or not np.shape(terms) or not set(terms) <= set(names):
        raise ValueError(f"Expected terms to be a list among {list(names)}, got {shown(terms)}.")
    return list(terms)


def _theories(theory: Any, term_names: Sequence[str], n: int) -> dict[str, Array]:
    """Theory of each term that has one, as an array over the windows."""
    if theory is None:
        return {}
    if not isinstance(theory, Mapping):
        if len(term_names) != 1:
            raise ValueError(
                f"Expected theory as a dict of term to value for {list(term_names)}, got "
                f"{shown(theory)}."
            )
        theory = {term_names[0]: theory}
    found = {}
    for term, value in theory.items():
        values = as_numbers("theory", value)
        if term not in term_names or values.shape not in ((), (n,)):
            raise ValueError(
                f"Expected theory of terms among {list(term_names)}, each a number or {n} of them, "
                f"got {shown(value)} for {term!r}."
            )
        found[term] = np.broadcast_to(values, (n,))
    return found
