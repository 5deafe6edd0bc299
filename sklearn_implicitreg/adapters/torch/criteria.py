"""What ``loss=`` stands for: a name, a criterion or a callable as a loss of rows."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from sklearn_implicitreg.adapters.torch.losses import RowLoss
from sklearn_implicitreg.problem.frozen import rebuilt

LOSSES: dict[str, Callable[[], nn.Module]] = {
    "mse": nn.MSELoss,
    "mae": nn.L1Loss,
    "huber": nn.HuberLoss,
    "cross_entropy": nn.CrossEntropyLoss,
    "bce": nn.BCELoss,
    "bce_with_logits": nn.BCEWithLogitsLoss,
    "nll": nn.NLLLoss,
    "poisson_nll": nn.PoissonNLLLoss,
}
_WORDS = {
    "MSELoss": "squared error (no 1/2)",
    "L1Loss": "absolute error",
    "CrossEntropyLoss": "cross-entropy",
    "NLLLoss": "negative log-likelihood",
}
_ELEMENTWISE = (
    nn.MSELoss,
    nn.L1Loss,
    nn.HuberLoss,
    nn.SmoothL1Loss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
    nn.KLDivLoss,
)


def resolve_loss(loss: Any, classes: Tensor | None = None, returned: bool = False) -> RowLoss:
    """Row loss that the ``loss=`` argument of a bare module stands for; its own if returned."""
    if returned:
        return RowLoss(_returned, "loss that the model returns, mean over rows", custom=True)
    if isinstance(loss, str) and loss in LOSSES:
        loss = LOSSES[loss]()
    if isinstance(loss, str) or loss is None:
        known = list(LOSSES)
        if loss in ("auto", None):
            raise ValueError(
                "A bare nn.Module does not say what it was trained with: give `loss=`, one of "
                f"{known}, an nn loss, or a callable(output, target)."
            )
        words = {name: name for name in known}
        words |= {make.__name__.lower(): name for name, make in LOSSES.items()}
        words |= {_WORDS.get(make.__name__, name): name for name, make in LOSSES.items()}
        near = difflib.get_close_matches(loss.lower().replace("_", " "), words, n=1)
        near = near or difflib.get_close_matches(loss.lower(), words, n=1)
        hint = f" Did you mean {words[near[0]]!r}?" if near else ""
        raise ValueError(f"Unknown loss {loss!r}; expected one of {known}.{hint}")
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(
            f"Expected loss to be one of {list(LOSSES)}, an nn loss instance or a "
            f"callable(output, target), got {loss!r}."
        )
    return undo_reduction(loss, classes)


def _returned(output: Any, target: Any) -> Tensor:
    """Loss that a model returns where labels are given."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(output, tuple) and loss is None and output:
        loss = output[0]
    if not isinstance(loss, Tensor):
        raise TypeError(
            "Expected a model that returns its loss where labels are given, as `output.loss`, got "
            f"{type(output).__name__} without one; give `loss=`."
        )
    return loss


def undo_reduction(loss: Any, classes: Tensor | None = None) -> RowLoss:
    """Row loss of an nn criterion (its reduction undone) or of a callable."""
    name = getattr(loss, "__name__", type(loss).__name__)
    _check_takes_two(loss, name)
    given = None
    if isinstance(loss, nn.Module):
        own = not type(loss).__module__.startswith("torch.")
        given = rebuilt(loss, _shared, Tensor.detach) if own else None
        loss = rebuilt(loss, _shared, Tensor.detach)
    reduction = getattr(loss, "reduction", None)
    if not isinstance(loss, nn.Module) or not isinstance(reduction, str):
        return RowLoss(loss, f"{name}, mean over rows", classes=classes, custom=True)
    vars(loss)["reduction"] = "none"
    kind, summed = _kind(loss), reduction in ("sum", "batchmean")
    words = f"{_WORDS.get(name, name)}, mean over rows"
    if summed and kind != "classes":
        words = f"{_WORDS.get(name, name)}, summed over outputs, mean over rows"
    elif isinstance(loss, nn.MSELoss | nn.L1Loss):
        words += " and outputs"
    if kind == "classes" and getattr(loss, "weight", None) is not None:
        words += ", class weights divided out"
    rows = reduction == "sum"
    return RowLoss(
        loss,
        words,
        kind,
        sum_outputs=summed,
        classes=classes,
        trained_sum=rows,
        given=given,
        custom=given is not None,
    )


def _check_takes_two(loss: Any, name: str) -> None:
    """Raise TypeError for a loss of other arguments than output and target."""
    try:
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except (TypeError, ValueError):  # built-in functions have none
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"Expected a loss of (output, target), got {name}, which takes {signature}; give a "
            "callable(output, target) that calls it."
        ) from error


def _shared(tensor: Tensor) -> Tensor:
    """The same numbers in a tensor object of its own."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
    return tensor.detach()


def _kind(loss: nn.Module) -> str:
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return "classes"
    if isinstance(loss, nn.BCELoss | nn.BCEWithLogitsLoss):
        return "binary"
    return "regression" if isinstance(loss, _ELEMENTWISE) else "free"
