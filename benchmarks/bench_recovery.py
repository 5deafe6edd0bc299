"""Known penalties recovered: scikit-learn's own models, and networks on digits.

Run: ``python benchmarks/bench_recovery.py``
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from nets import FAMILIES, train
from sklearn.datasets import load_digits
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import L2, SmoothL1

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from cases import CASES  # noqa: E402


def sklearn_models() -> float:
    """Largest error over tolerance of the table of known answers."""
    worst = 0.0
    for case in CASES:
        est = ImplicitRegularizationEstimator(case.make(), family=case.family)
        est.fit(case.X, case.y, sample_weight=case.sample_weight)
        found, error = est.in_model_units(), 0.0
        for name, value in case.expected_own().items():
            error = max(error, float(np.max(np.abs(np.asarray(found[name]) / value - 1))))
        worst = max(worst, error / case.rtol)
        print(f"  {case.id:45s} error {error:.1e}  allowed {case.rtol:.0e}  {case.solver}")
    return worst


def digits_net(terms, weights_only: bool):
    """MLP 64-32-10 trained on digits with a penalty by L-BFGS, float64."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.as_tensor(X / 16), torch.as_tensor(y)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    options = {"tolerance_grad": 1e-9, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4000, history_size=50, **options)

    def closure():
        optimizer.zero_grad()
        params = {n: p for n, p in net.named_parameters() if p.ndim >= 2 or not weights_only}
        value = nn.functional.cross_entropy(net(X), y)
        for coef, penalty in terms:
            value = value + coef * sum(penalty.terms(params, None).values())
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)
        optimizer.state.clear()
    return net, X, y


def digits() -> float:
    """Largest relative error of the coefficients on digits."""
    l2, sparse = (1e-2, L2()), (1e-3, SmoothL1(delta=1e-3))
    worst = 0.0
    for name, terms in {"l2": [l2], "smooth_l1": [sparse], "elastic_net": [l2, sparse]}.items():
        for weights_only in (False, True):
            net, X, y = digits_net(terms, weights_only)
            params = "auto" if weights_only else "all"
            est = ImplicitRegularizationEstimator(
                net, family=name, loss="cross_entropy", params=params
            ).fit(X, y)
            truth = np.array([coef for coef, _ in terms])
            error = float(np.max(np.abs(est.coef_ / truth - 1)))
            worst = max(worst, error)
            print(
                f"  digits {name:12s} penalty on {'weights' if weights_only else 'all':8s}"
                f"error {error:.1e}  R2 {est.r2_:.7f}  {est.verdict_}"
            )
    return worst


def out_of_family(n_seeds: int = 8) -> dict[str, int]:
    """Verdicts of nets trained with elastic net and fitted with l2 alone."""
    verdicts: dict[str, int] = {}
    shares = []
    for seed in range(n_seeds):
        trained = train("elastic_net", seed)
        est = ImplicitRegularizationEstimator(
            trained.net, family=FAMILIES["l2"], loss="mse", params="all"
        ).fit(trained.X, trained.y)
        shares.append(est.r2_)
        verdicts[est.verdict_] = verdicts.get(est.verdict_, 0) + 1
    print(f"  elastic net fitted with l2: R2 {min(shares):.3f} .. {max(shares):.3f}, {verdicts}")
    return verdicts


def main() -> None:
    """Print all tables."""
    torch.set_num_threads(1)
    print("Own penalty of scikit-learn models, in their own units:")
    print(f"largest error over what is allowed: {sklearn_models():.2g}")
    print("Networks trained to stationarity:")
    print(f"largest relative error: {digits():.1e}")
    print("A penalty that is not in the family:")
    out_of_family()


if __name__ == "__main__":
    main()
