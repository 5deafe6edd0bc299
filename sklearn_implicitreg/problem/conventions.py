"""How libraries state a penalty in their own parameters: the one table of units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Terms that are multiples of L2: coefficient of L2 per unit of the term.
L2_PER_TERM = {"l2": 1.0, "weight_decay": 0.5}


@dataclass(frozen=True)
class Convention:
    """A model's own way to state a penalty ``strength * (c1 * r |w|_1 + c2 * (1 - r) |w|^2)``.

    L, to which the penalty is added, is the mean loss, squared error without its 1/2: what a
    model adds to a halved squared error has its factors doubled.

    Parameters
    ----------
    parameter : str, default="alpha"
        Name of the model's parameter for the strength.
    l2, l1 : float or None, default=None
        The factors c2 and c1; None where the model has no such penalty.
    per_row, inverse : bool, default=False
        Whether the strength is divided by the weight of the rows; is one over the parameter.
    l1_term, ratio : str, default="l1" and "l1_ratio"
        Names of the sparse term and of the parameter r, where the model has both penalties.

    Examples
    --------
    >>> ridge = Convention("alpha", l2=1.0, per_row=True)  # sum (y - f)^2 + alpha sum w^2
    >>> ridge.coefficients(3.0, n=100)
    {'l2': 0.03}
    >>> ridge.parameters({"l2": 0.03}, n=100)
    {'alpha': 3.0}
    """

    parameter: str = "alpha"
    l2: float | None = None
    l1: float | None = None
    per_row: bool = False
    inverse: bool = False
    l1_term: str = "l1"
    ratio: str = "l1_ratio"

    def coefficients(
        self, value: float, *, l1_ratio: float | None = None, n: float | None = None
    ) -> dict[str, float]:
        """Coefficients of ``L2`` and ``L1`` at a value of the parameter."""
        strength = (1.0 / value if self.inverse else value) / self._rows(n)
        if self.l1 is None:
            return {"l2": strength * float(self.l2 or 0.0)}
        if self.l2 is None:
            return {self.l1_term: strength * self.l1}
        ratio = 0.0 if l1_ratio is None else l1_ratio
        l2, l1 = strength * (1 - ratio) * self.l2, strength * ratio * self.l1
        return {"l2": l2, self.l1_term: l1}

    def parameters(self, coef: Mapping[str, float], n: float | None = None) -> dict[str, float]:
        """Model parameters that state the coefficients; with r where the model has one."""
        l2_terms = [t for t in coef if t in L2_PER_TERM and self.l2 is not None]
        l1_terms = [t for t in coef if t == self.l1_term and self.l1 is not None]
        unknown = set(coef) - {*l2_terms, *l1_terms}
        if unknown:
            raise ValueError(
                f"Expected terms that {self.parameter!r} of this model can state, got "
                f"{sorted(unknown)}; read `coef_` instead."
            )
        rows = self._rows(n)
        strength = strength_l1 = 0.0
        if self.l1 and l1_terms:
            strength = strength_l1 = rows * coef[self.l1_term] / self.l1
        if self.l2:
            strength += rows * sum(coef[t] * L2_PER_TERM[t] for t in l2_terms) / self.l2
        value = strength
        if self.inverse:
            value = 1.0 / strength if strength else float("inf")
        if self.l1 is None or self.l2 is None:
            return {self.parameter: value}
        ratio = strength_l1 / strength if strength else float(not l2_terms)
        return {self.parameter: value, self.ratio: ratio}

    def _rows(self, n: float | None) -> float:
        if not self.per_row:
            return 1.0
        if n is None:
            raise ValueError(
                f"Expected n, the total weight of the training rows: {self.parameter!r} of this "
                "model is divided by it."
            )
        return float(n)


# Strengths against L: squared error without its 1/2 doubles what a halved one is trained with.
CONVENTIONS: dict[str, Convention] = {
    "Ridge": Convention(l2=1.0, per_row=True),
    "Lasso": Convention(l1=2.0),
    "ElasticNet": Convention(l2=1.0, l1=2.0),
    "MultiTaskLasso": Convention(l1=2.0, l1_term="l21"),
    "MultiTaskElasticNet": Convention(l2=1.0, l1=2.0, l1_term="l21"),
    "LogisticRegression": Convention("C", l2=0.5, l1=1.0, per_row=True, inverse=True),
    "LinearSVC": Convention("C", l2=0.5, l1=1.0, per_row=True, inverse=True),
    "LinearSVR": Convention("C", l2=0.5, per_row=True, inverse=True),
    "SGDRegressor": Convention(l2=1.0, l1=2.0),
    "SGDClassifier": Convention(l2=0.5, l1=1.0),
    "PoissonRegressor": Convention(l2=0.5),
    "GammaRegressor": Convention(l2=0.5),
    "TweedieRegressor": Convention(l2=0.5),
    "HuberRegressor": Convention(l2=1.0, per_row=True),
    "QuantileRegressor": Convention(l1=1.0),
    "MLPRegressor": Convention(l2=1.0, per_row=True),
    "MLPClassifier": Convention(l2=0.5, per_row=True),
    "torch": Convention("weight_decay", l2=0.5),
    # fit_regularized of statsmodels; the row OLS is that of WLS and GLS too.
    "OLS": Convention(l2=1.0, l1=2.0, ratio="L1_wt"),
    "GLM": Convention(l2=0.5, l1=1.0, ratio="L1_wt"),
    "Logit": Convention(l1=1.0, per_row=True),  # also of the other discrete models
}
