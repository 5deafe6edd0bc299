"""The table of what each term adds to R-squared."""

from __future__ import annotations

import pandas as pd

from sklearn_implicitreg.regression.attribution import MOST_TERMS, shares_of_r2
from sklearn_implicitreg.regression.equations import Equations


def table_of_shares(equations: Equations) -> pd.DataFrame:
    """Shares of R-squared of the family's terms, the nuisance columns projected out."""
    system = equations.in_r2
    names = [system.term_names[j] for j in equations.family]
    if len(names) > MOST_TERMS:
        raise ValueError(
            f"Expected at most {MOST_TERMS} terms to share R2 among, got {len(names)}; fit fewer, "
            "or read the layers off by_layer()."
        )
    shares = shares_of_r2(equations.without_nuisance(system))
    return pd.DataFrame(shares._asdict(), names).rename(columns={"average": "share"})
