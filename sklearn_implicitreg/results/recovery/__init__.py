"""Training again with the estimated penalty, and what comes back."""

from __future__ import annotations

from sklearn_implicitreg.results.recovery.again import recover
from sklearn_implicitreg.results.recovery.comparison import Arm, Recovery

__all__ = ["Arm", "Recovery", "recover"]
