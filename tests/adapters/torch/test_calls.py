"""Modules whose copy would call the module itself: closures, patched forwards, hooks, globals."""

import functools
import pickle
import threading
import types
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from module_cases import (
    X_,
    Y_,
    P,
    by_hand,
    estimate,
    fingerprint,
    l2,
    minimize,
    mlp,
    quietly_compiled,
    rng_states,
)
from skorch import NeuralNetRegressor
from torch import nn
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

from sklearn_implicitreg import (
    FrozenModel,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
)
from sklearn_implicitreg.penalties import ActivationL2, Dropout
from sklearn_implicitreg.trajectory import record

X, Y = torch.as_tensor(X_), torch.as_tensor(Y_)[:, None]
DECAY = 0.02
HELD = {}  # what a user keeps outside the module


class Plain(nn.Module):
    """Layers a and b that the cases connect in their own ways."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(P, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def patched_child():
    net = mlp()
    old = net[2].forward
    net[2].forward = lambda x: 2 * old(x)
    return net


def patched_by_a_method():
    net = Plain()
    old = net.forward
    net.forward = types.MethodType(lambda self, x: old(x) + self.b.bias, net)
    return net


def patched_by_a_partial():
    net = mlp()

    def around(old, x, *, scale):
        return scale * old(x)

    net[0].forward = functools.partial(around, net[0].forward, scale=0.5)
    return net


def decorated():
    net = Plain()

    def traced(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    net.b.forward = traced(traced(net.b.forward))
    return net


def compiled_child():
    net = mlp()
    net[2].forward = quietly_compiled(net[2].forward, backend="eager")
    return net


def injected():
    """A low-rank update in front of a layer, with the old forward as a default argument."""
    net = Plain()
    net.down, net.up = nn.Linear(P, 2, bias=False), nn.Linear(2, 6, bias=False)

    def forward(x, old=net.a.forward):
        return old(x) + net.up(net.down(x))

    net.a.forward = forward
    return net


def wrapped_by_a_partial_of_the_module():
    """As accelerate adds its hooks: the old forward is kept on the module."""
    net = Plain()

    def forward(module, *args, **kwargs):
        return 1.5 * module._old_forward(*args, **kwargs)

    for part in (net, net.a):
        part._old_forward = part.forward
        part.forward = functools.partial(forward, part)
        functools.update_wrapper(part.forward, part._old_forward)
    return net


def default_argument():
    net = Plain()

    def forward(x, a=net.a, b=net.b):
        return b(torch.tanh(a(x)))

    net.forward = forward
    return net


def hook_on_an_outer_variable():
    net = mlp()
    net[1].register_forward_hook(lambda module, args, out: out + net[2].weight)
    return net


def raw_tensor_in_a_closure():
    net = Plain()
    w, b = net.a.weight, net.a.bias
    net.a.forward = lambda x: F.linear(x, w, b)
    return net


def functions_in_a_dict():
    net = Plain()
    net.table = {"first": [lambda x: net.a(x)], "then": (torch.tanh, lambda x: net.b(x))}

    def forward(x):
        return net.table["then"][1](net.table["then"][0](net.table["first"][0](x)))

    net.forward = forward
    return net


def recursive():
    net = Plain()

    def again(x, n):
        return net.b(torch.tanh(net.a(x))) if n == 0 else again(x, n - 1)

    net.core = again
    net.forward = lambda x: net.core(x, 3)
    return net


class Derivative(Plain):
    """Contains a derivative of its own function, as physics-informed nets do."""

    def __init__(self):
        super().__init__()
        self.slope = vmap(grad(self.value))

    def value(self, x):
        return self.b(torch.tanh(self.a(x)))[0]

    def forward(self, x):
        return self.slope(x)[:, :1] + self.b(torch.tanh(self.a(x)))


def in_a_global():
    class Net(Plain):
        def forward(self, x):
            return self.b(torch.tanh(HELD["a"](x)))

    net = Net()
    HELD["a"] = net.a
    return net


def second_in_a_global():
    """Found out when a layer of the copy has been called already."""

    class Net(Plain):
        def forward(self, x):
            return HELD["b"](torch.tanh(self.a(x)))

    net = Net()
    HELD["b"] = net.b
    return net


def class_in_a_function():
    held = []

    class Net(Plain):
        def forward(self, x):
            return held[1](torch.tanh(held[0](x)))

    net = Net()
    held += [net.a, net.b]
    return net


class Weak(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, x):
        return torch.tanh(self.parent().a(x))


def weak_reference():
    net = Plain()
    net.first = Weak(net)
    net.forward = types.MethodType(lambda self, x: self.b(self.first(x)), net)
    return net


class Uncopied:
    """Cannot be copied, as an object that holds a lock or a stream."""

    def __init__(self, net):
        self.net, self.lock = net, threading.Lock()

    def hook(self, module, args, out):
        return out + self.net.a.bias[:1]


def hook_of_an_object_that_cannot_be_copied():
    net = Plain()
    net.b.register_forward_hook(Uncopied(net).hook)
    return net


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return 2 * x @ w.T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return 2 * g @ w, 2 * g.T @ x


def function_with_a_backward():
    class Net(Plain):
        def forward(self, x):
            return self.b(torch.tanh(Double.apply(x, HELD["net"].a.weight) + self.a.bias))

    net = HELD["net"] = Net()
    return net


def checkpointed():
    class Net(Plain):
        def forward(self, x):
            return self.b(checkpoint(HELD["checkpointed"], x, use_reentrant=False))

    net = Net()
    HELD["checkpointed"] = nn.Sequential(net.a, nn.Tanh())
    return net


class Recurrent(nn.Module):
    """Its layer is in a global, and compares types before it computes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.GRU(P, 3, batch_first=True), nn.Linear(3, 1)
        HELD["recurrent"] = self.a

    def forward(self, x):
        return self.b(HELD["recurrent"](x[:, None])[0][:, -1])


def compiled_in_a_global():
    class Net(Plain):
        def forward(self, x):
            return self.b(torch.tanh(HELD["compiled"](x)))

    net = Net()
    HELD["compiled"] = quietly_compiled(net.a, backend="eager")
    return net


MADE_AGAIN = [
    patched_child,
    patched_by_a_method,
    patched_by_a_partial,
    decorated,
    injected,
    wrapped_by_a_partial_of_the_module,
    compiled_child,
    default_argument,
    hook_on_an_outer_variable,
    raw_tensor_in_a_closure,
    functions_in_a_dict,
    recursive,
    Derivative,
]
LENT = [
    in_a_global,
    second_in_a_global,
    class_in_a_function,
    weak_reference,
    hook_of_an_object_that_cannot_be_copied,
    function_with_a_backward,
    checkpointed,
    Recurrent,
    compiled_in_a_global,
]
EVERY = MADE_AGAIN + LENT


@pytest.fixture(autouse=True)
def _quiet():
    """The training of compiled functions warns of torch's own doings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        yield


def trained(make):
    """A net at the minimum of its loss plus a known decay."""
    torch.manual_seed(1)
    net = make().double()
    tensors = list(net.parameters())
    minimize(tensors, lambda: F.mse_loss(net(X), Y) + DECAY * l2(tensors), 500)
    return net


def path_of(make, decay=0.03, n_epochs=1):
    torch.manual_seed(1)
    net = make().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=decay)
    with record(net, optimizer) as recorder:
        for _ in range(n_epochs):
            for rows in torch.randperm(len(X)).split(10):
                recorder.batch(rows)
                optimizer.zero_grad()
                F.mse_loss(net(X[rows]), Y[rows]).backward()
                optimizer.step()
            recorder.epoch()
    return net, recorder.trajectory


class TestAnswers:
    @pytest.mark.parametrize("make", EVERY, ids=lambda f: f.__name__)
    def test_endpoint(self, make):
        net = trained(make)
        net.zero_grad()
        before, states = fingerprint(net), rng_states()
        est = estimate(net, X_, Y_[:, None])
        np.testing.assert_allclose(est.coef_, DECAY, rtol=1e-6)
        assert est.verdict_ == "supported"
        assert est.score(X_, Y_[:, None]) > 0.999999
        assert fingerprint(net) == before
        assert rng_states() == states

    @pytest.mark.parametrize("reference", ["batch", "applied"])
    @pytest.mark.parametrize("make", EVERY, ids=lambda f: f.__name__)
    def test_trajectory(self, make, reference):
        """At weights that the module has no longer."""
        net, trajectory = path_of(make)
        options = {"mode": "trajectory", "trajectory": trajectory, "window": "epoch"}
        est = estimate(net, X_, Y_[:, None], family="weight_decay", reference=reference, **options)
        np.testing.assert_allclose(est.coef_, 0.03, rtol=1e-9)

    @pytest.mark.parametrize(
        ("make", "reference"), [(in_a_global, "flow"), (weak_reference, "gradient")]
    )
    def test_trajectory_as_of_the_plain_module(self, make, reference):
        found = []
        for kind in (Plain, make):
            net, trajectory = path_of(kind)
            options = {"mode": "trajectory", "trajectory": trajectory, "window": "epoch"}
            options |= {"reference": reference, "family": "l2", "batch_size": 10}
            found.append(estimate(net, X_, Y_[:, None], **options).coef_path_)
        np.testing.assert_allclose(found[1], found[0], rtol=1e-9)

    @pytest.mark.parametrize("make", EVERY, ids=lambda f: f.__name__)
    def test_in_wider_arithmetic(self, make):
        torch.manual_seed(1)
        net = make().float()
        wide = [p.detach().double() for p in net.parameters()]
        narrow = estimate(net, X_, Y_[:, None]).coef_
        found = estimate(net, X_, Y_[:, None], dtype="float64").coef_
        assert all(p.dtype == torch.float32 for p in net.parameters())
        exact = net.double()
        for p, value in zip(exact.parameters(), wide, strict=True):
            p.data = value
        expected = by_hand(exact, F.mse_loss(exact(X), Y), [l2])
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        np.testing.assert_allclose(narrow, expected, rtol=1e-3)


class TestOptions:
    def test_layers_are_watched(self):
        """Penalties on activations hook the copy's layers, which the module's own stand for."""
        found = []
        for make in (Plain, default_argument, in_a_global, second_in_a_global, weak_reference):
            torch.manual_seed(1)
            net = make().double()
            families = [ActivationL2("a"), ActivationL2("b")]
            found.append(estimate(net, X_, Y_[:, None], family=families).coef_)
            assert not any(m._forward_hooks for m in net.modules())
        np.testing.assert_allclose(found[1:], [found[0]] * 4, rtol=1e-10)

    @pytest.mark.parametrize("make", [Plain, default_argument, in_a_global, class_in_a_function])
    def test_selection(self, make):
        net = trained(make)
        families = ["l1", "l2", "power"]
        options = {"loss": "mse", "params": "all"}
        search = ImplicitRegularizationCV(net, families=families, **options)
        search.fit(X_, Y_[:, None])
        assert search.best_family_ == "l2"
        np.testing.assert_allclose(search.best_estimator_.coef_, DECAY, rtol=1e-6)

    def test_dropout_and_batch_statistics(self):
        """The module's layers take the states of the copy's, and lose them."""

        class Net(nn.Module):
            def __init__(self, held):
                super().__init__()
                self.a, self.norm = nn.Linear(P, 8), nn.BatchNorm1d(8)
                self.drop, self.b = nn.Dropout(0.4), nn.Linear(8, 1)
                self.held = held

            def forward(self, x):
                own = HELD["stateful"] if self.held else self
                return own.b(own.drop(torch.tanh(own.norm(own.a(x)))))

        found = []
        for held in (False, True):
            torch.manual_seed(0)
            net = HELD["stateful"] = Net(held).double().eval()
            before = fingerprint(net)
            drawn = {"module_mode": "train", "random_state": 3, "batch_size": 20}
            first = estimate(net, X_, Y_[:, None], **drawn)
            second = estimate(net, X_, Y_[:, None], family=Dropout(), batch_size=20)
            found.append([first.coef_[0], second.coef_[0]])
            assert fingerprint(net) == before
        np.testing.assert_allclose(found[1], found[0], rtol=1e-10)

    @pytest.mark.parametrize("make", [default_argument, in_a_global])
    def test_skorch(self, make):
        torch.manual_seed(1)
        plain = NeuralNetRegressor(Plain().double(), train_split=None, max_epochs=2, verbose=0)
        other = NeuralNetRegressor(make().double(), train_split=None, max_epochs=2, verbose=0)
        plain.fit(X_, Y_[:, None])
        other.fit(X_, Y_[:, None])
        HELD["a"] = other.module_.a
        other.module_.load_state_dict(plain.module_.state_dict())
        expected, found = (
            ImplicitRegularizationEstimator(net, params="all").fit(X_, Y_[:, None]).coef_
            for net in (plain, other)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-10)


class TestSharing:
    @pytest.mark.parametrize("make", [default_argument, patched_child, functions_in_a_dict])
    def test_pickled_for_workers(self, make):
        """Functions travel by value, over the structure that travels with them."""
        net = trained(make)
        sent = cloudpickle.dumps(FrozenModel(net))
        again = pickle.loads(sent).model
        np.testing.assert_allclose(estimate(again, X_, Y_[:, None]).coef_, DECAY, rtol=1e-6)
        with torch.no_grad():
            for p in again.parameters():
                p.zero_()
        assert float(again(X).detach().abs().max()) == 0.0

    def test_threads_on_one_module(self):
        """The module itself is lent to one at a time, and is not read meanwhile."""
        net = trained(in_a_global)

        def fit(dtype):
            return estimate(net, X_, Y_[:, None], dtype=dtype, batch_size=7).coef_[0]

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(fit, ["float64", "float32", "auto", "float64"] * 5))
        np.testing.assert_allclose(found, DECAY, rtol=1e-3)
        np.testing.assert_allclose([f for f in found if f == found[0]], DECAY, rtol=1e-6)
        assert all(p.dtype == torch.float64 for p in net.parameters())

    @pytest.mark.parametrize("at_call", [1, 2, 3])
    def test_untouched_by_a_forward_that_raises(self, at_call):
        class Net(Plain):
            calls = 0

            def forward(self, x):
                Net.calls += 1
                hidden = torch.tanh(HELD["a"](x))
                if Net.calls > at_call:
                    raise RuntimeError("broken")
                return self.b(hidden)

        net = Net().double()
        HELD["a"] = net.a
        net(X).sum().backward()
        before, states = fingerprint(net), rng_states()
        inside = [vars(part) for part in net.modules()]
        with pytest.raises((ValueError, RuntimeError), match="broken"):
            estimate(net, X_, Y_[:, None], batch_size=10, dtype="float32")
        assert fingerprint(net) == before
        assert rng_states() == states
        assert all(vars(p) is s for p, s in zip(net.modules(), inside, strict=True))

    def test_what_a_forward_writes_stays_in_the_copy(self):
        class Net(Plain):
            def forward(self, x):
                HELD["a"].last = HELD["a"](x)
                self.calls = getattr(self, "calls", 0) + 1
                return self.b(torch.tanh(HELD["a"].last))

        net = Net().double()
        HELD["a"] = net.a
        estimate(net, X_, Y_[:, None])
        assert not hasattr(net, "calls")
        assert not hasattr(net.a, "last")

    def test_layers_without_tensors_and_running_statistics(self):
        """The module's own dropout and batch statistics are not at work, nor moved."""

        class Net(Plain):
            def __init__(self, held):
                super().__init__()
                self.drop, self.norm, self.held = nn.Dropout(0.5), nn.BatchNorm1d(6), held

            def forward(self, x):
                drop = HELD["drop"] if self.held != "nothing" else self.drop
                norm = HELD["norm"] if self.held == "both" else self.norm
                return self.b(drop(torch.tanh(norm(self.a(x)))))

        found = []
        for held in ("nothing", "drop", "both"):
            torch.manual_seed(0)
            net = Net(held).double()
            HELD.update(drop=net.drop, norm=net.norm)
            before = fingerprint(net)
            found.append(estimate(net, X_, Y_[:, None], batch_size=20).coef_[0])
            assert fingerprint(net) == before
        np.testing.assert_allclose(found, found[0], rtol=1e-10)


class TestOutOfReach:
    def test_a_tensor_in_a_global(self):
        class Net(Plain):
            def forward(self, x):
                return self.b(torch.tanh(F.linear(x, HELD["w"], self.a.bias)))

        net = Net().double()
        HELD["w"] = net.a.weight
        with pytest.raises(ValueError, match="Expected a module whose forward .*a.weight"):
            estimate(net, X_, Y_[:, None])
        HELD["w"] = net.float().a.weight
        with pytest.raises(ValueError, match="Expected a module whose forward .*a.weight"):
            estimate(net, X_, Y_[:, None], dtype="float64")

    def test_a_buffer_in_a_global(self):
        class Net(Plain):
            def __init__(self):
                super().__init__()
                self.register_buffer("scale", torch.ones(6))

            def forward(self, x):
                return self.b(HELD["scale"] * torch.tanh(self.a(x)))

        net = Net().double()
        HELD["scale"] = net.scale
        with pytest.raises(ValueError, match="Expected a module whose forward .*scale"):
            estimate(net, X_, Y_[:, None])

    def test_shapes_and_types_may_be_read(self):
        class Net(Plain):
            def forward(self, x):
                w = HELD["w"]
                assert w.shape == (6, P)
                return super().forward(x.to(w.dtype).to(w.device)) / w.numel()

        net = Net().double()
        HELD["w"] = net.a.weight
        expected = by_hand(net, F.mse_loss(net(X), Y), [l2])
        np.testing.assert_allclose(estimate(net, X_, Y_[:, None]).coef_, expected, rtol=1e-10)
