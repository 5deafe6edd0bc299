"""Families side by side: their names, and the table of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sklearn_implicitreg.penalties import as_penalty
from sklearn_implicitreg.problem.parameters import Allowed
from sklearn_implicitreg.results.summary import Summary

SEVERAL = Allowed(
    lambda given: isinstance(given, Mapping | list | tuple) and len(given) > 0,
    ("a list or dict of at least one family",),
)


def named_families(families: Any) -> dict[str, Any]:
    """Families by name, a dict or a list of them."""
    if isinstance(families, Mapping):
        named = dict(families)
    else:
        names = [f if isinstance(f, str) else repr(f) for f in families]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"Expected families of different names, got {twice} twice; name them by a dict."
            )
        named = dict(zip(names, families, strict=True))
    for family in named.values():
        as_penalty(family)  # an unknown one is an error before any pass over the data
    return named


def table_of_families(best: Summary, results: Mapping[str, Any], index: int) -> Summary:
    """Families with R2, criterion and verdict; the fit of the one at ``index`` is ``best``."""
    scores, names = np.asarray(results["mean_test_score"], dtype=float), results["name"]
    table = pd.DataFrame(
        {
            "terms": [str(n) for n in results["n_terms"]],
            "R2": [f"{value:.4f}" for value in results["r2"]],
            "criterion": scores,
            "behind": scores.max() - scores,
            "s.e.": np.asarray(results["se_difference"], dtype=float),
            "verdict": list(results["verdict"]),
        },
        index=[("> " if i == index else "  ") + str(name) for i, name in enumerate(names)],
    )
    notes = [
        "criterion: R2 less what leaving out one row in a hundred costs; behind: the best one's "
        "less this; s.e.: the standard error of that difference.",
    ]
    verdict = results["verdict"][index]
    if verdict != "supported":
        notes.insert(
            0,
            f"Caution: {names[index]} is the best of these families, and its verdict is "
            f"{verdict!r}. {best.notes[0]}",
        )
    return Summary("Families of implicit regularization", [], table, notes)


def records_of_families(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The families of a comparison for programs, in the order in which they were given."""
    columns = {
        "family": [str(name) for name in results["name"]],
        "n_terms": [int(n) for n in results["n_terms"]],
        "r2": [float(value) for value in results["r2"]],
        "criterion": [float(value) for value in results["mean_test_score"]],
        "se_difference": [float(value) for value in results["se_difference"]],
        "verdict": list(results["verdict"]),
    }
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
