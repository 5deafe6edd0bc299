"""Closed forms for linear models, and the units of coefficients."""

from sklearn_implicitreg.theory.early_stopping import (
    early_stopping_eigenvalues,
    early_stopping_slopes,
)
from sklearn_implicitreg.theory.units import convert

__all__ = [
    "convert",
    "early_stopping_eigenvalues",
    "early_stopping_slopes",
]
