"""The table of layers: decays of each layer that were applied, and what it does not evaluate."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from cases import X_DIABETES, Y_DIABETES
from displays import fit, on_path, trained
from sklearn.neural_network import MLPRegressor
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.inspection import CoefficientDisplay
from sklearn_implicitreg.penalties import L2, WeightDecay
from sklearn_implicitreg.trajectory import record

X = torch.as_tensor(X_DIABETES * 20)[:100]
Y = torch.as_tensor(Y_DIABETES)[:100, None] / 100
STRENGTHS = {"first": 0.02, "block.inner": 0.03, "last": 0.01}


class Net(nn.Module):
    """Layers inside a block, and one after it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(10, 4)
        self.block = nn.ModuleDict({"inner": nn.Linear(4, 4)})
        self.last = nn.Linear(4, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.block["inner"](torch.tanh(self.first(x)))))


@pytest.fixture(scope="module")
def stationary():
    """A net, and targets at which loss and an l2 of its own for each layer are in balance."""
    torch.manual_seed(0)
    net = Net().double()
    params = dict(net.named_parameters())

    def outputs(*values):
        return torch.func.functional_call(net, dict(zip(params, values, strict=True)), X)[:, 0]

    jacobian = torch.autograd.functional.jacobian(outputs, tuple(params.values()))
    columns = torch.cat([part.reshape(len(X), -1) for part in jacobian], dim=1)
    # The gradient of the mean squared error, 2/n J'e, is -2 strength theta where e solves this.
    wanted = [STRENGTHS.get(name.removesuffix(".weight"), 0.0) * p for name, p in params.items()]
    right = -len(X) * torch.cat([part.detach().reshape(-1) for part in wanted])
    error = torch.linalg.lstsq(columns.T, right, driver="gelsd").solution
    return net, net(X).detach() - error[:, None]


def analyzed(model, **params):
    net, target = model if isinstance(model, tuple) else (model, Y)
    given = {"loss": "mse", "family": "l2"} | params
    return ImplicitRegularizationEstimator(net, **given).fit(X, target)


def test_each_layer_has_its_own_strength(stationary):
    table = analyzed(stationary).by_layer()
    assert list(table.index) == list(STRENGTHS)
    np.testing.assert_allclose(table["coef"], list(STRENGTHS.values()), rtol=1e-5)
    assert (table["verdict"] == "supported").all()
    assert (table["r2"] > 1 - 1e-8).all()
    assert (table["ci_low"] <= table["coef"]).all()
    assert (table["coef"] <= table["ci_high"]).all()
    named = dict(stationary[0].named_parameters())
    # At the minimum the gradient of the loss is minus that of the penalty.
    sizes = [
        4 * own**2 * float(named[f"{n}.weight"].detach().square().sum())
        for n, own in STRENGTHS.items()
    ]
    np.testing.assert_allclose(table["share"], np.array(sizes) / sum(sizes), rtol=1e-4)
    assert table["n_equations"].tolist() == [40, 16, 4]


def test_a_layer_alone_is_the_fit_of_its_tensors():
    torch.manual_seed(1)
    net = Net().double()  # not trained: nothing is explained exactly
    table = analyzed(net, family="l2+power", params="all").by_layer()
    for layer in STRENGTHS:
        alone = analyzed(net, family="l2+power", params=f"^{layer}")
        own = table.loc[layer]
        np.testing.assert_allclose(own[["coef[l2]", "coef[power]"]].tolist(), alone.coef_)
        bounds = own[["ci_low[l2]", "ci_high[l2]", "ci_low[power]", "ci_high[power]"]].tolist()
        np.testing.assert_allclose(bounds, alone.conf_int_.ravel())
        assert own["verdict"] == alone.verdict_
        assert own["r2"] == pytest.approx(alone.r2_)
        assert own["n_equations"] == alone.n_equations_


def test_groups_do_not_change_it(stationary):
    plain = analyzed(stationary, params="all").by_layer()
    for group_by in ("layer", lambda name, tensor: "all"):
        grouped = analyzed(stationary, params="all", group_by=group_by).by_layer()
        np.testing.assert_allclose(grouped["coef"], plain["coef"], rtol=1e-12)
    finer = analyzed(stationary, params="all", group_by=lambda name, tensor: name).by_layer()
    assert "coef[l2[first.bias]]" in finer
    assert np.isnan(finer.loc["last", "coef[l2[first.bias]]"])


def test_nothing_is_evaluated_again(stationary):
    calls = []

    def loss(output, target):
        calls.append(len(output))
        return (output - target).square()

    est = analyzed(stationary, loss=loss)
    n = len(calls)
    assert n
    table = est.by_layer()
    assert len(calls) == n
    np.testing.assert_allclose(table["coef"], list(STRENGTHS.values()), rtol=1e-5)


def test_parts_that_are_known_and_scoped(stationary):
    known = analyzed(stationary, known={"l2": 0.01}).by_layer()
    np.testing.assert_allclose(known["coef"][:2], [0.01, 0.02], rtol=1e-4)
    scoped = analyzed(
        stationary, family=L2().on("first") + WeightDecay().on("first|last")
    ).by_layer()
    assert scoped.loc["block.inner", "verdict"] == "out of family"
    assert scoped.loc["block.inner", "r2"] == 0
    assert scoped.loc["last", "coef[weight_decay]"] == pytest.approx(0.02, rel=1e-4)
    assert scoped.loc["first", "verdict"] == "not identifiable"  # 2 L2 is WeightDecay's 4


def test_fewer_equations_than_terms(stationary):
    family = {
        f"f{k}": lambda p, k=k: sum(t.abs().pow(k).sum() for t in p.values()) for k in range(2, 8)
    }
    table = analyzed(stationary, family=family).by_layer()
    assert table.loc["last", "verdict"] == "not identifiable"
    assert np.isnan(table.loc["last", "coef[f2]"])
    assert table.loc["first", "coef[f2]"] == pytest.approx(0.02, rel=1e-2)


def test_numbers_out_of_range_of_squares():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 3), nn.Linear(3, 1)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1e-170)
    ones = {name: torch.ones_like(p) for name, p in net.named_parameters()}
    family = {"l2": lambda p: sum((t * ones[n]).square().sum() for n, t in p.items())}
    whole = analyzed(net, family="l2", group_by="layer", params="weight")
    table = analyzed(net, family=family, params="weight").by_layer()
    np.testing.assert_allclose(table["coef"], whole.coef_, rtol=1e-6)


def test_decays_of_two_optimizers_along_a_trajectory():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    optimizers = [
        torch.optim.SGD(net[0].parameters(), lr=0.02, weight_decay=0.02, momentum=0.9),
        torch.optim.Adam(net[2].parameters(), lr=0.01, weight_decay=0.1),
    ]
    with record(net, optimizers) as recorder:
        for _ in range(4):
            for rows in torch.randperm(len(X)).split(25):
                recorder.batch(rows)
                net.zero_grad()
                (net(X[rows]) - Y[rows]).square().mean().backward()
                for optimizer in optimizers:
                    optimizer.step()
            recorder.epoch()
    est = analyzed(
        net, family="weight_decay", mode="trajectory", trajectory=recorder.trajectory,
        reference="batch", params="all",
    )  # fmt: skip
    assert est.verdict_ != "supported"
    table = est.by_layer()
    np.testing.assert_allclose(table["coef"], [0.02, 0.1], rtol=1e-8)
    assert (table["verdict"] == "supported").all()
    assert table["share"].sum() == pytest.approx(1)


def test_a_recording_of_r_factors_has_the_same():
    _, path = trained(families=("weight_decay",))
    params = {"family": "weight_decay", "reference": "applied"}
    held = on_path(trajectory=path, **params).by_layer()
    plain = on_path(**params).by_layer()
    for column in ("coef", "r2", "share"):
        np.testing.assert_allclose(held[column], plain[column], rtol=1e-9)
    assert held["verdict"].tolist() == plain["verdict"].tolist()


def test_of_the_gradient_reference_with_its_nuisance():
    table = on_path().by_layer()
    assert "coef" in table
    assert list(table.index) == ["0", "2"]


def test_of_mlps_searches_and_skorch():
    skorch = pytest.importorskip("skorch")
    mlp = MLPRegressor(hidden_layer_sizes=(4, 3), alpha=0.1, max_iter=5, random_state=0)
    with pytest.warns(UserWarning, match="iterations"):
        mlp.fit(X_DIABETES, Y_DIABETES)
    assert list(fit(mlp).by_layer().index) == ["layers.0", "layers.1", "layers.2"]
    torch.manual_seed(0)
    net = skorch.NeuralNetRegressor(Net, max_epochs=1, verbose=0, train_split=None)
    net.fit(X.float().numpy(), Y.float().numpy())
    search = ImplicitRegularizationCV(net, families=["l2", "l1"])
    search.fit(X.float().numpy(), Y.float().numpy())
    assert list(search.by_layer().index) == list(STRENGTHS)


def test_a_tensor_in_no_module_is_a_layer_of_its_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(10, 1).double())

        def forward(self, x):
            return x @ self.scale

    assert list(analyzed(Own()).by_layer().index) == ["scale"]


def test_the_table_is_drawn(stationary):
    pytest.importorskip("matplotlib")
    display = CoefficientDisplay.from_frame(analyzed(stationary).by_layer())
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == list(STRENGTHS)
    assert display.ax_.get_xlabel() == "coefficient of l2"
    several = CoefficientDisplay.from_frame(analyzed(stationary, family="l2+l1").by_layer())
    assert [ax.get_xlabel() for ax in several.axes_] == ["coefficient of l2", "coefficient of l1"]
    with pytest.raises(ValueError, match="table of est.by_layer"):
        CoefficientDisplay.from_frame(analyzed(stationary).to_frame()[["coef"]])
    with pytest.raises(ValueError, match="table of est.by_layer"):
        CoefficientDisplay.from_frame(None)


def test_errors():
    with pytest.raises(ValueError, match="solved as a whole"):
        fit(family="diagonal").by_layer()
    with pytest.raises(ValueError, match="not pickled; fit again"):
        pickle.loads(pickle.dumps(fit())).by_layer()
    given = ImplicitRegularizationEstimator("precomputed").fit(np.ones((3, 1)), np.ones(3))
    with pytest.raises(ValueError, match="Expected a model with layers"):
        given.by_layer()
