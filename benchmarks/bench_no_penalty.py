"""Intervals for ``l2`` on networks trained without any penalty: how often they cover 0.

Batches drawn with replacement, one window per step (the truth is exactly 0), and shuffled
epochs with the column ``minibatch``.

Run: ``python benchmarks/bench_no_penalty.py [runs]``
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter

import numpy as np
import torch
from paths import train_sgd
from scipy.stats import binom

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.exceptions import PathNoiseWarning

DESIGNS = {
    "with replacement, by step": {"replacement": True, "window": None},
    "shuffled epochs, minibatch": {"replacement": False, "window": "epoch"},
}


def one(seed: int, replacement: bool, window: str | None):
    """Whether the interval covers 0, the verdict, and the minibatch coefficient over lr / 4."""
    case = train_sgd(None, seed, replacement=replacement, n_before=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PathNoiseWarning)
        est = ImplicitRegularizationEstimator(
            case.net,
            mode="trajectory",
            trajectory=case.path,
            window=window,
            loss="mse",
            params="all",
        ).fit(case.X, case.y)
    low, high = est.conf_int_[0]
    ratio = est.coef_[-1] / (0.01 / 4) if "minibatch" in est.term_names_ else np.nan
    inside = "minibatch" in est.term_names_ and (
        est.conf_int_[-1, 0] <= 0.01 / 4 <= est.conf_int_[-1, 1]
    )
    return low <= 0 <= high, est.verdict_, ratio, inside


def main(n_runs: int = 500) -> None:
    """Print coverage, verdicts and the minibatch coefficient of both designs."""
    torch.set_num_threads(1)
    for name, design in DESIGNS.items():
        found = [one(seed, **design) for seed in range(n_runs)]
        covers = sum(f[0] for f in found)
        band = binom.interval(0.95, n_runs, 0.95)
        print(
            f"{name}: covers 0 in {covers} of {n_runs} ({covers / n_runs:.1%}; 95 % of such "
            f"counts lie in {band[0]:.0f} .. {band[1]:.0f})"
        )
        print("   verdicts", dict(Counter(f[1] for f in found)))
        ratios = np.array([f[2] for f in found])
        if np.isfinite(ratios).all():
            se = ratios.std(ddof=1) / np.sqrt(n_runs)
            print(
                f"   minibatch over lr/4: {ratios.mean():.3f} +- {se:.3f}, its interval covers "
                f"lr/4 in {np.mean([f[3] for f in found]):.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
