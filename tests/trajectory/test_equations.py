"""Paths against what is known: penalties put in on purpose, and the endpoint as a special case."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from torch import nn

from sklearn_implicitreg import (
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    equations,
)
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.exceptions import PathNoiseWarning
from sklearn_implicitreg.penalties import L2, BatchGradientNorm, SmoothL1
from sklearn_implicitreg.penalties.gradients import GradientNorm
from sklearn_implicitreg.trajectory import (
    Batch,
    Gradient,
    GradientDescentProbe,
    Trajectory,
    record,
)
from sklearn_implicitreg.trajectory.trajectory import Mark, Step

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


def train(
    penalized: bool = True,
    decay: float = 0.0,
    n_epochs: int = 15,
    every: int = 1,
    n_before: int = 180,
):
    """Tanh net by SGD in shuffled epochs, the last ones recorded."""
    X, y = make_data()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=decay)
    order = torch.Generator().manual_seed(2)

    def epoch(recorder=None):
        for rows in torch.randperm(N, generator=order).split(BATCH):
            if recorder is not None:
                recorder.batch(rows)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(net(X[rows]), y[rows])
            (loss + penalty(net) if penalized else loss).backward()
            optimizer.step()
        if recorder is not None:
            recorder.epoch()

    for i in range(n_before):
        if i == 150:
            optimizer.param_groups[0]["lr"] = LR
        epoch()
    with record(net, optimizer, every=every) as recorder:
        for _ in range(n_epochs):
            epoch(recorder)
    return net, X, y, recorder.trajectory


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
    net, X, y, trajectory = case
    return ImplicitRegularizationEstimator(
        net, **({"trajectory": trajectory} | OPTIONS | params)
    ).fit(X, y)


def text_of(est):
    return " ".join(str(est.summary()).split())


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


class Cubic(nn.Module):
    """``f(w) = sum w^3``: its gradient is a parabola along any line."""

    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(start.clone())

    def forward(self, X):
        return (self.w**3).sum() + 0 * X.sum(1, keepdim=True)


class TestNodes:
    """Weights that drift in a straight line by even steps, along which the gradient is curved."""

    STEPS = 7

    def straight(self):
        start = torch.tensor([1.0, -2.0], dtype=torch.float64)
        drift = torch.tensor([0.1, 0.3], dtype=torch.float64)
        iterates = [{"w": start + t * drift} for t in range(self.STEPS + 1)]
        mean = torch.stack([3 * i["w"] ** 2 for i in iterates[:-1]]).mean(0)
        return Trajectory.from_iterates(iterates, lr=1.0), mean, iterates[-1]["w"]

    def reference(self, **how):
        trajectory, mean, end = self.straight()
        rows = Data(torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1))
        options = Options(loss=lambda output, target: output.mean(), params="all")
        problem = adapt(Cubic(end), rows, options)
        found = Gradient(weighted=False, **how).mean_gradient(problem, trajectory.windows(7)[0])
        return found.value["w"], mean

    def test_two_nodes_are_exact_where_the_mean_iterate_is_not(self):
        found, mean = self.reference(n_nodes=2)
        np.testing.assert_allclose(found, mean, rtol=1e-14)
        found, mean = self.reference()
        spread = (self.STEPS**2 - 1) / 12 * np.array([0.1, 0.3]) ** 2
        np.testing.assert_allclose(mean - found, 3 * spread, rtol=1e-12)

    def test_two_nodes_see_the_first_epochs_better(self):
        """From a fresh start, where the weights move far in an epoch."""
        case = train(penalized=False, decay=0.02, n_before=0)
        one, two = (fit(case, family="weight_decay", reference=Gradient(n_nodes=n)) for n in (1, 2))
        assert abs(two.coef_[0] / 0.02 - 1) < 0.5 * abs(one.coef_[0] / 0.02 - 1)

    def test_other_numbers_are_refused(self):
        with pytest.raises(ValueError, match=r"Expected n_nodes of Gradient .*got 3\."):
            Gradient(n_nodes=3)


class TestNoPenalty:
    def test_joint_test_and_minibatch_coefficient(self, plain):
        est = fit(plain, family="l2")
        assert est.verdict_ == "no signal"
        assert est.conf_int_[0, 0] <= 0 <= est.conf_int_[0, 1]
        assert 0.5 < est.coef_[1] / (LR / 4) < 1.5
        assert "does not reject" in str(est.summary())

    def test_sizes_of_batches_are_enough(self, plain):
        """Batches drawn at random in the place of the epoch's own: the same to their spread."""
        net, X, y, trajectory = plain
        sizes = [replace(step, rows=None) for step in trajectory.steps]
        unnamed = fit((net, X, y, replace(trajectory, steps=tuple(sizes))), family="l2")
        assert unnamed.term_names_ == ["l2", "minibatch"]
        assert unnamed.conf_int_[0, 0] <= 0 <= unnamed.conf_int_[0, 1]
        assert 0.5 < unnamed.coef_[1] / (LR / 4) < 1.5
        assert unnamed.coef_[1] != fit(plain, family="l2").coef_[1]
        assert "random batches of the sizes used" in " ".join(str(unnamed.summary()).split())

    def test_without_sizes_the_column_is_left_out(self, plain):
        net, X, y, trajectory = plain
        unknown = [replace(step, rows=None, batch_size=None) for step in trajectory.steps]
        est = fit((net, X, y, replace(trajectory, steps=tuple(unknown))), family="l2")
        assert est.term_names_ == ["l2"]
        assert "not even the sizes of the batches are known" in " ".join(str(est.summary()).split())

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
        trajectory = Trajectory(marks, (Step(0.1),), "SGD")
        along = fit((net, X, y, trajectory), family="elastic_net", window=None)
        end = fit(penalized, family="elastic_net", mode="endpoint", window=None)
        np.testing.assert_allclose(along.coef_, end.coef_, rtol=1e-12)
        np.testing.assert_allclose(along.r2_, end.r2_, rtol=1e-10)


def descend(n_steps):
    """A linear model from zero by gradient descent on all rows, every step recorded."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))
    y = X @ rng.normal(size=4) + rng.normal(size=60)
    lr = 0.3 / np.linalg.eigvalsh(X.T @ X / 60)[-1]
    model = nn.Linear(4, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    rows, target = torch.as_tensor(X), torch.as_tensor(y)[:, None]
    with record(model, optimizer) as recorder:
        for _ in range(n_steps):
            recorder.batch(np.arange(60))
            optimizer.zero_grad()
            nn.functional.mse_loss(model(rows), target).backward()
            optimizer.step()
            recorder.epoch()
    return model, rows, target, recorder.trajectory, lr


class TestGradientDescentOnALinearModel:
    """No step adds a penalty; stopped early, all of them together are a ridge with a matrix."""

    @pytest.mark.parametrize("window", [None, 10, "epoch"], ids=str)
    def test_path_finds_nothing(self, window):
        *case, _ = descend(100)
        est = fit(case, family="l2", window=window)
        assert abs(est.coef_[0]) <= 1e-12
        assert est.verdict_ == "no signal"

    def test_endpoints_find_the_matrix_along_the_weights(self):
        """Eigenvalues ``s e / (1 - e)``, ``e = (1 - 2 lr s)^t``, by Ali et al. (2019)."""
        model, rows, target, trajectory, lr = descend(100)
        s, V = np.linalg.eigh(rows.T.numpy() @ rows.numpy() / len(rows))
        for t in (1, 2, 5, 10, 30, 100):
            theta = trajectory.marks[t].weights["weight"]
            e = (1 - 2 * lr * s) ** t
            along = V.T @ theta.numpy().ravel()
            expected = (s * e / (1 - e)) @ along**2 / (along @ along)
            checkpoint = nn.Linear(4, 1, bias=False).double()
            checkpoint.load_state_dict({"weight": theta})
            est = ImplicitRegularizationEstimator(checkpoint, loss="mse", params="all")
            np.testing.assert_allclose(est.fit(rows, target).coef_, [expected], rtol=1e-8)


class TestEquationsAsTables:
    def test_rows_of_all_windows(self, penalized):
        net, X, y, trajectory = penalized
        options = OPTIONS | {"trajectory": trajectory[:31], "reference": "batch"}
        est = fit(penalized, family="elastic_net", **options)
        table = equations(est, X, y)
        assert list(table.data.columns) == est.term_names_
        assert len(table.data) == est.n_equations_ == 3 * 85
        assert table.groups.value_counts().to_dict() == dict.fromkeys(range(3), 85)
        assert table.data.index.names == ["window", "tensor", "coordinate"]
        np.testing.assert_allclose(
            np.linalg.lstsq(table.data, table.target, rcond=None)[0], est.coef_, rtol=1e-10
        )
        again = equations(net, X, y, "elastic_net", **options)
        np.testing.assert_array_equal(again.data, table.data)

    def test_windows_left_out(self, penalized):
        net, X, y, trajectory = penalized
        options = OPTIONS | {"trajectory": trajectory, "reference": "batch"}
        scores = {}
        for family in ("l2", "smooth_l1", "elastic_net"):
            table = equations(net, X, y, family, **options)
            scores[family] = cross_val_score(
                LinearRegression(fit_intercept=False),
                table.data,
                table.target,
                groups=table.groups,
                cv=GroupKFold(5),
            )
        assert min(scores["elastic_net"]) > 1 - 1e-9
        assert max(scores["elastic_net"]) > max(*scores["l2"], *scores["smooth_l1"])
        folds = GroupKFold(5).split(table.data, groups=table.groups)
        for train, test in folds:
            assert not set(table.groups.iloc[train]) & set(table.groups.iloc[test])


class TestRounding:
    @pytest.mark.parametrize("every", [1, 5])
    def test_decay_of_adamw_in_float32_is_within_what_the_summary_says(self, every):
        X, y = (t.float() for t in make_data())
        net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 1))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.02)
        with record(net, optimizer, every=every, gradients=True) as recorder:
            for _ in range(5):
                for rows in torch.arange(N).split(BATCH):
                    optimizer.zero_grad()
                    nn.functional.mse_loss(net(X[rows]), y[rows]).backward()
                    optimizer.step()
                recorder.epoch()
        case = (net, X, y, recorder.trajectory)
        est = fit(case, family="weight_decay", reference="applied")
        said = re.search(r"at most ([\d.e-]+) \(weight_decay\)", text_of(est))
        assert 0 < abs(est.coef_[0] - 0.02) < float(said[1]) < 0.2 * 0.02

    def test_of_one_term_it_is_the_norm_over_that_of_the_column(self, decayed):
        est = fit(decayed, family="weight_decay", reference="applied")
        trajectory = decayed[3]
        size = sum(
            float(t.square().sum())
            for w in trajectory.windows("epoch")
            for t in w.mean("visited").values()
        )
        bound = trajectory.rounding("epoch") / size**0.5
        assert f"at most {bound:.2g} (weight_decay)" in text_of(est)

    def test_not_told_where_it_is_not_known(self, penalized):
        net, X, y, trajectory = penalized
        unknown = replace(
            trajectory, steps=tuple(replace(s, rounding=np.nan) for s in trajectory.steps)
        )
        assert "Rounding" not in text_of(fit((net, X, y, unknown), family="l2"))


class TestStepsOnAllRows:
    def test_windows_of_a_flow_differ_by_no_noise(self, plain):
        """Five deterministic steps: the gradient shrinks on the way, which is no noise."""
        net, X, y, _ = plain
        est = ImplicitRegularizationEstimator(
            net,
            family=GradientNorm(),
            mode="trajectory",
            trajectory=GradientDescentProbe(0.05, n_steps=5),
            reference="flow",
            loss="mse",
            params="all",
        ).fit(X, y)
        assert np.ptp(est.coef_path_) > 0
        assert est._result.noise_share == 0.0
        assert est.verdict_ == "supported"
        assert "noise removed" not in text_of(est)

    def test_one_batch_an_epoch_has_no_column_of_minibatches(self):
        *case, _ = descend(5)
        assert fit(case, family="l2").term_names_ == ["l2"]


class TestSelection:
    FAMILIES = ("l2", "smooth_l1", "elastic_net", "power")

    def test_criterion_and_row_folds_agree(self, penalized):
        net, X, y, trajectory = penalized
        options = OPTIONS | {"trajectory": trajectory}
        search = ImplicitRegularizationCV(net, families=list(self.FAMILIES), **options).fit(X, y)
        assert search.best_family_ == "elastic_net"
        folds = GridSearchCV(
            ImplicitRegularizationEstimator(net, **options),
            {"family": list(self.FAMILIES)},
            cv=KFold(5, shuffle=True, random_state=0),
        ).fit(X.numpy(), y.numpy())
        assert folds.best_params_["family"] == "elastic_net"
        assert folds.best_estimator_.trajectory is trajectory

    def test_folds_of_rows_have_other_row_numbers(self, penalized):
        net, X, y, trajectory = penalized
        with pytest.raises(ValueError, match="rows of a fold are not .* by ImplicitRegular"):
            GridSearchCV(
                ImplicitRegularizationEstimator(net, **OPTIONS, trajectory=trajectory),
                {"family": [BatchGradientNorm()]},
                cv=KFold(2),
                error_score="raise",
            ).fit(X.numpy(), y.numpy())

    def test_path_is_shared_by_clone(self, penalized):
        trajectory = penalized[3]
        est = ImplicitRegularizationEstimator(penalized[0], **OPTIONS, trajectory=trajectory)
        assert clone(est).trajectory is trajectory

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
    def test_more_coefficients_than_equations_in_a_window(self):
        *case, _ = descend(5)
        family = {f"power{i}": lambda p, i=i: (p["weight"] ** i).sum() for i in range(2, 7)}
        message = "got 4 equations for the 5 coefficients .*; take fewer terms"
        with pytest.raises(ValueError, match=message):
            fit(case, family=family, window=5)

    def test_no_trajectory(self, plain):
        with pytest.raises(ValueError, match="needs `trajectory=`; record one"):
            fit(plain, trajectory=None)

    def test_unknown_reference(self, plain):
        with pytest.raises(
            ValueError, match=r"Expected reference of ImplicitRegularizationEstimator to be "
        ):
            fit(plain, reference="gradients")

    def test_unknown_window(self, plain):
        with pytest.raises(
            ValueError, match="Expected window of ImplicitRegularizationEstimator to be "
        ):
            fit(plain, window="epochs")

    def test_epochs_that_were_not_marked(self):
        net, X, y, trajectory = train(n_epochs=1)
        with pytest.raises(ValueError, match="recorder.epoch"):
            fit((net, X, y, trajectory[2:8]), window="epoch")

    def test_batches_between_marks(self):
        case = train(n_epochs=2, every=5)
        with pytest.raises(ValueError, match="smaller `every`"):
            fit(case, reference="batch")
        est = fit(case, family="l2")
        assert "mean iterates between marks" in str(est.summary())

    def test_path_of_another_model(self, plain):
        other = nn.Linear(5, 1).double()
        with pytest.raises(ValueError, match="Expected a trajectory of this model"):
            fit((other, *plain[1:]))

    def test_path_of_a_model_of_other_shapes(self, plain):
        """A linear layer runs with weights of any shape."""
        wide = {n: p.repeat_interleave(2, 0) for n, p in plain[0].named_parameters()}
        other = copy.deepcopy(plain[0])
        for name, p in other.named_parameters():
            p.data = wide[name].detach()
        with pytest.raises(ValueError, match="Expected a trajectory of this model, .* of shape"):
            fit((other, *plain[1:]), reference="batch")

    def test_linear_estimators_have_no_path(self, plain):
        from sklearn.linear_model import Ridge

        model = Ridge().fit(plain[1].numpy(), plain[2].numpy().ravel())
        est = ImplicitRegularizationEstimator(model, mode="trajectory", trajectory=plain[3])
        with pytest.raises(ValueError, match="Expected a trajectory of this model"):
            est.fit(plain[1].numpy(), plain[2].numpy().ravel())
