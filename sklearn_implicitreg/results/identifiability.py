"""Which terms the equations of a model can tell apart, before any coefficient is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.linalg import lstsq, subspace_angles
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.base import same
from sklearn_implicitreg.penalties.held import Held
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.place import Place
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.summary import Summary

_EXACT = 1e-8  # sine of the angle to the others below which a column is a combination of them
_CONDITION = 10.0  # Belsley, Kuh and Welsch (1980): dependences begin to show in the errors
_PROPORTION = 0.5  # of the variance of a coefficient that one weak direction has
_PART = 1e-6  # of a combination, below which a column is not named in it
_MOVED = 0.1  # relative change of the weights at which a dependence is looked at again


class Dependence(NamedTuple):
    """A column that is a combination of others, and whether it is at other weights too."""

    term: str
    others: Mapping[str, float]
    everywhere: bool

    def __str__(self) -> str:
        return f"{self.term} = {_combination(self.others)}"


@dataclass(frozen=True, eq=False)
class Identifiability:
    """Which terms a model can tell apart; :func:`identifiability` makes one.

    Attributes
    ----------
    cosines_ : DataFrame of shape (k, k)
        Cosines between the gradients of the terms, on the equations of the model.
    angles_ : DataFrame of shape (F, F)
        Smallest principal angle between the columns of two families, in degrees.
    inflation_ : Series of length k
        How many times larger the other terms make the standard error of each coefficient: the root
        of the variance inflation factor; inf for a combination of others.
    dependences_ : list of Dependence
        Terms whose gradient is an exact combination of others': ``str`` has it in words,
        ``everywhere`` whether it holds at other weights too.
    groups_ : list of tuple of str
        Terms that cannot be told apart within a group, or hardly.
    advice_ : list of str
        What would help.

    See Also
    --------
    sklearn_implicitreg.inspection.IdentifiabilityDisplay : Draws the cosines.
    """

    cosines_: pd.DataFrame
    angles_: pd.DataFrame
    inflation_: pd.Series
    dependences_: Sequence[Dependence]
    groups_: Sequence[tuple[str, ...]]
    advice_: Sequence[str]
    n_equations_: int

    def summary(self) -> Summary:
        """Table of the terms, with dependences and what would help as notes.

        Returns
        -------
        summary : Summary
        """
        terms, sizes = self.cosines_.index, self.cosines_.abs().to_numpy(copy=True)
        np.fill_diagonal(sizes, -1.0)
        nearest = [terms[j] for j in sizes.argmax(axis=0)] if len(terms) > 1 else []
        pairs = zip(terms, nearest, strict=False)
        columns = {
            "nearest": nearest,
            "cosine": [f"{self.cosines_.loc[term, other]:.4f}" for term, other in pairs],
            "errors times": [f"{value:.3g}" for value in self.inflation_],
            "group": [self._group(term) for term in terms],
        }
        table = pd.DataFrame({name: own for name, own in columns.items() if own}, index=terms)
        exact = [f"{own}, {_WHERE[own.everywhere]}." for own in self.dependences_]
        header = [("Equations", str(self.n_equations_)), ("Terms", str(len(table)))]
        notes = [*exact, *self.advice_]
        return Summary("Which terms this model can tell apart", header, table, notes)

    def __str__(self) -> str:
        return str(self.summary())

    def __repr__(self) -> str:
        return (
            f"Identifiability({len(self.cosines_)} terms, {len(self.dependences_)} exact "
            f"dependences, {len(self.groups_)} groups)"
        )

    def _group(self, term: str) -> str:
        return next((str(i) for i, own in enumerate(self.groups_, 1) if term in own), "")


_WHERE = {True: "at other weights too", False: "at these weights"}


def identifiability_of(equations: Equations, families: Mapping[str, Penalty]) -> Identifiability:
    """Cosines, angles and dependences of the columns of some equations."""
    system = equations.in_r2
    names = list(system.term_names)
    columns = system.r_factor[:, :-1]
    sizes = np.linalg.norm(columns, axis=0)
    scaled = columns / np.where(sizes == 0, 1.0, sizes)
    elsewhere = _moved(equations) if len(equations.places) == 1 else columns
    found, kept = _dependences(names, columns, elsewhere)
    near = _near(scaled[:, kept], [names[j] for j in kept])
    cosines = pd.DataFrame(np.clip(scaled.T @ scaled, -1, 1), names, names)
    groups = _groups(names, [[d.term, *d.others] for d in found] + near)
    where = {name: _places_of(family, equations) for name, family in families.items()}
    zero = [name for name, size in zip(names, sizes, strict=True) if not size]
    return Identifiability(
        cosines,
        _angles(scaled, where),
        pd.Series(_inflation(scaled), names, name="inflation"),
        found,
        groups,
        _advice(found, near, zero),
        system.n_equations,
    )


def _places_of(family: Penalty, equations: Equations) -> list[int]:
    """Columns of a family among those of all."""
    place = equations.places[0]
    own = family.leaves(place.problem.params, place.problem)
    found: list[int] = []
    start = 0
    for leaf, n in place.design.leaves:
        alike = [one for one in own if (one.group, one.names) == (leaf.group, leaf.names)]
        if any(same(one.penalty, leaf.penalty) for one in alike):
            found += range(start, start + n)
        start += n
    return found


def _moved(equations: Equations) -> Array:
    """R factor of the columns at weights a tenth away; a dependence there is one of the family."""
    (here,) = equations.places
    problem, rng = here.problem, np.random.default_rng(0)
    params = {}
    for name, tensor in problem.params.items():
        factors = (1 + _MOVED * rng.standard_normal()) * (
            1 + _MOVED * rng.standard_normal(tuple(tensor.shape))
        )
        params[name] = tensor.detach() * torch.as_tensor(factors).to(tensor)
    there = problem.at(params) if problem.has_paths else replace(problem, params=params)
    held = Held([leaf for leaf, _ in here.design.leaves])
    place = Place(there, Design.at(held, there), here.gradient)
    moved: Array = place.system.r_factor[:, :-1]
    return moved


def _dependences(
    names: Sequence[str], columns: Array, elsewhere: Array
) -> tuple[list[Dependence], list[int]]:
    """Columns that are combinations of those before them, and the columns that are not."""
    found: list[Dependence] = []
    kept: list[int] = []
    for j, name in enumerate(names):
        size = np.linalg.norm(columns[:, j])
        if not size:
            continue
        coef = _coefficients(columns, kept, j)
        left = columns[:, j] - columns[:, kept] @ coef
        if np.linalg.norm(left) > _EXACT * size:
            kept.append(j)
            continue
        parts = np.abs(coef) * np.linalg.norm(columns[:, kept], axis=0)
        named = [i for i, part in enumerate(parts) if part > _PART * size]
        there = elsewhere[:, j] - elsewhere[:, kept] @ coef
        everywhere = np.linalg.norm(there) <= 10 * _EXACT * np.linalg.norm(elsewhere[:, j])
        others = {names[kept[i]]: float(coef[i]) for i in named}
        found.append(Dependence(name, others, bool(everywhere)))
    return found, kept


def _coefficients(columns: Array, kept: list[int], j: int) -> Array:
    """Least squares of one column on others, which are scaled to norm one."""
    if not kept:
        return np.zeros(0)
    sizes = np.linalg.norm(columns[:, kept], axis=0)
    coef: Array = lstsq(columns[:, kept] / sizes, columns[:, j])[0] / sizes
    return coef


def _near(scaled: Array, names: Sequence[str]) -> list[list[str]]:
    """Groups of terms whose errors one weak direction dominates, by condition indices."""
    if scaled.shape[1] < 2:
        return []
    _, values, axes = np.linalg.svd(scaled, full_matrices=False)
    variances: Array = np.square(axes / values[:, None])
    shares = variances / variances.sum(axis=0)
    weak = np.flatnonzero(values[0] / values > _CONDITION)
    # Of several weak directions a coefficient has a part in each: summed from the weakest up.
    below = np.cumsum(shares[::-1], axis=0)[::-1]
    found: list[list[str]] = []
    for i in weak[::-1]:
        own = [name for name, part in zip(names, below[i], strict=True) if part > _PROPORTION]
        if len(own) > 1 and not any(set(own) <= set(other) for other in found):
            found.append(own)
    return found


def _inflation(scaled: Array) -> Array:
    """Root of the variance inflation factor: 1 / sine of the angle of a column to the others."""
    sines = np.zeros(scaled.shape[1])
    for j in range(len(sines)):
        rest = [i for i in range(len(sines)) if i != j and scaled[:, i].any()]
        left = scaled[:, j] - scaled[:, rest] @ _coefficients(scaled, rest, j)
        sines[j] = np.linalg.norm(left)
    with np.errstate(divide="ignore"):
        return np.where(sines > _EXACT, 1 / np.maximum(sines, 1e-300), np.inf)


def _angles(scaled: Array, families: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Smallest principal angles between families, in degrees; NaN where one has no gradient."""
    spans = {name: scaled[:, own][:, scaled[:, own].any(axis=0)] for name, own in families.items()}
    table = [
        [
            np.degrees(subspace_angles(one, other).min()) if one.size and other.size else np.nan
            for other in spans.values()
        ]
        for one in spans.values()
    ]
    return pd.DataFrame(table, list(families), list(families))


def _groups(names: Sequence[str], together: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Terms joined by any of the lists they stand in, in the order of the terms."""
    place = {name: j for j, name in enumerate(names)}
    pairs = [(place[own[0]], place[name]) for own in together for name in own]
    ends = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (ends[0], ends[1])), (len(names), len(names)))
    _, kinds = connected_components(graph, directed=False)
    members = [
        tuple(name for name, own in zip(names, kinds, strict=True) if own == kind)
        for kind in dict.fromkeys(kinds.tolist())
    ]
    return [own for own in members if len(own) > 1]


def _combination(parts: Mapping[str, float]) -> str:
    """Sum in words, such as ``schatten - 2 l2``; whole numbers without their rounding."""
    words = ""
    for name, number in sorted(parts.items(), key=lambda part: part[1] < 0):
        size = abs(number)
        if abs(size - round(size)) <= 1e-6 * size:
            size = round(size)
        factor = "" if size == 1 else f"{size:.4g} "
        sign = "-" if number < 0 else "+"
        words += f" {sign} {factor}{name}" if words else f"{sign.strip('+')}{factor}{name}"
    return words or "0"


def _advice(
    found: Sequence[Dependence], near: Sequence[Sequence[str]], zero: Sequence[str]
) -> list[str]:
    """What would help, a sentence for each kind of dependence."""
    advice = []
    for dependence in found:
        terms = ", ".join([dependence.term, *dependence.others])
        if dependence.everywhere:
            advice.append(
                f"Leave out one of {terms}: at weights a tenth away they depend in the same way, "
                "and neither more data nor other endpoints separate them."
            )
        else:
            advice.append(
                f"At other weights {terms} do not depend in this way: endpoints at other weights "
                "(a list of Endpoint, or the windows of a trajectory) separate them."
            )
    for own in near:
        advice.append(
            f"{' and '.join([', '.join(own[:-1]), own[-1]])} are nearly collinear: their "
            "coefficients have large errors with opposite signs. Fewer of them, or endpoints at "
            "other weights, give smaller errors."
        )
    if zero:
        advice.append(f"No gradient at these weights: {', '.join(zero)}; nothing can be read off.")
    return advice or ["Every term has a direction of its own."]
