"""Equations of tensors whose parts are on several ranks: R factors merged, single ones gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from sklearn_implicitreg.problem import Ranks
from sklearn_implicitreg.regression.system import Array, Rows, merge

Reduced = tuple[Array, int]  # R factor of some equations, and their number


def merged_over(
    ranks: Ranks, widths: Sequence[int], make: Callable[[], Sequence[Reduced]]
) -> list[Reduced]:
    """R factors of whole tensors from those of their parts on all ranks, in one exchange."""

    def packed() -> Array:
        return np.concatenate([np.append(upper, n) for upper, n in make()])

    ends = np.cumsum([width**2 + 1 for width in widths])[:-1]
    every = [np.split(own, ends) for own in ranks.arrays(packed)]
    found = []
    for width, parts in zip(widths, zip(*every, strict=True), strict=True):
        counts = [int(part[-1]) for part in parts]
        full = [p[:-1].reshape(width, width) for p, n in zip(parts, counts, strict=True) if n]
        found.append((merge(full or [np.zeros((width, width))]), sum(counts)))
    return found


def rows_over(
    ranks: Ranks, labels: Iterable[str], read: Callable[[str], tuple[int, list[Rows]]]
) -> Iterator[Rows]:
    """Single equations, a tensor at a time; ``read`` gives the entries here and their equations."""
    for name in labels:

        def packed(name: str = name) -> Array:
            n, parts = read(name)
            flat = [np.column_stack([index, own, target]) for _, index, own, target in parts]
            table = np.concatenate(flat)
            return np.concatenate([[n, table.shape[1]], table.ravel()])

        start, tables = 0, []
        for own in ranks.arrays(packed):
            table = own[2:].reshape(-1, int(own[1]))
            table[:, 0] += start
            start += int(own[0])
            tables.append(table)
        whole = np.concatenate(tables)
        yield (name,), whole[:, 0].astype(np.int64), whole[:, 1:-1].copy(), whole[:, -1].copy()
