"""
The weight decay that an optimizer adds, found in its steps
===========================================================

Every optimizer turns gradients into steps in its own way. What it was given and what it applied
differ by the decay that it adds, coupled (Adam) or decoupled (AdamW): measured from the
displacement of the weights and the state of the optimizer, never read from its settings.
"""

# %%
# The same small network with five optimizers, all with a decay of 0.02.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler
from torch import nn, optim

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import record

torch.set_num_threads(1)
DECAY = 0.02
OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.01, weight_decay=DECAY),
    "momentum": lambda p: optim.SGD(p, lr=0.005, momentum=0.9, weight_decay=DECAY),
    "Adam": lambda p: optim.Adam(p, lr=1e-3, weight_decay=DECAY),
    "AdamW": lambda p: optim.AdamW(p, lr=1e-3, weight_decay=DECAY),
    "RMSprop": lambda p: optim.RMSprop(p, lr=1e-3, weight_decay=DECAY),
}
X, y = load_diabetes(return_X_y=True)
X = torch.as_tensor(StandardScaler().fit_transform(X))
y = torch.as_tensor((y - y.mean()) / y.std())[:, None]


def train(make):
    """Ten recorded epochs in shuffled batches of 34 rows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    optimizer = make(net.parameters())
    with record(net, optimizer) as recorder:
        for _ in range(10):
            for rows in torch.randperm(len(X)).split(34):
                recorder.batch(rows)
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X[rows]), y[rows]).backward()
                optimizer.step()
            recorder.epoch()
    return net, recorder.trajectory


# %%
# Against what the optimizer was given, the decay is exact. Against the gradient of the loss on all
# rows, which knows nothing of the optimizer, it is found to a few percent.

estimates = {}
for name, make in OPTIMIZERS.items():
    net, trajectory = train(make)
    for reference in ("applied", "gradient"):
        est = ImplicitRegularizationEstimator(
            net,
            family="weight_decay",
            mode="trajectory",
            trajectory=trajectory,
            reference=reference,
            window="epoch",
            loss="mse",
            params="all",
        ).fit(X, y)
        estimates[name, reference] = est
        print(f"{name:9s} {reference:9s} {est.coef_[0]:.8f}")
print(estimates["AdamW", "gradient"].summary())

# %%
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for shift, reference in ((-0.12, "applied"), (0.12, "gradient")):
    fits = [estimates[name, reference] for name in OPTIMIZERS]
    ax.errorbar(
        [place + shift for place in range(len(fits))],
        [fit.coef_[0] for fit in fits],
        yerr=[fit.coef_[0] - fit.conf_int_[0, 0] for fit in fits],
        fmt="o",
        capsize=3,
        label=f'reference="{reference}"',
    )
ax.axhline(DECAY, color="0.3", linewidth=1, zorder=0)
ax.set_xticks(range(len(OPTIMIZERS)), OPTIMIZERS)
ax.set_ylabel("weight decay found")
ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)

# %%
for name in OPTIMIZERS:
    assert abs(estimates[name, "applied"].coef_[0] / DECAY - 1) < 1e-9
    assert abs(estimates[name, "gradient"].coef_[0] / DECAY - 1) < 0.05
