"""Networks trained again with the estimated penalty: what comes back, and the estimates of it.

Parts: ``small_nets``, ``digits``, ``saddles``, ``eigenvalues``, ``newton_steps``,
``early_stopping``, ``dropout``; each ends in four minutes on one core.

Run: ``python benchmarks/bench_retraining.py [parts]``
"""

from __future__ import annotations

import copy
import functools
import sys
import time

import numpy as np
import torch
from bench_recovery import digits_net
from nets import FAMILIES, make_data, train
from sklearn.datasets import load_digits
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties import L2, Dropout, EarlyStopping, SmoothL1
from sklearn_implicitreg.results.recovery import minimize
from sklearn_implicitreg.results.recovery.certificates import (
    certificate,
    newton_distance,
    smallest_eigenvalue,
)
from sklearn_implicitreg.results.recovery.objective import Objective

RECOVERED = ("recovered",)
net_of = functools.cache(functools.partial(train, n_hidden=30))


def small_nets(n_seeds: int = 3) -> None:
    """Share of starts from which 10-30-1 nets come back."""
    for truth in ("l2", "smooth_l1", "elastic_net"):
        for noise in (0.1, 0.3):
            runs, start = [], time.perf_counter()
            for seed in range(n_seeds):
                net = net_of(truth, seed)
                est = ImplicitRegularizationEstimator(
                    net.net, family=FAMILIES[truth], loss="mse", params="all"
                ).fit(net.X, net.y)
                runs.append(est.recover(net.X, net.y, noise=noise, arms=RECOVERED).runs)
            found = np.concatenate(
                [own[["back", "matched", "function"]].to_numpy() for own in runs]
            )
            back = found[:, 0].astype(bool)
            print(
                f"  {truth:12s} +{noise:.0%}: back {back.sum()} of {len(back)}, after matching "
                f"{(found[:, 1] < 1e-5).sum()}, largest distance {found[:, 1].max():.1e}, function "
                f"{found[:, 2].max():.1e}, {time.perf_counter() - start:.0f} s"
            )


def digits() -> None:
    """Nets 64-32-10 with 2,410 weights: functions, curvature and time."""
    l2, sparse = (1e-2, L2()), (1e-3, SmoothL1(delta=1e-3))
    for name, terms in {"l2": [l2], "elastic_net": [l2, sparse]}.items():
        net, X, y = digits_net(terms, weights_only=False)
        est = ImplicitRegularizationEstimator(
            net, family=name, loss="cross_entropy", params="all"
        ).fit(X, y)
        start = time.perf_counter()
        found = est.recover(X, y, n_draws=1, arms=RECOVERED)
        row = found.runs.iloc[0]
        print(
            f"  digits {name:12s}: distance {row['distance']:.1e}, function {row['function']:.1e}, "
            f"{row['evaluations']} evaluations, {row['stopped']}, "
            f"{time.perf_counter() - start:.1f} s, smallest eigenvalue "
            f"{found.smallest_eigenvalue:.6e}, gradient {found.gradient:.1e}\n    {found.notes[1]}",
            flush=True,
        )
        problem = adapt(net, Data(X, y), Options(loss="cross_entropy", params="all"))
        objective = Objective(problem, est.penalty_)
        theta = objective.theta
        dense = np.linalg.eigvalsh([objective.product(theta, e) for e in np.eye(len(theta))])
        here = certificate(objective, theta, objective.scale(), 0)
        print(
            f"    smallest eigenvalue by all {len(theta)} products {dense[0]:.6e}, largest "
            f"{dense[-1]:.3g}: Lanczos off by {abs(here.lowest / dense[0] - 1):.1e}, accuracy "
            f"{here.accuracy:.1e}, converged {here.converged}, sign {here.sign:+d}",
            flush=True,
        )


def _nearly_trained(seed: int, at_most: float = 1e-4):
    """A net 64-32-10 by L-BFGS, as far as its gradient is small against its summands."""
    terms = [(1e-3, L2()), (1e-4, SmoothL1(delta=1e-3))]
    X, y = load_digits(return_X_y=True)
    X, y = torch.as_tensor(X / 16), torch.as_tensor(y)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    options = {"tolerance_grad": 0, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=20, history_size=50, **options)

    def closure():
        optimizer.zero_grad()
        params = dict(net.named_parameters())
        value = nn.functional.cross_entropy(net(X), y)
        value = value + sum(c * sum(r.terms(params, None).values()) for c, r in terms)
        value.backward()
        return value

    for _ in range(100):
        optimizer.step(closure)
        est = ImplicitRegularizationEstimator(
            net, family="elastic_net", loss="cross_entropy", params="all"
        ).fit(X, y)
        problem = adapt(net, Data(X, y), Options(loss="cross_entropy", params="all"))
        objective = Objective(problem, est.penalty_)
        if np.linalg.norm(objective.gradient(objective.theta)[1]) <= at_most * objective.scale():
            break
    return est, objective, X, y


def saddles(seeds: tuple[int, ...] = (2,)) -> None:
    """Nets at flat saddles: the function from six starts each, and what the report calls them."""
    for seed in seeds:
        est, objective, X, y = _nearly_trained(seed)
        lowest = smallest_eigenvalue(objective, objective.theta, 0)[0]
        if lowest > 0:
            print(f"  seed {seed}: smallest eigenvalue {lowest:.2e}, no saddle")
            continue
        begun = time.perf_counter()
        found = est.recover(X, y, n_draws=6, arms=RECOVERED)
        runs = found.runs
        print(
            f"  saddle, seed {seed}: smallest eigenvalue {lowest:.2e}, gradient over its summands "
            f"{found.gradient / objective.scale():.1e}, distance {runs['distance'].max():.1e}, "
            f"function {runs['function'].max():.1e}, {runs['stopped'].tolist()}, "
            f"{(time.perf_counter() - begun) / 6:.1f} s a run\n    "
            + next(note for note in found.notes if "eigenvalue" in note),
            flush=True,
        )


def eigenvalues(n_seeds: int = 6) -> float:
    """Largest relative error of the smallest eigenvalue by Lanczos."""
    worst = 0.0
    for seed in range(n_seeds):
        net = net_of("elastic_net", seed)
        rows = Data(net.X, net.y)
        objective = Objective(adapt(net.net, rows, Options(loss="mse", params="all")), None)
        theta = objective.theta
        dense = np.linalg.eigvalsh([objective.product(theta, e) for e in np.eye(len(theta))])[0]
        found = smallest_eigenvalue(objective, theta, seed)
        worst = max(worst, abs(found[0] / dense - 1))
    print(f"  smallest eigenvalue: largest error {worst:.1e}")
    return worst


def newton_steps(n_seeds: int = 4) -> None:
    """Estimated over true distance of weights that were moved off a minimum."""
    ratios = []
    for truth in ("l2", "smooth_l1", "elastic_net"):
        for seed in range(n_seeds):
            net = net_of(truth, seed)
            est = ImplicitRegularizationEstimator(
                net.net, family=FAMILIES[truth], loss="mse", params="all"
            ).fit(net.X, net.y)
            problem = adapt(net.net, Data(net.X, net.y), Options(loss="mse", params="all"))
            objective = Objective(problem, est.penalty_)
            # The weights that the distance is from: the net's own are off by gradient / curvature.
            minimum = minimize.minimized(objective, objective.theta, objective.scale()).theta
            noise = np.random.default_rng(seed).standard_normal(len(objective.theta))
            noise /= np.linalg.norm(noise)
            size = np.linalg.norm(minimum)
            for away in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3):
                theta = minimum + away * size * noise
                step, contraction = newton_distance(objective, theta, objective.gradient(theta)[1])
                ratio = step * np.linalg.norm(theta) / (away * size)
                if contraction < 0.5 and smallest_eigenvalue(objective, theta, seed)[0] <= 0:
                    contraction = float("nan")
                ratios.append((contraction, ratio))
                shown = f"contraction {contraction:.2f}, ratio {ratio:.3f}"
                print(f"  {truth:12s} seed {seed}, {away:g} away: {shown}", flush=True)
    near = [ratio for contraction, ratio in ratios if contraction < 0.5]
    print(f"  contraction below .5: {len(near)} of {len(ratios)}, {min(near):.3f}..{max(near):.3f}")


def _moved(net, start):
    own, before = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (net, start))
    return float((own - before).norm() / before.norm())


def early_stopping(n_seeds: int = 6) -> None:
    """Function of 10-30-1 nets whose descent was stopped, over that of the ablated arm."""
    lr = 0.02
    for seed in range(n_seeds):
        X, y = make_data(seed)
        for most in (0.05, 0.15, 0.25, 0.4):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                net = nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 1)).double()
            start, n_steps = copy.deepcopy(net), -1
            optimizer = torch.optim.SGD(net.parameters(), lr=lr)
            while _moved(net, start) <= most:
                before, n_steps = copy.deepcopy(net), n_steps + 1
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X), y).backward()
                optimizer.step()
            est = ImplicitRegularizationEstimator(
                before, family=EarlyStopping(lr=lr, start=start), loss="mse", params="all"
            ).fit(X, y)
            shown = f"seed {seed}, moved {_moved(before, start):.1%}, {n_steps} steps"
            shown += f", fitted {est.coef_[0]:.1f}, R2 {est.r2_:.3f}"
            try:
                runs = est.recover(X, y, n_draws=1).runs.set_index("arm")
            except ValueError as error:
                print(f"  early stopping, {shown}: {str(error)[:40]}...")
                continue
            away = runs["function"]
            ratio = away["recovered"] / away["ablated"]
            print(f"  early stopping, {shown}: function over the ablated one {ratio:.4f}")


def _with_masks(seed: int, masks: int):
    """A 10-30-1 net trained with dropout of .3, by Adam with decreasing steps.

    L + R has a long valley: a net of fewer steps is not yet where its function stays.
    """
    X, y = make_data(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Dropout(0.3), nn.Linear(30, 1))
        net.double().train()
        torch.manual_seed(1000 + masks)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        steps = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30_000)
        for _ in range(30_000):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(X), y).backward()
            optimizer.step()
            steps.step()
    return net.eval(), X, y


def dropout(n_seeds: int = 2, budget: int = 350) -> None:
    """Function and penalty of nets with dropout, trained again on fixed masks."""
    minimize.BUDGET, usual = budget, minimize.BUDGET
    for seed in range(n_seeds):
        begun = time.perf_counter()
        (net, X, y), (other, _, _) = _with_masks(seed, 0), _with_masks(seed, 1)
        est = ImplicitRegularizationEstimator(
            net, family=Dropout(q=0.3, n_draws=24), loss="mse", params="all"
        ).fit(X, y)
        with torch.no_grad():
            away = (other(X) - net(X)).square().mean().sqrt() / net(X).std(correction=0)
        found = est.recover(X, y, noise=0.02, n_draws=1)
        runs = found.runs.set_index("arm")
        own, ablated = runs.loc["recovered"], runs.loc["ablated"]
        print(
            f"  dropout, seed {seed}: coefficient {est.coef_[0]:.3f}, function "
            f"{own['function']:.3f} ({own['stopped']}), over the ablated one "
            f"{own['function'] / ablated['function']:.3f}, over another seed "
            f"{own['function'] / float(away):.2f}, R over the model's "
            f"{own['penalty'] / found.model.penalty:.3f}, {time.perf_counter() - begun:.0f} s",
            flush=True,
        )
    minimize.BUDGET = usual


PARTS = (small_nets, digits, saddles, eigenvalues, newton_steps, early_stopping, dropout)


def main(*names: str) -> None:
    """Print all tables, or some."""
    torch.set_num_threads(1)
    for part in PARTS:
        if not names or part.__name__ in names:
            part()


if __name__ == "__main__":
    main(*sys.argv[1:])
