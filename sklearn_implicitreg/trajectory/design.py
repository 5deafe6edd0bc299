"""The columns of a window: averaged over its steps, or with instruments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.trajectory.window import Window


def window_design(penalty: Penalty, problem: Problem, window: Window) -> Design:
    """Mean columns over the iterates of a window, by their numbers of steps."""
    leaves = penalty.leaves(problem.params, problem)
    if not any([is_stochastic(leaf) for leaf in leaves]):
        if all([leaf.penalty.affine for leaf in leaves]):
            # The mean of affine gradients is that at the mean iterate.
            return mean_of(
                [(Design.at(penalty, at_weights(penalty, problem, window.mean("visited"))), 1.0)]
            )
        first = Design.at(penalty, problem)
        if first.elementwise:
            return first.averaged(window.stacks)
        # A column that is linear in the weights is as exact as with a mark at every step.
        means = ((part.mean("visited"), window.share_of(part)) for part in window.parts())
        return mean_of((Design.at(penalty, at_weights(penalty, problem, w)), n) for w, n in means)
    # Instruments from other draws at the first step neither share the noise of the columns' draws
    # nor know what the window's steps drew. Sums over few marks are no choice for the columns:
    # they lean to the first step, and what a trajectory forgets within a window would bias the
    # coefficients.
    n = 2 * window.start.step  # windows have draws of their own
    first = Design.at(penalty, replace(problem.at(window.start.weights), draw=n))
    mean = Design.at(penalty, replace(problem.at(window.mean("visited")), draw=n + 1))
    held, masks = mean_of([(mean, 1.0)]), mean_of([(first, 0.5), (mean, 0.5)]).masks
    instruments = {name: first.columns(name) for name in problem.params}
    return replace(held, params=first.params, masks=masks, instruments=instruments)


def mean_of(parts: Iterable[tuple[Design, float | Callable[[str], float]]]) -> Design:
    """Mean of columns at several places, each with its share, held tensor by tensor.

    A share is a number, or one for each tensor by its name.
    """
    held: Params = {}
    knowns: Params = {}
    masks: Params = {}
    first: Design | None = None
    for design, share in parts:
        first = first or design
        for name in design.params:
            n = share(name) if callable(share) else share
            _add(held, name, design.columns(name), n)
            known, mask = design.known(name), design.smooth(name)
            if known is not None:
                _add(knowns, name, known, n)
            if mask is not None:
                masks[name] = masks[name] & mask if name in masks else mask
    if first is None:
        raise ValueError("Expected at least one mark in every window, got none.")
    own = (first.term_names, first.leaves, first.known_terms, first.params)
    return Design(*own, designs=held, knowns=knowns, masks=masks)


def _add(total: Params, name: str, part: Tensor, share: float) -> None:
    total[name] = torch.add(total[name], part, alpha=share) if name in total else share * part


def is_stochastic(leaf: Leaf) -> bool:
    """Whether a penalty draws random numbers."""
    return bool(getattr(leaf.penalty, "stochastic", False))


def at_weights(penalty: Penalty, problem: Problem, weights: Params) -> Problem:
    """The problem at other weights; only its parameters, where no penalty looks at the model."""
    leaves = penalty.leaves(problem.params, problem)
    if any(getattr(leaf.penalty, "gradient", None) is None for leaf in leaves):
        return problem.at(weights)
    own = {name: weights[name].to(tensor.device) for name, tensor in problem.params.items()}
    return replace(problem, params=own)


def recorded_part(problem: Problem, names: Collection[str]) -> Problem:
    """The problem without equations of tensors that no recorded optimizer has."""
    held = (*problem.params, *problem.left_out)
    missing = [name for name in held if name not in names]
    if not missing:
        return problem
    own = {name: tensor for name, tensor in problem.params.items() if name in names}
    if not own or any(name not in held for name in names):
        raise ValueError(
            f"Expected a trajectory of this model, which has {list(problem.params)}, got one of "
            f"{list(names)}."
        )
    left_out = tuple(name for name in problem.left_out if name in names)
    note = f"In no recorded optimizer, and so without equations: {', '.join(missing)}."
    return replace(problem, params=own, left_out=left_out, notes=(*problem.notes, note))


def deviation(problem: Problem, window: Window, gradient: LossGradient) -> LossGradient:
    """Reference less applied gradient, in units of L: minus the target of the equations."""
    applied = window.mean_gradient("applied", problem)
    value = {
        name: gradient.value[name] - applied[name].to(gradient.value[name].device)
        for name in problem.params
        if name in applied
    }
    return replace(gradient, value=value)
