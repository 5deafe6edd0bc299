"""The extension point: what a penalty owes, and how penalties are combined."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Number
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from sklearn_implicitreg.problem import Params, Problem, RowBatch, closing, mean_over_rows
from sklearn_implicitreg.problem.parameters import (
    GROUPS,
    SCOPE,
    Allowed,
    Checked,
    check,
    choice,
    instance,
    number,
    shown,
)

GroupBy = str | Mapping[str, str] | Callable[[str, Tensor], str]
Scope = str | Callable[[str, Tensor], bool]
FIT = "fit"  # in the place of the value of a shape parameter


@dataclass(frozen=True)
class Leaf:
    """A concrete penalty with the tensors it sees, its labels and its fixed coefficient."""

    penalty: Penalty
    names: tuple[str, ...]
    group: str = ""
    scope: str = ""
    coef: float | None = None

    def values(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Terms at the tensors that the leaf sees, times the coefficient if it is known."""
        seen = {name: params[name] for name in self.names}
        factor = 1.0 if self.coef is None else self.coef
        return {t: factor * v for t, v in self.penalty.terms(seen, problem).items()}


class Penalty(Checked, BaseEstimator):
    """A family of penalties ``R = sum_k coef_k * R_k(theta)`` with unknown coefficients.

    A family is a class with :meth:`terms`, of the parameters, or :meth:`rows`, whose mean is R.

    Optional: ``gradient(name, tensor)``, the gradients of the terms with respect to one tensor, of
    penalties that are sums over tensors; ``smooth(name, tensor)``, a mask of the coordinates at
    which every term is differentiable, or a :class:`Frame` of bases with such a mask;
    ``beside(name, tensor, step)``, the gradients a tiny step away from the kinks where they are not
    those at ``tensor + step``, as where small weights count as zero; ``stochastic = True`` of a
    penalty that draws random numbers, seeded by ``problem.draw``, and on a trajectory needs
    instruments.

    Penalties are combined with ``a + b`` (joined), ``a.on("fc1")`` (restricted to some tensors),
    ``a.per("layer")`` (one coefficient per layer) and ``0.1 * a`` (a known coefficient).

    Attributes
    ----------
    elementwise : bool, default=False
        Whether ``gradient`` and ``smooth`` can be evaluated on any piece of a tensor.
    affine : bool, default=False
        Whether the gradient is affine in the weights: its mean is then that at mean weights.
    shapes : dict of str to (float, float), default={}
        Parameters that may be ``"fit"``, with the range above 0 in which the estimator looks.

    See Also
    --------
    sklearn_implicitreg.penalties.check_penalty : Checks a user-written penalty.

    Examples
    --------
    >>> class Cubic(Penalty):
    ...     def terms(self, params, problem):
    ...         return {"cubic": sum(t.abs().pow(3).sum() for t in params.values())}
    >>> Cubic().terms({"w": torch.tensor([1.0, -2.0])}, None)
    {'cubic': tensor(9.)}
    >>> class Outputs(Penalty):
    ...     def rows(self, batch):
    ...         return {"outputs": batch.outputs.square().sum(1)}
    """

    __array_ufunc__ = None  # NumPy numbers leave ``number * penalty`` to the penalty
    elementwise = False
    affine = False
    shapes: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def check_parameters(self, unknown: bool = False) -> None:
        """Raise ValueError for a parameter that cannot be used, "fit" unless it may be unknown.

        Parameters
        ----------
        unknown : bool, default=False
            Whether parameters of ``shapes`` may be ``"fit"``.
        """
        unset = [name for name in self.shapes if _is_fit(getattr(self, name, None))]
        if unset and not unknown:
            raise ValueError(
                f"Expected a number as {unset[0]} of {type(self).__name__} here, got 'fit', which "
                "ImplicitRegularizationEstimator replaces by the value that it finds; give a "
                "number, or take est.penalty_ of a fit."
            )
        allowed = {
            name: kind | choice(FIT) if name in self.shapes else kind
            for name, kind in self._allowed.items()
        }
        given = {key: value for key, value in vars(self).items() if key not in unset}
        check(type(self).__name__, given, allowed)

    def unknown_shapes(self, params: Params | None = None) -> dict[str, tuple[float, float]]:
        """Shape parameters that are "fit", as ``get_params`` names them, and their ranges.

        Parameters
        ----------
        params : dict of str to Tensor, default=None
            The weights, for ranges that are relative to them.

        Returns
        -------
        shapes : dict of str to (float, float)

        Raises
        ------
        ValueError
            If a parameter is "fit" that is not in ``shapes``, or its range is none above 0.
        """
        found: dict[str, tuple[float, float]] = {}
        for key, value in self._inner().items():
            if isinstance(value, Penalty):
                inside = value.unknown_shapes(params)
                found |= {f"{key}__{name}": own for name, own in inside.items()}
            elif _is_fit(value) and key in self.shapes:
                low, high = _range(type(self).__name__, key, self.shapes[key])
                unit = 1.0 if params is None else self.shape_unit(key, params)
                found[key] = low * unit, high * unit
            elif _is_fit(value) and key not in self._allowed:
                can = list(self.shapes) or "none"
                raise ValueError(
                    f"Expected a value for {key} of {type(self).__name__}, got 'fit', which stands "
                    f"for parameters in its `shapes`: {can}."
                )
        return found

    def with_shapes(self, values: Mapping[str, float]) -> Any:
        """The same penalty with values of shape parameters.

        Parameters
        ----------
        values : dict of str to float
            By the names of :meth:`unknown_shapes`.

        Returns
        -------
        penalty : Penalty
        """
        own = copy.copy(self)
        for key, inside in _by_head(values).items():
            if "" in inside:
                setattr(own, key, inside[""])
            else:
                setattr(own, key, getattr(self, key).with_shapes(inside))
        return own

    def shape_unit(self, name: str, params: Params) -> float:
        """What the range of a shape parameter is in units of, 1 unless a family has another.

        Parameters
        ----------
        name : str
            The parameter.
        params : dict of str to Tensor
            The weights.

        Returns
        -------
        unit : float
        """
        return 1.0

    def _inner(self) -> dict[str, Any]:
        """Parameters, among them the penalties that this one is made of."""
        params: dict[str, Any] = self.get_params(deep=False)
        return params

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Value of each term at these parameters; of a penalty on rows, the weighted mean.

        Parameters
        ----------
        params : dict of str to Tensor
            The tensors in scope, in float64.
        problem : Problem or None
            The model and its data, for penalties that look at them; or a :class:`RowBatch`.

        Returns
        -------
        terms : dict of str to Tensor
            A scalar for a term with one coefficient, a vector for one coefficient per entry.

        Raises
        ------
        ValueError
            If a penalty on rows gets none.
        """
        self.check_parameters()
        if problem is None:
            raise ValueError(
                f"{type(self).__name__} is a mean over rows of data, and got the parameters alone; "
                "give X and y."
            )
        kept = torch.is_grad_enabled() and any(t.requires_grad for t in params.values())

        def _summed(here: Problem) -> tuple[Params, float]:
            totals: Params = {}
            weight = 0.0
            with closing(here.row_batches(params)) as batches:
                for batch in batches:
                    with torch.enable_grad():  # a penalty may differentiate the model
                        sums = batch.summed(self.rows(batch), type(self).__name__)
                    for term, value in sums.items():
                        totals[term] = totals.get(term, 0) + (value if kept else value.detach())
                    weight += batch.total_weight
                    del batch, sums, value  # with them a graph that is not kept
            return totals, weight

        return mean_over_rows(problem, _summed)

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """What each row adds to each term; R is the mean over rows, weighted by their weights.

        Parameters
        ----------
        batch : RowBatch
            A block of rows with the model's outputs and activations on it.

        Returns
        -------
        terms : dict of str to Tensor of shape (n,)
            One number per row, which must not depend on the other rows of the block.
        """
        raise TypeError(
            f"Expected {type(self).__name__} to have a method `terms(params, problem)` or "
            "`rows(batch)`, got neither."
        )

    @property
    def on_rows(self) -> bool:
        """Whether the penalty is a mean over rows of data: a class without ``terms``."""
        return type(self).terms is Penalty.terms

    def count_terms(self) -> float:
        """Number of coefficients as far as the family alone says; inf where the model decides."""
        unknown = self.unknown_shapes()
        if unknown:
            known = self.with_shapes({name: low for name, (low, _) in unknown.items()})
            return float(known.count_terms()) + len(unknown)
        counts = set()
        for size in (2, 3):
            try:
                values = self.terms({"layer.weight": torch.ones(size, size)}, None)
            except Exception:  # needs a model or other tensors: as written, it is one term
                return 1.0
            counts.add(sum(value.numel() for value in values.values()))
        return float(counts.pop()) if len(counts) == 1 else math.inf

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """The concrete penalties that this one is made of (only itself, unless combined)."""
        self.check_parameters()
        return [Leaf(self.placed(params), tuple(params))]

    def placed(self, params: Params) -> Penalty:
        """The penalty with what it takes from the tensors that it sees, such as knots.

        Parameters
        ----------
        params : dict of str to Tensor
            The tensors.

        Returns
        -------
        penalty : Penalty
            Most penalties take nothing, and return themselves.
        """
        return self

    def __add__(self, other: Any) -> Any:
        """Join two families: the coefficients of both are estimated together."""
        if isinstance(other, Penalty):
            return Sum([*self._parts(), *other._parts()])
        if hasattr(type(other), "__radd__") and not isinstance(other, Number | np.ndarray | Tensor):
            return NotImplemented  # the other may know how
        raise self._no_penalty(other)

    def __radd__(self, other: Any) -> Penalty:
        """Join to the zero that ``sum`` of a list of penalties starts from."""
        if isinstance(other, int) and not isinstance(other, bool) and other == 0:
            return self
        raise self._no_penalty(other)

    def _no_penalty(self, other: Any) -> TypeError:
        return TypeError(
            f"Expected a Penalty to join to {self!r}, got {shown(other)}; give an instance, "
            "such as SmoothL1(), or a list of families to the estimator."
        )

    def _parts(self) -> list[Penalty]:
        return [self]

    def __rmul__(self, coef: float) -> Fixed:
        """Fix the coefficient: the penalty is known, and moved to the side of the loss."""
        fixed = Fixed(self, coef)
        fixed.check_parameters()
        return fixed

    def on(self, params: Scope) -> Scoped:
        """Restrict the penalty to some of the tensors.

        Parameters
        ----------
        params : str or callable(name, tensor) -> bool
            Regular expression searched for in the tensor names, or a choice by callable.

        Returns
        -------
        penalty : Scoped
        """
        return Scoped(self, params)

    def per(self, by: GroupBy) -> Grouped:
        """One coefficient per group of tensors.

        Parameters
        ----------
        by : {"layer", "block", "type", "param_group"}, dict of tensor name to group, or \
                callable(name, tensor)
            A layer is the module that owns the tensor, a block all layers behind the same number
            (``"h.3"``), a type the same layer of all blocks (``"h.attn"``).

        Returns
        -------
        penalty : Grouped
        """
        return Grouped(self, by)


def _is_fit(value: Any) -> bool:
    return isinstance(value, str) and value == FIT


def _range(owner: str, name: str, ends: Any) -> tuple[float, float]:
    """Range of a shape parameter; ValueError unless 0 < low < high."""
    numbers = isinstance(ends, tuple | list) and len(ends) == 2 and all(map(number().holds, ends))
    if not numbers or not 0 < ends[0] < ends[1]:
        raise ValueError(
            f"Expected the range of {name} in {owner}.shapes to be two finite numbers "
            f"0 < low < high, got {shown(ends)}."
        )
    return float(ends[0]), float(ends[1])


def _by_head(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Values by the first part of their names."""
    found: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        head, _, rest = name.partition("__")
        found.setdefault(head, {})[rest] = value
    return found


def same(one: Any, other: Any) -> bool:
    """Whether penalties, or their parameters, are equal in kind and in value.

    Parameters
    ----------
    one, other : object
        Penalties, or what they hold.

    Returns
    -------
    equal : bool
    """
    if one is other or type(one) is not type(other):
        return one is other
    if isinstance(one, Penalty):
        return same(vars(one), vars(other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    # Of a table `==` is no answer but one for each entry.
    found = np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    return isinstance(found, bool | np.bool_) and bool(found)


PENALTY = instance("a Penalty instance", Penalty)


class _Combined(Penalty):
    """A penalty that is defined by its leaves."""

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        leaves = self.leaves(params, problem)
        values = [leaf.values(params, problem) for leaf in leaves]
        names = chain.from_iterable(name_terms(leaves, [tuple(own) for own in values]))
        return dict(zip(names, chain.from_iterable(own.values() for own in values), strict=True))


class Sum(_Combined):
    """Several penalties at once; parts are reached as ``<name>__<parameter>``.

    Parameters
    ----------
    parts : list of Penalty
        The families that are joined.

    Examples
    --------
    >>> from sklearn_implicitreg.penalties import L2, SmoothL1
    >>> both = L2() + SmoothL1(delta=1e-2)
    >>> both.set_params(smooth_l1__delta=1e-3).get_params()["smooth_l1__delta"]
    0.001
    """

    _allowed: ClassVar = {
        "parts": Allowed(
            lambda parts: (
                isinstance(parts, list | tuple)
                and len(parts) > 0
                and all(isinstance(part, Penalty) for part in parts)
            ),
            ("a list of Penalty instances",),
        )
    }

    def __init__(self, parts: list[Penalty]):
        self.parts = parts

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # noqa: N803, as scikit-learn names it
        return f"Sum(parts=[{', '.join(map(repr, self.parts))}])"

    def _parts(self) -> list[Penalty]:
        return self.parts

    def _named(self) -> dict[str, Penalty]:
        """Parts by the name of their class in snake case, numbered where two share it."""
        classes = [type(part).__name__ for part in self.parts]
        names = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() for name in classes]
        for i, name in enumerate(classes):
            if classes.count(name) > 1:
                names[i] += str(classes[: i + 1].count(name))
        return dict(zip(names, self.parts, strict=True))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of the sum and, with ``deep``, of its named parts."""
        params: dict[str, Any] = {"parts": self.parts}
        if deep:
            for name, part in self._named().items():
                params |= {f"{name}__{key}": v for key, v in part.get_params().items()}
        return params

    def set_params(self, **params: Any) -> Sum:
        """Set ``parts``, or parameters of the parts as ``<name>__<parameter>``."""
        if "parts" in params:
            self.parts = params.pop("parts")
        named = self._named()
        for key, value in params.items():
            name, _, parameter = key.partition("__")
            if name not in named or not parameter:
                raise ValueError(
                    f"Expected parameters of the parts {list(named)} as <name>__<parameter>, "
                    f"got {key!r}."
                )
            named[name].set_params(**{parameter: value})
        return self

    def _inner(self) -> dict[str, Any]:
        return dict(self._named())

    def with_shapes(self, values: Mapping[str, float]) -> Sum:
        """The same sum with values of shape parameters of its parts."""
        inside = _by_head(values)
        return Sum([part.with_shapes(inside.get(n, {})) for n, part in self._named().items()])

    def count_terms(self) -> float:
        """Those of all parts."""
        return sum(part.count_terms() for part in self.parts)

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """Leaves of all parts."""
        self.check_parameters()
        return [leaf for part in self.parts for leaf in part.leaves(params, problem)]


class Scoped(_Combined):
    """A penalty restricted to some of the tensors; made by ``penalty.on(params)``.

    Parameters
    ----------
    penalty : Penalty
        What is restricted.
    params : str or callable(name, tensor) -> bool
        Regular expression searched for in the tensor names, or a choice by callable.
    """

    _allowed: ClassVar = {"penalty": PENALTY, "params": SCOPE}

    def __init__(self, penalty: Penalty, params: Scope):
        self.penalty = penalty
        self.params = params

    def count_terms(self) -> float:
        """Those of the penalty."""
        return self.penalty.count_terms()

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """Leaves of the penalty on the chosen tensors."""
        self.check_parameters()
        scope = self.params
        label = getattr(scope, "__name__", type(scope).__name__) if callable(scope) else str(scope)
        selects = scope if callable(scope) else lambda name, _: bool(re.search(str(scope), name))
        chosen = {name: t for name, t in params.items() if selects(name, t)}
        if not chosen:
            raise ValueError(
                f"The scope {self.params!r} of {self.penalty!r} selects no tensor; expected a "
                f"selection among {list(params)}."
            )
        return [
            replace(leaf, scope=f"{label}, {leaf.scope}" if leaf.scope else label)
            for leaf in self.penalty.leaves(chosen, problem)
        ]


class Grouped(_Combined):
    """A penalty with one coefficient per group of tensors; made by ``penalty.per(by)``.

    Parameters
    ----------
    penalty : Penalty
        What is repeated, once for each group.
    by : {"layer", "block", "type", "param_group"}, dict of tensor name to group, or \
            callable(name, tensor)
        See :meth:`~sklearn_implicitreg.penalties.Penalty.per`.
    """

    _allowed: ClassVar = {"penalty": PENALTY, "by": GROUPS}

    def __init__(self, penalty: Penalty, by: GroupBy):
        self.penalty = penalty
        self.by = by

    def count_terms(self) -> float:
        """As many as the model has groups."""
        return math.inf

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """Leaves of the penalty for each group of tensors, labeled by the group."""
        self.check_parameters()
        members: dict[str, list[str]] = {}
        for name, tensor in params.items():
            members.setdefault(self._group(name, tensor, problem), []).append(name)
        # Split what the penalty sees of all tensors: it need not see some of every group.
        whole = self.penalty.leaves(params, problem)
        return [
            replace(
                leaf,
                penalty=leaf.penalty.placed({name: params[name] for name in seen}),
                names=seen,
                group=f"{leaf.group},{group}" if leaf.group else group,
            )
            for group, names in members.items()
            for leaf in whole
            if (seen := tuple(name for name in names if name in leaf.names))
        ]

    def _group(self, name: str, tensor: Tensor, problem: Problem | None) -> str:
        if callable(self.by):
            return str(self.by(name, tensor))
        if isinstance(self.by, Mapping):
            if name not in self.by:
                raise ValueError(
                    f"Expected a group for every tensor in scope, got none for {name!r}; add it "
                    "to group_by, or leave it out by params=."
                )
            return str(self.by[name])
        if self.by in _GROUPINGS:
            return _GROUPINGS[self.by](name)
        groups = getattr(problem, "param_groups", None)
        if groups is None:
            raise ValueError(
                "group_by='param_group' needs a model that knows its optimizer, such as a "
                "fitted skorch net, or its recorded trajectory; use 'layer' or a callable(name, "
                "tensor)."
            )
        if name not in groups:
            raise ValueError(
                f"Expected tensors of a recorded optimizer with group_by='param_group', got "
                f"{name!r}, which is in none; leave it out by params=."
            )
        return str(groups[name])


class Fixed(_Combined):
    """A penalty whose coefficients are known; made by ``number * penalty``.

    Parameters
    ----------
    penalty : Penalty
        What is added to the loss.
    coef : float
        Its coefficient, in the units of the loss.
    """

    _allowed: ClassVar = {"penalty": PENALTY, "coef": number()}

    def __init__(self, penalty: Penalty, coef: float):
        self.penalty = penalty
        self.coef = coef

    def count_terms(self) -> float:
        """None: its coefficients are known."""
        return 0.0

    def leaves(self, params: Params, problem: Problem | None) -> list[Leaf]:
        """Leaves of the penalty, with their coefficient."""
        self.check_parameters()
        return [
            replace(leaf, coef=self.coef * (1.0 if leaf.coef is None else leaf.coef))
            for leaf in self.penalty.leaves(params, problem)
        ]


def layer_of(name: str) -> str:
    """Name of the module that owns a tensor, or of the tensor itself where none has a name."""
    # A parametrized layer owns the tensors that its weights are computed from.
    owner = re.split(r"\.?\bparametrizations\.", name)[0]
    return (owner if owner != name else name.rpartition(".")[0]) or name


def _block_of(name: str) -> str:
    """Name of a module up to the first number in it: the block of a stack of them."""
    found = re.match(r"(?:.*?\.)??\d+(?=\.|$)", layer_of(name))
    return found[0] if found else layer_of(name)


def _type_of(name: str) -> str:
    """Name of a module without the numbers in it, or of the tensor where nothing else is left."""
    parts = [part for part in layer_of(name).split(".") if not part.isdigit()]
    return ".".join(parts) or name.rpartition(".")[2]


_GROUPINGS = {"layer": layer_of, "block": _block_of, "type": _type_of}


def name_terms(leaves: list[Leaf], terms: list[tuple[str, ...]]) -> list[list[str]]:
    """Names such as ``l2[fc1]``; where two are equal, with parameters and scopes in brackets."""
    pairs = list(zip(leaves, terms, strict=True))
    count = Counter(_name(leaf, term) for leaf, keys in pairs for term in keys)
    named = [
        [_name(leaf, term, with_params=count[_name(leaf, term)] > 1) for term in keys]
        for leaf, keys in pairs
    ]
    twice = [n for n, c in Counter(chain.from_iterable(named)).items() if c > 1]
    if twice:
        raise ValueError(
            f"Expected terms of different names, got {twice} more than once; drop one, or give "
            "them different parameters or scopes."
        )
    return named


def _name(leaf: Leaf, term: str, with_params: bool = False) -> str:
    if with_params:
        params = leaf.penalty.get_params(deep=False)
        plain = {k: v for k, v in params.items() if isinstance(v, str | Number)}
        plain |= {"on": leaf.scope} if leaf.scope else {}
        inside = ", ".join(f"{key}={value}" for key, value in plain.items())
        term = f"{term}({inside})" if inside else term
    if leaf.coef is not None:
        term = f"{leaf.coef:g}*{term}"
    return f"{term}[{leaf.group}]" if leaf.group else term
