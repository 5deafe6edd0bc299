"""
How many gradient steps is a fit worth?
=======================================

A ridge regression, a partial least squares fit, a run of SGD: each holds its coefficients back in
its own way. One scale for all of them is the number of steps after which plain gradient descent on
the same data is held back as much. The family ``EarlyStopping`` has it as its only coefficient.
"""

# %%
# The diabetes data, standardized. Steps are counted in a step size of 0.1 on the mean squared
# error.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV, RidgeCV, SGDRegressor
from sklearn.preprocessing import scale

from sklearn_implicitreg import ImplicitRegularizationEstimator, LinearModel
from sklearn_implicitreg.penalties import EarlyStopping
from sklearn_implicitreg.theory import degrees_of_freedom, gradient_descent, implicit_penalty

LR = 0.1

data = load_diabetes()
X, y = scale(data.data), data.target - data.target.mean()
n, p = X.shape


def descend(n_steps):
    """Coefficients of gradient descent from zero."""
    theta = np.zeros(p)
    for _ in range(n_steps):
        theta = theta - LR * 2 * X.T @ (X @ theta - y) / n
    return theta


pls = PLSRegression(3, scale=False).fit(X, y)
sgd = SGDRegressor(
    penalty=None, learning_rate="constant", eta0=2e-4, max_iter=20, tol=None, random_state=0
).fit(X, y)
models = {
    "gradient descent, 60 steps": LinearModel(descend(60)),
    "SGD, 20 epochs": sgd,
    "PLS, 3 components": LinearModel(pls.coef_.ravel(), intercept=0.0),
    "ridge, cross-validated": RidgeCV(np.geomspace(0.1, 1000, 41)).fit(X, y),
    "lasso, cross-validated": LassoCV().fit(X, y),
}
fits = {
    name: ImplicitRegularizationEstimator(model, family=EarlyStopping(lr=LR)).fit(X, y)
    for name, model in models.items()
}
for name, fit in fits.items():
    low, high = fit.conf_int_[0]
    print(
        f"{name:27} {fit.coef_[0]:6.1f} steps, 95 % interval {low:6.1f} to {high:6.1f}, "
        f"left over {1 - fit.r2_:7.2g}, {fit.verdict_}"
    )

# %%
# Gradient descent is recognized, with nothing left over. SGD took 20 x 442 steps on single rows,
# and ``SGDRegressor`` steps on half of the squared error: its step size on the whole is half of
# ``eta0``. Counted in these, the steps found are those taken, up to the noise of the rows:

own = ImplicitRegularizationEstimator(sgd, family=EarlyStopping(lr=sgd.eta0 / 2)).fit(X, y)
print(own.summary())

# %%
# The others are *worth* a number of steps without having taken any. What is left over says how far
# they are from it. The ridge leaves over more than half of the squared gradient: it holds back the
# directions of the features by another rule. The interval is wide for this reason: it shows how
# little the equations agree on one number, and not what other data would say. For partial least
# squares and the lasso no number of steps explains more than chance would: ``no signal``.
#
# ``recover`` has what gradient descent comes to in as many steps. For the ridge that is nearly the
# same model, although its gradient is another: with so many steps little is held back in any way.

recovered = {name: fit.recover(X, y) for name, fit in fits.items()}
for name, recovery in recovered.items():
    print(
        f"{name:27} coefficients apart by {recovery.recovered.distance:.1%}, without early "
        f"stopping by {recovery.ablated.distance:.1%}"
    )
steps = fits["ridge, cross-validated"].coef_[0]
print(f"degrees of freedom: {degrees_of_freedom(X, gradient_descent(LR, steps)):.2f} of {p}")
print(recovered["ridge, cross-validated"])

# %%
# Lines: the coefficients along gradient descent. Markers: those of the models, at the number of
# steps that each is worth. Where a model is on the path, its markers are on the lines.

figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 4.6), width_ratios=(1.25, 1), layout="constrained"
)
grid = np.geomspace(1, 3000, 120)
lines = [implicit_penalty(X, gradient_descent(LR, t), y=y).theta() for t in grid]
left.plot(grid, lines, color="0.75", lw=1, zorder=0)
for place, (name, fit) in enumerate(fits.items()):
    color, marker, count = f"C{place}", "osD^v"[place], fit.coef_[0]
    coef = recovered[name].model.coef
    left.plot(np.full(p, count), coef, marker, ms=5, color=color, ls="none")
    right.plot(fit.conf_int_[0], [place, place], color=color, lw=2)
    right.plot(count, place, marker, ms=8, color=color)
    share = f"{100 * (1 - fit.r2_):.2g} % left over" if place else "exact"
    right.annotate(share, (count, place), (0, 9), textcoords="offset points", ha="center")
left.set(xscale="log", xlabel="steps", ylabel="coefficient")
right.set(xscale="log", xlabel="steps that the fit is worth, 95 % interval", ylim=(4.5, -0.7))
right.set_yticks(range(len(fits)), list(fits))
for ax in (left, right):
    ax.set_xlim(2, 3000)

# %%
exact = fits["gradient descent, 60 steps"]
assert np.isclose(exact.coef_[0], 60, rtol=1e-9)
assert 1 - exact.r2_ < 1e-20
taken = sgd.max_iter * n
assert own.conf_int_[0, 0] < taken < own.conf_int_[0, 1]
assert np.isclose(own.coef_[0], taken, rtol=0.02)
assert fits["lasso, cross-validated"].verdict_ == "no signal"
for name, recovery in recovered.items():
    path = implicit_penalty(X, gradient_descent(LR, fits[name].coef_[0]), y=y)
    assert np.allclose(recovery.recovered.coef, path.theta(), rtol=1e-8)
assert recovered["ridge, cross-validated"].recovered.distance < 0.01
