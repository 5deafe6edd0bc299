"""Networks whose descent was stopped early, recovered by the penalty of its filter."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import EarlyStopping
from sklearn_implicitreg.results.recovery import minimize
from sklearn_implicitreg.results.recovery.certificates import Certificate, near_start

LR = 0.02


def rows(seed=0):
    rng = torch.Generator().manual_seed(seed)
    X, w = torch.randn(80, 4, generator=rng).double(), torch.randn(4, generator=rng).double()
    y = torch.sin(X @ w / 2) + 0.5 * X[:, 0] + 0.3 * torch.randn(80, generator=rng)
    return X, y[:, None]


def moved(net, start):
    own, before = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (net, start))
    return float((own - before).norm() / before.norm())


def stopped(most, seed=1):
    """A fit of the net before the step that moves it by more than a share of its start."""
    X, y = rows()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    start, optimizer = copy.deepcopy(net), torch.optim.SGD(net.parameters(), lr=LR)
    n_steps = 0
    while moved(net, start) <= most:
        before = copy.deepcopy(net)
        optimizer.zero_grad()
        mse_loss(net(X), y).backward()
        optimizer.step()
        n_steps += 1
    family = EarlyStopping(lr=LR, start=start)
    est = ImplicitRegularizationEstimator(before, family=family, loss="mse", params="all")
    return est.fit(X, y), X, y, n_steps - 1


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """A budget that L alone, which has no minimum nearby, does not use for long."""
    monkeypatch.setattr(minimize, "BUDGET", 300)


@pytest.mark.parametrize(("most", "within"), [(0.05, 0.01), (0.25, 0.15)])
@pytest.mark.parametrize("seed", [1, 2])
def test_comes_back(most, within, seed):
    est, X, y, n_steps = stopped(most, seed)
    weights = copy.deepcopy(est.model.state_dict())
    assert est.coef_[0] == pytest.approx(n_steps, rel=0.05 if most < 0.1 else 0.5)
    found = est.recover(X, y, n_draws=1)
    away = found.runs.set_index("arm")["function"]
    assert away["recovered"] <= within * away["ablated"]
    assert "by the curvature halfway: the weights moved by" in " ".join(found.notes)
    for name, tensor in est.model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_far_from_the_start():
    est, X, y, _ = stopped(0.4)
    with pytest.raises(ValueError, match=r"near its start(.|\n)*moved by (39|40)[.\d]* %"):
        est.recover(X, y)
    found = est.recover(X, y, force=True, n_draws=1, arms=("recovered",))
    assert "Trained with force=True: the weights moved by" in " ".join(found.notes)


def test_negative_curvature():
    """A penalty that does not make L + R convex at the model."""
    est, X, y, _ = stopped(0.1)
    est.penalty_ = replace(est.penalty_, coefficients=-est.penalty_.coefficients)
    with pytest.raises(ValueError, match="negative curvature at the model"):
        est.recover(X, y)


def test_no_minimum_nearby():
    """Near the start, but with a curvature halfway that is not that of the whole way."""
    found = Certificate(1.0, 1.0, 0.02, 20.0, None, True, 3.0, 30.0, float("nan"), 1e-9)
    objective = SimpleNamespace(theta=np.full(3, 1.1), penalty=SimpleNamespace(center=np.ones(3)))
    with pytest.raises(ValueError, match=r"moved by 10 % of their start, and a Newton step from"):
        near_start(objective, found, False)
    [said] = near_start(objective, found, True)
    assert said.startswith("Trained with force=True")
    for fine in ({"contraction": 0.1}, {"gradient": 1e-9, "contraction": float("nan")}):
        [said] = near_start(objective, found._replace(**fine), False)
        assert said.startswith("R is that of early stopping")
