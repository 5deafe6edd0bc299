"""Choice of the true family for 32 networks with a known penalty, trained by SGD.

The last 20 epochs are recorded and compared in windows of one epoch; the same choice at the
endpoint stands beside it, and `GridSearchCV` on the path for the first seed of every truth.

Run: ``python benchmarks/bench_selection_paths.py [seeds]``
"""

from __future__ import annotations

import sys
import time
from collections import Counter

import torch
from nets import FAMILIES, TRUTHS
from paths import RecordedNet, train_sgd
from sklearn.model_selection import GridSearchCV, KFold

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator


def picks(case: RecordedNet, with_search: bool) -> dict[str, str]:
    """Name of the family that each rule picks for one network."""
    names = list(FAMILIES)
    X, y = case.X.numpy(), case.y.numpy()
    options = {"loss": "mse", "params": "all"}
    along = {**options, "mode": "trajectory", "trajectory": case.path, "window": "epoch"}
    found = {}
    for rule, params in {"epochs": along, "endpoint": options}.items():
        choice = ImplicitRegularizationCV(case.net, families=FAMILIES, **params).fit(X, y)
        found[rule] = choice.best_name_
    if with_search:
        search = GridSearchCV(
            ImplicitRegularizationEstimator(case.net, **along),
            {"family": list(FAMILIES.values())},
            cv=KFold(20, shuffle=True, random_state=0),
        ).fit(X, y)
        found["epochs, GridSearchCV"] = names[search.best_index_]
    return found


def main(n_seeds: int = 8) -> None:
    """Print how often each rule picked the truth."""
    torch.set_num_threads(1)
    right: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    start = time.perf_counter()
    for truth in TRUTHS:
        for seed in range(n_seeds):
            found = picks(train_sgd(truth, seed), with_search=seed == 0)
            tried.update(found.keys())
            right.update(rule for rule, name in found.items() if name == truth)
            wrong = {rule: name for rule, name in found.items() if name != truth}
            print(truth, seed, wrong or "", flush=True)
    print(f"\nTrue family picked ({time.perf_counter() - start:.0f} s):")
    for rule, count in tried.items():
        print(f"  {rule:22s} {right[rule]} of {count}")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
