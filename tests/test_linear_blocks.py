"""Rows in blocks: the answers of one block, without a copy of the features."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt, linear_blocks


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
    monkeypatch.setattr(linear_blocks, "_BLOCK", 1000)
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
    monkeypatch.setattr(linear_blocks, "_BLOCK", 1000)
    blocks = problem.gradient()
    np.testing.assert_allclose(blocks.value["coef"], whole.value["coef"], rtol=0, atol=1e-15)
    assert blocks.weight == pytest.approx(whole.weight, rel=1e-14)


def test_hessian_same_as_one_block(rows, monkeypatch):
    X, y = rows[0][:2000] + 2.0, rows[1][:2000]
    problem = adapt(Ridge().fit(X, y), Data(X, y), Options())
    whole = problem.hessian()
    monkeypatch.setattr(linear_blocks, "_BLOCK", 1000)
    np.testing.assert_allclose(problem.hessian(), whole, rtol=1e-12, atol=1e-13)
