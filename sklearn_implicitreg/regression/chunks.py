"""Large tensors in chunks that stay in the cache, evaluated ahead of what reads them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from threadpoolctl import threadpool_limits

from sklearn_implicitreg.regression.system import Array, merge, r_factor

__all__ = ["ahead", "summed_r_factor"]

_AHEAD = 4  # chunks that wait for their reader
_SMALLEST = 1e-7  # share of a column's norm outside the others, from where sums lose digits

S = TypeVar("S")
T = TypeVar("T")


def ahead(evaluate: Callable[[S], T], starts: Iterable[S]) -> Iterator[T]:
    """Evaluate chunks in their order, some of them in other threads while one is read."""
    n_workers = torch.get_num_threads()
    if n_workers < 2:
        yield from map(evaluate, starts)
        return
    waiting: deque[Future[T]] = deque()
    # One chunk is too small to share among threads: what reads the chunks keeps to its own.
    with ThreadPoolExecutor(n_workers) as pool, threadpool_limits(1, "blas"):
        try:
            for start in starts:
                waiting.append(pool.submit(evaluate, start))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def summed_r_factor(chunks: Iterable[tuple[Array, Array]]) -> tuple[Array, int]:
    """R factor of equations that come in many chunks of design and target, and their number."""
    # Products of columns are summed once the first chunk has made them nearly orthonormal: with
    # B = [design | target] R_1^-1 the sum of B'B is close to a multiple of the identity, so its
    # Cholesky factor times R_1 has the digits of a QR decomposition. Where the first chunk has
    # dependent columns, every chunk is decomposed.
    first: Array | None = None
    inverse = sums = None
    factors: list[Array] = []
    n = 0
    for design, target in chunks:
        n += len(target)
        if inverse is None or sums is None:
            factors.append(r_factor(design, target))
            if first is None:
                first = factors[0]
                inverse = _inverse(first)
                sums = np.eye(len(first))
                factors = [] if inverse is not None else factors
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            # Row by row of the transposed block, as the columns are stored.
            block = inverse.T @ np.concatenate([design.T, target[None]])
            sums += block @ block.T
    if first is None:
        raise ValueError("Expected at least one chunk, got none.")
    if inverse is None or sums is None:
        return merge(factors), n
    if not np.isfinite(sums).all():
        return merge([np.full_like(first, np.nan)]), n
    return np.triu(cholesky(sums) @ first), n


def _inverse(upper: Array) -> Array | None:
    """Inverse of an R factor; None where a column is nearly in the span of those before it."""
    norms = np.linalg.norm(upper, axis=0)
    if (np.abs(np.diagonal(upper)) <= _SMALLEST * norms).any():
        return None
    try:
        inverse: Array = solve_triangular(upper, np.eye(len(upper)))
    except LinAlgError:
        return None
    return inverse
