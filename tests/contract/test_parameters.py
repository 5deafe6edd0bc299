"""Malformed calls, drawn over the public API: each parameter by every value that it cannot take."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from skorch import NeuralNetRegressor
from torch import nn

import sklearn_implicitreg as package
from sklearn_implicitreg import (
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    datasets,
    inspection,
    model_selection,
    penalties,
    theory,
    trajectory,
)
from sklearn_implicitreg.adapters import Data, Options, adapt, linear_problem, register

NAN, INF = float("nan"), float("inf")
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 3)), RNG.normal(size=24)
RIDGE = Ridge().fit(X, Y)
OTHER_RIDGE = Ridge(2.0).fit(X, Y)
K = X @ X.T + np.eye(24)


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()


NET = module()
PHI = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))
SQUARES = {name: p.detach().square() for name, p in NET.named_parameters()}


@cache
def net():
    made = NeuralNetRegressor(module(), max_epochs=1, verbose=0, train_split=None)
    return made.fit(X, Y[:, None])


@cache
def problem():
    return adapt(NET, Data(X, Y[:, None]), Options(loss="mse"))


def optimizer():
    return torch.optim.SGD(NET.parameters(), lr=1e-9)


@cache
def run():
    own = module()
    sgd = torch.optim.SGD(own.parameters(), lr=0.01)
    with trajectory.record(own, sgd) as recorder:
        for _ in range(3):
            sgd.zero_grad()
            (own(torch.from_numpy(X))[:, 0] - torch.from_numpy(Y)).square().mean().backward()
            sgd.step()
    return own, recorder.trajectory


def weights(**bad):
    array = np.array(X)
    for place, value in bad.items():
        array.flat[int(place[1:])] = value
    return array


# What a parameter of a kind cannot be. A "?" after the kind in the tables below: it may be None.
WRONG = [None, "a", 1j, [], object(), {1}]
NUMBERS = [*WRONG, True, NAN, INF, -INF, [0.5], np.array([0.5, 0.5])]
KINDS = {
    "count": [*NUMBERS, 0, -1, 1.5, "3"],
    "size": [*NUMBERS, -1, 1.5],  # of bytes, or a seed
    "steps": [*NUMBERS, 0, -1, 1],
    "positive": [*NUMBERS, 0, -0.5, "0.5"],
    "number": NUMBERS,
    "least0": [*NUMBERS, -0.5],
    "share": [*NUMBERS, -0.5, 1.0, 2.0],  # 0 <= value < 1
    "level": [*NUMBERS, 0.0, 1.0, 95],  # 0 < value < 1
    "flag": [*WRONG, "yes", 1, 0, 0.0, NAN],
    "name": [*WRONG, "nope", 3, True, Ridge],
    "pattern": [None, 1j, [], object(), {1}, "[", 3, True, nn.Linear, b"w"],
    "groups": [*WRONG, "blocks", 3, True, nn.Linear],
    "rate": [*WRONG, True, 0, -1.0, NAN, "0.1"],
    "filter": [*WRONG, 3, theory.ridge, "ridge", RIDGE],
    "matrix": [*WRONG, 3, [1.0, NAN], [["a", "b"]], [[NAN, 1.0]], np.ones((2, 2)) * 1j, [[[1.0]]]],
    "frame": [*WRONG, 3, X, {"arm": []}, pd.DataFrame({"arm": ["recovered"]})],
    "vector": [*WRONG, 3, [NAN] * 24, ["a"] * 24, np.ones(5), np.ones((24, 24)), np.ones(24) * 1j],
    "square": [*WRONG, 3, [NAN] * 24, np.ones(5), -np.eye(24), X, np.ones(24) * 1j],
    "labels": ["a", 1j, object(), {1}, 3, [], np.ones(5), np.ones((24, 2)), np.ones(24)],
    "std_err": ["a", 1j, object(), {1}, ["a"], [-1.0]],
    "df": [*WRONG, True, NAN, -INF, 0, 0.5, [5]],
    "spectrum": ["a", 1j, object(), {1}, [-1.0], [NAN], ["a"], [1j], None],
    "problem": [*WRONG, 3, NET, RIDGE, nn.Linear, X],
    "module": [*WRONG, 3, RIDGE, nn.Linear],
    "net": [*WRONG, 3, RIDGE, nn.Linear, NET, NeuralNetRegressor],
    "optimizer": [*WRONG, 3, NET],
    "model": [*WRONG, 3, Ridge, nn.Linear, nn.LazyLinear(1), X],
    "estimator": [*WRONG, 3, Ridge, NET, Ridge()],
    "path": [None, 1j, [], object(), {1}, 3, True],
    "word": [1j, [], object(), {1}, 3, True],
    "folder": [1j, [], object(), {1}, 3, True],
    "function": [*WRONG, 3, True],
    "penalty": [*WRONG, 3, True, penalties.L2, RIDGE],
    "knots": [*WRONG, 0, True, NAN, INF, [0.5, 0.2], [0.0], [NAN]],
    "family": [*WRONG, 3, True, {}, ["nope"], {"a": 1}, penalties.L2, penalties.SmoothL1, [[]]],
    "families": [*WRONG, 3, True, {}, "l2", ["nope"], [penalties.L2], [3], {"a": None}],
    "known": ["a", 1j, [], object(), {1}, {"l2": True}, {"l2": NAN}, {"l2": "a"}, {1: 0.1}, 0.1],
    "reference": [*WRONG, "nope", 3, True, trajectory.Gradient, trajectory.Flow],
    "window": [1j, [], object(), {1}, "epochs", 0, -1, 1.5, NAN, True],
    "trajectory": ["a", 1j, [], object(), {1}, 3, True, trajectory.Trajectory, NET, run],
    "loss": [1j, [], object(), {1}, 3, True, None, nn.MSELoss],
    "batch_size": [*WRONG, 0, -1, 1.5, NAN, True, "none"],
    "device": [*WRONG, "gpu", 3, 1.5, True],
    "dtype": [*WRONG, "float16", torch.float16, float, 64],
    "seed": ["a", 1j, [], object(), {1}, -1, 1.5, NAN, 2**33],
    "verbose": [*WRONG, -1, NAN, 1.5],
    "jobs": [*WRONG[1:], True, NAN, 0, 1.5],
    "cv": ["a", 1j, object(), 3.5, True, 1, 0, -1],
    "dict": ["a", 1j, [1], object(), {1}, 3, True],
    "rows": ["a", 1j, object(), {1}, [-1], [99], [0.5], [NAN], [], ["a"]],
    "batches": ["a", 1j, object(), 3, [["a"]], [[-1]], [[99]], [[0.5]], [[NAN]]],
    "coef": [*WRONG, [["a"]], [1j], ["a", "b", "c"]],
    "X": [
        *(
            None,
            "a",
            1j,
            [],
            object(),
            {1},
            3,
            X[:, 0],
            X[:, :2],
            X[:0],
            X * 1j,
            np.full((24, 3), "a"),
        ),
        *(weights(_1=NAN), weights(_1=INF), np.ones((24, 3, 2, 2)), pd.DataFrame([["a"] * 3] * 24)),
        *({"a": X, "b": X[:5]}, np.array([[object()] * 3] * 24), nn.Linear, X[:, [0, 1, 2, 0]]),
    ],
    "inputs": [
        *(None, "a", 1j, [], object(), {1}, X[:, 0], X[:, :2], X * 1j, np.full((24, 3), "a")),
        *(pd.DataFrame([["a"] * 3] * 24), {"a": X}, nn.Linear, np.ones((24, 3, 2, 2))),
    ],
    "y": [
        *("a", 1j, [], object(), {1}, 3, Y[:5], Y * 1j, np.where(Y > 0, NAN, Y)),
        *(np.array([object()] * 24), np.array([{}] * 24), Ridge, {"a": Y[:5]}, [None] * 24),
    ],
    "weight": [
        *("a", 1j, object(), {1}, np.ones(5), np.ones(24) * 1j, np.full(24, NAN), -np.ones(24)),
        *(np.zeros(24), ["a"] * 24, [None] * 24, np.ones((24, 2)), Ridge),
    ],
}
# What the package returns, and bases and penalties without parameters.
RESULTS = {
    *("FittedPenalty", "ImplicitPenalty", "Kinks", "SpectralFilter", "StructuredPenalty"),
    *("Frame", "KroneckerPenalty", "LearnedPenalty", "LowRankPenalty", "RowBatch"),
    *("StructuredSolution", "Trajectory"),
    # Which hand their parameters on to record, and need libraries.
    *("LightningRecorder", "TransformersRecorder"),
}
PUBLIC = (
    "",
    ".datasets",
    ".inspection",
    ".model_selection",
    ".penalties",
    ".theory",
    ".trajectory",
)
FREE = None  # anything goes: ignored, or passed on to matplotlib


@pytest.fixture(autouse=True)
def no_windows():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def fit(model, **params):
    data = {name: params.pop(name) for name in ("X", "y", "sample_weight") if name in params}
    estimator = ImplicitRegularizationEstimator(model, **params)
    return estimator.fit(**({"X": X, "y": Y} | data))


def on_net(model=NET, **params):
    return fit(model, **({"loss": "mse", "y": Y[:, None]} | params))


def on_path(**params):
    own, recorded = run()
    given = {"loss": "mse", "y": Y[:, None], "mode": "trajectory", "trajectory": recorded}
    return fit(own, **(given | params))


def of_family(cls):
    return lambda **params: on_net(family=cls(**params), params="all")


def dropped(**params):
    own = nn.Sequential(nn.Dropout(0.5), *module())
    return on_net(model=own, family=penalties.Dropout(**params), params="all")


def continuing():
    return [run()[1]]


def entered(**params):
    with trajectory.record(**params) as recorder:
        return recorder


def called_back(**params):
    recorder = trajectory.ImplicitRegularizationRecorder(**params)
    how = {"max_epochs": 1, "train_split": None, "verbose": 0, "callbacks": [recorder]}
    return NeuralNetRegressor(module(), **how).fit(X, Y[:, None])


def searched(**params):
    data = {name: params.pop(name) for name in ("X", "y", "sample_weight") if name in params}
    return ImplicitRegularizationCV(**params).fit(**data)


RUNS = pd.DataFrame(
    [["recovered", 0, 0.1, 0.1, 0.1, 1.0]],
    columns=["arm", "draw", "distance", "matched", "function", "objective"],
)


def displayed(display):
    return lambda **params: display(**params).plot()


def ran(**params):
    probe = trajectory.GradientDescentProbe(**params)
    return probe.run(NET, Data(X, Y[:, None]), problem())


def continued(**params):
    probe = trajectory.ContinueTraining(**params)
    return probe.run(NET, Data(X, Y[:, None]), problem())


def passes(model, sgd, recorder):
    model(torch.from_numpy(X)).square().mean().backward()
    sgd.step()


def linear(**params):
    return adapt(package.LinearModel(**params), Data(X, Y), Options()).gradient()


def structured(cls):
    return lambda **params: fit(RIDGE, family=cls(**params))


ESTIMATOR = {
    "model": "model", "family": "family", "mode": "name", "trajectory": "trajectory?",
    "reference": "reference", "window": "window", "loss": "loss?", "params": "pattern",
    "group_by": "groups?", "known": "known", "positive": "flag", "covariance": "name",
    "confidence_level": "level", "module_mode": "name", "batch_size": "batch_size",
    "n_passes": "batch_size",
    "device": "device", "dtype": "dtype", "random_state": "seed", "cache": "folder",
    "verbose": "verbose",
}  # fmt: skip
SHARED = {name: kind for name, kind in ESTIMATOR.items() if name not in ("model", "family")}
FIT = {"X": "X", "y": "y", "sample_weight": "weight"}
SPECTRAL = {"X": "matrix", "filter": "filter", "sample_weight": "vector?"}
DESCENT = {"lr": "positive", "n_steps": "count", "momentum": "share", "nesterov": "flag"}
RECORD = {
    "model": "module", "optimizer": "optimizer", "every": "count?", "data": FREE, "loss": FREE,
    "families": "families?", "reference": "name", "params": "pattern", "gradients": "flag?",
    "directory": "folder", "memory_limit": "size", "update_rule": "function?",
}  # fmt: skip
FLOW = theory.gradient_flow(0.5)
# name: (public object, what calls it, valid arguments, kind of every parameter)
FITTED = ImplicitRegularizationEstimator(RIDGE).fit(X, Y)
OF_L1 = ImplicitRegularizationEstimator(RIDGE, family="l1").fit(X, Y)
OF_MATRIX = ImplicitRegularizationEstimator(RIDGE, family="quadratic").fit(X, Y)
SEARCHED = ImplicitRegularizationCV(RIDGE, families=["l1", "l2"]).fit(X, Y)
OF_ENDPOINTS = ImplicitRegularizationEstimator(None).fit([package.Endpoint(RIDGE, X, Y)] * 2)
OF_DESIGN = {"design": "matrix", "target": "vector?", "error_covariance": "square?"}
OF_DESIGN |= {"groups": "labels?"}
OF_BOUND = {"noise": "least0?", "alpha": "level"}
CALLS = {
    "ridge": (theory.ridge, None, {"coef": 1.0}, {"coef": "positive"}),
    "principal_components": (theory.principal_components, None, {"k": 1}, {"k": "count"}),
    "conjugate_gradient": (theory.conjugate_gradient, None, {"k": 1}, {"k": "count"}),
    "gradient_flow": (theory.gradient_flow, None, {"time": 1.0}, {"time": "positive"}),
    "l2_boosting": (
        theory.l2_boosting, None, {"rate": 0.5, "n_steps": 2},
        {"rate": "positive", "n_steps": "count", "learner": "filter"},
    ),
    "gradient_descent": (
        theory.gradient_descent, None, {"lr": 0.1, "n_steps": 3},
        DESCENT | {"n_steps": "positive", "average": "flag"},
    ),
    "exponential_average": (
        theory.exponential_average, None, {"lr": 0.1, "n_steps": 3, "decay": 0.5},
        DESCENT | {"decay": "share"},
    ),
    "implicit_penalty": (
        theory.implicit_penalty, None, {"X": X, "filter": FLOW},
        SPECTRAL | {"y": "vector?", "start": "vector?"},
    ),
    "degrees_of_freedom": (theory.degrees_of_freedom, None, {"X": X, "filter": FLOW}, SPECTRAL),
    "equivalent_ridge": (theory.equivalent_ridge, None, {"X": X, "filter": FLOW}, SPECTRAL),
    "kernel_penalty": (
        theory.kernel_penalty, None, {"K": K, "filter": FLOW},
        {"K": "matrix", "filter": "filter", "coef": "least0", "kind": "name"}
        | {"y": "vector?", "start": "vector?"},
    ),
    "scalar_equivalent": (
        theory.scalar_equivalent, None, {"theta": np.ones(3), "Lambda": np.eye(3)},
        {"theta": "vector", "Lambda": "matrix", "start": "vector?"},
    ),
    "early_stopping_eigenvalues": (
        theory.early_stopping_eigenvalues, None, {"s": [1.0], "lr": 0.1, "n_steps": 3},
        {"s": "spectrum", "lr": "positive?", "n_steps": "spectrum"},
    ),
    "early_stopping_slopes": (
        theory.early_stopping_slopes, None, {"s": [1.0], "lr": 0.1, "n_steps": 3},
        {"s": "spectrum", "lr": "positive?", "n_steps": "spectrum"},
    ),
    "input_dropout": (
        theory.input_dropout, None, {"X": X, "rate": 0.5},
        {"X": "matrix", "rate": "share", "sample_weight": "vector?"},
    ),
    "input_noise": (theory.input_noise, None, {"sigma": 0.5}, {"sigma": "least0"}),
    "convert": (
        theory.convert, None, {"coef": 0.1, "family": "l2", "to": "alpha", "n": 10},
        {"coef": "number", "family": "name", "to": "name", "n": "positive?", "model": "name?"},
    ),
    "trajectory_bound": (
        theory.trajectory_bound, None, {"n_steps": 10, "variation": 1.0, "increment": 1.0},
        {"n_steps": "count", "variation": "least0", "increment": "least0", "alpha": "level"}
        | {"log_covering": "least0", "radius": "least0", "noise": "least0", "fixed_target": "flag"},
    ),
    **{
        function.__name__: (function, None, {"design": X, "target": Y}, OF_DESIGN | more)
        for function, more in [
            (theory.distance_bound, {**OF_BOUND, "bias": "least0", "form": "name"}),
            (theory.coefficient_bounds, OF_BOUND),
            (theory.error_inflation, {}),
            (theory.effective_parameters, {}),
        ]
    },
    "gradient_bound": (
        theory.gradient_bound, None, {"n_equations": 9, "noise": 1.0, "log_covering": 1.0},
        {"n_equations": "count", "noise": "least0", "log_covering": "least0", "alpha": "level"}
        | {"radius": "least0", "misfit": "least0", "inflation": "positive"},
    ),
    "smallest_detectable": (
        theory.smallest_detectable, None, {"std_err": 1.0},
        {"std_err": "std_err", "df": "df", "alpha": "level", "power": "level"},
    ),
    "SmoothL1": (penalties.SmoothL1, of_family, {}, {"delta": "positive"}),
    "ElasticNet": (penalties.ElasticNet, of_family, {}, {"delta": "positive"}),
    "Power": (penalties.Power, of_family, {}, {"q": "positive"}),
    "L1": (penalties.L1, of_family, {}, {"center": "dict", "name": "word"}),
    "L2": (penalties.L2, of_family, {}, {"center": "dict", "name": "word"}),
    "EWC": (
        penalties.EWC, of_family, {"center": NET, "weights": SQUARES},
        {"center": "dict", "weights": "dict", "name": "word"},
    ),
    "PreconditionedL2": (
        penalties.PreconditionedL2, of_family, {"v": SQUARES}, {"v": "dict", "eps": "least0"}
    ),
    "LogPenalty": (penalties.LogPenalty, of_family, {"eps": 0.1}, {"eps": "positive"}),
    "LogCosh": (penalties.LogCosh, of_family, {"scale": 0.1}, {"scale": "positive"}),
    "SCAD": (penalties.SCAD, of_family, {"lam": 1.0}, {"lam": "positive", "a": "positive"}),
    "MCP": (penalties.MCP, of_family, {"lam": 1.0}, {"lam": "positive", "gamma": "positive"}),
    "GroupLasso": (
        penalties.GroupLasso, of_family, {},
        {"by": "name", "n_heads": "count?", "tol": "share"},
    ),
    "MaxNorm": (penalties.MaxNorm, of_family, {}, {"tol": "share"}),
    "ActivationL2": (penalties.ActivationL2, of_family, {"layer": "1"}, {"layer": "name"}),
    "LogDet": (penalties.LogDet, of_family, {}, {"eps": "positive"}),
    "Nuclear": (penalties.Nuclear, of_family, {}, {"tol": "share"}),
    "Schatten": (penalties.Schatten, of_family, {}, {"q": "positive", "tol": "share"}),
    "ActivationL1": (penalties.ActivationL1, of_family, {"layer": "1"}, {"layer": "name"}),
    "DeCov": (penalties.DeCov, of_family, {"layer": "1"}, {"layer": "name"}),
    "KLToReference": (
        penalties.KLToReference, of_family, {"model": NET}, {"model": "module", "reverse": "flag"}
    ),
    "Jacobian": (
        penalties.Jacobian, of_family, {}, {"n_projections": "count?"},
    ),
    "InputNoise": (
        penalties.InputNoise, of_family, {}, {"sigma": "positive", "n_draws": "count"},
    ),
    "Mixup": (penalties.Mixup, of_family, {},
        {"alpha": "positive", "n_draws": "count", "random_state": "size"}),
    "DropoutQuadratic": (penalties.DropoutQuadratic, of_family, {}, {"q": "share"}),
    "Sharpness": (penalties.Sharpness, of_family, {}, {"rho": "positive"}),
    "HessianTrace": (
        penalties.HessianTrace, of_family, {}, {"n_draws": "count?", "random_state": "size"},
    ),
    "Spline": (penalties.Spline, of_family, {"knots": 2}, {"knots": "knots"}),
    "Learned": (
        penalties.Learned, of_family, {"module": PHI, "n_starts": 1, "max_iter": 20},
        {"module": "module", "inputs": "name", "n_starts": "count", "max_iter": "count"}
        | {"random_state": "size"},
    ),
    "Callables": (
        penalties.Callables, of_family, {"functions": {"a": lambda p: p["0.weight"].sum()}},
        {"functions": "families"},
    ),
    "Dropout": (
        penalties.Dropout, lambda _: dropped, {"q": 0.5},
        {"q": "share?", "n_draws": "count", "random_state": "size"},
    ),
    "BatchGradientNorm": (
        penalties.BatchGradientNorm, of_family, {"batch_size": 8},
        {"batch_size": "count?", "centered": "flag", "batches": "batches"}
        | {"n_partitions": "count", "random_state": "seed"},
    ),
    "Fixed": (
        penalties.Fixed, lambda cls: lambda **p: on_net(family=penalties.L1() + cls(**p)),
        {"penalty": penalties.L2(), "coef": 0.1}, {"penalty": "penalty", "coef": "number"},
    ),
    "Scoped": (
        penalties.Scoped, of_family, {"penalty": penalties.L2(), "params": "weight"},
        {"penalty": "penalty", "params": "pattern"},
    ),
    "Grouped": (
        penalties.Grouped, of_family, {"penalty": penalties.L2(), "by": "layer"},
        {"penalty": "penalty", "by": "groups"},
    ),
    "Sum": (penalties.Sum, of_family, {"parts": [penalties.L2()]}, {"parts": "families"}),
    "Quadratic": (
        penalties.Quadratic, structured, {},
        {"psd": "flag", "shrinkage": "name?", "normalize": "flag"},
    ),
    "Diagonal": (penalties.Diagonal, structured, {}, {"psd": "flag"}),
    "LowRankQuadratic": (
        penalties.LowRankQuadratic, structured, {"rank": 1}, {"rank": "count", "psd": "flag"}
    ),
    "EarlyStopping": (
        penalties.EarlyStopping, structured, {},
        {"lr": "positive?", "shared": "flag", "start": "dict?"},
    ),
    "as_penalty": (penalties.as_penalty, None, {"family": "l2"}, {"family": "family"}),
    "penalty_with_terms": (
        penalties.penalty_with_terms, None, {"family": "l2"}, {"family": "family"}
    ),
    "check_penalty": (
        penalties.check_penalty, None, {"penalty": penalties.L2()},
        {"penalty": "penalty", "params": "dict", "problem": "problem?"},
    ),
    "RowBatch.of": (
        penalties.RowBatch.of, lambda of: lambda **p: of(**p).outputs,
        {"module": NET, "X": X},
        {"module": "module", "X": "inputs", "y": FREE}
        | {"sample_weight": "weight", "random_state": "seed"},
    ),
    "Gradient": (
        trajectory.Gradient, lambda cls: lambda **p: on_path(reference=cls(**p)), {},
        {"sub_window": "count?", "weighted": "flag", "n_nodes": "count"},
    ),
    "Batch": (
        trajectory.Batch, lambda cls: lambda **p: cls(**p), {}, {"n_draws": "count"}
    ),
    "Flow": (
        trajectory.Flow, lambda cls: lambda **p: on_path(reference=cls(**p)), {},
        {"n_substeps": "count"},
    ),
    "GradientDescentProbe": (
        trajectory.GradientDescentProbe, lambda _: ran, {"lr": 0.1},
        {"lr": "positive", "n_steps": "count"},
    ),
    "ContinueTraining": (
        trajectory.ContinueTraining, lambda _: continued,
        {"n_epochs": 1, "train_epoch": passes, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)},
        {"n_epochs": "count", "train_epoch": "function", "optimizer": "optimizer"}
        | {"every": "count", "data": "known", "random_state": "seed"},
    ),
    "StepFactor": (
        trajectory.StepFactor, None,
        {"lr": 0.1, "curvatures": np.ones(2), "weights": np.ones(2) / 2},
        {"lr": "positive", "curvatures": "vector", "weights": "vector", "third": "number"},
    ),
    "find_kinks": (
        trajectory.find_kinks, None, {"problem": problem},
        {"problem": "problem", "lr": "positive?"},
    ),
    "finite_step_factor": (
        trajectory.finite_step_factor, None, {"problem": problem, "lr": 0.1},
        {"problem": "problem", "lr": "positive", "n_lanczos": "count", "third_order": "flag"},
    ),
    "drift_ratio": (
        trajectory.drift_ratio, None, {"problem": problem, "lr": 0.1, "n_steps": 1},
        {"problem": "problem", "lr": "positive", "n_steps": "count", "n_substeps": "count"},
    ),
    "minibatch_factor": (
        trajectory.minibatch_factor, None, {"momentum": 0.5, "n_steps": 4},
        {"momentum": "share", "n_steps": "steps", "nesterov": "flag"},
    ),
    "barrett_dherin_scale": (
        trajectory.barrett_dherin_scale, None, {"lr": 0.1, "n_params": 4},
        {"lr": "positive", "n_params": "count"},
    ),
    "richardson": (
        trajectory.richardson, None, {"c_lr4": 0.1, "c_lr2": 0.1, "c_lr": 0.1},
        {"c_lr4": "number", "c_lr2": "number", "c_lr": "number"},
    ),
    "record": (
        trajectory.record, lambda _: entered, {"model": NET, "optimizer": optimizer}, RECORD
    ),
    "ImplicitRegularizationRecorder": (
        trajectory.ImplicitRegularizationRecorder, lambda _: called_back, {},
        {name: RECORD[name] for name in ("every", "gradients", "directory", "families")}
        | {"reference": "name?", "params": "pattern", "find_rows": FREE},
    ),
    "Trajectory.from_iterates": (
        trajectory.Trajectory.from_iterates, None,
        {"weights": [{"w": np.ones(2)}, {"w": np.zeros(2)}], "lr": 0.1},
        {"weights": "problem", "lr": "rate", "gradients": "batches", "n_steps": "count"},
    ),
    "Trajectory.join": (
        trajectory.Trajectory.join, None, {"trajectories": continuing},
        {"trajectories": "trajectory"},
    ),
    "Trajectory.load": (trajectory.Trajectory.load, None, {"path": "x"}, {"path": "path"}),
    "Trajectory.windows": (
        lambda window: run()[1].windows(window), None, {"window": None}, {"window": "window"}
    ),
    "Endpoint": (
        package.Endpoint,
        lambda cls: lambda **p: ImplicitRegularizationEstimator(None).fit([cls(**p)]),
        {"model": RIDGE, "X": X, "y": Y}, FIT | {"model": "model", "rows": "rows"},
    ),
    "FrozenModel": (package.FrozenModel, None, {"model": NET}, {"model": "module"}),
    "LinearModel": (
        package.LinearModel, lambda _: linear, {"coef": np.ones(3)},
        {"coef": "coef", "intercept": "coef?", "loss": "loss", "classes": "y"},
    ),
    "endpoints": (
        package.endpoints, None,
        {"estimator": Ridge(), "X": X, "y": Y, "n_endpoints": 2},
        {"estimator": "model", "X": "rows", "y": "y", "n_endpoints": "count", "bootstrap": "flag"}
        | {"weights": "weight", "sample_weight": "weight", "n_jobs": "jobs"}
        | {"random_state": "seed", "cache": "folder", "verbose": "verbose"},
    ),
    "equations": (
        package.equations, None, {"model": RIDGE, "X": X, "y": Y},
        FIT | {"model": "model", "families": "family?", "params": "pattern"},
    ),
    "identifiability": (
        package.identifiability, None, {"model": RIDGE, "X": X, "y": Y, "families": ["l2"]},
        FIT | {"model": "model", "families": "families?", "params": "pattern"},
    ),
    "contrast": (
        package.contrast, None, {"treated": RIDGE, "control": OTHER_RIDGE, "X": X, "y": Y},
        FIT | {"treated": "model", "control": "model", "family": "family", "base": "family?"},
    ),
    "training_rows": (
        package.training_rows, None, {"net": net, "X": X, "y": Y[:, None]},
        {"net": "net", "X": FREE, "y": FREE},
    ),
    "ImplicitRegularizationCV": (
        ImplicitRegularizationCV, lambda _: searched,
        {"model": RIDGE, "families": ["l2", "l1"], "X": X, "y": Y},
        {"model": "model", "families": "families", "cv": "cv", "refit": "name"} | SHARED,
    ),
    "family_score": (
        model_selection.family_score, None,
        {"estimator": ImplicitRegularizationEstimator(RIDGE).fit(X, Y), "X": X, "y": Y},
        FIT | {"estimator": "estimator"},
    ),
    "simplest_within_one_se": (
        model_selection.simplest_within_one_se, None, {}, {"cv_results": "dict"}
    ),
    "GradientMatchDisplay.from_estimator": (
        inspection.GradientMatchDisplay.from_estimator, None,
        {"estimator": ImplicitRegularizationEstimator(RIDGE).fit(X, Y), "X": X, "y": Y},
        FIT | {"X": "X?", "estimator": "estimator"}
        | {"name": FREE, "ax": FREE, "scatter_kwargs": FREE, "line_kwargs": FREE},
    ),
    "GradientMatchDisplay": (
        inspection.GradientMatchDisplay, displayed,
        {"target": [1.0], "fitted": [1.0], "groups": ["a"], "r2": 1.0},
        {"target": "vector", "fitted": "vector", "groups": FREE, "r2": "number", "name": FREE},
    ),
    "PenaltyShapeDisplay": (
        inspection.PenaltyShapeDisplay, displayed, {"weights": [1.0], "target": [1.0]},
        {"weights": "vector", "target": "vector", "smooth": "vector?", "groups": "vector?"}
        | {"curves": "dict", "fitted": "dict", "name": FREE, "target_name": FREE},
    ),
    "FamilyComparisonDisplay": (
        inspection.FamilyComparisonDisplay, displayed, {"names": ["l2"], "scores": [1.0]},
        {"names": "vector", "scores": "vector", "errors": "vector?", "r2": "vector?"}
        | {"verdicts": "vector?", "score_name": FREE, "error_name": FREE},
    ),
    "CoefficientPathDisplay": (
        inspection.CoefficientPathDisplay, displayed, {"path": [[1.0]], "term_names": ["l2"]},
        {"path": "vector", "bands": "vector?", "shared": "vector?", "term_names": "vector"}
        | {"theory": "coef?", "place": "name", "name": FREE},
    ),
    "CoefficientDisplay": (
        inspection.CoefficientDisplay, displayed, {"coef": [1.0], "term_names": ["l2"]},
        {"coef": "vector", "conf_int": "vector?", "term_names": "vector", "groups": "vector?"}
        | {"name": FREE},
    ),
    "SpectrumDisplay": (
        inspection.SpectrumDisplay, displayed, {"matrix": np.eye(2)},
        {"matrix": "matrix", "theory": "matrix?", "parameter_names": "vector?", "name": FREE},
    ),
    "InfluenceDisplay": (
        inspection.InfluenceDisplay, displayed,
        {"leverage": [0.5], "residual": [1.0], "cooks_distance": [1.0]},
        {"leverage": "vector", "residual": "vector", "cooks_distance": "vector"}
        | {"labels": "vector?", "mean_leverage": "number?", "n_labels": "size", "name": FREE},
    ),
    "IdentifiabilityDisplay": (
        inspection.IdentifiabilityDisplay, displayed, {"cosines": np.eye(2), "names": ["a", "b"]},
        {"cosines": "matrix", "names": "vector", "groups": FREE},
    ),
    "RecoveryDisplay": (
        inspection.RecoveryDisplay, displayed, {"runs": RUNS, "objective": 1.0},
        {"runs": "frame", "objective": "number", "back": "positive?", "function_name": FREE}
        | {"name": FREE},
    ),
    "RecoveryDisplay.from_estimator": (
        inspection.RecoveryDisplay.from_estimator, None, {"estimator": FITTED, "X": X, "y": Y},
        FIT | {"estimator": "estimator", "start": "name?", "n_draws": "count", "name": FREE}
        | {"ax": FREE, "scatter_kwargs": FREE, "line_kwargs": FREE},
    ),
    **{
        f"{name}.from_estimator": (
            getattr(inspection, name).from_estimator, None,
            {"estimator": fitted}, {"estimator": "estimator"},
        )
        for name, fitted in {
            "PenaltyShapeDisplay": FITTED, "FamilyComparisonDisplay": SEARCHED,
            "CoefficientPathDisplay": OF_ENDPOINTS, "CoefficientDisplay": FITTED,
            "SpectrumDisplay": OF_MATRIX, "IdentifiabilityDisplay": FITTED,
            "InfluenceDisplay": OF_L1,
        }.items()
    },
    "load_mnist": (
        datasets.load_mnist, None, {"data_home": "/no/such", "download": False},
        {"data_home": "folder", "download": "flag"},
    ),
    "register": (
        register, None, {"cls": "a.B", "handler": fit}, {"cls": "path", "handler": "function"}
    ),
    "ImplicitRegularizationEstimator": (
        ImplicitRegularizationEstimator, lambda _: fit, {"model": RIDGE}, ESTIMATOR
    ),
    "a net": (on_net, None, {}, FIT | SHARED | {"family": "family"}),
    "a trajectory": (on_path, None, {}, FIT | SHARED | {"family": "family"}),
    "equations as arrays": (
        fit, lambda _: fit, {"model": "precomputed"},
        FIT | {"X": "matrix"} | SHARED,
    ),
    "a linear model": (fit, lambda _: fit, {"model": RIDGE}, FIT),
    "a classifier": (
        fit, lambda _: fit, {"model": LogisticRegression().fit(X, Y > 0), "y": Y > 0}, FIT
    ),
    "a skorch net": (
        fit, lambda _: lambda **p: fit(net(), **({"y": Y[:, None]} | p)), {}, FIT
    ),
}  # fmt: skip


def malformed():
    """All calls: (name, parameter, place of the value among those of its kind)."""
    for name, (*_, kinds) in CALLS.items():
        for parameter, kind in kinds.items():
            for i, value in enumerate(KINDS[kind.rstrip("?")] if kind else ()):
                if not (value is None and kind.endswith("?")):
                    yield name, parameter, i


LATER = (problem, net, optimizer, continuing)  # made when they are called for


def made(value):
    return value() if any(value is later for later in LATER) else value


def outcome(name, parameter, i):
    """What :func:`raised` says of a malformed call."""
    thing, make, valid, kinds = CALLS[name]
    call = thing if make is None else make(thing)
    given = {k: made(v) for k, v in valid.items() if k != parameter}
    value = KINDS[kinds[parameter].rstrip("?")][i]
    return raised(lambda v: call(**given, **{parameter: v}), value)


def raised(call, value):
    """Empty if a call raised a sentence of the package or of scikit-learn, else what it did."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(value)
    except NotFittedError:
        return ""
    except (ValueError, TypeError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        file = frame.f_code.co_filename
        said = re.search(r"\bexpected\b|\bgive\b", str(error), re.IGNORECASE)
        ours = file.startswith(str(Path(package.__file__).parent)) and said
        sklearns = re.search("sklearn/(utils|base.py)", file)
        foreign = re.match("could not convert|float[(][)]|.*positional argument", str(error))
        return "" if (ours or sklearns) and not foreign else f"raw {error!r} at {file}"
    except Exception as error:  # whatever it is, the message of the test shows it
        return f"raw {error!r}"
    return "accepted"


def wrong(name, drawn):
    """What calls did that raised no sentence."""
    found = {}
    for parameter, i in drawn:
        what = outcome(name, parameter, i)
        if what:
            value = KINDS[CALLS[name][3][parameter].rstrip("?")][i]
            found[f"{parameter}={value!r:.60}"] = what
    return found


def test_every_public_parameter_is_drawn():
    drawn = {thing: kinds for thing, _, _, kinds in CALLS.values()}
    for module in PUBLIC:
        for name in importlib.import_module(f"sklearn_implicitreg{module}").__all__:
            thing = getattr(importlib.import_module(f"sklearn_implicitreg{module}"), name)
            if not callable(thing) or name in RESULTS or name.endswith(("Warning", "Error")):
                continue
            kinds = inspect.signature(thing).parameters.values()
            wanted = {p.name for p in kinds if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
            assert wanted <= set(drawn.get(thing, ())), name


def test_enough_calls_are_drawn():
    assert len(list(malformed())) >= 3000


@pytest.mark.parametrize("name", CALLS)
def test_malformed_calls(name):
    if "Display" in name:
        pytest.importorskip("matplotlib")
    assert wrong(name, [call[1:] for call in malformed() if call[0] == name]) == {}


@pytest.mark.parametrize("name", CALLS)
def test_the_valid_arguments_are_valid(name):
    """Else a malformed call would raise for another reason."""
    if "Display" in name:
        pytest.importorskip("matplotlib")
    thing, make, valid, _ = CALLS[name]
    call = thing if make is None else make(thing)
    if name in ("Trajectory.load", "load_mnist", "simplest_within_one_se"):
        pytest.skip("needs a file or a search")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(**{k: made(v) for k, v in valid.items()})


@pytest.mark.parametrize(
    "family",
    [
        penalties.SmoothL1(np.float32(0.1)),
        penalties.Power(np.int64(3)),
        penalties.Power(np.float64(0.5)),
        penalties.BatchGradientNorm(np.int64(8), centered=np.bool_(True)),
    ],
    ids=lambda family: type(family).__name__,
)
def test_numbers_of_numpy_are_numbers(family):
    on_net(family=family, params="all", confidence_level=np.float32(0.9), batch_size=np.int64(5))
    assert theory.convert(np.float64(0.5), "l2", to="alpha", n=np.int64(4)) == 2.0


@pytest.mark.parametrize("how", ["set_params", "nested", "grouped", "known", "searched"])
def test_what_was_set_later_is_checked(how):
    """Penalties store their parameters: they are checked where they are used."""
    bad = penalties.SmoothL1().set_params(delta=-1e-3)
    estimator = ImplicitRegularizationEstimator(RIDGE, family=bad)
    if how == "nested":
        estimator = ImplicitRegularizationEstimator(RIDGE, family=penalties.SmoothL1())
        estimator.set_params(family__delta=-1e-3)
    elif how == "grouped":
        estimator.set_params(family=penalties.L2() + bad.per("layer"))
    elif how == "known":
        estimator.set_params(family="l2", known={"smooth_l1": NAN})
    elif how == "searched":
        estimator = ImplicitRegularizationCV(RIDGE, families=["l2", bad])
    with pytest.raises(ValueError, match="Expected (delta of SmoothL1|known of .*) to be"):
        estimator.fit(X, Y)


ANY = [
    *(None, "a", 1j, [], object(), {1}, 3, True, -1, NAN, X[:, 0], X[:, :2], np.ones(5), Ridge),
    *(NET, ["a"], {"a": 1}),
]
WHOLE = OF_MATRIX.penalty_
IMPLIED = theory.implicit_penalty(X, FLOW)
TWO = on_net(family="l2+l1")
METHODS = {
    "wald_test": lambda v: TWO.wald_test(v),
    "wald_test, value": lambda v: TWO.wald_test(np.eye(2), v),
    "influence": lambda v: TWO.influence(v),
    "score, X": lambda v: FITTED.score(v, Y),
    "score, y": lambda v: FITTED.score(X, v),
    "score, sample_weight": lambda v: FITTED.score(X, Y, v),
    "score of a net, X": lambda v: TWO.score(v, Y[:, None]),
    "score of a net, y": lambda v: TWO.score(X, v),
    "recover, X": lambda v: FITTED.recover(v, Y),
    "recover, y": lambda v: FITTED.recover(X, v),
    "recover a net": lambda v: TWO.recover(v, Y[:, None]),
    "search in folds, X": lambda v: searched(model=RIDGE, families=["l2"], X=v, y=Y, cv=3),
    "search in folds, y": lambda v: searched(model=RIDGE, families=["l2"], X=X, y=v, cv=3),
    "predict": lambda v: FITTED.predict(v),
    "predict of a LinearModel": lambda v: package.LinearModel(np.ones(3)).predict(v),
    "a fitted penalty": lambda v: TWO.penalty_(v),
    "a structured penalty": lambda v: WHOLE(v),
    "its value": lambda v: WHOLE.value(v),
    "its gradient": lambda v: WHOLE.gradient(v),
    "solve, thetas": lambda v: penalties.Quadratic().solve(v, X),
    "solve, targets": lambda v: penalties.Quadratic().solve(X, v),
    "values of a filter": lambda v: FLOW.values(v),
    "value of an implied penalty": lambda v: IMPLIED.value(v),
    "theta of an implied penalty": lambda v: IMPLIED.theta(v),
    "a filter": lambda v: theory.SpectralFilter("name", v),
    "rounding": lambda v: run()[1].rounding(v),
    "save": lambda v: isinstance(v, str) or run()[1].save(v),
    "slice": lambda v: run()[1][v],
    "StepFactor.at": lambda v: trajectory.StepFactor(0.1, np.ones(2), np.ones(2)).at(v),
    "terms": lambda v: isinstance(v, dict) or penalties.L2().terms(v, None),
    "on": lambda v: on_net(family=penalties.L2().on(v)),
    "per": lambda v: on_net(family=penalties.L2().per(v)),
    "a sum": lambda v: penalties.L2() + v,
    "a product": lambda v: v * penalties.L2() if v is not NET else None,
    "activation": lambda v: penalties.RowBatch.of(NET, X).activation(v),
    "what a function gives": lambda v: on_net(family={"a": lambda params: v}),
    "what a function of rows gives": lambda v: on_net(family={"a": lambda params, batch: v}),
    "rows of training_rows": lambda v: package.training_rows(net(), v, Y[:, None]),
    "targets of training_rows": lambda v: package.training_rows(net(), X, v),
    "coef of linear_problem": lambda v: linear_problem(Data(X, Y), Options(), coef=v),
    "unknown parameter": lambda v: package.equations(RIDGE, X, Y, nope=v),
    "axes": lambda v: inspection.GradientMatchDisplay.from_estimator(FITTED, X, Y, ax=v),
    "data of families": lambda v: entered(
        model=NET, optimizer=optimizer(), families=["l2"], data=v, loss="mse"
    ),
    "a list of endpoints": lambda v: ImplicitRegularizationEstimator(None).fit(v),
    "one among endpoints": lambda v: ImplicitRegularizationEstimator(None).fit(
        [package.Endpoint(RIDGE, X, Y), v]
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    if name == "axes":
        pytest.importorskip("matplotlib")
    found = {f"{value!r:.60}": raised(METHODS[name], value) for value in ANY}
    assert {v: what for v, what in found.items() if what not in ("", "accepted")} == {}


def test_a_message_is_short_whatever_the_value():
    with pytest.raises(TypeError) as caught:
        theory.ridge(np.ones(10_000).tolist())
    assert str(caught.value) == (
        "Expected coef of ridge to be a finite number > 0, got [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, ...]."
    )
