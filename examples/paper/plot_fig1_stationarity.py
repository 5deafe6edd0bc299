r"""
Figure 1: two slopes that cancel
================================

A model that was trained with a penalty does not stop where its loss is lowest. It stops where the
slope of the loss and the slope of the penalty cancel,
:math:`\nabla L(\theta) + \nabla R(\theta) = 0`. The loss and its slope can be computed at any
weights, so the slope of the penalty is known there too, and with it how strong the penalty was.
"""

# %%
# One weight
# ----------
# Ridge regression through the origin on twenty rows. The loss is the mean squared error, the
# penalty :math:`\lambda \theta^2` with :math:`\lambda = 0.8`. scikit-learn sums the squares instead
# of averaging them, so its ``alpha`` is n times as large.

import matplotlib.pyplot as plt
import numpy as np
from shared import report
from sklearn.linear_model import Lasso, Ridge

from sklearn_implicitreg import ImplicitRegularizationEstimator

N, SLOPE, NOISE, STRENGTH = 20, 2.0, 1.8, 0.8

rng = np.random.default_rng(42)
x = rng.normal(size=N)
y = SLOPE * x + NOISE * rng.normal(size=N)
ridge = Ridge(alpha=N * STRENGTH, fit_intercept=False).fit(x[:, None], y)

one = ImplicitRegularizationEstimator(ridge, family="l2").fit(x[:, None], y)
print(one.summary())

# %%
# The estimator was given the trained model and its data. It solved one equation,
# :math:`2 \lambda \theta = -L'(\theta)`, for one unknown, and found 0.8. One equation can always be
# solved, so that it fits says nothing yet about the *form* of the penalty: the summary says so.
#
# Two weights
# -----------
# Two weights give two equations for the one unknown, and now the fit can fail. At the weights of
# another ridge regression both slopes lie on one line. At those of a lasso no multiple of the slope
# of :math:`\|\theta\|^2` cancels the slope of the loss; the slope of :math:`\|\theta\|_1` does.
# (``Lasso`` halves the squared error: the coefficient added to the mean squared error is twice its
# ``alpha``.)

M = 60
X = rng.normal(size=(M, 2)) @ np.array([[1.0, 0.5], [0.0, 0.8]])
z = X @ [0.6, 2.2] + NOISE * rng.normal(size=M)
models = {
    "ridge": Ridge(alpha=M * STRENGTH, fit_intercept=False).fit(X, z),
    "lasso": Lasso(alpha=STRENGTH / 2, fit_intercept=False, tol=1e-12).fit(X, z),
}
fits = {
    (name, family): ImplicitRegularizationEstimator(model, family=family).fit(X, z)
    for name, model in models.items()
    for family in ("l2", "l1")
}
for (name, family), fit in fits.items():
    print(f"{name} fitted by {family}: {fit.coef_[0]:.3f}, R2 {fit.r2_:.3f}, {fit.verdict_}")

# %%
# Left: the three curves, and at the minimum of their sum the pull of the loss and that of the
# penalty. Right: the same from above, on the contours of the loss; the cross is where all weights
# are zero.

figure, axes = plt.subplots(
    1, 3, figsize=(10.5, 4.2), width_ratios=(1.5, 1, 1), layout="constrained"
)
LOSS, L2, L1, TOTAL = "C0", "C1", "C2", "0.25"


def pull(ax, start, step, color):
    """Arrow from a point."""
    end = np.asarray(start) + step
    style = {"arrowstyle": "-|>", "lw": 2.2, "color": color, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=end, xytext=start, arrowprops=style, zorder=4)


theta, grid = ridge.coef_[0], np.linspace(-0.5, 3.5, 200)
loss = np.mean((y[:, None] - np.outer(x, grid)) ** 2, axis=0)
penalty = one.coef_[0] * grid**2
at_theta = np.mean((y - theta * x) ** 2)
slope = -2 * np.mean(x * (y - theta * x))
ax = axes[0]
ax.plot(grid, loss + penalty, color=TOTAL, label="sum")
ax.plot(grid, loss, color=LOSS, label="loss L")
ax.plot(grid, penalty, color=L2, label=r"penalty, as found: $0.8\,\theta^2$")
ax.plot(theta, at_theta + one.coef_[0] * theta**2, "o", color=TOTAL)
ax.vlines(theta, 0, at_theta + one.coef_[0] * theta**2, color="0.7", lw=1, zorder=0)
pull(ax, (theta, at_theta), (-slope / 2, 0), LOSS)
pull(ax, (theta, one.coef_[0] * theta**2), (slope / 2, 0), L2)
ax.set(xlabel=r"$\theta$", ylabel="value", ylim=(0, 14), title="one weight, ridge")
ax.legend(frameon=False, loc="upper center")

first, second = np.meshgrid(np.linspace(-0.4, 1.9, 120), np.linspace(-0.4, 2.9, 120))
surface = np.mean((z - np.stack([first, second], axis=-1) @ X.T) ** 2, axis=-1)
for ax, (name, model) in zip(axes[1:], models.items(), strict=True):
    theta = model.coef_
    ax.contour(first, second, surface, levels=14, colors="0.8", linewidths=0.8, zorder=0)
    pull(ax, theta, X.T @ (z - X @ theta) / M, LOSS)  # half of the gradients, for room
    pull(ax, theta, -fits[name, "l2"].coef_[0] * theta, L2)
    if name == "lasso":
        pull(ax, theta, -fits[name, "l1"].coef_[0] * np.sign(theta) / 2, L1)
    ax.plot(*theta, "o", color=TOTAL, zorder=5)
    ax.plot(0, 0, "+", color="0.4", ms=9)
    ax.set_title(f"two weights, {name}")
    ax.set(xlabel=r"$\theta_1$", ylabel=r"$\theta_2$", aspect="equal")
lines = [plt.Line2D([], [], color=color, lw=2.2) for color in (LOSS, L2, L1)]
labels = ("pull of the loss", "of the l2 that fits best", "of the l1 that fits best")
figure.legend(lines, labels, loc="outside lower right", ncols=3, frameon=False)

# %%
assert np.isclose(one.coef_[0], STRENGTH, rtol=1e-12)
assert np.isclose(slope, -2 * one.coef_[0] * ridge.coef_[0], rtol=1e-12)
assert np.isclose(fits["ridge", "l2"].coef_[0], STRENGTH, rtol=1e-12)
assert fits["ridge", "l2"].verdict_ == "supported"
assert fits["lasso", "l2"].r2_ < 0.9
assert np.isclose(fits["lasso", "l1"].coef_[0], STRENGTH, rtol=1e-9)
assert fits["lasso", "l1"].r2_ > 1 - 1e-12

rows = [
    {
        "what": "penalty of a ridge regression, one weight",
        "published": "0.8, a sketch",
        "audited": "0.8",
        "here": f"{one.coef_[0]:.12g}",
        "verdict": one.verdict_,
    },
    {
        "what": "a lasso, two weights, by l2 / by l1",
        "here": f"R2 {fits['lasso', 'l2'].r2_:.3f} / {fits['lasso', 'l1'].r2_:.3f}",
        "verdict": f"{fits['lasso', 'l2'].verdict_} / {fits['lasso', 'l1'].verdict_}",
    },
]
report("fig1", rows, figure)
