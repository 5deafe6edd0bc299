"""The arms of a linear model: solved in closed form, or by the explicit estimator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from torch import Tensor

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.adapters.torch.generators import preserved_rng
from sklearn_implicitreg.endpoints.templates import weight_name
from sklearn_implicitreg.penalties import FittedPenalty
from sklearn_implicitreg.problem import Params, Problem, flat, norm_of, shaped
from sklearn_implicitreg.regression.solve import norm_of as norm
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.explicit import explicit_estimator
from sklearn_implicitreg.results.fit_description import Description
from sklearn_implicitreg.results.quadratic_form import (
    PenaltyValue,
    QuadraticForm,
    Stationary,
    has_gradient,
    quadratic_penalty,
)
from sklearn_implicitreg.results.recovery.comparison import Arm, Recovery
from sklearn_implicitreg.results.recovery.labels import weight_index

_STATIONARY = 1e-6  # of the summands: gradient of a parameter at its optimum
_WEAK = 1e-3  # share of the penalty where an estimator takes no zero
_PREDICTION = "Prediction: root mean square difference from the model's, over the rows."


@dataclass(frozen=True)
class Task:
    """A trained model with its data and penalty, with which every arm is compared."""

    model: Any
    penalty: PenaltyValue
    data: Data
    options: Options
    problem: Problem

    def value(self, params: Params) -> Tensor:
        """Penalty at some parameters; of one on rows, the mean over the rows of the problem."""
        if getattr(self.penalty, "model", None) is None:
            return self.penalty(params)
        return cast(FittedPenalty, self.penalty).at(params, self.problem)

    @property
    def theta(self) -> Array:
        """Weights of the model."""
        return flat(self.problem.params)

    def arm(self, coef: Array, loss: float, prediction: float) -> Arm:
        """Weights compared with the model's."""
        theta = self.theta
        size, own = norm(theta), norm(coef)
        distance = norm(coef - theta) / size if size else float("nan")
        cosine = float((coef / own) @ (theta / size)) if size and own else float("nan")
        penalty = float(self.value(shaped(self.problem.params, coef)))
        return Arm(coef, loss, penalty, distance, cosine, prediction)

    def solved(self, loss: QuadraticForm, coef: Array) -> Arm:
        """Weights of a quadratic loss, without another pass over the rows."""
        step = coef - self.theta
        value = self.problem.gradient().loss + loss.change(self.theta, coef)
        # Half the second derivative of a squared error is the mean square of the predictions.
        away = max(float(step @ loss.hessian @ step), 0.0) / 2
        return self.arm(coef, value, away**0.5)

    def trained(self, estimator: Any) -> Arm:
        """Weights of an estimator after its training."""
        weight, weights = self.data.sample_weight, {}
        if weight is not None:
            name = weight_name(estimator)
            if name is None:
                raise ValueError(
                    "Expected an estimator whose fit takes sample_weight, got "
                    f"{type(estimator).__name__}."
                )
            weights = {name: weight}
        # Every arm starts from the same random numbers, and the user's stay where they were.
        with preserved_rng(next(iter(self.problem.params.values())).device):
            estimator.fit(self.data.X, self.data.y, **weights)
            away = _predicted(estimator, self.data.X) - _predicted(self.model, self.data.X)
        names = set(self.problem.params)  # whatever the arm's optimizer decays
        options = replace(self.options, params=lambda name, _: name in names)
        problem = adapt(estimator, self.data, options)
        rows = np.square(away).reshape(len(away), -1).sum(axis=1)
        rms = float(np.sqrt(np.average(rows, weights=weight)))
        return self.arm(flat(problem.params), problem.gradient().loss, rms)

    def compared(
        self, recovered: Arm, ablated: Arm, notes: tuple[str, ...], **judged: Any
    ) -> Recovery:
        """Both arms beside the model."""
        index = weight_index(self.problem, self.problem.params)
        model = self.arm(self.theta, self.problem.gradient().loss, 0.0)
        return Recovery(model, recovered, ablated, index, notes, **judged)

    def notes(self) -> tuple[str, ...]:
        """A note if parameters without penalty are not at their optimum."""
        gradient = adapt(self.model, self.data, replace(self.options, params="all")).gradient()
        names = [name for name in gradient.value if name not in self.problem.params]
        size = norm_of({name: gradient.value[name] for name in names})
        if size <= max(_STATIONARY, 100 * self.problem.eps) * gradient.scale:
            return ()
        text = f"At their optimum in the other arms, but not in the model: {', '.join(names)}"
        return (f"{text} (gradient {size:.3g}).",)


def solved_arms(task: Task, loss: QuadraticForm) -> Recovery | None:
    """The three arms in closed form; None where the penalty is not quadratic at the solution."""
    rule = quadratic_penalty(task.value, task.problem.params)
    if rule is None:
        return None
    found = (loss + rule).stationary()
    if not has_gradient(task.value, task.problem.params, rule, found.point):
        return None
    return task.compared(
        task.solved(loss, found.point),
        task.solved(loss, loss.stationary().point),
        (_judged(found), _PREDICTION, *task.notes()),
        method="closed form",
        is_minimizer=found.n_negative == 0 and found.exists,
        is_unique=found.n_zero == 0,
        smallest_eigenvalue=found.smallest_eigenvalue,
    )


def _judged(found: Stationary) -> str:
    if found.n_negative:
        return (
            f"Not a minimizer: {found.n_negative} of {found.n} eigenvalues of the Hessian of L + R "
            "are negative, L + R has no lower bound. Equal weights are those of the linear solve; "
            "training on L + R would not end there."
        )
    if not found.exists:
        return (
            f"No minimizer: {found.n_zero} of {found.n} eigenvalues of the Hessian of L + R are "
            "zero, and L + R falls without end along them."
        )
    if found.n_zero:
        return (
            f"Not the only minimizer: {found.n_zero} of {found.n} eigenvalues of the Hessian of "
            "L + R are zero; shown is the shortest one."
        )
    return (
        "Proposition E: the Hessian of L + R is positive definite, the recovered weights minimize "
        "it, alone."
    )


def refitted_arms(
    task: Task, coef: Mapping[str, float], description: Description, loss: QuadraticForm | None
) -> Recovery:
    """The arms by training the estimator that states the penalty, and without it."""
    penalty = task.penalty
    if not isinstance(penalty, FittedPenalty):
        raise ValueError(
            f"Expected a quadratic loss for this penalty, got {task.problem.loss_name} of "
            f"{task.problem.model_name}: no estimator states it; add penalty_ to a training loop."
        )

    def weakened(share: float) -> Arm:
        leaves = tuple((leaf, tuple(share * c for c in own)) for leaf, own in penalty.leaves)
        part = replace(penalty, leaves=leaves)
        scaled = {term: share * c for term, c in coef.items()}
        return task.trained(explicit_estimator(task.model, scaled, description, part))

    stated = explicit_estimator(task.model, coef, description, penalty)
    recovered, name = task.trained(stated), type(stated).__name__
    notes = [
        f"{name} was trained with this penalty; its tolerance, and its start where there are "
        "several optima, bound how near it comes.",
        _PREDICTION,
    ]
    if loss is not None:
        ablated = task.solved(loss, loss.stationary().point)
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # without a penalty there may be no optimum
            try:
                ablated = weakened(0.0)
            except ValueError:  # C=inf is not taken everywhere
                ablated = weakened(_WEAK)
                notes.append(f"Without R: {_WEAK:g} of it, as {name} takes no zero.")
        notes += [f"Without R: {' '.join(str(w.message).split())}" for w in caught[:1]]
    return task.compared(recovered, ablated, tuple(notes))


def _predicted(model: Any, X: Any) -> Array:
    for method in ("decision_function", "predict_proba", "predict"):
        if hasattr(model, method):
            return np.asarray(getattr(model, method)(X), dtype=np.float64)
    raise TypeError(f"Expected a model with predict, got {type(model).__name__}.")
