"""The loss of a module, row by row: the user's reduction undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_implicitreg.adapters.torch.data import map_tensors
from sklearn_implicitreg.exceptions import OutputWarning, warn_user
from sklearn_implicitreg.problem.frozen import tensors_in

_MAX_GROUPS = 64  # of rows of equal weight, for each of which a mean is taken


@dataclass(frozen=True)
class RowLoss:
    """Weighted sum of the losses of some rows, and the weight that the mean divides by."""

    criterion: Callable[[Tensor, Tensor], Tensor]  # unreduced, or a mean over the rows
    words: str  # for summaries
    kind: str = "free"  # of the targets: "classes", "binary", "regression", or "free", any
    sum_outputs: bool = False  # several outputs of a row are summed rather than averaged
    classes: Tensor | None = None  # sorted labels in all rows, where they are known
    named_labels: bool = False  # labels number the names in y, one for each class
    evaluate: Callable[[Any, Any], Tensor] | None = None  # the loss, if more than the criterion
    inside: Callable[[Any, Any], Tensor] | None = None  # the same where it calls the model itself
    model: nn.Module | None = None  # what the loss has as the trained model; None: the user's own
    strict: bool = False  # targets pass unchanged and must have the shape of the outputs
    scalar_is_sum: bool = False  # a loss that is one number is a sum over rows, not a mean
    trained_sum: bool = False  # the reduction that was undone is a sum over rows
    given: Callable[[Any, Any], Tensor] | None = None  # of a user's class, with its reduction
    custom: bool = False  # written by the user: a few rows show what it returns
    reshaped: bool = True  # a target of one column takes the shape of the outputs
    by_rows: bool = True  # a mean over rows, however they are cut into blocks
    elements: bool = False  # a mean over what rows are made of, in batches also of one row
    on_rows: Callable[[Any], None] | None = None  # names the rows of the next outputs
    counted: Callable[[Tensor], Tensor] | None = None  # labels in the mean that a model returns

    def prepare(self, output: Any, target: Any) -> Any:
        """Target in the shape, type and labels that the criterion takes for this output."""
        if self.strict:
            if self.kind == "regression" and output.shape != target.shape:
                raise ValueError(
                    f"Expected y of the shape of the outputs, {tuple(output.shape)}, got "
                    f"{tuple(target.shape)}: the net's own loss broadcast them against each "
                    "other in training. Train it with y.reshape(-1, 1)."
                )
            return target
        if not isinstance(output, Tensor) or not isinstance(target, Tensor):
            if self.kind == "free":
                return target
            raise TypeError(
                f"Expected the module to return one Tensor for the loss {self.words!r}, got "
                f"{type(output).__name__}; give a callable loss(output, target), or loss='auto' "
                "where the model returns its own."
            )
        if self.kind == "classes":
            return self._class_indices(output, target)
        if self.kind == "binary":
            target = self._binary_labels(target)
        if self.kind != "free" or target.is_floating_point():
            target = target.to(output.dtype)
        elif target.dtype != torch.bool:
            target = target.long()  # torch's own losses take no other integers as labels
        return self._same_shape(output, target)

    def __call__(self, output: Any, target: Any, weight: Tensor | None) -> tuple[Tensor, float]:
        """Sum of the row losses (differentiable), and the total weight of the rows."""
        value = self._value(output, target)
        n_rows = _n_rows(output, target)
        element = self._element_weights(target)
        if value.ndim == 0:
            if weight is not None:
                return self._weighted_mean(value, output, target, weight)
            total = float(n_rows) if element is None else float(element.sum())
            if not total and self.counted is not None:  # a mean over nothing
                value = value.nan_to_num()
            return value if self.scalar_is_sum else value * total, total
        if value.shape[0] != n_rows:
            raise ValueError(
                f"Expected the loss to return a mean or one number for each of {n_rows} rows, "
                f"got shape {tuple(value.shape)}."
            )
        if self.custom and self.given is None and value.numel() != n_rows:
            raise ValueError(
                f"Expected the loss to return a mean or one number for each of {n_rows} rows, "
                f"got shape {tuple(value.shape)}, whose mean is not known (over all numbers, over "
                "those that are not ignored, or of shapes broadcast by accident); return the mean "
                "that the model was trained with, or its value for each row."
            )
        rows = value.reshape(n_rows, -1)
        if element is None:
            per_row = rows.sum(1) if self.sum_outputs else rows.mean(1)
            row_weight = torch.ones_like(per_row)
        else:  # class weights and ignored targets count in what the mean divides by
            per_row, row_weight = rows.sum(1), element.reshape(n_rows, -1).sum(1)
        if weight is not None:
            per_row, row_weight = per_row * weight, row_weight * weight
        return per_row.sum(), float(row_weight.double().sum())

    def each(self, output: Any, target: Any) -> tuple[Tensor, Tensor | None]:
        """Loss of every row times its weight in the mean, and that weight; None: all are one."""
        if self.inside is not None:
            raise ValueError(
                f"Expected a loss of outputs and targets for this penalty, got {self.words!r}, "
                "which calls the model; add what it takes from the model as a term of its own."
            )
        target = self.prepare(output, target)
        value, n_rows = self._value(output, target), _n_rows(output, target)
        if value.ndim == 0 or len(value) != n_rows:
            raise ValueError(
                f"Expected a loss that returns one number for each of {n_rows} rows for this "
                f"penalty, got shape {tuple(value.shape)}; return the unreduced losses."
            )
        rows, element = value.reshape(n_rows, -1), self._element_weights(target)
        if element is None:
            return rows.sum(1) if self.sum_outputs else rows.mean(1), None
        return rows.sum(1), element.reshape(n_rows, -1).sum(1)

    def counts(self, target: Any) -> Tensor | None:
        """Weights of rows that are known without outputs: how many labels are not ignored."""
        if not self.by_class or self.criterion.weight is not None:  # type: ignore[attr-defined]
            return None
        if not isinstance(target, Tensor) or target.is_floating_point():
            return None
        kept = target != self._ignore_index
        return kept.reshape(len(kept), -1).sum(1)

    def _value(self, output: Any, target: Any) -> Tensor:
        try:
            value = (self.evaluate or self.criterion)(output, target)
        except RuntimeError as error:
            if "between 0 and 1" not in str(error):  # of BCELoss
                raise
            raise ValueError(
                f"Expected 0 to 1 for {self.words!r}, got others; use loss='bce_with_logits'."
            ) from error
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected the loss to return a Tensor, got {type(value).__name__}.")
        if not value.is_floating_point():
            raise TypeError(
                f"Expected the loss to return real floating-point numbers, got {value.dtype}."
            )
        return value

    def _weighted_mean(
        self, value: Tensor, output: Any, target: Any, weight: Tensor
    ) -> tuple[Tensor, float]:
        """Weighted sum of a loss that is a mean: of rows of equal weight it is known."""
        groups = weight.unique().tolist()
        if len(groups) > 1 and (not self.by_rows or len(groups) > _MAX_GROUPS):
            raise ValueError(
                "Expected a loss that returns one number per row to go with sample_weight, got a "
                "single mean; return the unreduced losses."
            )
        element = self._element_weights(target)
        parts, total = [], 0.0
        for factor in groups:
            rows = torch.nonzero(weight == factor)[:, 0]
            if len(groups) > 1:
                value = self._value_on(rows, output, target)
            mass = float(len(rows)) if element is None else float(element[rows].sum())
            if factor and mass:
                parts.append(value * (factor if self.scalar_is_sum else factor * mass))
                total += factor * mass
        if not parts:  # a mean over nothing
            return value.nan_to_num() * 0, total
        return sum(parts, start=value.new_zeros(())), total

    def _value_on(self, rows: Tensor, output: Any, target: Any) -> Tensor:
        """Value of the loss on some of the rows."""
        if any(not t.ndim for t in tensors_in((output, target))):
            raise ValueError(
                "Expected no weights of rows with a loss that comes with the outputs, as a mean; "
                "give a callable(output, target) that returns one number per row as `loss=`."
            )
        if self.on_rows is not None:
            self.on_rows(rows)
        try:
            return self._value(*map_tensors(lambda t: t[rows], (output, target)))
        finally:
            if self.on_rows is not None:
                self.on_rows(None)

    @property
    def by_class(self) -> bool:
        """Whether targets may be labels of classes, with weights of their own."""
        return isinstance(self.criterion, nn.CrossEntropyLoss | nn.NLLLoss)

    def weighs(self, classes: Tensor) -> bool:
        """Whether labels of these classes may count with weights that are not all one."""
        weight = self.criterion.weight  # type: ignore[attr-defined]
        return weight is not None or bool((classes == self._ignore_index).any())

    def masses(self, target: Any, weight: Tensor | None) -> Tensor | None:
        """Weight of every row in the mean; None where all count as one."""
        element = self._element_weights(target)
        if element is None:
            return weight
        own = element.reshape(len(element), -1).sum(1)
        return own if weight is None else own * weight

    def n_kinks(self, output: Any, target: Any) -> int:
        """Number of rows on the kink of an absolute error, to rounding."""
        if not isinstance(self.criterion, nn.L1Loss) or not isinstance(output, Tensor):
            return 0
        size = torch.finfo(output.dtype).eps * 100 * (output.abs() + target.abs())
        return int(((output - target).abs() <= size).reshape(len(output), -1).any(1).sum())

    def _element_weights(self, target: Any) -> Tensor | None:
        """Weight of every class label, zero for ignored ones; None for other losses."""
        if self.counted is not None:
            return self.counted(target).double()
        if not isinstance(self.criterion, nn.CrossEntropyLoss | nn.NLLLoss):
            return None
        if target.is_floating_point():
            return None
        kept: Tensor = target != self._ignore_index
        if self.criterion.weight is None:
            return kept.double()
        weights = self.criterion.weight.to(target.device).double()
        return torch.where(kept, weights[target.clamp(0, len(weights) - 1)], 0.0)

    def _class_indices(self, output: Tensor, target: Tensor) -> Tensor:
        if output.ndim < 2 or output.shape[1] < 2:
            raise ValueError(
                f"Expected outputs of shape (n, classes) for {self.words!r}, got "
                f"{tuple(output.shape)}; use loss='bce_with_logits' for one output per row."
            )
        if target.is_floating_point() and target.shape == output.shape:
            return target.to(output.dtype)
        labels = target.long()
        if target.is_floating_point() and not bool((labels == target).all()):
            raise ValueError(
                f"Expected class labels for {self.words!r}, got fractional numbers in y; use a "
                "regression loss such as 'mse'."
            )
        if labels.ndim == 2 and labels.shape[1] == 1 and output.ndim == 2:
            labels = labels[:, 0]
        expected = (output.shape[0], *output.shape[2:])
        if tuple(labels.shape) != expected:
            raise ValueError(
                f"Expected class labels of shape {expected} for outputs of shape "
                f"{tuple(output.shape)}, got {tuple(labels.shape)}."
            )
        return self._indices_from_labels(labels, output.shape[1])

    def _indices_from_labels(self, labels: Tensor, n_classes: int) -> Tensor:
        ignored = labels == self._ignore_index
        known = None if self.classes is None else self.classes.to(labels)
        seen = labels[~ignored] if known is None else known[known != self._ignore_index]
        inside = seen.numel() == 0 or (int(seen.min()) >= 0 and int(seen.max()) < n_classes)
        if inside and not (self.named_labels and len(seen) != n_classes):
            return labels
        if known is None or len(seen) != n_classes:
            distinct = seen.unique().tolist()
            what = f"names of {len(distinct)}" if self.named_labels else str(distinct[:10])
            raise ValueError(
                f"Expected class labels in 0..{n_classes - 1} for {n_classes} outputs, got "
                f"{what}; encode y as the model was trained."
            )
        return torch.where(ignored, labels, _positions(seen, labels, ~ignored))

    def _binary_labels(self, target: Tensor) -> Tensor:
        known = target if self.classes is None else self.classes
        two = self.classes is not None and len(self.classes) == 2
        inside = known.numel() == 0 or (float(known.min()) >= 0 and float(known.max()) <= 1)
        if inside and (two or not self.named_labels):
            return target
        if two:
            return _positions(known.to(target), target)
        distinct = known.unique().tolist()
        what = f"names of {len(distinct)}" if self.named_labels else f"values {distinct[:10]}"
        raise ValueError(
            f"Expected binary labels or probabilities for {self.words!r}, got {what}; encode y "
            "as 0 and 1."
        )

    @property
    def _ignore_index(self) -> int:
        return int(getattr(self.criterion, "ignore_index", -100))

    def _same_shape(self, output: Tensor, target: Tensor) -> Tensor:
        if output.shape == target.shape or not self.reshaped:
            return target
        if (*target.shape, 1) == output.shape or (*output.shape, 1) == target.shape:
            return target.reshape(output.shape)
        if self.kind == "free":
            return target
        raise ValueError(
            f"Expected y of the shape of the outputs, {tuple(output.shape)}, got "
            f"{tuple(target.shape)}: the two would be broadcast against each other."
        )


def _positions(classes: Tensor, labels: Tensor, used: Tensor | None = None) -> Tensor:
    """Number of each label among the sorted classes; only the used ones must be among them."""
    found = torch.searchsorted(classes, labels.contiguous()).clamp(max=len(classes) - 1)
    wrong = classes[found] != labels
    new = labels[wrong if used is None else wrong & used].unique().tolist()
    if new:
        raise ValueError(
            f"Expected the labels of the fitted rows, {classes.tolist()}, got also {new[:10]}."
        )
    return found


def _n_rows(output: Any, target: Any) -> int:
    if isinstance(output, Tensor) and output.ndim:
        return len(output)
    for tree in (output, target):
        for tensor in tensors_in(tree):
            if tensor.ndim:
                return len(tensor)
    raise TypeError(f"Expected Tensor outputs with one entry per row, got {type(output).__name__}.")


def warn_of_probabilities(criterion: Any, output: Any) -> None:
    """Warn where a loss that expects logits is given what looks like probabilities."""
    if not isinstance(output, Tensor) or output.numel() < 10:  # a few may be there by chance
        return
    inside = bool(((output >= 0) & (output <= 1)).all())
    if isinstance(criterion, nn.CrossEntropyLoss) and output.ndim >= 2:
        inside = inside and bool((output.sum(1) - 1).abs().max() < 1e-4)
    elif not isinstance(criterion, nn.BCEWithLogitsLoss):
        return
    if inside:
        warn_user(
            f"{type(criterion).__name__} expects logits, but the outputs look like "
            "probabilities (all in [0, 1]); use 'nll' on their logarithm or 'bce'.",
            OutputWarning,
        )
