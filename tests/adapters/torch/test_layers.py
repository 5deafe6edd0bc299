"""Every kind of layer, compiled modules and batch statistics."""

import copy
import threading
import warnings
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from module_cases import (
    X_,
    Y_,
    N,
    P,
    Rows,
    bn_loss,
    bn_net,
    by_hand,
    estimate,
    fingerprint,
    l2,
    minimize,
    mlp,
    quietly_compiled,
)
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import BatchSampler, DataLoader

from sklearn_implicitreg.exceptions import ModelStateWarning


class Checkpointed(nn.Module):
    def __init__(self, n_layers, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(P, 4), nn.Linear(4, 1)
        self.inner = nn.ModuleList(nn.Linear(4, 4) for _ in range(n_layers))
        self.reentrant = reentrant

    def forward(self, x):
        x = torch.tanh(self.first(x))
        for layer in self.inner:
            x = torch.tanh(layer(x) if self.reentrant is None
                           else checkpoint(layer, x, use_reentrant=self.reentrant))  # fmt: skip
        return self.last(x)


class Tied(nn.Module):
    """A part once more, by a weak proxy."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(P, P), nn.Linear(P, 1)
        self.again = weakref.proxy(self.first)
        self.last.owner = weakref.proxy(self)

    def forward(self, x):
        return self.last(torch.tanh(self.again(torch.tanh(self.first(x)))))


class Converting(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(P, 3), nn.Linear(3, 1).double()

    def forward(self, x):
        return self.b(torch.tanh(self.a(x.float())).double())


class TestUnusualModules:
    @pytest.mark.parametrize("params", ["all", "inner"])
    @pytest.mark.parametrize("n_layers", [1, 2])
    def test_reentrant_checkpoints(self, n_layers, params):
        plain, model = (Checkpointed(n_layers, kind).double() for kind in (None, True))
        sum(p.sum() for p in model.parameters()).backward()
        before = fingerprint(model)
        expected = estimate(plain, X_, Y_, family="l2+l1", params=params)
        found = estimate(model, X_, Y_, family="l2+l1", params=params)
        np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-10)
        assert fingerprint(model) == before

    def test_weak_proxies_of_parts(self):
        model = Tied()
        X, Y = torch.as_tensor(X_).float(), torch.as_tensor(Y_)[:, None].float()
        expected = by_hand(model, F.mse_loss(model(X), Y), [l2])
        np.testing.assert_allclose(estimate(model, X, Y).coef_, expected, rtol=1e-5)

    def test_a_forward_that_converts_types(self):
        with pytest.raises(ValueError, match=r"\(float64\), got .*let forward convert to the type"):
            estimate(Converting(), X_, Y_)


class TestLayers:
    def test_frozen_parameters_give_no_equations(self):
        model = mlp()
        model[0].requires_grad_(False)
        loss = F.mse_loss(model(torch.as_tensor(X_))[:, 0], torch.as_tensor(Y_))
        est = estimate(model, X_, Y_)
        assert est.n_equations_ == 7
        np.testing.assert_allclose(est.coef_, by_hand(model, loss, [l2]), rtol=1e-11)

    def test_all_frozen(self):
        with pytest.raises(ValueError, match="Expected a model with trainable parameters, got one"):
            estimate(mlp().requires_grad_(False), X_, Y_)
        with pytest.raises(
            ValueError, match=r"got one with requires_grad=False everywhere \(or wi"
        ):
            estimate(nn.Tanh(), X_, X_)

    def test_tied_parameters_count_once(self):
        model = nn.Sequential(nn.Linear(P, P), nn.Tanh(), nn.Linear(P, P)).double()
        model[2].weight = model[0].weight
        target = np.random.default_rng(0).normal(size=(N, P))
        loss = F.mse_loss(model(torch.as_tensor(X_)), torch.as_tensor(target))
        est = estimate(model, X_, target)
        assert est.n_equations_ == P * P + 2 * P
        np.testing.assert_allclose(est.coef_, by_hand(model, loss, [l2]), rtol=1e-11)

    @pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
    def test_embeddings_take_integers(self, kind):
        ids = np.random.default_rng(0).integers(0, 11, size=(N, 3))
        table = getattr(nn, kind)(12, 4)
        middle = [nn.Flatten()] if kind == "Embedding" else []
        model = nn.Sequential(table, *middle, nn.Linear(12 if middle else 4, 1)).double()
        loss = F.mse_loss(model(torch.as_tensor(ids))[:, 0], torch.as_tensor(Y_))
        expected = by_hand(model, loss, [l2])
        for X in (ids, ids.astype(np.int32), pd.DataFrame(ids), torch.as_tensor(ids)):
            np.testing.assert_allclose(estimate(model, X, Y_).coef_, expected, rtol=1e-11)

    def test_embeddings_that_renormalize_leave_the_weights(self):
        ids = np.random.default_rng(0).integers(0, 11, size=(N, 3))
        model = nn.Sequential(nn.Embedding(12, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 1))
        before = model[0].weight.detach().clone()
        assert float(before.norm(dim=1).max()) > 0.5
        estimate(model, ids, Y_)
        assert torch.equal(model[0].weight, before)

    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    def test_recurrent(self, kind):
        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = getattr(nn, kind)(3, 4, batch_first=True, num_layers=2)
                self.out = nn.Linear(4, 1)

            def forward(self, x):
                return self.out(self.rnn(x)[0][:, -1])

        model = Last().double()
        X = np.random.default_rng(0).normal(size=(N, 6, 3))
        loss = F.mse_loss(model(torch.as_tensor(X))[:, 0], torch.as_tensor(Y_))
        est = estimate(model, X, Y_, batch_size=11)
        np.testing.assert_allclose(est.coef_, by_hand(model, loss, [l2]), rtol=1e-10)

    def test_attention_and_masks(self):
        class Small(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
                self.out = nn.Linear(4, 1)

            def forward(self, x, mask):
                return self.out(self.layer(x, src_key_padding_mask=mask)[:, 0])

        model = Small().double()
        X = np.random.default_rng(0).normal(size=(N, 5, 4))
        mask = np.zeros((N, 5), dtype=bool)
        mask[:, 3:] = True
        loss = F.mse_loss(
            model(torch.as_tensor(X), torch.as_tensor(mask))[:, 0], torch.as_tensor(Y_)
        )
        est = estimate(model, {"x": X, "mask": mask}, Y_)
        np.testing.assert_allclose(est.coef_, by_hand(model, loss, [l2]), rtol=1e-9)

    def test_convolution(self):
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 1)
        ).double()
        X = np.random.default_rng(0).normal(size=(N, 1, 5, 5))
        loss = F.mse_loss(model(torch.as_tensor(X))[:, 0], torch.as_tensor(Y_))
        found = estimate(model, X, Y_).coef_
        np.testing.assert_allclose(found, by_hand(model, loss, [l2]), rtol=1e-11)

    def test_weight_norm_penalizes_the_stored_tensors(self):
        model = nn.Sequential(weight_norm(nn.Linear(P, 6)), nn.Tanh(), nn.Linear(6, 1)).double()
        loss = F.mse_loss(model(torch.as_tensor(X_))[:, 0], torch.as_tensor(Y_))
        est = estimate(model, X_, Y_)
        np.testing.assert_allclose(est.coef_, by_hand(model, loss, [l2]), rtol=1e-10)
        stored = "0.parametrizations.weight.original0, 0.parametrizations.weight.original1"
        text = " ".join(str(est.summary()).split())
        assert f"Penalties are on the stored tensors {stored}" in text
        assert estimate(model, X_, Y_, group_by="layer").term_names_ == ["l2[0]", "l2[2]"]

    def test_weight_norm_of_the_old_kind(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model = nn.Sequential(nn.utils.weight_norm(nn.Linear(P, 1))).double()
        with torch.no_grad():
            before = [p.clone() for p in model.parameters()]
        loss = F.mse_loss(model(torch.as_tensor(X_))[:, 0], torch.as_tensor(Y_))
        est = estimate(model, X_, Y_)
        np.testing.assert_allclose(est.coef_, by_hand(model, loss, [l2]), rtol=1e-11)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert "Penalties are on the stored tensors 0.weight_g" in " ".join(
            str(est.summary()).split()
        )

    def test_cached_activations(self):
        class Caches(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.seen, self.nested = mlp(), None, []

            def forward(self, x):
                self.seen = self.inner(x)
                self.nested = [{"last": self.seen * 2}]
                return self.seen

        model = Caches()
        model(torch.as_tensor(X_))
        assert not model.seen.is_leaf
        kept, nested = model.seen, model.nested
        assert estimate(model, X_, Y_).coef_ == estimate(model.inner, X_, Y_).coef_
        assert model.seen is kept and model.nested is nested

    def test_tensors_that_are_mere_attributes(self):
        class Shifted(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.shift = mlp(torch.float32), torch.full((P,), 0.5)

            def forward(self, x):
                self.shift += 0.0
                return self.inner(x - self.shift)

        model = Shifted()
        expected = estimate(model.inner, X_ - 0.5, Y_, dtype="float64").coef_
        np.testing.assert_allclose(estimate(model, X_, Y_, dtype="float64").coef_, expected)
        assert model.shift.dtype == torch.float32

    def test_attributes_that_refuse_to_be_copied(self):
        class Locked(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.lock = mlp(), threading.Lock()

            def __deepcopy__(self, memo):
                raise AssertionError("copied")

            def forward(self, x):
                with self.lock:
                    return self.inner(x)

        model = Locked()
        assert estimate(model, X_, Y_).coef_ == estimate(model.inner, X_, Y_).coef_

    def test_scripted_modules(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model = torch.jit.script(mlp())
        with pytest.raises(TypeError, match="Expected an eager module, got a scripted one"):
            estimate(model, X_, Y_)


class TestCompiled:
    def test_wrapped(self):
        model = mlp()
        compiled = quietly_compiled(model)
        est = estimate(compiled, X_, Y_, params="auto", group_by="layer")
        assert est.term_names_ == ["l2[0]", "l2[2]"]
        np.testing.assert_array_equal(
            est.coef_, estimate(model, X_, Y_, params="auto", group_by="layer").coef_
        )
        assert "Sequential" in str(est.summary())

    def test_wrapped_within(self):
        model = mlp()
        outer = nn.Sequential(quietly_compiled(model[0]), model[1], quietly_compiled(model[2]))
        a, b = (estimate(m, X_, Y_, group_by="layer") for m in (outer, model))
        np.testing.assert_array_equal(a.coef_, b.coef_)
        assert a.term_names_ == b.term_names_
        assert a.penalty_(outer) == b.penalty_(model)

    def test_after_it_was_run(self):
        model = mlp()
        before = estimate(model, X_, Y_).coef_
        compiled = quietly_compiled(model, backend="eager")
        compiled(torch.as_tensor(X_)).sum().backward()
        assert estimate(compiled, X_, Y_).coef_ == before

    def test_in_place(self):
        """``module.compile()`` keeps a function that calls the module it was made for."""
        model = mlp()
        before = estimate(model, X_, Y_).coef_
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model.compile(backend="eager")
        assert estimate(model, X_, Y_).coef_ == before


class TestBatchNorm:
    @pytest.mark.parametrize("how", ["batch_size", "loader", "batch sampler"])
    def test_batch_statistics(self, how):
        model = bn_net()
        expected = by_hand(*bn_loss(model, 10), [l2])
        sampler = BatchSampler(range(N), 10, drop_last=False)
        data = {
            "batch_size": (X_, Y_),
            "loader": (DataLoader(Rows(X_, Y_), batch_size=10, shuffle=True), None),
            "batch sampler": (DataLoader(Rows(X_, Y_), batch_sampler=sampler), None),
        }
        options = {"batch_size": 10} if how == "batch_size" else {}
        found = estimate(model, *data[how], **options)
        np.testing.assert_allclose(found.coef_, expected, rtol=1e-10)

    def test_a_last_batch_of_one_row_joins_the_one_before(self):
        model = bn_net()
        own = copy.deepcopy(model).train()
        x, y = torch.as_tensor(X_), torch.as_tensor(Y_)
        loss = F.mse_loss(own(x[:13])[:, 0], y[:13], reduction="sum")
        loss = loss + F.mse_loss(own(x[13:27])[:, 0], y[13:27], reduction="sum")
        found = estimate(model, X_[:27], Y_[:27], batch_size=13)
        np.testing.assert_allclose(found.coef_, by_hand(own, loss / 27, [l2]), rtol=1e-10)

    def test_without_a_batch_size_it_warns(self):
        model = bn_net()
        output = model(torch.as_tensor(X_))[:, 0]
        expected = by_hand(model, F.mse_loss(output, torch.as_tensor(Y_)), [l2])
        with pytest.warns(
            ModelStateWarning, match="Give `batch_size`, the size it was trained with"
        ):
            found = estimate(model, X_, Y_)
        np.testing.assert_allclose(found.coef_, expected, rtol=1e-10)
        np.testing.assert_allclose(
            estimate(model, X_, Y_, module_mode="eval").coef_, expected, rtol=1e-10
        )

    def test_buffers_and_flags_stay(self):
        model = bn_net()
        before = {n: b.clone() for n, b in model.named_buffers()}
        for mode in ("auto", "train"):
            estimate(model, X_, Y_, batch_size=10, module_mode=mode)
        assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
        assert not any(m.training for m in model.modules())

    def test_scale_invariant_layers_are_named(self):
        est = estimate(bn_net(), X_, Y_, batch_size=10, params="auto")
        text = " ".join(str(est.summary()).split())
        assert "A normalization follows 0.weight, so that their scale" in text

    def test_l2_of_a_scale_invariant_layer_has_no_signal(self):
        est = estimate(bn_net(), X_, Y_, batch_size=10, params=r"^0\.weight")
        assert abs(est.cosine_[0]) < 1e-3
        assert est.verdict_ == "no signal"

    def test_l2_that_a_scale_invariant_layer_dominates_is_not_identifiable(self):
        """Penalized in the last layer only; the first one's scale is free and large."""
        model = bn_net().train()
        model[2] = nn.Tanh()
        X, y = torch.as_tensor(X_), torch.as_tensor(Y_)

        def objective():
            return F.mse_loss(model(X)[:, 0], y) + 0.1 * model[3].weight.square().sum()

        for _ in range(2):
            minimize(model.parameters(), objective, 1000)
            with torch.no_grad():
                model[0].weight.mul_(2 * model[3].weight.norm() / model[0].weight.norm())
        minimize(model.parameters(), objective, 1000)
        last = estimate(model, X_, Y_, batch_size=N, params=r"^3\.weight")
        assert last.coef_[0] == pytest.approx(0.1, rel=1e-3)
        both = estimate(model, X_, Y_, batch_size=N, params="auto")
        assert both.r2_ == pytest.approx(0.2, rel=1e-2)
        assert both.verdict_ == "not identifiable"
        text = " ".join(str(both.summary()).split())
        assert "does not depend on the scale of tensors that carry most" in text
        assert "(0.weight): an endpoint shows no L2 there, whatever the decay was" in text


@pytest.mark.parametrize("inside", [False, True])
def test_graph_modules(inside):
    """Each has its forward in a class of its own, which the copy is of."""
    net = mlp()
    graph = torch.fx.symbolic_trace(net)
    module = nn.Sequential(graph, nn.Identity()) if inside else graph
    est = estimate(module, X_, Y_, family="l2")
    np.testing.assert_allclose(est.coef_, estimate(net, X_, Y_, family="l2").coef_, rtol=1e-12)


def test_a_model_without_numbers():
    with torch.device("meta"):
        net = nn.Linear(P, 1)
    with pytest.raises(ValueError, match="no numbers.*on the device meta.*assign=True"):
        estimate(net, X_, Y_)


def test_inference_mode():
    net = mlp()
    with torch.inference_mode():
        untracked = mlp()
        with pytest.raises(ValueError, match=r"got torch.inference_mode\(\), .*outside of it"):
            estimate(net, X_, Y_)
    with pytest.raises(ValueError, match=r"that autograd follows, got .* torch.inference_mode"):
        estimate(untracked, X_, Y_)
