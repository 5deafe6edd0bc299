"""Families against each other."""

from __future__ import annotations

import numpy as np
import pytest
from displays import RIDGE, X, Y
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, KFold, RandomizedSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.inspection import FamilyComparisonDisplay
from sklearn_implicitreg.penalties import SmoothL1

FOLDS = KFold(5, shuffle=True, random_state=0)


def compared():
    return ImplicitRegularizationCV(RIDGE, families=["l1", "l2", "power"]).fit(X, Y)


def searched(family=("l1", "l2"), **params):
    estimator = ImplicitRegularizationEstimator(RIDGE)
    return GridSearchCV(estimator, {"family": list(family)}, cv=FOLDS, **params).fit(X, Y)


def rows(display):
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    return labels, [text.get_text() for text in display.texts_]


def test_numbers_are_those_of_the_search():
    search = compared()
    display = FamilyComparisonDisplay.from_estimator(search)
    order = np.argsort(-search.cv_results_["mean_test_score"])
    labels, texts = rows(display)
    assert labels == [search.cv_results_["name"][i] for i in order]
    scores = search.cv_results_["mean_test_score"][order]
    np.testing.assert_array_equal(display.scores_.lines[0].get_xdata(), scores)
    np.testing.assert_array_equal(display.r2_.get_offsets()[:, 0], search.cv_results_["r2"][order])
    assert texts[0] == f"{scores[0]:.4f}  {search.verdict_}"


def test_errors_and_verdicts_of_the_search_are_shown():
    search = compared()
    search.cv_results_["se_difference"] = np.array([0.02, np.nan, 0.01])
    search.cv_results_["verdict"] = ["partial", "supported", "out of family"]
    display = FamilyComparisonDisplay.from_estimator(search)
    _, texts = rows(display)
    by_name = dict(zip(search.cv_results_["name"], search.cv_results_["verdict"], strict=True))
    for label, text in zip(*rows(display), strict=True):
        assert text.endswith(by_name[label])
    (bars,) = display.scores_.lines[2]
    lengths = [np.ptp(segment[:, 0]) for segment in bars.get_segments() if len(segment)]
    assert sorted(lengths)[-1] == pytest.approx(0.04)
    assert "difference to the best" in display.ax_.get_legend().get_texts()[-1].get_text()


def test_folds_have_standard_errors():
    search = searched(["l1", SmoothL1(delta=0.01)])
    display = FamilyComparisonDisplay.from_estimator(search)
    expected = search.cv_results_["std_test_score"] / np.sqrt(5)
    np.testing.assert_allclose(display.errors, expected)
    assert display.score_name == "mean score of 5 folds"
    assert display.r2 is None
    assert display.r2_ is None
    assert set(rows(display)[0]) == {"l1", "SmoothL1(delta=0.01)"}


@pytest.mark.parametrize("refit", ["first", True])
def test_searches_of_scikit_learn(refit):
    """Several scores, a random search, a pipeline, no refit: what they share is cv_results_."""
    if refit == "first":
        scoring = {"first": lambda e, X, y: e.score(X, y), "second": lambda e, X, y: 0.0}
        search = searched(scoring=scoring, refit="first")
        expected = search.cv_results_["mean_test_first"]
    else:
        pipeline = make_pipeline(FunctionTransformer(), ImplicitRegularizationEstimator(RIDGE))
        draws = {"implicitregularizationestimator__family": ["l1", "l2"]}
        search = RandomizedSearchCV(pipeline, draws, n_iter=2, cv=FOLDS, random_state=0).fit(X, Y)
        expected = search.cv_results_["mean_test_score"]
    display = FamilyComparisonDisplay.from_estimator(search)
    np.testing.assert_array_equal(display.scores, expected)
    assert sorted(display.names) == ["l1", "l2"]
    assert display.verdicts[search.best_index_] is not None


def test_a_search_at_the_end_of_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), ImplicitRegularizationCV(RIDGE, families=["l2"]))
    display = FamilyComparisonDisplay.from_estimator(FrozenEstimator(pipeline.fit(X, Y)))
    assert display.names == ["l2"]


def test_without_a_refit_no_verdict_is_known():
    display = FamilyComparisonDisplay.from_estimator(searched(refit=False))
    assert display.verdicts == [None, None]


def test_several_parameters_are_named():
    grid = {"family": [SmoothL1()], "family__delta": [0.1, 0.01]}
    estimator = ImplicitRegularizationEstimator(RIDGE)
    search = GridSearchCV(estimator, grid, cv=FOLDS, refit=False).fit(X, Y)
    assert all("delta=0.1" in n or "delta=0.01" in n for n in _names(search))


def _names(search):
    return FamilyComparisonDisplay.from_estimator(search).names


def test_failed_and_far_scores():
    display = FamilyComparisonDisplay(names=["a", "b", "c"], scores=[np.nan, 0.5, -30.0]).plot()
    labels, texts = rows(display)
    assert labels == ["b", "c", "a"]
    assert texts == ["0.5000", "-30.0000", "failed"]
    assert display.ax_.get_xlim()[0] > -1.2


def test_two_scores_without_a_choice():
    scoring = {"first": lambda e, X, y: 1.0, "second": lambda e, X, y: 0.0}
    search = searched(scoring=scoring, refit=False)
    with pytest.raises(ValueError, match="Expected a search with one score or refit= among"):
        FamilyComparisonDisplay.from_estimator(search)
