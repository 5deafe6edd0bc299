"""Choice of the true family for seven linear models on diabetes, 20 shuffles of 20 folds.

Run: ``python benchmarks/bench_selection_linear.py [shuffles]``
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.preprocessing import StandardScaler

from sklearn_implicitreg import ImplicitRegularizationEstimator

MODELS = {
    "Ridge 2": (Ridge(alpha=2), "l2"),
    "Ridge 50": (Ridge(alpha=50), "l2"),
    "Ridge 500": (Ridge(alpha=500), "l2"),
    "Lasso .1": (Lasso(alpha=0.1, tol=1e-12, max_iter=100_000), "l1"),
    "Lasso 1": (Lasso(alpha=1, tol=1e-12, max_iter=100_000), "l1"),
    "Lasso 5": (Lasso(alpha=5, tol=1e-12, max_iter=100_000), "l1"),
    "ElasticNet 1, .5": (ElasticNet(alpha=1, l1_ratio=0.5, tol=1e-12, max_iter=100_000), "l2+l1"),
}


def candidates():
    """Families by name: l1, l2, elastic net and a random direction."""
    direction = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def random(params):
        return (params["coef"].reshape(-1) * direction).sum()

    return {"l1": "l1", "l2": "l2", "l2+l1": "l2+l1", "random": {"random": random}}


def main(n_shuffles: int = 20) -> dict[str, int]:
    """Print and return how often the completed score picked the truth."""
    X, y = load_diabetes(return_X_y=True)
    X, y = StandardScaler().fit_transform(X), y - y.mean()
    families = candidates()
    right = {}
    for name, (model, truth) in MODELS.items():
        model.fit(X, y)
        count = 0
        for seed in range(n_shuffles):
            search = GridSearchCV(
                ImplicitRegularizationEstimator(model),
                {"family": list(families.values())},
                cv=KFold(20, shuffle=True, random_state=seed),
            ).fit(X, y)
            count += list(families)[search.best_index_] == truth
        right[name] = count
        print(f"{name:18s} {count} of {n_shuffles}", flush=True)
    return right


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
