"""Choosing a family of penalties, and the regression as a table for other tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from sklearn_implicitreg.adapters import Data, adapt
from sklearn_implicitreg.assembly import Equations
from sklearn_implicitreg.estimator import ImplicitRegularizationEstimator, penalty_of
from sklearn_implicitreg.penalties import as_penalty
from sklearn_implicitreg.penalties.columns import Columns
from sklearn_implicitreg.problem import BlockGradient, LossGradient, Problem
from sklearn_implicitreg.sharing import AboutModel
from sklearn_implicitreg.solve import decompose, solve
from sklearn_implicitreg.system import Array

__all__ = ["ImplicitRegularizationCV", "equations", "simplest_within_one_se"]

_BLOCKS = 20  # of rows: the covariance of the row gradients is read off their spread
_ODDS = 1 / 99  # one row in a hundred left out


class ImplicitRegularizationCV(AboutModel):
    """The family of penalties that a trained model speaks for, among several.

    One pass over the data gives the gradient of the loss and its spread over blocks of rows;
    each family then costs a small regression. Families are compared by
    ``R2 - (1/99) tr(P S) / (n |g|^2)``: P projects on the family's columns, S is the covariance
    of the row gradients. That is what the completed score of
    :meth:`ImplicitRegularizationEstimator.score` is on average when one row in a hundred is
    left out, so larger families do not win by fitting noise.

    Parameters
    ----------
    model : nn.Module, skorch net or scikit-learn estimator
        As for :class:`ImplicitRegularizationEstimator`.
    families : list or dict
        What ``family`` can be; a dict gives names to the candidates.
    cv : cross-validation splitter, int or None, default=None
        None: the criterion above. Else the completed score on these folds, by ``GridSearchCV``;
        folds should be shuffled.
    estimator_params : dict or None, default=None
        Further parameters of the estimator, such as ``{"loss": "mse", "params": "all"}``.

    Attributes
    ----------
    best_family_ : object
        The winning entry of ``families``.
    best_name_ : str
        Its name.
    best_estimator_ : ImplicitRegularizationEstimator
        Fitted with it; ``coef_``, ``summary()`` and the like are taken from it.
    cv_results_ : dict of str to list or ndarray
        ``name``, ``param_family``, ``mean_test_score`` (the criterion), ``rank_test_score``,
        ``r2`` and ``n_terms`` of every family, as ``DataFrame`` takes it; with ``cv`` those of
        ``GridSearchCV``.
    model_ : object
        The trained model that was analyzed.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Lasso
    >>> from sklearn_implicitreg import ImplicitRegularizationCV
    >>> X, y = load_diabetes(return_X_y=True)
    >>> search = ImplicitRegularizationCV(Lasso(alpha=0.1).fit(X, y), families=["l2", "l1", "l2+l1"])
    >>> search.fit(X, y).best_family_
    'l1'
    """

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

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Compare the families, and fit the best one.

        Parameters
        ----------
        X, y, sample_weight
            As for :class:`ImplicitRegularizationEstimator`; with ``cv`` X and y must be
            indexable.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If there is no family, or as the estimator raises.
        """
        named = self._named_families()
        estimator = ImplicitRegularizationEstimator(self.model, **(self.estimator_params or {}))
        if self.cv is not None:
            self._search(estimator, named, X, y, sample_weight)
        else:
            self._compare(estimator, named, X, y, sample_weight)
        self.model_ = self.best_estimator_.model_
        return self

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
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

    def __getattr__(self, name: str) -> Any:
        """Results of the best estimator: ``coef_``, ``summary()``, ``in_model_units()``, ..."""
        best = vars(self).get("best_estimator_")
        if best is None or name.startswith("__"):
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}"
                + ("" if best is not None else "; it may appear after fit")
            )
        return getattr(best, name)

    def _named_families(self) -> dict[str, Any]:
        if isinstance(self.families, str) or not len(self.families):
            raise ValueError(
                f"Expected a list or dict of at least one family, got {self.families!r}."
            )
        if isinstance(self.families, Mapping):
            return dict(self.families)
        return {
            family if isinstance(family, str) else repr(family): family
            for family in self.families
        }

    def _compare(
        self,
        estimator: ImplicitRegularizationEstimator,
        named: dict[str, Any],
        X: Any,
        y: Any,
        sample_weight: Any,
    ) -> None:
        """All families from one pass over the rows."""
        estimator._check_parameters()
        model = estimator._train(X, y, sample_weight)
        problem = adapt(model, Data(X, y, sample_weight), estimator._options())
        spreads = [
            _Spread(Columns(_penalty(estimator, family, problem), problem), problem)
            for family in named.values()
        ]
        gradient = LossGradient.from_blocks(_seen(problem.blocks(_BLOCKS), spreads))
        rows = [
            _criterion(Equations(problem, spread.columns, gradient), spread, estimator.positive)
            for spread in spreads
        ]
        scores = np.array([row["mean_test_score"] for row in rows])
        best = int(np.argmax(scores))
        self.cv_results_ = {
            "name": list(named),
            "param_family": list(named.values()),
            "mean_test_score": scores,
            "rank_test_score": np.array([1 + int((scores > s).sum()) for s in scores]),
            "r2": np.array([row["r2"] for row in rows]),
            "n_terms": np.array([row["n_terms"] for row in rows]),
        }
        self.best_name_ = list(named)[best]
        self.best_family_ = named[self.best_name_]
        self.best_estimator_ = clone(estimator).set_params(family=self.best_family_)
        self.best_estimator_.model_ = model
        self.best_estimator_._check_features(X, y, reset=True)
        self.best_estimator_._fit_equations(Equations(problem, spreads[best].columns, gradient))

    def _search(
        self,
        estimator: ImplicitRegularizationEstimator,
        named: dict[str, Any],
        X: Any,
        y: Any,
        sample_weight: Any,
    ) -> None:
        """Completed scores over folds."""
        search = GridSearchCV(estimator, {"family": list(named.values())}, cv=self.cv)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        search.fit(X, y, **weights)
        self.cv_results_ = search.cv_results_ | {"name": list(named)}
        self.best_name_ = list(named)[search.best_index_]
        self.best_family_ = named[self.best_name_]
        self.best_estimator_ = search.best_estimator_


@dataclass
class _Spread:
    """Columns of a family, and their products with the gradient of every block of rows."""

    columns: Columns
    problem: Problem
    weights: list[float] = field(default_factory=list)
    products: list[Array] = field(default_factory=list)

    def see(self, block: BlockGradient) -> None:
        """Remember the k numbers of a block."""
        total = torch.zeros(len(self.columns.term_names), dtype=torch.float64)
        for name, sums in block.sums.items():
            kept = self.columns.smooth(name)
            free = self.problem.free.get(name)
            if free is not None:
                kept = kept & free.reshape(-1)
            slope = torch.where(kept, sums.reshape(-1), 0.0)
            total += (self.columns.design(name).T @ slope).cpu()
        self.weights.append(block.weight)
        self.products.append(total.numpy() / block.weight)

    def noise(self, whitener: Array) -> float:
        """``tr(P S) / n``: variance of the mean gradient inside the family's columns."""
        weights, products = np.array(self.weights), np.array(self.products)
        if len(weights) < 2:
            return 0.0
        center = weights @ products / weights.sum()
        deviations = (products - center) @ whitener
        trace = float(weights @ np.square(deviations).sum(axis=1)) / (len(weights) - 1)
        return trace / float(weights.sum())


def _seen(blocks: Iterator[BlockGradient], spreads: list[_Spread]) -> Iterator[BlockGradient]:
    for block in blocks:
        for spread in spreads:
            spread.see(block)
        yield block


def _penalty(estimator: ImplicitRegularizationEstimator, family: Any, problem: Problem) -> Any:
    return penalty_of(as_penalty(family), problem.groups, estimator.group_by, estimator.known)


def _criterion(equations: Equations, spread: _Spread, positive: bool) -> dict[str, Any]:
    """R2 less the share of it that the noise of one row in a hundred would give."""
    system = equations.system
    eps = equations.problem.eps
    solution = solve(system.triangle, system.n_equations, positive=positive, eps=eps)
    if solution.tss**0.5 <= equations.rounding:
        return {"mean_test_score": 0.0, "r2": 0.0, "n_terms": system.n_terms}
    noise = spread.noise(decompose(system.triangle, eps=eps).whitener)
    score = solution.r2 - _ODDS * noise / solution.tss
    return {"mean_test_score": score, "r2": solution.r2, "n_terms": system.n_terms}


def simplest_within_one_se(cv_results: Mapping[str, Any]) -> int:
    """Index of the family with the fewest coefficients within one standard error of the best.

    Pass it as ``GridSearchCV(..., refit=simplest_within_one_se)`` where families are nested:
    one that contains the true one ties with it.

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
    sizes = np.array([_n_terms(params.get("family", "l2")) for params in cv_results["params"]])
    smallest = within & (sizes == sizes[within].min())
    return int(np.nanargmax(np.where(smallest, mean, -np.inf)))


def _n_terms(family: Any) -> int:
    example = {"layer.weight": torch.ones(2, 2, dtype=torch.float64)}
    values = as_penalty(family).terms(example, None)
    return sum(value.numel() for value in values.values())


def equations(
    model: Any, X: Any, y: Any = None, families: Any = None, sample_weight: Any = None, **params: Any
) -> Bunch:
    """The regression of a family as tables, one row per equation.

    Use it with any tool for linear regression: ``statsmodels.OLS(target, data)``, or
    scikit-learn's splitters over equations, such as ``GroupKFold`` over parameter tensors.

    Parameters
    ----------
    model : trained model or fitted ImplicitRegularizationEstimator
        With a fitted estimator its parameters are used.
    X, y, sample_weight
        The rows that the model was trained on.
    families : family or list of families, default=None
        Joined to one design; by default the estimator's own, or "l2".
    **params
        Further parameters of :class:`ImplicitRegularizationEstimator`, such as ``loss``.

    Returns
    -------
    regression : Bunch
        ``data``, DataFrame of shape (m, k), the gradients of the terms; ``target``, Series of
        shape (m,), minus the gradient of the loss; ``groups``, Series of shape (m,), the
        tensor that each equation belongs to.

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
    if isinstance(model, ImplicitRegularizationEstimator):
        estimator = clone(model).set_params(**params)
        estimator.model = getattr(model, "model_", model.model)
    else:
        estimator = ImplicitRegularizationEstimator(model, **params)
    estimator._check_parameters()
    trained = estimator._train(X, y, sample_weight)
    problem = adapt(trained, Data(X, y, sample_weight), estimator._options())
    family = estimator.family if families is None else families
    penalty = _penalty(estimator, family, problem)
    data, target, groups = Equations.of(problem, penalty, problem.gradient()).frame()
    return Bunch(data=data, target=target, groups=groups)
