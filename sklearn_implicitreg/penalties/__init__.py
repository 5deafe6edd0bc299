"""Families of penalties: named, user-written, combined."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from sklearn_implicitreg.penalties.anchored import EWC, PreconditionedL2
from sklearn_implicitreg.penalties.base import Fixed, Grouped, Penalty, Scoped, Sum
from sklearn_implicitreg.penalties.checks import check_penalty
from sklearn_implicitreg.penalties.decov import DeCov
from sklearn_implicitreg.penalties.dropout import Dropout
from sklearn_implicitreg.penalties.early_stopping import EarlyStopping
from sklearn_implicitreg.penalties.factored import (
    KroneckerPenalty,
    KroneckerQuadratic,
    LowRankPenalty,
    LowRankQuadratic,
)
from sklearn_implicitreg.penalties.fitted import FittedPenalty
from sklearn_implicitreg.penalties.frames import Frame
from sklearn_implicitreg.penalties.functions import ActivationL1, ActivationL2, Callables
from sklearn_implicitreg.penalties.gradients import BatchGradientNorm, GradientNorm
from sklearn_implicitreg.penalties.groups import L21, GroupLasso, MaxNorm
from sklearn_implicitreg.penalties.inputs import DropoutQuadratic, InputNoise, Jacobian, Mixup
from sklearn_implicitreg.penalties.learned import Learned, LearnedPenalty
from sklearn_implicitreg.penalties.matrices import (
    Coherence,
    LayerBalance,
    Orthogonality,
    RowNormVariance,
)
from sklearn_implicitreg.penalties.outputs import (
    KLToReference,
    LabelSmoothing,
    OutputEntropy,
    OutputL2,
)
from sklearn_implicitreg.penalties.path_norm import PathNorm
from sklearn_implicitreg.penalties.quadratic import Diagonal, Quadratic
from sklearn_implicitreg.penalties.sharpness import HessianTrace, Sharpness
from sklearn_implicitreg.penalties.spectra import (
    ConditionNumber,
    EffectiveDepth,
    LogDet,
    LogNormVariance,
    LogSpectralNorm,
    Nuclear,
    Schatten,
    SpectralEntropy,
    SpectralGap,
    SpectralNorm,
    StableRank,
)
from sklearn_implicitreg.penalties.spline import Spline
from sklearn_implicitreg.penalties.structured import (
    Structured,
    StructuredPenalty,
    StructuredSolution,
)
from sklearn_implicitreg.penalties.weights import (
    L1,
    L2,
    MCP,
    SCAD,
    ElasticNet,
    L1OverL2,
    L1Squared,
    LogCosh,
    LogPenalty,
    Power,
    SmoothL1,
    WeightDecay,
)
from sklearn_implicitreg.problem import RowBatch
from sklearn_implicitreg.problem.parameters import shown

__all__ = [
    "ALIASES",
    "EWC",
    "FAMILIES",
    "L1",
    "L2",
    "L21",
    "MCP",
    "SCAD",
    "STRUCTURED",
    "ActivationL1",
    "ActivationL2",
    "BatchGradientNorm",
    "Callables",
    "Coherence",
    "ConditionNumber",
    "DeCov",
    "Diagonal",
    "Dropout",
    "DropoutQuadratic",
    "EarlyStopping",
    "EffectiveDepth",
    "ElasticNet",
    "FittedPenalty",
    "Fixed",
    "Frame",
    "GradientNorm",
    "GroupLasso",
    "Grouped",
    "Learned",
    "LearnedPenalty",
    "L1OverL2",
    "L1Squared",
    "LayerBalance",
    "KroneckerPenalty",
    "KroneckerQuadratic",
    "LogCosh",
    "LogPenalty",
    "LowRankPenalty",
    "LowRankQuadratic",
    "MaxNorm",
    "Orthogonality",
    "LogDet",
    "LogNormVariance",
    "LogSpectralNorm",
    "Nuclear",
    "HessianTrace",
    "InputNoise",
    "Jacobian",
    "KLToReference",
    "LabelSmoothing",
    "Mixup",
    "OutputEntropy",
    "OutputL2",
    "PathNorm",
    "Penalty",
    "Power",
    "PreconditionedL2",
    "Quadratic",
    "RowBatch",
    "RowNormVariance",
    "Scoped",
    "Sharpness",
    "SmoothL1",
    "Spline",
    "Schatten",
    "SpectralEntropy",
    "SpectralGap",
    "SpectralNorm",
    "StableRank",
    "Structured",
    "StructuredPenalty",
    "StructuredSolution",
    "Sum",
    "WeightDecay",
    "as_penalty",
    "check_penalty",
    "penalty_with_terms",
]

FAMILIES: dict[str, type[Penalty]] = {
    "l2": L2,
    "l1": L1,
    "smooth_l1": SmoothL1,
    "elastic_net": ElasticNet,
    "weight_decay": WeightDecay,
    "power": Power,
    "l21": L21,
    "spline": Spline,
    "l1_squared": L1Squared,
    "l1_over_l2": L1OverL2,
    "group_lasso": GroupLasso,
    "max_norm": MaxNorm,
    "row_norm_variance": RowNormVariance,
    "layer_balance": LayerBalance,
    "coherence": Coherence,
    "orthogonality": Orthogonality,
    "nuclear": Nuclear,
    "schatten": Schatten,
    "log_det": LogDet,
    "spectral_norm": SpectralNorm,
    "log_spectral_norm": LogSpectralNorm,
    "stable_rank": StableRank,
    "spectral_entropy": SpectralEntropy,
    "spectral_gap": SpectralGap,
    "condition_number": ConditionNumber,
    "effective_depth": EffectiveDepth,
    "log_norm_variance": LogNormVariance,
    "output_l2": OutputL2,
    "output_entropy": OutputEntropy,
    "label_smoothing": LabelSmoothing,
    "jacobian": Jacobian,
    "input_noise": InputNoise,
    "mixup": Mixup,
    "dropout_quadratic": DropoutQuadratic,
    "path_norm": PathNorm,
    "sharpness": Sharpness,
    "hessian_trace": HessianTrace,
    "gradient_norm": GradientNorm,
    "batch_gradient_norm": BatchGradientNorm,
    "dropout": Dropout,
}

# Other words for families, whose terms have the names of the family; the second block is that of
# the code of Rudoler, Tan, Hooker and Kording (2026), whose means over matrices are sums here.
ALIASES: dict[str, type[Penalty]] = {
    "ridge": L2,
    "lasso": L1,
    "grad_squared": GradientNorm,
    "layer_norm_balance": LogNormVariance,
    "layer_norm_product": LogSpectralNorm,
    "nuclear_norm": Nuclear,
    "orthogonal": Orthogonality,
    "smooth_lasso": SmoothL1,
    "smoothed_schatten": Schatten,
    "weight_coherence": Coherence,
}

STRUCTURED: dict[str, type[Structured]] = {
    "diagonal": Diagonal,
    "quadratic": Quadratic,
    "early_stopping": EarlyStopping,
    "kronecker": KroneckerQuadratic,
}


def as_penalty(family: Any) -> Penalty | Structured:
    """Penalty that a ``family=`` argument stands for.

    Parameters
    ----------
    family : str, Penalty, Structured, list, or dict of str to callable
        Names of :data:`FAMILIES`, or of :data:`ALIASES` such as ``"ridge"``, joined by ``+``, a
        list to join, or a name of :data:`STRUCTURED`;
        ``f(params)`` or ``f(params, batch)`` with a number per row of a :class:`RowBatch`.

    Returns
    -------
    penalty : Penalty or Structured

    Raises
    ------
    ValueError
        If a name is not known, or a structured family is joined with others.
    TypeError
        If it is none of the above.

    See Also
    --------
    penalty_with_terms : The same where only a family with terms will do.

    Examples
    --------
    >>> as_penalty("l2+l1")
    Sum(parts=[L2(), L1()])
    >>> as_penalty("ridge")
    L2()
    >>> as_penalty("quadratic")
    Quadratic()
    """
    if isinstance(family, Penalty):
        family.check_parameters(unknown=True)
        return family
    if isinstance(family, Structured):
        family.check_parameters()
        return family
    if isinstance(family, str):
        names = [name.strip() for name in family.split("+")]
        parts = [_named(name) for name in names]
    elif isinstance(family, Mapping):
        functions = Callables(family)
        functions.check_parameters()
        return functions
    elif isinstance(family, list | tuple) and family:
        parts = [as_penalty(part) for part in family]
    else:
        raise TypeError(
            "Expected family to be a name of penalties.FAMILIES or STRUCTURED, such as 'l2', a "
            "Penalty, a list of these, or a dict of name to callable(params) -> scalar, got "
            f"{shown(family)}{'; give an instance' if isinstance(family, type) else ''}."
        )
    if len(parts) == 1:
        return parts[0]
    total = penalty_with_terms(parts[0])
    for part in parts[1:]:
        total = total + penalty_with_terms(part)
    return total


def penalty_with_terms(family: Any) -> Penalty:
    """Penalty that a ``family=`` argument stands for, where it must have terms.

    Parameters
    ----------
    family : str, Penalty, list, or dict of str to callable
        As for :func:`as_penalty`.

    Returns
    -------
    penalty : Penalty

    Raises
    ------
    ValueError
        If the family is a structured one, which has no terms to be joined, fixed or compared.

    Examples
    --------
    >>> penalty_with_terms("l2")
    L2()
    """
    penalty = as_penalty(family)
    if isinstance(penalty, Structured):
        raise ValueError(
            f"Expected a family with terms, a name of penalties.FAMILIES or a Penalty, got "
            f"{penalty!r}: it is solved as a whole and stands alone, as family={family!r}."
        )
    return penalty


def _named(name: str) -> Penalty | Structured:
    known: dict[str, type[Penalty | Structured]] = {**FAMILIES, **ALIASES, **STRUCTURED}
    if name in known:
        return known[name]()
    plain, call, _ = name.replace("_", "").lower().partition("(")
    without = set(__all__) - {cls.__name__ for cls in known.values() if not call}
    classes = [own for own in sorted(without) if own.lower() == plain]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.45)
    if classes:
        hint = f"The class {classes[0]} is given as an instance, family={classes[0]}(...)."
    else:
        hint = f"Did you mean {near[0]!r}?" if near else f"The names are {', '.join(known)}."
    raise ValueError(
        f"Unknown family {name!r}; expected names of penalties.FAMILIES or STRUCTURED, joined by "
        f"'+'. {hint}"
    )
