"""Known penalties read off the last 20 epochs of SGD, whole epochs, sub-windows and batches.

Run: ``python benchmarks/bench_path_recovery.py [seeds]``
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from nets import FAMILIES, TRUTHS
from paths import train_sgd

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import Gradient

SETTINGS = [
    {"lr": 0.01},
    {"lr": 0.02},
    {"lr": 0.01, "batch": 48},
    {"lr": 0.02, "batch": 48},
    {"lr": 0.005, "momentum": 0.9},
    {"lr": 0.005, "momentum": 0.9, "batch": 48},
    {"lr": 0.05},
]
REFERENCES = {"epochs": "gradient", "two steps": Gradient(sub_window=2), "batch": "batch"}


def main(n_seeds: int = 3) -> None:
    """Print the largest error and smallest R2 of each setting over truths and seeds."""
    torch.set_num_threads(1)
    for setting in SETTINGS:
        errors = {name: [] for name in REFERENCES}
        shares = {name: [] for name in REFERENCES}
        endpoint = []
        for truth, terms in TRUTHS.items():
            for seed in range(n_seeds):
                case = train_sgd(truth, seed, **setting)
                options = {"family": FAMILIES[truth], "loss": "mse", "params": "all"}
                expected = np.array([coef for coef, _ in terms])
                fit = ImplicitRegularizationEstimator(case.net, **options).fit(case.X, case.y)
                endpoint.append(fit.r2_)
                for name, reference in REFERENCES.items():
                    est = ImplicitRegularizationEstimator(
                        case.net,
                        mode="trajectory",
                        trajectory=case.path,
                        reference=reference,
                        window="epoch",
                        **options,
                    ).fit(case.X, case.y)
                    errors[name].append(np.max(np.abs(est.coef_[: len(expected)] / expected - 1)))
                    shares[name].append(est.r2_)
        print(setting, f"endpoint R2 {min(endpoint):.2f} .. {max(endpoint):.2f}")
        for name in REFERENCES:
            print(
                f"   {name:10s} error <= {max(errors[name]):.2e}  R2 >= {min(shares[name]):.6f}",
                flush=True,
            )


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
