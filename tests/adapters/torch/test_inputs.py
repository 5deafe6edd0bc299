"""Models that torch trains as they are: graphs, integers, nested inputs and outputs."""

import collections
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from module_cases import X_, Y_, N, P, by_hand, estimate, l2
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

G = torch.Generator().manual_seed(0)
X, Y = torch.as_tensor(X_), torch.as_tensor(Y_)[:, None]
IDS = torch.randint(0, 5, (N,), generator=G)
COUNTS = torch.randint(0, 4, (N, 2), generator=G)
EDGES = torch.randint(0, N, (2, 3 * N), generator=G)
RING = torch.stack([torch.arange(N), (torch.arange(N) + 1) % N])
SEQUENCES = [torch.randn(int(k), P, generator=G).double() for k in IDS + 1]
Pair = collections.namedtuple("Pair", "left right")


class Made(nn.Module):
    """A net of a function of its layers and inputs."""

    def __init__(self, function, **layers):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({name: layer.double() for name, layer in layers.items()})
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(self.layers, *args, **kwargs)


class Takes(Made):
    """The same with one argument."""

    def forward(self, batch):
        return self.function(self.layers, batch)


def summed(x, edges):
    return x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]) / 3


def graph(layers, x, edges):
    return layers["b"](summed(torch.tanh(layers["a"](summed(x, edges))), edges))


def gcn(function=graph):
    return Made(function, a=nn.Linear(P, 4), b=nn.Linear(4, 1))


def expected(model, *args, value=None):
    output = model(*args) if value is None else value
    return by_hand(model, F.mse_loss(output, Y) if value is None else value, [l2])


def check(model, data, want, **options):
    found = estimate(model, *data, **options).coef_
    np.testing.assert_allclose(found, want, rtol=1e-9)


class TestGraphs:
    @pytest.mark.parametrize("as_given", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
    @pytest.mark.parametrize("loss", ["mse", lambda o, t: F.mse_loss(o, t)], ids=["name", "own"])
    def test_edges_of_another_length(self, as_given, loss):
        model = gcn()
        data = ((as_given(X), as_given(EDGES)), as_given(Y))
        check(model, data, expected(model, X, EDGES), loss=loss)

    def test_as_one_item_of_a_loader(self):
        model = gcn()
        loader = DataLoader([((X, EDGES), Y)], batch_size=None)
        check(model, (loader,), expected(model, X, EDGES))

    @pytest.mark.parametrize("as_given", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
    def test_as_many_edges_as_nodes(self, as_given):
        model = gcn(lambda layers, x, edges: graph(layers, x, edges.T))
        data = ((as_given(X), as_given(RING.T)), Y)
        check(model, data, expected(model, X, RING.T))

    @pytest.mark.parametrize("kept", [torch.Tensor.to_dense, torch.Tensor.to_sparse])
    def test_adjacency_matrix(self, kept):
        A = torch.zeros(N, N, dtype=torch.float64)
        A[EDGES[0], EDGES[1]] = 0.5
        model = gcn(lambda layers, x, A: layers["b"](torch.tanh(A @ layers["a"](A @ x))))
        check(model, ((X, kept(A)), Y), expected(model, X, A))

    def test_loss_on_some_of_the_nodes(self):
        model, known = gcn(), (np.arange(N) < 25).astype(float)
        value = F.mse_loss(model(X, EDGES)[:25], Y[:25])
        for loss in ("mse", lambda o, t: F.mse_loss(o, t)):
            check(model, ((X, EDGES), Y, known), expected(model, value=value), loss=loss)

    def test_rounding_is_known(self):
        model = Made(lambda m, x, edges: m["a"](summed(x, edges)), a=nn.Linear(P, 1, bias=False))
        with torch.no_grad():  # trained without a penalty
            best = torch.linalg.lstsq(summed(X, EDGES), Y).solution
            model.layers["a"].weight.copy_(best.T)
        assert estimate(model, (X, EDGES), Y).verdict_ == "no signal"

    def test_a_part_of_the_nodes(self):
        model = gcn()
        est = estimate(model, (X, EDGES), Y)
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            estimate(model, (X[:3], EDGES), Y)
        assert est.score((X, EDGES), Y) == pytest.approx(est.r2_)


class TestIntegers:
    @pytest.mark.parametrize("as_given", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
    @pytest.mark.parametrize(
        ("function", "layer", "inputs"),
        [
            (lambda m, x: m["f"](F.one_hot(x, 5).double()), nn.Linear(5, 1), IDS),
            (lambda m, s, a: m["f"](s).gather(1, a[:, None]), nn.Linear(P, 5), (X, IDS)),
            (lambda m, s, a: m["f"](s)[torch.arange(len(a)), a, None], nn.Linear(P, 5), (X, IDS)),
            (lambda m, a: m["f"].weight.sum(1)[a, None], nn.Linear(4, 5, bias=False), IDS),
            (lambda m, c: m["f"](c), nn.Linear(2, 1), COUNTS),
            (lambda m, a, c: m["f"](torch.cat([F.one_hot(a, 5), c], 1).double()),
             nn.Linear(7, 1), (IDS, COUNTS)),
            (lambda m, a, c: m["f"](a) + m["f"].weight[0, 0] * (c @ m["f"].weight[:1, :2].T),
             nn.Embedding(5, 2), (IDS, COUNTS)),
        ],
        ids=["one_hot", "gather", "index", "rows of a weight", "counts", "both integers",
             "embedding and counts"],
    )  # fmt: skip
    def test_kept_where_the_model_takes_them(self, as_given, function, layer, inputs):
        model = Made(function, f=layer)
        alone = isinstance(inputs, torch.Tensor)
        given = as_given(inputs) if alone else tuple(map(as_given, inputs))
        several = (inputs,) if alone else inputs
        try:
            output = model(*several)
        except RuntimeError:  # a training loop would pass floats
            output = model(*(t if t is IDS else t.double() for t in several))
        target = torch.zeros_like(output)
        want = by_hand(model, output.square().mean(), [l2])
        check(model, (given, target), want)

    def test_sparse_embeddings(self):
        model = Made(lambda m, a: m["f"](m["e"](a)), e=nn.Embedding(5, 3), f=nn.Linear(3, 1))
        want = expected(model, IDS)
        model.layers["e"].sparse = True
        check(model, (IDS, Y), want)


ITEMS = list(zip(SEQUENCES, Y, strict=True))


def last_state(layers, packed):
    return layers["f"](layers["r"](packed)[1][0])


class TestNested:
    def test_named_tuples(self):
        model = Takes(lambda m, p: m["f"](p.left) + m["g"](p.right), f=nn.Linear(2, 1),
                      g=nn.Linear(P - 2, 1))  # fmt: skip
        want = expected(model, Pair(X[:, :2], X[:, 2:]))
        items = [(Pair(x[:2], x[2:]), y) for x, y in zip(X, Y, strict=True)]
        check(model, (DataLoader(items, batch_size=7),), want)
        check(model, (Pair(X[:, :2], X[:, 2:]), Y), want)

    def test_named_tuples_whose_fields_are_arguments(self):
        class Optional(nn.Module):
            def __init__(self):
                super().__init__()
                self.f = nn.Linear(2, 1).double()

            def forward(self, left, right=None):
                return self.f(left if right is None else left + right)

        torch.manual_seed(0)
        model = Optional()
        want = expected(model, X[:, :2], X[:, 2:4])
        items = [(Pair(x[:2], x[2:4]), y) for x, y in zip(X, Y, strict=True)]
        check(model, (DataLoader(items, batch_size=7),), want)
        check(model, (Pair(X[:, :2], X[:, 2:4]), Y), want)

    def test_a_last_row_joins_the_batch_before_it(self):
        """Named tuples and packed sequences stay what they are; 40 rows in batches of 13."""

        def pairs(items):
            x, y = map(torch.stack, zip(*items, strict=True))
            return Pair(x[:, :2], x[:, 2:]), y

        def packed(items):
            sequences, y = zip(*items, strict=True)
            return pack_sequence(list(sequences), enforce_sorted=False), torch.stack(y)

        cases = [
            (lambda m, b: m["f"](m["n"](torch.cat([b.left, b.right], 1))), pairs,
             list(zip(X, Y, strict=True)), {"f": nn.Linear(P, 1)}, P),
            (lambda m, b: m["f"](m["n"](m["r"](b)[1][0])), packed, ITEMS,
             {"r": nn.GRU(P, 3, batch_first=True), "f": nn.Linear(3, 1)}, 3),
        ]  # fmt: skip
        for function, collate, items, layers, n in cases:
            model = Takes(function, n=nn.BatchNorm1d(n), **layers).train()
            parts = [collate(items[:13]), collate(items[13:26]), collate(items[26:])]
            value = sum(F.mse_loss(model(x), y, reduction="sum") for x, y in parts) / N
            want = by_hand(model, value, [l2])
            check(model, (DataLoader(items, 13, collate_fn=collate),), want)

    def test_packed_sequences(self):
        def collate(items):
            sequences = pack_sequence([x for x, _ in items], enforce_sorted=False)
            return sequences, torch.stack([y for _, y in items])

        model = Takes(last_state, r=nn.GRU(P, 3, batch_first=True), f=nn.Linear(3, 1))
        want = expected(model, collate(ITEMS)[0])
        for loss in ("mse", lambda o, t: F.mse_loss(o, t)):
            check(model, (DataLoader(ITEMS, 7, collate_fn=collate),), want, loss=loss)

    def test_a_list_of_tensors(self):
        def collate(items):
            return [x for x, _ in items], torch.stack([y for _, y in items])

        model = Takes(lambda m, xs: torch.stack([m["f"](x).mean(0) for x in xs]),
                      f=nn.Linear(P, 1))  # fmt: skip
        want = expected(model, SEQUENCES)
        check(model, (DataLoader(ITEMS, 7, collate_fn=collate),), want)

    def test_strings(self):
        texts = ["ab" * int(i + 1) for i in IDS]
        model = Takes(
            lambda m, ts: m["f"](torch.tensor([[len(t)] for t in ts], dtype=torch.float64)),
            f=nn.Linear(1, 1),
        )
        items = list(zip(texts, Y, strict=True))
        check(model, (DataLoader(items, batch_size=7),), expected(model, texts))

    def test_a_dict_as_one_argument(self):
        model = Takes(lambda m, batch: m["f"](batch["x"]), f=nn.Linear(P, 1))
        check(model, ({"x": X}, Y), expected(model, {"x": X}))

    @pytest.mark.parametrize("inputs", [(X, None), {"x": X, "mask": None}], ids=["tuple", "dict"])
    def test_none(self, inputs):
        def masked(layers, x, mask):
            return layers["f"](x if mask is None else x * mask)

        model = Made(masked, f=nn.Linear(P, 1))
        check(model, (inputs, Y), expected(model, X, None))

    def test_complex_numbers(self):
        Z = torch.complex(X, X.flip(0))
        model = Made(lambda m, z: m["f"](z.abs()), f=nn.Linear(P, 1))
        check(model, (Z, Y), expected(model, Z))
        with pytest.raises(ValueError, match="Expected real trained parameters, got complex one"):
            estimate(nn.ParameterDict({"w": nn.Parameter(Z)}), X, Y)


@dataclasses.dataclass
class Output:
    loss: torch.Tensor


class TestOutputs:
    TWO = {"a": Y, "b": Y**2}

    @staticmethod
    def both(output, target):
        return F.mse_loss(output["a"], target["a"]) + F.l1_loss(output["b"], target["b"])

    @pytest.mark.parametrize("kind", ["arrays", "loader"])
    def test_dicts(self, kind):
        def function(layers, x):
            return {"a": layers["f"](x), "b": layers["g"](x)}

        model = Made(function, f=nn.Linear(P, 1), g=nn.Linear(P, 1))
        want = expected(model, value=self.both(model(X), self.TWO))
        items = [(x, {"a": y, "b": y**2}) for x, y in zip(X, Y, strict=True)]
        data = (X, self.TWO) if kind == "arrays" else (DataLoader(items, batch_size=7),)
        check(model, data, want, loss=self.both)

    @pytest.mark.parametrize("size", ["auto", 7])
    def test_a_loss_from_forward(self, size):
        model = Made(lambda m, x, y: Output(F.mse_loss(m["f"](x), y)), f=nn.Linear(P, 1))
        want = expected(model, value=model(X, Y).loss)
        inputs = {"x": X, "y": Y}
        check(model, (inputs, Y), want, loss=lambda o, t: o.loss, batch_size=size)
