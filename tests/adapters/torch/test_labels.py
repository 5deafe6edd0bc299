"""Modules that return their loss as a mean over labels, against plain loops."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import DataLoader

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties import L2, BatchGradientNorm, GradientNorm
from sklearn_implicitreg.trajectory import record

VOCABULARY = 11


class Block(nn.Module):
    """Attention and a layer behind it."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mlp = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.mlp(scaled_dot_product_attention(q, k, v, is_causal=True))


class Model(nn.Module):
    """A causal model whose embedding is its head too; what its loss is a mean over is ``kind``."""

    def __init__(self, kind="shifted", ignored=-100, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.ignored = kind, ignored
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.double()

    def forward(self, input_ids, labels=None):
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        if labels is None:
            return {"logits": logits}
        if self.kind == "shifted":
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=self.ignored, reduction="none"
        )
        counts = (labels != self.ignored).sum(1)
        mean = losses.sum() / counts.sum()
        if self.kind == "rows":
            mean = (losses.sum(1) / counts).mean()
        return {"loss": mean, "logits": logits}


def samples(n=21, ragged=True, masked=True, seed=0):
    """Rows of unequal lengths, the first labels of which may be ignored."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        ids = torch.tensor(rng.integers(1, VOCABULARY, rng.integers(4, 10) if ragged else 7))
        labels = ids.clone()
        labels[: rng.integers(0, 3) if masked else 0] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


def collate(items, ignored=-100):
    """Rows of a batch filled up at their ends."""
    fills = {"input_ids": 0, "labels": ignored}
    return {
        key: nn.utils.rnn.pad_sequence([item[key] for item in items], True, fills[key])
        for key in items[0]
    }


def count(labels, kind):
    """Labels that a mean counts."""
    return int(((labels[..., 1:] if kind == "shifted" else labels) != -100).sum())


def plain(model, rows, kind, weights=None):
    """Gradient of the mean over labels, row by row."""
    total = {name: 0.0 for name, _ in model.named_parameters()}
    mass = 0.0
    for i, row in enumerate(rows):
        weight = 1.0 if weights is None else float(weights[i])
        n = weight * count(row["labels"], kind)
        if not n:
            continue
        loss = model(**collate([row]))["loss"]
        named = list(model.named_parameters())
        grads = torch.autograd.grad(loss, [p for _, p in named])
        for (name, _), g in zip(named, grads, strict=True):
            total[name] = total[name] + n * g
        mass += n
    return {name: t / mass for name, t in total.items()}


def assert_close(found, wanted, rtol=1e-12):
    assert found.keys() == wanted.keys()
    size = max(float(t.norm()) for t in wanted.values())
    for name, tensor in wanted.items():
        assert float((found[name] - tensor).norm()) <= rtol * size, name


def gradient(model, rows, weights=None, size=4, **options):
    loader = DataLoader(rows, batch_size=size, collate_fn=collate)
    return adapt(model, Data(loader, None, weights), Options(params="all", **options)).gradient()


@pytest.mark.parametrize("size", [1, 4, 50])
@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("kind", ["shifted", "aligned"])
def test_the_mean_is_over_labels(kind, ragged, size):
    rows, model = samples(ragged=ragged), Model(kind)
    found = gradient(model, rows, size=size)
    assert_close(found.value, plain(model, rows, kind))


@pytest.mark.parametrize("kind", ["shifted", "aligned"])
def test_rows_have_weights_beside_their_labels(kind):
    rows, model = samples(), Model(kind)
    weights = np.random.default_rng(1).integers(0, 4, len(rows)).astype(float)
    found = gradient(model, rows, weights)
    assert_close(found.value, plain(model, rows, kind, weights))
    assert found.n_rows == len(rows)
    # Rounding is of about the size that it has with equal weights.
    assert 0.1 < found.scale / gradient(model, rows).scale < 10


@pytest.mark.parametrize("out", ["weights", "labels"])
def test_a_batch_whose_rows_count_with_one_weight_or_not_at_all(out):
    rows, model = samples(), Model("aligned")
    weights = np.full(len(rows), 0.5)
    weights[::3] = 0.0 if out == "weights" else 2.0
    for row in rows[::3] if out == "labels" else []:
        row["labels"][:] = -100
    found = gradient(model, rows, weights)
    assert_close(found.value, plain(model, rows, "aligned", weights))
    assert found.n_rows == len(rows)


def test_outputs_of_a_model_that_returns_its_loss_first():
    problem = adapt(Model(), Data(samples(ragged=False), None), Options())
    with pytest.raises(ValueError, match="Expected outputs of Model with one entry per row"):
        problem.outputs(problem.params)


def test_a_batch_without_labels_adds_nothing():
    rows, model = samples(), Model()
    for row in rows[4:8]:
        row["labels"][:] = -100
    assert_close(gradient(model, rows).value, plain(model, rows, "shifted"))


def test_batches_may_hold_what_is_no_tensor():
    """Names of rows and settings, as collate functions add them."""

    class Named(Model):
        def forward(self, input_ids, labels=None, names=None, strict=False):
            assert len(names) == len(input_ids)
            assert strict
            return super().forward(input_ids, labels)

    def named(items):
        return {**collate(items), "names": [str(len(item)) for item in items], "strict": True}

    rows, model = samples(), Named()
    loader = DataLoader(rows, batch_size=4, collate_fn=named)
    problem = adapt(model, Data(loader, None), Options(params="all"))
    assert "mean over labels" in problem.loss_name
    assert_close(problem.gradient().value, plain(Model(), rows, "shifted"))


def test_a_last_batch_of_one_row_stays_alone():
    """Of another width than the one before it, and with the weight that it had in training."""
    rows, model = samples(21), Model("aligned", ignored=0)
    loader = DataLoader(rows, batch_size=4, collate_fn=lambda items: collate(items, 0))
    for row in rows:
        row["labels"][row["labels"] == -100] = 0
    losses = [model(**batch)["loss"] for batch in loader]
    named = list(model.named_parameters())
    sizes = torch.tensor([4.0, 4, 4, 4, 4, 1], dtype=torch.float64) / 21
    grads = torch.autograd.grad((torch.stack(losses) * sizes).sum(), [p for _, p in named])
    problem = adapt(model, Data(loader, None), Options(params="all"))
    assert "batch by batch" in problem.loss_name
    wanted = {name: g for (name, _), g in zip(named, grads, strict=True)}
    assert_close(problem.gradient().value, wanted)


def test_a_single_number_for_each_row_counts_as_one():
    class Classifier(Model):
        def forward(self, input_ids, labels=None):
            logits = self.head(self.embedding(input_ids).mean(1))
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    rows = [{**row, "labels": torch.tensor(i % 3)} for i, row in enumerate(samples(ragged=False))]
    rows[2]["labels"] = torch.tensor(-100)
    model = Classifier()
    named = list(model.named_parameters())
    ids = torch.stack([row["input_ids"] for row in rows])
    labels = torch.stack([row["labels"] for row in rows])
    grads = torch.autograd.grad(
        model(ids, labels)["loss"], [p for _, p in named], allow_unused=True
    )
    wanted = {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named, grads, strict=True)
    }
    loader = DataLoader(rows, batch_size=4)
    found = adapt(model, Data(loader, None), Options(params="all")).gradient()
    assert_close(found.value, wanted)


@pytest.mark.parametrize("given", ["dicts", "loader", "dict of tensors"])
def test_batches_come_as_dicts(given):
    rows, model = samples(ragged=False), Model()
    X, y = {
        "dicts": (rows, None),
        "loader": (DataLoader(rows, batch_size=5), None),
        "dict of tensors": (
            {"input_ids": torch.stack([row["input_ids"] for row in rows])},
            torch.stack([row["labels"] for row in rows]),
        ),
    }[given]
    found = adapt(model, Data(X, y), Options(params="all")).gradient()
    assert_close(found.value, plain(model, rows, "shifted"))


@pytest.mark.parametrize("model", [Model("rows"), Model("aligned", ignored=0)], ids=["rows", "pad"])
def test_a_mean_over_something_else_is_not_taken_for_one_over_labels(model):
    """Over rows, or over labels that another number leaves out: batches as they were trained."""
    rows = samples(20, masked=False)

    def filled(items):
        return collate(items, 0 if model.ignored == 0 else -100)

    loader = DataLoader(rows, batch_size=4, collate_fn=filled)
    problem = adapt(model, Data(loader, None), Options(params="all"))
    assert "labels" not in problem.loss_name
    named = list(model.named_parameters())
    losses = [model(**batch)["loss"] for batch in loader]
    grads = torch.autograd.grad(sum(losses) / len(losses), [p for _, p in named])
    wanted = {name: g for (name, _), g in zip(named, grads, strict=True)}
    assert_close(problem.gradient().value, wanted)


def test_tied_weights_count_once_and_frozen_ones_not():
    model = Model()
    model.blocks[0].requires_grad_(False)
    X = DataLoader(samples(), batch_size=4, collate_fn=collate)
    problem = adapt(model, Data(X, None), Options(params="decay"))
    assert list(problem.params) == [
        "embedding.weight", "blocks.1.qkv.weight", "blocks.1.mlp.weight",
    ]  # fmt: skip
    assert all("blocks.0" not in name for name in problem.left_out)


def test_decay_leaves_out_matrices_of_normalization_layers():
    net = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm((1, 6)), nn.Linear(6, 1)).double()
    X, y = torch.randn(9, 1, 6).double(), torch.randn(9, 1, 1).double()
    chosen = {
        spec: list(adapt(net, Data(X, y), Options(loss="mse", params=spec)).params)
        for spec in ("decay", "weights")
    }
    assert chosen["decay"] == ["0.weight", "2.weight"]
    assert "1.weight" in chosen["weights"]


def test_decay_of_a_linear_model_and_of_a_reduced_recording():
    X, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20.0)
    problem = adapt(Ridge().fit(X, y), Data(X, y), Options(params="decay"))
    assert (list(problem.params), problem.left_out) == (["coef"], ("intercept",))
    net = nn.Sequential(nn.LayerNorm((1, 3)), nn.Linear(3, 1)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.03)
    given = {"families": ["weight_decay"], "reference": "applied", "params": "decay"}
    with record(net, optimizer, **given) as path:
        for _ in range(4):
            optimizer.zero_grad()
            net(torch.tensor(X)[:, None]).square().mean().backward()
            optimizer.step()
    est = ImplicitRegularizationEstimator(
        net, family="weight_decay", mode="trajectory", trajectory=path.trajectory,
        reference="applied", loss="mse", params="decay",
    ).fit(X[:, None], y[:, None, None])  # fmt: skip
    assert est.n_equations_ == 3
    np.testing.assert_allclose(est.coef_, 0.03, rtol=1e-10)


def recorded(decays, n_epochs=3, accumulated=2):
    """AdamW with a decay for each block, on losses divided by the labels of a step."""
    model, rows = Model(), samples(24)
    groups = [
        {
            "params": [p for n, p in model.named_parameters() if n.startswith(start)],
            "weight_decay": w,
        }
        for start, w in decays.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    batches = list(DataLoader(rows, batch_size=3, collate_fn=collate))
    with record(model, optimizer) as path:
        for _ in range(n_epochs):
            for start in range(0, len(batches), accumulated):
                step = batches[start : start + accumulated]
                counts = [count(batch["labels"], "shifted") for batch in step]
                optimizer.zero_grad()
                for batch, n in zip(step, counts, strict=True):
                    path.batch(batch, accumulate=True, weight=n / sum(counts))
                    (model(**batch)["loss"] * (n / sum(counts))).backward()
                optimizer.step()
            path.epoch()
    return model, DataLoader(rows, batch_size=3, collate_fn=collate), path.trajectory


DECAYS = {"embedding": 0.03, "blocks.0": 0.02, "blocks.1": 0.05}


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_decay_for_each_block(accumulated):
    model, X, trajectory = recorded(DECAYS, accumulated=accumulated)
    est = ImplicitRegularizationEstimator(
        model, family="weight_decay", mode="trajectory", trajectory=trajectory,
        reference="batch", params="all", group_by="block",
    ).fit(X)  # fmt: skip
    assert est.term_names_ == [f"weight_decay[{name}]" for name in DECAYS]
    np.testing.assert_allclose(est.coef_, list(DECAYS.values()), rtol=1e-10)
    assert "times L" not in str(est.summary())


def test_groups_by_type():
    params = {name: p.detach() for name, p in Model().named_parameters()}
    terms = L2().per("type").terms(params, None)
    assert list(terms) == [
        "l2[embedding]", "l2[blocks.norm]", "l2[blocks.qkv]", "l2[blocks.mlp]",
    ]  # fmt: skip
    both = [params[f"blocks.{i}.qkv.{own}"] for i in range(2) for own in ("weight", "bias")]
    assert float(terms["l2[blocks.qkv]"]) == pytest.approx(
        float(sum(t.square().sum() for t in both))
    )


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("transformer.h.3.attn.c_attn.weight", "transformer.h.3", "transformer.h.attn.c_attn"),
        ("layers.1.experts.7.w", "layers.1", "layers.experts"),
        ("wte.weight", "wte", "wte"),
        ("0.weight", "0", "weight"),
        ("conv1.weight", "conv1", "conv1"),
        ("scale", "scale", "scale"),
        ("h.2.parametrizations.weight.original0", "h.2", "h"),
    ],
)
def test_names_of_groups(name, block, kind):
    params = {name: torch.ones(2)}
    assert list(L2().per("block").terms(params, None)) == [f"l2[{block}]"]
    assert list(L2().per("type").terms(params, None)) == [f"l2[{kind}]"]


def test_attention_has_second_derivatives():
    """The gradient of R = |grad L|^2 against differences of it."""
    model, rows = Model(), samples(6, ragged=False)
    X = DataLoader(rows, batch_size=6, collate_fn=collate)
    problem = adapt(model, Data(X, None), Options(params="all"))
    g = problem.gradient().value
    found, step = problem.hvp(g), 1e-5
    for name in ("blocks.0.qkv.weight", "embedding.weight"):
        ends = [
            problem.at({n: t + s * g[n] for n, t in problem.params.items()}).gradient().value[name]
            for s in (step, -step)
        ]
        torch.testing.assert_close(
            found[name], (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize("family", [GradientNorm(), BatchGradientNorm(batch_size=4)], ids=str)
def test_families_of_gradients_pass_attention(family):
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    net = nn.Sequential(model, nn.Flatten(), nn.Linear(24, 1).double())
    torch.manual_seed(0)
    X, y = torch.randn(12, 3, 8).double(), torch.randn(12, 1).double()
    est = ImplicitRegularizationEstimator(net, family=family, loss="mse").fit(X, y)
    assert np.isfinite(est.coef_).all()


class Encoder(nn.Module):
    """Layers of torch, whose fast path of evaluation has no derivatives."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, VOCABULARY)
        self.double()

    def forward(self, input_ids, labels=None):
        hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=input_ids == 0)
        logits = self.head(hidden)
        if labels is None:
            return {"logits": logits}
        full = nn.functional.pad(labels, (0, logits.shape[1] - labels.shape[1]), value=-100)
        kept = full[:, : logits.shape[1]]
        return {"loss": cross_entropy(logits.transpose(1, 2), kept), "logits": logits}


@pytest.mark.parametrize("training", [False, True])
def test_layers_of_torch_with_rows_that_are_filled_up(training):
    """The evaluation state, whose masks leave the filling out, in first and second derivatives."""
    model, rows = Encoder().eval(), samples(9)
    wanted = plain(model, rows, "aligned")
    model.train(training)
    X = DataLoader(rows, batch_size=4, collate_fn=collate)
    problem = adapt(model, Data(X, None), Options(params="all"))
    g = problem.gradient().value
    assert_close(g, wanted)
    found, step, name = problem.hvp(g), 1e-5, "encoder.layers.0.self_attn.in_proj_weight"
    ends = [
        problem.at({n: t + s * g[n] for n, t in problem.params.items()}).gradient().value[name]
        for s in (step, -step)
    ]
    difference = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(found[name], difference, rtol=1e-5, atol=1e-8)
    assert model.training == training
