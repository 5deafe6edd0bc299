"""Families that are solved as a whole: Diagonal, Quadratic, their penalty and their names."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import nnls
from sklearn.base import clone
from torch import nn

from sklearn_implicitreg.penalties import (
    FAMILIES,
    L2,
    STRUCTURED,
    Diagonal,
    EarlyStopping,
    Quadratic,
    Structured,
    StructuredPenalty,
    as_penalty,
    penalty_with_terms,
)
from sklearn_implicitreg.penalties.structured import ScalarNames, TriangleNames

EPS = float(np.finfo(np.float64).eps)


def endpoints(p=6, n_endpoints=9, seed=0):
    """Q, parameters, and targets ``2 Q theta``."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((p, p))
    matrix = root @ root.T / p
    thetas = rng.standard_normal((p, n_endpoints))
    return matrix, thetas, 2 * matrix @ thetas


def problem(shapes, eps=EPS):
    """What a family asks of a Problem: its parameters, their names and its rounding unit."""
    params = {n: torch.zeros(s) for n, s in shapes.items()}
    return SimpleNamespace(params=params, eps=eps, entry_names=lambda name: None)


class TestQuadratic:
    def test_recovers_the_matrix(self):
        matrix, thetas, targets = endpoints()
        found = Quadratic().solve(thetas, targets)
        assert_allclose(found.penalty.matrix_, matrix, rtol=1e-11, atol=1e-13)
        assert_allclose(found.coef, matrix[np.triu_indices(6)], rtol=1e-11, atol=1e-13)
        assert_allclose(found.fitted, targets, rtol=1e-11, atol=1e-12)
        assert (found.rank, found.n_unknowns, found.n_equations) == (21, 21, 54)
        assert found.dependent == ()
        assert found.conf_int is None

    def test_below_as_many_endpoints_as_parameters(self):
        _, thetas, targets = endpoints(n_endpoints=4)
        found = Quadratic().solve(thetas, targets)
        assert (found.rank, found.n_unknowns) == (4 * 6 - 6, 21)
        assert found.dependent == ("q on the 2 directions that no endpoint has",)
        assert found.notes[0].startswith("4 independent endpoints determine 18 of 21 numbers")
        assert found.notes[1].startswith("not identifiable below 6 independent endpoints")

    def test_notes_tell_whether_one_matrix_holds(self):
        _, thetas, targets = endpoints()
        shares = []
        for wrong in (1, 2):
            other = targets.copy()
            other[:, 0] *= wrong
            note = next(n for n in Quadratic().solve(thetas, other).notes if "one matrix" in n)
            shares.append(float(note.split("up to ")[1].split()[0]))
        assert shares[0] < 1e-13
        assert shares[1] > 1e-2

    def test_names_of_several_tensors(self):
        shapes = {"fc.weight": (2, 2), "scale": ()}
        _, thetas, targets = endpoints(p=5)
        names = Quadratic().solve(thetas, targets, [problem(shapes)] * 9).term_names
        assert names[1] == "q[fc.weight[0,0],fc.weight[0,1]]"
        assert names[-1] == "q[scale,scale]"

    def test_float32_gradients_widen_the_rank_tolerance(self):
        _, thetas, targets = endpoints(p=3, n_endpoints=3)
        thetas[:, 2] = thetas[:, 0] + 1e-8 * thetas[:, 2]
        assert Quadratic().solve(thetas, targets).rank == 6
        single = [problem({"w": (3,)}, eps=float(np.finfo(np.float32).eps))] * 3
        assert Quadratic().solve(thetas, targets, single).rank == 5

    @pytest.mark.parametrize("shrinkage", ["mean", -0.1, 1.5, True, [1]])
    def test_bad_shrinkage(self, shrinkage):
        _, thetas, targets = endpoints()
        with pytest.raises(ValueError, match="shrinkage of Quadratic to be "):
            Quadratic(shrinkage=shrinkage).solve(thetas, targets)

    def test_normalized_endpoints_count_alike(self):
        matrix, thetas, targets = endpoints()
        targets = targets + np.random.default_rng(1).standard_normal((6, 9))
        sizes = np.geomspace(1, 100, 9)
        for family, same in ((Quadratic(), False), (Quadratic(normalize=True), True)):
            before = family.solve(thetas, targets).coef
            after = family.solve(sizes * thetas, sizes * targets).coef
            assert np.allclose(before, after, rtol=1e-9) == same
        exact = Quadratic(normalize=True).solve(sizes * thetas, 2 * matrix @ (sizes * thetas))
        assert_allclose(exact.penalty.matrix_, matrix, rtol=1e-11, atol=1e-13)

    def test_a_weight_of_any_kind_of_number(self):
        _, thetas, targets = endpoints()
        found = [Quadratic(shrinkage=w).solve(thetas, targets).coef for w in (0.5, np.float32(0.5))]
        assert_allclose(found[1], found[0])
        assert not np.allclose(found[0], Quadratic().solve(thetas, targets).coef)

    def test_options_are_told(self):
        _, thetas, targets = endpoints()
        notes = Quadratic(psd=True, shrinkage=0.5).solve(thetas, targets).notes
        assert any("times the identity" in note for note in notes)
        assert any("positive semi-definite" in note for note in notes)

    def test_notes_of_what_was_not_shrunk(self):
        _, thetas, targets = endpoints()
        notes = Quadratic(shrinkage="identity").solve(thetas, targets).notes
        assert any(note.startswith("not shrunk where it is determined") for note in notes)
        noisy = targets + np.random.default_rng(1).standard_normal(targets.shape)
        notes = Quadratic(shrinkage="identity").solve(thetas, noisy).notes
        assert any("with strength" in note and "of the way" in note for note in notes)

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({}, "is the smallest one"),
            ({"psd": True}, "is the smallest semi-definite one"),
            ({"shrinkage": "identity"}, "is drawn to"),
            ({"shrinkage": 0.5}, "is the smallest one, before it is shrunk"),
        ],
    )
    def test_notes_of_what_is_open(self, options, told):
        _, thetas, targets = endpoints(n_endpoints=4)
        assert told in Quadratic(**options).solve(thetas, targets).notes[1]

    def test_no_digit_is_guaranteed_of_endpoints_that_are_alike(self):
        _, thetas, targets = endpoints()
        alike = thetas[:, :1] + 1e-9 * thetas
        noise = np.random.default_rng(1).standard_normal(targets.shape)
        notes = Quadratic().solve(alike, targets + noise).notes
        assert any(note.startswith("no digit of the matrix is guaranteed") for note in notes)
        assert not any("up to" in note for note in notes if "relative error" in note)

    def test_semidefinite_stays_so_when_shrunk(self):
        _, thetas, targets = endpoints()
        found = Quadratic(psd=True, shrinkage=0.5).solve(thetas, -targets)
        assert np.linalg.eigvalsh(found.penalty.matrix_)[0] >= -1e-15
        assert any("before it is shrunk" in note for note in found.notes)


class TestDiagonal:
    def test_psd_is_non_negative_least_squares(self):
        rng = np.random.default_rng(0)
        thetas, targets = rng.normal(size=(2, 5, 3))
        found = Diagonal(psd=True).solve(thetas, targets)
        rows = zip(thetas, targets, strict=True)
        expected = [nnls(2 * t[:, None], target)[0][0] for t, target in rows]
        np.testing.assert_allclose(found.coef, expected, rtol=1e-12)
        n_below = int((Diagonal().solve(thetas, targets).coef < 0).sum())
        assert n_below > 0
        assert f"{n_below} coefficients are held at 0" in found.notes[-1]
        with pytest.raises(ValueError, match="Expected psd of Diagonal to be True or False"):
            Diagonal(psd=2).solve(thetas, targets)

    def test_one_endpoint_in_closed_form(self):
        thetas, targets = np.array([[1.0], [-2.0], [0.5]]), np.array([[3.0], [1.0], [-2.0]])
        found = Diagonal().solve(thetas, targets)
        assert_allclose(found.coef, (targets / (2 * thetas))[:, 0], rtol=1e-15)
        assert_allclose(found.fitted, targets, rtol=1e-15)
        assert found.rank == found.n_unknowns == 3

    def test_several_endpoints_by_least_squares(self):
        rng = np.random.default_rng(0)
        thetas, targets = rng.standard_normal((2, 4, 7))
        found = Diagonal().solve(thetas, targets)
        for j in range(4):
            expected = np.linalg.lstsq(2 * thetas[j][:, None], targets[j], rcond=None)[0]
            assert_allclose(found.coef[j], expected[0], rtol=1e-13)

    def test_zero_coordinates_are_named(self):
        thetas = np.array([[0.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
        found = Diagonal().solve(thetas, np.ones((3, 2)), [problem({"coef": (3,)})] * 2)
        assert found.dependent == ("diagonal[coef[1]]",)
        assert (found.rank, found.n_unknowns) == (2, 3)
        assert found.coef[1] == 0
        assert "1 parameters are zero at every endpoint" in found.notes[1]

    def test_size_of_the_parameters_does_not_matter(self):
        rng = np.random.default_rng(0)
        thetas, targets = rng.standard_normal((2, 4, 7))
        expected = Diagonal().solve(thetas, targets).coef
        tiny = Diagonal().solve(1e-200 * thetas, 1e-200 * targets).coef
        assert_allclose(tiny, expected, rtol=1e-13)


class TestPenalty:
    @pytest.mark.parametrize("diagonal", [True, False])
    def test_value_and_gradient_agree_with_autograd(self, diagonal):
        matrix = np.diag([1.0, 2.0, 3.0]) if diagonal else endpoints(p=3)[0]
        penalty = StructuredPenalty(np.diag(matrix) if diagonal else matrix, {"a": (2,), "b": ()})
        theta = np.array([0.5, -1.0, 2.0])
        params = {
            "b": torch.tensor(theta[2], requires_grad=True),
            "a": torch.tensor(theta[:2], requires_grad=True),
        }
        value = penalty(params)
        value.backward()
        assert_allclose(value.item(), penalty.value(theta), rtol=1e-14)
        assert_allclose(penalty.value(theta), theta @ matrix @ theta, rtol=1e-14)
        gradient = np.append(params["a"].grad.numpy(), params["b"].grad.numpy())
        assert_allclose(gradient, penalty.gradient(theta), rtol=1e-14)
        assert_allclose(penalty.gradient(np.tile(theta[:, None], 2))[:, 1], gradient, rtol=1e-14)
        assert_allclose(penalty.matrix_, matrix)
        assert_allclose(penalty.diagonal_, np.diag(matrix))

    def test_takes_a_module_of_another_precision(self):
        penalty = StructuredPenalty(np.eye(2), {"weight": (1, 2)})
        net = nn.Linear(2, 1)
        assert penalty(net).item() == pytest.approx(net.weight.square().sum().item())
        assert penalty(net).dtype == torch.float32

    def test_missing_tensors(self):
        penalty = StructuredPenalty(np.eye(2), {"coef": (2,)})
        with pytest.raises(ValueError, match="'coef'"):
            penalty({"weight": torch.zeros(2)})

    def test_pickle(self):
        _, thetas, targets = endpoints()
        found = pickle.loads(pickle.dumps(Quadratic().solve(thetas, targets)))
        assert found.term_names[2] == "q[theta[0],theta[2]]"
        assert found.penalty.value(thetas[:, 0]) > 0


class TestNames:
    def test_r_factor_row_by_row(self):
        names = TriangleNames([str(k) for k in range(7)])
        rows, columns = np.triu_indices(7)
        expected = [f"q[{i},{j}]" for i, j in zip(rows, columns, strict=True)]
        assert list(names) == expected
        assert [names[k] for k in range(len(names))] == expected
        assert names[-1] == expected[-1]
        assert names[2:5] == tuple(expected[2:5])
        assert len(names) == 28
        with pytest.raises(IndexError):
            names[28]

    def test_a_large_matrix_names_one_entry_at_a_time(self):
        names = TriangleNames(ScalarNames({"coef": (1_000_000,)}))
        assert len(names) == 500_000_500_000
        assert names[1_000_001] == "q[coef[1],coef[2]]"

    def test_scalars_of_tensors(self):
        names = ScalarNames({"a": (2, 2), "b": (), "c": (1,)})
        assert list(names) == ["a[0,0]", "a[0,1]", "a[1,0]", "a[1,1]", "b", "c[0]"]


class TestNamed:
    @pytest.mark.parametrize("name", STRUCTURED)
    def test_by_name(self, name):
        family = as_penalty(name)
        assert type(family) is STRUCTURED[name]
        assert isinstance(family, Structured)
        assert as_penalty(family) is family
        assert clone(family).get_params() == family.get_params()
        assert name not in FAMILIES

    @pytest.mark.parametrize("family", ["quadratic+l2", "l2+diagonal", [L2(), EarlyStopping()]])
    def test_stand_alone(self, family):
        with pytest.raises(ValueError, match="solved as a whole and stands alone"):
            as_penalty(family)

    @pytest.mark.parametrize(
        "join", [lambda: L2() + Quadratic(), lambda: Quadratic() + L2(), lambda: 2.0 * Diagonal()]
    )
    def test_operators_refuse_them(self, join):
        with pytest.raises(TypeError, match="unsupported operand|Expected a Penalty to join to L2"):
            join()

    def test_where_terms_are_needed(self):
        with pytest.raises(ValueError, match=r"got Quadratic\(\)"):
            penalty_with_terms("quadratic")

    def test_misspelled(self):
        with pytest.raises(ValueError, match="Did you mean 'quadratic'"):
            as_penalty("quadratik")


class TestBadInput:
    @pytest.mark.parametrize("family", [Diagonal(), Quadratic()], ids=["diagonal", "quadratic"])
    @pytest.mark.parametrize(
        ("thetas", "targets", "message"),
        [
            (np.ones(3), np.ones(3), "one shape"),
            (np.ones((3, 2)), np.ones((2, 2)), "one shape"),
            (np.ones((0, 2)), np.ones((0, 2)), "one shape"),
            (np.full((2, 2), np.nan), np.ones((2, 2)), "finite"),
            (np.ones((2, 2)), np.full((2, 2), np.inf), "finite"),
        ],
    )
    def test_arrays(self, family, thetas, targets, message):
        with pytest.raises(ValueError, match=message):
            family.solve(thetas, targets)

    @pytest.mark.parametrize("problems", [[problem({"w": (3,)})], [problem({"w": (2,)})] * 2])
    def test_problems_that_do_not_fit(self, problems):
        with pytest.raises(ValueError, match="one problem with 3 parameters"):
            Quadratic().solve(np.ones((3, 2)), np.ones((3, 2)), problems)
