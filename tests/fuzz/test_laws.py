"""Laws that hold for every model, family and data set, on random ones."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from fuzz.situations import Situation, nets, situations, sparse, without_columns_in_order
from hypothesis import assume, given
from sklearn.base import clone

from sklearn_implicitreg import ImplicitRegularizationCV, equations

# The models are not trained on the rows: no advice on training or search applies to them.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn_implicitreg.exceptions.SelectionWarning"),
    pytest.mark.filterwarnings("ignore::sklearn_implicitreg.exceptions.OutputWarning"),
]
ROUNDING = 1e-11  # of a fit in float64, times the condition of its columns


def fitted(case: Situation, model, X, y, sample_weight=None, **options):
    return case.estimator(model, **options).fit(X, y, sample_weight)


def made(case: Situation, **options):
    """Model, data and fit; skipped where the columns cannot be told apart."""
    X, y = case.rows()
    model = case.model(X, y)
    est = fitted(case, model, X, y, **options)
    assume(np.isfinite(est.coef_).all() and est.condition_number_ < 1e6)
    return model, X, y, est


def assert_same(case, one, other, X, y, rounding=ROUNDING, rows=None):
    """The same coefficients, each judged by what it contributes to the gradient."""
    columns = equations(one, *(rows or (X, y)))
    sizes = np.linalg.norm(columns.data.to_numpy(), axis=0)
    scale = np.linalg.norm(columns.target)
    own = rounding * one.condition_number_
    # What the mean over rows cancels is rounded as the rows are.
    error = np.abs(one.coef_ - other.coef_) * sizes / (scale + _row_size(case, X))
    assert error.max() <= own, (one.coef_, other.coef_, error, own)
    assert abs(one.r2_ - other.r2_) <= 10 * own * (1 + _row_size(case, X) / scale)
    assert one.term_names_ == other.term_names_


def _row_size(case, X):
    return float(np.abs(X).max() * np.sqrt(case.d))


@given(situations())
def test_the_order_of_rows_does_not_matter(case):
    model, X, y, est = made(case)
    order = case.rng.permutation(case.n)
    assert_same(case, est, fitted(case, model, X[order], y[order]), X, y)


@given(situations())
def test_rows_given_twice_are_the_same_mean(case):
    model, X, y, est = made(case)
    twice = fitted(case, model, np.concatenate([X, X]), np.concatenate([y, y]))
    assert_same(case, est, twice, X, y)


@given(situations())
def test_a_weight_is_a_number_of_copies(case):
    model, X, y, _ = made(case)
    copies = case.rng.integers(0, 4, case.n)
    copies[:2] = 1
    weighted = fitted(case, model, X, y, copies.astype(float))
    repeated = fitted(case, model, np.repeat(X, copies, axis=0), np.repeat(y, copies, axis=0))
    assume(weighted.condition_number_ < 1e6)
    rows = np.repeat(X, copies, axis=0), np.repeat(y, copies, axis=0)
    assert_same(case, repeated, weighted, X, y, rows=rows)


@given(nets())
def test_the_size_of_batches_does_not_matter(case):
    model, X, y, est = made(case)
    assert_same(case, est, fitted(case, model, X, y, batch_size=case.n), X, y)


@given(situations())
def test_the_order_of_columns_does_not_matter(case):
    model, X, y, est = made(case)
    order = case.rng.permutation(case.d)
    other = fitted(case, without_columns_in_order(model, order), X[:, order], y)
    assert_same(case, est, other, X, y)


@given(situations())
def test_a_known_coefficient_moves_its_column_to_the_other_side(case):
    model, X, y, est = made(case, family="l2+power")
    first, second = est.coef_
    part = fitted(case, model, X, y, family="power", known={"l2": first})
    np.testing.assert_allclose(part.coef_, second, rtol=1e-6 * est.condition_number_, atol=1e-12)


@given(situations())
def test_a_joined_family_explains_at_least_what_its_parts_do(case):
    model, X, y, est = made(case, family="l2+l1+power")
    for part in ("l2", "l1", "power", "l2+l1"):
        assert fitted(case, model, X, y, family=part).r2_ <= est.r2_ + 1e-9


@pytest.mark.filterwarnings("ignore::sklearn_implicitreg.exceptions.SelectionWarning")
@given(situations())
def test_the_score_of_the_same_rows_is_r2(case):
    _, X, y, est = made(case)
    assert est.score(X, y) == pytest.approx(est.r2_, abs=1e-9)


@given(situations())
def test_clone_and_pickle_give_the_same_bits(case):
    _, X, y, est = made(case)
    np.testing.assert_array_equal(clone(est).fit(X, y).coef_, est.coef_)
    loaded = pickle.loads(pickle.dumps(est))
    np.testing.assert_array_equal(loaded.coef_, est.coef_)
    assert str(loaded.summary()) == str(est.summary())


@given(nets())
def test_float32_agrees_to_its_precision(case):
    model, X, y, est = made(case)
    single = fitted(case, model, X, y, dtype="float32")
    assert_same(case, est, single, X, y, rounding=3e-6)


@given(situations())
def test_sparse_rows_are_the_same_rows(case):
    assume(not case.is_net and not case.kind.startswith("MLP"))
    model, X, y, est = made(case)
    assert_same(case, est, fitted(case, model, sparse(X), y), X, y)


@given(nets())
def test_a_loss_times_c_has_coefficients_times_c(case):
    assume(case.loss == "mse")
    model, X, y, est = made(case)

    def scaled(output, target):
        return 3.7 * (output - target).square().mean(dim=1)

    times = fitted(case, model, X, y, loss=scaled)
    np.testing.assert_allclose(times.coef_, 3.7 * est.coef_, rtol=1e-8 * est.condition_number_)
    assert times.r2_ == pytest.approx(est.r2_, abs=1e-9)


@given(situations())
def test_the_tables_hold_the_regression(case):
    _, X, y, est = made(case)
    table = equations(est, X, y)
    assert len(table.data) == est.n_equations_
    scale = np.linalg.norm(table.data.to_numpy(), axis=0)
    found = np.linalg.lstsq(table.data.to_numpy() / scale, table.target, rcond=None)[0] / scale
    error = np.abs(found - est.coef_) * scale / np.linalg.norm(table.target)
    assert error.max() <= 1e-11 * est.condition_number_**2


@given(situations())
def test_a_search_fits_each_family_as_it_is_fitted_alone(case):
    model, X, y, est = made(case)
    families = ["l2", "power", "l2+l1"]
    options = {"params": case.params}
    if case.is_net:
        options |= {"loss": case.loss, "batch_size": case.batch_size}
    search = ImplicitRegularizationCV(model, families=families, **options)
    search.fit(X, y)
    for family, r2 in zip(families, search.cv_results_["r2"], strict=True):
        assert r2 == pytest.approx(fitted(case, model, X, y, family=family).r2_, abs=1e-9)
    best = fitted(case, model, X, y, family=search.best_family_)
    np.testing.assert_allclose(search.coef_, best.coef_, rtol=1e-7 * best.condition_number_)


@given(situations())
def test_nothing_of_the_users_is_changed(case):
    X, y = case.rows()
    model = case.model(X, y)
    before = _state(model, X, y)
    est = fitted(case, model, X, y)
    est.score(X, y)
    equations(est, X, y)
    assert _state(model, X, y) == before


def _state(model, X, y):
    torch_state = torch.get_rng_state().numpy().tobytes()
    numpy_state = np.random.get_state()[1].tobytes()
    return pickle.dumps(model), X.tobytes(), y.tobytes(), torch_state, numpy_state
