"""Standard errors of the coefficients, with the equations as the sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special
from sklearn.utils import check_random_state

from sklearn_implicitreg.regression.chunks import mapped
from sklearn_implicitreg.regression.solve import Solution, Spectrum, decompose
from sklearn_implicitreg.regression.system import Array, Rows, System

COVARIANCES = ("auto", "ols", "nonrobust", "hc3", "cluster")
OVER_ROWS = ("sandwich", "bootstrap")  # for weights that did not see the rows

# Below it a t distribution of so few clusters says next to nothing.
_MIN_CLUSTERS = 4
MIN_RESAMPLES = 4  # as with clusters: a spread of fewer holds next to nothing
# One minus leverage at which a row is the only one to determine some coefficient.
FULL_LEVERAGE = 1e-12
_CHUNK = 2**17  # numbers in a chunk of rows, as when R factors are made
_DRAWS = 2000  # of the bootstrap over rows, at least, and in a chunk of them
_IN_TAILS = 20  # more draws where fewer would lie outside the interval


@dataclass(frozen=True, eq=False)
class Inference:
    """Standard errors of the coefficients, over equations."""

    cov: Array
    std_err: Array
    tvalues: Array
    pvalues: Array
    conf_int: Array
    df: float
    confidence_level: float
    covariance: str
    description: str
    log_likelihood: float
    aic: float
    bic: float
    exact: bool = False
    units: Array | float = 1.0  # (k,): the covariance is of the coefficients divided by them
    over_rows: bool = False  # at fixed weights, where an exact fit has errors too


class _Part(NamedTuple):
    """Some columns in use, in the clusters that they reach, and their coefficients."""

    columns: list[int]
    system: System
    spectrum: Spectrum
    coef: Array


@dataclass(frozen=True, eq=False)
class _Fit:
    """What the covariances share: the columns in use, in parts that share no cluster."""

    parts: list[_Part]
    n_columns: int
    n_equations: int
    n_clusters: int
    rss: float
    eps: float

    @classmethod
    def of(cls, system: System, coef: Array, rss: float, eps: float) -> _Fit:
        """Parts of a system, decomposed."""
        parts = [
            _Part(columns, part, decompose(part.r_factor, eps=eps), coef[columns])
            for columns, part in system.components
        ]
        return cls(parts, system.n_terms, system.n_equations, len(system.labels), rss, eps)

    @cached_property
    def df_resid(self) -> int:
        """Equations less what the columns can explain."""
        return self.n_equations - sum([part.spectrum.rank for part in self.parts])

    def joined(self, blocks: list[Array]) -> Array:
        """Covariance of all columns, from that of each part."""
        if len(blocks) == 1 and len(blocks[0]) == self.n_columns:
            return blocks[0]
        cov = np.zeros((self.n_columns, self.n_columns))
        for part, block in zip(self.parts, blocks, strict=True):
            cov[np.ix_(part.columns, part.columns)] = block
        return cov


class _Impossible(Exception):
    """A covariance cannot be had from these equations; its text says why."""


def infer(
    system: System,
    solution: Solution,
    *,
    covariance: str = "auto",
    confidence_level: float = 0.95,
    rounding: float = 0.0,
) -> Inference:
    r"""Covariance of the coefficients, with the equations as the sample."""
    if covariance not in COVARIANCES:
        raise ValueError(f"Expected covariance among {list(COVARIANCES)}, got {covariance!r}.")
    if not 0 < confidence_level < 1:
        raise ValueError(
            f"Expected 0 < confidence_level < 1, got {confidence_level}; 0.95 is usual."
        )
    kind = "ols" if covariance == "nonrobust" else covariance
    known = np.flatnonzero(solution.active)
    m, k = system.n_equations, system.n_terms
    if m <= k or not len(known):
        reason = f"{m} equations for {k} coefficients" if m <= k else "no coefficient above zero"
        kind = "ols" if kind == "auto" else kind
        return _without(solution, confidence_level, rounding, reason, kind)
    part = system
    if len(known) < k:
        part = system.select([system.term_names[i] for i in known])
    fit = _Fit.of(part, solution.coef[known], solution.rss, solution.eps)
    cov, df, kind, description = _covariance(fit, kind)
    level = confidence_level
    return _packaged(solution, cov, known, df, level, kind, description, rounding)


def spread(
    solution: Solution, coef_path: Array, confidence_level: float, rounding: float = 0.0
) -> Inference:
    """Bootstrap: covariance of the coefficients that each resample has alone, (M, k)."""
    # What resamples have in common has an error of its own, which goes to zero with more of them;
    # their spread is about the rows, and does not (Efron and Tibshirani 1993, chapters 6 and 12).
    alone = coef_path[np.isfinite(coef_path).all(axis=1)]
    if len(alone) < MIN_RESAMPLES:
        reason = (
            f"{len(alone)} resamples have coefficients by themselves, fewer than {MIN_RESAMPLES}"
        )
        return _without(solution, confidence_level, rounding, reason)
    known = np.flatnonzero(solution.active)
    cov = np.atleast_2d(np.cov(alone[:, known], rowvar=False))
    df = float(len(alone) - 1)
    description = (
        f"standard deviation over {len(alone)} resamples of the same rows (bootstrap), t({df:g})"
    )
    level = confidence_level
    return _packaged(solution, cov, known, df, level, "bootstrap", description, rounding)


def over_rows(  # noqa: PLR0913
    solution: Solution,
    deviations: Array,
    shares: Array,
    kind: str,
    confidence_level: float,
    rounding: float,
    random_state: Any,
) -> Inference:
    """Errors at fixed weights, from what every block of rows adds, (B, k), with its share."""
    n, known = len(shares), np.flatnonzero(solution.active)
    if n < 2:
        raise ValueError(
            f"Expected at least 2 rows or batches for covariance={kind!r}, got {n}; give more "
            "rows, or a smaller batch_size."
        )
    # As HC1: mean-zero sums of rows, or of blocks of rows that were drawn at random.
    cov = n / (n - 1) * (deviations.T @ deviations)[np.ix_(known, known)]
    level, text = confidence_level, f"over rows at fixed weights ({kind}), {n} blocks of rows"
    words = f"{text}, t({n - 1})"
    found = _packaged(solution, cov, known, n - 1.0, level, kind, words, rounding)
    found = replace(found, over_rows=True)
    if kind == "sandwich":
        return found
    drawn = _studentized(deviations, shares, level, random_state)
    # Symmetric (Hall 1988): products of residuals and features have heavy tails, with which the
    # interval of equal tails is too short.
    critical = np.quantile(drawn, level, axis=0, method="higher")
    half = critical * found.std_err
    larger = (drawn >= np.abs(found.tvalues)).mean(axis=0)
    return replace(
        found,
        conf_int=np.column_stack([solution.coef - half, solution.coef + half]),
        pvalues=np.where(np.isnan(found.tvalues), np.nan, np.maximum(larger, 1 / len(drawn))),
        description=f"{text}, studentized, {len(drawn)} draws",
    )


def _studentized(deviations: Array, shares: Array, level: float, random_state: Any) -> Array:
    """Bootstrap of ``|coef - its mean| / standard error``: blocks drawn with replacement."""
    # No refit: the coefficients are linear in the gradient (Efron and Tibshirani 1993, chapter 12).
    if random_state is None:  # NumPy's generator stays where it is
        rng = np.random.RandomState()
        rng.set_state(np.random.get_state())
    else:
        rng = check_random_state(random_state)
    n = len(shares)
    drawn = []
    for _ in range(max(1, math.ceil(_IN_TAILS / (1 - level) / _DRAWS))):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=_DRAWS).astype(np.float64)
        total = (counts @ shares)[:, None]
        mean = counts @ deviations / total
        # Sums of squares of deviations - share * mean.
        square = counts @ deviations**2 - 2 * mean * (counts @ (deviations * shares[:, None]))
        square += mean**2 * (counts @ shares**2)[:, None]
        error = np.sqrt(n / (n - 1) * np.maximum(square, 0.0)) / total
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn.append(np.where(mean == 0, 0.0, np.abs(mean) / error))
    return np.concatenate(drawn)


def added(  # noqa: PLR0913
    inference: Inference, solution: Solution, cov: Array, df: int, words: str, rounding: float
) -> Inference:
    """Standard errors with a further covariance of the coefficients, from so many degrees."""
    known = np.flatnonzero(np.isfinite(inference.std_err))
    own, more = inference.cov[np.ix_(known, known)], cov[np.ix_(known, known)]
    a, b = np.diagonal(own), np.diagonal(more)
    if not b.any():
        return inference
    # Satterthwaite (1946), of the coefficient that has the fewest.
    with np.errstate(invalid="ignore"):
        both = (a + b) ** 2 / (a**2 / inference.df + b**2 / df)
    level, kind = inference.confidence_level, inference.covariance
    text = f"{inference.description}; {words} is added"
    return _packaged(
        solution, own + more, known, float(np.nanmin(both)), level, kind, text, rounding
    )


def one_data_set(solution: Solution, confidence_level: float, rounding: float = 0.0) -> Inference:
    """No standard errors: models that were trained on the same rows are no sample."""
    reason = (
        "endpoints share their rows and are no resamples of them, so that they are no independent "
        "sample; retrain on resamples (endpoints), or name a covariance over equations"
    )
    return _without(solution, confidence_level, rounding, reason)


def without_numbers(solution: Solution, inference: Inference) -> tuple[Solution, Inference]:
    """NaN for all coefficients: rounding errors divided by weights are none."""
    k = solution.n_terms
    blank = np.full(k, np.nan)
    return (
        replace(solution, coef=blank, r2=0.0, shortfall=1.0),
        replace(
            inference,
            cov=np.full((k, k), np.nan),
            std_err=blank,
            tvalues=blank,
            pvalues=blank,
            conf_int=np.full((k, 2), np.nan),
            log_likelihood=np.nan,
            aic=np.nan,
            bic=np.nan,
            exact=False,
        ),
    )


def _covariance(fit: _Fit, kind: str) -> tuple[Array, float, str, str]:
    """Covariance, degrees of freedom, its name and a sentence; "auto" tries in order."""
    if kind != "auto":
        try:
            return (*_METHODS[kind](fit), kind, _DESCRIPTIONS[kind].format(**_numbers(fit)))
        except _Impossible as error:
            raise ValueError(
                f"Expected equations that give covariance={kind!r}, got {error}; "
                "use covariance='auto'."
            ) from None
    reasons = []
    n_clusters = fit.n_clusters
    for name in ("cluster", "hc3", "ols"):
        try:
            if name == "cluster" and n_clusters < _MIN_CLUSTERS:
                few = "1 cluster is" if n_clusters == 1 else f"{n_clusters} clusters are"
                raise _Impossible(f"{few} too few")
            cov, df = _METHODS[name](fit)
        except _Impossible as error:
            reasons.append(f"no {_WORDS[name]} errors: {error}")
            continue
        description = _DESCRIPTIONS[name].format(**_numbers(fit))
        return cov, df, name, "; ".join([description, *reasons])
    raise AssertionError("ols is always possible")


def _numbers(fit: _Fit) -> dict[str, int]:
    """Numbers in the descriptions."""
    return {
        "m": fit.n_equations,
        "df": fit.df_resid,
        "clusters": fit.n_clusters,
        "others": fit.n_clusters - 1,
    }


def _ols(fit: _Fit) -> tuple[Array, float]:
    """Classical covariance: errors of one variance, independent over equations."""
    whiteners = [part.spectrum.whitener for part in fit.parts]
    variance = fit.rss / fit.df_resid
    return fit.joined([variance * (own @ own.T) for own in whiteners]), float(fit.df_resid)


def _hc3(fit: _Fit) -> tuple[Array, float]:
    """Each equation has a variance of its own."""
    blocks = []
    for part in fit.parts:
        if part.system.rows is None:
            raise _Impossible("equations that cannot be read a second time")
        whitener = part.spectrum.whitener
        meat = hc3_meat(part.system, whitener, part.coef)
        if not np.isfinite(meat).all():
            raise _Impossible("an equation that alone determines a coefficient (leverage 1)")
        blocks.append(whitener @ meat @ whitener.T)
    return fit.joined(blocks), float(fit.df_resid)


def hc3_meat(system: System, whitener: Array, coef: Array) -> Array:
    r"""Middle factor of the HC3 covariance, by a second pass over the equations."""
    # With z_j = design_j @ whitener, residual e_j and leverage h_j = |z_j|^2 it is
    # sum_j e_j^2 / (1 - h_j)^2 z_j z_j'; NaN where a row has leverage one.
    step = _CHUNK // (len(coef) + 1)

    both = np.vstack([np.transpose(whitener), np.negative(coef)])

    def summed(rows: Rows) -> Array:
        design, target = rows[2:]
        meat: Array = np.zeros((whitener.shape[1], whitener.shape[1]))
        for start in range(0, len(target), step):
            # Turned, so that a design stored column by column is read in order.
            turned = both @ design[start : start + step].T
            basis, residual = turned[:-1], turned[-1]
            residual += target[start : start + step]
            rest = np.einsum("ij,ij->j", basis, basis)
            np.subtract(1.0, rest, out=rest)
            if rest.min(initial=1.0) <= FULL_LEVERAGE:
                rest[rest <= FULL_LEVERAGE] = np.nan
            basis *= np.divide(residual, rest, out=rest)
            meat += basis @ basis.T
        return meat

    meat: Array = np.zeros((whitener.shape[1], whitener.shape[1]))
    for part in mapped(summed, system.single("for hc3")):
        meat += part
    return meat


def _cluster(fit: _Fit) -> tuple[Array, float]:
    """CR3: delete-one-cluster jackknife around the coefficients."""
    n = fit.n_clusters
    if n < 2:
        raise _Impossible(f"{n} cluster")
    blocks = []
    for part in fit.parts:
        deviations = []
        for label, rest in zip(part.system.labels, part.system.without_each(), strict=True):
            # By the columns' own norms, not the rest's: a column that is left with nothing but
            # rounding errors has no support.
            spectrum = decompose(rest, eps=fit.eps, norms=part.spectrum.norms)
            if spectrum.rank < part.spectrum.rank:
                raise _Impossible(f"a column without support once cluster {label!r} is left out")
            weights = spectrum.whitener @ (spectrum.left.T @ rest[:, -1])
            deviations.append(weights - part.coef)
        away = np.array(deviations)
        blocks.append((n - 1) / n * (away.T @ away))
    return fit.joined(blocks), float(n - 1)


# "ols": rss / (m - k) A^-1, t(m - k). "hc3": MacKinnon and White (1985), t(m - k). "cluster":
# CR3, (C - 1)/C sum_c (coef_(-c) - coef)(coef_(-c) - coef)', t(C - 1), Bell and McCaffrey (2002).
# The rank of the columns in use stands for k.
_METHODS = {"ols": _ols, "hc3": _hc3, "cluster": _cluster}
_WORDS = {"cluster": "cluster", "hc3": "robust"}
_DESCRIPTIONS = {
    "ols": "classical (ols) over {m} equations, t({df})",
    "hc3": "robust (HC3) over {m} equations, t({df})",
    "cluster": "delete-one-cluster jackknife (CR3) over {clusters} clusters of {m} equations, "
    "t({others})",
}


def _without(
    solution: Solution, level: float, rounding: float, reason: str, kind: str = "none"
) -> Inference:
    """No standard errors, and why."""
    none = np.empty((0, 0)), np.flatnonzero(solution.active)[:0]
    description = f"no standard errors: {reason}"
    return _packaged(solution, *none, np.nan, level, kind, description, rounding)


def _packaged(
    solution: Solution,
    cov: Array,
    known: npt.NDArray[np.intp],
    df: float,
    level: float,
    kind: str,
    description: str,
    rounding: float,
) -> Inference:
    """All statistics of a covariance of the known coefficients; NaN for the others."""
    k = len(solution.coef)
    full = np.full((k, k), np.nan)
    full[np.ix_(known, known)] = cov
    lost = list(solution.dependent)
    full[lost, :] = np.nan
    full[:, lost] = np.nan
    # Rounding leaves variances of an exact fit a hair below zero.
    full[np.diag_indices(k)] = np.maximum(np.diagonal(full), 0.0)
    std_err = np.sqrt(np.diagonal(full))
    with np.errstate(divide="ignore", invalid="ignore"):
        tvalues = solution.coef / std_err
    half = std_err * (special.stdtrit(df, 0.5 + level / 2) if df > 0 else np.nan)
    pvalues = 2 * special.stdtr(df, -np.abs(tvalues)) if df > 0 else np.full(k, np.nan)
    # Rounding of the columns is added to that of the target.
    exact = solution.residual <= max(10 * solution.eps * solution.norm, rounding)
    likelihood, n_used = np.inf if exact else _log_likelihood(solution), solution.n_used
    return Inference(
        cov=full,
        std_err=std_err,
        tvalues=tvalues,
        pvalues=pvalues,
        conf_int=np.column_stack([solution.coef - half, solution.coef + half]),
        df=df,
        confidence_level=level,
        covariance=kind,
        description=description,
        log_likelihood=likelihood,
        aic=2 * n_used - 2 * likelihood,
        bic=float(np.log(solution.n_equations)) * n_used - 2 * likelihood,
        exact=exact,
    )


def _log_likelihood(solution: Solution) -> float:
    """Gaussian, at the most likely variance ``rss / m``."""
    if solution.rss == 0:
        return float("inf")
    m = solution.n_equations
    return float(-m / 2 * (np.log(2 * np.pi) + np.log(solution.rss / m) + 1))
