"""The table of a fit: for people as text, HTML or LaTeX, for programs as a tidy frame."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from sklearn_implicitreg.regression.inference import Inference
from sklearn_implicitreg.regression.solve import Solution

__all__ = ["Summary", "coefficient_frame", "coefficient_table"]

_WIDTH = 79
_GROUPED = re.compile(r"(?P<term>[^\[]+)\[(?P<group>.*)\]", re.DOTALL)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


@dataclass(frozen=True, eq=False)
class Summary:
    r"""Title, facts, table and notes of a fit, printable in three ways.

    Attributes
    ----------
    title : str
        Line above everything.
    header : list of (str, str)
        Facts as name and value, in two columns where they fit.
    table : DataFrame
        Numbers, one row per term, such as :func:`coefficient_table` makes.
    notes : list of str
        Sentences below the table, numbered.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"coef": [0.01]}, index=["l2"])
    >>> print(Summary("Ridge", [("R2", "1.000")], table, ["Exact."]).as_latex())
    \begin{tabular}{lr}
    \hline
    \multicolumn{2}{c}{Ridge} \\
    \hline
    \multicolumn{2}{l}{R2: 1.000} \\
    \hline
     & coef \\
    \hline
    l2 & 0.01000 \\
    \hline
    \end{tabular}
    \par [1] Exact.
    """

    title: str
    header: list[tuple[str, str]]
    table: pd.DataFrame
    notes: list[str] = field(default_factory=list)

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
        body = [
            row[0].ljust(names)
            + "".join(
                " " * gap + cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)
            )
            for row in grid
        ]
        double, single = "=" * width, "-" * width
        lines = [self.title.center(width).rstrip(), double]
        lines += [*_header_lines(self.header, width), single] if self.header else []
        lines += [body[0], single, *body[1:], double]
        for number, note in enumerate(self.notes, 1):
            mark = f"[{number}] "
            lines += textwrap.wrap(note, width, initial_indent=mark, subsequent_indent="    ")
        return "\n".join(line.rstrip() for line in lines)

    def as_html(self) -> str:
        """HTML: two tables and a list of notes.

        Returns
        -------
        str
            Fragment that needs no style sheet.
        """
        grid = [[html.escape(cell) for cell in row] for row in _grid(self.table)]
        facts = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
            for key, value in self.header
        )
        head = "".join(f"<th>{cell}</th>" for cell in grid[0])
        body = "".join(
            f"<tr><th>{row[0]}</th>" + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
            for row in grid[1:]
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<table><caption>{html.escape(self.title)}</caption><tbody>{facts}</tbody></table>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            + (f"<ol>{notes}</ol>" if notes else "")
        )

    def as_latex(self) -> str:
        """LaTeX: one ``tabular`` that needs no package, and the notes.

        Returns
        -------
        str
            Source with its special characters escaped.
        """
        grid = [[_latex(cell) for cell in row] for row in _grid(self.table)]
        n = len(grid[0])
        lines = [
            rf"\begin{{tabular}}{{l{'r' * (n - 1)}}}",
            r"\hline",
            rf"\multicolumn{{{n}}}{{c}}{{{_latex(self.title)}}} \\",
            r"\hline",
        ]
        for key, value in self.header:
            lines.append(rf"\multicolumn{{{n}}}{{l}}{{{_latex(key)}: {_latex(value)}}} \\")
        lines += [r"\hline"] if self.header else []
        lines += [" & ".join(grid[0]) + r" \\", r"\hline"]
        lines += [" & ".join(row) + r" \\" for row in grid[1:]]
        lines += [r"\hline", r"\end{tabular}"]
        lines += [rf"\par [{i}] {_latex(note)}" for i, note in enumerate(self.notes, 1)]
        return "\n".join(lines)

    def __str__(self) -> str:
        """Text form."""
        return self.as_text()

    def __repr__(self) -> str:
        """Text form, so that a bare ``est.summary()`` at a prompt shows the table."""
        return self.as_text()

    def _repr_html_(self) -> str:
        """HTML form, for notebooks."""
        return self.as_html()


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


def coefficient_table(
    term_names: Sequence[str], solution: Solution, inference: Inference
) -> pd.DataFrame:
    """Table of the coefficients for people, as :class:`Summary` prints it."""
    tail = (1 - inference.confidence_level) / 2
    table = coefficient_frame(term_names, solution, inference).drop(columns=["term", "group"])
    names = {
        "std_err": "std err",
        "statistic": "t",
        "p_value": "P>|t|",
        "ci_low": f"[{tail:.4g}",
        "ci_high": f"{1 - tail:.4g}]",
        "vif": "VIF",
    }
    # The order in which statistical tables are read: estimate, error, test, interval, diagnosis.
    order = ["coef", "std_err", "statistic", "p_value", "ci_low", "ci_high", "cosine", "vif"]
    table = table[order].rename(columns=names)
    table.index = pd.Index(list(term_names))
    return table


def _grid(table: pd.DataFrame) -> list[list[str]]:
    """Cells as text: a row of names, then one row per term."""
    columns = [str(name) for name in table.columns]
    values = [
        [_formatted(name, value) for value in table[column].tolist()]
        for name, column in zip(columns, table.columns, strict=True)
    ]
    rows = zip(*values, strict=True) if values else ([] for _ in table.index)
    return [
        ["", *columns],
        *([str(name), *row] for name, row in zip(table.index, rows, strict=True)),
    ]


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


def _header_lines(header: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Facts in two columns, those that are too long on lines of their own."""
    half = (width - 2) // 2
    lines: list[str] = []
    waiting: tuple[str, str] | None = None
    for key, value in header:
        if len(key) + len(value) + 2 > half:
            lines += [_fact(*waiting, half)] if waiting else []
            waiting = None
            lines += textwrap.wrap(f"{key}: {value}", width, subsequent_indent="    ")
        elif waiting is None:
            waiting = (key, value)
        else:
            lines.append(_fact(*waiting, half) + "  " + _fact(key, value, half))
            waiting = None
    return lines + ([_fact(*waiting, half)] if waiting else [])


def _fact(key: str, value: str, width: int) -> str:
    """Name at the left, value at the right."""
    return f"{key}:" + value.rjust(width - len(key) - 1)


def _latex(text: str) -> str:
    """Text with LaTeX's own characters escaped."""
    return "".join(_LATEX.get(character, character) for character in text)
