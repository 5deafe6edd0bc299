"""What the weights and the runs of a recovery are called."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sklearn_implicitreg.problem import Params, Problem


def weight_index(problem: Problem, params: Params) -> pd.MultiIndex:
    """Tensor and coordinate of every weight."""
    entries = ((n, problem.labels(n, np.arange(t.numel()))) for n, t in params.items())
    rows = [(name, label) for name, labels in entries for label in labels]
    return pd.MultiIndex.from_tuples(rows, names=["tensor", "coordinate"])


def names_of(runs: pd.DataFrame) -> pd.Series:
    """Arm and number of every run."""
    arms = runs["arm"].str.replace("ablated", "without R")
    return arms + " " + (runs["draw"] + 1).astype(str)
