"""
A penalty that changes while a network trains
=============================================

An endpoint knows one coefficient. The trajectory has one for every epoch: a weight decay that is
switched on in the middle of the training, and reduced later, is seen when it happens.
"""

# %%
# A small network on digits, trained by SGD in shuffled batches. The decay is 0 for
# twelve epochs, 0.02 for the next twelve and 0.008 for the rest. The estimator does not know.

import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import record

torch.manual_seed(0)
torch.set_num_threads(1)
DECAY = np.repeat([0.0, 0.02, 0.008], 12)

X, y = load_digits(return_X_y=True)
X, y = torch.as_tensor(X[:1000] / 16), torch.as_tensor(y[:1000])
net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
optimizer = torch.optim.SGD(net.parameters(), lr=0.2, weight_decay=0.0)


def epoch(recorder=None):
    """One pass over the shuffled rows in batches of 50."""
    for rows in torch.randperm(len(X)).split(50):
        if recorder is not None:
            recorder.batch(rows)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
        optimizer.step()
    if recorder is not None:
        recorder.epoch()


for _ in range(40):
    epoch()
with record(net, optimizer) as recorder:
    for decay in DECAY:
        optimizer.param_groups[0]["weight_decay"] = decay
        epoch(recorder)
print(recorder.trajectory)

# %%
# One coefficient for the whole trajectory is a mean over its epochs. ``coef_path_`` has one row
# for each epoch, and ``coef_path_conf_int_`` its band: against the gradient of the loss on all
# rows, and against the gradients that the optimizer was given.

fits = {
    reference: ImplicitRegularizationEstimator(
        net,
        family="weight_decay",
        mode="trajectory",
        trajectory=recorder.trajectory,
        reference=reference,
        window="epoch",
        loss="cross_entropy",
        params="all",
    ).fit(X, y)
    for reference in ("gradient", "applied")
}
print(fits["gradient"].summary())

# %%
# The endpoints on the way, each as if training had ended there, know the whole training instead:
# a penalty that is switched on takes many steps to bring the weights into its balance.

endpoints = []
for window in recorder.trajectory.windows("epoch"):
    checkpoint = copy.deepcopy(net)
    checkpoint.load_state_dict(window.stop.weights)
    fit = ImplicitRegularizationEstimator(
        checkpoint, family="weight_decay", loss="cross_entropy", params="all"
    ).fit(X, y)
    endpoints.append(fit.coef_[0])

# %%
epochs = np.arange(1, len(DECAY) + 1)
found = fits["gradient"].coef_path_[:, 0]
low, high = fits["gradient"].coef_path_conf_int_[:, 0].T
figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
ax.stairs(DECAY, np.arange(len(DECAY) + 1) + 0.5, baseline=None, color="0.6", lw=4, label="truth")
ax.errorbar(
    epochs,
    found,
    [found - low, high - found],
    fmt="o",
    ms=4,
    capsize=2,
    label="windows (95 % band)",
)
ax.plot(epochs, endpoints, ".-", ms=4, lw=1, color="C1", label="endpoint")
ax.set(xlabel="epoch", ylabel="weight decay found")
ax.legend(frameon=False, loc="upper left")

# %%
exact = fits["applied"].coef_path_[:, 0]
assert np.allclose(exact, DECAY, rtol=1e-9, atol=1e-12)
assert np.all(np.abs(found - DECAY) < 1e-3)
assert np.mean((low <= DECAY) & (DECAY <= high)) >= 0.8
jumps = np.flatnonzero(np.abs(np.diff(found)) > 4e-3) + 1
assert jumps.tolist() == [12, 24]
