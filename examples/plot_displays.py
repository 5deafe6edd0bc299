"""
All pictures of a fit
=====================

``est.plot()`` draws the picture that shows a fit best. Each picture is a display of
``sklearn_implicitreg.inspection`` that can also be asked for by name.
"""

# %%
# The shape of a penalty
# ----------------------
# Where training ended, minus the gradient of the loss is the gradient of the penalty. Drawn against
# the weights it is a step for a lasso; the weights at zero stand on the step and give no equation.
# A ridge would be a line.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso, Ridge
from torch import nn

from sklearn_implicitreg import (
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    endpoints,
)
from sklearn_implicitreg.inspection import (
    CoefficientDisplay,
    CoefficientPathDisplay,
    FamilyComparisonDisplay,
    GradientMatchDisplay,
    InfluenceDisplay,
    PenaltyShapeDisplay,
    RecoveryDisplay,
    SpectrumDisplay,
)
from sklearn_implicitreg.theory import gradient_flow, implicit_penalty
from sklearn_implicitreg.trajectory import record

X, y = load_diabetes(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)
lasso = Lasso(alpha=2.0, tol=1e-12, max_iter=100_000).fit(X, y)
est = ImplicitRegularizationEstimator(lasso, family="l1").fit(X, y)
shape = PenaltyShapeDisplay.from_estimator(est, families=["l2"])

# %%
# Families against each other
# ---------------------------

search = ImplicitRegularizationCV(lasso, families=["l2", "l1", "power"]).fit(X, y)
comparison = search.plot()

# %%
# A family that does not fit
# --------------------------
# Points off the diagonal are what it leaves, and some equations pull more than others.

wrong = ImplicitRegularizationEstimator(lasso, family="l2").fit(X, y)
match = GradientMatchDisplay.from_estimator(wrong)
influence = InfluenceDisplay.from_estimator(wrong, n_labels=3)

# %%
# Along a trajectory
# ------------------
# A small net whose weight decay changes while it trains. The batch reference finds every value.

torch.manual_seed(0)
torch.set_num_threads(1)
DECAYS = np.repeat([0.0, 0.02, 0.01], 4)
inputs, target = torch.as_tensor(X), torch.as_tensor(y)[:, None] / 100
net = nn.Sequential(nn.Linear(10, 5), nn.Tanh(), nn.Linear(5, 1)).double()
optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
with record(net, optimizer) as recorder:
    for decay in DECAYS:
        optimizer.param_groups[0]["weight_decay"] = decay
        for rows in torch.randperm(len(inputs)).split(100):
            recorder.batch(rows)
            optimizer.zero_grad()
            nn.functional.mse_loss(net(inputs[rows]), target[rows]).backward()
            optimizer.step()
        recorder.epoch()

options = {"family": "weight_decay", "loss": "mse", "params": "all"}
path = ImplicitRegularizationEstimator(
    net,
    mode="trajectory",
    trajectory=recorder.trajectory,
    reference="batch",
    window="epoch",
    **options,
).fit(inputs, target)
windows = CoefficientPathDisplay.from_estimator(path, theory=DECAYS)

# %%
# A coefficient for each layer
# ----------------------------
# The endpoint of the same net. A part of a larger figure is given as ``ax=``.

layers = ImplicitRegularizationEstimator(net, group_by="layer", **options).fit(inputs, target)
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
per_layer = CoefficientDisplay.from_estimator(layers, ax=axes[0])
PenaltyShapeDisplay.from_estimator(layers, ax=axes[1])

# %%
# Quadratic penalties
# -------------------
# The matrix that early stopping implies, and the one that twenty fits of a ridge show.

flow = SpectrumDisplay.from_penalty(implicit_penalty(X, gradient_flow(1.0)), name="gradient flow")
resamples = endpoints(Ridge(5.0), X, y, 20, random_state=0)
whole = ImplicitRegularizationEstimator(None, family="quadratic").fit(resamples)
spectrum = whole.plot()

# %%
# Training again
# --------------
# With the penalty that was found and without it, compared with the model. Of a network there is a
# column for each start; a ridge is solved in closed form.

ridge = Ridge(alpha=3.0).fit(X, y)
again = RecoveryDisplay.from_estimator(ImplicitRegularizationEstimator(ridge).fit(X, y), X, y)

# %%
assert isinstance(est.plot(), PenaltyShapeDisplay)
assert isinstance(comparison, FamilyComparisonDisplay)
assert search.best_family_ == "l1"
assert 0 < np.sum(~shape.smooth) < 10
assert match.r2 < 0.99
assert len(influence.texts_) == 3
assert np.allclose(windows.path[:, 0], DECAYS, atol=1e-9)
assert len(per_layer.coef) == 2
assert np.allclose(spectrum.eigenvalues_.get_ydata(), 5.0 / len(X), rtol=1e-4)
assert again.runs["distance"][0] < 1e-9 < again.runs["distance"][1]
assert np.ptp(flow.eigenvalues_.get_ydata()) > 0
