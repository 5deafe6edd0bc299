"""Units: from coefficients to a model's own parameters, and back."""

from __future__ import annotations

import difflib

from sklearn_implicitreg.problem.conventions import CONVENTIONS, L2_PER_TERM, Convention
from sklearn_implicitreg.problem.parameters import NOTHING, checked, instance, number

_FAMILIES = [*L2_PER_TERM, "l1", "l21"]
_DEFAULT_MODELS = {
    ("l2", "alpha"): "Ridge",
    ("l1", "alpha"): "Lasso",
    ("l21", "alpha"): "MultiTaskLasso",
    ("l2", "C"): "LogisticRegression",
    ("l1", "C"): "LogisticRegression",
    ("l2", "weight_decay"): "torch",
}


@checked(
    coef=number(),
    to=instance("a name", str),
    n=NOTHING | number(above=0),
)
def convert(
    coef: float, family: str, *, to: str, n: float | None = None, model: str | None = None
) -> float:
    """Model parameter that states a penalty openly, from its coefficient; or the reverse.

    A coefficient multiplies the family's R in ``L + coef * R``, where L is the loss divided by
    the total weight of the rows, squared error without its 1/2.

    Parameters
    ----------
    coef : float
        Coefficient, or with ``to="coef"`` the value of the model's parameter.
    family : {"l2", "weight_decay", "l1", "l21"}
        ``sum w^2``, ``1/2 sum w^2``, ``sum |w|``, or the sum of the 2-norms over outputs.
    to : str
        Name of the parameter, "alpha", "C" or "weight_decay"; or "coef" for the reverse.
    n : float, optional
        Total weight of the training rows, if the table has an n; of an MLP the size of a batch.
    model : str, optional
        Row of the table; by default Ridge, a Lasso, LogisticRegression or torch, by ``to``.

    Returns
    -------
    float
        Value of the parameter, or the coefficient.

    Raises
    ------
    ValueError
        If a name is not known, the model lacks the parameter or penalty, n is missing, or an
        inverse (``C``) would be negative.

    See Also
    --------
    sklearn_implicitreg.problem.conventions.CONVENTIONS : The same table for programs.

    Notes
    -----
    What is minimized over w, and the coefficients in it (SSE: sum of squared errors over the n
    rows, D: deviance, r: ``l1_ratio`` or ``L1_wt``, ``P = r |w|_1 + (1-r)/2 |w|^2``)::

        model                objective                            coefficients
        Ridge                SSE + alpha |w|^2                    l2 = alpha/n
        Lasso                SSE/(2n) + alpha |w|_1               l1 = 2 alpha
        ElasticNet           SSE/(2n) + alpha P                   l1 = 2 alpha r, l2 = alpha (1-r)
        MultiTaskLasso,      the same with |w|_21 for |w|_1       l21 for l1
        MultiTaskElasticNet
        LogisticRegression   sum of log losses + P/C              l1 = r/(n C), l2 = (1-r)/(2 n C)
        LinearSVC,           sum of losses + |w|^2/(2C)           l2 = 1/(2 n C), with intercept
        LinearSVR
        SGDRegressor         SSE/(2n) + alpha P                   l1 = 2 alpha r, l2 = alpha (1-r)
        SGDClassifier        mean of losses + alpha P             l1 = alpha r, l2 = alpha (1-r)/2
        PoissonRegressor,    D/(2n) + alpha/2 |w|^2               l2 = alpha/2
        GammaRegressor,
        TweedieRegressor
        HuberRegressor       sum of losses + alpha |w|^2          l2 = alpha/n
        QuantileRegressor    mean of losses + alpha |w|_1         l1 = alpha
        MLPRegressor         SSE/(2n) + alpha/(2n) |w|^2          l2 = alpha/n
        MLPClassifier        mean of log losses + alpha/(2n) |w|^2  l2 = alpha/(2n)
        torch                mean loss + weight_decay/2 |w|^2     l2 = weight_decay/2
        OLS (also WLS, GLS)  SSE/(2n) + alpha P                   l1 = 2 alpha r, l2 = alpha (1-r)
        GLM of statsmodels   D/(2n) + alpha P                     l1 = alpha r, l2 = alpha (1-r)/2
        Logit (also Probit,  -log likelihood + alpha |w|_1        l1 = alpha/n
        MNLogit, Poisson and the other discrete models of statsmodels)

    An SGDRegressor with another loss than the squared error has the units of SGDClassifier;
    TweedieRegressor(power=0) has those of an ElasticNet with r = 0, a Gaussian GLM those of OLS.

    Examples
    --------
    >>> convert(0.3, "l2", to="alpha", n=10)
    3.0
    >>> convert(0.3, "l1", to="alpha")
    0.15
    >>> convert(0.25, "l2", to="weight_decay"), convert(0.25, "weight_decay", to="weight_decay")
    (0.5, 0.25)
    >>> convert(3.0, "l2", to="coef", n=10, model="Ridge")
    0.3
    """
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ValueError(_unknown("family", family, _FAMILIES))
    row = _convention(family, to, model)
    if row.inverse and (coef < 0 or (to == "coef" and coef == 0)):
        raise ValueError(
            f"Expected coef {'above' if to == 'coef' else 'at or above'} zero where "
            f"{row.parameter!r} is one over the strength, got {coef!r}."
        )
    if to != "coef":
        return row.parameters({family: coef}, n)[to]
    if family in L2_PER_TERM:
        return row.coefficients(coef, l1_ratio=0.0, n=n)["l2"] / L2_PER_TERM[family]
    return row.coefficients(coef, l1_ratio=1.0, n=n)[family]


def _convention(family: str, to: str, model: str | None) -> Convention:
    penalty = "l2" if family in L2_PER_TERM else family
    if model is None:
        model = _DEFAULT_MODELS.get((penalty, to))
    if model is None:
        known = sorted(name for fam, name in _DEFAULT_MODELS if fam == penalty)
        raise ValueError(
            f"Expected to= one of {known} for family {family!r}, or model= one of "
            f"{list(CONVENTIONS)}, got to={to!r} without a model."
        )
    if not isinstance(model, str) or model not in CONVENTIONS:
        raise ValueError(_unknown("model", model, list(CONVENTIONS)))
    row = CONVENTIONS[model]
    if to not in (row.parameter, "coef"):
        raise ValueError(f"Expected to={row.parameter!r} or 'coef' for {model}, got {to!r}.")
    has = row.l2 is not None if penalty == "l2" else row.l1 is not None and row.l1_term == family
    if not has:
        raise ValueError(
            f"Expected a penalty that {model} has, got {family!r}; read `coef_` instead."
        )
    return row


def _unknown(what: str, got: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(got), known, n=1, cutoff=0.0)[0]
    return f"Expected {what} to be one of {known}, got {got!r}; did you mean {near!r}?"
