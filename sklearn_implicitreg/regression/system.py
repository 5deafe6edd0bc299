"""The regression ``target ~ design @ coef`` as small R factors, one per cluster of equations.

``R`` of the QR decomposition of ``[design | target]`` keeps all that a least-squares fit asks of
its equations: coefficients, residual sum of squares, variance inflation, condition number,
non-negative fits, every sub-family, and every union of clusters. R factors add up, so the
equations themselves are never held together.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cholesky, lapack, lstsq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sklearn_implicitreg.regression.chunks import Chunks, mapped

Array = npt.NDArray[np.float64]
Index = npt.NDArray[Any]
# Some single equations: labels (of their place where there are several, and of the tensor), what
# each is within these, design (m, k) and target (m,).
Rows = tuple[tuple[str, ...], Index, Array, Array]

# Numbers in one chunk of rows: 1 MiB stays in the cache, which is 3-6 times as fast as one QR.
_CHUNK = 2**17
# Share of a column's norm outside the columns before it, from where sums lose digits.
_SMALLEST = 1e-7
# The same for sums of products, whose digits are those of its square.
_NEARLY_DEPENDENT = 1e-3
_IN_RANGE = 250  # exponents of two: squares of smaller numbers, and their sums, are in range
_LARGEST = 1000  # power that is multiplied with: neither it nor its inverse is out of range
_LOST = -1040  # exponent below which numbers have lost digits
_ROUNDING = 1e3 * float(np.finfo(np.float64).eps)


def r_factor(design: npt.ArrayLike, target: npt.ArrayLike) -> Array:
    """R of the QR decomposition of ``[design | target]``, in float64."""
    columns = np.asarray(design)
    last = np.asarray(target)
    if columns.ndim != 2 or last.shape != columns.shape[:1]:
        raise ValueError(
            "Expected design of shape (m, k) and target of shape (m,), got "
            f"{columns.shape} and {last.shape}; pass one target per row of the design."
        )
    m, k = columns.shape
    step = max(4 * (k + 1), _CHUNK // (k + 1))
    parts = []
    for start in range(0, m, step):
        rows = slice(start, min(start + step, m))
        # Column-major, as LAPACK wants it: the copy into the chunk is the only one.
        block = np.empty((rows.stop - start, k + 1), order="F")
        block[:, :k] = columns[rows]
        block[:, k] = last[rows]
        parts.append(_upper(block))
    return merge(parts) if parts else np.zeros((k + 1, k + 1))


def merge(r_factors: Iterable[npt.ArrayLike]) -> Array:
    """R factor of all equations that the given R factors stand for."""
    parts = [np.asarray(part, dtype=np.float64) for part in r_factors]
    shapes = sorted({part.shape for part in parts})
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != shapes[0][1]:
        raise ValueError(
            f"Expected at least one R factor and all of one shape (k + 1, k + 1), got {shapes}; "
            "merge R factors of one family."
        )
    result = parts[0] if len(parts) == 1 else _upper(np.asfortranarray(np.concatenate(parts)))
    # Norms of columns are preserved, so whatever was not finite in a row is so here.
    if not np.isfinite(result).all():
        raise ValueError(
            "Expected finite equations, got NaN or inf in the design or the target; "
            "check the weights, the data and the penalty at these weights."
        )
    return result


# With instruments the R factors are of [instruments | design | target], and what is read off them
# is that of columns and target projected on the instruments: coefficients (Z'D)^-1 Z't, which
# stay right where columns share noise with their target, as long as the instruments share
# neither (Wooldridge 2010, Econometric Analysis of Cross Section and Panel Data, chapter 5).
@dataclass(frozen=True, eq=False)
class System:
    """Equations ``target ~ design @ coef`` in clusters, each kept as its R factor."""

    term_names: tuple[str, ...]
    labels: tuple[str, ...]  # of the clusters: parameter tensors, endpoints or windows
    r_factors: tuple[Array, ...]  # (k + 1, k + 1), or (2k + 1, 2k + 1) with instruments
    counts: tuple[int, ...]  # equations in each cluster
    # Reads the equations of some clusters once more; None where only R factors are left.
    rows: Callable[[Sequence[str]], Iterable[Rows]] | None = None
    missing: str = "R factors alone"  # why there are no rows, and what to do
    instrumented: bool = False
    # For each cluster the columns that its R factor has; the others are zero there. None: all.
    supports: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        n_clusters = {len(self.labels), len(self.r_factors), len(self.counts)}
        if len(n_clusters) != 1 or not self.labels:
            raise ValueError(
                "Expected one label, R factor and count per cluster, got "
                f"{len(self.labels)}, {len(self.r_factors)} and {len(self.counts)}."
            )
        if len(set(self.term_names)) < self.n_terms or not self.term_names:
            repeated = sorted({n for n in self.term_names if self.term_names.count(n) > 1})
            raise ValueError(
                f"Expected at least one term and every name once, got {repeated or 'no term'}; "
                "give each term a name of its own."
            )
        width = self.n_terms * (1 + self.instrumented) + 1
        wrong = sorted({part.shape for part in self.r_factors} - {(width, width)})
        if wrong and self.supports is None:
            what = " with an instrument each" * self.instrumented
            raise ValueError(
                f"Expected R factors of shape {(width, width)} for {self.n_terms} terms{what}, "
                f"got {wrong}."
            )

    @classmethod
    def from_arrays(
        cls,
        design: npt.ArrayLike,
        target: npt.ArrayLike,
        term_names: Sequence[str],
        groups: npt.ArrayLike | None = None,
        index: Index | None = None,
    ) -> System:
        """System of equations given as arrays, in one cluster or in groups of rows."""
        columns = np.asarray(design, dtype=np.float64)
        last = np.asarray(target, dtype=np.float64)
        whole = r_factor(columns, last)
        if len(last) < 1:
            raise ValueError("Expected at least 1 equation, got 0.")

        def rows(labels: Sequence[str]) -> list[Rows]:
            return [((), np.arange(len(last)) if index is None else index, columns, last)]

        if groups is None:
            return cls(tuple(term_names), ("all",), (whole,), (len(last),), rows)
        labels = np.asarray(groups)
        if labels.shape != last.shape:
            raise ValueError(
                f"Expected groups of shape {last.shape}, one per equation, got {labels.shape}."
            )
        names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        # One sort instead of one scan of all rows per cluster.
        parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
        r_factors = tuple(r_factor(columns[own], last[own]) for own in parts)
        labels_ = tuple(str(name) for name in names)
        return cls(tuple(term_names), labels_, r_factors, tuple(counts.tolist()), rows)

    @cached_property
    def n_terms(self) -> int:
        """Number of columns, k."""
        return len(self.term_names)

    @cached_property
    def n_equations(self) -> int:
        """Number of equations of all clusters, m."""
        return sum(self.counts)

    @cached_property
    def merged(self) -> Array:
        """R factor of all equations, instruments first where there are any."""
        if self.supports is None:
            return merge(self.r_factors)
        # Parts without a common cluster are orthogonal: their R factors side by side are one.
        whole, left = np.zeros((self.n_terms + 1, self.n_terms + 1)), self.out_of_reach
        for columns, part in self.components:
            own = part.merged
            whole[np.ix_(columns, [*columns, -1])] = own[:-1]
            left = np.hypot(left, own[-1, -1])
        whole[-1, -1] = left
        return whole

    @cached_property
    def components(self) -> list[tuple[list[int], System]]:
        """Parts that share no cluster, each with its columns: k small regressions, not one of k."""
        if self.supports is None:
            return [(list(range(self.n_terms)), self)]
        places = [(c, j) for c, support in enumerate(self.supports) for j in support]
        n = len(self.labels)
        ends = np.array(places, dtype=np.intp).reshape(-1, 2).T
        graph = coo_array((np.ones(len(places)), (ends[0], n + ends[1])), (n + self.n_terms,) * 2)
        _, kinds = connected_components(graph, directed=False)
        clusters: dict[int, list[int]] = {}
        for c, kind in enumerate(kinds[:n].tolist()):
            clusters.setdefault(kind, []).append(c)
        columns: dict[int, list[int]] = {}
        for j, kind in enumerate(kinds[n:].tolist()):
            columns.setdefault(kind, []).append(j)
        return [(own, self._part(own, clusters.get(kind, []))) for kind, own in columns.items()]

    @cached_property
    def out_of_reach(self) -> float:
        """Norm of the target where no column reaches."""
        if self.supports is None:
            return 0.0
        pairs = zip(self.supports, self.r_factors, strict=True)
        return math.hypot(*(float(own[-1, -1]) for support, own in pairs if not support))

    @cached_property
    def r_factor(self) -> Array:
        """R factor of all equations, of shape (k + 1, k + 1)."""
        return projected(self.merged) if self.instrumented else self.merged

    def powers(self) -> Array | None:
        """Powers of two (k + 1,) that bring columns and target into range; None if they are."""
        # Squares are taken of what they multiply, and so are neither infinite nor zero.
        k, tops = self.n_terms, np.zeros(self.n_terms + 1)
        for i, own in enumerate(self.r_factors):
            support = range(k) if self.supports is None else self.supports[i]
            places = [*support, k]
            found = np.abs(own[:, -len(places) :]).max(axis=0)
            tops[places] = np.maximum(tops[places], found)
        exponents = np.frexp(tops)[1]
        out = (np.abs(exponents) > _IN_RANGE) & (tops > 0)
        if not out.any():
            return None
        if (exponents[tops > 0] < _LOST).any():
            raise ValueError(
                "Expected equations of numbers that have all their digits in float64, got a column "
                f"or target of at most {tops[tops > 0].min():.3g}; give the data in other units."
            )
        powers: Array = np.ldexp(1.0, np.clip(np.where(out, -exponents, 0), -_LARGEST, _LARGEST))
        return powers

    def scaled(self, powers: Array) -> System:
        """System of columns and target times powers of two."""

        def own(i: int) -> Array:
            support = range(self.n_terms) if self.supports is None else self.supports[i]
            factors = powers[list(support)]
            return np.concatenate([factors] * (1 + self.instrumented) + [powers[-1:]])

        again = self.rows
        supports = dict(zip(self.labels, range(len(self.labels)), strict=True))

        def scaled(rows: Rows) -> Rows:
            label, index, design, target = rows
            factors = own(supports.get(label[-1] if label else "", 0))[:-1]
            return label, index, design * factors, target * powers[-1]

        def rows(labels: Sequence[str]) -> Iterable[Rows]:
            assert again is not None
            return mapped(scaled, again(labels))

        parts = tuple(part * own(i) for i, part in enumerate(self.r_factors))
        return replace(self, r_factors=parts, rows=again and rows)

    @cached_property
    def full_r_factors(self) -> tuple[Array, ...]:
        """R factors of the clusters in all columns, with zeros for those that do not reach one."""
        if self.supports is None:
            return self.r_factors
        every = [*range(self.n_terms), -1]
        pairs = zip(self.r_factors, self.supports, strict=True)
        return tuple(_upper(_widened(part, (*own, -1), every)) for part, own in pairs)

    def single(self, what: str) -> Iterable[Rows]:
        """The single equations, for what cannot be read off R factors."""
        if self.rows is None:
            raise ValueError(f"Expected single equations {what}, got {self.missing}.")
        rows = self.rows(self.labels)
        if self.supports is None:
            return rows
        supports = dict(zip(self.labels, self.supports, strict=True))
        return mapped(lambda own: _spread_out(own, supports, range(self.n_terms)), rows)

    def select(self, names: Iterable[str]) -> System:
        """System of some of the terms, from the same R factors."""
        wanted = tuple(names)
        unknown = [name for name in wanted if name not in self.term_names]
        if unknown:
            raise ValueError(f"Expected terms among {list(self.term_names)}, got {unknown}.")
        index = [self.term_names.index(name) for name in wanted]
        if self.supports is not None:
            return self._part(list(range(self.n_terms)), list(range(len(self.labels)))).select(
                wanted
            )
        first = [*index, *(self.n_terms + i for i in index)] if self.instrumented else index
        columns = [*first, -1]
        r_factors = tuple(_upper(np.asfortranarray(part[:, columns])) for part in self.r_factors)
        again = self.rows
        if again is None:
            return replace(self, term_names=wanted, r_factors=r_factors)

        def rows(labels: Sequence[str]) -> Iterable[Rows]:
            return mapped(lambda own: (*own[:2], own[2][:, index], own[3]), again(labels))

        return replace(self, term_names=wanted, r_factors=r_factors, rows=rows)

    def on(self, labels: Iterable[str], columns: list[int]) -> System:
        """System of some clusters in some columns, beside which they have none but zeros."""
        wanted = set(labels)
        clusters = [c for c, label in enumerate(self.labels) if label in wanted]
        if not clusters or self.supports is not None:
            return self._part(columns, clusters)
        own = replace(
            self,
            labels=tuple(self.labels[c] for c in clusters),
            r_factors=tuple(self.r_factors[c] for c in clusters),
            counts=tuple(self.counts[c] for c in clusters),
        )
        whole = len(columns) == self.n_terms
        return own if whole else own.select([self.term_names[j] for j in columns])

    def without_each(self) -> list[Array]:
        """R factors of all clusters but one, for each cluster in turn."""
        # They are merged, never subtracted: what is left of a column that lives in one cluster is
        # zero and not a rounding error.
        parts = self.r_factors
        if len(parts) == 1:
            return [np.zeros_like(parts[0])]
        before = list(itertools.accumulate(parts[:-1], _both))
        after = list(itertools.accumulate(parts[:0:-1], _both))[::-1]
        inner = [_both(*pair) for pair in zip(before, after[1:], strict=False)]
        rests = [after[0], *inner, before[-1]]
        return [projected(rest) for rest in rests] if self.instrumented else rests

    def _part(self, columns: list[int], clusters: list[int]) -> System:
        """Some columns in the only clusters that they reach."""
        names, supports, again = [self.term_names[j] for j in columns], self.supports, self.rows
        if not clusters:
            nothing = np.zeros((len(columns) * (1 + self.instrumented) + 1,) * 2)
            own = (tuple(names), ("none",), (nothing,), (0,))
            return System(*own, lambda labels: [], instrumented=self.instrumented)
        assert supports is not None
        reached = {self.labels[c]: supports[c] for c in clusters}
        r_factors = [
            self.r_factors[c]
            if list(supports[c]) == columns
            else _upper(_widened(self.r_factors[c], (*supports[c], -1), [*columns, -1]))
            for c in clusters
        ]

        def rows(labels: Sequence[str]) -> Iterable[Rows]:
            assert again is not None
            return mapped(lambda own: _spread_out(own, reached, columns), again(list(reached)))

        return replace(
            self,
            term_names=tuple(names),
            labels=tuple(reached),
            r_factors=tuple(r_factors),
            counts=tuple(self.counts[c] for c in clusters),
            rows=again and rows,
            supports=None,
        )

    def beyond(self, coef: Array, kept: list[int]) -> Array:
        """R factor of some terms, and of the target less what the others explain."""
        upper, others = self.merged, [i for i in range(self.n_terms) if i not in kept]
        return r_factor(upper[:, kept], upper[:, -1] - upper[:, others] @ coef[others])

    def explained_by_instruments(self, coef: Array, kept: list[int]) -> float:
        """Squared norm of what some terms explain, free of the noise of their columns."""
        # coef' Z'D coef of these terms, the others projected out.
        upper, k = self.merged, self.n_terms
        products: Array = upper[:k, :k].T @ upper[:k, k:-1]
        others = [i for i in range(k) if i not in kept]
        inside = products[np.ix_(kept, kept)]
        if others:
            shares = lstsq(products[np.ix_(others, others)], products[np.ix_(others, kept)])[0]
            inside = inside - products[np.ix_(kept, others)] @ shares
        return float(coef[kept] @ inside @ coef[kept])


def _spread_out(rows: Rows, supports: Mapping[str, tuple[int, ...]], wanted: Sequence[int]) -> Rows:
    """Single equations in the wanted columns, from those of their cluster's support."""
    label, index, design, target = rows
    return label, index, _widened(design, supports[label[-1]], wanted), target


def _widened(columns: Array, support: Sequence[int], wanted: Sequence[int]) -> Array:
    """Columns of a support among the wanted ones, the others zero."""
    if list(support) == list(wanted):
        return columns
    place = {column: i for i, column in enumerate(wanted)}
    full = np.zeros((len(columns), len(wanted)), order="F")
    full[:, [place[column] for column in support]] = columns
    return full


def summed_r_factor(chunks: Chunks[Array]) -> tuple[Array, int]:
    """R factor of many chunks of equations, columns and target as rows, and their number."""
    # Products of columns are summed once the first chunk has made them nearly orthonormal: with
    # B = [design | target] R_1^-1 the sum of B'B is close to a multiple of the identity, so its
    # Cholesky factor times R_1 has the digits of a QR decomposition. Where the first chunk has
    # dependent columns, or is unlike the others, every chunk is decomposed.
    both = chunks.read(chunks.starts[0])
    first, n = r_factor(both[:-1].T, both[-1]), both.shape[1]
    rest = Chunks(chunks.starts[1:], chunks.read)
    inverse = _inverse(first)
    if inverse is None:
        return _decomposed(first, n, rest)
    turned = inverse.T

    def products(both: Array) -> tuple[Array, int]:
        with np.errstate(invalid="ignore", over="ignore"):
            block = turned @ both
            return block @ block.T, both.shape[1]

    sums, m = np.eye(len(first)), n
    for own, more in rest.then(products):
        sums += own
        m += more
    if not np.isfinite(sums).all():
        return merge([np.full_like(first, np.nan)]), m
    size = np.sqrt(np.diagonal(sums))
    try:
        upper = cholesky(sums / np.outer(size, size))
    except LinAlgError:
        return _decomposed(first, n, rest)
    if np.diagonal(upper).min() < _NEARLY_DEPENDENT:
        return _decomposed(first, n, rest)
    return np.triu((upper * size) @ first), m


def _decomposed(first: Array, n: int, rest: Chunks[Array]) -> tuple[Array, int]:
    """R factor of the first chunk's R factor and of all others, and the number of equations."""
    found = list(rest.then(lambda own: (r_factor(own[:-1].T, own[-1]), own.shape[1])))
    return merge([first, *(upper for upper, _ in found)]), n + sum(m for _, m in found)


def _inverse(upper: Array) -> Array | None:
    """Inverse of an R factor; None where a column is nearly in the span of those before it."""
    norms = np.linalg.norm(upper, axis=0)
    if (np.abs(np.diagonal(upper)) <= _SMALLEST * norms).any():
        return None
    inverse: Array = lapack.dtrtri(upper)[0]
    return inverse


def projected(upper: Array) -> Array:
    """R factor of columns and target projected on the instruments, from ``[Z | D | t]``."""
    k = len(upper) // 2
    top, rest = upper[:k, k:].copy(), upper[k:, k:]
    # A direction that the instruments do not span but for rounding holds no information.
    sizes = np.linalg.norm(upper[:k, :k], axis=0)
    top[np.abs(np.diagonal(upper)[:k]) <= _ROUNDING * sizes] = 0.0
    result = r_factor(top[:, :-1], top[:, -1])
    coef = lstsq(top[:, :-1], top[:, -1])[0]
    away = np.concatenate([part[:, -1] - part[:, :-1] @ coef for part in (top, rest)])
    result[-1, -1] = np.linalg.norm(away)
    return result


def explained(r_factor: Array, coef: Array) -> float:
    """Uncentered R2 of given coefficients; 0 for a zero target."""
    target = r_factor[:, -1]
    largest = float(np.abs(target).max())
    if largest == 0:
        return 0.0
    target = target / largest
    residual = target - r_factor[:, :-1] @ (coef / largest)
    return 1.0 - float(residual @ residual) / float(target @ target)


def _both(one: Array, other: Array) -> Array:
    return merge([one, other])


def _upper(block: Array) -> Array:
    """Square R of a column-major block, which is overwritten, with a non-negative diagonal."""
    n = block.shape[1]
    result = np.zeros((n, n))
    if len(block):
        reduced = lapack.dgeqrf(block, overwrite_a=1)[0][:n]
        np.copyto(result[: len(reduced)], reduced, where=_triangle(n)[: len(reduced)])
        result[np.diagonal(result) < 0] *= -1.0
    return result


@functools.lru_cache(maxsize=64)
def _triangle(n: int) -> npt.NDArray[np.bool_]:
    """Mask of the places in a square that are not below its diagonal."""
    return np.tri(n, dtype=np.bool_).T
