"""What scikit-learn asks of an estimator, and what sharing a trained model must keep."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from torch import nn

from sklearn_implicitreg import (
    FrozenModel,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
)
from sklearn_implicitreg.penalties import SmoothL1

X, Y = load_diabetes(return_X_y=True)
WEIGHTS = np.random.default_rng(0).uniform(0.5, 2.0, len(Y))
N = len(Y)

CHECKED = [
    ImplicitRegularizationEstimator(Ridge()),
    ImplicitRegularizationEstimator(Ridge(), family="l2", positive=True, covariance="ols"),
    ImplicitRegularizationEstimator(Lasso(alpha=0.1), family="smooth_l1"),
    ImplicitRegularizationEstimator(ElasticNet(alpha=0.1), family="l2"),
    ImplicitRegularizationEstimator(LinearRegression()),
    ImplicitRegularizationEstimator(LogisticRegression()),
    ImplicitRegularizationCV(Ridge(), families=["l2", "smooth_l1"]),
]


@pytest.mark.filterwarnings("ignore::sklearn_implicitreg.exceptions.CollinearTermsWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(CHECKED)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore::sklearn_implicitreg.exceptions.CollinearTermsWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_at_least_45_checks_pass_and_none_fails():
    done = check_estimator(ImplicitRegularizationEstimator(Ridge()), on_fail=None)
    status = [check["status"] for check in done]
    assert status.count("passed") >= 45
    assert set(status) <= {"passed", "skipped"}
    skipped = {check["check_name"] for check in done if check["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}  # needs an environment variable of SciPy


class WithParams(nn.Module):
    """A module that looks like an estimator to clone."""

    def __init__(self, width=3):
        super().__init__()
        self.width = width
        self.linear = nn.Linear(10, width)

    def get_params(self, deep=True):
        return {"width": self.width}

    def forward(self, inputs):
        return self.linear(inputs)


def skorch_net(module, **params):
    from skorch import NeuralNetRegressor

    net = NeuralNetRegressor(module, max_epochs=2, train_split=None, verbose=0, **params)
    return net.fit(X.astype(np.float32), Y.astype(np.float32)[:, None] / 100)


TRAINED = {
    "scikit-learn": lambda: Ridge().fit(X, Y),
    "pipeline": lambda: make_pipeline(StandardScaler(), Ridge()).fit(X, Y),
    "skorch-class": lambda: skorch_net(nn.Linear, module__in_features=10, module__out_features=1),
    "skorch-instance": lambda: skorch_net(nn.Linear(10, 1)),
    "module": lambda: nn.Linear(10, 3),
    "module-with-get-params": WithParams,
    "frozen-estimator": lambda: FrozenEstimator(Ridge().fit(X, Y)),
    "frozen-module": lambda: FrozenEstimator(nn.Linear(10, 3)),
    "FrozenModel": lambda: FrozenModel(nn.Linear(10, 3)),
}


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("outer", ["estimator", "cv"])
def test_clone_shares_a_trained_model(kind, outer):
    model = TRAINED[kind]()
    if outer == "cv":
        estimator = ImplicitRegularizationCV(model, families=["l2"])
    else:
        estimator = ImplicitRegularizationEstimator(model, loss="mse", params="all")
    again = clone(clone(estimator))
    assert again is not estimator
    assert again.model is model
    assert estimator.model is model
    same = {key: value for key, value in again.get_params().items() if key != "model"}
    given = {key: value for key, value in estimator.get_params().items() if key != "model"}
    assert same == given


def test_clone_keeps_metadata_requests_and_clones_families():
    family = SmoothL1(delta=0.5)
    estimator = ImplicitRegularizationEstimator(Ridge().fit(X, Y), family=family)
    with config_context(enable_metadata_routing=True):
        estimator.set_score_request(sample_weight=True)
        again = clone(estimator)
        assert again.get_metadata_routing()._serialize() == (
            estimator.get_metadata_routing()._serialize()
        )
    assert again.family is not family
    assert again.family.delta == 0.5


def test_clone_of_a_template_is_unfitted():
    template = Ridge(alpha=7.0)
    estimator = ImplicitRegularizationEstimator(template).fit(X, Y)
    assert not hasattr(template, "coef_")
    again = clone(estimator)
    assert again.model is not template
    assert again.model.alpha == 7.0
    assert not hasattr(again, "model_")


@pytest.mark.parametrize("kind", TRAINED)
def test_parameters_of_a_trained_model_are_hidden_and_refused(kind):
    estimator = ImplicitRegularizationEstimator(TRAINED[kind]())
    assert not [key for key in estimator.get_params(deep=True) if key.startswith("model__")]
    with pytest.raises(
        ValueError,
        match=r"Expected a template to set \['model__alpha'\] on, got a trained model.*"
        "pass an unfitted estimator",
    ):
        estimator.set_params(model__alpha=3.0)


def test_parameters_of_a_template_are_searched():
    estimator = ImplicitRegularizationEstimator(Ridge())
    assert estimator.get_params()["model__alpha"] == 1.0
    search = GridSearchCV(estimator, {"model__alpha": [0.5, 4.0]}, cv=KFold(3, shuffle=True))
    search.fit(X, Y)
    alpha = search.best_params_["model__alpha"]
    assert search.best_estimator_.in_model_units()["alpha"] == pytest.approx(alpha, rel=1e-8)


def test_model_and_its_parameters_are_set_together():
    estimator = ImplicitRegularizationEstimator(Ridge().fit(X, Y))
    estimator.set_params(model=Ridge(), model__alpha=4.0)
    assert estimator.fit(X, Y).in_model_units()["alpha"] == pytest.approx(4.0, rel=1e-8)


def test_parameters_of_a_family_given_by_name_are_refused():
    estimator = ImplicitRegularizationEstimator(Ridge(), family="smooth_l1")
    with pytest.raises(
        ValueError, match=r"Expected a Penalty as family to set \['family__delta'\] on, got 'smooth"
    ):
        estimator.set_params(family__delta=0.1)
    estimator.set_params(family=SmoothL1(), family__delta=0.1)
    assert estimator.family.delta == 0.1


def test_nothing_is_done_in_init():
    parameters = {"model": object(), "family": object(), "covariance": object()}
    estimator = ImplicitRegularizationEstimator(**parameters)
    assert all(estimator.get_params(deep=False)[key] is v for key, v in parameters.items())


def test_estimator_has_no_type_and_the_outputs_of_its_model():
    estimator = ImplicitRegularizationEstimator(LogisticRegression())
    tags = get_tags(estimator)
    assert tags.estimator_type is None
    assert tags.target_tags.required
    assert tags.input_tags.sparse
    assert hasattr(estimator, "predict_proba")
    assert hasattr(estimator, "decision_function")
    assert not hasattr(ImplicitRegularizationEstimator(Ridge()), "predict_proba")
    assert not hasattr(ImplicitRegularizationEstimator(nn.Linear(2, 1)), "predict")
    with pytest.raises(NotFittedError):
        estimator.predict(X)


def test_outputs_are_those_of_the_model():
    y = Y > 150
    estimator = ImplicitRegularizationEstimator(LogisticRegression()).fit(X, y)
    model = LogisticRegression().fit(X, y)
    np.testing.assert_array_equal(estimator.predict(X), model.predict(X))
    np.testing.assert_array_equal(estimator.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(estimator.decision_function(X), model.decision_function(X))


TEMPLATES = {
    "plain": Ridge(alpha=2.0),
    "pipeline": make_pipeline(StandardScaler(with_std=False), Ridge(alpha=2.0)),
    "target": TransformedTargetRegressor(Ridge(alpha=2.0), transformer=StandardScaler()),
    "search": GridSearchCV(Ridge(), {"alpha": [2.0]}, cv=3),
    "pipeline-of-target": make_pipeline(
        StandardScaler(), TransformedTargetRegressor(Ridge(alpha=2.0), transformer=StandardScaler())
    ),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_are_trained_with_sample_weight(kind):
    estimator = ImplicitRegularizationEstimator(TEMPLATES[kind]).fit(X, Y, sample_weight=WEIGHTS)
    assert estimator.in_model_units() == pytest.approx({"alpha": 2.0}, rel=1e-8)
    assert estimator.coef_[0] == pytest.approx(2.0 / WEIGHTS.sum(), rel=1e-8)
    assert estimator.score(X, Y, sample_weight=WEIGHTS) == pytest.approx(1.0)


def test_template_without_sample_weight_is_refused():
    class Plain(BaseEstimator):
        def fit(self, X, y):
            raise AssertionError("must not be trained")

    with pytest.raises(
        ValueError, match="Expected a template whose fit takes sample_weight, got Plain; fit with"
    ):
        ImplicitRegularizationEstimator(Plain()).fit(X, Y, sample_weight=WEIGHTS)


def test_routing_reaches_the_template():
    with config_context(enable_metadata_routing=True):
        template = Ridge(alpha=2.0).set_fit_request(sample_weight=True)
        estimator = ImplicitRegularizationEstimator(template)
        estimator.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        fitted = clone(estimator).fit(X, Y, sample_weight=WEIGHTS)
        assert fitted.in_model_units() == pytest.approx({"alpha": 2.0}, rel=1e-8)
        search = GridSearchCV(estimator, {"family": ["l2"]}, cv=KFold(3, shuffle=True))
        search.fit(X, Y, sample_weight=WEIGHTS)
        best = search.best_estimator_
    assert best.in_model_units() == pytest.approx({"alpha": 2.0}, rel=1e-8)


def test_routing_without_a_request_is_refused():
    with config_context(enable_metadata_routing=True):
        estimator = ImplicitRegularizationEstimator(Ridge()).set_fit_request(sample_weight=True)
        with pytest.raises(UnsetMetadataPassedError):
            estimator.fit(X, Y, sample_weight=WEIGHTS)
        unweighted = Ridge().set_fit_request(sample_weight=False)
        estimator = ImplicitRegularizationEstimator(unweighted)
        with pytest.raises(ValueError, match="Expected a template whose fit takes sample_weight"):
            estimator.fit(X, Y, sample_weight=WEIGHTS)


def test_routing_with_a_trained_model_in_a_search():
    trained = Ridge(alpha=2.0).fit(X, Y, sample_weight=WEIGHTS)
    with config_context(enable_metadata_routing=True):
        estimator = ImplicitRegularizationEstimator(trained)
        estimator.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(estimator, {"family": ["l1", "l2"]}, cv=KFold(20, shuffle=True))
        search.fit(X, Y, sample_weight=WEIGHTS)
        by_criterion = ImplicitRegularizationCV(trained, families=["l1", "l2"], cv=3)
        by_criterion.fit(X, Y, sample_weight=WEIGHTS)
    assert search.best_params_ == {"family": "l2"}
    assert by_criterion.in_model_units() == pytest.approx({"alpha": 2.0}, rel=1e-8)


def test_names_of_features_are_kept_and_compared():
    frame = pd.DataFrame(X, columns=[f"column {i}" for i in range(10)])
    estimator = ImplicitRegularizationEstimator(Ridge().fit(frame, Y)).fit(frame, Y)
    assert list(estimator.feature_names_in_) == list(frame.columns)
    assert estimator.n_features_in_ == 10
    assert estimator.score(frame, Y) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.score(frame.rename(columns=str.upper), Y)
    estimator = ImplicitRegularizationEstimator(Ridge().fit(X, Y)).fit(X, Y)
    assert not hasattr(estimator, "feature_names_in_")
    with pytest.raises(ValueError, match="X has 9 features, but .* is expecting 10 features"):
        estimator.score(X[:, :9], Y)


def test_nested_lists_are_data():
    estimator = ImplicitRegularizationEstimator(Ridge()).fit(X.tolist(), Y.tolist())
    assert estimator.n_features_in_ == 10
    assert estimator.in_model_units()["alpha"] == pytest.approx(1.0, rel=1e-8)


def test_last_in_a_pipeline_around_a_template():
    pipeline = make_pipeline(StandardScaler(), ImplicitRegularizationEstimator(Ridge(alpha=5.0)))
    pipeline.fit(X, Y)
    assert pipeline[-1].in_model_units()["alpha"] == pytest.approx(5.0, rel=1e-8)
    np.testing.assert_allclose(
        pipeline.predict(X), make_pipeline(StandardScaler(), Ridge(alpha=5.0)).fit(X, Y).predict(X)
    )
    assert pipeline.score(X, Y) == pytest.approx(1.0)


def test_repr_of_a_module_is_short():
    deep = nn.Sequential(*(nn.Linear(10, 10) for _ in range(60)))
    estimator = ImplicitRegularizationEstimator(deep, loss="mse")
    assert len(repr(deep)) > 3000
    assert " ".join(repr(estimator).split()) == (
        "ImplicitRegularizationEstimator(loss='mse', "
        "model=FrozenModel(Sequential, 6,600 parameters))"
    )


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(*(nn.Linear(10, 10) for _ in range(60)), nn.Linear(10, 1)),
        FrozenModel(nn.Linear(10, 1)),
        Ridge().fit(X, Y),
    ],
    ids=["module", "FrozenModel", "Ridge"],
)
def test_html_is_small(model):
    inputs, target = X.astype(np.float32), Y.astype(np.float32) / 100
    loss = "auto" if isinstance(model, Ridge) else "mse"
    estimator = ImplicitRegularizationEstimator(model, loss=loss)
    empty = len(ImplicitRegularizationEstimator(Ridge())._repr_html_())
    assert len(estimator._repr_html_()) < empty + 2000
    estimator.fit(inputs, target)
    assert len(estimator._repr_html_()) < empty + 20_000


class OtherLibrary(RegressorMixin, BaseEstimator):
    """A linear model that no adapter knows by name."""

    def __init__(self, alpha=1.0):
        self.alpha = alpha

    def fit(self, X, y, sample_weight=None):
        ridge = Ridge(self.alpha).fit(X, y, sample_weight)
        self.coef_, self.intercept_ = ridge.coef_, ridge.intercept_
        return self


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "template"])
def test_models_of_other_libraries(trained):
    model = OtherLibrary(alpha=3.0)
    model = model.fit(X, Y) if trained else model
    estimator = ImplicitRegularizationEstimator(model, loss="mse").fit(X, Y)
    assert (estimator.model_ is model) == trained
    assert estimator.coef_[0] == pytest.approx(3.0 / N, rel=1e-8)


def test_pickled_results_stay():
    estimator = ImplicitRegularizationEstimator(Ridge(alpha=3.0).fit(X, Y)).fit(X, Y)
    for again in (pickle.loads(pickle.dumps(estimator)), copy.deepcopy(estimator)):
        np.testing.assert_array_equal(again.coef_, estimator.coef_)
        assert str(again.summary()) == str(estimator.summary())
        assert again.to_json() == estimator.to_json()
        assert again.in_model_units() == estimator.in_model_units()
        with pytest.raises(
            ValueError, match="score needs the gradient of the fitted rows, which is not pickled; "
        ):
            again.score(X, Y)
        assert again.fit(X, Y).score(X, Y) == pytest.approx(1.0)


def test_pickle_is_small():
    module = nn.Linear(10, 1)
    many = np.random.default_rng(0).normal(size=(5000, 10)).astype(np.float32)
    estimator = ImplicitRegularizationEstimator(module, loss="mse").fit(many, many[:, 0])
    assert len(pickle.dumps(estimator)) < 20_000


def test_template_that_learns_no_weights_is_refused():
    with pytest.raises(TypeError, match="got KNeighborsRegressor. Give a bare nn.Module with"):
        ImplicitRegularizationEstimator(KNeighborsRegressor()).fit(X, Y)


def test_fit_twice_is_the_same():
    module = nn.Linear(10, 1).double()
    estimator = ImplicitRegularizationEstimator(module, loss="mse")
    first = estimator.fit(X, Y).coef_.copy()
    weights = module.weight.detach().clone()
    np.testing.assert_array_equal(estimator.fit(X, Y).coef_, first)
    assert torch.equal(module.weight, weights)
