"""Shares of R-squared: what each term adds, averaged over the orders in which terms can enter."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

from sklearn_implicitreg.regression.system import Array

MOST_TERMS = 12  # 4,096 subsets; each term more doubles them
_RANK = 1e-10  # singular values of scaled columns below are rounding


class Shares(NamedTuple):
    """R-squared of each term: averaged over orders, alone, and as the last to enter."""

    average: Array
    alone: Array
    last: Array


def shares_of_r2(r_factor: Array) -> Shares:
    """Shares by Lindeman, Merenda and Gold from the R factor of ``[columns | target]``."""
    k = r_factor.shape[1] - 1
    r2 = _of_all_subsets(r_factor)
    average = np.zeros(k)
    subsets = np.arange(2**k)
    sizes = np.array([int(s).bit_count() for s in subsets])
    weights = 1 / (k * np.array([comb(k - 1, n) for n in range(k)]))
    for j in range(k):
        without = subsets[subsets >> j & 1 == 0]
        average[j] = weights[sizes[without]] @ (r2[without | 1 << j] - r2[without])
    each = 1 << np.arange(k)
    return Shares(average, r2[each], r2[-1] - r2[2**k - 1 - each])


def _of_all_subsets(r_factor: Array) -> Array:
    """R-squared of every subset of the columns, numbered by its bits."""
    k = r_factor.shape[1] - 1
    size = np.linalg.norm(r_factor[:, -1])
    target = r_factor[:, -1] / (size or 1.0)
    norms = np.linalg.norm(r_factor[:, :-1], axis=0)
    columns = r_factor[:, :-1] / np.where(norms == 0, 1.0, norms)
    r2 = np.zeros(2**k)
    for n in range(1, k + 1):
        members = np.array(list(combinations(range(k), n)))
        left, values, _ = np.linalg.svd(columns[:, members].transpose(1, 0, 2), full_matrices=False)
        along = np.einsum("smn,m->sn", left, target)
        kept = values > _RANK * max(1.0, n**0.5)
        r2[(1 << members).sum(axis=1)] = np.sum(np.square(along) * kept, axis=1)
    return r2
