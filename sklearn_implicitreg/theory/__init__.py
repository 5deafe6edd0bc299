"""Closed forms for linear models, and the units of coefficients."""

from sklearn_implicitreg.theory.bounds import (
    coefficient_bounds,
    distance_bound,
    effective_parameters,
    error_inflation,
    gradient_bound,
    smallest_detectable,
    trajectory_bound,
)
from sklearn_implicitreg.theory.early_stopping import (
    early_stopping_eigenvalues,
    early_stopping_slopes,
)
from sklearn_implicitreg.theory.filters import (
    conjugate_gradient,
    exponential_average,
    gradient_descent,
    gradient_flow,
    l2_boosting,
    principal_components,
    ridge,
)
from sklearn_implicitreg.theory.implicit import ImplicitPenalty, implicit_penalty
from sklearn_implicitreg.theory.kernels import kernel_penalty
from sklearn_implicitreg.theory.noise import input_dropout, input_noise
from sklearn_implicitreg.theory.spectral import SpectralFilter
from sklearn_implicitreg.theory.strength import (
    degrees_of_freedom,
    equivalent_ridge,
    scalar_equivalent,
)
from sklearn_implicitreg.theory.units import convert

__all__ = [
    "ImplicitPenalty",
    "SpectralFilter",
    "coefficient_bounds",
    "conjugate_gradient",
    "convert",
    "degrees_of_freedom",
    "distance_bound",
    "early_stopping_eigenvalues",
    "early_stopping_slopes",
    "effective_parameters",
    "equivalent_ridge",
    "error_inflation",
    "exponential_average",
    "gradient_bound",
    "gradient_descent",
    "gradient_flow",
    "implicit_penalty",
    "input_dropout",
    "input_noise",
    "kernel_penalty",
    "l2_boosting",
    "principal_components",
    "ridge",
    "scalar_equivalent",
    "smallest_detectable",
    "trajectory_bound",
]
