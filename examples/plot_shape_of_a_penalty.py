"""
The picture that explains the method
====================================

Where a training with a penalty ended, the gradients of loss and penalty balance in every weight.
So minus the gradient of the loss, drawn against the weight, *is* the derivative of the penalty: of
a small net that was trained with an elastic net, which is a line with a step. The family with both
terms runs through all points; a ridge alone, the best line, does not.
"""

import sys

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.inspection import PenaltyShapeDisplay
from sklearn_implicitreg.penalties import ElasticNet

L2_COEF, L1_COEF, DELTA = 1e-3, 2e-3, 0.1

images, digits = load_digits(return_X_y=True)
images, digits = torch.tensor(images / 16), torch.tensor(digits)

torch.manual_seed(0)
torch.set_num_threads(1)
net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
optimizer = torch.optim.LBFGS(
    net.parameters(),
    max_iter=1500,
    tolerance_grad=1e-7,
    tolerance_change=0,
    history_size=30,
    line_search_fn="strong_wolfe",
)


def objective():
    """Cross-entropy, a ridge and a smooth lasso on the weight matrices."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(images), digits)
    for weight in (net[0].weight, net[2].weight):
        size = nn.functional.smooth_l1_loss(
            weight, torch.zeros_like(weight), beta=DELTA, reduction="sum"
        )
        loss = loss + L2_COEF * weight.square().sum() + L1_COEF * size
    loss.backward()
    return loss


optimizer.step(objective)

est = ImplicitRegularizationEstimator(
    net, loss="cross_entropy", family=ElasticNet(delta=DELTA)
).fit(images, digits)
print(est.summary())

# %%
# The script given a file name stores the picture there: ``make picture``.

display = PenaltyShapeDisplay.from_estimator(
    est,
    families=["l2"],
    name="A trained net: every point is one of its weights",
    scatter_kwargs={"s": 12, "zorder": 5, "alpha": 0.6},
)
if len(sys.argv) > 1:
    plt.savefig(sys.argv[1], dpi=120)

# %%
assert est.verdict_ == "supported"
assert abs(est.coef_[0] / L2_COEF - 1) < 0.01
assert abs(est.coef_[1] / L1_COEF - 1) < 0.01
assert len(display.curves) == 2
