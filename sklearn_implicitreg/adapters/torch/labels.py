"""Labels as an argument of modules that return their own loss, as those of Hugging Face do."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100  # what labels that do not count are, in torch and in Hugging Face's collators


def names_labels(name: str) -> bool:
    """Whether an argument or a key has labels, as Hugging Face names them."""
    return "label" in name or name in ("start_positions", "end_positions")


def inputs_and_labels(item: Mapping[str, Any]) -> tuple[Any, Any]:
    """Inputs of a dict by the arguments of a model, and its labels; a dict of these if several."""
    labels = {key: value for key, value in item.items() if names_labels(key)}
    if not labels:
        raise TypeError(
            f"Expected batches (inputs, target) or dicts with 'labels', got a dict of "
            f"{list(item)}; give the loader a collate_fn that returns one of these."
        )
    inputs = {key: value for key, value in item.items() if key not in labels}
    target = labels if len(labels) > 1 else next(iter(labels.values()))
    return inputs, target


def label_names(module: nn.Module) -> tuple[str, ...]:
    """Arguments of a module that take labels; none where it computes no loss of its own."""
    arguments = inspect.signature(module.forward).parameters
    names = [name for name in arguments if names_labels(name)]
    kinds = {argument.kind for argument in arguments.values()}
    if not names and inspect.Parameter.VAR_KEYWORD in kinds:
        names = ["labels"]
    return tuple(sorted(names, key=lambda name: name != "labels"))


def with_labels(
    module: nn.Module, inputs: Any, target: Any, names: Sequence[str]
) -> dict[str, Any]:
    """Inputs by their names, the target among them."""
    if not isinstance(inputs, Mapping):
        values = inputs if isinstance(inputs, tuple) else (inputs,)
        inputs = dict(zip(inspect.signature(module.forward).parameters, values, strict=False))
    if not isinstance(target, Mapping):
        target = {names[0]: target}
    return {**{k: v for k, v in inputs.items() if k not in target}, **target}


def labels_in(labels: Tensor) -> Tensor:
    """Which labels count in a mean over them."""
    return labels != IGNORED


def labels_after_first(labels: Tensor) -> Tensor:
    """Which of them count where each position predicts the next one: not the first of a row."""
    kept = labels != IGNORED
    kept[..., 0] = False
    return kept


def with_other_first(labels: Tensor) -> Tensor | None:
    """Labels whose first ones are others; None if there are no others."""
    found = labels[labels != IGNORED].unique()
    if len(found) < 2:
        return None
    places = torch.searchsorted(found, labels[..., 0].contiguous()) + 1
    other = labels.clone()
    other[..., 0] = found[places % len(found)]
    return other
