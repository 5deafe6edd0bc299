"""Fits that the tests of displays share."""

from __future__ import annotations

from functools import cache

import torch
from cases import X_DIABETES, Y_DIABETES
from sklearn.linear_model import Lasso, Ridge
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator, endpoints
from sklearn_implicitreg.trajectory import record

X, Y = X_DIABETES, Y_DIABETES
RIDGE = Ridge(50.0).fit(X, Y)
LASSO = Lasso(alpha=2.0, tol=1e-12, max_iter=100_000).fit(X, Y)
DECAYS = (0.0, 0.02, 0.02, 0.01)  # of four epochs


def fit(model=RIDGE, **params):
    return ImplicitRegularizationEstimator(model, **params).fit(X, Y)


@cache
def trained(families=None):
    """A net with the recording of its epochs, of which each has its own decay."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    inputs, target = torch.as_tensor(X), torch.as_tensor(Y)[:, None] / 100
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    options = {}
    if families is not None:
        options = {"families": list(families), "data": (inputs, target), "loss": "mse"}
        options |= {"params": "all", "reference": "applied"}
    with record(net, optimizer, **options) as recorder:
        for decay in DECAYS:
            optimizer.param_groups[0]["weight_decay"] = decay
            for rows in torch.randperm(len(X)).split(100):
                recorder.batch(rows)
                optimizer.zero_grad()
                (net(inputs[rows]) - target[rows]).square().mean().backward()
                optimizer.step()
            recorder.epoch()
    return net, recorder.trajectory


def on_path(**params):
    net, path = trained()
    given = {"loss": "mse", "params": "all", "family": "weight_decay", "window": "epoch"}
    given |= {"mode": "trajectory", "trajectory": path} | params
    return ImplicitRegularizationEstimator(net, **given).fit(X, Y[:, None] / 100)


@cache
def of_net(**params):
    net, _ = trained()
    given = {"loss": "mse", "params": "all"} | params
    return ImplicitRegularizationEstimator(net, **given).fit(X, Y[:, None] / 100)


@cache
def of_resamples(family="l2"):
    resamples = endpoints(Ridge(5.0), X, Y, 12, random_state=0)
    return ImplicitRegularizationEstimator(None, family=family).fit(resamples)
