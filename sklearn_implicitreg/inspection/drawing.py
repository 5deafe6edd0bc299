"""How all displays draw: matplotlib when it is needed, axes, and colors that everyone can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sklearn_implicitreg.problem.parameters import NOTHING, Allowed, check, having, shown

# Okabe and Ito (2008) without yellow, which white swallows; neighbors differ in grey as well.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
GREY = "0.45"
WIDTH = 6.4  # inches, of a notebook's column

_ONE_AXES = having("Axes of matplotlib", "scatter", "plot", "figure")


def pyplot(owner: str) -> Any:
    """The module matplotlib.pyplot; ImportError with the extra that installs it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{owner}.plot needs matplotlib: pip install sklearn_implicitreg[plot]"
        ) from error
    return plt


def panels(
    owner: str,
    ax: Any,
    *,
    heights: Sequence[float] = (1.0,),
    widths: Sequence[float] = (1.0,),
    size: tuple[float, float] = (WIDTH, 4.0),
) -> list[Any]:
    """Axes of all panels: of a new figure, in the place of one axes, or as they were given."""
    n = len(heights) * len(widths)
    several = Allowed(
        lambda given: (
            isinstance(given, list | tuple | np.ndarray)
            and np.shape(given) == (n,)
            and all(map(_ONE_AXES.holds, given))
        ),
        (f"a list of {n} of them",),
    )
    check("plot", {"ax": ax}, {"ax": NOTHING | _ONE_AXES | several})
    plt = pyplot(owner)
    if several.holds(ax):
        return list(ax)
    if n == 1:
        return [ax or plt.subplots(figsize=size, layout="constrained")[1]]
    ratios: Any = {"height_ratios": heights, "width_ratios": widths}
    shape = len(heights), len(widths)
    if ax is None:
        figure = plt.figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(*shape, **ratios)
    else:
        figure, spec = ax.figure, ax.get_subplotspec()
        if spec is None:
            raise ValueError(
                f"Expected ax of {owner} in a grid of subplots, got axes without a place in one; "
                f"give a list of {n} axes."
            )
        ax.set_axis_off()  # it is only the place, as in displays of scikit-learn
        grid = spec.subgridspec(*shape, **ratios)
    return [figure.add_subplot(grid[i, j]) for i in range(shape[0]) for j in range(shape[1])]


def check_names(what: str, names: Any, n: int) -> None:
    """Raise ValueError unless it is a list of n names."""
    if isinstance(names, str) or np.shape(names) != (n,):
        raise ValueError(f"Expected {n} {what}, got {shown(names)}.")


def styled(artist: type, given: Mapping[str, Any] | None, **default: Any) -> dict[str, Any]:
    """Style of an artist: the default, and over it what was given under any alias."""
    from matplotlib.cbook import normalize_kwargs

    return default | dict(normalize_kwargs(dict(given or {}), artist))


def look(i: int) -> tuple[str, str, Any]:
    """Color, marker and line style of the i-th of several."""
    return COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)]


def few_ticks(axis: Any, which: str = "both") -> None:
    """Few ticks with short numbers, which need no common power of ten above the axes."""
    from matplotlib.ticker import FuncFormatter

    axis.locator_params(axis=which, nbins=5)
    for one in (axis.xaxis, axis.yaxis):
        if which in ("both", one.axis_name):
            one.set_major_formatter(FuncFormatter(partial(_tick, one)))


def _tick(axis: Any, value: float, _: int | None) -> str:
    low, high = axis.get_view_interval()
    return "0" if abs(value) < 1e-9 * abs(high - low) else f"{value:.4g}"


def legend_above(ax: Any, title: str | None, n_columns: int = 2) -> None:
    """Title and legend above the axes, where they hide nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        ax.set_title(title or "")
        return
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "alignment": "left"}
    ax.legend(ncols=n_columns, title=title, frameon=False, fontsize="small", **place)


def limits(*values: Any, margin: float = 0.08) -> tuple[float, float]:
    """Range of finite numbers and zero, with a margin."""
    joined = np.concatenate([np.ravel(np.asarray(v, dtype=float)) for v in values])
    joined = joined[np.isfinite(joined)]
    low, high = float(joined.min(initial=0.0)), float(joined.max(initial=0.0))
    if low == high:
        return -1.0, 1.0
    return low - margin * (high - low), high + margin * (high - low)


def sampled(n: int, most: int) -> Any:
    """Which of n points are drawn: all, or a random sample of the largest number."""
    if n <= most:
        return slice(None)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False))
