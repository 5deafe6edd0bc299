"""Dropout layers at work."""

from __future__ import annotations

from typing import Any

from torch import nn

_DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_WITH_DROPOUT = (nn.MultiheadAttention, nn.RNNBase)  # layers that have a rate among other things


def draw_masks(module: nn.Module, rate: float | None) -> None:
    """Switch the dropout layers of a skeleton on, at a given rate or at their own."""
    found: list[tuple[Any, str]] = []
    for part in module.modules():
        if isinstance(part, _DROPOUTS):
            found.append((part, "p"))
        elif isinstance(part, _WITH_DROPOUT) and part.dropout > 0:
            found.append((part, "dropout"))
    if not found:
        raise ValueError(
            "Expected a model with dropout layers such as nn.Dropout(p), got none, so the rate p "
            "is not known; give the model with the layers that it was trained with (masks drawn "
            "by functions are not seen)."
        )
    if rate is None and not any(getattr(part, name) for part, name in found):
        raise ValueError(
            "Expected dropout layers with a rate p above 0, got rates of 0; give the rate of the "
            "training, as family=Dropout(p)."
        )
    if any(part.training for part, _ in found):
        raise ValueError(
            "Expected dropout layers at rest, whose loss is compared with that of their masks, "
            "got layers in training state; use module_mode='auto' or 'eval'."
        )
    for part, name in found:
        part.training = True
        if rate is not None:
            setattr(part, name, float(rate))
