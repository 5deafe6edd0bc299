"""Penalties on singular values: formulas against NumPy, one decomposition, zeros, frames."""

import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator, equations
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.inspection import PenaltyShapeDisplay
from sklearn_implicitreg.penalties import (
    FAMILIES,
    L1,
    L2,
    ConditionNumber,
    EffectiveDepth,
    Frame,
    LogDet,
    LogNormVariance,
    LogSpectralNorm,
    Nuclear,
    Penalty,
    Schatten,
    SpectralEntropy,
    SpectralGap,
    SpectralNorm,
    StableRank,
    check_penalty,
    spectra,
)
from sklearn_implicitreg.penalties.spectra import shared_decompositions
from sklearn_implicitreg.regression.design import Design
from sklearn_implicitreg.trajectory import record

RNG = np.random.default_rng(0)
W = {
    "a": RNG.normal(size=(4, 6)),
    "conv": RNG.normal(size=(5, 2, 3, 2)),
    "tall": RNG.normal(size=(6, 3)),
    "bias": RNG.normal(size=5),
}
MATRICES = [w.reshape(len(w), -1) for w in W.values() if w.ndim > 1]
SPECTRA = [np.linalg.svd(m, compute_uv=False) for m in MATRICES]
TENSORS = {name: torch.tensor(w) for name, w in W.items()}
NAMES = [name for name, cls in FAMILIES.items() if cls.__module__ == spectra.__name__]
FIRST = np.array([s[0] for s in SPECTRA])
LAST = np.array([s[-1] for s in SPECTRA])


def entropy(matrix):
    shares = np.linalg.eigvalsh(matrix @ matrix.T if len(matrix) < 5 else matrix.T @ matrix)
    shares = shares[shares > 1e-12] / np.trace(matrix @ matrix.T)
    return -(shares * np.log(shares)).sum()


def log_det(matrix):
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    return np.linalg.slogdet(gram + 0.01 * np.eye(len(gram)))[1]


EXPECTED = {
    "nuclear": sum(np.linalg.norm(m, "nuc") for m in MATRICES),
    "schatten": sum(np.trace(m @ m.T @ m @ m.T) for m in MATRICES),
    "log_det": sum(map(log_det, MATRICES)),
    "spectral_norm": sum(np.linalg.norm(m, 2) for m in MATRICES),
    "log_spectral_norm": np.log(np.prod(FIRST)),
    "stable_rank": sum(np.square(m).sum() / np.linalg.norm(m, 2) ** 2 for m in MATRICES),
    "spectral_entropy": sum(map(entropy, MATRICES)),
    "spectral_gap": sum(np.log(s[0] / s[1]) for s in SPECTRA),
    "condition_number": sum(np.linalg.cond(m) for m in MATRICES),
    "effective_depth": LAST.sum() / FIRST.sum(),
    "log_norm_variance": np.var(np.log(FIRST), ddof=1),
}


@pytest.mark.parametrize("name", NAMES)
class TestFormulas:
    def test_value(self, name):
        value = FAMILIES[name]().terms(TENSORS, None)
        assert list(value) == [name]
        assert float(value[name]) == pytest.approx(EXPECTED[name], rel=1e-10)

    def test_contract(self, name):
        check_penalty(FAMILIES[name](), TENSORS)
        with shared_decompositions():
            check_penalty(FAMILIES[name](), TENSORS)

    def test_second_derivatives_are_the_same_with_shared_decompositions(self, name):
        matrices = [TENSORS[own] for own in ("a", "tall")]

        def value(*tensors):
            return FAMILIES[name]().terms(dict(zip("uv", tensors, strict=True)), None)[name]

        plain = torch.autograd.functional.hessian(value, tuple(matrices))
        with shared_decompositions():
            shared = torch.autograd.functional.hessian(value, tuple(matrices))
        for one, other in zip(sum(plain, ()), sum(shared, ()), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)

    def test_columns_are_slopes_of_terms(self, name):
        """By central differences in every weight, and by autograd."""
        net, X, y = small_problem()
        problem = adapt(net, Data(X, y), Options(loss="mse", params="all"))
        params, penalty = problem.params, FAMILIES[name]()
        leaves = {n: t.clone().requires_grad_() for n, t in params.items()}
        value, design = penalty.terms(leaves, None)[name], Design.at(penalty, problem)
        exact = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        for (n, tensor), slope in zip(params.items(), exact, strict=True):
            columns = design.columns(n)
            torch.testing.assert_close(columns[:, 0], slope.reshape(-1), rtol=1e-11, atol=1e-13)
            for i in range(tensor.numel()):
                step = torch.zeros(tensor.numel()).double()
                step[i] = 1e-5
                step = step.reshape(tensor.shape)
                ahead = penalty.terms(params | {n: tensor + step}, None)[name]
                behind = penalty.terms(params | {n: tensor - step}, None)[name]
                assert float(ahead - behind) / 2e-5 == pytest.approx(float(columns[i]), 1e-6, 1e-7)

    def test_clone_repr_pickle(self, name):
        penalty = FAMILIES[name]()
        for other in (clone(penalty), pickle.loads(pickle.dumps(penalty)), eval(repr(penalty))):
            assert type(other) is type(penalty)
            assert other.terms(TENSORS, None) == penalty.terms(TENSORS, None)

    def test_no_matrix(self, name):
        with pytest.raises(ValueError, match="Expected a tensor for .* with two axes"):
            FAMILIES[name]().terms({"bias": TENSORS["bias"]}, None)

    def test_hard_matrices_give_numbers_or_an_error(self, name):
        """Zero, rank one, repeated singular values, one row: never NaN, never silent."""
        hard = [torch.zeros(3, 4), torch.ones(3, 4), torch.eye(3), torch.ones(1, 4)]
        for matrix in hard:
            params = {"hard": matrix.double(), "tall": TENSORS["tall"].clone()}
            leaves = [tensor.requires_grad_() for tensor in params.values()]
            try:
                value = FAMILIES[name]().terms(params, None)[name]
                slopes = torch.autograd.grad(value, leaves, materialize_grads=True)
            except ValueError as error:
                assert "leave it out by .on" in str(error)
            else:
                assert bool(value.isfinite())
                assert all(bool(slope.isfinite().all()) for slope in slopes)


def small_problem(net=None):
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    X, y = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    return net, X, y


def low_rank(rank=2, m=6, n=4):
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(m, rank, generator=generator)
    right = torch.randn(rank, n, generator=generator)
    return (left @ right).double()


def test_orthogonality_is_schatten_4_less_l2():
    """|W W' - I|^2 = sum s^4 - 2 sum s^2 + rows, where there are no more rows than columns."""
    w = W["a"]
    orthogonality = np.square(w @ w.T - np.eye(4)).sum()
    schatten = float(Schatten(4).terms({"a": TENSORS["a"]}, None)["schatten"])
    l2 = float(L2().terms({"a": TENSORS["a"]}, None)["l2"])
    assert schatten - 2 * l2 + 4 == pytest.approx(orthogonality, rel=1e-12)


@pytest.mark.parametrize("q", [0.5, 1, 1.5, 2, 3])
def test_schatten(q):
    value = float(Schatten(q).terms(TENSORS, None)["schatten"])
    assert value == pytest.approx(sum((s**q).sum() for s in SPECTRA), rel=1e-12)
    check_penalty(Schatten(q), {"w": TENSORS["a"]})
    if q in (1, 2, 3):  # powers of differences in between are too rough for the check
        check_penalty(Schatten(q), {"w": low_rank(), "v": torch.zeros(3, 2)})


class TestDecompositions:
    def fit(self, monkeypatch, names, net=None):
        count, decompose = [], torch.linalg.svd

        def counted(matrix, **options):
            count.append(tuple(matrix.shape))
            return decompose(matrix, **options)

        monkeypatch.setattr(torch.linalg, "svd", counted)
        monkeypatch.setattr(torch.linalg, "svdvals", None)
        net, X, y = small_problem(net)
        est = ImplicitRegularizationEstimator(net, family=names, loss="mse", covariance="hc3")
        est.fit(X, y)
        return count, est

    @pytest.mark.filterwarnings("ignore::sklearn_implicitreg.exceptions.CollinearTermsWarning")
    def test_one_for_each_matrix_and_fit(self, monkeypatch):
        count, _ = self.fit(monkeypatch, NAMES)
        assert sorted(count) == [(2, 6), (6, 4)]

    def test_float32(self, monkeypatch):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
        count, _ = self.fit(monkeypatch, ["stable_rank", "nuclear"], net.double().float())
        assert sorted(count) == [(2, 6), (6, 4)]

    def test_nothing_is_kept(self, monkeypatch):
        kept, remember = [], spectra._decomposed

        def watched(name, matrix):
            factors = remember(name, matrix)
            kept.append(weakref.ref(factors.left))
            return factors

        monkeypatch.setattr(spectra, "_decomposed", watched)
        _, est = self.fit(monkeypatch, ["nuclear", "log_det"])
        gc.collect()
        assert est.coef_.size == 2
        assert kept
        assert not any(ref() is not None for ref in kept)
        assert spectra._known.get() is None

    def test_a_changed_matrix_is_decomposed_again(self):
        matrix = TENSORS["a"].clone()
        with shared_decompositions():
            before = Nuclear().gradient("a", matrix)["nuclear"]
            matrix.mul_(-2)
            after = Nuclear().gradient("a", matrix)["nuclear"]
        torch.testing.assert_close(after, -before)

    def test_an_error_ends_the_sharing(self):
        with pytest.raises(ValueError, match="stop"), shared_decompositions():
            raise ValueError("stop")
        assert spectra._known.get() is None


class TestFrames:
    """Equations of a nuclear norm at a matrix of low rank, against NumPy."""

    def trained(self, coef=0.3):
        """A linear map at a minimum of |X W' - Y|^2 / n + coef |W|_*, X'X = n I in closed form."""
        generator = torch.Generator().manual_seed(3)
        X, _ = torch.linalg.qr(torch.randn(40, 6, generator=generator).double())
        X *= 40**0.5
        Y = X @ low_rank(2, 6, 4) + 0.1 * torch.randn(40, 4, generator=generator).double()
        left, sizes, right = torch.linalg.svd((X.T @ Y / 40).T, full_matrices=False)
        net = nn.Linear(6, 4, bias=False).double()
        # nn.MSELoss is the mean over 4 outputs: the gradient is (W - M) / 2.
        with torch.no_grad():
            net.weight.copy_((left * (sizes - 2 * coef).clamp(min=0)) @ right)
        return net, X, Y

    def fit(self, family, coef=0.3, **options):
        net, X, Y = self.trained(coef)
        return ImplicitRegularizationEstimator(net, family=family, loss="mse", **options).fit(X, Y)

    def test_closed_form(self):
        est = self.fit("nuclear")
        rank = int(torch.linalg.matrix_rank(self.trained()[0].weight))
        assert 0 < rank < 4
        assert est.coef_[0] == pytest.approx(0.3, abs=1e-12)
        assert est.r2_ == pytest.approx(1, abs=1e-12)
        assert est.verdict_ == "supported"
        n = (4 - rank) * (6 - rank)
        assert f"{n} coordinates at a kink" in " ".join(str(est.summary()).split())
        assert est._result.tested == (n, 0)
        assert est.n_equations_ == 24 - n

    def test_equations_are_those_of_numpy(self):
        net, X, Y = self.trained()
        data, target, _ = equations(net, X, Y, families="nuclear", loss="mse").values()
        w = net.weight.detach().numpy()
        u, s, vt = np.linalg.svd(w)
        rank = int((s > 1e-10).sum())
        g = ((X.numpy() @ w.T - Y.numpy()).T @ X.numpy()) * 2 / Y.numel()
        turned = np.abs(u.T @ -g @ vt.T)
        turned[rank:, rank:] = 0
        assert np.linalg.norm(target) == pytest.approx(np.linalg.norm(turned), rel=1e-12)
        assert np.square(data["nuclear"]).sum() == pytest.approx(rank)
        assert np.abs(data["nuclear"]).max() < 0.9  # no equation alone determines a coefficient
        labels = data.index.get_level_values("coordinate")
        assert labels[0] == "rotated (0, 0)"
        assert len(set(labels)) == len(labels)

    def test_reports_name_rotated_coordinates(self):
        net, X, Y = self.trained()
        noise = torch.randn(Y.shape, generator=torch.Generator().manual_seed(0))
        est = ImplicitRegularizationEstimator(net, family="nuclear", loss="mse")
        index = est.fit(X, Y + 0.1 * noise).influence(top=3).index
        assert all("rotated (" in str(label) for label in index)

    def test_a_violated_inequality_is_counted(self):
        net, X, Y = self.trained()
        # A target whose part outside of the singular spaces is too large for the coefficient.
        u, s, vt = torch.linalg.svd(net.weight.detach())
        Y = Y + 3 * X @ torch.outer(vt[-1], u[:, -1])
        est = ImplicitRegularizationEstimator(net, family="nuclear", loss="mse").fit(X, Y)
        assert est.coef_[0] == pytest.approx(0.3, abs=1e-12)
        assert est._result.tested.n_violated == 1
        assert s[-1] < 1e-12

    @pytest.mark.parametrize("tol", [1e-2, 0.3])
    def test_no_penalty_is_within_the_interval(self, tol):
        """Least squares, stopped a little short of the minimum in random directions."""
        covered, rotated = 0, 0
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            X = torch.randn(60, 6, generator=generator).double()
            Y = X @ low_rank(2, 6, 4) + torch.randn(60, 4, generator=generator).double()
            net = nn.Linear(6, 4, bias=False).double()
            away = 1e-3 * torch.randn(4, 6, generator=generator)
            with torch.no_grad():
                net.weight.copy_(torch.linalg.lstsq(X, Y).solution.T + away)
            est = ImplicitRegularizationEstimator(net, family=Nuclear(tol), loss="mse").fit(X, Y)
            covered += est.conf_int_[0, 0] < 0 < est.conf_int_[0, 1]
            rotated += est.n_equations_ < 24
        assert covered >= 34  # of 38 expected
        assert rotated == (40 if tol == 0.3 else 0)

    def test_known_part_is_rotated_too(self):
        est = self.fit(L2() + 0.1 * Nuclear())
        alone = self.fit(L2() + Nuclear())
        assert alone.coef_ == pytest.approx([0, 0.3], abs=1e-10)
        assert est.r2_ < 1

    def test_of_exponent_1_is_the_nuclear_norm(self):
        assert self.fit(Schatten(q=1)).coef_[0] == pytest.approx(0.3, abs=1e-12)

    def test_a_zero_matrix_gives_a_bound(self):
        net, X, Y = self.trained()
        with torch.no_grad():
            net.weight.zero_()
        bound = np.linalg.norm((Y.T @ X).numpy() * 2 / Y.numel(), 2)
        with pytest.raises(ValueError, match=rf"nuclear >= {bound:.6g}"):
            ImplicitRegularizationEstimator(net, family="nuclear", loss="mse").fit(X, Y)

    def test_along_a_trajectory(self):
        def train(rank):
            torch.manual_seed(0)
            net, penalty = nn.Linear(6, 4, bias=False).double(), Nuclear()
            with torch.no_grad():
                net.weight.copy_(low_rank(rank, 4, 6))
            _, X, Y = self.trained()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
            with record(net, optimizer) as path:
                for _ in range(12):
                    optimizer.zero_grad()
                    loss = nn.functional.mse_loss(net(X), Y)
                    (loss + 0.1 * penalty.terms({"w": net.weight}, None)["nuclear"]).backward()
                    optimizer.step()
            params = {"mode": "trajectory", "trajectory": path, "loss": "mse", "family": "nuclear"}
            return ImplicitRegularizationEstimator(net, **params).fit(X, Y)

        assert train(4).coef_[0] == pytest.approx(0.1, abs=1e-9)
        with pytest.raises(ValueError, match="along a trajectory.*lower the penalty's tol"):
            train(2)

    def test_errors_over_rows(self):
        """Columns without their part at the kink: the same coefficient, finite errors."""
        for covariance in ("sandwich", "hc3"):
            est = self.fit("nuclear", covariance=covariance)
            assert est.coef_[0] == pytest.approx(0.3, abs=1e-12)
            assert np.isfinite(est.std_err_).all()

    def test_the_penalty_has_no_shape(self):
        with pytest.raises(ValueError, match="in singular bases"):
            PenaltyShapeDisplay.from_estimator(self.fit("nuclear"))

    def test_masks_beside_frames(self):
        with pytest.raises(ValueError, match="zeros among its entries and among"):
            net, X, Y = self.trained()
            with torch.no_grad():
                net.weight[0] = 0
            family = Nuclear() + L1()
            ImplicitRegularizationEstimator(net, family=family, loss="mse").fit(X, Y)

    def test_two_frames(self):
        net, X, Y = self.trained()
        u, s, vt = torch.linalg.svd(net.weight.detach(), full_matrices=False)
        s[1] = 1e-2 * s[0]
        with torch.no_grad():
            net.weight.copy_((u * s) @ vt)
        problem = adapt(net, Data(X, Y), Options(loss="mse"))
        with pytest.raises(ValueError, match="two frames of bases"):
            Design.at(Nuclear(0.1) + Nuclear(1e-6), problem).pieces("weight")
        # The same frame of two penalties is one.
        pieces = Design.at(Nuclear(0.1) + Schatten(q=1, tol=0.1), problem).pieces("weight")
        assert pieces[0].frame.left.shape == (4, 4)


class Wrong(Penalty):
    """A frame whose mask leaves out no block."""

    def terms(self, params, problem):
        return {"wrong": sum(t.square().sum() for t in params.values())}

    def smooth(self, name, tensor):
        shape = tensor.flatten(1).shape if tensor.ndim > 1 else (len(tensor), 1)
        left, right = (torch.eye(n).double() for n in shape)
        mask = torch.ones(shape, dtype=torch.bool)
        mask.diagonal().fill_(False)
        return Frame(left, right, mask)


class Rough(Nuclear):
    """The nuclear norm without a word on its kink."""

    def smooth(self, name, tensor):
        return torch.ones_like(tensor, dtype=torch.bool)


def test_checks_of_frames():
    with pytest.raises(ValueError, match="leave out rows by columns"):
        check_penalty(Wrong())
    with pytest.raises(AssertionError, match="has a kink where"):
        check_penalty(Rough(), {"w": TENSORS["tall"]})
    check_penalty(Nuclear(), {"w": TENSORS["tall"]})


BAD = {
    "q of zero": (Schatten(q=0), "Expected q of Schatten"),
    "q below zero": (Schatten(q=-1), "Expected q of Schatten"),
    "tol of zero": (Nuclear(tol=0), "Expected tol of Nuclear"),
    "tol of one": (Nuclear(tol=1.0), "Expected tol of Nuclear"),
    "tol of Schatten": (Schatten(q=1, tol=2), "Expected tol of Schatten"),
    "eps": (LogDet(eps=0), "Expected eps of LogDet"),
    "a layer alone": (LogNormVariance().per("layer"), "Expected two matrices or more"),
    "one matrix": (LogNormVariance().on("0.weight"), "Expected two matrices or more"),
    "no matrix": (Nuclear().on("bias"), "Expected a tensor for Nuclear with two axes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    family, message = BAD[case]
    net, X, y = small_problem()
    with pytest.raises(ValueError, match=message):
        ImplicitRegularizationEstimator(net, family=family, loss="mse", params="all").fit(X, y)


UNDEFINED = {
    "log of zero": (LogSpectralNorm(), torch.zeros(6, 4)),
    "rank of zero": (StableRank(), torch.zeros(6, 4)),
    "entropy of zero": (SpectralEntropy(), torch.zeros(6, 4)),
    "gap at rank one": (SpectralGap(), torch.ones(6, 4)),
    "condition at rank one": (ConditionNumber(), torch.ones(6, 4)),
    "norm of zero": (SpectralNorm(), torch.zeros(6, 4)),
    "norm, repeated": (SpectralNorm(), torch.eye(6, 4)),
    "gap, repeated": (SpectralGap(), torch.eye(6, 4)),
    "depth, smallest zero": (EffectiveDepth(), torch.ones(6, 4)),
    "depth, repeated": (EffectiveDepth(), torch.eye(6, 4)),
    "variance, repeated": (LogNormVariance(), torch.eye(6, 4)),
}


@pytest.mark.parametrize("case", UNDEFINED)
def test_weights_without_a_derivative(case):
    family, weight = UNDEFINED[case]
    net, X, y = small_problem()
    with torch.no_grad():
        net[0].weight.copy_(weight)
    message = "Expected .*'0.weight'.*leave it out by .on"
    with pytest.raises(ValueError, match=message):
        ImplicitRegularizationEstimator(net, family=family, loss="mse").fit(X, y)
