"""Theorem 1 as printed and sharp: how far above the true quantile, and how often violated.

Designs of 1 to 20 columns with independent and correlated errors; of each the errors of least
squares are drawn, from a normal distribution and as signs, which are sub-Gaussian too. Where few
groups of signs add up, the sums are narrower than any sub-Gaussian bound can know.

Run: ``python benchmarks/bench_bounds.py [draws]``
"""

from __future__ import annotations

import sys

import numpy as np
from measuring import figures
from scipy.linalg import block_diag

from sklearn_implicitreg.theory import coefficient_bounds, distance_bound, error_inflation

M = 240  # equations
AT_ONCE = 5000
ERRORS = {
    "independent": np.eye(M),
    "20 groups, .6": block_diag(*[0.6 + 0.4 * np.eye(M // 20)] * 20),
    "4 groups, .9": block_diag(*[0.9 + 0.1 * np.eye(M // 4)] * 4),
    "chain, .9": 0.9 ** np.abs(np.subtract.outer(range(M), range(M))),
    "two sizes": np.diag(np.where(np.arange(M) % 10, 0.1, 9.1)),
}


def designs(k: int, rng: np.random.Generator):
    """Columns alike, of different lengths and a mean, and close to dependent."""
    plain = rng.normal(size=(M, k))
    yield "alike", plain
    yield "lengths", plain * np.logspace(0, 1.5, k) + 0.5
    if k > 1:
        yield "dependent", plain + 10 * plain[:, :1]


def distances(design, sigma, n_draws: int, signs: bool, rng: np.random.Generator):
    """Errors of the coefficients, (draws, k)."""
    solver = np.linalg.pinv(design) @ np.linalg.cholesky(sigma + 1e-12 * np.eye(M))
    parts = []
    for start in range(0, n_draws, AT_ONCE):
        draws = rng.normal(size=(M, min(AT_ONCE, n_draws - start)))
        parts.append((solver @ (np.sign(draws) if signs else draws)).T)
    return np.concatenate(parts)


def main(n_draws: int = 40_000) -> None:
    """Print the ratios and violations of every case, and the worst of them."""
    rng = np.random.default_rng(0)
    worst = {"normal": 0.0, "signs": 0.0, "violated": 0.0, "each": 0.0, "one": 0.0}
    printed, least = [], np.inf
    print("errors         design     k  signs  rho    printed  sharp  violated  each  violated")
    for kind, sigma in ERRORS.items():
        for k in (1, 2, 5, 20):
            for name, design in designs(k, rng):
                for signs in (False, True):
                    away = distances(design, sigma, n_draws, signs, rng)
                    size = np.linalg.norm(away, axis=1)
                    true = np.quantile(size, 0.95)
                    given = {"noise": 1.0, "error_covariance": sigma}
                    bound = distance_bound(design, **given)
                    each = coefficient_bounds(design, **given)
                    ratio, wrong = bound / true, (size > bound).mean()
                    own = (each / np.quantile(np.abs(away), 0.95, axis=0)).max()
                    one = (np.abs(away) > each).mean(axis=0).max()
                    least = least if signs else min(least, ratio)
                    printed.append(distance_bound(design, **given, form="printed") / true)
                    found = {"signs" if signs else "normal": ratio, "violated": wrong}
                    for key, value in (found | {"each": own, "one": one}).items():
                        worst[key] = max(worst[key], value)
                    rho = error_inflation(design, error_covariance=sigma)
                    print(
                        f"{kind:14s} {name:9s} {k:2d}  {signs!s:5s} {rho:5.2f}  {printed[-1]:7.1f}"
                        f"  {ratio:.2f}   {wrong:.3%}    {own:.2f}  {one:.3%}"
                    )
    figures(
        {
            "printed bound / true 95 % quantile, least": min(printed),
            "printed bound / true 95 % quantile, most": max(printed),
            "sharp bound / true 95 % quantile of normal errors, least": least,
            "sharp bound / true 95 % quantile of normal errors, most": worst["normal"],
            "sharp bound / true 95 % quantile of signs, most": worst["signs"],
            "bound of each coefficient / true 95 % quantile, most": worst["each"],
            "share of draws beyond the bound, most": worst["violated"],
            "share of draws beyond that of a coefficient, most": worst["one"],
        }
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
