"""
Which layers of a transformer were decayed
==========================================

A language model is trained by AdamW with another decay for each kind of layer. Its weights do not
show them, and neither does its loss. The trajectory does, with one coefficient for each layer.
"""

# %%
# A small model of characters, which returns its loss where labels are given, as those of Hugging
# Face do: the mean over all labels but the first of each row, which nothing predicts. The embedding
# is the head as well. The text comes with scikit-learn.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn import datasets
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.trajectory import record

torch.manual_seed(0)
torch.set_num_threads(1)
N_BLOCKS, WIDTH, LENGTH = 4, 24, 32

loaders = (datasets.load_diabetes, datasets.load_wine, datasets.load_breast_cancer)
text = "".join(load().DESCR for load in loaders)
characters = sorted(set(text))
ids = torch.tensor([characters.index(c) for c in text])
rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
data = [{"input_ids": row, "labels": row} for row in rows]


class Block(nn.Module):
    """Attention and a layer with hidden units, each added to what comes in."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        """Attention is causal."""
        q, k, v = self.attention(self.norms[0](x)).chunk(3, dim=-1)
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """Characters in, logits of the next one out, and the loss of labels."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(characters), WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)
        self.blocks = nn.ModuleList(Block() for _ in range(N_BLOCKS))

    def forward(self, input_ids, labels=None):
        """Each position predicts the next one."""
        x = self.embedding(input_ids) + self.position.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = x @ self.embedding.weight.T
        loss = None
        if labels is not None:
            loss = cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])
        return {"loss": loss, "logits": logits}


# %%
# The decay of the attention grows with the depth, and that of the hidden units shrinks. Biases,
# norms and embeddings have none. After a few epochs the next ones are recorded.


def decay_of(name, tensor):
    """What the optimizer decays a tensor by."""
    if tensor.ndim < 2 or not name.startswith("blocks"):
        return 0.0
    depth = int(name.split(".")[1])
    return 0.05 * (depth + 1) if "attention" in name or "out" in name else 0.05 * (N_BLOCKS - depth)


model = Transformer().double()
truth = {name: decay_of(name, tensor) for name, tensor in model.named_parameters()}
optimizer = torch.optim.AdamW(
    [{"params": [p], "weight_decay": truth[name]} for name, p in model.named_parameters()], lr=3e-3
)


def epoch(recorder=None):
    """One pass over the shuffled rows in batches of 32."""
    for own in torch.randperm(len(rows)).split(32):
        if recorder is not None:
            recorder.batch(own)
        optimizer.zero_grad()
        model(rows[own], rows[own])["loss"].backward()
        optimizer.step()
    if recorder is not None:
        recorder.epoch()


for _ in range(12):
    epoch()
with record(model, optimizer) as recorder:
    for _ in range(4):
        epoch(recorder)
print(recorder.trajectory)

# %%
# ``params="decay"`` takes the matrices outside of normalization layers, as most training scripts
# do; ``group_by="layer"`` gives each a coefficient. Against the gradients of the batches that the
# steps saw, these are exact.

settings = {"family": "weight_decay", "params": "decay", "mode": "trajectory"}
settings |= {"trajectory": recorder.trajectory, "reference": "batch", "window": "epoch"}
layers = ImplicitRegularizationEstimator(model, **settings, group_by="layer").fit(data)
print(layers.summary())

# %%
# Coarser groups: one coefficient for a block, or for the same layer of all blocks. Neither is what
# the optimizer did, and the verdict is not ``supported``.

blocks, kinds = (
    ImplicitRegularizationEstimator(model, **settings, group_by=by).fit(data)
    for by in ("block", "type")
)
for est in (layers, blocks, kinds):
    print(f"{len(est.coef_):2d} coefficients: R2 {est.r2_:.4f}, {est.verdict_}")

# %%
# The weights at the end, taken as a minimum, show nothing of it: AdamW's decay is no term of the
# loss, and training has not ended.

endpoint = ImplicitRegularizationEstimator(
    model, family="weight_decay", params="decay", group_by="layer"
).fit(data)
print(f"endpoint: R2 {endpoint.r2_:.4f}, {endpoint.verdict_}")

# %%
# One row for each layer: the decay that the optimizer had, what the fits found, and what the
# endpoint reads.

names = [name.removeprefix("weight_decay[").removesuffix("]") for name in layers.term_names_]
decays = np.array([truth[f"{name}.weight"] for name in names])
rows_of = np.arange(len(names))
of_block = dict(zip(blocks.term_names_, blocks.coef_, strict=True))

figure, ax = plt.subplots(figsize=(7, 5), layout="constrained")
for i in range(0, N_BLOCKS, 2):
    first = names.index(f"blocks.{i}.attention")
    ax.axhspan(first - 0.5, first + 3.5, color="0.95", lw=0)
ax.barh(rows_of, decays, height=0.55, color="0.75", label="the optimizer's decay")
ax.plot(layers.coef_, rows_of, "o", ms=6, color="C0", label="found, a coefficient for each layer")
for i in range(N_BLOCKS):
    first, value = names.index(f"blocks.{i}.attention"), of_block[f"weight_decay[blocks.{i}]"]
    label = "found, one for each block" if i == 0 else None
    ax.vlines(value, first - 0.4, first + 3.4, color="C1", lw=2, label=label)
ax.plot(endpoint.coef_, rows_of, "x", ms=6, color="C3", label="read off the endpoint")
ax.set_yticks(rows_of, names)
ax.invert_yaxis()
ax.set(xlabel="weight decay", xlim=(-0.008, 0.33))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="upper right")

# %%
np.testing.assert_allclose(layers.coef_, decays, rtol=1e-9, atol=1e-11)
assert layers.verdict_ == "supported"
for est in (blocks, kinds):
    assert est.verdict_ == "partial"
    assert est.r2_ < 0.95
assert endpoint.r2_ < 0.1
assert np.all(np.abs(endpoint.coef_) < 0.02)
