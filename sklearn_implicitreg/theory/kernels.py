"""The penalty that a spectral filter implies on the weights of a kernel model."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from sklearn_implicitreg.problem.parameters import checked, choice, number
from sklearn_implicitreg.theory.implicit import FILTER, ImplicitPenalty, filtered
from sklearn_implicitreg.theory.inputs import Spectrum, as_matrix
from sklearn_implicitreg.theory.spectral import SpectralFilter


@checked(filter=FILTER, coef=number(least=0), kind=choice("ridge", "ntk"))
def kernel_penalty(
    K: npt.ArrayLike,
    filter: SpectralFilter,
    *,
    coef: float = 0.0,
    kind: Literal["ridge", "ntk"] = "ridge",
    y: npt.ArrayLike | None = None,
    start: npt.ArrayLike | None = None,
) -> ImplicitPenalty:
    """The quadratic penalty of a filter on ``L = (1/n) |y - K a|^2 + coef a'Ka``.

    Kernel ridge regression steps along the gradient of L in the weights a, of curvature 2 D with
    ``D = K^2/n + coef K``; a wide network at its neural tangent kernel by ``2 (D a - y/n)`` with
    ``D = K/n + coef I``. A filter f acts on the eigenvalues of D. With ``Q = D (1 - f(D)) / f(D)``
    the penalty is ``(a - a_0)' Q (a - a_0)``, for the tangent kernel ``(a - a_0)' K Q (a - a_0)``.

    Parameters
    ----------
    K : array-like of shape (n, n)
        Kernel matrix of the training rows, symmetric and not negative.
    filter : SpectralFilter
        Such as ``gradient_descent(lr, n_steps)``.
    coef : float, default=0.0
        Coefficient of ``a'Ka`` in L; scikit-learn's ``KernelRidge(alpha)`` has ``alpha / n``.
    kind : {"ridge", "ntk"}, default="ridge"
        Which of the two steps is taken.
    y, start : array-like of shape (n,), optional
        Target, for conjugate gradients; where the weights begin, by default at zero.

    Returns
    -------
    penalty : ImplicitPenalty
        On the weights a. Its ``theta(y)`` are the weights that the procedure gives.

    Raises
    ------
    ValueError
        If K is no kernel matrix, an argument is out of range, or as :func:`implicit_penalty`.

    Warns
    -----
    IndefinitePenaltyWarning, StepSizeWarning
        As :func:`implicit_penalty`.

    See Also
    --------
    implicit_penalty : The same for a linear model.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import gradient_flow, kernel_penalty
    >>> K = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> kernel_penalty(K, gradient_flow(0.5), kind="ntk").matrix.round(4)
    array([[1.0316, 0.2609],
           [0.2609, 1.0316]])
    """
    K = as_matrix("K", K)
    n = len(K)
    scale = float(np.max(np.abs(K)))
    if K.shape != (n, n) or np.max(np.abs(K - K.T)) > 1e-10 * scale:
        raise ValueError(f"Expected a symmetric kernel matrix, got one of shape {K.shape}.")
    if not scale > 0:
        raise ValueError("Expected K with an entry that is not zero, got none.")
    values, vectors = eigh(K)
    values, vectors = values[::-1], vectors[:, ::-1]
    if values[-1] < -1e-10 * scale * n:
        raise ValueError(
            f"Expected a kernel matrix without negative eigenvalues, got {values[-1]:.4g}."
        )
    values = np.where(values > n * np.finfo(float).eps * values[0], values, 0.0)
    if kind == "ridge":
        rank = np.count_nonzero(values)
        values, vectors = values[:rank], vectors[:, :rank]
        s, towards, factor = values * (values / n + coef), values / n, np.ones(rank)
    else:  # the weights move in the null space of K, the outputs do not
        s, towards, factor = values / n + coef, np.full(n, 1 / n), values
    if kind == "ntk" and s[-1] == 0 and not (filter.needs_y or np.isfinite(filter.slope_at_zero)):
        raise ValueError(
            f"Expected a kernel without zero eigenvalues for {filter.name}, which solves for the "
            "weights; give coef > 0, or take another procedure."
        )
    spectrum = Spectrum(s, vectors, towards[:, None] * vectors.T, factor)
    return filtered(spectrum, filter, y, start, [])
