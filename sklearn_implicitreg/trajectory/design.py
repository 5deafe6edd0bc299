"""The columns of a window: averaged over its steps, or with instruments."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sklearn_implicitreg.penalties import Penalty
from sklearn_implicitreg.penalties.base import Leaf
from sklearn_implicitreg.problem import LossGradient, Params, Problem
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.trajectory.window import Window


def window_design(penalty: Penalty, problem: Problem, window: Window) -> Design:
    """Mean columns over the iterates of a window, of each tensor at the steps that updated it."""
    if not window.skipping:
        return _window_design(penalty, problem, window)
    first = Design.at(penalty, problem)
    if first.elementwise:
        return first.averaged(window.stacks)
    parts = []
    for names, share, own in window.groups(problem.params):
        parts.append((names, share, _window_design(penalty, problem, own)))
    return _put_together(parts or [((), 0.0, first)])


def _window_design(penalty: Penalty, problem: Problem, window: Window) -> Design:
    """Mean columns over the steps of a window that count."""
    problem = replace(problem, batches=window.batches_of_penalty(problem))
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
        return mean_of(
            (_part_design(penalty, problem, part), part.n_steps / window.n_steps)
            for part in window.parts()
        )
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


def _part_design(penalty: Penalty, problem: Problem, part: Window) -> Design:
    """Columns at the mean iterate between two marks, for what the steps there moved."""
    # A column that is linear in the weights is as exact there as with a mark at every step.
    still = part.absent([*problem.params, *problem.left_out])
    there = replace(problem, still=still)
    return Design.at(penalty, at_weights(penalty, there, part.mean("visited")))


def _put_together(parts: Sequence[tuple[Sequence[str], float, Design]]) -> Design:
    """Columns of groups of tensors, each from a design of its own and times its share."""
    first = parts[0][2]
    k = len(first.term_names)
    held = {n: t.new_zeros((t.numel(), k), dtype=torch.float64) for n, t in first.params.items()}
    knowns: Params = {}
    masks: Params = {}
    instruments = dict(first.instruments)
    for names, share, design in parts:
        for name in names:
            held[name] = share * design.columns(name)
            known, mask = design.known(name), design.smooth(name)
            if known is not None:
                knowns[name] = share * known
            if mask is not None:
                masks[name] = mask
            if design.instruments:
                instruments[name] = design.instruments[name]
    return replace(
        first, parts=(), designs=held, knowns=knowns, masks=masks, instruments=instruments
    )


def mean_of(parts: Iterable[tuple[Design, float]]) -> Design:
    """Mean of columns at several places, each with its share, held tensor by tensor."""
    held: Params = {}
    knowns: Params = {}
    masks: Params = {}
    first: Design | None = None
    for design, share in parts:
        first = first or design
        for name in design.params:
            if design.frame(name) is not None:
                raise ValueError(
                    f"Expected singular values above zero along a trajectory, got some in {name!r} "
                    "that count as zero at a step, each step in bases of its own; lower the "
                    "penalty's tol, or fit the endpoint alone."
                )
            _add(held, name, design.columns(name), share)
            known, mask = design.known(name), design.smooth(name)
            if known is not None:
                _add(knowns, name, known, share)
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
    return replace(problem, params={name: weights[name] for name in problem.params})


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
    value = {name: gradient.value[name] - applied[name] for name in problem.params}
    absent = window.absent(problem.params)
    return replace(gradient, value=value, absent=absent, readings=())
