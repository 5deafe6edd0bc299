"""Known answers: fitted scikit-learn models, their data, and the penalty each was trained with."""

from cases.case import Case
from cases.classifiers import LOGISTIC, SVM
from cases.containers import CONTAINERS
from cases.data import (
    N_CANCER,
    N_DIABETES,
    N_WINE,
    S_CANCER,
    S_DIABETES,
    SPARSE_CANCER,
    SPARSE_DIABETES,
    W_CANCER,
    W_DIABETES,
    W_WINE,
    WINE_NAMES,
    X_CANCER,
    X_DIABETES,
    X_RAW,
    X_WINE,
    Y_CANCER,
    Y_COUNTS,
    Y_DIABETES,
    Y_NOISE,
    Y_RAW,
    Y_TWO,
    Y_UNIT,
    Y_WINE,
    balanced_total,
)
from cases.glm import GLM
from cases.iterative import MLP, SGD
from cases.least_squares import RIDGE, SPARSE_MODELS

__all__ = [
    "CASES",
    "Case",
    "N_CANCER",
    "N_DIABETES",
    "N_WINE",
    "SPARSE_CANCER",
    "SPARSE_DIABETES",
    "S_CANCER",
    "S_DIABETES",
    "WINE_NAMES",
    "W_CANCER",
    "W_DIABETES",
    "W_WINE",
    "X_CANCER",
    "X_DIABETES",
    "X_RAW",
    "X_WINE",
    "Y_CANCER",
    "Y_COUNTS",
    "Y_DIABETES",
    "Y_NOISE",
    "Y_RAW",
    "Y_TWO",
    "Y_UNIT",
    "Y_WINE",
    "balanced_total",
]

CASES: list[Case] = [
    *RIDGE,
    *SPARSE_MODELS,
    *LOGISTIC,
    *SVM,
    *GLM,
    *SGD,
    *MLP,
    *CONTAINERS,
]
