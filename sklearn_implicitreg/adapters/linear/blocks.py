"""Products with a feature matrix, in blocks of rows, so that it is never copied whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

from sklearn_implicitreg.adapters.linear.losses import Array

__all__ = ["row_blocks", "rows_of_features", "weighted_gram"]

# Numbers in a block: large enough for BLAS, small enough to stay in the cache.
_BLOCK = 2**20


def row_blocks(X: Any) -> Iterator[slice]:
    """Slices of consecutive rows with about a million numbers each.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n, p)
        Features.

    Yields
    ------
    slice
        One, of all rows, where X is small.

    Examples
    --------
    >>> import numpy as np
    >>> list(row_blocks(np.zeros((3, 2))))
    [slice(0, 3, None)]
    """
    n_rows, n_features = X.shape
    per_row = X.nnz / max(n_rows, 1) if sparse.issparse(X) else n_features
    size = max(1, int(_BLOCK / max(per_row, 1)))
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def rows_of_features(X: Any, rows: Any) -> Any:
    """Some rows of X in float64; a view where X is a float64 array and the rows a slice.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n, p)
        Features, of any float type.
    rows : slice or ndarray of int
        Which rows.

    Returns
    -------
    ndarray or CSR matrix of shape (m, p)

    Examples
    --------
    >>> import numpy as np
    >>> rows_of_features(np.ones((2, 1), dtype=np.float32), slice(0, 1)).dtype
    dtype('float64')
    """
    return X[rows].astype(np.float64, copy=False)


def weighted_gram(X: Any, weight: Array, center: Array) -> Array:
    """``sum_i w_i (x_i - center) (x_i - center)'`` of rows in blocks.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n, p)
        Features.
    weight : ndarray of shape (n,)
        Weight of the rows.
    center : ndarray of shape (p,)
        What is subtracted from every row; their weighted mean, or zero.

    Returns
    -------
    ndarray of shape (p, p)
        Dense; a sparse X is not centered row by row, but its products are.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0], [3.0]])
    >>> weighted_gram(X, np.ones(2), center=X.mean(axis=0)).tolist()
    [[2.0]]
    """
    gram = np.zeros((X.shape[1], X.shape[1]))
    for rows in row_blocks(X):
        part, w = rows_of_features(X, rows), weight[rows]
        if sparse.issparse(part):
            gram += (part.T @ part.multiply(w[:, None])).toarray()
        else:
            part = part - center
            gram += part.T @ (part * w[:, None])
    if sparse.issparse(X):
        cross = np.outer(np.asarray(X.T @ weight), center)
        gram += weight.sum() * np.outer(center, center) - cross - cross.T
    return (gram + gram.T) / 2
