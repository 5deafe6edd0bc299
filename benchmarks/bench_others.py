"""One coefficient of a small network: this package against Adam and against marginal likelihood.

A 10-50-1 tanh network (601 weights, float64, 400 rows) trained to its end with ``0.01 sum w^2``.
Adam is that of the paper's code: the coefficient is the exponential of what it moves, from 1, in
steps of .05. It gets the gradient of the loss once, or makes it again at each step as the paper's
code does, and its clock stops where the coefficient is within 1e-3, or only where the loss has not
fallen for 100 steps, which is how the paper's code ends. Where it gets the gradient once, this
package gets it too, as columns and target. At 400 rows a fit is mostly what any fit costs; with the
same rows a hundred times over every step of Adam is the same one and both cost what gradients cost
(Adam's seconds are then those of some steps, times the number of steps). laplace-torch asks another
question, which prior precision makes the data most probable; it is in the units of the loss here.

Medians of rounds, one thread. laplace-torch is compared where it is installed, without the other
torch that it would bring::

    pip install --no-deps laplace-torch==0.3 asdfghjkl==0.1a4 backpack-for-pytorch \\
        curvlinops-for-pytorch linear-operator jaxtyping wadler-lindig einops einconv unfoldNd \\
        opt-einsum torchmetrics lightning-utilities

Run: ``python benchmarks/bench_others.py [--rounds 5]``
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from measuring import figures, spread, timed
from nets import TrainedNet, train
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from sklearn_implicitreg import ImplicitRegularizationEstimator

TRUTH, CLOSE, PATIENCE = 0.01, 1e-3, 100
COPIES, STEPS, BATCH = 100, 100, 8192  # of the rows, of Adam on them, rows at once
ADAM = {
    "Adam, one gradient": {"again": False},
    "Adam, a gradient each step": {"again": True},
    "Adam, a gradient each step, to its own end": {"again": True, "close": 0.0},
}


def ours(case: TrainedNet) -> float:
    """The coefficient by this package."""
    options = {"family": "l2", "loss": "mse", "params": "all"}
    est = ImplicitRegularizationEstimator(case.net, **options).fit(case.X, case.y)
    return float(est.coef_[0])


def solved(theta: Tensor, g: Tensor) -> float:
    """The coefficient by this package from a gradient."""
    est = ImplicitRegularizationEstimator("precomputed").fit(2 * theta[:, None].numpy(), -g.numpy())
    return float(est.coef_[0])


def weights(case: TrainedNet) -> Tensor:
    """All weights, in one vector."""
    return torch.cat([p.detach().flatten() for p in case.net.parameters()])


def gradient(case: TrainedNet) -> Tensor:
    """Gradient of the loss, in one vector; in batches as large as this package's."""
    total = torch.zeros(())
    for X, y in zip(case.X.split(BATCH), case.y.split(BATCH), strict=True):
        loss = mse_loss(case.net(X), y, reduction="sum")
        grads = torch.autograd.grad(loss, case.net.parameters())
        total = total + torch.cat([g.flatten() for g in grads])
    return total / len(case.X)


def adam(
    case: TrainedNet, again: bool, close: float = CLOSE, at_most: int = 10**6
) -> tuple[float, int]:
    """The coefficient by Adam on its logarithm, and the number of steps."""
    theta = weights(case)
    log = torch.zeros((), dtype=theta.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([log], lr=0.05)
    g, best, waited, step = gradient(case), math.inf, 0, 0
    while waited < PATIENCE and abs(math.exp(float(log.detach())) / TRUTH - 1) > close:
        if step == at_most:
            break
        g = gradient(case) if again else g
        optimizer.zero_grad()
        loss = (2 * log.exp() * theta + g).square().mean()
        loss.backward()
        optimizer.step()
        waited = 0 if float(loss.detach()) < best else waited + 1
        best, step = min(best, float(loss.detach())), step + 1
    return math.exp(float(log.detach())), step


def laplace(case: TrainedNet, structure: str) -> float:
    """Prior precision of largest evidence, in units of the coefficient."""
    from laplace import Laplace

    residual = case.y - case.net(case.X).detach()
    noise = float(residual.square().mean().sqrt())
    found = Laplace(
        case.net,
        "regression",
        subset_of_weights="all",
        hessian_structure=structure,
        sigma_noise=noise,
    )
    found.fit(DataLoader(TensorDataset(case.X, case.y), batch_size=len(case.X)))
    found.optimize_prior_precision(method="marglik")
    return float(found.prior_precision) * noise**2 / len(case.X)


def seconds_of(function: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of rounds, after one that is not measured."""
    function()
    return [timed(function) for _ in range(rounds)]


def with_more_rows(case: TrainedNet, rounds: int) -> dict[str, float | str]:
    """Ratio to Adam with a gradient each step, where gradients are what both cost."""
    _, n_steps = adam(case, again=True)
    more = replace(case, X=case.X.repeat(COPIES, 1), y=case.y.repeat(COPIES, 1))
    fit = seconds_of(lambda: ours(more), rounds)
    taken = seconds_of(lambda: adam(more, again=True, at_most=STEPS), rounds)
    print(f"{len(more.X)} rows: this package {spread(fit)}, {STEPS} steps of Adam {spread(taken)}")
    ratio = n_steps / STEPS * median(taken) / median(fit)
    return {f"Adam, a gradient each step of {len(more.X)} rows / this package, seconds": ratio}


def main() -> None:
    """Print answers, seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # laplace-torch makes tensors of it
    case = train("l2", 0)
    fit = seconds_of(lambda: ours(case), 20 * args.rounds)
    print(f"this package: {ours(case):.6f}, {spread(fit)}")
    found: dict[str, float | str] = {
        "this package, error of the coefficient": abs(ours(case) / TRUTH - 1)
    }
    theta, g = weights(case), gradient(case)
    given = seconds_of(lambda: solved(theta, g), 20 * args.rounds)
    print(f"this package, given the gradient: {solved(theta, g):.6f}, {spread(given)}")
    for name, how in ADAM.items():
        coef, n_steps = adam(case, **how)
        taken = [timed(lambda own=how: adam(case, **own)) for _ in range(args.rounds)]
        print(f"{name}: {coef:.6f} after {n_steps} steps, {spread(taken)}", flush=True)
        if abs(coef / TRUTH - 1) <= CLOSE:
            found[f"{name} / this package, seconds"] = median(taken) / median(fit)
        if not how["again"]:
            found[f"{name} / this package given it, seconds"] = median(taken) / median(given)
    found |= with_more_rows(case, args.rounds)
    for structure in ("kron", "diag", "full"):
        name = f"laplace-torch, {structure}"
        if importlib.util.find_spec("laplace") is None:
            found[f"{name} / this package, seconds"] = "laplace-torch is not installed"
            continue
        taken = seconds_of(lambda own=structure: laplace(case, own), args.rounds)
        coef = laplace(case, structure)
        print(f"{name}: {coef:.6f}, {spread(taken)}", flush=True)
        found[f"{name} / this package, seconds"] = median(taken) / median(fit)
        found[f"{name}, coefficient over that of training"] = coef / TRUTH
    figures(found)


if __name__ == "__main__":
    main()
