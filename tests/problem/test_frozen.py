"""Trained modules as shared values: cloning, pickling, worker processes."""

import copy
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from sklearn.base import clone
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sklearn_implicitreg import FrozenModel, ImplicitRegularizationEstimator
from sklearn_implicitreg.problem.frozen import STATES, tensors_in


def test_tensors_in_a_named_tuple_with_a_field_of_values():
    """What torch's max, sort and topk return: ``values`` is a field, and no method."""
    found = torch.tensor([[1.0, 2.0], [4.0, 3.0]]).max(dim=1)
    assert [t.tolist() for t in tensors_in({"best": [found, None, 1]})] == [[2.0, 4.0], [1, 0]]
    net = nn.Linear(2, 1).double()
    net.best = found
    X, y = np.eye(2), np.ones((2, 1))
    est = ImplicitRegularizationEstimator(net, loss="mse").fit(X, y)
    plain = nn.Linear(2, 1).double()
    plain.load_state_dict(net.state_dict())
    np.testing.assert_array_equal(
        est.coef_, ImplicitRegularizationEstimator(plain, loss="mse").fit(X, y).coef_
    )


class Tied(nn.Module):
    """Shared weights, buffers of both kinds, several precisions, a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.bfloat16), requires_grad=False)
        self.coarse = nn.Parameter(torch.full((2,), 0.25, dtype=torch.float16))
        self.register_buffer("kept", torch.arange(4))
        self.register_buffer("lost", torch.randn(4), persistent=False)
        self.register_buffer("none", None)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.decode(torch.tanh(self.encode(x))) + self.lost) * self.scale.float()


class Caches(nn.Module):
    """Keeps its last activation and refuses to be copied."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 1), None

    def forward(self, x):
        self.last = self.inner(x)
        return self.last

    def __deepcopy__(self, memo):
        raise AssertionError("copied")


def tensors(module):
    named = [*module.named_parameters(remove_duplicate=False)]
    return dict(named + [*module.named_buffers(remove_duplicate=False)])


def roundtrip(module):
    return pickle.loads(pickle.dumps(FrozenModel(module))).model


def sizes(frozen):
    """What a worker process sees."""
    est = ImplicitRegularizationEstimator(frozen, loss="mse", params="all")
    X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    return est.fit(X, X).coef_


class TestSharing:
    def test_clone_is_the_same_object(self):
        frozen = FrozenModel(nn.Linear(4, 1))
        assert clone(frozen) is frozen
        assert clone({"model": frozen}, safe=False)["model"].model is not None

    def test_repr_is_short(self):
        assert repr(FrozenModel(nn.Linear(4000, 1))) == "FrozenModel(Linear, 4,001 parameters)"

    @pytest.mark.parametrize("model", [nn.Linear, "net", None], ids=repr)
    def test_takes_modules_only(self, model):
        with pytest.raises(
            TypeError, match="Expected a trained nn.Module instance, got .*FrozenEst"
        ):
            FrozenModel(model)

    def test_the_estimator_takes_it_as_the_module(self):
        model = nn.Linear(4, 4)
        np.testing.assert_array_equal(sizes(FrozenModel(model)), sizes(model))


class TestPickling:
    def test_values_and_kinds_come_back(self):
        model = Tied()
        again = roundtrip(model)
        old, new = tensors(model), tensors(again)
        assert list(old) == list(new)
        for name, tensor in old.items():
            assert type(new[name]) is type(tensor)
            assert new[name].dtype == tensor.dtype
            assert new[name].requires_grad == tensor.requires_grad
            assert torch.equal(new[name], tensor)
        assert again.none is None

    def test_tied_weights_stay_tied(self):
        again = roundtrip(Tied())
        assert again.encode.weight is again.decode.weight
        assert again.encode.bias is not again.decode.bias

    def test_buffers_stay_persistent_or_not(self):
        assert "lost" not in roundtrip(Tied()).state_dict()
        assert "kept" in roundtrip(Tied()).state_dict()

    def test_flags_stay(self):
        model = Tied().eval()
        model.norm.train()
        assert [m.training for m in roundtrip(model).modules()] == [
            m.training for m in model.modules()
        ]

    def test_the_model_itself_stays(self):
        model = Tied()
        before = {n: (id(t), t.detach().clone()) for n, t in tensors(model).items()}
        pickle.dumps(FrozenModel(model))
        for name, tensor in tensors(model).items():
            assert id(tensor) == before[name][0]
            assert torch.equal(tensor, before[name][1])

    def test_outputs_are_equal(self):
        model, x = Tied().eval(), torch.randn(5, 4)
        assert torch.equal(roundtrip(model)(x), model(x))

    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    def test_recurrent_layers_keep_lists_of_weights(self, kind):
        model, x = getattr(nn, kind)(3, 4, num_layers=2), torch.randn(5, 2, 3)
        assert torch.equal(roundtrip(model)(x)[0], model(x)[0])

    def test_parametrized_layers(self):
        """Their class is made on the fly: torch itself pickles it by state only."""
        model = weight_norm(nn.Linear(4, 2))
        with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
            pickle.dumps(model)
        with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
            pickle.dumps(FrozenModel(model))
        assert sizes_of(model) == sizes_of(FrozenModel(model))

    def test_cached_activations_and_refused_copies(self):
        model, x = Caches(), torch.randn(5, 4)
        model(x)
        again = roundtrip(model)
        assert torch.equal(again.last, model.last)
        assert not again.last.requires_grad
        assert torch.equal(again(x), model(x))

    def test_compiled_modules_come_back_as_they_were_before(self):
        model, x = Tied().eval(), torch.randn(5, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            compiled = torch.compile(model)
        again = roundtrip(compiled)
        assert type(again) is Tied
        assert torch.equal(again(x), model(x))

    def test_arrays_are_the_same_objects_each_time(self):
        frozen = FrozenModel(Tied())
        first, second = (frozen.__getstate__()["arrays"] for _ in range(2))
        assert list(first) == list(second)
        assert all(first[name] is second[name] for name in first)
        again = pickle.loads(pickle.dumps(frozen))
        third, fourth = (again.__getstate__()["arrays"] for _ in range(2))
        assert all(third[name] is fourth[name] for name in third)

    def test_arrays_share_the_memory_of_the_weights(self):
        model = nn.Linear(4, 1)
        arrays = FrozenModel(model).__getstate__()["arrays"]
        assert arrays["weight"].ctypes.data == model.weight.data_ptr()
        again = FrozenModel.__new__(FrozenModel)
        again.__setstate__(FrozenModel(model).__getstate__())
        assert again.model.weight.data_ptr() == model.weight.data_ptr()

    def test_structure_has_no_numbers(self):
        structure = FrozenModel(nn.Linear(1000, 1000)).__getstate__()["structure"]
        assert structure.weight.is_meta
        assert len(pickle.dumps(structure)) < 10_000

    def test_twice(self):
        model = Tied()
        again = roundtrip(roundtrip(model))
        assert all(torch.equal(t, tensors(again)[n]) for n, t in tensors(model).items())

    def test_deep_copies_are_independent(self):
        frozen = FrozenModel(nn.Linear(2, 1))
        other = copy.deepcopy(frozen)
        with torch.no_grad():
            other.model.weight.zero_()
        assert frozen.model.weight.abs().sum() > 0


def sizes_of(model):
    est = ImplicitRegularizationEstimator(model, loss="mse", params="all")
    X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    return est.fit(X, X[:, :2]).coef_


class TestWhileItsPartsHaveOtherStates:
    """A copy that calls the module itself lends it its state for a while, in one thread."""

    def test_it_is_pickled_afterwards(self):
        model, found = FrozenModel(nn.Linear(3, 1)), []
        held = model.model.weight.detach().clone()
        other = threading.Thread(target=lambda: found.append(pickle.dumps(model)))
        with STATES:
            weight = model.model.weight.data
            model.model.weight.data = torch.zeros(1, 3)
            other.start()
            other.join(0.3)
            model.model.weight.data = weight
        other.join()
        assert torch.equal(pickle.loads(found[0]).model.weight, held)

    def test_it_is_read_afterwards(self):
        model, found = nn.Linear(3, 1), []
        rows = torch.ones(4, 3), torch.ones(4, 1)

        def fit():
            found.append(ImplicitRegularizationEstimator(model, loss="mse").fit(*rows).coef_)

        fit()
        other = threading.Thread(target=fit)
        with STATES:
            weight = model.weight.data
            model.weight.data = torch.zeros(1, 3)
            other.start()
            other.join(0.5)
            model.weight.data = weight
        other.join()
        assert found[0] == found[1]


class TestWorkers:
    def test_processes_give_the_same_answer(self):
        torch.manual_seed(0)
        # Large enough that joblib maps the arrays into memory, where they are read-only.
        models = [
            FrozenModel(nn.Sequential(nn.Linear(4, 60_000), nn.Tanh(), nn.Linear(60_000, 4)))
            for _ in range(2)
        ]
        here = [sizes(model) for model in models]
        there = Parallel(n_jobs=2, backend="loky")(
            delayed(ImplicitRegularizationEstimator(m, loss="mse", params="all").fit)(X, X)
            for m in models
            for X in [np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)]
        )
        for a, b in zip(here, there, strict=True):
            np.testing.assert_allclose(b.coef_, a, rtol=1e-5)
