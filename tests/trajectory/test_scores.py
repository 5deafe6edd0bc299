"""Scores of trajectories: on the rows of the fit they are its own R2, further rows complete it."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties import L1
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.regression.place import Place
from sklearn_implicitreg.trajectory import Batch, Gradient, record
from sklearn_implicitreg.trajectory.stationarity import _vector

N = 48
PARTS = pytest.mark.filterwarnings("ignore::sklearn_implicitreg.exceptions.PathNoiseWarning")


def make_data(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return X, torch.sin(X[:, :1]) + 0.5 * noise


X, Y = make_data()
WEIGHT = np.arange(1.0, N + 1) / N
UNEVEN = [torch.randint(0, N, (8,), generator=torch.Generator().manual_seed(i)) for i in range(48)]


def trained(decay=0.0, uneven=False, n_epochs=8, weight=None, optimizer=torch.optim.SGD):
    """A net and its trajectory, by batches of a shuffled epoch or drawn with replacement."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    steps = optimizer(net.parameters(), lr=0.05, weight_decay=decay)
    mass = torch.ones(N) if weight is None else torch.as_tensor(weight)
    drawn = iter(UNEVEN)
    with record(net, steps) as recorder:
        for _ in range(n_epochs):
            order = list(itertools.islice(drawn, 6)) if uneven else torch.randperm(N).split(8)
            for rows in order:
                recorder.batch(rows)
                net.zero_grad()
                own = (net(X[rows]) - Y[rows]).square().squeeze(1)
                (own @ mass[rows].to(own) / mass[rows].sum()).backward()
                steps.step()
            recorder.epoch()
    return net, recorder.trajectory


def fitted(net, trajectory, sample_weight=None, **params):
    own = {"mode": "trajectory", "window": "epoch", "loss": "mse", "params": "all"} | params
    est = ImplicitRegularizationEstimator(net, trajectory=trajectory, **own)
    return est.fit(X, Y, sample_weight)


@pytest.mark.parametrize(
    "params",
    [
        {"family": "l2"},
        {"family": "l2+l1", "positive": True},
        {"family": "l2", "known": {"weight_decay": 0.02}},
        {"family": "l2", "group_by": "layer"},
        {"family": "l2", "group_by": "layer", "positive": True},
        {"family": "l2+smooth_l1", "reference": Gradient(n_nodes=2)},
        {"family": "l2", "reference": Gradient(sub_window=2)},
        {"family": "l2+l1", "reference": "batch"},
        {"family": "l2", "reference": "applied"},
        {"family": "l2", "window": 12},
    ],
    ids=str,
)
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_the_score_of_the_same_rows_is_r2(params, decay):
    est = fitted(*trained(decay), **params)
    assert est.score(X, Y) == pytest.approx(est.r2_, abs=1e-12)


@PARTS
@pytest.mark.parametrize("case", ["rows drawn with replacement", "weighted rows"])
@pytest.mark.parametrize("reference", ["gradient", "batch", Gradient(n_nodes=2)], ids=str)
def test_the_score_of_rows_that_count_unevenly(case, reference):
    weight = WEIGHT if case == "weighted rows" else None
    net, trajectory = trained(0.05, uneven=weight is None, weight=weight)
    est = fitted(net, trajectory, weight, family="l2", reference=reference)
    assert est.score(X, Y, weight) == pytest.approx(est.r2_, abs=1e-12)


def test_mini_batches_alone_score_no_more_than_they_explain():
    """Without a penalty hardly anything is explained; the nuisance column explains most."""
    est = fitted(*trained(0.0, n_epochs=20), family="l2")
    judged = est._equations.judged.system.r_factor
    column, target = judged[:, 1], judged[:, -1]
    nuisance = float(column @ target) ** 2 / float(column @ column) / float(target @ target)
    assert nuisance > 0.5
    assert est.r2_ < 0.3
    assert est.score(X, Y) == pytest.approx(est.r2_, abs=1e-12)


@pytest.mark.parametrize("positive", [False, True])
def test_the_criterion_is_of_what_the_estimator_fits(positive):
    net, trajectory = trained(0.05)
    params = {"mode": "trajectory", "window": "epoch", "loss": "mse", "params": "all"}
    params |= {"trajectory": trajectory, "positive": positive}
    families = ["l2", "l1", "l2+l1"]
    found = ImplicitRegularizationCV(net, families=families, **params).fit(X, Y)
    own = [fitted(net, trajectory, family=f, positive=positive).r2_ for f in families]
    np.testing.assert_allclose(found.cv_results_["r2"], own, rtol=0, atol=1e-12)
    assert found.cv_results_["n_terms"].tolist() == [1, 1, 2]
    assert (found.cv_results_["mean_test_score"] <= found.cv_results_["r2"]).all()


def problem_of(net, rows=N, weight=None):
    data = Data(X[:rows], Y[:rows], None if weight is None else weight[:rows])
    return adapt(net, data, Options(loss="mse", params="all"))


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("uneven", [False, True], ids=["epochs", "drawn"])
@pytest.mark.parametrize(
    "reference",
    [Gradient(), Gradient(weighted=False), Gradient(n_nodes=2), Gradient(3), Batch(), Batch(2)],
    ids=str,
)
def test_a_mean_gradient_counts_by_the_weight_of_the_rows(reference, uneven, weight):
    net, trajectory = trained(uneven=uneven, weight=weight, n_epochs=1)
    (window,) = trajectory.windows("epoch")
    found = reference.mean_gradient(problem_of(net, weight=weight).whole(), window)
    assert found.weight == pytest.approx(N if weight is None else weight.sum(), rel=1e-12)
    assert found.n_rows == N


@PARTS
def test_further_rows_are_mixed_by_the_numbers_of_rows():
    """Against a plain loop: the mean over windows of (n g + m h) / (n + m) less the applied."""
    net, trajectory = trained(0.05, uneven=True)
    est = fitted(net, trajectory, family="l2", reference=Gradient())
    more, targets = make_data(16, 7)
    windows = trajectory.windows("epoch")
    total, column = 0.0, 0.0
    for window in windows:
        visited = window.mean("visited")
        counts = np.bincount(np.concatenate([step.rows for step in window.steps]), minlength=N)

        def slope(inputs, wanted, weight, at=visited):
            at = {name: tensor.clone().requires_grad_() for name, tensor in at.items()}
            own = (torch.func.functional_call(net, at, (inputs,)) - wanted).square().squeeze(1)
            found = torch.autograd.grad(own @ weight / weight.sum(), list(at.values()))
            return torch.cat([part.reshape(-1) for part in found])

        own = slope(X, Y, torch.as_tensor(counts, dtype=torch.float64))
        rest = slope(more, targets, torch.ones(16, dtype=torch.float64))
        applied = window.mean("applied")
        applied = torch.cat([applied[name].reshape(-1) for name in visited])
        total = total + ((N * own + 16 * rest) / (N + 16) - applied) / len(windows)
        column = column + 2 * torch.cat([t.reshape(-1) for t in visited.values()]) / len(windows)
    others = est._equations.targets.completing(
        adapt(net, Data(more, targets), Options(loss="mse", params="all"))
    )
    completed = est._equations.completed(others)
    mine = torch.cat([g.reshape(-1) for g in completed.judged.gradient.value.values()])
    torch.testing.assert_close(mine, total, rtol=1e-10, atol=1e-14)


def test_kinks_and_rounding_of_the_mean_are_those_of_all_windows():
    net, trajectory = trained(n_epochs=3)
    est = fitted(net, trajectory, family="l2")
    parts = [place.gradient for place in est._equations.places]
    mean = est._equations.judged.gradient
    assert mean.scale == pytest.approx(np.mean([part.scale for part in parts]), rel=1e-12)
    assert len({part.scale for part in parts}) == 3


def test_evidence_is_of_the_coordinates_that_give_equations():
    net = trained(n_epochs=1)[0]
    with torch.no_grad():
        net[0].weight[:, 1:] = 0.0
    problem = problem_of(net)
    place = Place(problem, Design.at(L1(), problem), problem.gradient())
    vector = _vector(place.gradient, place, place.names).numpy()
    assert len(vector) == place.system.n_equations == 5 + 5 + 5 + 1
    upper = place.system.merged
    assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(upper[:, -1]), rel=1e-12)
