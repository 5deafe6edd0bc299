"""Noise of a gradient over rows that differ at each reading, as augmentation makes them."""

from __future__ import annotations

import numpy as np
import torch

from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.inference import Inference, added
from sklearn_implicitreg.regression.place import Place
from sklearn_implicitreg.regression.solve import Solution, decompose
from sklearn_implicitreg.regression.system import Array


def share_of_readings(equations: Equations) -> float:
    """Share of noise in the squared norm of the targets, from how the readings differ."""
    noise = sum(_noise(place)[0] for place in equations.places if place.gradient.readings)
    whole = float(np.square(equations.system.merged[:, -1]).sum())
    return min(1.0, noise / whole) if whole else 0.0


def with_readings(equations: Equations, solution: Solution, inference: Inference) -> Inference:
    """Standard errors with the noise of the readings; several places differ by theirs already."""
    place = equations.places[0]
    readings = place.gradient.readings
    if len(equations.places) > 1 or len(readings) < 2 or not inference.df > 0:
        return inference
    # Of coef = A D't, with the products D't of every reading: A cov(D't) A'.
    used = np.flatnonzero(solution.active)
    upper = equations.system.r_factor[:, [*used, -1]]
    whitener = decompose(upper, eps=solution.eps).whitener
    weights = np.zeros((solution.n_terms, solution.n_terms))
    weights[np.ix_(used, used)] = whitener @ whitener.T
    cov = weights @ _noise(place)[1] @ weights.T
    words = f"the variance over {place.problem.n_passes} readings of the rows"
    return added(inference, solution, cov, len(readings) - 1, words, equations.rounding)


def _noise(place: Place) -> tuple[float, Array]:
    """Expected squared norm of the noise in a target, and covariance of its products, (k, k)."""
    gradient, k = place.gradient, len(place.design.term_names)
    n = len(gradient.readings)
    products, sizes = np.zeros((n, k)), np.zeros(n)
    if n < 2:
        return 0.0, np.zeros((k, k))
    for name in place.names:
        out, frame = place.dropped(name), place.design.frame(name)
        values = [own.value[name] for own in (gradient, *gradient.readings)]
        if frame is not None:  # without what its mask leaves out, in the tensor's own coordinates
            values, out = [frame.projected(value) for value in values], None
        mean, *each = [value.reshape(-1) for value in values]
        for start, columns, _ in place.design.full_pieces(name):
            rows = slice(start, start + len(columns))
            away = torch.stack([own[rows] for own in each]) - mean[rows]
            if out is not None:
                away = away.masked_fill(out[rows], 0.0)
            products += (away @ columns).cpu().numpy()
            sizes += away.square().sum(1).cpu().numpy()
    if place.powers is not None:
        products *= place.powers[:-1] * place.powers[-1]
        sizes *= place.powers[-1] ** 2
    # A mean over many readings has less noise: its weight times its square is that of one.
    weights = np.array([own.weight for own in gradient.readings])
    weights /= weights.sum() * (n - 1)
    return float(weights @ sizes), products.T @ (weights[:, None] * products)
