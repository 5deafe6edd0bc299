"""Options of a fit of a module: dropout masks, precision, groups, scope, covariance."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from module_cases import X_, Y_, P, by_hand, digits, digits_net, dropout_net, estimate, l1, l2, mlp
from sklearn.base import clone
from torch import nn

from sklearn_implicitreg.exceptions import CollinearTermsWarning, ModelStateWarning


class TestDropout:
    def test_off_by_default(self):
        model = dropout_net().train()
        plain = nn.Sequential(model[0], model[1], model[3])
        assert estimate(model, X_, Y_).coef_ == estimate(plain, X_, Y_).coef_
        assert model.training and model[2].training

    def test_masks_by_a_seed(self):
        model = dropout_net()
        coefs = [
            estimate(model, X_, Y_, module_mode="train", random_state=s).coef_[0] for s in (0, 0, 1)
        ]
        assert coefs[0] == coefs[1] != coefs[2]
        assert coefs[0] != estimate(model, X_, Y_).coef_[0]

    def test_masks_of_a_random_state_instance(self):
        model = dropout_net()
        state = np.random.RandomState(0)
        a, b = (
            estimate(model, X_, Y_, module_mode="train", random_state=state).coef_ for _ in range(2)
        )
        assert a != b

    def test_the_mode_stands_in_the_summary(self):
        est = estimate(dropout_net(), X_, Y_, module_mode="train", random_state=0)
        assert "modules in training state" in str(est.summary())


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_coarse_models_are_cast_up(self, dtype):
        model = mlp(dtype)
        name = str(dtype).removeprefix("torch.")
        with pytest.warns(
            ModelStateWarning, match=f"stored in {name}, too coarse for gradients: th"
        ):
            found = estimate(model, X_, Y_)
        assert found.coef_ == estimate(copy.deepcopy(model).float(), X_, Y_).coef_
        assert all(p.dtype == dtype for p in model.parameters())

    def test_models_of_several_precisions(self):
        model = mlp(torch.float32)
        model[2].to(torch.bfloat16)
        with pytest.warns(ModelStateWarning, match="stored in bfloat16, too coarse"):
            found = estimate(model, X_, Y_)
        assert found.coef_ == estimate(copy.deepcopy(model).float(), X_, Y_).coef_
        wide = mlp(torch.float32)
        wide[0].double()
        assert estimate(wide, X_, Y_).coef_ == estimate(copy.deepcopy(wide).double(), X_, Y_).coef_

    @pytest.mark.parametrize("dtype", ["float64", torch.float64], ids=str)
    def test_wider_arithmetic(self, dtype):
        model = mlp(torch.float32)
        found = estimate(model, X_, Y_, dtype=dtype).coef_
        exact = estimate(copy.deepcopy(model).double(), X_, Y_).coef_
        np.testing.assert_allclose(found, exact, rtol=1e-12)
        assert all(p.dtype == torch.float32 for p in model.parameters())

    def test_unknown_dtype(self):
        with pytest.raises(ValueError, match=r"Expected dtype of .* or torch.float64, got 'int8'"):
            estimate(mlp(), X_, Y_, dtype="int8")

    def test_parameters_that_are_not_finite(self):
        model = mlp()
        with torch.no_grad():
            model[2].bias.fill_(torch.nan)
        with pytest.raises(ValueError, match=r"Expected finite trained parameters, .*\['2.bias'\]"):
            estimate(model, X_, Y_)

    @pytest.mark.parametrize("device", ["cuda:99", "mps", "xpu:3"])
    def test_device_that_is_not_there(self, device):
        with pytest.raises(ValueError, match=r"Expected a device that is there, one of \['cpu'"):
            estimate(mlp(), X_, Y_, device=device)

    def test_no_device(self):
        with pytest.raises(ValueError, match="Expected device of .* such as 'cpu' .*, got 'gpu'"):
            estimate(mlp(), X_, Y_, device="gpu")


class TestOptions:
    def test_groups(self):
        model = mlp()
        layers = estimate(model, X_, Y_, group_by="layer")
        assert layers.term_names_ == ["l2[0]", "l2[2]"]
        parts = [estimate(model, X_, Y_, params=rf"^{i}\.").coef_[0] for i in (0, 2)]
        np.testing.assert_allclose(layers.coef_, parts, rtol=1e-12)
        names = [n for n, _ in model.named_parameters()]
        by_dict = estimate(model, X_, Y_, group_by={n: n[0] for n in names})
        by_call = estimate(model, X_, Y_, group_by=lambda name, tensor: name[0])
        for other in (by_dict, by_call):
            assert other.term_names_ == layers.term_names_
            np.testing.assert_array_equal(other.coef_, layers.coef_)

    def test_group_of_an_optimizer_needs_one(self):
        with pytest.raises(
            ValueError, match="group_by='param_group' needs a model that knows its op"
        ):
            estimate(mlp(), X_, Y_, group_by="param_group")

    @pytest.mark.parametrize(
        ("params", "n"),
        [
            ("all", 43),
            ("auto", 36),
            ("weights", 36),
            (r"^2\.", 7),
            ("bias$", 7),
            (lambda name, tensor: tensor.numel() == 30, 30),
        ],
        ids=["all", "auto", "weights", "layer", "biases", "callable"],
    )
    def test_scope(self, params, n):
        est = estimate(mlp(), X_, Y_, params=params)
        assert est.n_equations_ == n

    def test_auto_leaves_normalizations_out(self):
        class Norm(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.norm = nn.Linear(P, 1), nn.LayerNorm((2, P))
                self.wide = nn.Linear(P, 2 * P)

            def forward(self, x):
                return self.fc(self.norm(self.wide(x).reshape(-1, 2, P))).sum(1)

        est = estimate(Norm(), X_, Y_, params="auto")
        assert est.n_equations_ == P + 2 * P * P
        vectors = nn.Sequential(nn.LayerNorm(P), nn.Flatten())
        assert estimate(vectors, X_, X_, params="auto").n_equations_ == 2 * P

    def test_scope_that_selects_nothing(self):
        with pytest.raises(ValueError, match="params='fc9' selects none of the trained parameters"):
            estimate(mlp(), X_, Y_, params="fc9")

    def test_known_penalty_moves_to_the_other_side(self):
        model = mlp()
        loss = F.mse_loss(model(torch.as_tensor(X_))[:, 0], torch.as_tensor(Y_))
        tensors = list(model.parameters())
        total = loss + 0.3 * 0.5 * l2(tensors)
        found = estimate(model, X_, Y_, family="l1", known={"weight_decay": 0.3}).coef_
        np.testing.assert_allclose(found, by_hand(model, total, [l1]), rtol=1e-11)

    def test_known_part_of_a_trained_penalty(self):
        model = digits_net("auto", 800, l2=1e-2)
        known = {"weight_decay": 1.5e-2}
        est = estimate(model, *digits(), loss="cross_entropy", params="auto", known=known)
        assert est.coef_[0] == pytest.approx(2.5e-3, rel=1e-4)

    def test_positive(self):
        model = mlp()
        free = estimate(model, X_, Y_, family=["l2", "l1", "power"])
        assert (free.coef_ < 0).any()
        held = estimate(model, X_, Y_, family=["l2", "l1", "power"], positive=True)
        assert (held.coef_ >= 0).all()
        assert held.r2_ <= free.r2_

    @pytest.mark.parametrize("covariance", ["auto", "ols", "nonrobust", "hc3", "cluster"])
    def test_covariances(self, covariance):
        est = estimate(mlp(), X_, Y_, family="l2+l1", covariance=covariance)
        assert np.isfinite(est.std_err_).all() and (est.std_err_ > 0).all()
        used = {"auto": "cluster", "nonrobust": "ols"}.get(covariance, covariance)
        assert f'"covariance": "{used}"' in est.to_json()

    def test_covariance_ols_is_that_of_statsmodels(self, sm):
        est = estimate(mlp(), X_, Y_, family="l2+l1", covariance="ols")
        design, target, _ = est._equations.frame()
        theirs = sm.OLS(target, design).fit()
        np.testing.assert_allclose(est.std_err_, theirs.bse, rtol=1e-10)
        hc3 = clone(est).set_params(covariance="hc3").fit(X_, Y_)
        np.testing.assert_allclose(hc3.std_err_, sm.OLS(target, design).fit("pinv", "HC3").bse)

    def test_dependent_terms_warn(self):
        model = digits_net("auto", 800, l2=1e-2)
        family, options = "l2+weight_decay", {"loss": "cross_entropy", "params": "auto"}
        with pytest.warns(CollinearTermsWarning, match=r"gradients of \['l2', 'weight_decay'\]"):
            est = estimate(model, *digits(), family=family, **options)
        assert est.verdict_ == "not identifiable"
        assert est.coef_ @ [1.0, 0.5] == pytest.approx(1e-2, rel=1e-3)
        # The shortest answer, where columns count by their norms.
        assert est.coef_[0] == pytest.approx(5e-3, rel=1e-3)

    def test_zero_gradient_is_no_signal(self):
        X = np.random.default_rng(0).normal(size=(200, P))
        y = X @ np.arange(1.0, P + 1) + 0.5 + np.random.default_rng(1).normal(size=200)
        design = np.column_stack([X, np.ones(200)])
        solution = np.linalg.lstsq(design, y, rcond=None)[0]
        model = nn.Linear(P, 1).double()
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(solution[:-1]))
            model.bias.fill_(solution[-1])
        est = estimate(model, X, y)
        assert est.verdict_ == "no signal"
        assert np.isnan(est.coef_).all()
        assert est.score(X, y) == 0.0

    def test_loss_that_ignores_the_parameters(self):
        with pytest.raises(
            ValueError, match="Expected a loss that depends on the trained parameters"
        ):
            estimate(mlp(), X_, Y_, loss=lambda o, t: (o.detach() - t).square())
