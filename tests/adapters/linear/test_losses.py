"""Row losses against finite differences and against scikit-learn's and scipy's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.special
from sklearn import metrics

from sklearn_implicitreg.adapters.linear.losses import (
    LOSSES,
    RowLosses,
    scaled_huber,
    tweedie,
)

RNG = np.random.default_rng(1)
N = 200
ETA = RNG.normal(0.3, 1.5, N)
REAL = RNG.normal(size=N)
SIGNS = np.where(RNG.random(N) < 0.4, -1.0, 1.0)
BITS = (SIGNS + 1) / 2
COUNTS = RNG.poisson(2.0, N).astype(float)
POSITIVE = RNG.gamma(2.0, size=N)
MEANS = RNG.gamma(3.0, size=N)


@dataclass(frozen=True)
class LossCase:
    """A loss, rows for it, and the mean of it by another library."""

    id: str
    loss: Callable[..., RowLosses]
    y: Any
    mean: float
    eta: Any = None

    @property
    def predictor(self) -> Any:
        return ETA if self.eta is None else self.eta


def _tweedie(power: float, y: Any, mean: Any) -> float:
    return metrics.mean_tweedie_deviance(y, mean, power=power) / 2


def _scaled_huber(epsilon: float, scale: float) -> float:
    residual = (ETA - REAL) / scale
    # scipy's huber is half of H of Huber's concomitant loss.
    return float(np.mean(scale + 2 * scale * scipy.special.huber(epsilon, residual)))


CASES = [
    LossCase("squared-error", LOSSES["squared_error"], REAL, metrics.mean_squared_error(REAL, ETA)),
    LossCase("absolute", LOSSES["absolute_error"], REAL, metrics.mean_absolute_error(REAL, ETA)),
    LossCase(
        "huber",
        LOSSES["huber"].of(epsilon=0.7),
        REAL,
        float(scipy.special.huber(0.7, ETA - REAL).mean()),
    ),
    LossCase(
        "scaled-huber",
        scaled_huber(epsilon=1.35, scale=0.6),
        REAL,
        _scaled_huber(1.35, 0.6),
    ),
    LossCase(
        "epsilon-insensitive",
        LOSSES["epsilon_insensitive"].of(epsilon=0.4),
        REAL,
        float(np.clip(np.abs(ETA - REAL) - 0.4, 0, None).mean()),
    ),
    LossCase(
        "squared-epsilon-insensitive",
        LOSSES["squared_epsilon_insensitive"].of(epsilon=0.4),
        REAL,
        float((np.clip(np.abs(ETA - REAL) - 0.4, 0, None) ** 2).mean()),
    ),
    LossCase("hinge", LOSSES["hinge"], SIGNS, metrics.hinge_loss(SIGNS, ETA)),
    LossCase(
        "squared-hinge",
        LOSSES["squared_hinge"],
        SIGNS,
        float(np.mean(np.clip(1 - SIGNS * ETA, 0, None) ** 2)),
    ),
    LossCase(
        "perceptron", LOSSES["perceptron"], SIGNS, float(np.mean(np.clip(-SIGNS * ETA, 0, None)))
    ),
    LossCase(
        "modified-huber",
        LOSSES["modified_huber"],
        SIGNS,
        # Twice a Huber function of the margin's shortfall, which turns linear at 2.
        float(2 * scipy.special.huber(2.0, np.clip(1 - SIGNS * ETA, 0, None)).mean()),
    ),
    LossCase(
        "log-loss",
        LOSSES["log_loss"],
        BITS,
        metrics.log_loss(BITS, scipy.special.expit(ETA)),
    ),
    LossCase("poisson", LOSSES["poisson"], COUNTS, _tweedie(1, COUNTS, np.exp(ETA))),
    LossCase("gamma", LOSSES["gamma"], POSITIVE, _tweedie(2, POSITIVE, np.exp(ETA))),
    *(
        LossCase(
            f"tweedie-{power}-log",
            tweedie(power=power),
            POSITIVE,
            (2 if power == 0 else 1) * _tweedie(power, POSITIVE, np.exp(ETA)),
        )
        for power in (0, 1, 1.5, 2, 3)
    ),
    *(
        LossCase(
            f"tweedie-{power}-identity",
            tweedie(power=power, link="identity"),
            POSITIVE,
            (2 if power == 0 else 1) * _tweedie(power, POSITIVE, MEANS),
            MEANS,
        )
        for power in (-1, 0, 1, 1.5, 2, 3)
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_mean_is_that_of_another_library(case: LossCase) -> None:
    value = case.loss(case.predictor, case.y).value
    assert value.shape == (N,)
    assert value.mean() == pytest.approx(case.mean, rel=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_derivative_is_that_of_finite_differences(case: LossCase) -> None:
    eta, step = case.predictor, 1e-6
    rows = case.loss(eta, case.y)
    ends = [case.loss(eta + s * step, case.y).value for s in (1, -1)]
    np.testing.assert_allclose(
        rows.derivative, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_size_bounds_the_derivative_and_no_row_is_on_a_kink(case: LossCase) -> None:
    rows = case.loss(case.predictor, case.y)
    assert np.all(rows.size >= np.abs(rows.derivative) * (1 - 1e-12))
    assert not rows.kink.any()
    larger = case.loss(case.predictor, case.y, np.abs(case.predictor) + 5.0)
    assert np.all(larger.size >= rows.size)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_columns_are_taken_one_by_one(case: LossCase) -> None:
    eta, y = case.predictor.reshape(-1, 2), case.y.reshape(-1, 2)
    both, one = case.loss(eta, y), case.loss(eta[:, 1], y[:, 1])
    np.testing.assert_array_equal(both.value[:, 1], one.value)
    np.testing.assert_array_equal(both.derivative[:, 1], one.derivative)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_multinomial_is_the_log_loss_of_sklearn(n_classes: int) -> None:
    eta = RNG.normal(size=(N, n_classes))
    codes = RNG.integers(n_classes, size=N)
    hot = np.eye(n_classes)[codes]
    rows = LOSSES["cross_entropy"](eta, hot)
    p = scipy.special.softmax(eta, axis=1)
    assert rows.value.mean() == pytest.approx(metrics.log_loss(codes, p), rel=1e-12)
    np.testing.assert_allclose(rows.derivative, p - hot, atol=1e-15)
    for k in range(n_classes):
        step = 1e-6 * np.eye(n_classes)[k]
        slope = (
            LOSSES["cross_entropy"](eta + step, hot).value
            - LOSSES["cross_entropy"](eta - step, hot).value
        ) / 2e-6
        np.testing.assert_allclose(rows.derivative[:, [k]], slope, atol=1e-8)


@pytest.mark.parametrize("margin", [40.0, 700.0])
def test_sure_predictions_keep_their_digits(margin: float) -> None:
    rows = LOSSES["log_loss"](np.array([margin, -margin]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(rows.value, np.exp(-margin), rtol=1e-12)
    np.testing.assert_allclose(np.abs(rows.derivative), np.exp(-margin), rtol=1e-12)
    many = LOSSES["cross_entropy"](np.array([[margin, 0.0]]), np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(np.abs(many.derivative), np.exp(-margin), rtol=1e-12)


KINKS = [
    ("absolute", LOSSES["absolute_error"], 2.0, 2.0),
    ("epsilon-insensitive", LOSSES["epsilon_insensitive"].of(epsilon=0.1), 2.1, 2.0),
    ("hinge", LOSSES["hinge"], -1.0, -1.0),
    ("perceptron", LOSSES["perceptron"], 0.0, 1.0),
]


@pytest.mark.parametrize(("loss", "eta", "y"), [k[1:] for k in KINKS], ids=[k[0] for k in KINKS])
def test_kinks_are_found_to_rounding(loss: Any, eta: float, y: float) -> None:
    on = eta + np.array([0.0, 1e-12, -1e-12])
    off = eta + np.array([1e-4, -1e-4])
    size = np.full(3, 4.0)
    assert loss(on, np.full(3, y), size).kink.all()
    assert not loss(off, np.full(2, y), size[:2]).kink.any()
    assert loss(off, np.full(2, y), size[:2], kink_tol=1e-3).kink.all()
