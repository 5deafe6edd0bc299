"""What holds for all families, which are found and not listed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from module_cases import minimize
from torch import nn
from torch.nn.functional import cross_entropy

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.penalties import (
    FAMILIES,
    L2,
    STRUCTURED,
    FittedPenalty,
    Penalty,
    check_penalty,
)
from sklearn_implicitreg.regression.design import Design

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "doc"))
PAGE = importlib.import_module("families_page")
CLASSES = PAGE.families()
WITH_TERMS = sorted(name for name, cls in CLASSES.items() if issubclass(cls, Penalty))
# Half of l2 under the optimizers' name, and a family that has two others as terms.
SAME = {
    frozenset(pair)
    for pair in (
        ("L2", "WeightDecay"),
        ("L2", "ElasticNet"),
        ("WeightDecay", "ElasticNet"),
        ("SmoothL1", "ElasticNet"),
    )
}
# Random draws differ from step to step of a training: their truths are in test_families_on_rows,
# test_dropout and test_gradients.
RANDOM = {"Dropout", "InputNoise", "Mixup", "HessianTrace", "BatchGradientNorm"}
COUPLED = {"LogNormVariance"}  # of two matrices or more
KINKED = [n for n in WITH_TERMS if hasattr(CLASSES[n], "smooth") and n not in COUPLED]
# An l2 of its own or two terms; kinks inside tanh, and gradients that vanish where training ends:
# their truths are in test_families_on_rows.
OTHER = {"ElasticNet", "L2", "WeightDecay", "ActivationL1", "GradientNorm", "Sharpness"}
SMOOTH = sorted({*WITH_TERMS} - {*KINKED} - RANDOM - OTHER)
TARGETS = torch.arange(24) % 4


def test_there_are_many():
    assert len(CLASSES) >= 45
    assert set(FAMILIES.values()) | set(STRUCTURED.values()) <= set(CLASSES.values())
    needed = {n for n, cls in CLASSES.items() if _without_arguments(cls)}
    named = {cls.__name__ for cls in (*FAMILIES.values(), *STRUCTURED.values())}
    assert needed - named <= {"Dropout", "GradientNorm", "BatchGradientNorm"}


def _without_arguments(cls):
    try:
        cls()
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("kind", ["mlp", "conv", "deep"])
def test_no_two_are_proportional(kind):
    assert PAGE.proportional(kind) == SAME


@pytest.mark.parametrize("name", WITH_TERMS)
def test_gradients_by_differences(name):
    problem, net = PAGE.problem("mlp")
    check_penalty(PAGE.made(CLASSES[name], net), problem=problem)


def _penalty(cls, problem, net, coef):
    """Family and l2 as one function of the net and its rows."""
    leaves = [
        *PAGE.made(cls, net).leaves(problem.params, problem),
        *L2().leaves(problem.params, problem),
    ]
    return FittedPenalty.of(tuple(zip(leaves, ((coef,), (1e-3,)), strict=True)), problem)


def share(cls, problem, net):
    """A coefficient that gives the family a gradient like that of l2."""
    found = Design.at(PAGE.made(cls, net) + L2(), problem)
    sizes = [sum(found.columns(n)[:, j].square().sum() for n in problem.params) for j in (0, 1)]
    return float((sizes[1] / sizes[0]) ** 0.5) * 5e-4


@pytest.mark.parametrize("name", SMOOTH)
def test_coefficient_of_a_trained_net(name):
    """Trained to stationarity with the family beside l2: both coefficients come back."""
    cls = CLASSES[name]
    problem, net = PAGE.problem("mlp")
    X, y = torch.rand(24, 8, generator=torch.Generator().manual_seed(2)).double(), TARGETS
    coef = share(cls, problem, net)
    family, penalty = PAGE.made(cls, net) + L2(), _penalty(cls, problem, net, coef)
    minimize(
        net.parameters(),
        lambda: cross_entropy(net(X), y) + penalty(net, X, y),
        600,
        rounds=10,
        tol=1e-9,
    )

    def left_over():
        sizes = []
        for value in (cross_entropy(net(X), y) + penalty(net, X, y), cross_entropy(net(X), y)):
            slopes = torch.autograd.grad(value, list(net.parameters()))
            sizes.append(torch.cat([g.reshape(-1) for g in slopes]).norm())
        return sizes[0] / sizes[1]

    assert left_over() < 1e-3
    est = ImplicitRegularizationEstimator(net, family=family, loss="cross_entropy").fit(X, y)
    np.testing.assert_allclose(est.coef_, [coef, 1e-3], rtol=1e-4)
    assert est.r2_ >= 0.9999


@pytest.mark.parametrize("name", KINKED)
def test_coefficient_at_an_exact_endpoint(name):
    """A linear layer whose targets make the gradient that of the family, away from its kinks."""
    net = nn.Linear(8, 6, bias=False).double()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        net.weight.copy_(torch.randn(6, 8, generator=draws, dtype=torch.float64))
    X = torch.randn(200, 8, generator=draws, dtype=torch.float64)
    family = PAGE.made(CLASSES[name], net).placed({"weight": net.weight})
    weight = net.weight.detach().clone().requires_grad_()
    value = sum(
        0.02 * (1 + i) * v for i, v in enumerate(family.terms({"weight": weight}, None).values())
    )
    (slope,) = torch.autograd.grad(value, weight)
    with torch.no_grad():
        residual = torch.linalg.solve(X.T @ X, slope.T) * 200 * 6 / 2
        y = X @ (net.weight.T + residual)
    est = ImplicitRegularizationEstimator(net, family=family, loss="mse").fit(X, y)
    np.testing.assert_allclose(est.coef_, 0.02 * (1 + np.arange(len(est.coef_))), rtol=1e-8)
    assert est.verdict_ == "supported"


def test_page_has_a_row_for_each():
    text = PAGE.page()
    assert all(f"penalties.{name}`" in text for name in CLASSES)
    assert all(f"`{name}`" in text for name in FAMILIES)
    assert "sum_l sum_i s_i^q" in text
