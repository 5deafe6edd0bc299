"""Many coefficient vectors on one data set: one Gram matrix, the answers of the rows."""

import time

import numpy as np
import pytest
from cases import W_DIABETES, X_DIABETES, Y_DIABETES, Y_TWO
from sklearn.linear_model import Ridge

from sklearn_implicitreg import LinearModel
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.adapters.linear.checkpoints import CheckpointProblem
from sklearn_implicitreg.adapters.registry import adapt_many
from sklearn_implicitreg.penalties import as_penalty
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.regression.place import Place
from sklearn_implicitreg.regression.solve import solve


def descent(X, y, n_steps, lr):
    """Iterates of gradient descent on ``mean((y - X theta)^2)``, from zero."""
    theta, path = np.zeros(X.shape[1]), []
    for _ in range(n_steps):
        theta = theta - lr * 2 * X.T @ (X @ theta - y) / len(y)
        path.append(theta)
    return path


def shared(path, X, y, weight=None, intercepts=None, **options):
    """Problems that share their rows."""
    given = [None] * len(path) if intercepts is None else intercepts
    models = [LinearModel(c, b) for c, b in zip(path, given, strict=True)]
    problems = adapt_many(models, [Data(X, y, weight)] * len(path), Options(**options))
    assert all(isinstance(problem, CheckpointProblem) for problem in problems)
    return problems, [adapt(m, Data(X, y, weight), Options(**options)) for m in models]


def assert_same(problems, alone):
    """Gradients, losses and sizes of both."""
    for problem, own in zip(problems, alone, strict=True):
        found, expected = problem.gradient(), own.gradient()
        assert list(found.value) == list(expected.value)
        for name, value in expected.value.items():
            tol = 4 * problem.eps * found.scale
            np.testing.assert_allclose(found.value[name], value, rtol=0, atol=tol)
            assert problem.params[name].equal(own.params[name])
        assert found.loss == pytest.approx(expected.loss, rel=1e-12)
        assert (found.weight, found.n_rows) == (expected.weight, expected.n_rows)
        assert problem.left_out == own.left_out


@pytest.mark.parametrize("weight", [None, W_DIABETES], ids=["plain", "weighted"])
@pytest.mark.parametrize("params", ["auto", "all"])
@pytest.mark.parametrize("y", [Y_DIABETES, Y_TWO], ids=["one output", "two outputs"])
@pytest.mark.parametrize("loss", ["auto", "mse"])
def test_same_as_each_alone(weight, params, y, loss):
    X = X_DIABETES + 1.0
    fits = [Ridge(alpha=a).fit(X, y, weight) for a in np.logspace(4, -3, 12)]
    path, intercepts = [f.coef_ for f in fits], [f.intercept_ for f in fits]
    assert_same(*shared(path, X, y, weight, intercepts, params=params, loss=loss))
    assert_same(*shared(path, X, y, weight, None, params=params, loss=loss))


def test_blocks_and_hessian_are_those_of_the_rows():
    path = descent(X_DIABETES, Y_DIABETES, 10, 0.05)
    problems, alone = shared(path, X_DIABETES, Y_DIABETES, intercepts=[0.0] * 10)
    np.testing.assert_array_equal(problems[3].hessian(), alone[3].hessian())
    found, expected = list(problems[3].blocks(20)), list(alone[3].blocks(20))
    assert len(found) == len(expected) == 100
    np.testing.assert_array_equal(found[7].sums["coef"], expected[7].sums["coef"])


def test_only_what_is_the_same_is_shared():
    X, y = X_DIABETES, Y_DIABETES
    path = descent(X, y, 6, 0.05)
    models = [*map(LinearModel, path[:4]), LinearModel(path[4], 1.0), Ridge().fit(X, y)]
    models += [LinearModel(path[5], loss="absolute_error")]
    data = [Data(X, y), Data(X, y), Data(X, y), Data(X.copy(), y)] + [Data(X, y)] * 3
    problems = adapt_many(models, data, Options())
    assert [isinstance(p, CheckpointProblem) for p in problems] == [True] * 3 + [False] * 4
    assert [p.model_name for p in problems] == ["LinearModel"] * 5 + ["Ridge", "LinearModel"]
    two = adapt_many(models[:2], data[:2], Options())
    assert not any(isinstance(p, CheckpointProblem) for p in two)  # two passes cost less


def scalars(problems):
    """Coefficient of l2 at each checkpoint, and the bound of its rounding error."""
    coefs, bounds = [], []
    for problem in problems:
        equations = Place(problem, Design.at(as_penalty("l2"), problem), problem.gradient())
        system = equations.system
        found = solve(system.r_factor, system.n_equations, positive=False, eps=problem.eps)
        coefs.append(found.coef[0])
        bounds.append(equations.rounding / np.linalg.norm(2 * problem.coef))
    return np.array(coefs), np.array(bounds)


def paper_data():
    """Setting of the paper's figure 4E: n = 1000, p = 10, full-batch descent."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 10))
    return X, X @ rng.normal(size=10) + rng.normal(size=1000)


def test_scalar_of_a_thousand_steps():
    """``theta' Lambda theta / |theta|^2``, Lambda from the filter 1 - (1 - 2 lr s)^t."""
    X, y = paper_data()
    lr, n_steps = 0.005, 1000
    s, V = np.linalg.eigh(X.T @ X / len(X))
    target = V.T @ X.T @ y / len(X) / s
    path, expected = [], []
    for t in range(1, n_steps + 1):
        left = (1 - 2 * lr * s) ** t
        theta = -np.expm1(t * np.log1p(-2 * lr * s)) * target
        path.append(V @ theta)
        expected.append(theta @ (s * left / (1 - left) * theta) / (theta @ theta))
    X_path = [Data(X, y)] * n_steps
    start = time.perf_counter()
    problems = adapt_many([LinearModel(theta) for theta in path], X_path, Options())
    coefs, bounds = scalars(problems)
    assert time.perf_counter() - start < 3  # 0.3 s on a free core
    expected = np.array(expected)
    error = np.abs(coefs - expected)
    assert np.all((error <= 1e-10 * expected) | (error <= bounds))
    assert np.all(error <= bounds)


def test_many_rows_cost_one_pass():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200_000, 10))
    y = X @ rng.normal(size=10) + rng.normal(size=len(X))
    start = time.perf_counter()
    adapt(LinearModel(np.ones(10)), Data(X, y), Options()).gradient()
    once = time.perf_counter() - start
    models = [LinearModel(theta) for theta in rng.normal(size=(300, 10))]
    start = time.perf_counter()
    for problem in adapt_many(models, [Data(X, y)] * 300, Options()):
        problem.gradient()
    assert time.perf_counter() - start < 40 * once


def test_bad_checkpoints_are_refused():
    path = [np.ones(10), np.full(10, np.nan), np.ones(10)]
    models = [LinearModel(theta) for theta in path]
    with pytest.raises(ValueError, match="finite trained parameters") as caught:
        adapt_many(models, [Data(X_DIABETES, Y_DIABETES)] * 3, Options())
    assert caught.value.__notes__ == ["This is about endpoint 1 of the list."]
    with pytest.raises(ValueError, match="10 features, but LinearModel is expecting 9"):
        adapt_many([LinearModel(np.ones(9))] * 3, [Data(X_DIABETES, Y_DIABETES)] * 3, Options())
