"""Tables for people and frames for programs."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from sklearn_implicitreg.regression.inference import infer
from sklearn_implicitreg.regression.solve import solve
from sklearn_implicitreg.regression.system import System
from sklearn_implicitreg.results.summary import Summary, coefficient_frame, coefficient_table

NAMES = ["l2[fc1]", "smooth_l1[fc1]", "l1"]


@pytest.fixture
def fit():
    rng = np.random.default_rng(0)
    design = rng.standard_normal((500, 3))
    target = design @ [0.01, 1e-5, -1.23] + 0.01 * rng.standard_normal(500)
    system = System.from_arrays(design, target, NAMES, rng.integers(0, 8, 500))
    solution = solve(system.r_factor, 500)
    return solution, infer(system, solution, confidence_level=0.9)


@pytest.fixture
def summary(fit):
    header = [
        ("Model", "MLPRegressor"),
        ("R2", "0.9999"),
        ("Objective", "mean squared error without its 1/2, over 400 rows, weighted by class"),
        ("Equations", "500"),
    ]
    notes = ["supported: R2 = 0.9999.", "a note with <tags>, 50 % & more " + "words " * 20]
    return Summary("Penalty of a_model", header, coefficient_table(NAMES, *fit), notes)


def test_frame_is_tidy(fit):
    frame = coefficient_frame(NAMES, *fit)
    assert list(frame.columns) == [
        "term",
        "group",
        "coef",
        "std_err",
        "ci_low",
        "ci_high",
        "statistic",
        "p_value",
        "cosine",
        "vif",
    ]
    assert frame["term"].tolist() == ["l2", "smooth_l1", "l1"]
    assert frame["group"].tolist() == ["fc1", "fc1", ""]
    solution, inference = fit
    np.testing.assert_array_equal(frame["coef"], solution.coef)
    np.testing.assert_array_equal(frame[["ci_low", "ci_high"]], inference.conf_int)
    np.testing.assert_array_equal(frame["p_value"], inference.pvalues)
    assert all(kind == np.float64 for kind in frame.dtypes[2:])


@pytest.mark.parametrize(
    ("name", "term", "group"),
    [
        ("l2[layers[0].weight]", "l2", "layers[0].weight"),
        ("l2[]", "l2", ""),
        ("l2]", "l2]", ""),
        ("my term", "my term", ""),
    ],
)
def test_group_is_what_stands_in_brackets(fit, name, term, group):
    frame = coefficient_frame([name, "a", "b"], *fit)
    assert frame.loc[0, ["term", "group"]].tolist() == [term, group]


def test_bounds_of_the_interval_are_named_by_its_level(fit):
    assert list(coefficient_table(NAMES, *fit).columns) == [
        "coef",
        "std err",
        "t",
        "P>|t|",
        "[0.05",
        "0.95]",
        "cosine",
        "VIF",
    ]


class TestText:
    def test_fits_a_terminal_and_shows_everything(self, summary):
        text = summary.as_text()
        assert max(len(line) for line in text.splitlines()) == 79
        for part in ("Penalty of a_model", "MLPRegressor", "std err", "smooth_l1[fc1]", "-1.230"):
            assert part in text
        assert "[2] a note with <tags>, 50 % & more" in text

    def test_is_what_is_printed(self, summary):
        assert str(summary) == repr(summary) == summary.as_text()

    def test_columns_are_aligned(self, summary):
        lines = [line for line in summary.as_text().splitlines() if "[fc1]" in line]
        assert len({len(line) for line in lines}) == 1

    def test_long_names_widen_the_table(self, fit):
        names = ["l2[" + "block." * 12 + "weight]", "a", "b"]
        text = Summary("t", [], coefficient_table(names, *fit), []).as_text()
        assert names[0] in text

    def test_nothing_but_a_table(self):
        text = Summary("t", [], pd.DataFrame({"coef": [1.0, np.nan, np.inf]})).as_text()
        assert [line.split()[-1] for line in text.splitlines()[4:7]] == ["1.000", "nan", "inf"]

    def test_table_without_columns(self):
        assert "l2" in Summary("t", [], pd.DataFrame(index=["l2"])).as_text()


def test_html_is_well_formed_and_escaped(summary):
    tree = ElementTree.fromstring(f"<div>{summary.as_html()}</div>")
    cells = [cell.text for cell in tree.iter("td")]
    assert "MLPRegressor" in cells
    assert "-1.230" in cells
    assert any("<tags>" in (item.text or "") for item in tree.iter("li"))
    assert summary._repr_html_() == summary.as_html()


def test_latex_is_escaped_and_balanced(summary):
    latex = summary.as_latex()
    assert r"smooth\_l1[fc1]" in latex
    assert r"50 \% \& more" in latex
    assert r"P\textgreater{}\textbar{}t\textbar{}" in latex
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")
    top, numbers = (part.splitlines() for part in latex.split("\n\n"))
    rows = [line for line in numbers if line.endswith(r"\\")]
    assert {line.count(" & ") for line in rows} == {8}
    assert {line.count(" & ") for line in top if ":" in line and "multi" not in line} <= {1, 3}


def test_latex_is_a_header_in_columns_a_table_and_the_notes():
    table = pd.DataFrame({"coef": [0.01]}, index=["l2"])
    header = [("R2", "1.000"), ("Rows", "5"), ("Loss", "squared " * 9), ("Verdict", "a_b")]
    latex = Summary("Ridge", header, table, ["Exact."]).as_latex()
    assert latex.splitlines() == [
        r"\begin{tabular}{lrlr}",
        r"\hline",
        r"\multicolumn{4}{c}{Ridge} \\",
        r"\hline",
        r"R2: & 1.000 & Rows: & 5 \\",
        r"\multicolumn{4}{l}{Loss: " + "squared " * 9 + r"} \\",
        r"Verdict: & a\_b \\",
        r"\hline",
        r"\end{tabular}",
        "",
        r"\begin{tabular}{lr}",
        r"\hline",
        r" & coef \\",
        r"\hline",
        r"l2 & 0.01000 \\",
        r"\hline",
        r"\end{tabular}",
        r"\par [1] Exact.",
    ]


def test_missing_errors_are_shown_as_nan():
    system = System.from_arrays([[1.0]], [2.0], ["l2"])
    solution = solve(system.r_factor, 1)
    table = coefficient_table(["l2"], solution, infer(system, solution))
    assert "nan" in Summary("t", [], table).as_text()
