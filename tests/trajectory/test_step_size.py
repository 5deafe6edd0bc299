"""What a finite step size adds: theory of the factor, kinks, long horizons."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.penalties import GradientNorm
from sklearn_implicitreg.trajectory import (
    GradientDescentProbe,
    StepFactor,
    barrett_dherin_scale,
    drift_ratio,
    find_kinks,
    finite_step_factor,
    minibatch_factor,
    richardson,
)

LRS = (0.003, 0.01, 0.03, 0.1)


def digits_net(unit, seed=0, standardized=False, epochs=10):
    """MLP 64-32-10 in float64 on 600 digits, some full-batch epochs from its start."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.as_tensor(X[:600] / 16), torch.as_tensor(y[:600])
    if standardized:
        X = (X - X.mean()) / X.std()
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 32), unit, nn.Linear(32, 10)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), y).backward()
        optimizer.step()
    return Trained(net, X, y, "cross_entropy")


@dataclass(frozen=True)
class Trained:
    """A net with its rows and loss."""

    net: nn.Module
    X: torch.Tensor
    y: torch.Tensor
    loss: str

    @property
    def problem(self):
        return adapt(self.net, Data(self.X, self.y), Options(loss=self.loss, params="all"))

    def fit_path(self, lr, n_steps=1, **options):
        """Estimator along the trajectory of a probe."""
        estimator = ImplicitRegularizationEstimator(
            self.net,
            mode="trajectory",
            trajectory=GradientDescentProbe(lr, n_steps),
            loss=self.loss,
            params="all",
            **options,
        )
        return estimator.fit(self.X, self.y)

    def ratio(self, lr, n_steps=1):
        """Coefficient of the gradient norm over lr / 4, and R2, against the gradient flow."""
        fit = self.fit_path(lr, n_steps, family=GradientNorm(), reference="flow")
        return float(fit.coef_[0]) / (lr / 4), fit.r2_


def linear_net(n=60, p=7):
    """Squared error of a linear module, with its eigenvalues and gradient in the eigenbasis."""
    torch.manual_seed(1)
    X = torch.randn(n, p, dtype=torch.float64) * torch.linspace(0.3, 2, p, dtype=torch.float64)
    y = torch.randn(n, 1, dtype=torch.float64)
    trained = Trained(nn.Linear(p, 1, bias=False).double(), X, y, "mse")
    h, V = np.linalg.eigh(2 * (X.T @ X / n).numpy())
    return trained, h, V.T @ trained.problem.gradient().value["weight"].numpy().ravel()


@pytest.mark.parametrize("lr", [1e-6, 0.01, 0.1, 0.4])
def test_factor_of_a_quadratic_is_exact(lr):
    trained, h, g = linear_net()
    x, w = lr * h, (h * g) ** 2 / ((h * g) ** 2).sum()
    series = sum(2 * (-x) ** k / float(np.prod(np.arange(1.0, k + 3))) for k in range(20))
    direct = 2 * (np.exp(-x) - 1 + x) / x**2 if lr > 1e-3 else series
    factor = finite_step_factor(trained.problem, lr)
    assert factor.quadratic == pytest.approx(float(w @ direct), rel=1e-12)
    assert factor.value == pytest.approx(factor.quadratic, abs=1e-8)


def test_coefficient_of_a_quadratic_is_the_factor():
    trained, _, _ = linear_net()
    ratio, _ = trained.ratio(0.1)
    assert ratio == pytest.approx(finite_step_factor(trained.problem, 0.1).quadratic, rel=1e-6)


def test_few_lanczos_steps_suffice():
    trained = digits_net(nn.Tanh())
    many = finite_step_factor(trained.problem, 0.1, n_lanczos=40, third_order=False)
    assert finite_step_factor(trained.problem, 0.1).quadratic == pytest.approx(many.value, rel=1e-8)


def test_third_order_against_automatic_differentiation():
    trained = digits_net(nn.Tanh())
    net = trained.net

    def loss(params):
        output = torch.func.functional_call(net, params, (trained.X,))
        return nn.functional.cross_entropy(output, trained.y)

    params = {n: t.detach() for n, t in net.named_parameters()}
    g = torch.func.grad(loss)(params)
    along = {n: t.clone() for n, t in g.items()}

    def product(at):
        return torch.func.jvp(torch.func.grad(loss), (at,), (along,))[1]

    hg, third = torch.func.jvp(product, (params,), (along,))
    expected = sum(float((hg[n] * third[n]).sum()) for n in hg)
    expected /= sum(float(t.square().sum()) for t in hg.values())
    assert finite_step_factor(trained.problem, 0.1).third == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("standardized", [False, True], ids=["unit pixels", "standardized"])
@pytest.mark.parametrize("lr", LRS)
def test_flow_recovers_the_step_size_of_a_tanh_net(lr, standardized):
    trained = digits_net(nn.Tanh(), standardized=standardized)
    ratio, r2 = trained.ratio(lr)
    factor = finite_step_factor(trained.problem, lr)
    assert ratio / factor.value == pytest.approx(1, abs=0.002 if lr < 0.1 else 0.06)
    assert r2 > 0.99
    halves = [trained.ratio(part * lr)[0] for part in (0.25, 0.5)]
    assert richardson(*halves, ratio) == pytest.approx(1, abs=0.002)


def test_several_steps_share_one_coefficient():
    trained = digits_net(nn.Tanh())
    ratio, r2 = trained.ratio(0.01, n_steps=5)
    assert ratio == pytest.approx(finite_step_factor(trained.problem, 0.01).value, abs=0.002)
    assert r2 > 0.999


def test_note_where_the_step_is_large():
    factor = StepFactor(0.1, np.array([0.5, 4.0]), np.array([0.5, 0.5]))
    assert factor.note == ""
    assert "0.8 (> 0.5)" in factor.at(0.2).note
    assert factor.expected_coefficient == pytest.approx(0.025 * factor.value)


@pytest.mark.parametrize("n_steps", [1, 7])
def test_descent_on_a_linear_model_adds_nothing(n_steps):
    trained, _, _ = linear_net()
    assert abs(trained.fit_path(0.05, n_steps, reference="gradient").coef_[0]) <= 1e-12


@pytest.mark.parametrize("lr", [0.003, 0.005])
def test_relu_is_out_of_family(lr):
    trained = digits_net(nn.ReLU(), epochs=0)
    assert trained.ratio(lr)[1] < 0.1
    kinks = find_kinks(trained.problem, lr)
    assert not kinks.smooth
    assert "kinks" in kinks.note


@pytest.mark.parametrize("unit", [nn.Tanh(), nn.GELU(), nn.SiLU()], ids=lambda u: type(u).__name__)
@pytest.mark.parametrize("lr", [None, 0.01, 0.1])
def test_smooth_nets_have_no_kinks(unit, lr):
    kinks = find_kinks(digits_net(unit).problem, lr)
    assert kinks.smooth
    assert kinks.note == ""


@pytest.mark.parametrize("epochs", [0, 10, 100])
@pytest.mark.parametrize("unit", [nn.ReLU(), nn.LeakyReLU()], ids=lambda u: type(u).__name__)
def test_kinks_are_found_wherever_training_stands(unit, epochs):
    assert not find_kinks(digits_net(unit, epochs=epochs).problem, 0.1).smooth


def test_modified_flow_stays_near_descent_unless_there_are_kinks():
    smooth = drift_ratio(digits_net(nn.Tanh(), epochs=0).problem, 0.01, 10, n_substeps=2)
    kinked = drift_ratio(digits_net(nn.ReLU(), epochs=0).problem, 0.01, 10, n_substeps=2)
    assert smooth <= 0.03
    assert kinked >= 0.5


def test_helpers():
    assert barrett_dherin_scale(0.1, 400) == pytest.approx(10)
    assert minibatch_factor(0.0, 37) == pytest.approx(1)
    assert minibatch_factor(0.9, 10) == pytest.approx(3.03, abs=0.005)
    assert minibatch_factor(0.9, 79) == pytest.approx(7.98, abs=0.005)
    m, T = 0.5, 3
    by_hand = 2 / 6 * (2 * (1 - m**2) + (1 - m**3)) / (1 - m)
    assert minibatch_factor(m, T, nesterov=True) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: finite_step_factor(p, 0.0),
            "lr of finite_step_factor to be a finite number > 0",
        ),
        (
            lambda p: finite_step_factor(p, 0.1, n_lanczos=0),
            "n_lanczos of finite_step_factor to be an integer >= 1",
        ),
        (
            lambda p: minibatch_factor(1.0, 5),
            "momentum of minibatch_factor to be a finite number >= 0 and < 1",
        ),
        (lambda p: minibatch_factor(0.5, 1), "n_steps of minibatch_factor to be an integer >= 2"),
    ],
    ids=["lr", "lanczos", "momentum", "one step"],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(linear_net()[0].problem)


def test_a_zero_gradient_leaves_no_trace():
    net = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    rows = Data(torch.ones(3, 2).double(), torch.zeros(3, 1).double())
    problem = adapt(net, rows, Options(loss="mse"))
    with pytest.raises(ValueError, match="leaves no trace"):
        finite_step_factor(problem, 0.1)
    assert find_kinks(problem).smooth
