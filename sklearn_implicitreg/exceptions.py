"""Warnings of the package, one class for each that a user may want to silence, and one error."""

import re
import sys
import sysconfig
import warnings
from types import FrameType

__all__ = [
    "AugmentationWarning",
    "CollinearTermsWarning",
    "ImplicitRegularizationWarning",
    "IndefinitePenaltyWarning",
    "ModelStateWarning",
    "OutputWarning",
    "ParameterError",
    "PathNoiseWarning",
    "SelectionWarning",
    "StepSizeWarning",
]

_PACKAGE = __name__.partition(".")[0] + "."
_INSTALLED = ("<frozen ", sysconfig.get_path("stdlib") or "<frozen ")
_PACKAGES = re.compile(r"[\\/](site|dist)-packages[\\/]")  # of Python, of a system or of the user


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


class SelectionWarning(ImplicitRegularizationWarning):
    """The scores of a search cannot tell families apart."""


class StepSizeWarning(ImplicitRegularizationWarning):
    """The step size is so large that the iteration diverges."""


class ParameterError(ValueError, TypeError):
    """A parameter is of another type than expected, or out of its range."""


_GIVEN: set[str] = set()


def warn_once(key: str, message: str, category: type[Warning]) -> None:
    """Warn at the user's line, once a process: of what each fold of a search would repeat."""
    if key not in _GIVEN:
        _GIVEN.add(key)
        warn_user(message, category)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the user's line: the nearest outside this package and installed libraries."""
    frame = outside = sys._getframe(1)
    while frame.f_back is not None and _is_library(frame):
        frame = frame.f_back
        if _is_package(outside):
            outside = frame
    if _is_library(frame):  # a worker process, where no line of the user's is
        frame = outside
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    module = frame.f_globals.get("__name__") or "<string>"  # of None nothing would be shown
    place = frame.f_code.co_filename, frame.f_lineno, module
    warnings.warn_explicit(message, category, *place, registry)


def _is_package(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__") or ""
    return f"{name}.".startswith(_PACKAGE)


def _is_library(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return _is_package(frame) or file.startswith(_INSTALLED) or bool(_PACKAGES.search(file))
