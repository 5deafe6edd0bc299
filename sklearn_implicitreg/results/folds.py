"""Warnings where the scores of a search over folds cannot tell families apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_implicitreg.endpoints.targets import AT_REST
from sklearn_implicitreg.exceptions import SelectionWarning, warn_once
from sklearn_implicitreg.regression.system import Array

_FEWEST = 5  # of rows: the largest target alone lies outside those of the others
_INSTEAD = "use ImplicitRegularizationCV, which needs no folds"


def warn_of_order(fitted: Any, scored: Any) -> None:
    """Warn, once a process, where most scored targets lie outside those of the fitted rows."""
    if _outside(fitted, scored) > 0.5:
        warn_once(
            "order",
            "Most targets of the scored rows lie outside those of the fitted rows, as in folds of "
            "sorted rows: the gradient of such a fold is far from that of the others. Shuffle the "
            f"folds (cv=KFold(5, shuffle=True)), or {_INSTEAD}.",
            SelectionWarning,
        )


def warn_of_score(score: float, unrest: float) -> None:
    """Warn, once a process for each reason, where scores like this one choose no family."""
    if unrest > AT_REST:
        warn_once(
            "rows",
            f"The fitted and the scored rows together do not look like those of the training: the "
            f"gradient of the unpenalized intercept over them is {unrest:.2g} of its standard "
            "error and not zero. A search must divide all training rows into folds, as "
            f"GridSearchCV does and HalvingGridSearchCV does not; or {_INSTEAD}.",
            SelectionWarning,
        )
    if score < 0:
        warn_once(
            "low",
            f"A score is {score:.3g}, below 0: the rows left out cost this family more than it "
            "explains. Where no family of a search scores above 0, the search chooses none: "
            f"give all training rows and more folds, or {_INSTEAD}.",
            SelectionWarning,
        )


def _outside(fitted: Any, scored: Any) -> float:
    """Share of the scored targets outside the range, or the classes, of the fitted ones."""
    known, new = _numbers(fitted), _numbers(scored)
    if known is None or new is None or known.shape[1:] != new.shape[1:] or len(new) < _FEWEST:
        return 0.0
    if known.dtype.kind in "OUSb" or _are_classes(known):
        return float(np.mean(~np.isin(new, np.unique(known))))
    away = (new < known.min(axis=0)) | (new > known.max(axis=0))
    return float(np.mean(away, axis=0).max())


def _numbers(y: Any) -> Array | None:
    """Targets as an array; None where there are none, or none that can be compared."""
    try:
        values = np.asarray(y.detach().cpu() if hasattr(y, "detach") else y)
    except (TypeError, ValueError, RuntimeError):
        return None
    usable = values.ndim in (1, 2) and len(values) > 0 and values.dtype.kind in "OUSbiuf"
    return values if usable else None


def _are_classes(values: Array) -> bool:
    return values.dtype.kind in "iu" and len(np.unique(values)) <= min(20, len(values) // 2)
