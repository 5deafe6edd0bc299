"""Equations of two models trained in pair: of what both share, and of what one has beyond it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sklearn_implicitreg.penalties.base import Penalty, same
from sklearn_implicitreg.regression.chunks import chained, mapped
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.place import Place
from sklearn_implicitreg.regression.system import Array, Rows, System, merge, r_factor

SHARED, ADDED = "shared ", "added "

Columns = Sequence[int | None]  # which of a system's columns; None: zeros


# With the shared penalties R_i and the added ones R_j, at the treated model t and the control c:
#   -grad L(t) = sum_i b_i grad R_i(t) + sum_j m_j grad R_j(t)
#   -grad L(c) = sum_i b_i grad R_i(c)
# Both are solved as one regression. The difference of the two, which needs half of the equations,
# would let the shared columns explain what the treated model leaves over: that the control does
# not show it stands in its own equations alone. Where both families are one, m is the coefficient
# of the treated model less that of the control. R2 is of the differences all the same, in which
# what both share cancels, also what no term is for. A cluster is a tensor, or a window, of both, so
# that it cancels in the standard errors as well.
def contrasted(joined: Equations, control: Equations, family: Equations) -> Equations:
    """Equations of the contrast; ``joined`` has the shared columns first, then the family's."""
    if len(joined.places) != len(control.places) or not np.allclose(joined.shares, control.shares):
        raise ValueError(
            f"Expected pairs, got {len(joined.places)} {joined.cluster}s of the treated model and "
            f"{len(control.places)} of the control, or windows of other lengths; cut both "
            "recordings to the same steps, or give as many endpoints."
        )
    n, added = len(control.family), _places(joined, family)
    names = [SHARED + control.term_names[j] for j in control.family]
    names += [ADDED + family.term_names[j] for j in family.family]
    rest = [name for name in joined.term_names if name in joined.nuisance]
    own: Columns = [*range(n), *added, *map(joined.term_names.index, rest)]
    beside = [control.term_names.index(r) if r in control.nuisance else None for r in rest]
    other: Columns = [*range(n), *[None] * len(added), *beside]
    both = _Both(own, other, (*names, *rest))
    pairs = list(zip(joined.places, control.places, strict=True))
    means = [] if not joined.mean or not control.mean else [(joined.mean, control.mean)]
    return replace(
        joined,
        places=tuple([both.pair(*pair) for pair in pairs]),
        mean=both.pair(*means[0]) if means else None,
        nuisance=(*names[:n], *rest),
        objection=joined.objection or control.objection,
        evidence=joined.evidence or control.evidence,
        paired=both.differences(means or pairs),
        step_rounding=math.hypot(joined.step_rounding, control.step_rounding),
    )


def _places(joined: Equations, family: Equations) -> list[int]:
    """Which columns of both families together are those of one of them."""
    found: dict[tuple[str, ...], list[tuple[Penalty, range]]] = {}
    start = 0
    for leaf, size in joined.judged.design.leaves:
        found.setdefault(leaf.names, []).append((leaf.penalty, range(start, start + size)))
        start += size
    leaves = [leaf for leaf, _ in family.judged.design.leaves]
    places = [next(at for own, at in found[f.names] if same(own, f.penalty)) for f in leaves]
    return [j for at in places for j in at]


@dataclass(frozen=True)
class _Both:
    """Which columns of the systems of both models are those of their contrast."""

    treated: Columns
    control: Columns
    names: tuple[str, ...]

    def pair(self, first: Place, second: Place) -> Place:
        """The equations of both models at one place."""
        gradient = replace(
            first.gradient,
            scale=math.hypot(first.gradient.scale, second.gradient.scale),
            n_kinks=first.gradient.n_kinks + second.gradient.n_kinks,
            readings=(),
        )
        labels = dict(zip(second.problem.params, first.problem.params, strict=True))
        system = self._stacked(first.system, second.system, labels)
        design = replace(first.design, term_names=self.names, leaves=())
        return Place(first.problem, design, gradient, system)

    def differences(self, pairs: Sequence[tuple[Place, Place]]) -> System | None:
        """Differences of paired equations; None where these cannot be read one by one."""
        factors, n, what = [], 0, "of both models"
        for first, second in pairs:
            if first.system.rows is None or second.system.rows is None:
                return None
            read = first.system.single(what), second.system.single(what)
            for one, other in itertools.zip_longest(*read):
                # Other coordinates may be at a kink, and the chunks may be others.
                if one is None or other is None or not np.array_equal(one[1], other[1]):
                    return None
                if one[1].dtype.names:  # each in bases of its own
                    return None
                design = _columns(one[2], self.treated) - _columns(other[2], self.control)
                factors.append(r_factor(design, one[3] - other[3]))
                n += len(design)
        return System(self.names, ("differences",), (merge(factors),), (n,)) if factors else None

    def _stacked(self, first: System, second: System, labels: Mapping[str, str]) -> System:
        """System of the equations of two, tensor by tensor; ``labels`` are those of the second."""
        same: Mapping[str, str] = {}
        instrumented = first.instrumented or second.instrumented
        arms = ((first, self.treated, same), (second, self.control, labels))
        parts: dict[str, list[Array]] = {}
        counts: dict[str, int] = {}
        for system, columns, renamed in arms:
            # A column of no random draws is its own instrument.
            starts = [0, system.n_terms if system.instrumented else 0] if instrumented else [0]
            clusters = zip(system.labels, system.full_r_factors, system.counts, strict=True)
            for label, upper, n in clusters:
                name = renamed.get(label, label)
                parts.setdefault(name, []).append(_taken(upper, columns, starts))
                counts[name] = counts.get(name, 0) + n

        def rows(_: Sequence[str]) -> Iterable[Rows]:
            read = [
                mapped(partial(_rows_of, columns, renamed), system.single("of both models"))
                for system, columns, renamed in arms
            ]
            return chained(read)

        readable = first.rows is not None and second.rows is not None
        return System(
            self.names,
            tuple(parts),
            tuple(map(merge, parts.values())),
            tuple(counts.values()),
            rows if readable else None,
            first.missing if first.rows is None else second.missing,
            instrumented,
        )


def _taken(upper: Array, columns: Columns, starts: Sequence[int]) -> Array:
    """R factor in other columns, some of them twice and some of them zero."""
    wanted = [None if j is None else start + j for start in starts for j in columns]
    return r_factor(_columns(upper, wanted), upper[:, -1])


def _columns(values: Array, wanted: Columns) -> Array:
    """Some of the columns, zeros where there is none."""
    found = np.zeros((len(values), len(wanted)), order="F")
    for to, j in enumerate(wanted):
        if j is not None:
            found[:, to] = values[:, j]
    return found


def _rows_of(columns: Columns, labels: Mapping[str, str], rows: Rows) -> Rows:
    label, index, design, target = rows
    named = (*label[:-1], labels.get(label[-1], label[-1]))
    return named, index, _columns(design, columns), target
