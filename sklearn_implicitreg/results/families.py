"""The table of all families of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sklearn_implicitreg.results.summary import Summary


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
