"""What a verdict calls for: code that runs, and that leads to a better verdict."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from cases import X_DIABETES, Y_DIABETES
from displays import fit, on_path, trained
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationCV,
    ImplicitRegularizationEstimator,
)
from sklearn_implicitreg.exceptions import CollinearTermsWarning
from sklearn_implicitreg.penalties import L2, Power, WeightDecay
from sklearn_implicitreg.regression.verdict import VERDICTS
from sklearn_implicitreg.results.next_steps import RULES
from sklearn_implicitreg.trajectory import record

X, Y = X_DIABETES, Y_DIABETES
INPUTS = torch.as_tensor(X * 20)
TARGETS = torch.as_tensor((Y - Y.mean()) / Y.std())[:, None]
MSE = nn.functional.mse_loss


def taken(est, *, step=0, times=1, X=None, y=None, **names):
    """The estimator after the code of a step, which is executed as it is printed."""
    for _ in range(times):
        space = {"est": est, "X": X, "y": y, **names}
        exec(compile(est.next_steps()[step].code, "<step>", "exec"), space)  # noqa: S102
        est = space["est"]
    return est


def new_net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 6), *layers, nn.Tanh(), nn.Linear(6, 1)).double()


def train(net, optimizers, n_epochs, added=lambda net: 0.0, recorder=None, decays=()):
    """A plain loop, with what is added to the loss of a batch."""
    for epoch in range(n_epochs):
        if decays:
            optimizers[0].param_groups[0]["weight_decay"] = decays[epoch]
        for rows in torch.randperm(len(INPUTS)).split(50):
            if recorder is not None:
                recorder.batch(rows)
            net.zero_grad()
            (MSE(net(INPUTS[rows]), TARGETS[rows]) + added(net)).backward()
            for optimizer in optimizers:
                optimizer.step()
        if recorder is not None:
            recorder.epoch()
    return net


def sgd(net, **settings):
    return torch.optim.SGD(net.parameters(), **({"lr": 0.05} | settings))


def endpoint(net, family="weight_decay", **params):
    est = ImplicitRegularizationEstimator(net, family=family, loss="mse", **params)
    return est.fit(INPUTS, TARGETS)


def recorded(optimizers, net, **kwargs):
    with record(net, optimizers) as recorder:
        train(net, optimizers, recorder=recorder, **kwargs)
    return recorder.trajectory


def along(net, path, **params):
    given = {"mode": "trajectory", "trajectory": path, "window": "epoch", "params": "all"}
    return endpoint(net, **(given | params))


# --- networks at an endpoint of SGD


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_trained_net_and_its_loader(shuffle):
    net = new_net()
    optimizer = sgd(net, weight_decay=0.02, momentum=0.9)
    train(net, [optimizer], 10)
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=50, shuffle=shuffle)
    est = ImplicitRegularizationEstimator(net, family="weight_decay", loss="mse").fit(loader)
    assert est.verdict_ in ("partial", "out of family", "no signal")
    code = est.next_steps()[0].code
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    assert "ContinueTraining" in code
    found = taken(est, X=loader, optimizer=optimizer)
    assert found.verdict_ == "supported"
    np.testing.assert_allclose(found.coef_, 0.02, rtol=1e-8)


@pytest.mark.parametrize("batch_size", [50, 10])
def test_rows_of_a_loader_are_not_read_for_every_step(batch_size):
    n_read = 0

    class Counted(TensorDataset):
        def __getitem__(self, row):
            nonlocal n_read
            n_read += 1
            return super().__getitem__(row)

    net = new_net()
    optimizer = sgd(net, weight_decay=0.02)
    with record(net, optimizer) as recorder:
        for rows in torch.arange(len(INPUTS)).split(batch_size):
            recorder.batch(rows)
            net.zero_grad()
            MSE(net(INPUTS[rows]), TARGETS[rows]).backward()
            optimizer.step()
        recorder.epoch()
    loader = DataLoader(Counted(INPUTS, TARGETS), batch_size=50)
    options = {"mode": "trajectory", "reference": "batch", "window": "epoch", "params": "all"}
    est = ImplicitRegularizationEstimator(
        net, family="weight_decay", loss="mse", trajectory=recorder.trajectory, **options
    ).fit(loader)
    np.testing.assert_allclose(est.coef_, 0.02, rtol=1e-8)
    assert n_read < 8 * len(INPUTS)  # 9 and 45 steps


@pytest.mark.parametrize("kind", ["float64", "float32", "labels", "tensors", "own loss"])
def test_a_trained_net_and_its_arrays(kind):
    rows, target, loss = X * 20, TARGETS.numpy()[:, 0], "mse"
    net = new_net()
    if kind == "float32":
        net, rows = net.float(), rows.astype(np.float32)
    elif kind == "labels":
        net[-1] = nn.Linear(6, 2).double()
        target, loss = (target > 0).astype(int), "cross_entropy"
    elif kind == "tensors":
        rows, target = INPUTS, TARGETS
    elif kind == "own loss":
        target, loss = TARGETS.numpy(), lambda output, target: (output - target).abs().sqrt()
    optimizer = sgd(net, weight_decay=0.02)
    for _ in range(5):
        for batch in torch.randperm(len(rows)).split(50):
            optimizer.zero_grad()
            out = net(torch.as_tensor(rows)[batch])
            if kind == "labels":
                value = nn.functional.cross_entropy(out, torch.as_tensor(target)[batch])
            else:
                value = MSE(out, torch.as_tensor(target)[batch].view_as(out).to(out.dtype))
            value.backward()
            optimizer.step()
    est = ImplicitRegularizationEstimator(net, family="weight_decay", loss=loss)
    est.fit(rows, target)
    assert est.verdict_ != "supported"
    found = taken(est, X=rows, y=target, optimizer=optimizer)
    assert found.verdict_ == "supported"
    np.testing.assert_allclose(found.coef_, 0.02, rtol=1e-3 if kind == "float32" else 1e-7)


def test_another_penalty_in_the_loss_of_a_net():
    def added(net):
        return 0.01 * sum(p.abs().sum() for p in net.parameters())

    net = new_net()
    train(net, [sgd(net)], 5, added)
    path = recorded([sgd(net)], net, n_epochs=3, added=added)
    est = along(net, path, family="l2")
    batch = taken(est, X=INPUTS, y=TARGETS)
    assert batch.reference == "batch"
    search = taken(batch, X=INPUTS, y=TARGETS)
    assert (search.best_name_, search.verdict_) == ("l1", "supported")
    np.testing.assert_allclose(search.coef_, 0.01, rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "params", "verdict"),
    [("l2", r"^0\.weight", "no signal"), ("l2+l1", "weight", "not identifiable")],
)
def test_layers_that_feed_a_normalization(family, params, verdict):
    net = new_net(nn.BatchNorm1d(6))
    optimizer = sgd(net, weight_decay=0.05)
    train(net, [optimizer], 15)
    est = endpoint(net, family, params=params, batch_size=50)
    assert est.verdict_ == verdict
    assert 'reference="applied"' in est.next_steps()[0].code
    found = taken(est, X=INPUTS, y=TARGETS, optimizer=optimizer)
    assert found.verdict_ == "supported"
    assert found.coef_[0] == pytest.approx(0.025, rel=1e-8)


@pytest.mark.parametrize(
    ("decay", "lr", "verdict"), [(0.2, 0.2, "not stationary"), (0.02, 0.05, "no signal")]
)
def test_evidence_against_an_endpoint(decay, lr, verdict):
    net = new_net()
    path = recorded([sgd(net, weight_decay=decay, lr=lr)], net, n_epochs=4)
    est = endpoint(net, trajectory=path, reference="batch")
    assert est.verdict_ == verdict
    notes = est.summary().notes
    assert any("trajectory= is evidence only, reference= is not used" in note for note in notes)
    found = taken(est, X=INPUTS, y=TARGETS)
    assert found.verdict_ == "supported"
    np.testing.assert_allclose(found.coef_, decay, rtol=1e-8)


def test_a_net_with_dropout_layers():
    net = new_net(nn.Dropout(0.3))
    optimizer = sgd(net, weight_decay=0.002)
    train(net, [optimizer], 20)
    est = endpoint(net)
    code = est.next_steps()[0].code
    assert "family=WeightDecay() + Dropout(0.3)" in code
    assert 'reference="batch"' in code
    torch.manual_seed(1)
    found = taken(est, X=INPUTS, y=TARGETS, optimizer=optimizer)
    assert found.verdict_ == "supported"
    assert found.coef_[1] == pytest.approx(1, abs=0.4)


def test_rates_of_several_layers_are_their_own():
    net = new_net(nn.Dropout(0.3), nn.Dropout(0.1))
    train(net, [sgd(net)], 2)
    assert "[est.family, Dropout()]" in endpoint(net, family="l1").next_steps()[0].code


# --- along a trajectory


@pytest.mark.parametrize(("decay", "reference"), [(0.02, "applied"), (0.0, "batch")])
def test_noise_of_the_gradient_reference(decay, reference):
    def added(net):
        return 0.0 if decay else 0.01 * sum(p.square().sum() for p in net.parameters())

    net = new_net()
    path = recorded([sgd(net, weight_decay=decay, lr=0.3)], net, n_epochs=3, added=added)
    est = along(net, path)
    assert est.verdict_ in ("partial", "out of family", "no signal")
    found = taken(est, X=INPUTS, y=TARGETS)
    assert (found.reference, found.verdict_) == (reference, "supported")
    np.testing.assert_allclose(found.coef_, 0.02, rtol=1e-8)


def test_a_penalty_that_the_optimizer_does_not_add():
    def added(net):
        return 0.01 * sum(p.square().sum() for p in net.parameters())

    net = new_net()
    path = recorded([sgd(net)], net, n_epochs=3, added=added)
    est = along(net, path, reference="applied")
    assert est.verdict_ == "no signal"
    found = taken(est, X=INPUTS, y=TARGETS)
    assert (found.reference, found.verdict_) == ("batch", "supported")


def test_a_decay_that_is_switched_on():
    net = new_net()
    decays = (0.0,) * 3 + (0.05,) * 4
    path = recorded([sgd(net)], net, n_epochs=7, decays=decays)
    est = along(net, path, reference="batch")
    assert est.verdict_ == "not constant"
    found = taken(est, X=INPUTS, y=TARGETS)
    assert found.verdict_ == "supported"
    np.testing.assert_allclose(found.coef_, 0.05, rtol=1e-8)


def test_two_optimizers_with_decays_of_their_own():
    net = new_net()
    optimizers = [
        torch.optim.SGD(net[0].parameters(), lr=0.05, weight_decay=0.02),
        torch.optim.Adam(net[2].parameters(), lr=0.01, weight_decay=0.2),
    ]
    path = recorded(optimizers, net, n_epochs=3)
    est = along(net, path, reference="batch")
    assert est.verdict_ != "supported"
    assert "group_by" in est.next_steps()[0].code
    found = taken(est, X=INPUTS, y=TARGETS)
    assert found.verdict_ == "supported"
    np.testing.assert_allclose(found.coef_, [0.02, 0.2], rtol=1e-8)


def test_a_recording_of_r_factors_cannot_be_cut_or_searched():
    _, path = trained(families=("weight_decay",))
    est = on_path(trajectory=path, reference="applied")
    assert est.verdict_ == "not constant"
    for step in est.next_steps():
        exec(step.code, {"est": est})  # noqa: S102


# --- skorch


def test_a_skorch_net_with_a_decay():
    skorch = pytest.importorskip("skorch")
    rows, target = INPUTS.float().numpy(), TARGETS.float().numpy()
    net = skorch.NeuralNetRegressor(
        new_net().float(), max_epochs=5, verbose=0, lr=0.05, optimizer__weight_decay=0.02,
    ).fit(rows, target)  # fmt: skip
    est = ImplicitRegularizationEstimator(net, family="weight_decay").fit(rows, target)
    assert est.verdict_ != "supported"
    step = est.next_steps()[0]
    assert 'reference="applied"' in step.code
    assert "no pass over the data" in step.cost
    found = taken(est, X=rows, y=target)
    assert found.verdict_ == "supported"
    np.testing.assert_allclose(found.coef_, 0.02, rtol=1e-3)
    assert taken(found, X=rows, y=target).verdict_ == "supported"


# --- linear models


def test_another_family_of_a_linear_model():
    est = fit(Lasso(alpha=0.5, tol=1e-12, max_iter=100_000).fit(X, Y), family="l2")
    assert est.verdict_ != "supported"
    found = taken(est, X=X, y=Y)
    assert (found.best_name_, found.verdict_) == ("l1", "supported")


@pytest.mark.parametrize("tol", [0.1, 0.01])
def test_a_solver_that_stopped_early(tol):
    est = fit(Ridge(1.0, solver="sag", tol=tol, random_state=0).fit(X, Y))
    assert est.verdict_ != "supported"
    titles = [step.title for step in est.next_steps()]
    found = taken(est, step=titles.index("Train the model to its end"), X=X, y=Y)
    assert found.verdict_ == "supported"
    assert found.in_model_units()["alpha"] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    "family", ["l2 + weight_decay", ["l2", WeightDecay()], L2() + WeightDecay()], ids=str
)
def test_terms_that_are_dependent(family):
    with pytest.warns(match="linearly dependent"):
        est = fit(Ridge(3.0).fit(X, Y), family=family)
    assert est.verdict_ == "not identifiable"
    found = taken(est, X=X, y=Y)
    assert found.verdict_ == "supported"
    assert len(found.cv_results_["name"]) == 2


def test_a_matrix_of_one_endpoint():
    est = fit(Ridge(5.0).fit(X, Y), family="quadratic")
    assert est.verdict_ == "not identifiable"
    found = taken(est, X=X, y=Y)
    assert found.verdict_ == "supported"


def test_endpoints_of_different_strengths():
    ends = [Endpoint(Ridge(alpha).fit(X, Y), X, Y) for alpha in (1.0, 1.0, 5.0, 5.0, 9.0)]
    est = ImplicitRegularizationEstimator(None).fit(ends)
    assert est.verdict_ == "not constant"
    space = {"est": est, "X": ends}
    exec(est.next_steps()[0].code, space)  # noqa: S102
    assert space["verdicts"] == ["supported"] * 5


@pytest.mark.parametrize("family", ["l2", "quadratic", "l2+weight_decay"])
def test_a_list_of_one_endpoint(family):
    ends = [Endpoint(Lasso(alpha=0.5, tol=1e-12, max_iter=100_000).fit(X, Y), X, Y)]
    est = ImplicitRegularizationEstimator(None, family=family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollinearTermsWarning)
        est.fit(ends)
        for step in est.next_steps():
            exec(step.code, {"est": est, "X": ends})  # noqa: S102


def test_a_supported_penalty_is_stated():
    est = fit(Ridge(3.0).fit(X, Y))
    space = {"est": est}
    exec(est.next_steps()[0].code, space)  # noqa: S102
    assert space["explicit"].alpha == pytest.approx(3.0)
    net = new_net()
    path = recorded([sgd(net, weight_decay=0.02)], net, n_epochs=2)
    found = along(net, path, reference="applied")
    exec(found.next_steps()[0].code, space | {"est": found, "model": net})  # noqa: S102
    assert "est.by_layer()" in found.next_steps()[1].code


def test_no_gradient_at_all():
    est = fit(LinearRegression().fit(X, Y))
    assert est.verdict_ == "no signal"
    assert [step.cost for step in est.next_steps()] == ["none"]


def test_other_rows():
    low = Y < np.median(Y)
    est = ImplicitRegularizationEstimator(Ridge(1.0).fit(X, Y)).fit(X[low], Y[low])
    assert est.next_steps()[0].title == "Give fit the rows of the training"


# --- everything else


def test_as_many_coefficients_as_equations():
    model = Ridge(1.0).fit(X[:, :2], Y)
    est = ImplicitRegularizationEstimator(model, family="l1+l2").fit(X[:, :2], Y)
    assert est.verdict_ == "partial"
    assert taken(est, X=X[:, :2], y=Y).verdict_ == "supported"


@pytest.mark.parametrize("named", [False, True])
def test_of_a_search(named):
    asked = {"own": "l1", "power": Power(3.0)} if named else ["l1", Power(3.0)]
    search = ImplicitRegularizationCV(
        ElasticNet(alpha=0.01, tol=1e-12, max_iter=100_000).fit(X, Y), families=asked
    ).fit(X, Y)
    assert search.verdict_ != "supported"
    assert "Next: " in str(search.summary())
    titles = [step.title for step in search.next_steps()]
    found = taken(search, step=titles.index("Search other families"), X=X, y=Y)
    assert found.verdict_ == "supported"
    names = ["own", "power"] if named else ["l1", "Power(q=3.0)"]
    assert list(found.cv_results_["name"])[:2] == names  # those of the search are asked again


@pytest.mark.parametrize(("family", "asked"), [("spline", True), ("l2", False)])
def test_a_curve_is_asked_for_equations_left_out(family, asked):
    steps = fit(Ridge(0.1).fit(X, Y), family=family).next_steps()
    assert any("held_out_r2" in step.code for step in steps) == asked


def test_in_a_pipeline_and_unpickled():
    model = make_pipeline(StandardScaler(), Lasso(alpha=0.5)).fit(X, Y)
    est = fit(model, family="l2")
    again = pickle.loads(pickle.dumps(est))
    assert [step.title for step in again.next_steps()] == [s.title for s in est.next_steps()]
    assert taken(again, X=X, y=Y).best_name_ == "l1"


def test_of_given_equations():
    rng = np.random.default_rng(0)
    design = rng.normal(size=(40, 2))
    target = design @ [1.0, 2.0] + rng.normal(size=40)
    est = ImplicitRegularizationEstimator("precomputed").fit(design, target)
    assert est.verdict_ == "partial"
    exec(est.next_steps()[0].code, {"est": est})  # noqa: S102


@pytest.mark.parametrize(
    ("base", "recorder"),
    [("PreTrainedModel", "TransformersRecorder"), ("LightningModule", "LightningRecorder")],
)
def test_libraries_are_recognized_by_name(base, recorder):
    kind = type(base, (nn.Module,), {})
    net = type("Own", (kind,), {"forward": lambda self, x: self.inner(x)})()
    net.inner = new_net()
    step = endpoint(net).next_steps()[0]
    assert recorder in step.code
    compile(step.code, "<step>", "exec")


def test_every_verdict_has_a_rule():
    assert {verdict for rule in RULES for verdict in rule.verdicts} == set(VERDICTS)


def test_text_and_html():
    steps = fit(Lasso(alpha=0.5).fit(X, Y), family="l2").next_steps()
    text = repr(steps)
    assert len(steps) == len(steps.steps) == len(list(steps))
    for title, why, code, cost in steps:
        assert title in text.replace("\n   ", " ")
        assert cost in text.replace("\n   ", " ")
        assert why.split()[0] in text
        assert code.splitlines()[0] in text
        assert "{" not in title + why + cost
    assert steps._repr_html_().count("<li>") == len(steps)


def test_the_summary_ends_with_the_first_step():
    est = fit(Lasso(alpha=0.5).fit(X, Y), family="l2")
    steps = est.next_steps()
    last = f"Next: {steps[0].title} (est.next_steps())."
    where = f"What {steps.verdict!r} means: doc/trust.md#{steps.verdict.replace(' ', '-')}."
    summary = est.summary()
    assert " ".join(str(summary).split()).endswith(f"{last} {where}")
    assert last in summary._repr_html_()
    assert "est.next\\_steps()" in summary.as_latex()


def test_unused_parameters_of_an_endpoint_are_noted():
    est = fit(reference="batch", window=3)
    assert any("reference= and window= are not used" in note for note in est.summary().notes)
    whole = fit(family="diagonal", window="epoch")
    assert any("window= is not used" in note for note in whole.summary().notes)
    assert not any("not used" in note for note in fit().summary().notes)
