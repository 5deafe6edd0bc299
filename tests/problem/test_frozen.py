"""Trained modules as shared values: cloning, pickling, worker processes."""

import copy
import io
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetRegressor
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sklearn_implicitreg import (
    FrozenModel,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
)
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


def arrays_of(model):
    """Large arrays that a pickle hands to its pickler."""
    found = []

    class Pickler(pickle.Pickler):
        def reducer_override(self, value):
            if isinstance(value, np.ndarray) and value.nbytes > 2**20:
                found.append(value)
            return NotImplemented

    Pickler(io.BytesIO(), protocol=5).dump(
        FrozenModel(model) if isinstance(model, nn.Module) else model
    )
    return found


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
        frozen = FrozenModel(nn.Linear(1000, 1000))
        first, second = (arrays_of(frozen) for _ in range(2))
        assert len(first) == 1
        assert all(one is other for one, other in zip(first, second, strict=True))
        again = pickle.loads(pickle.dumps(frozen))
        third, fourth = (arrays_of(again) for _ in range(2))
        assert all(one is other for one, other in zip(third, fourth, strict=True))

    def test_arrays_share_the_memory_of_the_weights(self):
        model = nn.Linear(1000, 1000)
        addresses = [array.ctypes.data for array in arrays_of(model)]
        assert addresses == [model.weight.data_ptr()]

    def test_structure_has_no_numbers(self):
        out_of_band = []
        frozen = FrozenModel(nn.Linear(1000, 1000))
        rest = pickle.dumps(frozen, protocol=5, buffer_callback=out_of_band.append)
        assert len(rest) < 10_000

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


class Sizes(nn.Module):
    """Large and small tensors, in every way that they lie in memory, and tied ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.wide = nn.Parameter(torch.randn(600, 700))
        self.turned = nn.Parameter(torch.randn(700, 600).t()[:, 3:])
        self.tied = self.wide
        self.bits = nn.Parameter(torch.randn(800, 800).bfloat16())
        self.fine = nn.Parameter(torch.randn(40).double())
        self.register_buffer("part", self.wide.detach()[2:4])
        self.register_buffer("lost", torch.randn(300, 1000), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.table = {"loose": [torch.randn(400, 700)]}
        self.wide.kind = "matrix"
        self.empty = nn.Parameter(torch.empty(0, 3), requires_grad=False)
        self.hook = self.register_forward_hook(doubled)

    def forward(self, x):
        return x @ self.wide


def doubled(module, inputs, output):
    return 2 * output


def estimator_of(model, **params):
    return ImplicitRegularizationEstimator(model, loss="mse", **params)


class TestEstimators:
    def test_a_pickled_estimator_has_a_proper_model(self):
        model = Sizes()
        again = pickle.loads(pickle.dumps(estimator_of(model))).model
        assert type(again) is Sizes
        assert again.tied is again.wide
        assert again.wide.kind == "matrix"
        old, new = tensors(model), tensors(again)
        loose = again.table["loose"][0]
        assert torch.equal(loose, model.table["loose"][0])
        assert list(new) == list(old)
        for name, tensor in old.items():
            assert type(new[name]) is type(tensor)
            assert torch.equal(new[name], tensor)
            assert new[name].dtype == tensor.dtype
            assert new[name].stride() == tensor.stride()
            assert new[name].requires_grad == tensor.requires_grad
        assert list(again.state_dict()) == list(model.state_dict())
        x = torch.randn(2, 600)
        assert torch.equal(again(x), model(x))

    def test_views_of_the_same_memory_stay_so(self):
        again = pickle.loads(pickle.dumps(estimator_of(Sizes()))).model
        with torch.no_grad():
            again.wide.fill_(3.0)
        assert (again.part == 3.0).all()

    def test_what_arrives_can_be_trained_and_the_model_stays(self):
        model = Sizes()
        before = copy.deepcopy(model.state_dict())
        again = pickle.loads(pickle.dumps(estimator_of(model))).model
        with torch.no_grad():
            for tensor in tensors(again).values():
                tensor.zero_()
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())

    def test_a_model_arrives_once(self):
        X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
        est = estimator_of(nn.Linear(4, 4)).fit(X, X)
        again = pickle.loads(pickle.dumps(est))
        assert again.model is again.model_
        search = ImplicitRegularizationCV(est.model, families=["l2", "l1"], loss="mse").fit(X, X)
        again = pickle.loads(pickle.dumps(search))
        assert again.model is again.best_estimator_.model
        np.testing.assert_array_equal(again.coef_, search.coef_)

    def test_copies_of_a_frozen_model(self):
        frozen = FrozenModel(nn.Linear(2, 1))
        assert copy.copy(frozen).model is frozen.model
        again, module = copy.deepcopy([frozen, frozen.model])
        assert again.model is module is not frozen.model
        assert torch.equal(module.weight, frozen.model.weight)

    @pytest.mark.parametrize("how", ["state", "reduce"])
    def test_an_estimator_that_pickles_itself_and_holds_a_module(self, how):
        own = OwnState if how == "state" else OwnReduce
        again = pickle.loads(pickle.dumps(estimator_of(own(nn.Linear(2, 1))))).model
        assert type(again) is own
        assert isinstance(again.module, nn.Linear)

    def test_an_estimator_that_holds_itself(self):
        model = Ridge()
        model.me_ = model
        again = pickle.loads(pickle.dumps(estimator_of(model))).model
        assert again.me_ is again

    def test_copies_are_as_before(self):
        model = Caches()
        est = estimator_of(model)
        assert copy.copy(est).model is model
        assert clone(est).model is model
        assert est.get_params()["model"] is model
        with pytest.raises(AssertionError, match="copied"):
            copy.deepcopy(est)
        deep = copy.deepcopy([estimator_of(nn.Linear(2, 1))] * 2)
        assert deep[0] is deep[1]

    @pytest.mark.parametrize("how", ["in place", "data", "replaced"])
    @pytest.mark.parametrize("size", [4, 1000])
    def test_weights_of_the_moment_arrive(self, size, how):
        model = nn.Linear(size, size)
        est = estimator_of(model)
        first = pickle.dumps(est)
        with torch.no_grad():
            if how == "in place":
                model.weight.add_(1.0)
            elif how == "data":
                model.weight.data.numpy()[:] += 1.0
            else:
                model.weight.data = model.weight + 1.0
        assert torch.equal(pickle.loads(pickle.dumps(est)).model.weight, model.weight)
        assert not torch.equal(pickle.loads(first).model.weight, model.weight)

    @pytest.mark.parametrize("how", ["in place", "data"])
    def test_arrays_change_with_the_weights(self, how):
        model = nn.Linear(1000, 1000)
        (first,) = arrays_of(estimator_of(model))
        with torch.no_grad():
            (model.weight if how == "in place" else model.weight.data).add_(1.0)
        (second,) = arrays_of(estimator_of(model))
        assert first is not second

    def test_many_small_tensors_are_one_array(self):
        model = nn.Sequential(*(nn.Linear(200, 200) for _ in range(10)))
        assert len(arrays_of(estimator_of(model))) == 1

    def test_a_loss_of_the_module_arrives_with_it(self):
        model = WithLoss()
        est = ImplicitRegularizationEstimator(model, loss=model.loss, params="all")
        again = pickle.loads(pickle.dumps(est))
        assert again.loss.__self__ is again.model
        X, y = np.eye(4, dtype=np.float32), np.ones((4, 1), np.float32)
        np.testing.assert_array_equal(again.fit(X, y).coef_, est.fit(X, y).coef_)

    def test_a_class_with_a_pickle_of_its_own(self):
        again = pickle.loads(pickle.dumps(estimator_of(OwnPickle()))).model
        assert torch.equal(again.weight, torch.full((3,), 2.0))

    @pytest.mark.parametrize("inside", ["net", "frozen", "pipeline"])
    def test_the_bytes_of_a_skorch_net_are_the_same_array(self, inside):
        net = NeuralNetRegressor(
            nn.Linear,
            module__in_features=1000,
            module__out_features=1000,
            max_epochs=0,
            train_split=None,
        )
        X = np.ones((2, 1000), np.float32)
        net.fit(X, X)
        model = net
        if inside == "frozen":
            model = FrozenEstimator(net)
        elif inside == "pipeline":
            model = make_pipeline(StandardScaler().fit(X), net)
        est = ImplicitRegularizationEstimator(model)
        first, second = (arrays_of(est) for _ in range(2))
        assert len(first) == len(second) == 1
        assert first[0] is second[0]
        again = pickle.loads(pickle.dumps(est)).model
        assert type(again) is type(model)
        np.testing.assert_array_equal(again.predict(X), model.predict(X))


class OwnState(BaseEstimator):
    def __init__(self, module=None):
        self.module = module

    def fit(self, X, y):
        return self

    def __getstate__(self):
        return (self.module,)

    def __setstate__(self, state):
        (self.module,) = state


class OwnReduce(OwnState):
    def __reduce__(self):
        return OwnReduce, (self.module,)


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x)

    def loss(self, output, target):
        return ((output - target) ** 2).mean() + self.layer.bias.square().sum()


class OwnPickle(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def __getstate__(self):
        return {"sum": self.weight.sum().item()}

    def __setstate__(self, state):
        self.__init__()
        self.weight.data.fill_(state["sum"] - 1.0)


class TestWhatTravels:
    def test_a_search_sends_the_weights_once(self, monkeypatch):
        from joblib import _memmapping_reducer as reducer
        from joblib.externals.loky.backend import queues

        sizes = {"tasks": 0, "files": 0}

        def counted(task, *args, original=queues.dumps, **how):
            found = original(task, *args, **how)
            sizes["tasks"] += len(found)
            return found

        def mapped(array, *args, original=reducer.dump, **how):
            sizes["files"] += array.nbytes
            return original(array, *args, **how)

        monkeypatch.setattr(queues, "dumps", counted)
        monkeypatch.setattr(reducer, "dump", mapped)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 80_000), nn.Tanh(), nn.Linear(80_000, 1))  # 2 MB
        X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        est = ImplicitRegularizationEstimator(net, loss="mse")
        kept = {name: t.clone() for name, t in net.state_dict().items()}
        grid, folds = {"family": ["l2", "l1"]}, KFold(10, shuffle=True, random_state=0)
        two = GridSearchCV(est, grid, cv=folds, n_jobs=2, refit=False).fit(X, X[:, :1])
        weights = sum(t.nbytes for t in kept.values())
        assert sizes["files"] >= weights
        assert sizes["files"] + sizes["tasks"] < 3 * weights
        with threadpool_limits(1):
            one = GridSearchCV(est, grid, cv=folds, refit=False).fit(X, X[:, :1])
        for name in ("mean_test_score", "std_test_score"):
            np.testing.assert_array_equal(two.cv_results_[name], one.cv_results_[name])
        assert all(torch.equal(t, kept[name]) for name, t in net.state_dict().items())
