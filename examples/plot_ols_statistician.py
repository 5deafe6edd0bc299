"""
The regression behind it, in a statistician's own tools
=======================================================

A trained model satisfies one equation per weight: the gradient of the loss is minus the gradient of
the penalty. Stacked, these equations are a linear regression without an intercept, and
``equations`` hands it over as a data frame. Here statsmodels fits it.
"""

import matplotlib.pyplot as plt
import numpy as np
import statsmodels.api as sm
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet
from sklearn.preprocessing import scale

from sklearn_implicitreg import equations

X, y = load_diabetes(return_X_y=True)
X = scale(X)
model = ElasticNet(alpha=0.5, l1_ratio=0.4, tol=1e-12, max_iter=100_000).fit(X, y)
print("weights at zero:", int(np.sum(model.coef_ == 0)))

# %%
# One row per weight, one column per term of the penalty
# ------------------------------------------------------

rows = equations(model, X, y, families="l2+l1")
print(rows.data.assign(target=rows.target))

# %%
# Ordinary least squares
# ----------------------
# In units of the mean squared error, ``alpha (1 - l1_ratio)`` is the coefficient of ``l2`` and
# ``2 alpha l1_ratio`` that of ``l1``.

ols = sm.OLS(rows.target, rows.data).fit()
print(ols.params)
print(ols.conf_int())

# %%
# A model that was not trained with an elastic net
# ------------------------------------------------
# With a ridge alone half of the equations stay unexplained, and the residuals show where.

ridge_only = sm.OLS(rows.target, rows.data[["l2"]]).fit()
print(f"R2 with l2 + l1: {ols.rsquared:.6f}, with l2 alone: {ridge_only.rsquared:.6f}")

figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
ax.axhline(0, color="0.8")
ax.plot(rows.target, ridge_only.resid, "o", label="l2")
ax.plot(rows.target, ols.resid, "x", label="l2 + l1")
ax.set(xlabel="minus the gradient of the loss", ylabel="residual")
ax.legend()

# %%
assert abs(ols.params["l2"] / 0.3 - 1) < 1e-6
assert abs(ols.params["l1"] / 0.4 - 1) < 1e-6
assert ols.rsquared > 1 - 1e-12
assert ridge_only.rsquared < 0.999
