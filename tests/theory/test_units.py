"""Conversions between coefficients and the parameters of models."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso, Ridge

from sklearn_implicitreg.problem.conventions import CONVENTIONS
from sklearn_implicitreg.theory import convert


@pytest.mark.parametrize(
    ("coef", "family", "keywords", "expected"),
    [
        (0.3, "l2", {"to": "alpha", "n": 10}, 3.0),
        (0.3, "l1", {"to": "alpha"}, 0.15),
        (0.3, "l21", {"to": "alpha"}, 0.15),
        (0.01, "l2", {"to": "C", "n": 100}, 0.5),
        (0.02, "weight_decay", {"to": "C", "n": 100}, 0.5),
        (0.02, "l1", {"to": "C", "n": 100}, 0.5),
        (0.3, "l2", {"to": "weight_decay"}, 0.6),
        (0.3, "weight_decay", {"to": "weight_decay"}, 0.3),
        (0.3, "l2", {"to": "alpha", "model": "SGDRegressor"}, 0.3),
        (0.3, "l2", {"to": "alpha", "model": "SGDClassifier"}, 0.6),
        (0.3, "l2", {"to": "alpha", "model": "MLPClassifier", "n": 10}, 6.0),
        (0.3, "l2", {"to": "alpha", "model": "TweedieRegressor"}, 0.6),
        (3.0, "l2", {"to": "coef", "model": "Ridge", "n": 10}, 0.3),
        (0.5, "weight_decay", {"to": "coef", "model": "LogisticRegression", "n": 100}, 0.02),
    ],
)
def test_known_conversions(
    coef: float, family: str, keywords: dict[str, float | str], expected: float
) -> None:
    assert convert(coef, family, **keywords) == pytest.approx(expected, rel=1e-14)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "parameter", "expected"),
    [
        ("Ridge", "alpha", {"l2": 0.1}),
        ("Lasso", "alpha", {"l1": 2.0}),
        ("ElasticNet", "alpha", {"l2": 1.0, "l1": 2.0}),
        ("MultiTaskLasso", "alpha", {"l21": 2.0}),
        ("MultiTaskElasticNet", "alpha", {"l2": 1.0, "l21": 2.0}),
        ("LogisticRegression", "C", {"l2": 0.05, "l1": 0.1}),
        ("LinearSVC", "C", {"l2": 0.05, "l1": 0.1}),
        ("LinearSVR", "C", {"l2": 0.05}),
        ("SGDRegressor", "alpha", {"l2": 1.0, "l1": 2.0}),
        ("SGDClassifier", "alpha", {"l2": 0.5, "l1": 1.0}),
        ("PoissonRegressor", "alpha", {"l2": 0.5}),
        ("GammaRegressor", "alpha", {"l2": 0.5}),
        ("TweedieRegressor", "alpha", {"l2": 0.5}),
        ("HuberRegressor", "alpha", {"l2": 0.1}),
        ("QuantileRegressor", "alpha", {"l1": 1.0}),
        ("MLPRegressor", "alpha", {"l2": 0.1}),
        ("MLPClassifier", "alpha", {"l2": 0.05}),
        ("torch", "weight_decay", {"l2": 0.5}),
        ("OLS", "alpha", {"l2": 1.0, "l1": 2.0}),
        ("GLM", "alpha", {"l2": 0.5, "l1": 1.0}),
    ],
)
def test_coefficients_for_a_parameter_of_one_and_ten_rows(
    model: str, parameter: str, expected: dict[str, float]
) -> None:
    assert CONVENTIONS[model].parameter == parameter
    found = {f: convert(1.0, f, to="coef", n=10, model=model) for f in expected}
    assert found == expected


@pytest.mark.parametrize("model", list(CONVENTIONS))
def test_there_and_back_again(model: str) -> None:
    row = CONVENTIONS[model]
    families = ["l2", "weight_decay"] * (row.l2 is not None) + [row.l1_term] * (row.l1 is not None)
    for family in families:
        value = convert(0.07, family, to=row.parameter, n=50, model=model)
        assert convert(value, family, to="coef", n=50, model=model) == pytest.approx(0.07)


def test_conversion_agrees_with_the_gradients_of_trained_models() -> None:
    X, y = load_diabetes(return_X_y=True)
    X = 20 * X
    for model, family, n in ((Ridge(3.0), "l2", len(y)), (Lasso(1.5, tol=1e-14), "l1", None)):
        w = model.fit(X, y).coef_
        slope = 2 * X.T @ (model.predict(X) - y) / len(y)
        used = w != 0
        direction = 2 * w[used] if family == "l2" else np.sign(w[used])
        coef = -float(slope[used] @ direction / (direction @ direction))
        assert convert(coef, family, to="alpha", n=n) == pytest.approx(model.alpha, rel=1e-9)


@pytest.mark.parametrize("model", ["LogisticRegression", "LinearSVC", "LinearSVR"])
def test_an_inverse_has_one_sign(model: str) -> None:
    assert convert(0.0, "l2", to="C", n=10, model=model) == np.inf
    for value, to in ((-0.1, "C"), (-0.1, "coef"), (0.0, "coef")):
        with pytest.raises(ValueError, match="above zero where 'C' is one over the strength, got"):
            convert(value, "l2", to=to, n=10, model=model)


@pytest.mark.parametrize("model", list(CONVENTIONS))
def test_table_of_the_docstring_names_every_model(model: str) -> None:
    assert re.search(rf"^    {model}\b", inspect.getdoc(convert) or "", re.M) or re.search(
        rf"^\s*{model}\b", convert.__doc__ or "", re.M
    )


@pytest.mark.parametrize(
    ("family", "keywords", "message"),
    [
        ("l3", {"to": "alpha"}, r"family to be one of \['l2'.*got 'l3'; did you mean 'l"),
        ("l2", {"to": "alpha"}, "Expected n, the total weight"),
        ("l2", {"to": "gamma"}, r"to= one of \['C', 'alpha', 'weight_decay'\].*got to='gamma'"),
        ("l2", {"to": "coef"}, "without a model"),
        ("l2", {"to": "alpha", "model": "Rigde"}, "model to be one of .*did you mean 'Ridge'"),
        ("l2", {"to": "C", "model": "Ridge"}, "Expected to='alpha' or 'coef' for Ridge, got 'C'"),
        ("l1", {"to": "alpha", "model": "Ridge"}, "penalty that Ridge has, got 'l1'"),
        ("l1", {"to": "alpha", "model": "MultiTaskLasso"}, "penalty that MultiTaskLasso has"),
        ("l2", {"to": "alpha", "model": "Lasso"}, "penalty that Lasso has, got 'l2'"),
    ],
)
def test_errors_name_what_is_known(family: str, keywords: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(0.1, family, **keywords)  # type: ignore[arg-type]
