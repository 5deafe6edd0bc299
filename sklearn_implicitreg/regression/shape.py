"""Unknown shape parameters of a family, by variable projection on R factors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.ndimage import minimum_filter
from scipy.optimize import least_squares

from sklearn_implicitreg.penalties import Penalty, Sum
from sklearn_implicitreg.penalties.base import Leaf, same
from sklearn_implicitreg.penalties.shape import Shape, ShapeSlope, Variants, short_names
from sklearn_implicitreg.regression.equations import Equations, Targets
from sklearn_implicitreg.regression.solve import decompose, norm_of, solve
from sklearn_implicitreg.regression.system import Array, merge

_NODES = 16  # values of a shape whose columns the first look has
_UNIT = -np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
_GRID = {1: 64, 2: 24}  # points along each shape in that look; of more shapes fewer
_STARTS = 3
_STEP = 1e-4  # of differences, in the logarithm
_WIDE_STEP = 1e-2
_JUMPS = 0.1  # relative difference of slopes by the two steps
_DEPENDENT = 1e-8  # sine of the angle of a slope to the columns
_NEAR = 0.02  # starts that are closer, as a share of the range, are one
_HOPELESS = 100.0  # times what the best start leaves of the target
_NOTHING = 1e-8  # share of the target that a term with a shape must have
_EDGE = 1e-3  # of a range
_CONVERGED = 1e-2  # share of the last quarter of the Chebyshev coefficients of smooth columns
_OTHER = 0.05  # relative difference of shapes that explain as much
_LOGLIK = 4.0  # what twice the log-likelihood may fall by to be as much

Index = npt.NDArray[np.intp]
# Columns (n, k), their slopes in every shape (S, n, k), and the target (n,): all in one basis.
Columns = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Resolved:
    """A penalty at the shapes that were found, and the same with a column for each of them."""

    penalty: Penalty
    tangent: Penalty
    shapes: tuple[Shape, ...] = ()

    def equations(self, targets: Targets, tangent: Equations | None = None) -> Equations:
        """Equations of the penalty, with those of the tangent beside them."""
        if tangent is None:
            tangent = targets.equations(self.tangent)
        if not self.shapes:
            return tangent
        names = tuple(s.name for s in self.shapes if s.name in tangent.term_names)
        beside = replace(tangent, slopes=names)
        return replace(targets.equations(self.penalty), tangent=beside, shapes=self.shapes)


def resolved(targets: Targets, penalty: Penalty, positive: bool = False) -> Resolved:
    """The penalty with its unknown shapes found, and with their slopes as columns."""
    unknown = penalty.unknown_shapes()
    if not unknown:
        return Resolved(penalty, penalty)
    if targets.problem.in_shards:
        raise ValueError(
            f"Expected shapes with values for a model that is sharded over ranks, got {penalty!r}; "
            f"give numbers for {', '.join(unknown)}, or compare some by ImplicitRegularizationCV."
        )
    unknown = penalty.unknown_shapes(targets.problem.params)
    return _Search(targets, penalty, unknown, positive).resolved()


@dataclass(frozen=True, eq=False)
class _Search:
    """Variable projection: the coefficients are solved for at every value of the shapes."""

    targets: Targets
    penalty: Penalty
    unknown: dict[str, tuple[float, float]]
    positive: bool

    @cached_property
    def low(self) -> Array:
        return np.log([low for low, _ in self.unknown.values()])

    @cached_property
    def high(self) -> Array:
        return np.log([high for _, high in self.unknown.values()])

    def at(self, place: Array) -> Penalty:
        """The penalty where the shapes are at a place of their logarithms."""
        values = map(float, np.exp(place))
        found: Penalty = self.penalty.with_shapes(dict(zip(self.unknown, values, strict=True)))
        return found

    def leaves(self, place: Array) -> list[Leaf]:
        problem = self.targets.problem
        return self.at(place).leaves(problem.params, problem)

    @cached_property
    def users(self) -> list[int | None]:
        """For each leaf with an unknown coefficient the shape that it has."""
        middle = (self.low + self.high) / 2
        base, found = self.leaves(middle), {}
        for s, name in enumerate(self.unknown):
            moved = middle + 0.1 * (np.arange(len(self.low)) == s)
            for i, leaf in enumerate(self.leaves(moved)):
                if same(leaf.penalty, base[i].penalty):
                    continue
                if leaf.coef is not None or i in found:
                    what = "an unknown coefficient" if leaf.coef is not None else "one 'fit'"
                    raise ValueError(
                        f"Expected {what} in a term with {name.split('__')[-1]}='fit', got "
                        f"{self.penalty!r}; give it a number."
                    )
                found[i] = s
        for i, j in itertools.combinations(found, 2):
            twice = base[i].names == base[j].names and base[i].group == base[j].group
            if twice and same(base[i].penalty, base[j].penalty):
                raise ValueError(
                    f"Expected terms that differ in more than a value to be found, got two of "
                    f"{type(base[i].penalty).__name__} in {self.penalty!r}; give one a number."
                )
        return [found.get(i) for i, leaf in enumerate(base) if leaf.coef is None]

    @cached_property
    def nodes(self) -> list[Array]:
        """Chebyshev nodes of all shapes at once."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return [middle + half * u for u in _UNIT]

    @cached_property
    def looked(self) -> Equations:
        """Equations of all nodes."""
        users = self.users  # wrong families raise before any pass over the rows
        equations = self.targets.equations(Variants([self.at(place) for place in self.nodes]))
        if any(place.system.instrumented for place in equations.places):
            raise ValueError(
                "Expected a family without random draws for an unknown shape along a trajectory, "
                f"got {self.penalty!r}; give the shape a number."
            )
        assert len(users) <= len(equations.places[0].design.leaves)
        return equations

    @cached_property
    def sizes(self) -> list[int]:
        """Number of terms of each leaf with an unknown coefficient."""
        return [n for _, n in self.looked.places[0].design.leaves[: len(self.users)]]

    @cached_property
    def kind(self) -> Index:
        """For each column of the family its shape, or -1."""
        pairs = zip(self.users, self.sizes, strict=True)
        found: Index = np.concatenate([np.full(n, -1 if s is None else s) for s, n in pairs])
        return found

    def columns(self, equations: Equations, places: Sequence[Array]) -> tuple[list[Array], Array]:
        """Columns (n, k) at every place, nuisance columns last, and the target."""
        upper = merge([place.system.merged for place in equations.places])
        n, k = len(self.users), upper.shape[1] - 1
        ends = np.cumsum([0, *(size for _, size in equations.places[0].design.leaves)])
        own = [np.arange(*ends[i : i + 2]) for i in range(len(ends) - 1)]
        nuisance, later = np.arange(ends[-1], k), iter(own[n:])
        found = [np.concatenate([*own[:n], nuisance])]
        for place in places[1:]:
            moved = place != places[0]
            kept = [
                own[i] if s is None or not moved[s] else next(later)
                for i, s in enumerate(self.users)
            ]
            found.append(np.concatenate([*kept, nuisance]))
        return [upper[:, index] for index in found], upper[:, -1]

    def exact(self, place: Array, step: float = _STEP) -> Columns:
        """Columns at a place, with slopes by central differences."""
        steps = step * np.eye(len(place))
        around = [place, *(place + own for own in steps), *(place - own for own in steps)]
        equations = self.targets.equations(Variants([self.at(own) for own in around]))
        (here, *others), target = self.columns(equations, around)
        n = len(place)
        slopes = np.array([(others[s] - others[n + s]) / (2 * step) for s in range(n)])
        return here, slopes, target

    def first_look(self) -> tuple[Callable[[Array], Columns], Array]:
        """Columns anywhere by interpolation between Chebyshev nodes, from one R factor."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        held, target = self.columns(self.looked, self.nodes)
        nodes = np.array(held)
        norms = np.linalg.norm(nodes, axis=1, keepdims=True)
        nodes /= np.where(norms > 0, norms, 1.0)  # columns of unit norm turn, and grow no more

        def at(place: Array) -> Array:
            columns: Array = nodes[0].copy()
            for s, x in enumerate((place - middle) / half):
                columns[:, users[s]] = np.tensordot(weights[s](x), nodes[:, :, users[s]], 1)
            return columns

        users = [np.flatnonzero(self.kind == s) for s in range(len(half))]
        weights = [_chebyshev if _is_smooth(nodes[:, :, own]) else _linear for own in users]

        def interpolated(place: Array) -> Columns:
            steps = _STEP * np.eye(len(place))
            slopes = [(at(place + step) - at(place - step)) / (2 * _STEP) for step in steps]
            return at(place), np.array(slopes), target

        return interpolated, target

    def starts(self, interpolated: Callable[[Array], Columns]) -> list[Array]:
        """Places of the lowest minima of the first look, the best first."""
        n = len(self.low)
        size = _GRID.get(n, max(3, int(600 ** (1 / n))))
        ends = zip(self.low, self.high, strict=True)
        axes = [np.linspace(low, high, size) for low, high in ends]
        places = np.array(list(itertools.product(*axes)))
        left = [float(np.square(self.left(*interpolated(p))[0]).sum()) for p in places]
        table = np.array(left).reshape((size,) * n)
        lowest = np.flatnonzero((table <= minimum_filter(table, 3, mode="nearest")).reshape(-1))
        lowest = lowest[np.argsort(np.array(left)[lowest], kind="stable")][: 2 * _STARTS]
        found: list[tuple[float, Array]] = []
        for cost, place in sorted(
            [self.refined(interpolated, places[i]) for i in lowest], key=lambda own: own[0]
        ):
            span = self.high - self.low
            if all(np.abs((place - other) / span).max() > _NEAR for _, other in found):
                found.append((cost, place))
        most = _HOPELESS * (found[0][0] + _NOTHING)
        return [place for cost, place in found[:_STARTS] if cost <= most]

    def left(self, columns: Array, slopes: Array, target: Array) -> tuple[Array, Array]:
        """What columns leave of the target of norm 1, and its slopes in the shapes."""
        # Kaufman (1975), A variable projection method for solving separable nonlinear least
        # squares problems, BIT 15: the slope of the projection is that of the columns.
        upper = np.column_stack([columns, target / norm_of(target)])
        if self.positive:
            found = solve(upper, len(upper), positive=True)
            used, coef = found.active, found.coef
            left = decompose(upper[:, [*np.flatnonzero(used), -1]]).left if used.any() else None
        else:
            spectrum = decompose(upper)
            left, coef = spectrum.left, spectrum.whitener @ (spectrum.left.T @ upper[:, -1])
        both = np.column_stack([upper[:, -1], -(slopes @ coef).T])
        if left is not None:
            both = both - left @ (left.T @ both)
        return both[:, 0], both[:, 1:]

    def refined(self, columns: Callable[[Array], Columns], start: Array) -> tuple[float, Array]:
        """Share of the target that is left at a minimum near a start, and the place of it."""
        span = self.high - self.low
        known: dict[bytes, tuple[Array, Array]] = {}

        def both(at: Array) -> tuple[Array, Array]:
            key = at.tobytes()
            if key not in known:
                known[key] = self.left(*columns(self.low + (at - 1) * span))
            return known[key]

        found = least_squares(
            lambda at: both(at)[0],
            np.clip(1 + (start - self.low) / span, 1 + _EDGE / 2, 2 - _EDGE / 2),
            lambda at: both(at)[1] * span,
            bounds=(1.0, 2.0),
            xtol=1e-8,
            ftol=1e-9,
            gtol=1e-12,
            max_nfev=12,
        )
        return 2 * float(found.cost), self.low + (found.x - 1) * span

    def resolved(self) -> Resolved:
        """The shapes of the least residual, with what their slopes are made of."""
        interpolated, target = self.first_look()
        middle = (self.low + self.high) / 2
        if not self.has_signal(target):
            return self.without("there is no gradient to explain", middle)
        starts = self.starts(interpolated)
        found = sorted([self.refined(self.exact, s) for s in starts], key=lambda own: own[0])
        cost, place = found[0]
        here, exact, target = self.exact(place)
        upper = np.column_stack([here, target])
        coef = solve(upper, len(upper), positive=self.positive).coef
        self.check_jumps(place, exact @ coef, coef)
        shapes, slopes = [], []
        for shape, s in zip(self.described(place), range(len(place)), strict=True):
            own = list(shape.columns)
            if norm_of(here[:, own] @ coef[own]) <= _NOTHING * norm_of(target):
                shapes.append(shape.failing("not identifiable, its term explains nothing"))
                continue
            at = (place[s] - self.low[s]) / (self.high[s] - self.low[s])
            if _is_dependent(exact[s] @ coef, here):
                shape = shape.failing("not identifiable, a coefficient does what it does")
            elif not _EDGE * 2 < at < 1 - _EDGE * 2:
                low, high = list(self.unknown.values())[s]
                shape = shape.failing(f"it is at an end of its range, {low:g} to {high:g}")
            shapes.append(shape)
            slopes.append(self.slope(place, s, coef))
        known = self.at(place)
        noted = self.with_caution(tuple(shapes), found)
        return Resolved(known, Sum([known, *slopes]), noted)

    def check_jumps(self, place: Array, slopes: Array, coef: Array) -> None:
        """Raise ValueError where random columns jump, whose slopes depend on the step."""
        if not any(getattr(leaf.penalty, "stochastic", False) for leaf in self.leaves(place)):
            return
        wide = self.exact(place, _WIDE_STEP)[1] @ coef
        for name, one, other in zip(short_names(self.unknown), slopes, wide, strict=True):
            if norm_of(one - other) > _JUMPS * norm_of(other):
                raise ValueError(
                    f"Expected a family that changes smoothly with its unknown {name}, got jumps, "
                    f"as of masks that are drawn for a network: {self.penalty!r}; give it numbers, "
                    "and compare them by ImplicitRegularizationCV(families=[...])."
                )

    def has_signal(self, target: Array) -> bool:
        """Whether the target is above rounding."""
        return norm_of(target) > self.looked.rounding

    def without(self, why: str, place: Array) -> Resolved:
        """No shapes, in the middle of their ranges."""
        known = self.at(place)
        return Resolved(known, known, tuple(s.failing(why) for s in self.described(place)))

    def described(self, place: Array) -> list[Shape]:
        """The shapes at a place, with the columns that have them."""
        users = [np.flatnonzero(self.kind == s).tolist() for s in range(len(place))]
        found = zip(short_names(self.unknown), np.exp(place).tolist(), users, strict=True)
        return [Shape(name, value, tuple(own)) for name, value, own in found]

    def slope(self, place: Array, s: int, coef: Array) -> ShapeSlope:
        """Slope of the terms of a shape in its logarithm, with their coefficients."""
        step = _STEP * (np.arange(len(place)) == s)
        weighted: list[tuple[Leaf, tuple[float, ...]]] = []
        for sign in (1, -1):
            free = [leaf for leaf in self.leaves(place + sign * step) if leaf.coef is None]
            start = 0
            for leaf, user, n in zip(free, self.users, self.sizes, strict=True):
                own = sign * coef[start : start + n] / (2 * _STEP)
                start += n
                if user == s:
                    weighted.append((leaf, tuple(own.tolist())))
        return ShapeSlope(short_names(self.unknown)[s], tuple(weighted))

    def with_caution(
        self, shapes: tuple[Shape, ...], found: Sequence[tuple[float, Array]]
    ) -> tuple[Shape, ...]:
        """The shapes with a note where others explain as much."""
        (least, best), *others = found
        n = sum(place.system.n_equations for place in self.looked.places)
        for cost, place in others:
            as_much = cost <= least * np.exp(_LOGLIK / n) + _NOTHING**2
            if as_much and np.abs(place - best).max() > _OTHER:
                words = ", ".join(
                    f"{shape.name} = {value:.4g}"
                    for shape, value in zip(shapes, np.exp(place), strict=True)
                )
                note = f"Other shapes explain as much: {words}."
                return (replace(shapes[0], notes=(*shapes[0].notes, note)), *shapes[1:])
        return shapes


def _is_dependent(slope: Array, columns: Array) -> bool:
    """Whether a slope is a combination of columns."""
    left = decompose(np.column_stack([columns, slope])).left
    return norm_of(slope - left @ (left.T @ slope)) <= _DEPENDENT * norm_of(slope)


def _is_smooth(nodes: Array) -> bool:
    """Whether polynomials through the nodes are the columns between them: they have converged."""
    degrees = np.arange(_NODES)[:, None]
    coefs = np.tensordot(np.cos(degrees * np.arccos(_UNIT)), nodes, 1)
    last = np.linalg.norm(coefs[-_NODES // 4 :])
    return bool(last <= _CONVERGED * np.linalg.norm(coefs))


def _chebyshev(x: float) -> Array:
    """Weights of the nodes in the polynomial through them (Berrut and Trefethen 2004)."""
    away = x - _UNIT
    if np.abs(away).min() < 1e-14:
        return (np.abs(away) < 1e-14).astype(float)
    weights: Array = (-1.0) ** np.arange(_NODES) * np.sqrt(1 - _UNIT**2) / away
    weights /= weights.sum()
    return weights


def _linear(x: float) -> Array:
    """Weights of the nodes in the straight line between the nearest two."""
    return np.array([np.interp(x, _UNIT, own) for own in np.eye(_NODES)])
