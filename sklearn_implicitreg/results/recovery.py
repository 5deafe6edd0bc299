"""Weights that minimize loss and estimated penalty, compared with those of the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from torch import Tensor, nn

from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.adapters.torch.generators import preserved_rng
from sklearn_implicitreg.endpoints.templates import inner_model, weight_name
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
    quadratic_loss,
    quadratic_penalty,
)
from sklearn_implicitreg.results.summary import Summary

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
    loss, penalty : float
        Mean loss L, in the library's units, and estimated penalty R at these weights.
    distance, cosine : float
        ``|coef - model| / |model|``, and that of the angle between the two.
    prediction : float
        Root mean square difference in predictions, or decision values; outputs added up.
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
    model, recovered, ablated : Arm
        The trained model; where L + R is stationary, or a retrained estimator; the same with
        R = 0, of several least-squares solutions the shortest.
    index, notes : MultiIndex of length p, tuple of str
        Tensor and coordinate of every weight, and sentences for the reader.
    method : {"closed form", "refit"}
        How the arms were made.
    is_minimizer, is_unique : bool or None
        Whether the recovered weights minimize L + R, or only solve the linear equations, and are
        its only stationary point. None after a refit, which minimizes.
    smallest_eigenvalue : float
        Of the Hessian of L + R; NaN after a refit.
    """

    model: Arm
    recovered: Arm
    ablated: Arm
    index: pd.MultiIndex
    notes: tuple[str, ...]
    method: str = "refit"
    is_minimizer: bool | None = None
    is_unique: bool | None = None
    smallest_eigenvalue: float = float("nan")

    def summary(self) -> Summary:
        """Table of the three arms, printable as text, HTML and LaTeX.

        Returns
        -------
        summary : Summary
        """
        arms = {"model": self.model, "recovered": self.recovered, "without R": self.ablated}
        table = pd.DataFrame(map(vars, arms.values()), index=list(arms)).drop(columns="coef")
        table.insert(2, "L + R", table["loss"] + table["penalty"])
        table = table.rename(columns={"loss": "L", "penalty": "R"})
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
        names = ("model", "recovered", "ablated")
        return pd.DataFrame({name: getattr(self, name).coef for name in names}, index=self.index)

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary().as_html()


def recover(
    model: Any,
    coef: Mapping[str, float],
    description: Description,
    penalty: PenaltyValue | None,
    data: Data,
    options: Options,
) -> Recovery:
    """Solve ``L + R`` in closed form where both are quadratic, else train an estimator."""
    if isinstance(model, str) or penalty is None:
        raise TypeError(
            "Expected a model to recover, got given equations; there are no weights to train."
        )
    description.check_all_unknown()
    task = _Task(model, penalty, data, options, adapt(model, data, options))
    loss = quadratic_loss(task.problem)
    found = None if loss is None else _solved(task, loss)
    return found or _refitted(task, coef, description, loss)


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
        return flat(self.problem.params)

    def arm(self, coef: Array, loss: float, prediction: float) -> Arm:
        theta = self.theta
        size, own = norm(theta), norm(coef)
        distance = norm(coef - theta) / size if size else float("nan")
        cosine = float((coef / own) @ (theta / size)) if size and own else float("nan")
        penalty = float(self.value(shaped(self.problem.params, coef)))
        return Arm(coef, loss, penalty, distance, cosine, prediction)

    def solved(self, loss: QuadraticForm, coef: Array) -> Arm:
        step = coef - self.theta
        value = self.problem.gradient().loss + loss.change(self.theta, coef)
        # Half the second derivative of a squared error is the mean square of the predictions.
        away = max(float(step @ loss.hessian @ step), 0.0) / 2
        return self.arm(coef, value, away**0.5)

    def trained(self, estimator: Any) -> Arm:
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
        params = self.problem.params
        entries = ((n, self.problem.labels(n, np.arange(t.numel()))) for n, t in params.items())
        rows = [(name, label) for name, labels in entries for label in labels]
        index = pd.MultiIndex.from_tuples(rows, names=["tensor", "coordinate"])
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


def _solved(task: _Task, loss: QuadraticForm) -> Recovery | None:
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
    return "The Hessian of L + R is positive definite: the recovered weights minimize it, alone."


def _refitted(
    task: _Task, coef: Mapping[str, float], description: Description, loss: QuadraticForm | None
) -> Recovery:
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
    """Predictions, after which the modules of a net are in the modes that they were in."""
    modes = [(part, part.training) for module in _modules(model) for part in module.modules()]
    try:
        for method in ("decision_function", "predict_proba", "predict"):
            if hasattr(model, method):
                return np.asarray(getattr(model, method)(X), dtype=np.float64)
    finally:
        for part, training in modes:
            part.training = training
    raise TypeError(f"Expected a model with predict, got {type(model).__name__}.")


def _modules(model: Any) -> list[nn.Module]:
    """Modules of a net, also of one inside a container."""
    return [own for own in vars(inner_model(model)).values() if isinstance(own, nn.Module)]
