"""The table of a fit layer by layer: coefficients, R2 and verdict of each layer alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from sklearn_implicitreg.penalties.base import layer_of
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.fit import Settings, judged_fit

_NAMES = ("coef", "ci_low", "ci_high")
_NONE = (math.nan,) * len(_NAMES)

# What a layer has: numbers of each term, R2 and verdict.
_Own = tuple[Mapping[str, tuple[float, ...]], float, str]


def table_of_layers(equations: Equations, settings: Settings) -> pd.DataFrame:
    """Every layer's own fit, from the R factors of its tensors; nothing is evaluated again."""
    layers: dict[str, list[str]] = {}
    for name in equations.judged.names:
        layers.setdefault(layer_of(name), []).append(name)
    if not layers:
        raise ValueError(
            "Expected a model with layers for by_layer, got equations given as arrays; fit the "
            "model that they are of."
        )
    if settings.covariance == "cluster" and equations.cluster == "tensor":
        settings = replace(settings, covariance="auto")  # a layer has a tensor or two
    system = equations.judged.system
    sizes = {
        label: float(np.linalg.norm(upper[:, -1]))
        for label, upper in zip(system.labels, system.r_factors, strict=True)
    }
    counts = dict(zip(system.labels, system.counts, strict=True))
    total = math.hypot(*sizes.values())
    found = {layer: _own(equations, names, settings) for layer, names in layers.items()}
    terms = list(dict.fromkeys(term for numbers, *_ in found.values() for term in numbers))
    rows = []
    for layer, names in layers.items():
        numbers, r2, verdict = found[layer]
        own = [value for term in terms for value in numbers.get(term, _NONE)]
        size = math.hypot(*(sizes.get(name, 0.0) for name in names))
        share = (size / total) ** 2 if total else math.nan
        rows.append([*own, r2, share, sum(counts.get(name, 0) for name in names), verdict])
    # One term needs no name beside its numbers.
    one = len(terms) == 1
    columns = [name if one else f"{name}[{term}]" for term in terms for name in _NAMES]
    columns += ["r2", "share", "n_equations", "verdict"]
    named = pd.Index(columns, name=terms[0] if one else None)
    return pd.DataFrame(rows, index=pd.Index(list(layers), name="layer"), columns=named)


def _own(whole: Equations, names: list[str], settings: Settings) -> _Own:
    """Fit of one layer; NaN where it has fewer equations than coefficients."""
    columns = whole.reaching(names)
    family = [whole.term_names[j] for j in columns if j in whole.family]
    if not family:
        return {}, 0.0, "out of family"
    equations, k = whole.on(names, columns), len(columns)
    first, mean = equations.places, equations.judged
    n = min(sum(place.system.n_equations for place in first), mean.system.n_equations)
    if n < k:
        return dict.fromkeys(_short(family).values(), _NONE), math.nan, "not identifiable"
    result = judged_fit(equations, settings)
    assert result.conf_int is not None
    numbers = {
        term: (float(result.coef[j]), *map(float, result.conf_int[j]))
        for j, term in enumerate(result.term_names)
    }
    return (
        {short: numbers[term] for term, short in _short(family).items()},
        float(result.r2),
        result.verdict.label,
    )


def _short(terms: list[str]) -> dict[str, str]:
    """Names without their groups, which the layer stands for, where they differ without."""
    short = [term.partition("[")[0] for term in terms]
    return dict(zip(terms, short if len(set(short)) == len(short) else terms, strict=True))
