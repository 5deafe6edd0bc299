"""Rows in blocks: the answers of one block, without a copy of the features."""

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import (
    Lasso,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    SGDClassifier,
)
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_implicitreg import (
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    LinearModel,
)
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.adapters.linear import problems


@pytest.fixture(scope="module")
def rows():
    """Features on disk, 64 MB of them, with targets."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200_000, 40))
    return X, X @ rng.normal(size=40) + 5 * rng.normal(size=len(X))


@pytest.fixture(scope="module", params=[np.float64, np.float32], ids=["float64", "float32"])
def on_disk(request, rows, tmp_path_factory):
    """The features as a memory map."""
    path = tmp_path_factory.mktemp("rows") / "X.dat"
    written = np.memmap(path, dtype=request.param, mode="w+", shape=rows[0].shape)
    written[:] = rows[0]
    written.flush()
    return np.memmap(path, dtype=request.param, mode="r", shape=rows[0].shape)


def ridge_of(X, y, alpha):
    """Ridge from the normal equations, so that X is not copied."""
    X = X.astype(np.float64)
    model = Ridge(alpha=alpha, fit_intercept=False).fit(X[:2], y[:2])
    model.coef_ = np.linalg.solve(X.T @ X + alpha * np.eye(X.shape[1]), X.T @ y)
    return model


def peak_of(function):
    """What a function returns, and the bytes that it had allocated at once."""
    tracemalloc.start()
    try:
        answer = function()
        return answer, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_map_is_not_copied(rows, on_disk):
    model = ridge_of(on_disk, rows[1], alpha=1e4)
    est = ImplicitRegularizationEstimator(model)
    _, peak = peak_of(lambda: est.fit(on_disk, rows[1]))
    assert peak < rows[0].nbytes / 2
    assert est.in_model_units()["alpha"] == pytest.approx(1e4, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_integers_on_disk_are_read_in_blocks(dtype, tmp_path):
    rng = np.random.default_rng(0)
    written = np.memmap(tmp_path / "X.dat", dtype=dtype, mode="w+", shape=(200_000, 40))
    written[:] = rng.integers(0, 9, size=written.shape)
    X, y = written, rng.normal(size=len(written))
    model = LinearModel(rng.normal(size=40), intercept=1.0)
    est = ImplicitRegularizationEstimator(model)
    _, peak = peak_of(lambda: est.fit(X, y))
    assert peak < 8 * X.size / 2
    whole = ImplicitRegularizationEstimator(model).fit(X.astype(np.float64), y)
    assert est.coef_[0] == pytest.approx(whole.coef_[0], rel=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        Ridge(),
        LogisticRegression(C=1.0),
        Lasso(alpha=0.1),
        MLPRegressor(hidden_layer_sizes=(3,), max_iter=20),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_integers_are_as_good_as_floats(model):
    X = np.random.default_rng(0).integers(0, 9, size=(60, 3))
    y = (X @ [1, 2, -1] > 7).astype(int)
    model.fit(X.astype(float), y)
    one, two = (
        adapt(model, Data(features, y), Options()).gradient() for features in (X, X.astype(float))
    )
    for name, value in two.value.items():
        assert_allclose(one.value[name].numpy(), value.numpy(), rtol=1e-13, atol=1e-15)


def test_memory_of_selection_and_hessian(rows, on_disk):
    model = ridge_of(on_disk, rows[1], alpha=1e4)
    problem = adapt(model, Data(on_disk, rows[1]), Options())
    _, peak = peak_of(problem.hessian)
    assert peak < rows[0].nbytes / 2
    search = ImplicitRegularizationCV(model, families=["l2", "l1"])
    _, peak = peak_of(lambda: search.fit(on_disk, rows[1]))
    assert peak < rows[0].nbytes / 2
    assert search.best_family_ == "l2"


def labels_of(y):
    """Two classes."""
    return y > np.median(y)


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", nn.HuberLoss()], ids=str)
@pytest.mark.parametrize("as_given", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
def test_same_as_one_block(rows, loss, as_given, monkeypatch):
    X, y = as_given(rows[0][:2000]), rows[1][:2000]
    model = Ridge(solver="lsqr").fit(X, y)
    problem = adapt(model, Data(X, y), Options(loss=loss, params="all"))
    whole = problem.gradient()
    assert len(list(problem.blocks())) == 1
    monkeypatch.setattr(problems, "_BLOCK", 1000)
    assert len(list(problem.blocks())) == 80
    blocks = problem.gradient()
    for name, value in whole.value.items():
        np.testing.assert_allclose(blocks.value[name], value, rtol=0, atol=1e-15 * whole.scale)
    assert blocks.loss == pytest.approx(whole.loss, rel=1e-12)
    assert blocks.weight == whole.weight
    assert blocks.n_rows == whole.n_rows
    assert blocks.scale == pytest.approx(whole.scale, rel=0.1)
    assert 80 <= len(list(problem.blocks(20))) <= 100


def test_weighted_classes_same_as_one_block(rows, monkeypatch):
    X, y = rows[0][:2000], labels_of(rows[1][:2000])
    weight = np.random.default_rng(1).uniform(1, 2, size=len(y))
    model = LogisticRegression(class_weight="balanced").fit(X, y, weight)
    problem = adapt(model, Data(X, y, weight), Options())
    whole = problem.gradient()
    monkeypatch.setattr(problems, "_BLOCK", 1000)
    blocks = problem.gradient()
    np.testing.assert_allclose(blocks.value["coef"], whole.value["coef"], rtol=0, atol=1e-15)
    assert blocks.weight == pytest.approx(whole.weight, rel=1e-14)


def test_hessian_same_as_one_block(rows, monkeypatch):
    X, y = rows[0][:2000] + 2.0, rows[1][:2000]
    problem = adapt(Ridge().fit(X, y), Data(X, y), Options())
    whole = problem.hessian()
    monkeypatch.setattr(problems, "_BLOCK", 1000)
    np.testing.assert_allclose(problem.hessian(), whole, rtol=1e-12, atol=1e-13)


class Blocks:
    """Rows in blocks, made anew at every pass."""

    def __init__(self, *arrays, size=300):
        self.arrays, self.size = arrays, size

    def __iter__(self):
        for start in range(0, len(self.arrays[0]), self.size):
            yield tuple(array[start : start + self.size] for array in self.arrays)


STREAMS = {
    "Ridge": (Ridge(), "y", "l2"),
    "Lasso": (Lasso(alpha=0.5), "y", "l1"),
    "LogisticRegression": (LogisticRegression(class_weight={0: 2.0, 1: 1.0}), "labels", "l2"),
    "PoissonRegressor": (PoissonRegressor(), "counts", "l2"),
}


@pytest.mark.parametrize(("model", "kind", "family"), STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_iterable_of_blocks(rows, model, kind, family, weighted):
    X, y = rows[0][:2000], rows[1][:2000]
    y = {"y": y, "labels": labels_of(y).astype(int), "counts": np.round(np.abs(y))}[kind]
    weight = np.random.default_rng(1).uniform(1, 2, size=len(y)) if weighted else None
    model = clone(model).fit(X, y, sample_weight=weight)
    whole = ImplicitRegularizationEstimator(model, family=family).fit(X, y, weight)
    given = (X, y) if weight is None else (X, y, weight)
    est = ImplicitRegularizationEstimator(model, family=family).fit(Blocks(*given))
    assert est.coef_ == pytest.approx(whole.coef_, rel=1e-9)
    assert est.in_model_units() == pytest.approx(whole.in_model_units(), rel=1e-9)
    assert est.verdict_ == whole.verdict_


def test_blocks_of_other_kinds(rows):
    X, y = rows[0][:2000], rows[1][:2000]
    model = LinearModel(Ridge(alpha=30.0, fit_intercept=False).fit(X, y).coef_)
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y).reshape(-1, 1))
    loader = DataLoader(data, batch_size=64, shuffle=True)
    for source in (loader, list(Blocks(X, y)), Blocks(X.astype(np.float64), y, size=1)):
        est = ImplicitRegularizationEstimator(model).fit(source)
        assert est.coef_[0] * 2000 == pytest.approx(30.0, rel=1e-8)
    sparse_blocks = [(sparse.csr_matrix(X[:900]), y[:900]), (sparse.csr_matrix(X[900:]), y[900:])]
    est = ImplicitRegularizationEstimator(model).fit(sparse_blocks)
    assert est.coef_[0] * 2000 == pytest.approx(30.0, rel=1e-8)


def test_blocks_through_a_pipeline(rows):
    X, y = 3 * rows[0][:2000] + 1.0, rows[1][:2000]
    model = make_pipeline(StandardScaler(), Ridge(alpha=30.0)).fit(X, y)
    est = ImplicitRegularizationEstimator(model).fit(Blocks(X, y))
    assert est.in_model_units()["alpha"] == pytest.approx(30.0, rel=1e-8)
    with pytest.raises(ValueError, match="more than once, got an iterator"):
        est.fit(iter(Blocks(X, y)))
    with pytest.raises(ValueError, match="Expected blocks"):
        est.fit(Blocks(X))


def test_random_blocks_and_hessian_of_a_stream(rows):
    X, y = rows[0][:2000] + 1.0, np.sort(rows[1][:2000])
    model = Ridge().fit(X, y)
    whole = adapt(model, Data(X, y), Options())
    stream = adapt(model, Data(Blocks(X, y)), Options())
    np.testing.assert_allclose(stream.hessian(), whole.hessian(), rtol=1e-10, atol=1e-12)
    blocks = list(stream.blocks(20))
    assert len(blocks) == 100
    assert sum(block.n_rows for block in blocks) == 2000
    total = sum(block.sums["coef"] for block in blocks) / 2000
    np.testing.assert_allclose(total, whole.gradient().value["coef"], atol=1e-11)
    spread = [np.std([b.sums["coef"][0] / b.weight for b in p.blocks(20)]) for p in (stream, whole)]
    assert spread[0] == pytest.approx(spread[1], rel=0.3)
    search = ImplicitRegularizationCV(model, families=["l2", "l1"])
    assert search.fit(Blocks(X, y)).best_family_ == search.fit(X, y).best_family_


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda X, y: iter(Blocks(X, y)), "more than once, got an iterator"),
        (lambda X, y: Blocks(X), "Expected blocks"),
        (lambda X, y: Blocks(X, y, y, y), "Expected blocks"),
        (lambda X, y: Blocks(X[:0], y[:0]), "at least 1 block"),
        (lambda X, y: Blocks(X[:, 1:], y), "39 features"),
        (lambda X, y: Blocks(np.where(X > 3, np.nan, X), y), "NaN"),
    ],
    ids=["iterator", "no y", "four parts", "empty", "features", "NaN"],
)
def test_bad_blocks_are_refused(rows, make, message):
    X, y = rows[0][:2000], rows[1][:2000]
    model = Ridge().fit(X, y)
    with pytest.raises(ValueError, match=message):
        ImplicitRegularizationEstimator(model).fit(make(X, y))


def test_balanced_classes_need_all_rows(rows):
    X, y = rows[0][:2000], labels_of(rows[1][:2000])
    model = LogisticRegression(class_weight="balanced").fit(X, y)
    with pytest.raises(ValueError, match="all rows at once for class_weight='balanced'"):
        ImplicitRegularizationEstimator(model).fit(Blocks(X, y))
    sgd = SGDClassifier().fit(X, y, sample_weight=np.full(2000, 2.0))
    with pytest.raises(ValueError, match="rows at once for SGDClassifier"):
        ImplicitRegularizationEstimator(sgd).fit(Blocks(X, y, np.full(2000, 2.0)))


class TestFeaturesFarFromZero:
    @pytest.mark.parametrize(("offset", "accuracy"), [(1e3, 1e-9), (1e5, 1e-7), (1e7, 1e-4)])
    def test_ridge_with_an_intercept(self, offset, accuracy):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((200, 5)) + offset
        y = (X - offset) @ rng.standard_normal(5) + rng.standard_normal(200)
        found = ImplicitRegularizationEstimator(Ridge(alpha=5.0).fit(X, y)).fit(X, y)
        assert 200 * found.coef_[0] == pytest.approx(5.0, rel=accuracy)
        assert found.verdict_ == "supported"

    def test_rows_that_come_in_blocks(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((200, 5)) + 1e5
        y = (X - 1e5) @ rng.standard_normal(5) + rng.standard_normal(200)
        found = ImplicitRegularizationEstimator(Ridge(alpha=5.0).fit(X, y))
        found.fit([(X[:90], y[:90]), (X[90:], y[90:])])
        assert 200 * found.coef_[0] == pytest.approx(5.0, rel=1e-7)

    def test_an_intercept_that_is_not_at_its_best(self):
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((50, 3)) + 10, rng.standard_normal(50)
        coef = np.array([1.0, 2.0, -1.0])
        model = LinearModel(coef, intercept=1.0)
        found = adapt(model, Data(X, y), Options()).gradient()
        expected = 2 * X.T @ (X @ coef + 1 - y) / 50
        assert_allclose(found.value["coef"].numpy(), expected, rtol=1e-12)

    def test_constant_of_a_design_in_the_hessian(self):
        sm = pytest.importorskip("statsmodels.api")
        rng = np.random.default_rng(0)
        centered = rng.standard_normal((100, 2))
        y = rng.standard_normal(100)
        design = sm.add_constant(centered + 1e6)
        problem = adapt(sm.OLS(y, design).fit(), Data(design, y), Options(params="coef"))
        expected = 2 * np.cov(centered.T, bias=True)
        assert_allclose(problem.hessian(), expected, rtol=1e-7)
