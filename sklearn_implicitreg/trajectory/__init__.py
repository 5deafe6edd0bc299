"""Training paths: recording them, and the regression over their steps."""

from sklearn_implicitreg.trajectory.path import Trajectory
from sklearn_implicitreg.trajectory.recorder import record

__all__ = ["Trajectory", "record"]
