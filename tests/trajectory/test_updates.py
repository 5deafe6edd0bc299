"""Tensors that only some steps of a trajectory updated, or none: no equation without an update."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator, equations
from sklearn_implicitreg.penalties import Diagonal, GradientNorm
from sklearn_implicitreg.trajectory import (
    Flow,
    Gradient,
    GradientDescentProbe,
    Trajectory,
    record,
)
from sklearn_implicitreg.trajectory.window import Step, Window

N, WD = 48, 0.03
SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


class Scaled(nn.Module):
    """A tensor that multiplies zero."""

    def __init__(self):
        super().__init__()
        self.w, self.idle = nn.Parameter(torch.ones(4, 1)), nn.Parameter(torch.ones(3, 2))

    def forward(self, x):
        return x @ self.w + 0 * self.idle.sum()


class Experts(nn.Module):
    """A routed layer: an expert that no row of a batch is sent to gets no gradient."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))
        self.head, self.spare = nn.Linear(3, 1), nn.Linear(3, 3)

    def forward(self, x):
        out, chosen = x.new_zeros(len(x), 3), (x[:, 0] > 0).long()
        for i, expert in enumerate(self.experts):
            if (chosen == i).any():
                own = (chosen == i).nonzero().squeeze(1)
                out = out.index_add(0, own, torch.tanh(expert(x[own])))
        return self.head(out)


def rows():
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    X = X[X[:, 0].argsort()]  # so that batches know one side only
    return X, torch.sin(2 * X[:, :1]) + X[:, 1:2]


def mlp():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def train(net, optimizer, every=1, n_epochs=4, size=12, between=None, closure=False, **options):
    """Trajectory of a net; ``between`` runs before every step with the number of the step."""
    X, y = rows()
    set_to_none = options.pop("set_to_none", True)
    with record(net, optimizer, every=every, gradients=True, **options) as recorder:
        step = 0
        for _ in range(n_epochs):
            for part in torch.arange(N).split(size):
                if between is not None:
                    between(net, step)
                recorder.batch(part)

                def loss(part=part):
                    optimizer.zero_grad(set_to_none=set_to_none)
                    value = mse_loss(net(X[part]), y[part])
                    value.backward()
                    return value

                if closure:
                    optimizer.step(loss)
                else:
                    loss()
                    optimizer.step()
                step += 1
            recorder.epoch()
    return recorder.trajectory


def fit(net, trajectory, reference="applied", window=None, params="all", **options):
    options = {"family": "weight_decay", "loss": "mse", "params": params, **options}
    est = ImplicitRegularizationEstimator(
        net, mode="trajectory", trajectory=trajectory, reference=reference, window=window, **options
    )
    return est.fit(*rows())


def freeze(part, steps):
    """Freeze a layer in some steps."""
    return lambda net, step: net[part].requires_grad_(step not in steps)


OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.05, weight_decay=WD),
    "momentum": lambda p: SGD(p, lr=0.02, momentum=0.8, weight_decay=WD),
    "nesterov": lambda p: SGD(p, lr=0.02, momentum=0.8, nesterov=True, weight_decay=WD),
    "adam": lambda p: Adam(p, lr=0.02, weight_decay=WD),
    "adamw": lambda p: AdamW(p, lr=0.02, weight_decay=WD),
    "amsgrad": lambda p: AdamW(p, lr=0.02, weight_decay=WD, amsgrad=True, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=WD),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=WD),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("every", [1, 3])
def test_decay_where_a_layer_was_frozen_in_some_steps(kind, every):
    net = mlp()
    steps = {0, 1, 2, 3, 4, 9, 10}
    trajectory = train(net, OPTIMIZERS[kind](net.parameters()), every, between=freeze(0, steps))
    assert [sorted(s.skipped) for s in trajectory.steps] == [
        ["0.bias", "0.weight"] if i in steps else [] for i in range(16)
    ]
    assert fit(net, trajectory).coef_ == pytest.approx([WD], abs=1e-9)
    if every == 1:
        assert fit(net, trajectory, "batch").coef_ == pytest.approx([WD], abs=1e-9)
        assert fit(net, trajectory, "batch", "epoch").coef_ == pytest.approx([WD], abs=1e-9)


@pytest.mark.parametrize("reference", ["applied", "batch"])
@pytest.mark.parametrize("window", [None, "epoch", 8])
@pytest.mark.parametrize("closure", [False, True])
def test_experts_that_are_chosen_in_some_steps(reference, window, closure):
    torch.manual_seed(0)
    net = Experts().double()
    trajectory = train(net, AdamW(net.parameters(), lr=0.02, weight_decay=WD), closure=closure)
    est = fit(net, trajectory, reference, window)
    assert est.coef_ == pytest.approx([WD], abs=1e-9)
    assert est.r2_ == pytest.approx(1)
    text = " ".join(str(est.summary()).split())
    assert "no step updated them" in text and "experts.2.weight, " in text
    assert "Some of the 16 steps did not update" in text and "experts.0.weight (12), " in text
    assert "head.weight" not in text


@pytest.mark.parametrize("family", ["l1", "power", "elastic_net", "l21"])
def test_columns_are_those_of_the_steps_of_a_tensor(family):
    """Closed forms entry by entry and not: window means equal a plain loop over own steps."""
    net = mlp()
    trajectory = train(net, SGD(net.parameters(), lr=0.1), between=freeze(0, {0, 1, 2, 6}))
    options = {"mode": "trajectory", "trajectory": trajectory, "reference": "applied"}
    families = [family]
    plain = {"family": families[0], "loss": "mse", "params": r"\.weight"}
    wide = equations(net, *rows(), families=families, window="epoch", **plain_of(plain), **options)
    single = equations(net, *rows(), families=families, window=1, **plain_of(plain), **options)
    own, each = wide["data"], single["data"]
    mean = each.groupby([each.index.get_level_values(0) // 4, "tensor", "coordinate"]).sum() / 4
    mean.index = mean.index.set_names(own.index.names)
    np.testing.assert_allclose(own.sort_index(), mean.sort_index(), rtol=1e-10, atol=1e-13)
    assert len(own) == 20 * 4 + 5 * 4 and len(each) == 20 * 12 + 5 * 16


def plain_of(options):
    return {key: value for key, value in options.items() if key != "family"}


def test_alternate_steps_that_train_a_part():
    """Every second loss sees features without their graph, its zero_grad(set_to_none)."""
    X, y = rows()
    net = mlp()
    optimizer = SGD(net.parameters(), lr=0.05, momentum=0.5, weight_decay=WD)
    with record(net, optimizer) as recorder:
        for step in range(10):
            recorder.batch(np.arange(N))
            features = net[1](net[0](X))
            optimizer.zero_grad()
            mse_loss(net[2](features.detach() if step % 2 else features), y).backward()
            optimizer.step()
    for reference in ("applied", "batch", "gradient"):
        est = fit(net, recorder.trajectory, reference)
        assert est.coef_ == pytest.approx([WD], abs=1e-9)
    # Over two steps: the first layer's gradient where it was updated, not at the mean of both.
    est = fit(net, recorder.trajectory, Gradient(sub_window=2), 2)
    assert est.coef_ == pytest.approx([WD], abs=1e-3)


@pytest.mark.parametrize("reference", ["applied", "batch"])
def test_frozen_tensor_that_decays_on(reference):
    """zero_grad(set_to_none=False) keeps zeros as gradients of what is frozen, which decays."""
    net = mlp()
    optimizer = SGD(net.parameters(), lr=0.05, weight_decay=WD, momentum=0.5)
    before = []

    def between(net, step):
        net[0].requires_grad_(step < 8)
        before.append(net[0].weight.detach().clone())

    trajectory = train(net, optimizer, set_to_none=False, between=between)
    assert not torch.equal(before[8], before[12])
    assert fit(net, trajectory, reference).coef_ == pytest.approx([WD], abs=1e-9)


def test_zero_gradient_is_an_update():
    """Weights without influence decay: their gradients are zero, and they do give equations."""
    X, y = rows()
    net = Scaled().double()
    optimizer = AdamW(net.parameters(), lr=0.05, weight_decay=WD)
    with record(net, optimizer) as recorder:
        for _ in range(5):
            optimizer.zero_grad()
            mse_loss(net(X), y).backward()
            optimizer.step()
    est = fit(net, recorder.trajectory, params="idle")
    assert est.coef_ == pytest.approx([WD], abs=1e-9) and est.n_equations_ == 30


@pytest.mark.parametrize("reference", ["gradient", "applied"])
def test_recording_with_families(reference):
    X, y = rows()
    net = mlp()
    between = freeze(0, {0, 1, 2, 3, 6, 13})
    other = copy.deepcopy(net)
    make = OPTIMIZERS["sgd"]
    more = {"data": (X, y), "loss": "mse", "reference": reference, "params": "all"}
    reduced = train(net, make(net.parameters()), 4, families=["l2", "l1"], between=between, **more)
    whole = train(other, make(other.parameters()), 4, between=between)
    found = [
        fit(own, path, reference, "epoch", family="l2")
        for own, path in ((net, reduced), (other, whole))
    ]
    assert found[0].coef_ == pytest.approx(found[1].coef_, rel=1e-9)
    assert found[0].r2_ == pytest.approx(found[1].r2_, rel=1e-9)
    assert found[0].n_equations_ == found[1].n_equations_


def test_recording_with_families_of_an_unused_layer():
    torch.manual_seed(0)
    net = Experts().double()
    more = {"families": ["weight_decay"], "reference": "applied", "params": "all"}
    optimizer = AdamW(net.parameters(), lr=0.02, weight_decay=WD)
    X, y = rows()
    with record(net, optimizer, **more) as recorder:
        for step in range(12):
            part = slice(0, 24) if step < 6 else slice(24, N)
            optimizer.zero_grad()
            mse_loss(net(X[part]), y[part]).backward()
            optimizer.step()
    est = fit(net, recorder.trajectory)
    assert est.coef_ == pytest.approx([WD], abs=1e-9) and est.r2_ == pytest.approx(1)


def test_saved_joined_and_sliced(tmp_path):
    net = mlp()
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    first = train(net, optimizer, between=freeze(0, range(16)))
    net[0].requires_grad_(True)
    second = train(net, optimizer, between=freeze(2, range(0, 16, 2)))
    joined = Trajectory.join([first, second])
    joined.save(tmp_path / "path")
    loaded = Trajectory.load(tmp_path / "path")
    assert [s.skipped for s in loaded.steps] == [s.skipped for s in joined.steps]
    for path in (joined, loaded, loaded[10:24]):
        for reference in ("applied", "batch"):
            assert fit(net, path, reference).coef_ == pytest.approx([WD], abs=1e-9)


def test_flow_of_a_net_that_is_frozen_in_part():
    """The flow moves what the steps moved: lr/4 |grad L|^2 of the trained layers is found."""
    lr, (X, y) = 0.0025, rows()
    net = mlp()
    with record(net, optimizer := SGD(net.parameters(), lr=lr)) as recorder:
        for step in range(8):
            net[0].requires_grad_(step >= 4)
            recorder.batch(np.arange(N))
            optimizer.zero_grad()
            mse_loss(net(X), y).backward()
            optimizer.step()
    est = fit(net, recorder.trajectory, Flow(2), family=GradientNorm())
    assert est.coef_ == pytest.approx([lr / 4], rel=0.01) and est.r2_ > 0.999
    est = fit(net, recorder.trajectory, Flow(2), 8, family=GradientNorm())
    assert est.coef_ == pytest.approx([lr / 4], rel=0.05)


def test_flow_needs_marks_where_tensors_begin_to_move():
    net = mlp()
    path = train(net, SGD(net.parameters(), lr=0.01), 4, between=freeze(0, {0, 1}))
    with pytest.raises(ValueError, match=r"only some of the steps updated '0.bias'"):
        fit(net, path, "flow")


def test_minibatch_column_counts_the_steps_of_a_tensor():
    """Epochs of SGD: the nuisance column explains what is left beside the decay, also by halves."""
    net = mlp()
    path = train(
        net,
        SGD(net.parameters(), lr=0.05, weight_decay=WD),
        n_epochs=12,
        between=freeze(0, range(24)),
    )
    est = fit(net, path, "gradient", "epoch")
    assert est.coef_[0] == pytest.approx(WD, rel=0.05)
    frozen_only = fit(net, path[:25], "gradient", "epoch")
    assert frozen_only.n_equations_ == 6 * 6


@pytest.mark.parametrize("reference", ["gradient", "batch"])
def test_a_tensor_that_trained_at_first_only(reference):
    """Frozen at the end: it is not in scope, and its weights at earlier marks are."""
    net = mlp()
    optimizer = SGD(net.parameters(), lr=0.05, weight_decay=WD)
    path = train(net, optimizer, size=N, n_epochs=12, between=freeze(0, range(6, 12)))
    est = fit(net, path, reference)
    assert est.coef_ == pytest.approx([WD], abs=1e-9) and est.n_equations_ == 12 * 6


def test_noise_share_and_verdict_of_exact_equations():
    """A tensor of half of the windows is no noise."""
    net = mlp()
    path = train(
        net, AdamW(net.parameters(), lr=0.02, weight_decay=WD), between=freeze(0, range(8))
    )
    est = fit(net, path, window="epoch")
    assert est.verdict_ == "supported" and "no step" not in str(est.summary())
    noise = dict(est.summary().header)["Noise share"]
    assert float(noise) < 0.02


def test_iterates_of_an_unused_layer():
    X, y = rows()
    torch.manual_seed(0)
    net = Experts().double()
    iterates, optimizer = [copy.deepcopy(net)], SGD(net.parameters(), lr=0.1, weight_decay=WD)
    for _ in range(6):
        optimizer.zero_grad()
        mse_loss(net(X), y).backward()
        optimizer.step()
        iterates.append(copy.deepcopy(net))
    path = Trajectory.from_iterates(iterates, 0.1)
    assert path.steps[0].skipped == {
        f"{name}.{kind}" for name in ("experts.2", "spare") for kind in ("weight", "bias")
    }
    assert fit(net, path, "gradient").coef_ == pytest.approx([WD], abs=1e-9)


def test_score_and_search():
    net = mlp()
    path = train(net, OPTIMIZERS["sgd"](net.parameters()), between=freeze(0, range(8)), n_epochs=8)
    est = fit(net, path, "gradient", "epoch")
    assert est.score(*rows()) == pytest.approx(est.r2_, abs=1e-9)
    search = ImplicitRegularizationCV(
        net,
        families=["weight_decay", "l1"],
        mode="trajectory",
        trajectory=path,
        reference="applied",
        loss="mse",
        params="all",
    ).fit(*rows())
    assert search.best_family_ == "weight_decay"
    assert search.best_estimator_.coef_ == pytest.approx([WD], abs=1e-9)


class Two(nn.Module):
    """A linear model in two tensors."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)

    def forward(self, x):
        return self.a(x[:, :2]) + self.b(x[:, 2:])


def test_stationarity_looks_at_what_every_step_updated():
    """A layer that is frozen beside the endpoint says nothing against it."""
    X, y = rows()
    net = Two().double()
    ridge = torch.linalg.solve(X.T @ X / N + WD / 2 * torch.eye(4).double(), X.T @ y / N)[:, 0]
    with torch.no_grad():
        net.a.weight[0], net.b.weight[0] = ridge[:2], ridge[2:]
    path = train(
        net.requires_grad_(True),
        SGD(net.parameters(), lr=0.01, weight_decay=WD),
        size=N,
        between=lambda net, step: net.b.requires_grad_(False),
    )
    net.requires_grad_(True)
    est = ImplicitRegularizationEstimator(
        net, family="weight_decay", loss="mse", params="all", trajectory=path
    ).fit(X, y)
    assert est.coef_ == pytest.approx([WD], rel=1e-9)
    assert est.verdict_ == "supported" and "confirms it" in str(est.summary())


def test_only_tensors_that_no_step_updated():
    torch.manual_seed(0)
    net = Experts().double()
    path = train(net, SGD(net.parameters(), lr=0.05, weight_decay=WD))
    with pytest.raises(ValueError, match="training acted on, got spare.weight, which no gradient"):
        fit(net, path, params="spare.weight")


def test_structured_family_needs_the_same_tensors_everywhere():
    net = mlp()
    path = train(net, SGD(net.parameters(), lr=0.05, weight_decay=WD), between=freeze(0, range(8)))
    with pytest.raises(ValueError, match=r"acted on at every window, got 0.bias, 0.weight"):
        fit(net, path, family=Diagonal())


def test_window_of_a_tensor():
    """The mechanism: groups of tensors by their steps, with places between them."""
    names = ("a", "b", "c")
    steps = [Step(0.1, skipped=frozenset(own)) for own in ({"c"}, {"b", "c"}, {"c"}, {"c", "b"})]
    net = nn.ParameterDict({n: torch.zeros(1) for n in names}).double()
    optimizer = SGD(net.parameters(), lr=1.0)
    with record(net, optimizer) as recorder:
        for step in steps:
            for name in names:
                net[name].grad = None if name in step.skipped else torch.ones(1).double()
            optimizer.step()
    (window,) = recorder.trajectory.windows(4)
    assert isinstance(window, Window)
    groups = window.groups(names)
    assert [(own, share) for own, share, _ in groups] == [(["a"], 1.0), (["b"], 0.5)]
    assert window.absent(names) == {"c"}
    # Before the steps a is at 0, -1, -2, -3 and b at 0, -1, -1, -2; the 1st and 3rd update b.
    assert [float(groups[1][2].mean("visited")[n]) for n in names] == [-1.0, -0.5, 0.0]
    assert [float(window.mean("visited")[n]) for n in names] == [-1.5, -1.0, 0.0]
    assert [float(window.mean("applied")[n]) for n in names] == [1.0, 0.5, 0.0]


def test_group_that_began_to_train_later():
    net = mlp()
    path = train(net, OPTIMIZERS["sgd"](net.parameters()), between=freeze(0, range(8)))
    est = fit(net, path, window="epoch", group_by="layer")
    assert est.coef_ == pytest.approx([WD, WD], abs=1e-9) and est.verdict_ == "supported"
    expected = [[np.nan, WD]] * 2 + [[WD, WD]] * 2
    np.testing.assert_allclose(est.coef_path_, expected, atol=1e-9)


def test_unfrozen_since_the_recording_began():
    net = mlp()
    net[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"got 0.weight, 0.bias, unfrozen since"):
        train(net, SGD(net.parameters(), lr=0.05), between=freeze(0, range(4)))


@pytest.mark.parametrize("reference", ["applied", "batch"])
def test_sparse_gradients(reference):
    """Rows of an embedding are updated without decay, the layer behind it with decay."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(9, 3, sparse=True), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(self.words(x))

    net, words = Words().double(), torch.arange(N) % 7
    parts = [
        {"params": net.words.parameters()},
        {"params": net.head.parameters(), "weight_decay": WD},
    ]
    optimizer = SGD(parts, lr=0.1)
    _, y = rows()
    with record(net, optimizer) as recorder:
        for part in torch.arange(N).split(12):
            recorder.batch(part)
            optimizer.zero_grad()
            mse_loss(net(words[part]), y[part]).backward()
            optimizer.step()
    est = ImplicitRegularizationEstimator(
        net,
        family="weight_decay",
        loss="mse",
        params="all",
        mode="trajectory",
        window=None,
        trajectory=recorder.trajectory,
        reference=reference,
        known=None,
        group_by="layer",
    ).fit(words, y)
    assert est.coef_ == pytest.approx([0, WD], abs=1e-9)


def descent(net, X, lr, n_steps, dtype):
    """Full-batch SGD, recorded."""
    net, X = net.to(dtype), X.to(dtype)
    y = X.sum(1, keepdim=True).sin() if X.ndim == 2 else X.sum((1, 2))[:, None].sin()
    with record(net, optimizer := SGD(net.parameters(), lr=lr)) as recorder:
        for _ in range(n_steps):
            recorder.batch(np.arange(len(X)))
            optimizer.zero_grad()
            mse_loss(net(X), y).backward()
            optimizer.step()
    return net, X, y, recorder.trajectory


class Attention(nn.Module):
    """The bias of the keys adds the same to all scores of a softmax."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(3, 3) for _ in range(3))
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).mT
        return self.head((scores.softmax(2) @ self.value(x)).mean(1))


class Softmax(nn.Module):
    """A common shift of the logits has no effect."""

    def __init__(self):
        super().__init__()
        self.shift, self.logits = nn.Parameter(torch.tensor([2.0])), nn.Linear(4, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head((self.logits(x) + self.shift).softmax(1))


FLOWS = {
    "batch norm": lambda: nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)
    ),
    "layer norm": lambda: nn.Sequential(
        nn.Linear(4, 1), nn.Linear(1, 5), nn.LayerNorm(5), nn.Linear(5, 1)
    ),
    "attention": Attention,
    "softmax": Softmax,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("probe", [False, True])
def test_flow_accepts_gradients_that_are_zero_to_rounding(kind, dtype, probe):
    torch.manual_seed(2)
    X = torch.randn(30, 5, 3) if kind == "attention" else torch.randn(30, 4)
    lr = 0.005
    net, X, y, path = descent(FLOWS[kind](), X, lr, 3, dtype)
    est = ImplicitRegularizationEstimator(
        net,
        family=GradientNorm(),
        loss="mse",
        params="all",
        mode="trajectory",
        window=None,
        trajectory=GradientDescentProbe(lr, 3) if probe else path,
        reference=Flow(4),
        batch_size=30,
    ).fit(X, y)
    if dtype == torch.float64:  # else the steps are of the size of the rounding
        assert est.coef_ == pytest.approx([lr / 4], rel=0.1)


def test_flow_still_finds_what_is_no_descent():
    """Another step size in a group of small weights."""
    net = mlp()
    with torch.no_grad():
        net[0].bias.mul_(1e-6)
    other = [net[0].bias]
    rest = [p for p in net.parameters() if p is not other[0]]
    path = train(net, SGD([{"params": rest}, {"params": other, "lr": 0.02}], lr=0.01), size=N)
    with pytest.raises(ValueError, match="steps of '0.bias' other than"):
        fit(net, path, "flow")
