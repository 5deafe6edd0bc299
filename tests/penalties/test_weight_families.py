"""Families on weights: formulas by hand, kinks, groups, centers, bad input."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sklearn_implicitreg import penalties
from sklearn_implicitreg.penalties import (
    EWC,
    FAMILIES,
    L1,
    L2,
    L21,
    MCP,
    SCAD,
    Coherence,
    GroupLasso,
    LayerBalance,
    LogCosh,
    LogPenalty,
    MaxNorm,
    Orthogonality,
    PreconditionedL2,
    RowNormVariance,
    check_penalty,
)

SHAPES = {
    "conv.weight": (4, 2, 3, 3), "conv.bias": (4,), "attn.in_proj_weight": (12, 4),
    "fc.weight": (3, 6), "fc.bias": (3,), "scale": (),
}  # fmt: skip


def tensors(shapes=SHAPES, seed=0):
    torch.manual_seed(seed)
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


MATRICES = ("conv.weight", "attn.in_proj_weight", "fc.weight")
CENTER = tensors(seed=1)
WEIGHTS = {name: t.square() for name, t in CENTER.items()}
WITH_ARGUMENTS = {
    "log": LogPenalty(eps=0.3),
    "log_cosh": LogCosh(scale=0.3),
    "scad": SCAD(lam=0.4),
    "mcp": MCP(lam=0.4),
    "l1_center": L1(center=CENTER),
    "l2_center": L2(center=CENTER),
    "ewc": EWC(center=CENTER, weights=WEIGHTS),
    "preconditioned_l2": PreconditionedL2(WEIGHTS, eps=1e-3),
    "columns": GroupLasso("columns"),
    "filters": GroupLasso("filters"),
    "heads": GroupLasso("heads", n_heads=2).on(r"in_proj|conv"),
    "layers": GroupLasso("layers"),
}


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
class TestWithArguments:
    def test_keeps_the_contract(self, name):
        penalty, params = WITH_ARGUMENTS[name], tensors()
        check_penalty(penalty, params)
        params["conv.weight"][:, 1] = 0.0
        params["fc.weight"][1] = 0.0
        params["fc.bias"][0] = 0.0
        check_penalty(penalty, params)

    def test_clone_and_pickle(self, name):
        penalty, params = WITH_ARGUMENTS[name], tensors()
        for other in (clone(penalty), pickle.loads(pickle.dumps(penalty))):
            assert repr(other) == repr(penalty)
            assert other.terms(params, None) == penalty.terms(params, None)

    def test_repr_is_short(self, name):
        assert len(repr(WITH_ARGUMENTS[name])) < 80


EMPTY = ["group_lasso", "max_norm", "row_norm_variance", "coherence", "orthogonality"]


@pytest.mark.parametrize("name", EMPTY)
def test_scalars_and_empty_tensors(name):
    check_penalty(FAMILIES[name](), {"s": torch.tensor(2.0), "e": torch.ones(0, 3), **tensors()})


def by_loops(w):
    """Values of the families on one matrix, entry by entry."""
    m, n = w.shape
    rows = [sum(w[i, j] ** 2 for j in range(n)) for i in range(m)]
    total, mean = sum(rows), sum(rows) / m
    dots = {(j, k): sum(w[i, j] * w[i, k] for i in range(m)) for j in range(n) for k in range(n)}
    sides = [w[i] for i in range(m)] if m <= n else [w[:, j] for j in range(n)]
    grams = itertools.product(range(len(sides)), repeat=2)
    return {
        "row_norm_variance": np.var([r / mean for r in rows]),
        "coherence": sum(d**2 for (j, k), d in dots.items() if j != k) / total**2,
        "orthogonality": sum((sides[i] @ sides[k] - (i == k)) ** 2 for i, k in grams),
        "max_norm": max(rows) ** 0.5,
        "group_lasso": sum(r**0.5 for r in rows),
        "l1_squared": np.abs(w).sum() ** 2,
        "l1_over_l2": np.abs(w).sum() / total**0.5,
    }


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 4), (4, 1), (4, 2, 3, 2)], ids=str)
def test_values_of_matrices(shape):
    w, other = np.random.default_rng(0).normal(size=(2, *shape))
    expected = by_loops(w.reshape(len(w), -1))
    beside = by_loops(other.reshape(len(w), -1))
    params = {"a": torch.tensor(w), "b": torch.tensor(other)}
    for name, own in expected.items():
        found = float(FAMILIES[name]().terms(params, None)[name])
        assert found == pytest.approx(own + beside[name], rel=1e-12), name


def test_layer_balance_is_the_variance_of_log_norms():
    params = tensors()
    logs = [np.log(np.linalg.norm(params[name].numpy())) for name in MATRICES]
    found = LayerBalance().terms(params, None)["layer_balance"]
    assert float(found) == pytest.approx(np.var(logs), rel=1e-12)


def test_vectors_are_left_out_of_matrix_families():
    params = tensors()
    only = {name: params[name] for name in MATRICES}
    for penalty in (MaxNorm(), RowNormVariance(), Coherence(), Orthogonality(), LayerBalance()):
        assert penalty.terms(params, None) == penalty.terms(only, None)
        assert [leaf.names for leaf in penalty.leaves(params, None)] == [MATRICES]


@pytest.mark.parametrize(
    ("penalty", "slope"),
    [
        (SCAD(lam=0.4, a=3.0), lambda t: 0.4 if t <= 0.4 else max(1.2 - t, 0) / 2),
        (MCP(lam=0.4, gamma=2.0), lambda t: max(0.4 - t / 2, 0)),
        (LogPenalty(eps=0.3), lambda t: 1 / (0.3 + t)),
        (LogCosh(scale=0.3), lambda t: np.tanh(t / 0.3) / 0.3),
    ],
    ids=["scad", "mcp", "log", "log_cosh"],
)
def test_values_are_integrals_of_slopes(penalty, slope):
    """The slopes are those of the papers; a value is the integral from zero."""
    for end in (0.2, 0.5, 1.0, 3.0):
        grid = np.linspace(0, end, 40001)
        middle = (grid[1:] + grid[:-1]) / 2
        integral = sum(slope(t) for t in middle) * (grid[1] - grid[0])
        (value,) = penalty.terms({"w": torch.tensor([-end], dtype=torch.float64)}, None).values()
        assert float(value) == pytest.approx(integral, rel=1e-6)


def test_log_cosh_does_not_overflow():
    found = LogCosh(scale=1e-3).terms({"w": torch.tensor([50.0]).double()}, None)["log_cosh"]
    assert float(found) == pytest.approx(50e3 - np.log(2), rel=1e-14)


@pytest.mark.parametrize(
    "penalty", ["coherence", "row_norm_variance", "l1_over_l2", "layer_balance"]
)
def test_scale_invariant(penalty):
    penalty, params = FAMILIES[penalty](), tensors()
    (value,) = penalty.terms(params, None).values()
    (scaled,) = penalty.terms({n: 7.0 * t for n, t in params.items()}, None).values()
    assert float(scaled) == pytest.approx(float(value), rel=1e-12)


class TestGroups:
    def test_l21_is_the_group_lasso_of_columns(self):
        params = tensors()
        expected = GroupLasso("columns").terms(params, None)["group_lasso"]
        assert L21().terms(params, None)["l21"] == expected
        assert L21().get_params() == {} and repr(L21()) == "L21()"

    def test_heads(self):
        params = tensors()
        w = params["attn.in_proj_weight"].numpy().reshape(3, 2, 2, 4)
        expected = sum(np.linalg.norm(w[:, head]) for head in range(2))
        found = GroupLasso("heads", n_heads=2).on("in_proj").terms(params, None)["group_lasso"]
        assert float(found) == pytest.approx(expected, rel=1e-12)
        own = {"q.weight": params["attn.in_proj_weight"]}
        expected = sum(float(own["q.weight"][6 * head :][:6].norm()) for head in range(2))
        found = GroupLasso("heads", n_heads=2).terms(own, None)["group_lasso"]
        assert float(found) == pytest.approx(expected, rel=1e-12)

    def test_layers_and_filters(self):
        params = tensors()
        found = GroupLasso("layers").terms(params, None)["group_lasso"]
        assert float(found) == pytest.approx(sum(float(t.norm()) for t in params.values()))
        found = GroupLasso("filters").terms(params, None)["group_lasso"]
        assert float(found) == pytest.approx(sum(float(f.norm()) for f in params["conv.weight"]))

    def test_small_groups_count_as_zero(self):
        w = torch.tensor([[3.0, 4.0], [0.0, 0.04], [0.0, 0.06], [0.0, 0.0]])
        kept = {0.0: [0, 1, 2], 0.01: [0, 2], 0.1: [0]}
        for tol, rows in kept.items():
            smooth = GroupLasso("rows", tol=tol).smooth("w", w)
            assert torch.nonzero(smooth.all(1)).reshape(-1).tolist() == rows
            assert torch.equal(smooth.all(1), smooth.any(1))

    def test_beside_a_small_group_the_slope_is_that_of_the_step(self):
        w = torch.tensor([[3.0, 4.0], [0.01, 0.0]], dtype=torch.float64)
        step = 1e-100 * torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        slope = GroupLasso("rows").beside("w", w, step)["group_lasso"]
        torch.testing.assert_close(slope, torch.tensor([[0.6, 0.8], [0.0, 1.0]]).double())

    def test_rows_that_share_the_largest_norm(self):
        w = torch.tensor([[3.0, 4.0], [5.0, 1e-4], [0.0, 1.0]], dtype=torch.float64)
        assert MaxNorm().smooth("w", w).all(1).tolist() == [False, False, True]
        assert MaxNorm(tol=0.0).smooth("w", w).all()
        slope = MaxNorm().beside("w", w, torch.zeros_like(w))["max_norm"]
        torch.testing.assert_close(slope.norm(dim=1), torch.tensor([1.0, 1.0, 0.0]).double())


class TestNames:
    PARAMS = {"w": torch.tensor([[3.0, 4.0]], dtype=torch.float64)}
    AT = {"w": [[1.0, 1.0]]}

    @pytest.mark.parametrize(
        ("penalty", "names"),
        [
            (L2(center=AT) + L2(center=AT, name="swa"), ["l2_center", "l2_swa"]),
            (L1() + L1(center=AT) + L1(center=AT, name="b"), ["l1", "l1_center", "l1_b"]),
            (EWC(AT, AT) + EWC(AT, AT, name="b"), ["ewc", "ewc_b"]),
            (L2(name="unused"), ["l2"]),
        ],
        ids=["l2", "l1", "ewc", "none"],
    )
    def test_terms(self, penalty, names):
        assert list(penalty.terms(self.PARAMS, None)) == names

    def test_same_names(self):
        with pytest.raises(ValueError, match=r"Expected terms of different names, got \['l2_c"):
            (L2(center=self.AT) + L2(center=self.AT)).terms(self.PARAMS, None)

    def test_repr(self):
        assert repr(L1(self.AT, name="swa")) == "L1(center=<dict>, name='swa')"
        assert repr(EWC(self.AT, self.AT)) == "EWC(center=<dict>, weights=<dict>)"


class TestOfOptimizer:
    def trained(self, make, **options):
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        optimizer = make(net.parameters(), lr=0.01, **options)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(5, 3)).square().mean().backward()
            optimizer.step()
        return net, optimizer

    @pytest.mark.parametrize("amsgrad", [False, True])
    def test_second_moments_without_their_bias(self, amsgrad):
        net, optimizer = self.trained(torch.optim.AdamW, amsgrad=amsgrad, eps=1e-5)
        penalty = PreconditionedL2.of(optimizer, net)
        assert penalty.eps == 1e-5
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        optimizer.zero_grad()
        (10 * sum(p.sum() for p in net.parameters())).backward()
        for name, p in net.named_parameters():
            state = optimizer.state[p]
            key = "max_exp_avg_sq" if amsgrad else "exp_avg_sq"
            expected = state[key] / (1 - 0.999**3)
            torch.testing.assert_close(penalty.v[name], expected)
        kept = {name: v.clone() for name, v in penalty.v.items()}
        optimizer.step()
        assert all(torch.equal(penalty.v[name], v) for name, v in kept.items())
        assert any(bool((p != before[name]).any()) for name, p in net.named_parameters())

    @pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adagrad], ids=["sgd", "adagrad"])
    def test_others(self, make):
        net, optimizer = self.trained(make)
        with pytest.raises(ValueError, match="Expected an optimizer such as AdamW, after steps"):
            PreconditionedL2.of(optimizer, net)

    def test_another_module_or_no_step(self):
        net, optimizer = self.trained(torch.optim.AdamW)
        with pytest.raises(ValueError, match="with 0 second moments"):
            PreconditionedL2.of(optimizer, nn.Linear(3, 2))
        with pytest.raises(ValueError, match="with 0 second moments"):
            PreconditionedL2.of(torch.optim.AdamW(net.parameters()), net)
        with pytest.raises(ValueError, match=r"Expected optimizer of .*got None"):
            PreconditionedL2.of(None, net)


AT = {"w": np.ones((2, 2)), "b": np.ones(2)}
PARAMS = {"w": torch.ones(2, 2), "b": torch.ones(2)}
ONE = {"w": torch.ones(2, 2)}
VECTOR = {"b": torch.ones(3)}
BAD = {
    "eps": (LogPenalty(eps=0), PARAMS, "Expected eps of LogPenalty to be a finite number > 0"),
    "scale": (LogCosh(scale=-1), PARAMS, "Expected scale of LogCosh to be a finite number > 0"),
    "lam": (SCAD(lam="a"), PARAMS, "lam of SCAD to be a finite number > 0 or 'fit', got 'a'"),
    "a": (SCAD(lam=1, a=2), PARAMS, "Expected a of SCAD to be a finite number > 2"),
    "gamma": (MCP(lam=1, gamma=1), PARAMS, "Expected gamma of MCP to be a finite number > 1"),
    "by": (GroupLasso("cols"), PARAMS, "Expected by of GroupLasso to be 'rows', 'columns'"),
    "tol": (GroupLasso(tol=1), PARAMS, "Expected tol of GroupLasso .*>= 0 and < 1"),
    "max tol": (MaxNorm(tol=-1), PARAMS, "Expected tol of MaxNorm .*>= 0 and < 1"),
    "n_heads": (GroupLasso("heads"), PARAMS, "Expected n_heads with by='heads'"),
    "heads of rows": (GroupLasso("rows", 2), PARAMS, "Expected n_heads with by='heads'"),
    "divides": (GroupLasso("heads", 3), PARAMS, "rows that n_heads=3 divides, got 2 in 'w'"),
    "packed": (
        GroupLasso("heads", 2),
        {"in_proj_weight": torch.ones(9, 3)},
        "rows that n_heads=2 divides, got 9 in 'in_proj_weight'",
    ),
    "no kernel": (GroupLasso("filters"), PARAMS, "Expected a tensor of 3 or more axes"),
    "no head": (GroupLasso("heads", 1), VECTOR, "Expected a tensor of 2 or more axes"),
    "no matrix": (Coherence(), VECTOR, r"2 or more axes in the scope of Coherence, .*\(3,\)"),
    "none for balance": (LayerBalance(), VECTOR, "2 or more axes in the scope of LayerBalance"),
    "one layer": (LayerBalance(), ONE, r"Expected two or more matrices .*got \['w'\]"),
    "zero layer": (
        LayerBalance(),
        {"a": torch.zeros(2, 2), "b": torch.ones(1, 2)},
        r"Expected matrices that are not zero for LayerBalance, got zeros in \['a'\]",
    ),
    "per layer": (LayerBalance().per("layer"), ONE, "Expected two or more matrices"),
    "center": (L1(center=3.0), PARAMS, "Expected center of L1 to be .*got 3.0"),
    "center shape": (L1(center=AT | {"b": [1.0]}), PARAMS, r"a center of shape \(2,\) for 'b'"),
    "center name": (EWC({"w": AT["w"]}, AT), PARAMS, r"Expected a center for .*\['b'\] missing"),
    "center nan": (L2(center=AT | {"b": [1, np.nan]}), PARAMS, "a center for 'b' that is finite"),
    "no center": (EWC(None, AT), PARAMS, "Expected center of EWC to be"),
    "name": (L2(center=AT, name=3), PARAMS, "Expected name of L2 to be"),
    "weights": (EWC(AT, AT | {"b": [1.0, -1.0]}), PARAMS, "a weight of EWC to be >= 0, got -1.0"),
    "weights shape": (EWC(AT, AT | {"b": 1.0}), PARAMS, r"a weight of EWC of shape \(2,\) for 'b'"),
    "weights kind": (EWC(AT, 3), PARAMS, "Expected weights of EWC to be a dict"),
    "v": (PreconditionedL2(AT | {"b": [-1, 1]}), PARAMS, "moment of the gradient to be >= 0"),
    "v missing": (PreconditionedL2({}), PARAMS, "Expected a second moment of the gradient for"),
    "v eps": (PreconditionedL2(AT, eps=-1), PARAMS, "Expected eps of PreconditionedL2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    penalty, params, text = BAD[case]
    with pytest.raises(ValueError, match=text):
        penalty.terms(params, None)


def test_all_are_public():
    named = {type(p).__name__ for p in WITH_ARGUMENTS.values()} - {"Scoped"}
    assert named <= set(penalties.__all__)
