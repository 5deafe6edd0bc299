"""Modules on a CUDA device."""

import copy

import numpy as np
import pytest
import torch
from module_cases import (
    X_,
    Y_,
    N,
    bn_net,
    dropout_net,
    estimate,
    fingerprint,
    mlp,
    rng_states,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_implicitreg.exceptions import ModelStateWarning


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

    def test_pinned_batches_that_are_read_ahead(self):
        model = mlp(torch.float32)
        expected = estimate(model, X_, Y_, batch_size=7).coef_
        found = estimate(model, X_, Y_, batch_size=7, device="cuda").coef_
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        for loader in (
            DataLoader(TensorDataset(torch.tensor(X_), torch.tensor(Y_)), 7, pin_memory=True),
            DataLoader(TensorDataset(torch.tensor(X_).cuda(), torch.tensor(Y_).cuda()), 7),
        ):
            np.testing.assert_allclose(estimate(model.cuda(), loader).coef_, expected, rtol=1e-5)

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
    def test_coarse_weights(self, kind):
        model = mlp().to(kind)
        expected = estimate(copy.deepcopy(model).float(), X_, Y_).coef_
        with pytest.warns(ModelStateWarning, match="in float32"):
            found = estimate(model.cuda(), X_, Y_).coef_
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_a_batch_that_is_too_large_is_cut(self):
        """A layer that takes more memory than there is for all rows, and not for one."""

        class Wide(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner
                self.n = torch.cuda.get_device_properties(0).total_memory // (8 * 10)

            def forward(self, x):
                held = torch.zeros(len(x), self.n, dtype=torch.float64, device="cuda")
                return self.inner(x) + 0 * held[:, :1]

        model = mlp()
        expected = estimate(model, X_, Y_).coef_
        np.testing.assert_allclose(estimate(Wide(model).cuda(), X_, Y_).coef_, expected, rtol=1e-9)

    def test_generators_stay(self):
        model = dropout_net().cuda()
        before = torch.cuda.get_rng_state().numpy().tobytes(), rng_states()
        a, b = (
            estimate(model, X_, Y_, module_mode="train", random_state=0).coef_ for _ in range(2)
        )
        assert a == b
        assert (torch.cuda.get_rng_state().numpy().tobytes(), rng_states()) == before

    def test_device_that_is_not_there(self):
        with pytest.raises(ValueError, match=r"one of \['cpu', 'cuda:0'"):
            estimate(mlp(), X_, Y_, device="cuda:99")
