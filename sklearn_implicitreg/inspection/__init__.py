"""Pictures of a fit, one class each."""

from sklearn_implicitreg.inspection.gradient_match import GradientMatchDisplay

__all__ = ["GradientMatchDisplay"]
