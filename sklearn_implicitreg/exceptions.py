"""Warnings of the package, one class for each that a user may want to silence, and one error."""

import re
import sys
import sysconfig
import warnings
from types import FrameType

__all__ = [
    "AugmentationWarning",
    "CacheWarning",
    "CollinearTermsWarning",
    "ImplicitRegularizationWarning",
    "IndefinitePenaltyWarning",
    "ModelStateWarning",
    "OutputWarning",
    "ParameterError",
    "PathNoiseWarning",
    "SamplerWarning",
    "SelectionWarning",
    "StepSizeWarning",
    "WorkerWarning",
]

_PACKAGE = __name__.partition(".")[0] + "."
_INSTALLED = ("<frozen ", sysconfig.get_path("stdlib") or "<frozen ")
_PACKAGES = re.compile(r"[\\/](site|dist)-packages[\\/]")  # of Python, of a system or of the user


class ImplicitRegularizationWarning(UserWarning):
    """Base class of every warning that the package raises.

    Explained in doc/warnings.md#implicitregularizationwarning.
    """


class CollinearTermsWarning(ImplicitRegularizationWarning):
    """The gradients of some penalty terms are linearly dependent.

    Explained in doc/warnings.md#collineartermswarning.
    """


class ModelStateWarning(ImplicitRegularizationWarning):
    """The trained model is used in another state or precision than it was trained in.

    Explained in doc/warnings.md#modelstatewarning.
    """


class AugmentationWarning(ImplicitRegularizationWarning):
    """The data differ each time they are read.

    Explained in doc/warnings.md#augmentationwarning.
    """


class CacheWarning(ImplicitRegularizationWarning):
    """Files of a cache are damaged, and what they held is computed again.

    Explained in doc/warnings.md#cachewarning.
    """


class OutputWarning(ImplicitRegularizationWarning):
    """The model's outputs do not look like what the loss expects.

    Explained in doc/warnings.md#outputwarning.
    """


class PathNoiseWarning(ImplicitRegularizationWarning):
    """Single mini-batch steps are compared with the gradient on all rows.

    Explained in doc/warnings.md#pathnoisewarning.
    """


class IndefinitePenaltyWarning(ImplicitRegularizationWarning):
    """An implied penalty is negative in some directions; with the loss it is still convex.

    Explained in doc/warnings.md#indefinitepenaltywarning.
    """


class SamplerWarning(ImplicitRegularizationWarning):
    """The sampler of a loader has not all rows of its data set, which are all read.

    Explained in doc/warnings.md#samplerwarning.
    """


class SelectionWarning(ImplicitRegularizationWarning):
    """The scores of a search cannot tell families apart.

    Explained in doc/warnings.md#selectionwarning.
    """


class StepSizeWarning(ImplicitRegularizationWarning):
    """The step size is so large that the iteration diverges.

    Explained in doc/warnings.md#stepsizewarning.
    """


class WorkerWarning(ImplicitRegularizationWarning):
    """A worker process died, and what it ran is run again.

    Explained in doc/warnings.md#workerwarning.
    """


class ParameterError(ValueError, TypeError):
    """A parameter is of another type than expected, or out of its range.

    Explained in doc/warnings.md#parametererror.
    """


_GIVEN: set[str] = set()


def warn_once(key: str, message: str, category: type[Warning]) -> None:
    """Warn at the user's line, once a process: of what each fold of a search would repeat."""
    if key not in _GIVEN:
        _GIVEN.add(key)
        warn_user(message, category)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the user's line: the nearest outside this package and installed libraries."""
    if issubclass(category, ImplicitRegularizationWarning):
        message = f"{message} (doc/warnings.md#{category.__name__.lower()})"
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
