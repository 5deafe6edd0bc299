"""Coefficient of the column `minibatch` over its theory value ``lr / 4``.

20-epoch paths of tanh networks that are trained without any penalty, in shuffled epochs.

Run: ``python benchmarks/bench_minibatch.py [runs]``
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from paths import train_sgd

from sklearn_implicitreg import ImplicitRegularizationEstimator


def one(seed: int, lr: float) -> tuple[float, bool]:
    """Coefficient over ``lr / 4``, and whether its interval covers that."""
    case = train_sgd(None, seed, lr=lr, n_before=60)
    est = ImplicitRegularizationEstimator(
        case.net,
        mode="trajectory",
        trajectory=case.path,
        window="epoch",
        loss="mse",
        params="all",
    ).fit(case.X, case.y)
    place = est.term_names_.index("minibatch")
    low, high = est.conf_int_[place]
    return est.coef_[place] / (lr / 4), bool(low <= lr / 4 <= high)


def main(n_runs: int = 20) -> None:
    """Print the mean over runs, its standard error, and how often the interval covers."""
    torch.set_num_threads(1)
    for lr in (0.01, 0.005):
        found = [one(seed, lr) for seed in range(n_runs)]
        ratios = np.array([ratio for ratio, _ in found])
        se = ratios.std(ddof=1) / np.sqrt(n_runs)
        covers = np.mean([inside for _, inside in found])
        print(f"lr {lr}: {ratios.mean():.3f} +- {se:.3f} of lr/4, covers {covers:.0%}", flush=True)


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
