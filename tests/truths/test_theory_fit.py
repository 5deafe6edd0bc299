"""The estimator finds what theory says: the implied penalty with the coefficient 1."""

from __future__ import annotations

import numpy as np
import pytest
from theory_cases import TRUTHS, data, dropout, fitted, kernel_case, noise

from sklearn_implicitreg import theory
from sklearn_implicitreg.exceptions import IndefinitePenaltyWarning

BOUND = 1e-10
quiet = pytest.mark.filterwarnings(
    f"ignore::{IndefinitePenaltyWarning.__module__}.{IndefinitePenaltyWarning.__name__}"
)


@quiet
@pytest.mark.parametrize("from_zero", [True, False], ids=["zero", "start"])
@pytest.mark.parametrize("name", TRUTHS)
def test_the_fit_finds_the_implied_penalty(name: str, from_zero: bool) -> None:
    X, y, start = data(40, 6)
    start = np.zeros_like(start) if from_zero else start
    filter, procedure = TRUTHS[name]
    penalty = theory.implicit_penalty(X, filter, y=y, start=start)
    est = fitted(X, y, procedure(X, y, start), {"implied": (penalty.matrix, start)})
    assert est.coef_[0] == pytest.approx(1, abs=BOUND)
    assert est.r2_ == pytest.approx(1, abs=BOUND)


def test_dropout_and_noise() -> None:
    X, y, _ = data(40, 6)
    matrix, zero = np.diag(theory.input_dropout(X, 0.3)), np.zeros(6)
    found = fitted(X, y, dropout(X, y, 0.3), {"dropout": (matrix, zero)})
    assert found.coef_[0] == pytest.approx(1, abs=BOUND)
    assert found.r2_ == pytest.approx(1, abs=BOUND)
    found = fitted(X, y, noise(X, y, 0.5), {"l2": (np.eye(6), zero)})
    assert found.coef_[0] == pytest.approx(theory.input_noise(0.5), rel=BOUND)
    # On columns of mean square 1 dropout is ridge, with the odds of being dropped.
    X = X / np.sqrt(np.mean(X**2, axis=0))
    found = fitted(X, y, dropout(X, y, 0.3), {"l2": (np.eye(6), zero)})
    assert found.coef_[0] == pytest.approx(0.3 / 0.7, rel=BOUND)


@quiet
@pytest.mark.parametrize("kind", ["ridge", "ntk"])
def test_kernels(kind: str) -> None:
    """The norm ``a'Ka`` with its own coefficient, beside the implied penalty with 1."""
    K, y, start, coef, a, filter = kernel_case(kind, 0.7)
    penalty = theory.kernel_penalty(K, filter, coef=coef, kind=kind, y=y, start=start)  # type: ignore[arg-type]
    terms = {"norm": (K, np.zeros(len(y))), "implied": (penalty.matrix, start)}
    found = fitted(K, y, a, terms).coef_
    np.testing.assert_allclose(found, [coef, 1], rtol=BOUND)
