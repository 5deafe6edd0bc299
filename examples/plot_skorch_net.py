"""
A skorch net with weight decay and a validation split
=====================================================

skorch keeps a fifth of the rows for validation by default. The net's weights are
stationary on the other four fifths, so these are the rows to analyze: the estimator replays the
split of the net when it is given as many rows as the net was given.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale
from skorch import NeuralNetRegressor
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator, training_rows
from sklearn_implicitreg.inspection import GradientMatchDisplay

WEIGHT_DECAY = 0.1

X, y = load_diabetes(return_X_y=True)
X, y = scale(X).astype(np.float32), scale(y).astype(np.float32)[:, None]

# %%
# Train to stationarity: all rows in one batch, so that the training has no noise.

torch.manual_seed(0)
net = NeuralNetRegressor(
    nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1)),
    max_epochs=300,
    batch_size=-1,
    lr=0.1,
    optimizer=torch.optim.SGD,
    optimizer__momentum=0.9,
    optimizer__weight_decay=WEIGHT_DECAY,
    verbose=0,
).fit(X, y)

# %%
# The loss, the rows, the parameters that the optimizer decays: all are read from the net. Under
# the family ``weight_decay`` the coefficient is torch's own ``weight_decay``.

est = ImplicitRegularizationEstimator(net, family="weight_decay").fit(X, y)
print(est.summary())

# %%
# To search or fold, work on the training rows alone.

X_train, y_train = training_rows(net, X, y)
print(f"trained on {len(X_train)} of {len(X)} rows")

# %%
GradientMatchDisplay.from_estimator(est, X, y)
plt.show()

# %%
assert len(X_train) == 353
assert abs(est.coef_[0] / WEIGHT_DECAY - 1) < 1e-3
assert est.verdict_ == "supported"
