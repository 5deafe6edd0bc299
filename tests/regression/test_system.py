"""R factors: what they keep of the equations, however these come."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import qr

from sklearn_implicitreg.regression.inference import hc3_meat
from sklearn_implicitreg.regression.system import System, merge, r_factor

NAMES = ("l2", "l1", "l21")


@pytest.fixture
def equations():
    """300 equations for three terms, in six clusters of unequal size."""
    rng = np.random.default_rng(0)
    design = rng.standard_normal((300, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0.2], [0, 0, 2.0]])
    target = design @ [1.0, -2.0, 0.5] + rng.standard_normal(300)
    groups = rng.choice(list("abcdef"), 300, p=[0.3, 0.25, 0.2, 0.15, 0.06, 0.04])
    return design, target, groups


@pytest.fixture
def system(equations):
    design, target, groups = equations
    return System.from_arrays(design, target, NAMES, groups)


def gram(design, target):
    both = np.column_stack([design, target])
    return both.T @ both


def test_r_factor_of_known_answer():
    np.testing.assert_allclose(r_factor([[3.0], [4.0]], [4.0, -3.0]), [[5, 0], [0, 5]], atol=1e-15)


def test_r_factor_equals_scipy_qr(equations):
    design, target, _ = equations
    reference = qr(np.column_stack([design, target]), mode="economic")[1]
    reference *= np.sign(np.diagonal(reference))[:, None]
    np.testing.assert_allclose(r_factor(design, target), reference, rtol=1e-12, atol=1e-12)


def test_tall_matrix_in_chunks_equals_one_qr():
    rng = np.random.default_rng(1)
    design, target = rng.standard_normal((100_003, 2)), rng.standard_normal(100_003)
    reference = qr(np.column_stack([design, target]), mode="economic")[1]
    reference *= np.sign(np.diagonal(reference))[:, None]
    np.testing.assert_allclose(r_factor(design, target), reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("m", [0, 1, 2, 3])
def test_few_rows_are_padded_with_zeros(m):
    rng = np.random.default_rng(2)
    design, target = rng.standard_normal((m, 3)), rng.standard_normal(m)
    result = r_factor(design, target)
    assert result.shape == (4, 4)
    np.testing.assert_allclose(result.T @ result, gram(design, target), atol=1e-13)
    assert not result[m:].any()


def test_float32_columns_are_taken_in_float64(equations):
    design, target, _ = equations
    design, target = design.astype(np.float32), target.astype(np.float32)
    expected = r_factor(design.astype(np.float64), target.astype(np.float64))
    np.testing.assert_array_equal(r_factor(design, target), expected)


@pytest.mark.parametrize("scale", [1e-200, 1e200], ids=["tiny", "huge"])
def test_squares_of_entries_neither_underflow_nor_overflow(scale, equations):
    design, target, _ = equations
    expected = r_factor(design, target)
    np.testing.assert_allclose(
        r_factor(design * scale, target * scale) / scale, expected, atol=1e-9
    )


def test_input_is_left_as_it_was(equations):
    design, target, _ = equations
    design = np.asfortranarray(design)
    before = design.copy(), target.copy()
    r_factor(design, target)
    np.testing.assert_array_equal(design, before[0])
    np.testing.assert_array_equal(target, before[1])


def test_merge_is_the_r_factor_of_all_rows_in_any_order(equations):
    design, target, _ = equations
    parts = [r_factor(design[i::4], target[i::4]) for i in range(4)]
    expected = r_factor(design, target)
    for order in (parts, parts[::-1], [merge(parts[:2]), merge(parts[2:])]):
        np.testing.assert_allclose(merge(order), expected, rtol=1e-12, atol=1e-12)


def test_system_adds_up_its_clusters(system, equations):
    design, target, groups = equations
    assert system.labels == tuple("abcdef")
    assert system.counts == tuple(int((groups == c).sum()) for c in "abcdef")
    assert (system.n_equations, system.n_terms) == (300, 3)
    np.testing.assert_allclose(system.r_factor, r_factor(design, target), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        system.r_factors[1], r_factor(design[groups == "b"], target[groups == "b"]), atol=1e-13
    )


def test_one_cluster_without_groups(equations):
    design, target, _ = equations
    system = System.from_arrays(design, target, NAMES)
    assert system.counts == (300,)


def test_groups_of_numbers_become_labels():
    system = System.from_arrays(np.eye(4)[:, :1], np.ones(4), ["l2"], [7, 3, 7, 3])
    assert (system.labels, system.counts) == (("3", "7"), (2, 2))


def test_without_each_equals_the_rows_of_the_others(system, equations):
    design, target, groups = equations
    for label, rest in zip(system.labels, system.without_each(), strict=True):
        keep = groups != label
        expected = r_factor(design[keep], target[keep])
        np.testing.assert_allclose(rest, expected, rtol=1e-11, atol=1e-11)


def test_without_each_leaves_exact_zeros_where_a_column_lived_in_one_cluster():
    rng = np.random.default_rng(3)
    design = rng.standard_normal((40, 2))
    groups = np.repeat(list("abcd"), 10)
    design[groups != "b", 1] = 0
    system = System.from_arrays(design, rng.standard_normal(40), ["l2", "l2[b]"], groups)
    rest = system.without_each()[1]
    assert not rest[:, 1].any()


def test_select_equals_the_r_factor_of_these_columns(system, equations):
    design, target, groups = equations
    part = system.select(["l21", "l2"])
    assert part.term_names == ("l21", "l2")
    assert part.counts == system.counts
    expected = System.from_arrays(design[:, [2, 0]], target, ["l21", "l2"], groups)
    np.testing.assert_allclose(part.r_factor, expected.r_factor, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(part.r_factors, expected.r_factors, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)


def test_hc3_of_a_sub_family_reads_the_rows_of_the_whole(system, equations, sm):
    design, target, _ = equations
    part = system.select(["l21", "l2"])
    columns = design[:, [2, 0]]
    whitener = np.linalg.inv(qr(columns, mode="economic")[1])
    coef = np.linalg.lstsq(columns, target, rcond=None)[0]
    expected = sm.OLS(target, columns).fit().get_robustcov_results("HC3").cov_params()
    covariance = whitener @ hc3_meat(part, whitener, coef) @ whitener.T
    np.testing.assert_allclose(covariance, expected, rtol=1e-10)


def of_rows(design, target):
    return System.from_arrays(design, target, [f"x{i}" for i in range(design.shape[1])])


def test_hc3_meat_of_known_answer():
    meat = hc3_meat(of_rows(np.ones((2, 1)), np.array([1.0, 3.0])), np.array([[0.5**0.5]]), [2.0])
    np.testing.assert_allclose(meat, [[4.0]], rtol=1e-12)


def test_hc3_meat_adds_up_over_rows(equations):
    design, target, _ = equations
    whitener = np.linalg.inv(qr(design, mode="economic")[1])
    coef = np.linalg.lstsq(design, target, rcond=None)[0]
    parts = sum(hc3_meat(of_rows(design[i::3], target[i::3]), whitener, coef) for i in range(3))
    whole = hc3_meat(of_rows(design, target), whitener, coef)
    np.testing.assert_allclose(parts, whole, rtol=1e-12)
    system = of_rows(np.tile(design, (500, 1)), np.tile(target, 500))  # more than one chunk
    repeated = hc3_meat(system, whitener, coef)
    np.testing.assert_allclose(repeated, 500 * whole, rtol=1e-12)


def test_hc3_meat_is_nan_where_one_row_alone_tells_a_coefficient():
    design = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    whitener = np.diag([0.5**0.5, 1 / 3])
    meat = hc3_meat(of_rows(design, np.ones(3)), whitener, np.array([1.0, 1 / 3]))
    assert np.isnan(meat).all()


def test_r_factors_hold_what_cluster_robust_errors_need(system, equations, sm):
    design, target, groups = equations
    codes = np.unique(groups, return_inverse=True)[1]
    expected = sm.OLS(target, design).fit(cov_type="cluster", cov_kwds={"groups": codes})
    whole = system.r_factor
    bread = np.linalg.inv(whole[:, :3].T @ whole[:, :3])
    coef = bread @ whole[:, :3].T @ whole[:, 3]
    scores = [part[:, :3].T @ (part[:, 3] - part[:, :3] @ coef) for part in system.r_factors]
    meat = sum(np.outer(u, u) for u in scores)
    cr1 = 6 / 5 * 299 / 297 * bread @ meat @ bread
    np.testing.assert_allclose(cr1, expected.cov_params(), rtol=1e-10)


def test_r_factors_survive_pickling(system):
    part = replace(system, rows=None).select(["l1"])
    back = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(back.r_factor, system.select(["l1"]).r_factor)
    assert (back.labels, back.counts) == (part.labels, part.counts)


class TestSingle:
    """The single equations, where they can be read."""

    def test_are_the_rows_every_time(self, system, equations):
        design, target, _ = equations
        for _ in range(2):
            ((label, index, columns, values),) = system.single("for a test")
            assert label == ()
            np.testing.assert_array_equal(index, np.arange(300))
            np.testing.assert_array_equal(columns, design)
            np.testing.assert_array_equal(values, target)

    def test_of_some_terms(self, system, equations):
        ((_, _, columns, values),) = system.select(["l21", "l2"]).single("for a test")
        np.testing.assert_array_equal(columns, equations[0][:, [2, 0]])
        np.testing.assert_array_equal(values, equations[1])

    def test_keep_the_index_that_was_given(self):
        index = np.array(["u", "v"])
        own = System.from_arrays([[1.0], [2.0]], [3.0, 4.0], ["l2"], index=index)
        ((_, found, *_),) = own.single("for a test")
        assert found.tolist() == ["u", "v"]

    @pytest.mark.parametrize("missing", ["R factors alone", "a trajectory without weights"])
    def test_say_what_is_missing(self, system, missing):
        alone = replace(system, rows=None, missing=missing)
        message = f"Expected single equations for their influence, got {missing}."
        for own in (alone, alone.select(["l1"])):
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                own.single("for their influence")


class TestInstrumented:
    """R factors of instruments, columns and target."""

    def test_noise_that_the_instrument_does_not_share(self):
        z, noise = np.array([1.0, 2.0, 3.0]), np.array([3.0, 0.0, -1.0])  # z'noise = 0
        own = instrumented(np.column_stack([z, z + noise]), 2.0 * z)
        assert own.r_factor.shape == (2, 2)
        assert own.r_factor[0, 1] / own.r_factor[0, 0] == pytest.approx(2.0, rel=1e-12)

    def test_without_each_are_projected(self):
        rng = np.random.default_rng(0)
        parts = [rng.standard_normal((9, 3)) for _ in range(3)]
        uppers = tuple(r_factor(part[:, :2], part[:, 2]) for part in parts)
        own = System(("a",), tuple("xyz"), uppers, (9, 9, 9), instrumented=True)
        for i, rest in enumerate(own.without_each()):
            both = np.concatenate([part for j, part in enumerate(parts) if j != i])
            expected = both[:, 0] @ both[:, 2] / (both[:, 0] @ both[:, 1])
            assert rest[0, 1] / rest[0, 0] == pytest.approx(expected, rel=1e-12)

    def test_r_factors_without_an_instrument_for_each_column(self):
        with pytest.raises(ValueError, match=r"shape \(3, 3\) for 1 terms .*, got \[\(2, 2\)\]"):
            System(("a",), ("all",), (np.eye(2),), (3,), instrumented=True)


def instrumented(both, target):
    return System(("a",), ("all",), (r_factor(both, target),), (len(target),), instrumented=True)


class TestRefusals:
    def test_lengths_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"target of shape \(m,\), got \(3, 1\) and \(2,\)"):
            r_factor(np.ones((3, 1)), np.ones(2))

    def test_flat_design(self):
        with pytest.raises(ValueError, match=r"Expected design of shape \(m, k\)"):
            r_factor(np.ones(3), np.ones(3))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("where", ["design", "target"])
    def test_not_finite(self, value, where):
        design, target = np.ones((20, 2)), np.ones(20)
        (design if where == "design" else target)[-1:] = value
        with pytest.raises(ValueError, match="Expected finite equations, got NaN or inf"):
            r_factor(design, target)

    def test_merge_of_nothing(self):
        with pytest.raises(ValueError, match="Expected at least one R factor"):
            merge([])

    def test_merge_of_two_families(self):
        with pytest.raises(ValueError, match=r"one shape \(k \+ 1, k \+ 1\), got"):
            merge([np.eye(2), np.eye(3)])

    def test_no_equation(self):
        with pytest.raises(ValueError, match="Expected at least 1 equation, got 0"):
            System.from_arrays(np.ones((0, 1)), np.ones(0), ["l2"])

    def test_two_terms_of_one_name(self):
        with pytest.raises(ValueError, match=r"every name once, got \['l2'\]"):
            System.from_arrays(np.ones((3, 2)), np.ones(3), ["l2", "l2"])

    def test_names_and_columns(self):
        with pytest.raises(ValueError, match=r"shape \(3, 3\) for 2 terms, got \[\(2, 2\)\]"):
            System.from_arrays(np.ones((3, 1)), np.ones(3), ["l1", "l2"])

    def test_groups_of_another_length(self):
        with pytest.raises(ValueError, match=r"groups of shape \(3,\), one per equation, got"):
            System.from_arrays(np.ones((3, 1)), np.ones(3), ["l2"], ["a", "b"])

    def test_clusters_of_another_number(self):
        with pytest.raises(ValueError, match="one label, R factor and count per cluster"):
            System(("l2",), ("a", "b"), (np.eye(2),), (3,))

    def test_unknown_term(self, system):
        with pytest.raises(ValueError, match=r"among \['l2', 'l1', 'l21'\], got \['l3'\]"):
            system.select(["l2", "l3"])
