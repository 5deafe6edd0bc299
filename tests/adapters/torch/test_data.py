"""Every kind of data that a module takes, and the errors for bad data."""

import copy

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from module_cases import X_, Y_, N, Noisy, P, Rows, by_hand, estimate, l2, mlp, rows
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from sklearn_implicitreg.adapters.registry import Data
from sklearn_implicitreg.adapters.torch.data import array_rows
from sklearn_implicitreg.exceptions import AugmentationWarning


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
        DataLoader(Rows(X_, Y_), batch_sampler=BatchSampler(range(len(X_)), 2, drop_last=False)),
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
            (Named(X_, Y_), None, None, TypeError, "or dicts with 'labels', got a dict of"),
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


class TestLabels:
    """Labels of many rows are looked through in pieces, for sorting copies what it sorts."""

    N_ROWS = 600_000

    def found(self, y):
        return array_rows(Data(np.zeros((len(y), 1), np.float32), y)).classes

    @pytest.mark.parametrize("kind", ["int64", "int8", "float32", "bool"])
    def test_are_those_of_all_rows(self, kind):
        y = np.repeat([1, 0, 1], [300_000, 299_999, 1]).astype(kind)
        y[-1] = 5
        np.testing.assert_array_equal(self.found(y), np.unique(y))

    @pytest.mark.parametrize("last", [0.5, np.nan])
    def test_numbers_of_which_the_last_is_not_whole(self, last):
        y = np.zeros(self.N_ROWS)
        y[-1] = last
        assert self.found(y) is None

    def test_memory_does_not_grow_with_the_rows(self):
        y = torch.arange(self.N_ROWS) % 10
        with torch.profiler.profile(profile_memory=True) as profile:
            self.found(y)
        most = max(abs(event.cpu_memory_usage) for event in profile.events())
        assert most <= 16 * 2**18
