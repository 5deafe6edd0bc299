"""The table of units: against the objectives that scikit-learn's models are trained with."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, LogisticRegression, PoissonRegressor, Ridge
from sklearn.metrics import log_loss, mean_poisson_deviance, mean_squared_error

from sklearn_implicitreg.problem.conventions import CONVENTIONS, Convention

X, Y = load_diabetes(return_X_y=True)
X, Y = 20 * X[:, :4], (Y - Y.mean()) / Y.std()
BITS, COUNTS = (Y > 0).astype(int), np.round(2 * Y - 2 * Y.min())


def _squared(model: Ridge | ElasticNet) -> float:
    return float(mean_squared_error(Y, model.predict(X)))


def _log(model: LogisticRegression) -> float:
    return float(log_loss(BITS, model.predict_proba(X)))


def _poisson(model: PoissonRegressor) -> float:
    return float(mean_poisson_deviance(COUNTS, model.predict(X)) / 2)


@pytest.mark.parametrize(
    ("model", "y", "loss", "value", "l1_ratio"),
    [
        (Ridge(30.0), Y, _squared, 30.0, None),
        (ElasticNet(0.1, l1_ratio=0.3, tol=1e-12), Y, _squared, 0.1, 0.3),
        (LogisticRegression(C=0.02, solver="newton-cholesky", tol=1e-10), BITS, _log, 0.02, None),
        (PoissonRegressor(alpha=0.4, tol=1e-10), COUNTS, _poisson, 0.4, None),
    ],
    ids=["Ridge", "ElasticNet", "LogisticRegression", "PoissonRegressor"],
)
def test_model_minimizes_the_loss_plus_its_penalty(model, y, loss, value, l1_ratio) -> None:  # type: ignore[no-untyped-def]
    """Along the ray through its coefficients, where every model's own objective is smooth."""
    model.fit(X, y)
    row = CONVENTIONS[type(model).__name__]
    coef = row.coefficients(value, l1_ratio=l1_ratio, n=len(y))
    w, b = model.coef_.copy(), np.copy(model.intercept_)

    def objective(scales: np.ndarray) -> float:
        model.coef_, model.intercept_ = w * scales[0], b + scales[1]
        scaled = np.abs(model.coef_)
        return loss(model) + coef["l2"] * np.sum(scaled**2) + coef.get("l1", 0) * scaled.sum()

    best = minimize(objective, [0.5, 0.1], method="Nelder-Mead", options={"xatol": 1e-7})
    assert best.x == pytest.approx([1.0, 0.0], abs=2e-4)


@pytest.mark.parametrize("name", list(CONVENTIONS))
@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_parameters_undo_coefficients(name: str, ratio: float) -> None:
    row = CONVENTIONS[name]
    coef = row.coefficients(0.7, l1_ratio=ratio, n=50)
    found = row.parameters(coef, n=50)
    assert found[row.parameter] == pytest.approx(0.7)
    if row.l1 is not None and row.l2 is not None:
        assert found[row.ratio] == pytest.approx(ratio)


def test_weight_decay_is_half_of_l2() -> None:
    for row in CONVENTIONS.values():
        if row.l2 is not None:
            decay, l2 = row.parameters({"weight_decay": 0.6}, 50), row.parameters({"l2": 0.3}, 50)
            assert decay == pytest.approx(l2)


def test_no_penalty_is_an_infinite_inverse_strength() -> None:
    assert CONVENTIONS["LogisticRegression"].parameters({"l2": 0.0}, n=10) == {
        "C": np.inf,
        "l1_ratio": 0.0,
    }
    assert CONVENTIONS["Ridge"].parameters({"l2": 0.0}, n=10) == {"alpha": 0.0}


def test_terms_that_a_model_cannot_state_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'alpha' of this model can state, got \['l1'\]"):
        CONVENTIONS["Ridge"].parameters({"l1": 0.1}, n=10)
    with pytest.raises(ValueError, match=r"got \['l2'\]; read `coef_`"):
        CONVENTIONS["Lasso"].parameters({"l2": 0.1})
    with pytest.raises(ValueError, match=r"got \['smooth_l1'\]"):
        CONVENTIONS["torch"].parameters({"smooth_l1": 0.1})


def test_rows_are_asked_for_where_the_strength_is_per_row() -> None:
    with pytest.raises(ValueError, match="Expected n, the total weight of the training rows"):
        Convention(l2=1.0, per_row=True).parameters({"l2": 0.1})
