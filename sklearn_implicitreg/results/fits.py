"""Fits, one function for each kind of equations: solved, tested, judged and described."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sklearn_implicitreg.exceptions import CollinearTermsWarning
from sklearn_implicitreg.penalties import FittedPenalty
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.inference import Inference, Verdict, infer, judge
from sklearn_implicitreg.regression.resampling import one_data_set, spread
from sklearn_implicitreg.regression.solve import Solution, solve
from sklearn_implicitreg.regression.stacks import StackedEquations
from sklearn_implicitreg.regression.system import Array, GradientSystem
from sklearn_implicitreg.regression.verdict import cause_at, is_explained, rounding_of
from sklearn_implicitreg.results.attributes import Result, without_numbers
from sklearn_implicitreg.results.fit_description import Facts, precomputed_facts
from sklearn_implicitreg.results.paths import PathFit
from sklearn_implicitreg.trajectory.equations import NUISANCE, PathEquations

__all__ = ["Settings", "fit_arrays", "fit_equations", "fitted_penalty"]

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Settings:
    """How equations are solved and what standard errors are told."""

    positive: bool = False
    covariance: str = "auto"
    confidence_level: float = 0.95

    def solved(self, system: GradientSystem, eps: float, stacklevel: int = 6) -> Solution:
        """Solution of a system; warns the caller of ``fit`` where the columns are dependent."""
        solution = _solved(system, eps, self.positive)
        if solution.rank < system.n_terms and solution.tss > 0:
            names = [system.term_names[i] for i in solution.dependent]
            warnings.warn(
                f"The gradients of {names} are zero or linearly dependent over these equations: "
                "the coefficients are the minimum-norm answer of many. Drop terms.",
                CollinearTermsWarning,
                stacklevel=stacklevel,
            )
        return solution

    def inferred(self, system: GradientSystem, solution: Solution) -> Inference:
        """Standard errors of a solution."""
        level = self.confidence_level
        return infer(system, solution, covariance=self.covariance, confidence_level=level)


def fit_equations(
    equations: Equations | StackedEquations,
    settings: Settings,
    evidence: tuple[str, str] = ("", ""),
) -> Result:
    """Fit of a trained model, of several endpoints or of a path."""
    if isinstance(equations, PathEquations):
        return _fit_windows(equations, settings)
    return _fit_endpoints(equations, settings, evidence)


def fit_arrays(system: GradientSystem, settings: Settings) -> Result:
    """Fit of equations that were given as arrays."""
    solution = settings.solved(system, _EPS, stacklevel=5)
    verdict = judge(solution, system.term_names, rounding=0.0)
    inference = settings.inferred(system, solution)
    return _finished(system, solution, verdict, precomputed_facts(), inference)


def _fit_endpoints(
    equations: Equations | StackedEquations, settings: Settings, evidence: tuple[str, str]
) -> Result:
    system = equations.system
    eps = max(part.problem.eps for part in equations.parts)
    solution = settings.solved(system, eps)
    invariant, dominates = equations.scale_invariant()
    tested = equations.tested(solution)
    alone = _alone(equations, settings, eps)
    verdict = judge(
        solution,
        system.term_names,
        rounding=equations.rounding,
        n_violated=tested.n_violated if tested else 0,
        scale_invariant=invariant,
        scale_invariant_dominates=dominates,
        n_kinks=sum(part.gradient.n_kinks for part in equations.parts),
        evidence=evidence[0],
        agreement=evidence[1],
        cause=cause_at(
            has_paths=equations.problem.has_paths,
            each_explained=len(alone) > 1 and all(map(is_explained, alone)),
        ),
    )
    facts = Facts.of(equations, solution, invariant, tested)
    penalty = fitted_penalty(equations, solution)
    if not isinstance(equations, StackedEquations):
        inference = settings.inferred(system, solution)
        return _finished(system, solution, verdict, facts, inference, penalty)
    path = coef_path(equations, alone, settings)
    inference = _over_endpoints(equations, solution, path[0], settings)
    result = _finished(system, solution, verdict, facts, inference, penalty)
    return replace(result, path=path)


def _over_endpoints(
    equations: StackedEquations, solution: Solution, path: Array, settings: Settings
) -> Inference:
    """Standard errors by what the endpoints are of, unless a covariance was named."""
    level = settings.confidence_level
    if settings.covariance == "auto" and equations.sampling == "resamples":
        return spread(solution, path, level)
    if settings.covariance == "auto" and equations.sampling == "one data set":
        return one_data_set(solution, level)
    return settings.inferred(equations.system, solution)


def _fit_windows(equations: PathEquations, settings: Settings) -> Result:
    system, eps = equations.system, equations.problem.eps
    stacked = settings.solved(system, eps)
    fit = PathFit(equations, stacked)
    inference = settings.inferred(system, stacked)
    verdict = fit.verdict(inference)
    return Result(
        system.term_names,
        fit.solution,
        inference.at_rounding(stacked, rounding_of(verdict)),
        verdict,
        fit.facts(),
        fitted_penalty(equations.mean, stacked),
        coef_path(equations, _alone(equations, settings, eps), settings),
    )


def _finished(
    system: GradientSystem,
    solution: Solution,
    verdict: Verdict,
    facts: Facts,
    inference: Inference,
    penalty: FittedPenalty | None = None,
) -> Result:
    """Result with standard errors; NaN where the gradient is zero to rounding."""
    rounding = rounding_of(verdict)
    if solution.tss**0.5 <= rounding:
        solution, inference = without_numbers(solution, inference)
    else:
        inference = inference.at_rounding(solution, rounding)
    return Result(system.term_names, solution, inference, verdict, facts, penalty)


def _solved(system: GradientSystem, eps: float, positive: bool) -> Solution:
    """Solution of a system, in which the column of mini-batching may have any sign."""
    n = system.n_equations
    found = solve(system.r_factor, n, positive=positive, eps=eps)
    if not positive or NUISANCE not in system.term_names:
        return found
    sign = np.where(np.array(system.term_names) == NUISANCE, -1.0, 1.0)
    turned = solve(system.r_factor * np.append(sign, 1.0), n, positive=True, eps=eps)
    if turned.rss < found.rss:
        found = replace(turned, coef=turned.coef * sign, cosine=turned.cosine * sign)
    return replace(found, active=found.active | (sign < 0))


def _alone(
    equations: Equations | StackedEquations, settings: Settings, eps: float
) -> list[Solution]:
    """Solution of every place by itself, however few its equations are."""
    systems = [part.reduced for part in equations.parts]
    return [_solved(system, eps, settings.positive) for system in systems]


def coef_path(
    equations: StackedEquations, alone: Sequence[Solution], settings: Settings
) -> tuple[Array, Array]:
    """Coefficients of every place by itself (W, k), and their intervals (W, k, 2).

    NaN where a place alone has fewer equations than there are coefficients.
    """
    coefs, bands = [], []
    for part, found in zip(equations.parts, alone, strict=True):
        system = part.reduced
        k = system.n_terms
        if system.n_equations < k:
            coefs.append(np.full(k, np.nan))
            bands.append(np.full((k, 2), np.nan))
            continue
        band = infer(system, found, confidence_level=settings.confidence_level)
        coefs.append(found.coef)
        bands.append(band.conf_int)
    return np.array(coefs), np.array(bands)


def fitted_penalty(equations: Equations | StackedEquations, solution: Solution) -> FittedPenalty:
    """The penalty with its coefficients, for the tensors in scope; zero without a gradient."""
    first = equations.parts[0]
    signal = solution.tss**0.5 > equations.rounding
    coef = solution.coef if signal else np.zeros(solution.n_terms)
    start = 0
    leaves = []
    for leaf, n in first.columns.leaves:
        leaves.append((leaf, tuple(coef[start : start + n].tolist())))
        start += n
    return FittedPenalty.of(tuple(leaves), first.problem)
