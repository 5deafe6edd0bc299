"""Verdicts: each rule, its place in the order, and the numbers in its sentence."""

import numpy as np
import pytest
from scipy import stats

from sklearn_implicitreg.regression.solve import solve
from sklearn_implicitreg.regression.system import r_factor
from sklearn_implicitreg.regression.verdict import VERDICTS, Measures, cause_at, judge

M = 400


def judged(solution, names, **options):
    return judge(Measures.of(solution, names), **options)


def verdict_at(r2, k=1, m=M, rounding=1e-12, eps=2.2e-16, norm=1.0, **options):
    """Verdict on equations of which k orthogonal columns explain exactly ``r2``."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((m, k + 1)))[0]
    target = norm * (r2**0.5 * basis[:, 0] + (1 - r2) ** 0.5 * basis[:, k])
    solution = solve(r_factor(basis[:, :k], target), m, eps=eps)
    return judged(solution, [f"term{j}" for j in range(k)], rounding=rounding, **options)


def test_labels_are_these():
    assert VERDICTS == (
        "no signal",
        "not identifiable",
        "not constant",
        "not stationary",
        "supported",
        "partial",
        "out of family",
    )


@pytest.mark.parametrize(
    ("r2", "label"),
    [
        (1.0, "supported"),
        (0.9901, "supported"),
        (0.9899, "partial"),
        (0.947, "partial"),
        (0.1001, "partial"),
        (0.0999, "out of family"),
        (0.02, "out of family"),
        (0.005, "no signal"),
        (0.0, "no signal"),
    ],
    ids=str,
)
def test_by_share_explained(r2, label):
    assert verdict_at(r2).label == label


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("m", [10, 1000])
def test_no_signal_up_to_what_random_directions_reach(k, m):
    quantile = stats.beta.ppf(0.95, k / 2, (m - k) / 2)
    below, above = verdict_at(0.999 * quantile, k, m), verdict_at(1.001 * quantile, k, m)
    assert (below.label, above.label != "no signal") == ("no signal", True)
    assert f"R2 = {0.999 * quantile:.3g} is not above {quantile:.3g}, what" in below.sentence
    assert f"{m} equations" in below.sentence


def test_random_directions_are_no_signal_in_95_of_100():
    rng = np.random.default_rng(1)
    labels = []
    for _ in range(400):
        both = rng.standard_normal((50, 4))
        solution = solve(r_factor(both[:, :3], both[:, 3]), 50)
        labels.append(judged(solution, ["a", "b", "c"], rounding=0.0).label)
    assert 0.92 <= np.mean([label == "no signal" for label in labels]) <= 0.98


@pytest.mark.parametrize(("norm", "label"), [(1e-9, "no signal"), (1e-7, "supported")], ids=str)
def test_no_signal_at_rounding(norm, label):
    verdict = verdict_at(1.0, norm=norm, rounding=1e-8)
    assert verdict.label == label
    if label == "no signal":
        assert "1e-09 is at most 1e-08" in verdict.sentence


def test_zero_target_is_no_signal_without_rounding():
    solution = solve(r_factor(np.ones((5, 1)), np.zeros(5)), 5)
    assert judged(solution, ["l2"], rounding=0.0).label == "no signal"


def test_dependent_columns_are_named():
    a, b = np.random.default_rng(2).standard_normal((2, M))
    solution = solve(r_factor(np.column_stack([a, b, 2 * a]), a + b), M)
    verdict = judged(solution, ["l2", "l1", "smooth_l1"], rounding=0.0)
    assert verdict.label == "not identifiable"
    assert verdict.sentence == (
        "3 columns have rank 2 over 400 equations; linearly dependent: l2, smooth_l1."
    )


def test_zero_columns_are_named():
    solution = solve(r_factor(np.zeros((M, 1)), np.ones(M)), M)
    verdict = judged(solution, ["l2"], rounding=0.0)
    assert verdict.label == "not identifiable"
    assert verdict.sentence.endswith("linearly dependent: l2.")


@pytest.mark.parametrize(
    ("eps", "label"), [(2.2e-16, "supported"), (1.2e-7, "not identifiable")], ids=["f64", "f32"]
)
def test_condition_is_judged_by_the_models_dtype(eps, label):
    a, b, c = np.random.default_rng(3).standard_normal((3, M))
    design = np.column_stack([a, b, a + 1e-4 * c])
    solution = solve(r_factor(design, a + b), M, eps=eps)
    verdict = judged(solution, ["l2", "l1", "smooth_l1"], rounding=0.0)
    assert verdict.label == label
    measures = Measures.of(solution, ["l2", "l1", "smooth_l1"])
    np.testing.assert_allclose(measures.condition_limit, eps**-0.5)
    assert measures.columns == ("l2", "smooth_l1")
    if label == "not identifiable":
        assert "is above 2.89e+03 (1/sqrt(eps)" in verdict.sentence
        assert verdict.sentence.endswith("nearly dependent: l2, smooth_l1.")


def test_scale_invariant_layers():
    names = ["conv.weight", "fc.weight"]
    verdict = verdict_at(1.0, scale_invariant=names)
    assert verdict.label == "not identifiable"
    assert "scale of tensors" in verdict.sentence
    assert "conv.weight, fc.weight" in verdict.sentence


def test_evidence_against_an_endpoint_is_the_sentence():
    evidence = "continued training moved the weights by 0.3 of their norm."
    verdict = verdict_at(1.0, evidence=evidence)
    assert (verdict.label, verdict.sentence) == ("not stationary", evidence)


def test_partial_says_what_may_be_behind_it():
    linear = verdict_at(0.9).sentence
    assert linear.endswith("above 0.01: a missing term, or training that had not ended.")
    verdict = verdict_at(0.9, cause=cause_at(has_paths=True))
    assert verdict.sentence == (
        "R2 = 0.9000 over 400 equations, 1 - R2 = 0.1 is above 0.01: "
        "training noise or a missing term."
    )


def test_a_trajectory_that_confirms_the_endpoint_is_named():
    agreement = "The trajectory confirms it."
    right, part = (verdict_at(r2, agreement=agreement) for r2 in (1.0, 0.9))
    assert (right.label, part.label) == ("supported", "partial")
    assert right.sentence.endswith(f"is at most 0.01. {agreement}")
    assert part.sentence.endswith(f"is above 0.01: a missing term. {agreement}")


@pytest.mark.parametrize(("k", "m"), [(1, 1), (3, 3), (3, 2)], ids=str)
def test_as_many_coefficients_as_equations(k, m):
    rng = np.random.default_rng(4)
    solution = solve(r_factor(rng.standard_normal((m, k)), rng.standard_normal(m)), m)
    verdict = judged(solution, [f"term{j}" for j in range(k)], rounding=0.0)
    if k > m:
        assert verdict.label == "not identifiable"
    else:
        assert verdict.label == "partial"
        assert "as many coefficients as equations: R2 tests nothing" in verdict.sentence
        assert f"{k} coefficients, {m} equations" in verdict.sentence


@pytest.mark.parametrize("r2", [1.0, 0.5, 0.05], ids=str)
def test_kinks_are_counted_and_never_supported(r2):
    verdict = verdict_at(r2, n_kinks=17)
    assert verdict.label == ("partial" if r2 > 0.1 else "out of family")
    assert "The loss has a kink at 17 rows" in verdict.sentence


@pytest.mark.parametrize(
    ("r2", "noise", "label"),
    [
        (0.95, 0.05, "supported"),
        (0.93, 0.05, "partial"),
        (0.95, 0.11, "partial"),
        (0.99, 7.0, "partial"),
        (0.9901, -3.0, "supported"),
        (0.9899, -3.0, "partial"),
    ],
    ids=str,
)
def test_noise_share(r2, noise, label):
    verdict = verdict_at(r2, noise_share=noise)
    assert verdict.label == label
    share = min(max(noise, 0.0), 1.0)
    words = f"but {share:.3g} of the target is noise" if share > 0.1 else f"{0.01 + share:.3g}"
    assert words in verdict.sentence


class TestPrecedence:
    everything = {
        "scale_invariant": ["w"],
        "evidence": "the path moves.",
        "n_kinks": 1,
    }

    def test_no_signal_comes_first(self):
        assert verdict_at(0.0, **self.everything).label == "no signal"

    def test_then_not_identifiable(self):
        assert verdict_at(1.0, **self.everything).label == "not identifiable"

    def test_then_not_stationary(self):
        options = {**self.everything, "scale_invariant": ()}
        assert verdict_at(1.0, **options).label == "not stationary"


def test_nonnegative_fit_that_explains_nothing_says_so():
    solution = solve(r_factor(np.ones((9, 1)), -np.ones(9)), 9, positive=True)
    verdict = judged(solution, ["l2"], rounding=0.0)
    assert verdict.label == "no signal"
    assert "1 of 1 coefficients are held at 0." in verdict.sentence


def test_numbers_as_text():
    verdict = verdict_at(0.5, k=2)
    assert str(verdict) == (
        "partial: R2 = 0.5000 over 400 equations, 1 - R2 = 0.5 is above 0.01: a missing term, or "
        "training that had not ended."
    )


def test_measures_are_those_of_the_solution():
    rng = np.random.default_rng(5)
    solution = solve(r_factor(rng.standard_normal((9, 2)), -np.ones(9)), 9, positive=True)
    measures = Measures.of(solution, ["a", "b"])
    assert (measures.n_equations, measures.n_terms, measures.rank) == (9, 2, solution.rank)
    assert measures.norm == pytest.approx(3.0)
    assert (measures.r2, measures.shortfall) == (solution.r2, solution.shortfall)
    assert measures.condition_number == solution.condition_number
    assert measures.n_held == int((~solution.active).sum())


def test_an_exact_multiple_of_the_weights_is_supported():
    weights = np.array([[1.0], [-2.0], [0.5], [3.0]])
    solution = solve(r_factor(weights, 0.1 * weights[:, 0]), 4)
    assert judged(solution, ["l2"], rounding=1e-14).label == "supported"


def test_endpoints_that_are_explained_one_by_one_differ():
    verdict = verdict_at(0.9, cause=cause_at(has_paths=True, each_explained=True))
    assert "the coefficients of the endpoints differ (coef_path_)" in verdict.sentence
