"""Which display shows a fit."""

from __future__ import annotations

from typing import Any

from sklearn_implicitreg.inspection.coefficient_path import CoefficientPathDisplay
from sklearn_implicitreg.inspection.coefficients import CoefficientDisplay
from sklearn_implicitreg.inspection.family_comparison import FamilyComparisonDisplay
from sklearn_implicitreg.inspection.gradient_match import GradientMatchDisplay
from sklearn_implicitreg.inspection.penalty_shape import PenaltyShapeDisplay, has_shape
from sklearn_implicitreg.inspection.spectrum import SpectrumDisplay


def chosen_display(estimator: Any) -> Any:
    """The class whose ``from_estimator`` draws a fitted estimator best."""
    if hasattr(estimator, "cv_results_"):
        return FamilyComparisonDisplay
    result = estimator._fitted()
    if result.whole is not None:
        return SpectrumDisplay
    if result.path is not None and len(result.path) > 1:
        return CoefficientPathDisplay
    grouped = any(leaf.group for leaf, _ in getattr(estimator.penalty_, "leaves", ()))
    if grouped or getattr(estimator, "_equations", None) is None:
        return CoefficientDisplay  # what needs rows cannot be drawn of an unpickled fit
    if has_shape(estimator):
        return PenaltyShapeDisplay
    return CoefficientDisplay if estimator._equations.system.rows is None else GradientMatchDisplay
