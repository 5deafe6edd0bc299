"""Data of the known answers, standardized, and weights of their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.preprocessing import StandardScaler


def _standardized(loader: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray]:
    X, y = loader(return_X_y=True)
    return StandardScaler().fit_transform(X), y


X_DIABETES, Y_DIABETES = _standardized(load_diabetes)
X_CANCER, Y_CANCER = _standardized(load_breast_cancer)
X_WINE, Y_WINE = _standardized(load_wine)
N_DIABETES, N_CANCER, N_WINE = len(Y_DIABETES), len(Y_CANCER), len(Y_WINE)
Y_TWO = np.column_stack([Y_DIABETES, 10 * np.sqrt(Y_DIABETES) + X_DIABETES[:, 0]])
Y_UNIT = (Y_DIABETES - Y_DIABETES.mean()) / Y_DIABETES.std()
Y_COUNTS = np.round(Y_DIABETES / 20)
WINE_NAMES = np.array(["barolo", "grignolino", "barbera"])[Y_WINE]

_RNG = np.random.default_rng(0)
W_DIABETES = _RNG.uniform(0.2, 3.0, N_DIABETES)
W_CANCER = _RNG.uniform(0.2, 3.0, N_CANCER)
W_WINE = _RNG.uniform(0.2, 3.0, N_WINE)
Y_NOISE = _RNG.normal(size=N_DIABETES)
S_DIABETES, S_CANCER = float(W_DIABETES.sum()), float(W_CANCER.sum())
SPARSE_DIABETES = sparse.csr_matrix(np.where(np.abs(X_DIABETES) > 0.7, X_DIABETES, 0.0))
SPARSE_CANCER = sparse.csr_array(np.where(np.abs(X_CANCER) > 0.7, X_CANCER, 0.0))


def balanced_total(y: Any, sample_weight: Any = None) -> float:
    """Total weight of the rows under class weights balanced by counts of rows."""
    if sample_weight is None:
        return float(len(y))
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    return float(np.sum(sample_weight * (len(y) / (len(counts) * counts))[codes]))


X_RAW, Y_RAW = load_diabetes(return_X_y=True)
