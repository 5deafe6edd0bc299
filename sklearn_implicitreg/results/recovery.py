"""Weights that minimize loss and estimated penalty, compared with those of the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from torch import Tensor

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.endpoints.templates import weight_name
from sklearn_implicitreg.penalties import FittedPenalty
from sklearn_implicitreg.problem import Params, Problem, flat, shaped
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.explicit import explicit_estimator
from sklearn_implicitreg.results.fit_description import Facts
from sklearn_implicitreg.results.quadratic_form import (
    PenaltyValue,
    QuadraticForm,
    Stationary,
    has_gradient,
    quadratic_loss,
    quadratic_penalty,
)
from sklearn_implicitreg.results.summary import Summary

__all__ = ["Arm", "Recovery", "recover"]

_STATIONARY = 1e-6  # of the summands: gradient of a parameter at its optimum
_WEAK = 1e-3  # share of the penalty where an estimator takes no zero
_PREDICTION = "Prediction: root mean square difference from the model's, over the rows."


@dataclass(frozen=True, eq=False)
class Arm:
    """Weights from one way of training, compared with the model's.

    Attributes
    ----------
    coef : ndarray of shape (p,)
        The parameters in scope, flattened and joined.
    loss : float
        Mean loss L, in the library's units.
    penalty : float
        Estimated penalty R at these weights.
    distance : float
        ``|coef - model| / |model|``.
    cosine : float
        Of the angle between the two.
    prediction : float
        Root mean square over the rows of the difference in predictions (decision values for
        classifiers); several outputs as the loss takes them, in a refit their sum.
    """

    coef: Array
    loss: float
    penalty: float
    distance: float
    cosine: float
    prediction: float


@dataclass(frozen=True, eq=False)
class Recovery:
    """Weights that L + R leads to, compared with the model's and with those of L alone.

    Attributes
    ----------
    model : Arm
        The trained model.
    recovered : Arm
        Where L + R is stationary, or what a retrained estimator with this penalty has.
    ablated : Arm
        The same with R = 0; of several least-squares solutions the shortest.
    index : MultiIndex of length p
        Tensor and coordinate of each weight.
    method : {"closed form", "refit"}
        How the arms were made.
    is_minimizer : bool or None
        Whether the recovered weights minimize L + R: its Hessian has no negative eigenvalue.
        Otherwise they only solve the linear equations. None after a refit, which minimizes.
    is_unique : bool or None
        Whether they are its only stationary point: no eigenvalue is zero. None after a refit.
    smallest_eigenvalue : float
        Smallest eigenvalue of that Hessian; NaN after a refit.
    notes : tuple of str
        Sentences for the reader.
    """

    model: Arm
    recovered: Arm
    ablated: Arm
    index: pd.MultiIndex
    method: str
    is_minimizer: bool | None
    is_unique: bool | None
    smallest_eigenvalue: float
    notes: tuple[str, ...]

    def summary(self) -> Summary:
        """Table of the three arms, printable as text, HTML and LaTeX.

        Returns
        -------
        summary : Summary
        """
        arms = {"model": self.model, "recovered": self.recovered, "without R": self.ablated}
        table = pd.DataFrame(
            {
                "L": [arm.loss for arm in arms.values()],
                "R": [arm.penalty for arm in arms.values()],
                "L + R": [arm.loss + arm.penalty for arm in arms.values()],
                "distance": [arm.distance for arm in arms.values()],
                "cosine": [arm.cosine for arm in arms.values()],
                "prediction": [arm.prediction for arm in arms.values()],
            },
            index=list(arms),
        )
        header = [("Weights", str(len(self.index))), ("Method", self.method)]
        if self.is_minimizer is not None:
            alone = "yes" if self.is_unique else "yes, not alone"
            header.append(("Minimizer", alone if self.is_minimizer else "no"))
            header.append(("Smallest eigenvalue", f"{self.smallest_eigenvalue:.3g}"))
        return Summary("Recovery", header, table, list(self.notes))

    def to_frame(self) -> pd.DataFrame:
        """Weights of the three arms side by side.

        Returns
        -------
        frame : DataFrame
            One row per weight, columns ``model``, ``recovered``, ``ablated``.
        """
        return pd.DataFrame(
            {
                "model": self.model.coef,
                "recovered": self.recovered.coef,
                "ablated": self.ablated.coef,
            },
            index=self.index,
        )

    def __str__(self) -> str:
        """Text of the table."""
        return str(self.summary())

    def __repr__(self) -> str:
        """Text of the table."""
        return str(self.summary())

    def _repr_html_(self) -> str:
        """Table for notebooks."""
        return self.summary().as_html()


def recover(
    model: Any,
    coef: Mapping[str, float],
    facts: Facts,
    penalty: PenaltyValue | None,
    data: Data,
    options: Options,
) -> Recovery:
    """Solve ``L + R`` in closed form where both are quadratic, else train an estimator."""
    if penalty is None:
        raise TypeError(
            "Expected a model to recover, got given equations; there are no weights to train."
        )
    if facts.known:
        raise ValueError(
            f"Expected a family without known penalties, got {list(facts.known)}: fit without "
            "`known`, so that R is the whole penalty."
        )
    task = _Task(model, penalty, data, options, adapt(model, data, options))
    loss = quadratic_loss(task.problem)
    rule = None if loss is None else quadratic_penalty(task.value, task.problem.params)
    found = None
    if loss is not None and rule is not None:
        found = _solved(task, loss, rule)
    return found or _refitted(task, coef, facts, loss)


@dataclass(frozen=True)
class _Task:
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
        """Arm with its penalty and its distance from the model."""
        theta = self.theta
        size, own = float(np.linalg.norm(theta)), float(np.linalg.norm(coef))
        distance = float(np.linalg.norm(coef - theta)) / size if size else float("nan")
        cosine = float(coef @ theta) / (size * own) if size * own else float("nan")
        penalty = float(self.value(shaped(self.problem.params, coef)))
        return Arm(coef, loss, penalty, distance, cosine, prediction)

    def solved(self, loss: QuadraticForm, coef: Array) -> Arm:
        """Arm of some weights by a quadratic loss."""
        step = coef - self.theta
        value = self.problem.gradient().loss + loss.change(self.theta, coef)
        # Half the second derivative of a squared error is the mean square of the predictions.
        away = max(float(step @ loss.hessian @ step), 0.0) / 2
        return self.arm(coef, value, away**0.5)

    def trained(self, estimator: Any) -> Arm:
        """Arm of an estimator, trained here on the rows with their weights."""
        weight = self.data.sample_weight
        name = weight_name(estimator)
        if weight is not None and name is None:
            raise ValueError(
                "Expected an estimator whose fit takes sample_weight, got "
                f"{type(estimator).__name__}."
            )
        weights = {} if name is None or weight is None else {name: weight}
        estimator.fit(self.data.X, self.data.y, **weights)
        problem = adapt(estimator, self.data, self.options)
        away = _predicted(estimator, self.data.X) - _predicted(self.model, self.data.X)
        rows = np.square(away).reshape(len(away), -1).sum(axis=1)
        rms = float(np.sqrt(np.average(rows, weights=weight)))
        return self.arm(flat(problem.params), problem.gradient().loss, rms)

    def notes(self) -> tuple[str, ...]:
        """A note if parameters without penalty are not at their optimum."""
        if not self.problem.left_out:
            return ()
        gradient = adapt(self.model, self.data, replace(self.options, params="all")).gradient()
        names = [name for name in gradient.value if name not in self.problem.params]
        size = float(sum(gradient.value[name].square().sum() for name in names) ** 0.5)
        if size <= max(_STATIONARY, 100 * self.problem.eps) * gradient.scale:
            return ()
        return (
            f"At their optimum in the other arms, but not in the model: "
            f"{', '.join(names)} (gradient {size:.3g}).",
        )


def _solved(task: _Task, loss: QuadraticForm, rule: QuadraticForm) -> Recovery | None:
    """The three arms in closed form; None where the penalty is not quadratic at the solution."""
    found = (loss + rule).stationary()
    if not has_gradient(task.value, task.problem.params, rule, found.point):
        return None
    return Recovery(
        model=task.solved(loss, task.theta),
        recovered=task.solved(loss, found.point),
        ablated=task.solved(loss, loss.stationary().point),
        index=_index(task.problem.params),
        method="closed form",
        is_minimizer=found.n_negative == 0 and found.exists,
        is_unique=found.n_zero == 0,
        smallest_eigenvalue=found.smallest_eigenvalue,
        notes=(_judged(found), _PREDICTION, *task.notes()),
    )


def _judged(found: Stationary) -> str:
    """Sentence on the solution, by the eigenvalues of the Hessian."""
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
    return "The Hessian of L + R is positive definite: the recovered weights minimize it, alone."


def _refitted(
    task: _Task, coef: Mapping[str, float], facts: Facts, loss: QuadraticForm | None
) -> Recovery:
    """The arms by training the estimator that states the penalty, and the one without."""
    penalty = task.penalty
    if not isinstance(penalty, FittedPenalty):
        raise ValueError(
            f"Expected a quadratic loss for this penalty, got {task.problem.loss_name} of "
            f"{task.problem.model_name}: no estimator states it; add penalty_ to a training loop."
        )
    stated = explicit_estimator(task.model, coef, facts, penalty)
    recovered = task.trained(stated)
    notes = [
        f"{type(stated).__name__} was trained with this penalty; its tolerance, and its start "
        "where there are several optima, bound how near it comes.",
        _PREDICTION,
    ]
    if loss is not None:
        ablated = task.solved(loss, loss.stationary().point)
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # without a penalty there may be no optimum
            try:
                ablated = task.trained(_weakened(task.model, coef, facts, penalty, 0.0))
            except ValueError:  # C=inf is not taken everywhere
                ablated = task.trained(_weakened(task.model, coef, facts, penalty, _WEAK))
                notes.append(
                    f"Without R: {_WEAK:g} of it, as {type(stated).__name__} takes no zero."
                )
        notes += [f"Without R: {' '.join(str(w.message).split())}" for w in caught[:1]]
    return Recovery(
        model=task.arm(task.theta, task.problem.gradient().loss, 0.0),
        recovered=recovered,
        ablated=ablated,
        index=_index(task.problem.params),
        method="refit",
        is_minimizer=None,
        is_unique=None,
        smallest_eigenvalue=float("nan"),
        notes=tuple(notes),
    )


def _weakened(
    model: Any, coef: Mapping[str, float], facts: Facts, penalty: FittedPenalty, share: float
) -> Any:
    """Estimator that states a share of the penalty."""
    leaves = tuple((leaf, tuple(share * c for c in coefs)) for leaf, coefs in penalty.leaves)
    part = replace(penalty, leaves=leaves)
    return explicit_estimator(model, {t: share * c for t, c in coef.items()}, facts, part)


def _predicted(model: Any, X: Any) -> Array:
    """Decision values, probabilities or predictions, the first of these that the model has."""
    for method in ("decision_function", "predict_proba", "predict"):
        if hasattr(model, method):
            return np.asarray(getattr(model, method)(X), dtype=np.float64)
    raise TypeError(f"Expected a model with predict, got {type(model).__name__}.")


def _index(params: Params) -> pd.MultiIndex:
    """Tensor and coordinate of every weight."""
    rows = [(name, i) for name, tensor in params.items() for i in range(tensor.numel())]
    return pd.MultiIndex.from_tuples(rows, names=["tensor", "coordinate"])
