"""Trained modules: known answers, every kind of data and of layer, and nothing changed."""

import copy
import functools
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_linnerud
from sklearn.linear_model import Lasso, MultiTaskLasso, Ridge
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from sklearn_implicitreg import FrozenModel, ImplicitRegularizationEstimator
from sklearn_implicitreg.exceptions import (
    AugmentationWarning,
    CollinearTermsWarning,
    ModelStateWarning,
)

N, P = 40, 5


def estimate(model, X, y=None, sample_weight=None, **params):
    """Fitted estimator; squared error unless another loss is given."""
    params = {"loss": "mse", "params": "all"} | params
    return ImplicitRegularizationEstimator(model, **params).fit(X, y, sample_weight)


def mlp(dtype=torch.float64):
    return nn.Sequential(nn.Linear(P, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)


def rows(n=N):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, P)), rng.normal(size=n)


def minimize(parameters, objective, max_iter):
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=max_iter, tolerance_grad=1e-8, tolerance_change=0.0,
        history_size=100, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimizer.step(closure)


def by_hand(model, loss, terms):
    """Coefficients by NumPy's least squares on autograd's gradients over all parameters."""
    tensors = [p for p in model.parameters() if p.requires_grad]

    def flat(value):
        found = torch.autograd.grad(value, tensors, allow_unused=True, retain_graph=True)
        return np.concatenate(
            [
                (torch.zeros_like(t) if g is None else g).double().cpu().numpy().ravel()
                for g, t in zip(found, tensors, strict=True)
            ]
        )

    design = np.stack([flat(term(tensors)) for term in terms], axis=1)
    return np.linalg.lstsq(design, -flat(loss), rcond=None)[0]


def l2(tensors):
    return sum(t.square().sum() for t in tensors)


def l1(tensors):
    return sum(t.abs().sum() for t in tensors)


def quietly_compiled(model, **options):
    """Wrapped by torch.compile, whose own import warns of torch's deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.compile(model, **options)


# --- known answers ------------------------------------------------------------------------------


@functools.cache
def digits():
    X, y = load_digits(return_X_y=True)
    return torch.as_tensor(X / 16), torch.as_tensor(y)


@functools.cache
def digits_net(scope, max_iter, **coefs):
    """Stationary MLP on digits with l2 and smooth_l1 of all tensors or of weight matrices."""
    torch.manual_seed(0)
    X, y = digits()
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    seen = [p for p in model.parameters() if scope == "all" or p.ndim == 2]

    def objective():
        loss = F.cross_entropy(model(X), y)
        for p in seen:
            loss = loss + coefs.get("l2", 0.0) * p.square().sum()
            corner = F.smooth_l1_loss(p, torch.zeros_like(p), reduction="sum", beta=1e-3)
            loss = loss + coefs.get("smooth_l1", 0.0) * corner
        return loss

    minimize(model.parameters(), objective, max_iter)
    model.zero_grad()
    return model


class TestDigits:
    @pytest.mark.parametrize("scope", ["all", "auto"])
    @pytest.mark.parametrize(
        ("family", "coefs", "max_iter"),
        [
            ("l2", {"l2": 1e-2}, 800),
            ("smooth_l1", {"smooth_l1": 1e-3}, 1700),
            ("elastic_net", {"l2": 1e-2, "smooth_l1": 1e-3}, 800),
        ],
        ids=["l2", "smooth_l1", "both"],
    )
    def test_trained_penalty(self, family, coefs, max_iter, scope):
        model = digits_net(scope, max_iter, **coefs)
        est = estimate(model, *digits(), family=family, loss="cross_entropy", params=scope)
        np.testing.assert_allclose(est.coef_, list(coefs.values()), rtol=1e-3)
        assert est.term_names_ == list(coefs)
        assert est.r2_ >= 0.999
        assert est.verdict_ == "supported"
        assert est.n_equations_ == (1210 if scope == "all" else 1184)

    def test_biases_that_were_not_penalized_bias_the_answer(self):
        model = digits_net("auto", 800, l2=1e-2)
        est = estimate(model, *digits(), loss="cross_entropy", params="all")
        assert abs(est.coef_[0] / 1e-2 - 1) > 1e-3
        auto = estimate(model, *digits(), loss="cross_entropy", params="auto")
        assert "Parameters without equations: 0.bias, 2.bias." in str(auto.summary())

    @pytest.mark.parametrize("scope", ["all", "auto"])
    def test_out_of_family_is_never_supported(self, scope):
        model = digits_net(scope, 800, l2=3e-3, smooth_l1=1e-3)
        est = estimate(model, *digits(), loss="cross_entropy", params=scope)
        assert est.verdict_ == "partial"
        assert est.r2_ < 0.98
        true = estimate(model, *digits(), family="elastic_net", loss="cross_entropy", params=scope)
        assert true.verdict_ == "supported"

    def test_ridge_as_a_module(self):
        """Weights of an exact solver, of another library."""
        X, y = load_diabetes(return_X_y=True)
        ridge = Ridge(alpha=3.0).fit(X, y)
        model = nn.Linear(10, 1).double()
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(ridge.coef_))
            model.bias.fill_(float(ridge.intercept_))
        est = estimate(model, X, y, params="auto")
        assert est.coef_[0] == pytest.approx(3.0 / len(y), rel=1e-9)
        assert est.in_model_units()["weight_decay"] == pytest.approx(6.0 / len(y), rel=1e-9)


class TestInvariances:
    def test_weight_decay_is_twice_l2(self):
        model, (X, y) = mlp(), rows()
        a, b = (estimate(model, X, y, family=f).coef_[0] for f in ("l2", "weight_decay"))
        assert b == pytest.approx(2 * a, rel=1e-12)

    def test_regression_is_the_one_by_hand(self):
        model, (X, y) = mlp(), rows()
        loss = F.mse_loss(model(torch.as_tensor(X))[:, 0], torch.as_tensor(y))
        est = estimate(model, X, y, family="l2+l1")
        np.testing.assert_allclose(est.coef_, by_hand(model, loss, [l2, l1]), rtol=1e-9)

    def test_scaling_the_loss_scales_the_coefficients(self):
        model, (X, y) = mlp(), rows()
        one = estimate(model, X, y, loss=lambda o, t: (o - t).square(), family="l2+l1")
        five = estimate(model, X, y, loss=lambda o, t: 5 * (o - t).square(), family="l2+l1")
        np.testing.assert_allclose(five.coef_, 5 * one.coef_, rtol=1e-12)
        assert five.r2_ == pytest.approx(one.r2_, rel=1e-12)

    def test_order_of_rows(self):
        model, (X, y) = mlp(), rows()
        order = np.random.default_rng(1).permutation(N)
        one, other = estimate(model, X, y), estimate(model, X[order], y[order])
        np.testing.assert_allclose(other.coef_, one.coef_, rtol=1e-12)

    @pytest.mark.parametrize("batch_size", [1, 7, 39, 40, 1000])
    def test_batch_size(self, batch_size):
        model, (X, y) = mlp(), rows()
        one = estimate(model, X, y, family="l2+l1")
        other = estimate(model, X, y, family="l2+l1", batch_size=batch_size)
        np.testing.assert_allclose(other.coef_, one.coef_, rtol=1e-11)

    def test_weights_of_rows(self):
        model, (X, y) = mlp(), rows()
        counts = np.random.default_rng(2).integers(0, 4, N)
        repeated = estimate(model, np.repeat(X, counts, axis=0), np.repeat(y, counts))
        weighted = estimate(model, X, y, counts.astype(float), batch_size=9)
        np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-12)
        scaled = estimate(model, X, y, 3.0 * counts)
        np.testing.assert_allclose(scaled.coef_, repeated.coef_, rtol=1e-12)

    def test_score_of_all_rows_again_is_r2(self):
        model, (X, y) = mlp(), rows()
        est = estimate(model, X, y)
        assert est.score(X, y) == pytest.approx(est.r2_, rel=1e-10)


# --- data ---------------------------------------------------------------------------------------


class Rows(Dataset):
    def __init__(self, X, y):
        self.X, self.y = torch.as_tensor(X), torch.as_tensor(y)

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.X[i], self.y[i]


class Noisy(Rows):
    """Random augmentation."""

    def __getitem__(self, i):
        return self.X[i] + torch.randn(P).double() + random.random() + np.random.rand(), self.y[i]


class Named(Rows):
    def __getitem__(self, i):
        return {"x": self.X[i], "y": self.y[i]}


class Batches(Rows):
    """Items are batches already, of several sizes."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        part = slice((0, 7, 21)[i], (7, 21, N)[i])
        return self.X[part], self.y[part]


class Stream(IterableDataset):
    def __init__(self, X, y):
        self.X, self.y = torch.as_tensor(X), torch.as_tensor(y)

    def __iter__(self):
        return zip(self.X, self.y, strict=True)


class TwoInputs(nn.Module):
    """Takes inputs ``a`` and ``b``, by keyword or position."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 1).double(), nn.Linear(P - 2, 1).double()

    def forward(self, a, b):
        return torch.tanh(self.a(a)) + self.b(b)


def collate_dicts(items):
    return torch.stack([i["x"] for i in items]), torch.stack([i["y"] for i in items])


X_, Y_ = rows()
SOURCES = {
    "float64 arrays": (X_, Y_),
    "column": (X_, Y_[:, None]),
    "lists": (X_.tolist(), Y_.tolist()),
    "Fortran order": (np.asfortranarray(X_), Y_),
    "DataFrame": (pd.DataFrame(X_, columns=list("abcde")), pd.Series(Y_)),
    "DataFrame of one column as y": (pd.DataFrame(X_), pd.DataFrame({"y": Y_})),
    "objects": (X_.astype(object), Y_.astype(object)),
    "tensors": (torch.as_tensor(X_), torch.as_tensor(Y_)),
    "tensor that requires grad": (torch.as_tensor(X_).requires_grad_(), torch.as_tensor(Y_)),
    "Dataset": (Rows(X_, Y_), None),
    "TensorDataset": (TensorDataset(torch.as_tensor(X_), torch.as_tensor(Y_)), None),
    "DataLoader": (DataLoader(Rows(X_, Y_), batch_size=7), None),
    "shuffled, last batch dropped": (
        DataLoader(Rows(X_, Y_), batch_size=7, shuffle=True, drop_last=True),
        None,
    ),
    "sampler with replacement": (
        DataLoader(Rows(X_, Y_), 7, sampler=RandomSampler(Rows(X_, Y_), replacement=True)),
        None,
    ),
    "batch sampler": (
        DataLoader(Rows(X_, Y_), batch_sampler=BatchSampler(range(3), 2, drop_last=False)),
        None,
    ),
    "collate_fn": (DataLoader(Named(X_, Y_), batch_size=7, collate_fn=collate_dicts), None),
    "dataset of batches": (DataLoader(Batches(X_, Y_), batch_size=None), None),
    "stream": (Stream(X_, Y_), None),
    "loader of a stream": (DataLoader(Stream(X_, Y_), batch_size=7), None),
}


class TestData:
    @pytest.mark.parametrize("kind", SOURCES)
    def test_kinds(self, kind):
        model = mlp()
        expected = estimate(model, X_, Y_, family="l2+l1").coef_
        found = estimate(model, *SOURCES[kind], family="l2+l1", batch_size=16).coef_
        np.testing.assert_allclose(found, expected, rtol=1e-11)

    def test_read_only_arrays(self):
        X, y = rows()
        X.flags.writeable = y.flags.writeable = False
        model = mlp()
        assert estimate(model, X, y).coef_ == estimate(model, X.copy(), y.copy()).coef_

    @pytest.mark.parametrize("kind", ["dict", "dict of lists", "tuple", "loader of dicts"])
    def test_several_inputs(self, kind):
        model, a, b = TwoInputs(), X_[:, :2], X_[:, 2:]
        loss = F.mse_loss(model(torch.as_tensor(a), torch.as_tensor(b))[:, 0], torch.as_tensor(Y_))
        items = [({"a": a[i], "b": b[i]}, Y_[i]) for i in range(N)]
        data = {
            "dict": ({"a": a, "b": b}, Y_),
            "dict of lists": ({"b": b.tolist(), "a": a.tolist()}, Y_),
            "tuple": ((a, b), Y_),
            "loader of dicts": (DataLoader(items, batch_size=6), None),
        }
        found = estimate(model, *data[kind]).coef_
        np.testing.assert_allclose(found, by_hand(model, loss, [l2]), rtol=1e-11)

    def test_float64_rows_with_a_float32_model(self):
        model = mlp(torch.float32)
        found = estimate(model, X_, Y_).coef_
        single = estimate(model, X_.astype(np.float32), Y_.astype(np.float32)).coef_
        assert found == single
        exact = estimate(copy.deepcopy(model).double(), X_, Y_).coef_
        np.testing.assert_allclose(found, exact, rtol=1e-4)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
    def test_integer_rows_for_linear_layers(self, dtype):
        X = (X_ > 0).astype(dtype)
        model = mlp()
        assert estimate(model, X, Y_).coef_ == estimate(model, X.astype(float), Y_).coef_

    def test_masks_beside_other_inputs_stay_boolean(self):
        class Masked(TwoInputs):
            def forward(self, a, b, mask):
                assert mask.dtype == torch.bool
                return super().forward(a.masked_fill(mask[:, None], 0.0), b)

        model, mask = Masked(), X_[:, 0] > 0
        a, b = X_[:, :2], X_[:, 2:]
        found = estimate(model, {"a": a, "b": b, "mask": mask}, Y_).coef_
        filled = np.where(mask[:, None], 0.0, a)
        plain = TwoInputs()
        plain.load_state_dict(model.state_dict())
        assert found == pytest.approx(estimate(plain, (filled, b), Y_).coef_, rel=1e-12)

    def test_rows_are_not_written_to(self):
        X, y = rows()
        model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(P, 1)).double()
        for data in ((X.copy(), y), (torch.as_tensor(X.copy()), torch.as_tensor(y))):
            estimate(model, *data)
            np.testing.assert_array_equal(np.asarray(data[0]), X)

    def test_sample_weight_with_a_dataset(self):
        model, weight = mlp(), np.arange(N) + 1.0
        expected = estimate(model, X_, Y_, weight).coef_
        loader = DataLoader(Rows(X_, Y_), batch_size=7, shuffle=True)
        np.testing.assert_allclose(estimate(model, loader, None, weight).coef_, expected)

    def test_rows_on_another_axis(self):
        """Time first, as recurrent layers have it by default."""

        class LastStep(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.out = nn.RNN(3, 4), nn.Linear(4, 1)

            def forward(self, x):
                return self.out(self.rnn(x)[0][-1])

        model, X = LastStep().double(), torch.randn(N, 6, 3, dtype=torch.float64)
        items = [(x, float(y)) for x, y in zip(X, Y_, strict=True)]

        def time_first(items):
            return torch.stack([x for x, _ in items], 1), torch.tensor([[y] for _, y in items])

        loader = DataLoader(items, batch_size=8, collate_fn=time_first)
        loss = F.mse_loss(
            model(X.transpose(0, 1))[:, 0], torch.tensor([y for _, y in items]).double()
        )
        found = estimate(model, loader).coef_
        np.testing.assert_allclose(found, by_hand(model, loss, [l2]), rtol=1e-6)


class TestBadData:
    @pytest.mark.parametrize("y", [None, Y_])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_not_finite(self, y, bad):
        X = X_.copy()
        X[N - 1, 0] = bad
        data = (X, Y_) if y is not None else (Rows(X, Y_), None)
        with pytest.raises(ValueError, match="Expected finite data, got NaN or inf in X or y"):
            estimate(mlp(), *data, batch_size=7)
        with pytest.raises(ValueError, match="Expected finite data, got NaN or inf in X or y"):
            estimate(mlp(), X_, np.where(np.arange(N) == 3, bad, Y_))

    @pytest.mark.parametrize(
        ("X", "y", "weight", "error", "text"),
        [
            (X_, Y_[:-1], None, ValueError, "inconsistent numbers of samples"),
            (X_[:0], Y_[:0], None, ValueError, r"Expected at least 1 row"),
            (Rows(X_[:0], Y_[:0]), None, None, ValueError, "Expected at least 1 row of"),
            (X_, None, None, ValueError, "Expected y with arrays, got None; or give a Dataset"),
            (Rows(X_, Y_), Y_, None, ValueError, "Expected y=None with a Dataset or DataLoader"),
            (scipy.sparse.csr_matrix(X_), Y_, None, TypeError, r"a sparse matrix; use X\.toarr"),
            (np.array([["a"] * P] * N), Y_, None, TypeError, "Expected numbers in X, got dtype"),
            ({"x": 3.0}, Y_, None, TypeError, r"Expected X\['x'\] with one entry per row, got a"),
            (X_, Y_, np.ones(3), ValueError, r"sample_weight of shape \(40,\), got \(3,\)"),
            (X_, Y_, np.full(N, np.nan), ValueError, "Expected finite sample_weight, got NaN or"),
            (X_, Y_, np.zeros(N), ValueError, "Expected a positive total weight of the rows, got"),
            (Stream(X_, Y_), None, np.ones(N), ValueError, "Expected no sample_weight with rows w"),
            (Named(X_, Y_), None, None, TypeError, r"batches \(inputs, target\), got dict of 2"),
            (TensorDataset(torch.ones(3, P)), None, None, TypeError, "give the loader a collate"),
            (X_, np.zeros((N, 2)), None, ValueError, r"got \(40, 2\): the two would be broadcast"),
        ],
        ids=["lengths", "no rows", "empty dataset", "no y", "y beside a dataset", "sparse",
             "strings", "scalar", "weights' shape", "NaN weights", "zero weights",
             "weighted stream", "dict items", "no target", "two targets"],
    )  # fmt: skip
    def test_errors(self, X, y, weight, error, text):
        with pytest.raises(error, match=text):
            estimate(mlp(), X, y, weight)

    def test_augmentation_warns(self):
        with pytest.warns(
            AugmentationWarning, match="The first batch differs when it is read twice"
        ):
            estimate(mlp(), DataLoader(Noisy(X_, Y_), batch_size=8))

    def test_augmentation_by_a_seed(self):
        def coef(state):
            with pytest.warns(AugmentationWarning):
                return estimate(mlp_, Noisy(X_, Y_), random_state=state).coef_[0]

        mlp_ = mlp()
        assert coef(0) == coef(0)
        assert coef(0) != coef(1)


# --- layers -------------------------------------------------------------------------------------


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


def bn_net():
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Linear(P, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)
    ).double()  # fmt: skip
    model.train()
    for _ in range(3):
        model(torch.randn(16, P, dtype=torch.float64))
    return model.eval()


def bn_loss(model, size):
    """Mean squared error with batch statistics, of consecutive batches of one size."""
    own = copy.deepcopy(model).train()
    total = 0.0
    for start in range(0, N, size):
        part = slice(start, start + size)
        output = own(torch.as_tensor(X_[part]))[:, 0]
        total = total + F.mse_loss(output, torch.as_tensor(Y_[part]), reduction="sum")
    return own, total / N


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
        assert "The loss does not see the scale of 0.weight (" in text

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
        assert "does not depend on the scale of 1 tensors that carry most" in text
        assert "(0.weight): an endpoint shows no L2 there, whatever the decay was" in text


class TestDropout:
    model = staticmethod(
        lambda: nn.Sequential(
            nn.Linear(P, 30), nn.Tanh(), nn.Dropout(0.5), nn.Linear(30, 1)
        ).double()
    )

    def test_off_by_default(self):
        model = self.model().train()
        plain = nn.Sequential(model[0], model[1], model[3])
        assert estimate(model, X_, Y_).coef_ == estimate(plain, X_, Y_).coef_
        assert model.training and model[2].training

    def test_masks_by_a_seed(self):
        model = self.model()
        coefs = [
            estimate(model, X_, Y_, module_mode="train", random_state=s).coef_[0] for s in (0, 0, 1)
        ]
        assert coefs[0] == coefs[1] != coefs[2]
        assert coefs[0] != estimate(model, X_, Y_).coef_[0]

    def test_masks_of_a_random_state_instance(self):
        model = self.model()
        state = np.random.RandomState(0)
        a, b = (
            estimate(model, X_, Y_, module_mode="train", random_state=state).coef_ for _ in range(2)
        )
        assert a != b

    def test_the_mode_stands_in_the_summary(self):
        est = estimate(self.model(), X_, Y_, module_mode="train", random_state=0)
        assert "modules in training state" in str(est.summary())


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_coarse_models_are_cast_up(self, dtype):
        model = mlp(dtype)
        name = str(dtype).removeprefix("torch.")
        with pytest.warns(
            ModelStateWarning, match=f"stored in {name}, too coarse for gradients: th"
        ):
            found = estimate(model, X_, Y_)
        assert found.coef_ == estimate(copy.deepcopy(model).float(), X_, Y_).coef_
        assert all(p.dtype == dtype for p in model.parameters())

    def test_models_of_several_precisions(self):
        model = mlp(torch.float32)
        model[2].to(torch.bfloat16)
        with pytest.warns(ModelStateWarning, match="stored in bfloat16, too coarse"):
            found = estimate(model, X_, Y_)
        assert found.coef_ == estimate(copy.deepcopy(model).float(), X_, Y_).coef_
        wide = mlp(torch.float32)
        wide[0].double()
        assert estimate(wide, X_, Y_).coef_ == estimate(copy.deepcopy(wide).double(), X_, Y_).coef_

    @pytest.mark.parametrize("dtype", ["float64", torch.float64], ids=str)
    def test_wider_arithmetic(self, dtype):
        model = mlp(torch.float32)
        found = estimate(model, X_, Y_, dtype=dtype).coef_
        exact = estimate(copy.deepcopy(model).double(), X_, Y_).coef_
        np.testing.assert_allclose(found, exact, rtol=1e-12)
        assert all(p.dtype == torch.float32 for p in model.parameters())

    def test_unknown_dtype(self):
        with pytest.raises(
            ValueError, match="Expected dtype 'auto', 'float32' or 'float64', got 'in"
        ):
            estimate(mlp(), X_, Y_, dtype="int8")

    def test_parameters_that_are_not_finite(self):
        model = mlp()
        with torch.no_grad():
            model[2].bias.fill_(torch.nan)
        with pytest.raises(ValueError, match=r"Expected finite trained parameters, .*\['2.bias'\]"):
            estimate(model, X_, Y_)

    @pytest.mark.parametrize("device", ["cuda:99", "mps", "xpu:3"])
    def test_device_that_is_not_there(self, device):
        with pytest.raises(ValueError, match=r"Expected a device that is there, one of \['cpu'"):
            estimate(mlp(), X_, Y_, device=device)

    def test_no_device(self):
        with pytest.raises(
            ValueError, match="Expected device 'auto', 'cpu', 'cuda', ..., got 'gpu'"
        ):
            estimate(mlp(), X_, Y_, device="gpu")


# --- nothing of the user's changes --------------------------------------------------------------


def rng_states():
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


def fingerprint(model):
    """All that a user can see of a module, bit for bit, by identity and by value."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {n: (id(t), t.data_ptr(), t.detach().numpy().tobytes()) for n, t in tensors.items()},
        {n: t.requires_grad for n, t in tensors.items()},
        {n: None if t.grad is None else t.grad.numpy().tobytes() for n, t in tensors.items()},
        [m.training for m in model.modules()],
        [sorted(vars(m)) for m in model.modules()],
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
    )


@pytest.fixture
def busy():
    """Module with everything that could change, some of it half used."""
    model = nn.Sequential(
        nn.Linear(P, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
    )  # fmt: skip
    model = model.double().train()
    model[4].bias.requires_grad_(False)
    model(torch.as_tensor(X_)).sum().backward()
    model[1].eval()
    return model


class Broken(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 2:
            raise RuntimeError("broken")
        return self.inner(x)


class TestUntouched:
    @pytest.mark.parametrize("module_mode", ["auto", "eval", "train"])
    @pytest.mark.parametrize("random_state", [None, 0])
    def test_by_fit_and_score(self, busy, module_mode, random_state):
        before, states = fingerprint(busy), rng_states()
        options = dict(module_mode=module_mode, random_state=random_state, batch_size=10)
        est = estimate(busy, X_[:30], Y_[:30], **options)
        est.score(X_[30:], Y_[30:])
        est.summary()
        assert fingerprint(busy) == before
        assert rng_states() == states

    def test_by_a_loader_that_draws(self, busy):
        loader = DataLoader(Noisy(X_, Y_), batch_size=10, shuffle=True)
        before, states = fingerprint(busy), rng_states()
        with pytest.warns(AugmentationWarning):
            estimate(busy, loader, module_mode="train", random_state=3)
        assert fingerprint(busy) == before
        assert rng_states() == states

    @pytest.mark.parametrize("module_mode", ["auto", "train"])
    def test_by_a_fit_that_raised(self, busy, module_mode):
        model = Broken(busy)
        before, states = fingerprint(model), rng_states()
        with pytest.raises(RuntimeError, match="broken"):
            estimate(model, X_, Y_, batch_size=10, module_mode=module_mode)
        assert fingerprint(model) == before
        assert rng_states() == states
        assert model.calls == 0

    def test_by_bad_data_in_a_later_batch(self, busy):
        X = X_.copy()
        X[-1] = np.nan
        before, states = fingerprint(busy), rng_states()
        with pytest.raises(ValueError, match="Expected finite data"):
            estimate(busy, X, Y_, batch_size=10, module_mode="train")
        assert fingerprint(busy) == before
        assert rng_states() == states

    def test_without_gradients_enabled(self):
        model = mlp()
        expected = estimate(model, X_, Y_).coef_
        with torch.no_grad():
            assert estimate(model, X_, Y_).coef_ == expected
            assert not torch.is_grad_enabled()

    def test_loss_module(self):
        loss = nn.CrossEntropyLoss(weight=torch.ones(2)).train()
        before = {**vars(loss)}
        estimate(nn.Linear(P, 2).double(), X_, (Y_ > 0).astype(int), loss=loss)
        assert vars(loss) == before
        assert loss.weight.dtype == torch.float32

    def test_four_threads_on_one_module(self):
        model = mlp()
        expected = estimate(model, X_, Y_, family="l2+l1").coef_

        def fit(i):
            return [
                estimate(model, X_, Y_, family="l2+l1", batch_size=3 + i).coef_ for _ in range(5)
            ]

        with ThreadPoolExecutor(4) as pool:
            for coefs in pool.map(fit, range(4)):
                for coef in coefs:
                    np.testing.assert_allclose(coef, expected, rtol=1e-12)

    def test_four_threads_that_draw_masks(self):
        model, states = TestDropout.model(), rng_states()

        def fit(i):
            options = {"module_mode": "train", "random_state": i % 2, "batch_size": 10}
            return [estimate(model, X_, Y_, **options).coef_[0] for _ in range(10)]

        expected = [fit(0)[0], fit(1)[0]]
        with ThreadPoolExecutor(4) as pool:
            for i, coefs in enumerate(pool.map(fit, range(4))):
                assert coefs == [expected[i % 2]] * 10
        assert rng_states() == states

    def test_no_copies(self, monkeypatch):
        copies = []

        class Counted(nn.Sequential):
            def __deepcopy__(self, memo):
                copies.append("module")
                return super().__deepcopy__(memo)

        def counted(self, memo, original=nn.Parameter.__deepcopy__):
            copies.append("parameter")
            return original(self, memo)

        monkeypatch.setattr(nn.Parameter, "__deepcopy__", counted)
        model = Counted(*mlp())
        copy.deepcopy(model[0])
        assert copies == ["parameter", "parameter"]
        copies.clear()
        est = estimate(model, X_, Y_)
        est.score(X_, Y_)
        clone(est).fit(X_, Y_)
        estimate(FrozenModel(model), X_, Y_)
        assert copies == []

    def test_memory_is_shared(self):
        model = mlp()
        est = estimate(model, X_, Y_)
        shared = est._equations.problem.params["0.weight"]
        assert shared.data_ptr() == model[0].weight.data_ptr()


# --- options ------------------------------------------------------------------------------------


class TestOptions:
    def test_groups(self):
        model = mlp()
        layers = estimate(model, X_, Y_, group_by="layer")
        assert layers.term_names_ == ["l2[0]", "l2[2]"]
        parts = [estimate(model, X_, Y_, params=rf"^{i}\.").coef_[0] for i in (0, 2)]
        np.testing.assert_allclose(layers.coef_, parts, rtol=1e-12)
        names = [n for n, _ in model.named_parameters()]
        by_dict = estimate(model, X_, Y_, group_by={n: n[0] for n in names})
        by_call = estimate(model, X_, Y_, group_by=lambda name, tensor: name[0])
        for other in (by_dict, by_call):
            assert other.term_names_ == layers.term_names_
            np.testing.assert_array_equal(other.coef_, layers.coef_)

    def test_group_of_an_optimizer_needs_one(self):
        with pytest.raises(
            ValueError, match="group_by='param_group' needs a model that knows its op"
        ):
            estimate(mlp(), X_, Y_, group_by="param_group")

    @pytest.mark.parametrize(
        ("params", "n"),
        [
            ("all", 43),
            ("auto", 36),
            ("weights", 36),
            (r"^2\.", 7),
            ("bias$", 7),
            (lambda name, tensor: tensor.numel() == 30, 30),
        ],
        ids=["all", "auto", "weights", "layer", "biases", "callable"],
    )
    def test_scope(self, params, n):
        est = estimate(mlp(), X_, Y_, params=params)
        assert est.n_equations_ == n

    def test_auto_leaves_normalizations_out(self):
        class Norm(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.norm = nn.Linear(P, 1), nn.LayerNorm((2, P))
                self.wide = nn.Linear(P, 2 * P)

            def forward(self, x):
                return self.fc(self.norm(self.wide(x).reshape(-1, 2, P))).sum(1)

        est = estimate(Norm(), X_, Y_, params="auto")
        assert est.n_equations_ == P + 2 * P * P
        vectors = nn.Sequential(nn.LayerNorm(P), nn.Flatten())
        assert estimate(vectors, X_, X_, params="auto").n_equations_ == 2 * P

    def test_scope_that_selects_nothing(self):
        with pytest.raises(ValueError, match="params='fc9' selects none of the trained parameters"):
            estimate(mlp(), X_, Y_, params="fc9")

    def test_known_penalty_moves_to_the_other_side(self):
        model = mlp()
        loss = F.mse_loss(model(torch.as_tensor(X_))[:, 0], torch.as_tensor(Y_))
        tensors = list(model.parameters())
        total = loss + 0.3 * 0.5 * l2(tensors)
        found = estimate(model, X_, Y_, family="l1", known={"weight_decay": 0.3}).coef_
        np.testing.assert_allclose(found, by_hand(model, total, [l1]), rtol=1e-11)

    def test_known_part_of_a_trained_penalty(self):
        model = digits_net("auto", 800, l2=1e-2)
        known = {"weight_decay": 1.5e-2}
        est = estimate(model, *digits(), loss="cross_entropy", params="auto", known=known)
        assert est.coef_[0] == pytest.approx(2.5e-3, rel=1e-4)

    def test_positive(self):
        model = mlp()
        free = estimate(model, X_, Y_, family=["l2", "l1", "power"])
        assert (free.coef_ < 0).any()
        held = estimate(model, X_, Y_, family=["l2", "l1", "power"], positive=True)
        assert (held.coef_ >= 0).all()
        assert held.r2_ <= free.r2_

    @pytest.mark.parametrize("covariance", ["auto", "ols", "nonrobust", "hc3", "cluster"])
    def test_covariances(self, covariance):
        est = estimate(mlp(), X_, Y_, family="l2+l1", covariance=covariance)
        assert np.isfinite(est.std_err_).all() and (est.std_err_ > 0).all()
        used = {"auto": "cluster", "nonrobust": "ols"}.get(covariance, covariance)
        assert f'"covariance": "{used}"' in est.to_json()

    def test_covariance_ols_is_that_of_statsmodels(self):
        import statsmodels.api as sm

        est = estimate(mlp(), X_, Y_, family="l2+l1", covariance="ols")
        design, target, _ = est._equations.frame()
        theirs = sm.OLS(target, design).fit()
        np.testing.assert_allclose(est.std_err_, theirs.bse, rtol=1e-10)
        hc3 = clone(est).set_params(covariance="hc3").fit(X_, Y_)
        np.testing.assert_allclose(hc3.std_err_, sm.OLS(target, design).fit("pinv", "HC3").bse)

    def test_dependent_terms_warn(self):
        model = digits_net("auto", 800, l2=1e-2)
        family, options = "l2+weight_decay", {"loss": "cross_entropy", "params": "auto"}
        with pytest.warns(CollinearTermsWarning, match=r"gradients of \['l2', 'weight_decay'\]"):
            est = estimate(model, *digits(), family=family, **options)
        assert est.verdict_ == "not identifiable"
        assert est.coef_ @ [1.0, 0.5] == pytest.approx(1e-2, rel=1e-3)
        # The shortest answer, where columns count by their norms.
        assert est.coef_[0] == pytest.approx(5e-3, rel=1e-3)

    def test_zero_gradient_is_no_signal(self):
        X = np.random.default_rng(0).normal(size=(200, P))
        y = X @ np.arange(1.0, P + 1) + 0.5 + np.random.default_rng(1).normal(size=200)
        design = np.column_stack([X, np.ones(200)])
        solution = np.linalg.lstsq(design, y, rcond=None)[0]
        model = nn.Linear(P, 1).double()
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(solution[:-1]))
            model.bias.fill_(solution[-1])
        est = estimate(model, X, y)
        assert est.verdict_ == "no signal"
        assert np.isnan(est.coef_).all()
        assert est.score(X, y) == 0.0

    def test_loss_that_ignores_the_parameters(self):
        with pytest.raises(
            ValueError, match="Expected a loss that depends on the trained parameters"
        ):
            estimate(mlp(), X_, Y_, loss=lambda o, t: (o.detach() - t).square())


class TestKinks:
    """Weights of scikit-learn's exact solvers, put into modules."""

    def test_l1_zeros_give_inequalities(self):
        X, y = load_diabetes(return_X_y=True)
        lasso = Lasso(alpha=0.3, tol=1e-14, max_iter=100_000).fit(X, y)
        n_zero = int((lasso.coef_ == 0).sum())
        assert 0 < n_zero < 9
        model = nn.Linear(10, 1).double()
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(lasso.coef_))
            model.bias.fill_(float(lasso.intercept_))
        est = estimate(model, X, y, family="l1", params="auto")
        assert est.coef_[0] == pytest.approx(0.6, rel=1e-9)
        assert est.n_equations_ == 10 - n_zero
        text = " ".join(str(est.summary()).split())
        assert f"{n_zero} coordinates at a kink of the penalty or a bound give no equation" in text
        assert "all their inequalities hold" in text
        moved = estimate(
            model, X, y + 400 * X[:, lasso.coef_ == 0].sum(1), family="l1", params="auto"
        )
        assert "of their inequalities do not hold" in " ".join(str(moved.summary()).split())

    def test_l1_that_is_known_still_bounds_the_zeros(self):
        X, y = load_diabetes(return_X_y=True)
        lasso = Lasso(alpha=0.3, tol=1e-14, max_iter=100_000).fit(X, y)
        model = nn.Linear(10, 1).double()
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(lasso.coef_))
            model.bias.fill_(float(lasso.intercept_))
        est = estimate(model, X, y, family="l1", known={"l1": 0.2}, params="auto")
        assert est.coef_[0] == pytest.approx(0.4, rel=1e-9)
        assert "all their inequalities hold" in " ".join(str(est.summary()).split())

    def test_l21(self):
        X, Y = load_linnerud(return_X_y=True)
        X = (X - X.mean(0)) / X.std(0)
        lasso = MultiTaskLasso(alpha=2.0, tol=1e-14, max_iter=100_000).fit(X, Y)
        model = nn.Linear(3, 3).double()
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(lasso.coef_))
            model.bias.copy_(torch.as_tensor(lasso.intercept_))
        loss = nn.MSELoss(reduction="sum")
        est = estimate(model, X, Y, family="l21", loss=loss, params="auto")
        assert est.coef_[0] == pytest.approx(4.0, rel=1e-8)
        assert est.n_equations_ == int((lasso.coef_ != 0).sum())


class TestUnfitted:
    def test_a_class_is_no_model(self):
        with pytest.raises(
            TypeError, match="Expected a trained model instance, got the class Linear"
        ):
            estimate(nn.Linear, X_, Y_)

    def test_a_bare_module_needs_a_loss(self):
        with pytest.raises(ValueError, match="does not say what it was trained with: give `loss=`"):
            ImplicitRegularizationEstimator(mlp()).fit(X_, Y_)

    def test_more_coefficients_than_equations(self):
        with pytest.raises(
            ValueError, match="at least as many equations as coefficients, got 1 eq"
        ):
            estimate(mlp(), X_, Y_, family="l2+l1", params=r"2\.bias")


# --- CUDA ---------------------------------------------------------------------------------------


@pytest.mark.cuda
class TestCuda:
    def test_same_coefficients(self):
        model = mlp()
        expected = estimate(model, X_, Y_, family=["l2", "l1"]).coef_
        moved = copy.deepcopy(model).cuda()
        np.testing.assert_allclose(
            estimate(moved, X_, Y_, family=["l2", "l1"]).coef_, expected, rtol=1e-10
        )
        assert next(moved.parameters()).is_cuda

    def test_a_model_on_the_cpu_stays_there(self):
        model = mlp()
        before = fingerprint(model)
        expected = estimate(model, X_, Y_, covariance="hc3")
        found = estimate(model, X_, Y_, device="cuda", covariance="hc3")
        np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-10)
        np.testing.assert_allclose(found.std_err_, expected.std_err_, rtol=1e-8)
        assert found.score(X_, Y_) == pytest.approx(expected.score(X_, Y_), rel=1e-10)
        assert fingerprint(model) == before

    def test_a_model_on_the_device_may_be_analyzed_on_the_cpu(self):
        model = mlp()
        expected = estimate(model, X_, Y_).coef_
        moved = model.cuda()
        np.testing.assert_allclose(
            estimate(moved, X_, Y_, device="cpu").coef_, expected, rtol=1e-10
        )
        assert next(moved.parameters()).is_cuda

    def test_recurrent_layers_in_eval_state(self):
        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1)

            def forward(self, x):
                return self.out(self.rnn(x)[0][:, -1])

        model = Last().double()
        X = np.random.default_rng(0).normal(size=(N, 6, 3))
        expected = estimate(model, X, Y_).coef_
        np.testing.assert_allclose(estimate(model, X, Y_, device="cuda").coef_, expected, rtol=1e-9)
        np.testing.assert_allclose(estimate(model.cuda(), X, Y_).coef_, expected, rtol=1e-9)

    def test_batch_statistics_and_masks(self):
        model = bn_net()
        expected = estimate(model, X_, Y_, batch_size=10).coef_
        found = estimate(model, X_, Y_, batch_size=10, device="cuda").coef_
        np.testing.assert_allclose(found, expected, rtol=1e-9)

    def test_generators_stay(self):
        model = TestDropout.model().cuda()
        before = torch.cuda.get_rng_state().numpy().tobytes(), rng_states()
        a, b = (
            estimate(model, X_, Y_, module_mode="train", random_state=0).coef_ for _ in range(2)
        )
        assert a == b
        assert (torch.cuda.get_rng_state().numpy().tobytes(), rng_states()) == before

    def test_device_that_is_not_there(self):
        with pytest.raises(ValueError, match=r"one of \['cpu', 'cuda:0'"):
            estimate(mlp(), X_, Y_, device="cuda:99")
