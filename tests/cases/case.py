"""A model with a known penalty, trained once for all tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator

EXACT = 1e-6

Terms = dict[str, Any]  # numbers, or one per output
Expected = Terms | Callable[[Any], Terms]


@dataclass(frozen=True)
class Case:
    """A model with a known penalty.

    ``coef`` are coefficients in units of the mean loss, by term name; ``own`` the model's own
    parameters; either may be a function of the fitted model. ``rtol`` is 1e-6 where the solver
    is exact, and else as far as the solver goes, for which ``solver`` gives the reason.
    """

    id: str
    estimator: Any
    X: Any
    y: Any
    family: str
    coef: Expected
    own: Expected
    sample_weight: Any = None
    rtol: float = EXACT
    fit: Callable[..., Any] | None = None
    solver: str = ""

    def make(self) -> Any:
        """Fitted model, trained once for all tests."""
        return _fitted(self)

    def expected_coef(self) -> Terms:
        """Coefficients by term name."""
        return self.coef(self.make()) if callable(self.coef) else self.coef

    def expected_own(self) -> Terms:
        """The model's own parameters."""
        return self.own(self.make()) if callable(self.own) else self.own

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return self is other


@cache
def _fitted(case: Case) -> Any:
    """Train the model of a case."""
    if case.fit is not None:
        return case.fit(case.estimator, case.X, case.y, case.sample_weight)
    model = clone(case.estimator)
    if case.sample_weight is None:
        return model.fit(case.X, case.y)
    return model.fit(case.X, case.y, sample_weight=case.sample_weight)


def fit_frozen(model: Any, X: Any, y: Any, sample_weight: Any) -> Any:
    """A frozen trained model."""
    return FrozenEstimator(clone(model).fit(X, y))


def fit_restarted(model: Any, X: Any, y: Any, sample_weight: Any, *, rounds: int = 100) -> Any:
    """A model by L-BFGS, restarted where it stops on the relative change of the loss."""
    model = clone(model).set_params(warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(rounds):
            model.fit(X, y) if sample_weight is None else model.fit(X, y, sample_weight)
    return model


def fit_quietly(model: Any, X: Any, y: Any, sample_weight: Any) -> Any:
    """A model whose solver runs up to its limit of iterations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        return clone(model).fit(X, y, **weights)
