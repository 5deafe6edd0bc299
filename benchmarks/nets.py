"""Small networks with a known penalty, trained to stationarity: the cases of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sklearn_implicitreg.penalties import L2, Penalty, Power, SmoothL1


class Rooted(Penalty):
    """``R = sum (theta^2 + 0.01)^(1/4)``."""

    def terms(self, params, problem):
        """Value at these parameters."""
        return {"rooted": sum((t.square() + 0.01).pow(0.25).sum() for t in params.values())}


# Name of the truth -> coefficient of each term.
TRUTHS: dict[str, list[tuple[float, Penalty]]] = {
    "l2": [(1e-2, L2())],
    "smooth_l1": [(3e-3, SmoothL1(delta=1e-3))],
    "elastic_net": [(3e-3, L2()), (1e-3, SmoothL1(delta=1e-3))],
    "quartic": [(1e-2, Power(q=4))],
}
FAMILIES = {
    "l2": "l2",
    "smooth_l1": "smooth_l1",
    "elastic_net": "elastic_net",
    "quartic": "power",
    "union": L2() + SmoothL1() + Power() + Rooted(),
}


@dataclass(frozen=True)
class TrainedNet:
    """A network, its rows and the penalty that it was trained with."""

    truth: str
    seed: int
    net: nn.Module
    X: Tensor
    y: Tensor
    gradient_norm: float


def make_data(seed: int, n_rows: int = 400) -> tuple[Tensor, Tensor]:
    """``y = sin(x.w / 2) + 0.5 x_0 + 0.3 noise`` in ten dimensions, float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    X, w = normal(n_rows, 10), normal(10)
    y = torch.sin(X @ w / 2) + 0.5 * X[:, 0] + 0.3 * normal(n_rows)
    return X, y[:, None]


def objective(net: nn.Module, X: Tensor, y: Tensor, truth: str) -> Tensor:
    """Mean squared error plus the true penalty on all parameters."""
    params = dict(net.named_parameters())
    penalty = sum(c * sum(p.terms(params, None).values()) for c, p in TRUTHS[truth])
    return nn.functional.mse_loss(net(X), y) + penalty


def train(truth: str, seed: int, n_hidden: int = 50) -> TrainedNet:
    """Minimize the objective of a 10-50-1 tanh network by L-BFGS."""
    X, y = make_data(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(10, n_hidden), nn.Tanh(), nn.Linear(n_hidden, 1)).double()
    optimizer = torch.optim.LBFGS(
        net.parameters(),
        max_iter=5000,
        history_size=50,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        value = objective(net, X, y, truth)
        value.backward()
        return value

    for _ in range(3):  # a restart forgets curvature from far away
        optimizer.step(closure)
        optimizer.state.clear()
    closure()
    norm = float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())
    optimizer.zero_grad()
    return TrainedNet(truth, seed, net, X, y, norm)
