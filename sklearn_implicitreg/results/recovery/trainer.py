"""The arms of a network by its own training: the same start and order with and without R."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from torch import Tensor, nn

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.adapters.sklearn.containers import innermost
from sklearn_implicitreg.adapters.torch.generators import generators_in, preserved_rng, seeded
from sklearn_implicitreg.adapters.torch.structure import skeleton
from sklearn_implicitreg.exceptions import ModelStateWarning
from sklearn_implicitreg.problem import shaped
from sklearn_implicitreg.problem.frozen import inner_module, own_name, own_names
from sklearn_implicitreg.problem.masks import draw_masks
from sklearn_implicitreg.problem.workers import Shared, in_workers
from sklearn_implicitreg.progress import progress
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.recovery.cache import Manifest, kept, manifest, source_of
from sklearn_implicitreg.results.recovery.certificates import certificate, check_bounded, near_start
from sklearn_implicitreg.results.recovery.comparison import Recovery
from sklearn_implicitreg.results.recovery.labels import weight_index
from sklearn_implicitreg.results.recovery.matching import hidden_layers
from sklearn_implicitreg.results.recovery.networks import (
    Comparison,
    Plan,
    Weights,
    start_of,
    weights_at,
)
from sklearn_implicitreg.results.recovery.objective import Objective

NUDGE = 1e-7  # of the weights
Train = Callable[[nn.Module, Any, int], Any]


def trained_arms(
    objective: Objective,
    model: Any,
    data: Data,
    options: Options,
    plan: Plan,
    remarks: tuple[str, ...],
) -> Recovery:
    """Every arm by the user's training: one draw per order, and one start nudged."""
    trainer = Trainer.of(objective, model, data, options, plan)
    certified = certificate(objective, objective.theta, objective.scale(), plan.orders[0])
    remarks = (*remarks, *near_start(objective, certified, plan.force))
    check_bounded(objective, certified.direction)
    starts = [start_of(objective, plan, seed) for seed in plan.orders]
    tasks = [(arm, draw) for draw in range(len(starts)) for arm in plan.arms]
    if "recovered" in plan.arms:
        tasks.append(("nudged", 0))
    known = manifest(plan.cache, objective, train=source_of(plan.train or model), how=plan.words)
    outcomes = in_workers(
        _kept_run,
        Shared(plan.cache, known, trainer),
        {f"{arm}-order-{plan.orders[d]}": (arm, starts[d], plan.orders[d]) for arm, d in tasks},
        plan.n_jobs,
    )
    ends = dict(
        zip(tasks, progress(outcomes, "Training again", len(tasks), plan.verbose), strict=True)
    )
    compare = Comparison(objective, hidden_layers(objective, plan.orders[0]))
    arms = {task: compare.arm(end) for task, end in ends.items()}
    runs = pd.DataFrame(
        {"arm": arm, "draw": draw, "seed": plan.orders[draw]}
        | compare.row(starts[draw], ends[arm, draw], arms[arm, draw])
        for arm, draw in tasks
    )
    floor = _floor(compare, ends)
    return Recovery(
        model=compare.arm(weights_at(objective, objective.theta)),
        recovered=arms.get(("recovered", 0)),
        ablated=arms.get(("ablated", 0)),
        index=weight_index(objective.problem, objective.params),
        notes=(*remarks, *_notes(runs, floor, plan), *certified.sentences()),
        method="trained",
        is_minimizer=certified.is_minimizer,
        smallest_eigenvalue=certified.lowest,
        runs=runs,
        gradient=certified.gradient,
        facts=tuple(_facts(runs, floor, plan)),
    )


def _kept_run(
    cache: Any, known: Manifest, trainer: Trainer, arm: str, start: Array, seed: int
) -> Weights:
    run = functools.partial(trainer.run, arm, start, seed)
    return kept(cache, f"{arm}-order-{seed}", known, start, Weights, run)


def _floor(compare: Comparison, ends: dict[tuple[str, int], Weights]) -> float:
    """How far a nudge of the start moves the function; NaN without these arms."""
    if ("nudged", 0) not in ends:
        return float("nan")
    return compare.function_between(ends["nudged", 0], ends["recovered", 0])


@dataclass(frozen=True)
class Trainer:
    """The training of a model, given to copies of it."""

    train: Train
    module: nn.Module  # what copies are made of
    model: Any  # the net or module that was trained
    data: Data
    options: Options
    objective: Objective
    penalty: Any
    fresh: bool  # whether the means of normalizations begin again as well

    @classmethod
    def of(
        cls, objective: Objective, model: Any, data: Data, options: Options, plan: Plan
    ) -> Trainer:
        """The user's training, or that of a skorch net."""
        model, data, own = trainable(model, data)
        train = plan.train
        if train is None and own is model:
            raise ValueError(
                "Expected train(model, penalty, seed) for mode='trainer' of a module, got None; "
                "only a skorch net knows its own training."
            )
        if plan.initial is not None:
            _check_same(plan.initial, own, "Expected initial")
        return cls(
            train or _skorch_training(model, data),
            own if plan.initial is None else plan.initial,
            model,
            data,
            options,
            objective,
            objective.penalty,
            fresh=plan.initial is None and plan.start == "fresh",
        )

    def run(self, arm: str, start: Array, seed: int) -> Weights:
        """Weights and outputs after one training."""
        device = next(self.module.parameters()).device
        penalty = without_penalty if arm == "ablated" else self.penalty
        module = self._begun(start, nudged=arm == "nudged")
        with preserved_rng(device, seed), seeded(generators_in(self.train)), torch.enable_grad():
            trained = self.train(module, penalty, seed)
        return self._compared(trained)

    def _begun(self, start: Array, nudged: bool) -> nn.Module:
        """Fresh copy with the weights of a start, as a new module in training state."""
        module = inner_module(skeleton(inner_module(self.module), None, None))
        values = shaped(self.objective.params, start)
        rng = np.random.default_rng(0)
        for name, own in module.named_parameters():
            value = values.get(own_name(name), own.detach()).to(own, copy=True)
            if nudged and own.is_floating_point():
                size = float(value.double().square().mean().sqrt())
                step = max(NUDGE, torch.finfo(value.dtype).eps) * size
                value += step * torch.from_numpy(rng.standard_normal(tuple(own.shape))).to(value)
            own.data = value
        for part in module.modules() if self.fresh else ():
            getattr(part, "reset_running_stats", lambda: None)()
        return module if module.training else module.train()

    def _compared(self, trained: Any) -> Weights:
        given = getattr(trained, "module_", trained)
        if not isinstance(given, nn.Module):
            raise TypeError(
                "Expected train to return the trained module, got "
                f"{type(given).__name__}; end it with `return model`."
            )
        own = getattr(self.model, "module_", self.model)
        _check_same(given, own, "Expected train to return")
        if inner_module(given) is inner_module(own):
            raise ValueError(
                "Expected train to train the copy that it is given, got the user's own model."
            )
        _set_as(given, own)
        if trained is given and own is not self.model:  # a module of a net
            net = object.__new__(type(self.model))
            vars(net).update(vars(self.model) | {"module_": given})
            trained = net
        names = set(self.objective.scope.params)
        options = replace(self.options, dtype="float64", params=lambda name, _: name in names)
        with warnings.catch_warnings():  # which were given for the model
            warnings.simplefilter("ignore", ModelStateWarning)
            problem = adapt(trained, self.data, options)
        there = Objective(problem, self.penalty)
        return weights_at(there, there.theta)


def trainable(model: Any, data: Data) -> tuple[Any, Data, nn.Module]:
    """Net or module inside of containers, with its rows, and its module."""
    model, data = innermost(model, data)
    own = getattr(model, "module_", model)
    if not isinstance(own, nn.Module):
        raise TypeError(
            "Expected a torch module or a skorch net for mode='trainer', got "
            f"{type(model).__name__}; use mode='auto'."
        )
    return model, data, own


def without_penalty(params: Any, *rows: Any, **named: Any) -> Tensor:
    """Zero, whatever the parameters: a training with it needs no other code."""
    return torch.zeros(())


def _check_same(given: Any, own: nn.Module, what: str) -> None:
    """ValueError where a module is not of the model's architecture, or not finite."""
    shapes = {name: tuple(t.shape) for name, t in own_names(own, "the model").items()}
    named = own_names(given, "a module")
    found = {name: tuple(t.shape) for name, t in named.items()}
    if found != shapes:
        wrong = [n for n in {**shapes, **found} if shapes.get(n) != found.get(n)]
        raise ValueError(
            f"{what} a module with the tensors and shapes of the model, got another "
            f"architecture: {wrong[0]!r} is {found.get(wrong[0], 'missing')} and of the model "
            f"{shapes.get(wrong[0], 'missing')}."
        )
    wrong = [name for name, t in named.items() if not torch.isfinite(t).all()]
    if wrong:
        raise ValueError(
            f"{what} finite weights, got NaN or infinite ones in {wrong}; train with a smaller "
            "step."
        )


def _set_as(given: nn.Module, own: nn.Module) -> None:
    """Modes and trained tensors as in the model, so that both are read alike."""
    modes = {name: part.training for name, part in inner_module(own).named_modules()}
    for name, part in inner_module(given).named_modules():
        part.training = modes.get(name, part.training)
    trained = {name: t.requires_grad for name, t in own_names(own, "the model").items()}
    for name, tensor in own_names(given, "a module").items():
        tensor.requires_grad_(trained[name])


def _skorch_training(net: Any, data: Data) -> Train:
    """A clone of a net, fitted with the penalty in its loss in place of decay and dropout."""

    def train(module: nn.Module, penalty: Any, seed: int) -> Any:
        own = clone(net)
        own.set_params(**_without_decay(own))
        own.initialize()
        with contextlib.suppress(ValueError):  # no such layers
            draw_masks(own.module_.eval(), 0.0)
        own.module_.load_state_dict(module.state_dict())
        plain = own.get_loss

        def get_loss(y_pred: Any, y_true: Any, *args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = plain(y_pred, y_true, *args, **kwargs)
            if kwargs.get("training", False):
                loss = loss + penalty(own.module_, kwargs.get("X"), y_true)
            return loss

        own.get_loss = get_loss
        return own.partial_fit(data.X, data.y)

    return train


def _without_decay(net: Any) -> dict[str, Any]:
    """Parameters that take the optimizer's decay away."""
    found: dict[str, Any] = {}
    if "weight_decay" in inspect.signature(net.optimizer).parameters:  # the default may not be 0
        found["optimizer__weight_decay"] = 0.0
    groups = net.get_params().get("optimizer__param_groups")
    if groups:
        found["optimizer__param_groups"] = [
            (names, {n: v for n, v in own.items() if n != "weight_decay"}) for names, own in groups
        ]
    return found


def _ratios(runs: pd.DataFrame) -> Array:
    """Per draw the distance of the function with R over that without."""
    by_arm = runs.pivot(index="draw", columns="arm", values="function")
    if not {"recovered", "ablated"} <= set(by_arm):
        return np.full(len(by_arm), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(by_arm["recovered"] / by_arm["ablated"])


def _facts(runs: pd.DataFrame, floor: float, plan: Plan) -> Iterator[tuple[str, str]]:
    ratios = _ratios(runs)
    yield "Start", plan.words
    yield "Over without R", ", ".join(f"{r:.2g}" for r in ratios)
    yield "Floor of chaos", f"{floor:.2g}"


def _notes(runs: pd.DataFrame, floor: float, plan: Plan) -> Iterator[str]:
    first, *others = _ratios(runs)
    if plan.initial is None:
        yield (
            "The start of the model is not known: distances from it hold the change of the start "
            "as well. Give initial=, the module before its training."
        )
    if not math.isnan(first):
        yield (
            f"Seed {plan.orders[0]}: the function is {first:.2g} times as far from the model's as "
            "without R."
        )
        if plan.initial is not None:
            yield (
                "With the start and order of the model that is the error of the coefficient alone, "
                "zero for an exact one, and no evidence about the model."
            )
    if others and not math.isnan(others[0]):
        yield (
            f"Evidence: with {len(others)} other orders it is {min(others):.2g} to "
            f"{max(others):.2g} times as far as without R."
        )
    if not math.isnan(floor):
        yield (
            f"A start nudged by {NUDGE:g} moves the function by {floor:.2g} of its standard "
            "deviation: smaller differences are chaos of the training."
        )
