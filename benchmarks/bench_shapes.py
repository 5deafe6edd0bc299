"""Unknown shape parameters: are they found, and do their intervals cover them?

The equations are simulated: the gradient of the loss is minus that of the penalty plus noise, of
one size for all weights or growing with them. "absent" has l2 alone beside noise: an interval for
the shape of a term that is not there would be wrong.

Run: ``python benchmarks/bench_shapes.py [runs]``
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import L2, Power, SmoothL1

SIZES = (20, 16, 10)


class Pulled(nn.Module):
    """A net whose loss has a given gradient in its weights."""

    def __init__(self, penalty, share: float, grows: bool, rng: torch.Generator):
        super().__init__()
        pairs = zip(SIZES, SIZES[1:], strict=False)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False).double() for a, b in pairs)
        for p in self.parameters():
            nn.init.normal_(p, std=0.15, generator=rng)
        pulls = [sum(penalty.gradient("", p.detach()).values()) for p in self.parameters()]
        noise = [torch.randn(p.shape, dtype=p.dtype, generator=rng) for p in self.parameters()]
        if grows:
            noise = [e * p.detach().abs() for e, p in zip(noise, self.parameters(), strict=True)]
        size = sum(t.square().sum() for t in pulls) / sum(e.square().sum() for e in noise)
        scale = (share / (1 - share) * size) ** 0.5
        self.pulls = [t + scale * e for t, e in zip(pulls, noise, strict=True)]

    def forward(self, x):
        """Minus the product of weights and pulls."""
        pairs = zip(self.parameters(), self.pulls, strict=True)
        return x[:, 0] * 0 - sum((p * t).sum() for p, t in pairs)


class Terms:
    """Some penalties with coefficients."""

    def __init__(self, *terms):
        self.terms = terms

    def gradient(self, name, tensor):
        """Gradient of their sum."""
        values = [coef * g for coef, p in self.terms for g in p.gradient(name, tensor).values()]
        return {"sum": sum(values)}


def fitted(family, truth: Terms, share: float, grows: bool, seed: int):
    """Fit of a family with an unknown shape."""
    net = Pulled(truth, share, grows, torch.Generator().manual_seed(seed))
    est = ImplicitRegularizationEstimator(net, family=family, loss=lambda o, _: o, params="all")
    return est.fit(np.zeros((1, 1)), np.zeros(1)).shapes_


CASES = {
    "q = 1.5": (Power(q="fit"), Terms((0.01, Power(q=1.5))), 1.5),
    "q = 3 beside l2": (L2() + Power(q="fit"), Terms((1e-3, L2()), (0.02, Power(q=3))), 3.0),
    "delta = .08": (SmoothL1(delta="fit"), Terms((0.01, SmoothL1(delta=0.08))), 0.08),
}


def main(n_runs: int = 300) -> None:
    """Print the shares of runs whose interval covers the shape, and of those that have one."""
    print(f"{'':20}{'share':>8}{'noise':>10}{'error':>10}{'covers':>9}{'has one':>9}")
    for label, (family, truth, value) in CASES.items():
        found = fitted(family, truth, 0.0, False, 0)
        print(f"{label:20}{0:8}{'none':>10}{abs(found['value'].iloc[0] / value - 1):10.1e}")
        for share in (0.01, 0.1):
            for grows in (False, True):
                rows = [fitted(family, truth, share, grows, seed) for seed in range(n_runs)]
                table = np.array([row.to_numpy()[0] for row in rows])
                there = np.isfinite(table[:, 1])
                low, high = table[there, 2], table[there, 3]
                covers = ((low <= value) & (value <= high)).mean() if there.any() else np.nan
                error = np.median(np.abs(table[:, 0] / value - 1))
                words = "grows" if grows else "iid"
                print(
                    f"{label:20}{share:8}{words:>10}{error:10.1e}{covers:9.3f}{there.mean():9.3f}",
                    flush=True,
                )
    for label, family in (("absent q", Power(q="fit")), ("absent delta", SmoothL1(delta="fit"))):
        for grows in (False, True):
            truth = Terms((1e-3, L2()))
            rows = [fitted(L2() + family, truth, 0.1, grows, seed) for seed in range(n_runs)]
            there = np.mean([np.isfinite(row["std_err"].iloc[0]) for row in rows])
            print(f"{label:20}{0.1:8}{'grows' if grows else 'iid':>10}{'':19}{there:9.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
