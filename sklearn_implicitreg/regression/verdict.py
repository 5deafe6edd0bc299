"""The verdict on a fit: what its coefficients may be taken for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from sklearn_implicitreg.regression.solve import Solution

VERDICTS = (
    "no signal",
    "not identifiable",
    "not constant",
    "not stationary",
    "supported",
    "partial",
    "out of family",
)

_SUPPORTED = 0.01
_PARTIAL = 0.1
_MAX_NOISE = 0.1
_NOISE_OR_TERM = "a missing term, or training that had not ended"
_ON_TRAJECTORY = "a missing term"
_NOISE = "training noise or a missing term"
_THEY_DIFFER = (
    "the coefficients of the endpoints differ (coef_path_), each of which is explained by its own"
)


@dataclass(frozen=True)
class Verdict:
    """What the coefficients may be taken for."""

    label: str
    sentence: str

    def __str__(self) -> str:
        """Label and sentence."""
        return f"{self.label}: {self.sentence}"


@dataclass(frozen=True)
class Measures:
    """What a verdict goes by, of a regression on columns or of a family solved as a whole."""

    n_equations: int
    n_terms: int
    rank: int
    norm: float  # of the target
    r2: float
    shortfall: float
    condition_number: float = 1.0
    condition_limit: float = np.inf  # 1/sqrt(eps) of the model's dtype
    undetermined: str = ""  # why the rank is below the number of terms
    columns: tuple[str, ...] = ()  # that are dependent, or nearly so
    n_held: int = 0  # coefficients that a non-negative fit left at zero

    @classmethod
    def of(cls, solution: Solution, term_names: Sequence[str]) -> Measures:
        """Measures of a regression on columns."""
        which = solution.dependent
        if not which:
            which = tuple(np.flatnonzero(solution.vif >= 0.01 * solution.vif.max()).tolist())
        columns = tuple(term_names[i] for i in which)
        k = len(solution.coef)
        return cls(
            solution.n_equations,
            k,
            solution.rank,
            solution.norm,
            solution.r2,
            solution.shortfall,
            solution.condition_number,
            solution.eps**-0.5,
            f"{k} columns have rank {solution.rank} over {solution.n_equations} "
            f"equations; linearly dependent: {', '.join(columns)}.",
            columns,
            int(np.sum(~solution.active)),
        )


# The first of these rules that applies:
# 1. "no signal": the target's norm is at most ``rounding``, or R2 is not above the 95 % quantile of
#    Beta(k/2, (m - k)/2), what k random directions reach in m > k equations. Over windows a joint
#    test replaces the latter, after rule 3: ``insignificant`` says why it finds no signal, and is
#    empty where it does.
# 2. "not identifiable": rank below k, condition number above 1/sqrt(eps), or layers on whose scale
#    the model does not depend dominate the columns.
# 3. "not constant": one coefficient for all windows or endpoints is rejected, as ``changes`` says.
# 4. "not stationary": ``evidence`` was found that the weights are no endpoint.
# 5. "supported": 1 - R2 <= 0.01 + noise_share, with m > k, no kinks, no violated inequality, no
#    ``differences`` of the coefficients and a noise share of at most 0.1.
# 6. "partial": R2 >= 0.1.
# 7. "out of family": below.
def judge(  # noqa: PLR0913
    measures: Measures,
    *,
    rounding: float,
    scale_invariant: Sequence[str] = (),
    n_kinks: int = 0,
    noise_share: float = 0.0,
    evidence: str = "",
    agreement: str = "",
    cause: str = _NOISE_OR_TERM,
    insignificant: str | None = None,
    n_violated: int = 0,
    changes: str = "",
    differences: str = "",
) -> Verdict:
    """Verdict on the coefficients, by the first rule that applies."""
    noise = float(np.clip(noise_share, 0.0, 1.0))
    verdict = (
        _no_gradient(measures, rounding)
        or (_no_better_than_chance(measures) if insignificant is None else None)
        or _not_identifiable(measures, tuple(scale_invariant))
        or (Verdict("not constant", changes) if changes else None)
        or (Verdict("no signal", insignificant) if insignificant else None)
        or (Verdict("not stationary", evidence) if evidence else None)
        or _explained(
            measures,
            n_kinks,
            noise,
            n_violated,
            cause=_ON_TRAJECTORY if agreement else cause,
            differences=differences,
        )
    )
    sentence = f"{verdict.sentence} {agreement}".rstrip()
    return Verdict(verdict.label, sentence)


def is_explained(solution: Solution) -> bool:
    """Whether R2 is that of a supported family, in more equations than coefficients."""
    return solution.n_equations > solution.n_terms and solution.shortfall <= _SUPPORTED


def cause_at(*, has_paths: bool, each_explained: bool = False, along: bool = False) -> str:
    """What may be behind a part that is left over, and what to do, at endpoints or windows."""
    if along:
        return _ON_TRAJECTORY
    if each_explained:
        return _THEY_DIFFER
    return _NOISE if has_paths else _NOISE_OR_TERM


def _no_gradient(measures: Measures, rounding: float) -> Verdict | None:
    """Rule 1, of any target."""
    norm = measures.norm
    if norm > rounding:
        return None
    return Verdict(
        "no signal",
        f"the gradient is zero to rounding: its norm {norm:.3g} is at most {rounding:.3g} "
        "(100 eps times the size of its summands).",
    )


def _no_better_than_chance(measures: Measures) -> Verdict | None:
    """Rule 1, of an endpoint."""
    m, k = measures.n_equations, measures.rank
    if not 0 < k < m:
        return None
    quantile = float(special.betaincinv(k / 2, (m - k) / 2, 0.95))
    if measures.r2 > quantile:
        return None
    words = "1 random direction reaches" if k == 1 else f"{k} random directions reach"
    held = measures.n_held
    bound = f" {held} of {measures.n_terms} coefficients are held at 0." if held else ""
    return Verdict(
        "no signal",
        f"R2 = {measures.r2:.3g} is not above {quantile:.3g}, what {words} in {m} equations "
        f"(95 % quantile).{bound}",
    )


def _not_identifiable(measures: Measures, scale_invariant: tuple[str, ...]) -> Verdict | None:
    """Rule 2."""
    if measures.rank < measures.n_terms:
        return Verdict("not identifiable", measures.undetermined)
    if measures.condition_number > measures.condition_limit:
        return Verdict(
            "not identifiable",
            f"condition number {measures.condition_number:.3g} is above "
            f"{measures.condition_limit:.3g} (1/sqrt(eps) of the model's dtype); nearly "
            f"dependent: {', '.join(measures.columns)}.",
        )
    if scale_invariant:
        return Verdict(
            "not identifiable",
            f"the model does not depend on the scale of tensors that carry "
            f"most of the columns ({', '.join(scale_invariant)}): an endpoint shows no L2 there, "
            "whatever the decay was.",
        )
    return None


def _explained(
    measures: Measures,
    n_kinks: int,
    noise: float,
    n_violated: int,
    *,
    cause: str,
    differences: str,
) -> Verdict:
    """Rules 5 to 7: by how much of the target the columns explain."""
    m, k, r2 = measures.n_equations, measures.n_terms, measures.r2
    found = f"R2 = {r2:.4f} over {m} equations"
    bound = _SUPPORTED + noise
    gap = f"1 - R2 = {measures.shortfall:.3g}"
    if k >= m:
        label = "partial"
        sentence = (
            "as many coefficients as equations: R2 tests nothing "
            f"({k} coefficients, {m} equations, R2 = {r2:.4f})."
        )
    elif r2 < _PARTIAL:
        label = "out of family"
        sentence = f"{found} is below {_PARTIAL}: these terms do not explain the gradient."
    elif measures.shortfall > bound:
        label = "partial"
        sentence = f"{found}, {gap} is above {bound:.3g}: {cause}."
    elif noise > _MAX_NOISE:
        label = "partial"
        sentence = f"{found}, but {noise:.3g} of the target is noise, more than {_MAX_NOISE}."
    else:
        label = "partial" if n_kinks or n_violated or differences else "supported"
        sentence = f"{found}, {gap} is at most {bound:.3g}."
    if n_violated:
        pull = (
            "1 coordinate at a kink or bound pulls"
            if n_violated == 1
            else (f"{n_violated} coordinates at a kink or bound pull")
        )
        sentence += f" {pull} away from it: never supported."
    if n_kinks:
        rows = "1 row" if n_kinks == 1 else f"{n_kinks} rows"
        sentence += f" The loss has a kink at {rows}, where its gradient is a set: never supported."
    return Verdict(label, f"{sentence} {differences}".rstrip())
