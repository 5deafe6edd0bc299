"""
Total or marginal?
==================

A fit of one model answers: which penalty does it behave as if it had been trained with? All that
held the weights back is in that number: the optimizer, the data, the time that was spent. What did
one ingredient do? That takes a second model, trained in pair without it, and ``contrast``. Four
ingredients follow: weight decay, dropout, early stopping and warm-up.
"""

# %%
# One network, one start, one order of the batches; each pair differs in one thing.

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from sklearn_implicitreg import (
    ImplicitRegularizationEstimator,
    LinearModel,
    contrast,
    record,
)
from sklearn_implicitreg.penalties import Dropout

torch.set_default_dtype(torch.float64)
rng = torch.Generator().manual_seed(0)
X = torch.randn(200, 6, generator=rng)
y = torch.sin(X[:, :1]) + X[:, 1:2] * X[:, 2:3] + 0.3 * torch.randn(200, 1, generator=rng)


def network(p=0.0):
    """The network at its start."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Dropout(p), nn.Linear(12, 1))


# %%
# Weight decay: both networks share a decay of 0.01, the treated one has 0.002 on top. Trained to
# the end, the total is the sum; the contrast is what was added.


def trained(l2):
    """The network at the minimum of loss and penalty."""
    net = network()
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=3000, tolerance_grad=1e-10, tolerance_change=0.0,
        history_size=50, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        penalty = sum((p**2).sum() for p in net.parameters() if p.ndim == 2)
        loss = ((net(X) - y) ** 2).mean() + l2 * penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    return net


decay = contrast(trained(0.012), trained(0.01), X=X, y=y, loss="mse")
print(decay.summary())
assert np.allclose(decay.total_coef_, 0.012, rtol=1e-3)
assert np.allclose(decay.coef_, 0.002, rtol=1e-3)
assert decay.verdict_ == "supported"

# %%
# Dropout and warm-up belong to training by mini-batches, whose end is not stationary: record both
# trainings, on the same batches. The treated network has dropout; both share a weight decay. The
# family says what dropout at its rate adds, with a coefficient of 1.


def recorded(p=0.0, n_warm_up=0, reference="batch", window=None, family="l2"):
    """Fit of a recorded training by SGD with weight decay."""
    net, order = network(p), torch.Generator().manual_seed(2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=0.02)
    with record(net, optimizer) as recorder:
        for epoch in range(30):
            for rows in torch.randperm(200, generator=order).split(50):
                for group in optimizer.param_groups:
                    group["lr"] = 0.05 * min(1.0, (epoch + 1) / (n_warm_up + 1))
                recorder.batch(rows)
                optimizer.zero_grad()
                ((net(X[rows]) - y[rows]) ** 2).mean().backward()
                optimizer.step()
            recorder.epoch()
    return ImplicitRegularizationEstimator(
        net, mode="trajectory", trajectory=recorder, reference=reference, window=window,
        loss="mse", params="all", family=family,
    ).fit(X, y)  # fmt: skip


batches = {"reference": "batch", "window": "epoch"}
dropout = contrast(recorded(0.3, **batches), recorded(**batches), Dropout(0.3), base="l2")
print(dropout.summary())
assert dropout.conf_int_[0, 0] < 1 < dropout.conf_int_[0, 1]
assert abs(dropout.coef_[0] - 1) < 0.15

# %%
# Warm-up changes the way and adds no penalty: the total shows the decay, the contrast nothing.

warm_up = contrast(recorded(n_warm_up=10), recorded())
print(warm_up.summary())
assert np.allclose(warm_up.total_coef_, 0.01, rtol=1e-6)
assert abs(warm_up.coef_[0]) < 1e-9

# %%
# Early stopping: the control goes on to the end, where it shows no penalty. What stopping added is
# then all that the treated model shows. Gradient descent on uncorrelated features of equal variance
# stops at a ridge regression, of the strength that theory has for so many steps.


signals = np.linalg.qr(X.numpy())[0] * 200**0.5
targets = signals[:, 0] + y[:, 0].numpy()


def descend(n_steps):
    """Least squares by gradient descent from zero."""
    theta = np.zeros(6)
    for _ in range(n_steps):
        theta = theta - 0.1 * 2 * signals.T @ (signals @ theta - targets) / len(targets)
    return LinearModel(theta)


stopped = contrast(descend(5), descend(1000), X=signals, y=targets)
print(stopped.summary())
expected = 1 / ((1 - 2 * 0.1) ** -5 - 1)
assert np.allclose(stopped.coef_, stopped.total_coef_, rtol=1e-6)
assert np.allclose(stopped.coef_, expected, rtol=1e-6)
assert stopped.verdict_ == "supported"

# %%
# Total and added coefficient of each pair.

pairs = {"weight decay": decay, "warm-up": warm_up, "early stopping": stopped}
_, ax = plt.subplots()
at = np.arange(len(pairs))
ax.bar(at - 0.2, [own.total_coef_[0] for own in pairs.values()], 0.4, label="total")
ax.bar(at + 0.2, [own.coef_[0] for own in pairs.values()], 0.4, label="added")
ax.set(xticks=at, xticklabels=pairs, ylabel="coefficient of l2", yscale="symlog")
ax.legend()
plt.show()
