"""Families of a search against each other: criterion, R2 and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.inspection.drawing import (
    COLORS,
    WIDTH,
    check_names,
    legend_above,
    panels,
    styled,
)
from sklearn_implicitreg.problem.parameters import as_numbers, shown

_LOWEST = -1.0  # a criterion below is drawn at the edge: it is not of this model
_MAX_NAME = 40  # characters


class FamilyComparisonDisplay:
    """Families of a search against each other: criterion, R2 and verdicts.

    Parameters
    ----------
    names : list of str of length F
        The families.
    scores : array-like of shape (F,)
        Criterion, or mean score over folds.
    errors : array-like of shape (F,), default=None
        Half the length of their error bars; NaN: none.
    r2 : array-like of shape (F,), default=None
        R2 of the fit on all rows.
    verdicts : list of str or None of length F, default=None
        Verdicts, where they are known.
    score_name, error_name : str, default="criterion", "1 standard error"
        What the scores and their error bars are.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    scores_, r2_ : ErrorbarContainer, PathCollection or None
        What was drawn, the best family at the top.
    texts_ : list of Text
        Scores and verdicts at the right.

    See Also
    --------
    sklearn_implicitreg.ImplicitRegularizationCV : Compares the families of a trained model.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Lasso
    >>> from sklearn_implicitreg import ImplicitRegularizationCV
    >>> from sklearn_implicitreg.inspection import FamilyComparisonDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> lasso = Lasso(alpha=0.1).fit(X, y)
    >>> search = ImplicitRegularizationCV(lasso, families=["l2", "l1"]).fit(X, y)
    >>> display = FamilyComparisonDisplay.from_estimator(search)
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['l1', 'l2']
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        scores: Any,
        errors: Any = None,
        r2: Any = None,
        verdicts: Sequence[str | None] | None = None,
        score_name: str = "criterion",
        error_name: str = "1 standard error",
    ):
        if isinstance(names, str) or not np.shape(names) or not len(names):
            raise ValueError(f"Expected names of at least one family, got {shown(names)}.")
        given = {"scores": scores, "errors": errors, "r2": r2}
        for label, own in given.items():
            if (own is not None or label == "scores") and (
                as_numbers(label, own).shape != (len(names),)
            ):
                raise ValueError(
                    f"Expected {label} of shape ({len(names)},), one per family, got "
                    f"{np.shape(own)}."
                )
        if verdicts is not None:
            check_names("verdicts", verdicts, len(names))
        self.names = names
        self.scores = scores
        self.errors = errors
        self.r2 = r2
        self.verdicts = verdicts
        self.score_name = score_name
        self.error_name = error_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        ax: Any = None,
        score_kwargs: dict[str, Any] | None = None,
        r2_kwargs: dict[str, Any] | None = None,
    ) -> FamilyComparisonDisplay:
        """Display of a fitted search, drawn.

        Parameters
        ----------
        estimator : ImplicitRegularizationCV or search of scikit-learn
            Fitted, also in a pipeline; a search such as ``GridSearchCV`` over ``family``.
        ax : matplotlib Axes, default=None
            A new figure if None.
        score_kwargs, r2_kwargs : dict, default=None
            Passed to ``Axes.errorbar`` for the scores, to ``Axes.scatter`` for R2.

        Returns
        -------
        display : FamilyComparisonDisplay
            With what it drew as attributes.

        Raises
        ------
        NotFittedError
            If the search is not fitted.
        TypeError
            If it is no search.
        """
        if isinstance(estimator, type) or not hasattr(estimator, "fit"):
            raise TypeError(_expected(estimator))
        while isinstance(estimator, Pipeline | FrozenEstimator):
            is_pipeline = isinstance(estimator, Pipeline)
            estimator = estimator[-1] if is_pipeline else estimator.estimator
        results = getattr(estimator, "cv_results_", None)
        if results is None:
            check_is_fitted(estimator)
        if not isinstance(results, Mapping):  # of LogisticRegressionCV and others it is no dict
            raise TypeError(_expected(estimator))
        return cls(**_data(estimator, results)).plot(
            ax, score_kwargs=score_kwargs, r2_kwargs=r2_kwargs
        )

    def plot(
        self,
        ax: Any = None,
        *,
        score_kwargs: dict[str, Any] | None = None,
        r2_kwargs: dict[str, Any] | None = None,
    ) -> FamilyComparisonDisplay:
        """Draw a line for each family, the best at the top.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            A new figure if None.
        score_kwargs, r2_kwargs : dict, default=None
            Passed to ``Axes.errorbar`` for the scores, to ``Axes.scatter`` for R2.

        Returns
        -------
        self : FamilyComparisonDisplay

        Raises
        ------
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        n = len(self.names)
        size = (WIDTH, float(np.clip(1.3 + 0.36 * n, 2.0, 12.0)))
        (ax,) = panels(type(self).__name__, ax, size=size)
        from matplotlib.collections import PathCollection
        from matplotlib.lines import Line2D

        scores = as_numbers("scores", self.scores)
        order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
        places, shown_scores = np.arange(n), np.maximum(scores[order], _LOWEST)
        errors = None if self.errors is None else as_numbers("errors", self.errors)[order]
        label = self.score_name + ("" if errors is None else f" (bar: {self.error_name})")
        style = styled(
            Line2D, score_kwargs, color=COLORS[0], marker="o", linestyle="", capsize=3, zorder=3
        )
        self.scores_ = ax.errorbar(shown_scores, places, xerr=errors, label=label, **style)
        self.r2_, left = None, [*shown_scores[np.isfinite(shown_scores)], 0.0]
        if self.r2 is not None:
            r2 = as_numbers("r2", self.r2)[order]
            style = {"marker": "D", "facecolors": "none", "edgecolors": COLORS[1], "s": 70}
            style = styled(PathCollection, r2_kwargs, **style, linewidths=1.5)
            self.r2_ = ax.scatter(np.maximum(r2, _LOWEST), places, label="$R^2$", **style)
            left += [*np.maximum(r2[np.isfinite(r2)], _LOWEST)]
        low = min(left)
        self._write(ax, order, scores)
        names = [_short(str(self.names[i])) for i in order]
        ax.set(yticks=places, yticklabels=names, ylim=(n - 0.5, -0.5))
        ax.set_xlim(low - 0.04 * (1.05 - low), 1.05)
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
        legend_above(ax, None)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _write(self, ax: Any, order: Any, scores: Any) -> None:
        """Scores and verdicts at the right of their lines."""
        self.texts_ = []
        verdicts = self.verdicts if self.verdicts is not None else [None] * len(order)
        for place, i in enumerate(order):
            number = f"{scores[i]:.4f}" if np.isfinite(scores[i]) else "failed"
            text = f"{number}  {verdicts[i]}" if verdicts[i] else number
            at = (1.01, place)
            self.texts_.append(
                ax.annotate(
                    text, at, xycoords=("axes fraction", "data"), va="center", fontsize="small"
                )
            )


def _expected(got: Any) -> str:
    return (
        "Expected a fitted ImplicitRegularizationCV or a search of scikit-learn with cv_results_, "
        f"got {shown(got)}; draw a single fit by its plot()."
    )


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 3]}..."


def _data(search: Any, results: Mapping[str, Any]) -> dict[str, Any]:
    """Names, scores, their errors, R2 and verdicts of a search's candidates."""
    key = "mean_test_score"
    if key not in results:
        key = f"mean_test_{search.refit}"
        if key not in results:
            found = [name for name in results if name.startswith("mean_test_")]
            raise ValueError(f"Expected a search with one score or refit= among {found}, got none.")
    scores = np.asarray(results[key], dtype=float)
    data: dict[str, Any] = {"scores": scores, "r2": results.get("r2")}
    data["names"] = results.get("name") or _names(results["params"])
    std = results.get(key.replace("mean_", "std_", 1))
    if results.get("se_difference") is not None:
        data["errors"] = results["se_difference"]
        data["error_name"] = "1 standard error of the difference to the best"
    elif std is not None:
        metric = key.removeprefix("mean_")
        n = sum(k.startswith("split") and k.endswith(f"_{metric}") for k in results)
        data["errors"] = np.asarray(std) / np.sqrt(max(1, n))
        data["score_name"] = f"mean score of {n} folds"
    verdicts = results.get("verdict")
    if verdicts is None:
        verdicts = [None] * len(scores)
        best = getattr(search, "best_estimator_", search)
        best = best[-1] if hasattr(best, "steps") else best
        if hasattr(search, "best_index_") and hasattr(best, "verdict_"):
            verdicts[int(search.best_index_)] = best.verdict_
    return data | {"verdicts": verdicts}


def _names(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Candidates by their values, with the names of parameters where there are several."""
    if all(len(params) == 1 for params in candidates):
        values = [value for params in candidates for value in params.values()]
        return [value if isinstance(value, str) else repr(value) for value in values]

    def own(params: Mapping[str, Any]) -> str:
        return ", ".join(f"{key.split('__')[-1]}={value!s}" for key, value in params.items())

    return [own(params) for params in candidates]
