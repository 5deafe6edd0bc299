"""Warnings point at the line of the user that led to them, each time from another line."""

from __future__ import annotations

import inspect
import runpy
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetRegressor
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sklearn_implicitreg import ImplicitRegularizationEstimator, endpoints
from sklearn_implicitreg.theory import (
    degrees_of_freedom,
    gradient_descent,
    implicit_penalty,
    kernel_penalty,
)
from sklearn_implicitreg.trajectory import ContinueTraining, record

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 3)), RNG.normal(size=24)
LARGE = gradient_descent(1.05 / np.linalg.eigvalsh(X.T @ X / 24).max(), 3)


def fit(module, x=X, y=Y, **params):
    return ImplicitRegularizationEstimator(module, **({"loss": "mse"} | params)).fit(x, y)


def half():
    return nn.Linear(3, 1).to(torch.bfloat16)


class Noisy(Dataset):
    """Rows that differ each time they are read."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.randn(3), torch.zeros(1)


class Failing(Ridge):
    def fit(self, X, y):
        if len(np.unique(X[:, 0])) < len(X):
            raise ValueError("resampled")
        return super().fit(X, y)


def interfered(train=None):
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    recorder = record(net, optimizer)
    recorder.__enter__()
    for _ in range(2):
        net.weight.data *= 0.9
        net(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    recorder.__exit__()


def without_history():
    net = NeuralNetRegressor(nn.Linear(3, 1), verbose=0, train_split=None).initialize()
    y = Y[:, None].astype(np.float32)
    ImplicitRegularizationEstimator(net).fit(X.astype(np.float32), y)


WARNINGS = {
    "half precision": lambda: fit(half()),
    "unknown batches": lambda: fit(nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1)).double()),
    "probabilities": lambda: fit(
        nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()).double(), y=Y > 0, loss="bce_with_logits"
    ),
    "augmentation": lambda: fit(nn.Linear(3, 1), DataLoader(Noisy(), batch_size=4), None),
    "a large step": lambda: degrees_of_freedom(X, LARGE),
    "an indefinite penalty": lambda: implicit_penalty(X, gradient_descent(LARGE.limit * 0.8, 1)),
    "collinear": lambda: ImplicitRegularizationEstimator(
        Ridge().fit(X, Y), family={"a": lambda p: p["coef"].sum(), "b": lambda p: p["coef"].sum()}
    ).fit(X, Y),
    "changed weights": interfered,
    "no history": without_history,
    "failed trainings": lambda: endpoints(Failing(), X, Y, 3, random_state=0),
    "in a search": lambda: GridSearchCV(
        ImplicitRegularizationEstimator(half(), loss="mse"), {"family": ["l2"]}, cv=2
    ).fit(X, Y),
    "by a probe": lambda: fit(
        nn.Linear(3, 1).double(),
        y=Y[:, None],
        trajectory=ContinueTraining(
            1, train_epoch=interfering, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
        ),
        mode="trajectory",
    ),
}


def interfering(model, optimizer):
    for _ in range(2):
        model.weight.data *= 0.9
        model(torch.ones(2, 3).double()).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", WARNINGS)
def test_warnings_name_a_line_of_this_file(kind):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        WARNINGS[kind]()
    assert {w.filename for w in caught} == {__file__}


def test_a_second_line_warns_again():
    """Python shows a warning once for each line: a line of the package would hide the second."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            degrees_of_freedom(X, LARGE)
        degrees_of_freedom(X, LARGE)
    here = inspect.currentframe().f_lineno
    assert [w.lineno for w in caught] == [here - 2, here - 1]


def test_a_filter_for_the_users_module_works(tmp_path):
    script = tmp_path / "analysis.py"
    script.write_text(
        textwrap.dedent(
            """
            import warnings, numpy as np
            from sklearn_implicitreg.theory import degrees_of_freedom, gradient_descent
            warnings.filterwarnings("error", module="__main__")
            degrees_of_freedom(np.eye(2), gradient_descent(2.1, 3))
            """
        )
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert "StepSizeWarning" in run.stderr.splitlines()[-1]


def test_without_a_line_of_the_users_the_nearest_caller_is_named(monkeypatch):
    """As in a worker process, whose frames are all of installed libraries."""
    from sklearn_implicitreg import exceptions

    monkeypatch.setattr(exceptions, "_INSTALLED", ("/", "<"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        degrees_of_freedom(X, LARGE)
    assert caught[0].filename == __file__


def test_kernel_penalty_and_scripts_too(tmp_path):
    script = tmp_path / "kernels.py"
    script.write_text(
        "import numpy as np\nfrom sklearn_implicitreg.theory import *\n"
        "kernel_penalty(np.eye(2), gradient_descent(2.4, 3))\n"
    )
    assert kernel_penalty is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runpy.run_path(str(script))
    assert {(w.filename, w.lineno) for w in caught} == {(str(script), 3)}


@pytest.mark.parametrize("names", [{}, {"__name__": None}], ids=["bare", "None"])
def test_code_without_a_module_warns_too(names):
    """Such as that of an application which executes text."""
    given = names | {"warn": lambda: degrees_of_freedom(X, LARGE)}
    code = compile(
        "import sklearn_implicitreg.theory as t\nt.degrees_of_freedom(X, L)", "<x>", "exec"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, given | {"X": X, "L": LARGE})
    assert [(w.filename, w.lineno) for w in caught] == [("<x>", 2)]


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_libraries_of_the_user_and_of_a_system_are_no_line_of_theirs(folder):
    path = f"/home/somebody/.local/lib/python3/{folder}/library/module.py"
    names = {"__name__": "library.module", "dof": degrees_of_freedom}
    exec(compile("def called(*given):\n    return dof(*given)", path, "exec"), names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names["called"](X, LARGE)
    assert [w.filename for w in caught] == [__file__]
