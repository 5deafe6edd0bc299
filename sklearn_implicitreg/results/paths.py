"""Fits along a recorded path: its equations, its solution and what they allow one to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties.gradients import GradientNorm
from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.regression.inference import Inference
from sklearn_implicitreg.regression.restrictions import wald
from sklearn_implicitreg.regression.solve import Solution, decompose, solve
from sklearn_implicitreg.regression.system import Array, r_factor
from sklearn_implicitreg.regression.verdict import Verdict, judge
from sklearn_implicitreg.results.fit_description import Facts
from sklearn_implicitreg.trajectory.equations import NUISANCE, PathEquations, PathTargets
from sklearn_implicitreg.trajectory.instruments import InstrumentedSystem
from sklearn_implicitreg.trajectory.reduced import targets_of
from sklearn_implicitreg.trajectory.references import Flow, as_reference
from sklearn_implicitreg.trajectory.smoothness import Kinks, find_kinks
from sklearn_implicitreg.trajectory.step_size import finite_step_factor, minibatch_factor
from sklearn_implicitreg.trajectory.trajectory import Trajectory

__all__ = ["PathFit", "path_of", "path_targets"]


def path_targets(
    model: Any,
    data: Data,
    options: Options,
    trajectory: Any,
    reference: Any,
    window: Any,
    verbose: int = 0,
) -> PathTargets:
    """Targets of a path, or of the path that a probe makes.

    Raises
    ------
    ValueError
        If there is no path, or it is one of another model.
    """
    if trajectory is None:
        raise ValueError(
            "mode='trajectory' needs `trajectory=`; record one with `record(model, optimizer)`."
        )
    options = replace(options, trained_batch_size=_batch_size(trajectory))
    problem = adapt(model, data, options)
    path = path_of(model, data, problem, trajectory)
    if path.settings.get("follows") == "mean loss":  # whatever the model was trained on
        problem = replace(problem, trained_factor=1.0, trained_sum=False)
    return targets_of(problem, path, as_reference(reference, window), window, verbose)


def _batch_size(trajectory: Any) -> int | None:
    """Rows of the largest batch of a path that was recorded, if known."""
    path = getattr(trajectory, "trajectory", trajectory)
    sizes = [step.batch_size for step in getattr(path, "steps", ()) if step.batch_size]
    return max(sizes, default=None)


def path_of(model: Any, data: Data, problem: Problem, trajectory: Any) -> Trajectory:
    """The path, or the one that a probe makes, of a model.

    Raises
    ------
    ValueError
        If it is one of another model.
    TypeError
        If it is neither a path nor a probe.
    """
    for own in ("trajectory", "trajectory_"):  # of a recorder
        trajectory = getattr(trajectory, own, trajectory)
    path: Trajectory = trajectory
    if not isinstance(trajectory, Trajectory):
        if isinstance(trajectory, type) or not hasattr(trajectory, "run"):
            raise TypeError(
                "Expected trajectory to be a Trajectory, such as the `trajectory` of a recorder, "
                f"or a probe, such as ContinueTraining(...), got {trajectory!r}."
            )
        path = trajectory.run(model, data, problem.whole())
    missing = [name for name in problem.params if name not in path.names]
    if missing:
        raise ValueError(
            f"Expected a path of this model, which has {list(problem.params)}, got one of "
            f"{list(path.names)}."
        )
    return path


@dataclass(frozen=True)
class PathFit:
    """Solution along a path and what follows from it.

    Parameters
    ----------
    equations : PathEquations
    stacked : Solution
        Of the equations of all windows.
    """

    equations: PathEquations
    stacked: Solution

    @property
    def solution(self) -> Solution:
        """The shared coefficients, with R2 and cosines of the mean over the windows.

        The nuisance column is projected out of the mean target and of the family's columns.
        """
        reduced, kept = self._mean_without_nuisance()
        size = float(reduced[:, -1] @ reduced[:, -1])
        away = reduced[:, -1] - reduced[:, :-1] @ self.stacked.coef[kept]
        shortfall = min(1.0, float(away @ away) / size) if size else 1.0
        cosine = np.array(self.stacked.cosine)
        cosine[kept] = solve(reduced, self.stacked.n_equations, eps=self.stacked.eps).cosine
        return replace(
            self.stacked,
            tss=size,
            rss=shortfall * size,
            r2=1.0 - shortfall,
            shortfall=shortfall,
            cosine=cosine,
        )

    def verdict(self, inference: Inference) -> Verdict:
        """By R2 of the mean and its measured noise; no signal where the joint test says so.

        The step-size penalty of a loss with kinks is out of the family whatever R2 says.
        """
        equations, solution = self.equations, self.solution
        reduced, kept = self._mean_without_nuisance()
        family = solve(reduced, equations.mean.system.n_equations, eps=self.stacked.eps)
        shown = replace(
            family,
            coef=solution.coef[kept],
            r2=solution.r2,
            shortfall=solution.shortfall,
            active=self.stacked.active[kept],
        )
        verdict = judge(
            shown,
            [equations.system.term_names[i] for i in kept],
            rounding=equations.mean.rounding,
            n_kinks=equations.mean.gradient.n_kinks,
            noise_share=self.noise_share(),
            on_path=True,
            insignificant=self._insignificant(inference, kept),
        )
        if self._of_step_size:
            kinks = self._kinks
            if not kinks.smooth:
                return replace(verdict, label="out of family", sentence=kinks.note)
        return verdict

    @property
    def _of_step_size(self) -> bool:
        """Whether a step-size penalty is held against the gradient flow."""
        leaves = self.equations.mean.columns.leaves
        flow = isinstance(self.equations.targets.reference, Flow)
        return flow and any(isinstance(leaf.penalty, GradientNorm) for leaf, _ in leaves)

    @cached_property
    def _kinks(self) -> Kinks:
        """Whether the loss is smooth on the scale of a step."""
        return find_kinks(self.equations.problem, self._lr)

    @property
    def _noisy(self) -> bool:
        """Whether chance makes the windows differ; not where steps on all rows meet the flow."""
        n_rows = self.equations.problem.n_rows or np.inf
        steps = [step for window in self.equations.windows for step in window.steps]
        flow = isinstance(self.equations.targets.reference, Flow)
        return not flow or min(step.batch_size or 0 for step in steps) < n_rows

    @property
    def _lr(self) -> float:
        """Mean step size along L: larger than the optimizer's where a step's loss is."""
        problem, windows = self.equations.problem, self.equations.windows
        rates = [w.scales(problem) * [step.lr for step in w.steps] for w in windows]
        return float(np.concatenate(rates).mean())

    def noise_share(self) -> float:
        """Share of the mean target's squared norm that differs between the windows."""
        if not self._noisy:
            return 0.0
        signal, whole = self.equations.signal()
        return float(np.clip(1.0 - signal / whole, 0.0, 1.0)) if whole else 0.0

    def coef_rounding(self) -> Array:
        """What the rounding of the recorded steps moves each coefficient by, at most, (k,).

        Its norm over all windows over the norm of the column, the other columns projected out;
        nan where the path does not know it.
        """
        problem, windows = self.equations.problem, self.equations.windows
        sizes = [window.rounding / window.scales(problem).min() for window in windows]
        size = np.linalg.norm(sizes)
        whitener = decompose(self.equations.system.r_factor, eps=self.stacked.eps).whitener
        bound: Array = size * np.linalg.norm(whitener, axis=1)
        return bound

    def facts(self) -> Facts:
        """Header lines and notes of the summary."""
        equations = self.equations
        problem = equations.problem
        n_steps = sum(window.n_steps for window in equations.windows)
        share = self._share_of_signal()
        header = [
            ("Model", problem.model_name),
            ("Loss", problem.loss_name),
            ("Path", f"{n_steps} steps in {len(equations.windows)} windows"),
            ("|mean deviation|", f"{self.solution.tss**0.5:.4g}"),
            ("Noise share", f"{self.noise_share():.3g}"),
        ]
        if share is not None:
            header.append(("R2, noise removed", f"{share:.4f}"))
        notes = [*problem.notes, *equations.targets.notes, *self._theory()]
        notes += [*self._rounding(), *self._columns()]
        if problem.left_out:
            notes.append(f"Parameters without equations: {', '.join(problem.left_out)}.")
        known = equations.mean.columns.known_terms
        if known:
            notes.append(f"Known, and moved to the side of the loss: {', '.join(known)}.")
        return Facts(tuple(header), tuple(notes), 1.0, problem.convention, False, known)

    def _columns(self) -> list[str]:
        """Where along the path the columns were taken, if not at every step."""
        if isinstance(self.equations.system, InstrumentedSystem):
            return [
                "Coefficients by instrumental variables: the columns are random draws and the path "
                "remembers its own, so columns of other draws at each window's start stand in "
                "for them in the products with the target."
            ]
        if any(len(w.inside) < w.n_steps for w in self.equations.windows):
            return ["Columns are means over the mean iterates between marks, not over every step."]
        return []

    def _rounding(self) -> list[str]:
        """The bound on what rounding did to the coefficients, where it is known."""
        bounds = self.coef_rounding()
        if not np.isfinite(bounds).all():
            return []
        named = zip(self.equations.system.term_names, bounds, strict=True)
        told = ", ".join(f"{bound:.2g} ({name})" for name, bound in named)
        return [f"Rounding of the recorded steps moves the coefficients by at most {told}."]

    def _share_of_signal(self) -> float | None:
        """What the family explains of the mean target once noise is removed from both.

        The path remembers random masks, and so do products of targets; those of residuals do
        not, so with instruments the signal is what is explained and what is left. The nuisance
        column is left out. None where there is no signal, or no noise.
        """
        if not self._noisy:
            return None
        reduced, kept = self._mean_without_nuisance()
        system, coef = self.equations.system, self.stacked.coef
        if isinstance(system, InstrumentedSystem):
            explained = float(coef[kept] @ system.products_among(kept) @ coef[kept])
            explained /= len(self.equations.windows)
            signal = explained + max(0.0, self.equations.signal(coef)[0])
        else:
            explained = float(np.square(reduced[:, :-1] @ coef[kept]).sum())
            signal = self.equations.signal()[0]
        return min(1.0, explained / signal) if signal > 0 else None

    def _theory(self) -> list[str]:
        """What theory expects of coefficients that the step size or mini-batches explain."""
        notes = []
        if NUISANCE in self.equations.system.term_names:
            settings = self.equations.targets.settings
            if settings.get("optimizer") in ("SGD", "gradient descent"):
                kappa = self._minibatch_factor(settings)
                notes.append(
                    f"{NUISANCE}: theory expects lr/4 times {kappa:.3g} = "
                    f"{self._lr / 4 * kappa:.4g}."
                )
            else:
                notes.append(f"{NUISANCE}: no theory for a preconditioned optimizer.")
        if self._of_step_size and self._kinks.smooth and max(self._kinks.distances) > 0:
            factor = finite_step_factor(self.equations.problem, self._lr)
            notes.append(
                f"gradient_norm: theory expects lr/4 = {self._lr / 4:.4g}, at this step size "
                f"{factor.expected_coefficient:.4g}."
            )
            if factor.note:
                notes.append(factor.note)
        return notes

    def _minibatch_factor(self, settings: Mapping[str, Any]) -> float:
        """What momentum multiplies ``lr / 4`` by, mean over the windows that tell."""
        windows = self.equations.windows
        size = getattr(self.equations.targets.reference, "sub_window", None) or np.inf
        lengths = [min(size, window.n_steps) for window in windows if window.n_steps > 1]
        momentum, nesterov = float(settings.get("momentum", 0.0)), bool(settings.get("nesterov"))
        factors = [minibatch_factor(momentum, int(n), nesterov=nesterov) for n in lengths]
        undamped = 1 - float(settings.get("dampening", 0.0)) * (momentum > 0)
        return float(np.average(factors, weights=lengths) * undamped)

    def _mean_without_nuisance(self) -> tuple[Array, list[int]]:
        """R factor of the mean over the windows with the nuisance projected out."""
        system = self.equations.mean.system
        kept = [i for i, name in enumerate(system.term_names) if name != NUISANCE]
        first = [i for i, name in enumerate(system.term_names) if name == NUISANCE]
        order = [*first, *kept, system.n_terms]
        turned = system.r_factor[:, order]
        upper = r_factor(turned[:, :-1], turned[:, -1])
        return upper[len(first) :, len(first) :], kept

    def _insignificant(self, inference: Inference, kept: list[int]) -> str | None:
        """Sentence where the joint test of the family's coefficients does not reject.

        None where there is no noise for windows to differ by.
        """
        if not self._noisy:
            return None
        if inference.covariance != "cluster":
            return ""
        q = len(kept)
        family = np.eye(self.stacked.n_terms)[kept]
        statistic, p_value = wald(family, self.stacked.coef[kept], inference)
        if not p_value >= 0.05:
            return ""
        return (
            f"the joint test over windows does not reject that all coefficients are zero "
            f"(F({q}, {inference.df:g}) = {statistic:.3g}, p = {p_value:.3g})."
        )
