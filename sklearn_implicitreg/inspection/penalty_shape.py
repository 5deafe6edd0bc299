"""Minus the gradient of the loss against the weight, with fitted penalties over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone

from sklearn_implicitreg.inspection.drawing import (
    COLORS,
    WIDTH,
    few_ticks,
    legend_above,
    limits,
    look,
    panels,
    sampled,
    styled,
)
from sklearn_implicitreg.inspection.fits import (
    Array,
    check_columns,
    drawn_rows,
    equations_of,
    fit_of,
    fit_penalty,
    term_label,
    verdict_title,
)
from sklearn_implicitreg.penalties import FittedPenalty, WeightDecay, penalty_with_terms
from sklearn_implicitreg.problem.parameters import NOTHING, as_numbers, check, instance, shown

_MAX_POINTS = 20_000  # more are drawn as a sample
_MAX_CURVES = len(COLORS)
_N_GRID = 801
_FAMILIES = NOTHING | instance("a list of families", list, tuple)
Pair = tuple[Array, Array]


class PenaltyShapeDisplay:
    """Minus the gradient of the loss against the weight, with fitted penalties over it.

    Every point is a trained parameter. Where training ended, minus the gradient of the loss is the
    gradient of the penalty, so the points *are* the shape of its derivative: a line through zero
    of l2, a step of l1. A histogram of the weights is below.

    Parameters
    ----------
    weights, target : array-like of shape (m,)
        The parameters, and minus the gradient of the loss in each.
    curves : dict of str to (array, array), default=None
        Gradients of fitted penalties as functions of the weight: label to weights and values.
    fitted : dict of str to (array, array), default=None
        Those of penalties that are no function of the single weight, at the weights.
    smooth : array-like of bool of shape (m,), default=None
        Whether a parameter gives an equation: one at a kink of the penalty, drawn hollow, does
        not. None: all do.
    groups : array-like of str of shape (m,), default=None
        Which of several curves a point belongs to, of a penalty with groups.
    name : str, default=None
        Title.
    target_name : str, default="minus gradient of the loss"
        What the target is.

    Attributes
    ----------
    ax_, figure_, axes_ : Axes, Figure and list of Axes
        Axes of the points, figure, and both axes.
    scatters_, kinks_, lines_ : list of PathCollection, PathCollection or None, list of Line2D
        Points of each group, those at a kink, and fitted penalties.
    histogram_ : BarContainer
        The histogram of the weights.

    See Also
    --------
    GradientMatchDisplay : The same equations against the fitted gradient.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Lasso
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
    >>> from sklearn_implicitreg.inspection import PenaltyShapeDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> lasso = Lasso(alpha=0.1).fit(X, y)
    >>> est = ImplicitRegularizationEstimator(lasso, family="l1").fit(X, y)
    >>> display = PenaltyShapeDisplay.from_estimator(est, families=["l2"])
    >>> list(display.curves)
    ['l1, $R^2$ = 1.0000', 'l2, $R^2$ = 0.5664']
    """

    def __init__(
        self,
        *,
        weights: Any,
        target: Any,
        curves: Mapping[str, Any] | None = None,
        fitted: Mapping[str, Any] | None = None,
        smooth: Any = None,
        groups: Any = None,
        name: str | None = None,
        target_name: str = "minus gradient of the loss",
    ):
        shape = as_numbers("weights", weights).shape
        if len(shape) != 1 or as_numbers("target", target).shape != shape:
            raise ValueError(
                f"Expected weights and target of one shape (m,), got {shape} and "
                f"{np.shape(target)}."
            )
        for own in (smooth, groups):
            if own is not None and np.shape(own) != shape:
                raise ValueError(
                    f"Expected smooth and groups of shape {shape} or None, got {np.shape(own)}."
                )
        _check_pairs("curves", curves)
        _check_pairs("fitted", fitted)
        self.weights = weights
        self.target = target
        self.curves = curves
        self.fitted = fitted
        self.smooth = smooth
        self.groups = groups
        self.name = name
        self.target_name = target_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        y: Any = None,
        sample_weight: Any = None,
        *,
        families: Sequence[Any] | None = None,
        name: str | None = None,
        ax: Any = None,
        scatter_kwargs: dict[str, Any] | None = None,
        line_kwargs: dict[str, Any] | None = None,
        hist_kwargs: dict[str, Any] | None = None,
    ) -> PenaltyShapeDisplay:
        """Display of a fitted estimator, drawn.

        Parameters
        ----------
        estimator : ImplicitRegularizationEstimator or ImplicitRegularizationCV
            Fitted; also in a pipeline or a search of scikit-learn.
        X, y, sample_weight
            The rows that it was fitted on; by default the equations that the fit keeps.
        families : list, default=None
            Further families, fitted to the same gradients and drawn as well.
        name, ax : str, matplotlib Axes or list of two, default=None
            Title, by default R2 and verdict; a new figure if None.
        scatter_kwargs, line_kwargs, hist_kwargs : dict, default=None
            Passed to ``Axes.scatter``, to ``Axes.plot`` for the curves, to ``Axes.hist``.

        Returns
        -------
        display : PenaltyShapeDisplay
            With what it drew as attributes.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the family is solved as a whole, or there are no weights: equations were given, or
            a trajectory was recorded as R factors.
        """
        check(cls.__name__, {"families": families}, {"families": _FAMILIES})
        fit, X = fit_of(estimator, X)
        check_columns(cls.__name__, fit)
        equations = equations_of(fit, X, y, sample_weight)
        if any(place.given is not None for place in equations.places):
            raise ValueError(
                "Expected equations with their weights, got equations that were given or a "
                "recording of R factors; draw them by GradientMatchDisplay."
            )
        fits = [fit, *(_fit_of_family(fit, family, equations) for family in families or ())]
        name = verdict_title(fit) if name is None else name
        display = cls(**_data(fits, equations), name=name)
        return display.plot(
            ax, scatter_kwargs=scatter_kwargs, line_kwargs=line_kwargs, hist_kwargs=hist_kwargs
        )

    def plot(
        self,
        ax: Any = None,
        *,
        scatter_kwargs: dict[str, Any] | None = None,
        line_kwargs: dict[str, Any] | None = None,
        hist_kwargs: dict[str, Any] | None = None,
    ) -> PenaltyShapeDisplay:
        """Draw the points with the fitted penalties, and the histogram below.

        Parameters
        ----------
        ax : matplotlib Axes or list of two, default=None
            One is divided in two; a new figure if None.
        scatter_kwargs, line_kwargs, hist_kwargs : dict, default=None
            Passed to ``Axes.scatter``, to ``Axes.plot`` for the curves, to ``Axes.hist``.

        Returns
        -------
        self : PenaltyShapeDisplay

        Raises
        ------
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        self.axes_ = panels(type(self).__name__, ax, heights=(4, 1), size=(WIDTH, 4.8))
        top, below = self.axes_
        weights, target = np.asarray(self.weights, float), np.asarray(self.target, float)
        for line in (top.axhline, top.axvline):
            line(0, color="0.85", linewidth=1, zorder=0)
        self._plot_points(top, weights, target, scatter_kwargs)
        self._plot_lines(top, line_kwargs)
        pairs = [*(self.fitted or {}).values()]
        span = limits(weights, *(x for x, _ in pairs))
        top.set(xlim=span, ylim=limits(target, margin=0.12), ylabel=self.target_name)
        few_ticks(top)
        top.tick_params(labelbottom=False)
        legend_above(top, self.name)
        from matplotlib.patches import Patch

        bins = int(np.clip(np.sqrt(len(weights)), 10, 60))
        style = styled(Patch, hist_kwargs, color="0.6", bins=bins, range=span)
        _, _, self.histogram_ = below.hist(weights, **style)
        below.set(xlim=span, xlabel="weight", ylabel="count")
        few_ticks(below, "x")
        below.locator_params(axis="y", nbins=2, integer=True)
        self.ax_, self.figure_ = top, top.figure
        return self

    def _plot_points(self, ax: Any, weights: Array, target: Array, given: Any) -> None:
        from matplotlib.collections import PathCollection

        chosen = sampled(len(weights), _MAX_POINTS)
        m = len(weights[chosen])
        size = float(np.clip(6000 / max(1, m), 8, 36))
        style: dict[str, Any] = {"sizes": [size], "alpha": 0.7, "rasterized": m > 2000, "zorder": 3}
        smooth = np.ones(len(weights), bool) if self.smooth is None else np.asarray(self.smooth)
        groups = np.full(len(weights), "") if self.groups is None else np.asarray(self.groups, str)
        names = list(dict.fromkeys(groups.tolist()))
        self.scatters_, self.kinks_ = [], None
        for i, name in enumerate(names):
            color, marker, _ = look(i) if len(names) > 1 else ("0.25", "o", "")
            own = np.zeros(len(weights), bool)
            own[chosen] = True
            own &= smooth & (groups == name)
            full = styled(PathCollection, given, **style, color=color, marker=marker, linewidth=0)
            full["s"] = full.pop("sizes")
            self.scatters_.append(ax.scatter(weights[own], target[own], **full))
        if not smooth.all():
            at = np.zeros(len(weights), bool)
            at[chosen] = True
            at &= ~smooth
            hollow = {"facecolors": "white", "edgecolors": "black", "linewidths": 1, "s": size}
            self.kinks_ = ax.scatter(
                weights[at], target[at], **hollow, label="at a kink: no equation", zorder=4
            )

    def _plot_lines(self, ax: Any, given: Any) -> None:
        from matplotlib.lines import Line2D

        self.lines_ = []
        labels = [*(self.curves or {}), *(self.fitted or {})]
        for i, label in enumerate(labels):
            color, marker, dashes = look(i)
            if label in (self.curves or {}):
                x, values = (self.curves or {})[label]
                style = {"color": color, "linestyle": dashes, "linewidth": 2}
            else:
                x, values = (self.fitted or {})[label]
                chosen = sampled(len(x), _MAX_POINTS)
                x, values = np.asarray(x)[chosen], np.asarray(values)[chosen]
                style = {"color": color, "linestyle": "", "marker": "x+1234|"[i % 7]}
                style |= {"markersize": 5, "zorder": 5}
            style = styled(Line2D, given, **style)
            self.lines_ += ax.plot(x, values, label=label, **style)


class _Weight(WeightDecay):
    """A family whose gradient is the weight itself."""

    _term = "weight of the picture"


def _check_pairs(name: str, given: Any) -> None:
    """Raise ValueError unless it maps labels to pairs of arrays of one length."""
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ValueError(
            f"Expected {name} to be a dict of label to two arrays, got {shown(given)}."
        )
    for label, pair in given.items():
        shapes = [as_numbers(f"{name}[{label!r}]", own).shape for own in pair]
        if len(shapes) != 2 or len(shapes[0]) != 1 or shapes[0] != shapes[1]:
            raise ValueError(
                f"Expected {name}[{label!r}] to be two arrays of one shape (m,), got {shapes}."
            )


def has_shape(fit: Any) -> bool:
    """Whether the fitted penalty's gradient is a function of the single weight."""
    penalty = fit.penalty_
    kept = getattr(fit, "_equations", None)
    if kept is None or any(place.given is not None for place in kept.places):
        return False
    return isinstance(penalty, FittedPenalty) and _curves(penalty, np.zeros(1)) is not None


def _fit_of_family(fit: Any, family: Any, equations: Any) -> Any:
    """The same fit of another family, to gradients that are there."""
    again, targets = clone(fit).set_params(family=family), equations.targets
    return again._fit_to(targets, penalty_with_terms(family))


def _data(fits: Sequence[Any], equations: Any) -> dict[str, Any]:
    """Points of the first fit, and the curves of all."""
    first, targets = fits[0], equations.targets
    weights, target, tensors = _points(first, equations)
    span = limits(weights)
    tiny = 1e-9 * (span[1] - span[0])  # a step at zero is drawn as one
    grid = np.sort(np.concatenate([np.linspace(*span, _N_GRID), [-tiny, 0.0, tiny]]))
    data: dict[str, Any] = {"weights": weights, "target": target, "curves": {}, "fitted": {}}
    for fit in fits:
        label = f"{term_label(fit)}, $R^2$ = {fit.r2_:.4f}"
        found = _curves(fit.penalty_, grid)
        if found is None:
            data["fitted"][label] = _fitted(fit, targets)
        elif len(found) == 1:
            data["curves"][label] = (grid, found[0][1])
        else:
            own = {_kind(fit.penalty_, names): (names, values) for names, values in found}
            data["curves"] |= {f"{term_label(fit)}, {k}": (grid, v) for k, (_, v) in own.items()}
            if fit is first and targets.problem.params.keys() >= set(tensors):
                of = {name: kind for kind, (names, _) in own.items() for name in names}
                data["groups"] = np.array([of.get(name, "") for name in tensors.tolist()])
    data["smooth"] = _smooth(first.penalty_, weights, tensors)
    if equations.cluster == "window":
        data["target_name"] = "applied gradient less that of the loss"
    return data


def _points(fit: Any, equations: Any) -> tuple[Array, Array, Any]:
    """Weight and target of every parameter, with its tensor."""
    targets = equations.targets
    plain = targets.equations(fit._penalty(targets.problem, _Weight()))
    family, parts = plain.family, []
    nuisance = [i for i in range(len(plain.term_names)) if i not in family]
    names = list(fit.term_names_)
    share = np.array([np.nan_to_num(fit.coef_[names.index(plain.term_names[i])]) for i in nuisance])
    for label, design, target in drawn_rows(plain):
        # What the nuisance column explains is taken off.
        rest = target - design[:, nuisance] @ share
        parts.append((design[:, family].sum(axis=1), rest, np.full(len(target), label)))
    if not parts:
        return np.zeros(0), np.zeros(0), np.zeros(0, str)
    weights, target, tensors = (np.concatenate(own) for own in zip(*parts, strict=True))
    return weights, target, tensors


def _fitted(fit: Any, targets: Any) -> Pair:
    """Weight and gradient of the fitted penalty at every parameter."""
    both = targets.equations(fit._penalty(targets.problem, _Weight() + fit_penalty(fit)))
    if any(place.design.frame(name) for place in both.places for name in place.names):
        raise ValueError(
            f"Expected equations of single weights, got those of {fit.family!r} in singular bases, "
            "where some singular values count as zero: R has no shape there; draw the fit by "
            "GradientMatchDisplay."
        )
    own = [i for i, name in enumerate(both.term_names) if name.startswith(_Weight._term)]
    names = list(fit.term_names_)
    rest = [i for i in both.family if i not in own]
    coef = np.nan_to_num([fit.coef_[names.index(both.term_names[i])] for i in rest])
    rows = [(d[:, own].sum(axis=1), d[:, rest] @ coef) for _, d, _ in drawn_rows(both)]
    weights, values = (np.concatenate(part) for part in zip(*rows, strict=True))
    return weights, values


def _curves(penalty: FittedPenalty, grid: Array) -> list[tuple[list[str], Array]] | None:
    """Gradient on a grid, and the tensors that it holds for; None if it is no such function."""
    at = torch.as_tensor(grid)
    found: dict[bytes, tuple[list[str], Array]] = {}
    for name in penalty.tensors:
        total = torch.zeros_like(at)
        for leaf, coefs in penalty.leaves:
            if name not in leaf.names:
                continue
            if not (leaf.penalty.elementwise and hasattr(leaf.penalty, "gradient")):
                return None
            for coef, slope in zip(coefs, leaf.penalty.gradient(name, at).values(), strict=True):
                total = total + coef * slope
        values = total.numpy()
        found.setdefault(values.tobytes(), ([], values))[0].append(name)
    return list(found.values()) if len(found) <= _MAX_CURVES else None


def _kind(penalty: FittedPenalty, names: Sequence[str]) -> str:
    """The group of some tensors, or their names."""
    groups = dict.fromkeys(
        leaf.group for leaf, _ in penalty.leaves if leaf.group and names[0] in leaf.names
    )
    label = ", ".join(groups or names)
    return label if len(label) <= 30 else f"...{label[-27:]}"


def _smooth(penalty: FittedPenalty, weights: Array, tensors: Any) -> Any:
    """Whether the penalty is differentiable at each weight, if the weight alone decides it."""
    mask = np.ones(len(weights), bool)
    for leaf, _ in penalty.leaves:
        if not (leaf.penalty.elementwise and hasattr(leaf.penalty, "smooth")):
            continue
        for name in dict.fromkeys(tensors.tolist()):
            own = tensors == name
            if name not in leaf.names and name in penalty.tensors:
                continue
            inside = torch.as_tensor(weights[own])
            mask[own] &= leaf.penalty.smooth(leaf.names[0], inside).numpy()
    return mask
