"""Milliseconds of small fits: a ridge regression and a network of 601 weights.

Ridge on scikit-learn's diabetes data; a 10-50-1 tanh network (float64, 400 rows) that is trained
with a penalty. Median of many fits, each with a new estimator, in turn; one thread, since with
more the idle threads of torch and of BLAS disturb each other and the times have two humps.

Run: ``python benchmarks/bench_small_fits.py [--rounds 100]``
"""

from __future__ import annotations

import argparse
import warnings
from statistics import median, quantiles

import torch
from measuring import rounds
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator


def trained(penalty: float = 1e-2) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Network, X and y; weights and biases are penalized by their squares."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 50), nn.Tanh(), nn.Linear(50, 1)).double()
    X = torch.randn(400, 10).double()
    y = torch.sin(X @ torch.randn(10, 1).double() / 2) + 0.3 * torch.randn(400, 1).double()
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=500, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = nn.functional.mse_loss(net(X), y)
        value = value + penalty * sum(p.square().sum() for p in net.parameters())
        value.backward()
        return value

    optimizer.step(closure)
    optimizer.zero_grad()
    return net, X, y


def main() -> None:
    """Print milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    X, y = load_diabetes(return_X_y=True)
    ridge = Ridge(alpha=3.0).fit(X, y)
    net, A, b = trained()

    def small(family: str):
        return ImplicitRegularizationEstimator(net, family=family, loss="mse", params="all").fit(
            A, b
        )

    functions = {
        "Ridge on diabetes, l2": lambda: ImplicitRegularizationEstimator(ridge).fit(X, y),
        "601 weights, l2": lambda: small("l2"),
        "601 weights, three terms": lambda: small("l2+smooth_l1+power"),
    }
    for name, seconds in rounds(functions, args.rounds).items():
        low, _, high = quantiles(seconds, n=4)
        middle = 1000 * median(seconds)
        print(f"{name}: {middle:.2f} ms a fit (quartiles {1000 * low:.2f}, {1000 * high:.2f})")


if __name__ == "__main__":
    main()
