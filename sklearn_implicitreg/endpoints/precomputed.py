"""Equations given as arrays: a design and its target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from sklearn_implicitreg.problem import BlockGradient, LossGradient, Problem
from sklearn_implicitreg.problem.parameters import as_numbers
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.regression.equations import Equations, Units
from sklearn_implicitreg.regression.fit import Result
from sklearn_implicitreg.regression.place import Place
from sklearn_implicitreg.regression.system import Array, System


class _Given(Problem):
    """No model and no rows: equations were given as such."""

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        return iter(())


class _GivenTargets:
    """What the summary has of given equations."""

    problem = _Given(
        params={}, model_name="precomputed equations", loss_name="", eps=float(np.finfo(float).eps)
    )

    def equations(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "Expected a model, got equations given as arrays, which have no weights and no rows."
        )

    observed = completing = equations

    def units(self, equations: Equations) -> Units:
        return 1.0, None, False

    def header(self, equations: Equations, result: Result) -> list[tuple[str, str]]:
        return [("Model", self.problem.model_name)]

    def notes(self, equations: Equations, result: Result) -> list[str]:
        return []


def given_equations(
    design: Any, target: Any, sample_weight: Any = None, n_terms: int | None = None
) -> Equations:
    """Equations given as arrays; row weights multiply squared residuals."""
    if target is None:
        raise ValueError(
            "Expected y, the target of the regression, with model='precomputed', got None."
        )
    X, y = _numbers(design, "X"), _numbers(target, "y")
    if X.ndim != 2 or y.shape != X.shape[:1] or n_terms not in (None, X.shape[1]):
        raise ValueError(
            f"Expected a design of shape (m, {n_terms or 'k'}) as X and a target of shape (m,) "
            f"as y with model='precomputed', got {X.shape} and {y.shape}."
        )
    names, index = [f"x{i}" for i in range(X.shape[1])], None
    if isinstance(design, pd.DataFrame):
        names, index = [str(column) for column in design.columns], np.asarray(design.index)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Expected columns of different names, got {twice} twice; rename them.")
    if len(X) < X.shape[1] or not len(X):
        raise ValueError(
            f"Expected at least as many equations as coefficients, got {len(X)} equations for "
            f"{X.shape[1]} coefficients; give more rows or fewer columns."
        )
    if sample_weight is not None:
        weight = _numbers(sample_weight, "sample_weight")
        if weight.shape != y.shape or (weight < 0).any() or not (weight > 0).any():
            raise ValueError(
                f"Expected sample_weight of shape ({len(X)},), at or above zero and not all zero, "
                f"got shape {weight.shape} with a smallest weight of "
                f"{weight.min(initial=np.inf):g}."
            )
        root = np.sqrt(weight)
        X, y = X * root[:, None], y * root
    system = System.from_arrays(X, y, names, index=index)
    gradient = LossGradient({}, float("nan"), 1.0, 1, 0.0, 0)
    targets = _GivenTargets()
    nothing = Design(system.term_names, (), (), {})
    return Equations((Place(targets.problem, nothing, gradient, system),), targets)


def _numbers(values: Any, name: str) -> Array:
    array = as_numbers(name, values)
    if not np.isfinite(array).all():
        raise ValueError(f"Expected finite numbers in {name}, got NaN or inf; drop those rows.")
    return array
