"""From a filter and decomposed data to the penalty, checked to be one."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from scipy.linalg import null_space

from sklearn_implicitreg.exceptions import IndefinitePenaltyWarning, StepSizeWarning
from sklearn_implicitreg.theory.checks import as_vector
from sklearn_implicitreg.theory.quadratic import ImplicitPenalty
from sklearn_implicitreg.theory.spectral import SpectralFilter
from sklearn_implicitreg.theory.spectrum import Spectrum

__all__ = ["check_gain", "filtered"]

Array = npt.NDArray[np.float64]
_ROUNDING = 1e-12  # of 1 - f, where f = 1 is meant
_ARRIVED = 1e-9  # of 1 - f of conjugate gradients, which gather rounding on the way


def filtered(
    spectrum: Spectrum,
    filter: SpectralFilter,
    y: npt.ArrayLike | None,
    start: npt.ArrayLike | None,
    notes: list[str],
) -> ImplicitPenalty:
    """The penalty of a filter on decomposed data."""
    if not isinstance(filter, SpectralFilter):
        raise TypeError(f"Expected a filter such as gradient_descent(lr, n_steps), got {filter!r}.")
    p, rank = spectrum.vectors.shape
    begin = np.zeros(p) if start is None else as_vector("start", start, p)
    target = None if y is None else as_vector("y", y, spectrum.data.shape[1])
    s = np.append(spectrum.s, 0.0) if rank < p else spectrum.s
    if filter.needs_y:
        residual, gain, said = _for_target(spectrum, filter, s, target, begin)
        notes = [*notes, *said]
    else:
        residual, gain = filter.response(s)
    if filter.drops:
        return _constrained(spectrum, filter, gain[:rank], begin, target, notes)
    check_gain(filter, s, residual, gain)
    notes = [*notes, *_indefinite(filter, residual)]
    penalty = residual / gain
    if rank < p:
        notes = [
            *notes,
            f"The data have rank {rank} of {p}: the eigenvectors span their row space. Beside it "
            f"the weights stay at the start, and the penalty is 1/f'(0) = {penalty[-1]:.4g}.",
        ]
    return ImplicitPenalty(
        filter,
        penalty[:rank] * spectrum.scale,
        spectrum.vectors,
        float(penalty[-1]) if rank < p else 0.0,
        np.empty((p, 0)),
        begin,
        tuple(notes),
        gain[:rank],
        spectrum,
        target,
    )


def _for_target(
    spectrum: Spectrum, filter: SpectralFilter, s: Array, y: Array | None, start: Array
) -> tuple[Array, Array, list[str]]:
    """Response of a filter that depends on y, and what is to be said of it."""
    if y is None:
        raise ValueError(f"Expected y for {filter.name}, whose filter depends on it, got none.")
    towards = spectrum.gradient(y, start)
    residual, gain = filter.response(s, np.append(towards, np.zeros(s.size - towards.size)))
    notes = [f"The penalty of {filter.name} holds for this y only."]
    if np.max(np.abs(residual[: towards.size])) < _ARRIVED:
        notes.append("It has arrived at least squares, and its penalty is zero to rounding.")
    return residual, gain, notes


def _constrained(
    spectrum: Spectrum,
    filter: SpectralFilter,
    gain: Array,
    start: Array,
    y: Array | None,
    notes: list[str],
) -> ImplicitPenalty:
    """No penalty on the directions kept, and the others held at the start."""
    dropped = null_space(spectrum.vectors[:, gain > 0].T)
    notes = [*notes, f"The weights are held at the start in {dropped.shape[1]} directions."]
    zero = np.zeros(len(gain))
    return ImplicitPenalty(
        filter, zero, spectrum.vectors, 0.0, dropped, start, tuple(notes), gain, spectrum, y
    )


def check_gain(filter: SpectralFilter, s: Array, residual: Array, gain: Array) -> None:
    """Refuses f <= 0 and what is not finite, warns of steps that diverge."""
    bad = np.flatnonzero(~(gain > 0) | ~np.isfinite(residual))
    diverges = float(s[0]) >= filter.limit
    large = f"its steps diverge where s >= {filter.limit:.4g}, and the largest s is {s[0]:.4g}"
    if bad.size:
        shown = ", ".join(f"{i} (s = {s[i]:.4g}, f = {s[i] * gain[i]:.4g})" for i in bad[:5])
        more = f" and {bad.size - 5} more" * (bad.size > 5)
        raise ValueError(
            f"Expected 0 < f < inf, got under {filter.name} in the directions {shown}{more}: the "
            "weights are a stationary point of L + R there, not a minimum. Take another number of "
            f"steps, or a smaller step size{'; ' + large if diverges else ''}."
        )
    if diverges:
        warnings.warn(f"{filter.name}: {large}.", StepSizeWarning, stacklevel=4)


def _indefinite(filter: SpectralFilter, residual: Array) -> list[str]:
    """Warns of f > 1."""
    over = np.flatnonzero(residual < -_ROUNDING)
    if not over.size:
        return []
    note = (
        f"Lambda indefinite, L + R still convex: under {filter.name} f reaches "
        f"{1 - float(np.min(residual)):.4g} > 1, in {over.size} directions."
    )
    warnings.warn(note, IndefinitePenaltyWarning, stacklevel=4)
    return [note]
