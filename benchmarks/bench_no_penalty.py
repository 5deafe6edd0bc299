"""Networks trained without any penalty: how often the verdict is ``no signal``.

Shuffled epochs with the column ``minibatch``, four optimizers, one term and nearly collinear ones:
95 % are ``no signal`` where the joint test has its level. Beside them batches drawn with
replacement, one window per step, for which the truth is exactly 0.

Run: ``python benchmarks/bench_no_penalty.py [runs] [optimizer ...] [family ...]``
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter

import numpy as np
import torch
from measuring import figures
from paths import RecordedNet, train_sgd
from scipy.stats import binom

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.exceptions import PathNoiseWarning
from sklearn_implicitreg.trajectory import minibatch_factor

OPTIMIZERS = {
    "SGD": {"lr": 0.01},
    "momentum": {"lr": 0.001, "momentum": 0.9},
    "Adam": {"lr": 1e-3, "kind": torch.optim.Adam},
    "AdamW": {"lr": 1e-3, "kind": torch.optim.AdamW},
}
FAMILIES = ("l2", "l2+smooth_l1", "l2+power")
N_STEPS = 10  # in an epoch
SHUFFLED = {"n_before": 40, "n_epochs": 15, "n_hidden": 20}


def fitted(case: RecordedNet, family: str, window: str | None) -> ImplicitRegularizationEstimator:
    """Fit of a family with the gradient reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PathNoiseWarning)
        return ImplicitRegularizationEstimator(
            case.net,
            family=family,
            mode="trajectory",
            trajectory=case.path,
            window=window,
            loss="mse",
            params="all",
        ).fit(case.X, case.y)


def expected(optimizer: str) -> float:
    """Coefficient of ``minibatch``: lr / 4 times what momentum makes of it."""
    settings = OPTIMIZERS[optimizer]
    if "kind" in settings:  # Adam: a mean of gradients
        return settings["lr"] / 4 * minibatch_factor(0.9, N_STEPS) * 0.1
    return settings["lr"] / 4 * minibatch_factor(settings.get("momentum", 0.0), N_STEPS)


def report(name: str, verdicts: list[str]) -> None:
    """Print a count with the band that 95 % of such counts are in."""
    n, silent = len(verdicts), verdicts.count("no signal")
    low, high = binom.interval(0.95, n, 0.95)
    print(
        f"{name}: no signal in {silent} of {n} ({silent / n:.1%}; 95 % of such counts lie in "
        f"{low:.0f} .. {high:.0f}); {dict(Counter(verdicts))}",
        flush=True,
    )


def main(n_runs: int = 400, *chosen: str) -> None:
    """Print the verdicts for every optimizer and family."""
    torch.set_num_threads(1)
    unknown = set(chosen) - {*OPTIMIZERS, *FAMILIES}
    if unknown:
        raise SystemExit(f"Expected {[*OPTIMIZERS]} and {list(FAMILIES)}, got {sorted(unknown)}.")
    optimizers = [name for name in OPTIMIZERS if name in chosen] or [*OPTIMIZERS]
    families = [name for name in FAMILIES if name in chosen] or list(FAMILIES[:2])
    silent = n_fits = 0
    for optimizer in optimizers:
        start = time.perf_counter()
        found: dict[str, list[str]] = {family: [] for family in families}
        ratios = []
        for seed in range(n_runs):
            case = train_sgd(None, seed, **OPTIMIZERS[optimizer], **SHUFFLED)
            for family in families:
                est = fitted(case, family, "epoch")
                found[family].append(est.verdict_)
            ratios.append(est.coef_[-1] / expected(optimizer))
        for family, verdicts in found.items():
            report(f"{optimizer}, {family}", verdicts)
            silent, n_fits = silent + verdicts.count("no signal"), n_fits + len(verdicts)
        se = np.std(ratios, ddof=1) / np.sqrt(n_runs)
        seconds = time.perf_counter() - start
        print(f"   minibatch over theory {np.mean(ratios):.3f} +- {se:.3f} ({seconds:.0f} s)")
    if not chosen:
        each = [train_sgd(None, s, n_before=60, replacement=True) for s in range(n_runs // 4)]
        report("SGD by step, l2", [fitted(case, "l2", None).verdict_ for case in each])
    figures({"share of nets without a signal": silent / n_fits})


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]), *sys.argv[2:])
