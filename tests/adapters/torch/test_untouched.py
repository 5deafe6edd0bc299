"""Nothing of the user's changes: weights, flags, buffers, generators, memory."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from module_cases import (
    X_,
    Y_,
    N,
    Noisy,
    P,
    dropout_net,
    estimate,
    fingerprint,
    mlp,
    rng_states,
)
from sklearn.base import clone
from skorch import NeuralNetRegressor
from torch import nn
from torch.utils.data import DataLoader

from sklearn_implicitreg import FrozenModel, ImplicitRegularizationEstimator
from sklearn_implicitreg.exceptions import AugmentationWarning
from sklearn_implicitreg.trajectory import ContinueTraining, record


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


class TestInterrupted:
    """Ctrl-C at any call of the package."""

    @staticmethod
    def interrupted(run, state_of, n_places=25):
        """Number of interrupts that came, each of which left the state as it was."""
        calls, at = 0, None

        def trace(frame, event, _):
            nonlocal calls
            if event == "call" and frame.f_globals.get("__name__", "").startswith("sklearn_imp"):
                calls += 1
                if calls == at:
                    sys.setprofile(None)
                    raise KeyboardInterrupt

        def watched():
            nonlocal calls
            calls = 0
            sys.setprofile(trace)
            try:
                run()
            finally:
                sys.setprofile(None)

        watched()
        before, found = state_of(), 0
        for at in np.linspace(1, calls, n_places, dtype=int).tolist():
            try:
                watched()
            except KeyboardInterrupt:
                found += 1
            assert state_of() == before, at
        return found

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("module_mode", ["auto", "train"])
    def test_fit_and_score(self, busy, module_mode):
        def run():
            options = dict(module_mode=module_mode, random_state=0, batch_size=10)
            estimate(busy, X_[:30], Y_[:30], **options).score(X_[30:], Y_[30:])

        assert self.interrupted(run, lambda: (fingerprint(busy), rng_states())) > 15

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_record_and_probe(self, busy):
        optimizer = torch.optim.SGD(busy.parameters(), lr=0.01)

        def train_epoch(model, optimizer, recorder):
            for rows in np.split(np.arange(20), 4):
                recorder.batch(rows)
                optimizer.zero_grad()
                (model(torch.as_tensor(X_[rows])).ravel() - 1).square().mean().backward()
                optimizer.step()

        def run():
            probe = ContinueTraining(1, train_epoch, optimizer, random_state=0)
            how = dict(mode="trajectory", trajectory=probe, window="epoch", batch_size=5)
            estimate(busy, X_[:20], Y_[:20], **how)

        def state():
            hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
            return fingerprint(busy), rng_states(), [len(own) for own in hooks]

        assert self.interrupted(run, state) > 15

    def test_a_training_that_is_recorded(self):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with pytest.raises(KeyboardInterrupt), record(model, optimizer, memory_limit=0) as recorder:
            for i in range(5):
                optimizer.zero_grad()
                model(torch.as_tensor(X_)).square().mean().backward()
                optimizer.step()
                if i == 3:
                    raise KeyboardInterrupt
        assert not optimizer._optimizer_step_pre_hooks
        assert recorder.trajectory.n_steps == 4


class Decorrelated(nn.Module):
    """Its loss calls a normalization that it has without parameters."""

    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Linear(P, 3), nn.BatchNorm1d(3, affine=False)

    def forward(self, x):
        return self.body(x)

    def loss(self, output, target):
        normed = self.norm(output)
        return (normed.mean(1) - target).square().mean()


class TestALossThatCallsTheModel:
    @pytest.mark.parametrize("grad", [True, False])
    def test_a_part_with_parameters(self, grad):
        model = nn.Sequential(nn.Linear(P, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
        inner = torch.as_tensor(X_)

        def loss(output, target):
            with torch.set_grad_enabled(grad):
                return (output[:, 0] - target).square().mean() + model[:2](inner).mean()

        before = fingerprint(model)
        with pytest.raises(ValueError, match="one that calls the model itself"):
            estimate(model, X_, Y_, loss=loss, batch_size=N)
        assert fingerprint(model) == before

    def test_a_part_whose_buffers_move(self):
        model = Decorrelated().double()
        before = fingerprint(model)
        with pytest.raises(ValueError, match="one that calls the model itself"):
            estimate(model, X_, Y_, loss=model.loss, batch_size=N)
        assert fingerprint(model) == before

    def test_a_part_at_rest(self):
        model = Decorrelated().double().eval()
        plain = copy.deepcopy(model)
        with torch.no_grad():
            plain.body.weight.div_((1 + model.norm.eps) ** 0.5)
            plain.body.bias.div_((1 + model.norm.eps) ** 0.5)
        found = estimate(model, X_, Y_, loss=model.loss, module_mode="eval").coef_
        loss = lambda o, t: (o.mean(1) - t).square().mean()  # noqa: E731
        expected = estimate(plain, X_, Y_, loss=loss, module_mode="eval")
        # The gradient by a weight that is divided by s is 1/s of that at the quotient.
        np.testing.assert_allclose(found, expected.coef_ / (1 + model.norm.eps), rtol=1e-9)


def test_generators_stay_after_recover():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.drop, self.b = nn.Linear(P, 3), nn.Dropout(0.1), nn.Linear(3, 1)

        def forward(self, x):
            return self.b(self.drop(torch.tanh(self.a(x))))

    X, y = X_.astype(np.float32), Y_.reshape(-1, 1).astype(np.float32)
    torch.manual_seed(0)
    how = dict(max_epochs=20, lr=0.1, train_split=None, verbose=0, optimizer__weight_decay=0.1)
    net = NeuralNetRegressor(Net, **how).fit(X, y)
    est = ImplicitRegularizationEstimator(net, family="weight_decay", positive=True).fit(X, y)
    before, states = fingerprint(net.module_), rng_states()
    first, second = est.recover(X, y), est.recover(X, y)
    assert first.recovered.loss == second.recovered.loss
    assert first.ablated.loss == second.ablated.loss
    assert fingerprint(net.module_) == before
    assert rng_states() == states
