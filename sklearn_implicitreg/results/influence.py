"""How much a single equation pulls at the coefficients: leverage, residuals, Cook's distance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.problem.parameters import NOTHING, check, integer
from sklearn_implicitreg.regression.inference import FULL_LEVERAGE
from sklearn_implicitreg.regression.solve import Solution, decompose
from sklearn_implicitreg.regression.system import Array, System

_CHUNK = 2**17  # numbers in a chunk of rows, as when R factors are made
_MEASURES = ("hat_diag", "resid", "standard_resid", "student_resid", "cooks_d", "dffits")


def influence(
    system: System, solution: Solution, problem: Problem, top: int | None = None
) -> pd.DataFrame:
    """Influence of every equation, or of those with the largest Cook's distance."""
    if not np.isfinite(solution.coef).all():
        raise ValueError("Expected coefficients, got NaN: there is no gradient to explain.")
    if not solution.active.any():
        raise ValueError(
            "Expected a coefficient above zero, got none: positive=True left all at 0."
        )
    check("influence", {"top": top}, {"top": NOTHING | integer(1)})
    powers, unit = system.powers(), 1.0
    if powers is not None:  # squares would be out of range; the other measures have no units
        system, unit = system.scaled(powers), float(powers[-1])
        solution = replace(solution, coef=solution.coef / (powers[:-1] / unit))
    hat = _Hat.of(system, solution)
    names = [*_MEASURES, *(f"dfb_{name}" for name in system.term_names)]
    chunks: list[pd.DataFrame] = []
    step = max(1, _CHUNK // (solution.n_terms + 1))
    for label, index, design, target in system.single("for their influence"):
        for start in range(0, len(target), step):
            rows = slice(start, start + step)
            values = hat.measures(design[rows], target[rows])
            values[:, _MEASURES.index("resid")] /= unit
            places = problem.labels(label[-1], index[rows]) if label else index[rows]
            chunks.append(pd.DataFrame(values, index=_index(label, places), columns=names))
            if top is not None:
                joined = pd.concat(chunks).sort_values("cooks_d", ascending=False, kind="stable")
                chunks = [joined.head(top)]
    return pd.concat(chunks)


@dataclass(frozen=True)
class _Hat:
    """What the measures of all rows share."""

    whitener: Array  # (k, r), zero for terms that are not in use
    coef: Array
    rss: float
    df: int
    norms: Array  # (k,), what the changes are divided by; NaN where there is no answer

    @classmethod
    def of(cls, system: System, solution: Solution) -> _Hat:
        used = np.flatnonzero(solution.active)
        part = system.select([system.term_names[i] for i in used])
        spectrum = decompose(part.r_factor, eps=solution.eps)
        whitener = np.zeros((system.n_terms, spectrum.rank))
        whitener[used] = spectrum.whitener
        # Along a trajectory the solution holds the residual of the mean over the windows.
        residual = system.r_factor[:, -1] - system.r_factor[:, :-1] @ solution.coef
        norms = np.linalg.norm(whitener, axis=1)
        norms[[*np.flatnonzero(~solution.active), *solution.dependent]] = np.nan
        df = system.n_equations - spectrum.rank
        return cls(whitener, solution.coef, float(residual @ residual), df, norms)

    def measures(self, design: Array, target: Array) -> Array:
        """Measures of some rows, (rows, 6 + k), as in Belsley, Kuh and Welsch (1980), chapter 2."""
        # Leverage 1: the equation alone determines a coefficient. Cook's distance is infinite,
        # the measures by the variance without the equation are NaN.
        basis = design @ self.whitener
        resid = target - design @ self.coef
        leverage = np.einsum("ij,ij->i", basis, basis)
        alone = leverage >= 1 - FULL_LEVERAGE
        rest = np.where(alone, np.nan, 1 - leverage)
        with np.errstate(divide="ignore", invalid="ignore"):
            without = np.maximum(self.rss - resid**2 / rest, 0.0) / np.float64(self.df - 1)
            spread = np.sqrt(without) if self.df > 1 else np.full(len(resid), np.nan)
            standard = resid / np.sqrt(self.rss / np.float64(self.df) * rest)
            student = resid / (spread * np.sqrt(rest))
            cook = standard**2 * leverage / (rest * basis.shape[1])
            change = (basis @ self.whitener.T) * (resid / (rest * spread))[:, None]
            change /= self.norms
        cook[alone] = np.inf
        fits = student * np.sqrt(leverage / rest)
        return np.column_stack([leverage, resid, standard, student, cook, fits, change])


def _index(label: tuple[str, ...], places: npt.NDArray[Any]) -> pd.Index[Any]:
    """Name of the window or endpoint where there is one, tensor and coordinate."""
    if not label:
        return pd.Index(places)
    names = ["cluster", "tensor", "coordinate"][-len(label) - 1 :]
    return pd.MultiIndex.from_product([*([part] for part in label), places], names=names)
