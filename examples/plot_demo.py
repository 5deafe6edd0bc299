"""
Two trained models, and the penalties they were trained with
=============================================================

A ridge regression states its penalty, so it is a fair first test: the number that comes out has to
be the one that went in. A network trained with weight decay is the second test. Neither model tells
the estimator anything about its penalty: the coefficient is read off the gradient of the loss at
the trained weights.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import Ridge
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.inspection import GradientMatchDisplay

# %%
# Ridge regression on the diabetes data
# -------------------------------------
# ``Ridge(alpha)`` on n rows has the coefficient ``alpha / n`` under ``L2``;
# ``in_model_units`` turns it back into ``alpha``.

X, y = load_diabetes(return_X_y=True)
ridge = Ridge(alpha=3.0).fit(X, y)
ridge_fit = ImplicitRegularizationEstimator(ridge, family="l2").fit(X, y)
print(ridge_fit.summary())
print("In the model's own units:", ridge_fit.in_model_units())

# %%
# A network on the digits data
# ----------------------------
# The network is trained until the gradient of loss and penalty together vanishes. The penalty is
# on the weight matrices only, which is also what ``params="auto"`` looks at.

PENALTY = 1e-2

images, digits = load_digits(return_X_y=True)
images, digits = torch.tensor(images / 16), torch.tensor(digits)

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
optimizer = torch.optim.LBFGS(
    net.parameters(),
    max_iter=1000,
    tolerance_grad=1e-7,
    tolerance_change=0,
    history_size=30,
    line_search_fn="strong_wolfe",
)


def objective():
    """Cross-entropy and the penalty that is to be found."""
    optimizer.zero_grad()
    size = net[0].weight.square().sum() + net[2].weight.square().sum()
    loss = nn.functional.cross_entropy(net(images), digits) + PENALTY * size
    loss.backward()
    return loss


optimizer.step(objective)

net_fit = ImplicitRegularizationEstimator(net, loss="cross_entropy", family="l2")
net_fit.fit(images, digits)
print(net_fit.summary())

# %%
# The wrong family
# ----------------
# A coefficient comes out for any family. How much of the gradient it explains, and the verdict,
# tell that this one is not what the network was trained with.

wrong_fit = ImplicitRegularizationEstimator(net, loss="cross_entropy", family="l1")
wrong_fit.fit(images, digits)
print(wrong_fit.summary())

# %%
# Every point is one weight: its loss gradient against what the fitted penalty says it should be.

figure, axes = plt.subplots(ncols=2, figsize=(9, 5.2), layout="constrained")
for fit, ax, title in zip((net_fit, wrong_fit), axes, ("l2", "l1"), strict=True):
    GradientMatchDisplay.from_estimator(fit, images, digits, ax=ax)
    ax.locator_params(axis="x", nbins=5)
    ax.set_title(f"{title}: R2 = {fit.r2_:.4f}, {fit.verdict_}")
figure.savefig("demo.png", dpi=150, bbox_inches="tight")
print("The figure is in demo.png.")

# %%
assert abs(ridge_fit.in_model_units()["alpha"] / 3.0 - 1) < 1e-6
assert abs(net_fit.coef_[0] / PENALTY - 1) < 1e-3
assert net_fit.r2_ > 0.999
assert net_fit.verdict_ == "supported"
assert wrong_fit.verdict_ != "supported"
