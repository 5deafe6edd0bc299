"""Tensors that no gradient reaches: no equations at an endpoint, and the summary names them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skorch import NeuralNetRegressor
from torch import nn
from torch.nn.functional import mse_loss

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
    equations,
)
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.exceptions import CollinearTermsWarning
from sklearn_implicitreg.penalties import Diagonal

N, ALPHA = 40, 0.07


def rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    return X, X[:, :1] - 0.5 * X[:, 1:2] + 0.1 * torch.randn(N, 1, generator=generator).double()


class Linear(nn.Module):
    """Ridge weights in ``w``, and other tensors that training leaves alone."""

    def __init__(self, how="unused", X=None, y=None):
        super().__init__()
        X, y = rows() if X is None else (X, y)
        torch.manual_seed(1)
        self.how = how
        self.body, self.w, self.spare = (
            nn.Linear(4, 4),
            nn.Linear(4, 1, bias=False),
            nn.Linear(4, 2),
        )
        self.double()
        with torch.no_grad():
            H = self.features(X)
            weights = torch.linalg.solve(H.T @ H / N + ALPHA * torch.eye(4).double(), H.T @ y / N)
            self.w.weight.copy_(weights.T)

    def features(self, x):
        if self.how == "no_grad":
            with torch.no_grad():
                return self.body(x)
        if self.how == "detach":
            return self.body(x).detach()
        if self.how == "data":
            return x + self.body.weight.data.mean()
        if self.how == "eval only" and not self.training:
            return x
        if self.how == "routed":  # to an expert that no row is sent to
            chosen = (x[:, 0] > 99).nonzero().squeeze(1)
            return x.index_add(0, chosen, self.body(x[chosen])) if len(chosen) else x
        return x

    def forward(self, x):
        return self.w(self.features(x))


def fit(net, **options):
    options = {"family": "l2", "loss": "mse", "params": "all", **options}
    return ImplicitRegularizationEstimator(net, **options).fit(*rows())


@pytest.mark.parametrize("how", ["unused", "no_grad", "detach", "data", "routed", "eval only"])
@pytest.mark.parametrize("batch_size", ["auto", 7])
def test_ridge_is_that_of_the_tensors_that_were_trained(how, batch_size):
    net = Linear(how).eval()
    est = fit(net, batch_size=batch_size)
    assert est.coef_ == pytest.approx([ALPHA], rel=1e-9) and est.n_equations_ == 4
    text = " ".join(str(est.summary()).split())
    note = "for no gradient reaches them: body.weight, body.bias, spare.weight, spare.bias."
    assert note in text
    assert len(equations(net, *rows(), families=["l2"], loss="mse", params="all")["data"]) == 4


def test_wrong_number_of_the_stacked_equations():
    """What the false equations would give: the mechanism that is tested here does something."""
    net = Linear("no_grad")
    theta = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    own = net.w.weight.detach()
    assert ALPHA * float(own.square().sum() / theta.square().sum()) < ALPHA / 2
    assert fit(net).coef_ == pytest.approx([ALPHA], rel=1e-9)


@pytest.mark.parametrize("family", ["l1", "l2+l1", "elastic_net", "power", "l21"])
def test_families_have_the_equations_of_the_trained_tensors(family):
    net = Linear()
    alone = fit(net, family=family, params=r"^w\.")
    est = fit(net, family=family)
    np.testing.assert_allclose(est.coef_, alone.coef_, rtol=1e-12)
    assert (est.r2_, est.n_equations_) == (alone.r2_, alone.n_equations_)
    np.testing.assert_allclose(est.std_err_, alone.std_err_)
    assert est.score(*rows()) == pytest.approx(alone.score(*rows()))


def test_unreached_coordinates_are_at_no_kink():
    net = Linear()
    with torch.no_grad():
        net.spare.weight[0, 0] = 0.0
    assert "at a kink" not in str(fit(net, family="l1").summary())


def test_known_and_completed_scores():
    net = Linear()
    est = fit(net, known={"l2": 0.03})
    assert est.coef_ == pytest.approx([ALPHA - 0.03], rel=1e-9)
    X, y = rows()
    half = ImplicitRegularizationEstimator(net, loss="mse", params="all").fit(X[:20], y[:20])
    assert half.score(X[20:], y[20:]) > 0.9


def test_search_over_families():
    options = {"loss": "mse", "params": "all"}
    search = ImplicitRegularizationCV(Linear(), families=["l2", "l1"], **options)
    search.fit(*rows())
    assert search.best_family_ == "l2"
    assert search.best_estimator_.coef_ == pytest.approx([ALPHA], rel=1e-9)


def test_group_without_equations():
    """As where all equations of a group are at a kink: its coefficient is not identifiable."""
    with pytest.warns(CollinearTermsWarning, match=r"l2\[body\]"):
        est = fit(Linear(), group_by="layer")
    assert est.verdict_ == "not identifiable"
    found = dict(zip(est.term_names_, est.coef_, strict=True))
    assert found["l2[w]"] == pytest.approx(ALPHA, rel=1e-9)


def test_tensors_out_of_reach_of_some_blocks_count():
    """An expert of one half of the rows has a gradient."""
    X, y = rows()
    X = X[X[:, 0].argsort()]

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, x):
            low, high = x[x[:, 0] < 0], x[x[:, 0] >= 0]
            parts = [part(own) for part, own in ((self.left, low), (self.right, high)) if len(own)]
            return torch.cat(parts)

    problem = adapt(Halves().double(), Data(X, y), Options(loss="mse", params="all", batch_size=5))
    assert problem.gradient().absent == frozenset()
    low = problem.take(np.arange(5), np.ones(5)).gradient()
    assert low.absent == {"right.weight", "right.bias"}
    assert low.completed(problem.gradient()).absent == frozenset()


def test_zero_gradient_is_not_absent():
    X, y = rows()

    class Zero(Linear):
        def forward(self, x):
            return super().forward(x) + 0 * self.spare(x)[:, :1]

    est = ImplicitRegularizationEstimator(Zero(), loss="mse", params="all").fit(X, y)
    assert est.n_equations_ == 4 + 10


def test_tied_weights_have_the_gradient_of_what_is_used():
    net = Linear()
    net.spare.weight = net.body.weight = nn.Parameter(torch.ones(4, 4).double())
    net.w.weight = nn.Parameter(net.w.weight.detach())
    net.spare.tied = net.w.weight
    est = fit(net)
    assert est.coef_ == pytest.approx([ALPHA], rel=1e-9) and est.n_equations_ == 4


def test_list_of_endpoints():
    nets = [Linear("no_grad", *rows(seed)) for seed in range(3)]
    group = [Endpoint(net, *rows(seed)) for seed, net in enumerate(nets)]
    est = ImplicitRegularizationEstimator(None, loss="mse", params="all").fit(group)
    assert est.coef_ == pytest.approx([ALPHA], rel=1e-9) and est.n_equations_ == 12
    assert "for no gradient reaches them" in " ".join(str(est.summary()).split())


def test_endpoints_of_which_some_do_not_reach_a_tensor():
    """A tensor of weights that some of the nets use; the others give no equation for it."""
    X, y = rows()
    nets = [Linear("unused"), Linear("unused")]

    class Uses(Linear):
        def forward(self, x):
            return self.w(x) + self.spare(x)[:, :1] - self.spare(x)[:, :1].detach()

    nets.append(Uses())
    group = [Endpoint(net, X, y) for net in nets]
    est = ImplicitRegularizationEstimator(None, loss="mse", params="all").fit(group)
    assert est.n_equations_ == 4 + 4 + 14
    assert "at the endpoints where no gradient reaches them: spare.weight, spare.bias" in " ".join(
        str(est.summary()).split()
    )


def test_family_that_is_solved_as_a_whole():
    group = [Endpoint(Linear("unused", *rows(seed)), *rows(seed)) for seed in range(5)]
    options = {"family": Diagonal(), "loss": "mse"}
    whole = ImplicitRegularizationEstimator(None, params="all", **options).fit(group)
    alone = ImplicitRegularizationEstimator(None, params=r"^w\.", **options).fit(group)
    np.testing.assert_allclose(whole.coef_, alone.coef_)
    assert whole.score(group) == pytest.approx(alone.score(group))


def test_net_of_skorch():
    X, y = (t.numpy() for t in rows())

    class Fixed(Linear):
        pass

    net = NeuralNetRegressor(
        Fixed,
        lr=0.3,
        max_epochs=400,
        train_split=None,
        batch_size=-1,
        verbose=0,
        optimizer__weight_decay=2 * ALPHA,
    ).fit(X, y)
    est = ImplicitRegularizationEstimator(net, params="all").fit(X, y)
    assert est.coef_ == pytest.approx([ALPHA], rel=1e-6) and est.n_equations_ == 4


@pytest.mark.parametrize("params", ["spare", r"body|spare"])
@pytest.mark.parametrize("family", ["l2", Diagonal()])
def test_only_tensors_without_a_gradient(params, family):
    with pytest.raises(
        ValueError, match=r"Expected parameters that training acted on, got .*spare"
    ):
        fit(Linear(), params=params, family=family)


def test_nothing_reaches_the_loss():
    net = Linear()
    net.w.requires_grad_(False)
    with pytest.raises(ValueError, match="Expected a loss that depends on the trained parameters"):
        fit(net)


def test_model_is_left_as_it_was():
    X, y = rows()
    net = Linear("no_grad")
    before = {name: t.clone() for name, t in net.state_dict().items()}
    fit(net)
    mse_loss(net(X), y)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
