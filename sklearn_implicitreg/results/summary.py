"""The table of a fit: for people as text, HTML or LaTeX, for programs as a tidy frame."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sklearn_implicitreg.regression.inference import Inference
from sklearn_implicitreg.regression.solve import Solution

Fact = tuple[str, str]  # a name and its value

_WIDTH = 79
_HALF = (_WIDTH - 2) // 2
_GROUPED = re.compile(r"(?P<term>[^\[]+)\[(?P<group>.*)\]", re.DOTALL)
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{character: "\\" + character for character in "&%$#_{}"},
    }
)


@dataclass(frozen=True, eq=False)
class Summary:
    """Title, header, table and notes of a fit, printable in three ways.

    Attributes
    ----------
    title : str
        Line above everything.
    header : list of (str, str)
        Names and values, in two columns where they fit.
    table : DataFrame
        Numbers, one row per term, such as :func:`coefficient_table` makes.
    notes : list of str
        Sentences below the table, numbered.
    before : Summary or None
        Another summary, which is printed above this one.
    last : str
        A last line, without a number: what to do next.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"coef": [0.01]}, index=["l2"])
    >>> str(Summary("Ridge", [("R2", "1.000")], table, ["Exact."])).split()[-1]
    'Exact.'
    """

    title: str
    header: list[tuple[str, str]]
    table: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    before: Summary | None = None
    last: str = ""

    def as_text(self) -> str:
        """Fixed-width text, 79 columns wide where the table allows it.

        Returns
        -------
        str
            Lines without trailing blanks.
        """
        grid = _grid(self.table)
        widths = [max(len(row[j]) for row in grid) for j in range(len(grid[0]))]
        gaps = len(widths) - 1
        width = max(_WIDTH, sum(widths) + gaps)
        # What is left of the line goes between the columns, as in other statistical tables.
        gap = min((width - sum(widths)) // gaps, 4) if gaps else 0
        names = widths[0] + width - sum(widths) - gap * gaps
        cells = [gap + cell for cell in widths[1:]]
        body = [row[0].ljust(names) + "".join(map(str.rjust, row[1:], cells)) for row in grid]
        double, single = "=" * width, "-" * width
        lines = [self.title.center(width).rstrip(), double]
        lines += [*_header_lines(self.header, width), single] if self.header else []
        lines += [body[0], single, *body[1:], double]
        for number, note in enumerate(self.notes, 1):
            mark = f"[{number}] "
            lines += textwrap.wrap(note, width, initial_indent=mark, subsequent_indent="    ")
        lines += textwrap.wrap(self.last, width)
        above = [self.before.as_text(), ""] if self.before else []
        return "\n".join([*above, *(line.rstrip() for line in lines)])

    def as_html(self) -> str:
        """HTML: two tables and a list of notes.

        Returns
        -------
        str
            Fragment that needs no style sheet.
        """
        grid = [[html.escape(cell) for cell in row] for row in _grid(self.table)]
        top = [[html.escape(cell) for cell in pair] for pair in self.header]
        facts, body = ("".join(map(_html_row, rows)) for rows in (top, grid[1:]))
        head = "".join(f"<th>{cell}</th>" for cell in grid[0])
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        above = self.before.as_html() if self.before else ""
        return (
            f"{above}<table><caption>{html.escape(self.title)}</caption><tbody>{facts}</tbody></table>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            + (f"<ol>{notes}</ol>" if notes else "")
            + (f"<p>{html.escape(self.last)}</p>" if self.last else "")
        )

    def as_latex(self) -> str:
        """LaTeX: a ``tabular`` of the header, one of the numbers, and the notes; no package.

        Returns
        -------
        str
            Source with its special characters escaped.
        """
        grid = [[cell.translate(_LATEX) for cell in row] for row in _grid(self.table)]
        n = len(grid[0])
        lines = [self.before.as_latex(), r"\par"] if self.before else []
        lines += [r"\begin{tabular}{lrlr}", r"\hline"]
        lines += [rf"\multicolumn{{4}}{{c}}{{{self.title.translate(_LATEX)}}} \\", r"\hline"]
        for facts in _paired(self.header, _HALF):
            lines.append(_latex_facts(facts) + r" \\")
        lines += [r"\hline"] if self.header else []
        lines += [r"\end{tabular}", "", rf"\begin{{tabular}}{{l{'r' * (n - 1)}}}", r"\hline"]
        lines += [" & ".join(grid[0]) + r" \\", r"\hline"]
        lines += [" & ".join(row) + r" \\" for row in grid[1:]]
        lines += [r"\hline", r"\end{tabular}"]
        lines += [rf"\par [{i}] {note.translate(_LATEX)}" for i, note in enumerate(self.notes, 1)]
        lines += [rf"\par {self.last.translate(_LATEX)}"] if self.last else []
        return "\n".join(lines)

    # So that a bare ``est.summary()`` shows the table, at a prompt and in a notebook.
    __repr__ = as_text
    _repr_html_ = as_html


def coefficient_frame(
    term_names: Sequence[str], solution: Solution, inference: Inference
) -> pd.DataFrame:
    """Tidy frame with one row per coefficient; ``"l2[fc1]"`` is term l2 of group fc1."""
    matches = [_GROUPED.fullmatch(name) for name in term_names]
    return pd.DataFrame(
        {
            "term": [m["term"] if m else name for m, name in zip(matches, term_names, strict=True)],
            "group": [m["group"] if m else "" for m in matches],
            "coef": solution.coef,
            "std_err": inference.std_err,
            "ci_low": inference.conf_int[:, 0],
            "ci_high": inference.conf_int[:, 1],
            "statistic": inference.tvalues,
            "p_value": inference.pvalues,
            "cosine": solution.cosine,
            "vif": solution.vif,
        }
    )


def json_ready(value: Any) -> Any:
    """A value, or what is in a dict or list, with None for NaN and infinite numbers."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(own) for key, own in value.items()}
    if isinstance(value, list):
        return [json_ready(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def coefficient_table(
    term_names: Sequence[str], solution: Solution, inference: Inference
) -> pd.DataFrame:
    """Table of the coefficients for people, as :class:`Summary` prints it."""
    tail = (1 - inference.confidence_level) / 2
    # The order in which statistical tables are read: estimate, error, test, interval, diagnosis.
    names = {
        "coef": "coef",
        "std_err": "std err",
        "statistic": "t",
        "p_value": "P>|t|",
        "ci_low": f"[{tail:.4g}",
        "ci_high": f"{1 - tail:.4g}]",
        "cosine": "cosine",
        "vif": "VIF",
    }
    table = coefficient_frame(term_names, solution, inference)[list(names)].rename(columns=names)
    # Rounding errors are no standard errors.
    if inference.exact and inference.df > 0 and not inference.over_rows:
        table = table.assign(**{"std err": "exact", "t": "-", "P>|t|": "-"})
    return table.set_axis(list(term_names))


def _grid(table: pd.DataFrame) -> list[list[str]]:
    columns = [["", *map(str, table.index)]]
    for name, values in table.items():
        columns.append([str(name), *(_formatted(str(name), value) for value in values.tolist())])
    return [list(row) for row in zip(*columns, strict=True)]


def _html_row(cells: Sequence[str]) -> str:
    return f"<tr><th>{cells[0]}</th><td>{'</td><td>'.join(cells[1:])}</td></tr>"


def _formatted(name: str, value: object) -> str:
    """Text of a number: significant digits for coefficients, decimals for tests and shares."""
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if name in ("P>|t|", "cosine"):
        return f"{value:.3f}"
    if name in ("t", "VIF"):
        digits = ".2f" if abs(value) < 1e3 else ".0f" if abs(value) < 1e6 else ".2e"
        return format(value, digits)
    return format(value, "#.3g" if name == "std err" else "#.4g").removesuffix(".")


def _header_lines(header: Sequence[Fact], width: int) -> list[str]:
    """Header in two columns, what is too long on lines of its own."""
    half = (width - 2) // 2
    lines: list[str] = []
    for facts in _paired(header, half):
        if _is_long(facts[0], half):
            line = ": ".join(facts[0])
            lines += textwrap.wrap(line, width, subsequent_indent="    ")
        else:
            lines.append("  ".join(f"{k}:" + v.rjust(half - len(k) - 1) for k, v in facts))
    return lines


def _latex_facts(facts: Sequence[Fact]) -> str:
    """A line of the header in four columns."""
    cells = [[f"{key}:".translate(_LATEX), value.translate(_LATEX)] for key, value in facts]
    if _is_long(facts[0], _HALF):
        return rf"\multicolumn{{4}}{{l}}{{{' '.join(cells[0])}}}"
    return " & ".join(map(" & ".join, cells))


def _paired(header: Sequence[Fact], half: int) -> list[list[Fact]]:
    """Lines of two facts, or of one that is longer than half a line or has no partner."""
    lines: list[list[Fact]] = []
    for fact in header:
        alone = not lines or len(lines[-1]) == 2 or _is_long(lines[-1][0], half)
        if alone or _is_long(fact, half):
            lines.append([fact])
        else:
            lines[-1].append(fact)
    return lines


def _is_long(fact: Fact, half: int) -> bool:
    return sum(map(len, fact)) + 2 > half
