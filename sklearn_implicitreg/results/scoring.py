"""Scores and rules for the searches of scikit-learn over families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sklearn_implicitreg.exceptions import ParameterError
from sklearn_implicitreg.penalties import penalty_with_terms
from sklearn_implicitreg.problem.parameters import checked, having, instance, shown
from sklearn_implicitreg.results.attributes import FittedResult
from sklearn_implicitreg.results.criterion import smallest_within


@checked(estimator=having("a fitted ImplicitRegularizationEstimator", "score"))
def family_score(
    estimator: Any, X: Any, y: Any = None, sample_weight: Any = None
) -> dict[str, float]:
    """Score of a fitted estimator, and the number of its coefficients, for a search.

    ``GridSearchCV(est, {"family": [...]}, scoring=family_score, refit=simplest_within_one_se)``
    takes the smallest family within one standard error, counted at the model at hand.

    Parameters
    ----------
    estimator : ImplicitRegularizationEstimator
        Fitted, or a fitted pipeline that ends in one.
    X, y, sample_weight
        As for ``estimator.score``.

    Returns
    -------
    scores : dict
        ``score`` and ``n_terms``: the search has ``mean_test_score`` and ``mean_test_n_terms``.

    Raises
    ------
    ValueError
        If it is no estimator of this package, or as its ``score`` raises.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
    >>> X, y = load_diabetes(return_X_y=True)
    >>> est = ImplicitRegularizationEstimator(Ridge().fit(X, y))
    >>> family_score(est.fit(X, y), X, y)["n_terms"]
    1
    >>> search = GridSearchCV(est, {"family": ["l2+l1", "l2"]}, scoring=family_score,
    ...                       refit=simplest_within_one_se)
    >>> search.fit(X, y).best_params_
    {'family': 'l2'}
    """
    weights = {} if sample_weight is None else {"sample_weight": sample_weight}
    own = estimator
    while hasattr(own, "steps"):
        own = own.steps[-1][1]
    if not isinstance(own, FittedResult):
        raise ParameterError(
            f"Expected estimator of family_score to be a fitted ImplicitRegularizationEstimator, "
            f"got {shown(estimator)}; other estimators have no family."
        )
    score = float(estimator.score(X, y, **weights))
    return {"score": score, "n_terms": own.n_terms_}


@checked(cv_results=instance("the cv_results_ of a search", Mapping))
def simplest_within_one_se(cv_results: Mapping[str, Any]) -> int:
    """Index of the family with the fewest coefficients within one standard error of the best.

    Pass the function as
    ``GridSearchCV(..., scoring=family_score, refit=simplest_within_one_se)``: :func:`family_score`
    counts the coefficients at the model. Without it they are counted by the family alone, and one
    with a coefficient per group (``per``) counts as more than any sum of families.

    Parameters
    ----------
    cv_results : dict
        ``cv_results_`` of a search over ``family``.

    Returns
    -------
    index : int
        The best-scoring one among the simplest.

    Raises
    ------
    ValueError
        If the search is not over one parameter ``family``, or has no ``mean_test_score``.

    References
    ----------
    Breiman, Friedman, Olshen, Stone (1984), Classification and Regression Trees, section 3.4.3.

    Examples
    --------
    >>> simplest_within_one_se({
    ...     "params": [{"family": "l2+l1"}, {"family": "l2"}],
    ...     "mean_test_score": [0.91, 0.90], "std_test_score": [0.1, 0.1],
    ...     "split0_test_score": [0.9, 0.8], "split1_test_score": [0.92, 1.0]})
    1
    """
    if "mean_test_score" not in cv_results:
        raise ValueError(
            f"Expected the results of a search with one score, or with scoring=family_score, got "
            f"{sorted(key for key in cv_results if key.startswith('mean_'))}."
        )
    sizes = cv_results.get("mean_test_n_terms")
    if sizes is None:
        families = [_family_in(params) for params in cv_results["params"]]
        sizes = [penalty_with_terms(family).count_terms() for family in families]
    scores = np.asarray(cv_results["mean_test_score"], dtype=float)
    spread = float(np.asarray(cv_results["std_test_score"], dtype=float)[np.nanargmax(scores)])
    n_splits = sum(key.startswith("split") and key.endswith("_test_score") for key in cv_results)
    margin = spread / max(1, n_splits) ** 0.5
    return smallest_within(scores, np.full(len(scores), margin), np.asarray(sizes))


def _family_in(params: Mapping[str, Any]) -> Any:
    """Value of ``family`` in a candidate, also of a step in a pipeline."""
    found = [value for key, value in params.items() if key.split("__")[-1] == "family"]
    if len(found) != 1:
        raise ValueError(
            f"Expected a search over one parameter 'family', got candidates of {list(params)}; "
            "use this rule where families are compared."
        )
    return found[0]
