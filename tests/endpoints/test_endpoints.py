"""Lists of endpoints against what is known: pooled least squares, jackknives, shared penalties."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from cases import X_DIABETES as X
from cases import Y_DIABETES as Y
from scipy.linalg import lstsq
from scipy.stats import t as student_t
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.datasets import make_regression
from sklearn.exceptions import FitFailedWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetRegressor
from torch import nn
from two_processes import assert_two_write

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    endpoints,
    equations,
)
from sklearn_implicitreg.problem import workers
from sklearn_implicitreg.trajectory import GradientDescentProbe

N, P = X.shape
ALPHAS = (1.0, 2.0, 3.0, 5.0, 8.0)
ROUNDS = 1e-10


def estimator(**params):
    return ImplicitRegularizationEstimator(None, **params)


def data_set(seed, n=60, p=4):
    return make_regression(n, p, noise=5.0, random_state=seed)


def mixture():
    """Ridge fits of different strengths on different data."""
    sets = [data_set(seed, n=40 + 10 * seed) for seed in range(len(ALPHAS))]
    return [Endpoint(Ridge(a).fit(*d), *d) for a, d in zip(ALPHAS, sets, strict=True)]


def by_hand(group, terms=("l2",)):
    """Design, target and endpoint of every equation of squared error."""
    rows = []
    for place, own in enumerate(group):
        theta = own.model.coef_
        residual = own.y - own.model.predict(own.X)
        columns = {"l2": 2 * theta, "l1": np.sign(theta)}
        design = np.stack([columns[t] for t in terms], axis=1)
        rows.append((design, 2 * own.X.T @ residual / len(own.X), np.full(len(theta), place)))
    return (np.concatenate(parts) for parts in zip(*rows, strict=True))


# Coefficients


def test_one_alpha_on_many_data_sets_is_found():
    group = [Endpoint(Ridge(3.0).fit(*d), *d) for d in map(data_set, range(8))]
    est = estimator().fit(group)
    assert est.coef_[0] == pytest.approx(3.0 / 60, rel=ROUNDS)
    assert est.in_model_units()["alpha"] == pytest.approx(3.0, rel=ROUNDS)
    assert est.explicit_estimator().alpha == pytest.approx(3.0, rel=ROUNDS)
    assert est.r2_ == pytest.approx(1.0)
    assert est.verdict_ == "supported"
    assert est.n_equations_ == 8 * 4
    np.testing.assert_allclose(est.coef_path_, np.full((8, 1), 3.0 / 60), rtol=1e-8)
    assert est.coef_path_conf_int_.shape == (8, 1, 2)


@pytest.mark.parametrize("family", [("l2",), ("l2", "l1")])
def test_a_mixture_is_pooled_least_squares(family):
    group = mixture()
    design, target, _ = by_hand(group, family)
    expected = lstsq(design, target)[0]
    est = estimator(family="+".join(family)).fit(group)
    np.testing.assert_allclose(est.coef_, expected, rtol=1e-10)
    residual = target - design @ expected
    assert est.r2_ == pytest.approx(1 - residual @ residual / (target @ target), rel=1e-10)


@pytest.mark.parametrize("family", [("l2",), ("l2", "l1")])
def test_standard_errors_leave_out_one_endpoint(family):
    group = mixture()
    design, target, places = by_hand(group, family)
    whole = lstsq(design, target)[0]
    count = len(group)
    left = np.array([lstsq(design[places != c], target[places != c])[0] for c in range(count)])
    cov = (count - 1) / count * (left - whole).T @ (left - whole)
    est = estimator(family="+".join(family)).fit(group)
    np.testing.assert_allclose(est.std_err_, np.sqrt(np.diag(cov)), rtol=1e-8)
    assert "jackknife" in str(est.summary())


def test_every_endpoint_has_its_row_of_the_path():
    group = mixture()
    est = estimator().fit(group)
    n = np.array([len(own.X) for own in group])
    np.testing.assert_allclose(est.coef_path_[:, 0], np.array(ALPHAS) / n, rtol=1e-9)


@pytest.mark.parametrize("family", ["l2", "l2+l1"])
def test_one_endpoint_is_the_fit_of_its_model(family):
    model = Ridge(2.0).fit(X, Y)
    alone = ImplicitRegularizationEstimator(model, family=family).fit(X, Y)
    listed = estimator(family=family).fit([Endpoint(model, X, Y)])
    for name in ("coef_", "std_err_", "conf_int_", "r2_", "vif_", "cosine_", "verdict_"):
        np.testing.assert_array_equal(getattr(listed, name), getattr(alone, name))
    assert str(listed.summary()) == str(alone.summary())


def test_weights_of_an_endpoint_are_used():
    weights = np.random.default_rng(0).uniform(0.5, 2.0, N)
    group = [Endpoint(Ridge(a).fit(X, Y, sample_weight=weights), X, Y, weights) for a in (1.0, 1.0)]
    est = estimator().fit(group)
    assert est.coef_[0] == pytest.approx(1.0 / weights.sum(), rel=1e-9)


def test_few_equations_each_but_enough_together():
    group = [Endpoint(Ridge(3.0).fit(*d), *d) for d in (data_set(s, p=1) for s in range(6))]
    est = estimator(family="l2+l1").fit(group)  # one equation each
    np.testing.assert_allclose(est.coef_, [3.0 / 60, 0.0], atol=1e-10)
    assert np.isnan(est.coef_path_).all()
    with pytest.raises(ValueError, match="got 1 equations for the 2 coefficients"):
        estimator(family="l2+l1").fit(group[:1])


def test_no_gradient_is_no_signal():
    est = estimator().fit(endpoints(LinearRegression(), X, Y, 5, random_state=0))
    assert est.verdict_ == "no signal"
    assert np.isnan(est.coef_).all()
    assert "5 endpoints of LinearRegression" in str(est.summary())


def test_modules_share_the_coefficient():
    def module(decay, seed):
        inputs, outputs = data_set(seed)
        theta = np.linalg.solve(inputs.T @ inputs / 60 + decay * np.eye(4), inputs.T @ outputs / 60)
        layer = nn.Linear(4, 1, bias=False).double()
        layer.weight.data[0] = torch.tensor(theta)
        return Endpoint(layer, inputs, outputs[:, None])

    est = estimator(loss="mse").fit([module(0.3, seed) for seed in range(4)])
    assert est.coef_[0] == pytest.approx(0.3, rel=1e-9)
    penalty = est.penalty_({"weight": torch.ones(1, 4, dtype=torch.float64)})
    assert float(penalty) == pytest.approx(1.2)


# Report


def test_summary_names_what_was_pooled():
    text = str(estimator().fit(mixture()).summary())
    assert "5 endpoints of Ridge" in text
    assert "40 to 80" in text


def test_units_of_endpoints_of_different_sizes_are_refused():
    est = estimator().fit(mixture())
    for convert in (est.in_model_units, est.explicit_estimator):
        with pytest.raises(ValueError, match="Expected endpoints of one number of rows"):
            convert()


@pytest.mark.parametrize(
    ("model", "family", "params"),
    [
        (Lasso(0.2), "l1", {"alpha": 0.2}),
        (ElasticNet(0.2, l1_ratio=0.3), "l2+l1", {"alpha": 0.2, "l1_ratio": 0.3}),
        (PoissonRegressor(alpha=0.2, tol=1e-8), "l2", {"alpha": 0.2}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_units_that_do_not_depend_on_rows_are_told_of_all_sizes(model, family, params):
    def draw(seed):
        rng = np.random.default_rng(seed)
        inputs = rng.standard_normal((40 + 10 * seed, 4))
        return inputs, np.exp(
            inputs @ [0.5, -0.4, 0.3, 0.6] + 0.1 * rng.standard_normal(len(inputs))
        )

    tight = clone(model).set_params(tol=1e-10)
    sets = [draw(seed) for seed in range(4)]
    est = estimator(family=family).fit([Endpoint(clone(tight).fit(*d), *d) for d in sets])
    found = est.in_model_units()
    assert found == {key: pytest.approx(value, rel=1e-3) for key, value in params.items()}
    assert est.explicit_estimator().alpha == found["alpha"]


def test_results_are_pickled_without_data():
    group = endpoints(Ridge(), X, Y, 4, random_state=0)
    est = estimator().fit(group)
    again = pickle.loads(pickle.dumps(est))
    assert str(again.summary()) == str(est.summary())
    np.testing.assert_array_equal(again.coef_path_, est.coef_path_)
    assert again.score(group) == est.score(group)  # the endpoints bring all that is needed


# Score and selection


def test_score_is_the_plain_r2_on_other_endpoints():
    group = mixture()
    est = estimator().fit(group[:3])
    design, target, _ = by_hand(group[3:])
    residual = target - design @ est.coef_
    expected = 1 - residual @ residual / (target @ target)
    assert est.score(group[3:]) == pytest.approx(expected, rel=1e-10)
    assert estimator().fit(group).score(group) == pytest.approx(estimator().fit(group).r2_)


def test_score_of_a_fit_on_rows_takes_endpoints():
    model = Ridge(2.0).fit(X, Y)
    est = ImplicitRegularizationEstimator(model).fit(X, Y)
    assert est.score([Endpoint(model, X, Y)]) == pytest.approx(1.0)


def test_search_over_folds_of_endpoints():
    group = endpoints(Ridge(4.0), X, Y, 10, random_state=0)
    search = GridSearchCV(
        estimator(), {"family": ["l1", "l2", "power"]}, cv=KFold(5, shuffle=True, random_state=0)
    ).fit(group)
    assert search.best_params_ == {"family": "l2"}
    assert search.best_score_ == pytest.approx(1.0)
    scores = cross_val_score(estimator(family="l1"), group, cv=5)
    assert scores.shape == (5,)


def test_selection_in_one_pass_and_over_folds():
    group = endpoints(Ridge(4.0), X, Y, 6, random_state=0)
    for cv in (None, 3):
        best = ImplicitRegularizationCV(None, families=["l1", "l2"], cv=cv).fit(group)
        assert best.best_family_ == "l2"
        assert best.in_model_units()["alpha"] == pytest.approx(4.0, rel=1e-8)
        assert best.coef_path_.shape == (6, 1)
        assert best.n_features_in_ == P


def test_criterion_of_one_endpoint_is_that_of_its_rows():
    model = Ridge(4.0).fit(X, Y)
    families = ["l1", "l2", "l2+l1"]
    rows = ImplicitRegularizationCV(model, families=families).fit(X, Y)
    listed = ImplicitRegularizationCV(None, families=families).fit([Endpoint(model, X, Y)])
    np.testing.assert_array_equal(
        listed.cv_results_["mean_test_score"], rows.cv_results_["mean_test_score"]
    )


def test_criterion_adds_the_noise_of_the_endpoints():
    model = Ridge(4.0).fit(X, Y)
    one, two = (
        ImplicitRegularizationCV(None, families=["l1"]).fit([Endpoint(model, X, Y)] * count)
        for count in (1, 2)
    )
    # Twice the noise over twice the target, in the same columns: but the same direction of them.
    first, second = (best.cv_results_ for best in (one, two))
    np.testing.assert_allclose(second["r2"], first["r2"], rtol=1e-12)
    lost = [r["r2"][0] - r["mean_test_score"][0] for r in (first, second)]
    assert lost[1] == pytest.approx(lost[0] / 2, rel=1e-9)


def test_equations_are_grouped_by_endpoint():
    group = mixture()
    table = equations(None, group, families="l2+l1")
    design, target, places = by_hand(group, ("l2", "l1"))
    np.testing.assert_allclose(table.data.to_numpy(), design, rtol=1e-12)
    np.testing.assert_allclose(table.target, target, rtol=1e-9)
    np.testing.assert_array_equal(table.groups, places)
    assert table.data.index.names == ["endpoint", "tensor", "coordinate"]
    fit = LinearRegression(fit_intercept=False)
    scores = cross_val_score(fit, table.data, table.target, groups=table.groups, cv=GroupKFold(5))
    assert len(scores) == 5


# Training


def test_the_first_endpoint_has_all_rows():
    group = endpoints(Ridge(2.0), X, Y, 4, random_state=0)
    np.testing.assert_array_equal(group[0].X, X)
    np.testing.assert_array_equal(group[0].model.coef_, Ridge(2.0).fit(X, Y).coef_)
    rng = np.random.RandomState(0)
    for own in group[1:]:
        rows = rng.choice(N, size=N)
        np.testing.assert_array_equal(own.X, X[rows])
        np.testing.assert_array_equal(own.model.coef_, Ridge(2.0).fit(X[rows], Y[rows]).coef_)
    assert group.n_failed_ == 0
    np.testing.assert_array_equal(group.effective_sample_size_, [N] * 4)


@pytest.mark.parametrize(
    "template",
    [
        Ridge(2.0),
        make_pipeline(
            StandardScaler(), MLPRegressor(hidden_layer_sizes=3, solver="lbfgs", max_iter=15)
        ),
        SGDRegressor(max_iter=5, tol=None),
    ],
    ids=["ridge", "pipeline", "sgd"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_processes_do_not_change_the_numbers(template):
    one = endpoints(template, X, Y, 5, random_state=3)
    two = endpoints(template, X, Y, 5, random_state=3, n_jobs=2)
    for mine, theirs in zip(one, two, strict=True):
        np.testing.assert_array_equal(mine.X, theirs.X)
        np.testing.assert_array_equal(mine.model.predict(X), theirs.model.predict(X))
    assert len({own.model.predict(X[:1]).item() for own in one}) == 5


class TestKept:
    TEMPLATE = SGDRegressor(max_iter=5, tol=None)

    def test_a_killed_run_goes_on_with_the_same_bits(self, tmp_path):
        code = (
            "import importlib, os, sys, numpy as np\n"
            "from sklearn.linear_model import SGDRegressor\n"
            "from sklearn_implicitreg import endpoints\n"
            "r = importlib.import_module('sklearn_implicitreg.endpoints.retraining')\n"
            "X = np.load(sys.argv[1] + '/X.npy'); y = np.load(sys.argv[1] + '/y.npy')\n"
            "put, n = r.put_in_place, [0]\n"
            "def killed(file, write):\n"
            "    put(file, write); n[0] += 1\n"
            "    n[0] < 4 or os.kill(os.getpid(), 9)\n"
            "r.put_in_place = killed\n"
            "endpoints(SGDRegressor(max_iter=5, tol=None), X, y, 9, random_state=1,\n"
            "          cache=sys.argv[1] + '/kept')\n"
        )
        np.save(tmp_path / "X.npy", X), np.save(tmp_path / "y.npy", Y)
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        assert run.returncode == -9
        files = list((tmp_path / "kept").rglob("*.joblib"))
        assert len(files) == 4
        stamps = {file: file.stat().st_mtime_ns for file in files}
        again = endpoints(self.TEMPLATE, X, Y, 9, random_state=1, cache=tmp_path / "kept")
        assert {file: file.stat().st_mtime_ns for file in files} == stamps
        whole = endpoints(self.TEMPLATE, X, Y, 9, random_state=1)
        for mine, theirs in zip(again, whole, strict=True):
            np.testing.assert_array_equal(mine.model.coef_, theirs.model.coef_)
            np.testing.assert_array_equal(mine.X, theirs.X)

    @pytest.mark.parametrize("gone", [0, 2])
    def test_only_what_is_not_kept_needs_workers(self, tmp_path, monkeypatch, gone):
        how = {"random_state": 1, "cache": tmp_path}
        plain = endpoints(self.TEMPLATE, X, Y, 5, **how)
        files = sorted(tmp_path.rglob("*.joblib"))
        for file in files[:gone]:
            file.unlink()
        ran = []

        class Counting(workers.Parallel):
            def __call__(self, calls):
                ran.extend(calls := list(calls))
                return super().__call__(calls)

        def parallel(n_jobs, **how):
            assert gone, "no workers are needed"
            assert n_jobs == 2
            return Counting(n_jobs=1, **how)

        monkeypatch.setattr(workers, "Parallel", parallel)
        again = endpoints(self.TEMPLATE, X, Y, 5, n_jobs=2, **how)
        assert len(ran) == gone
        for mine, theirs in zip(again, plain, strict=True):
            np.testing.assert_array_equal(mine.model.coef_, theirs.model.coef_)
            assert mine.model.intercept_ == theirs.model.intercept_
            np.testing.assert_array_equal(mine.X, theirs.X)

    def test_other_templates_rows_and_seeds_are_trained(self, tmp_path):
        def fit(template=self.TEMPLATE, X=X, y=Y, seed=1, **how):
            mine = endpoints(template, X, y, 3, random_state=seed, cache=tmp_path, **how)
            plain = endpoints(template, X, y, 3, random_state=seed, **how)
            for one, other in zip(mine, plain, strict=True):
                np.testing.assert_array_equal(one.model.coef_, other.model.coef_)
            return len(list(tmp_path.rglob("*.joblib")))

        assert fit() == fit() == 3
        assert fit(seed=2) == 6
        assert fit(clone(self.TEMPLATE).set_params(alpha=0.1)) == 9
        assert fit(y=Y + 1) == 12
        assert fit(sample_weight=np.arange(1.0, N + 1)) == 15
        sets = {"X": [X, X[:20], X[20:]], "y": [Y, Y[:20], Y[20:]], "bootstrap": False}
        assert fit(**sets) == 18

    def test_templates_and_rows_with_tensors(self, tmp_path):
        held = []  # so that no memory is used twice

        def n_kept(start=0.0, shift=0.0):
            layer = nn.Linear(2, 1)
            with torch.no_grad():
                layer.weight.fill_(start)
                layer.bias.fill_(1.0)
            rows = torch.arange(12.0).reshape(6, 2) / 12
            net = NeuralNetRegressor(layer, max_epochs=1, train_split=None, verbose=0)
            held.append((net, rows))
            targets = rows[:, :1].numpy() + np.float32(shift)
            endpoints(net, rows, targets, 2, random_state=1, cache=tmp_path)
            return len(list(tmp_path.rglob("*.joblib")))

        assert n_kept() == n_kept() == 2
        assert n_kept(start=1.0) == 4
        assert n_kept(shift=1.0) == 6

    def test_a_damaged_file_is_trained_again(self, tmp_path):
        endpoints(self.TEMPLATE, X, Y, 2, random_state=1, cache=tmp_path)
        for file in tmp_path.rglob("*.joblib"):
            file.write_bytes(file.read_bytes()[:40])
        again = endpoints(self.TEMPLATE, X, Y, 2, random_state=1, cache=tmp_path)
        plain = endpoints(self.TEMPLATE, X, Y, 2, random_state=1)
        np.testing.assert_array_equal(again[1].model.coef_, plain[1].model.coef_)

    def test_a_file_with_one_other_byte_is_trained_again(self, tmp_path):
        plain = endpoints(self.TEMPLATE, X, Y, 1, random_state=1, cache=tmp_path)
        (file,) = tmp_path.rglob("*.joblib")
        content = file.read_bytes()
        assert joblib.load(file).coef_.shape == (P,)  # a pickle as others read it
        for place in range(0, len(content), 97):
            changed = bytes([content[place] ^ 255])
            file.write_bytes(content[:place] + changed + content[place + 1 :])
            again = endpoints(self.TEMPLATE, X, Y, 1, random_state=1, cache=tmp_path)
            np.testing.assert_array_equal(again[0].model.coef_, plain[0].model.coef_)
            assert file.read_bytes() == content

    def test_two_processes_write_the_same_folder(self, tmp_path):
        code = (
            "import sys, numpy as np\n"
            "from sklearn.linear_model import Ridge\n"
            "from sklearn_implicitreg import endpoints\n"
            "X = np.random.default_rng(0).standard_normal((30, 3))\n"
            "sys.stdin.readline()\n"
            "found = endpoints(Ridge(), X, X[:, 0], 40, random_state=0, cache=sys.argv[1])\n"
            "print(repr(sum(own.model.coef_.sum() for own in found)))\n"
        )
        assert_two_write(code, tmp_path)

    def test_bad_input(self, tmp_path):
        with pytest.raises(ValueError, match="the name of a folder"):
            endpoints(self.TEMPLATE, X, Y, 2, cache="")
        file = tmp_path / "file"
        file.write_text("")
        with pytest.raises(ValueError, match="Expected a folder as cache, got the file"):
            endpoints(self.TEMPLATE, X, Y, 2, cache=file)

        class Local(SGDRegressor):
            pass

        with pytest.raises(ValueError, match="can be pickled for cache=, got .*Local"):
            endpoints(Local(), X, Y, 2, cache=tmp_path)


class Drawing(Ridge):
    """A training that draws from every global generator."""

    def fit(self, X, y, sample_weight=None):
        super().fit(X, y, sample_weight)
        drawn = np.random.standard_normal() + random.random() + float(torch.rand(()))
        self.coef_ = self.coef_ + drawn
        return self


def test_trainings_that_draw_global_numbers_are_reproducible():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    runs = [
        [own.model.coef_ for own in endpoints(Drawing(), X, Y, 3, random_state=1, n_jobs=n)]
        for n in (1, 1, 2)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_skorch_nets_are_reproducible_and_leave_the_random_state():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(P, 1)

        def forward(self, inputs):
            return self.layer(inputs)

    template = NeuralNetRegressor(Net, max_epochs=2, train_split=None, verbose=0, lr=0.1)
    inputs, outputs = X.astype(np.float32), Y[:, None].astype(np.float32)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    runs = [endpoints(template, inputs, outputs, 3, random_state=1) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    for mine, theirs in zip(*runs, strict=True):
        np.testing.assert_array_equal(mine.model.predict(inputs), theirs.model.predict(inputs))
    est = estimator().fit(runs[0])
    assert est.n_equations_ == 3 * P


def test_integer_random_states_are_kept():
    group = endpoints(SGDRegressor(random_state=7), X, Y, 2, random_state=0)
    assert group[1].model.random_state == 7
    free = endpoints(SGDRegressor(), X, Y, 2, random_state=0)
    assert isinstance(free[0].model.random_state, int)
    assert free[0].model.random_state != free[1].model.random_state


def test_importance_weights_and_their_effective_size():
    draw = np.random.default_rng(1).uniform(0.2, 1.0, N)
    share = draw / draw.sum()
    group = endpoints(Ridge(2.0), X, Y, 4, weights=draw, random_state=0)
    np.testing.assert_array_equal(group[0].sample_weight, np.ones(N))
    rng = np.random.RandomState(0)
    for i, own in enumerate(group[1:], 1):
        rows = rng.choice(N, size=N, p=share)
        weight = 1 / share[rows]
        weight *= N / weight.sum()  # the strength alpha / n is that of all rows
        np.testing.assert_allclose(own.sample_weight, weight, rtol=1e-14)
        size = weight.sum() ** 2 / (weight**2).sum()
        assert group.effective_sample_size_[i] == pytest.approx(size, rel=1e-12)
        expected = Ridge(2.0).fit(X[rows], Y[rows], sample_weight=weight)
        np.testing.assert_allclose(own.model.coef_, expected.coef_, rtol=1e-12)
    est = estimator().fit(group)
    np.testing.assert_allclose(est.coef_path_[:, 0], 2.0 / N, rtol=1e-8)
    assert est.in_model_units()["alpha"] == pytest.approx(2.0, rel=1e-8)


def test_importance_weights_are_unbiased():
    draw = np.random.default_rng(1).uniform(0.2, 1.0, N)
    group = endpoints(LinearRegression(), X, Y, 400, weights=draw, random_state=0)
    means = [np.average(own.y, weights=own.sample_weight) for own in group[1:]]
    error = np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - Y.mean()) < 3 * error
    assert abs(np.average(Y, weights=draw) - Y.mean()) > 3 * error  # what plain means would give


def test_sample_weights_are_resampled_with_the_rows():
    weights = np.arange(1.0, N + 1)
    group = endpoints(Ridge(), X, Y, 3, sample_weight=weights, random_state=0)
    np.testing.assert_array_equal(group[0].sample_weight, weights)
    rows = np.random.RandomState(0).choice(N, size=N)
    np.testing.assert_array_equal(group[1].sample_weight, weights[rows])


def test_new_data_sets_as_lists_and_from_a_function():
    sets = [data_set(seed) for seed in range(3)]
    given = endpoints(Ridge(3.0), *zip(*sets, strict=True), 3, bootstrap=False)
    for own, (inputs, outputs) in zip(given, sets, strict=True):
        np.testing.assert_array_equal(own.model.coef_, Ridge(3.0).fit(inputs, outputs).coef_)

    def draw(rng):
        inputs = rng.standard_normal((30, 2))
        return inputs, inputs @ [1.0, -1.0] + rng.standard_normal(30)

    one = endpoints(Ridge(3.0), draw, None, 4, bootstrap=False, random_state=0)
    two = endpoints(Ridge(3.0), draw, None, 4, bootstrap=False, random_state=0, n_jobs=2)
    for mine, theirs in zip(one, two, strict=True):
        np.testing.assert_array_equal(mine.model.coef_, theirs.model.coef_)
    assert estimator().fit(one).in_model_units()["alpha"] == pytest.approx(3.0, rel=1e-9)


class Fragile(RegressorMixin, BaseEstimator):
    """Least squares that refuses resamples without the first row."""

    def fit(self, X, y):
        if not (X == X_FIRST).all(axis=1).any():
            raise ArithmeticError("the first row is missing")
        inner = LinearRegression().fit(X, y)
        self.coef_, self.intercept_ = inner.coef_, inner.intercept_
        return self


X_FIRST = X[0]


def test_failed_resamples_are_named_and_left_out():
    with pytest.warns(FitFailedWarning, match="the first row is missing") as caught:
        group = endpoints(Fragile(), X, Y, 12, random_state=0)
    rng = np.random.RandomState(0)
    failed = [i for i in range(1, 12) if 0 not in rng.choice(N, size=N)]
    assert failed
    assert group.n_failed_ == len(failed)
    assert len(group) == 12 - len(failed)
    text = str(caught[0].message)
    assert text.startswith(f"{len(failed)} of 12 endpoints failed")
    assert f"endpoint {failed[0]}: ArithmeticError" in text
    assert caught[0].filename == __file__


class Diverging(Fragile):
    """Least squares that ends in NaN without the first row."""

    def fit(self, X, y):
        inner = LinearRegression().fit(X, y)
        self.coef_, self.intercept_ = inner.coef_, inner.intercept_
        if not (X == X_FIRST).all(axis=1).any():
            self.coef_ = self.coef_ * np.nan
        return self


@pytest.mark.parametrize("container", [lambda m: m, lambda m: make_pipeline(StandardScaler(), m)])
def test_a_rare_class_that_is_missing_is_a_failure(container):
    codes = np.zeros(N, dtype=int)
    codes[N // 2 :], codes[0] = 1, 2
    template = container(LogisticRegression(max_iter=1000))
    with pytest.warns(
        FitFailedWarning, match=r"classes_ are \[0, 1\], of the first .* \[0, 1, 2\]"
    ):
        group = endpoints(template, X, codes, 8, random_state=0)
    rng = np.random.RandomState(0)
    missing = sum(0 not in rng.choice(N, size=N) for _ in range(7))
    assert 0 < missing == group.n_failed_ == 8 - len(group)
    est = estimator().fit(group)
    note = f"{missing} further endpoints failed in training and are left out."
    assert note in " ".join(str(est.summary()).split())
    assert note in est.to_json()
    assert group[1:].n_failed_ == missing and isinstance(group[1:], list)
    assert isinstance(group[0], Endpoint)


def test_coefficients_that_are_not_finite_are_a_failure():
    with pytest.warns(FitFailedWarning, match="coef_ is not finite"):
        group = endpoints(Diverging(), X, Y, 12, random_state=0)
    assert group.n_failed_ == 12 - len(group) > 0
    assert np.isfinite([own.model.coef_ for own in group]).all()


def test_nets_that_diverge_are_a_failure():
    net = NeuralNetRegressor(
        nn.Linear,
        module__in_features=P,
        module__out_features=1,
        lr=1e30,
        max_epochs=3,
        train_split=None,
        verbose=0,
    )
    with pytest.raises(ValueError, match="2 of 2 endpoints failed .* weight is not finite"):
        endpoints(net, X.astype(np.float32), Y[:, None].astype(np.float32), 2, random_state=0)


def test_frames_sparse_rows_and_dicts_are_resampled():
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(P)])
    group = endpoints(Ridge(2.0), frame, pd.Series(Y), 3, random_state=0)
    assert list(group[1].X.columns) == list(frame.columns)
    est = estimator().fit(group)
    assert est.in_model_units()["alpha"] == pytest.approx(2.0, rel=1e-8)
    assert list(est.feature_names_in_) == list(frame.columns)
    tensors = Endpoint(None, {"x": torch.as_tensor(X)}, list(Y), rows=np.array([2, 2, 0]))
    np.testing.assert_array_equal(tensors.X["x"], X[[2, 2, 0]])
    assert tensors.y == [Y[2], Y[2], Y[0]]
    assert repr(tensors) == "Endpoint(NoneType, 3 rows)"


# Sharing


def test_an_endpoint_is_shared_by_clone_and_holds_no_copies():
    own = Endpoint(Ridge().fit(X, Y), X, Y)
    assert clone(own) is own
    assert own.X is X
    group = endpoints(Ridge(), X, Y, 50, random_state=0)
    assert len(pickle.dumps(group)) < 3 * X.nbytes + 50 * 8 * N + 50 * 2000


def test_progress_is_printed_on_request(capsys):
    group = endpoints(Ridge(), X, Y, 3, random_state=0)
    estimator().fit(group)
    assert capsys.readouterr().out == ""
    endpoints(Ridge(), X, Y, 3, random_state=0, verbose=1)
    estimator(verbose=1).fit(group)
    lines = capsys.readouterr().out.split("\r")
    assert lines[3].startswith(f"endpoints [{'#' * 30}] 3/3, ")
    assert lines[6].startswith(f"gradients [{'#' * 30}] 3/3, ")


# Wrong input

RIDGE = Ridge().fit(X, Y)
OWN = Endpoint(RIDGE, X, Y)
SMALL = Endpoint(Ridge().fit(X[:, :3], Y), X[:, :3], Y)


def framed(columns):
    frame = pd.DataFrame(X[:, :2], columns=list(columns))
    return Endpoint(Ridge().fit(frame, Y), frame, Y)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ([OWN, SMALL], ValueError, r"got {'coef': \(3,\)} in endpoint 1"),
        ([framed("ab"), framed("ba")], ValueError, r"got \['b', 'a'\] in endpoint 1"),
        ([OWN, X], TypeError, "a list of Endpoint alone, got ndarray among them"),
        (OWN, TypeError, r"pass \[endpoint\]"),
        ([], TypeError, "a list of at least one Endpoint as X where model is None, got list"),
        (X, TypeError, "a list of at least one Endpoint as X where model is None, got ndarray"),
        ([Endpoint(Ridge(), X, Y)], ValueError, "unfitted Ridge in endpoint 0"),
        ([Endpoint(3.0, X, Y)], TypeError, "got float"),
    ],
    ids=["shapes", "names", "mixed", "single", "empty", "rows", "unfitted", "no-model"],
)
def test_wrong_lists_are_refused(data, error, words):
    with pytest.raises(error, match=words):
        estimator().fit(data)


def test_what_belongs_to_the_endpoints_is_refused_beside_them():
    with pytest.raises(ValueError, match="Expected y=None and sample_weight=None"):
        estimator().fit([OWN], Y)
    with pytest.raises(ValueError, match="Expected y=None and sample_weight=None"):
        estimator().fit([OWN], sample_weight=np.ones(N))
    with pytest.raises(ValueError, match="got mode='trajectory'"):
        estimator(mode="trajectory").fit([OWN])
    with pytest.raises(ValueError, match="Expected a list of Endpoint to score"):
        estimator().fit([OWN, OWN]).score(X, Y)
    with pytest.raises(ValueError, match="Expected verbose of .* to be an integer >= 0"):
        estimator(verbose="much").fit([OWN])
    empty = endpoints(Ridge(), X, Y, 1)
    empty.clear()
    with pytest.raises(ValueError, match="Expected at least 1 endpoint, got 0"):
        estimator().fit(empty)


def test_different_classes_in_a_resample_are_told():
    codes = np.digitize(Y, [100, 200])
    some = codes < 2
    two = LogisticRegression(max_iter=500).fit(X[some], codes[some])
    three = Endpoint(LogisticRegression(max_iter=500).fit(X, codes), X, codes)
    with pytest.raises(ValueError, match=r"got .* in endpoint 1"):
        estimator().fit([three, Endpoint(two, X[some], codes[some])])
    with pytest.raises(ValueError, match="unseen labels") as caught:
        estimator().fit([three, Endpoint(two, X, codes)])
    assert caught.value.__notes__ == ["This is about endpoint 1 of the list."]


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"estimator": RIDGE.coef_}, TypeError, "can be cloned and trained"),
        ({"estimator": FrozenEstimator(RIDGE)}, TypeError, "can be cloned and trained"),
        (
            {"n_endpoints": 0},
            ValueError,
            "Expected n_endpoints of endpoints to be an integer >= 1, got 0",
        ),
        ({"weights": np.ones(3)}, ValueError, r"Expected weights of shape \(442,\)"),
        ({"weights": -np.ones(N)}, ValueError, "finite and above zero"),
        ({"weights": np.arange(N) > 0}, ValueError, "cannot be weighted back"),
        ({"X": X[:0]}, ValueError, "Expected at least 1 row to resample"),
        ({"y": Y[:5]}, ValueError, "Expected y to have one entry for each of the 442 rows of X"),
        ({"sample_weight": Y[:5]}, ValueError, "Expected sample_weight to have one entry"),
        (
            {"bootstrap": False, "X": [X] * 4, "y": [Y, Y, Y[:9], Y]},
            ValueError,
            "each of the 442 rows of X, got 9",
        ),
        ({"X": lambda rng: (X, Y)}, ValueError, "pass bootstrap=False"),
        ({"bootstrap": False}, ValueError, "Expected X to be a list of 4 data sets"),
        ({"bootstrap": False, "X": [X] * 3}, ValueError, "list of 4 data sets .* got 3"),
        ({"bootstrap": False, "weights": np.ones(N)}, ValueError, "Expected no weights"),
        ({"bootstrap": False, "X": lambda rng: (X, Y)}, ValueError, "Expected y=None"),
        ({"bootstrap": False, "X": lambda rng: X, "y": None}, TypeError, "return a tuple"),
        ({"estimator": Fragile(), "weights": np.ones(N)}, ValueError, "takes sample_weight"),
        ({"X": np.ones((N, 2)), "estimator": Fragile()}, ValueError, "4 of 4 endpoints failed"),
    ],
)
def test_wrong_settings_are_refused(params, error, words):
    given = {"estimator": Ridge(), "X": X, "y": Y, "n_endpoints": 4, "random_state": 0}
    with warnings.catch_warnings(), pytest.raises(error, match=words):
        warnings.simplefilter("error")
        endpoints(**(given | params))


# What the endpoints are of


def spread_of(est):
    return np.std(est.coef_path_, axis=0, ddof=1)


@pytest.mark.parametrize("family", ["l2", "l2+l1"])
def test_standard_errors_of_resamples_are_their_spread(family):
    group = endpoints(Lasso(0.5), X, Y, 40, random_state=0)
    est = estimator(family=family, confidence_level=0.9).fit(group)
    np.testing.assert_allclose(est.std_err_, spread_of(est), rtol=1e-10)
    half = student_t.ppf(0.95, 39) * est.std_err_
    np.testing.assert_allclose(est.conf_int_[:, 1] - est.coef_, half, rtol=1e-10)
    assert "standard deviation over 40 resamples" in " ".join(str(est.summary()).split())
    # It is about the rows: more resamples do not make it go to zero.
    more = estimator(family=family).fit(endpoints(Lasso(0.5), X, Y, 160, random_state=1))
    np.testing.assert_allclose(more.std_err_, est.std_err_, rtol=0.4)


def test_the_spread_of_resamples_is_that_of_new_data_sets():
    """Bootstrap theory: the standard error estimates the deviation over the population."""
    theta = np.array([3.0, -2.0, 1.0, 0.5])

    def draw(rng):
        inputs = rng.standard_normal((300, 4))
        return inputs, inputs @ theta + rng.standard_normal(300)

    def one(data):
        return estimator(family="l2").fit([Endpoint(Lasso(0.3).fit(*data), *data)]).coef_[0]

    deviation = np.std([one(draw(np.random.RandomState(seed))) for seed in range(200)])
    found = [
        estimator().fit(endpoints(Lasso(0.3), *sample, 60, random_state=0)).std_err_[0]
        for sample in (draw(np.random.RandomState(seed)) for seed in range(5))
    ]
    assert np.mean(found) == pytest.approx(deviation, rel=0.25)


def test_models_on_one_data_set_are_no_sample():
    group = [Endpoint(Lasso(a).fit(X, Y), X, Y) for a in (0.4, 0.5, 0.6, 0.7, 0.8)]
    est = estimator().fit(group)
    assert np.isnan(est.std_err_).all() and np.isnan(est.conf_int_).all()
    text = " ".join(str(est.summary()).split())
    assert "share their rows and are no resamples" in text
    with pytest.raises(ValueError, match="share their rows"):
        est.wald_test("l2 = 0")
    assert np.isfinite(estimator(covariance="cluster").fit(group).std_err_).all()


def test_independent_data_sets_are_told_apart():
    parts = np.array_split(np.arange(N), 5)
    inside = [Endpoint(Lasso(0.5).fit(X[r], Y[r]), X, Y, rows=r) for r in parts]
    copies = [Endpoint(own.model, own.X, own.y) for own in inside]
    new_targets = [Endpoint(Lasso(0.5).fit(X, Y + i), X, Y + i) for i in range(5)]
    for group in (inside, copies, new_targets):
        est = estimator().fit(group)
        assert "delete-one-cluster jackknife" in " ".join(str(est.summary()).split())
    np.testing.assert_allclose(
        estimator().fit(inside).std_err_, estimator().fit(copies).std_err_, rtol=1e-9
    )
    mixed = estimator().fit([*copies, Endpoint(Lasso(0.4).fit(*args(copies[0])), *args(copies[0]))])
    assert np.isnan(mixed.std_err_).all()


def args(own):
    return own.X, own.y


def test_the_advice_is_one_that_can_be_followed():
    est = estimator().fit(mixture())
    assert est.verdict_ == "not constant"
    words = "the coefficients change from one of the endpoints to another (coef_path_)"
    assert words in str(est._result.verdict)
    alone = ImplicitRegularizationEstimator(Lasso(0.5).fit(X, Y)).fit(X, Y)
    assert alone.verdict_ == "partial"
    text = str(alone._result.verdict)
    assert text.endswith("a missing term, or training that had not ended.")
    with pytest.raises(ValueError, match="no trajectory in common"):
        estimator(trajectory=GradientDescentProbe(0.1, 3)).fit(mixture())
    for mode in ("endpoint", "trajectory"):
        with pytest.raises(TypeError, match="Expected trajectory of .*a Trajectory.*got 'bogus'"):
            ImplicitRegularizationEstimator(RIDGE, trajectory="bogus", mode=mode).fit(X, Y)


def test_few_resamples_and_random_weights():
    few = estimator().fit(endpoints(Lasso(0.5), X, Y, 3, random_state=0))
    assert np.isnan(few.std_err_).all()
    assert "fewer than 4" in str(few.summary())
    rng = np.random.default_rng(0)
    weights = [rng.exponential(size=N) for _ in range(6)]  # the Bayesian bootstrap
    group = [Endpoint(Lasso(0.5).fit(X, Y, w), X, Y, w) for w in weights]
    est = estimator().fit(group)
    np.testing.assert_allclose(est.std_err_, spread_of(est), rtol=1e-10)
    best = ImplicitRegularizationCV(None, families=["l2", "l1"]).fit(group)
    np.testing.assert_allclose(best.std_err_, spread_of(best), rtol=1e-10)


@pytest.mark.parametrize("rows", [np.arange(N) < 50, list(range(50)), np.arange(50.0)])
def test_rows_are_numbers_or_a_mask(rows):
    own = Endpoint(Ridge(), X, Y, rows=rows)
    np.testing.assert_array_equal(own.X, X[:50])
    assert own.effective_sample_size == 50
    assert repr(own) == "Endpoint(Ridge, 50 rows)"


@pytest.mark.parametrize("rows", [np.ones(3, bool), [0.5], [-1], [N], ["a"], [[1]], []], ids=str)
def test_wrong_rows_are_refused(rows):
    with pytest.raises(ValueError, match="Expected rows to be numbers of rows from 0 to 441"):
        Endpoint(Ridge(), X, Y, rows=rows)
