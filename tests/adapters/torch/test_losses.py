"""Losses of modules: the mean that torch takes, row by row, for every kind of target."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.adapters import Data, Options, adapt
from sklearn_implicitreg.adapters.torch.criteria import LOSSES, resolve_loss
from sklearn_implicitreg.endpoints.targets import EndpointTargets
from sklearn_implicitreg.exceptions import OutputWarning

N, C, T = 12, 3, 5
RNG = np.random.default_rng(0)
WEIGHT = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)


def normal(*shape):
    return torch.as_tensor(RNG.normal(size=shape))


def labels(*shape, n=C):
    return torch.as_tensor(RNG.integers(n, size=shape))


def soft(*shape):
    return torch.softmax(normal(*shape), 1)


def with_ignored(target, value=-100):
    target = target.clone()
    target.reshape(-1)[::4] = value
    return target


def mean_of(row_loss, output, target, weight=None):
    total, denominator = row_loss(output, row_loss.prepare(output, target), weight)
    return total / denominator


def in_two_parts(row_loss, output, target):
    """Mean over all rows from two batches of unequal size."""
    parts = [row_loss(output[s], row_loss.prepare(output[s], target[s]), None)
             for s in (slice(0, 5), slice(5, None))]  # fmt: skip
    return sum(total for total, _ in parts) / sum(weight for _, weight in parts)


# Loss, outputs, targets; the truth is the loss itself with torch's own reduction.
CASES = {
    "mse": (nn.MSELoss(), normal(N, C), normal(N, C)),
    "mse of 1-D": (nn.MSELoss(), normal(N), normal(N)),
    "mae": (nn.L1Loss(), normal(N, C), normal(N, C)),
    "huber": (nn.HuberLoss(delta=0.3), normal(N, C), normal(N, C)),
    "smooth l1": (nn.SmoothL1Loss(beta=0.3), normal(N, C), normal(N, C)),
    "poisson": (nn.PoissonNLLLoss(), normal(N, C), labels(N, C, n=6).double()),
    "poisson of rates": (
        nn.PoissonNLLLoss(log_input=False, full=True),
        normal(N, C).exp(),
        labels(N, C, n=6).double(),
    ),
    "soft margin": (nn.SoftMarginLoss(), normal(N, C), 2.0 * labels(N, C, n=2) - 1),
    "kl": (nn.KLDivLoss(), torch.log_softmax(normal(N, C), 1), soft(N, C)),
    "kl of logs": (
        nn.KLDivLoss(log_target=True),
        torch.log_softmax(normal(N, C), 1),
        soft(N, C).log(),
    ),
    "multi margin": (nn.MultiMarginLoss(), normal(N, C), labels(N)),
    "multi margin weighted": (nn.MultiMarginLoss(weight=WEIGHT), normal(N, C), labels(N)),
    "multi label": (
        nn.MultiLabelSoftMarginLoss(weight=WEIGHT),
        normal(N, C),
        labels(N, C, n=2).double(),
    ),
    "bce": (nn.BCELoss(), torch.sigmoid(normal(N, C)), labels(N, C, n=2).double()),
    "bce of probabilities": (nn.BCELoss(), torch.sigmoid(normal(N)), torch.sigmoid(normal(N))),
    "bce with logits": (nn.BCEWithLogitsLoss(), normal(N, C), labels(N, C, n=2).double()),
    "bce pos_weight": (
        nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
        normal(N, C),
        labels(N, C, n=2).double(),
    ),
    "bce weight": (nn.BCEWithLogitsLoss(weight=WEIGHT), normal(N, C), labels(N, C, n=2).double()),
    "nll": (nn.NLLLoss(), torch.log_softmax(normal(N, C), 1), labels(N)),
    "nll weighted": (nn.NLLLoss(weight=WEIGHT), torch.log_softmax(normal(N, C), 1), labels(N)),
    "nll tokens": (
        nn.NLLLoss(weight=WEIGHT, ignore_index=7),
        torch.log_softmax(normal(N, C, T), 1),
        with_ignored(labels(N, T), 7),
    ),
    "ce": (nn.CrossEntropyLoss(), normal(N, C), labels(N)),
    "ce weighted": (nn.CrossEntropyLoss(weight=WEIGHT), normal(N, C), labels(N)),
    "ce ignored": (nn.CrossEntropyLoss(), normal(N, C), with_ignored(labels(N))),
    "ce ignored class": (nn.CrossEntropyLoss(ignore_index=1), normal(N, C), labels(N)),
    "ce weighted ignored smoothed": (
        nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1),
        normal(N, C),
        with_ignored(labels(N)),
    ),
    "ce tokens": (nn.CrossEntropyLoss(), normal(N, C, T), labels(N, T)),
    "ce tokens weighted ignored": (
        nn.CrossEntropyLoss(weight=WEIGHT),
        normal(N, C, T),
        with_ignored(labels(N, T)),
    ),
    "ce images": (nn.CrossEntropyLoss(weight=WEIGHT), normal(N, C, 2, 3), labels(N, 2, 3)),
    "ce soft": (nn.CrossEntropyLoss(), normal(N, C), soft(N, C)),
    "ce soft weighted": (nn.CrossEntropyLoss(weight=WEIGHT), normal(N, C), soft(N, C)),
    "ce soft tokens": (nn.CrossEntropyLoss(), normal(N, C, T), soft(N, C, T)),
}
# Where torch's "mean" is not the mean over rows and outputs: KLDivLoss says so itself.
QUIET = pytest.mark.filterwarnings("ignore:reduction:UserWarning")


@QUIET
@pytest.mark.parametrize("name", CASES)
class TestMean:
    def test_is_that_of_torch(self, name):
        loss, output, target = CASES[name]
        expected = loss(output, target)
        ours = mean_of(resolve_loss(loss), output, target)
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=0)

    def test_does_not_depend_on_batches(self, name):
        loss, output, target = CASES[name]
        ours = in_two_parts(resolve_loss(loss), output, target)
        torch.testing.assert_close(ours, loss(output, target), rtol=1e-13, atol=0)

    def test_weights_repeat_rows(self, name):
        loss, output, target = CASES[name]
        weight = torch.arange(N) % 3
        again = torch.repeat_interleave(torch.arange(N), weight)
        expected = loss(output[again], target[again])
        ours = mean_of(resolve_loss(loss), output, target, weight.double())
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=0)

    def test_leaves_the_loss_as_it_is(self, name):
        loss, output, target = CASES[name]
        before = {key: str(value) for key, value in vars(loss).items()}
        mean_of(resolve_loss(loss), output, target)
        assert {key: str(value) for key, value in vars(loss).items()} == before


@pytest.mark.parametrize("name", LOSSES)
def test_every_named_loss_is_that_of_torch(name):
    case = {"poisson_nll": "poisson", "cross_entropy": "ce", "bce_with_logits": "bce with logits"}
    _, output, target = CASES[case.get(name, name)]
    expected = LOSSES[name]()(output, target)
    torch.testing.assert_close(mean_of(resolve_loss(name), output, target), expected)


class TestSums:
    """A summed loss is divided by the total weight of the rows."""

    @pytest.mark.parametrize("name", ["mse", "mae", "huber", "bce with logits", "bce pos_weight",
                                      "poisson", "mse of 1-D", "ce", "ce soft"])  # fmt: skip
    def test_divided_by_rows(self, name):
        loss, output, target = CASES[name]
        summed = type(loss)(reduction="sum", **own_options(loss))
        expected = summed(output, target) / N
        torch.testing.assert_close(mean_of(resolve_loss(summed), output, target), expected)

    def test_class_weights_are_weights_of_rows(self):
        loss = nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum")
        output, target = normal(N, C), labels(N)
        expected = loss(output, target) / WEIGHT[target].sum()
        torch.testing.assert_close(mean_of(resolve_loss(loss), output, target), expected)

    def test_tokens_are_rows(self):
        loss = nn.CrossEntropyLoss(reduction="sum")
        output, target = normal(N, C, T), with_ignored(labels(N, T))
        expected = loss(output, target) / (target != -100).sum()
        torch.testing.assert_close(mean_of(resolve_loss(loss), output, target), expected)

    def test_batchmean(self):
        loss = nn.KLDivLoss(reduction="batchmean")
        _, output, target = CASES["kl"]
        ours = mean_of(resolve_loss(loss), output, target)
        torch.testing.assert_close(ours, loss(output, target), rtol=1e-13, atol=0)

    def test_without_reduction_is_a_mean(self):
        _, output, target = CASES["mse"]
        ours = mean_of(resolve_loss(nn.MSELoss(reduction="none")), output, target)
        torch.testing.assert_close(ours, F.mse_loss(output, target))


def own_options(loss):
    names = {"HuberLoss": ["delta"], "BCEWithLogitsLoss": ["pos_weight"]}
    return {name: getattr(loss, name) for name in names.get(type(loss).__name__, [])}


class TestCallables:
    def test_mean(self):
        output, target = normal(N, C), normal(N, C)
        row_loss = resolve_loss(lambda o, t: (o - t).pow(4).mean())
        torch.testing.assert_close(
            mean_of(row_loss, output, target), (output - target).pow(4).mean()
        )
        total, weight = row_loss(output, target, None)
        assert weight == N

    def test_one_number_per_row(self):
        output, target, weight = normal(N, C), normal(N, C), torch.rand(N, dtype=torch.float64)
        row_loss = resolve_loss(lambda o, t: (o - t).pow(4).sum(1))
        per_row = (output - target).pow(4).sum(1)
        torch.testing.assert_close(mean_of(row_loss, output, target), per_row.mean())
        expected = (weight * per_row).sum() / weight.sum()
        torch.testing.assert_close(mean_of(row_loss, output, target, weight), expected)

    def test_functions_of_torch(self):
        output, target = normal(N, C), labels(N)
        for given in (target, target.int(), target.short()):
            ours = mean_of(resolve_loss(F.cross_entropy), output, given)
            torch.testing.assert_close(ours, F.cross_entropy(output, target))

    def test_own_module(self):
        class Focal(nn.Module):
            def forward(self, output, target):
                p = torch.log_softmax(output, 1).gather(1, target[:, None])[:, 0]
                return -((1 - p.exp()) ** 2 * p)

        output, target = normal(N, C), labels(N)
        row_loss = resolve_loss(Focal())
        assert row_loss.words == "Focal, mean over rows"
        torch.testing.assert_close(
            mean_of(row_loss, output, target), Focal()(output, target).mean()
        )

    def test_mean_with_sample_weight(self):
        output, target = normal(N), normal(N)
        row_loss = resolve_loss(lambda o, t: (o - t).square().mean())
        for weight in (torch.full((N,), 0.5), (torch.arange(N) % 3).double()):
            expected = (weight * (output - target).square()).sum() / weight.sum()
            torch.testing.assert_close(mean_of(row_loss, output, target, weight), expected)

    def test_mean_with_a_weight_for_every_row(self):
        row_loss, many = resolve_loss(lambda o, t: (o - t).mean()), normal(80)
        with pytest.raises(ValueError, match=r"one number per row to go with sample_weight, got a"):
            mean_of(row_loss, many, many, torch.arange(80.0))

    def test_other_shapes(self):
        row_loss = resolve_loss(lambda o, t: torch.ones(3))
        with pytest.raises(ValueError, match=r"one number for each of 12 rows, got shape \(3,\)"):
            mean_of(row_loss, normal(N), normal(N))

    def test_no_tensor(self):
        with pytest.raises(TypeError, match="Expected the loss to return a Tensor, got float"):
            mean_of(resolve_loss(lambda o, t: 1.0), normal(N), normal(N))

    def test_outputs_without_rows(self):
        with pytest.raises(
            TypeError, match="Expected Tensor outputs with one entry per row, got d"
        ):
            mean_of(resolve_loss(lambda o, t: torch.ones(())), {"a": 1}, {"b": 2})

    def test_structured_outputs_and_targets_are_passed_on(self):
        row_loss = resolve_loss(lambda o, t: (o["a"] - t["b"]).square())
        output, target = {"a": normal(N)}, {"b": normal(N)}
        ours = mean_of(row_loss, output, target)
        torch.testing.assert_close(ours, F.mse_loss(output["a"], target["b"]))
        row_loss = resolve_loss(lambda o, t: (o[0] - t["b"]).square())
        ours = mean_of(row_loss, (output["a"], None), target)
        torch.testing.assert_close(ours, F.mse_loss(output["a"], target["b"]))

    def test_structured_outputs_need_a_callable(self):
        with pytest.raises(
            TypeError, match="Expected the module to return one Tensor for the loss"
        ):
            mean_of(resolve_loss("mse"), (normal(N),), normal(N))


class TestResolve:
    @pytest.mark.parametrize("loss", ["auto", None])
    def test_a_bare_module_needs_one(self, loss):
        with pytest.raises(ValueError, match="does not say what it was trained with: give `loss=`"):
            resolve_loss(loss)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="Unknown loss 'crossentropy'; expected one of") as e:
            resolve_loss("crossentropy")
        assert "Did you mean 'cross_entropy'?" in str(e.value)

    @pytest.mark.parametrize("loss", [nn.MSELoss, 3], ids=["class", "number"])
    def test_not_a_loss(self, loss):
        with pytest.raises(TypeError, match="an nn loss instance or a callable"):
            resolve_loss(loss)

    @pytest.mark.parametrize(
        ("loss", "words"),
        [
            ("mse", "squared error (no 1/2), mean over rows and outputs"),
            (nn.MSELoss(reduction="sum"), "squared error (no 1/2), summed over outputs, mean over"),
            ("cross_entropy", "cross-entropy, mean over rows"),
            (
                nn.CrossEntropyLoss(WEIGHT),
                "cross-entropy, mean over rows, class weights divided ou",
            ),
            ("huber", "HuberLoss, mean over rows"),
            (nn.MultiMarginLoss(weight=WEIGHT), "MultiMarginLoss, mean over rows"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_words(self, loss, words):
        assert resolve_loss(loss).words.startswith(words)

    def test_the_words_stand_in_the_summary(self):
        X, y = np.ones((9, 2)), np.arange(9.0)
        est = ImplicitRegularizationEstimator(nn.Linear(2, 1), loss="mse").fit(X, y)
        assert "squared error (no 1/2), mean over rows and outputs" in str(est.summary())


class Table(nn.Module):
    """Outputs that do not look at the rows' numbers, only at their count: all from weights."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(normal(4, int(np.prod(shape)) if shape else 1))
        self.shape = shape

    def forward(self, x):
        return (x @ self.weight).reshape(len(x), *self.shape)


def gradient(loss, y, *shape):
    """Gradient of a small linear module, by the library."""
    module = Table(*shape)
    X = np.random.default_rng(3).normal(size=(len(y), 4))
    problem = adapt(module, Data(X, y), Options(loss=loss))
    found = problem.gradient()
    return module, torch.as_tensor(X), found.value["weight"]


def exact(module, loss):
    return torch.autograd.grad(loss, module.weight)[0]


CODES = np.array([0, 2, 1, 1, 0, 2, 2, 1, 0, 1])
BINARY = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 1])


class TestLabels:
    @pytest.mark.parametrize(
        "y",
        [
            CODES,
            CODES.astype(np.int32),
            CODES.astype(np.uint8),
            CODES.astype(float),
            CODES[:, None],
            CODES + 1,
            CODES * 10 - 10,
            np.array(["ant", "bee", "cat"])[CODES],
            np.array(["ant", "bee", "cat"], dtype=object)[CODES],
            pd.Series(["ant", "bee", "cat"])[CODES],
            pd.Series(pd.Categorical(np.array(["ant", "bee", "cat"])[CODES])),
            list(CODES),
            torch.as_tensor(CODES),
            torch.as_tensor(CODES + 1),
        ],
        ids=["int", "int32", "uint8", "float", "column", "from 1", "-10..10", "names", "objects",
             "Series", "categories", "list", "tensor", "tensor from 1"],
    )  # fmt: skip
    def test_classes(self, y):
        module, X, ours = gradient("cross_entropy", y, 3)
        expected = exact(module, F.cross_entropy(module(X), torch.as_tensor(CODES)))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize(
        "y",
        [
            BINARY,
            BINARY.astype(bool),
            BINARY.astype(float),
            BINARY[:, None],
            2 * BINARY - 1,
            BINARY + 1,
            np.array(["no", "yes"])[BINARY],
            torch.as_tensor(BINARY.astype(bool)),
        ],
        ids=["int", "bool", "float", "column", "-1 and 1", "1 and 2", "names", "bool tensor"],
    )
    @pytest.mark.parametrize("shape", [(), (1,)], ids=["(n,)", "(n, 1)"])
    def test_binary(self, y, shape):
        module, X, ours = gradient("bce_with_logits", y, *shape)
        target = torch.as_tensor(BINARY).double().reshape(len(BINARY), *shape)
        expected = exact(module, F.binary_cross_entropy_with_logits(module(X), target))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("y", [BINARY.astype(bool), BINARY + 1], ids=["bool", "1 and 2"])
    def test_binary_labels_with_two_outputs(self, y):
        module, X, ours = gradient("cross_entropy", y, 2)
        expected = exact(module, F.cross_entropy(module(X), torch.as_tensor(BINARY)))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("offset", [0, 1], ids=["from 0", "from 1"])
    def test_ignored_labels_are_no_class(self, offset):
        y, target = CODES + offset, torch.as_tensor(CODES.copy())
        y[1::4] = target[1::4] = -100
        module, X, ours = gradient("cross_entropy", y, 3)
        expected = exact(module, F.cross_entropy(module(X), target))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)

    def test_rows_that_complete_a_fit_are_numbered_like_it(self):
        module, X, _ = gradient("cross_entropy", CODES, 3)
        part = np.flatnonzero(CODES > 0)
        expected = exact(module, F.cross_entropy(module(X[part]), torch.as_tensor(CODES[part])))
        for y in (CODES, CODES + 1, np.array(["ant", "bee", "cat"])[CODES]):
            options = Options(loss="cross_entropy")
            fitted = adapt(module, Data(X, y), options)
            targets = EndpointTargets((fitted,))
            (rest,) = targets.completing(adapt(module, Data(X[part], y[part]), options))
            torch.testing.assert_close(rest.value["weight"], expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("low", [1, -1], ids=["1 and 2", "-1 and 1"])
    def test_rows_of_one_class_are_numbered_like_the_fit(self, low):
        y = np.where(BINARY == 1, low + (2 if low < 0 else 1), low)
        module, X, _ = gradient("bce_with_logits", BINARY)
        options = Options(loss="bce_with_logits")
        fitted = adapt(module, Data(X, y), options)
        targets = EndpointTargets((fitted,))
        for code in (0, 1):
            part = np.flatnonzero(BINARY == code)
            target = torch.full((len(part),), float(code), dtype=torch.float64)
            loss = F.binary_cross_entropy_with_logits(module(X[part]), target)
            (rest,) = targets.completing(adapt(module, Data(X[part], y[part]), options))
            torch.testing.assert_close(rest.value["weight"], exact(module, loss))

    @pytest.mark.parametrize("y", [CODES + 1, np.array(["ant", "bee", "cat"])[CODES]])
    def test_new_labels_in_rows_that_complete_a_fit(self, y):
        module, X, _ = gradient("cross_entropy", CODES, 3)
        options = Options(loss="cross_entropy")
        fitted = adapt(module, Data(X, y), options)
        targets = EndpointTargets((fitted,))
        new = y.copy()
        new[0] = 9 if y.dtype.kind == "i" else "dog"
        with pytest.raises(
            ValueError, match=r"Expected the labels of the fitted rows, .* got also"
        ):
            targets.completing(adapt(module, Data(X, new), options))

    @pytest.mark.parametrize(
        ("y", "n_outputs", "text"),
        [
            (CODES * 5, 4, r"in 0\.\.3 for 4 outputs, got \[0, 5, 10\]; encode y"),
            (CODES - 1, 2, r"in 0\.\.1 for 2 outputs, got \[-1, 0, 1\]; encode y"),
            (np.array(["a", "b", "c"])[CODES], 4, r"for 4 outputs, got names of 3; encode y"),
            (CODES + 0.5, 3, "got fractional numbers in y; use a regression loss such as 'mse'"),
            (
                np.stack([CODES, CODES], 1),
                3,
                r"labels of shape \(10,\) for outputs .*got \(10, 2\)",
            ),
        ],
        ids=["gaps", "negative", "names", "fractions", "shape"],
    )
    def test_labels_that_do_not_fit(self, y, n_outputs, text):
        with pytest.raises(ValueError, match=text):
            gradient("cross_entropy", y, n_outputs)

    @pytest.mark.parametrize("shape", [(), (1,)], ids=["(n,)", "(n, 1)"])
    @pytest.mark.parametrize("y", [BINARY, BINARY.astype(float)], ids=["int", "float"])
    def test_one_output_has_no_classes(self, y, shape):
        y = y.reshape(len(y), *shape)
        with pytest.raises(ValueError, match=r"Expected outputs of shape \(n, classes\).*logits'"):
            gradient("cross_entropy", y, *shape)

    @pytest.mark.parametrize(
        ("y", "text"),
        [
            (CODES, r"Expected binary labels or probabilities .*values \[0, 1, 2\]; encode y as 0"),
            (CODES * 0.7, "Expected binary labels or probabilities"),
            (np.array(["a", "b", "c"])[CODES], "got names of 3; encode y as 0 and 1"),
            (np.array(["a"] * 10), "got names of 1; encode y as 0 and 1"),
        ],
        ids=["three", "beyond 1", "names", "one name"],
    )
    def test_not_binary(self, y, text):
        with pytest.raises(ValueError, match=text):
            gradient("bce_with_logits", y)

    @pytest.mark.parametrize("loss", ["mse", F.mse_loss], ids=["mse", "callable"])
    def test_names_for_a_regression(self, loss):
        with pytest.raises(ValueError, match="Expected numbers in y for '.*', got labels"):
            gradient(loss, np.array(["a", "b"])[BINARY])

    def test_names_of_several_types(self):
        with pytest.raises(ValueError, match="Expected labels of one type in y"):
            gradient("cross_entropy", np.array(["a", 1, None] * 3, dtype=object), 3)


class TestShapes:
    @pytest.mark.parametrize("loss", ["mse", "mae", "huber", F.mse_loss, lambda o, t: (o - t) ** 2])
    @pytest.mark.parametrize("outputs", [(), (1,)], ids=["out (n,)", "out (n, 1)"])
    @pytest.mark.parametrize("column", [False, True], ids=["y (n,)", "y (n, 1)"])
    def test_one_output_has_one_meaning(self, loss, outputs, column):
        y = np.random.default_rng(1).normal(size=10)
        module, X, ours = gradient(loss, y[:, None] if column else y, *outputs)
        target = torch.as_tensor(y).reshape(10, *outputs)
        criterion = LOSSES[loss]() if isinstance(loss, str) else nn.MSELoss()
        expected = exact(module, criterion(module(X), target))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("loss", ["mse", "mae", "huber", "poisson_nll", "bce_with_logits"])
    @pytest.mark.parametrize("shape", [(10,), (10, 1), (10, 3)], ids=str)
    def test_pairs_that_would_be_broadcast(self, loss, shape):
        with pytest.raises(
            ValueError, match=r"of the outputs, \(10, 2\), got .* would be broadcast"
        ):
            gradient(loss, np.zeros(shape), 2)

    def test_kinks_of_an_absolute_error_are_counted(self):
        X, y = np.eye(4), np.array([1.0, 2.0, 3.0, 4.0])
        module = nn.Linear(4, 1, bias=False).double()
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[1.0, 2.5, 3.0, 0.0]]))
        assert adapt(module, Data(X, y), Options(loss="mae")).gradient().n_kinks == 2
        assert adapt(module, Data(X, y), Options(loss="mse")).gradient().n_kinks == 0


class TestProbabilities:
    """A loss that expects logits and is given probabilities."""

    @pytest.mark.parametrize(
        ("loss", "last", "y"),
        [("cross_entropy", nn.Softmax(1), CODES), ("bce_with_logits", nn.Sigmoid(), BINARY)],
        ids=["cross_entropy", "bce_with_logits"],
    )
    def test_warns(self, loss, last, y):
        module = nn.Sequential(nn.Linear(4, 3 if loss == "cross_entropy" else 1), last)
        X = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
        with pytest.warns(OutputWarning, match="expects logits, but the outputs look like prob"):
            adapt(module, Data(X, y), Options(loss=loss)).gradient()

    @pytest.mark.parametrize(
        ("loss", "last", "y"),
        [
            ("cross_entropy", nn.Identity(), CODES),
            ("nll", nn.LogSoftmax(1), CODES),
            ("bce", nn.Sigmoid(), BINARY),
            ("mse", nn.Sigmoid(), BINARY),
        ],
        ids=["logits", "nll", "bce", "mse"],
    )
    def test_is_silent_on_what_the_loss_expects(self, loss, last, y):
        module = nn.Sequential(nn.Linear(4, 3 if y is CODES else 1), last)
        X = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
        adapt(module, Data(X, y), Options(loss=loss)).gradient()


def test_class_weights_follow_the_dtype():
    module = nn.Linear(4, 3)
    X, loss = np.random.default_rng(0).normal(size=(10, 4)), nn.CrossEntropyLoss(WEIGHT.float())
    ours = adapt(module, Data(X, CODES), Options(loss=loss, dtype="float64")).gradient()
    double = nn.Linear(4, 3).double()
    double.load_state_dict(module.state_dict())
    expected = torch.autograd.grad(
        F.cross_entropy(double(torch.as_tensor(X)), torch.as_tensor(CODES), WEIGHT), double.weight
    )[0]
    torch.testing.assert_close(ours.value["weight"], expected, rtol=1e-12, atol=1e-15)
    assert loss.weight.dtype == torch.float32
