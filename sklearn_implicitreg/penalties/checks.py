"""Whether a penalty keeps its contract: the check for authors of penalties."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor, nn

from sklearn_implicitreg.penalties.base import Penalty
from sklearn_implicitreg.penalties.columns import check_terms, gradient_of
from sklearn_implicitreg.penalties.fitted import needs_rows
from sklearn_implicitreg.penalties.frames import Frame
from sklearn_implicitreg.problem import Params, Problem, RowBatch
from sklearn_implicitreg.problem.frozen import tensors_in
from sklearn_implicitreg.problem.parameters import (
    NOTHING,
    checked,
    having,
    instance,
    shown,
)

_STEP = 1e-6  # of the central differences
_Projection = Callable[[Tensor], Tensor]
_GLOBAL = "A global random generator was used; draw from batch.rng, or from a seeded generator."


@checked(
    penalty=instance("a Penalty instance", Penalty),
    params=NOTHING | having("a dict of str to Tensor", "items"),
    problem=NOTHING | having("a Problem, or a RowBatch.of(module, X, y)", "params", "row_batches"),
)
def check_penalty(
    penalty: Penalty, params: Params | None = None, *, problem: Problem | RowBatch | None = None
) -> None:
    """Check that a penalty keeps the contract of :class:`Penalty`.

    Terms are named finite scalars or vectors; a clone and a pickled copy have the same; no global
    random generator is used; a closed-form ``gradient`` equals autograd to 1e-10, on pieces too
    where ``elementwise`` is set; autograd equals central differences to 1e-6 where the penalty is
    smooth; without a problem, ``smooth`` leaves out kinks where columns are zero. What ``rows``
    returns for a row does not depend on the other rows. Values change with the parameters, which a
    constant, a rank or a model outside of the problem do not; and nothing that the problem has is
    written to.

    Parameters
    ----------
    penalty : Penalty
        What is checked.
    params : dict of str to Tensor, default=None
        Where it is checked; by default at the problem's parameters, or at three random tensors.
    problem : Problem or RowBatch, default=None
        Model and data in float64, such as ``RowBatch.of(module, X, y, loss=...)``; by default a
        penalty on data is checked on a small net with layers "0", "1", "2", two outputs, their
        probabilities as targets and cross-entropy.

    Raises
    ------
    TypeError, ValueError
        If terms are of the wrong kind, or the problem is not in float64.
    AssertionError
        If one of the above does not hold.

    Examples
    --------
    >>> from sklearn_implicitreg.penalties import ActivationL2, SmoothL1, check_penalty
    >>> check_penalty(SmoothL1(delta=0.1))
    >>> check_penalty(ActivationL2("1"))
    """
    cls = type(penalty)
    if cls.on_rows is Penalty.on_rows and cls.rows is not Penalty.rows and not penalty.on_rows:
        raise TypeError(f"{cls.__name__} has both `terms` and `rows`; keep one of them.")
    given = problem is not None
    if params is None:
        params = _parameters() if problem is None else problem.params
    if problem is None and any(map(needs_rows, penalty.leaves(params, None))):
        problem = _small_net()
        params = problem.params
    params = {name: tensor.detach().double() for name, tensor in params.items()}
    penalty = penalty.placed(params)
    check = _Check(penalty, problem)
    values = check.terms(params)
    check_terms(penalty, values)
    check.same(clone(penalty), params, values, "A clone")
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    check.same(penalty, leaves, values, "The penalty, where parameters require gradients,")
    if given:
        check.same(_pickled(penalty), params, values, "A pickled copy")
    if problem is not None:
        _check_rows(penalty, params, problem)
    check.depends(params, values)
    for name in params:
        smooth = _smooth(penalty, params, name)
        check.closed_form(params, name, values, smooth)
        for term, value in values.items():
            for entry in range(value.numel()):
                check.differences(params, name, (term, entry), smooth)
    if problem is None:
        check.kinks(params)


class _Check:
    """A penalty on a problem, evaluated at any parameters."""

    def __init__(self, penalty: Penalty, problem: Problem | RowBatch | None):
        self.penalty = penalty
        self._problem = problem
        wrong = {} if problem is None else {n: t.dtype for n, t in problem.params.items()}
        if set(wrong.values()) - {torch.float64}:
            raise ValueError(
                f"Expected a problem in float64, whose differences are exact enough, got {wrong}; "
                "give module.double()."
            )

    def terms(self, params: Params, penalty: Penalty | None = None) -> dict[str, Tensor]:
        """Terms, the same random numbers every time; global generators must not be used."""
        before, tensors = _generators(), [*params.values(), *self._tensors()]
        kept = [t.detach().clone() for t in tensors]
        values = (penalty or self.penalty).terms(params, cast(Problem | None, self._problem))
        if _generators() != before:
            raise AssertionError(_GLOBAL)
        if not all(map(torch.equal, kept, tensors)):
            raise AssertionError(
                f"{self.penalty!r} wrote to the parameters, the model or its rows; compute new "
                "tensors, as t.mul(2) does, not t.mul_(2)."
            )
        return values

    def _tensors(self) -> list[Tensor]:
        """What the problem has: its parameters, the rows of a batch, buffers of its module."""
        problem: Any = self._problem
        if problem is None:
            return []
        module = getattr(getattr(problem, "model", None), "module", None)
        stored = [] if module is None else [*module.parameters(), *module.buffers()]
        rows = vars(problem) if hasattr(problem, "total_weight") else {}
        given = (rows.get("inputs"), rows.get("_target"), rows.get("weight"))
        return [*problem.params.values(), *stored, *tensors_in(given)]

    def depends(self, params: Params, values: dict[str, Tensor]) -> None:
        """Values must be others at other parameters."""
        rng = np.random.default_rng(1)
        moved = {
            name: t + 0.1 * torch.from_numpy(rng.standard_normal(tuple(t.shape))).to(t)
            for name, t in params.items()
        }
        for term, value in self.terms(moved).items():
            if bool((value == values[term]).any()):
                raise AssertionError(
                    f"{term!r} does not change with the parameters: it is a constant, a number "
                    "such as a rank, or of a model outside of the problem; compute it from "
                    "`params`, or from `batch.outputs` and `batch.call`."
                )

    def same(self, penalty: Penalty, params: Params, values: dict[str, Tensor], what: str) -> None:
        again = self.terms(params, penalty)
        if list(again) != list(values):
            raise AssertionError(f"{what} has terms {list(again)} instead of {list(values)}.")
        changed = [t for t, v in values.items() if not torch.allclose(v, again[t], 1e-12, 0)]
        if changed:
            raise AssertionError(f"{what} has other values of {changed}.")

    def closed_form(
        self, params: Params, name: str, values: dict[str, Tensor], smooth: _Projection
    ) -> None:
        gradient = getattr(self.penalty, "gradient", None)
        if gradient is None:
            return
        tensor = params[name]
        closed = gradient(name, tensor)
        if list(closed) != list(values):
            raise AssertionError(f"gradient has terms {list(closed)}, terms has {list(values)}.")
        for term, slope in closed.items():
            which = f"gradient of {term!r} at {name!r}"
            if slope.shape != tensor.shape:
                raise AssertionError(
                    f"{which} has shape {tuple(slope.shape)}, the tensor has {tuple(tensor.shape)}."
                )
            exact = self._autograd(params, name, (term, 0))
            if not torch.allclose(smooth(slope), smooth(exact), rtol=1e-10, atol=1e-12):
                raise AssertionError(f"{which} is not that of terms.")
        half = tensor.reshape(-1)[: (tensor.numel() + 1) // 2]
        pieces = gradient(name, half) if self.penalty.elementwise else {}
        for term, piece in pieces.items():
            if not torch.equal(piece, closed[term].reshape(-1)[: len(half)]):
                raise AssertionError(
                    f"gradient of {term!r} on a piece of {name!r} is not the piece of the "
                    "gradient; drop `elementwise`."
                )
        self._check_affine(name, tensor, closed)

    def _check_affine(self, name: str, tensor: Tensor, slopes: dict[str, Tensor]) -> None:
        """A gradient that claims to be affine is so along the line through zero."""
        gradient = getattr(self.penalty, "gradient", None)
        if gradient is None or not self.penalty.affine:
            return
        zero, twice = gradient(name, 0 * tensor), gradient(name, 2 * tensor)
        for term, slope in slopes.items():
            if not torch.allclose(zero[term] + twice[term], 2 * slope, rtol=1e-10, atol=1e-12):
                raise AssertionError(
                    f"gradient of {term!r} at {name!r} is not affine in it; drop `affine`."
                )

    def differences(
        self, params: Params, name: str, entry: tuple[str, int], smooth: _Projection
    ) -> None:
        tensor = params[name]
        # Its entries do not add up to zero, as the slopes of a sum over entries would along it.
        direction = torch.linspace(-1, 1.5, tensor.numel(), dtype=tensor.dtype).view_as(tensor)
        # A step must not cross a kink at zero.
        near = (tensor != 0) & (tensor.abs() <= 10 * _STEP)
        direction = smooth(direction.masked_fill(near, 0.0))
        ahead = self._value(params | {name: tensor + _STEP * direction}, entry)
        behind = self._value(params | {name: tensor - _STEP * direction}, entry)
        slope = float(ahead - behind) / (2 * _STEP)
        exact = float((smooth(self._autograd(params, name, entry)) * direction).sum())
        # Written so that NaN fails.
        if not abs(slope - exact) <= 1e-6 * max(1.0, abs(exact)):
            raise AssertionError(
                f"{entry[0]!r} at {name!r}: slope {exact} by autograd, {slope} by differences."
            )

    def kinks(self, params: Params) -> None:
        """Where the first entries (columns) are zero, a kink must be left out by ``smooth``."""
        at = {name: tensor.clone() for name, tensor in params.items()}
        for tensor in at.values():
            first = tensor[:, :1] if tensor.ndim > 1 else tensor.reshape(-1)[:1]
            first.zero_()
        for name, tensor in at.items():
            try:
                smooth, middle = _smooth(self.penalty, at, name), self.terms(at)
            except ValueError:  # R has no value or no derivative there, and says so
                return
            direction, jumps = smooth((tensor == 0).to(tensor)), []
            for step in (_STEP, _STEP / 100):
                ahead, behind = (
                    self.terms(at | {name: tensor + sign * step * direction}) for sign in (1, -1)
                )
                jumps.append({t: (ahead[t] + behind[t] - 2 * v) / step for t, v in middle.items()})
            # The slopes of a smooth term come closer to each other as the step shrinks.
            for term, jump in jumps[1].items():
                if bool(((jump.abs() > 1e-4) & (jump.abs() > 0.99 * jumps[0][term].abs())).any()):
                    raise AssertionError(
                        f"{term!r} has a kink where {name!r} is zero; leave these coordinates out "
                        "by a method smooth(name, tensor)."
                    )

    def _value(self, params: Params, entry: tuple[str, int]) -> Tensor:
        term, index = entry
        return self.terms(params)[term].reshape(-1)[index]

    def _autograd(self, params: Params, name: str, entry: tuple[str, int]) -> Tensor:
        with torch.enable_grad():
            leaf = params[name].clone().requires_grad_()
            return gradient_of(self._value(params | {name: leaf}, entry), {name: leaf})[name]


def _check_rows(penalty: Penalty, params: Params, problem: Problem | RowBatch) -> None:
    """Rows of a block must not depend on each other, nor on global generators."""
    on_rows = [leaf for leaf in penalty.leaves(params, None) if leaf.penalty.on_rows]
    together = getattr(problem, "batch_normalized", False)
    for batch in problem.row_batches(params) if on_rows and not together else ():
        for leaf in on_rows:
            whole = batch.seeing(leaf.names).seeded(0)
            part = whole.part(slice((batch.n_rows + 1) // 2)).seeded(0)
            _ = whole.outputs, part.outputs  # random layers may draw here
            before = _generators()
            values, fewer = leaf.penalty.rows(whole), leaf.penalty.rows(part)
            if _generators() != before:
                raise AssertionError(_GLOBAL)
            whole.summed(values, type(leaf.penalty).__name__)
            for term, value in fewer.items():
                if not torch.allclose(values[term][: len(value)], value, rtol=1e-9, atol=1e-12):
                    raise AssertionError(
                        f"{term!r} of a row depends on the other rows of its block: R would depend "
                        "on the size of the blocks. (Batch normalization must be in eval mode.)"
                    )


def _generators() -> bytes:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()
    return pickle.dumps(states)


def _pickled(penalty: Penalty) -> Penalty:
    copied = type(penalty).__new__(type(penalty))
    try:
        copied.__setstate__(pickle.loads(pickle.dumps(penalty.__getstate__())))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"{penalty!r} cannot be pickled: {error}.") from error
    return copied


def _parameters() -> Params:
    rng = np.random.default_rng(0)
    shapes = {"layer.weight": (3, 4), "layer.bias": (3,), "head.weight": (2, 3)}
    return {name: torch.from_numpy(rng.standard_normal(shape)) for name, shape in shapes.items()}


def _small_net() -> RowBatch:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        X, y = torch.randn(12, 4).double(), torch.randn(12, 2).double().softmax(1)
    return RowBatch.of(net, X, y, loss=nn.CrossEntropyLoss(reduction="none"))


def _smooth(penalty: Penalty, params: Params, name: str) -> _Projection:
    """What takes off a tensor's directions without a derivative."""
    projections: list[_Projection] = []
    for leaf in penalty.leaves(params, None):
        smooth = getattr(leaf.penalty, "smooth", None)
        if smooth is not None and name in leaf.names:
            projections.append(_projection(leaf.penalty, name, params[name]))

    def projected(tensor: Tensor) -> Tensor:
        for projection in projections:
            tensor = projection(tensor)
        return tensor

    return projected


def _projection(penalty: Any, name: str, tensor: Tensor) -> _Projection:
    own = penalty.smooth(name, tensor)
    if isinstance(own, Frame):
        own.block()
        return own.projected
    if not isinstance(own, Tensor) or own.dtype != torch.bool or own.shape != tensor.shape:
        raise AssertionError(
            f"smooth of {penalty!r} gives {shown(own)} at {name!r}, and not a mask of "
            f"the tensor's shape {tuple(tensor.shape)}."
        )
    return lambda given: torch.where(own, given, 0.0)
