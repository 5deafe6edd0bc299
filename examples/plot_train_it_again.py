"""
Train it again
==============

A fit finds the penalty that balances the loss at a trained network. Does that penalty make the
network? ``recover`` trains with it and without it, from the same starts and with the same budget.
"""

# %%
# A network at the minimum of its loss and ``0.02`` times the sum of its squared weights.

import torch
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.inspection import RecoveryDisplay

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
DECAY = 0.02
rng = torch.Generator().manual_seed(0)
X = torch.randn(100, 4, generator=rng)
y = torch.tanh(X.sum(dim=1, keepdim=True)) + 0.3 * torch.randn(100, 1, generator=rng)

torch.manual_seed(1)
net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
optimizer = torch.optim.LBFGS(
    net.parameters(), max_iter=2000, tolerance_grad=1e-10, tolerance_change=0.0,
    line_search_fn="strong_wolfe",
)  # fmt: skip


def closure():
    """Loss and penalty."""
    optimizer.zero_grad()
    penalty = sum(p.square().sum() for p in net.parameters())
    value = (net(X) - y).square().mean() + DECAY * penalty
    value.backward()
    return value


optimizer.step(closure)
est = ImplicitRegularizationEstimator(net, family="l2", loss="mse", params="all").fit(X, y)
print(est.summary())

# %%
# From starts ten percent away from the network, training with the penalty leads back to it. Without
# the penalty it leads elsewhere.

near = est.recover(X, y)
print(near)
display = near.plot()

# %%
# From fresh starts the hidden units come in another order and with other signs. The line leads from
# the distance before they are matched to the one after it. A fresh start may end in another
# minimum: a hollow marker is one with a lower L + R than that of the network.

fresh = est.recover(X, y, start="fresh", n_draws=4, arms=("recovered",))
print(fresh)
RecoveryDisplay.from_recovery(fresh, name="fresh starts")

# %%
runs = near.runs.set_index("arm")
assert abs(est.coef_[0] / DECAY - 1) < 1e-6
assert near.is_minimizer
assert runs.loc["recovered", "back"].all()
assert (runs.loc["recovered", "matched"] < 1e-6).all()
assert not runs.loc["ablated", "back"].any()
assert display.back_ is not None
