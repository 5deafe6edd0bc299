"""Nothing of the user's changes: weights, flags, buffers, generators, memory."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from module_cases import (
    X_,
    Y_,
    Noisy,
    P,
    dropout_net,
    estimate,
    fingerprint,
    mlp,
    rng_states,
)
from sklearn.base import clone
from torch import nn
from torch.utils.data import DataLoader

from sklearn_implicitreg import FrozenModel
from sklearn_implicitreg.exceptions import AugmentationWarning


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
        with pytest.raises(ValueError, match="as the forward of Broken takes it.*: broken"):
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
        model, states = dropout_net(), rng_states()

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
        shared = est._equations.judged.problem.params["0.weight"]
        assert shared.data_ptr() == model[0].weight.data_ptr()
