"""One fit: equations solved, their coefficients' errors, and the verdict on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sklearn_implicitreg.exceptions import CollinearTermsWarning, warn_user
from sklearn_implicitreg.penalties.shape import Shape
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.inference import (
    OVER_ROWS,
    Inference,
    infer,
    one_data_set,
    over_rows,
    spread,
    without_numbers,
)
from sklearn_implicitreg.regression.place import Inequalities, Place
from sklearn_implicitreg.regression.readings import share_of_readings, with_readings
from sklearn_implicitreg.regression.restrictions import denominator, wald
from sklearn_implicitreg.regression.solve import Solution, solve, solve_system, solve_with_free
from sklearn_implicitreg.regression.spread import deviations
from sklearn_implicitreg.regression.system import Array, System
from sklearn_implicitreg.regression.verdict import (
    Measures,
    Verdict,
    cause_at,
    is_explained,
    judge,
)
from sklearn_implicitreg.regression.zeros import with_zeros

_LEFT = 1e-3  # of the summands of the gradient: what a solver leaves
_ZERO = 1e-3  # level of the test that a term is zero, beside whose shape


@dataclass(frozen=True)
class Settings:
    """How equations are solved and which standard errors are computed."""

    positive: bool = False
    covariance: str = "auto"
    confidence_level: float = 0.95
    random_state: Any = None  # of a bootstrap over rows


@dataclass(frozen=True, eq=False)
class Result:
    """What a fit found, without data or weights; None where a family has no columns."""

    term_names: Sequence[str]
    coef: Array
    conf_int: Array | None
    r2: float
    cosine: Array
    n_equations: int
    verdict: Verdict
    penalty: Any
    solution: Solution | None = None  # of a regression on columns
    inference: Inference | None = None
    family: Sequence[int] = ()  # which columns are of the family; the others are nuisance columns
    path: Array | None = None  # (W, k), coefficients of every window or endpoint alone
    bands: Array | None = None  # (W, k, 2), their intervals
    noise_share: float = 0.0  # of the mean target
    signal_share: float | None = None  # what the family explains of the rest
    stated: Array | None = None  # (k,), the coefficients without those that can be left out
    tested: Inequalities | None = None  # of coordinates at a kink
    same: float | None = None  # share that one coefficient explains of what each place's do
    scale_invariant: tuple[str, ...] = ()  # tensors whose scale the loss does not see
    whole: tuple[Any, Any] | None = None  # family solved as a whole, what its solver found
    shapes: tuple[Shape, ...] = ()  # parameters of the terms that were found

    def regression(self) -> tuple[Solution, Inference]:
        """Solution and standard errors of a regression on columns."""
        if self.solution is None or self.inference is None:
            raise ValueError(
                f"Expected the fit of a family of terms, got {self.solved_as_whole()[0]!r}, which "
                "is solved as a whole; read coef_, penalty_ and summary()."
            )
        return self.solution, self.inference

    def solved_as_whole(self) -> tuple[Any, Any]:
        """The family that was solved as a whole, and what its solver found."""
        assert self.whole is not None
        return self.whole


def fit(equations: Equations, settings: Settings) -> Result:
    """Solve the equations, infer and judge, each once; warn of dependent columns."""
    result = judged_fit(equations, settings)
    solution = result.solution
    if solution is not None and solution.rank < solution.n_terms and solution.tss > 0:
        _warn_of_dependence(solution, equations.system)
    return result


def judged_fit(equations: Equations, settings: Settings) -> Result:
    """The same without the warning, which the verdict says as well."""
    ready = equations.counted.in_range()
    with np.errstate(over="ignore", invalid="ignore"):  # what is out of range raises an error
        result = _fitted(ready, settings)
        result = result if ready.judged.powers is None else _unscaled(result, ready)
    return result if equations.tangent is None else _of_terms(result, equations)


def _of_terms(result: Result, equations: Equations) -> Result:
    """The result without the slopes of shapes, and the intervals that these give."""
    solution, inference = result.regression()
    names = result.term_names
    kept = [i for i, name in enumerate(names) if name in equations.term_names]
    place = {old: new for new, old in enumerate(kept)}
    shapes = tuple(
        _with_interval(shape, names.index(shape.name), kept, result)
        if shape.name in names and shape.interval
        else shape
        for shape in equations.shapes
    )
    solution = replace(
        solution,
        coef=solution.coef[kept],
        cosine=solution.cosine[kept],
        vif=solution.vif[kept],
        reach=solution.reach[kept],
        active=solution.active[kept],
        dependent=tuple(place[i] for i in solution.dependent if i in place),
        n_shapes=len(shapes),
    )
    units = inference.units
    inference = replace(
        inference,
        std_err=inference.std_err[kept],
        tvalues=inference.tvalues[kept],
        pvalues=inference.pvalues[kept],
        conf_int=inference.conf_int[kept],
        cov=inference.cov[np.ix_(kept, kept)],
        units=units[kept] if isinstance(units, np.ndarray) else units,
    )
    assert result.stated is not None
    return replace(
        result,
        term_names=[names[i] for i in kept],
        coef=solution.coef,
        conf_int=inference.conf_int,
        cosine=solution.cosine,
        penalty=equations.penalty(solution),
        solution=solution,
        inference=inference,
        family=[place[i] for i in result.family if i in place],
        path=None if result.path is None else result.path[:, kept],
        bands=None if result.bands is None else result.bands[:, kept],
        stated=result.stated[kept],
        shapes=shapes,
    )


def _with_interval(shape: Shape, column: int, kept: list[int], result: Result) -> Shape:
    """A shape with the interval of its logarithm, unless its terms may be zero."""
    solution, inference = result.regression()
    own = [kept[i] for i in shape.columns]
    terms = np.eye(len(inference.std_err))[own]
    # The best of many shapes fits noise as several terms do: the level of the test is strict.
    p_value = wald(terms, solution.coef[own], inference)[1]
    if not np.isfinite(p_value):
        return shape.failing("the coefficient of its term has no standard error")
    if not inference.exact and not p_value < _ZERO:
        return shape.failing("not identifiable, its term may explain nothing")
    error = float(inference.std_err[column])
    half = float(inference.conf_int[column, 1] - inference.conf_int[column, 0]) / 2
    with np.errstate(over="ignore", under="ignore"):  # hardly known: from 0 to infinity
        ends = (shape.value * float(np.exp(-half)), shape.value * float(np.exp(half)))
    return replace(shape, std_err=shape.value * error, conf_int=ends)


def verdict_on(equations: Equations, positive: bool) -> Verdict:
    """The verdict of a fit, with no more computed than it goes by."""
    covariance = "ols" if equations.mean is None else "auto"
    return _fitted(equations.counted.in_range(), Settings(positive, covariance)).verdict


def _unscaled(result: Result, ready: Equations) -> Result:
    """The result of equations that were multiplied, in the units of those given."""
    solution, inference = result.regression()
    units, powers = ready.units, ready.judged.powers
    assert powers is not None and isinstance(units, np.ndarray) and result.stated is not None
    coef, conf_int = solution.coef * units, inference.conf_int * units[:, None]
    stated = result.stated * units
    size = np.abs(stated[result.stated != 0])
    if ((size < np.finfo(np.float64).tiny) | ~np.isfinite(size)).any():
        raise ValueError(
            f"Expected coefficients in the range of float64, got {stated.tolist()}; give the data "
            "in other units, such as X divided by its largest number."
        )
    log = solution.n_equations * float(np.log(powers[-1]))
    return replace(
        result,
        coef=coef,
        conf_int=conf_int,
        solution=replace(
            solution,
            coef=coef,
            norm=solution.norm / float(powers[-1]),
            reach=solution.reach * powers[:-1],
        ),
        inference=replace(
            inference,
            std_err=inference.std_err * units,
            conf_int=conf_int,
            units=units,
            log_likelihood=inference.log_likelihood + log,
            aic=inference.aic - 2 * log,
            bic=inference.bic - 2 * log,
        ),
        path=None if result.path is None else result.path * units,
        bands=None if result.bands is None else result.bands * units[:, None],
        stated=stated,
    )


def _fitted(equations: Equations, settings: Settings) -> Result:
    eps, system = equations.eps, equations.system
    solution = _solved(equations, system, eps, settings.positive)
    alone: list[Solution] = []
    path = bands = None
    if equations.cluster != "tensor":
        systems = [place.system for place in equations.places]
        alone = [_solved(equations, own, eps, settings.positive) for own in systems]
        path, bands = _coef_path(systems, alone, settings)
    inference = _inferred(equations, solution, path, settings)
    inference = with_readings(equations, solution, inference)
    shown, family = solution, solution
    if equations.mean or equations.nuisance:
        shown, family = _of_family(equations, solution)
    noise_share = equations.noise_share(() if system.instrumented else alone)
    noise_share = max(noise_share, share_of_readings(equations))
    solutions = (solution, family, alone)
    tested, invariant, verdict = _judged(equations, solutions, inference, noise_share)
    if equations.mean is None and solution.norm <= equations.rounding:
        shown, inference = without_numbers(solution, inference)
    return Result(
        term_names=list(system.term_names),
        coef=shown.coef,
        conf_int=inference.conf_int,
        r2=shown.r2,
        cosine=shown.cosine,
        n_equations=shown.n_equations,
        verdict=verdict,
        penalty=equations.penalty(solution),
        solution=shown,
        inference=inference,
        family=equations.family,
        path=path,
        bands=bands,
        noise_share=noise_share,
        same=None if equations.variation is None else equations.variation.same,
        stated=with_zeros(
            system,
            solution,
            rounding=equations.rounding,
            pvalues=inference.pvalues,
            at_end=equations.mean is None,
            signal=verdict.label != "no signal" or _unfinished(equations, solution),
        ),
        signal_share=_share_of_signal(equations, solution) if equations.noisy else None,
        tested=tested,
        scale_invariant=invariant,
    )


def _unfinished(equations: Equations, solution: Solution) -> bool:
    """Whether the gradient is more than what a solver leaves of its summands."""
    return solution.norm > _LEFT * equations.rounding / (100 * equations.eps)


def judged_solution(equations: Equations, positive: bool) -> Solution:
    """Coefficients of the family, with R2 where it is judged: of the mean over windows."""
    found = _solved(equations, equations.system, equations.eps, positive)
    return _of_family(equations, found)[1] if equations.mean or equations.nuisance else found


def _solved(equations: Equations, system: System, eps: float, positive: bool) -> Solution:
    """Solution of a system, in which a nuisance column may have any sign."""
    n = system.n_equations
    found = solve_system(system, positive=positive, eps=eps)
    if positive and equations.slopes:
        return solve_with_free(system, (*equations.slopes, *equations.nuisance), eps)
    if not positive or not equations.nuisance:
        return found
    sign = np.where(np.isin(system.term_names, equations.nuisance), -1.0, 1.0)
    turned = solve(system.r_factor * np.append(sign, 1.0), n, positive=True, eps=eps)
    if turned.residual < found.residual:
        found = replace(turned, coef=turned.coef * sign, cosine=turned.cosine * sign)
    return replace(found, active=found.active | (sign < 0))


def _warn_of_dependence(solution: Solution, system: System) -> None:
    names = [system.term_names[i] for i in solution.dependent]
    warn_user(
        f"The gradients of {names} are zero or linearly dependent over these equations: the "
        "coefficients are the minimum-norm answer of many. Drop terms.",
        CollinearTermsWarning,
    )


def _coef_path(
    systems: Sequence[System], alone: Sequence[Solution], settings: Settings
) -> tuple[Array, Array]:
    """Coefficients of every place alone, (W, k), and their intervals, (W, k, 2)."""
    coefs, bands = [], []
    for system, found in zip(systems, alone, strict=True):
        k = system.n_terms
        if system.n_equations < k:
            coefs.append(np.full(k, np.nan))
            bands.append(np.full((k, 2), np.nan))
            continue
        # A window may have no equation of a group, all of whose tensors it did not update.
        coefs.append(np.where(system.r_factor[:, :k].any(axis=0), found.coef, np.nan))
        bands.append(infer(system, found, confidence_level=settings.confidence_level).conf_int)
    return np.array(coefs), np.array(bands)


def _inferred(
    equations: Equations, solution: Solution, path: Array | None, settings: Settings
) -> Inference:
    """Standard errors; of endpoints by what they are of, unless a covariance was named."""
    level, rounding = settings.confidence_level, equations.rounding
    if settings.covariance in OVER_ROWS:
        return _over_rows(equations.places[0], solution, settings, rounding)
    if equations.cluster == "endpoint" and settings.covariance == "auto" and path is not None:
        if equations.sampling == "resamples":
            return spread(solution, path, level, rounding)
        if equations.sampling == "one data set":
            return one_data_set(solution, level, rounding)
    return infer(
        equations.system,
        solution,
        covariance=settings.covariance,
        confidence_level=level,
        rounding=rounding,
    )


def _over_rows(place: Place, solution: Solution, settings: Settings, rounding: float) -> Inference:
    """Standard errors over rows at fixed weights, from the products of the columns with blocks."""
    kind = settings.covariance
    if place.spread is None:
        raise ValueError(
            f"Expected the equations of one model on its rows for covariance={kind!r}, got some of "
            "its tensors alone, or arrays; use covariance='auto'."
        )
    if place.problem.ranks is not None and kind == "bootstrap" and settings.random_state is None:
        raise ValueError(
            "Expected an integer as random_state with covariance='bootstrap' on several ranks, "
            "which draw the same numbers with it, got None."
        )
    upper = place.system.r_factor
    away = deviations(place.spread, upper, solution.active, place.powers, solution.eps)
    given = (settings.confidence_level, rounding, settings.random_state)
    return over_rows(solution, *away, kind, *given)


def _of_family(equations: Equations, stacked: Solution) -> tuple[Solution, Solution]:
    """The coefficients with the family's R2 and cosines, of windows in their mean."""
    kept = equations.family
    system = equations.paired or (equations.mean or equations).system
    upper = equations.without_nuisance(system)
    if equations.paired is not None:  # the shared terms are those of both models
        upper = equations.paired.beyond(stacked.coef, kept)
    size = float(upper[:, -1] @ upper[:, -1])
    away = upper[:, -1] - upper[:, :-1] @ stacked.coef[kept]
    signal = size**0.5 > equations.rounding
    shortfall = min(1.0, float(away @ away) / size) if signal else 1.0
    family = solve(upper, system.n_equations, eps=stacked.eps)
    cosine = np.array(stacked.cosine)
    cosine[kept] = family.cosine
    r2 = 1.0 - shortfall
    shown = replace(stacked, norm=size**0.5, r2=r2, shortfall=shortfall, cosine=cosine)
    coef, active = stacked.coef[kept], stacked.active[kept]
    return shown, replace(family, coef=coef, active=active, r2=r2, shortfall=shortfall)


def _judged(
    equations: Equations,
    solutions: tuple[Solution, Solution, Sequence[Solution]],
    inference: Inference,
    noise_share: float,
) -> tuple[Inequalities | None, tuple[str, ...], Verdict]:
    """Inequalities at kinks, tensors of no scale, and the verdict."""
    solution, family, alone = solutions
    changes, differences = _variation(equations, solution)
    along = equations.mean is not None
    tested = None if along else equations.tested(family)
    invariant, dominates = ((), False) if along else equations.scale_invariant()
    places = equations.places if equations.mean is None else (equations.mean,)
    noisy, n_kinks = equations.noisy, 0
    for place in places:
        n_kinks += place.gradient.n_kinks
    names = tuple(equations.term_names[i] for i in equations.family)
    verdict = judge(
        Measures.of(family, names),
        rounding=equations.rounding,
        scale_invariant=invariant if dominates else (),
        n_kinks=n_kinks,
        noise_share=noise_share,
        evidence=equations.evidence,
        agreement=equations.agreement,
        cause=cause_at(
            has_paths=places[0].problem.is_net,
            each_explained=not along and len(alone) > 1 and all(map(is_explained, alone)),
            along=along,
        ),
        insignificant=_insignificant(equations, family.coef, inference) if noisy else None,
        n_violated=(tested and tested.n_violated) or 0,
        changes=changes,
        differences=differences,
    )
    if equations.objection:
        verdict = replace(verdict, label="out of family", sentence=equations.objection)
    return tested, invariant, verdict


def _variation(equations: Equations, solution: Solution) -> tuple[str, str]:
    """Sentences where one coefficient for all places is rejected, and where less is known."""
    found = equations.variation
    if found is None or not found.differs:
        return "", ""
    along = equations.mean is not None
    places = "windows" if along else "endpoints"
    # At an endpoint what its own coefficients leave is noise of SGD or a missing term: either can
    # look like coefficients that differ.
    missing = max(0.0, equations.signal(solution.coef)[0]) if along else found.left
    if found.change > missing:
        return (
            f"the coefficients change from one of the {places} to another (coef_path_): one for "
            f"all is rejected ({found.in_words()}).",
            "",
        )
    return "", f"The coefficients of the {places} differ ({found.in_words()})."


def _insignificant(equations: Equations, coef: Array, inference: Inference) -> str:
    """Sentence where the joint test of the family's coefficients does not reject."""
    if inference.covariance != "cluster":
        return ""
    names, kept = equations.term_names, equations.family
    own = [j for j, i in enumerate(kept) if names[i] not in equations.slopes]
    q, family, coef = len(own), np.eye(len(names))[[kept[j] for j in own]], coef[own]
    statistic, p_value = wald(family, coef, inference)
    if not p_value >= 0.05:
        return ""
    return (
        f"the joint test over windows does not reject that all coefficients are zero "
        f"(F({q}, {denominator(q, inference):g}) = {statistic:.3g}, p = {p_value:.3g})."
    )


def _share_of_signal(equations: Equations, solution: Solution) -> float | None:
    """What the family explains of the mean target once noise is removed from both."""
    system, coef, kept = equations.system, solution.coef, equations.family
    if system.instrumented:
        explained = system.explained_by_instruments(coef, kept) / len(equations.places)
        signal = explained + max(0.0, equations.signal(coef)[0])
    else:
        upper = equations.without_nuisance(equations.judged.system)
        explained = float(np.square(upper[:, :-1] @ coef[kept]).sum())
        signal = equations.signal()[0]
    return min(1.0, explained / signal) if signal > 0 else None
