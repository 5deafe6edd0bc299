"""
A network trained by SGD, made exact by its trajectory
======================================================

At the end of SGD the gradient is mostly the noise of the last batches, and the penalty that the
network was trained with is hard to read off it. Summed over epochs, the steps give it exactly.
"""

# %%
# A small network on digits, trained with an elastic net by plain SGD. The last ten epochs are
# recorded.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import L2, SmoothL1
from sklearn_implicitreg.trajectory import record

torch.manual_seed(0)
torch.set_num_threads(1)
TRUTH = {"l2": 1e-3, "smooth_l1": 2e-4}

X, y = load_digits(return_X_y=True)
X, y = torch.as_tensor(X[:800] / 16), torch.as_tensor(y[:800])
net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
optimizer = torch.optim.SGD(net.parameters(), lr=0.5)


def epoch(recorder=None):
    """One pass over the shuffled rows in batches of 40."""
    for rows in torch.randperm(len(X)).split(40):
        if recorder is not None:
            recorder.batch(rows)
        params = dict(net.named_parameters())
        terms = L2().terms(params, None) | SmoothL1().terms(params, None)
        loss = nn.functional.cross_entropy(net(X[rows]), y[rows])
        optimizer.zero_grad()
        (loss + sum(TRUTH[name] * value for name, value in terms.items())).backward()
        optimizer.step()
    if recorder is not None:
        recorder.epoch()


for _ in range(80):
    epoch()
optimizer.param_groups[0]["lr"] = 0.02
for _ in range(40):
    epoch()
with record(net, optimizer) as recorder:
    for _ in range(10):
        epoch(recorder)
print(recorder.trajectory)

# %%
# The endpoint, the epochs, and the same batches again.

options = {"family": "elastic_net", "loss": "cross_entropy", "params": "all"}
along = options | {"mode": "trajectory", "trajectory": recorder.trajectory, "window": "epoch"}
fits = {
    "endpoint": ImplicitRegularizationEstimator(net, **options).fit(X, y),
    "epochs": ImplicitRegularizationEstimator(net, **along).fit(X, y),
    "batches": ImplicitRegularizationEstimator(net, **along, reference="batch").fit(X, y),
}
for name, fit in fits.items():
    print(name)
    print(fit.summary())

# %%
# Estimate over truth with its interval.

truth = np.array(list(TRUTH.values()))
figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for place, fit in enumerate(fits.values()):
    ratio = fit.coef_[:2] / truth
    low, high = np.abs(fit.conf_int_[:2].T / truth - ratio)
    for k, term in enumerate(TRUTH):
        ax.errorbar(
            place + 0.16 * (k - 0.5),
            ratio[k],
            yerr=[[low[k]], [high[k]]],
            fmt="o",
            capsize=3,
            color=f"C{k}",
            label=term if place == 0 else None,
        )
ax.axhline(1, color="0.3", linewidth=1, zorder=0)
ax.set_xticks(range(3), [f"{name}\n$R^2$ = {fit.r2_:.3f}" for name, fit in fits.items()])
ax.set(ylabel="estimate / truth", xlim=(-0.5, 2.5))
ax.legend(frameon=False)

# %%
assert fits["epochs"].r2_ > max(0.98, fits["endpoint"].r2_)
assert np.allclose(fits["epochs"].coef_[:2], truth, rtol=0.03)
assert np.allclose(fits["batches"].coef_, truth, rtol=1e-8)
