"""The verdict on a fit: what its coefficients may be taken for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from sklearn_implicitreg.regression.solve import Solution

__all__ = ["VERDICTS", "Verdict", "cause_at", "is_explained", "judge", "rounding_of"]

VERDICTS = (
    "no signal",
    "not identifiable",
    "not stationary",
    "supported",
    "partial",
    "out of family",
)

_SUPPORTED = 0.01
_PARTIAL = 0.1
_MAX_NOISE = 0.1
_NOISE_OR_TERM = "a missing term, or training that had not ended"
_ON_PATH = "a missing term"
_RECORD_IT = (
    "training noise or a missing term. Record the path, or let trajectory.ContinueTraining make "
    "one, and give it as trajectory="
)
_THEY_DIFFER = (
    "the coefficients of the endpoints differ (coef_path_), each of which is explained by its own"
)


@dataclass(frozen=True)
class Verdict:
    """What the coefficients may be taken for.

    Attributes
    ----------
    label : str
        One of :data:`VERDICTS`.
    sentence : str
        Why, with the numbers.
    details : dict
        The numbers by name.
    """

    label: str
    sentence: str
    details: dict[str, float | int | str | tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Label and sentence."""
        return f"{self.label}: {self.sentence}"


def judge(  # noqa: PLR0913
    solution: Solution,
    term_names: Sequence[str],
    *,
    rounding: float,
    scale_invariant: Sequence[str] = (),
    scale_invariant_dominates: bool = False,
    n_kinks: int = 0,
    noise_share: float = 0.0,
    evidence: str = "",
    agreement: str = "",
    cause: str = _NOISE_OR_TERM,
    on_path: bool = False,
    insignificant: str | None = None,
    n_violated: int = 0,
) -> Verdict:
    r"""Verdict on the coefficients, by the first of these rules that applies.

    1. ``no signal``: the target's norm is at most ``rounding``, or R2 is not above the 95 %
       quantile of Beta(k/2, (m - k)/2), what k random directions reach in m > k equations.
    2. ``not identifiable``: rank below k, condition number above ``1/sqrt(eps)``, or layers on
       whose scale the model does not depend dominate the columns.
    3. ``not stationary``: ``evidence`` was found that the weights are no endpoint.
    4. ``supported``: ``1 - R2 <= 0.01 + noise_share``, with m > k, no kinks, no violated
       inequality and a noise share of at most 0.1.
    5. ``partial``: R2 >= 0.1.
    6. ``out of family``: below.

    Parameters
    ----------
    solution : Solution
        Its ``eps`` is the rounding unit of the model's dtype, its target norm
        ``sqrt(solution.tss)``.
    term_names : sequence of k str
        Names of the columns.
    rounding : float
        Norm up to which the target is zero: 100 eps times the scale of what was summed.
    scale_invariant : sequence of str
        Tensors on whose scale the model does not depend.
    scale_invariant_dominates : bool
        Whether they carry most of the columns.
    n_kinks : int
        Rows at which the loss has no derivative.
    noise_share : float
        Share of the target's squared norm that is known to be noise; clipped to [0, 1].
    evidence : str
        Sentence that shows that the weights are no endpoint.
    agreement : str
        Sentence of a path that bears the endpoint out.
    cause : str
        What may be behind a part that is left over, see :func:`cause_at`.
    on_path : bool
        Whether the equations are those of a path.
    insignificant : str or None
        Why a test over windows finds no signal, empty where it finds one; it takes the place of
        the comparison with random directions.
    n_violated : int
        Coordinates at a kink or bound whose inequality does not hold.

    Returns
    -------
    Verdict
        The first rule that applies, with its numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_implicitreg.regression.solve import solve
    >>> from sklearn_implicitreg.regression.system import r_factor
    >>> weights = np.array([[1.0], [-2.0], [0.5], [3.0]])
    >>> judge(solve(r_factor(weights, 0.1 * weights[:, 0]), 4), ["l2"], rounding=1e-14).label
    'supported'
    """
    noise = float(np.clip(noise_share, 0.0, 1.0))
    base: dict[str, float | int | str | tuple[str, ...]] = {
        "r2": solution.r2,
        "n_equations": solution.n_equations,
        "n_terms": solution.n_terms,
        "rank": solution.rank,
        "condition_number": solution.condition_number,
        "target_norm": solution.tss**0.5,
        "rounding": rounding,
        "noise_share": noise,
        "n_kinks": n_kinks,
    }
    verdict = (
        _no_signal(solution, rounding, insignificant)
        or _not_identifiable(
            solution, term_names, tuple(scale_invariant) if scale_invariant_dominates else ()
        )
        or (Verdict("not stationary", evidence) if evidence else None)
        or _explained(
            solution,
            n_kinks,
            noise,
            n_violated,
            cause=_ON_PATH if on_path or agreement else cause,
        )
    )
    sentence = f"{verdict.sentence} {agreement}".rstrip()
    return Verdict(verdict.label, sentence, {**base, **verdict.details})


def rounding_of(verdict: Verdict) -> float:
    """Norm up to which the target of a verdict is zero."""
    value = verdict.details["rounding"]
    assert isinstance(value, float | int)
    return float(value)


def is_explained(solution: Solution) -> bool:
    """Whether R2 is that of a supported family, in more equations than coefficients."""
    return solution.n_equations > solution.n_terms and solution.shortfall <= _SUPPORTED


def cause_at(*, has_paths: bool, each_explained: bool = False) -> str:
    """What may be behind a part that is left over, and what to do.

    Parameters
    ----------
    has_paths : bool
        Whether a path of the model can be recorded.
    each_explained : bool
        Whether there are several endpoints, and coefficients of their own explain each of them.

    Returns
    -------
    str
    """
    if each_explained:
        return _THEY_DIFFER
    return _RECORD_IT if has_paths else _NOISE_OR_TERM


def _no_signal(solution: Solution, rounding: float, insignificant: str | None) -> Verdict | None:
    """Rule 1."""
    norm = solution.tss**0.5
    if norm <= rounding:
        return Verdict(
            "no signal",
            f"the gradient is zero to rounding: its norm {norm:.3g} is at most {rounding:.3g} "
            "(100 eps times the size of its summands).",
        )
    if insignificant is not None:
        return Verdict("no signal", insignificant) if insignificant else None
    m, k = solution.n_equations, solution.rank
    if not 0 < k < m:
        return None
    quantile = float(stats.beta.ppf(0.95, k / 2, (m - k) / 2))
    if solution.r2 > quantile:
        return None
    words = "1 random direction reaches" if k == 1 else f"{k} random directions reach"
    held = int(np.sum(~solution.active))
    bound = f" {held} of {solution.n_terms} coefficients are held at 0." if held else ""
    return Verdict(
        "no signal",
        f"R2 = {solution.r2:.3g} is not above {quantile:.3g}, what {words} in {m} equations "
        f"(95 % quantile).{bound}",
        {"r2_random": quantile},
    )


def _not_identifiable(
    solution: Solution, term_names: Sequence[str], scale_invariant: tuple[str, ...]
) -> Verdict | None:
    """Rule 2."""
    if solution.rank < solution.n_terms:
        columns = tuple(term_names[i] for i in solution.dependent)
        return Verdict(
            "not identifiable",
            f"{solution.n_terms} columns have rank {solution.rank} over {solution.n_equations} "
            f"equations; linearly dependent: {', '.join(columns)}.",
            {"columns": columns},
        )
    limit = solution.eps**-0.5
    if solution.condition_number > limit:
        close = np.flatnonzero(solution.vif >= 0.01 * solution.vif.max())
        columns = tuple(term_names[int(i)] for i in close)
        return Verdict(
            "not identifiable",
            f"condition number {solution.condition_number:.3g} is above {limit:.3g} "
            f"(1/sqrt(eps) of the model's dtype); nearly dependent: {', '.join(columns)}.",
            {"columns": columns, "condition_limit": limit},
        )
    if scale_invariant:
        return Verdict(
            "not identifiable",
            f"the model does not depend on the scale of {len(scale_invariant)} tensors that carry "
            f"most of the columns ({', '.join(scale_invariant)}): an endpoint shows no L2 there, "
            "whatever the decay was.",
            {"scale_invariant": scale_invariant},
        )
    return None


def _explained(
    solution: Solution, n_kinks: int, noise: float, n_violated: int, *, cause: str
) -> Verdict:
    """Rules 4 to 6: by how much of the target the columns explain."""
    m, k, r2 = solution.n_equations, solution.n_terms, solution.r2
    found = f"R2 = {r2:.4f} over {m} equations"
    bound = _SUPPORTED + noise
    gap = f"1 - R2 = {solution.shortfall:.3g}"
    if k >= m:
        label = "partial"
        sentence = (
            "as many coefficients as equations: R2 tests nothing "
            f"({k} coefficients, {m} equations, R2 = {r2:.4f})."
        )
    elif r2 < _PARTIAL:
        label = "out of family"
        sentence = f"{found} is below {_PARTIAL}: these terms do not explain the gradient."
    elif solution.shortfall > bound:
        label = "partial"
        sentence = f"{found}, {gap} is above {bound:.3g}: {cause}."
    elif noise > _MAX_NOISE:
        label = "partial"
        sentence = f"{found}, but {noise:.3g} of the target is noise, more than {_MAX_NOISE}."
    else:
        label = "partial" if n_kinks or n_violated else "supported"
        sentence = f"{found}, {gap} is at most {bound:.3g}."
    if n_violated:
        sentence += (
            f" {n_violated} coordinates at a kink or bound pull away from it: never supported."
        )
    if n_kinks:
        sentence += (
            f" The loss has a kink at {n_kinks} rows, where its gradient is a set: never supported."
        )
    return Verdict(label, sentence)
