r"""
Figure 2: what the steps of SGD add to the gradient
===================================================

A step of gradient descent goes where the loss goes down. A step of stochastic gradient descent goes
elsewhere, as it sees a few rows only; a step with a penalty goes elsewhere, too. These deviations
hold the regularization of the training, and noise. Two weights show how to tell them apart.
"""

# %%
# The model is :math:`f(x) = \tanh(w x + b)` on 96 points of a curve that it cannot follow exactly.
# Its loss is the mean squared error; ``slopes`` has its gradient on each row.

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import chi2
from shared import report
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.exceptions import PathNoiseWarning
from sklearn_implicitreg.trajectory import record

N, BATCH, DECAY = 96, 8, 0.1
x = np.linspace(-2.5, 2.5, N)
y = 0.75 * np.tanh(1.4 * x - 0.35) + 0.12 * np.sin(2.7 * x)
X, Y = torch.as_tensor(x[:, None]), torch.as_tensor(y[:, None])
torch.set_num_threads(1)


def network(w, b):
    """The model as a torch module."""
    net = nn.Sequential(nn.Linear(1, 1), nn.Tanh()).double()
    nn.init.constant_(net[0].weight, w)
    nn.init.constant_(net[0].bias, b)
    return net


def slopes(theta):
    """Gradient of the squared error at the weights (w, b), row by row."""
    out = np.tanh(theta[0] * x + theta[1])
    return (2 * (out - y) * (1 - out**2))[:, None] * np.column_stack([x, np.ones(N)])


net = network(0.8, 0.1)
optimizer = torch.optim.Adam(net.parameters(), lr=0.04)
for _ in range(900):
    optimizer.zero_grad()
    nn.functional.mse_loss(net(X), Y).backward()
    optimizer.step()
best = np.array([net[0].weight.item(), net[0].bias.item()])
direction = np.random.default_rng(4).normal(size=2)
start = best + 0.4 * direction / np.linalg.norm(direction)

# %%
# Deviations of single steps
# --------------------------
# From one start, gradient descent in small steps, which is nearly the gradient flow, and six steps
# of SGD with a large step size, each on eight random rows. A step of SGD is the step on all rows
# and a deviation.

flow = [start]
for _ in range(3000):
    flow.append(flow[-1] - 0.004 * slopes(flow[-1]).mean(axis=0))
flow = np.array(flow)


def descend(rng, lr=0.4, n_steps=6):
    """Path of SGD, with the gradients on all rows and on the rows of each step."""
    theta, path, whole, seen = start, [start], [], []
    for _ in range(n_steps):
        rows = rng.permutation(N)[:BATCH]
        whole.append(slopes(theta).mean(axis=0))
        seen.append(slopes(theta)[rows].mean(axis=0))
        theta = theta - lr * seen[-1]
        path.append(theta)
    return np.array(path), np.array(whole), np.array(seen)


path, whole, seen = descend(np.random.default_rng(21))

# %%
# Theory says what these deviations are. For B of n rows, drawn at random, their mean is zero and
# their covariance is that of the gradients of the rows times :math:`(n - B) / ((n - 1) B)`.
# Divided by its square root they have one scale. Those of 500 such runs:


def standardized(path, whole, seen):
    """Deviations, divided by the square root of the covariance that theory has for them."""
    share = (N - BATCH) / ((N - 1) * BATCH)
    roots = [np.linalg.cholesky(share * np.cov(slopes(t).T, bias=True)) for t in path[:-1]]
    return np.array([np.linalg.solve(r, d) for r, d in zip(roots, seen - whole, strict=True)])


rng = np.random.default_rng(0)
many = np.concatenate([standardized(*descend(rng)) for _ in range(500)])
radius = np.sqrt(chi2(2).ppf(0.95))
inside = np.mean(np.linalg.norm(many, axis=1) < radius)
print(f"mean of the deviations {many.mean(axis=0).round(3)}, {inside:.1%} within 95 %")

# %%
# Single steps are noise, then, and no penalty can be read off a few of them.
#
# A penalty that was added
# ------------------------
# Now SGD in shuffled epochs, with a weight decay, which is the explicit penalty
# :math:`\tfrac{0.1}{2} \|\theta\|^2`. The trajectory is recorded; the estimator regresses the
# deviations on the gradient of the penalty. Over an epoch the rows that one batch lacks come in
# another, and nearly all noise cancels. Where the rows of each batch are known, their own gradient
# takes the place of that on all rows, and nothing is left but the penalty.


def run(lr, decay=0.0, n_epochs=60):
    """A trained network and its recorded trajectory."""
    net = network(*best)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, weight_decay=decay)
    shuffle = torch.Generator().manual_seed(21)
    with record(net, optimizer) as recorder:
        for _ in range(n_epochs):
            for rows in torch.randperm(N, generator=shuffle).split(BATCH):
                recorder.batch(rows)
                optimizer.zero_grad()
                nn.functional.mse_loss(net(X[rows]), Y[rows]).backward()
                optimizer.step()
            recorder.epoch()
    return net, recorder.trajectory


def fitted(net, trajectory, **options):
    """Weight decay along a trajectory."""
    return ImplicitRegularizationEstimator(
        net,
        family="weight_decay",
        mode="trajectory",
        trajectory=trajectory,
        loss="mse",
        params="all",
        **options,
    ).fit(X, Y)


decayed = run(lr=0.05, decay=DECAY)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", PathNoiseWarning)  # it says so: single steps are noisy
    steps = fitted(*decayed)
fits = {
    "single steps": steps,
    "epochs": fitted(*decayed, window="epoch"),
    "same batches": fitted(*decayed, window="epoch", reference="batch"),
}
for name, fit in fits.items():
    low, high = fit.conf_int_[0]
    print(f"{name}: {fit.coef_[0]:.6f}, 95 % interval {low:.6f} to {high:.6f}, {fit.verdict_}")

# %%
# A penalty that nobody added
# ---------------------------
# Without any decay the deviations of whole epochs are small, and not zero. For a small step size lr
# they are the gradient of a penalty again, :math:`\tfrac{lr}{4}` times the mean squared distance of
# the batches' gradients from their mean (Smith et al., 2021): mini-batching prefers weights where
# the batches agree. It is the column ``minibatch`` of every fit over epochs.

plain = {lr: fitted(*run(lr), window="epoch") for lr in (0.02, 0.05, 0.1)}
print(plain[0.05].summary())

# %%
figure, axes = plt.subplots(2, 2, figsize=(9.5, 8), layout="constrained")
(map_, noise), (explicit, implicit) = axes

close = map_.inset_axes((0.47, 0.04, 0.51, 0.45))
for ax, points, below in ((map_, [start, best, *path], 0.17), (close, path[1:], 0.035)):
    low, high = np.min(points, axis=0) - [0.035, below], np.max(points, axis=0) + 0.035
    w, b = np.meshgrid(np.linspace(low[0], high[0], 90), np.linspace(low[1], high[1], 90))
    surface = np.mean((np.tanh(w[..., None] * x + b[..., None]) - y) ** 2, axis=-1)
    levels = np.linspace(surface.min(), surface.max(), 14)
    ax.contour(w, b, surface, levels=levels, colors="0.88", linewidths=0.8, zorder=0)
    ax.plot(*flow.T, color="C0", lw=2.5, label="gradient flow")
    ax.plot(*path.T, "o-", color="0.2", ms=4, lw=1.5, label="SGD, six steps")
    for at, slope, end in zip(path, whole, path[1:], strict=False):
        there = at - 0.4 * slope
        ax.plot(*np.array([at, there]).T, color="C0", lw=1.2, ls="--")
        style = {"arrowstyle": "-|>", "color": "C3", "lw": 1.3, "shrinkA": 0, "shrinkB": 2}
        ax.annotate("", xy=end, xytext=there, arrowprops=style, annotation_clip=True)
    ax.plot([], [], color="C0", lw=1.2, ls="--", label="a step on all rows")
    ax.plot([], [], color="C3", lw=1.3, label="deviation")
    ax.plot(*best, "*", color="C1", ms=14, ls="none", label="minimum")
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
close.set(xticks=[], yticks=[])
map_.indicate_inset_zoom(close, edgecolor="0.5")
map_.set(xlabel="w", ylabel="b", title="trajectories of two weights")
map_.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize="small", loc="upper left")

noise.plot(*many.T, ".", ms=2, color="0.75", label="500 runs of six steps")
noise.plot(*standardized(path, whole, seen).T, "o", color="C3", label="the run on the left")
angle = np.linspace(0, 2 * np.pi, 200)
circle = radius * np.array([np.cos(angle), np.sin(angle)])
noise.plot(*circle, color="C0", label="95 % by theory")
noise.set(aspect="equal", xlim=(-4.2, 4.2), ylim=(-4.2, 4.2))
noise.set(xlabel="standardized deviation, first part", ylabel="second part")
noise.set(title="single steps: noise")
noise.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize="small", loc="upper right")

for place, fit in enumerate(fits.values()):
    low, high = np.abs(fit.conf_int_[0] - fit.coef_[0])
    explicit.errorbar(place, fit.coef_[0], [[low], [high]], fmt="o", color="C3", capsize=4)
explicit.axhline(DECAY, color="C0", zorder=0, label="trained with")
explicit.set_xticks(range(3), list(fits))
explicit.set(xlim=(-0.5, 2.5), ylabel="weight decay, 95 % interval", title="explicit: weight decay")
explicit.legend(frameon=False)

for lr, fit in plain.items():
    low, high = np.abs(fit.conf_int_[1] - fit.coef_[1])
    implicit.errorbar(lr, fit.coef_[1], [[low], [high]], fmt="o", color="C3", capsize=4)
implicit.plot([0, 0.11], [0, 0.11 / 4], color="C0", zorder=0, label="theory: lr / 4")
implicit.set(xlabel="lr", ylabel="coefficient of minibatch, 95 % interval")
implicit.set(xlim=(0, 0.11), ylim=(0, None), title="implicit: mini-batching")
implicit.legend(frameon=False, loc="upper left")

# %%
assert np.all(np.abs(many.mean(axis=0)) < 4 / np.sqrt(len(many)))
assert 0.93 < inside < 0.97
widths = {name: fit.conf_int_[0, 1] - fit.conf_int_[0, 0] for name, fit in fits.items()}
assert all(fit.conf_int_[0, 0] <= DECAY <= fit.conf_int_[0, 1] for fit in list(fits.values())[:2])
assert widths["epochs"] < widths["single steps"] / 10
assert np.isclose(fits["same batches"].coef_[0], DECAY, rtol=1e-9)
for lr, fit in plain.items():
    assert fit.verdict_ == "no signal"  # of a decay: there was none
    assert 0 < fit.conf_int_[1, 0] <= lr / 4 <= fit.conf_int_[1, 1]

rows = [
    {
        "what": "deviations of single steps within the 95 % of theory",
        "published": "a sketch",
        "here": f"{inside:.1%}",
        "verdict": "noise",
    },
    {
        "what": f"weight decay {DECAY}, epochs / same batches",
        "here": f"{fits['epochs'].coef_[0]:.4f} / {fits['same batches'].coef_[0]:.10f}",
        "verdict": f"{fits['epochs'].verdict_} / {fits['same batches'].verdict_}",
    },
    {
        "what": "mini-batching, coefficient over lr / 4",
        "audited": "1 by theory",
        "here": ", ".join(f"{4 * fit.coef_[1] / lr:.2f}" for lr, fit in plain.items()),
        "verdict": "1 in every interval",
    },
]
report("fig2", rows, figure)
