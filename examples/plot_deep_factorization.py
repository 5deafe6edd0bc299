"""
Deep factorizations: weight decay of the layers is a penalty on the rank
========================================================================

A linear map is trained as a product of matrices, each with the same weight decay. Nothing in the
loss asks for a low rank, and yet the product has one. What penalty was the product, as one matrix,
trained with? For two layers theory says the nuclear norm, with twice the decay as its coefficient:
of all factors of a matrix W, those of the least squares sum to ``2 |W|_*``. For N layers the sum is
``N sum s^(2/N)``, a Schatten quasi-norm [1]_. Here the penalty is read off the trained products.

.. [1] Shang et al. (2020), Unified scalable equivalent formulations for Schatten quasi-norms.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import L2, Nuclear, Schatten

DECAY = 0.01
rng = np.random.default_rng(0)
truth = rng.normal(size=(8, 3)) @ rng.normal(size=(3, 12)) / 3  # rank 3
X = torch.from_numpy(rng.normal(size=(60, 12)))
y = X @ torch.from_numpy(truth).T + 0.3 * torch.from_numpy(rng.normal(size=(60, 8)))

# %%
# One, two and three layers
# -------------------------
# Each is trained to a stationary point of the mean squared error and ``DECAY`` times the squares of
# all weights. Then the layers are multiplied.


def train(depth):
    """A product of square layers, trained by L-BFGS, as one linear layer."""
    torch.manual_seed(0)
    widths = [12, *[8] * depth]
    layers = [nn.Linear(m, n, bias=False) for m, n in zip(widths, widths[1:], strict=False)]
    net = nn.Sequential(*layers).double()
    optimizer = torch.optim.LBFGS(
        net.parameters(),
        max_iter=3000,
        tolerance_grad=1e-10,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        decay = sum(weight.square().sum() for weight in net.parameters())
        value = nn.functional.mse_loss(net(X), y) + DECAY * decay
        value.backward()
        return value

    optimizer.step(closure)
    product = nn.Linear(12, 8, bias=False).double()
    with torch.no_grad():
        product.weight.copy_(net(torch.eye(12).double()).T)
    return product


products = {depth: train(depth) for depth in (1, 2, 3)}
spectra = {n: torch.linalg.svdvals(p.weight.detach()).numpy() for n, p in products.items()}
ranks = {n: int((s > 1e-4 * s[0]).sum()) for n, s in spectra.items()}
print("ranks by depth:", ranks)

# %%
# The penalty of each product
# ---------------------------
# Singular values up to ``tol=1e-2`` of the largest count as zero. Their rows and columns,
# in the singular bases, give no equations: the summary reports whether the inequality holds there.
# A tolerance above some that are not zero, as here for two layers, costs equations and no accuracy.

families = {"l2": L2(), "nuclear": Nuclear(), "schatten(2/3)": Schatten(q=2 / 3)}
found = {}
for depth, product in products.items():
    search = ImplicitRegularizationCV(product, families=families, loss="mse").fit(X, y)
    fits = zip(search.cv_results_["name"], search.cv_results_["r2"], strict=True)
    found[depth] = search.best_name_, float(search.coef_[0])
    print(depth, found[depth], {name: round(float(r2), 4) for name, r2 in fits})

nuclear = ImplicitRegularizationEstimator(products[2], family="nuclear", loss="mse").fit(X, y)
print(nuclear.summary())

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
places = np.arange(1, 9)
for depth, marker in zip(products, "os^", strict=True):
    left.plot(places, spectra[depth], marker=marker, label=f"{depth} layer" + "s" * (depth > 1))
left.plot(places, np.linalg.svd(truth)[1], "k:", label="truth, rank 3")
left.set(xlabel="place", ylabel="singular value", yscale="log", ylim=(1e-4, 10))
left.set_title("Spectra of the products")
left.legend()
coefs = [found[depth][1] / DECAY for depth in products]
bars = right.bar([f"{depth}\n{found[depth][0]}" for depth in products], coefs, color="0.7")
right.bar_label(bars, fmt="%.4f")
right.set(xlabel="layers, and the family found", ylabel="coefficient over decay", ylim=(0, 3.5))
right.set_title("The penalty on the product")
plt.show()

# %%
assert ranks[1] == 8
assert ranks[2] < 8
assert ranks[3] == 3
assert [name for name, _ in found.values()] == list(families)
assert np.allclose(coefs, [1, 2, 3], rtol=1e-3)
assert nuclear.verdict_ == "supported"
