"""Choice of the true family for 32 networks with a known penalty, trained to stationarity.

Run: ``python benchmarks/bench_selection_nets.py [seeds]``
"""

from __future__ import annotations

import sys
import time
from collections import Counter

import torch
from nets import FAMILIES, TRUTHS, train
from sklearn.model_selection import GridSearchCV, KFold

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator


def picks(trained) -> dict[str, str]:
    """Name of the family that each rule picks for one network."""
    names = list(FAMILIES)
    X, y = trained.X.numpy(), trained.y.numpy()
    options = {"loss": "mse", "params": "all"}
    found = {}
    for folds in (5, 20):
        search = GridSearchCV(
            ImplicitRegularizationEstimator(trained.net, **options),
            {"family": list(FAMILIES.values())},
            cv=KFold(folds, shuffle=True, random_state=0),
        ).fit(X, y)
        found[f"GridSearchCV, {folds} folds"] = names[search.best_index_]
    criterion = ImplicitRegularizationCV(trained.net, families=FAMILIES, **options).fit(X, y)
    found["ImplicitRegularizationCV"] = criterion.best_name_
    return found


def main(n_seeds: int = 8) -> dict[str, int]:
    """Print and return how often each rule picked the truth."""
    torch.set_num_threads(1)  # the networks are too small to share among cores
    right: Counter[str] = Counter()
    start = time.perf_counter()
    for truth in TRUTHS:
        for seed in range(n_seeds):
            trained = train(truth, seed)
            found = picks(trained)
            right.update(rule for rule, name in found.items() if name == truth)
            wrong = {rule: name for rule, name in found.items() if name != truth}
            print(truth, seed, f"|grad| {trained.gradient_norm:.1e}", wrong or "", flush=True)
    total = n_seeds * len(TRUTHS)
    print(f"\nTrue family picked, of {total} networks ({time.perf_counter() - start:.0f} s):")
    for rule, count in right.items():
        print(f"  {rule:28s} {count}")
    return dict(right)


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
