"""Penalties that procedures imply, theory against fit: the table of ``doc/theory.md``.

Per procedure, relative errors: its weights from the filter against the procedure run step by step;
the gradient of loss and penalty at them; and the coefficient that the estimator finds for the
penalty, against 1. n = 40, p = 6, from zero and from another start: the larger of both.

Run: ``python benchmarks/bench_theory.py``
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from measuring import figures
from scipy.linalg import norm, solve

from sklearn_implicitreg import theory
from sklearn_implicitreg.exceptions import IndefinitePenaltyWarning

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from theory_cases import (  # noqa: E402
    TRUTHS,
    Array,
    data,
    dropout,
    fitted,
    kernel_case,
    noise,
    relative,
)


def errors(name: str, X: Array, y: Array, start: Array) -> tuple[float, float, float]:
    """Of the weights, of the equation and of the coefficient."""
    filter, procedure = TRUTHS[name]
    theta = procedure(X, y, start)
    penalty = theory.implicit_penalty(X, filter, y=y, start=start)
    slope, first = (2 * X.T @ (X @ at - y) / len(y) for at in (theta, start))
    equation = norm(slope + penalty.gradient(theta)) / norm(first)
    coef = fitted(X, y, theta, {"implied": (penalty.matrix, start)}).coef_[0]
    return relative(penalty.theta(), theta), equation, abs(coef - 1)


def noise_errors(theta: Array, diagonal: Array, X: Array, y: Array) -> tuple[float, float, float]:
    """Of a diagonal penalty, at the minimizer of the expected loss."""
    S, b = X.T @ X / len(y), X.T @ y / len(y)
    expected = solve(S + np.diag(diagonal), b, assume_a="pos")
    coef = fitted(X, y, theta, {"implied": (np.diag(diagonal), np.zeros(len(b)))}).coef_[0]
    equation = norm(S @ theta - b + diagonal * theta) / norm(b)
    return relative(expected, theta), equation, abs(coef - 1)


def kernel_errors(kind: str) -> tuple[float, float, float]:
    """Of momentum on a kernel model, the coefficient of ``a'Ka`` known."""
    K, y, start, coef, a, filter = kernel_case(kind, 0.7)
    penalty = theory.kernel_penalty(K, filter, coef=coef, kind=kind, y=y, start=start)
    slope, first = (2 * K @ ((K @ at - y) / len(y) + coef * at) for at in (a, start))
    terms = {"norm": (K, np.zeros(len(y))), "implied": (penalty.matrix, start)}
    found = fitted(K, y, a, terms).coef_
    equation = norm(slope + penalty.gradient(a)) / norm(first)
    return relative(penalty.theta(), a), equation, float(np.max(np.abs(found / [coef, 1] - 1)))


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore", IndefinitePenaltyWarning)
    X, y, start = data(40, 6)
    rows = {
        name: np.maximum(errors(name, X, y, np.zeros(6)), errors(name, X, y, start))
        for name in TRUTHS
    }
    rows["input dropout"] = noise_errors(dropout(X, y, 0.3), theory.input_dropout(X, 0.3), X, y)
    rows["input noise"] = noise_errors(noise(X, y, 0.5), np.full(6, theory.input_noise(0.5)), X, y)
    rows["kernel ridge"] = kernel_errors("ridge")
    rows["tangent kernel"] = kernel_errors("ntk")
    print(f"{'procedure':28} {'weights':>9} {'equation':>9} {'coef':>9}")
    for name, row in rows.items():
        print(f"{name:28} " + " ".join(f"{value:9.1e}" for value in row))
    figures({"largest error": float(np.max(list(rows.values())))})


if __name__ == "__main__":
    main()
