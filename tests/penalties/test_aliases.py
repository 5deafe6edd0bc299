"""Other words for families: the same penalty, with the family's own term names."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, Ridge
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.model_selection import simplest_within_one_se
from sklearn_implicitreg.penalties import ALIASES, FAMILIES, STRUCTURED, Dropout, as_penalty

X, Y = load_diabetes(return_X_y=True)


def fit(model, family, X=X, y=Y, **options):
    return ImplicitRegularizationEstimator(model, family=family, **options).fit(X, y)


@pytest.mark.parametrize(
    ("alias", "name", "model"),
    [
        ("ridge", "l2", Ridge(3.0)),
        ("lasso", "l1", Lasso(0.1, tol=1e-12)),
        ("ridge + lasso", "l2+l1", ElasticNet(0.01, tol=1e-12)),
        ("l2+lasso", "l2+l1", ElasticNet(0.01, tol=1e-12)),
    ],
)
def test_terms_are_those_of_the_family(alias, name, model):
    model.fit(X, Y)
    one, two = fit(model, alias), fit(model, name)
    np.testing.assert_array_equal(one.coef_, two.coef_)
    assert one.term_names_ == two.term_names_ == name.split("+")
    assert one.in_model_units() == two.in_model_units()
    assert one.explicit_estimator().get_params() == two.explicit_estimator().get_params()


def test_known_searches_and_sizes():
    model = ElasticNet(0.01, l1_ratio=0.5, tol=1e-12).fit(X, Y)
    known = fit(model, "lasso", known={"ridge": 0.005})
    assert known.coef_ == pytest.approx(fit(model, "l1", known={"l2": 0.005}).coef_)
    search = ImplicitRegularizationCV(Ridge(3.0).fit(X, Y), families=["lasso", "ridge"]).fit(X, Y)
    assert search.best_family_ == "ridge"
    assert search.term_names_ == ["l2"]
    table = {"mean_test_score": [1.0, 1.0], "std_test_score": [0, 0], "split0_test_score": [1, 1]}
    params = [{"family": "ridge+lasso"}, {"family": "ridge"}]
    assert simplest_within_one_se({"params": params, **table}) == 1


def test_aliases_are_no_families():
    assert not set(ALIASES) & {*FAMILIES, *STRUCTURED}
    with pytest.raises(ValueError, match="Did you mean 'ridge'"):
        as_penalty("ridgee")


@pytest.fixture
def rows():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=g, dtype=torch.float64)
    return x, x.sum(1, keepdim=True)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_takes_the_rates_of_the_layers(rate, rows):
    """Of a linear model R is q / (1 - q) sum_j mean(x_j^2) theta_j^2; the coefficient is 1."""
    x, y = rows
    net = nn.Sequential(nn.Dropout(rate), nn.Linear(3, 1, bias=False)).double().eval()
    n = len(x)
    gram, strength = x.T @ x / n, rate / (1 - rate)
    theta = torch.linalg.solve(gram + strength * torch.diag(torch.diag(gram)), x.T @ y / n)
    net[1].weight.data = theta.T.contiguous()
    est = fit(net, "dropout", x, y, loss="mse")
    assert est.term_names_ == ["dropout"]
    assert est.coef_[0] == pytest.approx(1.0, abs=0.1)
    given = fit(net, Dropout(rate), x, y, loss="mse")
    np.testing.assert_array_equal(given.coef_, est.coef_)


def test_dropout_needs_a_rate(rows):
    x, y = rows
    net = nn.Sequential(nn.Dropout(0.0), nn.Linear(3, 1)).double()
    with pytest.raises(ValueError, match=r"a rate p above 0, got rates of 0; .*Dropout\(p\)"):
        fit(net, "dropout", x, y, loss="mse")
    with pytest.raises(ValueError, match="got none, so the rate p is not known"):
        fit(nn.Linear(3, 1).double(), "dropout", x, y, loss="mse")
    with pytest.raises(ValueError, match="got Ridge, which has no rate p"):
        fit(Ridge().fit(X, Y), "dropout")
