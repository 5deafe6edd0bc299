"""The way to train a model again: in closed form, by minimization or by an estimator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.exceptions import ModelStateWarning
from sklearn_implicitreg.results.fit_description import Description
from sklearn_implicitreg.results.quadratic_form import PenaltyValue, quadratic_loss
from sklearn_implicitreg.results.recovery.comparison import Recovery
from sklearn_implicitreg.results.recovery.linear import Task, refitted_arms, solved_arms
from sklearn_implicitreg.results.recovery.networks import Plan, minimized_arms
from sklearn_implicitreg.results.recovery.objective import Objective
from sklearn_implicitreg.results.recovery.trainer import trainable, trained_arms


def recover(
    model: Any,
    coef: Mapping[str, float],
    description: Description,
    penalty: PenaltyValue | None,
    data: Data,
    options: Options,
    plan: Plan | None = None,
    remarks: tuple[str, ...] = (),
) -> Recovery:
    """Solve ``L + R`` where both are quadratic, else minimize it, or train an estimator."""
    if isinstance(model, str) or penalty is None:
        raise TypeError(
            "Expected a model to recover, got given equations; there are no weights to train."
        )
    description.check_all_unknown()
    problem = adapt(model, data, options)
    problem.gradient()  # raises the errors of rows that do not fit the model
    task = Task(model, penalty, data, options, problem)
    plan = plan or Plan("perturbed", 0.1, 3, ("recovered", "ablated"))
    by_training = plan.mode == "trainer"
    if by_training:
        trainable(model, data)  # raises TypeError where it is not
    loss = quadratic_loss(problem)
    found = None if loss is None or by_training else solved_arms(task, loss)
    if found is None and problem.has_paths:
        if str(options.dtype) != "float64":
            with warnings.catch_warnings():  # which were given a moment ago
                warnings.simplefilter("ignore", ModelStateWarning)
                problem = adapt(model, data, replace(options, dtype="float64"))
        if by_training:
            return trained_arms(Objective(problem, penalty), model, data, options, plan, remarks)
        return minimized_arms(Objective(problem, penalty), plan, remarks)
    found = found or refitted_arms(task, coef, description, loss)
    return replace(found, notes=(*remarks, *found.notes))
