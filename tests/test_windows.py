"""Paths against what is known: penalties put in on purpose, and the endpoint as a special case."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.exceptions import PathNoiseWarning
from sklearn_implicitreg.penalties import L2, SmoothL1
from sklearn_implicitreg.trajectory import Batch, Gradient, Trajectory, record
from sklearn_implicitreg.trajectory.path import Mark, Step

N, BATCH, LR = 200, 20, 0.01
TRUTH = {"l2": 3e-3, "smooth_l1": 1e-3}
OPTIONS = {"loss": "mse", "params": "all", "mode": "trajectory", "window": "epoch"}


def make_data():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(N, 5, generator=generator, dtype=torch.float64)
    y = torch.sin(X[:, 0]) + 0.5 * X[:, 1] + 0.3 * torch.randn(N, generator=generator)
    return X, y[:, None]


def penalty(net: nn.Module) -> torch.Tensor:
    params = dict(net.named_parameters())
    terms = L2().terms(params, None) | SmoothL1().terms(params, None)
    return sum(TRUTH[name] * value for name, value in terms.items())


def train(penalized: bool = True, decay: float = 0.0, n_epochs: int = 15, every: int = 1):
    """Tanh net by SGD in shuffled epochs, the last ones recorded."""
    X, y = make_data()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=decay)
    order = torch.Generator().manual_seed(2)

    def epoch(path=None):
        for rows in torch.randperm(N, generator=order).split(BATCH):
            if path is not None:
                path.batch(rows)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(net(X[rows]), y[rows])
            (loss + penalty(net) if penalized else loss).backward()
            optimizer.step()
        if path is not None:
            path.epoch()

    for _ in range(150):
        epoch()
    optimizer.param_groups[0]["lr"] = LR
    for _ in range(30):
        epoch()
    with record(net, optimizer, every=every) as path:
        for _ in range(n_epochs):
            epoch(path)
    return net, X, y, path.trajectory


@pytest.fixture(scope="module")
def penalized():
    return train()


@pytest.fixture(scope="module")
def plain():
    return train(penalized=False)


@pytest.fixture(scope="module")
def decayed():
    return train(penalized=False, decay=0.02)


def fit(case, **params):
    net, X, y, path = case
    return ImplicitRegularizationEstimator(net, **({"trajectory": path} | OPTIONS | params)).fit(
        X, y
    )


class TestKnownPenalty:
    def test_whole_epochs_find_what_the_endpoint_does_not(self, penalized):
        est = fit(penalized, family="elastic_net")
        assert est.term_names_ == ["l2", "smooth_l1", "minibatch"]
        np.testing.assert_allclose(est.coef_[:2], list(TRUTH.values()), rtol=0.03)
        assert est.r2_ >= 0.98
        assert est.verdict_ == "supported"
        at_end = fit(penalized, family="elastic_net", mode="endpoint", window=None)
        assert at_end.r2_ < est.r2_

    def test_same_batches_are_exact(self, penalized):
        est = fit(penalized, family="elastic_net", reference="batch")
        np.testing.assert_allclose(est.coef_, list(TRUTH.values()), rtol=1e-9)
        assert est.term_names_ == ["l2", "smooth_l1"]

    def test_sub_windows_of_one_step_are_the_batch_reference(self, penalized):
        one = fit(penalized, family="l2", reference=Gradient(sub_window=1))
        batch = fit(penalized, family="l2", reference="batch")
        np.testing.assert_allclose(one.coef_, batch.coef_, rtol=1e-12)

    def test_sub_windows_of_two_steps(self, penalized):
        est = fit(penalized, family="elastic_net", reference=Gradient(sub_window=2))
        np.testing.assert_allclose(est.coef_[:2], list(TRUTH.values()), rtol=0.02)

    def test_coefficients_of_every_window_with_their_bands(self, penalized):
        est = fit(penalized, family="elastic_net", reference="batch")
        assert est.coef_path_.shape == (15, 2)
        assert est.coef_path_conf_int_.shape == (15, 2, 2)
        np.testing.assert_allclose(est.coef_path_, [list(TRUTH.values())] * 15, rtol=1e-8)

    def test_known_part_is_moved_to_the_loss(self, penalized):
        est = fit(penalized, family="l2", known={"smooth_l1": 1e-3}, reference="batch")
        np.testing.assert_allclose(est.coef_, [3e-3], rtol=1e-9)

    def test_groups_and_positive(self, penalized):
        est = fit(
            penalized, family="elastic_net", group_by="layer", positive=True, reference="batch"
        )
        assert est.term_names_ == ["l2[0]", "smooth_l1[0]", "l2[2]", "smooth_l1[2]"]
        np.testing.assert_allclose(est.coef_, list(TRUTH.values()) * 2, rtol=1e-7)

    def test_decay_of_the_optimizer_by_what_it_was_given(self, decayed):
        est = fit(decayed, family="weight_decay", reference="applied")
        np.testing.assert_allclose(est.coef_, [0.02], rtol=1e-9)
        np.testing.assert_allclose(est.in_model_units()["weight_decay"], 0.02, rtol=1e-9)

    def test_decay_of_the_optimizer_by_the_gradient(self, decayed):
        est = fit(decayed, family="weight_decay")
        np.testing.assert_allclose(est.coef_[0], 0.02, rtol=0.05)
        assert est.in_model_units()["weight_decay"] == est.coef_[0]


class TestNoPenalty:
    def test_joint_test_and_minibatch_coefficient(self, plain):
        est = fit(plain, family="l2")
        assert est.verdict_ == "no signal"
        assert est.conf_int_[0, 0] <= 0 <= est.conf_int_[0, 1]
        assert 0.5 < est.coef_[1] / (LR / 4) < 1.5
        assert "does not reject" in str(est.summary())

    def test_single_steps_warn(self, plain):
        with pytest.warns(PathNoiseWarning, match="window='epoch'"):
            fit(plain, window=None)

    def test_batch_reference_finds_exactly_nothing(self, plain):
        est = fit(plain, family="l2", reference=Batch())
        assert abs(est.coef_[0]) < 1e-12 or np.isnan(est.coef_[0])
        assert est.verdict_ == "no signal"


class TestEndpointIsASpecialCase:
    def test_one_step_that_applied_nothing(self, penalized):
        net, X, y, _ = penalized
        weights = {name: p.detach().clone() for name, p in net.named_parameters()}
        zeros = {name: torch.zeros_like(t) for name, t in weights.items()}
        marks = (
            Mark(0, 0, weights, zeros, zeros, zeros),
            Mark(1, 0, weights, zeros, zeros, weights),
        )
        path = Trajectory(marks, (Step(0.1),), "SGD")
        along = fit((net, X, y, path), family="elastic_net", window=None)
        end = fit(penalized, family="elastic_net", mode="endpoint", window=None)
        np.testing.assert_allclose(along.coef_, end.coef_, rtol=1e-12)
        np.testing.assert_allclose(along.r2_, end.r2_, rtol=1e-10)


class TestSelection:
    FAMILIES = ("l2", "smooth_l1", "elastic_net", "power")

    def test_criterion_and_row_folds_agree(self, penalized):
        net, X, y, path = penalized
        options = OPTIONS | {"trajectory": path}
        search = ImplicitRegularizationCV(
            net, families=list(self.FAMILIES), estimator_params=options
        ).fit(X, y)
        assert search.best_family_ == "elastic_net"
        folds = GridSearchCV(
            ImplicitRegularizationEstimator(net, **options),
            {"family": list(self.FAMILIES)},
            cv=KFold(5, shuffle=True, random_state=0),
        ).fit(X.numpy(), y.numpy())
        assert folds.best_params_["family"] == "elastic_net"
        assert folds.best_estimator_.trajectory is path

    def test_path_is_shared_by_clone(self, penalized):
        path = penalized[3]
        est = ImplicitRegularizationEstimator(penalized[0], **OPTIONS, trajectory=path)
        assert clone(est).trajectory is path

    def test_score_of_all_rows_again(self, penalized):
        est = fit(penalized, family="elastic_net")
        assert est.score(penalized[1], penalized[2]) > 0.98


class TestHygiene:
    def test_model_is_left_alone(self, penalized):
        net = penalized[0]
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        fit(penalized, family="elastic_net")
        assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
        assert all(p.grad is None or p.grad.abs().sum() >= 0 for p in net.parameters())

    def test_pickle_keeps_the_result(self, penalized):
        est = fit(penalized, family="l2", reference="batch")
        again = pickle.loads(pickle.dumps(est))
        np.testing.assert_array_equal(again.coef_, est.coef_)
        assert str(again.summary()) == str(est.summary())


class TestRefusals:
    def test_no_trajectory(self, plain):
        with pytest.raises(ValueError, match="needs `trajectory=`; record one"):
            fit(plain, trajectory=None)

    def test_unknown_reference(self, plain):
        with pytest.raises(ValueError, match="Expected reference among"):
            fit(plain, reference="gradients")

    def test_unknown_window(self, plain):
        with pytest.raises(ValueError, match="Expected window None, 'epoch' or an integer"):
            fit(plain, window="epochs")

    def test_epochs_that_were_not_marked(self):
        net, X, y, path = train(n_epochs=1)
        with pytest.raises(ValueError, match="path.epoch"):
            fit((net, X, y, path[2:8]), window="epoch")

    def test_batches_between_marks(self):
        case = train(n_epochs=2, every=5)
        with pytest.raises(ValueError, match="smaller `every`"):
            fit(case, reference="batch")
        est = fit(case, family="l2")
        assert "mean iterates between marks" in str(est.summary())

    def test_path_of_another_model(self, plain):
        other = nn.Linear(5, 1).double()
        with pytest.raises(ValueError, match="Expected a path of this model"):
            fit((other, *plain[1:]))

    def test_linear_estimators_have_no_path(self, plain):
        from sklearn.linear_model import Ridge

        model = Ridge().fit(plain[1].numpy(), plain[2].numpy().ravel())
        est = ImplicitRegularizationEstimator(model, mode="trajectory", trajectory=plain[3])
        with pytest.raises(ValueError, match="Expected a path of this model"):
            est.fit(plain[1].numpy(), plain[2].numpy().ravel())
