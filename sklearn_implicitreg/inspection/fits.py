"""What displays read of a fit: the estimator inside a pipeline, its equations, a title."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.problem.parameters import shown

Array = npt.NDArray[np.float64]
_MAX_TITLE = 45  # characters


def fit_of(estimator: Any, X: Any = None) -> tuple[Any, Any]:
    """The fitted estimator inside pipelines and searches, and X as it gets it."""
    while True:
        if isinstance(estimator, Pipeline):
            check_is_fitted(estimator)
            if X is not None and len(estimator) > 1:
                X = estimator[:-1].transform(X)
            estimator = estimator[-1]
        elif isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            break
    if isinstance(estimator, type) or not hasattr(estimator, "fit"):
        raise TypeError(_expected(estimator))
    is_own = hasattr(estimator, "in_model_units")
    check_is_fitted(estimator, "coef_" if is_own else None)
    if not is_own:
        raise TypeError(_expected(estimator))
    return estimator, X


def _expected(got: Any) -> str:
    return (
        "Expected a fitted ImplicitRegularizationEstimator or ImplicitRegularizationCV, also in a "
        f"pipeline or a search that refits, got {shown(got)}; give it the model and fit it."
    )


def check_columns(owner: str, fit: Any) -> None:
    """Raise ValueError for a fit of a family that is solved as a whole and has no columns."""
    if fit._fitted().whole is not None:
        raise ValueError(
            f"Expected the fit of a family of terms for {owner}, got {fit.family!r}, which is "
            "solved as a whole and has no columns; draw it by SpectrumDisplay."
        )


def equations_of(fit: Any, X: Any, y: Any, sample_weight: Any) -> Any:
    """The equations of a fit: those that it keeps, or made again from rows."""
    if X is None:
        kept = getattr(fit, "_equations", None)
        if kept is None:
            raise ValueError(
                "Expected X and y, or an estimator that was fitted here: the equations of a fit "
                "are not pickled."
            )
        return kept
    again = clone(fit)
    again.model = fit.model_
    if isinstance(again.model, str):
        raise ValueError(
            f"Expected a model, got {again.model!r}: its equations are those of its fit; leave "
            "X and y out."
        )
    targets = again._targets(X, y, sample_weight)
    return targets.equations(again._penalty(targets.problem, fit_penalty(fit)))


def fit_penalty(fit: Any) -> Any:
    """The family of a fit as a penalty with terms."""
    return fit._source._found()


def drawn_rows(equations: Any) -> Iterator[tuple[str, Array, Array]]:
    """Label, columns and target of the equations that R2 is about, in chunks."""
    # Along a trajectory those of the mean over the windows.
    places = equations.places if equations.mean is None else (equations.mean,)
    for i, place in enumerate(places):
        for label, _, design, target in place.system.single("for a picture of them"):
            tensor = label[-1] if label else "equations"
            yield (tensor if len(places) == 1 else f"endpoint {i}"), design, target


def term_label(fit: Any) -> str:
    """Names of a fit's terms without their groups, such as ``l2 + l1``."""
    result = fit._fitted()
    names = [result.term_names[i].partition("[")[0] for i in result.family]
    once = list(dict.fromkeys(names))
    label = " + ".join(once)
    return label if len(label) <= _MAX_TITLE else f"{once[0]} + ... + {once[-1]}"


def verdict_title(fit: Any) -> str:
    """R2 and verdict of a fit."""
    return f"$R^2$ = {fit.r2_:.4f} ({fit.verdict_})"


def coef_title(fit: Any) -> str:
    """Coefficients and verdict of a fit."""
    pairs = zip(fit.term_names_, fit.coef_, strict=True)
    terms = ", ".join(f"{name}: {coef:.3g}" for name, coef in pairs)
    if len(terms) > _MAX_TITLE:
        terms = f"{len(fit.term_names_)} terms"
    return f"{terms} ({fit.verdict_})"
