"""Pictures of a fit, one class each."""

from sklearn_implicitreg.inspection.coefficient_path import CoefficientPathDisplay
from sklearn_implicitreg.inspection.coefficients import CoefficientDisplay
from sklearn_implicitreg.inspection.family_comparison import FamilyComparisonDisplay
from sklearn_implicitreg.inspection.gradient_match import GradientMatchDisplay
from sklearn_implicitreg.inspection.identifiability import IdentifiabilityDisplay
from sklearn_implicitreg.inspection.influence import InfluenceDisplay
from sklearn_implicitreg.inspection.penalty_shape import PenaltyShapeDisplay
from sklearn_implicitreg.inspection.recovery import RecoveryDisplay
from sklearn_implicitreg.inspection.spectrum import SpectrumDisplay

__all__ = [
    "CoefficientDisplay",
    "CoefficientPathDisplay",
    "FamilyComparisonDisplay",
    "GradientMatchDisplay",
    "IdentifiabilityDisplay",
    "InfluenceDisplay",
    "PenaltyShapeDisplay",
    "RecoveryDisplay",
    "SpectrumDisplay",
]
