"""Warnings of the package, one class for each that a user may want to silence."""

import sys
import warnings

__all__ = [
    "AugmentationWarning",
    "CollinearTermsWarning",
    "ImplicitRegularizationWarning",
    "IndefinitePenaltyWarning",
    "ModelStateWarning",
    "OutputWarning",
    "PathNoiseWarning",
    "StepSizeWarning",
]

_PACKAGE = __name__.partition(".")[0] + "."


class ImplicitRegularizationWarning(UserWarning):
    """Base class of every warning that the package raises."""


class CollinearTermsWarning(ImplicitRegularizationWarning):
    """The gradients of some penalty terms are linearly dependent."""


class ModelStateWarning(ImplicitRegularizationWarning):
    """The trained model is used in another state or precision than it was trained in."""


class AugmentationWarning(ImplicitRegularizationWarning):
    """The data differ each time they are read."""


class OutputWarning(ImplicitRegularizationWarning):
    """The model's outputs do not look like what the loss expects."""


class PathNoiseWarning(ImplicitRegularizationWarning):
    """Single mini-batch steps are compared with the gradient on all rows."""


class IndefinitePenaltyWarning(ImplicitRegularizationWarning):
    """An implied penalty is negative in some directions; with the loss it is still convex."""


class StepSizeWarning(ImplicitRegularizationWarning):
    """The step size is so large that the iteration diverges."""


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the line outside the package that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
