"""Penalties ``theta' Q theta`` with a Q of few numbers: of low rank, or a product per layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from scipy.linalg import block_diag, pinv, svd
from scipy.optimize import least_squares
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from sklearn_implicitreg.penalties.structured import (
    Array,
    Endpoints,
    Structured,
    StructuredPenalty,
    StructuredSolution,
)
from sklearn_implicitreg.penalties.symmetric import n_determined, solve_symmetric
from sklearn_implicitreg.problem.parameters import FLAG, integer

_EPS = float(np.finfo(np.float64).eps)
_EXACT = 1e-10  # share of the target, not squared, that may be left by a start that is the last
_ZERO = 1e-6  # share of the largest singular value of what was found, up to which others are zero
_N_RANDOM = 2  # starts
_N_ROUNDS = 500  # of alternating least squares
_STALLED = 1e-13  # change of what is left in a round
_LARGEST = 1000  # unknowns of a layer whose linear equations are solved for a start


@dataclass(frozen=True)
class LowRankPenalty(StructuredPenalty):
    """``R = theta' Q theta`` with ``Q = V diag(coefficients) V'`` and orthonormal columns V.

    Attributes
    ----------
    coefficients : ndarray of shape (r,)
        Eigenvalues of Q other than zero, the largest in size first.
    shapes : dict of str to tuple of int
        Shapes of the tensors that theta is flattened and concatenated from, in this order.
    vectors : ndarray of shape (p, r)
        V.

    Examples
    --------
    >>> penalty = LowRankPenalty(np.array([2.0]), {"w": (2,)}, vectors=np.array([[0.6], [0.8]]))
    >>> penalty.value(np.array([1.0, 1.0])), penalty({"w": torch.tensor([1.0, 1.0])})
    (3.92, tensor(3.9200))
    """

    vectors: Array = field(kw_only=True)

    @property
    def matrix_(self) -> Array:
        """Q as a full matrix of shape (p, p)."""
        return np.asarray((self.vectors * self.coefficients) @ self.vectors.T)

    @property
    def diagonal_(self) -> Array:
        """Diagonal of Q, of shape (p,)."""
        return np.asarray(np.square(self.vectors) @ self.coefficients)

    @property
    def entries_(self) -> Array:
        """Q as a full matrix."""
        return self.matrix_

    def words(self) -> str:
        """What the penalty is like, in a sentence.

        Returns
        -------
        str
        """
        inside = ", ".join(f"{value:.4g}" for value in self.coefficients)
        return f"R = theta' Q theta with eigenvalues of Q {inside}, all others zero."

    def _times(self, theta: Tensor) -> Tensor:
        vectors, values = theta.new_tensor(self.vectors), theta.new_tensor(self.coefficients)
        return (vectors * values) @ (vectors.T @ theta)


class LowRankQuadratic(Structured):
    """``R = theta' Q theta`` with a symmetric Q of a given rank, from one or several endpoints.

    ``coef_`` has its eigenvalues, ``penalty_.vectors`` their eigenvectors. Q has ``r p - r (r - 1)
    / 2`` unknown numbers, which r endpoints determine if ``theta' Q theta`` between them has the
    rank r: without noise ``Q = B (Theta' B)^-1 B'`` with ``B = Q Theta``, the formula of Nystroem.
    With noise it is one of several starts of a least-squares fit.

    Parameters
    ----------
    rank : int
        Rank r of Q; at most the number of parameters.
    psd : bool, default=False
        ``Q = U U'``, positive semi-definite; otherwise eigenvalues of both signs.

    See Also
    --------
    Quadratic : Without a bound on the rank.

    References
    ----------
    Drineas and Mahoney (2005), On the Nystroem method for approximating a Gram matrix.

    Examples
    --------
    >>> U, thetas = np.array([[1.0], [2.0], [0.0]]), np.array([[1.0], [1.0], [1.0]])
    >>> found = LowRankQuadratic(rank=1).solve(thetas, 2 * U @ U.T @ thetas)
    >>> found.penalty.matrix_.round(9).tolist(), found.rank
    ([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]], 3)
    """

    _allowed: ClassVar = {"rank": integer(1), "psd": FLAG}

    def __init__(self, rank: int, psd: bool = False):
        self.rank = rank
        self.psd = psd

    def _solve(self, endpoints: Endpoints) -> StructuredSolution:
        thetas, rhs, r = endpoints.thetas, endpoints.targets / 2, int(self.rank)
        p = len(thetas)
        if r > p:
            raise ValueError(
                f"Expected a rank of at most {p}, the number of parameters, got {r}; give a "
                "smaller one, or Quadratic()."
            )
        basis, inside, targets = _reduced(thetas, rhs, r)
        values, vectors = np.zeros(r), np.eye(p)[:, :r]
        if inside.size:
            factor, signs = self._factor(inside, targets)
            found = (factor * signs) @ factor.T
            values, turned = np.linalg.eigh(found)
            largest = np.argsort(-np.abs(values), kind="stable")[:r]
            values, vectors = values[largest], basis @ turned[:, largest]
        penalty = LowRankPenalty(values, endpoints.shapes, vectors=vectors)
        fitted = penalty.gradient(thetas)
        n_free, m = n_determined(p, r), inside.shape[1]
        rank = self._determined(penalty, thetas, m)
        notes = [
            f"{m} independent endpoints determine {rank} of the {n_free} numbers of a matrix of "
            f"rank {r} (r p - r (r - 1) / 2)",
            f"{endpoints.unexplained(fitted):.2g} of the squared gradient is left over",
        ]
        if rank < n_free:
            notes.append(f"not identifiable below {r} endpoints that see every direction of Q")
        return StructuredSolution(
            penalty,
            coef=values,
            term_names=tuple(f"eigenvalue[{k}]" for k in range(r)),
            fitted=fitted,
            rank=rank,
            n_equations=thetas.size,
            notes=tuple(notes),
            dependent=("Q",) if rank < n_free else (),
            n_free=n_free,
        )

    def _factor(self, thetas: Array, rhs: Array) -> tuple[Array, Array]:
        """U and signs of the ``U diag(signs) U'`` that leaves the least, from several starts."""
        best, least = (np.zeros((len(thetas), int(self.rank))), np.ones(int(self.rank))), np.inf
        for start in _starts(thetas, rhs, int(self.rank)):
            factor, signs = _cut(start, int(self.rank), self.psd)
            factor, left = _refined(factor, signs, thetas, rhs)
            if left < least:
                best, least = (factor, signs), left
            if least <= _EXACT:
                break
        return best

    def _determined(self, penalty: LowRankPenalty, thetas: Array, m: int) -> int:
        """Numbers that the equations determine, of those that Q has."""
        p, r = len(thetas), int(self.rank)
        if m == p:
            return n_determined(p, r)
        seen = (penalty.vectors * np.sqrt(np.abs(penalty.coefficients))).T @ thetas
        t = _rank(seen)
        # Q moves by U X' + X U' without moving Q Theta: X has t (t - 1) / 2 such directions in
        # the part of U that the endpoints see, and p - (m - t) for each column that they do not.
        return p * r - t * (t - 1) // 2 - (r - t) * (p - m + t)


def _reduced(thetas: Array, rhs: Array, r: int) -> tuple[Array, Array, Array]:
    """Basis of what endpoints and right sides span, and both in it, a column for each direction."""
    left, values, right = svd(thetas, full_matrices=False, check_finite=False)
    m = int(np.sum(values > max(thetas.shape) * _EPS * values[0])) if values[0] else 0
    inside, targets = left[:, :m] * values[:m], rhs @ right[:m].T
    unit = np.eye(len(thetas), max(r - 2 * m, 0))  # as many directions as the rank needs
    spanning = np.hstack([inside, targets, unit])
    if spanning.shape[1] >= len(thetas):
        return np.eye(len(thetas)), inside, targets
    # A part of U beyond it would add to what is left, and to nothing else.
    basis = np.linalg.qr(spanning)[0]
    return basis, basis.T @ inside, basis.T @ targets


def _starts(thetas: Array, rhs: Array, r: int) -> Iterator[Array]:
    """Symmetric matrices: by Nystroem, without a bound on the rank, and random ones."""
    between = thetas.T @ rhs
    values, vectors = np.linalg.eigh((between + between.T) / 2)
    used = np.argsort(-np.abs(values))[:r]
    used = used[np.abs(values[used]) > len(values) * _EPS * np.abs(values).max()]
    columns = rhs @ vectors[:, used]
    yield (columns / values[used]) @ columns.T
    full = solve_symmetric(thetas, rhs).matrix
    yield full
    rng = np.random.default_rng(0)
    for _ in range(_N_RANDOM):
        drawn = rng.standard_normal(full.shape)
        yield np.linalg.norm(full) / len(full) * (drawn + drawn.T)


def _cut(matrix: Array, r: int, psd: bool) -> tuple[Array, Array]:
    """U and signs of the nearest ``U diag(signs) U'`` of a rank."""
    values, vectors = np.linalg.eigh(matrix)
    used = np.argsort(-(values if psd else np.abs(values)), kind="stable")[:r]
    values, signs = values[used], np.where(values[used] < 0, -1.0, 1.0)
    if psd:  # away from zero, where the slope in U is zero
        values, signs = np.maximum(values, 1e-3 * np.abs(matrix).max()), np.ones(r)
    return vectors[:, used] * np.sqrt(np.abs(values)), signs


def _refined(start: Array, signs: Array, thetas: Array, rhs: Array) -> tuple[Array, float]:
    """The U of a minimum near a start, and the share of the right side that it leaves."""
    size = float(np.linalg.norm(rhs)) or 1.0
    shape, n = start.shape, rhs.size

    def residual(x: Array) -> Array:
        u = x.reshape(shape)
        return (((u * signs) @ (u.T @ thetas) - rhs) / size).reshape(-1)

    def jacobian(x: Array) -> LinearOperator:
        u = x.reshape(shape).copy()
        seen, signed = signs[:, None] * (u.T @ thetas), u * signs

        def ahead(step: Array) -> Array:
            d = step.reshape(shape)
            return np.asarray((d @ seen + signed @ (d.T @ thetas)) / size).reshape(-1)

        def back(rows: Array) -> Array:
            d = rows.reshape(rhs.shape)
            return np.asarray((d @ seen.T + thetas @ (d.T @ signed)) / size).reshape(-1)

        return LinearOperator((n, x.size), matvec=ahead, rmatvec=back, dtype=np.float64)

    # Turning U within its columns changes nothing; LSMR takes the shortest of such steps.
    options = {"xtol": 1e-13, "ftol": 1e-13, "gtol": 1e-13, "max_nfev": 100}
    unit = float(np.abs(start).max()) or 1.0
    found = least_squares(
        residual, start.reshape(-1), jacobian, tr_solver="lsmr", x_scale=unit, **options
    )
    return found.x.reshape(shape), float(np.sqrt(2 * found.cost))


def _rank(matrix: Array) -> int:
    values = np.linalg.svd(matrix, compute_uv=False)
    return int(np.sum(values > _ZERO * values[0])) if values.size and values[0] else 0


@dataclass(frozen=True)
class KroneckerPenalty(StructuredPenalty):
    """``R = sum_l tr(W_l' A_l W_l B_l)`` with symmetric matrices A_l and B_l of each tensor.

    Attributes
    ----------
    coefficients : ndarray of shape (k,)
        Upper triangles of A_l and B_l row by row, tensor after tensor.
    shapes : dict of str to tuple of int
        Shapes of the tensors that theta is flattened and concatenated from, in this order.

    Examples
    --------
    >>> penalty = KroneckerPenalty(np.array([2.0, 1.0, 0.0, 1.0]), {"w": (1, 2)})
    >>> penalty({"w": torch.tensor([[1.0, 3.0]])}), penalty.factors_["w"][1].tolist()
    (tensor(20.), [[1.0, 0.0], [0.0, 1.0]])
    """

    @property
    def factors_(self) -> dict[str, tuple[Array, Array]]:
        """A and B by the name of their tensor."""
        found, start = {}, 0
        for name, shape in self.shapes.items():
            pair = []
            for n in _sides(shape):
                end = start + n * (n + 1) // 2
                pair.append(_symmetric(self.coefficients[start:end], n))
                start = end
            found[name] = (pair[0], pair[1])
        return found

    @property
    def matrix_(self) -> Array:
        """Q as a full matrix of shape (p, p)."""
        return np.asarray(block_diag(*[np.kron(a, b) for a, b in self.factors_.values()]))

    @property
    def diagonal_(self) -> Array:
        """Diagonal of Q, of shape (p,)."""
        pairs = self.factors_.values()
        return np.concatenate([np.kron(np.diag(a), np.diag(b)) for a, b in pairs])

    @property
    def entries_(self) -> Array:
        """Q as a full matrix."""
        return self.matrix_

    def words(self) -> str:
        """What the penalty is like, in a sentence.

        Returns
        -------
        str
        """
        inside = []
        for k, letter in enumerate("AB"):
            own = [np.linalg.eigvalsh(pair[k]) for pair in self.factors_.values()]
            values = np.concatenate(own)
            inside.append(f"of {letter} from {values.min():.4g} to {values.max():.4g}")
        return f"R = sum_l tr(W_l' A_l W_l B_l) with eigenvalues {' and '.join(inside)}."

    def _times(self, theta: Tensor) -> Tensor:
        rest, found = theta.reshape(len(theta), -1).T, []
        sizes = [prod(shape) for shape in self.shapes.values()]
        parts = torch.split(rest, sizes, dim=1)
        for part, shape, (a, b) in zip(
            parts, self.shapes.values(), self.factors_.values(), strict=True
        ):
            w = part.reshape(-1, *_sides(shape))
            found.append((theta.new_tensor(a) @ w @ theta.new_tensor(b)).reshape(part.shape))
        return torch.cat(found, dim=1).T.reshape(theta.shape)


class KroneckerQuadratic(Structured):
    """``R = sum_l tr(W_l' A_l W_l B_l)`` with unknown symmetric A_l and B_l of every layer.

    A_l weighs the outputs of a layer and B_l its inputs, as the factors of a curvature do [1]_;
    with both the identity R is the ridge of the layer. W_l is a tensor as the matrix (outputs,
    rest); one with a single axis is a column, of which A_l is all. A factor between A_l and B_l is
    free: B_l has the norm of the identity and a trace of zero or above. ``penalty_.factors_`` has
    both by the name of their tensor, ``coef_`` their upper triangles.

    Two or three endpoints of nearly square layers determine all of them. They are found by
    alternating least squares, each half of which is exact, from several starts.

    References
    ----------
    .. [1] Martens and Grosse (2015), Optimizing Neural Networks with Kronecker-factored Approximate
       Curvature.

    Examples
    --------
    >>> from types import SimpleNamespace as Namespace
    >>> A, W = np.array([[2.0, 1.0], [1.0, 3.0]]), np.random.default_rng(0).normal(size=(3, 2, 2))
    >>> thetas, targets = W.reshape(3, 4).T, 2 * (A @ W).reshape(3, 4).T
    >>> found = KroneckerQuadratic().solve(thetas, targets, 3 * [Namespace(params={"w": W[0]})])
    >>> [factor.round(6).tolist() for factor in found.penalty.factors_["w"]]
    [[[2.0, 1.0], [1.0, 3.0]], [[1.0, 0.0], [0.0, 1.0]]]
    >>> len(found.coef), found.n_unknowns
    (6, 5)
    """

    def _solve(self, endpoints: Endpoints) -> StructuredSolution:
        shapes, n_endpoints = endpoints.shapes, endpoints.thetas.shape[1]
        layers: dict[str, _Layer] = {}
        end = 0
        for name, shape in shapes.items():
            rows = slice(end, end := end + prod(shape))
            sides = n_endpoints, *_sides(shape)
            weights, rhs = endpoints.thetas[rows].T, endpoints.targets[rows].T / 2
            layers[name] = _solved(weights.reshape(sides), rhs.reshape(sides))
        triangles = [m[np.triu_indices(len(m))] for own in layers.values() for m in own[:2]]
        penalty = KroneckerPenalty(np.concatenate(triangles), shapes)
        fitted = penalty.gradient(endpoints.thetas)
        counts = {n: sum(k * (k + 1) // 2 for k in _sides(s)) - 1 for n, s in shapes.items()}
        rank, n_free = sum(own.rank for own in layers.values()), sum(counts.values())
        lacking = tuple(name for name, own in layers.items() if own.rank < counts[name])
        notes = [
            f"{n_endpoints} endpoints determine {rank} of {n_free} numbers, a factor between A and "
            "B of each layer aside",
            f"{endpoints.unexplained(fitted):.2g} of the squared gradient is left over",
        ]
        if lacking:
            notes.append("not identifiable by so few independent endpoints")
        return StructuredSolution(
            penalty,
            coef=penalty.coefficients,
            term_names=tuple(_names(shapes)),
            fitted=fitted,
            rank=rank,
            n_equations=endpoints.thetas.size,
            notes=tuple(notes),
            dependent=tuple(f"A and B of {name}" for name in lacking),
            n_free=n_free,
        )


class _Layer(NamedTuple):
    """A and B of one tensor, the numbers that are determined, and what is left."""

    a: Array
    b: Array
    rank: int
    left: float


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix."""
    return (shape[0] if shape else 1), prod(shape[1:])


def _names(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, shape in shapes.items():
        for letter, n in zip("AB", _sides(shape), strict=True):
            for i, j in zip(*np.triu_indices(n), strict=True):
                yield f"{letter}[{name}][{i},{j}]"


def _solved(weights: Array, rhs: Array) -> _Layer:
    """Least squares of ``A W_k B = G_k`` over symmetric A and B, of (M, rows, columns)."""
    best: _Layer | None = None
    for start in _second_factors(weights, rhs):
        found = _alternated(weights, rhs, start)
        if best is None or found.left < best.left:
            best = found
        if best.left <= _EXACT:
            break
    assert best is not None
    return best


def _second_factors(weights: Array, rhs: Array) -> Iterator[Array]:
    """Starts for B: by equations that are linear in A and B, the identity, random ones."""
    n = weights.shape[2]
    if sum(k * (k + 1) // 2 for k in weights.shape[1:]) <= _LARGEST and rhs.any():
        yield _balanced(weights, rhs)[1]  # A^-1 G_k = W_k B
        yield pinv(_balanced(rhs, weights)[1])  # A W_k = G_k B^-1
    yield np.eye(n)
    rng = np.random.default_rng(0)
    for _ in range(_N_RANDOM):
        drawn = rng.standard_normal((n, n))
        yield drawn + drawn.T


def _balanced(one: Array, other: Array) -> tuple[Array, Array]:
    """Symmetric X and Y, not both zero, with ``X other_k = one_k Y`` as nearly as can be."""
    rows, columns = one.shape[1:]
    size_one, size_other = np.linalg.norm(one) or 1.0, np.linalg.norm(other) or 1.0
    left = [np.kron(np.eye(rows), own.T / size_other) for own in other]
    right = [np.kron(own / size_one, np.eye(columns)) for own in one]
    x = _symmetric_columns(np.concatenate(left), rows)
    y = _symmetric_columns(np.concatenate(right), columns)
    null = np.linalg.svd(np.hstack([x, -y]))[2][-1]
    n = rows * (rows + 1) // 2
    return _symmetric(null[:n], rows) / size_other, _symmetric(null[n:], columns) / size_one


def _symmetric_columns(matrix: Array, n: int) -> Array:
    """Columns of a linear map of (n, n) matrices for the upper triangle of symmetric ones."""
    i, j = np.triu_indices(n)
    found: Array = matrix[:, i * n + j] + np.where(i == j, 0.0, 1.0) * matrix[:, j * n + i]
    return found


def _symmetric(triangle: Array, n: int) -> Array:
    matrix = np.zeros((n, n))
    matrix[np.triu_indices(n)] = triangle
    return matrix + np.triu(matrix, 1).T


def _alternated(weights: Array, rhs: Array, b: Array) -> _Layer:
    """Alternating least squares from a B."""
    size = float(np.linalg.norm(rhs)) or 1.0
    turned = np.hstack(list(rhs.transpose(0, 2, 1)))
    straight, before = np.hstack(list(rhs)), 2.0
    for _ in range(_N_ROUNDS):
        b = _scaled(b)
        first = solve_symmetric(np.hstack(list(weights @ b)), straight)
        second = solve_symmetric(np.hstack(list(weights.transpose(0, 2, 1) @ first.matrix)), turned)
        b = second.matrix
        left = float(np.linalg.norm(first.matrix @ weights @ b - rhs)) / size
        if left <= _STALLED or before - left <= _STALLED * before:
            break
        before = left
    scaled = _scaled(b)
    a = float((scaled * b).sum()) / len(b) * first.matrix
    # Both halves know all but what the other hides. Between them a factor is free, of a single
    # endpoint one for each of its singular values.
    independent = _rank(weights.reshape(len(weights), -1))
    shared = 1 if independent > 1 else _rank(a @ weights[0] @ scaled)
    seen = weights @ scaled, weights.transpose(0, 2, 1) @ a
    parts = [n_determined(own.shape[1], _rank(np.hstack(list(own)))) for own in seen]
    return _Layer(a, scaled, max(sum(parts) - max(shared, 1), 0), left)


def _scaled(b: Array) -> Array:
    """B with the norm of the identity, and a trace of zero or above; of zero the identity."""
    size = float(np.linalg.norm(b))
    if not size:
        return np.eye(len(b))
    factor = np.sqrt(len(b)) / size * (-1.0 if np.trace(b) < 0 else 1.0)
    return np.asarray(factor * b)
