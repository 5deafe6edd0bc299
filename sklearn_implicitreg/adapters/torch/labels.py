"""Labels as an argument of modules that return their own loss, as those of Hugging Face do."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sklearn_implicitreg.adapters.torch.data import names_labels


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
