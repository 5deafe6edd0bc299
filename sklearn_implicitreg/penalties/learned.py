"""A penalty that a network computes, trained on the gradient that it has to explain."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sklearn_implicitreg.penalties.fitted import named_tensors
from sklearn_implicitreg.penalties.structured import (
    Array,
    Endpoints,
    ScalarNames,
    Shapes,
    Structured,
    StructuredSolution,
)
from sklearn_implicitreg.problem.parameters import SEED, as_numbers, choice, instance, integer
from sklearn_implicitreg.problem.row_models import ERRORS, raise_in_words

_HELD_OUT = (0.6, 0.8)  # shares of the equations that train, then those that choose; the rest tests
_STEPS = 20  # of L-BFGS between two looks at the equations that choose
_PATIENCE = 4  # looks without a better one
_ENOUGH = 1e-7  # of the squared target, below which there is nothing left to learn


@dataclass(frozen=True, eq=False)
class LearnedPenalty:
    """``R(theta) = scale phi(theta / unit)`` with a trained network phi.

    Attributes
    ----------
    module : torch.nn.Module
        phi, in float64.
    shapes : dict of str to tuple of int
        Shapes of the tensors that theta is flattened and concatenated from, in this order.
    inputs : {"sizes", "params"}
        What phi gets.
    unit, scale : float
        Root mean square of the weights, and what the output of phi is multiplied by.
    coefficients : ndarray of shape (q,)
        The parameters of phi, flattened; all zero of a gradient that is zero.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> phi = torch.nn.Linear(1, 1).double()
    >>> _ = torch.nn.init.constant_(phi.weight, 3.0)
    >>> penalty = LearnedPenalty(phi, {"w": (2,)}, "sizes", 1.0, 0.5, np.zeros(2))
    >>> penalty.gradient(np.array([1.0, -2.0]))
    array([ 1.5, -1.5])
    """

    module: nn.Module
    shapes: Shapes
    inputs: str
    unit: float
    scale: float
    coefficients: Array

    def nothing(self) -> LearnedPenalty:
        """The same with a value of zero everywhere.

        Returns
        -------
        penalty : LearnedPenalty
        """
        return replace(self, scale=0.0, coefficients=np.zeros_like(self.coefficients))

    def words(self) -> str:
        """What the penalty is, in a sentence.

        Returns
        -------
        str
        """
        return (
            f"R is computed by {type(self.module).__name__} with {len(self.coefficients)} "
            "parameters, which have no meaning one by one."
        )

    def __call__(self, params: nn.Module | Mapping[str, Tensor]) -> Tensor:
        """Value at a module or at a dict of parameters, differentiable with respect to both.

        Parameters
        ----------
        params : torch.nn.Module or dict of str to Tensor
            Must hold the tensors of ``shapes``.

        Returns
        -------
        value : Tensor of shape ()

        Raises
        ------
        ValueError
            If a tensor is missing or of another shape.
        TypeError
            If ``params`` is neither a module nor a dict of tensors.
        """
        named = named_tensors(params, self.shapes)
        first = next(iter(named.values()))
        here = {name: named[name].to("cpu", torch.float64) for name in self.shapes}  # as phi is
        return (self.scale * _value(self.module, here, self.inputs, self.unit)).to(first)

    def value(self, theta: Array) -> float:
        """Value at flattened parameters.

        Parameters
        ----------
        theta : ndarray of shape (p,)
            The tensors, flattened and concatenated in the order of ``shapes``.

        Returns
        -------
        float
        """
        with torch.no_grad():
            return float(self(_shaped(torch.from_numpy(as_numbers("theta", theta)), self.shapes)))

    def gradient(self, theta: Array) -> Array:
        """Gradient at flattened parameters.

        Parameters
        ----------
        theta : ndarray of shape (p,) or (p, M)
            One set of parameters, or one per column.

        Returns
        -------
        ndarray of the shape of theta
        """
        columns = torch.from_numpy(as_numbers("theta", theta)).reshape(len(theta), -1)
        slopes = [
            _slope(self.module, own, self.shapes, self.inputs, self.unit, kept=False)
            for own in columns.T
        ]
        return self.scale * torch.stack(slopes, 1).detach().numpy().reshape(np.shape(theta))


class Learned(Structured):
    """``R = phi(theta)`` with a network phi that is trained to match the gradient.

    The general case of Equation 3 of [1]_: phi minimizes ``|grad_theta phi + grad L|^2`` over its
    own parameters, by L-BFGS on all equations that train, from several starts. Of the equations
    (one per weight) a fifth chooses when to stop and the start, another fifth is left out of both:
    the summary reports the share of it that phi explains, and the verdict goes by that.

    What the equations do not identify: phi away from these weights, a constant, and, where phi is a
    function of all tensors, everything but its gradient at this one place, which a flexible phi can
    give any value; the equations left out show whether it found a rule that holds for weights it
    did not see. With ``inputs="sizes"`` one curve for all weights is learned, and a :class:`Spline`
    gives the same with standard errors.

    Parameters
    ----------
    module : torch.nn.Module
        phi. It is copied and trained in float64; the module given is left as it is. It must be
        twice differentiable where it matters: ``Tanh``, ``Softplus``, ``GELU``, not ``ReLU``.
    inputs : {"sizes", "params"}, default="sizes"
        ``"sizes"``: phi maps ``|theta_j|`` of shape (p, 1), divided by its root mean square, to
        (p, 1), and R is the sum. ``"params"``: phi maps a dict of tensors, divided likewise, to a
        scalar.
    n_starts : int, default=3
        Starts: the module as given, then after ``reset_parameters`` of its layers.
    max_iter : int, default=500
        Iterations of L-BFGS for each start, at most.
    random_state : int, default=0
        Seed of the division of the equations and of the starts.

    References
    ----------
    .. [1] Rudoler, Tan, Hooker, Kording (2026), Estimating Implicit Regularization in Deep
       Learning.

    Examples
    --------
    >>> phi = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> theta = np.linspace(-2, 2, 200)[:, None]
    >>> found = Learned(phi, n_starts=1).solve(theta, np.tanh(theta))
    >>> bool(found.held_out[0] > 0.999)
    True
    """

    _allowed: ClassVar = {
        "module": instance("a torch module", nn.Module),
        "inputs": choice("sizes", "params"),
        "n_starts": integer(1),
        "max_iter": integer(1),
        "random_state": SEED,
    }

    at_mean = False

    def __init__(
        self,
        module: nn.Module,
        inputs: str = "sizes",
        n_starts: int = 3,
        max_iter: int = 500,
        random_state: int = 0,
    ):
        self.module = module
        self.inputs = inputs
        self.n_starts = n_starts
        self.max_iter = max_iter
        self.random_state = random_state

    def _solve(self, endpoints: Endpoints) -> StructuredSolution:
        if not any(p.requires_grad for p in self.module.parameters()):
            raise ValueError(
                f"Expected a module with parameters to train for {self!r}, got one without."
            )
        thetas, targets = endpoints.thetas, endpoints.targets
        unit, size = (float(np.sqrt(np.mean(np.square(own)))) or 1.0 for own in (thetas, targets))
        # At zero the size of a weight has a corner: no equation.
        free = (thetas != 0) | (self.inputs == "params")
        parts = _divided(free, self.random_state)
        tries = [
            self._trained(i, endpoints, targets / size, parts, unit) for i in range(self._starts())
        ]
        best = min(range(len(tries)), key=lambda i: tries[i][0])
        module = tries[best][1]
        named = dict(module.named_parameters())
        coef = np.concatenate([p.detach().numpy().ravel() for p in named.values()])
        penalty = LearnedPenalty(module, endpoints.shapes, self.inputs, unit, size * unit, coef)
        fitted = penalty.gradient(thetas)
        unseen = parts[2].numpy()
        fitted = np.where(free, fitted, targets)
        left, whole = (float(np.linalg.norm(own[unseen])) for own in (targets - fitted, targets))
        held_out = 1 - (left / whole) ** 2 if whole else 0.0
        notes = (
            f"{held_out:.4f} of the squared gradient in {int(unseen.sum())} equations that were "
            f"left out is explained; start {best + 1} of {len(tries)} was chosen by "
            f"{int(parts[1].sum())} other equations",
            "the penalty is known where the weights are: not elsewhere, and not up to a constant",
        )
        names = ScalarNames({name: tuple(p.shape) for name, p in named.items()}, "phi.{}")
        n = int(free.sum())
        return StructuredSolution(
            penalty,
            coef,
            names,
            fitted,
            len(coef),
            n,
            notes,
            held_out=(held_out, int(unseen.sum())),
        )

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # noqa: N803, as scikit-learn names it
        inputs = "" if self.inputs == "sizes" else f", inputs={self.inputs!r}"
        return f"Learned(<{type(self.module).__name__}>{inputs})"

    def _starts(self) -> int:
        """Number of starts: one where no layer can be drawn again."""
        resets = any(hasattr(layer, "reset_parameters") for layer in self.module.modules())
        return self.n_starts if resets else 1

    def _trained(
        self,
        start: int,
        endpoints: Endpoints,
        wanted: Array,
        parts: tuple[Tensor, Tensor, Tensor],
        unit: float,
    ) -> tuple[float, nn.Module]:
        """Best module of one start and its error on the equations that choose."""
        module = _drawn(self.module, start, self.random_state)
        columns = torch.from_numpy(np.array(endpoints.thetas)).T
        target = torch.from_numpy(np.array(wanted)).T
        train, choose, _ = (part.T for part in parts)

        def errors(mask: Tensor, kept: bool) -> Tensor:
            slopes = [
                _slope(module, own, endpoints.shapes, self.inputs, unit, kept=kept) * unit
                for own in columns
            ]
            return (torch.stack(slopes) - target).square()[mask].mean()

        steps = torch.optim.LBFGS(
            module.parameters(),
            max_iter=_STEPS,
            history_size=50,
            tolerance_grad=1e-12,
            tolerance_change=1e-15,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            steps.zero_grad()
            error = errors(train, kept=True)
            error.backward()
            return error

        best, kept_state, waited = float("inf"), copy.deepcopy(module.state_dict()), 0
        for _ in range(-(-self.max_iter // _STEPS)):
            steps.step(closure)
            found = float(errors(choose, kept=False))
            waited = 0 if found < best else waited + 1
            if found < best:
                best, kept_state = found, copy.deepcopy(module.state_dict())
            if waited >= _PATIENCE or found < _ENOUGH or not np.isfinite(found):
                break
        module.load_state_dict(kept_state)
        return best, module


def _divided(free: npt.NDArray[np.bool_], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of the equations that train, that choose and that test, at random."""
    places = np.random.default_rng(seed).permutation(np.flatnonzero(free))
    if len(places) < 10:
        raise ValueError(
            f"Expected at least 10 weights that are not zero for a learned penalty, got "
            f"{len(places)}: parts of them are left out to test it."
        )
    ends = [round(share * len(places)) for share in _HELD_OUT]
    masks = []
    for own in np.split(places, ends):
        mask = np.zeros(free.shape, dtype=bool)
        mask.flat[own] = True
        masks.append(torch.from_numpy(mask))
    return masks[0], masks[1], masks[2]


def _drawn(module: nn.Module, start: int, seed: int) -> nn.Module:
    """Copy of a module in float64, drawn again but for the first start."""
    own = copy.deepcopy(module).double().requires_grad_()
    own = own.cpu()
    if start:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + start)
            for layer in own.modules():
                reset: Any = getattr(layer, "reset_parameters", None)
                if reset is not None:
                    reset()
    return own


def _shaped(theta: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of flattened parameters."""
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    pieces = theta.split(sizes)
    named = zip(shapes.items(), pieces, strict=True)
    return {name: piece.reshape(shape) for (name, shape), piece in named}


def _value(module: nn.Module, params: Mapping[str, Tensor], inputs: str, unit: float) -> Tensor:
    """Phi of the weights in their unit, less its value at zero sizes."""
    if inputs == "params":
        try:
            found = module({name: t / unit for name, t in params.items()})
        except ERRORS as error:
            raise_in_words(error, f"{type(module).__name__} to map a dict of tensors to a number")
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise ValueError(
                f"Expected the module of Learned(inputs='params') to return one number, got "
                f"{tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__}."
            )
        return found.reshape(())
    sizes = torch.cat([t.reshape(-1) for t in params.values()]).abs()[:, None] / unit
    try:
        found = module(sizes)
    except ERRORS as error:
        words = f"{type(module).__name__} to map shape {tuple(sizes.shape)} to itself"
        raise_in_words(error, words)
    if not isinstance(found, Tensor) or found.shape != sizes.shape:
        raise ValueError(
            f"Expected the module of Learned(inputs='sizes') to map shape {tuple(sizes.shape)} to "
            f"itself, got {tuple(found.shape) if isinstance(found, Tensor) else found!r}."
        )
    total: Tensor = (found - module(torch.zeros_like(sizes[:1]))).sum()
    return total


def _slope(
    module: nn.Module, theta: Tensor, shapes: Shapes, inputs: str, unit: float, *, kept: bool
) -> Tensor:
    """Gradient of phi with respect to flattened weights; with its graph where phi is trained."""
    with torch.enable_grad():
        leaf = theta.detach().clone().requires_grad_()
        value = _value(module, _shaped(leaf, shapes), inputs, unit)
        (slope,) = torch.autograd.grad(value, leaf, create_graph=kept)
    return slope
