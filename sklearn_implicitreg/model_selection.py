"""Choosing a family of penalties, and the regression as a table for other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.base import AboutModel
from sklearn_implicitreg.endpoints.endpoint import holds_endpoints
from sklearn_implicitreg.endpoints.templates import routing_enabled
from sklearn_implicitreg.estimator import ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import penalty_with_terms
from sklearn_implicitreg.problem.parameters import (
    NOTHING,
    Allowed,
    checked,
    having,
    instance,
    integer,
)
from sklearn_implicitreg.results.attributes import FittedResult
from sklearn_implicitreg.results.criterion import compared

__all__ = ["ImplicitRegularizationCV", "equations", "simplest_within_one_se"]


class ImplicitRegularizationCV(FittedResult, AboutModel):
    """The family of penalties that a trained model shows, among several.

    Families are compared, from one pass over the data, by ``R2 - (1/99) tr(P S) / (n |g|^2)``: P
    projects on the family's columns, S is the covariance of the row gradients. It is the mean of
    :meth:`ImplicitRegularizationEstimator.score` with one row in a hundred left out.

    Parameters
    ----------
    model : nn.Module, skorch net or scikit-learn estimator
        As for :class:`ImplicitRegularizationEstimator`.
    families : list or dict
        Values of ``family``; a dict names them. Structured ones need folds of endpoints (``cv``).
    cv : cross-validation splitter, int or None, default=None
        None: the criterion above. Else the completed score on these (shuffled) folds.
    estimator_params : dict or None, default=None
        Further parameters of the estimator, such as ``{"loss": "mse", "params": "all"}``.

    Attributes
    ----------
    best_family_, best_name_, best_index_ : object, str, int
        The winning entry of ``families``, its name and its place.
    best_score_, best_estimator_ : float, ImplicitRegularizationEstimator
        Its criterion, or its mean score over folds; fitted with it.
    cv_results_ : dict of str to list or ndarray
        ``name``, ``params``, ``param_family``, ``mean_test_score`` (the criterion), its rank,
        ``r2`` and ``n_terms``; with ``cv`` ``name`` and those of ``GridSearchCV``.
    coef_, term_names_, std_err_, conf_int_, pvalues_, r2_, cosine_, condition_number_, vif_, \
            n_equations_, verdict_, penalty_
        As in :class:`ImplicitRegularizationEstimator`, for the best family.
    model_ : object
        The trained model that was analyzed.
    n_features_in_, feature_names_in_ : int, ndarray of shape (`n_features_in_`,)
        Number of features of two-dimensional X, and their names where X has them.

    See Also
    --------
    ImplicitRegularizationEstimator : One family.
    simplest_within_one_se : For searches over nested families.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Lasso
    >>> from sklearn_implicitreg import ImplicitRegularizationCV
    >>> X, y = load_diabetes(return_X_y=True)
    >>> lasso = Lasso(alpha=0.1).fit(X, y)
    >>> search = ImplicitRegularizationCV(lasso, families=["l2", "l1", "l2+l1"])
    >>> search.fit(X, y).best_family_
    'l1'
    """

    _allowed: ClassVar = {
        "families": Allowed(
            lambda given: isinstance(given, Mapping | list | tuple) and len(given) > 0,
            ("a list or dict of at least one family",),
        ),
        "cv": NOTHING
        | integer(2)
        | having("a splitter", "split")
        | having("an iterable of splits", "__iter__"),
        "estimator_params": NOTHING | instance("a dict", Mapping),
    }

    def __init__(
        self,
        model: Any,
        *,
        families: Sequence[Any] | Mapping[str, Any],
        cv: Any = None,
        estimator_params: Mapping[str, Any] | None = None,
    ):
        self.model = model
        self.families = families
        self.cv = cv
        self.estimator_params = estimator_params

    def fit(self, X: Any = None, y: Any = None, sample_weight: Any = None) -> Any:
        """Compare the families, and fit the best one.

        Parameters
        ----------
        X, y, sample_weight
            As for :class:`ImplicitRegularizationEstimator`; indexable with ``cv``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If there is no family, or as the estimator raises.
        """
        self.check_parameters()
        X, y = self._rows(X, y)
        named = self._named_families()
        estimator = self._estimator()
        compare = self._compare if self.cv is None else self._search
        compare(estimator, named, X, y, sample_weight)
        self.best_name_ = list(named)[self.best_index_]
        self.best_family_ = named[self.best_name_]
        self.model_ = self.best_estimator_.model_
        self._check_features(X[0].X if holds_endpoints(X) else X, reset=True)
        self._publish(self.best_estimator_._result, self.best_estimator_._description)
        return self

    def score(self, X: Any = None, y: Any = None, sample_weight: Any = None) -> float:
        """Completed R2 of the best family; see :meth:`ImplicitRegularizationEstimator.score`.

        Parameters
        ----------
        X, y, sample_weight
            As in ``fit``.

        Returns
        -------
        r2 : float
        """
        check_is_fitted(self, "best_estimator_")
        return float(self.best_estimator_.score(X, y, sample_weight))

    def _estimator(self) -> ImplicitRegularizationEstimator:
        params = dict(self.estimator_params or {})
        known = set(ImplicitRegularizationEstimator(None).get_params()) - {"model", "family"}
        if not set(params) <= known:
            raise ValueError(
                f"Expected estimator_params among {sorted(known)}, got "
                f"{sorted(set(params) - known)}; the model and the families are given as such."
            )
        if isinstance(self.model, str):
            raise ValueError(
                f"Expected a model, got {self.model!r}: families are functions of its weights. "
                "Choose columns of given equations by any search of scikit-learn."
            )
        estimator = ImplicitRegularizationEstimator(self.model, **params)
        estimator.check_parameters()
        return estimator

    def _named_families(self) -> dict[str, Any]:
        if isinstance(self.families, Mapping):
            return dict(self.families)
        names = [f if isinstance(f, str) else repr(f) for f in self.families]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"Expected families of different names, got {twice} twice; name them by a dict."
            )
        return dict(zip(names, self.families, strict=True))

    def _compare(
        self, estimator: ImplicitRegularizationEstimator, named: dict[str, Any], *rows: Any
    ) -> None:
        targets = estimator._targets(*rows)
        families = list(named.values())
        penalties = [
            estimator._penalty(targets.problem, penalty_with_terms(family)) for family in families
        ]
        candidates = compared(targets, penalties, estimator.positive)
        scores = np.array([candidate.score for candidate in candidates])
        self.best_index_ = int(np.argmax(scores))
        self.best_score_ = float(scores[self.best_index_])
        self.cv_results_ = {
            "name": list(named),
            "params": [{"family": family} for family in families],
            "param_family": families,
            "mean_test_score": scores,
            "rank_test_score": np.array([1 + int((scores > s).sum()) for s in scores]),
            "r2": np.array([candidate.r2 for candidate in candidates]),
            "n_terms": np.array([candidate.n_terms for candidate in candidates]),
        }
        best = estimator.set_params(family=families[self.best_index_])
        self.best_estimator_ = best._fit_on(candidates[self.best_index_].equations)

    def _search(
        self, estimator: ImplicitRegularizationEstimator, named: dict[str, Any], *rows: Any
    ) -> None:
        X, y, sample_weight = rows
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        if weights and routing_enabled():
            estimator.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(
            estimator, {"family": list(named.values())}, cv=self.cv, error_score="raise"
        ).fit(X, y, **weights)
        self.cv_results_ = search.cv_results_ | {"name": list(named)}
        self.best_index_ = int(search.best_index_)
        self.best_score_ = float(search.best_score_)
        self.best_estimator_ = search.best_estimator_


@checked(cv_results=instance("the cv_results_ of a search", Mapping))
def simplest_within_one_se(cv_results: Mapping[str, Any]) -> int:
    """Index of the family with the fewest coefficients within one standard error of the best.

    Pass it as ``GridSearchCV(..., refit=simplest_within_one_se)`` where families are nested.

    Parameters
    ----------
    cv_results : dict
        ``cv_results_`` of a search over ``family``.

    Returns
    -------
    index : int
        The best-scoring one among the simplest.

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
    mean = np.asarray(cv_results["mean_test_score"], dtype=float)
    std = np.asarray(cv_results["std_test_score"], dtype=float)
    n_splits = sum(key.startswith("split") and key.endswith("_test_score") for key in cv_results)
    best = int(np.nanargmax(mean))
    within = mean >= mean[best] - std[best] / np.sqrt(max(1, n_splits))
    sizes = np.array([_n_terms(_family_in(params)) for params in cv_results["params"]])
    smallest = within & (sizes == sizes[within].min())
    return int(np.nanargmax(np.where(smallest, mean, -np.inf)))


def _family_in(params: Mapping[str, Any]) -> Any:
    """Value of ``family`` in a candidate, also of a step in a pipeline."""
    found = [value for key, value in params.items() if key.split("__")[-1] == "family"]
    if len(found) != 1:
        raise ValueError(
            f"Expected a search over one parameter 'family', got candidates of {list(params)}; "
            "use this rule where families are compared."
        )
    return found[0]


def _n_terms(family: Any) -> int:
    values = penalty_with_terms(family).terms({"layer.weight": torch.ones(2, 2)}, None)
    return sum(value.numel() for value in values.values())


def equations(
    model: Any,
    X: Any = None,
    y: Any = None,
    families: Any = None,
    sample_weight: Any = None,
    **params: Any,
) -> Bunch:
    """The regression of a family as tables, one row per equation.

    For tools such as ``statsmodels.OLS(target, data)``, or ``GroupKFold`` over tensors.

    Parameters
    ----------
    model : trained model or fitted ImplicitRegularizationEstimator
        With a fitted estimator (or ``ImplicitRegularizationCV``) its parameters are used.
    X, y
        The rows that the model was trained on; or a list of :class:`Endpoint` as X. None for
        results of statsmodels, which hold their rows.
    families : family or list of families, default=None
        Joined to one design; by default the estimator's own, or "l2".
    sample_weight : array-like of shape (n,), default=None
        The weights that the model was trained with.
    **params
        Further parameters of :class:`ImplicitRegularizationEstimator`, such as ``loss``.

    Returns
    -------
    regression : Bunch
        ``data``, DataFrame of shape (m, k), the gradients of the terms; ``target`` and ``groups``,
        Series, minus the gradient of the loss and the tensor, endpoint or window.

    Raises
    ------
    ValueError
        As the estimator raises; for penalties that need instruments.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg import equations
    >>> X, y = load_diabetes(return_X_y=True)
    >>> regression = equations(Ridge(alpha=3.0).fit(X, y), X, y, "l2")
    >>> float(round((regression.target / regression.data["l2"] * len(X)).mean(), 6))
    3.0
    """
    if isinstance(model, ImplicitRegularizationCV):
        check_is_fitted(model, "best_estimator_")
        model = model.best_estimator_
    if isinstance(model, ImplicitRegularizationEstimator):
        estimator = clone(model).set_params(**params)
        estimator.model = getattr(model, "model_", model.model)
    else:
        estimator = ImplicitRegularizationEstimator(model)
        estimator.set_params(**params)
    if isinstance(estimator.model, str):
        raise ValueError(
            f"Expected a model, got {estimator.model!r}: its equations are the X and y given."
        )
    estimator.check_parameters()
    targets = estimator._targets(*estimator._rows(X, y), sample_weight)
    family = estimator.family if families is None else families
    penalty = estimator._penalty(targets.problem, penalty_with_terms(family))
    data, target, groups = targets.equations(penalty).frame()
    return Bunch(data=data, target=target, groups=groups)
