"""The regression ``target ~ design @ coef`` as small R factors, one per cluster of equations.

``R`` of the QR decomposition of ``[design | target]`` keeps all that a least-squares fit asks of
its equations: coefficients, residual sum of squares, variance inflation, condition number,
non-negative fits, every sub-family, and every union of clusters. R factors add up, so the
equations themselves are never held together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

__all__ = ["FULL_LEVERAGE", "Array", "GradientSystem", "hc3_meat", "merge", "r_factor"]

Array = npt.NDArray[np.float64]
Meat = Callable[[Array, Array], Array]

# Numbers in one chunk of rows: 1 MiB stays in the cache, which is 3-6 times as fast as one QR.
_CHUNK = 2**17
# One minus leverage at which a row is the only one to tell some coefficient.
FULL_LEVERAGE = 1e-12


def r_factor(design: npt.ArrayLike, target: npt.ArrayLike) -> Array:
    """R of the QR decomposition of ``[design | target]``, in float64.

    Parameters
    ----------
    design : array-like of shape (m, k)
        Columns: gradients of the penalty terms.
    target : array-like of shape (m,)
        Minus the gradient of the loss.

    Returns
    -------
    ndarray of shape (k + 1, k + 1)
        Upper triangular matrix with a non-negative diagonal; zero rows pad it when ``m < k + 1``.

    Raises
    ------
    ValueError
        When the shapes do not fit or a number is NaN or infinite.

    References
    ----------
    Demmel, Grigori, Hoemmen, Langou (2012), Communication-optimal parallel and sequential QR.

    Examples
    --------
    >>> import numpy as np
    >>> r_factor([[3.0], [4.0]], [6.0, 8.0]).round(12).tolist()
    [[5.0, 10.0], [0.0, 0.0]]
    """
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
    """R factor of all equations that the given R factors stand for.

    Parameters
    ----------
    r_factors : iterable of array-like of shape (k + 1, k + 1)
        At least one, all of the same family.

    Returns
    -------
    ndarray of shape (k + 1, k + 1)
        What :func:`r_factor` makes of all the rows.

    Raises
    ------
    ValueError
        When there is none, when their shapes differ or a number is NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> merge([r_factor([[3.0]], [6.0]), r_factor([[4.0]], [8.0])]).round(12).tolist()
    [[5.0, 10.0], [0.0, 0.0]]
    """
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


def hc3_meat(
    design: npt.ArrayLike, target: npt.ArrayLike, whitener: npt.ArrayLike, coef: npt.ArrayLike
) -> Array:
    r"""Middle factor of the HC3 covariance, of some rows of the equations.

    With ``z_j = design_j @ whitener`` (rows of the orthonormal basis of the columns), residual
    ``e_j`` and leverage ``h_j = |z_j|^2`` it is ``sum_j e_j^2 / (1 - h_j)^2 z_j z_j'``, and the
    covariance of the coefficients is ``whitener @ meat @ whitener.T``. It adds up over rows.

    Parameters
    ----------
    design : array-like of shape (m, k)
        Columns at these rows.
    target : array-like of shape (m,)
        Target at these rows.
    whitener : array-like of shape (k, r)
        Matrix that makes the columns of the *whole* design orthonormal, r its rank.
    coef : array-like of shape (k,)
        Coefficients of the fit.

    Returns
    -------
    ndarray of shape (r, r)
        NaN where a row has leverage one: it alone tells some coefficient.

    References
    ----------
    MacKinnon and White (1985), Some heteroskedasticity-consistent covariance matrix estimators.

    Examples
    --------
    >>> hc3_meat([[1.0], [1.0]], [1.0, 3.0], [[0.5**0.5]], [2.0]).round(12).tolist()
    [[4.0]]
    """
    columns = np.asarray(design, dtype=np.float64)
    last = np.asarray(target, dtype=np.float64)
    basis = np.asarray(whitener, dtype=np.float64)
    weights = np.asarray(coef, dtype=np.float64)
    meat: Array = np.zeros((basis.shape[1], basis.shape[1]))
    step = _CHUNK // (columns.shape[1] + 1)
    for start in range(0, len(last), step):
        # Turned, so that a design stored column by column is read in order.
        part = columns[start : start + step].T
        meat += _chunk_meat(basis.T @ part, last[start : start + step] - weights @ part)
    return meat


def _chunk_meat(basis: Array, residual: Array) -> Array:
    """HC3 middle factor of columns of the orthonormal basis, (r, rows), with their residuals."""
    rest = 1.0 - np.einsum("ij,ij->j", basis, basis)
    if rest.min(initial=1.0) <= FULL_LEVERAGE:
        rest[rest <= FULL_LEVERAGE] = np.nan
    basis *= residual / rest
    meat: Array = basis @ basis.T
    return meat


@dataclass(frozen=True, eq=False)
class GradientSystem:
    """Equations ``target ~ design @ coef`` in clusters, each kept as its R factor.

    Attributes
    ----------
    term_names : tuple of str
        One per column, k in all, no two alike.
    labels : tuple of str
        One per cluster: the parameter tensor (endpoint, window) that gave its equations.
    r_factors : tuple of ndarray of shape (k + 1, k + 1)
        One per cluster, see :func:`r_factor`.
    counts : tuple of int
        Equations per cluster.
    hc3_meat : callable or None
        ``hc3_meat(whitener, coef) -> ndarray of shape (r, r)``, a second pass over all equations:
        the sum over them of :func:`hc3_meat`, with ``whitener`` of shape (k, r) and ``coef`` of
        shape (k,). None where the equations cannot be read again.

    Raises
    ------
    ValueError
        When names, labels, R factors and counts do not fit together.

    Examples
    --------
    >>> system = GradientSystem.from_arrays([[1.0], [2.0]], [2.0, 4.0], ["l2"], ["fc1", "fc2"])
    >>> system.labels, system.counts, system.n_equations, system.n_terms
    (('fc1', 'fc2'), (1, 1), 2, 1)
    """

    term_names: tuple[str, ...]
    labels: tuple[str, ...]
    r_factors: tuple[Array, ...]
    counts: tuple[int, ...]
    hc3_meat: Meat | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        n_clusters = {len(self.labels), len(self.r_factors), len(self.counts)}
        if len(n_clusters) != 1 or not self.labels:
            raise ValueError(
                "Expected one label, R factor and count per cluster, got "
                f"{len(self.labels)}, {len(self.r_factors)} and {len(self.counts)}."
            )
        repeated = sorted({name for name in self.term_names if self.term_names.count(name) > 1})
        if repeated or not self.term_names:
            raise ValueError(
                f"Expected at least one term and every name once, got {repeated or 'no term'}; "
                "give each term a name of its own."
            )
        shape = (self.n_terms + 1, self.n_terms + 1)
        wrong = sorted({part.shape for part in self.r_factors} - {shape})
        if wrong:
            raise ValueError(
                f"Expected R factors of shape {shape} for {self.n_terms} terms, got {wrong}."
            )

    @classmethod
    def from_arrays(
        cls,
        design: npt.ArrayLike,
        target: npt.ArrayLike,
        term_names: Sequence[str],
        groups: npt.ArrayLike | None = None,
    ) -> GradientSystem:
        """System of equations that are given as arrays.

        Parameters
        ----------
        design : array-like of shape (m, k)
            One column per term.
        target : array-like of shape (m,)
            What the columns are to explain.
        term_names : sequence of k str
            Names of the columns.
        groups : array-like of shape (m,), optional
            Cluster of each row, in any order; all rows are one cluster without it.

        Returns
        -------
        GradientSystem
            It keeps the arrays for the second pass of HC3.

        Raises
        ------
        ValueError
            When lengths do not fit or a number is NaN or infinite.
        """
        columns = np.asarray(design, dtype=np.float64)
        last = np.asarray(target, dtype=np.float64)
        whole = r_factor(columns, last)
        if len(last) < 1:
            raise ValueError("Expected at least 1 equation, got 0.")
        meat = partial(hc3_meat, columns, last)
        if groups is None:
            return cls(tuple(term_names), ("all",), (whole,), (len(last),), meat)
        labels = np.asarray(groups)
        if labels.shape != last.shape:
            raise ValueError(
                f"Expected groups of shape {last.shape}, one per equation, got {labels.shape}."
            )
        names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        # One sort instead of one scan of all rows per cluster.
        parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
        r_factors = tuple(r_factor(columns[rows], last[rows]) for rows in parts)
        labels_ = tuple(str(name) for name in names)
        return cls(tuple(term_names), labels_, r_factors, tuple(counts.tolist()), meat)

    @property
    def n_terms(self) -> int:
        """Number of columns, k."""
        return len(self.term_names)

    @property
    def n_equations(self) -> int:
        """Number of equations of all clusters, m."""
        return sum(self.counts)

    @cached_property
    def r_factor(self) -> Array:
        """R factor of all equations, of shape (k + 1, k + 1)."""
        return merge(self.r_factors)

    def select(self, names: Iterable[str]) -> GradientSystem:
        """System of some of the terms, from the same R factors.

        Parameters
        ----------
        names : iterable of str
            Terms to keep, in the order wanted.

        Returns
        -------
        GradientSystem
            Its equations are not read again; it shares ``hc3_meat`` with this one.

        Raises
        ------
        ValueError
            When a name is not among ``term_names``.

        Examples
        --------
        >>> system = GradientSystem.from_arrays([[1.0, 0.0], [0.0, 2.0]], [1.0, 4.0], ["a", "b"])
        >>> system.select(["b"]).r_factor.shape
        (2, 2)
        """
        wanted = tuple(names)
        unknown = [name for name in wanted if name not in self.term_names]
        if unknown:
            raise ValueError(f"Expected terms among {list(self.term_names)}, got {unknown}.")
        index = [self.term_names.index(name) for name in wanted]
        columns = [*index, self.n_terms]
        r_factors = tuple(_upper(np.asfortranarray(part[:, columns])) for part in self.r_factors)
        meat = None
        if self.hc3_meat is not None:
            meat = partial(_embedded_meat, self.hc3_meat, index, self.n_terms)
        return GradientSystem(wanted, self.labels, r_factors, self.counts, meat)

    def without_each(self) -> list[Array]:
        """R factors of all clusters but one, for each cluster in turn.

        They are merged, never subtracted: what is left of a column that lives in one cluster is
        zero and not a rounding error.

        Returns
        -------
        list of ndarray of shape (k + 1, k + 1)
            One per cluster: the one that it leaves out.
        """
        n, none = len(self.r_factors), np.zeros_like(self.r_factors[0])
        before, after = [none], [none]
        for i in range(n - 1):
            before.append(merge([before[-1], self.r_factors[i]]))
            after.append(merge([self.r_factors[n - 1 - i], after[-1]]))
        return [merge([before[i], after[n - 1 - i]]) for i in range(n)]


def _upper(block: Array) -> Array:
    """Square R of a column-major block, which is overwritten, with a non-negative diagonal."""
    n = block.shape[1]
    result = np.zeros((n, n))
    if len(block):
        reduced = lapack.dgeqrf(block, overwrite_a=1)[0][:n]
        result[: len(reduced)] = np.triu(reduced)
        result[np.diagonal(result) < 0] *= -1.0
    return result


def _embedded_meat(
    meat: Meat, index: Sequence[int], n_terms: int, whitener: Array, coef: Array
) -> Array:
    """HC3 middle factor of a sub-family, by the pass over the columns of the whole family."""
    full_whitener = np.zeros((n_terms, whitener.shape[1]))
    full_coef = np.zeros(n_terms)
    full_whitener[index] = whitener
    full_coef[index] = coef
    return meat(full_whitener, full_coef)
