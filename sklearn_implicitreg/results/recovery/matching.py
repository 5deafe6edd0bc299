"""Hidden units in the order, and with the signs, of those of the model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from sklearn_implicitreg.problem import flat, shaped
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.recovery.objective import Objective

_SAME = 1e-9  # of the size of the outputs: a symmetry changes them by rounding alone
_SWEEPS = 20


Order = npt.NDArray[np.intp]


class Hidden(NamedTuple):
    """A layer of hidden units: the tensors into and out of them, and whether signs are free."""

    inward: tuple[str, ...]  # with one row per unit
    outward: str  # with one column per unit
    signs: bool


def hidden_layers(objective: Objective, seed: int) -> list[Hidden]:
    """Layers whose units can be permuted, as outputs and penalty show on permuted weights."""
    # Whatever the activation or the order of the layers: a symmetry is what changes nothing.
    params = objective.params
    matrices = [name for name, tensor in params.items() if tensor.ndim == 2]
    rng, found = np.random.default_rng(seed), []
    for number, name in enumerate(matrices):
        n = params[name].shape[0]
        following = [m for m in matrices[number + 1 :] if params[m].shape[1] == n]
        bias = name.removesuffix("weight") + "bias"
        inward = (name, bias) if bias in params and params[bias].shape == (n,) else (name,)
        for other in following[:1]:
            order, flips = np.roll(np.arange(n), 1), rng.choice([-1.0, 1.0], n)
            if n > 1 and _is_symmetry(objective, Hidden(inward, other, False), order, np.ones(n)):
                flips[0] = -1.0
                signs = _is_symmetry(objective, Hidden(inward, other, True), np.arange(n), flips)
                found.append(Hidden(inward, other, signs))
    return found


def matched(objective: Objective, layers: list[Hidden], theta: Array) -> Array:
    """Weights of the same function with hidden units as near to the model's as they can be."""
    for _ in range(_SWEEPS):
        before = theta
        for layer in layers:
            theta = _nearest(objective, layer, theta)
        if np.array_equal(before, theta):
            break
    return theta


def _nearest(objective: Objective, layer: Hidden, theta: Array) -> Array:
    found, model = _units(objective, layer, theta), _units(objective, layer, objective.theta)
    likeness = model @ found.T
    gain = np.abs(likeness) if layer.signs else likeness
    order = linear_sum_assignment(gain, maximize=True)[1]
    own = likeness[np.arange(len(order)), order]
    flips = np.where((own < 0) & layer.signs, -1.0, 1.0)
    if (order == np.arange(len(order))).all() and (flips > 0).all():
        return theta
    return _changed(objective, layer, theta, order, flips)


def _units(objective: Objective, layer: Hidden, theta: Array) -> Array:
    """Weights into and out of every hidden unit, one row each."""
    params = shaped(objective.params, theta)
    n = params[layer.outward].shape[1]
    into = [params[name].numpy().reshape(n, -1) for name in layer.inward]
    return np.concatenate([*into, params[layer.outward].numpy().T], axis=1)


def _changed(
    objective: Objective, layer: Hidden, theta: Array, order: Order, flips: Array
) -> Array:
    params = shaped(objective.params, theta)
    for name in layer.inward:
        own = params[name].numpy()
        own[:] = own[order] * flips.reshape((-1,) + (1,) * (own.ndim - 1))
    own = params[layer.outward].numpy()
    own[:] = own[:, order] * flips
    return flat(params)


def _is_symmetry(objective: Objective, layer: Hidden, order: Order, flips: Array) -> bool:
    problem, theta = objective.problem, objective.theta
    there = _changed(objective, layer, theta, order, flips)
    here, own = (problem.outputs(shaped(objective.params, t))[0] for t in (theta, there))
    if np.abs(here - own).max() > _SAME * max(1.0, float(np.abs(here).max())):
        return False
    values = objective.value(theta), objective.value(there)
    return bool(abs(values[0] - values[1]) <= _SAME * max(1.0, abs(values[0])))
