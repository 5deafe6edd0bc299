"""Losses that users write: what a few rows show them to be, and what they may not change."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from module_cases import X_, Y_, N, P, by_hand, estimate, l2, mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters.torch.criteria import resolve_loss
from sklearn_implicitreg.adapters.torch.data import Batch
from sklearn_implicitreg.adapters.torch.trial import examined
from sklearn_implicitreg.exceptions import ModelStateWarning
from sklearn_implicitreg.trajectory import record

X, Y = torch.as_tensor(X_), torch.as_tensor(Y_)[:, None]
CLASSES = torch.arange(N) % 3
IGNORED = torch.where(torch.arange(N) % 7 > 4, -100, CLASSES)
WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
THREE = torch.randn(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def net(outputs=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(P, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def contrastive(output, target):
    return F.cross_entropy(output @ target.T, torch.arange(len(output)))


def broadcast(output, target):
    return (output - target.reshape(-1)).square().mean()


def triplet(output, target):
    return F.triplet_margin_loss(output, target, target.roll(1, 0), margin=3.0)


class Focal(nn.Module):
    """With a reduction as torch's own losses have it."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, output, target):
        each = F.cross_entropy(output, target, reduction="none")
        each = (1 - torch.exp(-each)) ** 2 * each
        return {"mean": each.mean(), "sum": each.sum(), "none": each}[self.reduction]


class SummedOverOutputs(nn.Module):
    """Whose "mean" is another than that of what it returns unreduced."""

    reduction = "mean"

    def forward(self, output, target):
        each = (output - target).square()
        return each.sum(1).mean() if self.reduction == "mean" else each


def kind_of(loss, output, target):
    return examined(resolve_loss(loss), Batch((), target, None), output, None).kind


class TestKinds:
    """The mechanism: how a part's gradient shrinks when other rows are added."""

    @pytest.mark.parametrize(
        ("loss", "output", "target", "kind"),
        [
            (lambda o, t: F.mse_loss(o, t), THREE, THREE.flip(0), "mean"),
            (lambda o, t: (o - t).square().sum(1), THREE, THREE.flip(0), "mean"),
            (Focal(), THREE, CLASSES, "mean"),
            (lambda o, t: F.mse_loss(o, t, reduction="sum"), THREE, THREE.flip(0), "sum"),
            (functools.partial(F.cross_entropy, reduction="sum"), THREE, CLASSES, "sum"),
            (lambda o, t: F.cross_entropy(o, t), THREE, IGNORED, "elements"),
            (lambda o, t: F.cross_entropy(o, t, weight=WEIGHT.to(o)), THREE, CLASSES, "elements"),
            (lambda o, t: (o - t)[t > 0].abs().mean(), THREE, THREE.flip(0), "elements"),
            (contrastive, THREE, THREE.flip(0), "coupled"),
            (triplet, THREE, THREE.flip(0), "coupled"),
            (broadcast, THREE[:, :1], THREE[:, 1:2], "coupled"),
            (lambda o, t: ((o - o.mean(0)) * t).square().mean(1), THREE, THREE, "coupled"),
            (lambda o, t: (o - t).square().mean().sqrt(), THREE, THREE.flip(0), "coupled"),
        ],
    )
    def test_kind(self, loss, output, target, kind):
        assert kind_of(loss, output, target) == kind
        assert kind_of(loss, output.float(), target) == kind

    def test_a_loss_that_works_in_place(self):
        output, target = THREE.clone(), THREE.flip(0).clone()
        assert (
            kind_of(lambda o, t: o.sub_(t.clamp_(max=0.1)).square().sum(1), output, target)
            == "mean"
        )
        assert torch.equal(output, THREE)
        assert torch.equal(target, THREE.flip(0))


class TestMeansAndSums:
    @pytest.mark.parametrize(
        ("outputs", "loss", "target", "value"),
        [
            (1, lambda o, t: F.mse_loss(o, t, reduction="sum"), Y, lambda o: F.mse_loss(o, Y)),
            (3, Focal(), CLASSES, lambda o: Focal()(o, CLASSES)),
            (3, Focal("sum"), CLASSES, lambda o: Focal()(o, CLASSES)),
            (3, SummedOverOutputs(), THREE, lambda o: 3 * F.mse_loss(o, THREE)),
            (1, lambda o, t: o.squeeze(1).sub(t).square(), Y[:, 0], lambda o: F.mse_loss(o, Y)),
            (1, lambda o, t: F.mse_loss(o.squeeze(1), t), Y[:, 0], lambda o: F.mse_loss(o, Y)),
            (1, lambda o, t: (o - t).square().mean(), Y[:, 0], lambda o: F.mse_loss(o, Y)),
            (1, lambda o, t: (o - t).square(), Y, lambda o: F.mse_loss(o, Y)),
        ],
        ids=["summed", "focal", "focal summed", "own mean", "takes the column off",
             "and calls torch's loss", "column", "one column for each row"],
    )  # fmt: skip
    def test_do_not_depend_on_blocks(self, outputs, loss, target, value):
        model = net(outputs)
        expected = by_hand(model, value(model(X)), [l2])
        for size in ("auto", 7):
            found = estimate(model, X, target, loss=loss, batch_size=size).coef_
            np.testing.assert_allclose(found, expected, rtol=1e-9)

    def test_a_sum_is_named(self):
        loss = functools.partial(F.mse_loss, reduction="sum")
        assert "summed, mean over rows" in str(estimate(net(), X, Y, loss=loss).summary())


class TestOtherLosses:
    def test_elements_in_one_block(self):
        model, ignored = net(3), IGNORED
        expected = by_hand(model, F.cross_entropy(model(X), ignored), [l2])
        est = estimate(model, X, ignored, loss=lambda o, t: F.cross_entropy(o, t))
        np.testing.assert_allclose(est.coef_, expected, rtol=1e-9)
        assert "unequal numbers of elements" in " ".join(str(est.summary()).split())

    def test_elements_in_several_blocks(self):
        with pytest.raises(ValueError, match=r"over unequal numbers of elements\), on 40 rows in"):
            estimate(net(3), X, IGNORED, loss=lambda o, t: F.cross_entropy(o, t), batch_size=7)

    @pytest.mark.parametrize("loss", [contrastive, broadcast])
    def test_coupled_rows_in_the_batches_of_training(self, loss):
        outputs, target = (1, Y) if loss is broadcast else (3, THREE)
        model = net(outputs)
        parts = [slice(i, i + 8) for i in range(0, N, 8)]
        value = sum(loss(model(X[p]), target[p]) for p in parts) / len(parts)
        expected = by_hand(model, value, [l2])
        loader = DataLoader(TensorDataset(X, target), batch_size=8)
        for data, size in (((loader,), "auto"), ((X, target), 8)):
            found = estimate(model, *data, loss=loss, batch_size=size).coef_
            np.testing.assert_allclose(found, expected, rtol=1e-9)

    def test_coupled_rows_without_a_batch_size(self):
        model = net(3)
        with pytest.warns(ModelStateWarning, match="which rows are in a batch.*`batch_size`, the"):
            found = estimate(model, X, THREE, loss=contrastive).coef_
        expected = by_hand(model, contrastive(model(X), THREE), [l2])
        np.testing.assert_allclose(found, expected, rtol=1e-9)

    @pytest.mark.parametrize(
        "loss",
        [
            lambda o, t: F.cross_entropy(o[:, :, None].expand(-1, -1, 2),
                                         t[:, None].expand(-1, 2), reduction="none"),
            lambda o, t: (o[:, :1] - t.double()).square(),
        ],
        ids=["rows and tokens", "broadcast to (n, n)"],
    )  # fmt: skip
    def test_several_numbers_for_a_row(self, loss):
        with pytest.raises(
            ValueError, match=r"one number for each of 32 rows, got shape \(32, .*re"
        ):
            estimate(net(3), X, CLASSES, loss=loss)

    @pytest.mark.parametrize(
        "loss",
        [nn.TripletMarginLoss(), nn.CosineEmbeddingLoss(), nn.CTCLoss(), nn.GaussianNLLLoss(),
         lambda o: o.mean(), lambda o, t, extra: o.mean()],
    )  # fmt: skip
    def test_other_arguments(self, loss):
        with pytest.raises(TypeError, match=r"Expected a loss of \(output, target\), got .* whi"):
            estimate(net(), X, Y, loss=loss)

    def test_an_error_of_the_loss(self):
        with pytest.raises(
            ValueError, match=r"takes the outputs and targets, \(32, 1\) and \(32, 3"
        ):
            estimate(net(), X, THREE, loss=lambda o, t: o @ t)


class TestTermsOfParameters:
    def test_a_penalty_on_the_module_is_left_out(self):
        model = net()
        expected = by_hand(model, F.mse_loss(model(X), Y), [l2])
        est = estimate(model, X, Y, loss=lambda o, t: F.mse_loss(o, t) + l2(model.parameters()))
        np.testing.assert_allclose(est.coef_, expected, rtol=1e-9)
        assert "a penalty on the parameters" in " ".join(str(est.summary()).split())

    def test_in_a_loss_that_holds_the_module(self):
        class Penalized(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, output, target):
                return (output - target).square() + l2(self.model.parameters())

        model = net()
        est = estimate(model, X, Y, loss=Penalized(model))
        np.testing.assert_allclose(est.coef_, by_hand(model, F.mse_loss(model(X), Y), [l2]))
        assert "a penalty on the parameters" in " ".join(str(est.summary()).split())

    def test_a_loss_that_calls_the_module(self):
        model = net()
        with pytest.raises(ValueError, match="got one that calls the model itself; let the module"):
            estimate(model, X, Y, loss=lambda o, t: F.mse_loss(o, t) + model(X[:2]).square().mean())
        assert not model._forward_pre_hooks


class TestUserData:
    @pytest.mark.parametrize("as_given", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
    def test_a_loss_in_place_leaves_them(self, as_given):
        def clipped(output, target):
            target[target > 0.5] = 0.5
            return (output - target).square().mean()

        X0, Y0 = X_.copy(), Y_[:, None].copy()
        found = estimate(mlp(), as_given(X0), as_given(Y0), loss=clipped, batch_size=9).coef_
        assert np.array_equal(X0, X_)
        assert np.array_equal(Y0, Y_[:, None])
        assert np.isfinite(found).all()

    def test_of_a_linear_model(self):
        from sklearn.linear_model import Lasso

        model, y = Lasso(alpha=0.1).fit(X_, Y_), Y_.copy()

        def loss(output, target):
            target -= output
            return target.square().sum()

        est = ImplicitRegularizationEstimator(model, family="l1", loss=loss).fit(X_, y)
        assert np.array_equal(y, Y_)
        assert est.coef_[0] == pytest.approx(0.2, rel=1e-3)


class TestRandomForward:
    class Dropped(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.body, self.kind = net(), kind
            self.own = torch.Generator()

        def forward(self, x):
            if self.kind == "dropout":
                return self.body(F.dropout(x, 0.5))
            if self.kind == "gumbel":
                return self.body(F.gumbel_softmax(x))
            if self.kind == "numpy":
                return self.body(x * np.random.rand())
            return self.body(x + torch.randn(x.shape, generator=self.own, dtype=x.dtype))

    @pytest.mark.parametrize("kind", ["dropout", "gumbel", "numpy", "own generator"])
    def test_warns(self, kind):
        model = self.Dropped(kind)
        own, state = model.own.get_state(), torch.get_rng_state()
        with pytest.warns(ModelStateWarning, match="Dropped gives other outputs each time in eval"):
            estimate(model, X, Y)
        assert torch.equal(own, model.own.get_state())
        assert torch.equal(state, torch.get_rng_state())

    def test_numbers_that_change_nothing(self):
        class Draws(nn.Linear):
            def forward(self, x):
                torch.rand(3)
                return super().forward(x)

        estimate(Draws(P, 1).double(), X, Y)


@pytest.mark.parametrize("reference", ["batch", "gradient"])
def test_a_mean_on_a_trajectory(reference):
    """Batches of 16, 16 and 8 rows: rows weigh differently in an epoch."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
    with record(model, optimizer) as recorder:
        for _ in range(3):
            for rows in torch.randperm(N, generator=torch.Generator().manual_seed(0)).split(16):
                recorder.batch(rows)
                optimizer.zero_grad()
                F.mse_loss(model(X[rows]), Y[rows]).backward()
                optimizer.step()
            recorder.epoch()
    options = {"mode": "trajectory", "trajectory": recorder.trajectory, "window": "epoch"}
    options |= {"family": "weight_decay", "reference": reference}
    named = estimate(model, X, Y, **options).coef_
    found = estimate(model, X, Y, loss=lambda o, t: F.mse_loss(o, t), **options).coef_
    np.testing.assert_allclose(found, named, rtol=1e-9)
    if reference == "batch":
        assert found[0] == pytest.approx(0.1, rel=1e-9)
