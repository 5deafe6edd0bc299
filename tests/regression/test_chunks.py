"""Large tensors: chunks evaluated ahead, and R factors summed over chunks."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.exceptions import CollinearTermsWarning
from sklearn_implicitreg.regression import design as designs
from sklearn_implicitreg.regression.chunks import Chunks
from sklearn_implicitreg.regression.system import r_factor, summed_r_factor


def chunks(design, target, size):
    starts = range(0, len(target), size)
    both = np.column_stack([design, target]).T
    return Chunks(starts, lambda i: both[:, i : i + size])


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e9], ids=str)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_summed_r_factor_is_that_of_a_qr_decomposition(k, scale):
    rng = np.random.default_rng(k)
    design = rng.standard_normal((5000, k)) * np.logspace(0, 4, k)
    design[:, -1] += 1e3 * design[:, 0]  # condition number about 1e3 to 1e7
    target = scale * (design @ np.ones(k) + 1e-3 * rng.standard_normal(5000))
    expected = r_factor(design, target)
    found, n = summed_r_factor(chunks(design, target, 257))
    assert n == 5000
    assert (np.diagonal(found) >= 0).all()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("column", ["zero in the first chunk", "dependent in the first chunk"])
def test_a_first_chunk_without_full_rank_is_decomposed(column):
    rng = np.random.default_rng(0)
    design = rng.standard_normal((900, 2))
    design[:300, 1] = 0.0 if column.startswith("zero") else 2 * design[:300, 0]
    target = rng.standard_normal(900)
    found, _ = summed_r_factor(chunks(design, target, 300))
    np.testing.assert_allclose(found, r_factor(design, target), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_found_in_any_chunk(bad):
    design, target = np.random.default_rng(0).standard_normal((900, 2)), np.ones(900)
    design[700, 1] = bad
    with pytest.raises(ValueError, match="Expected finite equations, got NaN or inf"):
        summed_r_factor(chunks(design, target, 100))


def test_chunks_come_in_their_order_and_errors_reach_the_reader():
    squares = Chunks(range(50), lambda i: i * i)
    assert list(squares) == [i * i for i in range(50)]
    assert list(squares.then(lambda n: -n)) == [-i * i for i in range(50)]

    def fail(i):
        if i == 7:
            raise ValueError("seven")
        return i

    reader = Chunks(range(50), fail)
    n_threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="seven"):
        list(reader)
    assert torch.get_num_threads() == n_threads


@pytest.mark.parametrize("covariance", ["hc3", "ols"])
@pytest.mark.parametrize("family", ["l2", "l1", "l2+smooth_l1+power"])
def test_a_streamed_tensor_gives_what_it_gives_at_once(monkeypatch, family, covariance):
    torch.manual_seed(0)
    net = nn.Linear(60, 40).double()
    with torch.no_grad():
        net.weight[3, :7] = 0.0  # at the kink of l1
    X, Y = torch.randn(80, 60).double(), torch.randn(80, 40).double()

    def fit():
        est = ImplicitRegularizationEstimator(
            net, family=family, loss="mse", covariance=covariance, params="all"
        )
        return est.fit(X, Y)

    whole = fit()
    monkeypatch.setattr(designs, "_CHUNK", 64)
    parts = fit()
    assert parts.n_equations_ == whole.n_equations_
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-11)
    np.testing.assert_allclose(parts.std_err_, whole.std_err_, rtol=1e-10)
    np.testing.assert_allclose(parts.r2_, whole.r2_, rtol=1e-11)
    if covariance == "hc3":
        table = whole.influence(5), parts.influence(5)
        np.testing.assert_allclose(*(t.to_numpy() for t in table), rtol=1e-7)
        assert list(table[0].index) == list(table[1].index)


@pytest.mark.parametrize("small", [1e-9, 1e-12])
def test_a_first_chunk_unlike_the_others(small):
    rng = np.random.default_rng(0)
    design = rng.standard_normal((900, 2))
    target = design @ [3.0, -1.0]  # an exact fit
    design[:300] *= small
    target[:300] = small * rng.standard_normal(300)
    found, _ = summed_r_factor(chunks(design, target, 300))
    expected = r_factor(design, target)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13 * np.abs(expected).max())


def test_limits_of_threads_are_lifted_by_the_last_reader():
    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = blas(), torch.get_num_threads()
    readers = [iter(Chunks(range(20), lambda i: i)) for _ in range(2)]
    for reader in readers:
        next(reader)
    for reader in readers:  # the first to begin is the first to end
        assert list(reader) == list(range(1, 20))
    assert (blas(), torch.get_num_threads()) == before


def test_an_abandoned_reader_lifts_its_limits():
    before = torch.get_num_threads()
    reader = iter(Chunks(range(20), lambda i: i))
    next(reader)
    reader.close()
    assert torch.get_num_threads() == before


def test_a_group_of_zeros_has_no_part_in_hc3():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    net = net.double()
    with torch.no_grad():
        net[2].weight.zero_()
    X, y = torch.randn(40, 3).double(), torch.randn(40, 1).double()
    est = ImplicitRegularizationEstimator(net, family="l1", group_by="layer", loss="mse")
    with pytest.warns(CollinearTermsWarning):
        est.set_params(covariance="hc3").fit(X, y)
    assert np.isnan(est.std_err_).tolist() == [False, True, False]
    alone = ImplicitRegularizationEstimator(
        net, family="l1", params=r"^(0|4)\.weight", group_by="layer", loss="mse", covariance="hc3"
    ).fit(X, y)
    np.testing.assert_allclose(est.coef_[[0, 2]], alone.coef_, rtol=1e-12)
    np.testing.assert_allclose(est.std_err_[[0, 2]], alone.std_err_, rtol=1e-12)
